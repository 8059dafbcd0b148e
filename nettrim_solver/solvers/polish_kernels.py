"""Every compiled loop of the polish, in one file so that numba's cache sees each change.

The conditions of one output, the linear system of its working set, and what limits a step. The
kernels are serial and release the GIL; threads take outputs of their own. None of them calls a
function of another file.
"""

from __future__ import annotations

import math

import numpy as np

from .kernels import _compiled

#: Rows and columns of the tiles that are transposed: two of them fit into the first cache.
TILE = 32


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


def _support(  # type: ignore[no-untyped-def]
    V, gradient, penalty, live, lambda_, enter, inside, entering, excess
):
    """Columns that work (a mask `inside`): with a weight, or live and not penalised.

    Others whose gradient exceeds lambda times their penalty by the factor `enter` are listed in
    `entering`, with their `excess`. Returns how many columns work, and how many may enter.
    """
    n_inside = 0
    n = 0
    for i in range(V.shape[0]):
        inside[i] = V[i] != 0.0 or (penalty[i] == 0.0 and live[i])
        if inside[i]:
            n_inside += 1
        elif live[i]:
            over = abs(gradient[i]) - enter * lambda_ * penalty[i]
            if over > 0.0:
                entering[n] = i
                excess[n] = over
                n += 1
    return n_inside, n


def _working_rows(z, y, lower, upper, hard, rows, stiff, sides):  # type: ignore[no-untyped-def]
    """Rows of the ball that work (a mask): matched, or outside the box.

    Hard rows (`hard` is empty or has P entries) with a multiplier y, or outside the box, are
    listed in `stiff`, with their multiplier or distance in `sides`. Returns how many there are.
    """
    some_hard = hard.shape[0] > 0
    n = 0
    for p in range(z.shape[0]):
        if some_hard and hard[p]:
            rows[p] = False
            side = y[p]
            if side == 0.0:
                side = z[p] - min(max(z[p], lower[p]), upper[p])
            if side != 0.0:
                stiff[n] = p
                sides[n] = side
                n += 1
        else:
            rows[p] = y[p] != 0.0 or lower[p] == upper[p]
    return n


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
    place = columns.astype(np.uint64)  # unsigned, for loads without a look at the sign
    for r in range(rows.shape[0]):
        x = X[rows[r]]
        y = out[r, n_constant:]
        for k in range(n_constant):
            out[r, k] = 1
        for k in range(place.shape[0]):
            y[k] = (x[place[k]] - centre[k]) * factor[k]


def _submatrix(matrix, chosen, out, offset):  # type: ignore[no-untyped-def]
    """Copy the lower triangle of a symmetric matrix's chosen rows and columns to ``out[offset:]``.

    `matrix` must be valid below the diagonal, `chosen` ascending, `out` in Fortran order.
    """
    for k in range(chosen.shape[0]):
        i = chosen[k]
        for r in range(k, chosen.shape[0]):
            out[offset + r, offset + k] = matrix[chosen[r], i]


def _mirror(matrix):  # type: ignore[no-untyped-def]
    """Copy the entries right of the diagonal to their places left of it, tile by tile."""
    n = matrix.shape[0]
    for low in range(0, n, TILE):
        for left in range(0, low + TILE, TILE):
            for i in range(low, min(low + TILE, n)):
                for k in range(left, min(left + TILE, i)):
                    matrix[i, k] = matrix[k, i]


def _inherit(old, diagonal, old_places, places, new):  # type: ignore[no-untyped-def]
    """Copy chosen entries of a symmetric matrix to places right of the diagonal of another one.

    `old` is valid left of its diagonal, which is given apart; places are ascending.
    """
    for r in range(places.shape[0]):
        row = old[old_places[r]]
        for k in range(r):
            new[places[k], places[r]] = row[old_places[k]]
        new[places[r], places[r]] = diagonal[old_places[r]]


