"""PyTorch: zeros that stay zero while a pruned module is trained further."""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Any, Self

from ..exceptions import ProblemError
from .torch_graph import check_module
from .torch_values import import_torch


class KeptZeros:
    """The hooks of :func:`keep_zeros`; also a context manager that removes them at its end.

    Attributes
    ----------
    zeros : dict of str to int
        How many zeros are kept, by the name of the parameter.
    """

    def __init__(self, parameters: dict[str, Any]) -> None:
        import_torch()
        from torch.optim.optimizer import register_optimizer_step_post_hook as register

        self.zeros = {name: int((weights == 0).sum()) for name, weights in parameters.items()}
        # Weak, so that a module that is no longer used does not stay in memory for its hooks.
        self._masks = [(weakref.ref(one), (one == 0).detach()) for one in parameters.values()]
        self._handles = [
            one.register_hook(_masked_gradient(mask))
            for one, (_, mask) in zip(parameters.values(), self._masks, strict=True)
            if one.requires_grad
        ]
        # Momentum from before the pruning moves weights whose gradient is zero.
        self._handles.append(register(lambda *_: self.apply()))

    def apply(self) -> None:
        """Set the weights to zero that are to be zero; done after every step of an optimizer."""
        torch = import_torch()
        with torch.no_grad():
            self._masks = [pair for pair in self._masks if pair[0]() is not None]
            for reference, mask in self._masks:
                weights: Any = reference()
                weights.masked_fill_(mask.to(weights.device), 0)

    def remove(self) -> None:
        """Let the zeros go: training may change them again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"KeptZeros({sum(self.zeros.values())} zeros in {len(self.zeros)} parameters)"


def keep_zeros(module: Any) -> KeptZeros:
    """Keep the zeros among a module's weights while it is trained.

    Their gradients are zeroed, and after each step of any ``torch.optim`` optimizer they are
    set to zero again, whatever momentum says.

    Parameters
    ----------
    module : torch.nn.Module
        Every parameter of two or more axes in it counts, as those of linear layers and
        convolutions; intercepts and the parameters of normalisations do not.

    Returns
    -------
    KeptZeros
        Its ``remove()`` ends it. The hooks belong to these parameters: a copy of the module needs
        a call of its own, and the ``state_dict`` knows nothing of them.

    Raises
    ------
    ProblemError
        If no weight is zero.
    """
    check_module(module)
    parameters = {
        name: weights
        for name, weights in module.named_parameters()
        if weights.ndim >= 2 and bool((weights == 0).any())
    }
    if not parameters:
        raise ProblemError("module must have weights that are zero, but none of them is")
    return KeptZeros(parameters)


def _masked_gradient(mask: Any) -> Any:
    """Return the hook that zeroes the gradient where the mask is true; NaN there included."""
    return lambda gradient: gradient.masked_fill(mask.to(gradient.device), 0)
