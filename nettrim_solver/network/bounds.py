r"""How far the signals of a pruned network can be from the trained one's, proved layer by layer.

For every signal x a number D(x) with :math:`\|\hat x - x\|_F \le D(x)` over the calibration
samples. The input has 0. A pruned layer whose weights reach the distance d to its target box has

- in a cascade, where the pruned network's own signals entered: :math:`D = \mathrm{Lip}(f)\, d`;
- in parallel: :math:`D = \mathrm{Lip}(f)\,(d + \|\hat W\|_2\, D(\text{input}))`.

Everything else passes errors on with its Lipschitz constant. Sums add them; of signals that are put
together their squares add up. All hold in exact arithmetic; reports allow for rounding besides,
with 1e-12 of a layer's target, 1e-5 for networks that are computed in single precision. A layer of
which only some rows were used has no bound, nor has anything behind it but layers of a cascade.

References
----------
Aghasi, Abdi, Nguyen, Romberg, *Net-Trim*, NIPS 2017 (arXiv:1611.05162), Theorems 1 and 2, whose
layers are scaled to unit norm instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .gathering import Concatenate, Part
from .graph import Network
from .layers import Conv2d, Layer
from .operations import (
    Activate,
    Add,
    Dropout,
    Flatten,
    Operation,
    Reshape,
    Shape,
    Softmax,
    Transpose,
)
from .pooling import AveragePool2d, GlobalAveragePool, MaxPool2d
from .scaling import Affine, BatchNorm
from .windows import Window
from .wiring import INPUT


def activation_of(network: Network, name: str) -> Operation | None:
    """Return the activation behind a layer that alone takes its output; None if there is none."""
    users = network.consumers(name)
    if len(users) != 1 or not isinstance(users[0], (Activate, Dropout)):
        return None
    return users[0] if isinstance(users[0], Activate) else activation_of(network, users[0].name)


def signal_bounds(
    network: Network,
    shapes: Mapping[str, Shape],
    distances: Mapping[str, float | None],
    cascade: bool,
) -> dict[str, float]:
    """Return D of every signal; infinite where nothing is known.

    Parameters
    ----------
    network : Network
        The pruned network.
    shapes : mapping
        Of its signals, see :meth:`.Network.shapes_for`.
    distances : mapping
        Of every pruned layer, what its weights reach on all rows of the calibration data; None if
        only some rows were used. Layers that stayed as they were are left out.
    cascade : bool
        Whether the layers were pruned on the pruned network's own signals.
    """
    bounds = {INPUT: 0.0}
    for op in network.operations:
        sizes = [shapes[source] for source in op.inputs]
        entering = [bounds[source] for source in op.inputs]
        together = math.hypot(*entering) if isinstance(op, Concatenate) else sum(entering)
        passed = _times(lipschitz(op, sizes[0]), together)
        if op.name in distances:
            distance = distances[op.name]
            passed = math.inf if distance is None else distance + (0.0 if cascade else passed)
        # In a cascade what stands between the layer and its activation is not bounded by the
        # distance to the box, but nothing else takes it: the activation then maps the box to Y.
        bounds[op.name] = passed
    return bounds


def _times(constant: float, bound: float) -> float:
    """Return the product, where nothing times anything is nothing."""
    return 0.0 if bound == 0 or constant == 0 else constant * bound


def lipschitz(op: Operation, shape: Shape) -> float:
    """Return a Lipschitz constant of an operation in the Frobenius norm, infinite if unknown.

    Parameters
    ----------
    op : Operation
        Of a sum or a concatenation, that of each argument.
    shape : tuple of int
        Of one sample of its (first) input.
    """
    if isinstance(op, Conv2d):
        return convolution_norm(op, shape)
    if isinstance(op, Layer):
        return max(spectral_norm(matrix) for matrix in op.matrices())
    if isinstance(op, Activate):
        return float(op.function.lipschitz)
    if isinstance(op, (Dropout, Flatten, Reshape, Transpose, Part, Concatenate, Add)):
        return 1.0
    if isinstance(op, Affine):
        return float(np.max(np.abs(op.scale)))
    if isinstance(op, BatchNorm):
        return float(np.max(np.abs(op.factors()[0])))
    if isinstance(op, Softmax):
        # The Jacobian diag(p) - p p' has row sums of moduli 2 p_i (1 - p_i). That of the logarithm,
        # I - 1 p', is convex in p, so its norm is largest at a corner, where p is a unit vector.
        return math.sqrt(shape[op.axis]) if op.log else 0.5
    if isinstance(op, GlobalAveragePool):
        return 1.0 / math.sqrt(math.prod(shape[1:]))
    if isinstance(op, (MaxPool2d, AveragePool2d)):
        return _pooling_constant(op, shape)
    return math.inf


def spectral_norm(matrix: Any) -> float:
    """Return the largest singular value, in float64."""
    return float(np.linalg.norm(np.asarray(matrix, dtype=np.float64), 2))


def convolution_norm(layer: Conv2d, shape: Shape) -> float:
    r"""Return a bound on the spectral norm of a convolution as a map between images.

    The less of two: the norm of the matrix form times the root of how many windows see a
    pixel; and the sum over the taps of the kernel of the norms of their matrices, since each tap
    alone is a shift, cropped and subsampled, times a matrix.
    """
    W = layer.W.astype(np.float64)
    parts = np.split(W, layer.groups)
    gathered = math.sqrt(windows_per_pixel(layer.window, shape))
    by_matrix = gathered * max(spectral_norm(part.reshape(len(part), -1)) for part in parts)
    kh, kw = layer.window.kernel
    by_taps = max(
        sum(spectral_norm(part[:, :, i, j]) for i in range(kh) for j in range(kw)) for part in parts
    )
    return min(by_matrix, by_taps)


def windows_per_pixel(window: Window, shape: Shape) -> int:
    """Return the largest number of windows that see one pixel."""
    counts = []
    places = window.output_size((shape[1], shape[2]))
    for axis in range(2):
        first = np.arange(places[axis]) * window.stride[axis]
        seen = first[:, None] + np.arange(window.kernel[axis]) * window.dilation[axis]
        counts.append(int(np.bincount(seen.ravel()).max()))
    return counts[0] * counts[1]


def _pooling_constant(op: MaxPool2d | AveragePool2d, shape: Shape) -> float:
    """Return the root of the most windows per pixel, over the pixels that a mean is made of."""
    seen = windows_per_pixel(op.window, shape)
    if isinstance(op, MaxPool2d):
        return math.sqrt(seen)
    if op.count_include_pad:
        return math.sqrt(seen / math.prod(op.window.kernel))
    return math.sqrt(seen / int(op.window.counts((shape[1], shape[2])).min()))
