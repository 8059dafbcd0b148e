"""Recipes: a TOML file with arguments of ``prune_network`` under their own names.

::

    sparsity = 0.8
    solver = "alps"
    skip = ["scores"]

    [settings]           # of the solver
    max_iter = 500

    [overrides."conv*"]  # a layer's name, a pattern, or a kind
    sparsity = 0.5
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..exceptions import ProblemFileError, SettingsError
from ..network import LayerSettings, prune_network
from ..pipeline import L0, Pipeline, Refit, Reweight, Solve, Step, Swaps
from ..solvers import SOLVERS
from .common import nearest

#: What a value may be: a number, text, text or a list of it, a table.
NUMBER, TEXT, WORDS, TABLE = (int, float), (str,), (str, list), (dict,)

#: Arguments of prune_network that no file can hold, or that the command line gives itself.
IN_PYTHON = ("accuracy", "X_heldout", "paths", "callback")

#: What the arguments must be that are not text.
KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("tolerance", "sparsity", "nnz"), (*NUMBER, *TABLE)),
    **dict.fromkeys(("settings", "overrides"), TABLE),
    **dict.fromkeys(("pipeline", "skip"), WORDS),
    **dict.fromkeys(("max_error", "min_accuracy", "resolution", "gamma", "max_rows", "seed",
                     "passes", "output_refit", "n_threads", "time_limit"), NUMBER),
}  # fmt: skip

#: What a recipe may set, and what that must be.
ARGUMENTS: dict[str, tuple[type, ...]] = {
    name: KINDS.get(name, TEXT)
    for name in prune_network.__kwdefaults__ or {}
    if name not in IN_PYTHON
}

#: The same for one layer.
OF_A_LAYER: dict[str, tuple[type, ...]] = {
    field.name: KINDS.get(field.name, TEXT) for field in dataclasses.fields(LayerSettings)
} | {"skip": (bool,), "tolerance": NUMBER, "sparsity": NUMBER, "nnz": NUMBER}

#: A network has one of these.
BUDGETS = ("tolerance", "sparsity", "nnz", "max_error", "min_accuracy")

#: How a recipe calls what it may hold.
TYPE_NAMES = {int: "a number", float: "a number", str: "text", list: "a list", dict: "a table",
              bool: "true or false"}  # fmt: skip

#: Steps that follow a solver, by their names in comparisons.
STEPS: dict[str, Step] = {
    "reweight": Reweight(), "refit": Refit(), "refit-box": Refit("box"),
    "swaps": Swaps(), "swaps-box": Swaps("box"),
}  # fmt: skip


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the arguments of a recipe.

    Raises
    ------
    ProblemFileError
        If the file is missing or no TOML.
    SettingsError
        For an unknown name, or a value of another type than it must have.
    """
    try:
        with open(path, "rb") as stream:
            content = tomllib.load(stream)
    except OSError as error:
        raise ProblemFileError(f"--recipe {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        # Of tomllib; text that is not UTF-8; brackets nested without end.
        raise ProblemFileError(f"--recipe {path} is not a TOML file: {error}") from None
    try:
        _check_table(content, ARGUMENTS, "the recipe")
        for key, table in content.get("overrides", {}).items():
            where = f"overrides[{key!r}]"
            _check_type(where, table, TABLE)
            _check_table(table, OF_A_LAYER, where)
            if "pipeline" in table:
                table["pipeline"] = read_pipeline(table["pipeline"])
        if "pipeline" in content:
            content["pipeline"] = read_pipeline(content["pipeline"])
    except SettingsError as error:
        raise SettingsError(f"--recipe {path}: {error}") from None
    return content


def read_pipeline(given: str | Iterable[Any]) -> Pipeline:
    """Return the pipeline that words stand for.

    Parameters
    ----------
    given : str or list of str
        Names of solvers, "reweight", "refit", "refit-box", "swaps" and "swaps-box", in a list or
        separated by commas.

    Raises
    ------
    SettingsError

    Examples
    --------
    >>> read_pipeline("reweight,swaps,refit-box")
    Pipeline(reweight, swaps, refit(target='box'))
    """
    words = given.split(",") if isinstance(given, str) else list(given)
    steps: list[Step] = []
    for entry in words:
        word = entry.strip() if isinstance(entry, str) else entry
        if not isinstance(word, str) or word not in {*STEPS, *SOLVERS}:
            hint = nearest(word, [*STEPS, *SOLVERS]) if isinstance(word, str) else ""
            raise SettingsError(
                f"pipeline must be made of the steps {[*STEPS]} and the solvers {[*SOLVERS]}, but "
                f"one was {word!r}{hint}"
            )
        steps.append(STEPS[word] if word in STEPS else L0() if word == "l0" else Solve(word))
    return Pipeline(*steps)


def combine(recipe: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's arguments with those of the command line in their place.

    A budget replaces whichever there was. Another solver or pipeline comes without the settings of
    the old one; settings are replaced one by one.
    """
    kept = dict(recipe)
    if any(name in given for name in BUDGETS):
        kept = {name: value for name, value in kept.items() if name not in BUDGETS}
    if "solver" in given or "pipeline" in given:
        for name in ("solver", "pipeline", "settings"):
            kept.pop(name, None)
    combined = kept | dict(given)
    if "settings" in kept and "settings" in given:
        combined["settings"] = kept["settings"] | given["settings"]
    return combined


def _check_table(
    table: Mapping[str, Any], known: Mapping[str, tuple[type, ...]], where: str
) -> None:
    for name, value in table.items():
        if name not in known:
            hint = nearest(name, known) or f": it is none of {sorted(known)}"
            raise SettingsError(f"{where} has an unknown entry {name!r}{hint}")
        _check_type(name, value, known[name])


def _check_type(name: str, value: Any, kinds: tuple[type, ...]) -> None:
    odd = isinstance(value, bool) and bool not in kinds
    if odd or not isinstance(value, kinds) or "\0" in str(value):
        wanted = " or ".join(dict.fromkeys(TYPE_NAMES[kind] for kind in kinds))
        raise SettingsError(f"{name} must be {wanted}, but was {value!r}")
