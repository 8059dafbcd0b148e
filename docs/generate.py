"""Writes what these pages take from the code and from result files: ``python docs/generate.py``.

- ``settings.md``: solvers, statuses and settings, from the registry and the docstrings;
- the table of activations in ``mathematics.md``, from their classes;
- the sections of ``mathematics/pruners.md``, from the registry of solvers;
- the tables of ``depth.md``, ``limits.md``, ``best-recipe.md`` and the README, from files under
  benchmarks/results;
- ``gallery/*.png``: the pictures of ``gallery.md``, by the very code that stands there.

Tests compare the pages with what would be written.
"""

import contextlib
import importlib
import inspect
import json
import re
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.ablation import describe  # noqa: E402
from benchmarks.pages import table, write_between  # noqa: E402
from benchmarks.trials import chosen, mean  # noqa: E402
from nettrim_solver import Status  # noqa: E402
from nettrim_solver.activations import ACTIVATIONS  # noqa: E402
from nettrim_solver.solvers import ALL_FORMULATIONS, SOLVERS  # noqa: E402
from nettrim_solver.solvers.pruning import PruningSettings  # noqa: E402

DEPTH_MARKS = ("<!-- tables of depth.json -->", "<!-- end of the tables -->")
ACTIVATION_MARKS = ("<!-- activations -->", "<!-- end of the activations -->")
PRUNER_MARKS = ("<!-- descriptions -->", "<!-- end of the descriptions -->")
README_MARKS = ("<!-- table of lenet.json -->", "<!-- end of the table -->")
ABLATION_MARKS = ("<!-- ablation table -->", "<!-- end of the ablation table -->")
LIMITS_MARKS = ("<!-- figures of result files -->", "<!-- end of the figures -->")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
ENTRY = re.compile(r"^(\w[\w, ]*)(?: : (.*))?$")

INTRODUCTION = """# Solvers, statuses, settings

This page is written from the code by `python docs/generate.py`. Which solver to choose:
[How to choose](how-to-choose.md); what each computes: [Mathematics](mathematics.md); the fields of
a recipe: [Networks](networks.md#recipes).

## Solvers

`solve(problem, solver)` refuses what a solver cannot do before any work, and names the solvers
that can.
"""

STATUSES = """
## Statuses

`solution.status` is the worst status of the outputs, `solution.statuses` has one per output, and
`solution.explain()` says the same in words. A status equals its word: `status == "optimal"`.
"""

SETTINGS = """
## Settings

Settings are keyword arguments of `solve`, `solve(problem, "alps", damping=0.1)`. In a recipe they
stand beside the step, `Recipe(steps={"step": "alps", "damping": 0.1})`. They are checked by name,
type and range before any work. Every solver also takes `tol_gap` and `tol_feas`.
"""


def documented(settings):
    """Return type and text of every attribute in a numpydoc docstring, by name."""
    lines = inspect.getdoc(settings).splitlines()
    found, names = {}, []
    if "Attributes" not in lines:
        return found
    start = lines.index("Attributes") + 2
    for line, following in zip(lines[start:], [*lines[start + 1 :], ""], strict=True):
        if following.startswith("---"):
            break
        entry = ENTRY.match(line)
        if entry:
            names = entry.group(1).split(", ")
            found |= {name: (entry.group(2) or "", []) for name in names}
        elif line.strip():
            for name in names:
                found[name][1].append(line.strip())
    return {name: (kind, " ".join(text)) for name, (kind, text) in found.items()}


def settings_rows(settings):
    """Return a row for every field that a class of settings adds or changes."""
    about = documented(settings)
    rows = []
    for field in fields(settings):
        if field.name in vars(settings).get("__annotations__", {}):
            kind, text = about[field.name]
            if field.name not in ("tol_gap", "tol_feas"):
                text = text.replace("|", r"\|")
                rows.append([f"`{field.name}`", kind, f"`{field.default!r}`", text])
    return rows


def settings_of(name):
    """Return the class of settings of a solver."""
    module = importlib.import_module(f"nettrim_solver.solvers.{SOLVERS[name].module}")
    return module.Settings


def settings_section(name, settings):
    """Return the lines of one solver: its own settings, and whose others it takes."""
    rows = settings_rows(settings)
    base = settings.__base__
    lines = ["", f"### {name}", ""]
    if base is not object:
        owner = next((other for other in SOLVERS if settings_of(other) is base), "every pruner")
        others = f"those of {owner}"
        lines += [f"Its own and {others}:", ""] if rows else [f"Just {others}."]
    return lines + (table(["setting", "type", "default", ""], rows) if rows else [])


