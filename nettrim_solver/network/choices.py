"""What is done to each layer: the arguments of a run, resolved by name, pattern and kind."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ..checks import check_choice, check_flag, check_integer, check_number, check_options
from ..exceptions import SettingsError
from ..problem import RADII, Problem
from ..solution import Solution
from ..solvers import SOLVERS, get_solver
from .calibration import Folder
from .graph import Network
from .layers import Layer
from .operations import Shape
from .spill import Spill
from .spreading import spread_evenly

MODES = ("cascade", "parallel")

#: Rows of a layer that are used at most, unless told otherwise: (sample, position) pairs of a
#: convolution are many and alike.
MAX_ROWS = 20_000

#: A layer has one of these.
BUDGETS = ("tolerance", "sparsity", "nnz")

#: What one-sided rows may ask for in a strict cascade.
STRICT_BOUNDS = ("clipped", "trained")

#: What the errors of a layer's outputs count: the same, or what they do to the network's output.
OUTPUT_WEIGHTS = ("equal", "downstream")

#: Settings of a layer that a cheap solver does without.
OWN = ("solver", "settings", "pipeline", "formulation", "radius")

#: Anything that solves a layer: ``(problem, nnz, *, n_threads, callback, time_limit)``.
Pipeline = Callable[..., Solution]

#: A number, or numbers by the name of a layer.
Budget = float | Mapping[str, float] | None


@dataclass(frozen=True)
class LayerSettings:
    """What is done to one layer.

    Attributes
    ----------
    tolerance, sparsity : float or None
    nnz : int or None
        The budget; one of the three.
    gamma : float
        In a cascade the squared radius is at least gamma times that of the trained weights.
    solver : str
    settings : mapping or None
        The solver's own settings.
    pipeline : callable or None
        Solves the layer in place of `solver`.
    formulation : {"pooled", "strict"}
    radius : {"joint", "per_output"}
    strict_bound : {"clipped", "trained"}
    output_weights : {"equal", "downstream"} or Network
        See :mod:`.downstream`.
    max_rows : int or None
    skip : bool
    """

    tolerance: Any = None
    sparsity: Any = None
    nnz: Any = None
    gamma: Any = 1.0
    solver: Any = "admm"
    settings: Any = None
    pipeline: Pipeline | None = None
    formulation: Any = "pooled"
    radius: Any = "joint"
    strict_bound: Any = "clipped"
    output_weights: Any = "equal"
    max_rows: Any = None
    skip: Any = False

    @property
    def budget(self) -> str:
        """The budget in words, ``"tolerance 0.1"``."""
        for name in BUDGETS:
            if getattr(self, name) is not None:
                return f"{name} {getattr(self, name):g}"
        return ""

    def with_changes(self, changes: Mapping[str, Any]) -> LayerSettings:
        """Return these settings with others in their place.

        A budget replaces whichever there was; another solver or pipeline comes without the settings
        of the old one.
        """
        full = dict(changes)
        if any(changes.get(name) is not None for name in BUDGETS):
            full = dict.fromkeys(BUDGETS) | full
        if "solver" in changes or "pipeline" in changes:
            full = {"settings": None, "pipeline": None} | full
        return replace(self, **full)

    def with_budget(self, name: str, value: Any) -> LayerSettings:
        """Return these settings with a budget, which is not checked."""
        changes: dict[str, Any] = {name: value}
        return replace(self, **changes)

    def target(self, size: int) -> int | None:
        """Return the number of weights that stay of `size`, None for a radius."""
        if self.nnz is not None:
            return int(self.nnz)
        return None if self.sparsity is None else size - round(float(self.sparsity) * size)

    def validate(self) -> None:
        """Raise SettingsError for a value out of range, or MissingDependencyError."""
        check_flag("skip", self.skip)
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise SettingsError(f"give one of tolerance, sparsity and nnz, but {given} were given")
        if self.tolerance is not None:
            check_number("tolerance", self.tolerance, 0.0, np.inf, closed=True)
        if self.sparsity is not None:
            check_number("sparsity", self.sparsity, 0.0, 1.0, closed=True)
        if self.nnz is not None:
            check_integer("nnz", self.nnz, 0)
        check_number("gamma", self.gamma, 0.0, np.inf, closed=True)
        check_choice("formulation", self.formulation, ("pooled", "strict"))
        check_choice("radius", self.radius, RADII)
        check_choice("strict_bound", self.strict_bound, STRICT_BOUNDS)
        if not isinstance(self.output_weights, Network):
            check_choice("output_weights", self.output_weights, OUTPUT_WEIGHTS)
        if self.max_rows is not None:
            check_integer("max_rows", self.max_rows, 1)
        if self.pipeline is not None and not callable(self.pipeline):
            raise SettingsError(f"pipeline must be callable, but was {self.pipeline!r}")
        check_options("settings", None if self.settings is None else dict(self.settings))
        if self.pipeline is not None and self.settings is not None:
            raise SettingsError("settings belong to a solver, but a pipeline was given, too")

    def check_solver(self, intercept: bool) -> None:
        """Raise if the solver is unknown, not installed, or cannot do what the layer asks."""
        if self.pipeline is not None:
            return
        if not isinstance(self.solver, str):
            raise SettingsError(f"solver must be one of {list(SOLVERS)}, but was {self.solver!r}")
        stand_in = Problem(
            np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)), formulation=self.formulation,
            radius=self.radius, intercept=intercept,
        )  # fmt: skip
        module = get_solver(self.solver, stand_in)
        reserved = {"tol_gap", "tol_feas", "time_limit", *BUDGETS, "scope"}
        known = sorted({f.name for f in fields(module.Settings)} - reserved)
        allowed = {*known, "tol_gap", "tol_feas", "time_limit", "scope"}
        unknown = sorted(set(self.settings or {}) - allowed)
        if unknown:
            raise SettingsError(
                f"unknown setting {', '.join(map(repr, unknown))} for solver {self.solver!r}; "
                f"it knows {known}, and the budget is given by tolerance, sparsity or nnz"
            )
        own = {k: v for k, v in (self.settings or {}).items() if k in known or k == "time_limit"}
        module.Settings(**own).validate()


@dataclass(frozen=True)
class Options:
    """How layers are pruned, whatever their budgets: arguments of :func:`.prune_network`."""

    mode: Any = "cascade"
    solver: Any = "admm"
    settings: Any = None
    pipeline: Any = None
    formulation: Any = "pooled"
    radius: Any = "joint"
    gamma: Any = None
    strict_bound: Any = "clipped"
    output_weights: Any = "equal"
    passes: Any = 0
    output_refit: Any = 0
    overrides: Any = None
    skip: Any = None
    max_rows: Any = MAX_ROWS
    seed: Any = 0
    n_threads: Any = None
    spill: Folder | None = None

    def __post_init__(self) -> None:
        # It is read more than once, and may be an iterator.
        if self.skip is not None and not isinstance(self.skip, Iterable):
            raise SettingsError(f"skip must be a name or a list of names, but was {self.skip!r}")
        own = () if self.skip is None else (self.skip,) if isinstance(self.skip, str) else self.skip
        object.__setattr__(self, "skip", tuple(own))

    @property
    def cascade(self) -> bool:
        """Whether layers are pruned on the signals of the network that is pruned up to them."""
        return bool(self.mode == "cascade")

    @property
    def base(self) -> LayerSettings:
        """The settings of a layer without overrides, and without a budget."""
        names = {f.name for f in fields(self)} & {f.name for f in fields(LayerSettings)}
        own = {name: getattr(self, name) for name in names - {"gamma", "skip"}}
        return LayerSettings(**own, gamma=1.0 if self.gamma is None else self.gamma)

    def validate(self) -> None:
        """Raise SettingsError for what is wrong with the run, or ProblemError for its folder."""
        check_choice("mode", self.mode, MODES)
        check_integer("seed", self.seed, 0)
        check_integer("passes", self.passes, 0)
        check_integer("output_refit", self.output_refit, 0)
        if self.gamma is not None and self.mode == "parallel":
            raise SettingsError(f"gamma belongs to mode='cascade', but was {self.gamma!r}")
        if self.spill is not None:
            Spill((1,), np.float64, self.spill).close()


def cheap(options: Options, solver: str) -> Options:
    """Return options with another solver for all layers, and nothing that belongs to the old.

    Neither passes before the layers nor a refit behind them are left.
    """
    overrides = options.overrides
    if isinstance(overrides, Mapping):
        overrides = {key: _without(OWN, changes) for key, changes in overrides.items()}
    return replace(
        options, solver=solver, settings=None, pipeline=None, formulation="pooled", radius="joint",
        passes=0, output_refit=0, overrides=overrides,
    )  # fmt: skip


def _without(names: tuple[str, ...], changes: Any) -> Any:
    if not isinstance(changes, Mapping):
        return changes
    return {name: value for name, value in changes.items() if name not in names}


def resolve(
    network: Network, options: Options, budgets: Mapping[str, Budget]
) -> dict[str, LayerSettings]:
    """Return what is done to each layer, by name.

    Parameters
    ----------
    network : Network
    options : Options
        Overrides by name, glob pattern or kind of a layer: a name counts more than a pattern, a
        pattern more than a kind, later entries more than earlier ones.
    budgets : mapping
        One of `tolerance`, `sparsity` and `nnz`, for the layers without a budget of their own. A
        number of nonzeros is for all of these together, a mapping for each of them.

    Raises
    ------
    SettingsError
        For values out of range, entries that match no layer, layers without a budget.
    """
    chosen = _chosen(network, options)
    open_layers = without_budget(chosen)
    for name, (budget, value) in _each(network, open_layers, budgets).items():
        chosen[name] = chosen[name].with_budget(budget, value)
    for layer in network.layers:
        _check_layer(layer, chosen[layer.name], network.input_shape)
    lacking = without_budget(chosen)
    if lacking:
        raise SettingsError(
            f"every layer needs a budget, but {lacking} have none: give tolerance, sparsity or nnz "
            "(one number, or a mapping by name), or max_error or min_accuracy for the network, or "
            "skip them"
        )
    if all(choice.skip for choice in chosen.values()):
        raise SettingsError(f"at least one layer must be pruned, but of {[*chosen]} none is left")
    return chosen


def open_layers(network: Network, options: Options) -> dict[str, Layer]:
    """Return the layers that are neither skipped nor have a budget of their own, by name.

    Raises
    ------
    SettingsError
        If there are none, or for overrides that cannot be read.
    """
    names = without_budget(_chosen(network, options))
    if not names:
        layers = [layer.name for layer in network.layers]
        raise SettingsError(
            f"at least one layer must be pruned to the network's budget, but of {layers} none is "
            "left: all are skipped, or have budgets of their own"
        )
    return {name: network.layer(name) for name in names}


def without_budget(choices: Mapping[str, LayerSettings]) -> list[str]:
    """Return the layers that are to be pruned, and have no budget yet."""
    return [name for name, one in choices.items() if not one.skip and not one.budget]


def _chosen(network: Network, options: Options) -> dict[str, LayerSettings]:
    """Return the settings of all layers with their overrides, unchecked."""
    chosen = {layer.name: options.base for layer in network.layers}
    overrides = {} if options.overrides is None else options.overrides
    if not isinstance(overrides, Mapping):
        raise SettingsError(f"overrides must be a mapping, but was {overrides!r}")
    for key in _by_precedence(network, overrides):
        _check_changes(key, overrides[key])
        for layer in matches(network, "overrides", key):
            chosen[layer.name] = chosen[layer.name].with_changes(overrides[key])
    for key in options.skip:
        for layer in matches(network, "skip", key):
            chosen[layer.name] = replace(chosen[layer.name], skip=True)
    return chosen


def _each(
    network: Network, names: list[str], budgets: Mapping[str, Budget]
) -> dict[str, tuple[str, Any]]:
    """Return the kind and the value of the budget of each of these layers that gets one."""
    given = [name for name in BUDGETS if budgets.get(name) is not None]
    if len(given) > 1:
        raise SettingsError(f"give one of tolerance, sparsity and nnz, but {given} were given")
    if not given:
        return {}
    (budget,) = given
    value: Any = budgets[budget]
    if isinstance(value, Mapping):
        layers = [layer.name for layer in network.layers]
        unknown = [name for name in value if name not in layers]
        if unknown:
            raise SettingsError(
                f"{budget} must be a number or a mapping by layer, but has {unknown}: the layers "
                f"are {layers}"
            )
        return {name: (budget, value[name]) for name in names if name in value}
    if budget == "nnz" and names:
        check_integer("nnz", value, 0)
        sizes = {name: network.layer(name).W.size for name in names}
        if value > sum(sizes.values()):
            raise SettingsError(
                f"nnz must be at most {sum(sizes.values())}, all weights of {names} together, but "
                f"was {value}"
            )
        return {name: ("nnz", own) for name, own in spread_evenly(sizes, int(value)).items()}
    return {name: (budget, value) for name in names}


def _check_changes(key: str, changes: Any) -> None:
    if not isinstance(changes, Mapping):
        raise SettingsError(f"overrides[{key!r}] must be a mapping, but was {changes!r}")
    known = [f.name for f in fields(LayerSettings)]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise SettingsError(f"overrides[{key!r}] may hold {known}, but holds {unknown}")


def _check_layer(layer: Layer, settings: LayerSettings, input_shape: Shape | None) -> None:
    """Check the settings of a layer; the message names it."""
    try:
        settings.validate()
        if settings.skip:
            return
        settings.check_solver(layer.b is not None)
        other = settings.output_weights
        if isinstance(other, Network):
            shapes = {one.name: one.W.shape for one in other.layers}
            if shapes.get(layer.name) != layer.W.shape:
                raise SettingsError(
                    f"output_weights must be a network with this layer of shape {layer.W.shape}, "
                    f"but its layers are {shapes}"
                )
            if None not in (input_shape, other.input_shape) and input_shape != other.input_shape:
                raise SettingsError(
                    f"output_weights must be a network with inputs of shape {input_shape}, but "
                    f"takes {other.input_shape}"
                )
        if settings.nnz is not None and settings.nnz > layer.W.size:
            raise SettingsError(
                f"nnz must be at most {layer.W.size}, all of W, but was {settings.nnz}"
            )
    except (SettingsError, ImportError, ValueError) as error:
        raise type(error)(f"layer {layer.name!r}: {error}") from None


def matches(network: Network, what: str, key: Any) -> list[Layer]:
    """Return the layers that a name, a kind or a pattern stands for; at least one."""
    found: list[Layer] = []
    if isinstance(key, str):
        for test in (
            lambda layer: layer.name == key,
            lambda layer: layer.kind == key,
            lambda layer: fnmatch.fnmatchcase(layer.name, key),
        ):
            found = found or [layer for layer in network.layers if test(layer)]
    if not found:
        layers = [f"{layer.name} ({layer.kind})" for layer in network.layers]
        raise SettingsError(
            f"{what} must name layers, kinds or patterns, but {key!r} matches none: the layers "
            f"are {layers}"
        )
    return found


def _by_precedence(network: Network, overrides: Mapping[str, Any]) -> list[str]:
    """Return the keys in the order in which they are applied: kinds, patterns, names."""
    names = {layer.name for layer in network.layers}
    kinds = {layer.kind for layer in network.layers}

    def rank(key: str) -> int:
        return 2 if key in names else 0 if key in kinds else 1

    return sorted(overrides, key=rank)
