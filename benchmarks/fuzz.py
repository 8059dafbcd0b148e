"""Random small problems of all kinds, judged from the definitions, with Clarabel as arbiter.

Every problem is made from two integers (:mod:`benchmarks.fuzz_problems`), solved by the default
solver, and judged in extended precision by code that shares nothing with the package
(:mod:`benchmarks.fuzz_judge`). Clarabel gives a second answer and a second bound to every group of
outputs. What an answer may turn out to be:

- right: proved, and neither too large, too small nor out of its radius; or infeasible, and so;
- refused: a ProblemError before any work;
- undecided: neither optimal nor infeasible (with a count of those that Clarabel settles);
- wrong: `optimal` but too large, too small, or not feasible; `infeasible` but not so;
- crashed: any other exception; slow: longer than 5 seconds.

    python -m benchmarks fuzz --problems N --seed S [--kind one_hot] [--only K]
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from .fuzz_judge import (
    ARBITER_FEASIBLE,
    Group,
    Measured,
    Verdict,
    arbitrate,
    bound,
    groups_of,
    measure,
)
from .fuzz_problems import Case, make_case

N_PROBLEMS, N_PROBLEMS_QUICK = 10_000, 200

#: Seconds that no small problem may take.
SLOW = 5.0

#: Times the tolerance of the package's own proofs by which an objective may be off here: the
#: package proves to the tolerance, and the arbiter has some error of its own.
MARGIN = 2.0

#: Tolerance of gaps and violations by the dtype of X.
TOLERANCES = {"float64": 1e-6, "float32": 1e-5}

#: Bounds of the tolerance for what has no digits: objectives below this share of what a column
#: could bring are zero.
ZERO = 1e-9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark alone knows."""
    parser.add_argument("--problems", type=int, help="number of problems")
    parser.add_argument("--seed", type=int, default=0, help="first of the two integers")
    parser.add_argument("--start", type=int, default=0, help="first problem")
    parser.add_argument("--kind", help="only problems whose kind contains this")
    parser.add_argument("--only", type=int, help="one problem alone, told in full")


def judge_case(seed: int, k: int) -> dict[str, Any]:
    """Solve one problem and judge its answer."""
    from nettrim_solver import Problem, solve
    from nettrim_solver.exceptions import NettrimError

    with np.errstate(all="ignore"):
        case = make_case(seed, k)
    found: dict[str, Any] = {"k": k, "kind": case.kind, "name": case.name}
    started = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            solution = solve(Problem(**case.arguments))
    except NettrimError as error:
        return found | {"outcome": "refused", "why": str(error), "seconds": 0.0}
    except Exception as error:
        return found | {"outcome": "crashed", "why": f"{type(error).__name__}: {error}",
                        "seconds": time.perf_counter() - started}  # fmt: skip
    found["seconds"] = time.perf_counter() - started
    with np.errstate(all="ignore"):
        outcomes = [judge_group(case, group, solution) for group in groups_of(case.arguments)]
    worst = max(outcomes, key=lambda outcome: ORDER.index(outcome[0]))
    return found | {"outcome": worst[0], "why": worst[1], "status": str(solution.status)}


#: From good to bad.
ORDER = (
    "optimal", "infeasible", "undecided, hard", "undecided", "too large", "too small",
    "not feasible", "not infeasible",
)  # fmt: skip


#: What no answer may turn out to be.
WRONG = ("too large", "too small", "not feasible", "not infeasible", "crashed")


def judge_group(case: Case, group: Group, solution: Any) -> tuple[str, str]:
    """Return the outcome of one group, and why."""
    columns = group.columns
    statuses = {str(solution.statuses[j]) for j in columns}
    W, b = solution.W[:, columns], np.zeros(len(columns))
    if solution.b is not None:
        b = solution.b[columns]
    tolerance = TOLERANCES[str(case.arguments["X"].dtype)]
    if statuses == {"optimal"}:
        return _judge_optimal(group, W, b, solution.theta[:, columns], tolerance)
    if "infeasible" in statuses and statuses <= {"infeasible", "optimal"}:
        return _judge_infeasible(case, group)
    clarabel = _try(group)
    settled = clarabel is not None and clarabel.solved and _feasible(group, clarabel, 1e-6)
    status = "/".join(sorted(statuses))
    return ("undecided" if settled else "undecided, hard"), status


