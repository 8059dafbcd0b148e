"""PyTorch: a module's forward, traced by ``torch.fx``, as operations of a network."""

from __future__ import annotations

import contextlib
import operator
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..exceptions import ProblemError, UnsupportedError
from ..network import Dense, Network, Part
from ..network.operations import Shape
from ..network.wiring import INPUT
from .opaque import first_line, opaque_names
from .round_trip import table_rows
from .torch_building import Building
from .torch_opaque import opaque_operation
from .torch_operations import MODULES, READERS, WEIGHTED, Reader, bound, on_tokens
from .torch_values import (
    SHAPING,
    Inputs,
    Signal,
    computed,
    constant,
    import_torch,
    supported,
)

#: Functions with one or two signals, by all their names.
ARITHMETIC = {
    "add": "+", "iadd": "+", "sub": "-", "isub": "-", "mul": "*", "imul": "*",
    "truediv": "/", "itruediv": "/", "div": "/", "neg": "neg",
}  # fmt: skip
UNCHANGED = ("contiguous", "clone", "float", "_assert")


@dataclass(frozen=True)
class Traced:
    """A network, the modules that its layers and batch normalisations come from, and the inputs."""

    network: Network
    modules: dict[str, Any]
    inputs: Inputs


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
    lazy = torch.nn.parameter.UninitializedTensorMixin
    if any(isinstance(one, lazy) for one in [*module.parameters(), *module.buffers()]):
        raise ProblemError(
            "module must know the sizes of its layers, but has lazy ones: call it once with a batch"
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


def plain_remedy(part: Any) -> str:
    """Return how weights that are computed of other parameters become parameters; "" if they are.

    They are computed anew in every forward, which would overwrite pruned ones.
    """
    tensor = import_torch().Tensor
    for name in ("weight", "bias"):
        if name in part._parameters or name in part._buffers:
            continue
        if not isinstance(getattr(part, name, None), tensor):
            continue
        if getattr(part, "parametrizations", None):
            call = f"torch.nn.utils.parametrize.remove_parametrizations(part, {name!r})"
        elif f"{name}_mask" in part._buffers:
            call = f"torch.nn.utils.prune.remove(part, {name!r})"
        elif f"{name}_g" in part._parameters:
            call = f"torch.nn.utils.remove_weight_norm(part, {name!r})"
        elif f"{name}_orig" in part._parameters:
            call = f"torch.nn.utils.remove_spectral_norm(part, {name!r})"
        else:
            return f"{name} is an attribute, not a torch.nn.Parameter"
        return f"first call {call}"
    return ""


def is_known(module: Any) -> bool:
    """Return whether a module is an operation by itself."""
    return kind_of(module) in MODULES or kind_of(module) in WEIGHTED


def rooted(module: Any) -> Any:
    """Return a module that holds its operations as parts, whose names they can have."""
    if not is_known(module):
        return module
    return import_torch().nn.Sequential(OrderedDict([(kind_of(module).lower(), module)]))


def trace(module: Any, shapes: Sequence[Shape] | None = None, opaque: Iterable[str] = ()) -> Traced:
    """Return a module's forward as a network.

    Parameters
    ----------
    module, opaque
        See :func:`.from_torch`.
    shapes : sequence of shapes, optional
        Of one sample of every input.

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
        return _Reading(root=root, opaque=left).read(_graph(root, left), shapes)


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
            f"decisions on the data; it says{where}: {first_line(error)}{_wrapped(root)}"
            f"{_remedy(*blamed[:1])}"
        ) from None


def _wrapped(module: Any) -> str:
    """Return how to get at what ``DataParallel`` and its like hold."""
    inner = getattr(module, "module", None)
    if not isinstance(inner, import_torch().nn.Module):
        return ""
    return f"; give what {type(module).__name__} holds, module.module"


def _remedy(name: str = "") -> str:
    """Return what can be done about a part."""
    part = f"opaque=[{name!r}] leaves that part to PyTorch, not pruned; " if name else ""
    return f"; {part}record=True needs no tracing"


@dataclass
class _Reading(Building):
    """The state while a graph is read."""

    root: Any = None
    opaque: frozenset[str] = frozenset()
    modules: dict[str, Any] = field(default_factory=dict)
    known: dict[Any, Any] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)

    def read(self, graph: Any, shapes: Sequence[Shape] | None) -> Traced:
        """Return the network of a graph."""
        nodes = list(graph.nodes)
        # Names of modules come before those that torch.fx makes up.
        self.taken = {str(node.target) for node in nodes if node.op == "call_module"}
        places = [node for node in nodes if node.op == "placeholder"]
        n_inputs = 1 if shapes is None else len(shapes)
        names = [str(node.target) for node in places]
        if len(places) < n_inputs:
            raise UnsupportedError(f"module must take {n_inputs} tensors, but takes {names}")
        if any(node.users for node in places[n_inputs:]):
            raise UnsupportedError(
                f"module must be given all that it takes, {names}: "
                f"example=({', '.join(names)}), a batch of each"
            )
        shapes = [self._first_linear(places[0])] if shapes is None else shapes
        inputs = self._entered(places, shapes)
        for node in nodes:
            if node.op == "output":
                return self._finished(node.args[0], inputs)
            if node not in self.known:
                self.known[node] = self._read_node(node)
        raise AssertionError("torch.fx ends every graph with its output")

    def _entered(self, places: list[Any], shapes: Sequence[Shape]) -> Inputs:
        """Take the inputs of the module from that of the network."""
        inputs = Inputs(tuple(shapes), (None,) * len(shapes))
        self.known.update(dict.fromkeys(places))
        rows = Signal(INPUT, inputs.shape)
        if len(shapes) == 1:
            self.known[places[0]] = rows
            return inputs
        for index, place in enumerate(places[: len(shapes)]):
            name = f"{place.target}.input" if place.target in self.taken else str(place.target)
            self.known[place] = self.append(Part(inputs.shapes, index), name, rows)
        return inputs

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

    def _finished(self, result: Any, inputs: Inputs) -> Traced:
        """Return the network of what the output depends on."""
        signal = self.known.get(result) if not isinstance(result, (tuple, list, dict)) else None
        if not isinstance(signal, Signal):
            raise UnsupportedError("module must return one tensor, computed from its input")
        signal = self.plain(signal)
        needed, sources = {signal.name}, {op.name: op.inputs for op in self.operations}
        for op in reversed(self.operations):
            if op.name in needed:
                needed.update(sources[op.name])
        operations = [op for op in self.operations if op.name in needed]
        modules = {name: part for name, part in self.modules.items() if name in needed}
        network = Network(operations, inputs.shape)
        return Traced(network, modules, _with_dtypes(inputs, network))

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
        computed_from = plain_remedy(part)
        if computed_from:
            raise UnsupportedError(f"its weights must be plain parameters: {computed_from}")
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
        signal = self.formed(signal, form)
        op = build(part)
        if isinstance(op, Dense) and signal.form == "tokens":
            op = on_tokens(op)
        found = self.append(op, name, signal)
        self.modules[found.name] = part
        return found

    def _opaque(self, node: Any, part: Any, name: str, signal: Any) -> Signal:
        """Return what a part makes of a signal that PyTorch itself is to compute."""
        if len(node.args) + len(node.kwargs) != 1 or not isinstance(signal, Signal):
            raise UnsupportedError("a part that is left to PyTorch must take one tensor")
        self._once(part.parameters())
        plain = self.plain(signal)
        floating = [one.dtype for one in self.root.parameters() if one.is_floating_point()]
        double = import_torch().float64 in floating
        return self.append(
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
        if plain in ("cat", "concat", "concatenate"):
            return self.concatenated(args, kwargs, node.name)
        if not signals or plain in ("getattr", "size", "dim", "getitem"):
            return computed(target, plain, args, kwargs)
        if plain in ARITHMETIC:
            found = self.arithmetic(ARITHMETIC[plain], args, kwargs, node.name)
        elif plain in SHAPING:
            found = self.shaped(plain, signals[0], args[1:], kwargs, node.name)
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
        found = self.applied(reader, signal, values, name)
        return self._in_place(signal, found) if in_place or values.get("inplace") else found

    def _in_place(self, old: Signal, new: Signal) -> Signal:
        """Give everyone who holds a signal what took its place."""
        for node, value in self.known.items():
            if isinstance(value, Signal) and value.name == old.name:
                self.known[node] = new
        return new


def _with_dtypes(inputs: Inputs, network: Network) -> Inputs:
    """Return the inputs of a module; what is looked up in tables is whole numbers."""
    names = {op.index: op.name for op in network.operations if isinstance(op, Part)} or {0: INPUT}
    whole = [
        index in names and table_rows(network, names[index]) > 0
        for index in range(len(inputs.shapes))
    ]
    return replace(inputs, dtypes=tuple(import_torch().int64 if one else None for one in whole))
