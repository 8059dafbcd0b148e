"""Samples and labels in files, and what a network makes of them.

A file is named ``inputs.npy``, ``data.npz`` or ``data.npz:NAME``, with labels
``data.npz:NAME:NAME``. Without a name the samples are the array named after the model's input,
``X``, or the only one there is; the labels ``y`` or ``labels``. Of a model with several inputs
there is an array for each of them, under its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..checks import layout_remedy
from ..exceptions import ProblemError, ProblemFileError
from ..network import Activate, Calibration, Network, choose_rows
from ..network.gathering import join_inputs, joined_shapes
from ..network.operations import Shape
from ..problem_file import load_arrays
from ..text import nearest
from .common import UsageError

if TYPE_CHECKING:
    from ..frameworks.files import ModelFile

#: Names of labels in an archive, when the command line has none.
LABELS = ("y", "labels")

#: A file, and perhaps the names of its samples and labels.
SOURCE = re.compile(r"(?P<path>.+?\.np[yz])(?::(?P<X>[^:]+))?(?::(?P<y>[^:]+))?")


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of a file, as the network takes them, and labels if it has any.

    Attributes
    ----------
    X : ndarray of shape (n_samples, ...)
    y : ndarray of shape (n_samples,) or (n_samples, n_outputs), or None
    source : str
        As on the command line.
    """

    X: NDArray[Any]
    y: NDArray[Any] | None
    source: str


def how_to_make(model: ModelFile) -> str:
    """Return, in a sentence, how calibration data for a model is written."""
    shapes = _shapes_by_input(model)
    if shapes:
        arrays = " and ".join(f"{n!r} of shape {_batch(shape)}" for n, shape in shapes.items())
        return (
            'in Python, numpy.savez("inputs.npz", **inputs) writes a dict with an array for '
            f"each input, {arrays}, as the model takes them"
        )
    shape = model.network.input_shape
    return (
        'in Python, numpy.savez("inputs.npz", X=X) writes samples X of shape '
        f"{'(n_samples, ...)' if shape is None else _batch(shape)}, as the model takes them"
    )


def _shapes_by_input(model: ModelFile) -> dict[str, Shape]:
    """Return the shapes of a sample of a model's inputs, if it has several."""
    return dict(zip(model.input_names, joined_shapes(model.network.operations), strict=False))


def _batch(shape: Shape) -> str:
    """Return the shape of several samples, for messages."""
    return f"({', '.join(['n_samples', *map(str, shape)])})"


def read_samples(
    source: str, model: ModelFile, *, flag: str, scale: float | None = None,
    n_samples: int | None = None, seed: int = 0,
) -> Samples:  # fmt: skip
    """Return the samples of a file.

    Parameters
    ----------
    source : str
        See the module's docstring.
    model : ModelFile
        Whose input they must fit.
    flag : str
        The option that named the file, for messages.
    scale : float, optional
        What the samples are multiplied by.
    n_samples : int, optional
        So many of them, chosen at random; all when omitted.
    seed : int
        Decides which.

    Raises
    ------
    UsageError, ProblemError
        If there are no such samples; the message names option and file.
    """
    if n_samples is not None and n_samples < 1:
        raise UsageError(f"--samples must be at least 1, but was {n_samples}")
    path, name, label_name = _parts(source, flag)
    labels, shapes = None, _shapes_by_input(model)
    try:
        if path.suffix == ".npz":
            arrays = load_arrays(path, "an archive of samples")
            if shapes:
                X = _joined(arrays, name, shapes)
                arrays = {own: array for own, array in arrays.items() if own not in shapes}
            else:
                X = _samples_of(arrays, name, model.input_names)
            labels = _labels_of(arrays, label_name)
        elif shapes:
            raise ProblemError(f"one array is not enough: {how_to_make(model)}")
        else:
            X = _load_npy(path)
        if X.ndim == 0:
            raise ProblemError("samples must be an array with a row per sample, but are a number")
        if labels is not None and (labels.ndim == 0 or len(labels) != len(X)):
            raise ProblemError(
                f"labels must be as many as the samples, {len(X)}, but have shape {labels.shape}"
            )
        if n_samples is not None:
            rows = choose_rows(len(X), n_samples, seed)
            X, labels = X[rows], None if labels is None else labels[rows]
        if scale is not None:
            X = _scaled(X, scale, model.network)
        X = model.inputs(X)
        _check_shape(X, model.network.input_shape)
        # What Calibration finds out, such as NaN, is said with the name of the file.
        Calibration(X, model.network)
    except ProblemError as error:
        text = str(error).replace("the calibration data", "the array")
        text = text if str(path) in text else f"{path}: {text}"
        separator = " " if text.startswith(str(path)) else ": "
        raise ProblemError(f"{flag}{separator}{text}") from None
    return Samples(X, labels, source)


