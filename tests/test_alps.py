"""ALPS: it finds what magnitudes hide, and comes near the best support."""

from itertools import combinations

import numpy as np
import pytest

from nettrim_solver import Problem, solve
from nettrim_solver.exceptions import SettingsError
from nettrim_solver.solvers.least_squares import refit_mask
from nettrim_solver.solvers.pruning import Budget, keep_largest

from .brute_force import data_of, least_squares
from .planted_layer import dense_layer, planted_layer, relative_error
from .tolerances import TOLERANCE


def magnitude_and_refit(problem, budget, damping):
    data = data_of(problem, damping)
    return refit_mask(data, keep_largest(np.abs(data.scaled()[0].W), budget))


@pytest.mark.parametrize("seed", range(6))
def test_a_hidden_truth_is_recovered(seed):
    problem, truth = planted_layer(seed, noise=1.0)
    nnz = np.count_nonzero(truth)
    assert np.any(keep_largest(np.abs(problem.W), Budget(nnz)) != (truth != 0))
    solution = solve(problem, "alps", nnz=nnz, damping=0.0)
    np.testing.assert_allclose(solution.W, truth, rtol=0, atol=TOLERANCE["refit"])


@pytest.mark.parametrize("seed", range(3))
def test_weights_that_meet_the_budget_stay(seed):
    # Sparse weights on their own target: nothing is to be gained.
    problem, truth = planted_layer(seed, noise=0.0)
    solution = solve(problem, "alps", nnz=np.count_nonzero(truth))
    np.testing.assert_allclose(solution.W, truth, rtol=0, atol=TOLERANCE["refit"])


@pytest.mark.parametrize("seed", range(4))
def test_supports_are_near_the_best_of_all(seed):
    # Outputs of eight inputs: all supports of four are tried.
    problem = dense_layer(seed, n_inputs=8, n_outputs=15)
    supports = [list(support) for support in combinations(range(8), 4)]
    best = sum(min(least_squares(problem.X, t, s)[0] for s in supports) for t in problem.Y.T)
    W = solve(problem, "alps", nnz=60, scope="output", damping=0.0).W
    loss = np.sum((problem.Y - problem.X @ W) ** 2)
    assert best * (1.0 - TOLERANCE["removals"]) < loss < 1.1 * best


@pytest.mark.parametrize("budget", [{"sparsity": 0.5}, {"sparsity": 0.8}, {"pattern": "2:4"}])
@pytest.mark.parametrize("seed", range(3))
def test_errors_are_far_below_those_of_magnitudes(seed, budget):
    problem = dense_layer(seed)
    keep = round((1.0 - budget.get("sparsity", 0.5)) * 48 * 40)
    pattern = (2, 4) if "pattern" in budget else None
    reference = magnitude_and_refit(problem, Budget(keep, pattern=pattern), 0.01)
    found = solve(problem, "alps", **budget)
    assert found.nnz == keep
    assert relative_error(problem, found.W) < 0.93 * relative_error(problem, reference)


@pytest.mark.parametrize("seed", range(3))
def test_a_starting_penalty_too_large_is_taken_back(seed):
    # With a penalty of 1000 the first support does not move at all.
    problem = dense_layer(seed)
    reference = magnitude_and_refit(problem, Budget(576), 0.01)
    found = solve(problem, "alps", sparsity=0.7, rho=1e3)
    assert relative_error(problem, found.W) < 0.99 * relative_error(problem, reference)


def test_more_iterations_than_needed_change_nothing():
    problem = dense_layer(0)
    first, second = (
        solve(problem, "alps", sparsity=0.7, iterations=iterations).W for iterations in (300, 3000)
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_of_samples_and_outputs_do_not_matter(scale):
    problem = dense_layer(1, n_inputs=16, n_outputs=8)
    other = Problem(
        scale * problem.X, problem.Y, problem.W / scale, activation="identity", intercept=False
    )
    first, second = (solve(p, "alps", sparsity=0.6).W for p in (problem, other))
    np.testing.assert_allclose(scale * second, first, rtol=0, atol=TOLERANCE["same_answer"])


@pytest.mark.parametrize(
    ("setting", "value"),
    [("iterations", 0), ("iterations", 2.5), ("rho", 0.0), ("rho", np.inf), ("rho", "small")],
)
def test_bad_settings(setting, value):
    with pytest.raises(SettingsError, match=f"{setting} must .* but was"):
        solve(dense_layer(0, n_inputs=4, n_outputs=2), "alps", sparsity=0.5, **{setting: value})
