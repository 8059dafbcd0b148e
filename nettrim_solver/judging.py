"""One run of a solver, and the certificate's verdict on its answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .certificate import Certificate, certify, least_radius
from .checks import check_number
from .exceptions import InfeasibleError, ProblemError, SettingsError, SolverError
from .problem import Problem
from .solution import RawSolution, Solution
from .solvers import SOLVERS, Context, Progress, get_solver
from .status import Status, worst
from .threads import limit_threads

if TYPE_CHECKING:
    from .solvers.admm.factorisation import Factorisation

#: Largest gap and violation that count as proved, per dtype of X. The weights are returned in that
#: dtype, and rounding them to float32 alone moves the distance by more than 1e-6 of a small radius.
TOLERANCES = {
    np.dtype(np.float64): {"tol_gap": 1e-6, "tol_feas": 1e-6},
    np.dtype(np.float32): {"tol_gap": 1e-5, "tol_feas": 1e-5},
}

#: What a solver may say of its answer; the certificate decides what becomes of it.
CLAIMS = (Status.OPTIMAL, Status.FEASIBLE, Status.PRUNED, Status.INFEASIBLE, Status.UNPROVED)

#: Outcomes for which ``raise_on_failure`` does not raise.
SUCCESSES = (Status.OPTIMAL, Status.FEASIBLE, Status.PRUNED)


def solve_program(
    problem: Problem,
    solver: str,
    *,
    warm_start: Solution | None = None,
    callback: Callable[[Progress], object] | None = None,
    factorisation: Factorisation | None = None,
    n_threads: int | None = None,
    tol_gap: float | None = None,
    tol_feas: float | None = None,
    **settings: Any,
) -> Solution:
    """Run a solver on a problem as it is, and judge the answer.

    The parameters are those of :func:`nettrim_solver.solve`, which also searches for a count.

    Returns
    -------
    Solution

    Raises
    ------
    ProblemError, SettingsError, UnsupportedError, MissingDependencyError
        Before any work.
    """
    module = checked_solver(problem, solver)
    if SOLVERS[solver].convex and not problem.penalised and problem.epsilon is None:
        raise ProblemError(
            f"solver {solver!r} needs a budget: give sparsity or nnz, or give the problem a radius "
            "(epsilon or tolerance)"
        )
    tol_gap, tol_feas = checked_tolerances(problem, tol_gap, tol_feas)
    options = checked_settings(module, solver, settings, tol_gap, tol_feas)
    check_call(problem, warm_start, callback)
    with limit_threads(n_threads) as threads:
        context = Context(warm_start, callback, factorisation, threads)
        raw = module.solve(problem, options, context)
        solved = context.elapsed()
        solution = judge(problem, raw, solver, tol_gap, tol_feas, threads)
        total = context.elapsed()
    solution.seconds.update(certify=total - solved, total=total)
    return solution


def checked_solver(problem: Any, solver: Any) -> Any:
    """Return the module of a solver that can do what the problem asks.

    Raises
    ------
    ProblemError, SettingsError, UnsupportedError, MissingDependencyError
    """
    if not isinstance(problem, Problem):
        raise ProblemError(f"problem must be a Problem, but was {type(problem).__name__}")
    if not isinstance(solver, str):
        raise SettingsError(f"solver must be one of {list(SOLVERS)}, but was {solver!r}")
    return get_solver(solver, problem)


def check_call(problem: Problem, warm_start: Any, callback: Any) -> None:
    """Raise unless a start fits the problem and is finite, and the callback can be called.

    Raises
    ------
    ProblemError, SettingsError
    """
    if warm_start is not None and not isinstance(warm_start, Solution):
        raise SettingsError(f"warm_start must be a Solution, but was {type(warm_start).__name__}")
    if warm_start is not None and warm_start.W.shape != (problem.n_inputs, problem.n_outputs):
        raise ProblemError(
            f"warm_start.W must have shape {(problem.n_inputs, problem.n_outputs)}, "
            f"but has {warm_start.W.shape}"
        )
    samples = (problem.n_samples, problem.n_outputs)
    if warm_start is not None and warm_start.theta is not None:
        if warm_start.theta.shape != samples:
            raise ProblemError(
                f"warm_start.theta must have shape {samples}, but has {warm_start.theta.shape}; "
                "dataclasses.replace(warm_start, theta=None) starts from the weights alone"
            )
    if warm_start is not None:
        for name in ("W", "b", "theta"):
            values = getattr(warm_start, name)
            if values is not None and not np.all(np.isfinite(values)):
                raise ProblemError(f"warm_start.{name} must be finite, but holds NaN or infinity")
    if callback is not None and not callable(callback):
        raise SettingsError(f"callback must be callable, but was {callback!r}")


def judge(
    problem: Problem,
    raw: RawSolution,
    solver: str,
    tol_gap: float,
    tol_feas: float,
    n_threads: int = 1,
) -> Solution:
    """Turn a solver's answer into a solution whose statuses rest on the certificate alone."""
    W = np.array(raw.W, dtype=problem.dtype)
    W += 0.0  # no negative zeros
    b = None
    if problem.intercept:
        b = np.zeros(problem.n_outputs, dtype=problem.dtype)
        b += 0.0 if raw.b is None else raw.b
    certificate = certify(problem, W, b, raw.theta)
    least = None
    if raw.ray is not None and np.any(raw.ray):
        least = least_radius(problem, raw.ray)
    statuses = _statuses(problem, raw, certificate, least, solver, tol_gap, tol_feas)
    if Status.INFEASIBLE not in statuses:
        least = None
    iterations = raw.iterations
    if iterations is None:
        iterations = np.zeros(problem.n_outputs, dtype=np.int64)
    return Solution(
        W=W, b=b, status=worst(statuses), statuses=tuple(statuses), certificate=certificate,
        theta=raw.theta, multiplier=raw.multiplier, rho=raw.rho, iterations=iterations,
        least_epsilon=least, solver=solver, seconds=dict(raw.seconds), n_threads=n_threads,
        warnings=raw.warnings, trace=raw.trace,
    )  # fmt: skip


