r"""Gradients of a function of a network's output with respect to its weights.

The walk through the network is taken backwards: an operation that gave y from x passes the gradient
with respect to y on as that with respect to x, its Jacobian transposed times it. Clipped lines such
as ReLU have exact slopes; other activations are differentiated numerically, to about 1e-9.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..activations import ClippedReLU, HardSigmoid, HardTanh, Identity, ReLU, ReLU6
from ..exceptions import UnsupportedError
from .gathering import Concatenate, Embedding, Part
from .graph import Network, Step
from .layers import Conv2d, Dense, Layer
from .operations import (
    Activate,
    Add,
    Dropout,
    Flatten,
    Operation,
    Reshape,
    Softmax,
    Transpose,
)
from .pooling import AveragePool2d, GlobalAveragePool, MaxPool2d
from .scaling import Affine, BatchNorm
from .windows import Window

Array = NDArray[Any]

#: Half the step of a numerical derivative, relative to the larger of 1 and the number.
STEP = 1e-5

#: Activations that are a line, clipped at the ends of their range: their slope is exact.
CLIPPED_LINES = (ClippedReLU, HardSigmoid, HardTanh, Identity, ReLU, ReLU6)

#: Operations whose gradient is known.
KNOWN = (
    Activate, Add, Affine, AveragePool2d, BatchNorm, Concatenate, Conv2d, Dense, Dropout, Embedding,
    Flatten, GlobalAveragePool, MaxPool2d, Part, Reshape, Softmax, Transpose,
)  # fmt: skip


def check_differentiable(network: Network, names: Container[str], end: str) -> None:
    """Raise UnsupportedError if the output cannot be differentiated with respect to some layers.

    Parameters
    ----------
    network : Network
    names : container of str
        The layers.
    end : str
        The operation that gives the output.
    """
    for op in _path(network, names, end):
        if op.name not in names and not isinstance(op, KNOWN):
            raise UnsupportedError(
                f"{op.label} has no gradient that is known here, so that layers before it cannot "
                "be fitted to the network's output: skip them, or leave the fit out"
            )


def weight_gradients(
    network: Network, steps: Sequence[Step], gradient: Array, names: Container[str]
) -> dict[str, tuple[Array, Array]]:
    """Return the gradients with respect to the weights and intercepts of layers.

    Parameters
    ----------
    network : Network
    steps : sequence of Step
        What :meth:`.Network.signals` yielded for a batch; the last one gives the output.
    gradient : ndarray of shape (n_samples, ...)
        With respect to that output.
    names : container of str
        The layers.

    Returns
    -------
    dict of str to (ndarray, ndarray)
        Of the shapes of W and of (n_outputs,), summed over the samples.
    """
    end = steps[-1][0].name
    path = {op.name for op in _path(network, names, end)}
    waiting = {end: gradient}
    found = {}
    for op, inputs, output in reversed(steps):
        if op.name not in path:
            continue
        above = waiting.pop(op.name)
        if isinstance(op, Layer) and op.name in names:
            found[op.name] = _of_weights(op, inputs[0], above)
        sources = [source in path for source in op.inputs]
        if not any(sources):
            continue
        for source, below in zip(op.inputs, pull_back(op, inputs, output, above), strict=True):
            if source in path:
                waiting[source] = waiting[source] + below if source in waiting else below
    return found


def _path(network: Network, names: Container[str], end: str) -> list[Operation]:
    """Return the operations from some layers to the end, in order."""
    wanted, found = network.ancestors(end) | {end}, []
    reached: set[str] = set()
    for op in network.operations:
        if op.name in wanted and (op.name in names or not reached.isdisjoint(op.inputs)):
            reached.add(op.name)
            found.append(op)
    return found


def pull_back(
    op: Operation, inputs: Sequence[Array], output: Array, gradient: Array
) -> tuple[Array, ...]:
    """Return the gradients with respect to the inputs of an operation from that of its output."""
    X = inputs[0]
    if isinstance(op, Dense):
        return (gradient @ op.W.T,)
    if isinstance(op, Conv2d):
        return (_onto_images(op, X, gradient),)
    if isinstance(op, Activate):
        return (gradient * slope(op, X),)
    if isinstance(op, Dropout):
        return (gradient,)
    if isinstance(op, (Flatten, Reshape)):
        return (gradient.reshape(X.shape),)
    if isinstance(op, Transpose):
        return (gradient.transpose(0, *(np.argsort(op.axes) + 1)),)
    if isinstance(op, Add):
        return (gradient,) * len(inputs)
    if isinstance(op, Concatenate):
        axis = op.axis if op.axis < 0 else op.axis + 1
        ends = np.cumsum([one.shape[axis] for one in inputs])[:-1]
        return tuple(np.split(gradient, ends, axis=axis))
    if isinstance(op, Affine):
        return (gradient * op.scale,)
    if isinstance(op, BatchNorm):
        return (gradient * op.factors()[0].reshape(-1, *[1] * (X.ndim - 2)),)
    if isinstance(op, Softmax):
        return (_through_softmax(op, output, gradient),)
    if isinstance(op, GlobalAveragePool):
        each = gradient.reshape(*X.shape[:2], 1, 1) / (X.shape[2] * X.shape[3])
        return (np.broadcast_to(each, X.shape),)
    if isinstance(op, AveragePool2d):
        return (_through_means(op, X, gradient),)
    if isinstance(op, MaxPool2d):
        return (_through_maxima(op, X, output, gradient),)
    # Numbers of rows of a table, and parts of the input, have nothing before them to be fitted.
    return tuple(np.zeros_like(one) for one in inputs)


def slope(op: Activate, signal: Array) -> Array:
    """Return the derivative of an activation, in the dtype of the signal.

    Exact for ReLU and its relatives; by central differences in float64 for all others.
    """
    function = op.function
    if isinstance(function, CLIPPED_LINES):
        least, greatest = function.range
        Z = function.slope * signal + function.offset
        inside = ((Z > least) & (Z < greatest)).astype(signal.dtype)
        return inside * signal.dtype.type(function.slope)
    Z = signal.astype(np.float64)
    step = STEP * np.maximum(1.0, np.abs(Z))
    ends = [op.apply(Z + step), op.apply(Z - step)]
    return np.asarray((ends[0] - ends[1]) / (2.0 * step)).astype(signal.dtype, copy=False)


def _of_weights(layer: Layer, X: Array, gradient: Array) -> tuple[Array, Array]:
    """Return the gradients with respect to W and b of a layer."""
    if isinstance(layer, Dense):
        return X.T @ gradient, gradient.sum(axis=0)
    assert isinstance(layer, Conv2d)
    window, groups = layer.window, layer.groups
    padded = window.pad(X)
    found = np.empty(layer.W.shape)
    above = np.split(gradient, groups, axis=1)
    for i, j in np.ndindex(*window.kernel):
        seen = np.split(padded[_tap(window, gradient.shape, i, j)], groups, axis=1)
        parts = [
            np.tensordot(g, x, axes=([0, 2, 3], [0, 2, 3]))
            for g, x in zip(above, seen, strict=True)
        ]
        found[:, :, i, j] = np.concatenate(parts)
    return found, gradient.sum(axis=(0, 2, 3))


def _onto_images(layer: Conv2d, images: Array, gradient: Array) -> Array:
    """Return the gradient with respect to the images that a convolution took."""
    window, groups = layer.window, layer.groups
    filters, above = np.split(layer.W, groups), np.split(gradient, groups, axis=1)

    def piece(i: int, j: int) -> Array:
        parts = [
            np.einsum("nfyx,fc->ncyx", g, W[:, :, i, j], optimize=True)
            for g, W in zip(above, filters, strict=True)
        ]
        return np.concatenate(parts, axis=1)

    return _scattered(window, images, gradient.shape, piece)


def _through_means(op: AveragePool2d, images: Array, gradient: Array) -> Array:
    if op.count_include_pad:
        share = gradient / (op.window.kernel[0] * op.window.kernel[1])
    else:
        share = gradient / op.window.counts((images.shape[2], images.shape[3]))
    return _scattered(op.window, images, gradient.shape, lambda i, j: share)


def _through_maxima(op: MaxPool2d, images: Array, output: Array, gradient: Array) -> Array:
    """Return the gradient with respect to the first of the largest pixels of every window."""
    padded, free = op.window.pad(images, -np.inf), np.ones(gradient.shape, dtype=bool)

    def piece(i: int, j: int) -> Array:
        chosen = free & (padded[_tap(op.window, gradient.shape, i, j)] == output)
        free[chosen] = False
        return gradient * chosen

    return _scattered(op.window, images, gradient.shape, piece)


def _through_softmax(op: Softmax, output: Array, gradient: Array) -> Array:
    axis = op.axis if op.axis < 0 else op.axis + 1
    if op.log:
        return np.asarray(gradient - np.exp(output) * gradient.sum(axis=axis, keepdims=True))
    return np.asarray(output * (gradient - (output * gradient).sum(axis=axis, keepdims=True)))


def _scattered(window: Window, images: Array, shape: tuple[int, ...], piece: Any) -> Array:
    """Return the sum of what each tap of the kernel gives back to the pixels that it saw."""
    top, left, _, _ = window.padding
    height, width = images.shape[2:]
    size = window.padded_size((height, width))
    padded = np.zeros((*images.shape[:2], *size), dtype=images.dtype)
    for i, j in np.ndindex(*window.kernel):
        padded[_tap(window, shape, i, j)] += piece(i, j)
    return padded[:, :, top : top + height, left : left + width]


def _tap(window: Window, shape: tuple[int, ...], i: int, j: int) -> tuple[Any, ...]:
    """Return where in padded images all windows have the entry (i, j) of the kernel."""
    ends = []
    for place, gap, step, count in zip(
        (i, j), window.dilation, window.stride, shape[2:], strict=True
    ):
        first = place * gap
        ends.append(slice(first, first + (count - 1) * step + 1, step))
    return (slice(None), slice(None), *ends)
