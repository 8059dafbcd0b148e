"""Convolutions as matrices: what the windows see as rows, filters as columns.

A convolution is ``Z = X W`` on patches: a row of X per (sample, position), a column of W per
filter. With groups it is one such product per group. A filter, of shape (n_channels / groups, kh,
kw), is flattened in C order into a column, and what a window sees of those channels likewise:

    Z[n, f, y, x] = sum over c, i, j of  W[f, c, i, j] padded[n, c, y sh + i dh, x sw + j dw]

RowNumbers are counted sample by sample, and within one by rows and columns of the output:
``row = sample * n_positions + y * width + x``.

The functions gather what is asked for from strided views; the whole patch matrix, kh kw times the
size of the images, is never made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .operations import BLOCK_ENTRIES

if TYPE_CHECKING:
    from .layers import Conv2d
    from .windows import Window

RowNumbers = NDArray[np.int64]


def patch_rows(images: NDArray[Any], layer: Conv2d, rows: RowNumbers) -> tuple[NDArray[Any], ...]:
    """Return chosen rows of the patch matrix of every group.

    Parameters
    ----------
    images : ndarray of shape (n_samples, n_channels, height, width)
    layer : Conv2d
    rows : ndarray of int64, shape (R,)
        ``sample * n_positions + position``.

    Returns
    -------
    tuple of ndarray of shape (R, n_channels / groups * kh * kw)
        One per group.

    Notes
    -----
    Memory: the result, and a copy of the images if there is padding.
    """
    views = layer.window.views(layer.window.pad(images))
    n_channels, height, width = views.shape[1:4]
    samples, positions = np.divmod(rows, height * width)
    y, x = np.divmod(positions, width)
    each = n_channels // layer.groups
    found = []
    for group in range(layer.groups):
        # The chosen axes first, so that what is left of each row is (channels, kh, kw).
        part = views[:, group * each : (group + 1) * each].transpose(0, 2, 3, 1, 4, 5)
        found.append(part[samples, y, x].reshape(len(rows), -1))
    return tuple(found)


def output_rows(output: NDArray[Any], rows: RowNumbers) -> NDArray[Any]:
    """Return chosen rows of a convolution's output: (R, n_filters) from (n, n_filters, h, w)."""
    height, width = output.shape[2:]
    samples, positions = np.divmod(rows, height * width)
    y, x = np.divmod(positions, width)
    return np.ascontiguousarray(output[samples, :, y, x])


def filter_matrices(W: NDArray[Any], groups: int) -> tuple[NDArray[Any], ...]:
    """Return the matrix of every group: (n_channels / groups * kh * kw, n_filters / groups).

    Views of the filters, transposed.
    """
    return tuple(part.reshape(len(part), -1).T for part in np.split(W, groups))


def matrix_filters(matrices: tuple[NDArray[Any], ...], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the filters, of the given shape, whose matrices these are."""
    columns = np.concatenate([np.asarray(matrix).T for matrix in matrices])
    return np.ascontiguousarray(columns).reshape(shape)


def convolve(
    images: NDArray[Any], W: NDArray[Any], window: Window, groups: int
) -> NDArray[Any]:  # fmt: skip
    """Return the convolution of images with filters, without intercept.

    Parameters
    ----------
    images : ndarray of shape (n_samples, n_channels, height, width)
    W : ndarray of shape (n_filters, n_channels / groups, kh, kw)
    window : Window
    groups : int

    Returns
    -------
    ndarray of shape (n_samples, n_filters, rows, columns)

    Notes
    -----
    One matrix product per sample (or part of it) and group. About ``BLOCK_ENTRIES`` entries of the
    patches are in memory at once, besides a copy of the images if there is padding.
    """
    views = window.views(window.pad(images))
    n, channels, height, width, kh, kw = views.shape
    taps = channels // groups * kh * kw
    filters = W.reshape(groups, -1, taps)
    output = np.empty((n, groups, filters.shape[1], height, width), np.result_type(images, W))
    for samples, lines in _blocks(n, height, channels * kh * kw * width):
        seen = views[samples, :, lines].transpose(0, 1, 4, 5, 2, 3)
        patches = seen.reshape(len(seen), groups, taps, -1)
        output[samples, :, :, lines] = (filters @ patches).reshape(
            len(seen), groups, -1, seen.shape[4], width
        )
    return output.reshape(n, len(W), height, width)


def _blocks(n_samples: int, height: int, entries: int) -> Iterator[tuple[slice, slice]]:
    """Yield (samples, lines of the output) whose patches fill a block; a line has these entries."""
    lines = min(height, max(1, BLOCK_ENTRIES // max(1, entries)))
    many = max(1, BLOCK_ENTRIES // max(1, entries * height)) if lines == height else 1
    for first in range(0, n_samples, many):
        for top in range(0, height, lines):
            yield slice(first, first + many), slice(top, top + lines)
