"""The table of supported models is true: the contract holds for each row, and the page says what came out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))
import supported_models

OUTCOMES = {}


@pytest.mark.parametrize("number", range(len(supported_models.ENTRIES)), ids=lambda i: supported_models.ENTRIES[i].name)
def test_contract(number):
    torch.set_num_threads(1)
    entry = supported_models.ENTRIES[number]
    OUTCOMES[number] = (entry, supported_models.check(entry))
    assert False not in OUTCOMES[number][1].values(), OUTCOMES[number][1]


def test_the_page_says_so():
    if len(OUTCOMES) < len(supported_models.ENTRIES):
        pytest.skip("runs after all rows of the table")
    written = supported_models.PAGE.read_text()
    assert written == supported_models.page([OUTCOMES[i] for i in range(len(OUTCOMES))]), (
        "book/supported_models.md is stale: run `python tools/supported_models.py`"
    )
