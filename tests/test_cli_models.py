"""Model files of every format on the command line: inspected, pruned, compared, refused."""

import json
import pickle
import sys

import numpy as np
import pytest

from nettrim_solver.cli import main
from nettrim_solver.comparison import Comparison
from nettrim_solver.exceptions import ProblemFileError, SettingsError
from nettrim_solver.frameworks import from_npz
from nettrim_solver.frameworks.files import READERS, REFUSED, check_target, read_model
from tests.tolerances import TOLERANCE


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def arrays(folder):
    """network.npz, and data.npz with samples and its own answers as labels."""
    rng = np.random.default_rng(3)
    named = {"W0": rng.standard_normal((6, 8)), "b0": rng.standard_normal(8)}
    named |= {"W1": rng.standard_normal((8, 3)), "b1": rng.standard_normal(3)}
    named["W0"][:, 0] = 0
    np.savez("network.npz", **named)
    X = rng.standard_normal((80, 6))
    np.savez("data.npz", X=X, y=from_npz(named)(X).argmax(axis=1))
    return named


def steps(solver):
    return "--recipe", "net-trim", "--set", f"steps={solver}"


def one_error(capsys):
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and "bug" not in printed.err
    return printed.err


# Inspect ----------------------------------------------------------------------------------------


def test_inspect_counts_the_weights(arrays, capsys):
    assert main(["inspect", "network.npz"]) == 0
    text = capsys.readouterr().out
    assert "6x8" in text and "72 weights, 6 of them zero" in text and "(n_samples, 6)" in text
    assert main(["inspect", "network.npz", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["zeros"] for one in found["layers"]] == [6, 0]
    assert found["input_shape"] == [6] and (found["weights"], found["zeros"]) == (72, 6)
    assert main(["inspect", "network.npz", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


# ONNX -------------------------------------------------------------------------------------------


@pytest.fixture
def graph(folder):
    """model.onnx: Gemm, Relu, and a product of two signals, which nothing can prune."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(5)
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    weights = {
        "W": rng.standard_normal((5, 7)), "b": rng.standard_normal(7),
        "V": rng.standard_normal((7, 2)),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gemm", ["pixels", "W", "b"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("MatMul", ["a", "V"], ["scores"], name="last"),
    ]
    made = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("pixels", real, ["N", 5])],
        [helper.make_tensor_value_info("scores", real, ["N", 2])],
        [onnx.numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()],
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, "model.onnx")
    X = rng.standard_normal((90, 5)).astype(np.float32)
    np.savez("inputs.npz", pixels=X, other=np.ones(3))
    return X


def onnx_outputs(path, X):
    runtime = pytest.importorskip("onnxruntime")
    return runtime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"pixels": X}
    )[0]


@pytest.mark.parametrize("more", [[], ["--sparse"]])
def test_an_onnx_model_is_pruned_by_the_name_of_its_input(graph, capsys, more):
    words = ["--calibration", "inputs.npz", "--sparsity", "0.6", *steps("alps"), "--json"]
    assert main(["prune", "model.onnx", *words, "-o", "pruned.onnx", *more]) == 0
    error = json.loads(capsys.readouterr().out)["output_error"]
    before, after = (onnx_outputs(path, graph) for path in ("model.onnx", "pruned.onnx"))
    measured = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert measured == pytest.approx(error, rel=100 * TOLERANCE["network_single"])
    assert main(["inspect", "pruned.onnx", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["input_names"] == ["pixels"]
    assert found["weights"] == 49 and found["zeros"] == pytest.approx(0.6 * 49, abs=1)
    assert {one["operator"] for one in found["layers"]} == {"Gemm", "MatMul"}


def test_a_wrong_input_name_is_one_line(graph, capsys):
    np.savez("wrong.npz", image=graph, other=graph)
    words = ["--calibration", "wrong.npz", "--tolerance", "0.1", "-o", "out.onnx"]
    assert main(["prune", "model.onnx", *words]) == 2
    assert "'pixels' or 'X'" in one_error(capsys)


@pytest.fixture
def two_inputs(folder):
    """two.onnx, the product of a layer and its second input, and values of that one."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    rng = np.random.default_rng(5)
    W = numpy_helper.from_array(rng.standard_normal((4, 3)).astype(np.float32), "W")
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="layer"),
        helper.make_node("Mul", ["h", "factor"], ["y"]),
    ]
    places = [helper.make_tensor_value_info(name, 1, ["n", size])
              for name, size in (("x", 4), ("factor", 3), ("y", 3))]  # fmt: skip
    graph = helper.make_graph(nodes, "two", places[:2], places[2:], [W])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), "two.onnx")
    X, factor = rng.standard_normal((30, 4)), np.float32([[1, 2, 3]])
    np.savez("inputs.npz", x=X.astype(np.float32), other=factor)
    np.savez("factor.npz", factor=factor)
    np.savez("wrong.npz", factro=factor)
    return factor


