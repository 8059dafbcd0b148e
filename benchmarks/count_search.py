"""What does the search for a number of nonzeros cost, compared with one solve at the radius found?

Layers are pruned by the l1 program to given fractions of zeros. Beside the processor seconds of
each search stand those of one solve of the same layer from scratch, at the radius that the search
ended with, and their ratio. The certificate is recomputed here from the weights returned.

The layers: a Gaussian one (400 samples, 100 inputs, 50 outputs), and with the data folder (see
``benchmarks/datasets.py``) the three of LeNet-300-100 on 1,000 MNIST training images and eight
filters on 5 x 5 patches of such images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from nettrim_solver import Problem, Solution, certify, instances, solve
from nettrim_solver.penalty_search import options

from . import datasets
from .measure import clocked, in_fresh_process, say
from .pages import table

#: Most that a search may cost, in solves at the radius found.
TARGET = 8.0
IMAGES = 1000

#: Wall seconds after which a search, or a solve, is given up.
PATIENCE = 600.0

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98)
FEW = (0.8, 0.95)

#: Layer, what differs from a pooled problem with a joint radius, the scope, and the sparsities.
CASES: tuple[tuple[str, dict[str, str], str, tuple[float, ...]], ...] = (
    ("gaussian", {}, "layer", SPARSITIES),
    ("gaussian", {"radius": "per_output"}, "layer", FEW),
    ("gaussian", {}, "output", FEW),
    ("gaussian", {"formulation": "strict"}, "layer", FEW),
    ("patches", {}, "layer", SPARSITIES),
    ("lenet 3", {}, "layer", SPARSITIES),
    ("lenet 2", {}, "layer", SPARSITIES),
    ("lenet 2", {"radius": "per_output"}, "layer", FEW),
    ("lenet 2", {}, "output", FEW),
    ("lenet 2", {"formulation": "strict"}, "layer", FEW),
    ("lenet 1", {}, "layer", SPARSITIES),
    ("lenet 1", {"radius": "per_output"}, "layer", FEW),
    ("lenet 1", {}, "output", FEW),
    ("lenet 1", {"formulation": "strict"}, "layer", FEW),
)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Search for every count of every case, in a process of its own with one thread."""
    names = ["gaussian"]
    if not args.quick:
        try:
            datasets.lenet()
            names = ["gaussian", "patches", "lenet 3", "lenet 2", "lenet 1"]
        except datasets.MissingDataError as missing:
            say(f"only the Gaussian layer runs: {missing}")
    rows = in_fresh_process(
        "benchmarks.count_search:time_cases", 1, names=names, quick=bool(args.quick)
    )
    worst = max(row["ratio"] for row in rows)
    return {"target": TARGET, "worst_ratio": worst, "met": worst <= TARGET, "rows": rows}


