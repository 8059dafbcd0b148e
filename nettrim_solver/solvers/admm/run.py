"""What the stages of one call share: problem, settings, clock, answers, and the polish's groups.

Everything here is in the scaled coordinates of :mod:`.factorisation`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...certificate import RADIUS_FLOOR
from ...problem import Problem
from ...status import Status
from ...threads import limit_threads
from .. import Context, Progress, kernels
from .factorisation import Factorisation
from .polish import Group, Tolerances, polish

Array = NDArray[np.float64]
Index = NDArray[np.int64]

#: Arrays of shape (P, block) that a block may take: five iterate, the others are the polish's.
ARRAYS = 8

#: Most outputs polished together, enough for efficient products, and their share of a block.
GROUP = 8
GROUP_SHARE = 16


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


class Interrupted(Exception):  # noqa: N818 - it is no error
    """Raised inside a run by the clock, Ctrl-C or the callback; never leaves the solver."""

    def __init__(self, status: Status) -> None:
        super().__init__(str(status))
        self.status = status


class Run:
    """One call of the solver: problem, settings, clock, answers, and what its stages share."""

    def __init__(
        self, problem: Problem, settings: Any, context: Context, factorisation: Factorisation,
        workers: Executor | None,
    ) -> None:  # fmt: skip
        self.problem, self.settings, self.context = problem, settings, context
        self.factorisation, self.workers = factorisation, workers
        self.seconds = {"admm": 0.0, "polish": 0.0}
        self.tolerances = Tolerances(
            (0.2 if problem.joint else 0.5) * settings.tol_gap,
            0.3 * settings.tol_feas,
            settings.polish_sweeps,
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

    def blocks(self) -> list[Index]:
        """Return the outputs of each block: ``ARRAYS`` (P, m) arrays within the memory limit."""
        width = max(1, self.settings.memory_limit // (ARRAYS * 8 * self.problem.n_samples))
        return [
            np.arange(start, min(start + width, self.problem.n_outputs))
            for start in range(0, self.problem.n_outputs, width)
        ]

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
        open_ = np.ones_like(self.answer.proved) if self.problem.joint else ~self.answer.proved
        for j in np.flatnonzero(open_):
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

    def zero_weights(self, lower: Array, upper: Array) -> tuple[Array, Array, Array]:
        """Return the best intercepts for W = 0, their E of shape (m, P), and their distance."""
        m = len(lower)
        beta, squares = np.zeros(m), np.empty(m)
        if self.factorisation.intercept:
            kernels.best_constants(lower, upper, beta, squares)
        E = beta[:, None] - np.clip(beta[:, None], lower, upper)
        distance = np.linalg.norm(E, axis=1)
        if self.problem.strict:
            hard = np.any((E != 0) & (lower < upper), axis=1)
            distance = np.where(hard, np.inf, distance)
        return beta, E, distance

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

    def polish(
        self, columns: Index, V: Array, beta: Array, multiplier: Array, epsilon: Array | None,
        theta: NDArray[Any], iteration: int,
    ) -> NDArray[np.bool_]:  # fmt: skip
        """Polish some outputs, group by group; store and return those that were proved."""
        tick = time.perf_counter()
        size = max(1, min(GROUP, len(self.blocks()[0]) // GROUP_SHARE))
        parts = [slice(start, start + size) for start in range(0, len(columns), size)]

        def work(part: slice) -> Group:
            radii = None if epsilon is None else epsilon[part]
            group = self.group(
                columns[part], V[part], beta[part], multiplier[part], radii, theta[part]
            )
            group.tangent = self.answer.tangent[columns[part]]
            group.tangent_beta = self.answer.tangent_beta[columns[part]]
            polish(self.factorisation, group, self.tolerances)
            if epsilon is not None:
                self._check_idle(columns[part], group, multiplier[part])
            return group

        proved = np.zeros(len(columns), dtype=bool)
        for part, group in zip(parts, self._map(work, parts), strict=True):
            proved[part] = group.proved
            self._store_group(columns[part], group)
            self.finish(columns[part][group.proved], iteration)
        self.seconds["polish"] += time.perf_counter() - tick
        return proved

    def _map(self, work: Callable[[slice], Group], parts: list[slice]) -> Iterator[Group]:
        """Run the polish on groups: on all workers, with one BLAS thread each.

        Its systems are small; a threaded BLAS would spend more on waking its threads than on them.
        """
        if self.workers is None:
            yield from map(work, parts)
            return
        n = self.context.n_threads
        with limit_threads(1):
            # As many at a time as there are workers: groups in waiting would hold memory.
            for start in range(0, len(parts), n):
                yield from self.workers.map(work, parts[start : start + n])

    def _check_idle(self, columns: Index, group: Group, multiplier: Array) -> None:
        """Withdraw the proof of outputs whose ball was left out but is not kept after all."""
        idle = np.flatnonzero(~np.isfinite(multiplier) & group.proved & (group.radius > 0))
        if len(idle) == 0:
            return
        lower, upper = self.box(columns[idle])
        Z, shift = self.factorisation.forward(group.V[idle])
        Z += (shift + group.beta[idle])[:, None]
        E = (
            np.where(lower == upper, Z - lower, 0.0)
            if self.problem.strict
            else (Z - np.clip(Z, lower, upper))
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
            share = self.problem.epsilon / np.sqrt(self.problem.n_outputs)
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

    def _store_group(self, columns: Index, group: Group) -> None:
        answer, done = self.answer, group.proved
        kept = columns[done]
        answer.V[kept], answer.beta[kept] = group.V[done], group.beta[done]
        answer.tangent[kept] = group.tangent[done]
        answer.tangent_beta[kept] = group.tangent_beta[done]
        answer.lambda_[kept], answer.square[kept] = group.lambda_[done], group.squares[done, 0]
        answer.theta[:, kept] = (group.y[done] / group.lambda_[done, None]).T

    def finish(self, columns: Index, iteration: int) -> None:
        """Count outputs as proved."""
        self.answer.proved[columns] = True
        self.answer.iterations[columns] += iteration
        for j in columns:
            self.answer.stops[j] = Status.OPTIMAL

    def report(self, iteration: int) -> None:
        """Call the user's callback, and stop if it says so."""
        if self.context.callback is None:
            return
        progress = Progress(
            iteration, self.problem.n_outputs, int(self.answer.proved.sum()), self.context.elapsed()
        )
        if self.context.callback(progress):
            raise Interrupted(Status.INTERRUPTED)

    def check_clock(self) -> None:
        """Stop when the time limit is over."""
        limit = self.settings.time_limit
        if limit is not None and self.context.elapsed() > limit:
            raise Interrupted(Status.TIME_LIMIT)
