r"""One layer of a network as problems, and the answers as weights of the layer.

A dense layer is one :class:`.Problem`, a convolution one per group. In a cascade X holds the
signals of the network that is already pruned up to the layer, and the targets stay the trained
network's: the layer makes up for the damage before it. The trained weights may then be out of
reach of the radius, so it grows to

.. math::

    \epsilon^2 = \max\big(\gamma\, \mathrm{dist}(\hat X W, K)^2,\; (g \|Y\|_F)^2\big)

with the distance over the matched rows alone when the formulation is strict.

Outputs may be weighted (:mod:`.downstream`): a problem in the units ``s_j y_j`` is solved then, and
its answer taken back to those of the layer.

References
----------
Aghasi, Abdi, Nguyen, Romberg, *Net-Trim*, NIPS 2017 (arXiv:1611.05162), the cascade scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..activations import Activation
from ..certificate import Certificate, certify, forward
from ..judging import TOLERANCES
from ..penalty_search.programs import reach
from ..problem import Problem
from ..sample_size import required_samples
from ..solution import Solution
from ..status import Status, worst
from .calibration import LayerSignals
from .choices import LayerSettings
from .layers import Layer

if TYPE_CHECKING:
    from .stages import Stage


@dataclass(frozen=True, eq=False)
class GroupTask:
    """One problem of a layer.

    Attributes
    ----------
    problem : Problem
        What is solved.
    target : Problem
        What is judged: the same with the original target box, which a strict cascade widens, and in
        the units of the layer.
    nnz : int or None
        The budget of weights; None for the problem's radius.
    units : ndarray of float64, shape (n_outputs,), or None
        What the outputs of `target` are multiplied with in `problem`.
    """

    problem: Problem
    target: Problem
    nnz: int | None
    units: NDArray[np.float64] | None = None

    def to_layer(self, values: Any, dtype: DTypeLike | None = None) -> Any:
        """Return weights or intercepts of the problem in the units of the layer."""
        if values is None:
            return None
        return np.asarray(values if self.units is None else values / self.units, dtype)

    def to_problem(self, values: Any) -> Any:
        """Return weights or intercepts of the layer in the units of the problem."""
        return values if values is None or self.units is None else values * self.units


@dataclass(frozen=True, eq=False)
class GroupAnswer:
    """Weights of one group, in the dtype of the layer, and what is proved about them.

    Attributes
    ----------
    W : ndarray of shape (n_inputs, n_outputs)
    b : ndarray of shape (n_outputs,) or None
    status : Status
    judged : Certificate
        For the problem that was solved.
    reached : Certificate
        For the original target box.
    has_dual : bool
        Whether the solver gave a dual point; without one the gap says nothing.
    solver : str
    warnings : tuple of str
    stages : tuple of Stage
        Of a pipeline of several steps.
    """

    W: NDArray[Any]
    b: NDArray[Any] | None
    status: Status
    judged: Certificate
    reached: Certificate
    has_dual: bool
    solver: str
    warnings: tuple[str, ...]
    stages: tuple[Stage, ...] = ()


def group_tasks(
    signals: LayerSignals,
    activation: Activation,
    settings: LayerSettings,
    cascade: bool,
    output_weights: NDArray[np.float64] | None = None,
) -> list[GroupTask]:
    """Return the problems of a layer.

    Parameters
    ----------
    signals : LayerSignals
    activation : Activation
        What follows the layer.
    settings : LayerSettings
    cascade : bool
        Whether the signals are those of a pruned network.
    output_weights : ndarray of shape (n_outputs,), optional
        What the errors of the outputs count.

    Raises
    ------
    ProblemError
        If the signals make no valid problem.
    """
    layer, Z = signals.layer, signals.Z
    # Activations may compute in float64; the network rounds to the dtype of its signals.
    Y = activation(Z).astype(Z.dtype, copy=False)
    shares = _shares(Y, layer, settings.target(layer.W.size))
    tasks = []
    for group, (X, W) in enumerate(zip(signals.X, layer.matrices(), strict=True)):
        columns = layer.columns(group)
        problem = Problem(
            X, Y[:, columns], W, None if layer.b is None else layer.b[columns],
            activation=activation.select(columns), Z=Z[:, columns], tolerance=settings.tolerance,
            formulation=settings.formulation, radius=settings.radius,
            intercept=layer.b is not None,
        )  # fmt: skip
        problem.box(slice(0, 1))  # says whether the activation has a target box
        units = None if output_weights is None else output_weights[columns]
        solved = problem if units is None else weighted(problem, units, settings.tolerance)
        if cascade and settings.tolerance is not None:
            solved = solved.within(cascade_radius(solved, settings.gamma))
        if cascade:
            solved = strict_cascade(solved, settings.strict_bound)
        tasks.append(GroupTask(solved, problem, None if shares is None else shares[group], units))
    return tasks


def weighted(problem: Problem, units: NDArray[np.float64], tolerance: float | None) -> Problem:
    """Return a problem for the outputs ``units[j] * y_j``; the tolerance is relative to these."""
    lower, upper = (end * units for end in problem.box())
    epsilon = None
    if tolerance is not None:
        norms = tolerance * np.linalg.norm(np.asarray(problem.Y, np.float64) * units, axis=0)
        epsilon = float(np.linalg.norm(norms)) if problem.joint else norms
    return Problem(
        problem.X, None, np.asarray(problem.W) * units,
        None if problem.b is None else problem.b * units, lower=lower, upper=upper,
        Z=None if problem.Z is None else problem.Z * units, epsilon=epsilon,
        formulation=problem.formulation, radius=problem.radius, intercept=problem.intercept,
    )  # fmt: skip


def cascade_radius(problem: Problem, gamma: float) -> Any:
    """Return the problem's radius, or sqrt(gamma) times what the trained weights reach.

    The larger of the two; with gamma >= 1 the trained weights keep it.
    """
    reached: Any = reach(problem, np.asarray(problem.W), problem.b)
    if problem.joint:
        reached = float(np.linalg.norm(reached))
    own: Any = problem.epsilon
    return np.maximum(own, np.sqrt(gamma) * reached)


def strict_cascade(problem: Problem, strict_bound: str) -> Problem:
    """Return a strict problem whose one-sided rows the trained weights keep; others as they are.

    With ``V = X W + b`` an end of the box at u becomes V (``"trained"``, the paper's), or the
    further out of V and u (``"clipped"``), which asks for no more and bounds the error as well.
    Linear targets stay the original pre-activations, where the box has them.
    """
    if not problem.strict:
        return problem
    lower, upper = problem.box()
    below, above = np.isneginf(lower), np.isposinf(upper)
    if not (below.any() or above.any()):
        return problem
    V = forward(problem.X, np.asarray(problem.W), problem.b)
    outer = np.where(below & ~above, V, upper), np.where(above & ~below, V, lower)
    if strict_bound == "clipped":
        outer = np.maximum(outer[0], upper), np.minimum(outer[1], lower)
    upper, lower = outer
    return Problem(
        problem.X, None, problem.W, problem.b, lower=lower, upper=upper, Z=problem.Z,
        epsilon=problem.epsilon, formulation="strict", radius=problem.radius,
        intercept=problem.intercept,
    )  # fmt: skip


def judge_group(
    task: GroupTask, layer: Layer, solution: Solution, stages: tuple[Stage, ...] = ()
) -> GroupAnswer:
    """Return an answer in the dtype of the layer, judged once more where that rounds it."""
    W, b = (task.to_layer(values, layer.dtype) for values in (solution.W, solution.b))
    judged, status = solution.certificate, solution.status
    if not np.array_equal(task.to_problem(W), solution.W):
        problem = task.problem
        if judged.epsilons is not None:
            problem = problem.within(_levels(judged.epsilons, problem))
        judged = certify(problem, task.to_problem(W), task.to_problem(b), solution.theta)
        status = _status_after_rounding(status, judged, W.dtype)
    reached = judged
    if task.target is not task.problem:
        reached = certify(task.target, W, b)
    return GroupAnswer(
        W, b, status, judged, reached, solution.theta is not None, solution.solver,
        solution.warnings, stages,
    )  # fmt: skip


def target_norm(tasks: Sequence[GroupTask]) -> float:
    """Return the Frobenius norm of the targets Y of a layer."""
    return _norm(float(np.linalg.norm(np.asarray(task.target.Y, np.float64))) for task in tasks)


def failure(solution: Any, problem: Problem) -> str | None:
    """Return why an answer cannot be used, or None if it can."""
    if not isinstance(solution, Solution):
        return f"the pipeline must return a Solution, but returned a {type(solution).__name__}"
    if solution.W.shape != (problem.n_inputs, problem.n_outputs):
        return f"W must have shape {(problem.n_inputs, problem.n_outputs)}: {solution.W.shape}"
    if solution.status in (Status.INFEASIBLE, Status.FAILED):
        return solution.explain()
    if not np.isfinite(solution.certificate.distance):
        return "the weights are not finite"
    return None


def together(answers: Sequence[GroupAnswer]) -> dict[str, Any]:
    """Return what is reported of the answers to all groups of a layer."""
    epsilons = [answer.judged.epsilons for answer in answers]
    bounded = all(e is not None for e in epsilons)
    proving = bounded and all(answer.has_dual for answer in answers)
    errors = [answer.reached.activation_error for answer in answers]
    return {
        "status": worst([answer.status for answer in answers]),
        "epsilon": _norm(map(_norm, epsilons)) if bounded else None,
        "distance": _norm(answer.reached.distance for answer in answers),
        "activation_error": None if None in errors else _norm(errors),
        "gap": max(answer.judged.gap for answer in answers) if proving else None,
        "violation": max(answer.judged.violation for answer in answers) if bounded else None,
        "solver": answers[0].solver,
        "warnings": tuple(dict.fromkeys(text for answer in answers for text in answer.warnings)),
    }


def sample_warnings(tasks: Sequence[GroupTask], answers: Sequence[GroupAnswer]) -> list[str]:
    """Return what a reader should know about the samples of a layer and its answer."""
    found = []
    silent = sum(int(np.sum(task.target.target_norms == 0)) for task in tasks)
    if silent:
        found.append(f"degenerate: {silent} outputs are never active on these rows")
    nnz = sum(int(np.count_nonzero(answer.W)) for answer in answers)
    if nnz == 0:
        found.append("degenerate: all weights are zero")
    N, rows = tasks[0].problem.n_inputs, tasks[0].problem.n_samples
    s = nnz / sum(answer.W.shape[1] for answer in answers)
    lower, upper = tasks[0].target.box()
    active = float(np.mean(lower == upper))
    needed = 0.0
    if nnz and active:
        # The law is that of outputs which half of the rows pin down.
        needed = required_samples(N, max(1, round(s)), probability=0.5) / (2 * active)
    if rows < needed:
        found.append(
            f"too few samples: {rows} rows for {s:.1f} nonzeros per output; even sparse weights on "
            f"Gaussian inputs need about {needed:.0f}"
        )
    status = worst([answer.status for answer in answers])
    if status not in (Status.OPTIMAL, Status.FEASIBLE, Status.PRUNED):
        found.append(f"unproved: {status}, {status.message}")
    return found


def _norm(values: Any) -> float:
    return float(np.linalg.norm(np.fromiter(values, dtype=np.float64)))


def _shares(Y: NDArray[Any], layer: Layer, nnz: int | None) -> list[int] | None:
    """Return the budget of every group: equal, one more where the targets are largest."""
    if nnz is None:
        return None
    share, odd = divmod(nnz, layer.n_groups)
    norms = [float(np.linalg.norm(Y[:, layer.columns(g)])) for g in range(layer.n_groups)]
    first = set(np.argsort(-np.array(norms), kind="stable")[:odd].tolist())
    return [share + (group in first) for group in range(layer.n_groups)]


def _levels(epsilons: NDArray[np.float64], problem: Problem) -> Any:
    """Return the radii of a certificate as a problem takes them."""
    return float(epsilons[0]) if problem.joint and len(epsilons) == 1 else epsilons


def _status_after_rounding(status: Status, judged: Certificate, dtype: Any) -> Status:
    limits = TOLERANCES[np.dtype(dtype)]
    if status is Status.OPTIMAL and not judged.proved(**limits).all():
        return Status.UNPROVED
    if status is Status.FEASIBLE and not judged.feasible(limits["tol_feas"]).all():
        return Status.UNPROVED
    return status
