"""A layer for a number of nonzeros: where its search begins, and what becomes of its end."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from ..exceptions import ProblemError
from ..problem import Problem
from ..solution import Solution
from ..status import Status, worst
from .levels import Array, Index, Levels
from .options import Options
from .search import SLOPE, Search

#: Outputs on which the penalty of a layer is estimated first, and how exactly their share of the
#: budget must be met.
SAMPLE, ROUGH = 32, 0.01


def search_for_nnz(
    problem: Problem, nnz: int, scope: str, options: Options, start: Solution | None = None
) -> Solution:
    """Return the answer of a convex solver with so many nonzeros; see :mod:`nettrim_solver.budget`.

    Raises
    ------
    ProblemError
        If there are more unpenalised weights than may stay.
    """
    began, per_output = time.perf_counter(), scope == "output"
    shape = (problem.n_inputs, problem.n_outputs)
    free = np.count_nonzero(np.broadcast_to(problem.penalty() == 0, shape), axis=0)
    keep = _shares(problem, nnz) if per_output else np.array([nnz])
    if np.any((free if per_output else free.sum()) > keep):
        raise ProblemError(
            f"nnz must leave room for the {int(free.sum())} weights whose l1 weight is 0, which "
            f"always stay, but was {nnz}"
        )
    if options.factorisation is None and options.solver == "admm":
        from ..solvers.admm.factorisation import Factorisation

        options = replace(options, factorisation=Factorisation(problem))
    levels = Levels(problem, options.solver, per_output)
    u, slope, options = _first_level(levels, keep, options, start)
    search = Search(levels, keep, options, slope)
    search.run(u, start)
    solution = _finish(search)
    solution.seconds["total"] = time.perf_counter() - began
    return solution


def _first_level(
    levels: Levels, keep: Index, options: Options, start: Solution | None
) -> tuple[Array, float, Options]:
    """Return where to begin, and with which slope.

    That is at the penalties of the start or at a guess, corrected on a few outputs of a large
    layer.
    """
    u, M = levels.guess(keep), levels.problem.n_outputs
    if start is not None and start.multiplier is not None:
        known = levels.given(start.multiplier)
        u = u if known is None else known
    if levels.per_output or M < 4 * SAMPLE or not 0 < keep[0] < levels.sizes[0]:
        return u, SLOPE, options
    columns = np.linspace(0, M - 1, SAMPLE).astype(np.int64)
    few = Levels(levels.problem.select(columns), options.solver, False)
    share = np.maximum(np.round(keep * (SAMPLE / M)).astype(np.int64), 1)
    loose = replace(options, tol_gap=max(options.tol_gap, 1e-3))
    search = Search(few, share, loose, rough=ROUGH)
    change = np.log(few.unit / levels.unit)
    search.run(u - change, None)
    if search.stop is Status.INTERRUPTED:
        # Nothing is known of the layer yet: its first answer is the best so far.
        options = replace(options, callback=lambda progress: True)
    elif not search.open.any():
        u = search.settled.u + change
    return u, search.slope, options


def _shares(problem: Problem, nnz: int) -> Index:
    """Share nonzeros equally among the outputs, the odd ones to those of the largest targets."""
    share, left = divmod(nnz, problem.n_outputs)
    counts = np.full(problem.n_outputs, share)
    counts[np.argsort(-problem.target_norms, kind="stable")[:left]] += 1
    return counts


def _finish(search: Search) -> Solution:
    """Return the judged solution of a search, however it ended."""
    levels, last = search.levels, search.last
    assert last is not None
    if search.stop is Status.INFEASIBLE:
        return last  # hard rows that contradict each other do so at any level
    left = search.close_rest()
    answer = search.settled.all()
    stage = {k: v for k, v in search.seconds.items() if k != "total"}
    solution = search.judged(
        np.arange(len(levels.groups)), answer, iterations=search.iterations, seconds=stage
    )
    statuses = list(solution.statuses)
    dropped = search.dropped[levels.groups] > 0
    for j, group in enumerate(levels.groups):
        if left[group] and search.stop is not None:
            statuses[j] = search.stop
        elif statuses[j] is Status.UNPROVED and (dropped[j] or answer.stops[j] is Status.OPTIMAL):
            statuses[j] = Status.PRUNED
    multiplier = solution.multiplier
    if levels.penalised:
        multiplier = (levels.unit * np.exp(search.settled.u))[levels.groups]
    return replace(
        solution, statuses=tuple(statuses), status=worst(statuses), multiplier=multiplier,
        n_threads=last.n_threads, warnings=last.warnings + _warnings(search, statuses),
    )  # fmt: skip


def _warnings(search: Search, statuses: list[Status]) -> tuple[str, ...]:
    """Say where the count was not met by a penalty alone."""
    found = []
    what = "penalty" if search.levels.penalised else "radius"
    if search.short.any():
        count = int(search.settled.count[search.short].sum())
        keep = int(search.keep[search.short].sum())
        where = f" in {int(search.short.sum())} outputs" if search.levels.per_output else ""
        found.append(
            f"no {what} leaves more than {count} nonzeros{where}, although {keep} may stay: "
            "the distance to the box is near its least"
        )
    pruned = np.array([status is Status.PRUNED for status in statuses])
    dropped = int(search.dropped[np.unique(search.levels.groups[pruned])].sum())
    if pruned.any():
        found.append(
            f"no {what} tried leaves exactly the nonzeros asked for with a proof; {dropped} of the "
            "smallest weights were dropped to meet the budget"
        )
    return tuple(found)
