"""The one entry point of the layer floor: a problem in, a judged solution out."""

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


def solve(
    problem: Problem,
    solver: str = "admm",
    *,
    warm_start: Solution | None = None,
    callback: Callable[[Progress], object] | None = None,
    factorisation: Factorisation | None = None,
    n_threads: int | None = None,
    tol_gap: float | None = None,
    tol_feas: float | None = None,
    raise_on_failure: bool = False,
    **settings: Any,
) -> Solution:
    """Find sparse weights for a layer, and what can be proved about them.

    Parameters
    ----------
    problem : Problem
        With ``epsilon``, ``tolerance`` or ``lambda_``; solvers with a budget of their own, such as
        ``sparsity``, need none of these.
    solver : str
        One of :func:`available_solvers`.
    warm_start : Solution, optional
        A solution of a similar problem on the same shapes: weights, dual point and rho are used.
    callback : callable, optional
        Called with a :class:`Progress` at every check; a true return value stops the run.
    factorisation : Factorisation, optional
        ``Factorisation(problem)`` of a problem with the same X, to be reused for other targets or
        radii (solver "admm").
    n_threads : int, optional
        Threads of BLAS and of the solver's own workers; None leaves the BLAS pools as they are.
    tol_gap, tol_feas : float, optional
        Largest gap and violation that count as proved; by the dtype of X, see ``TOLERANCES``.
    raise_on_failure : bool
        Raise instead of returning an answer that is neither proved nor what a heuristic promises:
        the radius kept, or the budget met.
    **settings
        The solver's own settings, the fields of its ``Settings`` class.

    Returns
    -------
    Solution
        ``status`` is ``OPTIMAL`` only when the certificate of the very weights returned proves it.
        A heuristic's is ``FEASIBLE`` when they keep the radius, and else ``PRUNED`` when they meet
        the budget it was given.

    Raises
    ------
    ProblemError, SettingsError, UnsupportedError, MissingDependencyError
        Before any work.
    InfeasibleError, SolverError
        With ``raise_on_failure=True``; ``error.solution`` holds the best answer.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).standard_normal((40, 6))
    >>> problem = Problem(X, np.maximum(X[:, :2], 0), tolerance=0.1)
    >>> solve(problem).certificate.gap < 1e-6
    True
    """
    if not isinstance(problem, Problem):
        raise ProblemError(f"problem must be a Problem, but was {type(problem).__name__}")
    if not isinstance(solver, str):
        raise SettingsError(f"solver must be one of {list(SOLVERS)}, but was {solver!r}")
    module = get_solver(solver, problem)
    if SOLVERS[solver].convex and not problem.penalised and problem.epsilon is None:
        raise ProblemError(
            f"solver {solver!r} needs a radius: give the problem epsilon or tolerance"
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
    if raise_on_failure:
        raise_unless_success(solution)
    return solution


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
