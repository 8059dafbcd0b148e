"""What is done to each layer: the recipe, resolved by name, pattern and kind."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..checks import check_integer
from ..exceptions import SettingsError
from ..pipeline import Pipeline
from ..problem import Problem
from .calibration import Folder
from .graph import Network
from .layers import Layer
from .recipe import (
    AUTO,
    LAYER_BUDGETS,
    Formulation,
    LayerRecipe,
    OutputWeights,
    Radius,
    Recipe,
    Steps,
    StrictBound,
)
from .spill import Spill
from .spreading import spread_evenly
from .target import Budget

#: What of a layer's settings a proxy does without.
OWN = ("steps", "formulation", "radius")

#: What prunes layers quickly, where they are measured and in preliminary passes.
PROXY = "alps"


@dataclass(frozen=True)
class Execution:
    """What a run needs besides the recipe: threads, the seed, a folder for temporary files."""

    n_threads: int | None = None
    seed: int = 0
    spill: Folder | None = None

    def __post_init__(self) -> None:
        check_integer("seed", self.seed, 0)
        if self.spill is not None:
            Spill((1,), np.float64, self.spill).close()


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
    steps : Pipeline or callable
        What solves the layer.
    formulation : {"pooled", "strict"}
    radius : {"joint", "per_output"}
    strict_bound : {"clipped", "trained"}
    output_weights : {"equal", "downstream"} or Network
        See :mod:`.downstream`; a network that was pruned before is where they are measured.
    max_rows : int or None
    skip : bool
    """

    steps: Steps
    tolerance: float | None = None
    sparsity: float | None = None
    nnz: int | None = None
    gamma: float = 1.0
    formulation: Formulation = "pooled"
    radius: Radius = "joint"
    strict_bound: StrictBound = "clipped"
    output_weights: OutputWeights | Network = "equal"
    max_rows: int | None = None
    skip: bool = False

    @classmethod
    def of(cls, recipe: Recipe) -> LayerSettings:
        """Return the settings of a layer without exceptions, and without a budget."""
        assert recipe.steps != AUTO and recipe.output_weights != "auto"
        return cls(
            recipe.steps, gamma=recipe.gamma, formulation=recipe.formulation, radius=recipe.radius,
            strict_bound=recipe.strict_bound, output_weights=recipe.output_weights,
            max_rows=_rows(recipe.max_rows),
        )  # fmt: skip

    @property
    def budget(self) -> str:
        """The budget in words, ``"tolerance 0.1"``."""
        for name in LAYER_BUDGETS:
            if getattr(self, name) is not None:
                return f"{name} {getattr(self, name):g}"
        return ""

    def with_changes(self, layer: LayerRecipe) -> LayerSettings:
        """Return these settings with a layer's own in their place.

        A budget replaces whichever there was.
        """
        changes = layer.changes()
        if any(name in changes for name in LAYER_BUDGETS):
            changes = dict.fromkeys(LAYER_BUDGETS) | changes
        if "max_rows" in changes:
            changes["max_rows"] = _rows(changes["max_rows"])
        return replace(self, **changes)

    def with_budget(self, name: str, value: float) -> LayerSettings:
        """Return these settings with a budget, which is not checked."""
        changes: dict[str, Any] = {name: value}
        return replace(self, **changes)

    def target(self, size: int) -> int | None:
        """Return the number of weights that stay of `size`, None for a radius."""
        if self.nnz is not None:
            return int(self.nnz)
        return None if self.sparsity is None else size - round(float(self.sparsity) * size)

    def check(self, intercept: bool) -> None:
        """Raise if a solver is not installed, or cannot do what the layer asks."""
        if isinstance(self.steps, Pipeline):
            stand_in = Problem(
                np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)), formulation=self.formulation,
                radius=self.radius, intercept=intercept,
            )  # fmt: skip
            self.steps.check(stand_in)


def proxy(recipe: Recipe) -> Recipe:
    """Return the recipe with a quick pruner, and nothing before or after it.

    Budgets, rows and output weights stay.
    """
    layers = {
        key: replace(one, **dict.fromkeys(OWN)) for key, one in recipe.layers.items()
    }  # fmt: skip
    return recipe.with_(
        steps=PROXY, formulation="pooled", radius="joint", passes=0, output_refit=0, layers=layers
    )


