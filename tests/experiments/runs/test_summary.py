"""Columns of tables in per cent leave out items without a value, and say so where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.records.results import Record
from pitome_core.experiments.runs import summary

WHOLE, TOME, PITOME = Cell("whole"), Cell("tome", 0.9), Cell("pitome", 0.9)


@pytest.fixture
def record(tmp_path):
    """Two cells that lack the last item, and one that lacks them all."""
    items = {"id": range(5)}
    new = Record.open(tmp_path / "r.json", {}, items)
    for cell, values in ((WHOLE, [1, 1, 1, 0, np.nan]), (TOME, [1, 0, 1, 0, np.nan]), (PITOME, [np.nan] * 5)):
        new.add(cell.key, cell.describe() | {"share": 0.5}, {"correct": values}, {})
    return new


def test_means_and_differences_are_over_the_items_that_have_a_value(record):
    percent, points = summary.percent(record, "correct"), summary.points(record, "correct")
    assert percent("whole").startswith("75.00 [") and percent("tome@0.9").startswith("50.00 [")
    assert points("tome@0.9", "whole").startswith("-25.00 [-104.56, ")  # 25 times t of 3 degrees of freedom, 3.182
    assert percent("pitome@0.9") == "nothing could be read"
    assert points("pitome@0.9", "tome@0.9") == points("tome@0.9", "pitome@0.9") == ""


def test_they_are_columns_of_a_table(record):
    columns = summary.share(record) | {"top-1 %": summary.percent(record, "correct")}
    points = summary.points(record, "correct")
    lines = summary.table(record, [WHOLE, TOME, PITOME], columns, points, "top-1").splitlines()
    assert "top-1 minus ToMe's" in lines[0] and [line.split()[0] for line in lines[1:]] == list(record.cells)
    assert lines[3].endswith("nothing could be read")


def test_what_may_stand_beside_tome_is_named_once_and_by_its_switches(record):
    """Arms with ToMe's matching are no rows of their own, seeds are one row, and a switch is another list."""
    cells = [*(Cell("random-merge", 0.9, seed=seed) for seed in (0, 1)), Cell("pitome", 0.8), Cell("tome-hidden", 0.9),
             Cell("pitome", 0.9, False), Cell("pitome", 0.9, retrained=True)]
    for cell in cells:
        about = cell.describe() | {"retrained": cell.retrained}
        record.add(cell.key, about, {"correct": [1] * 5}, {})
    assert summary.compared(record, 0.9) == ["pitome@0.9", "random-merge@0.9"]
    assert summary.compared(record, 0.9, proportional=False) == ["pitome@0.9/off"]
    assert summary.compared(record, 0.9, retrained=True) == ["pitome@0.9/retrained"]
    assert summary.compared(record, 0.7) == []
