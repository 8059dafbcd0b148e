"""``nettrim prune``: a model and samples in, the pruned model out, and one line for bad input."""

import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

from nettrim_solver.cli import main
from nettrim_solver.frameworks import from_npz

PRUNE = sys.modules["nettrim_solver.network.prune"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A network whose labels are its own answers, and samples of it; the current folder."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(8)
    X, other = rng.standard_normal((60, 6)), rng.standard_normal((200, 6))
    arrays = {"W0": rng.standard_normal((6, 8)), "b0": rng.standard_normal(8)}
    arrays |= {"W1": rng.standard_normal((8, 3)), "b1": rng.standard_normal(3)}
    np.savez("network.npz", **arrays)
    np.save("inputs.npy", X)
    np.savez("inputs.npz", X=X)
    np.savez("other.npz", X=other, y=from_npz(arrays)(other).argmax(axis=1))
    return tmp_path


def run(*words, calibration="inputs.npz"):
    data = () if calibration is None else ("--calibration", calibration)
    return main(["prune", "network.npz", *data, *map(str, words)])


def one_error(capsys):
    """Return the message, which must be all that is printed."""
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("nettrim: error: ") and "bug" not in printed.err
    return printed.err


def accuracy(path):
    with np.load("other.npz") as file:
        return np.mean(from_npz(path)(file["X"]).argmax(axis=1) == file["y"])


@pytest.mark.parametrize("inputs", ["inputs.npy", "inputs.npz", "inputs.npz:X"])
@pytest.mark.parametrize("budget", [("--tolerance", 0.2), ("--sparsity", 0.5), ("--nnz", 30)])
def test_a_network_is_pruned_and_written(folder, capsys, inputs, budget):
    assert run(*budget, "-o", "pruned.npz", calibration=inputs) == 0
    old, new = from_npz("network.npz"), from_npz("pruned.npz")
    if budget[0] == "--tolerance":
        X = np.load("inputs.npy")
        assert 0 < new.nnz < old.nnz
        assert np.linalg.norm(new(X) - old(X)) < 0.3 * np.linalg.norm(old(X))
    else:
        assert new.nnz == {"--sparsity": old.n_weights // 2, "--nnz": 30}[budget[0]]
    text = capsys.readouterr().out
    assert "1 of 2, W0: " in text and "optimal" in text and "pruned.npz" in text
    assert "\x1b" not in text
    assert ("--solver alps or l0" in text) == (budget[0] != "--tolerance")


def test_a_floor_of_accuracy_is_kept(folder, capsys):
    words = ("--validation", "other.npz", "--min-accuracy", 0.9, "--solver", "alps")
    assert run(*words, "-o", "pruned.npz") == 0
    assert accuracy("pruned.npz") >= 0.9
    assert from_npz("pruned.npz").nnz < from_npz("network.npz").nnz
    text = capsys.readouterr().out
    assert f"100.00 % -> {100 * accuracy('pruned.npz'):.2f} %" in text
    assert "measuring W0" in text and "network 1: " in text


def test_a_largest_error_is_kept(folder):
    assert run("--max-error", 0.3, "--solver", "alps", "-o", "pruned.npz", "--quiet") == 0
    X, old, new = np.load("inputs.npy"), from_npz("network.npz"), from_npz("pruned.npz")
    assert np.linalg.norm(new(X) - old(X)) <= 0.3 * np.linalg.norm(old(X))
    assert new.nnz < old.nnz


def test_json_is_one_line_with_report_and_validation(folder, capsys):
    words = ("--tolerance", 0.2, "-o", "pruned.npz", "--validation", "other.npz")
    assert run(*words, "--json") == 0
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1 and not printed.err
    report = json.loads(printed.out)
    assert [layer["name"] for layer in report["layers"]] == ["W0", "W1"]
    assert report["output_error_heldout"] > 0
    assert report["validation"]["score"] == "accuracy" and report["validation"]["trained"] == 1.0
    assert report["validation"]["pruned"] == accuracy("pruned.npz")


def test_real_labels_are_scored_by_the_coefficient_of_determination(folder, capsys):
    X = np.load("inputs.npy")
    Y = from_npz("network.npz")(X) + np.random.default_rng(0).standard_normal((60, 3))
    np.savez("real.npz", X=X, labels=Y)
    words = ("--sparsity", 0.5, "--solver", "alps", "-o", "pruned.npz", "--json")
    assert run(*words, "--validation", "real.npz") == 0
    found = json.loads(capsys.readouterr().out)["validation"]
    for name, path in (("trained", "network.npz"), ("pruned", "pruned.npz")):
        residual = Y - from_npz(path)(X)
        expected = 1 - residual.var(axis=0).sum() / Y.var(axis=0).sum()
        # The variance is about the mean, the score about nothing.
        expected -= np.sum(residual.mean(axis=0) ** 2) / Y.var(axis=0).sum()
        assert found[name] == pytest.approx(expected, rel=1e-9)
    assert found["score"] == "R2"


def test_samples_are_chosen_by_the_seed(folder):
    outputs = []
    for seed in (0, 0, 1):
        words = ("--samples", 20, "--seed", seed, "--tolerance", 0.2, "--quiet")
        assert run(*words, "-o", "pruned.npz") == 0
        outputs.append(from_npz("pruned.npz").layer("W0").W)
    assert np.array_equal(outputs[0], outputs[1]) and not np.array_equal(outputs[0], outputs[2])


def test_quiet_prints_nothing(folder, capsys):
    assert run("--tolerance", 0.2, "-o", "pruned.npz", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_a_pruner_ends_well_and_leaves_what_is_excluded(folder, capsys):
    words = ("--sparsity", 0.5, "-o", "pruned.npz", "--solver", "alps", "--exclude", "W1")
    assert run(*words) == 0
    assert np.all(from_npz("pruned.npz").layer("W1").W != 0)
    assert "with proof" not in capsys.readouterr().out


def test_a_pipeline_takes_the_place_of_the_solver(folder, capsys):
    words = ("--sparsity", 0.5, "-o", "pruned.npz", "--pipeline", "magnitude, refit", "--json")
    assert run(*words) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert {layer["solver"] for layer in layers} == {"magnitude+refit"}


def test_passes_before_and_a_refit_behind_serve_the_output(folder, capsys):
    budget = ("--sparsity", 0.5, "--solver", "alps", "--output-weights", "downstream", "--json")
    errors = []
    for more in ((), ("--passes", 1, "--output-refit", 20)):
        assert run(*budget, *more, "-o", "pruned.npz") == 0
        report = json.loads(capsys.readouterr().out)
        errors.append(report["output_error"])
    assert report["settings"]["passes"] == 1 and report["layers"][0]["nnz"] == 24
    assert errors[1] < errors[0]
    assert run("--sparsity", 0.5, "--passes", 1, "-o", "pruned.npz") != 0
    assert "passes measure the weights of the outputs" in one_error(capsys)


def test_a_sparse_file_is_the_same_network(folder):
    for name, more in (("dense.npz", ()), ("sparse.npz", ("--sparse",))):
        assert run("--sparsity", 0.9, "--solver", "alps", "-o", name, "--quiet", *more) == 0
    assert main(["prune", "sparse.npz", "--calibration", "inputs.npz", "--sparsity", "0.95",
                 "--solver", "alps", "-o", "again.npz", "--quiet"]) == 0  # fmt: skip
    with np.load("sparse.npz") as file:
        assert "W0" not in file.files
    assert from_npz("again.npz").nnz < from_npz("dense.npz").nnz


def test_the_report_is_a_page_of_its_own(folder):
    assert run("--tolerance", 0.2, "-o", "pruned.npz", "--report", "report.html", "--quiet") == 0
    page = (folder / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>") and "network.npz, pruned" in page


def test_the_report_has_the_accuracy_of_the_validation_samples(folder):
    words = ("--sparsity", 0.6, "--solver", "magnitude", "--validation", "other.npz", "--quiet")
    assert run(*words, "-o", "pruned.npz", "--report", "report.html") == 0
    page = (folder / "report.html").read_text()
    assert f">{100 * accuracy('pruned.npz'):.2f} %<" in page and "100.00 % before; 200" in page


def test_a_bound_that_is_missing_has_its_reason(folder, capsys):
    words = ("--sparsity", 0.6, "--solver", "magnitude", "-o", "pruned.npz")
    assert run(*words) == 0
    assert "No bound" not in capsys.readouterr().out
    assert run(*words, "--max-rows", 20) == 0
    assert "No bound for W0, W1: pruned on a part of the rows" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(folder, capsys):
    before = sorted(folder.iterdir())
    assert run("--tolerance", 0.2, "--dry-run") == 0
    assert "W0" in capsys.readouterr().out
    assert run("--tolerance", 0.2, "--dry-run", "--json") == 0
    assert [one["rows"] for one in json.loads(capsys.readouterr().out)["layers"]] == [60, 60]
    assert sorted(folder.iterdir()) == before


def test_a_checkpoint_is_resumed_only_when_told(folder, capsys, monkeypatch):
    words = ("--tolerance", 0.2, "--checkpoint", "kept", "--quiet")
    assert run(*words, "-o", "first.npz") == 0
    assert run(*words, "-o", "again.npz") == 2
    assert "--resume" in one_error(capsys)
    assert run(*words, "-o", "again.npz", "--resume") == 0
    assert (folder / "first.npz").read_bytes() == (folder / "again.npz").read_bytes()
    assert run("--tolerance", 0.2, "--resume", "-o", "again.npz") == 2
    assert "--checkpoint" in one_error(capsys)


# Recipes ----------------------------------------------------------------------------------------


def dry(capsys, *words):
    assert run("--dry-run", "--json", *words) == 0
    return {one["name"]: one["budget"] for one in json.loads(capsys.readouterr().out)["layers"]}


def test_a_recipe_holds_arguments_and_the_command_line_wins(folder, capsys):
    (folder / "recipe.toml").write_text(
        'solver = "alps"\n[sparsity]\nW0 = 0.5\nW1 = 0.25\n[settings]\niterations = 7\n'
    )
    recipe = ("--recipe", "recipe.toml")
    assert dry(capsys, *recipe) == {"W0": "sparsity 0.5", "W1": "sparsity 0.25"}
    assert dry(capsys, *recipe, "--tolerance", 0.3) == dict.fromkeys(("W0", "W1"), "tolerance 0.3")
    # Settings of one solver mean nothing to another.
    assert dry(capsys, *recipe, "--solver", "wanda") == {
        "W0": "sparsity 0.5",
        "W1": "sparsity 0.25",
    }


def test_overrides_and_pipelines_of_a_recipe(folder, capsys):
    (folder / "recipe.toml").write_text(
        'sparsity = 0.5\npipeline = ["magnitude", "swaps-box"]\n'
        '[overrides."W1"]\npipeline = "wanda,refit"\ntolerance = 0.5\n'
    )
    assert run("--recipe", "recipe.toml", "-o", "pruned.npz", "--json") == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert [one["solver"] for one in layers] == ["magnitude+swaps", "wanda+refit"]
    assert [one["budget"] for one in layers] == ["sparsity 0.5", "tolerance 0.5"]


# Bad input --------------------------------------------------------------------------------------


def bad_files(folder):
    (folder / "text.npy").write_text("no array")
    (folder / "empty.npy").write_bytes(b"")
    (folder / "empty.npz").write_bytes(b"")
    (folder / "folder.npz").mkdir()
    (folder / "data.csv").write_text("1,2\n")
    X = np.ones((9, 6))
    np.savez("two.npz", first=X, second=X)
    np.save("narrow.npy", np.ones((9, 5)))
    np.save("folded.npy", np.ones((9, 2, 3)))
    np.save("huge.npy", np.where(np.eye(9, 6), -1e200, X))
    np.save("scalar.npy", np.float64(3))
    np.save("none.npy", X[:0])
    np.save("nan.npy", np.full((9, 6), np.nan))
    np.save("text_array.npy", np.full((9, 6), "x"))
    np.save("complex.npy", X + 1j)
    np.save("pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez("few_labels.npz", X=X, y=np.zeros(8, dtype=int))
    np.savez("wrong_class.npz", X=X, y=np.full(9, 3))
    np.savez("wrong_shape.npz", X=X, y=np.linspace(0, 1, 9))
    np.savez("constant.npz", X=X, y=np.ones((9, 3)))
    (folder / "pruned.txt").touch()
    (folder / "typo.toml").write_text("tolerence = 0.1\n")
    (folder / "deep.toml").write_text("[overrides.W0]\nsparsty = 0.1\n")
    (folder / "broken.toml").write_text("tolerance = \n")
    (folder / "wrong.toml").write_text('tolerance = "much"\n')
    (folder / "binary.toml").write_bytes(b"\xff\xfe")
    (folder / "floor.toml").write_text("min_accuracy = 0.5\n")


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (None, "numpy.savez"),
        ("missing.npy", "there is no file missing.npy"),
        ("missing.npz", "there is no file missing.npz"),
        ("text.npy", "text.npy must be an .npy file of numbers: it is none, or pickled"),
        ("empty.npy", "empty.npy must be an .npy file"),
        ("empty.npz", "empty.npz is not an .npz archive"),
        ("pickled.npy", "pickled.npy must be an .npy file"),
        ("folder.npz", "is a folder"),
        ("huge.npy", "at most 1.3e+154"),
        ("data.csv", ".npy or .npz"),
        ("two.npz", "holds ['first', 'second']"),
        ("two.npz:frist", "did you mean 'first'"),
        ("inputs.npy:X", "no name"),
        ("narrow.npy", "(n_samples, 6)"),
        ("folded.npy", "X.reshape(-1, 6)"),
        ("scalar.npy", "row per sample"),
        ("none.npy", "empty"),
        ("nan.npy", "54 NaN"),
        ("text_array.npy", "real numbers"),
        ("complex.npy", "real numbers"),
    ],
)
def test_bad_calibration_is_one_line(folder, capsys, calibration, message):
    bad_files(folder)
    before = sorted(folder.iterdir())
    assert run("--tolerance", 0.2, "-o", "out.npz", calibration=calibration) == 2
    error = one_error(capsys)
    assert message in error and "--calibration" in error
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--exclude", "W7"), "W7"),
        (("--solver", "nothing"), "nothing"),
        (("--pipeline", "refitt"), "did you mean 'refit'"),
        (("--pipeline", "refit"), "first step"),
        (("--pipeline", "alps", "--max-iter", 3), "settings"),
        (("--samples", 0), "--samples must be at least 1, but was 0"),
        (("--validation", "few_labels.npz"), "labels"),
        (("--validation", "wrong_class.npz"), "0 to 2"),
        (("--validation", "wrong_shape.npz"), "(9, 3)"),
        (("--validation", "constant.npz"), "not all the same"),
        (("--heldout", "narrow.npy"), "--heldout narrow.npy"),
        (("--onnx-input", "x"), ".onnx"),
        (("--recipe", "missing.toml"), "missing.toml"),
        (("--recipe", "typo.toml"), "'tolerence'; did you mean 'tolerance'"),
        (("--recipe", "deep.toml"), "'sparsty'; did you mean 'sparsity'"),
        (("--recipe", "broken.toml"), "broken.toml is not a TOML file"),
        (("--recipe", "wrong.toml"), "tolerance must be a number or a table"),
        (("--recipe", "binary.toml"), "binary.toml is not a TOML file"),
        (("--recipe", "."), "--recipe ."),
        (("-o", "missing/out.npz"), "cannot write"),
        (("-o", "folder.npz"), "it is a folder"),
        (("-o", "network.npz"), "read as well"),
        (("--report", os.devnull), "no ordinary file"),
        (("-o", "out.onnx"), "end in .npz"),
        (("--report", "missing/report.html"), "cannot write"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, words, message):
    bad_files(folder)
    before = sorted(folder.iterdir())
    assert run("--tolerance", 0.2, "-o", "out.npz", *words) == 2
    assert message in one_error(capsys)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--tolerance, --sparsity, --nnz, --max-error, --min-accuracy"),
        (("--tolerance", 0.1, "--sparsity", 0.5), "not allowed"),
        (("--min-accuracy", 0.9), "--validation"),
        (("--recipe", "floor.toml"), "--validation"),
        (("--validation", "inputs.npz", "--min-accuracy", 0.9), "labels"),
        (("--sparsity", 1.5), "sparsity"),
    ],
)
def test_one_budget_that_makes_sense_must_be_given(folder, capsys, words, message):
    bad_files(folder)
    assert run(*words, "-o", "out.npz") == 2
    assert message in one_error(capsys)


def test_without_an_output_nothing_begins(folder, capsys):
    assert run("--tolerance", 0.1) == 2
    assert "--output" in one_error(capsys)


def test_outputs_are_checked_before_work(folder, monkeypatch):
    monkeypatch.setattr(
        sys.modules["nettrim_solver.network"], "prune_network", lambda *a, **k: pytest.fail("ran")
    )
    assert run("--tolerance", 0.1, "-o", "missing/out.npz") == 2
    assert run("--tolerance", 0.1, "-o", "out.npz", "--report", "missing/report.html") == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("option", ["-o", "--report", "--checkpoint"])
def test_a_folder_without_permission_is_one_line(folder, capsys, option):
    (folder / "locked").mkdir(0o500)
    words = ("-o", "out.npz", option, "locked/out.npz")
    assert run("--tolerance", 0.2, *words) == 2
    assert "Permission denied" in one_error(capsys)
    assert not [*(folder / "locked").iterdir()] and not (folder / "out.npz").exists()


def test_a_full_disk_leaves_no_part_of_a_file(folder, capsys):
    """Writing more than a kilobyte fails, as on a full disk."""
    before = sorted(folder.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        assert run("--tolerance", 0.2, "-o", "out.npz", "--quiet") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot write out.npz: File too large" in one_error(capsys)
    assert sorted(folder.iterdir()) == before


def test_an_interrupt_gives_what_there_is(folder, capsys, monkeypatch):
    """Ctrl-C within a layer: the layers that are done are written, and the exit code says so."""
    solve = sys.modules["nettrim_solver.network.modes"].collect
    calls = []

    def interrupted(network, name, *args, **options):
        calls.append(name)
        if name == "W1":
            raise KeyboardInterrupt
        return solve(network, name, *args, **options)

    monkeypatch.setattr(sys.modules["nettrim_solver.network.modes"], "collect", interrupted)
    assert run("--sparsity", 0.5, "--solver", "wanda", "-o", "out.npz") == 130
    assert calls == ["W0", "W1"]
    new = from_npz("out.npz")
    assert new.layer("W0").nnz == 24 and new.layer("W1").nnz == 24  # of 48, and of 24
    assert "W1     8 x 3" in capsys.readouterr().out


def test_a_colon_in_a_folder_is_no_name(folder):
    (folder / "a:b").mkdir()
    shutil.copy("inputs.npz", "a:b/inputs.npz")
    words = ("--tolerance", 0.2, "-o", "out.npz", "--quiet")
    assert run(*words, calibration="a:b/inputs.npz") == 0
    assert run(*words, calibration="a:b/inputs.npz:X") == 0


def test_a_process_without_a_terminal_prints_plain_lines(folder):
    done = subprocess.run(
        [sys.executable, "-m", "nettrim_solver", "prune", "network.npz", "--calibration",
         "inputs.npz", "--tolerance", "0.2", "-o", "out.npz"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == "" and "\x1b" not in done.stdout and "2 of 2, W1" in done.stdout
