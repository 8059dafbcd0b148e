r"""One radius for all outputs: the multiplier that they share.

The joint program is the penalised one with a single :math:`\lambda`, the multiplier of the common
ball, so that its outputs separate once :math:`\lambda` is known. A first ADMM run with the joint
projection estimates it, and solves every output near it (:mod:`.shared`); the outputs then go to
where their distances together have norm epsilon (:mod:`.landing`). Where that does not end, in
turn, every output is solved exactly at the present :math:`\lambda`, and :math:`\lambda` moves: on
fixed patterns the squared distances are :math:`a_j + \lambda^2 q_j`, with

.. math::

    q_j = (c_T s)^T H^{-1} (c_T s) = - c_T^T s\, dV_T / d\lambda ,

so the step is exact where no pattern changes, and a bracket guards it where some do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...products import radius_floor
from ...status import Status
from .feasibility import refute
from .landing import land, move
from .run import Run
from .separable import iterate, solve_all
from .shared import Shared

Index = NDArray[np.int64]

#: Most values of lambda tried. The bracket halves at worst, and the steps are exact near the end.
ROUNDS, SMALL_ROUNDS = 60, 6

#: Relative distance from the radius up to which a warm start replaces the first ADMM run.
NEAR = 0.05

#: Fraction of the first lambda below which a radius not yet met is taken to be out of reach.
VANISHING = 1e-6

#: Times that outputs near the multiplier are brought to the radius one by one.
LANDINGS = 3

#: Relative difference of multipliers that are the same but for rounding.
ROUNDING = 1e-12

#: Rounds without much progress after which a distance within the tolerance of the radius will do.
STALLS = 8

#: Neighbouring values tried for a lambda at which some output stays unproved.
NEIGHBOURS = 6


def solve_joint(run: Run) -> None:
    """Solve the joint program; the answers are left in ``run.answer``."""
    if run.problem.epsilon == 0.0:
        # A ball that is a point constrains every output by itself.
        run.problem = run.problem.within(np.zeros(run.problem.n_outputs))
        solve_all(run)
        return
    with run.stopping():
        if not _trivial(run) and _estimate(run) and not _find_multiplier(run):
            if (
                not run.answer.proved.all()
                or np.sqrt(np.sum(run.answer.square)) > run.problem.epsilon
            ):
                refute(run, np.arange(run.problem.n_outputs), run.problem.epsilon)


def _trivial(run: Run) -> bool:
    """Answer with W = 0 if that is within the radius."""
    total = 0.0
    for columns in run.blocks():
        beta, _, distance = run.zero_weights(*run.box(columns))
        run.answer.beta[columns] = beta
        total += float(np.sum(distance**2))
    if np.sqrt(total) > run.problem.epsilon:
        return False
    run.answer.lambda_[:] = np.inf
    run.finish(np.arange(run.problem.n_outputs), 0)
    return True


def _estimate(run: Run) -> bool:
    """Estimate lambda, and solve outputs near it; return whether there is more to do.

    When the outputs do not fit into one block, lambda is estimated on the first block alone, with
    its share of the radius.
    """
    problem, answer = run.problem, run.answer
    epsilon = float(problem.epsilon)  # type: ignore[arg-type]
    if _restart(run):
        return run.settings.polish
    columns = run.blocks()[0]
    if len(columns) < problem.n_outputs:
        norms = problem.target_norms
        share = np.linalg.norm(norms[columns]) / max(float(np.linalg.norm(norms)), 1e-300)
        epsilon *= min(float(share), 1.0)
    iterate(run, columns, epsilon, None, Shared(epsilon, columns))
    return run.settings.polish and not any(s is Status.INFEASIBLE for s in answer.stops)


def _restart(run: Run) -> bool:
    """Take over a warm start that is already near the radius; return whether there is one."""
    warm, answer = run.context.warm_start, run.answer
    if warm is None or warm.multiplier is None or not np.all(np.isfinite(warm.multiplier)):
        return False
    distance = warm.certificate.distance
    if abs(distance - run.problem.epsilon) > NEAR * distance:  # type: ignore[operator]
        return False
    given = run.warm_start(np.arange(run.problem.n_outputs))
    assert given is not None
    answer.V[:], answer.beta[:], theta, rho = given
    answer.theta[:], answer.lambda_[:] = theta.T, warm.multiplier
    answer.rho[:] = np.where(np.isfinite(rho), rho, 1.0)
    return True


def _find_multiplier(run: Run) -> bool:
    """Move lambda until the distances meet the radius; return whether they do, all proved."""
    answer, problem = run.answer, run.problem
    epsilon = float(problem.epsilon)  # type: ignore[arg-type]
    scale = max(epsilon, radius_floor(run.problem) * float(np.linalg.norm(problem.target_norms)))
    known = answer.lambda_[np.isfinite(answer.lambda_) & (answer.lambda_ > 0)]
    if not len(known) and _idle(run):
        return True
    lambda_ = float(np.median(known)) if len(known) else float(np.median(run.natural))
    every = np.arange(problem.n_outputs)
    first, low, high, miss, failures, landings = lambda_, 0.0, np.inf, np.inf, 0, LANDINGS
    stalls = 0
    _solve_at(run, lambda_, np.flatnonzero(~answer.proved))
    for _ in range(SMALL_ROUNDS if run.small else ROUNDS):
        if answer.proved.all() and landings > 0 and known.size:
            landings -= 1
            if land(run, _solve_at):
                return True
        away = ~np.isclose(answer.lambda_, lambda_, rtol=ROUNDING, atol=0.0)
        _solve_at(run, lambda_, np.flatnonzero(away))
        total = float(np.sum(answer.square))
        distance = np.sqrt(total)
        if not answer.proved.all():
            # Some outputs are degenerate at this very lambda; at a neighbour they need not be.
            # Unless their hard rows contradict each other, which holds at all of them.
            failures += 1
            left = np.flatnonzero(~answer.proved)
            if failures > NEIGHBOURS or (failures == 1 and refute(run, left, epsilon).any()):
                return False
            lambda_ *= 1.0 + 0.02 * failures * (-1.0) ** failures
            continue
        low, high = (lambda_, high) if distance < epsilon else (low, lambda_)
        objective = float(np.sum(np.abs(answer.V) * run.penalty(every)))
        # The gap is what the ball's force does along the way to its surface. With no weights but
        # unpenalised ones there is no lower value.
        miss, last_miss = abs(distance - epsilon), miss
        near = miss <= run.tolerances.feas * scale
        if distance <= epsilon and objective == 0.0:
            return True
        if distance <= epsilon or near:
            if miss * distance <= run.tolerances.gap * lambda_ * objective:
                return True
            stalls += miss > 0.5 * last_miss
            if near and stalls > STALLS:
                return True  # as near as rounding lets it
        if np.isinf(high) and lambda_ > 10.0 * first and _idle(run):
            return True
        if low == 0.0 and lambda_ < VANISHING * first:
            return False
        new = _tangent_step(run, lambda_)
        exact = low < new < high and miss <= 0.5 * last_miss
        if not exact:
            # No progress: a vertex whose distance does not depend on lambda, or a wild pattern.
            new = 3.0 * low if np.isinf(high) else (np.sqrt(low * high) if low > 0 else 0.3 * high)
        # Patterns hold for small changes only; beyond, the tangent misleads.
        new = float(np.clip(new, 0.2 * lambda_, 5.0 * lambda_))
        if exact and abs(new - lambda_) < 0.3 * lambda_:
            move(run, every, np.full(len(every), new))
        lambda_ = new
        _solve_at(run, lambda_, every)
    return False


def _tangent_step(run: Run, lambda_: float) -> float:
    """Return where all distances meet the radius on the present patterns; 0 where they do not."""
    epsilon, total = float(run.problem.epsilon), float(np.sum(run.answer.square))  # type: ignore[arg-type]
    curvature = float(np.sum(run.slopes(np.arange(run.problem.n_outputs))))
    square = epsilon**2 - total + lambda_**2 * curvature
    return float(np.sqrt(square / curvature)) if curvature > 0 and square > 0 else 0.0


def _idle(run: Run) -> bool:
    """Solve as if the ball were not active; return whether that was right."""
    answer, epsilon = run.answer, float(run.problem.epsilon)  # type: ignore[arg-type]
    for columns in run.blocks():
        if not np.isfinite(answer.rho[columns]).all():
            return False
        none = np.full(len(columns), np.inf)
        answer.proved[columns] = False
        run.polish(
            columns, answer.V[columns], answer.beta[columns], none, np.full(len(columns), epsilon),
            answer.theta.T, columns, 0,
        )  # fmt: skip
    return bool(answer.proved.all() and np.sqrt(np.sum(answer.square)) <= epsilon)


def _solve_at(run: Run, lambda_: float, which: Index) -> None:
    """Solve some outputs at this multiplier, from the answers so far."""
    run.check_clock()
    answer = run.answer
    for block in run.blocks():
        columns = np.intersect1d(block, which, assume_unique=True)
        if not len(columns):
            continue
        multiplier = np.full(len(columns), lambda_)
        answer.proved[columns] = False
        fresh = ~np.isfinite(answer.rho[columns])
        if not fresh.any():
            proved = run.polish(
                columns, answer.V[columns], answer.beta[columns], multiplier, None,
                answer.theta.T, columns, 0,
            )  # fmt: skip
            columns, multiplier = columns[~proved], multiplier[~proved]
        if len(columns):
            iterate(run, columns, None, multiplier)
