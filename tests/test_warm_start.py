"""Starting from another solution: never slower from the optimum, always the same answer."""

import dataclasses
from itertools import product

import numpy as np
import pytest

from nettrim_solver import Status, instances, solve
from nettrim_solver.exceptions import ProblemError, SettingsError
from nettrim_solver.problem import RADII

from .tolerances import TOLERANCE

FORMS = [
    (formulation, radius)
    for formulation, radius in product(("pooled", "strict", "penalised", "penalised_strict"), RADII)
    if radius == "per_output" or not formulation.startswith("penalised")
]


def make(formulation="pooled", radius="per_output", **changes):
    options = {"intercept": True, "tolerance": 0.15, "seed": 2} | changes
    return instances.random_relu_layer(
        90, 20, 5, formulation=formulation, radius=radius, **options
    ).problem


def assert_same_value(first, second):
    assert first.status is second.status is Status.OPTIMAL
    assert second.certificate.objective == pytest.approx(
        first.certificate.objective, rel=TOLERANCE["references_agree"]
    )


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize(("formulation", "radius"), FORMS)
def test_a_restart_from_the_optimum_is_not_slower(formulation, radius, intercept):
    problem = make(formulation, radius, intercept=intercept)
    cold = solve(problem)
    again = solve(problem, warm_start=cold)
    assert_same_value(cold, again)
    assert np.all(again.iterations <= cold.iterations)
    third = solve(problem, warm_start=again)
    assert_same_value(cold, third)


@pytest.mark.parametrize(("formulation", "radius"), list(product(("pooled", "strict"), RADII)))
def test_a_path_over_decreasing_radii(formulation, radius):
    problem, last = make(formulation, radius), None
    for tolerance in (1.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02):
        step = problem.replace(tolerance=tolerance)
        last = solve(step, warm_start=last)
        assert_same_value(solve(step), last)


@pytest.mark.parametrize("intercept", [False, True])
def test_a_path_over_decreasing_penalties(intercept):
    problem, last = make("penalised", intercept=intercept), None
    for factor in (20.0, 3.0, 1.0, 0.3, 0.1):
        step = problem.replace(lambda_=factor * problem.lambda_)
        last = solve(step, warm_start=last)
        assert_same_value(solve(step), last)


@pytest.mark.parametrize("other", [0.01, 0.6, 3.0])
@pytest.mark.parametrize(("formulation", "radius"), list(product(("pooled", "strict"), RADII)))
def test_any_other_radius_is_a_start(formulation, radius, other):
    problem = make(formulation, radius)
    start = solve(problem.replace(tolerance=other))
    assert_same_value(solve(problem), solve(problem, warm_start=start))


@pytest.mark.parametrize(("formulation", "radius"), FORMS)
def test_another_form_is_a_start(formulation, radius):
    start = solve(make("penalised" if not formulation.startswith("penalised") else "pooled"))
    problem = make(formulation, radius)
    assert_same_value(solve(problem), solve(problem, warm_start=start))


@pytest.mark.parametrize(("formulation", "radius"), FORMS)
@pytest.mark.parametrize("solver", ["cvxpy", "osqp"])
def test_the_answer_of_another_solver_is_a_start(formulation, radius, solver):
    problem = make(formulation, radius)
    start = solve(problem, solver=solver)
    assert_same_value(start, solve(problem, warm_start=start))


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize(
    "missing",
    [["theta"], ["rho"], ["multiplier"], ["b"], ["theta", "rho", "multiplier", "b"]],
    ids="-".join,
)
def test_parts_of_a_start_may_be_missing(radius, missing):
    problem = make(radius=radius)
    start = solve(problem.replace(tolerance=0.2))
    partial = dataclasses.replace(start, **dict.fromkeys(missing))
    assert_same_value(solve(problem), solve(problem, warm_start=partial))


