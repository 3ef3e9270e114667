"""The table that a command prints of a record: a line per cell, with paired differences to its counterpart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from pitome_core.experiments.records.cells import WHOLE, Cell
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
    aligned = ["left", *["right"] * (len(header) - 1)]
    return tabulate(lines, header, tablefmt="plain", disable_numparse=True, colalign=aligned)


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
