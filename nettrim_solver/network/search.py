"""Budgets of a whole network: a sparsity, a largest error, or a floor under its accuracy.

A total of weights is spread over the layers (:mod:`.allocation`), and the network is pruned with
that. Where the total itself is to be found, networks are tried: first with a cheap solver until the
total is known roughly, then with the one that was asked for. Nothing relies on the error growing
with the zeros: the answer is the sparsest network that was tried and met the demand.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..checks import check_choice, check_number, check_time_limit
from ..exceptions import ProblemError, SettingsError, SolverError
from ..solvers import SOLVERS
from ..status import Status
from ..threads import limit_threads
from .allocation import Allocator, Method
from .calibration import Calibration, Folder
from .checkpoint import Checkpoint, fingerprint_parts
from .choices import BUDGETS
from .graph import Network
from .modes import MAX_ROWS, LayerProgress, as_calibration, plan_network, prune_network
from .paths import LayerPath
from .result import PruningResult, plain

#: Share of the weights that the first network tried keeps.
FIRST = 0.1

#: Factor of the first step, and how near (relative) the two ends of the bracket must come: of the
#: cheap solver. The step of the other; it is squared with each step in the same direction.
PROBE_STEP, PROBE_WIDTH, FINAL_STEP = 2.0, 0.1, 1.1

#: Settings of a layer that the cheap solver does without.
OWN = ("solver", "settings", "pipeline")


@dataclass(frozen=True)
class Trial:
    """One network that was tried.

    Attributes
    ----------
    stage : {"probe", "final"}
        Whether by the cheap solver, or by the one that was asked for.
    nnz : int
        Nonzero weights of the network.
    budgets : dict of str to int
        Those of each layer that was pruned.
    value : float
        Its accuracy, or the relative error of its output.
    met : bool
        Whether that is what was demanded.
    seconds : float
    """

    stage: str
    nnz: int
    budgets: dict[str, int]
    value: float
    met: bool
    seconds: float


@dataclass(frozen=True, eq=False, repr=False)
class BudgetResult(PruningResult):
    """A pruned network, and how it was found.

    Attributes
    ----------
    budgets : dict of str to int
        Nonzeros of every layer that was to be pruned.
    value : float or None
        What the accuracy function says of the network, or the relative error of its output; None
        if neither was asked for.
    trials : tuple of Trial
        All networks that were tried, in order.
    paths : dict of str to LayerPath
        What was measured of the layers, for another :func:`prune_network_to` or :func:`allocate`.
    """

    budgets: dict[str, int]
    value: float | None
    trials: tuple[Trial, ...]
    paths: dict[str, LayerPath]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values; numbers that are not finite become None."""
        trials = [{f.name: plain(getattr(t, f.name)) for f in fields(t)} for t in self.trials]
        return super().to_dict() | {
            "budgets": self.budgets, "value": plain(self.value), "trials": trials,
            "paths": [path.to_dict() for path in self.paths.values()],
        }  # fmt: skip


@dataclass(frozen=True)
class SearchProgress:
    """Where a search stands.

    Attributes
    ----------
    stage : {"paths", "probe", "final"}
    trial : int
        Networks tried before this one.
    nnz : int or None
        Nonzeros of the one at hand.
    best_nnz : int or None
        Of the sparsest one that met the demand.
    layer : LayerProgress or str
        Where the run stands that prunes it; the name of the layer while paths are measured.
    elapsed : float
        Seconds since the start.
    """

    stage: str
    trial: int
    nnz: int | None
    best_nnz: int | None
    layer: LayerProgress | str
    elapsed: float


