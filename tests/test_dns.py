"""Dynamic network surgery: the two thresholds, the budget, and the best mask on the way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nettrim_solver import solve
from nettrim_solver.exceptions import SettingsError
from nettrim_solver.solvers.dns import surgery
from nettrim_solver.solvers.pruning import Budget, keep_largest

from .brute_force import data_of, small_layer
from .planted_layer import dense_layer, planted_layer, relative_error
from .tolerances import TOLERANCE


@st.composite
def operations(draw):
    shape = draw(st.tuples(st.integers(1, 8), st.integers(1, 4)))
    V = draw(arrays(np.float64, shape, elements=st.integers(-20, 20).map(lambda n: n / 10)))
    mask = draw(arrays(bool, shape))
    return V, mask, draw(st.sampled_from([0.0, 0.1, 0.5])), draw(st.integers(0, V.size))


@given(operations())
def test_one_threshold_explains_what_left_and_what_came_back(case):
    V, mask, d, keep = case
    after = surgery(V, mask, d, Budget(keep))
    assert np.count_nonzero(after) == keep
    if not 0 < keep < V.size:
        return
    # What stays out bounds t from below, what stays in from above; with both, t exists.
    size = np.abs(V)
    lowest = max(
        np.max(size[mask & ~after], initial=0.0) / (1 - d),
        np.max(size[~mask & ~after], initial=0.0) / (1 + d),
    )
    highest = min(
        np.min(size[mask & after], initial=np.inf) / (1 - d),
        np.min(size[~mask & after], initial=np.inf) / (1 + d),
    )
    assert lowest <= highest * (1.0 + TOLERANCE["kernel_double"])


def test_between_the_thresholds_nothing_changes():
    # 1.05 against 1: an exchange without hysteresis, and none with the published thresholds.
    V, mask = np.array([[1.0], [1.05], [0.2]]), np.array([[True], [False], [False]])
    assert surgery(V, mask, 0.0, Budget(1)).ravel().tolist() == [False, True, False]
    assert surgery(V, mask, 0.1, Budget(1)).ravel().tolist() == [True, False, False]
    V[1] = 1.25
    assert surgery(V, mask, 0.1, Budget(1)).ravel().tolist() == [False, True, False]


@given(st.integers(0, 2**20), st.integers(0, 30))
def test_never_worse_than_the_first_mask_before_the_refit(seed, keep):
    problem = small_layer(seed, 6, 5, shift=0.5)
    data = data_of(problem, 0.01)
    unit, _ = data.scaled()
    first = np.where(keep_largest(np.abs(unit.W), Budget(keep)), data.W, 0.0)
    found = solve(problem, "dns", nnz=keep).W
    total = data.squares.sum()
    assert data.losses(found).sum() <= data.losses(first).sum() + TOLERANCE["removals"] * total


@pytest.mark.parametrize("seed", range(4))
def test_removed_weights_are_spliced_back(seed):
    # The magnitudes hide the truth; only what the removed weights remember can bring it back.
    problem, truth = planted_layer(seed, noise=0.6)
    nnz = np.count_nonzero(truth)
    assert np.any(keep_largest(np.abs(problem.W), Budget(nnz)) != (truth != 0))
    solution = solve(problem, "dns", nnz=nnz, damping=0.0)
    np.testing.assert_allclose(solution.W, truth, rtol=0, atol=TOLERANCE["refit"])


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.9])
def test_two_thresholds_are_better_than_one(sparsity):
    problem = dense_layer(0)
    two, one, none = (
        relative_error(problem, solve(problem, "dns", sparsity=sparsity, **settings).W)
        for settings in ({}, {"hysteresis": 0.0}, {"iterations": 1})
    )
    assert two < one and two < 0.95 * none


def test_patience_ends_the_run():
    # Masks worsen in the long run, so a patient run finds nothing better than an eternal one.
    problem = dense_layer(1)
    patient, eternal = (
        solve(problem, "dns", sparsity=0.8, iterations=400, patience=patience).W
        for patience in (50, 400)
    )
    np.testing.assert_array_equal(patient, eternal)
    hasty = solve(problem, "dns", sparsity=0.8, patience=1).W
    assert relative_error(problem, patient) <= relative_error(problem, hasty)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("hysteresis", 1.0),
        ("hysteresis", -0.1),
        ("hysteresis", None),
        ("iterations", 0),
        ("patience", 0),
    ],
)
def test_bad_settings(setting, value):
    with pytest.raises(SettingsError, match=f"{setting} must .* but was"):
        solve(small_layer(0, 4, 2), "dns", sparsity=0.5, **{setting: value})
