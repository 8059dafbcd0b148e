"""Refits: values against least squares and scipy, zeros that stay, errors that never rise."""

import dataclasses
from itertools import product

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from nettrim_solver import Problem, Status, certify, refit, solve, swaps
from nettrim_solver.exceptions import ProblemError, SettingsError
from nettrim_solver.refine import descent
from nettrim_solver.solvers.box_fit import RowGram, fit_box

from .tolerances import TOLERANCE


def excess(problem, W, b=None):
    lower, upper = problem.box()
    Z = problem.X @ W + (0.0 if b is None else b)
    return Z - np.clip(Z, lower, upper)


def pull_strength(X, damping, centred):
    """delta, by its definition: damping times the mean of diag(X'X)."""
    X = X - X.mean(axis=0) if centred else X
    return damping * np.mean(np.sum(X**2, axis=0))


def least_squares(problem, mask, T, damping=0.0, intercept=True):
    """Weights and intercepts of every support by lstsq, the pull as appended rows."""
    N, M = mask.shape
    delta = pull_strength(problem.X, damping, intercept)
    W, b = np.zeros((N, M)), np.zeros(M)
    for j in range(M):
        kept = np.flatnonzero(mask[:, j])
        pull = np.sqrt(delta) * np.eye(len(kept))
        ones = np.ones((len(T), int(intercept)))
        A = np.block([[problem.X[:, kept], ones], [pull, np.zeros((len(kept), int(intercept)))]])
        anchor = np.zeros(len(kept)) if problem.W is None else problem.W[kept, j]
        right = np.append(T[:, j], np.sqrt(delta) * anchor)
        found = np.linalg.lstsq(A, right, rcond=None)[0]
        W[kept, j] = found[: len(kept)]
        b[j] = found[len(kept) :].sum()
    return W, b


@st.composite
def layers(draw):
    """X, W, b, a mask, and a box of points, half-lines, intervals and free rows."""
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    P, N, M = draw(st.integers(12, 40)), draw(st.integers(1, 8)), draw(st.integers(1, 3))
    X = rng.standard_normal((P, N)) + rng.standard_normal(N)
    W, b = rng.standard_normal((N, M)), rng.standard_normal(M)
    mask = rng.random((N, M)) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    Z = X @ W + b + draw(st.sampled_from([0.0, 1.0])) * rng.standard_normal((P, M))
    kind = rng.integers(5, size=(P, M))
    lower = np.where((kind == 1) | (kind == 3), -np.inf, Z)
    upper = np.where((kind == 2) | (kind == 3), np.inf, Z + np.where(kind == 4, 1.0, 0.0))
    return X, W, b, mask, lower, upper


# The linear target ------------------------------------------------------------------------------


@given(layers(), st.sampled_from([0.0, 0.01, 1.0]), st.booleans())
def test_linear_refit_is_least_squares(layer, damping, intercept):
    X, W, b, mask, *_ = layer
    trained = {"b": b} if intercept else {}
    T = X @ W + (b if intercept else 0.0)
    problem = Problem(X, T, W, activation="identity", intercept=intercept, **trained)
    found = refit(problem, mask, damping=damping)
    expected, constant = least_squares(problem, mask, T, damping, intercept)
    np.testing.assert_allclose(found.W, expected, atol=TOLERANCE["refit"])
    assert not np.any(found.W[~mask])
    if intercept:
        np.testing.assert_allclose(found.b, constant, atol=TOLERANCE["refit"])
    else:
        assert found.b is None


def test_the_intercept_can_be_kept(layer):
    problem = Problem(layer.X, layer.Y, layer.W, layer.b)
    pruned = dataclasses.replace(solve(problem, "magnitude", nnz=12), b=layer.b + 1.0)
    T = layer.X @ layer.W + layer.b
    for damping in (0.0, 0.1):
        kept = refit(problem, pruned, damping=damping, intercept="keep")
        np.testing.assert_array_equal(kept.b, pruned.b)
        expected, _ = least_squares(problem, pruned.W != 0, T - pruned.b, damping, False)
        np.testing.assert_allclose(kept.W, expected, atol=TOLERANCE["refit"])
    solved = refit(problem, pruned, damping=0.0)
    linear = [np.linalg.norm(layer.X @ s.W + s.b - T) for s in (solved, kept)]
    assert linear[0] < linear[1]


