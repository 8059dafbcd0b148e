"""Pruned networks fine-tuned to the trained network's output, and the networks that this takes."""

import numpy as np
import pytest

from nettrim_solver.exceptions import SettingsError, UnsupportedError
from nettrim_solver.network import Calibration, Dense, Network
from nettrim_solver.network.distillation import Distillation, DistillationSettings
from nettrim_solver.network.spreading import least_nnz, spread_by_shape
from nettrim_solver.network.trainable import Trainable
from nettrim_solver.status import Status

from .helpers import prune
from .test_adjoint import NETWORKS, Stranger
from .test_modes import X, convnet, images, mlp

SETTINGS = DistillationSettings(epochs=40, batch_size=20)


def thinned(network, seed=0, share=0.5):
    rng = np.random.default_rng(seed)
    changes = {
        layer.name: (layer.W * (rng.random(layer.W.shape) < share), layer.b)
        for layer in network.layers
    }
    return network.replace(changes)


def distil(network, pruned, inputs, settings=SETTINGS, **options):
    network, pruned = network.folded(), pruned.folded()
    names = [layer.name for layer in network.layers]
    fit = Distillation(network, pruned, Calibration(inputs, network), names, settings, **options)
    return fit, fit.run()


@pytest.mark.parametrize("name", NETWORKS)
def test_sparse_networks_agree_with_network_and_its_differences(name):
    network = thinned(NETWORKS[name])
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((9, *network.input_shape))
    names = [layer.name for layer in network.layers]
    own = Trainable(network, network.output.name, names, np.float64)
    signals = own.forward(inputs)
    assert signals[own.end] == pytest.approx(network(inputs), rel=1e-12, abs=1e-12)
    above = rng.standard_normal(signals[own.end].shape)
    gradients = own.backward(signals, above)
    step = 1e-6
    for one in names:
        direction = rng.standard_normal(own.weights[one].shape)
        start, values = own.weights[one].copy(), []
        for sign in (1.0, -1.0):
            own.weights[one][:] = start + sign * step * direction
            values.append(float(np.vdot(own.forward(inputs)[own.end], above)))
        own.weights[one][:] = start
        slope = (values[0] - values[1]) / (2 * step)
        assert float(gradients[one][0] @ direction) == pytest.approx(slope, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("made", [(mlp, X), (convnet, images)])
def test_zeros_stay_and_the_error_falls(made):
    make, inputs = made
    network = make().folded()
    inputs = inputs() if callable(inputs) else inputs
    pruned = prune(network, inputs, sparsity=0.6, steps="alps", n_threads=1).network
    before = [layer.W.copy() for layer in pruned.layers]
    fit, status = distil(network, pruned, inputs)
    assert status is None and fit.error > 0
    for layer, other, W in zip(fit.network.layers, pruned.layers, before, strict=True):
        assert not layer.W[W == 0].any() and layer.dtype == other.dtype
        assert np.array_equal(other.W, W)
    target = network(inputs)
    errors = [np.linalg.norm(one(inputs) - target) for one in (fit.network, pruned)]
    assert errors[0] < 0.9 * errors[1]
    again, _ = distil(network, pruned, inputs)
    assert all(
        np.array_equal(a.W, b.W)
        for a, b in zip(again.network.layers, fit.network.layers, strict=True)
    )


def test_nothing_to_do():
    network = mlp()
    fit, status = distil(network, network, X)
    assert fit.network is network and status is None
    pruned = thinned(network)
    fit, _ = distil(network, pruned, X, DistillationSettings(epochs=0))
    assert fit.network is pruned


def test_it_ends_when_told():
    from nettrim_solver.network.progress import Ended

    network, taken = mlp(), []

    def check(share):
        taken.append(1)
        if len(taken) > 3:
            raise Ended(Status.TIME_LIMIT)

    names = [layer.name for layer in network.layers]
    fit = Distillation(network, thinned(network), Calibration(X, network), names, SETTINGS)
    assert fit.run(check) is Status.TIME_LIMIT and len(taken) == 4


def test_what_cannot_be_done():
    with pytest.raises(SettingsError, match="epochs"):
        DistillationSettings(epochs=-1).validate()
    rng = np.random.default_rng(0)
    network = Network([
        Dense(rng.standard_normal((4, 4)), name="first"), Stranger(),
        Dense(rng.standard_normal((4, 2)), name="last"),
    ])  # fmt: skip
    with pytest.raises(UnsupportedError, match="no gradient"):
        distil(network, thinned(network), rng.standard_normal((30, 4)))


@pytest.mark.parametrize("exponent", [0.0, 0.4, 0.8, 1.0])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.9, 1.0])
def test_splits_by_shape_are_exact(exponent, share):
    layers = {layer.name: layer for layer in convnet().layers}
    size = sum(layer.W.size for layer in layers.values())
    least = sum(map(least_nnz, layers.values()))
    budget = max(least, round(share * size))
    found = spread_by_shape(layers, budget, exponent)
    assert sum(found.values()) == budget
    assert all(least_nnz(layers[n]) <= k <= layers[n].W.size for n, k in found.items())
