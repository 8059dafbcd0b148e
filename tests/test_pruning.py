"""What the pruners share: the choice of what stays, budgets, the search for a radius, outcomes."""

import dataclasses
from itertools import product

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nettrim_solver import Problem, Status, certify, solve
from nettrim_solver.exceptions import ProblemError, SettingsError, SolverError, UnsupportedError
from nettrim_solver.problem import FORMULATIONS, RADII
from nettrim_solver.solvers.pruning import (
    Budget,
    PruningSettings,
    keep_largest,
    parse_pattern,
    requested_budget,
)

# The choice of what stays ------------------------------------------------------------------------

#: Few different values, so that ties are the rule.
SCORES = st.tuples(st.integers(1, 9), st.integers(1, 5)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(0, 4).map(float))
)


def best(scores, cells, count):
    """The cells of largest score: inputs of zeros alone come last in a tie, then smaller index."""
    live = scores.any(axis=1)
    return sorted(cells, key=lambda cell: (-scores[cell], not live[cell[0]], cell))[:count]


def mask_of(scores, cells):
    mask = np.zeros(scores.shape, dtype=bool)
    for cell in cells:
        mask[cell] = True
    return mask


def column(scores, j, rows=None):
    return [(i, j) for i in (range(len(scores)) if rows is None else rows)]


@given(SCORES, st.data())
def test_the_layer_keeps_its_largest(scores, data):
    keep = data.draw(st.integers(0, scores.size))
    cells = list(np.ndindex(scores.shape))
    expected = mask_of(scores, best(scores, cells, keep))
    np.testing.assert_array_equal(keep_largest(scores, Budget(keep)), expected)


@pytest.mark.parametrize("kind", ["normal", "levels", "outputs of other sizes", "mostly zero"])
def test_a_large_layer_keeps_its_largest(kind):
    # Large enough for the threshold to be guessed from a sample first.
    rng = np.random.default_rng(4)
    scores = np.abs(rng.standard_normal((160, 130)))
    if kind == "levels":
        scores = np.floor(3.0 * scores)
    if kind == "outputs of other sizes":
        scores *= np.geomspace(1e-6, 1e6, 130)
    if kind == "mostly zero":
        scores *= rng.random(scores.shape) < 0.03
    order = np.argsort(-scores, axis=None, kind="stable")
    nothing = ~scores.any(axis=1)
    for keep in (0, 1, 77, 500, 10_400, 20_000, scores.size - 1, scores.size):
        mask = keep_largest(scores, Budget(keep))
        assert np.count_nonzero(mask) == keep
        kept = np.sort(scores[mask])[::-1]
        np.testing.assert_array_equal(kept, scores.ravel()[order[:keep]])
        if not nothing.any():
            np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(order[:keep]))


@given(SCORES, st.data())
def test_every_output_keeps_its_own_number(scores, data):
    counts = data.draw(arrays(np.int64, scores.shape[1], elements=st.integers(0, len(scores))))
    cells = [c for j, k in enumerate(counts) for c in best(scores, column(scores, j), k)]
    np.testing.assert_array_equal(keep_largest(scores, Budget(counts)), mask_of(scores, cells))


@given(SCORES, st.data())
def test_outputs_share_a_number_equally(scores, data):
    keep = data.draw(st.integers(0, scores.size))
    mask = keep_largest(scores, Budget(keep, per_output=True))
    counts = mask.sum(axis=0)
    assert counts.sum() == keep and np.ptp(counts) <= 1
    cells = [c for j, k in enumerate(counts) for c in best(scores, column(scores, j), k)]
    np.testing.assert_array_equal(mask, mask_of(scores, cells))
    # The odd ones: no output that keeps fewer has a larger score to offer.
    richer, poorer = np.flatnonzero(counts > counts.min()), np.flatnonzero(counts == counts.min())
    if richer.size:
        ranked = -np.sort(-scores, axis=0)[counts.min()]
        assert ranked[richer].min() >= ranked[poorer].max()


