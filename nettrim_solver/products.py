"""The judge's products with X, in float64 or beyond, and the scales that errors are measured by."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from . import extended
from .problem import Problem

Array = NDArray[np.float64]

#: Entries of a float64 working array per block of outputs (2 MB).
BLOCK_ENTRIES = 250_000

#: Radii below this fraction of dist(0, K) are judged as if they were this large, because weights in
#: the dtype of X cannot bring the distance any nearer. Times the tolerance of the dtype that is
#: 1e-12 of the targets in float64, and 1e-7, two roundings of a weight, in float32.
RADIUS_FLOOR = 1e-6
SINGLE_RADIUS_FLOOR = 1e-2

#: Products whose rounding may exceed this share of what they are compared with are computed in
#: extended precision.
PRECISE = 1e-8

#: What distances are compared with where there is no radius, over the norm of the targets.
WITHOUT_RADIUS = 1e-4

#: Least size of a weight in the scale of a row, over the norm of all weights of its output, in
#: columns of unit length; and the share of the targets below which an output's weights are none, so
#: that the targets take their place.
LEAST_WEIGHT = 1e-6

#: Columns whose centred norm is below this fraction of their own are constants up to rounding.
CONSTANT_COLUMN = 1e-12

EPS = float(np.finfo(np.float64).eps)


def forward(X: Any, W: Any, b: Any = None) -> Array:
    """Return ``X @ W + b`` in float64, without a float64 copy of X."""
    Z = np.empty((X.shape[0], W.shape[1]))
    W = np.asarray(W, dtype=np.float64)
    for rows in row_blocks(X):
        Z[rows] = X[rows].astype(np.float64, copy=False) @ W
    return Z if b is None else np.add(Z, b, out=Z)


def adjoint(X: Any, theta: Array) -> Array:
    """Return ``X.T @ theta`` in float64, without a float64 copy of X."""
    result = np.zeros((X.shape[1], theta.shape[1]))
    for rows in row_blocks(X):
        result += X[rows].astype(np.float64, copy=False).T @ theta[rows]
    return result


def row_blocks(X: Any) -> Iterator[slice]:
    """One block for float64 (no cast needed), blocks of BLOCK_ENTRIES entries for float32."""
    height = X.shape[0]
    if X.dtype != np.float64:
        height = max(1, BLOCK_ENTRIES // X.shape[1])
    for start in range(0, X.shape[0], height):
        yield slice(start, start + height)


def squared_column_norms(X: Any) -> Array:
    """Return ``||x_i||^2`` of every column, float64, dense or sparse."""
    if sp.issparse(X):
        return np.asarray(X.astype(np.float64).power(2).sum(axis=0)).ravel()
    return np.einsum("ij,ij->j", X, X, dtype=np.float64)


def radius_floor(problem: Problem) -> float:
    """Return the least radius, over dist(0, K), that violations are relative to."""
    return SINGLE_RADIUS_FLOOR if problem.dtype == np.float32 else RADIUS_FLOOR


class Scales:
    """Sizes of a problem's inputs, by which rounding and excesses are measured.

    Parameters
    ----------
    problem : Problem
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.X = problem, problem.X

    @cached_property
    def norms(self) -> Array:
        """Norms of the columns, shape (n_inputs,)."""
        return np.sqrt(squared_column_norms(self.X))

    @cached_property
    def mean(self) -> Array:
        """Means of the columns with an intercept, zeros without one."""
        if not self.problem.intercept:
            return np.zeros(self.problem.n_inputs)
        return np.asarray(self.X.mean(axis=0, dtype=np.float64)).ravel()

    @cached_property
    def centred(self) -> Array:
        """Norms of the centred columns, 0 for constants."""
        squares = np.zeros(self.problem.n_inputs)
        for _, block in self._centred_blocks():
            squares += np.einsum("ij,ij->j", block, block)
        norms = np.sqrt(squares)
        return np.where(norms > CONSTANT_COLUMN * self.norms, norms, 0.0)

    def _centred_blocks(self) -> Iterator[tuple[slice, Array]]:
        height = max(1, BLOCK_ENTRIES // self.problem.n_inputs)
        for start in range(0, self.problem.n_samples, height):
            part = slice(start, start + height)
            block = self.X[part]
            block = block.toarray() if sp.issparse(block) else block
            yield part, block.astype(np.float64) - self.mean

    def forward(self, W: Array, b: Array | None, columns: slice) -> Array:
        """Return ``X @ W + b`` of some outputs, in extended precision where rounding would show."""
        Z = forward(self.X, W, b)
        problem, size = self.problem, self.norms @ np.abs(W)
        scale = WITHOUT_RADIUS * problem.target_norms[columns]
        if problem.epsilon is not None:
            scale = 1e-4 * RADIUS_FLOOR * problem.target_norms[columns]
            share = np.broadcast_to(problem.epsilon, problem.n_outputs)[columns]
            share = share / np.sqrt(problem.n_outputs) if problem.joint else share
            scale = np.maximum(share, scale)
        with np.errstate(invalid="ignore", over="ignore"):
            coarse = EPS * np.sqrt(problem.n_inputs) * size > PRECISE * scale
        coarse &= np.isfinite(size) & (size > 0)
        if coarse.any():
            offset = None if b is None else b[coarse]
            Z[:, coarse] = extended.forward(self.X, W[:, coarse], offset)
        return Z

    def slopes(self, theta: Array, limit: Array) -> Array:
        """Return ``x_i^T theta`` (centred with an intercept), precise in units of the limits."""
        slopes, sums = adjoint(self.X, theta), extended.column_sums(theta)
        size = self.norms[:, None] * np.linalg.norm(theta, axis=0)
        rounding = EPS * np.sqrt(self.problem.n_samples) * size
        largest = np.max(
            np.divide(np.abs(slopes), limit, out=np.zeros_like(slopes), where=limit > 0),
            axis=0, initial=0.0,
        )  # fmt: skip
        coarse = np.any((limit > 0) & (rounding > PRECISE * largest * limit), axis=0)
        if coarse.any():
            slopes[:, coarse] = extended.adjoint(self.X, theta[:, coarse])
        return slopes - np.outer(self.mean, sums) if self.problem.intercept else slopes

    def rows(self, W: Array, b: Array | None, ends: Array, columns: slice) -> Array:
        """Return the scale of every row for some outputs, shape (n_samples, m).

        ``ends`` are the nearest points of the box. Terms that cancel do not count: no scale is
        larger than that of the targets.
        """
        most = row_targets(self.problem)[columns]
        size = np.abs(self.mean @ W + (0.0 if b is None else b)) + np.abs(ends)
        sizes = weight_sizes(W, self.centred[:, None], most)
        for part, block in self._centred_blocks():
            size[part] += np.abs(block) @ sizes
        return np.where(most > 0, np.minimum(size, most), size)


def row_targets(problem: Problem) -> Array:
    """Return the size of every output's targets; dead ones take the mean of the layer."""
    norms = problem.target_norms
    return np.where(norms > 0, norms, np.linalg.norm(norms) / np.sqrt(len(norms)))


def weight_sizes(W: Array, norms: Array, target: Any) -> Array:
    """Return what every weight counts as in the scale of a row: itself, or a least size."""
    scaled = np.linalg.norm(norms * W, axis=0)
    least = np.where(scaled > LEAST_WEIGHT * target, LEAST_WEIGHT * scaled, target)
    floors = np.divide(least, norms, out=np.zeros(W.shape), where=norms > 0)
    return np.maximum(np.abs(W), floors)


def shares(excess: Array, scale: Array) -> Array:
    """Return ``excess / scale``: 0 where there is none, infinite where there is no scale."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(excess > 0, excess / scale, 0.0)
