"""Tables, verdicts and the plot of the benchmark ``compare``, from its result alone.

    python -m benchmarks.compare_report

writes the tables of docs/comparison.md anew from benchmarks/results/compare.json and lenet.json, so
that no number there is typed by hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .compare_known import (
    KNOWN,
    SECONDS,
    WANTED,
    WANTED_OTHER_SEED,
    WANTED_SECONDS,
    Known,
)
from .environment import ROOT
from .pages import fill_page, table

RESULT = ROOT / "benchmarks" / "results" / "compare.json"
NETWORK_RESULT = RESULT.with_name("lenet.json")
PAGE = ROOT / "docs" / "comparison.md"

#: The tables stand between these lines of the page.
MARKS = ("<!-- tables of compare.json -->", "<!-- end of the tables -->")
LAYER_MARKS = ("<!-- ratios of compare.json -->", "<!-- end of the ratios -->")
NETWORK_MARKS = ("<!-- accuracies of lenet.json -->", "<!-- end of the accuracies -->")

#: Gap and violation up to which an answer of a convex solver is proved.
PROVED = 1e-6

#: The method whose errors are the unit of the plot.
UNIT = "alps"

#: Methods in the plot, with colour and line style.
DRAWN = {
    "magnitude": ("0.6", ":"),
    "obs": ("C1", ":"),
    "sparsegpt": ("C4", ":"),
    "alps": ("C0", "--"),
    "exact_obs": ("C2", "--"),
    "exact_obs+swaps": ("C2", "-"),
    "net-trim l1+refit": ("C3", ":"),
    "net-trim reweighted+refit": ("C3", "-."),
    "net-trim l0": ("C3", "--"),
    "net-trim l0+swaps": ("C3", "-"),
}

#: Zeros beyond those asked for that are rounding to whole weights.
ROUNDING = 2e-3

#: Whose code gave known figures, in words.
WHOSE = {"authors": "the authors'", "prototype": "the prototype's"}


def label_of(row: dict[str, Any]) -> str:
    """Return the method of a row."""
    return "+".join(filter(None, (row["solver"], row["refinement"])))


def methods(layer: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of a layer by method, in the order of their sparsities."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in layer["rows"]:
        found.setdefault(label_of(row), []).append(row)
    return {name: sorted(rows, key=lambda row: row["sparsity"]) for name, rows in found.items()}


# Verdicts ---------------------------------------------------------------------------------------


def verdicts(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Hold every method against the figures it has, and the answers against their own promises.

    A short run is on other layers, and has only the promises.
    """
    found = []
    for key, case in result["cases"].items():
        for layer in case["layers"]:
            if "rows" in layer:
                found += promises(key, layer)
        if case["layers"] and not result["quick"] and case["case"] in KNOWN:
            found += beside_known(key, case)
        if case["layers"] and not result["quick"] and key == "a":
            found += seconds_of(case["layers"][0])
    return found


