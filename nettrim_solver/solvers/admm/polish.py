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
from numpy.typing import NDArray

from .. import kernels
from .factorisation import Factorisation
from .model import STIFFNESS, Model
from .working_set import WorkingSet

Array = NDArray[np.float64]

#: Supports up to this size are factorised in float64 from the start: there it costs nothing.
SMALL_SUPPORT = 96

#: Damping of the steps, a proximal term relative to the diagonal of H: least that counts, factor
#: after a good step, first value, factor after a bad step.
DAMPING = (1e-6, 0.1, 1e-3, 30.0)

#: Relative rise of the merit that is still rounding.
MERIT_SLACK = 1e-9

#: Factor by which the residual of an output with hard rows may rise in a good step, above a floor.
RESIDUAL_SLACK = 3.0
RESIDUAL_FLOOR = 1e-4

#: A column enters when |x_i^T y| exceeds lambda c_i by this factor.
ENTER = 1.0 + 1e-10


@dataclass
class Group:
    """Some outputs in scaled coordinates, and where their conditions stand.

    Shapes: ``m`` outputs, ``P`` samples, ``N`` inputs; float64. ``epsilon`` is the radius
    to be met with equality, infinite where the multiplier is given (penalised, a joint radius, a
    ball that is not active); ``radius`` the one to be kept; ``scale`` is what violations are
    measured against; ``nu`` holds y on hard rows.
    """

    lower: Array
    upper: Array
    penalty: Array
    epsilon: Array
    radius: Array
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
        self.systems: list[WorkingSet | None] = [None] * m
        self.saved: list[tuple[Array, float, float, Array | None] | None] = [None] * m
        self.merit = np.full((m, 2), np.inf)
        self.damping = np.zeros(m)
        self.cautious = np.zeros(m, dtype=bool)


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
        for j in active[solved]:
            group.systems[j] = None
        if sweep == tolerances.sweeps:
            return
        left = ~solved
        left[left] = _judge_steps(group, active[left])
        stay = left.copy()
        for k in np.flatnonzero(left):
            j = active[k]
            stay[k] = _newton(factorisation, group, j, gradient[k], imbalance[k], Z[k], sweep)
        # Rejected steps were taken back; those outputs are evaluated anew, with more damping.
        stay |= ~solved & ~left
        active = active[stay]
        if len(active) == 0:
            return


def _judge_steps(group: Group, active: NDArray[Any]) -> NDArray[np.bool_]:
    """Take back the steps that made things worse; return which were kept.

    The merit ``lambda sum c |V| + ||E||^2 / 2``, at the new lambda, is what a step minimises on its
    pattern; a step that raises it has met another pattern, and is undone and damped. With hard
    rows,
    whose multipliers are part of the step, the conditions' own residual takes the merit's place.
    """
    merit = np.zeros((len(active), 2))
    if group.hard is None:
        merit[:, 0] = np.sum(group.penalty[active] * np.abs(group.V[active]), axis=1)
        merit[:, 1] = 0.5 * group.squares[active, 0]
        lambda_, slack = group.lambda_[active], 1.0 + MERIT_SLACK
    else:
        equality = np.isfinite(group.epsilon[active])
        ball = np.abs(
            np.sqrt(group.squares[active, 0]) - np.where(equality, group.epsilon[active], 0)
        )
        merit[:, 1] = (
            np.minimum(group.residual[active], 1.0)
            + (np.where(equality, ball, 0.0) + np.sqrt(group.squares[active, 1]))
            / group.scale[active]
        )
        lambda_, slack = np.zeros(len(active)), RESIDUAL_SLACK
    new = lambda_ * merit[:, 0] + merit[:, 1]
    first = ~np.isfinite(group.merit[active, 1])
    with np.errstate(invalid="ignore"):
        old = lambda_ * group.merit[active, 0] + group.merit[active, 1]
        kept = first | (new <= slack * old + RESIDUAL_FLOOR * (slack - 1.0))
    if group.hard is not None:
        # Single changes are an active set method of its own: its residual need not fall each time.
        kept |= group.cautious[active]
    good, bad, settled = active[kept], active[~kept], active[kept & ~first]
    group.merit[good] = merit[kept]
    eased = group.damping[settled] * DAMPING[1]
    group.damping[settled] = np.where(eased > DAMPING[0], eased, 0.0)
    for j in bad:
        saved = group.saved[j]
        assert saved is not None
        group.V[j], group.beta[j], group.lambda_[j], nu = saved
        if group.nu is not None:
            group.nu[j] = nu
        group.damping[j] = max(DAMPING[2], group.damping[j] * DAMPING[3])
        group.merit[j] = np.inf
        group.cautious[j] = True
    return kept


