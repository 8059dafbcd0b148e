"""Signals taken apart, put together, and looked up: against numpy, and their errors."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettrim_solver.exceptions import ProblemError
from nettrim_solver.frameworks import join_inputs
from nettrim_solver.network import (
    Activate,
    Concatenate,
    Dense,
    Embedding,
    Flatten,
    Network,
    Part,
)
from nettrim_solver.network.bounds import lipschitz, signal_bounds
from nettrim_solver.network.gathering import split

from .helpers import prune

RNG = np.random.default_rng(3)
SHAPES = st.lists(st.lists(st.integers(1, 3), max_size=3).map(tuple), min_size=2, max_size=4)


@given(SHAPES, st.integers(1, 4))
def test_what_is_joined_comes_apart(shapes, n_samples):
    inputs = [RNG.integers(-9, 9, (n_samples, *shape)) for shape in shapes]
    rows = join_inputs(*inputs)
    assert rows.dtype == np.int64
    for index, (one, part) in enumerate(zip(inputs, split(rows, shapes), strict=True)):
        np.testing.assert_array_equal(part, one)
        np.testing.assert_array_equal(Part(shapes, index).apply(rows), one)


def test_joined_inputs_keep_their_numbers():
    ids, mask = np.array([[2**24], [3]]), np.array([[True], [False]])
    numbers = np.array([[0.1], [0.2]], np.float32)
    rows = join_inputs(ids, numbers, mask)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, np.concatenate([ids, numbers, mask], axis=1))
    assert join_inputs(ids, numbers.astype(np.float64)).dtype == np.float64
    with pytest.raises(ProblemError, match=r"number 0 .* float32 does not round"):
        join_inputs(ids + 1, numbers)
    join_inputs(ids + 1, numbers.astype(np.float64))


def test_half_precision_is_joined_in_single():
    rows = join_inputs(np.array([[0.5]], np.float16), np.array([[100_001]]))
    assert rows.dtype == np.float32 and rows.tolist() == [[0.5, 100_001]]


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concatenation(axis):
    signals = [RNG.standard_normal((5, 2, 3, 3)) for _ in range(3)]
    found = Concatenate(axis).apply(*signals)
    expected = np.stack([np.concatenate([s[i] for s in signals], axis=axis) for i in range(5)])
    np.testing.assert_array_equal(found, expected)
    assert lipschitz(Concatenate(axis), (2, 3, 3)) == lipschitz(Part([(2,), (3,)], 0), (5,)) == 1


def test_a_network_with_two_inputs_is_pruned():
    table = RNG.standard_normal((6, 3)).astype(np.float32)
    shapes = [(2,), (4,)]
    network = Network(
        [
            Part(shapes, 1, name="numbers"),
            Dense(RNG.standard_normal((4, 8)), np.zeros(8), name="hidden"),
            Activate("relu", name="active"),
            Part(shapes, 0, inputs="input", name="kinds"),
            Embedding(table),
            Flatten(name="looked up"),
            Concatenate(inputs=("active", "looked up")),
            Dense(RNG.standard_normal((14, 3)), name="last"),
        ],
        (6,),
    )
    kinds, numbers = RNG.integers(0, 6, (200, 2)), RNG.standard_normal((200, 4))
    hidden = np.maximum(numbers @ network.layer("hidden").W, 0)
    features = np.concatenate([hidden, table[kinds].reshape(200, 6)], axis=1)
    X = join_inputs(kinds, numbers)
    np.testing.assert_allclose(network(X), features @ network.layer("last").W, rtol=1e-12)
    result = prune(network, X, tolerance=0.3)
    report = result.layer("last")
    assert result.sparsity > 0 and 0 < report.network_error <= report.network_bound < np.inf
    with pytest.raises(ProblemError, match=r"whole numbers from 0 to 5, but gets 6"):
        network(join_inputs(kinds + 1, numbers))


@pytest.mark.parametrize("cascade", [True, False])
def test_squared_errors_add_up_side_by_side(cascade):
    network = Network([
        Dense(np.eye(2), name="a"), Dense(np.eye(2), name="b", inputs="input"),
        Concatenate(inputs=("a", "b"), name="both"), Concatenate(inputs=("both", "a"), name="more"),
    ])  # fmt: skip
    bounds = signal_bounds(network, network.shapes, {"a": 3.0, "b": 4.0}, cascade)
    assert bounds["both"] == 5.0 and bounds["more"] == pytest.approx(34**0.5)
    bounds = signal_bounds(network, network.shapes, {"a": None, "b": 4.0}, cascade)
    assert bounds["both"] == np.inf


def test_parts_tell_the_shape_of_the_input():
    network = Network([Part([(2, 3), ()], 0), Flatten(), Dense(np.ones((6, 1)))])
    assert network.input_shape == (7,)


BAD = {
    "one": (lambda: Concatenate().apply(np.ones((2, 3))), r"two or more signals"),
    "sizes": (lambda: Concatenate(inputs=("a", "b")).output_shape((2, 3), (2, 4)),
              r"differ in axis 0 alone, but gets \(2, 3\) from 'a' and \(2, 4\) from 'b'"),
    "axis": (lambda: Concatenate(2).output_shape((2, 3), (2, 3)), "axis 2"),
    "numbers of axes": (lambda: Concatenate(0).output_shape((2,), (2, 3)), "axis 0"),
    "index": (lambda: Part([(2,), (3,)], 2), "index must be one of 2 inputs, but was 2"),
    "shapes": (lambda: Part(3, 0), "shapes must be a list, but was 3"),
    "row": (lambda: Part([(2,), (3,)], 0).output_shape((6,)), r"\(5,\), joined of .* gets \(6,\)"),
    "table": (lambda: Embedding(np.ones(3)), r"table must have shape .* has \(3,\)"),
    "fraction": (lambda: Embedding(np.ones((3, 1))).apply(np.array([[0.5]])), "but gets 0.5"),
    "negative": (lambda: Embedding(np.ones((3, 1))).apply(np.array([[-1]])), "but gets -1"),
    "not a number": (lambda: Embedding(np.ones((3, 1))).apply(np.array([[np.nan]])), "gets nan"),
    "samples": (lambda: join_inputs(np.ones((2, 1)), np.ones((3, 1))), "number 1 has shape"),
    "words": (lambda: join_inputs(np.array([["a"]])), "number 0 .* dtype <U1"),
    "nothing": (lambda: join_inputs(), "at least one array"),
    "ragged": (lambda: join_inputs(np.ones((2, 1)), [[1], [2, 3]]), "number 1 must be an array"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_is_refused(what):
    make, message = BAD[what]
    with pytest.raises(ProblemError) as caught:
        make()
    assert re.search(message, str(caught.value)), str(caught.value)
