"""The comparison on one layer: a problem, and the solvers that can do what it asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..comparison import Row
from ..exceptions import ProblemError, SolverError
from ..problem import Problem
from ..solution import Solution
from ..solve import solve
from ..solvers import SOLVERS, get_solver
from ..status import Status
from .checks import Method, Refinement, able_solvers, checked_methods
from .run import Asked, Run
from .samples import Samples, checked_samples


def checked_solvers(problem: Problem, given: Any) -> tuple[dict[str, Method], dict[str, Any]]:
    """Return the methods by their names in the rows, and the modules of the solvers among them.

    Raises
    ------
    ProblemError, SettingsError, UnsupportedError, MissingDependencyError
        If one of them cannot do what the problem asks.
    """
    if problem.penalised:
        formulation = "strict" if problem.strict else "pooled"
        raise ProblemError(
            f"formulation must be a form with a radius, but was {problem.formulation!r}: the "
            f"sparsity decides lambda_; use formulation={formulation!r}"
        )
    methods = checked_methods(given, able_solvers(problem))
    modules = {
        name: get_solver(method, problem)
        for name, method in methods.items()
        if isinstance(method, str)
    }
    return methods, modules


def layer_run(
    asked: Asked, problem: Problem, solvers: Any, settings: Any, heldout: tuple[Any, Any, Any]
) -> LayerRun:
    """Return the comparison on a layer, everything checked."""
    asked = asked.of(*checked_solvers(problem, solvers), settings)
    samples, fresh = checked_samples(problem, *heldout)
    trained = None
    if asked.accuracy is not None and problem.W is not None:
        trained = float(asked.accuracy(problem.W, problem.b))
    n_heldout = 0 if fresh is None else int(fresh.X.shape[0])
    return LayerRun(asked, trained, n_heldout, problem=problem, samples=samples, heldout=fresh)


@dataclass(kw_only=True)
class LayerRun(Run):
    """A comparison on one layer."""

    kind = "layer"

    problem: Problem
    samples: Samples
    heldout: Samples | None = None

    def answer(self, name: str, sparsity: float, previous: Solution | None) -> Solution:
        """Return the answer of a solver or of a function, which begins where it can."""
        method = self.asked.methods[name]
        if isinstance(method, str):
            kept = SOLVERS[method].convex or (previous is not None and previous.trace is not None)
            return solve(
                self.problem, method, sparsity=sparsity, warm_start=previous if kept else None,
                **self._limited(self.asked.options[name]),
            )  # fmt: skip
        assert callable(method)
        answer = method(self.problem, sparsity, previous)
        shape = (self.problem.n_inputs, self.problem.n_outputs)
        if not isinstance(answer, Solution) or answer.W.shape != shape:
            raise SolverError(f"{name!r} must return a Solution with W of shape {shape}")
        return answer

    def refined(
        self, name: str, sparsity: float, answer: Solution, refinement: Refinement
    ) -> Callable[[], Solution]:
        """Return what refines an answer."""
        options = self._limited(refinement.options)
        return partial(refinement.function, self.problem, answer, **options)

    def measured(self, row: Row, answer: Solution) -> Row:
        """Return the row with everything that can be said of an answer."""
        W, b, judged = answer.W, answer.b, answer.certificate
        error, activation_error = self.samples.errors(W, b)
        heldout = (None, None) if self.heldout is None else self.heldout.errors(W, b)
        accuracy, dual = self.asked.accuracy, answer.theta is not None
        return replace(
            row, zeros=answer.sparsity, nnz=answer.nnz, error=error, heldout_error=heldout[0],
            activation_error=activation_error, heldout_activation_error=heldout[1],
            accuracy=None if accuracy is None else float(accuracy(W, b)),
            l1_norm=float(np.sum(np.abs(W), dtype=np.float64)), status=str(answer.status),
            proved=answer.status is Status.OPTIMAL,
            gap=float(np.max(np.abs(judged.gaps))) if dual else None,
            violation=judged.violation if dual else None, warnings=tuple(answer.warnings),
        )  # fmt: skip

    def _limited(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options with no more time than there is left."""
        left = self.left()
        if left is None:
            return dict(options)
        own = options.get("time_limit")
        return {**options, "time_limit": left if own is None else min(own, left)}
