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
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from nettrim_solver import Recipe
from nettrim_solver.frameworks import from_sklearn
from nettrim_solver.network import Network

from . import datasets
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

__all__ = ["add_arguments", "describe", "plot", "run"]

ZEROS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)

#: R2 asked of "best".
WANTED = {0.6: 0.79, 0.8: 0.77, 0.9: 0.71}

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

#: How the network is pruned, with the colours of the lines.
COLOURS = {
    "best": "tab:red", "fast": "tab:orange", "alps": "tab:green", "exact_obs": "tab:blue",
    "magnitude": "tab:gray",
}  # fmt: skip
METHODS = RECIPES | {"exact_obs": Recipe(steps="exact_obs")}


@dataclass(frozen=True, eq=False)
class Regression:
    """A trained network, and standardised rows to prune it with and to score it on."""

    name: str
    network: Network
    rows: dict[str, int]
    X_train: Any
    X_test: Any
    y_test: Any

    def score(self, network: Network) -> float:
        """Return the share of the held-out target's variance that a network explains."""
        residual = self.y_test - network(self.X_test, 4096)[:, 0]
        spread = self.y_test - self.y_test.mean()
        return float(1 - (residual @ residual) / (spread @ spread))

    def sample(self, n: int, seed: int) -> Any:
        """Return n training rows, drawn without replacement; all where there are fewer."""
        n = min(n, len(self.X_train))
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


def planned(seeds: int, quick: bool, name: str) -> Iterator[Trial]:
    """Yield what is to be run, the most important first."""
    shares = ZEROS[::3] if quick else ZEROS
    for seed, zeros, method in product(range(1 if quick else seeds), shares, COLOURS):
        yield Trial(name, method, zeros, CALIBRATION, seed)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, prune by every recipe at every share of zeros, and score."""
    quick = bool(args.quick)
    data = diabetes() if quick else california()
    rows = run_trials(
        "regression", args, planned(args.seeds, quick, data.name), {data.name: data}, METHODS
    )
    found = []
    for zeros, least in WANTED.items():
        own = chosen(rows, recipe="best", zeros_asked=zeros)
        found += verdict(f"best, {zeros:g} zeros, R2", own, least)
    return {
        "quick": quick,
        "data": data.name,
        "data_rows": data.rows,
        "shapes": [layer.W.shape for layer in data.network.layers],
        "dense": {data.name: data.score(data.network)},
        "rows": rows,
        "met": [] if quick else found,
    }


def describe(result: dict[str, Any]) -> str:
    """Return the table as text."""
    rows = result["data_rows"]
    shapes = ", ".join("x".join(map(str, shape)) for shape in result["shapes"])
    lines = [
        f"{result['data']}: {rows['all']} rows, {rows['dropped']} with missing values dropped, "
        f"{rows['train']} to train, {rows['held_out']} held out; network {shapes}; R2",
        "",
    ]
    lines += describe_trials(result["rows"], result["dense"])
    return "\n".join([*lines, *describe_verdicts(result["met"])])


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw R2 against zeros, a line per method, its spread shaded."""
    from nettrim_solver.plotting import new_figure, save_figure

    figure = new_figure(6, 4)
    axes = figure.subplots()
    axes.axhline(result["dense"][result["data"]], color="black", lw=1, ls=":", label="dense")
    for method, colour in COLOURS.items():
        own = chosen(result["rows"], recipe=method)
        if not own:
            continue
        zeros = sorted({row["zeros_asked"] for row in own})
        r2 = [[row["score"] for row in chosen(own, zeros_asked=level)] for level in zeros]
        axes.plot(zeros, [np.mean(v) for v in r2], color=colour, marker="o", ms=3, label=method)
        axes.fill_between(
            zeros, [min(v) for v in r2], [max(v) for v in r2], color=colour, alpha=0.2, lw=0
        )
    axes.set(xlabel="zeros", ylabel="R2, held out")
    # Networks that are worse than the mean would press all others together.
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    axes.set_title(f"{result['data']}: pruned without retraining", fontsize=10)
    axes.legend(fontsize=8)
    save_figure(figure, path)
