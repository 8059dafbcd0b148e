r"""Dynamic network surgery on a layer: weights are removed and spliced back while the others learn.

A dense memory V keeps what every weight would be, and a mask m says which ones count. In
coordinates where all inputs have norm one, with L the largest eigenvalue of H, the gradient of the
masked loss moves all of V, the removed weights included:

.. math:: V \leftarrow V - \tfrac{1}{L} \bigl(H (m \odot V) - G\bigr).

Before each step a weight of the mask is removed where :math:`|v| \le (1 - d) t`, and a removed
one is spliced back where :math:`|v| > (1 + d) t`; in between, nothing changes. The original takes t
from the mean and the deviation of the magnitudes. Here the number of kept weights is given, and t
is the value for which the two rules leave exactly that many: those of largest
:math:`|v| / (1 - d)` in the mask and :math:`|v| / (1 + d)` outside. The mask of least masked loss
is kept, and its weights are the exact least-squares solution.

Notes
-----
A removed weight gathers its share of the residual, :math:`-\frac1L (HW - G)_i`, in every step, and
nothing takes it away. A mask can therefore rest only where the residual is orthogonal to the
removed inputs as well, which a budget forbids: sooner or later removed weights outgrow kept ones
and the masks worsen again. For inputs of zero mean it takes some twenty steps. For nonnegative ones
it takes longer, as their mean is a direction of large L and the steps along all others are short.
With both thresholds equal a good part of the mask then changes places in every step. The distance
d holds that back, but does not stop it; this is why the best mask on the way is kept.

References
----------
Guo, Yao, Chen, *Dynamic Network Surgery for Efficient DNNs*, NIPS 2016, arXiv:1608.04493: the
training-time method of which this is the layer's analogue.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..checks import check_integer, check_number
from ..problem import Problem
from ..solution import RawSolution
from . import Context
from .gram import Array, Gram
from .least_squares import gradient_pruner
from .pruning import Budget, Mask, PruningSettings, keep_largest, run_watched
from .watch import Watch


@dataclass(frozen=True)
class Settings(PruningSettings):
    """Settings of solver "dns": those of every pruner, and three more.

    Attributes
    ----------
    hysteresis : float
        The distance d of both thresholds from their middle, in [0, 1): 0.1 as in the original.
    iterations : int
        At most so many steps.
    patience : int
        Steps without a better mask that end the run.
    """

    hysteresis: float = 0.1
    iterations: int = 300
    patience: int = 50

    def validate(self) -> None:
        """Raise SettingsError for a setting out of range."""
        super().validate()
        check_number("hysteresis", self.hysteresis, 0.0, 1.0, closed=True)
        check_integer("iterations", self.iterations, 1)
        check_integer("patience", self.patience, 1)


def surgery(V: Array, mask: Mask, hysteresis: float, budget: Budget) -> Mask:
    """Return the mask after removing and splicing back.

    There is a t so that weights of the mask with ``|v| < (1 - hysteresis) t`` leave it, others
    with ``|v| > (1 + hysteresis) t`` enter it, and the budget is met exactly. (With a pattern or
    a count per output there is one t for each group.)

    Parameters
    ----------
    V : ndarray of shape (N, M)
        The dense memory.
    mask : ndarray of bool, shape (N, M)
    hysteresis : float
        In [0, 1).
    budget : Budget
    """
    threshold = np.where(mask, 1.0 - hysteresis, 1.0 + hysteresis)
    return keep_largest(np.abs(V) / threshold, budget)


def find_support(unit: Gram, budget: Budget, settings: Settings, step: float, watch: Watch) -> Mask:
    """Remove and splice from the trained weights on, and return the mask of least masked loss.

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
    ``2 N^2 M`` flops per iteration; four arrays of the size of W.
    """
    V, mask = unit.W, keep_largest(np.abs(unit.W), budget)
    best, least, since = mask, np.inf, 0
    with watch:
        for _ in watch.steps(settings.iterations):
            mask = surgery(V, mask, settings.hysteresis, budget)
            W = V * mask
            HW = unit.H @ W
            loss = float(np.vdot(W, HW - 2.0 * unit.G))  # Without the constant ||T||^2.
            if loss < least:
                best, least, since = mask, loss, 0
            elif (since := since + 1) >= settings.patience:
                break
            V = V - step * (HW - unit.G)
    return best


prepare = gradient_pruner(find_support)


def solve(problem: Problem, settings: Settings, context: Context) -> RawSolution:
    """Prune the layer; see :func:`nettrim_solver.solve`."""
    return run_watched(problem, settings, context, prepare)
