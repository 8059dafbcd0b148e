"""How many samples give sparse weights back exactly, and does the theorem's bound hold?

Planted s-sparse weights of a ReLU neuron, a stream of inputs, and the least number of its first
samples from which Net-Trim at radius zero returns them: once per trial, by bisection, with a proof
on both sides (see ``sample_complexity_trial``). The fraction of trials that need no more than P
samples is the probability of recovery at P, so the trials of one kind, width and sparsity give a
whole column of a heat map.

Finished trials are kept in ``results/sample_complexity.partial.jsonl``, a line each: started
again, the benchmark goes on, ``--minutes 0`` reports what there is, and ``--fresh`` forgets it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nettrim_solver import Problem, solve
from nettrim_solver.threads import limit_threads

from . import __main__ as harness
from .sample_complexity_report import heat_maps, summary, text
from .sample_complexity_trial import (
    KINDS,
    OTHER,
    Line,
    hidden_signals,
    instance,
    trial,
)

#: Numbers of inputs of the random kinds, and nonzeros as fractions of them.
WIDTHS, WIDTHS_QUICK = (100, 250, 500, 1000), (50, 100)
FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
FRACTIONS_QUICK = (0.02, 0.1, 0.3)

TRIALS, TRIALS_QUICK = 50, 20

#: Trials of one task of a worker.
CHUNK = 10

#: Relative radius of the cross-check, where the program at radius zero is only approached; the
#: solver is asked for the weights as well as float64 lets it.
NEARLY_ZERO = 1e-7


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--jobs", type=int, default=2, help="worker processes, of one thread each")
    parser.add_argument("--trials", type=int, help=f"of every column; {TRIALS} by default")
    parser.add_argument("--minutes", type=float, help="begin no trials after this time")
    parser.add_argument("--fresh", action="store_true", help="forget earlier trials")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run all trials that are not in the log yet, and report on all that are."""
    from joblib import Parallel, delayed

    n_trials = args.trials or (TRIALS_QUICK if args.quick else TRIALS)
    deadline = np.inf if args.minutes is None else time.time() + 60 * args.minutes
    wanted = lines(args.quick)
    path = log_file(args.quick)
    harness.RESULTS.mkdir(exist_ok=True)
    if args.fresh:
        path.unlink(missing_ok=True)
    done = read_log(path)
    earlier = len(done)
    tasks = chunks(wanted, n_trials, done)
    workers = Parallel(n_jobs=args.jobs, return_as="generator_unordered")
    with open(path, "ab") as log:
        log.write(b"\n" if log.tell() else b"")  # ends a line that was never finished
        for rows in workers(delayed(run_trials)(*task, deadline) for task in tasks):
            log.write(b"".join(json.dumps(harness.plain(row)).encode() + b"\n" for row in rows))
            log.flush()
            done |= {(row["line"], row["trial"]): row for row in rows}
    result = summary(wanted, list(done.values()), n_trials)
    result |= {"quick": bool(args.quick), "earlier_trials": earlier}
    if time.time() < deadline:
        result["cross_checks"] = cross_checks(1 if args.quick else 3)
    return result


def describe(result: dict[str, Any]) -> str:
    """Return the fits and the verdicts as text."""
    return text(result)


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw the heat maps."""
    heat_maps(result, path)


def lines(quick: bool) -> list[Line]:
    """Return every kind of inputs, width and sparsity."""
    found = []
    for kind in KINDS:
        widths = WIDTHS_QUICK if quick else WIDTHS
        if kind == "hidden":
            widths = tuple(sorted(hidden_signals()))[: 1 if quick else None]
        for n in widths:
            fractions = FRACTIONS_QUICK if quick else FRACTIONS
            found += [Line(kind, n, max(1, round(fraction * n))) for fraction in fractions]
    return found


def chunks(
    wanted: list[Line], n_trials: int, done: dict[tuple[str, int], Any]
) -> Iterator[tuple[Line, list[int]]]:
    """Yield the trials that are missing, so that every line gets some before any gets all."""
    for start in range(0, n_trials, CHUNK):
        for line in wanted:
            numbers = range(start, min(start + CHUNK, n_trials))
            missing = [number for number in numbers if (line.key, number) not in done]
            if missing:
                yield line, missing


def run_trials(line: Line, numbers: list[int], deadline: float) -> list[dict[str, Any]]:
    """Run some trials of one line on one thread; none after the deadline."""
    with limit_threads(1):
        return [trial(line, number) for number in numbers if time.time() < deadline]


def log_file(quick: bool) -> Path:
    """Return the file of finished trials."""
    stem = "sample_complexity-quick" if quick else "sample_complexity"
    return harness.RESULTS / f"{stem}.partial.jsonl"


def read_log(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the trials of a log by line and number; a line that was never finished is no trial."""
    found = {}
    for content in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row = json.loads(content)
        except ValueError:
            continue
        found[row["line"], row["trial"]] = row
    return found


def cross_checks(n_trials: int) -> dict[str, Any]:
    """Ask the package's solver, strict and pooled, about trials around their least P.

    With a fifth more samples than the trial's least number the weights must come back, and with a
    fifth fewer they must not.
    """
    rows = []
    for kind in KINDS[:3]:
        line = Line(kind, 100, 10)
        for number in range(n_trials):
            least = trial(line, number)["matched"]
            X, w = instance(line, number)
            for factor in (0.8, 1.2):
                n = round(factor * least)
                for formulation in ("strict", "pooled"):
                    rows.append(solver_agrees(X[:n], w, factor > 1, formulation) | {"kind": kind})
    return {
        "n_inputs": 100, "nnz": 10, "tolerance": NEARLY_ZERO, "asked": len(rows),
        "agree": sum(row["agrees"] for row in rows),
        "proved": sum(row["status"] == "optimal" for row in rows),
        "disagreements": [row for row in rows if not row["agrees"]],
    }  # fmt: skip


def solver_agrees(X: Any, w: Any, recovered: bool, formulation: str) -> dict[str, Any]:
    """Return whether the package's solver returns the planted weights exactly if it should."""
    problem = Problem(
        X, np.maximum(X @ w, 0.0)[:, None], tolerance=NEARLY_ZERO, formulation=formulation,
        intercept=False,
    )  # fmt: skip
    solution = solve(problem, n_threads=1)
    distance = float(np.linalg.norm(solution.W[:, 0] - w) / np.linalg.norm(w))
    return {
        "formulation": formulation, "samples": len(X), "recovered": recovered,
        "distance": distance, "status": str(solution.status),
        "agrees": (distance < OTHER) == recovered,
    }  # fmt: skip
