"""``nettrim demo``: prune the shipped digit classifier to sparsities, and within a tolerance."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import PROVED, UNPROVED, add_command, add_run_options, check_writable

if TYPE_CHECKING:
    from ..network import PruningResult
    from ..terminal import Screen

EXAMPLE = """example:
  nettrim demo --output pruned

Prunes the shipped 64-256-128-10 digit classifier: to 80, 90 and 95 % zeros, by magnitude and by the
recipe "best"; then every layer within 10 % of its outputs, with a proof. Writes the networks,
zeros-0.9.npz (W0, b0, W1, ...) and tolerance-0.1.npz, and zeros-accuracy.png into the folder."""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    command = add_command(
        commands, "demo", summary="prune a small trained network, beside magnitude pruning",
        description="Prune a trained digit classifier to sparsities and within a tolerance.",
        example=EXAMPLE,
    )  # fmt: skip
    command.add_argument("--sparsities", type=float, nargs="+", metavar="S",
                         help="fractions of zeros (default: 0.8 0.9 0.95)")  # fmt: skip
    command.add_argument("--tolerance", type=float, metavar="G",
                         help="relative radius of every layer (default: 0.1)")  # fmt: skip
    add_run_options(command, "of every network")
    command.add_argument("--output", type=Path, default=Path("nettrim-demo"), metavar="DIR",
                         help="folder for the results (default: nettrim-demo)")  # fmt: skip
    command.add_argument("--json", action="store_true", help="print the results as JSON, no text")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run ``nettrim demo``."""
    from .. import demo, terminal
    from ..exceptions import MissingDependencyError
    from ..frameworks import to_npz
    from ..network import prune_network
    from ..network.target import Budget
    from ..plotting import import_figure

    folder, quiet = arguments.output, arguments.quiet or arguments.json
    screen = terminal.Screen(quiet)
    sparsities = demo.checked_sparsities(arguments.sparsities or demo.SPARSITIES)
    tolerance = demo.TOLERANCE if arguments.tolerance is None else arguments.tolerance
    Budget.of(tolerance=tolerance)  # Checked before any work.
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder / "zeros-accuracy.png")
    drawn = True
    try:
        import_figure()
    except MissingDependencyError as error:
        drawn = False
        screen.line(f"No picture: {error}")
    digits = demo.load_demo_network()
    trained = digits.accuracy(digits.network)
    screen.line(
        f"Digits classifier 64-256-128-10, held-out accuracy {100 * trained:.1f} %;\n"
        f"{len(digits.y_train):,} training samples calibrate, {len(digits.y_test):,} others score."
    )
    options = {
        "n_threads": arguments.n_threads, "time_limit": arguments.time_limit,
        "progress": False if quiet else None,
    }  # fmt: skip
    scores: dict[str, list[tuple[float, float]]] = {}
    screen.line("\nzeros %  recipe     accuracy %  seconds")
    for name, sparsity, result in demo.prune_demo(digits, sparsities, **options):
        accuracy = digits.accuracy(result.network)
        scores.setdefault(name, []).append((result.sparsity, accuracy))
        screen.line(f"{100 * result.sparsity:7.1f}  {name:<9}  {100 * accuracy:10.1f}  "
                    f"{result.seconds:7.1f}")  # fmt: skip
        if name == "best":
            to_npz(result.network, folder / f"zeros-{sparsity:g}.npz")
    result = prune_network(digits.network, digits.X_train, tolerance=tolerance, **options)
    accuracy = digits.accuracy(result.network)
    to_npz(result.network, folder / f"tolerance-{tolerance:g}.npz")
    if drawn:
        demo.save_plot(scores, trained, folder / "zeros-accuracy.png")
    proved = show_tolerance(screen, result, tolerance, accuracy)
    screen.line(f"Wrote the networks{' and zeros-accuracy.png' * drawn} to {folder}.")
    if arguments.json:
        print(json.dumps({
            "trained": trained, "zeros": scores,
            "tolerance": result.to_dict() | {"accuracy": accuracy, "proved": proved},
        }))  # fmt: skip
    return PROVED if proved else UNPROVED


def show_tolerance(
    screen: Screen, result: PruningResult, tolerance: float, accuracy: float
) -> bool:
    """Print both stages of every layer, and return whether all of the first are proved optimal.

    The first is the convex program with its proof, the last as few weights as were found within the
    same radius.
    """
    from ..status import Status

    rows, proofs = [], []
    for one in result.layers:
        first = one.stages[0] if one.stages else one
        proofs.append(first.status is Status.OPTIMAL)
        within = "-"
        if one.epsilon and one.distance is not None:
            within = f"{one.distance / one.epsilon:.4f}"
        rows.append((
            one.name, "x".join(map(str, one.shape)), f"{100 * (1 - first.nnz / one.size):.1f}",
            "-" if first.gap is None else f"{first.gap:.0e}", str(first.status or one.outcome),
            f"{100 * one.sparsity:.1f}", within,
        ))  # fmt: skip
    screen.line(
        f"\nEvery layer within {100 * tolerance:g} % of its outputs: {100 * result.sparsity:.1f} % "
        f"zeros,\naccuracy {100 * accuracy:.1f} %, {result.seconds:.1f} s. The convex program of "
        "each layer, and the fewest\nweights found within the same radius:"
    )
    header = ("layer", "shape", "convex zeros %", "gap", "status", "final zeros %", "error/radius")
    screen.table(header, rows, expendable=("shape",))
    proved = all(proofs)
    unproved = f"{len(proofs) - sum(proofs)} of {len(proofs)} convex programs are without proof."
    screen.line("Every convex program is proved optimal." if proved else unproved)
    return proved
