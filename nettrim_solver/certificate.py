r"""The judge: what any weights and any dual point prove about a problem.

Everything here is recomputed in float64 from X, the box, the weights and the dual point; no
solver's own word enters. For one output, with :math:`\sigma_K` the support function of the box,

.. math::

    \sigma_K(\theta) = \sum_{\theta_p > 0} u_p \theta_p + \sum_{\theta_p < 0} l_p \theta_p ,

every :math:`\theta` with :math:`|x_i^T \theta| \le c_i` bounds the optimal value from below by

- constrained: :math:`-\sigma_K(\theta) - \epsilon \|\theta\|` (the norm over the matched rows alone
  when strict; over all outputs together when the radius is joint);
- penalised: :math:`-\sigma_K(\theta) - \|\theta\|^2 / 2`, with :math:`\lambda c` for :math:`c`.

A point that is not feasible is first made so (:func:`dual_terms`), at the cost of one product with
:math:`X^T`. The judge works on blocks of outputs, so its own memory is small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from . import extended, products
from .exceptions import ProblemError
from .problem import Problem
from .problem_checks import plain_array
from .products import RADIUS_FLOOR as RADIUS_FLOOR
from .products import Scales, radius_floor, shares
from .products import adjoint as adjoint
from .products import forward as forward
from .products import squared_column_norms as squared_column_norms

Array = NDArray[np.float64]

#: Objectives below this fraction of the terms that cancel in the dual value are judged as if they
#: were this large: beneath it the difference is rounding.
OBJECTIVE_FLOOR = 1e-9

#: A ray has |x_i^T theta| <= RAY_RESIDUAL ||x_i|| ||theta||, and what it lacks of zero must not let
#: weights of ESCAPE times the natural scale reach the radius.
RAY_RESIDUAL = 1e-9
ESCAPE = 1e5

#: The same for the orthogonality to columns without penalty, whose weights nothing bounds.
FREE_RESIDUAL = 1e-13


@dataclass(frozen=True)
class Certificate:
    """What is proved about given weights: all numbers recomputed from the data in float64.

    ``M`` is the number of outputs, ``G`` that of radii: 1 when the radius is joint, else M.

    Attributes
    ----------
    objectives : ndarray of shape (M,)
        ``sum c |w_j|``, or ``lambda_ sum c |w_j| + dist^2 / 2`` when penalised.
    bounds : ndarray of shape (G,)
        Lower bound on the optimal value; 0 when no dual point was given.
    gaps : ndarray of shape (G,)
        ``(objective - bound) / objective``: the largest fraction by which any weights can be
        better. Zero weights that are optimal have gap 0; a negative gap belongs to infeasible
        weights.
    violations : ndarray of shape (G,)
        The larger of ``dist / epsilon - 1``, where positive, and (strict) the largest excess of a
        hard row in units of its own scale: ``sum |x_i| |w_i|``, with inputs centred where there is
        an intercept, plus the intercept and its end of the box, but not more than ``dist(0, K)``.
        0 when kept.
    worths : ndarray of shape (G,)
        What the violation is worth by the dual point, relative like the gap: each row's excess
        times its multiplier. The weights are no further below the optimum of their own patterns.
    distances : ndarray of shape (M,)
        ``dist(X w_j + b_j, K)`` over all rows.
    activation_errors : ndarray of shape (M,) or None
        ``||f(X w_j + b_j) - y_j||``; None for a problem given by its box.
    nnz : ndarray of shape (M,)
        Nonzero weights per output.
    epsilons : ndarray of shape (G,) or None
        The radii; None when penalised, or when the problem has none.
    """

    objectives: Array
    bounds: Array
    gaps: Array
    violations: Array
    worths: Array
    distances: Array
    activation_errors: Array | None
    nnz: NDArray[np.int64]
    epsilons: Array | None

    @property
    def objective(self) -> float:
        """Objective of the whole layer."""
        return float(self.objectives.sum())

    @property
    def bound(self) -> float:
        """Lower bound on the optimal value of the whole layer."""
        return float(self.bounds.sum())

    @property
    def gap(self) -> float:
        """Largest gap of any radius."""
        return float(self.gaps.max())

    @property
    def violation(self) -> float:
        """Largest violation of any radius."""
        return float(self.violations.max())

    @property
    def distance(self) -> float:
        """Frobenius distance of the layer's pre-activations to the box."""
        return float(np.linalg.norm(self.distances))

    @property
    def activation_error(self) -> float | None:
        """Frobenius error of the layer's activations."""
        if self.activation_errors is None:
            return None
        return float(np.linalg.norm(self.activation_errors))

    def feasible(self, tol_feas: float) -> NDArray[np.bool_]:
        """Return which radii are kept, shape (G,)."""
        return self.violations <= tol_feas

    def proved(self, tol_gap: float, tol_feas: float) -> NDArray[np.bool_]:
        """Return which radii have proved-optimal weights, shape (G,)."""
        within = (np.abs(self.gaps) <= tol_gap) & (self.worths <= tol_gap)
        return self.feasible(tol_feas) & within