def _statuses(
    problem: Problem,
    raw: RawSolution,
    certificate: Certificate,
    least: Any,
    solver: str,
    tol_gap: float,
    tol_feas: float,
) -> list[Status]:
    n_outputs = problem.n_outputs
    proved = np.broadcast_to(certificate.proved(tol_gap, tol_feas), n_outputs)
    kept = np.broadcast_to(certificate.feasible(tol_feas), n_outputs)
    refuted = np.zeros(n_outputs, dtype=bool)
    if least is not None:
        radius = np.zeros(1) if problem.epsilon is None else np.atleast_1d(problem.epsilon)
        unreachable = np.isinf(least) if problem.penalised else least > radius * (1 + tol_feas)
        refuted = np.broadcast_to(unreachable, n_outputs)
    if problem.epsilon is None and not problem.penalised:
        # Without a radius there is nothing to prove, and none to keep.
        proved, kept = np.zeros((2, n_outputs), dtype=bool)
    usable = np.isfinite(certificate.objectives + certificate.distances)
    if solver in SOLVERS and SOLVERS[solver].convex:  # refinements bear names of their own
        # Convex solvers promise a proof: neither the radius kept nor a budget met is one.
        kept, usable = np.zeros((2, n_outputs), dtype=bool)
    statuses = []
    for j in range(n_outputs):
        stop = raw.stops[j]
        if proved[j]:
            statuses.append(Status.OPTIMAL)
        elif refuted[j]:
            statuses.append(Status.INFEASIBLE)
        elif stop is Status.PRUNED and usable[j] and (problem.penalised or not kept[j]):
            statuses.append(stop)
        elif stop in CLAIMS:
            statuses.append(Status.FEASIBLE if kept[j] else Status.UNPROVED)
        else:
            statuses.append(stop)
    return statuses


def checked_settings(
    module: Any, solver: str, given: dict[str, Any], tol_gap: float, tol_feas: float
) -> Any:
    """Build the solver's Settings.

    Raises
    ------
    SettingsError
        For a setting that is unknown, or out of its range.
    """
    known = [f.name for f in dataclasses.fields(module.Settings)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        names = sorted(set(known) - {"tol_gap", "tol_feas"})
        raise SettingsError(
            f"unknown setting {', '.join(map(repr, unknown))} for solver {solver!r}; "
            f"it knows {names}"
        )
    shared = {"tol_gap": tol_gap, "tol_feas": tol_feas}
    options = module.Settings(**given, **{k: v for k, v in shared.items() if k in known})
    options.validate()
    return options


def with_time_limit(
    module: Any, solver: str, settings: dict[str, Any], time_limit: float | None
) -> dict[str, Any]:
    """Return settings with a time limit.

    Raises
    ------
    SettingsError
        For a solver that has none.
    """
    if time_limit is None:
        return settings
    if "time_limit" not in {f.name for f in dataclasses.fields(module.Settings)}:
        raise SettingsError(
            f"time_limit must be None for solver {solver!r}, which cannot stop early, but was "
            f"{time_limit!r}"
        )
    return {**settings, "time_limit": time_limit}


def checked_tolerances(
    problem: Problem, tol_gap: float | None, tol_feas: float | None
) -> tuple[float, float]:
    """Return both tolerances, by default those of the dtype of X.

    Raises
    ------
    SettingsError
        Unless they lie in (0, 1).
    """
    chosen = dict(TOLERANCES[problem.dtype])
    for name, value in (("tol_gap", tol_gap), ("tol_feas", tol_feas)):
        if value is not None:
            check_number(name, value, 0.0, 1.0)
            chosen[name] = float(value)
    return chosen["tol_gap"], chosen["tol_feas"]


def raise_unless_success(solution: Solution) -> None:
    """Raise for an answer that is neither proved nor what a heuristic promises.

    Raises
    ------
    InfeasibleError, SolverError
        ``error.solution`` holds the answer.
    """
    if solution.status not in SUCCESSES:
        error = InfeasibleError if solution.status is Status.INFEASIBLE else SolverError
        raise error(solution.explain(), solution)
