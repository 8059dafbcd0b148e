"""Budgets: exact counts from every solver, answers proved at their own radius."""

import sys
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import nettrim_solver
from nettrim_solver import (
    Factorisation,
    Problem,
    Status,
    certify,
    instances,
    solve,
)
from nettrim_solver.exceptions import (
    InfeasibleError,
    ProblemError,
    SettingsError,
    SolverError,
    UnsupportedError,
)
from nettrim_solver.penalty_search import options
from nettrim_solver.penalty_search.bracketing import NEARLY
from nettrim_solver.penalty_search.programs import LEAST, Programs, reach
from nettrim_solver.problem import RADII
from nettrim_solver.solvers import SOLVERS

from .tolerances import TOLERANCE

SUCCESS = (Status.OPTIMAL, Status.PRUNED)


def layer(n_samples=60, n_inputs=12, n_outputs=4, *, seed=3, **changes):
    return instances.random_relu_layer(
        n_samples, n_inputs, n_outputs, seed=seed, **({"intercept": True} | changes)
    ).problem


def own(problem, solution, scope="layer"):
    """The problem that the certificate of a convex solver's answer belongs to."""
    radii = solution.certificate.epsilons
    if problem.radius == "per_output" or scope == "output":
        return problem.replace(radius="per_output", epsilon=radii)
    return problem.replace(epsilon=float(radii[0]))


@pytest.mark.parametrize("sparsity", [0.3, 0.7, 0.93])
@pytest.mark.parametrize("solver", ["admm", "cvxpy", "osqp", "magnitude", "wanda", "alps"])
def test_every_solver_meets_the_count(solver, sparsity):
    problem = layer(40, 8, 3, radius="joint")
    solution = solve(problem, solver, sparsity=sparsity)
    assert solution.nnz == 24 - round(sparsity * 24)
    heuristic = (Status.PRUNED, Status.FEASIBLE)
    assert solution.status in ((Status.OPTIMAL,) if solver in CONVEX else heuristic)
    assert solution.solver == solver


CONVEX = ("admm", "cvxpy", "osqp")


def test_the_published_solver_meets_it_too():
    problem = layer(30, 6, 2, formulation="strict", radius="joint")
    solution = solve(problem, "admm-published", nnz=6, max_iter=2000)
    assert solution.nnz <= 6
    assert solution.status is not Status.OPTIMAL or solution.certificate.gap <= TOLERANCE["proved"]


@pytest.mark.parametrize("solver", ["cvxpy", "osqp"])
def test_solvers_agree_on_the_penalty(solver):
    # Between two changes of the pattern any penalty will do: the paths must then be the same.
    problem = layer(40, 8, 3, radius="joint")
    ours, theirs = (solve(problem, name, nnz=10) for name in ("admm", solver))
    again = solve(own(problem, theirs), tol_gap=1e-9)
    assert np.array_equal(again.W != 0, theirs.W != 0)
    assert again.certificate.objective == pytest.approx(
        theirs.certificate.objective, rel=TOLERANCE["references_agree"]
    )
    assert np.array_equal(ours.W != 0, theirs.W != 0)


@pytest.mark.parametrize("scope", ["layer", "output"])
@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("keep", [5, 17, 30])
def test_the_answer_is_the_optimum_at_its_own_radius(radius, scope, keep):
    problem = layer(radius=radius)
    solution = solve(problem, nnz=keep, scope=scope)
    assert solution.nnz == keep and solution.status is Status.OPTIMAL and not solution.warnings
    same = own(problem, solution, scope)
    judged = certify(same, solution.W, solution.b, solution.theta)
    assert judged.gap == solution.certificate.gap <= TOLERANCE["proved"]
    assert judged.violation == solution.certificate.violation <= TOLERANCE["proved"]
    assert solve(same, tol_gap=1e-9).certificate.objective == pytest.approx(
        solution.certificate.objective, rel=TOLERANCE["references_agree"]
    )


