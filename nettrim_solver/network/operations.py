"""What a network is made of: operations on arrays, in plain numpy.

An operation takes the outputs of other operations, named in ``inputs``, and knows the shape of its
own output before it computes anything. Signals have one row per sample; a shape here never counts
the samples: ``(n_features,)``, or ``(n_channels, height, width)`` for images. Layers, whose weights
are pruned, are in :mod:`.layers`; poolings in :mod:`.pooling`; scalings in :mod:`.scaling`.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..activations import Activation, get_activation
from ..checks import as_array, check_flag
from ..exceptions import ProblemError
from ..problem_checks import numeric
from .windows import integers

Shape = tuple[int, ...]

#: Entries of a block: what an operation needs beside its inputs and its output. Small enough to
#: stay in the cache, which makes elementwise functions faster, too.
BLOCK_ENTRIES = 1 << 17


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Operation(ABC):
    """One step of a network.

    Attributes
    ----------
    name : str
        Unique in its network, which makes one up when it is empty.
    inputs : tuple of str
        Names of the operations whose outputs it takes; ``"input"`` is the network's input. When
        empty, the network fills in the operation before.
    kind : str
        What it is, in one word.
    """

    name: str = ""
    inputs: tuple[str, ...] = ()
    arity: ClassVar[int | None] = 1

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ProblemError(f"name must be a string, but was {self.name!r}")
        inputs = (self.inputs,) if isinstance(self.inputs, str) else tuple(self.inputs)
        if not all(isinstance(name, str) and name for name in inputs):
            raise ProblemError(f"{self.label}: inputs must be names, but was {self.inputs!r}")
        self._set("inputs", inputs)

    @property
    def takes_integers(self) -> bool:
        """Whether its input holds whole numbers, such as the rows of a table."""
        return False

    @property
    def kind(self) -> str:
        """What the operation is: its class in lower case, ``max_pool2d`` for MaxPool2d."""
        return re.sub("(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()

    @property
    def label(self) -> str:
        """Name and kind, for messages."""
        return f"operation {self.name!r} ({self.kind})" if self.name else f"a {self.kind} operation"

    def apply(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        """Return the output for inputs with one row per sample.

        Raises
        ------
        ProblemError
            If the shapes do not fit.
        """
        self.output_shape(*(np.shape(signal)[1:] for signal in inputs))
        return self._compute(*inputs)

    def output_shape(self, *shapes: Shape) -> Shape:
        """Return the shape of the output of one sample.

        Raises
        ------
        ProblemError
            If the shapes of the inputs do not fit.
        """
        if self.arity is not None and len(shapes) != self.arity:
            raise ProblemError(
                f"{self.label} takes {self.arity} input, but was given {len(shapes)}"
            )
        return self._output_shape(*shapes)

    @abstractmethod
    def _compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        """Return the output for inputs of the right shapes."""

    @abstractmethod
    def _output_shape(self, *shapes: Shape) -> Shape:
        """Return the output's shape for the right number of inputs, or raise."""

    def mismatch(self, expected: str, given: Shape) -> ProblemError:
        """Return the error of an input whose shape does not fit."""
        source = f" from {', '.join(map(repr, self.inputs))}" if self.inputs else ""
        return ProblemError(
            f"{self.label} takes samples of shape {expected}, but gets {given}{source}"
        )

    def image_shape(self, shape: Shape) -> tuple[int, int, int]:
        """Return an image's shape, or raise if it is none."""
        if len(shape) != 3:
            raise self.mismatch("(channels, height, width)", shape)
        channels, height, width = shape
        return channels, height, width

    @property
    def unpruned(self) -> dict[str, tuple[int, int]]:
        """Weights inside it that no layer has, by name: how many, and how many of them are zero."""
        return {}

    def _set(self, field: str, value: Any) -> None:
        """Normalise a field while the operation is made."""
        object.__setattr__(self, field, value)

    def _details(self) -> str:
        """Return what its repr says besides kind and name."""
        return ""

    def __repr__(self) -> str:
        parts = [repr(self.name)] if self.name else []
        return f"{type(self).__name__}({', '.join([*parts, *filter(None, [self._details()])])})"