def test_in_a_cascade_the_target_is_the_original_layers(layer):
    inputs = layer.X + 0.3 * np.random.default_rng(0).standard_normal(layer.X.shape)
    Z = layer.X @ layer.W + layer.b
    problem = Problem(inputs, layer.Y, layer.W, layer.b, Z=Z)
    pruned = solve(problem, "magnitude", nnz=16)
    found = refit(problem, pruned, damping=0.0)
    expected, constant = least_squares(problem, pruned.W != 0, Z)
    np.testing.assert_allclose(found.W, expected, atol=TOLERANCE["refit"])
    np.testing.assert_allclose(found.b, constant, atol=TOLERANCE["refit"])


def test_the_target_without_trained_weights(layer):
    Z = layer.X @ layer.W
    mask = np.random.default_rng(1).random(layer.W.shape) < 0.5
    by_box = Problem(layer.X, lower=Z, upper=Z)
    stored = Problem(layer.X, np.maximum(Z, 0), Z=Z)
    expected, _ = least_squares(by_box, mask, Z)
    for problem in (by_box, stored):
        np.testing.assert_allclose(refit(problem, mask).W, expected, atol=TOLERANCE["refit"])
    unknown = Problem(layer.X, np.maximum(Z, 0))
    with pytest.raises(ProblemError, match="give the problem W or Z, or use target='box'"):
        refit(unknown, mask)
    assert refit(unknown, mask, "box").certificate.distance > 0
    for problem in (by_box, unknown):
        with pytest.raises(SettingsError, match="damping must be 0 for a problem without W"):
            refit(problem, mask, "box", damping=0.1)


# The target box ---------------------------------------------------------------------------------


@given(layers(), st.sampled_from([0.0, 0.05]), st.booleans())
def test_box_refit_is_stationary_and_no_worse_than_scipy(layer, damping, intercept):
    X, W, b, mask, lower, upper = layer
    problem = Problem(X, lower=lower, upper=upper, W=W, intercept=intercept)
    found = refit(problem, mask, "box", damping=damping)
    delta = pull_strength(X, damping, intercept)
    E = excess(problem, found.W, found.b)
    slopes = X.T @ E + delta * (found.W - W)
    size = np.linalg.norm(X) * np.linalg.norm(np.clip(0.0, lower, upper)) + delta * np.abs(W).max()
    assert np.abs(slopes[mask]).max(initial=0.0) <= TOLERANCE["box_slope"] * (1 + size)
    if intercept:
        assert np.abs(E.sum(axis=0)).max() <= TOLERANCE["box_slope"] * (1 + size)
    assert not np.any(found.W[~mask])

    def objective(w, j, kept):
        z = X[:, kept] @ w[: len(kept)] + w[len(kept) :].sum()
        e = z - np.clip(z, lower[:, j], upper[:, j])
        pulled = w[: len(kept)] - W[kept, j]
        slope = np.append(X[:, kept].T @ e + delta * pulled, [e.sum()] * intercept)
        return e @ e + delta * pulled @ pulled, 2 * slope

    for j in range(W.shape[1]):
        kept = np.flatnonzero(mask[:, j])
        w = np.append(found.W[kept, j], [found.b[j]] if intercept else [])
        if len(w):
            best = minimize(objective, np.zeros(len(w)), (j, kept), "BFGS", jac=True).fun
            value = objective(w, j, kept)[0]
            assert value <= best + TOLERANCE["refit"] * (1 + best)


