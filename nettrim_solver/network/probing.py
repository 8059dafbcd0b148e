"""Layers pruned alone, and what that does to a network: the paths of layers, measured."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..checks import check_number
from ..exceptions import ProblemError, SettingsError, SolverError
from ..pipeline import Pipeline, Solve
from ..solution import Solution
from ..solve import solve
from ..solvers import SOLVERS
from ..threads import limit_threads
from .calibration import as_calibration, collect
from .choices import Execution, LayerSettings, open_layers, resolve
from .downstream import output_weights
from .graph import Network, check_network
from .measure import Errors, measure, relative
from .paths import LayerPath
from .recipe import MAX_ROWS, Recipe
from .target import Budget
from .tasks import failure, group_tasks

if TYPE_CHECKING:
    from ..solvers.admm.factorisation import Factorisation

#: Sparsities at which a layer is pruned. No weights at all and all of them cost nothing to measure.
GRID = (0.4, 0.7, 0.85, 0.93, 0.97, 0.99)


def layer_path(
    network: Network,
    name: str,
    X: Any,
    sparsities: Iterable[float] = GRID,
    *,
    solver: str = "alps",
    settings: Mapping[str, Any] | None = None,
    X_heldout: Any = None,
    max_rows: int | None = MAX_ROWS,
    seed: int = 0,
    n_threads: int | None = None,
) -> LayerPath:
    """Measure what the zeros of one layer cost, with all other layers as trained.

    Parameters
    ----------
    network : Network
    name : str
        The layer.
    X : array_like, iterable or Calibration
        Calibration data.
    sparsities : iterable of float
        In [0, 1). No weights at all, and all of them, are always among the points.
    solver : str
        One of :func:`available_solvers`.
    settings : mapping, optional
        The solver's own settings.
    X_heldout : array_like, iterable or Calibration, optional
        Other samples, to measure the errors on as well.
    max_rows : int or None
        Rows of the layer that are used at most.
    seed : int
        Decides which.
    n_threads : int, optional
        As in :func:`solve`.

    Returns
    -------
    LayerPath

    Raises
    ------
    ProblemError, SettingsError, UnsupportedError, MissingDependencyError
        Before any work.
    SolverError
        If the solver fails at a point.

    Notes
    -----
    One collection of the layer's rows for all points. Convex solvers share one factorisation, and
    each point starts from the one before; "exact_obs" traces the removals once.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver.network import Activate, Dense, Network
    >>> rng = np.random.default_rng(0)
    >>> network = Network([
    ...     Dense(rng.standard_normal((20, 12)), np.zeros(12), name="hidden"), Activate("relu"),
    ...     Dense(rng.standard_normal((12, 3)), np.zeros(3), name="scores"),
    ... ])
    >>> path = layer_path(network, "hidden", rng.standard_normal((300, 20)), [0.5, 0.9])
    >>> path.nnz
    array([  0,  24, 120, 240])
    >>> bool(np.all(np.diff(path.output_errors) < 0)), float(path.output_errors[-1])
    (True, 0.0)
    """
    recipe = measuring_recipe(solver, settings, max_rows=max_rows)
    prober = Prober(network, X, X_heldout, recipe, Execution(n_threads, seed))
    with limit_threads(n_threads):
        return prober.path(name, sparsities, n_threads)


def measuring_recipe(
    solver: str, settings: Mapping[str, Any] | None = None, *, max_rows: int | None = None,
    **changes: Any,
) -> Recipe:  # fmt: skip
    """Return the recipe of layers that are pruned by one solver to measure them."""
    step = {**dict(settings or {}), "step": solver}
    return Recipe(steps=step, max_rows=math.inf if max_rows is None else max_rows, **changes)


class Prober:
    """Prunes single layers of a network for numbers of nonzeros, and measures what that does.

    Parameters
    ----------
    network : Network
    X, X_heldout : array_like, iterable or Calibration, optional
        Without X nothing can be pruned.
    recipe : Recipe
        Of one step.
    execution : Execution

    Attributes
    ----------
    original : Network
        The network, batch normalisations folded.
    data, heldout : Calibration or None
    choices : dict of str to LayerSettings
        Of every layer.
    layers : dict of str to Layer
        Those that are to be pruned, and have no budget of their own.
    """

    def __init__(
        self, network: Network, X: Any, X_heldout: Any, recipe: Recipe, execution: Execution
    ) -> None:
        check_network(network)
        self.recipe, self.execution = recipe, execution
        self.original = network.folded()
        self.layers = open_layers(self.original, recipe)
        self.choices = resolve(self.original, recipe, Budget("nnz", 0))
        self.data, self.heldout = (
            None if given is None else as_calibration(given, self.original, execution.spill, name)
            for name, given in (("X", X), ("X_heldout", X_heldout))
        )
        self._weights: dict[str, NDArray[np.float64] | None] = {}

    def path(
        self, name: str, sparsities: Iterable[float] = GRID, n_threads: int | None = None, *,
        brief: bool = False,
    ) -> LayerPath:  # fmt: skip
        """Return the path of one layer alone; see :func:`layer_path`.

        With `brief` all errors are those on the held-out samples, if there are any: evaluating the
        network on the calibration samples can take longer than pruning the layer.
        """
        tick = time.perf_counter()
        layer = self.original.layer(name)
        grid = _counts(sparsities, layer.W.size)
        found = dict(self.pruned(self.original, name, grid, n_threads))
        found[layer.W.size] = self.original
        path = self.measured(name, found, brief=brief)
        return replace(path, seconds=time.perf_counter() - tick)

    def pruned(
        self, source: Network, name: str, counts: Iterable[int], n_threads: int | None = None
    ) -> Iterator[tuple[int, Network]]:
        """Prune one layer for several numbers of nonzeros, ascending.

        Parameters
        ----------
        source : Network
            The network whose signals enter the layer, and that gets the new weights.
        name : str
        counts : iterable of int
        n_threads : int, optional

        Yields
        ------
        nnz : int
        network : Network
            `source` with this layer pruned.

        Raises
        ------
        SolverError
            If the solver fails.
        """
        original, choice, layer = self.original, self.choices[name], self.original.layer(name)
        assert self.data is not None
        signals = collect(
            source, name, self.data, original=None if source is original else original,
            max_rows=choice.max_rows, seed=self.execution.seed, spill=self.execution.spill,
        )  # fmt: skip
        activation = original.activation_after(name)
        weights = self._output_weights(name)
        solvers = [_GroupSolver(choice, n_threads) for _ in range(layer.n_groups)]
        for count in sorted(set(counts)):
            if count == 0:
                b = None if layer.b is None else signals.Z.mean(axis=0)
                yield count, source.replace({name: (np.zeros_like(layer.W), b)})
                continue
            tasks = group_tasks(
                signals, activation, choice.with_budget("nnz", count), False, weights
            )
            answers = []
            for task, solver in zip(tasks, solvers, strict=True):
                solution = solver(task.problem, task.nnz)
                reason = failure(solution, task.problem)
                if reason is not None:
                    raise SolverError(f"layer {name!r} at {count} nonzeros: {reason}", solution)
                answers.append([task.to_layer(values) for values in (solution.W, solution.b)])
            b = None
            if layer.b is not None:
                b = np.concatenate([own for _, own in answers])
            W = layer.from_matrices([own for own, _ in answers])
            yield count, source.replace({name: (W, b)})

    def _output_weights(self, name: str) -> NDArray[np.float64] | None:
        """Return what the errors of a layer's outputs count; measured once."""
        if name not in self._weights:
            assert self.data is not None
            self._weights[name] = output_weights(
                self.original, name, self.data, self.choices[name], self.execution.seed
            )
        return self._weights[name]

    def output_error(self, network: Network) -> float:
        """Return the squared relative error at the output, on held-out samples if there are any."""
        data = self.data if self.heldout is None else self.heldout
        assert data is not None
        return _output_error(measure(self.original, network, data, alone=False))

    def measured(
        self, name: str, networks: Mapping[int, Network], *, brief: bool = False
    ) -> LayerPath:
        """Return the errors of networks as a path of one layer, by its number of nonzeros."""
        nnz = np.array(sorted(networks), dtype=np.int64)
        fields: dict[str, Any] = {}
        places = [("", self.data), ("_heldout", self.heldout)]
        if brief and self.heldout is not None:
            places = [("", self.heldout)]
        for suffix, data in places:
            if data is None:
                continue
            found = [measure(self.original, networks[int(k)], data, alone=False) for k in nnz]
            fields[f"errors{suffix}"] = np.array([e.relative(e.network, name) for e in found])
            fields[f"output_errors{suffix}"] = np.array([_output_error(e) for e in found])
        return LayerPath(
            name, self.original.layer(name).W.size, nnz, solver=_step(self.choices[name]).solver,
            **fields,
        )  # fmt: skip


class _GroupSolver:
    """Solves the problem of one group for one budget after the other; carries what can be used."""

    def __init__(self, choice: LayerSettings, n_threads: int | None) -> None:
        step = _step(choice)
        self.solver, self.settings = step.solver, dict(step.settings)
        self.n_threads = n_threads
        self.last: Solution | None = None
        self.factorisation: Factorisation | None = None

    def __call__(self, problem: Any, nnz: int | None) -> Solution:
        assert nnz is not None
        # Other pruners ignore a start, or (l0) would give answers that depend on the grid.
        starts = SOLVERS[self.solver].convex or self.solver == "exact_obs"
        if self.solver == "admm" and self.factorisation is None:
            from ..solvers.admm.factorisation import Factorisation

            self.factorisation = Factorisation(problem)
        self.last = solve(
            problem, self.solver, nnz=nnz, warm_start=self.last if starts else None,
            factorisation=self.factorisation, n_threads=self.n_threads, **self.settings,
        )  # fmt: skip
        return self.last


def _step(choice: LayerSettings) -> Solve:
    """Return the one step of a layer that is measured."""
    assert isinstance(choice.steps, Pipeline)
    (step,) = choice.steps.steps
    assert isinstance(step, Solve)
    return step


def _counts(sparsities: Iterable[float], size: int) -> list[int]:
    """Return numbers of nonzeros for sparsities, and 0."""
    try:
        given = list(sparsities)
    except TypeError:
        raise SettingsError(f"sparsities must be numbers, but was {sparsities!r}") from None
    for value in given:
        check_number("sparsities", value, 0.0, 1.0, closed=True)
    return [0, *(size - round(float(value) * size) for value in given)]


def _output_error(errors: Errors) -> float:
    """Return the squared relative error of the network's output."""
    error = relative(errors.output, errors.output_target)
    if not np.isfinite(error):
        raise ProblemError(
            "the network's output must be finite and not all zero on the samples, but its squared "
            f"norm is {errors.output_target:g}"
        )
    return error
