"""Does the solver find what Clarabel finds, on every kind of small problem, with a proof?

Random layers over formulation, radius, activation, shape, intercept and defect, each solved by the
solver and by cvxpy with Clarabel; then planted problems, where the answer is known. Reported are
the relative difference of the objectives and the certificate of each answer.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from nettrim_solver import instances, solve
from nettrim_solver.activations import ACTIVATIONS
from nettrim_solver.problem import FORMULATIONS
from nettrim_solver.solution import Solution

#: Asked of every random problem (relative difference, gap, violation), and of every planted one.
WANTED = 1e-6
WANTED_PLANTED = 1e-8

N_PROBLEMS, N_PLANTED = 240, 48
N_PROBLEMS_QUICK, N_PLANTED_QUICK = 32, 8

SHAPES = ((40, 12, 3), (60, 10, 4), (15, 30, 3), (25, 25, 2), (120, 20, 3))

#: Objectives below this are zero for the reference, which has no exact zeros.
ZERO = 1e-9


def random_instance(k: int) -> instances.Instance:
    """Return the k-th random problem: formulations, radii and kinds in turn, the rest at random."""
    rng = np.random.default_rng([2018, k])
    names = [*ACTIVATIONS, "box", "correlated"]
    name = names[k % len(names)]
    formulation = FORMULATIONS[(k // len(names) + k) % len(FORMULATIONS)]
    shape = SHAPES[rng.integers(len(SHAPES))]
    common: dict[str, Any] = {
        "formulation": formulation,
        "radius": ("joint", "per_output")[rng.integers(2)],
        "intercept": bool(rng.integers(2)),
        "tolerance": float(rng.choice([0.03, 0.1, 0.3, 0.8])),
        "seed": k,
    }
    if name == "box":
        return instances.random_box(*shape, **common)
    if name == "correlated":
        return instances.random_relu_layer(*shape, **common)
    n_defects = int(rng.integers(3))
    defects = rng.choice(instances.DEFECTS, size=n_defects, replace=False)
    return instances.random_layer(
        *shape, activation=name, defects=list(map(str, defects)), **common
    )


def planted_instance(k: int) -> instances.Instance:
    """Return the k-th planted problem."""
    shape = ((60, 20, 5), (30, 60, 4), (100, 30, 6))[k % 3]
    return instances.planted(
        *shape,
        kind=("plain", "degenerate", "duplicate_columns")[(k // 3) % 3],
        formulation=("pooled", "strict")[k % 2],
        radius=("per_output", "joint")[(k // 2) % 2],
        intercept=bool((k // 4) % 2),
        epsilon=1e-3 if k % 5 == 4 else None,
        seed=k,
    )


def judge_random(k: int, solver: str) -> dict[str, Any]:
    """Solve the k-th random problem with both, and compare."""
    instance = random_instance(k)
    problem = instance.problem
    reference = solve(problem, solver="cvxpy")
    answer = solve(problem, solver=solver)
    found, expected = answer.certificate.objectives, reference.certificate.objectives
    if problem.joint:
        found, expected = np.array([found.sum()]), np.array([expected.sum()])
    size = np.maximum(np.abs(expected), ZERO)
    return {
        "seed": k,
        "name": instance.name,
        "intercept": problem.intercept,
        "difference": float(np.max(np.abs(found - expected) / size)),
        "reference": _numbers(reference),
        **_numbers(answer),
    }


def judge_planted(k: int, solver: str) -> dict[str, Any]:
    """Solve the k-th planted problem, and compare with what was planted."""
    instance = planted_instance(k)
    answer = solve(instance.problem, solver=solver, tol_gap=1e-9, tol_feas=1e-9)
    assert instance.objective is not None
    difference = abs(answer.certificate.objective / instance.objective - 1.0)
    return {"seed": k, "name": instance.name, "difference": difference, **_numbers(answer)}


def _numbers(solution: Solution) -> dict[str, Any]:
    certificate = solution.certificate
    return {
        "status": str(solution.status),
        "gap": float(np.max(np.abs(certificate.gaps))),
        "violation": certificate.violation,
        "seconds": solution.seconds["total"],
    }


def summarise(cases: list[dict[str, Any]], wanted: float) -> dict[str, Any]:
    """Count what agrees and what is proved, and name the worst."""
    agrees = [case["difference"] <= wanted for case in cases]
    proved = [case["gap"] <= wanted and case["violation"] <= wanted for case in cases]
    return {
        "wanted": wanted,
        "n_problems": len(cases),
        "n_agree": sum(agrees),
        "n_proved": sum(proved),
        "worst_difference": max(case["difference"] for case in cases),
        "worst_gap": max(case["gap"] for case in cases),
        "worst_violation": max(case["violation"] for case in cases),
        "not_shown": [
            case["name"]
            for case, agree, proof in zip(cases, agrees, proved, strict=True)
            if not (agree and proof)
        ],
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark; ``args.quick`` takes a small part, ``args.solver`` another solver."""
    quick, solver = args.quick, getattr(args, "solver", None) or "admm"
    started = time.perf_counter()
    n_problems = N_PROBLEMS_QUICK if quick else N_PROBLEMS
    n_planted = N_PLANTED_QUICK if quick else N_PLANTED
    cases = [judge_random(k, solver) for k in range(n_problems)]
    planted = [judge_planted(k, solver) for k in range(n_planted)]
    references = [case["reference"]["status"] == "optimal" for case in cases]
    return {
        "solver": solver,
        "reference": "cvxpy with Clarabel",
        "quick": bool(quick),
        "seconds": time.perf_counter() - started,
        "random": {**summarise(cases, WANTED), "n_reference_proved": sum(references)},
        "planted": summarise(planted, WANTED_PLANTED),
        "cases": cases,
        "planted_cases": planted,
    }


def describe(result: dict[str, Any]) -> str:
    """Return the summary as a small table."""
    lines = [
        f"{result['solver']} against {result['reference']}",
        f"{'':10}{'problems':>9}{'agree':>7}{'proved':>8}{'difference':>12}{'gap':>10}{'violation':>11}",
    ]
    for name in ("random", "planted"):
        part = result[name]
        lines.append(
            f"{name:10}{part['n_problems']:>9}{part['n_agree']:>7}{part['n_proved']:>8}"
            f"{part['worst_difference']:>12.1e}{part['worst_gap']:>10.1e}"
            f"{part['worst_violation']:>11.1e}"
        )
        lines += [f"  not shown: {missing}" for missing in part["not_shown"]]
    return "\n".join(lines)
