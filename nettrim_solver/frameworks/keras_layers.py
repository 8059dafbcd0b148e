"""Keras: what each kind of layer is as operations of a network.

Images are kept with their channels first, whatever Keras does; see :class:`Signal`. A layer may
become several operations, as one with an activation of its own.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..activations import ELU, GELU, ClippedReLU, LeakyReLU, PReLU
from ..exceptions import MissingDependencyError, ProblemError, UnsupportedError
from ..network import (
    Activate,
    Affine,
    AveragePool2d,
    BatchNorm,
    Conv2d,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    GlobalAveragePool,
    MaxPool2d,
    Operation,
    Reshape,
    Softmax,
    Transpose,
    same_padding,
)
from ..network.operations import Shape
from ..network.windows import Padding

#: How a sample is kept: as in Keras; an image (height, width, channels) as (channels, height,
#: width); or a sequence (length, channels) as an image (channels, 1, length).
Form = Literal["plain", "image", "sequence"]

#: Where each axis of a sample in Keras stands in its form.
PLACES: Mapping[Form, Mapping[int, int]] = {"image": {0: 1, 1: 2, 2: 0}, "sequence": {0: 2, 1: 0}}
NO_PADDING: Padding = (0, 0, 0, 0)

#: scale and alpha of Klambauer et al., "Self-Normalizing Neural Networks", NIPS 2017.
SELU = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


@dataclass(frozen=True)
class Signal:
    """What an operation gives.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Of one sample in the network.
    form : str
    padding : tuple of int
        Zeros that a ZeroPadding layer adds, not yet part of the signal: top, left, bottom, right.
    least : float
        No entry is less.
    """

    name: str
    shape: Shape
    form: Form = "plain"
    padding: Padding = NO_PADDING
    least: float = -math.inf

    @property
    def sizes(self) -> Shape:
        """The shape of one sample in Keras, without the padding."""
        if self.form == "plain":
            return self.shape
        channels, height, width = self.shape
        return (height, width, channels) if self.form == "image" else (width, channels)

    def axis(self, axis: int) -> int:
        """Return where an axis of a batch in Keras stands in a sample here."""
        place = axis - 1 if axis > 0 else len(self.sizes) + axis
        if not 0 <= place < len(self.sizes):
            raise UnsupportedError(
                f"axis must be one of a sample of shape {self.sizes}, but was {axis}"
            )
        return place if self.form == "plain" else PLACES[self.form][place]


@dataclass(frozen=True)
class Arrays:
    """The arrays of a Keras layer that an operation was made of.

    Attributes
    ----------
    variables : dict of str
        By the fields of the operation.
    axes : tuple of int
        The kernel with its axes in this order, reshaped, is W.
    """

    variables: Mapping[str, Any]
    axes: tuple[int, ...] = ()

    def in_order(self, field: str, values: NDArray[Any]) -> NDArray[Any]:
        """Return new values in the order and shape of the variable."""
        shape = tuple(self.variables[field].shape)
        if field != "W":
            return values.reshape(shape)
        turned = values.reshape([shape[axis] for axis in self.axes])
        return turned.transpose(np.argsort(self.axes))


class Step(NamedTuple):
    """One operation of a layer, with what is added to the layer's name."""

    operation: Operation
    suffix: str = ""
    part: Arrays | None = None


def import_keras() -> Any:
    """Return the package keras, or raise MissingDependencyError."""
    try:
        import keras
    except ImportError as error:
        raise MissingDependencyError(
            f"keras cannot be imported ({error}): python -m pip install keras jax, or '.[keras]' "
            "in a copy of the repository, and set the environment variable KERAS_BACKEND to one "
            "that is installed, such as jax"
        ) from None
    return keras


def copy_state(old: Any, new: Any) -> None:
    """Give a layer or model the weights of another of the same build, and all that follows of them.

    Setting the weights alone leaves the means of an adapted ``Normalization`` as they were.
    """
    new.set_weights(old.get_weights())
    for one, other in zip(old._flatten_layers(), new._flatten_layers(), strict=True):
        state: dict[str, Any] = {}
        one.save_own_variables(state)
        if state:
            other.load_own_variables(state)


def array(variable: Any) -> NDArray[Any]:
    """Return a variable as an array, or raise if it is neither float32 nor float64."""
    if str(variable.dtype) not in ("float32", "float64"):
        raise ProblemError(
            f"weights must be float32 or float64, but are {variable.dtype}: clone the model under "
            "keras.config.set_dtype_policy('float32'), and give the clone its weights"
        )
    return np.asarray(import_keras().ops.convert_to_numpy(variable))


# Layers with weights -----------------------------------------------------------------------------


