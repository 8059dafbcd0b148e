r"""Magnitude pruning: the smallest trained weights are removed, the others stay as they are.

The score of a weight is :math:`|w_{ij}|`. Nothing is repaired;
:func:`nettrim_solver.refit` does that.

References
----------
Han, Pool, Tran, Dally, *Learning both Weights and Connections for Efficient Neural Networks*,
NIPS 2015, arXiv:1506.02626.
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
    """Settings of solver "magnitude": those of every pruner; damping has no effect."""


def prepare(data: Gram, settings: Settings) -> Prune:
    """Return the function that keeps the largest weights a budget admits."""

    def prune(budget: Budget) -> Array:
        return np.where(keep_largest(np.abs(data.W), budget), data.W, 0.0)

    return prune


def solve(problem: Problem, settings: Settings, context: Context) -> RawSolution:
    """Prune the layer; see :func:`nettrim_solver.solve`."""
    return run(problem, settings, context, prepare)
