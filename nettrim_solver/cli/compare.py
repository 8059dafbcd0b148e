"""``nettrim compare``: several methods on one model at equal zeros."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from .common import (
    INTERRUPTED,
    PROVED,
    UNPROVED,
    UsageError,
    add_command,
    add_run_options,
    check_outputs,
    given_options,
    writing,
)
from .models import add_model_options, read_data, sources_of
from .recipe import PURPOSES, add_recipe_options, read_recipe

PLOTS = (".png", ".svg", ".pdf")

EXAMPLE = """example:
  nettrim compare model.onnx --calibration inputs.npz --validation data.npz:x_test:y_test \\
      --solvers best fast magnitude alps --sparsities 0.7 0.9 -o table.json --plot zeros.png

The whole model is pruned by every method to the same fractions of zeros. One row each: zeros, the
error of the model's output on the calibration samples and on others, accuracy, seconds. A solver
stands for the base recipe (--recipe, --set) with this solver in its layers."""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    from ..solvers import SOLVERS

    command = add_command(
        commands, "compare", summary="prune a model file by several methods to equal zeros",
        description="Prune a model by several methods to the same zeros, and measure each.",
        example=EXAMPLE,
    )  # fmt: skip
    add_model_options(command)
    command.add_argument("--solvers", nargs="+", metavar="NAME",
                         help=f"recipes ({', '.join(PURPOSES)}) and solvers "
                         f"({', '.join(SOLVERS)}); default: best, fast, admm, pruners")  # fmt: skip
    command.add_argument("--sparsities", type=float, nargs="+", metavar="S",
                         help="fractions of zeros (default: 0.5 0.7 0.9)")  # fmt: skip
    add_recipe_options(command, default="net-trim")
    add_run_options(command, "of the comparison")
    command.add_argument("-o", "--output", type=Path, metavar="FILE", help="the table, .json")
    command.add_argument("--plot", type=Path, metavar="FILE", help="the plot, .png, .svg or .pdf")
    command.add_argument("--json", action="store_true", help="print the table as JSON, no text")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``nettrim compare``."""
    from .. import terminal
    from ..compare import compare
    from ..plotting import import_figure

    if arguments.plot is not None:
        if arguments.plot.suffix not in PLOTS:
            raise UsageError(
                f"--plot must end in one of {', '.join(PLOTS)}, but was {arguments.plot}"
            )
        import_figure()
    check_outputs((arguments.output, arguments.plot), *sources_of(arguments))
    given = given_options(arguments, ("solvers", "sparsities", "seed", "time_limit", "n_threads"))
    given["recipe"] = read_recipe(arguments)
    model, calibration, validation, score = read_data(arguments)
    quiet = arguments.quiet or arguments.json
    screen = terminal.Screen(quiet)
    started = time.perf_counter()
    found = compare(
        model.network, calibration.X, X_heldout=None if validation is None else validation.X,
        accuracy=score, callback=terminal.row_reporter(screen),
        progress=False if quiet else None, **given,
    )  # fmt: skip
    spent = time.perf_counter() - started
    wrote = []
    for path, write in ((arguments.output, found.to_json), (arguments.plot, found.plot)):
        if path is not None:
            with writing(path):
                write(path)
            wrote.append(path)
    screen.line(found.table())
    for path in wrote:
        screen.line(f"Wrote {path}.")
    if arguments.json:
        print(json.dumps(json.loads(found.to_json())))
    if found.complete:
        return PROVED if all(row.failure is None for row in found.rows) else UNPROVED
    timed_out = arguments.time_limit is not None and spent >= arguments.time_limit
    return UNPROVED if timed_out else INTERRUPTED
