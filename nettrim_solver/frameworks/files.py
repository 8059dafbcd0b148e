"""Networks in model files: the suffix decides which framework reads one and writes it back.

======================  ==========================================================================
``.npz``                plain arrays, see :mod:`.npz`
``.onnx``               see :mod:`.onnx`
``.joblib``, ``.pkl``   a scikit-learn estimator, see :mod:`.sklearn`; only when trusted
======================  ==========================================================================
"""

from __future__ import annotations

import math
import os
import pickle
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..exceptions import (
    MissingDependencyError,
    ProblemError,
    ProblemFileError,
    SettingsError,
)
from ..network import Network
from ..problem_file import whole_file
from ..storage import load_sparse, save_sparse
from .npz import from_npz, to_npz
from .onnx_input import initial_values
from .sklearn import calibration_inputs, from_sklearn, to_sklearn

_TORCH = (
    "a PyTorch file holds no network without the Python code of its module. In Python: "
    "network = from_torch(module, input_shape=...); result = prune_network(network, X, ...); "
    "module = to_torch(module, result.network)"
)
_KERAS = (
    "a Keras file is read by Keras, in Python: network = from_keras(model); "
    "result = prune_network(network, X, ...); model = to_keras(model, result.network)"
)

#: Files that are not read, by suffix, and the way to prune what they hold.
REFUSED = {
    ".pt": _TORCH, ".pth": _TORCH, ".bin": _TORCH, ".safetensors": _TORCH,
    ".keras": _KERAS, ".h5": _KERAS, ".hdf5": _KERAS,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One operation of a model that has weights.

    Attributes
    ----------
    name : str
    operator : str
        What the model's framework calls it.
    shape : tuple of int
        Of the weights.
    nnz : int
        Nonzero weights.
    reason : str
        Why it cannot be pruned; empty if it can.
    """

    name: str
    operator: str
    shape: tuple[int, ...]
    nnz: int
    reason: str = ""

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def zeros(self) -> int:
        """Number of zero weights."""
        return self.size - self.nnz


@dataclass(frozen=True, eq=False)
class ModelFile(ABC):
    """A model that was read from a file.

    Attributes
    ----------
    path : Path
    network : Network
        What can be pruned of it.
    model : object
        The framework's own object; None if there is none.
    options : mapping
        How it was read, see :func:`read_model`.
    """

    path: Path
    network: Network
    model: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names that the model gives its input."""
        return ()

    def inputs(self, X: NDArray[Any]) -> NDArray[Any]:
        """Return what the network sees of samples of the model."""
        return X

    def labels(self, y: NDArray[Any]) -> NDArray[Any]:
        """Return labels as the network counts them: the numbers of its outputs."""
        return y

    @abstractmethod
    def write(self, network: Network, path: str | os.PathLike[str], sparse: bool = False) -> str:
        """Write the model with other weights, all or nothing.

        Parameters
        ----------
        network : Network
            With the layers of this one.
        path : path-like
        sparse : bool
            Whether weights with many zeros are stored as such.

        Returns
        -------
        str
            Why zeros take their room although they were not to; empty where that is not so.
        """


class NpzFile(ModelFile):
    """Plain arrays."""

    def write(self, network: Network, path: str | os.PathLike[str], sparse: bool = False) -> str:
        """Write the arrays W0, b0, W1, ..., or those of :func:`.save_sparse`."""
        if sparse:
            save_sparse(path, network)
        else:
            to_npz(network, path)
        return ""


class SklearnFile(ModelFile):
    """A pickled estimator."""

    def inputs(self, X: NDArray[Any]) -> NDArray[Any]:
        """Apply the steps of a pipeline that stand before the perceptron."""
        return calibration_inputs(self.model, X)

    def labels(self, y: NDArray[Any]) -> NDArray[Any]:
        """Return the place of each label among the estimator's classes."""
        classes = getattr(self.model, "classes_", None)
        if classes is None:
            return y
        unknown = sorted({str(label) for label in np.setdiff1d(y, classes)})
        if unknown:
            raise ProblemError(
                f"labels must be among the classes {list(map(str, classes))}, but are {unknown[:5]}"
            )
        return np.searchsorted(classes, y)

    def write(self, network: Network, path: str | os.PathLike[str], sparse: bool = False) -> str:
        """Write a fitted estimator, by joblib or pickle as the suffix says."""
        estimator = to_sklearn(self.model, network, sparse=sparse)
        with whole_file(path) as stream:
            if Path(path).suffix == ".joblib":
                import joblib

                joblib.dump(estimator, stream)
            else:
                pickle.dump(estimator, stream)
        return ""


class OnnxFile(ModelFile):
    """An ONNX graph."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """The input that the network was read from."""
        known = {*initial_values(self.model), *self.options.get("constants", ())}
        return tuple(one.name for one in self.model.graph.input if one.name not in known)

    def write(self, network: Network, path: str | os.PathLike[str], sparse: bool = False) -> str:
        """Write the graph with the pruned weights."""
        from .onnx import to_onnx
        from .onnx_write import why_dense

        chosen = {name: self.options.get(name) for name in ("input", "output", "constants")}
        written = to_onnx(self.model, network, path, sparse, **chosen)
        return why_dense(written) if sparse and not written.graph.sparse_initializer else ""


def read_model(path: str | os.PathLike[str], *, trust: bool = False, **options: Any) -> ModelFile:
    """Read a model file.

    Parameters
    ----------
    path : path-like
        Its suffix is the format, see the module's docstring.
    trust : bool
        Whether a file may be read that runs code when it is: that is what pickles do.
    **options
        Of ONNX models: ``input``, ``output``, ``input_shape`` and ``constants``, as
        :func:`.from_onnx`.

    Raises
    ------
    ProblemFileError
        If the file is missing, damaged, or of no format that is read; the message says what to do.
    ProblemError
        If it holds no network that can be pruned.
    SettingsError
        If it must be trusted, and is not.
    MissingDependencyError
        If the package that reads it is not installed.
    """
    path = _checked(Path(path), trust, options)
    try:
        return READERS[path.suffix.lower()](path, options)
    except ProblemError as error:
        raise _named(path, error) from None


def inspect_model(
    path: str | os.PathLike[str], *, trust: bool = False, **options: Any
) -> tuple[Entry, ...]:
    """Return everything in a model file that has weights, also where nothing can be pruned.

    Parameters and errors are those of :func:`read_model`.
    """
    path = _checked(Path(path), trust, options)
    if path.suffix.lower() != ".onnx":
        network = read_model(path, trust=trust).network
        return tuple(
            Entry(layer.name, layer.kind, layer.W.shape, layer.nnz) for layer in network.layers
        )
    from .onnx import inspect_onnx

    try:
        notes = inspect_onnx(path, **options)
    except ProblemError as error:
        raise _named(path, error) from None
    return tuple(
        Entry(one.name, one.operator, tuple(one.shape), one.nnz, one.reason or "") for one in notes
    )


def _named(path: Path, error: ProblemError) -> ProblemError:
    """Return an error whose message names the file."""
    return error if str(path) in str(error) else type(error)(f"{path}: {error}")


def _checked(path: Path, trust: bool, options: Mapping[str, Any]) -> Path:
    """Return the path of a model that can be read, or raise why it cannot."""
    suffix = path.suffix.lower()
    if suffix in REFUSED:
        raise ProblemFileError(f"{path} is not read: {REFUSED[suffix]}")
    if suffix not in READERS:
        raise ProblemFileError(
            f"{path} must be a model file with one of the suffixes {', '.join(READERS)}"
        )
    if not path.exists():
        raise ProblemFileError(f"there is no file {path}")
    if path.is_dir():
        raise ProblemFileError(f"{path} is a folder; a model is a file")
    if path.is_file() and not path.stat().st_size:
        raise ProblemFileError(f"{path} is empty")
    if suffix in PICKLES and not trust:
        raise SettingsError(
            f"{path} is a pickle, and reading one runs any code that it holds: if you know where "
            "it comes from, say so with trust=True (--trust)"
        )
    if options and suffix != ".onnx":
        raise SettingsError(f"{', '.join(options)} can be given for .onnx files, not for {path}")
    return path


def check_target(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Raise if a model file cannot be written under this name: it keeps its format.

    Raises
    ------
    SettingsError
    """
    wanted, suffix = Path(source).suffix.lower(), Path(path).suffix.lower()
    if suffix != wanted and wanted in READERS:
        raise SettingsError(
            f"a model is written back in its own format: the output must end in {wanted}, but was "
            f"{os.fspath(path)}"
        )


def _read_npz(path: Path, options: Mapping[str, Any]) -> ModelFile:
    try:
        with zipfile.ZipFile(path) as archive:
            sparse = "sparse.npy" in archive.namelist()
    except Exception:
        # A damaged archive makes zipfile raise nearly anything; from_npz says what it is.
        sparse = False
    return NpzFile(path, load_sparse(path) if sparse else from_npz(path))


def _read_onnx(path: Path, options: Mapping[str, Any]) -> ModelFile:
    from . import onnx_file
    from .onnx import from_onnx

    model = onnx_file.load(path)
    return OnnxFile(path, from_onnx(model, **options), model, options)


def _read_pickle(path: Path, options: Mapping[str, Any]) -> ModelFile:
    try:
        if path.suffix.lower() == ".joblib":
            import joblib

            estimator = joblib.load(path)
        else:
            with open(path, "rb") as stream:
                estimator = pickle.load(stream)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{path} needs a package to be read: {error}") from None
    except Exception as error:
        # A damaged pickle raises nearly anything.
        raise ProblemFileError(
            f"{path} is not a pickled estimator: {type(error).__name__}: {error}"
        ) from None
    return SklearnFile(path, from_sklearn(estimator), estimator)


#: Suffixes whose reading runs code.
PICKLES = (".joblib", ".pkl")

READERS = {
    ".npz": _read_npz, ".onnx": _read_onnx, ".joblib": _read_pickle, ".pkl": _read_pickle,
}  # fmt: skip
