"""What do all benchmarks say, when did they run, and what did they miss?

Reads the newest result of every benchmark from ``benchmarks/results`` and writes one page,
docs/summary.md: an overview with machine, threads, versions and verdicts, then what each benchmark
reports. Nothing is computed anew. A benchmark without a result, or with one that cannot be read, is
listed as such.

Its numbers are those of the other files, so it writes no result file of its own.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from . import __main__ as harness
from .pages import table

PAGE = harness.FOLDER.parent / "docs" / "summary.md"

#: Benchmarks whose tables stand on a page of their own.
PAGES = {
    "compare": "comparison.md",
    "depth": "depth.md",
    "finetune": "experiments.md",
    "inference": "storage.md",
    "layer": "performance.md",
    "sample_complexity": "sample-complexity.md",
    "tolerance": "experiments.md",
}

INTRODUCTION = """# Summary of the benchmarks

Written by `python -m benchmarks summary` from the files under `benchmarks/results`, each of which
holds the newest run of one benchmark with everything that its numbers depend on. A revision that
ends in "-dirty" had changes on top. What each benchmark asks, and how to run it:
[Benchmarks](benchmarks.md)."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Collect the results; write the page unless the run is quick or saves nothing."""
    result = collect(harness.RESULTS)
    if args.save and not args.quick:
        text = describe(result) + "\n"
        harness.write_atomically(PAGE, lambda path: path.write_text(text, encoding="utf-8"))
    args.save = False
    return result


def collect(folder: Path) -> dict[str, Any]:
    """Return the records of all benchmarks by name; None where a file is missing or damaged."""
    names = [name for name in harness.benchmark_summaries() if name != "summary"]
    return {"records": {name: read(folder / f"{name}.json") for name in names}}


def read(path: Path) -> dict[str, Any] | None:
    """Return the record in a result file, or None if there is none that can be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and {"environment", "result"} <= record.keys()
    return record if whole else None


def describe(result: dict[str, Any]) -> str:
    """Return the page."""
    records, questions = result["records"], harness.benchmark_summaries()
    rows = [overview_row(name, record) for name, record in records.items()]
    header = ["benchmark", "question", "date", "revision", "targets"]
    body = [[row[0], questions[name], *row[1:]] for name, row in zip(records, rows, strict=True)]
    lines = [INTRODUCTION, "", *table(header, body)]
    for name, record in records.items():
        if record is not None:
            lines += section(name, record)
    return "\n".join(lines)


def overview_row(name: str, record: dict[str, Any] | None) -> list[str]:
    """Return name, date, revision and verdicts of one benchmark."""
    if record is None:
        return [f"`{name}`", "no result", "", ""]
    about = record["environment"]
    counts = Counter(met for _, met in verdicts(name, record["result"]))
    words = [f"{counts[True]} met"] if counts[True] else []
    words += [f"**{counts[False]} missed**"] if counts[False] else []
    date = str(about.get("date", "")).partition("T")[0]
    revision = str(about.get("git_revision"))
    return [f"[`{name}`](#{name})", date, revision, ", ".join(words) or "none"]


def section(name: str, record: dict[str, Any]) -> list[str]:
    """Return the lines of one benchmark: where it ran, what it missed, what it says."""
    found = verdicts(name, record["result"])
    missed = [text for text, met in found if not met]
    lines = ["", f"## {name}", "", *provenance(record["environment"])]
    if found:
        lines += ["", f"Targets: {len(found) - len(missed)} met, {len(missed)} missed."]
        lines += ["", *(f"- Missed: {text}" for text in missed)] if missed else []
    if name in PAGES:
        lines += ["", f"Tables: [{PAGES[name]}]({PAGES[name]})."]
    else:
        lines += ["", *report(name, record["result"])]
    if (harness.RESULTS / f"{name}.png").is_file():
        lines += ["", f"![{name}](../benchmarks/results/{name}.png)"]
    return lines


def provenance(about: dict[str, Any]) -> list[str]:
    """Return machine, threads, versions and command of a run."""
    packages = {key: entry for key, entry in (about.get("packages") or {}).items() if entry}
    threads = about.get("thread_variables") or {}
    loads = about.get("load_average_before"), about.get("load_average")
    return [
        f"`{about.get('command')}`, {about.get('date')}, revision {about.get('git_revision')}.",
        f"{about.get('cpu')}, {about.get('usable_cores')} cores, {about.get('platform')}; load "
        f"before and after {' and '.join(map(str, loads))}.",
        f"Python {about.get('python')}, "
        + ", ".join(f"{key} {entry}" for key, entry in packages.items()) + ".",
        "Threads: " + (", ".join(f"{key}={entry}" for key, entry in threads.items())
                       or "set by the benchmark") + ".",
    ]  # fmt: skip


def report(name: str, result: dict[str, Any]) -> list[str]:
    """Return what the benchmark says of its result: tables as they are, other text verbatim."""
    try:
        text = importlib.import_module(f"benchmarks.{name}").describe(result)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        return [f"This version cannot read the file ({type(error).__name__}: {error})."]
    lines = []
    for is_table, part in groupby(text.strip().splitlines(), lambda line: line.startswith("|")):
        block = "\n".join(part).strip("\n")
        if block:
            lines += ["", block] if is_table else ["", "```text", block, "```"]
    return lines[1:]


def verdicts(name: str, result: Any) -> list[tuple[str, bool]]:
    """Return every target of a result in words, with whether it was met."""
    if name == "agreement":
        return [
            (f"{part}: all problems {what[2:]}", result[part][what] == result[part]["n_problems"])
            for part in ("random", "planted") for what in ("n_agree", "n_proved")
        ]  # fmt: skip
    return list(marked(result, ""))


def marked(value: Any, label: str) -> Iterator[tuple[str, bool]]:
    """Yield label and verdict of every field `met` in nested data, and of every flag inside one."""
    if isinstance(value, list):
        for entry in value:
            yield from marked(entry, label)
    if not isinstance(value, dict):
        return
    if isinstance(value.get("met"), bool):
        named = "name" in value or "what" in value or label in ("", "met")
        yield in_words(value) if named else f"{label}: {in_words(value)}", value["met"]
        return
    for key, entry in value.items():
        if label == "met" and isinstance(entry, bool):
            yield key, entry
        else:
            yield from marked(entry, key)


def in_words(entry: dict[str, Any]) -> str:
    """Return the short fields of a verdict: what was asked, and what there was."""
    plain = {k: v for k, v in entry.items() if k != "met" and isinstance(v, (str, int, float))}
    words = [str(v) if k in ("name", "what") else f"{k} {short(v)}" for k, v in plain.items()]
    return ", ".join(words + (["disturbed by other work"] if entry.get("disturbed") else []))


def short(value: Any) -> str:
    """Return a number in four digits, anything else as text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
