"""``nettrim prune``: a model and samples in, the pruned model out, and one line for bad input."""

import contextlib
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest

from nettrim_solver.cli import main
from nettrim_solver.frameworks import from_npz, to_npz
from nettrim_solver.network import Activate, Dense, Network, Recipe
from nettrim_solver.network.recipe import NAMES

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


def recipe(name, *changes):
    return ("--recipe", name, *(word for change in changes for word in ("--set", change)))


ALPS = recipe("net-trim", "steps=alps")


def accuracy(path):
    with np.load("other.npz") as file:
        return np.mean(from_npz(path)(file["X"]).argmax(axis=1) == file["y"])


@pytest.mark.parametrize("inputs", ["inputs.npy", "inputs.npz", "inputs.npz:X"])
@pytest.mark.parametrize("budget", [("--tolerance", 0.2), ("--sparsity", 0.5), ("--nnz", 30)])
def test_a_network_is_pruned_and_written(folder, capsys, inputs, budget):
    assert run(*budget, *recipe("net-trim"), "-o", "pruned.npz", calibration=inputs) == 0
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


def test_the_best_recipe_needs_no_name(folder, capsys):
    assert run("--sparsity", 0.7, "-o", "pruned.npz", "--validation", "other.npz", "--json") == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert printed.err == "" and report["nnz"] == round(0.3 * 72) == from_npz("pruned.npz").nnz
    assert report["recipe"]["allocation"] == "shape" and report["validation"]["pruned"] > 0.7


def test_the_table_at_the_end_says_what_matters(folder, capsys):
    words = ("--sparsity", 0.5, *recipe("net-trim", "steps=alps", "skip=W1"))
    assert run(*words, "--validation", "other.npz", "-o", "pruned.npz") == 0
    text = capsys.readouterr().out
    table = {}
    for line in text.partition("before")[2].splitlines()[1:]:
        cells = re.split(r"\s{2,}", line)
        table.setdefault(cells[0], []).append(cells[1:])
    assert table["zeros"] == [
        ["0 %", "50 %", "24 of 48 weights of the pruned layers stay"],
        ["0 %", "33.3 %", "48 of 72 weights of the model stay"],
    ]
    scores = [f"{100 * accuracy(path):.2f} %" for path in ("network.npz", "pruned.npz")]
    assert table["accuracy"] == [[*scores, "200 validation samples"]]
    assert [row[-1].split(",")[0] for row in table["output error"]] == [
        "calibration samples", "validation samples"
    ]  # fmt: skip
    sizes = [f"{os.path.getsize(path):,}" for path in ("network.npz", "pruned.npz")]
    assert table["file"] == [[*sizes, "bytes"]] and table["time"][0][-1] == "seconds"
    assert max(map(len, text.splitlines())) <= 80


def test_sparse_storage_is_offered_where_it_is_smaller(folder, capsys):
    rng = np.random.default_rng(0)
    np.savez("network.npz", W0=rng.standard_normal((6, 400)), b0=np.zeros(400),
             W1=rng.standard_normal((400, 3)), b1=np.zeros(3))  # fmt: skip
    words = ("--sparsity", 0.95, *recipe("net-trim", "steps=magnitude"))
    assert run(*words, "-o", "dense.npz") == 0
    offer = re.search(r"With --sparse the file takes ([\d,]+) bytes", capsys.readouterr().out)
    assert run(*words, "-o", "sparse.npz", "--sparse") == 0
    assert "With --sparse" not in capsys.readouterr().out
    size = int(offer[1].replace(",", ""))
    assert size == os.path.getsize("sparse.npz") < os.path.getsize("dense.npz")


def test_a_floor_of_accuracy_is_kept(folder, capsys):
    words = ("--validation", "other.npz", "--min-accuracy", 0.9, "--recipe", "fast")
    assert run(*words, "-o", "pruned.npz") == 0
    assert accuracy("pruned.npz") >= 0.9
    assert from_npz("pruned.npz").nnz < from_npz("network.npz").nnz
    text = capsys.readouterr().out
    shown = f"accuracy +100.00 % +{100 * accuracy('pruned.npz'):.2f} % +200 validation samples"
    assert re.search(shown + ", which chose it", text)
    assert "network 1: " in text


