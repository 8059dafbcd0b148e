"""Solvers compared on a whole network: the rows against runs of one's own, failures, refusals."""

import time

import numpy as np
import pytest

from nettrim_solver import (
    Comparison,
    Network,
    Recipe,
    Status,
    compare,
    prune_network,
    refit,
    solve,
)
from nettrim_solver.compare import network as comparing
from nettrim_solver.exceptions import NettrimError
from nettrim_solver.network import Activate, Calibration, Dense
from nettrim_solver.solvers import SOLVERS, wanda

from .tolerances import TOLERANCE

SPARSITIES = [0.4, 0.75]


@pytest.fixture(scope="module")
def trained():
    """A network of two layers on correlated inputs, its samples, and fresh ones."""
    rng = np.random.default_rng(7)
    X = rng.standard_normal((120, 10)) @ rng.standard_normal((10, 10))
    network = Network([
        Dense(rng.standard_normal((10, 8)), rng.standard_normal(8), name="hidden"),
        Activate("relu"),
        Dense(rng.standard_normal((8, 3)), rng.standard_normal(3), name="scores"),
    ])  # fmt: skip
    return network, X[:80], X[80:]


def same_choice(network, X):
    """The part of the samples for which a network chooses as on the first call."""
    wanted = np.argmax(network(X), axis=1)
    return lambda other: float(np.mean(np.argmax(other(X), axis=1) == wanted))


@pytest.mark.parametrize("mode", ["cascade", "parallel"])
def test_rows_are_what_runs_of_ones_own_give(trained, mode):
    network, X, fresh = trained
    names = ["magnitude", "alps", "admm"]
    accuracy = same_choice(network, fresh)
    found = compare(
        network, X, solvers=names, sparsities=SPARSITIES, X_heldout=fresh, recipe=Recipe(mode=mode),
        accuracy=accuracy,
    )  # fmt: skip
    assert found.complete and found.kind == "network" and found.n_heldout == len(fresh)
    assert found.trained_accuracy == 1.0
    keys = [(row.solver, row.sparsity) for row in found.rows]
    assert keys == [(name, sparsity) for name in names for sparsity in SPARSITIES]
    for row in found.rows:
        recipe = Recipe(steps=row.solver, mode=mode)
        pruned = prune_network(network, X, sparsity=row.sparsity, recipe=recipe)
        weights = [layer.W for layer in pruned.network.layers]
        size = sum(W.size for W in weights)
        kept = sum(W.size - round(row.sparsity * W.size) for W in weights)
        assert row.nnz == kept and row.zeros == 1 - kept / size
        for samples, error in ((X, row.error), (fresh, row.heldout_error)):
            target = network(samples)
            difference = np.linalg.norm(pruned.network(samples) - target)
            close = pytest.approx(difference / np.linalg.norm(target), rel=TOLERANCE["reordered"])
            assert error == close
        norm = sum(np.abs(W).sum() for W in weights)
        assert row.l1_norm == pytest.approx(norm, rel=TOLERANCE["reordered"])
        assert row.accuracy == accuracy(pruned.network)
        assert row.proved == (row.solver == "admm") == (row.gap is not None)
        assert row.activation_error is row.heldout_activation_error is row.failure is None


def test_by_default_recipes_the_default_solver_and_the_pruners_appear_once_each(trained):
    network, X, _ = trained
    found = compare(network, X, sparsities=[0.5], recipe=Recipe(mode="parallel"))
    pruners = [name for name, info in SOLVERS.items() if info.needs_W]
    assert [row.solver for row in found.rows] == ["best", "fast", "admm", *pruners]
    assert all(row.failure is None and row.seconds > 0 for row in found.rows)


