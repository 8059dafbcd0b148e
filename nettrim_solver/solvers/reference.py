"""What the reference solvers share: scaled plain data of single outputs, and infeasibility rays.

Backends stop on absolute tolerances, so each output is scaled first: X to entries of unit size,
the targets likewise, and the largest l1 weight to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from ..certificate import forward, least_radius
from ..problem import Problem
from ..products import radius_floor
from ..solution import RawSolution
from ..status import Status

Array = NDArray[np.float64]
Rows = NDArray[np.bool_]

#: Dual entries below this fraction of the largest are taken as zero when a ray is made exact; the
#: backends leave about 1e-9 on slack rows.
RAY_SUPPORT = 1e-7


@dataclass(frozen=True)
class Scales:
    """Units in which a backend sees a problem: of X, of the targets, of the l1 weights."""

    X: float
    target: float
    weights: float

    def primal(self, w: Array) -> Array:
        """Return the weights in the problem's own units."""
        return w * (self.target / self.X)

    def dual(self, theta: Array) -> Array:
        """Return a dual point of the l1 norm, ``|X^T theta| <= c``, in the problem's own units."""
        return theta * (self.weights / self.X)

    def penalty(self, lambda_: float) -> float:
        """Return lambda in the backend's units."""
        return lambda_ * self.weights / (self.X * self.target)


@dataclass(frozen=True)
class OutputData:
    """One output in a backend's units.

    Attributes
    ----------
    X : ndarray or csc_array, shape (n_samples, n_inputs), float64
    lower, upper : ndarray of shape (n_samples,)
    c : ndarray of shape (n_inputs,)
    matched : ndarray of bool
        Rows with lower = upper.
    bounded : ndarray of bool
        Other rows with a finite end.
    scales : Scales
    """

    X: Any
    lower: Array
    upper: Array
    c: Array
    matched: Rows
    bounded: Rows
    scales: Scales


def outputs_data(problem: Problem, columns: range) -> list[OutputData]:
    """Return the scaled data of some outputs, which share their units."""
    X, x_scale = scaled_inputs(problem)
    norm = float(np.linalg.norm(problem.target_norms[columns.start : columns.stop]))
    target = norm / np.sqrt(problem.n_samples * len(columns)) or 1.0
    scales = Scales(x_scale, target, float(problem.weights.max()) or 1.0)
    found = []
    for j in columns:
        lower, upper = (end[:, 0] / target for end in problem.box(slice(j, j + 1)))
        matched = lower == upper
        bounded = ~matched & (np.isfinite(lower) | np.isfinite(upper))
        c = problem.penalty(slice(j, j + 1))[:, 0] / scales.weights
        found.append(OutputData(X, lower, upper, c, matched, bounded, scales))
    return found


def scaled_inputs(problem: Problem) -> tuple[Any, float]:
    """Return X in float64 with entries of unit size, and the factor that was taken out."""
    X = problem.X
    size = sp.linalg.norm(X) if sp.issparse(X) else np.linalg.norm(X)
    scale = float(size) / np.sqrt(problem.n_samples * problem.n_inputs) or 1.0
    X = X.astype(np.float64) / scale
    return (sp.csc_array(X) if sp.issparse(X) else X), scale


def exact_ray(problem: Problem, theta: Array) -> Array:
    """Return the ray nearest to almost a ray of one output: ``X^T theta = 0`` up to rounding.

    A dual point of the least-squares distance is a ray up to the backend's tolerance. Removing,
    on its support, the part that X can reproduce leaves every sign of any size as it was.
    """
    ray = np.zeros_like(theta)
    rows = np.abs(theta) > RAY_SUPPORT * np.abs(theta).max(initial=0.0)
    if not rows.any():
        return ray
    X = problem.X[np.flatnonzero(rows)]
    X = (X.toarray() if sp.issparse(X) else X).astype(np.float64)
    if problem.intercept:
        X = np.column_stack([X, np.full(X.shape[0], np.abs(X).max() or 1.0)])
    part = theta[rows]
    # The second pass removes the rounding of the first.
    for _ in range(2):
        part = part - X @ np.linalg.lstsq(X, part, rcond=1e-13)[0]
    ray[rows] = part
    return ray


