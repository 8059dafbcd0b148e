"""Tables of the documentation, written from result files between two marks of a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .__main__ import write_atomically


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return [lines[0], "|" + "---|" * len(header), *lines[1:]]


def write_between(page: Path, marks: tuple[str, str], text: str) -> None:
    """Put text between two marks of a page; all else stays.

    Raises
    ------
    ValueError
        If the page has no such marks.
    """
    begin, end = marks
    content = page.read_text(encoding="utf-8")
    head, opened, rest = content.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (opened and closed):
        raise ValueError(f"{page} must hold the lines {begin!r} and {end!r}")
    new = f"{head}{begin}\n\n{text}\n\n{end}{tail}"
    write_atomically(page, lambda path: path.write_text(new, encoding="utf-8"))


def fill_page(
    page: Path, marks: tuple[str, str], result: Path, markdown: Callable[[dict[str, Any]], str]
) -> None:
    """Write a page's tables anew from a result file."""
    record = json.loads(result.read_text(encoding="utf-8"))
    write_between(page, marks, markdown(record["result"]))
