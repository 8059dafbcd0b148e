"""The exact end of small problems, of what ADMM and polish leave open.

Degenerate vertices, unpenalised inputs that suffice alone, and radii near the least distance let
the polish cycle. A group of outputs (one, or all that share a radius) that is small enough for
dense factorisations of its own is handed to :mod:`.interior_point`, in order:

1. the unpenalised inputs alone: weights that cost nothing are optimal where they keep the radius;
2. the program itself; its answer is solved once more on the support, so that zeros are exact, and
   where the support has more inputs than their rank, a linear program finds a vertex of it;
3. the least distance, of the hard rows alone and then of all, whose residual proves a radius (or
   hard rows) out of reach.

The judge (:func:`nettrim_solver.certificate.certify`) decides what counts, from the data as given.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from ...certificate import certify, least_radius
from ...problem import Problem
from ...solution import RawSolution
from ...status import Status
from .. import Context
from .interior_point import InteriorPoint, Point, Program

Array = NDArray[np.float64]

#: Largest groups, in flops of a factorisation per output, that are finished here.
MOST_WORK = 3e7

#: Outputs judged at a time, so that memory stays low.
JUDGED = 8

#: Columns whose centred norm is below this fraction of their own norm are constants.
CONSTANT_COLUMN = 1e-12

#: Share of the largest weight below which one that its own multiplier outweighs is zero.
NEGLIGIBLE = 1e-12

#: Singular values of a support, relative to the largest, that count for its rank.
RANK = 1e-10


@dataclass
class Found:
    """An answer to a group with its dual point, or its nearest weights with a ray."""

    W: Array
    b: Array | None
    theta: Array
    infeasible: bool = False


def finish(problem: Problem, raw: RawSolution, settings: Any, context: Context) -> RawSolution:
    """Settle the open outputs of a solution whose groups are small enough.

    Parameters
    ----------
    problem : Problem
    raw : RawSolution
        Its arrays and lists are changed in place.
    settings : Settings
        ``tol_gap``, ``tol_feas`` and ``time_limit`` are used.
    context : Context
    """
    assert raw.theta is not None and raw.multiplier is not None
    every = np.arange(problem.n_outputs)
    undecided = ~_proved(problem, raw, settings)
    if Status.INTERRUPTED in raw.stops or Status.TIME_LIMIT in raw.stops:
        return raw
    groups = [every] if problem.joint else [every[j : j + 1] for j in every]
    rays = np.zeros_like(raw.theta) if raw.ray is None else raw.ray
    for group in groups:
        if not undecided[group].any() or not fits(problem, len(group)):
            continue
        try:
            if settings.time_limit is not None and context.elapsed() > settings.time_limit:
                _stop(raw, undecided, Status.TIME_LIMIT)
                break
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                found = Finish(problem.select(group), settings).settle()
        except KeyboardInterrupt:
            _stop(raw, undecided, Status.INTERRUPTED)
            break
        if found is None:
            continue
        raw.W[:, group] = found.W
        if raw.b is not None and found.b is not None:
            raw.b[group] = found.b
        if found.infeasible:
            rays[:, group] = found.theta
        else:
            raw.theta[:, group] = found.theta
            raw.multiplier[group] = _multiplier(problem, found.theta, group)
        for j in group:
            raw.stops[j] = Status.INFEASIBLE if found.infeasible else Status.OPTIMAL
        undecided[group] = False
    return replace(raw, ray=rays if rays.any() else None)


def _proved(problem: Problem, raw: RawSolution, settings: Any) -> NDArray[np.bool_]:
    """Return which outputs the judge proves, a few at a time where each stands for itself."""
    M, width = problem.n_outputs, problem.n_outputs if problem.joint else JUDGED
    proved = np.zeros(M, dtype=bool)
    for start in range(0, M, width):
        some = np.arange(start, min(start + width, M))
        b = None if raw.b is None else raw.b[some].astype(problem.dtype)
        assert raw.theta is not None
        W = raw.W[:, some].astype(problem.dtype)
        judged = certify(problem.select(some), W, b, raw.theta[:, some])
        proved[some] = judged.proved(settings.tol_gap, settings.tol_feas)
    return proved


def _stop(raw: RawSolution, undecided: NDArray[np.bool_], status: Status) -> None:
    for j in np.flatnonzero(undecided):
        raw.stops[j] = status


def fits(problem: Problem, n_outputs: int) -> bool:
    """Return whether a group of so many outputs is small enough."""
    P, N = problem.n_samples, problem.n_inputs
    return n_outputs * (P + N) * float(min(P + N, N)) ** 2 <= MOST_WORK


class Finish:
    """One group of outputs in unit columns and unit targets, and the programs about it."""

    def __init__(self, problem: Problem, settings: Any) -> None:
        self.problem, self.settings = problem, settings
        X = problem.X.toarray() if sp.issparse(problem.X) else problem.X
        X = X.astype(np.float64)
        P, size = len(X), np.abs(X).max(axis=0, initial=0.0)
        self.mean = X.mean(axis=0) if problem.intercept else np.zeros(X.shape[1])
        X = X - self.mean
        norm = np.linalg.norm(X, axis=0)
        self.live = norm > CONSTANT_COLUMN * size * np.sqrt(P) if problem.intercept else norm > 0
        self.norm = norm[self.live]
        X = X[:, self.live] / self.norm
        cost = np.broadcast_to(problem.penalty(), (problem.n_inputs, problem.n_outputs))
        cost = cost[self.live] / self.norm[:, None]
        if problem.intercept:
            X = np.column_stack([X, np.full(P, 1.0 / np.sqrt(P))])
            cost = np.vstack([cost, np.zeros(problem.n_outputs)])
        if not X.shape[1]:  # nothing can be done; an absent input stands for that
            X, cost = np.zeros((P, 1)), np.full((1, problem.n_outputs), np.inf)
        self.X, self.cost = X, np.ascontiguousarray(cost.T)
        lower, upper = problem.box()
        self.target = float(np.linalg.norm(problem.target_norms)) or 1.0
        self.lower = np.ascontiguousarray(lower.T) / self.target
        self.upper = np.ascontiguousarray(upper.T) / self.target
        self.ball = (self.lower == self.upper) | (not problem.strict)
        epsilon: Any = problem.epsilon
        lambda_: Any = problem.lambda_
        self.epsilon = None if epsilon is None else float(np.ravel(epsilon)[0]) / self.target
        self.lambda_ = None if lambda_ is None else float(np.ravel(lambda_)[0]) / self.target

    # The order of things ----------------------------------------------------------------------

    def settle(self) -> Found | None:
        """Return a proved answer, or the proof that there is none, or None for neither."""
        found = None
        if self.epsilon is not None and np.any(self.cost == 0):
            found = self.try_unpenalised()
        return found or self.try_program() or self.refute()

    def try_unpenalised(self) -> Found | None:
        """Return weights that cost nothing, if they keep the radius."""
        free = self.cost == 0
        nearest = self.least_distance(np.where(free, 0.0, np.inf))
        return self.proved(np.where(free, nearest.weights(), 0.0), np.zeros_like(self.lower))

    def try_program(self) -> Found | None:
        """Return a proved answer to the program itself."""
        epsilon = self.epsilon
        point = epsilon is not None and epsilon <= 0.0
        program = Program(
            self.X, self.lower, self.upper, self.ball, self.cost,
            None if point else epsilon, self.lambda_,
        )  # fmt: skip
        if point:
            program = replace(program, ball=np.zeros_like(self.ball))
        method = InteriorPoint(program)
        rough = clean = method.solve()
        for _ in range(2):
            support = _support(method, clean)
            if support.all() or not np.any(support):
                break
            method = InteriorPoint(replace(program, cost=np.where(support, self.cost, np.inf)))
            clean = method.solve()
            V = np.where(support, clean.weights(), 0.0)
            for weights in (self.vertex(V), V):
                for theta in (rough.theta, clean.theta):
                    if (found := self.proved(weights, theta)) is not None:
                        return found
        V = rough.weights()
        kept = np.where(_support(InteriorPoint(program), rough), V, 0.0)
        return self.proved(kept, rough.theta) or self.proved(V, rough.theta)

    def vertex(self, V: Array) -> Array:
        """Return weights with the same products, and no more of them nonzero than their rank."""
        import scipy.optimize  # 0.2 s that most calls need not spend

        V = V.copy()
        for j, v in enumerate(V):
            support = np.flatnonzero(v)
            if len(support) < 2:
                continue
            X = self.X[:, support]
            singular = np.linalg.svd(X, compute_uv=False)
            if np.sum(singular > RANK * singular[0]) == len(support):
                continue
            U, values, Vt = np.linalg.svd(X, full_matrices=False)
            rank = int(np.sum(values > RANK * values[0]))
            rows = Vt[:rank]
            found = scipy.optimize.linprog(
                np.tile(self.cost[j, support], 2), A_eq=np.hstack([rows, -rows]),
                b_eq=rows @ v[support], bounds=(0, None), method="highs-ds",
            )  # fmt: skip
            if found.x is None:
                continue
            kept = support[(found.x[: len(support)] - found.x[len(support) :]) != 0]
            if 0 < len(kept) < len(support):
                new = np.linalg.lstsq(self.X[:, kept], X @ v[support], rcond=None)[0]
                V[j] = 0.0
                V[j, kept] = new
        return V

    # Least distances --------------------------------------------------------------------------

    def least_distance(
        self, cost: Array | None = None, ball: NDArray[np.bool_] | None = None
    ) -> Point:
        """Return the point nearest to the box; infinite costs leave inputs out."""
        cost = np.zeros_like(self.cost) if cost is None else cost
        lower, upper = self.lower, self.upper
        if ball is not None:  # the hard rows alone
            lower = np.where(ball, lower, -np.inf)
            upper = np.where(ball, upper, np.inf)
        ball = self.ball if ball is None else ball
        return InteriorPoint(Program(self.X, lower, upper, ball, cost, None, 1.0)).solve()

    def refute(self) -> Found | None:
        """Return the nearest weights with a ray that proves radius or hard rows out of reach."""
        from ..reference import exact_ray

        problem, parts = self.problem, []
        if problem.strict and not self.ball.all():
            parts.append(~self.ball)
        if self.epsilon is not None:
            parts.append(None)
        for part in parts:
            point = self.least_distance(ball=part)
            ray = np.zeros((problem.n_samples, problem.n_outputs))
            for j, theta in enumerate(point.theta):
                ray[:, j] = exact_ray(problem.select([j]), theta)
            least = least_radius(problem, ray)
            radius = np.zeros(1) if problem.epsilon is None else np.atleast_1d(problem.epsilon)
            bar = np.inf if problem.penalised else radius * (1.0 + self.settings.tol_feas)
            if np.all(least > bar) or np.all(np.isinf(least)):
                return Found(*self.unscaled(point.weights()), ray, infeasible=True)
        return None

    # The judge --------------------------------------------------------------------------------

    def proved(self, V: Array, theta: Array) -> Found | None:
        """Return an answer in the problem's own units if the judge proves it."""
        W, b = self.unscaled(V)
        W = W.astype(self.problem.dtype)
        b = None if b is None else b.astype(self.problem.dtype)
        point = np.ascontiguousarray(theta.T)
        judged = certify(self.problem, W, b, point)
        if not judged.proved(self.settings.tol_gap, self.settings.tol_feas).all():
            return None
        return Found(W.astype(np.float64), b, point)

    def unscaled(self, V: Array) -> tuple[Array, Array | None]:
        """Return W and b."""
        W = np.zeros((self.problem.n_inputs, self.problem.n_outputs))
        n = len(self.norm)
        W[self.live] = self.target * V[:, :n].T / self.norm[:, None]
        if not self.problem.intercept:
            return W, None
        beta = self.target * V[:, n] / np.sqrt(len(self.X))
        return W, beta - self.mean @ W


def _support(method: InteriorPoint, at: Point) -> NDArray[np.bool_]:
    """Return the weights that are not zero: those larger, in their unit, than their multiplier."""
    cost, paid = method.program.cost, method.paid
    largest = float(np.abs(at.weights()).max()) or 1.0
    cost = np.where(paid & np.isfinite(cost), cost, 1.0)
    size, slack = np.maximum(at.p, at.n) / largest, np.minimum(at.zp, at.zn) / cost
    return np.asarray((size > slack) & (size > NEGLIGIBLE) & paid | method.free)


def _multiplier(problem: Problem, theta: Array, group: NDArray[np.int64]) -> float | Array:
    """Return lambda: that of a penalised problem, or the radius over the norm of theta."""
    if problem.penalised:
        return np.broadcast_to(problem.lambda_, problem.n_outputs)[group]  # type: ignore[arg-type]
    lower, upper = problem.box(group)
    length = float(np.linalg.norm(np.where((lower == upper) | (not problem.strict), theta, 0.0)))
    epsilon = float(np.broadcast_to(problem.epsilon, problem.n_outputs)[group[0]])  # type: ignore[arg-type]
    return epsilon / length if length > 0 else np.inf
