"""The cards of a report's page: every layer with its pictures, its steps, and all its fields."""

from __future__ import annotations

import dataclasses

import numpy as np

from . import charts
from .charts import escaped
from .layers import Layer
from .report_fields import FIELDS, field_of, section, shown, written
from .result import LayerReport, PruningResult


def layer_cards(result: PruningResult) -> str:
    """Return the section with a card per layer: pictures, steps, and every field."""
    if not result.layers:
        return ""
    cards = "\n".join(_card(result, i, one) for i, one in enumerate(result.layers))
    return section(
        "Layer by layer",
        "<p>The pictures show where the kept weights are: inputs from top to bottom, outputs from "
        "left to right. Fields without a value were not measured, or do not apply.</p>",
        f'<div class="layers">{cards}</div>',
    )


def _card(result: PruningResult, number: int, one: LayerReport) -> str:
    names = list(FIELDS)
    names += [f.name for f in dataclasses.fields(one) if f.name not in {*FIELDS, "stages"}]
    fields = "".join(
        f"<div{' class=wide' if name in ('warnings', 'reason') and getattr(one, name) else ''}>"
        f"<dt>{escaped(FIELDS[name][0] if name in FIELDS else name)}</dt>"
        f"<dd>{field_of(one, name)}</dd></div>"
        for name in names
        if name != "name"
    )
    return (
        f'<article class="card layer" id="layer-{number}"><header><h3>{escaped(one.name)}</h3>'
        f'<p class="soft">{field_of(one, "sparsity")} zeros, {escaped(one.outcome)}</p></header>'
        f"<div>{_pictures(result, one)}</div><dl>{fields}</dl>{_stages(one)}</article>"
    )


def _stages(one: LayerReport) -> str:
    """Return what each step of a pipeline gave, a line per step."""
    if not one.stages:
        return ""
    rows = "".join(
        f"<tr><td>{escaped(stage.name)}</td><td>{shown(1 - stage.nnz / one.size, 'percent')}</td>"
        f"<td>{shown(stage.distance, 'number')}</td><td>{shown(stage.error, 'percent')}</td>"
        f"<td>{shown(stage.gap, 'small')}</td><td>{shown(stage.seconds, 'seconds')}</td>"
        f"<td>{escaped(stage.status.label)}</td></tr>\n"
        for stage in one.stages
    )
    heads = ("After", "Zeros", "Distance", "Layer error", "Gap", "Time", "Status")
    return (
        f'<div class="scroll" tabindex="0"><table class="figures"><thead><tr>'
        f"{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _pictures(result: PruningResult, one: LayerReport) -> str:
    pruned, trained = result.network.layer(one.name), result.original.layer(one.name)
    # Groups of a convolution have inputs of their own, side by side here.
    mask = np.concatenate([W != 0 for W in pruned.matrices()], axis=1)
    image, largest = charts.mask_picture(mask, f"Kept weights of {one.name}")
    legend = f"Kept weights, {mask.shape[0]:,} x {mask.shape[1]:,}."
    if largest and max(mask.shape) > charts.MAX_CELLS:  # a cell may hold several weights
        legend += f" Darkest: {written(largest, 'percent')} kept."
    figures = [
        (image, legend),
        (_histogram(pruned, trained), "Values: kept ones in front of the trained."),
    ]
    return "".join(
        f"<figure>{picture}<figcaption>{escaped(text)}</figcaption></figure>"
        for picture, text in figures
        if picture
    )


def _histogram(pruned: Layer, trained: Layer) -> str:
    return charts.histogram(pruned.W, trained.W)
