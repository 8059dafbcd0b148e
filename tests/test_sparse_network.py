"""Networks with sparse matrices: the outputs of the dense network, and who computes what."""

import numpy as np
import pytest

from nettrim_solver.exceptions import ProblemError, SettingsError
from nettrim_solver.network import (
    Activate,
    Add,
    BatchNorm,
    Conv2d,
    Dense,
    Flatten,
    MaxPool2d,
    Network,
    sparse_network,
)
from nettrim_solver.network.layers import Layer
from nettrim_solver.network.sparse_network import DENSITY_THRESHOLD, SparseNetwork, sparse_layer

from .tolerances import TOLERANCE


def with_zeros(rng, shape, density):
    return np.where(rng.random(shape) < density, rng.standard_normal(shape), 0.0)


def images_network(dtype=np.float64, density=0.15):
    """Convolutions with every setting, a shortcut, and dense layers with and without intercept."""
    rng = np.random.default_rng(5)
    return Network(
        [
            Conv2d(with_zeros(rng, (6, 1, 3, 2), density), rng.standard_normal(6), (1, 2),
                   (0, 1, 2, 1), 2, 3, name="grouped"),
            BatchNorm(*rng.random((4, 6)) + 0.5),
            Activate("relu", name="shortcut"),
            Conv2d(with_zeros(rng, (6, 6, 3, 3), density), padding="same", name="same"),
            Add(inputs=("same", "shortcut")),
            MaxPool2d(2),
            Flatten(),
            Dense(with_zeros(rng, (36, 20), density), rng.standard_normal(20), name="hidden"),
            Activate("tanh"),
            Dense(with_zeros(rng, (20, 3), density), name="last"),
        ],
        input_shape=(3, 8, 9),
    ).astype(dtype)  # fmt: skip


def chain(densities):
    rng = np.random.default_rng(6)
    layers = [Dense(with_zeros(rng, (40, 40), d), name=f"at {d}") for d in densities]
    return Network(layers)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [0, 1, 7, 300])
def test_outputs_equal_the_dense_network_to_rounding(threshold, dtype, n):
    network = images_network(dtype)
    X = np.random.default_rng(n).standard_normal((n, 3, 8, 9)).astype(dtype)
    fast = SparseNetwork(network, density_threshold=threshold)
    for batch_size in (None, 1, 100):
        found, expected = fast(X, batch_size), network(X)
        assert found.shape == expected.shape and found.dtype == expected.dtype == dtype
        limit = TOLERANCE["network_single" if dtype == np.float32 else "network_double"]
        scale = np.abs(expected).max(initial=0.0)
        np.testing.assert_allclose(found, expected, rtol=0, atol=limit * scale)


def test_types_mix_as_in_the_dense_network():
    rng = np.random.default_rng(7)
    W, V = with_zeros(rng, (9, 8), 0.3), with_zeros(rng, (8, 4), 0.3)
    mixed = Network([Dense(W.astype("f")), Activate("relu"), Dense(V)])
    for network in (mixed, mixed.astype(np.float32)):
        fast = SparseNetwork(network, density_threshold=1)
        for X in (rng.standard_normal((5, 9)), rng.integers(0, 2, (5, 9)),
                  rng.standard_normal((5, 9)).astype("f")):  # fmt: skip
            assert fast(X).dtype == network(X).dtype
            np.testing.assert_allclose(fast(X), network(X), atol=TOLERANCE["network_single"])


def test_layers_without_weights_give_their_intercepts():
    network = Network([Dense(np.zeros((4, 3)), [1.0, 2.0, 3.0]), Dense(np.zeros((3, 2)))])
    fast = SparseNetwork(network, density_threshold=0)
    assert all(choice.sparse for choice in fast.choices)
    np.testing.assert_array_equal(fast(np.ones((2, 4))), np.zeros((2, 2)))


def test_the_threshold_decides_who_is_sparse():
    densities = (0.01, 0.2, 0.9)
    network = chain(densities)
    for threshold in (0.0, 0.1, 0.5, 1.0):
        choices = SparseNetwork(network, density_threshold=threshold).choices
        for choice, layer in zip(choices, network.layers, strict=True):
            assert choice.density == layer.nnz / layer.W.size
            assert choice.sparse == (choice.density <= threshold)
            assert choice.dense_seconds is choice.sparse_seconds is None
    default = SparseNetwork(network).choices
    assert [c.sparse for c in default] == [c.density <= DENSITY_THRESHOLD for c in default]


