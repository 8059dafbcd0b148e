"""Prune a network layer by layer: in parallel, or as a cascade.

In parallel mode every layer is pruned on the trained network's own signals, so that the layers do
not depend on each other. In a cascade each layer gets the signals of the network that is already
pruned up to it, and the trained network's outputs as its target, so it makes up for the damage
before it. :func:`.prune_network` checks its arguments and comes here.

References
----------
Aghasi, Abdi, Nguyen, Romberg, *Net-Trim*, NIPS 2017 (arXiv:1611.05162), Algorithms 1 and 2.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..exceptions import ProblemError, SettingsError
from ..pipeline import Pipeline, as_pipeline
from ..solvers import Progress
from ..status import Status
from .adjoint import check_differentiable
from .calibration import Calibration, Folder, LayerSignals, collect
from .checkpoint import Checkpoint, fingerprint_parts
from .choices import PROXY, Execution, LayerSettings, proxy, resolve
from .distillation import Distillation
from .downstream import before_softmax, output_weights
from .graph import Network
from .layers import Layer
from .outcome import assemble, untouched, with_answers, with_refit
from .output_refit import refit_settings
from .progress import Ended, LayerProgress, timed
from .recipe import Recipe
from .result import LayerReport, PruningResult
from .stages import stage_of
from .target import Budget
from .tasks import (
    GroupAnswer,
    GroupTask,
    failure,
    group_tasks,
    judge_group,
)
from .warmup import warm_up

#: Least share of the run between two reports of the refit.
REPORTED = 0.005


@dataclass
class Run:
    """One network to be pruned: what was asked for, the clock, and the state between layers."""

    network: Network
    original: Network
    data: Calibration
    heldout: Calibration | None
    recipe: Recipe
    budget: Budget
    execution: Execution
    choices: dict[str, LayerSettings]
    callback: Callable[[LayerProgress], object] | None = None
    time_limit: float | None = None
    checkpoint: Checkpoint | None = None
    #: What a callback is told that the run is for.
    stage: str = "final"
    #: What was chosen for this network where the recipe left it open.
    choices_made: tuple[str, ...] = ()
    #: Layers whose turn has come. One assignment adds both parts, whenever Ctrl-C comes.
    done: dict[str, tuple[Layer, LayerReport]] = field(default_factory=dict)
    started: float = field(default_factory=lambda: time.perf_counter())
    callback_error: Exception | None = None
    wants_to_stop: bool = False
    seconds_by_stage: dict[str, float] = field(default_factory=dict)
    #: Estimated share of the work that is done.
    fraction: float = 0.0

    @classmethod
    def of(
        cls, network: Network, data: Calibration, recipe: Recipe, budget: Budget,
        execution: Execution, heldout: Calibration | None = None,
    ) -> Run:  # fmt: skip
        """Check everything else that can be checked before work."""
        original = network.folded()
        choices = resolve(original, recipe, budget)
        run = cls(network, original, data, heldout, recipe, budget, execution, choices)
        run.check_passes()
        if recipe.n_refit_epochs:
            check_differentiable(original, run.to_prune, before_softmax(original))
        return run

    @property
    def cascade(self) -> bool:
        """Whether layers are pruned on the activations of the network pruned up to them."""
        return self.recipe.mode == "cascade"

    @property
    def to_prune(self) -> tuple[str, ...]:
        """The layers that are not skipped."""
        return tuple(name for name, choice in self.choices.items() if not choice.skip)

    @property
    def pruned(self) -> Network:
        """The network with the layers that are done."""
        return self.original.replace({name: layer for name, (layer, _) in self.done.items()})

    def open(self, folder: Folder) -> None:
        """Keep finished layers in a folder, and use those that are there."""
        recipe = self.recipe
        passes = {"passes": recipe.n_passes} if recipe.n_passes else {}
        parts = fingerprint_parts(
            self.original, self.data, self.choices, mode=recipe.mode, seed=self.execution.seed,
            **passes,
        )  # fmt: skip
        self.checkpoint = Checkpoint(folder, parts)

    def warm_up(self) -> None:
        """Compile what the solvers need, so that no layer is charged for it."""
        pipelines = {one.steps for one in map(self.choices.get, self.to_prune) if one is not None}
        warm_up(pipelines, self.budget, self.original.dtype, self.tell_compiling)
        self.started = time.perf_counter()

    def tell_compiling(self) -> None:
        """Call the user's callback before something is compiled."""
        if self.callback is not None:
            self.callback(LayerProgress("", 0, 1, None, 0.0, "compiling"))

    def prune(self) -> PruningResult:
        """Prune the layers, and measure what has become of the network."""
        with timed(self.seconds_by_stage, "pass"):
            stopped = self.look_ahead()
        if stopped is None:
            with timed(self.seconds_by_stage, self.stage):
                stopped = _walk(self)
        if stopped is None and self.recipe.n_refit_epochs:
            with timed(self.seconds_by_stage, "refit"):
                stopped = _refit(self)
        with timed(self.seconds_by_stage, "evaluation"):
            result = self.result(stopped)
        return replace(result, seconds_by_stage=self.seconds_by_stage, seconds=self.elapsed())

    @property
    def work(self) -> dict[str, float]:
        """Estimated work of the stages, in prunings of all layers by the proxy."""
        steps = {self.choices[name].steps for name in self.to_prune}
        convex = any("admm" in repr(one) or "reweight" in repr(one) for one in steps)
        quick = steps == {as_pipeline(PROXY)}
        return {
            "pass": float(self.recipe.n_passes),
            "final": 1.0 if quick else 20.0 if convex else 5.0,
            "refit": self.recipe.n_refit_epochs / 20,
        }

    def advance(self, stage: str, share: float) -> None:
        """Note that a share of the work of a stage is done."""
        work = self.work
        before = sum(list(work.values())[: list(work).index(stage)])
        self.fraction = (before + share * work[stage]) / sum(work.values())

    def check_passes(self) -> None:
        """Raise SettingsError if passes before this run would have no effect, or cannot be."""
        if not self.recipe.n_passes:
            return
        if all(self.choices[name].output_weights == "equal" for name in self.to_prune):
            raise SettingsError(
                f"passes measure the weights of the outputs, but were {self.recipe.n_passes} with "
                "output_weights='equal': give output_weights='downstream'"
            )
        self.quick()

    def quick(self) -> Run:
        """Return a run of a quick solver with the budgets and the output weights of this one."""
        run = Run.of(self.network, self.data, proxy(self.recipe), self.budget, self.execution)
        run.choices = {
            name: replace(choice, output_weights=self.choices[name].output_weights)
            for name, choice in run.choices.items()
        }
        run.stage = "pass"
        return run

    def look_ahead(self) -> Status | None:
        """Prune the network by a quick solver, as often as asked, for the weights of the outputs.

        In each pass they are measured at the network that the pass before it gave. Returns why it
        ended early, None if it did not.
        """
        for number in range(self.recipe.n_passes):
            run = self.quick()
            run.callback = self._in_pass(number)
            run.started, run.time_limit = self.started, self.time_limit
            result = run.prune()
            if result.status in (Status.TIME_LIMIT, Status.INTERRUPTED):
                return result.status
            for name, choice in self.choices.items():
                if choice.output_weights != "equal":
                    self.choices[name] = replace(choice, output_weights=result.network)
        return None

    def _in_pass(self, number: int) -> Callable[[LayerProgress], object] | None:
        """Return the callback of a preliminary pass."""
        callback, passes = self.callback, self.recipe.n_passes
        if callback is None:
            return None

        def relayed(at: LayerProgress) -> object:
            self.advance("pass", (number + (at.fraction or 0.0)) / passes)
            return callback(
                replace(at, pass_number=number + 1, passes=passes, fraction=self.fraction)
            )

        return relayed

    def result(self, stopped: Status | None) -> PruningResult:
        """Return the network with the layers that are done, and what is known of it."""
        reports = {name: report for name, (_, report) in self.done.items()}
        for layer in self.original.layers:
            if layer.name not in reports:
                reports[layer.name] = self.untouched(layer)
        result = assemble(
            self.original, self.pruned, [reports[layer.name] for layer in self.original.layers],
            self.data, self.heldout, cascade=self.cascade, stopped=stopped,
        )  # fmt: skip
        return replace(result, original=self.network, seconds=self.elapsed())

    def notes(self) -> tuple[str, ...]:
        """Return what is done besides pruning the layers."""
        found = []
        if self.recipe.n_passes:
            found.append(f"before: {self.recipe.n_passes} passes of all layers by {PROXY}")
        if self.recipe.n_refit_epochs:
            found.append(
                f"behind: about {self.recipe.n_refit_epochs} evaluations of the network and its "
                "gradient on all samples, to refit the layers to the output"
            )
        return tuple(found)

    def untouched(self, layer: Layer) -> LayerReport:
        """Return the report of a layer that has its trained weights."""
        return untouched(self.original, layer, self.data, self.choices[layer.name])

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.started

    def time_left(self) -> float | None:
        """Return the seconds left, or raise if there are none."""
        if self.time_limit is None:
            return None
        left = self.time_limit - self.elapsed()
        if left <= 0:
            raise Ended(Status.TIME_LIMIT)
        return left

    def tell(self, name: str, progress: Progress | None = None, stage: str | None = None) -> bool:
        """Call the user's callback; return whether the run is to stop."""
        if self.callback is not None and not self.wants_to_stop:
            total = sum(not choice.skip for choice in self.choices.values())
            done = sum(not self.choices[name].skip for name in self.done)
            report = self.done[name][1] if name in self.done and stage is None else None
            stage = stage or self.stage
            if stage != "refit":
                within = 0.0 if progress is None else progress.n_proved / progress.n_outputs
                self.advance("final", self._share_of_layers(name, within))
            at = LayerProgress(
                name, done, total, progress, self.elapsed(), stage, report=report,
                fraction=self.fraction,
            )  # fmt: skip
            try:
                self.wants_to_stop = bool(self.callback(at))
            except Exception as error:
                # Its own error, not one of the solver that happens to call it.
                self.callback_error, self.wants_to_stop = error, True
        return self.wants_to_stop

    def _share_of_layers(self, name: str, within: float) -> float:
        """Return the share of the work on the layers that is done, by their sizes."""
        sizes = {one: self.original.layer(one).W.size for one in self.to_prune}
        finished = sum(size for one, size in sizes.items() if one in self.done)
        current = 0 if name in self.done else within * sizes.get(name, 0)
        return (finished + current) / sum(sizes.values())

    def check_stop(self) -> None:
        """Raise if the user, or the clock, ends the run."""
        if self.callback_error is not None:
            raise self.callback_error
        if self.wants_to_stop:
            raise Ended(Status.INTERRUPTED)
        self.time_left()