def solver_rows():
    """Return a row per solver: what it is and what it can do."""

    def mark(can):
        return "yes" if can else "no"

    return [
        [
            f"`{name}`", info.summary, "convex" if info.convex else "pruner",
            "all" if info.formulations == ALL_FORMULATIONS
            else ", ".join(f"`{f}`" for f in sorted(info.formulations)),
            ", ".join(f"`{r}`" for r in sorted(info.radii)),
            mark(info.weights), mark(info.sparse_X), mark(info.needs_W),
            f"`[{info.extra}]`" if info.extra else "",
        ]
        for name, info in SOLVERS.items()
    ]  # fmt: skip


def settings_page():
    """Return the page of solvers, statuses and settings."""
    header = ["solver", "what it is", "kind", "formulations", "radii", "l1 weights",
              "sparse `X`", "needs `W`", "extra"]  # fmt: skip
    lines = [INTRODUCTION, *table(header, solver_rows()), STATUSES]
    lines += table(
        ["status", "meaning", "remedy"], [[f"`{s.label}`", s.message, s.remedy] for s in Status]
    )
    lines += [SETTINGS, "### every pruner", ""]
    lines += table(["setting", "type", "default", ""], settings_rows(PruningSettings))
    for name in SOLVERS:
        lines += settings_section(name, settings_of(name))
    return "\n".join(lines).rstrip() + "\n"


def target_of(activation):
    """Return what an output asks of its pre-activation, in words."""
    if activation.needs_preactivation:
        return "the stored pre-activation"
    ends = np.array([end for end in activation.range if np.isfinite(end)])
    lower, upper = activation.preimage(ends)
    flat = [f"y = {end:g}" for end in ends[lower < upper]]
    return f"a half-line for {' and '.join(flat)}, else a point" if flat else "a point"


def activations_table():
    """Return a row for every activation: its function, its target, its Lipschitz constant."""
    rows = [
        [f"`{name}`", inspect.getdoc(cls).splitlines()[0].replace("``", "`"),
         target_of(cls()), f"{cls().lipschitz:.4g}"]
        for name, cls in ACTIVATIONS.items()
    ]  # fmt: skip
    header = ["`activation`", "function", "target of an output y", "Lipschitz constant"]
    return "\n".join(table(header, rows))


def pruner_sections():
    """Return a section for every pruner, which holds the description of its module."""
    sections = [
        f"## {name}\n\n```{{eval-rst}}\n.. automodule:: nettrim_solver.solvers.{info.module}\n```"
        for name, info in SOLVERS.items()
        if not info.convex
    ]
    return "\n\n".join(sections)


def result_of(name):
    """Return the result of a benchmark."""
    path = HERE.parent / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["result"]


def depth_tables():
    """Return the tables of the depth benchmark as Markdown."""
    from benchmarks import depth

    return depth.describe(result_of("depth"))


def span(values, form=".2f"):
    """Return the range of some numbers as text."""
    values = list(values)
    return f"{min(values):{form}} to {max(values):{form}}"


def over_alps(case, method, samples):
    """Return errors of a method over those of alps, on every layer and sparsity of a case."""
    from benchmarks.compare_report import methods

    for layer in case["layers"]:
        ours, field = methods(layer), samples + layer["metric"]
        for row, unit in zip(ours.get(method, []), ours["alps"], strict=False):
            yield row[field] / unit[field]


def compare_figures():
    """Yield what `compare` says against Net-Trim."""
    cases = result_of("compare")["cases"]
    plain = [cases[key] for key in "abcdf" if key in cases]
    for method in ("net-trim l1", "net-trim l1+refit", "net-trim reweighted+refit"):
        values = [v for case in plain for v in over_alps(case, method, "heldout_")]
        yield f"held-out error of `{method}` over that of `alps` at equal zeros", span(values)
    first = {"layers": cases["d"]["layers"][:1]}
    for samples, words in (("", "the samples it saw"), ("heldout_", "fresh ones")):
        values = over_alps(first, "net-trim l0", samples)
        yield (f"error of `net-trim l0` over that of `alps` on LeNet's first layer, {words}",
               span(values))  # fmt: skip


def layer_figures():
    """Yield what `layer` says of speed."""
    result = result_of("layer")
    for name, posed, words in (
        ("clarabel", True, "Clarabel"),
        ("clarabel", False, "Clarabel, told the joint multiplier that `admm` finds,"),
        ("published", True, "the published ADMM"),
    ):
        entries = result[name] or []
        ratios = [entry["ratio"] for entry in entries if entry.get("posed", True) == posed]
        yield (f"time of {words} over that of `admm` on the same layer",
               span(ratios, ".0f") if ratios else "not in the stored run")  # fmt: skip
    for run in result["runs"]:
        for case in run["cases"]:
            if case["target_pairs"]:
                yield (f"GEMM pairs of `{case['name']}`, threads: {run['n_threads']} (target "
                       f"{case['target_pairs']:g})", f"{case['pairs']:.1f}")  # fmt: skip


