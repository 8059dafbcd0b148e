"""Outputs weighted by what their errors do to the network's output."""

import numpy as np
import pytest

from nettrim_solver.exceptions import SettingsError
from nettrim_solver.network import (
    Activate,
    Add,
    AveragePool2d,
    Conv2d,
    Dense,
    Flatten,
    Network,
    Softmax,
    allocate,
)
from nettrim_solver.network.calibration import Calibration
from nettrim_solver.network.downstream import LEAST, downstream_weights
from nettrim_solver.pipeline import L0, Pipeline, Refit, Solve

from .helpers import prune, prune_weighted_at
from .tolerances import TOLERANCE

RNG = np.random.default_rng(5)


def mlp(scale=1.0):
    """Return a ReLU network whose hidden units count by `scale`; it computes the same for all."""
    rng = np.random.default_rng(1)
    scale = np.broadcast_to(scale, 8)
    V, b = rng.standard_normal((12, 8)), 0.3 * rng.standard_normal(8)
    W = rng.standard_normal((8, 5)) * np.geomspace(0.1, 3, 8)[:, None]
    return Network([
        Dense(V * scale, b * scale, name="hidden"), Activate("relu"),
        Dense(W / scale[:, None], np.zeros(5), name="scores"),
    ])  # fmt: skip


X = RNG.standard_normal((200, 12))


def test_weights_in_front_of_a_linear_layer_are_the_norms_of_its_rows():
    network = mlp()
    rows = np.linalg.norm(network.layer("scores").W, axis=1)
    found = downstream_weights(network, "hidden", Calibration(X))
    expected = rows / np.sqrt(np.mean(rows**2))
    assert found == pytest.approx(expected, rel=TOLERANCE["downstream_linear"])
    assert downstream_weights(network, "scores", Calibration(X)) == pytest.approx(np.ones(5))


def test_a_last_softmax_is_left_out():
    network = mlp()
    behind = Network([*network.operations, Softmax()])
    expected = downstream_weights(network, "hidden", Calibration(X))
    assert np.array_equal(downstream_weights(behind, "hidden", Calibration(X)), expected)


def test_positions_of_a_channel_count_together():
    """Averages over a channel's positions: J is the dense row over their number, at each."""
    rng = np.random.default_rng(2)
    W = rng.standard_normal((3, 4)) * np.array([[0.2], [1.0], [5.0]])
    network = Network(
        [
            Conv2d(rng.standard_normal((3, 1, 3, 3)), np.zeros(3), name="conv"),
            AveragePool2d(4), Flatten(), Dense(W, np.zeros(4), name="dense"),
        ],
        input_shape=(1, 6, 6),
    )  # fmt: skip
    data = Calibration(rng.standard_normal((128, 1, 6, 6)))
    rows = np.linalg.norm(W, axis=1)
    found = downstream_weights(network, "conv", data)
    # Random signs: 128 samples, each a sum of 16 signs squared.
    assert found[1:] / found[:-1] == pytest.approx(rows[1:] / rows[:-1], rel=0.5)


def test_both_branches_of_a_residual_count():
    rng = np.random.default_rng(3)
    V = rng.standard_normal((6, 6))
    network = Network([
        Dense(rng.standard_normal((6, 6)), np.zeros(6), name="first"),
        Dense(V, np.zeros(6), name="second"), Add(inputs=("first", "second")),
    ])  # fmt: skip
    rows = np.linalg.norm(np.eye(6) + V, axis=1)
    found = downstream_weights(network, "first", Calibration(X[:, :6]))
    expected = rows / np.sqrt(np.mean(rows**2))
    assert found == pytest.approx(expected, rel=TOLERANCE["downstream_linear"])


def gated():
    """Return a network whose first two units each move the output for one class of samples only."""
    return Network([
        Dense(np.eye(2), np.zeros(2), name="first"), Activate("relu"),
        Dense(np.eye(2), np.full(2, -0.5), name="gates"), Activate("relu"),
        Dense(np.array([[1.0, 0.0], [0.0, 2.0]]), np.zeros(2), name="scores"),
    ])  # fmt: skip


def test_data_sorted_by_class_weigh_like_shuffled_data():
    by_class = np.repeat(np.eye(2), 1500, axis=0)
    first, second = downstream_weights(gated(), "first", Calibration(by_class))
    # Of 128 samples that are drawn, the share of a class strays from a half by less than 0.2.
    assert second / first == pytest.approx(2.0, rel=0.5)


def test_the_form_of_the_data_does_not_matter_and_the_seed_does(tmp_path):
    rng = np.random.default_rng(4)
    samples = rng.random((700, 2))
    mapped = np.memmap(tmp_path / "samples", np.float64, "w+", shape=samples.shape)
    mapped[:] = samples
    forms = [
        samples, mapped, [samples[:3], samples[3:]],
        (samples[i : i + 100] for i in range(0, 700, 100)),
    ]  # fmt: skip
    found = [downstream_weights(gated(), "first", Calibration(form), seed=7) for form in forms]
    assert all(np.array_equal(found[0], other) for other in found[1:])
    assert not np.array_equal(found[0], downstream_weights(gated(), "first", Calibration(samples)))


def test_units_that_move_nothing_still_count():
    network = mlp()
    W = network.layer("scores").W.copy()
    W[0] = 0
    found = downstream_weights(
        network.replace({"scores": (W, np.zeros(5))}), "hidden", Calibration(X)
    )
    assert 0 < found[0] < 0.01
    dead = network.replace({"scores": (0 * W, np.zeros(5))})
    assert np.array_equal(downstream_weights(dead, "hidden", Calibration(X)), np.ones(8))


