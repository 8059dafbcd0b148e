"""What must not matter: order, units, neighbours, blocks, storage, and what was solved before."""

from itertools import product

import numpy as np
import pytest
import scipy.sparse as sp

from nettrim_solver import Factorisation, Problem, Status, instances, solve
from nettrim_solver.problem import RADII

from .tolerances import TOLERANCE

FORMS = [
    (formulation, radius)
    for formulation, radius in product(("pooled", "strict", "penalised", "penalised_strict"), RADII)
    if radius == "per_output" or not formulation.startswith("penalised")
]

#: Far below the default tolerances, so that answers agree to more digits than proofs ask for.
TIGHT = {"tol_gap": 1e-10, "tol_feas": 1e-10}


def make(formulation="pooled", radius="per_output", **changes):
    options = {"intercept": True, "tolerance": 0.2, "seed": 7} | changes
    return instances.random_layer(
        60, 14, 5, formulation=formulation, radius=radius, activation="relu", **options
    ).problem


def rebuilt(problem, X=None, rows=slice(None), columns=slice(None), size=1.0):
    """The same problem by its box, with other inputs, order of rows and columns, or units."""
    lower, upper = problem.box()

    def level(value):
        return value if value is None or problem.joint else value[columns]

    return Problem(
        problem.X if X is None else X,
        lower=size * lower[rows][:, columns], upper=size * upper[rows][:, columns],
        epsilon=None if problem.epsilon is None else size * level(problem.epsilon),
        lambda_=None if problem.lambda_ is None else level(problem.lambda_),
        formulation=problem.formulation, radius=problem.radius, intercept=problem.intercept,
    )  # fmt: skip


def assert_same(first, second, W=None, b=None):
    """Equal weights and intercepts, after what was done to the second was undone in `W` and `b`."""
    W, b = second.W if W is None else W, second.b if b is None else b
    assert first.status is second.status is Status.OPTIMAL
    np.testing.assert_allclose(W, first.W, atol=TOLERANCE["same_answer"])
    assert np.array_equal(W != 0, first.W != 0)
    if first.b is not None:
        np.testing.assert_allclose(b, first.b, atol=TOLERANCE["same_answer"])


# Order and units -------------------------------------------------------------------------------


@pytest.mark.parametrize(("formulation", "radius"), FORMS)
def test_order_does_not_matter(formulation, radius):
    problem = make(formulation, radius)
    expected = solve(problem, **TIGHT)
    rng = np.random.default_rng(1)
    rows, inputs, outputs = rng.permutation(60), rng.permutation(14), rng.permutation(5)

    shuffled = solve(rebuilt(problem, problem.X[rows], rows=rows), **TIGHT)
    assert_same(expected, shuffled)
    np.testing.assert_allclose(
        shuffled.theta, expected.theta[rows], atol=TOLERANCE["same_answer"] * 10
    )

    back = np.argsort(inputs)
    shuffled = solve(rebuilt(problem, problem.X[:, inputs]), **TIGHT)
    assert_same(expected, shuffled, W=shuffled.W[back])

    back = np.argsort(outputs)
    shuffled = solve(rebuilt(problem, columns=outputs), **TIGHT)
    assert_same(expected, shuffled, W=shuffled.W[:, back], b=shuffled.b[back])


@pytest.mark.parametrize("factor", [1e-3, 1e3])
@pytest.mark.parametrize(("formulation", "radius"), FORMS)
def test_units_do_not_matter(formulation, radius, factor):
    problem = make(formulation, radius)
    expected = solve(problem, **TIGHT)

    # X in other units, W in their inverse: lambda |W| keeps its value if lambda goes with X.
    other = rebuilt(problem, factor * problem.X)
    if other.penalised:
        other = other.replace(lambda_=factor * problem.lambda_)
    scaled = solve(other, **TIGHT)
    assert_same(expected, scaled, W=factor * scaled.W)

    # Pre-activations in other units, and everything with them.
    other = rebuilt(problem, size=factor)
    if other.penalised:
        other = other.replace(lambda_=factor * problem.lambda_)
    scaled = solve(other, **TIGHT)
    assert_same(expected, scaled, W=scaled.W / factor, b=scaled.b / factor)


