"""All that a least-squares pruner needs of a layer: its Gram matrix, and the products with it.

For the linear target T of shape (P, M), the layer loss of a pruner is

    ||T - X W||^2 = tr(W' H W) - 2 tr(G' W) + ||T||^2,   H = X'X,  G = X'T,

so the samples enter once, in blocks and in float64: the memory is N x N and N x M for any P.

The target is what the trained layer computes before its activation, moved into the target box:
``clip(Z, lower, upper)`` with the stored pre-activations Z, or ``Z = X W + b``. With the layer's
own inputs that is ``X W + b`` itself; behind pruned layers (a cascade) it is the original layer's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg as sl
import scipy.sparse as sp
from numpy.typing import NDArray

from ..exceptions import ProblemError
from ..problem import Problem

Array = NDArray[np.float64]

#: Entries of X in a block of samples (8 MB in float64).
BLOCK_ENTRIES = 1_000_000

#: Inputs whose norm (about the mean, when the intercept is solved for) is below this fraction of
#: the largest raw norm are rounding: dead.
DEAD = 1e-10


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
        Inputs that carry no signal. Their weights are zero, and count as zeros of the budget.
    mean, target_mean : ndarray of shape (N,) and (M,)
        What was subtracted from X and T: zeros unless the intercept is solved for.
    n_samples : int
    """

    H: Array
    G: Array
    W: Array
    squares: Array
    dead: NDArray[np.bool_]
    mean: Array
    target_mean: Array
    n_samples: int

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

        Magnitudes are then comparable across inputs (they equal Wanda's scores).
        """
        norms = self.norms
        unit = replace(
            self, H=self.H / np.outer(norms, norms), G=self.G / norms[:, None],
            W=self.W * norms[:, None], mean=self.mean / norms,
        )  # fmt: skip
        return unit, norms

    def stationary(self) -> Array:
        """Return the weights of zero gradient, ``H^-1 G``: W itself where ``G = H W`` already.

        The optimal brain surgeon assumes a zero gradient; behind pruned layers W has none.
        """
        gradient = self.H @ self.W - self.G
        if np.max(np.abs(gradient), initial=0.0) <= 1e-9 * np.max(np.abs(self.G), initial=0.0):
            return self.W
        return sl.cho_solve((cholesky(self.H), True), self.G)

    def losses(self, W: Array) -> Array:
        """Return ``||t_j - X w_j||^2`` of every output, shape (M,)."""
        quadratic = np.einsum("ij,ij->j", W, self.H @ W - 2.0 * self.G)
        return np.maximum(self.squares + quadratic, 0.0)

    def intercept(self, W: Array) -> Array:
        """Return the best intercept of weights: the difference of the means, shape (M,)."""
        return self.target_mean - self.mean @ W


def gram(problem: Problem, *, solve_intercept: bool) -> Gram:
    """Accumulate the least-squares data of a problem with trained weights.

    Parameters
    ----------
    problem : Problem
        With W (and b, when it has an intercept and it is kept).
    solve_intercept : bool
        Whether the intercept is solved for along with the weights: X and T are then centred.
        Otherwise the trained b is subtracted from the target.

    Notes
    -----
    ``P N^2 + 2 P N M`` flops; memory of one block of samples beside the result.
    """
    N, M = problem.n_inputs, problem.n_outputs
    W = np.array(problem.W, dtype=np.float64)
    H, G = np.zeros((N, N)), np.zeros((N, M))
    sums, target_sums, squares = np.zeros(N), np.zeros(M), np.zeros(M)
    b = np.zeros(M) if problem.b is None else problem.b.astype(np.float64)
    # Sums of squares about a point near the mean: subtracting the mean afterwards loses nothing.
    centre = np.zeros(N)
    target_centre = np.zeros(M) if solve_intercept else b
    raw = np.zeros(N)
    height = max(1, BLOCK_ENTRIES // max(N, M))
    for start in range(0, problem.n_samples, height):
        rows = slice(start, start + height)
        X, T = _block(problem, rows, W, b)
        raw += np.einsum("ij,ij->j", X, X)
        if start == 0 and solve_intercept:
            centre, target_centre = X.mean(axis=0), T.mean(axis=0)
        X = X - centre
        T -= target_centre
        H += X.T @ X
        G += X.T @ T
        squares += np.einsum("ij,ij->j", T, T)
        sums += X.sum(axis=0)
        target_sums += T.sum(axis=0)
    mean, target_mean = centre, target_centre if solve_intercept else b
    if solve_intercept:
        n = problem.n_samples
        H -= np.outer(sums, sums) / n
        G -= np.outer(sums, target_sums) / n
        squares -= target_sums**2 / n
        mean, target_mean = centre + sums / n, target_centre + target_sums / n
    largest = float(raw.max(initial=0.0))
    # An input is dead against its own raw norm too: a constant far from zero centres to rounding.
    dead = np.diag(H) <= DEAD**2 * largest + 1e-14 * raw * solve_intercept
    dead |= raw == 0.0
    H[dead], H[:, dead], G[dead], W[dead] = 0.0, 0.0, 0.0, 0.0
    H[dead, dead] = 1.0
    return Gram(H, G, W, np.maximum(squares, 0.0), dead, mean, target_mean, problem.n_samples)


def cholesky(H: Array) -> Array:
    """Return the lower Cholesky factor, or say in one line that H needs damping.

    Raises
    ------
    ProblemError
        If H is singular.
    """
    try:
        factor: Array = sl.cholesky(H, lower=True, check_finite=False)
    except sl.LinAlgError:
        raise ProblemError(
            "X must have full column rank for damping=0, but its Gram matrix is singular; "
            "set damping above 0 (0.01 is customary)"
        ) from None
    return factor


def _block(problem: Problem, rows: slice, W: Array, b: Array) -> tuple[Array, Array]:
    """Return a block of samples and of the linear target, both float64 and free to change."""
    X: Any = problem.X[rows]
    X = np.asarray(X.toarray() if sp.issparse(X) else X).astype(np.float64)
    part = problem.samples(rows)
    Z = X @ W + b if problem.Z is None else problem.Z[rows].astype(np.float64)
    lower, upper = part.box()
    return X, np.clip(Z, lower, upper)
