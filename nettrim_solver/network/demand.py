"""What a pruned network must reach, when the sparsest one that does is searched for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from ..checks import check_number
from ..exceptions import SettingsError, SolverError
from .graph import Network
from .result import PruningResult


@dataclass(frozen=True)
class Demand:
    """A largest error (`accuracy` None), or a floor under an accuracy.

    Attributes
    ----------
    limit : float
    accuracy : callable or None
        The user's function of a network.
    """

    limit: float
    accuracy: Callable[[Network], float] | None = None

    @property
    def what(self) -> str:
        """What is measured, in a word."""
        return "error" if self.accuracy is None else "accuracy"

    def measure(self, result: PruningResult) -> float:
        """Return what a pruned network has.

        Raises
        ------
        SolverError
            As :func:`score`.
        """
        if self.accuracy is not None:
            return score(self.accuracy, result.network)
        return math.inf if result.output_error is None else result.output_error

    def merit(self, value: float) -> float:
        """Return what is larger for better values."""
        return -value if self.accuracy is None else value

    def met(self, value: float) -> bool:
        """Return whether a value is what was demanded."""
        return self.merit(value) >= self.merit(self.limit)

    def __str__(self) -> str:
        side = "at most" if self.accuracy is None else "at least"
        return f"{self.what} of {side} {self.limit:g}"


def demand_of(max_error: Any, accuracy: Any, min_accuracy: Any) -> Demand | None:
    """Check the arguments of a search, and return what they demand; None if they are omitted.

    Raises
    ------
    SettingsError
        If one is missing, or out of its range.
    """
    if (accuracy is None) != (min_accuracy is None):
        raise SettingsError(
            "accuracy and min_accuracy belong together, but "
            f"{'accuracy' if accuracy is None else 'min_accuracy'} is missing"
        )
    if max_error is not None:
        check_number("max_error", max_error, 0.0, np.inf)
        return Demand(float(max_error))
    if accuracy is None:
        return None
    if not callable(accuracy):
        raise SettingsError(f"accuracy must be a function of a network, but was {accuracy!r}")
    check_number("min_accuracy", min_accuracy, -np.inf, np.inf)
    return Demand(float(min_accuracy), accuracy)


def score(accuracy: Callable[[Network], Any], network: Network) -> float:
    """Return what a user's function says of a network.

    Raises
    ------
    SolverError
        If it raises, chained; or if it returns no finite number.
    """
    about = f"for the network with sparsity {network.sparsity:.4f}"
    try:
        value = accuracy(network)
    except Exception as error:
        raise SolverError(f"accuracy raised {type(error).__name__} {about}: {error}") from error
    numeric = isinstance(value, (Real, np.number)) or (
        isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "fiu"
    )
    if not numeric or isinstance(value, (bool, np.complexfloating)) or not np.isfinite(value):
        returned = f"{value}" if numeric else f"{value!r}"
        raise SolverError(f"accuracy must return a finite number, but {about} returned {returned}")
    return float(value)
