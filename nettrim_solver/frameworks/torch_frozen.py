"""PyTorch: a frozen copy of a module whose layers answer with given arrays, and its operations.

Each layer of the copy answers with what the network's own layer gave, and a run stops at the layer
whose input is asked for.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..exceptions import NettrimError, ProblemError, UnsupportedError
from ..network import Operation
from ..network.operations import Shape
from .torch_graph import kind_of
from .torch_opaque import Evaluated
from .torch_values import Inputs, as_array, import_torch

#: The classes of layers, with the axes of their input in PyTorch; a linear one takes any number.
AXES = {"Linear": None, "Conv1d": 3, "Conv2d": 4}
#: A run gives the layers of the frozen copy their answers: one at a time.
_RUNNING = threading.Lock()


@dataclass(frozen=True)
class Place:
    """Where a layer is called, and how its signals look on both sides.

    Attributes
    ----------
    name : str
        Of the layer in the network.
    part : str
        Of the module.
    rows : int
        Rows per sample that it is called with: more than one if samples are cut into pieces.
    takes, gives : tuple of int
        Shapes of one row of its input and output in PyTorch.
    form : str
        ``"plain"``; ``"flat"``, a 1-d signal as an image of height 1; or ``"tokens"``, a linear
        layer on several vectors per sample, as a 1x1 convolution of an image of height 1.
    """

    name: str
    part: str
    rows: int
    takes: Shape
    gives: Shape
    form: str

    def to_network(self, signal: NDArray[Any]) -> NDArray[Any]:
        """Return PyTorch's input of the layer as the network's."""
        if self.form == "flat":
            return signal[:, :, None]
        if self.form == "tokens":
            vectors = signal.reshape(len(signal) // self.rows, self._tokens, signal.shape[-1])
            return np.ascontiguousarray(vectors.transpose(0, 2, 1)[:, :, None])
        return signal

    def to_torch(self, signal: NDArray[Any]) -> NDArray[Any]:
        """Return the network's output of the layer as PyTorch's."""
        if self.form == "flat":
            return signal[:, :, 0]
        if self.form == "tokens":
            return signal[:, :, 0].transpose(0, 2, 1).reshape(-1, *self.gives)
        return signal

    @property
    def entering(self) -> Shape:
        """The shape of one sample of the layer's input in the network."""
        return self.to_network(np.empty((self.rows, *self.takes))).shape[1:]

    @property
    def _tokens(self) -> int:
        return self.rows * math.prod(self.takes[:-1])


class _Stopped(BaseException):
    """The end of a run: with the input of the layer it was for, or with what went wrong.

    No Exception, which the module's own code may catch.
    """

    def __init__(self, signal: Any = None, complaint: str = "") -> None:
        self.signal = signal
        self.complaint = complaint


#: What a layer's module, called with an input, answers.
Answer = Callable[[str, Any], Any]


