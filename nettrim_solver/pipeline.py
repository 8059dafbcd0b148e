"""What is done to one layer, step after step: solve, reweight, l0 stage, swaps, refit.

A :class:`Pipeline` is a sequence of steps that a user can switch off and order. Every step takes
the problem, the answer of the step before it, and the budget, and returns a judged
:class:`Solution`; so each stage of a pipeline has figures of its own (:meth:`Pipeline.stages`).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .checks import check_choice
from .exceptions import ProblemError, SettingsError
from .problem import Problem
from .refine import refit, swaps
from .reweighting import reweight
from .solution import Solution
from .solve import solve
from .solvers import SOLVERS, Progress


@dataclass(frozen=True)
class Call:
    """How the steps of one call run: threads, callback, and when the time is up."""

    n_threads: int | None = None
    callback: Callable[[Progress], object] | None = None
    deadline: float | None = None

    def seconds_left(self) -> float | None:
        """Return the time that is left, a moment at least; None without a limit."""
        if self.deadline is None:
            return None
        return max(1e-3, self.deadline - time.perf_counter())

    def expired(self) -> bool:
        """Return whether the time is up."""
        return self.deadline is not None and time.perf_counter() >= self.deadline


@dataclass(frozen=True)
class Step(ABC):
    """One step of a pipeline."""

    @property
    def name(self) -> str:
        """The step in a word, for reports."""
        return type(self).__name__.lower()

    @abstractmethod
    def __call__(
        self, problem: Problem, before: Solution | None, nnz: int | None, call: Call
    ) -> Solution:
        """Return a better answer.

        Parameters
        ----------
        problem : Problem
        before : Solution or None
            The answer of the step before; None for the first.
        nnz : int or None
            Nonzeros to keep; None for the problem's radius.
        call : Call
        """


@dataclass(frozen=True)
class Solve(Step):
    """Solve the layer with any solver, from scratch or from the answer before.

    Attributes
    ----------
    solver : str
    settings : mapping
        Its own settings, and those of :func:`solve` that are no budget.
    """

    solver: str = "admm"
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The solver."""
        return self.solver

    def __call__(
        self, problem: Problem, before: Solution | None, nnz: int | None, call: Call
    ) -> Solution:
        """Solve for the budget."""
        given: dict[str, Any] = {
            "warm_start": before, "n_threads": call.n_threads, "callback": call.callback,
        } | dict(self.settings)  # fmt: skip
        if call.deadline is not None:
            given["time_limit"] = call.seconds_left()
        return solve(problem, self.solver, nnz=nnz, **given)


@dataclass(frozen=True)
class L0(Solve):
    """The l0 stage (solver "l0"): fewest weights near the target box.

    Attributes
    ----------
    start : {"trained", "before"}
        Whether it begins at the trained weights, or at the answer before. From a convex answer it
        comes nearer to the box on the samples given, and not always on others: score both. Where
        the radius is the budget it always begins at the answer before, which keeps it.
    """

    solver: str = "l0"
    start: str = "trained"

    def __call__(
        self, problem: Problem, before: Solution | None, nnz: int | None, call: Call
    ) -> Solution:
        """Solve for the budget."""
        anew = self.start == "trained" and nnz is not None
        return super().__call__(problem, None if anew else before, nnz, call)


@dataclass(frozen=True)
class Reweight(Step):
    """Certified rounds of reweighted l1 (:func:`reweight`).

    It finds weights of its own: an answer before it is not used.

    Attributes
    ----------
    rounds : int
    solver : str
    settings : mapping
        Further arguments of :func:`reweight`.
    """

    rounds: int = 3
    solver: str = "admm"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(
        self, problem: Problem, before: Solution | None, nnz: int | None, call: Call
    ) -> Solution:
        """Reweight and solve, round by round."""
        given: dict[str, Any] = {
            "n_threads": call.n_threads, "callback": call.callback,
        } | dict(self.settings)  # fmt: skip
        return reweight(
            problem, rounds=self.rounds, nnz=nnz, solver=self.solver,
            time_limit=call.seconds_left(), **given,
        )  # fmt: skip


@dataclass(frozen=True)
class Refit(Step):
    """Choose the nonzero weights anew (:func:`refit`)."""

    target: str = "linear"
    damping: float | None = None

    def __call__(
        self, problem: Problem, before: Solution | None, nnz: int | None, call: Call
    ) -> Solution:
        """Refit the answer before."""
        return refit(
            problem, _required(before, self), self.target, self.damping,
            time_limit=call.seconds_left(), n_threads=call.n_threads,
        )  # fmt: skip


