"""The programs that a search runs along: one penalty (or radius) per group of outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..certificate import adjoint, forward, output_blocks, squared_column_norms
from ..problem import Problem
from ..solvers import SOLVERS

Array = NDArray[np.float64]
Index = NDArray[np.int64]

#: Least level tried, relative to the one at which W = 0. Beneath it the distance falls by a
#: thousandth of the targets at most, and solvers fail to prove what they find.
LEAST = 1e-5

#: Density d of a layer near the penalty exp(-FALL d^POWER) of the one at which W = 0: what Gaussian
#: and ReLU layers have in common.
FALL, POWER = 7.2, 0.64

#: Slope of the logit of the density along the log radius, of solvers without the penalised form.
SLOPE = -0.7


class Programs:
    """The family of programs that a budget chooses from.

    A level is ``unit * exp(u)``. It is the penalty, or for a solver without the penalised form the
    radius, whose unit is ``dist(0, K)``.

    Parameters
    ----------
    problem : Problem
        Pooled or strict.
    solver : str
    per_output : bool
        Whether every output is a group of its own, or all are one.

    Attributes
    ----------
    groups : ndarray of int, shape (M,)
        The group of each output.
    sizes : ndarray of int, shape (G,)
        Weights of each group.
    penalised : bool
        Whether the level is the penalty.
    unit : ndarray of shape (G,)
    bottom, top : float
        Bounds on u; at the top, W = 0 for every penalised input (hard rows permitting).
    """

    def __init__(self, problem: Problem, solver: str, per_output: bool) -> None:
        self.problem, self.per_output = problem, per_output
        M = problem.n_outputs
        self.groups = np.arange(M) if per_output else np.zeros(M, dtype=np.int64)
        self.sizes = np.bincount(self.groups) * problem.n_inputs
        self.penalised = SOLVERS[solver].lacks(problem.penalise(1.0)) is None
        self.bottom, self.top = float(np.log(LEAST)), 0.0
        if self.penalised:
            limits, bounds = _largest_penalties(problem)
            self.unit = limits if per_output else np.array([limits.max()])
            largest = bounds if per_output else np.array([bounds.max()])
            exact = not problem.strict and bool(np.all(problem.weights > 0))
            excess = 0.0 if exact else float(np.max(np.log(largest / self.unit)))
            self.top = max(float(np.log(2.0)), excess)
        else:
            norms = np.where(problem.target_norms > 0, problem.target_norms, 1.0)
            self.unit = norms if per_output else np.array([np.linalg.norm(norms)])

    def guess(self, keep: Index) -> Array:
        """Return where to begin the search for these nonzeros, one log level per group."""
        density = keep / self.sizes
        if not self.penalised:
            return np.log(0.5 * (1.0 - density) + LEAST)
        u = np.clip(-FALL * density**POWER, self.bottom, self.top)
        return np.where(density >= 1.0, self.bottom, np.where(density <= 0.0, self.top, u))

    def slope(self, keep: Index) -> Array:
        """Return the slope of the logit of the density along the log level where the guess is."""
        if not self.penalised:
            return np.full(len(keep), SLOPE)
        density = np.clip(keep / self.sizes, 1e-6, 1.0 - 1e-6)
        return -1.0 / (FALL * POWER * density**POWER * (1.0 - density))

    def given(self, multiplier: Array) -> Array | None:
        """Return the log levels of known penalties, shape (M,); None where they are unusable."""
        if not self.penalised or not np.all(np.isfinite(multiplier) & (multiplier > 0)):
            return None
        levels = multiplier if self.per_output else np.array([np.median(multiplier)])
        return np.log(levels / self.unit)

    def at(self, u: Array, columns: Index) -> Problem:
        """Return the program of some outputs at these log levels, one per group."""
        level = self.unit * np.exp(u)
        problem = self._some(columns)
        if self.penalised:
            return problem.penalise(level[self.groups[columns]])
        return problem.within(level[columns] if self.per_output else float(level[0]))

    def own_radius(self, columns: Index, W: NDArray[Any], b: NDArray[Any] | None) -> Problem:
        """Return the problem of some outputs whose radii are what these weights reach."""
        problem = self._some(columns)
        reached = reach(problem, W, b)
        separate = self.per_output or problem.radius == "per_output"
        return problem.within(reached if separate else float(np.linalg.norm(reached)))

    def _some(self, columns: Index) -> Problem:
        whole = len(columns) == self.problem.n_outputs
        return self.problem if whole else self.problem.select(columns)


def reach(problem: Problem, W: NDArray[Any], b: NDArray[Any] | None) -> Array:
    """Return the distances that meet the radius: to the box, or over matched rows when strict.

    Returns
    -------
    ndarray of shape (n_outputs,)
    """
    distances = np.empty(problem.n_outputs)
    for columns in output_blocks(problem):
        lower, upper = problem.box(columns)
        Z = forward(problem.X, W[:, columns], None if b is None else b[columns])
        E = Z - np.clip(Z, lower, upper)
        if problem.strict:
            E[lower != upper] = 0.0
        distances[columns] = np.linalg.norm(E, axis=0)
    return distances


def input_sizes(problem: Problem) -> Array:
    """Return the norms of the inputs, about their means when there is an intercept; 0 if dead."""
    raw = squared_column_norms(problem.X)
    if not problem.intercept:
        return np.sqrt(raw)
    mean = np.asarray(problem.X.mean(axis=0, dtype=np.float64)).ravel()
    squares = raw - problem.n_samples * mean**2
    # The subtraction cancels; below this fraction its result is rounding.
    return np.sqrt(np.where(squares > 1e-13 * raw, squares, 0.0))


def _largest_penalties(problem: Problem) -> tuple[Array, Array]:
    """Return, per output, the penalty at which W = 0 is optimal, and an upper bound on it.

    With hard rows or unpenalised inputs the first is an estimate. Outputs that need no weights at
    all get 1, the unit of nothing.
    """
    from ..solvers import kernels

    limits, bounds = np.ones(problem.n_outputs), np.ones(problem.n_outputs)
    sizes = np.sqrt(squared_column_norms(problem.X))[:, None]
    for columns in output_blocks(problem):
        lower, upper = (np.ascontiguousarray(end.T) for end in problem.box(columns))
        beta, squares = np.zeros(len(lower)), np.empty(len(lower))
        if problem.intercept:
            kernels.best_constants(lower, upper, beta, squares)
        E = beta[:, None] - np.clip(beta[:, None], lower, upper)
        penalty = np.broadcast_to(problem.penalty(columns), (problem.n_inputs, len(lower)))
        for target, slopes in (
            (limits, np.abs(adjoint(problem.X, E.T))),
            (bounds, sizes * problem.target_norms[columns]),
        ):
            ratios = np.divide(slopes, penalty, out=np.zeros(penalty.shape), where=penalty > 0)
            largest = ratios.max(axis=0)
            target[columns] = np.where(largest > 0, largest, 1.0)
    return limits, np.maximum(bounds, limits)
