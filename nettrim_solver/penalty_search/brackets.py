"""Answers of groups of outputs, apart and side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..solution import Solution
from ..status import Status
from .programs import Array


@dataclass(frozen=True, eq=False)
class Part:
    """The answer of one group of m outputs, or of several.

    ``W`` (n_inputs, m), ``b`` (m,) or None, ``theta`` (n_samples, m), ``multiplier`` and ``rho``
    (m,), ``stops`` the m statuses at that level.
    """

    W: NDArray[Any]
    b: NDArray[Any] | None
    theta: Array | None
    multiplier: Array | None
    rho: Array | None
    stops: tuple[Status, ...]

    @classmethod
    def of(cls, solution: Solution, which: Any) -> Part:
        """Take some outputs out of a solution; all of them without a copy."""
        if len(which) == solution.W.shape[1]:
            which = slice(None)
        arrays: dict[str, Any] = {
            name: None if (values := getattr(solution, name)) is None else values[..., which]
            for name in ARRAYS
        }
        return cls(**arrays, stops=tuple(np.array(solution.statuses, dtype=object)[which]))

    @classmethod
    def join(cls, parts: list[Part]) -> Part:
        """Put the outputs of several groups side by side."""
        if len(parts) == 1:
            return parts[0]
        arrays: dict[str, Any] = {}
        for name in ARRAYS:
            values = [getattr(part, name) for part in parts]
            missing = any(each is None for each in values)
            arrays[name] = None if missing else np.concatenate(values, axis=-1)
        return cls(**arrays, stops=tuple(stop for part in parts for stop in part.stops))


ARRAYS = ("W", "b", "theta", "multiplier", "rho")


class Ends:
    """One end of all brackets: the log level, the count, and the answer of every group."""

    def __init__(self, n_groups: int) -> None:
        self.u = np.full(n_groups, np.nan)
        self.count = np.zeros(n_groups, dtype=np.int64)
        self.parts: list[Part | None] = [None] * n_groups

    def put(self, group: int, u: float, count: int, part: Part | None) -> None:
        """Set the end of one group."""
        self.u[group], self.count[group], self.parts[group] = u, count, part

    def all(self) -> Part:
        """Return the answers of all groups, side by side."""
        return Part.join([part for part in self.parts if part is not None])
