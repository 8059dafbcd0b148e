"""PyTorch: what the nodes of a traced forward stand for besides operations.

Signals, and the shapes and constants that a forward computes with.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..exceptions import MissingDependencyError, ProblemError, UnsupportedError
from ..network.gathering import check_whole, join_inputs, split
from ..network.operations import Shape
from .opaque import first_line
from .round_trip import PROBES
from .torch_operations import MODULES, READERS, WEIGHTED, array

#: Methods that change the shape of a signal, or take a mean over its axes.
SHAPING = ("view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "mean")


def import_torch() -> Any:
    """Return the package torch, or raise MissingDependencyError."""
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            f"torch is not installed ({error}): python -m pip install torch, or '.[torch]' in a "
            "copy of the repository"
        ) from None
    return torch


class _Batch:
    """The number of samples, which a network does not know."""

    def __repr__(self) -> str:
        return "n_samples"


BATCH = _Batch()


@dataclass(frozen=True)
class Signal:
    """What an operation gives.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Of one sample in the network.
    form : str
        ``"plain"``, as in PyTorch; ``"flat"``, a 1-d signal as an image of height 1; ``"tokens"``,
        vectors at several positions as such an image, the features being its channels.
    positions : tuple of int
        The axes before the features, for tokens.
    """

    name: str
    shape: Shape
    form: Literal["plain", "flat", "tokens"] = "plain"
    positions: Shape = ()

    @property
    def sizes(self) -> Shape:
        """The shape of one sample in PyTorch."""
        if self.form == "tokens":
            return (*self.positions, self.shape[0])
        return (self.shape[0], *self.shape[2:]) if self.form == "flat" else self.shape


@dataclass(frozen=True)
class Inputs:
    """What a module is called with.

    Attributes
    ----------
    shapes : tuple of tuple of int
        Of one sample of each input.
    dtypes : tuple
        Of each input; None is that of the weights.
    """

    shapes: tuple[Shape, ...]
    dtypes: tuple[Any, ...]

    @property
    def shape(self) -> Shape:
        """The shape of one sample of the network's only input."""
        return self.shapes[0] if len(self.shapes) == 1 else (sum(map(math.prod, self.shapes)),)

    def refused(self, error: Exception) -> str:
        """Return the message for what a module says when it is called with these inputs."""
        words = [
            str(shape) if dtype is None else f"{shape} in {dtype}"
            for shape, dtype in zip(self.shapes, self.dtypes, strict=True)
        ]
        remedy = "; example=, a batch as the module takes it, says another dtype"
        alone = self.dtypes == (None,)
        return (
            f"module must take samples of shape {' and '.join(words)}, but says: "
            f"{first_line(error)}{remedy if alone else ''}"
        )

    def tensors(self, X: NDArray[Any], dtype: Any) -> list[Any]:
        """Return the network's samples as tensors for the module; copies, which it may change."""
        torch = import_torch()
        parts = split(X, self.shapes)
        for number, (part, own) in enumerate(zip(parts, self.dtypes, strict=True)):
            if own is not None:
                check_whole(f"input {number} of the module", part)
        return [
            torch.tensor(part, dtype=own or dtype)
            for part, own in zip(parts, self.dtypes, strict=True)
        ]


def one_input(input_shape: Any) -> Inputs:
    """Return the only input of a module, of the dtype of its weights."""
    return Inputs((checked_shape(input_shape),), (None,))


def example_inputs(example: Any) -> tuple[Inputs, NDArray[Any]]:
    """Return what examples say about the inputs of a module, and the first of them as an array.

    Raises
    ------
    ProblemError
        If they are no tensors of at least two samples, or hold something else than finite numbers.
    """
    torch = import_torch()
    given = list(example) if isinstance(example, (tuple, list)) else [example]
    try:
        found = [torch.as_tensor(one) for one in given if hasattr(one, "shape")]
    except Exception as error:
        # Whatever is no array for PyTorch.
        raise ProblemError(f"example must hold tensors, but {first_line(error)}") from None
    sizes = {len(one) if one.ndim else 0 for one in found}
    if len(found) != len(given) or len(sizes) != 1 or min(sizes) < 2:
        was = [tuple(getattr(one, "shape", (type(one).__name__,))) for one in given]
        raise ProblemError(
            "example must be a tensor, or a tuple of tensors, with at least two samples, all with "
            f"as many, but was {was}"
        )
    shapes = tuple(tuple(int(n) for n in one.shape[1:]) for one in found)
    dtypes = tuple(None if one.dtype.is_floating_point else one.dtype for one in found)
    if shapes == ((),):
        raise ProblemError(
            "example must have an axis beside that of the samples where it is the only tensor, but "
            f"has shape {(*sizes,)}"
        )
    if any(one.is_complex() or one.layout is not torch.strided for one in found):
        kinds = [f"{one.dtype} {one.layout}" for one in found]
        raise ProblemError(f"example must hold dense tensors of real numbers, but was {kinds}")
    arrays = [as_array(one[:PROBES]) for one in found]
    if not all(np.isfinite(one).all() for one in arrays):
        raise ProblemError("example must be finite, but holds NaN or infinite entries")
    return Inputs(shapes, dtypes), arrays[0] if len(arrays) == 1 else join_inputs(*arrays)


def as_array(tensor: Any) -> NDArray[Any]:
    """Return a tensor of any kind as an array; half precision becomes float32."""
    try:
        dense = tensor.detach().dequantize() if tensor.is_quantized else tensor.detach().to_dense()
        narrow = dense.is_floating_point() and dense.dtype.itemsize < 4
        return np.asarray((dense.float() if narrow else dense).cpu().resolve_neg().numpy())
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ProblemError(f"a tensor must become an array: {first_line(error)}") from None


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
    functions = ", ".join(sorted([*READERS, *SHAPING, "add", "cat", "div", "mul", "sub"]))
    return f"the modules {modules}; and the functions {functions}"
