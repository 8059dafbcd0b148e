"""What the pruners share: settings, budgets, the choice of what stays, the search for a radius.

A pruner starts from trained weights and removes some of them. Its module has a frozen dataclass
``Settings`` (a subclass of :class:`PruningSettings`), and

    prepare(data, settings) -> prune,      prune(budget) -> weights of shape (N, M)

where ``data`` is the :class:`.gram.Gram` of the layer and ``prune`` can be called for any number of
budgets: what does not depend on the budget is computed once. :func:`run` does everything else.
Pruners of many steps take a third argument, a :class:`.watch.Watch`, which says when to end with
what there is; :func:`run_watched` is for them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import check_choice, check_integer, check_number, check_time_limit
from ..exceptions import ProblemError, SettingsError
from ..problem import Problem
from ..solution import RawSolution, Solution
from ..status import Status
from . import Context
from .gram import Gram, gram
from .radius_search import prune_until_radius
from .watch import Unfinished, Watch

#: Entries of which a layer's threshold is first guessed.
SAMPLE = 4096

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Budget:
    """How many weights stay.

    Attributes
    ----------
    keep : int or ndarray of shape (M,)
        Nonzeros of the layer, or of every output.
    per_output : bool
        Whether an integer `keep` is shared out equally over the outputs, instead of letting the
        scores of the whole layer compete.
    pattern : (int, int) or None
        (n, m): at most n nonzeros in every m consecutive inputs of an output; `keep` then follows.
    """

    keep: int | NDArray[np.int64]
    per_output: bool = False
    pattern: tuple[int, int] | None = None


Prune = Callable[[Budget], Array]


@dataclass(frozen=True)
class PruningSettings:
    """Settings that every pruner has.

    Attributes
    ----------
    sparsity : float or None
        Fraction of zeros, in [0, 1): ``round(sparsity * N * M)`` weights are zero, and more only
        if more are zero in W, or belong to inputs without signal.
    nnz : int or None
        Weights that stay, instead of `sparsity`. Without any of these and `pattern`, weights are
        removed until the problem's radius is used up.
    pattern : str or None
        "n:m" keeps n of every m consecutive inputs of each output, such as "2:4".
    scope : {"layer", "output"}
        Whether all weights of the layer compete, or each output keeps equally many (but one, where
        they cannot be shared out equally). One radius per output makes it "output".
    damping : float
        Pull towards the trained weights, in units of the mean of diag(X'X). With 0 a layer with
        fewer samples than inputs is singular.
    intercept : {"solve", "keep"}
        Whether the intercept is solved for again, or b stays as trained. Without effect for
        problems without intercept.
    time_limit : float or None
        Seconds; ends the run at the next step, with the best answer so far. Where there is none
        yet, these are the trained weights.
    tol_feas : float
        Set by :func:`nettrim_solver.solve`.
    resolution : float
        Where the radius is the budget: the search for the count ends when it is known to this
        fraction; 0 for to a single weight.
    """

    sparsity: float | None = None
    nnz: int | None = None
    pattern: str | None = None
    scope: str = "layer"
    damping: float = 0.01
    intercept: str = "solve"
    time_limit: float | None = None
    tol_feas: float = 1e-6
    resolution: float = 0.0

    def validate(self) -> None:
        """Raise SettingsError for a setting out of range."""
        if self.sparsity is not None:
            check_number("sparsity", self.sparsity, 0.0, 1.0, closed=True)
        if self.nnz is not None:
            check_integer("nnz", self.nnz, 0)
        given = [n for n in ("sparsity", "nnz", "pattern") if getattr(self, n) is not None]
        if len(given) > 1:
            raise SettingsError(f"give one of sparsity, nnz and pattern, but got {given}")
        parse_pattern(self.pattern)
        check_choice("scope", self.scope, ("layer", "output"))
        check_choice("intercept", self.intercept, ("solve", "keep"))
        check_number("damping", self.damping, 0.0, np.inf, closed=True)
        check_time_limit(self.time_limit)
        check_number("resolution", self.resolution, 0.0, 1.0, closed=True)


def run(
    problem: Problem,
    settings: PruningSettings,
    context: Context,
    prepare: Callable[[Gram, Any], Prune],
    intercept: Callable[[Array], Array] | None = None,
    watch: Watch | None = None,
    start: Solution | None = None,
) -> RawSolution:
    """Prune a layer to the budget of the settings, or else until the problem's radius is used up.

    `intercept` gives the best intercept of weights; by default that of the linear target. `watch`
    is what `prepare` asks whether to go on, if it asks. Where the radius is the budget, the answer
    has no more weights than a `start` that keeps it.

    Returns
    -------
    RawSolution
        With status ``PRUNED`` for a budget, ``FEASIBLE`` for a radius; the judge knows better. Or
        with the reason why it ended early.

    Raises
    ------
    ProblemError
        If there is neither budget nor radius, or if no removal can meet the budget.
    """
    budget = requested_budget(problem, settings)
    if watch is None:
        watch = Watch(problem.n_outputs, settings.time_limit, context)
    solved = problem.intercept and settings.intercept == "solve"
    seconds, answer = {}, _trained(problem)
    with watch, contextlib.suppress(Unfinished):
        data = gram(problem, solve_intercept=solved, check=watch.check)
        seconds["gram"] = context.elapsed()
        tick = time.perf_counter()
        prune = prepare(data, settings)
        watch.check()
        seconds["prepare"] = time.perf_counter() - tick
        tick = time.perf_counter()
        intercept = data.intercept if intercept is None else intercept
        if budget is not None:
            W = prune(budget)
        else:
            W = prune_until_radius(
                problem, lambda keep: _with_intercept(prune(_budget_of(keep, settings)), intercept),
                watch, settings.tol_feas, settings.resolution, start,
            )  # fmt: skip
        answer = W, intercept(W)
        seconds["prune"] = time.perf_counter() - tick
    status = watch.status or (Status.FEASIBLE if budget is None else Status.PRUNED)
    W, b = answer
    return RawSolution(
        W=W, b=b if problem.intercept else None, theta=None, stops=[status] * problem.n_outputs,
        seconds=seconds,
    )  # fmt: skip


def run_watched(
    problem: Problem,
    settings: PruningSettings,
    context: Context,
    prepare: Callable[[Gram, Any, Watch], Prune],
) -> RawSolution:
    """Prune a layer, as :func:`run` does, with a pruner that asks whether to go on."""
    watch = Watch(problem.n_outputs, settings.time_limit, context)

    def prepared(data: Gram, settings: Any) -> Prune:
        return prepare(data, settings, watch)

    return run(problem, settings, context, prepared, watch=watch)


def _budget_of(keep: NDArray[np.int64], settings: PruningSettings) -> Budget:
    """Return counts, one for the layer or one for each output, as a budget."""
    return Budget(int(keep[0]), settings.scope == "output") if len(keep) == 1 else Budget(keep)


def _with_intercept(W: Array, intercept: Callable[[Array], Array]) -> tuple[Array, Array]:
    return W, intercept(W)


def _trained(problem: Problem) -> tuple[Array, Array]:
    """Return the trained weights and intercept."""
    b = np.zeros(problem.n_outputs)
    if problem.b is not None:
        b += problem.b
    return np.array(problem.W, dtype=np.float64), b


def requested_budget(problem: Problem, settings: PruningSettings) -> Budget | None:
    """Return the budget that the settings ask for; None when the radius is the budget.

    Raises
    ------
    ProblemError
        If the budget does not fit the shape of W, or if there is none at all.
    """
    N, M = problem.n_inputs, problem.n_outputs
    per_output = settings.scope == "output"
    pattern = parse_pattern(settings.pattern)
    if pattern is not None:
        kept, group = pattern
        if N % group:
            raise ProblemError(
                f"pattern={settings.pattern!r} needs a number of inputs that {group} divides, "
                f"but X has {N}"
            )
        return Budget(N // group * kept * M, per_output, pattern)
    if settings.sparsity is not None:
        return Budget(N * M - round(settings.sparsity * N * M), per_output)
    if settings.nnz is not None:
        if settings.nnz > N * M:
            raise ProblemError(f"nnz must be at most {N * M}, all of W, but was {settings.nnz}")
        return Budget(int(settings.nnz), per_output)
    if problem.epsilon is None:
        raise ProblemError(
            "a pruner needs a budget: set sparsity, nnz or pattern, or give the problem a radius "
            f"(epsilon or tolerance), but there is none and formulation is {problem.formulation!r}"
        )
    return None


def keep_largest(scores: Array, budget: Budget) -> Mask:
    """Return the mask of the weights that stay: the largest scores that the budget admits.

    Ties go to the smaller index, so the result does not depend on the sorting algorithm; inputs
    whose scores are all zero, such as dead ones, come last among them.

    Parameters
    ----------
    scores : ndarray of shape (N, M)
    budget : Budget
    """
    N, M = scores.shape
    group = N if budget.pattern is None else budget.pattern[1]
    nothing = ~scores.any(axis=1)
    if nothing.any():
        order = np.lexsort((nothing, np.arange(N) // group))
        mask = np.empty((N, M), dtype=bool)
        mask[order] = _keep_first(scores[order], budget)
        return mask
    return _keep_first(scores, budget)


def _keep_first(scores: Array, budget: Budget) -> Mask:
    """Return the mask of the largest scores; ties go to the smaller index."""
    N, M = scores.shape
    if budget.pattern is not None:
        kept, group = budget.pattern
        tiles = scores.reshape(N // group, group, M).swapaxes(0, 1).reshape(group, -1)
        mask = _largest_of_columns(tiles, np.full(tiles.shape[1], kept))
        return mask.reshape(group, N // group, M).swapaxes(0, 1).reshape(N, M)
    if isinstance(budget.keep, np.ndarray):
        return _largest_of_columns(scores, budget.keep)
    if not budget.per_output:
        return _largest_of_columns(scores.reshape(-1, 1), np.array([budget.keep])).reshape(N, M)
    share, left = divmod(budget.keep, M)
    counts = np.full(M, share)
    if left:
        # The odd ones go where the next score is largest.
        following = np.partition(scores, N - 1 - share, axis=0)[N - 1 - share]
        counts[np.argsort(-following, kind="stable")[:left]] += 1
    return _largest_of_columns(scores, counts)


def _largest_of_columns(scores: Array, counts: NDArray[np.int64]) -> Mask:
    """Return the mask of the largest scores of every column, as many as its count.

    Sorting values is several times faster than sorting indices.
    """
    n = len(scores)
    ranks = np.clip(n - counts, 0, n - 1)
    if len(ranks) == 1:
        least = np.array([[_at_rank(scores[:, 0], int(ranks[0]))]])
    else:
        least = np.take_along_axis(np.sort(scores, axis=0), ranks[None], axis=0)
    mask = scores > least
    ties = scores == least
    left = counts - np.count_nonzero(mask, axis=0)
    if np.any(left != np.count_nonzero(ties, axis=0)):
        ties &= np.cumsum(ties, axis=0) <= left
    return mask | ties


def _at_rank(values: Array, rank: int) -> float:
    """Return what ``np.sort(values)[rank]`` is, from a sample and what lies close by.

    A regular sample of some thousands brackets the value, so that a few hundredths of all are left
    to partition (Floyd, Rivest, *Expected Time Bounds for Selection*, CACM 1975).
    """
    if len(values) >= 4 * SAMPLE:
        # An odd stride, for the rows of a layer mostly have even lengths.
        sample = np.sort(values[:: len(values) // SAMPLE | 1])
        place, spread = rank / len(values) * len(sample), 2.0 * np.sqrt(len(sample))
        first, last = int(place - spread), int(place + spread) + 1
        low = sample[first] if first > 0 else -np.inf
        high = sample[last] if last < len(sample) else np.inf
        inside = values[(values >= low) & (values <= high)]
        rank_inside = rank - np.count_nonzero(values < low)
        if 0 <= rank_inside < len(inside):
            return float(np.partition(inside, rank_inside)[rank_inside])
    return float(np.partition(values, rank)[rank])


def parse_pattern(pattern: str | None) -> tuple[int, int] | None:
    """Return (n, m) of "n:m"; None for None.

    Raises
    ------
    SettingsError
        If it is not two positive integers with n < m.
    """
    if pattern is None:
        return None
    parts = pattern.split(":") if isinstance(pattern, str) else []
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise SettingsError(f"pattern must be 'n:m', such as '2:4', but was {pattern!r}")
    kept, group = map(int, parts)
    if not 0 < kept < group:
        raise SettingsError(f"pattern must keep 0 < n < m of m inputs, but was {pattern!r}")
    return kept, group
