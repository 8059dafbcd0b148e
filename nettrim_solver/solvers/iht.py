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
from .gram import Gram
from .least_squares import gradient_pruner
from .pruning import Budget, Mask, PruningSettings, keep_largest, run_watched
from .watch import Watch

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


def find_support(unit: Gram, budget: Budget, settings: Settings, step: float, watch: Watch) -> Mask:
    """Iterate from the largest trained weights, and return the support reached.

    Parameters
    ----------
    unit : Gram
        The layer, damped and in coordinates of inputs of norm one.
    budget : Budget
    settings : Settings
    step : float
        ``1 / L``.
    watch : Watch

    Notes
    -----
    ``2 N^2 M`` flops per iteration; seven arrays of the size of W.
    """
    mask = keep_largest(np.abs(unit.W), budget)
    W = np.where(mask, unit.W, 0.0)
    # HW is carried along, so that a point between two iterates costs no product of its own.
    HW = unit.H @ W
    Y, HY, theta, beta = W.copy(), HW.copy(), 1.0, 0.0
    with watch:
        for _ in watch.steps(settings.iterations):
            S = HY
            S -= unit.G
            S *= -step
            S += Y
            mask = keep_largest(np.abs(S), budget)
            S *= mask
            Y = np.subtract(S, W, out=Y)
            moved = max(Y.max(initial=0.0), -Y.min(initial=0.0))
            if moved <= STANDSTILL * max(S.max(initial=0.0), -S.min(initial=0.0)):
                break
            if settings.accelerated:
                following = (1.0 + np.sqrt(1.0 + 4.0 * theta**2)) / 2.0
                beta, theta = (theta - 1.0) / following, following
            W, HW_before = S, HW
            HW = unit.H @ W
            Y *= beta
            Y += W
            HY = np.subtract(HW, HW_before, out=HW_before)
            HY *= beta
            HY += HW
    return mask


prepare = gradient_pruner(find_support)


def solve(problem: Problem, settings: Settings, context: Context) -> RawSolution:
    """Prune the layer; see :func:`nettrim_solver.solve`."""
    return run_watched(problem, settings, context, prepare)