@pytest.mark.parametrize(("formulation", "radius"), FORMS)
def test_units_of_single_inputs_go_into_their_weights(formulation, radius):
    problem = make(formulation, radius)
    expected = solve(problem, **TIGHT)
    units = 10.0 ** np.random.default_rng(2).uniform(-2, 2, 14)
    scaled = solve(rebuilt(problem, problem.X * units).replace(weights=units), **TIGHT)
    assert_same(expected, scaled, W=scaled.W * units[:, None])


@pytest.mark.parametrize(("formulation", "radius"), FORMS)
def test_an_intercept_takes_any_offset(formulation, radius):
    problem = make(formulation, radius)
    expected = solve(problem, **TIGHT)
    shifted = solve(rebuilt(problem, problem.X + 2.0), **TIGHT)
    assert_same(expected, shifted, b=shifted.b + 2.0 * shifted.W.sum(axis=0))


def test_mirrored_targets_mirror_the_answer():
    problem = make()
    lower, upper = problem.box()
    expected = solve(problem, **TIGHT)
    mirrored = solve(
        Problem(
            problem.X, lower=-upper, upper=-lower, epsilon=problem.epsilon, radius="per_output"
        ),
        **TIGHT,
    )
    assert_same(expected, mirrored, W=-mirrored.W, b=-mirrored.b)


# Neighbours and blocks -------------------------------------------------------------------------


@pytest.mark.parametrize("formulation", ["pooled", "strict", "penalised", "penalised_strict"])
def test_an_output_does_not_depend_on_the_others(formulation):
    problem = make(formulation)
    together = solve(problem)
    for columns in ([0], [3], [4, 1]):
        alone = solve(problem.select(columns))
        assert alone.status is Status.OPTIMAL
        np.testing.assert_allclose(
            alone.W, together.W[:, columns], atol=TOLERANCE["independent_outputs"]
        )


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize(("formulation", "radius"), FORMS)
def test_blocks_do_not_matter(formulation, radius, intercept, width):
    problem = make(formulation, radius, intercept=intercept)
    expected = solve(problem, **TIGHT)
    blocks = solve(problem, memory_limit=5 * 8 * 60 * width, **TIGHT)
    assert_same(expected, blocks)


def test_a_hopeless_neighbour_does_not_spoil_the_others():
    bad = instances.infeasible(seed=1)
    mixed = bad.problem.replace(epsilon=bad.least_epsilon * np.array([2.0, 0.5, 2.0]))
    alone = bad.problem.select([0, 2]).replace(epsilon=bad.least_epsilon[[0, 2]] * 2.0)
    solution, expected = solve(mixed), solve(alone)
    assert solution.statuses == (Status.OPTIMAL, Status.INFEASIBLE, Status.OPTIMAL)
    np.testing.assert_allclose(
        solution.W[:, [0, 2]], expected.W, atol=TOLERANCE["independent_outputs"]
    )


# Storage and precision -------------------------------------------------------------------------


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize(("formulation", "radius"), FORMS)
def test_sparse_inputs_give_the_dense_answer(formulation, radius, intercept):
    trained = make(formulation, radius, intercept=intercept)
    X = np.where(np.abs(trained.X) > 0.8, trained.X, 0.0)
    Y = np.maximum(X @ trained.W + (trained.b if intercept else 0.0), 0.0)
    problem = trained.replace(X=X, Y=Y)
    dense = solve(problem, **TIGHT)
    for convert in (sp.csr_array, sp.coo_matrix):
        assert_same(dense, solve(problem.replace(X=convert(X)), **TIGHT))


@pytest.mark.parametrize("intercept", [False, True])
def test_wide_sparse_inputs_give_the_dense_answer(intercept):
    X = sp.random_array((20, 50), density=0.3, rng=np.random.default_rng(3), format="csr")
    Y = np.maximum(X @ np.random.default_rng(4).standard_normal((50, 3)), 0)
    dense = Problem(X.toarray(), Y, tolerance=0.2, intercept=intercept)
    assert_same(solve(dense, **TIGHT), solve(dense.replace(X=X), **TIGHT))


@pytest.mark.parametrize(("formulation", "radius"), FORMS)
def test_single_precision_inputs_give_the_same_answer(formulation, radius):
    problem = make(formulation, radius)
    X = problem.X.astype(np.float32)
    double = solve(rebuilt(problem, X.astype(np.float64)), **TIGHT)
    single = solve(rebuilt(problem, X))
    assert single.status is Status.OPTIMAL
    assert single.W.dtype == single.b.dtype == np.float32
    np.testing.assert_allclose(single.W, double.W, atol=TOLERANCE["single_precision"])


