"""Reference solver: the convex programs as written, for any conic backend of cvxpy.

Outputs that no radius couples are solved one at a time from plain data (large cvxpy parameters
compile slowly). The backend's weights are returned as they are, small entries included: an
interior-point method has no exact zeros, and rounding them here would flatter it.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import check_options, check_time_limit
from ..exceptions import SettingsError
from ..problem import Problem
from ..solution import RawSolution
from ..status import Status
from . import Context, Progress
from .reference import (
    Answer,
    Array,
    OutputData,
    exact_ray,
    least_of,
    outputs_data,
    prefer_zero,
)

#: Options that ask a backend for its best: the judge needs about 1e-7, and Clarabel delivers it.
ACCURATE: dict[str, dict[str, Any]] = {
    "CLARABEL": {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10, "max_threads": 1},
    "SCS": {"eps_abs": 1e-9, "eps_rel": 1e-9, "max_iters": 200_000},
}

#: How a backend calls its time limit in seconds.
TIME_LIMITS = {"CLARABEL": "time_limit", "SCS": "time_limit_secs"}


@dataclass(frozen=True)
class Settings:
    """Settings of solver "cvxpy".

    Attributes
    ----------
    tol_gap, tol_feas : float
        What the judge will ask for; the backend runs at its own, tighter tolerances.
    backend : str
        Name of an installed conic backend of cvxpy.
    verbose : bool
        Let the backend print.
    time_limit : float, optional
        Seconds for the whole layer.
    backend_options : dict, optional
        Passed on to the backend, over the defaults in ``ACCURATE``.
    """

    tol_gap: float = 1e-6
    tol_feas: float = 1e-6
    backend: str = "CLARABEL"
    verbose: bool = False
    time_limit: float | None = None
    backend_options: dict[str, Any] | None = None

    def validate(self) -> None:
        """Raise SettingsError for a setting out of range."""
        check_time_limit(self.time_limit)
        if not isinstance(self.backend, str):
            raise SettingsError(f"backend must be a name, but was {self.backend!r}")
        check_options("backend_options", self.backend_options)


@dataclass
class Model:
    """A cvxpy problem over some outputs, and what is needed to read its answer.

    ``ball_rows`` are the rows of each output's ``residuals``, in the order of the ball's dual, and
    ``parts`` its box constraints as (rows, sign, constraint): sign times the dual is theta there.
    """

    problem: Any
    weights: list[Any]
    offsets: list[Any]
    residuals: list[Any]
    ball: Any
    ball_rows: list[Any]
    parts: list[list[tuple[Any, float, Any]]]


def solve(problem: Problem, settings: Settings, context: Context) -> RawSolution:
    """Solve with a backend of cvxpy; see :func:`nettrim_solver.solve`."""
    installed = _cvxpy().installed_solvers()
    if settings.backend not in installed:
        raise SettingsError(f"backend must be one of {installed}, but was {settings.backend!r}")
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
        progress = Progress(group.stop, m, 0, context.elapsed())
        if context.callback is not None and context.callback(progress):
            answer.give_up(range(group.stop, m), Status.INTERRUPTED)
            break
    return answer.raw()


def _cvxpy() -> Any:
    """Import cvxpy (over a second) on use; its names carry no types."""
    import cvxpy

    return cvxpy


def _solve_group(
    problem: Problem, group: range, answer: Answer, settings: Settings, context: Context
) -> None:
    """Solve outputs that share a radius (or one output), and write them into the answer."""
    outputs = outputs_data(problem, group)
    scales = outputs[0].scales
    level = _level(problem, group, outputs[0])
    model = _build(outputs, level, problem.strict, problem.penalised, problem.intercept)
    stop = _run(model, answer, settings, context)
    if stop is Status.INFEASIBLE:
        for j, data in zip(group, outputs, strict=True):
            answer.ray[:, j] = _ray(data, j, problem, answer, settings, context)
    for k, j in enumerate(group):
        answer.stops[j] = stop
        answer.iterations[j] = _iterations(model)
        if model.weights[k].value is None or stop in (Status.INFEASIBLE, Status.FAILED):
            continue
        answer.W[:, j] = scales.primal(model.weights[k].value)
        if problem.intercept and model.offsets[k].value is not None:
            answer.b[j] = scales.target * float(model.offsets[k].value)
        theta = _dual(model, k, problem.n_samples, problem.penalised)
        answer.theta[:, j] = scales.dual(theta / level if problem.penalised else theta)
    columns = slice(group.start, group.stop)
    answer.W[:, columns], answer.b[columns] = prefer_zero(
        problem, group, answer.W[:, columns], answer.b[columns], 0.1 * settings.tol_feas
    )


def _level(problem: Problem, group: range, data: OutputData) -> float:
    """Return epsilon or lambda of the group in the backend's units."""
    budget: Any = problem.lambda_ if problem.penalised else problem.epsilon
    value = float(np.broadcast_to(budget, problem.n_outputs)[group.start])
    return data.scales.penalty(value) if problem.penalised else value / data.scales.target


