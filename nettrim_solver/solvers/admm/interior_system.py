"""The linear system of the interior-point method: one point, factorised once for both steps.

The formulas are in :mod:`.interior_point`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.linalg as la
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .interior_point import InteriorPoint, Point

Array = NDArray[np.float64]

#: Least compliance of a row and least barrier of an input: proximal terms, which fade with the
#: steps and keep dependent rows and inputs solvable.
LEAST_COMPLIANCE = 1e-15
LEAST_BARRIER = 1e-15


class System:
    """The linear system of one point: factorised once, solved for both steps."""

    def __init__(self, method: InteriorPoint, at: Point) -> None:
        self.method, self.at, program = method, at, method.program
        self.program, ball = program, program.ball
        stiffness = np.where(method.has_upper, at.za / at.a, 0.0)
        stiffness += np.where(method.has_lower, at.zb / at.b, 0.0)
        self.give = np.where(method.has_upper | method.has_lower, 1.0 / stiffness, 0.0)
        compliance = self.give.copy()
        self.u = np.zeros_like(compliance)
        if method.cone:
            self._scale_cone()
            compliance[ball] += self.eta**2
            self.u[ball] = self.eta * np.sqrt(2.0 / (2.0 * self.w0**2 - 1.0)) * self.w1
        elif program.lambda_ is not None:
            compliance[ball] += program.lambda_
        floor = LEAST_COMPLIANCE * method.size / method.unit
        self.compliance = np.where(method.free_rows, np.inf, np.maximum(compliance, floor))
        self.q = self.u / self.compliance
        #: 1 / (1 - u' D^-1 u), without cancellation where the compliance is the cone's alone.
        self.alpha = 0.0
        if method.cone:
            rest = np.sum(self.w1**2 * (1.0 - self.eta**2 / self.compliance[ball]))
            self.alpha = (2.0 * self.w0**2 - 1.0) / (1.0 + 2.0 * rest)
        self.spread = np.where(method.paid, at.p / np.where(method.paid, at.zp, 1.0), 0.0)
        self.spread += np.where(method.paid, at.n / np.where(method.paid, at.zn, 1.0), 0.0)
        barrier = np.where(method.paid, 1.0 / np.where(method.paid, self.spread, 1.0), 0.0)
        barrier = np.maximum(barrier, LEAST_BARRIER * method.unit / method.size)
        self.barrier = np.where(method.absent, 1.0, barrier)
        self.factors = [self._factorise(j) for j in range(len(compliance))]
        self.t_solution: list[Any] = [
            self._least_squares(j, self.u[j] / np.sqrt(self.compliance[j]), None)
            if method.cone else None
            for j in range(len(compliance))
        ]  # fmt: skip

    def _scale_cone(self) -> None:
        at, ball = self.at, self.program.ball
        e, z1 = at.e[ball], -at.theta[ball]
        s_length, z_length = cone_length(at.s0, e), cone_length(at.tau, z1)
        s_bar, z_bar = np.append(at.s0, e) / s_length, np.append(at.tau, z1) / z_length
        gamma = np.sqrt(0.5 * (1.0 + s_bar @ z_bar))
        self.eta = float(np.sqrt(s_length / z_length))
        w = s_bar.copy()
        w[0] += z_bar[0]
        w[1:] -= z_bar[1:]
        w /= 2.0 * gamma
        self.w1 = w[1:]
        self.w0 = float(np.sqrt(1.0 + self.w1 @ self.w1))

    def scaled(self, first: float, rest: Array, inverse: bool) -> Array:
        """Return W (or its inverse) times a vector of the cone."""
        w1 = -self.w1 if inverse else self.w1
        product = float(w1 @ rest)
        head = self.w0 * first + product
        tail = rest + (first + product / (1.0 + self.w0)) * w1
        factor = 1.0 / self.eta if inverse else self.eta
        return factor * np.append(head, tail)

    def _factorise(self, j: int) -> tuple[Any, ...]:
        """Factorise the weighted inputs of an output: rows in the order of their weight."""
        weights = 1.0 / np.sqrt(self.compliance[j])
        X = np.where(self.method.absent[j], 0.0, self.program.X)
        rows = np.concatenate([weights[:, None] * X, np.diag(np.sqrt(self.barrier[j]))])
        order = np.argsort(-np.abs(rows).max(axis=1), kind="stable")
        Q, R, places = la.qr(rows[order], mode="economic", pivoting=True, check_finite=False)
        diagonal = np.abs(np.diag(R))
        if not diagonal.size or not diagonal[-1] > 0.0:
            raise np.linalg.LinAlgError
        return Q, R, places, order

    def _least_squares(self, j: int, top: Array, bottom: Array | None) -> Array:
        """Solve for the weighted right sides of rows and barriers."""
        Q, R, places, order = self.factors[j]
        right = np.concatenate([top, np.zeros(R.shape[1]) if bottom is None else bottom])[order]
        return _unpermuted(la.solve_triangular(R, Q.T @ right, check_finite=False), places)

    def _normal(self, j: int, right: Array) -> Array:
        """Solve the normal equations for a right side of inputs."""
        _, R, places, _ = self.factors[j]
        half = la.solve_triangular(R, right[places], trans="T", check_finite=False)
        return _unpermuted(la.solve_triangular(R, half, check_finite=False), places)

    def step(self, target: float, affine: Point | None) -> Point | None:
        """Return the step towards complementarity `target`, with the affine step's second order."""
        method, at, program = self.method, self.at, self.program
        paid = method.paid
        rows, rp, rn = method.residuals(at)
        zp, zn = np.where(paid, at.zp, 1.0), np.where(paid, at.zn, 1.0)
        cp, cn = target - at.p * at.zp, target - at.n * at.zn
        ca, cb = target - at.a * at.za, target - at.b * at.zb
        if affine is not None:
            cp, cn = cp - affine.p * affine.zp, cn - affine.n * affine.zn
            ca, cb = ca - affine.a * affine.za, cb - affine.b * affine.zb
        h = np.where(paid, (cp - at.p * rp) / zp - (cn - at.n * rn) / zn, 0.0)
        ca, cb = (
            np.where(method.has_upper, ca / at.a, 0.0),
            np.where(method.has_lower, cb / at.b, 0.0),
        )
        k_part = self.give * (cb - ca)
        e_part, s0, cone = self._cone_parts(target, affine)
        right = -rows + e_part + k_part
        right[method.free_rows] = 0.0
        V, parts, curvature = np.empty_like(at.p), np.empty(len(right)), np.zeros(len(right))
        for j in range(len(right)):
            top = right[j] / np.sqrt(self.compliance[j])
            V[j] = self._least_squares(j, top, np.sqrt(self.barrier[j]) * h[j])
            if method.free[j].any():
                V[j] += self._normal(j, np.where(method.free[j], -rp[j], 0.0))
            parts[j] = self.q[j] @ (right[j] - program.X @ V[j])
            if self.t_solution[j] is not None:
                curvature[j] = self.q[j] @ (program.X @ self.t_solution[j])
        s = parts.sum() / (1.0 + self.alpha * curvature.sum())
        if method.cone:
            V += self.alpha * s * np.stack(self.t_solution)
        theta = (V @ program.X.T - right) / self.compliance - self.alpha * s * self.q
        theta[method.free_rows] = 0.0
        if not (np.isfinite(V).all() and np.isfinite(theta).all()):
            return None
        return self._expand(V, theta, (cp, cn, ca, cb, rp, rn, zp, zn), k_part, (e_part, s0, cone))

    def _cone_parts(self, target: float, affine: Point | None) -> tuple[Array, float, Array | None]:
        """Return the fixed part of e's step, that of s0, and the right side of the cone."""
        method, at, program, ball = self.method, self.at, self.program, self.program.ball
        e_part = np.zeros_like(at.e)
        if program.lambda_ is not None:
            e_part[ball] = (program.lambda_ * at.theta - at.e)[ball]
            return e_part, 0.0, None
        if not method.cone:
            return e_part, 0.0, None
        s0 = float(program.epsilon or 0.0) - at.s0
        lam = self.scaled(at.tau, -at.theta[ball], False)
        d = -_product(lam, lam)
        d[0] += target
        if affine is not None:
            d -= _product(
                self.scaled(affine.s0, affine.e[ball], True),
                self.scaled(affine.tau, -affine.theta[ball], False),
            )
        t = _quotient(lam, d)
        right = self.scaled(float(t[0]), t[1:], False)
        factor = 2.0 * self.w0 / (2.0 * self.w0**2 - 1.0)
        e_part[ball] = right[1:] - factor * (right[0] - s0) * self.w1
        return e_part, s0, right

    def _expand(
        self, V: Array, theta: Array, parts: tuple[Array, ...], k_part: Array,
        cone: tuple[Array, float, Array | None],
    ) -> Point:  # fmt: skip
        """Return the whole step from that of the weights and of theta."""
        method, at, program, ball = self.method, self.at, self.program, self.program.ball
        cp, cn, ca, cb, rp, rn, zp, zn = parts
        e_part, s0, right = cone
        slopes, paid = theta @ program.X, method.paid
        d_zp, d_zn = np.where(paid, slopes + rp, 0.0), np.where(paid, rn - slopes, 0.0)
        p = np.where(paid, (cp - at.p * d_zp) / zp, 0.0)
        n = np.where(paid, (cn - at.n * d_zn) / zn, 0.0)
        # What the two together miss of V is rounding; the larger takes it.
        miss = np.where(paid, V - (p - n), 0.0)
        p, n = np.where(at.p >= at.n, p + miss, p), np.where(at.p >= at.n, n, n - miss)
        k = k_part + self.give * theta
        za = np.where(method.has_upper, ca + at.za / at.a * k, 0.0)
        zb = np.where(method.has_lower, cb - at.zb / at.b * k, 0.0)
        e, tau = e_part, 0.0
        if program.lambda_ is not None:
            e = e + np.where(ball, program.lambda_ * theta, 0.0)
        elif right is not None:
            d, full = theta[ball], 2.0 * self.w0**2 - 1.0
            along = float(self.w1 @ d)
            e = e.copy()
            e[ball] += self.eta**2 * (d - 2.0 / full * along * self.w1)
            tau = float((right[0] - s0) / self.eta**2 + 2.0 * self.w0 * along) / full
        return type(at)(
            p=p, n=n, free=np.where(method.free, V, 0.0), zp=d_zp, zn=d_zn, e=e, a=-k, b=k,
            za=za, zb=zb,
            theta=np.where(method.matched, theta, za - zb), s0=s0, tau=tau,
        )  # fmt: skip


