"""The page on the command line: its commands run in order, its options and tables are complete."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from nettrim_solver.cli import main
from nettrim_solver.cli.recipe import MOVED, PURPOSES
from nettrim_solver.cli.recipes import COMMENTS
from nettrim_solver.frameworks.files import READERS
from nettrim_solver.network import Recipe
from nettrim_solver.network.recipe import NAMES
from nettrim_solver.pipeline import REFINEMENTS

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
    assert len(commands) == 6
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
    for command in ("prune", "recipes", "inspect", "compare", "solve", "demo"):
        assert f"nettrim {command}" in PAGE
        known |= set(re.findall(r"--[a-z-]+", help_of(command, capsys)))
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGE))
    assert used <= known | {"--help"}, used - known


def test_the_options_of_prune_are_on_the_page(capsys):
    told = set(re.findall(r"--[a-z-]+", help_of("prune", capsys))) - {"--output"}  # -o
    assert told - set(re.findall(r"--[a-z-]+", PAGE)) <= {"--time-limit", "--n-threads"}


def test_tables_of_the_page_are_complete():
    for name in (*READERS, *REFINEMENTS, *NAMES):
        assert f"`{name}`" in PAGE, name


def test_the_command_line_knows_every_recipe_and_field():
    assert [*PURPOSES] == [*NAMES]
    assert {*COMMENTS, "layers"} == {field.name for field in fields(Recipe)}


def test_options_that_are_gone_are_in_no_help(capsys):
    for command in ("prune", "compare"):
        assert not set(MOVED) & set(re.findall(r"--[a-z-]+", help_of(command, capsys)))
