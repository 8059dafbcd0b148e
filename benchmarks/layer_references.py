"""The references of the benchmark ``layer``: Clarabel on a few outputs, and the published ADMM.

Both are tasks for a process of their own, on one thread, and take the cases that the solver has
solved: its seconds, its objectives, and for a joint radius its distances and its multiplier.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nettrim_solver import Problem, Status, solve

from .layer import Layer, judged, pose
from .measure import gemm_pair_seconds, say

#: Clarabel's own defaults. The package's reference asks it for more, which takes longer.
CLARABEL_DEFAULTS = {"tol_gap_abs": 1e-8, "tol_gap_rel": 1e-8, "tol_feas": 1e-8}

#: The published ADMM may run this many times as long as the solver took: enough to show the target
#: ratio several times over, and no night is spent on a case that never stops.
PUBLISHED_PATIENCE = 40.0


def time_clarabel(layer: dict[str, Any], cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Time Clarabel through cvxpy on some outputs of every case; seconds are scaled to the layer.

    A joint radius couples all outputs. The sampled ones are posed with a joint radius of their own,
    the norm of the distances that they have in the layer's solution, which leaves that solution
    theirs. The scaled time is a lower bound, since a whole layer would have to be solved as one.
    Beside it stands the penalised problem at the multiplier that our solver found: it has the same
    solutions, too, and separates, but nobody knows that multiplier before.
    """
    base = Layer(**layer).base()
    warm = pose(base.select(slice(0, 1)), cases[0])
    solve(
        Problem(warm.X[:50, :10], lower=warm.box()[0][:50], upper=warm.box()[1][:50], epsilon=1.0),
        solver="cvxpy",
    )
    entries = []
    for case in cases:
        ours = case["sample"]
        problem, expected = pose(base, case).select(ours["outputs"]), np.array(ours["objectives"])
        if case["radius"] == "joint":
            distances = np.array(ours["distances"])
            problem = problem.within(float(np.linalg.norm(distances)))
        entries.append(_time_clarabel(problem, expected, case, base.n_outputs))
        if case["radius"] == "joint":
            # Unproved multipliers may be infinite, which JSON holds as text.
            lambda_ = np.array(ours["multipliers"], dtype=np.float64)
            if np.all(np.isfinite(lambda_) & (lambda_ > 0)):
                formulation = "penalised_strict" if problem.strict else "penalised"
                problem = problem.replace(formulation=formulation, lambda_=lambda_)
                expected = lambda_ * expected + 0.5 * distances**2
                entries.append(_time_clarabel(problem, expected, case, base.n_outputs))
    return entries


def _time_clarabel(
    problem: Problem, expected: NDArray[np.float64], case: dict[str, Any], n_outputs: int
) -> dict[str, Any]:
    """Time Clarabel on outputs of a case, whose objectives are expected to be these."""
    answer = solve(problem, solver="cvxpy", n_threads=1, backend_options=CLARABEL_DEFAULTS)
    # Its own judging is left out, the solver's is in: the ratio is the lower for it.
    seconds = answer.seconds["compile"] + answer.seconds["solve"]
    scaled = seconds * n_outputs / problem.n_outputs
    found = answer.certificate.objectives
    if problem.joint:  # whose outputs have one gap for all
        found, expected = found.sum(keepdims=True), expected.sum(keepdims=True)
    posed = problem.formulation == case["formulation"]
    say(f"Clarabel, {case['name']}, {problem.formulation}: {scaled / case['seconds']:.0f} times")
    return {
        "name": case["name"],
        "posed": posed,
        "solved_as": "posed" if posed else f"{problem.formulation} at our multiplier",
        "scaled_from_outputs": problem.n_outputs,
        "outputs": case["sample"]["outputs"],
        "seconds_measured": seconds,
        "seconds_compile": answer.seconds["compile"],
        "seconds_scaled": scaled,
        "ratio": scaled / case["seconds"],
        "objective_difference": largest_difference(found, expected),
        "warnings": answer.warnings,
        **judged(answer),
    }


def largest_difference(found: Any, expected: Any) -> float:
    """Return the largest relative difference; of zeros, which have no relative one, zero."""
    difference = np.abs(found - expected)
    return float(np.max(difference / np.where(expected != 0, np.abs(expected), 1.0)))


def time_published(
    layer: dict[str, Any], cases: list[dict[str, Any]], limit: float
) -> list[dict[str, Any]]:
    """Time the published ADMM on all outputs, to its own stop or to a limit, once per case."""
    base = Layer(**layer).base()
    entries = []
    for case in cases:
        before = gemm_pair_seconds(base.X, base.n_outputs)
        patience = min(limit, PUBLISHED_PATIENCE * case["seconds"])
        started = time.perf_counter()
        answer = solve(pose(base, case), solver="admm-published", n_threads=1, time_limit=patience)
        seconds = time.perf_counter() - started
        entries.append({
            "name": case["name"],
            "seconds": seconds,
            "pairs": seconds / before,
            "time_limit": patience,
            "stopped_by_limit": answer.status is Status.TIME_LIMIT,
            "ratio": seconds / case["seconds"],
            "objective_difference": answer.certificate.objective / case["objective"] - 1.0,
            **judged(answer),
        })  # fmt: skip
        say(f"published, {case['name']}: {entries[-1]['ratio']:.1f} times as long")
    return entries
