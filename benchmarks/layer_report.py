"""Tables, verdicts and the plot of the benchmark ``layer``, from its result alone.

    python -m benchmarks.layer_report

writes the tables of docs/performance.md anew from benchmarks/results/layer.json and
benchmarks/results/count_search.json, so that no number there is typed by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import count_search
from .environment import ROOT
from .pages import fill_page, table

RESULT = ROOT / "benchmarks" / "results" / "layer.json"
PAGE = ROOT / "docs" / "performance.md"

#: The tables stand between these two lines of the page.
BEGIN, END = "<!-- tables of layer.json -->", "<!-- end of the tables -->"
COUNT_SEARCH = ("<!-- tables of count_search.json -->", "<!-- end of count_search.json -->")

STAGES = ("checks", "setup", "admm", "polish", "certify", "other")
COLOURS = ("#b9b9b9", "#8c6bb1", "#2c7fb8", "#f28e2b", "#59a14f", "#d9d9d9")

MEGABYTE = 1e6

#: A pair time is disturbed, and the count in pairs worth nothing, when the measurements before and
#: after a case differ by more than the first factor, or when more threads make the pair slower than
#: one by more than the second: other work on the machine then stretches the unit.
STEADY, SPINNING = 1.25, 1.1


def verdicts(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Hold every target against its worst case: ``{name: {wanted, worst, met}}``.

    A target that nothing was measured for is left out.
    """
    targets = result["targets"]
    cases = [case for part in result["runs"] for case in part["cases"]]
    missing = [
        f"{case['name']}, {part['n_threads']} threads"
        for part in result["runs"] for case in part["cases"] if not proved(case, targets)
    ]  # fmt: skip
    found = {
        "proved": {
            "wanted": "every output, gap and violation at most "
            f"{targets['gap']:g} and {targets['violation']:g}",
            "worst": {name: max(case[name] for case in cases) for name in ("gap", "violation")},
            "not_proved": missing,
            "met": not missing,
        }
    }
    for name, wanted in targets["pairs"].items():
        worst = max(case["pairs"] for case in cases if case["name"] == name)
        doubtful = [entry for entry in disturbed(result) if entry.startswith(f"{name},")]
        met = worst <= wanted and not doubtful
        found[f"pairs, {name}"] = {
            "wanted": wanted, "worst": worst, "disturbed": doubtful, "met": met
        }  # fmt: skip
    for name in ("clarabel", "published"):
        ratios = [entry["ratio"] for entry in result[name] or [] if entry.get("posed", True)]
        if ratios:
            worst, wanted = min(ratios), targets[f"{name}_ratio"]
            found[f"{name}_ratio"] = {"wanted": wanted, "worst": worst, "met": worst >= wanted}
    return found


def proved(case: dict[str, Any], targets: dict[str, Any]) -> bool:
    """Return whether every output of a case is proved within the targets."""
    return bool(
        case["n_proved"] == case["n_outputs"]
        and case["gap"] <= targets["gap"]
        and case["violation"] <= targets["violation"]
    )


def disturbed(result: dict[str, Any]) -> list[str]:
    """Return the cases whose unit, the GEMM pair, was not steady, with their threads."""
    single = {case["name"]: _pair(case) for case in result["runs"][0]["cases"]}
    found = []
    for part in result["runs"]:
        for case in part["cases"]:
            ends = case["pair_seconds_before"], case["pair_seconds_after"]
            slower = _pair(case) > SPINNING * single[case["name"]]
            if max(ends) > STEADY * min(ends) or slower:
                found.append(f"{case['name']}, {part['n_threads']} threads")
    return found


def describe(result: dict[str, Any]) -> str:
    """Return the tables and the verdicts as text."""
    layer = result["layer"]
    lines = [
        f"X {layer['n_samples']} x {layer['n_inputs']}, {layer['n_outputs']} outputs, float64; "
        f"median of {result['repeats']}; one pair: {result['pair']}",
        *_case_tables(result),
        *_stage_tables(result),
        *_other_layers(result),
        *_clarabel_table(result),
        *_published_table(result),
        *_memory_table(result),
        "",
        "targets (this short run says nothing about them)" if result["quick"] else "targets",
    ]
    for name, verdict in result["met"].items():
        wanted, worst = verdict["wanted"], verdict["worst"]
        if isinstance(worst, dict):
            worst = ", ".join(f"{key} {value:.1e}" for key, value in worst.items())
        else:
            wanted, worst = f"{wanted:g}", f"{worst:.1f}"
        lines.append(f"  {_word(verdict['met']):7}{name}: wanted {wanted}; worst {worst}")
        for doubt in ("not_proved", "disturbed"):
            lines += [f"         {doubt}: {case}" for case in verdict.get(doubt, [])]
    return "\n".join(lines)


