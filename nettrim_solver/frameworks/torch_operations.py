"""PyTorch's modules and functions, one by one, as operations of a network.

A module and the function of the same purpose share their parameters' names, so that one table
serves both: the values are attributes of the module, or arguments of the call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..activations import ELU, GELU, ClippedReLU, LeakyReLU, PReLU
from ..exceptions import ProblemError, UnsupportedError
from ..network import (
    Activate,
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
)
from ..network.operations import Shape

#: Which signals an operation takes: any; those whose first axis is PyTorch's; those in PyTorch's
#: shape; 1-d ones as images of height 1 (flat), or several vectors per sample as such (tokens).
Form = Literal["any", "channels", "plain", "flat", "tokens"]

#: Beyond this pre-activation PyTorch takes softplus for the identity: below its rounding at 20.
SOFTPLUS_THRESHOLD = 20


@dataclass(frozen=True)
class Reader:
    """How one of PyTorch's functions becomes an operation.

    Attributes
    ----------
    build : callable
        Takes the shape of one sample and the values of the parameters.
    parameters : mapping
        Names in the order of the function, with defaults.
    form : str
    """

    build: Callable[[Shape, Mapping[str, Any]], Operation]
    parameters: Mapping[str, Any]
    form: Form = "any"


def array(tensor: Any) -> NDArray[Any]:
    """Return a tensor as an array, or raise if it is half precision or has no data."""
    if str(tensor.dtype) not in ("torch.float32", "torch.float64"):
        raise ProblemError(
            f"weights must be float32 or float64, but are {tensor.dtype}; prune module.float() and "
            "convert what to_torch returns: zeros stay zeros"
        )
    if tensor.is_meta:
        raise ProblemError("weights must have data, but are on the meta device")
    return np.asarray(tensor.detach().cpu().numpy())


# Modules with weights ----------------------------------------------------------------------------


def linear(module: Any) -> Dense:
    """Return a linear module, whose weight is (n_outputs, n_inputs)."""
    return Dense(array(module.weight).T, _optional(module.bias))


def on_tokens(layer: Dense) -> Conv2d:
    """Return a linear layer on several vectors per sample, which are an image of height 1."""
    return Conv2d(layer.W.T[:, :, None, None], layer.b)


def convolution(module: Any) -> Conv2d:
    """Return a convolution; a 1-d one has the height 1."""
    if module.padding_mode != "zeros" and module.padding != "valid" and any(module.padding):
        raise UnsupportedError(f"padding_mode must be 'zeros', but is {module.padding_mode!r}")
    W = array(module.weight)
    padding = 0 if module.padding == "valid" else module.padding
    if W.ndim == 3:
        W = W[:, :, None, :]
        padding = padding if isinstance(padding, (str, int)) else (0, *padding)
    return Conv2d(
        W, _optional(module.bias), stride=_two(module.stride), padding=padding,
        dilation=_two(module.dilation), groups=module.groups,
    )  # fmt: skip


def embedding(module: Any) -> Embedding:
    """Return a table whose rows are looked up."""
    if module.max_norm is not None:
        raise UnsupportedError("max_norm must be None: it changes the table in evaluation, too")
    return Embedding(array(module.weight))


def normalisation(module: Any) -> BatchNorm:
    """Return a batch normalisation with its running statistics."""
    if module.running_mean is None or module.running_var is None:
        raise UnsupportedError("it must track running statistics, as track_running_stats=True does")
    mean, variance = array(module.running_mean), array(module.running_var)
    scale = np.ones_like(mean) if module.weight is None else array(module.weight)
    shift = np.zeros_like(mean) if module.bias is None else array(module.bias)
    return BatchNorm(scale, shift, mean, variance, eps=module.eps)


def _optional(tensor: Any) -> NDArray[Any] | None:
    return None if tensor is None else array(tensor)


# Activations -------------------------------------------------------------------------------------


def _fixed(name: str) -> Reader:
    return Reader(lambda shape, values: Activate(name), {"inplace": False})


def _leaky_relu(shape: Shape, values: Mapping[str, Any]) -> Operation:
    slope = values["negative_slope"]
    return Activate("relu" if slope == 0 else LeakyReLU(slope))


def _prelu(shape: Shape, values: Mapping[str, Any]) -> Operation:
    weight = values["weight"]
    slopes = weight if isinstance(weight, np.ndarray) else array(weight)
    return Activate(PReLU(slopes.item() if slopes.size == 1 else slopes))


def _clipped(low: Any, high: Any) -> Operation:
    least = -math.inf if low is None else float(low)
    greatest = math.inf if high is None else float(high)
    if (least, greatest) == (-1, 1):
        return Activate("hard_tanh")
    if least == 0 and greatest == math.inf:
        return Activate("relu")
    if least == 0:
        return Activate("relu6" if greatest == 6 else ClippedReLU(greatest))
    raise UnsupportedError(f"values must be clipped to [0, c] or [-1, 1], but are to {low}, {high}")


def _softplus(shape: Shape, values: Mapping[str, Any]) -> Operation:
    if values["beta"] != 1 or values["threshold"] < SOFTPLUS_THRESHOLD:
        raise UnsupportedError(
            f"softplus must have beta 1 and a threshold of at least {SOFTPLUS_THRESHOLD}, but has "
            f"{values['beta']} and {values['threshold']}"
        )
    return Activate("softplus")


def _dropout(shape: Shape, values: Mapping[str, Any]) -> Operation:
    if values["training"] and values["p"]:
        raise UnsupportedError(
            "dropout must rest in evaluation: give training=self.training to the function"
        )
    return Dropout()


def _softmax(shape: Shape, values: Mapping[str, Any], log: bool) -> Operation:
    if values["dim"] is None:
        raise UnsupportedError("dim must be given, but was None")
    return Softmax(sample_axis(values["dim"], shape), log)


def sample_axis(dim: int, shape: Shape) -> int:
    """Return the axis of a sample that is one of a batch; raise if it counts the samples."""
    axis = dim - 1 if dim > 0 else len(shape) + dim
    if not 0 <= axis < len(shape):
        raise UnsupportedError(f"dim must be an axis of a sample of shape {shape}, but was {dim}")
    return axis


# Pooling -----------------------------------------------------------------------------------------


def _pool(kind: type[MaxPool2d | AveragePool2d], shape: Shape, values: Mapping[str, Any]) -> Any:
    """Return a pooling; lists of one number belong to images of height 1."""
    if values.get("return_indices"):
        raise UnsupportedError("return_indices must be False")
    if values.get("divisor_override") is not None:
        raise UnsupportedError("divisor_override must be None")
    kernel = _two(values["kernel_size"])
    stride = kernel if values["stride"] in (None, [], ()) else _two(values["stride"])
    padding = values["padding"]
    if not isinstance(padding, int):
        padding = (0, *padding) if len(padding) == 1 else tuple(padding)
    more = {}
    if kind is MaxPool2d:
        more["dilation"] = _two(values["dilation"])
    else:
        more["count_include_pad"] = values["count_include_pad"]
    pool = kind(kernel, stride, padding, **more)
    if values["ceil_mode"]:
        _check_ceiling(pool, shape)
    return pool


def _check_ceiling(pool: MaxPool2d | AveragePool2d, shape: Shape) -> None:
    """Raise if rounding up gives another size than rounding down."""
    _, height, width = pool.image_shape(shape)
    window = pool.window
    sizes = zip(window.padded_size((height, width)), window.extent, window.stride, strict=True)
    if any((n - extent) % step for n, extent, step in sizes):
        raise UnsupportedError("ceil_mode must be False where it changes the size of the output")


def _pool_1d(kind: type[MaxPool2d | AveragePool2d], shape: Shape, values: Mapping[str, Any]) -> Any:
    """Return a 1-d pooling as one of images of height 1."""
    flat = dict(values)
    for name, across in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
        value = flat.get(name)
        if value is not None and value not in ([], ()):
            flat[name] = (across, value if isinstance(value, int) else value[0])
    return _pool(kind, shape, flat)


def _adaptive(shape: Shape, values: Mapping[str, Any], flat: bool = False) -> Operation:
    """Return a mean over equal windows, or over everything."""
    asked = values["output_size"]
    asked = (asked,) * (1 if flat else 2) if isinstance(asked, int) or asked is None else asked
    asked = (1, *asked) if flat else tuple(asked)
    if len(shape) != 3:
        raise UnsupportedError(f"samples must be images, but have shape {shape}")
    size = tuple(n if n is not None else have for n, have in zip(asked, shape[1:], strict=True))
    if size == (1, 1):
        return GlobalAveragePool(keep_dims=True)
    if any(have % n for n, have in zip(size, shape[1:], strict=True)):
        raise UnsupportedError(
            f"output_size must divide the image's size {shape[1:]}, but is {values['output_size']}"
        )
    kernel = tuple(have // n for n, have in zip(size, shape[1:], strict=True))
    return Dropout() if kernel == (1, 1) else AveragePool2d(kernel)


def _two(value: Any) -> Any:
    """Return a pair; of a single number in a list, one for images of height 1."""
    if isinstance(value, int):
        return (value, value)
    return (1, *value) if len(value) == 1 else tuple(value)


# Shapes ------------------------------------------------------------------------------------------


def reshaped(shape: Shape, new: tuple[int, ...]) -> Operation:
    """Return the operation that gives samples another shape."""
    if new in ((-1,), (math.prod(shape),)):
        return Flatten()
    return Reshape(new)


def with_axis(name: str, dim: int, shape: Shape) -> tuple[int, ...]:
    """Return a shape with an axis of size 1 less (squeeze) or more (unsqueeze)."""
    if name == "unsqueeze":
        axis = sample_axis(dim, (*shape, 1))
        return (*shape[:axis], 1, *shape[axis:])
    axis = sample_axis(dim, shape)
    return shape if shape[axis] != 1 else (*shape[:axis], *shape[axis + 1 :])


def bound(
    parameters: Mapping[str, Any], args: list[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the values of a function's parameters."""
    given = dict(zip(parameters, args, strict=False))
    if len(args) > len(parameters):
        raise UnsupportedError(f"it takes {list(parameters)}, but was given {args}")
    for name, value in kwargs.items():
        if name not in parameters and value is not None and name != "_stacklevel":
            # Flags such as inplace that change nothing in evaluation are false here.
            if value is not False:
                raise UnsupportedError(f"its argument {name}={value!r} is not supported")
            continue
        given[name] = value
    return {**parameters, **given}


