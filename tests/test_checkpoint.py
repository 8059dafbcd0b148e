"""Runs that are interrupted: the same bits afterwards, and refusal of anything that changed."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nettrim_solver import Status, solve
from nettrim_solver.exceptions import ProblemError, ProblemFileError
from nettrim_solver.frameworks.npz import from_npz, to_npz
from nettrim_solver.network import Calibration
from nettrim_solver.network.checkpoint import hash_data, hash_network, versions

from .helpers import prune
from .test_modes import convnet, images, mlp, same_weights, samples

X = samples()

SCRIPT = """
import os, signal, sys
import numpy as np
from nettrim_solver import prune_network
from nettrim_solver.frameworks.npz import from_npz, to_npz

folder, where = sys.argv[1], sys.argv[2]
die = lambda: os.kill(os.getpid(), signal.SIGKILL)

def callback(at):
    # In the middle of the second layer's solve.
    if where == "solving" and at.layer == "W1" and at.progress is not None:
        die()

if where == "writing":
    real = os.replace
    def replace(source, target):
        if "layer" in str(target):
            die()
        real(source, target)
    os.replace = replace

network = from_npz(folder + "/network.npz")
X = np.load(folder + "/X.npy")
result = prune_network(
    network, X, tolerance=0.2, recipe="net-trim", checkpoint=folder + "/run", callback=callback
)
to_npz(result.network, folder + "/pruned.npz")
"""


def run_script(folder, where):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), where], capture_output=True, text=True
    )


def layer_files(folder):
    return sorted(path.name for path in Path(folder).glob("layer-*.npz"))


def test_a_killed_run_goes_on_and_gives_the_same_bits(tmp_path):
    network = mlp()
    to_npz(network, tmp_path / "network.npz")
    np.save(tmp_path / "X.npy", X)
    killed = run_script(tmp_path, "solving")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(layer_files(tmp_path / "run")) == 1
    first = (tmp_path / "run" / layer_files(tmp_path / "run")[0]).read_bytes()
    # The second file is not there before it is whole.
    killed = run_script(tmp_path, "writing")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(layer_files(tmp_path / "run")) == 1
    done = run_script(tmp_path, "nowhere")
    assert done.returncode == 0, done.stderr
    assert len(layer_files(tmp_path / "run")) == 3
    assert (tmp_path / "run" / layer_files(tmp_path / "run")[0]).read_bytes() == first
    whole = prune(network, X, tolerance=0.2)
    same_weights(from_npz(tmp_path / "pruned.npz"), whole.network)


@pytest.mark.parametrize("mode", ["cascade", "parallel"])
def test_a_stopped_run_goes_on_where_it_was(mode, tmp_path):
    network, data = convnet(), images()
    arguments = {"tolerance": 0.3, "mode": mode, "X_heldout": images(9, 8)}
    whole = prune(network, data, **arguments)
    arguments["checkpoint"] = tmp_path / "new" / "folder"
    part = prune(network, data, callback=lambda at: at.layer == "third", **arguments)
    assert part.status is Status.INTERRUPTED and len(layer_files(arguments["checkpoint"])) == 2
    solved = []
    again = prune(
        network, data, callback=lambda at: at.progress and solved.append(at.layer), **arguments
    )  # fmt: skip
    assert set(solved) == {"third", "last"}
    same_weights(again.network, whole.network)
    for one, other in zip(again.layers, whole.layers, strict=True):
        mine, theirs = one.to_dict(), other.to_dict()
        assert mine.pop("seconds") >= 0 and theirs.pop("seconds") >= 0
        assert mine == theirs
    # A finished run is read back whole, without the callback of any solver.
    solved.clear()
    same_weights(prune(network, data, **arguments).network, whole.network)
    assert solved == []


def changed_network():
    network = mlp()
    W = np.array(network.layer("W2").W)
    W[0, 0] = np.nextafter(W[0, 0], 1)
    return network.replace({"W2": (W, network.layer("W2").b)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": changed_network()}, "what changed: weights "),
        ({"X": np.vstack([X, X[:1]])}, "what changed: calibration data "),
        ({"X": X.astype(np.float32)}, "what changed: calibration data "),
        ({"mode": "parallel"}, r"what changed: mode \(was 'cascade', is 'parallel'\)"),
        ({"seed": 1}, r"seed \(was 0, is 1\)"),
        ({"tolerance": 0.25}, r"tolerance of layer 'W0' \(was 0.2, is 0.25\); tolerance of layer"),
        (
            {"steps": {"step": "admm", "max_iter": 9}},
            r"steps of layer 'W0' \(was Pipeline\(admm\), is Pipeline\(admm\(max_iter=9\)\)\)",
        ),
        ({"layers": {"W1": {"steps": "obs"}}}, r"changed: steps of layer 'W1' \(was Pipeline\(a"),
        ({"skip": "W1"}, r"what changed: skip of layer 'W1' \(was False, is True\)"),
        ({"steps": solve}, r"steps of layer 'W0' \(was Pipeline\(admm\), is nett"),
    ],
)
def test_a_run_that_differs_is_refused(change, message, tmp_path):
    given = {"network": mlp(), "X": X, "tolerance": 0.2, "checkpoint": tmp_path}
    prune(given["network"], X, tolerance=0.2, checkpoint=tmp_path, skip=[])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    given |= change
    with pytest.raises(ProblemError, match=message) as caught:
        prune(given.pop("network"), given.pop("X"), **given)
    assert "Use another folder" in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("module", "name"),
    [("nettrim_solver", "nettrim_solver"), ("numpy", "numpy"), ("scipy", "scipy")],
)
def test_layers_of_two_versions_are_not_mixed(module, name, tmp_path, monkeypatch):
    prune(mlp(), X, tolerance=0.2, checkpoint=tmp_path)
    monkeypatch.setattr(f"{module}.__version__", "0.0.1")
    with pytest.raises(ProblemError, match=rf"changed: version of {name} \(was .*, is '?0.0.1"):
        prune(mlp(), X, tolerance=0.2, checkpoint=tmp_path)


def test_the_fingerprint_names_the_blas():
    code = (
        "import numpy, nettrim_solver.network.checkpoint as c; print(c.versions()['BLAS of numpy'])"
    )
    alone = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert versions()["BLAS of numpy"] == alone.stdout.strip()
    assert re.search(r"\w.* \d+\.\d+", alone.stdout)


def test_what_changes_no_weights_may_change(tmp_path):
    network = mlp()
    first = prune(network, X, tolerance=0.2, checkpoint=tmp_path)
    batches = [X[:70], X[70:]]
    second = prune(
        network, batches, tolerance=0.2, checkpoint=tmp_path, time_limit=99, n_threads=1,
        callback=lambda at: None, X_heldout=X[:9], spill=tmp_path,
    )  # fmt: skip
    same_weights(first.network, second.network)
    assert second.output_error_heldout is not None


def test_layers_that_failed_are_tried_again(tmp_path):
    state = {"broken": True}

    def pipeline(problem, nnz, **_):
        if state["broken"] and problem.n_inputs == 9:
            raise RuntimeError("out of luck")
        return solve(problem, "magnitude")

    arguments = {"tolerance": 0.2, "steps": pipeline, "checkpoint": tmp_path}
    assert prune(mlp(), X, mode="parallel", **arguments).layer("W1").outcome == "failed"
    state["broken"] = False
    assert prune(mlp(), X, mode="parallel", **arguments).layer("W1").pruned


@pytest.mark.parametrize("inside", ["missing/below", ""])
def test_an_unwritable_folder_is_an_error_before_work(inside, tmp_path):
    (tmp_path / "file").write_text("in the way")
    calls = []
    with pytest.raises(ProblemError, match="checkpoint must be a folder that can be written to"):
        prune(
            mlp(), X, tolerance=0.2, checkpoint=tmp_path / "file" / inside,
            callback=calls.append,
        )  # fmt: skip
    assert not calls


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(tmp_path, monkeypatch):
    from nettrim_solver.network import checkpoint as module

    def full(path, arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_arrays", full)
    result = prune(mlp(), X, tolerance=0.2, checkpoint=tmp_path)
    assert all(report.pruned for report in result.layers) and layer_files(tmp_path) == []
    assert "checkpoint: layer 'W0' cannot be written to" in result.layer("W0").warnings[-1]
    assert "No space left" in result.table()


def test_damaged_and_foreign_files_are_named(tmp_path):
    network = mlp()
    prune(network, X, tolerance=0.2, checkpoint=tmp_path / "a")
    prune(network, X, tolerance=0.3, checkpoint=tmp_path / "b")
    name = layer_files(tmp_path / "a")[1]
    whole = (tmp_path / "a" / name).read_bytes()
    (tmp_path / "a" / name).write_bytes(whole[:300] + b"x" + whole[301:])
    with pytest.raises(ProblemFileError, match=name):
        prune(network, X, tolerance=0.2, checkpoint=tmp_path / "a")
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(ProblemError, match=f"{name} belongs to another run; delete it"):
        prune(network, X, tolerance=0.2, checkpoint=tmp_path / "a")
    (tmp_path / "a" / name).unlink()
    prune(network, X, tolerance=0.2, checkpoint=tmp_path / "a")
    assert (tmp_path / "a" / name).exists()

    run = tmp_path / "a" / "run.json"
    content = json.loads(run.read_text())
    run.write_text(json.dumps(content | {"format": "nettrim_solver.checkpoint/9"}))
    with pytest.raises(ProblemError, match="is of the format 'nettrim_solver.checkpoint/9'"):
        prune(network, X, tolerance=0.2, checkpoint=tmp_path / "a")
    run.write_text("{")
    with pytest.raises(ProblemError, match="run.json cannot be read"):
        prune(network, X, tolerance=0.2, checkpoint=tmp_path / "a")


def test_names_that_are_no_file_names_have_files_of_their_own(tmp_path):
    from nettrim_solver.network import Activate, Dense, Network

    W = np.random.default_rng(0).standard_normal((12, 4))
    network = Network(
        [Dense(W, name="a/b"), Activate("relu"), Dense(W[:4], name="a_b"), Dense(W[:4], name="..")]
    )
    whole = prune(network, X, tolerance=0.2, checkpoint=tmp_path)
    assert len(layer_files(tmp_path)) == 3
    same = prune(network, X, tolerance=0.2, checkpoint=tmp_path)
    for one, other in zip(same.network.layers, whole.network.layers, strict=True):
        np.testing.assert_array_equal(one.W, other.W)
        assert one.b is other.b is None


def test_hashes_see_every_bit_and_nothing_else():
    network = mlp()
    assert hash_network(network) == hash_network(mlp())
    assert hash_network(network) != hash_network(changed_network())
    assert hash_network(network) != hash_network(mlp(activation="leaky_relu"))
    assert hash_network(network) != hash_network(network.astype(np.float32))
    assert hash_data(Calibration(X)) == hash_data(Calibration([X[:9], X[9:]], batch_size=4))
    assert hash_data(Calibration(X)) != hash_data(Calibration(X[::-1]))
    assert hash_data(Calibration(X)) != hash_data(Calibration(X.astype(np.float32)))
