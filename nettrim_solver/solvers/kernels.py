"""Every compiled loop of the iteration, in one file so that numba's cache sees each change.

Arrays of samples are transposed here: row j holds the samples of output j, contiguous in memory.
The kernels are serial and release the GIL; threads, where wanted, take rows of their own. Sums may
be reordered (``reassoc``) so that they vectorise; NaN and infinity keep their meaning.

All of them follow one convention for an output's row: ``e = q - clip(q, lower, upper)``, and the
projection is ``z1 = q - shrink * e`` on ball rows and ``z1 = q - e`` on hard rows (strict, where
lower < upper).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

FAST = {"contract", "reassoc"}


def _compiled(function: Callable[..., Any]) -> Any:
    """Compile on first use, cached on disk where a cache can be written."""
    try:
        return numba.njit(function, nogil=True, cache=True, fastmath=FAST)
    except RuntimeError:  # no writable cache directory: compile anew in every process
        return numba.njit(function, nogil=True, fastmath=FAST)


def _advance(S, Z, shift, lower, upper, epsilon, shrink, fixed, strict, relaxation, sums):  # type: ignore[no-untyped-def]
    """One over-relaxed step of the sample block, ``S += relaxation (z1 - z)``, in place.

    With ``z = Z + shift`` and ``q = 2 z - S``. Unless `fixed`, shrink is that of the ball,
    ``max(0, 1 - epsilon / ||e||)``. `sums` receives the row sums of the new S.
    """
    one = S.dtype.type(1)
    zero = S.dtype.type(0)
    two = S.dtype.type(2)
    for j in range(S.shape[0]):
        b = shift[j]
        factor = shrink[j]
        if not fixed:
            square = zero
            for p in range(S.shape[1]):
                q = two * (Z[j, p] + b) - S[j, p]
                e = q - min(max(q, lower[j, p]), upper[j, p])
                if strict and lower[j, p] < upper[j, p]:
                    e = zero
                square += e * e
            norm = math.sqrt(square)
            factor = zero
            if norm > epsilon[j]:
                factor = one - epsilon[j] / S.dtype.type(norm)
        total = zero
        for p in range(S.shape[1]):
            z = Z[j, p] + b
            s = S[j, p]
            q = two * z - s
            e = q - min(max(q, lower[j, p]), upper[j, p])
            f = factor
            if strict and lower[j, p] < upper[j, p]:
                f = one
            s += relaxation * (z - s - f * e)
            S[j, p] = s
            total += s
        sums[j] = total


def _ball_norms(S, Z, shift, lower, upper, strict, norms):  # type: ignore[no-untyped-def]
    """Norms of e over the ball rows, into `norms` (float64)."""
    two = S.dtype.type(2)
    zero = S.dtype.type(0)
    for j in range(S.shape[0]):
        b = shift[j]
        square = 0.0
        for p in range(S.shape[1]):
            q = two * (Z[j, p] + b) - S[j, p]
            e = q - min(max(q, lower[j, p]), upper[j, p])
            if strict and lower[j, p] < upper[j, p]:
                e = zero
            square += e * e
        norms[j] = math.sqrt(square)


def _measure(S, Z, shift, lower, upper, shrink, strict, dual, squares):  # type: ignore[no-untyped-def]
    """Put the projection's dual vector ``q - z1`` into `dual`, and three sums of squares per row.

    ``squares[:, 0]`` is ``||z1 - z||^2``, ``[:, 1]`` ``||z||^2``, ``[:, 2]`` ``||q - z1||^2``.
    """
    two = S.dtype.type(2)
    one = S.dtype.type(1)
    for j in range(S.shape[0]):
        b = shift[j]
        step = 0.0
        size = 0.0
        force = 0.0
        for p in range(S.shape[1]):
            z = Z[j, p] + b
            q = two * z - S[j, p]
            e = q - min(max(q, lower[j, p]), upper[j, p])
            f = shrink[j]
            if strict and lower[j, p] < upper[j, p]:
                f = one
            e *= f
            dual[j, p] = e
            step += (q - e - z) ** 2
            size += z * z
            force += e * e
        squares[j, 0] = step
        squares[j, 1] = size
        squares[j, 2] = force


def _rescale(S, Z, shift, factors, sums):  # type: ignore[no-untyped-def]
    """``S <- z + (S - z) / factor`` per row: the state that keeps theta when rho changes."""
    for j in range(S.shape[0]):
        if factors[j] == 1:
            continue
        b = shift[j]
        total = S.dtype.type(0)
        for p in range(S.shape[1]):
            z = Z[j, p] + b
            s = z + (S[j, p] - z) / factors[j]
            S[j, p] = s
            total += s
        sums[j] = total


def _shrink_weights(state, W, threshold, relaxation, answer):  # type: ignore[no-untyped-def]
    """Step the weight block: ``answer = soft(2 W - state, threshold)``.

    And ``state += relaxation (answer - W)``.

    Returns nothing; `threshold` has a row per output.
    """
    zero = state.dtype.type(0)
    two = state.dtype.type(2)
    for j in range(state.shape[0]):
        for i in range(state.shape[1]):
            w = W[j, i]
            q = two * w - state[j, i]
            t = threshold[j, i]
            a = max(q - t, zero) + min(q + t, zero)
            answer[j, i] = a
            state[j, i] += relaxation * (a - w)


def _best_constants(lower, upper, constants, squares):  # type: ignore[no-untyped-def]
    """``argmin_b dist(b 1, [lower, upper])^2`` per row, and the squared distance.

    Newton's method on a convex piecewise quadratic, kept in a bracket that halves whenever a step
    leaves it.
    """
    for j in range(lower.shape[0]):
        low = -np.inf
        high = np.inf
        b = 0.0
        for p in range(lower.shape[1]):
            if lower[j, p] > -np.inf:
                high = max(high, lower[j, p]) if high < np.inf else lower[j, p]
            if upper[j, p] < np.inf:
                low = min(low, upper[j, p]) if low > -np.inf else upper[j, p]
        if low == -np.inf or high == np.inf or low > high:
            # One-sided, or every row reachable at once: a constant at distance zero exists.
            b = low if low > -np.inf else (high if high < np.inf else 0.0)
        else:
            for _ in range(200):
                total = 0.0
                count = 0
                slope = 0.0
                for p in range(lower.shape[1]):
                    e = b - min(max(b, lower[j, p]), upper[j, p])
                    slope += e
                    if e != 0.0 or lower[j, p] == upper[j, p]:
                        count += 1
                        total += b - e
                if slope == 0.0:
                    break
                if slope > 0.0:
                    high = min(high, b)
                else:
                    low = max(low, b)
                new = total / count
                if not (low <= new <= high):
                    new = 0.5 * (low + high)
                if abs(new - b) <= 1e-16 * (abs(new) + abs(b)):
                    b = new
                    break
                b = new
        square = 0.0
        for p in range(lower.shape[1]):
            e = b - min(max(b, lower[j, p]), upper[j, p])
            square += e * e
        constants[j] = b
        squares[j] = square


advance = _compiled(_advance)
ball_norms = _compiled(_ball_norms)
measure = _compiled(_measure)
rescale = _compiled(_rescale)
shrink_weights = _compiled(_shrink_weights)
best_constants = _compiled(_best_constants)
