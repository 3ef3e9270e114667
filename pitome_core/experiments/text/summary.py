"""The table that the text commands print, in both tiers."""

from __future__ import annotations

from collections.abc import Sequence

from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.records.results import Record
from pitome_core.experiments.runs import summary


def table(record: Record, cells: Sequence[Cell]) -> str:
    """Cost, accuracy of the fine-tuned and of the frozen classifiers, and differences in the former."""
    columns = summary.share(record) | summary.means(record, ("correct", "frozen"))
    return summary.table(record, cells, columns, summary.per_item(record, "correct"), "correct")