@pytest.mark.parametrize("scope", ["layer", "output"])
def test_the_multiplier_is_the_penalty(scope):
    problem = layer()
    solution = solve(problem, nnz=17, scope=scope)
    assert len(np.unique(solution.multiplier)) == (1 if scope == "layer" else 4)
    penalised = problem.replace(
        formulation="penalised", epsilon=None, tolerance=None, lambda_=solution.multiplier
    )
    mine = certify(penalised, solution.W, solution.b)
    best = solve(penalised, tol_gap=1e-9).certificate
    assert mine.objective == pytest.approx(best.objective, rel=TOLERANCE["references_agree"])


@pytest.mark.parametrize("solver", ["magnitude", "wanda", "alps"])
def test_pruners_take_the_count_natively(solver):
    problem = layer()
    for scope in ("layer", "output"):
        ours = solve(problem, solver, nnz=20, scope=scope, damping=0.1)
        theirs = solve(problem, solver, nnz=20, scope=scope, damping=0.1)
        assert np.array_equal(ours.W, theirs.W) and ours.status is theirs.status


@pytest.mark.parametrize("solver", ["admm", "magnitude"])
def test_a_radius_is_solved_natively(solver):
    problem = layer(radius="joint")
    epsilon = 0.4 * float(np.linalg.norm(problem.Y))
    ours = solve(problem.replace(epsilon=epsilon), solver)
    theirs = solve(problem.replace(epsilon=epsilon), solver)
    assert np.array_equal(ours.W, theirs.W) and ours.status is theirs.status
    assert ours.certificate.distance <= epsilon * (1 + TOLERANCE["proved"])


@pytest.mark.parametrize("count", [1, 3, 6])
def test_weights_set_back_cost_a_gap_of_second_order(count):
    problem = layer(120, 20, 6, radius="joint")
    level = 0.1 * float(Programs(problem, "admm", False).unit[0])
    full = solve(problem.penalise(level), tol_gap=1e-12)
    size = np.where(full.W == 0, np.inf, np.abs(full.W))
    W = full.W.copy()
    W.flat[np.argsort(size, axis=None)[:count]] = 0.0
    distance = float(np.linalg.norm(reach(problem, W, full.b)))
    judged = certify(problem.within(distance), W, full.b, full.theta)
    change = np.linalg.norm(problem.X @ (full.W - W)) ** 2
    bound = change / (2 * level * judged.objective)
    assert 0 < judged.gap <= bound * (1 + TOLERANCE["multiplier"])


# Limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("formulation", ["pooled", "strict"])
def test_no_weights(formulation, intercept, radius):
    problem = layer(formulation=formulation, intercept=intercept, radius=radius)
    solution = solve(problem, nnz=0)
    assert not solution.W.any() and solution.status is Status.OPTIMAL
    if not intercept:
        norms = problem.target_norms if radius == "per_output" else [solution.certificate.distance]
        assert solution.certificate.epsilons == pytest.approx(norms)


@pytest.mark.parametrize("scope", ["layer", "output"])
def test_all_weights_come_at_the_least_penalty(scope):
    problem = layer(200, 6, 3)
    solution = solve(problem, sparsity=0.0, scope=scope)
    assert solution.nnz == problem.n_inputs * problem.n_outputs
    least = solve(problem.least_distance()).certificate.distance
    assert solution.certificate.distance <= least + 1e-2 * np.linalg.norm(problem.target_norms)


def test_more_weights_reach_a_smaller_distance_at_a_larger_norm():
    problem = layer(radius="joint")
    path = [solve(problem, nnz=keep) for keep in range(0, 41, 8)]
    assert [solution.nnz for solution in path] == list(range(0, 41, 8))
    for fewer, more in zip(path, path[1:], strict=False):
        assert more.certificate.distance < fewer.certificate.distance
        assert more.certificate.objective > fewer.certificate.objective


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("activation", ["relu", "identity", "relu6"])
def test_the_largest_penalty_is_exact(activation, intercept):
    problem = instances.random_layer(
        50, 8, 3, activation=activation, intercept=intercept, seed=2
    ).problem
    unit = Programs(problem, "admm", True).unit
    assert not solve(problem.penalise(1.0001 * unit), tol_gap=1e-10).W.any()
    below = solve(problem.penalise(0.999 * unit), tol_gap=1e-10)
    assert np.all(np.count_nonzero(below.W, axis=0) >= 1)


