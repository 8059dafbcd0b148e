"""Sensitivity-driven pruning: what is sensitive, and where the shrinkage leads."""

import numpy as np
import pytest

from nettrim_solver import Problem, solve
from nettrim_solver.exceptions import SettingsError
from nettrim_solver.solvers.least_squares import refit_mask
from nettrim_solver.solvers.pruning import Budget, keep_largest
from nettrim_solver.solvers.sensitivity import sensitivities

from .brute_force import data_of, small_layer
from .planted_layer import dense_layer
from .tolerances import TOLERANCE


def uneven_layer(seed):
    """Inputs whose norms fall by a factor of a hundred."""
    problem = dense_layer(seed, n_inputs=16, n_outputs=12)
    X = problem.X * np.geomspace(1.0, 0.01, 16)
    return Problem(X, X @ problem.W, problem.W, activation="identity", intercept=False)


def choice_of_scores(problem, W, keep):
    """The largest products of weight and norm, refitted."""
    data = data_of(problem, 0.0)
    return refit_mask(data, keep_largest(np.abs(W) * data.norms[:, None], Budget(keep)))


def test_sensitivities_are_relative_norms():
    X = np.array([[3.0, 0.0, 1.0], [-4.0, 0.0, 0.0]])
    problem = Problem(X, np.zeros((2, 1)), np.ones((3, 1)), activation="identity", intercept=False)
    np.testing.assert_allclose(sensitivities(data_of(problem, 0.0)), [1.0, 0.0, 0.2])
    dead = problem.replace(X=np.zeros((2, 3)))
    np.testing.assert_array_equal(sensitivities(data_of(dead, 0.0)), 0.0)


def test_without_shrinkage_the_trained_scores_decide():
    problem = uneven_layer(0)
    found = solve(problem, "sensitivity", nnz=60, shrinkage=0.0, damping=0.0).W
    expected = choice_of_scores(problem, problem.W, 60)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE["same_answer"])


def test_inputs_of_equal_norms_shrink_nothing():
    problem = small_layer(0, 10, 6)
    X = problem.X / np.linalg.norm(problem.X, axis=0)
    problem = Problem(X, X @ problem.W, problem.W, activation="identity", intercept=False)
    weak, strong = (
        solve(problem, "sensitivity", nnz=20, shrinkage=shrinkage).W for shrinkage in (0.0, 0.5)
    )
    np.testing.assert_array_equal(weak != 0, strong != 0)


@pytest.mark.parametrize("shrinkage", [0.1, 0.9])
def test_weak_inputs_shrink_by_how_insensitive_they_are(shrinkage):
    # Orthogonal inputs, L = 1: the steps end where W = W0 - shrinkage (1 - S) W.
    rng = np.random.default_rng(3)
    norms = np.geomspace(1.0, 0.01, 12)
    X = np.linalg.qr(rng.standard_normal((30, 12)))[0] * norms
    W = rng.standard_normal((12, 10)) / norms[:, None]
    problem = Problem(X, X @ W, W, activation="identity", intercept=False)
    found = solve(problem, "sensitivity", nnz=60, shrinkage=shrinkage, damping=0.0).W
    shrunk = W / (1.0 + shrinkage * (1.0 - norms))[:, None]
    np.testing.assert_array_equal(found != 0, choice_of_scores(problem, shrunk, 60) != 0)
    assert np.any((found != 0) != (choice_of_scores(problem, W, 60) != 0))


def test_many_steps_lead_to_the_weights_of_least_squares():
    # Behind pruned layers, without shrinkage: the scores of the best weights decide.
    problem = small_layer(2, 8, 5, shift=3.0)
    best = np.linalg.lstsq(problem.X, problem.Y, rcond=None)[0]
    found = solve(problem, "sensitivity", nnz=16, shrinkage=0.0, damping=0.0, iterations=20000).W
    expected = choice_of_scores(problem, best, 16)
    assert np.any((expected != 0) != (choice_of_scores(problem, problem.W, 16) != 0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE["same_answer"])


@pytest.mark.parametrize(
    ("setting", "value"),
    [("shrinkage", -1e-3), ("shrinkage", 1.0), ("shrinkage", np.nan), ("iterations", 0)],
)
def test_bad_settings(setting, value):
    with pytest.raises(SettingsError, match=f"{setting} must .* but was"):
        solve(small_layer(0, 4, 2), "sensitivity", sparsity=0.5, **{setting: value})