def promises(key: str, layer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what must hold on every layer: no failures, exact counts, proofs."""
    rows, name = layer["rows"], f"{key}, {layer['name']}"
    failures = [f"{label_of(r)} at {r['sparsity']:g}: {r['failure']}" for r in rows if r["failure"]]
    yield _verdict(f"{name}: solvers that fail", 0, len(failures), failures)
    size = layer["shape"][1] * layer["shape"][2]
    answered = [r for r in rows if not r["failure"]]
    counts = [
        f"{label_of(r)} at {r['sparsity']:g}: {r['nnz']}"
        for r in answered
        if r["nnz"] > size - round(r["sparsity"] * size)
    ]
    yield _verdict(f"{name}: answers with too few zeros", 0, len(counts), counts)
    convex = [r for r in answered if r["gap"] is not None]
    unproved = [
        f"{label_of(r)} at {r['sparsity']:g}: gap {number(r['gap']):.1e}, violation "
        f"{number(r['violation']):.1e}, {r['status']}"
        for r in convex
        if not (number(r["gap"]) <= PROVED and number(r["violation"]) <= PROVED)
    ]
    yield _verdict(f"{name}: convex answers without proof", 0, len(unproved), unproved)


def beside_known(key: str, case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a verdict for every method with figures: the worst ratio of ours to them."""
    ours = methods(case["layers"][0])
    wanted = WANTED if case["seed"] == 0 else WANTED_OTHER_SEED
    for name, known in KNOWN[case["case"]].items():
        if name in ours:
            for what, ratio in ratios(ours[name], known).items():
                yield _verdict(f"{key}: {name}, {what} over {WHOSE[known.code]}", wanted, ratio)


def ratios(rows: list[dict[str, Any]], known: Known) -> dict[str, float]:
    """Return the worst ratio of our errors to known ones, on calibration and held-out samples."""
    found = {}
    for name, figures in (("error", known.errors), ("heldout_error", known.heldout)):
        if figures is not None:
            ours = [number(row[name]) for row in rows]
            found[name] = max(a / b for a, b in zip(ours, figures, strict=True))
    return found


def seconds_of(layer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the verdicts on seconds, absolute and beside the authors' code.

    The absolute ones are on the wall seconds of the slowest row. The others are on the least
    processor seconds of several runs: on a quiet core one thread takes as long, and on a machine
    that others use wall seconds say little.
    """
    ours = methods(layer)
    for name, most in SECONDS.items():
        if name in ours:
            slowest = max(number(row["seconds"]) for row in ours[name])
            yield _verdict(f"a: {name}, seconds", most, slowest)
    for name, runs in layer.get("repeats", {}).items():
        known = KNOWN["a"].get(name)
        if known is not None and known.seconds is not None and known.code == "authors":
            ratio = least(runs, "cpu_seconds") / known.seconds
            yield _verdict(
                f"a: {name}, least CPU seconds of {len(runs)} runs over the authors' seconds",
                WANTED_SECONDS, ratio,
            )  # fmt: skip


def least(runs: list[dict[str, float]], name: str) -> float:
    """Return the least of what several runs took."""
    return min(number(run[name]) for run in runs)


def _verdict(
    name: str, wanted: float, worst: float, details: list[str] | None = None
) -> dict[str, Any]:
    return {
        "name": name, "wanted": wanted, "worst": worst, "details": details or [],
        "met": bool(worst <= wanted),
    }  # fmt: skip


# Tables -----------------------------------------------------------------------------------------


def number(value: Any) -> float:
    """Return a number of the result; what was infinite is text there, what failed None."""
    return math.nan if value is None else float(value)


def grid(
    case: dict[str, Any], layer: dict[str, Any], figures: bool
) -> tuple[list[str], list[list[str]]]:
    """Return head and cells of a layer's table, with the known figures where they belong."""
    if "timed" in layer:
        return timed_grid(layer)
    known = KNOWN.get(case["case"], {}) if figures else {}
    ours = methods(layer)
    levels = sorted({row["sparsity"] for row in layer["rows"]})
    errors = [layer["metric"], f"heldout_{layer['metric']}"]
    accuracy = layer["trained_accuracy"] is not None
    head = ["method", *(f"{s:g}" for s in levels), *(f"held-out {s:g}" for s in levels)]
    head += [f"accuracy {s:g}" for s in levels] if accuracy else []
    more = any(more_zeros(row) for row in layer["rows"])
    head += ["zeros"] * more + ["seconds", "gap"] + ["known", "code", "ratio"] * bool(known)
    lines = []
    for name in dict.fromkeys([*ours, *known]):
        rows, cells = ours.get(name, []), [name]
        if name not in known and refits_nothing(name, ours, errors):
            continue
        for field in [*errors, *["accuracy"] * accuracy]:
            cells += [figure(row[field]) for row in rows] or ["-"] * len(levels)
        if more:
            cells.append(" ".join(f"{number(row['zeros']):.3g}" for row in rows if more_zeros(row)))
        seconds = [number(row["seconds"]) for row in rows]
        gaps = [number(row["gap"]) for row in rows if row["gap"] is not None]
        cells += [f"{max(seconds):.2g}" if seconds else "-", f"{max(gaps):.0e}" if gaps else "-"]
        if known:
            cells += beside(rows, known.get(name))
        lines.append(cells)
    return head, lines


def refits_nothing(name: str, ours: dict[str, list[dict[str, Any]]], errors: list[str]) -> bool:
    """Return whether a row is that of a method which is refitted already."""
    base = ours.get(name.removesuffix("+refit"), [])
    pairs = zip(ours.get(name, []), base, strict=False)
    return name.endswith("+refit") and all(
        figure(row[field]) == figure(other[field]) for row, other in pairs for field in errors
    )


def more_zeros(row: dict[str, Any]) -> bool:
    """Return whether an answer has more zeros than it was asked for, beyond rounding."""
    return number(row["zeros"]) > row["sparsity"] + ROUNDING


def beside(rows: list[dict[str, Any]], known: Known | None) -> list[str]:
    """Return the cells of the known figures."""
    if known is None:
        return ["-"] * 3
    figures = " ".join(figure(error) for error in known.errors)
    if known.heldout is not None:
        figures += " (" + " ".join(figure(error) for error in known.heldout) + ")"
    worst = f"{max(ratios(rows, known).values()):.3f}" if rows else "-"
    return [figures, known.code, worst]


def timed_grid(layer: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return head and cells of a table of the wall clock."""
    head = ["method", "zeros", "activation error", "held-out", "seconds", "CPU seconds",
            "pairs", "gap", "status"]  # fmt: skip
    lines = [
        [
            row["label"], f"{row['zeros']:.1%}", figure(row["activation_error"]),
            figure(row["heldout_activation_error"]), f"{row['seconds']:.3g}",
            f"{row['cpu_seconds']:.3g}", f"{row['pairs']:.0f}",
            "-" if row["gap"] is None else f"{number(row['gap']):.0e}", row["status"],
        ]
        for row in layer["timed"]
    ]  # fmt: skip
    return head, lines


def repeats_grid(layer: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return head and cells of the least seconds of several runs, beside those of others' code."""
    head = ["method", "runs", "least seconds", "least CPU seconds", "known seconds", "code"]
    lines = []
    for name, runs in layer["repeats"].items():
        known = KNOWN["a"].get(name)
        beside = ["-", "-"]
        if known is not None and known.seconds is not None:
            beside = [f"{known.seconds:g}", known.code]
        took = [f"{least(runs, what):.2g}" for what in ("seconds", "cpu_seconds")]
        lines.append([name, str(len(runs)), *took, *beside])
    return head, lines


def figure(value: Any) -> str:
    """Return an error with four digits, as the known figures have."""
    value = number(value)
    if math.isnan(value):
        return "failed"
    return f"{value:.4f}" if value >= 0.01 or value == 0 else f"{value:.1e}"


def captions(result: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Yield key, caption, case and layer of every table."""
    for key, case in result["cases"].items():
        for layer in case["layers"]:
            caption = f"{key}: {layer['name']}"
            if layer.get("trained_accuracy") is not None:
                caption += f"; accuracy of the trained network {layer['trained_accuracy']:.4f}"
            yield key, caption, case, layer


def describe(result: dict[str, Any]) -> str:
    """Return the tables and the verdicts as text."""
    lines = []
    for _, caption, case, layer in captions(result):
        head, cells = grid(case, layer, not result["quick"])
        widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
        lines += ["", caption]
        for first, *rest in (head, *cells):
            texts = [text.rjust(width) for text, width in zip(rest, widths[1:], strict=True)]
            lines.append("  ".join([first.ljust(widths[0]), *texts]))
    lines += [f"\ncase {k} skipped: {c['skipped']}" for k, c in _skipped(result)]
    missed = [verdict for verdict in result["verdicts"] if not verdict["met"]]
    lines += ["", f"{len(result['verdicts']) - len(missed)} targets met, {len(missed)} missed"]
    for verdict in missed:
        lines.append(f"  MISSED {verdict['name']}: {verdict['worst']:.4g} > {verdict['wanted']:g}")
        lines += [f"         {detail}" for detail in verdict["details"]]
    return "\n".join(lines)


def markdown(result: dict[str, Any]) -> str:
    """Return the tables of the documentation."""
    lines = []
    for _, caption, case, layer in captions(result):
        made = case["environment"]
        head, cells = grid(case, layer, not result["quick"])
        lines += [
            f"### Case {caption}", "",
            f"{layer['shape'][0]} samples, {layer['n_heldout']} held out; "
            f"{ERRORS[layer['metric']]}. Revision {made['git_revision']}, {made['date'][:10]}, "
            f"{made['cpu']}, {case['n_threads']} thread.",
            "", *table(head, cells), "",
        ]  # fmt: skip
        if "repeats" in layer:
            lines += ["Seconds at half of the zeros, in a process of one thread:", ""]
            lines += [*table(*repeats_grid(layer)), ""]
    lines += [f"Case {key} was skipped: {case['skipped']}.\n" for key, case in _skipped(result)]
    lines += ["### What is not as wanted", ""]
    missed = [verdict for verdict in result["verdicts"] if not verdict["met"]]
    count = f"{len(result['verdicts']) - len(missed)} of {len(result['verdicts'])} targets are met."
    rows = [[v["name"], f"{v['wanted']:g}", f"{number(v['worst']):.4g}"] for v in missed]
    lines += [count, "", *(table(["missed", "wanted at most", "is"], rows) if rows else [])]
    return "\n".join(lines).rstrip()


ERRORS = {
    "error": "relative error before the activation",
    "activation_error": "relative error behind the activation",
}


def _skipped(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(key, case) for key, case in result["cases"].items() if "skipped" in case]


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw held-out errors over those of one method against zeros, a panel per layer."""
    from matplotlib.figure import Figure

    entries = [entry for entry in captions(result) if "rows" in entry[3]]
    n_rows = max(1, math.ceil(len(entries) / 3))
    drawing = Figure(figsize=(13.5, 3.4 * n_rows), layout="constrained")
    panels = drawing.subplots(n_rows, 3, squeeze=False).ravel()
    for panel, (key, _, _, layer) in zip(panels, entries, strict=False):
        ours = methods(layer)
        unit = [number(row[f"heldout_{layer['metric']}"]) for row in ours.get(UNIT, [])]
        for name, (colour, style) in DRAWN.items():
            errors = [number(row[f"heldout_{layer['metric']}"]) for row in ours.get(name, [])]
            if len(errors) == len(unit) and all(error > 0 for error in (*errors, *unit)):
                zeros = [100 * row["sparsity"] for row in ours[name]]
                values = [error / one for error, one in zip(errors, unit, strict=True)]
                panel.plot(zeros, values, color=colour, ls=style, marker="o", ms=3, label=name)
        panel.set_title(f"{key}: {_short(layer['name'])}", fontsize="small")
        panel.set(
            xlabel="zeros asked for (%)", ylabel=f"held-out error over {UNIT}'s", yscale="log"
        )
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("{x:.2g}")
        panel.tick_params(axis="y", which="both", labelsize="x-small")
        panel.grid(alpha=0.3, which="both")
    for panel in panels[len(entries) :]:
        panel.set_axis_off()
    lines = {line.get_label(): line for panel in panels for line in panel.get_lines()}
    if lines:
        drawing.legend(lines.values(), lines, loc="outside lower center", ncols=5, frameon=False)
    drawing.savefig(path, dpi=120)


def _short(name: str) -> str:
    """Return the beginning of a layer's name."""
    return name if len(name) < 48 else f"{name[:46]} ..."


def main() -> None:
    """Put the tables of the full runs into the page, each between its two marks."""
    from . import compare_summary  # reads the tables of this module

    fill_page(PAGE, MARKS, RESULT, markdown)
    fill_page(PAGE, LAYER_MARKS, RESULT, compare_summary.layers)
    fill_page(PAGE, NETWORK_MARKS, NETWORK_RESULT, compare_summary.networks)


if __name__ == "__main__":
    main()
