"""Layer paths: what the zeros of one layer cost, and the curves made of it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettrim_solver.exceptions import NettrimError, ProblemError, SettingsError, SolverError
from nettrim_solver.network import (
    Activate,
    Conv2d,
    Dense,
    Flatten,
    LayerPath,
    Network,
    layer_path,
    plot_paths,
    probing,
)

from .helpers import prune
from .tolerances import TOLERANCE

RNG = np.random.default_rng(31)
X = RNG.standard_normal((90, 8))
HELD = RNG.standard_normal((40, 8))
GRID = (0.25, 0.5, 0.8)


def small(dtype=np.float64):
    rng = np.random.default_rng(5)
    return Network(
        [
            Dense(rng.standard_normal((8, 6)).astype(dtype), np.zeros(6), name="first"),
            Activate("relu"),
            Dense(rng.standard_normal((6, 4)).astype(dtype), np.ones(4), name="second"),
        ]
    )


def squared_error(network, other, samples):
    target = network(samples)
    return np.sum((other(samples) - target) ** 2) / np.sum(target**2)


# Measuring --------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["alps", "magnitude", "l0", "exact_obs", "admm"])
@pytest.mark.parametrize("name", ["first", "second"])
def test_points_are_what_pruning_that_layer_alone_does(solver, name):
    network = small()
    path = layer_path(network, name, X, GRID, solver=solver, X_heldout=HELD)
    other = {"first": "second", "second": "first"}[name]
    size = network.layer(name).W.size
    assert path.nnz.tolist() == [0, *(size - round(s * size) for s in GRID[::-1]), size]
    close = TOLERANCE["same_count" if solver == "admm" else "reordered"]
    for k, nnz in enumerate(path.nnz[1:-1].tolist(), start=1):
        alone = prune(
            network, X, mode="parallel", nnz={name: nnz}, skip=other, steps=solver, X_heldout=HELD
        )
        assert path.errors[k] == pytest.approx(alone.layer(name).error, rel=close)
        assert path.errors_heldout[k] == pytest.approx(alone.layer(name).error_heldout, rel=close)
        own = squared_error(network, alone.network, X), squared_error(network, alone.network, HELD)
        found = path.output_errors[k], path.output_errors_heldout[k]
        assert found == pytest.approx(own, rel=2 * close)


def test_no_weights_leave_the_best_constant_and_all_weights_cost_nothing():
    network = small()
    path = layer_path(network, "second", X, [0.5])
    Z = network(X)
    expected = np.sum((Z - Z.mean(axis=0)) ** 2) / np.sum(Z**2)
    assert path.output_errors[0] == pytest.approx(expected, rel=TOLERANCE["reordered"])
    assert path.errors[0] == pytest.approx(expected**0.5, rel=TOLERANCE["reordered"])
    assert path.errors[-1] == path.output_errors[-1] == 0.0


def test_convolutions_with_groups_have_paths():
    rng = np.random.default_rng(3)
    network = Network(
        [
            Conv2d(rng.standard_normal((4, 1, 2, 2)), np.zeros(4), groups=2, name="conv"),
            Activate("relu"),
            Flatten(),
            Dense(rng.standard_normal((36, 3)), name="dense"),
        ],
        input_shape=(2, 4, 4),
    )
    images = rng.standard_normal((30, 2, 4, 4))
    path = layer_path(network, "conv", images, [0.3, 0.7])
    assert path.size == 16 and path.nnz.tolist() == [0, 5, 11, 16]
    assert np.all(np.diff(path.output_errors) < 0)


def test_the_same_call_gives_the_same_bits_and_leaves_its_arguments_alone():
    network, samples = small(), X.copy()
    W = network.layer("first").W.copy()
    one, two = (layer_path(network, "first", samples, GRID, max_rows=50, seed=3) for _ in "ab")
    np.testing.assert_array_equal(one.output_errors, two.output_errors)
    np.testing.assert_array_equal(samples, X)
    np.testing.assert_array_equal(network.layer("first").W, W)
    other = layer_path(network, "first", samples, GRID, max_rows=50, seed=4)
    assert np.any(other.output_errors != one.output_errors)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "third"}, "no operation 'third'"),
        ({"sparsities": [0.5, 1.0]}, r"sparsities must lie in \[0, 1\), but was 1.0"),
        ({"sparsities": 0.5}, "sparsities must be numbers, but was 0.5"),
        ({"solver": "none"}, "one was 'none'"),
        ({"settings": {"speed": 1}}, "unknown setting 'speed'"),
        ({"X": X[:, :5]}, "X: "),
        ({"X_heldout": X[:, :5]}, "X_heldout: "),
        ({"network": None}, "network must be a Network"),
        ({"max_rows": 0}, "max_rows must be an integer >= 1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    given = {"network": small(), "name": "first", "X": X} | arguments
    with pytest.raises(NettrimError, match=message):
        layer_path(**given)


def test_samples_without_any_output_have_no_relative_error():
    network = Network([Dense(np.ones((8, 2)), np.zeros(2), name="one")])
    with pytest.raises(ProblemError, match="output must be finite and not all zero"):
        layer_path(network, "one", X, [0.5], X_heldout=np.zeros((5, 8)))


def test_a_solver_that_fails_is_named_with_its_layer(monkeypatch):
    monkeypatch.setattr(probing, "solve", lambda *args, **options: None)
    with pytest.raises(SolverError, match="layer 'first' at 24 nonzeros: .* returned a NoneType"):
        layer_path(small(), "first", X, [0.5])


# Curves -----------------------------------------------------------------------------------------


def curve(nnz, values, size=None, **more):
    nnz, values = np.array(nnz), np.array(values, dtype=np.float64)
    return LayerPath("layer", int(size or nnz[-1]), nnz, values**0.5, values, **more)


@given(
    power=st.floats(0.1, 3.0), at=st.lists(st.integers(2, 1000), min_size=1, max_size=5),
)  # fmt: skip
def test_a_power_law_is_interpolated_exactly(power, at):
    nnz = np.array([2, 10, 300, 1000])
    path = curve(nnz, nnz**-power)
    exact = np.array(at, dtype=np.float64) ** -power
    np.testing.assert_allclose(path.output_error_at(at), exact, rtol=TOLERANCE["reordered"])


values = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1.0)), min_size=2, max_size=6)


@given(values=values, data=st.data())
def test_measured_points_are_met_and_nothing_leaves_their_range(values, data):
    nnz = sorted(data.draw(st.sets(st.integers(0, 50), min_size=len(values), max_size=len(values))))
    path = curve(nnz, values)
    np.testing.assert_allclose(path.output_error_at(nnz), values, rtol=TOLERANCE["reordered"])
    every = path.output_error_at(np.arange(60))
    low, high = min(values), max(values)
    assert np.all(every >= low * (1 - TOLERANCE["reordered"]))
    assert np.all(every <= high * (1 + TOLERANCE["reordered"]))
    assert path.output_error_at(3) == every[3]


@given(values=values, data=st.data())
def test_the_minorant_is_the_largest_convex_curve_below(values, data):
    nnz = sorted(data.draw(st.sets(st.integers(0, 40), min_size=len(values), max_size=len(values))))
    path = curve(nnz, values, size=40)
    low = data.draw(st.integers(0, 20))
    high = data.draw(st.integers(low, 40))
    corners, errors = path.minorant(low, high)
    k = np.arange(low, high + 1)
    below, above = np.interp(k, corners, errors), path.output_error_at(k)
    assert corners[0] == low and corners[-1] == high
    slack = TOLERANCE["reordered"]
    assert np.all(below <= above + slack)
    assert np.all(np.diff(np.diff(errors) / np.diff(corners)) >= -slack) or len(corners) < 3
    # Any convex curve below is, at every k, below the chord of any two points around it.
    for at in range(len(k)):
        chords = [
            above[i] + (above[j] - above[i]) * (at - i) / max(j - i, 1)
            for i in range(at + 1)
            for j in range(at, len(k))
        ]
        assert below[at] >= min(chords) - slack


@given(values=values, data=st.data())
def test_nnz_for_is_the_first_that_reaches_the_error(values, data):
    nnz = sorted(data.draw(st.sets(st.integers(0, 40), min_size=len(values), max_size=len(values))))
    path = curve(nnz, sorted(values, reverse=True), size=40)
    error = data.draw(st.floats(0.0, 1.2))
    reached = np.flatnonzero(path.error_at(np.arange(41)) <= error)
    assert path.nnz_for(error) == (reached[0] if len(reached) else 40)


def test_a_point_worse_than_one_with_fewer_weights_does_not_count():
    path = curve([0, 10, 20, 40], [1.0, 0.04, 0.09, 0.0])
    assert path.nnz_for(0.2) == 10


def test_held_out_errors_are_what_budgets_are_spread_by():
    path = curve([1, 10], [1.0, 0.1], output_errors_heldout=np.array([1.0, 0.5]))
    assert path.output_error_at(10) == 0.5
    assert path.error_at(10) == pytest.approx(0.1**0.5, rel=TOLERANCE["norm"])
    assert path.times(2.0).output_error_at(10) == 1.0


# Reports ----------------------------------------------------------------------------------------


def test_a_path_as_json_has_every_number():
    path = layer_path(small(), "first", X, GRID)
    read = json.loads(json.dumps(path.to_dict()))
    assert read["nnz"] == path.nnz.tolist() and read["output_errors"] == path.output_errors.tolist()
    assert read["sparsities"][0] == 1.0 and read["errors_heldout"] is None


def test_plots_are_files_without_pyplot(tmp_path):
    pytest.importorskip("matplotlib")
    network = small()
    both = [layer_path(network, name, X, GRID, X_heldout=HELD) for name in ("first", "second")]
    both[0].plot(tmp_path / "one.png")
    figure = plot_paths(both, tmp_path / "both.svg")
    assert (tmp_path / "one.png").read_bytes()[1:4] == b"PNG"
    assert b"<svg" in (tmp_path / "both.svg").read_bytes()
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["first", "second"]
    code = "import nettrim_solver.network.plots, sys; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_sparsities_are_those_of_the_counts():
    np.testing.assert_array_equal(curve([0, 5, 10], [1, 0.5, 0]).sparsities, [1.0, 0.5, 0.0])
    with pytest.raises(SettingsError):
        layer_path(small(), "first", X, ["half"])
