"""What ``"auto"`` means in a recipe: the choice for a budget and a network.

The rules come from measurements on networks of different kinds, by the output error on samples that
took no part in pruning: see the page "The best recipe" of the documentation.
"""

from __future__ import annotations

from typing import Any

from ..exceptions import UnsupportedError
from .adjoint import check_differentiable
from .choices import open_layers
from .downstream import before_softmax
from .graph import Network
from .output_refit import is_convolutional, usual_epochs
from .recipe import AUTO, AUTOMATIC, Recipe
from .target import Budget

#: For a tolerance: the convex program with its proof, then as few weights as can be found within
#: the same radius.
FOR_TOLERANCE: dict[str, Any] = {
    "steps": ["admm", "l0"], "allocation": "uniform", "output_weights": "equal", "passes": 0,
    "output_refit": 0,
}  # fmt: skip

#: What is done to a layer for a number of weights.
TO_COUNT = [{"step": "l0", "damping": 1e-3, "rounds": 4}]

#: Preliminary passes.
PASSES = 3


def adapted(recipe: Recipe, network: Network, budget: Budget) -> tuple[Recipe, tuple[str, ...]]:
    """Return a recipe without "auto", and what was left out for this network, with the reasons.

    Parameters
    ----------
    recipe : Recipe
    network : Network
        Batch normalisations folded.
    budget : Budget
    """
    notes: list[str] = []
    if budget.name == "tolerance":
        chosen = FOR_TOLERANCE
        if recipe.allocation != "uniform" or recipe.output_refit:
            notes.append(
                "no allocation and no refit to the network's output: with a tolerance every layer "
                "keeps its own radius"
            )
        recipe = recipe.with_(allocation="uniform", output_refit=0)
    elif any(getattr(recipe, name) == AUTO for name in AUTOMATIC):
        chosen, notes = _for_count(recipe, network, budget)
    changes = {name: chosen[name] for name in AUTOMATIC if getattr(recipe, name) == AUTO}
    if changes.get("output_weights") == "equal" or (
        recipe.output_weights == "equal" and recipe.passes == AUTO
    ):
        changes["passes"] = 0
    return recipe.with_(**changes), tuple(notes)


def _for_count(
    recipe: Recipe, network: Network, budget: Budget
) -> tuple[dict[str, Any], list[str]]:
    notes = []
    trial = recipe.with_(
        **{n: v for n, v in _PLAIN.items() if getattr(recipe, n) == AUTO}
    )  # fmt: skip
    names = [*open_layers(network, trial)] if budget.counts or budget.searched else []
    # Weights of convolutions are used at many positions, which shapes do not show.
    allocation = "output_error" if is_convolutional(network) else "shape"
    chosen: dict[str, Any] = {
        "steps": TO_COUNT, "allocation": allocation, "output_weights": "downstream",
        "passes": PASSES, "output_refit": usual_epochs(network),
    }  # fmt: skip
    if len(names) < 2:
        chosen["allocation"] = "uniform"
        notes.append("one layer shares the budget: there is nothing to allocate")
    if len(network.layers) < 2:
        chosen["output_weights"] = "equal"  # What a single layer gives is the network's output.
    try:
        end = before_softmax(network)
        kept = trial.skip
        check_differentiable(network, [n for n in names if n not in kept], end)
    except UnsupportedError as error:
        chosen["output_refit"] = 0
        notes.append(f"no refit to the network's output: {error}")
    return chosen, notes


_PLAIN = {
    "steps": "alps", "allocation": "uniform", "output_weights": "equal", "passes": 0,
    "output_refit": 0,
}  # fmt: skip
