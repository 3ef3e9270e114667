"""Every setting beside ToMe and its control, and the rule for a preset, on a small record with known differences."""

from __future__ import annotations

import numpy as np
import pytest

from pitome_core.experiments.law import settings_compared
from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import Cell

ITEMS = 60


@pytest.fixture
def record(tmp_path):
    """Offsets of each cell's outcome over a common value, with a little noise of its own."""
    offsets = {
        Cell("tome", 0.9): 0.0, Cell("tome-hidden", 0.9): 0.0, Cell("tome-hidden", 0.9, False): -0.5,
        Cell("pitome", 0.9): 0.2, Cell("pitome-hidden", 0.9): 0.3, Cell("gate-2-hidden", 0.9, False): -0.4,
        Cell("gate-2", 0.9): 0.9,
    }
    offsets |= {Cell("pitome-shuffled", 0.9, seed=s): 0.0 for s in range(2)}
    offsets |= {Cell("pitome-hidden-shuffled", 0.9, seed=s): 0.5 for s in range(2)}
    offsets |= {Cell("gate-2-hidden-shuffled", 0.9, False, seed=s): -0.6 for s in range(2)}
    generator = np.random.default_rng(0)
    common = generator.normal(size=ITEMS)
    made = results.Record(tmp_path / "r.json", {}, {"id": list(range(ITEMS))}, [], {})
    for cell, offset in offsets.items():
        values = common + offset + 0.05 * generator.normal(size=ITEMS)
        made.cells[cell.key] = cell.describe() | {"outcomes": {"auc": values.tolist()}}
    return made


def test_each_setting_stands_beside_its_own_counterpart_and_control(record):
    rows = {row.key: row for row in settings_compared.compared(record, "auc") if "shuffled" not in row.key}
    assert set(rows) == {"pitome@0.9", "pitome-hidden@0.9", "gate-2-hidden@0.9/off", "gate-2@0.9"}
    assert rows["gate-2-hidden@0.9/off"].to_tome.mean == pytest.approx(0.1, abs=0.03)  # to ToMe with attention off
    assert rows["gate-2-hidden@0.9/off"].to_shuffled.mean == pytest.approx(0.2, abs=0.03)
    assert rows["gate-2@0.9"].to_shuffled is None  # no control on record


def test_the_rule_asks_for_both_and_picks_the_largest_gain(record):
    rows = settings_compared.compared(record, "auc")
    assert {row.key for row in rows if row.beats_both} == {"pitome@0.9", "gate-2-hidden@0.9/off"}
    assert settings_compared.best(rows).key == "pitome@0.9"  # gate-2 gains more, and has no control
    assert settings_compared.best([row for row in rows if not row.beats_both]) is None
    assert settings_compared.largest_gain_left(rows) == max(row.to_tome.high for row in rows) > 0.85
