"""When a pruner is to end before its own end: the time limit, the callback, Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

from ..status import Status
from . import Context, Progress


class Unfinished(Exception):  # noqa: N818 - no error
    """The time is up, or the user wants to stop, and there is no answer yet."""


class Watch:
    """The clock, the callback and Ctrl-C of one run, asked between its steps.

    As a context it ends its block at Ctrl-C and goes on behind it, with what is there.

    Parameters
    ----------
    n_outputs : int
        For the callback's :class:`.Progress`.
    time_limit : float, optional
        Seconds from the start of the context.
    context : Context, optional
        Whose callback is called.

    Attributes
    ----------
    status : Status or None
        Why the run ends; None as long as it goes on.
    n_steps : int
        How often it was asked.
    """

    def __init__(
        self, n_outputs: int = 0, time_limit: float | None = None, context: Context | None = None
    ) -> None:
        self.n_outputs, self.time_limit = n_outputs, time_limit
        self.context = Context() if context is None else context
        self.status: Status | None = None
        self.n_steps = 0

    def ended(self) -> bool:
        """Return whether to end here, with the best answer so far."""
        if self.status is None:
            self.n_steps += 1
            elapsed, callback = self.context.elapsed(), self.context.callback
            if self.time_limit is not None and elapsed > self.time_limit:
                self.status = Status.TIME_LIMIT
            elif callback and callback(Progress(self.n_steps, self.n_outputs, 0, elapsed)):
                self.status = Status.INTERRUPTED
        return self.status is not None

    def check(self) -> None:
        """Raise Unfinished if the run is to end here, where there is no answer."""
        if self.ended():
            raise Unfinished

    def steps(self, n: int) -> Iterator[int]:
        """Yield 0, 1, ... up to n - 1, but nothing more once the run is to end; 0 always."""
        for step in range(n):
            if step and self.ended():
                return
            yield step

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:  # fmt: skip
        if kind is None or not issubclass(kind, KeyboardInterrupt):
            return False
        self.status = Status.INTERRUPTED
        return True
