"""Recipes: how a network is pruned, whatever it is pruned to.

A :class:`Recipe` holds everything that says *how*; the budget says *how far*, and is an argument of
:func:`.prune_network`. Recipes are immutable and checked when they are made. ``Recipe()`` is the
paper's convex program and nothing else, every field beyond that is a deliberate change. The named
recipes are the ones that most people want:

==============  ====================================================================================
``"best"``      the best we know for the budget, adapted to the network (the default)
``"fast"``      the same in short, at a few times the cost of one layer-wise pruning by ALPS
``"net-trim"``  the paper's convex program for every budget, with a proof for every layer
==============  ====================================================================================

A field of ``"auto"`` is chosen for the budget and the network by :mod:`.adapt`;
``PruningResult.recipe`` has what was chosen.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from ..checks import check_choice, check_flag, check_integer, check_number
from ..exceptions import ProblemFileError, SettingsError
from ..pipeline import Pipeline, as_pipeline
from ..problem import RADII
from ..solution import Solution

#: Rows of a layer that are used at most, unless told otherwise: (sample, position) pairs of a
#: convolution are many and alike.
MAX_ROWS = 20_000

#: Version of the recipe files that this package reads and writes.
VERSION = 1

#: Chosen for the budget and the network.
AUTO = "auto"

MODES = ("cascade", "parallel")
FORMULATIONS = ("pooled", "strict")
STRICT_BOUNDS = ("clipped", "trained")
OUTPUT_WEIGHTS = ("equal", "downstream")
ALLOCATIONS = ("output_error", "shape", "tolerance", "uniform")

#: Budgets that a layer can have of its own.
LAYER_BUDGETS = ("tolerance", "sparsity", "nnz")

#: A function in place of the steps: ``(problem, nnz, *, n_threads, callback, time_limit)``.
Custom = Callable[..., Solution]

#: What solves a layer.
Steps = Pipeline | Custom

Auto = Literal["auto"]
Mode = Literal["cascade", "parallel"]
Formulation = Literal["pooled", "strict"]
Radius = Literal["joint", "per_output"]
StrictBound = Literal["clipped", "trained"]
OutputWeights = Literal["equal", "downstream"]
Allocation = Literal["output_error", "shape", "tolerance", "uniform"]

#: Arguments of ``prune_network`` before there were recipes, and what takes their place.
MOVED = {
    "solver": "steps={!r}", "pipeline": "steps=...",
    "settings": "steps={{'step': SOLVER, 'SETTING': VALUE}}", "overrides": "layers=...",
    "probe": None, "paths": None,
}  # fmt: skip


@dataclass(frozen=True)
class LayerRecipe:
    """Exceptions for one layer or several: fields of :class:`Recipe`, and budgets of their own.

    None leaves a field as it is for the network.

    Attributes
    ----------
    tolerance, sparsity : float or None
    nnz : int or None
        The layer's own budget; one of the three. It then has no part in that of the network.
    steps, formulation, radius, gamma, strict_bound, output_weights, max_rows
        As in :class:`Recipe`.
    skip : bool
        Whether the layer keeps its trained weights.
    """

    tolerance: float | None = None
    sparsity: float | None = None
    nnz: int | None = None
    steps: Any = None
    formulation: Formulation | None = None
    radius: Radius | None = None
    gamma: float | None = None
    strict_bound: StrictBound | None = None
    output_weights: OutputWeights | None = None
    max_rows: float | None = None
    skip: bool = False

    def __post_init__(self) -> None:
        given = [name for name in LAYER_BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise SettingsError(f"give one of tolerance, sparsity and nnz, but {given} were given")
        if self.tolerance is not None:
            check_number("tolerance", self.tolerance, 0.0, np.inf, closed=True)
        if self.sparsity is not None:
            check_number("sparsity", self.sparsity, 0.0, 1.0, closed=True)
        if self.nnz is not None:
            check_integer("nnz", self.nnz, 0)
        check_flag("skip", self.skip)
        if self.steps is not None:
            object.__setattr__(self, "steps", _as_steps(self.steps))
        for name, value in self.changes().items():
            if name in _CHECKS:
                _CHECKS[name](name, value)

    def changes(self) -> dict[str, Any]:
        """Return the fields that differ from the network's."""
        return _changes(self)


