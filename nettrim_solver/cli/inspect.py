"""``nettrim inspect``: what a model file holds, what of it can be pruned, and why not."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from .common import PROVED, add_command
from .models import add_model, onnx_options, read_file

EXAMPLE = """example:
  nettrim inspect model.onnx

One line per operation with weights: its name, operator, the shape of its weights, how many there
are, how many of them are zero, and whether it can be pruned, or why not."""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    command = add_command(
        commands, "inspect", summary="list the layers of a model file",
        description="List the layers of a model, and what of it can be pruned.", example=EXAMPLE,
    )  # fmt: skip
    add_model(command)
    command.add_argument("--json", action="store_true", help="print the list as JSON, no text")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``nettrim inspect``."""
    from .. import terminal
    from ..frameworks.files import inspect_model
    from .data import how_to_make

    entries = inspect_model(arguments.model, trust=arguments.trust, **onnx_options(arguments))
    prunable = [entry for entry in entries if not entry.reason]
    weights, zeros = (sum(getattr(e, name) for e in prunable) for name in ("size", "zeros"))
    screen = terminal.Screen(arguments.quiet or arguments.json)
    rows = [
        (
            entry.name, entry.operator, "x".join(map(str, entry.shape)), f"{entry.size:,}",
            f"{100 * entry.zeros / max(1, entry.size):.1f}", entry.reason or "yes",
        )
        for entry in entries
    ]  # fmt: skip
    header = ("layer", "operator", "shape", "weights", "zeros %", "can be pruned")
    screen.line(str(arguments.model))
    screen.table(header, rows, left=(0, 1, 5), expendable=("shape",))
    screen.line(
        f"{len(prunable)} of {len(entries)} layers can be pruned: {weights:,} weights, "
        f"{zeros:,} of them zero."
    )
    model = read_file(arguments) if prunable else None
    if model is not None:
        screen.line(f"Calibration data: {how_to_make(model)}.")
    if arguments.json:
        shape = None if model is None else model.network.input_shape
        names = [] if model is None else list(model.input_names)
        layers = [
            dataclasses.asdict(entry)
            | {"weights": entry.size, "zeros": entry.zeros, "prunable": not entry.reason}
            for entry in entries
        ]
        content = {
            "model": str(arguments.model), "input_names": names,
            "input_shape": None if shape is None else list(shape), "layers": layers,
            "weights": weights, "zeros": zeros,
        }  # fmt: skip
        print(json.dumps(content))
    return PROVED
