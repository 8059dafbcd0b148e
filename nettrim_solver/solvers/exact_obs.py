r"""Exact optimal brain surgeon (ExactOBS, OBC): one weight at a time, the inverse kept up to date.

For every output on its own, with A the inputs not yet removed and :math:`V = [H_{AA}]^{-1}`:

.. math:: p = \arg\min_{i \in A} \frac{w_i^2}{V_{ii}}, \qquad
    w \leftarrow w - \frac{w_p}{V_{pp}} V e_p, \qquad
    V \leftarrow V - \frac{V e_p e_p' V}{V_{pp}}, \qquad A \leftarrow A \setminus p,

until nothing is left. Every step is the best removal of one weight with the rest refitted, and its
increment :math:`w_p^2 / V_{pp}` is exactly what the loss rises by. Order and increments make the
:class:`nettrim_solver.solution.RemovalTrace`, from which every budget is answered: the smallest
increments of the layer count how many removals each output makes, and what stays is refitted.

The trace comes with the solution, and
``solve(problem, "exact_obs", sparsity=0.7, warm_start=solution)`` uses it again, if X, W, target,
intercept and damping are what they were. Else the removals are traced anew, and a warning says so.

Behind pruned layers the trained weights have a gradient, which the formulas take to be zero: the
removals start from the least-squares weights there. Where there is none, weights that are zero at
the start cost nothing, leave first, and stay zero.

References
----------
Frantar, Singh, Alistarh, *Optimal Brain Compression: A Framework for Accurate Post-Training
Quantization and Pruning*, NeurIPS 2022, arXiv:2208.11580.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..problem import Problem
from ..solution import RawSolution, RemovalTrace
from . import Context
from .gram import Array, Gram
from .least_squares import refit_mask
from .obs import inverse_gram
from .pruning import Budget, PruningSettings, parse_pattern, run
from .watch import Watch

#: Value of ``N^3`` per output that one call of the compiled trace may add up to: short enough for
#: Ctrl-C, and for threads to share the outputs evenly. One output at least.
CHUNK = 5e8

#: Answers kept for a search that comes back to the same counts of many outputs.
REMEMBERED = 4

#: Relative difference of fingerprints that is still the rounding of another order of summation.
SAME_DATA = 1e-9

Pattern = tuple[int, int] | None
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Settings(PruningSettings):
    """Settings of solver "exact_obs": those of every pruner."""


class Surgeon:
    """Answers budgets from the trace of a layer's removals.

    Parameters
    ----------
    data : Gram
        The layer, damped.
    pattern : (int, int) or None
        The pattern that is traced at once; others are traced when a budget asks for them.
    trace : RemovalTrace or None
        A trace to use if it belongs to the data.
    n_threads : int
        Threads of the trace: outputs need nothing of each other.
    watch : Watch

    Attributes
    ----------
    trace : RemovalTrace
        Of `pattern`.
    """

    def __init__(
        self, data: Gram, pattern: Pattern, trace: RemovalTrace | None, n_threads: int, watch: Watch
    ) -> None:
        self.data, self.n_threads, self.watch = data, n_threads, watch
        self.start = data.stationary()
        if trace is None or not belongs(trace, data, pattern):
            trace = trace_removals(data, self.start, pattern, n_threads, watch)
        self.trace = trace
        self._traces = {pattern: trace}
        self._remembered: list[tuple[Pattern, Counts, Array]] = []

    def __call__(self, budget: Budget) -> Array:
        """Return the weights that a budget leaves, refitted exactly; shape (N, M)."""
        if budget.pattern not in self._traces:
            self._traces[budget.pattern] = trace_removals(
                self.data, self.start, budget.pattern, self.n_threads, self.watch
            )
        trace = self._traces[budget.pattern]
        if budget.pattern is not None:
            counts = np.full(len(trace.base), len(trace.order))
        elif isinstance(budget.keep, np.ndarray):
            counts = trace.n_inputs - budget.keep
        else:
            counts = trace.counts(budget.keep, per_output=budget.per_output)
        return self._refitted(trace, counts)

    def _refitted(self, trace: RemovalTrace, counts: Counts) -> Array:
        free = np.count_nonzero(np.cumsum(trace.increments, axis=0) == 0.0, axis=0)
        changed = counts > free
        W = self.start.copy()
        for pattern, known, answer in self._remembered:
            again = changed & (known == counts) & (pattern == trace.pattern)
            W[:, again] = answer[:, again]
            changed &= ~again
        columns = np.flatnonzero(changed)
        part = dataclasses.replace(self.data, G=self.data.G[:, columns])
        W[:, columns] = refit_mask(part, trace.support(counts)[:, columns])
        self._remembered = [(trace.pattern, counts, W.copy()), *self._remembered][:REMEMBERED]
        return W


def trace_removals(
    data: Gram, start: Array, pattern: Pattern = None, n_threads: int = 1,
    watch: Watch | None = None,
) -> RemovalTrace:  # fmt: skip
    """Remove the weights of every output one by one and return order and increments.

    Parameters
    ----------
    data : Gram
        The layer, damped.
    start : ndarray of shape (N, M)
        Weights of zero gradient, ``data.stationary()``.
    pattern : (int, int) or None
        (n, m): a group of m consecutive inputs is left alone once n are left in it.
    n_threads : int
    watch : Watch, optional

    Raises
    ------
    Unfinished
        If the run is to end before all outputs are traced.

    Notes
    -----
    ``M N^3 / 3`` flops; memory ``N^2`` for every thread, ``2 N^2`` for the inverse, and the trace.
    """
    from . import pruning_kernels as kernels

    N, M = start.shape
    kept, group = pattern or (0, N)
    n_steps = N // group * (group - kept)
    inverse, floor = inverse_gram(data.H), 1.0 / np.diag(data.H)
    rows = np.ascontiguousarray(start.T)
    order, increments = np.empty((M, n_steps), dtype=np.int32), np.empty((M, n_steps))
    width = max(1, int(CHUNK / N**3))

    def trace(first: int) -> None:
        part = slice(first, first + width)
        kernels.trace_removals(
            inverse, floor, rows[part], group, group - kept, order[part], increments[part]
        )

    chunks = range(0, M, width)
    watch = Watch() if watch is None else watch
    workers = ThreadPoolExecutor(n_threads) if n_threads > 1 else None
    try:
        for done, _ in enumerate((workers.map if workers else map)(trace, chunks), start=1):
            if done < len(chunks):
                watch.check()
    finally:
        if workers:
            workers.shutdown(cancel_futures=True)
    return RemovalTrace(
        order=order.T, increments=increments.T, base=data.losses(start), n_inputs=N,
        pattern=pattern, fingerprint=fingerprint(data),
    )  # fmt: skip


def fingerprint(data: Gram) -> Array:
    """Return a few numbers that change with the Gram matrices: their products with one vector.

    Shape (N + M,). H and G determine every removal, and nothing else does.
    """
    probe = np.cos(np.arange(len(data.H)))
    return np.concatenate([data.H @ probe, probe @ data.G])


def belongs(trace: RemovalTrace, data: Gram, pattern: Pattern) -> bool:
    """Return whether a trace was made from these data, with this pattern."""
    here = fingerprint(data)
    if trace.pattern != pattern or trace.fingerprint.shape != here.shape:
        return False
    n_inputs = len(data.H)
    same = True
    for part in (slice(n_inputs), slice(n_inputs, None)):
        size = np.max(np.abs(here[part]), initial=0.0)
        same &= bool(np.all(np.abs(trace.fingerprint[part] - here[part]) <= SAME_DATA * size))
    return same


def prepare(
    data: Gram, settings: Settings, trace: RemovalTrace | None = None, n_threads: int = 1,
    watch: Watch | None = None,
) -> Surgeon:  # fmt: skip
    """Return the function that answers budgets from one trace, which is made here if not given."""
    pattern, watch = parse_pattern(settings.pattern), Watch() if watch is None else watch
    return Surgeon(data.damped(settings.damping), pattern, trace, n_threads, watch)


def solve(problem: Problem, settings: Settings, context: Context) -> RawSolution:
    """Prune the layer; see :func:`nettrim_solver.solve`."""
    given = None if context.warm_start is None else context.warm_start.trace
    used: list[RemovalTrace] = []
    watch = Watch(problem.n_outputs, settings.time_limit, context)

    def prepared(data: Gram, settings: Settings) -> Surgeon:
        surgeon = prepare(data, settings, given, context.n_threads, watch)
        used.append(surgeon.trace)
        return surgeon

    raw = run(problem, settings, context, prepared, watch=watch)
    if not used:
        return raw
    warnings = raw.warnings
    if given is not None and used[0] is not given:
        warnings += ("warm_start.trace is of other data, damping or pattern: traced anew",)
    return dataclasses.replace(raw, trace=used[0], warnings=warnings)
