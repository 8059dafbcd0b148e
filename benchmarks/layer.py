"""Is every output of a large layer proved, in what time and memory, how much faster than others?

A ReLU layer on correlated ReLU features is solved in every combination of formulation, radius and
tolerance, on one thread and on all cores. Times are given in GEMM pairs: one pair is ``X @ W`` and
``X.T @ Z`` in float64, on the same shapes and threads, timed right before and right after. A time
is that of building the problem and solving it: input checks, set-up and certificate are included.

References: Clarabel through cvxpy on a few outputs, scaled to the layer, and the published ADMM on
the strict cases. Every answer is judged by the same certificate.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from nettrim_solver import Problem, Solution, Status, instances, solve
from nettrim_solver.threads import usable_cores

from . import layer_report
from .measure import (
    gemm_pair_seconds,
    held_arrays,
    in_fresh_process,
    median_seconds,
    peak_arrays,
    peak_memory,
    pool_report,
    say,
)

#: Asked for by the design: gap and violation of every case; GEMM pairs by formulation, radius and
#: tolerance; how many times faster than the references.
TARGETS: dict[str, Any] = {
    "gap": 1e-6,
    "violation": 1e-6,
    "pairs": {"pooled per_output 0.3": 60.0, "pooled per_output 0.1": 100.0},
    "clarabel_ratio": 500.0,
    "published_ratio": 10.0,
}

#: Outputs on which Clarabel is timed, per case.
N_REFERENCE = 3

#: Blocks that the outputs are split into where the memory limit is small.
N_BLOCKS = 4


@dataclass(frozen=True)
class Layer:
    """The layer that is pruned: its shape, the spectrum of its signals, whether it has biases."""

    n_samples: int = 2000
    n_inputs: int = 784
    n_outputs: int = 300
    decay: float = 1.5
    biases: bool = False
    seed: int = 0

    def base(self) -> Problem:
        """Return the problem with its data made; the solved one always has an intercept."""
        made = instances.random_relu_layer(
            self.n_samples, self.n_inputs, self.n_outputs, decay=self.decay,
            intercept=self.biases, seed=self.seed,
        )  # fmt: skip
        return made.problem.replace(intercept=True)


#: Just large enough for float32 iterates.
QUICK = Layer(600, 150, 24)

#: Layers of the same shape with other laws, to show how far the result depends on the choice.
OTHER_LAYERS = ({"decay": 1.0}, {"biases": True})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each case")
    parser.add_argument("--skip-references", action="store_true", help="time the solver alone")
    parser.add_argument(
        "--time-limit", type=float, default=300.0, help="seconds for any one solve of the solver"
    )
    parser.add_argument(
        "--published-limit", type=float, default=600.0,
        help="most seconds for any one run of the published ADMM",
    )  # fmt: skip


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run all parts, each in processes of its own."""
    layer = QUICK if args.quick else Layer()
    shape, cases = asdict(layer), all_cases()
    common = {"repeats": args.repeats, "time_limit": args.time_limit}
    thread_counts = sorted({1, usable_cores()})
    runs = [
        in_fresh_process("benchmarks.layer:time_cases", n, layer=shape, cases=cases,
                         n_threads=n, **common)
        for n in thread_counts
    ]  # fmt: skip
    others = []
    for change in OTHER_LAYERS:
        part = in_fresh_process(
            "benchmarks.layer:time_cases", 1, layer=shape | change, cases=pooled_per_output(),
            n_threads=1, repeats=1, time_limit=args.time_limit,
        )  # fmt: skip
        others.append({"layer": shape | change, "cases": part["cases"]})
    result = {
        "quick": bool(args.quick),
        "layer": shape,
        "repeats": args.repeats,
        "targets": TARGETS,
        "thread_control": "a process per thread count: environment variables before the start, "
        "and solve(n_threads=...)",
        "pair": "X @ W and X.T @ Z in float64, mean of the medians right before and right after",
        "runs": runs,
        "other_layers": others,
        "memory": memory_cases(layer),
        "clarabel": None,
        "published": None,
    }
    if not args.skip_references:
        single = runs[0]["cases"]
        result["clarabel"] = in_fresh_process(
            "benchmarks.layer_references:time_clarabel", 1, layer=shape, cases=single
        )
        result["published"] = in_fresh_process(
            "benchmarks.layer_references:time_published", 1, layer=shape,
            limit=args.published_limit,
            cases=[case for case in single if case["formulation"] == "strict"],
        )  # fmt: skip
    result["met"] = layer_report.verdicts(result)
    return result


