"""The summary of the benchmarks: complete, tolerant of missing files, no verdict lost."""

import argparse
import json
import re
import shutil

import pytest

from benchmarks import __main__ as harness
from benchmarks import summary

RECORD = {
    "benchmark": "cold_start",
    "environment": {"date": "2026-01-02T03:04:05+00:00", "git_revision": "abc", "packages": {}},
    "result": {"met": {"import": True, "warm": False}},
}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(summary, "PAGE", tmp_path / "summary.md")
    return tmp_path


def test_the_page_is_that_of_the_result_files():
    page = summary.PAGE.read_text(encoding="utf-8")
    assert page == summary.describe(summary.collect(harness.RESULTS)) + "\n", (
        "run: python -m benchmarks summary"
    )


def test_every_benchmark_is_on_the_page_with_its_date():
    page = summary.describe(summary.collect(harness.RESULTS))
    dated = 0
    for name in harness.benchmark_summaries().keys() - {"summary"}:
        (row,) = (line for line in page.splitlines() if re.match(rf"\| \[?`{name}`", line))
        path = harness.RESULTS / f"{name}.json"
        if not path.is_file():
            assert "no result" in row
            continue
        about = json.loads(path.read_text())["environment"]
        assert about["date"][:10] in row and about["git_revision"] in row
        assert f"\n## {name}\n" in page
        dated += 1
    assert dated >= 10


def test_missing_and_damaged_files_are_said_to_be_so(results):
    (results / "cold_start.json").write_text(json.dumps(RECORD))
    (results / "agreement.json").write_text('{"benchmark": "agre')
    (results / "depth.json").write_text("[1, 2]")
    page = summary.describe(summary.collect(results))
    overview, _, sections = page.partition("\n## ")
    assert "| 2026-01-02 | abc | 1 met, **1 missed** |" in overview
    for name in ("agreement", "depth", "layer"):
        (row,) = (line for line in overview.splitlines() if line.startswith(f"| `{name}` |"))
        assert "no result" in row
    assert sections.startswith("cold_start\n") and "## " not in sections
    assert "- Missed: warm" in sections
    # The benchmark's own words need fields that this record lacks.
    assert "cannot read the file (KeyError" in sections


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"met": {"import": True, "warm": False}}, {"import": True, "warm": False}),
        (
            {"met": {"pairs": {"wanted": 60.0, "worst": 113.94, "disturbed": [1], "met": False}}},
            {"pairs: wanted 60, worst 113.9, disturbed by other work": False},
        ),
        ({"met": [{"what": "below the line", "met": True, "not": []}]}, {"below the line": True}),
        (
            {"verdicts": [{"name": "a", "wanted": 0, "met": True}, {"name": "b", "met": False}]},
            {"a, wanted 0": True, "b": False},
        ),
        ({"trials": [{"zeros": 0.5}, {"file": {"zeros": 0.8, "met": False}}]},
         {"file: zeros 0.8": False}),
        ({"cases": [1, "met", None]}, {}),
    ],
)  # fmt: skip
def test_verdicts_of_every_shape_are_found(result, expected):
    assert dict(summary.verdicts("any", result)) == expected


def test_agreement_is_judged_by_its_counts():
    part = {"n_problems": 3, "n_agree": 3, "n_proved": 2}
    found = summary.verdicts("agreement", {"random": part, "planted": part})
    assert [met for _, met in found] == [True, False, True, False]


def test_the_command_writes_the_page_and_no_result(results, capsys):
    shutil.copy(harness.FOLDER / "results" / "agreement.json", results)
    assert harness.main(["summary", "--no-save"]) == 0
    assert {path.name for path in results.iterdir()} == {"agreement.json"}
    assert harness.main(["summary"]) == 0
    assert {path.name for path in results.iterdir()} == {"agreement.json", "summary.md"}
    written = (results / "summary.md").read_text(encoding="utf-8")
    assert "Clarabel" in written and written.strip() in capsys.readouterr().out


def test_a_quick_run_writes_nothing(results):
    summary.run(argparse.Namespace(save=True, quick=True))
    assert not list(results.iterdir())