@given(st.integers(2, 4), st.integers(1, 3), st.integers(1, 4), st.data())
def test_a_pattern_keeps_the_largest_of_every_group(group, n_groups, n_outputs, data):
    elements = st.integers(0, 3).map(float)
    scores = data.draw(arrays(np.float64, (group * n_groups, n_outputs), elements=elements))
    kept = data.draw(st.integers(1, group - 1))
    cells = [
        cell
        for j, start in product(range(n_outputs), range(0, len(scores), group))
        for cell in best(scores, column(scores, j, range(start, start + group)), kept)
    ]
    budget = Budget(kept * n_groups * n_outputs, pattern=(kept, group))
    np.testing.assert_array_equal(keep_largest(scores, budget), mask_of(scores, cells))


def test_nothing_is_spent_on_dead_inputs_while_others_are_left():
    scores = np.array([[0.0, 0.0], [0.0, 3.0], [0.0, 0.0], [0.0, 1.0]])
    mask = keep_largest(scores, Budget(4))
    np.testing.assert_array_equal(mask.sum(axis=1), [0, 2, 0, 2])
    mask = keep_largest(scores, Budget(4, pattern=(1, 2)))
    np.testing.assert_array_equal(mask.sum(axis=1), [0, 2, 0, 2])


def test_scores_are_not_changed():
    scores = np.array([[0.0, 2.0], [3.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    copy = scores.copy()
    for budget in (Budget(3), Budget(3, True), Budget(np.array([1, 2])), Budget(4, False, (2, 4))):
        keep_largest(scores, budget)
        np.testing.assert_array_equal(scores, copy)


# Budgets -----------------------------------------------------------------------------------------


@given(st.floats(0.0, 1.0, exclude_max=True), st.integers(1, 9), st.integers(1, 9))
def test_the_number_of_zeros_is_the_rounded_share(sparsity, n_inputs, n_outputs):
    problem = Problem(np.ones((1, n_inputs)), np.ones((1, n_outputs)))
    budget = requested_budget(problem, PruningSettings(sparsity=sparsity))
    zeros = n_inputs * n_outputs - budget.keep
    assert isinstance(zeros, int)
    assert abs(zeros - sparsity * n_inputs * n_outputs) <= 0.5


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"sparsity": 0.0}, Budget(24)),
        ({"sparsity": np.float32(0.5)}, Budget(12)),
        ({"nnz": 0}, Budget(0)),
        ({"nnz": np.int64(24), "scope": "output"}, Budget(24, True)),
        ({"pattern": "2:4"}, Budget(12, False, (2, 4))),
        ({"pattern": "1:8"}, Budget(3, False, (1, 8))),
        ({}, None),
    ],
)
def test_what_the_settings_ask_for(settings, expected):
    problem = Problem(np.ones((1, 8)), np.ones((1, 3)), epsilon=1.0)
    assert requested_budget(problem, PruningSettings(**settings)) == expected


@pytest.mark.parametrize("pattern", ["2", "2:4:8", "a:b", "-1:4", "2.0:4", "", 24, ("2", "4")])
def test_unreadable_patterns(pattern):
    with pytest.raises(SettingsError, match="pattern must be 'n:m', such as '2:4', but was"):
        parse_pattern(pattern)


@pytest.mark.parametrize("pattern", ["0:4", "4:4", "5:4", "0:0"])
def test_patterns_that_keep_nothing_or_everything(pattern):
    with pytest.raises(SettingsError, match=f"pattern must keep 0 < n < m.*'{pattern}'"):
        parse_pattern(pattern)


