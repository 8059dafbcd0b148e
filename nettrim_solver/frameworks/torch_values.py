"""PyTorch: what the nodes of a traced forward stand for besides operations.

Signals, and the shapes and constants that a forward computes with.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..exceptions import MissingDependencyError, ProblemError, UnsupportedError
from ..network.operations import Shape
from .torch_operations import MODULES, READERS, WEIGHTED, array

#: Methods that change the shape of a signal, or take a mean over its axes.
SHAPING = ("view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "mean")


def import_torch() -> Any:
    """Return the package torch, or raise MissingDependencyError."""
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            f"torch is not installed ({error}): python -m pip install 'nettrim-solver[torch]'"
        ) from None
    return torch


class _Batch:
    """The number of samples, which a network does not know."""

    def __repr__(self) -> str:
        return "n_samples"


BATCH = _Batch()


@dataclass(frozen=True)
class Signal:
    """What an operation gives: its name, and the shape of one sample.

    A 1-d signal may be an image of height 1, `flat`: PyTorch's shape then lacks that axis.
    """

    name: str
    shape: Shape
    flat: bool = False

    @property
    def sizes(self) -> Shape:
        """The shape of one sample in PyTorch."""
        return (self.shape[0], *self.shape[2:]) if self.flat else self.shape


def computed(target: Any, name: str, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return what is computed from shapes and numbers alone."""
    first = args[0] if args else None
    if isinstance(first, Signal):
        full = (BATCH, *first.sizes)
        if name == "getattr" and args[1] in ("shape", "ndim"):
            return full if args[1] == "shape" else len(full)
        if name == "size":
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            return full if dim is None else full[dim]
        if name == "dim":
            return len(full)
        raise UnsupportedError(f"{name} of a signal is not supported ({args[1:]})")
    if any(value is BATCH for value in args):
        raise UnsupportedError("samples must not be mixed: their number is computed with")
    if callable(target) and not _holds_signal(args):
        return target(*args, **kwargs)
    raise UnsupportedError(f"{name} is not supported; supported are {supported()}")


def _holds_signal(args: list[Any]) -> bool:
    return any(
        isinstance(value, Signal)
        for arg in args
        for value in (arg if isinstance(arg, (tuple, list)) else [arg])
    )


def constant(value: Any) -> Any:
    """Return a tensor of the module as an array."""
    if isinstance(value, import_torch().Tensor):
        # Numbers of any dtype may scale a signal; half precision is no weight here.
        return array(value if value.dtype.is_floating_point else value.double())
    return value


def sample_constant(value: Any, shape: Shape) -> Any:
    """Return a constant without the axis of the samples."""
    c = np.asarray(value, dtype=None if isinstance(value, np.ndarray) else np.float64)
    if c.ndim == len(shape) + 1:
        if c.shape[0] != 1:
            raise UnsupportedError(f"constants must be the same for all samples, but are {c.shape}")
        c = c[0]
    return c


def new_shape(numbers: list[Any], shape: Shape) -> tuple[int, ...]:
    """Return the shape of one sample that a view gives; the samples must stay apart."""
    size = math.prod(shape)
    first, *new = numbers
    if BATCH in new or not all(isinstance(n, int) for n in new):
        raise UnsupportedError(f"samples must stay the first axis, but the shape is {numbers}")
    if first is not BATCH and (first != -1 or -1 in new or math.prod(new) != size):
        raise UnsupportedError(
            f"samples of {size} entries must be kept apart, but the shape is {numbers}"
        )
    return tuple(new) if new != [size] else (-1,)


def checked_shape(input_shape: Any) -> Shape:
    """Return the shape of one sample, or raise."""
    try:
        shape = tuple(operator.index(n) for n in input_shape)
    except TypeError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ProblemError(
            f"input_shape must hold the sizes of one sample, without the samples, but was "
            f"{input_shape!r}"
        )
    return shape


def supported() -> str:
    """Return all that is supported, for messages."""
    modules = ", ".join(sorted([*WEIGHTED, *MODULES], key=str.lower))
    functions = ", ".join(sorted([*READERS, *SHAPING, "add", "sub", "mul", "div"]))
    return f"the modules {modules}; and the functions {functions}"
