"""The fields of a layer's report in words: headings, meanings, and how numbers are written."""

from __future__ import annotations

import math
from typing import Any

from .charts import escaped
from .result import LayerReport, PruningResult

#: Fields and properties of a layer's report: heading, how it is written, and what it means.
FIELDS = {
    "name": ("Layer", "text", "The name of the layer in the network."),
    "kind": ("Kind", "text", "Dense, or a convolution."),
    "shape": ("Shape", "shape", "Of the weights: inputs x outputs of a dense layer; filters x "
              "channels x height x width of a convolution."),
    "outcome": ("Outcome", "text", "What became of it. All layers but the pruned ones keep their "
                "trained weights."),
    "reason": ("Reason", "text", "Why it was not pruned."),
    "budget": ("Budget", "text", "What was asked for."),
    "zeros": ("Zeros", "count", "Weights that are zero."),
    "sparsity": ("Share of zeros", "percent", "Zeros among all weights. Intercepts are not "
                 "counted."),
    "nnz": ("Nonzeros", "count", "Weights that are kept."),
    "size": ("Weights", "count", "Zeros and nonzeros."),
    "solver": ("Solver", "text", "What computed the weights."),
    "status": ("Status", "text", "What the independent check says of the answer. \"optimal\": "
               "proved, the gap and the violation are within tolerance."),
    "epsilon": ("Radius", "number", "How far the layer's outputs may be from the trained ones: "
                "before the activation, in its units, over all rows used."),
    "distance": ("Distance", "number", "How far they are, in the same units."),
    "gap": ("Gap", "small", "Relative duality gap: how far the l1 norm can be from the least "
            "possible one. No units."),
    "violation": ("Violation", "small", "By how much the radius is exceeded, relative to it."),
    "rows": ("Rows used", "count", "Samples the layer was pruned with; (sample, position) pairs "
             "of a convolution."),
    "n_rows": ("Rows there are", "count", "In the calibration data."),
    "error": ("Layer error", "percent", "Of the layer's output after the activation, on the "
              "inputs and rows it was pruned with, relative to the trained layer's output "
              "(Frobenius norms)."),
    "error_heldout": ("Layer error, held out", "percent", "The same on the held-out samples."),
    "network_error": ("Network error", "percent", "Of the pruned network up to and including this "
                      "layer, on all calibration samples, relative to the trained network."),
    "network_error_heldout": ("Network error, held out", "percent", "The same on the held-out "
                              "samples."),
    "network_bound": ("Bound", "percent", "What the network error on the calibration samples is "
                      "proved to be below. There is none without a proof."),
    "seconds": ("Time", "seconds", "Wall time."),
    "warnings": ("Warnings", "list", "What to be careful about."),
}  # fmt: skip

#: What stands where there is no value.
NOTHING = "\N{EN DASH}"


def shown(value: Any, how: str) -> str:
    """Return a value as HTML, written for readers, with the exact number beside it."""
    if value is None or value == "" or value == ():
        return NOTHING
    if how == "text":
        return escaped(value)
    if how == "shape":
        return escaped(" \N{MULTIPLICATION SIGN} ".join(map(str, value)))
    if how == "list":
        return "<br>".join(escaped(entry) for entry in value)
    return f'<data value="{value!r}">{written(value, how)}</data>'


def field_of(one: LayerReport, name: str) -> str:
    """Return a field of a layer's report as HTML."""
    return shown(getattr(one, name), FIELDS[name][1] if name in FIELDS else "text")


def link_to(number: int, one: LayerReport) -> str:
    """Return the name of a layer as a link to its card."""
    return f'<a href="#layer-{number}">{escaped(one.name)}</a>'


def section(heading: str, *parts: str) -> str:
    """Return a section of the page."""
    return f"<section><h2>{escaped(heading)}</h2>\n" + "\n".join(parts) + "</section>"


def why_no_bound(result: PruningResult) -> str:
    """Return, in a sentence, why errors that were measured have no proved bound; else nothing."""
    bare = [one for one in result.layers if one.network_error is not None]
    bare = [one for one in bare if one.network_bound is None]
    partly = [one.name for one in bare if one.pruned and one.rows < one.n_rows]
    if partly:
        return (
            f"No bound for {', '.join(partly)}: pruned on a part of the rows there are, and a "
            "proof needs all (max_rows). What builds on such a layer may be without a bound, too."
        )
    if bare or (result.output_bound is None and result.output_error is not None):
        return "Some errors have no bound: an operation before them is not known to keep one."
    return ""


def written(value: float, how: str) -> str:
    """Return a number with its unit."""
    if not math.isfinite(value):
        return str(value)
    if how == "count":
        return f"{value:,}"
    if how == "percent":
        return f"{_figures(100 * value)} %"
    if how == "seconds":
        return f"{_figures(value)} s"
    return f"{value:.1e}" if how == "small" else f"{value:.4g}"


def _figures(value: float) -> str:
    """Return three figures, never as a power of ten where a short number does."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.2f}" if 1 <= abs(value) < 1e5 else f"{value:.3g}"
    return f"{value:.2e}"
