r"""One Newton step of one output: which columns and rows it is about, its system, and its result.

The step and its conditions are in :mod:`.polish`, its quadratic model in :mod:`.model`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...products import weight_sizes
from .. import polish_kernels
from .factorisation import Factorisation
from .model import Model, hard_weight
from .working_set import WorkingSet, gather

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

#: Weight of a hard row against a ball row: multipliers converge by about this factor a sweep. Where
#: more rows are tight than there are weights to choose from, a large one lets them leap; where a
#: system is ill-conditioned a small one lets them crawl. Attempts take turns.
STIFFNESS, STIFFER = 3e4, 1e6

#: Weight up to which hard rows are in the base with all of it. A heavier one costs the other rows'
#: digits: hard rows are in the base with weight 1 then, and the border adds the rest.
HEAVY = {np.float32: 100.0, np.float64: 1e5}

#: Least damping of a step that is damped, and the first damping of one that is damped from the
#: start, relative to the residual.
LEAST_DAMPING = 1e-3
DAMPED_START = 0.03

#: Share of the working rows from which on a support is damped from the start, and so are hard rows
#: from that share of the support on.
DAMPED_SHARE = 0.85
STIFF_SHARE = 0.75

#: Residual up to which the first step is trusted in any case.
NEAR = 1e-2

#: A ball carries its y only where its multiplier is at most this share of the one at which W = 0
#: becomes optimal, and its working rows are at most this many: each is an entry of the border.
CARRIED_SHARE = 1.0
CARRIED_ROWS = 1024

#: How far beyond the point where a column may enter y is moved, so that it does.
BEYOND = 1.0 + 1e-7

#: Least radius, relative to the targets, that the steps of a penalised output are judged by.
LEAST_LENGTH = 1e-6

#: Share of its columns up to which a step may drop some and still is calm, and beyond which it is
#: wild: with hard rows such a step is taken back, and damped.
CALM, WILD = 0.02, 0.4

#: No row is hard.
NO_ROWS: Mask = np.zeros(0, dtype=bool)

#: A column enters when |x_i^T y| exceeds lambda c_i by this factor.
ENTER = 1.0 + 1e-10


@dataclass(eq=False)
class Output:
    """One output in scaled coordinates, and where its conditions stand.

    Shapes: ``P`` samples, ``N`` inputs; float64. ``epsilon`` is the radius to be met with equality,
    infinite where the multiplier is given (penalised, a joint radius, a ball that is not active);
    ``radius`` the one to be kept; ``scale`` is what violations are measured against; ``hard``
    (None without) says which rows are hard, and ``nu`` holds y on them. The tangents are
    ``-dV / dlambda`` and, as pairs of rows and values, ``dnu / dlambda``. ``name`` is the caller's.

    A small multiplier may have its ball rows `carried` (:func:`carry`): they count as hard, too,
    but give way by ``share * y``; `lambda_` is then but the unit of y, and ``share * lambda_`` the
    multiplier. ``miss`` is how far they are from that, ``length`` what it is measured against, and
    ``stiffness`` what a hard row weighs against a ball row.

    An answer counts after `least` sweeps: tangents are those of a step. ``target`` is the distance
    of zero from the box; with ``strict`` rows between their ends count by their own scale.
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
    target: float = 0.0
    strict: bool = False
    carried: Mask | None = None
    share: float = 1.0
    stiffness: float = STIFFNESS
    length: float = 0.0
    miss: float = 0.0
    proved: bool = False
    least: int = 0
    sweep: int = 0
    progress: int = 0
    square: float = 0.0
    excess: float = 0.0
    residual: float = np.inf
    double: bool = False
    calm: bool = False
    wild: bool = False
    damping: float = 0.0
    merit: tuple[float, float] | None = None
    system: WorkingSet | None = None
    saved: tuple[Array, float, float, Array | None] | None = None
    y: Array = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        self.fixed = self.lower == self.upper
        self.length = self.scale if self.scale > 0.0 else 1.0  # a dead output has no scale

    @property
    def multiplier(self) -> float:
        """The multiplier of the ball."""
        return self.share * self.lambda_

    def force(self) -> float:
        """Return the squared norm of y over the ball's rows."""
        return self.square if self.carried is None else _square(self.y[self.carried])

    def measure(self, z: Array) -> None:
        """Tell the distances of carried rows at the pre-activations z from those of hard ones."""
        if self.carried is not None:
            E = z - np.clip(z, self.lower, self.upper)
            self.square, self.excess = _square(E[self.carried]), _square(E[~self.carried])
            self.miss = float(np.sqrt(_square((E - self.share * self.y)[self.carried])))

    def settle_share(self) -> None:
        """Let carried rows give way as far as the radius allows at their present y."""
        if self.carried is not None and np.isfinite(self.epsilon):
            assert self.nu is not None
            length = np.sqrt(_square(self.nu[self.carried]))
            if length > 0.0:
                self.share = min(self.epsilon / length, CARRIED_SHARE)


