"""Scalings by fixed numbers: of inputs, and batch normalisation with its running statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..exceptions import ProblemError
from .operations import Elementwise, Shape, frozen_array


@dataclass(frozen=True, eq=False, repr=False)
class Affine(Elementwise):
    """``scale * x + shift``, the normalisation of inputs, or any other fixed scaling.

    Parameters
    ----------
    scale, shift : array_like
        Numbers, or arrays that numpy broadcasts against one sample: (n_features,), or
        (n_channels, 1, 1) for images. ``(x - a) / s`` is ``scale=1/s, shift=-a/s``.
    """

    scale: Any = 1.0
    shift: Any = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("scale", "shift"):
            self._set(field, frozen_array(f"{self.label}: {field}", getattr(self, field)))

    def _output_shape(self, *shapes: Shape) -> Shape:
        for field in ("scale", "shift"):
            array = getattr(self, field)
            try:
                fits = np.broadcast_shapes(shapes[0], array.shape) == shapes[0]
            except ValueError:
                fits = False
            if not fits:
                raise self.mismatch(f"that {field} {array.shape} broadcasts to", shapes[0])
        return shapes[0]

    def _compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        (signal,) = inputs
        output = signal * self.scale.astype(signal.dtype)
        output += self.shift.astype(signal.dtype)
        return output


@dataclass(frozen=True, eq=False, repr=False)
class BatchNorm(Elementwise):
    """``scale * (x - mean) / sqrt(variance + eps) + shift`` with the statistics of the training.

    Parameters
    ----------
    scale, shift, mean, variance : array_like of shape (n_features,) or (n_channels,)
        gamma, beta, and the running statistics.
    eps : float

    References
    ----------
    Ioffe, Szegedy, *Batch Normalization*, ICML 2015, arXiv:1502.03167.
    """

    scale: Any
    shift: Any
    mean: Any
    variance: Any
    eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("scale", "shift", "mean", "variance"):
            array = frozen_array(f"{self.label}: {field}", getattr(self, field))
            if array.ndim != 1 or array.shape != np.shape(self.scale):
                raise ProblemError(
                    f"{self.label}: scale, shift, mean and variance must be vectors of one size, "
                    f"but {field} has shape {array.shape}"
                )
            self._set(field, array)
        self._set("eps", float(self.eps))
        if not np.isfinite(self.eps) or np.any(self.variance + self.eps <= 0):
            raise ProblemError(
                f"{self.label}: variance + eps must be positive, but eps is {self.eps:g} and the "
                f"least variance {self.variance.min():g}"
            )

    def factors(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return s and t of ``s x + t``, float64, shape (n_channels,)."""
        s = self.scale / np.sqrt(self.variance.astype(np.float64) + self.eps)
        return s, self.shift - self.mean * s

    def _output_shape(self, *shapes: Shape) -> Shape:
        if not shapes[0] or shapes[0][0] != self.scale.size:
            raise self.mismatch(f"({self.scale.size}, ...)", shapes[0])
        return shapes[0]

    def _compute(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        (signal,) = inputs
        per_channel = (-1, *[1] * (signal.ndim - 2))
        s, t = (f.astype(signal.dtype).reshape(per_channel) for f in self.factors())
        output = signal * s
        output += t
        return output

    def _details(self) -> str:
        return f"{self.scale.size} channels"
