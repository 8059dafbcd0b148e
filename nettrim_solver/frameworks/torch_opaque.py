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
from .torch_values import as_array


def copied(module: Any, cpu: bool = False) -> Any:
    """Return a copy of a module, there or on the CPU.

    Hooks such as those of ``torch.nn.utils.prune`` and ``weight_norm`` leave tensors in a module
    that PyTorch itself does not copy: the values of these are copied.

    Raises
    ------
    UnsupportedError
        If something in it cannot be copied.
    """
    import torch

    known = {
        id(value): value.detach().clone()
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    try:
        found = copy.deepcopy(module, known)
        return found.cpu() if cpu else found
    except Exception as error:
        # Whatever the module holds.
        raise UnsupportedError(
            f"module must be one that copy.deepcopy copies, but it says: {first_line(error)}"
        ) from None


def weights_of(module: Any, prefix: str = "") -> dict[str, tuple[int, int]]:
    """Return the entries and zeros of parameters of two or more axes, by the part that has them.

    Parameters of the module itself have their own names.
    """
    found: dict[str, tuple[int, int]] = {}
    for full, tensor in module.named_parameters():
        if tensor.ndim >= 2:
            owner, _, field = full.rpartition(".")
            name = ".".join(filter(None, [prefix, owner])) or field
            size, zeros = found.get(name, (0, 0))
            found[name] = size + tensor.numel(), zeros + int((tensor == 0).sum())
    return found


class Evaluated:
    """A copy of a part in evaluation, on the CPU, in its own precision.

    Attributes
    ----------
    path : str
        The part's name in its module.
    takes_integers : bool
        Whether it is given whole numbers, int64.
    unpruned : dict of str to (int, int)
        Parameters of two or more axes, by the name of the part that has them: how many entries, and
        how many of them are zero.
    """

    takes_integers = False

    def __init__(self, path: str, part: Any) -> None:
        self.path = path
        self._part = copied(part, cpu=True)
        for inner in self._part.modules():
            # The flag itself: eval() may be overridden.
            inner.training = False
        tensors = [*self._part.parameters(), *self._part.buffers()]
        self._dtype = next((one.dtype for one in tensors if one.is_floating_point()), None)
        self.unpruned = weights_of(self._part, path)

    def __call__(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Return what the part makes of samples, one per row."""
        import torch

        with torch.no_grad():
            dtype = torch.int64 if self.takes_integers else self._dtype
            output = self._part(torch.from_numpy(samples).to(dtype))
        if not isinstance(output, torch.Tensor):
            raise UnsupportedError(f"it must return one tensor, not a {type(output).__name__}")
        return as_array(output)

    def __repr__(self) -> str:
        digest = hashlib.sha256(repr(self._part).encode())
        for name, tensor in self._part.state_dict().items():
            digest.update(name.encode())
            if hasattr(tensor, "numpy"):
                digest.update(np.ascontiguousarray(as_array(tensor)).data)
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