def inference_figures():
    """Yield where sparse products lose."""
    cases = [case for run in result_of("inference")["runs"] for case in run["cases"]]
    cases = [case for case in cases if not case["disturbed"]]
    lost = [case["density"] for case in cases if case["speed_up"] < 1]
    yield ("cases in which a dense product is faster than a sparse one",
           f"{len(lost)} of {len(cases)}, down to {100 * min(lost):g} % nonzero")  # fmt: skip


def depth_figures():
    """Yield how far the proved bounds are from what is measured."""
    for scheme in ("parallel", "cascade"):
        last = [
            run["layers"][-1]
            for network in result_of("depth")["networks"]
            for run in network["runs"]
            if run["scheme"] == scheme
        ]
        values = [one["network_bound"] / one["network_error"] for one in last]
        yield f"bound over error at a network's output, {scheme}", span(values)


def sample_figures():
    """Yield what the theorem and real signals are like."""
    columns = result_of("sample_complexity")["columns"]
    gaussian = [c for c in columns if c["kind"] == "gaussian"]
    values = [c["theorem"]["0.5"] / c["quantiles"]["net_trim"]["0.5"] for c in gaussian]
    yield "samples of the theorem over the measured median, Gaussian inputs", span(values, ".0f")
    hidden = [c for c in columns if c["kind"] == "hidden"]
    lost, trials = sum(c["out_of_reach"] for c in hidden), sum(c["trials"] for c in hidden)
    yield ("planted weights that do not come back from all samples there are, hidden signals",
           f"{lost} of {trials}")  # fmt: skip


def limits_table():
    """Return the figures of the limits as Markdown."""
    sources = {
        "compare": compare_figures, "layer": layer_figures, "inference": inference_figures,
        "depth": depth_figures, "sample_complexity": sample_figures,
    }  # fmt: skip
    rows = [
        [words, figure, f"benchmarks/results/{name}.json, `python -m benchmarks {name}`"]
        for name, figures in sources.items()
        for words, figure in figures()
    ]
    return "\n".join(table(["what", "figure", "from"], rows))


#: Columns of the README's table, by the names of their recipes in the result file.
README_RECIPES = {
    "magnitude": "plain magnitude", "alps": "ALPS", "fast": "`recipe=\"fast\"`",
    "best": "`recipe=\"best\"`",
}  # fmt: skip


def readme_table():
    """Return accuracies by sparsity, and seconds, of the methods of the README."""
    result = result_of("lenet")
    rows = chosen(result["rows"], samples=1000)
    lines = []
    for zeros in sorted({row["zeros_asked"] for row in rows}):
        cells = [
            f"{mean(chosen(rows, recipe=name, zeros_asked=zeros), 'score'):.4f}"
            for name in README_RECIPES
        ]
        lines.append([f"{zeros:.0%}", *cells])
    seconds = [f"{mean(chosen(rows, recipe=name), 'cpu_seconds'):.1f}" for name in README_RECIPES]
    lines.append(["CPU seconds", *seconds])
    (dense,) = result["dense"].values()
    return "\n".join(table([f"zeros (dense {dense:.4f})", *README_RECIPES.values()], lines))


def gallery_examples():
    """Return the examples of the gallery: each a whole script."""
    return BLOCK.findall((HERE / "gallery.md").read_text(encoding="utf-8"))


def main():
    """Write all of it."""
    (HERE / "settings.md").write_text(settings_page(), encoding="utf-8")
    write_between(HERE / "mathematics.md", ACTIVATION_MARKS, activations_table())
    write_between(HERE / "mathematics" / "pruners.md", PRUNER_MARKS, pruner_sections())
    write_between(HERE / "depth.md", DEPTH_MARKS, depth_tables())
    write_between(HERE / "limits.md", LIMITS_MARKS, limits_table())
    write_between(HERE.parent / "README.md", README_MARKS, readme_table())
    write_between(HERE / "best-recipe.md", ABLATION_MARKS, describe(result_of("ablation")))
    (HERE / "gallery").mkdir(exist_ok=True)
    with contextlib.chdir(HERE / "gallery"):
        for code in gallery_examples():
            exec(compile(code, "gallery.md", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main()
