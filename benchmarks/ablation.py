"""What is every part of the best recipe worth?

Every part is switched off in turn, on four networks: LeNet-300-100, the ONNX Model Zoo's mnist-8, a
regression network on the California housing data, and a perceptron with six hidden layers that is
trained here. They are pruned on 1,000 samples (the regression network on 2,000), with no other
option than the budget, and scored on test samples. Runs are resumed where they were interrupted.

Without the data folder (see ``benchmarks/datasets.py``) only ``--quick`` runs, on the
demonstration's digits.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from typing import Any

from nettrim_solver import Recipe

from . import datasets, regression
from .pages import table
from .trials import Trial, add_arguments, chosen, mean, run_trials

__all__ = ["add_arguments", "describe", "run"]

BEST = Recipe.named("best")

#: The recipe, and what is left of it without one of its parts.
PARTS: dict[str, Recipe | str] = {
    "best": BEST,
    "the same sparsity in every layer": BEST.with_(allocation="uniform"),
    "outputs weighted equally": BEST.with_(output_weights="equal", passes=0),
    "no preliminary pass": BEST.with_(passes=0),
    "linear target instead of the ReLU box": BEST.with_(steps="alps"),
    "no refit to the output": BEST.with_(output_refit=0),
    "layers in parallel instead of a cascade": BEST.with_(mode="parallel"),
}


def trials(names: dict[str, int], seeds: int, quick: bool) -> Iterator[Trial]:
    """Yield what is to be run."""
    levels = (0.9,) if quick else (0.8, 0.95)
    for seed, zeros, (name, samples), part in product(range(seeds), levels, names.items(), PARTS):
        yield Trial(name, part, zeros, samples, seed)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run all trials that are not in the interrupted run's file yet."""
    quick = bool(args.quick)
    if quick:
        data: list[Any] = [datasets.digits()]
    else:
        data = [
            datasets.lenet(), datasets.mnist_8(), regression.california(), datasets.deep_mlp()
        ]  # fmt: skip
    samples = {one.name: 200 if quick else 1000 for one in data}
    if not quick:
        samples[data[2].name] = regression.CALIBRATION
    tasks = {one.name: one for one in data}
    rows = run_trials("ablation", args, trials(samples, args.seeds, quick), tasks, PARTS)
    return {
        "quick": quick,
        "dense": {name: one.score(one.network) for name, one in tasks.items()},
        "rows": rows,
    }


def describe(result: dict[str, Any]) -> str:
    """Return a table for each share of zeros: what is left without every part."""
    rows, lines = result["rows"], []
    tasks = [*dict.fromkeys(row["task"] for row in rows)]
    for zeros in sorted({row["zeros_asked"] for row in rows}):
        body = []
        for part in dict.fromkeys(row["recipe"] for row in rows):
            cells = [part]
            for task in tasks:
                own = chosen(rows, task=task, recipe=part, zeros_asked=zeros)
                cells.append(
                    f"{mean(own, 'score'):.4f} ({mean(own, 'cpu_seconds'):.0f} s)" if own else ""
                )
            body.append(cells)
        body.append(["dense", *(f"{result['dense'][task]:.4f}" for task in tasks)])
        lines += [f"{zeros:g} zeros: accuracy or R2 (CPU seconds)", ""]
        lines += [*table(["", *tasks], body), ""]
    return "\n".join(lines)
