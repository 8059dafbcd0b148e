"""What a run will take, before it starts: rows, memory, and a rough time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..pipeline import Pipeline
from ..solvers import SOLVERS
from .calibration import Calibration, LayerSignals, collect, collect_bytes, draw
from .choices import LayerSettings
from .graph import Network
from .layers import Dense, Layer
from .modes import Run
from .result import aligned
from .tasks import group_tasks

#: Iterations of the ADMM that a layer is charged with, polish and checks included.
ITERATIONS = 200

#: Products with the Gram matrix that a pruner is charged with; one-shot methods take fewer.
PRODUCTS = 100

#: Flops of the first piece of a layer that its solver is timed on, the seconds that are enough, and
#: those of a first piece after which a second one would take too long.
PIECE, ENOUGH, LONG = 1e8, 0.2, 1.0

#: Arrays of shape (n_samples, n_outputs), float64, that a layer's problem, its solver and its judge
#: hold together: the ADMM's own (8), targets, boxes, dual points, radii.
SAMPLE_ARRAYS = 20

#: Arrays of shape (n_inputs, n_inputs), float64.
SQUARE_ARRAYS = 8

#: Arrays of shape (n_inputs, n_outputs), float64.
WEIGHT_ARRAYS = 30

#: Blocks, pieces of samples in float64, and everything small.
CONSTANT_BYTES = 96 * 2**20


@dataclass(frozen=True)
class LayerPlan:
    """What one layer will take.

    Attributes
    ----------
    name, kind : str
    shape : tuple of int
        Of W.
    groups : int
        Problems that are solved.
    rows, n_rows : int
        Rows used, and rows that the calibration data has.
    budget : str
        Empty if the layer is skipped.
    signal_bytes : int
        Bound on the memory while the layer's rows are collected.
    bytes : int
        Of the rows, the problem and the solver together.
    flops : float
        Roughly.
    seconds : float or None
        Estimated, see :func:`plan`; None for solvers whose work is not known, or that fail.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    groups: int
    rows: int
    n_rows: int
    budget: str
    signal_bytes: int
    bytes: int
    flops: float
    seconds: float | None


@dataclass(frozen=True)
class PruningPlan:
    """What a run will take.

    Attributes
    ----------
    layers : tuple of LayerPlan
    rate : float
        Flops per second of a matrix product, measured on this machine.
    notes : tuple of str
        What is done besides: layers measured, networks tried.
    """

    layers: tuple[LayerPlan, ...]
    rate: float
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Memory beside the data and the networks: that of the largest layer."""
        return max(max(one.bytes, one.signal_bytes) for one in self.layers)

    @property
    def seconds(self) -> float | None:
        """The estimated time; None if a layer's is not known."""
        seconds = [one.seconds for one in self.layers]
        return None if None in seconds else sum(s for s in seconds if s is not None)

    def table(self) -> str:
        """Return a table with a line per layer."""
        head = ["layer", "kind", "shape", "groups", "rows", "budget", "MB", "s, about"]
        rows = [head]
        for one in self.layers:
            used = str(one.rows) if one.rows == one.n_rows else f"{one.rows} of {one.n_rows}"
            rows.append([
                one.name, one.kind, " x ".join(map(str, one.shape)), str(one.groups), used,
                one.budget or "skipped", _mega(max(one.bytes, one.signal_bytes)),
                _about(one.seconds),
            ])  # fmt: skip
        rows.append(["in all", "", "", "", "", "", _mega(self.bytes), _about(self.seconds)])
        times = (
            [] if self.seconds is None else ["times: estimates, from pruning pieces of the layers"]
        )
        return "\n".join([aligned(rows), *times, *self.notes])


def plan(run: Run) -> PruningPlan:
    """Return what a run will take.

    Notes
    -----
    The time of a layer is that of its forward passes, by the rate of a product of two matrices of
    size 512, and that of its solver. This one is timed on pieces of the layer (some of its rows,
    inputs and outputs, pruned to the same budget) that grow until one takes 0.2 s; from there on
    the time grows with the flops: for the ADMM ``ITERATIONS`` times ``4 P N M + 2 N^2 M`` and a
    factorisation; for pruners ``P N^2 + 4 P N M + N^3`` and ``PRODUCTS`` times ``2 N^2 M``. A
    pipeline counts as the ADMM. The memory is counted in arrays, generously.
    """
    rate = measured_rate()
    network, data, spilled = run.original, run.data, run.execution.spill is not None
    shapes = network.shapes_for(data.sample_shape)
    layers = []
    for layer in network.layers:
        choice = run.choices[layer.name]
        places = layer.n_positions(shapes[layer.inputs[0]])
        n_rows = len(data) * places
        rows = n_rows if choice.max_rows is None else min(n_rows, choice.max_rows)
        flops, seconds, signals, held = 0.0, None, 0, 0
        if choice.skip:
            seconds = 0.0
        else:
            passes = 2 if run.cascade else 1
            forward = passes * min(len(data), rows) * _forward_flops(network, layer, shapes)
            work = _solver_flops(layer.matrices()[0], rows, choice)
            flops = forward + layer.n_groups * work
            each = _solver_seconds(run, layer, places, rows, work)
            seconds = None if each is None else forward / rate + layer.n_groups * each
            signals = collect_bytes(
                network, layer.name, data, max_rows=choice.max_rows, spilled=spilled
            )
            held = _held_bytes(layer, rows, network.dtype.itemsize, spilled)
        layers.append(
            LayerPlan(
                layer.name, layer.kind, layer.W.shape, layer.n_groups, rows, n_rows,
                "" if choice.skip else choice.budget, signals, held, flops, seconds,
            )
        )  # fmt: skip
    return PruningPlan(tuple(layers), rate)


