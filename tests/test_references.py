"""The reference solvers: they agree, they say what they are, and nothing of a backend leaks."""

import argparse
import importlib.util
from itertools import product

import numpy as np
import pytest
import scipy.sparse as sp

from benchmarks import agreement
from nettrim_solver import Problem, Status, instances, solve
from nettrim_solver.exceptions import (
    InfeasibleError,
    MissingDependencyError,
    SettingsError,
    UnsupportedError,
)
from nettrim_solver.problem import FORMULATIONS, RADII

from .tolerances import TOLERANCE

REFERENCES = ("cvxpy", "osqp")

CASES = [
    (formulation, radius, intercept)
    for formulation, radius, intercept in product(FORMULATIONS, RADII, (False, True))
    if radius == "per_output" or not formulation.startswith("penalised")
]


def small_layer(formulation="pooled", radius="per_output", intercept=False, **changes):
    return instances.random_layer(
        30, 8, 3, formulation=formulation, radius=radius, intercept=intercept, seed=8, **changes
    ).problem


# Agreement -------------------------------------------------------------------------------------


@pytest.mark.parametrize("defects", [(), ("weighted",), ("unpenalised",), ("dead_output",)])
@pytest.mark.parametrize(("formulation", "radius", "intercept"), CASES)
def test_references_agree_and_are_proved(formulation, radius, intercept, defects):
    problem = small_layer(formulation, radius, intercept, activation="relu6", defects=defects)
    solutions = [solve(problem, solver=name) for name in REFERENCES]
    assert [s.status for s in solutions] == [Status.OPTIMAL, Status.OPTIMAL]
    first, second = (s.certificate.objectives for s in solutions)
    if radius == "joint":
        first, second = first.sum(), second.sum()
    np.testing.assert_allclose(first, second, rtol=TOLERANCE["references_agree"], atol=1e-9)


@pytest.mark.parametrize("solver", REFERENCES)
@pytest.mark.parametrize("kind", ["plain", "degenerate", "duplicate_columns"])
@pytest.mark.parametrize(("formulation", "radius"), list(product(("pooled", "strict"), RADII)))
def test_planted_answers_are_found(solver, formulation, radius, kind):
    planted = instances.planted(
        40, 10, 3, formulation=formulation, radius=radius, kind=kind, intercept=True, seed=3
    )
    solution = solve(planted.problem, solver=solver)
    assert solution.status is Status.OPTIMAL
    assert solution.certificate.objective == pytest.approx(
        planted.objective, rel=TOLERANCE["references_agree"]
    )


@pytest.mark.parametrize("solver", REFERENCES)
@pytest.mark.parametrize(("formulation", "radius"), list(product(("pooled", "strict"), RADII)))
def test_the_multiplier_links_ball_and_penalty(solver, formulation, radius):
    problem = small_layer(formulation, radius, True)
    ball = solve(problem, solver=solver)
    penalised = {"pooled": "penalised", "strict": "penalised_strict"}[formulation]
    same = problem.replace(formulation=penalised, lambda_=ball.multiplier)
    linked = solve(same, solver=solver)
    np.testing.assert_allclose(
        np.abs(linked.W).sum(axis=0), np.abs(ball.W).sum(axis=0), rtol=TOLERANCE["multiplier"]
    )
    if radius == "joint":
        assert np.ptp(ball.multiplier) == 0
    assert np.array_equal(linked.multiplier, ball.multiplier)


@pytest.mark.parametrize("solver", ["admm", *REFERENCES])
@pytest.mark.parametrize("formulation", ["penalised", "penalised_strict"])
def test_the_dual_point_is_the_distance_over_the_multiplier(solver, formulation):
    problem = small_layer(formulation, "per_output", True)
    solution = solve(problem, solver=solver)
    lower, upper = problem.box()
    Z = problem.X @ solution.W + solution.b
    E = Z - np.clip(Z, lower, upper)
    ball = lower == upper if problem.strict else np.ones(Z.shape, dtype=bool)
    np.testing.assert_allclose(
        np.where(ball, solution.multiplier * solution.theta, 0.0), np.where(ball, E, 0.0),
        atol=TOLERANCE["multiplier"] * np.abs(E).max(),
    )  # fmt: skip


