"""The exact optimal brain surgeon: every removal against enumeration, and the trace it leaves."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettrim_solver import Problem, solve
from nettrim_solver.exceptions import ProblemError
from nettrim_solver.solution import RemovalTrace
from nettrim_solver.solvers import exact_obs, pruning_kernels
from nettrim_solver.solvers.obs import inverse_gram
from nettrim_solver.solvers.pruning import Budget

from .brute_force import data_of, least_squares, rows_of, small_layer
from .tolerances import TOLERANCE

CLOSE = TOLERANCE["removals"]


def surgeon(problem, damping=0.0, pattern=None):
    return exact_obs.prepare(
        data_of(problem, 0.0), exact_obs.Settings(damping=damping, pattern=pattern)
    )


@st.composite
def layers(draw):
    """Own targets and those of another layer (a cascade), with and without damping."""
    problem = small_layer(
        draw(st.integers(0, 2**20)), draw(st.integers(1, 7)), draw(st.integers(1, 3)),
        shift=draw(st.sampled_from([0.0, 0.5])),
    )  # fmt: skip
    return problem, draw(st.sampled_from([0.0, 0.1]))


# Every removal ---------------------------------------------------------------------------------


@given(layers())
def test_every_removal_is_the_best_single_one(case):
    problem, damping = case
    trace = surgeon(problem, damping).trace
    X, T = rows_of(problem, damping)
    for j, t in enumerate(T.T):
        left = list(range(problem.n_inputs))
        for removed, loss in zip(trace.order[:, j], trace.output_losses[1:, j], strict=True):
            losses = {
                i: least_squares(X, t, [k for k in left if k != i])[0] for i in left
            }  # fmt: skip
            scale = CLOSE * (t @ t)
            assert losses[removed] <= min(losses.values()) + scale
            assert abs(loss - losses[removed]) <= scale
            left.remove(removed)
        assert not left


@given(layers())
def test_what_stays_is_refitted_after_every_removal(case):
    problem, damping = case
    prune = surgeon(problem, damping)
    X, T = rows_of(problem, damping)
    for left in range(problem.n_inputs + 1):
        W = prune(Budget(np.full(problem.n_outputs, left)))
        for j, t in enumerate(T.T):
            support = np.sort(prune.trace.order[problem.n_inputs - left :, j])
            _, w = least_squares(X, t, support)
            np.testing.assert_allclose(W[:, j], w, rtol=0, atol=CLOSE * np.abs(problem.W).max())


@given(layers())
def test_increments_sum_to_the_loss(case):
    problem, damping = case
    trace = surgeon(problem, damping).trace
    _, T = rows_of(problem, damping)
    assert np.all(trace.increments >= 0)
    np.testing.assert_allclose(trace.output_losses[-1], np.sum(T**2, axis=0), rtol=CLOSE)
    np.testing.assert_allclose(trace.losses[-1], np.sum(T**2), rtol=CLOSE)
    if not np.any(problem.Y - problem.X @ problem.W):
        assert np.all(trace.base <= CLOSE * np.sum(T**2, axis=0))


@given(st.integers(0, 2**20), st.integers(1, 3), st.sampled_from([(12, 12), (4, 2), (3, 1)]))
def test_the_kernel_is_the_recursion_on_the_whole_inverse(seed, M, tiles):
    group, quota = tiles
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((20, 12))
    H, W = A.T @ A, rng.standard_normal((M, 12))
    steps = 12 // group * quota
    order, increments = np.empty((M, steps), np.int32), np.empty((M, steps))
    pruning_kernels.trace_removals(
        inverse_gram(H), 1 / np.diag(H), W, group, quota, order, increments
    )
    for j in range(M):
        w, V = W[j].copy(), np.linalg.inv(H)
        active, lost = np.ones(12, bool), np.zeros(12 // group, int)
        for t in range(steps):
            with np.errstate(divide="ignore", invalid="ignore"):
                cost = np.where(
                    active & (lost[np.arange(12) // group] < quota), w**2 / np.diag(V), np.inf
                )
            p = np.argmin(cost)
            assert order[j, t] == p
            np.testing.assert_allclose(increments[j, t], cost[p], rtol=CLOSE)
            w -= V[:, p] * (w[p] / V[p, p])
            V -= np.outer(V[:, p], V[p]) / V[p, p]
            active[p], lost[p // group] = False, lost[p // group] + 1
            w[~active] = 0.0


def test_a_cascade_starts_from_the_least_squares_weights():
    # The target is that of sparse weights; the trained ones lie elsewhere, and no zero of theirs.
    rng = np.random.default_rng(5)
    planted = np.where(rng.random((10, 4)) < 0.4, rng.standard_normal((10, 4)), 0.0)
    X = rng.standard_normal((60, 10))
    trained = planted + rng.standard_normal(planted.shape)
    problem = Problem(X, X @ planted, trained, activation="identity", intercept=False)
    solution = solve(problem, "exact_obs", nnz=np.count_nonzero(planted), damping=0.0)
    np.testing.assert_allclose(solution.W, planted, rtol=0, atol=CLOSE)
    assert np.array_equal(solution.W != 0, planted != 0)


# Zeros, patterns, ties -------------------------------------------------------------------------


def test_zeros_of_the_trained_weights_leave_first_and_stay_zero():
    problem = small_layer(1, 8, 3)
    W = np.where(np.arange(24).reshape(8, 3) % 3 == 0, 0.0, problem.W)
    W[5] = 0.0
    X = problem.X.copy()
    X[:, 5] = 0.0  # an input that carries no signal
    problem = Problem(X, X @ W, W, activation="identity", intercept=False)
    prune = surgeon(problem, 0.01)
    for j in range(3):
        zeros = np.flatnonzero(W[:, j] == 0)
        assert set(prune.trace.order[: len(zeros), j]) == set(zeros)
        assert not prune.trace.increments[: len(zeros), j].any()
    for keep in (24, 20, 16, 9):
        answer = prune(Budget(keep))
        assert np.count_nonzero(answer) == min(keep, np.count_nonzero(W))
        assert not answer[W == 0].any()
    np.testing.assert_array_equal(prune(Budget(24)), W)


@given(st.integers(0, 2**20), st.sampled_from([(2, 4), (1, 4), (3, 6), (1, 2), (11, 12)]))
def test_patterns_hold_and_are_filled_greedily(seed, pattern):
    kept, group = pattern
    problem = small_layer(seed, 12, 2)
    prune = surgeon(problem, 0.01, f"{kept}:{group}")
    W = prune(Budget(12 // group * kept * 2, pattern=pattern))
    assert np.all(np.count_nonzero(W.reshape(12 // group, group, 2), axis=1) == kept)
    X, T = rows_of(problem, 0.01)
    for j, t in enumerate(T.T):
        left = set(range(12))
        for removed in prune.trace.order[:, j]:
            full = [
                g
                for g in range(12 // group)
                if len(left & set(range(g * group, (g + 1) * group))) == kept
            ]
            losses = {
                i: least_squares(X, t, sorted(left - {i}))[0]
                for i in left
                if i // group not in full
            }
            assert losses[removed] <= min(losses.values()) + CLOSE * (t @ t)
            left.remove(removed)
        np.testing.assert_allclose(W[:, j], least_squares(X, t, sorted(left))[1], atol=1e-7)


def test_a_budget_may_ask_for_a_pattern_that_was_not_traced():
    problem = small_layer(3, 12, 3)
    prune = surgeon(problem, 0.01)
    budget = Budget(18, pattern=(2, 4))
    np.testing.assert_array_equal(prune(budget), surgeon(problem, 0.01, "2:4")(budget))
    assert prune.trace.pattern is None


def test_of_equal_costs_the_larger_index_goes():
    problem = Problem(
        np.eye(6), np.ones((6, 2)), np.ones((6, 2)), activation="identity", intercept=False
    )
    trace = surgeon(problem).trace
    np.testing.assert_array_equal(trace.order, np.arange(6)[::-1, None].repeat(2, axis=1))
    np.testing.assert_array_equal(trace.counts(7), [2, 3][::-1])


def test_a_singular_layer_names_the_remedy():
    problem = small_layer(4, 9, 2).samples(slice(5))
    with pytest.raises(ProblemError, match="damping"):
        solve(problem, "exact_obs", sparsity=0.5, damping=0.0)
    assert solve(problem, "exact_obs", sparsity=0.5).nnz == 9


# Budgets from one trace ------------------------------------------------------------------------


def by_hand():
    """Two outputs, three inputs; the first output's second removal is cheaper than its first."""
    return RemovalTrace(
        order=np.array([[2, 0], [0, 1], [1, 2]], np.int32),
        increments=np.array([[3.0, 1.0], [2.0, 5.0], [9.0, 6.0]]),
        base=np.array([0.5, 0.0]), n_inputs=3, pattern=None, fingerprint=np.zeros(5),
    )  # fmt: skip


