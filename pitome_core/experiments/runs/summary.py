"""The table that a command prints of a record: a line per cell, with paired differences to its counterpart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pitome_core.experiments.records import tables
from pitome_core.experiments.records.cells import ARMS, WHOLE, Cell
from pitome_core.experiments.records.results import Record

Column = Callable[[str], Any]  # from the key of a cell to what stands in the column
RIVAL = "tome"  # whose cell of the same attention, metric, place and tokens a cell is compared with


def table(
    record: Record,
    cells: Sequence[Cell],
    columns: Mapping[str, Column],
    difference: Callable[[str, str], Any] | None = None,
    of: str = "",
) -> str:
    """Plain text: the cell, the columns, and the differences to ToMe's cell and to the whole model's.

    Args:
        record: where the cells are.
        cells: what is shown. Cells of several seeds share a line.
        columns: title -> a function from the key of a cell to what stands in the column.
        difference: ``(first, second) -> difference`` of two cells by their keys; None leaves both columns out.
        of: the name of the compared outcome, for the titles of the differences.

    A difference to ToMe is left out where the record has no cell to compare with (`Record.rival_of`).
    """
    header = ["cell", *columns]
    if difference is not None:
        header += [f"{of} minus ToMe's".strip(), "minus the whole model's"]
    lines = []
    for key in record.groups(cells):
        line = [key, *(column(key) for column in columns.values())]
        if difference is not None:
            rival = record.rival_of(key, RIVAL)
            line.append("" if rival is None else str(difference(key, rival)))
            line.append("" if key == WHOLE or WHOLE not in record else str(difference(key, WHOLE)))
        lines.append(line)
    return tables.plain(header, lines, ["left", *["right"] * (len(header) - 1)])


def compared(record: Record, keep: float, **switches: Any) -> list[str]:
    """The keys of all arms at one keep ratio that may stand beside ToMe, in the record's order, seeds taken together.

    ``switches`` are fields of `Cell` that they have in common, such as ``proportional=False``; without them, cells are
    plain. Arms with ToMe's own matching are left out.
    """
    cells = [Cell.of(about).without_seed for about in record.cells.values()]
    arms = [cell for cell in cells if cell.arm in ARMS and ARMS[cell.arm].method != ARMS[RIVAL].method]
    return list(dict.fromkeys(cell.key for cell in arms if cell == Cell(cell.arm, keep, **switches)))


def share(record: Record) -> dict[str, Column]:
    """The column with the cost: a cell's multiply-accumulates as a share of the whole model's."""
    return {"share": lambda key: f"{record.about(key)['share']:.3f}"}


def means(record: Record, names: Sequence[str], digits: int = 4) -> dict[str, Column]:
    """A column for each outcome: its mean over items and seeds.

    It is empty for cells that lack the outcome, and nan if an item has no value.
    """
    def column(name: str) -> Column:
        def mean(key: str) -> str:
            return f"{record.mean_over_seeds(key, name).mean():.{digits}f}" if record.has(key, name) else ""
        return mean

    return {name: column(name) for name in names}


def per_item(record: Record, name: str) -> Callable[[str, str], Any]:
    """Differences of the mean of one outcome, paired by item, as `table` takes them."""
    return lambda first, second: record.difference(first, second, name)


def percent(record: Record, name: str) -> Column:
    """The mean of an outcome in per cent with its 95 % interval, over the items that have a value."""
    def mean(key: str) -> str:
        if not _has_values(record, key, name):
            return "nothing could be read"
        value, low, high = (100 * value for value in record.estimate(key, name, skip_missing=True))
        return f"{value:.2f} [{low:.2f}, {high:.2f}]"

    return mean


def points(record: Record, name: str) -> Callable[[str, str], str]:
    """Differences of the mean of one outcome in points of per cent, over the items that have a value in both cells."""
    def difference(first: str, second: str) -> str:
        if not _has_values(record, first, name) or not _has_values(record, second, name):
            return ""
        share = record.difference(first, second, name, skip_missing=True)
        scaled = {name: 100 * getattr(share, name) for name in ("mean", "low", "high", "detectable")}
        return replace(share, **scaled).format(2)

    return difference


def _has_values(record: Record, key: str, name: str) -> bool:
    return not np.isnan(record.per_item(key, name)).all()
