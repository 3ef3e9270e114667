"""The table that the retrieval commands print, in both tiers."""

from __future__ import annotations

from collections.abc import Sequence

from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.records.results import Record
from pitome_core.experiments.retrieval import recall
from pitome_core.experiments.runs import summary


def table(record: Record, cells: Sequence[Cell]) -> str:
    """Cost, R@1 both ways, rsum with heads off the shelf and retrained, and differences in the former."""
    def measure(name: str, column: str = "rank") -> summary.Column:
        return lambda key: f"{recall.table(record, key, column)[name]:.1f}" if record.has(key, column) else ""

    columns = summary.share(record) | {
        "image R@1": measure("image_r1"), "text R@1": measure("text_r1"), "rsum": measure("rsum"),
        "retrained": measure("rsum", "rank_retrained"),
    }

    def difference(first: str, second: str) -> str:
        return recall.difference(record, first, second).format(1)

    return summary.table(record, cells, columns, difference, "rsum")
