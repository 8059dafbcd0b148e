"""Products in twice the working precision, for the few whose rounding float64 would show.

Numpy alone: error-free sums and products (Dekker, Knuth), one input or one sample at a time and all
others at once, so an entry costs about ten products of the ordinary kind.

References
----------
Ogita, Rump, Oishi, *Accurate sum and dot product*, SIAM J. Sci. Comput. 26 (2005).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Dekker's constant, which splits 53 bits into two halves.
SPLIT = 2.0**27 + 1.0


class Accumulator:
    """A sum of products, kept as a high and a low part."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.high, self.low = np.zeros(shape), np.zeros(shape)

    def add(self, values: Array) -> None:
        """Add numbers."""
        total = self.high + values
        part = total - self.high
        self.low += (self.high - (total - part)) + (values - part)
        self.high = total

    def add_product(self, x: Array, y: Array) -> None:
        """Add ``x * y``, broadcast."""
        product = x * y
        (a, b), (c, d) = _halves(x), _halves(y)
        self.add(product)
        self.low += ((a * c - product) + a * d + b * c) + b * d

    def total(self) -> Array:
        """Return the sum."""
        return self.high + self.low


def _halves(values: Array) -> tuple[Array, Array]:
    high = SPLIT * values
    high = high - (high - values)
    return high, values - high


def forward(X: Any, W: Array, b: Array | None) -> Array:
    """Return ``X @ W + b``, shape (n_samples, m), rounded once."""
    result = Accumulator((X.shape[0], W.shape[1]))
    columns = sp.csc_array(X) if sp.issparse(X) else X
    for i in np.flatnonzero(np.any(W != 0, axis=1)):
        column = columns[:, [i]].toarray() if sp.issparse(columns) else columns[:, [i]]
        result.add_product(column.astype(np.float64), W[i].astype(np.float64))
    if b is not None:
        result.add(np.broadcast_to(np.asarray(b, dtype=np.float64), result.high.shape))
    return result.total()


def adjoint(X: Any, theta: Array) -> Array:
    """Return ``X.T @ theta``, shape (n_inputs, m), rounded once."""
    result = Accumulator((X.shape[1], theta.shape[1]))
    for p in np.flatnonzero(np.any(theta != 0, axis=1)):
        row = X[[p]].toarray() if sp.issparse(X) else X[[p]]
        result.add_product(row.astype(np.float64).T, theta[p])
    return result.total()


def dots(columns: Array, vector: Array) -> Array:
    """Return ``columns.T @ vector`` for a vector, each entry rounded once."""
    product = columns * vector[:, None]
    (a, b), (c, d) = _halves(columns), _halves(vector[:, None])
    rest = ((a * c - product) + a * d + b * c) + b * d
    return column_sums(np.concatenate([product, rest]))


def column_sums(values: Array) -> Array:
    """Return the sums of all columns, each rounded once; those that overflow are not finite."""
    return np.array([_sum(column) for column in values.T])


def _sum(values: Array) -> float:
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # beyond all numbers, or infinite with either sign
        return math.nan
