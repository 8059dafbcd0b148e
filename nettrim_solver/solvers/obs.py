r"""Layer-wise optimal brain surgeon (L-OBS): one inverse Gram matrix, one pass over the weights.

Removing weight i of an output from the full least-squares solution raises its loss by

.. math:: s_{ij} = \frac{w_{ij}^2}{[H^{-1}]_{ii}},
    \qquad\text{and moves it by}\quad \delta w_j = -\frac{w_{ij}}{[H^{-1}]_{ii}} H^{-1} e_i .

As published, all saliencies are computed once from the trained weights; the weights are removed in
their order, each with its value at that moment; the inverse is never updated, so removed weights
drift from zero and are set back at the end. Solver ``"exact_obs"`` does without that shortcut.

Behind pruned layers the trained weights have a gradient, which the formulas take to be zero: the
pass starts from the least-squares weights there.

References
----------
Dong, Chen, Pan, *Learning to Prune Deep Neural Networks via Layer-wise Optimal Brain Surgeon*,
NIPS 2017, arXiv:1705.07565. Hassibi, Stork, *Second order derivatives for network pruning: Optimal
Brain Surgeon*, NIPS 1992.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg as sl

from ..problem import Problem
from ..solution import RawSolution
from . import Context
from .gram import Array, Gram, cholesky
from .pruning import Budget, Prune, PruningSettings, keep_largest, run


@dataclass(frozen=True)
class Settings(PruningSettings):
    """Settings of solver "obs": those of every pruner.

    The published method has next to no damping; ``damping=1e-6`` comes close. The one inverse is
    that of all inputs, where later removals should use that of the inputs left; damping makes the
    two more alike, hence the default of all pruners here.
    """


def prepare(data: Gram, settings: Settings) -> Prune:
    """Return the function that removes the weights of least saliency, in one pass.

    Notes
    -----
    ``N^3`` flops and ``N^2`` memory once; ``2 N`` flops per removed weight for every budget.
    """
    from .pruning_kernels import surgery

    damped = data.damped(settings.damping)
    start = damped.stationary()
    inverse = inverse_gram(damped.H)
    scores = start**2 / np.diag(inverse)[:, None]
    order = np.argsort(scores.T, axis=1, kind="stable")

    def prune(budget: Budget) -> Array:
        rows = np.array(start.T, order="C")
        removed = ~keep_largest(scores, budget).T
        surgery(inverse, order, np.ascontiguousarray(removed), rows)
        return rows.T

    return prune


def inverse_gram(H: Array) -> Array:
    """Return the inverse of a Gram matrix, symmetric to the last bit.

    Parameters
    ----------
    H : ndarray of float64, shape (N, N)

    Raises
    ------
    ProblemError
        If H is singular; the message names the remedy, damping.
    """
    lower, _ = sl.lapack.dpotri(cholesky(H), lower=True)
    return np.tril(lower) + np.tril(lower, -1).T


def solve(problem: Problem, settings: Settings, context: Context) -> RawSolution:
    """Prune the layer; see :func:`nettrim_solver.solve`."""
    return run(problem, settings, context, prepare)
