"""Budgets: any solver for a sparsity, a number of nonzeros, or a radius, by one signature.

Solvers that remove weights take a number of nonzeros natively, and search for the radius
themselves; convex solvers take the radius, and :mod:`.search` finds the penalty that leaves the
nonzeros asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from ..exceptions import SettingsError
from ..problem import Problem
from ..solution import Solution
from ..solve import raise_unless_success, solve
from ..solvers import Progress
from ..threads import limit_threads
from .count import search_for_nnz
from .options import (
    check_scope,
    checked_count,
    checked_options,
    checked_solver,
    count_of_sparsity,
)

if TYPE_CHECKING:
    from ..solvers.admm.factorisation import Factorisation

__all__ = ["solve_for_epsilon", "solve_for_nnz", "solve_for_sparsity"]


def solve_for_sparsity(
    problem: Problem, sparsity: float, solver: str = "admm", **options: Any
) -> Solution:
    """Solve a layer for a fraction of zeros.

    Parameters
    ----------
    problem : Problem
        Its radius, if it has one, is not used by convex solvers.
    sparsity : float
        In [0, 1): ``round(sparsity * n_inputs * n_outputs)`` weights become zero.
    solver : str
        One of :func:`available_solvers`.
    **options
        Those of :func:`solve_for_nnz`.

    Returns
    -------
    Solution
        As of :func:`solve_for_nnz`.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver import Problem
    >>> X = np.random.default_rng(0).standard_normal((60, 10))
    >>> problem = Problem(X, np.maximum(X[:, :4], 0))
    >>> solution = solve_for_sparsity(problem, 0.9)
    >>> solution.nnz, str(solution.status)
    (4, 'optimal')
    """
    checked_solver(problem, solver)
    return solve_for_nnz(problem, count_of_sparsity(problem, sparsity), solver, **options)


def solve_for_nnz(
    problem: Problem,
    nnz: int,
    solver: str = "admm",
    *,
    scope: str = "layer",
    warm_start: Solution | None = None,
    callback: Callable[[Progress], object] | None = None,
    factorisation: Factorisation | None = None,
    n_threads: int | None = None,
    tol_gap: float | None = None,
    tol_feas: float | None = None,
    time_limit: float | None = None,
    raise_on_failure: bool = False,
    **settings: Any,
) -> Solution:
    r"""Solve a layer for a number of nonzeros.

    Solvers with a setting ``nnz`` are given it: the call is ``solve(problem, solver, nnz=nnz)``.
    For the others the penalty :math:`\lambda` is searched for that leaves so many nonzeros, and the
    answer is the one that :func:`solve` has at the radius which these weights keep.

    Parameters
    ----------
    problem : Problem
        Pooled or strict. Its radius, if it has one, is not used by convex solvers.
    nnz : int
        Weights that stay, of the whole layer. Weights with l1 weight 0 stay always, and count.
    solver : str
        One of :func:`available_solvers`.
    scope : {"layer", "output"}
        Whether the outputs share a penalty and compete for the nonzeros, or every output keeps
        equally many (the outputs of largest ``dist(0, K)`` one more, when `nnz` is no multiple),
        with a penalty of its own.
    warm_start : Solution, optional
        Where the search begins, best at a similar number of nonzeros.
    callback : callable, optional
        Called with a :class:`Progress` of the solve in progress; ``elapsed`` counts from the start
        of the search. A true return value stops the search.
    factorisation, n_threads, tol_gap, tol_feas, raise_on_failure
        As for :func:`solve`.
    time_limit : float, optional
        Seconds for the whole search.
    **settings
        The solver's own settings.

    Returns
    -------
    Solution
        With `nnz` nonzeros. From a convex solver ``certificate`` belongs to the problem whose
        radius is the distance that the answer reaches, ``certificate.epsilons``: one number for a
        joint radius; an array for radii per output, and always for ``scope="output"``. ``OPTIMAL``
        then says that no weights keep that radius with a smaller l1 norm.
        ``multiplier`` is :math:`\lambda`. Two exceptions, each with a line in ``warnings``:

        - Where the count jumps over `nnz`, the smallest weights beyond it are dropped, and the
          status is ``PRUNED``.
        - Where fewer weights than `nnz` reach the least distance there is, these are the answer.

        Stopped early (status ``TIME_LIMIT`` or ``INTERRUPTED``) the best answer so far is returned.

    Raises
    ------
    ProblemError, SettingsError, UnsupportedError, MissingDependencyError
        Before any work.
    InfeasibleError, SolverError
        With ``raise_on_failure=True``, as in :func:`solve`.

    Notes
    -----
    Usually two to four solves of the layer and some of a few of its outputs, on one
    :class:`Factorisation`. The nonzeros mostly fall as the penalty grows, but not always: the
    search keeps a bracket by the counts that it meets. See :mod:`nettrim_solver.budget.search`.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver import Problem, solve
    >>> X = np.random.default_rng(0).standard_normal((60, 10))
    >>> problem = Problem(X, np.maximum(X @ np.eye(10)[:, :4] + 0.3 * X[:, 4:8], 0))
    >>> solution = solve_for_nnz(problem, 6)
    >>> again = solve(problem.replace(epsilon=solution.certificate.epsilons[0]))
    >>> bool(np.allclose(solution.W, again.W, atol=1e-3))
    True
    """
    module = checked_solver(problem, solver)
    keep = checked_count(problem, nnz)
    check_scope(scope)
    if "nnz" in {f.name for f in fields(module.Settings)}:
        return solve(
            problem, solver, warm_start=warm_start, callback=callback,
            factorisation=factorisation, n_threads=n_threads, tol_gap=tol_gap, tol_feas=tol_feas,
            raise_on_failure=raise_on_failure, nnz=keep, scope=scope, time_limit=time_limit,
            **settings,
        )  # fmt: skip
    options = checked_options(
        problem, solver, settings, warm_start=warm_start, callback=callback, tol_gap=tol_gap,
        tol_feas=tol_feas, time_limit=time_limit, factorisation=factorisation, n_threads=n_threads,
    )  # fmt: skip
    with limit_threads(n_threads):
        solution = search_for_nnz(problem, keep, scope, options, warm_start)
    if raise_on_failure:
        raise_unless_success(solution)
    return solution


def solve_for_epsilon(
    problem: Problem, epsilon: ArrayLike, solver: str = "admm", **options: Any
) -> Solution:
    """Solve a layer for a radius: the least l1 norm, or the fewest weights, that keep it.

    Every solver can do this natively: convex ones solve the program, pruners remove weights until
    the radius is used up. The call is ``solve(problem.replace(epsilon=epsilon), solver)``.

    Parameters
    ----------
    problem : Problem
        Pooled or strict; its own radius, if it has one, is replaced.
    epsilon : float or array_like of shape (n_outputs,)
        As in :class:`Problem`.
    solver : str
        One of :func:`available_solvers`.
    **options
        Those of :func:`solve`.

    Returns
    -------
    Solution

    Raises
    ------
    ProblemError, SettingsError, UnsupportedError, MissingDependencyError
        Before any work.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver import Problem
    >>> X = np.random.default_rng(0).standard_normal((60, 10))
    >>> solution = solve_for_epsilon(Problem(X, np.maximum(X[:, :4], 0)), 2.0)
    >>> str(solution.status), solution.certificate.distance < 2.0 * (1 + 1e-6)
    ('optimal', True)
    """
    checked_solver(problem, solver)
    given = sorted({"sparsity", "nnz", "pattern"} & set(options))
    if given:
        raise SettingsError(f"epsilon is the budget already, but {given} were given, too")
    return solve(problem.replace(epsilon=epsilon), solver, **options)
