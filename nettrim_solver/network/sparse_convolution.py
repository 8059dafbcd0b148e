"""Convolutions by their nonzero weights alone, and their gradients: compiled, in any precision.

A convolution with K nonzero weights takes K multiplications per position of the output, and neither
patches nor dense products. The samples come last, so that what one weight multiplies in a line of
the output is contiguous. `taps` lists the nonzero weights, a row each: the filter, the channel of
the image, and the vertical and horizontal offset in the padded image.
"""

from __future__ import annotations

import numba as nb


@nb.njit(cache=True, nogil=True, fastmath=True)
def convolve_taps(images, taps, weights, stride, output):  # type: ignore[no-untyped-def]
    """Add the convolution of padded images, (channels, height, width, n), to the output."""
    rows, columns, n = output.shape[1:]
    sh, sw = stride
    for k in range(len(weights)):
        f, c, i, j = taps[k]
        w = weights[k]
        for y in range(rows):
            for x in range(columns):
                seen, into = images[c, y * sh + i, x * sw + j], output[f, y, x]
                for s in range(n):
                    into[s] += w * seen[s]


@nb.njit(cache=True, nogil=True, fastmath=True)
def weight_gradient(images, taps, above, stride, gradient):  # type: ignore[no-untyped-def]
    """Add the gradient with respect to the nonzero weights, from that of the output."""
    rows, columns, n = above.shape[1:]
    sh, sw = stride
    for k in range(len(gradient)):
        f, c, i, j = taps[k]
        total = gradient.dtype.type(0.0)
        for y in range(rows):
            for x in range(columns):
                seen, own = images[c, y * sh + i, x * sw + j], above[f, y, x]
                for s in range(n):
                    total += own[s] * seen[s]
        gradient[k] += total


@nb.njit(cache=True, nogil=True, fastmath=True)
def image_gradient(above, taps, weights, stride, gradient):  # type: ignore[no-untyped-def]
    """Add the gradient with respect to the padded images, from that of the output."""
    rows, columns, n = above.shape[1:]
    sh, sw = stride
    for k in range(len(weights)):
        f, c, i, j = taps[k]
        w = weights[k]
        for y in range(rows):
            for x in range(columns):
                into, own = gradient[c, y * sh + i, x * sw + j], above[f, y, x]
                for s in range(n):
                    into[s] += w * own[s]
