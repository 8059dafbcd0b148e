"""Budgets of a whole network: totals, largest errors, and floors under an accuracy."""

import json

import numpy as np
import pytest

from nettrim_solver.exceptions import NettrimError, SettingsError, SolverError
from nettrim_solver.network import Activate, Dense, Network
from nettrim_solver.network.allocation import allocate
from nettrim_solver.network.target import score
from nettrim_solver.pipeline import Pipeline, Refit, Solve
from nettrim_solver.status import Status

from .helpers import prune

SPREAD = {"allocation": "output_error"}
RNG = np.random.default_rng(33)
X, HELD = RNG.standard_normal((100, 8)), RNG.standard_normal((80, 8))


def small():
    rng = np.random.default_rng(9)
    return Network(
        [
            Dense(rng.standard_normal((8, 6)), np.zeros(6), name="first"),
            Activate("relu"),
            Dense(rng.standard_normal((6, 3)), np.zeros(3), name="second"),
        ]
    )


NETWORK = small()


def search(network, X, **given):
    """Prune to what is searched for, the weights spread by the output error."""
    return prune(network, X, **SPREAD | given)


LABELS = NETWORK(HELD).argmax(axis=1)


def agreement(network):
    return np.mean(network(HELD).argmax(axis=1) == LABELS)


def weights_of(result):
    return [layer.W for layer in result.network.layers]


def consistent(result, floor, better=1.0):
    """A search's answer is the sparsest final trial that met the demand."""
    final = [trial for trial in result.trials if trial.stage == "final"]
    met = [trial for trial in final if better * trial.value >= better * floor]
    assert all(trial.met == (trial in met) for trial in final)
    assert result.nnz == min(trial.nnz for trial in met)
    assert better * result.value >= better * floor


# Totals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["admm", "alps", "magnitude"])
@pytest.mark.parametrize("allocation", ["output_error", "tolerance", "uniform"])
def test_a_sparsity_is_that_of_the_network(solver, allocation):
    result = prune(NETWORK, X, sparsity=0.5, steps=solver, allocation=allocation)
    assert result.nnz == 33 and result.status in (Status.OPTIMAL, Status.PRUNED)
    nonzeros = {one.name: one.nnz for one in result.layers}
    assert nonzeros == allocate(NETWORK, X, sparsity=0.5, method=allocation)
    assert result.budgets == ({} if allocation == "uniform" else nonzeros)


@pytest.mark.parametrize("allocation", ["output_error", "uniform"])
def test_the_budget_is_that_of_the_layers_without_one_of_their_own(allocation):
    """Of 48 weights and 18: a skipped layer, or one with its own budget, does not count."""
    options = {"steps": "magnitude", "allocation": allocation, "nnz": 12}
    skipped = prune(NETWORK, X, skip="second", **options)
    assert [one.nnz for one in skipped.layers] == [12, 18]
    overrides = {"first": {"sparsity": 0.5, "steps": "wanda"}}
    own = prune(NETWORK, X, layers=overrides, **options)
    assert [(one.nnz, one.solver) for one in own.layers] == [(24, "wanda"), (12, "magnitude")]


@pytest.mark.parametrize(("budget", "nnz"), [({"nnz": 30}, [22, 8]), ({"sparsity": 0.75}, [12, 4])])
def test_uniform_is_the_default_of_a_total(budget, nnz):
    result = prune(NETWORK, X, steps="magnitude", **budget)
    assert [one.nnz for one in result.layers] == nnz


def test_layers_with_budgets_of_their_own_keep_them_in_a_search():
    overrides = {"second": {"sparsity": 0.5}}
    result = search(NETWORK, X, max_error=0.5, layers=overrides, steps="alps")
    assert list(result.budgets) == ["first"] and result.layer("second").nnz == 9
    consistent(result, 0.5, better=-1.0)


