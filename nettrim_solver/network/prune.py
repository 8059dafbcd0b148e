"""Prune a network: one call for all budgets, and the plan of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from ..checks import check_flag, check_time_limit
from ..exceptions import SettingsError, SolverError
from ..threads import limit_threads
from .adapt import adapted
from .calibration import Folder, as_calibration
from .choices import Execution
from .display import shown_progress
from .graph import Network, check_network
from .modes import Run
from .planning import PruningPlan, plan
from .progress import LayerProgress
from .recipe import MOVED, Recipe, as_recipe, moved
from .result import PruningResult
from .search import Search
from .target import Accuracy, Amount, Budget


def prune_network(
    network: Network,
    X: Any,
    *,
    tolerance: Amount = None,
    sparsity: Amount = None,
    nnz: Amount = None,
    max_error: float | None = None,
    accuracy: Accuracy | None = None,
    min_accuracy: float | None = None,
    recipe: Recipe | str = "best",
    X_heldout: Any = None,
    checkpoint: Folder | None = None,
    callback: Callable[[LayerProgress], object] | None = None,
    progress: bool | None = None,
    n_threads: int | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    spill: Folder | None = None,
    **unknown: Any,
) -> PruningResult:
    r"""Prune the layers of a trained network to a budget, without retraining and without labels.

    Parameters
    ----------
    network : Network
        From :func:`.from_sklearn`, :func:`.from_torch`, :func:`.from_keras`, :func:`.from_onnx`, or
        made of arrays. Batch normalisations are folded into the layers before them first.
    X : array_like of shape (n_samples, ...), iterable of batches, or Calibration
        Calibration data: inputs of the network.
    tolerance : float or mapping of str to float
        Budget: the radius of every layer, relative to its outputs; or that of each, by name.
    sparsity, nnz : number or mapping of str to number
        Budget: the fraction of zeros, or the number of nonzero weights, of the whole network (of
        the layers that the recipe neither skips nor gives a budget of their own); or those of each
        layer, by name.
    max_error : float
        Budget: the largest relative error of the network's output on the calibration samples. The
        sparsest network within it is searched for.
    accuracy, min_accuracy : callable, float
        Budget: the least value of ``accuracy(network) -> float``, a function of yours that is
        larger for better networks, on samples that the network is not pruned on. The sparsest
        network above it is searched for.
    recipe : Recipe or str
        How the network is pruned: ``"best"``, ``"fast"``, ``"net-trim"``, or a :class:`.Recipe`.
    X_heldout : array_like, iterable or Calibration, optional
        Other samples, to report errors on.
    checkpoint : path, optional
        A folder where every finished layer is kept (of every network tried, where the budget is the
        network's). The same call resumes after any interruption and gives the same bits.
    callback : callable, optional
        Called with a :class:`.LayerProgress`; a true return value ends the run.
    progress : bool, optional
        Whether a progress bar is shown on stderr. By default where a person looks: on a terminal
        and in a notebook.
    n_threads : int, optional
        As in :func:`solve`.
    time_limit : float, optional
        Seconds for the run.
    seed : int
        Seed of everything that is drawn: rows of a layer, samples, signs.
    spill : path, optional
        A folder for temporary files that hold the rows of a layer instead of the memory.

    Returns
    -------
    PruningResult
        Also after Ctrl-C or at the time limit: finished layers stay pruned, the others as they were
        trained. A layer whose solve fails keeps its trained weights, and the report says why.

        Of a search, the sparsest network tried that meets the budget; if it was cut short the best
        so far, or else the trained network, with the status ``TIME_LIMIT`` or ``INTERRUPTED``.

    Raises
    ------
    ProblemError, SettingsError, UnsupportedError, MissingDependencyError
        Before any work; among them a floor that the trained network does not reach.
    SolverError
        If the accuracy function raises, or returns no number; or if no network meets the budget.
        ``error.solution`` is then the best result so far, or the nearest one, if there is any.

    See Also
    --------
    plan_network : what a run will take
    Recipe : what can be chosen

    Notes
    -----
    Memory: the rows of one layer, its problem and its solver; the activations of one batch.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver import Recipe
    >>> from nettrim_solver.network import Activate, Dense, Network
    >>> rng = np.random.default_rng(0)
    >>> network = Network([
    ...     Dense(rng.standard_normal((20, 12)), np.zeros(12), name="hidden"), Activate("relu"),
    ...     Dense(rng.standard_normal((12, 3)), np.zeros(3), name="scores"),
    ... ])
    >>> X, heldout = rng.standard_normal((300, 20)), rng.standard_normal((200, 20))

    Half of the weights, kept where the network's output needs them:

    >>> result = prune_network(network, X, sparsity=0.5)
    >>> result.sparsity, sum(result.budgets.values())
    (0.5, 138)

    Every layer within 20 % of its outputs, with a proved bound on the error of the output:

    >>> result = prune_network(network, X, tolerance=0.2)
    >>> result.output_error <= result.output_bound
    True

    The sparsest network that agrees with the trained one on nine of ten other samples:

    >>> labels = network(heldout).argmax(axis=1)
    >>> def accuracy(pruned):
    ...     return np.mean(pruned(heldout).argmax(axis=1) == labels)
    >>> result = prune_network(network, X, accuracy=accuracy, min_accuracy=0.9, recipe="fast")
    >>> result.value >= 0.9, result.sparsity > 0.2
    (True, True)

    The paper's program in its strict form, on the trained network's own activations:

    >>> paper = Recipe(formulation="strict", mode="parallel")
    >>> str(prune_network(network, X, tolerance=0.2, recipe=paper).status)
    'optimal'
    """
    check_unknown("prune_network", unknown)
    budget = Budget.of(
        tolerance=tolerance, sparsity=sparsity, nnz=nnz, max_error=max_error, accuracy=accuracy,
        min_accuracy=min_accuracy,
    )  # fmt: skip
    check_time_limit(time_limit)
    if progress is not None:
        check_flag("progress", progress)
    if callback is not None and not callable(callback):
        raise SettingsError(f"callback must be callable, but was {callback!r}")
    execution = Execution(n_threads, seed, spill)
    run = prepared(network, X, budget, recipe, execution, X_heldout)
    with shown_progress(progress, callback) as report, limit_threads(n_threads):
        run.callback, run.time_limit = report, time_limit
        run.warm_up()
        if checkpoint is not None:
            run.open(checkpoint)
        try:
            result = run.prune()
        except SolverError as error:
            if isinstance(error.solution, PruningResult):
                error.solution = _with_request(error.solution, run)
            raise
    return _with_request(result, run)


def plan_network(
    network: Network,
    X: Any,
    *,
    tolerance: Amount = None,
    sparsity: Amount = None,
    nnz: Amount = None,
    max_error: float | None = None,
    accuracy: Accuracy | None = None,
    min_accuracy: float | None = None,
    recipe: Recipe | str = "best",
    n_threads: int | None = None,
    seed: int = 0,
    spill: Folder | None = None,
    **unknown: Any,
) -> PruningPlan:
    """Return what a run of :func:`prune_network` will take, without running it.

    Rows, memory, and a rough time: small pieces of the layers are pruned to estimate it.

    Parameters
    ----------
    network, X, tolerance, sparsity, nnz, max_error, accuracy, min_accuracy, recipe, n_threads, seed, spill
        Those of :func:`prune_network`, which are checked as there.

    Returns
    -------
    PruningPlan
        Of one network. A budget that is shared out among the layers, or searched for, takes more
        than that; ``plan.notes`` says what.
    """  # noqa: E501
    check_unknown("plan_network", unknown)
    budget = Budget.of(
        tolerance=tolerance, sparsity=sparsity, nnz=nnz, max_error=max_error, accuracy=accuracy,
        min_accuracy=min_accuracy,
    )  # fmt: skip
    run = prepared(network, X, budget, recipe, Execution(n_threads, seed, spill))
    with limit_threads(n_threads):
        one = run if isinstance(run, Run) else run.typical()
        return replace(plan(one), notes=run.notes())


def prepared(
    network: Network, X: Any, budget: Budget, recipe: Recipe | str, execution: Execution,
    X_heldout: Any = None,
) -> Run | Search:  # fmt: skip
    """Return what prunes a network to a budget, everything checked and nothing done yet."""
    check_network(network)
    recipe = as_recipe(recipe)
    folded = network.folded()
    chosen, notes = adapted(recipe, folded, budget)
    data = as_calibration(X, folded, execution.spill, "X")
    heldout = None
    if X_heldout is not None:
        heldout = as_calibration(X_heldout, folded, execution.spill, "X_heldout")
    run: Run | Search
    with limit_threads(execution.n_threads):
        if budget.searched or (budget.counts and chosen.allocation != "uniform"):
            run = Search.of(network, data, heldout, chosen, budget, execution)
        else:
            run = Run.of(network, data, chosen, budget, execution, heldout)
    run.choices_made = notes
    return run


def _with_request(result: PruningResult, run: Run | Search) -> PruningResult:
    """Return a result with what was asked for, and how it was done."""
    return replace(
        result, budget=run.budget, recipe=run.recipe, notes=(*run.choices_made, *result.notes)
    )


def check_unknown(function: str, unknown: dict[str, Any]) -> None:
    """Raise for arguments that there are none of; say where those of earlier releases went."""
    for name, value in unknown.items():
        if name in MOVED or name in {f.name for f in fields(Recipe)}:
            raise SettingsError(
                f"{name} is no argument of {function}() any more, how a network is pruned is said "
                f"by recipe=Recipe(...): {moved(name, value)}"
            )
        raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
