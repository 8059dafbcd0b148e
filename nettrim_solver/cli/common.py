"""What all subcommands share: options, exit codes, errors on one line, checks of files."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ..checks import printable
from ..exceptions import NettrimError
from ..text import nearest

PROVED, UNPROVED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


class UsageError(Exception):
    """A command line that makes no sense; the message says why."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are exceptions, to be one line like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise :class:`UsageError` with a pointer to the help text."""
        raise UsageError(f"{message} (see {self.prog} --help)")

    @property
    def options(self) -> list[str]:
        """All options that there are."""
        return [option for action in self._actions for option in action.option_strings]

    def refuse(self, words: Sequence[str]) -> NoReturn:
        """Raise :class:`UsageError` for words that mean nothing here; name the nearest option."""
        option = next((word for word in words if word.startswith("-")), None)
        if option is None:
            self.error(f"unexpected {' '.join(words)!r}")
        option = option.partition("=")[0]
        self.error(f"there is no option {option}{nearest(option, self.options)}")


def add_command(commands: Any, name: str, *, summary: str, description: str, example: str) -> Any:
    """Add a subcommand with the options that all of them have, and return its parser."""
    command = commands.add_parser(
        name, help=summary, description=description, epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_argument("--quiet", action="store_true", help="print nothing but errors")
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.set_defaults(parser=command)
    return command


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
    return printable(" ".join(text.split()))


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
