"""The loop of ADMM steps, checks, polish and freezing, for outputs that need nothing of each other.

Each output has a radius of its own, or a given multiplier. With a joint radius the loop begins with
the joint projection, until their common multiplier is known well enough to go on with that
(:mod:`.shared`); what remains is for :mod:`.joint`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...status import Status
from .block import Block
from .feasibility import RADIUS_CHECK, refute, suspicious
from .run import CHUNK, Interrupted, Run
from .shared import Shared

Array = NDArray[np.float64]
Index = NDArray[np.int64]

#: Initial rho times lambda_0, the multiplier at which W = 0 becomes optimal (docs/performance.md).
RHO = 80.0

#: Residual ratios within this band leave rho alone; changes are clipped to the second interval.
BALANCE_BAND = (0.5, 2.0)
BALANCE_CLIP = (0.2, 5.0)

#: Iterations after which rho changes ever more rarely, so that ADMM's convergence is that of a
#: fixed rho: balanced at every check for ever, some outputs never settle.
STEADY = 60

#: First iteration at which the polish may be tried, and the share of the support that may have
#: changed since the last check.
FIRST_POLISH = 20
SETTLED = 0.025

#: An attempt that failed is repeated after this share of the iterations that there have been; the
#: second one where few outputs are left, an iteration of which costs nearly as much as of many.
PAUSE, SHORT_PAUSE = 0.5, 0.125
FEW = 8

#: Iterations after which float32 iterates are continued in float64.
SINGLE_ITERATIONS = 150

#: Problems below this size (P N m) iterate in float64: the products cost nothing.
SMALL = 2_000_000


@dataclass
class Watch:
    """What the checks of one block remember, per output still in it."""

    support: NDArray[np.bool_]
    attempt: Index
    radius_check: int = RADIUS_CHECK
    balance: int = 0
    lengths: tuple[Array, Array, Array] | None = None

    def keep(self, rows: Any) -> None:
        """Forget all outputs but these."""
        self.support, self.attempt = self.support[rows], self.attempt[rows]
        if self.lengths is not None:
            step, size, force = self.lengths
            self.lengths = (step[rows], size[rows], force[rows])


def solve_all(run: Run) -> None:
    """Solve every output with its own radius or its given multiplier."""
    problem, M = run.problem, run.problem.n_outputs
    epsilon = None if problem.penalised else np.broadcast_to(problem.epsilon, M)  # type: ignore[arg-type]
    lambda_ = np.broadcast_to(problem.lambda_, M) if problem.penalised else None  # type: ignore[arg-type]
    with run.stopping():
        for columns in run.blocks():
            iterate(
                run,
                columns,
                None if epsilon is None else epsilon[columns],
                None if lambda_ is None else lambda_[columns],
            )


def iterate(
    run: Run, columns: Index, epsilon: Any, lambda_: Any, shared: Shared | None = None
) -> None:
    """Run one block until every output is proved, infeasible or out of iterations.

    With `shared` (epsilon is one number) the outputs are proved at multipliers near the one that
    they share.
    """
    columns, epsilon, lambda_, block = _start(run, columns, epsilon, lambda_)
    if block is None:
        return
    warm = run.warm_start(columns)
    watch = Watch(
        np.zeros(block.answer.shape, dtype=bool) if warm is None else warm[0] != 0,
        np.full(len(block), FIRST_POLISH if warm is None else 0),
    )
    interval = run.settings.check_interval
    iteration = 0
    try:
        while len(columns) and iteration < run.settings.max_iter:
            iteration += 1
            tick = time.perf_counter()
            block.project()
            if block.marked is not None:
                _balance(run, block, watch, iteration)
            check = iteration % interval == 0 or iteration == min(5, interval)
            if check:
                block.mark()
                watch.lengths = block.measure()
            block.advance()
            run.seconds["admm"] += time.perf_counter() - tick
            if check:
                kept = _check(run, columns, block, watch, iteration, shared)
                columns = columns[kept]
            run.check_clock()
    except KeyboardInterrupt:
        _store(run, columns, block, iteration)
        raise Interrupted(Status.INTERRUPTED) from None
    except Interrupted:
        _store(run, columns, block, iteration)
        raise
    _store(run, columns, block, iteration)
    if len(columns) and shared is None and _refutable(run, block.epsilon):
        refute(run, columns, block.epsilon)


def _start(
    run: Run, columns: Index, epsilon: Any, lambda_: Any
) -> tuple[Index, Any, Any, Block | None]:
    """Answer the trivial outputs, and build the block of the others at its starting point."""
    settings, answer, f = run.settings, run.answer, run.factorisation
    single = settings.dtype == "float32" or (
        settings.dtype == "auto" and f.n_samples * f.n_inputs * len(columns) > SMALL
    )
    lower, upper, theta, slopes, beta, limit, distance = _zero_start(
        run, columns, np.dtype(np.float32 if single else np.float64)
    )
    run.natural[columns] = limit
    if np.ndim(epsilon) == 1 and np.any(distance <= epsilon):
        trivial = distance <= epsilon
        answer.beta[columns[trivial]] = beta[trivial]
        answer.lambda_[columns[trivial]] = limit[trivial]
        run.finish(columns[trivial], 0)
        left = ~trivial
        # One after the other, so that no more than one is there twice.
        lower = lower[left]
        upper = upper[left]
        theta = theta[left]
        slopes, beta, limit = slopes[left], beta[left], limit[left]
        columns, epsilon = columns[left], epsilon[left]
    if len(columns) == 0:
        return columns, epsilon, lambda_, None
    rho = (settings.rho or RHO) / limit
    start: Any = (None, beta, theta, slopes)
    if (warm := run.warm_start(columns)) is not None:
        V, beta, theta, previous = warm
        start = (V, beta, theta.astype(lower.dtype), None)
        rho = np.where(np.isfinite(previous), previous, rho)
    block = Block(
        f, lower, upper, run.penalty(columns), epsilon, lambda_, run.problem.strict,
        start, rho, settings.relaxation, lower.dtype, run.workers, run.context.n_threads,
    )  # fmt: skip
    return columns, epsilon, lambda_, block


def _zero_start(run: Run, columns: Index, dtype: Any) -> tuple[NDArray[Any], ...]:
    """Return the box, and what W = 0 says, some outputs at a time so that memory stays low.

    That is: lower, upper and the dual point theta, shape (m, P), and its product with X~, shape
    (m, N), in `dtype`; the best intercept beta, the multiplier lambda_0 at which W = 0 becomes
    optimal, and the distance, shape (m,).
    """
    m, f = len(columns), run.factorisation
    f.design(dtype)  # made by one thread
    lower, upper, theta = (np.empty((m, f.n_samples), dtype=dtype) for _ in range(3))
    slopes = np.empty((m, f.n_inputs), dtype=dtype)
    beta, limit, distance = (np.empty(m) for _ in range(3))

    def work(part: slice) -> None:
        low, high = run.box(columns[part])
        penalty = run.penalty(columns[part])
        beta[part], E, distance[part] = run.zero_weights(low, high)
        slopes[part] = f.adjoint(E.astype(dtype, copy=False))
        size = np.abs(slopes[part])
        ratios = np.divide(size, penalty, out=np.zeros_like(size), where=penalty > 0)
        largest = ratios.max(axis=1, initial=0.0)
        limit[part] = np.where(largest > 0, largest, 1.0)
        lower[part], upper[part], theta[part] = low, high, E / limit[part, None]
        slopes[part] /= limit[part, None].astype(dtype)

    run.in_chunks(m, work, max(CHUNK, m // 8))
    return lower, upper, theta, slopes, beta, limit, distance


def _balance(run: Run, block: Block, watch: Watch, iteration: int) -> None:
    """Balance the relative residuals by rho, one iteration after a check.

    The step ``S_1 - S_2`` splits into a part along the graph, the dual residual, by which the
    projection has moved since, and a part across it, the primal residual.
    """
    assert watch.lengths is not None
    step, size, force = watch.lengths
    dual = np.minimum(block.moved() / block.relaxation**2, step)
    primal = step - dual
    if not run.settings.adaptive_rho or iteration < watch.balance:
        return
    if iteration > STEADY:
        watch.balance = int(1.5 * iteration)
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = ((primal / size) / (dual / force)) ** 0.25
    factors = np.where(np.isfinite(factors) & (factors > 0), factors, 1.0)
    factors = np.clip(factors, *BALANCE_CLIP)
    low, high = BALANCE_BAND
    factors[(factors > low) & (factors < high)] = 1.0
    if np.any(factors != 1.0):
        block.change_rho(factors)


def _check(
    run: Run, columns: Index, block: Block, watch: Watch, iteration: int, shared: Shared | None
) -> NDArray[np.bool_]:
    """Polish what has settled, drop what is proved; return which outputs stay."""
    support = block.answer != 0
    changes = np.count_nonzero(support != watch.support, axis=1)
    watch.support = support
    settled = changes <= np.maximum(2, SETTLED * support.sum(axis=1))
    run.report(iteration)
    keep = np.ones(len(columns), dtype=bool)
    if shared is not None or _refutable(run, block.epsilon):
        stuck = np.flatnonzero(_suspects(run, columns, block, watch, iteration))
        if len(stuck):
            radii: Any = block.epsilon if shared is None else shared.epsilon
            radii = radii[stuck] if np.ndim(radii) == 1 else radii
            keep[stuck] = ~refute(run, columns[stuck], radii)
        if shared is not None and not keep.all():
            return np.zeros(len(columns), dtype=bool)
    if shared is not None and not (run.settings.polish and shared.watch(block, columns, iteration)):
        if shared.idle:
            _store(run, columns, block, iteration)
            keep[:] = False
        return keep
    settled |= iteration >= 4 * watch.attempt
    if run.settings.polish:
        due = keep & (iteration >= watch.attempt)
        if shared is None:
            tried = _polish(run, columns, block, np.flatnonzero(settled & due), iteration)
        else:
            tried = np.zeros(0, dtype=np.int64)
            for portion in shared.portions(columns, settled, due):
                tried = np.append(tried, _polish(run, columns, block, portion, iteration))
                shared.update(run, block)
        keep &= ~run.answer.proved[columns]
        pause = SHORT_PAUSE if np.count_nonzero(keep) <= FEW else PAUSE
        watch.attempt[tried[keep[tried]]] = int((1.0 + pause) * iteration)
    if not keep.all():
        block.keep(keep)
        watch.keep(keep)
    if block.dtype == np.float32 and iteration >= SINGLE_ITERATIONS and len(block):
        if run.settings.dtype == "auto":
            block.to_double(*run.box(columns[keep]), run.penalty(columns[keep]))
    return keep


def _polish(run: Run, columns: Index, block: Block, some: Index, iteration: int) -> Index:
    """Polish some outputs of a block, and return them."""
    if len(some):
        run.answer.rho[columns[some]] = block.rho[some]
        run.polish(
            columns[some], block.answer[some], block.beta[some], block.multiplier[some],
            block.epsilon[some] if np.ndim(block.epsilon) == 1 else None,
            block.dual, some, iteration,
        )  # fmt: skip
    return some


def _refutable(run: Run, epsilon: Any) -> bool:
    """Return whether outputs may have no answer: they have a radius, or hard rows of their own.

    At a multiplier of the joint radius they may, too; :mod:`.joint` sees to that.
    """
    return epsilon is not None or (run.problem.penalised and run.problem.strict)


def _suspects(
    run: Run, columns: Index, block: Block, watch: Watch, iteration: int
) -> NDArray[np.bool_]:
    """Return which outputs are to be checked for a radius out of reach, at the times to look."""
    if iteration < watch.radius_check:
        return np.zeros(len(columns), dtype=bool)
    watch.radius_check = 4 * iteration
    return suspicious(run, columns, block)


def _store(run: Run, columns: Index, block: Block, iteration: int) -> None:
    """Keep the current estimates of outputs that are not proved."""
    if len(columns) == 0 or iteration == 0:
        return
    answer = run.answer
    # An interrupt in the polish leaves outputs in the block that are proved already.
    left = ~answer.proved[columns]
    kept = columns[left]
    block.measure()
    answer.V[kept], answer.beta[kept] = block.answer[left], block.beta[left]
    answer.lambda_[kept], answer.rho[kept] = block.multiplier[left], block.rho[left]
    answer.theta.T[kept] = block.dual[left]
    answer.iterations[kept] += iteration
