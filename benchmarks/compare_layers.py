"""The layers of the benchmark ``compare``: calibration samples, held-out ones, and what is asked.

Gaussian layers come from ``numpy.random.default_rng(seed)``, drawn in the order X, W, held-out X.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nettrim_solver import Problem, solve

#: Correlation of neighbouring inputs.
CORRELATION = 0.9

#: LeNet-300-100: images that the layers are pruned on, and those that they are measured on.
N_IMAGES, N_TEST_IMAGES = 1000, 4000

#: Zeros of the layer before, in the cascade, and the solver that makes them.
BEFORE = ("exact_obs", 0.9)


#: Methods whose published code has a damping of its own, which their defaults are.
PUBLISHED_DAMPING = ("alps", "l0", "admm_mask", "sparsegpt")

#: Nonzeros of the sparse truth, as a fraction of its inputs; the damping that hardly disturbs it.
TRUTH, SLIGHT = 0.08, 1e-6


class MissingDataError(Exception):
    """A case cannot run here; the text says why."""


@dataclass(frozen=True)
class Size:
    """How large the made-up layers are."""

    n_samples: int = 2048
    n_few: int = 256
    n_inputs: int = 512
    n_outputs: int = 512
    n_heldout: int = 4096


QUICK = Size(160, 24, 32, 24, 200)


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer to prune.

    Attributes
    ----------
    name : str
        What stands above its table.
    problem : Problem
    heldout : dict
        ``X_heldout``, and ``Y_heldout`` or ``Z_heldout`` where needed.
    metric : {"error", "activation_error"}
        Which error is shown.
    damping : float or None
        Of the methods and refinements that have no value of their own here; None leaves all
        defaults.
    own_damping : tuple of str
        Methods that keep their defaults all the same: those of their published code.
    box : bool
        Whether refinements towards the target box are tried, too.
    accuracy : callable or None
        Of the network with these weights in the layer's place.
    """

    name: str
    problem: Problem
    heldout: dict[str, Any]
    metric: str = "error"
    damping: float | None = None
    own_damping: tuple[str, ...] = ()
    box: bool = False
    accuracy: Callable[[Any, Any], float] | None = field(default=None, repr=False)


def layers(case: str, quick: bool, seed: int) -> Iterator[Layer]:
    """Yield the layers of a case.

    Raises
    ------
    MissingDataError
        If its data are not here.
    """
    size = QUICK if quick else Size()
    if case in ("a", "b", "c"):
        yield gaussian(case, size, seed)
    elif case == "d":
        yield from lenet(quick)
    elif case == "e":
        yield sparse_truth(size, seed, "identity")
        yield sparse_truth(size, seed, "relu")
    elif case == "f":
        yield relu_target(size, seed)


def correlated(rng: np.random.Generator, n_samples: int, n_inputs: int) -> Any:
    """Return Gaussian samples whose inputs i and k have the correlation 0.9^|i - k|."""
    place = np.arange(n_inputs)
    factor = np.linalg.cholesky(CORRELATION ** np.abs(place[:, None] - place))
    return rng.standard_normal((n_samples, n_inputs)) @ factor.T


def gaussian(case: str, size: Size, seed: int) -> Layer:
    """Return a dense Gaussian layer with a linear target: l1's worst case, there is no truth."""
    rng = np.random.default_rng(seed)
    N, M = size.n_inputs, size.n_outputs
    P = size.n_few if case == "c" else size.n_samples
    X = correlated(rng, P, N)
    W = rng.standard_normal((N, M)) / np.sqrt(N)
    fresh = correlated(rng, size.n_heldout, N)
    name = f"X {P} x {N} Gaussian, W {N} x {M} Gaussian, linear target"
    if case == "b":
        X, fresh = np.maximum(X, 0.0), np.maximum(fresh, 0.0)
        name = name.replace("Gaussian,", "Gaussian clipped at zero,", 1)
    problem = Problem(X, X @ W, W, activation="identity", intercept=False)
    damping = None if case == "c" else 0.0
    return Layer(
        name, problem, {"X_heldout": fresh}, damping=damping, own_damping=PUBLISHED_DAMPING
    )


def sparse_truth(size: Size, seed: int, activation: str) -> Layer:
    """Return a dense trained layer that a sparse one could replace without loss.

    The inputs are redundant: ``X = S A`` with half as many signals in S as inputs. Weights with few
    nonzeros, equally many for every output, make the outputs; the trained ones are those of least
    norm that make the same outputs, and have no zeros.
    """
    rng = np.random.default_rng(seed)
    N, M = size.n_inputs // 2, size.n_outputs // 2
    rank, P, n_fresh = N // 2, size.n_samples // 2, size.n_heldout // 2
    A = rng.standard_normal((rank, N)) / np.sqrt(rank)
    kept = max(1, round(TRUTH * N))
    ranks = np.argsort(np.argsort(rng.random((N, M)), axis=0), axis=0)
    truth = np.where(ranks < kept, rng.standard_normal((N, M)), 0.0)
    W = np.linalg.pinv(A) @ (A @ truth)
    X, fresh = rng.standard_normal((P, rank)) @ A, rng.standard_normal((n_fresh, rank)) @ A
    Z = X @ W
    relu = activation == "relu"
    Y = np.maximum(Z, 0.0) if relu else Z
    return Layer(
        f"X {P} x {N} of rank {rank}, behind a dense W {N} x {M} one with "
        f"{100 * (1 - kept / N):.1f} % zeros, {'ReLU' if relu else 'linear'} target",
        Problem(X, Y, W, activation=activation, intercept=False), {"X_heldout": fresh},
        metric="activation_error", damping=SLIGHT, box=relu,
    )  # fmt: skip