def _build(
    outputs: list[OutputData], level: float, strict: bool, penalised: bool, intercept: bool
) -> Model:
    """Write the program of some outputs: residual variables only where a row may leave its box."""
    cp = _cvxpy()
    weights, offsets, residuals, ball_rows, parts, constraints = [], [], [], [], [], []
    objective: Any = 0.0
    for data in outputs:
        w = cp.Variable(data.X.shape[1])
        b = cp.Variable() if intercept else 0.0
        duals: list[tuple[Any, float, Any]] = []
        soft = []
        matched, bounded = np.flatnonzero(data.matched), np.flatnonzero(data.bounded)
        if matched.size:
            soft.append(data.X[matched] @ w + b - data.lower[matched])
        if bounded.size:
            Z = data.X[bounded] @ w + b
            if not strict:
                e = cp.Variable(bounded.size)
                soft.append(e)
                Z = Z - e
            for end, sign in ((data.upper, 1.0), (data.lower, -1.0)):
                finite = np.flatnonzero(np.isfinite(end[bounded]))
                if finite.size:
                    constraint = sign * (Z[finite] - end[bounded][finite]) <= 0
                    constraints.append(constraint)
                    duals.append((bounded[finite], sign, constraint))
        objective = objective + data.c @ cp.abs(w)
        weights.append(w)
        offsets.append(b)
        residuals.append(soft)
        ball_rows.append(np.concatenate([matched, bounded if not strict else bounded[:0]]))
        parts.append(duals)
    stacked = [expression for soft in residuals for expression in soft]
    ball = None
    if stacked and penalised:
        objective = level * objective + 0.5 * cp.sum_squares(cp.hstack(stacked))
    elif stacked and level > 0:
        ball = cp.SOC(cp.Constant(level), cp.hstack(stacked))
        constraints.append(ball)
    elif stacked:
        # A cone of radius zero has no interior: the rows are equations.
        ball = cp.hstack(stacked) == 0
        constraints.append(ball)
    program = cp.Problem(cp.Minimize(objective), constraints)
    return Model(program, weights, offsets, residuals, ball, ball_rows, parts)


def _run(model: Model, answer: Answer, settings: Settings, context: Context) -> Status:
    """Run the backend; no exception of cvxpy or of the backend leaves this function."""
    options = dict(ACCURATE.get(settings.backend, {}))
    if settings.time_limit is not None and settings.backend in TIME_LIMITS:
        left = max(settings.time_limit - context.elapsed(), 1e-3)
        options[TIME_LIMITS[settings.backend]] = left
    options.update(settings.backend_options or {})
    started = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.problem.solve(solver=settings.backend, verbose=settings.verbose, **options)
    except Exception as error:
        answer.warn(f"{settings.backend} failed: {type(error).__name__}: {error}")
        return Status.FAILED
    finally:
        wall = time.perf_counter() - started
        compiled = min(float(model.problem.compilation_time or 0.0), wall)
        answer.seconds["compile"] += compiled
        answer.seconds["solve"] += wall - compiled
    outcome = str(model.problem.status)
    if outcome.startswith("infeasible"):
        return Status.INFEASIBLE
    if outcome == "user_limit":
        timed = settings.time_limit is not None and context.elapsed() >= settings.time_limit
        return Status.TIME_LIMIT if timed else Status.MAX_ITERATIONS
    if outcome not in ("optimal", "optimal_inaccurate"):
        answer.warn(f"{settings.backend} ended with status {outcome!r}")
        return Status.FAILED
    if outcome == "optimal_inaccurate":
        answer.warn(f"{settings.backend} calls its answer inaccurate")
    return Status.UNPROVED


def _dual(model: Model, k: int, n_samples: int, penalised: bool) -> Array:
    """Return theta of the k-th output of a solved model, in the backend's units.

    The Lagrangian is ``sum c |w| + theta^T (X w + b - z)``: theta grows with X w above its box.
    """
    theta = np.zeros(n_samples)
    rows = model.ball_rows[k]
    if penalised and rows.size:
        theta[rows] = np.concatenate([part.value for part in model.residuals[k]])
    elif rows.size and model.ball is not None:
        start = sum(r.size for r in model.ball_rows[:k])
        value = model.ball.dual_value
        if isinstance(value, list):
            value = -np.asarray(value[1]).ravel()
        theta[rows] = np.asarray(value)[start : start + rows.size]
    # Where a residual variable ties a row to both, ball and box say the same; the box is sharper.
    for rows, _, _ in model.parts[k]:
        theta[rows] = 0.0
    for rows, sign, constraint in model.parts[k]:
        theta[rows] += sign * np.maximum(constraint.dual_value, 0.0)
    return theta


def _ray(
    data: OutputData,
    j: int,
    problem: Problem,
    answer: Answer,
    settings: Settings,
    context: Context,
) -> Array:
    """Return a ray from the residual of the least-squares distance of output j to its box.

    Strict: first of the distance to the hard rows alone; when they can be met, of the least
    distance on the matched rows under them.
    """
    if problem.strict and data.bounded.any():
        alone = dataclasses.replace(data, matched=np.zeros_like(data.matched))
        ray = exact_ray(problem, _residual(alone, False, problem, answer, settings, context))
        if least_of(problem, ray, j) == np.inf:
            return ray
    return exact_ray(problem, _residual(data, problem.strict, problem, answer, settings, context))


def _residual(
    data: OutputData,
    strict: bool,
    problem: Problem,
    answer: Answer,
    settings: Settings,
    context: Context,
) -> Array:
    """Return the dual point of ``min dist(X w + b, K)^2 / 2``, zero when the backend fails."""
    model = _build([data], 0.0, strict, True, problem.intercept)
    if _run(model, answer, settings, context) is not Status.UNPROVED:
        return np.zeros(problem.n_samples)
    return data.scales.target * _dual(model, 0, problem.n_samples, True)


def _iterations(model: Model) -> int:
    stats = model.problem.solver_stats
    return int(stats.num_iters or 0) if stats is not None else 0
