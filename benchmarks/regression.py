"""How well does a regression network predict after pruning, without retraining?

A perceptron of two hidden layers, trained by scikit-learn on the California housing data (eight
numbers of a district, the median house value), is pruned as a cascade on a few training rows at
growing shares of zeros, the same in every layer. Its R2 is measured on rows that neither the
training nor the pruning saw. Inputs and target are standardised by the training rows; rows with
missing values are dropped.

Without the data folder (see ``benchmarks/datasets.py``) only ``--quick`` runs, on the diabetes data
that scikit-learn bundles.

References
----------
R. K. Pace, R. Barry, *Sparse Spatial Autoregressions*, Statistics and Probability Letters 33, 1997.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from nettrim_solver.frameworks import from_sklearn
from nettrim_solver.network import Network, prune_network
from nettrim_solver.pipeline import L0, Pipeline, Refit, Reweight, Solve

from . import datasets
from .measure import say
from .pages import table

ZEROS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SEEDS = (0, 1, 2)
HELD_OUT = 0.2
CALIBRATION = 2000
HIDDEN = (128, 64)
SETTINGS: dict[str, Any] = {
    "alpha": 1e-4,
    "early_stopping": True,
    "learning_rate_init": 2e-3,
    "max_iter": 300,
    "random_state": 0,
}

#: What is done to a layer, with the colour of its line.
METHODS: dict[str, tuple[Any, str]] = {
    "l0": (Pipeline(L0()), "tab:red"),
    "reweighted l1, refit": (Pipeline(Reweight(3), Refit()), "tab:blue"),
    "alps": (Pipeline(Solve("alps")), "tab:green"),
    "exact_obs": (Pipeline(Solve("exact_obs")), "tab:orange"),
    "magnitude": (Pipeline(Solve("magnitude")), "tab:gray"),
}


@dataclass(frozen=True, eq=False)
class Regression:
    """A trained network, and standardised rows to prune it with and to score it on."""

    name: str
    network: Network
    rows: dict[str, int]
    X_train: Any
    X_test: Any
    y_test: Any

    def r2(self, network: Network) -> float:
        """Return the share of the held-out target's variance that a network explains."""
        residual = self.y_test - network(self.X_test, 4096)[:, 0]
        spread = self.y_test - self.y_test.mean()
        return float(1 - (residual @ residual) / (spread @ spread))

    def sample(self, seed: int) -> Any:
        """Return training rows, drawn without replacement."""
        n = min(CALIBRATION, len(self.X_train))
        rows = np.random.default_rng(seed).choice(len(self.X_train), n, replace=False)
        return self.X_train[np.sort(rows)]


def california() -> Regression:
    """Return the network trained on the housing data."""
    with np.load(datasets.data_file("california_housing.npz")) as housing:
        return train("California housing", housing["X"], housing["y"])


def diabetes() -> Regression:
    """Return a network trained on data that is there everywhere."""
    from sklearn.datasets import load_diabetes

    return train("diabetes", *load_diabetes(return_X_y=True))


