"""The benchmark of a convolutional network in ONNX, on a small network of its own."""

import json

import numpy as np
import pytest

from benchmarks import __main__ as harness
from benchmarks import convnet, datasets
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
    monkeypatch.setattr(convnet, "convnet", lambda: (data, path))
    folder = tmp_path / "results"
    monkeypatch.setattr(harness, "RESULTS", folder)
    return folder


def test_a_quick_run(results, capsys):
    assert harness.main(["convnet", "--quick"]) == 0
    assert [path.name for path in results.iterdir()] == ["convnet-quick.json"]
    result = json.loads((results / "convnet-quick.json").read_text())["result"]
    assert result["dense_accuracy"] == 1.0 and result["images"] == 100
    for row in result["trials"]:
        assert row["zeros"] == pytest.approx(0.8, abs=0.01)
        assert row["bound_holds"] and row["output_error"] <= row["output_bound"]
    best, magnitude = result["trials"]
    assert best["output_error"] < magnitude["output_error"]
    assert best["file"]["zeros"] == best["zeros"] and "file" not in magnitude
    assert best["file"]["accuracy"] == best["accuracy"] and best["file"]["difference"] < 1e-5
    assert best["file"]["met"] == (best["accuracy"] >= 1 - convnet.FILE_LOSS)
    assert "output error within its bound: 2 of 2" in capsys.readouterr().out


def test_an_interrupted_run_goes_on(results, monkeypatch):
    def interrupted(trial, *args):
        if trial.method == "magnitude":
            raise KeyboardInterrupt
        return convnet_run_trial(trial, *args)

    convnet_run_trial = convnet.run_trial
    monkeypatch.setattr(convnet, "run_trial", interrupted)
    with pytest.raises(KeyboardInterrupt):
        harness.main(["convnet", "--quick"])
    (before,) = json.loads((results / "convnet-quick.partial.json").read_text()).values()
    monkeypatch.setattr(convnet, "run_trial", convnet_run_trial)
    assert harness.main(["convnet", "--quick"]) == 0
    result = json.loads((results / "convnet-quick.json").read_text())["result"]
    assert result["trials"][0] == before and len(result["trials"]) == 2