# Shapes of problems ----------------------------------------------------------------------------


@pytest.mark.parametrize("solver", REFERENCES)
@pytest.mark.parametrize(("formulation", "radius", "intercept"), CASES)
def test_no_matched_rows_and_nothing_but_matched_rows(solver, formulation, radius, intercept):
    for active in (0.0, 1.0):
        problem = instances.random_box(
            30, 8, 2, active=active, formulation=formulation, radius=radius, intercept=intercept,
            seed=2,
        ).problem  # fmt: skip
        assert solve(problem, solver=solver).status is Status.OPTIMAL


@pytest.mark.parametrize("solver", REFERENCES)
@pytest.mark.parametrize(("formulation", "radius"), list(product(("pooled", "strict"), RADII)))
def test_a_generous_radius_needs_no_weights(solver, formulation, radius):
    problem = small_layer(formulation, radius).replace(tolerance=2.0)
    solution = solve(problem, solver=solver)
    assert solution.status is Status.OPTIMAL
    assert solution.nnz == 0


@pytest.mark.parametrize("solver", REFERENCES)
@pytest.mark.parametrize(("formulation", "radius"), list(product(("pooled", "strict"), RADII)))
def test_epsilon_zero(solver, formulation, radius):
    planted = instances.planted(
        30, 8, 2, epsilon=0.0, formulation=formulation, radius=radius, seed=6
    )
    solution = solve(planted.problem, solver=solver)
    assert solution.status is Status.OPTIMAL
    assert solution.certificate.objective == pytest.approx(
        planted.objective, rel=TOLERANCE["references_agree"]
    )


@pytest.mark.parametrize("solver", REFERENCES)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_rows_without_limits(solver, formulation):
    free = np.full((5, 1), np.inf)
    budget = {"lambda_": 1.0} if formulation.startswith("penalised") else {"epsilon": 1.0}
    problem = Problem(np.eye(5), lower=-free, upper=free, formulation=formulation, **budget)
    solution = solve(problem, solver=solver)
    assert solution.status is Status.OPTIMAL
    assert solution.nnz == 0


@pytest.mark.parametrize("solver", REFERENCES)
@pytest.mark.parametrize(("formulation", "radius"), list(product(("pooled", "strict"), RADII)))
def test_sparse_and_float32_inputs(solver, formulation, radius):
    problem = small_layer(formulation, radius, True)
    expected = solve(problem, solver=solver)
    sparse = solve(problem.replace(X=sp.csr_array(problem.X)), solver=solver)
    np.testing.assert_allclose(sparse.W, expected.W, atol=TOLERANCE["references_agree"])
    single = solve(problem.replace(X=problem.X.astype(np.float32)), solver=solver)
    assert single.W.dtype == single.b.dtype == np.float32
    assert single.status is Status.OPTIMAL


@pytest.mark.parametrize("solver", REFERENCES)
@pytest.mark.parametrize("size", [(1e6, 1.0), (1e-6, 1.0), (1.0, 1e6), (1.0, 1e-6)])
def test_units_do_not_matter(solver, size):
    problem = small_layer(intercept=True)
    scaled = Problem(size[0] * problem.X, size[1] * problem.Y, tolerance=0.2, radius="per_output")
    assert solve(scaled, solver=solver).status is Status.OPTIMAL


