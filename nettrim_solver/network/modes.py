"""Prune a whole network layer by layer: in parallel, or as a cascade.

In parallel mode every layer is pruned on the trained network's own signals, so that the layers do
not depend on each other. In a cascade each layer gets the signals of the network that is already
pruned up to it, and the trained network's outputs as its target, so it makes up for the damage
before it.

References
----------
Aghasi, Abdi, Nguyen, Romberg, *Net-Trim*, NIPS 2017 (arXiv:1611.05162), Algorithms 1 and 2.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from ..checks import check_choice, check_integer, check_time_limit
from ..exceptions import ProblemError, SettingsError
from ..solvers import Progress
from ..status import Status, worst
from ..threads import limit_threads
from .bounds import activation_of, signal_bounds
from .calibration import Calibration, Folder, collect
from .checkpoint import Checkpoint, fingerprint_parts
from .choices import Budget, LayerSettings, Pipeline, resolve
from .graph import Network
from .layers import Layer
from .measure import Errors, measure, relative
from .operations import Shape
from .planning import PruningPlan, plan
from .result import LayerReport, PruningResult
from .spill import Spill
from .tasks import (
    GroupAnswer,
    GroupTask,
    as_pipeline,
    failure,
    group_tasks,
    judge_group,
    sample_warnings,
    target_norm,
    together,
)

#: Rows of a layer that are used at most, unless told otherwise: (sample, position) pairs of a
#: convolution are many and alike.
MAX_ROWS = 20_000

#: What bounds allow for the rounding of the network's arithmetic, relative to the target.
ROUNDING = {np.dtype(np.float64): 1e-12, np.dtype(np.float32): 1e-5}

MODES = ("cascade", "parallel")


@dataclass(frozen=True)
class LayerProgress:
    """Where a run stands: at the start of a layer, at a check of its solver, or behind it.

    Attributes
    ----------
    layer : str
    done, total : int
        Layers that are finished, and all that are to be pruned.
    progress : Progress or None
        The solver's own report; None before and after it runs.
    elapsed : float
        Seconds since the start of the run.
    """

    layer: str
    done: int
    total: int
    progress: Progress | None
    elapsed: float


class _Stopped(Exception):  # noqa: N818
    """The run ends before all layers are done, for this reason."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.label)
        self.status = status


@dataclass
class _Run:
    """One call: what was asked for, the clock, and the state between layers."""

    original: Network
    data: Calibration
    choices: dict[str, LayerSettings]
    cascade: bool
    seed: int
    spill: Folder | None
    callback: Callable[[LayerProgress], object] | None = None
    n_threads: int | None = None
    time_limit: float | None = None
    checkpoint: Checkpoint | None = None
    #: Layers whose turn has come. One assignment adds both parts, whenever Ctrl-C comes.
    done: dict[str, tuple[Layer, LayerReport]] = field(default_factory=dict)
    started: float = field(default_factory=lambda: time.perf_counter())
    callback_error: Exception | None = None
    wants_to_stop: bool = False

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shapes of all signals."""
        return self.original.shapes_for(self.data.sample_shape)

    @property
    def pruned(self) -> Network:
        """The network with the layers that are done."""
        return self.original.replace({name: layer for name, (layer, _) in self.done.items()})

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.started

    def time_left(self) -> float | None:
        """Return the seconds left, or raise if there are none."""
        if self.time_limit is None:
            return None
        left = self.time_limit - self.elapsed()
        if left <= 0:
            raise _Stopped(Status.TIME_LIMIT)
        return left

    def tell(self, name: str, progress: Progress | None = None) -> bool:
        """Call the user's callback; return whether the run is to stop."""
        if self.callback is not None and not self.wants_to_stop:
            total = sum(not choice.skip for choice in self.choices.values())
            done = sum(not self.choices[name].skip for name in self.done)
            at = LayerProgress(name, done, total, progress, self.elapsed())
            try:
                self.wants_to_stop = bool(self.callback(at))
            except Exception as error:
                # Its own error, not one of the solver that happens to call it.
                self.callback_error, self.wants_to_stop = error, True
        return self.wants_to_stop

    def check_stop(self) -> None:
        """Raise if the user, or the clock, ends the run."""
        if self.callback_error is not None:
            raise self.callback_error
        if self.wants_to_stop:
            raise _Stopped(Status.INTERRUPTED)
        self.time_left()


