"""The comparison: its numbers against direct computation, its rows, its forms, what it refuses."""

import dataclasses
import json
import sys
import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp

from nettrim_solver import Comparison, Problem, compare, refit, solve, swaps
from nettrim_solver.activations import get_activation
from nettrim_solver.compare import layer, samples
from nettrim_solver.comparison import Row
from nettrim_solver.exceptions import (
    MissingDependencyError,
    NettrimError,
    ProblemError,
    SettingsError,
    UnsupportedError,
)
from nettrim_solver.solvers import SOLVERS, exact_obs, magnitude

from .tolerances import TOLERANCE

PRUNERS = [name for name, info in SOLVERS.items() if info.needs_W]


def norm(A):
    return np.sqrt(np.sum(np.square(A, dtype=np.float64)))


def make(activation="relu", intercept=True, dtype=np.float64, seed=0):
    """A trained layer of correlated inputs, and fresh samples for it."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((70, 8)) @ rng.standard_normal((8, 8)) + rng.standard_normal((70, 8))
    W, b = rng.standard_normal((8, 5)), rng.standard_normal(5)
    X, W, b = X.astype(dtype), W.astype(dtype), b.astype(dtype) if intercept else None
    Z = X[:40] @ W + (0 if b is None else b)
    Y = get_activation(activation)(Z)
    return Problem(X[:40], Y, W, b, activation=activation, intercept=intercept), X[40:]


@pytest.fixture(scope="module")
def found():
    problem, fresh = make()
    return compare(problem, X_heldout=fresh, refit=True, swaps=True)


# Rows -------------------------------------------------------------------------------------------


def test_every_pruner_and_the_default_solver_appear_at_every_sparsity(found):
    rows = {(row.solver, row.refinement, row.sparsity) for row in found.rows}
    assert rows == {
        (name, refinement, sparsity)
        for name in ("admm", *PRUNERS)
        for refinement in ("", "refit", "swaps")
        for sparsity in (0.5, 0.7, 0.9)
    }
    assert len(found.rows) == len(rows) and found.complete and found.n_heldout == 30
    assert [row.failure for row in found.rows] == [None] * len(rows)


def test_all_have_the_zeros_asked_for_and_only_the_convex_solver_a_proof(found):
    for row in found.rows:
        assert row.nnz == 40 - round(40 * row.sparsity) and row.zeros == 1 - row.nnz / 40
        alone = row.label == "admm"
        assert row.proved == alone and (row.gap is not None) == alone
        assert row.status == ("optimal" if alone else "pruned")


def test_refinements_do_not_raise_the_error_and_add_their_time(found):
    rows = {(row.solver, row.refinement, row.sparsity): row for row in found.rows}
    for (name, refinement, sparsity), row in rows.items():
        base = rows[name, "", sparsity]
        assert row.seconds > (base.seconds if refinement else 0)
        if refinement:
            # The pull towards W is part of the objective, hence the slack.
            assert row.error <= base.error * 1.02


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("activation", ["relu", "identity", "tanh"])
def test_the_numbers_are_what_a_direct_computation_gives(activation, intercept, dtype):
    problem, fresh = make(activation, intercept, dtype)
    seen = []

    def accuracy(W, b):
        seen.append((W, b))
        return float(np.sum(W))

    names = ["magnitude", "alps"]
    found = compare(problem, solvers=names, sparsities=[0.6], X_heldout=fresh, accuracy=accuracy)
    f, b = get_activation(activation), 0.0 if problem.b is None else problem.b
    for name, row in zip(names, found.rows, strict=True):
        answer = solve(problem, name, sparsity=0.6)
        assert (answer.b is None) == (not intercept)
        for X, error, behind in (
            (problem.X, row.error, row.activation_error),
            (fresh, row.heldout_error, row.heldout_activation_error),
        ):
            X64, W = X.astype(float), answer.W.astype(float)
            Z = X64 @ problem.W.astype(float) + b
            ours = X64 @ W + (0 if answer.b is None else answer.b)
            close = {"rel": TOLERANCE["kernel_single" if dtype == np.float32 else "reordered"]}
            assert error == pytest.approx(norm(ours - Z) / norm(Z), **close)
            assert behind == pytest.approx(norm(f(ours) - f(Z)) / norm(f(Z)), **close)
        assert row.l1_norm == pytest.approx(np.abs(answer.W).sum(), rel=TOLERANCE["kernel_single"])
        assert row.zeros == answer.sparsity and row.nnz == answer.nnz
        assert row.accuracy == pytest.approx(float(np.sum(answer.W)))
    assert found.trained_accuracy == float(np.sum(problem.W)) and len(seen) == 3
    assert all((b is None) == (not intercept) for _, b in seen)


def test_sparse_samples_give_the_same_errors():
    problem, fresh = make()
    sparse = problem.replace(X=sp.csr_array(problem.X))
    both = [
        compare(layer, solvers=["wanda"], sparsities=[0.5], X_heldout=X).rows[0]
        for layer, X in ((problem, fresh), (sparse, sp.coo_array(fresh)))
    ]
    for name in ("error", "heldout_error", "activation_error", "heldout_activation_error"):
        one, other = (getattr(row, name) for row in both)
        assert one == pytest.approx(other, rel=TOLERANCE["reordered"])


def test_samples_are_measured_in_blocks(monkeypatch):
    problem, fresh = make()
    options = {"solvers": ["obd"], "sparsities": [0.5], "X_heldout": fresh}
    whole = compare(problem, **options).rows[0]
    monkeypatch.setattr(samples, "BLOCK_ENTRIES", 8 * 7)
    blocks = compare(problem, **options).rows[0]
    for name in ("error", "heldout_error", "activation_error", "heldout_activation_error"):
        close = pytest.approx(getattr(whole, name), rel=TOLERANCE["reordered"])
        assert getattr(blocks, name) == close


def test_a_box_has_no_activation_error_and_no_weights_no_pruner():
    problem, fresh = make()
    lower, upper = problem.box()
    box = Problem(problem.X, W=problem.W, b=problem.b, lower=lower, upper=upper)
    row = compare(box, solvers=["obs"], sparsities=[0.5], X_heldout=fresh).rows[0]
    assert row.activation_error is row.heldout_activation_error is None
    assert row.error > 0 and row.heldout_error > 0
    bare = Problem(problem.X, problem.Y)
    found = compare(bare, sparsities=[0.5], X_heldout=fresh, Y_heldout=np.ones((30, 5)))
    assert [row.solver for row in found.rows] == ["admm"]
    assert found.rows[0].error is None and found.rows[0].heldout_error is None
    assert found.rows[0].activation_error > 0 and found.rows[0].heldout_activation_error > 0


def test_behind_pruned_layers_the_targets_must_be_given():
    problem, fresh = make()
    rng = np.random.default_rng(5)
    changed = problem.X + 0.3 * rng.standard_normal(problem.X.shape)
    Z, Z_fresh = problem.X @ problem.W + problem.b, fresh @ problem.W + problem.b
    fresh_changed = fresh + 0.3 * rng.standard_normal(fresh.shape)
    cascade = problem.replace(X=changed, Z=Z)
    options = {"solvers": ["exact_obs"], "sparsities": [0.5], "X_heldout": fresh_changed}
    with pytest.raises(ProblemError, match="Z_heldout or Y_heldout"):
        compare(cascade, **options)
    answer = solve(cascade, "exact_obs", sparsity=0.5)
    row = compare(cascade, **options, Z_heldout=Z_fresh).rows[0]
    for X, target, error in (
        (changed, Z, row.error),
        (fresh_changed, Z_fresh, row.heldout_error),
    ):
        close = pytest.approx(norm(answer.predict(X) - target) / norm(target))
        assert error == close
    row = compare(cascade, **options, Y_heldout=np.maximum(Z_fresh, 0)).rows[0]
    assert row.heldout_error is None and row.heldout_activation_error > 0


def test_a_target_of_zeros_has_no_relative_error():
    problem = Problem(np.eye(3), np.zeros((3, 2)), np.zeros((3, 2)), activation="identity")
    rows = compare(problem, solvers=["magnitude"], sparsities=[0.0]).rows
    assert [row.error for row in rows] == [0.0]
    fresh = compare(
        problem, solvers=["magnitude"], sparsities=[0.0], X_heldout=np.eye(3),
        Z_heldout=np.zeros((3, 2)),
    ).rows[0]  # fmt: skip
    assert fresh.heldout_error == 0.0


def test_a_row_says_why_it_has_more_zeros_than_asked():
    X = np.random.default_rng(3).standard_normal((60, 10))
    found = compare(Problem(X, X[:, :2], activation="identity"), sparsities=[0.3])
    (row,) = found.rows
    assert row.nnz == 2 and "although 14 may stay" in row.warnings[0]
    assert f"admm at 0.3: {row.warnings[0]}" in str(found)


# What is reused, what fails, what ends it -------------------------------------------------------


def test_the_removals_are_traced_once(monkeypatch):
    calls = []
    trace = exact_obs.trace_removals
    monkeypatch.setattr(
        exact_obs, "trace_removals", lambda *args: calls.append(args) or trace(*args)
    )
    problem, _ = make()
    rows = compare(problem, solvers=["exact_obs"]).rows
    assert len(calls) == 1
    for row in rows:
        alone = compare(problem, solvers=["exact_obs"], sparsities=[row.sparsity]).rows[0]
        assert row.error == pytest.approx(alone.error, rel=TOLERANCE["reordered"])


def test_the_search_of_a_convex_solver_goes_on_from_its_answer(monkeypatch):
    starts, search = [], layer.solve

    def watched(*args, warm_start, **options):
        starts.append(warm_start)
        return search(*args, warm_start=warm_start, **options)

    monkeypatch.setattr(layer, "solve", watched)
    problem, _ = make()
    compare(problem, solvers=["admm", "magnitude"], sparsities=[0.4, 0.6])
    assert [start is None for start in starts] == [True, False, True, True]


@pytest.mark.parametrize("error", [MemoryError("too large"), np.linalg.LinAlgError("no")])
def test_a_solver_that_fails_has_a_row_and_the_others_their_turn(monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(magnitude, "solve", fail)
    problem, _ = make()
    found = compare(problem, solvers=["magnitude", "wanda"], sparsities=[0.5], refit=True)
    bad, *good = found.rows
    assert bad.failure == f"{type(error).__name__}: {error}"
    assert bad.error is bad.zeros is bad.status is None and not bad.proved
    assert [row.label for row in good] == ["wanda", "wanda+refit"]
    assert found.complete and f"magnitude at 0.5 failed: {bad.failure}" in found.table()


def test_a_singular_layer_fails_by_name():
    problem, _ = make()
    few = problem.samples(slice(0, 4))
    found = compare(
        few, solvers=["exact_obs", "alps"], sparsities=[0.5], settings={"exact_obs": {"damping": 0}}
    )
    bad, good = found.rows
    assert "damping" in bad.failure and good.failure is None


def test_settings_reach_solvers_and_refinements():
    problem, _ = make()
    settings = {"exact_obs": {"damping": 0.5, "scope": "output"}, "refit": {"damping": 0.2}}
    rows = compare(
        problem, solvers=["exact_obs"], sparsities=[0.5], refit="box", settings=settings
    ).rows
    answer = solve(problem, "exact_obs", sparsity=0.5, damping=0.5, scope="output")
    assert rows[0].activation_error == pytest.approx(
        answer.certificate.activation_error / norm(problem.Y)
    )
    better = refit(problem, answer, "box", 0.2).certificate.activation_error
    assert rows[1].activation_error == pytest.approx(better / norm(problem.Y))


def test_refinements_towards_both_targets():
    problem, _ = make()
    both = ["linear", "box"]
    found = compare(problem, solvers=["obs"], sparsities=[0.7], refit=both, swaps="box")
    labels = [row.label for row in found.rows]
    assert labels == ["obs", "obs+refit", "obs+refit-box", "obs+swaps-box"]
    _, linear, box, swapped = (row.activation_error for row in found.rows)
    assert swapped < box < linear


def test_wanda_keeps_equally_many_of_every_output_unless_told_otherwise():
    problem, _ = make()
    for settings, expected in (({}, "output"), ({"wanda": {"scope": "layer"}}, "layer")):
        row = compare(problem, solvers=["wanda"], sparsities=[0.7], settings=settings).rows[0]
        answer = solve(problem, "wanda", sparsity=0.7, scope=expected)
        assert row.l1_norm == np.abs(answer.W).sum()


def test_names_and_pipelines_of_ones_own():
    problem, _ = make()
    starts = []

    def pipeline(problem, sparsity, previous):
        starts.append(previous)
        return swaps(problem, solve(problem, "wanda", sparsity=sparsity))

    solvers = {"mine": pipeline, "damped": "exact_obs", "exact": "exact_obs", "none": lambda *a: 0}
    settings = {"damped": {"damping": 1.0}, "exact": {"damping": 0.0}, "refit": {"damping": 0.5}}
    found = compare(problem, solvers=solvers, sparsities=[0.5, 0.7], settings=settings, refit=True)
    rows = {(row.label, row.sparsity): row for row in found.rows}
    assert len(rows) == 14 and [start is None for start in starts] == [True, False]
    for sparsity in (0.5, 0.7):
        assert rows["exact", sparsity].error < rows["damped", sparsity].error
        answer = pipeline(problem, sparsity, None)
        expected = norm(answer.predict(problem.X) - problem.X @ problem.W - problem.b)
        expected /= norm(problem.X @ problem.W + problem.b)
        close = pytest.approx(expected, rel=TOLERANCE["reordered"])
        assert rows["mine", sparsity].error == close
        assert "'none' must return a Solution" in rows["none", sparsity].failure
    assert rows["mine+refit", 0.5].status == "pruned"


def test_the_callback_sees_every_row_and_ends_it():
    problem, _ = make()
    seen = []

    def callback(row):
        seen.append(row)
        return len(seen) == 2

    found = compare(problem, solvers=["magnitude", "wanda"], callback=callback)
    assert found.rows == tuple(seen) and not found.complete
    assert "stopped early" in str(found)


def test_ctrl_c_and_the_time_limit_return_what_there_is(monkeypatch):
    problem, _ = make()
    found = compare(problem, solvers=["magnitude", "wanda"], time_limit=1e-9)
    assert found.rows == () and not found.complete

    def interrupt(*args):
        raise KeyboardInterrupt

    module = sys.modules["nettrim_solver.solvers.wanda"]
    monkeypatch.setattr(module, "solve", interrupt)
    found = compare(problem, solvers=["magnitude", "wanda", "obd"], sparsities=[0.5])
    assert [row.solver for row in found.rows] == ["magnitude"] and not found.complete


def test_memory_is_measured_on_demand_alone():
    problem, _ = make()
    options = {"solvers": ["magnitude"], "sparsities": [0.5]}
    assert compare(problem, **options).rows[0].peak_memory is None
    peak = compare(problem, **options, measure_memory=True).rows[0].peak_memory
    assert problem.W.nbytes < peak < 1e7
    assert not tracemalloc.is_tracing()


def test_nothing_given_is_changed_and_runs_agree():
    problem, fresh = make()
    before = [a.copy() for a in (problem.X, problem.Y, problem.W, problem.b, fresh)]
    settings = {"refit": {"damping": 0.1}}
    first, second = (
        compare(problem, X_heldout=fresh, refit=True, swaps=True, settings=settings, n_threads=1)
        for _ in range(2)
    )
    for was, now in zip(before, (problem.X, problem.Y, problem.W, problem.b, fresh), strict=True):
        np.testing.assert_array_equal(was, now)
    assert settings == {"refit": {"damping": 0.1}}
    for one, other in zip(first.rows, second.rows, strict=True):
        assert dataclasses.replace(one, seconds=0) == dataclasses.replace(other, seconds=0)
    assert first.n_threads == 1


# Forms ------------------------------------------------------------------------------------------


def test_the_table_is_aligned_and_leaves_out_what_is_empty(found):
    head, *lines = found.table().splitlines()[1:]
    assert len(lines) == len(found.rows) and str(found) == found.table()
    assert "accuracy" not in head and "MB" not in head and head.count("held-out") == 2
    assert len({line.index(" 0.") for line in lines if "magnitude" in line}) == 1
    assert lines[0].split()[:3] == ["admm", "0.5", "50.00"]
    empty = Comparison(rows=(), problem="nothing")
    assert "solver" in empty.table()


def test_json_round_trip(found, tmp_path):
    assert Comparison.from_json(found.to_json()) == found
    path = tmp_path / "found.json"
    assert found.to_json(path) == path.read_text()
    assert json.loads(path.read_text())["rows"][0]["solver"] == "admm"
    assert [p.name for p in tmp_path.iterdir()] == ["found.json"]
    odd_row = Row("a", "", 0.5, error=np.inf, failure="inf", warnings=("1", "b"))
    odd = Comparison((odd_row,), "odd", complete=False)
    assert Comparison.from_json(odd.to_json()) == odd
    with pytest.raises(OSError):
        found.to_json(tmp_path / "none" / "found.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [{"colour": 1}], "problem": ""}'])
def test_other_text_is_no_comparison(text):
    with pytest.raises(SettingsError, match="to_json"):
        Comparison.from_json(text)


@pytest.mark.parametrize("what", ["error", "activation_error"])
def test_the_plot_has_a_panel_per_set_of_samples_and_a_line_per_answer(found, tmp_path, what):
    pytest.importorskip("matplotlib", reason="plots need the extra 'plot'")
    path = tmp_path / "found.png"
    figure = found.plot(path, what)
    assert path.read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 1
    assert len(figure.axes) == 2
    labels = {row.label for row in found.rows}
    for panel, prefix in zip(figure.axes, ("", "heldout_"), strict=True):
        assert len(panel.get_lines()) == len(labels)
        drawn = {float(y) for line in panel.get_lines() for y in line.get_ydata()}
        assert drawn == {getattr(row, prefix + what) for row in found.rows}


def test_a_plot_without_held_out_samples_has_one_panel():
    pytest.importorskip("matplotlib", reason="plots need the extra 'plot'")
    problem, _ = make()
    assert len(compare(problem, solvers=["magnitude"]).plot().axes) == 1
    assert len(Comparison((), "nothing").plot().axes) == 1


def test_a_plot_without_matplotlib(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"nettrim_solver\[plot\]"):
        found.plot()


def test_a_plot_of_something_else(found):
    with pytest.raises(SettingsError, match="what must be one of"):
        found.plot(what="colour")


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X": np.ones((4, 8))}, r"a Problem has samples .* of its own, but got \['X'\]"),
        ({"recipe": "best"}, r"a Problem has samples .* of its own, but got \['recipe'\]"),
        ({"mode": "parallel"}, r"mode is no argument of compare\(\) any more.*mode='parallel'"),
        ({"solvers": ["best"]}, "solvers must be among"),
        ({"solvers": ["admmm"]}, "did you mean 'admm'"),
        ({"solvers": ["nothing"]}, "solvers must be among"),
        ({"solvers": "admm"}, "solvers must be a sequence"),
        ({"solvers": []}, "solvers must not be empty"),
        ({"solvers": ["obd", "wanda", "obd"]}, r"solvers must be different.*\['obd'\]"),
        ({"solvers": [3]}, "solvers must have names"),
        ({"solvers": {"mine": 3}}, "solvers must be among"),
        ({"solvers": {"mine": "nothing"}}, "solvers must be among"),
        ({"solvers": {"refit": "admm"}}, "solvers must have names other than.*refit"),
        ({"solvers": {}}, "solvers must not be empty"),
        ({"solvers": {"mine": lambda *a: a}, "settings": {"mine": {}}}, "settings must be of"),
        ({"sparsities": [0.5, 1.0]}, r"sparsities must lie in \[0, 1\), but was 1.0"),
        ({"sparsities": [-0.1]}, r"sparsities must lie in \[0, 1\)"),
        ({"sparsities": [float("nan")]}, r"sparsities must lie in \[0, 1\)"),
        ({"sparsities": ["0.5"]}, r"sparsities must lie in \[0, 1\)"),
        ({"sparsities": 0.5}, "sparsities must be a sequence"),
        ({"sparsities": []}, "sparsities must not be empty"),
        ({"sparsities": [0.5, 0.50]}, "sparsities must be different"),
        ({"X_heldout": np.ones((4, 7))}, "X_heldout has 7 inputs.*X has 8"),
        ({"X_heldout": np.full((4, 8), np.nan)}, "X_heldout must be finite"),
        ({"Y_heldout": np.ones((4, 5))}, "X_heldout must be given along with"),
        ({"X_heldout": np.ones((4, 8)), "Y_heldout": np.ones((3, 5))}, "Y_heldout has 3 samples"),
        ({"X_heldout": np.ones((4, 8)), "Y_heldout": np.ones((4, 2))}, "Y_heldout has 2 outputs"),
        ({"X_heldout": np.ones((4, 8)), "Z_heldout": np.ones((4, 2))}, "Z_heldout has 2 outputs"),
        (
            {"X_heldout": np.ones((4, 8)), "Y_heldout": -np.ones((4, 5))},
            "Y_heldout must lie in the range",
        ),
        ({"accuracy": 1.0}, "accuracy must be callable"),
        ({"callback": 1.0}, "callback must be callable"),
        ({"refit": "yes"}, "refit must be one of .*box"),
        ({"refit": ["box", "box"]}, "refit must be different"),
        ({"swaps": 1}, "swaps must be a sequence"),
        ({"settings": {"refit": {"target": "box"}}, "refit": True}, "may hold.*target"),
        ({"measure_memory": None}, "measure_memory must be True or False"),
        ({"time_limit": 0}, "time_limit must lie in"),
        ({"n_threads": 0}, "n_threads"),
        ({"settings": [1]}, "settings must map"),
        ({"settings": {"obd": 1}}, "settings must map"),
        ({"settings": {"obd": {"scope": "all"}}}, "scope must be one of"),
        ({"settings": {"refit": {}}}, "settings must be of .*refit"),
        ({"settings": {"obd": {}}, "solvers": ["wanda"]}, "settings must be of"),
        ({"settings": {"obd": {"sparsity": 0.5}}}, r"settings\['obd'\] may hold.*sparsity"),
        ({"settings": {"obd": {"colour": 1}}}, r"settings\['obd'\] may hold.*colour"),
        ({"settings": {"admm": {"rho": -1}}}, "rho"),
        ({"settings": {"swaps": {"colour": 1}}, "swaps": True}, "may hold.*colour"),
    ],
)
def test_bad_input_is_refused_before_any_work(changes, message, monkeypatch):
    monkeypatch.setattr(layer.LayerRun, "everything", lambda *args: pytest.fail("work was begun"))
    problem, _ = make()
    with pytest.raises(NettrimError, match=message):
        compare(problem, **changes)


def test_bad_problems():
    problem, fresh = make()
    with pytest.raises(ProblemError, match="must be a Problem or a Network, but was a ndarray"):
        compare(np.eye(3), np.eye(3))
    with pytest.raises(ProblemError, match="formulation must be a form with a radius"):
        compare(problem.replace(formulation="penalised", lambda_=1.0))
    with pytest.raises(UnsupportedError, match="give W"):
        compare(Problem(problem.X, problem.Y), solvers=["magnitude"])
    with pytest.raises(ProblemError, match="Z_heldout or Y_heldout"):
        compare(Problem(problem.X, problem.Y), X_heldout=fresh)
    lower, upper = problem.box()
    with pytest.raises(ProblemError, match="Y_heldout needs an activation"):
        box = Problem(problem.X, lower=lower, upper=upper)
        compare(box, X_heldout=fresh, Y_heldout=np.ones((30, 5)))