BAD_SETTINGS = {
    "sparsity 1": ({"sparsity": 1.0}, SettingsError, r"sparsity must lie in \[0, 1\), but was 1.0"),
    "sparsity -": ({"sparsity": -0.1}, SettingsError, r"sparsity must lie in \[0, 1\).*-0.1"),
    "sparsity NaN": ({"sparsity": np.nan}, SettingsError, "sparsity must lie in.*nan"),
    "sparsity %": ({"sparsity": 90}, SettingsError, "sparsity must lie in.*90"),
    "sparsity text": ({"sparsity": "0.5"}, SettingsError, "sparsity must lie in.*'0.5'"),
    "sparsity per output": ({"sparsity": np.ones(4) / 2}, SettingsError, "sparsity must.*array"),
    "nnz float": ({"nnz": 3.0}, SettingsError, "nnz must be an integer >= 0, but was 3.0"),
    "nnz -": ({"nnz": -1}, SettingsError, "nnz must be an integer >= 0, but was -1"),
    "nnz True": ({"nnz": True}, SettingsError, "nnz must be an integer >= 0, but was True"),
    "nnz large": ({"nnz": 33}, ProblemError, "nnz must be at most 32, all of W, but was 33"),
    "two budgets": ({"nnz": 3, "sparsity": 0.5}, SettingsError, "sparsity or nnz, not both"),
    "pattern": ({"pattern": "4:2"}, SettingsError, "pattern must keep 0 < n < m.*'4:2'"),
    "pattern divides": ({"pattern": "2:5"}, ProblemError, "pattern='2:5'.*5 divides.*X has 8"),
    "no budget": ({}, ProblemError, "needs a budget: set sparsity, nnz or pattern.*'pooled'"),
    "scope": ({"nnz": 3, "scope": "row"}, SettingsError, "scope must be one of.*but was 'row'"),
    "damping": ({"nnz": 3, "damping": -1}, SettingsError, r"damping must lie in \[0, inf\).*-1"),
    "intercept": ({"nnz": 3, "intercept": True}, SettingsError, "intercept must be one of.*True"),
    "time_limit": ({"nnz": 3, "time_limit": 0}, SettingsError, "time_limit must lie.*was 0"),
    "unknown": ({"amount": 3}, SettingsError, "unknown setting 'amount'.*'sparsity'"),
}


