"""How accurate is LeNet-300-100 after pruning, without retraining?

The network is pruned on a few MNIST training images at 90, 95 and 98 % zeros, and scored on all
10,000 test images. The zeros are shared out over the layers by ``allocate`` (method
"output_error"), or are the same in every layer; the layers are pruned as a cascade. The convex
stages, the l0 stage from the trained weights and from the convex answer, and other solvers stand
side by side; then what the cascade, the pooled form, reweighting, the refit and the weights of the
outputs are worth. The weights are those of the trained network ("weighted outputs"), or of networks
that ALPS has pruned before ("weighted in passes"). Behind that all layers may be refitted together
to the trained network's output ("output refit"), which takes no labels and keeps the zeros. Runs
are resumed where they were interrupted.

The damping, the rounds, the passes and the refit of the best pipeline were chosen by the output
error on other training images; no test image took part.

Without the data folder (see ``benchmarks/datasets.py``) only ``--quick`` runs, on the
demonstration's digits.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from nettrim_solver.network import PruningResult, prune_network
from nettrim_solver.network.allocation import allocate
from nettrim_solver.pipeline import L0, Pipeline, Refit, Reweight, Solve, Swaps

from . import __main__ as harness
from . import datasets
from .measure import say
from .pages import table

#: Test accuracy asked for, by calibration images and zeros.
WANTED = {
    1000: {0.9: 0.983, 0.95: 0.979, 0.98: 0.960},
    4000: {0.9: 0.984, 0.95: 0.981, 0.98: 0.964},
}
ZEROS = (0.9, 0.95, 0.98)
SEEDS = (0, 1, 2)

#: Further samples for the contest of pooled and strict, whose differences are small, by zeros;
#: strict programs at many zeros take long.
MORE_SEEDS = {0.9: (3, 4, 5, 6, 7), 0.95: (3,)}

#: Known before, 1,000 images, by zeros: (same zeros in every layer, a split made by hand).
KNOWN = {
    "SparseGPT, cascade": {0.9: (0.818, 0.974), 0.95: (0.459, 0.876)},
    "ALPS, cascade inputs": {0.9: (0.977, 0.983), 0.95: (0.949, 0.977), 0.98: (None, 0.957)},
    "ALPS, original targets": {0.95: (0.952, 0.979), 0.98: (None, 0.961)},
    "Net-Trim prototype": {0.9: (0.969, 0.978), 0.95: (0.895, 0.969)},
}

#: What the figures asked for are compared with: the l0 stage from the trained weights, towards
#: outputs that count by what they do to the output of a network that was pruned before; then a
#: refit of all layers to the output.
BEST = "l0, weighted in passes, output refit"

#: How often ALPS prunes the network before, with the weights that its last answer gives; and the
#: steps of the refit.
PASSES, STEPS = 4, 40

#: What is done to a layer.
METHODS: dict[str, Any] = {
    "magnitude": Pipeline(Solve("magnitude")),
    "sparsegpt": Pipeline(Solve("sparsegpt")),
    "alps": Pipeline(Solve("alps")),
    "alps, weighted outputs": Pipeline(Solve("alps")),
    "alps, weighted in passes": Pipeline(Solve("alps")),
    "l0": Pipeline(L0()),
    "l0, weighted outputs": Pipeline(L0(settings={"damping": 1e-3, "rounds": 32})),
    "l0, weighted in passes": Pipeline(L0(settings={"damping": 1e-3, "rounds": 32})),
    BEST: Pipeline(L0(settings={"damping": 1e-3})),
    "l1, refit": Pipeline(Solve("admm"), Refit()),
    "l1 alone": Pipeline(Solve("admm")),
    "one reweighting, refit": Pipeline(Reweight(1), Refit()),
    "reweighted l1, refit": Pipeline(Reweight(3), Refit()),
    "reweighted l1, refit, weighted outputs": Pipeline(Reweight(3), Refit()),
    "reweighted l1, l0 from it": Pipeline(Reweight(3), L0(start="before")),
    "l0, swaps": Pipeline(L0(), Swaps()),
}

#: Methods that are run on every budget; the others are looked at on one.
MAIN = [name for name in METHODS if name not in ("l1 alone", "one reweighting, refit")]


#: Options of the paper's form.
STRICT = (("formulation", "strict"),)

#: What is to beat what: the options of the other, methods, and fractions of zeros.
CONTESTS: tuple[tuple[str, dict[str, str], tuple[str, ...], tuple[float, ...]], ...] = (
    ("cascade beats parallel", {"mode": "parallel"}, ("l0", "l1, refit"), ZEROS[:2]),
    ("pooled beats strict", dict(STRICT), ("l1, refit",), ZEROS),
)


def arguments(method: str) -> dict[str, Any]:
    """Return what prune_network is given for a method."""
    return {
        "pipeline": METHODS[method],
        "output_weights": "downstream" if ", weighted " in method else "equal",
        "passes": PASSES if " in passes" in method else 0,
        "output_refit": STEPS if method.endswith(", output refit") else 0,
        "n_threads": 1,
    }


@dataclass(frozen=True)
class Trial:
    """One pruned network: the method, the zeros, and how they are shared out."""

    method: str
    zeros: float
    images: int
    seed: int
    allocation: str = "output_error"
    options: tuple[tuple[str, Any], ...] = field(default=())

    @property
    def key(self) -> str:
        """A name for files and tables."""
        extra = "".join(f", {name}={value}" for name, value in self.options)
        return (
            f"{self.method} | {self.zeros:g} | {self.images} | {self.seed} | "
            f"{self.allocation}{extra}"
        )


def trials(seeds: tuple[int, ...], quick: bool) -> Iterator[Trial]:
    """Yield what is to be run, the most important first."""
    if quick:
        for method in (BEST, "l0", "alps", "magnitude", "l1, refit"):
            yield Trial(method, ZEROS[0], 200, seeds[0])
        yield Trial("l0", ZEROS[0], 200, seeds[0], options=(("mode", "parallel"),))
        return
    few = min(WANTED)
    both = (BEST, "l0, weighted in passes", "l0, weighted outputs", "l0", "alps")
    for images, seed, zeros, method in product(WANTED, seeds, ZEROS, both):
        yield Trial(method, zeros, images, seed)
    others = [method for method in MAIN if method not in both]
    for seed, zeros, method in product(seeds, ZEROS, others):
        yield Trial(method, zeros, few, seed)
    for seed in seeds:
        for zeros, method in product(ZEROS[:2], ("l0", "alps", "sparsegpt")):
            yield Trial(method, zeros, few, seed, "uniform")
        for zeros, method in product(ZEROS[:2], ("l0", "l1, refit")):
            yield Trial(method, zeros, few, seed, options=(("mode", "parallel"),))
        yield Trial("l1 alone", ZEROS[1], few, seed)
        yield Trial("one reweighting, refit", ZEROS[1], few, seed)
        for zeros in ZEROS:
            yield Trial("l1, refit", zeros, few, seed, options=STRICT)
    if seeds == SEEDS:  # Where it is in doubt.
        more = [(zeros, seed) for zeros, drawn in MORE_SEEDS.items() for seed in drawn]
        for (zeros, seed), options in product(more, ((), STRICT)):
            yield Trial("l1, refit", zeros, few, seed, options=options)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="calibration samples drawn")
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument(
        "--minutes", type=float, help="begin no trial after so many minutes; the next run goes on"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run all trials that are not in the interrupted run's file yet."""
    quick, begun = bool(args.quick), time.perf_counter()
    data = datasets.digits() if quick else datasets.lenet()
    harness.RESULTS.mkdir(exist_ok=True)
    path = harness.RESULTS / ("lenet-quick.partial.json" if quick else "lenet.partial.json")
    rows, whole = _earlier(path), True
    prune_network(  # compiles
        data.network, data.sample(50, 0), sparsity=0.9, pipeline=METHODS["l0"], n_threads=1
    )
    splits: dict[Any, dict[str, int]] = {}
    for trial in trials(SEEDS[: args.seeds], quick):
        if trial.key in rows or (args.methods and trial.method not in args.methods):
            continue
        if args.minutes is not None and time.perf_counter() - begun > 60 * args.minutes:
            whole = False
            break
        rows[trial.key] = run_trial(trial, data, splits)
        text = json.dumps(rows)
        harness.write_atomically(path, lambda part, text=text: part.write_text(text))
        row = rows[trial.key]
        say(f"{trial.key}: {row['accuracy']:.4f}, {row['seconds']:.1f} s")
    if whole:
        path.unlink(missing_ok=True)
    return {
        "quick": quick,
        "network": data.name,
        "dense_accuracy": data.accuracy(data.network),
        "trials": list(rows.values()),
        "known": {k: {str(z): v for z, v in row.items()} for k, row in KNOWN.items()},
        "met": [] if quick else verdicts(list(rows.values())),
        "checks": checks(list(rows.values())),
    }


