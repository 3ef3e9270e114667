"""The variants of a setup: the free merge, twins, rounded schedules, and what a setup of every kind runs."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import pitome_core as pc
from pitome_core.experiments.cost.setups import Setup
from pitome_core.experiments.cost.variants import Workshop, free_merge, rounded, twin
from pitome_core.patching import find_patch

timm = pytest.importorskip("timm")
TINY = "vit_tiny_patch16_224"


@pytest.fixture
def workshop() -> Workshop:
    return Workshop(torch.device("cpu"))


def test_free_merge_is_a_slice_between_attention_and_mlp(build_vit, images):
    """Against the blocks written out: the last k tokens go, nothing else happens."""
    model, x = build_vit(), images(2)
    free = free_merge(twin(model), keep=0.7)
    removed = pc.schedule(model, keep=0.7).remove
    assert min(removed) > 0
    with torch.no_grad():
        tokens = model._pos_embed(model.patch_embed(x))
        for block, k in zip(model.blocks, removed, strict=True):
            tokens = tokens + block.attn(block.norm1(tokens))
            tokens = tokens[:, : tokens.shape[1] - k]
            tokens = tokens + block.mlp(block.norm2(tokens))
        expected = model.forward_head(model.norm(tokens))
        torch.testing.assert_close(free(x), expected)


def test_a_twin_shares_weights_and_is_patched_alone(build_vit, images):
    model, x = build_vit(), images(1)
    before = model(x)
    other = free_merge(twin(model), 0.7)
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert find_patch(model) is None and torch.equal(model(x), before)
    assert not torch.allclose(other(x), before)
    torch.testing.assert_close(pc.remove(other)(x), before)


def test_free_merge_has_the_tokens_of_a_method_and_no_cost(workshop, build_vit):
    model = build_vit()
    free, merged = free_merge(twin(model), 0.7), pc.apply(twin(model), "pitome", 0.7)
    assert pc.flops(free).tokens == pc.flops(merged).tokens
    variants = workshop.variants(Setup(TINY, 1, "float32", 0.7, size=64))
    macs = variants.macs
    assert macs["free"] < macs["tome"] < macs["pitome"] < macs["whole"]
    assert list(variants.calls) == ["whole", "free", "pitome", "tome"]
    assert list(variants.merging) == ["pitome", "tome"]


def test_rounded_schedules_have_round_counts(build_vit):
    schedule = pc.schedule(build_vit(img_size=112), keep=0.8)
    even = rounded(schedule, 8)
    assert rounded(schedule, 1) is schedule
    assert even.tokens[0] == schedule.tokens[0] and even.prefix == 1 and sum(even.remove) > 0
    for tokens, wanted in zip(even.tokens[1:], schedule.tokens[1:], strict=True):
        assert wanted <= tokens < wanted + 8 and (tokens % 8 == 0 or tokens == even.tokens[0])


def test_a_setup_rounds_for_every_variant(workshop):
    setup = Setup(TINY, 1, "float32", 0.9, multiple=8)
    tokens = workshop.variants(setup).about["tokens"]
    assert tokens[0] == 197 and tokens[-1] < 100 and all(count % 8 == 0 for count in tokens[1:])
    assert "multiples of 8" in setup.key


def test_merging_in_one_layer_of_some_ends_with_about_as_many_tokens(workshop):
    setups = {n: Setup(TINY, 1, "float32", 0.9, every=n) for n in (1, 3)}
    tokens = {n: workshop.variants(setup).about["tokens"] for n, setup in setups.items()}
    assert [a != b for a, b in pairwise(tokens[3])] == [True, False, False] * 4
    assert abs(tokens[1][-1] - tokens[3][-1]) <= 12, "rounded in twelve layers and in four"
    assert "every 3 layers" in setups[3].key


def test_compiled_steps_are_a_mode(workshop):
    variants = workshop.variants(Setup(TINY, 1, "float32", 0.9, "step", size=64))
    compiled = {name: find_patch(call.func).compile_step for name, call in variants.calls.items() if name != "whole"}
    assert compiled == {"free": False, "pitome": True, "tome": True}, "the free merge has nothing to compile"


@pytest.mark.parametrize("field", [{"mode": "step"}, {"every": 2}, {"multiple": 8}])
def test_a_setup_without_layers_has_none_of_their_options(workshop, field):
    """Where nothing merges layer by layer, a setup of another name would be the plain one."""
    with pytest.raises(ValueError, match="no layers that merge"):
        workshop.variants(Setup("step_64", 1, "float32", 0.9, **field))
