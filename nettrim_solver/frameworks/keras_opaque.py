"""Keras: a layer, or a model inside a model, as a function of arrays."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..exceptions import UnsupportedError
from ..network.gathering import count_zeros
from ..network.operations import Shape
from .keras_layers import copy_state, import_keras
from .opaque import Opaque, first_line


class Evaluated:
    """A copy of a layer at inference.

    Attributes
    ----------
    path : str
        The layer's name in its model.
    takes_integers : bool
        Whether it is given whole numbers, int32.
    unpruned : dict of str to (int, int)
        Entries and zeros of its weights of two or more axes, by its path.
    """

    def __init__(self, path: str, layer: Any, shape: Shape, takes_integers: bool) -> None:
        self.path, self.takes_integers = path, takes_integers
        self._layer = layer
        self._has_weights = isinstance(layer, import_keras().layers.Layer)
        if self._has_weights:
            self._layer = type(layer).from_config(layer.get_config())
            if not self._layer.built:
                self._layer.build((None, *shape))
            copy_state(layer, self._layer)
        weights = self._layer.get_weights() if self._has_weights else []
        counts = [count_zeros(one) for one in weights if one.ndim >= 2]
        self.unpruned = {path: (sum(n for n, _ in counts), sum(z for _, z in counts))}
        self.unpruned = self.unpruned if counts else {}

    def __call__(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Return what the layer makes of samples, one per row."""
        output = self._layer(samples.astype("int32") if self.takes_integers else samples)
        if not hasattr(output, "shape"):
            raise UnsupportedError(f"it must return one tensor, not a {type(output).__name__}")
        return np.asarray(import_keras().ops.convert_to_numpy(output))

    def __repr__(self) -> str:
        digest = hashlib.sha256(repr(sorted(self._layer.get_config().items(), key=str)).encode())
        for values in self._layer.get_weights() if self._has_weights else ():
            digest.update(np.ascontiguousarray(values).data)
        return f"{type(self._layer).__name__} {digest.hexdigest()[:16]}"


def opaque_operation(path: str, layer: Any, shape: Shape, takes_integers: bool) -> Opaque:
    """Return a layer as an operation on samples of a shape, found out by trying.

    Raises
    ------
    UnsupportedError
        If the layer does not give a tensor with a row per sample, or cannot be copied.
    """
    try:
        function = Evaluated(path, layer, shape, takes_integers)
        given = function(np.zeros((2, *shape), "float32")).shape
    except UnsupportedError:
        raise
    except Exception as error:
        # Whatever the layer's own code, or the backend, raises.
        raise UnsupportedError(
            f"a layer that is left to Keras must be copied by its get_config and take samples of "
            f"shape {shape}, but says: {first_line(error)}"
        ) from None
    if len(given) < 2 or given[0] != 2:
        raise UnsupportedError(
            f"it must give one row per sample, but gives {given} for 2 of shape {shape}"
        )
    return Opaque(function, shape, tuple(int(n) for n in given[1:]))
