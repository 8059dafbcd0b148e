"""The solvers by name: where each lives, what it can do, and what it needs.

Nothing heavy is imported here. A solver is a module with a frozen dataclass ``Settings``, whose
``validate()`` raises :class:`SettingsError`, and a function

    solve(problem, settings, context) -> RawSolution

where ``context`` (:class:`Context`) carries the warm start, the callback, the clock and the thread
count. One module and one line here make a new solver.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..exceptions import MissingDependencyError, SettingsError, UnsupportedError

if TYPE_CHECKING:
    from ..problem import Problem
    from ..solution import Solution
    from .admm.factorisation import Factorisation

ALL_FORMULATIONS = frozenset({"pooled", "strict", "penalised", "penalised_strict"})


@dataclass(frozen=True)
class SolverInfo:
    """What a solver is and can do.

    Attributes
    ----------
    module : str
        Name of the module in this package.
    summary : str
        One line for tables and help texts.
    convex : bool
        Whether it solves the convex program (and is held to a proof), or is a heuristic.
    formulations, radii : frozenset of str
    weights, intercept, sparse_X : bool
        Whether l1 weights, an intercept, a sparse X are supported.
    needs_W : bool
        Whether it starts from the trained weights.
    requires : tuple of str
        Optional packages that it imports.
    extra : str
        The extra of this package that installs them.
    """

    module: str
    summary: str
    convex: bool = True
    formulations: frozenset[str] = ALL_FORMULATIONS
    radii: frozenset[str] = frozenset({"joint", "per_output"})
    weights: bool = True
    intercept: bool = True
    sparse_X: bool = True
    needs_W: bool = False
    requires: tuple[str, ...] = ()
    extra: str = ""

    def missing(self) -> tuple[str, ...]:
        """Return the required packages that are not installed, without importing any."""
        return tuple(name for name in self.requires if importlib.util.find_spec(name) is None)

    def lacks(self, problem: Problem) -> str | None:
        """Return what the problem asks for that this solver cannot do, or None."""
        import numpy as np
        import scipy.sparse as sp

        if problem.formulation not in self.formulations:
            return f"formulation={problem.formulation!r}"
        if not problem.penalised and problem.radius not in self.radii:
            return f"radius={problem.radius!r}"
        if problem.intercept and not self.intercept:
            return "intercept=True"
        if not self.weights and np.any(problem.weights != 1.0):
            return "weights other than ones"
        if sp.issparse(problem.X) and not self.sparse_X:
            return "a sparse X"
        return None


@dataclass
class Context:
    """What a run carries beside problem and settings.

    Attributes
    ----------
    warm_start : Solution or None
    callback : callable or None
        Called with a :class:`Progress` at every check; returning True stops the run.
    factorisation : Factorisation or None
        A factorisation of the same X to reuse.
    n_threads : int
        Threads in force.
    started : float
        ``time.perf_counter()`` at the start.
    """

    warm_start: Solution | None = None
    callback: Callable[[Progress], object] | None = None
    factorisation: Factorisation | None = None
    n_threads: int = 1
    started: float = field(default_factory=time.perf_counter)

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.started


@dataclass(frozen=True)
class Progress:
    """State of a run at a check: iteration, outputs in all and proved so far, seconds elapsed."""

    iteration: int
    n_outputs: int
    n_proved: int
    elapsed: float


def pruner(module: str, summary: str) -> SolverInfo:
    """Describe a pruner: it starts from trained weights and removes as many as it is told to.

    Its target is linear, the box only judges it. So it takes every formulation: a budget of weights
    means the same in all, and a radius is searched for with the judge's measure, hard rows
    included. A penalised problem has no radius and refuses a count, so it needs a pattern. l1
    weights it refuses: they say which inputs to spare, and it would not.
    """
    return SolverInfo(module, summary, convex=False, weights=False, needs_W=True)


SOLVERS: dict[str, SolverInfo] = {
    "admm": SolverInfo(
        "admm", "over-relaxed ADMM with one factorisation for all outputs and a certified polish"
    ),
    "cvxpy": SolverInfo(
        "cvxpy_", "reference: any conic backend of cvxpy (Clarabel by default)",
        requires=("cvxpy",), extra="reference",
    ),
    "osqp": SolverInfo(
        "osqp_", "reference: the penalised quadratic program, with root finding for the ball",
        requires=("osqp",), extra="reference",
    ),
    "admm-published": SolverInfo(
        "admm_published", "baseline: the paper's ADMM with fixed rho and its own stopping rule",
        formulations=frozenset({"strict"}), sparse_X=False,
    ),
    "magnitude": pruner("magnitude", "removes the smallest trained weights"),
    "wanda": pruner("wanda", "removes the least magnitudes times norms of the inputs"),
    "obd": pruner("obd", "optimal brain damage: the least increase by the diagonal Hessian"),
    "obs": pruner("obs", "layer-wise optimal brain surgeon: one inverse Hessian, one pass"),
    "exact_obs": pruner("exact_obs", "optimal brain surgeon weight by weight, exact after each"),
    "sparsegpt": pruner("sparsegpt", "one sweep over the inputs, each repaired by those behind it"),
    "alps": pruner("alps", "ADMM on the l0 constraint with a growing penalty, then refitted"),
    "l0": pruner("l0", "ADMM on the l0 constraint towards the target box, from any start"),
    "admm_mask": pruner("admm_mask", "twenty ADMM iterations while the mask closes in"),
    "iht": pruner("iht", "accelerated iterative hard thresholding, then refitted"),
    "dns": pruner("dns", "dynamic network surgery: removes and splices back, then refitted"),
    "sensitivity": pruner("sensitivity", "shrinks weights of weak inputs, then refits the largest"),
}  # fmt: skip


def available_solvers() -> list[str]:
    """Return the names of the solvers whose packages are installed.

    Examples
    --------
    >>> "admm" in available_solvers()
    True
    """
    return [name for name, info in SOLVERS.items() if not info.missing()]


def get_solver(name: str, problem: Problem) -> Any:
    """Return the module of a solver that can do what the problem asks.

    Raises
    ------
    SettingsError
        If there is no such solver.
    UnsupportedError
        If it cannot do what the problem asks; the message names the solvers that can.
    MissingDependencyError
        If its package is not installed.
    """
    if name not in SOLVERS:
        raise SettingsError(f"solver must be one of {list(SOLVERS)}, but was {name!r}")
    info = SOLVERS[name]
    lacking = info.lacks(problem)
    if lacking:
        able = [other for other, about in SOLVERS.items() if about.lacks(problem) is None]
        raise UnsupportedError(
            f"solver {name!r} does not support {lacking}; solvers that do: {able}"
        )
    if info.needs_W and problem.W is None:
        raise UnsupportedError(
            f"solver {name!r} starts from trained weights: give W to the problem"
        )
    missing = info.missing()
    if missing:
        raise MissingDependencyError(
            f"solver {name!r} needs {', '.join(missing)}: "
            f"pip install 'nettrim_solver[{info.extra}]'"
        )
    return importlib.import_module(f".{info.module}", __name__)
