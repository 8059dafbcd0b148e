r"""Exact solutions from a rough iterate: a semismooth Newton method on the optimality conditions.

In the scaled coordinates of :mod:`.factorisation`, with the working rows A (matched, or outside the
box), the support T and its signs s, one output's conditions at multiplier :math:`\lambda` are

.. math::

    \tilde X_T^T y + \lambda c_T s = 0, \quad 1^T y = 0, \quad
    |\tilde x_i^T y| \le \lambda c_i \; (i \notin T), \quad \|y\|_{ball} = \epsilon,

where y is the distance to the box on the ball's rows and the multiplier times lambda on hard rows
(theta = y / lambda). A sweep evaluates them in float64 for a group of outputs at once (one product
with X, one with its transpose) and then takes, output by output, the Newton step

.. math::

    H \delta = \tilde X_T^T y + \lambda c_T s + (\lambda^+ - \lambda) c_T s, \qquad
    H = \tilde X_{AT}^T R \tilde X_{AT},

with the new multiplier from the scalar quadratic of the ball. Hard rows are augmented-Lagrangian
rows of weight R (``STIFFNESS``) whose box is shifted by their multipliers, so that one code
serves the pooled, the strict, the penalised and the zero-radius forms. H may be factorised in
float32: it is only the preconditioner of the exactly evaluated conditions.

Nothing is accepted here but answers whose gap and violation are within tolerance.

References
----------
Aghasi et al. (2017, 2018) for the program; Hintermueller, Ito, Kunisch, *The primal-dual active set
strategy as a semismooth Newton method*, SIAM J. Optim. 13 (2002), for the method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg as la
import scipy.sparse as sp
from numpy.typing import NDArray

from . import kernels
from .factorisation import Factorisation

Array = NDArray[np.float64]

#: Weight of a hard row against a ball row. The multipliers converge by about this factor a sweep.
STIFFNESS = 1e3

#: Supports up to this size are factorised in float64 from the start: there it costs nothing.
SMALL_SUPPORT = 96

#: Ridge on H, relative to its largest diagonal entry: keeps dependent columns solvable. It slows
#: only the directions that are flatter than itself.
RIDGE = {np.dtype(np.float32): 2e-6, np.dtype(np.float64): 1e-13}

#: Largest relative change of lambda in one step: the iterate's estimate is a good one, and near a
#: support that is too small the ball's quadratic is not.
LAMBDA_CHANGE = 0.1

#: Times that columns may be dropped, and the rest solved for again, within one step.
DROP_ROUNDS = 6

#: An attempt is given up when the distance leaves epsilon by this factor: its pattern is lost.
LOST = 1.3

#: A column enters when |x_i^T y| exceeds lambda c_i by this factor.
ENTER = 1.0 + 1e-10


@dataclass
class Group:
    """Some outputs in scaled coordinates, and where their conditions stand.

    Shapes: ``m`` outputs, ``P`` samples, ``N`` inputs; float64. ``epsilon`` is infinite where the
    multiplier is given (penalised, or a joint radius); ``scale`` is
    what violations are measured against; ``nu`` holds y on hard rows.
    """

    lower: Array
    upper: Array
    penalty: Array
    epsilon: Array
    scale: Array
    hard: NDArray[np.bool_] | None
    V: Array
    beta: Array
    lambda_: Array
    nu: Array | None

    def __post_init__(self) -> None:
        m, _ = self.lower.shape
        self.tangent = np.zeros_like(self.V)
        self.tangent_beta = np.zeros(m)
        self.y = np.zeros_like(self.lower)
        self.proved = np.zeros(m, dtype=bool)
        self.squares = np.zeros((m, 3))
        self.residual = np.full(m, np.inf)
        self.double = np.zeros(m, dtype=bool)


@dataclass(frozen=True)
class Tolerances:
    """What counts as solved here: a safe part of what the judge allows, and the sweep limit."""

    gap: float
    feas: float
    sweeps: int


def polish(factorisation: Factorisation, group: Group, tolerances: Tolerances) -> None:
    """Sweep until every output of the group is proved or the sweeps are used up, in place."""
    active = np.arange(len(group.V))
    for sweep in range(tolerances.sweeps + 1):
        gradient, imbalance, Z = evaluate(factorisation, group, active)
        solved = _solved(group, active, gradient, imbalance, tolerances)
        group.proved[active[solved]] = True
        if sweep == tolerances.sweeps:
            return
        left = ~solved
        active, gradient, imbalance, Z = active[left], gradient[left], imbalance[left], Z[left]
        if sweep > 0:
            ratio = np.sqrt(group.squares[active, 0]) / group.epsilon[active]
            left = (ratio < LOST) | ~np.isfinite(group.epsilon[active])
            active, gradient, imbalance, Z = active[left], gradient[left], imbalance[left], Z[left]
        if len(active) == 0:
            return
        keep = np.ones(len(active), dtype=bool)
        for k, j in enumerate(active):
            keep[k] = _newton(factorisation, group, j, gradient[k], imbalance[k], Z[k], sweep)
        active = active[keep]
        if len(active) == 0:
            return


def evaluate(
    factorisation: Factorisation, group: Group, active: NDArray[Any]
) -> tuple[Array, Array, Array]:
    """Evaluate y and its products for some outputs, in float64.

    Returns ``X~^T y`` of shape (m, N), the row sums of y, and the pre-activations (m, P).
    """
    Z, shift = factorisation.forward(group.V[active])
    Z += (shift + group.beta[active])[:, None]
    y, squares = np.empty_like(Z), np.empty((len(active), 3))
    hard = None if group.hard is None else group.hard[active]
    kernels.excess(Z, np.zeros(len(active)), group.lower[active], group.upper[active], False, y, squares)
    if hard is not None:
        assert group.nu is not None
        squares[:, 1] = np.sum(np.square(y, where=hard, out=np.zeros_like(y)), axis=1)
        squares[:, 0] -= squares[:, 1]
        squares[:, 0] = np.maximum(squares[:, 0], 0.0)
        y = np.where(hard, group.nu[active], y)
    group.y[active], group.squares[active] = y, squares
    sums = y.sum(axis=1)
    return factorisation.adjoint(y, sums), sums, Z


def _solved(
    group: Group, active: NDArray[Any], gradient: Array, imbalance: Array, tolerances: Tolerances
) -> NDArray[np.bool_]:
    """Return which outputs satisfy the conditions, by their gap and violation."""
    V, y, lambda_ = group.V[active], group.y[active], group.lambda_[active]
    penalty, epsilon = group.penalty[active], group.epsilon[active]
    ball, excess = np.sqrt(group.squares[active, 0]), np.sqrt(group.squares[active, 1])
    objective = np.sum(penalty * np.abs(V), axis=1)
    bounded = np.isfinite(epsilon)
    scale = group.scale[active]
    kept = (ball - epsilon <= tolerances.feas * scale) & (excess <= tolerances.feas * scale)
    with np.errstate(divide="ignore", invalid="ignore"):
        limit = lambda_[:, None] * penalty
        slopes = np.abs(gradient)
        ratio = np.where(limit > 0, slopes / limit, np.where(slopes > 1e-9 * ball[:, None], np.inf, 0))
        ratio = ratio.max(axis=1)
        ends = np.where(y > 0, group.upper[active], group.lower[active])
        support = np.sum(np.where(y != 0, y * ends, 0.0), axis=1)
        if group.hard is not None:
            force = np.sqrt(np.sum(np.where(group.hard[active], 0.0, y) ** 2, axis=1))
        else:
            force = np.linalg.norm(y, axis=1)
        constrained = (-support - np.where(bounded, epsilon, 0.0) * force) / (lambda_ * np.maximum(ratio, 1e-300))
        penalised = -support / np.maximum(ratio, 1.0) - 0.5 * (force / np.maximum(ratio, 1.0)) ** 2
        bound = np.where(bounded, constrained, penalised / lambda_)
        value = np.where(bounded, objective, objective + 0.5 * ball**2 / lambda_)
        gap = np.abs(value - bound) / np.maximum(value, 1e-300)
    size = np.sqrt(y.shape[1]) * np.linalg.norm(y, axis=1)
    balanced = np.abs(imbalance) <= 1e-9 * size + 1e-300
    gap = np.where((value == 0) & kept, 0.0, np.where(balanced, gap, np.inf))
    group.residual[active] = np.where(np.isfinite(gap), gap, np.inf)
    return kept & (gap <= tolerances.gap)


def _newton(
    factorisation: Factorisation,
    group: Group,
    j: int,
    gradient: Array,
    imbalance: float,
    Z: Array,
    sweep: int,
) -> bool:
    """Take one Newton step for output j, in place; return whether another sweep may help."""
    V, y, penalty, lambda_ = group.V[j], group.y[j], group.penalty[j], group.lambda_[j]
    enter = sweep > 0 or not V.any()
    support, signs = _support(V, gradient, penalty, lambda_, factorisation.live, enter)
    constant = int(factorisation.intercept)
    if len(support) + constant == 0:
        return False
    hard = None if group.hard is None else group.hard[j]
    fixed = group.lower[j] == group.upper[j]
    working = (y != 0) | (fixed if hard is None else fixed & ~hard)
    stiff = None
    if hard is not None:
        sides = np.where(hard, np.where(y != 0, y, Z - np.clip(Z, group.lower[j], group.upper[j])), 0.0)
        stiff = np.flatnonzero(sides)
        working[stiff] = True
    dtype = np.dtype(np.float32)
    if hard is not None or group.double[j] or len(support) <= SMALL_SUPPORT:
        dtype = np.dtype(np.float64)
    H = working_gram(factorisation, working, support, stiff, dtype)
    cost = np.append(penalty[support] * signs, np.zeros(constant))
    right = np.append(gradient[support], [imbalance] * constant)
    model = _Model(H, right, cost, np.append(V[support], np.zeros(constant)), lambda_)
    if stiff is not None:
        assert group.nu is not None
        ends = np.where(sides[stiff] > 0, group.upper[j, stiff], group.lower[j, stiff])
        model.add_stiff_rows(
            gather(factorisation, stiff, support, np.dtype(np.float64)),
            y[stiff], Z[stiff] - ends, np.sign(sides[stiff]), stiff,
        )  # fmt: skip
    radius = group.epsilon[j] if np.isfinite(group.epsilon[j]) else None
    step = model.solve(float(group.squares[j, 0]), radius)
    if step is None:
        return False
    group.lambda_[j] = lambda_ + step.change
    if group.nu is not None:
        group.nu[j] = 0.0
        group.nu[j, model.indices] = model.multipliers(step.delta)
    V[support] = np.where(step.dropped[: len(support)], 0.0, V[support] - step.delta[: len(support)])
    group.double[j] |= sweep >= 4
    group.tangent[j] = 0.0
    group.tangent[j, support] = step.tangent[: len(support)]
    if constant:
        group.beta[j] -= step.delta[-1]
        group.tangent_beta[j] = step.tangent[-1]
    return True


@dataclass(frozen=True)
class _Step:
    """A step ``V - delta``, what it drops, the change of lambda, and ``-dV / dlambda``."""

    delta: Array
    dropped: NDArray[np.bool_]
    change: float
    tangent: Array


class _Model:
    """The quadratic model of one output on its working columns and rows.

    Solved as an active set does: columns whose sign would flip are set to zero, hard rows whose
    multiplier would change sign are released, and the rest is solved for again, until nothing flips.
    """

    def __init__(
        self, H: NDArray[Any], right: Array, cost: Array, start: Array, lambda_: float
    ) -> None:
        self.H, self.right, self.cost, self.start, self.lambda_ = H, right, cost, start, lambda_
        self.rows = np.zeros((0, len(right)))
        self.force = self.signs = np.zeros(0)
        self.indices = np.zeros(0, dtype=np.int64)

    def add_stiff_rows(
        self, rows: Array, y: Array, excess: Array, signs: Array, indices: NDArray[np.int64]
    ) -> None:
        """Make rows of the model equalities: ``rows @ step = excess``, multipliers near y."""
        self.right = self.right + rows.T @ (STIFFNESS * excess)
        self.rows, self.force = rows, y + STIFFNESS * excess
        self.signs, self.indices = signs, indices

    def multipliers(self, delta: Array) -> Array:
        """Return the multipliers of the stiff rows after a step."""
        return self.force - STIFFNESS * (self.rows @ delta)

    def solve(self, square: float, epsilon: float | None) -> _Step | None:
        """Return the step from a point whose ball rows have the given squared norm."""
        n = len(self.right)
        free = np.ones(n, dtype=bool)
        for _ in range(DROP_ROUNDS):
            u, v = np.where(free, 0.0, self.start), np.zeros(n)
            H, target = self.H, self.right + self.lambda_ * self.cost
            if not free.any():
                return _Step(u, ~free, 0.0, v)
            if not free.all():
                H = np.asfortranarray(self.H[np.ix_(free, free)])
                target = (target - self._product(u))[free]
            factor = _cholesky(H)
            if factor is None:
                return None
            u[free] = _solve(factor, target)
            v[free] = _solve(factor, self.cost[free])
            change = 0.0 if epsilon is None else self._change(u, v, square, epsilon)
            delta = u + change * v
            if not np.isfinite(delta).all():
                return None
            flipped = free & (self.cost * (self.start - delta) < 0)
            free &= ~flipped
            if not (self._release(delta) or flipped.any()):
                break
        return _Step(delta, ~free, change, v)

    def _release(self, delta: Array) -> bool:
        """Take out the hard rows whose multiplier would change sign; return whether there are any."""
        wrong = self.multipliers(delta) * self.signs < 0
        if not wrong.any():
            return False
        out = self.rows[wrong]
        self.right = self.right - out.T @ self.force[wrong]
        self.H = la.blas.dsyrk(
            -STIFFNESS, out, beta=1.0, c=self.H, trans=1, lower=1, overwrite_c=1
        )
        for name in ("rows", "force", "signs", "indices"):
            setattr(self, name, getattr(self, name)[~wrong])
        return True

    def _product(self, x: Array) -> Array:
        symv = la.blas.ssymv if self.H.dtype == np.float32 else la.blas.dsymv
        return symv(1.0, self.H, x.astype(self.H.dtype), lower=1).astype(np.float64)

    def _change(self, u: Array, v: Array, square: float, epsilon: float) -> float:
        """Return the change of lambda after which the ball rows have norm epsilon.

        On fixed patterns ``||E - X~ (u + d v)||^2`` is a quadratic in d; its upper root is wanted,
        since the distance grows with lambda. Without a root the support is too small: lambda
        shrinks as far as one step may, which lets columns in.
        """
        Hu, Hv = self._product(u), self._product(v)
        # The model of the ball rows alone: without the stiff ones.
        ball = self.right - self.rows.T @ self.force
        bu, bv = self.rows @ u, self.rows @ v
        uu, uv, vv = (
            u @ Hu - STIFFNESS * (bu @ bu), u @ Hv - STIFFNESS * (bu @ bv),
            v @ Hv - STIFFNESS * (bv @ bv),
        )  # fmt: skip
        constant = square - 2.0 * (ball @ u) + uu - epsilon**2
        linear = 2.0 * (uv - ball @ v)
        if vv <= 0.0:
            return 0.0
        root = linear**2 - 4.0 * vv * constant
        change = (-linear + np.sqrt(root)) / (2.0 * vv) if root >= 0.0 else -np.inf
        most = LAMBDA_CHANGE * self.lambda_
        return float(np.clip(change, -most, most))


def _support(
    V: Array, gradient: Array, penalty: Array, lambda_: float, live: NDArray[np.bool_], enter: bool
) -> tuple[NDArray[np.int64], Array]:
    """Return the working columns and their signs: the support, and those that violate optimality."""
    signs = np.sign(V)
    inside = (V != 0) | ((penalty == 0) & live)
    if enter:
        excess = np.where(inside, 0.0, np.abs(gradient) - ENTER * lambda_ * penalty)
        candidates = np.flatnonzero((excess > 0) & live)
        most = max(16, np.count_nonzero(inside) // 2)
        if len(candidates) > most:
            candidates = np.sort(candidates[np.argsort(-excess[candidates], kind="stable")[:most]])
        inside[candidates] = True
        signs[candidates] = -np.sign(gradient[candidates])
    support = np.flatnonzero(inside)
    return support, np.where(penalty[support] > 0, signs[support], 0.0)


def working_gram(
    factorisation: Factorisation,
    working: NDArray[np.bool_],
    support: NDArray[np.int64],
    stiff: NDArray[np.int64] | None,
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    """Return ``X~_AT^T R X~_AT`` with the intercept's row behind; the lower triangle counts.

    Taken from the Gram matrix of all rows by removing the idle ones when those are fewer.
    """
    constant = int(factorisation.intercept)
    n = len(support) + constant
    syrk = la.blas.ssyrk if dtype == np.float32 else la.blas.dsyrk
    rows = np.flatnonzero(working)
    idle = len(working) - len(rows)
    if stiff is None and factorisation.gram is not None and idle < len(rows):
        H = np.zeros((n, n), dtype=dtype, order="F")
        H[: len(support), : len(support)] = factorisation.gram[np.ix_(support, support)]
        if constant:
            H[-1, -1] = len(working)
        if idle == 0:
            return H
        block = gather(factorisation, np.flatnonzero(~working), support, dtype)
        return syrk(-1.0, block.T, beta=1.0, c=H, lower=1, overwrite_c=1)
    block = gather(factorisation, rows, support, dtype)
    if stiff is not None and len(stiff):
        block[np.searchsorted(rows, stiff)] *= np.sqrt(STIFFNESS)
    return syrk(1.0, block.T, lower=1)


def gather(
    factorisation: Factorisation,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    """Return rows and columns of the scaled design, with the intercept's ones behind."""
    constant = int(factorisation.intercept)
    out = np.empty((len(rows), len(columns) + constant), dtype=dtype)
    scale = 1.0 / factorisation.norm
    X = factorisation.X
    if sp.issparse(X):
        chosen = X[rows][:, columns].toarray()
        out[:, : len(columns)] = (chosen - factorisation.mean[columns]) * scale[columns]
        out[:, len(columns) :] = 1.0
    else:
        kernels.gather(X, rows, columns, factorisation.mean, scale, constant, out)
    return out


def _cholesky(H: NDArray[Any]) -> NDArray[Any] | None:
    """Return the lower Cholesky factor of H plus a ridge, which grows until H is definite."""
    potrf = la.lapack.spotrf if H.dtype == np.float32 else la.lapack.dpotrf
    diagonal = np.diag_indices_from(H)
    original = H[diagonal].copy()
    if not (np.isfinite(original).all() and original.max() > 0):
        return None
    ridge = RIDGE[H.dtype]
    for _ in range(6):
        H[diagonal] = original + ridge * np.maximum(original, original.mean())
        factor, info = potrf(H, lower=1, clean=0, overwrite_a=0)
        if info == 0:
            return factor
        ridge *= 30.0
    return None


def _solve(factor: NDArray[Any], right: Array) -> NDArray[Any]:
    potrs = la.lapack.spotrs if factor.dtype == np.float32 else la.lapack.dpotrs
    solution, _ = potrs(factor, right.astype(factor.dtype), lower=1)
    return solution
