"""A network whose weights change often: evaluated and differentiated in place, in one precision.

A :class:`.Network` checks and copies its weights whenever they change, which is right for a handful
of changes and too slow for thousands. Here the nonzero weights are plain vectors that may be
written to, and the order of evaluation is fixed once. Convolutions are computed by their nonzero
weights (:mod:`.sparse_convolution`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .adjoint import check_differentiable, pull_back
from .graph import Network
from .layers import Conv2d, Dense, Layer
from .operations import Operation
from .wiring import INPUT

Array = NDArray[np.floating]

#: The output of every operation for a batch, and the input, by name.
Signals = dict[str, Array]


class Trainable:
    """The part of a network up to one operation, with nonzero weights that may be changed.

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
    weights : dict of str to ndarray of shape (K,)
        The nonzero weights of the layers named, in C order: copies.
    b : dict of str to ndarray of shape (n_outputs,)
        The intercepts of these layers, where they have any: copies.

    Raises
    ------
    UnsupportedError
        See :func:`.check_differentiable`.
    """

    def __init__(
        self, network: Network, end: str, names: Iterable[str] = (), dtype: DTypeLike = np.float32
    ) -> None:
        self.network, self.end, self.dtype = network.astype(dtype), end, np.dtype(dtype)
        self.names = tuple(names)
        check_differentiable(network, self.names, end)
        wanted = network.ancestors(end) | {end}
        self.operations = [op for op in self.network.operations if op.name in wanted]
        own = {name: self.network.layer(name) for name in self.names}
        self.places = {name: np.flatnonzero(layer.W) for name, layer in own.items()}
        self.weights = {n: layer.W.ravel()[self.places[n]] for n, layer in own.items()}
        self.b = {n: layer.b.copy() for n, layer in own.items() if layer.b is not None}
        self._dense = {n: op.W.copy() for n, op in own.items() if isinstance(op, Dense)}
        self._taps = {n: _taps(op) for n, op in own.items() if isinstance(op, Conv2d)}
        # Operations that the gradient passes through.
        self._path: set[str] = set()
        for op in self.operations:
            if op.name in own or not self._path.isdisjoint(op.inputs):
                self._path.add(op.name)

    def forward(self, X: Array) -> Signals:
        """Evaluate samples of shape (n_samples, ...), given in the dtype, all at once."""
        signals = {INPUT: X}
        for op in self.operations:
            signals[op.name] = self._apply(op, [signals[source] for source in op.inputs])
        return signals

    def __call__(self, X: Array, batch_size: int) -> Array:
        """Return the output for many samples, batch by batch."""
        starts = range(0, len(X), batch_size)
        return np.concatenate(
            [self.forward(X[first : first + batch_size])[self.end] for first in starts]
        )

    def backward(self, signals: Signals, gradient: Array) -> dict[str, tuple[Array, Array]]:
        """Return the gradients with respect to the nonzero weights and intercepts.

        Parameters
        ----------
        signals : dict
            Of :meth:`forward`.
        gradient : ndarray
            With respect to the output.

        Returns
        -------
        dict of str to (ndarray, ndarray)
            Of every layer named that the output depends on, summed over the samples; of the shapes
            (K,) and (n_outputs,).
        """
        waiting, found = {self.end: gradient}, {}
        for op in reversed(self.operations):
            if op.name not in self._path or op.name not in waiting:
                continue
            above = waiting.pop(op.name)
            inputs = [signals[source] for source in op.inputs]
            if op.name in self.weights:
                found[op.name] = self._of_weights(op, inputs[0], above)
            if self._path.isdisjoint(op.inputs):
                continue
            parts = self._below(op, inputs, signals[op.name], above)
            for source, below in zip(op.inputs, parts, strict=True):
                if source in self._path:
                    waiting[source] = waiting[source] + below if source in waiting else below
        return found

    def pruned(self, names: Iterable[str]) -> dict[str, tuple[Array, Array | None]]:
        """Return W and b of layers, as :meth:`.Network.replace` takes them."""
        changes = {}
        for name in names:
            W = np.zeros_like(self.network.layer(name).W)
            W.reshape(-1)[self.places[name]] = self.weights[name]
            changes[name] = W, self.b.get(name)
        return changes

    # One operation ----------------------------------------------------------------------------

    def _apply(self, op: Operation, inputs: list[Array]) -> Array:
        if op.name not in self.weights:
            return op.apply(*inputs).astype(self.dtype, copy=False)
        if isinstance(op, Conv2d):
            Z = self._convolve(op, inputs[0])
        else:
            Z = inputs[0] @ self._matrix(op.name)
        if op.name in self.b:
            Z += self.b[op.name].reshape(-1, *[1] * (Z.ndim - 2))
        return Z

    def _matrix(self, name: str) -> Array:
        """Return W of a dense layer, with the weights as they are now."""
        W = self._dense[name]
        W.reshape(-1)[self.places[name]] = self.weights[name]
        return W

    def _below(
        self, op: Operation, inputs: list[Array], output: Array, above: Array
    ) -> tuple[Array, ...]:
        if op.name in self._dense:
            return (above @ self._matrix(op.name).T,)
        if op.name in self._taps and isinstance(op, Conv2d):
            return (self._onto_images(op, inputs[0], above),)
        found = pull_back(op, inputs, output, above)
        return tuple(one.astype(self.dtype, copy=False) for one in found)

    def _of_weights(self, op: Operation, X: Array, above: Array) -> tuple[Array, Array]:
        if not isinstance(op, Conv2d):
            return (X.T @ above).reshape(-1)[self.places[op.name]], above.sum(axis=0)
        from .sparse_convolution import weight_gradient  # loads numba

        found = np.zeros_like(self.weights[op.name])
        weight_gradient(
            _samples_last(op.window.pad(X)), self._taps[op.name], _samples_last(above),
            op.window.stride, found,
        )  # fmt: skip
        return found, above.sum(axis=(0, 2, 3))

    def _convolve(self, op: Conv2d, images: Array) -> Array:
        from .sparse_convolution import convolve_taps  # loads numba

        output = np.zeros((*op.output_shape(images.shape[1:]), len(images)), self.dtype)
        convolve_taps(
            _samples_last(op.window.pad(images)), self._taps[op.name], self.weights[op.name],
            op.window.stride, output,
        )  # fmt: skip
        return _samples_first(output)

    def _onto_images(self, op: Conv2d, images: Array, above: Array) -> Array:
        """Return the gradient with respect to the images that a convolution took."""
        from .sparse_convolution import image_gradient  # loads numba

        n, channels, height, width = images.shape
        top, left, _, _ = op.window.padding
        padded = np.zeros((channels, *op.window.padded_size((height, width)), n), self.dtype)
        image_gradient(
            _samples_last(above), self._taps[op.name], self.weights[op.name], op.window.stride,
            padded,
        )  # fmt: skip
        return _samples_first(padded[:, top : top + height, left : left + width])


def _samples_last(signal: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(signal, 0, -1))


def _samples_first(signal: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(signal, -1, 0))


def _taps(layer: Layer) -> NDArray[np.int64]:
    """Return what every nonzero weight of a convolution multiplies, shape (K, 4).

    The filter, the channel of the image, and the offsets in the padded image.
    """
    assert isinstance(layer, Conv2d)
    f, c, i, j = np.nonzero(layer.W)
    channel = c + f // (layer.n_outputs // layer.groups) * layer.W.shape[1]
    dh, dw = layer.window.dilation
    return np.column_stack([f, channel, i * dh, j * dw])
