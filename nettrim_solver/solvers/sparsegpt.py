r"""SparseGPT: one sweep over the inputs, each removed weight repaired by the inputs behind it.

With the upper Cholesky factor C of the inverse, :math:`H^{-1} = C'C`, the square of
:math:`C_{ii}` is the i-th diagonal of the inverse over the inputs i, i+1, ... alone. In every block
of inputs the weights of least :math:`(w_{ij} / C_{ii})^2` are removed, the same share in every
block; then, input by input,

.. math:: e = w_{ij} / C_{ii} \text{ where removed, else } 0, \qquad
    w_{kj} \leftarrow w_{kj} - C_{ik}\, e \quad (k \ge i),

at once inside the block and in one product for all inputs behind it. The sum of all :math:`e^2` is
the exact increase of the damped loss. N:M patterns choose their zeros when their group is reached.

Nothing is refitted afterwards (:func:`nettrim_solver.refit` does that), and inputs passed by are
never repaired. The count of zeros is met exactly: the blocks' shares are rounded cumulatively.

Behind pruned layers the trained weights have a gradient, which the formulas take to be zero: the
sweep starts from the least-squares weights there.

References
----------
Frantar, Alistarh, *SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot*,
ICML 2023, arXiv:2301.00774.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sl

from ..checks import check_integer
from ..problem import Problem
from ..solution import RawSolution
from . import Context
from .gram import Array, Gram, cholesky
from .pruning import Budget, Mask, Prune, PruningSettings, keep_largest, run_watched
from .watch import Watch


@dataclass(frozen=True)
class Settings(PruningSettings):
    """Settings of solver "sparsegpt": those of every pruner, and one of its own.

    Attributes
    ----------
    block_size : int
        Inputs that choose their zeros together. With a pattern it is rounded up to whole groups.
    """

    block_size: int = 128

    def validate(self) -> None:
        """Raise SettingsError for a setting out of range."""
        super().validate()
        check_integer("block_size", self.block_size, 1)


def prepare(data: Gram, settings: Settings, watch: Watch) -> Prune:
    """Return the function that sweeps over the inputs for a budget.

    Notes
    -----
    ``N^3`` flops once; ``2 N^2 M`` at most for every budget.
    """
    damped = data.damped(settings.damping)
    start = damped.stationary()
    factor = inverse_factor(damped.H)

    def prune(budget: Budget) -> Array:
        return _sweep(start.copy(), factor, budget, settings.block_size, watch)

    return prune


def inverse_factor(H: Array) -> Array:
    """Return the upper triangular C with ``H^-1 = C'C``, from one Cholesky factor of H.

    Of H with its inputs in reverse order, ``L L'``: then ``H = U U'`` with U = L in reverse order,
    and ``C = U^-1``.

    Parameters
    ----------
    H : ndarray of float64, shape (N, N)

    Raises
    ------
    ProblemError
        If H is singular; the message names the remedy, damping.
    """
    reverse = cholesky(H[::-1, ::-1])
    inverse, _ = sl.lapack.dtrtri(reverse, lower=True)
    return np.ascontiguousarray(np.tril(inverse)[::-1, ::-1])


def _sweep(W: Array, factor: Array, budget: Budget, block_size: int, watch: Watch) -> Array:
    """Remove weights block by block; W changes in place. Half a sweep is no answer."""
    N = len(W)
    width = group = block_size
    if budget.pattern is not None:
        group = budget.pattern[1]
        width = -(-block_size // group) * group
    choose = _selection(W, factor, budget)
    for begin in range(0, N, width):
        if begin:
            watch.check()
        end = min(begin + width, N)
        errors = np.zeros((end - begin, W.shape[1]))
        for first in range(begin, end, group):
            last = min(first + group, end)
            removed = choose(W, first, last)
            for i in range(first, last):
                e = np.where(removed[i - first], W[i] / factor[i, i], 0.0)
                W[i:end] -= np.outer(factor[i, i:end], e)
                errors[i - begin] = e
            W[first:last][removed] = 0.0  # rounding leaves something
        W[end:] -= factor[begin:end, end:].T @ errors
    return W


def _selection(W: Array, factor: Array, budget: Budget) -> Callable[[Array, int, int], Mask]:
    """Return the function that chooses what goes of the inputs from `first` to `last`."""
    N, M = W.shape
    diagonal = np.diag(factor)[:, None]
    removals = N * M - budget.keep
    if budget.per_output and budget.pattern is None:
        removals = N - np.count_nonzero(keep_largest((W / diagonal) ** 2, budget), axis=0)
    elif isinstance(budget.keep, np.ndarray):
        removals = N - budget.keep

    def choose(W: Array, first: int, last: int) -> Mask:
        scores = (W[first:last] / diagonal[first:last]) ** 2
        if budget.pattern is not None:
            return ~keep_largest(scores, budget)
        # Each block's share is what is due by its end less what was due by its begin.
        due = [(2 * removals * end + N) // (2 * N) for end in (first, last)]
        size = last - first if isinstance(removals, np.ndarray) else (last - first) * M
        return ~keep_largest(scores, Budget(size - (due[1] - due[0])))

    return choose


def solve(problem: Problem, settings: Settings, context: Context) -> RawSolution:
    """Prune the layer; see :func:`nettrim_solver.solve`."""
    return run_watched(problem, settings, context, prepare)
