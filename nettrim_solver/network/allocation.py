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
from dataclasses import fields
from typing import Any, Literal

import numpy as np

from ..checks import check_choice, check_flag, check_integer, check_number
from ..exceptions import SettingsError
from ..threads import limit_threads
from .calibration import Calibration, as_calibration
from .choices import MAX_ROWS, Options
from .graph import Network
from .paths import LayerPath
from .probing import GRID, Prober
from .spreading import least_nnz, spread_by_output, spread_by_tolerance, spread_evenly

METHODS = ("output_error", "tolerance", "uniform")

Method = Literal["output_error", "tolerance", "uniform"]

#: Factor c by which a layer's weights are varied in the cascade, and the bounds on its weight.
STEP, WEIGHTS = 1.5, (0.05, 20.0)

#: Layers up to which the cascade is looked at by default: it takes about n^2 + 3n prunings.
MOST_LAYERS = 10

#: Densities at which layers are measured for one budget, relative to its own, and the largest one:
#: few layers are to be much denser than the others, and a dense layer costs the output nothing.
FACTORS, DENSEST = (0.4, 1.0, 2.5, 6.25), 0.7

#: Every so many samples are held out when none are given, and how many there must be for that.
EVERY, ENOUGH = 5, 50

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
    output_weights: Literal["equal", "downstream"] | Network = "equal",
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
        Nonzero weights, or fraction of zeros, of the layers together; one of the two.
    method : {"output_error", "tolerance", "uniform"}
    mode : {"cascade", "parallel"}
        How the network is going to be pruned.
    paths : mapping of str to LayerPath, optional
        Of every layer, from :func:`measure_paths`; measured when omitted.
    weigh : bool, optional
        Whether to look at the cascade as well (``"output_error"``); by default for a cascade of at
        most 10 layers. Without, every layer's error counts as if it reached the output in full.
    skip : str or iterable of str, optional
        Names, patterns and kinds of layers that stay as they are. Their weights do not count.
    X_heldout : array_like, iterable or Calibration, optional
        Other samples, to measure errors on. When omitted every fifth of the calibration samples is
        held out, as long as there are 50 of them.
    solver, settings
        What the layers are pruned with; it need not be what the network is going to be pruned with.
    output_weights : {"equal", "downstream"} or Network
        As in :func:`.prune_network`.
    max_rows, seed, n_threads
        As in :func:`layer_path`.

    Returns
    -------
    dict of str to int
        Nonzero weights of every layer that is not skipped, for ``prune_network(..., nnz=)``. They
        add up to `nnz` exactly. Except by ``"uniform"`` each layer keeps at least as many as it has
        outputs with nonzero weights.

    Raises
    ------
    ProblemError, SettingsError, UnsupportedError, MissingDependencyError
        Before any work.
    SolverError
        If the solver fails.

    Notes
    -----
    Up to four prunings per layer for the paths; for n layers about n^2 + 3n more for the cascade.

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
        network, X, _options(locals()), method=method, paths=paths, weigh=weigh, X_heldout=X_heldout
    )
    total = allocator.total(nnz, sparsity)
    with limit_threads(n_threads):
        allocator.prepare(total)
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
    output_weights: Literal["equal", "downstream"] | Network = "equal",
    max_rows: int | None = MAX_ROWS,
    seed: int = 0,
    n_threads: int | None = None,
) -> dict[str, LayerPath]:
    """Return the paths of all layers, for :func:`allocate`; its arguments.

    Held-out samples are split off as there.
    """
    allocator = Allocator(
        network, X, _options(locals()), method="output_error", X_heldout=X_heldout
    )
    with limit_threads(n_threads):
        allocator.prepare()
    return dict(allocator.paths)


def _options(given: Mapping[str, Any]) -> Options:
    """Return the options among a function's arguments."""
    return Options(**{f.name: given[f.name] for f in fields(Options) if f.name in given})


