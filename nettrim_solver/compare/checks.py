"""Checks of what a comparison is asked for, before any work."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .. import refine
from ..checks import check_choice, check_number
from ..exceptions import SettingsError
from ..problem import Problem
from ..solution import Solution
from ..solve import solve
from ..solvers import SOLVERS, available_solvers
from ..text import nearest

if TYPE_CHECKING:
    from ..network import Recipe

#: What may follow a solver, and the function that does it.
REFINEMENTS: dict[str, Callable[..., Solution]] = {"refit": refine.refit, "swaps": refine.swaps}

Targets = bool | str | Sequence[str]

#: A solver by its name, or a function of one's own; of a network also a recipe, or its name.
Method: TypeAlias = "str | Recipe | Callable[..., Solution]"

#: Keywords that the comparison gives itself.
OWN = ("problem", "solution", "solver", "sparsity", "nnz", "pattern", "warm_start", "callback",
       "n_threads", "raise_on_failure", "settings", "target")  # fmt: skip


@dataclass(frozen=True)
class Refinement:
    """What follows a solver: its function, its target, and the user's options."""

    name: str
    target: str
    given: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The name in the rows."""
        return self.name if self.target == "linear" else f"{self.name}-{self.target}"

    @property
    def function(self) -> Callable[..., Solution]:
        """What does it."""
        return REFINEMENTS[self.name]

    @property
    def options(self) -> dict[str, Any]:
        """The keywords of the function."""
        return {"target": self.target, **self.given}


def able_solvers(problem: Problem) -> list[str]:
    """Return "admm" and the pruners, as far as they can do what a problem asks."""
    return [
        name
        for name in available_solvers()
        if (name == "admm" or not SOLVERS[name].convex)
        and SOLVERS[name].lacks(problem) is None
        and not (SOLVERS[name].needs_W and problem.W is None)
    ]


def checked_methods(
    given: Any, able: Sequence[str], known: Sequence[str] = (*SOLVERS,), kinds: Sequence[type] = ()
) -> dict[str, Method]:
    """Return the methods by their names in the rows, checked; by default those able.

    Parameters
    ----------
    given : sequence of str, or mapping of str to method, optional
    able : sequence of str
    known : sequence of str
        Names of methods.
    kinds : sequence of type
        What else may be a method, besides functions.
    """
    if given is None:
        return {name: name for name in able}
    if not isinstance(given, Mapping):
        given = {name: name for name in _checked_sequence("solvers", given)}
    elif not given:
        raise SettingsError("solvers must not be empty")
    for name, method in given.items():
        if not isinstance(name, str) or name in REFINEMENTS:
            raise SettingsError(
                f"solvers must have names other than {list(REFINEMENTS)}, but one was {name!r}"
            )
        if callable(method) or type(method) in kinds:
            continue
        if not isinstance(method, str) or method not in known:
            hint = nearest(str(method), known)
            raise SettingsError(f"solvers must be among {[*known]}, but one was {method!r}{hint}")
    return dict(given)


def checked_sparsities(given: Sequence[float]) -> list[float]:
    """Return the fractions of zeros, at least one, all different."""
    levels = _checked_sequence("sparsities", given)
    for level in levels:
        check_number("sparsities", level, 0.0, 1.0, closed=True)
    return [float(level) for level in levels]


def _checked_sequence(name: str, given: Any) -> list[Any]:
    """Return a list of different entries, at least one."""
    if isinstance(given, (str, bytes, Mapping)) or not hasattr(given, "__iter__"):
        raise SettingsError(f"{name} must be a sequence, but was {given!r}")
    entries = list(given)
    if not entries:
        raise SettingsError(f"{name} must not be empty")
    twice = [entry for i, entry in enumerate(entries) if entry in entries[:i]]
    if twice:
        raise SettingsError(f"{name} must be different from each other, but hold {twice} twice")
    return entries


def checked_targets(name: str, given: Any) -> list[str]:
    """Return the targets of a refinement; none for False."""
    if isinstance(given, (bool, np.bool_)):
        return ["linear"] if given else []
    targets = [given] if isinstance(given, str) else _checked_sequence(name, given)
    for target in targets:
        check_choice(name, target, refine.TARGETS)
    return targets


def checked_settings(
    modules: Mapping[str, Any], refinements: Sequence[str], given: Any
) -> dict[str, Mapping[str, Any]]:
    """Return the options by solver and refinement, after a look at every name in them.

    Parameters
    ----------
    modules : mapping of str to module
        Of the solvers, by their names in the rows; None where none of their rows can succeed.
    refinements : sequence of str
    given : mapping of str to mapping, optional
        The user's options.
    """
    given = {} if given is None else given
    if not isinstance(given, Mapping) or not all(isinstance(v, Mapping) for v in given.values()):
        raise SettingsError(f"settings must map names to mappings of options, but was {given!r}")
    names = [*modules, *refinements]
    unknown = [name for name in given if name not in names]
    if unknown:
        raise SettingsError(f"settings must be of {names}, but there are some of {unknown}")
    return {
        name: _checked_options(name, modules.get(name), dict(given.get(name, {}))) for name in names
    }


def _checked_options(name: str, module: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of one solver, or of a refinement."""
    if module is None and name not in REFINEMENTS:
        return options
    known = set(inspect.signature(REFINEMENTS.get(name, solve)).parameters)
    kind = None if module is None else module.Settings
    defaults = {} if kind is None else {f.name: f.default for f in fields(kind)}
    known = (known | set(defaults)) - set(OWN)
    wrong = sorted(set(options) - known)
    if wrong:
        raise SettingsError(f"settings[{name!r}] may hold {sorted(known)}, but holds {wrong}")
    if kind is not None:
        kind(**{key: value for key, value in options.items() if key in defaults}).validate()
    if "scope" in defaults:
        # Wanda shares its budget out by output unless it is told otherwise.
        options.setdefault("scope", defaults["scope"])
    return options
