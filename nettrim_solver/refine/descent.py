"""The refinements themselves, output by output: fits to the box, exchanges on either target."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ..problem import Problem
from ..solvers.box_fit import design, fit_box
from ..solvers.box_swaps import BoxTarget, swap_box
from ..solvers.least_squares import refit_mask
from ..solvers.tableau import Groups, best_exchanges
from ..status import Status
from ..threads import limit_threads
from .start import Answer, Found, Run


@dataclass(frozen=True)
class Limits:
    """Most swaps of an output, most trials in vain, and the least gain relative to the target."""

    swaps: int
    trials: int
    tol: float


def refit_box(problem: Problem, run: Run, n_threads: int) -> Answer:
    """Fit every output to its box."""
    X = problem.X.tocsc() if sp.issparse(problem.X) else problem.X
    mask = run.mask & ~run.data.dead[:, None]

    def work(j: int) -> Found:
        kept = np.flatnonzero(mask[:, j])
        start = run.start(j, kept)
        if not len(start):
            return Found(kept, start, 0)
        fit = fit_box(
            design(X, kept, run.n_constant), run.box(problem, j), start,
            np.append(np.full(len(kept), run.delta), run.nothing),
            np.append(run.data.W[kept, j], run.nothing),
        )  # fmt: skip
        return Found(kept, fit.w, fit.steps)

    return run.collected(*_each_output(run, problem.n_outputs, work, n_threads))


def swaps_box(
    problem: Problem, run: Run, groups: Groups | None, limits: Limits, n_threads: int
) -> Answer:
    """Swap on the target box."""
    data = run.data
    live = np.flatnonzero(~data.dead)
    D = design(problem.X, np.arange(problem.n_inputs), run.n_constant)
    # Dead inputs do not touch the objective: a pull of their own keeps their systems regular.
    pull = np.append(run.delta + data.dead, run.nothing)
    scale = problem.target_norms**2 + run.delta * np.sum(data.W**2, axis=0)

    def work(j: int) -> Found:
        kept = np.flatnonzero(run.mask[:, j])
        anchor = np.append(data.W[:, j], run.nothing)
        target = BoxTarget(D, run.box(problem, j), pull, anchor, live, run.n_constant)
        state, made, ended = swap_box(
            target, kept, run.start(j, kept), groups, limits.swaps, limits.trials,
            limits.tol * float(scale[j]), run.expired,
        )  # fmt: skip
        return Found(state.kept, state.fit.w, made, ended)

    return run.collected(*_each_output(run, problem.n_outputs, work, n_threads))


def swaps_linear(
    problem: Problem, run: Run, groups: Groups | None, limits: Limits, n_threads: int
) -> Answer:
    """Swap on the linear target, and keep what the objective confirms."""
    data = run.data
    W = refit_mask(data, run.mask)

    def work(j: int) -> Found:
        kept, others = np.flatnonzero(run.mask[:, j]), np.flatnonzero(~run.mask[:, j] & ~data.dead)
        made = 0
        if len(kept) and len(others):
            least = limits.tol * float(data.squares[j])
            g = np.ascontiguousarray(data.G[:, j])
            kept, made = best_exchanges(data.H, g, kept, others, groups, limits.swaps, least)
        return Found(kept, W[kept, j], made)

    found, stops = _each_output(run, problem.n_outputs, work, n_threads)
    mask, made = np.zeros_like(run.mask), np.zeros(problem.n_outputs, dtype=np.int64)
    for j, one in enumerate(found):
        if one.count:
            mask[one.kept, j], made[j] = True, one.count
    better = refit_mask(data, mask)
    swapped = (made > 0) & (data.losses(better) < data.losses(W))
    W[:, swapped], made[~swapped] = better[:, swapped], 0
    return W, data.intercept(W), made, stops


def _each_output(
    run: Run, n_outputs: int, work: Callable[[int], Found], n_threads: int
) -> tuple[list[Found], list[Status]]:
    """Call `work` for one output after the other, until the time is up or Ctrl-C comes.

    With several threads, that many at a time, each with a BLAS thread of its own. What comes out
    does not depend on their number.

    Returns
    -------
    found : list of Found
        Of the first outputs, as many as were reached.
    stops : list of Status, length n_outputs
    """
    found: list[Found] = []
    left = Status.TIME_LIMIT
    executor = ThreadPoolExecutor(n_threads) if n_threads > 1 else None

    def unless_late(j: int) -> Found | None:
        return None if run.expired() else work(j)

    try:
        with limit_threads(1 if executor else None):
            each = executor.map if executor else map
            for one in each(unless_late, range(n_outputs)):
                if one is None:
                    break
                found.append(one)
    except KeyboardInterrupt:
        left = Status.INTERRUPTED
    finally:
        if executor:
            executor.shutdown(cancel_futures=True)
    stops = [Status.PRUNED if one.ended else Status.TIME_LIMIT for one in found]
    return found, stops + [left] * (n_outputs - len(found))
