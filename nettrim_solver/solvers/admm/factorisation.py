r"""Linear algebra shared by all outputs: the design and its projection onto the graph.

The solvers work in scaled coordinates. With the column means :math:`\mu` (zero without an
intercept) and the norms :math:`d_i` of the centred columns,

.. math::

    Z = X W + b = \tilde X V + \beta, \qquad
    \tilde X = (X - 1 \mu^T) D^{-1},\; V = D W,\; \beta = b + \mu^T W .

An unpenalised intercept makes the change of variables exact, and the l1 weights become c / d.
:math:`\tilde X` is never formed: products with it are products with X and a correction of rank one,
so a sparse X stays sparse. Everything depends on X alone, not on targets, radii or rho.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg as la
import scipy.sparse as sp
from numpy.typing import NDArray

from ...exceptions import ProblemError
from ...problem import Problem
from ...threads import limit_threads
from .. import kernels

Array = NDArray[np.float64]

#: kappa relative to the largest eigenvalue of the scaled Gram matrix; see docs/performance.md.
KAPPA = 2e-3

#: Columns whose centred norm is below this fraction of their own norm are constants up to
#: rounding; with an intercept they can contribute nothing.
CONSTANT_COLUMN = 1e-12

#: Rows of X that are cast or centred at a time.
ROWS = 4096

#: Outputs up to which X is multiplied by the kernels for few of them; and its transpose, where no
#: more than this share of the entries is nonzero or the outputs are very few (docs/performance.md).
FEW, VERY_FEW = 32, 6
SPARSE_SHARE = 0.6


class Factorisation:
    r"""X prepared for any number of solves: scales, Gram matrix, and the graph projection.

    Parameters
    ----------
    problem : Problem
        Only ``X`` and ``intercept`` are used; targets and radii may change afterwards.

    Attributes
    ----------
    mean, norm : ndarray of shape (n_inputs,)
        :math:`\mu` and :math:`d`; the norm of a column without content is set to 1.
    live : ndarray of bool, shape (n_inputs,)
        Columns that can contribute.
    gram : ndarray of shape (n_inputs, n_inputs), or None when P < N
        :math:`\tilde X^T \tilde X`, float64.
    kappa : float
        Weight of the W block in the metric of the graph projection.

    Notes
    -----
    ``P N^2`` flops for the Gram matrix and ``N^3`` for the inverse; with P < N, ``P^2 N`` and
    ``P^3``. Memory: three N x N (or P x P) matrices, one of them in float32 when asked for.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver import Problem, solve
    >>> X = np.random.default_rng(0).standard_normal((50, 6))
    >>> problem = Problem(X, np.maximum(X[:, :2], 0), tolerance=0.3)
    >>> shared = Factorisation(problem)
    >>> [str(solve(problem.replace(tolerance=g), factorisation=shared).status) for g in (0.2, 0.1)]
    ['optimal', 'optimal']
    """

    def __init__(self, problem: Problem) -> None:
        X = problem.X
        self.X = X
        self.intercept = problem.intercept
        self.n_samples, self.n_inputs = X.shape
        self.mean, norm = _column_statistics(X, problem.intercept)
        self.live = norm > 0
        self.norm = np.where(self.live, norm, 1.0)
        self.inverse_norm = 1.0 / self.norm
        self.small_side = self.n_samples < self.n_inputs
        self.gram = None if self.small_side else self._gram()
        kernel = self._outer_gram() if self.gram is None else self.gram
        # Threads would wait for each other longer than these steps take.
        with limit_threads(1):
            self.kappa = KAPPA * _largest_eigenvalue(kernel)
            if self.kappa == 0.0:
                self.kappa = 1.0
            regular = kernel.copy()
            regular[np.diag_indices_from(regular)] += self.kappa
            self._inverse = {np.dtype(np.float64): _inverse(regular)}
        self._designs = {np.dtype(X.dtype): X}

    def check(self, problem: Problem) -> None:
        """Raise unless this factorisation belongs to the problem's X and intercept."""
        same = problem.X is self.X or (
            problem.X.shape == self.X.shape
            and problem.X.dtype == self.X.dtype
            and sp.issparse(problem.X) == sp.issparse(self.X)
            and (abs(problem.X - self.X).max() == 0)
        )
        if not same or problem.intercept != self.intercept:
            raise ProblemError(
                "factorisation must come from a problem with the same X and intercept, but does not"
            )

    def design(self, dtype: Any) -> Any:
        """Return X in the given dtype (made once; X itself where it has that dtype)."""
        dtype = np.dtype(dtype)
        if dtype not in self._designs:
            self._designs[dtype] = self.X.astype(dtype)
        return self._designs[dtype]

    def nearest_design(self, dtype: Any) -> Any:
        """Return X in the given dtype if it is at hand, else X itself."""
        return self._designs.get(np.dtype(dtype), self.X)

    def forward(
        self, V: NDArray[Any], out: NDArray[Any] | None = None
    ) -> tuple[NDArray[Any], Array]:
        """Return ``X D^-1 V`` transposed, shape (m, P), and the shift ``-mu^T D^-1 V``, shape (m,).

        V has shape (m, N); its dtype is that of the product. Their sum is the centred product.
        """
        scaled, X = V / self.norm.astype(V.dtype), self.design(V.dtype)
        shift = -(scaled.astype(np.float64) @ self.mean) if self.intercept else np.zeros(len(V))
        if out is None:
            out = np.empty((len(V), self.n_samples), dtype=V.dtype)
        if sp.issparse(X):
            out[:] = scaled @ X.T
        elif len(V) <= FEW:
            kernels.forward_few(X, scaled, out)
        else:
            np.matmul(scaled, X.T, out=out)
        return out, shift

    def adjoint(self, S: NDArray[Any], sums: Array | None = None) -> NDArray[Any]:
        """Return the product with the scaled, centred X, shape (m, N), of S, shape (m, P).

        `sums` are the row sums of S, when known.
        """
        X = self.design(S.dtype)
        if sp.issparse(X) or _dense(S):
            product = np.asarray(S @ X)
        else:
            product = np.zeros((len(S), self.n_inputs), dtype=S.dtype)
            room = kernels.TILE + 4
            kernels.adjoint_few(X, S, product, np.empty(room, np.uint64), np.empty(room, S.dtype))
        if self.intercept:
            sums = S.sum(axis=1, dtype=np.float64) if sums is None else sums
            product -= np.outer(sums, self.mean).astype(S.dtype)
        product /= self.norm.astype(S.dtype)
        product[:, ~self.live] = 0.0
        return product

    def project(
        self, state: NDArray[Any], S: NDArray[Any], sums: Array, V: NDArray[Any], Z: NDArray[Any],
        right: NDArray[Any] | None = None,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Project a state onto the graph: the nearest (V, Z, beta) with ``Z = X~ V + beta``.

        Parameters
        ----------
        state : ndarray of shape (m, N)
            Block of the scaled weights.
        S : ndarray of shape (m, P)
            Block of the samples.
        sums : ndarray of shape (m,)
            Row sums of S.
        V : ndarray of shape (m, N)
            Overwritten.
        Z : ndarray of shape (m, P)
            Overwritten; without the shift.
        right : ndarray of shape (m, N), optional
            Receives ``(kappa I + X~^T X~) V``, unless P < N.

        Returns
        -------
        shift : ndarray of shape (m,)
            What ``Z`` lacks of the pre-activations.
        beta : ndarray of shape (m,)
        """
        inverse = self.inverse(S.dtype)
        offset = sums / self.n_samples if self.intercept else np.zeros(len(S))
        if not self.small_side:
            product = self.adjoint(S, sums)
            product += S.dtype.type(self.kappa) * state
            np.matmul(product, inverse, out=V)
            if right is not None:
                right[:] = product
            return self.forward(V, Z)[1] + offset, offset
        # Woodbury's identity: V = state + X~^T y, and Z follows without another product.
        _, shift = self.forward(state, Z)
        y = S - Z
        y -= (shift + offset)[:, None].astype(S.dtype)
        np.matmul(y, inverse, out=Z)
        np.add(state, self.adjoint(Z), out=V)
        Z *= S.dtype.type(-self.kappa)
        Z += S
        return np.zeros(len(S)), offset

    def inverse(self, dtype: Any) -> NDArray[Any]:
        """Return ``(kappa I + X~^T X~)^-1`` (or of ``X~ X~^T``) in the given dtype."""
        dtype = np.dtype(dtype)
        if dtype not in self._inverse:
            self._inverse[dtype] = self._inverse[np.dtype(np.float64)].astype(dtype)
        return self._inverse[dtype]

    def _gram(self) -> Array:
        if self.intercept and not sp.issparse(self.X):
            gram = _centred_gram(self.X, self.mean)
        else:
            gram = _product(self.X, transpose_first=True)
            gram -= self.n_samples * np.outer(self.mean, self.mean)
        gram /= np.outer(self.norm, self.norm)
        gram[~self.live] = 0.0
        gram[:, ~self.live] = 0.0
        return gram

    def _outer_gram(self) -> Array:
        """Return ``X~ X~^T``, shape (P, P)."""
        scaled = (
            self.X @ sp.diags_array(np.where(self.live, 1.0 / self.norm, 0.0))
            if sp.issparse(self.X)
            else self.X * np.where(self.live, 1.0 / self.norm, 0.0)
        )
        outer = _product(scaled, transpose_first=False)
        if self.intercept:
            # Centring the columns of X is centring the rows and the columns of X X^T.
            outer -= outer.mean(axis=0)
            outer -= outer.mean(axis=1)[:, None]
        return outer


def _dense(S: NDArray[Any]) -> bool:
    """Return whether rows are too many, or too full, for a product by their nonzero entries."""
    m = len(S)
    return m > FEW or bool(m > VERY_FEW and np.count_nonzero(S) > SPARSE_SHARE * S.size)


def _product(X: Any, transpose_first: bool) -> Array:
    if sp.issparse(X):
        X = X.astype(np.float64)
        return np.asarray((X.T @ X if transpose_first else X @ X.T).toarray())
    if X.dtype == np.float64:
        return X.T @ X if transpose_first else X @ X.T
    if not transpose_first:
        X = X.astype(np.float64)
        return X @ X.T
    gram = np.zeros((X.shape[1], X.shape[1]))
    for start in range(0, X.shape[0], ROWS):
        rows = X[start : start + ROWS].astype(np.float64)
        gram += rows.T @ rows
    return gram


def _centred_gram(X: Any, mean: Array) -> Array:
    """Return the Gram matrix of X about its means: subtracting them later would cancel digits."""
    gram = np.zeros((X.shape[1], X.shape[1]))
    for start in range(0, X.shape[0], ROWS):
        rows = X[start : start + ROWS] - mean
        gram += rows.T @ rows
    return gram


def _column_statistics(X: Any, centre: bool) -> tuple[Array, Array]:
    """Return the means (zeros unless `centre`) and the norms of the centred columns, float64."""
    n_samples = X.shape[0]
    if sp.issparse(X):
        columns = sp.csc_array(X, dtype=np.float64)
        squares = np.asarray(columns.power(2).sum(axis=0)).ravel()
        mean = np.asarray(columns.sum(axis=0)).ravel() / n_samples
        if not centre:
            return np.zeros_like(mean), np.sqrt(squares)
        counts = np.diff(columns.indptr)
        columns.data -= np.repeat(mean, counts)
        total = np.asarray(columns.power(2).sum(axis=0)).ravel() + (n_samples - counts) * mean**2
        return mean, np.sqrt(np.where(total > CONSTANT_COLUMN**2 * squares, total, 0.0))
    if not centre:
        return np.zeros(X.shape[1]), np.sqrt(np.einsum("ij,ij->j", X, X, dtype=np.float64))
    mean = X.mean(axis=0, dtype=np.float64)
    total, squares = np.zeros(X.shape[1]), np.zeros(X.shape[1])
    for start in range(0, n_samples, ROWS):
        rows = X[start : start + ROWS].astype(np.float64)
        squares += np.einsum("ij,ij->j", rows, rows)
        rows -= mean
        total += np.einsum("ij,ij->j", rows, rows)
    return mean, np.sqrt(np.where(total > CONSTANT_COLUMN**2 * squares, total, 0.0))


def _largest_eigenvalue(matrix: Array) -> float:
    """Estimate the largest eigenvalue of a positive semidefinite matrix by power iteration.

    kappa needs it within a few per cent only, and always the same. The usual start may lie in the
    null space (a constant, where equal columns are centred); the largest column never does.
    """
    diagonal = np.diag(matrix)
    largest = int(np.argmax(diagonal))
    value = _power_iteration(matrix, np.sqrt(np.maximum(diagonal, 0.0)) + 1e-3)
    if value < diagonal[largest]:
        value = max(float(diagonal[largest]), _power_iteration(matrix, matrix[largest]))
    return value


def _power_iteration(matrix: Array, vector: Array) -> float:
    value = 0.0
    for _ in range(30):
        size = float(np.linalg.norm(vector))
        if size == 0.0:
            return 0.0
        vector = matrix @ (vector / size)
        value = float(np.linalg.norm(vector))
    return value


def _inverse(matrix: Array) -> Array:
    """Return the inverse of a well-conditioned positive definite matrix (kappa sees to that)."""
    factor, info = la.lapack.dpotrf(matrix, lower=1, overwrite_a=1)
    if info == 0:
        inverse, info = la.lapack.dpotri(factor, lower=1, overwrite_c=1)
    if info != 0:
        raise ProblemError("X has entries too large to square; scale X")
    lower = np.tril_indices_from(inverse, -1)
    inverse.T[lower] = inverse[lower]
    return np.ascontiguousarray(inverse)