def describe(result: dict[str, Any]) -> str:
    """Return tables of the cases, the references and the memory, with a verdict on each target."""
    return layer_report.describe(result)


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw where the time of every case goes."""
    layer_report.plot(result, path)


def all_cases() -> list[dict[str, Any]]:
    """Return every combination of formulation, radius and tolerance."""
    return [
        {"name": f"{formulation} {radius} {tolerance:g}", "formulation": formulation,
         "radius": radius, "tolerance": tolerance}
        for formulation, radius, tolerance in product(
            ("pooled", "strict"), ("per_output", "joint"), (0.3, 0.1)
        )
    ]  # fmt: skip


def pooled_per_output() -> list[dict[str, Any]]:
    """Return the cases for which there is a target in GEMM pairs."""
    return [case for case in all_cases() if case["name"] in TARGETS["pairs"]]


def pose(base: Problem, case: dict[str, Any]) -> Problem:
    """Build the problem of a case from the data, with every check that a user's input gets."""
    return base.replace(**{key: case[key] for key in ("formulation", "radius", "tolerance")})


# The solver -----------------------------------------------------------------------------------


def time_cases(
    layer: dict[str, Any], cases: list[dict[str, Any]], repeats: int, time_limit: float,
    n_threads: int,
) -> dict[str, Any]:  # fmt: skip
    """Time the solver on every case (a task for a process of its own)."""
    base = Layer(**layer).base()
    warm_up(base, cases, n_threads)
    timed = []
    for case in cases:
        timed.append(time_case(base, case, repeats, time_limit, n_threads))
        say(f"threads {n_threads}, {case['name']}: {timed[-1]['pairs']:.0f} pairs")
    return {"n_threads": n_threads, **pool_report(), "cases": timed}


def warm_up(base: Problem, cases: list[dict[str, Any]], n_threads: int) -> None:
    """Compile every kernel that the cases use: on a part of the layer, and on few samples.

    The small problem iterates in float64, the large one in float32 and perhaps in both.
    """
    few = base.select(slice(0, 32))
    assert base.Y is not None
    tiny = Problem(base.X[:100, :20], base.Y[:100, :3], tolerance=0.3)
    for case in cases:
        for problem in (few, tiny):
            solve(pose(problem, case), n_threads=n_threads, time_limit=10.0)