@dataclass(frozen=True)
class DualTerms:
    """Terms of the dual value of some outputs, after their dual points were made feasible.

    ``support`` is sigma_K(theta), ``norm`` the norm that meets epsilon (strict: over matched rows),
    ``ratio`` is ``max_i |x_i^T theta| / c_i`` (lambda_ c when penalised), and ``rounding`` what
    float64 may have lost of sigma_K; shape (m,) each.
    """

    support: Array
    norm: Array
    ratio: Array
    rounding: Array


def certify(problem: Problem, W: Any, b: Any = None, theta: Any = None) -> Certificate:
    """Judge weights, and the dual point that is to prove them optimal.

    Parameters
    ----------
    problem : Problem
        Without ``epsilon``, ``tolerance`` and ``lambda_`` there is nothing to keep or to prove: the
        violation is 0 (strict: that of the hard rows) and the bound is 0.
    W : ndarray of shape (n_inputs, n_outputs)
    b : ndarray of shape (n_outputs,), optional
        Intercept; zeros when omitted.
    theta : ndarray of shape (n_samples, n_outputs), optional
        Any dual point; the bound is 0 without one.

    Returns
    -------
    Certificate

    Notes
    -----
    Two products with X of ``2 n_samples n_inputs n_outputs`` flops, in blocks of outputs.

    Examples
    --------
    >>> import numpy as np
    >>> problem = Problem(np.eye(2), np.array([[3.0], [0.0]]), epsilon=1.0, intercept=False)
    >>> judged = certify(problem, np.array([[2.0], [0.0]]), theta=np.array([[-1.0], [0.0]]))
    >>> judged.objective, round(judged.bound, 12), judged.violation
    (2.0, 2.0, 0.0)
    """
    W, b, theta = (
        _checked(problem, name, given) for name, given in (("W", W), ("b", b), ("theta", theta))
    )
    n_outputs = problem.n_outputs
    distances, matched, hard, price = np.empty((4, n_outputs))
    errors = None if problem.activation is None else np.empty(n_outputs)
    parts, scales = [], Scales(problem)
    for columns in output_blocks(problem):
        lower, upper = problem.box(columns)
        Z = scales.forward(W[:, columns], None if b is None else b[columns], columns)
        E = Z - np.clip(Z, lower, upper)
        distances[columns] = matched[columns] = np.linalg.norm(E, axis=0)
        hard[columns] = price[columns] = 0.0
        if theta is not None:
            parts.append(dual_terms(problem, theta[:, columns], columns, (lower, upper), scales))
        if problem.strict:
            fixed = lower == upper
            matched[columns] = np.linalg.norm(np.where(fixed, E, 0.0), axis=0)
            excess = np.abs(np.where(fixed, 0.0, E))
            size = scales.rows(W[:, columns], None if b is None else b[columns], Z - E, columns)
            hard[columns] = shares(excess, size).max(axis=0)
            if theta is not None:
                price[columns] = np.sum(excess * np.abs(_legal(theta[:, columns], lower, upper)), 0)
        if errors is not None:
            assert problem.activation is not None and problem.Y is not None
            difference = problem.activation.select(columns)(Z) - problem.Y[:, columns]
            errors[columns] = np.linalg.norm(difference, axis=0)
    objectives: Array = np.sum(problem.penalty() * np.abs(W), axis=0, dtype=np.float64)
    if problem.penalised:
        assert problem.lambda_ is not None
        objectives = problem.lambda_ * objectives + 0.5 * matched**2
    terms = concatenate_terms(parts) if parts else None
    bounds, floors, factors = _scaled_bounds(problem, terms)
    if problem.penalised:
        # A distance that is zero but for rounding leaves nothing to compare a bound with.
        floors = np.maximum(floors, 0.5 * (radius_floor(problem) * problem.target_norms) ** 2)
    groups = np.array([objectives.sum()]) if problem.joint else objectives
    scale = np.maximum(np.maximum(groups, bounds), floors)
    gaps = np.divide(groups - bounds, scale, out=np.zeros_like(groups), where=scale > 0)
    violations, excess = _violations(problem, matched, hard)
    worth = _worth(problem, terms, factors, price, excess)
    worths = np.divide(worth, scale, out=np.zeros_like(groups), where=scale > 0)
    # Weights that are not finite, or overflow, prove nothing: NaN fails every comparison above.
    lost = ~np.isfinite(objectives + distances)
    if lost.any():
        lost = np.array([True]) if problem.joint else lost
        gaps[lost], violations[lost] = np.inf, np.inf
    return Certificate(
        objectives=objectives,
        bounds=bounds,
        gaps=gaps,
        violations=violations,
        worths=worths,
        distances=distances,
        activation_errors=errors,
        nnz=np.count_nonzero(W, axis=0),
        epsilons=None if problem.epsilon is None else np.atleast_1d(problem.epsilon),
    )