def test_what_no_penalty_can_use_stays_unused():
    # With fewer samples than inputs a basic solution meets the targets with few weights.
    problem = layer(10, 30, 3, radius="joint")
    solution = solve(problem, sparsity=0.2)
    assert 0 < solution.nnz <= 30 < 72
    (warning,) = solution.warnings
    assert warning.startswith(f"{solution.nnz} nonzeros are returned, although 72 may stay")
    assert solution.status == "optimal" and solve(problem, "alps", nnz=72).nnz == 72
    assert solution.certificate.distance <= 1e3 * LEAST * np.linalg.norm(problem.target_norms)


def near_interpolation():
    """More inputs than active samples: about half of the weights meet all targets."""
    return layer(60, 80, 8, radius="joint", intercept=False)


def test_near_interpolation_ends_before_the_least_penalty(monkeypatch):
    problem, levels = near_interpolation(), []
    solved = options.solve_program

    def watched(problem, *args, **keywords):
        levels.append(float(np.min(problem.lambda_)))
        return solved(problem, *args, **keywords)

    monkeypatch.setattr(options, "solve_program", watched)
    solution = solve(problem, sparsity=0.1)
    unit = Programs(problem, "admm", False).unit[0]
    assert solution.nnz < 576 and solution.status == "optimal"
    assert min(levels) > 1.5 * LEAST * unit and len(levels) <= 5
    reached = solution.certificate.distance / np.linalg.norm(problem.target_norms)
    assert 0 < reached <= NEARLY
    (warning,) = solution.warnings
    assert f"although 576 may stay: they come within {100 * reached:.2g} % of" in warning
    # The least penalty of all leaves too few, too: the search was right to end.
    least = solve(problem.penalise(LEAST * unit))
    assert least.nnz < 576


@pytest.mark.parametrize("sparsity", [0.02, 0.1, 0.3])
def test_counts_that_are_within_reach_are_met_however_near_the_targets(sparsity):
    # Trained weights of all sizes: without the small ones the distance is below a per cent.
    rng = np.random.default_rng(0)
    X, sizes = rng.standard_normal((200, 20)), 10.0 ** rng.uniform(-3.5, 0, (20, 5))
    W = rng.standard_normal((20, 5)) * sizes
    problem = Problem(X, X @ W, W, activation="identity", intercept=False)
    solution = solve(problem, sparsity=sparsity)
    assert solution.nnz == 100 - round(sparsity * 100) and solution.status == "optimal"
    distance = solution.certificate.distance
    assert 0 < distance < NEARLY * np.linalg.norm(problem.target_norms)


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.95])
def test_a_search_takes_few_solves_of_all_outputs(monkeypatch, sparsity, radius):
    problem, outputs = layer(200, 40, 80, radius=radius), []
    solved = options.solve_program

    def watched(problem, *args, **keywords):
        outputs.append(problem.n_outputs)
        return solved(problem, *args, **keywords)

    monkeypatch.setattr(options, "solve_program", watched)
    solution = solve(problem, sparsity=sparsity)
    assert solution.sparsity == sparsity and solution.status == "optimal"
    assert outputs[0] == 32 and 1 <= outputs.count(80) <= 5 and len(outputs) <= 10


def test_the_guessed_slope_is_that_of_the_guess():
    programs = Programs(layer(), "admm", False)
    keep = np.array([12])
    (low,), (high,) = (programs.guess(keep + step) for step in (-1, 1))
    logits = [np.log(k / (48 - k)) for k in (11, 13)]
    slope = (logits[1] - logits[0]) / (high - low)
    assert programs.slope(keep)[0] == pytest.approx(slope, rel=0.02)


# Ties ---------------------------------------------------------------------------------------


