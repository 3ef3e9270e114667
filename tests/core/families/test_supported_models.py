"""The table of supported models is true: the contract holds for each row, and the page says what came out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))
import supported_models

import pitome_core as pc
from pitome_core.patching import use_merge

OUTCOMES = {}


@pytest.mark.parametrize("number", range(len(supported_models.ENTRIES)), ids=lambda i: supported_models.ENTRIES[i].name)
def test_contract(number):
    torch.set_num_threads(1)
    entry = supported_models.ENTRIES[number]
    OUTCOMES[number] = (entry, supported_models.outcome(entry))
    assert False not in OUTCOMES[number][1].values(), OUTCOMES[number][1]


@pytest.mark.parametrize("number", range(len(supported_models.ENTRIES)), ids=lambda i: supported_models.ENTRIES[i].name)
def test_a_merge_without_a_plan_runs(number):
    """Tokens that are cut off in place of a merge: each layer gets what the one before left, and outputs are finite."""
    torch.set_num_threads(1)
    entry = supported_models.ENTRIES[number]
    if entry.name.endswith("Backbone"):
        pytest.skip("feature maps have a place for every patch, which only a plan can fill")
    model, given = entry.build()
    lengths = []

    def cut(step, x, keys, size, attention_map):
        left = x[:, : x.shape[1] - step.remove]
        lengths.append((step.layer, x.shape[1], left.shape[1]))
        return left, None, None

    pc.apply(model, keep=supported_models.KEEP, towers=entry.towers)
    with torch.no_grad():
        expected = supported_models.tensors(model(**given))
        outputs = supported_models.tensors(use_merge(model, cut)(**given))
        assert all(output.isfinite().all() for output in outputs)
        assert any(before > after for _, before, after in lengths)
        for (layer, _, after), (next_layer, before, _) in zip(lengths, lengths[1:], strict=False):
            assert before == after or next_layer <= layer  # the text tower begins after the image tower
        pc.apply(model, keep=supported_models.KEEP, towers=entry.towers)
        again = supported_models.tensors(model(**given))
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


def test_the_page_says_so():
    if len(OUTCOMES) < len(supported_models.ENTRIES):
        pytest.skip("runs after all rows of the table")
    written = supported_models.PAGE.read_text()
    assert written == supported_models.page([OUTCOMES[i] for i in range(len(OUTCOMES))]), (
        "book/supported_models.md is stale: run `python tools/supported_models.py`"
    )
