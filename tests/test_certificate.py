"""The judge: bounds that hold for any dual point, and proofs that need no solver's word."""

from functools import cache
from itertools import product

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from nettrim_solver import Problem, certify, instances, products, solve
from nettrim_solver.certificate import least_radius
from nettrim_solver.problem import FORMULATIONS, RADII

from .tolerances import TOLERANCE

CASES = [
    (formulation, radius, intercept)
    for formulation, radius, intercept in product(FORMULATIONS, RADII, (False, True))
    if radius == "per_output" or not formulation.startswith("penalised")
]


@cache
def solved(case, defects=()):
    """A small problem with its optimum by Clarabel."""
    formulation, radius, intercept = case
    instance = instances.random_layer(
        25, 6, 3, activation="relu6", formulation=formulation, radius=radius,
        intercept=intercept, defects=defects, tolerance=0.3, seed=7,
    )  # fmt: skip
    solution = solve(instance.problem, solver="cvxpy")
    assert str(solution.status) == "optimal"
    return instance.problem, solution


# Bounds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("defects", [(), ("unpenalised", "weighted")])
@pytest.mark.parametrize("case", CASES)
@given(seed=st.integers(0, 10**6), noise=st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 10.0]))
def test_no_dual_point_exceeds_the_optimum(case, defects, seed, noise):
    problem, solution = solved(case, defects)
    rng = np.random.default_rng(seed)
    perturbation = rng.standard_normal(solution.theta.shape)
    theta = solution.theta + noise * np.abs(solution.theta).max() * perturbation
    judged = certify(problem, solution.W, solution.b, theta)
    best = solution.certificate.objectives
    best = np.array([best.sum()]) if problem.joint else best
    assert np.all(judged.bounds <= best * (1 + TOLERANCE["reference_optimum"]))


@pytest.mark.parametrize("defects", [(), ("unpenalised", "weighted")])
@pytest.mark.parametrize("case", CASES)
def test_bounds_are_sharp_near_the_optimum(case, defects):
    problem, solution = solved(case, defects)
    perturbation = np.random.default_rng(0).standard_normal(solution.theta.shape)
    gaps = []
    for noise in (1e-2, 1e-3, 1e-4):
        theta = solution.theta * (1 + noise * perturbation)
        gaps.append(certify(problem, solution.W, solution.b, theta).gap)
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 0.1 * gaps[0] < 0.1


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("factor", [1e-6, 0.5, 3.0, 1e8])
def test_bounds_do_not_depend_on_the_length_of_theta(case, factor):
    problem, solution = solved(case)
    expected = certify(problem, solution.W, solution.b, solution.theta).bounds
    bounds = certify(problem, solution.W, solution.b, factor * solution.theta).bounds
    # Joint: shrinking one output's part of a dual point moves the bound by Clarabel's accuracy.
    np.testing.assert_allclose(bounds, expected, rtol=TOLERANCE["reference_optimum"])


@pytest.mark.parametrize("size_x", [1e-6, 1e6])
@pytest.mark.parametrize("size_y", [1e-6, 1e6])
@pytest.mark.parametrize("case", CASES[:8])
def test_gap_and_violation_do_not_depend_on_units(case, size_x, size_y):
    problem, solution = solved(case)
    lower, upper = problem.box()
    scaled = Problem(
        size_x * problem.X, lower=size_y * lower, upper=size_y * upper,
        epsilon=size_y * problem.epsilon, formulation=problem.formulation,
        radius=problem.radius, intercept=problem.intercept,
    )  # fmt: skip
    b = None if solution.b is None else size_y * solution.b
    W = 0.5 * solution.W
    judged = certify(scaled, size_y / size_x * W, b, solution.theta / size_x)
    expected = certify(problem, W, solution.b, solution.theta)
    np.testing.assert_allclose(judged.gaps, expected.gaps, rtol=1e-6)
    np.testing.assert_allclose(judged.violations, expected.violations, rtol=1e-6)
    assert expected.violation > 0


def test_forbidden_signs_are_dropped():
    X = np.random.default_rng(1).standard_normal((6, 3))
    lower = np.array([[0.5], [-np.inf], [1.0], [-np.inf], [0.0], [1.0]])
    upper = np.array([[0.5], [0.2], [np.inf], [np.inf], [1.0], [1.0]])
    problem = Problem(X, lower=lower, upper=upper, epsilon=0.1, intercept=False)
    legal = np.array([[-1.0], [0.0], [-0.5], [0.0], [-0.3], [-1.0]])
    illegal = legal + np.array([[0.0], [-2.0], [0.0], [3.0], [0.0], [0.0]])
    W = np.ones((3, 1))
    assert certify(problem, W, theta=illegal).bound == certify(problem, W, theta=legal).bound
    assert certify(problem, W, theta=legal).bound > 0
    assert certify(problem, W, theta=np.abs(legal)).bound == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_dual_point_proves_nothing(bad):
    problem, solution = solved(CASES[0])
    theta = np.full(solution.theta.shape, bad)
    assert np.all(certify(problem, solution.W, theta=theta).bounds == 0)
    assert not certify(problem, solution.W, theta=theta).proved(1e-6, 1e-6).any()


