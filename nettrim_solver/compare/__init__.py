"""Every solver on one layer or network at the same sparsities, judged by the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from ..exceptions import SettingsError
from ..problem import Problem
from ..threads import limit_threads

if TYPE_CHECKING:
    from ..comparison import Comparison, Row
    from ..network import Network, Recipe
    from .checks import Method, Targets
    from .run import Run

__all__ = ["compare"]


def compare(
    problem_or_network: Problem | Network,
    X: Any = None,
    *,
    solvers: Sequence[str] | Mapping[str, Method] | None = None,
    recipe: Recipe | str | None = None,
    sparsities: Sequence[float] = (0.5, 0.7, 0.9),
    X_heldout: Any = None,
    Y_heldout: ArrayLike | None = None,
    Z_heldout: ArrayLike | None = None,
    accuracy: Callable[..., float] | None = None,
    refit: Targets = False,
    swaps: Targets = False,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    measure_memory: bool = False,
    n_threads: int | None = None,
    callback: Callable[[Row], object] | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    progress: bool | None = None,
    **unknown: Any,
) -> Comparison:
    r"""Prune a layer, or a whole network, with several solvers at several sparsities; measure all.

    Parameters
    ----------
    problem_or_network : Problem or Network
        A problem is pooled or strict, with trained weights for the pruners; its radius is not used.
    X : array_like, iterable of batches, or Calibration
        Calibration data of a network, as in :func:`.prune_network`. A problem has its own samples.
    solvers : sequence of str, or mapping of str to method, optional
        Any of :func:`available_solvers`; by default "admm" and every pruner that can do what is
        asked. A mapping gives them names of your own, so that one solver can appear with several
        settings. It may also hold functions of your own that return a :class:`Solution`, called
        with the problem, a sparsity, and their answer at the sparsity before (None at first).

        For a network also the name of a recipe (by default "best" and "fast" come first), and in a
        mapping a :class:`.Recipe`. A solver stands for the base recipe with this step; a function
        likewise, called as :class:`.Recipe` says.
    recipe : Recipe or str, optional
        The base recipe of a network, ``Recipe()`` when omitted. Its layers and skips hold for
        recipes by name, too.
    sparsities : sequence of float
        Fractions of zeros, in [0, 1). The same count for every solver, in every layer of a network.
    X_heldout : array_like or scipy.sparse matrix of shape (n_heldout, n_inputs), optional
        Fresh samples (of a network: as X). A smaller error on the calibration samples is not a
        better layer.
    Y_heldout, Z_heldout : array_like of shape (n_heldout, n_outputs), optional
        What the trained network computes on them behind and before the activation of a problem;
        from the trained weights by default. Needed behind pruned layers, where the weights do not
        tell.
    accuracy : callable, optional
        Called with (W, b) of every answer to a problem; b is None for problems without intercept.
        Called with the pruned :class:`.Network` for a network.
    refit, swaps : bool, {"linear", "box"} or both
        Towards which targets each answer is also refined by :func:`refit` and :func:`swaps`; True
        is "linear". A row more for each: "refit", "refit-box", "swaps", "swaps-box". Recipes whose
        steps are a function, or chosen for the network, have none.
    settings : mapping of str to mapping, optional
        Options of a solver, as of :func:`solve`, by its name in the rows; and of the
        refinements, under "refit" and "swaps".
    measure_memory : bool
        Whether the peak of the memory allocated by numpy and Python is measured. This slows
        everything down, so read the seconds of another comparison.
    n_threads : int, optional
        Threads of BLAS and of the solvers; None leaves the pools as they are.
    callback : callable, optional
        Called with every finished :class:`.comparison.Row`; a true return value ends the
        comparison.
    time_limit : float, optional
        Seconds for the whole comparison.
    seed, progress
        Of a network, as in :func:`.prune_network`.

    Returns
    -------
    Comparison
        A solver that fails has a row that says why. Ctrl-C, like the time limit, returns the rows
        there are.

    Raises
    ------
    ProblemError, SettingsError, MissingDependencyError
        For unusable arguments, before any work.

    Notes
    -----
    On a problem a solver is given its own answer at the sparsity before, where that saves work:
    convex ones begin their search there, and "exact_obs" uses its trace again, so its seconds fall
    to its first sparsity. Every other row is what one call would give.

    On a network every row is a run of :func:`.prune_network` of its own, and so are those of the
    refinements, which follow the solver in every layer: after a refined layer a cascade goes on
    from other activations. The seconds are those of the layers, without the measuring; or of the
    whole call where a recipe does more than prune layers.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver import Problem, compare
    >>> rng = np.random.default_rng(0)
    >>> X, W = rng.standard_normal((200, 20)), rng.standard_normal((20, 5))
    >>> X[:, 1:] += X[:, :-1]
    >>> problem = Problem(X[:100], np.maximum(X[:100] @ W, 0), W)
    >>> found = compare(problem, solvers=["magnitude", "exact_obs"], sparsities=[0.5],
    ...                 X_heldout=X[100:])
    >>> [row.solver for row in sorted(found.rows, key=lambda row: row.heldout_error)]
    ['exact_obs', 'magnitude']

    A whole network, and its output's error on fresh samples:

    >>> from nettrim_solver.network import Activate, Dense, Network
    >>> network = Network([Dense(W, name="hidden"), Activate("relu"),
    ...                    Dense(rng.standard_normal((5, 2)), name="scores")])
    >>> found = compare(network, X[:100], solvers=["magnitude", "exact_obs"], sparsities=[0.5],
    ...                 X_heldout=X[100:])
    >>> [row.solver for row in sorted(found.rows, key=lambda row: row.heldout_error)]
    ['exact_obs', 'magnitude']
    """
    if unknown:
        from ..network.prune import check_unknown

        check_unknown("compare", unknown)
    # Every import of the package comes by here; few of them compare anything.
    from ..comparison import Comparison
    from .checks import checked_sparsities, checked_targets
    from .layer import layer_run
    from .run import Asked

    asked = Asked(
        checked_sparsities(sparsities),
        {"refit": checked_targets("refit", refit), "swaps": checked_targets("swaps", swaps)},
        accuracy, measure_memory, callback, time_limit,
    )  # fmt: skip
    with limit_threads(n_threads) as threads:
        run: Run
        if isinstance(problem_or_network, Problem):
            given = [k for k, v in (("X", X), ("recipe", recipe)) if v is not None]
            if given:
                raise SettingsError(f"a Problem has samples and form of its own, but got {given}")
            heldout = X_heldout, Y_heldout, Z_heldout
            run = layer_run(asked, problem_or_network, solvers, settings, heldout)
        else:
            from .network import network_run  # stands above the layers, and loads more

            for name, value in (("Y_heldout", Y_heldout), ("Z_heldout", Z_heldout)):
                if value is not None:
                    raise SettingsError(f"{name} belongs to a Problem: a network knows its outputs")
            run = network_run(
                asked, problem_or_network, X, solvers, settings, X_heldout, recipe, n_threads, seed,
                progress,
            )  # fmt: skip
        complete = run.everything()
    return Comparison(
        rows=tuple(run.rows), problem=repr(problem_or_network), kind=run.kind, n_threads=threads,
        trained_accuracy=run.trained_accuracy, n_heldout=run.n_heldout, complete=complete,
    )  # fmt: skip
