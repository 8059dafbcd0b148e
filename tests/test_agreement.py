"""The default solver against Clarabel, against planted answers, and against the KKT conditions."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import agreement
from nettrim_solver import Status, certify, instances, solve
from nettrim_solver.activations import ACTIVATIONS
from nettrim_solver.certificate import adjoint, forward
from nettrim_solver.problem import FORMULATIONS, RADII

from .tolerances import TOLERANCE

FORMS = [
    (formulation, radius)
    for formulation, radius in product(FORMULATIONS, RADII)
    if radius == "per_output" or not formulation.startswith("penalised")
]

MAKERS = {
    "layer": lambda **form: instances.random_layer(40, 12, 3, seed=11, **form),
    "correlated": lambda **form: instances.random_relu_layer(60, 14, 4, seed=12, **form),
    "box": lambda **form: instances.random_box(50, 10, 3, intercept=True, seed=13, **form),
    "wide": lambda **form: instances.random_layer(
        15, 30, 3, activation="hard_tanh", tolerance=0.1, seed=14, **form
    ),
    "defects": lambda **form: instances.random_layer(
        40, 12, 3, activation="relu6", intercept=True, seed=15,
        defects=["weighted", "zero_column", "dead_output", "duplicate_columns"], **form,
    ),
}  # fmt: skip


def objectives(problem, solution):
    """The values that a proof belongs to: one per output, or one for a joint radius."""
    values = solution.certificate.objectives
    return np.array([values.sum()]) if problem.joint else values


# Clarabel --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(("formulation", "radius"), FORMS)
def test_the_reference_finds_the_same_value(formulation, radius, kind):
    problem = MAKERS[kind](formulation=formulation, radius=radius).problem
    solution = solve(problem)
    assert solution.statuses == (Status.OPTIMAL,) * problem.n_outputs
    np.testing.assert_allclose(
        objectives(problem, solution),
        objectives(problem, solve(problem, solver="cvxpy")),
        rtol=TOLERANCE["references_agree"],
        atol=agreement.ZERO,
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_agrees_with_the_reference(activation):
    problem = instances.random_layer(
        40, 10, 3, activation=activation, radius="joint", intercept=True, seed=16
    ).problem
    solution = solve(problem)
    assert solution.status is Status.OPTIMAL
    np.testing.assert_allclose(
        objectives(problem, solution),
        objectives(problem, solve(problem, solver="cvxpy")),
        rtol=TOLERANCE["references_agree"],
    )


# Planted answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(60, 20, 5), (30, 60, 4)])
@pytest.mark.parametrize("kind", ["plain", "degenerate", "duplicate_columns"])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize(("formulation", "radius"), list(product(("pooled", "strict"), RADII)))
def test_planted_values_are_met(formulation, radius, intercept, kind, shape):
    planted = instances.planted(
        *shape, formulation=formulation, radius=radius, intercept=intercept, kind=kind, seed=20
    )
    solution = solve(planted.problem, tol_gap=1e-9, tol_feas=1e-9)
    assert solution.status is Status.OPTIMAL
    assert solution.certificate.objective == pytest.approx(
        planted.objective, rel=TOLERANCE["planted"]
    )


def test_multipliers_of_hard_rows_settle_in_an_ill_conditioned_system():
    planted = instances.planted(
        30, 60, 4, kind="duplicate_columns", formulation="strict", radius="joint", seed=43
    )
    solution = solve(planted.problem, tol_gap=1e-9, tol_feas=1e-9)
    assert solution.status is Status.OPTIMAL
    assert solution.certificate.objective == pytest.approx(
        planted.objective, rel=TOLERANCE["planted"]
    )


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 1e-3])
@pytest.mark.parametrize(("formulation", "radius"), list(product(("pooled", "strict"), RADII)))
def test_planted_values_are_met_at_tiny_radii(formulation, radius, epsilon):
    planted = instances.planted(
        60, 20, 4, epsilon=epsilon, formulation=formulation, radius=radius, seed=21
    )
    solution = solve(planted.problem)
    assert solution.status is Status.OPTIMAL
    assert solution.certificate.objective == pytest.approx(
        planted.objective, rel=TOLERANCE["proved"]
    )


@pytest.mark.parametrize("density", [0.02, 0.9])
@pytest.mark.parametrize("formulation", ["pooled", "strict"])
def test_planted_values_are_met_at_any_density(formulation, density):
    planted = instances.planted(60, 30, 3, density=density, formulation=formulation, seed=22)
    solution = solve(planted.problem, tol_gap=1e-9, tol_feas=1e-9)
    assert solution.status is Status.OPTIMAL
    assert solution.certificate.objective == pytest.approx(
        planted.objective, rel=TOLERANCE["planted"]
    )


@pytest.mark.parametrize("radius", RADII)
def test_a_unique_planted_answer_is_the_one_that_is_found(radius):
    planted = instances.planted(80, 20, 4, radius=radius, seed=23)
    solution = solve(planted.problem, tol_gap=1e-9, tol_feas=1e-9)
    assert np.array_equal(solution.W != 0, planted.W != 0)
    np.testing.assert_allclose(solution.W, planted.W, atol=TOLERANCE["planted_weights"])


# Anything at all -------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    n_samples=st.integers(2, 40),
    n_inputs=st.integers(1, 30),
    n_outputs=st.integers(1, 4),
    form=st.sampled_from(FORMS),
    activation=st.sampled_from(["identity", "relu", "relu6", "hard_tanh", "tanh"]),
    tolerance=st.floats(0.02, 1.2),
    intercept=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_any_shape_is_proved(
    n_samples, n_inputs, n_outputs, form, activation, tolerance, intercept, seed
):
    problem = instances.random_layer(
        n_samples, n_inputs, n_outputs, activation=activation, tolerance=tolerance,
        formulation=form[0], radius=form[1], intercept=intercept, seed=seed,
    ).problem  # fmt: skip
    solution = solve(problem)
    assert solution.status is Status.OPTIMAL, solution
    again = certify(problem, solution.W, solution.b, solution.theta)
    assert again.gap == solution.certificate.gap
    assert again.violation == solution.certificate.violation


# The optimality conditions, written out --------------------------------------------------------


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize(("formulation", "radius"), FORMS)
def test_the_answer_meets_the_kkt_conditions(formulation, radius, intercept):
    problem = instances.random_layer(
        60, 15, 4, activation="relu6", formulation=formulation, radius=radius,
        intercept=intercept, defects=["weighted"], tolerance=0.15, seed=30,
    ).problem  # fmt: skip
    solution = solve(problem, tol_gap=1e-10, tol_feas=1e-10)
    assert solution.status is Status.OPTIMAL
    W, theta, close = solution.W, solution.theta, TOLERANCE["kkt"]
    slopes = adjoint(problem.X, theta)
    c = problem.penalty()
    size = np.abs(c).max()
    used = W != 0
    np.testing.assert_allclose(slopes[used], -(c * np.sign(W))[used], atol=close * size)
    assert np.all(np.abs(slopes) <= c + close * size)
    if intercept:
        assert np.all(np.abs(theta.sum(axis=0)) <= close * np.abs(theta).sum(axis=0))

    lower, upper = problem.box()
    Z = forward(problem.X, W, solution.b)
    E = Z - np.clip(Z, lower, upper)
    ball = lower == upper if problem.strict else np.ones(Z.shape, dtype=bool)
    # On the ball's rows theta = E / lambda, with one lambda > 0 for each radius.
    lambda_ = solution.multiplier
    assert np.all(lambda_ > 0)
    if problem.joint:
        assert np.ptp(solution.multiplier) <= close * solution.multiplier[0]
    difference = np.where(ball, E - lambda_ * theta, 0.0)
    assert np.linalg.norm(difference) <= close * np.linalg.norm(E)
    if problem.strict:
        scale = np.abs(np.where(ball, lower, 0.0)).max()
        assert np.all(np.abs(E[~ball]) <= close * scale)
        at_upper, at_lower = Z >= upper - close * scale, Z <= lower + close * scale
        force = np.abs(theta).max() * close
        assert np.all(at_upper[~ball & (theta > force)])
        assert np.all(at_lower[~ball & (theta < -force)])