def resolve(network: Network, recipe: Recipe, budget: Budget) -> dict[str, LayerSettings]:
    """Return what is done to each layer, by name.

    Parameters
    ----------
    network : Network
    recipe : Recipe
        Exceptions by name, glob pattern or kind of a layer: a name counts more than a pattern, a
        pattern more than a kind, later entries more than earlier ones.
    budget : Budget
        A tolerance, sparsity or number of nonzeros, for the layers without a budget of their own.
        A number of nonzeros is for all of these together, a mapping for each of them.

    Raises
    ------
    SettingsError
        For values out of range, entries that match no layer, layers without a budget.
    """
    chosen = _chosen(network, recipe)
    for name, value in _each(network, without_budget(chosen), budget).items():
        chosen[name] = chosen[name].with_budget(budget.name, value)
    for layer in network.layers:
        _check_layer(layer, chosen[layer.name])
    lacking = without_budget(chosen)
    if lacking:
        raise SettingsError(
            f"every layer needs a budget, but {lacking} have none: give tolerance, sparsity or nnz "
            "(one number, or a mapping by name), or max_error or min_accuracy for the network, or "
            "let the recipe skip them"
        )
    if all(choice.skip for choice in chosen.values()):
        raise SettingsError(f"at least one layer must be pruned, but of {[*chosen]} none is left")
    return chosen


def open_layers(network: Network, recipe: Recipe) -> dict[str, Layer]:
    """Return the layers that are neither skipped nor have a budget of their own, by name.

    Raises
    ------
    SettingsError
        If there are none, or for exceptions that cannot be read.
    """
    names = without_budget(_chosen(network, recipe))
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


def _chosen(network: Network, recipe: Recipe) -> dict[str, LayerSettings]:
    """Return the settings of all layers with their exceptions, without the network's budget."""
    base = LayerSettings.of(recipe)
    chosen = {layer.name: base for layer in network.layers}
    for key in _by_precedence(network, recipe.layers):
        for layer in matches(network, "layers", key):
            chosen[layer.name] = chosen[layer.name].with_changes(recipe.layers[key])
    for key in recipe.skip:
        for layer in matches(network, "skip", key):
            chosen[layer.name] = replace(chosen[layer.name], skip=True)
    return chosen


def _each(network: Network, names: list[str], budget: Budget) -> dict[str, float]:
    """Return the amount of each of these layers that gets one."""
    value = budget.value
    if not budget.name or budget.searched:
        return {}
    if isinstance(value, Mapping):
        layers = [layer.name for layer in network.layers]
        unknown = [name for name in value if name not in layers]
        if unknown:
            raise SettingsError(
                f"{budget.name} must be a number or a mapping by layer, but has {unknown}: the "
                f"layers are {layers}"
            )
        return {name: value[name] for name in names if name in value}
    if budget.name == "nnz" and names:
        sizes = {name: network.layer(name).W.size for name in names}
        if value > sum(sizes.values()):
            raise SettingsError(
                f"nnz must be at most {sum(sizes.values())}, all weights of {names} together, but "
                f"was {value}"
            )
        return dict(spread_evenly(sizes, int(value)))
    return dict.fromkeys(names, value)


def _check_layer(layer: Layer, settings: LayerSettings) -> None:
    """Check the settings of a layer; the message names it."""
    try:
        if settings.skip:
            return
        settings.check(layer.b is not None)
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


def _by_precedence(network: Network, layers: Mapping[str, LayerRecipe]) -> list[str]:
    """Return the keys in the order in which they are applied: kinds, patterns, names."""
    names = {layer.name for layer in network.layers}
    kinds = {layer.kind for layer in network.layers}

    def rank(key: str) -> int:
        return 2 if key in names else 0 if key in kinds else 1

    return sorted(layers, key=rank)


def _rows(max_rows: float) -> int | None:
    """Return a limit on rows as an integer, None for no limit."""
    return None if max_rows == math.inf else int(max_rows)
