"""What a refinement starts from: the checked answer of a solver, and the layer's data."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import check_choice, check_number, check_time_limit
from ..exceptions import ProblemError, SettingsError
from ..problem import Problem
from ..solution import Solution
from ..solvers.gram import Array, Gram, gram
from ..solvers.pruning import Mask, parse_pattern
from ..solvers.tableau import Groups
from ..status import Status

#: Pull towards the trained weights where there are any, in units of the mean of diag(X'X).
DAMPING = 0.01

TARGETS = ("linear", "box")


@dataclass(frozen=True)
class Found:
    """What was found for one output: its support, weights (and intercept), and steps or swaps.

    `ended` is False where the time was up before its end.
    """

    kept: NDArray[np.int64]
    w: Array
    count: int
    ended: bool = True


Answer = tuple[Array, Array, NDArray[np.int64] | None, list[Status]]


@dataclass(frozen=True)
class Run:
    """What a refinement starts from.

    Attributes
    ----------
    W : ndarray of shape (N, M)
        The weights given; zero for dead inputs.
    b : ndarray of shape (M,)
        Their intercept.
    mask : ndarray of bool, shape (N, M)
        The weights that count as kept.
    data : Gram
        Damped.
    delta : float
        The damping in absolute terms.
    n_constant : int
        1 when the intercept is solved for, else 0.
    """

    W: Array
    b: Array
    mask: Mask
    data: Gram
    delta: float
    n_constant: int
    name: str
    seconds: dict[str, float]
    started: float
    time_limit: float | None

    def expired(self) -> bool:
        """Return whether the time is up."""
        elapsed = time.perf_counter() - self.started
        return self.time_limit is not None and elapsed > self.time_limit

    @property
    def nothing(self) -> Array:
        """Pull and anchor of the intercept, where it is solved for: zero."""
        return np.zeros(self.n_constant)

    def start(self, j: int, kept: NDArray[np.int64]) -> Array:
        """Return the given weights of an output's support, and the intercept to be solved for."""
        return np.append(self.W[kept, j], self.b[j : j + self.n_constant])

    def box(self, problem: Problem, j: int) -> tuple[Array, Array]:
        """Return the box of one output, less the intercept when that is kept."""
        lower, upper = problem.box([j])
        shift = 0.0 if self.n_constant else self.b[j]
        return lower[:, 0] - shift, upper[:, 0] - shift

    def collected(self, found: list[Found], stops: list[Status]) -> Answer:
        """Return the answers of all outputs; those not reached stay as they were given."""
        W, b, counts = self.W.copy(), self.b.copy(), np.zeros(len(stops), dtype=np.int64)
        for j, one in enumerate(found):
            W[:, j] = 0.0
            W[one.kept, j] = one.w[: len(one.kept)]
            b[j : j + self.n_constant] = one.w[len(one.kept) :]
            counts[j] = one.count
        W[self.data.dead] = 0.0
        return W, b, counts, stops


def start_of(
    problem: Problem, solution: Any, target: str, damping: float | None, intercept: str,
    time_limit: float | None,
) -> Run:  # fmt: skip
    """Check the arguments that both refinements share, and compute the layer's data."""
    started = time.perf_counter()
    if not isinstance(problem, Problem):
        raise ProblemError(f"problem must be a Problem, but was {type(problem).__name__}")
    check_choice("target", target, TARGETS)
    check_choice("intercept", intercept, ("solve", "keep"))
    check_time_limit(time_limit)
    if damping is None:
        damping = 0.0 if problem.W is None else DAMPING
    check_number("damping", damping, 0.0, np.inf, closed=True)
    if damping > 0 and problem.W is None:
        raise SettingsError(
            f"damping must be 0 for a problem without W, which it would pull towards, but was "
            f"{damping!r}"
        )
    W, b, mask, name = _given(problem, solution)
    constant = problem.intercept and intercept == "solve"
    data = _data(problem, target, b, constant)
    damped = data.damped(damping)
    delta = damping * float(np.mean(np.diag(data.H)[~data.dead])) if not data.dead.all() else 0.0
    if constant:
        # A constant input is dead beside a free intercept, which takes over what it contributed.
        b = b + data.mean[data.dead] @ W[data.dead]
    W[data.dead] = 0.0
    seconds = {"gram": time.perf_counter() - started}
    return Run(W, b, mask, damped, delta, int(constant), name, seconds, started, time_limit)