class Allocator:
    """Spreads any number of budgets; what they need is measured once.

    Parameters
    ----------
    network : Network
    X : array_like, iterable or Calibration, optional
    options : Options
        How layers are pruned to measure them; those with budgets of their own are left out.
    method, paths, weigh
        As in :func:`allocate`.
    tell : callable, optional
        Called with the name of a layer before each piece of work; may raise to end it.

    Attributes
    ----------
    paths : dict of str to LayerPath
        Empty before :meth:`prepare`.
    weights : dict of str to float
        All 1 before :meth:`weigh`.
    least, most : int
        The smallest and the largest total there is.
    """

    def __init__(
        self,
        network: Network,
        X: Any,
        options: Options,
        *,
        method: str,
        paths: Mapping[str, LayerPath] | None = None,
        weigh: bool | None = None,
        X_heldout: Any = None,
        tell: Tell | None = None,
    ) -> None:
        check_choice("method", method, METHODS)
        if weigh is not None:
            check_flag("weigh", weigh)
        self.method, self.n_threads, self.tell = method, options.n_threads, tell
        self.prober = _prober(network, X, X_heldout, options)
        self.layers = self.prober.layers
        self.paths = self._checked(paths)
        self.weights = dict.fromkeys(self.layers, 1.0)
        few = len(self.layers) <= MOST_LAYERS
        wanted = (options.cascade and few and X is not None) if weigh is None else weigh
        self.weighs = bool(wanted) and method == "output_error" and len(self.layers) > 1
        if X is None and (self.weighs or (method != "uniform" and not self.paths)):
            raise SettingsError(f"method={method!r} needs calibration data, but X was None")
        floors = 0 if method == "uniform" else sum(map(least_nnz, self.layers.values()))
        self.least, self.most = floors, sum(layer.W.size for layer in self.layers.values())

    def total(self, nnz: Any = None, sparsity: Any = None) -> int:
        """Return the number of nonzeros that the layers are to have together, or raise."""
        if (nnz is None) == (sparsity is None):
            raise SettingsError(f"give one of nnz and sparsity, but got {nnz!r} and {sparsity!r}")
        if nnz is not None:
            check_integer("nnz", nnz, 0)
            total = int(nnz)
        else:
            check_number("sparsity", sparsity, 0.0, 1.0, closed=True)
            total = self.most - round(float(sparsity) * self.most)
        self.check(total)
        return total

    def check(self, total: int) -> None:
        """Raise SettingsError if a total cannot be spread; the message names the nearest."""
        if self.least <= total <= self.most:
            return
        nearest, size = min(max(total, self.least), self.most), self.most
        raise SettingsError(
            f"the layers {[*self.layers]} can have {self.least} to {size} nonzeros together (one "
            f"per output at least), but {total} (sparsity {1 - total / size:.4g}) were asked for: "
            f"the nearest is nnz={nearest}, sparsity={1 - nearest / size:.4g}"
        )

    def prepare(self, total: int | None = None) -> None:
        """Measure the paths that are needed and not given.

        Parameters
        ----------
        total : int, optional
            The only number of nonzeros that is going to be spread: the layers are then measured
            around its density. When omitted, the paths serve every budget.
        """
        if self.method == "uniform" or self.paths:
            return
        grid = GRID if total is None else sparsities_around(total / self.most) or GRID[:1]
        found = {}
        for name in self.layers:
            self._tell(name)
            found[name] = self.prober.path(
                name, grid, n_threads=self.n_threads,
                brief=total is not None and self.method == "output_error",
            )  # fmt: skip
        self.paths = found

    def spread(self, total: int) -> dict[str, int]:
        """Return the nonzeros of every layer."""
        self.check(total)
        if self.method == "uniform":
            return spread_evenly({n: layer.W.size for n, layer in self.layers.items()}, total)
        least = {name: least_nnz(layer) for name, layer in self.layers.items()}
        if self.method == "tolerance":
            return spread_by_tolerance(self.paths, total, least)
        weighted = {name: path.times(self.weights[name]) for name, path in self.paths.items()}
        return spread_by_output(weighted, total, least)

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


def sparsities_around(density: float) -> tuple[float, ...]:
    """Return the sparsities at which layers are measured for one budget, by its density.

    Examples
    --------
    >>> [round(sparsity, 3) for sparsity in sparsities_around(0.05)]
    [0.98, 0.95, 0.875, 0.688]
    """
    return tuple(1.0 - factor * density for factor in FACTORS if factor * density < DENSEST)


def _weight(path: LayerPath, counts: tuple[int, int], errors: list[float]) -> float:
    """Return the change at the output of a cascade relative to that of the layer alone."""
    alone = path.output_error_at(counts[0]) - path.output_error_at(counts[1])
    if not alone > 0 or not math.isfinite(alone):
        return 1.0
    return float(np.clip((errors[0] - errors[1]) / alone, *WEIGHTS))


def _prober(network: Network, X: Any, X_heldout: Any, options: Options) -> Prober:
    """Return what prunes and measures; every fifth sample is held out if none are given."""
    if X is not None and isinstance(network, Network):
        X = as_calibration(X, network.folded(), options.spill, "X")
        if X_heldout is None and len(X) >= ENOUGH:
            X, X_heldout = split(X)
    return Prober(network, X, X_heldout, options)


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
