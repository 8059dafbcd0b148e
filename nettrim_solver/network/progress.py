"""Where a run stands, and how it ends before all is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..solvers import Progress
from ..status import Status

if TYPE_CHECKING:
    from .result import LayerReport


@dataclass(frozen=True)
class LayerProgress:
    """Where a run stands: at the start of a layer, at a check of its solver, or behind it.

    Attributes
    ----------
    layer : str
    done, total : int
        Layers that are finished, and all that are to be pruned (or measured, in stage "paths").
    progress : Progress or None
        The solver's own report; None before and after it runs, and while layers are measured.
    elapsed : float
        Seconds since the start of the call.
    stage : {"paths", "probe", "pass", "final", "refit"}
        Whether layers are measured for the allocation, a network is tried with the cheap solver,
        pruned in a pass before (``passes=``), or pruned with the solver that was asked for; or
        whether its layers are refitted together behind the last (``output_refit=``).
    trial : int
        Networks tried before this one.
    nnz : int or None
        Nonzeros that the search asks this one for.
    best_nnz : int or None
        Of the sparsest network that met the demand so far.
    report : LayerReport or None
        Behind a layer, what became of it; errors of the whole network are not measured yet.
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


class Ended(Exception):  # noqa: N818
    """The run ends before all is done, for this reason."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.label)
        self.status = status
