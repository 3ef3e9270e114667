"""A file of timings: a cell counts under the circumstances of its run, and committed files stay readable."""

from __future__ import annotations

import json

import pytest

from pitome_core.experiments.records import results
from pitome_core.experiments.runs.timings import CIRCUMSTANCES, Timings, load

COSTS = ["embedded/cost.json", "embedded/cost-before.json", "gpu/cost.json"]


def test_a_cell_is_there_under_its_circumstances_only(tmp_path):
    path = tmp_path / "folder" / "times.json"
    first = Timings(path, "cost", "seconds", "code", note="a noisy machine")
    first.add("a", {"rounds": 5})
    first.add("b", {"error": "it failed"})
    again = Timings(path, "cost", "seconds", "code")
    assert "a" in again and "b" not in again and "c" not in again
    assert again.cells["a"] == {"rounds": 5, "run": first.now} and first.now["note"] == "a noisy machine"
    for name in CIRCUMSTANCES:
        assert "a" in again
        value, again.now[name] = again.now[name], "another"
        assert "a" not in again, name
        again.now[name] = value


def test_what_others_have_measured_meanwhile_is_kept(tmp_path):
    path = tmp_path / "times.json"
    first, second = (Timings(path, "cost", "seconds", "code") for _ in range(2))
    first.add("a", {"seconds": 1.0})
    second.add("b", {"seconds": [float("inf"), 2.0]})
    first.add("c", {"seconds": 3.0})
    assert set(load(path, "cost")) == set(first.cells) == {"a", "b", "c"} and "Infinity" not in path.read_text()
    assert load(path, "cost")["b"]["seconds"] == [None, 2.0]
    assert [one.name for one in tmp_path.iterdir()] == ["times.json"]


@pytest.mark.parametrize("text", ["", "{", '{"format": 1, "experiment": "cost"}', '{"format": 1, "experiment": "cost", '
                                  '"runs": [], "cells": {"a": {"run": 0}}}', '{"format": 1, "experiment": "cost", '
                                  '"lengths": {}, "cells": [], "runs": 3, "batch": 1, "lengths": [1]}'])
def test_a_damaged_file_is_named_with_its_remedy(tmp_path, text):
    path = tmp_path / "times.json"
    path.write_text(text)
    with pytest.raises(results.RecordError, match="times.json .*restore it from version control, or delete it"):
        Timings(path, "cost", "seconds", "code")


def test_runs_without_a_cell_are_dropped(tmp_path):
    """The others keep their number by date, and every cell its run."""
    path = tmp_path / "times.json"
    for date, keys in (("2026-01-03", "ab"), ("2026-01-01", "c"), ("2026-01-02", "ac")):
        record = Timings(path, "cost", "seconds", "code")
        record.now["date"] = date
        for key in keys:
            record.add(key, {})
    text = json.loads(path.read_text())
    assert [run["date"] for run in text["runs"]] == ["2026-01-02", "2026-01-03"]
    assert {key: cell["run"] for key, cell in text["cells"].items()} == {"a": 0, "b": 1, "c": 0}


@pytest.mark.parametrize("name", COSTS)
def test_committed_costs_are_written_as_they_were_read(name):
    path = results.folder() / name
    units = json.loads(path.read_text())["units"]
    assert Timings(path, "cost", units, "code").text() == path.read_text()


def test_the_older_layout_of_text_times_is_read():
    """One run for the file, and the variants by length."""
    path = results.folder() / "embedded" / "text-time.json"
    older, cells = json.loads(path.read_text()), load(path, "text-time")
    assert {str(cell["tokens"]): cell["variants"] for cell in cells.values()} == older["lengths"]
    assert all(cell["run"] == older["run"] and cell["batch"] == older["batch"] for cell in cells.values())
    assert list(cells)[0] == "16 tokens, batch 32"


@pytest.mark.parametrize("record", [{"format": 1}, {"format": 1, "experiment": "text-time"},
                                    {"format": 2, "experiment": "cost"}])
def test_another_file_is_not_overwritten(tmp_path, record):
    path = tmp_path / "other.json"
    path.write_text(json.dumps(record))
    with pytest.raises(results.RecordError, match="--output"):
        Timings(path, "cost", "seconds", "code")
    assert load(tmp_path / "none.json", "cost") == {}
