"""Thread counts: one context manager for the BLAS pools and the solver's own workers.

NumPy's and SciPy's wheels each carry an OpenBLAS with a pool of its own; threadpoolctl reaches
both. A BLAS pool larger than the free cores spins and can slow a loop of small products a
hundredfold, so the count matters more than any other setting.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from numbers import Integral
from typing import Any

from .exceptions import SettingsError


@contextmanager
def limit_threads(n_threads: int | None) -> Iterator[int]:
    """Hold every BLAS pool to `n_threads` inside the block, and yield the count in force.

    Parameters
    ----------
    n_threads : int or None
        None leaves the pools as they are (one thread inside joblib workers, which set that
        themselves) and yields the largest pool's size, at most the usable cores.

    Raises
    ------
    SettingsError
        If `n_threads` is neither None nor a positive integer.
    """
    controller = _pools(len(sys.modules))
    if n_threads is None:
        pools = [pool["num_threads"] for pool in controller.info() if pool["user_api"] == "blas"]
        yield max(1, min(max(pools, default=1), usable_cores()))
        return
    if not isinstance(n_threads, Integral) or isinstance(n_threads, bool) or n_threads < 1:
        raise SettingsError(f"n_threads must be None or an integer >= 1, but was {n_threads!r}")
    with controller.limit(limits=int(n_threads), user_api="blas"):
        yield int(n_threads)


@lru_cache(maxsize=1)
def _pools(n_modules: int) -> Any:
    """Return the pools there are; they are looked for again when more modules are loaded.

    To look for them takes longer than to solve a small problem.
    """
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
