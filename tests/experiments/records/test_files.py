"""Files are whole or not there, and their hash is that of their bytes. `test_results` kills a write in the middle."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pitome_core.experiments.records import files


def test_tensors_are_stored_with_what_is_said_about_them(tmp_path):
    path = tmp_path / "sub" / "weights.safetensors"
    files.save_tensors(path, {"a": torch.arange(3.0)}, {"pool": "token"})
    with safe_open(path, "pt") as stored:
        assert stored.get_tensor("a").tolist() == [0, 1, 2] and stored.metadata() == {"pool": "token"}
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    with pytest.raises(ValueError, match="expected torch.Tensor"):
        files.save_tensors(path, {"a": "no tensor"})
    assert files.digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def test_what_the_disk_refuses_is_said_in_one_line(tmp_path):
    """A limit on the size of files stands for a full disk. Nothing half-written stays."""
    code = f"""
import resource, torch
from pathlib import Path
from pitome_core.experiments.records import files
path = Path({str(tmp_path)!r}) / "toy.json"
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write in (lambda: files.write_atomically(path, "x" * 5000),
              lambda: files.save_tensors(path, {{"a": torch.zeros(5000)}})):
    try:
        write()
    except files.RecordError as error:
        print(error)
"""
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120,
                          env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])})
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all("toy.json cannot be written (" in line and "large" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_json_that_cannot_be_read_is_named_with_its_remedy(tmp_path):
    path = tmp_path / "toy.json"
    for text in ("", "{", '["a"', "[" * 100_000):
        path.write_text(text)
        with pytest.raises(files.RecordError, match=r"toy.json cannot be read .*restore it from version control"):
            files.read_json(path)
    path.write_text('{"a": [NaN, -Infinity, 2]}')
    assert files.read_json(path)["a"] == [None, None, 2]


def test_what_is_not_finite_is_no_json():
    value = {"a": (float("nan"), [float("inf"), 1.5]), 3: "x"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.one_line(value)
    assert files.plain(value) == {"a": [None, [None, 1.5]], "3": "x"}
    assert files.one_line(files.plain(value)) == '{"a": [null, [null, 1.5]], "3": "x"}'


def test_one_line_is_json_that_can_be_read():
    value = {"word": "Grüße", "numbers": [1, 0.5, None], "none": {}}
    text = files.one_line(value)
    assert json.loads(text) == value and "\n" not in text and "Grüße" in text
