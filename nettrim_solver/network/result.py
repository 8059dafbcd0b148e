"""What pruning a network gives back: the network, and a report of every layer."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..exceptions import ProblemError
from ..problem_file import whole_file
from ..status import Status
from .dead import DeadNeurons, dead_neurons, remove_dead_neurons
from .graph import Network
from .operations import Shape
from .recipe import Recipe
from .stages import Stage
from .target import Budget

if TYPE_CHECKING:
    from .paths import LayerPath

#: What became of a layer.
OUTCOMES = ("pruned", "skipped", "passed over", "failed", "not reached")


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer. Errors are Frobenius norms relative to the trained layer's output.

    Attributes
    ----------
    name, kind : str
    shape : tuple of int
        Of W.
    outcome : {"pruned", "skipped", "passed over", "failed", "not reached"}
        All but the first leave the trained weights.
    reason : str
        Why it was not pruned.
    budget : str
        What was asked for, such as ``"tolerance 0.1"``.
    nnz, size : int
        Nonzero weights and all weights; the intercept is not counted.
    solver : str
    status : Status or None
        The worst of its groups; None for a layer that was not pruned.
    epsilon : float or None
        The radius (the root of the sum of squares, if there are several), None if it has none.
        A budget of weights has the radius that its answer is proved for.
    distance : float or None
        Of the pre-activations to the target box, on the rows used.
    gap, violation : float or None
        As in :class:`.Certificate`; None without a radius, the gap also without a dual point.
    rows, n_rows : int
        Rows used, and rows that the calibration data has.
    error : float or None
        After the activation, of this layer on the inputs it was pruned with, on the rows used.
    error_heldout : float or None
        The same on all rows of the held-out samples.
    network_error, network_error_heldout : float or None
        After the activation, of the pruned network up to here, on all rows.
    network_bound : float or None
        What ``network_error`` is proved to be below, with an allowance for rounding; None without a
        proof. See :mod:`nettrim_solver.network.bounds`.
    seconds : float
    warnings : tuple of str
    stages : tuple of Stage
        Figures after each step of a pipeline of several; the last is the answer.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    outcome: str = "not reached"
    reason: str = ""
    budget: str = ""
    nnz: int = 0
    size: int = 0
    solver: str = ""
    status: Status | None = None
    epsilon: float | None = None
    distance: float | None = None
    gap: float | None = None
    violation: float | None = None
    rows: int = 0
    n_rows: int = 0
    error: float | None = None
    error_heldout: float | None = None
    network_error: float | None = None
    network_error_heldout: float | None = None
    network_bound: float | None = None
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()

    @property
    def zeros(self) -> int:
        """Number of zero weights."""
        return self.size - self.nnz

    @property
    def sparsity(self) -> float:
        """Fraction of zero weights."""
        return self.zeros / self.size

    @property
    def pruned(self) -> bool:
        """Whether the layer has new weights."""
        return self.outcome == "pruned"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, zeros and sparsity with them."""
        values = self.to_record() | {"zeros": self.zeros, "sparsity": self.sparsity}
        values["status"] = None if self.status is None else self.status.label
        values["stages"] = [one.to_record() | {"status": one.status.label} for one in self.stages]
        return {name: plain(value) for name, value in values.items()}

    def to_record(self) -> dict[str, Any]:
        """Return the fields as values that JSON takes and :meth:`from_record` reads."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["status"] = None if self.status is None else self.status.name
        values["stages"] = [one.to_record() for one in self.stages]
        return values

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> LayerReport:
        """Return the report that :meth:`to_record` took apart."""
        values = dict(record)
        values["status"] = None if record["status"] is None else Status[record["status"]]
        for name in ("shape", "warnings"):
            values[name] = tuple(record[name])
        values["stages"] = tuple(Stage.from_record(one) for one in record["stages"])
        return cls(**values)


@dataclass(frozen=True)
class Trial:
    """One network that was tried.

    Attributes
    ----------
    stage : {"probe", "final"}
        Whether made by the quick pruner or by the recipe.
    nnz : int
        Nonzero weights of the network.
    budgets : dict of str to int
        Those of each layer that shares the budget.
    value : float
        Its accuracy, or the relative error of its output.
    met : bool
        Whether it meets the budget.
    seconds : float
    """

    stage: str
    nnz: int
    budgets: dict[str, int]
    value: float
    met: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}


@dataclass(frozen=True, eq=False)
class PruningResult:
    """A pruned network and what is known about it.

    Attributes
    ----------
    network : Network
        The pruned network; batch normalisations are part of its layers.
    original : Network
        The trained one, as it was given.
    layers : tuple of LayerReport
        In the order of the network.
    mode : {"cascade", "parallel"}
    status : Status
        ``TIME_LIMIT`` or ``INTERRUPTED`` if the run ended early; else ``FAILED`` if a layer failed
        or none was pruned; else the worst of the pruned layers.
    output_error, output_error_heldout : float or None
        Of the network's output, relative; on the calibration and on the held-out samples.
    output_bound : float or None
        What ``output_error`` is proved to be below; None without a proof.
    seconds : float
    sample_shape : tuple of int
        Of the calibration data.
    seconds_by_stage : dict of str to float
        What the stages took: "paths" (layers measured), "probe", "pass", "final", "refit" and
        "evaluation", the errors of the whole network.
    budget : Budget
        What the network was pruned to.
    recipe : Recipe
        How, with everything that was ``"auto"`` as it was chosen.
    notes : tuple of str
        What was chosen or left out for this network, and why.
    budgets : dict of str to int
        Nonzeros by layer that a budget of the network was spread into; empty where every layer had
        its own.
    value : float or None
        What the accuracy function says of the network, or the relative error of its output; None
        unless one of them was to be kept.
    trials : tuple of Trial
        All networks that a search tried, in order.
    paths : dict of str to LayerPath
        Measured paths of the layers; can be passed to :func:`.allocate`.
    """

    network: Network
    original: Network
    layers: tuple[LayerReport, ...]
    mode: str
    status: Status
    output_error: float | None
    output_error_heldout: float | None
    output_bound: float | None
    seconds: float
    sample_shape: Shape
    seconds_by_stage: dict[str, float] = field(default_factory=dict)
    budget: Budget = field(default_factory=lambda: Budget("", 0.0))
    recipe: Recipe = field(default_factory=Recipe)
    notes: tuple[str, ...] = ()
    budgets: dict[str, int] = field(default_factory=dict)
    value: float | None = None
    trials: tuple[Trial, ...] = ()
    paths: dict[str, LayerPath] = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros among all weights of the pruned network."""
        return self.network.sparsity

    @property
    def nnz(self) -> int:
        """Number of nonzero weights of the pruned network."""
        return self.network.nnz

    @property
    def has_radii(self) -> bool:
        """Whether a layer, or a step of one, has a radius or a proof."""
        return any(one.epsilon is not None for one in self.layers) or any(
            stage.gap is not None for one in self.layers for stage in one.stages
        )

    @property
    def masks(self) -> dict[str, NDArray[np.bool_]]:
        """Which weights are nonzero, by layer; arrays of the shapes of W."""
        return {layer.name: layer.W != 0 for layer in self.network.layers}

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings of all layers, each with the layer's name."""
        return tuple(f"{one.name}: {text}" for one in self.layers for text in one.warnings)

    def layer(self, name: str) -> LayerReport:
        """Return the report of one layer.

        Raises
        ------
        ProblemError
            If there is none of this name.
        """
        for report in self.layers:
            if report.name == name:
                return report
        names = [report.name for report in self.layers]
        raise ProblemError(f"the report has no layer {name!r}: it has {names}")

    # Neurons without effect -------------------------------------------------------------------

    def dead_neurons(self) -> dict[str, DeadNeurons]:
        """Return, by layer, which outputs have no weights, and which ones no later layer uses."""
        return dead_neurons(self.network, self.network.shapes_for(self.sample_shape))

    def remove_dead_neurons(self) -> Network:
        """Return the pruned network in really smaller arrays, its outputs unchanged to 1e-6.

        See :mod:`nettrim_solver.network.dead` for what can go.
        """
        return remove_dead_neurons(self.network, self.network.shapes_for(self.sample_shape))

    # Text and files ---------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"PruningResult({self.summary()})"

    def summary(self) -> str:
        """Return in a line what matters: zeros, errors of the output, accuracy, status, time."""
        parts = [
            f"{100 * self.sparsity:.2f} % zeros",
            f"output error {_percent(self.output_error)} %",
        ]
        if self.output_error_heldout is not None:
            parts.append(f"held-out {_percent(self.output_error_heldout)} %")
        if self.has_radii and self.output_bound is not None:
            parts.append(f"proved at most {_percent(self.output_bound)} %")
        if self.budget.accuracy is not None and self.value is not None:
            parts.append(f"accuracy {self.value:.4g}")
        return ", ".join([*parts, str(self.status), f"{self.seconds:.3g} s"])

    def table(self) -> str:
        """Return a table with a line per layer, the headline, and what was warned of below.

        Errors are in percent of the trained layer's output: of the layer alone, and of the network
        up to it, on the calibration and on the held-out samples where there are any. With a radius
        there are also the bound on the network's error, and the gap of the proof. A layer pruned by
        several steps has a line for each step before the last.
        """
        held = self.output_error_heldout is not None
        proofs = self.has_radii
        head = ["layer", "shape", "zeros %", "nnz", "error %", "network %"]
        head += (["held-out %"] if held else []) + (["bound %", "gap"] if proofs else [])
        rows = [[*head, "s", "steps", "status"]]
        for one in self.layers:
            steps = (_stage_row(stage, one.size, held, proofs) for stage in one.stages[:-1])
            rows += [_row(one, held, proofs), *steps]
        total = ["output", "", f"{100 * self.sparsity:.2f}", str(self.nnz), ""]
        total += [_percent(self.output_error)]
        total += [_percent(self.output_error_heldout)] if held else []
        total += [_percent(self.output_bound), ""] if proofs else []
        text = aligned([*rows, [*total, f"{self.seconds:.2f}", "", str(self.status)]])
        reasons = [f"{one.name} {one.outcome}: {one.reason}" for one in self.layers if one.reason]
        return "\n".join([text, *reasons, *self.warnings, *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values; numbers that are not finite become None."""
        return {
            "mode": self.mode,
            "status": self.status.label,
            "sparsity": self.sparsity,
            "nnz": self.nnz,
            "n_weights": self.network.n_weights,
            "output_error": plain(self.output_error),
            "output_error_heldout": plain(self.output_error_heldout),
            "output_bound": plain(self.output_bound),
            "seconds": self.seconds,
            "seconds_by_stage": plain(self.seconds_by_stage),
            "layers": [report.to_dict() for report in self.layers],
            "budget": plain(self.budget.to_dict()),
            "recipe": plain(self.recipe.to_dict()),
            "notes": list(self.notes),
            "budgets": self.budgets,
            "value": plain(self.value),
            "trials": [trial.to_dict() for trial in self.trials],
            "paths": [path.to_dict() for path in self.paths.values()],
        }

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the report to a file, all or nothing.

        Raises
        ------
        OSError
            If the folder is missing or not writable.
        """
        with whole_file(path) as stream:
            stream.write(json.dumps(self.to_dict(), indent=1, allow_nan=False).encode())

    def write_report(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Write a report as one HTML file that needs nothing else; see :func:`.write_report`.

        Parameters
        ----------
        path : path-like
        **options
            ``title``; ``facts``, such as ``{"Accuracy": "97.9 %"}``, to show at the top; ``paths``:
            measured :class:`.LayerPath` to draw.
        """
        from .report import write_report  # reads results, so it stands above them

        write_report(self, path, **options)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw zeros and errors of every layer; see :func:`.plot_result`."""
        from .plots import plot_result

        return plot_result(self, path)


def plain(value: Any) -> Any:
    """Return a number, text or sequence as a JSON value; what is not finite becomes None."""
    if isinstance(value, (tuple, list)):
        return [plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def aligned(rows: list[list[str]]) -> str:
    """Return cells as text in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _row(one: LayerReport, held: bool, proofs: bool) -> list[str]:
    row = [one.name, " x ".join(map(str, one.shape)), f"{100 * one.sparsity:.2f}", str(one.nnz),
           _percent(one.error), _percent(one.network_error)]  # fmt: skip
    row += [_percent(one.network_error_heldout)] if held else []
    row += [_percent(one.network_bound), _small(one.gap)] if proofs else []
    status = one.outcome if one.status is None else str(one.status)
    return [*row, f"{one.seconds:.2f}", one.solver, status]


def _stage_row(one: Stage, size: int, held: bool, proofs: bool) -> list[str]:
    row = [f"  after {one.name}", "", f"{100 * (1 - one.nnz / size):.2f}", str(one.nnz)]
    row += [_percent(one.error), "", *([""] if held else [])]
    row += ["", _small(one.gap)] if proofs else []
    return [*row, f"{one.seconds:.2f}", "", str(one.status)]


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.3g}"
