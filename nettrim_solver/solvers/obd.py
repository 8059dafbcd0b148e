r"""Optimal brain damage: the weights whose removal raises the loss least, by its diagonal Hessian.

With the Hessian :math:`H = X'X` of the layer loss (about the means, when the intercept is solved
for) reduced to its diagonal, removing a weight alone raises half the loss by

.. math:: s_{ij} = \tfrac{1}{2} H_{ii} w_{ij}^2 .

All weights of the layer compete, and the others stay as they are: a diagonal Hessian asks for no
repair. :func:`nettrim_solver.refit` repairs.

The formula assumes a zero gradient, which trained weights have on their own layer's data. Behind
pruned layers they have one; there the least-squares weights, pulled towards the trained ones by
the damping, are pruned in their place.

References
----------
LeCun, Denker, Solla, *Optimal Brain Damage*, NIPS 1989.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..problem import Problem
from ..solution import RawSolution
from . import Context
from .gram import Array, Gram
from .pruning import Budget, Prune, PruningSettings, keep_largest, run


@dataclass(frozen=True)
class Settings(PruningSettings):
    """Settings of solver "obd": those of every pruner.

    Damping has an effect only where the trained weights have a gradient.
    """


def prepare(data: Gram, settings: Settings) -> Prune:
    """Return the function that keeps the weights of largest saliency that a budget admits."""
    W = data.damped(settings.damping).stationary()
    saliency = 0.5 * np.diag(data.H)[:, None] * W**2

    def prune(budget: Budget) -> Array:
        return np.where(keep_largest(saliency, budget), W, 0.0)

    return prune


def solve(problem: Problem, settings: Settings, context: Context) -> RawSolution:
    """Prune the layer; see :func:`nettrim_solver.solve`."""
    return run(problem, settings, context, prepare)
