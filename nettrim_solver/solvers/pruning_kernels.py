"""Every compiled loop of the pruners, in one file so that numba's cache sees each change.

Weights are transposed here: row j holds the weights of output j, contiguous in memory. The kernels
are serial and release the GIL; threads, where wanted, take rows of their own. None of them calls a
function of another file.
"""

from __future__ import annotations

import numpy as np

from .kernels import _compiled

# Optimal brain surgery: removal of weights by the inverse Gram matrix ---------------------------


def _surgery(inverse, order, removed, W):  # type: ignore[no-untyped-def]
    """Remove weights one after another, the inverse staying as it is; W changes in place.

    In the `order` of its row (indices of inputs), every weight marked in `removed` changes its
    row by ``-(w_i / [H^-1]_ii) H^-1[i]``, with its value at that moment. All of them end at zero.
    """
    for j in range(W.shape[0]):
        for t in range(order.shape[1]):
            i = order[j, t]
            if removed[j, i]:
                step = W[j, i] / inverse[i, i]
                for k in range(W.shape[1]):
                    W[j, k] -= step * inverse[i, k]
        for i in range(W.shape[1]):
            if removed[j, i]:
                W[j, i] = 0.0


def _trace_removals(inverse, floor, W, group, quota, order, increments):  # type: ignore[no-untyped-def]
    """Remove the weights of each row in the order of least loss, one at a time.

    Removing input p of the active set A takes ``w_p^2 / V_pp`` with ``V = [H_AA]^-1``, and leaves
    the Schur complement ``V - V_p V_p' / V_pp``. So the removals are a Cholesky factorisation of
    H^-1 whose pivots are chosen as it goes: with its columns so far in `factor`, V is
    ``H^-1 - factor factor'``. Only the diagonal of V and the pivot's column are ever formed:
    a third of the flops of updating V, and nothing but the new column is written.

    `floor` is ``1 / diag(H)``, which the diagonal of V never undercuts but for rounding. Every
    `group` consecutive inputs lose at most `quota`; a group that has lost them is left alone.
    Of equal losses the larger index goes. Row j of `order` and of `increments` receives the
    removed inputs and what each cost.
    """
    N = inverse.shape[0]
    factor = np.empty((N, N))
    diagonal = np.empty(N)
    w = np.empty(N)
    active = np.empty(N, dtype=np.int64)
    lost = np.empty(N // group, dtype=np.int64)
    for j in range(W.shape[0]):
        for i in range(N):
            active[i] = i
            w[i] = W[j, i]
            diagonal[i] = inverse[i, i]
        lost[:] = 0
        n_active = N
        for t in range(order.shape[1]):
            p = active[0]
            least = w[p] * w[p] / diagonal[p]
            for a in range(1, n_active):
                i = active[a]
                loss = w[i] * w[i] / diagonal[i]
                if loss <= least:
                    p = i
                    least = loss
            order[j, t] = p
            increments[j, t] = least
            lost[p // group] += 1
            closed = lost[p // group] == quota
            kept = 0
            for a in range(n_active):
                i = active[a]
                if i != p and not (closed and i // group == p // group):
                    active[kept] = i
                    kept += 1
            n_active = kept
            root = np.sqrt(diagonal[p])
            share = w[p] / root
            for a in range(n_active):
                i = active[a]
                entry = inverse[p, i]
                for s in range(t):
                    entry -= factor[i, s] * factor[p, s]
                entry /= root
                factor[i, t] = entry
                w[i] -= share * entry
                diagonal[i] = max(diagonal[i] - entry * entry, floor[i])


# Swaps: a kept weight against a removed one, by the tableau of one output -----------------------
#
# With the kept inputs S and the others F, `inverse` is [H_SS]^-1, `shares` is [H_SS]^-1 H_SF,
# `weights` is w_S, and `slopes` and `pivots` are g_F - H_FS w_S and the diagonal of the Schur
# complement H_FF - H_FS [H_SS]^-1 H_SF. With v = inverse[a, a], q = shares[a, i], u = w_a / v,
#
#     n = slopes[i] + q u,   d = pivots[i] + q^2 / v,   gain(a, i) = n^2 / d - w_a^2 / v
#
# is by how much the least loss falls when i replaces a. Pairs with d <= floor[i] do not count.
# A swap stays within its group of inputs, or goes to a group that has room.


def _swap_gains(inverse, shares, weights, slopes, pivots, floor, groups, room, gains):  # type: ignore[no-untyped-def]
    """Fill `gains`: what every swap is worth; -inf where it is not allowed.

    ``groups = (of the kept, of the others)`` numbers the group of every input.
    """
    for a in range(shares.shape[0]):
        v = inverse[a, a]
        u = weights[a] / v
        cost = weights[a] * u
        for i in range(shares.shape[1]):
            q = shares[a, i]
            n = slopes[i] + q * u
            d = pivots[i] + q * q / v
            g = groups[1][i]
            if d > floor[i] and (g == groups[0][a] or room[g] > 0):
                gains[a, i] = n * n / d - cost
            else:
                gains[a, i] = -np.inf


def _swap(H, kept, others, inverse, shares, weights, slopes, pivots, floor, groups, room, limits):  # type: ignore[no-untyped-def]
    """Make the best swap, and again, up to ``limits[0]`` times, while it gains over ``limits[1]``.

    Everything but H changes in place: a slot of the kept and a slot of the others change hands.
    Returns the number of swaps made.
    """
    k, r = shares.shape
    column = np.empty(k)
    factor = np.empty(k)
    entering = np.empty(r)
    leaving = np.empty(r)
    for swap in range(limits[0]):
        # The best pair. Most rows hold none better than the best so far, and the count that finds
        # that out has no division and no branch, so it vectorises.
        best = limits[1]
        a = -1
        f = -1
        for b in range(k):
            v = inverse[b, b]
            u = weights[b] / v
            least = weights[b] * u + best
            inverted = 1.0 / v
            better = 0
            for i in range(r):
                q = shares[b, i]
                n = slopes[i] + q * u
                better += n * n > least * (pivots[i] + q * q * inverted)
            if better == 0:
                continue
            for i in range(r):
                q = shares[b, i]
                n = slopes[i] + q * u
                d = pivots[i] + q * q * inverted
                if d > floor[i] and n * n - weights[b] * u * d > best * d:
                    g = groups[1][i]
                    if g == groups[0][b] or room[g] > 0:
                        best = n * n / d - weights[b] * u
                        a = b
                        f = i
        if a < 0:
            return swap
        # Row `others[f]` of the Schur complement without a, and its pivot d.
        v = inverse[a, a]
        q = shares[a, f]
        d = pivots[f] + q * q / v
        n = slopes[f] + q * weights[a] / v
        row = H[others[f]]
        for i in range(r):
            entering[i] = row[others[i]]
            leaving[i] = shares[a, i]
        for b in range(k):
            h = row[kept[b]]
            for i in range(r):
                entering[i] -= h * shares[b, i]
        for i in range(r):
            entering[i] += leaving[i] * q / v
        entering[f] = q / v
        # Taking a out subtracts `column` times its row; putting i in, `factor` times the new row.
        for b in range(k):
            column[b] = inverse[a, b] / v
            factor[b] = shares[b, f] - column[b] * q
        step = n / d
        for i in range(r):
            slopes[i] += leaving[i] * weights[a] / v - entering[i] * step
            pivots[i] += leaving[i] * leaving[i] / v - entering[i] * entering[i] / d
        slopes[f] = weights[a] / v - entering[f] * step
        pivots[f] = 1.0 / v - entering[f] * entering[f] / d
        for b in range(k):
            if b == a:
                continue
            c = column[b]
            t = factor[b] / d
            weights[b] -= c * weights[a] + factor[b] * step
            for e in range(k):
                inverse[b, e] += t * factor[e] - c * v * column[e]
            inverse[b, a] = -t
            for i in range(r):
                shares[b, i] -= c * leaving[i] + t * entering[i]
            shares[b, f] = -c - t * entering[f]
        for e in range(k):
            inverse[a, e] = -factor[e] / d
        inverse[a, a] = 1.0 / d
        for i in range(r):
            shares[a, i] = entering[i] / d
        weights[a] = step
        kept[a], others[f] = others[f], kept[a]
        g, h = groups[0][a], groups[1][f]
        room[g] += 1
        room[h] -= 1
        groups[0][a], groups[1][f] = h, g
        floor[f] = limits[2] * H[others[f], others[f]]
    return limits[0]


surgery = _compiled(_surgery)
trace_removals = _compiled(_trace_removals)
swap_gains = _compiled(_swap_gains)
swap = _compiled(_swap)
