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
from .graph import Network
from .layers import Layer

#: A layer has one of these.
BUDGETS = ("tolerance", "sparsity", "nnz")

#: What one-sided rows may ask for in a strict cascade.
STRICT_BOUNDS = ("clipped", "trained")

#: Anything that solves a layer: ``(problem, nnz, *, n_threads, callback, time_limit)``.
Pipeline = Callable[..., Solution]

#: A number for all layers, or numbers by the name of a layer.
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


def resolve(
    network: Network,
    base: LayerSettings,
    budgets: Mapping[str, Budget],
    overrides: Mapping[str, Mapping[str, Any]] | None,
    skip: str | Iterable[str] | None,
) -> dict[str, LayerSettings]:
    """Return what is done to each layer, by name.

    Parameters
    ----------
    network : Network
    base : LayerSettings
        Without a budget.
    budgets : mapping
        The arguments `tolerance`, `sparsity` and `nnz`: numbers, or mappings by layer.
    overrides : mapping, optional
        By name, glob pattern or kind of a layer, the settings that differ. A name counts more than
        a pattern, a pattern more than a kind, later entries more than earlier ones.
    skip : iterable of str, optional
        Names, patterns or kinds of layers that stay as they are.

    Raises
    ------
    SettingsError
        For values out of range, entries that match no layer, layers without a budget.
    """
    chosen = _with_budgets(network, base, budgets)
    if overrides is not None and not isinstance(overrides, Mapping):
        raise SettingsError(f"overrides must be a mapping, but was {overrides!r}")
    for key in _by_precedence(network, overrides or {}):
        changes = (overrides or {})[key]
        _check_changes(key, changes)
        for layer in _matches(network, "overrides", key):
            chosen[layer.name] = chosen[layer.name].with_changes(changes)
    for key in [skip] if isinstance(skip, str) else list(skip or []):
        for layer in _matches(network, "skip", key):
            chosen[layer.name] = replace(chosen[layer.name], skip=True)
    for layer in network.layers:
        _check_layer(layer, chosen[layer.name])
    lacking = [name for name, one in chosen.items() if not one.skip and not one.budget]
    if lacking:
        raise SettingsError(
            f"every layer needs a budget, but {lacking} have none: give tolerance, sparsity or nnz "
            "(one number, or a mapping by name), or skip them"
        )
    return chosen


def _with_budgets(
    network: Network, base: LayerSettings, budgets: Mapping[str, Budget]
) -> dict[str, LayerSettings]:
    given = [name for name in BUDGETS if budgets[name] is not None]
    if len(given) > 1:
        raise SettingsError(f"give one of tolerance, sparsity and nnz, but {given} were given")
    names = [layer.name for layer in network.layers]
    chosen = dict.fromkeys(names, base)
    for budget in given:
        given_values: Any = budgets[budget]
        each = isinstance(given_values, Mapping)
        values: dict[str, Any] = dict(given_values if each else dict.fromkeys(names, given_values))
        unknown = [name for name in values if name not in chosen]
        if unknown:
            raise SettingsError(
                f"{budget} must be a number or a mapping by layer, but has {unknown}: the layers "
                f"are {names}"
            )
        for name, value in values.items():
            chosen[name] = base.with_budget(budget, value)
    return chosen


def _check_changes(key: str, changes: Any) -> None:
    if not isinstance(changes, Mapping):
        raise SettingsError(f"overrides[{key!r}] must be a mapping, but was {changes!r}")
    known = [f.name for f in fields(LayerSettings)]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise SettingsError(f"overrides[{key!r}] may hold {known}, but holds {unknown}")


def _check_layer(layer: Layer, settings: LayerSettings) -> None:
    """Check the settings of a layer; the message names it."""
    try:
        settings.validate()
        if settings.skip:
            return
        settings.check_solver(layer.b is not None)
        if settings.nnz is not None and settings.nnz > layer.W.size:
            raise SettingsError(
                f"nnz must be at most {layer.W.size}, all of W, but was {settings.nnz}"
            )
    except (SettingsError, ImportError, ValueError) as error:
        raise type(error)(f"layer {layer.name!r}: {error}") from None


def _matches(network: Network, what: str, key: Any) -> list[Layer]:
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
