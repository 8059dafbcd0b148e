r"""ALPS: the zeros found by an ADMM on the l0 constraint, the others solved for again.

The weights W and a sparse copy Z of them share the layer loss and the budget,

.. math:: \min_{W, Z} \|T - XW\|^2 + \delta \|W_0 - W\|^2
          \quad \text{subject to } W = Z,\ \|Z\|_0 \le k,

in coordinates where all inputs have norm one. With the multiplier V and a penalty rho that grows
while the support of Z still moves, one iteration is

.. math:: W = (H + \rho I)^{-1} (G - V + \rho Z), \qquad
          Z = T_k(W + V / \rho), \qquad V \leftarrow V + \rho (W - Z),

where :math:`T_k` keeps the k largest magnitudes (or the pattern's). If the sum of 1/rho is finite,
W and Z meet. The weights on the support of :math:`T_k(W)` are then the exact least-squares
solution, in place of the ten conjugate-gradient steps of the paper.

References
----------
Meng, Behdin, Wang, Mazumder, *ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for
Large Language Models*, NeurIPS 2024, arXiv:2406.07831.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sl

from ..checks import check_integer, check_number
from ..problem import Problem
from ..solution import RawSolution
from . import Context
from .gram import Array, Gram
from .least_squares import refit_mask
from .pruning import Budget, Mask, Prune, PruningSettings, keep_largest, run_watched
from .watch import Watch

#: Iterations between two looks at the support, and before a nearly settled one may stop the run.
LOOK, LEAST_ITERATIONS = 3, 30

#: The run stops when fewer than this fraction of the kept weights changed since the last look.
SETTLED = 3e-4

#: Growth of rho where more than the given fraction of the kept weights changed.
GROWTH = ((0.1, 1.3), (0.005, 1.2))
SLOW_GROWTH, BACKING, LARGEST_RHO = 1.1, 5.0, 1e6


@dataclass(frozen=True)
class Settings(PruningSettings):
    """Settings of solver "alps": those of every pruner, and two of the ADMM.

    Attributes
    ----------
    iterations : int
        At most so many; about 40 are usual.
    rho : float
        The penalty at the start, for inputs of norm one. It is divided by 5 as long as the support
        hardly moves from that of the largest trained weights. A smaller one searches longer and
        fits these samples a little better, though not always others.
    """

    iterations: int = 300
    rho: float = 0.1

    def validate(self) -> None:
        """Raise SettingsError for a setting out of range."""
        super().validate()
        check_integer("iterations", self.iterations, 1)
        check_number("rho", self.rho, 0.0, np.inf)


def prepare(data: Gram, settings: Settings, watch: Watch) -> Prune:
    """Return the function that prunes to a budget; H is decomposed once for all of them.

    Notes
    -----
    About ``9 N^3`` flops here, and per iteration ``2 N^2 M`` with another ``N^3`` whenever rho
    changes; four arrays of the size of W. Nothing is carried from one budget to the next, so an
    answer does not depend on which budgets were asked for before.
    """
    damped = data.damped(settings.damping)
    unit, _ = damped.scaled()
    inverse = shifted_inverse(unit.H)

    def prune(budget: Budget) -> Array:
        mask = keep_largest(np.abs(unit.W), budget)
        if mask.any() and not mask.all():
            mask = find_support(unit, mask, budget, settings, inverse, watch)
        return refit_mask(damped, mask)

    return prune


def shifted_inverse(H: Array) -> Callable[[float], Array]:
    """Return the function ``rho -> (H + rho I)^-1``; H is decomposed here, once."""
    values, vectors = sl.eigh(H, driver="evd", check_finite=False)
    values = np.maximum(values, 0.0)

    def inverse(rho: float) -> Array:
        root = vectors / np.sqrt(values + rho)
        product: Array = root @ root.T
        return product

    return inverse


def find_support(
    unit: Gram, start: Mask, budget: Budget, settings: Settings,
    inverse: Callable[[float], Array], watch: Watch,
) -> Mask:  # fmt: skip
    """Run the ADMM from the weights of `unit` on a mask, and return the support that it finds.

    Parameters
    ----------
    unit : Gram
        The layer, damped and scaled; its W is the start.
    start : ndarray of bool, shape (N, M)
        As many weights as the budget admits, but not all and not none.
    budget : Budget
    settings : Settings
        For `iterations` and `rho`.
    inverse : callable
        ``rho -> (H + rho I)^-1``.
    watch : Watch
    """
    W, Z, V = unit.W, np.where(start, unit.W, 0.0), np.zeros_like(unit.W)
    seen, kept = start, np.count_nonzero(start)
    rho, raised = settings.rho, False
    solver = inverse(rho)
    with watch:
        for step in watch.steps(settings.iterations):
            W = solver @ (unit.G - V + rho * Z)
            S = W + V / rho
            mask = keep_largest(np.abs(S), budget)
            Z = np.where(mask, S, 0.0)
            V = rho * (S - Z)  # V + rho (W - Z), written with S = W + V / rho.
            iteration = step + 1
            if iteration % LOOK:
                continue
            changed = np.count_nonzero(mask != seen)
            seen, fraction = mask, changed / kept
            growth = next((g for above, g in GROWTH if fraction > above), None)
            if growth is None and not raised:
                # Too large a rho holds Z where it started: begin again with a smaller one.
                growth = 1.0 / BACKING
                if changed:
                    Z, V, seen = np.where(start, unit.W, 0.0), np.zeros_like(V), start
            elif growth is None:
                growth = SLOW_GROWTH
                if not changed:
                    break
            else:
                raised = True
            if iteration > LEAST_ITERATIONS and fraction < SETTLED:
                break
            rho = min(rho * growth, LARGEST_RHO)
            solver = inverse(rho)
    return keep_largest(np.abs(W), budget)


def solve(problem: Problem, settings: Settings, context: Context) -> RawSolution:
    """Prune the layer; see :func:`nettrim_solver.solve`."""
    return run_watched(problem, settings, context, prepare)
