"""What the command line shows: live and coloured on a terminal, plain lines anywhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .demo import PrunedNetwork, Step
    from .network.modes import LayerProgress
    from .problem import Problem
    from .solution import Solution
    from .solvers import Progress

#: Called with a description, the work done and the work in all.
Update = Callable[[str, float, float], None]

LAYER_HEADER = ("layer", "shape", "zeros %", "error/eps", "gap", "violation", "seconds", "status")


class Screen:
    """Plain text to stdout, nothing at all when quiet: the base of :class:`LiveScreen`."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    def line(self, text: str = "") -> None:
        """Print one line, at once (a pipe's reader sees each result as it comes)."""
        if not self.quiet:
            print(text, flush=True)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table with its title; the first two columns to the left, others to the right."""
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
        self.line(title)
        for row in (header, *rows):
            cells = [
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            self.line(("  " + "  ".join(cells)).rstrip())
        self.line()

    @contextmanager
    def progress(self) -> Iterator[Update]:
        """Show the work that goes on inside the block (here: not at all)."""
        yield lambda description, done, total: None


class LiveScreen(Screen):
    """A terminal: rich tables and a live progress bar."""

    def __init__(self) -> None:
        from rich.console import Console

        super().__init__()
        self.console = Console(highlight=False)

    def line(self, text: str = "") -> None:
        """Print one line above the progress bar, if there is one."""
        self.console.print(text, markup=False, soft_wrap=True)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table with its title."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(title, style="bold"), title_justify="left")
        for i, name in enumerate(header):
            table.add_column(name, justify="left" if i < 2 else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self.console.print(table)

    @contextmanager
    def progress(self) -> Iterator[Update]:
        """Show a bar, the count and the time while the block runs; it goes away at the end."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
        )
        with Progress(*columns, Elapsed(), console=self.console, transient=True) as bar:
            task = bar.add_task("starting", total=None)
            yield lambda description, done, total: bar.update(
                task, description=description, completed=done, total=total
            )


def make_screen(quiet: bool = False) -> Screen:
    """Return a live screen on a terminal, a plain one for pipes, files and dumb terminals."""
    live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return LiveScreen() if live and not quiet else Screen(quiet)


def show_pruned(screen: Screen, result: PrunedNetwork) -> None:
    """Print one tolerance of the demonstration: the accuracies, and a row per layer."""
    rows = []
    for layer in result.layers:
        solution, judged = layer.solution, layer.solution.certificate
        rows.append(
            (
                layer.name,
                " x ".join(map(str, solution.W.shape)),
                f"{100 * solution.sparsity:.1f}",
                f"{layer.error_ratio:.4f}",
                f"{judged.gap:.1e}",
                f"{judged.violation:.1e}",
                f"{solution.seconds['total']:.2f}",
                str(solution.status),
            )
        )
    title = (
        f"tolerance {result.tolerance:g}: {100 * result.sparsity:.1f} % zeros, held-out accuracy "
        f"{100 * result.accuracy_before:.1f} % -> {100 * result.accuracy:.1f} %"
    )
    screen.table(title, LAYER_HEADER, rows)


def step_reporter(update: Update) -> Callable[[Step], None]:
    """Return the report function of a sweep that moves a progress bar."""

    def report(step: Step) -> None:
        where = f"tolerance {step.tolerance:g}, {step.layer}"
        if step.progress is not None:
            where += f", iteration {step.progress.iteration}"
        update(where, step.done, step.total)

    return report


def solve_reporter(update: Update) -> Callable[[Progress], None]:
    """Return the callback of a single solve that moves a progress bar over the outputs."""

    def callback(progress: Progress) -> None:
        update(f"iteration {progress.iteration}, proved", progress.n_proved, progress.n_outputs)

    return callback


def layer_reporter(update: Update) -> Callable[[LayerProgress], None]:
    """Return the callback of a whole network that moves a progress bar over its layers."""

    def callback(at: LayerProgress) -> None:
        where = at.layer
        if at.progress is not None:
            where += f", iteration {at.progress.iteration}"
        update(where, at.done, at.total)

    return callback


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
