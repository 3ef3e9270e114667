"""Tables as text: Markdown for pages and notebooks, aligned columns for terminals."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

_INTERVAL = re.compile(r"\[[+-]?\d[^][(){}]*\]")
_NO_BREAK = "\u00a0"


def _shown(cell: Any) -> str:
    """A cell as text, with intervals that no line break divides."""
    return _INTERVAL.sub(lambda found: found[0].replace(" ", _NO_BREAK), str(cell))


def unbroken(cell: Any) -> str:
    """A cell that stays on one line, such as a value with its interval: its spaces are no-break spaces."""
    return str(cell).replace(" ", _NO_BREAK)


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown, a line per row. A cell is shown as `str` gives it; it must not contain ``|``.

    The ends of an interval, ``[+0.003, +0.021]``, stay on one line: a no-break space is between them.

    Example:
        >>> print(markdown(["cell", "share"], [["whole", 1], ["tome@0.9", 0.73]]))
        | cell | share |
        |---|---|
        | whole | 1 |
        | tome@0.9 | 0.73 |
    """
    first = "|" + "".join(f" {title} |" if title else " |" for title in header)
    lines = [f"| {' | '.join(map(_shown, row))} |" for row in rows]
    return "\n".join([first, "|---" * len(header) + "|", *lines])


def plain(header: Sequence[str], rows: Iterable[Sequence[Any]], align: Sequence[str] | None = None) -> str:
    """A table for a terminal: columns are aligned, two spaces apart; no lines are drawn.

    ``align`` says ``left`` or ``right`` of every column; by default all are left.
    """
    from tabulate import tabulate

    align = ["left"] * len(header) if align is None else align
    return tabulate(list(rows), header, tablefmt="plain", disable_numparse=True, colalign=align)