def test_it_is_the_network_that_the_budgets_give():
    result = prune(
        NETWORK, X, nnz=30, allocation="output_error", steps="l0", mode="parallel", X_heldout=HELD
    )
    same = prune(NETWORK, X, nnz=result.budgets, steps="l0", mode="parallel",
                         X_heldout=HELD)  # fmt: skip
    for one, other in zip(weights_of(result), weights_of(same), strict=True):
        np.testing.assert_array_equal(one, other)
    assert result.output_error_heldout == same.output_error_heldout
    assert result.value is None and result.trials == ()


def test_pipelines_and_overrides_reach_the_layers():
    pipeline = Pipeline(Solve("magnitude"), Refit())
    overrides = {"second": {"steps": "wanda"}}
    result = prune(NETWORK, X, nnz=30, allocation="output_error", steps=pipeline, layers=overrides)
    assert [one.solver for one in result.layers] == ["magnitude+refit", "wanda"]


# Searches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("floor", [0.7, 0.9, 0.95])
@pytest.mark.parametrize("solver", ["admm", "alps"])
def test_the_floor_is_kept_by_the_sparsest_network_tried(floor, solver):
    result = search(
        NETWORK, X, accuracy=agreement, min_accuracy=floor, steps=solver, resolution=0.05
    )
    consistent(result, floor)
    assert result.value == agreement(result.network) and result.sparsity > 0
    assert {one.solver for one in result.layers} == {solver}


def test_sparser_networks_next_to_the_answer_were_tried():
    result = search(NETWORK, X, accuracy=agreement, min_accuracy=0.9, steps="alps", resolution=0.03)
    failed = [trial.nnz for trial in result.trials if trial.stage == "final" and not trial.met]
    below = max(nnz for nnz in failed if nnz < result.nnz)
    assert result.nnz - below <= 1 or result.nnz <= 1.03 * below


def test_an_accuracy_that_jumps_up_and_down_is_no_trouble():
    def jumpy(network):
        return 1.0 if network.nnz == 66 else (network.nnz * 7919 % 13) / 13

    result = search(NETWORK, X, accuracy=jumpy, min_accuracy=0.5, steps="magnitude")
    consistent(result, 0.5)


@pytest.mark.parametrize("largest", [0.1, 0.4])
@pytest.mark.parametrize("mode", ["cascade", "parallel"])
def test_the_largest_error_is_kept(largest, mode):
    result = search(NETWORK, X, max_error=largest, steps="alps", mode=mode)
    consistent(result, largest, better=-1.0)
    assert result.value == result.output_error <= largest


def test_a_lower_floor_gives_a_sparser_network():
    found = [
        search(NETWORK, X, max_error=largest, steps="alps").nnz for largest in (0.05, 0.2, 0.6)
    ]
    assert found[0] > found[1] > found[2]


@pytest.mark.parametrize("largest", [3e-3, 1e-3, 1e-4])
def test_the_search_ends_at_all_weights_where_nothing_else_will_do(largest):
    """The l1 program with one weight less errs by more than the quick pruner."""
    rng = np.random.default_rng(0)
    network = Network([
        Dense(rng.standard_normal((20, 16)) / 4, np.zeros(16)), Activate("relu"),
        Dense(rng.standard_normal((16, 4)) / 4, np.zeros(4)),
    ])  # fmt: skip
    result = search(network, rng.standard_normal((300, 20)), max_error=largest, n_threads=1)
    assert result.output_error <= largest and result.status == "optimal"


def test_everything_down_to_the_least_is_tried():
    result = search(NETWORK, X, accuracy=lambda network: 1, min_accuracy=0,
                              steps="magnitude")  # fmt: skip
    assert result.nnz == 9  # One weight per output.


def test_trials_are_repeatable():
    options = {"max_error": 0.3, "steps": "alps"}
    first = search(NETWORK, X, **options)
    again = search(NETWORK, X, **options)
    assert [t.budgets for t in first.trials] == [t.budgets for t in again.trials]
    for one, other in zip(weights_of(first), weights_of(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_report_has_the_trials():
    result = search(NETWORK, X, max_error=0.3, steps="alps")
    read = json.loads(json.dumps(result.to_dict()))
    assert len(read["trials"]) == len(result.trials) and read["value"] == result.value
    assert read["budgets"] == result.budgets and read["paths"][0]["name"] == "first"
    assert repr(result).startswith("PruningResult(")


# Accuracy functions that misbehave --------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, "0.9", None, True, [0.9], 1j, np.array([0.9])])
def test_what_is_no_number_is_refused_before_any_work(value):
    with pytest.raises(SolverError, match="accuracy must return a finite number, but"):
        search(NETWORK, X, accuracy=lambda network: value, min_accuracy=0.9)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.array(0.5), np.int8(1)])