@pytest.mark.parametrize(("settings", "error", "message"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_bad_settings_are_named(layer, settings, error, message):
    with pytest.raises(error, match=message) as caught:
        solve(Problem(layer.X, layer.Y, layer.W, layer.b), "magnitude", **settings)
    assert type(caught.value) is error and "\n" not in str(caught.value)


BAD_PROBLEMS = {
    "W": ({"W": None, "b": None}, UnsupportedError, "'magnitude' starts from trained.* give W"),
    "penalised": (
        {"formulation": "penalised", "lambda_": 1.0, "sparsity": None},
        ProblemError, "needs a budget: set sparsity, nnz or pattern.*'penalised'",
    ),
    "l1 weights": (
        {"weights": np.full(8, 2.0)},
        UnsupportedError, "'magnitude' does not support weights other than ones.*'admm'",
    ),
    "radius": ({"epsilon": 0.1, "sparsity": None, "X": 3.0}, ProblemError, "epsilon.*1 of 1 radii"),
    "radii": (
        {"epsilon": 0.1, "sparsity": None, "X": 3.0, "radius": "per_output"},
        ProblemError, "epsilon must be within reach.*4 of 4 radii.*raise epsilon",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "message"), BAD_PROBLEMS.values(), ids=BAD_PROBLEMS)
def test_problems_that_cannot_be_pruned(layer, changes, error, message):
    given = {"X": layer.X, "Y": layer.Y, "W": layer.W, "b": layer.b, "sparsity": 0.5} | changes
    given["X"] = layer.X * given["X"] if isinstance(given["X"], float) else given["X"]
    sparsity = given.pop("sparsity")
    with pytest.raises(error, match=message) as caught:
        solve(Problem(**given), "magnitude", sparsity=sparsity)
    assert type(caught.value) is error


# The search for a radius -------------------------------------------------------------------------


def magnitude_keeps(problem, keep, columns=slice(None)):
    """Which counts of kept weights keep the radius, by trying them all: plain numpy and certify."""
    flat = np.argsort(-np.abs(problem.W[:, columns]), axis=None, kind="stable")
    W = np.zeros(problem.W.shape)
    part = np.zeros(flat.size)
    part[flat[:keep]] = problem.W[:, columns].ravel()[flat[:keep]]
    W[:, columns] = part.reshape(W[:, columns].shape)
    b = None
    if problem.intercept:
        T = np.clip(problem.X @ problem.W + problem.b, *problem.box())
        b = (T - problem.X @ W).mean(axis=0)
    group = 0 if problem.joint else columns.start
    return bool(certify(problem, W, b).feasible(1e-6)[group])


@given(st.integers(0, 10**6), st.booleans())
def test_one_weight_fewer_would_leave_the_radius(seed, intercept):
    rng = np.random.default_rng(seed)
    X, W = rng.standard_normal((12, 4)), rng.standard_normal((4, 3))
    b = rng.standard_normal(3) if intercept else None
    Y = np.maximum(X @ W + (b if intercept else 0.0), 0.0)
    for formulation, radius in product(("pooled", "strict"), RADII):
        tolerance = rng.choice([0.05, 0.3, 0.8])
        problem = Problem(
            X, Y, W, b, tolerance=tolerance, formulation=formulation, radius=radius,
            intercept=intercept,
        )  # fmt: skip
        solution = solve(problem, "magnitude")
        assert solution.status in (Status.FEASIBLE, Status.OPTIMAL)
        groups = [slice(0, 3)] if problem.joint else [slice(j, j + 1) for j in range(3)]
        for columns in groups:
            size = W[:, columns].size
            kept = [magnitude_keeps(problem, k, columns) for k in range(size + 1)]
            count = np.count_nonzero(solution.W[:, columns])
            assert kept[count] and not (count and kept[count - 1])
            if kept == sorted(kept):
                assert count == kept.index(True)


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("tolerance", [0.01, 0.2, 0.5, 0.9])
def test_the_most_weights_are_removed_where_errors_add_up(radius, tolerance):
    rng = np.random.default_rng(3)
    X = np.linalg.qr(rng.standard_normal((20, 6)))[0]
    W = rng.standard_normal((6, 4))
    problem = Problem(
        X, X @ W, W, activation="identity", tolerance=tolerance, radius=radius, intercept=False
    )
    solution = solve(problem, "magnitude")
    # With orthonormal inputs the squared error is the sum of the squares of what is removed.
    squares = np.sort(W**2, axis=None if radius == "joint" else 0).reshape(
        -1, len(solution.certificate.violations)
    )
    most = (np.cumsum(squares, axis=0) <= problem.epsilon**2).sum(axis=0)
    zeros = (solution.W == 0).sum(axis=0)
    np.testing.assert_array_equal(zeros.sum() if radius == "joint" else zeros, most)


def test_the_scope_of_a_joint_radius(layer):
    problem = Problem(layer.X, layer.Y, layer.W, layer.b, tolerance=0.5)
    shared = solve(problem, "magnitude", scope="output")
    assert np.ptp(shared.certificate.nnz) <= 1
    assert np.ptp(solve(problem, "magnitude").certificate.nnz) > 1


@pytest.mark.parametrize("radius", RADII)
def test_the_search_stops_when_told_to(layer, radius):
    problem = Problem(layer.X, layer.Y, layer.W, layer.b, tolerance=0.3, radius=radius)
    whole = solve(problem, "magnitude")
    seen = []

    def watch(progress):
        seen.append(progress)
        return len(seen) == 2

    stopped = solve(problem, "magnitude", callback=watch)
    late = solve(problem, "magnitude", time_limit=1e-9)
    assert stopped.status is Status.INTERRUPTED and late.status is Status.TIME_LIMIT
    assert [p.iteration for p in seen] == [1, 2] and seen[0].n_outputs == 4
    for solution in (stopped, late):
        assert solution.certificate.violation <= 1e-6
        assert solution.nnz >= whole.nnz
    with pytest.raises(SolverError, match="time limit") as caught:
        solve(problem, "magnitude", time_limit=1e-9, raise_on_failure=True)
    np.testing.assert_array_equal(caught.value.solution.W, late.W)


def test_the_search_leaves_the_arrays_of_a_pruner_alone(layer, monkeypatch):
    from nettrim_solver.solvers import magnitude

    own = []

    def prepare(data, settings):
        own.append(data.W)

        def prune(budget):
            mask = keep_largest(np.abs(data.W), budget)
            return data.W if mask.all() else np.where(mask, data.W, 0.0)

        return prune

    monkeypatch.setattr(magnitude, "prepare", prepare)
    problem = Problem(layer.X, layer.Y, layer.W, layer.b, tolerance=0.3, radius="per_output")
    assert solve(problem, "magnitude").nnz < layer.W.size
    np.testing.assert_array_equal(own[0], layer.W)


def test_ctrl_c_gives_the_best_answer_so_far(layer):
    problem = Problem(layer.X, layer.Y, layer.W, layer.b, tolerance=0.3)

    def press(progress):
        raise KeyboardInterrupt

    solution = solve(problem, "magnitude", callback=press)
    assert solution.status is Status.INTERRUPTED
    assert solution.certificate.violation <= 1e-6


# Outcomes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_budget_means_the_same_in_every_formulation(layer, formulation):
    penalised = formulation.startswith("penalised")
    levels = {"lambda_": 1.0} if penalised else {"epsilon": 1e-3}
    problem = Problem(layer.X, layer.Y, layer.W, layer.b, formulation=formulation, **levels)
    # A count contradicts lambda_, so a penalised problem takes a pattern only.
    budget = {"pattern": "2:4"} if penalised else {"nnz": 9}
    plain = solve(Problem(layer.X, layer.Y, layer.W, layer.b), "magnitude", **budget)
    solution = solve(problem, "magnitude", raise_on_failure=True, **budget)
    np.testing.assert_array_equal(solution.W, plain.W)
    np.testing.assert_array_equal(solution.b, plain.b)
    assert solution.status is Status.PRUNED


def test_without_a_radius_a_budget_is_all_that_can_be_met(layer):
    problem = Problem(layer.X, layer.Y, layer.W, layer.b)
    for settings in ({"sparsity": 0.5}, {"nnz": 0}, {"pattern": "2:4"}, {"sparsity": 0.0}):
        solution = solve(problem, "magnitude", raise_on_failure=True, **settings)
        assert set(solution.statuses) == {Status.PRUNED}
        judged = solution.certificate
        assert judged.epsilons is None and judged.violation == 0.0 and judged.bound == 0.0
        assert judged.distance >= 0.0 and judged.activation_error >= 0.0
    assert "budget of weights is met" in solution.explain()


def test_without_a_radius_hard_rows_are_judged_all_the_same(layer):
    problem = Problem(layer.X, layer.Y, layer.W, layer.b, formulation="strict")
    assert certify(problem, layer.W, layer.b).violation == 0.0
    assert certify(problem, np.zeros_like(layer.W), np.ones(4)).violation > 0.0


@pytest.mark.parametrize("radius", RADII)
def test_a_dual_point_proves_nothing_without_a_radius(layer, radius):
    problem = Problem(layer.X, layer.Y, layer.W, layer.b, radius=radius)
    theta = np.random.default_rng(0).standard_normal(layer.Y.shape)
    judged = certify(problem, layer.W, layer.b, theta)
    assert judged.bound == 0.0 and judged.gap == 1.0


def test_a_budget_within_the_radius_is_feasible(layer):
    norms = np.linalg.norm(layer.Y, axis=0)
    problem = Problem(
        layer.X, layer.Y, layer.W, layer.b, radius="per_output",
        epsilon=norms * [10.0, 1e-3, 10.0, 1e-3],
    )  # fmt: skip
    solution = solve(problem, "magnitude", sparsity=0.5, scope="output")
    feasible, pruned = Status.FEASIBLE, Status.PRUNED
    assert solution.statuses == (feasible, pruned, feasible, pruned)
    assert solution.status is pruned


def test_a_convex_solver_cannot_claim_a_budget(layer, monkeypatch):
    from nettrim_solver.solvers import SOLVERS

    info = dataclasses.replace(SOLVERS["magnitude"], convex=True)
    monkeypatch.setitem(SOLVERS, "magnitude", info)
    problem = Problem(layer.X, layer.Y, layer.W, layer.b, epsilon=1e-3)
    assert solve(problem, "magnitude", sparsity=0.5).status is Status.UNPROVED


def test_weights_that_are_not_numbers_meet_no_budget(layer, monkeypatch):
    from nettrim_solver.solvers import magnitude

    def broken(data, settings):
        return lambda budget: np.full(data.W.shape, np.nan)

    monkeypatch.setattr(magnitude, "prepare", broken)
    problem = Problem(layer.X, layer.Y, layer.W, layer.b)
    assert solve(problem, "magnitude", sparsity=0.5).status is Status.UNPROVED


def test_samples_enter_in_any_form(layer, tmp_path):
    X = np.where(layer.X > 0.5, layer.X, 0.0)
    mapped = np.memmap(tmp_path / "X", dtype=np.float64, mode="w+", shape=X.shape)
    mapped[:] = X
    Y = X @ layer.W + layer.b
    plain, *others = (
        solve(Problem(stored, Y, layer.W, layer.b, tolerance=0.5, activation="identity"), "wanda")
        for stored in (X, sp.csr_array(X), mapped)
    )
    assert 0 < plain.nnz < layer.W.size
    for other in others:
        np.testing.assert_array_equal(other.W, plain.W)
        np.testing.assert_array_equal(other.b, plain.b)
