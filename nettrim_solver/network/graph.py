"""A trained network as arrays: operations in order, checked once, evaluated in numpy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import DTypeLike, NDArray

from ..activations import Activation, Identity
from ..checks import as_array, check_integer, layout_remedy, printable
from ..exceptions import ProblemError
from ..problem_checks import numeric
from .folding import fold_batch_norm
from .gathering import Part
from .layers import Dense, Layer
from .operations import Activate, Dropout, Operation, Shape
from .windows import Window
from .wiring import INPUT, checked_shape, connected, consumers_of

#: Samples that are evaluated at once.
BATCH_SIZE = 256

#: Inputs of an operation that its line in a summary names all.
MOST_INPUTS = 4

#: One step of the walk: the operation, its inputs and its output.
Step = tuple[Operation, tuple[NDArray[Any], ...], NDArray[Any]]


class Network:
    """A chain or graph of operations; the last one gives the output. Never modified.

    Parameters
    ----------
    operations : iterable of Operation
        In an order in which each stands behind those it takes its inputs from. An operation
        without ``inputs`` takes the output of the one before it (the first one the network's
        input), one without a name gets its kind and a number (``"dense_0"``).
    input_shape : tuple of int, optional
        Shape of one sample: (n_features,), or (n_channels, height, width). Found out from the
        first dense layer or :class:`.Part` where that is possible; a network whose input shape
        stays unknown checks its shapes when it is called.

    Attributes
    ----------
    operations : tuple of Operation
        With names and inputs filled in.
    layers : tuple of Dense and Conv2d
        The operations with weights, in order.
    input_shape : tuple of int or None
    shapes : dict of str to tuple of int, or None
        Shape of one sample of every signal, by the operation's name; ``"input"`` included.

    Raises
    ------
    ProblemError
        If names repeat or are unknown, shapes do not chain, or an output is used by nothing.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> network = Network([
    ...     Dense(rng.standard_normal((4, 3)), np.zeros(3)), Activate("relu"),
    ...     Dense(rng.standard_normal((3, 2))),
    ... ])
    >>> network
    Network((4,) -> (2,), 3 operations, 2 layers, 18 of 18 weights)
    >>> network(np.ones((5, 4))).shape
    (5, 2)
    >>> [layer.name for layer in network.layers]
    ['dense_0', 'dense_1']
    """

    def __init__(
        self, operations: Iterable[Operation], input_shape: Iterable[int] | None = None
    ) -> None:
        self.operations = connected(operations)
        self._by_name = {operation.name: operation for operation in self.operations}
        self._consumers = consumers_of(self.operations)
        self.layers = tuple(op for op in self.operations if isinstance(op, Layer))
        if input_shape is None:
            self.input_shape = self._deduced_shape()
        else:
            self.input_shape = checked_shape(input_shape)
        self.shapes = None if self.input_shape is None else self.shapes_for(self.input_shape)

    # The graph --------------------------------------------------------------------------------

    @property
    def output(self) -> Operation:
        """The last operation, whose output is the network's."""
        return self.operations[-1]

    def __getitem__(self, name: str) -> Operation:
        """Return the operation of this name.

        Raises
        ------
        ProblemError
            If there is none.
        """
        if name not in self._by_name:
            raise ProblemError(f"the network has no operation {name!r}: it has {[*self._by_name]}")
        return self._by_name[name]

    def layer(self, name: str) -> Layer:
        """Return the layer of this name.

        Raises
        ------
        ProblemError
            If there is no operation of this name, or if it has no weights.
        """
        found = self[name]
        if not isinstance(found, Layer):
            names = [layer.name for layer in self.layers]
            raise ProblemError(f"{found.label} is no layer: the layers are {names}")
        return found

    def consumers(self, name: str) -> tuple[Operation, ...]:
        """Return the operations that take the output of this one (or of ``"input"``)."""
        if name != INPUT:
            self[name]
        return tuple(self._by_name[user] for user in self._consumers.get(name, ()))

    def activation_after(self, name: str) -> Activation:
        """Return the activation that alone takes an operation's output, else the identity.

        Dropout in between does not count.
        """
        users = self.consumers(name)
        if len(users) == 1 and isinstance(users[0], Dropout):
            return self.activation_after(users[0].name)
        if len(users) == 1 and isinstance(users[0], Activate):
            return users[0].function
        return Identity()

    def ancestors(self, name: str) -> set[str]:
        """Return the names of all operations whose outputs an operation depends on."""
        found: set[str] = set()
        waiting = list(self[name].inputs)
        while waiting:
            source = waiting.pop()
            if source != INPUT and source not in found:
                found.add(source)
                waiting.extend(self._by_name[source].inputs)
        return found

    def shapes_for(self, input_shape: Iterable[int]) -> dict[str, Shape]:
        """Return the shape of every signal, for samples of a given shape.

        Raises
        ------
        ProblemError
            If the shapes do not chain; the message names the operation.
        """
        shapes: dict[str, Shape] = {INPUT: checked_shape(input_shape)}
        for op in self.operations:
            shapes[op.name] = op.output_shape(*(shapes[source] for source in op.inputs))
        return shapes

    def _deduced_shape(self) -> Shape | None:
        """Return the input shape that a dense layer or part of the input asks for, if any does."""
        for op in self.operations:
            if isinstance(op, Part) and self._is_elementwise_from_input(op.inputs[0]):
                return (op.size,)
            if isinstance(op, Dense) and self._is_elementwise_from_input(op.inputs[0]):
                return (op.n_inputs,)
        return None

    def _is_elementwise_from_input(self, name: str) -> bool:
        while name != INPUT and isinstance(self._by_name[name], (Activate, Dropout)):
            (name,) = self._by_name[name].inputs
        return name == INPUT

    # Evaluation -------------------------------------------------------------------------------

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the weights together; float64 without layers."""
        return np.result_type(*(layer.W for layer in self.layers)) if self.layers else np.dtype("d")

    def prepare(self, X: Any) -> NDArray[Any]:
        """Return samples as the network computes with them.

        float32 samples and weights are computed with in float32; if either is float64, in float64.
        Integers and booleans take the dtype of the weights.

        Raises
        ------
        ProblemError
            If X holds no real numbers, or its samples have another shape than the network's input.
        """
        raw = as_array("X", self._checked(X))
        if raw.dtype.kind in "iub":
            return raw.astype(self.dtype)
        array = numeric("X", raw)
        return array.astype(np.result_type(array, self.dtype), copy=False)

    def _checked(self, X: Any) -> Any:
        """Return X as something with a shape, and the right one; a memory map is not read."""
        if sp.issparse(X):
            raise ProblemError("X must be a dense array, but is scipy.sparse; give X.toarray()")
        if hasattr(X, "detach") or not (hasattr(X, "dtype") and hasattr(X, "shape")):
            X = as_array("X", X)
        shape = tuple(X.shape)
        if len(shape) < 2:
            raise ProblemError(f"X must have shape (n_samples, ...), but has {shape}")
        if self.input_shape is not None and shape[1:] != self.input_shape:
            remedy = layout_remedy(shape[1:], self.input_shape)
            raise ProblemError(
                f"X must hold samples of shape {self.input_shape}, but has shape {shape}{remedy}"
            )
        return X

    def __call__(self, X: Any, batch_size: int = BATCH_SIZE) -> NDArray[Any]:
        """Return the network's output, shape (n_samples, ...).

        Parameters
        ----------
        X : array_like of shape (n_samples, ...)
            See :meth:`prepare`. Read batch by batch, so that a memory map may be larger than the
            memory.
        batch_size : int
            Samples that are evaluated at once.
        """
        check_integer("batch_size", batch_size, 1)
        X = self._checked(X)
        empty = self.prepare(X[:0])
        shape = (self.shapes or self.shapes_for(empty.shape[1:]))[self.output.name]
        outputs: NDArray[Any] = np.empty((len(X), *shape), dtype=empty.dtype)
        for start in range(0, len(X), batch_size):
            rows = slice(start, start + batch_size)
            outputs[rows] = self.outputs(X[rows], [self.output.name])[self.output.name]
        return outputs

    def signals(self, X: Any, *, until: str | None = None) -> Iterator[Step]:
        """Compute the network operation by operation, and yield each with its signals.

        Parameters
        ----------
        X : array_like of shape (n_samples, ...)
            All of it is computed at once: give a batch.
        until : str, optional
            The last operation to compute; what it does not depend on is then left out.

        Yields
        ------
        operation : Operation
        inputs : tuple of ndarray
        output : ndarray

        Notes
        -----
        A signal is freed when the last operation that takes it is done, unless the caller keeps it:
        in a chain no more than three are in memory at once.
        """
        if until is None:
            yield from self._walk(X, set(self._by_name))
        else:
            yield from self._walk(X, self.ancestors(until) | {until})

    def outputs(self, X: Any, names: Iterable[str]) -> dict[str, NDArray[Any]]:
        """Return the outputs of some operations, and compute only what these depend on.

        All samples are computed at once: give a batch. ``"input"`` stands for the input itself.
        """
        asked = set(names)
        wanted = asked.union(*(self.ancestors(name) for name in asked - {INPUT})) - {INPUT}
        signal = self.prepare(X)
        found = {INPUT: signal} if INPUT in asked else {}
        for op, _, output in self._walk(signal, wanted):
            if op.name in asked:
                found[op.name] = output
        return found

    def live_entries(self, name: str, shapes: Mapping[str, Shape]) -> int:
        """Return how many numbers per sample are held at once to compute an operation's output.

        The largest sum, over the operations before it and itself, of the inputs (once more with
        their padding), the output, and the signals that later ones wait for.
        """
        sizes = {source: math.prod(shape) for source, shape in shapes.items()}
        wanted = self.ancestors(name) | {name}
        order = [op for op in self.operations if op.name in wanted]
        largest = sizes[INPUT]
        for place, op in enumerate(order):
            waited = {source for later in order[place:] for source in later.inputs}
            done = [INPUT, *(earlier.name for earlier in order[:place])]
            held = sum(sizes[source] for source in done if source in waited)
            window: Window | None = getattr(op, "window", None)
            if window is not None:
                channels, height, width = shapes[op.inputs[0]]
                held += channels * math.prod(window.padded_size((height, width)))
            largest = max(largest, held + sizes[op.name])
        return largest

    def _walk(self, X: Any, wanted: set[str]) -> Iterator[Step]:
        remaining = {
            name: sum(user in wanted for user in users) for name, users in self._consumers.items()
        }
        live = {INPUT: self.prepare(X)}
        for op in self.operations:
            if op.name not in wanted:
                continue
            inputs = tuple(live[source] for source in op.inputs)
            for source in dict.fromkeys(op.inputs):
                remaining[source] -= 1
                if remaining[source] == 0:
                    del live[source]
            output = op.apply(*inputs)
            yield op, inputs, output
            if remaining[op.name]:
                live[op.name] = output
            del inputs, output

    # Weights ----------------------------------------------------------------------------------

    @property
    def nnz(self) -> int:
        """Number of nonzero weights of all layers; intercepts are not counted."""
        return sum(layer.nnz for layer in self.layers)

    @property
    def n_weights(self) -> int:
        """Number of weights of all layers, zeros included."""
        return sum(layer.W.size for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros among the weights of all layers."""
        return 1.0 - self.nnz / self.n_weights if self.layers else 0.0

    def replace(self, changes: Mapping[str, Any]) -> Network:
        """Return a network with other weights.

        Parameters
        ----------
        changes : mapping of str
            By name, a pair (W, b) of the layer's own shapes, b=None for no intercept; it is rounded
            to the dtype of the layer. Or an operation that takes the place (and name and inputs) of
            the old one.

        Examples
        --------
        >>> network = Network([Dense([[1.0, 2.0]], name="only")])
        >>> network.replace({"only": ([[0.0, 2.0]], None)}).sparsity, network.sparsity
        (0.5, 0.0)
        """
        new: dict[str, Operation] = {}
        for name, change in changes.items():
            old = self[name]
            if isinstance(change, Operation):
                new[name] = replace(change, name=name, inputs=old.inputs)
            elif isinstance(change, tuple) and len(change) == 2:
                new[name] = self.layer(name).with_weights(*change)
            else:
                raise ProblemError(
                    f"replace() takes a pair (W, b) or an operation, but for {name!r} was given "
                    f"a {type(change).__name__}"
                )
        return Network([new.get(op.name, op) for op in self.operations], self.input_shape)

    def astype(self, dtype: DTypeLike) -> Network:
        """Return the network with weights of another dtype (float32 or float64)."""
        changes: dict[str, Operation] = {layer.name: layer.astype(dtype) for layer in self.layers}
        return self.replace(changes)

    def folded(self) -> Network:
        """Return the network with its batch normalisations folded into the layers before them.

        A batch normalisation that alone takes the output of a layer becomes part of its weights,
        which is exact up to rounding. Others stay. Without any to fold the network itself comes
        back.
        """
        operations = fold_batch_norm(self.operations, self._consumers)
        return self if operations is None else Network(operations, self.input_shape)

    # Text -------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        ends = ""
        if self.shapes is not None:
            ends = f"{self.input_shape} -> {self.shapes[self.output.name]}, "
        return (
            f"Network({ends}{len(self.operations)} operations, {len(self.layers)} layers, "
            f"{self.nnz} of {self.n_weights} weights)"
        )

    @property
    def unpruned(self) -> dict[str, tuple[int, int]]:
        """Weights that are in no layer, by name: how many, and how many of them are zero.

        Embeddings, and what is inside parts that a framework computes, such as recurrent layers.
        ``sparsity`` does not count them.
        """
        return {name: sizes for op in self.operations for name, sizes in op.unpruned.items()}

    def summary(self) -> str:
        """Return a table with a line per operation: name, kind, inputs, shapes, weights, zeros.

        Weights that are in no layer follow behind the total, and the total with them.
        """
        rows = [("name", "kind", "inputs", "output", "weights", "zeros %")]
        for op in self.operations:
            shape = "?" if self.shapes is None else _product(self.shapes[op.name])
            weights = zeros = ""
            if isinstance(op, Layer):
                weights, zeros = _product(op.W.shape), f"{100 * op.sparsity:.1f}"
            inputs = ", ".join(op.inputs)
            if len(op.inputs) > MOST_INPUTS:
                inputs = f"{op.inputs[0]}, ..., {op.inputs[-1]} ({len(op.inputs)})"
            rows.append((op.name, op.kind, inputs, shape, weights, zeros))
        total = ("total", "", "", "", str(self.n_weights), f"{100 * self.sparsity:.1f}")
        rows.append(total)
        if self.unpruned:
            sizes = [(self.n_weights, self.n_weights - self.nnz), *self.unpruned.values()]
            whole, zeros = (sum(column) for column in zip(*sizes, strict=True))
            for name, (size, zero) in self.unpruned.items():
                rows.append((name, "not pruned", "", "", str(size), f"{100 * zero / size:.1f}"))
            rows.append(("with these", "", "", "", str(whole), f"{100 * zeros / whole:.1f}"))
        lines = [[printable(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in lines
        )


def check_network(value: Any) -> None:
    """Raise ProblemError, with the way to get one, unless an argument `network` is a Network."""
    if not isinstance(value, Network):
        raise ProblemError(
            f"network must be a Network, but was a {type(value).__name__}: from_sklearn, "
            "from_torch, from_keras, from_onnx and from_npz, of nettrim_solver.frameworks, read one"
        )


def _product(shape: Shape) -> str:
    return " x ".join(map(str, shape))