def time_case(
    base: Problem, case: dict[str, Any], repeats: int, time_limit: float, n_threads: int
) -> dict[str, Any]:
    """Time one case between two measurements of the GEMM pair, and judge its answer."""
    before = gemm_pair_seconds(base.X, base.n_outputs)
    runs = []
    for _ in range(repeats):
        started = time.perf_counter()
        problem = pose(base, case)
        checked = time.perf_counter()
        solution = solve(problem, n_threads=n_threads, time_limit=time_limit)
        runs.append((time.perf_counter() - started, checked - started, solution))
    after = gemm_pair_seconds(base.X, base.n_outputs)
    pair = 0.5 * (before + after)
    runs.sort(key=lambda entry: entry[0])
    seconds, checks, solution = runs[(repeats - 1) // 2]
    target = TARGETS["pairs"].get(case["name"])
    numbers = judged(solution)
    stages = {"checks": checks, **solution.seconds}
    del stages["total"]
    stages["other"] = seconds - sum(stages.values())
    return {
        **case,
        "seconds": seconds,
        "seconds_all": [entry[0] for entry in runs],
        "pair_seconds_before": before,
        "pair_seconds_after": after,
        "pairs": seconds / pair,
        "target_pairs": target,
        "stages": {name: value / pair for name, value in stages.items()},
        "admm_parts": admm_parts(base, pair, stages, numbers),
        **numbers,
        "sample": sample(solution),
    }


def judged(solution: Solution) -> dict[str, Any]:
    """Return what the certificate says of an answer, and how long the search was."""
    certificate = solution.certificate
    return {
        "status": str(solution.status),
        "nonzero_fraction": solution.nnz / solution.W.size,
        "objective": certificate.objective,
        "gap": float(np.max(np.abs(certificate.gaps))),
        "violation": certificate.violation,
        "n_outputs": len(solution.statuses),
        "n_proved": solution.statuses.count(Status.OPTIMAL),
        "iterations_mean": float(np.mean(solution.iterations)),
        "iterations_max": int(np.max(solution.iterations)),
    }


def sample(solution: Solution) -> dict[str, Any]:
    """Return what the references are compared with, on the outputs that they solve."""
    outputs = np.linspace(0, len(solution.statuses) - 1, N_REFERENCE).astype(int)
    found, multiplier = solution.certificate, solution.multiplier
    return {
        "outputs": outputs,
        "objectives": found.objectives[outputs],
        "distances": found.distances[outputs],
        "multipliers": None if multiplier is None else multiplier[outputs],
    }


def admm_parts(
    base: Problem, pair: float, stages: dict[str, float], numbers: dict[str, Any]
) -> dict[str, float]:
    """Estimate what the ADMM stage consists of, in GEMM pairs.

    The products of one full float32 iteration are timed alone and counted once per mean iteration;
    the rest is for the passes over the samples, the checks and smaller blocks' lower efficiency.
    """
    X = base.X.astype(np.float32)
    rng = np.random.default_rng(0)
    square = rng.standard_normal((base.n_inputs, base.n_inputs)).astype(np.float32)
    rows = rng.standard_normal((base.n_outputs, base.n_inputs)).astype(np.float32)
    iterations = numbers["iterations_mean"]
    gemm = iterations * gemm_pair_seconds(X, base.n_outputs, 5) / pair
    projection = iterations * median_seconds(lambda: rows @ square, 5) / pair
    return {
        "gemm": gemm,
        "projection": projection,
        "rest": stages.get("admm", 0.0) / pair - gemm - projection,
    }


# Memory ---------------------------------------------------------------------------------------


def memory_cases(layer: Layer) -> list[dict[str, Any]]:
    """Measure the peak of every formulation and radius, in one block and in several."""
    block = 5 * 8 * layer.n_samples * -(-layer.n_outputs // N_BLOCKS)
    entries = []
    for case in (case for case in all_cases() if case["tolerance"] == 0.1):
        for memory_limit in (None, block):
            arguments = {"layer": asdict(layer), "case": case, "memory_limit": memory_limit}
            resident = in_fresh_process(
                "benchmarks.layer:memory_case", 1, traced=False, **arguments
            )
            traced = in_fresh_process("benchmarks.layer:memory_case", 1, traced=True, **arguments)
            shared = traced["shared_bytes"]
            panel = 8 * layer.n_samples * layer.n_outputs
            entries.append({
                "name": case["name"],
                "memory_limit": memory_limit,
                "inputs_bytes": traced["inputs_bytes"],
                "resident_bytes": resident["peak_bytes"],
                "array_bytes": traced["peak_bytes"],
                "shared_bytes": shared,
                "arrays_of_outputs": (traced["peak_bytes"] - sum(shared.values())) / panel,
                "resident_arrays_of_outputs":
                    (resident["peak_bytes"] - sum(shared.values())) / panel,
                "status": traced["status"],
            })  # fmt: skip
            say(f"memory, {case['name']}: {entries[-1]['arrays_of_outputs']:.1f} arrays")
    return entries


def memory_case(
    layer: dict[str, Any], case: dict[str, Any], memory_limit: int | None, traced: bool
) -> dict[str, Any]:
    """Measure the peak of one solve (a task for a process of its own).

    The factorisation is built inside the measured call and handed to it, so that what all outputs
    share can be told from what belongs to the outputs.
    """
    from nettrim_solver.solvers.admm.factorisation import Factorisation

    base = Layer(**layer).base()
    problem = pose(base, case)
    assert base.Y is not None
    tiny = Problem(base.X[:100, :20], base.Y[:100, :3], tolerance=0.3)
    # The float32 kernels are compiled on enough samples, but with few outputs.
    for part in (pose(tiny, case), pose(base.select(slice(0, 8)), case)):
        solve(part, n_threads=1)
    del base, tiny, part
    settings: dict[str, Any] = {} if memory_limit is None else {"memory_limit": memory_limit}

    def call() -> tuple[Factorisation, Solution]:
        shared = Factorisation(problem)
        return shared, solve(problem, n_threads=1, factorisation=shared, **settings)

    (shared, solution), peak = (peak_arrays if traced else peak_memory)(call)
    matrices = held_arrays(shared, exclude=[problem.X])
    square = sum(A.nbytes for A in matrices if A.ndim == 2 and A.shape[0] == A.shape[1])
    return {
        "peak_bytes": peak,
        "shared_bytes": {
            "square_matrices": square,
            "design_and_vectors": sum(A.nbytes for A in matrices) - square,
        },
        "inputs_bytes": problem.X.nbytes + (0 if problem.Y is None else problem.Y.nbytes),
        "status": str(solution.status),
    }
