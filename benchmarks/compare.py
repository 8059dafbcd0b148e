"""What is Net-Trim worth against the other pruners, at equal numbers of zeros?

Every solver prunes the same layers to half, 70 % and 90 % zeros, with and without refit and swaps,
and is judged on the samples it saw and on fresh ones, beside figures that others' code gave:

- a: X 2048 x 512, Gaussian with correlated inputs, W 512 x 512 Gaussian, linear target;
- b: the same with X clipped at zero; c: as a with 256 samples, fewer than inputs;
- d: LeNet-300-100 layer by layer (needs a folder with its data, named by NETTRIM_DATA);
- e: redundant inputs, where sparse weights compute the same as the dense trained ones;
- f: a ReLU target of which a fifth is active;
- wall_clock: Net-Trim, L-OBS and DNS at the zeros that Net-Trim leaves at given radii.

Each case runs in a process of its own, on one thread, and is kept as soon as it is done: a run that
was interrupted goes on after its last case. With ``--case`` the other cases stay as they were in
the result file; every case says from when it is.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nettrim_solver import Problem, Solution, available_solvers, compare, solve
from nettrim_solver.comparison import Row
from nettrim_solver.reweighting import reweight
from nettrim_solver.solvers import SOLVERS

from . import __main__ as harness
from . import compare_report
from .compare_layers import Layer, MissingDataError, layers
from .environment import environment, load_average
from .measure import clocked, in_fresh_process, say

CASES = ("a", "b", "c", "d", "e", "f", "wall_clock")

SPARSITIES = (0.5, 0.7, 0.9)

PRUNERS = [name for name in available_solvers() if not SOLVERS[name].convex]

#: Runs of every pruner whose least seconds count.
REPEATS = 5

#: Methods whose supports are worth the swaps.
SWAPPED = ("exact_obs", "alps")

#: The stages of Net-Trim; the last begins where the one before ended.
STAGES = ("net-trim l1", "net-trim reweighted", "net-trim l0")

#: Most seconds of any one search of Net-Trim; its answer so far then stands in the table.
PATIENCE = 180.0

#: Seconds from which a row is reported as soon as it is there.
SLOW = 5.0

#: Published damping of L-OBS, on X'X / P; for inputs of norm near one it means as much here.
OBS_DAMPING = 1e-6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--case", action="append", choices=CASES, help="run this case alone (may be repeated)"
    )
    parser.add_argument("--seeds", type=int, default=1, help="seeds of the cases a, b and c")
    parser.add_argument("--fresh", action="store_true", help="forget an interrupted run")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the cases that are asked for, and take the others from where they are."""
    stem = "compare-quick" if args.quick else "compare"
    partial = harness.RESULTS / f"{stem}.partial.json"
    done = {} if args.fresh or not args.save else interrupted(partial)
    for key, case, seed in chosen(args.case, args.seeds):
        if key in done:
            say(f"case {key}: kept from {done[key]['environment']['date']}")
            continue
        say(f"case {key}")
        done[key] = in_fresh_process(
            "benchmarks.compare:run_case", 1, case=case, seed=seed, quick=args.quick
        )
        if args.save:
            harness.RESULTS.mkdir(exist_ok=True)
            text = json.dumps(harness.plain(done), allow_nan=False)
            harness.write_atomically(partial, lambda path, text=text: path.write_text(text))
    if args.case:
        done = earlier(harness.RESULTS / f"{stem}.json") | done
    result: dict[str, Any] = {
        "quick": bool(args.quick),
        "sparsities": SPARSITIES,
        "cases": {key: done[key] for key in sorted(done, key=place)},
    }
    result["verdicts"] = compare_report.verdicts(result)
    if args.save:
        partial.unlink(missing_ok=True)
    return result


