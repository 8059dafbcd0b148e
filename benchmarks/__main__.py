"""Run a benchmark by name, print what it found, and write it beside its environment.

    python -m benchmarks                 lists the benchmarks
    python -m benchmarks NAME [--quick] [--no-save] [options]

A benchmark is a module of this package with ``run(args) -> dict`` and ``describe(result) -> str``;
``add_arguments(parser)`` and ``plot(result, path)`` are optional. ``args.quick`` asks for a short
run, whose results go to ``NAME-quick.json`` and are no evidence.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .environment import environment, load_average

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 2 for an unknown benchmark."""
    words = list(sys.argv[1:] if argv is None else argv)
    known = benchmark_summaries()
    if not words or words[0] in ("-h", "--help"):
        print(__doc__.strip(), "\n\nbenchmarks:", sep="")
        width = max(map(len, known), default=0)
        print("\n".join(f"  {name:<{width}}  {summary}" for name, summary in known.items()))
        return 0
    name = words[0]
    if name not in known:
        print(f"benchmarks: error: no benchmark {name!r}; there are {list(known)}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"benchmarks.{name}")
    args = parse(name, module, words[1:])
    load_before, started = load_average(), time.perf_counter()
    result = plain(module.run(args))
    record = {
        "benchmark": name,
        "quick": args.quick,
        "seconds": round(time.perf_counter() - started, 3),
        "environment": environment() | {"load_average_before": load_before},
        "result": result,
    }
    print(module.describe(result))
    if args.save:
        stem = f"{name}-quick" if args.quick else name
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps(record, indent=2, allow_nan=False) + "\n"
        write_atomically(RESULTS / f"{stem}.json", lambda path: path.write_text(text))
        if hasattr(module, "plot"):
            write_atomically(RESULTS / f"{stem}.png", lambda path: module.plot(result, path))
        print(f"\nwrote {RESULTS / stem}.json")
    return 0


def parse(name: str, module: Any, words: Sequence[str]) -> argparse.Namespace:
    """Parse the options that all benchmarks share, and the module's own."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a short run that proves nothing")
    parser.add_argument("--no-save", dest="save", action="store_false", help="write no file")
    if hasattr(module, "add_arguments"):
        module.add_arguments(parser)
    return parser.parse_args(words)


def benchmark_summaries() -> dict[str, str]:
    """Return the first docstring line of every benchmark, by name, without importing any."""
    summaries = {}
    for path in sorted(FOLDER.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        if {"run", "describe"} <= functions:
            summaries[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return summaries


def plain(value: Any) -> Any:
    """Return a result as JSON can hold it: numpy values converted, infinite numbers as text."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in its place."""
    handle, name = tempfile.mkstemp(prefix=".partial-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
