"""``nettrim solve``: one saved problem, solved and judged."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    PROVED,
    UNPROVED,
    add_command,
    add_run_options,
    check_writable,
    given_options,
    writing,
)

if TYPE_CHECKING:
    from ..problem import Problem
    from ..solution import Solution
    from ..solvers import Progress

EXAMPLE = """example:
  python -c "from nettrim_solver import Problem; import numpy as np; \\
      X = np.random.default_rng(0).normal(size=(99, 9)); \\
      Problem(X, np.maximum(X[:, :3], 0), tolerance=0.1).save('problem.npz')"
  nettrim solve problem.npz -o solution.npz

The solution file holds W, b and theta (where they exist) and status, a JSON string."""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    from ..solvers import SOLVERS

    command = add_command(
        commands, "solve", summary="solve one problem saved by Problem.save",
        description="Solve one saved layer problem, and judge the answer.", example=EXAMPLE,
    )  # fmt: skip
    command.add_argument("problem", type=Path, help="problem file, .npz")
    command.add_argument("-o", "--output", type=Path, metavar="FILE", help="solution file, .npz")
    command.add_argument("--json", action="store_true", help="print the status as JSON, no text")
    command.add_argument("--solver", default="admm", metavar="NAME",
                         help=f"one of {', '.join(SOLVERS)} (default: admm)")  # fmt: skip
    command.add_argument("--max-iter", type=int, metavar="N", help="iteration limit of the solver")
    command.add_argument("--tol-gap", type=float, metavar="GAP",
                         help="largest relative duality gap that counts as proved")  # fmt: skip
    add_run_options(command, "of the solver")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``nettrim solve``."""
    from .. import terminal
    from ..problem import Problem
    from ..problem_file import save_arrays
    from ..solve import solve
    from ..status import Status

    if arguments.output is not None:
        check_writable(arguments.output, arguments.problem)
    problem = Problem.load(arguments.problem)
    screen = terminal.Screen(arguments.quiet or arguments.json)
    with solve_reporter(arguments.quiet or arguments.json) as report:
        solution = solve(
            problem, arguments.solver, n_threads=arguments.n_threads, callback=report,
            **given_options(arguments, ("max_iter", "time_limit", "tol_gap")),
        )  # fmt: skip
    terminal.show_solution(screen, problem, solution)
    if arguments.output is not None:
        with writing(arguments.output):
            save_arrays(arguments.output, solution_arrays(problem, solution))
        screen.line(f"Wrote {arguments.output}.")
    if arguments.json:
        print(json.dumps(status_record(problem, solution)))
    return PROVED if solution.status is Status.OPTIMAL else UNPROVED


@contextmanager
def solve_reporter(quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Return the callback of a solve that moves a bar, on a terminal."""
    from ..network.display import is_watched, progress_bar

    if quiet or not is_watched():
        yield None
        return
    with progress_bar() as update:
        yield lambda at: update(f"iteration {at.iteration}", at.n_proved / max(1, at.n_outputs))


def status_record(problem: Problem, solution: Solution) -> dict[str, Any]:
    """Return what is known of a solution as plain numbers and text, ready for JSON.

    Infinite numbers become the text ``"inf"`` (JSON has none).
    """
    judged = solution.certificate
    least = solution.least_epsilon
    record: dict[str, Any] = {
        "status": str(solution.status),
        "message": solution.status.message,
        "remedy": solution.status.remedy,
        "statuses": [str(status) for status in solution.statuses],
        "gap": judged.gap,
        "violation": judged.violation,
        "objective": judged.objective,
        "bound": judged.bound,
        "distance": judged.distance,
        "activation_error": judged.activation_error,
        "least_epsilon": None if least is None else float(least.max()),
        "sparsity": solution.sparsity,
        "nnz": solution.nnz,
        "formulation": problem.formulation,
        "radius": problem.radius,
        "solver": solution.solver,
        "iterations": int(solution.iterations.max()),
        "seconds": solution.seconds["total"],
        "n_threads": solution.n_threads,
        "warnings": list(solution.warnings),
    }
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }


def solution_arrays(problem: Problem, solution: Solution) -> dict[str, Any]:
    """Return the arrays of a solution file: W, b, theta where there are any, and status (JSON)."""
    arrays: dict[str, Any] = {"W": solution.W, "b": solution.b, "theta": solution.theta}
    arrays["status"] = json.dumps(status_record(problem, solution))
    return {name: value for name, value in arrays.items() if value is not None}