def test_the_smallest_increments_are_counted():
    trace = by_hand()
    # In the order 1 (output 1), 2 (0), 3 (0), 5 (1), 6 (1), 9 (0); each buys its output's next.
    expected = [[0, 0], [0, 1], [1, 1], [2, 1], [2, 2], [2, 3], [3, 3]]
    for removals, counts in enumerate(expected):
        np.testing.assert_array_equal(trace.counts(6 - removals), counts)
        loss = 0.5 + trace.increments[: counts[0], 0].sum() + trace.increments[: counts[1], 1].sum()
        assert trace.losses[removals] == loss
    np.testing.assert_array_equal(trace.output_losses, [[0.5, 0], [3.5, 1], [5.5, 6], [14.5, 12]])
    np.testing.assert_array_equal(trace.counts(3, per_output=True), [2, 1])
    np.testing.assert_array_equal(trace.counts(4, per_output=True), [1, 1])


def test_the_most_removals_within_a_radius():
    trace = by_hand()
    np.testing.assert_array_equal(trace.counts_within(np.sqrt(4.6)), [1, 1])
    np.testing.assert_array_equal(trace.counts_within(np.sqrt(6.6)), [2, 1])
    np.testing.assert_array_equal(trace.counts_within(np.sqrt([3.6, 11.9])), [1, 2])
    np.testing.assert_array_equal(trace.counts_within(100.0), [3, 3])
    with pytest.raises(ProblemError, match="radius must be at least 0.7"):
        trace.counts_within(0.1)
    with pytest.raises(ProblemError, match="radius must be at least"):
        trace.counts_within([0.1, 5.0])


