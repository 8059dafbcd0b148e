r"""The best weights of a given support towards the target box, one output at a time.

With D the inputs of the support (and a column of ones for the intercept), the fit minimises

.. math:: \phi(w) = \mathrm{dist}(D w, [l, u])^2 + \sum_i p_i (w_i - a_i)^2 ,

p the pull towards the anchor a. It is convex and piecewise quadratic: with A the rows that are
matched (l = u) or outside the box, and e the excess of D w over the box, half its gradient is
:math:`D^T e + p (w - a)`, and half its Hessian :math:`H_A = D_A^T D_A + \mathrm{diag}(p)`.

Newton's method takes this Hessian, and halves a step until the function falls enough (Armijo).
Where H_A is positive definite it ends after finitely many steps: a full step that leaves every row
of A on its side of the box has found the minimum of a piece at a point of that piece, and so of the
convex whole.

References
----------
Mangasarian, *A finite Newton method for classification*, Optimization Methods and Software 17,
2002.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg as sl
import scipy.sparse as sp
from numpy.typing import NDArray

from .gram import Array

Rows = NDArray[np.bool_]

#: Newton steps; a handful is usual.
MAX_STEPS = 100

#: Share of the decrease promised by the slope that a step must bring (Armijo).
ENOUGH = 1e-4

#: Promised decreases below this fraction of the value at w = 0 are rounding.
ROUNDING = 1e-16

#: Eigenvalues of H_A below this fraction of the largest are zero.
RANK = 1e-12


class RowGram:
    """``D_A' D_A`` for a set of rows A that changes little from call to call.

    Parameters
    ----------
    D : ndarray or sparse array of shape (P, n), float64
    rows : ndarray of bool, shape (P,), optional
        A set for which the matrix is known.
    matrix : ndarray of shape (n, n), optional
        That matrix; it is changed.
    """

    def __init__(self, D: Any, rows: Rows | None = None, matrix: Array | None = None) -> None:
        self.D, self.rows, self.matrix = D, rows, matrix

    def of(self, rows: Rows) -> Array:
        """Return the matrix of a set of rows. It belongs to this object: do not change it."""
        if self.rows is None or self.matrix is None:
            self.matrix = self._product(rows)
        else:
            entered, left = rows & ~self.rows, self.rows & ~rows
            if np.count_nonzero(entered) + np.count_nonzero(left) < np.count_nonzero(rows):
                for changed, sign in ((entered, 1.0), (left, -1.0)):
                    if changed.any():
                        self.matrix += sign * self._product(changed)
            else:
                self.matrix = self._product(rows)
        self.rows = rows
        return self.matrix

    def _product(self, rows: Rows) -> Array:
        part = self.D[rows]
        product = part.T @ part
        return product.toarray() if sp.issparse(product) else product


@dataclass(frozen=True, eq=False)
class BoxFit:
    """Weights of one output.

    Attributes
    ----------
    w : ndarray of shape (n,)
    value : float
        ``phi(w)``.
    excess : ndarray of shape (P,)
        ``D w - clip(D w, lower, upper)``.
    rows : ndarray of bool, shape (P,)
        A.
    steps : int
        Newton steps.
    """

    w: Array
    value: float
    excess: Array
    rows: Rows
    steps: int


def design(X: Any, columns: Any, n_constant: int) -> Any:
    """Return some inputs of all samples in float64, followed by columns of ones.

    A new array in the order of rows; a CSR array for a sparse X.
    """
    if sp.issparse(X):
        part = X[:, columns].astype(np.float64)
        return sp.csr_array(sp.hstack([part, np.ones((X.shape[0], n_constant))]))
    n = len(columns)
    D = np.empty((X.shape[0], n + n_constant))
    D[:, :n] = X[:, columns]
    D[:, n:] = 1.0
    return D


def fit_box(
    D: Any, box: tuple[Array, Array], start: Array, pull: Array, anchor: Array,
    gram: RowGram | None = None,
) -> BoxFit:  # fmt: skip
    """Minimise ``dist(D w, box)^2 + sum pull (w - anchor)^2`` from a start that is never worse.

    Parameters
    ----------
    D : ndarray or sparse array of shape (P, n), float64
    box : pair of ndarray of shape (P,)
        Its ends may be infinite.
    start, pull, anchor : ndarray of shape (n,)
        Not modified.
    gram : RowGram, optional
        For D, with what is known already.

    Notes
    -----
    The first step takes ``|A| n^2`` flops for H_A, later ones the rows that changed; every step
    ``n^3 / 3`` for its Cholesky factor. Where H_A is singular, the step of least norm is taken.
    """
    lower, upper = box
    matched = lower == upper
    gram = RowGram(D) if gram is None else gram

    def excess(z: Array) -> Array:
        return z - np.clip(z, lower, upper)

    def value(e: Array, w: Array) -> float:
        return float(e @ e + pull @ (w - anchor) ** 2)

    w = start.astype(np.float64)
    z = D @ w
    e = excess(z)
    best = value(e, w)
    rows, sides = matched | (e != 0.0), np.where(matched, 0.0, np.sign(e))
    rounding = ROUNDING * (best + value(excess(np.zeros(len(z))), np.zeros(len(w))))
    steps = 0
    while steps < MAX_STEPS:
        gradient = D.T @ e + pull * (w - anchor)
        direction = _newton_step(gram.of(rows), pull, gradient)
        slope = 2.0 * float(gradient @ direction)
        if not -slope > rounding:
            break
        moved, length = D @ direction, 1.0
        while True:
            trial = w + length * direction
            e_trial = excess(z + length * moved)
            found = value(e_trial, trial)
            if found <= best + ENOUGH * length * slope:
                break
            length *= 0.5
            if length < 1e-12:  # the rest is rounding
                return BoxFit(w, best, e, rows, steps)
        steps += 1
        w, z, e, best = trial, z + length * moved, e_trial, found
        rows = matched | (e != 0.0)
        before, sides = sides, np.where(matched, 0.0, np.sign(e))
        if length == 1.0 and np.array_equal(sides, before):
            break
    return BoxFit(w, best, e, rows, steps)


def _newton_step(matrix: Array, pull: Array, gradient: Array) -> Array:
    """Return ``-(matrix + diag(pull))^-1 gradient``; of least norm where that is singular."""
    H = matrix + np.diag(pull)
    try:
        factor = sl.cholesky(H, lower=True, check_finite=False)
    except sl.LinAlgError:
        pass
    else:
        squares = np.diag(factor) ** 2
        if squares.min(initial=np.inf) > RANK * squares.max(initial=0.0):
            step: Array = sl.cho_solve((factor, True), -gradient, check_finite=False)
            return step
    values, vectors = sl.eigh(H, check_finite=False)
    known = values > RANK * max(values[-1], 0.0)
    return -vectors[:, known] @ ((vectors[:, known].T @ gradient) / values[known])
