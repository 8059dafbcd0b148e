"""The demonstration: prune a trained digit classifier layer by layer, with a proof for each layer.

The network (64-256-128-10, ReLU) and its data come inside the package. Every layer is pruned from
the trained network's own signals on the training samples (parallel mode), held-out samples only
score the result. This module computes; :mod:`nettrim_solver.terminal` prints.

References
----------
Aghasi, Abdi, Nguyen, Romberg, *Net-Trim*, NIPS 2017 (arXiv:1611.05162), the parallel scheme.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .exceptions import SettingsError
from .plotting import new_figure
from .problem import Problem
from .problem_file import save_arrays, whole_file
from .solution import Solution
from .solve import solve
from .status import Status

if TYPE_CHECKING:
    from .solvers import Progress

#: Relative radii of the default sweep.
TOLERANCES = (0.02, 0.05, 0.1, 0.2, 0.3)

#: Pixel values run from 0 to 16.
PIXEL_SCALE = 16.0

Weights = Sequence[NDArray[Any]]


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

    def accuracy(self, weights: Weights, biases: Weights) -> float:
        """Return the held-out accuracy of a network with these weights."""
        outputs = forward_pass(weights, biases, self.X_test)[-1]
        return float(np.mean(np.argmax(outputs, axis=1) == self.y_test))


@dataclass(frozen=True, eq=False)
class LayerResult:
    """One pruned layer: its name (that of its array), its radius, and the judged solution."""

    name: str
    epsilon: float
    solution: Solution

    @property
    def error_ratio(self) -> float:
        """Achieved activation error over epsilon; at most 1 when the radius is kept."""
        error = self.solution.certificate.activation_error
        assert error is not None
        return error / self.epsilon if self.epsilon > 0 else 0.0


@dataclass(frozen=True, eq=False)
class PrunedNetwork:
    """The network pruned at one tolerance.

    Attributes
    ----------
    tolerance : float
    layers : tuple of LayerResult
    accuracy_before, accuracy : float
        Held-out accuracy of the trained and of the pruned network.
    """

    tolerance: float
    layers: tuple[LayerResult, ...]
    accuracy_before: float
    accuracy: float

    @property
    def sparsity(self) -> float:
        """Fraction of zeros over all weight matrices (biases are not counted)."""
        size = sum(layer.solution.W.size for layer in self.layers)
        return 1.0 - sum(layer.solution.nnz for layer in self.layers) / size

    @property
    def proved(self) -> bool:
        """Whether every layer is proved optimal."""
        return all(layer.solution.status is Status.OPTIMAL for layer in self.layers)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the pruned weights under the names ``W0, b0, W1, ...``."""
        named: dict[str, NDArray[Any]] = {}
        for i, layer in enumerate(self.layers):
            assert layer.solution.b is not None
            named |= {f"W{i}": layer.solution.W, f"b{i}": layer.solution.b}
        return named


@dataclass(frozen=True)
class Step:
    """Where a sweep stands; ``progress`` is None when a layer starts and when it is done.

    Attributes
    ----------
    tolerance : float
    layer : str
    done, total : int
        Layers solved so far, and in all tolerances together.
    progress : Progress or None
        The solver's own report.
    """

    tolerance: float
    layer: str
    done: int
    total: int
    progress: Progress | None = None


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


def forward_pass(weights: Weights, biases: Weights, X: NDArray[Any]) -> list[NDArray[Any]]:
    """Return the outputs of every layer: ReLU after hidden layers, none after the last.

    Parameters
    ----------
    weights, biases : sequence of ndarray
    X : ndarray of shape (n_samples, n_inputs)
        The computation runs in the dtype that these make together.
    """
    outputs: list[NDArray[Any]] = []
    signal = X
    for i, (W, b) in enumerate(zip(weights, biases, strict=True)):
        signal = signal @ W + b
        if i < len(weights) - 1:
            signal = np.maximum(signal, 0)
        outputs.append(signal)
    return outputs


def layer_problems(network: DemoNetwork) -> list[Problem]:
    """Return one pooled problem per layer, from the trained network's own signals, without radius.

    The signals are float64, so that each layer can be proved to 1e-6.
    """
    outputs = forward_pass(network.weights, network.biases, network.X_train)
    inputs = [network.X_train, *outputs[:-1]]
    last = len(outputs) - 1
    return [
        Problem(inputs[i], Y, network.weights[i], network.biases[i],
                activation="identity" if i == last else "relu")
        for i, Y in enumerate(outputs)
    ]  # fmt: skip


