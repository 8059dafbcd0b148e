"""The rules of the house: light imports, one direction, modules and functions of readable size."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nettrim_solver

PACKAGE = Path(nettrim_solver.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

#: Each floor may import from itself and from the floors before it. A name stands for the module or
#: for everything below it.
FLOORS = [
    {"exceptions", "status", "checks", "text", "extended"},
    {"activations", "threads", "sample_size"},
    {"problem", "problem_checks", "problem_file"},
    {"plotting"},
    {"products"},
    {"certificate"},
    {"solution"},
    {"solvers"},
    {"judging"},
    {"penalty_search", "refine"},
    {"solve", "reweighting"},
    {"planting", "instances"},
    {"pipeline"},
    {"comparison"},
    {"network", "storage"},
    {"compare"},
    {"frameworks"},
    {"terminal", "demo"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
HEAVY = ["numba", "cvxpy", "osqp", "clarabel", "matplotlib", "rich", "sklearn", "joblib",
         "threadpoolctl", "scipy.optimize", "torch", "onnx", "keras"]  # fmt: skip
MAX_MODULE, MAX_FUNCTION = 400, 60


def floor_of(module):
    head = module.split(".")[0]
    for level, names in enumerate(FLOORS):
        if head in names:
            return level
    raise AssertionError(f"nettrim_solver/{module} stands on no floor of FLOORS")


def imported_modules(name, path):
    """Modules of the package that the source imports, at its head or inside functions.

    Imports for type checkers do not count: they are never executed.
    """
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    package = [] if name == "__init__" else package
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["nettrim_solver", *package[: len(package) - node.level + 1]]
            source = [node.module] if node.module else []
            stem = ".".join(base + source if node.level else source)
            targets = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            parts = target.split(".")
            if parts[0] != "nettrim_solver":
                continue
            inner = ".".join(parts[1:])
            # `from .module import thing` names the module, `from . import module` does so itself.
            while inner and inner not in MODULES:
                inner = inner.rpartition(".")[0]
            yield inner or "__init__"


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards(name):
    for target in imported_modules(name, MODULES[name]):
        assert floor_of(target) <= floor_of(name), f"{name} imports {target}, which is above it"


def test_the_import_scan_sees_every_form_of_import(tmp_path):
    source = tmp_path / "module.py"
    source.write_text(
        "from typing import TYPE_CHECKING\n"
        "import numpy.linalg\n"
        "import nettrim_solver.solve\n"
        "from ..certificate import certify\n"
        "from .. import status\n"
        "from . import available_solvers\n"
        "if TYPE_CHECKING:\n    from ..cli import main\n"
        "def later():\n    from ..problem import Problem\n"
    )
    found = set(imported_modules("solvers.module", source))
    assert found == {"solve", "certificate", "status", "solvers", "problem"}


def loaded_by(statement):
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import nettrim_solver",
        "from nettrim_solver import Problem, Solution, Status, certify, instances, solve",
        "import nettrim_solver; nettrim_solver.available_solvers()",
        "import nettrim_solver.cli",
        "import nettrim_solver.network, nettrim_solver.frameworks",
    ],
)
def test_importing_loads_nothing_heavy(statement):
    loaded = loaded_by(statement)
    assert "nettrim_solver.solve" in loaded
    assert not loaded.intersection(HEAVY)


def test_a_problem_is_built_and_judged_without_anything_heavy():
    loaded = loaded_by(
        "import numpy as np, nettrim_solver as n;"
        "p = n.Problem(np.eye(3), np.ones((3, 2)), epsilon=1);"
        "n.certify(p, np.eye(3)[:, :2])"
    )
    assert not loaded.intersection(HEAVY)


def test_all_public_names_exist():
    for name in nettrim_solver.__all__:
        assert getattr(nettrim_solver, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nettrim_solver.nothing  # noqa: B018


def docstring_lines(node):
    """Length of a docstring, which readers skim: it does not count as code."""
    first = node.body[0] if node.body else None
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        return first.end_lineno - first.lineno + 1
    return 0


def code_lines(source):
    """Lines of a module that are neither blank nor docstring."""
    documented = [node for node in ast.walk(ast.parse(source)) if isinstance(node, DOCUMENTED)]
    text = {
        line
        for node in documented
        if docstring_lines(node)
        for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)
    }
    lines = enumerate(source.splitlines(), start=1)
    return sum(1 for number, line in lines if line.strip() and number not in text)


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_short(name):
    code = code_lines(MODULES[name].read_text())
    assert code <= MAX_MODULE, f"{code} lines besides docstrings and blank ones"


def test_the_line_count_leaves_out_docstrings_and_blank_lines():
    assert (
        code_lines('"""One.\n\nTwo."""\n\nx = 1\n\n\ndef f():\n    """Three."""\n    return x\n')
        == 3
    )


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("kernels")])
def test_functions_are_short(name):
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1 - docstring_lines(node)
            assert length <= MAX_FUNCTION, f"{node.name} has {length} lines besides its docstring"
