"""ONNX: which inputs of a model are fed, with what shapes, and which output is looked at."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import as_array
from ..exceptions import ProblemError
from ..network.operations import Shape
from .onnx_file import import_onnx

#: Operators that draw numbers.
RANDOM = (
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
)  # fmt: skip

#: Entries of the largest sample.
MAX_ENTRIES = 1 << 24


def refuse_control_flow(model: Any) -> None:
    """Raise if a node of a model has graphs of its own."""
    onnx = import_onnx()
    graphs = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    for node in model.graph.node:
        if any(attribute.type in graphs for attribute in node.attribute):
            raise ProblemError(
                f"the model must compute the same steps for every input, but {label(node)} is "
                "control flow"
            )


def refuse_random(model: Any, output: str) -> None:
    """Raise if an output depends on random numbers, as those of a node in training mode."""
    tensors = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute:
            tensors |= dict.fromkeys(node.output, node.attribute[0].t)
    needed = {output}
    for node in reversed(model.graph.node):
        if not needed.intersection(node.output):
            continue
        needed.update(node.input)
        training = any(a.name == "training_mode" and a.i for a in node.attribute)
        if node.op_type == "Dropout" and len(node.input) > 2:
            training = _is_true(tensors.get(node.input[2]))
        if training or node.op_type in RANDOM:
            what = "is in training mode" if training else "draws random numbers"
            raise ProblemError(
                f"the model must compute the same every time, but {label(node)} {what}: export it "
                "in evaluation mode, as torch.onnx.export does after module.eval()"
            )


def _is_true(tensor: Any) -> bool:
    """Return whether a flag is known, and true."""
    try:
        return tensor is not None and bool(import_onnx().numpy_helper.to_array(tensor).all())
    except Exception:
        # A damaged tensor, which onnxruntime will refuse.
        return False


def label(node: Any) -> str:
    """Return operator and name of a node, for messages."""
    return f"{node.op_type} {name_of(node)!r}"


def name_of(node: Any) -> str:
    """Return the name of a node, or that of its output."""
    return str(node.name or next(filter(None, node.output), ""))


def initial_values(model: Any) -> dict[str, Any]:
    """Return the tensors that a model brings with it, by name."""
    graph = model.graph
    dense = {tensor.name: tensor for tensor in graph.initializer}
    return dense | {tensor.values.name: tensor for tensor in graph.sparse_initializer}


def given_values(model: Any, constants: Mapping[str, Any] | None) -> dict[str, NDArray[Any]]:
    """Return the values of inputs that stay the same, in the dtype that the model declares."""
    if constants is not None and not isinstance(constants, Mapping):
        raise ProblemError(
            f"constants must map names of inputs to arrays, but was {type(constants).__name__}"
        )
    known = {place.name: place for place in model.graph.input}
    found = {}
    for name, value in (constants or {}).items():
        if name not in known:
            raise ProblemError(f"constants must be inputs among {sorted(known)}, but has {name!r}")
        try:
            array = as_array(f"constants: {name!r}", value)
            found[name] = np.asarray(array, dtype=declared(known[name])[1])
        except (TypeError, ValueError, OverflowError) as error:
            if isinstance(error, ProblemError):
                raise
            raise ProblemError(f"constants: {name!r} must be an array, but {error}") from None
    return found


def inputs_of(model: Any, name: str | None, given: Mapping[str, Any]) -> list[Any]:
    """Return the inputs of a model that are fed; with a name, none but this one."""
    _check_name("input", name)
    brought = initial_values(model)
    places = {p.name: p for p in model.graph.input if p.name not in brought and p.name not in given}
    if name is not None and name not in places:
        raise ProblemError(f"input must be one of {sorted(places)}, but was {name!r}")
    if not places:
        raise ProblemError("the model must have an input that is fed, but has none")
    if name is not None and len(places) > 1:
        raise ProblemError(
            f"input {name!r} must be the only one that is fed, but there are {[*places]}: give "
            "the others' values as constants={name: array} (--onnx-constants FILE.npz), or samples "
            "of all of them and no input (--onnx-input)"
        )
    return list(places.values())


def _check_name(what: str, name: Any) -> None:
    if name is not None and not isinstance(name, str):
        raise ProblemError(f"{what} must be the name of a tensor, but was {name!r}")


def output_of(model: Any, name: str | None) -> str:
    """Return the only output of a model, or the one of this name."""
    _check_name("output", name)
    names = [str(place.name) for place in model.graph.output]
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        if not names:
            raise ProblemError("the model must have an output, but has none")
        was = "" if name is None else f", but was {name!r}"
        raise ProblemError(
            f"output must be given (--onnx-output): one of {names}{was}{zip_map_remedy(model)}"
        )
    return name


def zip_map_remedy(model: Any) -> str:
    """Return how a classifier of scikit-learn gets an output of numbers; "" for other models."""
    if all(node.op_type != "ZipMap" for node in model.graph.node):
        return ""
    return (
        "; its ZipMap makes dictionaries of the probabilities: convert the classifier with "
        "skl2onnx.to_onnx(classifier, X[:1], options={'zipmap': False}), and choose the output "
        "'probabilities'"
    )


def declared(place: Any) -> tuple[list[int | None] | None, np.dtype[Any]]:
    """Return what a model says of an input: sizes, None where it does not, and dtype."""
    kind = place.type.tensor_type
    if not place.type.HasField("tensor_type") or not kind.elem_type:
        raise ProblemError(f"input {place.name!r} must be a tensor of numbers")
    try:
        dtype = np.dtype(import_onnx().helper.tensor_dtype_to_np_dtype(kind.elem_type))
    except KeyError:
        dtype = np.dtype(object)
    if dtype.kind not in "fiub":
        raise ProblemError(f"input {place.name!r} must be a tensor of numbers, but is {dtype}")
    if not kind.HasField("shape"):
        return None, dtype
    dims = [int(d.dim_value) if d.HasField("dim_value") else None for d in kind.shape.dim]
    if not dims or any(n is not None and n < 1 for n in dims):
        raise ProblemError(
            f"input {place.name!r} must have axes, none of them of size 0, but has {dims}"
        )
    return dims, dtype


def ways(inputs: Sequence[list[int | None] | None]) -> list[tuple[str, ...]]:
    """Return how the inputs of these sizes may be fed: a mode of each, all batched or none."""
    possible = [_modes(dims) for dims in inputs]
    together = all("batched" in some for some in possible)
    return [
        *([("batched",) * len(possible)] if together else []),
        tuple(some[-1] for some in possible),
    ]


def _modes(dims: list[int | None] | None) -> tuple[str, ...]:
    """Return how samples may be fed: several at once, one along the first axis, one as it is."""
    if dims is None or dims[0] is None:
        return ("batched", "single")
    if len(dims) == 1:
        return ("whole",)
    return ("single",) if dims[0] == 1 else ("batched", "whole")


def shapes_by_input(input_shape: Any, names: Sequence[str]) -> list[Any]:
    """Return the shape of a sample that is given for each input; None where it is not."""
    if input_shape is None or len(names) == 1:
        return [input_shape] * len(names)
    shapes = list(input_shape) if np.iterable(input_shape) else [input_shape]
    if len(shapes) != len(names) or not all(map(np.iterable, shapes)):
        raise ProblemError(
            f"input_shape must hold a shape for each of the inputs {[*names]} (--input-shape for "
            f"each), but was {input_shape!r}"
        )
    return shapes


def _positive(name: str, value: Any) -> Shape:
    """Return positive integers as a tuple, or raise."""
    try:
        sizes = tuple(operator.index(n) for n in value)
    except TypeError:
        sizes = (0,)
    if min(sizes, default=1) < 1:
        raise ProblemError(f"{name} must hold the sizes of one sample, but was {value!r}")
    return sizes


def sample_sizes(
    name: str, dims: list[int | None] | None, mode: str, input_shape: Iterable[int] | None
) -> tuple[Shape, int | None]:
    """Return the sizes of the input for one sample, and the axis of the samples."""
    expected = None if dims is None else dims if mode == "whole" else dims[1:]
    if input_shape is None:
        if expected is None or None in expected:
            shape = "unknown" if dims is None else ["?" if n is None else n for n in dims]
            raise ProblemError(
                f"input_shape must be given (--input-shape): one sample's sizes, without the "
                f"samples, for each input; the model's input {name!r} has {shape}"
            )
        sample = tuple(n for n in expected if n is not None)
    else:
        sample = _positive("input_shape", input_shape)
        if expected == [] and sample == (1,):
            sample = ()
        fits = expected is None or (
            len(sample) == len(expected)
            and all(n in (None, m) for n, m in zip(expected, sample, strict=True))
        )
        if not fits:
            raise ProblemError(
                f"input_shape must fit the model's input {name!r} of sizes {expected}, but was "
                f"{sample}"
            )
    if math.prod(sample) > MAX_ENTRIES:
        raise ProblemError(f"input {name!r} must fit into memory, but a sample has sizes {sample}")
    return (sample, None) if mode == "whole" else ((1, *sample), 0)
