"""The harness of the benchmarks: what it lists, what it writes, and what it refuses."""

import json
import types
from dataclasses import asdict

import numpy as np
import pytest

import nettrim_solver
from benchmarks import __main__ as harness
from benchmarks import (
    ablation,
    compare,
    compare_known,
    compare_layers,
    compare_report,
    count_search,
    layer_references,
    layer_report,
    pages,
    within_radius,
)
from benchmarks.environment import environment
from benchmarks.layer import N_REFERENCE, TARGETS, Layer, all_cases, time_cases
from nettrim_solver import instances
from nettrim_solver.penalty_search import options
from nettrim_solver.solvers import SOLVERS

from .tolerances import TOLERANCE


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
    for name in ("layer", "agreement", "cold_start", "compare"):
        assert name in listed
    summaries = harness.benchmark_summaries()
    assert {"layer", "agreement", "cold_start", "compare"} <= summaries.keys()
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


# compare ----------------------------------------------------------------------------------------


@pytest.fixture
def cases(monkeypatch):
    """Cases that take no time, and the list of those that were run."""
    ran = []

    def run_case(task, n_threads, *, case, seed, quick):
        ran.append(case if seed == 0 else f"{case}, seed {seed}")
        here = environment() | {"load_average_before": None}
        return {"case": case, "seed": seed, "layers": [], "n_threads": 1, "environment": here}

    monkeypatch.setattr(compare, "in_fresh_process", run_case)
    return ran


def stored(results):
    return json.loads((results / "compare.json").read_text())["result"]


def test_a_quick_network_run(results, capsys):
    assert harness.main(["lenet", "--quick"]) == 0
    assert {path.name for path in results.iterdir()} == {"lenet-quick.json"}
    result = json.loads((results / "lenet-quick.json").read_text())["result"]
    by_recipe = {row["recipe"]: row for row in result["rows"]}
    assert by_recipe["best"]["score"] > by_recipe["magnitude"]["score"]
    assert by_recipe["best"]["output_error"] < by_recipe["alps"]["output_error"]
    assert all(abs(row["zeros"] - 0.9) < 1e-3 for row in result["rows"])
    assert "magnitude" in capsys.readouterr().out


def test_a_quick_count_search(results, monkeypatch, capsys):
    small = instances.random_relu_layer(60, 12, 70, intercept=True, seed=0).problem
    monkeypatch.setattr(count_search, "gaussian", lambda: small)
    cases = (("gaussian", {}, "layer", (0.75,)), ("gaussian", {}, "output", (0.75,)))
    monkeypatch.setattr(count_search, "CASES", cases)
    monkeypatch.setattr(
        count_search, "in_fresh_process",
        lambda task, n_threads, **arguments: count_search.time_cases(**arguments),
    )  # fmt: skip
    before = options.solve_program
    assert harness.main(["count_search", "--quick"]) == 0
    assert options.solve_program is before
    result = json.loads((results / "count_search-quick.json").read_text())["result"]
    layer, output = result["rows"]
    assert (layer["scope"], output["scope"]) == ("layer", "output")
    for row in result["rows"]:
        assert row["reached"] >= 0.75 and row["status"] == row["solve_status"] == "optimal"
        assert row["gap"] <= TOLERANCE["proved"] and row["violation"] <= TOLERANCE["proved"]
        assert row["ratio"] == row["search_cpu_seconds"] / row["solve_cpu_seconds"]
        assert 1 <= row["full_solves"] <= row["layers_solved"] < row["solves"]
    assert (
        layer["reached"] == 0.75 and layer["solves"] > layer["full_solves"]
    )  # some outputs come first
    assert result["worst_ratio"] == max(row["ratio"] for row in result["rows"])
    assert result["met"] == (result["worst_ratio"] <= count_search.TARGET)
    assert "gaussian, scope output" in capsys.readouterr().out


def test_a_quick_ablation(results, capsys):
    assert harness.main(["ablation", "--quick"]) == 0
    result = json.loads((results / "ablation-quick.json").read_text())["result"]
    errors = {row["recipe"]: row["output_error"] for row in result["rows"]}
    assert set(errors) == set(ablation.PARTS)
    assert errors["best"] < errors["no refit to the output"]
    assert "dense" in capsys.readouterr().out