def prune_network(
    network: Network,
    X: Any,
    *,
    mode: Literal["cascade", "parallel"] = "cascade",
    tolerance: Budget = None,
    sparsity: Budget = None,
    nnz: Budget = None,
    solver: str = "admm",
    settings: Mapping[str, Any] | None = None,
    pipeline: Pipeline | None = None,
    formulation: Literal["pooled", "strict"] = "pooled",
    radius: Literal["joint", "per_output"] = "joint",
    gamma: float | None = None,
    strict_bound: Literal["clipped", "trained"] = "clipped",
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    skip: str | Iterable[str] | None = None,
    X_heldout: Any = None,
    max_rows: int | None = MAX_ROWS,
    seed: int = 0,
    checkpoint: Folder | None = None,
    callback: Callable[[LayerProgress], object] | None = None,
    n_threads: int | None = None,
    time_limit: float | None = None,
    spill: Folder | None = None,
) -> PruningResult:
    r"""Prune the layers of a trained network, one after the other.

    Batch normalisations are folded into the layers before them first.

    Parameters
    ----------
    network : Network
    X : array_like of shape (n_samples, ...), iterable of batches, or Calibration
        Calibration data: inputs of the network.
    mode : {"cascade", "parallel"}
        Whether a layer is pruned on the signals of the network that is already pruned up to it, or
        on those of the trained network. The target is the trained network's output either way.
    tolerance, sparsity, nnz : number or mapping of str to number
        The budget, one of the three: the radius of every layer relative to its outputs; the
        fraction of zeros; the nonzero weights. One number for every layer, or one by name. The
        groups of a convolution share a number of nonzeros equally.
    solver : str
        One of :func:`available_solvers`.
    settings : mapping, optional
        The solver's own settings.
    pipeline : callable, optional
        Called in place of the solver, ``pipeline(problem, nnz, n_threads=, callback=,
        time_limit=)``, with nnz None for the problem's radius; returns a :class:`Solution`.
    formulation, radius : str
        As in :class:`Problem`.
    gamma : float, optional
        In a cascade the squared radius of a layer is at least gamma times the squared distance of
        the trained weights on the pruned inputs: at 1, the default, and above, these keep it. At 0
        the tolerance is the radius, whether it can be met or not.
    strict_bound : {"clipped", "trained"}
        What a strict cascade puts in place of the bounds of one-sided rows, which the trained
        weights may violate: what these give, V (the paper's), or V only where it is further out.
    overrides : mapping of str to mapping, optional
        Other arguments for some layers: by name, by pattern (``"conv*"``), or by kind (``"dense"``,
        ``"conv2d"``). The keys are fields of :class:`.LayerSettings`. Names count more than
        patterns, patterns more than kinds, later entries more than earlier ones.
    skip : str or iterable of str, optional
        Names, patterns and kinds of layers that stay as they are.
    X_heldout : array_like, iterable or Calibration, optional
        Other samples, to measure the errors on.
    max_rows : int or None
        Rows of a layer that are used at most: samples, of a convolution (sample, position) pairs.
    seed : int
        Decides which.
    checkpoint : path, optional
        A folder where every finished layer is kept. The same call goes on where an earlier one was
        interrupted, by whatever, and gives the same bits.
    callback : callable, optional
        Called with a :class:`.LayerProgress`; a true return value ends the run.
    n_threads : int, optional
        As in :func:`solve`.
    time_limit : float, optional
        Seconds for the run.
    spill : path, optional
        A folder for temporary files that hold the rows of a layer instead of the memory.

    Returns
    -------
    PruningResult
        Also after Ctrl-C or at the time limit: layers that are done stay pruned, the others as they
        were trained. A layer whose solve fails keeps its trained weights, the report says why.

    Raises
    ------
    ProblemError, SettingsError, UnsupportedError, MissingDependencyError
        Before any work.

    See Also
    --------
    plan_network : what a run will take

    Notes
    -----
    Memory: the rows of one layer, its problem and its solver; the live signals of a batch.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver.network import Activate, Dense, Network
    >>> rng = np.random.default_rng(0)
    >>> network = Network([
    ...     Dense(rng.standard_normal((20, 12)), np.zeros(12), name="hidden"), Activate("relu"),
    ...     Dense(rng.standard_normal((12, 3)), np.zeros(3), name="scores"),
    ... ])
    >>> X = rng.standard_normal((300, 20))
    >>> result = prune_network(network, X, tolerance=0.2)
    >>> result
    PruningResult(cascade: optimal, sparsity 0..., output error 2... %, ...)
    >>> result.output_error <= result.output_bound
    True
    >>> result.network(X).shape
    (300, 3)
    """
    run = _prepare(
        network, X, mode=mode, tolerance=tolerance, sparsity=sparsity, nnz=nnz, solver=solver,
        settings=settings, pipeline=pipeline, formulation=formulation, radius=radius, gamma=gamma,
        strict_bound=strict_bound, overrides=overrides, skip=skip, max_rows=max_rows, seed=seed,
        spill=spill,
    )  # fmt: skip
    check_time_limit(time_limit)
    if callback is not None and not callable(callback):
        raise SettingsError(f"callback must be callable, but was {callback!r}")
    run.callback, run.n_threads, run.time_limit = callback, n_threads, time_limit
    heldout = None
    if X_heldout is not None:
        heldout = as_calibration(X_heldout, run.original, spill, "X_heldout")
    with limit_threads(n_threads):
        if checkpoint is not None:
            parts = fingerprint_parts(run.original, run.data, run.choices, mode=mode, seed=seed)
            run.checkpoint = Checkpoint(checkpoint, parts)
        stopped = _walk(run)
        return _result(run, network, heldout, stopped)


