"""The layer-wise optimal brain surgeon against exact deletions and its definition."""

import numpy as np
import pytest
import scipy.linalg as sl
from hypothesis import given
from hypothesis import strategies as st

from nettrim_solver import Problem, solve
from nettrim_solver.exceptions import ProblemError
from nettrim_solver.solvers import obs
from nettrim_solver.solvers.pruning import Budget

from .brute_force import data_of, least_squares, rows_of, small_layer
from .tolerances import TOLERANCE

CLOSE = TOLERANCE["removals"]
SURGEONS = ["obs", "exact_obs", "sparsegpt"]


def pruner(problem, damping=0.0):
    return obs.prepare(data_of(problem, 0.0), obs.Settings(damping=damping))


@st.composite
def layers(draw):
    problem = small_layer(
        draw(st.integers(0, 2**20)), draw(st.integers(1, 7)), draw(st.integers(1, 3)),
        shift=draw(st.sampled_from([0.0, 0.5])),
    )  # fmt: skip
    return problem, draw(st.sampled_from([0.0, 0.1]))


@given(layers())
def test_one_removal_is_the_best_deletion_with_the_rest_refitted(case):
    problem, damping = case
    X, T = rows_of(problem, damping)
    inputs, outputs = range(problem.n_inputs), range(problem.n_outputs)
    full = [least_squares(X, t, list(inputs)) for t in T.T]
    increases = np.array([
        [least_squares(X, T[:, j], [k for k in inputs if k != i])[0] - full[j][0] for j in outputs]
        for i in inputs
    ])  # fmt: skip
    i, j = np.unravel_index(np.argmin(increases), increases.shape)
    W = pruner(problem, damping)(Budget(problem.W.size - 1))
    expected = np.column_stack([w for _, w in full])
    expected[:, j] = least_squares(X, T[:, j], [k for k in inputs if k != i])[1]
    np.testing.assert_allclose(W, expected, rtol=0, atol=CLOSE * np.abs(problem.W).max())
    assert W[i, j] == 0.0


@given(layers(), st.floats(0.0, 1.0), st.booleans())
def test_all_removals_are_one_pass_with_the_first_inverse(case, share, per_output):
    problem, damping = case
    N, M = problem.W.shape
    X, T = rows_of(problem, damping)
    inverse = np.linalg.inv(X.T @ X)
    W = np.linalg.lstsq(X, T, rcond=None)[0]
    saliency = W**2 / np.diag(inverse)[:, None]
    keep = round(share * W.size)
    found = pruner(problem, damping)(Budget(keep, per_output))
    assert np.count_nonzero(found) == keep
    assert not per_output or np.ptp(np.count_nonzero(found, axis=0)) <= 1
    if not per_output:
        assert keep in (0, W.size) or saliency[found == 0].max() <= saliency[found != 0].min()
    # The running weights of the pass solve a triangular system, in the order of the saliencies.
    expected = W.copy()
    for j in range(M):
        gone = [i for i in np.argsort(saliency[:, j]) if found[i, j] == 0]
        if gone:
            steps = sl.solve_triangular(inverse[np.ix_(gone, gone)], W[gone, j], lower=True)
            expected[:, j] -= inverse[:, gone] @ steps
            expected[gone, j] = 0.0
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE * max(1, np.abs(expected).max()))


def test_saliencies_are_computed_once():
    prune = pruner(small_layer(2, 9, 4), 0.01)
    masks = [prune(Budget(keep)) != 0 for keep in range(37)]
    assert all(np.all(small <= large) for small, large in zip(masks, masks[1:], strict=False))


def test_zeros_of_the_trained_weights_leave_first_and_move_nothing():
    problem = small_layer(3, 8, 3)
    W = np.where(np.arange(24).reshape(8, 3) % 3 == 0, 0.0, problem.W)
    problem = Problem(problem.X, problem.X @ W, W, activation="identity", intercept=False)
    for nnz in (24, 20, 16):
        np.testing.assert_array_equal(solve(problem, "obs", nnz=nnz).W, W)
    assert solve(problem, "obs", nnz=15).nnz == 15


def test_a_singular_layer_names_the_remedy():
    problem = small_layer(4, 9, 2).samples(slice(5))
    with pytest.raises(ProblemError, match="damping"):
        solve(problem, "obs", sparsity=0.5, damping=0.0)
    assert solve(problem, "obs", sparsity=0.5).nnz == 9


