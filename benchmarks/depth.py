"""How does the error grow along the depth of a network, in parallel and in a cascade?

Each network is pruned at several tolerances: in parallel, every layer on the trained network's own
signals; in a cascade, every layer on those of the network pruned so far; and in the paper's
cascade, where only the first layer has a tolerance and each later one the radius sqrt(gamma) times
the distance that its trained weights leave. Measured are the errors of the signals behind every
layer, on the calibration samples and on held-out ones, beside what is proved of them.

A spiral classifier 2-200-200-2 is trained on the spot with scikit-learn; the digit classifier is
that of ``nettrim demo``; LeNet-300-100 on 1,000 images of MNIST comes third, where the data folder
is (see ``benchmarks/datasets.py``).

References
----------
Aghasi, Abdi, Nguyen, Romberg, *Net-Trim*, NIPS 2017 (arXiv:1611.05162), Theorems 1 and 2, and its
spiral experiment.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nettrim_solver import Recipe, prune_network
from nettrim_solver.frameworks import from_sklearn
from nettrim_solver.plotting import new_figure

from . import datasets
from .datasets import Classifier, MissingDataError
from .measure import say
from .pages import table

TOLERANCES = (0.01, 0.02, 0.05, 0.1, 0.2)
TOLERANCES_QUICK = (0.05, 0.2)

#: Calibration images of LeNet.
IMAGES = 1000

#: Growth of the paper's radii, its code's value.
GAMMA = 1.1

#: The radius of a layer whose only radius is that of the paper's cascade.
NONE = 1e-9

SCHEMES = ("parallel", "cascade", "paper's cascade")
COLOURS = dict(zip(SCHEMES, ("C3", "C0", "C2"), strict=True))

#: The tolerance whose errors are drawn along the depth.
DRAWN = 0.05


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Prune every network by every scheme at every tolerance."""
    tolerances = TOLERANCES_QUICK if args.quick else TOLERANCES
    networks = [spiral(300 if args.quick else 1000), datasets.digits()]
    if not args.quick:
        networks += lenet()
    return {
        "quick": bool(args.quick),
        "gamma": GAMMA,
        "networks": [
            {
                "name": one.name,
                "samples": len(one.X_train),
                "accuracy": one.accuracy(one.network),
                "runs": [prune(one, scheme, g) for scheme in SCHEMES for g in tolerances],
            }
            for one in networks
        ],
    }


def spiral(n_samples: int) -> Classifier:
    """Return a trained classifier of the arms of two spirals, with as many held-out samples."""
    from sklearn.neural_network import MLPRegressor

    rng = np.random.default_rng(2017)
    arm = rng.integers(0, 2, 2 * n_samples)
    turn = rng.uniform(0.1, 1.0, 2 * n_samples)
    angle = 3 * np.pi * turn + np.pi * arm
    points = turn[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    points += 0.02 * rng.standard_normal(points.shape)
    model = MLPRegressor(
        hidden_layer_sizes=(200, 200), random_state=0, max_iter=2000, n_iter_no_change=50
    )
    # One output per arm, as in the paper.
    model.fit(points[:n_samples], np.eye(2)[arm[:n_samples]])
    network = from_sklearn(model)
    return Classifier("spiral", network, points[:n_samples], points[n_samples:], arm[n_samples:])


def lenet() -> list[Classifier]:
    """Return LeNet-300-100 with a draw of MNIST's training images; nothing without the data."""
    try:
        data = datasets.lenet()
    except MissingDataError as reason:
        say(f"without LeNet-300-100: {reason}")
        return []
    return [replace(data, X_train=data.sample(IMAGES, 0))]


def prune(data: Classifier, scheme: str, tolerance: float) -> dict[str, Any]:
    """Prune a network once, and return the errors behind every layer."""
    names = [layer.name for layer in data.network.layers]
    radii = dict.fromkeys(names, tolerance)
    recipe = Recipe(mode="parallel" if scheme == "parallel" else "cascade")
    if scheme == "paper's cascade":
        radii = dict.fromkeys(names, NONE) | {names[0]: tolerance}
        recipe = Recipe(gamma=GAMMA)
    result = prune_network(
        data.network, data.X_train, tolerance=radii, recipe=recipe, n_threads=1,
        X_heldout=data.X_test,
    )  # fmt: skip
    fields = ("name", "status", "sparsity", "network_error", "network_error_heldout",
              "network_bound")  # fmt: skip
    return {
        "scheme": scheme,
        "tolerance": tolerance,
        "sparsity": result.network.sparsity,
        "accuracy": data.accuracy(result.network),
        "layers": [{name: one.to_dict()[name] for name in fields} for one in result.layers],
    }


def describe(result: dict[str, Any]) -> str:
    """Return a table for each network."""
    lines = []
    for network in result["networks"]:
        lines += [f"{network['name']}: accuracy {network['accuracy']:.4f} before pruning", ""]
        depth = len(network["runs"][0]["layers"])
        header = ["scheme", "tolerance", "zeros", "accuracy",
                  *(f"layer {k}: error (bound)" for k in range(1, depth + 1))]  # fmt: skip
        body = [
            [run["scheme"], f"{run['tolerance']:g}", f"{run['sparsity']:.3f}",
             f"{run['accuracy']:.4f}", *map(_error, run["layers"])]
            for run in network["runs"]
        ]  # fmt: skip
        lines += [*table(header, body), ""]
    return "\n".join(lines).rstrip()


def _error(layer: dict[str, Any]) -> str:
    return f"{layer['network_error']:.4f} ({layer['network_bound']:.4f})"


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw errors and bounds along the depth, zeros and accuracy over the tolerance."""
    networks = result["networks"]
    figure = new_figure(12.0, 3.6 * len(networks))
    axes = figure.subplots(len(networks), 3, squeeze=False)
    for row, network in zip(axes, networks, strict=True):
        _along_depth(row[0], network)
        for ax, name in zip(row[1:], ("sparsity", "accuracy"), strict=True):
            for scheme in SCHEMES:
                runs = [run for run in network["runs"] if run["scheme"] == scheme]
                ax.plot([run["tolerance"] for run in runs], [run[name] for run in runs], "o-",
                        color=COLOURS[scheme])  # fmt: skip
            ax.set(xscale="log", xlabel="tolerance (of the first layer)", title=network["name"])
        row[1].set_ylabel("zeros")
        row[2].set_ylabel("held-out accuracy")
        row[2].axhline(network["accuracy"], color="0.5", lw=1)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(path, dpi=110)


def _along_depth(ax: Any, network: dict[str, Any]) -> None:
    tolerances = sorted({run["tolerance"] for run in network["runs"]})
    drawn = min(tolerances, key=lambda g: abs(np.log(g / DRAWN)))
    for run in network["runs"]:
        if run["tolerance"] != drawn:
            continue
        depth = np.arange(1, len(run["layers"]) + 1)
        for name, style, what in (("network_error", "o-", ""), ("network_bound", "--", ", bound"),
                                  ("network_error_heldout", ":", ", held out")):  # fmt: skip
            ax.plot(depth, [layer[name] for layer in run["layers"]], style,
                    color=COLOURS[run["scheme"]], label=run["scheme"] + what)  # fmt: skip
    ax.set(yscale="log", xticks=depth, xlabel="layer", ylabel="relative error of its output",
           title=f"{network['name']}, tolerance {drawn:g}")  # fmt: skip