def test_recipes_are_compared_by_name_and_as_they_are(trained):
    network, X, _ = trained
    solvers = {"best": "best", "mine": Recipe(steps=["wanda", "refit"], skip="hidden"),
               "base": "wanda"}  # fmt: skip
    base = Recipe(skip="scores")
    found = compare(network, X, solvers=solvers, sparsities=[0.5], recipe=base, refit=True)
    # What is chosen for the network has no steps to refine.
    assert [row.label for row in found.rows] == ["best", "mine", "mine+refit", "base", "base+refit"]
    assert [row.nnz for row in found.rows] == [64, 92, 92, 64, 64]
    best = prune_network(network, X, sparsity=0.5, recipe=Recipe.named("best").with_(skip="scores"))
    assert found.rows[0].error == pytest.approx(best.output_error, rel=TOLERANCE["reordered"])


def test_a_recipe_with_more_than_layers_counts_the_whole_call(trained, monkeypatch):
    network, X, _ = trained
    calls, real = [], comparing.prune_network

    def watched(*args, **options):
        calls.append(real(*args, **options))
        return calls[-1]

    monkeypatch.setattr(comparing, "prune_network", watched)
    rows = compare(network, X, solvers=["fast", "wanda"], sparsities=[0.5]).rows
    assert rows[0].seconds == calls[0].seconds
    assert rows[1].seconds == sum(one.seconds for one in calls[1].layers)


def test_refinements_follow_the_solver_in_every_layer(trained):
    network, X, _ = trained
    found = compare(
        network, X, solvers=["wanda"], sparsities=[0.5], refit=True, swaps="box",
        settings={"wanda": {"scope": "layer"}, "refit": {"damping": 0.2}},
    )  # fmt: skip
    assert [row.label for row in found.rows] == ["wanda", "wanda+refit", "wanda+swaps-box"]

    def refitted(problem, nnz, *, n_threads, **others):
        return refit(problem, solve(problem, "wanda", nnz=nnz, scope="layer"), damping=0.2)

    own = prune_network(network, X, sparsity=0.5, recipe=Recipe(steps=refitted))
    assert found.rows[1].error == pytest.approx(own.output_error, rel=TOLERANCE["reordered"])
    plain, refit_row, swapped = (row.error for row in found.rows)
    assert swapped < refit_row < plain
    mine = compare(network, X, solvers={"mine": refitted}, sparsities=[0.5]).rows
    assert [row.label for row in mine] == ["mine"] and mine[0].error == found.rows[1].error


def test_batches_that_can_be_read_once_serve_all_rows(trained):
    network, X, fresh = trained
    options = {"solvers": ["obd", "wanda"], "sparsities": SPARSITIES}
    arrays = compare(network, X, X_heldout=fresh, **options)
    batches = compare(
        network, (part for part in np.split(X, 4)), X_heldout=Calibration(fresh), **options
    )
    for one, other in zip(arrays.rows, batches.rows, strict=True):
        assert one.error == pytest.approx(other.error, rel=TOLERANCE["reordered"])
        assert one.heldout_error == pytest.approx(other.heldout_error, rel=TOLERANCE["reordered"])


def test_layers_may_be_left_out(trained):
    network, X, _ = trained
    (row,) = compare(
        network, X, solvers=["obd"], sparsities=[0.5], recipe=Recipe(skip="scores")
    ).rows
    assert row.nnz == 40 + 24 and row.warnings == ()


# What fails, what ends it -----------------------------------------------------------------------


def test_a_cell_that_fails_has_a_row_that_says_why(trained, monkeypatch):
    network, X, _ = trained

    def fail(*args):
        raise MemoryError("too large")

    monkeypatch.setattr(wanda, "solve", fail)
    names = ["wanda", "admm-published", "obd"]
    found = compare(network, X, solvers=names, sparsities=[0.5], refit=True)
    large, unsupported, *good = found.rows
    assert large.failure == "SolverError: hidden: MemoryError: too large; scores: MemoryError: " \
        "too large"  # fmt: skip
    assert large.error is large.nnz is large.status is None
    assert "admm-published" in unsupported.failure and "pooled" in unsupported.failure
    assert [row.label for row in good] == ["obd", "obd+refit"] and found.complete
    assert "admm-published at 0.5 failed" in str(found)