def least_of(problem: Problem, theta: Array, j: int) -> float:
    """Return the radius that a ray of output j alone proves."""
    alone = np.zeros((problem.n_samples, problem.n_outputs))
    alone[:, j] = theta
    return float(least_radius(problem, alone)[0 if problem.joint else j])


def prefer_zero(
    problem: Problem, columns: range, W: Array, b: Array, tol_feas: float
) -> tuple[Array, Array]:
    """Return W and b, or them without penalised weights (and intercept) where that is no worse.

    Zero weights that keep the radius are optimal, and the relative gap of anything else is 1: here
    alone the backend's 1e-12 for zero would be held against it.
    """
    penalty = np.broadcast_to(problem.penalty(slice(columns.start, columns.stop)), W.shape)
    candidates = [(np.where(penalty > 0, 0.0, W), offset) for offset in (b, np.zeros_like(b))]
    scale = float(np.linalg.norm(problem.target_norms[columns.start : columns.stop]))
    if problem.penalised:
        lambda_: Any = problem.lambda_
        level = np.broadcast_to(lambda_, problem.n_outputs)[columns.start : columns.stop]
        ours = float(np.sum(level * np.sum(penalty * np.abs(W), axis=0)))
        ours += 0.5 * _distances(problem, columns, W, b)[0] ** 2
        radius, allowed = np.sqrt(2.0 * ours), tol_feas * scale
    else:
        epsilon: Any = problem.epsilon
        radius = float(np.broadcast_to(epsilon, problem.n_outputs)[columns.start])
        allowed = tol_feas * max(radius, radius_floor(problem) * scale)
        radius += allowed
    for zero, offset in candidates:
        matched, hard = _distances(problem, columns, zero, offset)
        if matched <= radius and hard <= allowed:
            return zero, offset
    return W, b


def _distances(problem: Problem, columns: range, W: Array, b: Array) -> tuple[float, float]:
    """Return the distance that the radius holds, and that of the hard rows."""
    lower, upper = problem.box(slice(columns.start, columns.stop))
    Z = forward(problem.X, W, b)
    E = Z - np.clip(Z, lower, upper)
    in_ball = (lower == upper) | (not problem.strict)
    return float(np.linalg.norm(E[in_ball])), float(np.linalg.norm(E[~in_ball]))


def multipliers(problem: Problem, theta: Array) -> Array | None:
    """Return lambda of each output from the dual points of the ball: ``epsilon / ||theta||``."""
    if problem.penalised:
        lambda_: Any = problem.lambda_
        return np.array(np.broadcast_to(lambda_, problem.n_outputs), dtype=np.float64)
    norms = np.empty(problem.n_outputs)
    for j in range(problem.n_outputs):
        lower, upper = problem.box(slice(j, j + 1))
        in_ball = (lower == upper)[:, 0] | (not problem.strict)
        norms[j] = np.linalg.norm(theta[in_ball, j])
    if problem.joint:
        norms[:] = np.linalg.norm(norms)
    epsilon: Any = problem.epsilon
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(norms > 0, epsilon / norms, np.inf)


class Answer:
    """The growing answer of a reference solver."""

    def __init__(self, problem: Problem) -> None:
        shape = (problem.n_samples, problem.n_outputs)
        self.problem = problem
        self.W = np.zeros((problem.n_inputs, problem.n_outputs))
        self.b = np.zeros(problem.n_outputs)
        self.theta = np.zeros(shape)
        self.ray = np.zeros(shape)
        self.iterations = np.zeros(problem.n_outputs, dtype=np.int64)
        self.stops = [Status.FAILED] * problem.n_outputs
        self.seconds = {"compile": 0.0, "solve": 0.0}
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Keep a warning once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def give_up(self, columns: range, status: Status) -> None:
        """Set the status of outputs that were not reached."""
        for j in columns:
            self.stops[j] = status

    def raw(self) -> RawSolution:
        """Return what :func:`nettrim_solver.solve` judges."""
        return RawSolution(
            W=self.W, b=self.b if self.problem.intercept else None, theta=self.theta,
            stops=self.stops, multiplier=multipliers(self.problem, self.theta),
            iterations=self.iterations, ray=self.ray if self.ray.any() else None,
            seconds=self.seconds, warnings=tuple(self.warnings),
        )  # fmt: skip