def test_a_largest_error_is_kept(folder):
    assert run("--max-error", 0.3, *ALPS, "-o", "pruned.npz", "--quiet") == 0
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
    words = ("--sparsity", 0.5, *ALPS, "-o", "pruned.npz", "--json")
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


def test_a_layer_that_is_skipped_stays(folder):
    assert run("--sparsity", 0.5, *ALPS, "--set", "skip=W1", "-o", "pruned.npz", "--quiet") == 0
    assert np.all(from_npz("pruned.npz").layer("W1").W != 0)


def test_steps_of_a_recipe_are_set(folder, capsys):
    words = ("--sparsity", 0.5, *recipe("net-trim", 'steps=["magnitude", "refit"]'))
    assert run(*words, "-o", "pruned.npz", "--json") == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert {layer["solver"] for layer in layers} == {"magnitude+refit"}


def test_passes_before_and_a_refit_to_the_output_serve_it(folder, capsys):
    budget = ("--sparsity", 0.5, *ALPS, "--set", "output_weights=downstream", "--json")
    errors = []
    for more in ((), ("--set", "passes=1", "--set", "output_refit=20")):
        assert run(*budget, *more, "-o", "pruned.npz") == 0
        report = json.loads(capsys.readouterr().out)
        errors.append(report["output_error"])
    assert report["recipe"]["passes"] == 1 and report["layers"][0]["nnz"] == 24
    assert errors[1] < errors[0]
    assert run("--sparsity", 0.5, *ALPS, "--set", "passes=1", "-o", "pruned.npz") != 0
    assert "passes measure the weights of the outputs" in one_error(capsys)


def test_a_sparse_file_is_the_same_network(folder):
    for name, more in (("dense.npz", ()), ("sparse.npz", ("--sparse",))):
        assert run("--sparsity", 0.9, *ALPS, "-o", name, "--quiet", *more) == 0
    assert main(["prune", "sparse.npz", "--calibration", "inputs.npz", "--sparsity", "0.95",
                 *ALPS, "-o", "again.npz", "--quiet"]) == 0  # fmt: skip
    with np.load("sparse.npz") as file:
        assert "W0" not in file.files
    assert from_npz("again.npz").nnz < from_npz("dense.npz").nnz