def test_the_intercept_takes_the_mean_out_of_theta():
    rng = np.random.default_rng(2)
    X = rng.standard_normal((30, 5))
    Y = X @ rng.standard_normal((5, 2)) + 1.0
    problem = Problem(X, Y, activation="identity", tolerance=0.1, radius="per_output")
    solution = solve(problem, solver="cvxpy")
    shifted = certify(problem, solution.W, solution.b, solution.theta + 5.0)
    np.testing.assert_allclose(
        shifted.bounds, solution.certificate.bounds, rtol=TOLERANCE["reordered"]
    )
    without = certify(problem.replace(intercept=False), solution.W, theta=solution.theta + 5.0)
    assert without.bound < 0.5 * shifted.bound


def test_an_intercept_without_rows_of_free_sign_is_balanced():
    lower = np.array([[1.0], [-np.inf], [2.0], [-np.inf]])
    upper = np.array([[np.inf], [-1.0], [np.inf], [-1.5]])
    X = np.array([[1.0], [-1.0], [1.2], [-0.8]])
    problem = Problem(X, lower=lower, upper=upper, epsilon=0.1)
    best = solve(problem, solver="cvxpy").certificate.objective
    judged = certify(problem, np.zeros((1, 1)), theta=np.array([[-1.0], [4.0], [-1.0], [2.0]]))
    assert 0 < judged.bound <= best * (1 + TOLERANCE["reference_optimum"])


def test_unpenalised_inputs_are_taken_out_of_theta():
    rng = np.random.default_rng(3)
    X, Y = rng.standard_normal((30, 5)), rng.standard_normal((30, 2))
    problem = Problem(
        X, Y, activation="identity", epsilon=1.0, radius="per_output", intercept=False,
        weights=[0.0, 1.0, 1.0, 0.0, 2.0],
    )  # fmt: skip
    theta = rng.standard_normal((30, 2))
    shifted = theta + X[:, [0, 3]] @ rng.standard_normal((2, 2))
    W = np.zeros((5, 2))
    bounds = certify(problem.replace(epsilon=0.0), W, theta=theta).bounds
    again = certify(problem.replace(epsilon=0.0), W, theta=shifted).bounds
    assert bounds.max() > 0
    np.testing.assert_allclose(again, bounds, rtol=TOLERANCE["reordered"])


@pytest.mark.parametrize(("formulation", "radius"), list(product(("pooled", "strict"), RADII)))
def test_gap_measures_the_excess_of_worse_weights(formulation, radius):
    planted = instances.planted(40, 10, 3, formulation=formulation, radius=radius, seed=5)
    exact = certify(planted.problem, planted.W, theta=planted.theta)
    worse = certify(planted.problem, 1.25 * planted.W, theta=planted.theta)
    assert abs(exact.gap) < TOLERANCE["planted"]
    np.testing.assert_allclose(worse.gaps, 0.2, atol=TOLERANCE["planted"])


def test_without_theta_nothing_is_proved_but_zero():
    planted = instances.planted(40, 10, 3, seed=5)
    assert np.all(certify(planted.problem, planted.W).gaps == 1)
    generous = planted.problem.replace(epsilon=10 * planted.problem.target_norms)
    zero = certify(generous, np.zeros_like(planted.W))
    assert zero.proved(1e-12, 1e-12).all()


def test_a_penalised_fit_without_error_is_proved():
    # A dead output fits through its intercept alone, up to the rounding of that intercept.
    X = np.random.default_rng(4).standard_normal((20, 4))
    problem = Problem(
        X, np.full((20, 1), -1.0), activation="identity", formulation="penalised", lambda_=0.1
    )
    judged = certify(problem, np.zeros((4, 1)), np.array([-1 - 2e-16]), np.full((20, 1), 1e-16))
    assert judged.proved(TOLERANCE["proved"], TOLERANCE["proved"]).all()
    off = certify(problem, np.zeros((4, 1)), np.array([-1.001]), np.full((20, 1), 1e-16))
    assert not off.proved(TOLERANCE["proved"], TOLERANCE["proved"]).any()


# Distances and violations ----------------------------------------------------------------------


def test_violation_is_relative_to_the_radius():
    X, Y = np.eye(3), np.array([[1.0], [2.0], [0.0]])
    problem = Problem(X, Y, epsilon=0.5, intercept=False)
    W = np.array([[1.0], [1.0], [-4.0]])
    judged = certify(problem, W)
    assert judged.distance == 1.0
    assert judged.violation == pytest.approx(1.0)
    assert judged.activation_error == 1.0
    above = certify(problem, np.array([[1.0], [2.0], [2.0]]))
    assert above.violation == pytest.approx(3.0)


