"""What benchmarks of pruned networks share: trials that are resumed, scored, and put in tables."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nettrim_solver import Recipe, prune_network
from nettrim_solver.network import Network, PruningResult

from . import __main__ as harness
from .measure import clocked, say
from .pages import table

#: How networks are pruned, by the names in the tables.
RECIPES: dict[str, Recipe | str] = {
    "best": "best",
    "fast": "fast",
    "net-trim": "net-trim",
    "alps, allotted": Recipe(steps="alps", allocation="output_error"),
    "alps": Recipe(steps="alps"),
    "magnitude": Recipe(steps="magnitude"),
}


class Task(Protocol):
    """A trained network with calibration samples and a score on others."""

    name: str
    network: Network

    def sample(self, n: int, seed: int) -> Any:
        """Return n calibration samples."""

    def score(self, network: Network) -> float:
        """Return the accuracy, or R2, of a network on test samples."""


@dataclass(frozen=True)
class Trial:
    """One network that is pruned."""

    task: str
    recipe: str
    zeros: float
    samples: int
    seed: int

    def __str__(self) -> str:
        return f"{self.task} | {self.recipe} | {self.zeros:g} | {self.samples} | {self.seed}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of benchmarks that run trials."""
    parser.add_argument("--seeds", type=int, default=3, help="calibration samples drawn")
    parser.add_argument("--recipes", nargs="+", help="only these")
    parser.add_argument(
        "--minutes", type=float, help="begin no trial after so many minutes; the next run goes on"
    )


def run_trials(
    name: str, args: argparse.Namespace, trials: Iterable[Trial], tasks: dict[str, Task],
    recipes: dict[str, Recipe | str], after: Callable[[Trial, PruningResult], dict[str, Any]] | None
    = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Run the trials that are not in the interrupted run's file yet, and return all rows.

    Parameters
    ----------
    name : str
        Of the benchmark.
    args : Namespace
    trials : iterable of Trial
        The most important first.
    tasks, recipes : dict
        By the names in the trials.
    after : callable, optional
        What else is measured of a pruned network.
    """
    harness.RESULTS.mkdir(exist_ok=True)
    path = harness.RESULTS / f"{name}{'-quick' if args.quick else ''}.partial.json"
    rows, whole, begun = _earlier(path), True, time.perf_counter()
    for trial in trials:
        if str(trial) in rows or (args.recipes and trial.recipe not in args.recipes):
            continue
        if args.minutes is not None and time.perf_counter() - begun > 60 * args.minutes:
            whole = False
            break
        row, result = run_trial(trial, tasks[trial.task], recipes[trial.recipe])
        if after is not None:
            row |= after(trial, result)
        rows[str(trial)] = row
        text = json.dumps(harness.plain(rows))
        harness.write_atomically(path, lambda part, text=text: part.write_text(text))
        say(f"{trial}: {row['score']:.4f}, {row['cpu_seconds']:.1f} s")
    if whole:
        path.unlink(missing_ok=True)
    return list(rows.values())


def run_trial(trial: Trial, task: Task, recipe: Recipe | str) -> tuple[dict[str, Any], Any]:
    """Prune a network once, with no option but the budget and the recipe, and score it."""
    X = task.sample(trial.samples, trial.seed)
    # What is compiled is charged to nobody.
    prune_network(task.network, X[:60], sparsity=trial.zeros, recipe=recipe, n_threads=1)
    result, spent = clocked(
        lambda: prune_network(task.network, X, sparsity=trial.zeros, recipe=recipe, n_threads=1)
    )
    if left := [one.name for one in result.layers if one.outcome != "pruned"]:
        raise RuntimeError(f"{trial}: layers {left} were not pruned")
    return {
        "task": trial.task, "recipe": trial.recipe, "zeros_asked": trial.zeros,
        "samples": trial.samples, "seed": trial.seed, "zeros": result.sparsity,
        "split": {one.name: one.sparsity for one in result.layers},
        "score": task.score(result.network), "output_error": result.output_error,
        "seconds": spent.seconds, "cpu_seconds": spent.cpu_seconds,
        "seconds_by_stage": result.seconds_by_stage, "done": repr(result.recipe),
        "notes": list(result.notes), "status": str(result.status),
    }, result  # fmt: skip


def _earlier(path: Any) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def chosen(rows: Sequence[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """Return the rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def mean(rows: Sequence[dict[str, Any]], name: str) -> float:
    """Return the mean of a figure."""
    return float(np.mean([row[name] for row in rows]))


def verdict(
    what: str,
    rows: Sequence[dict[str, Any]],
    wanted: float,
    name: str = "score",
    most: bool = False,
) -> list[dict[str, Any]]:
    """Return what was asked of the mean over the seeds, and whether it is met; nothing if not run.

    `most` is for figures that are to be at most what is wanted.
    """
    if not rows:
        return []
    value = mean(rows, name)
    spread = float(np.ptp([row[name] for row in rows]))
    met = value <= wanted if most else value >= wanted
    return [{"what": what, "wanted": wanted, "mean": value, "spread": spread,
             "runs": len(rows), "met": met}]  # fmt: skip


def describe_trials(rows: Sequence[dict[str, Any]], baselines: dict[str, float]) -> list[str]:
    """Return a table for every network and number of samples: scores and seconds by zeros."""
    lines = []
    for task, samples in dict.fromkeys((row["task"], row["samples"]) for row in rows):
        own = chosen(rows, task=task, samples=samples)
        zeros = sorted({row["zeros_asked"] for row in own})
        body = []
        for recipe in dict.fromkeys(row["recipe"] for row in own):
            cells = [recipe]
            for level in zeros:
                found = chosen(own, recipe=recipe, zeros_asked=level)
                cells.append(_cell(found))
            seconds = mean(chosen(own, recipe=recipe), "cpu_seconds")
            body.append([*cells, f"{seconds:.1f}"])
        lines += [f"{task}, {samples} calibration samples, dense {baselines[task]:.4f}", ""]
        lines += [*table(["recipe", *(f"{z:g}" for z in zeros), "CPU s"], body), ""]
    return lines


def _cell(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return ""
    half = float(np.ptp([row["score"] for row in rows])) / 2
    return f"{mean(rows, 'score'):.4f}" + (f" ± {half:.4f}" if len(rows) > 1 else "")


def describe_verdicts(verdicts: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for everything that was asked."""
    return [
        f"{'met' if one['met'] else 'MISSED'}: {one['what']}: {one['mean']:.4f} (asked "
        f"{one['wanted']:g}, {one['runs']} runs)"
        for one in verdicts
    ]