def test_the_other_inputs_of_a_model_keep_the_values_given(two_inputs, capsys):
    onnx, runtime = (pytest.importorskip(name) for name in ("onnx", "onnxruntime"))
    words = ["prune", "two.onnx", "--calibration", "inputs.npz", "--sparsity", "0.5",
             *steps("wanda"), "--quiet", "-o", "out.onnx"]  # fmt: skip
    assert main([*words, "--onnx-constants", "factor.npz"]) == 0
    X = np.load("inputs.npz")["x"]
    pruned = onnx.numpy_helper.to_array(onnx.load("out.onnx").graph.initializer[0])
    assert np.count_nonzero(pruned) == 6
    session = runtime.InferenceSession("out.onnx", providers=["CPUExecutionProvider"])
    (Y,) = session.run(["y"], {"x": X, "factor": np.repeat(two_inputs, 30, axis=0)})
    np.testing.assert_allclose(
        Y, X @ pruned * two_inputs, rtol=0, atol=100 * TOLERANCE["network_single"]
    )
    assert main(["inspect", "two.onnx", "--onnx-constants", "factor.npz", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["input_names"] == ["x"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--onnx-input", "x"], "--onnx-constants FILE.npz"),
        (["--input-shape", "4"], "for each of the inputs ['x', 'factor']"),
        (["--input-shape", "4", "--input-shape", "2"], "must fit the model's input 'factor'"),
        (["--onnx-constants", "wrong.npz"], "among ['factor', 'x'], but has 'factro'"),
        (["--onnx-constants", "nothing.npz"], "--onnx-constants: there is no file nothing.npz"),
    ],
)
def test_other_inputs_without_values_are_one_line(two_inputs, capsys, words, message):
    assert main(["inspect", "two.onnx", *words]) == 2
    assert message in one_error(capsys)


def test_arrays_named_after_all_inputs_are_joined(two_inputs, capsys):
    onnx, runtime = (pytest.importorskip(name) for name in ("onnx", "onnxruntime"))
    assert main(["inspect", "two.onnx", "--input-shape", "4", "--input-shape", "3"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "'x' of shape (n_samples, 4) and 'factor' of shape (n_samples, 3)" in text
    rng = np.random.default_rng(1)
    inputs = {"factor": rng.standard_normal((30, 3)), "x": rng.standard_normal((30, 4))}
    inputs = {name: array.astype(np.float32) for name, array in inputs.items()}
    np.savez("both.npz", labels=rng.integers(3, size=30), **inputs)
    words = ["prune", "two.onnx", "--calibration", "both.npz", "--validation", "both.npz",
             "--sparsity", "0.5", *steps("wanda"), "--json", "-o", "out.onnx"]  # fmt: skip
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    outputs = []
    for name in ("two.onnx", "out.onnx"):
        session = runtime.InferenceSession(name, providers=["CPUExecutionProvider"])
        outputs.append(session.run(["y"], inputs)[0])
    accuracy = np.mean(outputs[1].argmax(axis=1) == np.load("both.npz")["labels"])
    assert found["validation"]["pruned"] == accuracy
    measured = np.linalg.norm(outputs[1] - outputs[0]) / np.linalg.norm(outputs[0])
    assert measured == pytest.approx(found["output_error"], rel=100 * TOLERANCE["network_single"])
    pruned = onnx.numpy_helper.to_array(onnx.load("out.onnx").graph.initializer[0])
    assert np.count_nonzero(pruned) == 6


X4, F3 = np.ones((5, 4), np.float32), np.ones((5, 3), np.float32)


@pytest.mark.parametrize(
    ("arrays", "source", "message"),
    [
        ({"x": X4}, "a.npz", "must hold an array for each input of the model, ['x', 'factor']"),
        ({"x": X4}, "a.npz", "but lacks ['factor']\n"),
        ({"X": X4}, "a.npz", "but lacks ['x', 'factor'] and has ['X'] besides"),
        ({"x": X4, "factor": F3, "z": F3}, "a.npz", "but has ['z'] besides"),
        ({"x": X4, "factor": F3}, "a.npz:x", "'x' alone is not enough, there must be an array for"),
        ({"x": X4, "factor": F3[:4]}, "a.npz", "as many samples for all inputs, but has {'x': 5, "),
        ({"x": X4, "factor": X4}, "a.npz", "the samples of 'factor' must have shape (n_samples, 3"),
        ({"x": X4, "factor": F3[:, None]}, "a.npz", "X.reshape(-1, 3) has it"),
        ({"x": X4, "factor": np.float32(1)}, "a.npz", "'factor' must have shape"),
        ({"x": X4, "factor": F3.astype(str)}, "a.npz", "number 1 has shape (5, 3) and dtype <U"),
        ({"x": X4, "factor": F3, "y": F3[:4]}, "a.npz", "labels must be as many as the samples, 5"),
        (X4, "a.npy", "a.npy: one array is not enough: in Python, numpy.savez"),
    ],
)
def test_arrays_that_are_not_those_of_all_inputs_are_one_line(
    two_inputs, capsys, arrays, source, message
):
    np.savez("a.npz", **arrays) if isinstance(arrays, dict) else np.save("a.npy", arrays)
    words = ["--calibration", source, "--sparsity", "0.5", "-o", "out.onnx"]
    assert main(["prune", "two.onnx", *words]) == 2
    error = one_error(capsys)
    assert message in error and source.split(":")[0] in error and "--calibration" in error


def test_what_cannot_be_pruned_is_listed_with_its_reason(folder, capsys):
    """The weights of the second product are computed."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    text = """<ir_version: 8, opset_import: ["": 17]> net (float[N, 3] x) => (float[N, 2] y)
        <float[3, 4] A = {1, 0, 0, 2, 0, 1, 0, 2, 0, 0, 1, 2},
         float[4, 2] B = {1, 0, 0, 2, 0, 1, 1, 1}>
        { z = MatMul(x, A)  C = Exp(B)  y = MatMul(z, C) }"""
    onnx.save(onnx.parser.parse_model(text), "odd.onnx")
    assert main(["inspect", "odd.onnx", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["layers"]
    assert first["prunable"] and first["zeros"] == 6 and first["shape"] == [3, 4]
    assert not second["prunable"] and "Exp" in second["reason"]
    assert main(["inspect", "odd.onnx"]) == 0
    assert "1 of 2 layers" in capsys.readouterr().out


# scikit-learn -----------------------------------------------------------------------------------


@pytest.fixture
def estimator(folder):
    """A pipeline with classes that are words, fitted on blobs, in model.pkl and model.joblib."""
    joblib = pytest.importorskip("joblib")
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(1)
    names = np.array(["cat", "dog", "eel"])
    centres = 4 * rng.standard_normal((3, 5))
    y = rng.integers(3, size=300)
    X = centres[y] + rng.standard_normal((300, 5))
    mlp = MLPClassifier((16,), solver="lbfgs", max_iter=40, tol=1e-2, random_state=0)
    model = make_pipeline(StandardScaler(), mlp).fit(X, names[y])
    joblib.dump(model, "model.joblib")
    with open("model.pkl", "wb") as stream:
        pickle.dump(model, stream)
    np.savez("data.npz", X=X, y=names[y])
    return model, X, names[y]


@pytest.mark.parametrize("name", ["joblib", "pkl"])
@pytest.mark.parametrize("more", [[], ["--sparse"]])
def test_a_trusted_estimator_is_pruned(estimator, capsys, name, more):
    model, X, y = estimator
    words = ["--calibration", "data.npz", "--validation", "data.npz", "--tolerance", "0.1"]
    command = ["prune", f"model.{name}", *words, "-o", f"pruned.{name}", *more, "--json"]
    assert main(command) == 2
    assert "--trust" in one_error(capsys)
    assert main([*command, "--trust"]) == 0
    printed = capsys.readouterr()
    assert "runs any code" in printed.err and printed.err.count("\n") == 1
    found = json.loads(printed.out)["validation"]
    pruned = read_model(f"pruned.{name}", trust=True).model
    assert found["trained"] == model.score(X, y) and found["pruned"] == pruned.score(X, y)
    zeros = sum(np.sum((W.toarray() if more else W) == 0) for W in pruned[-1].coefs_)
    assert zeros > 0


def test_labels_that_are_no_classes_are_one_line(estimator, capsys):
    _, X, _ = estimator
    np.savez("fish.npz", X=X, y=np.full(len(X), "fish"))
    words = ["--calibration", "data.npz", "--validation", "fish.npz", "--tolerance", "0.1"]
    assert main(["prune", "model.pkl", *words, "-o", "p.pkl", "--trust", "--quiet"]) == 2
    assert "fish" in one_error(capsys)


def test_two_classes_are_scored_at_one_half(folder, capsys):
    pytest.importorskip("sklearn")
    from sklearn.neural_network import MLPClassifier

    rng = np.random.default_rng(2)
    X = rng.standard_normal((100, 4))
    y = (X[:, 0] + 0.3 * rng.standard_normal(100) > 0.5).astype(int)
    model = MLPClassifier((6,), solver="lbfgs", max_iter=50, tol=1.0, random_state=0).fit(X, y)
    with open("two.pkl", "wb") as stream:
        pickle.dump(model, stream)
    np.savez("data.npz", X=X, y=y)
    words = ["--calibration", "data.npz", "--validation", "data.npz", "--sparsity", "0.3"]
    assert main(["prune", "two.pkl", *words, "-o", "p.pkl", "--trust", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["validation"]["trained"] == model.score(X, y)


def test_zeros_that_a_model_cannot_store_as_such_are_told_of(graph, folder, capsys):
    import onnx

    words = ["--calibration", "data.npz", "--sparsity", "0.9", *steps("magnitude"), "--sparse"]
    model = onnx.load("model.onnx")
    model.ir_version = 5
    onnx.save(model, "old.onnx")
    np.savez("data.npz", X=graph)
    assert main(["prune", "old.onnx", *words, "-o", "p.onnx"]) == 0
    assert "--sparse changed nothing: sparse weights need ONNX IR" in capsys.readouterr().out


# Compare ----------------------------------------------------------------------------------------


def test_compare_measures_every_solver_at_equal_zeros(arrays, capsys):
    words = ["--calibration", "data.npz", "--validation", "data.npz", "--solvers", "wanda", "alps"]
    words += ["--sparsities", "0.5", "0.75", "-o", "table.json"]
    assert main(["compare", "network.npz", *words]) == 0
    text = capsys.readouterr().out
    assert "wanda at 0.75: error " in text and "Wrote table.json" in text
    with open("table.json") as stream:
        found = Comparison.from_json(stream.read())
    assert [row.solver for row in found.rows] == ["wanda", "wanda", "alps", "alps"]
    assert [row.nnz for row in found.rows[2:]] == [36, 18]
    # Of the weights of an output that is zero anyway, wanda can remove no others.
    assert found.rows[0].nnz <= 36 and found.rows[1].nnz <= 18
    assert found.trained_accuracy == 1.0 and found.n_heldout == 80
    wanda, alps = found.rows[1], found.rows[3]
    assert alps.error < wanda.error and alps.heldout_error < wanda.heldout_error


def test_compare_draws_and_prints_json(arrays, folder, capsys):
    pytest.importorskip("matplotlib")
    words = ["--calibration", "data.npz", "--solvers", "magnitude", "--sparsities", "0.5", "--json"]
    assert main(["compare", "network.npz", *words, "--plot", "plot.svg"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1 and json.loads(printed.out)["rows"][0]["nnz"] == 36
    assert "<svg" in (folder / "plot.svg").read_text()


def test_compare_takes_recipes_beside_solvers(arrays, folder, capsys):
    (folder / "base.toml").write_text('skip = "W1"\n')
    words = ["--calibration", "data.npz", "--solvers", "best", "wanda", "--sparsities", "0.5"]
    words += ["--recipe", "base.toml", "--set", "mode=parallel", "--json"]
    assert main(["compare", "network.npz", *words]) == 0
    best, wanda = json.loads(capsys.readouterr().out)["rows"]
    assert best["nnz"] == 24 + 24 and best["error"] < wanda["error"]


def test_a_plot_without_matplotlib_is_refused_before_the_work(arrays, folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    words = ["--calibration", "data.npz", "-o", "table.json", "--plot", "plot.svg"]
    assert main(["compare", "network.npz", *words]) == 2
    assert "the plot needs matplotlib" in one_error(capsys)
    assert not (folder / "table.json").exists() and not (folder / "plot.svg").exists()


def test_compare_tells_an_interruption_from_its_time_limit(arrays, capsys, monkeypatch):
    words = ["--calibration", "data.npz", "--solvers", "magnitude", "wanda", "-o", "table.json"]
    assert main(["compare", "network.npz", *words, "--time-limit", "1e-9"]) == 1

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    module = sys.modules["nettrim_solver.compare.network"]
    monkeypatch.setattr(module, "prune_network", interrupted)
    assert main(["compare", "network.npz", *words]) == 130
    assert "Wrote table.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "numpy.savez"),
        (("--calibration", "data.npz", "-o", "same.svg", "--plot", "same.svg"), "same.svg twice"),
        (("--calibration", "data.npz:X", "-o", "data.npz"), "data.npz: it is read as well"),
        (("--calibration", "data.npz", "--solvers", "nothing"), "nothing"),
        (("--calibration", "data.npz", "--sparsities", "1.5"), "sparsities"),
        (("--calibration", "data.npz", "--plot", "plot.txt"), ".png"),
        (("--calibration", "data.npz", "--solvers", "bets"), "did you mean 'best'?"),
        (("--calibration", "data.npz", "--set", "skip=W7"), "'W7' matches none"),
        (("--calibration", "data.npz", "--mode", "parallel"), "--set mode=parallel"),
        (("--calibration", "data.npz", "-o", "missing/table.json"), "cannot write"),
        (("--calibration", "data.npz", "-o", "network.npz"), "read as well"),
    ],
)
def test_bad_comparisons_are_one_line(arrays, capsys, words, message):
    assert main(["compare", "network.npz", *words]) == 2
    assert message in one_error(capsys)


# Files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", REFUSED)
def test_refused_files_say_what_to_do_in_python(folder, capsys, suffix):
    (folder / f"model{suffix}").touch()
    for words in (["inspect"], ["prune", "--tolerance", "0.1", "-o", f"out{suffix}"]):
        assert main([words[0], f"model{suffix}", *words[1:]]) == 2
        error = one_error(capsys)
        assert "In Python" in error or "in Python" in error
        assert "prune_network" in error


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        lambda path: path.mkdir(),
        lambda path: path.touch(),
        lambda path: path.write_bytes(bytes(range(256)) * 9),
        lambda path: path.write_bytes(b"PK\x03\x04 not really"),
    ],
    ids=["missing", "folder", "empty", "noise", "no archive"],
)
def test_files_that_are_no_models_are_one_line(folder, capsys, suffix, make):
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    path = folder / f"model{suffix}"
    make(path)
    assert main(["inspect", path.name, "--trust", "--quiet"]) == 2
    assert path.name in one_error(capsys)


@pytest.mark.parametrize("suffix", READERS)
def test_an_empty_file_is_called_empty(folder, capsys, suffix):
    (folder / f"model{suffix}").touch()
    assert main(["inspect", f"model{suffix}", "--trust"]) == 2
    assert one_error(capsys) == f"nettrim: error: model{suffix} is empty\n"


def test_a_truncated_network_is_one_line(arrays, folder, capsys):
    content = (folder / "network.npz").read_bytes()
    (folder / "network.npz").write_bytes(content[: len(content) // 2])
    assert main(["inspect", "network.npz"]) == 2
    assert "network.npz is not" in one_error(capsys)


def test_the_errors_of_a_network_name_its_file(folder, capsys):
    np.savez("gap.npz", W0=np.ones((2, 2)), W1=np.ones((2, 2)), b0=np.ones(2))
    assert main(["inspect", "gap.npz"]) == 2
    assert "gap.npz: b1 is missing" in one_error(capsys)


def test_an_unknown_format_is_refused(folder):
    with pytest.raises(ProblemFileError, match=r"\.onnx"):
        read_model("model.tflite")
    with pytest.raises(SettingsError, match=r"must end in \.npz"):
        check_target("a.npz", "b.onnx")


def test_reading_a_model_imports_no_other_framework(arrays):
    before = set(sys.modules)
    assert read_model("network.npz").network.n_weights == 72
    assert not {"torch", "keras"} & (set(sys.modules) - before)
