r"""Batch normalisation as part of the weights of the layer before it.

With the factors s and t of the normalisation, ``s (X W + b) + t = X (W s) + (s b + t)``: the column
of every output is scaled, which changes the rounding and nothing else. A network is folded before
it is pruned, so that what is pruned is what will be computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from .layers import Layer
from .operations import Operation
from .scaling import BatchNorm


def fold(layer: Layer, norm: BatchNorm) -> Layer:
    """Return the layer that computes what the layer and the normalisation behind it compute.

    The products are float64, rounded once to the dtype of the layer.
    """
    s, t = norm.factors()
    matrices = [
        matrix * s[layer.columns(group)] for group, matrix in enumerate(layer.matrices())
    ]  # fmt: skip
    b = t if layer.b is None else s * layer.b + t
    return layer.with_weights(layer.from_matrices(matrices), b)


def fold_batch_norm(
    operations: Sequence[Operation], consumers: Mapping[str, Sequence[str]]
) -> list[Operation] | None:
    """Return the operations without the normalisations that can be folded; None if none can.

    A normalisation is folded if it alone takes the output of a layer.
    """
    found = {op.name: op for op in operations}
    replaced: dict[str, str] = {}
    for op in operations:
        if not isinstance(op, BatchNorm):
            continue
        source = replaced.get(op.inputs[0], op.inputs[0])
        layer = found.get(source)
        if isinstance(layer, Layer) and len(consumers[op.inputs[0]]) == 1:
            found[source] = fold(layer, op)
            replaced[op.name] = source
    if not replaced:
        return None
    return [
        replace(found[op.name], inputs=tuple(replaced.get(name, name) for name in op.inputs))
        for op in operations
        if op.name not in replaced
    ]