def _flatten(shape: Shape, values: Mapping[str, Any]) -> Operation:
    if values["start_dim"] == 0:
        raise UnsupportedError("samples must be kept apart: start_dim must be at least 1")
    first = sample_axis(values["start_dim"], shape)
    last = sample_axis(values["end_dim"], shape)
    return reshaped(
        shape, (*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :])
    )  # fmt: skip


def _unflatten(shape: Shape, values: Mapping[str, Any]) -> Operation:
    axis = sample_axis(values["dim"], shape)
    return Reshape((*shape[:axis], *values["unflattened_size"], *shape[axis + 1 :]))


_MAX = {"kernel_size": None, "stride": None, "padding": 0, "dilation": 1, "ceil_mode": False,
        "return_indices": False}  # fmt: skip
_AVERAGE = {"kernel_size": None, "stride": None, "padding": 0, "ceil_mode": False,
            "count_include_pad": True}  # fmt: skip
_DROPOUT = Reader(_dropout, {"p": 0.5, "training": True, "inplace": False})

#: By the name of the function, without a trailing underscore.
READERS: dict[str, Reader] = {
    "relu": _fixed("relu"),
    "relu6": _fixed("relu6"),
    "tanh": _fixed("tanh"),
    "sigmoid": _fixed("sigmoid"),
    "hardsigmoid": _fixed("hard_sigmoid"),
    "silu": _fixed("silu"),
    "leaky_relu": Reader(_leaky_relu, {"negative_slope": 0.01, "inplace": False}),
    "prelu": Reader(_prelu, {"weight": None}, "channels"),
    "hardtanh": Reader(
        lambda shape, values: _clipped(values["min_val"], values["max_val"]),
        {"min_val": -1.0, "max_val": 1.0, "inplace": False},
    ),
    "clamp": Reader(
        lambda shape, values: _clipped(values["min"], values["max"]), {"min": None, "max": None}
    ),
    "elu": Reader(
        lambda shape, values: Activate(ELU(values["alpha"])), {"alpha": 1.0, "inplace": False}
    ),
    "gelu": Reader(
        lambda shape, values: Activate(GELU(values["approximate"] == "tanh")),
        {"approximate": "none"},
    ),
    "softplus": Reader(_softplus, {"beta": 1, "threshold": SOFTPLUS_THRESHOLD}),
    "dropout": _DROPOUT,
    "dropout1d": _DROPOUT,
    "dropout2d": _DROPOUT,
    "identity": Reader(lambda shape, values: Dropout(), {}),
    "softmax": Reader(lambda shape, values: _softmax(shape, values, False), {"dim": None}, "plain"),
    "log_softmax": Reader(
        lambda shape, values: _softmax(shape, values, True), {"dim": None}, "plain"
    ),
    "max_pool2d": Reader(lambda *given: _pool(MaxPool2d, *given), _MAX, "plain"),
    "max_pool1d": Reader(lambda *given: _pool_1d(MaxPool2d, *given), _MAX, "flat"),
    "avg_pool2d": Reader(
        lambda *given: _pool(AveragePool2d, *given), {**_AVERAGE, "divisor_override": None}, "plain"
    ),
    "avg_pool1d": Reader(lambda *given: _pool_1d(AveragePool2d, *given), _AVERAGE, "flat"),
    "adaptive_avg_pool2d": Reader(_adaptive, {"output_size": None}, "plain"),
    "adaptive_avg_pool1d": Reader(
        lambda shape, values: _adaptive(shape, values, flat=True), {"output_size": None}, "flat"
    ),
    "flatten": Reader(_flatten, {"start_dim": 0, "end_dim": -1}, "plain"),
    "unflatten": Reader(_unflatten, {"dim": None, "unflattened_size": None}, "plain"),
}

