"""What Net-Trim is worth beside the others, in two tables: on the layers, and on a whole network.

Written into docs/comparison.md by ``python -m benchmarks.compare_report``, from the results of the
benchmarks ``compare`` and ``lenet`` alone.
"""

from __future__ import annotations

from typing import Any

from .compare_report import UNIT, captions, methods, number
from .pages import table
from .trials import describe_trials

#: Methods that tell most, by the names of their rows.
SHOWN = (
    "magnitude", "magnitude+refit", "sparsegpt", "exact_obs+swaps", "l0", "net-trim l1",
    "net-trim l1+refit", "net-trim reweighted+refit", "net-trim l0", "net-trim l0+swaps",
)  # fmt: skip


def layers(result: dict[str, Any]) -> str:
    """Return the table of held-out errors over those of one method, a line per layer."""
    lines = []
    for key, _, _, layer in captions(result):
        if "rows" not in layer:
            continue
        ours, field = methods(layer), f"heldout_{layer['metric']}"
        cells = [f"{key}: {layer['name']}"]
        for name in SHOWN:
            pairs = zip(ours.get(name, []), ours[UNIT], strict=False)
            cells.append(
                " ".join(ratio(number(row[field]) / number(unit[field])) for row, unit in pairs)
            )
        lines.append(cells)
    return "\n".join(table(["layer", *SHOWN], lines))


def ratio(value: float) -> str:
    """Return a ratio with two decimals, small ones with their power of ten."""
    return f"{value:.2f}" if value >= 0.05 else f"{value:.0e}"


def networks(result: dict[str, Any]) -> str:
    """Return the table of a whole network's accuracies, means over the seeds."""
    return "\n".join(describe_trials(result["rows"], result["dense"])).strip()
