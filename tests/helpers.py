"""What several test modules use."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from nettrim_solver.network import PruningPlan, PruningResult, Recipe, plan_network, prune_network
from nettrim_solver.network.choices import Execution
from nettrim_solver.network.prune import prepared
from nettrim_solver.network.target import Budget

FIELDS = {field.name for field in fields(Recipe)}


def prune(network: Any, X: Any, **given: Any) -> PruningResult:
    """Prune a network, with fields of the recipe beside the other arguments.

    Without any of them that is the paper's program, not the recipe "best".
    """
    return prune_network(network, X, **with_recipe(given))


def planned(network: Any, X: Any, **given: Any) -> PruningPlan:
    """Plan a run, with fields of the recipe beside the other arguments."""
    return plan_network(network, X, **with_recipe(given))


def with_recipe(given: dict[str, Any]) -> dict[str, Any]:
    """Return arguments with those that are fields of a recipe put into one."""
    how = {name: value for name, value in given.items() if name in FIELDS}
    rest = {name: value for name, value in given.items() if name not in FIELDS}
    return {"recipe": Recipe(**how)} | rest


def prune_weighted_at(network: Any, X: Any, reference: Any, **given: Any) -> PruningResult:
    """Prune a network with the output weights measured at another one, as preliminary passes do."""
    names = ("tolerance", "sparsity", "nnz")
    budget = Budget.of(**{name: given.pop(name) for name in names if name in given})
    recipe = with_recipe(given | {"output_weights": "downstream"})["recipe"]
    run = prepared(network, X, budget, recipe, Execution(n_threads=1))
    run.choices = {
        name: replace(choice, output_weights=reference) for name, choice in run.choices.items()
    }
    return run.prune()
