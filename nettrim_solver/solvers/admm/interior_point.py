r"""A dense primal-dual interior-point method for a few outputs: slow, and hard to confuse.

Degenerate vertices, nearly dependent inputs and radii near the least distance, on which the polish
cycles, are nothing special to it. One group of outputs, with the inputs as unit columns, reads

.. math::

    \min \sum_i c_i (p_i + n_i) \quad\text{s.t.}\quad X (p - n) - e - k = 0, \;
    p, n \ge 0, \; l \le k \le u, \; \|e\| \le \epsilon ,

with e on the ball's rows alone; inputs without penalty are free. The multipliers of the rows are
the dual point theta. In place of the ball there may be ``||e||^2 / (2 lambda)`` in the objective.
Steps are Mehrotra's predictor and corrector with the Nesterov-Todd scaling of the ball's cone.

Each step ends in a least-squares problem per output, with the inputs' barrier as extra rows and the
cone as a correction of rank one. It is solved by a QR factorisation with rows in the order of their
weight, so that the condition of X is not squared.

References
----------
Mehrotra, *On the implementation of a primal-dual interior point method*, SIAM J. Optim. 2 (1992);
Andersen, Dahl, Vandenberghe, *Interior-point methods for large-scale cone programming* (2011), for
the scaling; Cox, Higham, *Stability of Householder QR factorization for weighted least squares
problems* (1998), for the order of rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .interior_system import System, in_cone

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: Most iterations, and those without progress after which the method ends.
ITERATIONS = 80
PATIENCE = 15

#: Residuals and gap, relative, at which nothing is left to gain.
DONE = 1e-11

#: What a start is left with when no other is tried.
SOLVED = 1e-8

#: Steps shorter than this are replaced by one that aims at this share of the complementarity.
SHORT, CENTRED = 0.3, 0.8

#: Share of the way to the boundary that a step takes.
REACH = 0.995


@dataclass
class Program:
    """A group of outputs: X (P, N), box and ball (m, P), cost (m, N), and one of the budgets.

    An infinite cost leaves an input out; without a budget the ball's rows are exact.
    """

    X: Array
    lower: Array
    upper: Array
    ball: Mask
    cost: Array
    epsilon: float | None
    lambda_: float | None


@dataclass
class Point:
    """Where the method stands; `theta` (m, P) holds the multipliers of the rows."""

    p: Array
    n: Array
    free: Array
    zp: Array
    zn: Array
    e: Array
    a: Array
    b: Array
    za: Array
    zb: Array
    theta: Array
    s0: float
    tau: float

    def weights(self) -> Array:
        """Return the weights, shape (m, N)."""
        return self.p - self.n + self.free

    def moved(self, step: Point, primal: float, dual: float) -> Point:
        """Return the point after a step."""
        names = {"zp": dual, "zn": dual, "za": dual, "zb": dual, "theta": dual, "tau": dual}
        return Point(**{
            name: getattr(self, name) + names.get(name, primal) * getattr(step, name)
            for name in self.__dataclass_fields__
        })  # fmt: skip


class InteriorPoint:
    """The method on one program; :meth:`solve` returns the best point met."""

    def __init__(self, program: Program) -> None:
        free_rows = np.isinf(program.lower) & np.isinf(program.upper)
        absent = np.isinf(program.cost)
        cost = np.where(absent, 0.0, program.cost)
        self.program = program = replace(program, ball=program.ball & ~free_rows, cost=cost)
        self.absent, self.paid = absent, cost > 0
        self.free = ~(absent | self.paid)
        self.has_upper = np.isfinite(program.upper) & (program.lower < program.upper)
        self.has_lower = np.isfinite(program.lower) & (program.lower < program.upper)
        self.matched = program.lower == program.upper
        self.free_rows = ~(self.has_upper | self.has_lower | self.matched)
        self.cone = program.epsilon is not None
        self.count = (
            2 * int(self.paid.sum()) + int(self.has_upper.sum() + self.has_lower.sum()) + self.cone
        )
        self.upper = np.where(self.has_upper, program.upper, 0.0)
        self.lower = np.where(self.has_lower | self.matched, program.lower, 0.0)
        targets = np.where(self.has_upper, np.minimum(self.upper, 0.0), 0.0)
        targets += np.where(self.has_lower & (self.lower > 0), self.lower, 0.0)
        targets += np.where(self.matched, self.lower, 0.0)
        self.size = float(np.linalg.norm(targets)) or 1.0
        self.values = self._values(targets)
        self.value = self.values[0]

    @property
    def unit(self) -> float:
        """The size of theta, and so of its products with targets."""
        return self.value / self.size

    # Start, residuals -------------------------------------------------------------------------

    def _values(self, targets: Array) -> tuple[float, ...]:
        """Return what the objective may be about, the likeliest first.

        Between the dual value of the targets as a dual point and the cost of the least squares.
        """
        program = self.program
        slopes = np.abs(targets @ program.X)
        ratio = np.divide(slopes, program.cost, out=np.zeros_like(slopes), where=self.paid)
        low = self.size**2 / (float(ratio.max(initial=0.0)) or 1.0)
        fit = np.linalg.lstsq(program.X, targets.T, rcond=1e-8)[0].T
        high = max(low, float(np.sum(program.cost * np.abs(fit))))
        if program.lambda_ is not None:
            left = float(np.sum((targets - fit @ program.X.T) ** 2)) / (2.0 * program.lambda_)
            most = self.size**2 / (2.0 * program.lambda_)
            low, high = min(low, most), min(high + left, most)
        return high, low, float(np.sqrt(low * high)), high * 1e3

    def start(self) -> Point:
        """Return a centred starting point with theta = 0 where it may."""
        program, mu = self.program, self.value / max(self.count, 1) ** 0.5
        cost, paid = program.cost, self.paid
        spread = self.size / np.sqrt(program.lower.size)
        width = np.where(self.has_upper & self.has_lower, 0.5 * (self.upper - self.lower), np.inf)
        slack = np.minimum(spread, width)
        a = np.where(self.has_upper, slack, 1.0)
        b = np.where(
            self.has_lower, np.where(self.has_upper, self.upper - self.lower - a, slack), 1.0
        )
        za = np.where(self.has_upper, mu / a, 0.0)
        zb = np.where(self.has_lower, mu / b, 0.0)
        # Large enough for the dual conditions, as far as the cost of inputs allows.
        theta = za - zb
        z = np.maximum(np.where(paid, cost, 1.0), 2.0 * np.abs(theta @ program.X))
        p = np.where(paid, mu / z, 0.0)
        z = np.where(paid, z, 0.0)
        s0 = program.epsilon if program.epsilon is not None else 0.0
        norm = float(np.linalg.norm(theta[program.ball]))
        tau = max(mu / s0, 2.0 * norm) if s0 > 0 else 0.0
        return Point(
            p=p, n=p.copy(), free=np.zeros_like(p), zp=z, zn=z.copy(), e=np.zeros_like(a), a=a,
            b=b, za=za, zb=zb, theta=theta, s0=s0, tau=tau,
        )  # fmt: skip

    def targets(self, at: Point) -> Array:
        """Return k, the point of the box, shape (m, P)."""
        inner = np.where(
            self.has_upper, self.upper - at.a, self.lower + np.where(self.has_lower, at.b, 0.0)
        )
        return inner

    def residuals(self, at: Point) -> tuple[Array, Array, Array]:
        """Return what the rows lack, and the inputs' dual conditions of p and of n."""
        program = self.program
        rows = at.weights() @ program.X.T - at.e - self.targets(at)
        rows[self.free_rows] = 0.0
        slopes = at.theta @ program.X
        return rows, program.cost + slopes - at.zp, program.cost - slopes - at.zn

    def mu(self, at: Point) -> float:
        """Return the mean complementarity."""
        total = np.sum(at.p * at.zp) + np.sum(at.n * at.zn)
        total += np.sum((at.a * at.za)[self.has_upper]) + np.sum((at.b * at.zb)[self.has_lower])
        if self.cone:
            total += at.s0 * at.tau - np.sum((at.e * at.theta)[self.program.ball])
        return float(total) / max(self.count, 1)

    def merit(self, at: Point) -> float:
        """Return the largest of the relative residuals and the relative gap."""
        program = self.program
        rows, rp, rn = self.residuals(at)
        paid = self.paid
        small = self.size if program.epsilon is None else max(program.epsilon, 1e-6 * self.size)
        primal = float(np.linalg.norm(rows)) / small
        if self.cone:
            primal = max(primal, abs(at.s0 - float(program.epsilon or 0.0)) / small)
        dual = max(
            float(np.max(np.abs(rp) / np.where(paid, program.cost, 1.0), where=paid, initial=0.0)),
            float(np.max(np.abs(rn) / np.where(paid, program.cost, 1.0), where=paid, initial=0.0)),
        )
        size = float(np.linalg.norm(at.theta))
        free = float(np.max(np.abs(rp), where=self.free, initial=0.0)) / max(size, 1e-300)
        objective = float(np.sum(program.cost * np.abs(at.weights())))
        if program.lambda_ is not None:
            objective += float(np.sum(at.e[program.ball] ** 2)) / (2.0 * program.lambda_)
            error = np.linalg.norm((at.e - program.lambda_ * at.theta)[program.ball])
            primal = max(primal, float(error) / self.size)
        gap = self.mu(at) * self.count / max(objective, 1e-12 * self.value)
        return max(primal, dual, free if size > 1e-12 * self.unit else 0.0, gap)

    # The method -------------------------------------------------------------------------------

    def solve(self) -> Point:
        """Iterate until nothing is left to gain, from several starts; return the best point."""
        best, least = self.start(), np.inf
        for value in self.values:
            self.value = value
            at, merit = self._solve_from(self.start())
            if merit < least:
                best, least = at, merit
            if least <= SOLVED:
                break
        return best

    def _solve_from(self, at: Point) -> tuple[Point, float]:
        best, least, since = at, np.inf, 0
        with np.errstate(all="ignore"):
            for _ in range(ITERATIONS):
                merit = self.merit(at)
                if not np.isfinite(merit):
                    break
                since = 0 if merit < 0.5 * least else since + 1
                if merit < least:
                    best, least = at, merit
                if least <= DONE or since > PATIENCE:
                    break
                try:
                    new = self.advance(at)
                except (np.linalg.LinAlgError, ValueError):
                    break
                if new is None:
                    break
                at = new
        return best, least

    def advance(self, at: Point) -> Point | None:
        """Take one predictor-corrector step."""
        system = System(self, at)
        mu = self.mu(at)
        affine = system.step(0.0, None)
        if affine is None:
            return None
        primal, dual = self.reach(at, affine)
        sigma = 0.0
        if self.count:
            after = self.mu(at.moved(affine, primal, dual))
            sigma = min(max(after / mu, 0.0), 1.0) ** 3 if mu > 0 else 0.0
        step = system.step(sigma * mu, affine)
        if step is None:
            return None
        primal, dual = (min(1.0, REACH * length) for length in self.reach(at, step))
        if min(primal, dual) < SHORT and self.count:
            # Near a corner of the central path: back to its middle first.
            centred = system.step(CENTRED * mu, None)
            if centred is not None:
                first, second = (min(1.0, REACH * length) for length in self.reach(at, centred))
                if min(first, second) > min(primal, dual):
                    step, primal, dual = centred, first, second
        return at.moved(step, primal, dual)

    def reach(self, at: Point, step: Point) -> tuple[float, float]:
        """Return how far primal and dual may go, at most 1 / REACH."""
        most = 1.0 / REACH
        primal = min(
            _positive(at.p, step.p, self.paid), _positive(at.n, step.n, self.paid),
            _positive(at.a, step.a, self.has_upper), _positive(at.b, step.b, self.has_lower), most,
        )  # fmt: skip
        dual = min(
            _positive(at.zp, step.zp, self.paid), _positive(at.zn, step.zn, self.paid),
            _positive(at.za, step.za, self.has_upper), _positive(at.zb, step.zb, self.has_lower),
            most,
        )  # fmt: skip
        if self.cone:
            ball = self.program.ball
            primal = min(primal, in_cone(at.s0, at.e[ball], step.s0, step.e[ball]))
            dual = min(dual, in_cone(at.tau, at.theta[ball], step.tau, step.theta[ball]))
        elif self.program.lambda_ is not None:
            primal = dual = min(primal, dual)
        return primal, dual


def _positive(values: Array, steps: Array, where: Mask) -> float:
    """Return how far a step may go before an entry vanishes."""
    falling = where & (steps < 0)
    return float(np.min(values[falling] / -steps[falling], initial=np.inf))
