"""What the pruners share: settings, budgets, the choice of what stays, the search for a radius.

A pruner starts from trained weights and removes some of them. Its module has a frozen dataclass
``Settings`` (a subclass of :class:`PruningSettings`), and

    prepare(data, settings) -> prune,      prune(budget) -> weights of shape (N, M)

where ``data`` is the :class:`.gram.Gram` of the layer and ``prune`` can be called for any number of
budgets: what does not depend on the budget is computed once. :func:`run` does everything else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..certificate import certify
from ..exceptions import ProblemError, SettingsError
from ..problem import Problem
from ..solution import RawSolution
from ..status import Status
from . import Context, Progress
from .gram import Gram, gram

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
        Fraction of zeros, in [0, 1): ``round(sparsity * N * M)`` weights are removed.
    nnz : int or None
        Weights that stay, instead of `sparsity`. Without any of these and `pattern`, weights are
        removed until the problem's radius is used up.
    pattern : str or None
        "n:m" keeps n of every m consecutive inputs of each output, such as "2:4".
    scope : {"layer", "output"}
        Whether all weights of the layer compete, or each output keeps equally many.
    damping : float
        Pull towards the trained weights, in units of the mean of diag(X'X). Without it a layer
        with fewer samples than inputs is singular.
    intercept : {"solve", "keep"}
        Whether the intercept is solved for again, or b stays as trained. Without effect for
        problems without intercept.
    time_limit : float or None
        Seconds; ends the search for a radius with the best answer so far.
    tol_feas : float
        Set by :func:`nettrim_solver.solve`.
    """

    sparsity: float | None = None
    nnz: int | None = None
    pattern: str | None = None
    scope: str = "layer"
    damping: float = 0.01
    intercept: str = "solve"
    time_limit: float | None = None
    tol_feas: float = 1e-6

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
        if self.time_limit is not None:
            check_number("time_limit", self.time_limit, 0.0, np.inf)


def run(
    problem: Problem,
    settings: PruningSettings,
    context: Context,
    prepare: Callable[[Gram, Any], Prune],
) -> RawSolution:
    """Prune a layer to the budget of the settings, or else until the problem's radius is used up.

    Raises
    ------
    ProblemError
        If there is neither budget nor radius, or if no removal can meet the budget.
    """
    budget = requested_budget(problem, settings)
    data = gram(problem, solve_intercept=problem.intercept and settings.intercept == "solve")
    seconds = {"gram": context.elapsed()}
    tick = time.perf_counter()
    prune = prepare(data, settings)
    seconds["prepare"] = time.perf_counter() - tick
    tick = time.perf_counter()
    status = Status.FEASIBLE
    if budget is not None:
        W = prune(budget)
    else:
        W, status = _until_radius(problem, settings, context, data, prune)
    seconds["prune"] = time.perf_counter() - tick
    return RawSolution(
        W=W, b=data.intercept(W) if problem.intercept else None, theta=None,
        stops=[status] * problem.n_outputs, seconds=seconds,
    )  # fmt: skip


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
            "a pruner needs a budget: set sparsity, nnz or pattern, or give the problem a radius"
        )
    return None


def keep_largest(scores: Array, budget: Budget) -> Mask:
    """Return the mask of the weights that stay: the largest scores that the budget admits.

    Ties go to the smaller index, so the result does not depend on the sorting algorithm.

    Parameters
    ----------
    scores : ndarray of shape (N, M)
    budget : Budget
    """
    N, M = scores.shape
    if budget.pattern is not None:
        kept, group = budget.pattern
        tiles = scores.reshape(N // group, group, M)
        order = np.argsort(-tiles, axis=1, kind="stable")
        mask = np.zeros(tiles.shape, dtype=bool)
        np.put_along_axis(mask, order[:, :kept], True, axis=1)
        return mask.reshape(N, M)
    if isinstance(budget.keep, np.ndarray):
        return _keep_in_columns(scores, budget.keep)
    if not budget.per_output:
        mask = np.zeros(N * M, dtype=bool)
        mask[np.argsort(-scores.ravel(), kind="stable")[: budget.keep]] = True
        return mask.reshape(N, M)
    share, left = divmod(budget.keep, M)
    counts = np.full(M, share)
    if left:
        # The odd ones go where the next score is largest.
        following = -np.sort(-scores, axis=0)[share]
        counts[np.argsort(-following, kind="stable")[:left]] += 1
    return _keep_in_columns(scores, counts)


def _keep_in_columns(scores: Array, counts: NDArray[np.int64]) -> Mask:
    order = np.argsort(-scores, axis=0, kind="stable")
    mask = np.empty(scores.shape, dtype=bool)
    np.put_along_axis(mask, order, np.arange(len(scores))[:, None] < counts, axis=0)
    return mask


def _until_radius(
    problem: Problem, settings: PruningSettings, context: Context, data: Gram, prune: Prune
) -> tuple[Array, Status]:
    """Bisect the number of weights kept: one number for a joint radius, else one per output.

    Every answer is measured on the samples, against the target box itself.
    """
    groups = 1 if problem.joint else problem.n_outputs
    size = problem.n_inputs * problem.n_outputs // groups
    enough, short = np.full(groups, size), np.full(groups, -1)

    def measured(keep: NDArray[np.int64]) -> tuple[Array, Mask]:
        budget = Budget(int(keep[0]), settings.scope == "output") if problem.joint else Budget(keep)
        W = prune(budget)
        b = data.intercept(W) if problem.intercept else None
        return W, certify(problem, W.astype(problem.dtype), b).feasible(settings.tol_feas)

    best, kept = measured(enough)
    if not kept.all():
        raise ProblemError(
            "epsilon must be within reach of the trained weights, but even with all of them "
            f"{int((~kept).sum())} of {groups} radii are exceeded; raise epsilon, or use a solver "
            "that does not start from W, such as 'admm'"
        )
    step = 0
    while np.any(enough - short > 1):
        keep = np.where(enough - short > 1, (enough + short) // 2, enough)
        W, kept = measured(keep)
        improved = kept & (keep < enough)
        if problem.joint:
            best = W if improved[0] else best
        else:
            best[:, improved] = W[:, improved]
        enough = np.where(improved, keep, enough)
        short = np.where(kept, short, keep)
        step += 1
        status = _stopped(problem, settings, context, step)
        if status is not None:
            return best, status
    return best, Status.FEASIBLE


def _stopped(
    problem: Problem, settings: PruningSettings, context: Context, step: int
) -> Status | None:
    if settings.time_limit is not None and context.elapsed() > settings.time_limit:
        return Status.TIME_LIMIT
    if context.callback is not None:
        progress = Progress(step, problem.n_outputs, 0, context.elapsed())
        if context.callback(progress):
            return Status.INTERRUPTED
    return None


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


def check_integer(name: str, value: Any, least: int) -> None:
    """Raise SettingsError unless value is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise SettingsError(f"{name} must be an integer >= {least}, but was {value!r}")


def check_number(name: str, value: Any, low: float, high: float, closed: bool = False) -> None:
    """Raise SettingsError unless value is a number in (low, high), or [low, high) if closed."""
    numeric = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not numeric or not (low < value < high or (closed and value == low)):
        bracket = "[" if closed else "("
        raise SettingsError(f"{name} must lie in {bracket}{low:g}, {high:g}), but was {value!r}")


def check_choice(name: str, value: Any, options: tuple[str, ...]) -> None:
    """Raise SettingsError unless value is one of the options."""
    if not isinstance(value, str) or value not in options:
        raise SettingsError(f"{name} must be one of {list(options)}, but was {value!r}")