@pytest.mark.parametrize("solver", SURGEONS)
def test_the_inverse_is_of_the_damped_samples(solver):
    # Damping is rows under X: the same answer with the rows written out, and no damping.
    problem = small_layer(5, 8, 3)
    X, T = rows_of(problem, 0.3)
    written = Problem(X, T, problem.W, activation="identity", intercept=False)
    damped = solve(problem, solver, sparsity=0.5, damping=0.3)
    np.testing.assert_allclose(
        damped.W, solve(written, solver, sparsity=0.5, damping=0.0).W, rtol=0, atol=CLOSE
    )


# All surgeons ----------------------------------------------------------------------------------


@given(st.integers(0, 2**20), st.floats(0.1, 0.9))
def test_with_a_diagonal_hessian_all_agree(seed, sparsity):
    # Orthogonal inputs: no weight can stand in for another, so nothing is repaired.
    rng = np.random.default_rng(seed)
    X = np.linalg.qr(rng.standard_normal((20, 8)))[0] * rng.uniform(0.2, 5.0, 8)
    W = rng.standard_normal((8, 3))
    problem = Problem(X, X @ W, W, activation="identity", intercept=False)
    settings = {"sparsity": sparsity, "damping": 0.0, "scope": "layer"}
    reference = solve(problem, "obd", **settings).W
    np.testing.assert_array_equal(solve(problem, "wanda", **settings).W, reference)
    scores = np.abs(W) * np.linalg.norm(X, axis=0)[:, None]
    assert scores[reference == 0].max(initial=0) <= scores[reference != 0].min()
    for solver in SURGEONS:
        found = solve(problem, solver, **settings).W
        np.testing.assert_array_equal(found == 0, reference == 0)
        np.testing.assert_allclose(found, reference, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("solver", SURGEONS)
@pytest.mark.parametrize("budget", [{"sparsity": 0.6}, {"pattern": "2:4"}])
def test_units_of_the_inputs_do_not_matter(solver, budget):
    problem = small_layer(6, 12, 4)
    units = np.geomspace(1e-3, 1e3, 12)
    other = problem.replace(X=problem.X * units, W=problem.W / units[:, None])
    first = solve(problem, solver, damping=0.0, **budget).W
    second = solve(other, solver, damping=0.0, **budget).W * units[:, None]
    np.testing.assert_array_equal(first == 0, second == 0)
    np.testing.assert_allclose(second, first, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("solver", SURGEONS)
def test_behind_pruned_layers_the_target_is_met_again(solver):
    # The target is that of sparse weights; the trained ones lie elsewhere, and no zero of theirs.
    rng = np.random.default_rng(7)
    planted = np.where(rng.random((10, 4)) < 0.4, rng.standard_normal((10, 4)), 0.0)
    X = rng.standard_normal((60, 10))
    trained = planted + rng.standard_normal(planted.shape)
    problem = Problem(X, X @ planted, trained, activation="identity", intercept=False)
    solution = solve(problem, solver, nnz=np.count_nonzero(planted), damping=0.0)
    np.testing.assert_array_equal(solution.W != 0, planted != 0)
    np.testing.assert_allclose(solution.W, planted, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("solver", SURGEONS)
def test_surgeons_are_deterministic_and_leave_their_input_alone(solver):
    problem = small_layer(8, 12, 4)
    X, W = problem.X.copy(), problem.W.copy()
    first, second = (solve(problem, solver, sparsity=0.5) for _ in range(2))
    np.testing.assert_array_equal(first.W, second.W)
    np.testing.assert_array_equal(problem.X, X)
    np.testing.assert_array_equal(problem.W, W)
    everything = solve(problem, solver, sparsity=0.0)
    np.testing.assert_array_equal(everything.W, W)
    assert not np.shares_memory(everything.W, problem.W)


def test_the_more_exact_the_surgeon_the_smaller_the_error():
    rng = np.random.default_rng(9)
    mix = np.linalg.cholesky(0.9 ** np.abs(np.subtract.outer(np.arange(48), np.arange(48))))
    X = rng.standard_normal((400, 48)) @ mix.T
    W = rng.standard_normal((48, 40))
    problem = Problem(X, X @ W, W, activation="identity", intercept=False)
    for sparsity in (0.5, 0.7, 0.9):
        errors = [
            solve(problem, solver, sparsity=sparsity).certificate.distance
            for solver in ("exact_obs", "sparsegpt", "obs", "magnitude")
        ]
        assert errors == sorted(errors)
