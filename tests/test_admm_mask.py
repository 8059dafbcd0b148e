"""ADMM with a mask: its limit on a fixed mask, its stages, and what they are good for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettrim_solver import solve
from nettrim_solver.exceptions import SettingsError
from nettrim_solver.solvers.admm_mask import stage
from nettrim_solver.solvers.pruning import Budget, keep_largest

from .brute_force import least_squares, small_layer
from .planted_layer import dense_layer, relative_error
from .tolerances import TOLERANCE


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_a_fixed_mask_ends_at_least_squares(seed, shift):
    # Each input is pulled in proportion to its own norm: rows under X, one for every input.
    problem = small_layer(seed, 8, 3, shift=shift)
    norms = np.linalg.norm(problem.X, axis=0)
    mask = keep_largest(np.abs(problem.W) * norms[:, None], Budget(10))
    pull = np.diag(np.sqrt(0.1) * norms)
    X, T = np.vstack([problem.X, pull]), np.vstack([problem.Y, pull @ problem.W])
    expected = [least_squares(X, t, list(np.flatnonzero(s)))[1] for t, s in zip(T.T, mask.T)]  # noqa: B905
    found = solve(problem, "admm_mask", nnz=10, mask="fixed", iterations=3000).W
    np.testing.assert_allclose(found, np.transpose(expected), rtol=0, atol=TOLERANCE["refit"])


def test_one_stage_is_a_fixed_mask():
    problem = small_layer(1, 12, 4)
    for budget in ({"sparsity": 0.6}, {"pattern": "1:4"}):
        one = solve(problem, "admm_mask", scheduled=1, **budget).W
        fixed = solve(problem, "admm_mask", mask="fixed", **budget).W
        np.testing.assert_array_equal(one, fixed)


@given(st.integers(1, 40), st.integers(1, 10), st.integers(1, 20), st.data())
def test_stages_follow_the_cubic_schedule(n_inputs, n_outputs, last, data):
    keep = data.draw(st.integers(0, n_inputs * n_outputs))
    sparsity = 1.0 - keep / (n_inputs * n_outputs)
    kept = [stage(Budget(keep), (t + 1) / last, n_inputs, n_outputs).keep for t in range(last)]
    for t, stays in enumerate(kept):
        wanted = sparsity - sparsity * (1.0 - (t + 1) / last) ** 3
        assert abs(n_inputs * n_outputs * (1.0 - wanted) - stays) <= 0.5 + TOLERANCE["reordered"]
    assert kept == sorted(kept, reverse=True) and kept[-1] == keep


def test_stages_of_every_output():
    counts = np.array([0, 3, 10])
    first, last = (stage(Budget(counts), progress, 10, 3).keep for progress in (1e-3, 1.0))
    np.testing.assert_array_equal(first, [10, 10, 10])
    np.testing.assert_array_equal(last, counts)


def test_inputs_without_signal_have_left_before_the_first_stage():
    assert stage(Budget(6), 1e-3, 4, 3).keep == 12
    assert stage(Budget(14), 0.5, 4, 3).keep == 14


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("scope", ["layer", "output"])
def test_closing_in_beats_a_fixed_mask(sparsity, scope):
    problem = dense_layer(2)
    gradual, fixed = (
        relative_error(
            problem, solve(problem, "admm_mask", sparsity=sparsity, scope=scope, mask=mask).W
        )
        for mask in ("gradual", "fixed")
    )
    assert gradual < 0.95 * fixed


def test_the_mask_needs_its_iterations():
    problem = small_layer(3, 8, 3)
    with pytest.raises(SettingsError, match="scheduled must be at most iterations=10.*was 15"):
        solve(problem, "admm_mask", sparsity=0.5, iterations=10)
    assert solve(problem, "admm_mask", sparsity=0.5, iterations=10, mask="fixed").nnz == 12
    assert solve(problem, "admm_mask", sparsity=0.5, iterations=15).nnz == 12


@pytest.mark.parametrize(
    ("setting", "value"),
    [("mask", "slow"), ("mask", None), ("iterations", 0), ("scheduled", 0), ("scheduled", True)],
)
def test_bad_settings(setting, value):
    with pytest.raises(SettingsError, match=f"{setting} must .* but was"):
        solve(small_layer(0, 4, 2), "admm_mask", sparsity=0.5, **{setting: value})
