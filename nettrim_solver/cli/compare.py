"""``nettrim compare``: several solvers on one model at equal zeros."""

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
from .models import add_model_options, add_network_options, read_data, sources_of

PLOTS = (".png", ".svg", ".pdf")

EXAMPLE = """example:
  nettrim compare model.onnx --calibration inputs.npz --validation data.npz:x_test:y_test \\
      --solvers magnitude wanda sparsegpt alps --sparsities 0.7 0.9 -o table.json --plot zeros.png

The whole model is pruned by every solver to the same fractions of zeros. One row each: zeros, the
error of the model's output on the calibration samples and on others, accuracy, seconds."""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    from ..solvers import SOLVERS

    command = add_command(
        commands, "compare", summary="prune a model file with several solvers at equal zeros",
        description="Prune a model with several solvers to the same zeros, and measure each.",
        example=EXAMPLE,
    )  # fmt: skip
    add_model_options(command)
    command.add_argument("--solvers", nargs="+", metavar="NAME",
                         help=f"among {', '.join(SOLVERS)}; default: admm, pruners")  # fmt: skip
    command.add_argument("--sparsities", type=float, nargs="+", metavar="S",
                         help="fractions of zeros (default: 0.5 0.7 0.9)")  # fmt: skip
    add_network_options(command)
    add_run_options(command, "of the comparison")
    command.add_argument("-o", "--output", type=Path, metavar="FILE", help="the table, .json")
    command.add_argument("--plot", type=Path, metavar="FILE", help="the plot, .png, .svg or .pdf")
    command.add_argument("--json", action="store_true", help="print the table as JSON, no text")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``nettrim compare``."""
    from .. import terminal
    from ..compare import compare

    if arguments.plot is not None and arguments.plot.suffix not in PLOTS:
        raise UsageError(f"--plot must end in one of {', '.join(PLOTS)}, but was {arguments.plot}")
    check_outputs((arguments.output, arguments.plot), *sources_of(arguments))
    given = given_options(
        arguments,
        ("solvers", "sparsities", "mode", "max_rows", "seed", "time_limit", "n_threads"),
    )
    if arguments.exclude is not None:
        given["skip"] = arguments.exclude
    model, calibration, validation, score = read_data(arguments)
    screen = terminal.make_screen(arguments.quiet or arguments.json)
    started = time.perf_counter()
    with screen.progress() as update:
        update("comparing", 0, None)
        found = compare(
            model.network, calibration.X, X_heldout=None if validation is None else validation.X,
            accuracy=score, callback=terminal.row_reporter(screen), **given,
        )  # fmt: skip
    spent = time.perf_counter() - started
    screen.line(found.table())
    for path, write in ((arguments.output, found.to_json), (arguments.plot, found.plot)):
        if path is not None:
            with writing(path):
                write(path)
            screen.line(f"Wrote {path}.")
    if arguments.json:
        print(json.dumps(json.loads(found.to_json())))
    if found.complete:
        return PROVED if all(row.failure is None for row in found.rows) else UNPROVED
    timed_out = arguments.time_limit is not None and spent >= arguments.time_limit
    return UNPROVED if timed_out else INTERRUPTED
