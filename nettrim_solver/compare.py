"""Every solver on one layer at the same sparsities, judged by the same numbers."""

from __future__ import annotations

import inspect
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import refine
from .activations import Activation
from .budget import solve_for_nnz, solve_for_sparsity
from .certificate import forward
from .checks import check_choice, check_flag, check_number, check_time_limit
from .comparison import Comparison, Row
from .exceptions import ProblemError, SettingsError, SolverError
from .problem import STORED_AGREEMENT, Problem
from .problem_checks import check_match, check_range, checked_matrix
from .solution import Solution
from .solvers import SOLVERS, available_solvers, get_solver
from .status import Status
from .threads import limit_threads

Array = NDArray[np.float64]

#: Entries of a float64 array of the pre-activations of some samples (16 MB).
BLOCK_ENTRIES = 2_000_000

#: What may follow a solver, and the function that does it.
REFINEMENTS: dict[str, Callable[..., Solution]] = {"refit": refine.refit, "swaps": refine.swaps}

Targets = bool | str | Sequence[str]
Method = str | Callable[[Problem, float, Solution | None], Solution]

#: Keywords that :func:`compare` gives itself.
OWN = ("problem", "solution", "solver", "sparsity", "nnz", "pattern", "warm_start", "callback",
       "n_threads", "raise_on_failure", "settings", "target")  # fmt: skip


def compare(
    problem: Problem,
    *,
    solvers: Sequence[str] | Mapping[str, Method] | None = None,
    sparsities: Sequence[float] = (0.5, 0.7, 0.9),
    X_heldout: Any = None,
    Y_heldout: ArrayLike | None = None,
    Z_heldout: ArrayLike | None = None,
    accuracy: Callable[[NDArray[Any], NDArray[Any] | None], float] | None = None,
    refit: Targets = False,
    swaps: Targets = False,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    measure_memory: bool = False,
    n_threads: int | None = None,
    callback: Callable[[Row], object] | None = None,
    time_limit: float | None = None,
) -> Comparison:
    r"""Solve a layer with several solvers at several sparsities, and measure every answer.

    Parameters
    ----------
    problem : Problem
        Pooled or strict, with trained weights for the pruners; its radius is not used.
    solvers : sequence of str, or mapping of str to str or callable, optional
        Any of :func:`available_solvers`; by default "admm" and every pruner that can do what the
        problem asks. A mapping gives them names of your own, so that one solver can appear
        with several settings. It may also hold functions, pipelines of your own: they are called
        with the problem, a sparsity, and their answer at the sparsity before (None at first), and
        return a :class:`Solution`.
    sparsities : sequence of float
        Fractions of zeros, in [0, 1). The same count for every solver.
    X_heldout : array_like or scipy.sparse matrix of shape (n_heldout, n_inputs), optional
        Fresh samples. A smaller error on the calibration samples is not a better layer.
    Y_heldout, Z_heldout : array_like of shape (n_heldout, n_outputs), optional
        What the trained network computes on them behind and before the activation; from the trained
        weights by default. Needed behind pruned layers, where the weights do not tell.
    accuracy : callable, optional
        Called with (W, b) of every answer; b is None for problems without intercept.
    refit, swaps : bool, {"linear", "box"} or both
        Towards which targets each answer is also refined by :func:`refit` and :func:`swaps`; True
        is "linear". A row more for each: "refit", "refit-box", "swaps", "swaps-box".
    settings : mapping of str to mapping, optional
        Options of a solver, as of :func:`solve_for_sparsity`, by its name in the rows; and of the
        refinements, under "refit" and "swaps".
    measure_memory : bool
        Whether the peak of the memory allocated by numpy and Python is measured. This slows
        everything down, so read the seconds of another comparison.
    n_threads : int, optional
        Threads of BLAS and of the solvers; None leaves the pools as they are.
    callback : callable, optional
        Called with every finished :class:`.comparison.Row`; a true return value ends the
        comparison.
    time_limit : float, optional
        Seconds for the whole comparison. Pruners that have begun at a sparsity end it.

    Returns
    -------
    Comparison
        A solver that fails has a row that says why. Ctrl-C, like the time limit, returns the rows
        there are.

    Raises
    ------
    ProblemError, SettingsError, MissingDependencyError
        For unusable arguments, before any work.

    Notes
    -----
    A solver is given its own answer at the sparsity before, where that saves work: convex ones
    begin their search there, and "exact_obs" uses its trace again, so its seconds fall to its
    first sparsity. Every other row is what one call would give.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver import Problem, compare
    >>> rng = np.random.default_rng(0)
    >>> X, W = rng.standard_normal((200, 20)), rng.standard_normal((20, 5))
    >>> X[:, 1:] += X[:, :-1]
    >>> problem = Problem(X[:100], np.maximum(X[:100] @ W, 0), W)
    >>> found = compare(problem, solvers=["magnitude", "exact_obs"], sparsities=[0.5],
    ...                 X_heldout=X[100:])
    >>> [row.solver for row in sorted(found.rows, key=lambda row: row.heldout_error)]
    ['exact_obs', 'magnitude']
    """
    if not isinstance(problem, Problem):
        raise ProblemError(f"problem must be a Problem, but was {type(problem).__name__}")
    methods = _checked_solvers(problem, solvers)
    levels = _checked_sparsities(sparsities)
    check_flag("measure_memory", measure_memory)
    wanted = {"refit": _checked_targets("refit", refit), "swaps": _checked_targets("swaps", swaps)}
    options = _checked_settings(problem, methods, [*filter(wanted.get, wanted)], settings)
    refinements = [
        Refinement(name, target, options[name]) for name in wanted for target in wanted[name]
    ]
    check_time_limit(time_limit)
    for name, function in (("accuracy", accuracy), ("callback", callback)):
        if function is not None and not callable(function):
            raise SettingsError(f"{name} must be callable, but was {function!r}")
    samples, heldout = _targets(problem, X_heldout, Y_heldout, Z_heldout)
    trained = None
    if accuracy is not None and problem.W is not None:
        trained = float(accuracy(problem.W, problem.b))
    with limit_threads(n_threads) as threads:
        run = Run(
            problem, options, refinements, samples, heldout, accuracy, measure_memory, callback,
            time_limit,
        )  # fmt: skip
        complete = True
        try:
            for name, method in methods.items():
                run.solver(name, method, levels)
        except (Stop, KeyboardInterrupt):
            complete = False
    return Comparison(
        rows=tuple(run.rows), problem=repr(problem), n_threads=threads, trained_accuracy=trained,
        n_heldout=0 if heldout is None else int(heldout.X.shape[0]), complete=complete,
    )  # fmt: skip