def _taken(kernel: Any, bias: Any, axes: tuple[int, ...], W_shape: Any = None) -> Any:
    """Return W, b and the part of a kernel whose axes in this order, reshaped, are W."""
    W = array(kernel).transpose(axes)
    W = W if W_shape is None else W.reshape(W_shape(W.shape))
    variables = {"W": kernel} if bias is None else {"W": kernel, "b": bias}
    return W, None if bias is None else array(bias), Arrays(variables, axes)


def _dense(layer: Any, signal: Signal) -> Iterator[Step]:
    """Yield a dense layer; on images and sequences it is a convolution of size 1."""
    bias = layer.bias if layer.use_bias else None
    if signal.form == "plain":
        W, b, part = _taken(layer.kernel, bias, (0, 1))
        yield Step(Dense(W, b), "", part)
    else:
        W, b, part = _taken(layer.kernel, bias, (1, 0), lambda shape: (*shape, 1, 1))
        yield Step(Conv2d(W, b), "", part)


def _image(shape: Shape) -> Shape:
    """Return the shape (filters, channels, height, width) of filters of one or two axes."""
    return shape if len(shape) == 4 else (*shape[:2], 1, *shape[2:])


def _convolution(layer: Any, signal: Signal) -> Iterator[Step]:
    """Yield a convolution; its kernel is (..., channels / groups, filters)."""
    flat = len(layer.kernel.shape) == 3
    bias = layer.bias if layer.use_bias else None
    W, b, part = _taken(layer.kernel, bias, (2, 1, 0) if flat else (3, 2, 0, 1), _image)
    window = _window(layer, signal, W.shape[2:])
    yield Step(Conv2d(W, b, **window, groups=int(layer.groups)), "", part)


def _depthwise(layer: Any, signal: Signal) -> Iterator[Step]:
    """Yield a convolution of each channel by itself; its kernel is (..., channels, multiplier)."""
    yield _channelwise(layer, signal, layer.kernel, layer.bias if layer.use_bias else None, "")


def _separable(layer: Any, signal: Signal) -> Iterator[Step]:
    """Yield a convolution of each channel by itself, and one of size 1 behind it."""
    yield _channelwise(layer, signal, layer.depthwise_kernel, None, ".depthwise")
    kernel = layer.pointwise_kernel
    axes = (2, 1, 0) if len(kernel.shape) == 3 else (3, 2, 0, 1)
    W, b, part = _taken(kernel, layer.bias if layer.use_bias else None, axes, _image)
    yield Step(Conv2d(W, b), ".pointwise", part)


def _channelwise(layer: Any, signal: Signal, kernel: Any, bias: Any, suffix: str) -> Step:
    axes = (1, 2, 0) if len(kernel.shape) == 3 else (2, 3, 0, 1)
    channels = int(kernel.shape[-2])
    W, b, part = _taken(
        kernel, bias, axes, lambda shape: _image((shape[0] * shape[1], 1, *shape[2:]))
    )
    window = _window(layer, signal, W.shape[2:])
    return Step(Conv2d(W, b, **window, groups=channels), suffix, part)


def _normalisation(layer: Any, signal: Signal) -> Iterator[Step]:
    """Yield a batch normalisation with its moving statistics."""
    variables = {"mean": layer.moving_mean, "variance": layer.moving_variance}
    if layer.scale:
        variables["scale"] = layer.gamma
    if layer.center:
        variables["shift"] = layer.beta
    arrays = {name: array(one) for name, one in variables.items()}
    mean = arrays["mean"]
    values: dict[str, Any] = {"scale": np.ones_like(mean), "shift": np.zeros_like(mean), **arrays}
    yield Step(BatchNorm(**values, eps=float(layer.epsilon)), "", Arrays(variables))


def _embedding(layer: Any, signal: Signal) -> Iterator[Step]:
    """Yield a table whose rows are looked up."""
    yield Step(Embedding(array(layer.embeddings)))


def _window(layer: Any, signal: Signal, kernel: Any) -> dict[str, Any]:
    """Return stride, padding and dilation; one number belongs to images of height 1."""
    stride = _two(layer.strides)
    dilation = _two(getattr(layer, "dilation_rate", 1))
    top, left, bottom, right = signal.padding
    _, height, width = signal.shape
    own: Any = NO_PADDING
    if layer.padding == "same":
        size = (height + top + bottom, width + left + right)
        own = same_padding(size, tuple(kernel), stride, dilation)
    elif layer.padding == "causal":
        own = (0, dilation[1] * (kernel[1] - 1), 0, 0)
    return {"stride": stride, "padding": added(signal.padding, own), "dilation": dilation}


def added(a: Padding, b: Padding) -> Padding:
    """Return the sum of two paddings."""
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]


def _two(value: Any) -> tuple[int, int]:
    """Return a pair; of a single number in a tuple, one for images of height 1."""
    if isinstance(value, int):
        return value, value
    return (1, int(value[0])) if len(value) == 1 else (int(value[0]), int(value[1]))