# Outcomes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", REFERENCES)
@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize(
    ("kind", "formulation"), [("radius", "pooled"), ("radius", "strict"), ("hard_rows", "strict")]
)
def test_infeasible_problems_are_proved_so(solver, kind, formulation, radius, intercept):
    bad = instances.infeasible(
        kind=kind, formulation=formulation, radius=radius, intercept=intercept, seed=1
    )
    solution = solve(bad.problem, solver=solver)
    assert solution.status is Status.INFEASIBLE
    np.testing.assert_allclose(
        solution.least_epsilon, bad.least_epsilon, rtol=TOLERANCE["least_radius"]
    )
    with pytest.raises(InfeasibleError, match="Least reachable epsilon"):
        solve(bad.problem, solver=solver, raise_on_failure=True)


@pytest.mark.parametrize("solver", REFERENCES)
def test_outputs_are_judged_one_by_one(solver):
    bad = instances.infeasible(kind="radius", seed=1)
    radii = bad.least_epsilon * np.array([0.5, 2.0, 2.0])
    solution = solve(bad.problem.replace(epsilon=radii), solver=solver)
    assert solution.statuses == (Status.INFEASIBLE, Status.OPTIMAL, Status.OPTIMAL)


@pytest.mark.parametrize("solver", [*REFERENCES, "admm-published"])
def test_time_limit_and_callback(solver):
    problem = small_layer("strict")
    late = solve(problem, solver=solver, time_limit=1e-9)
    assert late.status is Status.TIME_LIMIT
    seen = []
    stopped = solve(problem, solver=solver, callback=lambda p: seen.append(p) or True)
    assert len(seen) == 1
    assert stopped.status is Status.INTERRUPTED
    assert seen[0].n_outputs == 3
    watched = solve(problem, solver=solver, callback=lambda p: seen.append(p))
    assert watched.status is not Status.INTERRUPTED
    assert len(seen) > 2


@pytest.mark.parametrize("solver", REFERENCES)
def test_compile_time_is_kept_apart(solver):
    seconds = solve(small_layer(), solver=solver).seconds
    assert 0 < seconds["compile"] < seconds["total"]
    assert 0 < seconds["solve"] < seconds["total"]


# Failures --------------------------------------------------------------------------------------


def broken(error):
    def fail(*args, **options):
        raise error

    return fail


@pytest.mark.parametrize(
    ("solver", "method"), [("cvxpy", "cvxpy.Problem.solve"), ("osqp", "osqp.OSQP.setup")]
)
def test_backend_exceptions_do_not_leak(monkeypatch, solver, method):
    monkeypatch.setattr(method, broken(RuntimeError("out of luck")))
    solution = solve(small_layer(), solver=solver)
    assert solution.status is Status.FAILED
    assert len(solution.warnings) == 1
    assert "RuntimeError: out of luck" in solution.warnings[0]


@pytest.mark.parametrize(
    ("solver", "method"), [("cvxpy", "cvxpy.Problem.solve"), ("osqp", "osqp.OSQP.solve")]
)
def test_an_interrupt_returns_what_there_is(monkeypatch, solver, method):
    monkeypatch.setattr(method, broken(KeyboardInterrupt()))
    assert solve(small_layer(), solver=solver).status is Status.INTERRUPTED


@pytest.mark.parametrize("solver", REFERENCES)
def test_a_missing_package_is_named(monkeypatch, solver):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == solver else find(name)
    )
    with pytest.raises(MissingDependencyError, match=rf"{solver}.*nettrim_solver\[reference\]"):
        solve(small_layer(), solver=solver)


