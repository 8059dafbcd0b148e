"""Neurons without effect: which they are, and the smaller network without them.

A neuron (or filter) is dead when all its weights are zero, so that it gives a constant, or when no
weight behind it is nonzero, so that nobody listens. Its column goes, and so do the rows of the
next layer that belong to it; its constant, sent through the activation and pooling in between, goes
into the next layer's intercept. That is exact but for rounding, and so it is done only where it
is exact: between two layers with nothing else listening, no groups, and no padding that a constant
map would meet. Around residual additions everything stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import Network
from .layers import Conv2d, Dense, Layer
from .operations import Activate, Dropout, Flatten, Operation, Reshape, Shape
from .pooling import AveragePool2d, GlobalAveragePool, MaxPool2d
from .scaling import Affine, BatchNorm

Index = NDArray[np.intp]

#: Differences of a map, relative to its size, that are the rounding of means.
CONSTANT_MAP = 1e-12


@dataclass(frozen=True, eq=False)
class DeadNeurons:
    """The dead outputs of one layer.

    Attributes
    ----------
    constant : ndarray of int
        Outputs whose weights are all zero.
    unused : ndarray of int
        Outputs that the next layer gives no weight.
    """

    constant: Index
    unused: Index

    def __len__(self) -> int:
        return len(np.union1d(self.constant, self.unused))


@dataclass(frozen=True, eq=False)
class Link:
    """The way from a layer to the only layer that listens to it.

    Attributes
    ----------
    path : tuple of Operation
        What stands in between.
    target : Layer
    features : int
        Consecutive inputs of the target that belong to each output of the layer.
    """

    path: tuple[Operation, ...]
    target: Layer
    features: int


def dead_neurons(network: Network, shapes: Mapping[str, Shape]) -> dict[str, DeadNeurons]:
    """Return the dead outputs of every layer.

    Parameters
    ----------
    network : Network
    shapes : mapping
        Of its signals, see :meth:`.Network.shapes_for`.
    """
    found = {}
    for layer in network.layers:
        constant = ~np.concatenate([np.any(W != 0, axis=0) for W in layer.matrices()])
        link = find_link(network, shapes, layer)
        unused = np.zeros_like(constant) if link is None else ~_listened(link)
        found[layer.name] = DeadNeurons(np.flatnonzero(constant), np.flatnonzero(unused))
    return found


def remove_dead_neurons(network: Network, shapes: Mapping[str, Shape]) -> Network:
    """Return a smaller network with the same outputs.

    Parameters
    ----------
    network : Network
    shapes : mapping
        Of its signals, see :meth:`.Network.shapes_for`.
    """
    changed = True
    while changed:
        changed = False
        for name in [layer.name for layer in network.layers]:
            smaller = _without_dead(network, shapes, network.layer(name))
            if smaller is not None:
                network, changed = smaller, True
                shapes = network.shapes_for(shapes["input"])
    return network


def find_link(network: Network, shapes: Mapping[str, Shape], layer: Layer) -> Link | None:
    """Return the way to the next layer, None if there is none on which outputs stay apart."""
    path: list[Operation] = []
    name, features = layer.name, 1
    while True:
        users = network.consumers(name)
        if len(users) != 1:
            return None
        (op,) = users
        if isinstance(op, Layer):
            return Link(tuple(path), op, features)
        shape = shapes[name]
        if isinstance(op, Flatten) or (isinstance(op, Reshape) and len(shapes[op.name]) == 1):
            features *= int(np.prod(shape[1:], dtype=np.int64))
        elif not _keeps_outputs_apart(op, shape):
            return None
        path.append(op)
        name = op.name


def _keeps_outputs_apart(op: Operation, shape: Shape) -> bool:
    if isinstance(op, Affine):
        return all(
            array.size == 1 or (array.ndim == len(shape) and array.size == array.shape[0])
            for array in (op.scale, op.shift)
        )
    kinds = (Activate, Dropout, BatchNorm, MaxPool2d, AveragePool2d, GlobalAveragePool)
    return isinstance(op, kinds)


def _listened(link: Link) -> NDArray[np.bool_]:
    """Return which outputs the next layer gives a weight, shape (n_outputs,)."""
    used = [np.any(W != 0, axis=1) for W in link.target.matrices()]
    each = link.features
    if isinstance(link.target, Conv2d):
        each = int(np.prod(link.target.W.shape[2:]))
    return np.any(np.concatenate(used).reshape(-1, each), axis=1)


def _without_dead(network: Network, shapes: Mapping[str, Shape], layer: Layer) -> Network | None:
    """Return the network without the dead outputs of one layer, None if none can go."""
    link = find_link(network, shapes, layer)
    if link is None or layer.n_groups > 1 or link.target.n_groups > 1:
        return None
    unused = ~_listened(link)
    constant = ~np.any(layer.matrices()[0] != 0, axis=0) & ~unused
    values, exact = _constants(link, shapes, layer)
    dead = unused | (constant & exact)
    if dead.all():
        # A layer needs an output; one that nobody listens to, or whose constant is wanted.
        dead[0] = False
    if not dead.any():
        return None
    kept = np.flatnonzero(~dead)
    changes: dict[str, Operation] = {layer.name: _outputs_only(layer, kept)}
    for op in link.path:
        each = shapes[op.inputs[0]][0] // layer.n_outputs
        changes[op.name] = _outputs_of(op, _spread(kept, each))
    each = len(values) // layer.n_outputs
    changes[link.target.name] = _inputs_only(
        link.target, _spread(kept, each), np.where(np.repeat(constant & dead, each), values, 0.0)
    )
    return network.replace(changes)


def _constants(
    link: Link, shapes: Mapping[str, Shape], layer: Layer
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return what every output gives the next layer were its weights zero, and where that is exact.

    Returns
    -------
    values : ndarray of float64, one per feature or channel of the next layer's input
    exact : ndarray of bool, shape (n_outputs,)
    """
    b = np.zeros(layer.n_outputs) if layer.b is None else layer.b.astype(np.float64)
    shape = shapes[layer.name]
    signal = np.broadcast_to(b.reshape(1, -1, *[1] * (len(shape) - 1)), (1, *shape))
    for op in link.path:
        signal = op.apply(signal)
    if isinstance(link.target, Dense):
        # Each feature has a weight of its own, so a map need not be constant.
        return signal.ravel(), np.ones(layer.n_outputs, dtype=bool)
    maps = signal.reshape(layer.n_outputs, -1)
    # Padding that counts in a mean makes the ends of a map differ from its middle.
    exact = np.ptp(maps, axis=1) <= CONSTANT_MAP * np.abs(maps).max(axis=1)
    if isinstance(link.target, Conv2d) and any(link.target.padding):
        # The padding of the next layer is zero, the constant is not.
        exact &= np.all(maps == 0, axis=1)
    return maps.mean(axis=1), exact


