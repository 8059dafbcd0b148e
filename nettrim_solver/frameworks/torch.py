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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import checks
from ..checks import check_flag, check_integer
from ..exceptions import NettrimError, ProblemError
from ..network import Network
from ..network.gathering import join_inputs, joined_shapes
from ..network.graph import check_network
from .opaque import Opaque
from .round_trip import changed_arrays, check_agreement, probe_samples
from .torch_frozen import Recorded
from .torch_graph import Traced, check_module, evaluating, trace
from .torch_masks import KeptZeros, keep_zeros
from .torch_opaque import copied
from .torch_recorded import recorded
from .torch_values import Inputs, as_array, example_inputs, import_torch, one_input

__all__ = ["KeptZeros", "calibration_batches", "from_torch", "keep_zeros", "to_torch"]


def from_torch(
    module: Any,
    input_shape: Iterable[int] | None = None,
    *,
    example: Any = None,
    opaque: Iterable[str] = (),
    record: bool = False,
) -> Network:
    """Return the network that a module computes in evaluation.

    Parameters
    ----------
    module : torch.nn.Module
        With a forward that ``torch.fx`` can trace, or with `record` any that calls layers. Its
        parameters are float32 or float64, on any device. It is not changed; its mode (training or
        not) comes back.
    input_shape : tuple of int, optional
        The shape of one sample, without the samples: (3, 32, 32). Only a linear module at the
        beginning makes it known.
    example : tensor, or tuple of tensors, optional
        Instead of `input_shape`, a batch of at least two samples as the module takes it: for a
        forward with several arguments one tensor each, in their order; with `record` also for
        integers and booleans, such as token ids. (When traced, what an ``Embedding`` looks up is
        known to be integers.) The module is run on the first few samples: give real ones.
    opaque : iterable of str
        Parts that PyTorch itself is to compute, each as one operation of the network that takes one
        tensor and gives one: those that cannot be traced or are not supported. **Nothing inside
        them is pruned.** Names of submodules, patterns of such (``"blocks.*.norm"``), or names of
        their classes (``"LayerNorm"``).
    record : bool
        Whether the module is run instead of traced, for a forward that ``torch.fx`` cannot follow.
        Linear modules, 1-d and 2-d convolutions that are called once per forward, in one order for
        all samples, become layers; PyTorch itself computes what is between them. Others stay as
        trained: ``network.output.left`` names them with the reason. `input_shape` or `example`
        must be given.

    Returns
    -------
    Network
        Operations have the names of the modules (``"features.0"``), those of functions the names
        that ``torch.fx`` gives them. A 1-d convolution becomes a 2-d one of height 1. With
        `record` the operation before a layer has its name with ``".input"``. A linear layer on
        several vectors per sample is a 1x1 convolution of an image of height 1. Of a module
        with several arguments the network takes one array, see :func:`.join_inputs`.

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
    check_module(module)
    if example is not None and input_shape is not None:
        raise ProblemError("example must not be given beside input_shape, which it tells")
    if record and example is None and input_shape is None:
        raise ProblemError(
            "input_shape must be given where a module is recorded, or an example: a batch as the "
            "module takes it"
        )
    inputs, samples = None, None
    if example is not None:
        inputs, samples = example_inputs(example)
    elif input_shape is not None:
        inputs = one_input(input_shape)
    if record and inputs is not None:
        traced = recorded(module, inputs, samples, opaque)
    else:
        traced = trace(module, None if inputs is None else inputs.shapes, opaque)
    _check_outputs(module, traced.network, traced.inputs, samples)
    return traced.network


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
    check_network(network)
    check_flag("inplace", inplace)
    target = module if inplace else copied(module)
    try:
        traced, samples = _read_again(target, network)
    except NettrimError as error:
        raise ProblemError(
            f"network must be the one of this module, which cannot be read as it was: {error}"
        ) from None
    changes = _new_values(traced, network)
    old = [(tensor, tensor.detach().clone()) for tensor, _ in changes]
    try:
        _write(changes)
        _check_outputs(target, network, traced.inputs, samples)
    except BaseException:
        _write(old)
        raise
    return target


def _read_again(module: Any, network: Network) -> tuple[Traced, NDArray[Any] | None]:
    """Return what a network was read from, in the way it was read, and on which samples."""
    opaque: list[str] = []
    one = None if network.input_shape is None else [network.input_shape]
    for op in network.operations:
        if isinstance(op, Recorded):
            frozen = op.frozen
            return recorded(module, frozen.inputs, frozen.example, frozen.opaque), frozen.example
        if isinstance(op, Opaque):
            opaque.append(op.function.path)
    return trace(module, list(joined_shapes(network.operations)) or one, opaque), None


def calibration_batches(loader: Any, inputs: int | Sequence[int | str] = 1) -> Iterable[Any]:
    """Return the inputs of a data loader as arrays, batch by batch.

    Parameters
    ----------
    loader : iterable of tensor or array, or of (inputs, ...)
        A ``DataLoader``, or anything that gives batches of tensors or arrays: alone, in a tuple or
        list, or in a mapping. Tensors may be on any device, half precision (which becomes float32),
        sparse, or part of a gradient.
    inputs : int, or sequence of int or str
        How many entries of each batch, from the first one on, are inputs of the module; or their
        places or keys, in the order of the module's arguments. Several are joined, see
        :func:`.join_inputs`.

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
    return _Batches(loader, _keys(inputs))


