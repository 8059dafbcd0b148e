"""What each step of a pipeline gave for one group of a layer, and for all groups together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..certificate import certify
from ..solution import Solution
from ..status import Status, worst
from .measure import relative
from .tasks import GroupAnswer, GroupTask


@dataclass(frozen=True)
class Stage:
    """What one step of a pipeline gave for a layer, or for one group of it.

    Attributes
    ----------
    name : str
        The step, ``"admm"`` or ``"refit"``.
    nnz : int
    distance : float
        Of the pre-activations to the target box.
    error : float or None
        After the activation: of a group a Frobenius norm, of a layer relative to its target.
    gap : float or None
        None without a radius or without a dual point.
    status : Status
    seconds : float
    """

    name: str
    nnz: int
    distance: float
    error: float | None
    gap: float | None
    status: Status
    seconds: float

    def to_record(self) -> dict[str, Any]:
        """Return the fields as values that JSON takes."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"status": self.status.name}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Stage:
        """Return the stage that :meth:`to_record` took apart."""
        return cls(**{**record, "status": Status[record["status"]]})


def stage_of(name: str, task: GroupTask, solution: Solution) -> Stage:
    """Return the figures of one step, judged for the original target box."""
    judged = solution.certificate
    proving = judged.epsilons is not None and solution.theta is not None
    reached = judged
    if task.target is not task.problem:
        reached = certify(task.target, task.to_layer(solution.W), task.to_layer(solution.b))
    return Stage(
        name, solution.nnz, reached.distance, reached.activation_error,
        judged.gap if proving else None, solution.status, solution.seconds["total"],
    )  # fmt: skip


def stages_together(answers: Sequence[GroupAnswer], scale: float) -> tuple[Stage, ...]:
    """Return the steps of a layer from those of its groups; errors relative to a norm."""
    found = []
    for parts in zip(*(answer.stages for answer in answers), strict=False):
        errors, gaps = [one.error for one in parts], [one.gap for one in parts]
        error = None if None in errors else relative(float(np.linalg.norm(np.array(errors))), scale)
        found.append(
            Stage(
                parts[0].name, sum(one.nnz for one in parts),
                float(np.linalg.norm([one.distance for one in parts])), error,
                None if None in gaps else max(gap for gap in gaps if gap is not None),
                worst([one.status for one in parts]), sum(one.seconds for one in parts),
            )
        )  # fmt: skip
    return tuple(found)
