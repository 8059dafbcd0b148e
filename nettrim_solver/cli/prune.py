"""``nettrim prune``: a model file and calibration data in, the pruned model out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    INTERRUPTED,
    PROVED,
    UNPROVED,
    UsageError,
    add_command,
    add_solver_options,
    check_outputs,
    given_options,
    writing,
)
from .models import add_model_options, add_network_options, read_data, sources_of

if TYPE_CHECKING:
    from ..frameworks.files import ModelFile
    from ..network import PruningPlan, PruningResult
    from ..terminal import Screen
    from .data import Score

EXAMPLE = """examples:
  nettrim prune model.onnx --calibration inputs.npz --tolerance 0.1 -o pruned.onnx
  nettrim prune network.npz --calibration data.npz:x_train --samples 1000 --sparsity 0.8 \\
      --validation data.npz:x_test:y_test --solver alps --report report.html -o pruned.npz
  nettrim prune network.npz --calibration inputs.npy --recipe recipe.toml --dry-run

A model is .onnx, .npz (W0, b0, W1, b1, ...: weights of shape inputs x outputs; ReLU between the
layers, unless an entry "activations" names others), or a scikit-learn estimator, .joblib or .pkl
(with --trust). It is written back in its own format.

Calibration data is never made up: numpy.savez("inputs.npz", X=X) writes it in Python. Samples are
rows, as the model takes them. A file is named inputs.npy, data.npz, or data.npz:NAME; with labels
data.npz:NAME:NAME (without names: the model's input or X; y).

A recipe is a TOML file with arguments of prune_network, and a table [overrides.LAYER] for each
layer that is treated otherwise. Options on the command line win."""

#: Said after pruning by l1 to a number of zeros that was asked for.
HINT = (
    "These are the weights of least l1 norm at the errors reached, with proof. For accuracy at a "
    "given number of zeros try --solver alps or l0, which prove nothing."
)

#: Options that are arguments of prune_network under the same name.
ARGUMENTS = ("tolerance", "sparsity", "nnz", "max_error", "min_accuracy", "allocation", "mode",
             "output_weights", "passes", "output_refit", "solver", "seed",
             "max_rows", "time_limit", "n_threads")  # fmt: skip

SETTINGS = ("max_iter", "tol_gap")


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    command = add_command(
        commands, "prune", summary="prune the layers of a model file",
        description="Prune the layers of a trained model, and write it back.", example=EXAMPLE,
    )  # fmt: skip
    add_model_options(command)
    command.add_argument("--heldout", metavar="FILE",
                         help="other samples: for errors, and to spread budgets")  # fmt: skip
    command.add_argument("-o", "--output", type=Path, metavar="FILE",
                         help="pruned model, in the format of MODEL")  # fmt: skip
    budgets = command.add_argument_group("budget (one; or a recipe that holds it)")
    budget = budgets.add_mutually_exclusive_group()
    budget.add_argument("--tolerance", type=float, metavar="G",
                        help="radius of every layer, relative to its outputs")  # fmt: skip
    budget.add_argument("--sparsity", type=float, metavar="S", help="fraction of zeros")
    budget.add_argument("--nnz", type=int, metavar="N", help="number of nonzero weights")
    budget.add_argument("--max-error", type=float, metavar="E",
                        help="largest relative error of the model's output")  # fmt: skip
    budget.add_argument("--min-accuracy", type=float, metavar="A",
                        help="least accuracy (or R2) on the labels of --validation")  # fmt: skip
    how = command.add_argument_group("how")
    how.add_argument("--allocation", metavar="NAME",
                     help="how a budget of the whole model is spread over its layers")  # fmt: skip
    how.add_argument("--output-weights", metavar="NAME",
                     help="what the outputs of a layer count: equal, downstream")  # fmt: skip
    how.add_argument("--passes", type=int, metavar="N",
                     help="quick prunings before, to measure the outputs' weights")  # fmt: skip
    how.add_argument("--output-refit", type=int, metavar="STEPS",
                     help="refit all layers together to the model's output")  # fmt: skip
    how.add_argument("--pipeline", metavar="STEPS",
                     help='steps in place of a solver, such as "reweight,swaps,refit"')  # fmt: skip
    how.add_argument("--recipe", type=Path, metavar="FILE", help="arguments in a TOML file")
    add_network_options(how)
    add_solver_options(how, default=None, limit="of the run")
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
    from ..status import Status
    from .data import read_samples
    from .recipe import BUDGETS

    given = prune_arguments(arguments)
    if arguments.recipe is None and not any(name in given for name in BUDGETS):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in BUDGETS)
        raise UsageError(f"give a budget, one of {options}, or a --recipe that holds one")
    _check_files(arguments, given.get("checkpoint"))
    model, calibration, validation, score = read_data(arguments)
    heldout = None if _is_chosen(given) else validation
    if arguments.heldout is not None:
        heldout = read_samples(arguments.heldout, model, flag="--heldout")
    if "min_accuracy" in given:
        if score is None:
            raise UsageError("--min-accuracy needs labels: --validation FILE.npz with X and y")
        given["accuracy"] = score
    screen = terminal.make_screen(arguments.quiet or arguments.json)
    if arguments.dry_run:
        plan = plan_network(model.network, calibration.X, **given)
        _show_plan(screen, plan, arguments.json)
        return PROVED
    with screen.progress() as update:
        result = prune_network(
            model.network, calibration.X, X_heldout=None if heldout is None else heldout.X,
            callback=terminal.layer_reporter(screen, update), **given,
        )  # fmt: skip
    code = _finish(arguments, model, result, score, screen)
    if result.status is Status.OPTIMAL and not {"sparsity", "nnz"}.isdisjoint(given):
        screen.line(HINT)
    return code


def prune_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of prune_network from the recipe and the command line together."""
    from .recipe import combine, read_pipeline, read_recipe

    recipe = {} if arguments.recipe is None else read_recipe(arguments.recipe)
    given = given_options(arguments, ARGUMENTS)
    settings = given_options(arguments, SETTINGS)
    if settings:
        given["settings"] = settings
    if arguments.exclude is not None:
        given["skip"] = arguments.exclude
    if arguments.pipeline is not None:
        given["pipeline"] = read_pipeline(arguments.pipeline)
    if arguments.checkpoint is not None:
        given["checkpoint"] = arguments.checkpoint
    return combine(recipe, given)


def _is_chosen(given: Mapping[str, Any]) -> bool:
    """Return whether layers are measured to spread a budget, for which held-out samples count.

    Those that measure the answer must then be others.
    """
    searched = not {"max_error", "min_accuracy"}.isdisjoint(given)
    return searched or given.get("allocation", "uniform") != "uniform"


def _check_files(arguments: argparse.Namespace, checkpoint: str | Path | None) -> None:
    """Raise for files that cannot be written, before anything is read."""
    from ..frameworks.files import check_target

    if arguments.output is None and not arguments.dry_run:
        raise UsageError("give the pruned model a file: --output FILE (see nettrim prune --help)")
    check_outputs((arguments.output, arguments.report), *sources_of(arguments))
    if arguments.output is not None:
        check_target(arguments.model, arguments.output)
    if arguments.resume and checkpoint is None:
        raise UsageError("--resume needs the folder to go on from: --checkpoint DIR")
    if checkpoint is None or arguments.resume or arguments.dry_run:
        return
    folder = Path(checkpoint)
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


def _finish(
    arguments: argparse.Namespace,
    model: ModelFile,
    result: PruningResult,
    score: Score | None,
    screen: Screen,
) -> int:
    """Write the files, say what was found, and return the exit code."""
    from .. import terminal
    from ..status import Status

    terminal.show_network(screen, result)
    scores: dict[str, Any] = {}
    facts = {}
    if score is not None:
        scores = {
            "score": score.kind, "trained": score(result.original), "pruned": score(result.network)
        }  # fmt: skip
        trained, pruned = (score.shown(scores[name]) for name in ("trained", "pruned"))
        screen.line(f"{score.kind} on {len(score.y)} samples: {trained} -> {pruned}")
        kind = f"{score.kind[0].upper()}{score.kind[1:]}"
        facts[kind] = pruned, f"{trained} before; {len(score.y):,} validation samples"
    with writing(arguments.output):
        note = model.write(result.network, arguments.output, sparse=arguments.sparse)
    before, after = (os.path.getsize(path) for path in (arguments.model, arguments.output))
    screen.line(f"Wrote {arguments.output} ({after:,} bytes; {arguments.model} has {before:,}).")
    if note:
        screen.line(f"--sparse changed nothing: {note}.")
    if arguments.report is not None:
        with writing(arguments.report):
            title = f"{arguments.model.name}, pruned"
            result.write_report(arguments.report, title=title, facts=facts)
        screen.line(f"Wrote {arguments.report}.")
    if arguments.json:
        print(json.dumps(result.to_dict() | ({"validation": scores} if scores else {})))
    if result.status is Status.INTERRUPTED:
        return INTERRUPTED
    done = (Status.OPTIMAL, Status.FEASIBLE, Status.PRUNED)
    return PROVED if result.status in done else UNPROVED
