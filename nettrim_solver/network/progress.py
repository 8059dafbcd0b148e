"""How far a run has come, and how it ends before all is done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..solvers import Progress
from ..status import Status

if TYPE_CHECKING:
    from .result import LayerReport


#: What a run does in its stages, in words; the layer's name follows.
STAGES = {
    "compiling": "compiling the solvers",
    "paths": "measuring",
    "probe": "trying a number of weights on",
    "pass": "preliminary pass over",
    "final": "pruning",
    "refit": "refit to the network's output",
}


@dataclass(frozen=True)
class LayerProgress:
    """How far a run has come: at the start of a layer, at a check of its solver, or after it.

    Attributes
    ----------
    layer : str
    done, total : int
        Layers that are finished, and all that are to be pruned (or measured, in stage "paths").
    progress : Progress or None
        The solver's own report; None before and after it runs, and while layers are measured.
    elapsed : float
        Seconds since the start of the call.
    stage : {"compiling", "paths", "probe", "pass", "final", "refit"}
        Whether solvers are compiled; layers are measured for the allocation; a network is tried
        with a quick pruner; pruned in a preliminary pass; pruned by the recipe's steps; or its
        layers are refitted together.
    trial : int
        Networks tried before this one.
    nnz : int or None
        Nonzeros that the search asks this one for.
    best_nnz : int or None
        Of the sparsest network that met the budget so far.
    report : LayerReport or None
        After a layer, what became of it; errors of the whole network are not measured yet.
    pass_number, passes : int
        Which of how many preliminary passes, from 1; 0 outside of them.
    fraction : float or None
        Estimated share of the whole run that is done; None in a search, whose length is not known.
    """

    layer: str
    done: int
    total: int
    progress: Progress | None
    elapsed: float
    stage: str = "final"
    trial: int = 0
    nnz: int | None = None
    best_nnz: int | None = None
    report: LayerReport | None = None
    pass_number: int = 0
    passes: int = 0
    fraction: float | None = None


def in_words(at: LayerProgress) -> str:
    """Return what a run is doing, such as "preliminary pass 2 of 4: conv1"."""
    if at.stage in ("compiling", "refit"):
        return STAGES[at.stage]
    what = STAGES[at.stage]
    if at.stage == "pass" and at.passes:
        what = f"preliminary pass {at.pass_number} of {at.passes}:"
    if at.nnz is not None and at.stage in ("probe", "final"):
        what = f"network {at.trial + 1}, {at.nnz:,} weights:"
    iteration = "" if at.progress is None else f", iteration {at.progress.iteration}"
    return f"{what} {at.layer}{iteration}"


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the seconds that the block takes to those of a stage."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started


class Ended(Exception):  # noqa: N818
    """The run ends before all is done, for this reason."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.label)
        self.status = status
