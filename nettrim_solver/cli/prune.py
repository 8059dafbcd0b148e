"""``nettrim prune``: a model file and calibration data in, the pruned model out."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    INTERRUPTED,
    PROVED,
    UNPROVED,
    UsageError,
    add_command,
    add_run_options,
    check_outputs,
    given_options,
    writing,
)
from .models import add_model_options, read_data, sources_of
from .recipe import add_recipe_options, read_recipe

if TYPE_CHECKING:
    from ..frameworks.files import ModelFile
    from ..network import PruningPlan, PruningResult
    from ..terminal import Screen
    from .data import Score

EXAMPLE = """examples:
  nettrim prune model.onnx --calibration inputs.npz --sparsity 0.9 -o pruned.onnx
  nettrim prune network.npz --calibration data.npz:x_train --samples 1000 --scale 1/255 \\
      --validation data.npz:x_test:y_test --min-accuracy 0.97 --report report.html -o pruned.npz
  nettrim prune network.npz --calibration inputs.npy --tolerance 0.1 --recipe net-trim -o pruned.npz

A model is .onnx, .npz (W0, b0, W1, b1, ...: weights of shape inputs x outputs; ReLU between the
layers, unless an entry "activations" names others), or a scikit-learn estimator, .joblib or .pkl
(with --trust). It is written back in its own format.

Calibration data is never made up: numpy.savez("inputs.npz", X=X) writes it in Python. Samples are
rows, as the model takes them. A file is named inputs.npy, data.npz, or data.npz:NAME; with labels
data.npz:NAME:NAME (without names: the model's input or X; y).

The budget says how far to prune, the recipe how: nettrim recipes lists what there is."""

#: A line of the final table: what, before, after, of what.
Line = tuple[str, str, str, str]

BUDGETS = ("tolerance", "sparsity", "nnz", "max_error", "min_accuracy")


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    command = add_command(
        commands, "prune", summary="prune the layers of a model file",
        description="Prune the layers of a trained model, and write it back.", example=EXAMPLE,
    )  # fmt: skip
    add_model_options(command)
    command.add_argument("-o", "--output", type=Path, metavar="FILE",
                         help="pruned model, in the format of MODEL")  # fmt: skip
    budget = command.add_argument_group("budget (one)").add_mutually_exclusive_group()
    budget.add_argument("--tolerance", type=float, metavar="G",
                        help="radius of every layer, relative to its outputs")  # fmt: skip
    budget.add_argument("--sparsity", type=float, metavar="S", help="fraction of zeros")
    budget.add_argument("--nnz", type=int, metavar="N", help="number of nonzero weights")
    budget.add_argument("--max-error", type=float, metavar="E",
                        help="largest relative error of the model's output")  # fmt: skip
    budget.add_argument("--min-accuracy", type=float, metavar="A",
                        help="least accuracy (or R2) on the labels of --validation")  # fmt: skip
    how = command.add_argument_group("how")
    add_recipe_options(how)
    add_run_options(how, "of the run")
    files = command.add_argument_group("what else is written")
    files.add_argument("--checkpoint", type=Path, metavar="DIR", help="folder for finished layers")
    files.add_argument("--resume", action="store_true", help="go on where the checkpoint ends")
    files.add_argument("--report", type=Path, metavar="FILE", help="report, one .html file")
    files.add_argument("--sparse", action="store_true",
                       help="store zeros as such, where the format can")  # fmt: skip
    files.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")
    files.add_argument("--json", action="store_true", help="print the report as JSON, no text")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``nettrim prune``."""
    from .. import terminal
    from ..network import plan_network, prune_network
    from ..network.display import is_watched
    from .doubts import doubts

    given = given_options(arguments, (*BUDGETS, "seed", "n_threads"))
    if not any(name in given for name in BUDGETS):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in BUDGETS)
        raise UsageError(f"give a budget, one of {options} (see nettrim prune --help)")
    given["recipe"] = read_recipe(arguments)
    _check_files(arguments)
    model, calibration, validation, score = read_data(arguments)
    if "min_accuracy" in given:
        if score is None:
            raise UsageError("--min-accuracy needs labels: --validation FILE.npz with X and y")
        given["accuracy"] = score
    quiet = arguments.quiet or arguments.json
    screen = terminal.Screen(quiet)
    trained = None if score is None else score(model.network)
    if not arguments.quiet:
        for text in doubts(model.network, calibration.X, score, trained):
            terminal.warn(text)
    if arguments.dry_run:
        _show_plan(screen, plan_network(model.network, calibration.X, **given), arguments.json)
        return PROVED
    watched = is_watched()
    searched = "max_error" in given or "min_accuracy" in given
    result = prune_network(
        model.network, calibration.X, X_heldout=None if validation is None else validation.X,
        checkpoint=arguments.checkpoint, time_limit=arguments.time_limit,
        progress=watched and not quiet,
        callback=None if watched or quiet else terminal.layer_reporter(screen, searched), **given,
    )  # fmt: skip
    return Outcome(arguments, model, result, score, trained).finish(screen)