def prune_network_to(
    network: Network,
    X: Any,
    *,
    nnz: int | None = None,
    sparsity: float | None = None,
    max_error: float | None = None,
    accuracy: Callable[[Network], float] | None = None,
    min_accuracy: float | None = None,
    allocation: Method = "output_error",
    paths: Mapping[str, LayerPath] | None = None,
    weigh: bool | None = None,
    probe: str | None = "alps",
    resolution: float = 0.02,
    mode: Literal["cascade", "parallel"] = "cascade",
    skip: str | Iterable[str] | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    X_heldout: Any = None,
    seed: int = 0,
    checkpoint: Folder | None = None,
    callback: Callable[[SearchProgress], object] | None = None,
    n_threads: int | None = None,
    time_limit: float | None = None,
    spill: Folder | None = None,
    **options: Any,
) -> BudgetResult:
    """Prune a network to a budget of its own, spread over the layers where it costs least.

    Parameters
    ----------
    network : Network
    X : array_like, iterable of batches, or Calibration
        Calibration data.
    nnz, sparsity : int, float
        The budget, one of four: nonzero weights, or fraction of zeros, of the whole network; layers
        that are skipped count.
    max_error : float
        Or the largest relative error of the network's output on the calibration samples.
    accuracy, min_accuracy : callable, float
        Or the least value of ``accuracy(network) -> float`` for the pruned network: on held-out
        samples, a number that is larger for better networks. Of both the sparsest network is
        searched for.
    allocation, paths, weigh
        As in :func:`allocate`.
    probe : str or None
        The cheap solver that a search begins with, and that layers are measured with. None for
        the one that was asked for ("alps" measures for a pipeline).
    resolution : float
        A search ends when the numbers of nonzeros that do and do not meet the demand are this near,
        relative to each other.
    mode, skip, X_heldout, seed, n_threads, spill
        As in :func:`prune_network`. Held-out samples serve the allocation, too.
    overrides : mapping of str to mapping, optional
        As there, without budgets.
    checkpoint : path, optional
        A folder with one of :func:`prune_network` for each network tried.
    callback : callable, optional
        Called with a :class:`SearchProgress`; a true return value ends the search.
    time_limit : float, optional
        Seconds. While layers are measured it is looked at between them.
    **options
        Further arguments of :func:`prune_network`: ``solver``, ``settings``, ``pipeline``, ...

    Returns
    -------
    BudgetResult
        For a number of nonzeros, what :func:`prune_network` gives. From a search, the sparsest
        network that was tried with the solver asked for, and met the demand. At the time limit or
        after Ctrl-C, the best so far: by the cheap solver if there is no other, or else the trained
        network, with the status ``TIME_LIMIT`` or ``INTERRUPTED``.

    Raises
    ------
    ProblemError, SettingsError, UnsupportedError, MissingDependencyError
        Before any work; among them a floor that the trained network does not reach.
    SolverError
        If the accuracy function raises, or returns no number; or if no network meets the demand.
        ``error.solution`` is then the best result so far, or the nearest one, if there is any.

    Examples
    --------
    >>> import numpy as np
    >>> from nettrim_solver.network import Activate, Dense, Network
    >>> rng = np.random.default_rng(0)
    >>> network = Network([
    ...     Dense(rng.standard_normal((20, 12)), np.zeros(12), name="hidden"), Activate("relu"),
    ...     Dense(rng.standard_normal((12, 3)), np.zeros(3), name="scores"),
    ... ])
    >>> X, heldout = rng.standard_normal((300, 20)), rng.standard_normal((200, 20))
    >>> result = prune_network_to(network, X, sparsity=0.5, solver="alps")
    >>> result.sparsity
    0.5
    >>> labels = network(heldout).argmax(axis=1)
    >>> def accuracy(pruned):
    ...     return np.mean(pruned(heldout).argmax(axis=1) == labels)
    >>> result = prune_network_to(
    ...     network, X, accuracy=accuracy, min_accuracy=0.9, solver="alps"
    ... )
    >>> result.value >= 0.9, result.sparsity > 0.2
    (True, True)
    """
    demand = _demand(nnz, sparsity, max_error, accuracy, min_accuracy)
    given = options | {
        "mode": mode, "skip": skip, "seed": seed, "n_threads": n_threads, "spill": spill,
    }  # fmt: skip
    _check(resolution, time_limit, callback, overrides, probe, options)
    with limit_threads(n_threads):
        search = _prepare(
            network, X, X_heldout, demand, probe, overrides, given,
            {"method": allocation, "paths": paths, "weigh": weigh},
        )  # fmt: skip
        search.callback, search.time_limit = callback, time_limit
        total = None
        if demand.measure is None:
            total = search.allocator.total(nnz, sparsity)
            search.allocator.check(total)
        if checkpoint is not None:
            search.open(checkpoint)
        return search.to_demand(resolution) if total is None else search.to_total(total)


