"""Steps that build the problems of :mod:`nettrim_solver.instances` backwards from their answers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .exceptions import ProblemError

Array = NDArray[np.float64]


def sparse_weights(
    rng: np.random.Generator, n_inputs: int, n_outputs: int, density: float
) -> Array:
    """Weights bounded away from zero on a random support of at least one per output."""
    shape = (n_inputs, n_outputs)
    W = rng.uniform(0.3, 1.5, shape) * rng.choice([-1.0, 1.0], shape)
    keep = rng.random(W.shape) < density
    keep[rng.integers(n_inputs, size=n_outputs), np.arange(n_outputs)] = True
    return np.where(keep, W, 0.0)


def he_weights(rng: np.random.Generator, n_inputs: int, n_outputs: int) -> Array:
    """Gaussian weights of a ReLU layer that keeps the scale of its signals (He et al., 2015)."""
    W: Array = rng.standard_normal((n_inputs, n_outputs)) * np.sqrt(2.0 / n_inputs)
    return W


def row_kinds(rng: np.random.Generator, n_samples: int, n_outputs: int, active: float) -> Array:
    """Kind of each row: 0 matched, 1 ``(-inf, u]``, -1 ``[l, inf)``, 2 an interval ``[l, u]``."""
    sides = rng.choice([1.0, -1.0, 2.0], p=[0.6, 0.2, 0.2], size=(n_samples, n_outputs))
    return np.where(rng.random(sides.shape) < active, 0.0, sides)


def legal_dual(
    rng: np.random.Generator, sides: Array, intercept: bool, hard_only: bool = False
) -> Array:
    """Dual columns of unit norm: legal signs, about half of the unmatched rows tight."""
    theta = rng.standard_normal(sides.shape)
    theta = np.where(np.abs(sides) == 1, sides * np.abs(theta), theta)
    theta[(sides != 0) & (rng.random(sides.shape) < 0.5)] = 0.0
    if hard_only:
        theta[sides == 0] = 0.0
    if intercept:
        _zero_sums(theta, sides)
    norms = np.linalg.norm(theta, axis=0)
    if np.any(norms == 0):
        raise ProblemError("the instance is too small: an output has no row for its dual point")
    unit: Array = theta / norms
    return unit


def _zero_sums(theta: Array, sides: Array) -> None:
    """Scale the positive entries of each column, which keeps every sign legal, to sum to zero."""
    positive = np.sum(np.maximum(theta, 0.0), axis=0)
    negative = np.sum(np.maximum(-theta, 0.0), axis=0)
    if np.any(positive == 0) or np.any(negative == 0):
        raise ProblemError("the instance is too small for an intercept: dual signs all agree")
    theta *= np.where(theta > 0, negative / positive, 1.0)


def bend(X: Array, theta: Array, G: Array) -> Array:
    """Return the least change of X with ``X^T theta = -G``."""
    correction = np.linalg.solve(theta.T @ theta, (-G - X.T @ theta).T)
    X = X + theta @ correction
    # A second step removes the rounding of the first.
    return X + theta @ np.linalg.solve(theta.T @ theta, (-G - X.T @ theta).T)


def error(direction: Array, level: Array) -> Array:
    """Return the direction scaled to the radius: one norm for all columns if one level is given."""
    norm = np.linalg.norm(direction) if level.shape == (1,) else np.linalg.norm(direction, axis=0)
    return direction * np.divide(level, norm, out=np.zeros_like(level), where=norm > 0)


def box_around(
    rng: np.random.Generator, point: Array, theta: Array, sides: Array, touching: float
) -> tuple[Array, Array]:
    """Return a box with `point` at the end that theta's sign asks for, else inside.

    A share `touching` of the rows with a zero dual entry lies on an end all the same.
    """
    slack_up, slack_down = rng.uniform(0.2, 1.0, (2, *point.shape))
    loose = (theta == 0) & (rng.random(point.shape) >= touching)
    touch_up = (theta == 0) & ~loose & (sides != -1)
    touch_down = (theta == 0) & ~loose & (sides == -1)
    upper = np.where((theta > 0) | touch_up, point, point + slack_up)
    lower = np.where((theta < 0) | touch_down, point, point - slack_down)
    upper = np.where(sides == -1, np.inf, np.where(sides == 0, point, upper))
    lower = np.where(sides == 1, -np.inf, np.where(sides == 0, point, lower))
    return lower, upper


def with_copies(rng: np.random.Generator, X: Array, W: Array, n_copies: int) -> tuple[Array, Array]:
    """Append copies of the first columns, and share their weights with the originals."""
    if n_copies == 0:
        return X, W
    share = rng.choice([0.0, 0.3, 1.0], size=(n_copies, W.shape[1]))
    copied = share * W[:n_copies]
    kept = np.concatenate([W[:n_copies] - copied, W[n_copies:]])
    return np.concatenate([X, X[:, :n_copies]], axis=1), np.concatenate([kept, copied])
