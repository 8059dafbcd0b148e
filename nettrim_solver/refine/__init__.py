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

import numpy as np
from numpy.typing import ArrayLike

from ..checks import check_integer, check_number
from ..judging import TOLERANCES, judge
from ..problem import Problem
from ..solution import RawSolution, Solution
from ..solvers.least_squares import refit_mask
from ..status import Status
from ..threads import limit_threads
from .descent import Limits, refit_box, swaps_box, swaps_linear
from .start import TARGETS, Answer, Run, check_pattern, pattern_groups, start_of

__all__ = ["TARGETS", "refit", "swaps"]


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
        run = start_of(problem, solution, target, damping, intercept, time_limit)
        tick = time.perf_counter()
        if target == "linear":
            W = refit_mask(run.data, run.mask)
            b = run.data.intercept(W)
            steps, stops = None, [Status.PRUNED] * problem.n_outputs
        else:
            W, b, steps, stops = refit_box(problem, run, threads)
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
        groups = pattern_groups(problem, pattern)
        run = start_of(problem, solution, target, damping, intercept, time_limit)
        if groups is not None:
            check_pattern(run.mask, groups, pattern)
        tick = time.perf_counter()
        descend = swaps_linear if target == "linear" else swaps_box
        answer = descend(problem, run, groups, limits, threads)
        run.seconds["swaps"] = time.perf_counter() - tick
        return _judged(problem, run, "swaps", answer, threads)


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