def _forward_rows(upper, right):  # type: ignore[no-untyped-def]
    """Solve ``L x = b`` for the rows b of `right`, in place; `upper` is L^T, in C order."""
    for c in range(right.shape[0]):
        for k in range(right.shape[1]):
            row = upper[k, k + 1 :]  # slices, for loops over their length become vectors
            rest = right[c, k + 1 :]
            value = right[c, k] / upper[k, k]
            right[c, k] = value
            if value != 0:
                for p in range(row.shape[0]):
                    rest[p] -= value * row[p]


def _border_entries(  # type: ignore[no-untyped-def]
    n_base, column_keys, held_keys, start, dropped, full, first, keys, values, held
):
    """Complete a border's entries in use, whose `first` ones are given, for what is dropped.

    Appended variables (from `n_base` on) are in use but where they rest at zero. All others are
    held where they drop, and listed in `held`. Returns how many entries there are without the
    held ones, how many are held, and how many of these have no key yet.
    """
    count = first
    for i in range(n_base, start.shape[0]):
        if not dropped[i] or start[i] != 0.0:
            keys[count] = column_keys[i - n_base]
            values[count, 0] = full[0, i]
            values[count, 1] = full[1, i]
            count += 1
    n_held = 0
    missing = 0
    for i in range(start.shape[0]):
        if dropped[i] and (i < n_base or start[i] != 0.0):
            held[n_held] = i
            keys[count + n_held] = held_keys[i]
            values[count + n_held, 0] = start[i]
            values[count + n_held, 1] = 0.0
            n_held += 1
            if held_keys[i] < 0:
                missing += 1
    return count, n_held, missing


def _border_system(schur, keys, diagonal, border, half, values, matrix, right):  # type: ignore[no-untyped-def]
    """System of a border's entries in use: ``schur[keys, keys]`` plus a diagonal, into `matrix`.

    And ``values - border[keys] @ half^T`` into `right`; `border` has a row per entry, `half` one
    per right side. The diagonal is that of the first entries, and zero from there on.
    """
    for a in range(keys.shape[0]):
        i = keys[a]
        for b in range(keys.shape[0]):
            matrix[a, b] = schur[i, keys[b]]
        if a < diagonal.shape[0]:
            matrix[a, a] += diagonal[a]
        for c in range(half.shape[0]):
            total = half.dtype.type(0)
            for p in range(half.shape[1]):
                total += border[i, p] * half[c, p]
            right[a, c] = values[a, c] - total


def _border_back(upper, keys, border, z, half, x):  # type: ignore[no-untyped-def]
    """Base's part of bordered solutions, ``L^-T (half - z^T border[keys])``, into the rows of x.

    `half` has a row per right side and is overwritten; `upper` is L^T, in C order.
    """
    n = half.shape[1]
    for c in range(half.shape[0]):
        h = half[c]
        for a in range(keys.shape[0]):
            weight = half.dtype.type(z[a, c])
            b = border[keys[a]]
            for p in range(n):
                h[p] -= weight * b[p]
        for k in range(n - 1, -1, -1):
            row = upper[k, k + 1 :]
            rest = h[k + 1 :]
            total = half.dtype.type(0)
            for p in range(row.shape[0]):
                total += row[p] * rest[p]
            h[k] = (h[k] - total) / upper[k, k]
            x[c, k] = h[k]


def _border_spread(z, n_base, first, start, dropped, x, pull):  # type: ignore[no-untyped-def]
    """Spread the border's part z of a solution: to the variables x, and to the held ones' `pull`.

    Entries are in the order of :func:`_border_entries`, rows up to `first`. Returns whether all is
    finite.
    """
    finite = True
    count = first
    for i in range(n_base, start.shape[0]):
        x[0, i] = 0.0
        x[1, i] = 0.0
        if not dropped[i] or start[i] != 0.0:
            x[0, i] = z[count, 0]
            x[1, i] = z[count, 1]
            count += 1
    for i in range(start.shape[0]):
        if dropped[i] and (i < n_base or start[i] != 0.0):
            x[0, i] = start[i]
            x[1, i] = 0.0
            pull[count - z.shape[0] + pull.shape[0]] = z[count, 0]
            count += 1
        if not (math.isfinite(x[0, i]) and math.isfinite(x[1, i])):
            finite = False
    return finite


