"""The entry point for one layer: a problem and a budget in, a judged solution out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from .exceptions import SettingsError
from .judging import checked_solver, raise_unless_success, solve_program, with_time_limit
from .penalty_search import search_for_nnz
from .penalty_search.options import check_scope, checked_budget, checked_options
from .problem import Problem
from .solution import Solution
from .solvers import Progress
from .threads import limit_threads

if TYPE_CHECKING:
    from .solvers.admm.factorisation import Factorisation


def solve(
    problem: Problem,
    solver: str = "admm",
    *,
    sparsity: float | None = None,
    nnz: int | None = None,
    scope: str | None = None,
    warm_start: Solution | None = None,
    callback: Callable[[Progress], object] | None = None,
    factorisation: Factorisation | None = None,
    n_threads: int | None = None,
    time_limit: float | None = None,
    tol_gap: float | None = None,
    tol_feas: float | None = None,
    raise_on_failure: bool = False,
    **settings: Any,
) -> Solution:
    r"""Find sparse weights for a layer, and what can be proved about them.

    The budget is a number of nonzeros when `sparsity` or `nnz` is given, and otherwise the radius
    or ``lambda_`` of the problem. Every solver takes both.

    Parameters
    ----------
    problem : Problem
        Without `sparsity` and `nnz` it needs ``epsilon``, ``tolerance`` or ``lambda_``. With one of
        them it must not be penalised, and convex solvers ignore its radius.
    solver : str
        One of :func:`available_solvers`.
    sparsity : float, optional
        Fraction of zeros, in [0, 1): ``round(sparsity * n_inputs * n_outputs)`` weights become
        zero.
    nnz : int, optional
        Number of nonzeros of the whole layer, instead of `sparsity`. Weights with l1 weight 0 are
        never removed; they count.
    scope : {"layer", "output"}, optional
        Whether all weights of the layer compete for the nonzeros, or every output keeps equally
        many. By default "layer"; for solver "wanda" it is "output", as published.
    warm_start : Solution, optional
        A solution of a similar problem on the same shapes: weights, dual point and rho are used.
    callback : callable, optional
        Called with a :class:`Progress` at every check; a true return value stops the run.
    factorisation : Factorisation, optional
        ``Factorisation(problem)`` of a problem with the same X, to be reused for other targets or
        budgets (solver "admm").
    n_threads : int, optional
        Threads of BLAS and of the solver's own workers; None leaves the BLAS pools as they are.
    time_limit : float, optional
        Seconds for the whole call.
    tol_gap, tol_feas : float, optional
        Largest gap and violation that count as proved. The defaults depend on the dtype of X, see
        ``nettrim_solver.judging.TOLERANCES``.
    raise_on_failure : bool
        Raise instead of returning an answer that is neither proved nor what a heuristic promises:
        the radius kept, or the budget met.
    **settings
        The solver's own settings, the fields of its ``Settings`` class, such as ``pattern="2:4"``
        for pruners.

    Returns
    -------
    Solution
        ``status`` is ``OPTIMAL`` only when the certificate of the very weights returned proves it.
        A heuristic's is ``FEASIBLE`` when they keep the radius, and else ``PRUNED`` when they meet
        the count or pattern.

        A convex solver's answer to a count is stated for the radius that it reaches,
        ``certificate.epsilons``: one number for a joint radius; an array for radii per output, and
        always for ``scope="output"``. ``OPTIMAL`` then says that no weights keep that radius with a
        smaller l1 norm. ``multiplier`` is the penalty. The count is met, with two exceptions, each
        with a line in ``warnings``:

        - Where the number of nonzeros jumps over the count, the smallest weights in excess are
          dropped, and the status is ``PRUNED``.
        - Where fewer weights than asked for already reach the least distance, these are the answer,
          and the status is that of the proof.

        Stopped early (status ``TIME_LIMIT`` or ``INTERRUPTED``) the best answer so far is returned.

    Raises
    ------
    ProblemError, SettingsError, UnsupportedError, MissingDependencyError
        Before any work.
    InfeasibleError, SolverError
        With ``raise_on_failure=True``; ``error.solution`` holds the best answer.

    Notes
    -----
    Pruners take a count natively, and bisect it for a radius. Convex solvers take a radius, and for
    a count the penalty is searched for that leaves so many nonzeros
    (:mod:`nettrim_solver.penalty_search`).

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver import Problem, solve
    >>> X = np.random.default_rng(0).standard_normal((60, 10))
    >>> problem = Problem(X, np.maximum(X @ np.eye(10)[:, :4] + 0.3 * X[:, 4:8], 0))
    >>> solve(problem.replace(tolerance=0.1)).status == "optimal"
    True
    >>> solution = solve(problem, sparsity=0.85)
    >>> solution.nnz, str(solution.status)
    (6, 'optimal')
    >>> again = solve(problem.replace(epsilon=solution.certificate.epsilons[0]))
    >>> bool(np.allclose(solution.W, again.W, atol=1e-3))
    True
    """
    module = checked_solver(problem, solver)
    keep = checked_budget(problem, sparsity, nnz)
    if scope is not None:
        check_scope(scope)
    known = {f.name for f in fields(module.Settings)}
    if "nnz" in known:
        given = {"sparsity": sparsity, "nnz": nnz, "scope": scope}
        settings |= {name: value for name, value in given.items() if value is not None}
    elif keep is None and scope is not None:
        raise SettingsError(
            f"scope must be None for solver {solver!r} without sparsity or nnz, but was {scope!r}; "
            "the problem says whether outputs share a radius"
        )
    if keep is None or "nnz" in known:
        solution = solve_program(
            problem, solver, warm_start=warm_start, callback=callback, factorisation=factorisation,
            n_threads=n_threads, tol_gap=tol_gap, tol_feas=tol_feas,
            **with_time_limit(module, solver, settings, time_limit),
        )  # fmt: skip
    else:
        options = checked_options(
            problem, solver, settings, warm_start=warm_start, callback=callback, tol_gap=tol_gap,
            tol_feas=tol_feas, time_limit=time_limit, factorisation=factorisation,
            n_threads=n_threads,
        )  # fmt: skip
        with limit_threads(n_threads):
            solution = search_for_nnz(problem, keep, scope or "layer", options, warm_start)
    if raise_on_failure:
        raise_unless_success(solution)
    return solution
