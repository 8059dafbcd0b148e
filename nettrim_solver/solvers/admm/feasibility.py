"""Radii out of reach: when to suspect one, and how to prove it.

The least reachable distance is a penalised problem without penalties; a strict form may also fail
on its hard rows alone. The multipliers of that problem are the ray that proves the matter
(:func:`nettrim_solver.certificate.least_radius`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...certificate import concatenate_terms, dual_bounds, dual_terms
from ...problem import Problem
from ...status import Status
from .. import Context
from .block import Block
from .run import CHUNK, Answer, Interrupted, Run

Array = NDArray[np.float64]
Index = NDArray[np.int64]

#: First iteration at which the outputs are looked at for a radius out of reach (then at each
#: fourfold), and the ratio of dual bound to objective that raises suspicion.
RADIUS_CHECK = 100
SUSPICIOUS = 2.0

#: Most iterations spent on the least distance.
LEAST_ITERATIONS = 5000

#: Distance of the hard rows alone, relative to the targets, that is more than rounding.
HARD_ROWS = 1e-9


def suspicious(run: Run, columns: Index, block: Block) -> NDArray[np.bool_]:
    """Return which outputs look as if their radius were out of reach.

    The dual values of an infeasible problem grow without limit, its iterates do not: a lower
    bound above twice the present objective gives it away.
    """
    problem = run.problem
    terms = [
        dual_terms(problem, block.dual[first : first + CHUNK].T, columns[first : first + CHUNK])
        for first in range(0, len(columns), CHUNK)
    ]
    bounds, _ = dual_bounds(problem, concatenate_terms(terms), columns)
    objectives = np.sum(run.penalty(columns) * np.abs(block.answer), axis=1)
    if problem.penalised:
        # On the ball's rows the distance is lambda theta.
        force = np.where(block.lower == block.upper, block.dual, 0.0)
        squares = np.sum(force**2, axis=1, dtype=np.float64)
        objectives = block.lambda_ * objectives + 0.5 * block.lambda_**2 * squares
    if problem.joint:
        objectives = np.array([objectives.sum()])
    return np.broadcast_to(bounds > SUSPICIOUS * objectives, len(columns))


def refute(run: Run, columns: Index, epsilon: Any) -> NDArray[np.bool_]:
    """Return which outputs cannot reach their radius; keep the rays and the nearest weights.

    Without a radius (epsilon None, penalised) their hard rows alone can fail.
    """
    if run.small:  # :mod:`.finish` sees to it
        return np.zeros(len(columns), dtype=bool)
    problem = run.problem.select(columns)
    tolerance = 1.0 + run.settings.tol_feas
    refuted = np.zeros(len(columns), dtype=bool)
    if run.problem.strict:
        # Any distance of the hard rows alone, beyond rounding, is out of reach of every radius.
        hard = _least_distance(run, problem.hard_rows())
        refuted = np.sqrt(hard.square) > HARD_ROWS * problem.target_norms
        refuted &= hard.proved
        _keep(run, columns, hard, refuted)
    left = np.flatnonzero(~refuted)
    if problem.joint and refuted.any():
        return np.ones(len(columns), dtype=bool)
    if len(left) and epsilon is not None:
        nearest = _least_distance(run, problem.select(left))
        distance = np.where(nearest.proved, np.sqrt(nearest.square), 0.0)
        if problem.joint:
            new = np.full(len(left), bool(np.linalg.norm(distance) > epsilon * tolerance))
        else:
            new = distance > epsilon[left] * tolerance
        _keep(run, columns[left], nearest, new)
        refuted[left] = new
    return refuted


def _least_distance(run: Run, problem: Problem) -> Answer:
    """Solve the problem of the least distance in a run of its own."""
    from .separable import solve_all

    settings = replace(run.settings, max_iter=LEAST_ITERATIONS)
    context = Context(n_threads=run.context.n_threads, started=run.context.started)
    inner = Run(problem.least_distance(), settings, context, run.factorisation, run.workers)
    solve_all(inner)
    for status in (Status.INTERRUPTED, Status.TIME_LIMIT):
        if status in inner.answer.stops:
            raise Interrupted(status)
    return inner.answer


def _keep(run: Run, columns: Index, found: Answer, refuted: NDArray[np.bool_]) -> None:
    """Store rays (theta, at lambda 1) and nearest weights of refuted outputs."""
    if not refuted.any():
        return
    kept, answer = columns[refuted], run.answer
    if answer.ray is None:
        answer.ray = np.zeros_like(answer.theta)
    answer.ray[:, kept] = found.theta[:, refuted]
    answer.V[kept], answer.beta[kept] = found.V[refuted], found.beta[refuted]
    for j in kept:
        answer.stops[j] = Status.INFEASIBLE
