"""Random small problems of many kinds for the fuzz benchmark, each from two integers.

A case is kept as the arguments of `Problem`, so that its checks are part of what is tested, and so
that the judge (:mod:`benchmarks.fuzz_judge`) can work from the definitions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

Array = NDArray[np.float64]

FORMULATIONS = ("pooled", "strict", "penalised", "penalised_strict")

#: Kinds of data, and kinds of budget or of l1 weights; every problem has one of either.
DATA = (
    "plain", "correlated", "one_hot", "integer", "binary", "collinear", "offset", "columns",
    "rows", "low_rank", "duplicate_columns", "duplicate_rows", "wide", "constant_column",
    "dead_outputs", "running_sums", "single", "square", "extreme", "noisy_targets",
)  # fmt: skip
BUDGETS = (
    "usual", "tiny", "zero", "at_the_norm", "least", "beyond_least", "huge", "zero_weights",
    "some_zero_weights", "wild_weights",
)  # fmt: skip
ACTIVATIONS = (
    "relu", "relu", "relu", "identity", "leaky_relu", "relu6", "hard_tanh", "hard_sigmoid",
    "tanh", "box",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """The arguments of a problem, the weights that made its targets, and what kind it is."""

    arguments: dict[str, Any]
    W: Array
    b: Array
    kind: str
    name: str


def make_case(seed: int, k: int) -> Case:
    """Return the k-th problem of a seed."""
    rng = np.random.default_rng([seed, k])
    data, budget = DATA[rng.integers(len(DATA))], BUDGETS[rng.integers(len(BUDGETS))]
    if rng.random() < 0.4:
        budget = "usual"
    formulation = FORMULATIONS[rng.choice(4, p=[0.3, 0.35, 0.15, 0.2])]
    radius = ("joint", "per_output")[rng.integers(2)]
    intercept = bool(rng.integers(2))
    shape = int(rng.integers(2, 40)), int(rng.integers(1, 15)), int(rng.integers(1, 5))
    X = _inputs(rng, data, *shape)
    dtype = np.float32 if rng.random() < 0.25 else np.float64
    activation = str(rng.choice(ACTIVATIONS))
    W, b, Z = _layer(rng, X, shape[2] if data != "single" else 1, intercept, data)
    X, W, Z, b = _scaled(rng, data, X, W, Z, b, dtype)
    arguments: dict[str, Any] = {
        "X": X.astype(dtype), "formulation": formulation, "radius": radius, "intercept": intercept
    }  # fmt: skip
    if rng.random() < 0.1:
        arguments["X"] = sp.csr_array(arguments["X"])
    _targets(rng, arguments, activation, Z, data)
    weights = _weights(rng, budget, X, Z.shape[1])
    if weights is not None:
        arguments["weights"] = weights
    _budget(rng, arguments, budget, X, Z)
    name = f"{data}-{budget}-{formulation}-{radius}-{activation}-{np.dtype(dtype)}-{Z.shape}"
    return Case(arguments, W, b, data if budget == "usual" else f"{data}+{budget}", name)


def _inputs(rng: Any, kind: str, P: int, N: int, M: int) -> Array:
    if kind == "one_hot":
        return (
            np.eye(N)[np.arange(P) % N]
            if rng.random() < 0.5
            else np.eye(N)[rng.integers(N, size=P)]
        )
    if kind == "integer":
        return rng.integers(-4, 5, (P, N)).astype(float)
    if kind == "binary":
        return rng.integers(0, 2, (P, N)).astype(float)
    if kind == "correlated":
        return np.maximum(rng.standard_normal((P, 3)) @ rng.standard_normal((3, N)), 0.0) + (
            0.1 * rng.standard_normal((P, N))
        )
    if kind == "low_rank":
        rank = int(rng.integers(1, max(2, N)))
        return rng.standard_normal((P, rank)) @ rng.standard_normal((rank, N))
    if kind == "running_sums":
        steps = np.cumsum(rng.standard_normal((P, N)), axis=1) / np.sqrt(np.arange(1, N + 1))
        return np.maximum(steps, 0.0)
    if kind == "wide":
        P, N = int(rng.integers(1, 12)), int(rng.integers(8, 30))
    if kind == "single":
        P, N = ((1, 1), (1, N), (P, 1))[rng.integers(3)]
    if kind == "square":
        P = N
    X = rng.standard_normal((P, N))
    if kind == "collinear":
        X[:, 1:] = X[:, :1] + 10.0 ** -rng.uniform(4, 12) * X[:, 1:]
    if kind == "offset":
        X += 10.0 ** rng.uniform(2, 8)
    if kind == "columns":
        X *= 10.0 ** rng.uniform(-6, 6, N)
    if kind == "rows":
        X *= 10.0 ** rng.uniform(-5, 3, (P, 1))
    if kind == "duplicate_columns":
        X = X[:, rng.integers(N, size=N)]
    if kind == "duplicate_rows":
        X = X[rng.integers(P, size=P)]
    if kind == "constant_column":
        X[:, rng.integers(N)] = rng.choice([0.0, 1.0, -3.0])
    return X


def _layer(rng: Any, X: Array, M: int, intercept: bool, kind: str) -> tuple[Array, Array, Array]:
    """Return weights, an intercept and the pre-activations that the targets are made of."""
    N = X.shape[1]
    size = np.linalg.norm(X, axis=0) / np.sqrt(len(X))
    W = rng.standard_normal((N, M)) / np.where(size > 0, size, 1.0)[:, None] / np.sqrt(N)
    if kind in ("integer", "binary", "one_hot"):
        W = rng.integers(-3, 4, (N, M)).astype(float)
    elif kind in ("collinear", "rows"):
        W = rng.standard_normal((N, M))
    if rng.random() < 0.5:
        W[rng.random((N, M)) < 0.6] = 0.0
    b = rng.standard_normal(M) if intercept else np.zeros(M)
    if kind in ("integer", "binary", "one_hot"):
        b = np.round(b)
    if kind == "dead_outputs":
        X = np.abs(X)
        W[:, rng.random(M) < 0.6] *= -np.sign(W[:, :1] + 0.5)
    Z = X @ W + b
    if kind == "noisy_targets":
        Z = Z + rng.standard_normal(Z.shape)
    return W, b, Z


def _scaled(
    rng: Any, kind: str, X: Array, W: Array, Z: Array, b: Array, dtype: Any
) -> tuple[Array, Array, Array, Array]:
    """Return all in other units, for the extreme kind."""
    if kind != "extreme":
        return X, W, Z, b
    powers = (
        (-30, -15, 15, 30) if dtype == np.float32 else (-300, -200, -100, -50, 50, 70, 150, 290)
    )
    a, t = (10.0 ** float(rng.choice((0, *powers))) for _ in range(2))
    return a * X, W * (t / a), t * Z, t * b


def _targets(rng: Any, arguments: dict[str, Any], name: str, Z: Array, kind: str) -> None:
    """Put Y and the activation, or the box, into the arguments."""
    if name == "box":
        size = float(np.abs(Z).max()) or 1.0
        width = size * np.where(rng.random(Z.shape) < 0.5, 0.0, rng.random(Z.shape))
        arguments["lower"] = np.where(rng.random(Z.shape) < 0.15, -np.inf, Z - width)
        arguments["upper"] = np.where(rng.random(Z.shape) < 0.15, np.inf, Z + width)
        return
    function = {
        "relu": lambda z: np.maximum(z, 0.0), "identity": lambda z: z,
        "leaky_relu": lambda z: np.where(z >= 0, z, 0.01 * z),
        "relu6": lambda z: np.clip(z, 0.0, 6.0), "hard_tanh": lambda z: np.clip(z, -1.0, 1.0),
        "hard_sigmoid": lambda z: np.clip(z / 6.0 + 0.5, 0.0, 1.0), "tanh": np.tanh,
    }[name]  # fmt: skip
    arguments |= {"Y": function(Z), "activation": name}
    if name == "tanh":
        arguments["Z"] = Z


def _weights(rng: Any, budget: str, X: Array, M: int) -> Array | None:
    N = X.shape[1]
    shape = (N,) if rng.random() < 0.5 else (N, M)
    if budget == "zero_weights":
        return np.zeros(shape)
    if budget == "some_zero_weights":
        return np.where(rng.random(shape) < rng.choice([0.2, 0.8]), 0.0, rng.random(shape) + 0.5)
    if budget == "wild_weights":
        return 10.0 ** rng.uniform(-4, 4, shape)
    return None


def _budget(rng: Any, arguments: dict[str, Any], budget: str, X: Array, Z: Array) -> None:
    """Put a radius or a penalty into the arguments."""
    with np.errstate(all="ignore"):
        # In units that stay finite: sizes up to 1e290 have no squares.
        unit = float(np.abs(Z).max()) or 1.0
        norms = unit * np.linalg.norm(Z / unit, axis=0)
        total = unit * float(np.linalg.norm(norms / unit))
        a = float(np.abs(X).max()) or 1.0
        correlation = float(np.abs((X / a).T @ (Z / unit)).max()) or 1.0
    if arguments["formulation"].startswith("penalised"):
        share = {"huge": 10.0 ** rng.uniform(0, 9), "tiny": 10.0 ** -rng.uniform(4, 12)}.get(
            budget, 10.0 ** -rng.uniform(0.5, 3)
        )
        level = share * correlation * a * unit
        arguments["lambda_"] = float(np.clip(level, 1e-300, 1e300))
        return
    g = float(rng.choice([0.03, 0.1, 0.3, 0.8]))
    if budget == "tiny":
        g = 10.0 ** -rng.uniform(3, 11)
    elif budget == "zero":
        g = 0.0
    elif budget == "at_the_norm":
        g = 1.0 + float(rng.choice([-1, 1, 0])) * 10.0 ** -rng.uniform(1, 12)
    elif budget == "huge":
        g = 10.0 ** rng.uniform(0, 6)
    elif budget in ("least", "beyond_least"):
        sign = 1.0 if budget == "least" else -1.0
        factor = 1.0 + sign * 10.0 ** -rng.uniform(0.3, 9)
        joint, per_output = _least_distances(arguments, Z)
        if arguments["radius"] == "joint":
            arguments["epsilon"] = factor * joint
        else:
            arguments["epsilon"] = factor * per_output
        return
    if rng.random() < 0.5 and "Y" in arguments:
        arguments["tolerance"] = g
    else:
        arguments["epsilon"] = g * total if arguments["radius"] == "joint" else g * norms


def _least_distances(arguments: dict[str, Any], Z: Array) -> tuple[float, Array]:
    """Return distances near the least ones: those of the least squares to the matched targets."""
    X = arguments["X"]
    X = (X.toarray() if sp.issparse(X) else X).astype(np.float64)
    if arguments["intercept"]:
        X = np.column_stack([X, np.ones(len(X))])
    with np.errstate(all="ignore"):
        size = np.linalg.norm(X, axis=0)
        size = np.where((size > 0) & np.isfinite(size), size, 1.0)
        unit = float(np.abs(Z).max()) or 1.0
        fit = np.linalg.lstsq(np.nan_to_num(X / size), Z / unit, rcond=1e-12)[0]
        E = Z / unit - np.nan_to_num(X / size) @ fit
        distances = unit * np.linalg.norm(E, axis=0)
    return float(unit * np.linalg.norm(distances / unit)), distances
