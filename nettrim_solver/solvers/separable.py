"""Outputs that need nothing of each other: a radius each, or a given multiplier.

:class:`Run` holds what all blocks of a call share: problem, settings, clock and answers. Its
:meth:`Run.iterate` is the loop of ADMM steps, checks, polish and freezing for one block.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..certificate import RADIUS_FLOOR, dual_bounds, dual_terms
from ..problem import Problem
from ..status import Status
from . import Context, Progress, kernels
from .block import Block
from .factorisation import Factorisation
from .polish import Group, Tolerances, polish

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

#: Outputs polished together: enough for efficient products, few enough for small arrays.
GROUP = 16

#: First iteration at which the polish may be tried, and the share of the support that may have
#: changed since the last check.
FIRST_POLISH = 20
SETTLED = 0.025

#: Iterations after which float32 iterates are continued in float64.
SINGLE_ITERATIONS = 150

#: Problems below this size (P N m) iterate in float64: the products cost nothing.
SMALL = 2_000_000

#: First iteration at which the outputs are looked at for a radius out of reach (then at each
#: fourfold), and the ratio of dual bound to objective that raises suspicion.
RADIUS_CHECK = 100
SUSPICIOUS = 2.0


@dataclass
class Answer:
    """The best answers so far, for all outputs, in scaled coordinates."""

    V: Array
    beta: Array
    tangent: Array
    tangent_beta: Array
    lambda_: Array
    rho: Array
    theta: Array
    square: Array
    iterations: Index
    stops: list[Status]
    proved: NDArray[np.bool_]
    ray: Array | None = None


@dataclass
class Watch:
    """What the checks of one block remember, per output still in it."""

    support: NDArray[np.bool_]
    attempt: Index
    radius_check: int = RADIUS_CHECK
    balance: int = 0
    V: Any = None
    lengths: tuple[Array, Array, Array] | None = None

    def keep(self, rows: Any) -> None:
        self.support, self.attempt = self.support[rows], self.attempt[rows]
        if self.V is not None and self.lengths is not None:
            self.V = self.V[rows]
            step, size, force = self.lengths
            self.lengths = (step[rows], size[rows], force[rows])


class Interrupted(Exception):
    """Raised inside a run by the clock, Ctrl-C or the callback; never leaves the solver."""

    def __init__(self, status: Status) -> None:
        super().__init__(str(status))
        self.status = status


class Run:
    """One call of the solver: what its blocks share, and the loop for a block."""

    def __init__(
        self, problem: Problem, settings: Any, context: Context, factorisation: Factorisation,
        workers: Executor | None,
    ) -> None:  # fmt: skip
        self.problem, self.settings, self.context = problem, settings, context
        self.factorisation, self.workers = factorisation, workers
        self.seconds = {"admm": 0.0, "polish": 0.0}
        self.tolerances = Tolerances(
            (0.2 if problem.joint else 0.5) * settings.tol_gap, 0.3 * settings.tol_feas, settings.polish_sweeps
        )
        self.natural = np.ones(problem.n_outputs)
        M, N, P = problem.n_outputs, problem.n_inputs, problem.n_samples
        self.answer = Answer(
            V=np.zeros((M, N)), beta=np.zeros(M), tangent=np.zeros((M, N)),
            tangent_beta=np.zeros(M), lambda_=np.full(M, np.nan), rho=np.full(M, np.nan),
            theta=np.zeros((P, M), order="F"), square=np.zeros(M),
            iterations=np.zeros(M, dtype=np.int64),
            stops=[Status.MAX_ITERATIONS] * M, proved=np.zeros(M, dtype=bool),
        )  # fmt: skip

    # Blocks -----------------------------------------------------------------------------------

    def blocks(self) -> list[Index]:
        """Return the outputs of each block: at most five (P, m) arrays within the memory limit."""
        width = max(1, self.settings.memory_limit // (5 * 8 * self.problem.n_samples))
        return [
            np.arange(start, min(start + width, self.problem.n_outputs))
            for start in range(0, self.problem.n_outputs, width)
        ]

    def solve_all(self) -> None:
        """Solve every output with its own radius or its given multiplier."""
        problem, M = self.problem, self.problem.n_outputs
        epsilon = None if problem.penalised else np.broadcast_to(problem.epsilon, M)  # type: ignore[arg-type]
        lambda_ = np.broadcast_to(problem.lambda_, M) if problem.penalised else None  # type: ignore[arg-type]
        with self.stopping():
            for columns in self.blocks():
                self.iterate(
                    columns,
                    None if epsilon is None else epsilon[columns],
                    None if lambda_ is None else lambda_[columns],
                )

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Turn the clock, the callback and Ctrl-C into statuses of the outputs still unproved."""
        try:
            yield
        except Interrupted as stop:
            self.stop_unproved(stop.status)
        except KeyboardInterrupt:
            self.stop_unproved(Status.INTERRUPTED)

    def stop_unproved(self, status: Status) -> None:
        """Record why the outputs without proof have none."""
        for j in np.flatnonzero(~self.answer.proved):
            if self.answer.stops[j] is not Status.INFEASIBLE:
                self.answer.stops[j] = status

    def slopes(self) -> Array:
        """Return ``q_j``: squared distances change by ``2 lambda q_j`` a unit of lambda."""
        answer, slopes = self.answer, np.zeros(self.problem.n_outputs)
        for columns in self.blocks():
            signed = self.penalty(columns) * np.sign(answer.V[columns])
            slopes[columns] = np.sum(signed * answer.tangent[columns], axis=1)
        return slopes

    def penalty(self, columns: Any) -> Array:
        """Return the l1 weights in scaled coordinates, shape (m, N)."""
        scaled = self.problem.penalty(columns) / self.factorisation.norm[:, None]
        return np.ascontiguousarray(np.broadcast_to(scaled, (scaled.shape[0], len(columns))).T)

    def box(self, columns: Any) -> tuple[Array, Array]:
        """Return the box with a row per output, float64, shape (m, P)."""
        lower, upper = self.problem.box(columns)
        return np.ascontiguousarray(lower.T), np.ascontiguousarray(upper.T)

    def iterate(self, columns: Index, epsilon: Any, lambda_: Any, joint: bool = False) -> None:
        """Run one block until every output is proved, infeasible or out of iterations.

        With `joint` (epsilon is one number) the loop ends as soon as the pattern has settled, and
        leaves estimates: the proof is then for :mod:`.joint`.
        """
        columns, epsilon, lambda_, block = self._start(columns, epsilon, lambda_)
        if block is None:
            return
        warm = self.warm_start(columns)
        watch = Watch(
            np.zeros(block.answer.shape, dtype=bool) if warm is None else warm[0] != 0,
            np.full(len(block), FIRST_POLISH if warm is None else 0),
        )
        interval = self.settings.check_interval
        iteration = 0
        try:
            while len(columns) and iteration < self.settings.max_iter:
                iteration += 1
                tick = time.perf_counter()
                block.project()
                if watch.V is not None:
                    self._balance(block, watch, iteration)
                check = iteration % interval == 0 or iteration == min(5, interval)
                theta = self._measure(block, watch) if check else None
                block.advance()
                self.seconds["admm"] += time.perf_counter() - tick
                if theta is not None:
                    kept = self._check(columns, block, watch, theta, iteration, joint)
                    columns = columns[kept]
                    if joint and len(columns) == 0:
                        return
                self._interrupt(iteration)
        except KeyboardInterrupt:
            self._store(columns, block, iteration)
            raise Interrupted(Status.INTERRUPTED) from None
        except Interrupted:
            self._store(columns, block, iteration)
            raise
        self._store(columns, block, iteration)

    # Steps of the loop ------------------------------------------------------------------------

    def _start(
        self, columns: Index, epsilon: Any, lambda_: Any
    ) -> tuple[Index, Any, Any, Block | None]:
        """Answer the trivial outputs, and build the block of the others at its starting point."""
        settings, answer = self.settings, self.answer
        f = self.factorisation
        lower, upper = self.box(columns)
        penalty = self.penalty(columns)
        V, beta, E, distance = self.zero_weights(lower, upper)
        limit = np.divide(
            np.abs(f.adjoint(E)), penalty, out=np.zeros_like(penalty), where=penalty > 0
        ).max(axis=1, initial=0.0)
        limit = np.where(limit > 0, limit, 1.0)
        if np.ndim(epsilon) == 1:
            trivial = distance <= epsilon
            answer.beta[columns[trivial]] = beta[trivial]
            answer.lambda_[columns[trivial]] = limit[trivial]
            self.finish(columns[trivial], 0)
            left = ~trivial
            columns, epsilon = columns[left], epsilon[left]
            lower, upper, penalty = lower[left], upper[left], penalty[left]
            V, beta, E, limit = V[left], beta[left], E[left], limit[left]
        if len(columns) == 0:
            return columns, epsilon, lambda_, None
        self.natural[columns] = limit
        rho = (settings.rho or RHO) / limit
        theta = np.divide(E, limit[:, None], out=E)
        warm = self.warm_start(columns)
        if warm is not None:
            V, beta, theta, previous = warm
            rho = np.where(np.isfinite(previous), previous, rho)
        single = settings.dtype == "float32" or (
            settings.dtype == "auto" and f.n_samples * f.n_inputs * len(columns) > SMALL
        )
        block = Block(
            f, lower, upper, penalty, epsilon, lambda_, self.problem.strict, (V, beta, theta), rho,
            settings.relaxation, np.float32 if single else np.float64, self.workers,
            self.context.n_threads,
        )  # fmt: skip
        return columns, epsilon, lambda_, block

    def zero_weights(self, lower: Array, upper: Array) -> tuple[Array, Array, Array, Array]:
        """Return zero weights, the best intercepts for them, their E, and their distance."""
        m = len(lower)
        beta, squares = np.zeros(m), np.empty(m)
        if self.factorisation.intercept:
            kernels.best_constants(lower, upper, beta, squares)
        E = beta[:, None] - np.clip(beta[:, None], lower, upper)
        distance = np.linalg.norm(E, axis=1)
        if self.problem.strict:
            hard = np.any((E != 0) & (lower < upper), axis=1)
            distance = np.where(hard, np.inf, distance)
        return np.zeros((m, self.factorisation.n_inputs)), beta, E, distance

    def warm_start(self, columns: Index) -> tuple[Array, Array, Array, Array] | None:
        """Return V, beta, theta and rho from the answers so far, or from the user's solution."""
        answer, f = self.answer, self.factorisation
        if np.isfinite(answer.rho[columns]).all():
            return (
                answer.V[columns], answer.beta[columns],
                np.ascontiguousarray(answer.theta[:, columns].T), answer.rho[columns],
            )  # fmt: skip
        given = self.context.warm_start
        if given is None:
            return None
        W = given.W[:, columns].astype(np.float64)
        V = np.ascontiguousarray((W * f.norm[:, None]).T)
        b = np.zeros(len(columns)) if given.b is None else given.b[columns].astype(np.float64)
        beta = b + f.mean @ W
        if given.theta is None:
            theta = np.zeros((len(columns), f.n_samples))
        else:
            theta = np.ascontiguousarray(given.theta[:, columns].T)
        rho = np.full(len(columns), np.nan) if given.rho is None else given.rho[columns]
        return V, beta, theta, rho

    def _measure(self, block: Block, watch: Watch) -> NDArray[Any]:
        theta, step, size, force = block.measure()
        watch.V, watch.lengths = block.V, (step, size, force)
        return theta

    def _balance(self, block: Block, watch: Watch, iteration: int) -> None:
        """Balance the relative residuals by rho, one iteration after a check.

        The step ``S_1 - S_2`` splits into a part along the graph, the dual residual, by which the
        projection has moved since, and a part across it, the primal residual.
        """
        assert watch.lengths is not None
        step, size, force = watch.lengths
        moved = (block.V - watch.V) / block.dtype.type(block.relaxation)
        dual = np.minimum(block.graph_square(moved), step)
        primal = step - dual
        watch.V = None
        if not self.settings.adaptive_rho or iteration < watch.balance:
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
        self, columns: Index, block: Block, watch: Watch, theta: NDArray[Any], iteration: int,
        joint: bool,
    ) -> NDArray[np.bool_]:  # fmt: skip
        """Polish what has settled, drop what is proved; return which outputs stay."""
        support = block.answer != 0
        changes = np.count_nonzero(support != watch.support, axis=1)
        watch.support = support
        settled = changes <= np.maximum(2, SETTLED * support.sum(axis=1))
        self._report(iteration)
        if joint:
            if self._stuck(columns, block, watch, theta, iteration).any():
                if self.refute(columns, block.epsilon).any():
                    return np.zeros(len(columns), dtype=bool)
            done = iteration >= FIRST_POLISH and settled.mean() > 0.9
            if done or iteration >= self.settings.max_iter:
                self._store(columns, block, iteration)
                return np.zeros(len(columns), dtype=bool)
            return np.ones(len(columns), dtype=bool)
        keep = np.ones(len(columns), dtype=bool)
        if block.epsilon is not None:
            stuck = np.flatnonzero(self._stuck(columns, block, watch, theta, iteration))
            if len(stuck):
                keep[stuck] = ~self.refute(columns[stuck], block.epsilon[stuck])
                settled &= keep
        settled |= iteration >= 4 * watch.attempt
        candidates = np.flatnonzero(settled & (iteration >= watch.attempt))
        if self.settings.polish and len(candidates):
            V, beta = block.estimate()
            proved = self._polish_block(columns, block, candidates, V, beta, theta, iteration)
            keep[candidates[proved]] = False
            watch.attempt[candidates[~proved]] = int(1.5 * iteration)
        if not keep.all():
            block.keep(keep)
            watch.keep(keep)
        if block.dtype == np.float32 and iteration >= SINGLE_ITERATIONS and len(block):
            if self.settings.dtype == "auto":
                block.to_double(*self.box(columns[keep]))
                watch.V = None
        return keep

    def _polish_block(
        self, columns: Index, block: Block, candidates: Index, V: Array, beta: Array,
        theta: NDArray[Any], iteration: int,
    ) -> NDArray[np.bool_]:  # fmt: skip
        multiplier = block.multiplier[candidates]
        self.answer.rho[columns[candidates]] = block.rho[candidates]
        proved = self.polish(
            columns[candidates], V[candidates], beta[candidates], multiplier,
            block.epsilon[candidates] if np.ndim(block.epsilon) == 1 else None,
            theta[candidates], iteration,
        )  # fmt: skip
        return proved

    def polish(
        self, columns: Index, V: Array, beta: Array, multiplier: Array, epsilon: Array | None,
        theta: NDArray[Any], iteration: int,
    ) -> NDArray[np.bool_]:  # fmt: skip
        """Polish some outputs, group by group; store and return those that were proved."""
        tick = time.perf_counter()
        proved = np.zeros(len(columns), dtype=bool)
        for start in range(0, len(columns), GROUP):
            part = slice(start, start + GROUP)
            group = self.group(
                columns[part], V[part], beta[part], multiplier[part],
                None if epsilon is None else epsilon[part], theta[part],
            )  # fmt: skip
            group.tangent = self.answer.tangent[columns[part]]
            group.tangent_beta = self.answer.tangent_beta[columns[part]]
            polish(self.factorisation, group, self.tolerances)
            if epsilon is not None:
                self._check_idle(columns[part], group, multiplier[part])
            proved[part] = group.proved
            self._store_group(columns[part], group)
            self.finish(columns[part][group.proved], iteration)
        self.seconds["polish"] += time.perf_counter() - tick
        return proved

    def _check_idle(self, columns: Index, group: Group, multiplier: Array) -> None:
        """Withdraw the proof of outputs whose ball was left out but is not kept after all."""
        idle = np.flatnonzero(~np.isfinite(multiplier) & group.proved & (group.radius > 0))
        if len(idle) == 0:
            return
        lower, upper = self.box(columns[idle])
        Z, shift = self.factorisation.forward(group.V[idle])
        Z += (shift + group.beta[idle])[:, None]
        E = np.where(lower == upper, Z - lower, 0.0) if self.problem.strict else (
            Z - np.clip(Z, lower, upper)
        )
        group.squares[idle, 0] = np.sum(np.square(E, where=np.isfinite(E), out=np.zeros_like(E)), 1)
        excess = np.sqrt(group.squares[idle, 0]) - group.radius[idle]
        group.proved[idle] = excess <= self.tolerances.feas * group.scale[idle]

    def group(
        self, columns: Index, V: Array, beta: Array, multiplier: Array, epsilon: Array | None,
        theta: NDArray[Any],
    ) -> Group:  # fmt: skip
        """Build the polish's view of some outputs."""
        lower, upper = self.box(columns)
        target = self.problem.target_norms[columns]
        scale = target
        if self.problem.joint:
            # The outputs share the radius that their violations are measured against.
            share = self.problem.epsilon / np.sqrt(self.problem.n_outputs)  # type: ignore[operator]
            scale = np.maximum(share, RADIUS_FLOOR * target)
        hard = lower < upper if self.problem.strict else None
        radius = equality = np.full(len(columns), np.inf)
        if epsilon is not None:
            radius, scale = epsilon, np.maximum(epsilon, RADIUS_FLOOR * target)
            point = epsilon == 0
            if point.any():
                hard = point[:, None] | (False if hard is None else hard)
                hard = np.broadcast_to(hard, lower.shape)
            # Without a force on the ball its rows are free here (and looked at afterwards), or they
            # are hard when the ball is a point; lambda is then only the unit of the multipliers.
            idle = ~np.isfinite(multiplier) & ~point
            free = idle[:, None] & (lower == upper)
            lower, upper = np.where(free, -np.inf, lower), np.where(free, np.inf, upper)
            equality = np.where(point | idle, np.inf, epsilon)
            usable = np.isfinite(multiplier) & (multiplier > 0) & ~point
            multiplier = np.where(usable, multiplier, self.natural[columns])
        nu = None
        if hard is not None:
            nu = np.where(hard, multiplier[:, None] * theta, 0.0)
        return Group(
            lower=lower, upper=upper, penalty=self.penalty(columns), epsilon=equality,
            radius=radius, scale=scale,
            hard=hard, V=V.copy(), beta=beta.copy(), lambda_=multiplier.copy(), nu=nu,
        )  # fmt: skip

    def _stuck(
        self, columns: Index, block: Block, watch: Watch, theta: NDArray[Any], iteration: int
    ) -> NDArray[np.bool_]:
        """Return which outputs look as if their radius were out of reach, at the times to look.

        The dual values of an infeasible problem grow without limit, its iterates do not: a lower
        bound above twice the present objective gives it away.
        """
        if iteration < watch.radius_check:
            return np.zeros(len(columns), dtype=bool)
        watch.radius_check = 4 * iteration
        problem = self.problem.select(columns)
        bounds, _ = dual_bounds(problem, dual_terms(problem, theta.T))
        objectives = np.sum(block.penalty * np.abs(block.answer), axis=1)
        if problem.joint:
            objectives = np.array([objectives.sum()])
        return np.broadcast_to(bounds > SUSPICIOUS * objectives, len(columns))

    def refute(self, columns: Index, epsilon: Any) -> NDArray[np.bool_]:
        """Return which outputs cannot reach their radius; keep the ray and the nearest weights.

        The least distance is a penalised problem without penalties, solved by a run of its own. A
        strict form may fail on its hard rows alone; those are tried first.
        """
        problem = self.problem.select(columns)
        best, refuted = None, np.zeros(len(columns), dtype=bool)
        for part in [problem.hard_rows(), problem] if self.problem.strict else [problem]:
            settings = replace(self.settings, max_iter=1000)
            context = Context(n_threads=self.context.n_threads, started=self.context.started)
            run = Run(part.least_distance(), settings, context, self.factorisation, self.workers)
            run.solve_all()
            distance = np.where(run.answer.proved, np.sqrt(run.answer.square), 0.0)
            if part is not problem:
                # Any distance of the hard rows alone, beyond rounding, refutes every radius.
                refuted = distance > 1e-9 * problem.target_norms
            elif np.ndim(epsilon) == 0:
                out = np.linalg.norm(distance) > epsilon * (1 + self.settings.tol_feas)
                refuted = np.full(len(columns), out)
            else:
                refuted = distance > epsilon * (1 + self.settings.tol_feas)
            best = run.answer
            if refuted.any():
                break
        if refuted.any():
            kept = columns[refuted]
            if self.answer.ray is None:
                self.answer.ray = np.zeros_like(self.answer.theta)
            self.answer.ray[:, kept] = best.theta[:, refuted]
            self.answer.V[kept], self.answer.beta[kept] = best.V[refuted], best.beta[refuted]
            for j in kept:
                self.answer.stops[j] = Status.INFEASIBLE
        return refuted

    # Answers ----------------------------------------------------------------------------------

    def _store_group(self, columns: Index, group: Group) -> None:
        answer, done = self.answer, group.proved
        kept = columns[done]
        answer.V[kept], answer.beta[kept] = group.V[done], group.beta[done]
        answer.tangent[kept] = group.tangent[done]
        answer.tangent_beta[kept] = group.tangent_beta[done]
        answer.lambda_[kept], answer.square[kept] = group.lambda_[done], group.squares[done, 0]
        answer.theta[:, kept] = (group.y[done] / group.lambda_[done, None]).T

    def finish(self, columns: Index, iteration: int) -> None:
        self.answer.proved[columns] = True
        self.answer.iterations[columns] += iteration
        for j in columns:
            self.answer.stops[j] = Status.OPTIMAL

    def _store(self, columns: Index, block: Block, iteration: int) -> None:
        """Keep the current estimates of outputs that are not proved."""
        if len(columns) == 0 or block.V is None:
            return
        answer = self.answer
        theta = block.measure()[0]
        V, beta = block.estimate()
        answer.V[columns], answer.beta[columns] = V, beta
        answer.lambda_[columns], answer.rho[columns] = block.multiplier, block.rho
        answer.theta[:, columns] = theta.T
        answer.iterations[columns] += iteration

    def _report(self, iteration: int) -> None:
        if self.context.callback is None:
            return
        progress = Progress(
            iteration, self.problem.n_outputs, int(self.answer.proved.sum()), self.context.elapsed()
        )
        if self.context.callback(progress):
            raise Interrupted(Status.INTERRUPTED)

    def _interrupt(self, iteration: int) -> None:
        limit = self.settings.time_limit
        if limit is not None and self.context.elapsed() > limit:
            raise Interrupted(Status.TIME_LIMIT)