def _case_tables(result: dict[str, Any]) -> list[str]:
    lines, doubtful = [], disturbed(result)
    for part in result["runs"]:
        lines += [
            "",
            f"threads: {part['n_threads']} (load {part['load_average']})",
            f"{'case':24}{'seconds':>9}{'noise':>7}{'pair ms':>14}{'pairs':>8}{'target':>8}"
            f" {'':9}{'nonzero':>8}{'gap':>9}{'viol.':>9}{'proved':>9}{'its mean':>9}{'max':>6}",
        ]
        for case in part["cases"]:
            target = case["target_pairs"]
            verdict = "" if target is None else _word(case["pairs"] <= target)
            if f"{case['name']}, {part['n_threads']} threads" in doubtful:
                verdict = "disturbed"
            noise = max(case["seconds_all"]) / case["seconds"] - 1.0
            pair = f"{1e3 * case['pair_seconds_before']:.1f}/{1e3 * case['pair_seconds_after']:.1f}"
            lines.append(
                f"{case['name']:24}{case['seconds']:>9.3f}{noise:>7.0%}{pair:>14}"
                f"{case['pairs']:>8.1f}{'' if target is None else f'{target:g}':>8} {verdict:9}"
                f"{case['nonzero_fraction']:>8.1%}{_judged(case)}"
                f"{case['iterations_mean']:>9.1f}{case['iterations_max']:>6}"
            )
    return lines


def _stage_tables(result: dict[str, Any]) -> list[str]:
    lines = []
    for part in result["runs"]:
        lines += [
            "",
            f"where the time goes, in pairs, threads: {part['n_threads']} "
            "(admm = gemm + projection + rest, estimated)",
            f"{'case':24}" + "".join(f"{name:>9}" for name in STAGES)
            + " |" + "".join(f"{name:>11}" for name in ("gemm", "projection", "rest")),
        ]  # fmt: skip
        for case in part["cases"]:
            stages = "".join(f"{case['stages'].get(name, 0.0):>9.1f}" for name in STAGES)
            parts = "".join(f"{value:>11.1f}" for value in case["admm_parts"].values())
            lines.append(f"{case['name']:24}{stages} |{parts}")
    return lines


def _other_layers(result: dict[str, Any]) -> list[str]:
    lines = ["", "other layers of this shape, 1 thread, one run each"]
    for other in result["other_layers"]:
        law = f"decay {other['layer']['decay']:g}"
        law += ", with biases" if other["layer"]["biases"] else ""
        for case in other["cases"]:
            lines.append(
                f"{law:24}{case['name']:24}{case['pairs']:>8.1f} pairs"
                f"{case['nonzero_fraction']:>8.1%}{_judged(case)}"
                f"{case['iterations_mean']:>9.1f}{case['iterations_max']:>6}"
            )
    return lines


def _clarabel_table(result: dict[str, Any]) -> list[str]:
    if not result["clarabel"]:
        return []
    wanted = result["targets"]["clarabel_ratio"]
    lines = [
        "",
        "Clarabel through cvxpy, 1 thread, a few outputs scaled to the layer (joint: posed with "
        "the radius of these outputs in the solution and, without verdict, at our multiplier)",
        f"{'case':24}{'seconds':>9}{'outputs':>8}{'scaled':>9}{'ratio':>8} {f'(>= {wanted:g})':10}"
        f"{'difference':>11}{'gap':>9}{'viol.':>9}{'proved':>9}  solved",
    ]
    for entry in result["clarabel"]:
        verdict = _word(entry["ratio"] >= wanted) if entry["posed"] else ""
        lines.append(
            f"{entry['name']:24}{entry['seconds_measured']:>9.2f}"
            f"{entry['scaled_from_outputs']:>8}{entry['seconds_scaled']:>9.0f}"
            f"{entry['ratio']:>8.0f} {verdict:10}"
            f"{entry['objective_difference']:>11.1e}{_judged(entry)}  {entry['solved_as']}"
        )
    return lines


def _published_table(result: dict[str, Any]) -> list[str]:
    if not result["published"]:
        return []
    wanted = result["targets"]["published_ratio"]
    lines = [
        "",
        "published ADMM, 1 thread, all outputs (a ratio where the limit stopped it: a lower bound)",
        f"{'case':24}{'seconds':>9}{'pairs':>8}{'its':>7}{'stopped by':>12}{'ratio':>8} "
        f"{f'(>= {wanted:g})':10}{'difference':>11}{'gap':>9}{'viol.':>9}{'proved':>9}",
    ]
    for entry in result["published"]:
        stop = "limit" if entry["stopped_by_limit"] else "itself"
        lines.append(
            f"{entry['name']:24}{entry['seconds']:>9.1f}{entry['pairs']:>8.0f}"
            f"{entry['iterations_max']:>7}{stop:>12}"
            f"{entry['ratio']:>8.1f} {_word(entry['ratio'] >= wanted):10}"
            f"{entry['objective_difference']:>11.1e}{_judged(entry)}"
        )
    return lines


