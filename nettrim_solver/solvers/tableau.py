r"""The sweep tableau of one output: what every exchange of a kept for a removed input is worth.

For a quadratic loss :math:`w^T H w - 2 g^T w` and the kept inputs S, all exchanges can be read off

.. math::

    V = H_{SS}^{-1}, \quad Q = V H_{SF}, \quad w_S = V g_S, \quad
    r_F = g_F - H_{FS} w_S, \quad s_F = \mathrm{diag}(H_{FF} - H_{FS} Q) ,

with F the other inputs. When i replaces a, and all weights are chosen anew, the least loss falls by

.. math::

    \frac{(r_i + Q_{ai} w_a / V_{aa})^2}{s_i + Q_{ai}^2 / V_{aa}} - \frac{w_a^2}{V_{aa}} .

Making the exchange changes V and Q by two terms of rank one. The rows of F of the full tableau are
never kept: the one that an exchange needs is :math:`H_{iF} - H_{iS} Q`.

References
----------
Goodnight, *A tutorial on the SWEEP operator*, The American Statistician 33, 1979.
Miller, *Subset selection in regression*, 2nd edition, 2002, chapter 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .gram import Array, cholesky

Index = NDArray[np.int64]

#: An input whose part outside the span of the kept ones is below this fraction of its square is
#: not exchanged: its gain would be rounding.
PIVOT = 1e-10

#: Exchanges between two computations of the tableau from scratch.
REFRESH = 64


@dataclass(frozen=True, eq=False)
class Groups:
    """A pattern n:m: every `size` consecutive inputs keep at most `most`.

    An exchange stays within its group, or goes to a group that keeps fewer. Without a pattern all
    inputs are one group.
    """

    size: int
    most: int

    def room(self, kept: Index, n_inputs: int) -> Index:
        """Return how many more inputs every group may keep, negative where there are too many."""
        counts = np.bincount(kept // self.size, minlength=-(-n_inputs // self.size))
        return np.asarray(self.most - counts, dtype=np.int64)


@dataclass(eq=False)
class Tableau:
    """The tableau of one output; :meth:`exchange` changes it.

    Attributes
    ----------
    H : ndarray of shape (N, N)
        Not modified.
    kept, others : ndarray of int, shape (k,) and (r,)
        Which input stands in which slot.
    inverse, shares : ndarray of shape (k, k) and (k, r)
        V and Q.
    weights : ndarray of shape (k,)
        The best weights of the kept inputs.
    slopes, pivots : ndarray of shape (r,)
        Half the loss's slope at each of the others, with opposite sign, and half its curvature.
    floor : ndarray of shape (r,)
        Least pivots that are more than rounding.
    groups : tuple of two ndarray of int
        Group of each of the kept and of the others.
    room : ndarray of int
        How many more inputs each group may keep.
    """

    H: Array
    kept: Index
    others: Index
    inverse: Array
    shares: Array
    weights: Array
    slopes: Array
    pivots: Array
    floor: Array
    groups: tuple[Index, Index]
    room: Index

    def gains(self) -> Array:
        """Return by how much the least loss falls in every exchange, shape (k, r).

        Minus infinity where the pattern or a vanishing pivot forbids it.
        """
        from .pruning_kernels import swap_gains

        gains = np.empty(self.shares.shape)
        swap_gains(
            self.inverse, self.shares, self.weights, self.slopes, self.pivots, self.floor,
            self.groups, self.room, gains,
        )  # fmt: skip
        return gains

    def exchange(self, limit: int, least_gain: float) -> int:
        """Make the best exchange, and again, while it gains more than `least_gain`.

        Returns
        -------
        int
            Exchanges made, at most `limit`.
        """
        from .pruning_kernels import swap

        return int(
            swap(
                self.H, self.kept, self.others, self.inverse, self.shares, self.weights,
                self.slopes, self.pivots, self.floor, self.groups, self.room,
                (limit, float(least_gain), PIVOT),
            )
        )  # fmt: skip

    def weights_after(self, a: int, i: int) -> Array:
        """Return the best weights after slot i of the others replaces slot a of the kept."""
        v, q = self.inverse[a, a], self.shares[a, i]
        column = self.inverse[a] / v
        step = (self.slopes[i] + q * self.weights[a] / v) / (self.pivots[i] + q * q / v)
        weights = self.weights - column * self.weights[a]
        weights -= (self.shares[:, i] - column * q) * step
        weights[a] = step
        return weights


def tableau(H: Array, g: Array, kept: Index, others: Index, groups: Groups | None) -> Tableau:
    """Compute the tableau of one output.

    Parameters
    ----------
    H : ndarray of shape (N, N)
    g : ndarray of shape (N,)
    kept, others : ndarray of int
        Inputs that keep their weight, and inputs that may take one over. Not modified.
    groups : Groups or None
        The pattern that exchanges must keep.

    Raises
    ------
    ProblemError
        If the kept inputs are linearly dependent; the message names the remedy, damping.

    Notes
    -----
    For k kept and r other inputs about ``2 k^3 + 2 k^2 r`` flops, memory of ``k (k + r)``.
    """
    from scipy.linalg.lapack import dpotri

    inner, cross = H.take(kept, 0).take(kept, 1), H.take(kept, 0).take(others, 1)
    factor = cholesky(inner.T)
    half, _ = dpotri(factor, lower=True, overwrite_c=True)
    inverse = np.ascontiguousarray(half + half.T)  # above its diagonal `half` is zero
    inverse[np.diag_indices(len(kept))] *= 0.5
    shares = inverse @ cross
    weights = inverse @ g[kept]
    diagonal = H[others, others]
    size = len(H) if groups is None else groups.size
    room = np.zeros(1, dtype=np.int64) if groups is None else groups.room(kept, len(H))
    return Tableau(
        H=H, kept=kept.astype(np.int64), others=others.astype(np.int64), inverse=inverse,
        shares=shares, weights=weights, slopes=g[others] - cross.T @ weights,
        pivots=diagonal - np.einsum("ij,ij->j", cross, shares), floor=PIVOT * diagonal,
        groups=(kept // size, others // size), room=room,
    )  # fmt: skip


def best_exchanges(
    H: Array, g: Array, kept: Index, others: Index, groups: Groups | None, limit: int,
    least_gain: float,
) -> tuple[Index, int]:  # fmt: skip
    """Exchange inputs while the least loss of an output falls by more than `least_gain`.

    Returns
    -------
    kept : ndarray of int
        The inputs kept in the end.
    made : int
        Exchanges made, at most `limit`.
    """
    made = 0
    while made < limit:
        table = tableau(H, g, kept, others, groups)
        batch = min(REFRESH, limit - made)
        done = table.exchange(batch, least_gain)
        made += done
        kept, others = table.kept, table.others
        if done < batch:
            break
    return kept, made
