"""The benchmark of a convolutional network in ONNX, on a small network of its own."""

import json

import numpy as np
import pytest

from benchmarks import __main__ as harness
from benchmarks import convnet, datasets, trials
from nettrim_solver.frameworks import from_onnx

from .test_onnx import Graph, N, gemm, onnx


@pytest.fixture
def results(tmp_path, monkeypatch):
    g = Graph((N, 1, 8, 8))
    x = g("Relu", g("Conv", "x", g.array(4, 1, 3, 3), g.array(4)))
    x = g("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    path = tmp_path / "net.onnx"
    onnx.save(g.model(gemm(g, g("Flatten", x), 36, 10)), path)
    network = from_onnx(path)
    X = np.random.default_rng(0).random((300, 1, 8, 8)).astype(np.float32)
    data = datasets.Classifier("small", network, X, X[200:], network(X[200:]).argmax(axis=1))
    monkeypatch.setattr(datasets, "mnist_8", lambda: data)
    monkeypatch.setattr(datasets, "data_file", lambda name: path)
    monkeypatch.setattr(convnet, "compare_with_torch", lambda quick: [])
    folder = tmp_path / "results"
    monkeypatch.setattr(harness, "RESULTS", folder)
    return folder


def test_a_quick_run(results, capsys):
    assert harness.main(["convnet", "--quick"]) == 0
    assert [path.name for path in results.iterdir()] == ["convnet-quick.json"]
    result = json.loads((results / "convnet-quick.json").read_text())["result"]
    assert result["dense"] == {"small": 1.0} and not result["torch"]
    for row in result["rows"]:
        assert row["zeros"] == pytest.approx(0.8, abs=0.01) and row["samples"] == 100
    best, magnitude = result["rows"]
    assert best["output_error"] < magnitude["output_error"]
    assert best["file"]["zeros"] == best["zeros"] and "file" not in magnitude
    assert best["file"]["score"] == best["score"] and best["file"]["difference"] < 1e-5
    assert "the written files" in capsys.readouterr().out


def test_an_interrupted_run_goes_on(results, monkeypatch):
    real = trials.run_trial

    def interrupted(trial, *args):
        if trial.recipe == "magnitude":
            raise KeyboardInterrupt
        return real(trial, *args)

    monkeypatch.setattr(trials, "run_trial", interrupted)
    with pytest.raises(KeyboardInterrupt):
        harness.main(["convnet", "--quick"])
    (before,) = json.loads((results / "convnet-quick.partial.json").read_text()).values()
    monkeypatch.setattr(trials, "run_trial", real)
    assert harness.main(["convnet", "--quick"]) == 0
    result = json.loads((results / "convnet-quick.json").read_text())["result"]
    assert result["rows"][0] == before and len(result["rows"]) == 2
