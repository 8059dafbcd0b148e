"""What a comparison of solvers found: a row per answer, as text, as JSON, and as a plot."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .checks import check_choice
from .exceptions import SettingsError
from .plotting import new_figure, save_figure
from .problem_file import whole_file

MEGABYTE = 1e6

#: Line styles by what begins the last refinement.
STYLES = (("swaps", "-"), ("refit", "--"), ("", ":"))

#: matplotlib's colours, and a marker for every solver of the same colour.
N_COLOURS, MARKERS = 10, "os^Dv"

#: What :meth:`Comparison.plot` can draw.
DRAWN = ("error", "activation_error")


@dataclass(frozen=True)
class Row:
    """One answer of a comparison. What was not measured, or does not apply, is None.

    With X of the samples, trained weights W, b and the answer's W', b', the errors are relative:
    ``||X W' + b' - (X W + b)||_F / ||X W + b||_F`` before the activation f, and
    ``||f(X W' + b') - Y||_F / ||Y||_F`` behind it; ``inf`` where the reference is zero, and the
    answer is not. Of a whole network `error` and `heldout_error` are those of its output, zeros and
    norm are those of all layers, gap and violation the worst of any.

    Attributes
    ----------
    solver : str
    refinement : str
        What followed the solver: "refit", "swaps", or either with "-box" behind it for that target;
        "" for nothing.
    sparsity : float
        Fraction of zeros that was asked for.
    zeros : float
        Fraction of zeros that the answer has, counted.
    nnz : int
    error, heldout_error : float
        Before the activation (of a network: of its output), on the calibration samples and on the
        held-out ones.
    activation_error, heldout_activation_error : float
        Behind the activation.
    accuracy : float
        What the user's function says of the answer.
    l1_norm : float
        ``sum |W'|``.
    seconds : float
        Wall time of the solver, and of the refinements that led here.
    peak_memory : int
        Peak of the memory allocated meanwhile, in bytes.
    status : str
        See :class:`nettrim_solver.Status`.
    proved : bool
        Whether the status is ``optimal``.
    gap, violation : float
        Of the certificate, where there is a dual point.
    failure : str
        The error, where there is no answer.
    warnings : tuple of str
        What the solver says of its answer, such as why it has more zeros than asked for.
    """

    solver: str
    refinement: str
    sparsity: float
    zeros: float | None = None
    nnz: int | None = None
    error: float | None = None
    heldout_error: float | None = None
    activation_error: float | None = None
    heldout_activation_error: float | None = None
    accuracy: float | None = None
    l1_norm: float | None = None
    seconds: float | None = None
    peak_memory: int | None = None
    status: str | None = None
    proved: bool = False
    gap: float | None = None
    violation: float | None = None
    failure: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The solver, and what followed it."""
        return "+".join(filter(None, (self.solver, self.refinement)))


#: Head, attribute and format of the columns of the table.
COLUMNS = (
    ("zeros %", "zeros", lambda value: f"{100 * value:.2f}"),
    ("error", "error", lambda value: f"{value:.4g}"),
    ("held-out", "heldout_error", lambda value: f"{value:.4g}"),
    ("activation", "activation_error", lambda value: f"{value:.4g}"),
    ("held-out", "heldout_activation_error", lambda value: f"{value:.4g}"),
    ("accuracy", "accuracy", lambda value: f"{value:.4f}"),
    ("l1 norm", "l1_norm", lambda value: f"{value:.5g}"),
    ("seconds", "seconds", lambda value: f"{value:.3g}"),
    ("MB", "peak_memory", lambda value: f"{value / MEGABYTE:.1f}"),
    ("gap", "gap", lambda value: f"{value:.1e}"),
    ("status", "status", str),
)