def test_the_callback_and_the_time_limit_end_it(trained, monkeypatch):
    network, X, _ = trained
    seen = []
    options = {"solvers": ["obd", "wanda"], "sparsities": SPARSITIES}
    found = compare(network, X, callback=lambda row: seen.append(row) or len(seen) == 3, **options)
    assert found.rows == tuple(seen) and len(seen) == 3 and not found.complete
    assert compare(network, X, time_limit=1e-9, **options).rows == ()

    def slow(problem, nnz, *, time_limit, **others):
        time.sleep(0.3)
        return solve(problem, "obd", nnz=nnz)

    found = compare(network, X, solvers={"slow": slow}, sparsities=SPARSITIES, time_limit=0.2)
    (row,) = found.rows
    assert not found.complete and row.status == Status.TIME_LIMIT.label
    assert any("scores not reached" in warning for warning in row.warnings)


def test_ctrl_c_returns_the_rows_so_far(trained, monkeypatch):
    network, X, _ = trained

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(wanda, "solve", interrupt)
    found = compare(network, X, solvers=["obd", "wanda", "magnitude"], sparsities=[0.5])
    assert [row.solver for row in found.rows] == ["obd", "wanda"] and not found.complete
    assert found.rows[1].status == Status.INTERRUPTED.label


def test_memory_json_and_plot(trained, tmp_path):
    pytest.importorskip("matplotlib", reason="plots need the extra 'plot'")
    network, X, fresh = trained
    found = compare(
        network, X, solvers=["obd"], sparsities=[0.5], X_heldout=fresh, measure_memory=True
    )
    assert network.layers[0].W.nbytes < found.rows[0].peak_memory < 1e8
    assert Comparison.from_json(found.to_json()) == found
    figure = found.plot(tmp_path / "found.png")
    assert figure.axes[0].get_ylabel() == "relative error of the network's output"
    with pytest.raises(NettrimError, match="what must be one of"):
        found.plot(what="activation_error")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X": None}, "X must hold inputs"),
        ({"X": np.ones((4, 9))}, "X: .*must have shape"),
        ({"X": np.full((4, 10), np.nan)}, "X: .*finite"),
        ({"X_heldout": np.ones((4, 9))}, "X_heldout: .*must have shape"),
        ({"Y_heldout": np.ones((4, 3))}, "Y_heldout belongs to a Problem"),
        ({"Z_heldout": np.ones((4, 3))}, "Z_heldout belongs to a Problem"),
        ({"solvers": ["nothing"]}, "solvers must be among"),
        ({"sparsities": [1.0]}, r"sparsities must lie in \[0, 1\)"),
        ({"settings": {"obd": {"colour": 1}}}, r"settings\['obd'\] may hold.*colour"),
        ({"settings": {"obd": {"damping": -1}}}, "damping must lie in"),
        ({"solvers": ["bast"]}, "solvers must be among.*did you mean"),
        ({"recipe": "bast"}, "recipe must be a Recipe or one of"),
        ({"recipe": Recipe(skip="nothing")}, "skip must name layers"),
        ({"solvers": {"a": Recipe(skip="nothing")}}, "skip must name layers"),
        ({"mode": "parallel"}, r"mode is no argument of compare\(\) any more.*mode='parallel'"),
        ({"accuracy": 1}, "accuracy must be callable"),
        ({"time_limit": -1}, "time_limit must lie in"),
    ],
)
def test_bad_input_is_refused_before_any_work(trained, changes, message, monkeypatch):
    monkeypatch.setattr(
        comparing.NetworkRun, "everything", lambda *args: pytest.fail("work was begun")
    )
    network, X, _ = trained
    X = changes.pop("X", X)
    with pytest.raises(NettrimError, match=message):
        compare(network, X, **{"solvers": ["obd"]} | changes)


@pytest.mark.parametrize("name", ["sparsity", "colour"])
def test_unknown_arguments_are_refused(trained, name):
    network, X, _ = trained
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        compare(network, X, **{name: 0.5})