def test_the_report_is_a_page_of_its_own(folder):
    assert run("--tolerance", 0.2, "-o", "pruned.npz", "--report", "report.html", "--quiet") == 0
    page = (folder / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>") and "network.npz, pruned" in page


def test_the_report_has_the_accuracy_of_the_validation_samples(folder):
    magnitude = recipe("net-trim", "steps=magnitude")
    words = ("--sparsity", 0.6, *magnitude, "--validation", "other.npz", "--quiet")
    assert run(*words, "-o", "pruned.npz", "--report", "report.html") == 0
    page = (folder / "report.html").read_text()
    assert f">{100 * accuracy('pruned.npz'):.2f} %<" in page and "100.00 % before; 200" in page


def test_a_bound_that_is_missing_has_its_reason(folder, capsys):
    words = ("--sparsity", 0.6, *recipe("net-trim", "steps=magnitude"), "-o", "pruned.npz")
    assert run(*words) == 0
    assert "No bound" not in capsys.readouterr().out
    assert run(*words, "--set", "max_rows=20") == 0
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


def test_a_recipe_file_says_how_and_single_fields_are_changed(folder, capsys):
    (folder / "recipe.toml").write_text(
        'steps = [{step = "alps", iterations = 7}]\n[layers.W1]\nsparsity = 0.25\n'
    )
    recipe = ("--recipe", "recipe.toml")
    assert dry(capsys, *recipe, "--sparsity", 0.5) == {"W0": "sparsity 0.5", "W1": "sparsity 0.25"}
    assert dry(capsys, *recipe, "--tolerance", 0.3, "--set", "layers={}") == dict.fromkeys(
        ("W0", "W1"), "tolerance 0.3"
    )
    words = ("--set", "steps=wanda", "--set", 'layers={"W*"={sparsity=0.75}, W0={skip=true}}')
    assert run("--sparsity", 0.5, *recipe, *words, "-o", "pruned.npz", "--json") == 0
    first, second = json.loads(capsys.readouterr().out)["layers"]
    assert first["outcome"] == "skipped"
    assert (second["solver"], second["budget"]) == ("wanda", "sparsity 0.75")


def test_layers_of_a_recipe_have_steps_and_budgets_of_their_own(folder, capsys):
    (folder / "recipe.toml").write_text(
        'steps = ["magnitude", {step = "swaps", target = "box"}]\n'
        '[layers."W1"]\nsteps = ["wanda", "refit"]\ntolerance = 0.5\n'
    )
    words = ("--sparsity", 0.5, "--recipe", "recipe.toml", "-o", "pruned.npz", "--json")
    assert run(*words) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert [one["solver"] for one in layers] == ["magnitude+swaps", "wanda+refit"]
    assert [one["budget"] for one in layers] == ["sparsity 0.5", "tolerance 0.5"]


def test_the_named_recipes_are_listed(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[: len(NAMES)]] == [*NAMES]
    assert main(["recipes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: Recipe.of(one) for name, one in found.items()} == dict(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_printed_as_a_file_to_edit(folder, capsys, name):
    """nettrim recipes NAME > my.toml; nettrim prune ... --recipe my.toml"""
    assert main(["recipes", name]) == 0
    text = capsys.readouterr().out
    (folder / "my.toml").write_text(text)
    assert Recipe.read("my.toml") == NAMES[name]
    for field in fields(Recipe):
        assert re.search(rf"^# .*\n({field.name} = |# \[{field.name}\.)", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 100
    networks = []
    for path, words in (("a.npz", ("--recipe", "my.toml")), ("b.npz", ("--recipe", name))):
        assert run("--sparsity", 0.6, *words, "-o", path, "--quiet") == 0
        networks.append((folder / path).read_bytes())
    assert networks[0] == networks[1]


def test_a_file_of_exceptions_is_printed_with_them(folder, capsys):
    (folder / "my.toml").write_text('skip = ["W0"]\n[layers.W1]\nnnz = 5\n')
    assert main(["recipes", "my.toml"]) == 0
    (folder / "again.toml").write_text(capsys.readouterr().out)
    assert Recipe.read("again.toml") == Recipe.read("my.toml")


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
    (folder / "typo.toml").write_text('mod = "parallel"\n')
    (folder / "deep.toml").write_text("[layers.W0]\nsparsty = 0.1\n")
    (folder / "broken.toml").write_text("steps = \n")
    (folder / "wrong.toml").write_text('passes = "many"\n')
    (folder / "binary.toml").write_bytes(b"\xff\xfe")
    (folder / "floor.toml").write_text("min_accuracy = 0.5\n")
    (folder / "later.toml").write_text("version = 2\n")
    (folder / "old.toml").write_text('[overrides.W0]\nsolver = "alps"\n')
    (folder / "unknown.toml").write_text('steps = ["alpps"]\n')
    (folder / "nowhere.toml").write_text("[layers.conv1]\nskip = true\n")


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
        (("--set", "skip=W7"), "skip must name layers, kinds or patterns, but 'W7' matches none"),
        (("--set", "steps=nothing"), "nothing"),
        (("--set", "steps=refitt"), "--set steps: steps must be made of"),
        (("--set", "steps=refitt"), "did you mean 'refit'"),
        (("--set", "steps=refit"), "first step"),
        (("--set", "steps={step='alps', max_iter=3}"), "unknown setting 'max_iter'"),
        (("--set", "mod=parallel"), "has no entry 'mod'; did you mean 'mode'?"),
        (("--set", "tolerance=0.1"), "nettrim prune --tolerance"),
        (("--set", "mode"), "--set takes NAME=VALUE, such as mode=parallel, but was 'mode'"),
        (("--set", "skip=W0,W1"), "--set skip must be a value as in TOML"),
        (("--set", "passes=1\nskip=2"), "--set passes must be one value"),
        (
            ("--recipe", "bets"),
            "best, fast, net-trim, or a file that ends in .toml, but was 'bets'",
        ),
        (("--recipe", "bets"), "did you mean 'best'?"),
        (("--scale", "1/0"), "must be a number such as 0.5 or 1/255"),
        (("--samples", 0), "--samples must be at least 1, but was 0"),
        (("--validation", "few_labels.npz"), "labels"),
        (("--validation", "wrong_class.npz"), "0 to 2"),
        (("--validation", "wrong_shape.npz"), "(9, 3)"),
        (("--validation", "constant.npz"), "not all the same"),
        (("--onnx-input", "x"), ".onnx"),
        (("--recipe", "missing.toml"), "missing.toml"),
        (("--recipe", "typo.toml"), "recipe typo.toml: a recipe has no entry 'mod'; did you mean"),
        (("--recipe", "deep.toml"), "'sparsty'; did you mean 'sparsity'"),
        (
            ("--recipe", "floor.toml"),
            "a recipe holds no budget of the network, but has min_",
        ),
        (("--recipe", "later.toml"), "version must be 1"),
        (("--recipe", "old.toml"), "write overrides as layers=..."),
        (("--recipe", "unknown.toml"), "did you mean 'alps'?"),
        (("--recipe", "nowhere.toml"), "'conv1' matches none: the layers are ['W0 (dense)"),
        (("--recipe", "broken.toml"), "broken.toml is not a TOML file"),
        (("--recipe", "wrong.toml"), "passes must be an integer >= 0, but was 'many'"),
        (("--recipe", "binary.toml"), "binary.toml is not a TOML file"),
        (("--recipe", "."), "--recipe must be one of"),
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
        (("--validation", "inputs.npz", "--min-accuracy", 0.9), "labels"),
        (("--sparsity", 1.5), "sparsity"),
    ],
)
def test_one_budget_that_makes_sense_must_be_given(folder, capsys, words, message):
    bad_files(folder)
    assert run(*words, "-o", "out.npz") == 2
    assert message in one_error(capsys)


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("--solver", "alps"), "--set steps=alps"),
        (("--pipeline=magnitude,refit",), """--set 'steps=["magnitude", "refit"]'"""),
        (("--mode", "parallel"), "--set mode=parallel"),
        (("--allocation", "uniform"), "--set allocation=uniform"),
        (("--output-weights", "downstream"), "--set output_weights=downstream"),
        (("--passes", 2), "--set passes=2"),
        (("--output-refit", 20), "--set output_refit=20"),
        (("--exclude", "W0"), """--set 'skip=["W0"]'"""),
        (("--max-rows", 20), "--set max_rows=20"),
        (("--max-iter", 20), """--set 'steps={step="admm", max_iter=20}'"""),
        (("--tol-gap", 1e-3), """--set 'steps={step="admm", tol_gap=0.001}'"""),
        (("--heldout", "other.npz"), "--validation other.npz"),
    ],
)
def test_options_of_earlier_releases_name_their_place(folder, capsys, words, remedy):
    assert run("--tolerance", 0.2, "-o", "out.npz", *words) == 2
    error = one_error(capsys)
    assert f"{str(words[0]).partition('=')[0]} is gone" in error and remedy in error
    assert run("--sparsity", 0.5, "--dry-run", "--quiet", *shlex.split(remedy)) == 0


