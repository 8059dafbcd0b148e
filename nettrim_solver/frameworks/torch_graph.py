"""PyTorch: a module's forward, traced by ``torch.fx``, as operations of a network."""

from __future__ import annotations

import contextlib
import operator
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..exceptions import ProblemError, UnsupportedError
from ..network import Add, Affine, GlobalAveragePool, Network, Operation, Transpose
from ..network.operations import Shape
from ..network.wiring import INPUT
from .opaque import first_line, opaque_names
from .torch_opaque import opaque_operation
from .torch_operations import (
    MODULES,
    READERS,
    WEIGHTED,
    Form,
    Reader,
    bound,
    reshaped,
    sample_axis,
    with_axis,
)
from .torch_values import (
    SHAPING,
    Signal,
    checked_shape,
    computed,
    constant,
    import_torch,
    new_shape,
    sample_constant,
    supported,
)

#: Functions with one or two signals, by all their names.
ARITHMETIC = {
    "add": "+", "iadd": "+", "sub": "-", "isub": "-", "mul": "*", "imul": "*",
    "truediv": "/", "itruediv": "/", "div": "/", "neg": "neg",
}  # fmt: skip
UNCHANGED = ("contiguous", "clone", "_assert")


@dataclass(frozen=True)
class Traced:
    """A network, and the modules that its layers and batch normalisations come from, by name."""

    network: Network
    modules: dict[str, Any]


def check_module(module: Any) -> None:
    """Raise unless this is a torch.nn.Module that torch.fx can look into."""
    torch = import_torch()
    if not isinstance(module, torch.nn.Module):
        raise ProblemError(f"module must be a torch.nn.Module, but was {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedError(
            "module must be the one that torch.jit.script or torch.jit.trace was given, but is "
            "what it returned, which cannot be traced again"
        )
    if hasattr(module, "_orig_mod"):
        raise UnsupportedError(
            "module must be the one that torch.compile was given, module._orig_mod, but is what it "
            "returned"
        )


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


def rooted(module: Any) -> Any:
    """Return a module that holds its operations as parts, whose names they can have."""
    if not is_known(module):
        return module
    return import_torch().nn.Sequential(OrderedDict([(kind_of(module).lower(), module)]))


def trace(module: Any, input_shape: Any = None, opaque: Iterable[str] = ()) -> Traced:
    """Return a module's forward as a network.

    Raises
    ------
    ProblemError, UnsupportedError
        See :func:`.from_torch`.
    """
    check_module(module)
    root = rooted(module)
    parts = dict(root.named_modules())
    del parts[""]
    left = opaque_names(opaque, parts)
    with evaluating(module):
        return _Reading(root, left).read(_graph(root, left), input_shape)


def _graph(root: Any, opaque: frozenset[str]) -> Any:
    """Return what torch.fx sees of a module's forward."""
    torch = import_torch()
    blamed: list[str] = []

    class Tracer(torch.fx.Tracer):  # type: ignore[misc, name-defined]
        def is_leaf_module(self, inner: Any, name: str) -> bool:
            return name in opaque or is_known(inner) or super().is_leaf_module(inner, name)

        def call_module(self, m: Any, forward: Any, args: Any, kwargs: Any) -> Any:
            try:
                return super().call_module(m, forward, args, kwargs)
            except Exception:
                blamed.append(self.path_of_module(m))
                raise

    try:
        return Tracer().trace(root)
    except Exception as error:
        # Whatever the module's own code raises when it meets a symbol instead of a tensor.
        where = f" (in {blamed[0]!r})" if blamed else ""
        raise UnsupportedError(
            f"module {type(root).__name__} must have a forward that torch.fx can trace, without "
            f"decisions on the data; it says{where}: {first_line(error)}{_remedy(*blamed[:1])}"
        ) from None


def _remedy(name: str = "") -> str:
    """Return what can be done about a part."""
    part = f"opaque=[{name!r}] leaves that part to PyTorch, not pruned; " if name else ""
    return f"; {part}record=True needs no tracing"


