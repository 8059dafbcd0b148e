r"""Reweighted l1: a few convex programs, each with weights from the answer of the last.

The l1 norm shrinks large weights and keeps too many small ones. What comes nearer to a number of
nonzeros is the concave :math:`\sum \log(|v_{ij}| + \delta)`, in scaled coordinates
:math:`v_{ij} = \|x_i\| w_{ij}`, and it is approached by l1 programs whose weights are its slopes at
the last answer,

.. math:: \sum_{ij} c_{ij} a_{ij} |v_{ij}|, \qquad a_{ij} = \frac{1}{|v_{ij}| + \delta},
   \qquad \delta = 0.3 q,

with q the 30 % quantile of the nonzero :math:`|v|`, and the problem's own l1 weights c (so 0 stays
unpenalised). The first program has :math:`a_{ij} = 1 / (|v^0_{ij}| + 0.001\, \mathrm{mean}|v^0|)`
for the trained weights :math:`v^0` (the adaptive l1 norm), or the problem's own l1 norm as it is.

Each program is convex and its answer certified; for a number of nonzeros each searches for its own
penalty. The weights are scaled so that the last answer costs what it did before.

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
from numpy.typing import NDArray

from .checks import check_choice, check_integer
from .exceptions import ProblemError
from .judging import raise_unless_success
from .penalty_search import search_for_nnz
from .penalty_search.options import Options, check_scope, checked_budget, checked_options
from .penalty_search.programs import Array, input_sizes
from .problem import Problem
from .solution import Solution
from .solvers import Progress, get_solver
from .status import Status
from .threads import limit_threads

if TYPE_CHECKING:
    from .solvers.admm.factorisation import Factorisation

#: Constants of the rule: quantile of the nonzeros, its part that keeps the weights finite, and the
#: part of the mean that does so for trained weights.
QUANTILE, PART, TRAINED_PART = 0.3, 0.3, 1e-3

#: Share of the budget that the answers of all programs but the last may leave unused: they only
#: choose weights.
SLACK = 0.01


#: Outcomes after which there is nothing to weight by.
STOPS = (Status.TIME_LIMIT, Status.INTERRUPTED, Status.FAILED, Status.INFEASIBLE)


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


def reweight(
    problem: Problem, rounds: int = 4, *, raise_on_failure: bool = False, **options: Any
) -> Solution:
    """Solve a layer by reweighted l1, and return the answer of the last program.

    Parameters
    ----------
    problem : Problem
    rounds : int
        Programs after the first.
    raise_on_failure : bool
        As for :func:`solve`.
    **options
        Those of :func:`reweighting_rounds`.

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
    last: Solution | None = None
    stop: Status | None = None
    try:
        for step in reweighting_rounds(problem, rounds, **options):
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


def reweighting_rounds(
    problem: Problem,
    rounds: int = 4,
    *,
    sparsity: float | None = None,
    nnz: int | None = None,
    start: str | None = None,
    solver: str = "admm",
    scope: str = "layer",
    warm_start: Solution | None = None,
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
    rounds : int
        Programs after the first.
    sparsity, nnz : float or int, optional
        The budget, as for :func:`solve`. The last program
        uses it up, the others may leave one per cent.
    start : {"trained", "plain"}, optional
        Weights of the first program: from the trained W, or the problem's own. "trained" where
        there is a W.
    solver : str
        A convex solver that takes l1 weights.
    warm_start : Solution, optional
        An answer of any solver for the first program to be weighted by, in place of `start`.
    scope, callback, factorisation, n_threads, tol_gap, tol_feas, time_limit, **settings
        As for :func:`solve`; one clock runs for all programs.

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
        problem, solver, settings, warm_start=warm_start, callback=callback, tol_gap=tol_gap,
        tol_feas=tol_feas, time_limit=time_limit, factorisation=factorisation, n_threads=n_threads,
    )  # fmt: skip
    get_solver(solver, problem.replace(weights=np.full(problem.n_inputs, 0.5)))
    check_integer("rounds", rounds, 0)
    check_scope(scope)
    keep = checked_budget(problem, sparsity, nnz)
    if keep is None and problem.epsilon is None:
        raise ProblemError("give sparsity or nnz, or the problem a radius")
    if start is None:
        start = "plain" if problem.W is None else "trained"
    check_choice("start", start, ("trained", "plain"))
    if start == "trained" and problem.W is None:
        raise ProblemError("start='trained' needs trained weights: give W to the problem")
    if factorisation is None and solver == "admm":
        from .solvers.admm.factorisation import Factorisation

        with limit_threads(n_threads):
            options = replace(options, factorisation=Factorisation(problem))
    return _rounds(problem, keep, scope, rounds, start, options, warm_start)


def _rounds(
    problem: Problem, keep: int | None, scope: str, rounds: int, start: str, options: Options,
    solution: Solution | None,
) -> Iterator[Round]:  # fmt: skip
    sizes = input_sizes(problem)[:, None]
    sizes[sizes == 0] = 1.0  # what cannot contribute must not become free
    separate = scope == "output" or problem.radius == "per_output"
    weighted = problem
    if solution is not None and solution.W.any():
        weighted = _weighted(problem, problem, solution.W, sizes, separate)
    elif solution is None and start == "trained" and np.any(problem.W):
        assert problem.W is not None
        V = np.abs(problem.W.astype(np.float64)) * sizes
        a = 1.0 / (V + TRAINED_PART * V.mean())
        weighted = _scaled(problem, problem, a * sizes, problem.W)
    for step in range(rounds + 1):
        with limit_threads(options.n_threads):
            if keep is None:
                solution, solved = options.solve(weighted, solution), weighted
            else:
                slack = SLACK if step < rounds else 0.0
                solution = search_for_nnz(
                    weighted, keep, scope, replace(options, slack=slack), solution
                )
                radii, solved = solution.certificate.epsilons, weighted
                if radii is not None and solution.status is not Status.INFEASIBLE:
                    solved = weighted.within(radii if separate else float(radii[0]))
        yield Round(solved, solution)
        if solution.status in STOPS or step == rounds or not solution.W.any():
            return
        weighted = _weighted(problem, weighted, solution.W, sizes, separate)


def _weighted(
    problem: Problem, last: Problem, W: NDArray[Any], sizes: Array, separate: bool
) -> Problem:
    """Return the problem with the slopes of the logarithms at W for l1 weights.

    delta is of the layer, or of every output (`separate`).
    """
    V = np.abs(W.astype(np.float64)) * sizes
    found = np.where(V > 0, V, np.nan)
    # An output without weights has no scale of its own.
    found[:, np.all(V == 0, axis=0)] = V.max()
    delta = PART * np.nanquantile(found, QUANTILE, axis=0 if separate else None)
    return _scaled(problem, last, sizes / (V + delta), W)


def _scaled(problem: Problem, last: Problem, weights: Array, W: NDArray[Any]) -> Problem:
    """Return the problem with these l1 weights times its own, scaled so that W costs the same."""
    weights = problem.penalty() * weights
    before, after = (float(np.sum(c * np.abs(W))) for c in (last.penalty(), weights))
    return problem.replace(weights=weights * (before / after) if after > 0 else weights)