def _walk(run: Run) -> Status | None:
    """Prune the layers; return why the run ended early, None if it did not."""
    try:
        for layer in run.original.layers:
            run.done[layer.name] = _turn(run, layer)
            run.tell(layer.name)
    except Ended as stop:
        return stop.status
    except KeyboardInterrupt:
        return Status.INTERRUPTED
    finally:
        if run.callback_error is not None:
            raise run.callback_error
    return None


def _refit(run: Run) -> Status | None:
    """Refit the pruned layers together to the output; return why that ended early."""
    tick = run.elapsed()
    names = [name for name, (_, report) in run.done.items() if report.pruned]
    if not names:
        return None
    pruned = run.pruned
    settings = refit_settings(run.original, run.recipe.n_refit_epochs)
    fit = Distillation(
        run.original, pruned, run.data, names, settings, seed=run.execution.seed
    )  # fmt: skip
    stopped = fit.run(lambda share: _between_steps(run, names[-1], share))
    if fit.network is pruned:
        return stopped
    source = fit.network if run.cascade else run.original
    for name in names:
        layer, choice = fit.network.layer(name), run.choices[name]
        signals = _signals(run, layer, source)
        activation = run.original.activation_after(name)
        tasks = group_tasks(signals, activation, choice, run.cascade)
        report = with_refit(run.done[name][1], layer, tasks, (run.elapsed() - tick) / len(names))
        run.done[name] = layer, report
    return stopped


