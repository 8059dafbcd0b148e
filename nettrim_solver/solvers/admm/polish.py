r"""Exact solutions from a rough iterate: a semismooth Newton method on the optimality conditions.

In the scaled coordinates of :mod:`.factorisation`, with the working rows A (matched, or outside the
box), the support T and its signs s, one output's conditions at multiplier :math:`\lambda` are

.. math::

    \tilde X_T^T y + \lambda c_T s = 0, \quad 1^T y = 0, \quad
    |\tilde x_i^T y| \le \lambda c_i \; (i \notin T), \quad \|y\|_{ball} = \epsilon,

where y is the distance to the box on the ball's rows and the multiplier times lambda on hard rows
(theta = y / lambda). A sweep evaluates them in float64 for all outputs in flight at once (one
product with X, one with its transpose; an intercept is moved to where its own condition holds) and
then takes, output by output, the Newton step

.. math::

    H \delta = \tilde X_T^T y + \lambda c_T s + (\lambda^+ - \lambda) c_T s, \qquad
    H = \tilde X_{AT}^T \tilde X_{AT},

with the new multiplier from the scalar quadratic of the ball. Hard rows are equalities of the step,
with a small proximal term of their multipliers, so that one code serves the pooled, the strict, the
penalised and the zero-radius forms (:mod:`.model`). The system is factorised once and bordered from
then on (:mod:`.working_set`), in float32 where that will do: it is only the preconditioner of the
exactly evaluated conditions. Where it is near singular, steps are damped by proximal terms of the
weights and of the multipliers, which fade as the steps become calm.

Nothing is accepted here but answers whose gap and violation are within tolerance.

References
----------
Aghasi et al. (2017, 2018) for the program; Hintermueller, Ito, Kunisch, *The primal-dual active set
strategy as a semismooth Newton method*, SIAM J. Optim. 13 (2002), for the method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from .factorisation import Factorisation
from .model import Model
from .working_set import WorkingSet

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Mask = NDArray[np.bool_]

#: Supports up to this size are factorised in float64 from the start: there it costs nothing. So
#: are supports above this share of the working rows, whose H is near singular.
SMALL_SUPPORT = 96
LARGE_SHARE = 0.75

#: Sweeps after which float32 factors are given up.
SINGLE_SWEEPS = 4

#: Changes of the pattern since the last factorisation that are dearer than another one: this
#: many, or this share of the columns.
BORDER = 16
BORDER_SHARE = 0.15

#: Damping of the steps, a proximal term relative to the diagonal of H: least that counts (without
#: hard rows), factor after a calm step, first value, factor after a bad step. A step is calm that
#: drops up to CALM of its columns.
DAMPING = (1e-5, 0.3, 1e-3, 5.0)
CALM = 0.02

#: First damping of a step that is damped from the start, relative to the residual.
DAMPED_START = 0.03

#: Sweeps without progress after which an attempt is given up: ADMM will find a better start.
PATIENCE = 8

#: Damping beyond which steps become cautious: they change one thing at a time.
CAUTIOUS = 0.05

#: Share of the working rows from which on a support is damped from the start, and so are hard rows
#: from that share of the support on.
DAMPED_SHARE = 0.85
STIFF_SHARE = 0.75

#: Residual up to which the first step is trusted in any case.
NEAR = 1e-2

#: Relative rise of the merit that is still rounding.
MERIT_SLACK = 1e-9

#: Factor by which the residual of an output with hard rows may rise in a good step, above a floor.
RESIDUAL_SLACK = 5.0
RESIDUAL_FLOOR = 1e-4

#: A column enters when |x_i^T y| exceeds lambda c_i by this factor.
ENTER = 1.0 + 1e-10

NO_ROWS = (np.zeros(0, dtype=bool), np.zeros(0))


@dataclass(eq=False)
class Output:
    """One output in scaled coordinates, and where its conditions stand.

    Shapes: ``P`` samples, ``N`` inputs; float64. ``epsilon`` is the radius to be met with equality,
    infinite where the multiplier is given (penalised, a joint radius, a ball that is not active);
    ``radius`` the one to be kept; ``scale`` is what violations are measured against; ``hard``
    (None without) says which rows are hard, and ``nu`` holds y on them. The tangents are
    ``-dV / dlambda`` and, as pairs of rows and values, ``dnu / dlambda``. ``name`` is the caller's.
    """

    name: int
    lower: Array
    upper: Array
    penalty: Array
    epsilon: float
    radius: float
    scale: float
    hard: Mask | None
    V: Array
    beta: float
    lambda_: float
    nu: Array | None
    tangent: Array
    tangent_beta: float
    tangent_nu: tuple[Index, Array]
    proved: bool = False
    sweep: int = 0
    progress: int = 0
    square: float = 0.0
    excess: float = 0.0
    residual: float = np.inf
    double: bool = False
    cautious: bool = False
    calm: bool = False
    damping: float = 0.0
    merit: tuple[float, float] | None = None
    system: WorkingSet | None = None
    saved: tuple[Array, float, float, Array | None] | None = None
    y: Array = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        self.fixed = self.lower == self.upper


@dataclass(frozen=True)
class Tolerances:
    """What counts as solved here: a safe part of what the judge allows, and the sweep limit."""

    gap: float
    feas: float
    sweeps: int


@dataclass
class Plan:
    """What one step is about: columns that may move, working rows of the ball, and hard rows.

    ``gradient`` is ``X~^T y``, ``imbalance`` the sum of y; hard rows come with their excess.
    """

    support: Mask
    rows: Mask
    stiff: Index
    excess: Array
    signs: Array
    gradient: Array
    imbalance: float


def polish(
    factorisation: Factorisation, outputs: Iterator[Output], tolerances: Tolerances, width: int,
    finish: Callable[[Output], None],
) -> None:  # fmt: skip
    """Sweep over outputs, `width` at a time, until each is proved or its sweeps are used up.

    An output that leaves, passed to `finish`, makes room for the next, so that the products with X
    always serve many.
    """
    active: list[Output] = []
    for _ in iter(int, 1):
        while len(active) < width and (new := next(outputs, None)) is not None:
            active.append(new)
        if not active:
            return
        steps: list[tuple[Output, Plan]] = []
        stay = []
        for output, (gradient, sums, z) in zip(
            active, zip(*evaluate(factorisation, active), strict=True), strict=True
        ):
            output.proved = _solved(output, gradient, sums, tolerances)
            over = output.sweep == min(tolerances.sweeps, output.progress + PATIENCE)
            if output.proved or over:
                finish(output)
                continue
            output.sweep += 1
            if _judge_step(output):
                plan = _plan(factorisation, output, gradient, float(sums[2]), z)
                if plan is None:
                    finish(output)
                    continue
                steps.append((output, plan))
            # Otherwise the step was taken back, and the output is evaluated anew.
            stay.append(output)
        _extend(factorisation, steps)
        for output, plan in steps:
            if not _newton(factorisation, output, plan):
                stay.remove(output)
                finish(output)
        active = stay


def evaluate(factorisation: Factorisation, outputs: list[Output]) -> tuple[Array, Array, Array]:
    """Evaluate y and its products for some outputs, in float64.

    An intercept is moved to where its own condition holds. Returns ``X~^T y`` of shape (m, N), the
    sums of :func:`kernels.conditions` (m, 6), and the pre-activations (m, P).
    """
    Z, shift = factorisation.forward(np.stack([output.V for output in outputs]))
    Z += (shift + [output.beta for output in outputs])[:, None]
    Y, sums = np.empty_like(Z), np.empty((len(Z), 6))
    for output, z, y, row in zip(outputs, Z, Y, sums, strict=True):
        hard, nu = NO_ROWS if output.hard is None else (output.hard, output.nu)
        kernels.conditions(z, output.lower, output.upper, hard, nu, factorisation.intercept, y, row)
        output.y, output.square, output.excess = y, float(row[0]), float(row[1])
        output.beta += float(row[5])
    if not factorisation.intercept:
        sums[:, 2] = 0.0  # nothing asks for balance
    return factorisation.adjoint(Y, sums[:, 2]), sums, Z


def _solved(output: Output, gradient: Array, sums: Array, tolerances: Tolerances) -> bool:
    """Return whether an output satisfies the conditions, by its gap and violation."""
    _, _, imbalance, support, square, _ = sums
    ball, lambda_ = np.sqrt(output.square), output.lambda_
    objective = float(output.penalty @ np.abs(output.V))
    slack = tolerances.feas * output.scale
    kept = ball - output.radius <= slack and np.sqrt(output.excess) <= slack
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        limit, slopes = lambda_ * output.penalty, np.abs(gradient)
        ratios = np.where(limit > 0, slopes / limit, np.where(slopes > 1e-9 * ball, np.inf, 0.0))
        ratio = float(ratios.max())
        if np.isfinite(output.epsilon):
            force = square if output.hard is None else output.square
            bound = -support - output.epsilon * np.sqrt(force)
            bound, value = bound / (lambda_ * max(ratio, 1e-300)), objective
        else:
            force, ratio = output.square, max(ratio, 1.0)
            bound = (-support / ratio - 0.5 * force / ratio**2) / lambda_
            value = objective + 0.5 * output.square / lambda_
        gap = abs(value - bound) / max(value, 1e-300)
    if value == 0.0 and kept:
        gap = 0.0
    elif not abs(imbalance) <= 1e-9 * np.sqrt(len(output.y) * square) + 1e-300:
        gap = np.inf
    output.residual = float(gap) if np.isfinite(gap) else np.inf
    return bool(kept and output.residual <= tolerances.gap)


def _judge_step(output: Output) -> bool:
    """Take the last step back if it made things worse; return whether it was kept.

    The merit ``lambda sum c |V| + ||E||^2 / 2``, at the new lambda, is what a step minimises on its
    pattern; a step that raises it has met another pattern, and is undone and damped. With hard
    rows, whose multipliers are part of the step, the conditions' own residual takes the merit's
    place.
    """
    if output.hard is None:
        merit = (float(output.penalty @ np.abs(output.V)), 0.5 * output.square)
        lambda_, slack = output.lambda_, 1.0 + MERIT_SLACK
    else:
        miss = np.sqrt(output.excess)
        if np.isfinite(output.epsilon):
            miss += abs(np.sqrt(output.square) - output.epsilon)
        merit = (0.0, min(output.residual, 1.0) + float(miss) / output.scale)
        lambda_, slack = 0.0, RESIDUAL_SLACK
    if output.merit is None:
        output.merit = merit
        return True
    new, old = (lambda_ * first + second for first, second in (merit, output.merit))
    # Single changes are an active set method of its own: its residual need not fall each time.
    single = output.hard is not None and output.cautious
    if single or new <= slack * old + RESIDUAL_FLOOR * (slack - 1.0):
        if single or new < old:
            output.progress = output.sweep
        if output.hard is None or new < old:
            output.merit = merit
        if output.calm:
            eased = output.damping * DAMPING[1]
            # With about as many tight hard rows as weights, undamped steps leap between vertices.
            output.damping = eased if eased > DAMPING[0] or output.hard is not None else 0.0
        return True
    assert output.saved is not None
    output.V, output.beta, output.lambda_, output.nu = output.saved
    output.merit = None
    _damp(output)
    return False


def _damp(output: Output) -> None:
    output.damping = max(DAMPING[2], output.damping * DAMPING[3])
    output.cautious = output.damping > CAUTIOUS


def _plan(
    factorisation: Factorisation, output: Output, gradient: Array, imbalance: float, z: Array
) -> Plan | None:
    """Choose the columns and rows of the next step, and bring its system up to date.

    Ball rows work where matched or outside the box. Hard rows work (as equalities) where they have
    a multiplier or are violated; a cautious step adds the worst of these alone. Returns None where
    nothing can move.
    """
    cautious = output.cautious and output.hard is not None
    enter = output.sweep > 1 or not output.V.any()
    support = _support(output, gradient, factorisation.live, enter, 1 if cautious else None)
    if not support.any() and not factorisation.intercept:
        return None
    y, hard = output.y, output.hard
    rows = (y != 0) | output.fixed
    stiff, excess, signs = np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0)
    if hard is not None:
        rows &= ~hard
        distance = np.where(hard, z - np.clip(z, output.lower, output.upper), 0.0)
        if cautious:
            worst = np.argmax(np.where(y == 0, np.abs(distance), 0.0))
            distance = np.where(np.arange(len(y)) == worst, distance, 0.0)
        else:
            _keep_worst(distance, y != 0, max(16, int(np.count_nonzero(support)) // 4))
        sides = np.where(hard, np.where(y != 0, y, distance), 0.0)
        # More equalities than variables say nothing new: the weakest keep their multiplier.
        _keep_worst(sides, hard & (y == 0), max(64, 2 * int(np.count_nonzero(support))))
        stiff = np.flatnonzero(sides)
        signs = np.sign(sides[stiff])
        excess = z[stiff] - np.where(signs > 0, output.upper[stiff], output.lower[stiff])
    output.double |= output.sweep > SINGLE_SWEEPS
    if not _usable(output, support, rows, stiff):
        base = rows.copy()
        base[stiff] = True
        columns = np.flatnonzero(support)
        few = len(columns) <= SMALL_SUPPORT or len(columns) > LARGE_SHARE * base.sum()
        double = output.double or few
        many = len(columns) > DAMPED_SHARE * base.sum() or len(stiff) > STIFF_SHARE * len(columns)
        if output.sweep == 1 and many and output.residual > NEAR:
            output.damping = max(DAMPING[2], DAMPED_START * min(output.residual, 1.0))
        output.system = None
        output.system = WorkingSet(
            factorisation, columns, base, np.float64 if double else np.float32, output.damping
        )
        if not output.system.defined:
            return None
    return Plan(support, rows, stiff, excess, signs, gradient, imbalance)


def _keep_worst(distance: Array, known: Mask, most: int) -> None:
    """Set to zero, in place, all but the largest entries of those that are not yet known."""
    candidates = np.flatnonzero((distance != 0) & ~known)
    if len(candidates) > most:
        order = np.argsort(-np.abs(distance[candidates]), kind="stable")
        distance[candidates[order[most:]]] = 0.0


def _usable(output: Output, support: Mask, rows: Mask, stiff: Index) -> bool:
    """Return whether the system at hand serves these columns and rows, its border not too wide."""
    system = output.system
    if system is None or system.damping != output.damping:
        return False
    if output.double and system.dtype != np.float64:
        return False
    changed = rows != system.rows
    changed[stiff] = False
    changes = np.count_nonzero(support != system.in_base) + np.count_nonzero(changed)
    return bool(changes <= max(BORDER, BORDER_SHARE * system.n_base))


def _extend(factorisation: Factorisation, steps: list[tuple[Output, Plan]]) -> None:
    """Append the columns that enter: their products with X, one product per dtype for all."""
    for dtype in (np.float32, np.float64):
        new = []
        for output, plan in steps:
            assert output.system is not None
            if output.system.dtype == dtype and len(columns := output.system.missing(plan.support)):
                new.append((output.system, columns))
        if not new:
            continue
        blocks = np.concatenate([system.weighted(columns) for system, columns in new])
        sums = blocks.sum(axis=1, dtype=np.float64)
        products, first = factorisation.adjoint(blocks, sums), 0
        for system, columns in new:
            part = slice(first, first + len(columns))
            system.append(columns, products[part], sums[part])
            first = part.stop


def _newton(factorisation: Factorisation, output: Output, plan: Plan) -> bool:
    """Take one Newton step, in place; return whether another sweep may help."""
    system, V = output.system, output.V
    assert system is not None
    columns, constant = system.columns, system.constant
    zeros, slopes = np.zeros(constant), plan.gradient[columns]
    signs = np.where(V[columns] != 0, np.sign(V[columns]), -np.sign(slopes))
    nu = None if output.nu is None else output.nu.copy()
    output.saved = (V.copy(), output.beta, output.lambda_, nu)
    model = Model(
        system,
        support=np.append(zeros == 0, plan.support[columns]),
        rows=plan.rows,
        right=np.append(np.full(constant, plan.imbalance), slopes),
        cost=np.append(zeros, output.penalty[columns] * signs),
        start=np.append(zeros, V[columns]),
        lambda_=output.lambda_,
        cautious=output.cautious and output.hard is not None,
    )
    if len(plan.stiff):
        model.add_stiff_rows(plan.stiff, output.y[plan.stiff], plan.excess, plan.signs)
    step = model.solve(output.square, output.epsilon if np.isfinite(output.epsilon) else None)
    if step is None:
        return False
    drops = np.count_nonzero(step.dropped & model.support) / np.count_nonzero(model.support)
    output.calm = bool(drops <= CALM)
    output.lambda_ += step.change
    if output.nu is not None:
        output.nu[plan.stiff] = 0.0
        output.tangent_nu = (model.stiff, model.push[:, 1])
        output.nu[model.stiff] = np.where(model.force * model.signs > 0, model.force, 0.0)
    V[columns] = np.where(step.dropped[constant:], 0.0, V[columns] - step.delta[constant:])
    output.tangent[:] = 0.0
    output.tangent[columns] = step.tangent[constant:]
    if constant:
        output.beta -= float(step.delta[0])
        output.tangent_beta = float(step.tangent[0])
    return True


def _support(output: Output, gradient: Array, live: Mask, enter: bool, most: int | None) -> Mask:
    """Return the working columns: the support, and the worst of those that violate optimality."""
    inside = (output.V != 0) | ((output.penalty == 0) & live)
    if enter:
        excess = np.abs(gradient) - ENTER * output.lambda_ * output.penalty
        candidates = np.flatnonzero((excess > 0) & live & ~inside)
        limit = max(16, int(np.count_nonzero(inside)) // 2) if most is None else most
        if len(candidates) > limit:
            candidates = candidates[np.argsort(-excess[candidates], kind="stable")[:limit]]
        inside[candidates] = True
    return inside
