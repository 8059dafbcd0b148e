"""What pruning did to the signals of a network, measured on samples in one pass over both networks.

Both networks, of the same operations, are walked side by side batch by batch, so that no more than
the live signals of one batch are in memory, twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bounds import activation_of
from .calibration import Calibration
from .graph import Network
from .layers import Layer


@dataclass
class Errors:
    """Squared Frobenius norms, by the name of a layer, after its activation.

    Attributes
    ----------
    targets : dict
        Of the trained network's signals.
    network : dict
        Of what the pruned network's differ by.
    alone : dict
        The same for each layer alone, on the trained network's inputs.
    output, output_target : float
        Of the network's output.
    """

    targets: dict[str, float] = field(default_factory=dict)
    network: dict[str, float] = field(default_factory=dict)
    alone: dict[str, float] = field(default_factory=dict)
    output: float = 0.0
    output_target: float = 0.0

    def relative(self, which: Mapping[str, float], name: str) -> float:
        """Return an error of a layer relative to its target."""
        return relative(which[name] ** 0.5, self.targets[name] ** 0.5)

    def relative_output(self) -> float:
        """Return the error of the output relative to the output."""
        return relative(self.output**0.5, self.output_target**0.5)


def relative(error: float, scale: float) -> float:
    """Return their ratio; of an exact answer 0 whatever the scale is."""
    if error == 0.0:
        return 0.0
    return error / scale if scale > 0 else float("inf")


def measure(original: Network, pruned: Network, data: Calibration, *, alone: bool) -> Errors:
    """Return the errors of all layers and of the output.

    Parameters
    ----------
    original, pruned : Network
        Of the same operations, with other weights.
    data : Calibration
    alone : bool
        Whether to compute what each layer does on the trained network's inputs, too.

    Notes
    -----
    Two evaluations of the network; three with `alone`.
    """
    names = [layer.name for layer in original.layers]
    targets, network, own = (dict.fromkeys(names, 0.0) for _ in range(3))
    errors = Errors(targets, network, own)
    after = {name: activation_of(original, name) for name in names}
    for batch in data.batches():
        for (op, inputs, output), (other, _, changed) in zip(
            original.signals(batch), pruned.signals(batch), strict=True
        ):
            if isinstance(op, Layer):
                act = after[op.name]
                target = output if act is None else act.apply(output)
                signal = changed if act is None else act.apply(changed)
                errors.targets[op.name] += _square(target)
                errors.network[op.name] += _square(signal, target)
                if alone:
                    answer = other.apply(*inputs)
                    answer = answer if act is None else act.apply(answer)
                    errors.alone[op.name] += _square(answer, target)
            if op is original.output:
                errors.output += _square(changed, output)
                errors.output_target += _square(output)
    return errors


def _square(signal: NDArray[Any], other: NDArray[Any] | None = None) -> float:
    """Return the squared norm of a signal, or of its difference from another, in float64."""
    total = 0.0
    for i, part in enumerate(signal):
        difference = part.astype(np.float64)
        if other is not None:
            difference -= other[i]
        total += float(np.vdot(difference, difference))
    return total