def _scaled(X: NDArray[Any], scale: float, network: Network) -> NDArray[Any]:
    """Return samples times a factor, as the network computes with them."""
    if X.dtype.kind not in "fiub":
        raise ProblemError(f"must be real numbers to be multiplied by --scale, but are {X.dtype}")
    kind = X.dtype if X.dtype.kind == "f" else network.dtype
    return X.astype(kind) * kind.type(scale)


def path_of(source: str) -> Path:
    """Return the file that samples are read from."""
    match = SOURCE.fullmatch(source)
    return Path(source if Path(source).exists() or match is None else match["path"])


def _parts(source: str, flag: str) -> tuple[Path, str | None, str | None]:
    """Return the file, and the names of samples and labels if there are any."""
    match = SOURCE.fullmatch(source)
    if Path(source).exists() or match is None:
        path, name, label = Path(source), None, None
    else:
        path, name, label = Path(match["path"]), match["X"], match["y"]
    if path.suffix not in (".npy", ".npz") and not path.is_dir():
        raise UsageError(f"{flag} must be a file .npy or .npz, or FILE.npz:NAME, but was {source}")
    if name is not None and path.suffix == ".npy":
        raise UsageError(f"{flag} {source}: an .npy file holds one array, which has no name")
    if path.is_dir():
        raise UsageError(f"{flag} {source} is a folder; it must be a file .npy or .npz")
    return path, name, label


def _load_npy(path: Path) -> NDArray[Any]:
    """Return the array of an .npy file as a memory map."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ProblemFileError(f"there is no file {path}") from None
    except PermissionError as error:
        raise ProblemFileError(f"{path}: {error.strerror}") from None
    except Exception as error:
        # A damaged header makes numpy's parser raise nearly anything; what it takes for a pickle,
        # which may be any text, it would advise to trust.
        reason = "it is none, or pickled" if "allow_pickle" in str(error) else error
        raise ProblemFileError(f"{path} must be an .npy file of numbers: {reason}") from None


def _samples_of(
    arrays: Mapping[str, NDArray[Any]], name: str | None, inputs: Sequence[str]
) -> NDArray[Any]:
    """Return the samples among the arrays of an archive."""
    if name is not None:
        return _named(arrays, name)
    for candidate in (*inputs, "X"):
        if candidate in arrays:
            return arrays[candidate]
    others = [name for name in arrays if name not in LABELS]
    if len(others) == 1:
        return arrays[others[0]]
    wanted = " or ".join(map(repr, dict.fromkeys((*inputs, "X"))))
    raise ProblemError(
        f"must hold the samples under the name {wanted}, but holds {sorted(arrays)}: "
        "name them, FILE.npz:NAME"
    )


def _joined(
    arrays: Mapping[str, NDArray[Any]], name: str | None, shapes: Mapping[str, Shape]
) -> NDArray[Any]:
    """Return the arrays of all inputs of a model, every sample's in one row."""
    wanted = f"an array for each input of the model, {[*shapes]}"
    if name is not None:
        raise ProblemError(f"{name!r} alone is not enough, there must be {wanted}")
    missing = [own for own in shapes if own not in arrays]
    others = [own for own in arrays if own not in shapes and own not in LABELS]
    if missing or others:
        wrong = [f"lacks {missing}"] * bool(missing) + [f"has {others} besides"] * bool(others)
        raise ProblemError(f"must hold {wanted}, but {' and '.join(wrong)}")
    for own, shape in shapes.items():
        one_number = shape == (1,) and arrays[own].ndim == 1
        _check_shape(arrays[own], None if one_number else shape, f"the samples of {own!r}")
    lengths = {own: len(arrays[own]) for own in shapes}
    if len({*lengths.values()}) > 1:
        raise ProblemError(f"must hold as many samples for all inputs, but has {lengths}")
    try:
        return join_inputs(*(arrays[own] for own in shapes))
    except ProblemError as error:
        raise ProblemError(f"{error}; the inputs are {[*shapes]}") from None


