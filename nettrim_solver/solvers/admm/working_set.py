r"""The linear system of one output's working set: one factor, and a border for what changes.

A *base*, working rows A and working columns T, is factorised once (Cholesky),

.. math:: H_0 = \tilde X_{AT}^T \tilde X_{AT} ,

the intercept's column first. Every later change of the system is a row and a column of a border:
an input that enters (:math:`b = \tilde X_{AT}^T \tilde x_{A,new}`), a sample whose weight changes
by w (:math:`b = \tilde x_p`, with :math:`-1/w` on the diagonal), an entry that is held (a unit
vector, with zero on the diagonal):

.. math::

    \begin{pmatrix} H_0 & B \\ B^T & D \end{pmatrix} \begin{pmatrix} x \\ z \end{pmatrix}
    = \begin{pmatrix} f \\ g \end{pmatrix}, \qquad
    (D - B^T H_0^{-1} B)\, z = g - B^T H_0^{-1} f, \qquad x = H_0^{-1} (f - B z) .

What depends on the base alone (:math:`b`, :math:`H_0^{-1} b` and their products) is kept, so a
change of the pattern costs one solution with the factor the first time and a small dense system
from then on. A border of many changes is dearer than a new base, which the caller decides.

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

from .. import kernels
from . import lapack
from .factorisation import Factorisation

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Mask = NDArray[np.bool_]

#: Ridge on H, relative to its diagonal: keeps dependent columns solvable, and slows only the
#: directions that are flatter than itself. It grows by RIDGE_GROWTH until H is definite.
RIDGE = {np.dtype(np.float32): 2e-7, np.dtype(np.float64): 1e-13}
RIDGE_GROWTH = 30.0


class WorkingSet:
    """A base of working rows and columns, factorised, with a border that grows.

    The variables are the intercept (if any), the base's columns, and the columns appended since.

    Parameters
    ----------
    factorisation : Factorisation
    columns : ndarray of int
        The base's inputs, ascending.
    rows : ndarray of bool, shape (n_samples,)
        The base's samples.
    dtype : dtype of the factor, float32 or float64
    damping : float
        Proximal term of the steps, relative to the diagonal of H.

    Attributes
    ----------
    columns : ndarray of int
        Inputs of the variables behind the intercept's.
    ridge : ndarray
        What was added to the diagonal of H, per variable.
    defined : bool
        Whether the base could be factorised.
    """

    def __init__(
        self, factorisation: Factorisation, columns: Index, rows: Mask, dtype: Any,
        damping: float = 0.0,
    ) -> None:  # fmt: skip
        self.factorisation, self.dtype, self.damping = factorisation, np.dtype(dtype), damping
        self.constant = int(factorisation.intercept)
        self.columns, self.rows = columns, rows
        self.n_base = len(columns) + self.constant
        self.in_base = np.zeros(factorisation.n_inputs, dtype=bool)
        self.in_base[columns] = True
        self.ridge = np.zeros(self.n_base)
        self.defined = self.n_base > 0 and self._factorise()
        # The border: b and H_0^-1 b a row each, D - B^T H_0^-1 B, and where each change is.
        self._vectors = np.zeros((0, self.n_base), dtype=self.dtype)
        self._solved, self._schur = self._vectors, np.zeros((0, 0))
        self._column_keys = np.zeros(0, dtype=np.int64)
        self._row_keys: dict[int, int] = {}
        self._held_keys: dict[int, int] = {}

    def __len__(self) -> int:
        """Return the number of variables."""
        return len(self.columns) + self.constant

    def missing(self, columns: Mask) -> Index:
        """Return which of these inputs (a mask) are no variables yet."""
        new = columns & ~self.in_base
        new[self.columns[self.n_base - self.constant :]] = False
        return np.flatnonzero(new)

    def weighted(self, columns: Index) -> NDArray[Any]:
        """Return inputs on the base's rows, zero elsewhere: shape (k, n_samples)."""
        every = np.arange(self.factorisation.n_samples)
        block = gather(self.factorisation, every, columns, self.dtype)[:, self.constant :]
        return np.ascontiguousarray((block * self.rows[:, None]).T)

    def append(self, columns: Index, products: NDArray[Any], sums: Array) -> None:
        """Append inputs as variables.

        Parameters
        ----------
        columns : ndarray of int, shape (k,)
        products : ndarray of shape (k, n_inputs)
            ``X~^T`` times :meth:`weighted` of these columns.
        sums : ndarray of shape (k,)
            Row sums of :meth:`weighted`.
        """
        k, old = len(columns), self.columns[: self.n_base - self.constant]
        vectors = products[:, old]
        if self.constant:
            vectors = np.column_stack([sums, vectors])
        self.columns = np.append(self.columns, columns)
        keys = len(self._vectors) + np.arange(k)
        cross = np.zeros((len(self._vectors) + k, k))
        self._column_keys = np.append(self._column_keys, keys)
        new = products[:, self.columns[self.n_base - self.constant :]].astype(np.float64)
        new[:, -k:] = 0.5 * (new[:, -k:] + new[:, -k:].T)
        diagonal = np.maximum(new[np.arange(k), new.shape[1] - k + np.arange(k)], 0.0)
        ridge = max(RIDGE[self.dtype], self.damping) * np.maximum(diagonal, self._level)
        new[np.arange(k), new.shape[1] - k + np.arange(k)] += ridge
        cross[self._column_keys] = new.T
        if self._row_keys:
            rows = np.fromiter(self._row_keys, dtype=np.int64)
            at = np.fromiter(self._row_keys.values(), dtype=np.int64)
            cross[at] = gather(self.factorisation, rows, columns, np.float64)[:, self.constant :]
        self.ridge = np.append(self.ridge, ridge)
        self._grow(vectors, cross)

    def row_keys(self, rows: Index) -> Index:
        """Return the places of samples in the border."""
        new = np.array([p for p in rows.tolist() if p not in self._row_keys], dtype=np.int64)
        if len(new):
            block = gather(self.factorisation, new, self.columns, self.dtype)
            first = len(self._vectors)
            self._row_keys.update(zip(new.tolist(), range(first, first + len(new)), strict=True))
            cross = np.zeros((first + len(new), len(new)))
            cross[self._column_keys] = block[:, self.n_base :].T
            self._grow(block[:, : self.n_base], cross)
        return np.array([self._row_keys[p] for p in rows.tolist()], dtype=np.int64)

    def held_keys(self, variables: Index) -> Index:
        """Return the places of held variables in the border."""
        new = np.array([i for i in variables.tolist() if i not in self._held_keys], dtype=np.int64)
        if len(new):
            first, k = len(self._vectors), np.arange(len(new))
            self._held_keys.update(zip(new.tolist(), range(first, first + len(new)), strict=True))
            vectors = np.zeros((len(new), self.n_base), dtype=self.dtype)
            cross = np.zeros((first + len(new), len(new)))
            base = new < self.n_base
            vectors[k[base], new[base]] = 1
            cross[self._column_keys[new[~base] - self.n_base], k[~base]] = 1
            self._grow(vectors, cross)
        return np.array([self._held_keys[i] for i in variables.tolist()], dtype=np.int64)

    def column_keys(self, variables: Index) -> Index:
        """Return the places of appended variables in the border."""
        return self._column_keys[variables - self.n_base]

    def base_solution(self, right: Array) -> NDArray[Any]:
        """Return ``H_0^-1`` times the base's part of right sides, shape (n, k)."""
        part = right[: self.n_base].T.astype(self.dtype, order="C")
        lapack.solve_rows(self.factor, part)
        return part.T

    def solve(
        self, base: NDArray[Any], keys: Index, diagonal: Array, values: Array, active: Index
    ) -> tuple[Array, Array]:
        """Solve the bordered system.

        Parameters
        ----------
        base : ndarray of shape (n_base, k)
            From :meth:`base_solution`.
        keys : ndarray of int, shape (b,)
            The border's places in use; first those of the appended variables.
        diagonal : ndarray of shape (b,)
            Added to their diagonal.
        values : ndarray of shape (b, k)
            Their right sides.
        active : ndarray of int
            The appended variables in use, in the order of `keys`.

        Returns
        -------
        x : ndarray of shape (n, k)
            Zero for appended variables that are not in use.
        z : ndarray of shape (b, k)
        """
        x = np.zeros((len(self), base.shape[1]))
        if len(keys) == 0:
            x[: self.n_base] = base
            return x, np.zeros((0, base.shape[1]))
        schur = self._schur[np.ix_(keys, keys)]
        schur[np.diag_indices(len(keys))] += diagonal
        z = np.linalg.solve(schur, values - (self._vectors @ base)[keys])
        full = np.zeros((len(self._vectors), base.shape[1]), dtype=self.dtype)
        full[keys] = z
        x[: self.n_base] = base - self._solved.T @ full
        x[active] = z[: len(active)]
        return x, z

    def _grow(self, vectors: NDArray[Any], cross: Array) -> None:
        """Add vectors b to the border; `cross` holds their column of the whole border."""
        old = len(self._vectors)
        vectors = np.ascontiguousarray(vectors, dtype=self.dtype)
        solved = vectors.copy()
        lapack.solve_rows(self.factor, solved)
        self._vectors = np.concatenate([self._vectors, vectors])
        self._solved = np.concatenate([self._solved, solved])
        block = cross - self._vectors @ solved.T
        schur = np.empty((len(block), len(block)))
        schur[:old, :old], schur[:, old:], schur[old:, :old] = self._schur, block, block[:old].T
        self._schur = schur

    def _factorise(self) -> bool:
        """Factorise H_0 with the least ridge that makes it definite; return whether one does."""
        ridge = max(RIDGE[self.dtype], self.damping)
        for _ in range(6):
            H = self._build()
            diagonal = np.diag_indices_from(H)
            original = H[diagonal].astype(np.float64)
            self._level = float(original.mean())
            if not (np.isfinite(original).all() and original.max() > 0):
                return False
            self.ridge = ridge * np.maximum(original, self._level)
            H[diagonal] = original + self.ridge
            if lapack.factorise(H):
                self.factor = H
                return True
            ridge *= RIDGE_GROWTH
        return False

    def _build(self) -> NDArray[Any]:
        """Return H_0 from the base's rows, or from the Gram matrix less the others, if fewer."""
        f, constant = self.factorisation, self.constant
        working = np.flatnonzero(self.rows)
        idle = f.n_samples - len(working)
        H = np.zeros((self.n_base, self.n_base), dtype=self.dtype, order="F")
        if f.gram is None or idle >= len(working):
            lapack.add_gram(1.0, gather(f, working, self.columns, self.dtype), H)
            return H
        kernels.submatrix(f.gram, self.columns, H, constant)
        if constant:
            H[0, 0] = f.n_samples
        if idle:
            others = gather(f, np.flatnonzero(~self.rows), self.columns, self.dtype)
            lapack.add_gram(-1.0, others, H)
        return H


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
        kernels.gather(X, rows, columns, factorisation.mean, scale, constant, out)
    return out
