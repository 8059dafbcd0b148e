"""The command ``nettrim``: networks in files, one saved problem, and the demonstration.

Exit codes: 0 proved (``prune`` and ``compare``: done what was asked for), 1 an answer without proof
(or a proof that there is none), 2 bad input or usage, 130 interrupted. Errors are one line on
stderr. Each subcommand has a module; everything slow is imported when one runs.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from functools import cache

from ..exceptions import NettrimError, SolverError
from . import compare, demo, inspect, prune, recipes, solve
from .common import BAD_INPUT, INTERRUPTED, UNPROVED, Parser, UsageError, one_line
from .recipe import check_moved

COMMANDS = (prune, recipes, inspect, compare, solve, demo)

EPILOG = """example:
  nettrim prune model.onnx --calibration inputs.npz --sparsity 0.9 -o pruned.onnx

exit codes: 0 done, and proved where a proof was asked for; 1 an answer without proof;
2 bad input or usage; 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit code.

    Examples
    --------
    >>> main(["solve", "missing.npz"])
    2
    """
    debug = False
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that the terminal cannot show costs no result.
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments, rest = build_parser().parse_known_args(argv)
        debug = arguments.debug
        if rest:
            if "--recipe" in arguments.parser.options:
                check_moved(sys.argv[1:] if argv is None else argv, arguments.parser)
            arguments.parser.refuse(rest)
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
        print(f"nettrim: error: {one_line(error)}", file=sys.stderr)
        bad_input = isinstance(error, (NettrimError, UsageError, OSError))
        return BAD_INPUT if bad_input and not isinstance(error, SolverError) else UNPROVED


@cache
def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands; each sets ``run`` to its function."""
    from .. import __version__

    parser = Parser(
        prog="nettrim",
        description="Prune trained networks layer by layer, with a proof of optimality.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nettrim_solver {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser
