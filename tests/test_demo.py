"""The demonstration: the shipped network, what the command prints and writes."""

import dataclasses
import json
import sys
from importlib import resources

import numpy as np
import pytest

from nettrim_solver import Recipe, Status, demo, prune_network
from nettrim_solver.cli import main
from nettrim_solver.demo import DemoNetwork, prune_demo
from nettrim_solver.exceptions import SettingsError
from nettrim_solver.frameworks import from_npz
from nettrim_solver.terminal import Screen
from tests.tolerances import TOLERANCE


@pytest.fixture(scope="module")
def digits() -> DemoNetwork:
    return demo.load_demo_network()


@pytest.fixture(scope="module")
def small() -> DemoNetwork:
    """A random network that is pruned in no time; its labels are its own answers."""
    rng = np.random.default_rng(3)
    sizes = [6, 5, 4, 3]
    weights = [
        rng.standard_normal(s).astype(np.float32) for s in zip(sizes, sizes[1:], strict=False)
    ]
    biases = [rng.standard_normal(n).astype(np.float32) for n in sizes[1:]]
    X, X_test = rng.random((40, 6)), rng.random((20, 6))
    made = DemoNetwork(tuple(weights), tuple(biases), X, np.empty(40), X_test, np.empty(20), {})
    labels = {f"y_{part}": made.network(x).argmax(axis=1).astype(np.uint8)
              for part, x in (("train", X), ("test", X_test))}  # fmt: skip
    return dataclasses.replace(made, **labels)


@pytest.fixture
def small_demo(monkeypatch, small):
    """The command on the small network."""
    monkeypatch.setattr(demo, "load_demo_network", lambda: small)


def test_shipped_data_is_small_and_the_digits(digits):
    from sklearn.datasets import load_digits

    path = resources.files("nettrim_solver") / "data" / "digits_mlp.npz"
    assert len(path.read_bytes()) < 500_000
    pixels = np.concatenate([digits.X_train, digits.X_test]) * demo.PIXEL_SCALE
    ours = np.column_stack([pixels, np.concatenate([digits.y_train, digits.y_test])])
    theirs = np.column_stack(load_digits(return_X_y=True))
    assert np.array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_network_reaches_its_recorded_accuracy_in_float32(digits):
    outputs = digits.network(digits.X_test.astype(np.float32))
    assert outputs.dtype == np.float32
    right = np.sum(outputs.argmax(axis=1) == digits.y_test)
    recorded = digits.metadata["test_accuracy"]
    assert abs(right - recorded * len(digits.y_test)) <= TOLERANCE["argmax_ties"]
    assert recorded > 0.97
    assert digits.accuracy(digits.network) == pytest.approx(recorded, abs=0.004)


def test_the_network_is_a_perceptron_by_hand():
    W, b = (np.array([[1.0, -1.0]]), np.array([[2.0], [3.0]])), (np.array([0.0, 1.0]), np.zeros(1))
    made = DemoNetwork(W, b, *(np.zeros((1, 1)),) * 4, {})
    assert made.network(np.array([[2.0], [-2.0]])).tolist() == [[4.0], [9.0]]


def test_every_recipe_prunes_to_every_sparsity_by_the_one_call(small):
    found = [*prune_demo(small, [0.5, 0.75])]
    assert [(name, sparsity) for name, sparsity, _ in found] == [
        (name, sparsity) for name in ("magnitude", "best") for sparsity in (0.5, 0.75)
    ]
    for name, sparsity, result in found:
        recipe = Recipe(steps="magnitude") if name == "magnitude" else "best"
        alone = prune_network(small.network, small.X_train, sparsity=sparsity, recipe=recipe)
        assert result.nnz == alone.nnz == 62 - round(62 * sparsity)
        for one, other in zip(result.network.layers, alone.network.layers, strict=True):
            np.testing.assert_array_equal(one.W, other.W)


@pytest.mark.parametrize("grid", [[], [1.0], [-0.1], [0.1, np.nan], [np.inf]])
def test_bad_sparsities(grid):
    with pytest.raises(SettingsError, match="sparsities"):
        demo.checked_sparsities(grid)


def test_repeated_sparsities_count_once():
    assert demo.checked_sparsities([0.9, 0.8, 0.9]) == (0.8, 0.9)


