"""What the command line prints: lines and tables of at most the width of the terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .checks import printable
from .status import Status
from .text import shortened

if TYPE_CHECKING:
    from .comparison import Row
    from .network import LayerProgress, LayerReport, PruningResult
    from .problem import Problem
    from .solution import Solution

#: Characters that the names in a table keep before one of its columns is left out.
NAME_WIDTH = 12


#: What a network is pruned with where all went well.
DONE = (Status.OPTIMAL, Status.FEASIBLE, Status.PRUNED)


class Screen:
    """Plain text on stdout; nothing at all when quiet."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    def line(self, text: str = "") -> None:
        """Print one line, at once: a pipe's reader sees each result as it comes."""
        if not self.quiet:
            print(*map(printable, text.split("\n")), sep="\n", flush=True)

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0, 1),
        expendable: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Print a table that fits the terminal.

        Parameters
        ----------
        header : sequence of str
        rows : sequence of sequences of str
            The first cell is a name, which is cut in its middle where the line would be too long.
        left : sequence of int
            Columns that are aligned to the left.
        expendable : sequence of str
            Heads of columns that are left out, in this order, before names become too short.
        """
        names = [printable(row[0]) for row in rows]
        wanted = min(NAME_WIDTH, max(map(len, (header[0], *names))))
        columns = list(range(1, len(header)))
        gone = [header.index(name) for name in expendable]
        while _room(header, rows, columns) < wanted and gone:
            columns.remove(gone.pop(0))
        names = [header[0], *shortened(names, max(wanted, _room(header, rows, columns)))]
        cells = [
            [name, *(row[i] for i in columns)]
            for name, row in zip(names, (header, *rows), strict=True)
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        sides = [i in left for i in (0, *columns)]
        for row in cells:
            shown = (
                cell.ljust(width) if side else cell.rjust(width)
                for cell, width, side in zip(row, widths, sides, strict=True)
            )
            self.line("  ".join(shown).rstrip())


def _room(header: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int]) -> int:
    """Return how many characters of a line these columns leave to the names."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in columns]
    return shutil.get_terminal_size().columns - sum(widths) - 2 * len(columns)


def warn(text: str) -> None:
    """Print a warning to stderr."""
    print(f"nettrim: warning: {printable(text)}", file=sys.stderr)


def percent(value: float | None) -> str:
    """Return a fraction in percent, to three figures."""
    return "-" if value is None else f"{100 * value:.3g}"


# While something runs -----------------------------------------------------------------------


def layer_reporter(screen: Screen, searched: bool) -> Callable[[LayerProgress], None]:
    """Return the callback of a run: a line for every layer that is measured or finished.

    In a search a line for every network that is tried takes their place.
    """
    told = set()

    def callback(at: LayerProgress) -> None:
        line = ""
        if at.stage == "paths":
            line = f"measuring {at.layer}, {at.done + 1} of {at.total}"
        elif searched and at.nnz is not None:
            best = "" if at.best_nnz is None else f", best so far {at.best_nnz:,}"
            line = f"network {at.trial + 1}: {at.nnz:,} weights{best}"
        elif at.stage == "final" and at.report is not None:
            line = f"{at.done} of {at.total}, {_outcome(at.report)}"
        if line and line not in told:
            told.add(line)
            screen.line(line)

    return callback


def _outcome(report: LayerReport) -> str:
    """Return in a line what became of a layer."""
    if not report.pruned:
        return f"{report.name}: {report.outcome}"
    return (
        f"{report.name}: {percent(report.sparsity)} % zeros, error {percent(report.error)} %, "
        f"{report.status}, {report.seconds:.2f} s"
    )


def row_reporter(screen: Screen) -> Callable[[Row], None]:
    """Return the callback of a comparison: a line for every answer."""

    def callback(row: Row) -> None:
        found = f"failed: {row.failure}" if row.failure else f"{row.seconds:.2f} s"
        if row.error is not None:
            found = f"error {percent(row.error)} %, {found}"
        screen.line(f"{row.label} at {row.sparsity:g}: {found}")

    return callback


# Results ------------------------------------------------------------------------------------


def show_layers(screen: Screen, result: PruningResult) -> None:
    """Print a row per layer, and what was chosen, left out or warned of."""
    from .network.report import MEANINGS
    from .network.report_fields import why_no_bound

    rows = [
        (
            one.name, "x".join(map(str, one.shape)), f"{100 * one.sparsity:.1f}",
            percent(one.error), percent(one.network_error), percent(one.network_bound),
            f"{one.seconds:.1f}", one.outcome if one.status is None else str(one.status),
        )
        for one in result.layers
    ]  # fmt: skip
    header = ("layer", "shape", "zeros %", "error %", "network %", "bound %", "seconds", "status")
    screen.table(header, rows, expendable=("bound %", "network %", "shape", "seconds"))
    for one in result.layers:
        if one.reason:
            screen.line(f"{one.name} {one.outcome}: {one.reason}")
    for text in (*result.notes, *(f"warning: {text}" for text in result.warnings)):
        screen.line(text)
    if reason := why_no_bound(result):
        screen.line(reason)
    if result.status not in DONE:
        screen.line(f"{result.status}: {MEANINGS[result.status]}.")


def show_solution(screen: Screen, problem: Problem, solution: Solution) -> None:
    """Print what a single solve found, and what is proved of it."""
    judged = solution.certificate
    facts: list[tuple[str, Any]] = [
        ("problem", problem),
        ("solver", f"{solution.solver}, {solution.seconds['total']:.3g} s, "
                   f"{solution.n_threads} thread(s)"),
        ("zeros", f"{100 * solution.sparsity:.2f} % ({solution.nnz} of {solution.W.size} kept)"),
        ("distance", f"{judged.distance:.6g}"),
        ("objective", f"{judged.objective:.9g}, at least {judged.bound:.9g} proved"),
        ("gap", f"{judged.gap:.2e}"),
        ("violation", f"{judged.violation:.2e}"),
    ]  # fmt: skip
    for name, value in facts:
        screen.line(f"{name:<10} {value}")
    for text in (*solution.explain().splitlines(), *(f"warning: {w}" for w in solution.warnings)):
        screen.line(text)
