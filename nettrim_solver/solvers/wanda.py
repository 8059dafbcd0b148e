r"""Wanda: the weights of least magnitude times norm of their input are removed, the others stay.

The score of a weight is

.. math:: s_{ij} = |w_{ij}| \, \|x_i\|_2

with the inputs as they are: as published, the mean is not subtracted even where the intercept is
solved for again, when it is the norm about the mean that tells what a removal costs (that is what
"obd" uses). The weights of each output compete among themselves, as published; ``scope="layer"``
lets all weights of the layer compete. Nothing is repaired; :func:`nettrim_solver.refit` does that.

References
----------
Sun, Liu, Bair, Kolter, *A Simple and Effective Pruning Approach for Large Language Models*,
ICLR 2024, arXiv:2306.11695.
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
    """Settings of solver "wanda": those of every pruner; damping has no effect.

    Attributes
    ----------
    scope : {"output", "layer"}
        Whether each output keeps equally many weights, as published, or all of the layer compete.
    """

    scope: str = "output"


def prepare(data: Gram, settings: Settings) -> Prune:
    """Return the function that keeps the weights of largest score that a budget admits."""
    scores = np.abs(data.W) * data.raw_norms[:, None]

    def prune(budget: Budget) -> Array:
        return np.where(keep_largest(scores, budget), data.W, 0.0)

    return prune


def solve(problem: Problem, settings: Settings, context: Context) -> RawSolution:
    """Prune the layer; see :func:`nettrim_solver.solve`."""
    return run(problem, settings, context, prepare)