@pytest.mark.parametrize(
    "options",
    [{"steps": "l0", "sparsity": 0.6}, {"steps": "admm", "tolerance": 0.2}],
    ids=["l0", "admm"],
)
def test_units_of_a_layer_do_not_matter(options):
    """Hidden units scaled up, and their consumers down, are the same network."""
    scale = np.geomspace(0.25, 4.0, 8)
    options = options | {"output_weights": "downstream", "skip": "scores", "n_threads": 1}
    plain, scaled = (prune(n, X, **options) for n in (mlp(), mlp(scale)))
    W = plain.network.layer("hidden").W
    close = TOLERANCE["downstream_units"] * np.abs(W).max()
    assert np.abs(scaled.network.layer("hidden").W / scale - W).max() <= close
    if options["steps"] == "admm":
        assert plain.layers[0].gap <= TOLERANCE["proved"]
        assert plain.layers[0].violation <= TOLERANCE["proved"]


@pytest.mark.parametrize("mode", ["cascade", "parallel"])
@pytest.mark.parametrize(
    "options",
    [
        {"steps": "admm", "tolerance": 0.2},
        {"steps": "admm", "tolerance": 0.2, "formulation": "strict", "radius": "per_output"},
        {"steps": Pipeline(Solve("admm"), Refit()), "sparsity": 0.5},
        {"steps": Pipeline(L0()), "sparsity": 0.5},
    ],
    ids=["pooled", "strict", "refit", "l0"],
)
def test_reported_errors_are_in_the_units_of_the_layer(mode, options):
    network = mlp(np.geomspace(0.25, 4.0, 8))
    result = prune(network, X, mode=mode, output_weights="downstream", n_threads=1, **options)
    hidden = result.layers[0]
    before = np.maximum(X @ network.layer("hidden").W + network.layer("hidden").b, 0)
    layer = result.network.layer("hidden")
    after = np.maximum(X @ layer.W + layer.b, 0)
    error = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert hidden.error == pytest.approx(error, rel=TOLERANCE["reordered"])
    assert hidden.network_error <= hidden.network_bound
    assert result.output_error <= result.output_bound


def test_rounded_weights_are_judged_in_the_units_of_the_problem():
    network = mlp(np.geomspace(0.25, 4.0, 8)).astype(np.float32)
    options = {"tolerance": 0.2, "output_weights": "downstream", "skip": "scores", "n_threads": 1}
    hidden = prune(network, X.astype(np.float32), **options).layers[0]
    assert abs(hidden.gap) <= TOLERANCE["single_precision"]
    assert hidden.violation <= TOLERANCE["single_precision"]


def test_the_tolerance_is_relative_to_the_weighted_outputs():
    network = mlp(np.geomspace(0.25, 4.0, 8))
    layer = network.layer("hidden")
    counts = downstream_weights(network, "hidden", Calibration(X))
    Y = np.maximum(X @ layer.W + layer.b, 0) * counts
    options = {"tolerance": 0.2, "output_weights": "downstream", "skip": "scores"}
    hidden = prune(network, X, **options).layers[0]
    expected = 0.2 * np.linalg.norm(Y)
    assert hidden.epsilon == pytest.approx(expected, rel=TOLERANCE["reordered"])


def test_the_output_changes_less_with_the_same_zeros():
    network, errors = mlp(np.geomspace(8.0, 0.1, 8)), {}
    for weights in ("equal", "downstream"):
        result = prune(
            network, X, nnz={"hidden": 30}, skip="scores", steps="l0", output_weights=weights
        )
        errors[weights] = result.output_error
    assert errors["downstream"] < errors["equal"]


def test_an_allocation_measures_with_the_same_weights():
    network = mlp(np.geomspace(8.0, 0.1, 8))
    found = allocate(network, X, sparsity=0.6, output_weights="downstream")
    again = prune(
        network, X, sparsity=0.6, allocation="output_error", steps="alps",
        output_weights="downstream",
    )  # fmt: skip
    assert again.budgets == found


def test_outputs_that_a_pruned_network_does_not_listen_to_count_little():
    network = mlp()
    W = network.layer("scores").W.copy()
    W[-3:] = 0
    pruned = network.replace({"scores": (W, network.layer("scores").b)})
    rows = np.linalg.norm(W, axis=1)
    Y = np.maximum(X @ network.layer("hidden").W + network.layer("hidden").b, 0)
    options = {"tolerance": 0.2, "skip": "scores"}
    hidden = prune_weighted_at(network, X, pruned, **options).layers[0]
    weights = np.maximum(rows, LEAST * rows.max())
    expected = 0.2 * np.linalg.norm(Y * weights / np.sqrt(np.mean(weights**2)))
    assert hidden.epsilon == pytest.approx(expected, rel=TOLERANCE["downstream_linear"])
    with_other = prune(network, X, output_weights="downstream", **options).layers[0]
    assert abs(with_other.epsilon / expected - 1) > 0.01


def test_a_second_pass_with_the_weights_of_the_first_errs_less():
    """Few weights: most of what a layer could give is not listened to by the next."""
    rng = np.random.default_rng(6)
    sizes = (20, 40, 30, 4)
    operations = []
    for size, width in zip(sizes, sizes[1:], strict=False):
        W = rng.standard_normal((size, width)) / np.sqrt(size)
        operations += [Dense(W, np.zeros(width)), Activate("relu")]
    network, data = Network(operations[:-1]), rng.standard_normal((600, 20))
    options = {"sparsity": 0.85, "steps": "alps"}
    first = prune(network, data, output_weights="downstream", **options)
    again = prune_weighted_at(network, data, first.network, **options)
    assert again.output_error < first.output_error


def test_bad_input():
    with pytest.raises(SettingsError, match="output_weights must be one of .*'equal'"):
        prune(mlp(), X, sparsity=0.5, output_weights="upstream")