def _check_files(arguments: argparse.Namespace) -> None:
    """Raise for files that cannot be written, before anything is read."""
    from ..frameworks.files import check_target

    if arguments.output is None and not arguments.dry_run:
        raise UsageError("give the pruned model a file: --output FILE (see nettrim prune --help)")
    check_outputs((arguments.output, arguments.report), *sources_of(arguments))
    if arguments.output is not None:
        check_target(arguments.model, arguments.output)
    folder = arguments.checkpoint
    if arguments.resume and folder is None:
        raise UsageError("--resume needs the folder to go on from: --checkpoint DIR")
    if folder is None or arguments.resume or arguments.dry_run:
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(
            f"--checkpoint {folder} is not empty: --resume goes on from it, another folder begins "
            "anew"
        )


def _show_plan(screen: Screen, plan: PruningPlan, as_json: bool) -> None:
    if as_json:
        from ..network.result import plain

        print(json.dumps(plain(dataclasses.asdict(plan))))
    screen.line(plan.table())


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A pruned model that is to be written, and told of."""

    arguments: argparse.Namespace
    model: ModelFile
    result: PruningResult
    score: Score | None
    trained: float | None

    def finish(self, screen: Screen) -> int:
        """Write the files, then say what was found, and return the exit code."""
        from .. import terminal
        from ..status import Status

        arguments, result = self.arguments, self.result
        pruned = None if self.score is None else self.score(result.network)
        with writing(arguments.output):
            dense = self.model.write(result.network, arguments.output, sparse=arguments.sparse)
        if arguments.report is not None:
            with writing(arguments.report):
                title = f"{arguments.model.name}, pruned"
                result.write_report(arguments.report, title=title, facts=self.facts(pruned))
        if not screen.quiet:
            terminal.show_layers(screen, result)
            screen.line()
            screen.table(("", "before", "after", ""), self.rows(pruned), left=(0, 3))
        for path in filter(None, (arguments.output, arguments.report)):
            screen.line(f"Wrote {path}.")
        if dense:
            screen.line(f"--sparse changed nothing: {dense}.")
        elif not screen.quiet and not arguments.sparse and (size := self.sparse_size()):
            screen.line(f"With --sparse the file takes {size:,} bytes.")
        if arguments.json:
            print(json.dumps(result.to_dict() | self.record(pruned)))
        if result.status is Status.INTERRUPTED:
            return INTERRUPTED
        return PROVED if result.status in terminal.DONE else UNPROVED

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of the model's file before and after."""
        before, after = (os.path.getsize(p) for p in (self.arguments.model, self.arguments.output))
        return before, after

    def rows(self, pruned: float | None) -> list[Line]:
        """Return the final table: what matters of the whole model."""
        from ..terminal import percent

        result, score = self.result, self.score
        rows = self.zeros()
        if score is not None and self.trained is not None and pruned is not None:
            about = f"{len(score.y):,} validation samples"
            if result.budget.name == "min_accuracy":
                about += ", which chose it: score it on others"
            rows.append((score.kind, score.shown(self.trained), score.shown(pruned), about))
        bound = percent(result.output_bound)
        proof = "calibration samples" + ("" if bound == "-" else f", proved: <= {bound} %")
        rows.append(("output error", "", f"{percent(result.output_error)} %", proof))
        if result.output_error_heldout is not None:
            error = f"{percent(result.output_error_heldout)} %"
            rows.append(("output error", "", error, "validation samples"))
        before, after = (f"{size:,}" for size in self.sizes)
        rows.append(("file", before, after, "bytes"))
        rows.append(("time", "", f"{result.seconds:.1f}", "seconds"))
        return rows

    def zeros(self) -> list[Line]:
        """Return the zeros of the layers that were pruned, and those of all weights there are."""
        from ..terminal import percent

        before, after = self.result.original, self.result.network
        counts = {
            one.name: (one.size, before.layer(one.name).nnz, one.nnz)
            for one in self.result.layers
            if one.pruned
        }
        others = [(size, size - zeros, size - zeros) for size, zeros in before.unpruned.values()]
        model = _sums([(before.n_weights, before.nnz, after.nnz), *others])
        rows = {_sums(counts.values()): "the pruned layers", model: "the model"}
        return [
            ("zeros", f"{percent(1 - was / total)} %", f"{percent(1 - now / total)} %",
             f"{now:,} of {total:,} weights of {what} stay")
            for (total, was, now), what in rows.items()
            if total
        ]  # fmt: skip

    def facts(self, pruned: float | None) -> dict[str, tuple[str, str]]:
        """Return what the report says of the validation samples."""
        if self.score is None or self.trained is None or pruned is None:
            return {}
        kind = f"{self.score.kind[0].upper()}{self.score.kind[1:]}"
        trained = self.score.shown(self.trained)
        note = f"{trained} before; {len(self.score.y):,} validation samples"
        return {kind: (self.score.shown(pruned), note)}

    def record(self, pruned: float | None) -> dict[str, Any]:
        """Return what JSON says besides the result."""
        before, after = self.sizes
        found: dict[str, Any] = {"file_bytes": {"before": before, "after": after}}
        if self.score is not None:
            found["validation"] = {
                "score": self.score.kind, "trained": self.trained, "pruned": pruned
            }  # fmt: skip
        return found

    def sparse_size(self) -> int:
        """Return the bytes of the file with sparse storage, 0 unless it is smaller by that."""
        with contextlib.suppress(OSError), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.arguments.output.name
            if not self.model.write(self.result.network, path, sparse=True):
                size = path.stat().st_size
                return size if size < self.sizes[1] else 0
        return 0


def _sums(rows: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the sums of the columns: weights in all, nonzeros before and after."""
    return tuple(map(sum, zip(*rows, strict=True))) or (0, 0, 0)
