"""Gradients through networks, against differences of their outputs."""

import numpy as np
import pytest

from nettrim_solver.activations import ACTIVATIONS, PReLU
from nettrim_solver.exceptions import UnsupportedError
from nettrim_solver.network import (
    Activate,
    Add,
    Affine,
    AveragePool2d,
    BatchNorm,
    Concatenate,
    Conv2d,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    GlobalAveragePool,
    MaxPool2d,
    Network,
    Operation,
    Part,
    Reshape,
    Softmax,
    Transpose,
)
from nettrim_solver.network.adjoint import KNOWN, check_differentiable, weight_gradients

from .tolerances import TOLERANCE

RNG = np.random.default_rng(3)


def numbers(*shape):
    return RNG.standard_normal(shape)


def norm(channels):
    return BatchNorm(numbers(channels), numbers(channels), numbers(channels), RNG.random(channels))


def dense(*between, inputs=6, hidden=8, outputs=None):
    """A dense layer, operations, and a dense layer that takes what they give."""
    first = [Dense(numbers(inputs, hidden), numbers(hidden), name="first"), *between]
    size = outputs or Network(first).shapes[Network(first).output.name][0]
    return Network([*first, Dense(numbers(size, 3), numbers(3), name="last")])


def image(*between, channels=2, filters=4, size=(7, 6), **window):
    """A convolution, operations, and a dense layer on all that they give."""
    W = numbers(filters, channels // window.get("groups", 1), 3, 3) / 3
    first = [Conv2d(W, numbers(filters), name="first", **window), *between, Flatten()]
    shapes = Network(first, (channels, *size)).shapes
    last = Dense(numbers([*shapes.values()][-1][0], 3), name="last")
    return Network([*first, last], (channels, *size))


NETWORKS = {
    "batch norm, dense": dense(norm(8), Activate("relu")),
    "affine, dropout": dense(Affine(numbers(8), 1.0), Dropout(), Activate("tanh")),
    "reshape, transpose": dense(
        Reshape((2, 2, 2)), Transpose((2, 0, 1)), Activate("silu"), Flatten(), outputs=8
    ),
    "softmax between": dense(Softmax(), Activate("sigmoid")),
    "log softmax between": dense(Reshape((2, 4)), Softmax(0, log=True), Flatten(), outputs=8),
    "a shortcut": Network([
        Dense(numbers(6, 6), name="first"), Activate("relu", name="kept"),
        Dense(numbers(6, 6), numbers(6), name="middle"), Add(inputs=("middle", "kept", "first")),
        Activate("elu"), Dense(numbers(6, 2), name="last"),
    ]),
    "put together": Network([
        Dense(numbers(6, 5), name="first"), Activate("relu", name="kept"),
        Dense(numbers(5, 4), name="middle"), Concatenate(-1, inputs=("kept", "middle")),
        Dense(numbers(9, 2), name="last"),
    ]),
    "parts of the input": Network([
        Part([(2,), (4,)], 0), Dense(numbers(2, 3), name="first"),
        Part([(2,), (4,)], 1, name="other", inputs="input"), Dense(numbers(4, 3), name="middle"),
        Add(inputs=("first", "middle")), Activate("gelu"), Dense(numbers(3, 2), name="last"),
    ]),
    "convolution": image(Activate("relu")),
    "stride, padding, groups": image(
        Activate("relu"), stride=(2, 1), padding=(1, 2, 0, 1), groups=2
    ),
    "dilation": image(norm(4), dilation=2),
    "two convolutions": image(
        Activate("relu"),
        Conv2d(numbers(6, 2, 2, 3) / 3, numbers(6), stride=2, padding=1, groups=2),
        Activate(PReLU(0.1 + RNG.random(6))),
    ),
    "largest": image(MaxPool2d(2), padding=1),
    "largest, overlapping": image(MaxPool2d(3, 2, padding=1), padding="same"),
    "mean, padding counts": image(AveragePool2d(2, 1, padding=1, count_include_pad=True)),
    "mean, padding does not": image(AveragePool2d((3, 2), 2, padding=1), padding="same"),
    "mean of images": image(GlobalAveragePool(), Activate("softplus"), Reshape((4, 1))),
    "mean of images, kept": image(GlobalAveragePool(keep_dims=True), Affine(2.0, numbers(4, 1, 1))),
}  # fmt: skip
NETWORKS |= {name: dense(Activate(name)) for name in ACTIVATIONS}


def gradients(network, X, above, names):
    return weight_gradients(network, [*network.signals(X)], above, names)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_the_output(name):
    """Along a random direction in the weights of all layers together."""
    network = NETWORKS[name]
    X = numbers(9, *network.input_shape)
    above = numbers(*network(X).shape)
    names = [layer.name for layer in network.layers]
    found = gradients(network, X, above, names)
    assert [*found] == names[::-1]
    step = 1e-6
    for one in names:
        layer = network.layer(one)
        V, c = numbers(*layer.W.shape), numbers(layer.n_outputs)
        values = []
        for sign in (1, -1):
            b = None if layer.b is None else layer.b + sign * step * c
            moved = network.replace({one: (layer.W + sign * step * V, b)})
            values.append(float(np.vdot(above, moved(X))))
        expected = (values[0] - values[1]) / (2 * step)
        W, b = found[one]
        got = np.vdot(W, V) + (0 if layer.b is None else b @ c)
        scale = np.linalg.norm(W) * np.linalg.norm(V)
        assert got == pytest.approx(expected, abs=TOLERANCE["gradient"] * scale)
        assert W.shape == layer.W.shape and b.shape == (layer.n_outputs,)


def test_every_operation_was_among_them():
    seen = {type(op) for network in NETWORKS.values() for op in network.operations}
    assert seen == set(KNOWN) - {Embedding}


def test_a_table_has_nothing_before_it():
    network = Network([
        Embedding(numbers(5, 3)), Flatten(), Dense(numbers(6, 2), name="only"),
    ], (2,))  # fmt: skip
    X, above = np.array([[0.0, 4.0], [1.0, 1.0]]), np.ones((2, 2))
    found = gradients(network, X, above, ["only"])["only"]
    steps = [*network.signals(X)]
    assert np.allclose(found[0], steps[-1][1][0].T @ above)


def test_of_equal_pixels_the_first_takes_it_all():
    network = image(MaxPool2d(2), size=(4, 4))
    layer = network.layer("first")
    flat = network.replace({"first": (np.zeros_like(layer.W), np.zeros(4))})
    X = np.zeros((1, 2, 4, 4))
    above = np.ones((1, 3))
    b = gradients(flat, X, above, ["first"])["first"][1]
    assert np.allclose(b, network.layer("last").W.sum(axis=1))


def test_only_layers_asked_for_are_computed():
    network = NETWORKS["a shortcut"]
    found = gradients(network, numbers(4, 6), numbers(4, 2), ["middle"])
    assert [*found] == ["middle"]


class Stranger(Operation):
    """An operation that nothing is known about."""

    def _compute(self, *inputs):
        return inputs[0] ** 2

    def _output_shape(self, *shapes):
        return shapes[0]


def test_an_unknown_operation_is_refused_where_it_matters():
    network = Network([
        Dense(numbers(6, 6), name="before"), Stranger(name="strange"),
        Dense(numbers(6, 2), name="behind"),
    ])  # fmt: skip
    check_differentiable(network, ["behind"], "behind")
    with pytest.raises(UnsupportedError, match=r"'strange' \(stranger\) has no gradient"):
        check_differentiable(network, ["before"], "behind")
