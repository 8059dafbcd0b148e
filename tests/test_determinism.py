"""The same bits for the same problem and thread count, twice in a process and across processes."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from nettrim_solver import instances, solve
from nettrim_solver.problem import RADII
from nettrim_solver.solvers import admm

ROOT = Path(__file__).resolve().parent.parent

FORMS = [
    (formulation, radius)
    for formulation, radius in product(("pooled", "strict", "penalised", "penalised_strict"), RADII)
    if radius == "per_output" or not formulation.startswith("penalised")
]

#: Prints a digest of everything that a solution holds, for a problem of more than one block.
SCRIPT = """
import hashlib, sys
from nettrim_solver import instances, solve
from nettrim_solver.solvers import admm
admm.SHARED_FROM = 0  # small, but shared by workers
digest = hashlib.sha256()
for radius, dtype in (("joint", "float32"), ("per_output", "float64")):
    problem = instances.random_relu_layer(
        150, 40, 12, radius=radius, tolerance=0.2, intercept=True, seed=3
    ).problem
    solution = solve(problem, n_threads=int(sys.argv[1]), dtype=dtype, memory_limit=8 * 5 * 150 * 8)
    for array in (solution.W, solution.b, solution.theta, solution.rho, solution.iterations):
        digest.update(array.tobytes())
print(digest.hexdigest())
"""


def bits(solution):
    """Everything in a solution but the clock's readings."""
    judged = solution.certificate
    arrays = (
        solution.W, solution.b, solution.theta, solution.multiplier, solution.rho,
        solution.iterations, judged.objectives, judged.bounds, judged.gaps, judged.violations,
    )  # fmt: skip
    return [None if array is None else array.tobytes() for array in arrays], solution.statuses


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("formulation", "radius"), FORMS)
def test_the_same_bits_twice(formulation, radius, dtype):
    problem = instances.random_layer(
        60, 14, 5, formulation=formulation, radius=radius, intercept=True, seed=1
    ).problem
    first, other = solve(problem, dtype=dtype), instances.random_relu_layer(50, 10, 3).problem
    solve(other)
    assert bits(solve(problem, dtype=dtype)) == bits(first)
    assert bits(solve(first_again(problem), dtype=dtype)) == bits(first)


def first_again(problem):
    """The same problem from copies of its arrays: other addresses, equal numbers."""
    return problem.replace(X=problem.X.copy(), Y=problem.Y.copy())


def test_the_same_bits_when_stopped_early():
    problem = instances.random_relu_layer(80, 30, 4, tolerance=0.05).problem
    assert bits(solve(problem, max_iter=7)) == bits(solve(problem, max_iter=7))


@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_same_bits_across_processes(n_threads):
    digests = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(n_threads)],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout.strip())
    assert len(digests) == 1


def test_threads_change_no_more_than_rounding(monkeypatch):
    monkeypatch.setattr(admm, "SHARED_FROM", 0)
    problem = instances.random_relu_layer(
        150, 40, 12, radius="per_output", tolerance=0.2, seed=3
    ).problem
    one, two = (solve(problem, n_threads=n, tol_gap=1e-10, tol_feas=1e-10) for n in (1, 2))
    assert one.statuses == two.statuses
    assert np.array_equal(one.W != 0, two.W != 0)
