"""What the command line shows: live and coloured on a terminal, plain lines anywhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparison import Row
    from .demo import PrunedNetwork, Step
    from .network import LayerProgress, LayerReport, PruningResult
    from .problem import Problem
    from .solution import Solution
    from .solvers import Progress

#: Called with a description, the work done and the work in all.
Update = Callable[[str, float, float | None], None]

LAYER_HEADER = ("layer", "shape", "zeros %", "error/eps", "gap", "violation", "seconds", "status")

#: What goes before a layer's name while a budget is spread or searched for.
STAGES = {
    "paths": "measuring ", "probe": "trying ", "pass": "a pass before, ", "final": "",
    "refit": "refit to the output, ",
}  # fmt: skip


class Screen:
    """Plain text to stdout, nothing at all when quiet: the base of :class:`LiveScreen`."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    def line(self, text: str = "") -> None:
        """Print one line, at once (a pipe's reader sees each result as it comes)."""
        if not self.quiet:
            print(text, flush=True)

    def table(
        self,
        title: str,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        left: Sequence[int] = (0, 1),
    ) -> None:
        """Print a table with its title; the columns `left` to the left, others to the right."""
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
        self.line(title)
        for row in (header, *rows):
            cells = [
                cell.ljust(width) if i in left else cell.rjust(width)
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

    def table(
        self,
        title: str,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        left: Sequence[int] = (0, 1),
    ) -> None:
        """Print a table with its title."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(title, style="bold"), title_justify="left")
        for i, name in enumerate(header):
            table.add_column(name, justify="left" if i in left else "right")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self.console.print(table)

    @contextmanager
    def progress(self) -> Iterator[Update]:
        """Show a bar, the count, the time and what is left of it; all goes away at the end."""
        from rich import progress

        columns = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
        )
        with progress.Progress(*columns, console=self.console, transient=True) as bar:
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


def layer_reporter(screen: Screen, update: Update) -> Callable[[LayerProgress], None]:
    """Return the callback of a whole network: a bar over its layers, a line when one is done.

    While a budget is spread or searched for there is a line for every layer measured and for every
    network tried.
    """
    network, measured = ("final", 0), set()

    def callback(at: LayerProgress) -> None:
        nonlocal network
        where, share = at.layer, 0.0
        if at.progress is not None:
            where += f", iteration {at.progress.iteration}"
            share = at.progress.n_proved / max(1, at.progress.n_outputs)
        update(STAGES[at.stage] + where, at.done + share, at.total)
        if at.stage == "paths" and at.layer not in measured:
            measured.add(at.layer)
            screen.line(f"measuring {at.layer}, {at.done + 1} of {at.total}")
        # A pass before a network, and a refit behind it, are of the same network.
        tried = "final" if at.stage in ("pass", "refit") else at.stage, at.trial
        if at.nnz is not None and tried != network:
            best = "" if at.best_nnz is None else f", best so far {at.best_nnz:,}"
            screen.line(f"network {at.trial + 1}: {at.nnz:,} weights{best}")
        network = tried
        if at.stage == "final" and at.report is not None:
            screen.line(f"{at.done} of {at.total}, {_outcome(at.report)}")

    return callback


def _outcome(report: LayerReport) -> str:
    """Return in a line what became of a layer."""
    if not report.pruned:
        return f"{report.name}: {report.outcome}"
    return (
        f"{report.name}: {100 * report.sparsity:.1f} % zeros, error {percent(report.error)} %, "
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


def show_network(screen: Screen, result: PruningResult) -> None:
    """Print what has become of a network: a row per layer, and the network as a whole."""
    from .network.report_fields import why_no_bound

    held = result.output_error_heldout is not None
    header = ("layer", "shape", "zeros %", "error %", "network %", "bound %",
              *(("held-out %",) if held else ()), "gap", "seconds", "status")  # fmt: skip
    rows = [
        (
            one.name, " x ".join(map(str, one.shape)), f"{100 * one.sparsity:.1f}",
            percent(one.error), percent(one.network_error), percent(one.network_bound),
            *((percent(one.network_error_heldout),) if held else ()),
            "-" if one.gap is None else f"{one.gap:.0e}", f"{one.seconds:.2f}",
            one.outcome if one.status is None else str(one.status),
        )
        for one in result.layers
    ]  # fmt: skip
    screen.table(f"Errors relative to the trained outputs, {result.mode}", header, rows)
    for one in result.layers:
        if one.reason:
            screen.line(f"{one.name} {one.outcome}: {one.reason}")
    for text in result.warnings:
        screen.line(f"warning: {text}")
    if reason := why_no_bound(result):
        screen.line(reason)
    bound = percent(result.output_bound)
    proof = "" if bound == "-" else f" (proved: at most {bound} %)"
    others = f", {percent(result.output_error_heldout)} % on held-out samples" if held else ""
    screen.line(
        f"{100 * result.sparsity:.1f} % zeros, {result.nnz:,} of {result.network.n_weights:,} "
        f"weights stay; output error {percent(result.output_error)} %{proof}{others}; "
        f"{result.seconds:.1f} s"
    )


def percent(value: float | None) -> str:
    """Return a fraction in percent, to three figures."""
    return "-" if value is None else f"{100 * value:.3g}"


def warn(text: str) -> None:
    """Print a warning to stderr."""
    print(f"nettrim: warning: {text}", file=sys.stderr)


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
