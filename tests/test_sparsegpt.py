"""SparseGPT against a sweep without blocks or factors, its exact increase, and its counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettrim_solver import solve
from nettrim_solver.exceptions import ProblemError, SettingsError
from nettrim_solver.solvers import sparsegpt
from nettrim_solver.solvers.pruning import Budget
from nettrim_solver.solvers.watch import Watch

from .brute_force import data_of, small_layer
from .tolerances import TOLERANCE

CLOSE = TOLERANCE["removals"]


def prune(problem, budget, block_size, damping=0.01):
    settings = sparsegpt.Settings(damping=damping, block_size=block_size)
    return sparsegpt.prepare(data_of(problem, 0.0), settings, Watch())(budget)


def sweep(data, removed):
    """Remove given weights input by input, all later ones repaired at once; and the errors."""
    W, errors = data.stationary().copy(), np.zeros(removed.shape)
    for i in range(len(W)):
        inverse = np.linalg.inv(data.H[i:, i:])
        errors[i] = np.where(removed[i], W[i] / np.sqrt(inverse[0, 0]), 0.0)
        W[i:] -= np.outer(inverse[:, 0], np.where(removed[i], W[i] / inverse[0, 0], 0.0))
    return W, errors


@st.composite
def cases(draw):
    """A layer of 12 inputs, a budget of each kind, and a block size."""
    problem = small_layer(
        draw(st.integers(0, 2**20)), 12, draw(st.integers(1, 4)),
        shift=draw(st.sampled_from([0.0, 0.5])),
    )  # fmt: skip
    M = problem.n_outputs
    pattern = draw(st.sampled_from([None, None, (2, 4), (1, 3)]))
    keep = draw(st.integers(0, 12 * M))
    if pattern is not None:
        keep = 12 * M * pattern[0] // pattern[1]
    elif draw(st.booleans()):
        keep = np.array(draw(st.lists(st.integers(0, 12), min_size=M, max_size=M)))
    return problem, Budget(keep, draw(st.booleans()), pattern), draw(st.integers(1, 15))


@given(cases())
def test_later_inputs_repair_and_the_squared_errors_are_the_increase(case):
    problem, budget, block_size = case
    data = data_of(problem, 0.01)
    W = prune(problem, budget, block_size)
    expected, errors = sweep(data, W == 0)
    np.testing.assert_allclose(W, expected, rtol=0, atol=CLOSE * np.abs(problem.W).max())
    increase = data.losses(W) - data.losses(data.stationary())
    np.testing.assert_allclose(
        np.sum(errors**2, axis=0), increase, rtol=0, atol=CLOSE * data.squares.max()
    )


@given(cases())
def test_budgets_and_patterns_are_met_exactly(case):
    problem, budget, block_size = case
    kept = prune(problem, budget, block_size) != 0
    if budget.pattern is not None:
        n, m = budget.pattern
        assert np.all(kept.reshape(12 // m, m, -1).sum(axis=1) == n)
    elif isinstance(budget.keep, np.ndarray):
        np.testing.assert_array_equal(kept.sum(axis=0), budget.keep)
    else:
        assert kept.sum() == budget.keep
        assert not budget.per_output or np.ptp(kept.sum(axis=0)) <= 1


@given(cases())
def test_blocks_remove_the_same_share(case):
    problem, budget, block_size = case
    if budget.pattern is not None:
        return
    removed = prune(problem, budget, block_size) == 0
    # By output or in all, as the budget says; cumulative counts are off by rounding alone.
    single = budget.per_output or isinstance(budget.keep, np.ndarray)
    removed = removed if single else removed.sum(axis=1, keepdims=True)
    for end in (*range(0, 12, block_size), 12):
        due = removed.sum(axis=0) * end / 12
        assert np.all(np.abs(removed[:end].sum(axis=0) - due) <= 0.5)


@given(cases())
def test_every_block_removes_its_least_weights(case):
    problem, budget, block_size = case
    if budget.pattern is not None or isinstance(budget.keep, np.ndarray) or budget.per_output:
        return
    data = data_of(problem, 0.01)
    removed = prune(problem, budget, block_size) == 0
    for begin in range(0, 12, block_size):
        end = min(begin + block_size, 12)
        # The weights as they stand when the block is reached: all before it is done.
        W, _ = sweep(data, np.where(np.arange(12)[:, None] < begin, removed, False))
        later = [np.linalg.inv(data.H[i:, i:])[0, 0] for i in range(begin, end)]
        scores, gone = W[begin:end] ** 2 / np.array(later)[:, None], removed[begin:end]
        if gone.any() and not gone.all():
            assert scores[gone].max() <= scores[~gone].min() * (1 + CLOSE)


def test_groups_choose_their_zeros_when_they_are_reached():
    problem, data = small_layer(1, 12, 5), data_of(small_layer(1, 12, 5), 0.01)
    budget = Budget(30, pattern=(2, 4))
    removed = prune(problem, budget, 128) == 0
    for begin in (0, 4, 8):
        W, _ = sweep(data, np.where(np.arange(12)[:, None] < begin, removed, False))
        later = [np.linalg.inv(data.H[i:, i:])[0, 0] for i in range(begin, begin + 4)]
        scores = W[begin : begin + 4] ** 2 / np.array(later)[:, None]
        least = np.argsort(scores, axis=0)[:2]
        assert np.all(np.take_along_axis(removed[begin : begin + 4], least, axis=0))


@pytest.mark.parametrize("block_size", [1, 3, 4, 6, 12, 500])
def test_blocks_do_not_change_patterns(block_size):
    # The blocks only postpone work then: the choice is the groups'.
    problem, budget = small_layer(2, 12, 5), Budget(30, pattern=(2, 4))
    expected = prune(problem, budget, 128)
    found = prune(problem, budget, block_size)
    np.testing.assert_array_equal(found == 0, expected == 0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE)


@given(st.integers(0, 2**20), st.integers(1, 12))
def test_the_factor_holds_the_inverses_of_what_is_left(seed, N):
    A = np.random.default_rng(seed).standard_normal((20, N))
    H = A.T @ A
    factor = sparsegpt.inverse_factor(H)
    np.testing.assert_array_equal(factor, np.triu(factor))
    np.testing.assert_allclose(factor.T @ factor @ H, np.eye(N), atol=CLOSE)
    for i in range(N):
        np.testing.assert_allclose(factor[i, i] ** 2, np.linalg.inv(H[i:, i:])[0, 0], rtol=CLOSE)


def test_sparsity_and_scope_come_from_the_settings():
    problem = small_layer(3, 12, 5)
    for sparsity in (0.0, 0.3, 0.55, 0.95):
        solution = solve(problem, "sparsegpt", sparsity=sparsity, block_size=5, scope="output")
        assert solution.nnz == 60 - round(sparsity * 60)
        assert np.ptp(np.count_nonzero(solution.W, axis=0)) <= 1


@pytest.mark.parametrize("block_size", [0, -1, 2.5, True, "128", None])
def test_a_block_has_a_positive_number_of_inputs(block_size):
    with pytest.raises(SettingsError, match="block_size must be an integer >= 1"):
        solve(small_layer(4, 4, 2), "sparsegpt", sparsity=0.5, block_size=block_size)


def test_a_singular_layer_names_the_remedy():
    problem = small_layer(5, 9, 2).samples(slice(5))
    with pytest.raises(ProblemError, match="damping"):
        solve(problem, "sparsegpt", sparsity=0.5, damping=0.0)
    assert solve(problem, "sparsegpt", sparsity=0.5).nnz == 9