def test_what_stays_is_what_was_not_removed():
    expected = np.array([[False, False], [True, True], [False, True]])
    np.testing.assert_array_equal(by_hand().support(np.array([2, 1])), expected)


def test_a_trace_ends_where_its_pattern_does():
    trace = surgeon(small_layer(6, 8, 2), 0.01, "1:4").trace
    np.testing.assert_array_equal(trace.counts(4), [6, 6])
    for nnz in (3, 17):
        with pytest.raises(ProblemError, match=f"nnz must lie between 4 and 16.*{nnz}"):
            trace.counts(nnz)


@given(layers(), st.floats(0.0, 1.0))
def test_the_losses_of_a_trace_are_those_of_its_answers(case, share):
    problem, damping = case
    prune = surgeon(problem, damping)
    size = problem.W.size
    nnz = round(share * size)
    X, T = rows_of(problem, damping)
    W = prune(Budget(nnz))
    assert np.count_nonzero(W) == nnz
    found = np.sum((T - X @ W) ** 2)
    np.testing.assert_allclose(
        found, prune.trace.losses[size - nnz], rtol=0, atol=CLOSE * np.sum(T**2)
    )
    per_output = np.count_nonzero(prune(Budget(nnz, per_output=True)), axis=0)
    assert per_output.sum() == nnz and np.ptp(per_output) <= 1


@pytest.mark.parametrize("radius", ["joint", "per_output"])
def test_a_linear_radius_is_used_up_to_the_last_removal(radius):
    # Undamped, and with a linear target, the trace knows the answer of the search.
    problem = small_layer(7, 16, 6).replace(tolerance=0.3, radius=radius)
    solution = solve(problem, "exact_obs", damping=0.0)
    counts = solution.trace.counts_within(problem.epsilon)
    np.testing.assert_array_equal(np.count_nonzero(solution.W == 0, axis=0), counts)
    assert str(solution.status) == "feasible" and 0 < counts.sum() < 96


def test_a_box_leaves_more_to_remove_than_its_linear_target():
    layer = small_layer(8, 16, 6)
    problem = layer.replace(Y=np.maximum(layer.Y, 0), activation="relu", tolerance=0.3)
    solution = solve(problem, "exact_obs", damping=0.0)
    assert str(solution.status) == "feasible"
    assert np.sum(solution.W == 0) > solution.trace.counts_within(problem.epsilon).sum()


