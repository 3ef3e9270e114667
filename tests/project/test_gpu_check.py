"""`make gpu`: it finds the tests that need a device, and costs without numbers are no success."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import gpu_check


def test_the_marked_tests_are_found():
    assert {"tests/core/test_gpu.py", "tests/experiments/cost/test_measure.py"} <= set(gpu_check.marked_files())


def test_notebooks_run_side_by_side_where_the_processors_are(monkeypatch):
    monkeypatch.setattr(gpu_check.os, "cpu_count", lambda: 16)
    assert gpu_check.side_by_side()[:2] == ["-n", "6"]
    monkeypatch.setattr(gpu_check.os, "cpu_count", lambda: 2)
    assert gpu_check.side_by_side() == []


@pytest.mark.parametrize(("printed", "expected"), [
    ({"rev-parse": "abc", "status": ""}, ("abc", False)),
    ({"rev-parse": "abc", "status": " M Makefile"}, ("abc", True)),
    ({"rev-parse": "abc"}, ("abc", None)),  # git knows the commit and cannot compare
    ({}, (None, None)),
])
def test_what_git_does_not_say_is_unknown(printed, expected, monkeypatch):
    """Without git, without a history, in a clone of another user."""
    device = SimpleNamespace(name="a device", total_memory=2**30, major=9, minor=0)
    torch = SimpleNamespace(
        cuda=SimpleNamespace(get_device_properties=lambda _: device), version=SimpleNamespace(cuda="13"),
        backends=SimpleNamespace(cudnn=SimpleNamespace(version=lambda: 1)),
    )
    monkeypatch.delenv("PITOME_COMMIT", raising=False)
    monkeypatch.setattr(gpu_check, "output", lambda *command: printed.get(command[1]))
    record = gpu_check.environment(torch)
    assert (record["commit"], record["modified"]) == expected


@pytest.mark.parametrize(
    ("cells", "status", "expected"),
    [
        ({"a": {"rounds": 5}, "b": {"out_of_memory": ["all"]}}, 0, 0),
        ({"a": {"rounds": 5}, "b": {"error": "no"}}, 1, 1),
        ({"b": {"out_of_memory": ["all"]}}, 0, 1),
        ({}, 0, 1),
        (None, 0, 1),
    ],
)
def test_costs_without_numbers_are_no_success(cells, status, expected, tmp_path, monkeypatch):
    """Whatever the command's exit status says; None: it wrote nothing."""
    monkeypatch.setattr(gpu_check, "RECORDS", tmp_path)
    if cells is not None:
        (tmp_path / "cost.json").write_text(json.dumps({"cells": cells}))
    monkeypatch.setattr(gpu_check.subprocess, "call", lambda *_, **__: status)
    run = gpu_check.cost(1.0)
    assert run["exit"] == expected and run["cells"] == len(cells or {})
    assert f"{run['measured']} of {run['cells']}" in gpu_check.summary("cost", run)
