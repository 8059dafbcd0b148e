r"""One radius for all outputs: the multiplier that they share.

The joint program is the penalised one with a single :math:`\lambda`, the multiplier of the common
ball, so that its outputs separate once :math:`\lambda` is known. A first ADMM run with the joint
projection estimates it; then, in turn, every output is solved exactly at the present
:math:`\lambda`, and :math:`\lambda` moves to where the distances together have norm epsilon: on
fixed patterns their squares are :math:`a_j + \lambda^2 q_j`, with

.. math::

    q_j = (c_T s)^T H^{-1} (c_T s) = - c_T^T s\, dV_T / d\lambda ,

so the step is exact where no pattern changes, and a bracket guards it where some do.
"""

from __future__ import annotations

import numpy as np

from ..certificate import RADIUS_FLOOR
from ..status import Status
from .separable import Interrupted, Run

#: Most values of lambda tried. The bracket halves at worst, and the steps are exact near the end.
ROUNDS = 60


def solve_joint(run: Run) -> None:
    """Solve the joint program; the answers are left in ``run.answer``."""
    try:
        if not _trivial(run) and _estimate(run):
            _find_multiplier(run)
    except Interrupted as stop:
        run.stop_unproved(stop.status)


def _trivial(run: Run) -> bool:
    """Answer with W = 0 if that is within the radius."""
    total = 0.0
    for columns in run.blocks():
        _, beta, _, distance = run.zero_weights(*run.box(columns))
        run.answer.beta[columns] = beta
        total += float(np.sum(distance**2))
    if np.sqrt(total) > run.problem.epsilon:  # type: ignore[operator]
        return False
    run.answer.lambda_[:] = np.inf
    run.finish(np.arange(run.problem.n_outputs), 0)
    return True


def _estimate(run: Run) -> bool:
    """Leave estimates of lambda and of every output; return whether there is more to do.

    When the outputs do not fit into one block, lambda is estimated on the first block alone, with
    its share of the radius.
    """
    problem, answer = run.problem, run.answer
    epsilon = float(problem.epsilon)  # type: ignore[arg-type]
    warm = run.context.warm_start
    if warm is not None and warm.multiplier is not None and np.all(np.isfinite(warm.multiplier)):
        answer.lambda_[:] = warm.multiplier
        V, beta, theta, rho = run.warm_start(np.arange(problem.n_outputs))
        answer.V[:], answer.beta[:], answer.theta[:] = V, beta, theta.T
        answer.rho[:] = np.where(np.isfinite(rho), rho, 1.0)
        return run.settings.polish
    columns = run.blocks()[0]
    share = np.linalg.norm(problem.target_norms[columns]) / np.linalg.norm(problem.target_norms)
    run.iterate(columns, epsilon * share if share < 1 else epsilon, None, joint=True)
    return run.settings.polish and not any(s is Status.INFEASIBLE for s in answer.stops)


def _find_multiplier(run: Run) -> None:
    answer, problem = run.answer, run.problem
    epsilon = float(problem.epsilon)  # type: ignore[arg-type]
    scale = max(epsilon, RADIUS_FLOOR * float(np.linalg.norm(problem.target_norms)))
    known = answer.lambda_[np.isfinite(answer.lambda_) & (answer.lambda_ > 0)]
    if not len(known) and _idle(run):
        return
    lambda_ = float(np.median(known)) if len(known) else float(np.median(run.natural))
    first, low, high, miss = lambda_, 0.0, np.inf, np.inf
    for _ in range(ROUNDS):
        _solve_at(run, lambda_)
        total = float(np.sum(answer.square))
        distance = np.sqrt(total)
        if abs(distance - epsilon) <= run.tolerances.feas * scale:
            return
        if not answer.proved.all():
            return  # out of iterations
        low, high = (lambda_, high) if distance < epsilon else (low, lambda_)
        if np.isinf(high) and lambda_ > 10.0 * first and _idle(run):
            return
        curvature = float(np.sum(run.slopes()))
        rest = total - lambda_**2 * curvature
        new = 0.0
        if curvature > 0 and epsilon**2 > rest:
            new = float(np.sqrt((epsilon**2 - rest) / curvature))
        miss, last_miss = abs(distance - epsilon), miss
        exact = low < new < high and miss <= 0.5 * last_miss
        if not exact:
            # No progress: a vertex whose distance does not depend on lambda, or a wild pattern.
            new = 3.0 * low if np.isinf(high) else (np.sqrt(low * high) if low > 0 else 0.3 * high)
        # Patterns hold for small changes only; beyond, the tangent misleads.
        new = float(np.clip(new, 0.2 * lambda_, 5.0 * lambda_))
        if exact and abs(new - lambda_) < 0.3 * lambda_:
            answer.V -= (new - lambda_) * answer.tangent
            answer.beta -= (new - lambda_) * answer.tangent_beta
        lambda_ = new


def _idle(run: Run) -> bool:
    """Solve as if the ball were not active; return whether that was right."""
    answer, epsilon = run.answer, float(run.problem.epsilon)  # type: ignore[arg-type]
    for columns in run.blocks():
        if not np.isfinite(answer.rho[columns]).all():
            return False
        none = np.full(len(columns), np.inf)
        run.polish(
            columns, answer.V[columns], answer.beta[columns], none, np.full(len(columns), epsilon),
            np.ascontiguousarray(answer.theta[:, columns].T), 0,
        )  # fmt: skip
    return bool(answer.proved.all() and np.sqrt(np.sum(answer.square)) <= epsilon)


def _solve_at(run: Run, lambda_: float) -> None:
    """Solve every output at this multiplier, from the answers so far."""
    answer = run.answer
    for columns in run.blocks():
        multiplier = np.full(len(columns), lambda_)
        answer.proved[columns] = False
        fresh = ~np.isfinite(answer.rho[columns])
        if not fresh.any():
            proved = run.polish(
                columns, answer.V[columns], answer.beta[columns], multiplier, None,
                np.ascontiguousarray(answer.theta[:, columns].T), 0,
            )  # fmt: skip
            columns, multiplier = columns[~proved], multiplier[~proved]
        if len(columns):
            run.iterate(columns, None, multiplier)