def measured_rate(size: int = 512) -> float:
    """Return the flops per second of a float64 matrix product, the best of a few."""
    A = np.ones((size, size))
    best = math.inf
    for _ in range(4):
        tick = time.perf_counter()
        A @ A
        best = min(best, time.perf_counter() - tick)
    return 2.0 * size**3 / best


def _forward_flops(network: Network, layer: Layer, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Return the flops of the layers up to this one, for one sample."""
    wanted = network.ancestors(layer.name) | {layer.name}
    return sum(
        2.0 * other.W.size * other.n_positions(shapes[other.inputs[0]])
        for other in network.layers
        if other.name in wanted
    )


def _solver_flops(W: NDArray[Any], rows: int, choice: LayerSettings) -> float:
    """Return the flops of the solver for one problem, up to a factor that its sizes share."""
    N, M = W.shape
    solver = _single(choice)
    if solver is not None and not SOLVERS[solver].convex:
        return rows * N**2 + 4.0 * rows * N * M + N**3 + PRODUCTS * 2.0 * N**2 * M
    inner = min(rows, N)
    one = ITERATIONS * (4.0 * rows * N * M + 2.0 * inner**2 * M) + 2.0 * rows * N * inner
    return one + 10.0 * inner**3


def _single(choice: LayerSettings) -> str | None:
    """Return the solver of a layer that is solved in one step."""
    steps = choice.steps
    if not isinstance(steps, Pipeline) or len(steps.steps) > 1:
        return None
    return getattr(steps.steps[0], "solver", None)


def _solver_seconds(run: Run, layer: Layer, places: int, rows: int, work: float) -> float | None:
    """Return the time of the solver for one problem of a layer, from those of pieces of it.

    There are two pieces at least, unless the first takes very long, and they grow until one takes
    long enough; from the last two on, time grows with the flops. None for references, whose work
    is not known, and if a solver fails.
    """
    choice = run.choices[layer.name]
    solver = _single(choice)
    if solver is not None and SOLVERS[solver].convex and solver != "admm":
        return None
    share, flops, seconds = min(1.0, (PIECE / work) ** (1 / 3)), [0.0], [0.0]
    try:
        _solve_piece(run, layer, places, rows, share)  # compiles, or loads what was compiled
        while True:
            found = _solve_piece(run, layer, places, rows, share)
            flops.append(found[0])
            seconds.append(found[1])
            if share == 1.0 or seconds[-1] > (ENOUGH if len(flops) > 2 else LONG):
                break
            share = min(1.0, 2 * share)
    except Exception:  # A pipeline may be anyone's; the run will say what is wrong.
        return None
    growth = max(0.0, seconds[-1] - seconds[-2]) / (flops[-1] - flops[-2])
    return seconds[-1] + growth * (work - flops[-1])


def _solve_piece(
    run: Run, layer: Layer, places: int, rows: int, share: float
) -> tuple[float, float]:
    """Prune a piece of a layer, with a share of its rows, inputs and outputs.

    Returns
    -------
    flops, seconds : float
    """
    choice, whole = run.choices[layer.name], layer.matrices()[0]
    used = math.ceil(share * rows)
    few = Calibration(draw(run.data, math.ceil(used / places), run.execution.seed))
    signals = collect(run.original, layer.name, few, max_rows=used, seed=run.execution.seed)
    ins, outs = (
        np.linspace(0, size - 1, max(1, round(share * size))).astype(int) for size in whole.shape
    )
    b = None if layer.b is None else layer.b[outs]
    piece = Dense(whole[np.ix_(ins, outs)], b, name=layer.name)
    X = signals.X[0][:, ins]
    signals = LayerSignals(piece, signals.rows, (X,), piece.apply(X))
    keep = choice.target(layer.W.size)
    if keep is not None:
        choice = replace(choice, sparsity=None, nnz=round(keep * piece.W.size / layer.W.size))
    activation = run.original.activation_after(layer.name).select(outs)
    (task,) = group_tasks(signals, activation, choice, run.cascade)
    tick = time.perf_counter()
    choice.steps(task.problem, task.nnz, n_threads=run.execution.n_threads)
    return _solver_flops(piece.W, len(X), choice), time.perf_counter() - tick


def _held_bytes(layer: Layer, rows: int, itemsize: int, spilled: bool) -> int:
    N, M = layer.matrices()[0].shape
    own = 0 if spilled else rows * (N * layer.n_groups + layer.n_outputs) * itemsize
    arrays = SAMPLE_ARRAYS * rows * M + SQUARE_ARRAYS * N**2 + WEIGHT_ARRAYS * N * M
    targets = rows * layer.n_outputs * itemsize
    return own + targets + 8 * arrays + CONSTANT_BYTES


def _mega(size: int) -> str:
    return f"{size / 1e6:.0f}"


def _about(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds:.2g}"