def test_remembered_answers_change_nothing():
    problem = small_layer(9, 10, 5)
    prune = surgeon(problem, 0.01)
    budgets = [Budget(k) for k in (30, 25, 26, 25, 30, 28)] + [Budget(np.arange(5)), Budget(27)]
    for budget in budgets:
        answer = prune(budget)
        np.testing.assert_array_equal(answer, surgeon(problem, 0.01)(budget))
        answer[:] = np.nan  # what was given away must not come back


# Warm starts, threads, compiled or not ---------------------------------------------------------


def test_a_warm_start_reuses_the_trace(monkeypatch):
    problem = small_layer(10, 12, 5)
    first = solve(problem, "exact_obs", sparsity=0.5)
    cold = solve(problem, "exact_obs", sparsity=0.8)
    monkeypatch.setattr(pruning_kernels, "trace_removals", None)
    warm = solve(problem, "exact_obs", sparsity=0.8, warm_start=first)
    np.testing.assert_array_equal(warm.W, cold.W)
    assert warm.warnings == () and warm.trace is first.trace
    assert solve(problem.replace(tolerance=0.2), "exact_obs", warm_start=first).nnz < 60


@pytest.mark.parametrize(
    "change",
    [
        lambda p: (p.replace(W=p.W * 1.0001, Y=p.X @ (p.W * 1.0001)), {}),
        lambda p: (p.replace(Y=p.Y + 1e-3), {}),
        lambda p: (p.samples(slice(30)), {}),
        lambda p: (p, {"damping": 0.02}),
        lambda p: (p, {"pattern": "2:4", "sparsity": None}),
        lambda p: (p.replace(intercept=True), {}),
    ],
    ids=["W", "target", "samples", "damping", "pattern", "intercept"],
)
def test_a_trace_of_other_data_is_not_used(change):
    problem = small_layer(11, 12, 5)
    warm_start = solve(problem, "exact_obs", sparsity=0.5)
    other, settings = change(problem)
    settings = {"sparsity": 0.7, **settings}
    cold = solve(other, "exact_obs", **settings)
    warm = solve(other, "exact_obs", warm_start=warm_start, **settings)
    np.testing.assert_array_equal(warm.W, cold.W)
    assert "traced anew" in warm.warnings[0] and warm.trace is not warm_start.trace


def test_a_warm_start_without_trace_is_no_obstacle():
    problem = small_layer(12, 6, 2)
    warm_start = solve(problem, "magnitude", sparsity=0.5)
    assert warm_start.trace is None
    solution = solve(problem, "exact_obs", sparsity=0.5, warm_start=warm_start)
    assert solution.warnings == () and solution.trace is not None


def test_threads_change_nothing(monkeypatch):
    data = data_of(small_layer(13, 20, 9), 0.01)
    alone = exact_obs.trace_removals(data, data.W)
    monkeypatch.setattr(exact_obs, "CHUNK", 20**3 * 2)  # two outputs at a time
    together = exact_obs.trace_removals(data, data.W, n_threads=2)
    for name in ("order", "increments", "base", "fingerprint"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(together, name))


def test_a_trace_is_its_own_and_read_only():
    order = np.array([[1], [0]], np.int32)
    trace = dataclasses.replace(
        by_hand(), order=order, increments=np.ones((2, 1)), base=np.zeros(1)
    )
    order[:] = 7
    np.testing.assert_array_equal(trace.order, [[1], [0]])
    for name in ("order", "increments", "base", "fingerprint"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(trace, name)[:1] = 0


SCRIPT = """
import sys, numpy as np
from nettrim_solver import solve
from tests.brute_force import small_layer
problem = small_layer(14, 8, 3)
answers = {s: solve(problem, s, sparsity=0.5).W for s in ("obs", "exact_obs", "sparsegpt")}
np.savez(sys.argv[1], **answers)
"""


def test_the_kernels_run_uncompiled(tmp_path):
    path = tmp_path / "answers.npz"
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", SCRIPT, str(path)], check=True, env=environment, cwd=root)
    problem = small_layer(14, 8, 3)
    with np.load(path) as answers:
        for solver, W in answers.items():
            compiled = solve(problem, solver, sparsity=0.5).W
            np.testing.assert_array_equal(W == 0, compiled == 0)
            np.testing.assert_allclose(W, compiled, rtol=CLOSE)
