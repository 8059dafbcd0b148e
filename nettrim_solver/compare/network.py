"""The comparison on a whole network, which every solver prunes layer by layer."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..comparison import Row
from ..exceptions import ProblemError, SettingsError, SolverError, UnsupportedError
from ..network import Calibration, Network, PruningResult, prune_network
from ..network.prune import checked_run
from ..pipeline import Pipeline, Solve
from ..problem import Problem
from ..solution import Solution
from ..solvers import SOLVERS, available_solvers, get_solver
from ..status import Status
from .checks import Method, Refinement, checked_methods
from .run import Asked, Run

#: Arguments of :func:`.prune_network` that the comparison gives itself; a checkpoint holds one run.
DECIDED = {
    "network", "X", "X_heldout", "solver", "settings", "pipeline", "tolerance", "sparsity", "nnz",
    "checkpoint", "callback", "n_threads", "time_limit",
}  # fmt: skip


def checked_solvers(
    network: Network, formulation: str, given: Any
) -> tuple[dict[str, Method], dict[str, Any]]:
    """Return the methods by their names in the rows, and the modules of the solvers among them.

    The module is None of a solver that cannot do what the layers ask: its rows will say so.

    Raises
    ------
    SettingsError, MissingDependencyError
        For unknown solvers, and for those whose packages are not installed.
    """
    one = np.ones((1, 1))
    intercept = any(layer.b is not None for layer in network.layers)
    layer = Problem(one, one, one, formulation=formulation, intercept=intercept)  # type: ignore[arg-type]
    able = [
        name
        for name in available_solvers()
        if (name == "admm" or not SOLVERS[name].convex) and SOLVERS[name].lacks(layer) is None
    ]
    methods = checked_methods(given, able)
    modules: dict[str, Any] = {}
    for name, method in methods.items():
        if isinstance(method, str):
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
    n_threads: int | None, pruning: Mapping[str, Any],
) -> NetworkRun:  # fmt: skip
    """Return the comparison on a network, everything checked.

    The arguments of every method are checked as :func:`.prune_network` does. One that does not
    support what is asked is let pass: its rows will say so.
    """
    if not isinstance(network, Network):
        raise ProblemError(
            f"problem_or_network must be a Problem or a Network, but was a {type(network).__name__}"
        )
    known = set(inspect.signature(prune_network).parameters) - DECIDED
    unknown = sorted(set(pruning) - known)
    if unknown:
        raise SettingsError(
            f"of prune_network, a comparison takes {sorted(known)}, but was given {unknown}"
        )
    formulation = pruning.get("formulation", "pooled")
    asked = asked.of(*checked_solvers(network, formulation, solvers), settings)
    data = checked_data(X, network, "X")
    heldout = None if X_heldout is None else checked_data(X_heldout, network, "X_heldout")
    run = NetworkRun(
        asked, network=network, data=data, heldout=heldout, pruning=pruning, n_threads=n_threads
    )
    for name in asked.methods:
        with contextlib.suppress(UnsupportedError):
            checked_run(
                network, data, sparsity=asked.sparsities[0], n_threads=n_threads,
                **run.method(name), **pruning,
            )  # fmt: skip
    return run


@dataclass(kw_only=True)
class NetworkRun(Run):
    """A comparison on a whole network.

    Attributes
    ----------
    pruning : mapping
        Further arguments of :func:`.prune_network`, the same for all.
    """

    kind = "network"

    network: Network
    data: Calibration
    heldout: Calibration | None
    pruning: Mapping[str, Any]
    n_threads: int | None = None

    @property
    def trained_accuracy(self) -> float | None:
        """What the user's function says of the trained network."""
        return None if self.asked.accuracy is None else float(self.asked.accuracy(self.network))

    @property
    def n_heldout(self) -> int:
        """Number of held-out samples."""
        return 0 if self.heldout is None else len(self.heldout)

    def solver(self, name: str, method: Method) -> None:
        """Add the rows of one method; refinements prune the network anew, layer by layer."""
        for sparsity in self.asked.sparsities:
            row, _ = self.attempt(
                Row(name, "", sparsity), partial(self._pruned, sparsity, self.method(name))
            )
            if row.failure is not None:
                continue
            for one in self.asked.refinements:
                steps = {"pipeline": _refined(self._pipeline_of(name), one)}
                self.attempt(Row(name, one.label, sparsity), partial(self._pruned, sparsity, steps))

    def method(self, name: str) -> dict[str, Any]:
        """Return the method as arguments of :func:`.prune_network`."""
        method = self.asked.methods[name]
        if isinstance(method, str):
            return {"solver": method, "settings": dict(self.asked.options[name]) or None}
        return {"pipeline": method}

    def _pipeline_of(self, name: str) -> Callable[..., Solution]:
        method = self.asked.methods[name]
        return (
            Pipeline(Solve(method, self.asked.options[name])) if isinstance(method, str) else method
        )

    def _pruned(self, sparsity: float, how: Mapping[str, Any]) -> PruningResult:
        """Prune the network; a layer that fails is a failure."""
        result = prune_network(
            self.network, self.data, sparsity=sparsity, X_heldout=self.heldout,
            n_threads=self.n_threads, time_limit=self.left(), **how, **self.pruning,
        )  # fmt: skip
        failed = [f"{one.name}: {one.reason}" for one in result.layers if one.outcome == "failed"]
        if failed:
            raise SolverError("; ".join(failed))
        return result

    def measured(self, row: Row, answer: PruningResult) -> Row:
        """Return the row with everything that can be said of a pruned network."""
        layers, accuracy = answer.network.layers, self.asked.accuracy
        gaps = [one.gap for one in answer.layers if one.gap is not None]
        violations = [one.violation for one in answer.layers if one.violation is not None]
        untouched = tuple(
            f"{one.name} {one.outcome}" + (f": {one.reason}" if one.reason else "")
            for one in answer.layers
            if not one.pruned and one.outcome != "skipped"
        )
        return replace(
            row, zeros=answer.sparsity, nnz=answer.nnz, error=answer.output_error,
            heldout_error=answer.output_error_heldout,
            accuracy=None if accuracy is None else float(accuracy(answer.network)),
            l1_norm=float(sum(np.sum(np.abs(one.W), dtype=np.float64) for one in layers)),
            seconds=sum(one.seconds for one in answer.layers), status=str(answer.status),
            proved=answer.status is Status.OPTIMAL, gap=max(map(abs, gaps)) if gaps else None,
            violation=max(violations) if gaps and violations else None,
            warnings=(*untouched, *answer.warnings),
        )  # fmt: skip


def _refined(base: Callable[..., Solution], refinement: Refinement) -> Callable[..., Solution]:
    """Return a pipeline that refines the answers of another one."""

    def run(
        problem: Problem,
        nnz: int | None = None,
        *,
        n_threads: int | None = None,
        callback: Callable[..., object] | None = None,
        time_limit: float | None = None,
    ) -> Solution:
        started = time.perf_counter()
        answer = base(problem, nnz, n_threads=n_threads, callback=callback, time_limit=time_limit)
        options = dict(refinement.options)
        if time_limit is not None:
            left = max(1e-3, time_limit - (time.perf_counter() - started))
            options["time_limit"] = min(left, options.get("time_limit") or left)
        return refinement.function(problem, answer, n_threads=n_threads, **options)

    return run
