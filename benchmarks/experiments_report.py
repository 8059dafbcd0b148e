"""The tables of docs/experiments.md, written from the result files.

python -m benchmarks.experiments_report
"""

from __future__ import annotations

import json

from . import finetune_report, tolerance
from .environment import ROOT
from .pages import write_between

PAGE = ROOT / "docs" / "experiments.md"
RESULTS = ROOT / "benchmarks" / "results"

#: What makes the tables of a result, and between which lines of the page they stand.
TABLES = {
    name: (make, (f"<!-- tables of {name}.json -->", f"<!-- end of {name}.json -->"))
    for name, make in (("tolerance", tolerance.describe), ("finetune", finetune_report.markdown))
}


def markdown(name: str) -> str:
    """Return the tables of a benchmark from its newest result."""
    make, _ = TABLES[name]
    record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return make(record["result"])


def main() -> None:
    """Write all tables anew."""
    for name, (_, marks) in TABLES.items():
        write_between(PAGE, marks, markdown(name))


if __name__ == "__main__":
    main()
