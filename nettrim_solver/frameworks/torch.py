"""PyTorch: modules read, by tracing or while they run, and written back.

Eight lines prune one, and train it further with its zeros in place::

    from nettrim_solver import prune_network
    from nettrim_solver.frameworks import calibration_batches, from_torch, keep_zeros, to_torch

    network = from_torch(model, input_shape=(1, 28, 28))
    result = prune_network(network, calibration_batches(loader), tolerance=0.1)
    pruned = to_torch(model, result.network)
    keep_zeros(pruned)
    fine_tune(pruned)

PyTorch itself is imported when a function is called.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import check_flag
from ..exceptions import ProblemError
from ..network import Network
from ..network.operations import Shape
from .opaque import Opaque
from .round_trip import changed_arrays, check_agreement, probe_samples
from .torch_frozen import Recorded
from .torch_graph import Traced, check_module, evaluating, trace
from .torch_masks import KeptZeros, keep_zeros
from .torch_recorded import recorded
from .torch_values import import_torch

__all__ = ["KeptZeros", "calibration_batches", "from_torch", "keep_zeros", "to_torch"]


def from_torch(
    module: Any,
    input_shape: Iterable[int] | None = None,
    *,
    opaque: Iterable[str] = (),
    record: bool = False,
) -> Network:
    """Return the network that a module computes in evaluation.

    Parameters
    ----------
    module : torch.nn.Module
        With a forward that takes one tensor and that ``torch.fx`` can trace, or with `record` any
        that calls layers. Its parameters are float32 or float64, on any device. It is not changed;
        its mode (training or not) comes back.
    input_shape : tuple of int, optional
        The shape of one sample, without the samples: (3, 32, 32). Only a linear module at the
        beginning makes it known.
    opaque : iterable of str
        Parts that PyTorch itself is to compute, each as one operation of the network that takes one
        tensor and gives one: those that cannot be traced or are not supported. **Nothing inside
        them is pruned.** Names of submodules, patterns of such (``"blocks.*.norm"``), or names of
        their classes (``"LayerNorm"``).
    record : bool
        Whether the module is run instead of traced, for a forward that ``torch.fx`` cannot follow.
        Linear modules, 1-d and 2-d convolutions that are called once per forward, in one order for
        all samples, become layers; PyTorch itself computes what is between them. Others stay as
        trained: ``network.output.left`` names them with the reason. `input_shape` must be given.

    Returns
    -------
    Network
        Operations have the names of the modules (``"features.0"``), those of functions the names
        that ``torch.fx`` gives them. A 1-d convolution becomes a 2-d one of height 1. With
        `record` the operation before a layer has its name with ``".input"``, and a linear layer
        on several vectors per sample is a 1x1 convolution of an image of height 1.

    Raises
    ------
    UnsupportedError
        If the module cannot be traced, or does what a network cannot; the message names the part
        that `opaque` would have to name, and says what is supported.
    ProblemError
        If shapes do not fit, weights are half precision or not finite, or the module computes
        something else on random samples, as with hooks that change outputs.
    MissingDependencyError
        If PyTorch is not installed.

    Notes
    -----
    Half precision is refused: prune ``module.float()``, and convert what :func:`to_torch` returns.

    With `record` nothing is known about activations: a layer's target is its linear output, and
    errors have no proved bound behind a layer but at the layers of a cascade. One evaluation of a
    network of n layers runs the module n + 1 times, up to one layer after the other, and keeps the
    outputs of all layers in memory until its end; batch normalisations are not folded.
    """
    check_flag("record", record)
    read = recorded if record else trace
    network = read(module, input_shape, opaque).network
    _check_outputs(module, network, network.input_shape)
    return network


def to_torch(module: Any, network: Network, *, inplace: bool = False) -> Any:
    """Return a module with the weights of a pruned network.

    Parameters
    ----------
    module : torch.nn.Module
        The one that the network was read from.
    network : Network
        With layers of the same names and shapes, its batch normalisations folded or not.
    inplace : bool
        Write into the module itself instead of a copy. If anything is wrong it stays as it was.

    Returns
    -------
    torch.nn.Module
        With the same keys of its ``state_dict``, dtypes and devices. Zeros of the network are zeros
        of the parameters.

    Raises
    ------
    ProblemError
        If names or shapes differ, or the result does not compute what the network does.

    Notes
    -----
    A batch normalisation that was folded into the layer before it is taken out of the weights
    again, which keeps their zeros: see :func:`.changed_arrays`.
    """
    check_module(module)
    check_flag("inplace", inplace)
    target = module if inplace else copy.deepcopy(module)
    traced = _read_again(target, network)
    changes = _new_values(traced, network)
    old = [(tensor, tensor.detach().clone()) for tensor, _ in changes]
    try:
        _write(changes)
        _check_outputs(target, network, traced.network.input_shape)
    except BaseException:
        _write(old)
        raise
    return target


def _read_again(module: Any, network: Network) -> Traced:
    """Return what a network was read from, in the way it was read."""
    opaque: list[str] = []
    for op in network.operations:
        if isinstance(op, Recorded):
            return recorded(module, network.input_shape, op.frozen.opaque)
        if isinstance(op, Opaque):
            opaque.append(op.function.path)
    return trace(module, network.input_shape, opaque)


def calibration_batches(loader: Any) -> Iterable[NDArray[Any]]:
    """Return the inputs of a data loader as arrays, batch by batch.

    Parameters
    ----------
    loader : iterable of tensor, or of (inputs, ...)
        A ``DataLoader``, or anything that gives batches of tensors; of a tuple or list the first
        entry counts. Half precision becomes float32.

    Returns
    -------
    iterable of ndarray
        What :func:`.prune_network` takes. It reads the loader once for every call; for a run with
        a checkpoint the loader must not shuffle.
    """
    if isinstance(loader, (str, bytes, Mapping)) or not isinstance(loader, Iterable):
        raise ProblemError(
            f"loader must be an iterable of batches, but was {type(loader).__name__}"
        )
    return _Batches(loader)


class _Batches:
    """The inputs of a data loader, as often as they are asked for."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[NDArray[Any]]:
        batches = [self.loader] if hasattr(self.loader, "detach") else self.loader
        for number, batch in enumerate(batches):
            inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            if not hasattr(inputs, "detach"):
                raise ProblemError(
                    f"batch {number} of the loader must be a tensor, or begin with one, but was "
                    f"{type(inputs).__name__}"
                )
            half = str(inputs.dtype) in ("torch.float16", "torch.bfloat16")
            yield np.asarray((inputs.float() if half else inputs).detach().cpu().numpy())


