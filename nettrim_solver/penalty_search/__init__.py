"""The search for the penalty that leaves a number of nonzeros: its first penalty and its result."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from ..exceptions import ProblemError
from ..problem import Problem
from ..solution import Solution
from ..status import Status, worst
from .bracketing import NEARLY, Search
from .options import Options
from .programs import Array, Index, Programs

#: Outputs on which the penalty of a layer is estimated first, and how exactly their share of the
#: budget must be met.
SAMPLE, ROUGH = 32, 0.03


def search_for_nnz(
    problem: Problem, nnz: int, scope: str, options: Options, start: Solution | None = None
) -> Solution:
    """Return the answer of a convex solver with so many nonzeros; see :func:`nettrim_solver.solve`.

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
    programs = Programs(problem, options.solver, per_output)
    u, slope, options = _first_level(programs, keep, options, start)
    search = Search(programs, keep, options, slope)
    search.run(u, start)
    solution = _finish(search)
    solution.seconds["total"] = time.perf_counter() - began
    return solution


def _first_level(
    programs: Programs, keep: Index, options: Options, start: Solution | None
) -> tuple[Array, float | None, Options]:
    """Return where to begin, and with which slope.

    That is at the penalties of the start or at a guess, corrected on a few outputs of a large
    layer.
    """
    u, M = programs.guess(keep), programs.problem.n_outputs
    if start is not None and start.multiplier is not None:
        known = programs.given(start.multiplier)
        u = u if known is None else known
    if programs.per_output or M < 2 * SAMPLE or not 0 < keep[0] < programs.sizes[0]:
        return u, None, options
    # Every size of targets is represented.
    by_size = np.argsort(programs.problem.target_norms, kind="stable")
    columns = np.sort(by_size[np.linspace(0, M - 1, SAMPLE).astype(np.int64)])
    few = Programs(programs.problem.select(columns), options.solver, False)
    share = np.maximum(np.round(keep * (SAMPLE / M)).astype(np.int64), 1)
    loose = replace(options, tol_gap=max(options.tol_gap, 1e-3))
    search = Search(few, share, loose, rough=ROUGH)
    change = np.log(few.unit / programs.unit)
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
    programs, last = search.programs, search.last
    assert last is not None
    if search.stop is Status.INFEASIBLE:
        return last  # hard rows that contradict each other do so at any level
    left = search.close_rest()
    answer = search.settled.all()
    stage = {k: v for k, v in search.seconds.items() if k != "total"}
    solution = search.judged(
        np.arange(len(programs.groups)), answer, iterations=search.iterations, seconds=stage
    )
    statuses = list(solution.statuses)
    dropped = search.dropped[programs.groups] > 0
    for j, group in enumerate(programs.groups):
        if left[group] and search.stop is not None:
            statuses[j] = search.stop
        elif statuses[j] is Status.UNPROVED and (dropped[j] or answer.stops[j] is Status.OPTIMAL):
            statuses[j] = Status.PRUNED
    multiplier = solution.multiplier
    if programs.penalised:
        multiplier = (programs.unit * np.exp(search.settled.u))[programs.groups]
    warnings = last.warnings + _warnings(search, statuses, solution.certificate.distances)
    return replace(
        solution, statuses=tuple(statuses), status=worst(statuses), multiplier=multiplier,
        n_threads=last.n_threads, warnings=warnings,
    )  # fmt: skip


def _warnings(search: Search, statuses: list[Status], distances: Array) -> tuple[str, ...]:
    """Say where the count was not met by a penalty alone."""
    found = []
    what = "penalty" if search.programs.penalised else "radius"
    if search.short.any():
        count = int(search.settled.count[search.short].sum())
        keep = int(search.keep[search.short].sum())
        some = f" in {int(search.short.sum())} outputs" if search.programs.per_output else ""
        outputs = np.isin(search.programs.groups, np.flatnonzero(search.short))
        target = np.linalg.norm(search.programs.problem.target_norms[outputs])
        reached = np.linalg.norm(distances[outputs]) / target if target > 0 else 0.0
        why = (
            f"they come within {100 * reached:.2g} % of the targets already"
            if reached <= NEARLY
            else f"the least {what} tried leaves no more, at a distance near the least there is"
        )
        found.append(
            f"{count} nonzeros are returned{some}, although {keep} may stay: {why}; for exactly "
            f"{keep} nonzeros use a solver that takes a count itself, such as 'alps', or give more "
            "samples"
        )
    pruned = np.array([status is Status.PRUNED for status in statuses])
    dropped = int(search.dropped[np.unique(search.programs.groups[pruned])].sum())
    if pruned.any():
        found.append(
            f"no {what} tried leaves exactly the nonzeros asked for with a proof; {dropped} of the "
            "smallest weights were dropped to meet the budget"
        )
    return tuple(found)
