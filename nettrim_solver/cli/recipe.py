"""How a network is pruned, on the command line: ``--recipe`` and ``--set``."""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ..exceptions import SettingsError
from ..text import nearest
from .common import Parser, UsageError

if TYPE_CHECKING:
    from ..network import Recipe

#: The named recipes, and what they are for.
PURPOSES = {
    "best": "the best we know for the budget, adapted to the network (the default)",
    "fast": "the same in short, at a few times the cost of one layer-wise pruning by alps",
    "net-trim": "the paper's convex program for every budget, with a proof for every layer",
}

#: Options of earlier releases, and what takes their place.
MOVED = {
    "--solver": "--set steps={}",
    "--pipeline": """--set 'steps=["{}"]'""",
    "--exclude": """--set 'skip=["{}"]'""",
    "--max-iter": """--set 'steps={{step="admm", max_iter={}}}'""",
    "--tol-gap": """--set 'steps={{step="admm", tol_gap={}}}'""",
    "--heldout": "--validation {}",
} | {
    f"--{name.replace('_', '-')}": f"--set {name}={{}}"
    for name in ("mode", "allocation", "output_weights", "passes", "output_refit", "max_rows")
}

#: Text that TOML would have in quotes: a name or a pattern.
BARE = re.compile(r"[^\s\[\]{}\"'=,#]+")


def add_recipe_options(command: Any, default: str = "best") -> None:
    """Add the recipe, and changes of single fields."""
    command.add_argument("--recipe", default=default, metavar="RECIPE",
                         help=f"{', '.join(PURPOSES)}, or a file .toml (default: {default}); "
                         "see nettrim recipes")  # fmt: skip
    command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changes",
                         help="change a field of the recipe, such as mode=parallel")  # fmt: skip


def read_recipe(arguments: argparse.Namespace) -> Recipe:
    """Return the recipe of the command line.

    Raises
    ------
    ProblemFileError, SettingsError, UsageError
    """
    recipe = named_or_read(arguments.recipe)
    changes = parse_changes(arguments.changes)
    try:
        return recipe.with_(**changes) if changes else recipe
    except SettingsError as error:
        raise SettingsError(f"--set {', '.join(changes)}: {error}") from None


def named_or_read(word: str) -> Recipe:
    """Return the recipe of a name, or that of a file."""
    from ..network.recipe import NAMES, Recipe

    if word in NAMES:
        return NAMES[word]
    if word.endswith(".toml"):
        return Recipe.read(word)
    raise UsageError(
        f"--recipe must be one of {', '.join(NAMES)}, or a file that ends in .toml, but was "
        f"{word!r}{nearest(word, NAMES)}"
    )


def parse_changes(given: Iterable[str]) -> dict[str, Any]:
    """Return fields and values that are written as NAME=VALUE, the values as in TOML.

    Examples
    --------
    >>> parse_changes(["passes=2", "mode=parallel", 'skip=["conv*", "head"]'])
    {'passes': 2, 'mode': 'parallel', 'skip': ['conv*', 'head']}
    """
    found: dict[str, Any] = {}
    for entry in given:
        name, equals, text = entry.partition("=")
        name, text = name.strip(), text.strip()
        if not equals or not name:
            raise UsageError(f"--set takes NAME=VALUE, such as mode=parallel, but was {entry!r}")
        try:
            values = tomllib.loads(f"value = {text}")
        except (ValueError, RecursionError) as error:
            if not BARE.fullmatch(text):
                raise UsageError(
                    f"--set {name} must be a value as in TOML, such as 0.5, parallel or "
                    f"""'["admm", "refit"]', but was {text!r}: {error}"""
                ) from None
            values = {"value": text}
        if [*values] != ["value"]:
            raise UsageError(f"--set {name} must be one value, but was {text!r}")
        found[name] = values["value"]
    return found


def check_moved(words: Sequence[str], parser: Parser) -> None:
    """Raise for an option of earlier releases, or one like it, and say what takes its place."""
    known = [*parser.options, *MOVED]
    for word, after in zip(words, (*words[1:], ""), strict=True):
        name, _, value = word.partition("=")
        old = get_close_matches(name, known, n=1) if name.startswith("--") else []
        if not old or old[0] not in MOVED:
            continue
        value = value or (after if after and not after.startswith("-") else "VALUE")
        if '"{}"' in MOVED[old[0]]:
            value = '", "'.join(value.split(","))
        new = MOVED[old[0]].format(value)
        if name == old[0]:
            raise UsageError(
                f"{name} is gone: how a network is pruned is said by the recipe, write {new} "
                "(nettrim recipes prints recipes to edit)"
            )
        raise UsageError(f"there is no option {name}; did you mean {new}?")