def describe(result: dict[str, Any]) -> str:
    """Return the result as a table."""
    heads = ("layer", "zeros asked", "reached", "search, s", "one solve, s", "ratio", "solves",
             "of all outputs", "status", "gap", "violation")  # fmt: skip
    rows = [
        [
            _title(row), f"{row['asked']:.0%}", f"{row['reached']:.2%}",
            f"{row['search_cpu_seconds']:.2f}", f"{row['solve_cpu_seconds']:.2f}",
            f"{row['ratio']:.1f}", f"{row['solves']}", f"{row['full_solves']}", row["status"],
            f"{row['gap']:.0e}", f"{row['violation']:.0e}",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    word = "met" if result["met"] else "MISSED"
    goal = f"largest ratio {result['worst_ratio']:.1f}, at most {result['target']:g}: {word}"
    return "\n".join([*table(heads, rows), "", goal])


def time_cases(names: list[str], quick: bool) -> list[dict[str, Any]]:
    """Return a row for every count of the cases on these layers."""
    layers: dict[str, Callable[[], Problem]] = {
        "gaussian": gaussian,
        "patches": patches,
        **{f"lenet {k + 1}": lambda k=k: lenet_layer(k) for k in range(3)},
    }
    small = gaussian().select(list(range(4)))
    for formulation in ("pooled", "strict"):  # compiled once, before the clocks run
        solve(small.replace(formulation=formulation), sparsity=0.8)
        solve(small.replace(formulation=formulation, tolerance=0.5))
    rows = []
    for name, changes, scope, sparsities in CASES:
        if name not in names:
            continue
        problem = layers[name]().replace(**changes)
        for sparsity in sparsities[:2] if quick else sparsities:
            row = {"layer": name, "changes": changes, "scope": scope, "asked": sparsity}
            rows.append(row | time_search(problem, sparsity, scope))
            say(f"{_title(row)} {sparsity:.0%}: ratio {rows[-1]['ratio']:.2f}")
    return rows


def time_search(problem: Problem, sparsity: float, scope: str) -> dict[str, Any]:
    """Return what one search took and found, and what one solve at its radius takes."""
    with counted_solves() as solves:
        answer, search = clocked(
            lambda: solve(problem, sparsity=sparsity, scope=scope, time_limit=PATIENCE)
        )
    posed = at_own_radius(problem, answer, scope)
    judged = certify(posed, answer.W, answer.b, answer.theta)
    again, one = clocked(lambda: solve(posed, time_limit=PATIENCE))
    return {
        "reached": answer.sparsity,
        "search_cpu_seconds": search.cpu_seconds,
        "solve_cpu_seconds": one.cpu_seconds,
        "ratio": search.cpu_seconds / one.cpu_seconds,
        "solves": len(solves),
        "full_solves": solves.count(problem.n_outputs),
        "layers_solved": sum(solves) / problem.n_outputs,
        "status": str(answer.status),
        "gap": float(np.max(judged.gaps)),
        "violation": float(judged.violation),
        "relative_distance": judged.distance / float(np.linalg.norm(problem.target_norms)),
        "warnings": list(answer.warnings),
        "solve_status": str(again.status),
    }


@contextmanager
def counted_solves() -> Iterator[list[int]]:
    """Yield a list that gets the number of outputs of every program that a search solves."""
    found: list[int] = []
    solve_program = options.solve_program

    def counted(problem: Problem, *args: Any, **keywords: Any) -> Solution:
        found.append(problem.n_outputs)
        return solve_program(problem, *args, **keywords)

    with mock.patch.object(options, "solve_program", counted):
        yield found


def at_own_radius(problem: Problem, answer: Solution, scope: str) -> Problem:
    """Return the problem whose radius is what an answer reaches, which its proof is about."""
    radii = answer.certificate.epsilons
    if problem.joint and scope == "layer":
        return problem.replace(epsilon=float(radii[0]))
    return problem.replace(radius="per_output", epsilon=radii)


def gaussian() -> Problem:
    """Return a ReLU layer with Gaussian inputs and weights."""
    return instances.random_relu_layer(400, 100, 50, intercept=True, seed=0).problem


def lenet_layer(k: int) -> Problem:
    """Return layer k of LeNet-300-100 on the first training images."""
    data = datasets.lenet()
    X = data.X_train[:IMAGES]
    for layer in data.network.layers[:k]:
        X = np.maximum(X @ layer.W + layer.b, 0.0)
    layer = data.network.layers[k]
    Z = X @ layer.W + layer.b
    if k == len(data.network.layers) - 1:
        return Problem(X, Z, layer.W, layer.b, activation="identity")
    return Problem(X, np.maximum(Z, 0.0), layer.W, layer.b)


def patches() -> Problem:
    """Return eight random filters on 5 x 5 patches of training images, blank patches left out."""
    images = datasets.lenet().X_train[:125].reshape(-1, 28, 28)
    X = sliding_window_view(images, (5, 5), axis=(1, 2))[:, ::3, ::3].reshape(-1, 25)
    X = X[X.std(axis=1) > 0][:IMAGES]
    rng = np.random.default_rng(0)
    W, b = rng.standard_normal((25, 8)) / 5.0, 0.1 * rng.standard_normal(8)
    return Problem(X, np.maximum(X @ W + b, 0.0), W, b)


def _title(row: dict[str, Any]) -> str:
    words = [row["layer"], *row["changes"].values()]
    return ", ".join(words + (["scope output"] if row["scope"] == "output" else []))
