"""How many more weights can go at the same guarantee, after the convex program?

For a tolerance the recipe "best" solves the certified convex program first, and then looks for as
few weights as it can within the same radius of every layer. Both stages stand side by side, on the
demonstration's digits and on LeNet-300-100: zeros, whether every radius is kept, and errors of the
output on the calibration samples and on others.

Without the data folder (see ``benchmarks/datasets.py``) only the digits run.
"""

from __future__ import annotations

import argparse
from typing import Any

from nettrim_solver import prune_network

from . import datasets
from .measure import clocked, say
from .pages import table

TOLERANCES, IMAGES = (0.1, 0.2), 1000

#: What a radius may be exceeded by, relative to it: the tolerance of a proof in float32.
KEPT = 1e-5


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Prune to every tolerance."""
    networks = [datasets.digits()]
    if not args.quick:
        try:
            networks.append(datasets.lenet())
        except datasets.MissingDataError as reason:
            say(f"without LeNet-300-100: {reason}")
    tolerances = TOLERANCES[1:] if args.quick else TOLERANCES
    return {
        "quick": bool(args.quick),
        "rows": [prune(data, tolerance) for data in networks for tolerance in tolerances],
    }


def prune(data: datasets.Classifier, tolerance: float) -> dict[str, Any]:
    """Prune a network to one tolerance, and return both stages."""
    X = data.sample(min(IMAGES, len(data.X_train) // 2), 0)
    heldout = data.sample(min(IMAGES, len(data.X_train) // 2), 1)
    prune_network(data.network, X[:60], tolerance=tolerance, n_threads=1)  # compiles
    result, spent = clocked(
        lambda: prune_network(data.network, X, tolerance=tolerance, X_heldout=heldout, n_threads=1)
    )
    size = sum(one.size for one in result.layers)
    convex = [one.stages[0] for one in result.layers]
    say(f"{data.name}, {tolerance:g}: {result.summary()}")
    return {
        "network": data.name,
        "tolerance": tolerance,
        "convex_zeros": 1 - sum(stage.nnz for stage in convex) / size,
        "proved": all(str(stage.status) == "optimal" for stage in convex),
        "gap": max(stage.gap or 0.0 for stage in convex),
        "zeros": result.sparsity,
        "violation": max(one.violation or 0.0 for one in result.layers),
        "layers": [
            {"name": one.name, "convex": one.stages[0].nnz, "final": one.nnz, "size": one.size,
             "error": one.error, "error_heldout": one.error_heldout}
            for one in result.layers
        ],
        "output_error": result.output_error,
        "output_bound": result.output_bound,
        "output_error_heldout": result.output_error_heldout,
        "accuracy": data.score(result.network),
        "dense_accuracy": data.score(data.network),
        "cpu_seconds": spent.cpu_seconds,
        "met": all((one.violation or 0.0) <= KEPT for one in result.layers),
    }  # fmt: skip


def describe(result: dict[str, Any]) -> str:
    """Return the table."""
    head = ["network", "tolerance", "zeros, convex", "zeros, final", "weights left",
            "output error", "its bound", "held out", "accuracy", "CPU s"]  # fmt: skip
    body = []
    for row in result["rows"]:
        left = sum(one["final"] for one in row["layers"]) / sum(
            one["convex"] for one in row["layers"]
        )
        body.append([
            row["network"], f"{row['tolerance']:g}", f"{row['convex_zeros']:.4f}",
            f"{row['zeros']:.4f}", f"{left:.2f} of the convex", f"{row['output_error']:.4f}",
            f"{row['output_bound']:.4f}", f"{row['output_error_heldout']:.4f}",
            f"{row['accuracy']:.4f} ({row['dense_accuracy']:.4f})", f"{row['cpu_seconds']:.1f}",
        ])  # fmt: skip
    lines = table(head, body)
    for row in result["rows"]:
        word = "met" if row["met"] and row["proved"] else "MISSED"
        lines.append(
            f"{word}: {row['network']}, {row['tolerance']:g}: every convex program proved (gap "
            f"{row['gap']:.1e}) and every radius kept (violation {row['violation']:.1e})"
        )
    return "\n".join(lines)