# Activations -------------------------------------------------------------------------------------

#: What gives the value of a parameter by its name.
Values = Callable[[str], Any]


def _fixed(name: str) -> Callable[[Values, Signal], list[Operation]]:
    return lambda values, signal: [Activate(name)]


def _relu(values: Values, signal: Signal) -> list[Operation]:
    slope, ceiling = float(values("negative_slope") or 0), values("max_value")
    if values("threshold"):
        raise UnsupportedError(f"threshold must be 0, but is {values('threshold')}")
    if slope and ceiling is not None:
        raise UnsupportedError("negative_slope must be 0 where max_value is given")
    if slope:
        return [Activate(LeakyReLU(slope))]
    if ceiling is None:
        return [Activate("relu")]
    return [Activate("relu6" if ceiling == 6 else ClippedReLU(float(ceiling)))]


def _leaky_relu(values: Values, signal: Signal) -> list[Operation]:
    slope = float(values("negative_slope"))
    return [Activate(LeakyReLU(slope) if slope else "relu")]


def _prelu(values: Values, signal: Signal) -> list[Operation]:
    slopes = array(values("alpha"))
    if slopes.size == 1 or np.all(slopes == slopes.flat[0]):
        slopes = slopes.reshape(-1)[:1]
    elif slopes.size != slopes.shape[-1] or (signal.form == "plain") != (slopes.ndim == 1):
        raise UnsupportedError(
            "slopes must be the same at all positions, as shared_axes=[1, 2] makes those of images"
        )
    if not slopes.any():
        return [Activate("relu")]
    return [Activate(PReLU(slopes.item() if slopes.size == 1 else slopes.reshape(-1)))]


def _selu(values: Values, signal: Signal) -> list[Operation]:
    scale, alpha = SELU
    return [Activate(ELU(alpha)), Affine(scale)]


def _softmax(log: bool) -> Callable[[Values, Signal], list[Operation]]:
    def build(values: Values, signal: Signal) -> list[Operation]:
        axis = values("axis")
        if isinstance(axis, (list, tuple)):
            if len(axis) != 1:
                raise UnsupportedError(f"axis must be one axis, but was {axis}")
            (axis,) = axis
        return [Softmax(signal.axis(axis), log)]

    return build


#: By the name of the class or function, in lower case without underscores.
ACTIVATIONS: dict[str, Callable[[Values, Signal], list[Operation]]] = {
    "linear": lambda values, signal: [],
    "relu": _relu,
    "relu6": _fixed("relu6"),
    "leakyrelu": _leaky_relu,
    "prelu": _prelu,
    "elu": lambda values, signal: [Activate(ELU(float(values("alpha"))))],
    "selu": _selu,
    "gelu": lambda values, signal: [Activate(GELU(bool(values("approximate"))))],
    "tanh": _fixed("tanh"),
    "hardtanh": _fixed("hard_tanh"),
    "sigmoid": _fixed("sigmoid"),
    "hardsigmoid": _fixed("hard_sigmoid"),
    "silu": _fixed("silu"),
    "softplus": _fixed("softplus"),
    "softmax": _softmax(log=False),
    "logsoftmax": _softmax(log=True),
}


def activation(given: Any, signal: Signal) -> list[Operation]:
    """Return the operations of what stands behind ``activation=``: a function, layer, or None."""
    if given is None:
        return []
    keras = import_keras()
    if isinstance(given, keras.Operation):
        key = key_of(kind_of(given))
        if key == "activation":
            return activation(given.activation, signal)
        values: Values = lambda name: getattr(given, name)  # noqa: E731
    else:
        name = getattr(given, "__name__", str(given))
        known = getattr(keras.activations, name, None) is given
        key = key_of(name) if known else ""
        values = lambda name: inspect.signature(given).parameters[name].default  # noqa: E731
    if key not in ACTIVATIONS:
        label = getattr(given, "__name__", type(given).__name__)
        raise UnsupportedError(
            f"activation {label} is not supported; supported are {', '.join(sorted(ACTIVATIONS))}"
        )
    return ACTIVATIONS[key](values, signal)


def key_of(name: str) -> str:
    """Return the key of a class or function in the tables."""
    return name.replace("_", "").lower()


def kind_of(layer: Any) -> str:
    """Return the name of Keras's class that computes a layer, or that of its own class."""
    for cls in type(layer).__mro__:
        if cls.__module__.split(".")[0] == "keras":
            same = type(layer).call is getattr(cls, "call", None)
            return str(cls.__name__ if same else type(layer).__name__)
    return type(layer).__name__


# Pooling and shapes ------------------------------------------------------------------------------


