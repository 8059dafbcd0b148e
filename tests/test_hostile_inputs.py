"""Inputs at which layers were once lost or wrongly proved: arrays with a catch, sizes, one-hot."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp

from nettrim_solver import Problem, Status, solve
from nettrim_solver.exceptions import ProblemError
from nettrim_solver.problem_checks import plain_array

from .tolerances import TOLERANCE

X = np.random.default_rng(0).standard_normal((9, 3))
Y = np.maximum(X @ np.ones((3, 2)), 0.0)

# Arrays with a catch ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["X", "Y", "W", "Z", "b", "weights", "epsilon", "lower", "upper"])
@pytest.mark.parametrize("as_list", [False, True])
def test_masked_entries_are_refused_wherever_they_hide(name, as_list):
    arguments = {"X": X, "Y": Y, "W": np.ones((3, 2)), "epsilon": np.ones(2), "b": np.ones(2),
                 "Z": Y, "weights": np.ones(3)}  # fmt: skip
    if name in ("lower", "upper"):
        arguments |= {"Y": None, "lower": Y, "upper": Y}
    values = np.ma.array(arguments[name], copy=True)
    values[(0,) * values.ndim] = np.ma.masked
    if as_list and values.ndim == 1:
        pytest.skip("a list of masked numbers is no masked array")
    with pytest.raises(
        ProblemError, match=rf"{name} must have no masked entries, but 1 are masked"
    ):
        Problem(**arguments | {name: list(values) if as_list else values}, radius="per_output")


def test_a_mask_that_hides_nothing_is_an_ordinary_array():
    problem = Problem(np.ma.array(X), np.ma.masked_greater(Y, 1e9), tolerance=0.1)
    assert type(problem.X) is np.ndarray and type(problem.Y) is np.ndarray
    assert np.array_equal(problem.Y, Y)


class Tensor:
    """As much of a tensor as is needed: one that numpy can only read once it is detached."""

    def __init__(self, values, grad=True, layout="torch.strided", dtype="torch.float32"):
        self.values, self.grad, self.layout, self.dtype = values, grad, layout, dtype

    def detach(self):
        return Tensor(self.values, False, self.layout, self.dtype)

    def cpu(self):
        return self

    def float(self):
        return Tensor(self.values, self.grad, self.layout)

    def __array__(self, dtype=None, copy=None):
        if self.grad or self.dtype == "torch.bfloat16":
            raise RuntimeError("call detach() first")
        return np.asarray(self.values, dtype=dtype)


def test_tensors_with_a_gradient_are_detached():
    assert np.array_equal(Problem(X, Y, Tensor(np.ones((3, 2))), tolerance=0.1).W, np.ones((3, 2)))


def test_half_precision_that_numpy_lacks_becomes_single():
    values = Tensor(X.astype(np.float32), dtype="torch.bfloat16")
    assert Problem(values, Y, tolerance=0.1).dtype == np.float32


def test_sparse_tensors_are_refused_with_the_way_out():
    with pytest.raises(ProblemError, match=r"X must be a dense array.*to_dense\(\)"):
        Problem(Tensor(X, layout="torch.sparse_coo"), Y, tolerance=0.1)


def test_real_tensors_are_read():
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(3, 2)
    problem = Problem(torch.tensor(X), Y, layer.weight.T, layer.bias, tolerance=0.1)
    assert np.array_equal(problem.W, layer.weight.detach().numpy().T)
    single = torch.tensor(X, dtype=torch.bfloat16)
    assert np.array_equal(plain_array("X", single), single.float().numpy())


def test_objects_that_fail_in_their_own_way_are_named():
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise TypeError("not on this device")

    with pytest.raises(ProblemError, match=r"W must be an array of numbers, but is a Broken"):
        Problem(X, Y, Broken(), tolerance=0.1)


# Sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-200, 1e-100, 1e-61, 1e61, 1e78, 1e155, 1e300])
@pytest.mark.parametrize("names", [("X",), ("Y",), ("X", "Y")])
def test_sizes_whose_squares_vanish_or_overflow_are_refused(names, size):
    data = {"X": X / np.abs(X).max(), "Y": Y / Y.max()}
    data |= {name: size * data[name] for name in names}
    with pytest.raises(ProblemError, match=rf"the largest entry of {names[0]} must be 0 or lie"):
        Problem(**data, tolerance=0.1)
    sparse = data | {"X": sp.csr_array(data["X"])}
    with pytest.raises(ProblemError, match=rf"the largest entry of {names[0]} must be 0 or lie"):
        Problem(**sparse, tolerance=0.1)


@pytest.mark.parametrize("size_x", [1e-55, 1e-20, 1.0, 1e20, 1e55])
@pytest.mark.parametrize("size_y", [1e-55, 1e-20, 1.0, 1e20, 1e55])
@pytest.mark.parametrize("formulation", ["pooled", "strict"])
def test_sizes_between_do_not_matter(size_x, size_y, formulation):
    options = {"tolerance": 0.1, "formulation": formulation}
    expected = solve(Problem(X, Y, **options))
    scaled = solve(Problem(size_x * X, size_y * Y, **options))
    assert scaled.status is Status.OPTIMAL
    np.testing.assert_allclose(
        scaled.W / size_y * size_x, expected.W, atol=TOLERANCE["independent_outputs"] * 100
    )


def test_targets_of_one_output_whose_squares_vanish_are_refused():
    with pytest.raises(ProblemError, match="of every column of Y must be 0 or at least"):
        Problem(X, Y * [1.0, 1e-170], tolerance=0.1, radius="per_output")


def test_weights_beyond_single_precision_are_refused():
    with pytest.raises(ProblemError, match="cannot be held in float32"):
        Problem((1e-30 * X).astype(np.float32), 1e30 * Y, tolerance=0.1)


@pytest.mark.parametrize("lambda_", [1e-200, 1e200])
def test_penalties_beyond_all_data_are_refused(lambda_):
    with pytest.raises(ProblemError, match="lambda_ must lie between"):
        Problem(X, Y, lambda_=lambda_, formulation="penalised")


def test_radii_whose_squares_overflow_are_refused():
    with pytest.raises(ProblemError, match="epsilon must be at most"):
        Problem(X, Y, epsilon=1e100)


# Crashes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 4, 7, 12])
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("radius", ["joint", "per_output"])
def test_balanced_one_hot_inputs_are_solved(n, copies, intercept, radius):
    inputs = np.tile(np.eye(n), (copies, 1))
    options = {"tolerance": 0.1, "radius": radius, "intercept": intercept}
    solution = solve(Problem(inputs, inputs, **options))
    assert solution.status is Status.OPTIMAL
    single = solve(Problem(inputs.astype(np.float32), inputs, **options))
    assert single.status is Status.OPTIMAL


@pytest.mark.parametrize("formulation", ["penalised", "penalised_strict", "pooled", "strict"])
def test_any_warm_start_serves_a_dead_output(formulation):
    targets = Y * [1.0, 0.0]
    budget = {"lambda_": 1.0} if formulation.startswith("penalised") else {"tolerance": 0.1}
    problem = Problem(X, targets, formulation=formulation, **budget)
    expected = solve(problem)
    for W in (np.ones((3, 2)), -1e3 * np.ones((3, 2)), np.zeros((3, 2))):
        again = solve(problem, warm_start=dataclasses.replace(expected, W=W))
        assert again.status is Status.OPTIMAL


@pytest.mark.parametrize("make", [np.asarray, sp.csr_array])
@pytest.mark.parametrize("formulation", ["penalised", "pooled", "strict"])
def test_a_constant_column_without_penalty_is_an_intercept_too(formulation, make):
    budget = {"lambda_": 1.0} if formulation == "penalised" else {"tolerance": 0.1}
    expected = solve(Problem(X, Y, formulation=formulation, **budget))
    inputs = make(np.column_stack([X, np.full(9, 2.0)]))
    solution = solve(Problem(inputs, Y, formulation=formulation, weights=[1, 1, 1, 0], **budget))
    assert solution.status is Status.OPTIMAL
    np.testing.assert_allclose(
        solution.certificate.objective, expected.certificate.objective,
        rtol=TOLERANCE["references_agree"],
    )  # fmt: skip
