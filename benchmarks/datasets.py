"""Real data and trained networks for the benchmarks: none of it is part of the repository.

The folder named by the environment variable ``NETTRIM_DATA`` holds

- ``mnist.npz``: ``x_train``, ``y_train``, ``x_test``, ``y_test``, images of 28 x 28 bytes;
- ``lenet_300_100.npz``: ``W0, b0, W1, b1, W2, b2`` of LeNet-300-100, trained on pixels / 255;
- ``mnist-8.onnx``: the convolutional network of the ONNX Model Zoo, on pixels / 255;
- ``california_housing.npz``: ``X`` (20640, 8) with missing values, ``y``.

MNIST and the housing data are public (scikit-learn's ``fetch_openml("mnist_784")`` and
``fetch_california_housing``, the latter without the missing values).
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nettrim_solver.frameworks import from_npz
from nettrim_solver.network import Network


class MissingDataError(Exception):
    """Data that a benchmark needs is not there; the text says what and where."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained classifier, samples to calibrate with, and samples to score on."""

    name: str
    network: Network
    X_train: Any
    X_test: Any
    y_test: Any

    def accuracy(self, network: Network) -> float:
        """Return the fraction of test samples whose largest output is that of their class."""
        return float(np.mean(network(self.X_test, 4096).argmax(axis=1) == self.y_test))

    def score(self, network: Network) -> float:
        """Return the accuracy, as the benchmarks of several kinds of networks call it."""
        return self.accuracy(network)

    def sample(self, n: int, seed: int) -> Any:
        """Return n training samples, drawn without replacement."""
        rng = np.random.default_rng(seed)
        return self.X_train[np.sort(rng.choice(len(self.X_train), n, replace=False))]


def data_file(name: str) -> Path:
    """Return the path of a file in the data folder.

    Raises
    ------
    MissingDataError
        If there is no such folder or file.
    """
    folder = os.environ.get("NETTRIM_DATA")
    if not folder or not Path(folder).is_dir():
        raise MissingDataError(f"NETTRIM_DATA names no folder that would hold {name}")
    path = Path(folder) / name
    if not path.is_file():
        raise MissingDataError(f"the folder named by NETTRIM_DATA has no {name}")
    return path


def lenet() -> Classifier:
    """Return LeNet-300-100 in float64, with MNIST's images as rows in [0, 1]."""
    with np.load(data_file("mnist.npz")) as mnist:
        X_train, X_test = (mnist[part].reshape(-1, 784) / 255.0 for part in ("x_train", "x_test"))
        y_test = mnist["y_test"]
    network = from_npz(data_file("lenet_300_100.npz")).astype(np.float64)
    return Classifier("LeNet-300-100", network, X_train, X_test, y_test)


def mnist_images() -> dict[str, Any]:
    """Return MNIST's images of shape (n, 1, 28, 28) in [0, 1], float32, and the labels."""
    with np.load(data_file("mnist.npz")) as mnist:
        images = {
            part: (mnist[part][:, None] / 255.0).astype(np.float32)
            for part in ("x_train", "x_test")
        }
        return images | {part: mnist[part] for part in ("y_train", "y_test")}


def mnist_8() -> Classifier:
    """Return the convolutional network of the ONNX Model Zoo."""
    from nettrim_solver.frameworks import from_onnx

    images = mnist_images()
    network = from_onnx(data_file("mnist-8.onnx"))
    return Classifier("mnist-8", network, images["x_train"], images["x_test"], images["y_test"])


def deep_mlp(hidden: tuple[int, ...] = (256,) * 6, images: int = 30_000) -> Classifier:
    """Return a perceptron of six hidden layers, trained here by scikit-learn on MNIST."""
    from sklearn.neural_network import MLPClassifier

    from nettrim_solver.frameworks import from_sklearn

    with np.load(data_file("mnist.npz")) as mnist:
        X_train, X_test = (
            (mnist[part].reshape(-1, 784) / 255.0).astype(np.float32)
            for part in ("x_train", "x_test")
        )
        y_train, y_test = mnist["y_train"], mnist["y_test"]
    model = MLPClassifier(hidden, max_iter=12, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It need not converge.
        model.fit(X_train[:images], y_train[:images])
    return Classifier("MLP, 6 hidden layers", from_sklearn(model), X_train, X_test, y_test)


def digits() -> Classifier:
    """Return the demonstration's network with its data: what is there everywhere."""
    from nettrim_solver.demo import load_demo_network

    demo = load_demo_network()
    arrays: dict[str, Any] = {}
    for k, (W, b) in enumerate(zip(demo.weights, demo.biases, strict=True)):
        arrays |= {f"W{k}": W.astype(np.float64), f"b{k}": b.astype(np.float64)}
    return Classifier("digits", from_npz(arrays), demo.X_train, demo.X_test, demo.y_test)
