"""The documentation: its code runs, what it names exists, its tables are complete."""

import ast
import doctest
import importlib
import importlib.util
import math
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

import nettrim_solver
from nettrim_solver.activations import ACTIVATIONS
from nettrim_solver.problem import FORMULATIONS, RADII
from nettrim_solver.solvers import SOLVERS

ROOT = Path(__file__).parents[1]
DOCS = [
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "mathematics").glob("*.md")),
]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
GALLERY = ROOT / "docs" / "gallery.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def read(path):
    return path.read_text(encoding="utf-8")


def blocks(path):
    """Python blocks of a page with the line on which each begins."""
    text = read(path)
    return [(text.count("\n", 0, m.start()) + 1, m.group(1)) for m in BLOCK.finditer(text)]


SCRIPTS = [page for page in PAGES if blocks(page) and page != GALLERY]


@pytest.mark.parametrize("page", SCRIPTS, ids=lambda p: p.name)
def test_code_runs(page, tmp_path, monkeypatch):
    # The blocks of a page are one script, and may leave files behind.
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    parser, options = doctest.DocTestParser(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for line, code in blocks(page):
        if code.startswith(">>>"):
            test = parser.get_doctest(code, namespace, page.name, str(page), line)
            report = []
            runner = doctest.DocTestRunner(optionflags=options)
            runner.run(test, out=report.append, clear_globs=False)
            assert runner.failures == 0, "".join(report)
            namespace.update(test.globs)
        else:
            exec(compile("\n" * line + code, str(page), "exec"), namespace)


def sections(page):
    """The sections of a page by title: the text up to the next heading of the second level."""
    parts = re.split(r"^## (.*)\n", read(page), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("title", sections(GALLERY))
def test_every_example_of_the_gallery_draws_its_picture(title, tmp_path, monkeypatch):
    from matplotlib import pyplot

    monkeypatch.chdir(tmp_path)
    text = sections(GALLERY)[title]
    (code,) = BLOCK.findall(text)
    exec(compile(code, title, "exec"), {"__name__": "__main__"})
    pyplot.close("all")
    shown = re.findall(r"!\[.+?\]\(gallery/(.*?)\)", text)
    assert {path.name for path in tmp_path.iterdir()} == set(shown) and shown
    assert all((GALLERY.parent / "gallery" / name).stat().st_size < 100_000 for name in shown)


@pytest.fixture(scope="module")
def generate():
    place = ROOT / "docs" / "generate.py"
    spec = importlib.util.spec_from_file_location("generate", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_those_of_the_code(generate):
    again = "run: python docs/generate.py"
    assert read(ROOT / "docs" / "settings.md") == generate.settings_page(), again
    assert generate.activations_table() in read(ROOT / "docs" / "mathematics.md"), again
    assert generate.pruner_sections() in read(ROOT / "docs" / "mathematics" / "pruners.md"), again
    assert generate.depth_tables() in read(ROOT / "docs" / "depth.md"), again
    assert generate.limits_table() in read(ROOT / "docs" / "limits.md"), again
    assert generate.readme_table() in read(ROOT / "README.md"), again
    ablation = generate.describe(generate.result_of("ablation"))
    assert ablation.strip() in read(ROOT / "docs" / "best-recipe.md"), again


def test_every_setting_of_every_solver_is_on_its_page(generate):
    text = sections(ROOT / "docs" / "settings.md")["Settings"]
    parts = re.split(r"^### (.*)\n", text, flags=re.MULTILINE)[1:]
    by_solver = dict(zip(parts[::2], parts[1::2], strict=True))
    assert by_solver.keys() == {"every pruner", *SOLVERS}
    for name, info in SOLVERS.items():
        module = importlib.import_module(f"nettrim_solver.solvers.{info.module}")
        inherited = "" if info.convex else by_solver["every pruner"]
        inherited += by_solver["alps"] if name == "l0" else ""
        for field in module.Settings.__dataclass_fields__.keys() - {"tol_gap", "tol_feas"}:
            assert f"| `{field}` |" in by_solver[name] + inherited, (name, field)


def test_the_example_of_the_readme_proves_its_answer():
    (code,) = (code for _, code in blocks(ROOT / "README.md") if "solve(Problem(" in code)
    namespace = {}
    exec(code, namespace)
    solution = namespace["solution"]
    assert solution.status is nettrim_solver.Status.OPTIMAL
    assert 0 < solution.sparsity < 1 and np.all(np.isfinite(solution.W))


def test_readme_commands_are_what_ci_runs():
    readme, ci = read(ROOT / "README.md"), read(ROOT / ".ci" / "run")
    pattern = re.search(r"grep -m1 -E '(.*?)' README\.md", ci).group(1)
    (command,) = re.findall(pattern + ".*", readme, re.MULTILINE)
    assert command == 'python -m pip install -e ".[test]" && python -m pytest'
    assert 'python -m pip install ".[plot]" && nettrim demo' in readme


def test_the_metadata_names_things_that_exist():
    project = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]
    assert project["version"] == nettrim_solver.__version__
    for target in project["scripts"].values():
        module, name = target.split(":")
        assert callable(getattr(importlib.import_module(module), name))
    assert (ROOT / project["readme"]).is_file() and (ROOT / "LICENSE").is_file()
    for info in SOLVERS.values():
        extra = project["optional-dependencies"].get(info.extra, [])
        assert all(any(line.startswith(name) for line in extra) for name in info.requires)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_named_files_exist(page):
    text = read(page)
    named = set(re.findall(r"benchmarks/results/[a-z_0-9-]+\.\w+", text))
    named |= {name for name in re.findall(r"`((?:nettrim_solver|tests|docs)/[\w./-]+\.\w+)`", text)}
    missing = [name for name in sorted(named) if not (ROOT / name).is_file()]
    assert not missing
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", text):
        assert (page.parent / target).exists(), target


#: Names of other programs that pages speak of, and what is no name.
FOREIGN = {"Conv1D", "DequantizeLinear", "If", "Loop", "Scan", "ZeroPadding", "True", "False"}
#: Anything in backticks that looks like a name, with or without a call's arguments.
NAME = re.compile(r"`([A-Za-z_][\w.]*)(?:\([^`]*\))?`")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names_in_the_code():
    found = set()
    for folder in ("nettrim_solver", "benchmarks", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            # This file holds names that are not in the code.
            for node in ast.walk(ast.parse(read(path))) if path != Path(__file__) else ():
                for field in ("id", "attr", "arg", "name", "value"):
                    value = getattr(node, field, None)
                    if isinstance(value, str) and value.replace(".", "_").isidentifier():
                        found.update(value.split("."))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_name_in_backticks_exists(page, names_in_the_code):
    text = read(page)
    examples = set(re.findall(r"\w+", "".join(FENCED.findall(text))))
    prose = FENCED.sub("", text)
    # Names of files and arrays in files are checked, or shown, elsewhere.
    names = {n for n in NAME.findall(prose) if not re.search(r"\.(py|npz|npy)$|^[Wb]\d$", n)}
    parts = {part for name in names for part in name.split(".")}
    assert parts - names_in_the_code - examples - FOREIGN - {"nettrim_solver"} == set()
    for name in names:
        if name.startswith("nettrim_solver."):
            resolve(name)


def resolve(name):
    """The object that a dotted name means."""
    parts, value = name.split("."), nettrim_solver
    for i, part in enumerate(parts[1:], start=1):
        if not hasattr(value, part):
            importlib.import_module(".".join(parts[: i + 1]))
        value = getattr(value, part)
    return value


def test_a_stale_name_would_be_found(names_in_the_code):
    assert "prune_network" in names_in_the_code
    assert "prune_network_by_hand" not in names_in_the_code
    with pytest.raises(ModuleNotFoundError):
        resolve("nettrim_solver.network.prune_network_by_hand")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_blocks_that_need_a_framework_import_what_exists(page):
    for block in re.findall(r"^```py\n(.*?)^```", read(page), re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("nettrim_solver"):
                for alias in node.names:
                    resolve(f"{node.module}.{alias.name}")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_results_stand_beside_the_command_that_makes_them(page):
    text = read(page)
    for name in set(re.findall(r"benchmarks/results/([a-z_]+)\.\w+", text)):
        assert re.search(rf"python -m benchmarks {name}\b", text), name
    if "](gallery/" in text:
        assert "`python docs/generate.py`" in text


def power(value):
    """A power of ten as TeX."""
    return f"10^{{{math.log10(value):.0f}}}"


def test_constants_that_pages_quote_are_those_of_the_code():
    from nettrim_solver import certificate, reweighting
    from nettrim_solver.judging import TOLERANCES
    from nettrim_solver.network import allocation, downstream, probing
    from nettrim_solver.penalty_search import programs
    from nettrim_solver.solvers import admm_mask, iht

    mask, words = admm_mask.Settings(), ("no", "one", "two", "three", "four", "five", "six")
    gaps = {dtype.name: found["tol_gap"] for dtype, found in TOLERANCES.items()}
    quoted = {
        "mathematics/certificate.md": [
            rf"{power(certificate.RADIUS_FLOOR)} \operatorname{{dist}}",
            f"at least ${power(certificate.OBJECTIVE_FLOOR)}$",
            rf"\le {power(certificate.RAY_RESIDUAL)} \|x_i\|",
        ],
        "mathematics/reweighting.md": [
            f"{reweighting.PART} times the {100 * reweighting.QUANTILE:g} % quantile"
        ],
        "mathematics/allocation.md": [
            rf"n \le {allocation.MOST_LAYERS}$",
            f"{words[len(probing.GRID)].capitalize()} prunings",
        ],
        "mathematics/output-weights.md": [f"${downstream.SAMPLES} n$ samples"],
        "networks.md": [f"at {words[len(probing.GRID)]} sparsities"],
        "budgets.md": [f"is {programs.LEAST:g} of".replace("e-0", "e-")],
        "how-to-choose.md": [
            f"float64 is proved to a gap and violation of {gaps['float64']:g}".replace("e-0", "e-"),
            f"float32 to {gaps['float32']:g}".replace("e-0", "e-"),
            f"over {mask.scheduled} of {mask.iterations} iterations",
            f"each of {iht.Settings().iterations} gradient steps",
        ],
    }
    for page, texts in quoted.items():
        content = read(ROOT / "docs" / page)
        assert [text for text in texts if text not in content] == [], page


@pytest.mark.parametrize("page", DOCS, ids=lambda p: p.name)
def test_no_page_is_a_dead_end(page):
    assert re.search(r"\]\((?!https?:)[\w./-]+\.md", FENCED.sub("", read(page)))


def test_the_sources_that_pages_include_are_there():
    named = re.compile(r"^```\{literalinclude\} (.*?)\n((?::.*\n)*)", re.MULTILINE)
    included = [(page, *found) for page in DOCS for found in named.findall(read(page))]
    assert {page.name for page, *_ in included} == {
        "adding-a-solver.md",
        "adding-an-activation.md",
    }
    for page, path, options in included:
        source = read(page.parent / path)
        for text in re.findall(r"-at: '?(.*?)'?\n", options):
            assert text in source, (page.name, text)
        for name in re.findall(r":pyobject: (.*)\n", options):
            assert re.search(rf"^class {name}\b", source, re.MULTILINE), (page.name, name)


def test_every_module_is_on_the_page_of_the_architecture():
    named = set()
    for row in read(ROOT / "docs" / "architecture.md").splitlines():
        cell, folder = row.split("|")[1] if row.startswith("|") else "", ""
        for name in re.findall(r"`([\w/]+(?:\.py|/))`", cell):
            folder = name.rpartition("/")[0] + "/" if "/" in name else folder
            named.add(name if "/" in name else folder + name)
    package = ROOT / "nettrim_solver"
    modules = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }
    folders = tuple(name for name in named if name.endswith("/"))
    assert {name for name in modules - named if not name.startswith(folders)} == set()
    assert [name for name in named if not (package / name).exists()] == []


def test_every_benchmark_command_has_a_module():
    names = set().union(*(re.findall(r"python -m benchmarks ([a-z_]+)", read(p)) for p in PAGES))
    assert names
    for name in names:
        assert (ROOT / "benchmarks" / f"{name}.py").is_file(), name


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("README.md", SOLVERS),
        ("docs/how-to-choose.md", SOLVERS),
        ("docs/how-to-choose.md", FORMULATIONS),
        ("docs/how-to-choose.md", RADII),
        ("docs/mathematics.md", ACTIVATIONS),
        ("docs/mathematics/pruners.md", [n for n, info in SOLVERS.items() if not info.convex]),
    ],
)
def test_tables_are_complete(page, names):
    text = read(ROOT / page)
    assert [name for name in names if f"`{name}`" not in text and f'`"{name}"`' not in text] == []


def test_every_statement_of_a_status_is_documented():
    text = read(ROOT / "docs" / "quickstart.md")
    assert [s.label for s in nettrim_solver.Status if f"`{s.label}`" not in text] == []