def _labels_of(arrays: Mapping[str, NDArray[Any]], name: str | None) -> NDArray[Any] | None:
    if name is not None:
        return _named(arrays, name)
    return next((arrays[candidate] for candidate in LABELS if candidate in arrays), None)


def _named(arrays: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    if name not in arrays:
        raise ProblemError(
            f"must hold an array {name!r}, but holds {sorted(arrays)}{nearest(name, arrays)}"
        )
    return arrays[name]


def _check_shape(X: NDArray[Any], shape: Shape | None, what: str = "the samples") -> None:
    """Raise if samples have another shape, and say how to reshape those that only need that."""
    if shape is None or (X.ndim and X.shape[1:] == shape):
        return
    remedy = layout_remedy(X.shape[1:], shape)
    raise ProblemError(f"{what} must have shape {_batch(shape)}, but have shape {X.shape}{remedy}")


@dataclass(frozen=True, eq=False)
class Score:
    """How well a network does on labelled samples: called with a network, returns a number.

    With integer labels the fraction of samples whose largest output is that of the label (a single
    output says class 1 where it is above 0, or above 1/2 behind a sigmoid). With real labels of the
    outputs' shape the coefficient of determination, ``1 - ||Y - f(X)||^2 / ||Y - mean(Y)||^2``.

    Attributes
    ----------
    X : ndarray of shape (n_samples, ...)
    y : ndarray of int, shape (n_samples,), or of float, shape (n_samples, n_outputs)
    kind : {"accuracy", "R2"}
    """

    X: NDArray[Any]
    y: NDArray[Any]
    kind: str

    def __call__(self, network: Network) -> float:
        """Return the accuracy, or the coefficient of determination."""
        outputs = network(self.X)
        if self.kind == "R2":
            y = self.y.astype(np.float64)
            spread = np.sum((y - y.mean(axis=0)) ** 2)
            return float(1.0 - np.sum((outputs - y) ** 2) / spread)
        if outputs.shape[1] == 1:
            return float(np.mean((outputs[:, 0] > _threshold(network)) == self.y))
        return float(np.mean(outputs.argmax(axis=1) == self.y))

    def shown(self, value: float) -> str:
        """Return a value as text, accuracies in percent."""
        return f"{100 * value:.2f} %" if self.kind == "accuracy" else f"{value:.4f}"


def _threshold(network: Network) -> float:
    last = network.output
    return 0.5 if isinstance(last, Activate) and last.kind == "sigmoid" else 0.0


def _classes(y: NDArray[Any]) -> NDArray[Any]:
    """Return labels with a number per sample where they are one-hot, or a column of integers."""
    if y.ndim != 2 or y.dtype.kind not in "fiub":
        return y
    if y.shape[1] == 1 and y.dtype.kind in "iub":
        return y[:, 0]
    one_hot = y.shape[1] > 1 and np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all()
    return y.argmax(axis=1) if one_hot else y


def make_score(samples: Samples, model: ModelFile, flag: str) -> Score | None:
    """Return what scores networks on labelled samples; None without labels.

    Raises
    ------
    ProblemError
        If the labels do not fit the network's outputs.
    """
    if samples.y is None:
        return None
    y = model.labels(_classes(samples.y))
    shape = model.network.shapes_for(samples.X.shape[1:])[model.network.output.name]
    where = f"{flag} {samples.source}: labels"
    if len(shape) != 1:
        raise ProblemError(f"{where} need a network with a row of outputs, but it has {shape}")
    if y.dtype.kind in "iub" and y.ndim == 1:
        n_classes = max(2, shape[0])
        if y.min() < 0 or y.max() >= n_classes:
            raise ProblemError(
                f"{where} must be classes from 0 to {n_classes - 1}, but run from {y.min()} to "
                f"{y.max()}"
            )
        return Score(samples.X, y, "accuracy")
    wanted = f"integers of shape ({len(y)},), or real numbers of shape {(len(y), *shape)}"
    if y.dtype.kind != "f" or (y.shape[1:] or (1,)) != shape:
        raise ProblemError(f"{where} must be {wanted}, but are {y.dtype} of shape {y.shape}")
    if not np.isfinite(y).all() or np.ptp(y) == 0:
        raise ProblemError(f"{where} must be finite and not all the same")
    return Score(samples.X, y.reshape(len(y), -1), "R2")