def test_what_is_a_number_is_taken(value):
    assert score(lambda network: value, NETWORK) == float(value)


def test_its_own_error_is_passed_on():
    def broken(network):
        raise KeyError("no labels")

    with pytest.raises(SolverError, match="accuracy raised KeyError .*no labels") as caught:
        search(NETWORK, X, accuracy=broken, min_accuracy=0.9)
    assert isinstance(caught.value.__cause__, KeyError)


def test_what_was_found_before_an_error_is_not_lost():
    calls = []

    def tired(network):
        calls.append(network)
        if len(calls) > 5:
            raise OSError("disk gone")
        return agreement(network)

    with pytest.raises(SolverError, match="disk gone") as caught:
        search(NETWORK, X, accuracy=tired, min_accuracy=0.9, steps="alps")
    best = caught.value.solution
    assert best.value >= 0.9 and best.value == agreement(best.network)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_floor_above_the_trained_network_names_its_accuracy():
    with pytest.raises(SettingsError, match="min_accuracy is 0.9, but .* has accuracy 0.625"):
        search(NETWORK, X, accuracy=lambda network: 0.625, min_accuracy=0.9)


def test_the_nearest_is_named_when_nothing_meets_the_floor():
    def only_the_trained(network):
        return 1.0 if network is NETWORK else 0.01 * network.nnz

    with pytest.raises(
        SolverError, match="accuracy of at least 0.9: the nearest has acc"
    ) as caught:
        search(NETWORK, X, accuracy=only_the_trained, min_accuracy=0.9, steps="magnitude")
    nearest = caught.value.solution
    assert nearest.value == max(trial.value for trial in nearest.trials)
    assert nearest.budget.to_dict() == {"min_accuracy": 0.9}


# Ends before the end ----------------------------------------------------------------------------


def test_without_time_the_trained_network_comes_back():
    result = search(NETWORK, X, accuracy=agreement, min_accuracy=0.9, time_limit=1e-6)
    assert result.status is Status.TIME_LIMIT and result.value == 1.0 and result.trials == ()
    for one, other in zip(weights_of(result), NETWORK.layers, strict=True):
        np.testing.assert_array_equal(one, other.W)
    total = prune(NETWORK, X, nnz=30, allocation="output_error", time_limit=1e-6)
    assert total.status is Status.TIME_LIMIT


@pytest.mark.parametrize("solver", [None, "alps", "l0"])
def test_a_callback_ends_the_search_with_the_best_so_far(solver):
    """Stopped in the first trial, in the first by the solver asked for, and later."""
    options = {"accuracy": agreement, "min_accuracy": 0.9, "steps": "l0", "resolution": 0.001}
    whole = search(NETWORK, X, **options)
    stages = [trial.stage for trial in whole.trials]
    met = [t.stage == "final" and t.met for t in whole.trials]
    last = {None: 0, "alps": stages.index("final"), "l0": met.index(True) + 1}[solver]
    assert last < len(stages)
    seen = []

    def stop(progress):
        seen.append(progress)
        return progress.trial >= last and progress.stage != "paths"

    result = search(NETWORK, X, callback=stop, **options)
    assert result.status is Status.INTERRUPTED
    assert [t.budgets for t in result.trials] == [t.budgets for t in whole.trials[:last]]
    assert result.value == agreement(result.network) >= 0.9
    if solver is None:
        assert result.sparsity == 0
    else:
        assert {one.solver for one in result.layers} == {solver}
    stages = [*dict.fromkeys(at.stage for at in seen if at.stage != "compiling")]
    assert stages[:2] == ["paths", "probe"]
    assert all(a.elapsed <= b.elapsed for a, b in zip(seen, seen[1:], strict=False))


