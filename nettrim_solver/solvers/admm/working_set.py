r"""The linear system of one output's working set: one factor, and a border for what changes.

A *base*, working rows A with their weights Q and working columns T, is factorised once (Cholesky),

.. math:: H_0 = \tilde X_{AT}^T Q \tilde X_{AT} ,

the intercept's column first. Every later change of the system is a row and a column of a border:
an input that enters (:math:`b = \tilde X_{AT}^T Q \tilde x_{A,new}`), a sample whose weight changes
by w (:math:`b = \tilde x_p`, with :math:`-1/w` on the diagonal), an entry that is held (a unit
vector, with zero on the diagonal):

.. math::

    \begin{pmatrix} H_0 & B \\ B^T & D \end{pmatrix} \begin{pmatrix} x \\ z \end{pmatrix}
    = \begin{pmatrix} f \\ g \end{pmatrix}, \qquad
    (D - B^T H_0^{-1} B)\, z = g - B^T H_0^{-1} f, \qquad x = H_0^{-1} (f - B z) .

With :math:`H_0 = L L^T` only :math:`L^{-1} b` and their products are needed, and kept, so a change
of the pattern costs one triangular solution the first time and a small dense system from then on. A
border of many changes is dearer than a new base, which the caller decides.

The factor may be float32: it is a preconditioner, the conditions themselves being evaluated in
float64 (:mod:`.polish`).

References
----------
Bisschop, Meeraus, *Matrix augmentation and partitioning in the updating of the basis inverse*,
Math. Programming 13 (1977); Gill, Murray, Saunders, Wright, *A Schur-complement method for sparse
quadratic programming*, in Reliable Numerical Computation (1990).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from .. import polish_kernels
from . import lapack
from .factorisation import Factorisation

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Mask = NDArray[np.bool_]

#: Ridge on H, relative to its diagonal: keeps dependent columns solvable, and slows only the
#: directions that are flatter than itself. It grows by RIDGE_GROWTH until H is definite.
RIDGE = {np.dtype(np.float32): 2e-7, np.dtype(np.float64): 1e-13}
RIDGE_GROWTH = 30.0

#: Share of the cost of a new matrix up to which a previous one is taken over.
TAKEN_OVER = 0.8

#: Entries of the border that there is room for at first, and the place of what is not there.
ROOM = 32
NOWHERE = -1


class WorkingSet:
    """A base of working rows and columns, factorised, with a border that grows.

    The variables are the intercept (if any), the base's columns, and the columns appended since.

    Parameters
    ----------
    factorisation : Factorisation
    columns : ndarray of int
        The base's inputs, ascending.
    weights : ndarray of shape (n_samples,)
        Weights of the base's samples; those of others are 0.
    dtype : dtype of the factor, float32 or float64
    damping : float
        Proximal term of the steps, relative to the diagonal of H.
    previous : WorkingSet or None
        Another system, whose matrix is taken over where it is much the same.

    Attributes
    ----------
    columns : ndarray of int
        Inputs of the variables behind the intercept's.
    ridge : ndarray
        What was added to the diagonal of H, per variable.
    column_keys, held_keys : ndarray of int
        Places in the border of the appended variables, and of every variable that was held.
    defined : bool
        Whether the base could be factorised.
    """

    def __init__(
        self, factorisation: Factorisation, columns: Index, weights: Array, dtype: Any,
        damping: float = 0.0, previous: WorkingSet | None = None,
    ) -> None:  # fmt: skip
        self.factorisation, self.dtype, self.damping = factorisation, np.dtype(dtype), damping
        self.constant = int(factorisation.intercept)
        self.columns, self.weights = columns, weights
        self.n_base = len(columns) + self.constant
        self.in_base = np.zeros(factorisation.n_inputs, dtype=bool)
        self.in_base[columns] = True
        self.ridge = np.zeros(self.n_base)
        self.defined = self.n_base > 0 and self._factorise(previous)
        # The border: L^-1 b a row each, D - B^T H_0^-1 B, and where each change is.
        self._half = np.zeros((ROOM, self.n_base), dtype=self.dtype)
        self._schur, self._size = np.zeros((ROOM, ROOM)), 0
        self.column_keys = np.zeros(0, dtype=np.int64)
        self._row_keys = np.full(factorisation.n_samples, NOWHERE)
        self.held_keys = np.full(self.n_base, NOWHERE)

    def __len__(self) -> int:
        """Return the number of variables."""
        return len(self.columns) + self.constant

    @property
    def nbytes(self) -> int:
        """What the factor and the border take."""
        return int(self.factor.nbytes + self._half.nbytes + self._schur.nbytes)

    def missing(self, columns: Mask) -> Index:
        """Return which of these inputs (a mask) are no variables yet."""
        new = columns & ~self.in_base
        new[self.columns[self.n_base - self.constant :]] = False
        return np.flatnonzero(new)

    def append(self, new: Index) -> None:
        """Append inputs as variables."""
        k, n, before = len(new), self.n_base, len(self)
        self.columns = np.append(self.columns, new)
        products = self._products(before + np.arange(k)).astype(np.float64)
        entries = np.arange(k)
        own = products[:, -k:]
        own[:] = 0.5 * (own + own.T)
        diagonal = np.maximum(own[entries, entries], 0.0)
        ridge = max(RIDGE[self.dtype], self.damping) * np.maximum(diagonal, self._level)
        own[entries, entries] += ridge
        self.ridge = np.append(self.ridge, ridge)
        cross = np.zeros((self._size + k, k))
        self.column_keys = np.append(self.column_keys, self._size + entries)
        self.held_keys = np.append(self.held_keys, np.full(k, NOWHERE))
        cross[self.column_keys] = products[:, n:].T
        rows = np.flatnonzero(self._row_keys != NOWHERE)
        if len(rows):
            block = gather(self.factorisation, rows, new, np.float64)
            cross[self._row_keys[rows]] = block[:, self.constant :]
        self._grow(products[:, :n], cross)

    def _products(self, some: Index) -> NDArray[Any]:
        """Return the products of some variables with all, on the base's rows.

        None of them is the intercept.
        """
        f, (weights, from_gram) = self.factorisation, self._shortest_way()
        rows = np.flatnonzero(weights)
        block = gather(f, rows, self.columns, self.dtype)
        own = block[:, some] * weights[rows, None].astype(self.dtype)
        products = own.T @ block
        if from_gram:
            assert f.gram is not None
            # The centred columns are orthogonal to the intercept's.
            inputs = self.columns[some - self.constant]
            products[:, self.constant :] += f.gram[np.ix_(inputs, self.columns)]
        return products

    def _shortest_way(self) -> tuple[Array, bool]:
        """Return weights of rows to add up, and whether to begin with the Gram matrix of all.

        From there on it takes the rows that do not count once, otherwise those that count at all.
        """
        rest = self.weights - 1.0
        fewer = np.count_nonzero(rest) < np.count_nonzero(self.weights)
        from_gram = bool(fewer) and self.factorisation.gram is not None
        return (rest if from_gram else self.weights), from_gram

    def row_keys(self, rows: Index) -> Index:
        """Return the places of samples in the border."""
        new = rows[self._row_keys[rows] == NOWHERE]
        if len(new):
            block = gather(self.factorisation, new, self.columns, self.dtype)
            cross = np.zeros((self._size + len(new), len(new)))
            cross[self.column_keys] = block[:, self.n_base :].T
            self._row_keys[new] = self._size + np.arange(len(new))
            self._grow(block[:, : self.n_base], cross)
        return self._row_keys[rows]

    def hold(self, variables: Index) -> None:
        """Give held variables places in the border."""
        new = variables[self.held_keys[variables] == NOWHERE]
        if len(new):
            entries = np.arange(len(new))
            vectors = np.zeros((len(new), self.n_base), dtype=self.dtype)
            cross = np.zeros((self._size + len(new), len(new)))
            base = new < self.n_base
            vectors[entries[base], new[base]] = 1
            cross[self.column_keys[new[~base] - self.n_base], entries[~base]] = 1
            self.held_keys[new] = self._size + entries
            self._grow(vectors, cross)

    def half_solution(self, right: Array) -> NDArray[Any]:
        """Return ``L^-1`` times the base's part of right sides, a row each."""
        part = right[:, : self.n_base].astype(self.dtype, order="C")
        lapack.solve_rows(self.factor, part)
        return part

    def solve(
        self, half: NDArray[Any], keys: Index, diagonal: Array, values: Array, x: Array
    ) -> Array:
        """Solve the bordered system.

        Parameters
        ----------
        half : ndarray of shape (k, n_base)
            From :meth:`half_solution`.
        keys : ndarray of int, shape (b,)
            The border's places in use.
        diagonal : ndarray of shape (d,)
            Added to the diagonal of the first d of them.
        values : ndarray of shape (b, k)
            Their right sides.
        x : ndarray of shape (k, n)
            Receives the base's part.

        Returns
        -------
        z : ndarray of shape (b, k)
            The border's part.
        """
        z: Array = np.zeros(values.shape)
        if len(keys):
            matrix, right = np.empty((len(keys), len(keys))), np.empty(values.shape)
            polish_kernels.border_system(
                self._schur, keys, diagonal, self._half, half, values, matrix, right
            )
            z = np.asarray(np.linalg.solve(matrix, right), dtype=np.float64)
        polish_kernels.border_back(self.factor.T, keys, self._half, z, half.copy(), x)
        return z

    def _grow(self, vectors: NDArray[Any], cross: Array) -> None:
        """Add vectors b to the border; `cross` holds their column of the whole border."""
        old, new = self._size, self._size + len(vectors)
        if new > len(self._half):
            room = new + new // 4
            half, schur = np.zeros((room, self.n_base), self.dtype), np.zeros((room, room))
            half[:old], schur[:old, :old] = self._half[:old], self._schur[:old, :old]
            self._half, self._schur = half, schur
        self._half[old:new] = vectors
        lapack.solve_rows(self.factor, self._half[old:new])
        block = cross - self._half[:new] @ self._half[old:new].T
        self._schur[:new, old:new], self._schur[old:new, :old] = block, block[:old].T
        self._size = new

    def _factorise(self, previous: WorkingSet | None) -> bool:
        """Factorise H_0 with the least ridge that makes it definite; return whether one does.

        The matrix itself stays right of the diagonal, where the factor leaves room.
        """
        H = self._build(previous)
        polish_kernels.mirror(H.T)
        self._diagonal = H.diagonal().astype(np.float64)
        plain = self._plain_diagonal()
        self._level = float(plain.mean())
        if not (np.isfinite(self._diagonal).all() and plain.max() > 0):
            return False
        ridge = max(RIDGE[self.dtype], self.damping)
        for attempt in range(6):
            if attempt > 0:
                polish_kernels.mirror(H)
                ridge *= RIDGE_GROWTH
            self.ridge = ridge * np.maximum(plain, self._level)
            np.fill_diagonal(H, self._diagonal + self.ridge)
            if lapack.factorise(H):
                self.factor = H
                return True
        return False

    def _plain_diagonal(self) -> Array:
        """Return the diagonal with weights of one, which is what ridges are relative to."""
        rows = np.flatnonzero((self.weights != 0.0) & (self.weights != 1.0))
        if not len(rows):
            return self._diagonal
        block = gather(self.factorisation, rows, self.columns, np.float64)
        return np.maximum(self._diagonal - (self.weights[rows] - 1.0) @ np.square(block), 0.0)

    def _build(self, previous: WorkingSet | None) -> NDArray[Any]:
        """Return H_0, valid left of its diagonal, by the shortest way.

        From a previous matrix, from the Gram matrix of all rows, or from nothing.
        """
        f, constant = self.factorisation, self.constant
        H = np.zeros((self.n_base, self.n_base), dtype=self.dtype, order="F")
        weights, from_gram = self._shortest_way()
        if previous is not None and self._change(previous) < TAKEN_OVER * np.count_nonzero(weights):
            self._take_over(previous, H)
            return H
        if from_gram:
            polish_kernels.submatrix(f.gram, self.columns, H, constant)
            if constant:
                H[0, 0] = f.n_samples
        self._add_rows(weights, H)
        return H

    def _add_rows(self, weights: Array, H: NDArray[Any]) -> None:
        """Add rows of any weights to H."""
        for sign in (1.0, -1.0):
            rows = np.flatnonzero(sign * weights > 0.0)
            if len(rows):
                block = gather(self.factorisation, rows, self.columns, self.dtype)
                roots = np.sqrt(np.abs(weights[rows]))
                if np.any(roots != 1.0):
                    block *= roots[:, None].astype(self.dtype)
                lapack.add_gram(sign, block, H)

    def _change(self, previous: WorkingSet) -> float:
        """Return what taking over a matrix costs, in rows of a whole one."""
        if not previous.defined or previous.dtype != self.dtype:
            return np.inf
        new = np.count_nonzero(self.in_base & ~previous.in_base)
        changed = np.count_nonzero(self.weights != previous.weights)
        return changed + 2.0 * new / self.n_base * np.count_nonzero(self.weights)

    def _take_over(self, previous: WorkingSet, H: NDArray[Any]) -> None:
        """Fill H from the matrix of a previous base."""
        constant = self.constant
        before = previous.columns[: previous.n_base - constant]
        kept = previous.in_base[self.columns]
        zero = np.arange(constant)
        places = np.append(zero, constant + np.flatnonzero(kept))
        old = np.append(zero, constant + np.searchsorted(before, self.columns[kept]))
        polish_kernels.inherit(previous.factor.T, previous._diagonal, old, places, H.T)
        self._add_rows(self.weights - previous.weights, H)
        new = constant + np.flatnonzero(~kept)
        if len(new):
            products = self._products(new)
            H[new], H[:, new] = products, products.T


def gather(factorisation: Factorisation, rows: Index, columns: Index, dtype: Any) -> NDArray[Any]:
    """Return rows and columns of the scaled design, behind the intercept's ones, C order."""
    constant = int(factorisation.intercept)
    out = np.empty((len(rows), len(columns) + constant), dtype=dtype)
    scale = factorisation.inverse_norm
    X = factorisation.nearest_design(dtype)
    if sp.issparse(X):
        chosen = X[rows][:, columns].toarray()
        out[:, :constant] = 1.0
        out[:, constant:] = (chosen - factorisation.mean[columns]) * scale[columns]
    else:
        polish_kernels.gather(X, rows, columns, factorisation.mean, scale, constant, out)
    return out
