"""Keras 3: Sequential and functional models, read and written back, on any backend.

Five lines prune one, and train it further with its zeros in place::

    network = from_keras(model)
    result = prune_network(network, X, tolerance=0.1)
    pruned = to_keras(model, result.network)
    pruned.compile("adam", "mse")
    pruned.fit(X, y, callbacks=[keep_zeros_callback(pruned)])

Keras itself is imported when a function is called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..exceptions import NettrimError, ProblemError
from ..network import Network
from ..network.gathering import joined_shapes, split
from ..network.graph import check_network
from ..network.operations import Shape
from .keras_graph import Traced, check_model, fits, given_shapes, input_names, own_shapes, trace
from .keras_layers import copy_state, import_keras
from .opaque import Opaque, first_line
from .round_trip import changed_arrays, check_agreement, check_layers, probe_samples

#: The inputs' dtypes that are those of weights.
FLOATS = ("float32", "float64")

__all__ = ["from_keras", "keep_zeros_callback", "to_keras"]


def from_keras(
    model: Any, input_shape: Iterable[Any] | None = None, *, opaque: Iterable[str] = ()
) -> Network:
    """Return the network that a model computes at inference.

    Parameters
    ----------
    model : keras.Model
        Sequential or functional, built, with one output; models inside it are entered. Its weights
        are float32 or float64. It is not changed.
    input_shape : tuple of int, optional
        The shape of one sample, without the samples: (32, 32, 3). Needed where the model leaves it
        open. Of a model with several inputs a list, in the order of ``model.inputs``.
    opaque : iterable of str
        Layers, or models inside the model, that Keras itself is to compute, each as one operation
        of the network that takes one tensor and gives one. **Nothing inside them is pruned.**
        Names, patterns of such (``"block_*/norm"``), or names of classes
        (``"LayerNormalization"``).

    Returns
    -------
    Network
        It takes the samples that the model takes, images with their channels last; those of
        several inputs joined, in the order of ``model.inputs``, see :func:`.join_inputs`. Layers
        have the names of the model's (``"conv2d"``; ``"inner/dense"`` in a model inside); an
        activation of theirs is an operation of its own (``"conv2d.relu"``). A 1-d convolution
        becomes a 2-d
        one of height 1, a dense layer on images or sequences one of size 1.

    Raises
    ------
    UnsupportedError
        If the model has no graph, or does what a network cannot; the message names the layer and
        its class, and says what to do.
    ProblemError
        If the model is not built, shapes do not fit, weights are half precision or not finite, or
        the model computes something else on random samples.
    MissingDependencyError
        If Keras, or the backend chosen for it, is not installed.

    Notes
    -----
    Graphics cards may multiply with fewer digits than float32 has: where the outputs then seem to
    differ, read the model on the CPU.
    """
    check_model(model)
    shapes = own_shapes(model) if input_shape is None else given_shapes(model, input_shape)
    network = trace(model, shapes, opaque).network
    _check_outputs(model, network, shapes)
    return network


def to_keras(model: Any, network: Network) -> Any:
    """Return a copy of a model with the weights of a pruned network.

    Parameters
    ----------
    model : keras.Model
        The one that the network was read from. It is not changed.
    network : Network
        With layers of the same names and shapes, its batch normalisations folded or not.

    Returns
    -------
    keras.Model
        With the same layers, names, dtypes and order of weights; not compiled. Zeros of the network
        are zeros of the kernels. A batch normalisation that was folded is taken out of the weights
        again, see :func:`.changed_arrays`.

    Raises
    ------
    ProblemError
        If names or shapes differ, or the result does not compute what the network does.
    """
    check_model(model)
    check_network(network)
    clone = _copy(model)
    traced, shapes = _read_again(clone, network)

    def holds(name: str, field: str) -> bool:
        return field in traced.parts[name].variables

    for name, field, values in changed_arrays("model", traced.network, network, holds):
        part = traced.parts[name]
        part.variables[field].assign(part.in_order(field, values))
    _check_outputs(clone, network, shapes)
    return clone


def _read_again(model: Any, network: Network) -> tuple[Traced, tuple[Shape, ...]]:
    """Return what a network was read from, and the shapes of its inputs; raise for another one."""
    opaque = [op.function.path for op in network.operations if isinstance(op, Opaque)]
    shapes = joined_shapes(network.operations) or (network.input_shape or (),)
    if fits(model, shapes):
        return trace(model, shapes, opaque), shapes
    traced = None
    with contextlib.suppress(NettrimError):
        traced = trace(model, None, opaque)
    if traced is not None:
        check_layers("model", traced.network, network)
    own = [tuple(one.shape)[1:] for one in model.inputs]
    raise ProblemError(
        f"network must be the one of this model, but takes samples of shape "
        f"{' and '.join(map(str, shapes))} where the model takes {' and '.join(map(str, own))}"
    )


def keep_zeros_callback(model: Any) -> Any:
    """Return a callback that keeps the zeros among a model's weights while ``fit`` trains it.

    After each batch they are set to zero again, whatever the gradient and momentum say.

    Parameters
    ----------
    model : keras.Model
        Every trainable weight of two or more axes counts, as the kernels of dense layers and
        convolutions; intercepts and the parameters of normalisations do not.

    Returns
    -------
    keras.callbacks.Callback
        For ``model.fit(..., callbacks=[...])``. Its ``zeros`` counts them by the weight's path;
        in a training loop of your own call its ``apply()`` after each step.

    Raises
    ------
    ProblemError
        If no weight is zero.
    """
    keras = import_keras()
    if not isinstance(model, keras.Model):
        raise ProblemError(f"model must be a keras.Model, but was {type(model).__name__}")
    masked = []
    for variable in model.trainable_variables:
        zeros = np.asarray(keras.ops.convert_to_numpy(variable)) == 0
        if zeros.ndim >= 2 and zeros.any():
            masked.append((variable, zeros))
    if not masked:
        raise ProblemError("model must have weights that are zero, but none of them is")

    class KeepZeros(keras.callbacks.Callback):  # type: ignore[misc, name-defined]
        """Sets weights to zero that are to be zero."""

        zeros = {variable.path: int(zeros.sum()) for variable, zeros in masked}

        def apply(self) -> None:
            """Set them to zero."""
            for variable, zeros in masked:
                variable.assign(keras.ops.where(zeros, 0, variable.value))

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            """Set them to zero after a batch."""
            if (
                self.model is not None
            ):  # With JAX asking for the model brings its weights up to date.
                self.apply()

    return KeepZeros()


def _copy(model: Any) -> Any:
    """Return a model with the same layers, names and weights, not compiled."""
    keras = import_keras()
    names = input_names(model)
    # Left alone, clone_model gives an input that was not named by the user another name.
    begin = None
    if names:
        begin = keras.tree.map_structure(
            lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=names.get(id(x))),
            model.input,
        )
    try:
        clone = keras.models.clone_model(model, input_tensors=begin)
        if not clone.built:
            clone.build(model.input_shape)
        copy_state(model, clone)
    except Exception as error:
        # Whatever the code of a layer that is no part of Keras raises.
        raise ProblemError(
            "model must be one that keras.models.clone_model copies, but it says: "
            f"{first_line(error)}"
        ) from None
    return clone


def _check_outputs(model: Any, network: Network, shapes: Sequence[Shape]) -> None:
    """Raise unless the model computes what the network does, on random inputs."""
    keras = import_keras()
    own = [str(tensor.dtype) for tensor in model.inputs]
    X = probe_samples(network, {i: one for i, one in enumerate(own) if one not in FLOATS})
    parts = [keras.ops.cast(part, dtype) for part, dtype in zip(split(X, shapes), own, strict=True)]
    given = parts[0] if len(parts) == 1 else keras.tree.pack_sequence_as(model.input, parts)
    outputs = model(given, training=False)
    if not hasattr(outputs, "shape"):
        raise ProblemError(f"model must return one tensor, but returns {type(outputs).__name__}")
    computed = [layer.compute_dtype for layer in model._flatten_layers() if hasattr(layer, "call")]
    found = np.asarray(keras.ops.convert_to_numpy(outputs)).astype(np.float64)
    check_agreement("model", found, network, X, computed)
