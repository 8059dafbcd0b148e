"""A network pruned to a budget of its own: so many weights, or the sparsest that meets a target.

A number of weights is shared out over the layers (:mod:`.allocation`), and the network is pruned
with that. Where the number itself is to be found, networks are tried: first with a quick pruner,
which brackets it, then with the recipe. Nothing relies on the error growing with the zeros: the
answer is the sparsest network that was tried and met the target.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..exceptions import SettingsError, SolverError
from ..status import Status
from .allocation import EXPONENTS, Allocator
from .calibration import Calibration, Folder
from .checkpoint import Checkpoint, fingerprint_parts
from .choices import PROXY, Execution, proxy
from .graph import Network
from .modes import Run
from .probing import GRID
from .progress import Ended, LayerProgress, timed
from .recipe import Recipe
from .result import PruningResult, Trial
from .spreading import spread_evenly
from .target import Budget, score

#: Share of the weights that the first network tried keeps.
FIRST = 0.1

#: Share of the work that goes into measuring the layers, roughly.
MEASURING = 0.3

#: Factor of the first step, and how near (relative) the two ends of the bracket must come: of the
#: cheap solver. The step of the other; it is squared with each step in the same direction.
PROBE_STEP, PROBE_WIDTH, FINAL_STEP = 2.0, 0.1, 1.1


@dataclass
class Search:
    """One call: what was asked for, the clock, and the networks tried."""

    network: Network
    data: Calibration
    heldout: Calibration | None
    recipe: Recipe
    budget: Budget
    execution: Execution
    allocator: Allocator
    #: Nonzeros of the layers that share the budget; None where they are searched for.
    total: int | None
    callback: Callable[[LayerProgress], object] | None = None
    time_limit: float | None = None
    checkpoint: Checkpoint | None = None
    trials: list[Trial] = field(default_factory=list)
    best: dict[str, tuple[PruningResult, Trial]] = field(default_factory=dict)
    nearest: tuple[PruningResult, Trial] | None = None
    known: dict[tuple[Any, ...], Trial] = field(default_factory=dict)
    started: float = field(default_factory=lambda: time.perf_counter())
    stopped: bool = False
    seconds_by_stage: dict[str, float] = field(default_factory=dict)
    #: What was chosen for this network where the recipe left it open.
    choices_made: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, network: Network, data: Calibration, heldout: Calibration | None, recipe: Recipe,
        budget: Budget, execution: Execution,
    ) -> Search:  # fmt: skip
        """Check everything else that can be checked before work."""
        allocator = Allocator(network, data, proxy(recipe), execution, method=recipe.allocation)
        total = allocator.total(**budget.to_dict()) if budget.counts else None
        search = cls(network, data, heldout, recipe, budget, execution, allocator, total)
        search.typical()  # It is not started: the arguments are checked.
        allocator.tell = search.tell_measuring
        return search

    def typical(self) -> Run:
        """Return what prunes one network, of the sparsity asked for in every layer."""
        total = round(FIRST * self.allocator.most) if self.total is None else self.total
        sizes = {name: layer.W.size for name, layer in self.allocator.layers.items()}
        return self.run_for("final", spread_evenly(sizes, total))

    def notes(self) -> tuple[str, ...]:
        """Return what is done besides pruning the layers of one network to its final budgets."""
        found, n = [*self.typical().notes()], len(self.allocator.layers)
        if self.allocator.method != "uniform":
            drafts = len(EXPONENTS) if self.allocator.method == "shape" else len(EXPONENTS) + 1
            solves = n * (drafts if self.total is not None else 0)
            solves += n * len(GRID) if self.allocator.method != "shape" else 0
            found.append(f"before: about {solves} layers pruned by {PROXY}, to choose a split")
        if self.budget.searched:
            found.append("a search prunes the network several times, mostly 5 to 15")
        return tuple(found)

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.started

    def tell_measuring(self, name: str) -> None:
        """Call the user's callback before a layer is measured; raise if the search is to end."""
        if self.callback is not None and not self.stopped:
            layers = [*self.allocator.layers]
            at = LayerProgress(
                name, layers.index(name), len(layers), None, 0.0,
                fraction=layers.index(name) / len(layers),
            )  # fmt: skip
            self.tell("paths", None, at)
        self.check_end()

    def tell(self, stage: str, nnz: int | None, at: LayerProgress) -> bool:
        """Call the user's callback; return whether the search is to end."""
        assert self.callback is not None
        if not self.stopped:
            best = min((trial.nnz for _, trial in self.best.values()), default=None)
            stage = at.stage if at.stage in ("pass", "refit") else stage
            fraction = None
            if self.total is not None and at.fraction is not None:
                first = MEASURING if self.allocator.method != "uniform" else 0.0
                fraction = (
                    at.fraction * first if stage == "paths" else (first + (1 - first) * at.fraction)
                )
            at = replace(
                at, stage=stage, trial=len(self.trials), nnz=nnz, best_nnz=best,
                elapsed=self.elapsed(), fraction=fraction,
            )  # fmt: skip
            self.stopped = bool(self.callback(at))
        return self.stopped

    def check_end(self) -> None:
        """Raise if the user, or the clock, ends the search."""
        if self.stopped:
            raise Ended(Status.INTERRUPTED)
        if self.time_limit is not None and self.elapsed() >= self.time_limit:
            raise Ended(Status.TIME_LIMIT)

    def open(self, folder: Folder) -> None:
        """Keep the networks tried in a folder, each in one of its own."""
        parts = fingerprint_parts(
            self.network.folded(), self.data, {}, mode=self.recipe.mode, seed=self.execution.seed,
            allocation=self.allocator.method, layers=[*self.allocator.layers],
        )  # fmt: skip
        self.checkpoint = Checkpoint(folder, parts)

    # Networks ---------------------------------------------------------------------------------

    def run_for(self, stage: str, budgets: Mapping[str, int]) -> Run:
        """Return what prunes the network for these budgets, checked and not started."""
        recipe = proxy(self.recipe) if stage == "probe" else self.recipe
        heldout = self.heldout if stage == "final" else None
        budget = Budget("nnz", dict(budgets))
        return Run.of(self.network, self.data, recipe, budget, self.execution, heldout)

    def prune_to(self, stage: str, total: int, budgets: dict[str, int]) -> PruningResult:
        """Prune the network for these budgets."""
        run = self.run_for(stage, budgets)
        run.seconds_by_stage, run.stage = self.seconds_by_stage, stage
        if self.time_limit is not None:
            run.time_limit = max(1e-9, self.time_limit - self.elapsed())
        if self.callback is not None:
            run.callback = lambda at: self.tell(stage, total, at)
        if self.checkpoint is not None:
            digest = hashlib.sha256(repr(budgets).encode()).hexdigest()[:8]
            run.open(Path(self.checkpoint.folder) / f"{stage}-{total}-{digest}")
        return run.prune()

    def try_total(self, stage: str, total: int) -> bool:
        """Return whether the network with so many nonzeros meets the demand."""
        self.check_end()
        budgets = self.allocator.spread(total)
        key = (stage, *budgets.items())
        if key in self.known:
            return self.known[key].met
        tick = self.elapsed()
        result = self.prune_to(stage, total, budgets)
        if result.status in (Status.TIME_LIMIT, Status.INTERRUPTED):
            raise Ended(result.status)
        if result.output_error is None:  # Ctrl-C while it was measured.
            raise Ended(Status.INTERRUPTED)
        value = self.budget.measure(result)
        trial = Trial(
            stage, result.nnz, budgets, value, self.budget.met(value), self.elapsed() - tick
        )
        self.known[key] = trial
        self.trials.append(trial)
        best = self.best.get(stage)
        if trial.met and (best is None or trial.nnz < best[1].nnz):
            self.best[stage] = result, trial
        if self.nearest is None or self._closeness(trial) > self._closeness(self.nearest[1]):
            self.nearest = result, trial
        return trial.met

    def _closeness(self, trial: Trial) -> tuple[float, int]:
        """Return what is larger for trials that come closer; of equal ones for denser networks."""
        return self.budget.merit(trial.value), trial.nnz

    # Goals ------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Compile what the solvers need, so that no layer is charged for it."""
        run = self.typical()
        run.callback = self.callback
        run.warm_up()
        self.started = time.perf_counter()

    def prune(self) -> PruningResult:
        """Return the network that was asked for."""
        return self._for_target() if self.total is None else self._for_total(self.total)

    def _for_total(self, total: int) -> PruningResult:
        try:
            with timed(self.seconds_by_stage, "paths"):
                budgets = self.allocator.chosen(total)
            return self._told(self.prune_to("final", total, budgets), budgets, None)
        except Ended as end:
            return self._trained(end.status, None)
        except KeyboardInterrupt:
            return self._trained(Status.INTERRUPTED, None)

    def _for_target(self) -> PruningResult:
        dense = None if self.budget.accuracy is None else self._dense_score()
        ended: Status | None = None
        try:
            self._narrow()
        except Ended as end:
            ended = end.status
        except KeyboardInterrupt:
            ended = Status.INTERRUPTED
        except SolverError as error:
            # The user's function: what was found before it failed is not lost.
            found = self._best(ended=Status.FAILED)
            raise SolverError(str(error), found) from error.__cause__
        found = self._best(ended)
        if found is not None:
            return found
        if ended is not None:
            return self._trained(ended, dense)
        assert self.nearest is not None
        result, trial = self.nearest
        raise SolverError(
            f"no pruned network that was tried has {self.budget}: the nearest has "
            f"{self.budget.what} {trial.value:.6g} at sparsity {result.sparsity:.4f}",
            self._told(result, trial.budgets, trial.value),
        )

    def _narrow(self) -> None:
        """Try networks until the number of nonzeros is known."""
        allocator = self.allocator
        with timed(self.seconds_by_stage, "paths"):
            allocator.prepare()
        start = round(FIRST * allocator.most)
        start = self._bracket("probe", start, PROBE_STEP, PROBE_WIDTH)
        self._bracket("final", start, FINAL_STEP, self.recipe.resolution)
        if "final" not in self.best:
            # A bracket ends below its upper end: all weights were not tried.
            self.try_total("final", allocator.most)

    def _bracket(self, stage: str, start: int, step: float, width: float) -> int:
        """Try totals, and return the smallest that met the demand before one that did not.

        In growing steps until both are known, then by halving on a logarithmic scale.
        """
        low, high = self.allocator.least - 1, self.allocator.most
        failed = met = False
        total = min(max(start, low + 1), high)
        while True:
            if self.try_total(stage, total):
                high, met, total = total, True, math.floor(total / step)
            else:
                low, failed, total = total, True, math.ceil(total * step)
            if high - low <= 1 or (low > 0 and high <= low * (1.0 + width)):
                return high
            if failed and met:
                total = round(math.sqrt(max(low, 1) * high))
            else:
                step *= step
            total = min(max(total, low + 1), high - 1)

    def _dense_score(self) -> float:
        """Return the accuracy of the trained network, or raise if it is below the floor."""
        assert self.budget.accuracy is not None
        dense = score(self.budget.accuracy, self.network)
        if not self.budget.met(dense):
            raise SettingsError(
                f"min_accuracy is {self.budget.limit:g}, but the trained network itself has "
                f"accuracy {dense:g}: no network pruned from it can be expected to have more"
            )
        return dense

    # Results ----------------------------------------------------------------------------------

    def _best(self, ended: Status | None) -> PruningResult | None:
        """Return the sparsest network that met the demand; the cheap solver's if cut short."""
        stages = ("final",) if ended is None else ("final", "probe")
        for stage in stages:
            if stage in self.best:
                result, trial = self.best[stage]
                if ended in (Status.TIME_LIMIT, Status.INTERRUPTED):
                    result = replace(result, status=ended)
                return self._told(result, trial.budgets, trial.value)
        return None

    def _told(
        self, result: PruningResult, budgets: dict[str, int], value: float | None
    ) -> PruningResult:
        """Return a result with how it was found."""
        return replace(
            result, seconds=self.elapsed(), budgets=budgets, value=value,
            seconds_by_stage=self.seconds_by_stage,
            trials=tuple(self.trials), paths=dict(self.allocator.paths),
        )  # fmt: skip

    def _trained(self, status: Status, value: float | None) -> PruningResult:
        """Return the trained network as a result."""
        sizes = {name: layer.W.size for name, layer in self.allocator.layers.items()}
        return self._told(self.run_for("final", sizes).result(status), {}, value)