def test_a_quick_run_within_the_radius(results, capsys):
    assert harness.main(["within_radius", "--quick"]) == 0
    (row,) = json.loads((results / "within_radius-quick.json").read_text())["result"]["rows"]
    assert row["met"] and row["proved"] and row["violation"] <= within_radius.KEPT
    assert row["zeros"] > row["convex_zeros"] and row["output_error"] <= row["output_bound"]
    assert "met: digits" in capsys.readouterr().out


def test_a_quick_comparison(results, capsys):
    pruners = [name for name, info in SOLVERS.items() if info.needs_W]
    assert harness.main(["compare", "--quick", "--case", "a"]) == 0
    assert {path.name for path in results.iterdir()} == {"compare-quick.json", "compare-quick.png"}
    result = json.loads((results / "compare-quick.json").read_text())["result"]
    assert list(result["cases"]) == ["a"]
    (layer,) = result["cases"]["a"]["layers"]
    methods = compare_report.methods(layer)
    assert {*pruners, *compare.STAGES} <= set(methods)
    assert {"alps+swaps", "net-trim l1+refit", "magnitude+refit"} <= set(methods)
    assert all(len(rows) == 3 and not rows[0]["failure"] for rows in methods.values())
    assert methods["net-trim l1"][0]["gap"] <= TOLERANCE["proved"]
    assert methods["alps"][0]["error"] < methods["magnitude"][0]["error"]
    assert set(layer["repeats"]) == set(pruners)
    for runs in layer["repeats"].values():
        assert len(runs) > 1 and all(run["seconds"] > 0 for run in runs)
    assert methods["obs"][0]["peak_memory"] > 0 and methods["obs"][1]["peak_memory"] is None
    assert all(verdict["met"] for verdict in result["verdicts"]), result["verdicts"]
    assert "net-trim l0" in capsys.readouterr().out


def test_methods_are_timed_at_the_zeros_of_net_trim():
    entry = compare.run_case("wall_clock", 0, True)
    for layer in entry["layers"]:
        timed = layer["timed"]
        assert [row["label"] for row in timed][:2] == ["Net-Trim", "Net-Trim+refit-box"]
        assert {"obs", "dns"} <= {row["label"] for row in timed}
        assert len({row["zeros"] for row in timed}) == 1
        assert all(row["seconds"] > 0 and row["cpu_seconds"] > 0 for row in timed)
        assert all(row["pairs"] > 0 for row in timed)
        assert timed[0]["gap"] <= TOLERANCE["proved"] and timed[0]["status"] == "optimal"
        assert timed[1]["activation_error"] < timed[0]["activation_error"] <= layer["tolerance"]
    head, cells = compare_report.grid(entry, entry["layers"][0], False)
    assert head[0] == "method" and cells[0][0] == "Net-Trim" and len(cells) == len(timed)


def test_a_comparison_goes_on_after_an_interruption(cases, results, monkeypatch):
    run_case = compare.in_fresh_process

    def dies(task, n_threads, *, case, **more):
        if case == "c":
            raise KeyboardInterrupt
        return run_case(task, n_threads, case=case, **more)

    monkeypatch.setattr(compare, "in_fresh_process", dies)
    with pytest.raises(KeyboardInterrupt):
        harness.main(["compare"])
    assert cases == ["a", "b"] and [p.name for p in results.iterdir()] == ["compare.partial.json"]
    monkeypatch.setattr(compare, "in_fresh_process", run_case)
    assert harness.main(["compare"]) == 0
    assert cases == ["a", "b", "c", "d", "e", "f", "wall_clock"]
    assert list(stored(results)["cases"]) == cases
    assert not (results / "compare.partial.json").exists()


@pytest.mark.parametrize("change", ["--fresh", "revision"])
def test_an_interrupted_comparison_of_other_code_is_forgotten(cases, results, monkeypatch, change):
    results.mkdir()
    old = {"case": "a", "seed": 0, "layers": [], "n_threads": 1, "environment": environment()}
    (results / "compare.partial.json").write_text(json.dumps({"a": old}))
    words = []
    if change == "revision":
        monkeypatch.setattr(compare, "environment", lambda: environment() | {"git_revision": "x"})
    else:
        words = ["--fresh"]
    assert harness.main(["compare", "--case", "a", *words]) == 0
    assert cases == ["a"]