def test_equal_weights_that_enter_together_are_told_apart():
    # Six equal targets on orthonormal inputs: all weights are equal at every penalty.
    problem = Problem(
        np.eye(8), np.r_[np.full(6, 2.0), np.zeros(2)], activation="identity", intercept=False
    )
    solution = solve(problem, nnz=4)
    assert solution.nnz == 4
    assert np.array_equal(np.flatnonzero(solution.W), [2, 3, 4, 5])  # the first of equals go
    if solution.status is Status.PRUNED:
        (warning,) = solution.warnings
        assert "; 2 of the smallest weights were dropped" in warning
    else:
        assert solution.status is Status.OPTIMAL and not solution.warnings


@pytest.mark.parametrize("keep", [3, 10, 19])
def test_duplicated_inputs(keep):
    problem = instances.random_layer(40, 9, 3, defects=["duplicate_columns"], seed=1).problem
    solution = solve(problem, nnz=keep)
    assert solution.nnz == keep and solution.status in SUCCESS
    dropped = any("dropped" in warning for warning in solution.warnings)
    assert dropped == (solution.status is Status.PRUNED)


# Kinds of problems --------------------------------------------------------------------------


@pytest.mark.parametrize("defect", instances.DEFECTS)
@pytest.mark.parametrize("scope", ["layer", "output"])
def test_defects_of_real_layers(defect, scope):
    problem = instances.random_layer(
        40, 10, 3, intercept=defect != "constant_feature", defects=[defect], seed=4
    ).problem
    solution = solve(problem, nnz=12, scope=scope)
    assert solution.status in SUCCESS
    free = np.broadcast_to(problem.penalty() == 0, solution.W.shape)
    live = np.linalg.norm(problem.X, axis=0) > 0
    assert np.all(solution.W[free & live[:, None]] != 0)
    assert np.all(solution.W[~live] == 0)
    per_output = np.count_nonzero(solution.W, axis=0)
    if defect == "dead_output" and scope == "output":
        assert np.all(per_output <= 4)
    else:
        assert solution.nnz == 12


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("keep", [8, 24])
def test_strict(radius, keep):
    problem = layer(formulation="strict", radius=radius)
    solution = solve(problem, nnz=keep)
    assert solution.nnz == keep and solution.status in SUCCESS
    assert own(problem, solution).strict
    judged = certify(own(problem, solution), solution.W, solution.b, solution.theta)
    assert judged.gap == solution.certificate.gap


def test_outputs_share_the_count_equally():
    problem = layer(60, 12, 5)
    solution = solve(problem, nnz=23, scope="output")
    counts = np.count_nonzero(solution.W, axis=0)
    assert sorted(counts) == [4, 4, 5, 5, 5]
    larger = np.argsort(-problem.target_norms)[:3]
    assert np.all(counts[larger] == 5)
    assert solution.certificate.epsilons.shape == (5,)
    assert solution.status is Status.OPTIMAL
    # Nothing of one output depends on the others.
    alone = solve(problem.select([int(larger[0])]), nnz=5, scope="output")
    assert np.array_equal(alone.W[:, 0] != 0, solution.W[:, larger[0]] != 0)


@pytest.mark.parametrize("radius", RADII)
def test_many_outputs_are_estimated_on_a_few(radius):
    problem = layer(50, 8, 140, radius=radius)
    solves = []
    solution = solve(
        problem, sparsity=0.6, callback=lambda progress: solves.append(progress.n_outputs)
    )
    assert solution.nnz == 1120 - 672 and solution.status is Status.OPTIMAL
    assert set(solves) == {32, 140}


def test_single_precision():
    problem = layer(dtype=np.float32, radius="joint")
    solution = solve(problem, nnz=15)
    assert solution.W.dtype == np.float32 and solution.nnz == 15
    assert solution.status is Status.OPTIMAL


def test_sparse_inputs():
    problem = layer(radius="joint")
    sparse = problem.replace(X=sp.csr_array(problem.X))
    first, second = (solve(p, nnz=15) for p in (problem, sparse))
    assert np.array_equal(first.W != 0, second.W != 0)


