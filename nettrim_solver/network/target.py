"""The budget of a network: what it is pruned to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import check_integer, check_number
from ..exceptions import SettingsError, SolverError
from .graph import Network

if TYPE_CHECKING:
    from .result import PruningResult

#: A number, or numbers by the name of a layer.
Amount = float | Mapping[str, float] | None

#: The accuracy of a network, larger for better ones.
Accuracy = Callable[[Network], float]

#: Names of the budgets, as messages list them.
BUDGETS = ("tolerance", "sparsity", "nnz", "max_error", "accuracy with min_accuracy")


@dataclass(frozen=True)
class Budget:
    """What a network is pruned to.

    Attributes
    ----------
    name : {"tolerance", "sparsity", "nnz", "max_error", "min_accuracy"}
    value : float, or mapping of str to float
        By layer for the first three.
    accuracy : callable or None
        The user's function, of "min_accuracy".
    """

    name: str
    value: float | Mapping[str, float]
    accuracy: Accuracy | None = None

    @classmethod
    def of(
        cls, *, tolerance: Amount = None, sparsity: Amount = None, nnz: Amount = None,
        max_error: float | None = None, accuracy: Accuracy | None = None,
        min_accuracy: float | None = None,
    ) -> Budget:  # fmt: skip
        """Return the one that is given, checked.

        Raises
        ------
        SettingsError
            Unless there is exactly one, in its range.
        """
        if (accuracy is None) != (min_accuracy is None):
            raise SettingsError(
                "accuracy and min_accuracy belong together, but "
                f"{'accuracy' if accuracy is None else 'min_accuracy'} is missing"
            )
        values = {
            "tolerance": tolerance, "sparsity": sparsity, "nnz": nnz, "max_error": max_error,
            "min_accuracy": min_accuracy,
        }  # fmt: skip
        given = {name: value for name, value in values.items() if value is not None}
        if len(given) > 1:
            raise SettingsError(f"give one of {', '.join(BUDGETS)}, but {[*given]} were given")
        for name, value in given.items():
            if accuracy is not None and not callable(accuracy):
                raise SettingsError(
                    f"accuracy must be a function of a network, but was {accuracy!r}"
                )
            for amount in value.values() if isinstance(value, Mapping) else [value]:
                _check_amount(name, amount)
            return cls(name, value, accuracy)
        return cls("", 0.0)

    @property
    def searched(self) -> bool:
        """Whether the sparsest network is searched for that meets it."""
        return self.name in ("max_error", "min_accuracy")

    @property
    def counts(self) -> bool:
        """Whether it is a number of weights of the network as a whole."""
        return self.name in ("sparsity", "nnz") and not isinstance(self.value, Mapping)

    @property
    def what(self) -> str:
        """What a search measures, in a word."""
        return "error" if self.accuracy is None else "accuracy"

    @property
    def limit(self) -> float:
        """The largest error, or the least accuracy."""
        assert not isinstance(self.value, Mapping)
        return float(self.value)

    def measure(self, result: PruningResult) -> float:
        """Return the error or the accuracy of a pruned network.

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
        """Return whether a value is good enough."""
        return self.merit(value) >= self.merit(self.limit)

    def to_dict(self) -> dict[str, Any]:
        """Return the budget as JSON values."""
        value = dict(self.value) if isinstance(self.value, Mapping) else self.value
        return {self.name: value} if self.name else {}

    def __str__(self) -> str:
        if self.searched:
            side = "at most" if self.accuracy is None else "at least"
            return f"{self.what} of {side} {self.limit:g}"
        if isinstance(self.value, Mapping):
            return f"{self.name} by layer"
        return f"{self.name} {self.value:g}" if self.name else "budgets of the layers"


def _check_amount(name: str, value: Any) -> None:
    if name == "nnz":
        check_integer(name, value, 0)
    elif name == "min_accuracy":
        check_number(name, value, -np.inf, np.inf)
    elif name == "max_error":
        check_number(name, value, 0.0, np.inf)
    else:
        check_number(name, value, 0.0, np.inf if name == "tolerance" else 1.0, closed=True)


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