def _judge_optimal(
    group: Group, W: Any, b: Any, theta: Any, tolerance: float
) -> tuple[str, str]:  # fmt: skip
    if not (np.all(np.isfinite(W)) and np.all(np.isfinite(b))):
        return "not feasible", "weights are not finite"
    ours = measure(group, W, b)
    # With tolerances relative to the radius alone a radius of zero has none: the documented floors
    # are a millionth of the targets, and a hundredth where weights are float32.
    floor = 1e-6 if tolerance < 1e-5 else 1e-2
    floor *= float(np.linalg.norm(np.clip(0.0, group.lower, group.upper)))
    allowed = tolerance * max(group.level, floor) / ours.radius
    if ours.excess > MARGIN * allowed and not group.penalised:
        return "not feasible", f"beyond the radius by {ours.excess:.2e} of it"
    if ours.hard > MARGIN * tolerance:
        return "not feasible", f"beyond a hard row by {ours.hard:.2e} of its scale"
    clarabel = _try(group)
    if clarabel is None:
        return "optimal", ""
    return _compare(group, ours, theta, clarabel, tolerance)


def _compare(
    group: Group, ours: Measured, theta: Any, clarabel: Verdict, tolerance: float
) -> tuple[str, str]:  # fmt: skip
    # Radii below the documented floor are kept to the tolerance times that floor.
    target = float(np.linalg.norm(np.clip(0.0, group.lower, group.upper)))
    floor = target * (1e-6 if tolerance < 1e-5 else 1e-2)
    if not group.penalised and group.level < floor:
        group = replace(group, level=group.level + MARGIN * tolerance * floor)
    lower = max(bound(group, theta), bound(group, clarabel.theta))
    slack = MARGIN * tolerance * max(ours.objective, lower) + _zero(group, tolerance)
    if ours.objective < lower - slack:
        return "too small", f"{ours.objective:.9g} where {lower:.9g} is a bound"
    if clarabel.solved and _feasible(group, clarabel, ARBITER_FEASIBLE):
        theirs = measure(group, clarabel.W, clarabel.b)
        # What the arbiter's own excess is worth at its multipliers, the more so near a vertex.
        worth = theirs.excess * theirs.radius * float(np.linalg.norm(clarabel.theta))
        if ours.objective > theirs.objective + slack + 10.0 * worth:
            return "too large", f"{ours.objective:.9g} where {theirs.objective:.9g} is reached"
    return "optimal", ""


def _zero(group: Group, tolerance: float) -> float:
    """Return an objective that is none: rounding of what the best column would cost alone."""
    target = float(np.linalg.norm(np.clip(0.0, group.lower, group.upper)))
    if group.penalised:
        floor = 1e-6 if tolerance < 1e-5 else 1e-2
        return MARGIN * tolerance * 0.5 * (floor * target) ** 2
    size = np.linalg.norm(group.X, axis=0)[:, None]
    costs = np.divide(group.c, size, out=np.zeros_like(group.c), where=size > 0)
    costs = costs[costs > 0]
    return ZERO * 1e-3 * target * float(costs.min(initial=np.inf)) if costs.size else 0.0


def _judge_infeasible(case: Case, group: Group) -> tuple[str, str]:
    """Return whether the weights behind the targets, or the arbiter's nearest ones, reach it."""
    planted = Verdict(True, case.W[:, group.columns], case.b[group.columns], case.b)
    if _reaches(group, planted):
        return "not infeasible", "the weights behind the targets reach it"
    if len(group.columns) == 1 or not group.strict:
        nearest = _try(group, least=True)
        if nearest is not None and nearest.solved and _reaches(group, nearest):
            return "not infeasible", "the arbiter's nearest weights reach it"
    return "infeasible", ""


