"""Keras: the graph of a model, as operations of a network."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ..exceptions import ProblemError, UnsupportedError
from ..network import (
    Activate,
    Add,
    Affine,
    Concatenate,
    Network,
    Operation,
    Part,
    Reshape,
    Transpose,
)
from ..network.operations import Shape
from ..network.wiring import INPUT
from .keras_layers import (
    ACTIVATIONS,
    READERS,
    Arrays,
    Form,
    Signal,
    activation,
    added,
    import_keras,
    key_of,
    kind_of,
    padding_of,
)
from .keras_opaque import opaque_operation
from .opaque import opaque_names

#: Functions of a signal and a constant, or of signals, by the class of Keras's layer or operation.
ARITHMETIC = ("Add", "Subtract", "Multiply", "TrueDivide")


@dataclass(frozen=True)
class Traced:
    """A network, and what its layers and batch normalisations were made of, by name."""

    network: Network
    parts: dict[str, Arrays]


def check_model(model: Any) -> None:
    """Raise unless this is a built keras.Model with a graph and one output."""
    keras = import_keras()
    if not isinstance(model, keras.Model):
        raise ProblemError(
            f"model must be a keras.Model of Keras 3, but was {type(model).__module__}."
            f"{type(model).__name__}"
        )
    inputs, outputs = (getattr(model, name, None) for name in ("inputs", "outputs"))
    if not inputs or not outputs:
        if isinstance(model, keras.Sequential):
            raise ProblemError(
                "model must be built: call model.build((None, *input_shape)) or begin it with "
                "keras.Input(input_shape)"
            )
        raise UnsupportedError(
            f"model {type(model).__name__} must be Sequential or functional, made by "
            "keras.Model(inputs, outputs): one with a call of its own has no graph to read"
        )
    if len(outputs) != 1:
        raise UnsupportedError(
            f"model must have one output, but has {len(outputs)}: "
            f"{[tensor.name for tensor in outputs]}; read a part of it, as "
            "keras.Model(model.inputs, model.get_layer(...).output) makes one"
        )


def trace(model: Any, shapes: Sequence[Shape] | None = None, opaque: Iterable[str] = ()) -> Traced:
    """Return what a model computes as a network.

    Parameters
    ----------
    model, opaque
        See :func:`.from_keras`.
    shapes : sequence of shapes, optional
        Of one sample of every input; those of the model if omitted.

    Raises
    ------
    ProblemError, UnsupportedError
        See :func:`.from_keras`.
    """
    check_model(model)
    reading = _Reading(opaque_names(opaque, _parts(model)))
    signals = reading.enter(model, own_shapes(model) if shapes is None else tuple(shapes))
    result = reading.walk(model, signals)
    if any(result.padding):
        raise UnsupportedError("model must not end with a layer that adds zeros")
    reading.formed(result, "plain")
    if not reading.operations:
        raise ProblemError("model must have a layer, but has none")
    return Traced(reading.finished(), reading.parts)


def _parts(model: Any, prefix: str = "") -> dict[str, Any]:
    """Return the layers of a model and of the models inside it, by name."""
    keras, found = import_keras(), {}
    for part in keras.Function(model.inputs, model.outputs).operations:
        if isinstance(part, keras.layers.InputLayer):
            continue
        found[f"{prefix}{part.name}"] = part
        if isinstance(part, keras.Model) and getattr(part, "inputs", None):
            found |= _parts(part, f"{prefix}{part.name}/")
    return found


def own_shapes(model: Any) -> tuple[Shape, ...]:
    """Return the shapes of one sample of a model's inputs, or raise if it leaves any open."""
    shapes = [tuple(one.shape)[1:] for one in model.inputs]
    if any(None in shape for shape in shapes) or shapes == [()]:
        raise ProblemError(
            f"input_shape must be given, since the model leaves it open: {_one(shapes)}; the shape "
            "of one sample without the samples, such as (32, 32, 3), of several inputs a list"
        )
    return tuple(tuple(int(n) for n in shape) for shape in shapes)


def given_shapes(model: Any, input_shape: Any) -> tuple[Shape, ...]:
    """Return the shapes of one sample of a model's inputs as they were given, or raise."""
    several = len(model.inputs) > 1
    try:
        given = list(input_shape) if several else [input_shape]
        shapes = tuple(tuple(operator.index(n) for n in one) for one in given)
    except TypeError:
        shapes = ()
    if not fits(model, shapes):
        own = [tuple(one.shape)[1:] for one in model.inputs]
        raise ProblemError(
            f"input_shape must be the shape of one sample of the model, {_one(own)}, but was "
            f"{input_shape!r}"
        )
    return shapes


