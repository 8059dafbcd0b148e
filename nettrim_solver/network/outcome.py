"""What came of a run: the reports of the layers, and the whole network measured and bounded."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..certificate import certify
from ..status import Status, worst
from .bounds import activation_of, signal_bounds
from .calibration import Calibration
from .choices import LayerSettings
from .graph import Network
from .layers import Layer
from .measure import Errors, measure, relative
from .result import LayerReport, PruningResult
from .stages import Stage, stages_together
from .tasks import GroupAnswer, GroupTask, sample_warnings, target_norm, together

#: What bounds allow for the rounding of the network's arithmetic, relative to the target.
ROUNDING = {np.dtype(np.float64): 1e-12, np.dtype(np.float32): 1e-5}


def untouched(
    network: Network, layer: Layer, data: Calibration, choice: LayerSettings
) -> LayerReport:
    """Return the report of a layer that has its trained weights."""
    places = layer.n_positions(network.shapes_for(data.sample_shape)[layer.inputs[0]])
    return LayerReport(
        layer.name, layer.kind, layer.W.shape, nnz=layer.nnz, size=layer.W.size,
        budget=choice.budget, n_rows=len(data) * places,
    )  # fmt: skip


def with_answers(
    report: LayerReport, layer: Layer, tasks: list[GroupTask], answers: list[GroupAnswer],
    seconds: float,
) -> LayerReport:  # fmt: skip
    """Return the report of a layer with what its solver found."""
    found = together(answers)
    error, scale = found.pop("activation_error"), target_norm(tasks)
    warnings = (*sample_warnings(tasks, answers), *found.pop("warnings"))
    return replace(
        report, outcome="pruned", nnz=layer.nnz, error=relative(error, scale), warnings=warnings,
        seconds=seconds, stages=stages_together(answers, scale), **found,
    )  # fmt: skip


def with_refit(
    report: LayerReport, layer: Layer, tasks: list[GroupTask], seconds: float
) -> LayerReport:
    """Return the report of a layer whose weights were fitted to the network's output.

    They are judged like the solver's, but no radius is theirs.
    """
    groups = zip(tasks, layer.matrices(), strict=True)
    judged = [
        certify(task.target, W, None if layer.b is None else layer.b[layer.columns(group)])
        for group, (task, W) in enumerate(groups)
    ]
    distance = float(np.linalg.norm([one.distance for one in judged]))
    errors = [one.activation_error for one in judged if one.activation_error is not None]
    error = relative(float(np.linalg.norm(errors)), target_norm(tasks))
    before = report.stages or (_only_stage(report),)
    stage = Stage(
        "output_refit", layer.nnz, distance, error, None, Status.PRUNED, seconds
    )  # fmt: skip
    return replace(
        report, nnz=layer.nnz, solver=f"{report.solver}+{stage.name}", status=Status.PRUNED,
        epsilon=None, gap=None, violation=None, distance=distance, error=error,
        seconds=report.seconds + seconds, stages=(*before, stage),
    )  # fmt: skip


def _only_stage(report: LayerReport) -> Stage:
    """Return what a solver alone gave for a layer as the first of several steps."""
    assert report.distance is not None and report.status is not None
    return Stage(
        report.solver, report.nnz, report.distance, report.error, report.gap, report.status,
        report.seconds,
    )  # fmt: skip


def assemble(
    original: Network, pruned: Network, reports: Sequence[LayerReport], data: Calibration,
    heldout: Calibration | None, *, cascade: bool, stopped: Status | None,
) -> PruningResult:  # fmt: skip
    """Measure what has become of a network, and put the result together."""
    errors = held = None
    # A second Ctrl-C ends the measuring, too; the weights stay.
    with contextlib.suppress(KeyboardInterrupt):
        errors = measure(original, pruned, data, alone=False)
        if heldout is not None:
            held = measure(original, pruned, heldout, alone=not cascade)
    distances = {
        one.name: one.distance if one.rows == one.n_rows else None for one in reports if one.pruned
    }
    bounds = signal_bounds(pruned, original.shapes_for(data.sample_shape), distances, cascade)
    single = original.prepare(next(data.batches())[:0]).dtype == np.float32
    rounding = ROUNDING[np.dtype(np.float32 if single else np.float64)]
    measured = []
    for one in reports:
        changes = _measured(original, one, errors, bounds, rounding)
        if held is not None:
            changes |= _measured_heldout(one, held, cascade)
        measured.append(replace(one, **changes))
    target = None if errors is None else errors.output_target
    return PruningResult(
        network=pruned, original=original, layers=tuple(measured),
        mode="cascade" if cascade else "parallel", status=_status(measured, stopped),
        output_error=None if errors is None else errors.relative_output(),
        output_error_heldout=None if held is None else held.relative_output(),
        output_bound=_relative_bound(bounds[pruned.output.name], target, rounding),
        seconds=0.0, sample_shape=data.sample_shape,
    )  # fmt: skip


def _measured(
    original: Network, report: LayerReport, errors: Errors | None, bounds: Mapping[str, float],
    rounding: float,
) -> dict[str, Any]:  # fmt: skip
    """Return what was measured of a layer on the calibration samples, and its bound."""
    if errors is None:
        return {}
    name = report.name
    after = activation_of(original, name)
    bound = bounds[name if after is None else after.name]
    return {
        "network_error": errors.relative(errors.network, name),
        "network_bound": _relative_bound(bound, errors.targets[name], rounding),
    }


def _measured_heldout(report: LayerReport, held: Errors, cascade: bool) -> dict[str, Any]:
    name = report.name
    found: dict[str, Any] = {"network_error_heldout": held.relative(held.network, name)}
    if report.pruned:
        found["error_heldout"] = held.relative(held.network if cascade else held.alone, name)
    return found


def _relative_bound(bound: float, square: float | None, rounding: float) -> float | None:
    """Return a bound relative to the target, with the allowance for rounding; None if infinite."""
    if square is None or not np.isfinite(bound):
        return None
    return relative(bound, square**0.5) + (rounding if bound else 0.0)


def _status(reports: Sequence[LayerReport], stopped: Status | None) -> Status:
    if stopped is not None:
        return stopped
    statuses = [one.status for one in reports if one.status is not None]
    if not statuses or any(one.outcome == "failed" for one in reports):
        return Status.FAILED
    return worst(statuses)
