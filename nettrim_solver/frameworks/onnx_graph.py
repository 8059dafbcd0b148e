"""ONNX: a model's nodes as operations of a network."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ..exceptions import ProblemError, UnsupportedError
from ..network import Add, BatchNorm, Concatenate, Network, Operation, Part, Reshape, Transpose
from ..network.operations import Shape
from ..network.wiring import INPUT
from .onnx_file import FLOATS, import_onnx
from .onnx_input import name_of
from .onnx_layers import LAYERS, FoundLayer, Held, find_intercept, find_layer
from .onnx_node import node_operation
from .onnx_operations import (
    ARITHMETIC,
    READERS,
    Call,
    Form,
    arithmetic,
    reshaped,
    sample_axis,
)
from .onnx_record import Recording

#: Names of the operators that ONNX itself defines.
STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Signal:
    """What an operation gives: its name, the shape of one sample, and how it differs from ONNX's.

    A 1-d image may have the height 1 (`image`); entries may be the same in the same order under
    another shape (`reshaped`); features may come before positions (`tokens`).
    """

    name: str
    shape: Shape
    form: Literal["plain", "image", "reshaped", "tokens"] = "plain"


@dataclass(frozen=True)
class LayerNote:
    """What :func:`.inspect_onnx` says of a node with weights.

    Attributes
    ----------
    name : str
        Of the layer in the network; of the node, or of its output if it has none.
    operator : str
    shape : tuple of int
        Of the weights in the model.
    nnz : int
        Nonzero weights; of weights that are computed from the input, all.
    reason : str or None
        Why they cannot be pruned; None if they can.
    """

    name: str
    operator: str
    shape: Shape
    nnz: int
    reason: str | None


@dataclass(frozen=True)
class Parts:
    """Where a model holds what a layer is made of."""

    W: Held
    b: Held | None


@dataclass(frozen=True)
class Traced:
    """A network (None without an operation), and where its parts are in the model.

    Attributes
    ----------
    network : Network
    recording : Recording
    layers : dict of str to Parts
    norms : dict of str to int
        Batch normalisations, by name, and the numbers of their nodes.
    notes : list of LayerNote
    """

    network: Network
    recording: Recording
    layers: dict[str, Parts]
    norms: dict[str, int]
    notes: list[LayerNote]


def trace(recording: Recording) -> Traced:
    """Return the network of a model that was recorded.

    Raises
    ------
    ProblemError
        If the output depends on something whose samples are not kept apart.
    """
    return _Reading(recording).read()


@dataclass
class _Reading:
    """The state while a model is read."""

    recording: Recording
    operations: list[Operation] = field(default_factory=list)
    known: dict[str, Signal] = field(default_factory=dict)
    parts: dict[str, Parts] = field(default_factory=dict)
    norms: dict[str, int] = field(default_factory=dict)
    notes: list[LayerNote] = field(default_factory=list)
    names: set[str] = field(default_factory=lambda: {INPUT})
    converted: dict[tuple[str, str, Shape], Signal] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)

    def read(self) -> Traced:
        """Return the network."""
        layouts = self.recording.layouts
        shape = self._entered()
        for number, node in enumerate(self.nodes):
            if number not in self.done and any(name in layouts for name in node.output):
                self._read_node(number, node)
        if self.recording.output not in self.known:
            raise ProblemError(
                f"output {self.recording.output!r} must be computed for every sample by itself, "
                "from tensors alone"
            )
        return self._finished(shape)

    def _entered(self) -> Shape:
        """Take the inputs of the model from that of the network; return its shape."""
        found = [(n, self.recording.layouts[n]) for n in self.recording.inputs]
        shapes = {name: layout.shape for name, layout in found if layout is not None}
        if len(shapes) == 1:
            self.known |= {name: Signal(INPUT, shape) for name, shape in shapes.items()}
            return next(iter(shapes.values()))
        rows = Signal(INPUT, (sum(map(math.prod, shapes.values())),))
        taken = {name_of(node) for node in self.nodes}
        for index, name in enumerate(shapes):
            own = f"{name}.input" if name in taken else name
            part = Part(list(shapes.values()), index)
            self.known[name] = Signal(*self._append(part, own, rows))
        return rows.shape

    @cached_property
    def nodes(self) -> list[Any]:
        """The nodes of the model."""
        return list(self.recording.model.graph.node)

    @cached_property
    def users(self) -> Counter[str]:
        """How often every tensor is used; as an output of the model, too."""
        uses = Counter(name for node in self.nodes for name in node.input)
        uses.update(place.name for place in self.recording.model.graph.output)
        return uses

    @cached_property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        versions = [s.version for s in self.recording.model.opset_import if s.domain in STANDARD]
        return max(versions, default=1)

    def _finished(self, shape: Shape) -> Traced:
        """Return the network of what the output depends on."""
        last = self._plain(self.recording.output)
        needed, sources = {last.name}, {op.name: op.inputs for op in self.operations}
        for op in reversed(self.operations):
            if op.name in needed:
                needed.update(sources[op.name])
        operations = [op for op in self.operations if op.name in needed]
        if not operations:
            raise ProblemError("the model must compute something, but returns its input")
        notes = [
            note if note.reason or note.name in needed
            else replace(note, reason=f"output {self.recording.output!r} does not depend on it")
            for note in self.notes
        ]  # fmt: skip
        return Traced(
            Network(operations, shape), self.recording,
            {name: parts for name, parts in self.parts.items() if name in needed},
            {name: number for name, number in self.norms.items() if name in needed}, notes,
        )  # fmt: skip

    # One node ---------------------------------------------------------------------------------

    def _read_node(self, number: int, node: Any) -> None:
        """Add the operations of a node; what is not understood is evaluated by onnxruntime."""
        count, names = len(self.operations), set(self.names)
        reason = f"{node.op_type} is not among the operators that are pruned: {', '.join(LAYERS)}"
        try:
            if node.op_type in LAYERS and node.domain in STANDARD:
                self._layer(number, node)
                return
            self._operation(number, node)
            return
        except (ProblemError, UnsupportedError) as error:
            reason = str(error) if node.op_type in LAYERS else reason
        except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
            # Attributes of a damaged file may be anything.
            reason = f"its attributes are not understood ({error})"
        del self.operations[count:]
        self.names = names
        kept = {INPUT, *(op.name for op in self.operations)}
        self.converted = {k: s for k, s in self.converted.items() if s.name in kept}
        self._note_other(node, reason)
        self._evaluated(node)

    def _layer(self, number: int, node: Any) -> None:
        found = find_layer(self.recording, number, self._attributes(node))
        slot = 1 - found.W.slot if node.op_type == "MatMul" else 0
        signal = self._given(node.input[slot], found)
        tensor, b, layer = str(node.output[0]), found.b, found.layer
        behind = self._intercept_behind(number, found)
        if behind is not None:
            adding, b = behind
            constant = self.recording.constants[self.nodes[adding].input[b.slot]]
            layer = layer.with_weights(layer.W, b.read(constant))
            tensor = str(self.nodes[adding].output[0])
        result = self.recording.layouts[tensor]
        if result is None:
            raise UnsupportedError("its output must have samples along one axis")
        name, shape = self._append(layer, name_of(node), signal)
        form: Any = "plain" if shape == result.shape else "reshaped"
        if found.tokens:
            form = "tokens"
        elif node.op_type == "Conv" and len(result.sizes) == 3:
            form = "image"
        self.known[tensor] = Signal(name, shape, form)
        if behind is not None:
            self.done.add(behind[0])
        self.parts[name] = Parts(found.W, b)
        A = self.recording.constants[node.input[found.W.slot]]
        self.notes.append(LayerNote(name, node.op_type, A.shape, int(np.count_nonzero(A)), None))

    def _given(self, tensor: str, found: FoundLayer) -> Signal:
        """Return a layer's input in the shape that the layer takes."""
        signal = self._signal(tensor)
        if signal.shape == found.given and (signal.form == "tokens") == found.tokens:
            return signal
        plain = self._plain(tensor)
        if plain.shape == found.given and not found.tokens:
            return plain
        form: Any = "tokens" if found.tokens else "image" if len(found.given) == 3 else "reshaped"
        return self._convert(tensor, plain, form, found.given, self._into(plain.shape, found))

    @staticmethod
    def _into(shape: Shape, found: FoundLayer) -> list[Operation]:
        """Return the operations that bring a plain signal into the form a layer takes."""
        if not found.tokens:
            return [reshaped(found.given)]
        n_inputs, n_rows, _ = found.given
        first = [] if shape == (n_rows, n_inputs) else [Reshape((n_rows, n_inputs))]
        return [*first, Transpose((1, 0)), Reshape(found.given)]

    def _intercept_behind(self, number: int, found: FoundLayer) -> tuple[int, Held] | None:
        """Return the node that adds an intercept to a layer's output, and where it holds it."""
        tensor = self.nodes[number].output[0]
        layout = self.recording.layouts[tensor]
        if found.b is not None or self.users[tensor] != 1 or layout is None:
            return None
        for adding in range(number + 1, len(self.nodes)):
            node = self.nodes[adding]
            if tensor in node.input:
                if node.op_type != "Add" or node.domain not in STANDARD or node.attribute:
                    return None
                slot = 1 if node.input[0] == tensor else 0
                b = find_intercept(self.recording, adding, slot, layout.sizes, found.axis)
                after = self.recording.layouts[node.output[0]]
                return None if b is None or after is None else (adding, b)
        return None

    def _operation(self, number: int, node: Any) -> None:
        """Add the operation of a node without weights to prune."""
        if node.domain not in STANDARD:
            raise UnsupportedError(f"operators of {node.domain!r} are not known")
        outputs = [name for name in node.output[1:] if self.users[name]]
        signals = [name for name in node.input if name in self.recording.layouts]
        layout, result = (self.recording.layouts[n] for n in (signals[0], node.output[0]))
        if outputs or layout is None or result is None:
            raise UnsupportedError("it must have one output with its samples along one axis")
        if result.dtype not in FLOATS or layout.dtype != result.dtype:
            raise UnsupportedError("its signals must be float32 or float64")
        if node.op_type in ("Add", "Sum") and len(signals) == len(node.input) > 1:
            self._sum(node, signals)
            return
        if node.op_type == "Concat" and len(signals) == len(node.input) > 1:
            self._concatenate(node, signals)
            return
        if len(signals) != 1:
            raise UnsupportedError("it must take one signal")
        self._one_signal(number, node, signals[0])

    def _one_signal(self, number: int, node: Any, tensor: str) -> None:
        layout, result = self.recording.layouts[tensor], self.recording.layouts[node.output[0]]
        assert layout is not None
        assert result is not None
        varying, constants = self.recording.varying, self.recording.constants
        values = [None if n in varying else constants.get(n) for n in node.input]
        binary = node.op_type in ARITHMETIC
        reader = READERS.get(node.op_type)
        if reader is None and not binary:
            raise UnsupportedError(f"{node.op_type} is not known")
        signal = self._formed(tensor, "plain" if reader is None else reader.form)
        call = Call(
            self._attributes(node), values, tuple(map(bool, node.input)), self.opset,
            signal.shape, layout, result,
        )  # fmt: skip
        if reader is None:
            first = node.input[0] == tensor
            op = arithmetic(node.op_type, call.constant(int(first)), call, first)
        elif node.input[0] != tensor:
            raise UnsupportedError("its signal must come first")
        else:
            op = reader.build(call)
        name, shape = self._append(op, name_of(node), signal)
        kept = reader is not None and reader.form in ("any", "channels", "image")
        new = Signal(name, shape, signal.form if kept else "plain")
        if new.form == "plain" and shape != result.shape:
            raise UnsupportedError(f"its output must have shape {result.shape}, not {shape}")
        if new.form == "image" and (shape[0], *shape[2:]) != result.shape:
            raise UnsupportedError(f"its output must have shape {result.shape}, not {shape}")
        self.known[str(node.output[0])] = new
        if isinstance(op, BatchNorm):
            self.norms[name] = number

    def _sum(self, node: Any, tensors: list[str]) -> None:
        """Add a residual connection."""
        sizes = {self.recording.layouts[name] for name in [*tensors, node.output[0]]}
        if len(sizes) != 1:
            raise UnsupportedError("signals that are added must have one shape")
        signals = [self._signal(name) for name in tensors]
        if len({(signal.form, signal.shape) for signal in signals}) != 1:
            signals = [self._plain(name) for name in tensors]
        name, shape = self._append(Add(), name_of(node), *signals)
        self.known[str(node.output[0])] = Signal(name, shape, signals[0].form)

    def _concatenate(self, node: Any, tensors: list[str]) -> None:
        """Put signals together along an axis of their samples."""
        layouts = [self.recording.layouts[name] for name in [*tensors, node.output[0]]]
        result = layouts[-1]
        if result is None or any(one is None or one.axis != result.axis for one in layouts):
            raise UnsupportedError("signals that are put together must have samples along one axis")
        axis = sample_axis(int(self._attributes(node)["axis"]), result)
        signals = [self._plain(name) for name in tensors]
        self.known[str(node.output[0])] = Signal(
            *self._append(Concatenate(axis), name_of(node), *signals)
        )

    def _evaluated(self, node: Any) -> None:
        """Have onnxruntime evaluate a node; what it cannot is unknown from here on."""
        layouts = self.recording.layouts
        for output in filter(None, node.output):
            taken = [name for name in node.input if name in layouts]
            if layouts.get(output) is None or not all(name in self.known for name in taken):
                continue
            try:
                operation, sources = node_operation(self.recording, node, output)
            except (LookupError, TypeError, ValueError):
                continue
            name = name_of(node) if output == node.output[0] else str(output)
            signals = [self._plain(source) for source in sources]
            own, shape = self._append(operation, name, *signals)
            self.known[str(output)] = Signal(own, shape)

    def _note_other(self, node: Any, reason: str) -> None:
        """Note a node with weights that are left alone."""
        constants = [self.recording.constants.get(name) for name in node.input]
        numbers = [c for c in constants if c is not None and c.dtype.kind in "fiu"]
        A = next((c for c in numbers if sum(n > 1 for n in c.shape) > 1), None)
        if A is None and node.op_type in ("Gemm", "Conv"):
            layout = self.recording.layouts.get(node.input[1])
            if layout is not None:
                size = math.prod(layout.sizes)
                self.notes.append(
                    LayerNote(name_of(node), node.op_type, layout.sizes, size, reason)
                )
        elif A is not None and node.op_type not in (*ARITHMETIC, "Where"):
            nnz = int(np.count_nonzero(A))
            self.notes.append(LayerNote(name_of(node), node.op_type, A.shape, nnz, reason))

    @staticmethod
    def _attributes(node: Any) -> dict[str, Any]:
        onnx = import_onnx()
        return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}

    # Operations -------------------------------------------------------------------------------

    def _append(self, op: Operation, name: str, *signals: Signal) -> tuple[str, Shape]:
        """Add an operation behind signals; return its own name, and the shape of its output."""
        own, number = name, 0
        while own in self.names:
            number += 1
            own = f"{name}_{number}"
        self.names.add(own)
        shape = op.output_shape(*(signal.shape for signal in signals))
        self.operations.append(replace(op, name=own, inputs=tuple(one.name for one in signals)))
        return own, shape

    def _signal(self, tensor: str) -> Signal:
        if tensor not in self.known:
            raise UnsupportedError(f"{tensor!r} must be computed for every sample by itself")
        return self.known[tensor]

    def _formed(self, tensor: str, form: Form) -> Signal:
        """Return a signal in the form that an operation takes."""
        signal = self._signal(tensor)
        if form == "any" or signal.form in ("plain", form):
            kept = signal
        elif form == "ordered" and signal.form != "tokens":
            kept = signal
        elif form in ("channels", "image") and signal.form == "image":
            kept = signal
        else:
            kept = self._plain(tensor)
        if form == "image" and len(kept.shape) == 2:
            channels, length = kept.shape
            image = (channels, 1, length)
            return self._convert(tensor, kept, "image", image, [Reshape(image)])
        return kept

    def _plain(self, tensor: str) -> Signal:
        """Return a signal in ONNX's shape."""
        signal, layout = self._signal(tensor), self.recording.layouts[tensor]
        assert layout is not None
        if signal.form == "plain":
            return signal
        steps: list[Operation] = [reshaped(layout.shape)]
        if signal.form == "tokens":
            n_outputs, n_rows, _ = signal.shape
            steps = [Reshape((n_outputs, n_rows)), Transpose((1, 0))]
            if layout.shape != (n_rows, n_outputs):
                steps.append(reshaped(layout.shape))
        return self._convert(tensor, signal, "plain", layout.shape, steps)

    def _convert(
        self, tensor: str, signal: Signal, form: Any, shape: Shape, steps: list[Operation]
    ) -> Signal:
        """Return a signal in another form and shape; the steps are added once."""
        key = tensor, form, shape
        if key not in self.converted:
            for step in steps:
                signal = Signal(*self._append(step, f"{tensor}:{form}", signal), form)
            self.converted[key] = signal
        return self.converted[key]