def test_measuring_takes_the_faster_of_what_it_measured(monkeypatch):
    network = images_network()
    # A clock that only the sparse forms advance fast, and then only the dense ones.
    for slow, expected in ((Layer, True), (None, False)):
        now = [0.0]

        def apply(self, *inputs, original=sparse_network.Operation.apply, slow=slow, now=now):
            is_dense = isinstance(self, Layer)
            now[0] += 1e-3 if is_dense == (slow is Layer) else 1e-6
            return original(self, *inputs)

        with monkeypatch.context() as patch:
            patch.setattr(sparse_network.Operation, "apply", apply)
            patch.setattr(sparse_network.time, "perf_counter", lambda now=now: now[0])
            choices = SparseNetwork(network, measure=True, batch_size=4).choices
        assert [choice.sparse for choice in choices] == [expected] * 4
        for choice in choices:
            assert (choice.sparse_seconds < choice.dense_seconds) is expected


def test_a_measured_network_computes_the_same():
    network = images_network()
    fast = SparseNetwork(network, measure=True, batch_size=8)
    X = np.random.default_rng(8).standard_normal((20, 3, 8, 9))
    np.testing.assert_allclose(fast(X), network(X), atol=TOLERANCE["network_double"] * 100)
    for choice in fast.choices:
        assert choice.sparse == (choice.sparse_seconds < choice.dense_seconds)
        assert min(choice.sparse_seconds, choice.dense_seconds) > 0
    assert "-" not in fast.table().split("\n", 1)[1]


def test_sparse_operations_refuse_what_the_layers_refuse():
    for layer, shape in (
        (images_network().layer("grouped"), (2, 8, 9)),
        (images_network().layer("grouped"), (3, 2, 2)),
        (images_network().layer("grouped"), (36,)),
        (images_network().layer("hidden"), (53,)),
    ):
        with pytest.raises(ProblemError) as expected:
            layer.output_shape(shape)
        with pytest.raises(ProblemError) as found:
            sparse_layer(layer).output_shape(shape)
        said = str(expected.value).replace("(conv2d)", "").replace("(dense)", "")
        sparse = str(found.value).replace("(sparse_conv2d)", "").replace("(sparse_dense)", "")
        assert sparse == said


def test_bad_arguments_are_named():
    network = chain([0.1])
    for arguments, error, message in (
        ({"network": 3}, ProblemError, "network must be a Network, but was a int"),
        ({"density_threshold": -0.1}, SettingsError, "density_threshold must lie in"),
        ({"density_threshold": "a"}, SettingsError, "density_threshold must lie in"),
        ({"measure": 1}, SettingsError, "measure must be True or False, but was 1"),
        ({"batch_size": 0}, SettingsError, "batch_size must be an integer >= 1, but was 0"),
        ({"measure": True, "density_threshold": 0.1}, SettingsError, "replaces a threshold"),
    ):
        with pytest.raises(error, match=message):
            SparseNetwork(**{"network": network} | arguments)
    unknown = Network([Conv2d(np.ones((1, 1, 2, 2)))])
    assert repr(SparseNetwork(unknown)) == "SparseNetwork(0 of 1 layers sparse)"
    with pytest.raises(ProblemError, match="must have an input_shape to be measured"):
        SparseNetwork(unknown, measure=True)
    with pytest.raises(ProblemError, match=r"X must hold samples of shape \(40,\)"):
        SparseNetwork(network)(np.ones((2, 39)))


def test_neither_weights_nor_samples_are_modified():
    network = images_network()
    before = [layer.W.copy() for layer in network.layers]
    X = np.random.default_rng(9).standard_normal((4, 3, 8, 9))
    held = X.copy()
    SparseNetwork(network, density_threshold=1)(X)
    np.testing.assert_array_equal(X, held)
    for layer, W in zip(network.layers, before, strict=True):
        np.testing.assert_array_equal(layer.W, W)
