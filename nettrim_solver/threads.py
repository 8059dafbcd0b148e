"""Thread counts: one context manager for the BLAS pools and the solver's own workers.

NumPy's and SciPy's wheels each carry an OpenBLAS with a pool of its own; threadpoolctl reaches
both. A BLAS pool larger than the free cores spins and can slow a loop of small products a
hundredfold, so the count matters more than any other setting.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from numbers import Integral
from typing import Any

from .exceptions import SettingsError

_LOCK = threading.Lock()

#: The limits in force, oldest first, and what the pools had before the first of them.
_USERS: list[tuple[object, int]] = []
_BEFORE: dict[str, int] = {}


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

    Notes
    -----
    The pools belong to the process, so blocks of several threads are counted: the youngest block
    still open has its way, and the pools are as they were once all are closed.
    """
    controller = _pools(len(sys.modules))
    if n_threads is None:
        pools = [pool["num_threads"] for pool in controller.info() if pool["user_api"] == "blas"]
        yield max(1, min(max(pools, default=1), usable_cores()))
        return
    if not isinstance(n_threads, Integral) or isinstance(n_threads, bool) or n_threads < 1:
        raise SettingsError(f"n_threads must be None or an integer >= 1, but was {n_threads!r}")
    user = object()
    with _LOCK:
        _USERS.append((user, int(n_threads)))
        _set_pools(controller)
    try:
        yield int(n_threads)
    finally:
        with _LOCK:
            _USERS[:] = [entry for entry in _USERS if entry[0] is not user]
            _set_pools(controller)


def _set_pools(controller: Any) -> None:
    """Set every BLAS pool to the youngest limit, or to what it was before the first."""
    for pool in controller.lib_controllers:
        if pool.user_api != "blas":
            continue
        if _USERS:
            _BEFORE.setdefault(pool.filepath, pool.get_num_threads())
            pool.set_num_threads(_USERS[-1][1])
        elif pool.filepath in _BEFORE:
            pool.set_num_threads(_BEFORE.pop(pool.filepath))


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
