"""Fits, text, heat maps and tables of the benchmark ``sample_complexity``, from its trials alone.

    python -m benchmarks.sample_complexity_report

writes the tables of docs/sample-complexity.md anew from benchmarks/results/sample_complexity.json,
so that no number there is typed by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from nettrim_solver.plotting import new_figure
from nettrim_solver.sample_size import SPREADS, required_samples, statistical_dimension

from .environment import ROOT
from .pages import fill_page, table
from .sample_complexity_trial import Line

Array = NDArray[np.float64]

RESULT = ROOT / "benchmarks" / "results" / "sample_complexity.json"
PAGE = ROOT / "docs" / "sample-complexity.md"

#: The tables stand between these two lines of the page.
MARKS = ("<!-- tables of sample_complexity.json -->", "<!-- end of the tables -->")

PROGRAMS = ("net_trim", "matched")
LEVELS = (0.5, 0.95)

#: Numbers of samples at which the probability is given, as multiples of N, at equal ratios.
GRID = np.geomspace(0.04, 6.0, 51)

RESAMPLES = 1000

#: C is fitted to columns of at most this fraction of nonzeros: s log(N/s) falls beyond N/e.
LAW_UP_TO = 0.2

#: How far C may lie from the common one at any width.
STABLE = 0.25

#: Probabilities at which the planner is held against the trials.
PLANNED = (0.5, 0.8, 0.9, 0.95, 0.99)


def summary(wanted: Sequence[Line], rows: Sequence[dict[str, Any]], n_trials: int) -> dict:
    """Return everything that the trials say: cells, lines of constant probability, and fits."""
    by_line: dict[str, list[dict[str, Any]]] = {line.key: [] for line in wanted}
    for row in rows:
        if row["line"] in by_line and row["trial"] < n_trials:
            by_line[row["line"]].append(row)
    columns = [column(line, by_line[line.key]) for line in wanted if by_line[line.key]]
    fits = {
        kind: fit([c for c in columns if c["kind"] == kind])
        for kind in dict.fromkeys(c["kind"] for c in columns)
    }
    return {
        "trials_wanted": n_trials,
        "trials_done": sum(c["trials"] for c in columns),
        "whole": len(columns) == len(wanted) and all(c["trials"] >= n_trials for c in columns),
        "undecided": sum(c["undecided"] for c in columns),
        "seconds_of_all_trials": sum(c["seconds"] for c in columns),
        "fits": fits,
        "planner": {kind: planner([c for c in columns if c["kind"] == kind]) for kind in fits},
        "met": verdicts(columns, fits),
        "columns": columns,
    }


def column(line: Line, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the probability of recovery over P for one kind, width and number of nonzeros."""
    rows = sorted(rows, key=lambda row: row["trial"])
    n, s = line.n_inputs, line.nnz
    samples = np.unique(np.round(GRID * n).astype(int))
    least = {name: np.array([row[name] or np.inf for row in rows]) for name in PROGRAMS}
    proofs = [row["proofs"] for row in rows]
    return {
        "kind": line.kind,
        "n_inputs": n,
        "nnz": s,
        "trials": len(rows),
        "undecided": sum(row["undecided"] for row in rows),
        "out_of_reach": sum(row["net_trim"] is None for row in rows),
        "tight_rows_help": int(np.sum(least["net_trim"] < least["matched"])),
        "seconds": sum(row["seconds"] for row in rows),
        "predicted": 2 * statistical_dimension(n, s),
        "theorem": {
            str(p): required_samples(n, s, probability=p, method="theorem") for p in LEVELS
        },
        "theorem_at_mu_1": (11 * s + 7) * np.log(n),
        "quantiles": {
            name: {str(p): quantile(values, p) for p in LEVELS} for name, values in least.items()
        },
        "samples": samples,
        "recovered": {
            name: [int(np.sum(values <= p)) for p in samples] for name, values in least.items()
        },
        "least": {name: [row[name] for row in rows] for name in PROGRAMS},
        "worst_distance_recovered": _extreme(max, proofs, "recovered", "distance"),
        "least_margin_recovered": _extreme(min, proofs, "recovered", "margin"),
        "least_distance_not": _extreme(min, proofs, "not", "distance"),
    }


def _extreme(pick: Any, proofs: Sequence[dict[str, Any]], side: str, name: str) -> float | None:
    values = [float(one[side][name]) for one in proofs if side in one]
    return pick(values) if values else None


def quantile(least: Array, probability: float) -> float:
    """Return the least P at which this share of the trials recovers; inf when there is none."""
    return float(np.quantile(least, probability, method="inverted_cdf"))


# Fits -------------------------------------------------------------------------------------------


