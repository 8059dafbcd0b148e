"""The benchmark of sample complexity: its verdicts against linear programs, its files and fits."""

import argparse
import json

import numpy as np
import pytest
from scipy.optimize import linprog

from benchmarks import __main__ as harness
from benchmarks import sample_complexity, sample_complexity_report
from benchmarks.sample_complexity_trial import (
    Line,
    Verdict,
    hidden_signals,
    instance,
    judge,
    least_count,
    planted_weights,
    trial,
)
from nettrim_solver.sample_size import statistical_dimension

from .tolerances import TOLERANCE

LINES = [
    Line("gaussian", 30, 3),
    Line("rademacher", 30, 4),
    Line("uniform", 30, 9),
    Line("hidden", 114, 3),
]


def least_norm(X, planted, all_rows):
    """Weights of least l1 norm by an LP over positive and negative parts, nothing simplified."""
    z = X @ planted
    matched, others = X[z > 0], X[z <= 0] if all_rows else X[:0]
    both = {}
    if len(others):
        both = {"A_ub": np.hstack([others, -others]), "b_ub": np.zeros(len(others))}
    n = len(planted)
    answer = linprog(
        np.ones(2 * n), A_eq=np.hstack([matched, -matched]), b_eq=z[z > 0], **both, method="highs"
    )
    assert answer.status == 0
    return answer.x[:n] - answer.x[n:]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.key)
def test_verdicts_are_those_of_linear_programs(line):
    outcomes = set()
    for number in range(4):
        X, w = instance(line, number)
        z = X @ w
        for factor in (0.6, 1.0, 1.5):
            n = round(factor * 2 * statistical_dimension(line.n_inputs, line.nnz))
            for all_rows, rows in ((True, z[:n] >= 0), (False, z[:n] > 0)):
                rows = np.flatnonzero(rows)
                verdict = judge(X[rows], z[rows] == 0, w)
                found = least_norm(X[:n], w, all_rows)
                same = np.linalg.norm(found - w) <= TOLERANCE["linear_program"] * np.linalg.norm(w)
                assert verdict.recovered is not None
                # A vertex may be w although w is not the only solution; never the reverse.
                if verdict.recovered:
                    assert same and verdict.margin > 0
                elif verdict.margin > TOLERANCE["linear_program"]:
                    assert not same
                    assert np.abs(found).sum() <= np.abs(w).sum()
                outcomes.add(verdict.recovered)
    assert outcomes == {True, False}


def test_rows_with_slack_change_nothing_and_tight_rows_can_help():
    rng = np.random.default_rng(3)
    X, w = np.maximum(rng.standard_normal((80, 20)) - 0.5, 0), planted_weights(rng, 20, 5)
    z = X @ w
    assert np.any(z == 0) and np.any(z < 0)
    gained = 0
    for n in range(8, 80, 3):
        with_all, tight_too, alone = (
            np.linalg.norm(least_norm(rows, w, all_rows) - w) < TOLERANCE["linear_program"]
            for rows, all_rows in (
                (X[:n], True), (X[:n][z[:n] >= 0], True), (X[:n], False)
            )
        )  # fmt: skip
        assert with_all == tight_too and with_all >= alone
        gained += with_all > alone
        rows = np.flatnonzero(z[:n] >= 0)
        assert judge(X[rows], z[rows] == 0, w).recovered in (with_all, False)
    assert gained


def test_equal_columns_are_never_told_apart():
    rng = np.random.default_rng(0)
    X, w = rng.standard_normal((60, 10)), np.zeros(10)
    X[:, 1], w[0] = X[:, 0], 1.0
    rows = X[X @ w > 0]
    verdict = judge(rows, np.zeros(len(rows), bool), w)
    assert verdict.recovered is False
    w[1] = 0.5
    assert judge(rows, np.zeros(len(rows), bool), w).recovered is False


@pytest.mark.parametrize("least", [5, 6, 17, 99, 100, 101])
@pytest.mark.parametrize("guess", [1, 17, 400])
def test_the_search_finds_the_least_count(least, guess):
    asked = []

    def decide(count):
        assert 5 <= count <= 100
        asked.append(count)
        return Verdict(count >= least, 1.0, 0.0, 0)

    works, fails, verdicts = least_count(decide, 5, 100, guess)
    assert (works, fails) == (least, least - 1)
    assert sorted(verdicts) == sorted(set(asked)) == sorted(asked)


