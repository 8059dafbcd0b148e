"""PyTorch: modules that ``torch.fx`` can trace, read and written back.

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
from ..network import BatchNorm, Network
from ..network.layers import Layer
from ..network.operations import Shape
from .torch_graph import Traced, check_module, evaluating, import_torch, trace
from .torch_masks import KeptZeros, keep_zeros

__all__ = ["KeptZeros", "calibration_batches", "from_torch", "keep_zeros", "to_torch"]

#: Random samples on which a module is compared with its network, and their largest difference
#: relative to the largest output: the roundings of some dozen layers.
PROBES, AGREEMENT = 4, {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 1e-4}


def from_torch(module: Any, input_shape: Iterable[int] | None = None) -> Network:
    """Return the network that a module computes in evaluation.

    Parameters
    ----------
    module : torch.nn.Module
        With a forward that takes one tensor and that ``torch.fx`` can trace. Its parameters are
        float32 or float64, on any device. It is not changed; its mode (training or not) comes back.
    input_shape : tuple of int, optional
        The shape of one sample, without the samples: (3, 32, 32). Only a linear module at the
        beginning makes it known.

    Returns
    -------
    Network
        Operations have the names of the modules (``"features.0"``), those of functions the names
        that ``torch.fx`` gives them. A 1-d convolution becomes a 2-d one of height 1.

    Raises
    ------
    UnsupportedError
        If the module cannot be traced, or does what a network cannot; the message names the part
        and says what is supported.
    ProblemError
        If shapes do not fit, weights are half precision or not finite, or the module computes
        something else on random samples, as with hooks that change outputs.
    MissingDependencyError
        If PyTorch is not installed.

    Notes
    -----
    Half precision is refused: prune ``module.float()``, and convert what :func:`to_torch` returns.
    """
    network = trace(module, input_shape).network
    _check_outputs(module, network, network.input_shape)
    return network


def to_torch(module: Any, network: Network, *, inplace: bool = False) -> Any:
    r"""Return a module with the weights of a pruned network.

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
    A batch normalisation ``s x + t`` that was folded into the layer before it is taken out of the
    weights again: with the folded W and b,

    ::

        W / s        goes to the layer,
        b - t        to the shift of the normalisation, relative to the layer's own intercept,

    which keeps the zeros, and keeps its running statistics meaningful for further training. Without
    a shift (``affine=False``) the rest goes to the running mean. Where s is zero, so is W.
    """
    check_module(module)
    check_flag("inplace", inplace)
    target = module if inplace else copy.deepcopy(module)
    traced = trace(target, network.input_shape)
    changes = _changes(traced, network)
    old = [(tensor, tensor.detach().clone()) for tensor, _ in changes]
    try:
        _write(changes)
        _check_outputs(target, network, traced.network.input_shape)
    except BaseException:
        _write(old)
        raise
    return target


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

#: A tensor of a module and its new values.
Change = tuple[Any, Any]


def _changes(traced: Traced, network: Network) -> list[Change]:
    """Return what of a module is to be written, or raise if the network is another one."""
    expected = {layer.name: layer.W.shape for layer in traced.network.layers}
    found = {layer.name: layer.W.shape for layer in network.layers}
    if expected != found:
        differing = sorted({*expected.items()} ^ {*found.items()})
        raise ProblemError(
            f"network must have the layers of the module, but they differ in {differing}; smaller "
            "arrays, without dead neurons, need a smaller module"
        )
    kept = {op.name for op in network.operations}
    changes: list[Change] = []
    for trained in traced.network.layers:
        part, layer = traced.modules[trained.name], network.layer(trained.name)
        norm = _folded_norm(traced.network, trained, kept)
        if norm is None:
            changes += _layer_changes(part, layer, trained)
        else:
            changes += _unfolded(part, traced.modules[norm.name], layer, trained, norm)
    for op in traced.network.operations:
        if isinstance(op, BatchNorm) and op.name in kept:
            changes += _norm_changes(traced.modules[op.name], network[op.name], op)
    return changes


def _folded_norm(network: Network, layer: Layer, kept: set[str]) -> BatchNorm | None:
    """Return the normalisation behind a layer that is part of its weights in the other network."""
    users = network.consumers(layer.name)
    if len(users) == 1 and isinstance(users[0], BatchNorm) and users[0].name not in kept:
        return users[0]
    return None


def _layer_changes(part: Any, layer: Layer, trained: Layer) -> list[Change]:
    """Return the new weights and intercept of a linear module or convolution."""
    if part.bias is None and layer.b is not None and np.any(layer.b):
        raise ProblemError(
            f"{layer.label} has an intercept, but the module {trained.name!r} has none to hold it"
        )
    changes = [(part.weight, _weight(part, layer.W))]
    if part.bias is not None:
        b = np.zeros(layer.n_outputs) if layer.b is None else layer.b
        changes.append((part.bias, b))
    return changes


def _unfolded(
    part: Any, norm_part: Any, layer: Layer, trained: Layer, norm: BatchNorm
) -> list[Change]:
    """Return the new weights of a layer, and the new shift of the normalisation behind it."""
    s, t = norm.factors()
    b = np.zeros_like(t) if layer.b is None else layer.b.astype(np.float64)
    divisor = np.where(s == 0, 1.0, s)
    matrices = [
        np.where(s[layer.columns(group)] == 0, 0.0, matrix / divisor[layer.columns(group)])
        for group, matrix in enumerate(layer.matrices())
    ]
    W = layer.from_matrices(matrices)
    changes = [(part.weight, _weight(part, W))]
    own = 0.0 if trained.b is None else trained.b.astype(np.float64)
    if norm_part.bias is not None:
        # s (W' x + own) + t' = s W' x + b
        changes.append((norm_part.bias, norm.shift + (b - t - s * own)))
    else:
        changes.append((norm_part.running_mean, norm.mean - (b - t - s * own) / divisor))
    return changes


def _norm_changes(part: Any, norm: Any, trained: BatchNorm) -> list[Change]:
    """Return the parameters of a normalisation that differ from the trained ones."""
    pairs = {"weight": "scale", "bias": "shift", "running_mean": "mean", "running_var": "variance"}
    return [
        (getattr(part, name), getattr(norm, field))
        for name, field in pairs.items()
        if isinstance(norm, BatchNorm)
        and getattr(part, name) is not None
        and not np.array_equal(getattr(norm, field), getattr(trained, field))
    ]


def _weight(part: Any, W: NDArray[Any]) -> NDArray[Any]:
    """Return weights in the order and shape of the module."""
    return (W.T if W.ndim == 2 else W).reshape(tuple(part.weight.shape))


def _write(changes: list[Change]) -> None:
    """Copy values into tensors, which keep dtype, device and identity."""
    torch = import_torch()
    with torch.no_grad():
        for tensor, values in changes:
            new = torch.tensor(values) if isinstance(values, np.ndarray) else values
            tensor.copy_(new)


def _check_outputs(module: Any, network: Network, shape: Shape | None) -> None:
    """Raise unless the module computes what the network does, on random inputs."""
    torch = import_torch()
    dtype = network.dtype
    assert shape is not None
    X = np.random.default_rng(0).standard_normal((PROBES, *shape)).astype(dtype)
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
                f"module must take samples of shape {shape} in {dtype}, but says: {error}"
            ) from None
    expected = network(X)
    if outputs.shape != expected.shape:
        raise ProblemError(
            f"module must give outputs of shape {expected.shape}, but gave {outputs.shape}"
        )
    difference = float(np.max(np.abs(outputs - expected)))
    scale = float(np.max(np.abs(expected)))
    if not difference <= AGREEMENT[dtype] * scale:
        raise ProblemError(
            f"module must compute what the network does, but on random inputs the outputs differ "
            f"by {difference:.3g} of {scale:.3g}: the network is another one's, or a hook of the "
            "module changes what it computes"
        )
