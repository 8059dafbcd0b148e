"""ONNX: what a model's signals are, found out by running it on a few samples.

The samples of a batch lie along one axis of every signal. It is the one whose size grows with the
batch: the model is run on one sample and on three. Models with a batch of fixed size are run sample
by sample. What does not depend on the input, such as a reshaped initializer, is a constant.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..exceptions import ProblemError
from ..network.operations import Shape
from .onnx_file import check_shapes, import_onnx, session, tensor_of, translated, values_of

#: Samples that a model is looked at with, and the largest difference between its outputs for them
#: together and one by one, relative to the largest output.
PROBES, SAME = 3, 1e-3

#: Entries of the largest sample.
MAX_ENTRIES = 1 << 27

#: Operators that look at the shape of their input alone.
SHAPES = ("Shape", "Size")


@dataclass(frozen=True)
class Layout:
    """How a batch of samples is arranged in a tensor.

    Attributes
    ----------
    sizes : tuple of int
        Of the tensor for one sample.
    axis : int or None
        Along which samples follow each other; None if the tensor holds one sample.
    dtype : dtype
    """

    sizes: Shape
    axis: int | None
    dtype: Any

    @property
    def shape(self) -> Shape:
        """The shape of one sample: the axis of the samples is left out where it is 1."""
        if self.axis is None or self.sizes[self.axis] != 1 or len(self.sizes) == 1:
            return self.sizes
        return (*self.sizes[: self.axis], *self.sizes[self.axis + 1 :])

    def tensor(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Return samples, one per row, as the tensor that ONNX wants."""
        rows = samples.astype(self.dtype, copy=False)
        if self.axis is None:
            return rows.reshape(self.sizes)
        axis, sizes = self.axis, self.sizes
        rows = np.moveaxis(rows.reshape(len(rows), *sizes), 0, axis)
        return np.ascontiguousarray(rows.reshape(*sizes[:axis], -1, *sizes[axis + 1 :]))

    def samples(self, tensor: NDArray[Any], n: int) -> NDArray[Any]:
        """Return a tensor of n samples with one row per sample."""
        if self.axis is None:
            return tensor.reshape(n, *self.shape)
        axis, sizes = self.axis, self.sizes
        rows = tensor.reshape(*sizes[:axis], n, *sizes[axis:])
        return np.ascontiguousarray(np.moveaxis(rows, axis, 0)).reshape(n, *self.shape)


@dataclass(frozen=True)
class Recording:
    """What was found out about a model.

    Attributes
    ----------
    model : ModelProto
    input, output : str
        The names of its input and output.
    layouts : dict of str to Layout or None
        Of all tensors that depend on the input; None where samples are not kept apart.
    constants : dict of str to ndarray
        The others, for one sample.
    varying : set of str
        Constants that change with the number of samples.
    batched : bool
        Whether the model takes several samples at once.
    X, Y : ndarray
        Samples, and what the model computes of them.
    """

    model: Any
    input: str
    output: str
    layouts: dict[str, Layout | None]
    constants: dict[str, NDArray[Any]]
    varying: set[str]
    batched: bool
    X: NDArray[Any]
    Y: NDArray[Any]


def record(
    model: Any,
    input: str | None = None,
    output: str | None = None,
    input_shape: Iterable[int] | None = None,
    constants: Mapping[str, Any] | None = None,
) -> Recording:
    """Run a model on a few random samples, and return what that tells.

    Parameters
    ----------
    model : ModelProto
        It is not changed.
    input, output, input_shape, constants
        See :func:`.from_onnx`.

    Raises
    ------
    ProblemError
        See :func:`.from_onnx`.
    """
    _refuse_control_flow(model)
    given = _given(model, constants)
    place = _input_of(model, input, given)
    result = _output_of(model, output)
    dims, dtype = _declared(place)
    errors = []
    for mode in _modes(dims):
        try:
            sizes, axis = _sizes(place.name, dims, mode, input_shape)
            layout = Layout(sizes, axis, dtype)
            return _Run(model, place.name, result, layout, mode == "batched", given).record()
        except _MixedError:
            if dims is None or dims[0] is None:
                raise
        except ProblemError as error:
            errors.append(error)
    raise errors[0]


class _MixedError(ProblemError):
    """A model computes something else for several samples than for each of them."""


# What to run -------------------------------------------------------------------------------------