def _spread(kept: Index, each: int) -> Index:
    """Return the features that belong to the outputs kept."""
    return (kept[:, None] * each + np.arange(each)).ravel()


def _outputs_only(layer: Layer, kept: Index) -> Layer:
    W = layer.W[kept] if isinstance(layer, Conv2d) else layer.W[:, kept]
    return replace(layer, W=W, b=None if layer.b is None else layer.b[kept])


def _outputs_of(op: Operation, kept: Index) -> Operation:
    """Return an operation on the path for the features kept."""
    if isinstance(op, Activate):
        return replace(op, activation=op.function.select(kept))
    if isinstance(op, BatchNorm):
        fields = ("scale", "shift", "mean", "variance")
        return replace(op, **{field: getattr(op, field)[kept] for field in fields})
    if isinstance(op, Affine):
        return replace(
            op, scale=_rows_of(op.scale, kept), shift=_rows_of(op.shift, kept)
        )  # fmt: skip
    if isinstance(op, Reshape):
        return Flatten(name=op.name, inputs=op.inputs)
    return op


def _rows_of(array: Any, kept: Index) -> Any:
    return array if array.size == 1 else array[kept]


def _inputs_only(layer: Layer, kept: Index, constants: NDArray[np.float64]) -> Layer:
    """Return a layer without some inputs, whose constants go into the intercept.

    Parameters
    ----------
    layer : Layer
        Without groups.
    kept : ndarray of int
        Inputs or channels.
    constants : ndarray of float64, shape (n_inputs,) or (n_channels,)
        Values of those that go.
    """
    if isinstance(layer, Conv2d):
        W = layer.W[:, kept]
        shift = np.einsum("fcij,c->f", layer.W.astype(np.float64), constants)
    else:
        assert isinstance(layer, Dense)
        W = layer.W[kept]
        shift = constants @ layer.W.astype(np.float64)
    b = layer.b
    if np.any(constants):
        b = ((0.0 if b is None else b) + shift).astype(layer.dtype)
    return replace(layer, W=W, b=b)