def test_demo_command_writes_networks_and_picture(tmp_path, capsys, small_demo, small):
    folder = tmp_path / "new" / "folder"
    words = ["demo", "--sparsities", "0.5", "0.75", "--tolerance", "0.2", "--output", str(folder)]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and "\x1b" not in captured.out and captured.out.isascii()
    assert "Every convex program is proved optimal." in captured.out
    assert all(len(line) <= 80 for line in captured.out.splitlines() if str(folder) not in line)
    assert sorted(path.name for path in folder.iterdir()) == [
        "tolerance-0.2.npz", "zeros-0.5.npz", "zeros-0.75.npz", "zeros-accuracy.png"
    ]  # fmt: skip
    assert (folder / "zeros-accuracy.png").read_bytes().startswith(b"\x89PNG")
    rows = [line.split() for line in captured.out.splitlines() if " best " in line]
    for row, sparsity in zip(rows, ("0.5", "0.75"), strict=True):
        network = from_npz(folder / f"zeros-{sparsity}.npz")
        assert row[0] == f"{100 * network.sparsity:.1f}"
        assert row[2] == f"{100 * small.accuracy(network):.1f}"


def test_both_stages_of_a_tolerance_keep_the_radius(tmp_path, capsys, small_demo, small):
    words = ["demo", "--sparsities", "0.5", "--tolerance", "0.2", "--output", str(tmp_path)]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tolerance"]["proved"] and found["trained"] == 1.0
    network = from_npz(tmp_path / "tolerance-0.2.npz")
    assert found["tolerance"]["accuracy"] == small.accuracy(network)
    assert found["tolerance"]["nnz"] == network.nnz
    for layer in found["tolerance"]["layers"]:
        first = layer["stages"][0]
        assert first["status"] == "optimal" and abs(first["gap"]) <= TOLERANCE["proved"]
        assert layer["distance"] <= layer["epsilon"] * (1 + TOLERANCE["proved"])
        assert layer["nnz"] <= first["nnz"]
    assert [*found["zeros"]] == ["magnitude", "best"]


def test_demo_without_matplotlib_has_no_picture_and_says_so_first(
    tmp_path, capsys, monkeypatch, small_demo
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["demo", "--sparsities", "0.5", "--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "No picture" in lines[0] and "matplotlib" in lines[0]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".npz", ".npz"]


def test_demo_without_proof_is_1(small, capsys):
    from nettrim_solver.cli.demo import show_tolerance

    result = prune_network(small.network, small.X_train, tolerance=0.2, recipe="net-trim")
    assert show_tolerance(Screen(), result, 0.2, 1.0)
    first, *others = result.layers
    first = dataclasses.replace(first, status=Status.TIME_LIMIT)
    result = dataclasses.replace(result, layers=(first, *others))
    capsys.readouterr()
    assert not show_tolerance(Screen(), result, 0.2, 1.0)
    out = capsys.readouterr().out
    assert "1 of 3 convex programs are without proof" in out and "Every convex" not in out


def test_demo_into_a_file_is_2(tmp_path, capsys):
    path = tmp_path / "taken"
    path.write_text("mine")
    assert main(["demo", "--output", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"nettrim: error: {path}: ")
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    "words",
    [["--sparsities", "1"], ["--sparsities", "nan"], ["--sparsities", "much"],
     ["--tolerance", "-1"], ["--tolerance", "nan"], ["--tolerances", "0.1"]],
)  # fmt: skip
def test_demo_with_bad_numbers_is_2(words, tmp_path, capsys):
    assert main(["demo", *words, "--output", str(tmp_path / "no")]) == 2
    assert words[0].strip("-s")[:8] in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_the_demonstration_impresses(tmp_path, capsys, digits):
    """At 95 % zeros nothing is lost, where magnitude loses all."""
    assert main(["demo", "--sparsities", "0.95", "--output", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    ((zeros, best),) = found["zeros"]["best"]
    ((_, magnitude),) = found["zeros"]["magnitude"]
    assert zeros == pytest.approx(0.95, abs=1e-3)
    assert best > digits.accuracy(digits.network) - 0.01 and magnitude < 0.5
    assert found["tolerance"]["proved"]
