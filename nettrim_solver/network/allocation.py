r"""Where the weights of a network go: one budget for all layers, shared out among them.

``"uniform"`` gives every layer the same sparsity. ``"shape"`` leaves small layers denser, by a rule
of their shapes. ``"tolerance"`` gives every layer the same relative error of its own, the rule of
the paper. ``"output_error"`` spends the budget where it costs the network's output least: it
minimises

.. math:: \sum_l e_l(k_l) \quad \text{subject to} \quad \sum_l k_l = K

over the convex minorants of the measured paths :math:`e_l` (:mod:`.paths`). Of convex curves the
pieces can be bought one by one in the order of their slopes, so the minimum is exact.

The errors of layers that are pruned alone do not simply add up in a cascade. So ``"shape"`` and
``"output_error"`` for one budget compare several splits: the network is quickly pruned with each of
them, and the one whose output errs least is taken. All errors are taken on samples that the layers
were not pruned on: calibration errors make large layers look better than they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np

from ..checks import check_choice, check_integer, check_number
from ..exceptions import SettingsError
from ..threads import limit_threads
from .calibration import Calibration, as_calibration
from .choices import Execution
from .graph import Network
from .paths import LayerPath
from .probing import GRID, Prober, measuring_recipe
from .recipe import ALLOCATIONS, MAX_ROWS, Recipe
from .spreading import (
    least_nnz,
    spread_by_output,
    spread_by_shape,
    spread_by_tolerance,
    spread_evenly,
)

Method = Literal["output_error", "shape", "tolerance", "uniform"]

#: Exponents of the splits by shape (:func:`.spread_by_shape`) that are tried, without and with
#: convolutions.
EXPONENTS, CONVOLUTION_EXPONENTS = (0.4, 0.8), (1.0, 1.3)

#: Layers up to which paths are measured for one budget; of more layers the shapes decide.
MOST_LAYERS = 20

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
    skip: str | Iterable[str] | None = None,
    X_heldout: Any = None,
    solver: str = "alps",
    settings: Mapping[str, Any] | None = None,
    output_weights: Literal["equal", "downstream"] = "equal",
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
    method : {"output_error", "shape", "tolerance", "uniform"}
    mode : {"cascade", "parallel"}
        How the network is going to be pruned.
    paths : mapping of str to LayerPath, optional
        Of every layer, from :func:`measure_paths`; measured when omitted.
    skip : str or iterable of str, optional
        Names, patterns and kinds of layers that stay as they are. Their weights do not count.
    X_heldout : array_like, iterable or Calibration, optional
        Other samples, to measure errors on. When omitted every fifth of the calibration samples is
        held out, as long as there are 50 of them.
    solver, settings
        What the layers are pruned with; it need not be what the network is going to be pruned with.
    output_weights : {"equal", "downstream"}
        As in :class:`.Recipe`.
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
    Up to four prunings per layer for the paths, and one of the network for each of up to three
    splits.

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
    recipe = measuring_recipe(
        solver, settings, max_rows=max_rows, mode=mode, output_weights=output_weights,
        skip=() if skip is None else skip,
    )  # fmt: skip
    allocator = Allocator(
        network, X, recipe, Execution(n_threads, seed), method=method, paths=paths,
        X_heldout=X_heldout,
    )  # fmt: skip
    total = allocator.total(nnz, sparsity)
    with limit_threads(n_threads):
        return allocator.chosen(total)


def measure_paths(
    network: Network,
    X: Any,
    *,
    skip: str | Iterable[str] | None = None,
    X_heldout: Any = None,
    solver: str = "alps",
    settings: Mapping[str, Any] | None = None,
    output_weights: Literal["equal", "downstream"] = "equal",
    max_rows: int | None = MAX_ROWS,
    seed: int = 0,
    n_threads: int | None = None,
) -> dict[str, LayerPath]:
    """Return the paths of all layers, for :func:`allocate`; its arguments.

    Held-out samples are split off as there.
    """
    recipe = measuring_recipe(
        solver, settings, max_rows=max_rows, output_weights=output_weights,
        skip=() if skip is None else skip,
    )  # fmt: skip
    allocator = Allocator(
        network, X, recipe, Execution(n_threads, seed), method="output_error", X_heldout=X_heldout
    )
    with limit_threads(n_threads):
        allocator.prepare()
    return dict(allocator.paths)


class Allocator:
    """Spreads any number of budgets; what they need is measured once.

    Parameters
    ----------
    network : Network
    X : array_like, iterable or Calibration, optional
    recipe : Recipe
        How layers are pruned to measure them; those with budgets of their own are left out.
    method, paths
        As in :func:`allocate`.
    tell : callable, optional
        Called with the name of a layer before each piece of work; may raise to end it.

    Attributes
    ----------
    paths : dict of str to LayerPath
        Empty before :meth:`prepare`.
    least, most : int
        The smallest and the largest total there is.
    """

    def __init__(
        self,
        network: Network,
        X: Any,
        recipe: Recipe,
        execution: Execution,
        *,
        method: str,
        paths: Mapping[str, LayerPath] | None = None,
        X_heldout: Any = None,
        tell: Tell | None = None,
    ) -> None:
        check_choice("method", method, ALLOCATIONS)
        self.method, self.n_threads, self.tell = method, execution.n_threads, tell
        self.prober = _prober(network, X, X_heldout, recipe, execution)
        self.layers = self.prober.layers
        self.paths = self._checked(paths)
        if X is None and method != "uniform" and not self.paths:
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
        if self.method in ("uniform", "shape") or self.paths:
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
        """Return the nonzeros of every layer by the method's rule, without any draft."""
        self.check(total)
        if self.method == "uniform":
            return spread_evenly({n: layer.W.size for n, layer in self.layers.items()}, total)
        if self.method == "shape":
            return spread_by_shape(self.layers, total, EXPONENTS[-1])
        least = {name: least_nnz(layer) for name, layer in self.layers.items()}
        if self.method == "tolerance":
            return spread_by_tolerance(self.paths, total, least)
        return spread_by_output(self.paths, total, least)

    def chosen(self, total: int) -> dict[str, int]:
        """Return the nonzeros of every layer: of several splits the one with the best draft."""
        self.check(total)
        if self.method in ("uniform", "tolerance") or self.paths or len(self.layers) == 1:
            self.prepare(total)
            return self.spread(total)
        convolutions = any(layer.kind == "conv2d" for layer in self.layers.values())
        exponents = CONVOLUTION_EXPONENTS if convolutions else EXPONENTS
        splits = [spread_by_shape(self.layers, total, exponent) for exponent in exponents]
        measured = self.method == "output_error" and len(self.layers) <= MOST_LAYERS
        if measured:
            self.prepare(total)
            splits.append(self.spread(total))
        if self.prober.heldout is None:
            return splits[-1]
        errors = []
        for nnz in splits:
            draft = self._onward(self.prober.original, nnz, 0)
            errors.append(self.prober.output_error(draft))
        return splits[int(np.argmin(errors))]

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


def _prober(
    network: Network, X: Any, X_heldout: Any, recipe: Recipe, execution: Execution
) -> Prober:
    """Return what prunes and measures; every fifth sample is held out if none are given."""
    if X is not None and isinstance(network, Network):
        X = as_calibration(X, network.folded(), execution.spill, "X")
        if X_heldout is None and len(X) >= ENOUGH:
            X, X_heldout = split(X)
    return Prober(network, X, X_heldout, recipe, execution)


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