@settings(max_examples=25)
@given(
    n_samples=st.integers(4, 40),
    n_inputs=st.integers(1, 12),
    n_outputs=st.integers(1, 4),
    sparsity=st.floats(0, 0.999),
    radius=st.sampled_from(RADII),
    scope=st.sampled_from(["layer", "output"]),
    intercept=st.booleans(),
    seed=st.integers(0, 5),
)
def test_the_count_is_met_or_said_to_be_out_of_reach(
    n_samples, n_inputs, n_outputs, sparsity, radius, scope, intercept, seed
):
    problem = instances.random_layer(
        n_samples, n_inputs, n_outputs, radius=radius, intercept=intercept, seed=seed
    ).problem
    keep = n_inputs * n_outputs - round(sparsity * n_inputs * n_outputs)
    solution = solve(problem, sparsity=sparsity, scope=scope, max_iter=500)
    assert solution.nnz <= keep
    assert solution.nnz == keep or any("although" in warning for warning in solution.warnings)
    own_radius = reach(problem, solution.W, solution.b)
    if radius == "joint" and scope == "layer":
        own_radius = [np.linalg.norm(own_radius)]
    assert solution.certificate.epsilons == pytest.approx(own_radius, rel=TOLERANCE["norm"])


# Starts, threads, determinism -----------------------------------------------------------------


@pytest.mark.parametrize("other", [3, 16, 40])
def test_any_start_leads_to_the_count(other):
    problem = layer(radius="joint")
    start = solve(problem, nnz=other)
    cold, warm = solve(problem, nnz=17), solve(problem, nnz=17, warm_start=start)
    assert warm.nnz == 17 and warm.status is Status.OPTIMAL
    assert np.array_equal(cold.W != 0, warm.W != 0)


def test_a_start_from_a_pruner():
    problem = layer(radius="joint")
    start = solve(problem, "magnitude", nnz=17)
    assert solve(problem, nnz=17, warm_start=start).status is Status.OPTIMAL


def test_a_shared_factorisation():
    problem = layer(radius="joint")
    shared = solve(problem, nnz=17, factorisation=Factorisation(problem))
    assert np.array_equal(shared.W, solve(problem, nnz=17).W)
    with pytest.raises(ProblemError, match="factorisation must come from"):
        solve(problem, nnz=17, factorisation=Factorisation(layer(seed=5)))


@pytest.mark.parametrize("scope", ["layer", "output"])
def test_repeated_calls_give_the_same_answer_and_leave_the_problem_alone(scope):
    problem = layer()
    X, Y = problem.X.copy(), problem.Y.copy()
    first, second = (solve(problem, nnz=17, scope=scope) for _ in range(2))
    assert np.array_equal(first.W, second.W) and np.array_equal(first.b, second.b)
    assert np.array_equal(problem.X, X) and np.array_equal(problem.Y, Y)
    assert not np.shares_memory(first.W, second.W)
    assert first.W.flags.writeable


# Stopping early -----------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["layer", "output"])
@pytest.mark.parametrize("after", [0, 3, 8])
def test_a_callback_may_stop_the_search(after, scope):
    problem, seen = layer(n_outputs=6), []

    def callback(progress):
        seen.append(progress.elapsed)
        return len(seen) > after

    solution = solve(problem, nnz=30, scope=scope, callback=callback)
    assert len(seen) == after + 1 and seen == sorted(seen)
    assert solution.status is Status.INTERRUPTED
    assert solution.nnz <= 30 and np.all(np.isfinite(solution.W))
    assert np.all(np.isfinite(solution.certificate.distances))


def test_a_callback_that_only_looks_changes_nothing():
    problem, seen = layer(), []
    watched = solve(problem, nnz=17, callback=seen.append)
    assert len(seen) > 1 and np.array_equal(watched.W, solve(problem, nnz=17).W)


@pytest.mark.parametrize("n_outputs", [4, 140])
def test_ctrl_c_returns_the_best_so_far(n_outputs):
    problem, calls = layer(n_outputs=n_outputs), []

    def callback(progress):
        calls.append(progress)
        raise KeyboardInterrupt

    solution = solve(problem, nnz=17, callback=callback)
    assert solution.status is Status.INTERRUPTED and solution.nnz <= 17 and len(calls) == 1