def _flip(x, change, start, cost, dropped, y, push, signs, delta, force):  # type: ignore[no-untyped-def]
    """Set ``delta = u + change v`` and the stiff rows' force, and drop what would flip its sign.

    Returns how many variables do, and how many stiff rows have a force of the wrong sign.
    """
    flips = 0
    for i in range(start.shape[0]):
        delta[i] = x[0, i] + change * x[1, i]
        if not dropped[i] and cost[i] != 0.0 and (cost[i] > 0.0) != (start[i] - delta[i] > 0.0):
            if start[i] != delta[i]:
                dropped[i] = True
                flips += 1
    wrong = 0
    for r in range(y.shape[0]):
        force[r] = y[r] + push[r, 0] + change * push[r, 1]
        if force[r] * signs[r] < 0.0:
            wrong += 1
    return flips, wrong


def _radius_change(  # type: ignore[no-untyped-def]
    x, right, lambda_, cost, ridge, held, pull, moves, y, push, square
):
    """Coefficients of ``||E - X~ (u + d v)||^2`` as a quadratic in d, highest first.

    It is `square` at u = 0. The rows of x are u and v. The products with H follow from the system
    that they solve, without H, where `held` variables have multipliers `pull`, and stiff rows the
    multipliers y, their changes `push`, and products with u and v in `moves`.
    """
    u = x[0]
    v = x[1]
    vv = 0.0
    uu = 0.0
    uv = 0.0
    ru = 0.0
    rv = 0.0
    for i in range(u.shape[0]):
        target = right[i] + lambda_ * cost[i]
        vv += (cost[i] - ridge[i] * v[i]) * v[i]
        uu += (target - ridge[i] * u[i]) * u[i]
        uv += (target - ridge[i] * u[i]) * v[i]
        ru += right[i] * u[i]
        rv += right[i] * v[i]
    for k in range(held.shape[0]):
        uu -= u[held[k]] * pull[k]
    for r in range(moves.shape[0]):
        bu = moves[r, 0]
        bv = moves[r, 1]
        vv += bv * push[r, 1]
        uu += bu * push[r, 0]
        uv += bv * push[r, 0]
        ru -= y[r] * bu
        rv -= y[r] * bv
    return vv, 2.0 * (uv - rv), square - 2.0 * ru + uu


def _dual_ratio(V, gradient, penalty, lambda_, floor):  # type: ignore[no-untyped-def]
    """Return the l1 norm ``penalty @ |V|`` and the largest ``|gradient_i| / (lambda penalty_i)``.

    Where nothing is penalised the gradient must vanish: infinity where it exceeds the floor.
    """
    objective = 0.0
    ratio = 0.0
    for i in range(V.shape[0]):
        objective += penalty[i] * abs(V[i])
        limit = lambda_ * penalty[i]
        slope = abs(gradient[i])
        if limit > 0.0:
            ratio = max(ratio, slope / limit)
        elif slope > floor:
            ratio = np.inf
    return objective, ratio


conditions = _compiled(_conditions)
support = _compiled(_support)
working_rows = _compiled(_working_rows)
piece = _compiled(_piece)
gather = _compiled(_gather)
submatrix = _compiled(_submatrix)
mirror = _compiled(_mirror)
inherit = _compiled(_inherit)
forward_rows = _compiled(_forward_rows)
border_entries = _compiled(_border_entries)
border_system = _compiled(_border_system)
border_back = _compiled(_border_back)
border_spread = _compiled(_border_spread)
flip = _compiled(_flip)
radius_change = _compiled(_radius_change)
dual_ratio = _compiled(_dual_ratio)