@dataclass(frozen=True)
class Comparison:
    """The answers of several solvers to one layer or network, at several sparsities.

    Attributes
    ----------
    rows : tuple of Row
        By solver, then by sparsity, each answer followed by its refinements.
    problem : str
        The layer or the network, in a line.
    kind : {"layer", "network"}
    n_heldout : int
        Held-out samples.
    n_threads : int
        Threads in force.
    trained_accuracy : float or None
        What the user's function says of the trained weights.
    complete : bool
        False when a time limit, the callback or Ctrl-C ended the comparison early.
    """

    rows: tuple[Row, ...]
    problem: str
    kind: str = "layer"
    n_heldout: int = 0
    n_threads: int = 1
    trained_accuracy: float | None = None
    complete: bool = True

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """Return the rows as aligned text, without the columns that are empty."""
        shown = [
            (head, name, form)
            for head, name, form in COLUMNS
            if any(getattr(row, name) is not None for row in self.rows)
        ]
        cells = [["solver", "asked", *(head for head, _, _ in shown)]]
        for row in self.rows:
            values = [(getattr(row, name), form) for _, name, form in shown]
            texts = ["-" if value is None else form(value) for value, form in values]
            cells.append([row.label, f"{row.sparsity:g}", *texts])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [self.problem]
        for texts in cells:
            first, *rest = (text.rjust(width) for text, width in zip(texts, widths, strict=True))
            lines.append("  ".join([texts[0].ljust(len(first)), *rest]).rstrip())
        for row in self.rows:
            where = f"{row.label} at {row.sparsity:g}"
            lines += [f"{where}: {warning}" for warning in row.warnings]
            if row.failure is not None:
                lines.append(f"{where} failed: {row.failure}")
        if self.trained_accuracy is not None:
            lines.append(f"accuracy of the trained weights: {self.trained_accuracy:.4f}")
        if not self.complete:
            lines.append("stopped early: there is more to compare")
        return "\n".join(lines)

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the comparison as JSON text, and write it to a file if one is named.

        The file is replaced as a whole, or left as it was. Infinite numbers become text.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        text = json.dumps(_plain(asdict(self)), indent=2, allow_nan=False) + "\n"
        if path is not None:
            with whole_file(path) as stream:
                stream.write(text.encode())
        return text

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """Return the comparison of a text that :meth:`to_json` made.

        Raises
        ------
        SettingsError
            If it is not such a text.
        """
        try:
            fields = json.loads(text)
            rows = tuple(
                Row(**{k: _number(k, v) for k, v in row.items()}) for row in fields["rows"]
            )
            return cls(**(fields | {"rows": rows}))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SettingsError(
                f"text must be what Comparison.to_json returns, but is not: {error}"
            ) from None

    def plot(self, path: str | os.PathLike[str] | None = None, what: str = "error") -> Any:
        """Draw the error against the zeros, a line per solver, a panel per set of samples.

        Dotted: as the solver left it; dashed: refitted; solid: with swaps.

        Parameters
        ----------
        path : path-like, optional
            Where to write the figure; the suffix decides on the format (".png", ".pdf", ".svg").
        what : {"error", "activation_error"}
            Before or behind the activation. A network has "error" alone, that of its output.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        MissingDependencyError
            Without matplotlib.
        SettingsError, OSError
            If there is no such error, or no such folder.
        """
        check_choice("what", what, DRAWN if self.kind == "layer" else DRAWN[:1])
        panels = [("calibration samples", what), ("held-out samples", f"heldout_{what}")]
        panels = [p for p in panels if any(_drawable(row, p[1]) for row in self.rows)] or panels[:1]
        figure = new_figure(4.4 * len(panels) + 2.2, 4.4)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        solvers = list(dict.fromkeys(row.solver for row in self.rows))
        for panel, (title, name) in zip(axes, panels, strict=True):
            for label in dict.fromkeys(row.label for row in self.rows):
                rows = [row for row in self.rows if row.label == label and _drawable(row, name)]
                if rows:
                    _draw(panel, rows, name, solvers.index(rows[0].solver))
            panel.set(title=title, xlabel="zeros (%)", yscale="log")
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter("{x:.2g}")
            panel.grid(alpha=0.3, which="both")
        axes[0].set_ylabel("relative error " + self._where(what))
        lines = {line.get_label(): line for panel in axes for line in panel.get_lines()}
        if lines:
            styles = {row.refinement for row in self.rows} != {""}
            figure.legend(
                lines.values(), lines, loc="outside right upper", fontsize="small",
                title="dotted: alone\ndashed: refit\nsolid: swaps" if styles else None,
            )  # fmt: skip
        save_figure(figure, path)
        return figure

    def _where(self, what: str) -> str:
        """Return in words where an error is measured."""
        if self.kind == "network":
            return "of the network's output"
        return f"{'behind' if what == 'activation_error' else 'before'} the activation"


def _draw(panel: Any, rows: Sequence[Row], name: str, place: int) -> None:
    """Draw the line of one solver and refinement; the solver's place decides on its colour."""
    rows = sorted(rows, key=lambda row: row.zeros or 0.0)
    zeros, last = [100 * (row.zeros or 0.0) for row in rows], rows[0].refinement.split("+")[-1]
    panel.plot(
        zeros, [getattr(row, name) for row in rows], color=f"C{place % N_COLOURS}",
        marker=MARKERS[place // N_COLOURS % len(MARKERS)], markersize=4,
        linestyle=next(style for begin, style in STYLES if last.startswith(begin)),
        label=rows[0].solver,
    )  # fmt: skip


def _drawable(row: Row, name: str) -> bool:
    """Return whether an error can stand on a logarithmic axis."""
    value = getattr(row, name)
    return value is not None and 0.0 < value < math.inf


def _plain(value: Any) -> Any:
    """Return fields as JSON can hold them: infinite numbers as text."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number(name: str, value: Any) -> Any:
    """Return a field of a row as it was before :func:`_plain`."""
    if name == "warnings":
        return tuple(value)
    texts = ("solver", "refinement", "status", "failure")
    return float(value) if isinstance(value, str) and name not in texts else value
