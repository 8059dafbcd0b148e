r"""Reference solver: the penalised forms as quadratic programs for OSQP, roots found on lambda.

For one output and a penalty lambda, with the residual e on the rows that may leave their box,

.. math::

    \min \; \lambda\, c^T (w^+ + w^-) + \tfrac12 \|e\|^2
    \quad \text{s.t.} \quad l \le X (w^+ - w^-) + b - e \le u, \quad w^\pm \ge 0 .

OSQP has no second-order cone, so a radius is met by searching lambda: the distance grows with it,
and its square is piecewise linear in lambda squared. A joint radius has one lambda for all outputs.
OSQP is set up once per output and warm-started at each lambda.

References
----------
Stellato, Banjac, Goulart, Bemporad, Boyd, *OSQP: an operator splitting solver for quadratic
programs*, Mathematical Programming Computation 12 (2020).
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..checks import check_integer, check_number, check_options, check_time_limit
from ..problem import Problem
from ..solution import RawSolution
from ..status import Status
from . import Context, Progress
from .reference import (
    Answer,
    Array,
    OutputData,
    exact_ray,
    outputs_data,
    prefer_zero,
)

#: The distance is met to this fraction of the radius; the judge asks for 1e-6.
RADIUS_TOLERANCE = 1e-8

#: Factor between trial penalties while the root is not bracketed.
BRACKET = 8.0

#: Trial penalties at most: the bracket, and then a root in a piecewise linear function.
MAX_TRIALS = 60

#: Linear programs are solved by proximal steps with this curvature, which end after finitely many
#: (Rockafellar 1976); OSQP alone creeps on them.
PROXIMAL = 1.0
PROXIMAL_STEPS = 100

#: lambda below this fraction of its natural size counts as zero: the radius is then unreachable.
LEAST_LAMBDA = 1e-9


@dataclass(frozen=True)
class Settings:
    """Settings of solver "osqp".

    Attributes
    ----------
    tol_gap, tol_feas : float
        What the judge will ask for.
    eps : float
        OSQP's own absolute and relative tolerance, before its polishing.
    max_iter : int
        OSQP's iterations per quadratic program.
    verbose : bool
        Let OSQP print.
    time_limit : float, optional
        Seconds for the whole layer.
    backend_options : dict, optional
        Further settings of OSQP.
    """

    tol_gap: float = 1e-6
    tol_feas: float = 1e-6
    eps: float = 1e-9
    max_iter: int = 100_000
    verbose: bool = False
    time_limit: float | None = None
    backend_options: dict[str, Any] | None = None

    def validate(self) -> None:
        """Raise SettingsError for a setting out of range."""
        check_time_limit(self.time_limit)
        check_number("eps", self.eps, 0.0, 1.0)
        check_integer("max_iter", self.max_iter, 1)
        check_options("backend_options", self.backend_options)


@dataclass(frozen=True)
class Point:
    """Answer of a group of outputs at one penalty: squared distance and the arrays behind it."""

    lambda_: float
    square: float
    objective: float
    W: Array
    b: Array
    theta: Array


class _StoppedError(Exception):
    """OSQP gave no answer: carries the status and, when infeasible, the rays (P, m)."""

    def __init__(self, status: Status, rays: Array | None = None) -> None:
        super().__init__(str(status))
        self.status = status
        self.rays = rays


class _Program:
    """The quadratic program of one output, set up once.

    With `linear` the residuals cost nothing: the linear program of the hard rows alone.
    """

    def __init__(
        self, data: OutputData, problem: Problem, settings: Settings, linear: bool = False
    ) -> None:
        import osqp

        rows = np.flatnonzero(data.matched | data.bounded)
        soft = np.flatnonzero(data.matched[rows]) if problem.strict else np.arange(rows.size)
        if not problem.penalised and np.all(problem.epsilon == 0):
            soft = soft[:0]
        n, p, s = problem.n_inputs, rows.size, soft.size
        X = sp.csc_matrix(data.X[rows])
        selector = sp.csc_matrix((np.ones(s), (soft, np.arange(s))), shape=(p, s))
        ones = sp.csc_matrix(np.ones((p, 1 if problem.intercept else 0)))
        box = sp.hstack([X, -X, ones, -selector])
        signs = sp.eye_array(2 * n, box.shape[1])
        self.proximal = PROXIMAL if linear or s == 0 else 0.0
        curvature = np.zeros(box.shape[1])
        curvature[: 2 * n] = self.proximal
        curvature[box.shape[1] - s :] = 0.0 if linear else 1.0
        hessian = sp.diags_array(curvature)
        self.c = np.r_[data.c, data.c, np.zeros(box.shape[1] - 2 * n)]
        lower = np.r_[data.lower[rows], np.zeros(2 * n)]
        upper = np.r_[data.upper[rows], np.full(2 * n, np.inf)]
        self.rows, self.soft, self.n_inputs, self.n_samples = rows, soft, n, data.lower.size
        self.intercept = problem.intercept
        self.iterations = 0
        self.solver = osqp.OSQP()
        options = {
            "eps_abs": settings.eps, "eps_rel": settings.eps, "max_iter": settings.max_iter,
            "eps_prim_inf": 1e-9, "eps_dual_inf": 1e-9, "polishing": True,
            "polish_refine_iter": 10, "adaptive_rho": True, "verbose": settings.verbose,
        }  # fmt: skip
        self.solver.setup(
            sp.csc_matrix(hessian), self.c, sp.csc_matrix(sp.vstack([box, signs])), lower, upper,
            **{**options, **(settings.backend_options or {})},
        )  # fmt: skip

    def solve(
        self, lambda_: float, seconds_left: float | None
    ) -> tuple[Array, float, Array, Array]:
        """Return weights, intercept, residual on the soft rows and theta for one penalty."""
        if seconds_left is not None:
            self.solver.update_settings(time_limit=max(seconds_left, 1e-3))
        n = self.n_inputs
        centre = np.zeros(self.c.size)
        for _ in range(PROXIMAL_STEPS if self.proximal else 1):
            x, y = self._run(lambda_ * self.c - self.proximal * centre)
            moved = np.abs(x[: 2 * n] - centre[: 2 * n]).max()
            if moved <= 1e-10 * np.abs(x[: 2 * n]).max(initial=1e-300):
                break
            centre[: 2 * n] = x[: 2 * n]
        # Only the difference enters X w; what both signs share costs objective for nothing.
        w = x[:n] - x[n : 2 * n]
        b = float(x[2 * n]) if self.intercept else 0.0
        theta = np.zeros(self.n_samples)
        theta[self.rows] = y[: self.rows.size]
        return w, b, x[2 * n + self.intercept :], theta

    def _run(self, q: Array) -> tuple[Array, Array]:
        """Run OSQP for one linear term, from where it stands; return primal and dual."""
        import osqp

        self.solver.update(q=q)
        result = self.solver.solve(raise_error=False)
        self.iterations += int(result.info.iter)
        status, states = result.info.status_val, osqp.SolverStatus
        if status == states.OSQP_PRIMAL_INFEASIBLE:
            ray = np.zeros((self.n_samples, 1))
            ray[self.rows, 0] = result.prim_inf_cert[: self.rows.size]
            raise _StoppedError(Status.INFEASIBLE, ray)
        if status == states.OSQP_TIME_LIMIT_REACHED:
            raise _StoppedError(Status.TIME_LIMIT)
        if result.x is None or not np.all(np.isfinite(result.x)):
            raise _StoppedError(Status.FAILED)
        return np.asarray(result.x), np.asarray(result.y)


def solve(problem: Problem, settings: Settings, context: Context) -> RawSolution:
    """Solve with OSQP; see :func:`nettrim_solver.solve`."""
    answer = Answer(problem)
    m = problem.n_outputs
    groups = [range(m)] if problem.joint else [range(j, j + 1) for j in range(m)]
    for group in groups:
        if settings.time_limit is not None and context.elapsed() > settings.time_limit:
            answer.give_up(range(group.start, m), Status.TIME_LIMIT)
            break
        try:
            _solve_group(problem, group, answer, settings, context)
        except KeyboardInterrupt:
            answer.give_up(range(group.start, m), Status.INTERRUPTED)
            break
        except _StoppedError as stopped:
            answer.give_up(group, stopped.status)
            if stopped.rays is not None:
                for k, j in enumerate(group):
                    answer.ray[:, j] = exact_ray(problem, stopped.rays[:, k])
        except Exception as error:
            answer.warn(f"OSQP failed: {type(error).__name__}: {error}")
            answer.give_up(group, Status.FAILED)
        progress = Progress(group.stop, m, 0, context.elapsed())
        if context.callback is not None and context.callback(progress):
            answer.give_up(range(group.stop, m), Status.INTERRUPTED)
            break
    return answer.raw()


def _solve_group(
    problem: Problem, group: range, answer: Answer, settings: Settings, context: Context
) -> None:
    """Solve outputs that share lambda (or one output), and write them into the answer."""
    started = time.perf_counter()
    outputs = outputs_data(problem, group)
    programs = [_Program(data, problem, settings) for data in outputs]
    answer.seconds["compile"] += time.perf_counter() - started
    started = time.perf_counter()
    scales = outputs[0].scales
    try:
        if problem.penalised:
            lambda_: Any = problem.lambda_
            level = float(np.broadcast_to(lambda_, problem.n_outputs)[group.start])
            point = _evaluate(programs, outputs, scales.penalty(level), settings, context)
            stop = Status.UNPROVED
        else:
            epsilon: Any = problem.epsilon
            radius = float(np.broadcast_to(epsilon, problem.n_outputs)[group.start])
            point, stop = _meet_radius(
                programs, outputs, radius / scales.target, problem, settings, context
            )
    finally:
        answer.seconds["solve"] += time.perf_counter() - started
        for program, j in zip(programs, group, strict=True):
            answer.iterations[j] = program.iterations
    columns = slice(group.start, group.stop)
    if stop is Status.INFEASIBLE:
        for k, j in enumerate(group):
            answer.ray[:, j] = exact_ray(problem, point.theta[:, k] * scales.target)
    else:
        # In the program theta = e, and lambda c bounds X^T theta.
        answer.theta[:, columns] = scales.dual(point.theta / point.lambda_)
    answer.W[:, columns], answer.b[columns] = prefer_zero(
        problem, group, scales.primal(point.W), scales.target * point.b, 0.1 * settings.tol_feas
    )
    answer.give_up(group, stop)


def _evaluate(
    programs: list[_Program],
    outputs: list[OutputData],
    lambda_: float,
    settings: Settings,
    context: Context,
) -> Point:
    """Solve every output of a group at one penalty."""
    weights, offsets, duals, square, objective = [], [], [], 0.0, 0.0
    for k, (program, data) in enumerate(zip(programs, outputs, strict=True)):
        left = None if settings.time_limit is None else settings.time_limit - context.elapsed()
        try:
            w, b, e, theta = program.solve(lambda_, left)
        except _StoppedError as stopped:
            if stopped.rays is not None:
                rays = np.zeros((data.lower.size, len(programs)))
                rays[:, [k]] = stopped.rays
                raise _StoppedError(stopped.status, rays) from None
            raise
        weights.append(w)
        offsets.append(b)
        duals.append(theta)
        square += float(e @ e)
        objective += float(data.c @ np.abs(w))
    return Point(
        lambda_, square, objective, np.column_stack(weights), np.array(offsets),
        np.column_stack(duals),
    )  # fmt: skip


def _meet_radius(
    programs: list[_Program],
    outputs: list[OutputData],
    radius: float,
    problem: Problem,
    settings: Settings,
    context: Context,
) -> tuple[Point, Status]:
    """Search the penalty at which the distance is the radius."""
    natural = _natural_penalty(outputs)
    lambda_, low, high, best = 0.1 * natural, None, None, None
    for trial in range(MAX_TRIALS):
        point = _evaluate(programs, outputs, lambda_, settings, context)
        if all(program.soft.size == 0 for program in programs):
            return point, Status.UNPROVED
        miss = abs(np.sqrt(point.square) - radius)
        if best is None or miss < abs(np.sqrt(best.square) - radius):
            best = point
        if miss <= RADIUS_TOLERANCE * radius:
            return point, Status.UNPROVED
        if point.square <= radius**2:
            settled = low is not None and point.objective >= low.objective * (1 - 1e-7)
            if high is None and (settled or point.objective <= 1e-10):
                relaxed = _without_ball(point, outputs, problem, settings, context)
                if relaxed is not None:
                    return relaxed, Status.UNPROVED
            low = point
        else:
            high = point
            if low is None and lambda_ < LEAST_LAMBDA * natural:
                return _evaluate(programs, outputs, 0.0, settings, context), Status.INFEASIBLE
        if low is not None and high is not None and high.lambda_ <= low.lambda_ * (1 + 1e-12):
            break
        lambda_ = _next_penalty(low, high, radius, trial)
    assert best is not None
    return best, Status.UNPROVED if trial < MAX_TRIALS - 1 else Status.MAX_ITERATIONS


def _next_penalty(low: Point | None, high: Point | None, radius: float, trial: int) -> float:
    """Interpolate the squared distance in lambda squared; bisect now and then for safety."""
    if low is None:
        assert high is not None
        return high.lambda_ / BRACKET
    if high is None:
        return low.lambda_ * BRACKET
    if trial % 4 == 3:
        return float(np.sqrt(low.lambda_ * high.lambda_))
    share = (radius**2 - low.square) / max(high.square - low.square, 1e-300)
    share = min(max(share, 1e-6), 1 - 1e-6)
    return float(np.sqrt(low.lambda_**2 + share * (high.lambda_**2 - low.lambda_**2)))


def _natural_penalty(outputs: list[OutputData]) -> float:
    """Return the penalty that silences every weight (without an intercept), the scale of lambda."""
    largest = 0.0
    for data in outputs:
        slopes = np.abs(data.X.T @ np.clip(0.0, data.lower, data.upper))
        ratio = slopes[data.c > 0] / data.c[data.c > 0]
        largest = max(largest, float(ratio.max(initial=0.0)))
    return largest or 1.0


def _without_ball(
    point: Point,
    outputs: list[OutputData],
    problem: Problem,
    settings: Settings,
    context: Context,
) -> Point | None:
    """Return the point with the dual of the hard rows alone, if these determine its objective."""
    programs = [_Program(data, problem, settings, linear=True) for data in outputs]
    bare = _evaluate(programs, outputs, 1.0, settings, context)
    if point.objective > bare.objective * (1 + 1e-6) + 1e-9:
        return None
    return dataclasses.replace(bare, W=point.W, b=point.b, square=point.square)
