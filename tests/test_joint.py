"""A joint radius: outputs solved near their common multiplier, and brought to the radius."""

import numpy as np
import pytest

from nettrim_solver import Status, instances, solve
from nettrim_solver.solvers.admm import joint, landing

from .tolerances import TOLERANCE

M = 48


def layer(formulation, tolerance=0.2):
    return instances.random_relu_layer(
        400, 60, M, formulation=formulation, radius="joint", tolerance=tolerance, intercept=True,
        seed=3,
    ).problem  # fmt: skip


@pytest.fixture
def watched(monkeypatch):
    """What the landings of the next solve return, how many outputs they solve anew, the surveys."""
    seen = {"landed": [], "anew": 0, "surveys": []}
    land, survey = joint.land, landing.take_survey

    def watch(run, solve_at):
        def count(run, lambda_, which):
            seen["anew"] += len(which)
            solve_at(run, lambda_, which)

        seen["landed"].append(land(run, count))
        seen["multipliers"] = run.answer.lambda_.copy()
        return seen["landed"][-1]

    def keep(run):
        seen["surveys"].append(survey(run))
        return seen["surveys"][-1]

    monkeypatch.setattr(joint, "land", watch)
    monkeypatch.setattr(landing, "take_survey", keep)
    return seen


@pytest.mark.parametrize("formulation", ["pooled", "strict"])
@pytest.mark.parametrize("tolerance", [0.1, 0.3])
def test_the_first_landing_succeeds_and_solves_few_outputs_twice(watched, formulation, tolerance):
    solution = solve(layer(formulation, tolerance))
    assert solution.status is Status.OPTIMAL
    assert watched["landed"] == [True]
    assert watched["anew"] < M
    assert np.ptp(watched["multipliers"]) > 0.0  # they did not all go to the same one


@pytest.mark.parametrize("formulation", ["pooled", "strict"])
def test_the_last_survey_says_what_the_judge_says(watched, formulation):
    problem = layer(formulation)
    certificate = solve(problem).certificate
    last = watched["surveys"][-1]
    scale = 1.0 / np.maximum(last.ratio, 1.0)
    bound = scale @ last.value - problem.epsilon * np.linalg.norm(scale * last.norm)
    close = {"rel": TOLERANCE["reordered"]}
    assert last.objective.sum() == pytest.approx(certificate.objective, **close)
    assert bound == pytest.approx(certificate.bound, **close)
    assert np.sqrt(last.square.sum()) == pytest.approx(problem.epsilon, rel=1e-6)


@pytest.mark.parametrize("formulation", ["pooled", "strict"])
def test_where_no_landing_succeeds_the_multipliers_are_bracketed(monkeypatch, formulation):
    problem = layer(formulation)
    expected = solve(problem)
    monkeypatch.setattr(joint, "LANDINGS", 0)
    solution = solve(problem)
    assert solution.status is Status.OPTIMAL
    assert np.ptp(solution.multiplier) <= 1e-9 * solution.multiplier[0]
    gap = 2e-6  # each is within its own
    assert solution.certificate.objective == pytest.approx(expected.certificate.objective, rel=gap)


@pytest.mark.parametrize("landings", [0, joint.LANDINGS])
@pytest.mark.parametrize("formulation", ["pooled", "strict"])
def test_what_a_distance_beyond_the_radius_saves_counts(monkeypatch, formulation, landings):
    """A loose radius must not buy an objective further below the bound than the gap allows."""
    monkeypatch.setattr(joint, "LANDINGS", landings)
    land = joint.land

    def begin_beyond(run, solve_at):
        landing.move(run, np.arange(M), run.answer.lambda_ * 1.002)
        return land(run, solve_at)

    monkeypatch.setattr(joint, "land", begin_beyond)
    solution = solve(layer(formulation), tol_gap=1e-8, tol_feas=1e-2)
    assert solution.status is Status.OPTIMAL
    assert abs(solution.certificate.gap) <= 1e-8


@pytest.mark.parametrize("budget", [0.0, 3.0, 5.5, 100.0])
def test_the_largest_values_leave_a_sum_within_the_budget(budget):
    values = np.array([1.0, 4.0, 0.0, 2.0, 3.0])
    found = landing._largest(values, budget)
    left = np.delete(values, found)
    assert left.sum() <= budget
    assert not len(found) or left.sum() + values[found].min() > budget
    assert not len(found) or values[found].min() >= left.max(initial=0.0)


@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_what_a_failed_landing_spoils_is_solved_anew(monkeypatch, activation):
    """At a tiny radius the survey's dual points have few digits."""
    monkeypatch.setattr(landing, "_plan", lambda *given: None)
    for seed in range(4):
        problem = instances.random_layer(
            20, 40, 3, activation=activation, radius="joint", tolerance=1e-7, seed=seed
        ).problem
        assert solve(problem).status is Status.OPTIMAL
