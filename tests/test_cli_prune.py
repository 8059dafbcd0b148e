"""``nettrim prune``: a network and samples in, a pruned network out, and one line for bad input."""

import json

import numpy as np
import pytest

from nettrim_solver.cli import main
from nettrim_solver.frameworks import from_npz


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(8)
    X = rng.standard_normal((60, 6))
    arrays = {"W0": rng.standard_normal((6, 8)), "b0": rng.standard_normal(8)}
    arrays |= {"W1": rng.standard_normal((8, 3)), "b1": rng.standard_normal(3)}
    np.savez(tmp_path / "network.npz", **arrays)
    np.save(tmp_path / "inputs.npy", X)
    np.savez(tmp_path / "inputs.npz", X=X)
    return tmp_path


def run(folder, *words):
    return main(["prune", str(folder / "network.npz"), *map(str, words)])


@pytest.mark.parametrize("inputs", ["inputs.npy", "inputs.npz"])
@pytest.mark.parametrize("budget", [("--tolerance", 0.2), ("--sparsity", 0.5)])
def test_a_network_is_pruned_and_written(folder, capsys, inputs, budget):
    out = folder / "pruned.npz"
    assert run(folder, "--calibration", folder / inputs, *budget, "-o", out) == 0
    old, new = from_npz(folder / "network.npz"), from_npz(out)
    assert 0 < new.nnz < old.nnz
    text = capsys.readouterr().out
    assert "W0" in text and "optimal" in text and "pruned.npz" in text


def test_json_holds_the_report(folder, capsys):
    words = ("--calibration", folder / "inputs.npy", "--tolerance", 0.2, "-o", folder / "p.npz")
    assert run(folder, *words, "--json", "--heldout", folder / "inputs.npz") == 0
    report = json.loads(capsys.readouterr().out)
    assert [layer["name"] for layer in report["layers"]] == ["W0", "W1"]


def test_a_pruner_ends_well_too(folder):
    words = ("--calibration", folder / "inputs.npy", "--sparsity", 0.5, "-o", folder / "p.npz")
    assert run(folder, *words, "--solver", "alps", "--exclude", "W1") == 0
    assert np.all(from_npz(folder / "p.npz").layer("W1").W != 0)


def test_a_dry_run_writes_nothing(folder, capsys):
    before = sorted(folder.iterdir())
    assert run(folder, "--calibration", folder / "inputs.npy", "--tolerance", 0.2, "--dry-run") == 0
    assert sorted(folder.iterdir()) == before
    assert "W0" in capsys.readouterr().out


def bad_files(folder):
    (folder / "text.npy").write_text("no array")
    (folder / "pickled.npy").write_bytes(b"")
    np.savez(folder / "other.npz", Y=np.ones((3, 6)))
    np.save(folder / "narrow.npy", np.ones((9, 5)))
    np.save(folder / "nan.npy", np.full((9, 6), np.nan))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--calibration", "missing.npy"), "missing.npy"),
        (("--calibration", "text.npy"), "text.npy must be an .npy file"),
        (("--calibration", "pickled.npy"), "pickled.npy must be an .npy file"),
        (("--calibration", "other.npz"), "entry X"),
        (("--calibration", "narrow.npy"), "6"),
        (("--calibration", "nan.npy"), "NaN"),
        (("--calibration", "inputs.npy", "--exclude", "W7"), "W7"),
        (("--calibration", "inputs.npy", "--solver", "nothing"), "nothing"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, monkeypatch, words, message):
    monkeypatch.chdir(folder)
    bad_files(folder)
    before = sorted(folder.iterdir())
    assert run(folder, *words, "--tolerance", 0.2, "-o", "out.npz") == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("words", [(), ("--tolerance", 0.1, "--sparsity", 0.5)])
def test_one_budget_must_be_given(folder, capsys, words):
    assert run(folder, "--calibration", folder / "inputs.npy", *words, "-o", "out.npz") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_an_output_nothing_begins(folder, capsys):
    assert run(folder, "--calibration", folder / "inputs.npy", "--tolerance", 0.1) == 2
    assert "--output" in capsys.readouterr().err
