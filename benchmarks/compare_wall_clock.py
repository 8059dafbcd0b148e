"""Net-Trim, L-OBS and DNS side by side: seconds, zeros and errors on two layers.

Net-Trim is given a radius, and says how many zeros it leaves; the others are told to leave as many.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nettrim_solver import Problem, Solution, instances, refit, solve

from .measure import Spent, clocked, gemm_pair_seconds, say

#: Samples, inputs, outputs; and as many of the samples held out.
LAYERS = ((5000, 784, 300), (5000, 1000, 1000))
QUICK_LAYERS = ((200, 40, 16),)
HELDOUT = 0.2

#: Decay of the covariance spectrum of the signals, as in the benchmark ``layer``.
DECAY = 1.5

#: Relative radii.
TOLERANCES = (0.3, 0.1)

OTHERS = ("obs", "dns", "exact_obs", "alps")

#: Most seconds of any one call.
PATIENCE = 1200.0


def side_by_side(quick: bool) -> list[dict[str, Any]]:
    """Time the methods on every layer, at every radius."""
    entries = []
    for P, N, M in QUICK_LAYERS if quick else LAYERS:
        n_fresh = int(HELDOUT * P)
        made = instances.random_relu_layer(P + n_fresh, N, M, decay=DECAY).problem
        fresh = made.samples(slice(P, None))
        layer = Problem(made.X[:P], made.Y[:P], made.W, intercept=False, radius="per_output")
        warm_up(layer)
        pair = gemm_pair_seconds(layer.X, M)
        for tolerance in TOLERANCES:
            name = f"{P} x {N}, {M} outputs, relative radius {tolerance:g}"
            rows = timed(layer.replace(tolerance=tolerance), fresh, pair)
            entries.append({
                "name": name, "shape": [P, N, M], "n_heldout": n_fresh, "pair_seconds": pair,
                "metric": "activation_error", "tolerance": tolerance, "timed": rows,
            })  # fmt: skip
            say(f"  {name}: {sum(row['seconds'] for row in rows):.0f} s")
    return entries


def warm_up(layer: Problem) -> None:
    """Compile every kernel that is used, on few outputs."""
    few = layer.select(slice(0, 4)).replace(tolerance=0.3)
    for solver in ("admm", *OTHERS):
        budget = {} if solver == "admm" else {"sparsity": 0.5}
        refit(few, solve(few, solver, n_threads=1, **budget))


def timed(problem: Problem, fresh: Problem, pair: float) -> list[dict[str, Any]]:
    """Return a row per method, first Net-Trim's."""
    solution, spent = clocked(lambda: solve(problem, time_limit=PATIENCE, n_threads=1))
    rows = [row_of("Net-Trim", problem, fresh, solution, spent, pair)]
    better, more = clocked(lambda: refit(problem, solution, "box", n_threads=1))
    rows.append(row_of("Net-Trim+refit-box", problem, fresh, better, spent + more, pair))
    for solver in OTHERS:
        answer, spent = clocked(
            lambda solver=solver: solve(problem, solver, nnz=solution.nnz, n_threads=1)
        )
        rows.append(row_of(solver, problem, fresh, answer, spent, pair))
        if solver == "obs":
            better, more = clocked(lambda answer=answer: refit(problem, answer, n_threads=1))
            rows.append(row_of("obs+refit", problem, fresh, better, spent + more, pair))
    return rows


def row_of(
    label: str, problem: Problem, fresh: Problem, solution: Solution, spent: Spent, pair: float
) -> dict[str, Any]:
    """Return what is shown of an answer."""
    judged = solution.certificate
    dual = solution.theta is not None
    heldout = np.maximum(solution.predict(fresh.X), 0.0) - fresh.Y
    return {
        "label": label,
        "zeros": solution.sparsity,
        "seconds": spent.seconds,
        "cpu_seconds": spent.cpu_seconds,
        "pairs": spent.seconds / pair,
        "activation_error": judged.activation_error / float(np.linalg.norm(problem.Y)),
        "heldout_activation_error": float(np.linalg.norm(heldout) / np.linalg.norm(fresh.Y)),
        "l1_norm": float(np.abs(solution.W).sum()),
        "gap": float(np.max(np.abs(judged.gaps))) if dual else None,
        "violation": judged.violation,
        "status": str(solution.status),
    }