def run_trial(
    trial: Trial, data: datasets.Classifier, splits: dict[Any, dict[str, int]]
) -> dict[str, Any]:
    """Prune the network once and score it."""
    X = data.sample(trial.images, trial.seed)
    total = data.network.n_weights - round(trial.zeros * data.network.n_weights)
    tick = time.perf_counter()
    given = arguments(trial.method) | dict(trial.options)
    at = (trial.images, trial.seed, trial.zeros, trial.allocation, given["output_weights"])
    if at not in splits:
        splits[at] = allocate(
            data.network, X, nnz=total, method=trial.allocation,
            output_weights=given["output_weights"],
        )  # fmt: skip
    searched = time.perf_counter()
    result = prune_network(data.network, X, nnz=splits[at], **given)
    done = time.perf_counter()
    if left := [one.name for one in result.layers if one.outcome != "pruned"]:
        raise RuntimeError(f"{trial.key}: layers {left} were not pruned")
    return {
        "key": trial.key,
        "method": trial.method,
        "zeros_asked": trial.zeros,
        "images": trial.images,
        "seed": trial.seed,
        "allocation": trial.allocation,
        "options": dict(trial.options),
        "zeros": result.network.sparsity,
        "split": [layer.sparsity for layer in result.network.layers],
        "accuracy": data.accuracy(result.network),
        "output_error": result.output_error,
        "layers": _layers(result),
        "seconds_allocation": searched - tick,
        "seconds": done - searched,
    }


