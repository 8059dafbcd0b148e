r"""Sensitivity-driven pruning of a layer: weights that move the output little shrink, then go.

The sensitivity of output :math:`y_j` to weight :math:`w_{ij}` is
:math:`|\partial y_j / \partial w_{ij}|`, which for the linear target of a layer is :math:`|x_i|`.
This solver takes its root mean square over the samples, in units of the most sensitive input,

.. math:: S_i = \|x_i\| / \max_l \|x_l\|.

(The original takes the mean absolute value, by backpropagation from the network's output.)
Gradient steps on the layer loss come with a shrinkage of what is insensitive,

.. math:: W \leftarrow W - \tfrac{1}{L} (H W - G) - \lambda \max(0, 1 - S) W,

where W and H are in coordinates of inputs of norm one, and L is the largest eigenvalue of H. Then
the largest magnitudes of these coordinates stay, and they are solved for again.

Notes
-----
S is fixed, so the steps approach the solution with a pull of strength :math:`\lambda L (1 - S_i)`
towards zero. It is a soft variant of Wanda, whose choice it makes without shrinkage, or for inputs
of equal norms. S depends on the units of every input by its nature, and so do the answers; units
common to all inputs cancel. The pull chooses little better than Wanda, and worse when it is
strong: the solver is here because the method is often compared with.

References
----------
Tartaglione, Lepsoy, Fiandrotti, Francini, *Learning Sparse Neural Networks via Sensitivity-Driven
Regularization*, NeurIPS 2018, arXiv:1810.11764.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..checks import check_integer, check_number
from ..problem import Problem
from ..solution import RawSolution
from . import Context
from .gram import Array, Gram
from .least_squares import largest_eigenvalue, refit_mask
from .pruning import Budget, Prune, PruningSettings, keep_largest, run_watched
from .watch import Watch


@dataclass(frozen=True)
class Settings(PruningSettings):
    """Settings of solver "sensitivity": those of every pruner, and two more.

    Attributes
    ----------
    shrinkage : float
        The factor lambda: how much of an insensitive weight a step takes away, in [0, 1).
    iterations : int
        Gradient steps.
    """

    shrinkage: float = 1e-3
    iterations: int = 100

    def validate(self) -> None:
        """Raise SettingsError for a setting out of range."""
        super().validate()
        check_number("shrinkage", self.shrinkage, 0.0, 1.0, closed=True)
        check_integer("iterations", self.iterations, 1)


def prepare(data: Gram, settings: Settings, watch: Watch) -> Prune:
    """Return the function that prunes to a budget: the steps do not depend on it.

    Notes
    -----
    ``2 N^2 M`` flops per iteration, all of them here.
    """
    damped = data.damped(settings.damping)
    unit, _ = damped.scaled()
    shrinkage = settings.shrinkage * (1.0 - sensitivities(data))[:, None]
    step = 1.0 / largest_eigenvalue(unit.H)
    W = unit.W
    with watch:
        for _ in watch.steps(settings.iterations):
            W = W - step * (unit.H @ W - unit.G) - shrinkage * W

    def prune(budget: Budget) -> Array:
        return refit_mask(damped, keep_largest(np.abs(W), budget))

    return prune


def sensitivities(data: Gram) -> Array:
    """Return the sensitivity of the outputs to the weights of every input, in [0, 1].

    Returns
    -------
    S : ndarray of shape (N,)
        Norms of the inputs, relative to the largest; 0 for dead inputs.
    """
    norms = np.where(data.dead, 0.0, data.raw_norms)
    largest = norms.max(initial=0.0)
    S: Array = norms / largest if largest > 0.0 else norms
    return S


def solve(problem: Problem, settings: Settings, context: Context) -> RawSolution:
    """Prune the layer; see :func:`nettrim_solver.solve`."""
    return run_watched(problem, settings, context, prepare)
