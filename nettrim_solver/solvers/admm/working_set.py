r"""The linear system of one output's working set, kept from one Newton step to the next.

:math:`H = \tilde X_{AT}^T R \tilde X_{AT}` over working rows A with weights R and working
columns T, the intercept's column first. Between steps few rows and columns change, so H is updated
by what changed and made anew only when that is much. H may be float32: it is a preconditioner, the
conditions themselves being evaluated in float64 (:mod:`.polish`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg as la
import scipy.sparse as sp
from numpy.typing import NDArray

from .. import kernels
from .factorisation import Factorisation

Array = NDArray[np.float64]
Index = NDArray[np.int64]

#: Ridge on H, relative to its diagonal: keeps dependent columns solvable, and slows only the
#: directions that are flatter than itself. It grows by RIDGE_GROWTH until H is definite.
RIDGE = {np.dtype(np.float32): 2e-6, np.dtype(np.float64): 1e-13}
RIDGE_GROWTH = 30.0

#: Share of the rows or columns whose change makes an update dearer than a new H.
UPDATE = 0.3

#: Share of the columns that may be held fixed on an existing factor; beyond, H is cut down.
FIXED = 0.1


class WorkingSet:
    """H of one output, its columns, its row weights, and its Cholesky factor.

    Parameters
    ----------
    factorisation : Factorisation
    dtype : dtype of H, float32 or float64
    """

    def __init__(self, factorisation: Factorisation, dtype: Any) -> None:
        self.factorisation = factorisation
        self.dtype = np.dtype(dtype)
        self.columns = np.zeros(0, dtype=np.int64)
        self.weights = np.zeros(factorisation.n_samples)
        self.H: NDArray[Any] | None = None
        self.factor: NDArray[Any] | None = None
        self.damping = 0.0

    def update(self, columns: Index, weights: Array) -> None:
        """Bring H to these columns (a set) and row weights; ``self.columns`` gives their order."""
        changed = np.flatnonzero(weights != self.weights)
        kept = np.isin(self.columns, columns, assume_unique=True)
        new = np.setdiff1d(columns, self.columns, assume_unique=True)
        most_rows = UPDATE * np.count_nonzero(weights)
        if self.H is None or len(new) > UPDATE * len(columns) or len(changed) > most_rows:
            self.columns, self.weights = np.sort(columns), weights.copy()
            self.H, self.factor = self._build(), None
            return
        if not kept.all():
            self.cut(np.append(np.ones(self._constant, dtype=bool), kept))
        if len(changed):
            self._change_rows(changed, weights)
        if len(new):
            self._append(new)

    def damp(self, damping: float) -> None:
        """Set the proximal term of the steps, relative to the diagonal of H."""
        if damping != self.damping:
            self.damping, self.factor = damping, None

    def restricted(self, keep: NDArray[np.bool_]) -> WorkingSet:
        """Return the working set of these columns alone, without changing this one."""
        other = WorkingSet(self.factorisation, self.dtype)
        other.columns, other.weights, other.H = self.columns, self.weights, self.H
        other.damping = self.damping
        other.cut(keep)
        return other

    def set_rows(self, rows: Index, weight: float) -> None:
        """Give some rows another weight."""
        weights = self.weights.copy()
        weights[rows] = weight
        self._change_rows(rows, weights)

    def cut(self, keep: NDArray[np.bool_]) -> None:
        """Keep only these rows and columns of H (a mask that counts the intercept's first)."""
        assert self.H is not None
        chosen = np.flatnonzero(keep)
        H = np.zeros((len(chosen), len(chosen)), dtype=self.dtype, order="F")
        kernels.submatrix(self.H, chosen, H, 0)
        self.columns = self.columns[keep[self._constant :]]
        self.H, self.factor = H, None

    def product(self, x: Array) -> Array:
        """Return ``H @ x`` as float64."""
        symv = la.blas.ssymv if self.dtype == np.float32 else la.blas.dsymv
        return np.asarray(symv(1.0, self.H, x.astype(self.dtype), lower=1), dtype=np.float64)

    def factorise(self) -> bool:
        """Factorise H where that is not done; return whether it could be."""
        assert self.H is not None
        if self.factor is not None:
            return True
        potrf = la.lapack.spotrf if self.dtype == np.float32 else la.lapack.dpotrf
        diagonal = np.diag_indices_from(self.H)
        original = self.H[diagonal].copy()
        if not (np.isfinite(original).all() and original.max() > 0):
            return False
        ridge = max(RIDGE[self.dtype], self.damping)
        scale = np.maximum(original, original.mean())
        for _ in range(6):
            regular = self.H.copy(order="F")
            regular[diagonal] += (ridge * scale).astype(self.dtype)
            factor, info = potrf(regular, lower=1, clean=0, overwrite_a=1)
            if info == 0:
                self.factor = factor
                return True
            ridge *= RIDGE_GROWTH
        return False

    def solve(self, right: Array, fixed: NDArray[np.bool_], values: Array) -> Array:
        """Solve ``H x = right`` with ``x = values`` on the fixed entries (H factorised).

        Returns one solution per column of `right`, shape (n, k); `values` has that shape, too.
        """
        potrs = la.lapack.spotrs if self.dtype == np.float32 else la.lapack.dpotrs
        x = potrs(self.factor, right.astype(self.dtype), lower=1)[0].astype(np.float64)
        if fixed.any():
            # The multipliers of the fixed entries, from the Schur complement.
            where = np.flatnonzero(fixed)
            units = np.zeros((len(fixed), len(where)), dtype=self.dtype, order="F")
            units[where, np.arange(len(where))] = 1
            reach = potrs(self.factor, units, lower=1)[0].astype(np.float64)
            x += reach @ np.linalg.solve(reach[where], values[where] - x[where])
            x[where] = values[where]
        return x

    @property
    def _constant(self) -> int:
        return int(self.factorisation.intercept)

    def _build(self) -> NDArray[Any]:
        """Return H from all working rows, or from the Gram matrix less the idle ones, if fewer."""
        f, constant = self.factorisation, self._constant
        n = len(self.columns) + constant
        working = np.flatnonzero(self.weights)
        idle = f.n_samples - len(working)
        plain = bool(np.all(self.weights[working] == 1.0))
        if f.gram is None or not plain or idle >= len(working):
            block = gather(f, working, self.columns, self.dtype)
            if not plain:
                block *= np.sqrt(self.weights[working])[:, None].astype(self.dtype)
            return self._syrk(1.0, block)
        H = np.zeros((n, n), dtype=self.dtype, order="F")
        kernels.submatrix(f.gram, self.columns, H, constant)
        if constant:
            H[0, 0] = f.n_samples
        if idle == 0:
            return H
        rows = np.flatnonzero(self.weights == 0)
        return self._syrk(-1.0, gather(f, rows, self.columns, self.dtype), H)

    def _change_rows(self, changed: Index, weights: Array) -> None:
        difference = weights[changed] - self.weights[changed]
        for sign in (1.0, -1.0):
            some = sign * difference > 0
            if some.any():
                block = gather(self.factorisation, changed[some], self.columns, self.dtype)
                block *= np.sqrt(np.abs(difference[some]))[:, None].astype(self.dtype)
                self.H = self._syrk(sign, block, self.H)
        self.weights, self.factor = weights.copy(), None

    def _append(self, new: Index) -> None:
        """Append columns: their products with all working columns."""
        assert self.H is not None
        n, k = len(self.H), len(new)
        working = np.flatnonzero(self.weights)
        block = gather(self.factorisation, working, np.append(self.columns, new), self.dtype)
        right = block[:, n:] * self.weights[working][:, None].astype(self.dtype)
        H = np.zeros((n + k, n + k), dtype=self.dtype, order="F")
        H[:n, :n] = self.H
        H[n:] = right.T @ block
        self.columns, self.H, self.factor = np.append(self.columns, new), H, None

    def _syrk(
        self, sign: float, block: NDArray[Any], H: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Return ``H + sign block^T block`` (the lower triangle), reusing the memory of H."""
        syrk = la.blas.ssyrk if self.dtype == np.float32 else la.blas.dsyrk
        if H is None:
            return np.asarray(syrk(sign, block.T, lower=1))
        return np.asarray(syrk(sign, block.T, beta=1.0, c=H, lower=1, overwrite_c=1))


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