@given(layers(), st.booleans())
def test_box_refit_never_raises_the_distance(layer, intercept):
    X, W, _, mask, lower, upper = layer
    problem = Problem(X, lower=lower, upper=upper, W=W, intercept=intercept)
    start = np.where(mask, W, 0.0)
    for solve_or_keep in ("solve", "keep"):
        found = refit(problem, start, "box", damping=0.0, intercept=solve_or_keep)
        before = certify(problem, start).distances
        assert np.all(found.certificate.distances <= before * (1 + TOLERANCE["norm"]))
        again = refit(problem, found, "box", damping=0.0, intercept=solve_or_keep)
        np.testing.assert_allclose(
            again.certificate.distances, found.certificate.distances, atol=TOLERANCE["refit"]
        )
        assert again.iterations.max(initial=0) <= 1


def test_a_box_of_points_makes_both_targets_equal(layer):
    problem = Problem(layer.X, layer.X @ layer.W + layer.b, layer.W, layer.b, activation="identity")
    pruned = solve(problem, "magnitude", nnz=14)
    for options in product((0.0, 0.01), ("solve", "keep")):
        settings_ = dict(zip(("damping", "intercept"), options, strict=True))
        linear, box = (refit(problem, pruned, target, **settings_) for target in ("linear", "box"))
        np.testing.assert_allclose(box.W, linear.W, atol=TOLERANCE["refit"])
        np.testing.assert_allclose(box.b, linear.b, atol=TOLERANCE["refit"])


