"""Signals taken apart, put together, and looked up in a table.

A network takes one array. One with several inputs takes them joined, every sample's entries in one
row (:func:`join_inputs`), and begins with operations that take a :class:`Part` of it each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..checks import as_array
from ..exceptions import ProblemError
from .operations import Operation, Shape, frozen_array
from .windows import integers

#: From here on float32 does not hold every integer.
MOST_EXACT = 1 << 24


@dataclass(frozen=True, eq=False, repr=False)
class Part(Operation):
    """One of several inputs that are joined in the rows of one array, see :func:`join_inputs`.

    Parameters
    ----------
    shapes : sequence of shapes
        Of one sample of each input, in their order.
    index : int
        Which of them it gives.

    Examples
    --------
    >>> import numpy as np
    >>> Part([(2,), (1, 2)], 1).apply(np.array([[1.0, 2.0, 3.0, 4.0]]))
    array([[[3., 4.]]])
    """

    shapes: Sequence[Shape]
    index: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.shapes, (list, tuple)) or not self.shapes:
            raise ProblemError(f"{self.label}: shapes must be a list, but was {self.shapes!r}")
        shapes = tuple(
            integers(self.label, "shapes", one, least=1) if one != () and one != [] else ()
            for one in self.shapes
        )
        self._set("shapes", shapes)
        (index,) = integers(self.label, "index", self.index, least=0, lengths=(1,))
        if index >= len(shapes):
            raise ProblemError(
                f"{self.label}: index must be one of {len(shapes)} inputs, but was {index}"
            )
        self._set("index", index)

    @property
    def size(self) -> int:
        """Entries of a row of all inputs."""
        return sum(map(math.prod, self.shapes))

    @property
    def columns(self) -> slice:
        """Where the input stands in a row."""
        ends = list(itertools.accumulate(map(math.prod, self.shapes), initial=0))
        return slice(ends[self.index], ends[self.index + 1])

    def _output_shape(self, *shapes: Shape) -> Shape:
        if shapes[0] != (self.size,):
            raise self.mismatch(f"({self.size},), joined of {self.shapes}", shapes[0])
        return tuple(self.shapes[self.index])

    def _compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        rows = inputs[0][:, self.columns]
        return np.ascontiguousarray(rows).reshape(len(rows), *self.shapes[self.index])

    def _details(self) -> str:
        return f"{self.index} of {self.shapes}"


@dataclass(frozen=True, eq=False, repr=False)
class Concatenate(Operation):
    """Two or more signals put together along one axis.

    Parameters
    ----------
    axis : int
        Of a sample, not counting the samples: 0 is that of features and channels.
    """

    axis: int = 0
    arity: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        (axis,) = integers(self.label, "axis", self.axis, least=-32, lengths=(1,))
        self._set("axis", axis)

    def _output_shape(self, *shapes: Shape) -> Shape:
        axis = self.axis + (len(shapes[0]) if shapes and self.axis < 0 else 0)
        rests = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
        lengths = {len(shape) for shape in shapes}
        if len(shapes) < 2 or len(rests) > 1 or len(lengths) > 1 or not 0 <= axis < min(lengths):
            given = [
                f"{shape} from {name!r}" for shape, name in zip(shapes, self.inputs, strict=False)
            ]
            raise ProblemError(
                f"{self.label} takes two or more signals that differ in axis {self.axis} alone, "
                f"but gets {' and '.join(given)}"
            )
        total = sum(shape[axis] for shape in shapes)
        return (*shapes[0][:axis], total, *shapes[0][axis + 1 :])

    def _compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate(inputs, axis=self.axis if self.axis < 0 else self.axis + 1)

    def _details(self) -> str:
        return f"axis {self.axis}"


@dataclass(frozen=True, eq=False, repr=False)
class Embedding(Operation):
    """The rows of a table whose numbers the signal holds; the table is not pruned.

    Parameters
    ----------
    table : array_like of shape (n_rows, n_features)

    Examples
    --------
    >>> import numpy as np
    >>> Embedding([[0.0, 1.0], [2.0, 3.0]]).apply(np.array([[1, 0, 1]])).tolist()
    [[[2.0, 3.0], [0.0, 1.0], [2.0, 3.0]]]
    """

    table: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        table = frozen_array(f"{self.label}: table", self.table)
        if table.ndim != 2 or not 0 < len(table) <= MOST_EXACT:
            raise ProblemError(
                f"{self.label}: table must have shape (n_rows, n_features) with at most "
                f"{MOST_EXACT} rows, but has {table.shape}"
            )
        self._set("table", table)

    @property
    def takes_integers(self) -> bool:
        """Its input holds rows of the table."""
        return True

    @property
    def unpruned(self) -> dict[str, tuple[int, int]]:
        """The entries of the table."""
        return {self.name: count_zeros(self.table)}

    def _output_shape(self, *shapes: Shape) -> Shape:
        return (*shapes[0], self.table.shape[1])

    def _compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        (signal,) = inputs
        known = (signal >= 0) & (signal < len(self.table)) & (signal == np.floor(signal))
        if not known.all():
            raise ProblemError(
                f"{self.label} takes whole numbers from 0 to {len(self.table) - 1}, but gets "
                f"{signal[~known][0]:g}"
            )
        dtype = signal.dtype if signal.dtype.kind == "f" else self.table.dtype
        return np.asarray(self.table[signal.astype(np.int64)], dtype=dtype)

    def _details(self) -> str:
        return str(self.table.shape)


def count_zeros(array: NDArray[Any]) -> tuple[int, int]:
    """Return how many entries an array has, and how many of them are zero."""
    return array.size, array.size - int(np.count_nonzero(array))


def join_inputs(*inputs: Any) -> NDArray[Any]:
    """Return several inputs as one array, every sample's entries in one row.

    Parameters
    ----------
    *inputs : array_like of shape (n_samples, ...)
        In the order in which the model takes them: real numbers or booleans.

    Returns
    -------
    ndarray of shape (n_samples, n_entries)
        In the dtype of the floating-point inputs, float32 at least; int64 if there are none.

    Raises
    ------
    ProblemError
        If the inputs have not the same number of samples, hold no real numbers, or hold integers
        that the dtype rounds.

    Examples
    --------
    >>> import numpy as np
    >>> join_inputs(np.array([[[1, 2]], [[3, 4]]]), np.array([[0.5], [0.25]], dtype=np.float32))
    array([[1.  , 2.  , 0.5 ],
           [3.  , 4.  , 0.25]], dtype=float32)
    """
    arrays = [as_array(f"inputs: number {number}", one) for number, one in enumerate(inputs)]
    for number, one in enumerate(arrays):
        if one.dtype.kind not in "fiub" or one.shape[:1] != arrays[0].shape[:1] or not one.shape:
            raise ProblemError(
                f"inputs must be arrays of real numbers with one row per sample, all with as many "
                f"rows, but number {number} has shape {one.shape} and dtype {one.dtype} beside "
                f"{arrays[0].shape}"
            )
    if not arrays:
        raise ProblemError("inputs must hold at least one array, but is empty")
    floating = [one.dtype for one in arrays if one.dtype.kind == "f"]
    dtype = np.result_type(np.float32, *floating) if floating else np.dtype(np.int64)
    rows = [one.reshape(len(one), math.prod(one.shape[1:])) for one in arrays]
    for number, one in enumerate(rows):
        if one.dtype.kind in "iu" and not np.array_equal(one.astype(dtype), one):
            raise ProblemError(
                f"inputs: number {number} must hold integers that {dtype} does not round, below "
                f"{MOST_EXACT} in float32"
            )
    return np.concatenate([one.astype(dtype, copy=False) for one in rows], axis=1)


def joined_shapes(operations: Iterable[Operation]) -> tuple[Shape, ...]:
    """Return the shapes of the inputs that a network takes joined; none if it takes one alone."""
    return next((tuple(op.shapes) for op in operations if isinstance(op, Part)), ())


def check_whole(what: str, signal: NDArray[Any]) -> None:
    """Raise unless a signal holds whole numbers that its dtype cannot have rounded."""
    if signal.dtype.kind != "f":
        return
    limit = 2.0 ** (np.finfo(signal.dtype).nmant + 1)
    known = (np.abs(signal) < limit) & (signal == np.floor(signal))
    if not known.all():
        first = signal[~known][0]
        rounded = f", which {signal.dtype} may have rounded: give samples in float64"
        raise ProblemError(
            f"{what} takes whole numbers, but gets {first:g}{rounded * bool(abs(first) >= limit)}"
        )


def split(rows: NDArray[Any], shapes: Sequence[Shape]) -> list[NDArray[Any]]:
    """Return the inputs that an array was joined of; of one shape, the array itself."""
    if len(shapes) == 1:
        return [rows]
    return [Part(shapes, index).apply(rows) for index in range(len(shapes))]