def _between_steps(run: Run, name: str, share: float) -> None:
    """Look at the clock and the user's wishes; report now and then."""
    before = run.fraction
    run.advance("refit", share)
    if share == 0 or run.fraction - before >= REPORTED:
        run.tell(name, stage="refit")
    else:
        run.fraction = before
    run.check_stop()


def _signals(run: Run, layer: Layer, source: Network) -> LayerSignals:
    """Return the rows of a layer, whose inputs are those of a network."""
    return collect(
        source, layer.name, run.data, original=run.original if run.cascade else None,
        max_rows=run.choices[layer.name].max_rows, seed=run.execution.seed,
        spill=run.execution.spill,
    )  # fmt: skip


def _turn(run: Run, layer: Layer) -> tuple[Layer, LayerReport]:
    """Return what a layer becomes, and its report."""
    tick = run.elapsed()
    choice, report = run.choices[layer.name], run.untouched(layer)
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
        signals = _signals(run, layer, source)
        activation = run.original.activation_after(layer.name)
        tasks = group_tasks(
            signals, activation, choice, run.cascade,
            output_weights(run.original, layer.name, run.data, choice, run.execution.seed),
        )  # fmt: skip
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
    report = with_answers(report, new, tasks, answers, run.elapsed() - tick)
    if run.checkpoint is not None:
        try:
            run.checkpoint.save(layer.name, new.W, new.b, report.to_record())
        except ProblemError as error:
            # The disk may be full; the layer is in memory, and the run may well end.
            report = replace(report, warnings=(*report.warnings, str(error)))
    return new, report