def input_names(model: Any) -> dict[int, str]:
    """Return the names of a model's input layers, by the id of the tensor that each gives."""
    inputs = import_keras().layers.InputLayer
    return {id(one.output): str(one.name) for one in model.layers if isinstance(one, inputs)}


def fits(model: Any, shapes: Sequence[Shape]) -> bool:
    """Return whether samples of these shapes fit a model's inputs."""
    own = [tuple(one.shape)[1:] for one in model.inputs]
    return len(shapes) == len(own) and all(
        len(shape) == len(mine)
        and all(n > 0 and m in (None, n) for n, m in zip(shape, mine, strict=True))
        for shape, mine in zip(shapes, own, strict=True)
    )


def _one(values: list[Any]) -> Any:
    """Return the only value, or all of several."""
    return values[0] if len(values) == 1 else values


@dataclass
class _Reading:
    """The state while a model is read."""

    opaque: frozenset[str] = frozenset()
    operations: list[Operation] = field(default_factory=list)
    parts: dict[str, Arrays] = field(default_factory=dict)
    names: set[str] = field(default_factory=lambda: {INPUT})
    seen: set[int] = field(default_factory=set)
    converted: dict[tuple[str, Form], Signal] = field(default_factory=dict)
    shape: Shape = ()
    integers: set[str] = field(default_factory=set)

    def enter(self, model: Any, shapes: tuple[Shape, ...]) -> list[Signal]:
        """Return the inputs of a model, taken from that of the network."""
        self.shape = shapes[0] if len(shapes) == 1 else (sum(map(math.prod, shapes)),)
        signals, names = [Signal(INPUT, self.shape)], input_names(model)
        if len(shapes) > 1:
            signals = [
                self._append(Part(shapes, index), names.get(id(tensor), tensor.name), *signals)
                for index, tensor in enumerate(model.inputs)
            ]
        self.integers = {
            signal.name
            for signal, tensor in zip(signals, model.inputs, strict=True)
            if "int" in str(tensor.dtype)
        }
        return signals

    def finished(self) -> Network:
        """Return the network; inputs that nothing takes are left out."""
        used = {source for op in self.operations for source in op.inputs}
        operations = [op for op in self.operations if not isinstance(op, Part) or op.name in used]
        return Network(operations, self.shape)

    def walk(self, model: Any, signals: list[Signal], prefix: str = "") -> Signal:
        """Return what a model makes of signals, layer by layer; models inside are entered."""
        function = import_keras().Function(model.inputs, model.outputs)
        # What clone_model itself uses to call something else than the layers.
        (result,) = function._run_through_graph(
            signals, operation_fn=lambda layer: partial(self._call, layer, prefix)
        )
        assert isinstance(result, Signal)
        return result

    def _call(self, layer: Any, prefix: str, *args: Any, **kwargs: Any) -> Signal:
        """Return what a layer makes of signals; errors name it."""
        name = f"{prefix}{layer.name}"
        with _located(name, layer, name in self.opaque):
            for key, value in kwargs.items():
                # Of several tensors a list of no masks.
                flat = import_keras().tree.flatten(value)
                if any(one is not None and one is not False for one in flat):
                    raise UnsupportedError(f"its argument {key}={value!r} is not supported")
            given = import_keras().tree.flatten(args)
            if name in self.opaque:
                return self._opaque(layer, name, given)
            if not isinstance(layer, import_keras().Model):
                return self._layer(layer, name, given)
            check_model(layer)
            self._once(layer)
            if len(given) != len(layer.inputs) or not all(isinstance(x, Signal) for x in given):
                raise UnsupportedError(f"it must take {len(layer.inputs)} tensors of the model")
        return self.walk(layer, given, f"{name}/")

    def _layer(self, layer: Any, name: str, given: list[Any]) -> Signal:
        """Return what a layer, which is no model, makes of signals."""
        kind = kind_of(layer)
        if kind in ARITHMETIC:
            return self._arithmetic(kind, name, given)
        if kind == "NotEqual":
            raise UnsupportedError("masks, which mask_zero=True makes, are not supported")
        if kind == "Concatenate":
            return self._concatenated(layer, name, given)
        if len(given) != 1 or not isinstance(given[0], Signal):
            raise UnsupportedError(f"it must take one tensor, but takes {len(given)}")
        signal = given[0]
        if any(signal.padding) and not hasattr(layer, "padding"):
            raise UnsupportedError(
                "it stands behind a layer that adds zeros, which only convolutions and poolings may"
            )
        if kind in ("ZeroPadding1D", "ZeroPadding2D"):
            signal = self._for(layer, kind, "window", signal)
            return replace(signal, padding=added(signal.padding, padding_of(layer)))
        if kind in READERS:
            reader = READERS[kind]
            signal = self._for(layer, kind, reader.form, signal)
            for step in reader.build(layer, signal):
                if step.part is not None:
                    self._once(step.part.variables.get("W", layer))
                    _check_plain(layer)
                signal = self._append(step.operation, f"{name}{step.suffix}", signal)
                if step.part is not None:
                    self.parts[signal.name] = step.part
            return self._activated(getattr(layer, "activation", None), f"{name}.", signal)
        if key_of(kind) in {*ACTIVATIONS, "activation"}:
            return self._activated(layer, name, signal)
        raise UnsupportedError(f"it is not supported; supported are {_names()}")

    def _activated(self, given: Any, name: str, signal: Signal) -> Signal:
        """Return a signal behind an activation; a name that ends with a point gets its kind."""
        if key_of(kind_of(given)) == "prelu":
            signal = self._for(given, "", "dense", signal)
        for op in activation(given, signal):
            signal = self._append(op, f"{name}{op.kind}" if name.endswith(".") else name, signal)
        return signal

    def _opaque(self, layer: Any, name: str, given: list[Any]) -> Signal:
        """Return what a layer makes of a signal that Keras itself is to compute."""
        if len(given) != 1 or not isinstance(given[0], Signal):
            raise UnsupportedError("a layer that is left to Keras must take one tensor")
        signal = self.formed(given[0], "plain")
        if any(signal.padding):
            raise UnsupportedError("it stands behind a layer that adds zeros")
        operation = opaque_operation(name, layer, signal.shape, signal.name in self.integers)
        return self._append(operation, name, signal)

    def _once(self, owner: Any) -> None:
        if id(owner) in self.seen:
            raise UnsupportedError("its weights must be used once, but are shared")
        self.seen.add(id(owner))

    # Operations -------------------------------------------------------------------------------

    def _append(self, op: Operation, name: str, *signals: Signal) -> Signal:
        """Add an operation behind signals, under a name of its own."""
        own, number = name, 0
        while own in self.names:
            number += 1
            own = f"{name}_{number}"
        self.names.add(own)
        shape = op.output_shape(*(signal.shape for signal in signals))
        self.operations.append(replace(op, name=own, inputs=tuple(one.name for one in signals)))
        form: Form = signals[0].form if len(shape) == 3 else "plain"
        least = op.function.range[0] if isinstance(op, Activate) else -math.inf
        return Signal(own, shape, form, least=least)

    def _for(self, layer: Any, kind: str, asked: str, signal: Signal) -> Signal:
        """Return a signal in the form that a layer takes, see :class:`.Reader`."""
        by_channels: dict[int, Form] = {1: "plain", 2: "sequence", 3: "image"}
        n_axes = len(signal.sizes)
        if asked == "any":
            return signal
        if asked == "channels":
            axis = layer.axis - 1 if layer.axis > 0 else n_axes + layer.axis
            asked = "dense" if axis == n_axes - 1 else "plain"
            if axis not in (0, n_axes - 1):
                raise UnsupportedError(f"axis must be the first or the last, but is {layer.axis}")
        if asked == "window" and layer.data_format != "channels_last":
            if kind.endswith("1D"):
                raise UnsupportedError("data_format of sequences must be 'channels_last'")
            asked = "plain"
        if asked == "plain":
            return self.formed(signal, "plain")
        if n_axes not in by_channels:
            raise UnsupportedError(f"samples must have one to three axes, but are {signal.sizes}")
        return self.formed(signal, by_channels[n_axes])

    def formed(self, signal: Signal, form: Form) -> Signal:
        """Return a signal in another form; it is transposed once for all who ask."""
        if signal.form == form:
            return signal
        if any(signal.padding):
            raise UnsupportedError("zeros must be added in the data_format of the layer behind")
        if (signal.name, form) in self.converted:
            return self.converted[signal.name, form]
        found, name = signal, f"{signal.name}.{form}"
        if form == "plain":
            found = replace(self._append(Transpose((1, 2, 0)), name, found), form="plain")
            if signal.form == "sequence":
                found = self._append(Reshape(signal.sizes), name, found)
        elif signal.form != "plain":
            return self.formed(self.formed(signal, "plain"), form)
        else:
            if form == "sequence":
                found = self._append(Reshape((1, *signal.sizes)), name, found)
            found = replace(self._append(Transpose((2, 0, 1)), name, found), form=form)
        found = replace(found, least=signal.least)
        self.converted[signal.name, form] = found
        self.converted[found.name, signal.form] = signal
        return found

    def _alike(self, signals: list[Signal]) -> list[Signal]:
        """Return signals in one form."""
        form = next((one.form for one in signals if one.form != "plain"), signals[0].form)
        return [self.formed(one, form) for one in signals]

    def _concatenated(self, layer: Any, name: str, given: list[Any]) -> Signal:
        """Return signals put together along one axis."""
        if not all(isinstance(one, Signal) and not any(one.padding) for one in given):
            raise UnsupportedError("it must take tensors of the model, none with zeros added")
        signals = self._alike(given)
        if len(signals) == 1:
            return signals[0]
        return self._append(Concatenate(signals[0].axis(layer.axis)), name, *signals)

    def _arithmetic(self, kind: str, name: str, given: list[Any]) -> Signal:
        """Return a sum of signals, or a signal with a constant."""
        signals = [one for one in given if isinstance(one, Signal)]
        if any(any(one.padding) for one in signals):
            raise UnsupportedError("it stands behind a layer that adds zeros")
        if len(signals) == len(given):
            if kind != "Add":
                raise UnsupportedError("of several tensors only the sum is supported")
            return self._append(Add(), name, *self._alike(signals))
        first = isinstance(given[0], Signal)
        signal = self.formed(signals[0], "plain")
        constant = given[1] if first else given[0]
        c = np.asarray(import_keras().ops.convert_to_numpy(constant), np.float64)
        if c.ndim == len(signal.shape) + 1 and c.shape[0] == 1:
            c = c[0]
        if kind == "Add":
            affine = Affine(1.0, c)
        elif kind == "Multiply":
            affine = Affine(c)
        elif kind == "Subtract":
            affine = Affine(1.0, -c) if first else Affine(-1.0, c)
        elif first:
            affine = Affine(1.0 / c)
        else:
            raise UnsupportedError("a constant cannot be divided by a tensor")
        return self._append(affine, name, signal)


