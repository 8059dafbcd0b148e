"""ONNX: the operators whose weights are pruned, and where a model holds these weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..exceptions import UnsupportedError
from ..network import Conv2d, Dense
from ..network.layers import Layer
from ..network.operations import Shape
from .onnx_file import FLOATS
from .onnx_operations import window_of
from .onnx_record import Layout, Recording
from .onnx_source import root_of

#: Operators that are layers, and which of their inputs may be the weights.
LAYERS = {"Gemm": (1,), "MatMul": (1, 0), "Conv": (1,)}

Index = NDArray[np.intp]


@dataclass(frozen=True)
class Held:
    """Where the weights or the intercept of a layer are: ``factor * constant.ravel()[index]``.

    Attributes
    ----------
    node, slot : int
        The number of the node, and which of its inputs is the constant.
    index : ndarray of int
        Shaped as the weights in the network.
    factor : float
    whole : tuple of int
        The shape of a constant that has room for the intercept, where the given one has not.
    """

    node: int
    slot: int
    index: Index
    factor: float = 1.0
    whole: Shape = ()

    def read(self, constant: NDArray[Any]) -> NDArray[Any]:
        """Return the values in the network, in the dtype of the constant."""
        values = constant.reshape(-1)[self.index]
        return values if self.factor == 1 else (self.factor * values).astype(constant.dtype)

    def write(self, constant: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
        """Return the constant with other values; its shape is kept where they have room in it."""
        raw = values if self.factor == 1 else values.astype(np.float64) / self.factor
        if self.whole:
            return raw.astype(constant.dtype).reshape(self.whole)
        new = np.array(constant)
        new.reshape(-1)[self.index] = raw
        return new


@dataclass(frozen=True)
class FoundLayer:
    """A node as a layer.

    Attributes
    ----------
    layer : Layer
    W, b : Held
    given : tuple of int
        The shape that the layer's input must have.
    tokens : bool
        Whether the input's features are its last axis, and rows of it are positions.
    axis : int
        The axis of the output, in ONNX, that counts the layer's outputs.
    """

    layer: Layer
    W: Held
    b: Held | None
    given: Shape
    tokens: bool
    axis: int


def find_layer(
    recording: Recording, number: int, attributes: Mapping[str, Any]
) -> FoundLayer:  # fmt: skip
    """Return a node of :data:`LAYERS` as a layer.

    Parameters
    ----------
    recording : Recording
    number : int
        Of the node.
    attributes : mapping
        Of the node.

    Raises
    ------
    UnsupportedError
        With the reason why its weights cannot be pruned.
    """
    node = recording.model.graph.node[number]
    slot = next((s for s in LAYERS[node.op_type] if node.input[s] in recording.constants), None)
    if slot is None:
        raise UnsupportedError("its weights are computed from the input")
    A = recording.constants[node.input[slot]]
    root_of(recording, node.input[slot])
    if node.input[slot] in recording.varying:
        raise UnsupportedError("its weights depend on the number of samples")
    if A.dtype not in FLOATS:
        raise UnsupportedError(f"its weights must be float32 or float64, but are {A.dtype}")
    if not np.isfinite(A).all():
        raise UnsupportedError("its weights must be finite")
    layout = recording.layouts.get(node.input[1 - slot])
    if layout is None:
        raise UnsupportedError("its input must have samples along one axis")
    place = _Place(number, slot, A, np.arange(A.size).reshape(A.shape), layout)
    if node.op_type == "Conv":
        return _convolution(place, recording, attributes)
    if node.op_type == "Gemm":
        return _gemm(place, recording, attributes)
    return _product(place)


@dataclass(frozen=True)
class _Place:
    """The constant that holds a node's weights, and the layout of the node's signal."""

    node: int
    slot: int
    A: NDArray[Any]
    index: Index
    layout: Layout

    def held(self, index: Index, factor: float = 1.0) -> Held:
        return Held(self.node, self.slot, np.ascontiguousarray(index), factor)


def _convolution(
    place: _Place, recording: Recording, attributes: Mapping[str, Any]
) -> FoundLayer:  # fmt: skip
    if place.A.ndim not in (3, 4):
        raise UnsupportedError(f"its weights must have 3 or 4 axes, but have {place.A.ndim}")
    if place.layout.axis != 0:
        raise UnsupportedError("samples must be the first axis")
    index = place.index[:, :, None, :] if place.A.ndim == 3 else place.index
    shape = place.layout.shape
    shape = (shape[0], 1, shape[1]) if place.A.ndim == 3 else shape
    window = window_of(attributes, place.A.shape[2:], shape)
    W = place.held(index)
    n_outputs = place.A.shape[0]
    b = _constant_intercept(recording, place.node, 2, (n_outputs,), 0)
    layer = Conv2d(
        W.read(place.A), _values(b, recording), stride=window.stride, padding=window.padding,
        dilation=window.dilation, groups=attributes.get("group", 1),
    )  # fmt: skip
    return FoundLayer(layer, W, b, shape, False, 1)


def _gemm(place: _Place, recording: Recording, attributes: Mapping[str, Any]) -> FoundLayer:
    if attributes.get("transA", 0) or place.layout.axis not in (0, None):
        raise UnsupportedError("its input must not be transposed")
    index = place.index.T if attributes.get("transB", 0) else place.index
    alpha, beta = (float(attributes.get(name, 1.0)) for name in ("alpha", "beta"))
    if alpha == 0:
        raise UnsupportedError("alpha must not be 0")
    W = place.held(index, alpha)
    sizes = (place.layout.sizes[0], index.shape[1])
    b = _constant_intercept(recording, place.node, 2, sizes, 1, beta)
    return _dense(place, W, b, 1, _values(b, recording))


def _product(place: _Place) -> FoundLayer:
    """Return a product of the signal with a matrix on either side."""
    if place.A.ndim != 2:
        raise UnsupportedError(f"its weights must have two axes, but have {place.A.ndim}")
    layout, rank = place.layout, len(place.layout.sizes)
    if place.slot == 1:
        if layout.axis == rank - 1:
            raise UnsupportedError("samples must not be multiplied with")
        return _dense(place, place.held(place.index), None, rank - 1)
    contracted = max(rank - 2, 0)
    if layout.axis == contracted:
        raise UnsupportedError("samples must not be multiplied with")
    size, n_inputs = math.prod(layout.shape), place.A.shape[1]
    if size == n_inputs:
        return _dense(place, place.held(place.index.T), None, contracted)
    if layout.shape[0] != n_inputs or len(layout.shape) != 2:
        raise UnsupportedError("its signal must be a matrix")
    W = place.held(place.index[:, :, None, None])
    return FoundLayer(Conv2d(W.read(place.A)), W, None, (*layout.shape, 1), False, contracted)


def _dense(
    place: _Place, W: Held, b: Held | None, axis: int, values: NDArray[Any] | None = None
) -> FoundLayer:
    """Return a dense layer; of several rows per sample a convolution of 1 x 1."""
    n_inputs, n_rows = W.index.shape[0], math.prod(place.layout.shape) // W.index.shape[0]
    if n_rows == 1:
        return FoundLayer(Dense(W.read(place.A), values), W, b, (n_inputs,), False, axis)
    filters = place.held(W.index.T[:, :, None, None], W.factor)
    layer = Conv2d(filters.read(place.A), values)
    return FoundLayer(layer, filters, b, (n_inputs, n_rows, 1), True, axis)


def _constant_intercept(
    recording: Recording, node: int, slot: int, sizes: Shape, axis: int, factor: float = 1.0
) -> Held | None:
    """Return where an optional input holds the intercept; None if there is none."""
    names = recording.model.graph.node[node].input
    if len(names) <= slot or not names[slot] or factor == 0:
        return None
    found = find_intercept(recording, node, slot, sizes, axis, factor)
    if found is None:
        raise UnsupportedError("its intercept must be a constant, one entry per output")
    return found


def find_intercept(
    recording: Recording, node: int, slot: int, sizes: Shape, axis: int, factor: float = 1.0
) -> Held | None:
    """Return where a constant that is added to a signal holds one entry per output, or None.

    Parameters
    ----------
    recording : Recording
    node, slot : int
    sizes : tuple of int
        Of the signal for one sample.
    axis : int
        Of the signal, that counts the outputs.
    factor : float
        The constant is multiplied by.
    """
    name = recording.model.graph.node[node].input[slot]
    constant = recording.constants.get(name)
    if constant is None or name in recording.varying or constant.ndim > len(sizes):
        return None
    if not np.isfinite(constant).all():
        return None
    full = (1,) * (len(sizes) - constant.ndim) + constant.shape
    n_outputs = sizes[axis]
    whole = tuple(n_outputs if k == axis else 1 for k in range(len(sizes)))
    index = np.arange(constant.size)
    if full == whole:
        return Held(node, slot, index, factor)
    if constant.size != 1:
        return None
    whole = whole[-1:] if axis == len(sizes) - 1 else whole
    return Held(node, slot, np.repeat(index, n_outputs), factor, whole)


def _values(b: Held | None, recording: Recording) -> NDArray[Any] | None:
    if b is None:
        return None
    return b.read(recording.constants[recording.model.graph.node[b.node].input[b.slot]])