@dataclass
class _Reading:
    """The state while a graph is read."""

    root: Any
    opaque: frozenset[str] = frozenset()
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
        shape = checked_shape(input_shape)
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
        where, part = f"function {node.name!r}", ""
        if node.op == "call_module":
            part = str(node.target)
            where = f"module {part!r} ({type(self._part(node)).__name__})"
        elif node.meta.get("nn_module_stack"):
            part = str(next(reversed(node.meta["nn_module_stack"])))
            where += f" in module {part!r}"
        remedy = "" if part in self.opaque else _remedy(part)
        try:
            if node.op == "get_attr":
                return constant(operator.attrgetter(node.target)(self.root))
            args = import_torch().fx.map_arg(node.args, self.known.__getitem__)
            kwargs = import_torch().fx.map_arg(node.kwargs, self.known.__getitem__)
            if node.op == "call_module":
                return self._call_module(node, args[0] if args else kwargs["input"])
            return self._call(node, list(args), dict(kwargs))
        except UnsupportedError as error:
            raise UnsupportedError(f"{where}: {error}{remedy}") from None
        except ProblemError as error:
            raise ProblemError(f"{where}: {error}") from None
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise UnsupportedError(
                f"{where}: its arguments are not understood ({first_line(error)}){remedy}"
            ) from None

    def _part(self, node: Any) -> Any:
        return self.root.get_submodule(node.target)

    def _call_module(self, node: Any, signal: Any) -> Signal:
        part, kind = self._part(node), kind_of(self._part(node))
        name = str(node.target)
        if name in self.opaque:
            return self._opaque(node, part, name, signal)
        if getattr(part, "parametrizations", None) or any(
            f"{tensor}_orig" in part._parameters for tensor in ("weight", "bias")
        ):
            raise UnsupportedError(
                "its weights must be plain parameters: call torch.nn.utils.prune.remove or "
                "torch.nn.utils.parametrize.remove_parametrizations first"
            )
        if not is_known(part):
            raise UnsupportedError(f"it is not supported; supported are {supported()}")
        if kind not in WEIGHTED:
            reader = READERS[MODULES[kind]]
            values = {
                key: getattr(part, key, default) for key, default in reader.parameters.items()
            }
            return self._apply(reader, signal, values, name)
        self._once([part, *(one for one in part._parameters.values() if one is not None)])
        build, form = WEIGHTED[kind]
        signal = self._formed(signal, form)
        found = self._append(build(part), name, signal)
        self.modules[found.name] = part
        return found

    def _opaque(self, node: Any, part: Any, name: str, signal: Any) -> Signal:
        """Return what a part makes of a signal that PyTorch itself is to compute."""
        if len(node.args) + len(node.kwargs) != 1 or not isinstance(signal, Signal):
            raise UnsupportedError("a part that is left to PyTorch must take one tensor")
        self._once(part.parameters())
        plain = self._plain(signal)
        floating = [one.dtype for one in self.root.parameters() if one.is_floating_point()]
        double = import_torch().float64 in floating
        return self._append(
            opaque_operation(name, part, plain.shape, "d" if double else "f"), name, plain
        )

    def _once(self, tensors: Iterable[Any]) -> None:
        """Raise if weights were used before."""
        found = {id(tensor) for tensor in tensors}
        if found & self.seen:
            raise UnsupportedError("its weights must be used once, but are shared")
        self.seen |= found

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
            return computed(target, plain, args, kwargs)
        if plain in ARITHMETIC:
            found = self._arithmetic(node, ARITHMETIC[plain], args, kwargs)
        elif plain in SHAPING:
            found = self._shape(node, plain, signals[0], args[1:], kwargs)
        elif plain in READERS:
            reader = READERS[plain]
            values = bound(reader.parameters, args[1:], kwargs)
            return self._apply(reader, args[0], values, node.name, name != plain)
        else:
            raise UnsupportedError(f"{name} is not supported; supported are {supported()}")
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
        c = sample_constant(b if first else a, signal.shape)
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
            op = reshaped(shape, new_shape(numbers, shape))
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
