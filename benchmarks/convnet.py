"""How accurate are convolutional networks after pruning, without retraining?

Two networks on MNIST, pruned on 1,000 training images with no option given but the budget, and
scored on all 10,000 test images:

- the ONNX Model Zoo's ``mnist-8.onnx``, two convolutions and a dense layer; the pruned weights are
  written into the file, and onnxruntime is asked how accurate that file is;
- a small network with batch normalisation, a residual block, a depthwise and a 1 x 1 convolution,
  trained here in PyTorch. PyTorch's own pruning, by magnitude in every layer and over all layers,
  stands beside it, before and after one epoch of fine-tuning in which zeros stay zero.

Runs are resumed where they were interrupted. Needs the data folder, see ``benchmarks/datasets.py``;
the second network needs PyTorch.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from nettrim_solver.frameworks import from_onnx, to_onnx
from nettrim_solver.network import Network, PruningResult

from . import datasets
from .convnet_torch import compare_with_torch, describe_torch, verdicts_of_torch
from .pages import table
from .trials import (
    RECIPES,
    Trial,
    add_arguments,
    chosen,
    describe_trials,
    describe_verdicts,
    run_trials,
    verdict,
)

__all__ = ["add_arguments", "describe", "run"]

ZEROS = (0.5, 0.7, 0.8, 0.9)
IMAGES = 1000

#: Test accuracy asked of "best", in memory and in the written file.
WANTED = {0.8: 0.985, 0.9: 0.978}


def trials(seeds: int, quick: bool, name: str) -> Iterator[Trial]:
    """Yield what is to be run."""
    if quick:
        for recipe in ("best", "magnitude"):
            yield Trial(name, recipe, 0.8, 100, 0)
        return
    for seed, zeros, recipe in product(range(seeds), ZEROS, ("best", "fast", "alps", "magnitude")):
        yield Trial(name, recipe, zeros, IMAGES, seed)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run all trials, and write the networks at the zeros asked for into files."""
    quick = bool(args.quick)
    data, path = datasets.mnist_8(), datasets.data_file("mnist-8.onnx")

    def written(trial: Trial, result: PruningResult) -> dict[str, Any]:
        if trial.recipe != "best" or trial.zeros not in WANTED:
            return {}
        return {"file": run_file(data, path, result.network)}

    rows = run_trials(
        "convnet", args, trials(args.seeds, quick, data.name), {data.name: data}, RECIPES, written
    )
    torch_rows: list[dict[str, Any]] = []
    if find_spec("torch") is not None and not args.recipes:
        torch_rows = compare_with_torch(quick)
    return {
        "quick": quick,
        "dense": {data.name: data.score(data.network)},
        "rows": rows,
        "torch": torch_rows,
        "met": [] if quick else [*verdicts(rows), *verdicts_of_torch(torch_rows)],
    }


def run_file(data: datasets.Classifier, path: Path, network: Network) -> dict[str, Any]:
    """Write the network into the file, and score what onnxruntime makes of that."""
    import onnxruntime

    with TemporaryDirectory() as folder:
        target = Path(folder) / "pruned.onnx"
        to_onnx(path, network, target)
        session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
        sizes = {"dense": path.stat().st_size, "pruned": target.stat().st_size}
        zeros = from_onnx(target).sparsity
    (place,) = (one for one in session.get_inputs())
    # The model takes one image at a time.
    outputs = np.concatenate([session.run(None, {place.name: x[None]})[0] for x in data.X_test])
    expected = network(data.X_test, 4096)
    return {
        "zeros": zeros,
        "score": float(np.mean(outputs.argmax(axis=1) == data.y_test)),
        "difference": float(np.max(np.abs(outputs - expected)) / np.max(np.abs(expected))),
        "bytes": sizes,
    }


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was asked, and what came out."""
    found = []
    for zeros, least in WANTED.items():
        own = chosen(rows, recipe="best", zeros_asked=zeros)
        found += verdict(f"best, mnist-8, {zeros:g} zeros", own, least)
        files = [row["file"] for row in own if "file" in row]
        found += verdict(f"the written file, {zeros:g} zeros", files, least)
    return found


def describe(result: dict[str, Any]) -> str:
    """Return the tables as text."""
    lines = describe_trials(result["rows"], result["dense"])
    files = [row for row in result["rows"] if "file" in row]
    if files:
        body = [
            [f"{row['file']['zeros']:.3f}", f"{row['file']['score']:.4f}",
             f"{row['file']['difference']:.1e}", str(row["file"]["bytes"]["pruned"])]
            for row in files
        ]  # fmt: skip
        lines += ["the written files, in onnxruntime", ""]
        lines += [*table(["zeros", "accuracy", "difference of outputs", "bytes"], body), ""]
    return "\n".join([*lines, *describe_torch(result["torch"]), *describe_verdicts(result["met"])])
