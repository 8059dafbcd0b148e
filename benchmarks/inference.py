"""When are sparse matrices faster than dense ones, and when are sparse files smaller?

Layers in float32 with random zeros compute a batch as they are (numpy's BLAS) and as scipy's CSR
matrices, in turn, so that a busy machine slows both. A speed-up is the fastest dense turn over the
fastest sparse one: below 1 the dense layer wins. Every thread count has a fresh process. Where more
threads make the dense layer slower than one, they waited for busy cores, and the case counts for
nothing: it is called disturbed.

    python -m benchmarks.inference

writes the tables of docs/storage.md and the plot anew from benchmarks/results/inference.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .__main__ import write_atomically
from .environment import ROOT
from .measure import in_fresh_process, pool_report, say
from .pages import fill_page, table

RESULT = ROOT / "benchmarks" / "results" / "inference.json"
PAGE = ROOT / "docs" / "storage.md"

#: The tables stand between these two lines of the page.
SPEED_MARKS = ("<!-- speed of inference.json -->", "<!-- end of speed -->")
SIZE_MARKS = ("<!-- sizes of inference.json -->", "<!-- end of sizes -->")

#: Shapes of W, and of one sample.
LAYERS = (
    ((784, 300), (784,)),
    ((1024, 1024), (1024,)),
    ((4096, 1024), (4096,)),
    ((32, 16, 5, 5), (16, 14, 14)),
)
DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
BATCHES = (1, 8, 64, 512)

#: The array whose bytes are counted.
STORED = (1024, 1024)

#: A case is disturbed when more threads make the dense layer slower than one by more than this.
SPINNING = 1.25

#: Speed-ups that the plot names.
TICKS = (0.125, 0.25, 0.5, 1, 2, 4, 8)

#: One timing lasts at least this long, in calls of a short one. Turns of a case: at least, at most.
SHORTEST = 1e-3
TURNS = (5, 60)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the thread counts and the time per case."""
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1 and all cores")
    parser.add_argument("--seconds", type=float, default=0.3, help="per case, roughly")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every layer, density and batch, and count the bytes of one array."""
    from nettrim_solver.threads import usable_cores

    threads = args.threads or sorted({1, usable_cores()})
    layers, densities, batches = LAYERS, DENSITIES, BATCHES
    if args.quick:
        layers, densities, batches, threads = LAYERS[:1], (0.05, 0.5), (1, 64), threads[:1]
    runs = []
    for n_threads in threads:
        say(f"threads: {n_threads}")
        runs.append({"n_threads": n_threads} | in_fresh_process(
            "benchmarks.inference:measured", n_threads, layers=layers, densities=densities,
            batches=batches, seconds=0.01 if args.quick else args.seconds,
        ))  # fmt: skip
    mark_disturbed(runs)
    return {
        "dtype": "float32", "runs": runs, "stored_shape": STORED,
        "sizes": [stored(density) for density in DENSITIES],
    }  # fmt: skip


def measured(
    layers: list[Any], densities: list[float], batches: list[int], seconds: float
) -> dict[str, Any]:
    """Return a case for every layer, density and batch, in this process."""
    from nettrim_solver.network import Conv2d, Dense
    from nettrim_solver.network.sparse_network import sparse_layer

    rng = np.random.default_rng(0)
    cases = []
    for shape, sample in layers:
        for density in densities:
            W = random_weights(rng, shape, density)
            dense = Dense(W, np.zeros(shape[1])) if W.ndim == 2 else Conv2d(W, np.zeros(shape[0]))
            sparse = sparse_layer(dense)
            for batch in batches:
                X = rng.standard_normal((batch, *sample)).astype(np.float32)
                found = in_turn(partial(dense.apply, X), partial(sparse.apply, X), seconds)
                cases.append({"shape": shape, "density": density, "batch": batch} | found)
        say(f"  {name_of(shape)}")
    return {"cases": cases} | pool_report()


def mark_disturbed(runs: list[dict[str, Any]]) -> None:
    """Say of every case whether its threads got in each other's way, next to the first run."""
    for part in runs:
        for case, alone in zip(part["cases"], runs[0]["cases"], strict=True):
            case["disturbed"] = case["dense_seconds"] > SPINNING * alone["dense_seconds"]


def random_weights(rng: np.random.Generator, shape: tuple[int, ...], density: float) -> Any:
    """Return Gaussian float32 weights of which exactly a fraction is nonzero."""
    W = np.zeros(int(np.prod(shape)), dtype=np.float32)
    kept = rng.permutation(W.size)[: round(density * W.size)]
    W[kept] = rng.standard_normal(len(kept))
    return W.reshape(shape)


def in_turn(
    dense: Callable[[], object], sparse: Callable[[], object], seconds: float
) -> dict[str, Any]:
    """Return the fastest of two calls that take turns, and the quartiles of their ratio."""
    calls = (dense, sparse)
    counts = [max(1, round(SHORTEST / timed(call, 3))) for call in calls]
    times: list[tuple[float, float]] = []
    started = time.perf_counter()
    while len(times) < TURNS[0] or (
        len(times) < TURNS[1] and time.perf_counter() - started < seconds
    ):
        first, second = (timed(call, count) for call, count in zip(calls, counts, strict=True))
        times.append((first, second))
    low, middle, high = statistics.quantiles([one / other for one, other in times], n=4)
    fastest = min(one for one, _ in times), min(other for _, other in times)
    return {
        "dense_seconds": fastest[0], "sparse_seconds": fastest[1],
        "speed_up": fastest[0] / fastest[1], "speed_up_quartiles": [low, middle, high],
        "turns": len(times),
    }  # fmt: skip


