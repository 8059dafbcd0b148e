"""Samples of a layer, what the trained layer computes on them, and the errors of an answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..activations import Activation
from ..certificate import forward
from ..exceptions import ProblemError
from ..problem import STORED_AGREEMENT, Problem
from ..problem_checks import check_match, check_range, checked_matrix

Array = NDArray[np.float64]

#: Entries of a float64 array of the pre-activations of some samples (16 MB).
BLOCK_ENTRIES = 2_000_000


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples, and what the trained layer computes on them.

    Attributes
    ----------
    X : ndarray or sparse array of shape (P, N)
    Z, Y : ndarray of shape (P, M) or None
        Before and behind the activation.
    activation : Activation or None
    """

    X: Any
    Z: NDArray[Any] | None
    Y: NDArray[Any] | None
    activation: Activation | None

    def errors(self, W: Any, b: Any) -> tuple[float | None, float | None]:
        """Return the relative errors of a layer before and behind the activation."""
        sums = np.zeros((2, 2))
        for rows in _row_blocks(self.X.shape[0], max(W.shape)):
            predicted = forward(self.X[rows], W, b)
            if self.Z is not None:
                sums[0] += _squares(predicted, self.Z[rows])
            if self.Y is not None and self.activation is not None:
                sums[1] += _squares(self.activation(predicted), self.Y[rows])
        before, behind = (_root_of_ratio(*pair) for pair in sums)
        known = self.Y is not None and self.activation is not None
        return (None if self.Z is None else before), (behind if known else None)


def checked_samples(problem: Problem, X: Any, Y: Any, Z: Any) -> tuple[Samples, Samples | None]:
    """Return the problem's samples and the held-out ones, with what is to be reproduced."""
    before = problem.Z
    if before is None and problem.W is not None:
        before = forward(problem.X, problem.W, problem.b)
    here = before
    if before is not None:
        here = _moved_into_box(problem, before)
    samples = Samples(problem.X, here, problem.Y, problem.activation)
    if X is None:
        given = [name for name, value in (("Y_heldout", Y), ("Z_heldout", Z)) if value is not None]
        if given:
            raise ProblemError(f"X_heldout must be given along with {given}, but was None")
        return samples, None
    X = checked_matrix("X_heldout", X, allow_sparse=True)
    check_match("X_heldout", X.shape[1], "X", problem.n_inputs, "inputs (columns)")
    Y, Z = (
        None if value is None else _checked_target(problem, name, value, X.shape[0])
        for name, value in (("Y_heldout", Y), ("Z_heldout", Z))
    )
    if Y is not None and problem.activation is None:
        raise ProblemError("Y_heldout needs an activation, but the problem is given by a box")
    if Y is not None and problem.activation is not None:
        check_range(Y, problem.activation, "Y_heldout")
    if Z is None and _weights_tell(problem, samples):
        Z = forward(X, problem.W, problem.b)
    if Y is None and Z is None:
        raise ProblemError(
            "Z_heldout or Y_heldout must be given, for the trained weights of the problem do not "
            "reproduce its targets"
        )
    if Y is None and problem.activation is not None:
        assert Z is not None
        Y = problem.activation(Z.astype(np.float64))
    return samples, Samples(X, Z, Y, problem.activation)


def _checked_target(problem: Problem, name: str, value: Any, n_samples: int) -> NDArray[Any]:
    target: NDArray[Any] = checked_matrix(name, value)
    check_match(name, target.shape[0], "X_heldout", n_samples, "samples (rows)")
    check_match(name, target.shape[1], "the problem", problem.n_outputs, "outputs (columns)")
    return target


def _moved_into_box(problem: Problem, Z: NDArray[Any]) -> Array:
    """Return pre-activations moved into the target box: the linear target of the pruners."""
    target = Z.astype(np.float64)
    for start in range(0, problem.n_outputs, 64):
        columns = slice(start, start + 64)
        np.clip(target[:, columns], *problem.box(columns), out=target[:, columns])
    return target


def _weights_tell(problem: Problem, samples: Samples) -> bool:
    """Return whether the trained weights compute what the problem asks for."""
    if problem.W is None:
        return False
    errors = samples.errors(problem.W, problem.b)
    return all(error is None or error <= STORED_AGREEMENT for error in errors)


def _row_blocks(n_samples: int, width: int) -> Iterator[slice]:
    height = max(1, BLOCK_ENTRIES // width)
    for start in range(0, n_samples, height):
        yield slice(start, start + height)


def _squares(found: Array, wanted: NDArray[Any]) -> Array:
    """Return the sums of squares of a difference and of its reference."""
    reference = wanted.astype(np.float64)
    difference = found - reference
    return np.array([np.vdot(difference, difference), np.vdot(reference, reference)])


def _root_of_ratio(squares: float, reference: float) -> float:
    if reference == 0.0:
        return 0.0 if squares == 0.0 else float(np.inf)
    return float(np.sqrt(squares / reference))
