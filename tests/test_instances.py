"""Instances: the answers they claim, and the difficulties they promise."""

from itertools import product

import numpy as np
import pytest

from nettrim_solver import certify, instances
from nettrim_solver.activations import ACTIVATIONS
from nettrim_solver.exceptions import ProblemError
from nettrim_solver.problem import FORMULATIONS, RADII

from .tolerances import TOLERANCE

KINDS = ("plain", "degenerate", "duplicate_columns")


@pytest.mark.parametrize("shape", [(40, 10, 3), (15, 40, 3), (60, 12, 1)])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("epsilon", [None, 1e-6, 0.0])
@pytest.mark.parametrize(
    ("formulation", "radius", "kind"), list(product(("pooled", "strict"), RADII, KINDS))
)
def test_planted_answers_are_optimal(shape, formulation, radius, kind, intercept, epsilon):
    planted = instances.planted(
        *shape, formulation=formulation, radius=radius, kind=kind, intercept=intercept,
        epsilon=epsilon, seed=11,
    )  # fmt: skip
    judged = certify(planted.problem, planted.W, planted.b, planted.theta)
    assert np.abs(judged.gaps).max() <= TOLERANCE["planted"]
    assert judged.violation <= TOLERANCE["planted"]
    assert judged.objective == pytest.approx(planted.objective, rel=TOLERANCE["norm"])
    assert planted.problem.radius == radius
    assert planted.problem.formulation == formulation
    assert planted.problem.X.shape == shape[:2]


def test_planted_l1_weights_and_free_inputs():
    c = np.array([0.0, 2.0, 1.0, 0.5, 0.0, 1.0, 3.0, 1.0])
    planted = instances.planted(40, 8, 3, weights=c, intercept=True, seed=3)
    judged = certify(planted.problem, planted.W, planted.b, planted.theta)
    assert np.abs(judged.gaps).max() <= TOLERANCE["planted"]
    assert judged.objective == pytest.approx(np.sum(c[:, None] * np.abs(planted.W)))


def test_degenerate_means_no_strict_complementarity():
    for kind, degenerate in (("plain", False), ("degenerate", True)):
        planted = instances.planted(60, 20, 3, kind=kind, seed=4)
        lower, upper = planted.problem.box()
        Z = planted.problem.X @ planted.W
        idle = (planted.theta == 0) & (lower < upper)
        touching = idle & (np.minimum(np.abs(Z - lower), np.abs(Z - upper)) < 1e-12)
        slopes = np.abs(planted.problem.X.T @ planted.theta)
        extreme = (planted.W == 0) & (np.abs(slopes - 1) < TOLERANCE["planted_dual"])
        assert bool(touching.any()) is degenerate
        assert bool(extreme.any()) is degenerate


def test_duplicate_columns_are_duplicates():
    planted = instances.planted(40, 12, 3, kind="duplicate_columns", seed=4)
    X = planted.problem.X
    assert np.array_equal(X[:, :4], X[:, 8:])
    assert np.any(planted.W[:4] * planted.W[8:] > 0)


def test_all_kinds_of_rows_occur():
    lower, upper = instances.planted(60, 10, 3, seed=1).problem.box()
    kinds = [
        lower == upper,
        np.isinf(lower) & np.isfinite(upper),
        np.isfinite(lower) & np.isinf(upper),
        np.isfinite(lower) & np.isfinite(upper) & (lower < upper),
    ]
    assert all(kind.any() for kind in kinds)


@pytest.mark.parametrize("active", [0.0, 1.0])
def test_share_of_matched_rows(active):
    planted = instances.planted(60, 10, 3, active=active, seed=1)
    lower, upper = planted.problem.box()
    assert np.mean(lower == upper) == active
    assert certify(planted.problem, planted.W, theta=planted.theta).gap <= TOLERANCE["planted"]


MAKERS = [
    lambda seed: instances.planted(30, 10, 3, seed=seed),
    lambda seed: instances.random_relu_layer(30, 10, 3, seed=seed),
    lambda seed: instances.random_layer(30, 10, 3, seed=seed),
    lambda seed: instances.random_box(30, 10, 3, seed=seed),
    lambda seed: instances.infeasible(seed=seed),
]