class Frozen(Evaluated):
    """A copy of a module whose layers answer with given arrays.

    Attributes
    ----------
    places : tuple of Place
        In the order in which they are called.
    left : dict of str to str
        Names of the parts whose weights stay in the copy, each with the reason.
    opaque : frozenset of str
        Names of the parts that were to be left.
    inputs : Inputs
        What the module is called with.
    example : ndarray
        The samples that it was recorded with, in the network's shape.
    """

    def __init__(
        self, module: Any, opaque: frozenset[str], inputs: Inputs, example: NDArray[Any]
    ) -> None:
        super().__init__("", module)
        self.opaque, self.inputs, self.example = opaque, inputs, example
        self.places: tuple[Place, ...] = ()
        self.left: dict[str, str] = {}
        self._words = super().__repr__()
        for part in self._part.modules():
            # PyTorch's fused kernels read weights without calling layers, unless these have hooks.
            if kind_of(part) in AXES:
                part.register_forward_hook(_nothing)

    def __repr__(self) -> str:
        return self._words

    def freeze(self, places: Iterable[Place], left: Mapping[str, str]) -> None:
        """Take the weights out of the layers that the network has."""
        self.places, self.left = tuple(places), dict(left)
        pruned = {place.part for place in self.places}
        self.unpruned = {name: n for name, n in self.unpruned.items() if name not in pruned}
        parts = dict(self._part.named_modules())
        for name in {*self.unpruned} - {*left}:
            kind = type(parts[name]).__name__ if name in parts else "Parameter"
            self.left[name] = f"{kind} is not among the layers that are pruned: {', '.join(AXES)}"
        torch = import_torch()
        for place in self.places:
            part = self._part.get_submodule(place.part)
            with torch.no_grad():
                for tensor in part.parameters():
                    # Whoever else reads them would keep the trained ones.
                    tensor.fill_(math.nan)

    def run(self, samples: NDArray[Any], names: Iterable[str], answer: Answer) -> Any:
        """Return what the module makes of samples, with layers that answer."""
        torch = import_torch()
        parts = {name: self._part.get_submodule(name) for name in names}
        with _RUNNING, torch.no_grad():
            try:
                for name, part in parts.items():
                    part.forward = partial(answer, name)
                return self._part(*self.inputs.tensors(samples, self._dtype))
            finally:
                for part in parts.values():
                    part.__dict__.pop("forward", None)

    def record(self, samples: NDArray[Any], names: Iterable[str]) -> Record:
        """Return how the module calls its layers."""
        calls: list[tuple[str, NDArray[Any], Shape]] = []

        def answer(name: str, input: Any) -> Any:
            part = self._part.get_submodule(name)
            entering = as_array(input).copy()
            output = type(part).forward(part, input)
            calls.append((name, entering, tuple(output.shape)))
            return output

        try:
            output = self.run(samples, names, answer)
        except NettrimError:
            raise
        except Exception as error:
            # Whatever the module's own code raises.
            raise ProblemError(self.inputs.refused(error)) from None
        return Record(calls, one_tensor(output))

    def between(self, X: NDArray[Any], answers: tuple[NDArray[Any], ...]) -> NDArray[Any]:
        """Return the input of the first layer without an answer, or the output of the module.

        Parameters
        ----------
        X : ndarray of shape (n_samples, ...)
        answers : tuple of ndarray
            What the first layers give, one by one.
        """
        torch = import_torch()
        expected = [place.part for place in self.places]
        called = 0

        def answer(name: str, input: Any) -> Any:
            nonlocal called
            if called == len(expected) or name != expected[called]:
                rest = repr(expected[called]) if called < len(expected) else "the end"
                raise _Stopped(complaint=f"{name!r} was called where {rest} was expected")
            if called == len(answers):
                raise _Stopped(input)
            signal = self.places[called].to_torch(answers[called])
            called += 1
            return torch.tensor(signal, dtype=input.dtype)

        try:
            output = one_tensor(self.run(X, expected, answer))
            complaint = f"{expected[called]!r} was not called" if called < len(expected) else ""
        except _Stopped as stop:
            output, complaint = stop.signal, stop.complaint
        if complaint:
            raise ProblemError(
                "a recorded module must call its layers once each and in one order for all "
                f"samples, but {complaint}"
            )
        found = np.array(as_array(output))
        if len(answers) == len(expected):
            return found
        place = self.places[len(answers)]
        if found.shape != (len(X) * place.rows, *place.takes):
            raise ProblemError(
                f"layer {place.name!r} must get {(len(X) * place.rows, *place.takes)} for {len(X)} "
                f"samples, as recorded, but got {found.shape}"
            )
        return place.to_network(found)


@dataclass(frozen=True)
class Record:
    """One run: the calls of layers in their order (name, input, output's shape), and the output."""

    calls: list[tuple[str, NDArray[Any], Shape]]
    output: Any

    def names(self) -> list[str]:
        """Return the names of the layers as they were called."""
        return [name for name, _, _ in self.calls]

    def call(self, name: str) -> tuple[NDArray[Any], Shape]:
        """Return the input of a layer's first call, and the shape of its output."""
        return next((entering, shape) for own, entering, shape in self.calls if own == name)


@dataclass(frozen=True, eq=False, repr=False)
class Recorded(Operation):
    """What a module does between its input, its first layers, and the next layer or its output.

    What stands behind it has no bound on its error but in a cascade, and it cannot be written to
    a file.

    Parameters
    ----------
    frozen : Frozen
    takes : tuple of tuple of int
        Shapes of one sample of the network's input and of the outputs of the first layers.
    gives : tuple of int
        Shape of one sample of the next layer's input, or of the module's output.

    Attributes
    ----------
    left : dict of str to str
        Layers of the module that are no layers of the network, each with the reason.
    """

    frozen: Frozen
    takes: tuple[Shape, ...]
    gives: Shape
    arity: ClassVar[int | None] = None

    @property
    def left(self) -> dict[str, str]:
        """Names of layers that are not pruned, each with the reason."""
        return dict(self.frozen.left)

    @property
    def unpruned(self) -> dict[str, tuple[int, int]]:
        """Weights that stay in the module, by the part that has them."""
        return dict(self.frozen.unpruned)

    def _output_shape(self, *shapes: Shape) -> Shape:
        if shapes != self.takes:
            raise ProblemError(f"{self.label} takes samples of {self.takes}, but gets {shapes}")
        return self.gives

    def _compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        X, *answers = inputs
        output = self.frozen.between(X, tuple(answers))
        if output.shape != (len(X), *self.gives):
            raise ProblemError(
                f"{self.label} must give {(len(X), *self.gives)}, but gave {output.shape}: samples "
                "must be kept apart"
            )
        return output.astype(X.dtype, copy=False)

    def _details(self) -> str:
        left = "".join(f"; {name!r} stays: {reason}" for name, reason in self.left.items())
        return f"{self.frozen!r}{left}"


def one_tensor(output: Any) -> Any:
    """Return what a module gave, or raise if it is no tensor."""
    if not isinstance(output, import_torch().Tensor):
        raise UnsupportedError(f"module must return one tensor, not a {type(output).__name__}")
    return output.detach()


def _nothing(part: Any, given: Any, output: Any) -> None:
    """Leave the output of a layer as it is: a hook."""
