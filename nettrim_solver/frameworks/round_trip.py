r"""What readers and writers of models share: probes, and the arrays that a pruned network changes.

A network is compared with its model on random samples whenever it is read or written, so that a
part that computes something else than its class says is found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..exceptions import ProblemError
from ..network import (
    Affine,
    BatchNorm,
    Concatenate,
    Dropout,
    Embedding,
    Flatten,
    Network,
    Part,
    Reshape,
    Transpose,
)
from ..network.layers import Layer
from ..network.operations import Shape
from ..network.wiring import INPUT
from .opaque import Opaque

#: Random samples on which a model is compared with its network.
PROBES = 4

#: Their largest difference relative to the largest output, by the least precise dtype that the
#: model computes in: the roundings of some dozen layers, or of a few in half precision.
AGREEMENT = {"float64": 1e-10, "float32": 1e-4, "float16": 2e-2, "bfloat16": 0.1}


#: What is said of a model whose outputs cannot be compared with anything.
NOT_FINITE = (
    "for some of the samples that it is compared on (of both signs, positive, between 0 and 1, "
    "above 1), but gives NaN or infinite ones for all"
)


class Change(NamedTuple):
    """New values for one array of a model.

    Attributes
    ----------
    name : str
        Of the layer or batch normalisation.
    field : str
        ``"W"`` or ``"b"`` of a layer; ``"scale"``, ``"shift"``, ``"mean"`` or ``"variance"``.
    values : ndarray
        In the network's order of axes.
    """

    name: str
    field: str
    values: NDArray[Any]


#: Whether a model has an array for this field of the operation of this name.
Holds = Callable[[str, str], bool]


def agreement(dtypes: Iterable[Any]) -> float:
    """Return the largest difference of two results that were computed in these dtypes."""
    return max(AGREEMENT.get(str(one).removeprefix("torch."), 0.0) for one in dtypes)


def random_samples(shape: Shape) -> Iterator[NDArray[np.float64]]:
    """Yield random samples of several kinds, for models that take no numbers of some of them.

    They are of both signs, positive, between 0 and 1, above 1: what logarithms and roots take.
    """
    normal = np.random.default_rng(0).standard_normal((PROBES, *shape))
    yield normal.copy()
    yield np.abs(normal)
    yield 1 / (1 + np.exp(-normal))
    yield 1 + np.abs(normal)


def probe_samples(network: Network, dtypes: Mapping[int, str] | None = None) -> NDArray[Any]:
    """Return random samples for a network, in the dtype of its weights.

    What an operation looks up in a table is whole numbers. If possible, the outputs are finite.

    Parameters
    ----------
    network : Network
    dtypes : mapping of int to str, optional
        Of the model's inputs that take no float32 or float64, by their place. The samples are
        numbers that such an input has.
    """
    assert network.input_shape is not None
    first = None
    for drawn in random_samples(network.input_shape):
        rng = np.random.default_rng(1)
        for place, (name, columns) in _inputs(network).items():
            part, n_rows = drawn[:, columns], table_rows(network, name)
            if n_rows:
                part[:] = rng.integers(0, n_rows, part.shape)
                part[0].flat[0] = 0  # What models like to treat as padding.
            elif dtypes and place in dtypes:
                part[:] = _of_dtype(part, dtypes[place], rng)
        samples = drawn.astype(network.dtype)
        first = samples if first is None else first
        with np.errstate(all="ignore"):
            if np.isfinite(network(samples)).all():
                return samples
    assert first is not None
    return first


def _of_dtype(part: NDArray[Any], dtype: str, rng: np.random.Generator) -> NDArray[Any]:
    """Return numbers that an input of a dtype takes: small whole ones, or rounded ones."""
    if dtype == "bool":
        return rng.integers(0, 2, part.shape)
    if "int" in dtype:
        return rng.integers(0, 128, part.shape)
    # bfloat16 has 8 binary digits, float16 has 11.
    mantissa, exponent = np.frexp(part)
    digits = 8 if dtype == "bfloat16" else 11
    return np.ldexp(np.round(np.ldexp(mantissa, digits)), exponent - digits)


def _inputs(network: Network) -> dict[int, tuple[str, slice]]:
    """Return the names of the network's inputs, and where they stand in its rows, by place."""
    parts = {op.index: (op.name, op.columns) for op in network.operations if isinstance(op, Part)}
    return parts or {0: (INPUT, slice(None))}


def table_rows(network: Network, name: str) -> int:
    """Return how many rows the smallest table has in which a signal is looked up; 0 for none."""
    found = []
    for op in network.consumers(name):
        if isinstance(op, Embedding):
            found.append(len(op.table))
        elif isinstance(op, Opaque) and op.function.takes_integers:
            found.append(2)
        elif isinstance(op, (Concatenate, Dropout, Flatten, Reshape, Transpose)):
            found.append(table_rows(network, op.name))
        elif isinstance(op, Affine) and np.all(op.scale == 1) and np.min(op.shift) >= 0:
            # Each column has rows of its own in one table.
            found.append(max(0, table_rows(network, op.name) - int(np.max(op.shift))))
    return min(filter(None, found), default=0)


def difference(a: NDArray[Any], b: NDArray[Any]) -> tuple[float, float]:
    """Return the largest difference of two arrays, and the largest finite entry of the second.

    NaN and infinities at the same places are the same, elsewhere infinitely different.
    """
    if a.shape != b.shape:
        return math.inf, 0.0
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return math.inf, 0.0
    scale = float(np.max(np.abs(b[finite]), initial=0.0))
    return float(np.max(np.abs(a[finite] - b[finite]), initial=0.0)), scale


