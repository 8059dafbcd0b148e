r"""One Newton step: the quadratic model of an output on its working rows and columns.

The model is solved as an active set does: columns whose sign would flip are held at zero, hard rows
whose multiplier would change sign are released, and the rest is solved for again, until nothing
flips. Without this the step leaves the optimality conditions it was to meet, and the pattern
drifts. Each of these changes is one more entry of the border (:mod:`.working_set`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import polish_kernels
from .working_set import WorkingSet, gather

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Mask = NDArray[np.bool_]

#: Weight of a hard row in damped steps, over the damping: a proximal term of the multipliers.
SOFTENED = 0.3

#: Largest relative change of lambda in one step: the iterate's estimate is a good one, and near a
#: support that is too small the ball's quadratic is not.
LAMBDA_CHANGE = 0.1

#: Times that columns may be dropped, and the rest solved for again, within one step.
DROP_ROUNDS = 6


@dataclass(frozen=True)
class Step:
    """A step ``V - delta``, what it drops, the change of lambda, and ``-dV / dlambda``.

    All with the intercept's entry first.
    """

    delta: Array
    dropped: Mask
    change: float
    tangent: Array


class Model:
    """The model ``H delta = right + lambda cost`` and what limits it.

    Parameters
    ----------
    system : WorkingSet
    support : ndarray of bool, shape (n,)
        Which variables of the system may move; the others are zero.
    rows : ndarray of bool, shape (n_samples,)
        Working samples of the ball.
    right : ndarray of shape (n,)
        ``X~_T^T y``, with the row sum of y first for an intercept.
    cost : ndarray of shape (n,)
        ``c_T s``; 0 for unpenalised columns.
    start : ndarray of shape (n,)
        ``V_T`` (0 for the intercept).
    lambda_ : float
    stiffness : float
        Weight of a hard row against a ball row, in steps that are not damped.
    """

    def __init__(
        self, system: WorkingSet, support: Mask, rows: Mask, right: Array, cost: Array,
        start: Array, lambda_: float, stiffness: float,
    ) -> None:  # fmt: skip
        self.system, self.support = system, support
        self.right, self.cost, self.start, self.lambda_ = right, cost, start, lambda_
        self.direction, self.stiffness = cost, hard_weight(stiffness, system.damping)
        self.full: Array | None = None
        self.member = rows
        self.stiff, self.rows = np.zeros(0, dtype=np.int64), np.zeros((0, len(right)))
        self.y = self.signs = self.weight = self.base = np.zeros(0)
        self.goal = self.moves = self.push = np.zeros((0, 2))

    def add_stiff_rows(self, stiff: Index, y: Array, excess: Array, signs: Array) -> None:
        """Make hard rows equalities, ``rows @ delta = excess``, with multipliers from y."""
        system = self.system
        self.stiff, self.y, self.signs = stiff, y, signs
        self.rows = gather(system.factorisation, stiff, system.columns, np.float64)
        self.goal = np.column_stack([excess, np.zeros(len(stiff))])
        self.weight, self.base = np.full(len(stiff), self.stiffness), system.weights[stiff]

    def soften(self, carried: Mask, share: float) -> None:
        """Let some of the stiff rows give way: ``rows @ delta = excess - share (y + push)``.

        It is then the share that moves with lambda, and lambda the unit of y.
        """
        soft = np.where(carried, share, 0.0)
        self.goal[:, 0] -= soft * self.y
        self.goal[:, 1] = np.where(carried, -self.y / self.lambda_, 0.0)
        self.weight = 1.0 / (soft + 1.0 / self.weight)
        self.direction = np.zeros_like(self.cost)

    def solve(self, square: float, epsilon: float | None) -> Step | None:
        """Return the step from a point whose ball rows have the given squared norm."""
        dropped, delta = ~self.support, np.empty(len(self.right))
        x = np.empty((2, len(delta)))
        # Rows of the ball that the base does not count as they are.
        extra = self.member - self.system.weights
        extra[self.stiff] = 0.0
        self.changed = np.flatnonzero(extra)
        self.change = extra[self.changed]
        for _ in range(DROP_ROUNDS):
            if dropped.all():
                return Step(self.start.copy(), dropped, 0.0, np.zeros(len(dropped)))
            if not self._solve_pair(dropped, x):
                return None
            change = 0.0 if epsilon is None else self._change(x, square, epsilon)
            flips, wrong = polish_kernels.flip(
                x, change, self.start, self.cost, dropped, self.y, self.push, self.signs, delta,
                self.force,
            )  # fmt: skip
            if wrong:
                self._release()
            if not (wrong or flips):
                break
        return Step(delta, dropped, change, x[1])

    def _solve_pair(self, dropped: Mask, x: Array) -> bool:
        """Solve for the step u at this lambda and its slope v, the rows of x.

        Dropped columns are set to zero. Sets the held variables with their multipliers, and `push`,
        the change of the stiff rows' multipliers.
        """
        if self.full is None:
            self._set_rows()
        assert self.full is not None
        system, first = self.system, len(self.row_diagonal)
        for _ in range(2):
            count, held, missing = polish_kernels.border_entries(
                system.n_base, system.column_keys, system.held_keys, self.start, dropped,
                self.full, first, self.keys, self.values, self.held_room,
            )  # fmt: skip
            self.held = self.held_room[:held]
            if not missing:
                break
            system.hold(self.held)
        used = slice(0, count + held)
        try:
            z = system.solve(
                self.half, self.keys[used], self.row_diagonal, self.values[used], x
            )  # fmt: skip
        except np.linalg.LinAlgError:
            return False
        self.pull = np.empty(held)
        return bool(polish_kernels.border_spread(
            z, system.n_base, first, self.start, dropped, x, self.pull
        )) and self._set_push(z[len(self.changed) : first], x)  # fmt: skip

    def _set_push(self, z: Array, x: Array) -> bool:
        """Set how the multipliers of the stiff rows change; return whether all is finite."""
        if not len(self.stiff):
            return True
        self.moves = self.rows @ x.T
        self.push = self.weight[:, None] * (self.goal - self.moves)
        # From the border, where they are in it, which keeps more digits.
        loose = self.loose
        self.push[loose] = (-self.weight[loose] / self.extra[loose])[:, None] * z
        return bool(np.isfinite(self.push).all())

    def _set_rows(self) -> None:
        """Set what depends on the rows: right sides, their base's solution, the rows' borders."""
        self.full = np.stack([self.right + self.lambda_ * self.cost, self.direction])
        rows, change = self.changed, self.change
        if len(self.stiff):
            self.full += (self.base[:, None] * self.goal).T @ self.rows
            self.extra = self.weight - self.base
            self.loose = np.flatnonzero(self.extra)
            rows = np.append(rows, self.stiff[self.loose])
            change = np.append(change, self.extra[self.loose])
        # The border's entries: rows, and after them what depends on the columns that are dropped.
        self.row_diagonal = -1.0 / change
        first, n = len(rows), len(self.right)
        self.keys, self.values = np.empty(first + 2 * n, np.int64), np.zeros((first + 2 * n, 2))
        self.keys[:first] = self.system.row_keys(rows)
        if len(self.stiff):
            self.values[len(self.changed) : first] = self.goal[self.loose]
        self.held_room, self.force = np.empty(n, np.int64), np.empty(len(self.stiff))
        self.half = self.system.half_solution(self.full)

    def _release(self) -> None:
        """Take out the hard rows whose multiplier would change sign: they weigh nothing."""
        wrong = np.flatnonzero(self.force * self.signs < 0.0)
        self.right, self.full = self.right - self.y[wrong] @ self.rows[wrong], None
        for values in (self.y, self.force, self.signs, self.goal, self.weight):
            values[wrong] = 0.0

    def _change(self, x: Array, square: float, epsilon: float) -> float:
        """Return the change of lambda after which the ball rows have norm epsilon.

        On fixed patterns ``||E - X~ (u + d v)||^2`` is a quadratic in d; its upper root is wanted,
        since the distance grows with lambda. Without a root the support is too small: lambda
        shrinks as far as one step may, which lets columns in.
        """
        vv, linear, constant = polish_kernels.radius_change(
            x, self.right, self.lambda_, self.cost, self.system.ridge, self.held, self.pull,
            self.moves, self.y, self.push, square,
        )  # fmt: skip
        if vv <= 0.0:
            return 0.0
        root = linear**2 - 4.0 * vv * (constant - epsilon**2)
        change = (-linear + np.sqrt(root)) / (2.0 * vv) if root >= 0.0 else -np.inf
        most = LAMBDA_CHANGE * self.lambda_
        return float(np.clip(change, -most, most))


def hard_weight(stiffness: float, damping: float) -> float:
    """Return what a hard row weighs against a ball row in steps of this damping."""
    return min(stiffness, SOFTENED / damping) if damping > 0.0 else stiffness
