"""Figures without a window and without pyplot's global state; matplotlib is imported on demand."""

from __future__ import annotations

from typing import Any

from .exceptions import MissingDependencyError


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure of the given size in inches, laid out by itself.

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
    return Figure(figsize=(width, height), layout="constrained")