#: Modules without weights to prune, by class, and the function of the same purpose.
MODULES = {
    "ReLU": "relu", "ReLU6": "relu6", "Tanh": "tanh", "Sigmoid": "sigmoid",
    "Hardsigmoid": "hardsigmoid", "SiLU": "silu", "LeakyReLU": "leaky_relu", "PReLU": "prelu",
    "Hardtanh": "hardtanh", "ELU": "elu", "GELU": "gelu", "Softplus": "softplus",
    "Dropout": "dropout", "Dropout1d": "dropout", "Dropout2d": "dropout", "Identity": "identity",
    "Softmax": "softmax", "LogSoftmax": "log_softmax", "MaxPool1d": "max_pool1d",
    "MaxPool2d": "max_pool2d", "AvgPool1d": "avg_pool1d", "AvgPool2d": "avg_pool2d",
    "AdaptiveAvgPool1d": "adaptive_avg_pool1d", "AdaptiveAvgPool2d": "adaptive_avg_pool2d",
    "Flatten": "flatten", "Unflatten": "unflatten",
}  # fmt: skip

#: Modules with weights or statistics, by class.
WEIGHTED: dict[str, tuple[Callable[[Any], Operation], Form]] = {
    "Linear": (linear, "tokens"),
    "Conv1d": (convolution, "flat"),
    "Conv2d": (convolution, "plain"),
    "BatchNorm1d": (normalisation, "channels"),
    "BatchNorm2d": (normalisation, "channels"),
    "Embedding": (embedding, "plain"),
}