def _pooling(kind: type[MaxPool2d | AveragePool2d]) -> Callable[[Any, Signal], Iterator[Step]]:
    def build(layer: Any, signal: Signal) -> Iterator[Step]:
        kernel = _two(layer.pool_size)
        window = _window(layer, signal, kernel)
        more: dict[str, Any] = {}
        if kind is AveragePool2d and any(signal.padding):
            more["count_include_pad"] = True
        if more and layer.padding != "valid":
            raise UnsupportedError("padding must be 'valid' behind a layer that adds zeros")
        if kind is MaxPool2d and any(signal.padding) and signal.least < 0:
            # Padding never wins here, and zeros do where all pixels are negative.
            raise UnsupportedError("zeros may be added only behind a ReLU, sigmoid or softplus")
        yield Step(kind(kernel, window["stride"], window["padding"], **more))

    return build


def _global_average(layer: Any, signal: Signal) -> Iterator[Step]:
    yield Step(GlobalAveragePool(bool(layer.keepdims)))


def _global_max(layer: Any, signal: Signal) -> Iterator[Step]:
    yield Step(MaxPool2d(signal.shape[1:]))
    if not layer.keepdims:
        yield Step(Flatten(), ".flatten")


def _flatten(layer: Any, signal: Signal) -> Iterator[Step]:
    if layer.data_format == "channels_first" and len(signal.shape) > 1:
        # Keras flattens with the channels last all the same.
        yield Step(Transpose([*range(1, len(signal.shape)), 0]), ".transpose")
    yield Step(Flatten())


def _rescaling(layer: Any, signal: Signal) -> Iterator[Step]:
    yield Step(Affine(np.asarray(layer.scale, np.float64), np.asarray(layer.offset, np.float64)))


def _standardisation(layer: Any, signal: Signal) -> Iterator[Step]:
    """Yield ``(x - mean) / deviation``, or its inverse."""
    keras = import_keras()
    mean, variance = (
        np.asarray(keras.ops.convert_to_numpy(one), np.float64)[0]
        for one in (layer.mean, layer.variance)
    )
    deviation = np.maximum(np.sqrt(variance), keras.config.epsilon())
    if layer.invert:
        yield Step(Affine(deviation, mean))
    else:
        yield Step(Affine(1.0 / deviation, -mean / deviation))


def _nothing(layer: Any, signal: Signal) -> Iterator[Step]:
    yield Step(Dropout())


@dataclass(frozen=True)
class Reader:
    """How a kind of layer becomes operations.

    Attributes
    ----------
    build : callable
    form : str
        Which signals it takes: ``"any"`` of them; ``"plain"``; ``"dense"``, channels of vectors,
        sequences or images; ``"window"``, by the layer's data_format; ``"channels"``, by its axis.
    """

    build: Callable[[Any, Signal], Iterator[Step]]
    form: Literal["any", "plain", "dense", "window", "channels"] = "any"


def _windows(build: Callable[[Any, Signal], Iterator[Step]], *names: str) -> dict[str, Reader]:
    """Return readers of the layers of one and two axes."""
    return {f"{name}{axes}D": Reader(build, "window") for name in names for axes in (1, 2)}


#: By the name of Keras's class.
READERS: dict[str, Reader] = {
    "Dense": Reader(_dense, "dense"),
    **_windows(_convolution, "Conv"),
    **_windows(_depthwise, "DepthwiseConv"),
    **_windows(_separable, "SeparableConv"),
    "BatchNormalization": Reader(_normalisation, "channels"),
    "Embedding": Reader(_embedding, "plain"),
    **_windows(_pooling(MaxPool2d), "MaxPooling"),
    **_windows(_pooling(AveragePool2d), "AveragePooling"),
    **_windows(_global_average, "GlobalAveragePooling"),
    **_windows(_global_max, "GlobalMaxPooling"),
    "Flatten": Reader(_flatten, "plain"),
    "Reshape": Reader(lambda layer, signal: iter([Step(Reshape(layer.target_shape))]), "plain"),
    "Permute": Reader(
        lambda layer, signal: iter([Step(Transpose([n - 1 for n in layer.dims]))]), "plain"
    ),
    "Rescaling": Reader(_rescaling, "plain"),
    "Normalization": Reader(_standardisation, "plain"),
    **dict.fromkeys(
        ("Dropout", "SpatialDropout1D", "SpatialDropout2D", "AlphaDropout", "GaussianDropout",
         "GaussianNoise", "ActivityRegularization", "Identity"),
        Reader(_nothing),
    ),
}  # fmt: skip


def padding_of(layer: Any) -> Padding:
    """Return the zeros that a ZeroPadding layer adds: top, left, bottom, right."""
    if kind_of(layer) == "ZeroPadding1D":
        left, right = layer.padding
        return (0, int(left), 0, int(right))
    (top, bottom), (left, right) = layer.padding
    return (int(top), int(left), int(bottom), int(right))
