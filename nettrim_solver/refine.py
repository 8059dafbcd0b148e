r"""Refinements of any solver's answer: new values for its weights, and better supports.

- :func:`refit` keeps the zeros and chooses the values anew;
- :func:`swaps` keeps the number of nonzeros of every output and exchanges which weights they are.

Both lower one of two objectives, each with a pull of strength :math:`\delta` towards the trained
weights :math:`W_0`:

- ``target="linear"``: :math:`\|T - X W - b\|^2 + \delta \|W - W_0\|^2`, with T what the trained
  layer computes before its activation (:mod:`.solvers.gram`);
- ``target="box"``: :math:`\mathrm{dist}(X W + b, K)^2 + \delta \|W - W_0\|^2`, with K the target
  box. Where the activation is flat, the box asks for less than T does.

**Which one?** A smaller error on the calibration samples is not a better layer. On Gaussian data
refits to a ReLU's box lowered the error on the calibration samples and raised it on fresh ones,
presumably because half of the equations become inequalities. Score both on held-out samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from .checks import check_choice, check_integer, check_number, check_time_limit
from .exceptions import ProblemError, SettingsError
from .problem import Problem
from .solution import RawSolution, Solution
from .solve import TOLERANCES, judge
from .solvers.box_fit import design, fit_box
from .solvers.box_swaps import BoxTarget, swap_box
from .solvers.gram import Array, Gram, gram
from .solvers.least_squares import refit_mask
from .solvers.pruning import Mask, parse_pattern
from .solvers.tableau import Groups, best_exchanges
from .status import Status
from .threads import limit_threads

#: Pull towards the trained weights where there are any, in units of the mean of diag(X'X).
DAMPING = 0.01

TARGETS = ("linear", "box")


def refit(
    problem: Problem,
    solution: Solution | ArrayLike,
    target: str = "linear",
    damping: float | None = None,
    *,
    intercept: str = "solve",
    time_limit: float | None = None,
    n_threads: int | None = None,
) -> Solution:
    r"""Choose the nonzero weights anew; zeros stay zero.

    Parameters
    ----------
    problem : Problem
        Any formulation. What is minimised is the distance alone: l1 weights, radii and hard rows do
        not enter, and the judge says what has become of them.
    solution : Solution or array_like of shape (n_inputs, n_outputs)
        An answer of any solver; or weights, or a mask of booleans, of your own.
    target : {"linear", "box"}
        What the weights are fitted to; see :mod:`nettrim_solver.refine`. "linear" needs W or Z in
        the problem, or a box whose ends agree.
    damping : float, optional
        Pull towards the trained weights, in units of the mean of diag(X'X); 0.01 for problems with
        trained weights, 0 for others, which have nothing to pull towards.
    intercept : {"solve", "keep"}
        Whether the intercept is solved for along with the weights, or stays as in the solution.
    time_limit : float, optional
        Seconds. With target "box" the outputs not reached in time stay as they were.
    n_threads : int, optional
        Threads of BLAS; None leaves the pools as they are.

    Returns
    -------
    Solution
        Judged like every other; `solver` is the name of the solution's with "+refit" behind it, and
        `iterations` are the Newton steps of target "box". Inputs without any signal lose their
        weights.

    Raises
    ------
    ProblemError, SettingsError
        For unusable arguments; and for target "linear" with linearly dependent inputs and without
        damping.

    Notes
    -----
    For k nonzeros in an output "linear" takes ``k^3 / 3`` flops after ``n_samples n_inputs^2`` for
    the whole layer. "box" takes ``n_samples k^2`` flops per output, a little more for each further
    Newton step, and memory for the k inputs of all samples in float64.

    Ctrl-C ends it with the best weights so far.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver import Problem, refit, solve
    >>> rng = np.random.default_rng(0)
    >>> X, W = rng.standard_normal((200, 20)), rng.standard_normal((20, 5))
    >>> problem = Problem(X, np.maximum(X @ W, 0), W)
    >>> pruned = solve(problem, "magnitude", sparsity=0.5)
    >>> refitted = refit(problem, pruned)
    >>> refitted
    Solution(magnitude+refit: pruned, sparsity 0.5000, ...)
    >>> refitted.certificate.activation_error < pruned.certificate.activation_error
    True
    """
    with limit_threads(n_threads) as threads:
        run = _start(problem, solution, target, damping, intercept, time_limit)
        tick = time.perf_counter()
        if target == "linear":
            W = refit_mask(run.data, run.mask)
            b = run.data.intercept(W)
            steps, stops = None, [Status.PRUNED] * problem.n_outputs
        else:
            W, b, steps, stops = _refit_box(problem, run, threads)
        run.seconds["refit"] = time.perf_counter() - tick
        return _judged(problem, run, "refit", (W, b, steps, stops), threads)


def swaps(
    problem: Problem,
    solution: Solution | ArrayLike,
    target: str = "linear",
    damping: float | None = None,
    *,
    max_swaps: int | None = None,
    pattern: str | None = None,
    tol: float = 1e-9,
    trials: int = 4,
    intercept: str = "solve",
    time_limit: float | None = None,
    n_threads: int | None = None,
) -> Solution:
    r"""Exchange a kept for a removed weight of the same output, as long as the objective falls.

    Every exchange is valued with all weights of the output chosen anew, so the answer needs no
    :func:`refit` behind it.

    Parameters
    ----------
    problem, solution, target, damping, intercept, n_threads
        As in :func:`refit`.
    max_swaps : int, optional
        Most exchanges of each output.
    pattern : str, optional
        "n:m" keeps at most n nonzeros of every m consecutive inputs of an output; the solution must
        do so already. Without it exchanges pay no regard to patterns, and break them.
    tol : float
        An exchange must lower the output's objective by more than `tol` times its value at W = 0.
    trials : int
        With target "box", how many single exchanges are tried in vain before an output is left
        alone, in the order of what a local quadratic model promises. The first is nearly always the
        one that counts.
    time_limit : float, optional
        Seconds; ends it with the best weights so far.

    Returns
    -------
    Solution
        No objective of an output is above the given solution's, and no output has more nonzeros.
        `solver` ends in "+swaps", and `iterations` counts the exchanges of each output.

        With target "linear" no single exchange would lower the objective of any output by more than
        `tol`. With target "box" this is sure of the `trials` exchanges alone that the local model
        ranks first; so with as many as there are pairs, of all.

    Raises
    ------
    ProblemError, SettingsError
        As in :func:`refit`; and for a solution that breaks the pattern.

    Notes
    -----
    For k of N weights kept an output takes about ``2 k^3 + 2 k^2 (N - k)`` flops to start with, and
    ``10 k N`` for each exchange; memory of ``k N`` for each output in work. Target "box" adds
    ``n_samples N^2`` flops for each output, and refits for each series of exchanges; its memory is
    that of all inputs in float64.

    Ctrl-C ends it with the best weights so far.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver import Problem, refit, solve, swaps
    >>> rng = np.random.default_rng(0)
    >>> X, W = rng.standard_normal((200, 20)), rng.standard_normal((20, 5))
    >>> X[:, 1:] += X[:, :-1]
    >>> problem = Problem(X, X @ W, W, activation="identity")
    >>> pruned = solve(problem, "magnitude", sparsity=0.5)
    >>> swapped = swaps(problem, pruned)
    >>> swapped
    Solution(magnitude+swaps: pruned, sparsity 0.5000, ...)
    >>> swapped.certificate.distance < refit(problem, pruned).certificate.distance
    True
    """
    check_number("tol", tol, 0.0, 1.0)
    check_integer("trials", trials, 1)
    if max_swaps is not None:
        check_integer("max_swaps", max_swaps, 0)
    limits = Limits(np.iinfo(np.int64).max if max_swaps is None else max_swaps, trials, tol)
    with limit_threads(n_threads) as threads:
        groups = _groups(problem, pattern)
        run = _start(problem, solution, target, damping, intercept, time_limit)
        if groups is not None:
            _check_pattern(run.mask, groups, pattern)
        tick = time.perf_counter()
        descend = _swap_linear if target == "linear" else _swap_box
        answer = descend(problem, run, groups, limits, threads)
        run.seconds["swaps"] = time.perf_counter() - tick
        return _judged(problem, run, "swaps", answer, threads)


@dataclass(frozen=True)
class Limits:
    """Most swaps of an output, most trials in vain, and the least gain relative to the target."""

    swaps: int
    trials: int
    tol: float


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


def _start(
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


def _groups(problem: Problem, pattern: str | None) -> Groups | None:
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


def _check_pattern(mask: Mask, groups: Groups, pattern: str | None) -> None:
    counts = mask.reshape(-1, groups.size, mask.shape[1]).sum(axis=1)
    if counts.max() > groups.most:
        raise ProblemError(
            f"solution must keep pattern={pattern!r} for the swaps to keep it, but has up to "
            f"{counts.max()} nonzeros in {groups.size} consecutive inputs"
        )


def _refit_box(problem: Problem, run: Run, n_threads: int) -> Answer:
    """Fit every output to its box."""
    X = problem.X.tocsc() if sp.issparse(problem.X) else problem.X
    mask = run.mask & ~run.data.dead[:, None]

    def work(j: int) -> Found:
        kept = np.flatnonzero(mask[:, j])
        start = run.start(j, kept)
        if not len(start):
            return Found(kept, start, 0)
        fit = fit_box(
            design(X, kept, run.n_constant), run.box(problem, j), start,
            np.append(np.full(len(kept), run.delta), run.nothing),
            np.append(run.data.W[kept, j], run.nothing),
        )  # fmt: skip
        return Found(kept, fit.w, fit.steps)

    return run.collected(*_each_output(run, problem.n_outputs, work, n_threads))


def _swap_box(
    problem: Problem, run: Run, groups: Groups | None, limits: Limits, n_threads: int
) -> Answer:
    """Swap on the target box."""
    data = run.data
    live = np.flatnonzero(~data.dead)
    D = design(problem.X, np.arange(problem.n_inputs), run.n_constant)
    # Dead inputs do not touch the objective: a pull of their own keeps their systems regular.
    pull = np.append(run.delta + data.dead, run.nothing)
    scale = problem.target_norms**2 + run.delta * np.sum(data.W**2, axis=0)

    def work(j: int) -> Found:
        kept = np.flatnonzero(run.mask[:, j])
        anchor = np.append(data.W[:, j], run.nothing)
        target = BoxTarget(D, run.box(problem, j), pull, anchor, live, run.n_constant)
        state, made, ended = swap_box(
            target, kept, run.start(j, kept), groups, limits.swaps, limits.trials,
            limits.tol * float(scale[j]), run.expired,
        )  # fmt: skip
        return Found(state.kept, state.fit.w, made, ended)

    return run.collected(*_each_output(run, problem.n_outputs, work, n_threads))


def _swap_linear(
    problem: Problem, run: Run, groups: Groups | None, limits: Limits, n_threads: int
) -> Answer:
    """Swap on the linear target, and keep what the objective confirms."""
    data = run.data
    W = refit_mask(data, run.mask)

    def work(j: int) -> Found:
        kept, others = np.flatnonzero(run.mask[:, j]), np.flatnonzero(~run.mask[:, j] & ~data.dead)
        made = 0
        if len(kept) and len(others):
            least = limits.tol * float(data.squares[j])
            g = np.ascontiguousarray(data.G[:, j])
            kept, made = best_exchanges(data.H, g, kept, others, groups, limits.swaps, least)
        return Found(kept, W[kept, j], made)

    found, stops = _each_output(run, problem.n_outputs, work, n_threads)
    mask, made = np.zeros_like(run.mask), np.zeros(problem.n_outputs, dtype=np.int64)
    for j, one in enumerate(found):
        if one.count:
            mask[one.kept, j], made[j] = True, one.count
    better = refit_mask(data, mask)
    swapped = (made > 0) & (data.losses(better) < data.losses(W))
    W[:, swapped], made[~swapped] = better[:, swapped], 0
    return W, data.intercept(W), made, stops


def _each_output(
    run: Run, n_outputs: int, work: Callable[[int], Found], n_threads: int
) -> tuple[list[Found], list[Status]]:
    """Call `work` for one output after the other, until the time is up or Ctrl-C comes.

    With several threads, that many at a time, each with a BLAS thread of its own. What comes out
    does not depend on their number.

    Returns
    -------
    found : list of Found
        Of the first outputs, as many as were reached.
    stops : list of Status, length n_outputs
    """
    found: list[Found] = []
    left = Status.TIME_LIMIT
    executor = ThreadPoolExecutor(n_threads) if n_threads > 1 else None

    def unless_late(j: int) -> Found | None:
        return None if run.expired() else work(j)

    try:
        with limit_threads(1 if executor else None):
            each = executor.map if executor else map
            for one in each(unless_late, range(n_outputs)):
                if one is None:
                    break
                found.append(one)
    except KeyboardInterrupt:
        left = Status.INTERRUPTED
    finally:
        if executor:
            executor.shutdown(cancel_futures=True)
    stops = [Status.PRUNED if one.ended else Status.TIME_LIMIT for one in found]
    return found, stops + [left] * (n_outputs - len(found))


def _judged(problem: Problem, run: Run, stage: str, answer: Answer, n_threads: int) -> Solution:
    """Turn an answer into a judged solution."""
    W, b, iterations, stops = answer
    raw = RawSolution(
        W=W, b=b if problem.intercept else None, theta=None, stops=stops, iterations=iterations,
        seconds=run.seconds,
    )  # fmt: skip
    tick = time.perf_counter()
    solution = judge(
        problem, raw, run.name + stage, **TOLERANCES[problem.dtype], n_threads=n_threads
    )
    done = time.perf_counter()
    solution.seconds.update(certify=done - tick, total=done - run.started)
    return solution
