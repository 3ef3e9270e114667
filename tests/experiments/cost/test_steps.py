"""What merge steps take: their share and their operators, and a model that is as it was afterwards."""

from __future__ import annotations

import pytest
import torch

import pitome_core as pc
from pitome_core.experiments.cost.steps import around_steps, step_operators, step_share
from pitome_core.patching import find_patch

pytest.importorskip("timm")


def test_the_share_of_the_steps_is_a_share(build_vit, images):
    model, x = pc.apply(build_vit(), keep=0.7), images(1)
    with torch.no_grad():
        assert 0 < step_share(model, lambda: model(x)) < 1
        pc.remove(model)
        assert step_share(model, lambda: model(x)) == 0


def test_a_model_merges_as_before_when_the_clock_is_taken_out(build_vit, images):
    """Inside, every step runs and nothing changes; afterwards, also after an error, no step is timed."""
    model, x, steps = pc.apply(build_vit(), keep=0.7), images(1), []

    def noted(step):
        steps.append(step)
        return step()

    with torch.no_grad():
        expected, merge_tokens = model(x), find_patch(model).merge_tokens
        with pytest.raises(ZeroDivisionError), around_steps(model, noted):
            assert torch.equal(model(x), expected) and len(steps) == len(model.blocks)
            raise ZeroDivisionError
        assert torch.equal(model(x), expected) and len(steps) == len(model.blocks)
    assert find_patch(model).merge_tokens is merge_tokens


def test_compiled_steps_are_not_compiled_again(build_vit, images, monkeypatch):
    """Else the clock would measure the compiler."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function) or function)
    model, x = pc.apply(build_vit(), keep=0.7, compile_step=True), images(1)
    with torch.no_grad():
        model(x)
        once = len(compiled)
        step_share(model, lambda: model(x))
    assert len(compiled) == once == len(model.blocks)


def test_the_operators_of_the_steps(build_vit, images):
    model, x = pc.apply(build_vit(), keep=0.7), images(1)
    with torch.no_grad():
        all_of_them = step_operators(model, lambda: model(x), most=99)
        some = step_operators(model, lambda: model(x), most=4)
    layers = len(model.blocks)
    assert all_of_them["bmm"][1] == all_of_them["sort"][1] == all_of_them["threshold"][1] == layers
    assert "addmm" not in all_of_them and "others" not in all_of_them, "no MLP is listed, and nothing is left over"
    assert len(some) == 5 and some["others"][0] > 0, "four, and the rest in one"
    assert sum(calls for _, calls in some.values()) == sum(calls for _, calls in all_of_them.values())
