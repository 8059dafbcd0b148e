"""How accurate is a convolutional network in ONNX after pruning, without retraining?

The network is the ONNX Model Zoo's ``mnist-8.onnx``: two convolutions and a dense layer. It is read
from its file, pruned as a cascade on 1,000 MNIST training images at 50 to 90 % zeros, and scored on
all 10,000 test images. The zeros are the same in every layer, or shared out where they cost the
network's output least. Then the pruned weights are written into the file, and onnxruntime is asked
how accurate that file is. Runs are resumed where they were interrupted.

Needs the data folder, see ``benchmarks/datasets.py``, with ``mnist-8.onnx`` in it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from nettrim_solver.frameworks import from_onnx, to_onnx
from nettrim_solver.network import Network, prune_network
from nettrim_solver.network.allocation import allocate
from nettrim_solver.pipeline import L0, Pipeline, Refit, Reweight, Solve

from . import __main__ as harness
from . import datasets
from .measure import say
from .pages import table

ZEROS = (0.5, 0.7, 0.8, 0.9)
ALLOCATIONS = ("uniform", "output_error")
IMAGES, SEEDS = 1000, (0, 1)

#: The file is to lose at most so much accuracy at so many zeros.
FILE_ZEROS, FILE_LOSS = 0.8, 0.005

METHODS: dict[str, Pipeline] = {
    "l0": Pipeline(L0()),
    "reweighted l1, refit": Pipeline(Reweight(3), Refit()),
    "alps": Pipeline(Solve("alps")),
    "magnitude": Pipeline(Solve("magnitude")),
}

#: What the written file is pruned with.
BEST = "l0"


@dataclass(frozen=True)
class Trial:
    """One pruned network: the method, the zeros and how they are shared out, the rows used."""

    method: str
    zeros: float
    allocation: str
    seed: int
    all_rows: bool = False

    def __str__(self) -> str:
        rows = ", all rows" if self.all_rows else ""
        return f"{self.method} | {self.zeros:g} | {self.allocation} | {self.seed}{rows}"


def trials(seeds: tuple[int, ...], quick: bool) -> Iterator[Trial]:
    """Yield what is to be run."""
    if quick:
        for method in (BEST, "magnitude"):
            yield Trial(method, FILE_ZEROS, "uniform", seeds[0])
        return
    for seed, zeros, allocation, method in product(seeds, ZEROS, ALLOCATIONS, METHODS):
        yield Trial(method, zeros, allocation, seed)
    for zeros in ZEROS:
        # Only with all rows is there a bound on the error of a convolution.
        yield Trial(BEST, zeros, "uniform", seeds[0], all_rows=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="calibration samples drawn")
    parser.add_argument("--methods", nargs="+", help="only these")


def convnet() -> tuple[datasets.Classifier, Path]:
    """Return the network with MNIST's images in [0, 1], and the file that it was read from."""
    with np.load(datasets.data_file("mnist.npz")) as mnist:
        X_train, X_test = (
            (mnist[part][:, None] / 255.0).astype(np.float32) for part in ("x_train", "x_test")
        )
        y_test = mnist["y_test"]
    path = datasets.data_file("mnist-8.onnx")
    return datasets.Classifier("mnist-8", from_onnx(path), X_train, X_test, y_test), path


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run all trials, and write the best network at the zeros asked for into its file."""
    quick = bool(args.quick)
    data, path = convnet()
    images = 100 if quick else IMAGES
    prune_network(  # compiles
        data.network, data.sample(20, 0), sparsity=0.8, pipeline=METHODS[BEST], n_threads=1
    )
    harness.RESULTS.mkdir(exist_ok=True)
    partial = harness.RESULTS / ("convnet-quick.partial.json" if quick else "convnet.partial.json")
    splits: dict[Any, dict[str, int]] = {}
    rows = _earlier(partial)
    for trial in trials(SEEDS[: args.seeds], quick):
        if str(trial) in rows or (args.methods and trial.method not in args.methods):
            continue
        row, network = run_trial(trial, data, images, splits)
        if (trial.method, trial.zeros, trial.all_rows) == (BEST, FILE_ZEROS, False):
            row["file"] = run_file(data, path, network)
        rows[str(trial)] = row
        text = json.dumps(harness.plain(rows))
        harness.write_atomically(partial, lambda part, text=text: part.write_text(text))
        say(f"{trial}: {row['accuracy']:.4f}, {row['seconds']:.1f} s")
    partial.unlink(missing_ok=True)
    return {
        "quick": quick,
        "network": data.name,
        "images": images,
        "dense_accuracy": data.accuracy(data.network),
        "trials": list(rows.values()),
    }


def _earlier(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def run_trial(
    trial: Trial, data: datasets.Classifier, images: int, splits: dict[Any, dict[str, int]]
) -> tuple[dict[str, Any], Network]:
    """Prune the network once and score it."""
    X = data.sample(images, trial.seed)
    total = data.network.n_weights - round(trial.zeros * data.network.n_weights)
    tick = time.perf_counter()
    at = (trial.seed, trial.zeros, trial.allocation)
    if at not in splits:
        splits[at] = allocate(data.network, X, nnz=total, method=trial.allocation)
    begun = time.perf_counter()
    more = {"max_rows": None} if trial.all_rows else {}
    result = prune_network(
        data.network, X, nnz=splits[at], pipeline=METHODS[trial.method], n_threads=1, **more
    )
    seconds = time.perf_counter() - begun
    bound, error = result.output_bound, result.output_error
    return {
        "method": trial.method,
        "zeros_asked": trial.zeros,
        "allocation": trial.allocation,
        "seed": trial.seed,
        "all_rows": trial.all_rows,
        "zeros": result.network.sparsity,
        "split": {layer.name: layer.sparsity for layer in result.network.layers},
        "accuracy": data.accuracy(result.network),
        "output_error": error,
        "output_bound": bound,
        "bound_holds": bound is None or error is None or error <= bound,
        "layers": [_layer(one) for one in result.layers],
        "seconds_allocation": begun - tick,
        "seconds": seconds,
    }, result.network


def _layer(report: Any) -> dict[str, Any]:
    names = ("name", "solver", "status", "network_error", "network_bound")
    return {name: report.to_dict()[name] for name in names}


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
    accuracy = float(np.mean(outputs.argmax(axis=1) == data.y_test))
    expected = network(data.X_test, 4096)
    return {
        "zeros": zeros,
        "accuracy": accuracy,
        "difference": float(np.max(np.abs(outputs - expected)) / np.max(np.abs(expected))),
        "bytes": sizes,
        "met": accuracy >= data.accuracy(data.network) - FILE_LOSS,
    }


def describe(result: dict[str, Any]) -> str:
    """Return the table as text."""
    rows = result["trials"]
    lines = [f"{result['network']}: dense {result['dense_accuracy']:.4f}"]
    lines.append(f"{result['images']} calibration images")
    zeros = sorted({row["zeros_asked"] for row in rows})
    kinds = dict.fromkeys((row["method"], row["allocation"], row["all_rows"]) for row in rows)
    body = []
    for method, allocation, all_rows in kinds:
        cells = [method, allocation, "all" if all_rows else ""]
        for z in zeros:
            values = [
                row["accuracy"]
                for row in rows
                if (row["method"], row["allocation"], row["all_rows"], row["zeros_asked"])
                == (method, allocation, all_rows, z)
            ]
            cells.append(f"{np.mean(values):.4f} ± {np.ptp(values) / 2:.4f}" if values else "")
        body.append(cells)
    lines += table(["method", "allocation", "rows", *(f"{z:g}" for z in zeros)], body)
    bounded = [row for row in rows if row["output_bound"] is not None]
    kept = sum(row["bound_holds"] for row in bounded)
    lines.append(f"output error within its bound: {kept} of {len(bounded)}")
    for row in rows:
        if "file" in row:
            one = row["file"]
            word = "met" if one["met"] else "MISSED"
            lines.append(
                f"{word}: file at {one['zeros']:.3f} zeros ({row['method']}, {row['allocation']}, "
                f"seed {row['seed']}): {one['accuracy']:.4f} in onnxruntime, outputs differ from "
                f"the network's by {one['difference']:.1e}"
            )
    return "\n".join(lines)