@pytest.mark.parametrize(
    ("solver", "settings", "words"),
    [
        ("cvxpy", {"backend": "NONE"}, "backend must be one of"),
        ("cvxpy", {"backend": 3}, "backend must be a name"),
        ("cvxpy", {"backend_options": 3}, "backend_options must be a dict"),
        ("cvxpy", {"time_limit": 0}, "time_limit must lie"),
        ("osqp", {"eps": 0}, "eps must lie"),
        ("osqp", {"max_iter": 0}, "max_iter must be"),
        ("osqp", {"time_limit": -1}, "time_limit must lie"),
        ("osqp", {"backend_options": 3}, "backend_options must be a dict"),
        ("admm-published", {"rho": 0}, "rho must lie"),
        ("admm-published", {"max_iter": 0}, "max_iter must be"),
        ("admm-published", {"max_iter": 10.0}, "max_iter must be an integer"),
        ("osqp", {"eps": "1e-9"}, "eps must lie"),
        ("admm-published", {"tol": -1}, "tol must lie"),
        ("cvxpy", {"rho": 1}, "unknown setting 'rho'"),
    ],
)
def test_bad_settings(solver, settings, words):
    with pytest.raises(SettingsError, match=words):
        solve(small_layer("strict"), solver=solver, **settings)


def test_a_bad_backend_option_is_a_failure_not_an_exception():
    for solver in REFERENCES:
        solution = solve(small_layer(), solver=solver, backend_options={"no_such_option": 1})
        assert solution.status is Status.FAILED
        assert solution.warnings


def test_another_backend():
    solution = solve(small_layer(), solver="cvxpy", backend="SCS")
    expected = solve(small_layer(), solver="cvxpy")
    assert solution.certificate.objective == pytest.approx(
        expected.certificate.objective, rel=TOLERANCE["multiplier"]
    )


def test_an_iteration_limit_is_said():
    few = solve(small_layer(), solver="cvxpy", backend_options={"max_iter": 2})
    assert few.status is Status.MAX_ITERATIONS


# The published ADMM ----------------------------------------------------------------------------


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("intercept", [False, True])
def test_published_admm_comes_near(radius, intercept):
    planted = instances.planted(
        40, 10, 3, formulation="strict", radius=radius, intercept=intercept, seed=3
    )
    solution = solve(planted.problem, solver="admm-published", rho=10.0)
    assert 0 < solution.iterations[0] < 10_000
    assert solution.certificate.violation < TOLERANCE["published_stop"]
    assert solution.certificate.gap < TOLERANCE["published_stop"]
    assert solution.certificate.objective == pytest.approx(
        planted.objective, rel=TOLERANCE["published_stop"]
    )


def test_published_admm_converges_without_its_stop():
    planted = instances.planted(40, 10, 3, formulation="strict", seed=3)
    solution = solve(planted.problem, solver="admm-published", rho=1.0, tol=0.0, max_iter=5000)
    assert solution.status is Status.OPTIMAL
    assert set(solution.iterations) == {5000}
    assert np.array_equal(solution.W == 0, planted.W == 0)


def test_published_admm_is_strict_only():
    with pytest.raises(UnsupportedError, match=r"formulation='pooled'.*'cvxpy'"):
        solve(small_layer("pooled"), solver="admm-published")


def test_published_admm_takes_any_layer():
    for defect in instances.DEFECTS:
        problem = small_layer("strict", intercept=True, defects=[defect])
        solution = solve(problem, solver="admm-published")
        assert np.all(np.isfinite(solution.W))
        assert solution.certificate.violation < TOLERANCE["published_stop"]


# The benchmark that holds the solvers to the references ----------------------------------------


def test_agreement_benchmark(monkeypatch):
    monkeypatch.setattr(agreement, "N_PROBLEMS_QUICK", 4)
    monkeypatch.setattr(agreement, "N_PLANTED_QUICK", 1)
    result = agreement.run(argparse.Namespace(quick=True, solver="cvxpy"))
    assert result["random"]["n_agree"] == result["random"]["n_proved"] == 4
    assert result["planted"]["n_problems"] == 1
    assert "not shown" not in agreement.describe(result)


def test_agreement_benchmark_covers_every_kind():
    names = " ".join(agreement.random_instance(k).name for k in range(agreement.N_PROBLEMS))
    for word in (*FORMULATIONS, *RADII, *instances.DEFECTS):
        assert word in names
    assert agreement.N_PROBLEMS >= 200
