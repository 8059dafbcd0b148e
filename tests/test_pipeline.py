"""Pipelines: the steps are what the functions do alone, one after the other."""

import numpy as np
import pytest

from nettrim_solver import Problem, Status, refit, solve, swaps
from nettrim_solver.exceptions import ProblemError, SettingsError
from nettrim_solver.pipeline import L0, Pipeline, Refit, Reweight, Solve, Step, Swaps
from nettrim_solver.reweighting import reweight


@pytest.fixture
def problem():
    rng = np.random.default_rng(1)
    X, W = np.maximum(rng.standard_normal((80, 10)), 0), rng.standard_normal((10, 4))
    return Problem(X, np.maximum(X @ W, 0), W, np.zeros(4), tolerance=0.2)


def test_the_steps_are_the_functions_in_a_row(problem):
    stages = dict(Pipeline(Solve("admm"), L0(start="before"), Swaps(), Refit()).stages(problem, 20))
    first = solve(problem, nnz=20)
    np.testing.assert_array_equal(stages["admm"].W, first.W)
    second = solve(problem, "l0", nnz=20, warm_start=first)
    np.testing.assert_array_equal(stages["l0"].W, second.W)
    alone = dict(Pipeline(Solve("admm"), L0()).stages(problem, 20))["l0"]
    np.testing.assert_array_equal(alone.W, solve(problem, "l0", nnz=20).W)
    third = swaps(problem, second)
    np.testing.assert_array_equal(stages["swaps"].W, third.W)
    np.testing.assert_array_equal(stages["refit"].W, refit(problem, third).W)
    assert list(stages) == ["admm", "l0", "swaps", "refit"]


def test_every_stage_keeps_the_count(problem):
    stages = list(Pipeline(Reweight(2), L0(), Swaps("box"), Refit("box")).stages(problem, 15))
    assert [stage.nnz for _, stage in stages] == [15] * 4
    assert stages[0][1].status is Status.OPTIMAL
    np.testing.assert_array_equal(stages[0][1].W, reweight(problem, nnz=15, rounds=2).W)


def test_without_a_count_the_radius_is_the_budget(problem):
    convex, hard = (stage for _, stage in Pipeline(Solve(), L0()).stages(problem))
    assert convex.status is Status.OPTIMAL and hard.status is Status.FEASIBLE
    assert hard.nnz <= convex.nnz
    assert hard.certificate.distance <= problem.epsilon * (1 + 1e-6)


def test_the_last_stage_is_the_answer(problem):
    pipeline = Pipeline(Solve("magnitude"), Refit())
    *_, (_, last) = pipeline.stages(problem, 12)
    np.testing.assert_array_equal(pipeline(problem, 12).W, last.W)
    assert pipeline(problem, 12).solver == "magnitude+refit"


def test_time_that_is_up_leaves_steps_out(problem):
    class Slow(Solve):
        def __call__(self, problem, before, nnz, call):
            answer = super().__call__(problem, before, nnz, call)
            while not call.expired():
                pass
            return answer

    stages = list(Pipeline(Slow("magnitude"), Refit()).stages(problem, 12, time_limit=0.05))
    assert [name for name, _ in stages] == ["magnitude"]


def test_a_description_says_what_differs_from_the_defaults():
    assert repr(Pipeline(Solve(), Refit())) == "Pipeline(admm, refit)"
    described = repr(Pipeline(L0(settings={"rounds": 2}), Reweight(1), Swaps("box", max_swaps=3)))
    assert described == (
        "Pipeline(l0(rounds=2), reweight(rounds=1), swaps(target='box', max_swaps=3))"
    )


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((), "at least one"),
        (("admm",), "'admm'"),
        ((Refit(),), "first step"),
        ((Swaps(), Solve()), "first step"),
        ((L0(start="nowhere"),), "start must be one of"),
        ((Solve("nothing"),), "solver must be one of.*'nothing'"),
    ],
)
def test_bad_steps_are_named(steps, message):
    with pytest.raises(SettingsError, match=message):
        Pipeline(*steps)


def test_a_problem_is_needed():
    with pytest.raises(ProblemError, match="problem must be a Problem"):
        Pipeline(Solve())(None)


def test_steps_can_be_the_users_own(problem):
    class Halve(Step):
        def __call__(self, problem, before, nnz, call):
            return solve(problem, "magnitude", nnz=before.nnz // 2)

    assert Pipeline(Solve("magnitude"), Halve())(problem, 20).nnz == 10