@contextlib.contextmanager
def _located(name: str, layer: Any, opaque: bool) -> Iterator[None]:
    """Put the layer before the message of an error, and what can be done behind it."""
    where = f"layer {name!r} ({type(layer).__name__})"
    leave = f"opaque=[{name!r}] leaves it to Keras, not pruned, if it takes and gives one tensor; "
    try:
        yield
    except UnsupportedError as error:
        raise UnsupportedError(
            f"{where}: {error}; {'' if opaque else leave}keras.Model(model.inputs, "
            "model.get_layer(...).output) is a part of the model without it"
        ) from None
    except ProblemError as error:
        raise ProblemError(f"{where}: {error}") from None


def _check_plain(layer: Any) -> None:
    """Raise if a layer's kernel is not all that it computes with."""
    if getattr(layer, "quantization_mode", None):
        raise UnsupportedError(f"its weights must not be quantised ({layer.quantization_mode})")
    if getattr(layer, "lora_enabled", False):
        raise UnsupportedError("its LoRA weights must be merged into the kernel first")
    if layer.compute_dtype not in ("float32", "float64"):
        raise ProblemError(
            f"it must compute in float32 or float64, but does in {layer.compute_dtype}: clone the "
            "model under keras.config.set_dtype_policy('float32'), and give the clone its weights"
        )


def _names() -> str:
    """Return all that is supported, for messages."""
    layers = {*READERS, *ARITHMETIC, "Concatenate", "ZeroPadding1D", "ZeroPadding2D", "Activation"}
    return f"{', '.join(sorted(layers))}; and the activations {', '.join(sorted(ACTIVATIONS))}"
