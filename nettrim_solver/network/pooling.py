"""Poolings: the largest or the mean value in sliding windows, and the mean of a whole image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import check_flag
from ..exceptions import ProblemError
from .operations import Operation, Shape
from .windows import Pair, Window, make_window


@dataclass(frozen=True, eq=False, repr=False)
class _Pool2d(Operation):
    """A pooling over sliding windows.

    Parameters
    ----------
    kernel : int or pair of int
    stride : int or pair of int, optional
        The kernel's size when omitted.
    padding, dilation
        See :func:`.make_window`. Padding is no pixel: it never wins, and is not counted.
    """

    kernel: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        stride = self.kernel if self.stride is None else self.stride
        window = make_window(self.label, self.kernel, stride, self.padding, self.dilation)
        for field in ("kernel", "stride", "padding", "dilation"):
            self._set(field, getattr(window, field))

    @property
    def window(self) -> Window:
        """The geometry."""
        return Window(self.kernel, self.stride, self.padding, self.dilation)

    def _output_shape(self, *shapes: Shape) -> Shape:
        channels, height, width = self.image_shape(shapes[0])
        places = window_places(self, self.window, (height, width))
        if not self.window.counts((height, width)).all():
            raise ProblemError(
                f"{self.label}: every window must see a pixel, but with padding {self.padding} and "
                f"images of size {height} x {width} some see padding alone"
            )
        return (channels, *places)

    def _taps(self, padded: NDArray[Any]) -> list[NDArray[Any]]:
        """Return one view per entry of the kernel: what all windows see there."""
        views = self.window.views(padded)
        kh, kw = self.window.kernel
        return [views[..., i, j] for i in range(kh) for j in range(kw)]

    def _details(self) -> str:
        return f"kernel {self.kernel}, stride {self.stride}, padding {self.padding}"


@dataclass(frozen=True, eq=False, repr=False)
class MaxPool2d(_Pool2d):
    """The largest value in each window."""

    def _compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        first, *others = self._taps(self.window.pad(inputs[0], -np.inf))
        output = first.copy()
        for tap in others:
            np.maximum(output, tap, out=output)
        return output


@dataclass(frozen=True, eq=False, repr=False)
class AveragePool2d(_Pool2d):
    """The mean value in each window.

    Parameters
    ----------
    count_include_pad : bool
        Whether padding counts as pixels of value 0 (PyTorch's default), or not at all (the default
        here, in ONNX and in Keras).
    """

    count_include_pad: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("count_include_pad", self.count_include_pad)
        self._set("count_include_pad", bool(self.count_include_pad))

    def _compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        (images,) = inputs
        first, *others = self._taps(self.window.pad(images))
        output = first.copy()
        for tap in others:
            output += tap
        if self.count_include_pad:
            output /= self.window.kernel[0] * self.window.kernel[1]
        else:
            output /= self.window.counts(images.shape[2:]).astype(output.dtype)
        return output


@dataclass(frozen=True, eq=False, repr=False)
class GlobalAveragePool(Operation):
    """The mean of each channel.

    Parameters
    ----------
    keep_dims : bool
        Whether the output is (n_channels, 1, 1) instead of (n_channels,).
    """

    keep_dims: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("keep_dims", self.keep_dims)
        self._set("keep_dims", bool(self.keep_dims))

    def _output_shape(self, *shapes: Shape) -> Shape:
        channels, _, _ = self.image_shape(shapes[0])
        return (channels, 1, 1) if self.keep_dims else (channels,)

    def _compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        mean: NDArray[Any] = inputs[0].mean(axis=(2, 3), keepdims=self.keep_dims)
        return mean


def window_places(operation: Operation, window: Window, size: Pair) -> Pair:
    """Return the output size of an operation's window, or raise if no window fits."""
    places = window.output_size(size)
    if min(places) < 1:
        raise operation.mismatch(
            f"with images of at least {window.extent} with padding {window.padding}", size
        )
    return places
