"""The demonstration: shipped network, pruning, files, tables."""

import dataclasses
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

import nettrim_solver
from nettrim_solver import Status, certify, demo
from nettrim_solver.cli import main
from nettrim_solver.demo import DemoNetwork, PrunedNetwork, Step, prune_demo, prune_sweep
from nettrim_solver.exceptions import SettingsError
from nettrim_solver.terminal import LiveScreen, Screen, make_screen, show_pruned
from tests.tolerances import TOLERANCE


@pytest.fixture(scope="module")
def network() -> DemoNetwork:
    return demo.load_demo_network()


@pytest.fixture(scope="module")
def small() -> DemoNetwork:
    """A random network that is solved in no time."""
    rng = np.random.default_rng(3)
    sizes = [6, 5, 4, 3]
    weights = [
        rng.standard_normal(s).astype(np.float32) for s in zip(sizes, sizes[1:], strict=False)
    ]
    biases = [rng.standard_normal(n).astype(np.float32) for n in sizes[1:]]
    X, X_test = rng.random((40, 6)), rng.random((20, 6))
    labels = [
        np.argmax(demo.forward_pass(weights, biases, x)[-1], axis=1).astype(np.uint8)
        for x in (X, X_test)
    ]
    return DemoNetwork(tuple(weights), tuple(biases), X, labels[0], X_test, labels[1], {})


@pytest.fixture(scope="module")
def pruned(small) -> list[PrunedNetwork]:
    return prune_demo([0.1, 0.3], network=small)


def test_shipped_data_is_small_and_the_digits(network):
    from sklearn.datasets import load_digits

    path = resources.files("nettrim_solver") / "data" / "digits_mlp.npz"
    assert len(path.read_bytes()) < 500_000
    pixels = np.concatenate([network.X_train, network.X_test]) * demo.PIXEL_SCALE
    ours = np.column_stack([pixels, np.concatenate([network.y_train, network.y_test])])
    theirs = np.column_stack(load_digits(return_X_y=True))
    assert np.array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_network_reaches_its_recorded_accuracy_in_float32(network):
    X = network.X_test.astype(np.float32)
    outputs = demo.forward_pass(network.weights, network.biases, X)
    assert {signal.dtype for signal in outputs} == {np.dtype(np.float32)}
    right = np.sum(np.argmax(outputs[-1], axis=1) == network.y_test)
    recorded = network.metadata["test_accuracy"]
    assert abs(right - recorded * len(network.y_test)) <= TOLERANCE["argmax_ties"]
    assert recorded > 0.97


def test_forward_pass_by_hand():
    W, b = [np.array([[1.0, -1.0]]), np.array([[2.0], [3.0]])], [np.array([0.0, 1.0]), np.zeros(1)]
    hidden, last = demo.forward_pass(W, b, np.array([[2.0], [-2.0]]))
    assert hidden.tolist() == [[2.0, 0.0], [0.0, 3.0]]
    assert last.tolist() == [[4.0], [9.0]]


def test_trained_weights_lie_in_every_layers_box(network):
    problems = demo.layer_problems(network)
    assert [p.activation.name for p in problems] == ["relu", "relu", "identity"]
    assert all(p.joint and p.intercept and p.formulation == "pooled" for p in problems)
    for problem in problems:
        judged = certify(problem.replace(tolerance=0.1), problem.W, problem.b)
        assert judged.distance <= TOLERANCE["norm"] * np.linalg.norm(problem.target_norms)


def test_pruned_layers_are_proved_and_within_epsilon(pruned, small):
    for result, problems in zip(pruned, [demo.layer_problems(small)] * 2, strict=True):
        assert result.proved
        for layer, problem in zip(result.layers, problems, strict=True):
            assert layer.epsilon == pytest.approx(
                result.tolerance * np.linalg.norm(problem.Y), rel=TOLERANCE["norm"]
            )
            error = np.linalg.norm(
                problem.activation(layer.solution.predict(problem.X)) - problem.Y
            )
            assert layer.error_ratio == pytest.approx(error / layer.epsilon)
            assert layer.error_ratio <= 1 + TOLERANCE["proved"]
    assert pruned[0].sparsity < pruned[1].sparsity


def test_accuracies_and_zeros_are_those_of_the_arrays(pruned, small):
    result = pruned[1]
    arrays = result.arrays()
    assert list(arrays) == ["W0", "b0", "W1", "b1", "W2", "b2"]
    signal = small.X_test
    for i in range(3):
        signal = signal @ arrays[f"W{i}"] + arrays[f"b{i}"]
        signal = np.maximum(signal, 0) if i < 2 else signal
    assert result.accuracy == np.mean(np.argmax(signal, axis=1) == small.y_test)
    assert result.accuracy_before == 1.0
    weights = np.concatenate([arrays[f"W{i}"].ravel() for i in range(3)])
    assert result.sparsity == pytest.approx(np.mean(weights == 0))


def test_each_layer_starts_from_its_solution_before(small, monkeypatch):
    calls, real = [], demo.solve

    def spy(problem, solver, **options):
        calls.append((options["warm_start"], real(problem, solver, **options)))
        return calls[-1][1]

    monkeypatch.setattr(demo, "solve", spy)
    prune_demo([0.1, 0.2], network=small)
    assert [start for start, _ in calls] == [None] * 3 + [solution for _, solution in calls[:3]]


