"""The exact refit on given zeros, and what the pruners that end with it have in common."""

import importlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nettrim_solver import Problem, solve
from nettrim_solver.exceptions import ProblemError
from nettrim_solver.solvers.gram import gram
from nettrim_solver.solvers.least_squares import largest_eigenvalue, refit_mask
from nettrim_solver.solvers.pruning import Budget, keep_largest
from nettrim_solver.solvers.watch import Watch

from .brute_force import data_of, least_squares, rows_of, small_layer
from .planted_layer import planted_layer, relative_error
from .tolerances import TOLERANCE

CLOSE = TOLERANCE["refit"]
REFITTED = ["alps", "iht", "dns", "sensitivity"]
ITERATIVE = [*REFITTED, "admm_mask"]


@st.composite
def cases(draw):
    """A layer with a target of its own, a damping, and a mask."""
    N, M = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    problem = small_layer(
        draw(st.integers(0, 2**20)), N, M, shift=draw(st.sampled_from([0.0, 1.0]))
    )
    mask = draw(arrays(bool, (N, M)))
    return problem, draw(st.sampled_from([0.0, 0.01, 1.0])), mask


# The refit ---------------------------------------------------------------------------------------


@given(cases())
def test_refit_is_least_squares_on_every_support(case):
    problem, damping, mask = case
    W = refit_mask(data_of(problem, damping), mask)
    X, T = rows_of(problem, damping)
    expected = [least_squares(X, t, list(np.flatnonzero(s)))[1] for t, s in zip(T.T, mask.T)]  # noqa: B905
    scale = max(np.max(np.abs(expected), initial=0.0), 1.0)
    np.testing.assert_allclose(W, np.transpose(expected), rtol=0, atol=CLOSE * scale)
    assert not W[~mask].any()


@given(cases(), st.integers(0, 2**20))
def test_no_other_weights_with_these_zeros_have_less_loss(case, seed):
    problem, damping, mask = case
    data = data_of(problem, damping)
    W = refit_mask(data, mask)
    other = np.random.default_rng(seed).standard_normal(mask.shape) * mask
    for rival in (other, W + 1e-3 * other, np.where(mask, problem.W, 0.0)):
        assert np.all(data.losses(W) <= data.losses(rival) + CLOSE * data.squares)


@given(cases())
def test_the_gradient_vanishes_on_the_support(case):
    problem, damping, mask = case
    data = data_of(problem, damping)
    slope = (data.H @ refit_mask(data, mask) - data.G) / np.outer(data.norms, np.sqrt(data.squares))
    assert np.max(np.abs(slope[mask]), initial=0.0) <= CLOSE


@given(cases())
def test_outputs_of_equal_support_do_not_mix(case):
    problem, damping, mask = case
    data = data_of(problem, damping)
    shared = np.repeat(mask[:, :1], mask.shape[1], axis=1)
    together = refit_mask(data, shared)
    for j in range(mask.shape[1]):
        alone = np.zeros_like(shared)
        alone[:, j] = shared[:, j]
        np.testing.assert_allclose(refit_mask(data, alone)[:, j], together[:, j], atol=CLOSE)


def test_dependent_inputs_of_one_support_name_the_remedy():
    problem = small_layer(0, 5, 2)
    X = problem.X.copy()
    X[:, 3] = 2.0 * X[:, 1]
    doubled = Problem(X, problem.Y, problem.W, activation="identity", intercept=False)
    data, mask = data_of(doubled, 0.0), np.ones((5, 2), dtype=bool)
    with pytest.raises(ProblemError, match="set damping above 0"):
        refit_mask(data, mask)
    # Apart they harm nobody, and damping keeps them apart.
    mask[3, 0] = mask[1, 1] = False
    assert np.all(refit_mask(data, mask)[mask] != 0.0)
    assert np.all(np.isfinite(refit_mask(data.damped(0.01), np.ones_like(mask))))


def test_nothing_given_is_changed():
    problem = small_layer(1, 6, 3)
    data, mask = data_of(problem, 0.1), np.tri(6, 3, dtype=bool)
    H, G, W = data.H.copy(), data.G.copy(), data.W.copy()
    answer = refit_mask(data, mask)
    for array, copy in ((data.H, H), (data.G, G), (data.W, W), (mask, np.tri(6, 3, dtype=bool))):
        np.testing.assert_array_equal(array, copy)
        assert not np.shares_memory(answer, array)