@pytest.mark.parametrize("memory", ["C", "F", "strided", "integer"])
def test_the_layout_of_the_inputs_does_not_matter(memory):
    rng = np.random.default_rng(5)
    X = rng.integers(-3, 4, (40, 8)).astype(np.float64)
    Y = np.maximum(X @ rng.standard_normal((8, 3)), 0)
    convert = {
        "C": np.ascontiguousarray,
        "F": np.asfortranarray,
        "strided": lambda A: np.repeat(A, 2, axis=0)[::2],
        "integer": lambda A: A.astype(np.int8) if A is X else A,
    }[memory]
    expected = solve(Problem(X, Y, tolerance=0.2))
    solution = solve(Problem(convert(X), convert(Y), tolerance=0.2))
    assert np.array_equal(solution.W, expected.W)


@pytest.mark.parametrize("dtype", ["float32", "float64", "auto"])
@pytest.mark.parametrize(("formulation", "radius"), FORMS)
def test_the_precision_of_the_iterates_does_not_matter(formulation, radius, dtype):
    problem = make(formulation, radius)
    assert_same(solve(problem, **TIGHT), solve(problem, dtype=dtype, **TIGHT))


@pytest.mark.parametrize(
    "settings",
    [{"relaxation": 1.0}, {"rho": 5.0}, {"adaptive_rho": False}, {"check_interval": 3},
     {"polish_sweeps": 2}],
    ids=lambda settings: next(iter(settings)),
)  # fmt: skip
@pytest.mark.parametrize(("formulation", "radius"), FORMS)
def test_settings_change_the_way_and_not_the_answer(formulation, radius, settings):
    problem = make(formulation, radius)
    assert_same(solve(problem, **TIGHT), solve(problem, **settings, **TIGHT))


# Reuse and side effects ------------------------------------------------------------------------


@pytest.mark.parametrize("intercept", [False, True])
def test_a_factorisation_serves_other_targets_radii_and_forms(intercept):
    first = make(intercept=intercept)
    shared = Factorisation(first)
    second = Problem(
        first.X, np.abs(np.cos(first.Y)), tolerance=0.3, formulation="strict", intercept=intercept
    )
    for problem in (first, second, first.replace(tolerance=0.05), first):
        fresh, reused = solve(problem), solve(problem, factorisation=shared)
        assert np.array_equal(fresh.W, reused.W)
        assert np.array_equal(fresh.theta, reused.theta)


@pytest.mark.parametrize(("formulation", "radius"), FORMS)
def test_inputs_are_not_changed_and_results_do_not_alias_them(formulation, radius):
    made = make(formulation, radius)
    lower, upper = made.box()
    given = {
        "X": made.X.copy(), "W": made.W.copy(), "b": made.b.copy(), "lower": lower, "upper": upper,
        "weights": np.ones(14),
    }  # fmt: skip
    if made.penalised:
        given["lambda_"] = np.array(made.lambda_)
    elif radius == "per_output":
        given["epsilon"] = np.array(made.epsilon)
    else:
        given["epsilon"] = made.epsilon
    before = {name: np.copy(value) for name, value in given.items()}
    problem = Problem(**given, formulation=formulation, radius=radius)
    start = solve(problem)
    kept = {name: np.copy(getattr(start, name)) for name in ("W", "b", "theta", "rho")}
    solution = solve(problem.replace(weights=1.5 * given["weights"]), warm_start=start)
    for name, value in before.items():
        assert np.array_equal(given[name], value), name
    for name, value in kept.items():
        assert np.array_equal(getattr(start, name), value), name
    sources = [v for v in given.values() if isinstance(v, np.ndarray)]
    sources += [start.W, start.b, start.theta, start.rho, start.multiplier]
    for name in ("W", "b", "theta", "rho", "multiplier", "iterations"):
        for source in sources:
            assert not np.shares_memory(getattr(solution, name), source), name


@pytest.mark.parametrize("radius", RADII)
def test_a_trivial_answer_does_not_alias_its_inputs(radius):
    epsilon = 100.0 if radius == "joint" else np.full(5, 100.0)
    problem = make(radius=radius).replace(epsilon=epsilon)
    solution = solve(problem)
    assert solution.nnz == 0
    for name in ("W", "b", "theta", "rho", "multiplier"):
        for source in (problem.X, problem.Y, problem.W, problem.b):
            assert not np.shares_memory(getattr(solution, name), source)
