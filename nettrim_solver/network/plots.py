"""Figures of layers and networks, by matplotlib: what zeros cost, and what a result is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..plotting import new_figure, save_figure
from .charts import drawable
from .paths import LayerPath
from .result import PruningResult


def plot_paths(paths: Sequence[LayerPath], path: str | os.PathLike[str] | None = None) -> Any:
    """Draw the paths of several layers: own errors on the left, the output's on the right.

    Solid lines are held-out samples where these were measured, dashed ones calibration samples.

    Parameters
    ----------
    paths : sequence of LayerPath
    path : path-like, optional
        As in :meth:`LayerPath.plot`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = new_figure(9.0, 4.0)
    axes = figure.subplots(1, 2)
    for color, one in enumerate(paths):
        for panel, name in zip(axes, ("errors", "output_errors"), strict=True):
            held = getattr(one, f"{name}_heldout")
            lines = [(held, "-"), (getattr(one, name), "-" if held is None else "--")]
            for values, style in lines:
                if values is not None:
                    some = values > 0
                    panel.plot(
                        100 * one.sparsities[some], values[some], style, marker=".",
                        color=f"C{color % 10}", label=one.name if style == "-" else None,
                    )  # fmt: skip
    for panel, label in zip(
        axes, ("relative error of the layer", "squared relative error of the network"), strict=True
    ):
        panel.set(xlabel="zeros of the layer (%)", ylabel=label, yscale="log")
        panel.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize="small")
    save_figure(figure, path)
    return figure


def plot_result(result: PruningResult, path: str | os.PathLike[str] | None = None) -> Any:
    """Draw the zeros of every layer, and the errors of the network beside their bounds.

    Parameters
    ----------
    result : PruningResult
    path : path-like, optional
        Where to write the figure; the suffix decides on the format (".png", ".pdf", ".svg").

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingDependencyError
        Without matplotlib.
    OSError
        If there is no such folder.
    """
    layers = result.layers
    figure = new_figure(9.0, 1.6 + 0.35 * max(len(layers), 2))
    left, right = figure.subplots(1, 2, sharey=True)
    places = range(len(layers))
    left.barh(places, [100 * one.sparsity for one in layers], height=0.6)
    left.set(xlim=(0, 100), xlabel="zeros (%)")
    # A "$" would begin a formula.
    left.set_yticks(places, [one.name.replace("$", r"\$") for one in layers])
    left.invert_yaxis()
    series = (("network_bound", "|", "bound"), ("network_error_heldout", "x", "held-out samples"),
              ("network_error", "o", "calibration samples"))  # fmt: skip
    for name, marker, label in series:
        values = [getattr(one, name) for one in layers]
        points = [(100 * v, i) for i, v in enumerate(values) if drawable(v)]
        if points:
            right.plot(*zip(*points, strict=True), marker, label=label, markersize=7)
            right.set_xscale("log")
    right.set(xlabel="error of the network up to the layer (%)")
    right.grid(alpha=0.3)
    if right.get_lines():
        right.legend(fontsize="small")
    save_figure(figure, path)
    return figure
