"""Reweighted l1: every round a certified program, and fewer nonzeros or errors at the end."""

import numpy as np
import pytest

from nettrim_solver import (
    Problem,
    Status,
    certify,
    instances,
    refit,
    reweight,
    reweighting_rounds,
    solve,
)
from nettrim_solver.exceptions import ProblemError, SettingsError, SolverError, UnsupportedError
from nettrim_solver.problem import RADII

from .tolerances import TOLERANCE


def layer(n_samples=60, n_inputs=12, n_outputs=4, *, seed=3, **changes):
    return instances.random_relu_layer(
        n_samples, n_inputs, n_outputs, seed=seed, **({"intercept": True} | changes)
    ).problem


def sparse_layer(seed, noise=0.05):
    """Correlated inputs, a third of the weights nonzero, and noise in the trained ones."""
    rng = np.random.default_rng(seed)
    covariance = 0.8 ** np.abs(np.subtract.outer(np.arange(30), np.arange(30)))
    X = rng.standard_normal((150, 30)) @ np.linalg.cholesky(covariance).T
    W = rng.standard_normal((30, 6)) * (rng.random((30, 6)) < 1 / 3)
    trained = W + noise * rng.standard_normal(W.shape)
    return Problem(X, X @ trained, trained, activation="identity", intercept=False), W


BUDGETS = {"nnz": {"nnz": 17}, "sparsity": {"sparsity": 0.6}, "radius": {}}


@pytest.mark.parametrize("start", ["trained", "plain"])
@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
def test_every_round_is_proved(budget, radius, start):
    problem = layer(radius=radius, tolerance=0.3)
    steps = list(reweighting_rounds(problem, 3, start=start, **budget))
    assert len(steps) == 4
    keep = {"nnz": 17, "sparsity": 48 - round(0.6 * 48)}.get(next(iter(budget), ""), 48)
    for step in steps:
        found = step.solution
        assert found.status is Status.OPTIMAL and found.nnz <= keep
        judged = certify(step.problem, found.W, found.b, found.theta)
        assert judged.gap == found.certificate.gap <= TOLERANCE["proved"]
        assert judged.violation == found.certificate.violation <= TOLERANCE["proved"]
    if budget:
        assert steps[-1].solution.nnz == keep
    else:
        assert np.array_equal(steps[-1].problem.epsilon, problem.epsilon)


@pytest.mark.parametrize("scope", ["layer", "output"])
def test_the_last_answer_is_the_last_round(scope):
    problem = layer()
    *_, last = reweighting_rounds(problem, 2, nnz=17, scope=scope)
    solution = reweight(problem, 2, nnz=17, scope=scope)
    assert np.array_equal(solution.W, last.solution.W) and solution.status is Status.OPTIMAL
    if scope == "output":
        assert sorted(np.count_nonzero(solution.W, axis=0)) == [4, 4, 4, 5]


@pytest.mark.parametrize("seed", range(3))
def test_a_sparse_truth_is_found_with_fewer_nonzeros_at_the_same_error(seed):
    problem, truth = sparse_layer(seed)
    problem = problem.replace(tolerance=0.15)
    plain, *rest = reweighting_rounds(problem, 3, start="plain")
    counts = [plain.solution.nnz, *(step.solution.nnz for step in rest)]
    assert counts[-1] < counts[0] and counts[-1] <= counts[1]
    assert counts[-1] <= 1.1 * np.count_nonzero(truth)


@pytest.mark.parametrize("start", ["trained", "plain"])
@pytest.mark.parametrize("seed", range(3))
def test_the_refitted_error_is_smaller_at_the_same_nonzeros(seed, start):
    problem, truth = sparse_layer(seed, noise=0.2)
    keep = np.count_nonzero(truth)
    errors = [
        refit(problem, answer).certificate.distance
        for answer in (
            solve(problem, nnz=keep),
            reweight(problem, nnz=keep, start=start),
        )
    ]
    assert errors[1] < errors[0]


def test_no_rounds_are_the_plain_or_the_adaptive_program():
    problem = layer()
    plain = reweight(problem, 0, nnz=17, start="plain")
    assert np.array_equal(plain.W, solve(problem, nnz=17).W)
    (adaptive,) = reweighting_rounds(problem, 0, nnz=17)
    size = np.abs(problem.W) * np.linalg.norm(problem.X - problem.X.mean(axis=0), axis=0)[:, None]
    slope = adaptive.problem.weights * (size + 1e-3 * size.mean())
    norms = np.linalg.norm(problem.X - problem.X.mean(axis=0), axis=0)[:, None]
    assert slope / norms == pytest.approx(np.full(slope.shape, slope[0, 0] / norms[0, 0]))


def test_without_trained_weights_it_starts_from_the_plain_program():
    problem = layer()
    bare = problem.replace(W=None, b=None)
    first = reweight(bare, 1, nnz=17)
    assert np.array_equal(first.W, reweight(problem, 1, nnz=17, start="plain").W)


@pytest.mark.parametrize("solver", ["magnitude", "admm"])
def test_another_answer_to_begin_with(solver):
    problem = layer()
    before = solve(problem, solver, nnz=17)
    solution = reweight(problem, 1, nnz=17, warm_start=before)
    assert solution.nnz == 17 and solution.status is Status.OPTIMAL
    assert not np.array_equal(solution.W, reweight(problem, 1, nnz=17).W)


def test_the_scaling_of_the_inputs_does_not_matter():
    problem = layer()
    scales = 10.0 ** np.random.default_rng(0).uniform(-2, 2, problem.n_inputs)
    scaled = problem.replace(X=problem.X * scales, W=problem.W / scales[:, None])
    first, second = (reweight(p, 2, nnz=17, tol_gap=1e-9) for p in (problem, scaled))
    assert np.array_equal(first.W != 0, second.W != 0)
    assert second.certificate.distance == pytest.approx(
        first.certificate.distance, rel=TOLERANCE["references_agree"]
    )


