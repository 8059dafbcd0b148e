"""All that a least-squares pruner needs of a layer: its Gram matrix, and the products with it.

For the linear target T of shape (P, M), the layer loss of a pruner is

    ||T - X W||^2 = tr(W' H W) - 2 tr(G' W) + ||T||^2,   H = X'X,  G = X'T,

so the samples enter once, in blocks and in float64: the memory is N x N and N x M for any P. When
the intercept is solved for, X and T stand for the samples and the target less their means.

The target is what the trained layer computes before its activation, moved into the target box:
``clip(Z, lower, upper)`` with the stored pre-activations Z, or ``Z = X W + b``. With the layer's
own inputs that is ``X W + b`` itself; behind pruned layers (a cascade) it is the original layer's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg as sl
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import blas

from ..exceptions import ProblemError
from ..problem import Problem

Array = NDArray[np.float64]

#: Entries of X in a block of samples (8 MB in float64).
BLOCK_ENTRIES = 1_000_000

#: Gradients below this fraction of the largest possible are rounding of a float32 network.
GRADIENT = 1e-7

#: A pivot below this many roundings per input, relative to its diagonal entry, is zero.
SINGULAR = 10.0


@dataclass(frozen=True, eq=False)
class Gram:
    """The layer's least-squares data, float64.

    Attributes
    ----------
    H : ndarray of shape (N, N)
        ``X'X``; ones on the diagonal of dead inputs.
    G : ndarray of shape (N, M)
        ``X'T``; zero rows for dead inputs.
    W : ndarray of shape (N, M)
        Trained weights; zero rows for dead inputs.
    squares : ndarray of shape (M,)
        ``||t_j||^2``.
    dead : ndarray of bool, shape (N,)
        Inputs that carry no signal: zeros, or constants when the intercept is solved for, which
        takes them over. Their weights are zero, and count as zeros of the budget.
    mean, target_mean : ndarray of shape (N,) and (M,)
        What was subtracted from X and T: their means when the intercept is solved for, else zeros
        and the trained b.
    n_samples : int
    raw_norms : ndarray of shape (N,)
        Norms of the inputs before the means were subtracted.
    """

    H: Array
    G: Array
    W: Array
    squares: Array
    dead: NDArray[np.bool_]
    mean: Array
    target_mean: Array
    n_samples: int
    raw_norms: Array

    @property
    def norms(self) -> Array:
        """Norms of the inputs, the square roots of the diagonal of H; shape (N,)."""
        return np.sqrt(np.diag(self.H))

    def damped(self, damping: float) -> Gram:
        """Return the data with a pull of strength ``damping * mean(diag H)`` towards W.

        The same as appending ``sqrt(delta) I`` to the samples and ``sqrt(delta) W`` to the target.
        """
        if damping == 0.0:
            return self
        live = ~self.dead
        delta = damping * float(np.mean(np.diag(self.H)[live])) if live.any() else 0.0
        H = self.H.copy()
        H[np.diag_indices_from(H)] += delta
        squares = self.squares + delta * np.einsum("ij,ij->j", self.W, self.W)
        return replace(self, H=H, G=self.G + delta * self.W, squares=squares)

    def scaled(self) -> tuple[Gram, Array]:
        """Return the data for inputs of norm one, and the norms: ``W = W_scaled / norms``.

        Magnitudes are then comparable across inputs: they are Wanda's scores, if the means were
        not subtracted.
        """
        norms = self.norms
        unit = replace(
            self, H=self.H / np.outer(norms, norms), G=self.G / norms[:, None],
            W=self.W * norms[:, None], mean=self.mean / norms, raw_norms=self.raw_norms / norms,
        )  # fmt: skip
        return unit, norms

    def stationary(self) -> Array:
        """Return the weights of zero gradient, ``H^-1 G``: W itself where ``G = H W`` already.

        The optimal brain surgeon assumes a zero gradient, which W has on its own layer's data, but
        not behind pruned layers. A gradient that a target rounded to float32 explains counts as
        zero.
        """
        gradient = self.G - self.H @ self.W
        norms = self.norms
        scale = np.outer(norms, np.maximum(np.sqrt(self.squares), norms @ np.abs(self.W)))
        if np.all(np.abs(gradient) <= GRADIENT * scale):
            return self.W
        return self.W + sl.cho_solve((cholesky(self.H), True), gradient)

    def losses(self, W: Array) -> Array:
        """Return ``||t_j - X w_j||^2`` of every output, shape (M,)."""
        quadratic = np.einsum("ij,ij->j", W, self.H @ W - 2.0 * self.G)
        return np.maximum(self.squares + quadratic, 0.0)

    def intercept(self, W: Array) -> Array:
        """Return the best intercept of weights: the difference of the means, shape (M,)."""
        return self.target_mean - self.mean @ W


def gram(
    problem: Problem, *, solve_intercept: bool, check: Callable[[], object] | None = None
) -> Gram:
    """Accumulate the least-squares data of a problem with trained weights.

    Parameters
    ----------
    problem : Problem
        With W (and b, when it has an intercept and it is kept).
    solve_intercept : bool
        Whether the intercept is solved for along with the weights: X and T are then centred.
        Otherwise the trained b is subtracted from the target.
    check : callable, optional
        Called after every block of samples; may raise to end it.

    Raises
    ------
    ProblemError
        If the problem has no W, or numbers whose squares are beyond float64.

    Notes
    -----
    ``P N^2 + 4 P N M`` flops. Memory: the result, and a few arrays of one block of samples.
    """
    if problem.W is None:
        raise ProblemError("W must be given, the trained weights to start from, but was None")
    N, M, n = problem.n_inputs, problem.n_outputs, problem.n_samples
    W = np.array(problem.W, dtype=np.float64)
    b = np.zeros(M) if problem.b is None else problem.b.astype(np.float64)
    # In the order of BLAS, which adds to H (one triangle) and G without a copy.
    H, G = np.zeros((N, N), order="F"), np.zeros((M, N), order="F")
    raw, sums = np.zeros((2, N))
    squares, target_sums = np.zeros((2, M))
    # Sums of squares about a point near the mean: subtracting the mean afterwards loses nothing.
    mean, target_mean = np.zeros(N), b
    for rows in _row_blocks(problem):
        X, T = _block(problem, rows, W, b)
        raw += np.einsum("ij,ij->j", X, X)
        if rows.start == 0 and solve_intercept:
            mean, target_mean = X.mean(axis=0), T.mean(axis=0)
        X -= mean
        T -= target_mean
        H = blas.dsyrk(1.0, X.T, beta=1.0, c=H, lower=True, overwrite_c=True)
        G = blas.dgemm(1.0, T.T, X.T, trans_b=True, beta=1.0, c=G, overwrite_c=True)
        squares += np.einsum("ij,ij->j", T, T)
        sums += X.sum(axis=0)
        target_sums += T.sum(axis=0)
        if check is not None:
            check()
    if solve_intercept:
        H = blas.dsyr(-1.0 / n, sums, a=H, lower=True, overwrite_a=True)
        G = blas.dger(-1.0 / n, target_sums, sums, a=G, overwrite_a=True)
        squares -= target_sums**2 / n
        mean, target_mean = mean + sums / n, target_mean + target_sums / n
    if not (np.isfinite(raw).all() and np.isfinite(squares).all()):
        raise ProblemError(
            "X and the targets must have squares that float64 holds, but their sum overflows; "
            "change the unit"
        )
    _mirror(H)
    # What is left of a constant input about its mean is rounding, in the dtype of X.
    noise = (16.0 * np.finfo(problem.dtype).eps) ** 2 if solve_intercept else 0.0
    dead = np.diag(H) <= noise * raw
    H[dead], H[:, dead], G[:, dead], W[dead] = 0.0, 0.0, 0.0, 0.0
    H[dead, dead] = 1.0
    return Gram(
        H.T, G.T, W, np.maximum(squares, 0.0), dead, mean, target_mean, n, raw_norms=np.sqrt(raw)
    )


def cholesky(H: Array) -> Array:
    """Return the lower Cholesky factor, or say in one line that H needs damping.

    Raises
    ------
    ProblemError
        If H is singular, but for rounding.
    """
    try:
        factor: Array = sl.cholesky(H, lower=True, check_finite=False)
    except sl.LinAlgError:
        factor = np.zeros_like(H)
    # A pivot is what its column adds to those before it: at the level of rounding it adds nothing,
    # although its sign may be right.
    rounding = SINGULAR * len(H) * np.finfo(np.float64).eps
    if np.any(np.diag(factor) ** 2 <= rounding * np.diag(H)):
        raise ProblemError(
            "X must have linearly independent columns for damping=0, but its Gram matrix is "
            "singular; set damping above 0 (0.01 is customary)"
        )
    return factor


def _row_blocks(problem: Problem) -> Iterator[slice]:
    height = max(1, BLOCK_ENTRIES // max(problem.n_inputs, problem.n_outputs))
    for start in range(0, problem.n_samples, height):
        yield slice(start, start + height)


def _block(problem: Problem, rows: slice, W: Array, b: Array) -> tuple[Array, Array]:
    """Return a block of samples and of the linear target, both float64 and free to change."""
    part = problem.samples(rows)
    X: Array = (part.X.toarray() if sp.issparse(part.X) else part.X).astype(np.float64)
    Z = X @ W + b if part.Z is None else part.Z.astype(np.float64)
    lower, upper = part.box()
    return X, np.clip(Z, lower, upper, out=Z)


def _mirror(H: Array) -> None:
    """Copy the lower triangle of a square matrix to the upper one, in place."""
    for i in range(1, len(H)):
        H[:i, i] = H[i, :i]
