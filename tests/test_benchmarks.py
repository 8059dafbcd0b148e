"""The harness of the benchmarks: what it lists, what it writes, and what it refuses."""

import json
import types

import numpy as np
import pytest

from benchmarks import __main__ as harness


@pytest.fixture
def results(tmp_path, monkeypatch):
    folder = tmp_path / "results"
    monkeypatch.setattr(harness, "RESULTS", folder)
    return folder


@pytest.fixture
def tiny(monkeypatch):
    """A benchmark that takes no time."""
    module = types.ModuleType("benchmarks.tiny")
    module.__doc__ = "How large is nothing?"

    def add_arguments(parser):
        parser.add_argument("--size", type=int, default=3)

    def run(args):
        return {"sizes": np.arange(args.size), "worst": np.float64(np.inf), "quick": args.quick}

    module.add_arguments, module.run = add_arguments, run
    module.describe = lambda result: f"sizes {result['sizes']}"
    module.plot = lambda result, path: path.write_bytes(b"\x89PNG")
    load = harness.importlib.import_module
    monkeypatch.setattr(
        harness.importlib, "import_module",
        lambda name: module if name == "benchmarks.tiny" else load(name),
    )  # fmt: skip
    known = harness.benchmark_summaries
    monkeypatch.setattr(harness, "benchmark_summaries", lambda: known() | {"tiny": "How large?"})
    return module


def test_the_benchmarks_of_the_issue_are_listed(capsys):
    assert harness.main([]) == 0
    listed = capsys.readouterr().out
    for name in ("layer", "agreement", "cold_start"):
        assert name in listed
    summaries = harness.benchmark_summaries()
    assert {"layer", "agreement", "cold_start"} <= summaries.keys()
    assert all(summary.endswith(("?", ".")) for summary in summaries.values()), summaries
    assert "__main__" not in summaries and "environment" not in summaries


def test_a_name_that_is_none(capsys, results):
    assert harness.main(["nonsense"]) == 2
    answer = capsys.readouterr()
    assert "nonsense" in answer.err and "agreement" in answer.err
    assert not results.exists()


@pytest.mark.parametrize("quick", [False, True])
def test_a_result_is_written_beside_its_environment(tiny, results, capsys, quick):
    assert harness.main(["tiny", "--size", "2", *["--quick"] * quick]) == 0
    stem = "tiny-quick" if quick else "tiny"
    assert {path.name for path in results.iterdir()} == {f"{stem}.json", f"{stem}.png"}
    record = json.loads((results / f"{stem}.json").read_text())
    assert record["benchmark"] == "tiny" and record["quick"] is quick
    assert record["result"] == {"sizes": [0, 1], "worst": "inf", "quick": quick}
    assert record["seconds"] >= 0
    assert record["environment"]["load_average_before"]
    assert "sizes [0, 1]" in capsys.readouterr().out


def test_nothing_is_written_unless_wanted(tiny, results):
    assert harness.main(["tiny", "--no-save"]) == 0
    assert not results.exists()


def test_an_option_that_is_none_ends_before_the_run(tiny, results):
    with pytest.raises(SystemExit):
        harness.main(["tiny", "--colour"])
    assert not results.exists()


def test_a_run_that_fails_leaves_the_old_result(tiny, results, monkeypatch):
    assert harness.main(["tiny"]) == 0
    before = (results / "tiny.json").read_bytes()

    def fail(args):
        raise ZeroDivisionError

    monkeypatch.setattr(tiny, "run", fail)
    with pytest.raises(ZeroDivisionError):
        harness.main(["tiny"])
    assert (results / "tiny.json").read_bytes() == before


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_writing_is_all_or_nothing(tmp_path, error):
    path = tmp_path / "result.json"
    path.write_text("old")

    def half(temporary):
        temporary.write_text("ne")
        raise error

    with pytest.raises(error):
        harness.write_atomically(path, half)
    assert path.read_text() == "old"
    with path.open() as reader:
        harness.write_atomically(path, lambda temporary: temporary.write_text("new"))
        assert reader.read() == "old", "a file that somebody reads is replaced, not rewritten"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({1: np.float32(0.5)}, {"1": 0.5}),
        ((np.bool_(True), None, "a"), [True, None, "a"]),
        (np.array([[1, 2]]), [[1, 2]]),
        ([float("nan"), -np.inf], ["nan", "-inf"]),
    ],
)
def test_results_become_plain(value, expected):
    plain = harness.plain(value)
    assert plain == expected
    json.dumps(plain, allow_nan=False)


def test_a_quick_agreement_run(results, monkeypatch):
    from benchmarks import agreement

    monkeypatch.setattr(agreement, "N_PROBLEMS_QUICK", 6)
    monkeypatch.setattr(agreement, "N_PLANTED_QUICK", 2)
    assert harness.main(["agreement", "--quick"]) == 0
    record = json.loads((results / "agreement-quick.json").read_text())
    assert record["result"]["random"]["n_agree"] == record["result"]["random"]["n_proved"] == 6
    assert record["result"]["planted"]["n_agree"] == 2
