"""ONNX: models of any framework, read and written back as the same model with other weights.

Three lines prune a file::

    network = from_onnx("model.onnx")
    result = prune_network(network, X, tolerance=0.1)
    to_onnx("model.onnx", result.network, "pruned.onnx")

Layers are Gemm, MatMul and Conv with constant weights. Everything else stays as it is: what a
:class:`.Network` does not have is evaluated node by node with onnxruntime. The packages onnx and
onnxruntime are imported when a function is called.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..checks import check_flag
from ..exceptions import ProblemError
from ..network import Network
from ..network.gathering import joined_shapes
from ..network.graph import check_network
from . import onnx_file
from .onnx_graph import LayerNote, Traced, trace
from .onnx_input import given_values, inputs_of
from .onnx_record import Recording, record
from .onnx_write import make_sparse, written
from .round_trip import NOT_FINITE, agreement, difference

__all__ = ["LayerNote", "from_onnx", "inspect_onnx", "to_onnx"]


def from_onnx(
    model: Any,
    *,
    input: str | None = None,
    output: str | None = None,
    input_shape: Iterable[Any] | None = None,
    constants: Mapping[str, Any] | None = None,
) -> Network:
    """Return the network that a model computes.

    Parameters
    ----------
    model : path, bytes or onnx.ModelProto
        It is not changed. Tensors in files beside a path are read, too.
    input : str, optional
        The only input that `constants` do not have, to be sure.
    output : str, optional
        Of a model with several. What it does not depend on is left out.
    input_shape : tuple of int, or sequence of such, optional
        The shape of one sample, without the samples, where the model leaves it open; for several
        inputs that of each, in the model's order.
    constants : mapping of str to array_like, optional
        The values of inputs that stay the same for all samples.

    Returns
    -------
    Network
        Operations have the names of their nodes, or of what a node without name computes. A layer
        has the intercept that the node Add behind it adds. Models whose batch has a fixed size of
        1, and those without an axis for samples, become networks that take any number of samples.
        With several inputs that are no `constants` it takes them joined, in the model's order, see
        :func:`.join_inputs`.

    Raises
    ------
    ProblemFileError
        If the file is missing, damaged or no model.
    ProblemError
        If the model cannot be run, mixes samples, has several outputs without a choice, control
        flow, or no layer that can be pruned; the message names the operators.
    MissingDependencyError
        If onnx or onnxruntime is not installed.

    See Also
    --------
    inspect_onnx : which layers can be pruned, and why others cannot

    Examples
    --------
    >>> import numpy as np, onnx.parser
    >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
    ...     net (float[N, 2] x) => (float[N, 2] y)
    ...     <float[2, 2] W = {1, 0, -1, 2}> { z = MatMul(x, W)  y = Relu(z) }''')
    >>> network = from_onnx(model)
    >>> network(np.array([[1.0, 2.0]]))
    array([[0., 4.]])
    """
    traced = _traced(model, input, output, input_shape, constants)
    if not traced.network.layers:
        _refuse(traced)
    _check_outputs(traced.recording, traced.network)
    return traced.network


def to_onnx(
    model: Any,
    network: Network,
    path: str | os.PathLike[str] | None = None,
    sparse: bool = False,
    *,
    input: str | None = None,
    output: str | None = None,
    constants: Mapping[str, Any] | None = None,
) -> Any:
    """Return a model with the weights of a pruned network, and write it to a file.

    Parameters
    ----------
    model : path, bytes or onnx.ModelProto
        The one that the network was read from; it is not changed.
    network : Network
        With layers of the same names and shapes, its batch normalisations folded or not.
    path : path, optional
        Where to write, all or nothing.
    sparse : bool
        Store weights as their nonzeros (``sparse_initializer``) where that is smaller and the
        model's version allows it: from IR version 6 on, for initializers that are no inputs.
        Otherwise the file is as large as before, since zeros take the room of other numbers.
    input, output, constants
        As :func:`from_onnx`.

    Returns
    -------
    onnx.ModelProto
        With the same nodes, inputs, outputs and versions; tensors that did not change have the same
        bytes. Where several nodes share weights that now differ, each gets its own.

    Raises
    ------
    ProblemError
        If names or shapes differ, the result is not valid, or does not compute what the network
        does. Then nothing is written.
    OSError
        If the folder is missing or not writable; an existing file is then left as it was.
    """
    check_flag("sparse", sparse)
    check_network(network)
    onnx_file.import_runtime()
    loaded = onnx_file.load(model)
    shape = _input_shape(loaded, network, input, constants)
    traced = trace(record(loaded, input, output, shape, constants))
    result = written(traced, network)
    # Before tensors become sparse: the inference of shapes does not know those.
    onnx_file.check_result(result, traced.recording.model)
    if sparse:
        make_sparse(traced, result)
    _check_outputs(record(result, input, output, shape, constants), network)
    if path is not None:
        onnx_file.save(result, path)
    return result


def inspect_onnx(
    model: Any,
    *,
    input: str | None = None,
    output: str | None = None,
    input_shape: Iterable[Any] | None = None,
    constants: Mapping[str, Any] | None = None,
) -> list[LayerNote]:
    """Return what can be pruned of a model, and why other weights cannot.

    Parameters
    ----------
    model, input, output, input_shape, constants
        As :func:`from_onnx`.

    Returns
    -------
    list of LayerNote
        A line per node with weights: layers, and others that hold a matrix or more.

    Raises
    ------
    ProblemError
        As :func:`from_onnx`, but not for a model without layers.
    """
    return _traced(model, input, output, input_shape, constants).notes


def _traced(
    model: Any, input: str | None, output: str | None, input_shape: Any, constants: Any
) -> Traced:
    onnx_file.import_runtime()
    return trace(record(onnx_file.load(model), input, output, input_shape, constants))


def _input_shape(model: Any, network: Network, input: str | None, constants: Any) -> Any:
    """Return the shape of a sample of a network's input, or of each of several."""
    shapes = joined_shapes(network.operations) or (network.input_shape,)
    names = [one.name for one in inputs_of(model, input, given_values(model, constants))]
    if len(names) != len(shapes):
        raise ProblemError(
            f"network must be the one of this model, whose inputs are {names}, but takes "
            f"{len(shapes)}"
        )
    return network.input_shape if len(shapes) == 1 else shapes


def _refuse(traced: Traced) -> None:
    """Raise the error of a model without layers that can be pruned."""
    reasons = [f"{one.operator} {one.name!r}: {one.reason}" for one in traced.notes]
    operators = sorted({node.op_type for node in traced.recording.model.graph.node})
    raise ProblemError(
        "the model must have a Gemm, MatMul or Conv with constant weights, but its operators are "
        f"{', '.join(operators)}{' (' + '; '.join(reasons) + ')' if reasons else ''}"
    )


def _check_outputs(recording: Recording, network: Network) -> None:
    """Raise unless a model computes what a network does, on random samples."""
    with np.errstate(all="ignore"):
        expected = network(recording.X)
    if recording.Y.dtype.kind == "f" and not np.isfinite(recording.Y).any():
        raise ProblemError(f"the model must give finite outputs {NOT_FINITE}")
    apart, scale = difference(recording.Y, expected)
    if not apart <= max(recording.agreement, agreement([network.dtype])) * scale:
        raise ProblemError(
            f"the model must compute what the network does, but on random samples the outputs "
            f"differ by {apart:.3g} of {scale:.3g}: the network is another one's"
        )
