"""PyTorch: a pruned module trained further, with its zeros in place."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..checks import check_integer, check_number
from ..exceptions import ProblemError, SettingsError, SolverError
from .torch_graph import check_module, evaluating
from .torch_masks import keep_zeros
from .torch_values import import_torch


def fine_tune(
    module: Any,
    loader: Iterable[Any],
    *,
    epochs: int = 3,
    lr: float = 1e-3,
    loss: Callable[[Any, Any], Any] | None = None,
    optimizer: Callable[..., Any] | None = None,
) -> list[float]:
    """Train a module further, in place, while every zero among its weights stays zero.

    The learning rate falls from epoch to epoch, linearly: ``lr * (1 - epoch / epochs)``.

    Parameters
    ----------
    module : torch.nn.Module
        As :func:`.to_torch` returns it. The zeros are those of :func:`.keep_zeros`; without any,
        the module is trained like every other.
    loader : iterable of (inputs, targets)
        A ``DataLoader``, or anything that gives batches of tensors as often as it is asked; for a
        module with several arguments one tensor each, and the targets last. Batches go to the
        device of the module.
    epochs : int
        How often the loader is read.
    lr : float
        The learning rate of the first epoch.
    loss : callable, optional
        ``loss(outputs, targets)``, the mean over a batch; cross entropy when omitted.
    optimizer : callable, optional
        ``optimizer(parameters, lr=lr)``, a class of ``torch.optim`` or a partial of one; Adam when
        omitted.

    Returns
    -------
    list of float
        The mean training loss of every epoch, taken while the weights changed.

    Raises
    ------
    ProblemError, SettingsError
        Before any step; or for a batch that is no pair (or more) of tensors.
    SolverError
        If the loss is no longer finite. The weights are then those before that batch.
    MissingDependencyError
        Without PyTorch.

    Notes
    -----
    Every part of the module has its own mode (training or not) again afterwards. On the CPU with
    one thread and a loader with a fixed order the result is the same, bit for bit.

    Examples
    --------
    ::

        pruned = to_torch(model, result.network)
        fine_tune(pruned, loader, epochs=4)
        fine_tune(pruned, loader, lr=0.01, optimizer=partial(torch.optim.SGD, momentum=0.9))
    """
    torch = import_torch()
    check_module(module)
    _check(loader, epochs, lr, loss, optimizer)
    parameters = [one for one in module.parameters() if one.requires_grad]
    if not parameters:
        raise ProblemError("module must have parameters that require a gradient, but none does")
    criterion = torch.nn.functional.cross_entropy if loss is None else loss
    steps = (torch.optim.Adam if optimizer is None else optimizer)(parameters, lr=lr)
    rate = torch.optim.lr_scheduler.LambdaLR(steps, lambda epoch: 1 - epoch / epochs)
    sparse = any(one.ndim >= 2 and bool((one == 0).any()) for one in module.parameters())
    losses = []
    # `evaluating` gives every part its own mode back at the end.
    with evaluating(module), keep_zeros(module) if sparse else contextlib.nullcontext():
        module.train()
        for epoch in range(epochs):
            losses.append(_train_once(module, loader, criterion, steps, epoch + 1))
            rate.step()
    return losses


def _check(loader: Any, epochs: Any, lr: Any, loss: Any, optimizer: Any) -> None:
    if isinstance(loader, (str, bytes, Mapping)) or not isinstance(loader, Iterable):
        raise ProblemError(
            f"loader must be an iterable of batches, but was {type(loader).__name__}"
        )
    check_integer("epochs", epochs, 1)
    check_number("lr", lr, 0.0, math.inf)
    for name, value in (("loss", loss), ("optimizer", optimizer)):
        if value is not None and not callable(value):
            raise SettingsError(f"{name} must be callable, but was {value!r}")


def _train_once(module: Any, loader: Iterable[Any], loss: Any, steps: Any, epoch: int) -> float:
    """Read the loader once, with a step for every batch; return the mean loss."""
    device = next(module.parameters()).device
    total, count = 0.0, 0
    for number, batch in enumerate(loader):
        *inputs, targets = (one.to(device) for one in _tensors(batch, number))
        value = loss(module(*inputs), targets)
        size, now = len(targets), float(value.detach())
        if not math.isfinite(now):
            raise SolverError(
                f"the loss is {now} in epoch {epoch}, batch {number}: a smaller lr may help"
            )
        steps.zero_grad()
        value.backward()
        steps.step()
        total, count = total + now * size, count + size
    if not count:
        raise ProblemError(
            f"loader must give batches as often as it is read, but gave none in epoch {epoch}"
        )
    return total / count


def _tensors(batch: Any, number: int) -> Any:
    """Return the inputs and targets of a batch."""
    whole = isinstance(batch, (tuple, list)) and len(batch) >= 2
    if not whole or not all(hasattr(one, "detach") for one in batch):
        raise ProblemError(
            f"batch {number} of the loader must be a pair of tensors, inputs and targets, or "
            f"several inputs and targets, but was {type(batch).__name__}"
        )
    return batch
