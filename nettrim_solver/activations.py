"""Activations: the pre-activations that reproduce an output, and how far an error can grow.

A monotone activation f turns an output y into the interval ``f^-1(y) = [lower, upper]`` of the
pre-activations that produce it. That interval is all that a solver sees of an activation. Where
the inverse is ill-conditioned (saturating functions) or no function (GELU, SiLU), the interval is
the single stored pre-activation. A new activation is one class of this module.

References
----------
Aghasi, Abdi, Nguyen, Romberg, *Net-Trim*, NIPS 2017 (arXiv:1611.05162), for ReLU.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .exceptions import ProblemError

Array = NDArray[np.float64]

#: Slack allowed beyond the ends of an activation's range, relative to single precision: outputs
#: that a framework computed in float32 may overshoot the exact end by a rounding error.
RANGE_SLACK = 1e-6


class Activation(ABC):
    """An activation function ``y = f(z)``.

    Attributes
    ----------
    name : str
        The name by which a problem asks for it.
    lipschitz : float
        A constant with ``|f(a) - f(b)| <= lipschitz |a - b|``: with it, pre-activations within
        epsilon of the box give activations within ``lipschitz * epsilon`` of Y.
    needs_preactivation : bool
        Whether the box is the stored pre-activation instead of the preimage of Y.
    range : tuple of float
        Least and greatest output.
    """

    name: ClassVar[str]
    needs_preactivation: ClassVar[bool] = False
    range: tuple[float, float] = (-np.inf, np.inf)
    lipschitz: float = 1.0

    @abstractmethod
    def __call__(self, Z: Array) -> Array:
        """Return ``f(Z)``, elementwise, float64, same shape."""

    def preimage(self, Y: Array) -> tuple[Array, Array]:
        """Return the ends ``(lower, upper)`` of the interval ``f^-1(Y)``, same shape as Y."""
        raise NotImplementedError(f"{self.name} has no stable inverse: store Z")

    def parameters(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain numbers and lists (for files)."""
        names = inspect.signature(type(self)).parameters
        values = {name: getattr(self, name) for name in names}
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}

    def select(self, columns: Any) -> Activation:
        """Return the activation of a subset of the outputs (only PReLU differs by output)."""
        return self

    def check_outputs(self, n_outputs: int) -> None:
        """Raise ProblemError if the parameters do not fit this many outputs (PReLU alone can)."""
        return

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.parameters() == other.parameters()

    def __hash__(self) -> int:
        return hash((self.name, repr(self.parameters())))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.parameters().items())
        return f"{type(self).__name__}({arguments})"


class _Clipped(Activation):
    """``f(z) = min(max(slope z + offset, least), greatest)``; flat ends become half-lines."""

    slope = 1.0
    offset = 0.0

    def __call__(self, Z: Array) -> Array:
        return np.clip(self.slope * Z + self.offset, *self.range)

    def preimage(self, Y: Array) -> tuple[Array, Array]:
        least, greatest = self.range
        point = (np.clip(Y, least, greatest) - self.offset) / self.slope
        # Written as a sum so that memory stays at the two arrays returned.
        lower = np.where(Y <= least, -np.inf, point)
        upper = np.where(Y >= greatest, np.inf, point)
        return lower, upper


class Identity(_Clipped):
    """``f(z) = z``: every row is matched."""

    name = "identity"


class ReLU(_Clipped):
    """``f(z) = max(z, 0)``: an inactive output only asks for ``z <= 0``."""

    name = "relu"
    range = (0.0, np.inf)


class ClippedReLU(_Clipped):
    """``f(z) = min(max(z, 0), ceiling)``."""

    name = "clipped_relu"

    def __init__(self, ceiling: float = 6.0) -> None:
        self.ceiling = _positive("ceiling", ceiling)
        self.range = (0.0, self.ceiling)


class ReLU6(_Clipped):
    """``f(z) = min(max(z, 0), 6)``."""

    name = "relu6"
    range = (0.0, 6.0)


class HardTanh(_Clipped):
    """``f(z) = min(max(z, -1), 1)``."""

    name = "hard_tanh"
    range = (-1.0, 1.0)


class HardSigmoid(_Clipped):
    """``f(z) = min(max(slope z + offset, 0), 1)``; PyTorch, Keras 3: 1/6; ONNX: 0.2."""

    name = "hard_sigmoid"
    range = (0.0, 1.0)

    def __init__(self, slope: float = 1 / 6, offset: float = 0.5) -> None:
        self.slope = _positive("slope", slope)
        self.offset = _finite("offset", offset)
        self.lipschitz = self.slope


class LeakyReLU(Activation):
    """``f(z) = z`` for ``z >= 0``, ``negative_slope z`` below; the slope must be positive."""

    name = "leaky_relu"

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = _positive("negative_slope", negative_slope)
        self.lipschitz = max(1.0, self.negative_slope)

    def __call__(self, Z: Array) -> Array:
        return np.where(Z >= 0, Z, self.negative_slope * Z)

    def preimage(self, Y: Array) -> tuple[Array, Array]:
        point = np.where(Y >= 0, Y, Y / self.negative_slope)
        return point, point