def evaluate(
    factorisation: Factorisation, group: Group, active: NDArray[Any]
) -> tuple[Array, Array, Array]:
    """Evaluate y and its products for some outputs, in float64.

    Returns ``X~^T y`` of shape (m, N), the row sums of y (which an intercept wants to be zero), and
    the pre-activations (m, P).
    """
    Z, shift = factorisation.forward(group.V[active])
    Z += (shift + group.beta[active])[:, None]
    y, squares = np.empty_like(Z), np.empty((len(active), 3))
    hard = None if group.hard is None else group.hard[active]
    kernels.excess(
        Z, np.zeros(len(active)), group.lower[active], group.upper[active], False, y, squares
    )
    if hard is not None:
        assert group.nu is not None
        squares[:, 1] = np.sum(np.square(y, where=hard, out=np.zeros_like(y)), axis=1)
        squares[:, 0] -= squares[:, 1]
        squares[:, 0] = np.maximum(squares[:, 0], 0.0)
        y = np.where(hard, group.nu[active], y)
    group.y[active], group.squares[active] = y, squares
    sums = y.sum(axis=1) if factorisation.intercept else np.zeros(len(y))
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
    kept = (ball - group.radius[active] <= tolerances.feas * scale) & (
        excess <= tolerances.feas * scale
    )
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        limit = lambda_[:, None] * penalty
        slopes = np.abs(gradient)
        ratio = np.where(
            limit > 0, slopes / limit, np.where(slopes > 1e-9 * ball[:, None], np.inf, 0)
        )
        ratio = ratio.max(axis=1)
        ends = np.where(y > 0, group.upper[active], group.lower[active])
        support = np.sum(np.where(y != 0, y * ends, 0.0), axis=1)
        if group.hard is not None:
            force = np.sqrt(np.sum(np.where(group.hard[active], 0.0, y) ** 2, axis=1))
        else:
            force = np.linalg.norm(y, axis=1)
        constrained = (-support - np.where(bounded, epsilon, 0.0) * force) / (
            lambda_ * np.maximum(ratio, 1e-300)
        )
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
    cautious = bool(group.cautious[j]) and group.hard is not None
    most = 1 if cautious else None
    support = _support(V, gradient, penalty, lambda_, factorisation.live, enter, most)
    constant = int(factorisation.intercept)
    if len(support) + constant == 0:
        return False
    hard = None if group.hard is None else group.hard[j]
    weights, sides = _rows(group, j, Z, cautious)
    system = _system(factorisation, group, j, support, weights)
    nu = None if group.nu is None else group.nu[j].copy()
    group.saved[j] = (V.copy(), float(group.beta[j]), lambda_, nu)
    columns = system.columns
    signs = np.where(V[columns] != 0, np.sign(V[columns]), -np.sign(gradient[columns]))
    zeros = np.zeros(constant)
    model = Model(
        system,
        right=np.append(np.full(constant, imbalance), gradient[columns]),
        cost=np.append(zeros, penalty[columns] * signs),
        start=np.append(zeros, V[columns]),
        lambda_=lambda_,
        cautious=cautious,
    )
    if hard is not None:
        stiff = np.flatnonzero(sides)
        ends = np.where(sides[stiff] > 0, group.upper[j, stiff], group.lower[j, stiff])
        model.add_stiff_rows(stiff, y[stiff], Z[stiff] - ends, np.sign(sides[stiff]))
    radius = group.epsilon[j] if np.isfinite(group.epsilon[j]) else None
    step = model.solve(float(group.squares[j, 0]), radius)
    if step is None:
        return False
    group.lambda_[j] = lambda_ + step.change
    if group.nu is not None:
        group.nu[j] = 0.0
        multipliers = model.multipliers(step.delta)
        group.nu[j, model.stiff] = np.where(multipliers * model.signs > 0, multipliers, 0.0)
    V[columns] = np.where(step.dropped[constant:], 0.0, V[columns] - step.delta[constant:])
    group.double[j] |= sweep >= 4
    group.tangent[j] = 0.0
    group.tangent[j, columns] = step.tangent[constant:]
    if constant:
        group.beta[j] -= step.delta[0]
        group.tangent_beta[j] = step.tangent[0]
    return True


def _rows(group: Group, j: int, Z: Array, cautious: bool) -> tuple[Array, Array]:
    """Return the rows' weights in the model of output j, and the sides its hard rows press on.

    Ball rows work where matched or outside the box. Hard rows work (as equalities) where they have
    a multiplier or are violated; a cautious step adds the worst of these alone.
    """
    y, fixed = group.y[j], group.lower[j] == group.upper[j]
    if group.hard is None:
        return ((y != 0) | fixed).astype(np.float64), np.zeros(0)
    hard = group.hard[j]
    weights = ((y != 0) | (fixed & ~hard)).astype(np.float64)
    excess = Z - np.clip(Z, group.lower[j], group.upper[j])
    if cautious:
        worst = np.argmax(np.where(hard & (y == 0), np.abs(excess), 0.0))
        excess = np.where(np.arange(len(y)) == worst, excess, 0.0)
    sides = np.where(hard, np.where(y != 0, y, excess), 0.0)
    weights[sides != 0] = STIFFNESS
    return weights, sides


def _system(
    factorisation: Factorisation, group: Group, j: int, support: NDArray[np.int64], weights: Array
) -> WorkingSet:
    """Return the linear system of output j, kept from the last sweep where there is one."""
    system = group.systems[j]
    if system is None or (group.double[j] and system.dtype != np.float64):
        double = group.hard is not None or group.double[j] or len(support) <= SMALL_SUPPORT
        system = WorkingSet(factorisation, np.float64 if double else np.float32)
        group.systems[j] = system
    system.update(support, weights)
    system.damp(float(group.damping[j]))
    return system


def _support(
    V: Array, gradient: Array, penalty: Array, lambda_: float, live: NDArray[np.bool_], enter: bool,
    most: int | None,
) -> NDArray[np.int64]:  # fmt: skip
    """Return the working columns: the support, and the worst of those that violate optimality."""
    inside = (V != 0) | ((penalty == 0) & live)
    if enter:
        excess = np.where(inside, 0.0, np.abs(gradient) - ENTER * lambda_ * penalty)
        candidates = np.flatnonzero((excess > 0) & live)
        limit = max(16, int(np.count_nonzero(inside)) // 2) if most is None else most
        if len(candidates) > limit:
            candidates = candidates[np.argsort(-excess[candidates], kind="stable")[:limit]]
        inside[candidates] = True
    return np.flatnonzero(inside)