def plan_network(network: Network, X: Any, **arguments: Any) -> PruningPlan:
    """Return what a run will take, without running it: rows, memory, and a rough time.

    Parameters
    ----------
    network : Network
    X : array_like, iterable or Calibration
    **arguments
        Those of :func:`prune_network`, which are checked as there.

    Returns
    -------
    PruningPlan
    """
    defaults: dict[str, Any] = dict(prune_network.__kwdefaults__ or {})
    unknown = sorted(set(arguments) - set(defaults))
    if unknown:
        raise SettingsError(f"plan_network() takes {sorted(defaults)}, but was given {unknown}")
    given = defaults | arguments
    outer = ("X_heldout", "checkpoint", "callback", "n_threads", "time_limit")
    run = _prepare(network, X, **{k: v for k, v in given.items() if k not in outer})
    with limit_threads(given["n_threads"]):
        return plan(
            run.original, run.data, run.choices, cascade=run.cascade,
            spilled=run.spill is not None,
        )  # fmt: skip


def _prepare(
    network: Network, X: Any, *, mode: str, gamma: float | None, overrides: Any, skip: Any,
    seed: int, spill: Folder | None, tolerance: Budget, sparsity: Budget, nnz: Budget,
    **base: Any,
) -> _Run:  # fmt: skip
    """Check everything that can be checked before work."""
    if not isinstance(network, Network):
        raise ProblemError(f"network must be a Network, but was a {type(network).__name__}")
    check_choice("mode", mode, MODES)
    check_integer("seed", seed, 0)
    if gamma is not None and mode == "parallel":
        raise SettingsError(f"gamma belongs to mode='cascade', but was {gamma!r}")
    if spill is not None:
        Spill((1,), np.float64, spill).close()
    original = network.folded()
    settings = LayerSettings(gamma=1.0 if gamma is None else gamma, **base)
    budgets = {"tolerance": tolerance, "sparsity": sparsity, "nnz": nnz}
    choices = resolve(original, settings, budgets, overrides, skip)
    if all(choice.skip for choice in choices.values()):
        names = [layer.name for layer in original.layers]
        raise SettingsError(f"at least one layer must be pruned, but of {names} none is left")
    data = as_calibration(X, original, spill, "X")
    return _Run(original, data, choices, mode == "cascade", seed, spill)


