"""All layers refitted together to the output, and passes for the weights of the outputs."""

import numpy as np
import pytest

from nettrim_solver.exceptions import ProblemError, SettingsError, UnsupportedError
from nettrim_solver.network import (
    Activate,
    Dense,
    Network,
    PruningResult,
    Softmax,
    refit_output,
)
from nettrim_solver.network.distillation import Adam
from nettrim_solver.pipeline import Pipeline, Refit, Solve
from nettrim_solver.status import Status

from .helpers import planned, prune, prune_weighted_at
from .test_adjoint import Stranger
from .test_modes import X, convnet, images, mlp, same_weights
from .tolerances import TOLERANCE

ALPS = {"sparsity": 0.6, "steps": "alps", "n_threads": 1}


def error(network, pruned, inputs=X):
    return np.linalg.norm(pruned(inputs) - network(inputs))


def masks(network):
    return {layer.name: layer.W != 0 for layer in network.layers}


def same_zeros(one, other):
    pairs = zip(masks(one).values(), masks(other).values(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("activation", ["relu", "tanh", "leaky_relu"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_zeros_stay_and_the_error_falls(activation, dtype):
    network = mlp(activation=activation, dtype=dtype)
    pruned = prune(network, X, **ALPS).network
    refitted = refit_output(network, pruned, X)
    assert same_zeros(refitted, pruned) and refitted.dtype == dtype
    assert error(network, refitted) < 0.8 * error(network, pruned)
    again = refit_output(network, pruned, [X[:40], X[40:]])
    inputs = X.astype(dtype)
    assert again(inputs) == pytest.approx(
        refitted(inputs),
        abs=TOLERANCE["refit_batches" if dtype == np.float64 else "network_single"],
    )


def test_without_epochs_the_pruned_network_comes_back_and_more_err_less():
    network = mlp()
    pruned = prune(network, X, **ALPS).network
    errors = [
        error(network, refit_output(network, pruned, X, epochs=epochs)) for epochs in (0, 10, 100)
    ]
    assert errors[0] == error(network, pruned)
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("bias", [True, False])
def test_the_last_layer_alone_comes_near_least_squares(bias):
    """Its output is linear in its weights: the minimum is known."""
    network = mlp(bias=bias)
    pruned = prune(network, X, **ALPS).network
    refitted = refit_output(network, pruned, X, skip=["W0", "W1"], epochs=500)
    assert np.array_equal(refitted.layer("W0").W, pruned.layer("W0").W)
    (signal,) = [inputs[0] for op, inputs, _ in pruned.signals(X) if op.name == "W2"]
    total = 0.0
    for j, kept in enumerate(masks(pruned)["W2"].T):
        inputs = np.column_stack([signal[:, kept], np.ones(len(X))][: 1 + bias])
        target = network(X)[:, j]
        w = np.linalg.lstsq(inputs, target, rcond=None)[0]
        total += np.sum((inputs @ w - target) ** 2)
    best = np.sqrt(total)
    # The refit is over mixtures of the samples, whose minimum is another one.
    assert best * (1 - 1e-12) <= error(network, refitted) <= 1.2 * best


def test_a_last_softmax_makes_the_outputs_scores_of_classes():
    network = mlp()
    pruned = prune(network, X, **ALPS).network
    ends = [Network([*one.operations, Softmax()]) for one in (network, pruned)]
    refitted = refit_output(*ends, X)
    assert same_zeros(refitted, pruned) and error(ends[0], refitted) < 0.8 * error(*ends)


def test_convolutions_with_everything_are_refitted():
    network, X = convnet(), images(60)
    result = prune(network, X, output_refit=30, **ALPS)
    before = prune(network, X, **ALPS)
    assert same_zeros(result.network, before.network)
    assert result.output_error < 0.8 * before.output_error
    same_weights(result.network, refit_output(network, before.network, X, epochs=30))


@pytest.mark.parametrize("mode", ["cascade", "parallel"])
@pytest.mark.parametrize("formulation", ["pooled", "strict"])
def test_the_report_is_that_of_the_refitted_weights(mode, formulation):
    network = mlp()
    options = {
        "sparsity": 0.5, "mode": mode, "formulation": formulation, "n_threads": 1, "skip": "W1",
        "steps": Pipeline(Solve("admm"), Refit()), "X_heldout": X[:50],
        "layers": {"W2": {"steps": "alps"}},
    }  # fmt: skip
    before = prune(network, X, **options)
    result = prune(network, X, output_refit=20, **options)
    assert result.output_error < before.output_error
    assert result.recipe.output_refit == 20 and before.recipe.output_refit == 0
    first, skipped, last = result.layers
    assert skipped.outcome == "skipped" and skipped.stages == ()
    assert np.array_equal(result.network.layer("W1").W, network.layer("W1").W)
    assert [one.name for one in first.stages] == ["admm", "refit", "output_refit"]
    assert [one.name for one in last.stages] == ["alps", "output_refit"]
    assert last.solver == "alps+output_refit" and last.status is Status.PRUNED
    for one, old in zip(result.layers, before.layers, strict=True):
        if one.pruned:
            assert one.gap is one.violation is one.epsilon is None
            assert one.nnz == old.nnz and one.stages[-1].distance == one.distance
            assert one.stages[-2].distance == old.distance
        if mode == "cascade" and one.pruned:
            assert one.error == pytest.approx(one.network_error, rel=1e-9)
        assert one.network_error <= one.network_bound
    assert result.output_error <= result.output_bound
    assert "after alps" in result.table() and "output_refit" in str(result.to_dict())


def test_a_run_goes_on_behind_its_layers(tmp_path):
    network = mlp()
    options = ALPS | {"output_refit": 10, "passes": 2, "output_weights": "downstream"}
    whole = prune(network, X, **options)
    options["checkpoint"] = tmp_path
    cut = prune(network, X, callback=lambda at: at.done == 1, **options)
    assert cut.status is Status.INTERRUPTED
    again = prune(network, X, **options)
    once_more = prune(network, X, **options)
    same_weights(again.network, whole.network)
    same_weights(once_more.network, whole.network)
    with pytest.raises(ProblemError, match=r"belongs to another run.*passes \(was 2, is 3\)"):
        prune(network, X, **options | {"passes": 3})


def test_it_can_be_ended_between_steps():
    network, calls = mlp(), []
    before = prune(network, X, **ALPS)

    def stop(at):
        calls.append(at.stage)
        assert at.report is None or at.stage == "final"
        return calls.count("refit") > 12

    result = prune(network, X, output_refit=40, callback=stop, **ALPS)
    assert result.status is Status.INTERRUPTED
    assert result.output_error < before.output_error
    assert same_zeros(result.network, before.network)
    assert all(report.pruned for report in result.layers)
    best = refit_output(network, before.network, X, time_limit=1e-9)
    same_weights(best, before.network)


def test_ctrl_c_leaves_the_best_so_far(monkeypatch):
    network, calls = mlp(), []
    pruned = prune(network, X, **ALPS).network
    real = Adam.step

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) > 150:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(Adam, "step", interrupted)
    refitted = refit_output(network, pruned, X)
    assert same_zeros(refitted, pruned) and error(network, refitted) < error(network, pruned)


def test_an_error_of_the_callback_is_its_own():
    def fail(at):
        if at.stage == "refit":
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        prune(mlp(), X, output_refit=5, callback=fail, **ALPS)


def test_passes_are_the_loop_by_hand():
    network = mlp()
    first = prune(network, X, output_weights="downstream", **ALPS).network
    second = prune_weighted_at(network, X, first, sparsity=0.6, steps="alps").network
    pipeline = {"sparsity": 0.6, "steps": "l0"}
    expected = prune_weighted_at(network, X, second, **pipeline)
    stages = []
    found = prune(
        network, X, output_weights="downstream", passes=2,
        callback=lambda at: stages.append((at.stage, at.layer)), n_threads=1, **pipeline,
    )  # fmt: skip
    same_weights(found.network, expected.network)
    assert found.recipe.passes == 2
    assert {stage for stage, _ in stages} - {"compiling"} == {"pass", "final"}
    assert stages.index(("final", "W0")) > max(
        i for i, (stage, _) in enumerate(stages) if stage == "pass"
    )


def test_passes_leave_layers_with_equal_outputs_and_budgets_of_their_own():
    network = mlp()
    overrides = {"W0": {"output_weights": "equal", "nnz": 30, "steps": "wanda"}}
    options = ALPS | {"output_weights": "downstream", "layers": overrides}
    one = prune(network, X, passes=1, **options)
    assert one.layer("W0").nnz == 30 and one.layer("W0").solver == "wanda"
    assert np.array_equal(
        one.network.layer("W0").W, prune(network, X, **options).network.layer("W0").W
    )


def test_a_budget_of_the_network_is_kept():
    network = mlp()
    result = prune(
        network, X, sparsity=0.6, allocation="output_error", steps="l0", passes=1,
        output_weights="downstream", output_refit=10, n_threads=1,
    )  # fmt: skip
    total = sum(layer.W.size for layer in network.layers)
    assert result.nnz == total - round(0.6 * total) == sum(result.budgets.values())
    searched = prune(
        network, X, max_error=0.3, steps="alps", output_refit=10, n_threads=1
    )  # fmt: skip
    assert searched.output_error <= 0.3
    assert all(one.solver == "alps+output_refit" for one in searched.layers)


def test_the_plan_says_what_comes_before_and_behind():
    plan = planned(mlp(), X, output_weights="downstream", passes=3, output_refit=7, **ALPS)
    assert "3 passes of all layers by alps" in plan.table()
    assert "about 7 evaluations of the network" in plan.notes[1]
    assert planned(mlp(), X, **ALPS).notes == ()
    spread = planned(
        mlp(), X, output_weights="downstream", passes=3, allocation="output_error", **ALPS
    )
    assert len(spread.notes) == 2


def test_layers_that_failed_stay_out():
    def fail(problem, nnz=None, **_):
        raise RuntimeError("no")

    result = prune(
        mlp(), X, sparsity=0.5, steps="alps", output_refit=5,
        layers={"W1": {"steps": fail}}, n_threads=1,
    )  # fmt: skip
    assert isinstance(result, PruningResult) and result.layer("W1").outcome == "failed"
    assert np.array_equal(result.network.layer("W1").W, mlp().layer("W1").W)


def test_bad_input():
    network = mlp()
    with pytest.raises(ProblemError, match="pruned must be network with other weights"):
        refit_output(network, mlp((12, 9, 3)), X)
    with pytest.raises(ProblemError, match="pruned must be network with other weights"):
        refit_output(network, mlp((12, 9, 8, 3)), X)
    for name, value in {"epochs": -1, "seed": 0.5, "time_limit": 0}.items():
        with pytest.raises(SettingsError, match=f"{name} must"):
            refit_output(network, network, X, **{name: value})
    with pytest.raises(SettingsError, match="skip must name layers"):
        refit_output(network, network, X, skip="nothing")
    for name in ("passes", "output_refit"):
        with pytest.raises(SettingsError, match=f"{name} must be an integer >= 0"):
            prune(network, X, **ALPS, **{name: -1})
    with pytest.raises(SettingsError, match="passes measure the weights of the outputs"):
        prune(network, X, passes=2, **ALPS)
    strange = Network([
        Dense(np.ones((12, 6)), name="before"), Stranger(name="strange"),
        Dense(np.ones((6, 2)), name="behind"), Activate("relu"),
    ])  # fmt: skip
    with pytest.raises(UnsupportedError, match="'strange'.*skip them"):
        prune(strange, X, output_refit=5, **ALPS)
    assert prune(strange, X, output_refit=5, skip="before", **ALPS).layers[1].pruned
