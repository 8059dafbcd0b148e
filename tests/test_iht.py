"""Iterative hard thresholding: where it stops, what it finds, and what momentum is for."""

import numpy as np
import pytest

from nettrim_solver import solve
from nettrim_solver.exceptions import SettingsError
from nettrim_solver.solvers.pruning import Budget, keep_largest

from .brute_force import data_of, small_layer
from .planted_layer import dense_layer, planted_layer, relative_error
from .tolerances import TOLERANCE


@pytest.mark.parametrize("accelerated", [True, False])
@pytest.mark.parametrize(
    "budget", [Budget(24), Budget(24, per_output=True), Budget(30, pattern=(2, 4))]
)
@pytest.mark.parametrize("seed", range(3))
def test_it_stops_where_a_gradient_step_changes_no_support(seed, budget, accelerated):
    # A fixed point of the iteration, whatever led there.
    problem = small_layer(seed, 12, 5, shift=1.0)
    settings = {"accelerated": accelerated, "iterations": 20000, "damping": 0.05}
    if budget.pattern:
        settings["pattern"] = "2:4"
    else:
        settings |= {"nnz": budget.keep, "scope": "output" if budget.per_output else "layer"}
    found = solve(problem, "iht", **settings).W
    unit, norms = data_of(problem, 0.05).scaled()
    W = found * norms[:, None]
    S = W - (unit.H @ W - unit.G) / np.linalg.norm(unit.H, ord=2)
    np.testing.assert_array_equal(keep_largest(np.abs(S), budget), found != 0)


@pytest.mark.parametrize("accelerated", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_a_hidden_truth_is_recovered(seed, accelerated):
    problem, truth = planted_layer(seed, noise=0.4)
    nnz = np.count_nonzero(truth)
    assert np.any(keep_largest(np.abs(problem.W), Budget(nnz)) != (truth != 0))
    solution = solve(problem, "iht", nnz=nnz, damping=0.0, accelerated=accelerated)
    np.testing.assert_allclose(solution.W, truth, rtol=0, atol=TOLERANCE["refit"])


@pytest.mark.parametrize("seed", range(4))
def test_gradients_are_taken_where_momentum_leads(seed):
    # The products with H are carried along: the same steps with every product computed anew.
    problem = small_layer(seed, 12, 5, shift=5.0)
    unit, _ = data_of(problem, 0.01).scaled()
    L, budget, theta = np.linalg.norm(unit.H, ord=2), Budget(20), 1.0
    W = Y = np.where(keep_largest(np.abs(unit.W), budget), unit.W, 0.0)
    for steps in range(1, 9):
        S = Y - (unit.H @ Y - unit.G) / L
        before, W = W, np.where(keep_largest(np.abs(S), budget), S, 0.0)
        theta, last = (1.0 + np.sqrt(1.0 + 4.0 * theta**2)) / 2.0, theta
        Y = W + (last - 1.0) / theta * (W - before)
        found = solve(problem, "iht", nnz=20, iterations=steps).W
        np.testing.assert_array_equal(found != 0, W != 0)


@pytest.mark.parametrize("seed", range(3))
def test_iterations_improve_on_the_first_support(seed):
    problem = dense_layer(seed)
    for accelerated in (True, False):
        first, last = (
            relative_error(
                problem,
                solve(problem, "iht", sparsity=0.8, iterations=n, accelerated=accelerated).W,
            )
            for n in (1, 300)
        )
        assert last < 0.97 * first


@pytest.mark.parametrize("seed", range(3))
def test_momentum_shortens_the_way(seed):
    # Behind pruned layers the weights have far to go: ten steps of each.
    problem, truth = planted_layer(seed, noise=1.5)
    problem = problem.replace(X=problem.X + 1.0, Y=(problem.X + 1.0) @ truth)
    fast, slow = (
        relative_error(
            problem,
            solve(
                problem, "iht", nnz=np.count_nonzero(truth), damping=0.0, iterations=30,
                accelerated=accelerated,
            ).W,
        )
        for accelerated in (True, False)
    )  # fmt: skip
    assert fast < slow


@pytest.mark.parametrize(
    ("setting", "value"), [("iterations", 0), ("iterations", True), ("accelerated", "yes")]
)
def test_bad_settings(setting, value):
    with pytest.raises(SettingsError, match=f"{setting} must .* but was"):
        solve(small_layer(0, 4, 2), "iht", sparsity=0.5, **{setting: value})
