"""The report of a pruned network as one HTML file that needs nothing else.

The page has no scripts and loads nothing: styles, drawings and pictures are inside. Every number
is also there in full, in the ``value`` of its ``<data>`` element.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from ..exceptions import SettingsError
from ..problem_file import whole_file
from ..status import Status
from . import charts
from .charts import LogAxis, escaped
from .paths import LayerPath
from .report_fields import (
    FIELDS,
    NOTHING,
    field_of,
    link_to,
    section,
    shown,
    why_no_bound,
    written,
)
from .report_layers import layer_cards
from .result import PruningResult

#: Columns of the table of all layers.
COLUMNS = ("name", "kind", "shape", "sparsity", "nnz", "network_error", "network_error_heldout",
           "network_bound", "gap", "seconds", "status")  # fmt: skip

#: What a status says of a whole network; that of the layers is about one problem and its solver.
MEANINGS = {
    Status.OPTIMAL: "every pruned layer is proved to have the least l1 norm within its radius",
    Status.FEASIBLE: "every pruned layer keeps its radius; that none could keep it with less is "
                     "not proved",
    Status.PRUNED: "as many weights are left as were asked for",
    Status.UNPROVED: "the independent check does not confirm what the solver says of a layer; its "
                     "figures are those of the check",
    Status.MAX_ITERATIONS: "the iteration limit came before the proof of a layer; a higher "
                           "max_iter, or a larger tol_gap, leads to it",
    Status.TIME_LIMIT: "the time limit came before the end, or before the proof of a layer; layers "
                       "that were not reached have their trained weights",
    Status.INTERRUPTED: "stopped early; layers that were not reached have their trained weights",
    Status.FAILED: "a layer failed, or none was pruned; reasons are below",
}  # fmt: skip

#: Dead neurons that are listed one by one.
MAX_LISTED = 20


def write_report(
    result: PruningResult,
    path: str | os.PathLike[str],
    *,
    paths: Iterable[LayerPath] | None = None,
    title: str | None = None,
    facts: Mapping[str, str | tuple[str, str]] | None = None,
) -> None:
    """Write a report of a pruned network as one HTML file, all or nothing.

    Parameters
    ----------
    result : PruningResult
    path : path-like
        Where to; an existing file is replaced.
    paths : iterable of LayerPath, or mapping to them, optional
        Draws what zeros cost each layer, see :func:`.layer_path`; those that the result was found
        with when omitted.
    title : str, optional
    facts : mapping of str to str, or to pairs of str, optional
        What else is known of the network, such as ``{"Accuracy": ("97.9 %", "98.4 % before")}``:
        shown at the top, the second text below the first.

    Raises
    ------
    SettingsError
        If an argument is of another type.
    OSError
        If the folder is missing or not writable.

    Notes
    -----
    The file needs no network, no scripts and no other file. It grows with the number of layers, not
    with their size: a mask is a picture of at most 64 x 64 cells.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver.network import Dense, Network, prune_network
    >>> X = np.random.default_rng(0).standard_normal((50, 6))
    >>> result = prune_network(Network([Dense(np.eye(6)[:, :3])]), X, tolerance=0.5)
    >>> write_report(result, "report.html")  # doctest: +SKIP
    """
    text = html_report(result, paths=paths, title=title, facts=facts)
    with whole_file(path) as stream:
        # Names may hold halves of surrogate pairs, which no encoding takes.
        stream.write(text.encode("utf-8", errors="replace"))


def html_report(
    result: PruningResult,
    *,
    paths: Iterable[LayerPath] | None = None,
    title: str | None = None,
    facts: Mapping[str, str | tuple[str, str]] | None = None,
) -> str:
    """Return the page that :func:`write_report` writes."""
    if not isinstance(result, PruningResult):
        raise SettingsError(f"result must be a PruningResult, but was a {type(result).__name__}")
    if title is not None and not isinstance(title, str):
        raise SettingsError(f"title must be a str, but was {title!r}")
    curves = _checked_paths(result.paths.values() if paths is None else paths)
    heading = escaped(title or "Pruned network")
    style = (resources.files("nettrim_solver") / "data" / "report.css").read_text("utf-8")
    body = [
        _head(result, heading), _tiles(result, _checked_facts(facts)), _zeros(result),
        _errors(result), _table(result), _trials(result), _curves(result, curves), _notes(result),
        _dead(result),
        layer_cards(result), _run(result), _meanings(),
    ]  # fmt: skip
    # The policy makes browsers refuse whatever a page could load.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{heading}</title>\n<style>\n{style}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def _checked_paths(paths: Iterable[LayerPath]) -> list[LayerPath]:
    paths = paths.values() if isinstance(paths, Mapping) else paths
    if isinstance(paths, LayerPath) or not isinstance(paths, Iterable):
        raise SettingsError(f"paths must be a list of LayerPath, but was {paths!r}")
    given = list(paths)
    for one in given:
        if not isinstance(one, LayerPath):
            raise SettingsError(f"paths must be LayerPath, but one was a {type(one).__name__}")
    return given


def _checked_facts(facts: Any) -> dict[str, tuple[str, str]]:
    if facts is not None and not isinstance(facts, Mapping):
        raise SettingsError(f"facts must be a mapping of str, but was {facts!r}")
    found = {}
    for name, value in (facts or {}).items():
        words = (value, "") if isinstance(value, str) else value
        pair = isinstance(words, tuple) and len(words) == 2
        if not pair or not all(isinstance(word, str) for word in (name, *words)):
            raise SettingsError(
                f"facts must be a mapping of str to str or to pairs of str, but has {name!r}: "
                f"{value!r}"
            )
        found[name] = words
    return found


# Sections ---------------------------------------------------------------------------------------


def _head(result: PruningResult, heading: str) -> str:
    status = result.status
    kind = "alarm" if status in (Status.FAILED, Status.TIME_LIMIT, Status.INTERRUPTED) else "soft"
    return (
        f"<header><h1>{heading}</h1><p>{escaped(result.mode.capitalize())} mode, "
        f"{len(result.layers)} layers, {shown(result.seconds, 'seconds')}. Status "
        f'<span class="{kind}">{escaped(status.label)}</span>: '
        f"{escaped(MEANINGS.get(status, status.message))}.</p></header>"
    )


def _tiles(result: PruningResult, facts: Mapping[str, tuple[str, str]]) -> str:
    """Return the numbers that sum it up; only those that there are."""
    total = result.network.n_weights
    entries = [
        ("Zeros", shown(result.sparsity, "percent"),
         f"{shown(total - result.nnz, 'count')} of {shown(total, 'count')} weights"),
    ]  # fmt: skip
    floor = result.budget.value if result.budget.name == "min_accuracy" else None
    if floor is not None and "Accuracy" not in facts:
        note = f"by the function of the search; at least {shown(floor, 'number')} was asked for"
        entries.append(("Accuracy", shown(result.value, "number"), note))
    entries += [(escaped(name), escaped(text), escaped(note))
                for name, (text, note) in facts.items()]  # fmt: skip
    bound = "without a proved bound"
    if result.output_bound is not None:
        bound = f"proved: at most {shown(result.output_bound, 'percent')}"
    entries.append(("Output error, calibration", shown(result.output_error, "percent"), bound))
    if result.output_error_heldout is not None:
        held = shown(result.output_error_heldout, "percent")
        entries.append(("Output error, held out", held, "on the samples kept apart for it"))
    pruned = [one for one in result.layers if one.pruned]
    gaps = [one.gap for one in pruned if one.gap is not None]
    if gaps:
        proved = sum(one.status is Status.OPTIMAL for one in pruned)
        share = f"{shown(proved, 'count')} of {shown(len(pruned), 'count')}"
        entries.append(("Proved optimal", share, f"layers; worst gap {shown(max(gaps), 'small')}"))
    tiles = (
        f'<div class="card tile"><span class="soft">{name}</span><strong>{value}</strong>'
        f'<span class="soft">{note}</span></div>'
        for name, value, note in entries
    )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _zeros(result: PruningResult) -> str:
    if not result.layers:
        return '<p class="card">The network has no layers with weights.</p>'
    rows = [
        charts.row(
            link_to(number, one), charts.bar(one.sparsity),
            f"{field_of(one, 'sparsity')} of {field_of(one, 'size')}",
        )
        for number, one in enumerate(result.layers)
    ]  # fmt: skip
    return section("Zeros", f'<div class="card rows">{"".join(rows)}</div>')


def _errors(result: PruningResult) -> str:
    """Return what was measured beside what is proved, a line per layer and one for the output."""
    lines = [
        (link_to(i, one), one.network_error, one.network_error_heldout, one.network_bound)
        for i, one in enumerate(result.layers)
    ]
    last = (result.output_error, result.output_error_heldout, result.output_bound)
    lines.append(("<strong>output</strong>", *last))
    axis = LogAxis.of(value for line in lines for value in line[1:])
    if axis is None or not result.layers:
        return ""
    signs = [
        ('<circle class="dot" cx="13" cy="6" r="4.5"/>', "measured, calibration samples"),
        ('<line class="tick" x1="13" x2="13" y1="-1" y2="13"/>', "proved bound on it"),
        ('<circle class="ring" cx="13" cy="6" r="5"/>', "measured, held-out samples"),
    ]
    rows = []
    for label, error, heldout, bound in lines:
        value, limit = shown(error, "percent"), shown(bound, "percent")
        if bound is None:
            value += ", no bound"
        elif error is not None and written(error, "percent") == written(bound, "percent"):
            value += ", at its bound"
        else:
            value += f" \N{LESS-THAN OR EQUAL TO} {limit}"
        rows.append(charts.row(label, charts.track(axis, error, heldout, bound), value))
    return section(
        "Errors and bounds",
        "<p>Error of the pruned network up to each layer, after the activation, relative to the "
        "trained network. The scale is logarithmic; an error of zero has no dot.</p>",
        charts.legend(signs if any(line[2] is not None for line in lines) else signs[:2]),
        f'<div class="card rows">{"".join(rows)}{charts.axis_row(axis)}</div>',
        f'<p class="note">{escaped(why_no_bound(result))}</p>',
    )


def _table(result: PruningResult) -> str:
    if not result.layers:
        return ""
    held = result.output_error_heldout is not None
    names = [name for name in COLUMNS if held or not name.endswith("heldout")]
    head = "".join(f"<th>{escaped(FIELDS[name][0])}</th>" for name in names)
    rows = []
    for number, one in enumerate(result.layers):
        cells = {name: field_of(one, name) for name in names} | {"name": link_to(number, one)}
        if one.status is None:
            cells["status"] = escaped(one.outcome)
        rows.append("".join(f"<td>{cells[name]}</td>" for name in names))
    total = {
        "name": "network", "sparsity": shown(result.sparsity, "percent"),
        "nnz": shown(result.nnz, "count"), "network_error": shown(result.output_error, "percent"),
        "network_error_heldout": shown(result.output_error_heldout, "percent"),
        "network_bound": shown(result.output_bound, "percent"),
        "seconds": shown(result.seconds, "seconds"), "status": escaped(result.status.label),
    }  # fmt: skip
    last = "".join(f"<td>{total.get(name, '')}</td>" for name in names)
    lines = "".join(f"<tr>{row}</tr>\n" for row in rows)
    return section(
        "All layers",
        f'<div class="card scroll" tabindex="0"><table class="figures"><thead><tr>{head}</tr>'
        f'</thead><tbody>{lines}<tr class="total">{last}</tr></tbody></table></div>',
    )


def _trials(result: PruningResult) -> str:
    """Return the networks that a search tried, in order."""
    if not result.trials:
        return ""
    weights = result.network.n_weights
    rows = "".join(
        f"<tr><td>{escaped(one.stage)}</td><td>{shown(1 - one.nnz / weights, 'percent')}</td>"
        f"<td>{shown(one.nnz, 'count')}</td><td>{shown(one.value, 'number')}</td>"
        f"<td>{'yes' if one.met else 'no'}</td><td>{shown(one.seconds, 'seconds')}</td></tr>\n"
        for one in result.trials
    )
    heads = ("Stage", "Share of zeros", "Nonzeros", "Value", "Met", "Time")
    return section(
        "Networks tried",
        "<p>The cheap solver's first (probe), then those of the solver that was asked for (final). "
        "The answer is the sparsest of these that met the demand.</p>",
        f'<div class="card scroll" tabindex="0"><table class="figures"><thead><tr>'
        f"{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>",
    )


def _curves(result: PruningResult, paths: Sequence[LayerPath]) -> str:
    """Return a panel per path, all with the same axes, so that layers can be compared."""
    lines = {id(one): _lines(one) for one in paths}
    points = [point for found in lines.values() for _, line in found for point in line]
    axis = LogAxis.of(value for _, value in points)
    if axis is None:
        return ""
    start = min(90.0, 10 * math.floor(min(zeros for zeros, _ in points) / 10))
    sparsities = {one.name: 100 * one.sparsity for one in result.layers}
    panels = "".join(
        f'<figure class="card"><h3>{escaped(one.name)}</h3>'
        f"{charts.curves(lines[id(one)], axis, start, sparsities.get(one.name))}</figure>"
        for one in paths
    )
    line = '<line class="{}" x1="0" x2="26" y1="6" y2="6"/>'
    signs = [
        (line.format("own"), "error of the layer"),
        (line.format("network"), "error of the network's output"),
        (line.format("here"), "zeros of the layer in this result"),
    ]
    if any(one.errors_heldout is not None for one in paths):
        signs.append((line.format("own calibration"), "dashed: calibration samples"))
    return section(
        "What zeros cost each layer",
        "<p>Relative errors over the zeros of one layer, all others as trained. Solid lines are "
        "held-out samples where there are any. The error scale is logarithmic.</p>",
        charts.legend(signs),
        f'<div class="panels">{panels}</div>',
    )


def _lines(one: LayerPath) -> list[charts.Curve]:
    """Return the lines of a path; the squared errors of the output as norms, like the others."""
    lines: list[charts.Curve] = []
    for kind, name in (("own", "errors"), ("network", "output_errors")):
        held = getattr(one, f"{name}_heldout")
        style = kind if held is None else f"{kind} calibration"
        for values, label in ((getattr(one, name), style), (held, kind)):
            if values is None:
                continue
            norms = np.sqrt(values) if kind == "network" else values
            pairs = zip((100 * one.sparsities).tolist(), norms.tolist(), strict=True)
            points = [pair for pair in pairs if charts.drawable(pair[1])]
            if points:
                lines.append((label, points))
    return lines


def _notes(result: PruningResult) -> str:
    """Return the layers with trained weights and why, and all warnings."""
    kept = [
        f"<li>{link_to(i, one)} {escaped(one.outcome)}"
        f"{': ' + escaped(one.reason) if one.reason else ''}</li>"
        for i, one in enumerate(result.layers)
        if not one.pruned
    ]
    warned = [
        f"<li>{link_to(i, one)}: {escaped(text)}</li>"
        for i, one in enumerate(result.layers)
        for text in one.warnings
    ]
    parts = []
    for heading, entries in (("Layers left as trained", kept), ("Warnings", warned)):
        if entries:
            parts.append(section(heading, f'<ul class="card">{"".join(entries)}</ul>'))
    return "\n".join(parts)


def _dead(result: PruningResult) -> str:
    rows = []
    for number, (name, dead) in enumerate(result.dead_neurons().items()):
        if len(dead):
            n_outputs = result.network.layer(name).n_outputs
            cells = [f"{shown(len(dead), 'count')} of {shown(n_outputs, 'count')}"]
            cells += [_listed(indices.tolist()) for indices in (dead.constant, dead.unused)]
            link = f'<a href="#layer-{number}">{escaped(name)}</a>'
            rows.append(f"<tr><td>{link}</td>{''.join(f'<td>{c}</td>' for c in cells)}</tr>\n")
    if not rows:
        return ""
    heads = ("Layer", "Dead", "Without weights", "That no later layer uses")
    return section(
        "Neurons without effect",
        "<p>Outputs of layers by their numbers. <code>result.remove_dead_neurons()</code> gives a "
        "network without those that can go.</p>",
        f'<div class="card scroll" tabindex="0"><table><thead><tr>'
        f"{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>",
    )


def _listed(indices: list[int]) -> str:
    if not indices:
        return NOTHING
    more = len(indices) - MAX_LISTED
    text = ", ".join(map(str, indices[:MAX_LISTED]))
    return f"{text} and {more:,} more" if more > 0 else text


def _run(result: PruningResult) -> str:
    """Return what the run was, and with which versions the page was made."""
    package = sys.modules[__name__.partition(".")[0]]
    shape = " x ".join(map(str, result.sample_shape)) or "one number"
    entries = {
        "budget": str(result.budget), "recipe": repr(result.recipe), "input": shape,
        "chosen for this network": "; ".join(result.notes) or NOTHING,
        "nettrim_solver": package.__version__, "numpy": np.__version__,
        "Python": platform.python_version(), "platform": platform.platform(),
    }  # fmt: skip
    rows = "".join(
        f"<tr><th>{escaped(name)}</th><td>{escaped(value)}</td></tr>\n"
        for name, value in entries.items()
    )
    return section("The run", f'<div class="card scroll" tabindex="0"><table>{rows}</table></div>')


def _meanings() -> str:
    rows = "".join(
        f"<tr><th>{escaped(label)}</th><td>{escaped(text)}</td></tr>\n"
        for label, _, text in FIELDS.values()
    )
    return section("What the numbers mean", f'<div class="card scroll"><table>{rows}</table></div>')
