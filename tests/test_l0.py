"""The l0 stage: it never loses to its start, and is the l0 ADMM where the box is a point."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettrim_solver import Problem, solve
from nettrim_solver.exceptions import SettingsError

from .tolerances import TOLERANCE


def relu_layer(seed, n_samples=60, n_inputs=10, n_outputs=4):
    rng = np.random.default_rng(seed)
    X = np.maximum(rng.standard_normal((n_samples, n_inputs)), 0) + 0.1
    W, b = rng.standard_normal((n_inputs, n_outputs)), 0.3 * rng.standard_normal(n_outputs)
    return Problem(X, np.maximum(X @ W + b, 0), W, b)


def objective(problem, solution, damping):
    """The squared distance and the pull towards the trained weights, from their definition."""
    Z = problem.X @ solution.W + solution.b
    lower, upper = problem.box()
    centred = problem.X - problem.X.mean(axis=0)
    delta = damping * np.mean(np.sum(centred**2, axis=0))
    distance = np.sum((Z - np.clip(Z, lower, upper)) ** 2)
    return distance + delta * np.sum((solution.W - problem.W) ** 2)


@given(st.integers(0, 10_000), st.sampled_from([0.3, 0.5, 0.8]), st.sampled_from([0.0, 0.01, 0.3]))
def test_more_rounds_never_raise_the_objective(seed, sparsity, damping):
    problem = relu_layer(seed)
    values = [
        objective(
            problem,
            solve(problem, "l0", sparsity=sparsity, rounds=rounds, damping=damping),
            damping,
        )
        for rounds in (0, 1, 4, 12)
    ]
    assert all(b <= a * (1 + TOLERANCE["norm"]) for a, b in zip(values, values[1:], strict=False))


def test_the_rounds_are_worth_something_on_a_relu_target():
    problem = relu_layer(0, n_samples=300, n_inputs=30, n_outputs=10)
    linear = solve(problem, "l0", sparsity=0.7, rounds=0)
    boxed = solve(problem, "l0", sparsity=0.7, rounds=20)
    assert boxed.certificate.distance < 0.97 * linear.certificate.distance


def test_a_box_of_points_leaves_nothing_to_the_rounds():
    rng = np.random.default_rng(3)
    X, W = rng.standard_normal((50, 12)), rng.standard_normal((12, 5))
    problem = Problem(X, X @ W, W, np.zeros(5), activation="identity")
    alps = solve(problem, "alps", sparsity=0.6)
    np.testing.assert_array_equal(solve(problem, "l0", sparsity=0.6, rounds=0).W, alps.W)
    moved = solve(problem, "l0", sparsity=0.6, rounds=3)
    np.testing.assert_allclose(moved.W, alps.W, atol=TOLERANCE["reordered"])


def test_a_planted_sparse_layer_is_found_from_the_convex_answer():
    rng = np.random.default_rng(5)
    X = rng.standard_normal((120, 20))
    sparse = np.where(rng.random((20, 6)) < 0.2, rng.standard_normal((20, 6)), 0.0)
    # Trained weights that hide the truth: the same outputs cannot be told from them by magnitude.
    problem = Problem(X, np.maximum(X @ sparse, 0), rng.standard_normal((20, 6)), np.zeros(6))
    start = solve(problem.replace(tolerance=0.05), "admm")
    found = solve(
        problem, "l0", nnz=np.count_nonzero(sparse), damping=0.0, warm_start=start, rounds=60
    )
    np.testing.assert_array_equal(found.W != 0, sparse != 0)
    assert found.certificate.distance < 1e-3 * np.linalg.norm(problem.Y)


def test_the_intercept_is_the_best_for_the_weights():
    problem = relu_layer(7)
    solution = solve(problem, "l0", sparsity=0.6)
    lower, upper = problem.box()
    Z = problem.X @ solution.W

    def distance(b):
        return np.linalg.norm(Z + b - np.clip(Z + b, lower, upper), axis=0)

    at = distance(solution.b)
    for step in (1e-3, -1e-3):
        assert np.all(at <= distance(solution.b + step))
    kept = solve(problem, "l0", sparsity=0.6, intercept="keep")
    np.testing.assert_array_equal(kept.b, problem.b)


def test_any_box_will_do():
    rng = np.random.default_rng(2)
    X, W = rng.standard_normal((80, 9)), rng.standard_normal((9, 3))
    problem = Problem(X, np.clip(X @ W, 0, 6), W, activation="relu6", intercept=False)
    assert solve(problem, "l0", sparsity=0.5).nnz == 27 - round(0.5 * 27)


@pytest.mark.parametrize("setting", [{"rounds": -1}, {"rounds": 1.5}, {"moves": 0}])
def test_bad_settings_are_named(setting):
    with pytest.raises(SettingsError, match=next(iter(setting))):
        solve(relu_layer(0), "l0", sparsity=0.5, **setting)
