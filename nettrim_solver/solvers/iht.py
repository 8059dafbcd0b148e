r"""Iterative hard thresholding: gradient steps on the layer loss, cut back to the budget each time.

In coordinates where all inputs have norm one, with L the largest eigenvalue of H,

.. math:: W_{t+1} = T_k\bigl(Y_t - \tfrac{1}{L} (H Y_t - G)\bigr), \qquad
          Y_{t+1} = W_{t+1} + \beta_t (W_{t+1} - W_t),

where :math:`T_k` keeps the k largest magnitudes (or the pattern's). The accelerated iteration
takes Nesterov's :math:`\beta_t = (\theta_t - 1) / \theta_{t+1}` with
:math:`\theta_{t+1} = (1 + \sqrt{1 + 4 \theta_t^2}) / 2`, the plain one :math:`\beta_t = 0`. The
weights on the support found are then the exact least-squares solution.

References
----------
Blumensath, Davies, *Iterative Thresholding for Sparse Approximations*, Journal of Fourier Analysis
and Applications 14, 2008.

Jin, Yuan, Feng, Yan, *Training Skinny Deep Neural Networks with Iterative Hard Thresholding
Methods*, 2016, arXiv:1607.05423: the training-time method of which this is the layer's analogue.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..checks import check_flag, check_integer
from ..problem import Problem
from ..solution import RawSolution
from . import Context
from .gram import Array, Gram
from .least_squares import largest_eigenvalue, refit_mask
from .pruning import Budget, Mask, Prune, PruningSettings, keep_largest, run

#: A step that moves no weight by more than this fraction of the largest one is at a fixed point.
STANDSTILL = 1e-12


@dataclass(frozen=True)
class Settings(PruningSettings):
    """Settings of solver "iht": those of every pruner, and two more.

    Attributes
    ----------
    accelerated : bool
        Whether to take Nesterov's momentum. It reaches a fixed point sooner, but seldom a better.
    iterations : int
        At most so many steps; a fixed point ends the run earlier.
    """

    accelerated: bool = True
    iterations: int = 300

    def validate(self) -> None:
        """Raise SettingsError for a setting out of range."""
        super().validate()
        check_flag("accelerated", self.accelerated)
        check_integer("iterations", self.iterations, 1)


def prepare(data: Gram, settings: Settings) -> Prune:
    """Return the function that prunes to a budget.

    Notes
    -----
    ``2 N^2 M`` flops per iteration; five arrays of the size of W.
    """
    damped = data.damped(settings.damping)
    unit, _ = damped.scaled()
    step = 1.0 / largest_eigenvalue(unit.H)

    def prune(budget: Budget) -> Array:
        return refit_mask(damped, _support(unit, budget, settings, step))

    return prune


def _support(unit: Gram, budget: Budget, settings: Settings, step: float) -> Mask:
    """Iterate from the largest trained weights, and return the support reached."""
    mask = keep_largest(np.abs(unit.W), budget)
    W = np.where(mask, unit.W, 0.0)
    # HW is carried along, so that a point between two iterates costs no product of its own.
    HW = unit.H @ W
    Y, HY, theta = W, HW, 1.0
    for _ in range(settings.iterations):
        S = Y - step * (HY - unit.G)
        mask = keep_largest(np.abs(S), budget)
        W_before, HW_before = W, HW
        W = np.where(mask, S, 0.0)
        move = W - W_before
        if np.max(np.abs(move), initial=0.0) <= STANDSTILL * np.max(np.abs(W), initial=0.0):
            break
        HW = unit.H @ W
        Y, HY = W, HW
        if settings.accelerated:
            following = (1.0 + np.sqrt(1.0 + 4.0 * theta**2)) / 2.0
            beta, theta = (theta - 1.0) / following, following
            Y, HY = W + beta * move, HW + beta * (HW - HW_before)
    return mask


def solve(problem: Problem, settings: Settings, context: Context) -> RawSolution:
    """Prune the layer; see :func:`nettrim_solver.solve`."""
    return run(problem, settings, context, prepare)
