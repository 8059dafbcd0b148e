"""ONNX: what a model's signals are, found out by running it on a few samples.

The samples of a batch lie along one axis of every signal. It is the one whose size grows with the
batch: the model is run on one sample and on three. Models with a batch of fixed size are run sample
by sample. What does not depend on the inputs, such as a reshaped initializer, is a constant.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..exceptions import ProblemError
from ..network.gathering import join_inputs, split
from ..network.operations import Shape
from .onnx_file import check_shapes, import_onnx, session, tensor_of, translated, values_of
from .onnx_input import (
    declared,
    given_values,
    initial_values,
    inputs_of,
    output_of,
    refuse_control_flow,
    refuse_random,
    sample_sizes,
    shapes_by_input,
    ways,
    zip_map_remedy,
)
from .round_trip import agreement, difference, random_samples

#: Samples that a model is looked at with, and the largest difference between its outputs for them
#: together and one by one, relative to the largest output.
PROBES, SAME = 3, 1e-3

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
    inputs : tuple of str
        The names of the inputs that are fed, in the model's order.
    output : str
        The name of its output.
    layouts : dict of str to Layout or None
        Of the inputs and all tensors that depend on them; None where samples are not kept apart.
    constants : dict of str to ndarray
        The others, for one sample.
    varying : set of str
        Constants that change with the number of samples.
    batched : bool
        Whether the model takes several samples at once.
    X, Y : ndarray
        Samples, of several inputs joined, and what the model computes of them.
    agreement : float
        The largest difference of two ways to compute the output, relative to the largest one: that
        of the least precise dtype on the way.
    """

    model: Any
    inputs: tuple[str, ...]
    output: str
    layouts: dict[str, Layout | None]
    constants: dict[str, NDArray[Any]]
    varying: set[str]
    batched: bool
    X: NDArray[Any]
    Y: NDArray[Any]
    agreement: float


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
    refuse_control_flow(model)
    given = given_values(model, constants)
    places = {str(place.name): declared(place) for place in inputs_of(model, input, given)}
    shapes = shapes_by_input(input_shape, [*places])
    result = output_of(model, output)
    refuse_random(model, result)
    sizes = [dims for dims, _ in places.values()]
    errors = []
    for way in ways(sizes):
        try:
            layouts = {
                name: Layout(*sample_sizes(name, dims, mode, shape), dtype)
                for (name, (dims, dtype)), mode, shape in zip(
                    places.items(), way, shapes, strict=True
                )
            }
            return _Run(model, layouts, result, "batched" in way, given).record()
        except _MixedError:
            if all(dims is None or dims[0] is None for dims in sizes):
                raise
        except ProblemError as error:
            errors.append(error)
    raise errors[0]


class _MixedError(ProblemError):
    """A model computes something else for several samples than for each of them."""


# Running it --------------------------------------------------------------------------------------


