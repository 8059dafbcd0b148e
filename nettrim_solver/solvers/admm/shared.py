r"""The multiplier of a joint radius, while the outputs that share it are solved one after another.

The ADMM with the joint projection knows the multiplier within a per cent long before the patterns
of all outputs have settled. From then on the outputs go their own ways at that multiplier, and each
that is solved exactly says more about it: on its pattern its squared distance is
:math:`a_j + \lambda^2 q_j`. What is not known yet are the distances of the others, for which those
of their projections stand in. These are far off where an output has nearly as many weights as
matched rows, which is where ADMM is slowest, so such outputs come first. What an output is solved
at is thus nearly the final multiplier, and little is left for :mod:`.joint`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .block import Block
from .run import Run

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Mask = NDArray[np.bool_]

#: The multiplier of the joint projection is taken over from this iteration on, once it changes by
#: no more than this between checks.
FIRST = 40
STEADY = 0.002

#: Share of its matched rows from which on an output's weights are many; and the largest share that
#: tells how far its distance is off.
FULL = 0.8
MOST_FULL = 0.95

#: Outputs solved before the multiplier is looked at again: so many first, then twice as many.
PORTION = 32

#: Share of the outputs that, once solved, tell by how much the distances of the others are off.
TELLING = 0.5

#: Largest relative change of the multiplier at a time.
CHANGE = 0.05


class Shared:
    """A multiplier that is estimated ever better.

    Parameters
    ----------
    epsilon : float
        The joint radius of the columns.
    columns : ndarray of int
        The outputs that share it.

    Attributes
    ----------
    lambda_ : float
    known : bool
        Whether outputs are solved at it by themselves.
    idle : bool
        Whether there is no force on the ball.
    """

    def __init__(self, epsilon: float, columns: Index) -> None:
        self.epsilon, self.columns = epsilon, columns
        self.lambda_ = np.nan
        self.known = self.idle = False
        self._square, self._share = np.zeros((2, int(columns.max()) + 1))
        self._at = np.nan

    def watch(self, block: Block, columns: Index, iteration: int) -> bool:
        """Look at a block's projections; return whether its outputs go on at the multiplier."""
        if not self.known:
            last, self.lambda_ = self.lambda_, float(block.multiplier[0])
            if iteration < FIRST:
                return False
            self.idle = bool(np.isinf(last) and np.isinf(self.lambda_))
            if np.isinf(self.lambda_) or not abs(self.lambda_ - last) <= STEADY * self.lambda_:
                return False
            self.known = True
            block.fix_multiplier(self.lambda_)
        self._square[columns], self._at = block.ball_distances() ** 2, self.lambda_
        # Without matched rows those outside the box determine the weights.
        rows = np.count_nonzero(block.lower == block.upper, axis=1)
        rows = np.maximum(rows, np.count_nonzero(block.dual, axis=1) // 4)
        self._share[columns] = np.count_nonzero(block.answer, axis=1) / np.maximum(rows, 1)
        return True

    def portions(self, columns: Index, settled: Mask, due: Mask) -> Iterator[Index]:
        """Yield which of some outputs to solve before the multiplier is looked at again.

        Those with many weights come first, settled or not.
        """
        full = self._share[columns] > FULL
        if (full & due).any():
            yield np.flatnonzero(full & due)
        others, start = np.flatnonzero(settled & due & ~full), 0
        while start < len(others):
            stop = max(PORTION, 2 * start)
            yield others[start:stop]
            start = stop

    def update(self, run: Run, block: Block) -> None:
        """Move the multiplier of a block to where all distances would meet the radius.

        Those of the solved outputs follow their tangents. Those of the others are corrected as far
        as the solved ones' were off, and taken to change like theirs.
        """
        answer = run.answer
        solved = answer.proved[self.columns]
        some, others = self.columns[solved], self.columns[~solved]
        squares, slopes = answer.square[some], run.slopes(some)
        if not len(others) or not squares.sum() > 0.0:
            return
        known = squares - answer.lambda_[some] ** 2 * slopes
        moving = min(max(1.0 - float(known.sum() / squares.sum()), 0.0), 1.0)
        rest = self._square[others].copy()
        if len(some) >= TELLING * len(self.columns):
            rest *= self._corrections(some, known + self._at**2 * slopes, others)
        square = self.epsilon**2 - known.sum() - (1.0 - moving) * rest.sum()
        growth = slopes.sum() + moving * rest.sum() / self._at**2
        if growth > 0.0:
            new = float(np.sqrt(max(square, 0.0) / growth)) / self.lambda_
            self.lambda_ *= min(max(new, 1.0 - CHANGE), 1.0 + CHANGE)
            block.fix_multiplier(self.lambda_)

    def _corrections(self, some: Index, squares: Array, others: Index) -> Array:
        """Return the factors of squared distances, a line in 1 / (1 - share of weights)."""

        def basis(columns: Index) -> Array:
            share = np.minimum(self._share[columns], MOST_FULL)
            return np.stack([np.ones(len(columns)), 1.0 / (1.0 - share)], axis=1)

        weight = np.sqrt(self._square[some])
        scaled = np.divide(squares, weight, out=np.zeros_like(weight), where=weight > 0)
        line = np.linalg.lstsq(basis(some) * weight[:, None], scaled, rcond=None)[0]
        factors: Array = np.clip(basis(others) @ line, 0.0, 2.0)
        return factors