def test_a_misspelt_option_names_the_nearest_of_its_command(folder, capsys):
    assert run("--tolerance", 0.2, "-o", "out.npz", "--chekpoint", "a") == 2
    message = "there is no option --chekpoint; did you mean '--checkpoint'? (see nettrim prune "
    assert message in one_error(capsys)
    assert run("--tolerance", 0.2, "-o", "out.npz", "--slover", "alps") == 2
    assert "there is no option --slover; did you mean --set steps=alps?" in one_error(capsys)


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
    wanda = recipe("net-trim", "steps=wanda")
    assert run("--sparsity", 0.5, *wanda, "-o", "out.npz") == 130
    assert calls == ["W0", "W1"]
    new = from_npz("out.npz")
    assert new.layer("W0").nnz == 24 and new.layer("W1").nnz == 24  # of 48, and of 24
    assert re.search("W1 +8x3", capsys.readouterr().out)


def test_a_time_limit_says_what_it_left(folder, capsys):
    assert run("--sparsity", 0.5, "--time-limit", 1e-9, "-o", "out.npz") == 1
    text = capsys.readouterr().out
    assert "time_limit: the time limit came before the end" in text and "not reached" in text
    assert "72 of 72 weights of the model stay" in text
    assert from_npz("out.npz").nnz == 72


