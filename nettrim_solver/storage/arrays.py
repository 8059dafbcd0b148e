"""Networks as plain arrays and one text, which files are made of.

The weights of layer after layer are ``W0, b0, W1, ...``, without b where there is none; arrays of
other operations are ``name.field``. The text, ``network``, describes all operations as JSON::

    {"format": "nettrim_solver.network/1", "input_shape": [784],
     "operations": [
      {"operation": "Dense", "name": "hidden", "inputs": ["input"],
       "W": {"array": "W0"}, "b": {"array": "b0"}},
      {"operation": "Activate", "name": "relu_0", "inputs": ["hidden"],
       "activation": {"activation": "relu", "parameters": {}}}]}
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..activations import ACTIVATIONS, Activation
from ..exceptions import ProblemError
from ..network import (
    Activate,
    Add,
    Affine,
    AveragePool2d,
    BatchNorm,
    Concatenate,
    Conv2d,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    GlobalAveragePool,
    Layer,
    MaxPool2d,
    Network,
    Operation,
    Part,
    Reshape,
    Softmax,
    Transpose,
)

FORMAT = "nettrim_solver.network/1"

#: What a file may be made of, by the name of the class.
OPERATIONS: dict[str, type[Operation]] = {
    cls.__name__: cls
    for cls in (
        Activate, Add, Affine, AveragePool2d, BatchNorm, Concatenate, Conv2d, Dense, Dropout,
        Embedding, Flatten, GlobalAveragePool, MaxPool2d, Part, Reshape, Softmax, Transpose,
    )
}  # fmt: skip


def network_arrays(network: Network) -> dict[str, Any]:
    """Return the arrays of a network and the text that describes it, by name; none are copied.

    Raises
    ------
    ProblemError
        If an operation or activation is not one of this package.
    """
    arrays: dict[str, Any] = {}
    described = [_description(network, op, arrays) for op in network.operations]
    content = {"format": FORMAT, "input_shape": network.input_shape, "operations": described}
    arrays["network"] = np.array(json.dumps(content))
    return arrays


def _description(network: Network, op: Operation, arrays: dict[str, Any]) -> dict[str, Any]:
    """Return an operation as JSON values; its arrays go into `arrays`, and their names here."""
    if type(op) not in OPERATIONS.values():
        raise ProblemError(
            f"{op.label} must be one of {sorted(OPERATIONS)} to be saved, "
            f"but is a {type(op).__name__}; the network of a model goes back into it with "
            "to_onnx, to_torch or to_keras"
        )
    described: dict[str, Any] = {"operation": type(op).__name__}
    for field in dataclasses.fields(op):
        value = getattr(op, field.name)
        if isinstance(value, np.ndarray):
            key = f"{op.name}.{field.name}"
            if isinstance(op, Layer):
                key = f"{field.name}{network.layers.index(op)}"
            arrays[key] = value
            value = {"array": key}
        elif isinstance(value, Activation):
            if type(value) not in ACTIVATIONS.values():
                raise ProblemError(
                    f"{op.label}: activation must be one of {sorted(ACTIVATIONS)} to be saved, "
                    f"but was {value!r}"
                )
            value = {"activation": value.name, "parameters": value.parameters()}
        described[field.name] = value
    return described


def described_network(arrays: Mapping[str, NDArray[Any]]) -> Network:
    """Return the network that :func:`network_arrays` wrote.

    Raises
    ------
    ProblemError
        If the operations make no network.
    Exception
        Any other, if the text is not of this form.
    """
    content = json.loads(str(arrays["network"][()]))
    if content["format"] != FORMAT:
        raise ProblemError(f"network must be of the format {FORMAT!r}, but is {content['format']}")
    operations = []
    for described in content["operations"]:
        kind = OPERATIONS[described.pop("operation")]
        values = {name: _value(value, arrays) for name, value in described.items()}
        operations.append(kind(**values))
    return Network(operations, content["input_shape"])


def _value(value: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    if not isinstance(value, dict):
        return value
    if "array" in value:
        name = value["array"]
        if name not in arrays:
            hint = "; load_sparse reads sparse files" if "sparse" in arrays else ""
            raise ProblemError(f"the network has no array {name!r}{hint}")
        return arrays[name]
    return ACTIVATIONS[value["activation"]](**value["parameters"])