def test_strict_counts_hard_rows_apart():
    X, Y = np.eye(2), np.array([[2.0], [0.0]])
    problem = Problem(X, Y, epsilon=0.5, formulation="strict", intercept=False)
    judged = certify(problem, np.array([[1.5], [0.2]]))
    # The hard row's own scale: its inputs times the weights, in size.
    assert judged.violation == pytest.approx(0.2 / 0.2)
    assert judged.distance == pytest.approx(np.hypot(0.5, 0.2))
    pooled = certify(problem.replace(formulation="pooled"), np.array([[1.5], [0.2]]))
    assert pooled.violation == pytest.approx(np.hypot(0.5, 0.2) / 0.5 - 1)


def test_penalised_has_no_radius_to_violate():
    X, Y = np.eye(2), np.array([[2.0], [0.0]])
    problem = Problem(X, Y, formulation="penalised", lambda_=0.5, intercept=False)
    W = np.array([[1.0], [3.0]])
    judged = certify(problem, W)
    assert judged.violation == 0
    assert judged.objective == pytest.approx(0.5 * 4 + 0.5 * (1 + 9))
    strict = certify(problem.replace(formulation="penalised_strict"), W)
    # 3 over its own scale, which is cut at that of the targets.
    assert strict.violation == pytest.approx(3 / 2)
    assert strict.objective == pytest.approx(0.5 * 4 + 0.5 * 1)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "hard_tanh", "tanh", "gelu", "silu"])
@given(seed=st.integers(0, 1000))
def test_activation_error_is_bounded_by_the_distance(activation, seed):
    layer = instances.random_layer(20, 5, 3, activation=activation, seed=seed).problem
    W = np.random.default_rng(seed).standard_normal((5, 3))
    judged = certify(layer, W)
    slack = 1 + TOLERANCE["reordered"]
    assert judged.activation_error <= layer.activation.lipschitz * judged.distance * slack


# Infeasibility ---------------------------------------------------------------------------------

INFEASIBLE = [
    ("radius", "pooled"),
    ("radius", "strict"),
    ("hard_rows", "strict"),
]


@pytest.mark.parametrize(("kind", "formulation"), INFEASIBLE)
@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("intercept", [False, True])
def test_rays_prove_the_least_radius(kind, formulation, radius, intercept):
    bad = instances.infeasible(
        kind=kind, formulation=formulation, radius=radius, intercept=intercept, seed=2
    )
    found = least_radius(bad.problem, bad.theta)
    np.testing.assert_allclose(found, bad.least_epsilon, rtol=TOLERANCE["least_radius"])
    np.testing.assert_allclose(
        least_radius(bad.problem, 1e5 * bad.theta), found, rtol=TOLERANCE["least_radius"]
    )


def test_what_is_not_a_ray_proves_no_radius():
    bad = instances.infeasible(seed=2)
    crooked = bad.theta + 1e-6 * np.random.default_rng(0).standard_normal(bad.theta.shape)
    assert np.all(least_radius(bad.problem, crooked) == 0)
    assert np.all(least_radius(bad.problem, np.zeros_like(bad.theta)) == 0)
    shifted = least_radius(bad.problem.replace(intercept=True), bad.theta)
    assert np.all(shifted == 0)


# The same numbers by other ways ----------------------------------------------------------------


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("entries", [1, 50])
def test_blocks_do_not_change_the_numbers(monkeypatch, formulation, entries):
    layer = instances.random_relu_layer(
        30, 8, 5, formulation=formulation, intercept=True, dtype=np.float32
    ).problem
    theta = np.random.default_rng(6).standard_normal((30, 5))
    whole = certify(layer, layer.W, layer.b, theta)
    monkeypatch.setattr(products, "BLOCK_ENTRIES", entries)
    blocks = certify(layer, layer.W, layer.b, theta)
    for name in ("objectives", "bounds", "distances", "activation_errors", "gaps"):
        np.testing.assert_allclose(
            getattr(blocks, name), getattr(whole, name), rtol=TOLERANCE["reordered"],
            atol=TOLERANCE["reordered"],
        )  # fmt: skip


@pytest.mark.parametrize("kind", [np.float32, "sparse"])
def test_float32_and_sparse_inputs_are_judged_in_float64(kind):
    layer = instances.random_relu_layer(40, 8, 5, dtype=np.float32, seed=3).problem
    wide = Problem(
        layer.X.astype(np.float64), layer.Y.astype(np.float64), epsilon=layer.epsilon,
        radius="per_output", intercept=False,
    )  # fmt: skip
    other = layer if kind is np.float32 else wide.replace(X=sp.csr_array(wide.X))
    theta = np.random.default_rng(6).standard_normal((40, 5))
    judged, expected = (certify(p, 0.9 * layer.W, theta=theta) for p in (other, wide))
    for name in ("objectives", "bounds", "distances", "violations"):
        np.testing.assert_allclose(
            getattr(judged, name), getattr(expected, name), rtol=TOLERANCE["reordered"]
        )


def test_arguments_are_left_alone():
    bad = instances.infeasible(intercept=True, seed=2)
    W, theta = bad.W.copy(), bad.theta.copy()
    certify(bad.problem, W, bad.b, theta)
    least_radius(bad.problem, theta)
    assert np.array_equal(W, bad.W)
    assert np.array_equal(theta, bad.theta)