@dataclass(frozen=True, repr=False)
class Recipe:
    """How the layers of a network are pruned.

    Parameters
    ----------
    steps : str, mapping, sequence of these, or callable
        What is done to a layer: names of solvers (:func:`.available_solvers`) and of the
        refinements ``"reweight"``, ``"refit"`` and ``"swaps"``, one after the other, such as
        ``["admm", "refit"]``. A mapping gives a step its options, ``{"step": "l0", "rounds": 16}``.
        A function in their place is called as ``f(problem, nnz, n_threads=, callback=,
        time_limit=)``, with nnz None for the problem's radius, and returns a :class:`.Solution`.
    formulation : {"pooled", "strict"}
        As in :class:`.Problem`.
    radius : {"joint", "per_output"}
        As in :class:`.Problem`.
    mode : {"cascade", "parallel"}
        Whether a layer is pruned on the activations of the network that is already pruned up to it,
        or on those of the trained network. The target is the trained network's either way.
    gamma : float
        In a cascade the squared radius of a layer is at least gamma times the squared distance of
        the trained weights on the pruned inputs. With gamma >= 1 the trained weights stay feasible;
        with 0 the tolerance is the radius, whether it can be met or not.
    strict_bound : {"clipped", "trained"}
        The bounds of one-sided rows in a strict cascade: those of the trained weights on the pruned
        inputs, V (the paper's choice), or V only where it is the wider bound.
    allocation : {"uniform", "shape", "tolerance", "output_error"}
        How a budget of the network is shared out among its layers (:func:`.allocate`): the same
        sparsity for all; small layers denser, by a rule of their shapes; the same relative error of
        their own; or where it costs the network's output least. All but the first try prunings.
    output_weights : {"equal", "downstream"}
        How errors of different outputs of a layer are weighted: equally, or by how far each moves
        the network's output (:func:`.downstream_weights`). Radius, gap and violation are then those
        of the weighted outputs.
    passes : int
        Number of preliminary passes by "alps"; each measures the output weights at the result of
        the previous one. Needs ``output_weights="downstream"``.
    output_refit : int
        Epochs of a final joint fit of all remaining weights to the trained network's output
        (:func:`.refit_output`), without labels. Radius and gap then refer to the weights before it.
    max_rows : int or inf
        Most rows of a layer that are used: samples; of a convolution (sample, position) pairs.
    resolution : float
        A search (``max_error``, ``min_accuracy``) ends when the nonzeros that do and do not meet
        the target are this close, relative to each other.
    layers : mapping of str to LayerRecipe or mapping
        Exceptions, by name, by pattern (``"conv*"``), or by kind (``"dense"``, ``"conv2d"``). Names
        count more than patterns, patterns more than kinds, later entries more than earlier ones.
    skip : str or sequence of str
        Names, patterns and kinds of layers that keep their trained weights.
    version : int
        Of the format of recipe files.

    Raises
    ------
    SettingsError
        For unknown names and values out of range.

    Notes
    -----
    ``steps``, ``allocation``, ``output_weights``, ``passes`` and ``output_refit`` may be
    ``"auto"``: chosen for the budget and the network.

    Examples
    --------
    >>> Recipe(steps="alps", mode="parallel")
    Recipe(steps=['alps'], mode='parallel')
    >>> Recipe.named("best").with_(skip="scores").skip
    ('scores',)
    >>> print(Recipe(steps=["admm", {"step": "refit", "damping": 0.1}]).to_toml())
    version = 1
    steps = ["admm", {step = "refit", damping = 0.1}]
    """

    steps: Any = "admm"
    formulation: Formulation = "pooled"
    radius: Radius = "joint"
    mode: Mode = "cascade"
    gamma: float = 1.0
    strict_bound: StrictBound = "clipped"
    allocation: Allocation | Auto = "uniform"
    output_weights: OutputWeights | Auto = "equal"
    passes: int | Auto = 0
    output_refit: int | Auto = 0
    max_rows: float = MAX_ROWS
    resolution: float = 0.02
    layers: Mapping[str, Any] = field(default_factory=dict)
    skip: Any = ()
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise SettingsError(
                f"version must be {VERSION}, the format of recipes that this release reads, but "
                f"was {self.version!r}"
            )
        object.__setattr__(self, "steps", AUTO if self.steps == AUTO else _as_steps(self.steps))
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value != AUTO or name not in AUTOMATIC:
                check(name, value)
        if self.gamma != 1.0 and self.mode == "parallel":
            raise SettingsError(f"gamma belongs to mode='cascade', but was {self.gamma!r}")
        object.__setattr__(self, "layers", MappingProxyType(_as_layers(self.layers)))
        object.__setattr__(self, "skip", _as_names(self.skip))

    @property
    def n_passes(self) -> int:
        """Number of preliminary passes; the recipe must have been adapted to a network."""
        assert isinstance(self.passes, int)
        return self.passes

    @property
    def n_refit_epochs(self) -> int:
        """Epochs of the refit to the output; the recipe must have been adapted to a network."""
        assert isinstance(self.output_refit, int)
        return self.output_refit

    @classmethod
    def named(cls, name: str) -> Recipe:
        """Return a recipe by its name, one of ``NAMES``.

        Raises
        ------
        SettingsError
            If there is none of this name.
        """
        if not isinstance(name, str) or name not in NAMES:
            hint = _hint(name, NAMES)
            raise SettingsError(
                f"recipe must be a Recipe or one of {[*NAMES]}, but was {name!r}{hint}"
            )
        return NAMES[name]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Recipe:
        """Return the recipe of a TOML file.

        Raises
        ------
        ProblemFileError
            If the file is missing or no TOML.
        SettingsError
            For what is not part of a recipe.
        """
        try:
            with open(path, "rb") as stream:
                content = tomllib.load(stream)
        except OSError as error:
            raise ProblemFileError(f"recipe {path}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            # From tomllib; text that is not UTF-8; brackets nested without end.
            raise ProblemFileError(f"recipe {path} is not a TOML file: {error}") from None
        try:
            return cls.of(content)
        except SettingsError as error:
            raise SettingsError(f"recipe {path}: {error}") from None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Recipe:
        """Return ``Recipe(**content)``, with a message that says where an unknown key belongs.

        Raises
        ------
        SettingsError
        """
        _check_keys(content)
        return cls(**content)

    def with_(self, **changes: Any) -> Recipe:
        """Return the recipe with other values of some fields.

        Raises
        ------
        SettingsError
        """
        _check_keys(changes)
        return replace(self, **changes)

    def changes(self) -> dict[str, Any]:
        """Return the fields that differ from ``Recipe()``."""
        return _changes(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that differ from ``Recipe()``, as values that TOML and JSON take.

        A function in place of the steps becomes its name.
        """
        return {name: _plain(value) for name, value in self.changes().items()}

    def to_toml(self, comments: Mapping[str, str] | None = None) -> str:
        """Return the recipe as the text of a recipe file: the fields that differ from ``Recipe()``.

        Parameters
        ----------
        comments : mapping of str to str, optional
            By field. These fields are written in any case, in this order, with their comments.

        Raises
        ------
        SettingsError
            If a function is in place of the steps.
        """
        custom = [steps for steps in (self.steps, *(one.steps for one in self.layers.values()))
                  if steps not in (None, AUTO) and not isinstance(steps, Pipeline)]  # fmt: skip
        if custom:
            raise SettingsError(
                f"a recipe file names steps, but steps is a function, {_plain(custom[0])}"
            )
        comments = comments or {}
        content = {name: _plain(getattr(self, name)) for name in comments}
        content |= {"version": VERSION} | self.to_dict()
        layers = content.pop("layers", {})
        lines = []
        for name, value in content.items():
            comment = ["", *comments[name].splitlines()] if name in comments else []
            lines += [f"# {line}" if line else "" for line in comment]
            lines.append(f"{name} = {toml_value(value)}")
        for key, one in layers.items():
            lines += ["", f"[layers.{toml_value(key)}]"]
            lines += [f"{name} = {toml_value(value)}" for name, value in one.items()]
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what pickle keeps: mapping proxies cannot be pickled."""
        return Recipe.of, ({**self.changes(), "layers": dict(self.layers)},)

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={_shown(value)}" for name, value in self.changes().items())
        return f"Recipe({given})"


#: The fields that may be "auto".
AUTOMATIC = ("steps", "allocation", "output_weights", "passes", "output_refit")


def as_recipe(recipe: Any) -> Recipe:
    """Return a recipe, or that of a name.

    Raises
    ------
    SettingsError
    """
    return recipe if isinstance(recipe, Recipe) else Recipe.named(recipe)


def moved(name: str, value: Any) -> str:
    """Return how a recipe says what was an argument of the call before there were recipes."""
    if name in MOVED and MOVED[name] is None:
        return f"{name} is gone: layers are measured by a method of the package's choice"
    if name == "output_weights" and not isinstance(value, str):
        return f"{name} takes no network any more: passes=N measures them at pruned networks"
    return f"write {name} as " + str(MOVED.get(name, f"{name}={{!r}}")).format(value)


def _check_keys(given: Mapping[str, Any]) -> None:
    """Raise for keys that are no fields of a recipe."""
    known = [f.name for f in fields(Recipe)]
    for name, value in given.items():
        if name in known:
            continue
        if name in MOVED:
            raise SettingsError(f"a recipe has no entry {name!r}: {moved(name, value)}")
        if name in (*LAYER_BUDGETS, "max_error", "accuracy", "min_accuracy"):
            raise SettingsError(
                f"a recipe holds no budget of the network, but has {name}: give it to the call "
                f"(nettrim prune --{name.replace('_', '-')}), or to layers in [layers.NAME]"
            )
        raise SettingsError(
            f"a recipe has no entry {name!r}{_hint(name, known) or f': it has {known}'}"
        )


def _as_steps(steps: Any) -> Steps:
    if callable(steps) and not isinstance(steps, Pipeline):
        return steps
    return as_pipeline(steps)


def _as_layers(layers: Any) -> dict[str, LayerRecipe]:
    """Return the exceptions of single layers, checked; messages name the entry."""
    if not isinstance(layers, Mapping):
        raise SettingsError(f"layers must be a mapping by layer, but was {layers!r}")
    found = {}
    known = [f.name for f in fields(LayerRecipe)]
    for key, given in layers.items():
        if not isinstance(key, str):
            raise SettingsError(f"layers must be a mapping by name, but has the key {key!r}")
        if isinstance(given, LayerRecipe):
            found[key] = given
            continue
        if not isinstance(given, Mapping):
            raise SettingsError(f"layers[{key!r}] must be a mapping, but was {given!r}")
        for name in given:
            if name not in known:
                hint = _hint(name, known) or f": it may have {known}"
                raise SettingsError(f"layers[{key!r}] has an unknown entry {name!r}{hint}")
        try:
            found[key] = LayerRecipe(**given)
        except SettingsError as error:
            raise SettingsError(f"layers[{key!r}]: {error}") from None
    return found


def _as_names(skip: Any) -> tuple[str, ...]:
    if isinstance(skip, str):
        return (skip,)
    if not isinstance(skip, Iterable):
        raise SettingsError(f"skip must be a name or a list of names, but was {skip!r}")
    names = tuple(skip)
    if not all(isinstance(name, str) for name in names):
        raise SettingsError(f"skip must be a name or a list of names, but was {names!r}")
    return names


def _check_rows(name: str, value: Any) -> None:
    if value != math.inf:
        check_integer(name, value, 1)


def _choice(options: tuple[str, ...]) -> Callable[[str, Any], None]:
    return lambda name, value: check_choice(name, value, options)


def _count(name: str, value: Any) -> None:
    check_integer(name, value, 0)


#: How the fields are checked.
_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "formulation": _choice(FORMULATIONS),
    "radius": _choice(RADII),
    "mode": _choice(MODES),
    "gamma": lambda name, value: check_number(name, value, 0.0, np.inf, closed=True),
    "strict_bound": _choice(STRICT_BOUNDS),
    "allocation": _choice(ALLOCATIONS),
    "output_weights": _choice(OUTPUT_WEIGHTS),
    "passes": _count,
    "output_refit": _count,
    "max_rows": _check_rows,
    "resolution": lambda name, value: check_number(name, value, 0.0, 1.0),
}


def _changes(recipe: Recipe | LayerRecipe) -> dict[str, Any]:
    found = {}
    for f in fields(recipe):
        default = {} if f.name == "layers" else f.default
        if f.name == "steps" and isinstance(default, str):
            default = as_pipeline(default)
        if getattr(recipe, f.name) != default:
            found[f.name] = getattr(recipe, f.name)
    return found


def _hint(word: Any, known: Iterable[str]) -> str:
    close = get_close_matches(word, list(known), n=1) if isinstance(word, str) else []
    return f"; did you mean {close[0]!r}?" if close else ""


def _plain(value: Any) -> Any:
    """Return a value of a recipe as TOML and JSON take it."""
    if isinstance(value, Pipeline):
        return [
            {"step": step.name, **_plain(step.changes())} if step.changes() else step.name
            for step in value.steps
        ]
    if isinstance(value, LayerRecipe):
        return _plain(value.changes())
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return value.item()
    if callable(value):
        kind = value if hasattr(value, "__qualname__") else type(value)
        return f"{kind.__module__}.{kind.__qualname__}"
    return value


def _shown(value: Any) -> str:
    """Return a value in words that are the same in every process."""
    if callable(value) and not isinstance(value, Pipeline):
        words = repr(value)
        return str(_plain(value)) if " at 0x" in words else words
    return repr(_plain(value))


def toml_value(value: Any) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text) + '"'
    if isinstance(value, Mapping):
        entries = (f"{name} = {toml_value(entry)}" for name, entry in value.items())
        return "{" + ", ".join(entries) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return repr(value)


#: Recipes by name.
NAMES: Mapping[str, Recipe] = MappingProxyType(
    {
        "best": Recipe(
            steps="auto", allocation="auto", output_weights="auto", passes="auto",
            output_refit="auto",
        ),
        "fast": Recipe(
            steps="alps", allocation="shape", output_refit=30
        ),
        "net-trim": Recipe(),
    }
)  # fmt: skip