def check_agreement(
    what: str,
    outputs: NDArray[Any],
    network: Network,
    samples: NDArray[Any],
    dtypes: Iterable[Any] = (),
) -> None:
    """Raise unless a model's outputs are the network's.

    Parameters
    ----------
    what : str
        What is compared, for messages: ``"module"``.
    outputs : ndarray
        Of the model, for the samples.
    network : Network
    samples : ndarray
        See :func:`probe_samples`.
    dtypes : iterable, optional
        That the model computes in, beside the network's own.
    """
    with np.errstate(all="ignore"):
        expected = network(samples)
    if outputs.shape != expected.shape:
        raise ProblemError(
            f"{what} must give outputs of shape {expected.shape}, but gave {outputs.shape}"
        )
    if not (np.isfinite(expected) | np.isfinite(outputs)).any():
        raise ProblemError(f"{what} must give finite outputs {NOT_FINITE}")
    apart, scale = difference(outputs, expected)
    if not apart <= agreement([network.dtype, *dtypes]) * scale:
        raise ProblemError(
            f"{what} must compute what the network does, but on the same inputs the outputs differ "
            f"by {apart:.3g} of {scale:.3g}: the network is another one's, or something else "
            f"than its layers, such as a hook, changes what the {what} computes"
        )


def changed_arrays(what: str, trained: Network, pruned: Network, holds: Holds) -> list[Change]:
    r"""Return what of a model is to be written, or raise if the network is another one.

    A batch normalisation ``s x + t`` that was folded into the layer before it is taken out of the
    weights again: with the folded W and b,

    ::

        W / s        goes to the layer,
        b - t        to the shift of the normalisation, relative to the layer's own intercept,

    which keeps the zeros, and keeps its running statistics meaningful for further training. Without
    a shift the rest goes to the running mean. Where s is zero, so is W.

    Parameters
    ----------
    what : str
        What is written to, for messages.
    trained : Network
        As read from it.
    pruned : Network
        With layers of the same names and shapes, its batch normalisations folded or not.
    holds : callable
    """
    check_layers(what, trained, pruned)
    kept = {op.name for op in pruned.operations}
    changes: list[Change] = []
    for old in trained.layers:
        new = pruned.layer(old.name)
        norm = _folded_norm(trained, old, kept)
        if norm is not None:
            changes += _unfolded(new, old, norm, holds)
            continue
        changes.append(Change(old.name, "W", new.W))
        if holds(old.name, "b"):
            b = np.zeros(new.n_outputs) if new.b is None else new.b
            changes.append(Change(old.name, "b", b))
        elif new.b is not None and np.any(new.b):
            raise ProblemError(
                f"{new.label} has an intercept, but in the {what} {old.name!r} has none to hold it"
            )
    for op in trained.operations:
        if isinstance(op, BatchNorm) and op.name in kept:
            changes += _norm_changes(pruned[op.name], op, holds)
    return changes


def check_layers(what: str, trained: Network, pruned: Network) -> None:
    """Raise unless a network has the layers of the one that was read from a model."""
    own = {layer.name: layer.W.shape for layer in trained.layers}
    found = {layer.name: layer.W.shape for layer in pruned.layers}
    differing = [name for name in {**own, **found} if own.get(name) != found.get(name)]
    if differing:
        name = differing[0]
        more = f", and {len(differing) - 1} more differ" if len(differing) > 1 else ""
        raise ProblemError(
            f"network must have the layers of the {what}, but {name!r} has {_weights(own, name)} "
            f"in the {what} and {_weights(found, name)} in the network{more}; smaller arrays, "
            f"without dead neurons, need a smaller {what}"
        )


def _weights(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return f"weights of shape {shapes[name]}" if name in shapes else "no weights"


def _folded_norm(network: Network, layer: Layer, kept: set[str]) -> BatchNorm | None:
    """Return the normalisation behind a layer that is part of its weights in the other network."""
    users = network.consumers(layer.name)
    if len(users) == 1 and isinstance(users[0], BatchNorm) and users[0].name not in kept:
        return users[0]
    return None


def _unfolded(new: Layer, old: Layer, norm: BatchNorm, holds: Holds) -> list[Change]:
    """Return the new weights of a layer, and the new shift of the normalisation behind it."""
    s, t = norm.factors()
    b = np.zeros_like(t) if new.b is None else new.b.astype(np.float64)
    divisor = np.where(s == 0, 1.0, s)
    matrices = [
        np.where(s[new.columns(group)] == 0, 0.0, matrix / divisor[new.columns(group)])
        for group, matrix in enumerate(new.matrices())
    ]
    W = Change(old.name, "W", new.from_matrices(matrices))
    own = 0.0 if old.b is None else old.b.astype(np.float64)
    rest = b - t - s * own
    if holds(norm.name, "shift"):
        # s (W' x + own) + t' = s W' x + b
        return [W, Change(norm.name, "shift", norm.shift + rest)]
    return [W, Change(norm.name, "mean", norm.mean - rest / divisor)]


def _norm_changes(new: Any, old: BatchNorm, holds: Holds) -> list[Change]:
    """Return the parameters of a normalisation that differ from the trained ones."""
    return [
        Change(old.name, field, getattr(new, field))
        for field in ("scale", "shift", "mean", "variance")
        if isinstance(new, BatchNorm)
        and holds(old.name, field)
        and not np.array_equal(getattr(new, field), getattr(old, field))
    ]