def test_steps_count_the_layers(small):
    steps: list[Step] = []
    prune_demo([0.1, 0.2], network=small, report=steps.append)
    assert [s.done for s in steps if s.progress is None] == [0, *np.repeat(range(1, 6), 2), 6]
    assert {s.total for s in steps} == {6} and {s.layer for s in steps} == {"W0", "W1", "W2"}


def test_ctrl_c_keeps_what_is_finished(small, monkeypatch):
    calls, real = [], demo.solve

    def interrupted(*args, **options):
        calls.append(real(*args, **options))
        if len(calls) < 5:
            return calls[-1]
        return dataclasses.replace(
            calls[-1], status=Status.INTERRUPTED, statuses=(Status.INTERRUPTED,) * 4
        )

    monkeypatch.setattr(demo, "solve", interrupted)
    finished = []
    with pytest.raises(KeyboardInterrupt):
        for result in prune_sweep([0.1, 0.2], network=small):
            finished.append(result.tolerance)
    assert finished == [0.1] and len(calls) == 5


@pytest.mark.parametrize("grid", [[], [0.0], [-0.1], [0.1, np.nan], [np.inf]])
def test_bad_tolerances(grid):
    with pytest.raises(SettingsError, match="tolerances"):
        prune_demo(grid)


def test_repeated_tolerances_count_once():
    assert demo.checked_tolerances([0.2, 0.1, 0.2]) == (0.2, 0.1)


def test_plain_table(pruned, capsys):
    show_pruned(Screen(), pruned[0])
    title, header, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("tolerance 0.1: ") and title.endswith("%")
    assert header.split() == ["layer", "shape", "zeros", "%", "error/eps", "gap", "violation",
                              "seconds", "status"]  # fmt: skip
    assert [row.split()[:4] for row in rows[:3]] == [
        ["W0", "6", "x", "5"], ["W1", "5", "x", "4"], ["W2", "4", "x", "3"]
    ]  # fmt: skip
    assert all(row.endswith("optimal") for row in rows[:3]) and rows[3:] == [""]
    assert len({row.rindex("optimal") for row in rows[:3]}) == 1


def test_live_table_and_bar(pruned, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert type(make_screen(quiet=True)) is Screen
    screen = make_screen()
    assert isinstance(screen, LiveScreen)
    with screen.progress() as update:
        update("tolerance 0.1, W0", 1, 3)
        show_pruned(screen, pruned[0])
    shown = capsys.readouterr().out
    assert "\x1b[" in shown and "error/eps" in shown and "tolerance 0.1, W0" in shown
    monkeypatch.setenv("TERM", "dumb")
    assert type(make_screen()) is Screen


def test_demo_command_writes_weights_and_plot(tmp_path, capsys, network):
    folder = tmp_path / "new" / "folder"
    assert main(["demo", "--tolerances", "0.3", "--output", str(folder)]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and "\x1b" not in captured.out and captured.out.isascii()
    assert "tolerance 0.3: " in captured.out and captured.out.count("optimal\n") == 3
    assert "Every layer is proved optimal." in captured.out
    assert sorted(path.name for path in folder.iterdir()) == [
        "pruned-0.3.npz", "zeros-accuracy.png"
    ]  # fmt: skip
    assert (folder / "zeros-accuracy.png").read_bytes().startswith(b"\x89PNG")
    with np.load(folder / "pruned-0.3.npz", allow_pickle=False) as file:
        weights = [file[f"W{i}"] for i in range(3)]
        accuracy = network.accuracy(weights, [file[f"b{i}"] for i in range(3)])
    assert [W.shape for W in weights] == [W.shape for W in network.weights]
    assert f"-> {100 * accuracy:.1f} %" in captured.out


def test_demo_without_matplotlib_skips_the_plot(tmp_path, capsys, monkeypatch, small):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(demo, "load_demo_network", lambda: small)
    assert main(["demo", "--tolerances", "0.3", "--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("Plot skipped" in line and "matplotlib" in line for line in lines) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pruned-0.3.npz"]


def test_demo_without_proof_is_1(tmp_path, capsys, monkeypatch, small):
    real = demo.solve

    def unproved(*args, **options):
        return dataclasses.replace(real(*args, **options), status=Status.TIME_LIMIT)

    monkeypatch.setattr(demo, "solve", unproved)
    monkeypatch.setattr(demo, "load_demo_network", lambda: small)
    assert main(["demo", "--tolerances", "0.3", "--output", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "without proof" in out and "Every layer" not in out


def test_demo_into_a_file_is_2(tmp_path, capsys):
    path = tmp_path / "taken"
    path.write_text("mine")
    assert main(["demo", "--output", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"nettrim: error: {path}: ")
    assert path.read_text() == "mine"


@pytest.mark.parametrize("words", [["0"], ["nan"], ["-1"], ["much"]])
def test_demo_with_bad_tolerances_is_2(words, tmp_path, capsys):
    assert main(["demo", "--tolerances", *words, "--output", str(tmp_path / "no")]) == 2
    assert "tolerances" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_demo_on_a_terminal(tmp_path):
    """A real pseudo-terminal: the bar moves, the exit code is 0."""
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    command = ["-m", "nettrim_solver", "demo", "--tolerances", "0.3", "--output", str(tmp_path)]
    running = subprocess.Popen(
        [sys.executable, *command],
        cwd=Path(nettrim_solver.__file__).parent.parent,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"}, stdout=follower, stderr=follower,
    )  # fmt: skip
    os.close(follower)
    shown = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(leader)
    assert running.wait() == 0, shown.decode()
    assert b"\x1b[" in shown and b"error/eps" in shown and b"tolerance 0.3, W1" in shown