def test_a_budget_that_cannot_be_met_is_one_line(folder, capsys):
    words = ("--validation", "other.npz", "--min-accuracy", 1.5, "--recipe", "fast")
    assert run(*words, "-o", "out.npz") == 2
    assert "the trained network itself has accuracy 1" in one_error(capsys)
    assert not (folder / "out.npz").exists()


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


def test_a_bar_moves_on_a_terminal(folder):
    """A real pseudo-terminal: a bar in place of the lines, the table after it."""
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "nettrim_solver", "prune", "network.npz", "--calibration",
         "inputs.npz", "--tolerance", "0.2", "--recipe", "net-trim", "-o", "out.npz"],
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80"}, stdout=follower, stderr=follower,
    )  # fmt: skip
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while chunk := os.read(leader, 65536):
            shown += chunk
    os.close(leader)
    assert running.wait() == 0, shown.decode()
    assert b"\x1b[" in shown and b"compiling the solvers" in shown
    assert b"1 of 2, W0" not in shown and b"output error" in shown.rpartition(b"\x1b[")[2]


# What newcomers see -----------------------------------------------------------------------------


def deep(folder, names, kind="relu"):
    """Write a network with these names of layers, and return it."""
    rng = np.random.default_rng(3)
    operations = []
    for name in names:
        operations += [Dense(rng.standard_normal((6, 6)), np.zeros(6), name=name), Activate(kind)]
    network = Network(operations)
    to_npz(network, folder / "network.npz")
    return network


def test_long_names_stay_different_on_80_columns(folder, capsys):
    names = [f"model/encoder/block_{i}/attention/output/dense/MatMul" for i in range(3)]
    deep(folder, names)
    assert run("--tolerance", 0.2, *recipe("net-trim"), "-o", "out.npz") == 0
    table = capsys.readouterr().out.partition("layer ")[2].partition("\n\n")[0].splitlines()
    assert max(map(len, table)) <= 80
    shown = [line.split()[0] for line in table[1:4]]
    assert len({*shown}) == 3 and all("..." in name for name in shown)
    assert [line.split()[-1] for line in table[1:4]] == ["optimal"] * 3


def test_escape_sequences_of_names_are_written_out(folder, capsys):
    deep(folder, ["\x1b[2Jred", "bell\a"])
    assert run("--tolerance", 0.2, *recipe("net-trim"), "-o", "out.npz") == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text and "\a" not in text and "\\x1b[2Jred" in text
    assert run("--sparsity", 0.5, "--set", "skip=nothing", "-o", "out.npz") == 2
    assert "\x1b" not in capsys.readouterr().err
    assert main(["inspect", "network.npz"]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["W\u03b2", "\u5c42"])
def test_a_terminal_that_is_not_utf_8_loses_nothing(folder, name):
    deep(folder, [name, "last"])
    done = subprocess.run(
        [sys.executable, "-m", "nettrim_solver", "prune", "network.npz", "--calibration",
         "inputs.npz", "--tolerance", "0.2", "--recipe", "net-trim", "-o", "out.npz"],
        env=os.environ | {"PYTHONIOENCODING": "latin-1"}, capture_output=True, check=True,
    )  # fmt: skip
    assert name.encode("ascii", "backslashreplace") in done.stdout and done.stderr == b""
    assert from_npz("out.npz").layers[0].name == name


