r"""The exact least-squares refit of a layer whose zeros are given.

For every output j with support S the loss of :mod:`.gram` is least at

.. math:: w_S = H_{SS}^{-1} g_S, \qquad w_i = 0 \text{ outside } S .

A pull towards the trained weights is part of the data: give ``data.damped(damping)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg as sl
from numpy.typing import NDArray

from .gram import Array, Gram, cholesky
from .pruning import Budget, Mask, Prune
from .watch import Watch

Indices = NDArray[np.intp]


def refit_mask(data: Gram, mask: Mask) -> Array:
    """Return the weights of least loss that are zero outside a mask.

    Parameters
    ----------
    data : Gram
        The layer, damped as wanted.
    mask : ndarray of bool, shape (N, M)
        The weights that may differ from zero.

    Returns
    -------
    W : ndarray of float64, shape (N, M)
        Weights with ``X_S' (X w_j - t_j) = 0`` on the support of every output.

    Raises
    ------
    ProblemError
        If the inputs of a support are linearly dependent; the message names the remedy, damping.
        There is no fallback to a solution of minimal norm: with fewer samples than inputs it fits
        the samples exactly and fails on every other, so it would answer the wrong question.

    Notes
    -----
    One Cholesky factor per different support: ``k^3 / 3`` flops for k nonzeros in a column, and
    ``k^2`` memory. Outputs of equal support share a factor.
    """
    W = np.zeros(mask.shape)
    for support, columns in _supports(mask):
        block = data.H.take(support, axis=0).take(support, axis=1)
        factor = cholesky(block.T)  # The transpose, which LAPACK takes without a copy.
        right = data.G[np.ix_(support, columns)]
        W[np.ix_(support, columns)] = sl.cho_solve((factor, True), right, check_finite=False)
    return W


def _supports(mask: Mask) -> list[tuple[Indices, Indices]]:
    """Return every different nonempty support, with the outputs that have it."""
    found: dict[bytes, list[int]] = {}
    for column, packed in enumerate(np.packbits(mask, axis=0).T):
        found.setdefault(packed.tobytes(), []).append(column)
    pairs = [(np.flatnonzero(mask[:, columns[0]]), np.array(columns)) for columns in found.values()]
    return [(support, columns) for support, columns in pairs if len(support)]


def gradient_pruner(
    find_support: Callable[[Gram, Budget, Any, float, Watch], Mask],
) -> Callable[[Gram, Any, Watch], Prune]:
    """Return the `prepare` of a pruner whose gradient steps find a support that is then refitted.

    Parameters
    ----------
    find_support : callable
        Called with the layer damped and in coordinates of inputs of norm one, the budget, the
        settings, the length of a safe step there, and the watch.
    """

    def prepare(data: Gram, settings: Any, watch: Watch) -> Prune:
        damped = data.damped(settings.damping)
        unit, _ = damped.scaled()
        step = 1.0 / largest_eigenvalue(unit.H)

        def prune(budget: Budget) -> Array:
            return refit_mask(damped, find_support(unit, budget, settings, step, watch))

        return prune

    return prepare


def largest_eigenvalue(H: Array) -> float:
    """Return the largest eigenvalue of a symmetric matrix: 1 / it is a safe gradient step."""
    last = len(H) - 1
    return float(sl.eigvalsh(H, subset_by_index=(last, last), check_finite=False)[0])