def train(name: str, X: Any, y: Any) -> Regression:
    """Train a perceptron on the complete rows but those held out."""
    from sklearn.neural_network import MLPRegressor

    complete = np.isfinite(X).all(axis=1)
    order = np.random.default_rng(0).permutation(np.flatnonzero(complete))
    n_test = round(HELD_OUT * len(order))
    test, rest = order[:n_test], order[n_test:]
    inputs, target = (
        (values - values[rest].mean(axis=0)) / values[rest].std(axis=0)
        for values in (X, y.astype(np.float64))
    )
    model = MLPRegressor(hidden_layer_sizes=HIDDEN, **SETTINGS).fit(inputs[rest], target[rest])
    rows = {
        "all": len(X), "dropped": int((~complete).sum()), "train": len(rest), "held_out": n_test,
    }  # fmt: skip
    return Regression(
        name, from_sklearn(model), rows, inputs[rest], inputs[test], target[test]
    )  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="calibration samples drawn")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, prune by every method at every share of zeros, and score."""
    data = diabetes() if args.quick else california()
    seeds, zeros = (SEEDS[:1], ZEROS[::3]) if args.quick else (SEEDS[: args.seeds], ZEROS)
    dense = data.r2(data.network)
    say(f"{data.name}: dense R2 {dense:.4f}, {data.network.n_weights} weights")
    trials = []
    for seed, share, method in product(seeds, zeros, METHODS):
        trials.append(run_trial(data, method, share, seed))
        row = trials[-1]
        say(f"{method} at {share:g}, seed {seed}: R2 {row['r2']:.4f}, {row['seconds']:.1f} s")
    return {
        "quick": bool(args.quick),
        "data": data.name,
        "rows": data.rows,
        "calibration_rows": len(data.sample(0)),
        "shapes": [layer.W.shape for layer in data.network.layers],
        "dense_r2": dense,
        "trials": trials,
        "within_bound": sum(row["within_bound"] for row in trials),
        "whole": sum(not row["left"] for row in trials),
    }


def run_trial(data: Regression, method: str, zeros: float, seed: int) -> dict[str, Any]:
    """Prune the network once; score it, and hold its error against the bound."""
    pipeline, _ = METHODS[method]
    tick = time.perf_counter()
    result = prune_network(
        data.network, data.sample(seed), sparsity=zeros, mode="cascade", pipeline=pipeline,
        n_threads=1,
    )  # fmt: skip
    seconds = time.perf_counter() - tick
    names = (
        "name", "outcome", "reason", "status", "sparsity", "gap", "network_error", "network_bound"
    )  # fmt: skip
    layers = [{name: one.to_dict()[name] for name in names} for one in result.layers]
    pairs = [(one.network_error, one.network_bound) for one in result.layers]
    return {
        "method": method,
        "zeros_asked": zeros,
        "seed": seed,
        "zeros": result.network.sparsity,
        "r2": data.r2(result.network),
        "layers": layers,
        "left": [f"{one.name}: {one.reason}" for one in result.layers if not one.pruned],
        "within_bound": all(None not in pair and pair[0] <= pair[1] for pair in pairs),
        "seconds": seconds,
    }


def by_zeros(result: dict[str, Any], method: str) -> dict[float, list[float]]:
    """Return the R2 of a method's networks, by the share of zeros asked for.

    Networks with a layer that was not pruned have fewer zeros, and are left out.
    """
    found: dict[float, list[float]] = {}
    for row in result["trials"]:
        if row["method"] == method and not row["left"]:
            found.setdefault(row["zeros_asked"], []).append(row["r2"])
    return dict(sorted(found.items()))


def describe(result: dict[str, Any]) -> str:
    """Return the table as text."""
    rows, trials = result["rows"], result["trials"]
    shapes = ", ".join("x".join(map(str, shape)) for shape in result["shapes"])
    lines = [
        f"{result['data']}: {rows['all']} rows, {rows['dropped']} with missing values dropped, "
        f"{rows['train']} to train, {rows['held_out']} held out",
        f"network {shapes}, dense R2 {result['dense_r2']:.4f} (held out); "
        f"{result['calibration_rows']} calibration rows; mean and half the spread over the seeds",
        "",
    ]
    zeros = sorted({row["zeros_asked"] for row in trials})
    body = []
    for method in METHODS:
        found = by_zeros(result, method)
        cells = [
            f"{np.mean(found[z]):.4f} ± {np.ptp(found[z]) / 2:.4f}" if z in found else "-"
            for z in zeros
        ]
        body.append([method, *cells])
    lines += table(["R2 at zeros", *(f"{z:g}" for z in zeros)], body)
    for what, count in (
        ("every layer has its zeros", result["whole"]),
        ("the network's error is below its bound, at every layer,", result["within_bound"]),
    ):
        word = "met" if count == len(trials) else "MISSED"
        lines.append(f"{word}: {what} in {count} of {len(trials)} runs")
    lines += [
        f"{row['method']} at {row['zeros_asked']:g}, seed {row['seed']}, left as it was: {left}"
        for row in trials
        for left in row["left"]
    ]
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw R2 against zeros, a line per method, its spread shaded."""
    from nettrim_solver.plotting import new_figure, save_figure

    figure = new_figure(6, 4)
    axes = figure.subplots()
    axes.axhline(result["dense_r2"], color="black", lw=1, ls=":", label="dense")
    for method, (_, colour) in METHODS.items():
        found = by_zeros(result, method)
        if not found:
            continue
        zeros, r2 = list(found), list(found.values())
        axes.plot(zeros, [np.mean(v) for v in r2], color=colour, marker="o", ms=3, label=method)
        axes.fill_between(
            zeros, [min(v) for v in r2], [max(v) for v in r2], color=colour, alpha=0.2, lw=0
        )
    axes.set(xlabel="zeros, the same share in every layer", ylabel="R2, held out")
    # Networks that are worse than the mean would press all others together.
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    axes.set_title(f"{result['data']}: pruned without retraining", fontsize=10)
    axes.legend(fontsize=8)
    save_figure(figure, path)