def missed_rows(
    factorisation: Factorisation, z: Array, lower: Array, upper: Array, V: Array, beta: float,
    target: float,
) -> float:  # fmt: skip
    """Return the largest excess of a row between its ends, in units of the row's own scale.

    As the judge measures it (:meth:`nettrim_solver.products.Scales.rows`).
    """
    ends = np.clip(z, lower, upper)
    rows = np.flatnonzero((lower < upper) & (z != ends))
    if not len(rows):
        return 0.0
    inputs = np.abs(gather(factorisation, rows, np.arange(len(V)), np.float64))[:, -len(V) :]
    size = weight_sizes(V[:, None], np.ones((len(V), 1)), target)
    scale = inputs @ size[:, 0] + abs(beta) + np.abs(ends[rows])
    if target > 0.0:
        scale = np.minimum(scale, target)
    return float(np.max(np.abs(z[rows] - ends[rows]) / np.maximum(scale, 1e-300)))


def carry(output: Output, unit: float, theta: NDArray[np.floating]) -> None:
    """Carry y as the multiplier of the ball's rows, in this unit.

    The distance ``y = lambda theta`` of the plain step vanishes with lambda, and with it the range
    in which a step leaves the working rows what they are; the same happens at vertices, with about
    as many weights as working rows. Carried, ``theta`` is a variable of its own: rows are
    ``X~_A (V - delta) - t_A = share (y + dy)``, which stays well conditioned as lambda vanishes,
    and ends in equalities.
    """
    share = output.lambda_ / unit
    works = np.count_nonzero((theta != 0) | output.fixed)
    idle = np.isinf(output.epsilon) and np.isfinite(output.radius)
    if idle or share > CARRIED_SHARE or works > CARRIED_ROWS:
        return
    every = np.ones(len(output.lower), dtype=bool)
    output.carried = every if output.hard is None else ~output.hard
    output.hard, output.nu = every, unit * theta.astype(np.float64)
    output.lambda_, output.share = unit, share
    output.settle_share()
    if np.isinf(output.radius):
        length = share * np.sqrt(_square(output.nu[output.carried]))
        output.length = max(float(length), LEAST_LENGTH * output.scale) or 1.0


def _square(values: Array) -> float:
    return float(values @ values)


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


def plan_step(
    factorisation: Factorisation, output: Output, gradient: Array, imbalance: float, z: Array
) -> Plan | None:
    """Choose the columns and rows of the next step, and bring its system up to date.

    Ball rows work where matched or outside the box. Hard rows work (as equalities) where they have
    a multiplier or are violated. Returns None where nothing can move.
    """
    support = _support(output, gradient, factorisation.live)
    if not support.any() and not factorisation.intercept:
        return None
    rows, stiff, excess, signs = _working_rows(output, z, int(np.count_nonzero(support)))
    output.double |= output.sweep > SINGLE_SWEEPS
    if not _usable(output, support, rows, stiff):
        output.system = _new_base(factorisation, output, support, rows, stiff)
        if not output.system.defined:
            return None
    assert output.system is not None
    if len(new := output.system.missing(support)):
        output.system.append(new)
    return Plan(support, rows, stiff, excess, signs, gradient, imbalance)


