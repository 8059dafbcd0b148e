"""PyTorch: a module's forward, traced by ``torch.fx``, as operations of a network."""

from __future__ import annotations

import contextlib
import math
import operator
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..exceptions import MissingDependencyError, ProblemError, UnsupportedError
from ..network import Add, Affine, GlobalAveragePool, Network, Operation, Transpose
from ..network.graph import INPUT
from ..network.operations import Shape
from .torch_operations import (
    MODULES,
    READERS,
    WEIGHTED,
    Form,
    Reader,
    array,
    bound,
    reshaped,
    sample_axis,
    with_axis,
)

#: Functions with one or two signals, by all their names.
ARITHMETIC = {
    "add": "+", "iadd": "+", "sub": "-", "isub": "-", "mul": "*", "imul": "*",
    "truediv": "/", "itruediv": "/", "div": "/", "neg": "neg",
}  # fmt: skip
UNCHANGED = ("contiguous", "clone", "_assert")
SHAPING = ("view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "mean")


class _Batch:
    """The number of samples, which a network does not know."""

    def __repr__(self) -> str:
        return "n_samples"


BATCH = _Batch()


@dataclass(frozen=True)
class Signal:
    """What an operation gives: its name, and the shape of one sample.

    A 1-d signal may be an image of height 1, `flat`: PyTorch's shape then lacks that axis.
    """

    name: str
    shape: Shape
    flat: bool = False

    @property
    def sizes(self) -> Shape:
        """The shape of one sample in PyTorch."""
        return (self.shape[0], *self.shape[2:]) if self.flat else self.shape


@dataclass(frozen=True)
class Traced:
    """A network, and the modules that its layers and batch normalisations come from, by name."""

    network: Network
    modules: dict[str, Any]


def import_torch() -> Any:
    """Return the package torch, or raise MissingDependencyError."""
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            f"torch is not installed ({error}): python -m pip install 'nettrim-solver[torch]'"
        ) from None
    return torch


def check_module(module: Any) -> None:
    """Raise unless this is a torch.nn.Module."""
    if not isinstance(module, import_torch().nn.Module):
        raise ProblemError(f"module must be a torch.nn.Module, but was {type(module).__name__}")


@contextlib.contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """Have a module compute as in evaluation, and give every part its own mode back."""
    # The flags themselves: eval() may be overridden.
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, training in modes:
            part.training = training


def kind_of(module: Any) -> str:
    """Return the name of PyTorch's class that computes a module, or that of its own class."""
    for cls in type(module).__mro__:
        if cls.__module__.startswith("torch.nn."):
            same = type(module).forward is getattr(cls, "forward", None)
            return str(cls.__name__ if same else type(module).__name__)
    return type(module).__name__


def is_known(module: Any) -> bool:
    """Return whether a module is an operation by itself."""
    return kind_of(module) in MODULES or kind_of(module) in WEIGHTED


def trace(module: Any, input_shape: Any = None) -> Traced:
    """Return a module's forward as a network.

    Raises
    ------
    ProblemError, UnsupportedError
        See :func:`.from_torch`.
    """
    check_module(module)
    torch = import_torch()

    class Tracer(torch.fx.Tracer):  # type: ignore[misc, name-defined]
        def is_leaf_module(self, inner: Any, name: str) -> bool:
            return is_known(inner) or super().is_leaf_module(inner, name)

    root = module
    if is_known(module):
        # Tracing looks into the outermost module.
        root = torch.nn.Sequential(OrderedDict([(kind_of(module).lower(), module)]))
    with evaluating(module):
        try:
            graph = Tracer().trace(root)
        except Exception as error:
            # Whatever the module's own code raises when it meets a symbol instead of a tensor.
            raise UnsupportedError(
                f"module {type(module).__name__} must have a forward that torch.fx can trace, "
                f"without decisions on the data; it says: {_first_line(error)}"
            ) from None
        return _Reading(root).read(graph, input_shape)