def relu_target(size: Size, seed: int) -> Layer:
    """Return a layer of ReLU features and biases that leave a fifth of its outputs active."""
    rng = np.random.default_rng(seed)
    N, M = size.n_inputs // 2, size.n_outputs // 4
    P, n_fresh = size.n_samples // 2, size.n_heldout // 2
    X = np.maximum(correlated(rng, P, N), 0.0)
    W = rng.standard_normal((N, M)) / np.sqrt(N)
    fresh = np.maximum(correlated(rng, n_fresh, N), 0.0)
    b = -np.quantile(X @ W, 0.8, axis=0)
    problem = Problem(X, np.maximum(X @ W + b, 0.0), W, b)
    active = float(np.mean(problem.Y > 0))
    return Layer(
        f"X {P} x {N} Gaussian clipped at zero, W {N} x {M} Gaussian, ReLU target, "
        f"{100 * active:.0f} % active",
        problem, {"X_heldout": fresh}, metric="activation_error", box=True,
    )  # fmt: skip


# LeNet-300-100 ----------------------------------------------------------------------------------


def lenet(quick: bool) -> Iterator[Layer]:
    """Yield the layers of LeNet-300-100 on MNIST, each on the trained network's own signals.

    At last the second layer behind a pruned first one, with the trained network's targets.
    """
    weights, biases, images, test_images, labels = lenet_data(quick)
    signals, fresh = forward(weights, biases, images), forward(weights, biases, test_images)

    def accuracy_of(i: int, inputs: Any) -> Callable[[Any, Any], float]:
        def accuracy(W: Any, b: Any) -> float:
            outputs = forward([W, *weights[i + 1 :]], [b, *biases[i + 1 :]], inputs)[-1][1]
            return float(np.mean(np.argmax(outputs, axis=1) == labels))

        return accuracy

    for i, (W, b) in enumerate(zip(weights, biases, strict=True)):
        last = i == len(weights) - 1
        Z, Y = signals[i][1], signals[i][2]
        problem = Problem(
            signals[i][0], Z if last else Y, W, b, activation="identity" if last else "relu"
        )
        yield Layer(
            f"LeNet-300-100, layer {i + 1}, {W.shape[0]} x {W.shape[1]}", problem,
            {"X_heldout": fresh[i][0]}, metric="activation_error", box=not last,
            accuracy=accuracy_of(i, fresh[i][0]),
        )  # fmt: skip
        if i == 0:
            before = solve(problem, BEFORE[0], sparsity=BEFORE[1])
    X, X_fresh = (np.maximum(before.predict(part[0][0]), 0.0) for part in (signals, fresh))
    yield Layer(
        f"LeNet-300-100, layer 2 behind layer 1 with {100 * BEFORE[1]:g} % zeros (cascade)",
        Problem(X, signals[1][2], weights[1], biases[1], Z=signals[1][1]),
        {"X_heldout": X_fresh, "Z_heldout": fresh[1][1]}, metric="activation_error", box=True,
        accuracy=accuracy_of(1, X_fresh),
    )  # fmt: skip


def forward(weights: Any, biases: Any, X: Any) -> list[tuple[Any, Any, Any]]:
    """Return input, pre-activation and output of every layer; the last is linear."""
    signals = []
    for W, b in zip(weights, biases, strict=True):
        Z = X @ W + b
        signals.append((X, Z, np.maximum(Z, 0.0)))
        X = signals[-1][2]
    return signals


def lenet_data(quick: bool) -> tuple[list[Any], list[Any], Any, Any, Any]:
    """Return weights, biases, calibration images, held-out images and their labels, float64.

    Raises
    ------
    MissingDataError
        Unless the folder named by NETTRIM_DATA holds lenet_300_100.npz and mnist.npz.
    """
    folder = os.environ.get("NETTRIM_DATA")
    if not folder:
        raise MissingDataError("NETTRIM_DATA names no folder with lenet_300_100.npz and mnist.npz")
    arrays = {}
    for name in ("lenet_300_100.npz", "mnist.npz"):
        path = Path(folder) / name
        if not path.is_file():
            raise MissingDataError(f"NETTRIM_DATA names a folder without {name}")
        with np.load(path, allow_pickle=False) as file:
            arrays |= {key: file[key] for key in file.files}
    n, n_test = (60, 100) if quick else (N_IMAGES, N_TEST_IMAGES)
    images, test_images = (
        arrays[name][:count].reshape(count, -1) / 255.0
        for name, count in (("x_train", n), ("x_test", n_test))
    )
    weights = [arrays[f"W{i}"].astype(np.float64) for i in range(3)]
    biases = [arrays[f"b{i}"].astype(np.float64) for i in range(3)]
    if quick:  # a part of the network, which then computes something else
        few = [slice(300, 400), slice(0, 20), slice(0, 15), slice(None)]
        weights = [W[few[i], few[i + 1]] for i, W in enumerate(weights)]
        biases = [b[few[i + 1]] for i, b in enumerate(biases)]
        images, test_images = images[:, few[0]], test_images[:, few[0]]
    return weights, biases, images, test_images, arrays["y_test"][:n_test]
