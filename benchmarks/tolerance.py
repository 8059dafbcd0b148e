"""How many weights does the convex program remove at a given radius, and what does that cost?

LeNet-300-100 is pruned on 1,000 MNIST training images, every layer by the least l1 norm at one
tolerance (epsilon relative to the layer's outputs), in parallel as in the paper; nothing is
reweighted, refitted or retrained. Both forms of the program run: "strict", the paper's, whose
inactive outputs must stay inactive, and "pooled". Magnitude pruning to the same zeros in every
layer stands beside them. Scored on all 10,000 test images.

Without the data folder (see ``benchmarks/datasets.py``) only ``--quick`` runs, on the
demonstration's digits.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from nettrim_solver import Recipe, prune_network
from nettrim_solver.plotting import new_figure

from . import __main__ as harness
from . import datasets
from .measure import clocked, say
from .pages import table

IMAGES = 1000

#: The quickest first.
TOLERANCES = (0.5, 0.3, 0.2, 0.15, 0.1, 0.05, 0.02, 0.01)
TOLERANCES_QUICK = (0.2, 0.05)
FORMULATIONS = ("strict", "pooled")
COLOURS = {"strict": "C0", "pooled": "C2"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--seeds", type=int, default=2, help="draws of calibration images")
    parser.add_argument(
        "--minutes", type=float, help="begin no run after so many minutes; the next call goes on"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Prune at every tolerance what is not in the interrupted run's file yet."""
    quick = bool(args.quick)
    data = datasets.digits() if quick else datasets.lenet()
    harness.RESULTS.mkdir(exist_ok=True)
    path = harness.RESULTS / f"tolerance{'-quick' if quick else ''}.partial.json"
    rows, whole, begun = _earlier(path), True, time.perf_counter()
    for seed, formulation, tolerance in cases(quick, args.seeds):
        key = f"{seed} | {formulation} | {tolerance:g}"
        if key in rows:
            continue
        if args.minutes is not None and time.perf_counter() - begun > 60 * args.minutes:
            whole = False
            break
        rows[key] = prune(data, seed, formulation, tolerance)
        text = json.dumps(rows)
        harness.write_atomically(path, lambda part, text=text: part.write_text(text))
        say(f"{key}: {rows[key]['zeros']:.4f} zeros, accuracy {rows[key]['accuracy']:.4f}")
    if whole:
        path.unlink(missing_ok=True)
    return {
        "quick": quick,
        "whole": whole,
        "network": data.name,
        "images": _images(data),
        "dense_accuracy": data.accuracy(data.network),
        "rows": list(rows.values()),
    }


def cases(quick: bool, n_seeds: int) -> Iterator[tuple[int, str, float]]:
    """Yield seed, formulation and tolerance of every run."""
    tolerances = TOLERANCES_QUICK if quick else TOLERANCES
    yield from product(range(1 if quick else n_seeds), FORMULATIONS, tolerances)


def prune(
    data: datasets.Classifier, seed: int, formulation: str, tolerance: float
) -> dict[str, Any]:
    """Prune by the convex program at a tolerance, and by magnitude to the same zeros."""
    X = data.sample(_images(data), seed)
    recipe = Recipe.of({"formulation": formulation, "mode": "parallel"})
    result, spent = clocked(
        lambda: prune_network(data.network, X, tolerance=tolerance, recipe=recipe, n_threads=1)
    )
    kept = {layer.name: layer.nnz for layer in result.network.layers}
    magnitude = prune_network(
        data.network, X, nnz=kept, recipe=Recipe(steps="magnitude", mode="parallel"), n_threads=1
    )
    return {
        "seed": seed,
        "formulation": formulation,
        "tolerance": tolerance,
        "status": str(result.status),
        "zeros": result.network.sparsity,
        "split": [layer.sparsity for layer in result.network.layers],
        "accuracy": data.accuracy(result.network),
        "output_error": result.output_error,
        "output_bound": result.output_bound,
        "layer_errors": [layer.network_error for layer in result.layers],
        "magnitude": {
            "zeros": magnitude.network.sparsity,
            "accuracy": data.accuracy(magnitude.network),
            "output_error": magnitude.output_error,
        },
        "seconds": spent.seconds,
        "cpu_seconds": spent.cpu_seconds,
    }


def _images(data: datasets.Classifier) -> int:
    return min(IMAGES, len(data.X_train))


def _earlier(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _means(result: dict[str, Any], formulation: str) -> list[dict[str, float]]:
    """Return the means over the seeds, by tolerance."""
    found = []
    for tolerance in sorted({row["tolerance"] for row in result["rows"]}):
        rows = [
            row | {f"magnitude_{name}": value for name, value in row["magnitude"].items()}
            for row in result["rows"]
            if (row["formulation"], row["tolerance"]) == (formulation, tolerance)
        ]
        if not rows:
            continue
        names = ("zeros", "accuracy", "output_error", "output_bound", "magnitude_accuracy",
                 "magnitude_output_error", "cpu_seconds")  # fmt: skip
        means = {name: float(np.mean([row[name] for row in rows])) for name in names}
        found.append(means | {"tolerance": tolerance})
    return found


def describe(result: dict[str, Any]) -> str:
    """Return the table over the tolerances."""
    seeds = len({row["seed"] for row in result["rows"]})
    header = ["program", "tolerance", "zeros", "accuracy", "error of the output", "its bound",
              "accuracy of magnitude, same zeros", "its error"]  # fmt: skip
    body = [
        [formulation, f"{row['tolerance']:g}", f"{row['zeros']:.3f}", f"{row['accuracy']:.4f}",
         f"{row['output_error']:.3f}", f"{row['output_bound']:.3f}",
         f"{row['magnitude_accuracy']:.4f}", f"{row['magnitude_output_error']:.3f}"]
        for formulation in FORMULATIONS
        for row in _means(result, formulation)
    ]  # fmt: skip
    proved = sum(row["status"] == "optimal" for row in result["rows"])
    head = (
        f"**{result['network']}**, {result['images']} images, means over the seeds ({seeds}); "
        f"dense accuracy {result['dense_accuracy']:.4f}; proved optimal: {proved} of "
        f"{len(result['rows'])} networks"
    )
    return "\n".join([head, "", *table(header, body)])


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw zeros and accuracy over the tolerance, and accuracy over the zeros."""
    figure = new_figure(12.0, 3.8)
    axes = figure.subplots(1, 3)
    for formulation in FORMULATIONS:
        rows, colour = _means(result, formulation), COLOURS[formulation]
        at = [row["tolerance"] for row in rows]
        for ax, x, name in ((axes[0], at, "zeros"), (axes[1], at, "accuracy"),
                            (axes[2], [row["zeros"] for row in rows], "accuracy")):  # fmt: skip
            ax.plot(x, [row[name] for row in rows], "o-", color=colour, label=formulation)
            if name == "accuracy":
                ax.plot(x, [row["magnitude_accuracy"] for row in rows], "s--", color=colour,
                        alpha=0.5, label=f"magnitude, zeros of {formulation}")  # fmt: skip
    for ax in axes[:2]:
        ax.set(xscale="log", xlabel="tolerance of every layer")
    axes[2].set(xlabel="zeros", ylabel="test accuracy")
    axes[0].set_ylabel("zeros")
    axes[1].set_ylabel("test accuracy")
    for ax in axes[1:]:
        ax.axhline(result["dense_accuracy"], color="0.5", lw=1)
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, dpi=110)