def test_ctrl_c_between_two_solves(monkeypatch):
    from nettrim_solver.penalty_search.bracketing import Search

    def interrupted(self, u):
        raise KeyboardInterrupt

    monkeypatch.setattr(Search, "_next", interrupted)
    solution = solve(layer(), nnz=17)
    assert solution.status is Status.INTERRUPTED and solution.nnz <= 17


@pytest.mark.parametrize("solver", ["admm", "cvxpy", "osqp"])
def test_the_time_limit_is_that_of_the_search(solver):
    problem = layer(radius="joint")
    solution = solve(problem, solver, nnz=17, time_limit=1e-6)
    assert solution.status is Status.TIME_LIMIT and solution.nnz <= 17
    enough = solve(problem, solver, nnz=17, time_limit=1000.0)
    assert enough.status is Status.OPTIMAL and enough.nnz == 17


def test_an_early_stop_raises_when_asked_to():
    with pytest.raises(SolverError) as caught:
        solve(layer(), nnz=17, time_limit=1e-6, raise_on_failure=True)
    assert caught.value.solution.status is Status.TIME_LIMIT


def test_hard_rows_that_contradict_each_other():
    problem = instances.infeasible(kind="hard_rows", radius="joint", seed=1).problem
    with pytest.raises(InfeasibleError) as caught:
        solve(problem, nnz=5, max_iter=500, raise_on_failure=True)
    solution = caught.value.solution
    assert solution.status is Status.INFEASIBLE and np.isinf(solution.least_epsilon).any()


# Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["admm", "magnitude"])
@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, np.nan, "high", True, [0.5]])
def test_a_sparsity_outside_its_range(sparsity, solver):
    with pytest.raises(SettingsError, match=r"sparsity must lie in \[0, 1\), but was"):
        solve(layer(), solver, sparsity=sparsity)


@pytest.mark.parametrize("solver", ["admm", "magnitude"])
@pytest.mark.parametrize("nnz", [-1, 2.5, "all", True])
def test_a_count_that_is_none(nnz, solver):
    with pytest.raises(SettingsError, match="nnz must be an integer >= 0, but was"):
        solve(layer(), solver, nnz=nnz)


