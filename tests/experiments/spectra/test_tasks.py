"""The tasks of the experiment on spectral distance: their cells, and the committed records."""

from __future__ import annotations

import pytest

from pitome_core.experiments.records import results
from pitome_core.experiments.spectra import tasks
from pitome_core.experiments.spectra.layers import OUTCOMES


def test_cells_are_the_methods_at_one_keep_ratio():
    assert [cell.key for cell in tasks.cells(0.8)] == [
        "pitome@0.8", "tome@0.8", "energy-sorted@0.8", "atc@0.8", "random-merge@0.8/seed0", "random-merge@0.8/seed1"
    ]


@pytest.mark.parametrize("task", tasks.TASKS)
def test_committed_records_hold_every_cell(task):
    """Every committed record has all cells, with outcomes for every item and layer."""
    try:
        record = results.load(f"spectra-{task}")
    except results.RecordError as error:
        pytest.skip(str(error))
    keys = [cell.key for cell in tasks.cells(record.header["keep"])]
    assert list(record.cells) == keys
    depth = 6 if task == "sentences" else 12
    for key in keys:
        for name in OUTCOMES:
            shape = (len(record),) if name.endswith("_all") else (len(record), depth)
            assert record.outcome(key, name).shape == shape
