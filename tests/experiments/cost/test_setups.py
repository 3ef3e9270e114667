"""Setups and shapes: named apart, in an order that serves a lent device, and counted as torch counts them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import pitome_core as pc
from pitome_core.experiments.cost.setups import (
    SHAPES,
    STEPS,
    PrefillShape,
    Setup,
    TowerShape,
    cpu_setups,
    gpu_setups,
)

timm = pytest.importorskip("timm")


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if isinstance(shape, TowerShape)])
def test_the_shapes_are_supported(name):
    """Every tower of `make gpu` can be merged; on the meta device nothing is computed."""
    shape = SHAPES[name]
    with torch.device("meta"):
        model = timm.create_model(shape.timm, pretrained=False, **shape.arguments)
    whole = pc.flops(model).total
    assert pc.flops(pc.apply(model, "pitome", 0.9, restore=shape.restore)).total < 0.8 * whole


@pytest.mark.parametrize("setups", [gpu_setups(), cpu_setups()], ids=["gpu", "cpu"])
def test_setups_are_named_apart(setups):
    assert len({setup.key for setup in setups}) == len(setups) == len(set(setups))


def test_every_shape_is_measured_where_it_belongs():
    assert {setup.model for setup in gpu_setups()} == set(SHAPES)
    assert set(STEPS) <= {setup.model for setup in cpu_setups()}
    assert all(setup.mode != "graph" for setup in cpu_setups())


def test_the_most_important_setups_come_first_on_a_gpu():
    """A lent device may be taken back after a minute: every shape once at the paper's ratio, then the grid."""
    setups = gpu_setups()
    first = setups[:14]
    assert {setup.model for setup in first} == set(SHAPES) and {setup.keep for setup in first} == {0.9}
    assert first[0] == Setup("deit_s", 1, "bfloat16", 0.9)
    for part in (first, setups[14:]):
        built = [(setup.model, setup.dtype) for setup in part]
        assert sum(a != b for a, b in pairwise(built)) == len(set(built)) - 1, "each model is built once per dtype"


def test_prefill_counts_agree_with_torch():
    """torch's counter takes unfused attention as a whole; ours takes each token with those up to itself."""
    transformers = pytest.importorskip("transformers")
    from torch.utils.flop_counter import FlopCounterMode

    shape, tokens = PrefillShape(32, 56, 2, 4, 40), 11
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=40, attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(inputs_embeds=torch.randn(1, tokens, 32), logits_to_keep=1)
    upper_triangle = 2 * tokens**2 * 32 - tokens * (tokens + 1) * 32
    assert counter.get_total_flops() == 2 * (shape.macs(tokens) + 2 * upper_triangle)


@pytest.mark.parametrize("keep", [0.95, 0.9, 0.85])
def test_prefill_reads_what_the_tower_leaves(keep):
    shape = SHAPES["llava15_tower"]
    with torch.device("meta"):
        model = timm.create_model(shape.timm, pretrained=False, **shape.arguments)
    counts = pc.flops(pc.apply(model, "pitome", keep, restore=False))
    assert counts.tokens[0] - 1 == 576
    assert PrefillShape().image_tokens(keep) == counts.tokens[-1] - 1