def _reaches(group: Group, verdict: Verdict) -> bool:
    """Return whether weights of ordinary size reach the radius, but for rounding."""
    if not (np.all(np.isfinite(verdict.W)) and np.all(np.isfinite(verdict.b))):
        return False
    unit = float(np.linalg.norm(np.clip(0.0, group.lower, group.upper)))
    size = np.linalg.norm(group.X, axis=0) @ np.abs(verdict.W)
    if np.any(size > 1e5 * unit):
        return False
    found = measure(group, verdict.W, verdict.b)
    return found.excess == 0.0 and found.hard <= 1e-14


def _feasible(group: Group, verdict: Verdict, tolerance: float) -> bool:
    if not (np.all(np.isfinite(verdict.W)) and np.all(np.isfinite(verdict.b))):
        return False
    found = measure(group, verdict.W, verdict.b)
    return found.excess <= tolerance and found.hard <= tolerance


def _try(group: Group, least: bool = False) -> Verdict | None:
    """Return the arbiter's answer, or None where it fails (it is not what is tested)."""
    if not least and group.level > 0 and not group.penalised:
        target = float(np.linalg.norm(np.clip(0.0, group.lower, group.upper)))
        if not 1e-9 * target < group.level:
            return None
    try:
        return arbitrate(group, least)
    except BaseException as error:  # a Rust panic is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return None


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Judge many problems; ``args.quick`` a few."""
    for k in range(8):
        judge_case(0, k)  # compiles the kernels
    if args.only is not None:
        found = judge_case(args.seed, args.only)
        return {"seed": args.seed, "cases": [found], **summarise([found])}
    count = args.problems or (N_PROBLEMS_QUICK if args.quick else N_PROBLEMS)
    cases: list[dict[str, Any]] = []
    k = args.start
    while len(cases) < count:
        if not args.kind or args.kind in make_case(args.seed, k).kind:
            cases.append(judge_case(args.seed, k))
        k += 1
    failures = [case for case in cases if is_failure(case)]
    return {"seed": args.seed, "start": args.start, "n_problems": count, **summarise(cases),
            "failures": failures}  # fmt: skip


def is_failure(case: dict[str, Any]) -> bool:
    """Return whether a case is more than right or refused."""
    return case["outcome"] not in ("optimal", "infeasible", "refused") or case["seconds"] > SLOW


def summarise(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Count outcomes, in all and by kind."""
    times = np.array([case["seconds"] for case in cases])
    kinds: dict[str, Counter[str]] = {}
    for case in cases:
        for kind in case["kind"].split("+"):
            kinds.setdefault(kind, Counter())[case["outcome"]] += 1
    return {
        "outcomes": dict(Counter(case["outcome"] for case in cases)),
        "n_slow": int(np.sum(times > SLOW)),
        "slowest": float(times.max()),
        "median_seconds": float(np.median(times)),
        "solve_seconds": float(times.sum()),
        "by_kind": {kind: dict(counts) for kind, counts in sorted(kinds.items())},
    }


def describe(result: dict[str, Any]) -> str:
    """Return the counts as tables, and every failure by its seed."""
    if "cases" in result:
        return "\n".join(f"{key}: {value}" for key, value in result["cases"][0].items())
    names = ["optimal", "infeasible", "refused", "undecided", "undecided, hard", "too large",
             "too small", "not feasible", "not infeasible", "crashed"]  # fmt: skip
    lines = [f"{'':20}" + "".join(f"{name:>16}" for name in names)]
    for kind, counts in [("all", result["outcomes"]), *result["by_kind"].items()]:
        lines.append(f"{kind:20}" + "".join(f"{counts.get(name, 0):>16}" for name in names))
    lines.append(
        f"{result['n_problems']} problems of seed {result['seed']}: {result['n_slow']} over "
        f"{SLOW:g} s, the slowest {result['slowest']:.2f} s, median "
        f"{result['median_seconds']:.4f} s"
    )
    for case in result["failures"][:60]:
        lines.append(
            f"  {case['k']}: {case['outcome']} ({case['why'][:90]}) {case['name']} "
            f"{case['seconds']:.2f} s"
        )
    return "\n".join(lines)
