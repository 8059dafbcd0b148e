"""The page on the command line: its commands run in order, its options and tables are complete."""

import re
import shlex
from pathlib import Path

import pytest

from nettrim_solver.cli import main
from nettrim_solver.cli.recipe import ARGUMENTS, IN_PYTHON, OF_A_LAYER, STEPS
from nettrim_solver.frameworks.files import READERS
from nettrim_solver.network import LayerSettings, prune_network

PAGE = (Path(__file__).parents[1] / "docs" / "command-line.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_commands_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for code in blocks("python"):
        exec(code, {})
    (recipe,) = blocks("toml")
    (tmp_path / "recipe.toml").write_text(recipe)
    commands = "".join(blocks("sh")).splitlines()
    assert len(commands) == 5
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "nettrim" and main(words) == 0, command
        assert capsys.readouterr().err == ""
    assert {"pruned.npz", "report.html", "table.json"} <= {p.name for p in tmp_path.iterdir()}


def help_of(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return capsys.readouterr().out


def test_every_option_on_the_page_exists(capsys):
    known = set()
    for command in ("prune", "inspect", "compare", "solve", "demo"):
        assert f"nettrim {command}" in PAGE
        known |= set(re.findall(r"--[a-z-]+", help_of(command, capsys)))
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGE))
    assert used <= known | {"--help"}, used - known


def test_the_options_of_prune_are_on_the_page(capsys):
    told = set(re.findall(r"--[a-z-]+", help_of("prune", capsys))) - {"--output"}  # -o
    assert told - set(re.findall(r"--[a-z-]+", PAGE)) <= {
        "--max-rows", "--max-iter", "--tol-gap", "--time-limit", "--n-threads",
    }  # fmt: skip


def test_tables_of_the_page_are_complete():
    for name in (*READERS, *STEPS):
        assert f"`{name}`" in PAGE, name


def test_recipes_know_every_argument_of_prune_network():
    defaults = prune_network.__kwdefaults__
    assert {*ARGUMENTS, *IN_PYTHON} == set(defaults)
    for table, values in ((ARGUMENTS, defaults), (OF_A_LAYER, vars(LayerSettings()))):
        for name in table:
            value = values.get(name)
            assert value is None or isinstance(value, table[name]), name
