r"""One Newton step: the quadratic model of an output on its working rows and columns.

The model is solved as an active set does: columns whose sign would flip are set to zero, hard rows
whose multiplier would change sign are released, and the rest is solved for again, until nothing
flips. Without this the step leaves the optimality conditions it was to meet, and the pattern
drifts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .working_set import FIXED, WorkingSet, gather

Array = NDArray[np.float64]

#: Weight of a hard row against a ball row. The multipliers converge by about this factor a sweep.
STIFFNESS = 1e4

#: Largest relative change of lambda in one step: the iterate's estimate is a good one, and near a
#: support that is too small the ball's quadratic is not.
LAMBDA_CHANGE = 0.1

#: Times that columns may be dropped, and the rest solved for again, within one step.
DROP_ROUNDS = 6

#: The same in cautious steps, which change one thing at a time.
CAUTIOUS_ROUNDS = 40


@dataclass(frozen=True)
class Step:
    """A step ``V - delta``, what it drops, the change of lambda, and ``-dV / dlambda``.

    All with the intercept's entry first.
    """

    delta: Array
    dropped: NDArray[np.bool_]
    change: float
    tangent: Array


class Model:
    """The model ``H delta = right + lambda cost`` and what limits it.

    Parameters
    ----------
    system : WorkingSet
        H; cut down in place where many columns drop or rows are released.
    right : ndarray of shape (n,)
        ``X~_T^T y``, with the row sum of y first for an intercept.
    cost : ndarray of shape (n,)
        ``c_T s``; 0 for unpenalised columns.
    start : ndarray of shape (n,)
        ``V_T`` (0 for the intercept).
    lambda_ : float
    cautious : bool
        Drop or release one at a time, the worst first.
    """

    def __init__(
        self, system: WorkingSet, right: Array, cost: Array, start: Array, lambda_: float,
        cautious: bool = False,
    ) -> None:  # fmt: skip
        self.system, self.right, self.cost, self.cautious = system, right, cost, cautious
        self.start, self.lambda_ = start, lambda_
        self.rows = np.zeros((0, len(right)))
        self.force = self.signs = np.zeros(0)
        self.stiff = np.zeros(0, dtype=np.int64)

    def add_stiff_rows(
        self, stiff: NDArray[np.int64], y: Array, excess: Array, signs: Array
    ) -> None:
        """Make hard rows equalities, ``rows @ delta = excess``, with multipliers from y."""
        self.stiff, self.signs = stiff, signs
        self.rows = gather(self.system.factorisation, stiff, self.system.columns, np.float64)
        self.right = self.right + self.rows.T @ (STIFFNESS * excess)
        self.force = y + STIFFNESS * excess

    def multipliers(self, delta: Array) -> Array:
        """Return the multipliers of the stiff rows after a step."""
        return self.force - STIFFNESS * (self.rows @ delta)

    def solve(self, square: float, epsilon: float | None) -> Step | None:
        """Return the step from a point whose ball rows have the given squared norm."""
        dropped = np.zeros(len(self.right), dtype=bool)
        for _ in range(CAUTIOUS_ROUNDS if self.cautious else DROP_ROUNDS):
            if dropped.all():
                return Step(self.start.copy(), dropped, 0.0, np.zeros(len(dropped)))
            pair = self._solve_pair(dropped)
            if pair is None:
                return None
            u, v = pair
            change = 0.0 if epsilon is None else self._change(u, v, square, epsilon)
            delta = u + change * v
            if not np.isfinite(delta).all():
                return None
            flips = np.where(dropped, 0.0, -np.sign(self.cost) * (self.start - delta))
            flipped = self._chosen(flips)
            dropped = dropped | flipped
            if self.cautious and flipped.any():
                continue
            if not (self._release(delta) or flipped.any()):
                break
        return Step(delta, dropped, change, v)

    def _solve_pair(self, dropped: NDArray[np.bool_]) -> tuple[Array, Array] | None:
        """Solve for the step at this lambda and for its slope, with dropped columns set to zero."""
        values = np.zeros((len(dropped), 2))
        values[dropped, 0] = self.start[dropped]
        right = np.column_stack([self.right + self.lambda_ * self.cost, self.cost])
        if dropped.sum() <= FIXED * len(dropped):
            if not self.system.factorise():
                return None
            x = self.system.solve(right, dropped, values)
            return x[:, 0], x[:, 1]
        free = ~dropped
        small = self.system.restricted(free)
        if not small.factorise():
            return None
        right[:, 0] -= self.system.product(values[:, 0])
        values[free] = small.solve(right[free], np.zeros(int(free.sum()), dtype=bool), values[free])
        return values[:, 0], values[:, 1]

    def _chosen(self, amounts: Array) -> NDArray[np.bool_]:
        """Return where amounts are positive, or only where the largest is."""
        chosen = amounts > 0
        if self.cautious and chosen.any():
            chosen = np.arange(len(amounts)) == np.argmax(amounts)
        return chosen

    def _release(self, delta: Array) -> bool:
        """Take out the hard rows whose multiplier would change sign; return whether any did."""
        wrong = self._chosen(-self.multipliers(delta) * self.signs)
        if not wrong.any():
            return False
        self.right = self.right - self.rows[wrong].T @ self.force[wrong]
        self.system.set_rows(self.stiff[wrong], 0.0)
        for name in ("rows", "force", "signs", "stiff"):
            setattr(self, name, getattr(self, name)[~wrong])
        return True

    def _change(self, u: Array, v: Array, square: float, epsilon: float) -> float:
        """Return the change of lambda after which the ball rows have norm epsilon.

        On fixed patterns ``||E - X~ (u + d v)||^2`` is a quadratic in d; its upper root is wanted,
        since the distance grows with lambda. Without a root the support is too small: lambda
        shrinks as far as one step may, which lets columns in.
        """
        Hu, Hv = self.system.product(u), self.system.product(v)
        # The model of the ball rows alone: without the stiff ones.
        ball = self.right - self.rows.T @ self.force
        bu, bv = self.rows @ u, self.rows @ v
        vv = v @ Hv - STIFFNESS * (bv @ bv)
        if vv <= 0.0:
            return 0.0
        uu, uv = u @ Hu - STIFFNESS * (bu @ bu), u @ Hv - STIFFNESS * (bu @ bv)
        constant = square - 2.0 * (ball @ u) + uu - epsilon**2
        linear = 2.0 * (uv - ball @ v)
        root = linear**2 - 4.0 * vv * constant
        change = (-linear + np.sqrt(root)) / (2.0 * vv) if root >= 0.0 else -np.inf
        most = LAMBDA_CHANGE * self.lambda_
        return float(np.clip(change, -most, most))