# Writing -----------------------------------------------------------------------------------------

#: Names of a module's tensors, by the fields of operations.
TENSORS = {
    "W": "weight", "b": "bias",
    "scale": "weight", "shift": "bias", "mean": "running_mean", "variance": "running_var",
}  # fmt: skip


def _new_values(traced: Traced, network: Network) -> list[tuple[Any, Any]]:
    """Return the tensors that are to be written, each with its new values."""

    def tensor(name: str, field: str) -> Any:
        return getattr(traced.modules[name], TENSORS[field])

    def holds(name: str, field: str) -> bool:
        return tensor(name, field) is not None

    changes = changed_arrays("module", traced.network, network, holds)
    return [
        (tensor(name, field), _in_order(tensor(name, field), values))
        for name, field, values in changes
    ]


def _in_order(tensor: Any, values: NDArray[Any]) -> NDArray[Any]:
    """Return values in the order and shape of a tensor."""
    return (values.T if values.ndim == 2 else values).reshape(tuple(tensor.shape))


def _write(changes: list[tuple[Any, Any]]) -> None:
    """Copy values into tensors, which keep dtype, device and identity."""
    torch = import_torch()
    with torch.no_grad():
        for tensor, values in changes:
            new = torch.tensor(values) if isinstance(values, np.ndarray) else values
            tensor.copy_(new)


def _check_outputs(module: Any, network: Network, shape: Shape | None) -> None:
    """Raise unless the module computes what the network does, on random inputs."""
    torch = import_torch()
    assert shape is not None
    X = probe_samples(network, shape)
    tensors = [*module.parameters(), *module.buffers()]
    with contextlib.ExitStack() as stack:
        # Graphics cards may multiply with fewer digits than their dtype has.
        if any(tensor.device.type != "cpu" for tensor in tensors):
            module = copy.deepcopy(module).cpu()
        stack.enter_context(evaluating(module))
        stack.enter_context(torch.no_grad())
        try:
            outputs = module(torch.from_numpy(X)).numpy()
        except (RuntimeError, ValueError, TypeError) as error:
            raise ProblemError(
                f"module must take samples of shape {X.shape[1:]} in {X.dtype}, but says: {error}"
            ) from None
    check_agreement("module", outputs, network, X)