class Elementwise(Operation):
    """An operation that keeps the shape of its only input."""

    def _output_shape(self, *shapes: Shape) -> Shape:
        return shapes[0]


@dataclass(frozen=True, eq=False, repr=False)
class Activate(Elementwise):
    """An activation function, elementwise; the dtype of the input is kept.

    Parameters
    ----------
    activation : str or Activation
        See :mod:`nettrim_solver.activations`. Parameters per output (PReLU) belong to the features
        of dense signals, and to the channels of images.

    Examples
    --------
    >>> import numpy as np
    >>> Activate("relu").apply(np.array([[-1.0, 2.0]]))
    array([[0., 2.]])
    """

    activation: str | Activation = "relu"

    def __post_init__(self) -> None:
        self._set("activation", get_activation(self.activation))
        super().__post_init__()

    @property
    def function(self) -> Activation:
        """The activation as an object."""
        assert isinstance(self.activation, Activation)
        return self.activation

    @property
    def kind(self) -> str:
        """The name of the activation."""
        return self.function.name

    def _output_shape(self, *shapes: Shape) -> Shape:
        if not shapes[0]:
            raise self.mismatch("(features, ...)", shapes[0])
        try:
            self.function.check_outputs(shapes[0][0])
        except ProblemError as error:
            raise ProblemError(f"{self.label}: {error}") from None
        return shapes[0]

    def _compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        (signal,) = inputs
        output = np.empty(signal.shape, dtype=signal.dtype)
        for rows in sample_blocks(len(signal), math.prod(signal.shape[1:])):
            # Channels last, where a parameter per output broadcasts. The functions may compute in
            # float64; the assignment rounds.
            output[rows] = np.moveaxis(self.function(np.moveaxis(signal[rows], 1, -1)), -1, 1)
        return output


@dataclass(frozen=True, eq=False, repr=False)
class Dropout(Elementwise):
    """Nothing: at inference dropout is the identity. Kept so that names match the framework's."""

    def _compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        return inputs[0]


@dataclass(frozen=True, eq=False, repr=False)
class Flatten(Operation):
    """All features of a sample in one row, in C order: channels, then rows, then columns."""

    def _output_shape(self, *shapes: Shape) -> Shape:
        return (math.prod(shapes[0]),)

    def _compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        (signal,) = inputs
        return signal.reshape(len(signal), math.prod(signal.shape[1:]))


