"""The thread count: every BLAS pool, restored afterwards, and only sensible values."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.linalg
from threadpoolctl import threadpool_info

from nettrim_solver import Problem, Status, solve
from nettrim_solver.exceptions import SettingsError
from nettrim_solver.threads import limit_threads, usable_cores


def blas_threads():
    """Thread counts of all BLAS pools, by library (numpy's and scipy's wheels bring one each).

    Some packages (scs) carry a BLAS built without threads, which no count can change.
    """
    scipy.linalg.blas.dgemm(1.0, np.eye(2), np.eye(2))
    return {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()
            if pool["user_api"] == "blas" and pool["threading_layer"] != "disabled"}  # fmt: skip


@pytest.mark.parametrize("n_threads", [1, 2, np.int64(2)])
def test_every_blas_pool_is_limited_and_restored(n_threads):
    before = blas_threads()
    assert before
    with limit_threads(n_threads) as count:
        assert count == n_threads and type(count) is int
        assert set(blas_threads().values()) == {int(n_threads)}
    assert blas_threads() == before


def test_limits_nest_and_are_restored_after_an_error():
    before = blas_threads()
    with pytest.raises(ZeroDivisionError), limit_threads(2):
        with limit_threads(1):
            assert set(blas_threads().values()) == {1}
        assert set(blas_threads().values()) == {2}
        raise ZeroDivisionError
    assert blas_threads() == before


def test_none_leaves_the_pools_alone():
    with limit_threads(2):
        before = blas_threads()
        with limit_threads(None) as count:
            assert blas_threads() == before
            assert count == min(2, usable_cores())


@pytest.mark.parametrize("n_threads", [0, -1, 1.0, "2", True, float("nan"), [1]])
def test_other_values_are_refused_before_any_change(n_threads):
    before = blas_threads()
    with pytest.raises(SettingsError, match=r"n_threads must be None or an integer >= 1, but was"):
        with limit_threads(n_threads):
            raise AssertionError("the block must not run")
    assert blas_threads() == before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_usable_cores_follow_the_affinity():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from nettrim_solver.threads import usable_cores; print(usable_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_a_pool_that_is_loaded_later_is_limited_too():
    script = """
import numpy as np
from threadpoolctl import threadpool_info
from nettrim_solver.threads import limit_threads
def pools():
    return [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]
with limit_threads(1):
    pass
import scipy.linalg
before = len(pools())
with limit_threads(1):
    print(before > 1, set(pools()) == {1})
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    several, limited = done.stdout.split()
    if several == "False":
        pytest.skip("numpy and scipy share one BLAS here")
    assert limited == "True"


def test_limits_of_concurrent_users_are_restored():
    before = blas_threads()
    first, second = threading.Event(), threading.Event()

    def early():
        with limit_threads(1):
            first.set()
            second.wait(10)  # leaves while the other is still inside

    worker = threading.Thread(target=early)
    with limit_threads(2):
        held = blas_threads()
        worker.start()
        first.wait(10)
        second.set()
        worker.join()
        assert blas_threads() == held
    assert blas_threads() == before


def test_many_concurrent_solves_leave_the_pools_as_they_were():
    before = blas_threads()
    X = np.random.default_rng(0).standard_normal((20, 4))
    problem = Problem(X, np.maximum(X[:, :2], 0.0), tolerance=0.1)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: solve(problem).status, range(40)))
    assert set(found) == {Status.OPTIMAL}
    assert blas_threads() == before