def _layers(result: PruningResult) -> list[dict[str, Any]]:
    """Return the bound on every layer's error beside the measured one, and what is proved."""
    names = ("name", "solver", "status", "gap", "network_error", "network_bound")
    return [{name: one.to_dict()[name] for name in names} for one in result.layers]


def _earlier(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was asked, what came out (mean and spread over the seeds), and whether it is."""
    found = []
    for images, wanted in WANTED.items():
        for zeros, least in wanted.items():
            values = _accuracies(rows, BEST, zeros, images)
            if values:
                mean = float(np.mean(values))
                found.append({
                    "images": images, "zeros": zeros, "wanted": least, "mean": mean,
                    "spread": float(np.ptp(values)), "seeds": len(values), "met": mean >= least,
                })  # fmt: skip
    return found


def checks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return whether the bounds held, whether the cascade won, and the time of a whole search."""
    layers = [one for row in rows for one in row["layers"] if one["network_bound"] is not None]
    held = sum(one["network_error"] <= one["network_bound"] for one in layers)
    found = [{
        "what": "errors of the network at a layer below their bound",
        "value": f"{held} of {len(layers)}", "met": held == len(layers),
    }]  # fmt: skip
    for what, other, methods, fractions in CONTESTS:
        for method, zeros in product(methods, fractions):
            pairs = np.array(_pairs(rows, method, zeros, other))
            if len(pairs):
                (first, second), gains = pairs.mean(axis=0), pairs[:, 0] - pairs[:, 1]
                value = f"{first:.4f} against {second:.4f}"
                if len(pairs) > 1:
                    error = gains.std(ddof=1) / len(gains) ** 0.5
                    value += f" ({gains.mean():+.4f} ± {error:.4f}, {len(gains)} seeds)"
                found.append({
                    "what": f"{what} at {zeros:g} zeros ({method})",
                    "value": value, "met": bool(first > second),
                })  # fmt: skip
    seconds = [
        row["seconds"] + row["seconds_allocation"]
        for row in rows
        if (row["method"], row["zeros_asked"], row["images"]) == (BEST, 0.95, min(WANTED))
        and row["allocation"] == "output_error" and row["seconds_allocation"] > 1
    ]  # fmt: skip
    if seconds:
        found.append({
            "what": "allocation and pruning at 0.95 zeros, one thread, under 60 s",
            "value": f"{max(seconds):.0f} s", "met": max(seconds) < 60,
        })  # fmt: skip
    return found


def _pairs(
    rows: list[dict[str, Any]], method: str, zeros: float, other: dict[str, str]
) -> list[tuple[float, float]]:
    """Return the accuracies of a method and of its variant on the same samples, by seed."""
    found = {
        (row["seed"], tuple(row["options"].items())): row["accuracy"]
        for row in rows
        if (row["method"], row["zeros_asked"], row["images"]) == (method, zeros, min(WANTED))
        and row["allocation"] == "output_error"
    }
    variant = tuple(other.items())
    return [
        (value, found[seed, variant])
        for (seed, options), value in found.items()
        if not options and (seed, variant) in found
    ]


def _accuracies(
    rows: list[dict[str, Any]], method: str, zeros: float, images: int,
    allocation: str = "output_error", options: dict[str, Any] | None = None,
) -> list[float]:  # fmt: skip
    return [
        row["accuracy"]
        for row in rows
        if (row["method"], row["zeros_asked"], row["images"]) == (method, zeros, images)
        and row["allocation"] == allocation
        and row["options"] == (options or {})
    ]


def describe(result: dict[str, Any]) -> str:
    """Return the tables as text."""
    rows, lines = result["trials"], [f"{result['network']}: dense {result['dense_accuracy']:.4f}"]
    kinds = dict.fromkeys(
        (r["images"], r["method"], r["allocation"], tuple(sorted(r["options"].items())))
        for r in rows
    )
    zeros = sorted({r["zeros_asked"] for r in rows})
    body = []
    for images, method, allocation, options in kinds:
        cells = [str(images), method, allocation, " ".join(f"{k}={v}" for k, v in options)]
        for z in zeros:
            values = _accuracies(rows, method, z, images, allocation, dict(options))
            cells.append(f"{np.mean(values):.4f} ± {np.ptp(values) / 2:.4f}" if values else "")
        body.append(cells)
    lines += table(["images", "method", "allocation", "", *(f"{z:g}" for z in zeros)], body)
    for one in result["met"]:
        word = "met" if one["met"] else "MISSED"
        lines.append(
            f"{word}: {one['images']} images, {one['zeros']:g} zeros: {one['mean']:.4f} "
            f"(asked {one['wanted']:.3f}, {one['seeds']} seeds)"
        )
    lines += [
        f"{'met' if one['met'] else 'MISSED'}: {one['what']}: {one['value']}"
        for one in result["checks"]
    ]
    return "\n".join(lines)
