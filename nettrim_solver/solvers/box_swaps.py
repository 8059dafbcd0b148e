r"""Swaps towards the target box: proposed by a local model, accepted by the true objective.

At the best weights of a support the objective of :mod:`.box_fit` has the value and gradient of

.. math:: \|D_A w - t_A\|^2 + \sum_i p_i (w_i - a_i)^2 ,

A the rows that are matched or outside the box, t their nearest points of the box. On this quadratic
all swaps can be read off a tableau (:mod:`.tableau`). Rows that enter or leave the box on the way
make it a model and no more: so every proposal is refitted to the box itself, and accepted only if
the true objective falls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..exceptions import ProblemError
from .box_fit import BoxFit, RowGram, fit_box
from .gram import Array
from .tableau import REFRESH, Groups, Index, Tableau, tableau

#: Ridge of the model, relative to the mean of its diagonal: few rows outside the box may leave it
#: singular, and it need not be exact.
RIDGE = 1e-10


@dataclass(frozen=True, eq=False)
class BoxTarget:
    """One output's objective on any support.

    Attributes
    ----------
    D : ndarray or sparse array of shape (P, N) or (P, N + 1)
        All inputs, then the ones column when the intercept is solved for.
    box : pair of ndarray of shape (P,)
    pull, anchor : ndarray of shape (N + 1,) or (N,)
    live : ndarray of int
        Inputs that may enter the support.
    n_constant : int
        Columns of ones in D, 0 or 1.
    """

    D: Any
    box: tuple[Array, Array]
    pull: Array
    anchor: Array
    live: Index
    n_constant: int

    def fit(self, kept: Index, start: Array, gram: RowGram | None = None) -> BoxFit:
        """Fit a support; `start` holds its weights (and the intercept)."""
        columns = self.columns(kept)
        D = self.D[:, columns]
        if gram is not None and gram.matrix is not None:
            gram = RowGram(D, gram.rows, gram.matrix.take(columns, 0).take(columns, 1))
        return fit_box(D, self.box, start, self.pull[columns], self.anchor[columns], gram)

    def columns(self, kept: Index) -> Index:
        """Return the columns of D that belong to a support."""
        return np.append(kept, self.D.shape[1] - 1) if self.n_constant else kept

    def value(self, fit: BoxFit, kept: Index) -> float:
        """Return the objective with the pull of all inputs, comparable between supports."""
        outside = np.ones(len(self.pull), dtype=bool)
        outside[self.columns(kept)] = False
        return fit.value + float(self.pull[outside] @ self.anchor[outside] ** 2)


@dataclass(eq=False)
class State:
    """Where the descent of one output stands."""

    kept: Index
    fit: BoxFit
    value: float


def swap_box(
    target: BoxTarget, kept: Index, start: Array, groups: Groups | None, limit: int, trials: int,
    least_gain: float, expired: Callable[[], bool],
) -> tuple[State, int, bool]:  # fmt: skip
    """Swap inputs of one output while its true objective falls by more than `least_gain`.

    First whole series of swaps that the model proposes, shorter ones when they do not hold, and
    in the end single ones: the `trials` best in the model's eyes, whatever it promises of them.

    Parameters
    ----------
    start : ndarray
        Weights of the support (and the intercept).
    limit : int
        Most swaps.
    expired : callable
        Asked before each round; a true answer ends the descent.

    Returns
    -------
    state : State
    made : int
        Swaps made.
    ended : bool
        Whether it ended by itself or at `limit`.
    """
    fit = target.fit(kept, start)
    state, made, series = State(kept, fit, target.value(fit, kept)), 0, REFRESH
    rows = RowGram(target.D)
    while made < limit and state.value > least_gain:
        if expired():
            return state, made, False
        model = _model(target, state, rows, groups)
        if model is None:
            break
        series = min(series, limit - made)
        if series > 1:
            proposed = model.exchange(series, least_gain)
            found = _tried(target, state, rows, model.kept, model.weights) if proposed else state
            if found.value < state.value - least_gain:
                state, made = found, made + proposed
            else:
                series = proposed // 4
            continue
        better = _best_single(target, state, rows, model, trials, least_gain)
        if better is None:
            break
        state, made = better, made + 1
    return state, made, True


def _model(target: BoxTarget, state: State, rows: RowGram, groups: Groups | None) -> Tableau | None:
    """Return the tableau of the local model; None where nothing can be exchanged or gained."""
    others = np.setdiff1d(target.live, state.kept)
    if not (state.fit.rows.any() and len(state.kept) and len(others)):
        return None
    H = rows.of(state.fit.rows)
    N = H.shape[0] - target.n_constant
    columns, w = target.columns(state.kept), state.fit.w
    gradient = target.D.T @ state.fit.excess - target.pull * target.anchor
    gradient[columns] += target.pull[columns] * w
    if target.n_constant:
        sums, count = H[:N, N], H[N, N]
        H = H[:N, :N] - np.outer(sums, sums) / count
    else:
        H = H.copy()
    pull = target.pull[:N] + RIDGE * np.mean(np.diag(H)[target.live])
    H[np.diag_indices(N)] += pull
    k = len(state.kept)
    g = H[:, state.kept] @ w[:k] - gradient[:N]
    try:
        return tableau(H, g, state.kept, others, groups)
    except ProblemError:  # not even the ridge makes it definite
        return None


def _best_single(
    target: BoxTarget, state: State, rows: RowGram, model: Tableau, trials: int, least_gain: float
) -> State | None:
    """Return the first of the model's best single swaps that holds, or None."""
    gains = model.gains()
    for index in np.argsort(-gains, axis=None, kind="stable")[:trials]:
        a, i = divmod(int(index), gains.shape[1])
        if gains[a, i] == -np.inf:
            break
        kept = model.kept.copy()
        kept[a] = model.others[i]
        found = _tried(target, state, rows, kept, model.weights_after(a, i))
        if found.value < state.value - least_gain:
            return found
    return None


def _tried(target: BoxTarget, state: State, rows: RowGram, kept: Index, weights: Array) -> State:
    """Return the state of another support, fitted from the model's weights for it."""
    start = weights
    if target.n_constant:
        # The intercept that the model has eliminated: the mean residual of the rows of A.
        assert rows.matrix is not None
        sums, old = rows.matrix[-1], state.fit.w
        k = len(kept)
        moved = (sums[state.kept] @ old[:k] - sums[kept] @ weights) / sums[-1]
        start = np.append(weights, old[-1] + moved)
    fit = target.fit(kept, start, rows)
    return State(kept, fit, target.value(fit, kept))