def _unpermuted(values: Array, places: NDArray[np.intp]) -> Array:
    result = np.empty_like(values)
    result[places] = values
    return result


def cone_length(first: float, rest: Array) -> float:
    """Return the square root of ``first^2 - ||rest||^2`` without cancellation."""
    norm = float(np.linalg.norm(rest))
    return float(np.sqrt(max((first - norm) * (first + norm), 1e-300)))


def in_cone(first: Any, rest: Array, d_first: Any, d_rest: Array) -> float:
    """Return how far a step may go before the cone's boundary."""
    first, d_first = np.float64(first), np.float64(d_first)  # whose squares may overflow
    a = d_first**2 - d_rest @ d_rest
    b = first * d_first - rest @ d_rest
    c = cone_length(first, rest) ** 2
    root = b * b - a * c
    ends: list[Any] = [-first / d_first] if d_first < 0 else []
    if a == 0.0:
        ends += [-c / (2.0 * b)] if b < 0 else []
    elif root >= 0.0:
        q = -(b + np.copysign(np.sqrt(root), b))
        ends += [end for end in (q / a, c / q if q != 0 else np.inf) if end > 0]
    return float(min(ends, default=np.inf))


def _product(x: Array, y: Array) -> Array:
    """Return the Jordan product of two vectors of the cone."""
    return np.append(x @ y, x[0] * y[1:] + y[0] * x[1:])


def _quotient(x: Array, d: Array) -> Array:
    """Return y with ``x o y = d``."""
    length = cone_length(float(x[0]), x[1:]) ** 2
    head = (x[0] * d[0] - x[1:] @ d[1:]) / length
    return np.append(head, (d[1:] - head * x[1:]) / x[0])
