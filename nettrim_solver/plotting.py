"""Figures without a window and without pyplot's global state; matplotlib is imported on demand."""

from __future__ import annotations

import os
from typing import Any

from .exceptions import MissingDependencyError
from .problem_file import whole_file


def import_figure() -> Any:
    """Return matplotlib's class of figures.

    Raises
    ------
    MissingDependencyError
        Without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError(
            "the plot needs matplotlib: pip install 'nettrim_solver[plot]'"
        ) from None
    return Figure


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure of the given size in inches, laid out by itself.

    Raises
    ------
    MissingDependencyError
        Without matplotlib.
    """
    return import_figure()(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: str | os.PathLike[str] | None) -> None:
    """Write a figure, all or nothing; the suffix decides on the format. None writes nothing."""
    if path is None:
        return
    suffix = os.path.splitext(os.fspath(path))[1].lstrip(".") or "png"
    with whole_file(path) as stream:
        figure.savefig(stream, format=suffix, dpi=150)