def dual_terms(
    problem: Problem,
    theta: Array,
    columns: Any = slice(None),
    box: tuple[Array, Array] | None = None,
    scales: Scales | None = None,
) -> DualTerms:
    """Make the dual points of some outputs feasible but for scale, and return their terms.

    Forbidden signs are set to zero (theta <= 0 where upper is infinite, >= 0 where lower is), and
    ``x_i^T theta = 0`` is restored for every unpenalised column, the intercept first of all.

    Parameters
    ----------
    problem : Problem
    theta : ndarray of shape (n_samples, m)
        Not modified.
    columns : slice or index array of m outputs
    box : pair of ndarray (n_samples, m), optional
        The box of these outputs, when at hand.
    scales : Scales, optional
        Those of the problem, when at hand.
    """
    lower, upper = problem.box(columns) if box is None else box
    theta = _legal(theta, lower, upper)
    penalty = np.broadcast_to(problem.penalty(columns), (problem.n_inputs, theta.shape[1]))
    _restore_unpenalised(problem, theta, lower, upper, penalty)
    limit = penalty
    if problem.penalised:
        limit = penalty * np.broadcast_to(problem.lambda_, problem.n_outputs)[columns]  # type: ignore[arg-type]
    slopes = np.abs((scales or Scales(problem)).slopes(theta, limit))
    ratio = np.divide(slopes, limit, out=np.zeros_like(slopes), where=limit > 0).max(axis=0)
    ball = np.where(lower == upper, theta, 0.0) if problem.strict else theta
    norm = np.linalg.norm(ball, axis=0)
    support, size = _support(theta, lower, upper)
    rounding = 4.0 * products.EPS * size
    if np.any(penalty == 0):  # what x_i^T theta = 0 lacks of zero there
        rounding += FREE_RESIDUAL * np.linalg.norm(theta, axis=0) * problem.target_norms[columns]
    return DualTerms(support, norm, ratio, rounding)


def dual_bounds(
    problem: Problem, terms: DualTerms | None, columns: Any = slice(None)
) -> tuple[Array, Array]:
    """Return the best lower bounds along the rays of the dual points, and their rounding floors.

    The terms are those of the given columns. Both have shape (G,). theta = 0 is feasible, so no
    bound is below 0; and it is all that can be said where there is no radius.
    """
    return _scaled_bounds(problem, terms, columns)[:2]


def _scaled_bounds(
    problem: Problem, terms: DualTerms | None, columns: Any = slice(None)
) -> tuple[Array, Array, Array]:
    """Return what :func:`dual_bounds` does, and the factor of every output's dual point."""
    unbounded = problem.epsilon is None and not problem.penalised
    if terms is None or unbounded:
        n_groups = 1 if problem.joint else problem.n_outputs
        return np.zeros(n_groups), np.zeros(n_groups), np.zeros(problem.n_outputs)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if problem.penalised:
            scale = np.where(terms.norm > 0, -terms.support / terms.norm**2, np.inf)
            scale = np.minimum(np.maximum(scale, 0.0), 1.0 / terms.ratio)
            scale = np.where(np.isfinite(scale), scale, 1.0)
            values = -scale * terms.support - 0.5 * (scale * terms.norm) ** 2
            lost = scale * terms.rounding
            floors, factors = np.abs(scale * terms.support), scale
        else:
            epsilon: Any = problem.epsilon
            if isinstance(epsilon, np.ndarray):
                epsilon = epsilon[columns]
            support, norm, largest = terms.support, terms.norm, terms.ratio
            shrink = np.ones_like(norm)
            if problem.joint:
                shrink = 1.0 / np.maximum(1.0, terms.ratio)
                support = np.array([np.sum(shrink * support)])
                norm = np.array([np.linalg.norm(shrink * norm)])
                largest = np.array([np.max(shrink * terms.ratio)])
            scale = np.where(largest > 0, 1.0 / largest, 1.0)
            values = scale * (-support - epsilon * norm)
            lost = scale * (np.sum(shrink * terms.rounding) if problem.joint else terms.rounding)
            floors, factors = scale * (np.abs(support) + epsilon * norm), scale * shrink
    floors = OBJECTIVE_FLOOR * floors
    # A value that overflows, or that is below zero by more than rounding, says nothing. Its floor
    # must not speak for it: along a ray of X^T theta = 0 the floor alone is beyond any objective.
    usable = np.isfinite(values) & (values >= -floors)
    factors = np.where(usable & np.isfinite(factors), factors, 0.0)
    values = values - lost
    return np.where(usable, np.maximum(values, 0.0), 0.0), np.where(usable, floors, 0.0), factors


