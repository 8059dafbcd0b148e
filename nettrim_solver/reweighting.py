r"""Reweighted l1: a few convex programs, each with weights from the answer of the last.

The l1 norm shrinks large weights and keeps too many small ones. Weights :math:`c_{ij}` that are
small where a weight is large take that back, and what is solved is near the number of nonzeros. In
scaled coordinates, :math:`v_{ij} = \|x_i\| w_{ij}`, the penalty is
:math:`\sum c \, a_{ij} |v_{ij}|` with the problem's own l1 weights c (zeros stay unpenalised) and

.. math::

    a_{ij} = \frac{1}{|v_{ij} - g_{ij} / L| + q / 10},

where g is the gradient of half the squared distance at the last answer, L the largest eigenvalue of
:math:`\tilde X^T \tilde X`, and q the 30 % quantile of the nonzero :math:`|v|`. The gradient step
tells the zeros apart: one that presses against its bound is nearer to coming back. (Without it, and
with a larger constant, this is the rule of Candes, Wakin and Boyd.) The first program has
:math:`a_{ij} = 1 / (|v^0_{ij}| + 0.001 \, \mathrm{mean} |v^0|)` for trained weights
:math:`v^0`, the adaptive l1 norm, or :math:`a = 1 / \|x_i\|`, the plain one.

The weights of each program are scaled so that the last answer costs in it what it cost before.

References
----------
Candes, Wakin, Boyd, *Enhancing Sparsity by Reweighted l1 Minimization*, J. Fourier Anal. Appl. 14
(2008). Zou, *The Adaptive Lasso and Its Oracle Properties*, J. Amer. Statist. Assoc. 101 (2006).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .budget.levels import Array
from .budget.options import (
    Options,
    check_scope,
    checked_count,
    checked_options,
    count_of_sparsity,
)
from .budget.search import search_for_nnz
from .certificate import adjoint
from .checks import check_choice, check_integer
from .exceptions import ProblemError, SettingsError
from .problem import Problem
from .solution import Solution
from .solve import raise_unless_success
from .solvers import Progress, get_solver
from .status import Status
from .threads import limit_threads

if TYPE_CHECKING:
    from .solvers.admm.factorisation import Factorisation

#: Constants of the rule: quantile of the nonzeros, its part that keeps the weights finite, and the
#: part of the mean that does so for trained weights.
QUANTILE, PART, TRAINED_PART = 0.3, 0.1, 1e-3

#: Share of the budget that the answers of all programs but the last may leave unused: they only
#: choose weights.
SLACK = 0.01


@dataclass(frozen=True, eq=False)
class Round:
    """One convex program of a reweighting, and its answer.

    Attributes
    ----------
    problem : Problem
        With the l1 weights of this round and the radius that the answer was judged at, so
        ``certify(problem, solution.W, solution.b, solution.theta)`` repeats the proof.
    solution : Solution
    """

    problem: Problem
    solution: Solution


def reweight(problem: Problem, **options: Any) -> Solution:
    """Solve a layer by reweighted l1, and return the answer of the last program.

    Parameters
    ----------
    problem : Problem
    **options
        Those of :func:`reweighting_rounds`, and ``raise_on_failure``.

    Returns
    -------
    Solution
        Its certificate belongs to the last program: its l1 weights, and its radius. Stopped early,
        it is the answer of the last program that was finished, with the status of the stop.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver import Problem
    >>> rng = np.random.default_rng(0)
    >>> X, W = rng.standard_normal((60, 10)), rng.standard_normal((10, 4))
    >>> solution = reweight(Problem(X, np.maximum(X @ W, 0), W), sparsity=0.5)
    >>> solution.nnz, str(solution.status)
    (20, 'optimal')
    """
    raise_on_failure = options.pop("raise_on_failure", False)
    last: Solution | None = None
    stop: Status | None = None
    try:
        for step in reweighting_rounds(problem, **options):
            stop = step.solution.status if step.solution.status in STOPS else None
            last = step.solution if stop is None or last is None else last
    except KeyboardInterrupt:
        if last is None:
            raise
        stop = Status.INTERRUPTED
    assert last is not None
    if stop is not None:
        last = replace(last, status=stop, statuses=(stop,) * problem.n_outputs)
    if raise_on_failure:
        raise_unless_success(last)
    return last


STOPS = (Status.TIME_LIMIT, Status.INTERRUPTED, Status.FAILED, Status.INFEASIBLE)


def reweighting_rounds(
    problem: Problem,
    *,
    sparsity: float | None = None,
    nnz: int | None = None,
    rounds: int = 4,
    start: str | None = None,
    solver: str = "admm",
    scope: str = "layer",
    callback: Callable[[Progress], object] | None = None,
    factorisation: Factorisation | None = None,
    n_threads: int | None = None,
    tol_gap: float | None = None,
    tol_feas: float | None = None,
    time_limit: float | None = None,
    **settings: Any,
) -> Iterator[Round]:
    """Yield the programs of a reweighted l1 minimisation with their answers, one by one.

    Parameters
    ----------
    problem : Problem
        Pooled or strict. With trained weights it starts better; without `sparsity` and `nnz` its
        radius is the budget of every program.
    sparsity, nnz : float or int, optional
        The budget, as for :func:`solve_for_sparsity` and :func:`solve_for_nnz`. The last program
        uses it up, the others may leave one per cent.
    rounds : int
        Programs after the first.
    start : {"trained", "plain"}, optional
        Weights of the first program: from the trained W, or the problem's own. "trained" where
        there is a W.
    solver : str
        A convex solver that takes l1 weights.
    scope, callback, factorisation, n_threads, tol_gap, tol_feas, time_limit, **settings
        As for :func:`solve_for_nnz`; one clock runs for all programs.

    Yields
    ------
    Round
        ``rounds + 1`` of them, fewer when stopped (the last then has the status of the stop) or
        when an answer is W = 0, which has nothing to weight by.

    Raises
    ------
    ProblemError, SettingsError, UnsupportedError, MissingDependencyError
        Before any work.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver import Problem
    >>> rng = np.random.default_rng(0)
    >>> X, W = rng.standard_normal((60, 10)), rng.standard_normal((10, 4))
    >>> problem = Problem(X, np.maximum(X @ W, 0), tolerance=0.3)
    >>> [str(step.solution.status) for step in reweighting_rounds(problem, rounds=2)]
    ['optimal', 'optimal', 'optimal']
    """
    options = checked_options(
        problem, solver, settings, callback=callback, tol_gap=tol_gap, tol_feas=tol_feas,
        time_limit=time_limit, n_threads=n_threads,
    )  # fmt: skip
    get_solver(solver, problem.replace(weights=np.full(problem.n_inputs, 0.5)))
    check_integer("rounds", rounds, 0)
    check_scope(scope)
    keep = _budget(problem, sparsity, nnz)
    if start is None:
        start = "plain" if problem.W is None else "trained"
    check_choice("start", start, ("trained", "plain"))
    if start == "trained" and problem.W is None:
        raise ProblemError("start='trained' needs trained weights: give W to the problem")
    with limit_threads(n_threads):
        from .solvers.admm.factorisation import Factorisation

        shared = Factorisation(problem) if factorisation is None else factorisation
        shared.check(problem)
        if solver == "admm":
            options = replace(options, factorisation=shared)
    return _rounds(problem, keep, scope, rounds, start, options, shared)


def _rounds(
    problem: Problem, keep: int | None, scope: str, rounds: int, start: str, options: Options,
    shared: Factorisation,
) -> Iterator[Round]:  # fmt: skip
    weighted, solution = problem, None
    if start == "trained":
        assert problem.W is not None
        W = problem.W.astype(np.float64)
        size = np.abs(W) * shared.norm[:, None]
        weighted = _weighted(problem, 1.0 / (size + TRAINED_PART * size.mean()), W, shared)
    for step in range(rounds + 1):
        with limit_threads(options.n_threads):
            if keep is None:
                solution, solved = options.solve(weighted, solution), weighted
            else:
                slack = SLACK if step < rounds else 0.0
                solution = search_for_nnz(
                    weighted, keep, scope, replace(options, slack=slack), solution
                )
                radii = solution.certificate.epsilons
                solved = weighted
                if radii is not None:
                    separate = scope == "output" or problem.radius == "per_output"
                    solved = weighted.within(radii if separate else float(radii[0]))
        yield Round(solved, solution)
        if solution.status in STOPS or step == rounds or not solution.W.any():
            return
        with limit_threads(options.n_threads):
            separate = not solved.joint
            sizes = 1.0 / _magnitudes(solved, solution, shared, separate)
            weighted = _weighted(problem, sizes, solution.W.astype(np.float64), shared, weighted)


def _weighted(
    problem: Problem, a: Array, W: Array, shared: Factorisation, last: Problem | None = None
) -> Problem:
    """Return the problem with l1 weights ``c a ||x||``, scaled so that W costs what it did."""
    before = problem.penalty() if last is None else last.penalty()
    weights = problem.penalty() * shared.norm[:, None] * a
    cost, new = (float(np.sum(c * np.abs(W))) for c in (before, weights))
    return problem.replace(weights=weights * (cost / new) if cost > 0 and new > 0 else weights)


def _magnitudes(
    problem: Problem, solution: Solution, shared: Factorisation, separate: bool
) -> Array:
    """Return ``|v - g / L| + q / 10``, with a q of the layer, or of every output."""
    from .solvers.admm.factorisation import KAPPA

    V = solution.W.astype(np.float64) * shared.norm[:, None]
    size = np.where(V != 0, np.abs(V), np.nan)
    none = np.isnan(size).all(axis=0)
    size[:, none] = np.nanmax(size)  # an output without weights has no scale of its own
    q = np.nanquantile(size, QUANTILE, axis=0 if separate else None)
    # g = lambda X~' theta for the dual point that touches its bounds.
    g = np.zeros_like(V)
    if solution.theta is not None and solution.multiplier is not None:
        slopes = adjoint(problem.X, solution.theta)
        penalty = np.broadcast_to(problem.penalty(), V.shape)
        ratios = np.divide(np.abs(slopes), penalty, out=np.zeros(V.shape), where=penalty > 0)
        largest = ratios.max(axis=0)
        usable = (largest > 0) & np.isfinite(solution.multiplier)
        factor = np.divide(solution.multiplier, largest, out=np.zeros(len(largest)), where=usable)
        g = slopes / shared.norm[:, None] * factor
    return np.abs(V - g * (KAPPA / shared.kappa)) + PART * q


def _budget(problem: Problem, sparsity: Any, nnz: Any) -> int | None:
    """Return the nonzeros asked for; None when the radius is the budget."""
    if sparsity is not None and nnz is not None:
        raise SettingsError("give sparsity or nnz, and not both")
    if sparsity is not None:
        return count_of_sparsity(problem, sparsity)
    if nnz is not None:
        return checked_count(problem, nnz)
    if problem.epsilon is None:
        raise ProblemError("give sparsity or nnz, or the problem a radius")
    return None