@pytest.mark.parametrize("radius", RADII)
def test_an_unfinished_answer_is_a_start(radius):
    problem = make(radius=radius)
    start = solve(problem, callback=lambda progress: True)
    assert start.status is Status.INTERRUPTED
    assert_same_value(solve(problem), solve(problem, warm_start=start))


@pytest.mark.parametrize("radius", RADII)
def test_an_infeasible_answer_is_a_start(radius):
    bad = instances.infeasible(radius=radius, seed=1)
    start = solve(bad.problem)
    assert start.status is Status.INFEASIBLE
    double = 2.0 * bad.least_epsilon
    problem = bad.problem.replace(epsilon=float(double[0]) if radius == "joint" else double)
    assert_same_value(solve(problem), solve(problem, warm_start=start))


@pytest.mark.parametrize("radius", RADII)
def test_a_bad_start_does_no_harm(radius):
    problem = make(radius=radius)
    good, rng = solve(problem), np.random.default_rng(0)
    bad = dataclasses.replace(
        good, W=1e3 * rng.standard_normal(good.W.shape),
        theta=rng.standard_normal(good.theta.shape),
        rho=good.rho * 10.0 ** rng.uniform(-3, 3, 5), multiplier=1e3 * good.multiplier,
    )  # fmt: skip
    assert_same_value(good, solve(problem, warm_start=bad))


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("name", ["W", "b", "theta"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_start_that_is_not_finite_is_refused(radius, name, value):
    problem = make(radius=radius)
    good = solve(problem)
    array = getattr(good, name).copy()
    array.flat[0] = value
    with pytest.raises(ProblemError, match=rf"warm_start\.{name} must be finite"):
        solve(problem, warm_start=dataclasses.replace(good, **{name: array}))


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize(
    ("name", "value"), [("rho", np.nan), *product(["multiplier"], [np.nan, np.inf, 0.0, -1.0])]
)
def test_a_meaningless_penalty_in_a_start_does_no_harm(radius, name, value):
    problem = make(radius=radius)
    good = solve(problem)
    array = getattr(good, name).copy()
    array[1] = value
    start = dataclasses.replace(solve(problem.replace(tolerance=0.3)), **{name: array})
    assert_same_value(good, solve(problem, warm_start=start))


@pytest.mark.parametrize("radius", RADII)
def test_other_precision_and_other_targets_are_a_start(radius):
    problem = make(radius=radius)
    single = solve(problem.replace(X=problem.X.astype(np.float32)))
    assert single.W.dtype == np.float32
    assert_same_value(solve(problem), solve(problem, warm_start=single))
    other = problem.replace(Y=problem.Y[:, ::-1].copy())
    assert_same_value(solve(other), solve(other, warm_start=single))


@pytest.mark.parametrize("radius", RADII)
def test_blocks_are_started_as_a_whole_is(radius):
    problem = make(radius=radius)
    start = solve(problem.replace(tolerance=0.2))
    blocks = solve(problem, warm_start=start, memory_limit=5 * 8 * 90 * 2)
    assert_same_value(solve(problem), blocks)


def test_a_start_from_other_samples_is_named():
    problem = make()
    fewer = problem.replace(X=problem.X[:60], Y=problem.Y[:60], tolerance=0.15)
    start = solve(fewer)
    with pytest.raises(
        ProblemError, match=r"warm_start.theta must have shape \(90, 5\), but has \(60, 5\)"
    ):
        solve(problem, warm_start=start)
    weights = dataclasses.replace(start, theta=None)
    assert_same_value(solve(problem), solve(problem, warm_start=weights))


def test_a_start_of_another_shape_is_named():
    with pytest.raises(
        ProblemError, match=r"warm_start.W must have shape \(20, 5\), but has \(20, 2\)"
    ):
        solve(make(), warm_start=solve(make().select([0, 1])))


@pytest.mark.parametrize("start", [np.zeros((20, 5)), {"W": 1}, "cold"])
def test_a_start_must_be_a_solution(start):
    with pytest.raises(SettingsError, match="warm_start must be a Solution, but was"):
        solve(make(), warm_start=start)
