r"""The default solver: certified answers from ADMM and an exact polish.

Blocks of outputs iterate together (:mod:`.block`) on one shared factorisation
(:mod:`.factorisation`), in the loop of :mod:`.separable`. Outputs whose pattern has settled are
handed to the semismooth Newton polish (:mod:`.polish`); those it proves are frozen and leave the
block, the others iterate on. ADMM converges from anywhere but crawls at the end; the polish is
exact at once, but only near the end.

A joint radius is the penalised form with one multiplier for all outputs: :mod:`.joint` finds it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...exceptions import SettingsError
from ...problem import Problem
from ...solution import RawSolution
from .. import Context
from .factorisation import Factorisation

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """Settings of the solver "admm".

    Attributes
    ----------
    tol_gap, tol_feas : float
        Set by :func:`nettrim_solver.solve`.
    max_iter : int
        Most ADMM iterations of any output.
    time_limit : float or None
        Seconds; the best answers so far are returned.
    dtype : {"auto", "float32", "float64"}
        Of the iterates. "auto" starts in float32 and goes on in float64 where float32 stalls.
        Certificates and polish are float64 always.
    relaxation : float
        Over-relaxation, in [1, 2).
    rho : float or None
        Initial penalty, in units of 1 / lambda_0 (the multiplier at which W = 0 becomes optimal);
        None: 80.
    adaptive_rho : bool
        Balance the residuals per output.
    check_interval : int
        Iterations between checks.
    polish : bool
        Whether to try the exact polish; without it only ADMM's own convergence can be proved.
    polish_sweeps : int
        Newton sweeps per attempt.
    memory_limit : int
        Bytes for the arrays of shape (n_samples, block of outputs); sets the block.
    """

    tol_gap: float = 1e-6
    tol_feas: float = 1e-6
    max_iter: int = 5000
    time_limit: float | None = None
    dtype: str = "auto"
    relaxation: float = 1.7
    rho: float | None = None
    adaptive_rho: bool = True
    check_interval: int = 10
    polish: bool = True
    polish_sweeps: int = 12
    memory_limit: int = 2**30

    def validate(self) -> None:
        """Raise SettingsError, naming the setting, unless every value is in its range."""
        _integer("max_iter", self.max_iter, 1)
        _integer("check_interval", self.check_interval, 1)
        _integer("polish_sweeps", self.polish_sweeps, 1)
        _integer("memory_limit", self.memory_limit, 1)
        if self.time_limit is not None:
            _number("time_limit", self.time_limit, 0.0, np.inf)
        if self.rho is not None:
            _number("rho", self.rho, 0.0, np.inf)
        _number("relaxation", self.relaxation, 1.0, 2.0, closed=True)
        for name in ("adaptive_rho", "polish"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise SettingsError(
                    f"{name} must be True or False, but was {getattr(self, name)!r}"
                )
        if self.dtype not in ("auto", "float32", "float64"):
            raise SettingsError(
                f"dtype must be 'auto', 'float32' or 'float64', but was {self.dtype!r}"
            )


def solve(problem: Problem, settings: Settings, context: Context) -> RawSolution:
    """Solve all outputs; see :func:`nettrim_solver.solve`."""
    from .joint import solve_joint
    from .run import Run
    from .separable import solve_all

    with ExitStack() as stack:
        factorisation = context.factorisation
        if factorisation is None:
            factorisation = Factorisation(problem)
        else:
            factorisation.check(problem)
        setup = context.elapsed()
        workers = None
        if context.n_threads > 1:
            workers = stack.enter_context(ThreadPoolExecutor(context.n_threads))
        run = Run(problem, settings, context, factorisation, workers)
        if problem.joint:
            solve_joint(run)
        else:
            solve_all(run)
        seconds = {"setup": setup, **run.seconds}
    return _raw(run, seconds)


def _raw(run: Any, seconds: dict[str, float]) -> RawSolution:
    factorisation, answer = run.factorisation, run.answer
    W = (answer.V / factorisation.norm).T
    W[~factorisation.live] = 0.0
    b = answer.beta - factorisation.mean @ W if factorisation.intercept else None
    return RawSolution(
        W=W, b=b, theta=answer.theta, stops=list(answer.stops), multiplier=answer.lambda_,
        rho=answer.rho, iterations=answer.iterations,
        ray=answer.ray, seconds=seconds,
    )  # fmt: skip


def _integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise SettingsError(f"{name} must be an integer >= {least}, but was {value!r}")


def _number(name: str, value: Any, low: float, high: float, closed: bool = False) -> None:
    numeric = isinstance(value, (int, float, np.floating)) and not isinstance(value, bool)
    if not numeric or not (low < value < high or (closed and value == low)):
        bracket = "[" if closed else "("
        raise SettingsError(f"{name} must lie in {bracket}{low:g}, {high:g}), but was {value!r}")
