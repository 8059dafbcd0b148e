"""ONNX: operators without weights to prune, as operations of a network.

One table, :data:`READERS`. A reader that meets what a network does not have raises, and the node is
evaluated by onnxruntime instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..activations import ELU, GELU, ClippedReLU, HardSigmoid, LeakyReLU, PReLU
from ..exceptions import UnsupportedError
from ..network import (
    Activate,
    Affine,
    AveragePool2d,
    BatchNorm,
    Dropout,
    Flatten,
    GlobalAveragePool,
    MaxPool2d,
    Operation,
    Reshape,
    Softmax,
    Transpose,
    Window,
    same_padding,
)
from ..network.operations import Shape
from .onnx_record import Layout

#: Which form of a signal an operation takes: any; one whose entries stand in ONNX's order; one with
#: its channels first; that of an image, a 1-d one with height 1; ONNX's own.
Form = Literal["any", "ordered", "channels", "image", "plain"]


@dataclass(frozen=True)
class Call:
    """A node that takes one signal.

    Attributes
    ----------
    attributes : mapping
    constants : list of ndarray or None
        By the place of the input; None where it is the signal, missing, or not constant.
    given : tuple of bool
        Which inputs there are.
    opset : int
    shape : tuple of int
        Of one sample, in the form that the operation takes.
    layout, result : Layout
        Of the signal and of the output in ONNX.
    """

    attributes: Mapping[str, Any]
    constants: list[NDArray[Any] | None]
    given: tuple[bool, ...]
    opset: int
    shape: Shape
    layout: Layout
    result: Layout

    def value(self, slot: int, name: str, default: Any) -> Any:
        """Return a parameter that newer versions take as an input and older as an attribute."""
        if slot < len(self.given) and self.given[slot]:
            return self.constant(slot)
        return self.attributes.get(name, default)

    def constant(self, slot: int) -> NDArray[Any]:
        """Return a constant input, or raise."""
        found = self.constants[slot] if slot < len(self.constants) else None
        if found is None:
            raise UnsupportedError(f"its input {slot} must be a constant")
        return found


def sample_axis(axis: int, layout: Layout) -> int:
    """Return the axis of a sample that is one of a tensor, or raise if it counts the samples."""
    axis = axis + len(layout.sizes) if axis < 0 else axis
    if axis == layout.axis or not 0 <= axis < len(layout.sizes):
        raise UnsupportedError(f"axis {axis} must be one of a sample")
    dropped = len(layout.shape) < len(layout.sizes)
    return axis - (dropped and layout.axis is not None and axis > layout.axis)


def sample_constant(constant: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """Return a constant that is broadcast against a tensor without the axis of the samples."""
    missing = len(layout.sizes) - constant.ndim
    if missing < 0 or np.broadcast_shapes(constant.shape, layout.sizes) != layout.sizes:
        raise UnsupportedError("a constant must be broadcast to the shape of its signal")
    full = constant.reshape((1,) * missing + constant.shape)
    if layout.axis is None:
        return full
    if full.shape[layout.axis] != 1:
        raise UnsupportedError("a constant must be the same for all samples")
    return full if len(layout.shape) == len(layout.sizes) else full.squeeze(layout.axis)


# Activations -------------------------------------------------------------------------------------


def _fixed(name: str) -> Callable[[Call], Operation]:
    return lambda call: Activate(name)


def _leaky_relu(call: Call) -> Operation:
    slope = float(call.attributes.get("alpha", 0.01))
    return Activate("relu" if slope == 0 else LeakyReLU(slope))


def _prelu(call: Call) -> Operation:
    slopes = sample_constant(call.constant(1), call.layout)
    if slopes.size == 1:
        return Activate(PReLU(slopes.item()))
    if slopes.size != call.layout.shape[0] or slopes.shape[0] != slopes.size:
        raise UnsupportedError("slopes must be one number, or one per channel")
    return Activate(PReLU(slopes.ravel()))


def _clip(call: Call) -> Operation:
    low, high = (float(call.value(slot, name, default)) for slot, name, default in
                 ((1, "min", -math.inf), (2, "max", math.inf)))  # fmt: skip
    # The attribute's default in old versions is the largest number there is.
    high = math.inf if high >= np.finfo(np.float32).max else high
    if (low, high) == (-1, 1):
        return Activate("hard_tanh")
    if low != 0:
        raise UnsupportedError(f"values must be clipped to [0, c] or [-1, 1], not {low}, {high}")
    if high == math.inf:
        return Activate("relu")
    return Activate("relu6" if high == 6 else ClippedReLU(high))


def _hard_sigmoid(call: Call) -> Operation:
    slope, offset = call.attributes.get("alpha", 0.2), call.attributes.get("beta", 0.5)
    return Activate(HardSigmoid(slope, offset))


def _elu(call: Call) -> Operation:
    return Activate(ELU(call.attributes.get("alpha", 1.0)))


def _gelu(call: Call) -> Operation:
    return Activate(GELU(call.attributes.get("approximate", b"none") == b"tanh"))


def _softmax(call: Call, log: bool) -> Operation:
    rank = len(call.layout.sizes)
    axis = int(call.attributes.get("axis", -1 if call.opset >= 13 else 1))
    axis = axis + rank if axis < 0 else axis
    if call.opset < 13 and math.prod(call.layout.sizes[axis + 1 :]) != 1:
        raise UnsupportedError("softmax over several axes")
    return Softmax(sample_axis(axis, call.layout), log)


# Normalisation -----------------------------------------------------------------------------------


def _batch_norm(call: Call) -> Operation:
    modes = {"training_mode": 0, "spatial": 1}
    if any(call.attributes.get(name, want) != want for name, want in modes.items()):
        raise UnsupportedError("it must normalise channels with its running statistics")
    if call.layout.axis != 0 or len(call.layout.sizes) < 2:
        raise UnsupportedError("samples must be the first axis, and channels the second")
    scale, shift, mean, variance = (call.constant(slot) for slot in range(1, 5))
    return BatchNorm(scale, shift, mean, variance, eps=call.attributes.get("epsilon", 1e-5))


def arithmetic(sign: str, constant: NDArray[Any], call: Call, first: bool) -> Operation:
    """Return the operation of a signal and a constant; `first`: the signal stands before it."""
    if call.result.sizes != call.layout.sizes or "broadcast" in call.attributes:
        raise UnsupportedError("a constant must be broadcast to the shape of its signal")
    c = sample_constant(constant, call.layout)
    if sign == "Add":
        return Affine(1.0, c)
    if sign == "Mul":
        return Affine(c)
    if sign == "Sub":
        return Affine(1.0, -c) if first else Affine(-1.0, c)
    if not first:
        raise UnsupportedError("a constant cannot be divided by a signal")
    with np.errstate(divide="ignore"):
        return Affine(1.0 / c)


# Pooling -----------------------------------------------------------------------------------------


def window_of(attributes: Mapping[str, Any], kernel: Shape, shape: Shape) -> Window:
    """Return the geometry of a convolution or pooling of images; of 1-d ones with height 1."""
    n = len(kernel)
    strides, dilations = (
        tuple(attributes.get(name, (1,) * n)) for name in ("strides", "dilations")
    )
    pads = tuple(attributes.get("pads", (0,) * 2 * n))
    if n == 1:
        kernel, strides, dilations = (1, *kernel), (1, *strides), (1, *dilations)
        pads = (0, pads[0], 0, pads[1])
    auto = attributes.get("auto_pad", b"NOTSET")
    if auto == b"VALID":
        pads = (0, 0, 0, 0)
    elif auto in (b"SAME_UPPER", b"SAME_LOWER"):
        size = (shape[1], shape[2])
        pads = same_padding(size, kernel, strides, dilations, upper=auto == b"SAME_UPPER")
    if len(kernel) != 2 or len(pads) != 4 or min(pads) < 0:
        raise UnsupportedError("windows must be 1-d or 2-d, with padding of 0 or more")
    return Window(kernel, strides, pads, dilations)


def _pool(call: Call, kind: type[MaxPool2d | AveragePool2d]) -> Operation:
    attributes = call.attributes
    window = window_of(attributes, tuple(attributes["kernel_shape"]), call.shape)
    counted = bool(attributes.get("count_include_pad", 0))
    padding = window.padding
    if attributes.get("ceil_mode", 0):
        padding = _rounded_up(window, call)
        if counted and padding != window.padding:
            raise UnsupportedError("ceil_mode with count_include_pad")
    if kind is AveragePool2d:
        return AveragePool2d(window.kernel, window.stride, padding, window.dilation, counted)
    return MaxPool2d(window.kernel, window.stride, padding, window.dilation)


def _rounded_up(window: Window, call: Call) -> tuple[int, int, int, int]:
    """Return padding for which rounding down gives the size that rounding up would."""
    top, left, bottom, right = window.padding
    places = call.result.sizes[2:]
    places = (1, *places) if len(places) == 1 else places
    more = [
        max(0, (count - 1) * step + extent - size)
        for count, step, extent, size in zip(
            places, window.stride, window.extent,
            window.padded_size((call.shape[1], call.shape[2])), strict=True,
        )
    ]  # fmt: skip
    return top, left, bottom + more[0], right + more[1]


def _global_pool(call: Call) -> Operation:
    return GlobalAveragePool(keep_dims=True)


def _mean(call: Call) -> Operation:
    """Return a mean over height and width."""
    axes = np.ravel(call.value(1, "axes", ()))
    rank = len(call.layout.sizes)
    found = sorted(int(axis) % rank for axis in axes)
    if rank != 4 or call.layout.axis != 0 or found != [2, 3]:
        raise UnsupportedError("means are over height and width of images")
    return GlobalAveragePool(keep_dims=bool(call.attributes.get("keepdims", 1)))


# Shapes ------------------------------------------------------------------------------------------


def reshaped(new: Shape) -> Operation:
    """Return the operation that gives samples another shape."""
    return Flatten() if len(new) == 1 else Reshape(new)


def _reshape(call: Call) -> Operation:
    for layout in (call.layout, call.result):
        if layout.axis is not None and math.prod(layout.sizes[: layout.axis]) != 1:
            raise UnsupportedError("samples must be the first axis")
    return reshaped(call.result.shape)


def _transpose(call: Call) -> Operation:
    source, result = call.layout, call.result
    rank = len(source.sizes)
    order = list(call.attributes.get("perm", range(rank)[::-1]))
    kept = None if source.axis is None else order.index(source.axis)
    if kept == result.axis and len(source.shape) == len(result.shape):
        if source.axis is None or len(source.shape) == rank:
            return Transpose(order)
        return Transpose([sample_axis(axis, source) for axis in order if axis != source.axis])
    long = [axis for axis in order if source.sizes[axis] > 1]
    if long != sorted(long):
        raise UnsupportedError("axes of samples must stay in their place")
    return _reshape(call)


def _unchanged(call: Call) -> Operation:
    if call.attributes.get("training_mode") or call.layout.sizes != call.result.sizes:
        raise UnsupportedError("it changes its input")
    return Dropout()


def _dropout(call: Call) -> Operation:
    training = call.value(2, "training_mode", 0)
    if np.any(training):
        raise UnsupportedError("dropout must rest")
    return Dropout()


@dataclass(frozen=True)
class Reader:
    """How an operator becomes an operation, and the form of the signal that it takes."""

    build: Callable[[Call], Operation]
    form: Form = "plain"


#: By operator; all of the standard domain.
READERS: dict[str, Reader] = {
    "Relu": Reader(_fixed("relu"), "any"),
    "Sigmoid": Reader(_fixed("sigmoid"), "any"),
    "Tanh": Reader(_fixed("tanh"), "any"),
    "Softplus": Reader(_fixed("softplus"), "any"),
    "LeakyRelu": Reader(_leaky_relu, "any"),
    "Clip": Reader(_clip, "any"),
    "HardSigmoid": Reader(_hard_sigmoid, "any"),
    "Elu": Reader(_elu, "any"),
    "Gelu": Reader(_gelu, "any"),
    "Identity": Reader(_unchanged, "any"),
    "Cast": Reader(_unchanged, "any"),
    "Dropout": Reader(_dropout, "any"),
    "PRelu": Reader(_prelu, "channels"),
    "Softmax": Reader(lambda call: _softmax(call, False)),
    "LogSoftmax": Reader(lambda call: _softmax(call, True)),
    "BatchNormalization": Reader(_batch_norm, "channels"),
    "MaxPool": Reader(lambda call: _pool(call, MaxPool2d), "image"),
    "AveragePool": Reader(lambda call: _pool(call, AveragePool2d), "image"),
    "GlobalAveragePool": Reader(_global_pool, "image"),
    "ReduceMean": Reader(_mean),
    "Flatten": Reader(_reshape, "ordered"),
    "Reshape": Reader(_reshape, "ordered"),
    "Squeeze": Reader(_reshape, "ordered"),
    "Unsqueeze": Reader(_reshape, "ordered"),
    "Transpose": Reader(_transpose),
}

#: Operators of a signal and a constant.
ARITHMETIC = ("Add", "Sub", "Mul", "Div")
