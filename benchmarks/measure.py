"""What the benchmarks share: fresh processes with a thread count, GEMM pairs, peaks of memory.

Run as ``python -m benchmarks.measure MODULE:FUNCTION ARGUMENTS`` it is the child of
:func:`in_fresh_process`: it calls the function with the JSON arguments and prints its result.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .__main__ import plain
from .environment import ROOT, THREAD_VARIABLES, load_average

KILOBYTE = 1024


def in_fresh_process(task: str, n_threads: int, /, **arguments: Any) -> Any:
    """Call ``module:function`` in a new interpreter whose thread pools all hold `n_threads`.

    The pools read their sizes from the environment when they are loaded, so a thread count needs
    a process of its own. What the child says on stderr (progress) passes through.

    Raises
    ------
    RuntimeError
        If the child fails.
    """
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    variables = os.environ | {name: str(n_threads) for name in THREAD_VARIABLES}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, "-m", "benchmarks.measure", task, json.dumps(plain(arguments))]
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{task} failed in its process (exit {done.returncode})")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str]) -> None:
    """Run one task and print its result as the last line of stdout."""
    task, arguments = argv
    module, _, name = task.partition(":")
    function = getattr(importlib.import_module(module), name)
    result = function(**json.loads(arguments))
    print(json.dumps(plain(result)))


def say(text: str) -> None:
    """Report progress on stderr, where results do not go."""
    print(text, file=sys.stderr, flush=True)


def gemm_pair_seconds(X: Any, n_outputs: int, repeats: int = 9) -> float:
    """Return the median time of one GEMM pair, ``X @ W`` and ``X.T @ Z``, in the dtype of X.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_inputs)
    n_outputs : int
        Columns of W and Z.
    repeats : int
        Pairs that are timed, after one that is not.
    """
    rng = np.random.default_rng(0)
    W = rng.standard_normal((X.shape[1], n_outputs)).astype(X.dtype)
    Z = rng.standard_normal((X.shape[0], n_outputs)).astype(X.dtype)

    def pair() -> None:
        X @ W
        X.T @ Z

    return median_seconds(pair, repeats)


@dataclass(frozen=True)
class Spent:
    """What a call took: wall seconds, and those of the processor, which a shared machine leaves."""

    seconds: float
    cpu_seconds: float

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)


def clocked(call: Callable[[], Any]) -> tuple[Any, Spent]:
    """Return what the call returns, and what it took; all threads of the process count."""
    started, busy = time.perf_counter(), time.process_time()
    answer = call()
    return answer, Spent(time.perf_counter() - started, time.process_time() - busy)


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """Return the median wall time of a call, after one call that does not count."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def pool_report() -> dict[str, Any]:
    """Return the BLAS pools of this process and the machine's load, to stand beside its times."""
    from .environment import blas_libraries

    return {"blas": blas_libraries(), "load_average": load_average()}


def peak_memory(call: Callable[[], Any]) -> tuple[Any, int]:
    """Return what the call returns, and how far the resident memory rose above its start, in bytes.

    Free pages of the heap are handed back first, so that the call cannot hide in them. Where the
    high-water mark of the process cannot be reset (systems other than Linux), an earlier and higher
    peak of the process counts.
    """
    gc.collect()
    _trim_heap()
    before = _resident()
    _reset_high_water()
    answer = call()
    return answer, max(0, _high_water() - before)


def peak_arrays(call: Callable[[], Any]) -> tuple[Any, int]:
    """Return what the call returns, and the peak of the arrays that it allocates, in bytes.

    numpy reports its arrays to tracemalloc; workspace of BLAS and LAPACK is not seen. Slower than
    the call alone, so nothing is timed here.
    """
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        answer = call()
        return answer, tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def held_arrays(holder: Any, exclude: Sequence[Any] = ()) -> list[Any]:
    """Return the distinct arrays that an object's attributes hold, dictionaries of them included.

    Views of an array in `exclude` are left out.
    """
    found: dict[int, Any] = {}
    for value in vars(holder).values():
        for entry in value.values() if isinstance(value, dict) else [value]:
            if not isinstance(entry, np.ndarray):
                continue
            if not any(np.may_share_memory(entry, other) for other in exclude):
                found[id(entry)] = entry
    return list(found.values())


def _trim_heap() -> None:
    """Hand the free pages of the heap back, where the C library can (glibc)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return


def _status(field: str) -> int | None:
    """Return one field of the process status in bytes, or None where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(values[0]) * KILOBYTE if values else None


def _resident() -> int:
    now = _status("VmRSS")
    return _lifetime_peak() if now is None else now


def _high_water() -> int:
    peak = _status("VmHWM")
    return _lifetime_peak() if peak is None else peak


def _lifetime_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * KILOBYTE


def _reset_high_water() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


if __name__ == "__main__":
    main(sys.argv[1:])
