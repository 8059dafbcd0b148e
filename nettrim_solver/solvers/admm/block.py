r"""The state of one block of outputs in the ADMM, and its steps.

Written as Douglas-Rachford splitting on the graph :math:`\{Z = \tilde X V + \beta\}`, with one
state array per block, an over-relaxation :math:`\alpha` and one :math:`\rho` per output:

.. math::

    (V_2, Z_2) = \text{projection of } (S_v, S_z) \text{ onto the graph}, \quad
    Q = 2 (V_2, Z_2) - S, \\
    V_1 = \text{soft}(Q_v, c / (\rho \kappa)), \quad
    Z_1 = \text{projection of } Q_z \text{ onto the radius}, \\
    S \leftarrow S + \alpha ((V_1, Z_1) - (V_2, Z_2)), \quad \theta = \rho (Q_z - Z_1) .

:math:`V_1` has exact zeros and is the answer; :math:`\theta` is a dual point with legal signs.
"""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import kernels
from .factorisation import Factorisation

Array = NDArray[np.float64]


class Block:
    """Outputs that iterate together.

    Parameters
    ----------
    factorisation : Factorisation
    lower, upper : ndarray of shape (m, P)
        The box, float64; kept in `dtype`.
    penalty : ndarray of shape (m, N)
        l1 weights in scaled coordinates.
    epsilon : ndarray of shape (m,) or float
        Radius per output, one joint radius (a float), or None.
    lambda_ : ndarray of shape (m,) or None
        Given multipliers (penalised).
    strict : bool
    start : tuple (V, beta, theta, slopes)
        Weights (m, N), None for zeros, intercepts (m,), dual point (m, P) to start from and its
        product with X~ (m, N), None where it is not at hand; the last two in `dtype`, and
        overwritten.
    rho : ndarray of shape (m,)
    relaxation : float
    dtype : dtype of the iterates
    workers : Executor or None
        Threads that share the rows; None leaves all to this one.
    n_workers : int
    """

    def __init__(
        self, factorisation: Factorisation, lower: Array, upper: Array, penalty: Array,
        epsilon: Any, lambda_: Any, strict: bool, start: tuple[Any, Array, NDArray[Any], Any],
        rho: Array, relaxation: float, dtype: Any, workers: Executor | None = None,
        n_workers: int = 1,
    ) -> None:  # fmt: skip
        self.factorisation = factorisation
        self.dtype = np.dtype(dtype)
        self.lower = np.ascontiguousarray(lower, dtype=self.dtype)
        self.upper = np.ascontiguousarray(upper, dtype=self.dtype)
        self.epsilon, self.lambda_ = epsilon, lambda_
        self.strict, self.rho, self.relaxation = strict, rho.copy(), relaxation
        self.workers, self.n_workers = workers, n_workers
        V, beta, theta, slopes = start
        # The fixed point that belongs to (V, theta): S_z = Z - theta / rho, and so for S_v.
        self.state = np.empty(penalty.shape, dtype=self.dtype) if slopes is None else slopes
        self.S = np.zeros(theta.shape, dtype=self.dtype)
        factorisation.design(self.dtype), factorisation.inverse(self.dtype)  # made by one thread

        def work(r: slice) -> None:
            if slopes is None:
                self.state[r] = factorisation.adjoint(theta[r])
            self.state[r] /= (rho[r, None] * factorisation.kappa).astype(self.dtype)
            level = beta[r]
            if V is not None:
                self.state[r] += V[r]
                level = level + factorisation.forward(V[r].astype(self.dtype), self.S[r])[1]
            theta[r] /= rho[r, None].astype(self.dtype)
            self.S[r] += level[:, None].astype(self.dtype)
            self.S[r] -= theta[r]

        self._rows(work)
        self.sums = self.S.sum(axis=1, dtype=np.float64).astype(self.dtype)
        self.answer = np.zeros_like(self.state)
        self.shrink = np.zeros(len(theta), dtype=self.dtype)
        self.multiplier = np.zeros(len(theta))
        # The last projection, filled by project(), and the dual point, by measure().
        self.V, self.Z, self.dual = np.zeros_like(self.state), np.zeros_like(self.S), theta
        self.shift, self.beta = np.zeros_like(self.shrink), np.zeros(len(theta))
        # The right sides of its normal equations, and both as they were when they were marked.
        width = 0 if factorisation.small_side else factorisation.n_inputs
        self.right = np.zeros((len(theta), width), dtype=self.dtype)
        self.marked: tuple[NDArray[Any], NDArray[Any]] | None = None
        self._set_threshold(penalty)

    def __len__(self) -> int:
        return len(self.S)

    def project(self) -> None:
        """Project the state onto the graph: two products with X and one with the inverse."""

        def work(r: slice) -> None:
            self.shift[r], self.beta[r] = self.factorisation.project(
                self.state[r], self.S[r], self.sums[r].astype(np.float64), self.V[r], self.Z[r],
                self.right[r],
            )  # fmt: skip

        self._rows(work)

    def advance(self) -> None:
        """Take the proximal steps of both blocks and the over-relaxed step of the state."""
        ball = self.epsilon is not None and np.ndim(self.epsilon) == 1
        if not ball:
            self._shared_shrink()
        epsilon = (self.epsilon if ball else self.shrink).astype(self.dtype)
        alpha = self.dtype.type(self.relaxation)

        def work(r: slice) -> None:
            kernels.advance(
                self.S[r], self.Z[r], self.shift[r], self.lower[r], self.upper[r], epsilon[r],
                self.shrink[r], not ball, self.strict, alpha, self.sums[r],
            )  # fmt: skip
            kernels.shrink_weights(
                self.state[r], self.V[r], self.threshold[r], alpha, self.answer[r]
            )

        self._rows(work)

    def measure(self) -> tuple[Array, Array, Array]:
        """Look at the current projection without changing the state; set the dual point `dual`.

        Returns per output the squared length of the step that :meth:`advance` will take, the
        squared size of the primal point and of the dual vector, in the metric of the graph.
        """
        self._set_shrink()
        if len(self.dual) != len(self):
            self.dual = np.empty_like(self.S)
        dual, squares, kappa = self.dual, np.empty((len(self), 3)), self.factorisation.kappa

        def work(r: slice) -> None:
            kernels.measure(
                self.S[r], self.Z[r], self.shift[r], self.lower[r], self.upper[r],
                self.shrink[r], self.strict, dual[r], squares[r],
            )  # fmt: skip
            dual[r] *= self.rho[r, None].astype(self.dtype)
            q = 2 * self.V[r] - self.state[r]
            answer = np.sign(q) * np.maximum(np.abs(q) - self.threshold[r], 0)
            for part, V in enumerate((answer - self.V[r], self.V[r], q - answer)):
                squares[r, part] += kappa * _square(V)

        self._rows(work)
        step, size, force = squares.T
        return step, size, force

    def mark(self) -> None:
        """Remember the current projection."""
        self.marked = self.V.copy(), self.right.copy()

    def moved(self) -> Array:
        """Return by how much the projection has moved since it was marked, and forget the mark.

        That is the squared graph norm ``kappa ||V||^2 + ||X~ V||^2`` of the move of every row, the
        norm of the normal equations, whose right sides are the products with their matrix.
        """
        assert self.marked is not None
        (V, right), self.marked, squares = self.marked, None, np.empty(len(self))

        def work(r: slice) -> None:
            moved = self.V[r] - V[r]
            if self.factorisation.small_side:
                Z, shift = self.factorisation.forward(moved)
                Z += shift.astype(Z.dtype)[:, None]
                squares[r] = self.factorisation.kappa * _square(moved) + _square(Z)
            else:
                np.einsum(
                    "ij,ij->i", moved, self.right[r] - right[r], out=squares[r], dtype=np.float64
                )

        self._rows(work)
        return np.maximum(squares, 0.0)

    def fix_multiplier(self, lambda_: float) -> None:
        """Replace the joint radius by this multiplier, or one given before by another."""
        self.epsilon, self.lambda_ = None, np.full(len(self), lambda_)
        self.multiplier = self.lambda_

    def ball_distances(self) -> Array:
        """Return the distance over the ball's rows that every projection has, shape (m,)."""
        with np.errstate(divide="ignore"):
            return self._norms() / (1.0 + 1.0 / (self.rho * self.multiplier))

    def change_rho(self, factors: Array) -> None:
        """Multiply rho by the factors and move the state so that theta stays (no product)."""
        scale = factors.astype(self.dtype)
        self._rows(
            lambda r: kernels.rescale(self.S[r], self.Z[r], self.shift[r], scale[r], self.sums[r])
        )
        self.state = self.V + (self.state - self.V) / scale[:, None]
        self.rho *= factors
        self.threshold /= scale[:, None]

    def keep(self, rows: NDArray[Any]) -> None:
        """Drop all outputs but these."""
        self.dual = self.dual[:0]  # makes room for the copies
        for name in ("lower", "upper", "S", "state", "sums", "answer", "rho", "threshold",
                     "shrink", "multiplier", "V", "Z", "shift", "beta", "right"):  # fmt: skip
            setattr(self, name, np.ascontiguousarray(getattr(self, name)[rows]))
        if self.marked is not None:
            self.marked = self.marked[0][rows], self.marked[1][rows]
        if np.ndim(self.epsilon) == 1:
            self.epsilon = self.epsilon[rows]
        if self.lambda_ is not None:
            self.lambda_ = self.lambda_[rows]

    def to_double(self, lower: Array, upper: Array, penalty: Array) -> None:
        """Go on in float64, with box and l1 weights given anew in full precision."""
        self.dtype, self.dual, self.marked = np.dtype(np.float64), self.dual[:0], None
        self.lower, self.upper = np.ascontiguousarray(lower), np.ascontiguousarray(upper)
        for name in ("S", "state", "answer", "shrink", "V", "Z", "shift", "right"):
            setattr(self, name, getattr(self, name).astype(np.float64))
        self.sums = self.S.sum(axis=1)
        self._set_threshold(penalty)

    def _set_threshold(self, penalty: Array) -> None:
        scale = self.rho * self.factorisation.kappa
        self.threshold = (penalty / scale[:, None]).astype(self.dtype)

    def _norms(self) -> Array:
        norms = np.empty(len(self))
        self._rows(
            lambda r: kernels.ball_norms(
                self.S[r], self.Z[r], self.shift[r], self.lower[r], self.upper[r], self.strict,
                norms[r],
            )
        )  # fmt: skip
        return norms

    def _set_shrink(self) -> None:
        """Set the shrink factor and the multiplier lambda of every output at the current point."""
        if self.epsilon is None or np.ndim(self.epsilon) == 0:
            self._shared_shrink()
            return
        norms = self._norms()
        with np.errstate(divide="ignore", invalid="ignore"):
            shrink = np.where(norms > self.epsilon, 1.0 - self.epsilon / norms, 0.0)
            # theta = rho shrink e has norm rho (||e|| - epsilon), and lambda = epsilon / ||theta||.
            force = self.rho * (norms - self.epsilon)
            self.multiplier = np.where(force > 0, self.epsilon / force, np.inf)
        self.shrink = shrink.astype(self.dtype)

    def _shared_shrink(self) -> None:
        if self.lambda_ is not None:
            self.multiplier = self.lambda_
            self.shrink = (1.0 / (1.0 + self.rho * self.lambda_)).astype(self.dtype)
            return
        # Joint radius: z1 = q - e mu / (rho + mu), with 1/mu = lambda such that all distances
        # together have norm epsilon.
        norms = self._norms()
        mu = joint_multiplier(norms, self.rho, float(self.epsilon))
        self.multiplier = np.full(len(self), 1.0 / mu if mu > 0 else np.inf)
        self.shrink = (mu / (self.rho + mu) if np.isfinite(mu) else np.ones(len(self))).astype(
            self.dtype
        )

    def _rows(self, work: Any) -> None:
        """Do some work on all rows, in a slice for each worker when there are some."""
        m = len(self.S)
        if self.workers is None or m < 2 * self.n_workers:
            work(slice(0, m))
            return
        edges = np.linspace(0, m, self.n_workers + 1).astype(int)
        list(
            self.workers.map(
                work, [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
            )
        )


def joint_multiplier(norms: Array, rho: Array, epsilon: float) -> float:
    """Return mu >= 0 with ``sum (rho_j norms_j / (rho_j + mu))^2 = epsilon^2`` (0 if within).

    Newton on the reciprocal norm, whose graph is almost straight: a few steps.
    """
    if np.linalg.norm(norms) <= epsilon:
        return 0.0
    if epsilon == 0.0:
        return np.inf
    norms = norms / epsilon  # lest squares overflow
    mu = 0.0
    for _ in range(100):
        weights = rho / (rho + mu)
        size = float(np.linalg.norm(weights * norms))
        slope = -float(np.sum((weights * norms) ** 2 / (rho + mu))) / size
        # 1/size is concave and increasing in mu: Newton from the left never overshoots.
        change = (1.0 - 1.0 / size) * size**2 / -slope
        mu += change
        if abs(change) <= 1e-15 * mu:
            break
    return mu


def _square(A: NDArray[Any]) -> Array:
    return np.einsum("ij,ij->i", A, A, dtype=np.float64)