def _given(problem: Problem, solution: Any) -> tuple[Array, Array, Mask, str]:
    """Return weights, intercept and support of what the user gave, and the solver's name."""
    shape = (problem.n_inputs, problem.n_outputs)
    trained = problem.b
    if isinstance(solution, Solution):
        values, trained, name = solution.W, solution.b, solution.solver + "+"
    else:
        values, name = np.asarray(solution), ""
        if values.dtype.kind not in "fiub":
            raise ProblemError(
                "solution must be a Solution, or an array of weights or of booleans, but was "
                f"{type(solution).__name__}"
            )
    if values.shape != shape:
        raise ProblemError(f"solution must have weights of shape {shape}, but has {values.shape}")
    b = np.zeros(problem.n_outputs)
    if problem.intercept and trained is not None:
        b += trained
    if values.dtype == bool:
        start = np.zeros(shape) if problem.W is None else problem.W.astype(np.float64)
        return np.where(values, start, 0.0), b, values.copy(), name
    if not (np.all(np.isfinite(values)) and np.all(np.isfinite(b))):
        raise ProblemError("solution must be finite, but holds NaN or infinity")
    return values.astype(np.float64), b, values != 0, name


def _data(problem: Problem, target: str, b: Array, constant: bool) -> Gram:
    """Return the layer's data, without damping; a kept intercept is subtracted from the target."""
    W = problem.W
    if W is None:
        if target == "linear" and problem.Z is None and not _matched(problem):
            raise ProblemError(
                "target='linear' needs what the trained layer computes: give the problem W or Z, "
                "or use target='box'"
            )
        # With Z, or a box of points, the target does not depend on W.
        problem = problem.replace(W=np.zeros((problem.n_inputs, problem.n_outputs)))
    data = gram(problem, solve_intercept=problem.intercept)
    if constant or not problem.intercept:
        return data
    # Uncentred moments, about zero for the inputs and about b for the target.
    n, mean, shift = data.n_samples, data.mean, data.target_mean - b
    H = data.H.copy()
    H[data.dead, data.dead] = 0.0
    H += n * np.outer(mean, mean)
    dead = data.dead & (mean == 0.0)
    H[dead, dead] = 1.0
    trained = np.zeros_like(data.W) if W is None else W.astype(np.float64)
    trained[dead] = 0.0
    return replace(
        data, H=H, G=data.G + n * np.outer(mean, shift), W=trained, dead=dead,
        squares=data.squares + n * shift**2, mean=np.zeros_like(mean), target_mean=b,
    )  # fmt: skip


def _matched(problem: Problem) -> bool:
    lower, upper = problem.box()
    return bool(np.array_equal(lower, upper))


def pattern_groups(problem: Problem, pattern: str | None) -> Groups | None:
    """Return the pattern as the exchanges take it, None without one."""
    parsed = parse_pattern(pattern)
    if parsed is None:
        return None
    most, size = parsed
    if problem.n_inputs % size:
        raise ProblemError(
            f"pattern={pattern!r} needs a number of inputs that {size} divides, but X has "
            f"{problem.n_inputs}"
        )
    return Groups(size, most)


def check_pattern(mask: Mask, groups: Groups, pattern: str | None) -> None:
    """Raise ProblemError unless a mask keeps the pattern."""
    counts = mask.reshape(-1, groups.size, mask.shape[1]).sum(axis=1)
    if counts.max() > groups.most:
        raise ProblemError(
            f"solution must keep pattern={pattern!r} for the swaps to keep it, but has up to "
            f"{counts.max()} nonzeros in {groups.size} consecutive inputs"
        )