@dataclass
class _Reading:
    """The state while a graph is read."""

    root: Any
    operations: list[Operation] = field(default_factory=list)
    modules: dict[str, Any] = field(default_factory=dict)
    known: dict[Any, Any] = field(default_factory=dict)
    names: set[str] = field(default_factory=lambda: {INPUT})
    seen: set[int] = field(default_factory=set)
    taken: set[str] = field(default_factory=set)

    def read(self, graph: Any, input_shape: Any) -> Traced:
        """Return the network of a graph."""
        nodes = list(graph.nodes)
        places = [node for node in nodes if node.op == "placeholder"]
        unused = [node for node in places[1:] if not node.users]
        if len(places) - len(unused) != 1:
            raise UnsupportedError(
                f"module must take one tensor, but takes {[node.target for node in places]}"
            )
        if input_shape is None:
            input_shape = self._first_linear(places[0])
        shape = _checked(input_shape)
        self.known.update({node: None for node in unused})
        self.known[places[0]] = Signal(INPUT, shape)
        # Names of modules come before those that torch.fx makes up.
        self.taken = {str(node.target) for node in nodes if node.op == "call_module"}
        for node in nodes:
            if node.op == "output":
                return self._finished(node.args[0], shape)
            if node not in self.known:
                self.known[node] = self._read_node(node)
        raise AssertionError("torch.fx ends every graph with its output")

    def _first_linear(self, place: Any) -> Shape:
        """Return the input shape that a linear module on the input asks for."""
        waiting = [place]
        for node in waiting:
            for user in node.users:
                part = self._part(user) if user.op == "call_module" else None
                if part is not None and kind_of(part) == "Linear":
                    return (int(part.in_features),)
                reader = READERS.get(MODULES.get(kind_of(part), "")) if part is not None else None
                if reader is not None and reader.form == "any":
                    waiting.append(user)
        raise ProblemError(
            "input_shape must be given: the shape of one sample without the samples, such as "
            "(3, 32, 32); only a linear module at the beginning tells it"
        )

    def _finished(self, result: Any, shape: Shape) -> Traced:
        """Return the network of what the output depends on."""
        signal = self.known.get(result) if not isinstance(result, (tuple, list, dict)) else None
        if not isinstance(signal, Signal):
            raise UnsupportedError("module must return one tensor, computed from its input")
        signal = self._plain(signal)
        needed, sources = {signal.name}, {op.name: op.inputs for op in self.operations}
        for op in reversed(self.operations):
            if op.name in needed:
                needed.update(sources[op.name])
        operations = [op for op in self.operations if op.name in needed]
        modules = {name: part for name, part in self.modules.items() if name in needed}
        return Traced(Network(operations, shape), modules)

    # One node ---------------------------------------------------------------------------------

    def _read_node(self, node: Any) -> Any:
        """Return the value of a node: a signal, or what shapes and constants are made of."""
        where = f"function {node.name!r}"
        if node.op == "call_module":
            where = f"module {node.target!r} ({type(self._part(node)).__name__})"
        elif node.meta.get("nn_module_stack"):
            where += f" in module {next(reversed(node.meta['nn_module_stack']))!r}"
        try:
            if node.op == "get_attr":
                return _constant(operator.attrgetter(node.target)(self.root))
            args = import_torch().fx.map_arg(node.args, self.known.__getitem__)
            kwargs = import_torch().fx.map_arg(node.kwargs, self.known.__getitem__)
            if node.op == "call_module":
                return self._call_module(node, args[0] if args else kwargs["input"])
            return self._call(node, list(args), dict(kwargs))
        except UnsupportedError as error:
            raise UnsupportedError(f"{where}: {error}") from None
        except ProblemError as error:
            raise ProblemError(f"{where}: {error}") from None
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise UnsupportedError(
                f"{where}: its arguments are not understood ({_first_line(error)})"
            ) from None

    def _part(self, node: Any) -> Any:
        return self.root.get_submodule(node.target)

    def _call_module(self, node: Any, signal: Any) -> Signal:
        part, kind = self._part(node), kind_of(self._part(node))
        name = str(node.target)
        if getattr(part, "parametrizations", None) or any(
            f"{tensor}_orig" in part._parameters for tensor in ("weight", "bias")
        ):
            raise UnsupportedError(
                "its weights must be plain parameters: call torch.nn.utils.prune.remove or "
                "torch.nn.utils.parametrize.remove_parametrizations first"
            )
        if not is_known(part):
            raise UnsupportedError(f"it is not supported; supported are {_names()}")
        if kind not in WEIGHTED:
            reader = READERS[MODULES[kind]]
            values = {
                key: getattr(part, key, default) for key, default in reader.parameters.items()
            }
            return self._apply(reader, signal, values, name)
        tensors = {id(tensor) for tensor in part._parameters.values() if tensor is not None}
        tensors.add(id(part))
        if tensors & self.seen:
            raise UnsupportedError("its weights must be used once, but are shared")
        self.seen |= tensors
        build, form = WEIGHTED[kind]
        signal = self._formed(signal, form)
        found = self._append(build(part), name, signal)
        self.modules[found.name] = part
        return found

    def _call(self, node: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Return the value of a function or method."""
        target = node.target
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        origin = "" if isinstance(target, str) else getattr(target, "__module__", None) or "torch"
        if origin.split(".")[0] not in ("", "torch", "_operator", "builtins", "math"):
            raise UnsupportedError(f"functions of {origin!r} are not supported")
        plain = name if name.startswith("_") else name.rstrip("_")
        if plain in UNCHANGED:
            return args[0] if plain != "_assert" else None
        if "input" in kwargs:
            args.insert(0, kwargs.pop("input"))
        signals = [value for value in args if isinstance(value, Signal)]
        if not signals or plain in ("getattr", "size", "dim", "getitem"):
            return _sizes(target, plain, args, kwargs)
        if plain in ARITHMETIC:
            found = self._arithmetic(node, ARITHMETIC[plain], args, kwargs)
        elif plain in SHAPING:
            found = self._shape(node, plain, signals[0], args[1:], kwargs)
        elif plain in READERS:
            reader = READERS[plain]
            values = bound(reader.parameters, args[1:], kwargs)
            return self._apply(reader, args[0], values, node.name, name != plain)
        else:
            raise UnsupportedError(f"{name} is not supported; supported are {_names()}")
        return self._in_place(args[0], found) if name != plain else found

    def _apply(
        self,
        reader: Reader,
        signal: Any,
        values: Mapping[str, Any],
        name: str,
        in_place: bool = False,
    ) -> Signal:
        if signal.flat and (values.get("start_dim"), values.get("end_dim")) == (1, -1):
            # The same numbers with or without the height.
            return self._append(reshaped(signal.shape, (-1,)), name, signal)
        formed = self._formed(signal, reader.form)
        found = self._append(reader.build(formed.shape, values), name, formed)
        return self._in_place(signal, found) if in_place or values.get("inplace") else found

    def _in_place(self, old: Signal, new: Signal) -> Signal:
        """Give everyone who holds a signal what took its place."""
        for node, value in self.known.items():
            if isinstance(value, Signal) and value.name == old.name:
                self.known[node] = new
        return new

    # Operations -------------------------------------------------------------------------------

    def _append(self, op: Operation, name: str, *signals: Signal) -> Signal:
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
        return Signal(own, shape, signals[0].flat and len(shape) == 3)

    def _formed(self, signal: Signal, form: Form) -> Signal:
        """Return a signal in the form that an operation takes."""
        if form == "plain":
            return self._plain(signal)
        if form == "any" or signal.flat:
            return signal
        if len(signal.shape) != 2:
            raise ProblemError(f"samples must be (channels, length), but are {signal.shape}")
        channels, length = signal.shape
        image = self._append(reshaped(signal.shape, (channels, 1, length)), "image", signal)
        return replace(image, flat=True)

    def _plain(self, signal: Signal) -> Signal:
        """Return a signal in PyTorch's shape."""
        if not signal.flat:
            return signal
        found = self._append(reshaped(signal.shape, signal.sizes), "signal", signal)
        return replace(found, flat=False)

    def _arithmetic(self, node: Any, sign: str, args: list[Any], kwargs: Any) -> Signal:
        """Return a sum of signals, or a signal with a constant."""
        if kwargs.get("alpha", 1) != 1 or kwargs.get("rounding_mode") is not None:
            raise UnsupportedError("alpha must be 1, and there must be no rounding_mode")
        if "other" in kwargs:
            args = [*args, kwargs["other"]]
        if sign == "neg":
            return self._append(Affine(-1.0), node.name, self._plain(args[0]))
        a, b = args
        if isinstance(a, Signal) and isinstance(b, Signal):
            if sign != "+":
                raise UnsupportedError("of two signals only the sum is supported")
            if a.flat != b.flat:
                a, b = self._plain(a), self._plain(b)
            return self._append(Add(), node.name, a, b)
        first = isinstance(a, Signal)
        signal = self._plain(a if first else b)
        c = _sample_constant(b if first else a, signal.shape)
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
        return self._append(affine, node.name, signal)

    def _shape(
        self, node: Any, name: str, given: Signal, args: list[Any], kwargs: dict[str, Any]
    ) -> Signal:
        """Return a signal in another shape, or the mean over its axes."""
        signal = self._plain(given)
        shape = signal.shape
        numbers = list(args[0]) if args and isinstance(args[0], (tuple, list)) else list(args)
        if name in ("view", "reshape"):
            numbers = numbers or list(kwargs.get("size", kwargs.get("shape", ())))
            op = reshaped(shape, _new_shape(numbers, shape))
        elif name == "permute":
            numbers = numbers or list(kwargs["dims"])
            if numbers[0] != 0:
                raise UnsupportedError("samples must stay the first axis")
            op = Transpose([sample_axis(dim, shape) for dim in numbers[1:]])
        elif name == "transpose":
            i, j = (sample_axis(dim, shape) for dim in numbers or kwargs.values())
            axes = list(range(len(shape)))
            axes[i], axes[j] = axes[j], axes[i]
            op = Transpose(axes)
        elif name == "mean":
            return self._mean(node, signal, bound({"dim": None, "keepdim": False}, args, kwargs))
        else:
            (dim,) = numbers or kwargs.values()
            op = reshaped(shape, with_axis(name, dim, shape))
        return self._append(op, node.name, signal)

    def _mean(self, node: Any, signal: Signal, values: Mapping[str, Any]) -> Signal:
        dims = values["dim"] if isinstance(values["dim"], (tuple, list)) else [values["dim"]]
        axes = {sample_axis(dim, signal.shape) for dim in dims}
        if len(signal.shape) != 3 or axes != {1, 2}:
            raise UnsupportedError("means are supported over height and width of images alone")
        return self._append(GlobalAveragePool(bool(values["keepdim"])), node.name, signal)


# Values ------------------------------------------------------------------------------------------


def _sizes(target: Any, name: str, args: list[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return what is computed from shapes and numbers alone."""
    first = args[0] if args else None
    if isinstance(first, Signal):
        full = (BATCH, *first.sizes)
        if name == "getattr" and args[1] in ("shape", "ndim"):
            return full if args[1] == "shape" else len(full)
        if name == "size":
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            return full if dim is None else full[dim]
        if name == "dim":
            return len(full)
        raise UnsupportedError(f"{name} of a signal is not supported ({args[1:]})")
    if any(value is BATCH for value in args):
        raise UnsupportedError("samples must not be mixed: their number is computed with")
    if callable(target) and not _holds_signal(args):
        return target(*args, **kwargs)
    raise UnsupportedError(f"{name} is not supported; supported are {_names()}")


def _holds_signal(args: list[Any]) -> bool:
    return any(
        isinstance(value, Signal)
        for arg in args
        for value in (arg if isinstance(arg, (tuple, list)) else [arg])
    )


def _constant(value: Any) -> Any:
    """Return a tensor of the module as an array."""
    if isinstance(value, import_torch().Tensor):
        # Numbers of any dtype may scale a signal; half precision is no weight here.
        return array(value if value.dtype.is_floating_point else value.double())
    return value


def _sample_constant(value: Any, shape: Shape) -> Any:
    """Return a constant without the axis of the samples."""
    c = np.asarray(value, dtype=None if isinstance(value, np.ndarray) else np.float64)
    if c.ndim == len(shape) + 1:
        if c.shape[0] != 1:
            raise UnsupportedError(f"constants must be the same for all samples, but are {c.shape}")
        c = c[0]
    return c


def _new_shape(numbers: list[Any], shape: Shape) -> tuple[int, ...]:
    """Return the shape of one sample that a view gives; the samples must stay apart."""
    size = math.prod(shape)
    first, *new = numbers
    if BATCH in new or not all(isinstance(n, int) for n in new):
        raise UnsupportedError(f"samples must stay the first axis, but the shape is {numbers}")
    if first is not BATCH and (first != -1 or -1 in new or math.prod(new) != size):
        raise UnsupportedError(
            f"samples of {size} entries must be kept apart, but the shape is {numbers}"
        )
    return tuple(new) if new != [size] else (-1,)


def _checked(input_shape: Any) -> Shape:
    try:
        shape = tuple(operator.index(n) for n in input_shape)
    except TypeError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ProblemError(
            f"input_shape must hold the sizes of one sample, without the samples, but was "
            f"{input_shape!r}"
        )
    return shape


def _names() -> str:
    """Return all that is supported, for messages."""
    modules = ", ".join(sorted([*WEIGHTED, *MODULES], key=str.lower))
    functions = ", ".join(sorted([*READERS, *SHAPING, "add", "sub", "mul", "div"]))
    return f"the modules {modules}; and the functions {functions}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