def as_calibration(X: Any, network: Network, spill: Folder | None, name: str) -> Calibration:
    """Return samples that fit a network; the message names the argument if they do not."""
    try:
        if isinstance(X, Calibration):
            network.shapes_for(X.sample_shape)
            return X
        return Calibration(X, network, spill=spill)
    except ProblemError as error:
        raise ProblemError(f"{name}: {error}") from None


# The layers -------------------------------------------------------------------------------------


def _walk(run: _Run) -> Status | None:
    """Prune the layers; return why the run ended early, None if it did not."""
    try:
        for layer in run.original.layers:
            run.done[layer.name] = _turn(run, layer)
            run.tell(layer.name)
    except _Stopped as stop:
        return stop.status
    except KeyboardInterrupt:
        return Status.INTERRUPTED
    finally:
        if run.callback_error is not None:
            raise run.callback_error
    return None


def _turn(run: _Run, layer: Layer) -> tuple[Layer, LayerReport]:
    """Return what a layer becomes, and its report."""
    tick = run.elapsed()
    choice, report = run.choices[layer.name], _untouched(run, layer)
    if choice.skip:
        return layer, replace(report, outcome="skipped")
    run.tell(layer.name)
    run.check_stop()
    finished = None if run.checkpoint is None else run.checkpoint.load(layer.name)
    if finished is not None:
        W, b, record = finished
        return layer.with_weights(W, b), LayerReport.from_record(record)
    source = run.pruned if run.cascade else run.original
    try:
        signals = collect(
            source, layer.name, run.data, original=run.original if run.cascade else None,
            max_rows=choice.max_rows, seed=run.seed, spill=run.spill,
        )  # fmt: skip
        activation = run.original.activation_after(layer.name)
        tasks = group_tasks(signals, activation, choice, run.cascade)
    except (ProblemError, NotImplementedError) as error:
        return layer, replace(report, outcome="passed over", reason=str(error))
    report = replace(report, rows=len(signals.rows))
    try:
        answers = [_solve(run, layer, task) for task in tasks]
    except _Failed as error:
        report = replace(report, outcome="failed", reason=str(error))
        return layer, replace(report, seconds=run.elapsed() - tick)
    W = layer.from_matrices([answer.W for answer in answers])
    b = None if layer.b is None else np.concatenate([np.asarray(one.b) for one in answers])
    new = layer.with_weights(W, b)
    report = _with_answers(report, new, tasks, answers, run.elapsed() - tick)
    if run.checkpoint is not None:
        try:
            run.checkpoint.save(layer.name, new.W, new.b, report.to_record())
        except ProblemError as error:
            # The disk may be full; the layer is in memory, and the run may well end.
            report = replace(report, warnings=(*report.warnings, str(error)))
    return new, report


class _Failed(Exception):  # noqa: N818
    """A layer's solve gave nothing that can be used; the message says why."""


def _solve(run: _Run, layer: Layer, task: GroupTask) -> GroupAnswer:
    """Solve one problem of a layer, and judge the answer."""
    pipeline = as_pipeline(run.choices[layer.name])
    try:
        solution = pipeline(
            task.problem, task.nnz, n_threads=run.n_threads, time_limit=run.time_left(),
            callback=None if run.callback is None else lambda at: run.tell(layer.name, at),
        )  # fmt: skip
    except _Stopped:
        raise
    except Exception as error:
        # A pipeline may be anyone's. Whatever it raises costs this layer, and no other.
        raise _Failed(f"{type(error).__name__}: {error}") from error
    if run.callback_error is not None or run.wants_to_stop:
        run.check_stop()
    if getattr(solution, "status", None) is Status.INTERRUPTED:
        raise _Stopped(Status.INTERRUPTED)
    cut_short = getattr(solution, "status", None) is Status.TIME_LIMIT
    if cut_short or run.choices[layer.name].pipeline is not None:
        # At the run's own limit this is half an answer; pipelines then leave steps out. At a limit
        # of the solver's settings it is an answer.
        run.time_left()
    reason = failure(solution, task.problem)
    if reason is not None:
        raise _Failed(reason)
    return judge_group(task, layer, solution)


