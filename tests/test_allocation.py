"""Allocation: budgets of a network spread over its layers."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettrim_solver.exceptions import NettrimError
from nettrim_solver.network import (
    Activate,
    Add,
    Calibration,
    Dense,
    LayerPath,
    Network,
)
from nettrim_solver.network.allocation import Allocator, allocate, measure_paths, split
from nettrim_solver.network.choices import Execution
from nettrim_solver.network.probing import Prober, measuring_recipe
from nettrim_solver.network.spreading import (
    least_nnz,
    spread_by_output,
    spread_by_tolerance,
    spread_evenly,
)

from .helpers import prune
from .tolerances import TOLERANCE

ALPS = measuring_recipe("alps"), Execution()
RNG = np.random.default_rng(32)
X = RNG.standard_normal((120, 8))


def small():
    rng = np.random.default_rng(6)
    return Network(
        [
            Dense(rng.standard_normal((8, 6)), np.zeros(6), name="first"),
            Activate("relu"),
            Dense(rng.standard_normal((6, 5)), np.zeros(5), name="second"),
            Activate("relu"),
            Dense(rng.standard_normal((5, 3)), np.zeros(3), name="third"),
        ]
    )


def with_a_useless_layer():
    """A branch that is never active is added to the input: it changes nothing."""
    rng = np.random.default_rng(7)
    return Network(
        [
            Dense(0.1 * rng.standard_normal((8, 8)), -1e3 * np.ones(8), name="useless"),
            Activate("relu", name="silent"),
            Add(inputs=("silent", "input"), name="sum"),
            Dense(rng.standard_normal((8, 5)), np.zeros(5), name="useful"),
        ],
        input_shape=(8,),
    )


def path_of(values, name="layer"):
    """A path with a measured point for every number of nonzeros."""
    values = np.array(values, dtype=np.float64)
    return LayerPath(name, len(values) - 1, np.arange(len(values)), values**0.5, values)


falling = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=5).map(
    lambda drops: np.append(np.cumsum(drops[::-1])[::-1], 0.0)
)
layers = st.lists(falling, min_size=1, max_size=3).map(
    lambda curves: {f"layer{i}": path_of(values) for i, values in enumerate(curves)}
)


def splits(paths, budget, least):
    """All ways to spread a budget."""
    names, ranges = list(paths), [range(least[n], p.size + 1) for n, p in paths.items()]
    for counts in itertools.product(*ranges):
        if sum(counts) == budget:
            yield dict(zip(names, counts, strict=True))


def draw_budget(data, paths):
    least = {n: data.draw(st.integers(0, min(2, p.size))) for n, p in paths.items()}
    most = sum(p.size for p in paths.values())
    return data.draw(st.integers(sum(least.values()), most)), least


# The three rules --------------------------------------------------------------------------------


@given(paths=layers, data=st.data())
def test_output_errors_are_least_among_all_splits(paths, data):
    budget, least = draw_budget(data, paths)
    minorants = {n: p.minorant(least[n]) for n, p in paths.items()}

    def cost(counts):
        return sum(np.interp(counts[n], *minorants[n]) for n in counts)

    found = spread_by_output(paths, budget, least)
    assert sum(found.values()) == budget
    assert all(least[n] <= found[n] <= paths[n].size for n in paths)
    best = min(map(cost, splits(paths, budget, least)))
    assert cost(found) == pytest.approx(best, abs=TOLERANCE["reordered"])


@given(paths=layers, data=st.data())
def test_tolerance_has_the_least_largest_error_of_all_splits(paths, data):
    budget, least = draw_budget(data, paths)

    def worst(counts):
        return max(paths[n].errors[counts[n]] for n in counts)

    found = spread_by_tolerance(paths, budget, least)
    assert sum(found.values()) == budget
    assert all(least[n] <= found[n] <= paths[n].size for n in paths)
    best = min(map(worst, splits(paths, budget, least)))
    assert worst(found) == pytest.approx(best, abs=TOLERANCE["reordered"])


@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5), share=st.floats(0, 1))
def test_uniform_shares_differ_by_less_than_one_weight(sizes, share):
    named = {str(i): size for i, size in enumerate(sizes)}
    budget = round(share * sum(sizes))
    found = spread_evenly(named, budget)
    assert sum(found.values()) == budget
    for name, size in named.items():
        assert abs(found[name] - budget * size / sum(sizes)) < 1
        assert 0 <= found[name] <= size


@pytest.mark.parametrize("spread", [spread_by_output, spread_by_tolerance])
@given(paths=layers, data=st.data())
def test_more_weights_take_none_from_any_layer(spread, paths, data):
    least = dict.fromkeys(paths, 0)
    most = sum(p.size for p in paths.values())
    small = data.draw(st.integers(0, most))
    large = data.draw(st.integers(small, most))
    fewer, more = spread(paths, small, least), spread(paths, large, least)
    if spread is spread_by_output:
        assert all(fewer[n] <= more[n] for n in paths)
    else:  # Left-overs are given to the first layers, one tolerance apart at most.
        assert max(p.errors[more[n]] for n, p in paths.items()) <= max(
            p.errors[fewer[n]] for n, p in paths.items()
        )


@given(paths=layers, factor=st.sampled_from([0.25, 2.0, 1024.0]), data=st.data())
def test_a_common_factor_of_the_errors_changes_nothing(paths, factor, data):
    budget, least = draw_budget(data, paths)
    scaled = {n: p.times(factor) for n, p in paths.items()}
    one = spread_by_output(paths, budget, least)
    other = spread_by_output(scaled, budget, least)
    costs = [sum(np.interp(c[n], *paths[n].minorant(least[n])) for n in c) for c in (one, other)]
    assert costs[0] == pytest.approx(costs[1], abs=TOLERANCE["reordered"])


def test_the_order_of_the_layers_does_not_matter():
    paths = {"a": path_of([9, 4, 1, 0]), "b": path_of([20, 6, 0.5, 0]), "c": path_of([1, 0.2, 0])}
    least = dict.fromkeys(paths, 0)
    turned = dict(reversed(paths.items()))
    for budget in range(9):
        assert spread_by_output(paths, budget, least) == spread_by_output(turned, budget, least)


# Networks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["output_error", "tolerance", "uniform"])
@pytest.mark.parametrize("mode", ["cascade", "parallel"])
@pytest.mark.parametrize("sparsity", [0.0, 0.4, 0.77])
def test_totals_are_exact_and_can_be_pruned_to(method, mode, sparsity):
    network = small()
    budgets = allocate(network, X, sparsity=sparsity, method=method, mode=mode)
    total = 93 - round(sparsity * 93)
    assert sum(budgets.values()) == total
    result = prune(network, X, nnz=budgets, steps="alps", mode=mode)
    assert result.nnz == total


@pytest.mark.parametrize("method", ["output_error", "tolerance"])
def test_a_useless_layer_is_emptied_first(method):
    network = with_a_useless_layer()
    assert allocate(network, X, nnz=48, method=method) == {"useless": 8, "useful": 40}
    assert allocate(network, X, nnz=30, method=method) == {"useless": 8, "useful": 22}
    # Every output keeps one weight, and what nothing needs comes last.
    assert allocate(network, X, nnz=50, method=method) == {"useless": 10, "useful": 40}


def test_uniform_needs_no_data():
    assert (
        allocate(small(), sparsity=0.5, method="uniform")
        == {
            "first": 24,
            "second": 15,
            "third": 8,
        }
        or sum(allocate(small(), sparsity=0.5, method="uniform").values()) == 47
    )
    with pytest.raises(NettrimError, match="method='tolerance' needs calibration data"):
        allocate(small(), sparsity=0.5, method="tolerance")


def test_skipped_layers_do_not_count():
    network = small()
    budgets = allocate(network, X, nnz=60, skip="third")
    assert list(budgets) == ["first", "second"] and sum(budgets.values()) == 60
    half = allocate(network, X, sparsity=0.5, skip="third")
    assert sum(half.values()) == 39  # of 48 and 30


def test_measured_paths_can_be_used_again():
    network = small()
    paths = measure_paths(network, X)
    assert allocate(network, X, nnz=40, paths=paths) == allocate(network, nnz=40, paths=paths)


def test_the_same_call_gives_the_same_budgets():
    assert allocate(small(), X, nnz=30) == allocate(small(), X, nnz=30)


def test_a_network_of_twelve_layers_gains():
    rng = np.random.default_rng(12)
    widths = [8, 16, *[8] * 10, 3]
    operations = []
    for n, m in zip(widths[:-1], widths[1:], strict=True):
        operations += [Dense(rng.standard_normal((n, m)) * (2 / n) ** 0.5), Activate("relu")]
    network = Network(operations[:-1])
    samples, held = rng.standard_normal((200, 8)), rng.standard_normal((200, 8))
    errors = {}
    for method in ("output_error", "uniform"):
        budgets = allocate(network, samples, sparsity=0.5, method=method)
        result = prune(network, samples, nnz=budgets, steps="alps", X_heldout=held)
        assert result.sparsity == 0.5 and len(budgets) == 12
        errors[method] = result.output_error_heldout
    assert errors["output_error"] < 0.9 * errors["uniform"]


@pytest.mark.parametrize("method", ["shape", "output_error"])
def test_the_split_with_the_best_draft_is_taken(method, monkeypatch):
    network, errors = small(), iter([0.3, 0.1, 0.2])
    splits = []

    def draft(self, state, budgets, place):
        splits.append(dict(budgets))
        return state

    monkeypatch.setattr(Allocator, "_onward", draft)
    monkeypatch.setattr(Prober, "output_error", lambda self, network: next(errors))
    assert allocate(network, X, nnz=40, method=method) == splits[1]
    assert len(splits) == (2 if method == "shape" else 3)
    assert all(sum(split.values()) == 40 for split in splits)


def test_every_sample_is_used_or_held_out():
    samples = np.arange(24.0).reshape(12, 2)
    used, held = split(Calibration([samples[:7], samples[7:]], batch_size=5))
    rows = np.concatenate([*used.batches(), *held.batches()])
    assert len(held) == 2 and sorted(map(tuple, rows)) == sorted(map(tuple, samples))


def test_the_least_is_a_weight_per_output_that_has_any():
    W = np.ones((4, 3))
    W[:, 1] = 0
    assert least_nnz(Dense(W, name="a")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give one of nnz and sparsity"),
        ({"nnz": 10, "sparsity": 0.5}, "give one of nnz and sparsity"),
        ({"sparsity": 1.0}, r"sparsity must lie in \[0, 1\)"),
        ({"nnz": -1}, "nnz must be an integer >= 0"),
        ({"nnz": 13}, r"14 to 93 nonzeros together .* the nearest is nnz=14, sparsity=0.8495"),
        ({"nnz": 94}, "the nearest is nnz=93, sparsity=0"),
        ({"nnz": 50, "skip": "first"}, "8 to 45 nonzeros"),
        ({"nnz": 50, "method": "best"}, "method must be one of"),
        ({"nnz": 50, "mode": "serial"}, "mode must be one of"),
        ({"nnz": 50, "skip": ["first", "second", "third"]}, "at least one layer"),
        ({"nnz": 50, "skip": "fourth"}, "matches none"),
        ({"nnz": 50, "paths": {"first": path_of([1, 0])}}, "paths must hold one of every layer"),
        ({"nnz": 50, "solver": "none"}, "one was 'none'"),
        ({"nnz": 50, "X": None}, "needs calibration data"),
        ({"nnz": 50, "X": X[:, :3]}, "X: "),
        ({"nnz": 50, "network": [1]}, "network must be a Network"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    given = {"network": small(), "X": X} | arguments
    with pytest.raises(NettrimError, match=message):
        allocate(**given)


def test_paths_of_another_network_are_refused():
    paths = measure_paths(small(), X)
    wide = Network([Dense(np.ones((8, 4)), name="first")])
    with pytest.raises(NettrimError, match=r"paths\['first'\] must be of 32 weights, but is of 48"):
        allocate(wide, X, nnz=20, paths=paths)