@pytest.mark.parametrize("defect", ["unpenalised", "zero_column", "dead_output", "weighted"])
def test_l1_weights_and_defects(defect):
    problem = instances.random_layer(40, 10, 3, intercept=True, defects=[defect], seed=4).problem
    for step in reweighting_rounds(problem, 2, nnz=14):
        assert step.solution.status is Status.OPTIMAL
        weights = np.broadcast_to(step.problem.penalty(), (10, 3))
        assert np.array_equal(weights == 0, np.broadcast_to(problem.penalty() == 0, (10, 3)))
    live = np.linalg.norm(problem.X, axis=0) > 0
    assert step.solution.nnz == 14 and np.all(step.solution.W[~live] == 0)


def test_zero_weights_end_it():
    (only,) = reweighting_rounds(layer(), 3, nnz=0)
    assert not only.solution.W.any() and only.solution.status is Status.OPTIMAL


@pytest.mark.parametrize("solver", ["cvxpy", "osqp"])
def test_with_a_reference(solver):
    problem = layer(40, 8, 2, radius="joint")
    ours, theirs = (reweight(problem, 1, nnz=8, solver=name) for name in ("admm", solver))
    assert theirs.nnz == 8 and theirs.status is Status.OPTIMAL
    assert np.array_equal(ours.W != 0, theirs.W != 0)


def test_repeated_calls_give_the_same_answer_and_leave_the_problem_alone():
    problem = layer()
    W, weights = problem.W.copy(), problem.weights.copy()
    first, second = (reweight(problem, 2, nnz=17) for _ in range(2))
    assert np.array_equal(first.W, second.W)
    assert np.array_equal(problem.W, W) and np.array_equal(problem.weights, weights)


# Stopping early -----------------------------------------------------------------------------


def calls_of(problem, rounds):
    seen = []
    reweight(problem, rounds, nnz=17, callback=lambda progress: seen.append(progress.elapsed))
    return seen


def test_a_stopped_round_gives_the_answer_of_the_last_finished_one():
    problem = layer()
    seen = calls_of(problem, 0)
    assert seen == sorted(seen)
    count = []

    def callback(progress):
        count.append(progress)
        return len(count) > len(seen)

    solution = reweight(problem, 3, nnz=17, callback=callback)
    first = next(iter(reweighting_rounds(problem, 3, nnz=17)))
    assert solution.status is Status.INTERRUPTED and set(solution.statuses) == {Status.INTERRUPTED}
    assert np.array_equal(solution.W, first.solution.W)
    assert len(count) == len(seen) + 1


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
def test_the_time_limit_is_that_of_all_rounds(budget):
    solution = reweight(layer(tolerance=0.3), 2, time_limit=1e-6, **budget)
    assert solution.status is Status.TIME_LIMIT
    with pytest.raises(SolverError):
        reweight(layer(tolerance=0.3), 2, time_limit=1e-6, raise_on_failure=True, **budget)


def test_ctrl_c_between_rounds(monkeypatch):
    from nettrim_solver import reweighting

    def interrupted(*args):
        raise KeyboardInterrupt

    problem = layer()
    monkeypatch.setattr(reweighting, "_weighted", interrupted)
    solution = reweight(problem, 2, nnz=17, start="plain")
    assert solution.status is Status.INTERRUPTED and 0 < solution.nnz <= 17


# Bad input ----------------------------------------------------------------------------------

CASES = {
    "two budgets": ({"nnz": 5, "sparsity": 0.5}, SettingsError, "give sparsity or nnz"),
    "sparsity": ({"sparsity": 1.0}, SettingsError, "sparsity must lie in"),
    "nnz": ({"nnz": 49}, ProblemError, "nnz must be at most 48"),
    "no budget": (
        {"problem": Problem(np.eye(3), np.ones((3, 2)))}, ProblemError, "or the problem a radius"
    ),
    "rounds": ({"rounds": -1}, SettingsError, "rounds must be an integer >= 0, but was -1"),
    "rounds half": ({"rounds": 1.5}, SettingsError, "rounds must be an integer"),
    "start": ({"start": "warm"}, SettingsError, "start must be one of .* 'warm'"),
    "start without W": (
        {"start": "trained", "problem": Problem(np.eye(3), np.ones((3, 2)), epsilon=1.0)},
        ProblemError, "give W to the problem",
    ),
    "scope": ({"scope": "all"}, SettingsError, "scope must be one of"),
    "a pruner": (
        {"solver": "magnitude", "nnz": 5}, UnsupportedError,
        "'magnitude' does not support weights other than ones",
    ),
    "time_limit": ({"time_limit": -1}, SettingsError, "time_limit must lie in"),
    "warm_start": ({"warm_start": 3}, SettingsError, "warm_start must be a Solution"),
    "penalised": (
        {"problem": layer(formulation="penalised")}, ProblemError, "formulation must be 'pooled'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input(case):
    changes, error, message = case
    with pytest.raises(error, match=message) as caught:
        reweighting_rounds(**({"problem": layer()} | changes))  # before any round is asked for
    assert type(caught.value) is error


def test_the_radius_form_is_solved_at_its_radius():
    problem = layer(radius="joint", tolerance=0.2)
    last = reweight(problem, 2)
    assert last.certificate.epsilons[0] == problem.epsilon
    assert last.certificate.distance <= problem.epsilon * (1 + TOLERANCE["proved"])
    assert last.nnz <= solve(problem).nnz
