"""What a run will take, before it starts: rows, memory, and a rough time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..solvers import SOLVERS
from .calibration import collect_bytes
from .choices import LayerSettings
from .graph import Network
from .layers import Layer
from .modes import Run
from .result import aligned

#: Iterations of the ADMM that a layer is charged with, polish and checks included.
ITERATIONS = 200

#: Products with the Gram matrix that a pruner is charged with; one-shot methods take fewer.
PRODUCTS = 100

#: Solves that the search for a number of nonzeros is charged with.
SEARCH_SOLVES = 2

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
        `flops` at the measured rate; None for solvers whose work is not known.
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
        """The estimated time, mostly within a factor of 4; None if a layer's is not known."""
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
        times = [] if self.seconds is None else ["times: estimates, mostly within a factor of 4"]
        return "\n".join([aligned(rows), *times, *self.notes])


def plan(run: Run) -> PruningPlan:
    """Return what a run will take.

    Notes
    -----
    Flops are those of the forward passes, and of the solver: for the ADMM ``ITERATIONS`` times
    ``4 P N M + 2 N^2 M`` and a factorisation, and ``SEARCH_SOLVES`` times that for a budget of
    weights; for pruners ``P N^2 + 4 P N M + N^3`` and ``PRODUCTS`` times ``2 N^2 M``. A pipeline
    counts as the ADMM. They are divided by the rate of a product of two matrices of size 512, so
    the time is mostly within a factor of 4, no better: how many iterations a layer takes is not
    known before. The memory is counted in arrays, generously.
    """
    rate = measured_rate()
    network, data, spilled = run.original, run.data, run.options.spill is not None
    shapes = network.shapes_for(data.sample_shape)
    layers = []
    for layer in network.layers:
        choice = run.choices[layer.name]
        n_rows = len(data) * layer.n_positions(shapes[layer.inputs[0]])
        rows = n_rows if choice.max_rows is None else min(n_rows, choice.max_rows)
        flops, known, signals, held = 0.0, True, 0, 0
        if not choice.skip:
            passes = 2 if run.options.cascade else 1
            flops = passes * min(len(data), rows) * _forward_flops(network, layer, shapes)
            work = _solver_flops(layer, choice, rows)
            known = work is not None
            flops += work or 0.0
            signals = collect_bytes(
                network, layer.name, data, max_rows=choice.max_rows, spilled=spilled
            )
            held = _held_bytes(layer, rows, network.dtype.itemsize, spilled)
        layers.append(
            LayerPlan(
                layer.name, layer.kind, layer.W.shape, layer.n_groups, rows, n_rows,
                "" if choice.skip else choice.budget, signals, held, flops,
                flops / rate if known else None,
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


def _solver_flops(layer: Layer, choice: LayerSettings, rows: int) -> float | None:
    """Return the flops of a layer's solver, None if unknown."""
    N, M = layer.matrices()[0].shape
    if choice.pipeline is None and choice.solver != "admm":
        if SOLVERS[choice.solver].convex:
            return None
        return layer.n_groups * (
            rows * N**2 + 4.0 * rows * N * M + N**3 + PRODUCTS * 2.0 * N**2 * M
        )
    inner = min(rows, N)
    one = ITERATIONS * (4.0 * rows * N * M + 2.0 * inner**2 * M) + 2.0 * rows * N * inner
    solves = 1 if choice.tolerance is not None else SEARCH_SOLVES
    return layer.n_groups * solves * (one + 10.0 * inner**3)


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