CASES = {
    "too many": ({"nnz": 49}, ProblemError, "nnz must be at most 48, all of W, but was 49"),
    "too many, pruner": (
        {"nnz": 49, "solver": "magnitude"}, ProblemError, "nnz must be at most 48"
    ),
    "no problem": ({"problem": np.eye(3)}, ProblemError, "problem must be a Problem"),
    "unknown solver": ({"solver": "magic"}, SettingsError, "solver must be one of .* 'magic'"),
    "no name": ({"solver": 3}, SettingsError, "solver must be one of .* but was 3"),
    "scope": ({"scope": "network"}, SettingsError, "scope must be one of .* 'network'"),
    "unknown setting": ({"rounding": 1}, SettingsError, "unknown setting 'rounding'"),
    "both budgets": (
        {"sparsity": 0.5}, SettingsError, "not both, but sparsity was 0.5 and nnz was 10"
    ),
    "both budgets, pruner": (
        {"sparsity": 0.5, "solver": "magnitude"}, SettingsError, "not both, but sparsity was 0.5"
    ),
    "pattern, convex": ({"pattern": "2:4"}, SettingsError, "unknown setting 'pattern'"),
    "pattern": (
        {"pattern": "2:4", "solver": "magnitude"}, SettingsError, "give one of sparsity, nnz"
    ),
    "scope without a count": (
        {"nnz": None, "scope": "layer"}, SettingsError, "scope must be None .* without sparsity"
    ),
    "time_limit": ({"time_limit": 0.0}, SettingsError, "time_limit must lie in"),
    "tol_gap": ({"tol_gap": 2.0}, SettingsError, "tol_gap must lie in"),
    "tol_feas": ({"tol_feas": 0.0}, SettingsError, "tol_feas must lie in"),
    "callback": ({"callback": 3}, SettingsError, "callback must be callable, but was 3"),
    "warm_start": ({"warm_start": 3}, SettingsError, "warm_start must be a Solution"),
    "n_threads": ({"n_threads": 0}, SettingsError, "n_threads"),
    "formulation": (
        {"solver": "admm-published"}, UnsupportedError, "does not support formulation='pooled'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input(case):
    changes, error, message = case
    with pytest.raises(error, match=message) as caught:
        solve(**({"problem": layer(), "nnz": 10} | changes))
    assert type(caught.value) is error


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_nothing_is_solved_before_the_checks(case, monkeypatch):
    def never(*args, **options):
        raise AssertionError("work began before the checks")

    changes, error, message = case
    if changes.get("solver") != "magnitude" and "n_threads" not in changes:
        monkeypatch.setattr(sys.modules["nettrim_solver.solve"], "search_for_nnz", never)
    with pytest.raises(error, match=message):
        solve(**({"problem": layer(), "nnz": 10} | changes))


@pytest.mark.parametrize("formulation", ["penalised", "penalised_strict"])
@pytest.mark.parametrize("budget", [{"nnz": 5}, {"sparsity": 0.5}])
@pytest.mark.parametrize("solver", ["admm", "osqp", "magnitude", "alps"])
def test_a_count_for_a_penalised_problem_is_refused(solver, budget, formulation):
    problem = layer(formulation=formulation)
    other = "strict" if formulation == "penalised_strict" else "pooled"
    with pytest.raises(
        ProblemError, match=f"must be '{other}', .* lambda_, but was {formulation!r}"
    ):
        solve(problem, solver, **budget)


@pytest.mark.parametrize("solver", ["admm", "cvxpy", "osqp", "magnitude", "alps"])
def test_a_count_comes_before_the_radius(solver):
    problem = layer(40, 8, 3, radius="joint")
    radius = 0.2 * float(np.linalg.norm(problem.target_norms))
    alone, both = (solve(p, solver, nnz=10) for p in (problem, problem.replace(epsilon=radius)))
    assert np.array_equal(alone.W, both.W)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_takes_a_time_limit(solver):
    problem = layer(30, 6, 2, formulation="strict", radius="joint")
    budget = {"epsilon": 0.5 * float(np.linalg.norm(problem.target_norms))}
    solution = solve(problem.replace(**budget), solver, time_limit=1e-9)
    assert solution.status is Status.TIME_LIMIT
    with pytest.raises(SettingsError, match="time_limit must lie in"):
        solve(problem.replace(**budget), solver, time_limit=0.0)


def test_a_solver_without_a_time_limit_says_so(monkeypatch):
    @dataclass(frozen=True)
    class Settings:
        def validate(self):
            pass

    monkeypatch.setattr(sys.modules["nettrim_solver.solvers.admm"], "Settings", Settings)
    message = r"time_limit must be None for solver 'admm', .* but was 1\.0"
    for budget in ({"nnz": 5}, {}):
        with pytest.raises(SettingsError, match=message):
            solve(layer().replace(epsilon=1.0), time_limit=1.0, **budget)


@pytest.mark.parametrize("name", ["epsilon", "nnz", "sparsity"])
def test_the_old_functions_name_their_successor(name):
    with pytest.raises(AttributeError, match=rf"solve_for_{name}'; use solve\(problem.*{name}="):
        getattr(nettrim_solver, f"solve_for_{name}")


@pytest.mark.parametrize("scope", ["layer", "output"])
def test_unpenalised_weights_need_room(scope):
    problem = layer().replace(weights=np.r_[np.zeros(3), np.ones(9)])
    with pytest.raises(ProblemError, match="room for the 12 weights whose l1 weight is 0"):
        solve(problem, nnz=11, scope=scope)
    assert solve(problem, nnz=12, scope=scope).nnz == 12


def test_a_pruner_without_trained_weights():
    problem = layer().replace(W=None, b=None)
    with pytest.raises(UnsupportedError, match="starts from trained weights"):
        solve(problem, "magnitude", nnz=5)
    assert solve(problem, nnz=5).nnz == 5
