"""The planner of calibration samples: its formulas, its limits, and the source of its constants."""

import json

import numpy as np
import pytest
from scipy.stats import norm

from benchmarks.environment import ROOT
from nettrim_solver.exceptions import SettingsError
from nettrim_solver.sample_size import SPREADS, required_samples, statistical_dimension

from .tolerances import TOLERANCE

RESULT = ROOT / "benchmarks" / "results" / "sample_complexity.json"


@pytest.fixture(scope="module")
def result():
    return json.loads(RESULT.read_text())["result"]


def test_the_constants_are_those_of_the_result_file(result):
    assert result["whole"]
    for kind, spread in SPREADS.items():
        assert spread == round(result["planner"][kind]["spread"], 2), kind
    assert set(SPREADS) | {"hidden"} == set(result["planner"])


def test_the_planner_keeps_its_promise_on_the_measured_trials(result):
    for kind in SPREADS:
        columns = [c for c in result["columns"] if c["kind"] == kind]
        for probability in (0.5, 0.95):
            shares = []
            for c in columns:
                n, s = c["n_inputs"], c["nnz"]
                planned = required_samples(n, s, probability=probability, inputs=kind)
                shares.append(np.mean(np.array(c["least"]["net_trim"]) <= planned))
            assert abs(np.mean(shares) - probability) < TOLERANCE["planned_share"]


@pytest.mark.parametrize("n, s", [(100, 5), (784, 50), (1000, 200)])
@pytest.mark.parametrize("mu", [1.2, 2.0])
def test_the_theorem_is_the_formula(n, s, mu):
    probability = 1 - n ** (1 - mu)
    expected = (11 * s + 7) * mu * np.log(n)
    found = required_samples(n, s, probability=probability, method="theorem")
    assert 0 <= found - expected < 1 + 1e-9 * expected


@pytest.mark.parametrize("inputs", SPREADS)
@pytest.mark.parametrize("probability", [0.5, 0.9, 0.99])
def test_the_fit_is_the_law(inputs, probability):
    middle = 2 * statistical_dimension(500, 25)
    expected = middle + SPREADS[inputs] * norm.ppf(probability) * np.sqrt(middle)
    found = required_samples(500, 25, probability=probability, inputs=inputs)
    assert 0 <= found - expected < 1


def test_statistical_dimension_is_the_distance_to_the_cone():
    """Its definition: the mean squared distance of a Gaussian vector to the scaled normal cone."""
    n, s, rng = 40, 6, np.random.default_rng(0)
    g = rng.standard_normal((4000, n))
    tau = np.linspace(0, 5, 501)[:, None]
    on = np.sum((g[:, None, :s] - tau) ** 2, axis=2)
    off = np.array([np.sum(np.maximum(np.abs(g[:, s:]) - t, 0) ** 2, axis=1) for t in tau]).T
    sampled = (on + off).mean(axis=0).min()
    assert abs(statistical_dimension(n, s) / sampled - 1) < TOLERANCE["monte_carlo"]


@pytest.mark.parametrize("method", ["fit", "theorem"])
def test_more_is_needed_for_more(method):
    def grow(values, call):
        found = [call(v) for v in values]
        assert found == sorted(found) and found[0] < found[-1]

    grow((0.5, 0.8, 0.95, 0.99), lambda p: required_samples(300, 20, probability=p, method=method))
    grow(range(1, 301), lambda s: required_samples(300, s, method=method))
    grow((20, 40, 100, 1000, 10**6), lambda n: required_samples(n, 20, method=method))


@pytest.mark.parametrize("n", [1, 7, 300])
def test_dense_weights_need_twice_as_many_samples(n):
    assert required_samples(n, n, probability=0.5) == 2 * n


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0, 1), "n_inputs"),
        ((10.0, 1), "n_inputs"),
        ((10, 0), "nnz"),
        ((10, 11), "nnz"),
        ((10, 2, {"method": "guess"}), "method"),
        ((10, 2, {"inputs": "hidden"}), "inputs"),
        ((10, 2, {"probability": 0.4}), "probability"),
        ((10, 2, {"probability": 0.999}), "probability"),
        ((10, 2, {"probability": "0.9"}), "probability"),
        ((10, 2, {"probability": np.nan}), "probability"),
        ((10, 2, {"probability": 1.0, "method": "theorem"}), "probability"),
        ((10, 2, {"probability": 0.0, "method": "theorem"}), "probability"),
    ],
)
def test_bad_arguments_are_named(arguments, name):
    n, s, *rest = arguments
    with pytest.raises(SettingsError, match=name):
        required_samples(n, s, **(rest[0] if rest else {}))
