"""What is done to one layer, step after step: solve, reweight, l0 stage, swaps, refit.

A :class:`Pipeline` is a sequence of steps that a user can switch off and order. Every step takes
the problem, the answer of the step before it, and the budget, and returns a judged
:class:`Solution`; so each stage of a pipeline has figures of its own (:meth:`Pipeline.stages`).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, ClassVar

from .checks import check_choice
from .exceptions import ProblemError, SettingsError
from .problem import Problem
from .refine import refit, swaps
from .reweighting import reweight
from .solution import Solution
from .solve import solve
from .solvers import SOLVERS, Progress, get_solver


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

    #: Whether the step can be the first: it needs no answer to start from.
    first: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The step in a word, for reports."""
        return type(self).__name__.lower()

    def changes(self) -> dict[str, Any]:
        """Return the options that are not at their defaults, as in a recipe file."""
        default = type(self)()
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if getattr(self, f.name) != getattr(default, f.name)
        }

    def with_options(self, options: Mapping[str, Any]) -> Step:
        """Return the step with other options.

        Raises
        ------
        SettingsError
            For an unknown option.
        """
        known = [f.name for f in fields(self)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise SettingsError(f"step {self.name!r} takes {known}, but was given {unknown}")
        return replace(self, **options)

    def check(self, problem: Problem) -> None:  # noqa: B027 - most steps can do anything
        """Raise if the step cannot do what a problem of this form asks, before any work."""

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

    #: Budgets, which are no settings of a step: the caller gives them.
    RESERVED: ClassVar[tuple[str, ...]] = ("tolerance", "sparsity", "nnz", "pattern")

    @property
    def name(self) -> str:
        """The solver."""
        return self.solver

    def changes(self) -> dict[str, Any]:
        """Return the settings, and other options that are not at their defaults."""
        found = super().changes()
        found.pop("solver", None)
        return {**found.pop("settings", {}), **found}

    def with_options(self, options: Mapping[str, Any]) -> Step:
        """Return the step with other options; what is none of its own is a setting of the solver.

        Raises
        ------
        SettingsError
            For a budget among the settings.
        """
        own = {f.name for f in fields(self)} - {"solver", "settings"}
        settings = {name: value for name, value in options.items() if name not in own}
        budgets = [name for name in self.RESERVED if name in settings]
        if budgets:
            raise SettingsError(
                f"step {self.name!r} was given {budgets}: a budget is an argument of the call (or "
                "of a layer in the recipe), not a setting of a step"
            )
        changed = {name: value for name, value in options.items() if name in own}
        return replace(self, settings={**self.settings, **settings}, **changed)

    def check(self, problem: Problem) -> None:
        """Raise if the solver is not installed, cannot do this, or does not know a setting."""
        module = get_solver(self.solver, problem)
        reserved = {"tol_gap", "tol_feas", "time_limit", "scope", *self.RESERVED}
        known = sorted({f.name for f in fields(module.Settings)} - reserved)
        allowed = {*known, "tol_gap", "tol_feas", "time_limit", "scope"}
        unknown = sorted(set(self.settings) - allowed)
        if unknown:
            raise SettingsError(
                f"unknown setting {', '.join(map(repr, unknown))} for solver {self.solver!r}; it "
                f"knows {known}"
            )
        own = {k: v for k, v in self.settings.items() if k in known or k == "time_limit"}
        module.Settings(**own).validate()

    def __call__(
        self, problem: Problem, before: Solution | None, nnz: int | None, call: Call
    ) -> Solution:
        """Solve for the budget."""
        given: dict[str, Any] = {
            "warm_start": before, "n_threads": call.n_threads, "callback": call.callback,
        } | dict(self.settings)  # fmt: skip
        limits = [given.get("time_limit"), call.seconds_left()]
        known = {f.name for f in fields(get_solver(self.solver, problem).Settings)}
        if any(limits) and (nnz is not None or "time_limit" in known):
            given["time_limit"] = min(limit for limit in limits if limit is not None)
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
    """Re-optimise the nonzero weights (:func:`refit`)."""

    first: ClassVar[bool] = False
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

    first: ClassVar[bool] = False
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
        if not steps[0].first:
            raise SettingsError(
                f"the first step must find weights of its own, but was {steps[0].name!r}: begin "
                "with a solver or with 'reweight'"
            )
        self.steps = steps

    def check(self, problem: Problem) -> None:
        """Raise if a step cannot do what a problem of this form asks, before any work.

        Raises
        ------
        SettingsError, UnsupportedError, MissingDependencyError
        """
        for step in self.steps:
            step.check(problem)

    def __eq__(self, other: object) -> bool:
        """Whether the steps are the same."""
        return isinstance(other, Pipeline) and self.steps == other.steps

    def __hash__(self) -> int:
        return hash(repr(self))

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


#: Steps that are no solver, by name.
REFINEMENTS: dict[str, Step] = {"reweight": Reweight(), "refit": Refit(), "swaps": Swaps()}


def as_pipeline(steps: Any) -> Pipeline:
    """Return the pipeline that names of steps stand for.

    Parameters
    ----------
    steps : str, mapping, Step, Pipeline, or sequence of str, mapping or Step
        A step is the name of a solver, ``"reweight"``, ``"refit"`` or ``"swaps"``. A mapping names
        it under ``"step"`` and holds its options, or the settings of the solver.

    Raises
    ------
    SettingsError
        For an unknown step or option.

    Examples
    --------
    >>> as_pipeline(["reweight", {"step": "refit", "damping": 0.1}])
    Pipeline(reweight, refit(damping=0.1))
    >>> as_pipeline({"step": "l0", "rounds": 16})
    Pipeline(l0(rounds=16))
    """
    if isinstance(steps, Pipeline):
        return steps
    if isinstance(steps, (str, Mapping, Step)):
        steps = [steps]
    try:
        given = list(steps)
    except TypeError:
        raise SettingsError(
            f"steps must name solvers and refinements, such as ['l0', 'refit'], but was {steps!r}"
        ) from None
    return Pipeline(*map(_as_step, given))


def _as_step(given: Any) -> Step:
    """Return the step that a name or a mapping stands for."""
    if isinstance(given, Step):
        return given
    options: dict[str, Any] = {}
    if isinstance(given, Mapping):
        options = dict(given)
        given = options.pop("step", None)
    known = [*REFINEMENTS, *SOLVERS]
    if not isinstance(given, str) or given not in known:
        close = get_close_matches(str(given), known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise SettingsError(
            f"steps must be made of the refinements {[*REFINEMENTS]} and the solvers {[*SOLVERS]}, "
            f"but one was {given!r}{hint}"
        )
    step = REFINEMENTS.get(given) or (L0() if given == "l0" else Solve(given))
    return step.with_options(options) if options else step


def _described(step: Step) -> str:
    """Return a step's name, and in parentheses the options that are not at their defaults."""
    changed = [f"{name}={value!r}" for name, value in step.changes().items()]
    return step.name + (f"({', '.join(changed)})" if changed else "")


def _required(before: Solution | None, step: Step) -> Solution:
    assert before is not None, f"{step!r} cannot be the first step"
    return before