def _refuse_control_flow(model: Any) -> None:
    onnx = import_onnx()
    graphs = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    for node in model.graph.node:
        if any(attribute.type in graphs for attribute in node.attribute):
            raise ProblemError(
                f"the model must compute the same steps for every input, but {label(node)} is "
                "control flow"
            )


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


def _given(model: Any, constants: Mapping[str, Any] | None) -> dict[str, NDArray[Any]]:
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
            found[name] = np.asarray(value, dtype=_declared(known[name])[1])
        except (TypeError, ValueError) as error:
            raise ProblemError(f"constants: {name!r} must be an array, but {error}") from None
    return found


def _input_of(model: Any, name: str | None, given: Mapping[str, Any]) -> Any:
    """Return the only input of a model, or the one of this name."""
    brought = initial_values(model)
    places = {p.name: p for p in model.graph.input if p.name not in brought and p.name not in given}
    if name is not None and name not in places:
        raise ProblemError(f"input must be one of {sorted(places)}, but was {name!r}")
    if len(places) != 1:
        what = f"has {sorted(places)}" if places else "has none"
        remedy = "; give the others' values as constants={name: array}" if places else ""
        raise ProblemError(f"the model must have one input, but {what}{remedy}")
    return next(iter(places.values()))


def _output_of(model: Any, name: str | None) -> str:
    names = [str(place.name) for place in model.graph.output]
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        if not names:
            raise ProblemError("the model must have an output, but has none")
        was = "" if name is None else f", but was {name!r}"
        raise ProblemError(f"output must be given: one of {names}{was}")
    return name


def _declared(place: Any) -> tuple[list[int | None] | None, np.dtype[Any]]:
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


def _modes(dims: list[int | None] | None) -> tuple[str, ...]:
    """Return how samples may be fed: several at once, one along the first axis, one as it is."""
    if dims is None or dims[0] is None:
        return ("batched", "single")
    if len(dims) == 1:
        return ("whole",)
    return ("single",) if dims[0] == 1 else ("batched", "whole")


def _positive(name: str, value: Any) -> Shape:
    """Return positive integers as a tuple, or raise."""
    try:
        sizes = tuple(operator.index(n) for n in value)
    except TypeError:
        sizes = (0,)
    if min(sizes, default=1) < 1:
        raise ProblemError(f"{name} must hold the sizes of one sample, but was {value!r}")
    return sizes


def _sizes(
    name: str, dims: list[int | None] | None, mode: str, input_shape: Iterable[int] | None
) -> tuple[Shape, int | None]:
    """Return the sizes of the input for one sample, and the axis of the samples."""
    declared = None if dims is None else dims if mode == "whole" else dims[1:]
    if input_shape is None:
        if declared is None or None in declared:
            shape = "unknown" if dims is None else ["?" if n is None else n for n in dims]
            raise ProblemError(
                f"input_shape must be given: one sample's sizes, without the samples; the model's "
                f"input {name!r} has {shape}"
            )
        sample = tuple(n for n in declared if n is not None)
    else:
        sample = _positive("input_shape", input_shape)
        if declared == [] and sample == (1,):
            sample = ()
        fits = declared is None or (
            len(sample) == len(declared)
            and all(n in (None, m) for n, m in zip(declared, sample, strict=True))
        )
        if not fits:
            raise ProblemError(
                f"input_shape must fit the model's input {name!r} of sizes {declared}, but was "
                f"{sample}"
            )
    if math.prod(sample) > MAX_ENTRIES:
        raise ProblemError(f"input {name!r} must fit into memory, but a sample has sizes {sample}")
    return (sample, None) if mode == "whole" else ((1, *sample), 0)


# Running it --------------------------------------------------------------------------------------


