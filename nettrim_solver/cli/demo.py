"""``nettrim demo``: prune the shipped digit classifier at several tolerances."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from .common import (
    PROVED,
    UNPROVED,
    add_command,
    add_solver_options,
    check_writable,
    given_options,
)

EXAMPLE = """example:
  nettrim demo --tolerances 0.05 0.1 0.2 --output pruned

Prunes the shipped 64-256-128-10 digit classifier layer by layer, prints a table per tolerance, and
writes pruned-TOLERANCE.npz (W0, b0, W1, ...) and zeros-accuracy.png into the output folder."""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    command = add_command(
        commands, "demo", summary="prune a small real network at several tolerances",
        description="Prune a trained digit classifier layer by layer at several tolerances.",
        example=EXAMPLE,
    )  # fmt: skip
    add_solver_options(command, default="admm", limit="of the solver, per layer")
    command.add_argument("--tolerances", type=float, nargs="+", metavar="G",
                         help="relative radii (default: 0.02 0.05 0.1 0.2 0.3)")  # fmt: skip
    command.add_argument("--output", type=Path, default=Path("nettrim-demo"), metavar="DIR",
                         help="folder for the results (default: nettrim-demo)")  # fmt: skip
    command.add_argument("--json", action="store_true", help="print the results as JSON, no text")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``nettrim demo``."""
    from .. import demo, terminal
    from ..exceptions import MissingDependencyError

    started = time.perf_counter()
    screen = terminal.make_screen(arguments.quiet or arguments.json)
    grid = demo.checked_tolerances(
        demo.TOLERANCES if arguments.tolerances is None else arguments.tolerances
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    check_writable(arguments.output / "pruned.npz")
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
            report=terminal.step_reporter(update),
            **given_options(arguments, ("max_iter", "time_limit", "tol_gap")),
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
    if arguments.json:
        names = ("tolerance", "sparsity", "accuracy_before", "accuracy", "proved")
        print(json.dumps([{name: getattr(result, name) for name in names} for result in results]))
    return UNPROVED if unproved else PROVED