@pytest.mark.parametrize("make", MAKERS)
def test_a_seed_is_an_instance(make):
    first, again, other = make(1).problem, make(1).problem, make(2).problem
    assert np.array_equal(first.X, again.X)
    assert all(np.array_equal(a, b) for a, b in zip(first.box(), again.box(), strict=True))
    assert not np.array_equal(first.X, other.X)


# Random layers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_trained_weights_are_feasible(activation, formulation, intercept):
    for defect in instances.DEFECTS:
        problem = instances.random_layer(
            20, 6, 3, activation=activation, formulation=formulation, intercept=intercept,
            defects=[defect], seed=5,
        ).problem  # fmt: skip
        judged = certify(problem, problem.W, problem.b)
        assert judged.violation <= TOLERANCE["planted"]
        assert judged.activation_error <= TOLERANCE["planted"]


def test_defects_are_there():
    def layer(defect):
        return instances.random_layer(
            30, 8, 3, activation="relu", intercept=True, defects=[defect], seed=5
        ).problem

    assert np.any(np.all(layer("zero_column").X == 0, axis=0))
    assert np.all(layer("dead_output").Y[:, 0] == 0)
    X = layer("duplicate_columns").X
    assert np.array_equal(X[:, 1], X[:, 2])
    assert np.any(np.ptp(layer("constant_feature").X, axis=0) == 0)
    assert np.linalg.matrix_rank(layer("low_rank").X) == 4
    assert np.sum(layer("unpenalised").weights == 0) == 2
    assert np.ptp(layer("weighted").weights) > 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_relu_layers(formulation, dtype):
    problem = instances.random_relu_layer(
        80, 20, 4, formulation=formulation, intercept=True, dtype=dtype, seed=1
    ).problem
    assert problem.X.dtype == problem.Y.dtype == problem.W.dtype == problem.b.dtype == dtype
    assert problem.X.min() == 0
    assert 0.2 < np.mean(problem.Y == 0) < 0.8
    Z = problem.X @ problem.W + problem.b
    np.testing.assert_allclose(np.maximum(Z, 0), problem.Y, atol=1e-5)


def test_decay_correlates_the_features():
    def effective_rank(decay):
        X = instances.random_relu_layer(400, 30, 2, decay=decay, n_hidden=0).problem.X
        values = np.linalg.svd(X, compute_uv=False) ** 2
        return values.sum() ** 2 / np.sum(values**2)

    assert effective_rank(0.0) > 25 > 12 > effective_rank(1.0) > effective_rank(2.0)


def test_random_boxes_hold_their_weights():
    for formulation, radius, seed in product(FORMULATIONS, RADII, range(5)):
        problem = instances.random_box(
            40, 8, 3, formulation=formulation, radius=radius, intercept=True, noise=0.2, seed=seed
        ).problem
        assert certify(problem, problem.W, problem.b).violation == 0


# Infeasible ------------------------------------------------------------------------------------


@pytest.mark.parametrize("formulation", ["pooled", "strict"])
@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("intercept", [False, True])
def test_least_epsilon_is_reached_by_the_weights_given(formulation, radius, intercept):
    bad = instances.infeasible(
        fraction=0.75, formulation=formulation, radius=radius, intercept=intercept, seed=3
    )
    at_least = bad.problem.replace(
        epsilon=float(bad.least_epsilon[0]) if radius == "joint" else bad.least_epsilon
    )
    assert certify(at_least, bad.W, bad.b).violation <= TOLERANCE["planted"]
    assert certify(bad.problem, bad.W, bad.b).violation == pytest.approx(1 / 3)
    assert bad.objective == np.inf


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: instances.planted(5, 10, 6), "n_outputs must be at most n_samples"),
        (lambda: instances.planted(10, 5, 2, kind="odd"), "kind must be one of"),
        (lambda: instances.planted(10, 5, 2, formulation="penalised"), "formulation must be"),
        (lambda: instances.random_layer(10, 5, 2, defects=["odd"]), "defects must be one of"),
        (lambda: instances.infeasible(kind="odd"), "kind must be one of"),
        (lambda: instances.infeasible(kind="hard_rows", formulation="pooled"), "strict"),
        (lambda: instances.planted(1, 5, 1, active=1.0, intercept=True), "too small"),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ProblemError, match=words):
        call()
