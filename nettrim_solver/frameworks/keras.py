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

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..exceptions import ProblemError
from ..network import Network
from ..network.operations import Shape
from .keras_graph import check_model, trace
from .keras_layers import import_keras
from .opaque import Opaque, first_line
from .round_trip import changed_arrays, check_agreement, probe_samples

__all__ = ["from_keras", "keep_zeros_callback", "to_keras"]


def from_keras(
    model: Any, input_shape: Iterable[int] | None = None, *, opaque: Iterable[str] = ()
) -> Network:
    """Return the network that a model computes at inference.

    Parameters
    ----------
    model : keras.Model
        Sequential or functional, built, with one input and one output; models inside it are
        entered. Its weights are float32 or float64. It is not changed.
    input_shape : tuple of int, optional
        The shape of one sample, without the samples: (32, 32, 3). Needed where the model leaves it
        open.
    opaque : iterable of str
        Layers, or models inside the model, that Keras itself is to compute, each as one operation
        of the network that takes one tensor and gives one. **Nothing inside them is pruned.**
        Names, patterns of such (``"block_*/norm"``), or names of classes
        (``"LayerNormalization"``).

    Returns
    -------
    Network
        It takes the samples that the model takes, images with their channels last. Layers have
        the names of the model's (``"conv2d"``; ``"inner/dense"`` in a model inside); an activation
        of theirs is an operation of its own (``"conv2d.relu"``). A 1-d convolution becomes a 2-d
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
    network = trace(model, input_shape, opaque).network
    _check_outputs(model, network, network.input_shape)
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
    clone = _copy(model)
    opaque = [op.function.path for op in network.operations if isinstance(op, Opaque)]
    traced = trace(clone, network.input_shape, opaque)

    def holds(name: str, field: str) -> bool:
        return field in traced.parts[name].variables

    for name, field, values in changed_arrays("model", traced.network, network, holds):
        part = traced.parts[name]
        part.variables[field].assign(part.in_order(field, values))
    _check_outputs(clone, network, traced.network.input_shape)
    return clone


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
    (given,) = model.inputs
    named = [layer.name for layer in model.layers if isinstance(layer, keras.layers.InputLayer)]
    # Left alone, clone_model gives an input that was not named by the user another name.
    begin = keras.Input(batch_shape=given.shape, dtype=given.dtype, name=(named or [None])[0])
    try:
        clone = keras.models.clone_model(model, input_tensors=begin if named else None)
    except Exception as error:
        # Whatever the code of a layer that is no part of Keras raises.
        raise ProblemError(
            "model must be one that keras.models.clone_model copies, but it says: "
            f"{first_line(error)}"
        ) from None
    if not clone.built:
        clone.build(model.input_shape)
    clone.set_weights(model.get_weights())
    return clone


def _check_outputs(model: Any, network: Network, shape: Shape | None) -> None:
    """Raise unless the model computes what the network does, on random inputs."""
    assert shape is not None
    X = probe_samples(network, shape)
    outputs = model(X, training=False)
    if not hasattr(outputs, "shape"):
        raise ProblemError(f"model must return one tensor, but returns {type(outputs).__name__}")
    check_agreement("model", np.asarray(import_keras().ops.convert_to_numpy(outputs)), network, X)
