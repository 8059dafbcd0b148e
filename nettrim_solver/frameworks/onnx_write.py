"""ONNX: the weights of a pruned network, written into the model that it was read from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..exceptions import ProblemError
from ..network import BatchNorm, Network
from ..network.layers import Layer
from .onnx_file import import_onnx, sparse_tensor_of, tensor_of
from .onnx_graph import Traced
from .onnx_layers import Held
from .onnx_source import put, root_of

#: Versions of the format since which tensors need not be inputs, and may be sparse.
SEPARATE_INITIALIZERS, SPARSE_INITIALIZERS = 4, 6

#: A place in the model, and the values that belong there in the network.
Change = tuple[Held, NDArray[Any]]


def changes_of(traced: Traced, network: Network) -> list[Change]:
    """Return what of a model is to be written, or raise if the network is another one."""
    trained_network = traced.network
    expected = {layer.name: layer.W.shape for layer in trained_network.layers}
    found = {layer.name: layer.W.shape for layer in network.layers}
    if expected != found:
        differing = sorted({*expected.items()} ^ {*found.items()})
        raise ProblemError(
            f"network must have the layers of the model, but they differ in {differing}; smaller "
            "arrays, without dead neurons, need a smaller model"
        )
    kept = {op.name for op in network.operations}
    changes: list[Change] = []
    for trained in trained_network.layers:
        layer = network.layer(trained.name)
        users = trained_network.consumers(trained.name)
        folded = len(users) == 1 and isinstance(users[0], BatchNorm) and users[0].name not in kept
        if folded:
            assert isinstance(users[0], BatchNorm)
            changes += _unfolded(traced, layer, trained, users[0])
        else:
            changes += _layer_changes(traced, layer, trained)
    return changes


def _layer_changes(traced: Traced, layer: Layer, trained: Layer) -> list[Change]:
    """Return the new weights and intercept of a node."""
    parts = traced.layers[layer.name]
    changes: list[Change] = []
    if not np.array_equal(layer.W, trained.W):
        changes.append((parts.W, layer.W))
    if parts.b is None:
        if layer.b is not None and np.any(layer.b):
            raise ProblemError(
                f"{layer.label} has an intercept, but in the model it has none to hold it"
            )
        return changes
    b = np.zeros(layer.n_outputs, layer.dtype) if layer.b is None else layer.b
    if not np.array_equal(b, trained.b):
        changes.append((parts.b, b))
    return changes


def _unfolded(traced: Traced, layer: Layer, trained: Layer, norm: BatchNorm) -> list[Change]:
    """Return the weights of a layer, and the shift of the normalisation that was part of it.

    The normalisation is ``s x + t``: ``W / s`` goes to the layer, ``b - t`` to the shift. Zeros
    stay zeros; where s is zero, so is W.
    """
    s, t = norm.factors()
    divisor = np.where(s == 0, 1.0, s)
    matrices = []
    for group, matrix in enumerate(layer.matrices()):
        columns = layer.columns(group)
        matrices.append(np.where(s[columns] == 0, 0.0, matrix / divisor[columns]))
    b = np.zeros_like(t) if layer.b is None else layer.b.astype(np.float64)
    own = 0.0 if trained.b is None else trained.b.astype(np.float64)
    # s (W' x + own) + t' = s W' x + b
    shift = norm.shift + (b - t - s * own)
    place = Held(traced.norms[norm.name], 2, np.arange(len(shift)))
    return [(traced.layers[layer.name].W, layer.from_matrices(matrices)), (place, shift)]


def written(traced: Traced, network: Network) -> Any:
    """Return a copy of the model with the weights of a network.

    Parameters
    ----------
    traced : Traced
        What was read from the model.
    network : Network
        See :func:`.to_onnx`.
    """
    model = import_onnx().ModelProto()
    model.CopyFrom(traced.recording.model)
    writer = _Writer(traced, model)
    for held, values in changes_of(traced, network):
        writer.write(held, values)
    writer.finish()
    return model


@dataclass
class _Writer:
    """A model whose constants are replaced."""

    traced: Traced
    model: Any

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.users = Counter(name for node in graph.node for name in node.input)
        self.users.update(place.name for place in graph.output)
        self.taken = {*self.users, *(place.name for place in graph.input)}
        self.added: list[Any] = []
        self.left, self.unused = Counter(self.users), set[str]()

    def write(self, held: Held, values: NDArray[Any]) -> None:
        """Write values to where they are held; shared constants get a copy of their own."""
        recording = self.traced.recording
        node = self.model.graph.node[held.node]
        name = str(node.input[held.slot])
        new = held.write(recording.constants[name], values)
        root = root_of(recording, name)
        if held.whole or any(self.users[step] > 1 for step in root.path):
            node.input[held.slot] = self._add(new, name)
            self._release(name)
            return
        whole = np.array(recording.constants[root.name])
        whole.reshape(-1)[root.index] = new
        put(self.model, root.name, tensor_of(whole, root.name))

    def _add(self, array: NDArray[Any], old: str) -> str:
        """Add a constant; return its name."""
        number = 0
        while f"{old}_{number}" in self.taken:
            number += 1
        name = f"{old}_{number}"
        self.taken.add(name)
        tensor = tensor_of(array, name)
        if self.model.ir_version >= SEPARATE_INITIALIZERS:
            self.model.graph.initializer.append(tensor)
        else:
            # An initializer would have to be an input of the model.
            self.added.append(import_onnx().helper.make_node("Constant", [], [name], value=tensor))
        return name

    def _release(self, name: str) -> None:
        """Count a user of a constant less; without any it goes, and what it was made of."""
        self.left[name] -= 1
        if self.left[name] > 0:
            return
        self.unused.add(name)
        for node in self.model.graph.node:
            if name in node.output and not any(self.left[one] > 0 for one in node.output):
                for source in filter(None, node.input):
                    self._release(source)

    def finish(self) -> None:
        """Put the nodes that were added before all others, and drop what nobody uses any more."""
        graph = self.model.graph
        unused = self.unused - {place.name for place in graph.input}
        nodes = [one for one in graph.node if not unused.issuperset(filter(None, one.output))]
        if self.added or len(nodes) < len(graph.node):
            kept = [*self.added, *nodes]
            del graph.node[:]
            graph.node.extend(kept)
        for tensors in (graph.initializer, graph.sparse_initializer):
            for place in reversed(range(len(tensors))):
                if getattr(tensors[place], "values", tensors[place]).name in unused:
                    del tensors[place]


def why_dense(model: Any) -> str:
    """Return why a model has no sparse weights although :func:`make_sparse` was to make some."""
    if model.ir_version < SPARSE_INITIALIZERS:
        return (
            f"sparse weights need ONNX IR version {SPARSE_INITIALIZERS} or later, and the model "
            f"has {model.ir_version}"
        )
    return "no weights would be smaller, or they are listed as inputs of the model"


def make_sparse(traced: Traced, model: Any) -> None:
    """Store the weights of layers as their nonzeros, where that is smaller and allowed."""
    if model.ir_version < SPARSE_INITIALIZERS:
        return
    onnx, graph = import_onnx(), model.graph
    inputs = {place.name for place in graph.input}
    makers = {node.output[0]: node for node in graph.node}
    nodes = traced.recording.model.graph.node
    weights = [parts.W for parts in traced.layers.values()]
    names = {str(makers[nodes[one.node].output[0]].input[one.slot]) for one in weights}
    roots = {name: root_of(traced.recording, name).name for name in names
             if name in traced.recording.constants}  # fmt: skip
    for name in {roots.get(name, name) for name in names} - inputs:
        for place, tensor in enumerate(graph.initializer):
            if tensor.name == name:
                new = sparse_tensor_of(onnx.numpy_helper.to_array(tensor), name)
                if new.ByteSize() < tensor.ByteSize():
                    graph.sparse_initializer.append(new)
                    del graph.initializer[place]
                break