class PReLU(Activation):
    """Leaky ReLU with positive ``slopes``: one number, or shape (n_outputs,)."""

    name = "prelu"

    def __init__(self, slopes: Any = 0.25) -> None:
        try:
            self.slopes = np.array(slopes, dtype=np.float64)
        except (TypeError, ValueError):
            raise ProblemError(f"slopes must be positive numbers, but was {slopes!r}") from None
        if self.slopes.ndim > 1 or self.slopes.size == 0 or not np.all(np.isfinite(self.slopes)):
            raise ProblemError(
                "slopes must be finite, of shape () or (n_outputs,), "
                f"but has shape {self.slopes.shape}"
            )
        if not np.all(self.slopes > 0):
            raise ProblemError(f"slopes must be positive, but the least is {self.slopes.min():g}")
        self.lipschitz = float(max(1.0, self.slopes.max()))

    def __call__(self, Z: Array) -> Array:
        return np.where(Z >= 0, Z, self.slopes * Z)

    def preimage(self, Y: Array) -> tuple[Array, Array]:
        point = np.where(Y >= 0, Y, Y / self.slopes)
        return point, point

    def select(self, columns: Any) -> Activation:
        return self if self.slopes.ndim == 0 else PReLU(self.slopes[columns])

    def check_outputs(self, n_outputs: int) -> None:
        if self.slopes.ndim and self.slopes.size != n_outputs:
            raise ProblemError(
                f"slopes of 'prelu' must be one number or have shape ({n_outputs},), one per "
                f"output, but has {self.slopes.shape}"
            )


class _Stored(Activation):
    """An activation whose target is the stored pre-activation."""

    needs_preactivation = True


class Tanh(_Stored):
    """``f(z) = tanh(z)``."""

    name = "tanh"
    range = (-1.0, 1.0)

    def __call__(self, Z: Array) -> Array:
        return np.tanh(Z)


class Sigmoid(_Stored):
    """``f(z) = 1 / (1 + exp(-z))``."""

    name = "sigmoid"
    range = (0.0, 1.0)
    lipschitz = 0.25

    def __call__(self, Z: Array) -> Array:
        return 0.5 * (1.0 + np.tanh(0.5 * Z))


class Softplus(_Stored):
    """``f(z) = log(1 + exp(z))``."""

    name = "softplus"
    range = (0.0, np.inf)

    def __call__(self, Z: Array) -> Array:
        return np.logaddexp(0.0, Z)


class ELU(_Stored):
    """``f(z) = z`` for ``z >= 0``, ``alpha (exp(z) - 1)`` below."""

    name = "elu"

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = _positive("alpha", alpha)
        self.range = (-self.alpha, np.inf)
        self.lipschitz = max(1.0, self.alpha)

    def __call__(self, Z: Array) -> Array:
        return np.where(Z >= 0, Z, self.alpha * np.expm1(np.minimum(Z, 0.0)))


class GELU(_Stored):
    """``f(z) = z Phi(z)`` (``approximate=False``) or its tanh approximation."""

    name = "gelu"
    range = (-0.17005, np.inf)
    # Slope at sqrt(2): Phi(sqrt 2) + sqrt 2 phi(sqrt 2) = 1.12890; the tanh form peaks at 1.12894.
    lipschitz = 1.129

    def __init__(self, approximate: bool = False) -> None:
        self.approximate = bool(approximate)

    def __call__(self, Z: Array) -> Array:
        if self.approximate:
            return 0.5 * Z * (1.0 + np.tanh(np.sqrt(2 / np.pi) * (Z + 0.044715 * Z**3)))
        from scipy.special import ndtr

        return Z * ndtr(Z)


class SiLU(_Stored):
    """``f(z) = z / (1 + exp(-z))`` (swish)."""

    name = "silu"
    range = (-0.27847, np.inf)
    lipschitz = 1.1

    def __call__(self, Z: Array) -> Array:
        return 0.5 * Z * (1.0 + np.tanh(0.5 * Z))


#: Name -> class, for everything that ``Problem(activation=...)`` accepts as a string: every class
#: of this module that has a name.
ACTIVATIONS: dict[str, type[Activation]] = {
    cls.name: cls
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, Activation) and "name" in vars(cls)
}


def get_activation(activation: str | Activation) -> Activation:
    """Return the activation for a name (with default parameters), or the object itself.

    Raises
    ------
    ProblemError
        If the name is unknown.

    Examples
    --------
    >>> get_activation("relu").lipschitz
    1.0
    """
    if isinstance(activation, Activation):
        return activation
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ProblemError(
            f"activation must be an Activation or one of {sorted(ACTIVATIONS)}, "
            f"but was {activation!r}"
        )
    return ACTIVATIONS[activation]()


def _finite(name: str, value: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ProblemError(f"{name} must be a finite number, but was {value!r}") from None
    if not np.isfinite(number):
        raise ProblemError(f"{name} must be a finite number, but was {value!r}")
    return number


def _positive(name: str, value: float) -> float:
    number = _finite(name, value)
    if number <= 0:
        raise ProblemError(f"{name} must be positive and finite, but was {value!r}")
    return number