class _Failed(Exception):  # noqa: N818
    """A layer's solve gave nothing that can be used; the message says why."""


def _solve(run: Run, layer: Layer, task: GroupTask) -> GroupAnswer:
    """Solve one problem of a layer, and judge the answer."""
    steps, stages = run.choices[layer.name].steps, []
    call: dict[str, Any] = {
        "n_threads": run.execution.n_threads, "time_limit": run.time_left(),
        "callback": None if run.callback is None else lambda at: run.tell(layer.name, at),
    }  # fmt: skip
    try:
        if isinstance(steps, Pipeline) and len(steps.steps) > 1:
            for name, solution in steps.stages(task.problem, task.nnz, **call):
                stages.append(stage_of(name, task, solution))
        else:
            solution = steps(task.problem, task.nnz, **call)
    except Exception as error:
        # A pipeline may be anyone's. Whatever it raises costs this layer, and no other.
        raise _Failed(f"{type(error).__name__}: {error}") from error
    if run.callback_error is not None or run.wants_to_stop:
        run.check_stop()
    if getattr(solution, "status", None) is Status.INTERRUPTED:
        raise Ended(Status.INTERRUPTED)
    cut_short = getattr(solution, "status", None) is Status.TIME_LIMIT
    single = isinstance(steps, Pipeline) and len(steps.steps) == 1
    if cut_short or not single:
        # At the run's own limit this is half an answer; pipelines then leave steps out. At a limit
        # of the solver's settings it is an answer.
        run.time_left()
    reason = failure(solution, task.problem)
    if reason is not None:
        raise _Failed(reason)
    return judge_group(task, layer, solution, tuple(stages))
