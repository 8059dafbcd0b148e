"""Text for people: names that fit, and the name that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

#: Characters of a shortened name at least: one at either end of the dots, and two more.
SHORTEST = 7


def shortened(names: Sequence[str], width: int) -> list[str]:
    """Return names of at most so many characters, cut in the middle, that still differ.

    Parameters
    ----------
    names : sequence of str
    width : int

    Examples
    --------
    >>> shortened(["encoder/block1/conv/W", "encoder/block2/conv/W", "head"], 14)
    ['enc...1/conv/W', 'enc...2/conv/W', 'head']
    """
    width = max(width, SHORTEST)
    space = width - 3
    for tail in sorted(range(1, space), key=lambda n: abs(n - space // 2)):
        found = [
            name if len(name) <= width else f"{name[: space - tail]}...{name[-tail:]}"
            for name in names
        ]
        if len({*found}) == len({*names}):
            return found
    return [f"{number}...{name[len(name) - space + len(str(number)):]}"
            if len(name) > width else name for number, name in enumerate(names)]  # fmt: skip


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word that is most like another one, as a question, or nothing.

    Examples
    --------
    >>> nearest("tolerence", ["mode", "tolerance"])
    "; did you mean 'tolerance'?"
    """
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""
