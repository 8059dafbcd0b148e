r"""ADMM with a mask: twenty iterations that repair the weights while the mask closes in.

In coordinates where all inputs have norm one, with the penalty rho = 1, start W = W0 and U = 0,

.. math:: Z = m \odot (W + U), \qquad U \leftarrow U + W - Z, \qquad
          W = (H + \rho I)^{-1} (G + \rho (Z - U)),

where the mask m keeps the largest magnitudes of W + U. Its sparsity rises over the first T
iterations as :math:`s_t = s - s (1 - (t + 1) / T)^3` up to the wanted s, then m stays. The answer
is :math:`m \odot (W + U)`, as published: it comes close to the least-squares solution on the mask,
which :func:`nettrim_solver.refit` computes.

References
----------
Boza, *Fast and Effective Weight Update for Pruned Large Language Models*, TMLR 2024,
arXiv:2401.02938.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg as sl

from ..checks import check_choice, check_integer
from ..exceptions import SettingsError
from ..problem import Problem
from ..solution import RawSolution
from . import Context
from .gram import Array, Gram, cholesky
from .pruning import Budget, Prune, PruningSettings, keep_largest, run_watched
from .watch import Watch

RHO = 1.0


@dataclass(frozen=True)
class Settings(PruningSettings):
    """Settings of solver "admm_mask": those of every pruner, and three more.

    Attributes
    ----------
    damping : float
        As for every pruner, but applied to inputs of norm one, where the mean of diag(X'X) is 1:
        every input is pulled in proportion to its own norm, as in the published program.
    mask : {"gradual", "fixed"}
        Whether the mask closes in over the iterations, or is that of the largest scores
        ``|w| ||x||`` from the start. A pattern such as "2:4" has no stages in between: the
        gradual mask is then chosen anew in every scheduled iteration.
    iterations : int
        Solves of the ADMM; the paper's 20 do not converge.
    scheduled : int
        So many of them choose the mask; at most `iterations`. Without effect for a fixed mask.

    Notes
    -----
    The paper raises the sparsity step by step, and so does this solver for either scope. The
    published program does it per output only: for a whole layer it selects with the final sparsity
    from the first iteration on. Its answers therefore differ there.
    """

    damping: float = 0.1
    mask: str = "gradual"
    iterations: int = 20
    scheduled: int = 15

    def validate(self) -> None:
        """Raise SettingsError for a setting out of range."""
        super().validate()
        check_choice("mask", self.mask, ("gradual", "fixed"))
        check_integer("iterations", self.iterations, 1)
        check_integer("scheduled", self.scheduled, 1)
        if self.scheduled > self.iterations and self.mask == "gradual":
            raise SettingsError(
                f"scheduled must be at most iterations={self.iterations}, or the mask would not "
                f"reach the budget, but was {self.scheduled}"
            )


def prepare(data: Gram, settings: Settings, watch: Watch) -> Prune:
    """Return the function that prunes to a budget; the system is inverted once for all of them.

    Notes
    -----
    ``N^3`` flops here and ``2 N^2 M`` per iteration; three arrays of the size of W.
    """
    live = int(np.count_nonzero(~data.dead))
    scaled, norms = data.scaled()
    unit = scaled.damped(settings.damping)
    size = len(unit.H)
    inverse = sl.cho_solve((cholesky(unit.H + RHO * np.eye(size)), True), np.eye(size))
    scheduled = 1 if settings.mask == "fixed" else settings.scheduled

    def prune(budget: Budget) -> Array:
        S, step = unit.W, 0
        with watch:
            for step in watch.steps(settings.iterations):
                if step < scheduled:
                    progress = (step + 1) / scheduled
                    mask = keep_largest(np.abs(S), stage(budget, progress, live, S.shape[1]))
                Z = S * mask
                # U = S - Z: the solve for W is of G + Z - U, and W + U is where the next step is.
                R = 2.0 * Z
                R -= S
                R *= RHO
                R += unit.G
                Z -= S
                following = inverse @ R
                following -= Z
                S = following
        if step + 1 < scheduled or watch.status is not None:
            mask = keep_largest(np.abs(S), budget)
        return S * mask / norms[:, None]

    return prune


def stage(budget: Budget, progress: float, n_inputs: int, n_outputs: int) -> Budget:
    """Return the budget that removes ``1 - (1 - progress)^3`` of what the final one removes.

    Parameters
    ----------
    budget : Budget
        The final one; one with a pattern has no stages.
    progress : float
        In (0, 1].
    n_inputs, n_outputs : int
        Live inputs: the weights of dead ones are zero from the start.
    """
    if budget.pattern is not None:
        return budget
    total = n_inputs if isinstance(budget.keep, np.ndarray) else n_inputs * n_outputs
    removed = np.maximum(total - budget.keep, 0)
    staged = np.rint(removed * (1.0 - progress) ** 3).astype(np.int64)
    return replace(budget, keep=budget.keep + staged)


def solve(problem: Problem, settings: Settings, context: Context) -> RawSolution:
    """Prune the layer; see :func:`nettrim_solver.solve`."""
    return run_watched(problem, settings, context, prepare)