class Stop(Exception):  # noqa: N818 - no error
    """The comparison is to end with the rows it has."""


@dataclass(frozen=True)
class Refinement:
    """What follows a solver: its function, its target, and the user's options."""

    name: str
    target: str
    given: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The name in the rows."""
        return self.name if self.target == "linear" else f"{self.name}-{self.target}"

    @property
    def function(self) -> Callable[..., Solution]:
        """What does it."""
        return REFINEMENTS[self.name]

    @property
    def options(self) -> dict[str, Any]:
        """The keywords of the function."""
        return {"target": self.target, **self.given}


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples, and what the trained layer computes on them.

    Attributes
    ----------
    X : ndarray or sparse array of shape (P, N)
    Z, Y : ndarray of shape (P, M) or None
        Before and behind the activation.
    activation : Activation or None
    """

    X: Any
    Z: NDArray[Any] | None
    Y: NDArray[Any] | None
    activation: Activation | None

    def errors(self, W: Any, b: Any) -> tuple[float | None, float | None]:
        """Return the relative errors of a layer before and behind the activation."""
        sums = np.zeros((2, 2))
        for rows in _row_blocks(self.X.shape[0], max(W.shape)):
            predicted = forward(self.X[rows], W, b)
            if self.Z is not None:
                sums[0] += _squares(predicted, self.Z[rows])
            if self.Y is not None and self.activation is not None:
                sums[1] += _squares(self.activation(predicted), self.Y[rows])
        before, behind = (_root_of_ratio(*pair) for pair in sums)
        known = self.Y is not None and self.activation is not None
        return (None if self.Z is None else before), (behind if known else None)


