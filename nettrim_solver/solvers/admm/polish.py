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

An attempt that failed is followed by one that carries y on the ball's rows as on hard ones, and
lets them give way by lambda times theta (:func:`.newton.carry`): small lambda and vertices need it.

Nothing is accepted here but answers whose gap and violation are within tolerance.

References
----------
Aghasi et al. (2017, 2018) for the program; Hintermueller, Ito, Kunisch, *The primal-dual active set
strategy as a semismooth Newton method*, SIAM J. Optim. 13 (2002), for the method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import polish_kernels
from .factorisation import Factorisation
from .newton import (
    DAMPED_START,
    LEAST_DAMPING,
    NO_ROWS,
    Output,
    missed_rows,
    plan_step,
    take_step,
)

Array = NDArray[np.float64]

#: Damping of the steps, a proximal term relative to the diagonal of H (from LEAST_DAMPING on): what
#: is left of it after a calm step, its growth after a bad one, and the value below which it is none
#: (without hard rows).
EASED = 0.1
GROWTH = 5.0
NO_DAMPING = 1e-5

#: Sweeps without progress after which an attempt is given up: ADMM will find a better start.
PATIENCE = 8

#: Relative rise of the merit that is still rounding.
MERIT_SLACK = 1e-9

#: Factor by which the residual of an output with hard rows may rise in a good step, above a floor.
RESIDUAL_SLACK = 5.0
RESIDUAL_FLOOR = 2e-3

#: Outputs in flight, at least, and the bytes of their systems beyond which there are no more: many
#: make efficient products with X, but their systems should stay in the cache.
LEAST = 2
SYSTEM_BYTES = 4 * 2**20

#: Bytes that a system may take, over the square of the number of weights: a float32 factor; with
#: hard rows perhaps one of float64 with many more columns, and a border as wide.
PLAIN_ENTRY, HARD_ENTRY = 4, 30

NOTHING_HARD = (NO_ROWS, np.zeros(0))


@dataclass(frozen=True)
class Tolerances:
    """What counts as solved here: a safe part of what the judge allows, and the sweep limit."""

    gap: float
    feas: float
    sweeps: int


def polish(
    factorisation: Factorisation, outputs: Iterator[Output], tolerances: Tolerances, width: int,
    finish: Callable[[Output], None],
) -> None:  # fmt: skip
    """Sweep over outputs, up to `width` at a time, until each is proved or its sweeps are used up.

    An output that leaves, passed to `finish`, makes room for the next, so that the products with X
    always serve many, as far as there is room for their systems.
    """
    active: list[Output] = []
    for _ in iter(int, 1):
        while len(active) < width and (len(active) < LEAST or _bytes(active) < SYSTEM_BYTES):
            if (new := next(outputs, None)) is None:
                break
            active.append(new)
        if not active:
            return
        stay = []
        for output, (gradient, sums, z) in zip(
            active, zip(*evaluate(factorisation, active), strict=True), strict=True
        ):
            output.proved = _solved(output, gradient, sums, tolerances)
            if output.proved and output.strict:
                missed = missed_rows(
                    factorisation, z, output.lower, output.upper, output.V, output.beta,
                    output.target,
                )  # fmt: skip
                output.proved = missed <= tolerances.feas
            over = output.sweep == min(tolerances.sweeps, output.progress + PATIENCE)
            done = over or (output.proved and output.sweep >= output.least)
            if not done:
                output.sweep += 1
                # Otherwise the step is taken back, and the output is evaluated anew.
                if _judge_step(output):
                    plan = plan_step(factorisation, output, gradient, float(sums[2]), z)
                    if plan is None:
                        output.tangent[:] = 0.0
                    done = plan is None or not take_step(factorisation, output, plan)
            if done:
                finish(output)
            else:
                stay.append(output)
        active = stay


def _bytes(outputs: list[Output]) -> int:
    """Return what the systems of some outputs take, or may take where there is none yet."""
    total = 0
    for output in outputs:
        if output.system is None:
            entry = PLAIN_ENTRY if output.hard is None else HARD_ENTRY
            total += entry * int(np.count_nonzero(output.V)) ** 2
        else:
            total += output.system.nbytes
    return total