@dataclass(frozen=True)
class Swaps(Step):
    """Exchange kept for removed weights (:func:`swaps`)."""

    target: str = "linear"
    damping: float | None = None
    max_swaps: int | None = None
    pattern: str | None = None

    def __call__(
        self, problem: Problem, before: Solution | None, nnz: int | None, call: Call
    ) -> Solution:
        """Swap in the answer before."""
        return swaps(
            problem, _required(before, self), self.target, self.damping, max_swaps=self.max_swaps,
            pattern=self.pattern, time_limit=call.seconds_left(), n_threads=call.n_threads,
        )  # fmt: skip


class Pipeline:
    """A sequence of steps for one layer.

    Parameters
    ----------
    *steps : Step
        The first one must be able to start from nothing: ``Solve``, ``L0`` or ``Reweight``.

    Raises
    ------
    SettingsError
        If there is no step, a step is none, or the first one needs an answer to start from.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver import Problem
    >>> rng = np.random.default_rng(0)
    >>> X, W = rng.standard_normal((200, 20)), rng.standard_normal((20, 5))
    >>> problem = Problem(X, np.maximum(X @ W, 0), W, tolerance=0.3)
    >>> pipeline = Pipeline(Solve("admm"), Refit())
    >>> pipeline
    Pipeline(admm, refit)
    >>> solution = pipeline(problem)
    >>> solution.solver
    'admm+refit'
    >>> [(name, stage.nnz) for name, stage in pipeline.stages(problem, nnz=40)]
    [('admm', 40), ('refit', 40)]
    """

    def __init__(self, *steps: Step) -> None:
        if not steps:
            raise SettingsError("steps must hold at least one step, but there is none")
        for step in steps:
            if not isinstance(step, Step):
                raise SettingsError(f"steps must be steps of a pipeline, but one was {step!r}")
            solver = getattr(step, "solver", None)
            if solver is not None and solver not in SOLVERS:
                raise SettingsError(f"solver must be one of {list(SOLVERS)}, but was {solver!r}")
            if isinstance(step, L0):
                check_choice("start", step.start, ("trained", "before"))
        if isinstance(steps[0], (Refit, Swaps)):
            raise SettingsError(
                f"the first step must find weights of its own, but was {steps[0]!r}: "
                "begin with Solve, L0 or Reweight"
            )
        self.steps = steps

    def __call__(
        self,
        problem: Problem,
        nnz: int | None = None,
        *,
        n_threads: int | None = None,
        callback: Callable[[Progress], object] | None = None,
        time_limit: float | None = None,
    ) -> Solution:
        """Return the answer of the last step; see :meth:`stages` for the arguments."""
        *_, (_, last) = self.stages(
            problem, nnz, n_threads=n_threads, callback=callback, time_limit=time_limit
        )
        return last

    def stages(
        self,
        problem: Problem,
        nnz: int | None = None,
        *,
        n_threads: int | None = None,
        callback: Callable[[Progress], object] | None = None,
        time_limit: float | None = None,
    ) -> Iterator[tuple[str, Solution]]:
        """Run the steps, and yield the name and the answer of each.

        Parameters
        ----------
        problem : Problem
        nnz : int, optional
            Nonzeros to keep. Without it weights are removed until the radius is used up; later
            steps then hold the count that the first one found, or look for fewer.
        n_threads : int, optional
        callback : callable, optional
            As in :func:`solve`.
        time_limit : float, optional
            Seconds for all steps together; those not begun in time are left out.
        """
        if not isinstance(problem, Problem):
            raise ProblemError(f"problem must be a Problem, but was {type(problem).__name__}")
        deadline = None if time_limit is None else time.perf_counter() + time_limit
        call = Call(n_threads, callback, deadline)
        answer: Solution | None = None
        for step in self.steps:
            if answer is not None and call.expired():
                return
            answer = step(problem, answer, nnz, call)
            yield step.name, answer

    def __repr__(self) -> str:
        """Name the steps, with whatever differs from their defaults: a run's fingerprint."""
        return f"Pipeline({', '.join(_described(step) for step in self.steps)})"


def _described(step: Step) -> str:
    """Return a step's name, and in parentheses the fields that are not at their defaults."""
    default = type(step)()
    changed = [
        f"{f.name}={getattr(step, f.name)!r}"
        for f in fields(step)
        if f.name != "solver" and getattr(step, f.name) != getattr(default, f.name)
    ]
    return step.name + (f"({', '.join(changed)})" if changed else "")


def _required(before: Solution | None, step: Step) -> Solution:
    assert before is not None, f"{step!r} cannot be the first step"
    return before
