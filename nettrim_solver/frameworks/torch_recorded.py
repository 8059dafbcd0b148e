"""PyTorch: the layers of a module whose forward no tracer follows, recorded while it runs.

Between its layers a module may do whatever it likes. The network holds the layers, and what is
between them as operations that run a frozen copy of the module (:mod:`.torch_frozen`).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..exceptions import ProblemError, UnsupportedError
from ..network import Dense, Network, Operation
from ..network.layers import Layer
from ..network.operations import Shape
from ..network.wiring import INPUT
from .opaque import opaque_names
from .round_trip import NOT_FINITE, agreement, difference, random_samples
from .torch_frozen import AXES, Frozen, Place, Record, Recorded
from .torch_graph import Traced, check_module, kind_of, plain_remedy, rooted
from .torch_operations import convolution, linear, on_tokens
from .torch_values import Inputs, as_array, import_torch


def recorded(
    module: Any, inputs: Inputs, example: NDArray[Any] | None = None, opaque: Iterable[str] = ()
) -> Traced:
    """Return the layers of a module, and what is between them, as a network.

    Parameters
    ----------
    module, opaque
        See :func:`.from_torch`.
    inputs : Inputs
    example : ndarray, optional
        At least two samples of the network's input to run the module on, random ones if omitted.
        The first one runs once more alone.

    Raises
    ------
    ProblemError, UnsupportedError
        See :func:`.from_torch`.
    """
    check_module(module)
    root = rooted(module)
    parts = {name: part for name, part in root.named_modules() if name}
    left_alone = opaque_names(opaque, parts)
    layers, left = _candidates(root, parts, left_alone)
    dtype = np.result_type(*(layer.W for layer in layers.values())) if layers else np.dtype("f")
    drawn = (one.astype(dtype) for one in random_samples(inputs.shape))
    kinds = drawn if example is None else iter([example])
    frozen = Frozen(root, left_alone, inputs, next(kinds))
    batch = frozen.record(frozen.example, layers)
    for samples in kinds:
        if bool(batch.output.isfinite().all()):
            break
        frozen.example = samples
        batch = frozen.record(samples, layers)
    samples = frozen.example
    single = frozen.record(samples[:1], layers)
    _check_output(batch.output, single.output, len(samples))
    places = []
    for name in dict.fromkeys([*batch.names(), *layers]):
        try:
            own = _place(name, kind_of(parts[name]), batch, single, len(samples))
            places.append(replace(own, name=_free(name, parts)))
        except UnsupportedError as error:
            left[name] = str(error)
    order = [place.part for place in places]
    if [name for name in single.names() if name in order] != order:
        raise UnsupportedError("module must call its layers in one order for all samples")
    if not places:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in left.items())
        raise UnsupportedError(
            f"module {type(module).__name__} must call at least one of {', '.join(AXES)} that can "
            f"be pruned, but has {reasons or 'none'}"
        )
    frozen.freeze(places, left)
    traced = _connected(frozen, layers, tuple(batch.output.shape[1:]))
    if not np.isfinite(traced.network(samples)).all():
        raise UnsupportedError(
            f"module must read the weights of its layers {order} by calling these alone; name the "
            "part that does otherwise in opaque"
        )
    return replace(traced, modules={place.name: parts[place.part] for place in places})


def _candidates(
    root: Any, parts: Mapping[str, Any], opaque: frozenset[str]
) -> tuple[dict[str, Layer], dict[str, str]]:
    """Return the layers by name as the network may have them, and why others are left."""
    nn = import_torch().nn
    counts: dict[int, int] = {}
    for _, tensor in root.named_parameters(remove_duplicate=False):
        counts[id(tensor)] = counts.get(id(tensor), 0) + 1
    layers: dict[str, Layer] = {}
    left: dict[str, str] = {}
    errors: list[Exception] = []
    for name, part in parts.items():
        if not isinstance(part, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            continue
        tensors = [one for one in part._parameters.values() if one is not None]
        if any(name == one or name.startswith(f"{one}.") for one in opaque):
            left[name] = "it is left to PyTorch, by opaque"
        elif plain_remedy(part):
            left[name] = f"its weights are no plain parameters; {plain_remedy(part)}"
        elif kind_of(part) not in AXES or "forward" in part.__dict__:
            left[name] = f"its class {type(part).__name__} may compute something else"
        elif any(counts[id(one)] > 1 for one in tensors):
            left[name] = "its weights are shared"
        else:
            try:
                layers[name] = _layer(part)
            except (ProblemError, UnsupportedError) as error:
                left[name] = str(error)
                errors.append(error)
    if not layers and errors and isinstance(errors[0], ProblemError):
        raise errors[0]
    return layers, left


def _layer(part: Any) -> Layer:
    return linear(part) if kind_of(part) == "Linear" else convolution(part)


def _check_output(batch: Any, single: Any, n_samples: int) -> None:
    """Raise unless a module computes every sample by itself, and numbers."""
    if not bool(batch.isfinite().any()):
        raise UnsupportedError(
            f"module must give finite outputs {NOT_FINITE}; example=, a batch of real samples, "
            "takes their place"
        )
    if (
        batch.ndim < 2
        or len(batch) != n_samples
        or not _first_rows(as_array(batch), as_array(single), 1)
    ):
        raise UnsupportedError(
            "module must give one row per sample, and compute each by itself, but gives "
            f"{tuple(batch.shape)} for {n_samples} samples and {tuple(single.shape)} for the first"
        )


def _first_rows(batch: NDArray[Any], single: NDArray[Any], rows: int) -> bool:
    """Return whether the first rows of a batch are those of its first sample alone."""
    if single.shape != (rows, *batch.shape[1:]):
        return False
    apart, size = difference(batch[:rows], single)
    return apart <= agreement([single.dtype]) * size


def _place(name: str, kind: str, batch: Record, single: Record, n_samples: int) -> Place:
    """Return how a layer is called, or raise why the network cannot do the same."""
    counts = {run.names().count(name) for run in (batch, single)}
    if counts != {1}:
        raise UnsupportedError(
            "it is never called" if counts == {0} else "it must be called once per forward"
        )
    (X, made), (alone, _) = batch.call(name), single.call(name)
    rows, axes = len(X) // n_samples, AXES[kind]
    if X.ndim != (axes or max(X.ndim, 2)) or not rows or not _first_rows(X, alone, rows):
        raise UnsupportedError(f"its input {X.shape} does not keep {n_samples} samples apart")
    form = "flat" if kind == "Conv1d" else "plain"
    if kind == "Linear" and (rows > 1 or X.ndim > 2):
        form = "tokens"
    elif rows > 1:
        raise UnsupportedError(f"it is called with {rows} rows per sample")
    return Place(name, name, rows, X.shape[1:], made[1:], form)


def _free(name: str, taken: Collection[str]) -> str:
    """Return a name that the network may give a layer: another one for what is called "input"."""
    if name != INPUT:
        return name
    return next(free for n in itertools.count(1) if (free := f"{name}_{n}") not in taken)


def _connected(frozen: Frozen, layers: Mapping[str, Layer], output: Shape) -> Traced:
    """Return the network of layers, each behind the operation that computes its input."""
    operations: list[Operation] = []
    names, shapes = [INPUT], [frozen.inputs.shape]
    for place in frozen.places:
        name = place.name
        before = Recorded(
            frozen, tuple(shapes), place.entering, name=f"{name}.input", inputs=tuple(names)
        )
        layer = layers[place.part]
        if isinstance(layer, Dense) and place.form == "tokens":
            layer = on_tokens(layer)
        operations += [before, replace(layer, name=name, inputs=(before.name,))]
        names.append(name)
        shapes.append(layer.output_shape(place.entering))
    operations.append(Recorded(frozen, tuple(shapes), output, inputs=tuple(names)))
    return Traced(Network(operations, frozen.inputs.shape), {}, frozen.inputs)
