"""What a benchmark's numbers depend on: machine, libraries, threads, revision."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "scipy", "numba", "threadpoolctl", "cvxpy", "clarabel", "osqp")
THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
ROOT = Path(__file__).resolve().parent.parent


def environment() -> dict[str, Any]:
    """Return the environment of this process as plain data.

    ``blas`` lists the BLAS libraries loaded so far, so call it after the benchmark has run.
    ``load_average`` shows whether the machine was shared while it ran.
    """
    import nettrim_solver
    from nettrim_solver.threads import usable_cores

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "nettrim_solver": nettrim_solver.__version__,
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "load_average": load_average(),
        "blas": blas_libraries(),
        "thread_variables": {k: os.environ[k] for k in THREAD_VARIABLES if k in os.environ},
    }


def version(name: str) -> str | None:
    """Return an installed package's version without importing it, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """Return the revision of the working copy, with ``-dirty`` when it has changes, or None."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def cpu_model() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def load_average() -> list[float] | None:
    """Return the load over 1, 5 and 15 minutes, or None where the system has none."""
    return [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None


def blas_libraries() -> list[dict[str, Any]]:
    """Return every BLAS library that is loaded: its kind, version, threads and architecture."""
    from threadpoolctl import threadpool_info

    keys = ("internal_api", "version", "num_threads", "threading_layer", "architecture")
    return [
        {key: pool.get(key) for key in keys} | {"file": Path(pool["filepath"]).name}
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    ]
