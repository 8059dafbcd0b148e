"""The connections of a network's operations: names and inputs filled in, and checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..exceptions import ProblemError
from .operations import Operation, Shape

#: The name of the network's input among the inputs of its operations.
INPUT = "input"


def connected(operations: Iterable[Operation]) -> tuple[Operation, ...]:
    """Return the operations with names and inputs filled in, or raise what is wrong with them."""
    given = list(operations)
    if not given:
        raise ProblemError("operations must hold at least one operation, but is empty")
    for position, op in enumerate(given):
        if not isinstance(op, Operation):
            raise ProblemError(
                f"operations must be Operation objects, but number {position} is "
                f"a {type(op).__name__}"
            )
    taken = {op.name for op in given if op.name} | {INPUT}
    counts: dict[str, int] = {}
    known = {INPUT}
    found: list[Operation] = []
    for op in given:
        name = op.name
        while not name or (not op.name and name in taken):
            number = counts.get(op.kind, 0)
            counts[op.kind] = number + 1
            name = f"{op.kind}_{number}"
        if name in known:
            what = "the network's input has" if name == INPUT else "another operation has"
            raise ProblemError(f"operations must have names of their own, but {what} {name!r}")
        inputs = op.inputs or (found[-1].name if found else INPUT,)
        for source in inputs:
            if source not in known:
                why = "which stands behind it" if source in taken else "but there is none such"
                raise ProblemError(f"operation {name!r} takes its input from {source!r}, {why}")
        known.add(name)
        found.append(replace(op, name=name, inputs=inputs))
    return tuple(found)


def consumers_of(operations: tuple[Operation, ...]) -> dict[str, tuple[str, ...]]:
    """Return by name who takes each signal; raise if one besides the last is taken by nobody."""
    users: dict[str, list[str]] = {INPUT: [], **{op.name: [] for op in operations}}
    for op in operations:
        for source in dict.fromkeys(op.inputs):
            users[source].append(op.name)
    for name in [INPUT, *(op.name for op in operations[:-1])]:
        if not users[name]:
            raise ProblemError(
                f"every signal must be used, but nothing takes the output of {name!r}"
            )
    return {name: tuple(found) for name, found in users.items()}


def checked_shape(shape: Iterable[int]) -> Shape:
    """Return the shape of one sample, or raise if it is none."""
    try:
        sizes = tuple(int(n) for n in shape)
        valid = bool(sizes) and min(sizes) > 0
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ProblemError(
            f"input_shape must hold the sizes of one sample, without the samples, but was {shape!r}"
        )
    return sizes
