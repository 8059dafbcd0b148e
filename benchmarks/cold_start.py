"""How long from a fresh interpreter to the import and to the first solution.

Every number is a median over fresh processes. The import is counted on top of numpy and
scipy.linalg; the first solve is the call of ``solve`` alone (a float64 layer, pooled, joint
radius), with numba's cache filled and with it empty.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("numba", "cvxpy", "osqp", "clarabel", "matplotlib", "rich", "sklearn")
TARGETS = {"import": 0.15, "warm": 2.0, "cold": 25.0}

IMPORT_SCRIPT = f"""
import json, sys, time
start = time.perf_counter()
import numpy, scipy.linalg
base = time.perf_counter()
import nettrim_solver
added = time.perf_counter() - base
loaded = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps({{"base": base - start, "added": added, "heavy": loaded}}))
"""

SOLVE_SCRIPT = """
import json, sys, time
import numpy as np
from nettrim_solver import Problem, solve
rng = np.random.default_rng(0)
X = np.maximum(rng.standard_normal((200, 30)), 0)
Y = np.maximum(X @ rng.standard_normal((30, 10)), 0)
problem = Problem(X, Y, tolerance=0.1)
start = time.perf_counter()
solution = solve(problem, sys.argv[1])
first = time.perf_counter() - start
start = time.perf_counter()
solve(problem, sys.argv[1])
second = time.perf_counter() - start
print(json.dumps({"first": first, "second": second, "status": str(solution.status)}))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the number of repeats."""
    parser.add_argument("--repeats", type=int, default=11, help="processes per fast measurement")
    parser.add_argument("--cold-repeats", type=int, default=3, help="processes that compile")
    parser.add_argument("--solver", default="admm")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure in fresh processes; a first one of each kind fills the caches and does not count."""
    repeats, cold_repeats = (3, 1) if args.quick else (args.repeats, args.cold_repeats)
    fresh(IMPORT_SCRIPT)
    imports = [fresh(IMPORT_SCRIPT) for _ in range(repeats)]
    cold, warm = [], []
    for i in range(cold_repeats):
        with tempfile.TemporaryDirectory(prefix="numba-cache-") as cache:
            cold.append(fresh(SOLVE_SCRIPT, args.solver, cache=cache))
            if i == cold_repeats - 1:
                warm = [fresh(SOLVE_SCRIPT, args.solver, cache=cache) for _ in range(repeats)]
    added = [entry["added"] for entry in imports]
    heavy = sorted({name for entry in imports for name in entry["heavy"]})
    result = {
        "solver": args.solver,
        "repeats": repeats,
        "cold_repeats": cold_repeats,
        "targets": TARGETS,
        "import_base_seconds": median(imports, "base"),
        "import_added_seconds": statistics.median(added),
        "import_added_range": [min(added), max(added)],
        "heavy_modules_loaded": heavy,
        "first_solve_warm_seconds": median(warm, "first"),
        "first_solve_warm_process_seconds": median(warm, "process"),
        "first_solve_cold_seconds": median(cold, "first"),
        "first_solve_cold_process_seconds": median(cold, "process"),
        "second_solve_seconds": median(warm, "second"),
        "status": warm[-1]["status"],
    }
    result["met"] = {
        "import": result["import_added_seconds"] <= TARGETS["import"] and not heavy,
        "warm": result["first_solve_warm_seconds"] < TARGETS["warm"],
        "cold": result["first_solve_cold_seconds"] < TARGETS["cold"],
    }
    return result


def describe(result: dict[str, Any]) -> str:
    """Return the result in words."""
    met = {name: "met" if value else "MISSED" for name, value in result["met"].items()}
    heavy = ", ".join(result["heavy_modules_loaded"]) or "none of " + ", ".join(HEAVY)
    low, high = result["import_added_range"]
    return "\n".join(
        [
            f"import numpy, scipy.linalg      {result['import_base_seconds']:8.3f} s",
            f"import nettrim_solver adds      {result['import_added_seconds']:8.3f} s "
            f"({low:.3f} to {high:.3f}; at most {TARGETS['import']} s: {met['import']})",
            f"modules that it loads           {heavy}",
            f"first solve, numba cache full   {result['first_solve_warm_seconds']:8.3f} s "
            f"(under {TARGETS['warm']:g} s: {met['warm']})",
            f"first solve, numba cache empty  {result['first_solve_cold_seconds']:8.3f} s "
            f"(under {TARGETS['cold']:g} s: {met['cold']})",
            f"second solve, same process      {result['second_solve_seconds']:8.3f} s "
            f"(solver {result['solver']}, {result['status']})",
        ]
    )


def median(entries: list[dict[str, Any]], key: str) -> float:
    """Return the median of one number over several processes."""
    return statistics.median(entry[key] for entry in entries)


def fresh(script: str, *arguments: str, cache: str | None = None) -> dict[str, Any]:
    """Run a script in a fresh interpreter; return what it prints, and its ``process`` seconds."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if cache is not None:
        variables["NUMBA_CACHE_DIR"] = cache
    started = time.perf_counter()
    answer = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=variables, capture_output=True, text=True,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    if answer.returncode:
        raise RuntimeError(f"a fresh process failed:\n{answer.stderr}")
    return json.loads(answer.stdout) | {"process": seconds}