def test_a_trial_is_reproducible_and_proved_on_both_sides():
    line = Line("gaussian", 60, 6)
    first, second = trial(line, 4), trial(line, 4)
    assert first.pop("seconds") > 0 and second.pop("seconds") > 0
    assert first == second and first["net_trim"] == first["matched"]
    assert first["proofs"]["recovered"]["recovered"] and first["proofs"]["not"] is not None
    X, w = instance(line, 4)
    n = first["matched"]
    for samples, recovered in ((n, True), (round(0.8 * n), False)):
        found = least_norm(X[:samples], w, all_rows=True)
        assert (np.linalg.norm(found - w) < TOLERANCE["linear_program"]) == recovered


def test_hidden_signals_are_live():
    for width, signals in hidden_signals().items():
        assert signals.shape[1] == width and signals.any(axis=0).all() and np.all(signals >= 0)


# Files ------------------------------------------------------------------------------------------

TINY = [Line("gaussian", 20, 2), Line("rademacher", 20, 2)]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The benchmark on two short lines, with its files in a folder of its own."""
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(sample_complexity, "lines", lambda quick: TINY)
    monkeypatch.setattr(sample_complexity, "cross_checks", lambda n: None)

    def run(*, jobs=1, minutes=None, fresh=False):
        result = sample_complexity.run(
            argparse.Namespace(quick=True, jobs=jobs, minutes=minutes, fresh=fresh, trials=12)
        )
        # Seconds differ from run to run, the rest must not.
        result["seconds_of_all_trials"] = 0.0
        for column in result["columns"]:
            column["seconds"] = 0.0
        earlier = result.pop("earlier_trials")
        return harness.plain(result), earlier

    return run


def test_an_interrupted_run_goes_on_to_the_same_result(tiny, tmp_path):
    whole, _ = tiny()
    assert whole["whole"] and whole["trials_done"] == 24
    log = sample_complexity.log_file(True)
    kept = log.read_bytes().splitlines(keepends=True)
    # Killed in the middle of a line.
    log.write_bytes(b"".join(kept[:7]) + kept[7][:30])
    part, earlier = tiny(minutes=0)
    assert earlier == part["trials_done"] == 7 and not part["whole"]
    assert "NOT ALL" in sample_complexity.describe(part)
    again, earlier = tiny()
    assert again == whole and earlier == 7
    assert tiny()[1] == 24 and tiny(fresh=True) == (whole, 0)


def test_two_workers_find_what_one_finds(tiny):
    assert tiny(jobs=2, fresh=True) == tiny(jobs=1, fresh=True)


def test_the_result_is_drawn_and_told(tiny, tmp_path):
    result, _ = tiny()
    path = tmp_path / "map.png"
    sample_complexity.plot(json.loads(json.dumps(result)), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "gaussian" in sample_complexity_report.markdown(result)


# Fits -------------------------------------------------------------------------------------------


def rows_of(line, least):
    return [
        {"line": line.key, "trial": k, "matched": p, "net_trim": p, "undecided": 0, "seconds": 0.1,
         "proofs": {}}
        for k, p in enumerate(least)
    ]  # fmt: skip


def test_the_fit_finds_the_constant_of_exact_data():
    lines = [Line("gaussian", n, s) for n in (100, 1000) for s in (5, 20)]
    rows = []
    for line in lines:
        unit = line.nnz * np.log(line.n_inputs / line.nnz)
        rows += rows_of(line, [2.0 * unit] * 60 + [3.0 * unit] * 40)
    found = sample_complexity_report.summary(lines, rows, 100)
    fits = found["fits"]["gaussian"]
    for p, constant in (("0.5", 2.0), ("0.95", 3.0)):
        for one in (fits[p], *fits[p]["by_width"].values()):
            assert one["C"] == pytest.approx(constant, rel=TOLERANCE["norm"])
            assert one["interval"][0] <= one["C"] * (1 + TOLERANCE["norm"])
            assert one["interval"][1] >= one["C"] * (1 - TOLERANCE["norm"])
    assert found["whole"] and all(one["met"] for one in found["met"])


def test_probabilities_are_shares_of_trials_and_misses_are_told():
    line = Line("gaussian", 100, 2)
    found = sample_complexity_report.summary([line], rows_of(line, [1000, 2000, None, None]), 4)
    (column,) = found["columns"]
    for p, count in zip(column["samples"], column["recovered"]["net_trim"], strict=True):
        assert count == sum(least <= p for least in (1000, 2000))
    assert column["out_of_reach"] == 2 and column["quantiles"]["net_trim"]["0.95"] == np.inf
    assert found["fits"]["gaussian"]["0.95"]["C"] is None
    assert [one["met"] for one in found["met"]] == [False, True]
    assert "MISSED" in sample_complexity.describe(harness.plain(found))
