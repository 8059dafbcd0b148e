r"""Where the weights of a network go: one budget for all layers, spread over them.

``"uniform"`` gives every layer the same sparsity. ``"tolerance"`` gives every layer the same
relative error of its own, the rule of the paper. ``"output_error"`` spends the budget where it
costs the network's output least: it minimises

.. math:: \sum_l \omega_l\, e_l(k_l) \quad \text{subject to} \quad \sum_l k_l = K

over the convex minorants of the measured paths :math:`e_l` (:mod:`.paths`). Of convex curves the
pieces can be bought one by one in the order of their slopes, so the minimum is exact.

Pruned alone, a layer's error reaches the output in full. In a cascade the layers behind it are
pruned on what it leaves, and make up for a part; the sparser they are, the less. The weights
:math:`\omega_l` say how much is left: the cascade is run with the first allocation :math:`k`, and
for each layer once with fewer and once with more weights,

.. math:: \omega_l = \frac{E(k_l / c) - E(k_l c)}{e_l(k_l / c) - e_l(k_l c)},

where E is the error of the pruned cascade at the output. A second allocation uses them. All errors
are taken on samples that the layers were not pruned on: calibration errors make large layers look
better than they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np

from ..checks import check_choice, check_flag, check_integer, check_number
from ..exceptions import SettingsError
from ..threads import limit_threads
from .calibration import Calibration
from .graph import Network
from .layers import Layer
from .modes import MAX_ROWS, MODES, as_calibration
from .paths import LayerPath, Prober

METHODS = ("output_error", "tolerance", "uniform")

Method = Literal["output_error", "tolerance", "uniform"]

#: Factor c by which a layer's weights are varied in the cascade, and the bounds on its weight.
STEP, WEIGHTS = 1.5, (0.05, 20.0)

#: Layers up to which the cascade is looked at by default: it takes about n^2 + 3n prunings.
MOST_LAYERS = 10

#: Every so many samples are held out when none are given, and how many there must be for that.
EVERY, ENOUGH = 5, 50

#: Halvings of the common tolerance.
HALVINGS = 60

Tell = Callable[[str], object]


def allocate(
    network: Network,
    X: Any = None,
    *,
    nnz: int | None = None,
    sparsity: float | None = None,
    method: Method = "output_error",
    mode: Literal["cascade", "parallel"] = "cascade",
    paths: Mapping[str, LayerPath] | None = None,
    weigh: bool | None = None,
    skip: str | Iterable[str] | None = None,
    X_heldout: Any = None,
    solver: str = "alps",
    settings: Mapping[str, Any] | None = None,
    max_rows: int | None = MAX_ROWS,
    seed: int = 0,
    n_threads: int | None = None,
) -> dict[str, int]:
    """Spread a budget of weights over the layers of a network.

    Parameters
    ----------
    network : Network
    X : array_like, iterable or Calibration
        Calibration data. Without it only ``"uniform"``, or paths that are given, can be used.
    nnz, sparsity : int, float
        Nonzero weights, or fraction of zeros, of the whole network; one of the two.
    method : {"output_error", "tolerance", "uniform"}
    mode : {"cascade", "parallel"}
        How the network is going to be pruned.
    paths : mapping of str to LayerPath, optional
        Of every layer, from :func:`measure_paths`; measured when omitted.
    weigh : bool, optional
        Whether to look at the cascade as well (``"output_error"``); by default for a cascade of at
        most 10 layers.
    skip : str or iterable of str, optional
        Names, patterns and kinds of layers that stay as they are. Their weights count.
    X_heldout : array_like, iterable or Calibration, optional
        Other samples, to measure errors on. When omitted every fifth of the calibration samples is
        held out, as long as there are 50 of them.
    solver, settings
        What the layers are pruned with; it need not be what the network is going to be pruned with.
    max_rows, seed, n_threads
        As in :func:`layer_path`.

    Returns
    -------
    dict of str to int
        Nonzero weights of every layer that is not skipped, for ``prune_network(..., nnz=)``. With
        those of the skipped ones they add up to `nnz` exactly. Except by ``"uniform"`` each layer
        keeps at least as many as it has outputs with nonzero weights.

    Raises
    ------
    ProblemError, SettingsError, UnsupportedError, MissingDependencyError
        Before any work.
    SolverError
        If the solver fails.

    Notes
    -----
    Six prunings per layer for the paths; for n layers about n^2 + 3n more for the cascade.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver.network import Activate, Dense, Network
    >>> rng = np.random.default_rng(0)
    >>> network = Network([
    ...     Dense(rng.standard_normal((20, 12)), np.zeros(12), name="hidden"), Activate("relu"),
    ...     Dense(rng.standard_normal((12, 3)), np.zeros(3), name="scores"),
    ... ])
    >>> budgets = allocate(network, rng.standard_normal((300, 20)), sparsity=0.75)
    >>> sum(budgets.values()) == 276 - round(0.75 * 276)
    True
    >>> allocate(network, sparsity=0.75, method="uniform")
    {'hidden': 60, 'scores': 9}
    """
    allocator = Allocator(
        network, X, method=method, mode=mode, paths=paths, weigh=weigh, skip=skip,
        X_heldout=X_heldout, solver=solver, settings=settings, max_rows=max_rows, seed=seed,
        n_threads=n_threads,
    )  # fmt: skip
    total = allocator.total(nnz, sparsity)
    allocator.check(total)
    with limit_threads(n_threads):
        allocator.prepare()
        if allocator.weighs:
            allocator.weigh(total)
        return allocator.spread(total)


def measure_paths(
    network: Network,
    X: Any,
    *,
    skip: str | Iterable[str] | None = None,
    X_heldout: Any = None,
    solver: str = "alps",
    settings: Mapping[str, Any] | None = None,
    max_rows: int | None = MAX_ROWS,
    seed: int = 0,
    n_threads: int | None = None,
) -> dict[str, LayerPath]:
    """Return the paths of all layers, for :func:`allocate`; its arguments.

    Held-out samples are split off as there.
    """
    allocator = Allocator(
        network, X, method="output_error", skip=skip, X_heldout=X_heldout, solver=solver,
        settings=settings, max_rows=max_rows, seed=seed, n_threads=n_threads,
    )  # fmt: skip
    with limit_threads(n_threads):
        allocator.prepare()
    return dict(allocator.paths)


class Allocator:
    """Spreads any number of budgets; what they need is measured once.

    Parameters
    ----------
    network : Network
    X : array_like, iterable or Calibration, optional
    method, mode, paths, weigh, n_threads
        As in :func:`allocate`.
    tell : callable, optional
        Called with the name of a layer before each piece of work; may raise to end it.
    **probe
        Arguments of :class:`.Prober`.

    Attributes
    ----------
    paths : dict of str to LayerPath
        Empty before :meth:`prepare`.
    weights : dict of str to float
        All 1 before :meth:`weigh`.
    """

    def __init__(
        self,
        network: Network,
        X: Any = None,
        *,
        method: str,
        mode: str = "cascade",
        paths: Mapping[str, LayerPath] | None = None,
        weigh: bool | None = None,
        X_heldout: Any = None,
        n_threads: int | None = None,
        tell: Tell | None = None,
        **probe: Any,
    ) -> None:
        check_choice("method", method, METHODS)
        check_choice("mode", mode, MODES)
        if weigh is not None:
            check_flag("weigh", weigh)
        self.method, self.n_threads, self.tell = method, n_threads, tell
        self.prober = _prober(network, X, X_heldout, probe)
        self.layers = {name: self.prober.original.layer(name) for name in self.prober.names}
        self.paths = self._checked(paths)
        self.weights = dict.fromkeys(self.layers, 1.0)
        few = len(self.layers) <= MOST_LAYERS
        wanted = (mode == "cascade" and few and X is not None) if weigh is None else weigh
        self.weighs = bool(wanted) and method == "output_error" and len(self.layers) > 1
        if X is None and (self.weighs or (method != "uniform" and not self.paths)):
            raise SettingsError(f"method={method!r} needs calibration data, but X was None")

    @property
    def kept(self) -> int:
        """Nonzero weights of the layers that are skipped."""
        return self.prober.original.nnz - sum(layer.nnz for layer in self.layers.values())

    @property
    def least(self) -> int:
        """The smallest total there is."""
        if self.method == "uniform":
            return self.kept
        return self.kept + sum(map(least_nnz, self.layers.values()))

    @property
    def most(self) -> int:
        """The largest total there is."""
        return self.kept + sum(layer.W.size for layer in self.layers.values())

    def total(self, nnz: Any, sparsity: Any) -> int:
        """Return the number of nonzeros that the network is to have."""
        if (nnz is None) == (sparsity is None):
            raise SettingsError(f"give one of nnz and sparsity, but got {nnz!r} and {sparsity!r}")
        if nnz is not None:
            check_integer("nnz", nnz, 0)
            return int(nnz)
        check_number("sparsity", sparsity, 0.0, 1.0, closed=True)
        size = self.prober.original.n_weights
        return size - round(float(sparsity) * size)

    def check(self, total: int) -> None:
        """Raise SettingsError if a total cannot be spread; the message names the nearest."""
        if self.least <= total <= self.most:
            return
        nearest, size = min(max(total, self.least), self.most), self.prober.original.n_weights
        why = "skipped layers keep theirs, others one weight per output at least"
        raise SettingsError(
            f"the network can have {self.least} to {self.most} nonzeros ({why}), but {total} "
            f"(sparsity {1 - total / size:.4g}) were asked for: the nearest is nnz={nearest}, "
            f"sparsity={1 - nearest / size:.4g}"
        )

    def prepare(self) -> None:
        """Measure the paths that are needed and not given."""
        if self.method == "uniform" or self.paths:
            return
        found = {}
        for name in self.layers:
            self._tell(name)
            found[name] = self.prober.path(name, n_threads=self.n_threads)
        self.paths = found

    def spread(self, total: int) -> dict[str, int]:
        """Return the nonzeros of every layer."""
        self.check(total)
        budget = total - self.kept
        if self.method == "uniform":
            return spread_evenly({n: layer.W.size for n, layer in self.layers.items()}, budget)
        least = {name: least_nnz(layer) for name, layer in self.layers.items()}
        if self.method == "tolerance":
            return spread_by_tolerance(self.paths, budget, least)
        weighted = {name: path.times(self.weights[name]) for name, path in self.paths.items()}
        return spread_by_output(weighted, budget, least)

    def weigh(self, total: int) -> None:
        """Measure how much of every layer's error is left at the end of a cascade.

        Notes
        -----
        For n layers 2 i + 3 prunings of layer i = 0, 1, ..., and 2 n evaluations of the network.
        """
        self.check(total)
        budgets, state = self.spread(total), self.prober.original
        weights = {}
        for place, name in enumerate(self.layers):
            path, middle = self.paths[name], budgets[name]
            low = max(least_nnz(self.layers[name]), round(middle / STEP))
            high = min(path.size, round(middle * STEP))
            counts = {low, middle, high}
            self._tell(name)
            variants = dict(self.prober.pruned(state, name, counts, self.n_threads))
            errors = [
                self.prober.output_error(self._onward(variants[count], budgets, place + 1))
                for count in (low, high)
            ]
            weights[name] = _weight(path, (low, high), errors)
            state = variants[middle]
        self.weights = weights

    def _onward(self, state: Network, budgets: Mapping[str, int], place: int) -> Network:
        """Return a network with the layers from `place` on pruned in a cascade."""
        for name in [*self.layers][place:]:
            self._tell(name)
            ((_, state),) = self.prober.pruned(state, name, [budgets[name]], self.n_threads)
        return state

    def _tell(self, name: str) -> None:
        if self.tell is not None:
            self.tell(name)

    def _checked(self, paths: Mapping[str, LayerPath] | None) -> dict[str, LayerPath]:
        """Return given paths in the order of the layers, or raise if they do not fit."""
        if paths is None:
            return {}
        lacking = [name for name in self.layers if name not in paths]
        if lacking:
            raise SettingsError(f"paths must hold one of every layer, but {lacking} have none")
        for name, layer in self.layers.items():
            if paths[name].size != layer.W.size:
                raise SettingsError(
                    f"paths[{name!r}] must be of {layer.W.size} weights, but is of "
                    f"{paths[name].size}"
                )
        return {name: paths[name] for name in self.layers}


def least_nnz(layer: Layer) -> int:
    """Return the least nonzeros that a layer keeps: one per output that has any."""
    return sum(int(np.count_nonzero(matrix.any(axis=0))) for matrix in layer.matrices())


def spread_evenly(sizes: Mapping[str, int], budget: int) -> dict[str, int]:
    """Return the same share of every layer's weights, which add up to the budget.

    Rounded down; what is missing goes to the layers with the largest remainders.

    Examples
    --------
    >>> spread_evenly({"a": 10, "b": 5}, 8)
    {'a': 5, 'b': 3}
    """
    size = sum(sizes.values())
    found = {name: budget * own // size for name, own in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: -(budget * sizes[name] % size))
    for name in by_remainder[: budget - sum(found.values())]:
        found[name] += 1
    return found


def spread_by_tolerance(
    paths: Mapping[str, LayerPath], budget: int, least: Mapping[str, int]
) -> dict[str, int]:
    """Return the nonzeros with which all layers reach the same error of their own.

    The least common error that the budget affords; what is left over goes to the first layers that
    a smaller error would give more.
    """

    def at(error: float) -> dict[str, int]:
        return {name: max(least[name], path.nnz_for(error)) for name, path in paths.items()}

    low, high = 0.0, max(float(path.errors.max()) for path in paths.values())
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        if sum(at(middle).values()) <= budget:
            high = middle
        else:
            low = middle
    found, more = at(high), at(low)
    if sum(found.values()) > budget:  # Only the least that layers keep.
        found = dict(least)
    for limits in (more, {name: path.size for name, path in paths.items()}):
        for name, limit in limits.items():
            room = max(0, limit - found[name])
            found[name] += min(room, budget - sum(found.values()))
    return found


def spread_by_output(
    paths: Mapping[str, LayerPath], budget: int, least: Mapping[str, int]
) -> dict[str, int]:
    """Return the nonzeros of least total error at the output, on the minorants of the paths.

    Pieces of the minorants are bought in the order of their slopes; ties go to earlier layers.
    """
    found, pieces = dict(least), []
    for name, path in paths.items():
        nnz, errors = path.minorant(least[name])
        slopes = np.diff(errors) / np.diff(nnz)
        pieces += [(slope, name, int(n)) for slope, n in zip(slopes, np.diff(nnz), strict=True)]
    left = budget - sum(found.values())
    for _, name, length in sorted(pieces, key=lambda piece: piece[0]):
        found[name] += min(length, left)
        left -= min(length, left)
    return found


def _weight(path: LayerPath, counts: tuple[int, int], errors: list[float]) -> float:
    """Return the change at the output of a cascade relative to that of the layer alone."""
    alone = path.output_error_at(counts[0]) - path.output_error_at(counts[1])
    if not alone > 0 or not math.isfinite(alone):
        return 1.0
    return float(np.clip((errors[0] - errors[1]) / alone, *WEIGHTS))


def _prober(network: Network, X: Any, X_heldout: Any, probe: Mapping[str, Any]) -> Prober:
    """Return what prunes and measures; every fifth sample is held out if none are given."""
    if X is not None and isinstance(network, Network):
        X = as_calibration(X, network.folded(), probe.get("spill"), "X")
        if X_heldout is None and len(X) >= ENOUGH:
            X, X_heldout = split(X)
    return Prober(network, X, X_heldout, **probe)


def split(data: Calibration) -> tuple[Calibration, Calibration]:
    """Return four of five samples, and the fifth, as views."""
    batches = list(data.batches())
    whole = [batch[i::EVERY] for batch in batches for i in range(EVERY - 1)]
    held = [batch[EVERY - 1 :: EVERY] for batch in batches]
    size = data.batch_size
    return (
        Calibration([part for part in whole if len(part)], batch_size=size),
        Calibration([part for part in held if len(part)], batch_size=size),
    )
