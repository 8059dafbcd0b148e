"""The progress bar of a run: shown where a person looks, on a terminal or in a notebook."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .progress import LayerProgress, in_words

if TYPE_CHECKING:
    from rich.progress import Progress

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
    if not (_is_watched() if progress is None else progress):
        yield callback
        return
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
        yield _reporter(bar, callback)


def _reporter(bar: Progress, callback: Callback | None) -> Callback:
    task = bar.add_task("starting", total=None)

    def report(at: LayerProgress) -> object:
        total = None if at.fraction is None else 1.0
        bar.update(task, description=in_words(at), completed=at.fraction or 0.0, total=total)
        return None if callback is None else callback(at)

    return report


def _is_watched() -> bool:
    """Return whether stderr is a terminal that can show a bar, or the cell of a notebook."""
    if "ipykernel" in sys.modules:
        return True
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
