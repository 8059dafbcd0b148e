"""What all solves of a call share: solver, tolerances, threads, callback, and one clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..checks import check_choice, check_integer, check_number, check_time_limit
from ..exceptions import ProblemError, SettingsError
from ..judging import (
    check_call,
    checked_settings,
    checked_solver,
    checked_tolerances,
    solve_program,
    with_time_limit,
)
from ..problem import Problem
from ..solution import Solution
from ..solvers import Progress

if TYPE_CHECKING:
    from ..solvers.admm.factorisation import Factorisation

SCOPES = ("layer", "output")


@dataclass(frozen=True)
class Options:
    """How every program of a call is solved.

    Attributes
    ----------
    solver : str
    settings : dict
        The solver's own.
    tol_gap, tol_feas : float
        Of the answers.
    factorisation : Factorisation or None
    n_threads : int or None
    callback : callable or None
    time_limit : float or None
        Seconds for all programs together.
    slack : float
        Share of the budget that an answer may leave unused.
    started : float
        ``time.perf_counter()`` at the start of the call.
    """

    solver: str
    settings: dict[str, Any]
    tol_gap: float
    tol_feas: float
    factorisation: Factorisation | None = None
    n_threads: int | None = None
    callback: Callable[[Progress], object] | None = None
    time_limit: float | None = None
    slack: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.started

    def expired(self) -> bool:
        """Return whether the time is over."""
        return self.time_limit is not None and self.elapsed() > self.time_limit

    def report(self, progress: Progress) -> bool:
        """Pass on how a solve stands; return whether the caller wants to stop."""
        assert self.callback is not None
        return bool(self.callback(replace(progress, elapsed=self.elapsed())))

    def solve(
        self, problem: Problem, start: Solution | None, tol_gap: float | None = None
    ) -> Solution:
        """Solve one program within the time that is left."""
        settings = dict(self.settings)
        if self.time_limit is not None:
            settings["time_limit"] = max(self.time_limit - self.elapsed(), 1e-3)
        return solve_program(
            problem, self.solver, warm_start=start, factorisation=self.factorisation,
            n_threads=self.n_threads, callback=None if self.callback is None else self.report,
            tol_gap=tol_gap or self.tol_gap, tol_feas=self.tol_feas, **settings,
        )  # fmt: skip


def checked_options(
    problem: Problem, solver: str, settings: dict[str, Any], *, warm_start: Any = None,
    callback: Any = None, tol_gap: float | None, tol_feas: float | None,
    time_limit: float | None, **more: Any,
) -> Options:  # fmt: skip
    """Return the options of a call, every argument checked.

    Raises
    ------
    ProblemError, SettingsError, UnsupportedError, MissingDependencyError
    """
    check_not_penalised(problem)
    module = checked_solver(problem, solver)
    check_call(problem, warm_start, callback)
    check_time_limit(time_limit)
    tolerances = checked_tolerances(problem, tol_gap, tol_feas)
    timed = with_time_limit(module, solver, settings, time_limit)
    checked_settings(module, solver, timed, *tolerances)
    return Options(solver, settings, *tolerances, callback=callback, time_limit=time_limit, **more)


def check_not_penalised(problem: Problem) -> None:
    """Raise ProblemError for a problem whose lambda_ is its budget already."""
    if problem.penalised:
        formulation = "strict" if problem.strict else "pooled"
        raise ProblemError(
            f"formulation must be {formulation!r}, because the count or the radius decides "
            f"lambda_, but was {problem.formulation!r}"
        )


def checked_budget(problem: Problem, sparsity: Any, nnz: Any) -> int | None:
    """Return the nonzeros that a sparsity or a count leaves; None when neither is given.

    Raises
    ------
    ProblemError, SettingsError
    """
    if sparsity is not None and nnz is not None:
        raise SettingsError(
            f"give sparsity or nnz, not both, but sparsity was {sparsity!r} and nnz was {nnz!r}"
        )
    if sparsity is None and nnz is None:
        return None
    check_not_penalised(problem)
    size = problem.n_inputs * problem.n_outputs
    if sparsity is not None:
        check_number("sparsity", sparsity, 0.0, 1.0, closed=True)
        return size - round(float(sparsity) * size)
    check_integer("nnz", nnz, 0)
    if nnz > size:
        raise ProblemError(f"nnz must be at most {size}, all of W, but was {nnz}")
    return int(nnz)


def check_scope(scope: Any) -> None:
    """Raise SettingsError unless scope is "layer" or "output"."""
    check_choice("scope", scope, SCOPES)
