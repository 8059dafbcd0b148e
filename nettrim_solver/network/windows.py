"""Where a kernel looks at an image: size, stride, padding and dilation of a sliding window.

Convolutions and poolings share this geometry. Windows are strided views of the (padded) images, so
looking at them copies nothing. Images have the shape (n_samples, n_channels, height, width).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..exceptions import ProblemError

Pair = tuple[int, int]
Padding = tuple[int, int, int, int]


@dataclass(frozen=True)
class Window:
    """A window that slides over images.

    Attributes
    ----------
    kernel, stride, dilation : tuple of int
        Vertical, horizontal. Neighbouring taps are `dilation` pixels apart.
    padding : tuple of int
        Pixels added at the top, left, bottom and right.

    Examples
    --------
    >>> Window((3, 3), (2, 2), (1, 1, 1, 1), (1, 1)).output_size((28, 28))
    (14, 14)
    """

    kernel: Pair
    stride: Pair
    padding: Padding
    dilation: Pair

    @property
    def extent(self) -> Pair:
        """Height and width of what one window spans: ``dilation * (kernel - 1) + 1``."""
        (kh, kw), (dh, dw) = self.kernel, self.dilation
        return dh * (kh - 1) + 1, dw * (kw - 1) + 1

    def padded_size(self, size: Pair) -> Pair:
        """Return height and width of an image with its padding."""
        top, left, bottom, right = self.padding
        return size[0] + top + bottom, size[1] + left + right

    def output_size(self, size: Pair) -> Pair:
        """Return how many windows fit, ``(padded - extent) // stride + 1``; below 1 if none."""
        padded = self.padded_size(size)
        rows, columns = (
            (n - extent) // stride + 1
            for n, extent, stride in zip(padded, self.extent, self.stride, strict=True)
        )
        return rows, columns

    def counts(self, size: Pair) -> NDArray[np.int64]:
        """Return how many pixels each window sees besides padding, shape of the output size."""
        along = []
        for axis, (n, places) in enumerate(zip(size, self.output_size(size), strict=True)):
            first = np.arange(places) * self.stride[axis] - self.padding[axis]
            taps = first[:, None] + np.arange(self.kernel[axis]) * self.dilation[axis]
            along.append(np.sum((taps >= 0) & (taps < n), axis=1))
        return np.outer(along[0], along[1])

    def pad(self, images: NDArray[Any], value: float = 0.0) -> NDArray[Any]:
        """Return the images with their padding: a copy, or the images themselves without any."""
        if not any(self.padding):
            return images
        top, left, bottom, right = self.padding
        widths = ((0, 0), (0, 0), (top, bottom), (left, right))
        return np.pad(images, widths, constant_values=value)

    def views(self, padded: NDArray[Any]) -> NDArray[Any]:
        """Return the windows of padded images, without a copy and read-only.

        Parameters
        ----------
        padded : ndarray of shape (n_samples, n_channels, height, width)
            What :meth:`pad` returned.

        Returns
        -------
        ndarray of shape (n_samples, n_channels, rows, columns, kernel height, kernel width)
        """
        (sh, sw), (dh, dw) = self.stride, self.dilation
        every = np.lib.stride_tricks.sliding_window_view(padded, self.extent, axis=(2, 3))
        return every[:, :, ::sh, ::sw, ::dh, ::dw]


def make_window(
    where: str, kernel: Any, stride: Any, padding: Any, dilation: Any = 1
) -> Window:  # fmt: skip
    """Check and normalise the geometry of an operation.

    Parameters
    ----------
    where : str
        The operation, for messages.
    kernel, stride, dilation : int or pair of int
    padding : int, pair, four int or "same"
        One number for all sides; (vertical, horizontal); (top, left, bottom, right); or as much as
        keeps the size at stride 1, the odd pixel at the bottom and right.

    Raises
    ------
    ProblemError
        For anything else. ``"same"`` with a stride depends on the size of the image: see
        :func:`same_padding`.
    """
    size = _pair(where, "kernel", kernel)
    steps = _pair(where, "stride", stride)
    gaps = _pair(where, "dilation", dilation)
    if isinstance(padding, str):
        if padding != "same":
            raise ProblemError(
                f"{where}: padding must be a number, a pair, (top, left, bottom, right) or 'same', "
                f"but was {padding!r}"
            )
        if steps != (1, 1):
            raise ProblemError(
                f"{where}: padding='same' needs stride 1, but stride was {steps}; with a stride it "
                "depends on the image: give the numbers that network.same_padding returns"
            )
        # At stride 1 the size of the image cancels.
        return Window(size, steps, same_padding((1, 1), size, 1, gaps), gaps)
    numbers = integers(where, "padding", padding, least=0, lengths=(1, 2, 4))
    sides = numbers * (4 // len(numbers))
    return Window(size, steps, cast(Padding, sides), gaps)


def same_padding(
    size: Pair, kernel: Any, stride: Any = 1, dilation: Any = 1, *, upper: bool = True
) -> Padding:
    """Return the padding for which the output has ``ceil(size / stride)`` rows and columns.

    Parameters
    ----------
    size : pair of int
        Height and width of the image.
    kernel, stride, dilation : int or pair of int
    upper : bool
        Whether the odd pixel goes to the bottom and right (Keras, ONNX ``SAME_UPPER``) or to the
        top and left (ONNX ``SAME_LOWER``).

    Returns
    -------
    tuple of int
        Top, left, bottom, right.

    Examples
    --------
    >>> same_padding((28, 28), 5)
    (2, 2, 2, 2)
    >>> same_padding((5, 8), 2, 2)
    (0, 0, 1, 0)
    """
    window = make_window("same_padding", kernel, stride, 0, dilation)
    ends = []
    for n, extent, step in zip(size, window.extent, window.stride, strict=True):
        total = max(0, (-(-n // step) - 1) * step + extent - n)
        less, more = total // 2, total - total // 2
        ends.append((less, more) if upper else (more, less))
    (top, bottom), (left, right) = ends
    return top, left, bottom, right


def integers(
    where: str, name: str, value: Any, *, least: int, lengths: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """Return one integer or several as a tuple, or raise ProblemError.

    Parameters
    ----------
    where, name : str
        The operation and its argument, for messages.
    value : int or iterable of int
    least : int
    lengths : tuple of int, optional
        How many there may be; any number from one on when omitted.
    """
    several = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
    numbers = list(value) if several and np.ndim(value) else [value]
    valid = all(isinstance(n, Integral) and not isinstance(n, bool) for n in numbers)
    right = len(numbers) in lengths if lengths else bool(numbers)
    if not valid or not right or min(int(n) for n in numbers) < least:
        count = " or ".join(map(str, lengths)) + " " if lengths else ""
        what = "an integer" if lengths == (1,) else f"{count}integers"
        raise ProblemError(f"{where}: {name} must be {what} >= {least}, but was {value!r}")
    return tuple(int(n) for n in numbers)


def _pair(where: str, name: str, value: Any) -> Pair:
    numbers = integers(where, name, value, least=1, lengths=(1, 2))
    return numbers[0], numbers[-1]
