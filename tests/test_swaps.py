"""Swaps: their gains against refits, and their ends against enumeration."""

from itertools import combinations, product

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from nettrim_solver import Problem, refit, solve, swaps
from nettrim_solver.solvers.tableau import PIVOT, REFRESH, Groups, best_exchanges, tableau

from .tolerances import TOLERANCE

#: Least gain of a swap relative to the objective at W = 0, the default of `tol`.
TOL = 1e-9


def loss(H, g, support):
    """The least of w'Hw - 2g'w over weights of a support, and where it is reached."""
    support = np.asarray(support, dtype=int)
    w = np.linalg.solve(H[np.ix_(support, support)], g[support])
    return -g[support] @ w, w


@st.composite
def quadratics(draw, least_outside=1):
    """H of correlated inputs, g, kept inputs in any order, and the others."""
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    N = draw(st.integers(2, 9))
    X = rng.standard_normal((3 * N, N)) @ (np.eye(N) + rng.standard_normal((N, N)))
    order = rng.permutation(N)
    k = draw(st.integers(1, N - least_outside))
    return X.T @ X, X.T @ rng.standard_normal(3 * N), order[:k], order[k:]


def allowed(kept, groups, a, i):
    """Whether a swap leaves no group with more inputs than it may have."""
    if groups is None:
        return True
    after = np.append(np.setdiff1d(kept, [a]), i)
    return np.sum(after // groups.size == i // groups.size) <= groups.most


def assert_table(table, H, g):
    """Every array of a tableau, by its definition."""
    S, F = table.kept, table.others
    inverse = np.linalg.inv(H[np.ix_(S, S)])
    scale = np.abs(H).max()
    close = {"rtol": TOLERANCE["tableau"], "atol": TOLERANCE["tableau"]}
    shares = inverse @ H[np.ix_(S, F)]
    np.testing.assert_allclose(table.inverse * scale, inverse * scale, **close)
    np.testing.assert_allclose(table.shares, shares, **close)
    np.testing.assert_allclose(table.weights, inverse @ g[S], **close)
    np.testing.assert_allclose(
        table.slopes / scale, (g[F] - H[np.ix_(F, S)] @ (inverse @ g[S])) / scale, **close
    )
    np.testing.assert_array_equal(table.floor, PIVOT * H[F, F])
    schur = H[np.ix_(F, F)] - H[np.ix_(F, S)] @ shares
    np.testing.assert_allclose(table.pivots / scale, np.diag(schur) / scale, **close)


# The tableau ------------------------------------------------------------------------------------


@given(quadratics())
def test_gains_are_what_two_refits_say(quadratic):
    H, g, kept, others = quadratic
    table = tableau(H, g, kept, others, None)
    gains = table.gains()
    assert_table(table, H, g)
    before, size = loss(H, g, kept)[0], abs(loss(H, g, range(len(H)))[0])
    for a, i in product(range(len(kept)), range(len(others))):
        support = kept.copy()
        support[a] = others[i]
        after, w = loss(H, g, support)
        assert abs(gains[a, i] - (before - after)) <= TOLERANCE["tableau"] * size
        np.testing.assert_allclose(
            table.weights_after(a, i), w, rtol=TOLERANCE["tableau"], atol=TOLERANCE["tableau"]
        )


@given(quadratics())
def test_an_exchange_is_the_best_one_and_leaves_a_tableau(quadratic):
    H, g, kept, others = quadratic
    table = tableau(H, g, kept, others, None)
    for _ in range(12):
        gains, before = table.gains(), table.kept.copy()
        made = table.exchange(1, 0.0)
        assert made == (gains.max() > 0)
        if not made:
            np.testing.assert_array_equal(table.kept, before)
            break
        a, i = np.unravel_index(np.argmax(gains), gains.shape)
        assert (table.kept != before).sum() == 1 and table.others[i] == before[a]
        assert_table(table, H, g)
        assert sorted([*table.kept, *table.others]) == list(range(len(H)))


@given(quadratics(), st.floats(0.0, 1.0))
def test_small_pivots_forbid_an_exchange(quadratic, share):
    H, g, kept, others = quadratic
    table = tableau(H, g, kept, others, None)
    free = table.gains()
    v = np.diag(table.inverse)[:, None]
    pivots = table.pivots + table.shares**2 / v
    table.floor[:] = (1 + TOLERANCE["tableau"]) * np.quantile(pivots, share)  # no ties
    gains = table.gains()
    np.testing.assert_array_equal(gains, np.where(pivots > table.floor, free, -np.inf))
    a, i = np.unravel_index(np.argmax(gains), gains.shape)
    entering = table.others[i]
    assert table.exchange(1, 0.0) == (gains.max() > 0)
    assert (table.kept[a] == entering) == (gains.max() > 0)


@given(quadratics(), st.integers(0, 30))
def test_many_exchanges_are_single_ones(quadratic, limit):
    H, g, kept, others = quadratic
    single, many = (tableau(H, g, kept, others, None) for _ in range(2))
    made = 0
    while made < limit and single.exchange(1, 1e-12):
        made += 1
    assert many.exchange(limit, 1e-12) == made
    np.testing.assert_array_equal(many.kept, single.kept)
    np.testing.assert_array_equal(many.others, single.others)
    np.testing.assert_array_equal(kept, tableau(H, g, kept, others, None).kept)


@given(quadratics(), st.sampled_from([(1, 1), (2, 1), (3, 1), (3, 2), (4, 3)]))
def test_a_pattern_forbids_what_would_break_it(quadratic, pattern):
    H, g, kept, others = quadratic
    groups = Groups(*pattern)
    table = tableau(H, g, kept, others, groups)
    free = tableau(H, g, kept, others, None).gains()
    for _ in range(6):
        gains = table.gains()
        for a, i in product(range(len(table.kept)), range(len(table.others))):
            legal = allowed(table.kept, groups, table.kept[a], table.others[i])
            same = table.kept[a] // groups.size == table.others[i] // groups.size
            assert (gains[a, i] > -np.inf) == (legal or same)
        if np.array_equal(table.kept, kept):
            np.testing.assert_array_equal(gains[gains > -np.inf], free[gains > -np.inf])
        before = table.kept.copy()
        best = np.unravel_index(np.argmax(gains), gains.shape)
        if not table.exchange(1, 0.0):
            assert gains.max() <= 0
            break
        changed = np.flatnonzero(table.kept != before)
        assert changed == best[0] and table.others[best[1]] == before[best[0]]


def test_inputs_in_the_span_of_the_others_are_left_alone():
    X = np.random.default_rng(0).standard_normal((30, 5))
    X = np.column_stack([X, X[:, 0], X[:, 1] + X[:, 2]])
    H, g = X.T @ X, X.T @ X[:, 3]
    table = tableau(H, g, np.arange(3), np.arange(3, 7), None)
    gains = table.gains()
    # Input 5 is a copy of 0, and 6 the sum of 1 and 2: they may replace these alone.
    np.testing.assert_array_equal(
        np.isfinite(gains[:, 2:]), [[True, False], [False, True], [False, True]]
    )
    np.testing.assert_allclose(gains[np.isfinite(gains)][[2, 5, 8]], 0.0, atol=1e-9)
    assert table.exchange(50, 1e-9) == 1 and 3 in table.kept


def test_a_long_series_is_computed_afresh_on_the_way():
    # Slow descent: from the worst start through more swaps than one tableau may take.
    rng = np.random.default_rng(1)
    X = rng.standard_normal((400, 200))
    truth = np.where(np.arange(200) < 100, 1 + rng.random(200), 0.0)
    H, g = X.T @ X, X.T @ (X @ truth)
    kept, made = best_exchanges(H, g, np.arange(100, 200), np.arange(100), None, 10**6, 1e-9)
    assert made > REFRESH
    np.testing.assert_array_equal(np.sort(kept), np.arange(100))
    assert best_exchanges(H, g, np.arange(100, 200), np.arange(100), None, 70, 1e-9)[1] == 70


# The linear target ------------------------------------------------------------------------------


def linear_layer(seed, N=8, M=3, P=30, intercept=True, target="identity"):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((P, N)) @ (np.eye(N) + 0.7 * rng.standard_normal((N, N))) + 1.0
    W, b = rng.standard_normal((N, M)), rng.standard_normal(M)
    Z = X @ W + (b if intercept else 0.0)
    Y = Z if target == "identity" else np.maximum(Z, 0)
    trained = {"b": b} if intercept else {}
    problem = Problem(X, Y, W, activation=target, intercept=intercept, **trained)
    return problem, rng.random((N, M)) < 0.5


def objectives(problem, solution, damping, target="linear"):
    """The objective of every output, by its definition."""
    X = problem.X.toarray() if sp.issparse(problem.X) else problem.X
    spread = X - X.mean(axis=0) if problem.intercept else X
    delta = damping * np.mean(np.sum(spread**2, axis=0))
    Z, T = solution.predict(X), X @ problem.W + (0.0 if problem.b is None else problem.b)
    E = Z - T if target == "linear" else Z - np.clip(Z, *problem.box())
    return np.sum(E**2, axis=0) + delta * np.sum((solution.W - problem.W) ** 2, axis=0)


def neighbours(column, groups=None):
    """Every support that one swap makes of a support."""
    kept = np.flatnonzero(column)
    for a, i in product(kept, np.flatnonzero(~column)):
        if allowed(kept, groups, a, i):
            other = column.copy()
            other[[a, i]] = False, True
            yield other


@settings(max_examples=30)
@given(
    st.integers(0, 2**20),
    st.sampled_from([0.0, 0.01, 0.5]),
    st.booleans(),
    st.sampled_from(["identity", "relu"]),
)
def test_no_single_swap_helps_in_the_end(seed, damping, intercept, activation):
    problem, mask = linear_layer(seed, intercept=intercept, target=activation)
    start = refit(problem, mask, damping=damping)
    found = swaps(problem, mask, damping=damping)
    ends, begins = (objectives(problem, s, damping) for s in (found, start))
    zero = objectives(problem, refit(problem, np.zeros_like(mask), damping=damping), damping)
    np.testing.assert_array_equal((found.W != 0).sum(axis=0), mask.sum(axis=0))
    assert np.all(ends <= begins + TOLERANCE["refit"] * zero)
    again = refit(problem, found, damping=damping)
    np.testing.assert_allclose(found.W, again.W, atol=TOLERANCE["refit"])
    for j in range(mask.shape[1]):
        assert (found.iterations[j] == 0) == np.array_equal(found.W[:, j] != 0, mask[:, j])
        masks = list(neighbours(found.W[:, j] != 0))
        trial = np.repeat(mask[:, None, j], len(masks), axis=1)
        for n, other in enumerate(masks):
            trial[:, n] = other
        if masks:
            copies = Problem(
                problem.X, np.repeat(problem.Y[:, [j]], len(masks), axis=1),
                np.repeat(problem.W[:, [j]], len(masks), axis=1), activation=activation,
                intercept=intercept,
                b=np.repeat(problem.b[[j]], len(masks)) if intercept else None,
            )  # fmt: skip
            others = objectives(copies, refit(copies, trial, damping=damping), damping)
            assert others.min() >= ends[j] - 2 * TOL * zero[j] - TOLERANCE["refit"] * ends[j]


@settings(max_examples=15)
@given(st.integers(0, 2**20), st.integers(1, 5))
def test_never_better_than_the_best_subset_from_which_it_does_not_move(seed, k):
    problem, _ = linear_layer(seed, N=7, M=1)
    masks = [np.isin(np.arange(7), kept)[:, None] for kept in combinations(range(7), k)]
    every = [refit(problem, mask, damping=0.0) for mask in masks]
    values = [objectives(problem, s, 0.0)[0] for s in every]
    zero = objectives(problem, refit(problem, np.zeros((7, 1))), 0.0)[0]
    best = every[int(np.argmin(values))]
    stayed = swaps(problem, best, damping=0.0)
    assert not stayed.iterations.any()
    np.testing.assert_array_equal(stayed.W, best.W)
    for mask in masks[:: max(1, len(masks) // 5)]:
        found = swaps(problem, mask, damping=0.0)
        assert objectives(problem, found, 0.0)[0] >= min(values) - TOLERANCE["refit"] * zero


def test_planted_weights_are_found_from_one_that_is_wrong():
    rng = np.random.default_rng(2)
    X = rng.standard_normal((60, 12))
    W = np.zeros((12, 5))
    mask = np.zeros((12, 5), dtype=bool)
    for j in range(5):
        right = rng.permutation(12)[:4]
        W[right, j] = 1 + rng.random(4)
        mask[[*right[:3], np.flatnonzero(W[:, j] == 0)[j]], j] = True
    problem = Problem(X, X @ W, W, activation="identity", intercept=False)
    found = swaps(problem, mask, damping=0.0)
    np.testing.assert_allclose(found.W, W, atol=TOLERANCE["refit"])
    np.testing.assert_array_equal(found.iterations, 1)


def test_swaps_that_rounding_deceived_are_taken_back(monkeypatch):
    problem, mask = linear_layer(14)
    found = swaps(problem, mask)
    start = np.where(found.W != 0, found.W, 0.0)

    def deceived(H, g, kept, others, *_):
        return np.append(kept[1:], others[0]), 1

    monkeypatch.setattr("nettrim_solver.refine.descent.best_exchanges", deceived)
    again = swaps(problem, start)
    np.testing.assert_allclose(again.W, found.W, atol=TOLERANCE["refit"])
    assert not again.iterations.any()


@pytest.mark.parametrize("target", ["linear", "box"])
def test_an_output_does_not_depend_on_its_neighbours(target):
    problem, mask = linear_layer(4, M=4, target="relu")
    whole = swaps(problem, mask, target, damping=0.01)
    twice = swaps(problem, mask, target, damping=0.01)
    np.testing.assert_array_equal(whole.W, twice.W)
    np.testing.assert_array_equal(whole.b, twice.b)
    chosen = np.array([2, 0])
    some = swaps(problem.select(chosen), mask[:, chosen], target, damping=0.01)
    np.testing.assert_allclose(some.W, whole.W[:, chosen], atol=TOLERANCE["refit"])
    np.testing.assert_array_equal(some.iterations, whole.iterations[chosen])


@pytest.mark.parametrize("target", ["linear", "box"])
def test_the_number_of_swaps_can_be_limited(target):
    problem, mask = linear_layer(5, N=10, target="relu")
    free = swaps(problem, mask, target)
    assert free.iterations.max() > 1
    before = objectives(problem, refit(problem, mask, target), 0.01, target)
    for limit in (0, 1, 2):
        found = swaps(problem, mask, target, max_swaps=limit)
        assert np.all(found.iterations <= limit)
        changed = np.sum((found.W != 0) & ~mask, axis=0)
        assert np.all(changed <= found.iterations)
        ends = objectives(problem, found, 0.01, target)
        assert np.all(ends <= before * (1 + TOLERANCE["refit"]))
        if limit == 0:
            np.testing.assert_array_equal(found.W != 0, mask)
    coarse = swaps(problem, mask, target, tol=0.05)
    assert coarse.iterations.sum() < free.iterations.sum()


@pytest.mark.parametrize("target", ["linear", "box"])
@pytest.mark.parametrize("pattern", ["1:2", "2:4", "3:4"])
def test_patterns_hold(pattern, target):
    most, size = map(int, pattern.split(":"))
    problem, _ = linear_layer(6, N=12, M=4, target="relu")
    pruned = solve(problem, "magnitude", pattern=pattern)
    thinned = np.where(np.random.default_rng(0).random(pruned.W.shape) < 0.8, pruned.W, 0.0)
    for start in (pruned, thinned):
        found = swaps(problem, start, target, pattern=pattern)
        counts = (found.W != 0).reshape(-1, size, 4).sum(axis=1)
        assert counts.max() <= most and found.iterations.sum() > 0
        free = swaps(problem, start, target)
        before = refit(problem, start, target)
        ends = [objectives(problem, s, 0.01, target).sum() for s in (free, found, before)]
        assert ends[1] < ends[2] and ends[0] < ends[2]
        if target == "linear":
            groups = Groups(size, most)
            for j in range(4):
                masks = (found.W != 0)[:, :, None] & np.ones(1, dtype=bool)
                for other in neighbours(masks[:, j, 0], groups):
                    mask = found.W != 0
                    mask[:, j] = other
                    worse = objectives(problem, refit(problem, mask), 0.01)[j]
                    assert worse >= objectives(problem, found, 0.01)[j] * (1 - TOLERANCE["refit"])
    assert np.any((swaps(problem, pruned, target).W != 0).reshape(-1, size, 4).sum(axis=1) > most)


# The target box ---------------------------------------------------------------------------------


def ranked_by_the_model(problem, found, j, delta):
    """Supports one swap away, in the order of what the documented model promises, by two solves."""
    X, w = problem.X, found.W[:, j]
    lower, upper = (end[:, j] for end in problem.box())
    z = found.predict(X)[:, j]
    t = np.clip(z, lower, upper)
    A = (lower == upper) | (np.abs(z - t) > 1e-12)
    D, right = X[A], t[A]
    if problem.intercept:
        D, right = D - D.mean(axis=0), right - right.mean()
    H = D.T @ D + delta * np.eye(len(w))
    g = D.T @ right + delta * problem.W[:, j]
    return sorted(neighbours(w != 0), key=lambda support: loss(H, g, np.flatnonzero(support))[0])


@settings(max_examples=20)
@given(
    st.integers(0, 2**20),
    st.booleans(),
    st.sampled_from(["relu", "relu6", "hard_tanh"]),
    st.sampled_from([1, 3, 1000]),
)
def test_no_swap_that_was_tried_helps_in_the_end(seed, intercept, activation, trials):
    problem, mask = linear_layer(seed, intercept=intercept)
    f = {"relu": (0, np.inf), "relu6": (0, 6), "hard_tanh": (-1, 1)}[activation]
    Y = np.clip(problem.X @ problem.W, *f)
    problem = problem.replace(Y=Y, activation=activation, b=None)
    start = refit(problem, mask, "box")
    found = swaps(problem, mask, "box", trials=trials)
    ends, begins = (objectives(problem, s, 0.01, "box") for s in (found, start))
    np.testing.assert_array_equal((found.W != 0).sum(axis=0), mask.sum(axis=0))
    assert np.all(ends <= begins * (1 + TOLERANCE["refit"]))
    assert np.all(ends[found.iterations > 0] < begins[found.iterations > 0])
    again = refit(problem, found, "box")
    np.testing.assert_allclose(again.W, found.W, atol=TOLERANCE["refit"])
    X = problem.X - problem.X.mean(axis=0) if intercept else problem.X
    delta = 0.01 * np.mean(np.sum(X**2, axis=0))
    for j in range(3):
        size = problem.target_norms[j] ** 2 + delta * np.sum(problem.W[:, j] ** 2)
        for support in ranked_by_the_model(problem, found, j, delta)[:trials]:
            trial = mask.copy()
            trial[:, j] = support
            value = objectives(problem, refit(problem, trial, "box"), 0.01, "box")[j]
            assert value >= ends[j] - 2 * TOL * size


def test_more_trials_find_more():
    ends = []
    for seed in range(12):
        problem, mask = linear_layer(seed, N=10, M=3, P=40, target="relu")
        few, many = (swaps(problem, mask, "box", trials=n) for n in (1, 200))
        ends.append([objectives(problem, s, 0.01, "box").sum() for s in (few, many)])
    ends = np.array(ends)
    assert np.all(ends[:, 1] <= ends[:, 0] * (1 + TOLERANCE["refit"]))
    assert np.any(ends[:, 1] < 0.999 * ends[:, 0])


@pytest.mark.parametrize("intercept", [False, True])
def test_on_a_box_of_points_both_targets_do_the_same(intercept):
    for seed in range(5):
        problem, mask = linear_layer(seed, intercept=intercept)
        for options in ({"damping": 0.0}, {"damping": 0.1}, {"intercept": "keep"}):
            linear, box = (swaps(problem, mask, target, **options) for target in ("linear", "box"))
            np.testing.assert_allclose(box.W, linear.W, atol=TOLERANCE["refit"])
            np.testing.assert_array_equal(box.iterations, linear.iterations)
            if intercept:
                np.testing.assert_allclose(box.b, linear.b, atol=TOLERANCE["refit"])


def test_box_swaps_need_no_trained_weights():
    trained, mask = linear_layer(9, target="relu")
    problem = Problem(trained.X, trained.Y)
    before = refit(problem, mask, "box")
    found = swaps(problem, mask, "box")
    assert np.all(found.certificate.distances <= before.certificate.distances)
    assert found.certificate.distance < before.certificate.distance
    sparse = swaps(Problem(sp.csr_array(trained.X), trained.Y), mask, "box")
    np.testing.assert_allclose(sparse.W, found.W, atol=TOLERANCE["refit"])
    # With fewer samples than weights kept the box is reached, and nothing is left to gain.
    few = Problem(trained.X[:4], trained.Y[:4])
    reached = swaps(few, mask | (np.arange(8) < 5)[:, None], "box")
    assert reached.certificate.distance <= TOLERANCE["refit"] and not reached.iterations.any()


# Edges ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["linear", "box"])
@pytest.mark.parametrize("intercept", [False, True])
def test_full_and_empty_supports_stay(target, intercept, capfd):
    problem, _ = linear_layer(10, intercept=intercept, target="relu")
    for mask in (np.zeros((8, 3), dtype=bool), np.ones((8, 3), dtype=bool)):
        found = swaps(problem, mask, target)
        expected = refit(problem, mask, target)
        np.testing.assert_array_equal(found.W != 0, mask)
        np.testing.assert_allclose(found.W, expected.W, atol=TOLERANCE["refit"])
        assert not found.iterations.any()
    assert capfd.readouterr() == ("", "")  # LAPACK complains of empty matrices by printing


@pytest.mark.parametrize("target", ["linear", "box"])
@pytest.mark.parametrize("intercept", [False, True])
def test_inputs_without_signal_are_swapped_out(target, intercept):
    problem, _ = linear_layer(11, target="relu", intercept=intercept)
    X = problem.X.copy()
    X[:, 3], X[:, 6] = 0.0, 2.0
    Y = np.maximum(X @ problem.W, 0)
    problem = Problem(X, Y, problem.W, intercept=intercept)
    mask = np.zeros((8, 3), dtype=bool)
    mask[[0, 3, 6]] = True
    for damping in (0.0, 0.01):
        found = swaps(problem, mask, target, damping=damping)
        np.testing.assert_array_equal((found.W != 0).sum(axis=0), 3)
        assert not found.W[3].any()
        assert not (intercept and found.W[6].any())
    # With nothing else to take over, they lose their weights.
    rest = np.isin(np.arange(8), [0, 1, 2, 3, 4, 5, 7])[:, None] & np.ones(3, dtype=bool)
    rest[6] = not intercept
    assert np.all(swaps(problem, rest | (np.arange(8) == 6)[:, None], target).W[3] == 0)


@pytest.mark.parametrize("target", ["linear", "box"])
def test_fewer_samples_than_inputs(target):
    problem, mask = linear_layer(12, N=10, P=5, target="relu")
    found = swaps(problem, mask, target)
    before = refit(problem, mask, target)
    ends = [objectives(problem, s, 0.01, target) for s in (found, before)]
    assert np.all(ends[0] <= ends[1] * (1 + TOLERANCE["refit"])) and found.iterations.any()


def test_single_precision_and_names():
    problem, mask = linear_layer(13)
    X, Y, W, b = (a.astype(np.float32) for a in (problem.X, problem.Y, problem.W, problem.b))
    single = Problem(X, Y, W, b, activation="identity")
    found, expected = swaps(single, mask), swaps(problem, mask)
    assert found.W.dtype == np.float32 and found.solver == "swaps"
    np.testing.assert_allclose(found.W, expected.W, rtol=1e-3, atol=TOLERANCE["single_precision"])
    chain = swaps(problem, refit(problem, solve(problem, "magnitude", sparsity=0.5)))
    assert chain.solver == "magnitude+refit+swaps"
    assert set(chain.seconds) == {"gram", "swaps", "certify", "total"}