@dataclass(frozen=True, eq=False, repr=False)
class Reshape(Operation):
    """Another shape for the features of a sample, in C order.

    Parameters
    ----------
    shape : sequence of int
        Without the samples; one entry may be -1.
    """

    shape: Sequence[int]

    def __post_init__(self) -> None:
        shape = integers(self.label, "shape", self.shape, least=-1)
        if shape.count(-1) > 1:
            raise ProblemError(
                f"{self.label}: shape must hold sizes, and at most one -1, but was {shape}"
            )
        self._set("shape", shape)
        super().__post_init__()

    def _output_shape(self, *shapes: Shape) -> Shape:
        size, known = math.prod(shapes[0]), math.prod(n for n in self.shape if n != -1)
        shape = tuple(size // max(known, 1) if n == -1 else n for n in self.shape)
        if math.prod(shape) != size:
            raise self.mismatch(f"that can be reshaped to {self.shape}", shapes[0])
        return shape

    def _compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        (signal,) = inputs
        return signal.reshape(len(signal), *self._output_shape(signal.shape[1:]))

    def _details(self) -> str:
        return str(self.shape)


@dataclass(frozen=True, eq=False, repr=False)
class Transpose(Operation):
    """Another order of the axes of a sample.

    Parameters
    ----------
    axes : sequence of int
        A permutation of 0, 1, ...; the samples are not counted. ``(2, 0, 1)`` turns images whose
        channels come last (Keras, TensorFlow) into those of this package.
    """

    axes: Sequence[int]

    def __post_init__(self) -> None:
        axes = integers(self.label, "axes", self.axes, least=0)
        if sorted(axes) != list(range(len(axes))):
            raise ProblemError(f"{self.label}: axes must be a permutation, but was {axes}")
        self._set("axes", axes)
        super().__post_init__()

    def _output_shape(self, *shapes: Shape) -> Shape:
        if len(shapes[0]) != len(self.axes):
            raise self.mismatch(f"with {len(self.axes)} axes", shapes[0])
        return tuple(shapes[0][axis] for axis in self.axes)

    def _compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(inputs[0].transpose(0, *(axis + 1 for axis in self.axes)))

    def _details(self) -> str:
        return str(self.axes)


@dataclass(frozen=True, eq=False, repr=False)
class Add(Operation):
    """The sum of two or more signals of one shape: a residual connection."""

    arity: ClassVar[int | None] = None

    def _output_shape(self, *shapes: Shape) -> Shape:
        if len(shapes) < 2:
            raise ProblemError(
                f"{self.label} adds two or more signals, but was given {len(shapes)}: name them in "
                "inputs"
            )
        if len(set(shapes)) > 1:
            raise ProblemError(
                f"{self.label} adds signals of one shape, but gets "
                f"{' and '.join(map(str, shapes))} from {', '.join(map(repr, self.inputs))}"
            )
        return shapes[0]

    def _compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        output = inputs[0] + inputs[1]
        for signal in inputs[2:]:
            output += signal
        return output


@dataclass(frozen=True, eq=False, repr=False)
class Softmax(Elementwise):
    """``exp(x_i) / sum_j exp(x_j)`` along one axis of a sample; evaluated, never pruned against.

    Parameters
    ----------
    axis : int
        Of a sample, not counting the samples.
    log : bool
        Whether the output is the logarithm, ``x_i - log sum_j exp(x_j)``.
    """

    axis: int = -1
    log: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("log", self.log)
        (axis,) = integers(self.label, "axis", self.axis, least=-32, lengths=(1,))
        self._set("axis", axis)

    def _output_shape(self, *shapes: Shape) -> Shape:
        if not -len(shapes[0]) <= self.axis < len(shapes[0]):
            raise self.mismatch(f"with an axis {self.axis}", shapes[0])
        return shapes[0]

    def _compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        (signal,) = inputs
        axis = self.axis if self.axis < 0 else self.axis + 1
        output: NDArray[Any] = signal - signal.max(axis=axis, keepdims=True)
        if self.log:
            output -= np.log(np.exp(output).sum(axis=axis, keepdims=True))
            return output
        np.exp(output, out=output)
        output /= output.sum(axis=axis, keepdims=True)
        return output


def frozen_array(name: str, value: Any) -> NDArray[Any]:
    """Return a read-only copy of finite numbers; an array that is one already is kept.

    Raises
    ------
    ProblemError
        For anything but finite real numbers.
    """
    if value is None:
        raise ProblemError(f"{name} must be an array of numbers, but was None")
    array = numeric(name, as_array(name, value))
    if not np.isfinite(array).all():
        count = int(array.size - np.isfinite(array).sum())
        raise ProblemError(f"{name} must be finite, but holds {count} NaN or infinite entries")
    if type(array) is np.ndarray and array.flags.owndata and not array.flags.writeable:
        return array
    copied = np.array(array, order="C", subok=False)
    copied.flags.writeable = False
    return copied


def sample_blocks(n_samples: int, entries: int) -> list[slice]:
    """Return slices over samples, of so many entries each, that hold a block of them or one."""
    height = max(1, BLOCK_ENTRIES // max(1, entries))
    return [slice(start, start + height) for start in range(0, n_samples, height)]