def fit(columns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Fit C of P = C s log(N / s) for every probability, over all widths and for each.

    C is the geometric mean over the columns up to ``LAW_UP_TO``. The interval of 95 % is a
    bootstrap over the trials of each column. It says how well the mean is known, not how well the
    law fits: that is the range of the columns' own constants.
    """
    found: dict[str, Any] = {}
    columns = [c for c in columns if c["nnz"] <= LAW_UP_TO * c["n_inputs"]]
    widths = sorted({c["n_inputs"] for c in columns})
    for p in LEVELS:
        whole = constant(columns, p)
        by_width = {str(n): constant([c for c in columns if c["n_inputs"] == n], p) for n in widths}
        found[str(p)] = whole | {"by_width": by_width}
    return found


def constant(columns: Sequence[dict[str, Any]], probability: float) -> dict[str, Any]:
    """Return C with its interval, the extremes of single columns, and how many had none."""
    rng = np.random.default_rng(0)
    values, drawn = [], []
    for c in columns:
        least = np.array([k or np.inf for k in c["least"]["net_trim"]])
        unit = c["nnz"] * np.log(c["n_inputs"] / c["nnz"])
        value = quantile(least, probability) / unit
        if np.isfinite(value):
            picks = rng.integers(len(least), size=(RESAMPLES, len(least)))
            resampled = np.quantile(least[picks], probability, axis=1, method="inverted_cdf")
            values.append(np.log(value))
            drawn.append(np.log(resampled / unit))
    if not values:
        return {"C": None, "interval": None, "range": None, "columns": 0, "without": len(columns)}
    spread = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975], method="inverted_cdf")
    return {
        "C": float(np.exp(np.mean(values))),
        "interval": [float(v) for v in np.exp(spread)],
        "range": [float(np.exp(min(values))), float(np.exp(max(values)))],
        "columns": len(values),
        "without": len(columns) - len(values),
    }


def planner(columns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Fit the planner's spread, and hold the planner with its stored one against the trials.

    The spread is the mean over the columns of ``(P_95 - 2 delta) / sqrt(2 delta)``, in units of a
    normal law's. ``shares`` are those of the trials that recover with the planned samples: over all
    columns, and in the worst one.
    """
    kind = columns[0]["kind"]
    excess = [
        (c["quantiles"]["net_trim"]["0.95"] - c["predicted"]) / np.sqrt(c["predicted"])
        for c in columns
    ]
    ratios = [c["quantiles"]["net_trim"]["0.5"] / c["predicted"] for c in columns]
    shares = {}
    for p in PLANNED if kind in SPREADS else ():
        found = []
        for c in columns:
            planned = required_samples(c["n_inputs"], c["nnz"], probability=p, inputs=kind)
            found.append(np.mean([k is not None and k <= planned for k in c["least"]["net_trim"]]))
        shares[str(p)] = {"mean": np.mean(found), "worst": np.min(found)}
    return {
        "spread": np.mean(excess) / ndtri(0.95),
        "median_over_predicted": [min(ratios), max(ratios)],
        "shares": shares,
    }


def verdicts(columns: Sequence[dict[str, Any]], fits: dict[str, Any]) -> list[dict[str, Any]]:
    """Hold the result against what is claimed of it."""
    random = [c for c in columns if c["kind"] != "hidden"]
    above = [
        f"{c['kind']} {c['n_inputs']} {c['nnz']}"
        for c in random
        if c["quantiles"]["net_trim"]["0.5"] >= c["theorem_at_mu_1"]
    ]
    found = [
        {
            "what": "median below (11 s + 7) log N",
            "met": not above,
            "of": len(random),
            "not": above,
        }
    ]
    if "gaussian" in fits:
        one = fits["gaussian"]["0.5"]
        off = {n: w["C"] / one["C"] - 1 for n, w in one["by_width"].items() if w["C"]}
        found.append(
            {
                "what": f"C of Gaussian inputs within {STABLE:.0%} at every width",
                "met": all(abs(v) <= STABLE for v in off.values()),
                "of": len(off),
                "deviations": off,
            }
        )
    return found


# Text and figure --------------------------------------------------------------------------------


def text(result: dict[str, Any]) -> str:
    """Return the fits and the verdicts as text."""
    lines = [
        _extent(result),
        "",
        *table(*fit_table(result)),
        "",
        *table(*planner_table(result)),
        "",
    ]
    lines += [f"{'met' if v['met'] else 'MISSED'}: {v['what']}" for v in result["met"]]
    checks = result.get("cross_checks")
    if checks:
        lines.append(
            f"the solver, strict and pooled, agrees in {checks['agree']} of {checks['asked']} cases"
        )
    return "\n".join(lines)


def _extent(result: dict[str, Any]) -> str:
    asked = "" if result["whole"] else " (NOT ALL: run again to go on)"
    return (
        f"{result['trials_done']} trials, {result['trials_wanted']} for each kind, width and number"
        f" of nonzeros{asked}, in {result['seconds_of_all_trials'] / 60:.0f} minutes of one thread;"
        f" {result['undecided']} numbers of rows left undecided."
    )


def fit_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the constants."""
    header = ["inputs", "N", "C, 50 %", "columns", "C, 95 %", "columns"]
    body = []
    for kind, fits in result["fits"].items():
        for width in ("all", *fits["0.5"]["by_width"]):
            cells = [kind, width]
            for p in map(str, LEVELS):
                one = fits[p] if width == "all" else fits[p]["by_width"][width]
                cells += [_with_interval(one), _range(one)]
            body.append(cells)
    return header, body


def planner_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of what the planner's numbers are worth."""
    header = ["inputs", "median / 2 delta", "spread", *(f"asked {p:.0%}" for p in PLANNED)]
    body = []
    for kind, one in result["planner"].items():
        low, high = map(float, one["median_over_predicted"])
        spread = float(one["spread"])
        cells = [kind, f"{low:.2f} to {high:.2f}", f"{spread:.2f}" if np.isfinite(spread) else ""]
        shares = [one["shares"].get(str(p)) for p in PLANNED]
        body.append(cells + [f"{v['mean']:.1%} ({v['worst']:.0%})" if v else "" for v in shares])
    return header, body


def _with_interval(one: dict[str, Any]) -> str:
    if one["C"] is None:
        return "none"
    low, high = map(float, one["interval"])  # infinity is text in a result file
    return f"{one['C']:.2f} ({low:.2f} to {high:.2f})"


def _range(one: dict[str, Any]) -> str:
    if one["C"] is None:
        return f"{one['without']} out of reach"
    text = f"{one['range'][0]:.2f} to {one['range'][1]:.2f}"
    return text + (f", {one['without']} out of reach" if one["without"] else "")


def heat_maps(result: dict[str, Any], path: Path) -> None:
    """Draw the probability of recovery over s and P, a heat map per kind and width."""
    columns = result["columns"]
    kinds = list(dict.fromkeys(c["kind"] for c in columns))
    widths = {k: sorted({c["n_inputs"] for c in columns if c["kind"] == k}) for k in kinds}
    across = max(map(len, widths.values()))
    figure = new_figure(3.4 * across + 1.5, 3.0 * len(kinds))
    axes = figure.subplots(len(kinds), across, squeeze=False)
    image = None
    for i, kind in enumerate(kinds):
        for j in range(across):
            if j >= len(widths[kind]):
                axes[i, j].set_axis_off()
                continue
            chosen = [c for c in columns if (c["kind"], c["n_inputs"]) == (kind, widths[kind][j])]
            image = _heat_map(axes[i, j], sorted(chosen, key=lambda c: c["nnz"]), result)
    figure.colorbar(image, ax=axes, label="share of trials that recover", shrink=0.5)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(path, dpi=110)


def _heat_map(ax: Any, columns: list[dict[str, Any]], result: dict[str, Any]) -> Any:
    kind, n = columns[0]["kind"], columns[0]["n_inputs"]
    s = np.array([c["nnz"] for c in columns], dtype=float)
    samples = np.array(columns[0]["samples"], dtype=float)
    share = np.array([c["recovered"]["net_trim"] for c in columns]).T
    share = share / [c["trials"] for c in columns]
    image = ax.pcolormesh(
        _edges(s), _edges(samples), share, cmap="Greys_r", vmin=0, vmax=1, rasterized=True
    )
    for p, colour in (("0.5", "C1"), ("0.95", "C3")):
        # Infinity is text in a result file, and does not appear in the plot.
        line = np.array([float(c["quantiles"]["net_trim"][p]) for c in columns])
        line[~np.isfinite(line)] = np.nan
        ax.plot(s, line, "o-", color=colour, ms=3, label=f"{float(p):.0%} of the trials")
        law = result["fits"][kind][p]["C"]
        if law is not None:
            label = f"C s log(N/s) for {float(p):.0%}"
            ax.plot(s, law * s * np.log(n / s), "--", color=colour, lw=1, label=label)
    ax.plot(s, [c["predicted"] for c in columns], ":", color="C0", lw=2,
            label="2 x statistical dimension")  # fmt: skip
    ax.plot(s, [c["theorem"]["0.95"] for c in columns], "-", color="C2",
            label="(11 s + 7) mu log N for 95%")  # fmt: skip
    ax.set(xscale="log", yscale="log", title=f"{kind}, N = {n}", xlabel="nonzeros s",
           ylabel="samples P", ylim=(samples[0], samples[-1]))  # fmt: skip
    return image


def _edges(centres: Array) -> Array:
    if len(centres) == 1:
        return centres[0] * np.array([0.8, 1.25])
    inner = np.sqrt(centres[1:] * centres[:-1])
    return np.concatenate([[centres[0] ** 2 / inner[0]], inner, [centres[-1] ** 2 / inner[-1]]])


# The page ---------------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """Return the tables of the page."""
    lines = [
        _extent(result),
        "",
        "The constant C, its bootstrap interval, and the range of single columns:",
        "",
        *table(*fit_table(result)),
        "",
        "The planner: the median over its prediction (range over the columns), the fitted spread,"
        " and the share of trials that recover with the planned samples (in the worst column):",
        "",
        *table(*planner_table(result)),
        "",
    ]
    for one in result["met"]:
        lines.append(f"- {'Met' if one['met'] else '**Missed**'}: {one['what']}.")
    checks = result.get("cross_checks")
    if checks:
        lines.append(
            f"- The solver, strict and pooled, agrees with the trials in {checks['agree']} of "
            f"{checks['asked']} cases."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    fill_page(PAGE, MARKS, RESULT, markdown)