def test_the_files_are_written_before_anything_is_printed(folder, monkeypatch):
    def fail(*args, **options):
        raise UnicodeEncodeError("ascii", "x", 0, 1, "no")

    monkeypatch.setattr("nettrim_solver.terminal.show_layers", fail)
    assert run("--tolerance", 0.2, "-o", "out.npz", "--report", "report.html") == 1
    assert (folder / "out.npz").exists() and (folder / "report.html").exists()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, bool])
def test_one_hot_labels_are_classes(folder, capsys, dtype):
    with np.load("other.npz") as file:
        np.savez("hot.npz", X=file["X"], y=np.eye(3)[file["y"]].astype(dtype))
    words = ("--sparsity", 0.5, *ALPS, "-o", "pruned.npz", "--validation", "hot.npz", "--json")
    assert run(*words) == 0
    found = json.loads(capsys.readouterr().out)["validation"]
    assert found == {"score": "accuracy", "trained": 1.0, "pruned": accuracy("pruned.npz")}


def test_samples_are_scaled(folder, capsys):
    """Integer samples times a factor are the samples of the network."""
    X = np.random.default_rng(0).integers(0, 256, (60, 6))
    np.savez("raw.npz", X=X.astype(np.uint8))
    np.savez("inputs.npz", X=X / 255)
    for name, words in (("a.npz", ()), ("b.npz", ("--scale", "1/255"))):
        calibration = "raw.npz" if words else "inputs.npz"
        assert run("--tolerance", 0.2, *words, "-o", name, calibration=calibration) == 0
    first, second = (from_npz(name).layer("W0").W for name in ("a.npz", "b.npz"))
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-5)
    assert capsys.readouterr().err == ""


def test_data_that_look_unlike_the_training_data_are_warned_of(folder, capsys):
    """Pixels in 0 to 255 for a network of pixels in 0 to 1 that is then no better than chance."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((6, 3))
    b = -20 * np.abs(W).sum(axis=0)
    np.savez("network.npz", W0=W, b0=b, W1=np.eye(3), b1=np.zeros(3))
    np.savez("inputs.npz", X=rng.random((60, 6)))
    assert run("--sparsity", 0.5, *ALPS, "-o", "out.npz", "--json") == 0
    warning = capsys.readouterr().err
    assert warning.startswith("nettrim: warning: all outputs of ") and "are zero" in warning
    assert "the samples run from 0.0" in warning and "--scale" not in warning
    X = rng.integers(0, 256, (300, 6))
    np.savez("labels.npz", X=X, y=(X.argmax(axis=1) + 1) % 3)
    np.savez("network.npz", W0=np.eye(6, 3), b0=np.zeros(3), W1=np.eye(3), b1=np.zeros(3))
    words = ("--sparsity", 0.1, *ALPS, "-o", "out.npz", "--validation", "labels.npz")
    assert run(*words, calibration="labels.npz") == 0
    warning = capsys.readouterr().err
    assert "about that of guessing among 3 classes" in warning and "--scale 1/255" in warning
    assert run(*words, "--quiet", calibration="labels.npz") == 0
    assert capsys.readouterr() == ("", "")
    deep(folder, ["one", "two"], "tanh")
    np.savez("inputs.npz", X=rng.choice([-1, 1], (60, 6)) * 1e6)
    assert run("--sparsity", 0.5, *ALPS, "-o", "out.npz") == 0
    assert "saturated" in capsys.readouterr().err


def test_images_with_their_channels_last_are_to_be_transposed(folder, capsys):
    arrays = {"W0": np.ones((4, 3, 3, 3)), "b0": np.zeros(4), "input_shape": np.array([3, 8, 8])}
    np.savez("network.npz", **arrays, W1=np.ones((144, 2)), b1=np.zeros(2))
    np.savez("inputs.npz", X=np.ones((20, 8, 8, 3)))
    assert run("--sparsity", 0.5, "-o", "out.npz") == 2
    assert "numpy.moveaxis(X, -1, 1) puts the channels first" in one_error(capsys)
