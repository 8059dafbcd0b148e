"""The benchmark of errors along the depth: what it reports is what its schemes are."""

import json
from argparse import Namespace

import numpy as np
import pytest

from benchmarks import depth
from benchmarks.__main__ import plain
from benchmarks.datasets import Classifier
from nettrim_solver.frameworks import from_npz

from .tolerances import TOLERANCE


@pytest.fixture(scope="module")
def result():
    rng = np.random.default_rng(0)
    sizes = (6, 20, 15, 3)
    arrays = {}
    for k, (n, m) in enumerate(zip(sizes, sizes[1:], strict=False)):
        arrays |= {f"W{k}": rng.standard_normal((n, m)), f"b{k}": 0.1 * rng.standard_normal(m)}
    X = rng.standard_normal((120, 6))
    small = Classifier("small", from_npz(arrays), X[:80], X[80:], rng.integers(0, 3, 40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(depth, "spiral", lambda n: small)
        patch.setattr(depth.datasets, "digits", lambda: small)
        return plain(depth.run(Namespace(quick=True)))


def test_errors_keep_their_bounds_and_the_first_layer_its_tolerance(result):
    runs = result["networks"][0]["runs"]
    assert {run["scheme"] for run in runs} == set(depth.SCHEMES)
    for run in runs:
        assert len(run["layers"]) == 3
        for layer in run["layers"]:
            assert layer["network_error"] <= layer["network_bound"]
        first = run["layers"][0]["network_bound"]
        assert abs(first / run["tolerance"] - 1) <= 10 * TOLERANCE["proved"]


def test_the_schemes_differ_behind_the_first_layer_alone(result):
    by_scheme = {
        run["scheme"]: [layer["network_error"] for layer in run["layers"]]
        for run in result["networks"][0]["runs"]
        if run["tolerance"] == max(depth.TOLERANCES_QUICK)
    }
    firsts = [errors[0] for errors in by_scheme.values()]
    assert np.ptp(firsts) <= TOLERANCE["same_answer"]
    assert len({errors[1] for errors in by_scheme.values()}) == len(depth.SCHEMES)


def test_the_result_is_drawn_and_told(result, tmp_path):
    path = tmp_path / "depth.png"
    depth.plot(json.loads(json.dumps(result)), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    for scheme in depth.SCHEMES:
        assert scheme in depth.describe(result)