@dataclass
class _Run:
    """One attempt at running a model."""

    model: Any
    input: str
    output: str
    layout: Layout
    batched: bool
    given: dict[str, NDArray[Any]]

    def record(self) -> Recording:
        """Return what running the model tells."""
        dependent = self._dependent()
        if self.output not in dependent:
            raise ProblemError(f"output {self.output!r} must depend on input {self.input!r}")
        prepared = self._prepared()
        check_shapes(prepared)
        runner = session(prepared.SerializeToString())
        X = self._probes()
        first = self._run(runner, X[:1])
        alone = [first, *(self._run(runner, X[i : i + 1]) for i in range(1, PROBES))]
        layouts: dict[str, Layout | None] = {self.input: self.layout}
        varying: set[str] = set()
        if self.batched:
            together = self._run(runner, X)
            for name in dependent:
                layouts[name] = _batch_layout(first[name], together[name])
            varying = {n for n in first if n not in dependent and not _same(first[n], together[n])}
        else:
            layouts |= {name: _single_layout(first[name]) for name in dependent}
        out = layouts[self.output]
        if out is None or out.dtype.kind not in "fiub":
            raise ProblemError(f"output {self.output!r} must be numbers, samples along one axis")
        Y = np.concatenate([out.samples(one[self.output], 1) for one in alone])
        if self.batched:
            self._check_apart(Y, out.samples(together[self.output], PROBES))
        constants = {n: np.asarray(values_of(t)) for n, t in initial_values(self.model).items()}
        constants |= {n: v for n, v in first.items() if n not in dependent and v is not None}
        return Recording(
            self.model, self.input, self.output, layouts, constants | self.given, varying,
            self.batched, X, Y,
        )  # fmt: skip

    def _dependent(self) -> set[str]:
        """Return the tensors that depend on the numbers of the input, not on its shape alone."""
        found = {self.input}
        for node in self.model.graph.node:
            if node.op_type not in SHAPES and found.intersection(node.input):
                found.update(filter(None, node.output))
        return found - {self.input}

    def _prepared(self) -> Any:
        """Return the model with all of its tensors as outputs, and the input as it is fed."""
        onnx = import_onnx()
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        graph = model.graph
        known = self.given | {s.values.name: values_of(s) for s in graph.sparse_initializer}
        del graph.sparse_initializer[:]
        graph.initializer.extend(tensor_of(value, name) for name, value in known.items())
        places = [place for place in graph.input if place.name not in self.given]
        del graph.input[:], graph.output[:], graph.value_info[:]
        for place in places:
            if place.name == self.input:
                sizes: list[Any] = list(self.layout.sizes)
                if self.batched:
                    sizes[0] = "n_samples"
                kind = place.type.tensor_type.elem_type
                place = onnx.helper.make_tensor_value_info(place.name, kind, sizes)
            graph.input.append(place)
        names = dict.fromkeys(name for node in graph.node for name in node.output if name)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        return model

    def _probes(self) -> NDArray[Any]:
        rng = np.random.default_rng(0)
        shape = (PROBES, *self.layout.shape)
        if self.layout.dtype.kind == "f":
            return rng.standard_normal(shape).astype(self.layout.dtype)
        return rng.integers(0, 2, shape).astype(self.layout.dtype)

    def _run(self, runner: Any, X: NDArray[Any]) -> dict[str, Any]:
        """Return all tensors for a batch; None for what is no tensor."""
        names = [place.name for place in runner.get_outputs()]
        with translated():
            values = runner.run(names, {self.input: self.layout.tensor(X)})
        return {
            name: value if isinstance(value, np.ndarray) else None
            for name, value in zip(names, values, strict=True)
        }

    def _check_apart(self, alone: NDArray[Any], together: NDArray[Any]) -> None:
        """Raise unless the samples of a batch have nothing to do with each other."""
        apart, scale = difference(together, alone)
        if not apart <= SAME * scale:
            raise _MixedError(
                "the model must compute every sample by itself, but gives other outputs for "
                "several samples at once"
            )


def _batch_layout(one: Any, several: Any) -> Layout | None:
    """Return the layout of a tensor whose values for one sample and several are known."""
    if one is None or several is None or one.ndim != several.ndim:
        return None
    axes = [k for k in range(one.ndim) if one.shape[k] != several.shape[k]]
    if len(axes) != 1 or one.shape[axes[0]] * PROBES != several.shape[axes[0]]:
        return None
    return Layout(one.shape, axes[0], one.dtype)


def _single_layout(one: Any) -> Layout | None:
    """Return the layout of a tensor that holds one sample."""
    if one is None:
        return None
    leading = one.ndim > 1 and one.shape[0] == 1
    return Layout(one.shape, 0 if leading else None, one.dtype)


def _same(a: Any, b: Any) -> bool:
    return a is not None and b is not None and np.array_equal(a, b)


def difference(a: NDArray[Any], b: NDArray[Any]) -> tuple[float, float]:
    """Return the largest difference of two arrays, and the largest finite entry of the second.

    NaN and infinities at the same places are the same, elsewhere infinitely different.
    """
    if a.shape != b.shape:
        return math.inf, 0.0
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return math.inf, 0.0
    scale = float(np.max(np.abs(b[finite]), initial=0.0))
    return float(np.max(np.abs(a[finite] - b[finite]), initial=0.0)), scale