def timed(call: Callable[[], object], count: int) -> float:
    """Return the mean seconds of a few calls."""
    started = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - started) / count


def stored(density: float) -> dict[str, Any]:
    """Return the bytes of random weights in every format, and of ``relative`` at its best."""
    from nettrim_solver.storage import count_bytes, pack

    W = random_weights(np.random.default_rng(0), STORED, density)
    formats = {name: size._asdict() for name, size in count_bytes(W).items()}
    best = pack(W, "relative", None)
    formats["relative, best gap"] = count_bytes(W, None)["relative"]._asdict()
    return {"density": density, "formats": formats, "best_gap_bits": best.gap_bits}


# Tables and plot -------------------------------------------------------------------------------


def name_of(shape: tuple[int, ...]) -> str:
    """Return a layer's shape in words."""
    return ("conv " if len(shape) == 4 else "") + " x ".join(map(str, shape))


def speed_rows(part: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the speed-ups at one thread count."""
    cases = part["cases"]
    densities = sorted({case["density"] for case in cases}, reverse=True)
    rows: dict[tuple[str, int], list[str]] = {}
    for case in sorted(cases, key=lambda case: -case["density"]):
        key = (name_of(case["shape"]), case["batch"])
        shown = "disturbed" if case["disturbed"] else f"{case['speed_up']:.2f}"
        rows.setdefault(key, []).append(shown)
    order = {(name_of(case["shape"]), case["batch"]): None for case in cases}
    head = ["layer", "batch", *(f"{100 * density:g} % kept" for density in densities)]
    return head, [[name, str(batch), *rows[name, batch]] for name, batch in order]


def size_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the bytes, in bits per weight."""
    n_weights = int(np.prod(result["stored_shape"]))
    names = list(result["sizes"][0]["formats"])
    rows = [
        [
            f"{100 * entry['density']:g} %",
            *(f"{8 * sum(entry['formats'][name].values()) / n_weights:.2f}" for name in names),
            str(entry["best_gap_bits"]),
        ]
        for entry in result["sizes"]
    ]
    return ["kept", *names, "best gap bits"], rows


def speed_markdown(result: dict[str, Any]) -> str:
    """Return the tables of speed-ups."""
    lines = []
    for part in result["runs"]:
        load = part["load_average"]
        shared = "" if load is None else f" (load average {load[0]:g} at the end)"
        lines += [f"BLAS threads: {part['n_threads']}{shared}.", "", *table(*speed_rows(part)), ""]
    return "\n".join(lines[:-1])


def size_markdown(result: dict[str, Any]) -> str:
    """Return the table of bits per weight."""
    return "\n".join(table(*size_rows(result)))


def describe(result: dict[str, Any]) -> str:
    """Return the tables, and where the dense layer wins."""
    lines = ["speed-up of CSR over dense BLAS, float32 (below 1 the dense layer is faster)", ""]
    for part in result["runs"]:
        cases = [case for case in part["cases"] if not case["disturbed"]]
        lost = [case["density"] for case in cases if case["speed_up"] < 1]
        lines += [
            f"BLAS threads: {part['n_threads']}", "", aligned(*speed_rows(part)), "",
            f"dense wins {len(lost)} of {len(cases)} undisturbed cases"
            + (f", the sparsest at {100 * min(lost):g} % nonzero" if lost else ""), "",
        ]  # fmt: skip
    lines += [f"bits per weight of {name_of(result['stored_shape'])} float32", ""]
    return "\n".join([*lines, aligned(*size_rows(result))])


def aligned(head: list[str], rows: list[list[str]]) -> str:
    """Return a table as text in columns."""
    from nettrim_solver.network.result import aligned as columns

    return columns([head, *rows])


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw the speed-up over the density, a panel per layer and thread count."""
    from matplotlib.figure import Figure

    runs = result["runs"]
    shapes = list(dict.fromkeys(tuple(case["shape"]) for case in runs[0]["cases"]))
    size = (3.1 * len(shapes) + 0.6, 2.8 * len(runs) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(runs), len(shapes), sharex=True, sharey=True, squeeze=False)
    for line, part in zip(panels, runs, strict=True):
        for panel, shape in zip(line, shapes, strict=True):
            cases = [case for case in part["cases"] if tuple(case["shape"]) == shape]
            for batch in dict.fromkeys(case["batch"] for case in cases):
                chosen = [
                    case for case in cases if case["batch"] == batch and not case["disturbed"]
                ]
                panel.plot(
                    [case["density"] for case in chosen],
                    [case["speed_up"] for case in chosen], marker=".", label=f"batch {batch}",
                )  # fmt: skip
            panel.axhline(1.0, color="black", linewidth=0.8)
            panel.set(xscale="log", yscale="log", title=name_of(shape))
            panel.spines[["top", "right"]].set_visible(False)
        threads = part["n_threads"]
        line[0].set_ylabel(f"dense / sparse seconds\n{threads} BLAS thread{'s'[: threads > 1]}")
    panels[0][0].set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])  # shared by the panels
    for panel in panels.flat:
        panel.minorticks_off()
    for panel in panels[-1]:
        named = [density for density in DENSITIES if density != 0.3]  # too close to the next
        panel.set_xticks(named, [f"{100 * density:g} %" for density in named])
        panel.set_xlabel("nonzero weights")
    panels[0][-1].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Put the tables of the full run into the page, between its marks, and draw its plot."""
    fill_page(PAGE, SPEED_MARKS, RESULT, speed_markdown)
    fill_page(PAGE, SIZE_MARKS, RESULT, size_markdown)
    result = json.loads(RESULT.read_text(encoding="utf-8"))["result"]
    write_atomically(RESULT.with_suffix(".png"), lambda path: plot(result, path))


if __name__ == "__main__":
    main()
