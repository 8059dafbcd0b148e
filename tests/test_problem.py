"""Problem: what it keeps of its input, how budgets are defined, and the box."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from nettrim_solver import Problem, activations, certify, solve
from nettrim_solver.exceptions import ProblemError

from .tolerances import TOLERANCE

ARGUMENTS = ("X", "Y", "W", "b", "Z", "lower", "upper", "weights", "epsilon")


# Input kept as it was --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_dtype", "kept"),
    [
        (np.float64, np.float64),
        (np.float32, np.float32),
        (np.float16, np.float32),
        (np.longdouble, np.float64),
        (">f8", np.float64),
        (np.int64, np.float64),
        (np.int8, np.float64),
        (np.uint16, np.float64),
        (bool, np.float64),
    ],
)
def test_dtypes_are_cast_and_never_modified(given_dtype, kept):
    X = (np.arange(24).reshape(6, 4) % 2).astype(given_dtype)
    Y = (np.arange(12).reshape(6, 2) % 2).astype(given_dtype)
    copies = X.copy(), Y.copy()
    problem = Problem(X, Y, epsilon=1)
    assert problem.X.dtype == problem.Y.dtype == problem.dtype == kept
    assert problem.X.dtype.isnative
    np.testing.assert_array_equal(problem.X, X)
    np.testing.assert_array_equal(problem.Y, Y)
    for now, before in zip((X, Y), copies, strict=True):
        assert now.dtype == np.dtype(given_dtype) and now.flags.writeable
        np.testing.assert_array_equal(now, before)


LAYOUTS = {
    "C": lambda a: np.ascontiguousarray(a),
    "Fortran": lambda a: np.asfortranarray(a),
    "every second row": lambda a: np.repeat(a, 2, axis=0)[::2],
    "every second column": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "negative strides": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "read-only": lambda a: np.broadcast_to(a, a.shape),
    "lists": lambda a: a.tolist(),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_memory_layout_gives_the_same_problem(layer, layout):
    plain = Problem(layer.X, layer.Y, layer.W, layer.b, tolerance=0.1)
    problem = Problem(layout(layer.X), layout(layer.Y), layout(layer.W), layer.b, tolerance=0.1)
    for name in ("X", "Y", "W"):
        array = getattr(problem, name)
        np.testing.assert_array_equal(array, getattr(plain, name))
        assert array.flags.c_contiguous and not array.flags.writeable
    assert problem.epsilon == plain.epsilon
    for end, expected in zip(problem.box(), plain.box(), strict=True):
        np.testing.assert_array_equal(end, expected)


def test_arrays_are_read_only_and_the_callers_stay_writeable(layer):
    Z = layer.X @ layer.W + layer.b
    weights, epsilon = np.ones(8), np.full(4, 0.5)
    given = {"X": layer.X, "Y": layer.Y, "W": layer.W, "b": layer.b, "Z": Z, "weights": weights,
             "epsilon": epsilon}  # fmt: skip
    copies = {name: array.copy() for name, array in given.items()}
    problem = Problem(**given, radius="per_output")
    for name, array in given.items():
        kept = getattr(problem, name)
        assert not kept.flags.writeable, name
        with pytest.raises(ValueError, match="read-only"):
            kept[...] = 0
        assert array.flags.writeable
        np.testing.assert_array_equal(array, copies[name])
    # A copy where the problem cannot be large; a view of X, where it can.
    assert np.shares_memory(problem.X, layer.X)
    weights[:], epsilon[:] = 9, 9
    np.testing.assert_array_equal(problem.weights, copies["weights"])
    np.testing.assert_array_equal(problem.epsilon, copies["epsilon"])


def test_box_is_a_copy_that_may_be_written(layer):
    lower, upper = layer.Y - 1.0, layer.Y + 1.0
    problem = Problem(layer.X, lower=lower, upper=upper, epsilon=1)
    ends = problem.box()
    for end, own in zip(ends, (lower, upper), strict=True):
        assert not np.shares_memory(end, own)
        end[...] = 0.0
    np.testing.assert_array_equal(problem.box()[0], layer.Y - 1.0)
    assert not problem.lower.flags.writeable and lower.flags.writeable


def test_solving_changes_and_aliases_nothing(layer):
    given = {"X": layer.X, "Y": layer.Y, "W": layer.W, "b": layer.b}
    copies = {name: array.copy() for name, array in given.items()}
    problem = Problem(**given, tolerance=0.2)
    solution = solve(problem)
    for name, array in given.items():
        np.testing.assert_array_equal(array, copies[name])
        for result in (solution.W, solution.b, solution.theta):
            assert not np.shares_memory(result, array)


def test_a_vector_is_one_output(layer):
    problem = Problem(layer.X, layer.Y[:, 1], layer.W[:, 1], layer.b[1:2], tolerance=0.1)
    assert problem.n_outputs == 1 and problem.Y.shape == (30, 1) and problem.W.shape == (8, 1)
    assert Problem(layer.X, lower=layer.Y[:, 1], upper=layer.Y[:, 1], epsilon=1).n_outputs == 1


FORMATS = ["csr", "csc", "coo", "lil", "dok", "bsr", "dia"]


@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, bool])
def test_sparse_formats(layer, name, kind, dtype):
    dense = np.where(layer.X > 0.5, 10 * layer.X, 0.0).astype(dtype)
    X = getattr(sp, f"{name}_{kind}")(dense)
    before = X.copy()
    problem = Problem(X, layer.Y, epsilon=1.0)
    assert sp.issparse(problem.X) and problem.X.format == "csr"
    assert problem.dtype == (np.float32 if dtype is np.float32 else np.float64)
    np.testing.assert_array_equal(problem.X.toarray(), dense)
    assert X.dtype == before.dtype
    np.testing.assert_array_equal(X.toarray(), before.toarray())


def test_sparse_duplicates_are_summed_in_a_copy():
    entries = sp.coo_array(([1.0, 2.0, 4.0], ([0, 0, 1], [1, 1, 0])), shape=(2, 2))
    problem = Problem(entries, np.ones((2, 1)), epsilon=1)
    np.testing.assert_array_equal(problem.X.toarray(), [[0, 3], [4, 0]])
    assert problem.X.nnz == 2 and entries.nnz == 3
    X = sp.csr_array(np.eye(2))
    problem = Problem(X, np.ones((2, 1)), epsilon=1)
    X.data[:] = 7.0
    np.testing.assert_array_equal(problem.X.toarray(), np.eye(2))


# Budgets ---------------------------------------------------------------------------------------


def test_tolerance_is_relative_to_the_norm_of_y(layer):
    joint = Problem(layer.X, layer.Y, tolerance=0.3)
    assert joint.epsilon == pytest.approx(0.3 * np.linalg.norm(layer.Y), rel=TOLERANCE["norm"])
    each = Problem(layer.X, layer.Y, tolerance=0.3, radius="per_output")
    expected = 0.3 * np.linalg.norm(layer.Y, axis=0)
    np.testing.assert_allclose(each.epsilon, expected, rtol=TOLERANCE["norm"])


def test_tolerance_of_a_box_is_relative_to_its_distance_from_zero(layer):
    rng = np.random.default_rng(3)
    lower = layer.Y - rng.uniform(0, 2, layer.Y.shape)
    upper = np.where(rng.random(layer.Y.shape) < 0.3, np.inf, layer.Y)
    nearest = np.clip(0.0, lower, upper)
    joint = Problem(layer.X, lower=lower, upper=upper, tolerance=0.5)
    assert joint.epsilon == pytest.approx(0.5 * np.linalg.norm(nearest), rel=TOLERANCE["norm"])
    each = joint.replace(radius="per_output")
    expected = 0.5 * np.linalg.norm(nearest, axis=0)
    np.testing.assert_allclose(each.epsilon, expected, rtol=TOLERANCE["norm"])
    np.testing.assert_allclose(
        each.target_norms, np.linalg.norm(nearest, axis=0), rtol=TOLERANCE["norm"]
    )


@pytest.mark.parametrize("activation", ["identity", "relu"])
@pytest.mark.parametrize("radius", ["joint", "per_output"])
def test_y_and_its_box_mean_the_same_tolerance(layer, activation, radius):
    options = {"tolerance": 0.2, "radius": radius}
    by_y = Problem(layer.X, layer.Y, activation=activation, **options)
    lower, upper = by_y.box()
    by_box = Problem(layer.X, lower=lower, upper=upper, **options)
    np.testing.assert_allclose(by_box.epsilon, by_y.epsilon, rtol=TOLERANCE["norm"])


def test_levels_of_each_radius_and_formulation(layer):
    X, Y = layer.X, layer.Y
    assert Problem(X, Y, epsilon=2).epsilon == 2.0
    np.testing.assert_array_equal(Problem(X, Y, epsilon=2, radius="per_output").epsilon, [2.0] * 4)
    own = Problem(X, Y, epsilon=[1, 2, 3, 4], radius="per_output")
    np.testing.assert_array_equal(own.epsilon, [1.0, 2.0, 3.0, 4.0])
    assert own.lambda_ is None and not own.joint and not own.penalised and not own.strict
    strict = Problem(X, Y, epsilon=2, formulation="strict")
    assert strict.joint and strict.strict and not strict.penalised
    penalised = Problem(X, Y, lambda_=[1, 2, 3, 4], formulation="penalised")
    np.testing.assert_array_equal(penalised.lambda_, [1.0, 2.0, 3.0, 4.0])
    assert penalised.epsilon is None and penalised.penalised and not penalised.joint
    both = Problem(X, Y, lambda_=1, formulation="penalised_strict")
    assert both.lambda_ == 1.0 and both.strict and both.penalised
    open_budget = Problem(X, Y)
    assert open_budget.epsilon is None and open_budget.lambda_ is None


# The box ---------------------------------------------------------------------------------------

BOXED = [*activations.ACTIVATIONS, "box"]


def boxed_problem(name, n_outputs=7):
    rng = np.random.default_rng(5)
    X, W = rng.standard_normal((12, 4)), 3 * rng.standard_normal((4, n_outputs))
    Z = X @ W
    if name == "box":
        return Problem(X, lower=Z - 1, upper=np.where(Z > 0, np.inf, Z), epsilon=1)
    activation = activations.get_activation(name)
    if name == "prelu":
        activation = activations.PReLU(rng.uniform(0.1, 2.0, n_outputs))
    return Problem(X, activation(Z), W, activation=activation, epsilon=1)


@pytest.mark.parametrize("name", BOXED)
@given(data=st.data())
def test_boxes_of_any_columns_equal_the_whole(name, data):
    problem = boxed_problem(name)
    start = data.draw(st.integers(0, 6))
    stop = data.draw(st.integers(start + 1, 7))
    some = data.draw(st.lists(st.integers(0, 6), min_size=1))
    columns = data.draw(st.sampled_from([slice(start, stop), slice(None, stop), np.array(some)]))
    for end, whole in zip(problem.box(columns), problem.box(), strict=True):
        assert end.dtype == np.float64
        np.testing.assert_array_equal(end, whole[:, columns])


@pytest.mark.parametrize("name", BOXED)
def test_the_trained_layer_lies_in_its_own_box(name):
    problem = boxed_problem(name)
    if problem.W is not None:
        lower, upper = problem.box()
        Z = problem.X @ problem.W
        error = np.abs(Z - np.clip(Z, lower, upper))
        assert np.all(error <= TOLERANCE["own_box"] * np.maximum(1.0, np.abs(Z)))


def test_penalty_by_columns(layer):
    shared = Problem(layer.X, layer.Y, weights=np.arange(8), intercept=False)
    np.testing.assert_array_equal(shared.penalty(slice(1, 3)), np.arange(8.0)[:, None])
    c = np.arange(32).reshape(8, 4)
    own = Problem(layer.X, layer.Y, weights=c)
    np.testing.assert_array_equal(own.penalty([3, 1]), c[:, [3, 1]])
    np.testing.assert_array_equal(Problem(layer.X, layer.Y).penalty(), np.ones((8, 1)))


def test_stored_preactivations_come_from_the_trained_weights_or_z(layer):
    Z = layer.X @ layer.W + layer.b
    made = Problem(layer.X, np.tanh(Z), layer.W, layer.b, activation="tanh")
    given = Problem(layer.X, np.tanh(Z), Z=Z, activation="tanh")
    np.testing.assert_array_equal(made.box()[0], given.box()[0])


# Parts of the samples --------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOXED)
@pytest.mark.parametrize("rows", [slice(3, 11), slice(None, None, 4), np.array([5, 0, 5])])
def test_some_samples_are_those_rows_of_everything(name, rows):
    problem = boxed_problem(name)
    part = problem.samples(rows)
    assert part.n_samples == len(part.X) and part.n_outputs == problem.n_outputs
    np.testing.assert_array_equal(part.X, problem.X[rows])
    for end, whole in zip(part.box(), problem.box(), strict=True):
        np.testing.assert_array_equal(end, whole[rows])
    for field in ("W", "b", "weights", "activation", "radius", "formulation"):
        assert getattr(part, field) is getattr(problem, field)
    assert part.epsilon == problem.epsilon


@pytest.mark.parametrize("stored", [np.asarray, sp.csr_array])
def test_squared_distances_of_parts_add_up(layer, stored):
    problem = Problem(stored(layer.X), layer.Y, layer.W, layer.b, epsilon=1.0)
    W = 0.5 * layer.W
    whole = certify(problem, W, layer.b).distances ** 2
    parts = [problem.samples(rows) for rows in (slice(0, 7), slice(7, 30))]
    summed = sum(certify(part, W, layer.b).distances ** 2 for part in parts)
    np.testing.assert_allclose(summed, whole, rtol=TOLERANCE["reordered"])
    # What was computed from all samples is not taken over.
    norms = [part.target_norms**2 for part in parts]
    np.testing.assert_allclose(sum(norms), problem.target_norms**2, rtol=TOLERANCE["reordered"])


def test_a_slice_of_samples_is_a_view(layer):
    problem = Problem(layer.X, layer.Y, epsilon=1.0)
    part = problem.samples(slice(2, 9))
    assert np.shares_memory(part.X, layer.X) and not part.X.flags.writeable


# replace and repr ------------------------------------------------------------------------------


def same(a, b):
    for name in (*ARGUMENTS, "lambda_", "tolerance"):
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None), name
        if left is not None:
            np.testing.assert_array_equal(left, right, err_msg=name)
    for name in ("radius", "formulation", "intercept", "activation"):
        assert getattr(a, name) == getattr(b, name), name


@pytest.mark.parametrize(
    ("before", "changes", "after"),
    [
        ({"epsilon": 1.0}, {}, {"epsilon": 1.0}),
        ({"epsilon": 1.0}, {"epsilon": 2.0}, {"epsilon": 2.0}),
        ({"epsilon": 1.0}, {"tolerance": 0.1}, {"tolerance": 0.1}),
        ({"tolerance": 0.1}, {"epsilon": 2.0}, {"epsilon": 2.0}),
        ({"tolerance": 0.1}, {"radius": "per_output"}, {"tolerance": 0.1, "radius": "per_output"}),
        ({"epsilon": 1.0}, {"radius": "per_output"}, {"epsilon": 1.0, "radius": "per_output"}),
        ({"epsilon": 1.0}, {"formulation": "strict"}, {"epsilon": 1.0, "formulation": "strict"}),
        (
            {"epsilon": 1.0},
            {"formulation": "penalised", "lambda_": 3.0},
            {"formulation": "penalised", "lambda_": 3.0},
        ),
        (
            {"formulation": "penalised", "lambda_": 3.0},
            {"formulation": "pooled", "tolerance": 0.1},
            {"tolerance": 0.1},
        ),
        ({"epsilon": 1.0}, {"intercept": False}, {"epsilon": 1.0, "intercept": False}),
        ({"epsilon": 1.0}, {"weights": np.arange(8.0)}, {"epsilon": 1.0, "weights": np.arange(8)}),
        (
            {"epsilon": 1.0, "activation": "elu", "Z": "Z"},
            {"epsilon": 0.5},
            {"epsilon": 0.5, "activation": "elu", "Z": "Z"},
        ),
    ],
)
def test_replace_equals_building_anew(layer, before, changes, after):
    def build(arguments):
        given = {name: layer.Y if name == "Z" else value for name, value in arguments.items()}
        return Problem(layer.X, layer.Y, **given)

    original = build(before)
    same(original.replace(**changes), build(after))
    same(original, build(before))


def test_replace_of_data_takes_the_tolerance_along(layer):
    problem = Problem(layer.X, layer.Y, tolerance=0.1)
    same(problem.replace(Y=2 * layer.Y), Problem(layer.X, 2 * layer.Y, tolerance=0.1))
    lower, upper = layer.Y, layer.Y + 1.0
    boxed = problem.replace(lower=lower, upper=upper)
    assert boxed.Y is None and boxed.activation is None
    same(boxed, Problem(layer.X, lower=lower, upper=upper, tolerance=0.1))
    same(boxed.replace(Y=layer.Y), problem)


def test_replace_of_a_joint_radius_by_outputs_needs_a_new_level(layer):
    each = Problem(layer.X, layer.Y, epsilon=1, radius="per_output")
    with pytest.raises(ProblemError, match="one number for radius='joint'"):
        each.replace(radius="joint")
    assert each.replace(radius="joint", epsilon=2.0).epsilon == 2.0


def test_repr_says_what_is_asked(layer):
    text = repr(Problem(sp.csr_array(layer.X), layer.Y, epsilon=0.5, formulation="strict"))
    for part in ("(30, 8)", "sparse", "float64", "4 outputs", "relu", "strict", "joint", "0.5"):
        assert part in text
    each = Problem(layer.X, lower=layer.Y, upper=layer.Y, epsilon=[1, 2, 3, 4], radius="per_output")
    assert "box" in repr(each) and "per-output epsilon=[1..4]" in repr(each)
    assert "lambda_=2" in repr(Problem(layer.X, layer.Y, lambda_=2, formulation="penalised"))
    assert "epsilon=None" in repr(Problem(layer.X, layer.Y))


def test_a_box_may_have_a_linear_target_that_changes_nothing_else(tmp_path):
    rng = np.random.default_rng(2)
    X, Z = rng.standard_normal((20, 4)), rng.standard_normal((20, 3))
    lower, upper = np.where(Z > 0, Z, -np.inf), np.maximum(Z, 0)
    plain = Problem(X, lower=lower, upper=upper, epsilon=0.5)
    aimed = Problem(X, lower=lower, upper=upper, epsilon=0.5, Z=Z)
    for one, other in zip(plain.box(), aimed.box(), strict=True):
        np.testing.assert_array_equal(one, other)
    aimed.save(tmp_path / "problem.npz")
    np.testing.assert_array_equal(Problem.load(tmp_path / "problem.npz").Z, Z)
    np.testing.assert_array_equal(aimed.select([1]).Z, Z[:, [1]])
    assert aimed.replace(lower=lower, upper=upper).Z is None
    with pytest.raises(ProblemError, match=r"Z must have the shape .*\(20, 3\), but has \(20, 2\)"):
        aimed.replace(Z=Z[:, :2])
