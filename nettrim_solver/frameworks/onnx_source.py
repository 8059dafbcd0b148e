"""ONNX: where the numbers of a constant come from: an initializer or a node ``Constant``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..exceptions import UnsupportedError
from .onnx_file import import_onnx
from .onnx_input import initial_values
from .onnx_record import Recording

#: Operators that put the numbers of their first input into another shape, and nothing else.
RESHAPING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")


@dataclass(frozen=True)
class Root:
    """The tensor that a constant is made of.

    Attributes
    ----------
    name : str
        Of the tensor.
    path : tuple of str
        The names of all tensors from there to the constant, both included.
    index : ndarray of int
        ``constant == tensor.ravel()[index]``.
    """

    name: str
    path: tuple[str, ...]
    index: NDArray[np.intp]


def root_of(recording: Recording, name: str) -> Root:
    """Return where a constant comes from.

    Raises
    ------
    UnsupportedError
        If it is computed, and not only reshaped or transposed.
    """
    producers = {out: node for node in recording.model.graph.node for out in node.output if out}
    initial, steps, path = initial_values(recording.model), [], [name]
    while path[-1] not in initial and producers.get(path[-1]) is not None:
        node = producers[path[-1]]
        if node.op_type == "Constant":
            break
        if node.op_type not in (*RESHAPING, "Transpose"):
            raise UnsupportedError(f"its weights are computed by {node.op_type}")
        steps.append(node)
        path.append(node.input[0])
    root = recording.constants[path[-1]]
    index = np.arange(root.size).reshape(root.shape)
    for node in reversed(steps):
        index = _step(index, node, recording.constants[node.output[0]].shape)
    return Root(path[-1], tuple(path[::-1]), index)


def _step(index: Any, node: Any, shape: tuple[int, ...]) -> Any:
    """Return what a node does to the order of the numbers."""
    if node.op_type != "Transpose":
        return index.reshape(shape)
    perm = [list(a.ints) for a in node.attribute if a.name == "perm"]
    return index.transpose(*perm)


def constant_nodes(model: Any) -> dict[str, Any]:
    """Return the nodes ``Constant`` of a model by the name of what they give."""
    return {node.output[0]: node for node in model.graph.node if node.op_type == "Constant"}


def put(model: Any, name: str, tensor: Any) -> None:
    """Put another tensor of the same name in the place of an initializer or constant."""
    onnx = import_onnx()
    graph = model.graph
    for old in graph.initializer:
        if old.name == name:
            tensor.doc_string = old.doc_string
            old.CopyFrom(tensor)
            return
    for place, sparse in enumerate(graph.sparse_initializer):
        if sparse.values.name == name:
            del graph.sparse_initializer[place]
            graph.initializer.append(tensor)
            return
    node = constant_nodes(model)[name]
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("value", tensor))