def prune_sweep(
    tolerances: Sequence[float] = TOLERANCES,
    *,
    network: DemoNetwork | None = None,
    solver: str = "admm",
    report: Callable[[Step], object] | None = None,
    n_threads: int | None = None,
    **settings: Any,
) -> Iterator[PrunedNetwork]:
    """Prune the network at one tolerance after the other, and yield each result as it comes.

    Parameters
    ----------
    tolerances : sequence of float
        Relative radii: layer l may change its activations by ``tolerance * ||Y_l||_F``. Each layer
        starts from its own solution at the tolerance before.
    network : DemoNetwork, optional
        The shipped one when omitted.
    solver : str
        A solver's name.
    report : callable, optional
        Called with a :class:`Step` before and after each layer, and at every check of the solver.
    n_threads : int, optional
        As in :func:`solve`.
    **settings
        The solver's settings.

    Raises
    ------
    SettingsError
        For an empty list, or a tolerance that is not a positive number.
    KeyboardInterrupt
        When a solver was stopped by Ctrl-C; what was yielded before stands.
    """
    grid = checked_tolerances(tolerances)
    network = load_demo_network() if network is None else network
    problems = layer_problems(network)
    before = network.accuracy(network.weights, network.biases)
    previous: list[Solution | None] = [None] * len(problems)
    done, total = 0, len(grid) * len(problems)
    for g in grid:
        layers = []
        for i, unbounded in enumerate(problems):
            problem, step = unbounded.replace(tolerance=g), Step(g, f"W{i}", done, total)
            _tell(report, step)
            solution = solve(
                problem, solver, warm_start=previous[i], n_threads=n_threads,
                callback=_relay(report, step), **settings,
            )  # fmt: skip
            if Status.INTERRUPTED in solution.statuses:
                raise KeyboardInterrupt
            assert isinstance(problem.epsilon, float)
            layers.append(LayerResult(step.layer, problem.epsilon, solution))
            previous[i], done = solution, done + 1
            _tell(report, Step(g, step.layer, done, total))
        weights, biases = zip(*((r.solution.W, r.solution.b) for r in layers), strict=True)
        yield PrunedNetwork(g, tuple(layers), before, network.accuracy(weights, biases))


def prune_demo(tolerances: Sequence[float] = TOLERANCES, **options: Any) -> list[PrunedNetwork]:
    """Prune the network at several tolerances, and return all results.

    Parameters
    ----------
    tolerances : sequence of float
    **options
        As in :func:`prune_sweep`.

    Examples
    --------
    >>> result = prune_demo([0.3])[0]
    >>> result.proved, result.sparsity > 0.5
    (True, True)
    """
    return list(prune_sweep(tolerances, **options))


def checked_tolerances(tolerances: Sequence[float]) -> tuple[float, ...]:
    """Return the tolerances without repetitions, or raise :class:`SettingsError`."""
    grid = tuple(dict.fromkeys(float(g) for g in tolerances))
    if not grid:
        raise SettingsError("tolerances must hold at least one number, but is empty")
    for g in grid:
        if not (0 < g < np.inf):
            raise SettingsError(f"tolerances must be positive and finite, but one is {g:g}")
    return grid


def save_pruned(result: PrunedNetwork, folder: str | os.PathLike[str]) -> Path:
    """Write the pruned weights to ``folder/pruned-TOLERANCE.npz``, atomically; return the path."""
    path = Path(folder) / f"pruned-{result.tolerance}.npz"
    save_arrays(path, result.arrays())
    return path


def save_plot(results: Sequence[PrunedNetwork], path: str | os.PathLike[str]) -> None:
    """Draw held-out accuracy against zeros, and write the PNG atomically.

    Raises
    ------
    MissingDependencyError
        Without matplotlib.
    """
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    ordered = sorted(results, key=lambda result: result.sparsity)
    zeros = [100 * result.sparsity for result in ordered]
    accuracies = [100 * result.accuracy for result in ordered]
    axes.plot(zeros, accuracies, marker="o", label="pruned, no retraining")
    axes.axhline(100 * ordered[0].accuracy_before, color="0.5", ls="--", label="trained")
    for x, y, result in zip(zeros, accuracies, ordered, strict=True):
        axes.annotate(f"{result.tolerance:g}", (x, y), (4, 4), textcoords="offset points")
    axes.set(xlabel="zeros in the weights (%)", ylabel="held-out accuracy (%)",
             title="Digits, 64-256-128-10: relative tolerance at each point")  # fmt: skip
    axes.legend()
    axes.margins(x=0.08)
    axes.grid(alpha=0.3)
    with whole_file(path) as stream:
        figure.savefig(stream, format="png", dpi=120)


def _tell(report: Callable[[Step], object] | None, step: Step) -> None:
    if report is not None:
        report(step)


def _relay(
    report: Callable[[Step], object] | None, step: Step
) -> Callable[[Progress], object] | None:
    """Return a solver's callback that passes its progress on, and never asks it to stop."""
    if report is None:
        return None

    def callback(progress: Progress) -> None:
        report(Step(step.tolerance, step.layer, step.done, step.total, progress))

    return callback
