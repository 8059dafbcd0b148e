"""A network whose weights change often: evaluated and differentiated in place, in one precision.

A :class:`.Network` checks and copies its weights whenever they change, which is right for a handful
of changes and too slow for thousands. Here the weights are plain arrays that may be written to, the
order of evaluation is fixed once, and the patches of a convolution are kept for the way back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .adjoint import check_differentiable, pull_back
from .graph import Network
from .layers import Conv2d, Dense, Layer
from .operations import Operation
from .wiring import INPUT

Array = NDArray[Any]


@dataclass
class Tape:
    """What one evaluation leaves for the way back.

    Attributes
    ----------
    signals : dict of str to ndarray
        The output of every operation, and the input.
    patches : dict of str to ndarray
        Of convolutions, shape (n_samples, groups, taps, positions).
    """

    signals: dict[str, Array]
    patches: dict[str, Array] = field(default_factory=dict)


class Trainable:
    """The part of a network up to one operation, with weights that may be changed in place.

    Parameters
    ----------
    network : Network
    end : str
        The operation whose output is wanted.
    names : iterable of str
        Layers whose gradients are wanted.
    dtype : dtype
        Of all computation.

    Attributes
    ----------
    W, b : dict of str to ndarray
        Of every layer up to the end, copies; b of a layer without intercept is missing.

    Raises
    ------
    UnsupportedError
        See :func:`.check_differentiable`.
    """

    def __init__(
        self, network: Network, end: str, names: Iterable[str] = (), dtype: DTypeLike = np.float32
    ) -> None:
        self.end, self.names, self.dtype = end, frozenset(names), np.dtype(dtype)
        if self.names:
            check_differentiable(network, self.names, end)
        wanted = network.ancestors(end) | {end}
        self.operations = [op for op in network.operations if op.name in wanted]
        layers = [op for op in self.operations if isinstance(op, Layer)]
        self.W = {op.name: op.W.astype(dtype) for op in layers}
        self.b = {op.name: op.b.astype(dtype) for op in layers if op.b is not None}
        # Operations that a wanted gradient passes through, and those with one before them.
        self._path: set[str] = set()
        for op in self.operations:
            if op.name in self.names or not self._path.isdisjoint(op.inputs):
                self._path.add(op.name)

    def forward(self, X: Array) -> Tape:
        """Evaluate samples of shape (n_samples, ...), in the dtype; all at once."""
        tape = Tape({INPUT: X})
        for op in self.operations:
            inputs = [tape.signals[source] for source in op.inputs]
            tape.signals[op.name] = self._apply(op, inputs, tape)
        return tape

    def __call__(self, X: Array, batch_size: int) -> Array:
        """Return the output for many samples, batch by batch."""
        parts = [
            self.forward(X[first : first + batch_size]).signals[self.end]
            for first in range(0, len(X), batch_size)
        ]
        return np.concatenate(parts)

    def backward(self, tape: Tape, gradient: Array) -> dict[str, tuple[Array, Array]]:
        """Return the gradients with respect to W and b of the layers asked for.

        Parameters
        ----------
        tape : Tape
        gradient : ndarray
            With respect to the output.

        Returns
        -------
        dict of str to (ndarray, ndarray)
            Summed over the samples; of the shapes of W and of (n_outputs,).
        """
        waiting, found = {self.end: gradient}, {}
        for op in reversed(self.operations):
            if op.name not in self._path or op.name not in waiting:
                continue
            above = waiting.pop(op.name)
            inputs = [tape.signals[source] for source in op.inputs]
            if op.name in self.names:
                found[op.name] = self._of_weights(op, inputs[0], above, tape)
            if self._path.isdisjoint(op.inputs):
                continue
            for source, below in zip(op.inputs, self._below(op, inputs, above, tape), strict=True):
                if source in self._path:
                    waiting[source] = waiting[source] + below if source in waiting else below
        return found

    # One operation ----------------------------------------------------------------------------

    def _apply(self, op: Operation, inputs: list[Array], tape: Tape) -> Array:
        if isinstance(op, Dense):
            Z = inputs[0] @ self.W[op.name]
            if op.name in self.b:
                Z += self.b[op.name]
            return Z
        if isinstance(op, Conv2d):
            return self._convolve(op, inputs[0], tape)
        output = op.apply(*inputs)
        return output if output.dtype == self.dtype else output.astype(self.dtype)

    def _below(
        self, op: Operation, inputs: list[Array], above: Array, tape: Tape
    ) -> tuple[Array, ...]:
        if isinstance(op, Dense):
            return (above @ self.W[op.name].T,)
        if isinstance(op, Conv2d):
            return (self._onto_images(op, inputs[0], above),)
        found = pull_back(op, inputs, tape.signals[op.name], above)
        return tuple(one.astype(self.dtype, copy=False) for one in found)

    def _of_weights(self, op: Operation, X: Array, above: Array, tape: Tape) -> tuple[Array, Array]:
        if isinstance(op, Dense):
            return X.T @ above, above.sum(axis=0)
        assert isinstance(op, Conv2d)
        patches, sums = tape.patches[op.name], above.sum(axis=(0, 2, 3))
        split = above.reshape(len(above), op.groups, -1, patches.shape[-1])
        if _is_depthwise(op):
            found = np.einsum("ngp,ngtp->gt", split[:, :, 0], patches, optimize=True)
        else:
            found = np.matmul(split, patches.swapaxes(-1, -2)).sum(axis=0)
        return found.reshape(op.W.shape), sums

    # Convolutions -----------------------------------------------------------------------------

    def _convolve(self, op: Conv2d, images: Array, tape: Tape) -> Array:
        views = op.window.views(op.window.pad(images))
        n, channels, height, width, kh, kw = views.shape
        taps = channels // op.groups * kh * kw
        patches = views.transpose(0, 1, 4, 5, 2, 3).reshape(n, op.groups, taps, height * width)
        if op.name in self.names:
            tape.patches[op.name] = patches
        filters = self.W[op.name].reshape(op.groups, -1, taps)
        if _is_depthwise(op):
            output = np.einsum("gt,ngtp->ngp", filters[:, 0], patches)
        else:
            output = filters @ patches
        output = output.reshape(n, -1, height, width)
        if op.name in self.b:
            output += self.b[op.name][:, None, None]
        return output

    def _onto_images(self, op: Conv2d, images: Array, above: Array) -> Array:
        """Return the gradient with respect to the images that a convolution took."""
        n, _, height, width = above.shape
        window, W = op.window, self.W[op.name]
        split = above.reshape(n, op.groups, -1, height * width)
        filters = W.reshape(op.groups, W.shape[0] // op.groups, -1)
        if _is_depthwise(op):
            spread = filters[None, :, 0, :, None] * split
        else:
            spread = filters.swapaxes(-1, -2) @ split
        kh, kw = window.kernel
        spread = spread.reshape(n, -1, kh, kw, height, width)
        top, left, _, _ = window.padding
        rows, columns = images.shape[2:]
        if (kh, kw) == (1, 1) and window.stride == (1, 1) and not any(window.padding):
            return spread[:, :, 0, 0]
        padded = np.zeros((*images.shape[:2], *window.padded_size((rows, columns))), self.dtype)
        (sh, sw), (dh, dw) = window.stride, window.dilation
        for i, j in np.ndindex(kh, kw):
            y, x = i * dh, j * dw
            padded[:, :, y : y + (height - 1) * sh + 1 : sh, x : x + (width - 1) * sw + 1 : sw] += (
                spread[:, :, i, j]
            )
        return padded[:, :, top : top + rows, left : left + columns]


def _is_depthwise(op: Conv2d) -> bool:
    return op.groups == op.n_outputs and op.W.shape[1] == 1
