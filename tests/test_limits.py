"""Limits in which the program is a known one, or has a known answer."""

from itertools import product

import numpy as np
import pytest
from scipy.optimize import linprog
from sklearn.linear_model import Lasso

from nettrim_solver import Problem, Status, instances, solve
from nettrim_solver.problem import RADII

from .tolerances import TOLERANCE

BALLS = list(product(("pooled", "strict"), RADII))


def regression(n_samples=50, n_inputs=12, n_outputs=3, seed=1):
    """A linear layer with noise, so that no weights fit it exactly."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n_inputs)) + 0.3
    Y = X @ rng.standard_normal((n_inputs, n_outputs)) + rng.standard_normal(n_outputs)
    return X, Y + 0.5 * rng.standard_normal(Y.shape)


# Generous budgets: no weights at all -----------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 1.5])
@pytest.mark.parametrize(("formulation", "radius"), BALLS)
def test_a_radius_of_the_whole_target_needs_no_weights(formulation, radius, factor):
    problem = instances.random_layer(40, 8, 3, formulation=formulation, radius=radius).problem
    norms = problem.target_norms
    epsilon = factor * (np.linalg.norm(norms) if radius == "joint" else norms)
    solution = solve(problem.replace(epsilon=epsilon * (1 + 1e-15)))
    assert solution.status is Status.OPTIMAL
    assert solution.nnz == 0 and solution.b is None
    assert np.all(solution.iterations == 0)


@pytest.mark.parametrize("radius", RADII)
def test_with_an_intercept_the_best_constants_decide(radius):
    X, Y = regression()
    spread = Y.std(axis=0) * np.sqrt(len(Y))
    least = np.linalg.norm(spread) if radius == "joint" else spread
    problem = Problem(X, Y, activation="identity", radius=radius, epsilon=1.001 * least)
    solution = solve(problem)
    assert solution.status is Status.OPTIMAL
    assert solution.nnz == 0 and np.all(solution.iterations == 0)
    np.testing.assert_allclose(solution.b, Y.mean(axis=0), rtol=TOLERANCE["norm"])
    assert solve(problem.replace(epsilon=0.99 * least)).nnz > 0


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("formulation", ["penalised", "penalised_strict"])
def test_a_large_penalty_leaves_no_weights(formulation, intercept):
    X, Y = regression()
    E = Y - Y.mean(axis=0) if intercept else Y
    largest = np.abs(X.T @ E).max(axis=0)
    problem = Problem(
        X, Y, activation="identity", formulation=formulation, intercept=intercept,
        lambda_=1.001 * largest,
    )  # fmt: skip
    solution = solve(problem)
    assert solution.status is Status.OPTIMAL and solution.nnz == 0
    less = solve(problem.replace(lambda_=0.99 * largest))
    assert less.status is Status.OPTIMAL
    assert np.all(less.certificate.nnz > 0)


# Known programs --------------------------------------------------------------------------------


@pytest.mark.parametrize(("formulation", "radius"), BALLS)
@pytest.mark.parametrize("intercept", [False, True])
def test_matched_rows_alone_are_basis_pursuit_denoising(formulation, radius, intercept):
    cp = pytest.importorskip("cvxpy")
    X, Y = regression()
    epsilon = 0.3 * (np.linalg.norm(Y) if radius == "joint" else np.linalg.norm(Y, axis=0))
    problem = Problem(
        X, Y, activation="identity", formulation=formulation, radius=radius, epsilon=epsilon,
        intercept=intercept,
    )  # fmt: skip
    solution = solve(problem)
    assert solution.status is Status.OPTIMAL
    W, b = cp.Variable((12, 3)), cp.Variable((1, 3))
    R = X @ W - Y + (np.ones((50, 1)) @ b if intercept else 0.0)
    ball = [cp.norm(R, "fro") <= epsilon] if radius == "joint" else [cp.norm(R, 2, 0) <= epsilon]
    expected = cp.Problem(cp.Minimize(cp.sum(cp.abs(W))), ball).solve(solver=cp.CLARABEL)
    assert solution.certificate.objective == pytest.approx(
        expected, rel=TOLERANCE["references_agree"]
    )


@pytest.mark.parametrize("formulation", ["penalised", "penalised_strict"])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_the_penalised_identity_is_the_lasso(formulation, intercept, fraction):
    X, Y = regression()
    lambda_ = fraction * np.abs(X.T @ Y).max(axis=0)
    problem = Problem(
        X, Y, activation="identity", formulation=formulation, intercept=intercept, lambda_=lambda_
    )
    solution = solve(problem, tol_gap=1e-10)
    assert solution.status is Status.OPTIMAL
    for j in range(3):
        # scikit-learn divides the squares by the number of samples.
        lasso = Lasso(
            alpha=lambda_[j] / len(X), fit_intercept=intercept, tol=1e-12, max_iter=100_000
        ).fit(X, Y[:, j])
        np.testing.assert_allclose(solution.W[:, j], lasso.coef_, atol=TOLERANCE["lasso"])
        if intercept:
            assert solution.b[j] == pytest.approx(lasso.intercept_, abs=TOLERANCE["lasso"])
        assert np.array_equal(solution.W[:, j] != 0, lasso.coef_ != 0)


@pytest.mark.parametrize(("formulation", "radius"), BALLS)
def test_a_vanishing_radius_gives_the_trained_weights_back(formulation, radius):
    trained = instances.random_relu_layer(
        300, 12, 3, decay=0.0, formulation=formulation, radius=radius, tolerance=1e-7, seed=4
    ).problem
    solution = solve(trained)
    assert solution.status is Status.OPTIMAL
    size = np.abs(trained.W).max()
    np.testing.assert_allclose(solution.W, trained.W, atol=TOLERANCE["given_back"] * size)


@pytest.mark.parametrize("formulation", ["pooled", "strict"])
def test_the_error_falls_with_the_radius(formulation):
    problem = instances.random_relu_layer(80, 12, 3, formulation=formulation).problem
    values = [
        solve(problem.replace(tolerance=g)).certificate.objective for g in (0.05, 0.1, 0.2, 0.4)
    ]
    assert np.all(np.diff(values) < 0)


# Vanishing budgets with few samples: all but equalities, and many ways to meet them ------------


def least_norm(X, lower, upper, intercept):
    """The least l1 norm of one output at radius zero, and the length of a dual point that shows it.

    By a linear program in the weights' positive and negative parts and the intercept.
    """
    A = np.column_stack([X, -X, np.full(len(X), float(intercept))])
    fixed, above, below = lower == upper, np.isfinite(upper), np.isfinite(lower)
    above, below = above & ~fixed, below & ~fixed
    ends = {"A_eq": A[fixed], "b_eq": upper[fixed]} if fixed.any() else {}
    cost = np.append(np.ones(2 * X.shape[1]), 0.0)
    bounds = [(0, None)] * 2 * X.shape[1] + [(None, None)]
    answer = linprog(
        cost, A_ub=np.vstack([A[above], -A[below]]), b_ub=np.append(upper[above], -lower[below]),
        bounds=bounds, **ends,
    )  # fmt: skip
    return answer.fun, np.hypot(
        *map(np.linalg.norm, (answer.eqlin.marginals, answer.ineqlin.marginals))
    )


def wide(activation, formulation, budget, **more):
    """A small problem with half as many samples as inputs, and the answers at radius zero."""
    problem = instances.random_layer(
        20, 40, 3, activation=activation, formulation=formulation, tolerance=budget, seed=6, **more
    ).problem
    lower, upper = problem.box()
    answers = [
        least_norm(problem.X, lower[:, j], upper[:, j], problem.intercept)
        for j in range(problem.n_outputs)
    ]
    return problem, *np.transpose(answers)


@pytest.mark.parametrize("fraction", [1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("formulation", ["penalised", "penalised_strict"])
@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_a_vanishing_penalty_is_a_linear_program(activation, formulation, intercept, fraction):
    problem, norms, lengths = wide(activation, formulation, fraction, intercept=intercept)
    solution = solve(problem)
    assert solution.statuses == (Status.OPTIMAL,) * problem.n_outputs
    values = solution.certificate.objectives / problem.lambda_
    slack = TOLERANCE["linear_program"] * norms
    assert np.all(values <= norms + slack)
    # Along the linear program's dual point the bound is a parabola of lambda.
    assert np.all(values >= norms - 0.5 * problem.lambda_ * lengths**2 - slack)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize(("formulation", "radius"), BALLS)
@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_a_vanishing_radius_is_a_linear_program(
    activation, formulation, radius, intercept, tolerance
):
    problem, norms, lengths = wide(
        activation, formulation, tolerance, intercept=intercept, radius=radius
    )
    solution = solve(problem)
    assert solution.statuses == (Status.OPTIMAL,) * problem.n_outputs
    values = solution.certificate.objectives
    if radius == "joint":
        values, norms, lengths = values.sum(), norms.sum(), np.linalg.norm(lengths)
    slack = TOLERANCE["linear_program"] * norms
    assert np.all(values <= norms + slack)
    assert np.all(values >= norms - problem.epsilon * lengths - slack)


# One form against another ----------------------------------------------------------------------


@pytest.mark.parametrize("formulation", ["pooled", "strict"])
@pytest.mark.parametrize("intercept", [False, True])
def test_one_output_has_one_radius(formulation, intercept):
    make = {"formulation": formulation, "intercept": intercept, "seed": 5}
    joint = instances.random_layer(40, 10, 1, radius="joint", **make).problem
    alone = instances.random_layer(40, 10, 1, radius="per_output", **make).problem
    first, second = (solve(p, tol_gap=1e-9, tol_feas=1e-9) for p in (joint, alone))
    assert first.status is second.status is Status.OPTIMAL
    np.testing.assert_allclose(first.W, second.W, atol=TOLERANCE["same_answer"])


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("intercept", [False, True])
def test_strict_is_pooled_when_every_row_is_matched(radius, intercept):
    X, Y = regression()
    problem = Problem(
        X, Y, activation="identity", radius=radius, tolerance=0.3, intercept=intercept
    )
    pooled = solve(problem, tol_gap=1e-9, tol_feas=1e-9)
    strict = solve(problem.replace(formulation="strict"), tol_gap=1e-9, tol_feas=1e-9)
    assert pooled.status is strict.status is Status.OPTIMAL
    np.testing.assert_allclose(strict.W, pooled.W, atol=TOLERANCE["same_answer"])


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("tolerance", [0.05, 0.2, 0.5])
def test_pooled_is_never_worse_than_strict(radius, tolerance):
    problem = instances.random_relu_layer(80, 16, 4, radius=radius, tolerance=tolerance).problem
    pooled, strict = solve(problem), solve(problem.replace(formulation="strict"))
    assert pooled.status is strict.status is Status.OPTIMAL
    better, worse = pooled.certificate.objectives, strict.certificate.objectives
    if radius == "joint":
        better, worse = better.sum(), worse.sum()
    assert np.all(better <= worse * (1 + TOLERANCE["proved"]))
    assert np.sum(better) < np.sum(worse)


@pytest.mark.parametrize("radius", RADII)
def test_the_joint_radius_is_never_worse_than_its_own_split(radius):
    problem = instances.random_relu_layer(80, 16, 4, radius="joint", tolerance=0.2).problem
    joint = solve(problem)
    split = problem.target_norms / np.linalg.norm(problem.target_norms) * problem.epsilon
    alone = solve(problem.replace(radius="per_output", epsilon=split))
    assert joint.status is alone.status is Status.OPTIMAL
    assert joint.certificate.objective < alone.certificate.objective


@pytest.mark.parametrize("formulation", ["pooled", "strict"])
@pytest.mark.parametrize("radius", RADII)
def test_the_multiplier_links_ball_and_penalty(formulation, radius):
    problem = instances.random_layer(60, 12, 3, formulation=formulation, radius=radius).problem
    ball = solve(problem, tol_gap=1e-9, tol_feas=1e-9)
    penalised = {"pooled": "penalised", "strict": "penalised_strict"}[formulation]
    same = problem.replace(formulation=penalised, lambda_=ball.multiplier)
    linked = solve(same, tol_gap=1e-9, tol_feas=1e-9)
    assert linked.status is Status.OPTIMAL
    np.testing.assert_allclose(linked.W, ball.W, atol=TOLERANCE["multiplier"])


def test_a_joint_radius_that_is_not_reached_needs_no_force():
    """Hard rows leave vertices; the ball round the matched ones is wider than the best of them."""
    problem = instances.random_layer(
        40, 12, 3, activation="hard_tanh", defects=["unpenalised"], formulation="strict",
        radius="joint", intercept=True, tolerance=0.8, seed=532,
    ).problem  # fmt: skip
    solution = solve(problem)
    assert solution.status is Status.OPTIMAL
    lower, upper = problem.box()
    E = np.where(lower == upper, problem.X @ solution.W + solution.b - lower, 0.0)
    assert np.linalg.norm(E) < 0.9 * problem.epsilon


# Degenerate shapes -----------------------------------------------------------------------------


@pytest.mark.parametrize(("formulation", "radius"), BALLS)
@pytest.mark.parametrize("intercept", [False, True])
def test_one_sample_one_input_one_output(formulation, radius, intercept):
    problem = Problem(
        [[2.0]], [[3.0]], epsilon=1.0, formulation=formulation, radius=radius, intercept=intercept
    )
    solution = solve(problem)
    assert solution.status is Status.OPTIMAL
    assert solution.W[0, 0] == pytest.approx(0.0 if intercept else 1.0, abs=TOLERANCE["proved"])


@pytest.mark.parametrize("formulation", ["pooled", "strict"])
def test_nothing_but_zero_inputs(formulation):
    rng = np.random.default_rng(0)
    Y = np.abs(rng.standard_normal((10, 2)))
    kept = Problem(np.zeros((10, 3)), Y, tolerance=1.0, formulation=formulation, intercept=False)
    assert solve(kept).status is Status.OPTIMAL
    lost = solve(kept.replace(tolerance=0.5))
    assert lost.status is Status.INFEASIBLE
    assert lost.least_epsilon[0] == pytest.approx(np.linalg.norm(Y), rel=TOLERANCE["least_radius"])


@pytest.mark.parametrize("radius", RADII)
def test_rows_without_limits_need_nothing(radius):
    free = np.full((6, 2), np.inf)
    problem = Problem(np.eye(6), lower=-free, upper=free, epsilon=0.0, radius=radius)
    solution = solve(problem)
    assert solution.status is Status.OPTIMAL and solution.nnz == 0