def _memory_table(result: dict[str, Any]) -> list[str]:
    lines = [
        "",
        "peak memory over the inputs' own, MB; (P, M) float64 arrays without what outputs share",
        f"{'case':24}{'limit':>7}{'inputs':>8}{'resident':>10}{'arrays':>8}{'N x N':>8}"
        f"{'float32 X':>11}{'(P, M) of arrays':>18}{'of resident':>13}  status",
    ]
    for entry in result["memory"]:
        shared = entry["shared_bytes"]
        limit = entry["memory_limit"]
        lines.append(
            f"{entry['name']:24}{'' if limit is None else _megabytes(limit):>7}"
            f"{_megabytes(entry['inputs_bytes']):>8}{_megabytes(entry['resident_bytes']):>10}"
            f"{_megabytes(entry['array_bytes']):>8}{_megabytes(shared['square_matrices']):>8}"
            f"{_megabytes(shared['design_and_vectors']):>11}{entry['arrays_of_outputs']:>18.1f}"
            f"{entry['resident_arrays_of_outputs']:>13.1f}  {entry['status']}"
        )
    return lines


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw the stages of every case as stacked bars, in GEMM pairs, a panel per thread count."""
    from matplotlib.figure import Figure

    runs = result["runs"]
    figure = Figure(figsize=(5.2 * len(runs) + 2.0, 4.2), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for panel, part in zip(panels, runs, strict=True):
        names = [case["name"] for case in part["cases"]]
        left = [0.0] * len(names)
        for stage, colour in zip(STAGES, COLOURS, strict=True):
            widths = [case["stages"].get(stage, 0.0) for case in part["cases"]]
            panel.barh(names, widths, left=left, color=colour, label=stage)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        for row, case in enumerate(part["cases"]):
            if case["target_pairs"] is not None:
                panel.plot([case["target_pairs"]] * 2, [row - 0.4, row + 0.4], color="black")
        threads = part["n_threads"]
        panel.set_title(f"{threads} thread{'s' if threads > 1 else ''}")
        panel.set_xlabel("GEMM pairs (black: target)")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()  # shared by the panels
    panels[-1].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def markdown(result: dict[str, Any]) -> str:
    """Return the tables of the documentation: stages, parts of the ADMM stage, memory."""
    lines = []
    for part in result["runs"]:
        rows = [
            [
                case["name"],
                f"{case['pairs']:.1f}",
                *(f"{case['stages'].get(name, 0.0):.1f}" for name in STAGES),
                f"{case['iterations_mean']:.0f}",
                f"{case['nonzero_fraction']:.1%}",
            ]
            for case in part["cases"]
        ]
        columns = ("case", "pairs", *STAGES, "iterations", "nonzero")
        lines += [f"Threads: {part['n_threads']}.", "", *table(columns, rows), ""]
    rows = [
        [case["name"], *(f"{value:.1f}" for value in case["admm_parts"].values())]
        for case in result["runs"][0]["cases"]
    ]
    columns = ("case, 1 thread", "products with X", "graph projection", "passes and checks")
    lines += [*table(columns, rows), ""]
    rows = [
        [
            entry["name"],
            "default" if entry["memory_limit"] is None else _megabytes(entry["memory_limit"]),
            _megabytes(entry["array_bytes"]),
            _megabytes(entry["inputs_bytes"]),
            _megabytes(sum(entry["shared_bytes"].values())),
            f"{entry['arrays_of_outputs']:.1f}",
        ]
        for entry in result["memory"]
    ]
    columns = ("case", "memory_limit, MB", "peak, MB", "inputs, MB", "shared, MB", "(P, M) arrays")
    return "\n".join([*lines, *table(columns, rows)])


def main() -> None:
    """Put the tables of the full runs into the page, each between its two marks."""
    fill_page(PAGE, (BEGIN, END), RESULT, markdown)
    fill_page(PAGE, COUNT_SEARCH, RESULT.with_name("count_search.json"), count_search.describe)


def _pair(case: dict[str, Any]) -> float:
    return float(0.5 * (case["pair_seconds_before"] + case["pair_seconds_after"]))


def _judged(case: dict[str, Any]) -> str:
    share = f"{case['n_proved']}/{case['n_outputs']}"
    return f"{case['gap']:>9.1e}{case['violation']:>9.1e}{share:>9}"


def _word(met: bool) -> str:
    return "met" if met else "MISSED"


def _megabytes(count: float) -> str:
    return f"{count / MEGABYTE:.1f}"


if __name__ == "__main__":
    main()