def test_some_cases_of_a_comparison_leave_the_others_as_they_were(cases, results):
    assert harness.main(["compare", "--case", "c", "--case", "d"]) == 0
    first = stored(results)["cases"]
    assert harness.main(["compare", "--case", "d", "--case", "a", "--seeds", "2"]) == 0
    second = stored(results)["cases"]
    assert list(second) == ["a", "a, seed 1", "c", "d"] and second["c"] == first["c"]
    assert cases == ["c", "d", "d", "a", "a, seed 1"]


def test_an_unsaved_comparison_leaves_no_trace(cases, results):
    assert harness.main(["compare", "--no-save", "--case", "a"]) == 0
    assert not results.exists()


def test_the_layers_of_every_case(monkeypatch):
    monkeypatch.delenv("NETTRIM_DATA", raising=False)
    rng = np.random.default_rng(0)
    shapes = [(7, 5), (5, 4), (4, 3)]
    weights = [rng.standard_normal(shape) for shape in shapes]
    biases = [rng.standard_normal(shape[1]) for shape in shapes]
    images, fresh = rng.random((30, 7)), rng.random((20, 7))
    data = weights, biases, images, fresh, np.zeros(20, dtype=int)
    monkeypatch.setattr(compare_layers, "lenet_data", lambda quick: data)
    for case in "abcdef":
        for layer in compare_layers.layers(case, True, 0):
            found = nettrim_solver.compare(
                layer.problem, solvers=["wanda"], sparsities=[0.5], accuracy=layer.accuracy,
                **layer.heldout,
            )  # fmt: skip
            (row,) = found.rows
            assert 0 < getattr(row, layer.metric) < 1
            assert 0 < getattr(row, f"heldout_{layer.metric}") < 2
            assert (found.trained_accuracy is not None) == (case == "d")
    assert len(list(compare_layers.layers("d", True, 0))) == 4


@pytest.mark.parametrize("folder", [None, "empty"])
def test_a_case_without_its_data_is_skipped_with_a_reason(monkeypatch, tmp_path, folder):
    if folder is None:
        monkeypatch.delenv("NETTRIM_DATA", raising=False)
    else:
        monkeypatch.setenv("NETTRIM_DATA", str(tmp_path))
    monkeypatch.setattr(compare, "warm_up", lambda: None)
    entry = compare.run_case("d", 0, True)
    assert "NETTRIM_DATA" in entry["skipped"] and entry["layers"] == []
    result = {"quick": True, "cases": {"d": entry}, "verdicts": []}
    assert f"case d skipped: {entry['skipped']}" in compare_report.describe(result)
    assert entry["skipped"] in compare_report.markdown(result)


def known_case(factor, seed=0):
    """Case c with the known figures times a factor, and one method of ours."""
    known = compare_known.KNOWN["c"]
    rows = [
        {
            "solver": name, "refinement": "", "sparsity": sparsity, "zeros": sparsity,
            "nnz": round(10 * (1 - sparsity)),
            "error": factor * error, "heldout_error": fresh, "seconds": 0.1, "gap": None,
            "violation": None, "failure": None, "status": "pruned",
        }
        for name in ("alps", "obs")
        for sparsity, error, fresh in zip(
            compare.SPARSITIES, known[name].errors, known[name].heldout, strict=True
        )
    ]  # fmt: skip
    layer = {"name": "small", "shape": [5, 5, 2], "n_heldout": 4, "metric": "error",
             "trained_accuracy": None, "rows": rows}  # fmt: skip
    case = {"case": "c", "seed": seed, "layers": [layer], "n_threads": 1,
            "environment": environment()}  # fmt: skip
    return {"quick": False, "cases": {"c": case}, "verdicts": []}


