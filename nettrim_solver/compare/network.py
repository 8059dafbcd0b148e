"""The comparison on a whole network, which every method prunes to the same zeros."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..comparison import Row
from ..exceptions import ProblemError, SolverError, UnsupportedError
from ..network import Calibration, Network, PruningResult, Recipe, prune_network
from ..network.choices import Execution
from ..network.prune import prepared
from ..network.recipe import NAMES, as_recipe
from ..network.target import Budget
from ..pipeline import REFINEMENTS, Pipeline
from ..problem import Problem
from ..solvers import SOLVERS, get_solver
from ..status import Status
from .checks import Method, Refinement, able_solvers, checked_methods
from .run import Asked, Run

#: Recipes that are compared unless methods are named; "net-trim" is the base recipe with "admm".
RECIPES = ("best", "fast")


def checked_solvers(
    network: Network, recipe: Recipe, given: Any
) -> tuple[dict[str, Method], dict[str, Any]]:
    """Return the methods by their names in the rows, and the modules of the solvers among them.

    The module is None of a solver that cannot do what the layers ask: its rows will say so.

    Raises
    ------
    SettingsError, MissingDependencyError
        For unknown methods, and for solvers whose packages are not installed.
    """
    one = np.ones((1, 1))
    intercept = any(layer.b is not None for layer in network.layers)
    layer = Problem(one, one, one, formulation=recipe.formulation, intercept=intercept)
    known = (*NAMES, *SOLVERS)
    methods = checked_methods(given, [*RECIPES, *able_solvers(layer)], known, kinds=(Recipe,))
    modules: dict[str, Any] = {}
    for name, method in methods.items():
        if isinstance(method, str) and method in SOLVERS:
            try:
                modules[name] = get_solver(method, layer)
            except UnsupportedError:
                modules[name] = None
    return methods, modules


def checked_data(X: Any, network: Network, name: str) -> Calibration:
    """Return samples that can be read as often as there are answers; messages name the argument."""
    if X is None:
        raise ProblemError(f"{name} must hold inputs of the network, but was None")
    try:
        return X if isinstance(X, Calibration) else Calibration(X, network)
    except ProblemError as error:
        raise ProblemError(f"{name}: {error}") from None


def network_run(
    asked: Asked, network: Network, X: Any, solvers: Any, settings: Any, X_heldout: Any,
    recipe: Recipe | str | None, n_threads: int | None, seed: int, progress: bool | None,
) -> NetworkRun:  # fmt: skip
    """Return the comparison on a network, everything checked.

    Every recipe is checked as :func:`.prune_network` does. One that does not support what is asked
    is let pass: its rows will say so.
    """
    if not isinstance(network, Network):
        raise ProblemError(
            f"problem_or_network must be a Problem or a Network, but was a {type(network).__name__}"
        )
    base = Recipe() if recipe is None else as_recipe(recipe)
    execution = Execution(n_threads, seed)
    asked = asked.of(*checked_solvers(network, base, solvers), settings)
    data = checked_data(X, network, "X")
    heldout = None if X_heldout is None else checked_data(X_heldout, network, "X_heldout")
    recipes = {
        name: _recipe_of(method, base, asked.options.get(name, {}))
        for name, method in asked.methods.items()
    }
    for one in recipes.values():
        with contextlib.suppress(UnsupportedError):
            prepared(network, data, Budget("sparsity", asked.sparsities[0]), one, execution)
    trained = None if asked.accuracy is None else float(asked.accuracy(network))
    return NetworkRun(
        asked, trained, 0 if heldout is None else len(heldout), network=network, data=data,
        heldout=heldout, recipes=recipes, execution=execution, progress=progress,
    )  # fmt: skip


def _recipe_of(method: Method, base: Recipe, options: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a method stands for."""
    if isinstance(method, Recipe):
        return method
    if not isinstance(method, str):
        return base.with_(steps=method)
    if method in NAMES:
        return NAMES[method].with_(layers=base.layers, skip=base.skip)
    return base.with_(steps={"step": method, **options})


@dataclass(kw_only=True)
class NetworkRun(Run):
    """A comparison on a whole network.

    Attributes
    ----------
    recipes : mapping of str to Recipe
        By the names of the methods.
    """

    kind = "network"

    network: Network
    data: Calibration
    heldout: Calibration | None
    recipes: Mapping[str, Recipe]
    execution: Execution
    progress: bool | None

    def answer(self, name: str, sparsity: float, previous: PruningResult | None) -> PruningResult:
        """Return the network that a method prunes, always from the trained one."""
        return self._pruned(self.recipes[name], sparsity)

    def refined(
        self, name: str, sparsity: float, answer: PruningResult, refinement: Refinement
    ) -> Callable[[], PruningResult] | None:
        """Return what prunes the network anew with one more step in every layer.

        None for recipes without steps of their own: a function, or what is chosen for the network.
        """
        recipe = self.recipes[name]
        if not isinstance(recipe.steps, Pipeline):
            return None
        step = REFINEMENTS[refinement.name].with_options(refinement.options)
        steps = Pipeline(*recipe.steps.steps, step)
        return partial(self._pruned, recipe.with_(steps=steps), sparsity)

    def _pruned(self, recipe: Recipe, sparsity: float) -> PruningResult:
        """Prune the network; a layer that fails is a failure."""
        result = prune_network(
            self.network, self.data, sparsity=sparsity, recipe=recipe, X_heldout=self.heldout,
            n_threads=self.execution.n_threads, seed=self.execution.seed, time_limit=self.left(),
            progress=self.progress,
        )  # fmt: skip
        failed = [f"{one.name}: {one.reason}" for one in result.layers if one.outcome == "failed"]
        if failed:
            raise SolverError("; ".join(failed))
        return result

    def measured(self, row: Row, answer: PruningResult) -> Row:
        """Return the row with everything that can be said of a pruned network."""
        layers, accuracy, recipe = answer.network.layers, self.asked.accuracy, answer.recipe
        gaps = [one.gap for one in answer.layers if one.gap is not None]
        violations = [one.violation for one in answer.layers if one.violation is not None]
        untouched = tuple(
            f"{one.name} {one.outcome}" + (f": {one.reason}" if one.reason else "")
            for one in answer.layers
            if not one.pruned and one.outcome != "skipped"
        )
        alone = not (recipe.passes or recipe.output_refit) and recipe.allocation == "uniform"
        layer_seconds = sum(one.seconds for one in answer.layers)
        return replace(
            row, zeros=answer.sparsity, nnz=answer.nnz, error=answer.output_error,
            heldout_error=answer.output_error_heldout,
            accuracy=None if accuracy is None else float(accuracy(answer.network)),
            l1_norm=float(sum(np.sum(np.abs(one.W), dtype=np.float64) for one in layers)),
            seconds=layer_seconds if alone else answer.seconds, status=str(answer.status),
            proved=answer.status is Status.OPTIMAL, gap=max(map(abs, gaps)) if gaps else None,
            violation=max(violations) if gaps and violations else None,
            warnings=(*untouched, *answer.warnings),
        )  # fmt: skip
