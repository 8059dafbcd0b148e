"""Layers: the operations whose weights are pruned.

Every layer offers the same view to what prunes it: ``Z = X W + b`` in matrices. A dense layer is
one such product with a row per sample; a convolution has a row per (sample, position), and one
product per group. Weights are copied, and read-only.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..exceptions import ProblemError
from .operations import Operation, Shape, frozen_array
from .patches import RowNumbers, convolve, filter_matrices, matrix_filters, output_rows, patch_rows
from .pooling import window_places
from .windows import Window, make_window


@dataclass(frozen=True, eq=False, repr=False)
class Layer(Operation):
    """An operation with weights W and intercept b.

    Attributes
    ----------
    W : ndarray
        float32 or float64, read-only.
    b : ndarray of shape (n_outputs,) or None
        In the dtype of W.
    """

    W: Any
    b: Any = None

    def _take_weights(self, n_axes: int, axes: str, outputs: int) -> None:
        """Check and copy W and b; `outputs` is the axis of W that counts the outputs."""
        W = frozen_array(f"{self.label}: W", self.W)
        if W.ndim != n_axes or 0 in W.shape:
            raise ProblemError(
                f"{self.label}: W must have shape {axes}, none of them 0, but has {W.shape}"
            )
        self._set("W", W)
        if self.b is None:
            return
        b = frozen_array(f"{self.label}: b", self.b)
        if b.shape != (W.shape[outputs],):
            raise ProblemError(
                f"{self.label}: b must have shape ({W.shape[outputs]},), one entry per output of "
                f"W, but has {b.shape}"
            )
        self._set("b", b if b.dtype == W.dtype else frozen_array("b", b.astype(W.dtype)))

    # Counts -----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def n_outputs(self) -> int:
        """Number of neurons or filters: columns of the matrices, all groups together."""

    @property
    def nnz(self) -> int:
        """Number of nonzero weights; the intercept is not counted."""
        return int(np.count_nonzero(self.W))

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in W."""
        return 1.0 - self.nnz / self.W.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the weights."""
        return np.dtype(self.W.dtype)

    # Matrix form ------------------------------------------------------------------------------

    @property
    def n_groups(self) -> int:
        """Number of independent products."""
        return 1

    def columns(self, group: int) -> slice:
        """Return the outputs that belong to a group."""
        each = self.n_outputs // self.n_groups
        return slice(group * each, (group + 1) * each)

    @abstractmethod
    def n_positions(self, shape: Shape) -> int:
        """Return the number of rows that one sample, of this shape, gives."""

    @abstractmethod
    def input_rows(self, signal: NDArray[Any], rows: RowNumbers) -> tuple[NDArray[Any], ...]:
        """Return chosen rows of X for every group, (R, n_inputs) each; copies.

        Parameters
        ----------
        signal : ndarray of shape (n_samples, ...)
            The layer's input.
        rows : ndarray of int64, shape (R,)
            ``sample * n_positions + position``.
        """

    @abstractmethod
    def output_rows(self, output: NDArray[Any], rows: RowNumbers) -> NDArray[Any]:
        """Return chosen rows of the layer's output, all groups side by side: (R, n_outputs)."""

    @abstractmethod
    def matrices(self) -> tuple[NDArray[Any], ...]:
        """Return W of every group, (n_inputs, n_outputs / n_groups) each; read-only views."""

    @abstractmethod
    def from_matrices(self, matrices: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Return the matrices of the groups as one array of the shape of W."""

    # Changes ----------------------------------------------------------------------------------

    def with_weights(self, W: Any, b: Any = None) -> Self:
        """Return this layer with other weights of the same shape; ``b=None`` is no intercept.

        They are rounded to the dtype of the layer: a pruned network computes as the trained one.
        """
        new = replace(self, W=W, b=b)
        if new.W.shape != self.W.shape:
            raise ProblemError(
                f"{self.label}: W must keep its shape {self.W.shape}, but has {new.W.shape}"
            )
        return new.astype(self.dtype)

    def astype(self, dtype: DTypeLike) -> Self:
        """Return this layer with weights of another dtype, itself if they have it."""
        if self.dtype == dtype:
            return self
        b = None if self.b is None else self.b.astype(dtype)
        return replace(self, W=self.W.astype(dtype), b=b)


@dataclass(frozen=True, eq=False, repr=False)
class Dense(Layer):
    """``x W + b``.

    Parameters
    ----------
    W : array_like of shape (n_inputs, n_outputs)
        The order of scikit-learn and Keras; PyTorch stores the transpose. float32 and float64 are
        kept, other numbers become float64.
    b : array_like of shape (n_outputs,), optional

    Examples
    --------
    >>> import numpy as np
    >>> Dense(np.eye(3)[:, :2], [1.0, 2.0]).apply(np.array([[5.0, 6.0, 7.0]]))
    array([[6., 8.]])
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._take_weights(2, "(n_inputs, n_outputs)", 1)

    @property
    def n_inputs(self) -> int:
        """Number of input features."""
        return int(self.W.shape[0])

    @property
    def n_outputs(self) -> int:
        """Number of neurons."""
        return int(self.W.shape[1])

    def n_positions(self, shape: Shape) -> int:
        """Return 1: a row per sample."""
        return 1

    def input_rows(self, signal: NDArray[Any], rows: RowNumbers) -> tuple[NDArray[Any], ...]:
        """Return chosen samples."""
        return (signal[rows],)

    def output_rows(self, output: NDArray[Any], rows: RowNumbers) -> NDArray[Any]:
        """Return the outputs of chosen samples."""
        return output[rows]

    def matrices(self) -> tuple[NDArray[Any], ...]:
        """Return W."""
        return (self.W,)

    def from_matrices(self, matrices: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Return the only matrix."""
        (W,) = matrices
        return np.array(W)

    def _output_shape(self, *shapes: Shape) -> Shape:
        if shapes[0] != (self.n_inputs,):
            raise self.mismatch(f"({self.n_inputs},)", shapes[0])
        return (self.n_outputs,)

    def _compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        Z: NDArray[Any] = inputs[0] @ self.W
        if self.b is not None:
            Z += self.b
        return Z

    def _details(self) -> str:
        return f"{self.n_inputs} -> {self.n_outputs}, {self.dtype}"


@dataclass(frozen=True, eq=False, repr=False)
class Conv2d(Layer):
    """A 2-d convolution (cross-correlation, as in every framework) of images.

    Parameters
    ----------
    W : array_like of shape (n_filters, n_channels / groups, kh, kw)
        The order of PyTorch and ONNX.
    b : array_like of shape (n_filters,), optional
    stride, dilation : int or pair of int
    padding : int, pair, four int or "same"
        See :func:`.make_window`. Zeros are added.
    groups : int
        Channels and filters are split into so many blocks that have nothing to do with each other.

    Examples
    --------
    >>> import numpy as np
    >>> Conv2d(np.ones((8, 1, 5, 5)), padding="same").output_shape((1, 28, 28))
    (8, 28, 28)
    """

    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._take_weights(4, "(n_filters, n_channels / groups, height, width)", 0)
        window = make_window(
            self.label, self.W.shape[2:], self.stride, self.padding, self.dilation
        )  # fmt: skip
        for field in ("stride", "padding", "dilation"):
            self._set(field, getattr(window, field))
        groups = self.groups
        if isinstance(groups, bool) or not isinstance(groups, (int, np.integer)) or groups < 1:
            raise ProblemError(f"{self.label}: groups must be an integer >= 1, but was {groups!r}")
        if self.n_outputs % groups:
            raise ProblemError(
                f"{self.label}: groups must divide the {self.n_outputs} filters, but was {groups}"
            )
        self._set("groups", int(groups))

    @property
    def window(self) -> Window:
        """The geometry."""
        return Window(self.W.shape[2:], self.stride, self.padding, self.dilation)

    @property
    def n_outputs(self) -> int:
        """Number of filters."""
        return int(self.W.shape[0])

    @property
    def n_channels(self) -> int:
        """Number of channels of the input."""
        return int(self.W.shape[1]) * self.groups

    @property
    def n_groups(self) -> int:
        """Number of groups."""
        return self.groups

    def n_positions(self, shape: Shape) -> int:
        """Return the number of positions of the window in an image of this shape."""
        _, height, width = self._output_shape(shape)
        return height * width

    def input_rows(self, signal: NDArray[Any], rows: RowNumbers) -> tuple[NDArray[Any], ...]:
        """Return chosen patches, see :func:`.patch_rows`."""
        return patch_rows(signal, self, rows)

    def output_rows(self, output: NDArray[Any], rows: RowNumbers) -> NDArray[Any]:
        """Return the outputs at chosen (sample, position) pairs, (R, n_filters)."""
        return output_rows(output, rows)

    def matrices(self) -> tuple[NDArray[Any], ...]:
        """Return the filters of every group as columns, see :func:`.filter_matrices`."""
        return filter_matrices(self.W, self.groups)

    def from_matrices(self, matrices: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Return the filters whose matrices these are, in the shape of W."""
        return matrix_filters(tuple(matrices), self.W.shape)

    def _output_shape(self, *shapes: Shape) -> Shape:
        channels, height, width = self.image_shape(shapes[0])
        if channels != self.n_channels:
            raise self.mismatch(f"({self.n_channels}, height, width)", shapes[0])
        return (self.n_outputs, *window_places(self, self.window, (height, width)))

    def _compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        Z = convolve(inputs[0], self.W, self.window, self.groups)
        if self.b is not None:
            Z += self.b[:, None, None]
        return Z

    def _details(self) -> str:
        (kh, kw), (sh, sw) = self.window.kernel, self.stride
        groups = f", {self.groups} groups" if self.groups > 1 else ""
        return (
            f"{self.n_channels} -> {self.n_outputs}, {kh}x{kw}, stride {sh}x{sw}, "
            f"padding {self.padding}{groups}, {self.dtype}"
        )