@given(st.integers(0, 2**20), st.integers(1, 9))
def test_the_largest_eigenvalue(seed, n):
    A = np.random.default_rng(seed).standard_normal((n + 1, n))
    expected = np.linalg.norm(A, ord=2) ** 2
    np.testing.assert_allclose(largest_eigenvalue(A.T @ A), expected, rtol=TOLERANCE["norm"] * 10)


# The pruners that iterate ------------------------------------------------------------------------


def prepared(name, problem, **settings):
    """The prune function of a solver, and the data that it ends with."""
    module = importlib.import_module(f"nettrim_solver.solvers.{name}")
    chosen = module.Settings(**settings)
    data = gram(problem, solve_intercept=False)
    return module.prepare(data, chosen, Watch()), data.damped(chosen.damping)


def budgets(size, n_outputs):
    """One of every kind."""
    return [
        Budget(size // 3),
        Budget(size // 3, per_output=True),
        Budget(np.arange(n_outputs) % 4 + 1),
        Budget(size // 2, pattern=(2, 4)),
    ]


@pytest.mark.parametrize("name", REFITTED)
def test_answers_are_refitted(name):
    problem = small_layer(2, 12, 5, shift=1.0)
    prune, data = prepared(name, problem, damping=0.05)
    for budget in budgets(60, 5):
        W = prune(budget)
        np.testing.assert_allclose(refit_mask(data, W != 0), W, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("name", ITERATIVE)
def test_an_answer_does_not_depend_on_the_budgets_before(name):
    problem = small_layer(3, 12, 5, shift=1.0)
    prune, _ = prepared(name, problem)
    first = [prune(budget).tobytes() for budget in budgets(60, 5)]
    again = [prune(budget).tobytes() for budget in reversed(budgets(60, 5))]
    assert first == again[::-1]


@pytest.mark.parametrize("name", ITERATIVE)
def test_counts_are_met_per_output(name):
    problem = small_layer(4, 12, 5)
    prune, _ = prepared(name, problem)
    for counts in (np.array([0, 12, 3, 1, 7]), np.zeros(5, int), np.full(5, 12)):
        np.testing.assert_array_equal(np.count_nonzero(prune(Budget(counts)), axis=0), counts)


@pytest.mark.parametrize("name", REFITTED)
@pytest.mark.parametrize("seed", range(8))
def test_a_truth_that_magnitudes_show_is_found(name, seed):
    # What stays of magnitude pruning with a refit is then without error, so nothing may be worse.
    problem, truth = planted_layer(seed, noise=0.15)
    mask = keep_largest(np.abs(problem.W), Budget(np.count_nonzero(truth)))
    np.testing.assert_array_equal(mask, truth != 0)
    solution = solve(problem, name, nnz=np.count_nonzero(truth), damping=0.0)
    np.testing.assert_allclose(solution.W, truth, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("name", ITERATIVE)
@pytest.mark.parametrize("seed", range(4))
def test_behind_pruned_layers_the_target_counts(name, seed):
    # The wrong target is what the trained weights make of these inputs.
    problem, truth = planted_layer(seed, noise=0.5)
    wrong = problem.replace(Y=problem.X @ problem.W)
    settings = {"nnz": np.count_nonzero(truth), "damping": 0.01}
    right = relative_error(problem, solve(problem, name, **settings).W)
    assert right < 0.5 * relative_error(problem, solve(wrong, name, **settings).W)


@pytest.mark.parametrize("name", REFITTED)
def test_a_singular_layer_names_the_remedy(name):
    problem = small_layer(5, 9, 2).samples(slice(5))
    with pytest.raises(ProblemError, match="set damping above 0"):
        solve(problem, name, sparsity=0.2, damping=0.0)
    assert solve(problem, name, sparsity=0.2).nnz == 14
    # Supports of fewer inputs than samples need no damping.
    assert solve(problem, name, sparsity=0.8, scope="output", damping=0.0).nnz == 4