@pytest.mark.parametrize(
    ("factor", "seed", "met"), [(1.0, 0, True), (1.02, 0, False), (1.02, 1, True), (0.5, 0, True)]
)
def test_a_method_must_come_within_one_per_cent_of_its_figures(factor, seed, met):
    result = known_case(factor, seed)
    verdicts = {verdict["name"]: verdict for verdict in compare_report.verdicts(result)}
    verdict = verdicts["c: alps, error over the authors'"]
    assert verdict["met"] is met and verdict["worst"] == pytest.approx(factor)
    assert verdicts["c: alps, heldout_error over the authors'"]["met"]
    result["verdicts"] = list(verdicts.values())
    assert ("MISSED c: alps" in compare_report.describe(result)) is not met
    page = compare_report.markdown(result)
    assert f"| {factor:.3f} |" in page or factor < 1
    assert ("missed" in page) is not met and "Thanos" in page


def test_the_least_of_several_runs_decides_on_the_seconds():
    known = compare_known.KNOWN["a"]["alps"].seconds
    runs = [{"seconds": 9.0 * known, "cpu_seconds": factor * known} for factor in (9.0, 1.4, 2.0)]
    layer = {"rows": [], "repeats": {"alps": runs, "magnitude": runs}}
    (verdict,) = compare_report.seconds_of(layer)
    assert verdict["met"] and verdict["worst"] == pytest.approx(1.4)
    runs[1]["cpu_seconds"] = 1.6 * known
    assert not next(compare_report.seconds_of(layer))["met"]
    head, cells = compare_report.repeats_grid(layer)
    assert len(cells) == 2 and {len(line) for line in cells} == {len(head)}


def test_failures_and_missing_zeros_are_reported():
    result = known_case(1.0)
    rows = result["cases"]["c"]["layers"][0]["rows"]
    rows[0] |= {"failure": "MemoryError: no", "error": None}
    rows[1]["nnz"] += 1
    rows[2] |= {"gap": "inf", "violation": 0.0}
    missed = [v["details"] for v in compare_report.promises("c", result["cases"]["c"]["layers"][0])]
    assert missed[0] == ["alps at 0.5: MemoryError: no"]
    assert missed[1] == [f"alps at 0.7: {rows[1]['nnz']}"]
    assert len(missed[2]) == 1 and missed[2][0].startswith("alps at 0.9: gap inf")


def test_tables_are_written_between_marks_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("head\n<!-- b -->\nold\n<!-- e -->\ntail\n")
    pages.write_between(page, ("<!-- b -->", "<!-- e -->"), "\n".join(pages.table("ab", ["12"])))
    new = page.read_text()
    assert new == "head\n<!-- b -->\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n<!-- e -->\ntail\n"
    with pytest.raises(ValueError, match="must hold the lines"):
        pages.write_between(page, ("<!-- b -->", "<!-- z -->"), "")
    assert page.read_text() == new


def test_outputs_under_a_joint_radius_are_a_joint_program_of_their_own():
    """Clarabel finds there what the layer's solution says, and so at the layer's multiplier."""
    shape = asdict(Layer(80, 12, 5))
    cases = [case for case in all_cases() if case["radius"] == "joint"]
    solved = time_cases(shape, cases, repeats=1, time_limit=30.0, n_threads=1)["cases"]
    entries = layer_references.time_clarabel(shape, solved)
    assert [entry["posed"] for entry in entries] == [True, False] * len(cases)
    for entry in entries:
        assert entry["n_proved"] == entry["scaled_from_outputs"] == N_REFERENCE
        assert entry["objective_difference"] <= TOLERANCE["references_agree"]
    result = {"clarabel": entries, "targets": TARGETS | {"pairs": {}}, "published": None}
    posed = [entry["ratio"] for entry in entries if entry["posed"]]
    run = {"n_threads": 1, "cases": solved}
    found = layer_report.verdicts(result | {"runs": [run]})
    assert found["clarabel_ratio"]["worst"] == min(posed)


@pytest.mark.parametrize("report", [layer_report, compare_report])
def test_the_pages_hold_the_tables_of_the_results(report):
    record = json.loads(report.RESULT.read_text())
    assert report.markdown(record["result"]) in report.PAGE.read_text()


def test_the_page_holds_the_table_of_the_count_search():
    record = json.loads((layer_report.RESULT.parent / "count_search.json").read_text())
    assert count_search.describe(record["result"]) in layer_report.PAGE.read_text()
