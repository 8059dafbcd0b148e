"""ONNX: one node as an operation of a network, whatever it computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..exceptions import ProblemError
from ..network.gathering import check_whole, count_zeros
from ..network.operations import Operation, Shape
from .onnx_file import import_onnx, session, tensor_of, translated
from .onnx_record import Layout, Recording


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class OnnxNode(Operation):
    """A node of an ONNX model, evaluated by onnxruntime; it has no weights to prune.

    Parameters
    ----------
    operator : str
        Its name in ONNX.
    model : bytes
        A model of this node alone, with its constants.
    sources : tuple of Layout
        Of its inputs.
    target : Layout
        Of its output.
    batched : bool
        Whether it takes several samples at once.
    weights : tuple of int
        Entries and zeros of its constants with two or more axes of floating-point numbers.
    """

    operator: str
    model: bytes
    sources: tuple[Layout, ...]
    target: Layout
    batched: bool
    weights: tuple[int, int] = (0, 0)
    arity: ClassVar[int | None] = None

    @property
    def kind(self) -> str:
        """The operator."""
        return f"onnx {self.operator}"

    @property
    def takes_integers(self) -> bool:
        """Whether an input of the node is a tensor of integers or booleans."""
        return any(source.dtype.kind in "iub" for source in self.sources)

    @property
    def unpruned(self) -> dict[str, tuple[int, int]]:
        """Weights of the node, by its name."""
        return {self.name: self.weights} if self.weights[0] else {}

    def _output_shape(self, *shapes: Shape) -> Shape:
        expected = tuple(source.shape for source in self.sources)
        if shapes != expected:
            raise self.mismatch(" and ".join(map(str, expected)), shapes[0] if shapes else ())
        return self.target.shape

    def _compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        n = len(inputs[0])
        output = np.empty((n, *self.target.shape), self._dtype(inputs))
        step = max(n, 1) if self.batched else 1
        for start in range(0, n, step):
            rows = slice(start, start + step)
            output[rows] = self._run([signal[rows] for signal in inputs])
        return output

    def _dtype(self, inputs: tuple[NDArray[Any], ...]) -> Any:
        """Return the dtype of the output: floating numbers keep that of the network."""
        floating = [signal.dtype for signal in inputs if signal.dtype.kind == "f"]
        if self.target.dtype.kind != "f" or not floating:
            return self.target.dtype
        return np.result_type(*floating)

    def _run(self, signals: list[NDArray[Any]]) -> NDArray[Any]:
        runner = _runner(self.model)
        names = [place.name for place in runner.get_inputs()]
        feed = {
            name: self._fed(source, signal)
            for name, source, signal in zip(names, self.sources, signals, strict=True)
        }
        with translated():
            (result,) = runner.run(None, feed)
        return self.target.samples(result, len(signals[0]))

    def _fed(self, source: Layout, signal: NDArray[Any]) -> NDArray[Any]:
        """Return a signal as the model's tensor; numbers that its dtype has not are no input."""
        if source.dtype.kind in "iub":
            check_whole(self.label, signal)
            other = signal[signal.astype(source.dtype) != signal]
            if other.size:
                raise ProblemError(
                    f"{self.label} takes {source.dtype} numbers, but gets {other[0]:g}"
                )
        return source.tensor(signal)

    def _details(self) -> str:
        return self.operator


@lru_cache(maxsize=256)
def _runner(model: bytes) -> Any:
    return session(model)


def node_operation(recording: Recording, node: Any, output: str) -> tuple[OnnxNode, list[str]]:
    """Return an operation that computes one output of a node, and the tensors it takes.

    Parameters
    ----------
    recording : Recording
        All tensors that the node takes must have layouts or be constants.
    node : NodeProto
    output : str
    """
    onnx = import_onnx()
    names = list(dict.fromkeys(name for name in node.input if name))
    sources = [name for name in names if name in recording.layouts]
    layouts: Mapping[str, Any] = recording.layouts
    target = layouts[output]
    kind = onnx.helper.np_dtype_to_tensor_dtype
    inputs = [
        onnx.helper.make_tensor_value_info(
            name, kind(layouts[name].dtype), [None] * len(layouts[name].sizes)
        )
        for name in sources
    ]
    constants = [
        tensor_of(recording.constants[name], name) for name in names if name not in sources
    ]
    graph = onnx.helper.make_graph(
        [node], "node", inputs, [onnx.ValueInfoProto(name=output)], constants
    )
    whole = recording.model
    model = onnx.helper.make_model(
        graph, opset_imports=whole.opset_import, functions=whole.functions
    )
    model.ir_version = max(whole.ir_version, 4)
    held = [recording.constants[name] for name in names if name not in sources]
    weights = [count_zeros(one) for one in held if one.dtype.kind == "f" and one.squeeze().ndim > 1]
    batched = recording.batched and not recording.varying.intersection(names)
    operation = OnnxNode(
        operator=node.op_type, model=model.SerializeToString(),
        sources=tuple(layouts[name] for name in sources), target=target, batched=batched,
        weights=(sum(n for n, _ in weights), sum(zeros for _, zeros in weights)),
    )  # fmt: skip
    return operation, sources