def describe(result: dict[str, Any]) -> str:
    """Return the tables of all layers, and what is not as wanted."""
    return compare_report.describe(result)


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw held-out errors over those of "alps" against zeros, a panel per layer."""
    compare_report.plot(result, path)


def chosen(cases: Iterable[str] | None, n_seeds: int) -> list[tuple[str, str, int]]:
    """Return key, case and seed of everything to run."""
    runs = []
    for case in cases or CASES:
        for seed in range(n_seeds if case in "abc" else 1):
            runs.append((case if seed == 0 else f"{case}, seed {seed}", case, seed))
    return runs


def place(key: str) -> tuple[int, str]:
    """Return what the keys of the cases are sorted by."""
    return CASES.index(key.partition(",")[0]), key


def interrupted(path: Path) -> dict[str, Any]:
    """Return the finished cases of a run of the same revision that did not come to its end."""
    here = environment()
    same = ("git_revision", "nettrim_solver", "cpu", "packages")
    return {
        key: case
        for key, case in _read(path).items()
        if all(case["environment"][name] == here[name] for name in same)
    }


def earlier(path: Path) -> dict[str, Any]:
    """Return the cases of the last result file."""
    record = _read(path)
    return record["result"]["cases"] if record else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


# A case -----------------------------------------------------------------------------------------


def run_case(case: str, seed: int, quick: bool) -> dict[str, Any]:
    """Run one case (a task for a process of its own)."""
    started, load = time.perf_counter(), load_average()
    entry: dict[str, Any] = {"case": case, "seed": seed}
    try:
        if case == "wall_clock":
            from .compare_wall_clock import side_by_side

            entry["layers"] = side_by_side(quick)
        else:
            if not quick:
                warm_up()
            entry["layers"] = [
                run_layer(layer, measure=case == "a") for layer in layers(case, quick, seed)
            ]
    except MissingDataError as reason:
        entry |= {"layers": [], "skipped": str(reason)}
    return entry | {
        "n_threads": 1,
        "seconds": time.perf_counter() - started,
        "environment": environment() | {"load_average_before": load, "command": None},
    }


def warm_up() -> None:
    """Compile every kernel that the cases use."""
    from .compare_layers import QUICK, gaussian, relu_target

    for layer in (gaussian("a", QUICK, 0), relu_target(QUICK, 0)):
        targets = ["linear", "box"]
        compare(layer.problem, sparsities=[0.5], refit=targets, swaps=targets, n_threads=1)


def run_layer(layer: Layer, measure: bool) -> dict[str, Any]:
    """Let every solver prune one layer; and measure memory and time once more, each apart."""
    started = time.perf_counter()
    plain = [name for name in PRUNERS if name not in SWAPPED]
    swapped = [name for name in SWAPPED if name in PRUNERS]
    targets = ["linear", "box"] if layer.box else ["linear"]
    net_trim = NetTrim(settings_of(layer, ["l0"], ()).get("l0", {}))
    rows = [
        *rows_of(layer, plain, refit="linear"),
        *rows_of(layer, swapped, refit=targets, swaps=targets),
        *net_trim.with_all_seconds(rows_of(layer, net_trim.stages(), refit=targets, swaps=targets)),
    ]
    measured = {}
    if measure:
        rows = with_memory(layer, rows)
        measured["repeats"] = repeats(layer)
    say(f"  {layer.name}: {time.perf_counter() - started:.0f} s")
    problem = layer.problem
    return {
        "name": layer.name,
        "shape": [problem.n_samples, problem.n_inputs, problem.n_outputs],
        "n_heldout": len(layer.heldout["X_heldout"]),
        "metric": layer.metric,
        "trained_accuracy": (
            None if layer.accuracy is None else layer.accuracy(problem.W, problem.b)
        ),
        "rows": [asdict(row) for row in rows],
    } | measured


class NetTrim:
    """Net-Trim stage by stage: the l1 norm, l1 weights of its own, the count of the nonzeros."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.answers: dict[float, tuple[Solution, float]] = {}

    def stages(self) -> dict[str, Any]:
        """Return the functions that :func:`compare` calls, by the names of the rows."""
        return dict(zip(STAGES, (self.l1, self.reweighted, self.l0), strict=True))

    def l1(self, problem: Problem, sparsity: float, start: Solution | None) -> Solution:
        """Return the answer of the convex program with equal l1 weights."""
        return solve(problem, sparsity=sparsity, warm_start=start, time_limit=PATIENCE)

    def reweighted(self, problem: Problem, sparsity: float, start: Solution | None) -> Solution:
        """Return that of the last of the programs whose l1 weights follow the answers."""
        started = time.perf_counter()
        answer = reweight(problem, sparsity=sparsity, time_limit=PATIENCE)
        self.answers[sparsity] = answer, time.perf_counter() - started
        return answer

    def l0(self, problem: Problem, sparsity: float, start: Solution | None) -> Solution:
        """Return the answer to the count in place of the l1 norm, from the convex one."""
        begin = self.answers[sparsity][0]
        return solve(problem, "l0", sparsity=sparsity, warm_start=begin, **self.options)

    def with_all_seconds(self, rows: Iterable[Row]) -> list[Row]:
        """Return the rows with the seconds of the whole way."""
        return [
            replace(row, seconds=row.seconds + self.answers[row.sparsity][1])
            if row.solver == STAGES[-1] and row.seconds is not None
            else row
            for row in rows
        ]