def test_each_target_has_the_smaller_error_of_its_own_kind(layer):
    problem = Problem(layer.X, layer.Y, layer.W, layer.b)
    pruned = solve(problem, "magnitude", nnz=16)
    linear, box = (refit(problem, pruned, target, damping=0.0) for target in ("linear", "box"))
    T = layer.X @ layer.W + layer.b
    assert box.certificate.distance < linear.certificate.distance < pruned.certificate.distance
    errors = [np.linalg.norm(layer.X @ s.W + s.b - T) for s in (linear, box)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("intercept", [False, True])
def test_sparse_inputs_give_the_same(layer, intercept):
    X = np.where(np.abs(layer.X) > 0.5, layer.X, 0.0)
    Y = np.clip(X @ layer.W, 0, 6)
    for target in ("linear", "box"):
        dense, sparse = (
            refit(
                Problem(form(X), Y, layer.W, activation="relu6", intercept=intercept),
                np.abs(layer.W) > 0.5, target,
            )
            for form in (np.asarray, sp.csr_array)
        )  # fmt: skip
        np.testing.assert_allclose(sparse.W, dense.W, atol=TOLERANCE["refit"])


def test_fewer_samples_than_weights(layer):
    X = layer.X[:5]
    problem = Problem(X, np.maximum(X @ layer.W, 0), layer.W, intercept=False)
    found = refit(problem, np.ones((8, 4), dtype=bool), "box", damping=0.0)
    assert found.certificate.distance <= TOLERANCE["refit"]
    assert np.abs(found.W).max() < 10 * np.abs(layer.W).max()
    damped = refit(problem, found, damping=0.01)
    np.testing.assert_allclose(damped.W, layer.W, atol=TOLERANCE["refit"])
    with pytest.raises(ProblemError, match="set damping above 0"):
        refit(problem, found, damping=0.0)


@given(st.integers(0, 2**20), st.integers(1, 30), st.integers(1, 6))
def test_row_grams_follow_their_rows(seed, P, n):
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((P, n))
    dense, sparse = RowGram(D), RowGram(sp.csr_array(D))
    rows = rng.random(P) < 0.5
    for share in (0.0, 0.1, 0.9, 0.1):
        rows = rows ^ (rng.random(P) < share)
        for gram in (dense, sparse):
            np.testing.assert_allclose(
                gram.of(rows), D[rows].T @ D[rows], atol=P * TOLERANCE["kernel_double"]
            )


def test_a_step_too_long_is_shortened():
    # Far from the box all rows pull, near it few: the full Newton step overshoots and cycles.
    rng = np.random.default_rng(3)
    found = 0
    for _ in range(300):
        D = rng.standard_normal((6, 2)) * np.exp(2 * rng.standard_normal((6, 1)))
        lower = np.full(6, -np.inf)
        upper = rng.standard_normal(6)
        fit = fit_box(D, (lower, upper), 30 * rng.standard_normal(2), np.zeros(2), np.zeros(2))
        slope = D.T @ fit.excess
        assert np.abs(slope).max() <= TOLERANCE["box_slope"] * 30 * np.sum(D**2)
        found = max(found, fit.steps)
    assert found > 3


# What holds for both ----------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["linear", "box"])
def test_what_is_returned(layer, target):
    epsilon = 10 * np.linalg.norm(layer.Y)
    for level, status in ((None, Status.PRUNED), (epsilon, Status.FEASIBLE)):
        problem = Problem(layer.X, layer.Y, layer.W, layer.b, epsilon=level)
        pruned = solve(problem, "magnitude", nnz=9)
        before = pruned.W.copy()
        found = refit(problem, pruned, target)
        assert found.status is status and set(found.statuses) == {status}
        assert found.solver == "magnitude+refit" and found.theta is None
        assert refit(problem, found, target).solver == "magnitude+refit+refit"
        assert refit(problem, found.W, target).solver == "refit"
        assert set(found.seconds) == {"gram", "refit", "certify", "total"}
        assert (found.iterations.sum() > 0) == (target == "box")
        np.testing.assert_array_equal(pruned.W, before)
        np.testing.assert_array_equal(found.W != 0, pruned.W != 0)
        np.testing.assert_array_equal(
            found.certificate.distances, certify(problem, found.W, found.b).distances
        )


@pytest.mark.parametrize("target", ["linear", "box"])
def test_any_solvers_answer_and_any_formulation(layer, target):
    for formulation in ("pooled", "strict", "penalised", "penalised_strict"):
        level = {"lambda_": 0.5} if formulation.startswith("pen") else {"tolerance": 0.3}
        problem = Problem(layer.X, layer.Y, layer.W, layer.b, formulation=formulation, **level)
        solution = solve(problem, n_threads=1)
        found = refit(problem, solution, target, damping=0.0)
        assert found.solver == "admm+refit"
        assert found.status in (Status.FEASIBLE, Status.PRUNED)
        assert found.nnz <= solution.nnz
        if target == "box":
            assert found.certificate.distance <= solution.certificate.distance


@pytest.mark.parametrize("target", ["linear", "box"])
def test_single_precision(layer, target):
    problem = Problem(layer.X, layer.Y, layer.W, layer.b)
    X, W, b, Y = (a.astype(np.float32) for a in layer)
    mask = np.abs(layer.W) > 0.5
    single, double = (refit(given, mask, target) for given in (Problem(X, Y, W, b), problem))
    assert single.W.dtype == single.b.dtype == np.float32
    np.testing.assert_allclose(single.W, double.W, rtol=1, atol=TOLERANCE["single_precision"])


@pytest.mark.parametrize("target", ["linear", "box"])
def test_inputs_without_signal(layer, target):
    X = layer.X.copy()
    X[:, 1], X[:, 4] = 0.0, 3.0
    mask = np.ones(layer.W.shape, dtype=bool)
    for intercept in (True, False):
        Y = np.maximum(X @ layer.W + (layer.b if intercept else 0.0), 0)
        trained = {"b": layer.b} if intercept else {}
        problem = Problem(X, Y, layer.W, intercept=intercept, **trained)
        found = refit(problem, mask, target)
        # A constant input is as good as an intercept, and only without one.
        assert not found.W[1].any() and found.W[4].any() != intercept
        assert found.certificate.distance <= TOLERANCE["refit"]
        kept = refit(problem, found, target, intercept="keep")
        assert kept.certificate.distance <= TOLERANCE["refit"]


def test_an_intercept_takes_over_from_constant_inputs(layer):
    X = layer.X.copy()
    X[:, 4] = 3.0
    problem = Problem(X, np.maximum(X @ layer.W + layer.b, 0), layer.W, layer.b)
    for refinement in (refit, swaps):
        # Out of time before the first output: nothing but the form of the answer changes.
        late = refinement(problem, layer.W, "box", time_limit=1e-9)
        assert not late.W[4].any()
        np.testing.assert_allclose(late.predict(X), X @ layer.W + layer.b, atol=TOLERANCE["refit"])


@pytest.mark.parametrize("target", ["linear", "box"])
def test_an_empty_support_leaves_the_intercept(layer, target):
    problem = Problem(layer.X, layer.Y, layer.W, layer.b)
    nothing = np.zeros_like(layer.W)
    found = refit(problem, nothing, target)
    assert found.nnz == 0
    T = layer.X @ layer.W + layer.b
    if target == "linear":
        np.testing.assert_allclose(found.b, T.mean(axis=0), atol=TOLERANCE["refit"])
    else:
        E = excess(problem, nothing, found.b)
        np.testing.assert_allclose(E.sum(axis=0), 0.0, atol=TOLERANCE["refit"])
    without = Problem(layer.X, layer.Y, layer.W, intercept=False)
    assert refit(without, nothing, target).b is None
    # The intercept of a solution of another problem does not count where there is none.
    np.testing.assert_array_equal(
        refit(without, dataclasses.replace(found, W=layer.W), target).W,
        refit(without, layer.W, target).W,
    )


@pytest.mark.parametrize("target", ["linear", "box"])
def test_units_do_not_matter(layer, target):
    problem = Problem(layer.X, layer.Y, layer.W, layer.b)
    other = Problem(1e5 * layer.X, 1e-3 * layer.Y, 1e-8 * layer.W, 1e-3 * layer.b)
    mask = np.abs(layer.W) > 0.5
    expected, found = (refit(p, mask, target) for p in (problem, other))
    np.testing.assert_allclose(1e8 * found.W, expected.W, atol=TOLERANCE["refit"])
    np.testing.assert_allclose(1e3 * found.b, expected.b, atol=TOLERANCE["refit"])


def test_threads_change_nothing(layer):
    problem = Problem(layer.X, layer.Y, layer.W, layer.b)
    mask = np.abs(layer.W) > 0.5
    for refinement, target in product((refit, swaps), ("linear", "box")):
        one, two = (refinement(problem, mask, target, n_threads=n) for n in (1, 2))
        np.testing.assert_array_equal(one.W, two.W)
        np.testing.assert_array_equal(one.b, two.b)
        assert (one.n_threads, two.n_threads) == (1, 2)


# Stops ------------------------------------------------------------------------------------------


def interrupted_at(call):
    """A kernel that works until Ctrl-C comes in its n-th call."""
    calls = []

    def wrap(function):
        def wrapped(*args, **kwargs):
            calls.append(1)
            if len(calls) == call:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return wrapped

    return wrap


@pytest.mark.parametrize(
    ("refinement", "target", "step"),
    [
        (refit, "box", "fit_box"),
        (swaps, "box", "swap_box"),
        (swaps, "linear", "best_exchanges"),
    ],
)
def test_ctrl_c_keeps_what_was_found(layer, monkeypatch, refinement, target, step):
    problem = Problem(layer.X, layer.Y, layer.W, layer.b)
    pruned = solve(problem, "magnitude", nnz=16)
    whole = refinement(problem, pruned, target)
    monkeypatch.setattr(descent, step, interrupted_at(3)(getattr(descent, step)))
    found = refinement(problem, pruned, target, n_threads=1)
    assert found.status is Status.INTERRUPTED
    assert found.statuses == (Status.PRUNED,) * 2 + (Status.INTERRUPTED,) * 2
    np.testing.assert_array_equal(found.W[:, :2], whole.W[:, :2])
    left = pruned if target == "box" else refit(problem, pruned, target)
    np.testing.assert_array_equal(found.W[:, 2:], left.W[:, 2:])
    np.testing.assert_allclose(found.b[2:], left.b[2:], atol=TOLERANCE["refit"])
    assert not found.iterations[2:].any()


@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_time_limit(layer, n_threads):
    problem = Problem(layer.X, layer.Y, layer.W, layer.b)
    pruned = solve(problem, "magnitude", nnz=16)
    late = refit(problem, pruned, "box", time_limit=1e-9, n_threads=n_threads)
    assert set(late.statuses) == {Status.TIME_LIMIT}
    np.testing.assert_array_equal(late.W, pruned.W)
    for target in ("linear", "box"):
        late = swaps(problem, pruned, target, time_limit=1e-9, n_threads=n_threads)
        assert set(late.statuses) == {Status.TIME_LIMIT} and not late.iterations.any()
        np.testing.assert_array_equal(late.W != 0, pruned.W != 0)
        assert refit(problem, pruned, target, time_limit=60).status is Status.PRUNED


# Bad input --------------------------------------------------------------------------------------


def bad_calls():
    X = np.random.default_rng(5).standard_normal((20, 6))
    W = np.ones((6, 2))
    good = Problem(X, np.maximum(X @ W, 0), W)
    solution = solve(good, "magnitude", nnz=6)
    broken = dataclasses.replace(solution, W=np.full((6, 2), np.nan))
    endless = dataclasses.replace(solution, b=np.array([np.inf, 0.0]))
    other = solve(Problem(X, np.ones((20, 3)), np.ones((6, 3))), "magnitude", nnz=6)
    common = {
        "problem must be a Problem": (X, solution, {}),
        "solution must be a Solution, or an array": (good, "magnitude", {}),
        r"solution must have weights of shape \(6, 2\), but has \(6, 3\)": (good, other, {}),
        r"solution must have weights of shape \(6, 2\), but has \(2, 6\)": (good, W.T, {}),
        "solution must be finite": (good, broken, {}),
        "must be finite, but holds": (good, endless, {}),
        "target must be one of": (good, solution, {"target": "output"}),
        "intercept must be one of": (good, solution, {"intercept": True}),
        r"damping must lie in \[0, inf\), but was -1": (good, solution, {"damping": -1}),
        "damping must lie in": (good, solution, {"damping": np.nan}),
        "time_limit must lie in": (good, solution, {"time_limit": 0}),
        "n_threads must be None or an integer": (good, solution, {"n_threads": 0}),
    }
    swapping = {
        r"max_swaps must be an integer >= 0, but was 1.5": {"max_swaps": 1.5},
        "max_swaps must be": {"max_swaps": -1},
        "trials must be an integer >= 1": {"trials": 0},
        "tol must lie in": {"tol": 0.0},
        "tol must lie": {"tol": 1},
        "pattern must be 'n:m'": {"pattern": "2/4"},
        "pattern must keep 0 < n < m": {"pattern": "4:2"},
        "pattern='2:4' needs a number of inputs that 4 divides, but X has 6": {"pattern": "2:4"},
        "solution must keep pattern='1:6' .* up to [3-6] nonzeros in 6": {"pattern": "1:6"},
    }
    for message, case in common.items():
        yield refit, message, case
        yield swaps, message, case
    for message, options in swapping.items():
        yield swaps, message, (good, solution, options)


BAD = list(bad_calls())


@pytest.mark.parametrize(("refinement", "message", "case"), BAD, ids=[m for _, m, _ in BAD])
def test_bad_input(refinement, message, case):
    problem, solution, options = case
    with pytest.raises((ProblemError, SettingsError), match=message):
        refinement(problem, solution, **options)


@settings(max_examples=20)
@given(layers(), st.sampled_from(["linear", "box"]))
def test_nothing_given_is_changed_or_shared(layer, target):
    X, W, b, mask, *_ = layer
    given_ = [X, np.maximum(X @ W + b, 0), W, b, np.where(mask, W, 0.0)]
    copies = [a.copy() for a in given_]
    problem = Problem(*given_[:4])
    for refinement in (refit, swaps):
        found = refinement(problem, given_[4], target)
        for array, copy in zip(given_, copies, strict=True):
            np.testing.assert_array_equal(array, copy)
            assert not np.shares_memory(found.W, array) and not np.shares_memory(found.b, array)
