r"""How many weights a pruner can remove until a radius is used up.

Along the number k of weights that stay, log(distance) falls nearly linearly in log(k). So the count
at which the distance is the radius is found by the secant method inside a bracket: the ends are a
count that keeps the radius and one that does not. Where the secant closes in from one side only,
the bracket is halved.

References
----------
Dowell, Jarratt, *A Modified Regula Falsi Method*, BIT 11 (1971), for the Illinois rule.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..certificate import certify
from ..exceptions import ProblemError
from ..problem import Problem
from ..solution import Solution
from .watch import Unfinished, Watch

Array = NDArray[np.float64]
Index = NDArray[np.int64]

#: Answers for numbers of weights that stay: one number for a joint radius, else one per output.
PruneTo = Callable[[Index], tuple[Array, Array]]

#: Least distance relative to the radius, for logarithms.
TINY = 1e-12


@dataclass
class Bracket:
    """Of every radius, a count that keeps it and one that does not.

    Attributes
    ----------
    enough, short : ndarray of int64, shape (n_groups,)
        The smallest count known to keep the radius, and the largest below it known not to; -1 for
        none.
    above, below : ndarray of float64, shape (n_groups,)
        log(distance / radius) at both.
    side : ndarray of int64, shape (n_groups,)
        Which end moved last, and how often in a row: positive for `enough`.
    """

    enough: Index
    short: Index
    above: Array
    below: Array
    side: Index

    def open(self, resolution: float) -> NDArray[np.bool_]:
        """Return where the ends are further apart than the resolution allows."""
        return self.enough - self.short > np.maximum(1, resolution * self.enough)

    def proposal(self) -> Index:
        """Return the counts to try next, inside the bracket."""
        high, low = np.log1p(self.enough), np.log1p(np.maximum(self.short, 0))
        known = self.short >= 0
        above = np.where(self.side > 1, 0.5 ** (self.side - 1), 1.0)
        below = np.where(self.side < -1, 0.5 ** (-self.side - 1), 1.0)
        # The Illinois rule: the end that stays is given less weight, here by both ends' histories.
        left, right = -self.above * below, self.below * above
        with np.errstate(invalid="ignore", divide="ignore"):
            share = left / (left + right)
        share = np.where(np.isfinite(share), np.clip(share, 0.0, 1.0), 0.5)
        secant = np.exp(high + share * (low - high)) - 1.0
        half = self.enough // 2
        middle = (self.enough + np.maximum(self.short, -1)) // 2
        stuck = np.abs(self.side) > 3
        count = np.where(known, np.where(stuck, middle, np.round(secant)), half)
        return np.clip(count, self.short + 1, np.maximum(self.enough - 1, 0)).astype(np.int64)

    def update(self, count: Index, value: Array, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Take in log(distance / radius) at counts; return where a smaller one keeps the radius."""
        improved = kept & (count < self.enough)
        failed = ~kept & (count > self.short) & (count < self.enough)
        self.enough = np.where(improved, count, self.enough)
        self.above = np.where(improved, value, self.above)
        self.short = np.where(failed, count, self.short)
        self.below = np.where(failed, value, self.below)
        self.side = np.where(improved, np.maximum(self.side, 0) + 1, self.side)
        self.side = np.where(failed, np.minimum(self.side, 0) - 1, self.side)
        return improved


def prune_until_radius(
    problem: Problem, prune: PruneTo, watch: Watch, tol_feas: float, resolution: float,
    start: Solution | None = None,
) -> Array:  # fmt: skip
    """Return weights of a pruner that keep the problem's radii, as few as its answers show.

    Parameters
    ----------
    problem : Problem
    prune : callable
        Called with counts, shape (n_groups,); returns the weights and the intercepts.
    watch : Watch
        Ends the search with the best answer so far.
    tol_feas : float
    resolution : float
        Relative width of the bracket at the end; with 0 one weight fewer would not do.
    start : Solution, optional
        Weights to fall back on, where they keep the radius.

    Returns
    -------
    ndarray of shape (n_inputs, n_outputs)
        Where the error falls with a removal now and then, a sparser answer may be missed.

    Raises
    ------
    ProblemError
        If neither the start nor the trained weights keep the radius.
    """
    groups = 1 if problem.joint else problem.n_outputs
    size = problem.n_inputs * problem.n_outputs // groups

    def judged(W: Array, b: Array | None) -> tuple[Array, NDArray[np.bool_]]:
        rounded = None if b is None or not problem.intercept else b.astype(problem.dtype)
        found = certify(problem, W.astype(problem.dtype), rounded)
        ratio = np.maximum(found.violations + 1.0, TINY)
        if found.epsilons is not None:  # Below the radius violations are cut off.
            own = np.sqrt(np.sum(found.distances**2)) if problem.joint else found.distances
            with np.errstate(divide="ignore", invalid="ignore"):
                exact = np.atleast_1d(own / found.epsilons)
            ratio = np.where(np.isfinite(exact) & (exact > 0), exact, ratio)
        return np.log(ratio), found.violations <= tol_feas

    best, counts = None, np.full(groups, size)
    if start is not None:
        W = start.W.astype(np.float64)
        value, kept = judged(W, None if start.b is None else start.b.astype(np.float64))
        if kept.all():
            own = np.count_nonzero(W, axis=0)
            best, counts = W, np.atleast_1d(own.sum() if problem.joint else own)
    if best is None:
        W, b = prune(counts)
        value, kept = judged(W, b)
        if not kept.all():
            worst = float(np.exp(np.max(value)) - 1.0)
            raise ProblemError(
                "epsilon must be within reach of the trained weights, but even with all of them "
                f"{int(np.sum(~kept))} of {groups} radii are exceeded, by up to {worst:.3g} of the "
                "radius; raise epsilon, or use a solver that does not start from W, such as 'admm'"
            )
        best = W.copy()
    none = np.full(groups, -1)
    bracket = Bracket(counts.astype(np.int64), none, value, np.zeros(groups), 0 * none)
    with watch, contextlib.suppress(Unfinished):
        while (unknown := bracket.open(resolution)).any():
            tried = np.where(unknown, bracket.proposal(), bracket.enough)
            W, b = prune(tried)
            improved = bracket.update(tried, *judged(W, b))
            if problem.joint:
                best = W.copy() if improved[0] else best
            else:
                best[:, improved] = W[:, improved]
            watch.check()
    return best