def rows_of(layer: Layer, solvers: Any, **refinements: Any) -> list[Row]:
    """Return the rows of some solvers."""
    found = compare(
        layer.problem, solvers=solvers, sparsities=SPARSITIES, accuracy=layer.accuracy,
        settings=settings_of(layer, solvers, refinements), n_threads=1, callback=say_if_slow,
        **layer.heldout, **refinements,
    )  # fmt: skip
    return list(found.rows)


def say_if_slow(row: Row) -> None:
    """Report the rows that one waits for."""
    if row.seconds is not None and row.seconds > SLOW:
        say(f"    {row.label} at {row.sparsity:g}: {row.seconds:.0f} s")


def settings_of(layer: Layer, solvers: Iterable[str], refinements: Iterable[str]) -> dict[str, Any]:
    """Return the options that make the runs those of the figures beside them."""
    if layer.damping is None:
        return {"obs": {"damping": OBS_DAMPING}} if "obs" in solvers else {}
    names = [name for name in solvers if name in SOLVERS and name not in layer.own_damping]
    names += [name for name in ("refit", "swaps") if name in refinements]
    return {name: {"damping": layer.damping} for name in names}


def repeats(layer: Layer) -> dict[str, list[dict[str, float]]]:
    """Return wall and processor seconds of the pruners, of several runs at the first sparsity.

    On a machine that others use one run says little. The least of several is what the solver needs.
    """
    options = settings_of(layer, PRUNERS, ())
    problem, found = layer.problem, {}
    for name in PRUNERS:
        given = options.get(name, {})
        spent = [
            clocked(lambda: solve(problem, name, sparsity=SPARSITIES[0], n_threads=1, **given))[1]  # noqa: B023
            for _ in range(REPEATS)
        ]
        found[name] = [asdict(one) for one in spent]
    return found


def with_memory(layer: Layer, rows: list[Row]) -> list[Row]:
    """Return the rows with the peak of each solver at the first sparsity, measured apart."""
    solvers = [name for name in dict.fromkeys(row.solver for row in rows) if name in SOLVERS]
    solvers.append("admm")
    found = compare(
        layer.problem, solvers=solvers, sparsities=SPARSITIES[:1], n_threads=1,
        settings=settings_of(layer, solvers[:-1], ()), measure_memory=True,
    )  # fmt: skip
    peaks = {(row.label, row.sparsity): row.peak_memory for row in found.rows}
    peaks[STAGES[0], SPARSITIES[0]] = peaks["admm", SPARSITIES[0]]
    return [replace(row, peak_memory=peaks.get((row.label, row.sparsity))) for row in rows]