@dataclass
class Run:
    """A comparison in progress."""

    problem: Problem
    options: Mapping[str, Mapping[str, Any]]
    refinements: Sequence[Refinement]
    samples: Samples
    heldout: Samples | None
    accuracy: Callable[..., float] | None
    measure_memory: bool
    callback: Callable[[Row], object] | None
    time_limit: float | None
    rows: list[Row] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def solver(self, name: str, method: Method, sparsities: Sequence[float]) -> None:
        """Add the rows of one solver."""
        previous: Solution | None = None
        for sparsity in sparsities:
            solve = partial(self.answer, name, method, sparsity, previous)
            row, solution = self.attempt(Row(name, "", sparsity), solve)
            if solution is None:
                continue
            previous = solution
            for refinement in self.refinements:
                options = self._limited(refinement.options)
                improve = partial(refinement.function, self.problem, solution, **options)
                self.attempt(Row(name, refinement.label, sparsity), improve, row.seconds or 0.0)

    def answer(
        self, name: str, method: Method, sparsity: float, previous: Solution | None
    ) -> Solution:
        """Return the answer of a solver or of a function, which begins where it can."""
        if isinstance(method, str):
            kept = SOLVERS[method].convex or (previous is not None and previous.trace is not None)
            return solve_for_sparsity(
                self.problem, sparsity, method, warm_start=previous if kept else None,
                **self._limited(self.options[name]),
            )  # fmt: skip
        answer = method(self.problem, sparsity, previous)
        shape = (self.problem.n_inputs, self.problem.n_outputs)
        if not isinstance(answer, Solution) or answer.W.shape != shape:
            raise SolverError(f"{name!r} must return a Solution with W of shape {shape}")
        return answer

    def attempt(
        self, row: Row, call: Callable[[], Solution], seconds: float = 0.0
    ) -> tuple[Row, Solution | None]:
        """Make one answer, add its row, and return both; the answer is None where it failed.

        Raises
        ------
        Stop
            If the comparison is to end here.
        """
        if self._left() == 0.0:
            raise Stop
        solution, peak = None, None
        started = time.perf_counter()
        try:
            if self.measure_memory:
                solution, peak = _with_peak(call)
            else:
                solution = call()
        except Exception as error:  # whatever it is, the other solvers have their turn
            row = replace(row, failure=f"{type(error).__name__}: {error}")
        else:
            seconds += time.perf_counter() - started
            row = self._measured(replace(row, seconds=seconds, peak_memory=peak), solution)
        self.rows.append(row)
        stop = self.callback is not None and bool(self.callback(row))
        if stop or (solution is not None and solution.status is Status.INTERRUPTED):
            raise Stop
        return row, solution

    def _measured(self, row: Row, solution: Solution) -> Row:
        """Return the row with everything that can be said of an answer."""
        W, b, judged = solution.W, solution.b, solution.certificate
        error, activation_error = self.samples.errors(W, b)
        heldout = (None, None) if self.heldout is None else self.heldout.errors(W, b)
        dual = solution.theta is not None
        return replace(
            row, zeros=solution.sparsity, nnz=solution.nnz, error=error, heldout_error=heldout[0],
            activation_error=activation_error, heldout_activation_error=heldout[1],
            accuracy=None if self.accuracy is None else float(self.accuracy(W, b)),
            l1_norm=float(np.sum(np.abs(W), dtype=np.float64)), status=str(solution.status),
            proved=solution.status is Status.OPTIMAL,
            gap=float(np.max(np.abs(judged.gaps))) if dual else None,
            violation=judged.violation if dual else None, warnings=tuple(solution.warnings),
        )  # fmt: skip

    def _left(self) -> float | None:
        """Return the seconds left."""
        if self.time_limit is None:
            return None
        return max(0.0, self.time_limit - (time.perf_counter() - self.started))

    def _limited(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options with no more time than there is left."""
        left = self._left()
        if left is None:
            return dict(options)
        own = options.get("time_limit")
        return {**options, "time_limit": left if own is None else min(own, left)}


def _with_peak(call: Callable[[], Solution]) -> tuple[Solution, int]:
    """Return an answer, and the peak of the memory allocated on the way, in bytes."""
    running = tracemalloc.is_tracing()
    if not running:
        tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        answer = call()
        return answer, tracemalloc.get_traced_memory()[1] - before
    finally:
        if not running:
            tracemalloc.stop()


# Checks -----------------------------------------------------------------------------------------


def _checked_solvers(problem: Problem, given: Any) -> dict[str, Method]:
    """Return the methods by their names in the rows, solvers all known and installed."""
    if problem.penalised:
        formulation = "strict" if problem.strict else "pooled"
        raise ProblemError(
            f"formulation must be a form with a radius, but was {problem.formulation!r}: the "
            f"sparsity decides lambda_; use formulation={formulation!r}"
        )
    if given is None:
        return {
            name: name
            for name in available_solvers()
            if (name == "admm" or not SOLVERS[name].convex)
            and SOLVERS[name].lacks(problem) is None
            and not (SOLVERS[name].needs_W and problem.W is None)
        }
    if not isinstance(given, Mapping):
        given = {name: name for name in _checked_sequence("solvers", given)}
    elif not given:
        raise SettingsError("solvers must not be empty")
    for name, method in given.items():
        if not isinstance(name, str) or name in REFINEMENTS:
            raise SettingsError(
                f"solvers must have names other than {list(REFINEMENTS)}, but one was {name!r}"
            )
        if callable(method):
            continue
        if not isinstance(method, str) or method not in SOLVERS:
            raise SettingsError(f"solvers must be among {list(SOLVERS)}, but one was {method!r}")
        get_solver(method, problem)
    return dict(given)


def _checked_sparsities(given: Sequence[float]) -> list[float]:
    levels = _checked_sequence("sparsities", given)
    for level in levels:
        check_number("sparsities", level, 0.0, 1.0, closed=True)
    return [float(level) for level in levels]


def _checked_sequence(name: str, given: Any) -> list[Any]:
    """Return a list of different entries, at least one."""
    if isinstance(given, (str, bytes, Mapping)) or not hasattr(given, "__iter__"):
        raise SettingsError(f"{name} must be a sequence, but was {given!r}")
    entries = list(given)
    if not entries:
        raise SettingsError(f"{name} must not be empty")
    twice = [entry for i, entry in enumerate(entries) if entry in entries[:i]]
    if twice:
        raise SettingsError(f"{name} must be different from each other, but hold {twice} twice")
    return entries


def _checked_targets(name: str, given: Any) -> list[str]:
    """Return the targets of a refinement; none for False."""
    if isinstance(given, (bool, np.bool_)):
        return ["linear"] if given else []
    targets = [given] if isinstance(given, str) else _checked_sequence(name, given)
    for target in targets:
        check_choice(name, target, refine.TARGETS)
    return targets


def _checked_settings(
    problem: Problem, methods: Mapping[str, Method], refinements: Sequence[str], given: Any
) -> dict[str, Mapping[str, Any]]:
    """Return the options by solver and refinement, after a look at every name in them."""
    given = {} if given is None else given
    if not isinstance(given, Mapping) or not all(isinstance(v, Mapping) for v in given.values()):
        raise SettingsError(f"settings must map names to mappings of options, but was {given!r}")
    solvers = {name: method for name, method in methods.items() if isinstance(method, str)}
    unknown = [name for name in given if name not in {*solvers, *refinements}]
    if unknown:
        names = [*solvers, *refinements]
        raise SettingsError(f"settings must be of {names}, but there are some of {unknown}")
    return {
        name: _checked_options(problem, name, solvers.get(name), dict(given.get(name, {})))
        for name in [*solvers, *refinements]
    }


def _checked_options(
    problem: Problem, name: str, solver: str | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Return the options of one solver, or of a refinement where there is no solver."""
    known = set(inspect.signature(REFINEMENTS.get(name, solve_for_nnz)).parameters)
    kind = None if solver is None else get_solver(solver, problem).Settings
    defaults = {} if kind is None else {f.name: f.default for f in fields(kind)}
    known = (known | set(defaults)) - set(OWN)
    wrong = sorted(set(options) - known)
    if wrong:
        raise SettingsError(f"settings[{name!r}] may hold {sorted(known)}, but holds {wrong}")
    if kind is not None:
        kind(**{key: value for key, value in options.items() if key in defaults}).validate()
    if "scope" in defaults:
        # Wanda shares its budget out by output unless it is told otherwise.
        options.setdefault("scope", defaults["scope"])
    return options


# Targets ----------------------------------------------------------------------------------------


def _targets(problem: Problem, X: Any, Y: Any, Z: Any) -> tuple[Samples, Samples | None]:
    """Return the problem's samples and the held-out ones, with what is to be reproduced."""
    before = problem.Z
    if before is None and problem.W is not None:
        before = forward(problem.X, problem.W, problem.b)
    here = before
    if before is not None:
        here = _moved_into_box(problem, before)
    samples = Samples(problem.X, here, problem.Y, problem.activation)
    if X is None:
        given = [name for name, value in (("Y_heldout", Y), ("Z_heldout", Z)) if value is not None]
        if given:
            raise ProblemError(f"X_heldout must be given along with {given}, but was None")
        return samples, None
    X = checked_matrix("X_heldout", X, allow_sparse=True)
    check_match("X_heldout", X.shape[1], "X", problem.n_inputs, "inputs (columns)")
    Y, Z = (
        None if value is None else _checked_target(problem, name, value, X.shape[0])
        for name, value in (("Y_heldout", Y), ("Z_heldout", Z))
    )
    if Y is not None and problem.activation is None:
        raise ProblemError("Y_heldout needs an activation, but the problem is given by a box")
    if Y is not None and problem.activation is not None:
        check_range(Y, problem.activation, "Y_heldout")
    if Z is None and _weights_tell(problem, samples):
        Z = forward(X, problem.W, problem.b)
    if Y is None and Z is None:
        raise ProblemError(
            "Z_heldout or Y_heldout must be given, for the trained weights of the problem do not "
            "reproduce its targets"
        )
    if Y is None and problem.activation is not None:
        assert Z is not None
        Y = problem.activation(Z.astype(np.float64))
    return samples, Samples(X, Z, Y, problem.activation)


def _checked_target(problem: Problem, name: str, value: Any, n_samples: int) -> NDArray[Any]:
    target: NDArray[Any] = checked_matrix(name, value)
    check_match(name, target.shape[0], "X_heldout", n_samples, "samples (rows)")
    check_match(name, target.shape[1], "the problem", problem.n_outputs, "outputs (columns)")
    return target


def _moved_into_box(problem: Problem, Z: NDArray[Any]) -> Array:
    """Return pre-activations moved into the target box: the linear target of the pruners."""
    target = Z.astype(np.float64)
    for start in range(0, problem.n_outputs, 64):
        columns = slice(start, start + 64)
        np.clip(target[:, columns], *problem.box(columns), out=target[:, columns])
    return target


def _weights_tell(problem: Problem, samples: Samples) -> bool:
    """Return whether the trained weights compute what the problem asks for."""
    if problem.W is None:
        return False
    errors = samples.errors(problem.W, problem.b)
    return all(error is None or error <= STORED_AGREEMENT for error in errors)


def _row_blocks(n_samples: int, width: int) -> Iterator[slice]:
    height = max(1, BLOCK_ENTRIES // width)
    for start in range(0, n_samples, height):
        yield slice(start, start + height)


def _squares(found: Array, wanted: NDArray[Any]) -> Array:
    """Return the sums of squares of a difference and of its reference."""
    reference = wanted.astype(np.float64)
    difference = found - reference
    return np.array([np.vdot(difference, difference), np.vdot(reference, reference)])


def _root_of_ratio(squares: float, reference: float) -> float:
    if reference == 0.0:
        return 0.0 if squares == 0.0 else float(np.inf)
    return float(np.sqrt(squares / reference))
