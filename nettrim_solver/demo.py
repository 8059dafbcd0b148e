"""The demonstration: a trained digit classifier, pruned by the one call that everyone has.

The network (64-256-128-10, ReLU) and its data come inside the package. The training samples
calibrate, held-out samples only score. This module computes; ``nettrim demo`` prints.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .exceptions import SettingsError
from .frameworks.npz import from_npz
from .network import Network, PruningResult, Recipe, prune_network
from .plotting import new_figure, save_figure

#: Fractions of zeros, and the relative radius, of the demonstration.
SPARSITIES, TOLERANCE = (0.8, 0.9, 0.95), 0.1

#: What is shown side by side.
RECIPES: Mapping[str, Recipe | str] = {"magnitude": Recipe(steps="magnitude"), "best": "best"}

#: Pixel values run from 0 to 16.
PIXEL_SCALE = 16.0


@dataclass(frozen=True, eq=False)
class DemoNetwork:
    """A trained multilayer perceptron and the samples that go with it.

    Attributes
    ----------
    weights : tuple of ndarray of shape (n_inputs, n_outputs), float32
    biases : tuple of ndarray of shape (n_outputs,), float32
    X_train, X_test : ndarray of shape (n_samples, 64), float64 in [0, 1]
    y_train, y_test : ndarray of shape (n_samples,), uint8
    metadata : dict
        How it was trained, with the recorded ``test_accuracy``.
    """

    weights: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]
    X_train: NDArray[np.float64]
    y_train: NDArray[np.uint8]
    X_test: NDArray[np.float64]
    y_test: NDArray[np.uint8]
    metadata: dict[str, Any]

    @property
    def network(self) -> Network:
        """The network of these weights: ReLU after hidden layers, none after the last."""
        arrays: dict[str, Any] = {f"W{i}": W for i, W in enumerate(self.weights)}
        return from_npz(arrays | {f"b{i}": b for i, b in enumerate(self.biases)})

    def accuracy(self, network: Network) -> float:
        """Return the held-out accuracy of a network."""
        return float(np.mean(network(self.X_test).argmax(axis=1) == self.y_test))


def load_demo_network() -> DemoNetwork:
    """Read the shipped network and its data.

    Examples
    --------
    >>> [W.shape for W in load_demo_network().weights]
    [(64, 256), (256, 128), (128, 10)]
    """
    content = (resources.files(__package__) / "data" / "digits_mlp.npz").read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    n_layers = sum(name.startswith("W") for name in arrays)
    return DemoNetwork(
        weights=tuple(arrays[f"W{i}"] for i in range(n_layers)),
        biases=tuple(arrays[f"b{i}"] for i in range(n_layers)),
        X_train=arrays["X_train"] / PIXEL_SCALE,
        y_train=arrays["y_train"],
        X_test=arrays["X_test"] / PIXEL_SCALE,
        y_test=arrays["y_test"],
        metadata=json.loads(str(arrays["metadata"])),
    )


def prune_demo(
    digits: DemoNetwork, sparsities: Sequence[float] = SPARSITIES, **options: Any
) -> Iterator[tuple[str, float, PruningResult]]:
    """Prune the network by every recipe to every sparsity, and yield each result as it comes.

    Parameters
    ----------
    digits : DemoNetwork
    sparsities : sequence of float
    **options
        Of :func:`.prune_network`.

    Yields
    ------
    recipe : str
    sparsity : float
    result : PruningResult
    """
    for name, recipe in RECIPES.items():
        for sparsity in sparsities:
            result = prune_network(
                digits.network, digits.X_train, sparsity=sparsity, recipe=recipe, **options
            )
            yield name, sparsity, result


def checked_sparsities(sparsities: Sequence[float]) -> tuple[float, ...]:
    """Return the fractions in order, without repetitions, or raise :class:`SettingsError`."""
    wrong = [s for s in sparsities if not 0.0 <= s < 1.0]
    if wrong or not sparsities:
        raise SettingsError(f"sparsities must be numbers in [0, 1), but were {[*sparsities]}")
    return tuple(sorted({*sparsities}))


def save_plot(
    scores: Mapping[str, Sequence[tuple[float, float]]], trained: float,
    path: str | os.PathLike[str],
) -> None:  # fmt: skip
    """Draw held-out accuracy against zeros, and write the picture, all or nothing.

    Parameters
    ----------
    scores : mapping of str to sequence of (float, float)
        Sparsity and accuracy, by recipe.
    trained : float
        Accuracy of the trained network.
    path : path-like

    Raises
    ------
    MissingDependencyError
        Without matplotlib.
    """
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    for name, points in scores.items():
        zeros, accuracies = (100.0 * np.array(values) for values in zip(*points, strict=True))
        axes.plot(zeros, accuracies, marker="o", label=name)
    axes.axhline(100.0 * trained, color="0.5", ls="--", label="trained")
    axes.set(xlabel="zeros in the weights (%)", ylabel="held-out accuracy (%)",
             title="Digits, 64-256-128-10, pruned without retraining")  # fmt: skip
    axes.legend()
    axes.grid(alpha=0.3)
    save_figure(figure, path)
