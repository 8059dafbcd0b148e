"""PyTorch: a part of a module as a function of arrays."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..exceptions import UnsupportedError
from ..network.operations import Shape
from .opaque import Opaque, first_line


class Evaluated:
    """A copy of a part in evaluation, on the CPU, in its own precision.

    Attributes
    ----------
    path : str
        The part's name in its module.
    takes_integers : bool
        Whether it is given whole numbers, int64.
    """

    takes_integers = False

    def __init__(self, path: str, part: Any) -> None:
        self.path = path
        self._part = copy.deepcopy(part).cpu()
        for inner in self._part.modules():
            # The flag itself: eval() may be overridden.
            inner.training = False
        tensors = [*self._part.parameters(), *self._part.buffers()]
        self._dtype = next((one.dtype for one in tensors if one.is_floating_point()), None)

    def __call__(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Return what the part makes of samples, one per row."""
        import torch

        with torch.no_grad():
            dtype = torch.int64 if self.takes_integers else self._dtype
            output = self._part(torch.from_numpy(samples).to(dtype))
        if not isinstance(output, torch.Tensor):
            raise UnsupportedError(f"it must return one tensor, not a {type(output).__name__}")
        return np.asarray(output.numpy())

    def __repr__(self) -> str:
        digest = hashlib.sha256(repr(self._part).encode())
        for name, tensor in self._part.state_dict().items():
            digest.update(name.encode())
            if hasattr(tensor, "numpy"):
                digest.update(np.ascontiguousarray(tensor.numpy()).data)
        return f"{type(self._part).__name__} {digest.hexdigest()[:16]}"


def opaque_operation(path: str, part: Any, shape: Shape, dtype: Any) -> Opaque:
    """Return a part as an operation on samples of a shape, found out by trying.

    Raises
    ------
    UnsupportedError
        If the part does not give a tensor with a row per sample.
    """
    function = Evaluated(path, part)
    given: Shape | None = None
    zeros = np.zeros((2, *shape), dtype)
    try:
        given = function(zeros).shape
    except UnsupportedError:
        raise
    except Exception as error:
        # Whatever the part's own code raises; one that looks up numbers takes no others.
        function.takes_integers = True
        with contextlib.suppress(Exception):
            given = function(zeros).shape
        if given is None:
            raise UnsupportedError(
                f"it must take samples of shape {shape}, but says: {first_line(error)}"
            ) from None
    if len(given) < 2 or given[0] != 2:
        raise UnsupportedError(
            f"it must give one row per sample, but gives {given} for 2 of shape {shape}"
        )
    return Opaque(function, shape, tuple(given[1:]))
