r"""Problems with known answers, for tests, benchmarks, and users who write solvers.

A planted problem is built backwards: choose weights W, a dual point with legal signs and a
subgradient G of ``sum c |W|``, bend X until ``X^T theta = -G`` holds, and put the box where the
error has the direction of theta and the length of the radius. Primal and dual value are then
equal by construction, so no solver is needed to know the optimum.

Everything is seeded, and nothing but numpy is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .activations import get_activation
from .exceptions import ProblemError
from .planting import (
    bend,
    box_around,
    error,
    he_weights,
    legal_dual,
    row_kinds,
    sparse_weights,
    with_copies,
)
from .problem import Formulation, Problem, Radius

Array = NDArray[np.float64]

#: Defects that :func:`random_layer` knows.
DEFECTS = (
    "zero_column", "dead_output", "duplicate_columns", "constant_feature", "low_rank",
    "unpenalised", "weighted",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Instance:
    """A problem, and what is known of its answer.

    Attributes
    ----------
    problem : Problem
    W, b : ndarray of shape (n_inputs, n_outputs) and (n_outputs,), or None
        Planted: optimal weights and intercept. Infeasible: weights of least distance, or None.
    theta : ndarray of shape (n_samples, n_outputs) or None
        Planted: the optimal dual point. Infeasible: a ray that proves it.
    objective : float or None
        Optimal value of the layer, ``inf`` when infeasible, None when unknown.
    name : str
    least_epsilon : ndarray of shape (G,) or None
        Infeasible instances: the least reachable radius (``inf`` when the hard rows contradict
        each other).
    """

    problem: Problem
    W: Array | None
    b: Array | None
    theta: Array | None
    objective: float | None
    name: str
    least_epsilon: Array | None = None


def planted(
    n_samples: int,
    n_inputs: int,
    n_outputs: int,
    *,
    density: float = 0.3,
    active: float = 0.5,
    epsilon: float | None = None,
    radius: Radius = "per_output",
    formulation: Literal["pooled", "strict"] = "pooled",
    kind: Literal["plain", "degenerate", "duplicate_columns"] = "plain",
    intercept: bool = False,
    weights: ArrayLike | None = None,
    seed: int = 0,
) -> Instance:
    """Return a problem whose optimal weights, dual point and value are known exactly.

    Parameters
    ----------
    n_samples, n_inputs, n_outputs : int
        Any shape with ``n_outputs <= n_samples``, fewer samples than inputs included.
    density : float
        Fraction of nonzero weights (at least one per output).
    active : float
        Share of matched rows. The others are half-lines, and some are intervals.
    epsilon : float, optional
        The radius; a tenth of the norm of the pre-activations when omitted.
    radius : {"per_output", "joint"}
    formulation : {"pooled", "strict"}
    kind : {"plain", "degenerate", "duplicate_columns"}
        ``"degenerate"`` lets strict complementarity fail: rows that lie on an end of their
        interval with a zero dual entry, and zero weights with ``|x_i^T theta| = c_i``.
        ``"duplicate_columns"`` repeats a third of the inputs, so that the weights are not unique.
    intercept : bool
    weights : array_like of shape (n_inputs,), optional
        l1 weights; zeros are unpenalised inputs.
    seed : int

    Returns
    -------
    Instance

    Examples
    --------
    >>> from nettrim_solver.certificate import certify
    >>> planted_problem = planted(40, 10, 3, seed=1)
    >>> judged = certify(planted_problem.problem, planted_problem.W, theta=planted_problem.theta)
    >>> judged.gap < 1e-9, judged.violation < 1e-9
    (True, True)
    """
    _choose("kind", kind, ("plain", "degenerate", "duplicate_columns"))
    _choose("formulation", formulation, ("pooled", "strict"))
    if n_outputs > n_samples:
        raise ProblemError(
            f"n_outputs must be at most n_samples, but was {n_outputs} with {n_samples} samples"
        )
    rng = np.random.default_rng(seed)
    n_copies = n_inputs // 3 if kind == "duplicate_columns" else 0
    n_distinct = n_inputs - n_copies
    penalty = np.ones(n_inputs) if weights is None else np.array(weights, dtype=np.float64)
    penalty[n_distinct:] = penalty[:n_copies]
    c = penalty[:n_distinct, None]
    degenerate = 0.3 if kind == "degenerate" else 0.0

    W = sparse_weights(rng, n_distinct, n_outputs, density)
    b = rng.standard_normal(n_outputs) if intercept else None
    sides = row_kinds(rng, n_samples, n_outputs, active)
    theta = legal_dual(rng, sides, intercept)
    G = np.where(W != 0, np.sign(W), rng.uniform(-0.9, 0.9, W.shape))
    extreme = (W == 0) & (rng.random(W.shape) < degenerate)
    G = c * np.where(extreme, np.sign(G), G)
    X = bend(rng.standard_normal((n_samples, n_distinct)), theta, G)

    Z = X @ W + (0.0 if b is None else b)
    if epsilon is not None:
        level = np.full(1 if radius == "joint" else n_outputs, float(epsilon))
    else:
        level = 0.1 * (_norm(Z) if radius == "joint" else np.linalg.norm(Z, axis=0))
    in_ball = sides == 0 if formulation == "strict" else np.ones(sides.shape, dtype=bool)
    E = error(np.where(in_ball, theta, 0.0), level)
    lower, upper = box_around(rng, Z - E, theta, sides, degenerate)
    X, W = with_copies(rng, X, W, n_copies)
    problem = Problem(
        X, W=W, b=b, lower=lower, upper=upper, formulation=formulation, radius=radius,
        epsilon=float(level[0]) if radius == "joint" else level, intercept=intercept,
        weights=None if weights is None else penalty,
    )  # fmt: skip
    objective = float(np.sum(penalty[:, None] * np.abs(W)))
    name = f"planted {kind} {formulation} {radius} {n_samples}x{n_inputs}x{n_outputs}"
    return Instance(problem, W, b, theta, objective, name)


def random_relu_layer(
    n_samples: int,
    n_inputs: int,
    n_outputs: int,
    *,
    decay: float = 1.0,
    n_hidden: int = 1,
    tolerance: float = 0.1,
    radius: Radius = "per_output",
    formulation: Formulation = "pooled",
    intercept: bool = False,
    dtype: DTypeLike = np.float64,
    seed: int = 0,
) -> Instance:
    """Return a ReLU layer on correlated ReLU features, the case that the package is made for.

    Gaussian signals with covariance eigenvalues ``k^-decay`` pass through `n_hidden` dense layers
    with ReLU (He initialisation); their outputs are X. The layer itself is a further one of these.

    Parameters
    ----------
    n_samples, n_inputs, n_outputs : int
    decay : float
        0 for white signals; real features lie near 1.
    n_hidden : int
        Layers before this one; 0 makes X the Gaussian signals themselves.
    tolerance : float
        Relative radius. Penalised: ``lambda_`` as a fraction of each output's largest sensible one.
    radius, formulation, intercept
        As in :class:`Problem`. With an intercept the layer has random biases.
    dtype : dtype
        Of X, Y, W and b.
    seed : int

    Returns
    -------
    Instance
        ``W`` and ``b`` are None: the problem carries the trained ones, and the answer is unknown.

    Examples
    --------
    >>> random_relu_layer(200, 30, 5, tolerance=0.2).problem
    Problem(X (200, 30) float64, 5 outputs, relu, pooled, per-output epsilon=[...])
    """
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1.0, n_inputs + 1.0) ** (-0.5 * decay)
    rotation = np.linalg.qr(rng.standard_normal((n_inputs, n_inputs)))[0]
    X = (rng.standard_normal((n_samples, n_inputs)) * spectrum) @ rotation.T
    for _ in range(n_hidden):
        X = np.maximum(X @ he_weights(rng, n_inputs, n_inputs), 0.0)
    W = he_weights(rng, n_inputs, n_outputs)
    b = 0.1 * rng.standard_normal(n_outputs) if intercept else None
    X, W = X.astype(dtype), W.astype(dtype)
    b = None if b is None else b.astype(dtype)
    Z = X.astype(np.float64) @ W + (0.0 if b is None else b)
    problem = _with_budget(
        tolerance, X=X, Y=np.maximum(Z, 0.0).astype(dtype), W=W, b=b, activation="relu",
        radius=radius, formulation=formulation, intercept=intercept,
    )  # fmt: skip
    name = f"relu {formulation} {radius} {n_samples}x{n_inputs}x{n_outputs} tolerance {tolerance:g}"
    return Instance(problem, None, None, None, None, name)


def random_layer(
    n_samples: int,
    n_inputs: int,
    n_outputs: int,
    *,
    activation: Any = "relu",
    tolerance: float = 0.2,
    radius: Radius = "per_output",
    formulation: Formulation = "pooled",
    intercept: bool = False,
    defects: Sequence[str] = (),
    dtype: DTypeLike = np.float64,
    seed: int = 0,
) -> Instance:
    """Return a small Gaussian layer with any activation, and with the defects of real layers.

    Parameters
    ----------
    n_samples, n_inputs, n_outputs : int
    activation : str or Activation
    tolerance : float
        As in :func:`random_relu_layer`.
    radius, formulation, intercept
        As in :class:`Problem`.
    defects : sequence of str
        Any of ``DEFECTS``: a zero input, an output with zero weights and the most negative bias
        that its activation makes sense of, repeated inputs, a constant input, X of half the rank,
        two unpenalised inputs, unequal l1 weights.
    dtype : dtype
    seed : int

    Returns
    -------
    Instance
        The answer is unknown.

    Examples
    --------
    >>> random_layer(30, 6, 2, activation="relu6", defects=["zero_column"]).name
    'relu6 pooled per_output 30x6x2 zero_column'
    """
    for defect in defects:
        _choose("defects", defect, DEFECTS)
    rng = np.random.default_rng(seed)
    function = get_activation(activation)
    X = rng.standard_normal((n_samples, n_inputs))
    if "low_rank" in defects:
        rank = max(1, min(n_samples, n_inputs) // 2)
        X = X[:, :rank] @ rng.standard_normal((rank, n_inputs)) / np.sqrt(rank)
    if "constant_feature" in defects:
        X[:, 0] = 0.7
    if "zero_column" in defects:
        X[:, -1] = 0.0
    if "duplicate_columns" in defects and n_inputs > 3:
        X[:, 2:4] = X[:, 1:2]
    W = 2.0 * he_weights(rng, n_inputs, n_outputs)
    offset = 0.3 * rng.standard_normal(n_outputs)
    if "dead_output" in defects:
        W[:, 0], offset[0] = 0.0, -1.0
    b = offset if intercept else None
    X, W = X.astype(dtype), W.astype(dtype)
    b = None if b is None else b.astype(dtype)
    Z = X.astype(np.float64) @ W + (0.0 if b is None else b)
    c = np.ones(n_inputs)
    if "weighted" in defects:
        c = rng.uniform(0.3, 3.0, n_inputs)
    if "unpenalised" in defects:
        c[1 : 2 + (n_inputs > 4)] = 0.0
    problem = _with_budget(
        tolerance, X=X, Y=function(Z).astype(dtype), W=W, b=b, activation=function,
        Z=Z.astype(dtype) if function.needs_preactivation else None, radius=radius,
        formulation=formulation, intercept=intercept, weights=c,
    )  # fmt: skip
    words = [function.name, formulation, radius, f"{n_samples}x{n_inputs}x{n_outputs}", *defects]
    return Instance(problem, None, None, None, None, " ".join(words))


def random_box(
    n_samples: int,
    n_inputs: int,
    n_outputs: int,
    *,
    active: float = 0.5,
    noise: float = 0.05,
    tolerance: float = 0.2,
    radius: Radius = "per_output",
    formulation: Formulation = "pooled",
    intercept: bool = False,
    seed: int = 0,
) -> Instance:
    """Return a random box of points, half-lines and intervals around the image of random weights.

    The radius is at least twice the distance of these weights, so the problem is feasible.

    Parameters
    ----------
    n_samples, n_inputs, n_outputs : int
    active : float
        Share of matched rows.
    noise : float
        Distance of the weights on the matched rows, relative to the norm of the pre-activations.
    tolerance, radius, formulation, intercept
        As in :func:`random_relu_layer`.
    seed : int

    Returns
    -------
    Instance
        The answer is unknown.

    Examples
    --------
    >>> random_box(30, 6, 2, formulation="strict").problem.strict
    True
    """
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n_inputs))
    W = sparse_weights(rng, n_inputs, n_outputs, 0.5)
    b = rng.standard_normal(n_outputs) if intercept else None
    Z = X @ W + (0.0 if b is None else b)
    sides = row_kinds(rng, n_samples, n_outputs, active)
    direction = np.where(sides == 0, rng.standard_normal(Z.shape), 0.0)
    E = error(direction, noise * np.linalg.norm(Z, axis=0))
    lower, upper = box_around(rng, Z - E, direction, sides, 0.2)
    problem = _with_budget(
        tolerance, least=2.0 * np.linalg.norm(E, axis=0), X=X, W=W, b=b, lower=lower, upper=upper,
        radius=radius, formulation=formulation, intercept=intercept,
    )  # fmt: skip
    name = f"box {formulation} {radius} {n_samples}x{n_inputs}x{n_outputs}"
    return Instance(problem, None, None, None, None, name)


def infeasible(
    n_samples: int = 40,
    n_inputs: int = 8,
    n_outputs: int = 3,
    *,
    kind: Literal["radius", "hard_rows"] = "radius",
    fraction: float = 0.5,
    radius: Radius = "per_output",
    formulation: Literal["pooled", "strict"] | None = None,
    intercept: bool = False,
    seed: int = 0,
) -> Instance:
    """Return a problem that no weights solve, with the proof and the least reachable radius.

    A ray theta with ``X^T theta = 0`` is planted, and the box placed so that the error of some
    weights has its direction: these weights are then as close to the box as any.

    Parameters
    ----------
    n_samples, n_inputs, n_outputs : int
        ``n_inputs + n_outputs + intercept < n_samples``.
    kind : {"radius", "hard_rows"}
        Whether the radius is too small, or (strict) the hard rows contradict each other.
    fraction : float
        The radius as a fraction of the least reachable one, below 1 (kind "radius").
    radius, formulation, intercept
        As in :class:`Problem`; the formulation is pooled for "radius" and strict for "hard_rows".
    seed : int

    Returns
    -------
    Instance

    Examples
    --------
    >>> bad = infeasible(kind="radius", fraction=0.25, radius="joint")
    >>> float(bad.problem.epsilon / bad.least_epsilon[0])
    0.25
    """
    _choose("kind", kind, ("radius", "hard_rows"))
    formulation = formulation or ("strict" if kind == "hard_rows" else "pooled")
    if kind == "hard_rows" and formulation != "strict":
        raise ProblemError(f"kind 'hard_rows' is strict, but formulation was {formulation!r}")
    rng = np.random.default_rng(seed)
    sides = row_kinds(rng, n_samples, n_outputs, 0.5)
    theta = legal_dual(rng, sides, intercept, hard_only=kind == "hard_rows")
    X = rng.standard_normal((n_samples, n_inputs))
    X = bend(X, theta, np.zeros((n_inputs, n_outputs)))
    W = sparse_weights(rng, n_inputs, n_outputs, 0.5)
    b = rng.standard_normal(n_outputs) if intercept else None
    Z = X @ W + (0.0 if b is None else b)
    in_ball = sides == 0 if formulation == "strict" else np.ones(sides.shape, dtype=bool)
    scale = 0.3 * np.linalg.norm(Z, axis=0)
    least = _norm(scale) if radius == "joint" else scale
    if kind == "radius":
        E = error(np.where(in_ball, theta, 0.0), least)
        level = fraction * least
    else:
        E, level, least = error(theta, least), least, np.full(least.shape, np.inf)
    lower, upper = box_around(rng, Z - E, theta, sides, 0.0)
    problem = Problem(
        X, lower=lower, upper=upper, formulation=formulation, radius=radius, intercept=intercept,
        epsilon=float(level[0]) if radius == "joint" else level,
    )  # fmt: skip
    name = f"infeasible {kind} {formulation} {radius} {n_samples}x{n_inputs}x{n_outputs}"
    known = kind == "radius"
    return Instance(problem, W if known else None, b if known else None, theta, np.inf, name, least)


def _norm(values: Array) -> Array:
    """Frobenius norm as an array of one radius."""
    return np.array([np.linalg.norm(values)])


def _with_budget(tolerance: float, least: Array | None = None, **arguments: Any) -> Problem:
    """Build a problem with a relative radius, or with lambda_ relative to its largest value."""
    if arguments["formulation"].startswith("penalised"):
        problem = Problem(**arguments, lambda_=1.0)
        lower, upper = problem.box()
        slopes = np.abs(np.asarray(problem.X, dtype=np.float64).T @ np.clip(0.0, lower, upper))
        largest = slopes[problem.weights > 0].max(axis=0)
        return problem.replace(lambda_=np.where(largest > 0, tolerance * largest, 1.0))
    if least is None:
        return Problem(**arguments, tolerance=tolerance)
    problem = Problem(**arguments, tolerance=tolerance)
    epsilon: Any = problem.epsilon
    floor = np.linalg.norm(least) if problem.joint else least
    return problem.replace(epsilon=np.maximum(epsilon, floor))


def _choose(name: str, value: str, options: Sequence[str]) -> None:
    if value not in options:
        raise ProblemError(f"{name} must be one of {list(options)}, but was {value!r}")
