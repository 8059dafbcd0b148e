"""The optional dependencies, and how messages and pages say to install them."""

import re
import tomllib
from pathlib import Path


def test_the_extra_all_is_all():
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    extras = pyproject["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    named = re.fullmatch(r"nettrim-solver\[(.*)\]", everything)[1].split(",")
    assert {*named} == {*extras} - {"all"}


def test_nothing_is_installed_from_an_index_that_does_not_have_it():
    root = Path(__file__).parents[1]
    for path in [
        *(root / "nettrim_solver" / "frameworks").glob("*.py"),
        *(root / "docs" / name for name in ("frameworks.md", "onnx.md", "storage.md")),
    ]:
        assert "install 'nettrim-solver" not in path.read_text(), path
        assert 'install "nettrim-solver' not in path.read_text(), path
