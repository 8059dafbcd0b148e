"""The command ``nettrim``: the demonstration, one saved problem, a whole network.

Exit codes: 0 proved (``prune`` with a pruner: the budget is met), 1 an answer without proof (or a
proof that there is none), 2 bad input or usage, 130 interrupted. Errors are one line on stderr.
Everything slow is imported by the subcommand that needs it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .exceptions import NettrimError, SolverError

if TYPE_CHECKING:
    from .problem import Problem
    from .solution import Solution

PROVED, UNPROVED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

DEMO_EXAMPLE = """example:
  nettrim demo --tolerances 0.05 0.1 0.2 --output pruned

Prunes the shipped 64-256-128-10 digit classifier layer by layer, prints a table per tolerance, and
writes pruned-TOLERANCE.npz (W0, b0, W1, ...) and zeros-accuracy.png into the output folder."""

SOLVE_EXAMPLE = """example:
  python -c "from nettrim_solver import Problem; import numpy as np; \\
      X = np.random.default_rng(0).normal(size=(99, 9)); \\
      Problem(X, np.maximum(X[:, :3], 0), tolerance=0.1).save('problem.npz')"
  nettrim solve problem.npz -o solution.npz

The solution file holds W, b and theta (where they exist) and status, a JSON string."""

PRUNE_EXAMPLE = """example:
  nettrim prune network.npz --calibration inputs.npy --tolerance 0.1 -o pruned.npz