def _check(
    resolution: Any, time_limit: Any, callback: Any, overrides: Any, probe: Any,
    options: Mapping[str, Any],
) -> None:  # fmt: skip
    """Check the arguments that need no network."""
    check_number("resolution", resolution, 0.0, 1.0)
    check_time_limit(time_limit)
    if callback is not None and not callable(callback):
        raise SettingsError(f"callback must be callable, but was {callback!r}")
    if probe is not None:
        check_choice("probe", probe, tuple(SOLVERS))
    known = set(prune_network.__kwdefaults__ or {}) - {"tolerance", "sparsity", "nnz"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise SettingsError(
            f"prune_network_to() takes its own arguments and those of prune_network, but {unknown} "
            "are none, or are budgets of single layers"
        )
    for key, changes in overrides.items() if isinstance(overrides, Mapping) else ():
        named = [name for name in BUDGETS if isinstance(changes, Mapping) and name in changes]
        if named:
            raise SettingsError(
                f"the network's budget is spread over the layers, but overrides[{key!r}] holds "
                f"{named}: skip the layer, or prune with a budget for every layer"
            )


def _prepare(
    network: Network, X: Any, X_heldout: Any, demand: _Demand, probe: str | None, overrides: Any,
    given: dict[str, Any], how: dict[str, Any],
) -> _Search:  # fmt: skip
    """Check everything else that can be checked before work."""
    if not isinstance(network, Network):
        raise ProblemError(f"network must be a Network, but was a {type(network).__name__}")
    folded, spill = network.folded(), given["spill"]
    data = as_calibration(X, folded, spill, "X")
    held = None if X_heldout is None else as_calibration(X_heldout, folded, spill, "X_heldout")
    measured: dict[str, Any] = {k: given[k] for k in ("formulation", "radius") if k in given}
    if probe is None and given.get("pipeline") is None:
        measured |= {k: given[k] for k in ("solver", "settings") if k in given}
    else:
        measured["solver"] = probe or "alps"
    allocator = Allocator(
        network, data, X_heldout=held, overrides=_without_own(overrides),
        max_rows=given.get("max_rows", MAX_ROWS), **measured, **how,
        **{k: given[k] for k in ("mode", "skip", "seed", "n_threads", "spill")},
    )  # fmt: skip
    sizes = {name: layer.W.size for name, layer in allocator.layers.items()}
    # Nothing is planned here: the arguments are checked.
    plan_network(network, data, nnz=sizes, overrides=overrides, **given)
    return _Search(network, data, held, allocator, demand, probe, overrides, given)


# The demand -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Demand:
    """What a network must reach: ``sign * measure(result) >= sign * limit``."""

    what: str = ""
    limit: float = 0.0
    sign: float = 1.0
    accuracy: Callable[[Network], float] | None = None
    measure: Callable[[PruningResult], float] | None = None

    def met(self, value: float) -> bool:
        """Return whether a value is what was demanded."""
        return self.sign * value >= self.sign * self.limit


def _demand(nnz: Any, sparsity: Any, max_error: Any, accuracy: Any, floor: Any) -> _Demand:
    """Check which budget is given, and return what it demands."""
    budgets = {"nnz": nnz, "sparsity": sparsity, "max_error": max_error, "accuracy": accuracy}
    given = [name for name, value in budgets.items() if value is not None]
    if len(given) != 1:
        raise SettingsError(
            f"give one of nnz, sparsity, max_error, or accuracy with min_accuracy, but got {given}"
        )
    if (accuracy is None) != (floor is None):
        raise SettingsError(
            "accuracy and min_accuracy belong together, but "
            f"{'accuracy' if accuracy is None else 'min_accuracy'} is missing"
        )
    if max_error is not None:
        check_number("max_error", max_error, 0.0, np.inf)
        return _Demand("error", float(max_error), -1.0, None, _error_of)
    if accuracy is None:
        return _Demand()
    if not callable(accuracy):
        raise SettingsError(f"accuracy must be a function of a network, but was {accuracy!r}")
    check_number("min_accuracy", floor, -np.inf, np.inf)
    return _Demand(
        "accuracy", float(floor), 1.0, accuracy, lambda result: score(accuracy, result.network)
    )


def _error_of(result: PruningResult) -> float:
    return math.inf if result.output_error is None else result.output_error


def score(accuracy: Callable[[Network], Any], network: Network) -> float:
    """Return what a user's function says of a network.

    Raises
    ------
    SolverError
        If it raises, chained; or if it returns no finite number.
    """
    about = f"for the network with sparsity {network.sparsity:.4f}"
    try:
        value = accuracy(network)
    except Exception as error:
        raise SolverError(f"accuracy raised {type(error).__name__} {about}: {error}") from error
    numeric = isinstance(value, (Real, np.number)) or (
        isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "fiu"
    )
    if not numeric or isinstance(value, (bool, np.complexfloating)) or not np.isfinite(value):
        returned = f"{value}" if numeric else f"{value!r}"
        raise SolverError(f"accuracy must return a finite number, but {about} returned {returned}")
    return float(value)


def _without_own(overrides: Any) -> Any:
    """Return the overrides that the cheap solver follows, too."""
    if not isinstance(overrides, Mapping):
        return overrides
    return {
        key: {k: v for k, v in changes.items() if k not in OWN}
        if isinstance(changes, Mapping)
        else changes
        for key, changes in overrides.items()
    }


# The search -------------------------------------------------------------------------------------


class _Ended(Exception):  # noqa: N818
    """The search ends early, for this reason."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.label)
        self.status = status


@dataclass
class _Search:
    """One call: what was asked for, the clock, and the networks tried."""

    network: Network
    data: Calibration
    heldout: Calibration | None
    allocator: Allocator
    demand: _Demand
    probe: str | None
    overrides: Any
    options: dict[str, Any]
    callback: Callable[[SearchProgress], object] | None = None
    time_limit: float | None = None
    checkpoint: Checkpoint | None = None
    trials: list[Trial] = field(default_factory=list)
    best: dict[str, tuple[PruningResult, Trial]] = field(default_factory=dict)
    nearest: tuple[PruningResult, Trial] | None = None
    known: dict[tuple[Any, ...], Trial] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    stopped: bool = False

    def __post_init__(self) -> None:
        self.allocator.tell = lambda name: self.tell("paths", None, name)

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.started

    def tell(self, stage: str, nnz: int | None, layer: LayerProgress | str) -> bool:
        """Call the user's callback; raise between pieces of work if the search is to end."""
        if self.callback is not None and not self.stopped:
            nonzeros = [trial.nnz for _, trial in self.best.values()]
            at = SearchProgress(
                stage, len(self.trials), nnz, min(nonzeros, default=None), layer, self.elapsed()
            )
            self.stopped = bool(self.callback(at))
        if isinstance(layer, str):
            self.check_end()
        return self.stopped

    def check_end(self) -> None:
        """Raise if the user, or the clock, ends the search."""
        if self.stopped:
            raise _Ended(Status.INTERRUPTED)
        if self.time_limit is not None and self.elapsed() >= self.time_limit:
            raise _Ended(Status.TIME_LIMIT)

    def open(self, folder: Folder) -> None:
        """Keep the networks tried in a folder, each in one of its own."""
        parts = fingerprint_parts(
            self.allocator.prober.original, self.data, {}, mode=self.options["mode"],
            seed=self.options["seed"], allocation=self.allocator.method,
            layers=[*self.allocator.layers],
        )  # fmt: skip
        self.checkpoint = Checkpoint(folder, parts)

    # Networks ---------------------------------------------------------------------------------

    def prune(self, stage: str, total: int, budgets: dict[str, int]) -> PruningResult:
        """Prune the network for these budgets."""
        given, overrides = dict(self.options), self.overrides
        if stage == "probe":
            overrides = _without_own(overrides)
            given = {k: v for k, v in given.items() if k not in OWN} | {"solver": self.probe}
        if self.time_limit is not None:
            given["time_limit"] = max(1e-9, self.time_limit - self.elapsed())
        if self.callback is not None:
            given["callback"] = lambda at: self.tell(stage, total, at)
        if self.checkpoint is not None:
            digest = hashlib.sha256(repr(budgets).encode()).hexdigest()[:8]
            given["checkpoint"] = Path(self.checkpoint.folder) / f"{stage}-{total}-{digest}"
        return prune_network(
            self.network, self.data, nnz=budgets, overrides=overrides,
            X_heldout=self.heldout if stage == "final" else None, **given,
        )  # fmt: skip

    def try_total(self, stage: str, total: int) -> bool:
        """Return whether the network with so many nonzeros meets the demand."""
        self.check_end()
        budgets = self.allocator.spread(total)
        key = (stage, *budgets.items())
        if key in self.known:
            return self.known[key].met
        tick = self.elapsed()
        result = self.prune(stage, total, budgets)
        if result.status in (Status.TIME_LIMIT, Status.INTERRUPTED):
            raise _Ended(result.status)
        if result.output_error is None:  # Ctrl-C while it was measured.
            raise _Ended(Status.INTERRUPTED)
        assert self.demand.measure is not None
        value = self.demand.measure(result)
        trial = Trial(
            stage, result.nnz, budgets, value, self.demand.met(value), self.elapsed() - tick
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
        return self.demand.sign * trial.value, trial.nnz

    def to_total(self, total: int) -> BudgetResult:
        """Return the network of a number of nonzeros."""
        budgets: dict[str, int] = {}
        try:
            self.allocator.prepare()
            if self.allocator.weighs:
                self.allocator.weigh(total)
            budgets = self.allocator.spread(total)
            return self._result(self.prune("final", total, budgets), budgets, None)
        except _Ended as end:
            return self._trained(end.status, None)
        except KeyboardInterrupt:
            return self._trained(Status.INTERRUPTED, None)

    def to_demand(self, resolution: float) -> BudgetResult:
        """Return the sparsest network that meets the demand."""
        dense = None if self.demand.accuracy is None else self._dense_score()
        ended: Status | None = None
        try:
            self._narrow(resolution)
        except _Ended as end:
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
            f"no pruned network that was tried has {self._in_words()}: the nearest has "
            f"{self.demand.what} {trial.value:.6g} at sparsity {result.sparsity:.4f}",
            self._result(result, trial.budgets, trial.value),
        )

    def _narrow(self, resolution: float) -> None:
        """Try networks until the number of nonzeros is known."""
        allocator = self.allocator
        allocator.prepare()
        start = round(FIRST * self.network.n_weights)
        step = PROBE_STEP
        if self.probe is not None:
            start = self._bracket("probe", start, PROBE_STEP, PROBE_WIDTH)
            step = FINAL_STEP
        if allocator.weighs:
            allocator.weigh(min(max(start, allocator.least), allocator.most))
        self._bracket("final", start, step, resolution)

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
        assert self.demand.accuracy is not None
        dense = score(self.demand.accuracy, self.network)
        if not self.demand.met(dense):
            raise SettingsError(
                f"min_accuracy is {self.demand.limit:g}, but the trained network itself has "
                f"accuracy {dense:g}: no network pruned from it can be expected to have more"
            )
        return dense

    # Results ----------------------------------------------------------------------------------

    def _best(self, ended: Status | None) -> BudgetResult | None:
        """Return the sparsest network that met the demand; the cheap solver's if cut short."""
        stages = ("final",) if ended is None else ("final", "probe")
        for stage in stages:
            if stage in self.best:
                result, trial = self.best[stage]
                if ended in (Status.TIME_LIMIT, Status.INTERRUPTED):
                    result = replace(result, status=ended)
                return self._result(result, trial.budgets, trial.value)
        return None

    def _result(
        self, result: PruningResult, budgets: dict[str, int], value: float | None
    ) -> BudgetResult:
        values = {f.name: getattr(result, f.name) for f in fields(PruningResult)}
        return BudgetResult(
            **values | {"seconds": self.elapsed()}, budgets=budgets, value=value,
            trials=tuple(self.trials), paths=dict(self.allocator.paths),
        )  # fmt: skip

    def _trained(self, status: Status, value: float | None) -> BudgetResult:
        """Return the trained network as a result."""
        sizes = {name: layer.W.size for name, layer in self.allocator.layers.items()}
        # A run whose time is up before it begins: every layer is reported as not reached.
        given = self.options | {"time_limit": 1e-9, "overrides": self.overrides}
        result = prune_network(self.network, self.data, nnz=sizes, X_heldout=self.heldout, **given)
        return self._result(replace(result, status=status), {}, value)

    def _in_words(self) -> str:
        sign = "at least" if self.demand.sign > 0 else "at most"
        return f"{self.demand.what} of {sign} {self.demand.limit:g}"
