"""What the stages of one call share: problem, settings, clock, answers, and the polish's pool.

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

from ...problem import Problem
from ...products import radius_floor, row_targets
from ...status import Status
from .. import Context, Progress, kernels
from .factorisation import Factorisation
from .newton import STIFFER, Output, carry
from .polish import Tolerances, polish

Array = NDArray[np.float64]
Index = NDArray[np.int64]

#: Arrays of shape (P, block) that a block may take: five iterate, and the polish needs some room.
ARRAYS = 6

#: Outputs polished at a time (by one worker), and the least number of outputs in a block for each.
POOL = 32
POOL_SHARE = 8

#: An attempt carries y (:func:`.newton.carry`) after so many less one that failed.
CARRIED_EVERY = 3

#: Outputs whose float64 arrays are made at a time where whole blocks of them need not be there.
CHUNK = 16


@dataclass
class Answer:
    """The best answers so far, for all outputs, in scaled coordinates."""

    V: Array
    beta: Array
    tangent: Array
    tangent_beta: Array
    tangent_nu: list[tuple[Index, Array]]
    lambda_: Array
    line: Array
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
        workers: Executor | None, small: bool = False,
    ) -> None:  # fmt: skip
        self.small = small  # and so finished by another method
        self.problem, self.settings, self.context = problem, settings, context
        self.factorisation, self.workers = factorisation, workers
        self.seconds = {"admm": 0.0, "polish": 0.0}
        self.tolerances = Tolerances(
            0.5 * settings.tol_gap,
            0.3 * settings.tol_feas,
            settings.polish_sweeps,
        )
        self.natural = np.ones(problem.n_outputs)
        self.row_targets = row_targets(problem)
        self.tries = np.zeros(problem.n_outputs, dtype=np.int64)
        M, N, P = problem.n_outputs, problem.n_inputs, problem.n_samples
        self.answer = Answer(
            V=np.zeros((M, N)), beta=np.zeros(M), tangent=np.zeros((M, N)),
            tangent_beta=np.zeros(M), tangent_nu=[(np.zeros(0, dtype=np.int64), np.zeros(0))] * M,
            lambda_=np.full(M, np.nan), line=np.full((M, 2), np.nan), rho=np.full(M, np.nan),
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

    def in_chunks(self, count: int, work: Callable[[slice], None], width: int = CHUNK) -> None:
        """Do some work on so many outputs, a few at a time so that memory stays low."""
        chunks = [slice(k, min(k + width, count)) for k in range(0, count, width)]
        list((map if self.workers is None else self.workers.map)(work, chunks))

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

    def slopes(self, columns: Index) -> Array:
        """Return ``q_j``: squared distances change by ``2 lambda q_j`` a unit of lambda."""
        answer, slopes = self.answer, np.zeros(len(columns))
        for first in range(0, len(columns), CHUNK):
            some = columns[first : first + CHUNK]
            signed = self.penalty(some) * np.sign(answer.V[some])
            slopes[first : first + CHUNK] = np.sum(signed * answer.tangent[some], axis=1)
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
        rho = np.where(rho > 0, rho, np.nan)
        return V, beta, theta, rho

    def polish(
        self, columns: Index, V: NDArray[Any], beta: Array, multiplier: Array,
        epsilon: Array | None, theta: NDArray[Any], places: Index, iteration: int,
    ) -> NDArray[np.bool_]:  # fmt: skip
        """Polish some outputs; store and return those that were proved.

        Their dual points are at these places of theta, which has a row per output.
        With workers each takes every n-th output, so that the answers do not depend on the clock.
        """
        tick = time.perf_counter()
        proved = np.zeros(len(columns), dtype=bool)
        weights = np.count_nonzero(V, axis=1)
        width = max(1, min(POOL, len(self.blocks()[0]) // POOL_SHARE))
        # Outputs with about as many weights as working rows take most steps. They go first, so
        # that no worker is left with some of them when the others are done.
        working = np.array([np.count_nonzero(theta[place]) for place in places])
        order = np.argsort(-weights / np.maximum(working, 1), kind="stable")

        def finish(output: Output) -> None:
            k, j = output.name, columns[output.name]
            if output.proved and epsilon is not None and not np.isfinite(multiplier[k]):
                output.proved = self._keeps_idle(j, output)
            proved[k] = output.proved
            self.tries[j] += not output.proved  # the next attempt is made the other way
            if output.proved:
                self._store_output(j, output)
                self.finish([j], iteration)

        def work(part: Index) -> None:
            outputs = (
                self.output(
                    k, columns[k], V[k], beta[k], multiplier[k],
                    None if epsilon is None else epsilon[k], theta[places[k]],
                )
                for k in part
            )  # fmt: skip
            polish(self.factorisation, outputs, self.tolerances, width, finish)

        if self.workers is None:
            work(order)
        else:
            n = self.context.n_threads
            list(self.workers.map(work, [order[t::n] for t in range(n)]))
        self.seconds["polish"] += time.perf_counter() - tick
        return proved

    def _keeps_idle(self, column: int, output: Output) -> bool:
        """Return whether an output whose ball was left out keeps it after all."""
        if output.radius == 0:
            return True
        lower, upper = self.box([column])
        Z, shift = self.factorisation.forward(output.V[None])
        Z += shift[0] + output.beta
        E = np.where(lower == upper, Z - lower, 0.0) if self.problem.strict else (
            Z - np.clip(Z, lower, upper)
        )  # fmt: skip
        output.square = float(np.sum(np.square(E, where=np.isfinite(E), out=np.zeros_like(E))))
        excess = np.sqrt(output.square) - output.radius
        return bool(excess <= self.tolerances.feas * output.scale)

    def output(
        self, name: int, column: int, V: NDArray[Any], beta: float, multiplier: float,
        epsilon: float | None, theta: NDArray[Any],
    ) -> Output:  # fmt: skip
        """Build the polish's view of an output."""
        lower, upper = (end[0] for end in self.box([column]))
        target = float(self.problem.target_norms[column])
        scale = target
        if self.problem.joint:
            # The outputs share the radius that their violations are measured against.
            share = float(self.problem.epsilon) / np.sqrt(self.problem.n_outputs)  # type: ignore[arg-type]
            scale = max(share, radius_floor(self.problem) * target)
        hard = lower < upper if self.problem.strict else None
        radius = equality = np.inf
        if epsilon is not None:
            radius = equality = float(epsilon)
            scale = max(radius, radius_floor(self.problem) * target)
            point, idle = radius == 0, not np.isfinite(multiplier)
            # Without a force on the ball its rows are free here (and looked at afterwards), or they
            # are hard when the ball is a point; lambda is then only the unit of the multipliers.
            if point:
                hard = np.ones(len(lower), dtype=bool)
            elif idle:
                free = lower == upper
                lower, upper = np.where(free, -np.inf, lower), np.where(free, np.inf, upper)
            if point or idle:
                equality = np.inf
            if point or idle or multiplier <= 0:
                multiplier = float(self.natural[column])
        output = Output(
            name=name, lower=lower, upper=upper, penalty=self.penalty([column])[0],
            epsilon=equality, radius=radius, scale=scale, hard=hard, V=V.astype(np.float64),
            beta=float(beta), lambda_=float(multiplier),
            nu=None if hard is None else np.where(hard, multiplier * theta, 0.0),
            tangent=self.answer.tangent[column].copy(),
            tangent_beta=float(self.answer.tangent_beta[column]),
            tangent_nu=self.answer.tangent_nu[column], least=int(self.problem.joint),
            strict=self.problem.strict, target=float(self.row_targets[column]),
        )  # fmt: skip
        if (attempt := self.tries[column] % CARRIED_EVERY) == 1:
            output.stiffness = STIFFER
        elif attempt == CARRIED_EVERY - 1:
            carry(output, float(self.natural[column]), theta)
        return output

    def _store_output(self, j: int, output: Output) -> None:
        answer = self.answer
        answer.V[j], answer.beta[j] = output.V, output.beta
        answer.tangent[j], answer.tangent_beta[j] = output.tangent, output.tangent_beta
        answer.tangent_nu[j] = output.tangent_nu
        answer.lambda_[j], answer.square[j] = output.multiplier, output.square
        answer.line[j] = np.nan
        answer.theta[:, j] = output.y / output.lambda_

    def finish(self, columns: Any, iteration: int) -> None:
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
