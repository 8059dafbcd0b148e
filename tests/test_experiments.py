"""The benchmark of tolerances, noise, and the page of experiments; none of it needs PyTorch."""

import json
from argparse import Namespace

import numpy as np
import pytest

from benchmarks import __main__ as harness
from benchmarks import experiments_report, finetune_report, tolerance
from benchmarks.datasets import Classifier
from benchmarks.noise import SIGMAS, NoisySamples
from nettrim_solver.frameworks import from_npz


def small_classifier():
    """A network of two hidden layers, samples in classes by itself, and their labels."""
    rng = np.random.default_rng(0)
    sizes = (12, 24, 10, 3)
    arrays = {}
    for k, (n, m) in enumerate(zip(sizes, sizes[1:], strict=False)):
        arrays |= {f"W{k}": rng.standard_normal((n, m)) / np.sqrt(n), f"b{k}": np.zeros(m)}
    network = from_npz(arrays)
    X = rng.standard_normal((300, 12))
    labels = network(X).argmax(axis=1)
    data = Classifier("digits", network, X[:200], X[200:], labels[200:])
    return data, labels[:200]


def test_noise_is_the_same_for_every_network_and_hurts():
    data, _ = small_classifier()
    noisy = NoisySamples(data)
    first = noisy.accuracies(data.network)
    assert first == NoisySamples(data).accuracies(data.network)
    assert list(first) == [f"{sigma:g}" for sigma in SIGMAS]
    assert first["0.5"] < first["0.1"] <= 1.0


def test_published_figures_stand_with_their_source():
    row = {
        "network": "LeNet-300-100", "method": "l0", "allocation": "uniform", "zeros_asked": 0.8,
        "seed": 0, "epochs": 4, "before": {"accuracy": 0.9, "noise": {"0.1": 0.8}},
        "after": {"accuracy": 0.95, "noise": {"0.1": 0.85}},
    }  # fmt: skip
    text = finetune_report.markdown({"rows": [row], "published": finetune_report.PUBLISHED})
    assert "| 0.9000 → 0.9500 |" in text and "| 0.8000 → 0.8500 |" in text
    assert "80 %: 0.9664 (Dong, Chen, Pan 2017" in text and "Aghasi" not in text


def test_zeros_over_the_tolerance(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(tolerance.datasets, "digits", lambda: small_classifier()[0])
    result = harness.plain(tolerance.run(Namespace(quick=True, seeds=1, minutes=None)))
    assert not list(tmp_path.iterdir())
    for formulation in tolerance.FORMULATIONS:
        rows = [row for row in result["rows"] if row["formulation"] == formulation]
        loose, tight = rows
        assert loose["tolerance"] > tight["tolerance"] and loose["zeros"] > tight["zeros"]
        for row in rows:
            assert row["status"] == "optimal"
            assert row["output_error"] <= row["output_bound"]
            assert row["magnitude"]["zeros"] == row["zeros"]
    strict, pooled = (result["rows"][k] for k in (0, 2))
    assert strict["zeros"] <= pooled["zeros"]
    assert f"{strict['zeros']:.3f}" in tolerance.describe(result)
    tolerance.plot(json.loads(json.dumps(result)), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", experiments_report.TABLES)
def test_the_page_holds_the_tables_of_the_results(name):
    assert experiments_report.markdown(name) in experiments_report.PAGE.read_text(encoding="utf-8")