# The report -------------------------------------------------------------------------------------


def _untouched(run: _Run, layer: Layer) -> LayerReport:
    """Return the report of a layer that has its trained weights."""
    places = layer.n_positions(run.shapes[layer.inputs[0]])
    return LayerReport(
        layer.name, layer.kind, layer.W.shape, nnz=layer.nnz, size=layer.W.size,
        budget=run.choices[layer.name].budget, n_rows=len(run.data) * places,
    )  # fmt: skip


def _with_answers(
    report: LayerReport, layer: Layer, tasks: list[GroupTask], answers: list[GroupAnswer],
    seconds: float,
) -> LayerReport:  # fmt: skip
    found = together(answers)
    error, scale = found.pop("activation_error"), target_norm(tasks)
    warnings = (*sample_warnings(tasks, answers), *found.pop("warnings"))
    return replace(
        report, outcome="pruned", nnz=layer.nnz, error=relative(error, scale), warnings=warnings,
        seconds=seconds, **found,
    )  # fmt: skip


def _result(
    run: _Run, network: Network, heldout: Calibration | None, stopped: Status | None
) -> PruningResult:
    """Measure what has become of the network, and put the report together."""
    pruned = run.pruned
    errors = held = None
    # A second Ctrl-C ends the measuring, too; the weights stay.
    with contextlib.suppress(KeyboardInterrupt):
        errors = measure(run.original, pruned, run.data, alone=False)
        if heldout is not None:
            held = measure(run.original, pruned, heldout, alone=not run.cascade)
    reports = [
        run.done[layer.name][1] if layer.name in run.done else _untouched(run, layer)
        for layer in run.original.layers
    ]
    distances = {
        one.name: one.distance if one.rows == one.n_rows else None for one in reports if one.pruned
    }
    bounds = signal_bounds(pruned, run.shapes, distances, run.cascade)
    measured = [_measured(run, one, errors, held, bounds) for one in reports]
    return PruningResult(
        network=pruned, original=network, layers=tuple(measured),
        mode="cascade" if run.cascade else "parallel", status=_status(measured, stopped),
        output_error=None if errors is None else errors.relative_output(),
        output_error_heldout=None if held is None else held.relative_output(),
        output_bound=_relative_bound(
            run, bounds[pruned.output.name], None if errors is None else errors.output_target
        ),
        seconds=run.elapsed(), sample_shape=run.data.sample_shape,
    )  # fmt: skip


def _measured(
    run: _Run,
    report: LayerReport,
    errors: Errors | None,
    held: Errors | None,
    bounds: Mapping[str, float],
) -> LayerReport:
    """Return a layer's report with what was measured on the whole network."""
    name = report.name
    after = activation_of(run.original, name)
    changes: dict[str, Any] = {}
    if errors is not None:
        changes["network_error"] = errors.relative(errors.network, name)
        bound = bounds[name if after is None else after.name]
        changes["network_bound"] = _relative_bound(run, bound, errors.targets[name])
    if held is not None:
        changes["network_error_heldout"] = held.relative(held.network, name)
        if report.pruned:
            own = held.network if run.cascade else held.alone
            changes["error_heldout"] = held.relative(own, name)
    return replace(report, **changes)


def _relative_bound(run: _Run, bound: float, square: float | None) -> float | None:
    """Return a bound relative to the target, with the allowance for rounding; None if infinite."""
    if square is None or not np.isfinite(bound):
        return None
    single = run.original.prepare(next(run.data.batches())[:0]).dtype == np.float32
    allowance = ROUNDING[np.dtype(np.float32 if single else np.float64)]
    return relative(bound, square**0.5) + (allowance if bound else 0.0)


def _status(reports: list[LayerReport], stopped: Status | None) -> Status:
    if stopped is not None:
        return stopped
    statuses = [one.status for one in reports if one.status is not None]
    if not statuses or any(one.outcome == "failed" for one in reports):
        return Status.FAILED
    return worst(statuses)
