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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...checks import check_choice, check_flag, check_integer, check_number, check_time_limit
from ...problem import Problem
from ...solution import RawSolution
from ...threads import limit_threads
from .. import Context
from .factorisation import Factorisation

Array = NDArray[np.float64]

#: Problems (P N M) from which on workers share the outputs: on smaller ones they take longer to
#: hand over the interpreter's lock than to do the work (docs/performance.md).
SHARED_FROM = 20_000_000

#: Iterations after which outputs small enough for :mod:`.finish` are left to it.
FIRST_ITERATIONS = 200


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
    polish_sweeps: int = 40
    memory_limit: int = 2**30

    def validate(self) -> None:
        """Raise SettingsError, naming the setting, unless every value is in its range."""
        for name in ("max_iter", "check_interval", "polish_sweeps", "memory_limit"):
            check_integer(name, getattr(self, name), 1)
        check_time_limit(self.time_limit)
        if self.rho is not None:
            check_number("rho", self.rho, 0.0, np.inf)
        check_number("relaxation", self.relaxation, 1.0, 2.0, closed=True)
        for name in ("adaptive_rho", "polish"):
            check_flag(name, getattr(self, name))
        check_choice("dtype", self.dtype, ("auto", "float32", "float64"))


def solve(problem: Problem, settings: Settings, context: Context) -> RawSolution:
    """Solve all outputs; see :func:`nettrim_solver.solve`."""
    from .finish import finish, fits
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
        # Each worker takes outputs of its own: a threaded BLAS gains nothing on their products.
        stack.enter_context(limit_threads(1))
        workers, size = None, problem.n_samples * problem.n_inputs * problem.n_outputs
        if context.n_threads > 1 and size >= SHARED_FROM:
            workers = stack.enter_context(ThreadPoolExecutor(context.n_threads))
        small = settings.polish and settings.max_iter >= FIRST_ITERATIONS
        small &= fits(problem, problem.n_outputs if problem.joint else 1)
        first = replace(settings, max_iter=FIRST_ITERATIONS) if small else settings
        run = Run(problem, first, context, factorisation, workers, small)
        if problem.joint:
            solve_joint(run)
        else:
            solve_all(run)
        raw = _raw(run, {"setup": setup, **run.seconds})
        if small:
            raw = finish(problem, raw, settings, context)
    return raw


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
