"""What all subcommands share: options, exit codes, errors on one line, checks of files."""

from __future__ import annotations

import argparse
import difflib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ..exceptions import NettrimError

PROVED, UNPROVED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


class UsageError(Exception):
    """A command line that makes no sense; the message says why."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are exceptions, to be one line like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise :class:`UsageError` with a pointer to the help text."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def add_command(commands: Any, name: str, *, summary: str, description: str, example: str) -> Any:
    """Add a subcommand with the options that all of them have, and return its parser."""
    command = commands.add_parser(
        name, help=summary, description=description, epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_argument("--quiet", action="store_true", help="print nothing but errors")
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return command


def add_solver_options(command: Any, *, default: str | None, limit: str) -> None:
    """Add the solver and its settings.

    Parameters
    ----------
    command : parser
    default : str or None
        The solver when none is named; None if something else decides then.
    limit : str
        What the time limit holds for.
    """
    from ..solvers import SOLVERS

    command.add_argument("--solver", default=default, metavar="NAME",
                         help=f"one of {', '.join(SOLVERS)} (default: admm)")  # fmt: skip
    command.add_argument("--max-iter", type=int, metavar="N", help="iteration limit of the solver")
    command.add_argument("--tol-gap", type=float, metavar="GAP",
                         help="largest relative duality gap that counts as proved")  # fmt: skip
    add_run_options(command, limit)


def add_run_options(command: Any, limit: str) -> None:
    """Add the time limit and the threads."""
    command.add_argument("--time-limit", type=float, metavar="SECONDS", help=f"limit {limit}")
    command.add_argument("--n-threads", type=int, metavar="N", help="threads (default: BLAS's own)")


def given_options(arguments: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Return the options among `names` that stand on the command line."""
    found = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def one_line(error: Exception) -> str:
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


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word that is most like another one, as a question, or nothing.

    Examples
    --------
    >>> nearest("tolerence", ["mode", "tolerance"])
    "; did you mean 'tolerance'?"
    """
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def check_outputs(paths: Iterable[Path | None], *sources: Path) -> None:
    """Raise now, not after the work, if a file cannot be written; each must be a file of its own.

    Parameters
    ----------
    paths : iterable of Path or None
        Those that will be written; None for one that was not asked for.
    *sources : Path
        Those that are read.
    """
    seen: set[Path] = set()
    for path in paths:
        if path is None:
            continue
        check_writable(path, *sources)
        if path.resolve() in seen:
            raise UsageError(f"cannot write {path} twice: every output needs a file of its own")
        seen.add(path.resolve())


def check_writable(path: Path, *sources: Path) -> None:
    """Raise now, not after the work, if no file can be put at `path`, or if it is a source."""
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    if path.exists() and not path.is_file():
        # The file would take the place of a device or pipe.
        raise OSError(f"cannot write {path}: it is no ordinary file")
    for source in sources:
        if path.exists() and source.exists() and path.samefile(source):
            raise UsageError(f"cannot write {path}: it is read as well")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let errors of the system name the file that the block writes."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
