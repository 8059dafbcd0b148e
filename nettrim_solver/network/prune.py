"""Prune a network: one entry for all budgets, and the plan of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, Literal

from ..checks import check_choice, check_number, check_time_limit
from ..exceptions import SettingsError, SolverError
from ..solvers import SOLVERS
from ..threads import limit_threads
from .allocation import METHODS, Method
from .calibration import Folder, as_calibration
from .checkpoint import in_words
from .choices import BUDGETS, MAX_ROWS, Budget, Options, Pipeline
from .demand import Demand, demand_of
from .graph import Network, check_network
from .modes import Run
from .paths import LayerPath
from .planning import PruningPlan, plan
from .progress import LayerProgress
from .result import PruningResult, plain
from .search import Search

#: Arguments that say where, how long and with what data, not what was asked for.
NOT_ASKED = {"network", "X", "X_heldout", "paths", "checkpoint", "callback", "spill"}


def prune_network(
    network: Network,
    X: Any,
    *,
    tolerance: Budget = None,
    sparsity: Budget = None,
    nnz: Budget = None,
    max_error: float | None = None,
    accuracy: Callable[[Network], float] | None = None,
    min_accuracy: float | None = None,
    allocation: Method | None = None,
    mode: Literal["cascade", "parallel"] = "cascade",
    solver: str = "admm",
    settings: Mapping[str, Any] | None = None,
    pipeline: Pipeline | None = None,
    formulation: Literal["pooled", "strict"] = "pooled",
    radius: Literal["joint", "per_output"] = "joint",
    gamma: float | None = None,
    strict_bound: Literal["clipped", "trained"] = "clipped",
    output_weights: Literal["equal", "downstream"] | Network = "equal",
    passes: int = 0,
    output_refit: int = 0,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    skip: str | Iterable[str] | None = None,
    X_heldout: Any = None,
    paths: Mapping[str, LayerPath] | None = None,
    probe: str | None = "alps",
    resolution: float = 0.02,
    max_rows: int | None = MAX_ROWS,
    seed: int = 0,
    checkpoint: Folder | None = None,
    callback: Callable[[LayerProgress], object] | None = None,
    n_threads: int | None = None,
    time_limit: float | None = None,
    spill: Folder | None = None,
) -> PruningResult:
    r"""Prune the layers of a trained network, one after the other, to one of five budgets.

    Batch normalisations are folded into the layers before them first.

    Parameters
    ----------
    network : Network
    X : array_like of shape (n_samples, ...), iterable of batches, or Calibration
        Calibration data: inputs of the network.
    tolerance : float or mapping of str to float
        The radius of every layer, relative to its outputs; or that of each, by name.
    sparsity, nnz : number or mapping of str to number
        The fraction of zeros, or the nonzero weights, of the whole network: of all layers together
        that are not skipped and have no budget of their own in `overrides`. Or those of each layer,
        by name. The groups of a convolution share a number of nonzeros equally.
    max_error : float
        The largest relative error of the network's output on the calibration samples.
    accuracy, min_accuracy : callable, float
        The least value of ``accuracy(network) -> float``: a function of yours, on samples that the
        network is not pruned on, that is larger for better networks. Under an error or over an
        accuracy the sparsest network is searched for.
    allocation : {"uniform", "tolerance", "output_error"}, optional
        How a budget of the network is spread over its layers: the same sparsity for all, the
        default for `sparsity` and `nnz`; the same relative error of their own; or where it costs
        the network's output least, the default of the searches. The last two measure the layers
        first, see :func:`.allocate`; at high sparsities that is worth it.
    mode : {"cascade", "parallel"}
        Whether a layer is pruned on the signals of the network that is already pruned up to it, or
        on those of the trained network. The target is the trained network's output either way.
    solver : str
        One of :func:`available_solvers`.
    settings : mapping, optional
        The solver's own settings.
    pipeline : callable, optional
        Called in place of the solver, ``pipeline(problem, nnz, n_threads=, callback=,
        time_limit=)``, with nnz None for the problem's radius; returns a :class:`Solution`.
    formulation, radius : str
        As in :class:`Problem`.
    gamma : float, optional
        In a cascade the squared radius of a layer is at least gamma times the squared distance of
        the trained weights on the pruned inputs: at 1, the default, and above, these keep it. At 0
        the tolerance is the radius, whether it can be met or not.
    strict_bound : {"clipped", "trained"}
        What a strict cascade puts in place of the bounds of one-sided rows, which the trained
        weights may violate: what these give, V (the paper's), or V only where it is further out.
    output_weights : {"equal", "downstream"} or Network
        What the errors of a layer's outputs count beside each other: all the same, or by how far
        each moves the network's output (:func:`.downstream_weights`). Then the radius, the gap and
        the violation of a layer are those of its weighted outputs, while errors and bounds stay in
        its own units. With the same zeros the network's output changes less. Given a network that
        was pruned before, it is how far they move the output of that one, whose later layers
        listen to a part of the outputs only.
    passes : int
        So often the network is pruned by "alps" before, to the same budgets: the weights of the
        outputs are each time those at the network that the pass before gave.
    output_refit : int
        Steps of a refit behind the last layer: the nonzero weights of all layers are chosen anew,
        together, so that the network's output nears the trained one's (:func:`.refit_output`).
        40 are usual; 0 leaves it out. No radius or gap is then that of the weights.
    overrides : mapping of str to mapping, optional
        Other arguments for some layers: by name, by pattern (``"conv*"``), or by kind (``"dense"``,
        ``"conv2d"``). The keys are fields of :class:`.LayerSettings`. Names count more than
        patterns, patterns more than kinds, later entries more than earlier ones.
    skip : str or iterable of str, optional
        Names, patterns and kinds of layers that stay as they are.
    X_heldout : array_like, iterable or Calibration, optional
        Other samples, to measure the errors on. They serve the allocation, too.
    paths : mapping of str to LayerPath, optional
        What was measured of the layers before: ``result.paths``, or by :func:`.measure_paths`.
    probe : str or None
        The cheap solver that layers are measured with, and that a search begins with. None for
        the one that was asked for (of a pipeline, "alps" measures the layers).
    resolution : float
        A search ends when the numbers of nonzeros that do and do not meet the demand are this near,
        relative to each other.
    max_rows : int or None
        Rows of a layer that are used at most: samples, of a convolution (sample, position) pairs.
    seed : int
        Decides which.
    checkpoint : path, optional
        A folder where every finished layer is kept; where the budget is the network's, in a folder
        for each network tried. The same call goes on where an earlier one was interrupted, by
        whatever, and gives the same bits.
    callback : callable, optional
        Called with a :class:`.LayerProgress`; a true return value ends the run.
    n_threads : int, optional
        As in :func:`solve`.
    time_limit : float, optional
        Seconds for the run. While layers are measured it is looked at between them.
    spill : path, optional
        A folder for temporary files that hold the rows of a layer instead of the memory.

    Returns
    -------
    PruningResult
        Also after Ctrl-C or at the time limit: layers that are done stay pruned, the others as they
        were trained. A layer whose solve fails keeps its trained weights, the report says why.

        From a search, the sparsest network that was tried with the solver asked for, and met the
        demand; cut short, the best so far: by the cheap solver if there is no other, or else the
        trained network, with the status ``TIME_LIMIT`` or ``INTERRUPTED``.

    Raises
    ------
    ProblemError, SettingsError, UnsupportedError, MissingDependencyError
        Before any work; among them a floor that the trained network does not reach.
    SolverError
        If the accuracy function raises, or returns no number; or if no network meets the demand.
        ``error.solution`` is then the best result so far, or the nearest one, if there is any.

    See Also
    --------
    plan_network : what a run will take

    Notes
    -----
    Memory: the rows of one layer, its problem and its solver; the live signals of a batch.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver.network import Activate, Dense, Network
    >>> rng = np.random.default_rng(0)
    >>> network = Network([
    ...     Dense(rng.standard_normal((20, 12)), np.zeros(12), name="hidden"), Activate("relu"),
    ...     Dense(rng.standard_normal((12, 3)), np.zeros(3), name="scores"),
    ... ])
    >>> X, heldout = rng.standard_normal((300, 20)), rng.standard_normal((200, 20))
    >>> result = prune_network(network, X, tolerance=0.2)
    >>> result
    PruningResult(cascade: optimal, sparsity 0..., output error 2... %, ...)
    >>> result.output_error <= result.output_bound
    True

    The whole network to half of its weights, kept where they matter most:

    >>> result = prune_network(network, X, sparsity=0.5, allocation="output_error", solver="alps")
    >>> result.sparsity, sum(result.budgets.values())
    (0.5, 138)

    The sparsest network that agrees with the trained one on nine of ten other samples:

    >>> labels = network(heldout).argmax(axis=1)
    >>> def accuracy(pruned):
    ...     return np.mean(pruned(heldout).argmax(axis=1) == labels)
    >>> result = prune_network(network, X, accuracy=accuracy, min_accuracy=0.9, solver="alps")
    >>> result.value >= 0.9, result.sparsity > 0.2
    (True, True)
    """
    given = dict(locals())  # the arguments, before there is any other name
    run = _prepared(**given)
    with limit_threads(n_threads):
        if checkpoint is not None:
            run.open(checkpoint)
        try:
            result = run.prune() if isinstance(run, Run) else run.result()
        except SolverError as error:
            if isinstance(error.solution, PruningResult):
                error.solution = replace(error.solution, settings=_asked(given, run))
            raise
    return replace(result, settings=_asked(given, run))


_DEFAULTS: dict[str, Any] = dict(prune_network.__kwdefaults__ or {})


def plan_network(network: Network, X: Any, **arguments: Any) -> PruningPlan:
    """Return what a run will take, without running it: rows, memory, and a rough time.

    To estimate the time, the solver or pipeline prunes small pieces of the layers.

    Parameters
    ----------
    network : Network
    X : array_like, iterable or Calibration
    **arguments
        Those of :func:`prune_network`, which are checked as there.

    Returns
    -------
    PruningPlan
        Of one network. A budget that is spread over the layers, or searched for, takes more than
        that; ``plan.notes`` says what.
    """
    unknown = sorted(set(arguments) - _DEFAULTS.keys())
    if unknown:
        raise SettingsError(f"plan_network() takes {sorted(_DEFAULTS)}, but was given {unknown}")
    run = checked_run(network, X, **arguments)
    with limit_threads(run.options.n_threads):
        if isinstance(run, Run):
            return replace(plan(run), notes=run.notes())
        return replace(plan(run.typical()), notes=run.notes())


def checked_run(network: Network, X: Any, **arguments: Any) -> Run | Search:
    """Check the arguments of :func:`prune_network` as it does; return what would run."""
    return _prepared(network=network, X=X, **_DEFAULTS | arguments)


def _prepared(**given: Any) -> Run | Search:
    """Check the arguments of :func:`prune_network`, and return what runs."""
    network, callback = given["network"], given["callback"]
    check_network(network)
    options = Options(**{f.name: given[f.name] for f in fields(Options)})
    options.validate()
    demand = demand_of(given["max_error"], given["accuracy"], given["min_accuracy"])
    budgets = {name: given[name] for name in BUDGETS if given[name] is not None}
    allocation = _allocation(given, budgets, demand)
    check_number("resolution", given["resolution"], 0.0, 1.0)
    if given["probe"] is not None:
        check_choice("probe", given["probe"], tuple(SOLVERS))
    check_time_limit(given["time_limit"])
    if callback is not None and not callable(callback):
        raise SettingsError(f"callback must be callable, but was {callback!r}")
    folded, spill, heldout = network.folded(), options.spill, given["X_heldout"]
    data = as_calibration(given["X"], folded, spill, "X")
    if heldout is not None:
        heldout = as_calibration(heldout, folded, spill, "X_heldout")
    run: Run | Search
    with limit_threads(options.n_threads):
        if allocation is None:
            run = Run.of(network, data, options, budgets, heldout)
        else:
            run = Search.of(
                network, data, heldout, options, demand or budgets, allocation=allocation,
                paths=given["paths"], probe=given["probe"], resolution=given["resolution"],
            )  # fmt: skip
    run.callback, run.time_limit = callback, given["time_limit"]
    return run


def _allocation(
    given: Mapping[str, Any], budgets: Mapping[str, Any], demand: Demand | None
) -> str | None:
    """Return how the network's budget is spread by measuring; None if every layer has its own."""
    names = [*budgets, *(["max_error"] if given["max_error"] is not None else [])]
    names += ["accuracy"] if given["accuracy"] is not None else []
    if len(names) > 1:
        raise SettingsError(
            "give one of tolerance, sparsity, nnz, max_error, or accuracy with min_accuracy, but "
            f"{names} were given"
        )
    allocation = given["allocation"]
    if allocation is not None:
        check_choice("allocation", allocation, METHODS)
    if demand is not None:
        return allocation or "output_error"
    each = [n for n, value in budgets.items() if n == "tolerance" or isinstance(value, Mapping)]
    if allocation is not None and (each or not budgets):
        raise SettingsError(
            f"allocation={allocation!r} spreads a budget of the network, but "
            + (f"{each[0]} is one of each layer" if each else "none was given")
            + ": give sparsity or nnz as one number, max_error, or accuracy with min_accuracy"
        )
    measured = allocation not in (None, "uniform")
    if given["paths"] is not None and not measured:
        raise SettingsError("paths belong to allocation='tolerance' or 'output_error'")
    return allocation if measured else None


def _asked(given: Mapping[str, Any], run: Run | Search) -> dict[str, Any]:
    """Return the arguments that have a value and an effect, as JSON values."""
    asked = {**given, "skip": run.options.skip or None}
    idle = set(NOT_ASKED)
    if isinstance(run, Search):
        asked["allocation"] = run.allocator.method
    else:
        idle |= {"probe", "resolution"}
    if given["pipeline"] is not None:
        idle.add("solver")
    idle |= {name for name in ("passes", "output_refit") if not given[name]}
    return {
        name: _as_json(value)
        for name, value in asked.items()
        if value is not None and name not in idle
    }


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _as_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(entry) for entry in value]
    simple = plain(value)
    return simple if isinstance(simple, (str, int, float, bool, type(None))) else in_words(value)
