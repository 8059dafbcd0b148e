"""A number of weights spread over layers: three rules, as functions of numbers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from .layers import Layer

if TYPE_CHECKING:
    from .paths import LayerPath

#: Halvings of the common tolerance.
HALVINGS = 60


def least_nnz(layer: Layer) -> int:
    """Return the least nonzeros that a layer keeps: one per output that has any."""
    return sum(int(np.count_nonzero(matrix.any(axis=0))) for matrix in layer.matrices())


def spread_evenly(sizes: Mapping[str, int], budget: int) -> dict[str, int]:
    """Return the same share of every layer's weights, which add up to the budget.

    Rounded down; what is missing goes to the layers with the largest remainders.

    Examples
    --------
    >>> spread_evenly({"a": 10, "b": 5}, 8)
    {'a': 5, 'b': 3}
    """
    size = sum(sizes.values())
    found = {name: budget * own // size for name, own in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: -(budget * sizes[name] % size))
    for name in by_remainder[: budget - sum(found.values())]:
        found[name] += 1
    return found


def spread_by_shape(layers: Mapping[str, Layer], budget: int, exponent: float) -> dict[str, int]:
    """Return a spread by the shapes of the layers alone, between an even one and that by neurons.

    A layer of n weights whose matrices have r rows and columns together gets about
    ``n^(1 - exponent) r^exponent`` parts: at 0 every layer has the same sparsity, at 1 every row
    and column of every layer has about equally many weights, so that small layers stay denser
    (Mocanu et al., *Scalable Training of Artificial Neural Networks*, Nature Communications 9,
    2018). Each layer keeps one weight per output at least, and the counts add up to the budget.

    Examples
    --------
    >>> from nettrim_solver.network import Dense
    >>> import numpy as np
    >>> layers = {"a": Dense(np.ones((80, 20))), "b": Dense(np.ones((20, 5)))}
    >>> spread_by_shape(layers, 170, 0.0), spread_by_shape(layers, 170, 1.0)
    ({'a': 160, 'b': 10}, {'a': 136, 'b': 34})
    """
    sizes = {name: layer.W.size for name, layer in layers.items()}
    least = {name: least_nnz(layer) for name, layer in layers.items()}
    parts = {
        name: sizes[name] ** (1.0 - exponent)
        * sum(sum(matrix.shape) for matrix in layer.matrices()) ** exponent
        for name, layer in layers.items()
    }

    def at(level: float) -> dict[str, int]:
        return {n: max(least[n], min(sizes[n], int(level * parts[n]))) for n in sizes}

    low, high = 0.0, max(sizes[name] / parts[name] for name in sizes) * 2.0
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        if sum(at(middle).values()) <= budget:
            low = middle
        else:
            high = middle
    found = at(low)
    for name in sorted(sizes, key=lambda name: found[name] - sizes[name]):
        room = budget - sum(found.values())
        found[name] += max(0, min(room, sizes[name] - found[name]))
    return found


def spread_by_tolerance(
    paths: Mapping[str, LayerPath], budget: int, least: Mapping[str, int]
) -> dict[str, int]:
    """Return the nonzeros with which all layers reach the same error of their own.

    The least common error that the budget affords; what is left over goes to the first layers that
    a smaller error would give more.
    """

    def at(error: float) -> dict[str, int]:
        return {name: max(least[name], path.nnz_for(error)) for name, path in paths.items()}

    low, high = 0.0, max(float(path.errors.max()) for path in paths.values())
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        if sum(at(middle).values()) <= budget:
            high = middle
        else:
            low = middle
    found, more = at(high), at(low)
    if sum(found.values()) > budget:  # Only the least that layers keep.
        found = dict(least)
    for limits in (more, {name: path.size for name, path in paths.items()}):
        for name, limit in limits.items():
            room = max(0, limit - found[name])
            found[name] += min(room, budget - sum(found.values()))
    return found


def spread_by_output(
    paths: Mapping[str, LayerPath], budget: int, least: Mapping[str, int]
) -> dict[str, int]:
    """Return the nonzeros of least total error at the output, on the minorants of the paths.

    Pieces of the minorants are bought in the order of their slopes; ties go to earlier layers.
    """
    found, pieces = dict(least), []
    for name, path in paths.items():
        nnz, errors = path.minorant(least[name])
        slopes = np.diff(errors) / np.diff(nnz)
        pieces += [(slope, name, int(n)) for slope, n in zip(slopes, np.diff(nnz), strict=True)]
    left = budget - sum(found.values())
    for _, name, length in sorted(pieces, key=lambda piece: piece[0]):
        found[name] += min(length, left)
        left -= min(length, left)
    return found
