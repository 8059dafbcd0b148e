"""Magnitude, Wanda and optimal brain damage: their scores by definition and brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettrim_solver import Problem, solve

from .tolerances import TOLERANCE


def layer_of(seed, intercept=True, n_samples=20, n_inputs=5, n_outputs=4):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n_inputs)) @ rng.standard_normal((n_inputs, n_inputs))
    X += 3.0 * rng.standard_normal(n_inputs)
    W, b = rng.standard_normal((n_inputs, n_outputs)), rng.standard_normal(n_outputs)
    b = b if intercept else None
    Y = X @ W + (b if intercept else 0.0)
    return Problem(X, Y, W, b, activation="identity", intercept=intercept)


def assert_keeps(solution, W, scores, columnwise):
    """The largest scores of the layer (or of each output) stay as trained; all others are zero."""
    kept = solution.W != 0
    np.testing.assert_allclose(solution.W[kept], W[kept], rtol=TOLERANCE["reordered"])
    outputs = range(W.shape[1]) if columnwise else [slice(None)]
    for j in outputs:
        mask, score = kept[:, j], scores[:, j]
        if mask.any() and not mask.all():
            assert score[mask].min() >= score[~mask].max()


SEEDS, COUNTS = st.integers(0, 10**6), st.integers(0, 20)


@given(SEEDS, COUNTS, st.booleans())
def test_magnitude(seed, nnz, columnwise):
    problem = layer_of(seed)
    solution = solve(problem, "magnitude", nnz=nnz, scope="output" if columnwise else "layer")
    assert_keeps(solution, problem.W, np.abs(problem.W), columnwise)


@given(SEEDS, COUNTS, st.booleans(), st.booleans())
def test_wanda_takes_the_norms_of_the_inputs_as_they_are(seed, nnz, columnwise, intercept):
    problem = layer_of(seed, intercept)
    scores = np.abs(problem.W) * np.linalg.norm(problem.X, axis=0)[:, None]
    settings = {} if columnwise else {"scope": "layer"}
    assert_keeps(solve(problem, "wanda", nnz=nnz, **settings), problem.W, scores, columnwise)


def test_wanda_shares_zeros_among_the_outputs_as_published():
    assert set(solve(layer_of(0), "wanda", sparsity=0.6).certificate.nnz) == {2}


def increase(problem, i, j, intercept):
    """By how much half the squared error of an output grows when one weight alone is deleted."""
    W = problem.W.copy()
    W[i, j] = 0.0
    residual = problem.Y[:, j] - problem.X @ W[:, j]
    if intercept == "solve":
        residual -= residual.mean()
    elif problem.b is not None:
        residual -= problem.b[j]
    return 0.5 * np.sum(residual**2)


@given(SEEDS, COUNTS, st.sampled_from(["solve", "keep", "none"]))
def test_brain_damage_removes_what_costs_least_alone(seed, nnz, intercept):
    problem = layer_of(seed, intercept != "none")
    settings = {} if intercept == "none" else {"intercept": intercept}
    scores = np.array([[increase(problem, i, j, intercept) for j in range(4)] for i in range(5)])
    assert_keeps(solve(problem, "obd", nnz=nnz, **settings), problem.W, scores, columnwise=False)


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_brain_damage_starts_from_least_squares_behind_pruned_layers(damping):
    problem = layer_of(1, intercept=False)
    X = problem.X + np.random.default_rng(0).standard_normal(problem.X.shape)
    behind = Problem(X, problem.Y, problem.W, activation="identity", intercept=False)
    ridge = damping * np.mean(np.sum(X**2, axis=0))
    rows = np.vstack([X, np.sqrt(ridge) * np.eye(5)])
    target = np.vstack([problem.Y, np.sqrt(ridge) * problem.W])
    start = np.linalg.lstsq(rows, target, rcond=None)[0]
    scores = np.sum(X**2, axis=0)[:, None] * start**2
    for nnz in (20, 11, 4):
        solution = solve(behind, "obd", nnz=nnz, damping=damping)
        assert solution.nnz == nnz
        assert_keeps(solution, start, scores, columnwise=False)


@given(SEEDS, COUNTS)
def test_orthogonal_inputs_make_all_saliencies_agree(seed, nnz):
    rng = np.random.default_rng(seed)
    X = np.linalg.qr(rng.standard_normal((20, 5)))[0] * rng.uniform(0.1, 10.0, 5)
    W = rng.standard_normal((5, 4))
    problem = Problem(X, X @ W, W, activation="identity", intercept=False)
    expected = solve(problem, "wanda", nnz=nnz, scope="layer").W
    for solver in ("obd", "obs", "exact_obs"):
        found = solve(problem, solver, nnz=nnz, damping=0.0).W
        np.testing.assert_allclose(found, expected, atol=TOLERANCE["same_answer"])