@dataclass
class _Run:
    """One attempt at running a model."""

    model: Any
    inputs: dict[str, Layout]
    output: str
    batched: bool
    given: dict[str, NDArray[Any]]

    def record(self) -> Recording:
        """Return what running the model tells."""
        dependent = self._dependent()
        if self.output not in dependent:
            raise ProblemError(
                f"output {self.output!r} must depend on an input, but not on {[*self.inputs]}"
            )
        prepared = self._prepared()
        check_shapes(prepared)
        runner = session(prepared.SerializeToString())
        X, alone = self._usable(runner)
        first = alone[0]
        layouts: dict[str, Layout | None] = {**self.inputs}
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
            raise ProblemError(
                f"output {self.output!r} must be numbers, samples along one axis"
                f"{zip_map_remedy(self.model)}"
            )
        self._check_scores(out.dtype)
        Y = np.concatenate([out.samples(one[self.output], 1) for one in alone])
        precision = agreement(
            one.dtype for name, one in layouts.items() if one is not None and name in self._needed()
        )
        if self.batched:
            self._check_apart(Y, out.samples(together[self.output], PROBES), max(SAME, precision))
        constants = {n: np.asarray(values_of(t)) for n, t in initial_values(self.model).items()}
        constants |= {n: v for n, v in first.items() if n not in dependent and v is not None}
        return Recording(
            self.model, tuple(self.inputs), self.output, layouts, constants | self.given, varying,
            self.batched, X, Y, precision,
        )  # fmt: skip

    def _needed(self) -> set[str]:
        """Return the tensors that the output is computed of, and itself."""
        needed = {self.output}
        for node in reversed(self.model.graph.node):
            if needed.intersection(node.output):
                needed.update(node.input)
        return needed

    def _dependent(self) -> set[str]:
        """Return the tensors that depend on the numbers of inputs, not on their shapes alone."""
        found = {*self.inputs}
        for node in self.model.graph.node:
            if node.op_type not in SHAPES and found.intersection(node.input):
                found.update(filter(None, node.output))
        return found - {*self.inputs}

    def _prepared(self) -> Any:
        """Return the model with all of its tensors as outputs, and the inputs as they are fed."""
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
            if place.name in self.inputs:
                sizes: list[Any] = list(self.inputs[place.name].sizes)
                if self.batched:
                    sizes[0] = "n_samples"
                kind = place.type.tensor_type.elem_type
                place = onnx.helper.make_tensor_value_info(place.name, kind, sizes)
            graph.input.append(place)
        names = dict.fromkeys(name for node in graph.node for name in node.output if name)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        return model

    def _check_scores(self, dtype: Any) -> None:
        """Raise for labels where the model has scores, too."""
        others = {place.name: place.type.tensor_type.elem_type for place in self.model.graph.output}
        kinds = import_onnx().TensorProto
        scores = [name for name, kind in others.items() if kind in (kinds.FLOAT, kinds.DOUBLE)]
        remedy = f"; output={scores[0]!r} has them" if scores else zip_map_remedy(self.model)
        if dtype.kind != "f" and remedy:
            raise ProblemError(
                f"output {self.output!r} must be real numbers, such as scores, but holds {dtype}, "
                f"as of labels{remedy}"
            )

    def _usable(self, runner: Any) -> tuple[NDArray[Any], list[dict[str, Any]]]:
        """Return random samples, and all tensors for each; the outputs are finite if possible."""
        found = None
        kinds = random_samples((sum(math.prod(one.shape) for one in self.inputs.values()),))
        for drawn in kinds:
            X = self._probes(drawn[:PROBES])
            alone = [self._run(runner, X[i : i + 1]) for i in range(PROBES)]
            found = (X, alone) if found is None else found
            outputs = [one[self.output] for one in alone]
            if all(
                one is None or one.dtype.kind != "f" or np.isfinite(one).all() for one in outputs
            ):
                return X, alone
        assert found is not None
        return found

    def _probes(self, drawn: NDArray[Any]) -> NDArray[Any]:
        """Return samples of random numbers, whole ones where an input takes these."""
        rng, parts, first = np.random.default_rng(0), [], 0
        for layout in self.inputs.values():
            shape = (PROBES, *layout.shape)
            numbers = drawn[:, first : first + math.prod(layout.shape)].reshape(shape)
            first += math.prod(layout.shape)
            if layout.dtype.kind != "f":
                # Wide ones may be numbers of rows in a table; others are pixels.
                most = 2 if layout.dtype.kind == "b" or layout.dtype.itemsize > 2 else 128
                numbers = rng.integers(0, most, shape)
            parts.append(numbers.astype(layout.dtype))
        return parts[0] if len(parts) == 1 else join_inputs(*parts)

    def _run(self, runner: Any, X: NDArray[Any]) -> dict[str, Any]:
        """Return all tensors for a batch; None for what is no tensor."""
        names = [place.name for place in runner.get_outputs()]
        parts = split(X, [layout.shape for layout in self.inputs.values()])
        feed = {
            name: layout.tensor(part)
            for (name, layout), part in zip(self.inputs.items(), parts, strict=True)
        }
        with translated():
            values = runner.run(names, feed)
        return {
            name: value if isinstance(value, np.ndarray) else None
            for name, value in zip(names, values, strict=True)
        }

    def _check_apart(self, alone: NDArray[Any], together: NDArray[Any], most: float) -> None:
        """Raise unless the samples of a batch have nothing to do with each other."""
        apart, scale = difference(together, alone)
        if not apart <= most * scale:
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