def least_radius(problem: Problem, theta: Array) -> Array:
    """Return a proved lower bound on the reachable radius from an infeasibility ray, shape (G,).

    With ``X^T theta = 0`` every W has ``dist(X W, K) >= -sigma_K(theta) / ||theta||`` (strict: the
    norm over matched rows, infinite when that is zero: the hard rows alone contradict each other).
    What ``X^T theta`` lacks of zero counts against the bound as far as weights with
    ``sum ||x_i|| |w_i| <= ESCAPE dist(0, K)`` could use it, so it holds for all of these. Outputs
    whose theta is no ray (see ``RAY_RESIDUAL``) contribute 0.

    Parameters
    ----------
    theta : ndarray of shape (n_samples, n_outputs)
    """
    scales = Scales(problem)
    norms = (scales.centred if problem.intercept else scales.norms)[:, None]
    support, norm = np.zeros(problem.n_outputs), np.zeros(problem.n_outputs)
    for columns in output_blocks(problem):
        lower, upper = problem.box(columns)
        ray = _legal(theta[:, columns], lower, upper)
        length = np.linalg.norm(ray, axis=0)
        slopes = np.abs(scales.slopes(ray, 1e-4 * RAY_RESIDUAL * norms * length))
        leak = np.divide(slopes, norms, out=np.zeros_like(slopes), where=norms > 0).max(axis=0)
        if problem.intercept:
            sums = np.abs(extended.column_sums(ray)) / np.sqrt(problem.n_samples)
            leak = np.maximum(leak, sums)
        is_ray = leak <= RAY_RESIDUAL * length
        ball = length
        if problem.strict:
            ball = np.linalg.norm(np.where(lower == upper, ray, 0.0), axis=0)
        ends = np.where(ray != 0, np.where(ray > 0, upper, lower), 0.0)
        lost = ESCAPE * leak * problem.target_norms[columns]
        lost += 4.0 * products.EPS * np.sum(np.abs(ends * ray), axis=0)
        support[columns] = np.where(is_ray, -extended.column_sums(ends * ray) - lost, 0.0)
        # Norms at rounding level are zero: the proof then rests on the hard rows alone.
        norm[columns] = np.where(is_ray & (ball > RAY_RESIDUAL * length), ball, 0.0)
    support = np.where(support > 0, support, 0.0)
    norm = np.where(support > 0, norm, 0.0)
    if problem.joint:
        if np.any((support > 0) & (norm == 0)):
            return np.array([np.inf])
        support, norm = np.array([support.sum()]), np.array([np.linalg.norm(norm)])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(support > 0, support / norm, 0.0)


