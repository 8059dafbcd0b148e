"""PyTorch: operations of a network, one behind the other, with signals in the form each takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..exceptions import ProblemError, UnsupportedError
from ..network import Add, Affine, Concatenate, GlobalAveragePool, Operation, Reshape, Transpose
from ..network.operations import Shape
from ..network.wiring import INPUT
from .torch_operations import (
    Form,
    Reader,
    bound,
    reshaped,
    sample_axis,
    with_axis,
)
from .torch_values import Signal, new_shape, sample_constant


@dataclass
class Building:
    """The operations so far.

    Attributes
    ----------
    operations : list of Operation
    names : set of str
        Names that are given away.
    taken : set of str
        Names that belong to modules, and are given to these alone.
    """

    operations: list[Operation] = field(default_factory=list)
    names: set[str] = field(default_factory=lambda: {INPUT})
    taken: set[str] = field(default_factory=set)

    def append(self, op: Operation, name: str, *signals: Signal) -> Signal:
        """Add an operation behind signals, under a name of its own."""
        own = name if name in self.taken and name not in self.names else ""
        number = 0
        while not own:
            candidate = f"{name}_{number}" if number else name
            own = candidate if candidate not in self.names | self.taken else ""
            number += 1
        self.names.add(own)
        shape = op.output_shape(*(signal.shape for signal in signals))
        self.operations.append(replace(op, name=own, inputs=tuple(one.name for one in signals)))
        kept = signals[0] if len(shape) == 3 else Signal("", ())
        return replace(kept, name=own, shape=shape)

    # Forms ------------------------------------------------------------------------------------

    def formed(self, signal: Signal, form: Form) -> Signal:
        """Return a signal in the form that an operation takes."""
        if form == "any" or (form == "channels" and signal.form != "tokens"):
            return signal
        if form in ("plain", "channels"):
            return self.plain(signal)
        if form == "tokens":
            return self._tokens(signal)
        return self._flat(signal)

    def plain(self, signal: Signal) -> Signal:
        """Return a signal in PyTorch's shape."""
        sizes = signal.sizes
        if signal.form == "tokens":
            vectors = self.append(Transpose((1, 2, 0)), "signal", signal)
            found = self.append(Reshape(sizes), "signal", vectors)
            return Signal(found.name, sizes)
        if signal.form == "flat":
            found = self.append(reshaped(signal.shape, sizes), "signal", signal)
            return Signal(found.name, sizes)
        return signal

    def _flat(self, signal: Signal) -> Signal:
        """Return a 1-d signal as an image of height 1."""
        signal = signal if signal.form == "flat" else self.plain(signal)
        if signal.form == "flat":
            return signal
        if len(signal.shape) != 2:
            raise ProblemError(f"samples must be (channels, length), but are {signal.shape}")
        channels, length = signal.shape
        image = self.append(reshaped(signal.shape, (channels, 1, length)), "image", signal)
        return replace(image, form="flat")

    def _tokens(self, signal: Signal) -> Signal:
        """Return several vectors per sample as an image of height 1; a single one stays."""
        signal = signal if signal.form == "tokens" else self.plain(signal)
        if signal.form == "tokens" or len(signal.shape) < 2:
            return signal
        *positions, n_features = signal.shape
        rows = signal
        if len(positions) > 1:
            rows = self.append(Reshape((-1, n_features)), "vectors", rows)
        turned = self.append(Transpose((1, 0)), "vectors", rows)
        image = self.append(Reshape((n_features, 1, -1)), "vectors", turned)
        return replace(image, form="tokens", positions=tuple(positions))

    # Operations -------------------------------------------------------------------------------

    def applied(self, reader: Reader, signal: Any, values: Mapping[str, Any], name: str) -> Signal:
        """Return what a function without weights makes of a signal."""
        if signal.form == "flat" and (values.get("start_dim"), values.get("end_dim")) == (1, -1):
            # The same numbers with or without the height.
            return self.append(reshaped(signal.shape, (-1,)), name, signal)
        formed = self.formed(signal, reader.form)
        return self.append(reader.build(formed.shape, values), name, formed)

    def alike(self, signals: Iterable[Signal]) -> list[Signal]:
        """Return signals in one form."""
        found = list(signals)
        if len({(one.form, one.positions) for one in found}) == 1:
            return found
        return [self.plain(one) for one in found]

    def arithmetic(self, sign: str, args: list[Any], kwargs: Any, name: str) -> Signal:
        """Return a sum of signals, or a signal with a constant."""
        if kwargs.get("alpha", 1) != 1 or kwargs.get("rounding_mode") is not None:
            raise UnsupportedError("alpha must be 1, and there must be no rounding_mode")
        if "other" in kwargs:
            args = [*args, kwargs["other"]]
        if sign == "neg":
            return self.append(Affine(-1.0), name, args[0])
        a, b = args
        if isinstance(a, Signal) and isinstance(b, Signal):
            if sign != "+":
                raise UnsupportedError("of two signals only the sum is supported")
            return self.append(Add(), name, *self.alike([a, b]))
        first = isinstance(a, Signal)
        given = a if first else b
        c = sample_constant(b if first else a, given.sizes)
        signal = self.plain(given) if c.ndim else given
        if sign == "/" and not first:
            raise UnsupportedError("a constant cannot be divided by a signal")
        if sign == "*":
            affine = Affine(c)
        elif sign == "/":
            affine = Affine(1.0 / c)
        elif sign == "+":
            affine = Affine(1.0, c)
        else:
            affine = Affine(1.0, -c) if first else Affine(-1.0, c)
        return self.append(affine, name, signal)

    def concatenated(self, args: list[Any], kwargs: Mapping[str, Any], name: str) -> Signal:
        """Return signals put together along one axis."""
        values = bound({"tensors": (), "dim": 0}, args, kwargs)
        given = list(values["tensors"])
        if not all(isinstance(one, Signal) for one in given):
            raise UnsupportedError("signals may be put together with signals alone")
        signals = self.alike(given)
        if len(signals) == 1:
            return signals[0]
        axis = sample_axis(values["dim"], signals[0].sizes)
        form = signals[0].form
        channels = {"flat": 0, "tokens": len(signals[0].sizes) - 1}.get(form)
        if form != "plain" and axis != channels:
            signals = [self.plain(one) for one in signals]
            return self.append(Concatenate(axis), name, *signals)
        return self.append(Concatenate(0 if form != "plain" else axis), name, *signals)

    def shaped(self, kind: str, given: Signal, args: list[Any], kwargs: Any, name: str) -> Signal:
        """Return a signal in another shape, or the mean over its positions."""
        if kind == "mean":
            values = bound({"dim": None, "keepdim": False}, args, kwargs)
            return self._mean(given, values["dim"], bool(values["keepdim"]), name)
        signal = self.plain(given)
        shape = signal.shape
        numbers = list(args[0]) if args and isinstance(args[0], (tuple, list)) else list(args)
        if kind in ("view", "reshape"):
            numbers = numbers or list(kwargs.get("size", kwargs.get("shape", ())))
            op = reshaped(shape, new_shape(numbers, shape))
        elif kind == "permute":
            numbers = numbers or list(kwargs["dims"])
            if numbers[0] != 0:
                raise UnsupportedError("samples must stay the first axis")
            op = Transpose([sample_axis(dim, shape) for dim in numbers[1:]])
        elif kind == "transpose":
            i, j = (sample_axis(dim, shape) for dim in numbers or kwargs.values())
            axes = list(range(len(shape)))
            axes[i], axes[j] = axes[j], axes[i]
            op = Transpose(axes)
        else:
            (dim,) = numbers or kwargs.values()
            op = reshaped(shape, with_axis(kind, dim, shape))
        return self.append(op, name, signal)

    def _mean(self, signal: Signal, dim: Any, keep: bool, name: str) -> Signal:
        """Return the mean over all positions: of images, 1-d signals, or several vectors."""
        sizes: Shape = signal.sizes
        dims = dim if isinstance(dim, (tuple, list)) else [dim]
        axes = {sample_axis(one, sizes) for one in dims}
        if len(sizes) == 3 and axes == {1, 2} and signal.form == "plain":
            return self.append(GlobalAveragePool(keep), name, signal)
        kept: Shape
        if len(sizes) == 2 and axes == {1}:
            image, kept = self._flat(signal), (sizes[0], 1)
        elif len(sizes) > 1 and axes == {*range(len(sizes) - 1)}:
            image, kept = self._tokens(signal), (*[1] * len(axes), sizes[-1])
        else:
            raise UnsupportedError(
                f"means are supported over all positions, but samples of shape {sizes} are over "
                f"dim={dim}"
            )
        found = self.append(GlobalAveragePool(), name, image)
        return self.append(Reshape(kept), name, found) if keep else found
