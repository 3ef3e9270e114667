"""The worked example of book/own_model.md runs, and what it makes keeps the contract."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch

import pitome_core as pc
import pitome_core.experiments.baselines
from pitome_core.families import registry as families

PAGE = Path(__file__).resolve().parents[3] / "book" / "own_model.md"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.setattr(families, "_REGISTERED", [])
    names: dict = {}
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S))
    torch.manual_seed(0)
    exec(compile(code, PAGE.name, "exec"), names)
    return names


def test_the_example_keeps_the_contract(example):
    model = pc.remove(example["model"])
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(images)
        with pc.patched(model, "pitome", keep=1.0):
            assert torch.allclose(model(images), before, atol=1e-6)
        with pc.patched(model, "tome", keep=0.8), pc.record(model) as trace:
            merged = model(images)
            assert torch.allclose(copy.deepcopy(model)(images), merged, atol=1e-6)
        assert [layer.plan.num_tokens for layer in trace.layers] == [52, 42, 34]
        assert not torch.allclose(merged, before) and torch.equal(model(images), before)
    assert pc.flops(model).total > pc.flops(pc.apply(model, keep=0.8)).total


def test_the_example_refuses_what_it_cannot_do(example):
    class Odd(example["MyViT"]):
        pass

    model = pc.remove(example["model"])
    with pytest.raises(pc.UnsupportedModelError, match="another way"):
        pc.apply(Odd())
    with pytest.raises(pc.UnsupportedModelError, match="drops none"):
        pc.apply(model, "random_prune")
    with pytest.raises(pc.UnsupportedModelError, match="Supported: MyViT"):
        pc.apply(torch.nn.Linear(2, 2))


def test_a_family_of_the_same_name_replaces(example):
    count = len(families._REGISTERED)
    pc.register_family(families._REGISTERED[0])
    assert len(families._REGISTERED) == count == 1
