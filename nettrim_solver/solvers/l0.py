r"""The l0 stage of Net-Trim: the fewest weights near the target box, from any start.

The pooled program with a count in place of the l1 norm,

.. math:: \min_{W, b} \tfrac12 \mathrm{dist}(X W + b, K)^2 + \tfrac{\delta}{2} \|W - W_0\|^2
          \quad \text{subject to } \|W\|_0 \le k,

is solved by majorisation. At any point the distance is below that to the box's own nearest point
T, and equal to it there,

.. math:: \mathrm{dist}(X W + b, K) \le \|X W + b - T\|, \qquad T = \mathrm{clip}(X W_t + b_t, K),

so a round that lowers the right-hand side, a least-squares problem with a count, lowers the
distance, too. The support of a round is found by the hard-thresholded ADMM of :mod:`.alps`, started
from the weights of the round before, and its weights are the exact least squares. Rounds
in between keep the support and move the target alone, which costs little.

The start is ``warm_start`` (a convex answer, say), else what the same steps give on the linear
target. Nothing is proved: the problem is not convex, and the answer depends on the start.

References
----------
Meng, Behdin, Wang, Mazumder, *ALPS*, NeurIPS 2024, arXiv:2406.07831, for the ADMM. Hunter, Lange,
*A Tutorial on MM Algorithms*, The American Statistician 58 (2004), for the majorisation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..certificate import adjoint, forward
from ..checks import check_integer
from ..problem import Problem
from ..solution import RawSolution, Solution
from . import Context, kernels
from .alps import Settings as AlpsSettings
from .alps import find_support, shifted_inverse
from .gram import Array, Gram
from .least_squares import refit_mask
from .pruning import Budget, Prune, keep_largest, run
from .watch import Watch

#: Outputs whose best intercept is computed at a time.
BLOCK = 64


@dataclass(frozen=True)
class Settings(AlpsSettings):
    """Settings of solver "l0": those of "alps", and the rounds.

    Attributes
    ----------
    rounds : int
        Moves of the target after the first support; 0 leaves the linear target. More rounds come
        closer to the box, and on few samples further from fresh ones.
    moves : int
        Every so many rounds the support is found anew; the others keep it.
    resolution : float
        As in :class:`.PruningSettings`; here every count tried is a search of its own.
    """

    rounds: int = 8
    moves: int = 4
    resolution: float = 2e-3

    def validate(self) -> None:
        """Raise SettingsError for a setting out of range."""
        super().validate()
        check_integer("rounds", self.rounds, 0)
        check_integer("moves", self.moves, 1)


class BoxDescent:
    """Answers budgets by rounds of least squares towards the nearest point of the box.

    Parameters
    ----------
    problem : Problem
    data : Gram
        Without damping.
    settings : Settings
    start : Solution or None
    watch : Watch
    """

    def __init__(
        self, problem: Problem, data: Gram, settings: Settings, start: Solution | None, watch: Watch
    ) -> None:
        self.problem, self.data, self.settings, self.start = problem, data, settings, start
        self.watch = watch
        self.solved = problem.intercept and settings.intercept == "solve"
        self.damped = data.damped(settings.damping)
        unit, self.norms = self.damped.scaled()
        self.unit_H, self.inverse = unit.H, shifted_inverse(unit.H)

    def __call__(self, budget: Budget) -> Array:
        """Return the best weights of all rounds, by the distance and the pull; shape (N, M)."""
        if self.start is None:
            W = self._supported(self.damped, self.data.W, budget)
        else:
            given = self.start.W.astype(np.float64)
            W = self._supported(self._towards(given), given, budget)
        best, least = W, self._objective(W)
        with self.watch:
            for step in range(1, self.settings.rounds + 1):
                if self.watch.ended():
                    break
                target = self._towards(W)
                if step % self.settings.moves:
                    W = refit_mask(target, W != 0)
                else:
                    W = self._supported(target, W, budget)
                objective = self._objective(W)
                if objective < least:
                    best, least = W, objective
        return best

    def intercept(self, W: Array) -> Array:
        """Return the intercepts of least distance for these weights, or the trained ones."""
        if not self.solved:
            return self.data.target_mean
        b, squares = np.empty(W.shape[1]), np.empty(W.shape[1])
        for first in range(0, len(b), BLOCK):
            part = slice(first, first + BLOCK)
            lower, upper = self.problem.box(part)
            Z = forward(self.problem.X, W[:, part])
            ends = (np.ascontiguousarray((end - Z).T) for end in (lower, upper))
            kernels.best_constants(*ends, b[part], squares[part])
        return b

    def _supported(self, target: Gram, W: Array, budget: Budget) -> Array:
        """Return the least squares on the support that the ADMM finds from some weights."""
        norms = self.norms[:, None]
        unit = replace(target, H=self.unit_H, G=target.G / norms, W=W * norms)
        mask = keep_largest(np.abs(unit.W), budget)
        if mask.any() and not mask.all():
            mask = find_support(unit, mask, budget, self.settings, self.inverse, self.watch)
        return refit_mask(target, mask)

    def _towards(self, W: Array) -> Gram:
        """Return the damped data for the box's nearest point to these weights' outputs."""
        data, problem = self.data, self.problem
        b = self.intercept(W) if problem.intercept else None
        T = forward(problem.X, W, b)
        np.clip(T, *problem.box(), out=T)
        mean = T.mean(axis=0) if self.solved else data.target_mean
        T -= mean
        # The sum of a centred T is zero, so X need not be centred, too.
        G = adjoint(problem.X, T)
        G[data.dead] = 0.0
        return replace(data, G=G, target_mean=mean).damped(self.settings.damping)

    def _objective(self, W: Array) -> float:
        """Return the squared distance, and the pull towards the trained weights."""
        problem = self.problem
        Z = forward(problem.X, W, self.intercept(W) if problem.intercept else None)
        lower, upper = problem.box()
        change = W - self.data.W
        pull = self.damped.H.diagonal() - self.data.H.diagonal()
        return float(np.sum((Z - np.clip(Z, lower, upper)) ** 2) + pull @ np.sum(change**2, axis=1))


def solve(problem: Problem, settings: Settings, context: Context) -> RawSolution:
    """Prune the layer; see :func:`nettrim_solver.solve`."""
    made: list[BoxDescent] = []
    watch = Watch(problem.n_outputs, settings.time_limit, context)

    def prepare(data: Gram, settings: Settings) -> Prune:
        made.append(BoxDescent(problem, data, settings, context.warm_start, watch))
        return made[0]

    return run(
        problem, settings, context, prepare, lambda W: made[0].intercept(W), watch,
        context.warm_start,
    )  # fmt: skip
