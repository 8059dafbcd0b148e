"""Tables and plot of the benchmark ``finetune``, from its result alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nettrim_solver.plotting import new_figure

from .pages import table

#: Published figures: network, what was done, accuracy by zeros, and where it stands.
PUBLISHED = [
    {
        "network": "784-300-1000-100-10",
        "what": "Net-Trim, then fine-tuned",
        "accuracy": {"0.88": 0.9845, "0.935": 0.9807, "0.97": 0.9652},
        "source": "Aghasi, Abdi, Romberg 2018 (arXiv:1806.06457), read off the figure",
    },
    {
        "network": "LeNet-300-100",
        "what": "L-OBS, before retraining",
        "accuracy": {"0.8": 0.9664},
        "source": "Dong, Chen, Pan 2017 (arXiv:1705.07565), the authors' published files",
    },
]

#: The noise of the table, and what is drawn: (method, allocation), colour, name.
DRAWN = {
    ("l0, weighted outputs", "output_error"): ("C0", "Net-Trim l0"),
    ("reweighted l1, refit", "output_error"): ("C2", "Net-Trim reweighted l1"),
    ("magnitude", "deviations"): ("C3", "magnitude, one shot"),
    ("prune and retrain", "deviations"): ("C1", "magnitude, prune and retrain"),
}

Row = dict[str, Any]


def markdown(result: dict[str, Any]) -> str:
    """Return all tables: accuracies of every network, published ones, and those under noise."""
    lines: list[str] = []
    for network in dict.fromkeys(row["network"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["network"] == network]
        lines += [*_accuracies(network, rows, result["published"]), ""]
        lines += [*_noise(network, rows), ""]
    return "\n".join(lines).rstrip()


def _accuracies(network: str, rows: list[Row], published: list[Row]) -> list[str]:
    budgets = sorted({row["zeros_asked"] for row in rows} - {0.0})
    dense = [row for row in rows if row["method"] == "dense"]
    header = ["method", "zeros shared out by", "epochs", *(f"{100 * z:g} % zeros" for z in budgets)]
    body = []
    for method, allocation in _kinds(rows):
        mine = [r for r in rows if (r["method"], r["allocation"]) == (method, allocation)]
        epochs = "/".join(map(str, sorted({row["epochs"] for row in mine})))
        body.append([method, allocation, epochs, *(_change(mine, z) for z in budgets)])
    counts = Counter((row["method"], row["allocation"], row["zeros_asked"]) for row in rows)
    seeds = " to ".join(map(str, sorted({min(counts.values()), max(counts.values())})))
    text = f"**{network}**: accuracy before and after training with the zeros in place"
    text += f"; seeds: {seeds}"
    if dense:
        text += f"; of the dense network {_change(dense, 0.0)}"
    lines = [text, "", *table(header, body)]
    for one in published:
        if one["network"] == network:
            figures = ", ".join(f"{100 * float(z):g} %: {a}" for z, a in one["accuracy"].items())
            lines += ["", f"Published: {one['what']}: {figures} ({one['source']})."]
    return lines


def _kinds(rows: list[Row]) -> list[tuple[str, str]]:
    kinds = dict.fromkeys((row["method"], row["allocation"]) for row in rows)
    return [kind for kind in kinds if kind[0] != "dense"]


def _change(rows: list[Row], zeros: float) -> str:
    values = [
        [row[when]["accuracy"] for row in rows if row["zeros_asked"] == zeros]
        for when in ("before", "after")
    ]
    return " → ".join(f"{np.mean(one):.4f}" for one in values) if values[0] else ""


def _noise(network: str, rows: list[Row]) -> list[str]:
    budgets = sorted({row["zeros_asked"] for row in rows} - {0.0})
    zeros = budgets[len(budgets) // 2]
    sigmas = list(rows[0]["before"]["noise"])
    body = []
    for method, allocation in [("dense", ""), *_kinds(rows)]:
        mine = [
            row for row in rows
            if (row["method"], row["allocation"]) == (method, allocation)
            and row["zeros_asked"] in (0.0, zeros)
        ]  # fmt: skip
        if mine:
            body.append([method, allocation, *(_under_noise(mine, sigma) for sigma in sigmas)])
    header = ["method", "zeros shared out by", *(f"noise {sigma}" for sigma in sigmas)]
    text = f"**{network}**, {100 * zeros:g} % zeros, Gaussian noise on the test samples"
    return [text, "", *table(header, body)]


def _under_noise(rows: list[Row], sigma: str) -> str:
    means = [np.mean([row[when]["noise"][sigma] for row in rows]) for when in ("before", "after")]
    return " → ".join(f"{mean:.4f}" for mean in means)


# Plot --------------------------------------------------------------------------------------------


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw accuracy over zeros, before and after fine-tuning, and over the noise."""
    networks = list(dict.fromkeys(row["network"] for row in result["rows"]))
    figure = new_figure(12.0, 3.8 * len(networks))
    axes = figure.subplots(len(networks), 3, squeeze=False)
    for line, network in zip(axes, networks, strict=True):
        rows = [row for row in result["rows"] if row["network"] == network]
        _over_zeros(line[0], rows, "before", network)
        _over_zeros(line[1], rows, "after", network)
        _over_noise(line[2], rows, network)
        for ax, when in zip(line, ("before", "after"), strict=False):
            _published(ax, result["published"], network, when)
    handles, labels = axes[0, 2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(path, dpi=110)


def _mean(rows: list[Row], value: Callable[[Row], float]) -> float:
    return float(np.mean([value(row) for row in rows]))


def _over_zeros(ax: Any, rows: list[Row], when: str, network: str) -> None:
    budgets = sorted({row["zeros_asked"] for row in rows} - {0.0})
    for kind, (colour, _) in DRAWN.items():
        points = []
        for zeros in budgets:
            mine = _of(rows, kind, zeros)
            if mine:
                points.append((zeros, _mean(mine, lambda row: row[when]["accuracy"])))
        if points:
            ax.plot(*zip(*points, strict=True), "o-", color=colour)
    dense = _of(rows, ("dense", ""), 0.0)
    if dense:
        ax.axhline(_mean(dense, lambda row: row[when]["accuracy"]), color="0.5", lw=1)
    word = "before training" if when == "before" else "after training"
    ax.set(xlabel="zeros", ylabel=f"test accuracy {word}", title=network)


def _over_noise(ax: Any, rows: list[Row], network: str) -> None:
    budgets = sorted({row["zeros_asked"] for row in rows} - {0.0})
    zeros = budgets[len(budgets) // 2]
    kinds = {("dense", ""): ("0.5", "dense network")} | DRAWN
    for kind, (colour, name) in kinds.items():
        mine = _of(rows, kind, 0.0 if kind[0] == "dense" else zeros)
        if mine:
            sigmas = list(mine[0]["after"]["noise"])
            values = [
                _mean(mine, lambda row, sigma=sigma: row["after"]["noise"][sigma])  # type: ignore[misc]
                for sigma in sigmas
            ]
            ax.plot([float(sigma) for sigma in sigmas], values, "o-", color=colour, label=name)
    ax.set(xlabel="deviation of the noise", ylabel="test accuracy after training",
           title=f"{network}, {100 * zeros:g} % zeros")  # fmt: skip


def _published(ax: Any, published: list[Row], network: str, when: str) -> None:
    for one in published:
        if one["network"] == network and ("before" in one["what"]) == (when == "before"):
            zeros = [float(z) for z in one["accuracy"]]
            ax.plot(zeros, list(one["accuracy"].values()), "k*", label="published")
            ax.annotate("published", (zeros[0], next(iter(one["accuracy"].values()))),
                        xytext=(4, -12), textcoords="offset points", fontsize="small")  # fmt: skip


def _of(rows: list[Row], kind: tuple[str, str], zeros: float) -> list[Row]:
    return [
        row for row in rows
        if (row["method"], row["allocation"]) == kind and row["zeros_asked"] == zeros
    ]  # fmt: skip
