"""Pruning whole networks: parallel, cascade, convolutions, budgets, overrides, interruptions."""

import os
import signal
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nettrim_solver
from nettrim_solver import Problem, Status, certify, refit, solve
from nettrim_solver.activations import Activation
from nettrim_solver.exceptions import ProblemError, SettingsError, UnsupportedError
from nettrim_solver.network import (
    Activate,
    Add,
    AveragePool2d,
    BatchNorm,
    Calibration,
    Conv2d,
    Dense,
    Flatten,
    MaxPool2d,
    Network,
    collect,
    modes,
)
from nettrim_solver.network.choices import LayerSettings
from nettrim_solver.network.recipe import Recipe
from nettrim_solver.network.tasks import group_tasks, strict_cascade
from nettrim_solver.pipeline import Pipeline, Refit, Solve

from .helpers import planned, prune
from .tolerances import TOLERANCE


def mlp(widths=(12, 9, 7, 3), activation="relu", seed=0, dtype=np.float64, bias=True):
    """A random chain; its layers are called W0, W1, ..."""
    rng = np.random.default_rng(seed)
    operations = []
    for i, (n, m) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        W = (rng.standard_normal((n, m)) / np.sqrt(n)).astype(dtype)
        b = 0.1 * rng.standard_normal(m).astype(dtype) if bias else None
        operations += [Dense(W, b, name=f"W{i}"), Activate(activation)]
    return Network(operations[:-1])