network.npz holds W0, b0, W1, b1, ... (weights of shape inputs x outputs; ReLU between the layers,
unless an entry "activations" names others); inputs.npy holds samples as rows, as the network takes
them. The pruned network is written in the same format. Calibration data is never made up: in
Python, numpy.save("inputs.npy", X) writes it."""


class UsageError(Exception):
    """A command line that makes no sense; the message says why."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are exceptions, to be one line like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise :class:`UsageError` with a pointer to the help text."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit code.

    Examples
    --------
    >>> main(["solve", "missing.npz"])
    2
    """
    debug = False
    try:
        arguments = build_parser().parse_args(argv)
        debug = arguments.debug
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("nettrim: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout has gone: nothing more can be said, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNPROVED
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"nettrim: error: {_one_line(error)}", file=sys.stderr)
        bad_input = isinstance(error, (NettrimError, UsageError, OSError))
        return BAD_INPUT if bad_input and not isinstance(error, SolverError) else UNPROVED


def _one_line(error: Exception) -> str:
    """Return an error's message on one line."""
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    elif isinstance(error, (NettrimError, UsageError, OSError)):
        text = str(error)
    elif isinstance(error, MemoryError):
        text = f"out of memory: {error}"
    else:
        text = f"{type(error).__name__}: {error} (this is a bug; --debug shows where)"
    return " ".join(text.split())


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands; each sets ``run`` to its function."""
    from . import __version__
    from .solvers import SOLVERS

    parser = Parser(
        prog="nettrim",
        description="Prune trained networks layer by layer, with a proof of optimality.",
        epilog="example:\n  nettrim demo\n\nexit codes: 0 proved, 1 answer without proof, "
        "2 bad input or usage, 130 interrupted",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nettrim_solver {__version__}")
    common = Parser(add_help=False)
    common.add_argument("--solver", default="admm", metavar="NAME",
                        help=f"one of {', '.join(SOLVERS)} (default: admm)")  # fmt: skip
    common.add_argument("--max-iter", type=int, metavar="N", help="iteration limit of the solver")
    common.add_argument("--time-limit", type=float, metavar="SECONDS",
                        help="time limit of the solver, per layer")  # fmt: skip
    common.add_argument("--n-threads", type=int, metavar="N", help="threads (default: BLAS's own)")
    common.add_argument("--tol-gap", type=float, metavar="GAP",
                        help="largest relative duality gap that counts as proved")  # fmt: skip
    common.add_argument("--quiet", action="store_true", help="print nothing but errors")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands, common)
    _add_solve(commands, common)
    _add_prune(commands, common)
    return parser


def _add_demo(commands: Any, common: argparse.ArgumentParser) -> None:
    command = commands.add_parser(
        "demo", parents=[common], help="prune a small real network at several tolerances",
        description="Prune a trained digit classifier layer by layer at several tolerances.",
        epilog=DEMO_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_argument("--tolerances", type=float, nargs="+", metavar="G",
                         help="relative radii (default: 0.02 0.05 0.1 0.2 0.3)")  # fmt: skip
    command.add_argument("--output", type=Path, default=Path("nettrim-demo"), metavar="DIR",
                         help="folder for the results (default: nettrim-demo)")  # fmt: skip
    command.set_defaults(run=run_demo)


def _add_solve(commands: Any, common: argparse.ArgumentParser) -> None:
    command = commands.add_parser(
        "solve", parents=[common], help="solve one problem saved by Problem.save",
        description="Solve one saved layer problem, and judge the answer.",
        epilog=SOLVE_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_argument("problem", type=Path, help="problem file, .npz")
    command.add_argument("-o", "--output", type=Path, metavar="FILE", help="solution file, .npz")
    command.add_argument("--json", action="store_true", help="print the status as JSON, no text")
    command.set_defaults(run=run_solve)


def _add_prune(commands: Any, common: argparse.ArgumentParser) -> None:
    command = commands.add_parser(
        "prune", parents=[common], help="prune a whole network given as arrays",
        description="Prune the layers of a network, and write it back.",
        epilog=PRUNE_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_argument("model", type=Path, help="network as arrays, .npz")
    command.add_argument("--calibration", type=Path, required=True, metavar="FILE",
                         help="samples, .npy, or .npz with an entry X")  # fmt: skip
    command.add_argument("--heldout", type=Path, metavar="FILE",
                         help="samples on which the errors are measured, too")  # fmt: skip
    budget = command.add_mutually_exclusive_group(required=True)
    budget.add_argument("--tolerance", type=float, metavar="G",
                        help="radius of every layer, relative to its outputs")  # fmt: skip
    budget.add_argument("--sparsity", type=float, metavar="S",
                        help="fraction of zeros of every layer")  # fmt: skip
    command.add_argument("--mode", choices=("cascade", "parallel"), default="cascade",
                         help="signals that a layer is pruned on (default: cascade)")  # fmt: skip
    command.add_argument("--exclude", nargs="+", metavar="NAME",
                         help="layers that stay, by name or pattern")  # fmt: skip
    command.add_argument("--checkpoint", type=Path, metavar="DIR",
                         help="folder for finished layers, to go on from")  # fmt: skip
    command.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")
    command.add_argument("-o", "--output", type=Path, metavar="FILE", help="pruned network, .npz")
    command.add_argument("--json", action="store_true", help="print the report as JSON, no text")
    command.set_defaults(run=run_prune)


def run_demo(arguments: argparse.Namespace) -> int:
    """Run ``nettrim demo``."""
    from . import demo, terminal
    from .exceptions import MissingDependencyError

    started = time.perf_counter()
    screen = terminal.make_screen(arguments.quiet)
    grid = demo.checked_tolerances(
        demo.TOLERANCES if arguments.tolerances is None else arguments.tolerances
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    _check_writable(arguments.output / "pruned.npz")
    network = demo.load_demo_network()
    sizes = [network.weights[0].shape[0], *(W.shape[1] for W in network.weights)]
    screen.line(
        f"Digits classifier {'-'.join(map(str, sizes))}: {len(network.y_train)} training samples "
        f"calibrate, {len(network.y_test)} held-out samples score. Solver {arguments.solver}."
    )
    results = []
    with screen.progress() as update:
        sweep = demo.prune_sweep(
            grid, network=network, solver=arguments.solver, n_threads=arguments.n_threads,
            report=terminal.step_reporter(update), **_settings(arguments),
        )  # fmt: skip
        for result in sweep:
            terminal.show_pruned(screen, result)
            demo.save_pruned(result, arguments.output)
            results.append(result)
    written = f"{len(results)} pruned networks"
    try:
        demo.save_plot(results, arguments.output / "zeros-accuracy.png")
        written += " and zeros-accuracy.png"
    except MissingDependencyError as error:
        screen.line(f"Plot skipped: {error}")
    unproved = sum(not result.proved for result in results)
    screen.line("Every layer is proved optimal." if not unproved else
                f"{unproved} of {len(results)} tolerances hold a layer without proof.")  # fmt: skip
    screen.line(f"Wrote {written} to {arguments.output}. {time.perf_counter() - started:.1f} s.")
    return UNPROVED if unproved else PROVED


def run_solve(arguments: argparse.Namespace) -> int:
    """Run ``nettrim solve``."""
    from . import terminal
    from .problem import Problem
    from .problem_file import save_arrays
    from .solve import solve
    from .status import Status

    if arguments.output is not None:
        _check_writable(arguments.output)
        if arguments.output.exists() and arguments.output.samefile(arguments.problem):
            raise UsageError(f"--output {arguments.output} is the problem file itself")
    problem = Problem.load(arguments.problem)
    screen = terminal.make_screen(arguments.quiet or arguments.json)
    with screen.progress() as update:
        solution = solve(
            problem, arguments.solver, n_threads=arguments.n_threads,
            callback=terminal.solve_reporter(update), **_settings(arguments),
        )  # fmt: skip
    terminal.show_solution(screen, problem, solution)
    if arguments.output is not None:
        save_arrays(arguments.output, solution_arrays(problem, solution))
        screen.line(f"Wrote {arguments.output}.")
    if arguments.json:
        print(json.dumps(status_record(problem, solution)))
    return PROVED if solution.status is Status.OPTIMAL else UNPROVED


def run_prune(arguments: argparse.Namespace) -> int:
    """Run ``nettrim prune``."""
    from . import terminal
    from .frameworks import from_npz, to_npz
    from .network import plan_network, prune_network
    from .status import Status

    if arguments.output is None and not arguments.dry_run:
        raise UsageError("give the pruned network a file: --output FILE (see nettrim prune --help)")
    if arguments.output is not None:
        _check_writable(arguments.output)
    network = from_npz(arguments.model)
    X = load_samples(arguments.calibration)
    heldout = None if arguments.heldout is None else load_samples(arguments.heldout)
    given = {
        "mode": arguments.mode, "solver": arguments.solver, "skip": arguments.exclude,
        "tolerance": arguments.tolerance, "sparsity": arguments.sparsity,
    }  # fmt: skip
    settings = _settings(arguments)
    time_limit = settings.pop("time_limit", None)
    screen = terminal.make_screen(arguments.quiet or arguments.json)
    if arguments.dry_run:
        screen.line(str(plan_network(network, X, **given)))
        return PROVED
    with screen.progress() as update:
        result = prune_network(
            network, X, X_heldout=heldout, settings=settings or None, time_limit=time_limit,
            checkpoint=arguments.checkpoint, n_threads=arguments.n_threads,
            callback=terminal.layer_reporter(update), **given,
        )  # fmt: skip
    to_npz(result.network, arguments.output)
    screen.line(result.table())
    screen.line(f"Wrote {arguments.output}.")
    if arguments.json:
        print(json.dumps(result.to_dict()))
    done = (Status.OPTIMAL, Status.FEASIBLE, Status.PRUNED)
    return PROVED if result.status in done else UNPROVED


def load_samples(path: Path) -> Any:
    """Return the samples of an ``.npy`` file, or of the entry X of an ``.npz`` file.

    Raises
    ------
    ProblemFileError
        If there are none.
    """
    import numpy as np

    from .exceptions import ProblemFileError
    from .problem_file import load_arrays

    if path.suffix == ".npz":
        arrays = load_arrays(path, "samples X")
        if "X" not in arrays:
            raise ProblemFileError(f"{path} must hold an entry X, but holds {sorted(arrays)}")
        return arrays["X"]
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ProblemFileError(f"{path} must be an .npy file of numbers: {error}") from None


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


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given on the command line."""
    names = ("max_iter", "time_limit", "tol_gap")
    given = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def _check_writable(path: Path) -> None:
    """Raise OSError now, not after the work, if no file can be put at `path`."""
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from None
