"""ONNX: models as files, read with every check there is, and written all or nothing."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..exceptions import MissingDependencyError, ProblemError, ProblemFileError
from ..problem_file import allowance, whole_file
from .opaque import first_line

#: Bytes of the largest message that protocol buffers can hold.
LARGEST = 2**31 - 1

#: Bytes of a number, at most.
WIDEST = 8

#: Operators whose output may be much larger than what they are given.
EXPANDING = ("ConstantOfShape", "Expand", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample")

#: How many times more memory all signals of a model together may take than a tensor of those.
SIGNALS = 16

#: The types of numbers that layers may have.
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def import_onnx() -> Any:
    """Return the package onnx with what is used of it, or raise MissingDependencyError."""
    try:
        import onnx
        import onnx.checker
        import onnx.numpy_helper
        import onnx.shape_inference
    except ImportError as error:
        raise _missing("onnx", error) from None
    return onnx


def import_runtime() -> Any:
    """Return the package onnxruntime, or raise MissingDependencyError."""
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing("onnxruntime", error) from None
    return onnxruntime


def _missing(name: str, error: ImportError) -> MissingDependencyError:
    return MissingDependencyError(
        f"{name} is not installed ({error}): python -m pip install {name}, or '.[onnx]' in a copy "
        "of the repository"
    )


def load(source: Any) -> Any:
    """Return a model of one's own: parsed, with its external data, and checked.

    Parameters
    ----------
    source : path, bytes or onnx.ModelProto

    Raises
    ------
    ProblemFileError
        If the file is missing, damaged or no model.
    ProblemError
        If a model refers to files that are not loaded, or is none at all.
    """
    onnx = import_onnx()
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
        what = "the model"
    elif isinstance(source, (bytes, bytearray, memoryview)):
        what = "the bytes"
        model = _parsed(bytes(source), what)
    elif isinstance(source, (str, os.PathLike)):
        what = f"the file {os.fspath(source)}"
        model = _read(source, what)
    else:
        raise ProblemError(
            "model must be a path, the bytes of a file, or an onnx.ModelProto, but was "
            f"{type(source).__name__}"
        )
    _check(model, what)
    return model


def _read(path: str | os.PathLike[str], what: str) -> Any:
    """Return the model of a file, with the tensors that it keeps in other files."""
    try:
        with open(path, "rb") as stream:
            content = stream.read()
    except FileNotFoundError:
        raise ProblemFileError(f"there is no file {os.fspath(path)}") from None
    except OSError as error:
        raise ProblemFileError(f"{what} cannot be read: {error.strerror or error}") from None
    model = _parsed(content, what)
    if any(map(_is_external, _tensors(model.graph))):
        try:
            import_onnx().load_external_data_for_model(model, os.path.dirname(os.fspath(path)))
        except Exception as error:
            # Missing files, paths outside the folder, sizes that do not fit.
            raise ProblemFileError(f"{what} has data elsewhere: {first_line(error)}") from None
    return model


def _parsed(content: bytes, what: str) -> Any:
    if not content:
        raise ProblemFileError(f"{what} must hold an ONNX model, but is empty")
    try:
        return import_onnx().load_model_from_string(content)
    except Exception as error:
        # The parser of protocol buffers has exceptions of its own, by implementation.
        raise ProblemFileError(
            f"{what} must hold a whole ONNX model, but cannot be parsed: {first_line(error)}"
        ) from None


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield all tensors of a graph: initializers, also sparse ones, and those of nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _is_external(tensor: Any) -> bool:
    return tensor.data_location == import_onnx().TensorProto.EXTERNAL


def _check(model: Any, what: str) -> None:
    """Raise unless the model is valid, all of it is here, and it fits into memory."""
    if any(map(_is_external, _tensors(model.graph))):
        raise ProblemError(
            f"{what} must hold all of its tensors, but some are in other files: give the path, or "
            "call onnx.load_external_data_for_model"
        )
    if model.ByteSize() > LARGEST:
        raise ProblemError(f"{what} must fit into 2 GB, but has {model.ByteSize()} bytes")
    most = allowance(model.ByteSize())
    for tensor in model.graph.sparse_initializer:
        if WIDEST * math.prod(tensor.dims) > most:
            raise ProblemError(
                f"{what} must fit into memory, but its sparse tensor {tensor.values.name!r} has "
                f"the shape {[*tensor.dims]}"
            )
    try:
        import_onnx().checker.check_model(model)
    except Exception as error:
        raise ProblemFileError(f"{what} is no valid ONNX model: {first_line(error)}") from None


def check_shapes(model: Any) -> None:
    """Raise unless the shapes in a model fit together.

    Not left to onnxruntime: there, and in onnx itself, some attributes that do not fit end the
    process.
    """
    for node in model.graph.node:
        counts = [a.i for a in node.attribute if a.name == "num_outputs"]
        if node.op_type == "Split" and counts not in ([], [len(node.output)]):
            raise ProblemError(
                f"the model's shapes do not fit: a Split into {counts} has {[*node.output]}"
            )
    try:
        infer = import_onnx().shape_inference.infer_shapes
        inferred = infer(model, strict_mode=True, data_prop=True)
    except Exception as error:
        raise ProblemError(f"the model's shapes do not fit: {first_line(error)}") from None
    _check_memory(inferred.graph, allowance(model.ByteSize()))


def _check_memory(graph: Any, most: int) -> None:
    """Raise if tensors are far larger than the model: a few bytes can ask for all memory.

    Parameters
    ----------
    graph : GraphProto
        With the shapes that are known; open sizes are those of a few samples.
    most : int
        Bytes that a tensor may take whose node makes many numbers of a few.
    """
    makers = {name: node.op_type for node in graph.node for name in node.output}
    total = 0
    for place in (*graph.value_info, *graph.output):
        dims = place.type.tensor_type.shape.dim
        size = WIDEST * math.prod(max(1, one.dim_value) for one in dims)
        total += size
        if total > SIGNALS * most or (makers.get(place.name) in EXPANDING and size > most):
            raise ProblemError(
                f"the model must fit into memory, but {place.name!r}, of "
                f"{makers.get(place.name)}, has the shape {[one.dim_value or '?' for one in dims]}"
            )


def check_result(model: Any, original: Any) -> None:
    """Raise unless a written model is as valid as the one it comes from, its shapes included."""
    check = import_onnx().checker.check_model
    try:
        check(model, full_check=True)
    except Exception as error:
        try:
            check(original, full_check=True)
        except Exception:
            # Operators that the inference of shapes does not know were there before.
            check(model)
            return
        raise ProblemError(f"the pruned model would be invalid: {first_line(error)}") from None


def save(model: Any, path: str | os.PathLike[str]) -> None:
    """Write a model to one file, all or nothing.

    Raises
    ------
    ProblemError
        If it is larger than such a file can be.
    OSError
        If the folder is missing or not writable; an existing file is then left as it was.
    """
    size = model.ByteSize()
    if size > LARGEST:
        raise ProblemError(f"the model must fit into one file of 2 GB, but has {size} bytes")
    with whole_file(path) as stream:
        stream.write(model.SerializeToString())


# Tensors -----------------------------------------------------------------------------------------


def values_of(tensor: Any) -> NDArray[Any]:
    """Return a tensor's values; of a sparse one all of them."""
    onnx = import_onnx()
    if isinstance(tensor, onnx.SparseTensorProto):
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.values.data_type)
        dense = np.zeros(tuple(tensor.dims), dtype)
        values, indices = (onnx.numpy_helper.to_array(t) for t in (tensor.values, tensor.indices))
        places = (
            indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), dense.shape)
        )
        dense.reshape(-1)[places] = values
        return dense
    return np.asarray(onnx.numpy_helper.to_array(tensor))


def tensor_of(array: NDArray[Any], name: str) -> Any:
    """Return an array as a tensor of this name."""
    return import_onnx().numpy_helper.from_array(np.ascontiguousarray(array), name)


def sparse_tensor_of(array: NDArray[Any], name: str) -> Any:
    """Return an array as a sparse tensor: its nonzeros and their places in C order."""
    places = np.flatnonzero(array).astype(np.int64)
    onnx = import_onnx()
    return onnx.helper.make_sparse_tensor(
        tensor_of(array.reshape(-1)[places], name), tensor_of(places, ""), array.shape
    )


# Running -----------------------------------------------------------------------------------------


def session(content: bytes) -> Any:
    """Return a model ready to run, on one thread and without a word.

    Raises
    ------
    ProblemError
        With the first line of what onnxruntime says.
    """
    runtime = import_runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # Every node as it stands, so that every signal can be looked at.
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with translated():
        return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn whatever onnxruntime raises into a ProblemError."""
    try:
        yield
    except Exception as error:
        # Its exceptions have no common class but Exception.
        raise ProblemError(f"onnxruntime says: {first_line(error)}") from None