def evaluate(factorisation: Factorisation, outputs: list[Output]) -> tuple[Array, Array, Array]:
    """Evaluate y and its products for some outputs, in float64.

    An intercept is moved to where its own condition holds. Returns ``X~^T y`` of shape (m, N), the
    sums of :func:`polish_kernels.conditions` (m, 6), and the pre-activations (m, P).
    """
    Z, shift = factorisation.forward(np.stack([output.V for output in outputs]))
    Z += (shift + [output.beta for output in outputs])[:, None]
    Y, sums = np.empty_like(Z), np.empty((len(Z), 6))
    for output, z, y, row in zip(outputs, Z, Y, sums, strict=True):
        hard, nu = NOTHING_HARD if output.hard is None else (output.hard, output.nu)
        polish_kernels.conditions(
            z, output.lower, output.upper, hard, nu, factorisation.intercept, y, row
        )
        output.y, output.square, output.excess = y, float(row[0]), float(row[1])
        output.measure(z)
        output.beta += float(row[5])
    if not factorisation.intercept:
        sums[:, 2] = 0.0  # nothing asks for balance
    return factorisation.adjoint(Y, sums[:, 2]), sums, Z


def _solved(output: Output, gradient: Array, sums: Array, tolerances: Tolerances) -> bool:
    """Return whether an output satisfies the conditions, by its gap and violation."""
    _, _, imbalance, support, square, _ = sums
    ball, lambda_ = np.sqrt(output.square), output.lambda_
    # Products that are to vanish do so but for rounding, which hard rows have without a ball, too.
    floor = 1e-9 * ball + 1e-13 * np.sqrt(square)
    objective, ratio = polish_kernels.dual_ratio(output.V, gradient, output.penalty, lambda_, floor)
    slack = tolerances.feas * output.scale
    kept = ball - output.radius <= slack and np.sqrt(output.excess) <= slack
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if np.isfinite(output.epsilon):
            bound = -support - output.epsilon * np.sqrt(output.force())
            bound, value = bound / (lambda_ * max(ratio, 1e-300)), objective
        else:
            # A numpy number: the square of a float that overflows would be an exception.
            force, ratio = output.share * output.force(), np.float64(max(ratio, 1.0))
            bound = (-support / ratio - 0.5 * force / ratio**2) / lambda_
            value = objective + 0.5 * output.square / output.multiplier
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
    place, and a step that drops many columns at once is taken back unless it was damped.
    """
    if output.hard is None:
        merit = (float(output.penalty @ np.abs(output.V)), 0.5 * output.square)
        lambda_, slack = output.lambda_, 1.0 + MERIT_SLACK
    else:
        miss = np.sqrt(output.excess)
        if np.isfinite(output.epsilon):
            miss += abs(np.sqrt(output.square) - output.epsilon)
        merit = (0.0, min(output.residual, 1.0) + (float(miss) + output.miss) / output.length)
        lambda_, slack = 0.0, RESIDUAL_SLACK
    if output.merit is None:
        output.merit = merit
        return True
    new, old = (lambda_ * first + second for first, second in (merit, output.merit))
    start = DAMPED_START * min(output.residual, 1.0)
    wild = output.wild and output.hard is not None and output.damping < 0.5 * start
    if new <= slack * old + RESIDUAL_FLOOR * (slack - 1.0) and not wild:
        if new < old:
            output.progress = output.sweep
        if output.hard is None or new < old:
            output.merit = merit
        if output.calm:
            eased = output.damping * EASED
            # With about as many tight hard rows as weights, undamped steps leap between vertices.
            output.damping = eased if eased > NO_DAMPING or output.hard is not None else 0.0
        return True
    assert output.saved is not None
    output.V, output.beta, output.lambda_, output.nu = output.saved
    output.merit = None
    output.damping = max(LEAST_DAMPING, output.damping * GROWTH, start if wild else 0.0)
    return False
