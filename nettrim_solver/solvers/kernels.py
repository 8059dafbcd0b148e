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
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numba
import numpy as np

FAST = {"contract", "reassoc"}

#: Samples at a time in products with X for few outputs: such a tile stays in the second cache.
TILE = 64


class _Cache:
    """Numba's cache of one function, for which the function is compiled where it fails.

    A file that was cut off, a full disk or a folder that went away make it raise whatever pickle or
    the system raises, in every process, without naming a file.
    """

    warned = False

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def load_overload(self, *args: Any) -> Any:
        """Return the compiled function, or None."""
        try:
            return self._cache.load_overload(*args)
        except Exception as error:
            self._warn("read", error)
            with suppress(Exception):
                self._cache.flush()  # so that the next process finds none instead of a broken one
            return None

    def save_overload(self, *args: Any) -> None:
        """Save a compiled function, if that is possible."""
        try:
            self._cache.save_overload(*args)
        except Exception as error:
            self._warn("written", error)

    def _warn(self, what: str, error: Exception) -> None:
        if not _Cache.warned:
            _Cache.warned = True
            text = (
                f"the compiled kernels in {self._cache.cache_path} cannot be {what} ({error!r}); "
            )
            text += "they are compiled in this process. Set NUMBA_CACHE_DIR to another folder"
            warnings.warn(text, RuntimeWarning, stacklevel=2)


def _compiled(function: Callable[..., Any]) -> Any:
    """Compile on first use, cached on disk where a cache can be written."""
    try:
        compiled = numba.njit(function, nogil=True, cache=True, fastmath=FAST)
    except RuntimeError:  # no writable cache directory: compile anew in every process
        return numba.njit(function, nogil=True, fastmath=FAST)
    if hasattr(compiled, "_cache"):
        compiled._cache = _Cache(compiled._cache)
    return compiled


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


def _forward_few(X, V, Z):  # type: ignore[no-untyped-def]
    """``Z = V X^T`` for few rows of V, two at a time over four samples: X is read once, in place.

    A BLAS first copies X, which takes longer than multiplying it by a few rows.
    """
    zero = X.dtype.type(0)
    n_samples = X.shape[0]
    for start in range(0, n_samples, TILE):
        stop = min(start + TILE, n_samples)
        for j in range(0, V.shape[0], 2):
            # The last rows and samples stand in for those that there are not.
            other = min(j + 1, V.shape[0] - 1)
            v = V[j]
            w = V[other]
            for p in range(start, stop, 4):
                p1 = min(p + 1, stop - 1)
                p2 = min(p + 2, stop - 1)
                p3 = min(p + 3, stop - 1)
                x0 = X[p]
                x1 = X[p1]
                x2 = X[p2]
                x3 = X[p3]
                v0 = v1 = v2 = v3 = w0 = w1 = w2 = w3 = zero
                for k in range(v.shape[0]):
                    a = v[k]
                    b = w[k]
                    v0 += x0[k] * a
                    v1 += x1[k] * a
                    v2 += x2[k] * a
                    v3 += x3[k] * a
                    w0 += x0[k] * b
                    w1 += x1[k] * b
                    w2 += x2[k] * b
                    w3 += x3[k] * b
                Z[j, p] = v0
                Z[j, p1] = v1
                Z[j, p2] = v2
                Z[j, p3] = v3
                Z[other, p] = w0
                Z[other, p1] = w1
                Z[other, p2] = w2
                Z[other, p3] = w3


def _adjoint_few(X, S, product, places, values):  # type: ignore[no-untyped-def]
    """Add ``S X`` to `product`, for few rows of S, by the nonzero entries of S alone.

    `places` (unsigned) and `values` are room for ``TILE + 4`` entries: those of a tile of samples,
    and zeros up to a multiple of four.
    """
    zero = X.dtype.type(0)
    n_samples = X.shape[0]
    for start in range(0, n_samples, TILE):
        stop = min(start + TILE, n_samples)
        for j in range(S.shape[0]):
            s = S[j]
            count = 0
            for p in range(start, stop):
                if s[p] != zero:
                    places[count] = p
                    values[count] = s[p]
                    count += 1
            for extra in range(4):
                places[count + extra] = start
                values[count + extra] = zero
            total = product[j]
            for i in range(0, count, 4):
                x0 = X[places[i]]
                x1 = X[places[i + 1]]
                x2 = X[places[i + 2]]
                x3 = X[places[i + 3]]
                s0 = values[i]
                s1 = values[i + 1]
                s2 = values[i + 2]
                s3 = values[i + 3]
                for k in range(total.shape[0]):
                    total[k] += (s0 * x0[k] + s1 * x1[k]) + (s2 * x2[k] + s3 * x3[k])


advance = _compiled(_advance)
ball_norms = _compiled(_ball_norms)
measure = _compiled(_measure)
rescale = _compiled(_rescale)
shrink_weights = _compiled(_shrink_weights)
best_constants = _compiled(_best_constants)
forward_few = _compiled(_forward_few)
adjoint_few = _compiled(_adjoint_few)
