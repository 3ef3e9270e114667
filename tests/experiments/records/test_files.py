"""Files are whole or not there, and their hash is that of their bytes. `test_results` kills a write in the middle."""

from __future__ import annotations

import hashlib
import json

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


def test_one_line_is_json_that_can_be_read():
    value = {"word": "Grüße", "numbers": [1, 0.5, None], "none": {}}
    text = files.one_line(value)
    assert json.loads(text) == value and "\n" not in text and "Grüße" in text