def _keys(inputs: Any) -> list[int | str]:
    """Return the places or keys of a batch's entries that are inputs, or raise."""
    if isinstance(inputs, Integral):
        check_integer("inputs", inputs, 1)
        return list(range(int(inputs)))
    keys = [] if isinstance(inputs, str) or not isinstance(inputs, Iterable) else list(inputs)
    if not keys or not all(isinstance(one, (int, str)) for one in keys):
        raise ProblemError(f"inputs must be a number, or places or keys, but was {inputs!r}")
    return keys


class _Batches:
    """The inputs of a data loader, as often as they are asked for."""

    def __init__(self, loader: Iterable[Any], keys: list[int | str]) -> None:
        self.loader = loader
        self.keys = keys

    def __iter__(self) -> Iterator[NDArray[Any]]:
        batches = [self.loader] if hasattr(self.loader, "shape") else self.loader
        for number, batch in enumerate(batches):
            found = [_entry(batch, key, number) for key in self.keys]
            yield found[0] if len(found) == 1 else join_inputs(*found)


def _entry(batch: Any, key: int | str, number: int) -> NDArray[Any]:
    """Return one input of a batch as an array."""
    entries: Any = (batch,) if hasattr(batch, "shape") else batch
    try:
        found = entries[key]
    except (LookupError, TypeError):
        found = None
    if not hasattr(found, "shape"):
        keys = f"; its keys are {[*batch]}" if isinstance(batch, Mapping) else ""
        raise ProblemError(
            f"batch {number} of the loader must be a tensor, or begin with one, or hold those that "
            f"inputs= names, but was {type(batch).__name__} without a tensor {key!r}{keys}"
        )
    if hasattr(found, "detach"):
        return as_array(found)
    return checks.as_array(f"batch {number} of the loader", found)


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


def _check_outputs(
    module: Any, network: Network, inputs: Inputs, samples: NDArray[Any] | None
) -> None:
    """Raise unless the module computes what the network does, on given or random samples."""
    torch = import_torch()
    X = probe_samples(network) if samples is None else samples
    held = [*module.parameters(), *module.buffers()]
    dtypes = {one.dtype for one in held if one.is_floating_point()}
    with contextlib.ExitStack() as stack:
        # Graphics cards may multiply with fewer digits than their dtype has.
        if {one.device.type for one in held} - {"cpu"}:
            module = copied(module, cpu=True)
        stack.enter_context(evaluating(module))
        stack.enter_context(torch.no_grad())
        dtype = getattr(torch, str(network.dtype))
        tensors = inputs.tensors(X, dtype)
        try:
            outputs = as_array(module(*tensors))
        except Exception as error:
            # Whatever the module's own code raises.
            raise ProblemError(inputs.refused(error)) from None
    check_agreement("module", outputs, network, X, dtypes)