def test_an_error_of_the_callback_is_its_own():
    def broken(progress):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        prune(NETWORK, X, nnz=30, allocation="output_error", callback=broken)


def test_ctrl_c_keeps_what_was_found():
    calls = []

    def interrupted(network):
        calls.append(network)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return agreement(network)

    result = search(NETWORK, X, accuracy=interrupted, min_accuracy=0.9, steps="magnitude")
    assert result.status is Status.INTERRUPTED and len(result.trials) == 4
    assert result.value >= 0.9


# Checkpoints ------------------------------------------------------------------------------------


def test_networks_tried_before_are_read_again(tmp_path):
    options = {"max_error": 0.3, "steps": "alps", "checkpoint": tmp_path / "run"}
    first = search(NETWORK, X, **options)
    folders = [path for path in (tmp_path / "run").iterdir() if path.is_dir()]
    assert len(folders) == len(first.trials)
    solved = []
    again = search(
        NETWORK, X, callback=lambda at: solved.append(at.progress),
        **options,
    )  # fmt: skip
    assert not any(solved)
    for one, other in zip(weights_of(first), weights_of(again), strict=True):
        np.testing.assert_array_equal(one, other)
    # Another floor may use them, other data may not.
    search(NETWORK, X, **options | {"max_error": 0.31})
    with pytest.raises(NettrimError, match="belongs to another run; what changed: calibration"):
        search(NETWORK, 2 * X, **options)


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "every layer needs a budget"),
        ({"nnz": 30, "sparsity": 0.5}, "give one of tolerance, sparsity, nnz, max_error"),
        ({"nnz": 30, "max_error": 0.5}, r"but \['nnz', 'max_error'\] were given"),
        ({"accuracy": agreement}, "belong together, but min_accuracy is missing"),
        ({"nnz": 30, "min_accuracy": 0.9}, "belong together, but accuracy is missing"),
        ({"accuracy": 0.9, "min_accuracy": 0.9}, "accuracy must be a function"),
        ({"accuracy": agreement, "min_accuracy": "0.9"}, "min_accuracy must lie in"),
        ({"accuracy": agreement, "min_accuracy": np.nan}, "min_accuracy must lie in"),
        ({"max_error": 0.0}, "max_error must lie in"),
        ({**SPREAD, "sparsity": 1.5}, "sparsity must lie in"),
        ({**SPREAD, "nnz": 8}, "the nearest is nnz=9"),
        ({"nnz": 67}, r"nnz must be at most 66, all weights of \['first', 'second'\]"),
        ({"nnz": 30.5}, "nnz must be an integer"),
        ({"nnz": 30, "allocation": "best"}, "allocation must be one of"),
        ({"nnz": 30, "paths": {}}, "paths is gone"),
        ({"nnz": 30, "resolution": 0}, "resolution must lie in"),
        ({"nnz": 30, "time_limit": 0}, "time_limit must lie in"),
        ({"nnz": 30, "callback": 1}, "callback must be callable"),
        ({"nnz": 30, "steps": "none"}, "one was 'none'"),
        ({"max_error": 0.5, "steps": "none"}, "one was 'none'"),
        ({"nnz": 30, "mode": "serial"}, "mode must be one of"),
        ({"max_error": 0.5, "layers": {"third": {"steps": "alps"}}}, "matches none"),
        ({"max_error": 0.5, "skip": "dense"}, "none is left: all are skipped"),
        ({"max_error": 0.5, "skip": 3}, "skip must be a name or a list of names"),
        ({"nnz": 30, "network": None}, "network must be a Network"),
        ({"max_error": 0.5, "X": X[:, :3]}, "X: "),
        ({"max_error": 0.5, "X_heldout": X[:, :3]}, "X_heldout: "),
    ],
)
def test_bad_arguments_are_named_before_any_work(arguments, message):
    given = {"network": NETWORK, "X": X, "callback": lambda at: pytest.fail("it began")} | arguments
    with pytest.raises(NettrimError, match=message):
        prune(**given)