def convnet(seed=0, groups=2):
    """Convolutions with groups, padding, stride, a shortcut, normalisation, both poolings."""
    rng = np.random.default_rng(seed)
    norm = (
        0.5 + rng.random(4),
        rng.standard_normal(4),
        rng.standard_normal(4),
        0.5 + rng.random(4),
    )
    return Network(
        [
            Conv2d(rng.standard_normal((4, 2, 3, 3)) / 4, padding=1, name="first"),
            BatchNorm(*norm),
            Activate("relu", name="start"),
            Conv2d(rng.standard_normal((4, 4 // groups, 3, 3)) / 4, 0.1 * rng.standard_normal(4),
                   padding="same", groups=groups, name="second"),
            Add(inputs=("second", "start")),
            Activate("relu"),
            MaxPool2d(2),
            Conv2d(rng.standard_normal((5, 4, 2, 2)) / 4, np.zeros(5), stride=2, name="third"),
            Activate("tanh"),
            AveragePool2d(2, 1, padding=1),
            Flatten(),
            Dense(rng.standard_normal((45, 3)) / 7, np.zeros(3), name="last"),
        ],
        input_shape=(2, 8, 8),
    )  # fmt: skip


def samples(n=150, n_inputs=12, seed=1, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal((n, n_inputs)).astype(dtype)


def images(n=25, seed=1):
    return np.random.default_rng(seed).standard_normal((n, 2, 8, 8))


X = samples()


def problem_of(signals, activation, **arguments):
    """The problem of a dense layer, written down once more."""
    layer = signals.layer
    return Problem(
        signals.X[0], activation(signals.Z), layer.W, layer.b, activation=activation, Z=signals.Z,
        intercept=layer.b is not None, **arguments,
    )  # fmt: skip


def same_weights(one, other):
    for a, b in zip(one.layers, other.layers, strict=True):
        np.testing.assert_array_equal(a.W, b.W)
        np.testing.assert_array_equal(a.b, b.b)


# The modes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_in_parallel_every_layer_is_the_solution_of_its_own_problem(activation):
    network = mlp(activation=activation)
    result = prune(network, X, mode="parallel", tolerance=0.2)
    data = Calibration(X, network)
    for layer in network.layers:
        signals = collect(network, layer.name, data)
        alone = solve(
            problem_of(signals, network.activation_after(layer.name), tolerance=0.2)
        )  # fmt: skip
        np.testing.assert_array_equal(result.network.layer(layer.name).W, alone.W)
        np.testing.assert_array_equal(result.network.layer(layer.name).b, alone.b)
        report = result.layer(layer.name)
        assert report.status is alone.status is Status.OPTIMAL
        assert report.epsilon == pytest.approx(alone.certificate.epsilons[0])
        assert report.distance == pytest.approx(alone.certificate.distance)


def test_a_cascade_is_the_sequence_done_by_hand():
    network, gamma, g = mlp(), 1.1, 0.3
    result = prune(network, X, tolerance=g, gamma=gamma)
    signal, target = X, X
    for i, layer in enumerate(network.layers):
        relu = i < 2
        Z = target @ layer.W + layer.b
        Y = np.maximum(Z, 0) if relu else Z
        trained = signal @ layer.W + layer.b
        miss = trained - Y
        if relu:
            miss = np.where(Y > 0, miss, np.maximum(trained, 0))
        epsilon = max(np.sqrt(gamma) * np.linalg.norm(miss), g * np.linalg.norm(Y))
        problem = Problem(
            signal, Y, layer.W, layer.b, activation="relu" if relu else "identity", Z=Z,
            epsilon=epsilon,
        )  # fmt: skip
        report = result.layers[i]
        assert report.epsilon == pytest.approx(epsilon, rel=TOLERANCE["reordered"])
        expected, new = solve(problem), result.network.layers[i]
        assert report.status is expected.status is Status.OPTIMAL
        # The radii differ in their last bits, so the weights do.
        np.testing.assert_allclose(new.W, expected.W, atol=TOLERANCE["same_answer"])
        signal = signal @ new.W + new.b
        signal, target = (np.maximum(signal, 0) if relu else signal), Y
    # Of the first layer the trained weights miss nothing: the tolerance alone is its radius.
    first = np.linalg.norm(np.maximum(X @ network.layers[0].W + network.layers[0].b, 0))
    assert result.layers[0].epsilon == pytest.approx(g * first)


def test_with_gamma_of_one_or_more_the_trained_weights_keep_the_radius():
    network = mlp(widths=(12, 4, 6, 2))
    strangled = {"W0": {"sparsity": 0.8}}
    wide = prune(network, X, tolerance=1e-3, gamma=1.0, layers=strangled)
    assert wide.layer("W1").status is Status.OPTIMAL
    tight = prune(network, X, tolerance=1e-3, gamma=0.0, layers=strangled)
    report = tight.layer("W1")
    assert report.outcome == "failed" and "infeasible" in report.reason
    assert tight.status is Status.FAILED
    np.testing.assert_array_equal(tight.network.layer("W1").W, network.layer("W1").W)
    assert tight.layer("W1").violation is None


def test_a_convolution_equals_its_matrix_problems():
    network, data = convnet(), images()
    result = prune(network, data, mode="parallel", tolerance=0.3, seed=3, max_rows=700)
    folded = network.folded()
    assert [layer.name for layer in folded.layers] == ["first", "second", "third", "last"]
    for name in ("first", "second", "third"):
        signals = collect(folded, name, Calibration(data, network), max_rows=700, seed=3)
        layer, activation = signals.layer, folded.activation_after(name)
        found = result.network.layer(name)
        for group, W in enumerate(layer.matrices()):
            columns = layer.columns(group)
            Z = signals.Z[:, columns]
            alone = solve(
                Problem(
                    signals.X[group], activation(Z), W, layer.b[columns], activation=activation,
                    Z=Z, tolerance=0.3,
                )
            )  # fmt: skip
            np.testing.assert_array_equal(found.matrices()[group], alone.W)
            np.testing.assert_array_equal(found.b[columns], alone.b)
        assert result.layer(name).rows == len(signals.rows)


def test_graphs_with_shortcuts_and_normalisation_are_pruned_in_both_modes():
    network, data = convnet(), images()
    for mode in ("parallel", "cascade"):
        result = prune(network, data, mode=mode, tolerance=0.2)
        assert all(one.pruned and one.status is Status.OPTIMAL for one in result.layers)
        assert 0.05 < result.sparsity < 1
        assert not any(isinstance(op, BatchNorm) for op in result.network.operations)
        error = np.linalg.norm(result.network(data) - network(data))
        scale = np.linalg.norm(network(data))
        assert result.output_error == pytest.approx(error / scale, rel=TOLERANCE["reordered"])
        assert result.output_error <= result.output_bound
    # A layer in front of an addition reproduces its own output: no activation frees it.
    assert isinstance(network.activation_after("second"), nettrim_solver.activations.Identity)


def test_the_cascade_makes_up_for_damage_that_parallel_layers_pass_on():
    network = mlp(widths=(12, 30, 30, 5))
    data = samples(400)
    one, other = (
        prune(network, data, mode=mode, sparsity=0.5).output_error
        for mode in ("cascade", "parallel")
    )
    assert one < other


def layer_settings(**budget):
    """The settings of a layer with a budget, by the default recipe."""
    return LayerSettings(Recipe().steps, **budget)


# Strict cascade ---------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "relu6", "hard_tanh"])
def test_strict_bounds_keep_the_trained_weights_feasible(activation):
    network = mlp(activation=activation)
    rng = np.random.default_rng(4)
    W = network.layer("W0").W * (rng.random(network.layer("W0").W.shape) < 0.5)
    pruned = network.replace({"W0": (W, network.layer("W0").b)})
    data = Calibration(3.0 * X, network)
    signals = collect(pruned, "W1", data, original=network)
    boxes = {}
    for bound in ("clipped", "trained"):
        choice = layer_settings(tolerance=0.01, formulation="strict", strict_bound=bound)
        (task,) = group_tasks(signals, network.activation_after("W1"), choice, cascade=True)
        layer = network.layer("W1")
        assert certify(task.problem, layer.W, layer.b).violation == 0
        assert certify(task.target, layer.W, layer.b).violation > 0
        boxes[bound] = task.problem.box()
    original = task.target.box()
    free = original[0] < original[1]
    for bound, (lower, upper) in boxes.items():
        # Matched rows stay as they are, and no bound appears where there was none.
        np.testing.assert_array_equal(lower[~free], original[0][~free])
        np.testing.assert_array_equal(upper[~free], original[1][~free])
        np.testing.assert_array_equal(np.isinf(lower), np.isinf(original[0]))
        np.testing.assert_array_equal(np.isinf(upper), np.isinf(original[1]))
        V = signals.X[0] @ layer.W + layer.b
        ends = np.where(np.isinf(lower), upper, lower)[free]
        old = np.where(np.isinf(original[0]), original[1], original[0])[free]
        trained = np.abs(ends - V[free]) <= TOLERANCE["reordered"]
        assert trained.all() if bound == "trained" else (trained | (ends == old)).all()
    (low, high), (inner_low, inner_high) = boxes["clipped"], boxes["trained"]
    assert np.all(low <= inner_low) and np.all(high >= inner_high)
    assert np.all(low <= original[0]) and np.all(high >= original[1])


@pytest.mark.parametrize("bound", ["clipped", "trained"])
def test_a_refit_in_a_strict_cascade_aims_at_the_original_preactivations(bound):
    network = mlp()
    first = network.layer("W0")
    damaged = network.replace({"W0": (np.where(np.abs(first.W) < 0.2, 0, first.W), first.b)})
    data = Calibration(X, network)
    signals = collect(damaged, "W1", data, original=network)
    choice = layer_settings(nnz=30, formulation="strict", strict_bound=bound)
    (task,) = group_tasks(signals, network.activation_after("W1"), choice, True)
    lower, upper = task.problem.box()
    target = np.clip(signals.Z, lower, upper)
    layer = network.layer("W1")
    if bound == "clipped":
        np.testing.assert_array_equal(target, signals.Z)
    assert np.max(np.abs(target - signals.X[0] @ layer.W - layer.b)) > 0.1
    mask = np.abs(layer.W) > np.median(np.abs(layer.W))
    found = refit(task.problem, mask, damping=0.0)
    for j in range(mask.shape[1]):
        A = np.column_stack([signals.X[0][:, mask[:, j]], np.ones(len(X))])
        best = np.linalg.lstsq(A, target[:, j])[0]
        np.testing.assert_allclose(found.W[mask[:, j], j], best[:-1], atol=TOLERANCE["refit"])
        assert found.b[j] == pytest.approx(best[-1], abs=TOLERANCE["refit"])


def test_clipped_bounds_are_never_worse_and_both_runs_end_proved():
    network = mlp()
    norms = {}
    for bound in ("clipped", "trained"):
        result = prune(
            network, X, tolerance=0.3, formulation="strict", strict_bound=bound
        )  # fmt: skip
        assert result.status is Status.OPTIMAL
        norms[bound] = np.abs(result.network.layer("W1").W).sum()
        for report in result.layers:
            assert report.network_error <= report.network_bound
    # The first layers are the same, hence so are the inputs of the second ones.
    assert norms["clipped"] <= norms["trained"] * (1 + TOLERANCE["proved"])


def test_boxes_without_one_sided_rows_stay_as_they_are():
    problem = Problem(X, X[:, :2], X[:12, :2], activation="identity", formulation="strict")
    assert strict_cascade(problem, "clipped") is problem


# Budgets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["admm", "magnitude"])
@pytest.mark.parametrize("mode", ["cascade", "parallel"])
def test_a_sparsity_is_met_in_every_layer(solver, mode):
    network = convnet()
    result = prune(network, images(), mode=mode, sparsity=0.6, steps=solver)
    for layer in result.network.layers:
        assert layer.nnz == layer.W.size - round(0.6 * layer.W.size)
    for report in result.layers:
        assert report.budget == "sparsity 0.6" and report.solver == solver
        # A heuristic has no dual point, and without a radius there is nothing to violate.
        assert (report.gap is None) == (solver == "magnitude")


def test_numbers_of_nonzeros_by_layer_are_shared_equally_by_the_groups():
    network = convnet()
    counts = {"first": 40, "second": 21, "third": 33, "last": 50}
    result = prune(network, images(), mode="parallel", nnz=counts)
    for name, count in counts.items():
        assert result.network.layer(name).nnz == count == result.layer(name).nnz
    shares = [np.count_nonzero(W) for W in result.network.layer("second").matrices()]
    assert sorted(shares) == [10, 11]
    signals = collect(network.folded(), "second", Calibration(images(), network))
    norms = [np.linalg.norm(signals.Z[:, columns]) for columns in (slice(0, 2), slice(2, 4))]
    assert shares[int(np.argmax(norms))] == 11
    with pytest.raises(SettingsError, match=r"nnz must be a number or a mapping .*\['sceond'\]"):
        prune(network, images(), nnz=counts | {"sceond": 3})


def test_layers_solved_for_a_number_of_nonzeros_equal_solve():
    network = mlp()
    result = prune(network, X, mode="parallel", nnz={"W0": 30, "W1": 20, "W2": 10})
    signals = collect(network, "W1", Calibration(X, network))
    alone = solve(problem_of(signals, network.activation_after("W1")), nnz=20)
    np.testing.assert_array_equal(result.network.layer("W1").W, alone.W)


# Overrides --------------------------------------------------------------------------------------


def test_names_count_more_than_patterns_and_patterns_more_than_kinds():
    network = convnet()
    overrides = {
        "third": {"sparsity": 0.9},
        "*i*": {"sparsity": 0.8},
        "conv2d": {"sparsity": 0.7, "steps": "wanda", "max_rows": 300},
        "dense": {"tolerance": 0.4},
        "f*": {"sparsity": 0.5},
    }
    result = prune(
        network, images(), sparsity=0.1, steps="magnitude", layers=overrides, mode="parallel"
    )  # fmt: skip
    assert [one.budget for one in result.layers] == [
        "sparsity 0.5", "sparsity 0.7", "sparsity 0.9", "tolerance 0.4",
    ]  # fmt: skip
    assert [one.solver for one in result.layers] == ["wanda", "wanda", "wanda", "magnitude"]
    assert [one.rows for one in result.layers[:3]] == [300, 300, 100]


def test_another_solver_comes_without_the_settings_of_the_old_one():
    network = mlp()
    result = prune(
        network, X, tolerance=0.2, steps={"step": "admm", "max_iter": 4000},
        layers={
            "W1": {"steps": "magnitude"}, "W2": {"steps": {"step": "admm", "check_interval": 5}},
        },
    )  # fmt: skip
    assert [one.solver for one in result.layers] == ["admm", "magnitude", "admm"]


def test_skipped_layers_stay_as_they_are():
    network = mlp()
    result = prune(
        network, X, tolerance=0.2, skip=["*2"], layers={"W0": {"skip": True}}
    )  # fmt: skip
    assert [one.outcome for one in result.layers] == ["skipped", "pruned", "skipped"]
    for name in ("W0", "W2"):
        np.testing.assert_array_equal(result.network.layer(name).W, network.layer(name).W)
    assert result.status is Status.OPTIMAL
    # Nothing has changed in front of the only pruned layer.
    assert result.layers[0].network_error == result.layers[0].network_bound == 0
    assert 0 < result.layers[1].network_error <= result.layers[1].network_bound


class Oscillating(Activation):
    """An activation that nobody can invert, and that does not say so."""

    name = "oscillating"

    def __call__(self, Z):
        return np.sin(Z)


@pytest.mark.parametrize("mode", ["parallel", "cascade"])
def test_layers_that_cannot_be_pruned_are_passed_over_with_the_reason(mode):
    W = np.random.default_rng(0).standard_normal((12, 4))
    network = Network(
        [Dense(W, name="odd"), Activate(Oscillating()), Dense(W[:4, :2], name="plain")]
    )  # fmt: skip
    result = prune(network, X, tolerance=0.2, mode=mode)
    odd, plain = result.layers
    assert odd.outcome == "passed over" and "no stable inverse" in odd.reason
    assert plain.pruned and result.status is Status.OPTIMAL
    alone = prune(network, X, tolerance=0.2, mode=mode, skip="plain")
    assert alone.status is Status.FAILED
    np.testing.assert_array_equal(result.network.layer("odd").W, W)
    assert "odd passed over: " in result.table()

    huge = Network([Dense(1e200 * W, name="huge"), Dense(W[:4, :2] * 1e200, name="plain")])
    with np.errstate(over="ignore", invalid="ignore"):
        report = prune(huge, X, tolerance=0.2, mode=mode).layer("plain")
    assert report.outcome == "passed over" and "between 1e-60 and 1e+60" in report.reason


# Pipelines --------------------------------------------------------------------------------------


def test_a_pipeline_takes_the_place_of_the_solver():
    calls = []

    def pipeline(problem, nnz=None, *, n_threads, callback, time_limit):
        calls.append((problem.n_inputs, nnz, n_threads, time_limit is not None))
        return solve(problem, "magnitude", **({} if nnz is None else {"nnz": nnz}))

    result = prune(
        mlp(), X, tolerance=0.3, steps=pipeline, n_threads=1, time_limit=60,
        layers={"W1": {"nnz": 5}, "W2": {"steps": "admm"}},
    )  # fmt: skip
    assert calls == [(12, None, 1, True), (9, 5, 1, True)]
    assert [one.solver for one in result.layers] == ["magnitude", "magnitude", "admm"]
    assert result.layer("W1").nnz == 5


def test_the_pipelines_of_the_house_fit_in():
    pipeline = Pipeline(Solve("magnitude"), Refit())
    result = prune(mlp(), X, sparsity=0.5, steps=pipeline)
    plain = prune(mlp(), X, sparsity=0.5, steps="magnitude")
    assert result.layer("W1").nnz == plain.layer("W1").nnz
    assert result.output_error < plain.output_error
    assert [one.solver for one in result.layers] == ["magnitude+refit"] * 3


@pytest.mark.parametrize(
    ("pipeline", "reason"),
    [
        (lambda problem, nnz, **_: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda problem, nnz, **_: None, "must return a Solution, but returned a NoneType"),
        (lambda problem, nnz, **_: solve(problem.select([0])), "W must have shape"),
    ],
)
def test_a_failing_pipeline_costs_its_layer_only(pipeline, reason):
    network = mlp()
    result = prune(network, X, tolerance=0.2, layers={"W1": {"steps": pipeline}})
    report = result.layer("W1")
    assert report.outcome == "failed" and reason in report.reason
    np.testing.assert_array_equal(result.network.layer("W1").W, network.layer("W1").W)
    assert result.layer("W0").pruned and result.layer("W2").pruned
    assert result.status is Status.FAILED


# Bounds -----------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(
    seed=st.integers(0, 10**6),
    widths=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    activation=st.sampled_from(["relu", "identity", "relu6", "leaky_relu", "tanh", "gelu"]),
    mode=st.sampled_from(["parallel", "cascade"]),
    formulation=st.sampled_from(["pooled", "strict"]),
    radius=st.sampled_from(["joint", "per_output"]),
    tolerance=st.sampled_from([0.0, 0.05, 0.3, 1.5]),
    bias=st.booleans(),
    dtype=st.sampled_from([np.float64, np.float32]),
)
def test_measured_errors_are_below_their_bounds(
    seed, widths, activation, mode, formulation, radius, tolerance, bias, dtype
):
    network = mlp(widths, activation, seed, dtype, bias)
    data = samples(25, widths[0], seed + 1, dtype)
    result = prune(
        network, data, mode=mode, tolerance=tolerance, formulation=formulation, radius=radius,
        steps={"step": "admm", "max_iter": 60},
    )  # fmt: skip
    for report in result.layers:
        assert report.network_error <= report.network_bound
    assert result.output_error <= result.output_bound


@pytest.mark.parametrize("mode", ["parallel", "cascade"])
def test_errors_are_those_of_the_two_networks(mode):
    network, data = mlp(), X
    result = prune(network, data, mode=mode, tolerance=0.2)
    signal, pruned = data, data
    for report, layer in zip(result.layers, network.layers, strict=True):
        f, new = network.activation_after(layer.name), result.network.layer(layer.name)
        own = signal if mode == "parallel" else pruned
        signal, pruned = f(signal @ layer.W + layer.b), f(pruned @ new.W + new.b)
        scale = np.linalg.norm(signal)
        assert report.error == pytest.approx(
            np.linalg.norm(f(own @ new.W + new.b) - signal) / scale
        )
        assert report.network_error == pytest.approx(np.linalg.norm(pruned - signal) / scale)
    assert result.output_error == report.network_error


@settings(max_examples=12)
@given(
    seed=st.integers(0, 10**6),
    mode=st.sampled_from(["parallel", "cascade"]),
    budget=st.sampled_from([{"tolerance": 0.05}, {"tolerance": 0.5}, {"sparsity": 0.7}]),
    groups=st.sampled_from([1, 2, 4]),
)
def test_bounds_hold_through_convolutions_poolings_and_shortcuts(seed, mode, budget, groups):
    network, data = convnet(seed, groups), images(6, seed + 1)
    result = prune(network, data, mode=mode, steps="magnitude", **budget)
    for report in result.layers:
        assert report.network_error <= report.network_bound
    assert result.output_error <= result.output_bound


def test_no_bound_is_claimed_from_some_of_the_rows():
    network = mlp()
    result = prune(network, X, mode="parallel", tolerance=0.2, max_rows=100)
    assert [one.rows for one in result.layers] == [100] * 3
    assert [one.network_bound for one in result.layers] == [None] * 3
    assert result.output_bound is None
    # In a cascade a layer on all rows is bounded whatever happened before it.
    overrides = {"W2": {"max_rows": np.inf}}
    result = prune(network, X, tolerance=0.2, max_rows=100, layers=overrides)
    assert [one.network_bound is None for one in result.layers] == [True, True, False]
    assert result.output_error <= result.output_bound


def test_the_seed_chooses_the_rows():
    network = mlp()
    runs = [prune(network, X, tolerance=0.2, max_rows=60, seed=s) for s in (0, 0, 1)]
    same_weights(runs[0].network, runs[1].network)
    assert np.any(runs[0].network.layer("W0").W != runs[2].network.layer("W0").W)


# Held-out samples, warnings ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["parallel", "cascade"])
def test_held_out_errors_are_those_of_other_samples(mode):
    network, held = mlp(), samples(80, seed=9)
    result = prune(network, X, mode=mode, tolerance=0.2, X_heldout=held)
    signal = pruned = held
    for layer, new, report in zip(
        network.layers, result.network.layers, result.layers, strict=True
    ):  # fmt: skip
        f = network.activation_after(layer.name)
        Y = f(signal @ layer.W + layer.b)
        source = signal if mode == "parallel" else pruned
        alone = np.linalg.norm(f(source @ new.W + new.b) - Y) / np.linalg.norm(Y)
        assert report.error_heldout == pytest.approx(alone)
        signal, pruned = Y, f(pruned @ new.W + new.b)
        error = np.linalg.norm(pruned - signal) / np.linalg.norm(signal)
        assert report.network_error_heldout == pytest.approx(error)
    assert result.output_error_heldout == pytest.approx(error)
    assert result.output_error < result.output_error_heldout


def test_too_few_samples_and_silent_outputs_are_warned_of():
    network = mlp(widths=(40, 6, 3))
    b = np.array([-100.0, *network.layer("W0").b[1:]])
    network = network.replace({"W0": (network.layer("W0").W, b)})
    result = prune(network, samples(25, 40), tolerance=0.01)
    report = result.layer("W0")
    s = report.nnz / 6
    assert 25 < 2 * s * np.log(40 / s)
    (text,) = (text for text in report.warnings if text.startswith("too few samples: 25 rows"))
    # A dense row of 40 weights needs 40 equations, and an output has one where it is active.
    active = np.mean(network.layer("W0").W.T @ samples(25, 40).T + b[:, None] > 0)
    assert 0.5 * 40 / active < float(text.rpartition(" ")[2]) <= 1.05 * 40 / active
    assert "degenerate: 1 outputs are never active on these rows" in report.warnings
    enough = prune(network, samples(3000, 40), tolerance=0.01).layer("W0")
    assert not any("too few" in text for text in enough.warnings)
    assert result.warnings[0].startswith("W0: ")


def test_an_answer_without_proof_is_warned_of():
    result = prune(mlp(), X, tolerance=0.1, steps={"step": "admm", "max_iter": 1, "polish": False})
    assert result.status is Status.MAX_ITERATIONS
    assert any(text.startswith("unproved: max_iterations") for text in result.layers[0].warnings)


# Precision, data, memory ------------------------------------------------------------------------


def test_single_precision_networks_stay_single_and_keep_their_bounds():
    network, data = mlp(dtype=np.float32), samples(dtype=np.float32)
    result = prune(network, data, tolerance=0.2)
    assert result.network.dtype == np.float32 and result.status is Status.OPTIMAL
    # Samples in double make the signals double; the weights are judged as they are stored.
    double = prune(network, data.astype(np.float64), tolerance=0.2)
    assert double.network.dtype == np.float32 and double.status is Status.OPTIMAL
    report, layer = double.layer("W0"), double.network.layer("W0")
    signals = collect(network, "W0", Calibration(data.astype(np.float64), network))
    problem = problem_of(signals, network.activation_after("W0"), tolerance=0.2)
    judged = certify(problem, layer.W, layer.b)
    assert report.distance == judged.distance and report.violation == judged.violation


def test_batches_calibrations_and_spilled_rows_give_the_same_weights(tmp_path):
    network = mlp()
    expected = prune(network, X, tolerance=0.2).network
    given = [
        {"X": (X[i : i + 256] for i in range(0, 150, 256))},
        {"X": Calibration(X, network)},
        {"X": X, "spill": tmp_path},
    ]
    for arguments in given:
        data = arguments.pop("X")
        same_weights(prune(network, data, tolerance=0.2, **arguments).network, expected)
    assert not list(tmp_path.iterdir())


def test_nothing_given_is_changed_and_nothing_is_shared():
    network, data = mlp(), X.copy()
    before = [(layer.W.copy(), layer.b.copy()) for layer in network.layers]
    overrides, step = {"W0": {"tolerance": 0.1}}, {"step": "admm", "max_iter": 4000}
    result = prune(
        network, data, tolerance=0.2, layers=overrides, steps=step, skip="W2"
    )  # fmt: skip
    np.testing.assert_array_equal(data, X)
    for layer, (W, b) in zip(network.layers, before, strict=True):
        np.testing.assert_array_equal(layer.W, W)
        np.testing.assert_array_equal(layer.b, b)
    assert overrides == {"W0": {"tolerance": 0.1}} and step == {"step": "admm", "max_iter": 4000}
    assert not np.shares_memory(result.network.layer("W0").W, network.layer("W0").W)
    with pytest.raises(ValueError, match="read-only"):
        result.network.layer("W0").W[:] = 0


def test_a_plan_says_rows_and_a_memory_that_is_kept():
    network = mlp(widths=(40, 90, 60, 10))
    data = samples(2100, 40)
    plan = planned(network, data, tolerance=0.3, max_rows=2000, skip="W0", n_threads=1)
    assert [one.rows for one in plan.layers] == [2000] * 3 and plan.layers[0].n_rows == 2100
    assert plan.layers[0].budget == "" and plan.layers[0].seconds == 0
    assert plan.seconds > 0 and plan.rate > 1e8
    assert "2000 of 2100" in plan.table() and "skipped" in plan.table()
    assert "times: estimates" in plan.table() and plan.notes == ()
    # What is compiled, or imported, is no part of the run.
    prune(mlp(), X, tolerance=0.3)
    for step in ({"step": "admm", "max_iter": 10, "polish": False}, "sparsegpt"):
        tracemalloc.start()
        prune(
            network, data, tolerance=0.3, max_rows=2000, skip=["W0"], steps=step,
        )  # fmt: skip
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < plan.bytes
    with pytest.raises(TypeError, match="plan_network.* unexpected .*'tolerances'"):
        planned(network, data, tolerances=0.3)
    assert planned(mlp(), X, tolerance=0.1, steps="cvxpy").seconds is None
    layers, trials = planned(mlp(), X, max_error=0.3, allocation="output_error").notes
    # Six points for each of the three paths; for one budget also three drafts of the network.
    assert "about 18 layers pruned by alps" in layers and "several times" in trials
    (layers,) = planned(mlp(), X, sparsity=0.5, allocation="shape").notes
    assert "about 6 layers pruned by alps" in layers


# Interruptions ----------------------------------------------------------------------------------


def untouched_behind(result, network, done):
    for i, (report, layer) in enumerate(zip(result.layers, network.layers, strict=True)):
        if i < done:
            assert report.pruned and result.network.layers[i].sparsity > 0
        else:
            assert report.outcome == "not reached"
            np.testing.assert_array_equal(result.network.layers[i].W, layer.W)


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal: a process in the background is started without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_keeps_the_layers_that_are_done(ctrl_c):
    network = mlp()

    def interrupting(problem, nnz, **_):
        ctrl_c()
        return solve(problem)

    result = prune(network, X, tolerance=0.2, layers={"W1": {"steps": interrupting}})
    assert result.status is Status.INTERRUPTED
    untouched_behind(result, network, 1)
    assert result.output_error <= result.output_bound


@pytest.mark.parametrize("inside", [True, False])
def test_a_callback_that_returns_true_ends_the_run(inside):
    network, seen = mlp(), []

    def callback(at):
        seen.append(at)
        return at.layer == "W1" and (at.progress is not None) == inside

    result = prune(network, X, tolerance=0.2, callback=callback)
    assert result.status is Status.INTERRUPTED
    untouched_behind(result, network, 1)
    assert {at.layer for at in seen} == {"W0", "W1"} and seen[-1].done == 1
    assert seen[0].total == 3 and seen[0].progress is None


def test_the_error_of_a_callback_passes_through():
    def callback(at):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        prune(mlp(), X, tolerance=0.2, callback=callback)


class Clock:
    """A clock that stands still unless it is told."""

    now = 0.0

    def perf_counter(self):
        return self.now


def test_a_time_limit_ends_the_run_between_layers(monkeypatch):
    network, clock = mlp(), Clock()
    monkeypatch.setattr(modes, "time", clock)
    result = prune(
        network, X, tolerance=0.2, time_limit=9.0,
        callback=lambda at: setattr(clock, "now", 9.0 * at.done),
    )  # fmt: skip
    assert result.status is Status.TIME_LIMIT and result.seconds == 9.0
    untouched_behind(result, network, 1)


def test_answers_that_the_time_limit_cut_short_are_not_kept(monkeypatch):
    network, clock, limits = mlp(), Clock(), []
    monkeypatch.setattr(modes, "time", clock)

    def slow(problem, nnz, *, time_limit, **_):
        limits.append(time_limit)
        clock.now = 10.0
        return solve(problem, "magnitude")

    result = prune(
        network, X, tolerance=0.2, time_limit=9.0, layers={"W1": {"steps": slow}}
    )  # fmt: skip
    assert result.status is Status.TIME_LIMIT and limits == [9.0]
    untouched_behind(result, network, 1)


def test_the_time_limit_of_a_layer_is_another_matter():
    result = prune(
        mlp(), X, tolerance=0.2, time_limit=99.0, steps={"step": "admm", "time_limit": 1e-9}
    )  # fmt: skip
    assert result.status is Status.TIME_LIMIT and all(one.pruned for one in result.layers)
    assert any(text.startswith("unproved: time_limit") for text in result.layers[0].warnings)


# Bad input --------------------------------------------------------------------------------------

NAN = np.where(np.arange(12) == 3, np.nan, X)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"X": X[:, :5]}, r"X: .* must have shape \(n_samples, 12\), but has shape \(150, 5\)"),
        ({"X": NAN}, "X: .* must be finite, but holds 150 NaN"),
        ({"X": np.empty((0, 12))}, "X: .* is empty"),
        ({"X_heldout": X[:, :5]}, r"X_heldout: .* \(150, 5\)"),
        ({"X": Calibration(X[:, :5])}, r"takes samples of shape \(12,\), but gets \(5,\)"),
        ({"network": "lenet"}, "network must be a Network, but was a str: from_sklearn"),
        ({"mode": "serial"}, r"mode must be one of \['cascade', 'parallel'\], but was 'serial'"),
        ({"tolerance": None}, r"every layer needs a budget, but \['W0', 'W1', 'W2'\] have none"),
        ({"tolerance": {"W0": 0.1}}, r"every layer needs a budget, but \['W1', 'W2'\] have none"),
        ({"tolerance": -0.1}, "tolerance must lie in"),
        ({"tolerance": "0.1"}, "tolerance must lie in"),
        ({"sparsity": 0.5}, r"give one of tolerance, .*\['tolerance', 'sparsity'\] were given"),
        ({"tolerance": None, "sparsity": 1.0}, "sparsity must lie in"),
        ({"tolerance": None, "nnz": {"W0": 9, "W1": 64, "W2": 9}}, "layer 'W1': nnz must be at mo"),
        ({"tolerance": None, "nnz": 2.5}, "nnz must be an integer"),
        ({"layers": {"W7": {}}}, r"'W7' matches none: the layers are \['W0 \(dense\)'"),
        ({"layers": {"conv2d": {}}}, "'conv2d' matches none"),
        ({"layers": {"W0": {"budget": 1}}}, r"layers\['W0'\] has an unknown entry 'budget'"),
        ({"layers": {"W0": 0.5}}, r"layers\['W0'\] must be a mapping"),
        ({"layers": [("W0", {})]}, "layers must be a mapping"),
        (
            {"layers": {"W0": {"steps": "adm"}}},
            r"layers\['W0'\]: .* was 'adm'; did you mean 'admm'",
        ),
        ({"layers": {"W0": {"tolerance": 1, "nnz": 1}}}, r"layers\['W0'\]: give one of"),
        ({"skip": ["W9"]}, "skip must name layers, kinds or patterns, but 'W9' matches none"),
        ({"skip": "*"}, "at least one layer must be pruned"),
        ({"steps": "nothing"}, "one was 'nothing'"),
        (
            {"steps": {"step": "admm", "max_itr": 3}},
            "unknown setting 'max_itr' for solver 'admm'; it knows",
        ),
        ({"steps": {"step": "admm", "max_iter": 0}}, "max_iter must be an integer >= 1"),
        ({"steps": {"step": "magnitude", "nnz": 3}}, "a budget is an argument of the call"),
        ({"formulation": "penalised"}, "formulation must be one of"),
        ({"radius": "each"}, "radius must be one of"),
        ({"strict_bound": "zero"}, "strict_bound must be one of"),
        ({"gamma": -1.0}, "gamma must lie in"),
        ({"gamma": 1.1, "mode": "parallel"}, "gamma belongs to mode='cascade'"),
        ({"max_rows": 0}, "max_rows must be an integer >= 1"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"time_limit": 0}, "time_limit must lie in"),
        ({"n_threads": 0}, "n_threads must be None or an integer >= 1"),
        ({"callback": 3}, "callback must be callable"),
        ({"steps": 3}, "steps must name solvers"),
        ({"solver": "alps"}, r"how a network is pruned is said by recipe=.*steps='alps'"),
        ({"overrides": {}}, "layers="),
        ({"probe": None}, "probe is gone"),
        ({"recipe": "bets"}, "one of .* but was 'bets'; did you mean 'best'"),
        ({"spill": "/nowhere/at/all"}, "spill must be a folder"),
    ],
)
def test_unusable_arguments_are_named_before_work(arguments, message):
    given = {"network": mlp(), "X": X, "tolerance": 0.1} | arguments
    with pytest.raises((ProblemError, SettingsError), match=message):
        prune(given.pop("network"), given.pop("X"), **given)


def test_what_a_solver_cannot_do_is_said_before_work():
    with pytest.raises(UnsupportedError, match="layer 'W0': solver 'admm-published' does not"):
        prune(mlp(), X, tolerance=0.1, steps="admm-published")


def test_the_public_names_are_imported_when_they_are_asked_for():
    assert nettrim_solver.prune_network is nettrim_solver.network.prune_network
    assert nettrim_solver.Network is Network
