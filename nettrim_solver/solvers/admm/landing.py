r"""From outputs solved near the multiplier of a joint radius to an answer within the radius.

On its present pattern output j moves along a line as its multiplier :math:`\lambda_j` changes, and
its squared distance is :math:`d_j^2 + (\mu^2 - \lambda_j^2) q_j` at :math:`\mu`; a breakpoint,
where a weight or a row changes its part, ends the line. Outputs need not end at the very same
multiplier: with the distances together at epsilon, dual points :math:`\theta_j = y_j / \lambda_j`
and :math:`u_j = 1 / \lambda_j`, the gap that their spread leaves is

.. math::

    \epsilon \Bigl(\sum_j d_j^2 u_j^2\Bigr)^{1/2} - \sum_j d_j^2 u_j
    \approx \frac{\epsilon^2}{2} \frac{\operatorname{Var} u}{\operatorname{E} u},

of second order (mean and variance with weights :math:`d_j^2 / \epsilon^2`). So every output goes
towards the common multiplier as far as its line reaches, and only those that leave too large a gap
are solved anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...products import radius_floor
from .. import polish_kernels
from .newton import NO_ROWS, missed_rows
from .run import Run

Array = NDArray[np.float64]
Index = NDArray[np.int64]

#: Surveys before another way is looked for.
SURVEYS = 8

#: Outputs looked at together: no block is in memory at that time.
SURVEYED = 48

#: Largest relative change of the multipliers on the way.
REACH = 0.3

#: Shares of the gap allowed: for the answer as it is, and for the spread that is planned.
ACCEPTED, PLANNED = 0.9, 0.6

#: Distance of hard rows, over the share of the tolerance that the polish works to.
MISSED = 2.0


@dataclass
class Survey:
    """What is known of every output at its own multiplier, float64 of shape (n_outputs,).

    Its squared distances over the ball's rows and the hard ones, l1 norm, dual value and gap, the
    largest ``|x_i^T theta| / c_i``, the norm of theta over the ball's rows, ``q``, and the largest
    excess of a hard row in units of its own scale.
    """

    square: Array
    excess: Array
    objective: Array
    value: Array
    gap: Array
    ratio: Array
    norm: Array
    slope: Array
    missed: Array

    def follow(self, run: Run, multipliers: Array) -> None:
        """Move all outputs along their lines to these multipliers; the squares are foretold."""
        self.square += (multipliers**2 - run.answer.lambda_**2) * self.slope
        move(run, np.arange(len(multipliers)), multipliers)


def land(run: Run, solve_at: Callable[[Run, float, Index], None]) -> bool:
    """Bring outputs that are all proved at multipliers near each other to the radius.

    `solve_at` solves some of them at a multiplier. Returns whether radius and gap are met; if not,
    all outputs are left with what they have, and those that are no longer proved without their
    multiplier: a distance of few digits, which is all that tiny ones have, makes a poor dual point.
    """
    epsilon = float(run.problem.epsilon)  # type: ignore[arg-type]
    floor = radius_floor(run.problem) * float(np.linalg.norm(run.problem.target_norms))
    slack = run.tolerances.feas * max(epsilon, floor)
    for _ in range(SURVEYS):
        survey = take_survey(run)
        allowed = run.settings.tol_gap * float(survey.objective.sum())
        scale = 1.0 / np.maximum(survey.ratio, 1.0)
        bound = np.sum(scale * survey.value) - epsilon * np.linalg.norm(scale * survey.norm)
        close = np.sqrt(survey.square.sum()) - epsilon <= slack
        close &= np.sqrt(survey.excess.sum()) <= MISSED * slack
        missing = survey.missed > MISSED * run.tolerances.feas
        close &= not missing.any()
        # A distance a little beyond the radius is worth an objective below the bound.
        if close and abs(survey.objective.sum() - bound) <= ACCEPTED * allowed:
            return True
        stale = ~np.isfinite(survey.gap) | missing
        stale[_largest(survey.excess, PLANNED * (MISSED * slack) ** 2)] = True
        plan = _plan(run, survey, epsilon, PLANNED * allowed, stale)
        if plan is None:
            break
        target, multipliers, anew = plan
        survey.follow(run, multipliers)
        if len(anew):
            solve_at(run, target, anew)
            if not run.answer.proved.all():
                break
            # Their distances are not those that their lines had promised.
            survey.square[anew], survey.slope[anew] = run.answer.square[anew], run.slopes(anew)
            _centre(run, survey, epsilon)
    own = np.maximum(survey.objective, survey.objective.mean())
    run.answer.lambda_[~(survey.gap <= run.settings.tol_gap * own)] = np.nan
    return False


def _plan(
    run: Run, survey: Survey, epsilon: float, budget: float, stale: NDArray[np.bool_]
) -> tuple[float, Array, Index] | None:
    """Return the common multiplier, where every output goes, and which are to be solved anew.

    Those are, beside the ones that are `stale` anyway, as few as leave gaps and a spread within the
    budget. None where no multiplier in reach meets the radius.
    """
    lambda_, (low, high) = run.answer.lambda_, run.answer.line.T
    if not np.all(np.isfinite(lambda_)):
        return None
    for _ in range(len(lambda_)):
        ends = np.where(stale, 0.0, low), np.where(stale, np.inf, high)
        target = _common(lambda_, survey, *ends, epsilon)
        if target is None:
            # The lines end before the radius: those that end first on the way are solved anew.
            left = np.flatnonzero(~stale)
            if not len(left):
                return None
            reach = high - lambda_ if survey.square.sum() < epsilon**2 else lambda_ - low
            stale[left[np.argsort(reach[left], kind="stable")[: 1 + len(left) // 8]]] = True
            continue
        new = np.clip(target, *ends)
        square = np.maximum(survey.square + (new**2 - lambda_**2) * survey.slope, 0.0)
        cost = square * (1.0 / new - 1.0 / target) ** 2 * (0.5 * target)
        cost += np.where(stale, 0.0, np.maximum(survey.gap, 0.0))
        if cost.sum() <= budget:
            return target, new, np.flatnonzero(stale)
        stale[_largest(cost, 0.5 * budget)] = True
    return None


def _centre(run: Run, survey: Survey, epsilon: float) -> None:
    """Move all outputs to where the foretold distances meet the radius, if there is such a place.

    Lines that are not known yet have no end.
    """
    low, high = run.answer.line.T
    ends = np.where(np.isnan(low), 0.0, low), np.where(np.isnan(high), np.inf, high)
    target = _common(run.answer.lambda_, survey, *ends, epsilon)
    if target is not None:
        survey.follow(run, np.clip(target, *ends))


def _largest(values: Array, budget: float) -> Index:
    """Return where the largest values are, as many as leave a sum within the budget."""
    order = np.argsort(-values, kind="stable")
    left = np.append(values.sum(), values.sum() - np.cumsum(values[order]))
    left[-1] = 0.0
    return order[: int(np.argmax(left <= budget))]


def _common(
    lambda_: Array, survey: Survey, low: Array, high: Array, epsilon: float
) -> float | None:
    """Return the multiplier at which outputs that go there on their lines meet the radius."""

    def excess(target: float) -> float:
        new = np.clip(target, low, high)
        return float(np.sum(survey.square + (new**2 - lambda_**2) * survey.slope)) - epsilon**2

    start, stop = (1.0 - REACH) * float(lambda_.min()), (1.0 + REACH) * float(lambda_.max())
    if not excess(start) < 0.0 < excess(stop):
        return None
    while stop - start > 1e-15 * stop:
        middle = 0.5 * (start + stop)
        if middle in (start, stop):
            break
        start, stop = (middle, stop) if excess(middle) < 0.0 else (start, middle)
    return stop


def move(run: Run, columns: Index, multipliers: Array) -> None:
    """Move outputs along their lines to other multipliers, but for theta on the ball's rows.

    Beyond the point where a weight vanishes, its sign would be the wrong one, and it stays zero.
    """
    answer = run.answer
    change = multipliers - answer.lambda_[columns]
    V = answer.V[columns]
    moved = V - change[:, None] * answer.tangent[columns]
    answer.V[columns] = np.where(moved * V < 0, 0.0, moved)
    answer.beta[columns] -= change * answer.tangent_beta[columns]
    for j, new, step in zip(columns, multipliers, change, strict=True):
        rows, slopes = answer.tangent_nu[j]
        y = answer.lambda_[j] * answer.theta[rows, j]
        moved = y + step * slopes
        answer.theta[:, j] *= answer.lambda_[j] / new
        answer.theta[rows, j] = np.where(moved * y > 0, moved, 0.0) / new
    answer.lambda_[columns] = multipliers


def take_survey(run: Run) -> Survey:
    """Evaluate every output where it is, set theta and squares, and complete the lines."""
    M = run.problem.n_outputs
    survey = Survey(*(np.empty(M) for _ in range(9)))
    run.in_chunks(
        M, lambda part: _survey_chunk(run, np.arange(part.start, part.stop), survey), SURVEYED
    )
    return survey


def _survey_chunk(run: Run, columns: Index, survey: Survey) -> None:
    f, answer, m = run.factorisation, run.answer, len(columns)
    V, lambda_, penalty = answer.V[columns], answer.lambda_[columns], run.penalty(columns)
    lower, upper = run.box(columns)
    new = np.flatnonzero(np.isnan(answer.line[columns, 0]))  # lines that are not known yet
    tangent = answer.tangent[columns[new]]
    Z, shift = f.forward(np.concatenate([V, -tangent]))
    Z += (shift + np.append(answer.beta[columns], -answer.tangent_beta[columns[new]]))[:, None]
    Y, sums, ends = np.zeros_like(Z), np.empty(6), np.empty((m, 2))
    for k, j in enumerate(columns.tolist()):
        hard, nu = NO_ROWS, np.zeros(0)
        if run.problem.strict:
            hard = lower[k] < upper[k]
            nu = np.where(hard, lambda_[k] * answer.theta[:, j], 0.0)
        polish_kernels.conditions(Z[k], lower[k], upper[k], hard, nu, f.intercept, Y[k], sums)
        answer.beta[j] += sums[5]
        survey.missed[j] = 0.0
        if run.problem.strict:
            survey.missed[j] = missed_rows(
                f, Z[k], lower[k], upper[k], V[k], float(answer.beta[j]),
                float(run.row_targets[j]),
            )  # fmt: skip
        answer.square[j], survey.excess[j] = sums[:2]
        survey.value[j] = -sums[3] / lambda_[k]
        ball = Y[k][~hard] if run.problem.strict else Y[k]
        survey.norm[j] = np.linalg.norm(ball) / lambda_[k]
    for row, k in enumerate(new.tolist(), start=m):
        hard = NO_ROWS
        if run.problem.strict:
            hard = lower[k] < upper[k]
            rows, slopes = answer.tangent_nu[columns[k]]
            Y[row, rows] = slopes
        polish_kernels.piece(Z[k], Z[row], lower[k], upper[k], hard, Y[k], Y[row], ends[k])
    answer.theta.T[columns] = Y[:m] / lambda_[:, None]
    slopes = f.adjoint(Y)
    gradient, limit = slopes[:m], lambda_[:, None] * penalty
    ratio = np.divide(np.abs(gradient), limit, out=np.zeros_like(limit), where=limit > 0)
    survey.ratio[columns] = ratio.max(axis=1, initial=0.0)
    survey.square[columns] = answer.square[columns]
    survey.objective[columns] = np.sum(penalty * np.abs(V), axis=1)
    survey.slope[columns] = np.sum(penalty * np.sign(V) * answer.tangent[columns], axis=1)
    gap = survey.objective[columns] + survey.square[columns] / lambda_
    survey.gap[columns] = gap - survey.value[columns] / np.maximum(survey.ratio[columns], 1.0)
    low, high = _reach(V[new], tangent, gradient[new], slopes[m:], penalty[new], limit[new])
    answer.line[columns[new], 0] = lambda_[new] + np.maximum(low, ends[new, 0])
    answer.line[columns[new], 1] = lambda_[new] + np.minimum(high, ends[new, 1])


def _reach(
    V: Array, tangent: Array, gradient: Array, change: Array, penalty: Array, limit: Array
) -> tuple[Array, Array]:
    """Return how far lambda may fall (<= 0) and rise before a weight changes its part."""
    low, high = np.full(len(V), -np.inf), np.full(len(V), np.inf)
    rests = (V == 0) & (penalty > 0)
    kept = (V != 0) & (penalty > 0)
    # Each condition reads `room + step * rate >= 0`, with room >= 0.
    conditions = (
        (np.abs(V), -np.sign(V) * tangent, kept),
        (np.maximum(limit - gradient, 0.0), penalty - change, rests),
        (np.maximum(limit + gradient, 0.0), penalty + change, rests),
    )
    for room, rate, where in conditions:
        with np.errstate(divide="ignore", invalid="ignore"):
            step = -room / rate
        falls = np.where(where & (rate > 0), step, -np.inf)
        rises = np.where(where & (rate < 0), step, np.inf)
        low = np.maximum(low, falls.max(axis=1, initial=-np.inf))
        high = np.minimum(high, rises.min(axis=1, initial=np.inf))
    return low, high