def _support(output: Output, gradient: Array, live: Mask) -> Mask:
    """Return the working columns: the support, and the worst of those that violate optimality.

    None enters in the first step, which rests on the caller's support.
    """
    enter = ENTER if output.sweep > 1 or not output.V.any() else np.inf
    inside, entering = np.empty(len(live), dtype=bool), np.empty(len(live), dtype=np.int64)
    excess = np.empty(len(live))
    n_inside, n = polish_kernels.support(
        output.V, gradient, output.penalty, live, output.lambda_, enter, inside, entering, excess
    )
    entering = entering[:n][_largest(excess[:n], max(16, n_inside // 2))]
    inside[entering] = True
    return inside


def _working_rows(output: Output, z: Array, n_columns: int) -> tuple[Mask, Index, Array, Array]:
    """Return the working rows of the ball, and the hard ones with their excess and their signs."""
    lower, upper, y = output.lower, output.upper, output.y
    hard = NO_ROWS if output.hard is None else output.hard
    rows, stiff, sides = np.empty(len(z), bool), np.empty(len(z), np.int64), np.empty(len(z))
    n = polish_kernels.working_rows(z, y, lower, upper, hard, rows, stiff, sides)
    if n == 0:
        return rows, stiff[:0], sides[:0], sides[:0]
    stiff, sides = stiff[:n], sides[:n]
    # The worst of those that are violated. Of those with a multiplier, more equalities than
    # variables say nothing new: the weakest keep theirs.
    keep, known = np.ones(n, dtype=bool), y[stiff] != 0
    for some, most in ((~known, max(16, n_columns // 4)), (known, max(64, 2 * n_columns))):
        places = np.flatnonzero(some)
        keep[places] = _largest(sides[places], most)
    stiff, signs = stiff[keep], np.sign(sides[keep])
    excess = z[stiff] - np.where(signs > 0, upper[stiff], lower[stiff])
    if output.carried is not None:
        signs[output.fixed[stiff]] = 0.0  # either sign will do
    return rows, stiff, excess, signs


def _largest(values: Array, most: int) -> Mask:
    """Return which values are the largest, by magnitude, `most` of them."""
    keep = np.ones(len(values), dtype=bool)
    if len(values) > most:
        keep[np.argsort(-np.abs(values), kind="stable")[most:]] = False
    return keep


def _new_base(
    factorisation: Factorisation, output: Output, support: Mask, rows: Mask, stiff: Index
) -> WorkingSet:
    """Return a system with these columns and rows as its base."""
    weights = rows.astype(np.float64)
    weights[stiff] = 1.0
    columns, working = np.flatnonzero(support), np.count_nonzero(weights)
    few = len(columns) <= SMALL_SUPPORT or len(columns) > LARGE_SHARE * working
    dtype = np.float64 if output.double or few else np.float32
    many = len(columns) > DAMPED_SHARE * working or len(stiff) > STIFF_SHARE * len(columns)
    if output.sweep == 1 and many and output.residual > NEAR:
        output.damping = max(LEAST_DAMPING, DAMPED_START * min(output.residual, 1.0))
    weight = hard_weight(output.stiffness, output.damping)
    if output.carried is None and weight <= HEAVY[dtype]:
        weights[stiff] = weight
    return WorkingSet(factorisation, columns, weights, dtype, output.damping, output.system)


def _usable(output: Output, support: Mask, rows: Mask, stiff: Index) -> bool:
    """Return whether the system at hand serves these columns and rows, its border not too wide."""
    system = output.system
    if system is None or system.damping != output.damping:
        return False
    if output.double and system.dtype != np.float64:
        return False
    changed = rows != (system.weights > 0.0)
    changed[stiff] = False
    changes = np.count_nonzero(support != system.in_base) + np.count_nonzero(changed)
    return bool(changes <= max(BORDER, BORDER_SHARE * system.n_base))


def take_step(factorisation: Factorisation, output: Output, plan: Plan) -> bool:
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
        stiffness=output.stiffness,
    )
    if len(plan.stiff):
        model.add_stiff_rows(plan.stiff, output.y[plan.stiff], plan.excess, plan.signs)
    given = np.isinf(output.epsilon)
    if output.carried is not None:
        model.soften(output.carried[plan.stiff], output.share)
        given = True
    step = model.solve(output.square, None if given else output.epsilon)
    if step is None:
        return False
    drops = np.count_nonzero(step.dropped & model.support) / np.count_nonzero(model.support)
    output.calm, output.wild = bool(drops <= CALM), bool(drops > WILD)
    output.lambda_ += step.change
    if output.nu is not None:
        output.nu[plan.stiff] = 0.0
        output.nu[model.stiff] = np.where(model.force * model.signs >= 0, model.force, 0.0)
        slopes = model.push[:, 1]
        if output.carried is not None and nu is not None:
            slopes = output.share * slopes + output.nu[model.stiff] / output.lambda_
            move = output.nu - nu
            output.nu = nu + _reach(factorisation, output, plan, move) * move
        output.tangent_nu = (model.stiff, slopes)
        output.settle_share()
    V[columns] = np.where(step.dropped[constant:], 0.0, V[columns] - step.delta[constant:])
    output.tangent[:] = 0.0
    output.tangent[columns] = step.tangent[constant:]
    if constant:
        output.beta -= float(step.delta[0])
        output.tangent_beta = float(step.tangent[0])
    return True


def _reach(factorisation: Factorisation, output: Output, plan: Plan, move: Array) -> float:
    """Return which part of a move of y leaves resting columns optimal, but for the first to enter.

    Where the support is too small for its working rows, the whole move would let many in at once.
    """
    slopes, limit = factorisation.adjoint(move[None])[0], output.lambda_ * output.penalty
    rests = ~plan.support & (np.abs(plan.gradient) < limit)
    rests &= np.abs(plan.gradient + slopes) > limit
    slopes, gradient, limit = slopes[rests], plan.gradient[rests], limit[rests]
    parts = (limit - np.sign(slopes) * gradient) / np.abs(slopes)
    return min(BEYOND * float(parts.min(initial=np.inf)), 1.0)
