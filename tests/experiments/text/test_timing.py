"""Times by length of a text: every cell has its quartiles, and a length is measured once."""

from __future__ import annotations

import pytest

from pitome_core.experiments.runs import timings
from pitome_core.experiments.text import timing

pytestmark = pytest.mark.usefixtures("on_the_processor")


def test_time_by_length_is_recorded_once(tmp_path, monkeypatch):
    """Every cell has its quartiles and what the counts imply; a length that is there is not measured again."""
    monkeypatch.setattr(timing, "METHODS", ("tome", "random-merge"))
    recorded = {}
    for lengths in ((24,), (24, 16)):
        assert timing.run(tmp_path, lengths=lengths, seconds=0.01, batch=2) == 0
        before, recorded = recorded, timings.load(tmp_path / "text-time.json", "text-time")
        assert [cell["tokens"] for cell in recorded.values()] == list(lengths) and before.items() <= recorded.items()
    for length in recorded.values():
        variants = length["variants"]
        assert list(variants) == [cell.key for cell in timing.cells()] and len(variants) == 7
        assert all(v["speedup"][0] <= v["speedup"][1] <= v["speedup"][2] for v in variants.values())
        assert variants["whole"]["speedup"] == [1, 1, 1]
        assert variants["tome@0.8/all"]["implied"] > variants["tome@0.8"]["implied"] > 1
