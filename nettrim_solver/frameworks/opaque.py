"""Parts of a model that its framework computes in the network, and in which nothing is pruned."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..exceptions import ProblemError
from ..network import Operation
from ..network.gathering import check_whole
from ..network.operations import Shape


@dataclass(frozen=True, eq=False, repr=False)
class Opaque(Operation):
    """A function of samples that the network knows nothing else about.

    What stands behind it has no bound on its error but in a cascade, and it cannot be written to
    a file.

    Parameters
    ----------
    function : callable
        Takes an array with one row per sample, which it may change, and gives one with as many
        rows; its ``path`` is the name of the part in its model, and ``takes_integers`` says whether
        the array holds whole numbers; ``unpruned``, if it has that, are its weights. Its repr tells
        it from others.
    takes, gives : tuple of int
        Shapes of one sample.
    """

    function: Any
    takes: Shape
    gives: Shape

    @property
    def takes_integers(self) -> bool:
        """Whether the function is given whole numbers."""
        return bool(getattr(self.function, "takes_integers", False))

    @property
    def unpruned(self) -> dict[str, tuple[int, int]]:
        """Weights of the part, by name."""
        return dict(getattr(self.function, "unpruned", {}))

    def _output_shape(self, *shapes: Shape) -> Shape:
        if shapes[0] != self.takes:
            raise self.mismatch(str(self.takes), shapes[0])
        return self.gives

    def _compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        (signal,) = inputs
        if self.function.takes_integers:
            check_whole(self.label, signal)
        output = np.asarray(self.function(np.array(signal)))
        if output.shape != (len(signal), *self.gives):
            raise ProblemError(
                f"{self.label} must give {(len(signal), *self.gives)} for {signal.shape}, "
                f"but gave {output.shape}: samples must be kept apart"
            )
        return output.astype(signal.dtype, copy=False)

    def _details(self) -> str:
        return repr(self.function)


def opaque_names(patterns: Any, parts: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the parts that are to be left to the framework.

    Parameters
    ----------
    patterns : iterable of str
        Names of parts, patterns of such (``"blocks.*.norm"``), or names of their classes.
    parts : mapping of str
        All parts by name.

    Raises
    ------
    ProblemError
        If one of them fits nothing.
    """
    try:
        asked = [patterns] if isinstance(patterns, str) else list(patterns)
    except TypeError:
        asked = [patterns]
    found: set[str] = set()
    for pattern in asked:
        fitting = {
            name
            for name, part in parts.items()
            if isinstance(pattern, str)
            and (fnmatch.fnmatchcase(name, pattern) or type(part).__name__ == pattern)
        }
        if not fitting:
            raise ProblemError(
                "opaque must hold names of parts, patterns or classes, but nothing is called "
                f"{pattern!r}: the parts are {[*parts]}"
            )
        found |= fitting
    return frozenset(found)


def first_line(error: Exception) -> str:
    """Return what an error of a framework says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
