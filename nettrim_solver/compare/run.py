"""A comparison in progress: one answer after the other, each a row, whatever becomes of it."""

from __future__ import annotations

import time
import tracemalloc
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from ..checks import check_flag, check_time_limit
from ..comparison import Row
from ..exceptions import SettingsError
from ..status import Status
from .checks import Method, Refinement, checked_settings


class Stop(Exception):  # noqa: N818 - no error
    """The comparison is to end with the rows it has."""


@dataclass(frozen=True)
class Asked:
    """What layers and networks are compared by alike: the arguments of :func:`.compare`, checked.

    Attributes
    ----------
    sparsities : sequence of float
    targets : mapping of str to sequence of str
        Of every refinement.
    accuracy : callable or None
    measure_memory : bool
    callback : callable or None
    time_limit : float or None
    methods : mapping of str to str, Recipe or callable
        By their names in the rows.
    options : mapping of str to mapping
        By solver and refinement.
    """

    sparsities: Sequence[float]
    targets: Mapping[str, Sequence[str]]
    accuracy: Callable[..., float] | None
    measure_memory: bool
    callback: Callable[[Row], object] | None
    time_limit: float | None
    methods: Mapping[str, Method] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_flag("measure_memory", self.measure_memory)
        check_time_limit(self.time_limit)
        for name, function in (("accuracy", self.accuracy), ("callback", self.callback)):
            if function is not None and not callable(function):
                raise SettingsError(f"{name} must be callable, but was {function!r}")

    def of(self, methods: Mapping[str, Method], modules: Mapping[str, Any], settings: Any) -> Asked:
        """Return the same of these methods, with the user's options for each."""
        wanted = [name for name, targets in self.targets.items() if targets]
        return replace(self, methods=methods, options=checked_settings(modules, wanted, settings))

    @property
    def refinements(self) -> list[Refinement]:
        """What follows every solver."""
        return [
            Refinement(name, target, self.options[name])
            for name, targets in self.targets.items()
            for target in targets
        ]


@dataclass
class Run(ABC):
    """The rows so far, and the clock.

    Attributes
    ----------
    asked : Asked
    trained_accuracy : float or None
        What the user's function says of the trained weights.
    n_heldout : int
        Number of held-out samples.
    """

    #: What is pruned, in a word.
    kind: ClassVar[str]

    asked: Asked
    trained_accuracy: float | None = None
    n_heldout: int = 0
    rows: list[Row] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def everything(self) -> bool:
        """Add the rows of all methods; return False if the comparison ended before."""
        try:
            for name in self.asked.methods:
                previous = None
                for sparsity in self.asked.sparsities:
                    previous = self.rows_at(sparsity, name, previous) or previous
        except (Stop, KeyboardInterrupt):
            return False
        return True

    def rows_at(self, sparsity: float, name: str, previous: Any) -> Any:
        """Add the rows of one method at one sparsity; return its answer, None if it failed."""
        row, answer = self.attempt(
            Row(name, "", sparsity), lambda: self.answer(name, sparsity, previous)
        )
        for one in self.asked.refinements if answer is not None else ():
            call = self.refined(name, sparsity, answer, one)
            if call is not None:
                self.attempt(Row(name, one.label, sparsity), call, row.seconds or 0.0)
        return answer

    @abstractmethod
    def answer(self, name: str, sparsity: float, previous: Any) -> Any:
        """Return what a method gives at a sparsity; it may begin at its answer before."""

    @abstractmethod
    def refined(
        self, name: str, sparsity: float, answer: Any, refinement: Refinement
    ) -> Callable[[], Any] | None:
        """Return what makes the refined answer; None where there is nothing to refine."""

    @abstractmethod
    def measured(self, row: Row, answer: Any) -> Row:
        """Return the row with everything that can be said of an answer."""

    def attempt(
        self, row: Row, call: Callable[[], Any], seconds: float = 0.0
    ) -> tuple[Row, Any | None]:
        """Make one answer, add its row, and return both; the answer is None where it failed.

        Parameters
        ----------
        row : Row
            Which answer it is.
        call : callable
            Makes it.
        seconds : float
            What it took to come so far.

        Raises
        ------
        Stop
            If the comparison is to end here.
        """
        if self.left() == 0.0:
            raise Stop
        answer, peak = None, None
        started = time.perf_counter()
        try:
            if self.asked.measure_memory:
                answer, peak = _with_peak(call)
            else:
                answer = call()
        except Exception as error:  # whatever it is, the other solvers have their turn
            row = replace(row, failure=f"{type(error).__name__}: {error}")
        else:
            seconds += time.perf_counter() - started
            row = self.measured(replace(row, seconds=seconds, peak_memory=peak), answer)
        self.rows.append(row)
        stop = self.asked.callback is not None and bool(self.asked.callback(row))
        if stop or (answer is not None and answer.status is Status.INTERRUPTED):
            raise Stop
        return row, answer

    def left(self) -> float | None:
        """Return the seconds left."""
        if self.asked.time_limit is None:
            return None
        return max(0.0, self.asked.time_limit - (time.perf_counter() - self.started))


def _with_peak(call: Callable[[], Any]) -> tuple[Any, int]:
    """Return an answer, and the peak of the memory allocated on the way, in bytes."""
    running = tracemalloc.is_tracing()
    if not running:
        tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        answer = call()
        return answer, tracemalloc.get_traced_memory()[1] - before
    finally:
        if not running:
            tracemalloc.stop()
