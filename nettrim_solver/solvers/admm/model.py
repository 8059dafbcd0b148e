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

from .working_set import WorkingSet, gather

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Mask = NDArray[np.bool_]

#: Weight of a hard row against a ball row, by the dtype of the factor, whose rounding it must not
#: drown. The multipliers converge by about this factor a sweep.
STIFFNESS = {np.dtype(np.float32): 1e4, np.dtype(np.float64): 1e6}

#: The same in damped steps, over the damping: a proximal term of the multipliers.
SOFTENED = 0.2

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
    """

    def __init__(
        self, system: WorkingSet, support: Mask, rows: Mask, right: Array, cost: Array,
        start: Array, lambda_: float,
    ) -> None:  # fmt: skip
        self.system, self.support = system, support
        self.right, self.cost, self.start, self.lambda_ = right, cost, start, lambda_
        self.member = rows
        self.full: Array | None = None
        self.stiffness = STIFFNESS[system.dtype]
        if system.damping > 0.0:
            self.stiffness = min(self.stiffness, SOFTENED / system.damping)
        self.rows = np.zeros((0, len(right)))
        self.y = self.signs = self.doubled = np.zeros(0)
        self.push = np.zeros((0, 2))
        self.stiff = np.zeros(0, dtype=np.int64)
        self.goal, self.weight, self.direction = np.zeros((0, 2)), np.zeros(0), cost

    def add_stiff_rows(self, stiff: Index, y: Array, excess: Array, signs: Array) -> None:
        """Make hard rows equalities, ``rows @ delta = excess``, with multipliers from y."""
        self.stiff, self.y, self.signs = stiff, y, signs
        self.rows = gather(self.system.factorisation, stiff, self.system.columns, np.float64)
        # Those in the base count there with weight 1 already.
        self.doubled = self.system.rows[stiff].astype(np.float64)
        self.goal = np.column_stack([excess, np.zeros(len(stiff))])
        self.weight = np.full(len(stiff), self.stiffness)

    def soften(self, carried: Mask, share: float) -> None:
        """Let some of the stiff rows give way: ``rows @ delta = excess - share (y + push)``.

        It is then the share that moves with lambda, and lambda the unit of y.
        """
        soft = np.where(carried, share, 0.0)
        self.goal[:, 0] -= soft * self.y
        self.goal[:, 1] = np.where(carried, -self.y / self.lambda_, 0.0)
        self.weight = 1.0 / (soft + 1.0 / (self.weight + self.doubled)) - self.doubled
        self.direction = np.zeros_like(self.cost)

    def solve(self, square: float, epsilon: float | None) -> Step | None:
        """Return the step from a point whose ball rows have the given squared norm."""
        dropped = ~self.support
        for _ in range(DROP_ROUNDS):
            if dropped.all():
                return Step(self.start.copy(), dropped, 0.0, np.zeros(len(dropped)))
            if not self._solve_pair(dropped):
                return None
            change = 0.0 if epsilon is None else self._change(square, epsilon)
            delta = self.u + change * self.v
            self.force = self.y + self.push @ np.array([1.0, change])
            flipped = ~dropped & (np.sign(self.cost) * (self.start - delta) < 0)
            dropped = dropped | flipped
            if not (self._release() or flipped.any()):
                break
        return Step(delta, dropped, change, self.v)

    def _solve_pair(self, dropped: Mask) -> bool:
        """Solve for the step at this lambda and for its slope, with dropped columns set to zero.

        Sets u, v, the held variables with their multipliers, and `push`, the change of the stiff
        rows' multipliers.
        """
        system, n = self.system, self.system.n_base
        if self.full is None:
            self._set_rows()
        assert self.full is not None
        # Appended variables that rest at zero are left out, all others held where they drop.
        held = np.flatnonzero(dropped)
        held = held[(held < n) | (self.start[held] != 0)]
        active = n + np.flatnonzero(~dropped[n:] | (self.start[n:] != 0))
        keys = np.concatenate([system.column_keys(active), self.row_keys, system.held_keys(held)])
        a, c = len(active), len(active) + len(self.row_keys)
        b = c - len(self.stiff)
        diagonal, values = np.zeros(len(keys)), np.zeros((len(keys), 2))
        diagonal[a:c] = self.row_diagonal
        values[:a], values[b:c], values[c:, 0] = self.full[active], self.goal, self.start[held]
        try:
            x, z = system.solve(self.base, keys, diagonal, values, active)
        except np.linalg.LinAlgError:
            return False
        x[held, 0], x[held, 1] = self.start[held], 0.0
        self.u, self.v, self.held, self.pull = x[:, 0], x[:, 1], held, z[c:, 0]
        self.push = -z[b:c] * (1.0 + self.doubled / self.weight)[:, None]
        return bool(np.isfinite(x).all() and np.isfinite(z).all())

    def _set_rows(self) -> None:
        """Set what depends on the rows: right sides, their base's solution, the rows' borders."""
        system = self.system
        self.full = np.column_stack([self.right + self.lambda_ * self.cost, self.direction])
        changed = self.member != system.rows
        changed[self.stiff] = False
        rows = np.flatnonzero(changed)
        self.row_diagonal = np.where(self.member[rows], -1.0, 1.0)
        if len(self.stiff):
            self.full += self.rows.T @ (self.doubled[:, None] * self.goal)
            rows = np.concatenate([rows, self.stiff])
            self.row_diagonal = np.concatenate([self.row_diagonal, -1.0 / self.weight])
        self.row_keys = system.row_keys(rows)
        self.base = system.base_solution(self.full)

    def _release(self) -> bool:
        """Take out the hard rows whose multiplier would change sign; return whether any did."""
        wrong = self.force * self.signs < 0
        if not wrong.any():
            return False
        self.right, self.full = self.right - self.y[wrong] @ self.rows[wrong], None
        for name in ("rows", "y", "signs", "stiff", "doubled", "force", "push", "goal", "weight"):
            setattr(self, name, getattr(self, name)[~wrong])
        return True

    def _change(self, square: float, epsilon: float) -> float:
        """Return the change of lambda after which the ball rows have norm epsilon.

        On fixed patterns ``||E - X~ (u + d v)||^2`` is a quadratic in d; its upper root is wanted,
        since the distance grows with lambda. Without a root the support is too small: lambda
        shrinks as far as one step may, which lets columns in. The products with H follow from the
        system that u and v solve, without H.
        """
        u, v, ridge = self.u, self.v, self.system.ridge
        bu, bv = self.rows @ u, self.rows @ v
        vv = self.cost @ v - v @ (ridge * v) + bv @ self.push[:, 1]
        if vv <= 0.0:
            return 0.0
        right = self.right + self.lambda_ * self.cost
        uu = right @ u - u[self.held] @ self.pull - u @ (ridge * u) + bu @ self.push[:, 0]
        uv = right @ v - v @ (ridge * u) + bv @ self.push[:, 0]
        constant = square - 2.0 * (self.right @ u - self.y @ bu) + uu - epsilon**2
        linear = 2.0 * (uv - self.right @ v + self.y @ bv)
        root = linear**2 - 4.0 * vv * constant
        change = (-linear + np.sqrt(root)) / (2.0 * vv) if root >= 0.0 else -np.inf
        most = LAMBDA_CHANGE * self.lambda_
        return float(np.clip(change, -most, most))
