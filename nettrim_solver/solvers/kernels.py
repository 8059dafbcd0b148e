"""Every compiled loop, in one file so that numba's cache sees each change.

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


def _conditions(z, lower, upper, hard, nu, centre, y, sums):  # type: ignore[no-untyped-def]
    """Distance y of one output's row z to its box, and what its optimality conditions sum up.

    On hard rows (`hard` is empty or has P entries) y is the multiplier `nu`, and their distance
    goes into the second sum alone. With `centre`, z is first shifted, in place, to where the sum
    of y vanishes (an intercept's own condition), by at most a few Newton steps.

    ``sums`` receives the squared distance over ball rows, over hard rows, the sum of y,
    ``sigma_K(y)``, the squared norm of y over all rows, and the shift.
    """
    some_hard = hard.shape[0] > 0
    shift = 0.0
    for attempt in range(8):
        ball = 0.0
        excess = 0.0
        total = 0.0
        size = 0.0
        support = 0.0
        square = 0.0
        working = 0
        for p in range(z.shape[0]):
            low = lower[p]
            high = upper[p]
            e = z[p] + shift
            e -= min(max(e, low), high)
            if some_hard and hard[p]:
                excess += e * e
                e = nu[p]
            else:
                ball += e * e
                if e != 0.0:
                    working += 1
            y[p] = e
            total += e
            size += abs(e)
            square += e * e
            if e > 0.0:
                support += e * high
            elif e < 0.0:
                support += e * low
        if not centre or working == 0 or abs(total) <= 1e-15 * size:
            break
        if attempt < 7:
            shift -= total / working
    for p in range(z.shape[0]):
        z[p] += shift
    sums[0] = ball
    sums[1] = excess
    sums[2] = total
    sums[3] = support
    sums[4] = square
    sums[5] = shift


def _piece(z, slope, lower, upper, hard, y, change, ends):  # type: ignore[no-untyped-def]
    """How far a step t may go, ``z + t slope`` and ``y + t change``, before a row changes its part.

    A row within its box may reach an end of it, a working row come back to its box, a hard row's
    multiplier y vanish. ``ends`` receives the largest t <= 0 and the least t >= 0 that do so, and
    `change` what y does on the rows that are not hard (`hard` is empty or has P entries).
    """
    some_hard = hard.shape[0] > 0
    low = -np.inf
    high = np.inf
    for p in range(z.shape[0]):
        d = slope[p]
        t = 0.0
        if some_hard and hard[p]:
            if y[p] != 0.0:
                if change[p] != 0.0:
                    t = -y[p] / change[p]
        else:
            change[p] = 0.0
            if y[p] != 0.0 or lower[p] == upper[p]:
                change[p] = d
                if lower[p] < upper[p] and d != 0.0:
                    t = ((upper[p] if y[p] > 0.0 else lower[p]) - z[p]) / d
        if t > 0.0:
            high = min(high, t)
        elif t < 0.0:
            low = max(low, t)
        elif y[p] == 0.0 and lower[p] < upper[p] and d != 0.0:
            first = (lower[p] - z[p]) / d
            last = (upper[p] - z[p]) / d
            low = max(low, min(first, last, 0.0))
            high = min(high, max(first, last, 0.0))
    ends[0] = low
    ends[1] = high


def _gather(X, rows, columns, mean, scale, n_constant, out):  # type: ignore[no-untyped-def]
    """Rows and columns of the centred and scaled X into `out`, behind a column of ones.

    The first `n_constant` (0 or 1) columns of `out` hold the intercept's column.
    """
    centre = mean[columns]
    factor = scale[columns]
    for r in range(rows.shape[0]):
        x = X[rows[r]]
        for k in range(n_constant):
            out[r, k] = 1
        for k in range(columns.shape[0]):
            out[r, n_constant + k] = (x[columns[k]] - centre[k]) * factor[k]


def _submatrix(matrix, chosen, out, offset):  # type: ignore[no-untyped-def]
    """Copy the lower triangle of a symmetric matrix's chosen rows and columns to ``out[offset:]``.

    `matrix` must be valid below the diagonal, `chosen` ascending, `out` in Fortran order.
    """
    for k in range(chosen.shape[0]):
        i = chosen[k]
        for r in range(k, chosen.shape[0]):
            out[offset + r, offset + k] = matrix[chosen[r], i]


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
conditions = _compiled(_conditions)
piece = _compiled(_piece)
gather = _compiled(_gather)
submatrix = _compiled(_submatrix)
best_constants = _compiled(_best_constants)