def output_blocks(problem: Problem) -> Iterator[slice]:
    """Yield slices over the outputs whose float64 arrays stay near ``BLOCK_ENTRIES`` entries."""
    width = max(1, products.BLOCK_ENTRIES // problem.n_samples)
    for start in range(0, problem.n_outputs, width):
        yield slice(start, min(start + width, problem.n_outputs))


def _violations(problem: Problem, matched: Array, hard: Array) -> tuple[Array, Array]:
    """Return the violations, and by how much the distance exceeds the radius, shape (G,)."""
    norms = problem.target_norms
    if problem.joint:
        matched, norms = (np.array([np.linalg.norm(v)]) for v in (matched, norms))
        hard = np.array([hard.max()])
    if problem.epsilon is None:
        return hard, np.zeros_like(hard)
    epsilon: Any = problem.epsilon
    excess = np.maximum(matched - epsilon, 0.0)
    scale = np.maximum(epsilon, radius_floor(problem) * norms)
    return np.maximum(shares(excess, scale), hard), excess


def _worth(
    problem: Problem, terms: DualTerms | None, factors: Array, price: Array, excess: Array
) -> Array:
    """Return what exceeding radius and hard rows is worth at the multipliers, shape (G,)."""
    if terms is None:
        return np.zeros_like(excess)
    hard, norms = factors * price, factors * terms.norm
    if problem.joint:
        hard, norms = np.array([hard.sum()]), np.array([np.linalg.norm(norms)])
    return hard + excess * norms


def _checked(problem: Problem, name: str, given: Any) -> Any:
    """Return an argument of :func:`certify` as an array of the right shape; None stays None."""
    if given is None:
        return None
    N, M = problem.n_inputs, problem.n_outputs
    shape = {"W": (N, M), "b": (M,), "theta": (problem.n_samples, M)}[name]
    array = plain_array(name, given)
    if array.dtype.kind not in "fiub" or array.shape != shape:
        raise ProblemError(
            f"{name} must be a real array of shape {shape}, but has dtype {array.dtype} and shape "
            f"{array.shape}"
        )
    return array


def _legal(theta: Any, lower: Array, upper: Array) -> Array:
    """Return a float64 copy of theta without entries of a forbidden sign, or not finite."""
    theta = np.array(theta, dtype=np.float64)
    theta[~np.isfinite(theta)] = 0.0
    theta[((theta > 0) & (upper == np.inf)) | ((theta < 0) & (lower == -np.inf))] = 0.0
    return theta


def _support(theta: Array, lower: Array, upper: Array) -> tuple[Array, Array]:
    """Return sigma_K of every column of a legal theta, and the sum of its terms' sizes."""
    ends = np.where(theta > 0, upper, lower)
    terms = np.multiply(ends, theta, out=np.zeros_like(theta), where=theta != 0)
    return extended.column_sums(terms), np.sum(np.abs(terms), axis=0)


def _restore_unpenalised(
    problem: Problem, theta: Array, lower: Array, upper: Array, penalty: Array
) -> None:
    """Change theta, in place, so that it is orthogonal to every unpenalised column."""
    free = np.isfinite(lower) & np.isfinite(upper)
    if problem.intercept:
        count = free.sum(axis=0)
        mean = theta.sum(axis=0) / np.maximum(count, 1)
        theta -= np.where(free, mean, 0.0)
        _balance(theta[:, count == 0], theta, count == 0)
    for j in np.flatnonzero((penalty == 0).any(axis=0)):
        X_free = problem.X[:, np.flatnonzero(penalty[:, j] == 0)]
        columns = np.asarray(X_free.toarray() if sp.issparse(X_free) else X_free, dtype=np.float64)
        if problem.intercept:
            columns = columns - columns.mean(axis=0)
            columns = np.column_stack([columns, np.ones(problem.n_samples)])
        size = np.linalg.norm(columns, axis=0)
        columns = columns[:, size > 0] / size[size > 0]
        rows = free[:, j]
        for _ in range(3):  # the later passes remove the rounding of the first
            left = extended.dots(columns, theta[:, j])
            if np.all(np.abs(left) <= 0.01 * FREE_RESIDUAL * np.linalg.norm(theta[:, j])):
                break
            # The least change of theta on the rows of free sign, and none elsewhere.
            theta[rows, j] -= np.linalg.lstsq(columns[rows].T, left, rcond=None)[0]
        left = extended.dots(columns, theta[:, j])
        if np.any(np.abs(left) > FREE_RESIDUAL * np.linalg.norm(theta[:, j])):
            theta[:, j] = 0.0


def _balance(selected: Array, theta: Array, which: NDArray[np.bool_]) -> None:
    """Without rows of free sign, shrink the heavier sign until the column sums to zero."""
    if not which.any():
        return
    positive = np.sum(np.maximum(selected, 0.0), axis=0)
    negative = np.sum(np.maximum(-selected, 0.0), axis=0)
    lighter = np.minimum(positive, negative)
    with np.errstate(divide="ignore", invalid="ignore"):
        up = np.where(positive > 0, lighter / positive, 0.0)
        down = np.where(negative > 0, lighter / negative, 0.0)
    theta[:, which] = np.where(selected > 0, up * selected, down * selected)


def concatenate_terms(parts: list[DualTerms]) -> DualTerms:
    """Return the terms of some outputs and of those behind them as one."""
    names = ("support", "norm", "ratio", "rounding")
    return DualTerms(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))
