"""How accurate is LeNet-300-100 after pruning, without retraining?

The network is pruned on a few MNIST training images at 90, 95 and 98 % zeros, with no option given
but the budget, and scored on all 10,000 test images. The named recipes stand beside one cascade of
ALPS with the same sparsity in every layer, ALPS with allotted zeros, and plain magnitude. Runs are
resumed where they were interrupted.

Nothing in the recipes was chosen by test images.

Without the data folder (see ``benchmarks/datasets.py``) only ``--quick`` runs, on the
demonstration's digits.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from typing import Any

from . import datasets
from .trials import (
    RECIPES,
    Trial,
    add_arguments,
    chosen,
    describe_trials,
    describe_verdicts,
    mean,
    run_trials,
    verdict,
)

__all__ = ["add_arguments", "describe", "run"]

#: Test accuracy asked of "best", by calibration images and zeros.
WANTED = {
    1000: {0.9: 0.983, 0.95: 0.9805, 0.98: 0.972},
    4000: {0.9: 0.9835, 0.95: 0.982, 0.98: 0.976},
}
ZEROS = (0.9, 0.95, 0.98)

#: Of "best" at 95 % zeros and 1,000 images: CPU seconds, and those relative to one cascade of ALPS;
#: of "fast": CPU seconds and accuracy.
BEST_SECONDS, BEST_RATIO, FAST_SECONDS, FAST_ACCURACY = 20.0, 12.0, 10.0, 0.979


def trials(seeds: int, quick: bool, name: str) -> Iterator[Trial]:
    """Yield what is to be run, the most important first."""
    if quick:
        for recipe in ("best", "fast", "alps", "magnitude"):
            yield Trial(name, recipe, ZEROS[0], 200, 0)
        return
    few, many = WANTED
    for seed, zeros, recipe in product(range(seeds), ZEROS, ("best", "fast", "alps")):
        yield Trial(name, recipe, zeros, few, seed)
    for seed, zeros in product(range(seeds), ZEROS):
        yield Trial(name, "best", zeros, many, seed)
    for zeros, recipe in product(ZEROS, ("magnitude", "alps, allotted", "net-trim")):
        yield Trial(name, recipe, zeros, few, 0)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run all trials that are not in the interrupted run's file yet."""
    quick = bool(args.quick)
    data = datasets.digits() if quick else datasets.lenet()
    rows = run_trials(
        "lenet", args, trials(args.seeds, quick, data.name), {data.name: data}, RECIPES
    )
    return {
        "quick": quick,
        "dense": {data.name: data.score(data.network)},
        "rows": rows,
        "met": [] if quick else verdicts(rows),
    }


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was asked, and what came out."""
    found = []
    for samples, wanted in WANTED.items():
        for zeros, least in wanted.items():
            own = chosen(rows, recipe="best", zeros_asked=zeros, samples=samples)
            found += verdict(f"best, {samples} images, {zeros:g} zeros", own, least)
    at = {"zeros_asked": 0.95, "samples": 1000}
    best, fast, alps = (chosen(rows, recipe=name, **at) for name in ("best", "fast", "alps"))
    found += verdict("CPU seconds of best", best, BEST_SECONDS, "cpu_seconds", most=True)
    if best and alps:
        unit = mean(alps, "cpu_seconds")
        ratios = [{"ratio": row["cpu_seconds"] / unit} for row in best]
        found += verdict("best, in cascades of ALPS", ratios, BEST_RATIO, "ratio", most=True)
    found += verdict("CPU seconds of fast", fast, FAST_SECONDS, "cpu_seconds", most=True)
    found += verdict("accuracy of fast", fast, FAST_ACCURACY)
    return found


def describe(result: dict[str, Any]) -> str:
    """Return the tables as text."""
    lines = describe_trials(result["rows"], result["dense"])
    return "\n".join([*lines, *describe_verdicts(result["met"])])
