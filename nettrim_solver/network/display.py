"""The progress bar of a run: shown where a person looks, on a terminal or in a notebook."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..checks import printable
from .progress import LayerProgress, in_words

Callback = Callable[[LayerProgress], object]


@contextmanager
def shown_progress(progress: bool | None, callback: Callback | None) -> Iterator[Callback | None]:
    """Show a progress bar on stderr while the block runs, and call the user's callback as well.

    Parameters
    ----------
    progress : bool or None
        Whether it is shown; None for where a person looks.
    callback : callable or None

    Yields
    ------
    callable or None
        The callback of the run.
    """
    if not (is_watched() if progress is None else progress):
        yield callback
        return
    with progress_bar() as update:

        def report(at: LayerProgress) -> object:
            update(in_words(at), at.fraction)
            return None if callback is None else callback(at)

        yield report


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float | None], None]]:
    """Show a bar on stderr while the block runs.

    Yields
    ------
    callable
        Takes what is being done, in words, and the share that is done, or None.
    """
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.TaskProgressColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda words, share: bar.update(
            task, description=printable(words), completed=share or 0.0,
            total=None if share is None else 1.0,
        )  # fmt: skip


def is_watched() -> bool:
    """Return whether stderr is a terminal that can show a bar, or the cell of a notebook."""
    if "ipykernel" in sys.modules:
        return True
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
