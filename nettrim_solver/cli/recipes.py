"""``nettrim recipes``: the named recipes, and each as a file to edit."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from functools import cache
from typing import Any

from .common import PROVED, add_command
from .recipe import PURPOSES, named_or_read

EXAMPLE = """examples:
  nettrim recipes
  nettrim recipes best > my.toml
  nettrim prune model.onnx --calibration inputs.npz --sparsity 0.9 --recipe my.toml -o pruned.onnx

A recipe says how a network is pruned; the budget says how far, and is an option of nettrim prune.
Single fields are changed by --set, such as --set mode=parallel."""

#: What the fields mean.
COMMENTS = {
    "version": "Of the format of this file.",
    "steps": "What is done to a layer, one after the other: solvers, reweight, refit, swaps.\n"
             'Options of a step: {step = "l0", rounds = 16}.',
    "formulation": "pooled; or strict, with a bound for every output of every sample.",
    "radius": "Of a tolerance: joint for a layer, or per_output.",
    "mode": "Inputs of a layer: cascade, from the pruned layers before it; parallel, the trained\n"
            "network's own.",
    "gamma": "In a cascade the radius grows to gamma times what the trained weights need: from 1\n"
             "on they keep it. 0 takes the tolerance as it is.",
    "strict_bound": "Bounds of a strict cascade: clipped (the paper's), or trained.",
    "allocation": "How a budget of the network is shared out among its layers: uniform; shape\n"
                  "(small layers denser); tolerance (equal errors); output_error (where it costs\n"
                  "the network's output least).",
    "output_weights": "How errors of a layer's outputs are weighted: equal; or downstream, by how\n"
                      "far each moves the network's output.",
    "passes": "Preliminary prunings, which measure those weights on a pruned network.",
    "output_refit": "Steps of a final refit of all remaining weights to the network's output.",
    "max_rows": "Most samples of a layer that are used; of a convolution, positions in them.",
    "resolution": "A search (max_error, min_accuracy) ends when the nonzeros that do and do not\n"
                  "meet the budget are this close.",
    "skip": "Layers that keep their trained weights: names, patterns (conv*), kinds (dense).",
}  # fmt: skip

LAYERS = """
# Exceptions by name, pattern or kind: fields of a recipe, or a budget of their own.
# [layers."conv*"]
# sparsity = 0.5"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    command = add_command(
        commands, "recipes", summary="list the named recipes, or print one to edit",
        description="List the named recipes, or print one as a file to edit.", example=EXAMPLE,
    )  # fmt: skip
    command.add_argument("name", nargs="?", metavar="NAME", help="the recipe to print")
    command.add_argument("--json", action="store_true", help="print as JSON, no text")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``nettrim recipes``."""
    from .. import terminal
    from ..network.recipe import NAMES

    screen = terminal.Screen(arguments.quiet or arguments.json)
    if arguments.name is not None:
        recipe = named_or_read(arguments.name)
        screen.line(as_file(arguments.name))
        content: Any = recipe.to_dict()
    else:
        for name in NAMES:
            screen.line(f"{name:<10}{PURPOSES[name]}")
        screen.line("\nnettrim recipes NAME prints one as a file to edit, for --recipe FILE.toml.")
        content = {name: recipe.to_dict() for name, recipe in NAMES.items()}
    if arguments.json:
        print(json.dumps(content))
    return PROVED


def as_file(name: str) -> str:
    """Return a recipe as a file with every field, and what it means before it."""
    from ..network.recipe import AUTOMATIC

    recipe = named_or_read(name)
    comments = dict(COMMENTS)
    for field in AUTOMATIC:
        comments[field] += f'\n"auto": {auto_choices()[field]}.'
    heads = [f"# {name}: {PURPOSES[name]}"] if name in PURPOSES else []
    return "\n".join([*heads, recipe.to_toml(comments), LAYERS])


@cache
def auto_choices() -> dict[str, str]:
    """Return in words what "auto" chooses for a network of two layers, by field."""
    import numpy as np

    from ..network import Activate, Dense, Network
    from ..network.adapt import adapted
    from ..network.recipe import AUTOMATIC, Recipe, toml_value
    from ..network.target import Budget

    W = np.ones((2, 2))
    network = Network([Dense(W, name="first"), Activate("relu"), Dense(W, name="last")])
    budgets = {"within a tolerance": Budget("tolerance", 0.1), "else": Budget("sparsity", 0.5)}
    chosen = {
        words: adapted(Recipe.named("best"), network, budget)[0].to_dict()
        for words, budget in budgets.items()
    }
    defaults = Recipe().to_dict() | {f.name: f.default for f in fields(Recipe)}
    return {
        name: ", ".join(
            f"{words} {toml_value(found.get(name, defaults[name]))}"
            for words, found in chosen.items()
        )
        for name in AUTOMATIC
    }
