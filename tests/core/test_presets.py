"""The switches of `pitome`, the presets made of them, and what a patch does with metric, insertion and attention."""

from __future__ import annotations

import itertools

import pytest
import torch
from oracle import gaussian_tokens
from small_models import randomize

import pitome_core as pc
from pitome_core.mergers.preset_table import PresetRow

SPLITS = ("alternate", "high_low", "position", "random")
SWITCHES = list(itertools.product((True, False), SPLITS, ("all", "best"), ("energy", "shuffled")))
TOME = {"protection": False, "split": "position", "edges": "best"}
ENERGY_SORTED_BSM = {"protection": False, "edges": "best"}


def circle() -> torch.Tensor:
    """The ten golden tokens on the unit circle."""
    angles = torch.tensor([0, 4, 9, 15, 90, 97, 180, 230, 300, 41], dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=-1)[None]


def groups(plan: pc.MergePlan, item: int = 0) -> list[list[int]]:
    slots = plan.assignment[item].tolist()
    return sorted([i for i, s in enumerate(slots) if s == slot] for slot in set(slots) - {-1})


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [[0, 1], [2, 3, 9], [4], [5], [6], [7], [8]]),
        (ENERGY_SORTED_BSM, [[0, 1], [2, 3], [4, 5], [6], [7], [8], [9]]),
        (TOME, [[0, 1, 2], [3], [4, 5], [6], [7], [8], [9]]),
        ({"split": "high_low"}, [[0], [1, 2, 3, 9], [4], [5], [6], [7], [8]]),
    ],
)
def test_golden_groups_of_the_variants(options, expected):
    assert groups(pc.plan(circle(), 3, margin=0.5, kernel="elu", **options)) == expected


@pytest.mark.parametrize("n, k", [(2, 1), (9, 4), (10, 5), (31, 7), (64, 1)])
def test_without_energy_and_protection_pitome_is_tome(n, k):
    metric = gaussian_tokens(3, n, 5, seed=n)
    assert torch.equal(pc.plan(metric, k, **TOME).assignment, pc.plan(metric, k, "tome").assignment)


def slow_plan(metric, k, margin, protection, split, edges, gate=1.0) -> list[int]:
    """One item by loops, deterministic splits only: roots."""
    n = len(metric)
    unit = metric / metric.norm(dim=-1, keepdim=True)
    cos = (unit @ unit.T).tolist()
    energy = pc.energy_score(metric[None], margin)[0].tolist()
    ranked = sorted(range(n), key=lambda i: -energy[i])
    count = min(n, (2 if edges == "all" else 4) * k) if protection else n
    if gate > 1:
        count, edges = min(n, round(2 * gate * k)), "best"
    may = ranked[:count]
    if split == "high_low":
        a, b = may[: (count + 1) // 2], may[(count + 1) // 2 :]
    else:
        may = sorted(may) if split == "position" else may
        a, b = may[0::2], may[1::2]
    partner = {i: max(b, key=lambda j: cos[i][j]) for i in a}
    a.sort(key=lambda i: -(energy[i] if edges == "all" else cos[i][partner[i]]))
    roots = list(range(n))
    for i in a[:k]:
        roots[i] = partner[i]
    return roots


@pytest.mark.parametrize("protection, split, edges", [*itertools.product((True, False), SPLITS[:3], ("all", "best"))])
@pytest.mark.parametrize("n, k", [(8, 1), (8, 4), (15, 3), (33, 16)])
def test_switches_equal_the_loop(protection, split, edges, n, k):
    metric = gaussian_tokens(2, n, 6, seed=7 * n + k)
    plan = pc.plan(metric, k, margin=0.4, protection=protection, split=split, edges=edges)
    for item in range(2):
        joined = plan.anchor[item][plan.assignment[item]].tolist()
        assert joined == slow_plan(metric[item], k, 0.4, protection, split, edges)


GATES = (1.0, 1.25, 1.5, 3.0, 7.3, 100.0)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("n, k", [(8, 1), (8, 4), (15, 3), (33, 5)])
def test_the_gate_equals_the_loop(gate, n, k):
    metric = gaussian_tokens(2, n, 6, seed=7 * n + k)
    for split in SPLITS[:3]:
        plan = pc.plan(metric, k, margin=0.4, gate=gate, split=split)
        for item in range(2):
            joined = plan.anchor[item][plan.assignment[item]].tolist()
            assert joined == slow_plan(metric[item], k, 0.4, True, split, "all", gate)


def test_the_gate_leads_from_the_paper_to_energy_sorted_matching():
    metric = gaussian_tokens(3, 40, 6, seed=5)
    ends = pc.plan(metric, 4), pc.plan(metric, 4, **ENERGY_SORTED_BSM)
    assert torch.equal(pc.plan(metric, 4, gate=1.0).assignment, ends[0].assignment)
    assert torch.equal(pc.plan(metric, 4, gate=5.0).assignment, ends[1].assignment)  # 2 * 5 * 4 = 40 tokens
    assert torch.equal(pc.plan(metric, 4, gate=2.0).assignment, pc.plan(metric, 4, edges="best").assignment)
    with pytest.raises(ValueError, match=r"gate is 0\.5: .* 1 or more"):
        pc.plan(metric, 4, gate=0.5)


@pytest.mark.parametrize("gate", [1.05, 1.15, 2.3, 3.35])
def test_a_gate_rounds_alike_with_and_without_a_mask(gate):
    """2 x 1.05 x 15 = 31.5: in single precision it would be rounded to the other side."""
    metric = gaussian_tokens(1, 60, 8, seed=1)
    for k in range(1, 30):
        masked = pc.plan(metric, torch.tensor([k]), mask=torch.ones(1, 60, dtype=torch.bool), gate=gate)
        assert torch.equal(masked.assignment, pc.plan(metric, k, gate=gate).assignment)


@pytest.mark.parametrize("gate", GATES)
def test_padding_changes_no_gate(gate):
    lengths, counts = [30, 21, 9, 2], [7, 4, 2, 0]
    metric = gaussian_tokens(4, 30, 5, seed=3)
    mask = torch.arange(30) < torch.tensor(lengths)[:, None]
    plan = pc.plan(metric, torch.tensor(counts), mask=mask, gate=gate)
    for item, (length, k) in enumerate(zip(lengths, counts, strict=True)):
        alone = pc.plan(metric[item : item + 1, :length], k, gate=gate)
        assert torch.equal(plan.assignment[item, :length], alone.assignment[0])


@pytest.mark.parametrize("protection, split, edges, score", SWITCHES)
def test_padding_changes_no_variant(protection, split, edges, score):
    options = {"protection": protection, "split": split, "edges": edges, "score": score}
    lengths, counts = [12, 9, 5, 1], [4, 4, 0, 0]
    metric = gaussian_tokens(4, 12, 5, seed=3)
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    plan = pc.plan(metric, torch.tensor(counts), mask=mask, **options)
    for item, (length, k) in enumerate(zip(lengths, counts, strict=True)):
        alone = pc.plan(metric[item : item + 1, :length], k, **options)
        assert torch.equal(plan.assignment[item, :length], alone.assignment[0])
        assert (plan.assignment[item, length:] == -1).all() and alone.num_tokens == length - k


def test_shuffled_energies_are_the_same_numbers_elsewhere():
    """The control keeps the amount of protection and loses the choice: plans differ, energies do not."""
    metric = gaussian_tokens(1, 60, 8, seed=0)
    first, second = pc.plan(metric, 20), pc.plan(metric, 20, score="shuffled")
    assert torch.equal(first.energy, second.energy) and not torch.equal(first.assignment, second.assignment)
    other = pc.plan(metric, 20, score="shuffled", seed=1)
    assert not torch.equal(other.assignment, second.assignment)


@pytest.mark.parametrize("name", ["score", "split", "edges"])
def test_unknown_switch_positions_are_named(name):
    with pytest.raises(ValueError, match=f"unknown {name} 'x': choose one of"):
        pc.plan(circle(), 2, **{name: "x"})


def test_attention_score_needs_a_model():
    with pytest.raises(ValueError, match="class_attention"):
        pc.plan(circle(), 2, score="attention")


# ---------------------------------------------------------------------------------------------------------- presets
def test_presets_as_documented():
    rows = {name: preset.rows(12) for name, preset in pc.presets().items()}
    assert set(rows) == {"paper", "released-deit", "released-mae", "released-clip", "released-llava", "released-bert"}
    loose = [row.options.get("protection", True) is False for row in rows["released-deit"]]
    assert loose == [True] * 6 + [False] * 6
    assert [row.options.get("protection", True) is False for row in rows["released-mae"]] == [not x for x in loose]
    for depth, first in ((1, 1), (5, 3), (13, 7), (24, 12)):  # the first half of an odd depth is the longer one
        for name in ("released-deit", "released-mae"):
            loose = [row.options.get("protection", True) is False for row in pc.presets()[name].rows(depth)]
            assert loose == [(layer < first) == (name == "released-deit") for layer in range(depth)]
    assert {row.margin for row in rows["released-deit"]} == {(0.75, 0.75)}
    assert {row.margin for row in rows["released-clip"]} == {(0.95, 0.95)}
    assert {row.metric for row in rows["released-clip"] + rows["released-llava"]} == {"hidden"}
    assert [row.merges for row in rows["released-bert"]] == [True] * 3 + [False] * 9
    assert {(row.sized, row.proportional) for row in rows["released-bert"]} == {(False, False)}
    assert [name for name, preset in pc.presets().items() if preset.protect is not None] == ["released-bert"]
    assert pc.presets()["released-bert"].protect == "cls"
    llava = pc.presets()["released-llava"].rows(24)
    assert [row.options.get("split") == "position" for row in llava] == [True] * 13 + [False] * 11
    assert {(row.insertion, row.sized, row.proportional) for row in llava} == {("after", False, False)}
    assert all(row == PresetRow(options={"kernel": "paper"}) for row in rows["paper"])


@pytest.mark.parametrize("preset", list(pc.presets()))
def test_presets_run_with_equal_tokens_and_show(preset, build_vit, images):
    model = pc.apply(build_vit(depth=4), "pitome", 0.8, preset=preset)
    with pc.record(model) as trace, torch.no_grad():
        model(images())
    merging = [row.merges for row in pc.presets()[preset].rows(4)]
    left, expected = 16, []
    for merges in merging:
        left -= int(left - left * 0.8 + 1e-9) if merges else 0
        expected.append(left)
    assert [layer.plan.num_tokens for layer in trace.layers] == expected
    assert repr(preset) in repr(model)


def test_explicit_values_win_over_a_preset(build_vit):
    model = build_vit()
    pc.apply(model, preset="released-clip", metric="concat", margin=0.3, proportional=True, kernel="paper")
    shown = repr(model)
    for words in ("metric='concat'", "margin=0.3", "proportional=True", "kernel='paper'"):
        assert words in shown


def test_what_differs_between_layers_or_from_the_usual_shows(build_vit):
    """The first and the last value of layers, all of them where these two are equal; place and means where unusual."""
    model = pc.apply(build_vit(depth=3), margin=[0.5, 0.9, 0.5])
    assert "margin=[0.5, 0.9, 0.5]" in repr(model) and "insertion" not in repr(model) and "sized" not in repr(model)
    pc.apply(model, margin=[0.5, 0.7, 0.9], insertion="before")
    assert "margin=0.5..0.9" in repr(model) and "insertion='before'" in repr(model)
    pc.apply(model, preset="released-llava")
    assert "insertion='after', sized=False" in repr(model)


def test_a_schedule_cannot_merge_where_the_preset_does_not(build_vit):
    model = build_vit(depth=5)
    with pytest.raises(ValueError, match=r"layers \[3, 4\]"):
        pc.apply(model, keep=pc.schedule(model, keep=0.8), preset="released-bert")


def test_a_preset_belongs_to_its_method(build_vit):
    with pytest.raises(ValueError, match="'paper' is for method 'pitome', not 'tome'"):
        pc.apply(build_vit(), "tome", preset="paper")


# --------------------------------------------------------------------------------------- what a layer is compared by
def whole_block(block, x):
    return pc.unmerged(block)(x)


def test_merging_after_the_block_with_plain_means(build_vit, images):
    """released-llava by hand: whole block, plan on hidden states, plain means, no sizes in attention."""
    model = build_vit(depth=3)
    pc.apply(model, "pitome", 0.8, preset="released-llava", margin=0.4)
    with torch.no_grad():
        x = model.norm_pre(model._pos_embed(model.patch_embed(images())))
        plan = None
        for block in model.blocks:
            x = whole_block(block, x)
            patches = x[:, 1:]
            step = pc.plan(patches, int(patches.shape[1] * 0.2 + 1e-9), margin=0.4, kernel="elu", **TOME)
            x = torch.cat([x[:, :1], step.merge(patches)[0]], dim=1)
            plan = step if plan is None else plan.then(step)
        expected = model.norm(plan.with_prefix(1).unmerge(x))
        assert torch.allclose(model.forward_features(images()), expected, atol=1e-5)


@pytest.mark.parametrize("metric", ["keys", "hidden", "concat"])
def test_centred_metrics_forget_a_common_offset(metric, build_vit, images):
    """Adding one vector to every key (a key bias) changes plans of plain metrics and not of centred ones."""
    plans = {}
    for offset in (0.0, 4.0):
        model = build_vit(depth=1, qkv_bias=True)
        with torch.no_grad():
            model.blocks[0].attn.qkv.bias[48:96] += offset
            for kind in (metric, f"{metric}-centred"):
                with pc.patched(model, "pitome", 0.7, metric=kind), pc.record(model) as trace:
                    model(images(batch=4))
                plans[kind, offset] = trace.layers[0].energy
    centred = f"{metric}-centred"
    assert torch.allclose(plans[centred, 0.0], plans[centred, 4.0], atol=1e-4)
    if metric != "hidden":  # softmax does not see a common key offset, so hidden states stay
        assert not torch.allclose(plans[metric, 0.0], plans[metric, 4.0], atol=1e-2)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_siglip_224"])
def test_methods_that_read_attention_get_it_and_others_do_not(name, registry, build_vit, images):
    maps = {}

    def spy(metric, remove, *, attention=None, class_attention=None, layer=0):
        maps[layer] = (attention, class_attention)
        return pc.MergePlan.from_roots(torch.arange(metric.shape[1]).clamp_min(remove).expand(metric.shape[:2]),
                                       metric.shape[1] - remove)

    pc.register_method("spy", spy, paper="test", summary="test", limit="all")
    model = build_vit(name, depth=2)
    received = []
    attn = model.blocks[0].attn
    hook = attn.qkv.register_forward_hook(lambda module, args, out: received.append(out))
    with pc.patched(model, "spy", 0.8), torch.no_grad():
        model(images())
    hook.remove()
    prefix = model.num_prefix_tokens
    q, k, _ = received[0].reshape(2, -1, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
    expected = (q @ k.transpose(-2, -1) * attn.scale).softmax(dim=-1).mean(dim=1)[:, :, prefix:]
    attention, class_attention = maps[0]
    assert torch.allclose(attention, expected, atol=1e-6)
    by_class = expected[:, 0] if model.has_class_token else expected.mean(dim=1)
    assert torch.allclose(class_attention, by_class, atol=1e-6)
    assert not pc.methods()["pitome"].reads_attention({}) and not pc.methods()["tome"].reads_attention({})
    assert pc.methods()["pitome"].reads_attention({"score": "attention"})


def test_positions_follow_the_anchor(registry, build_vit, images):
    positions_by_layer = []

    def spy(metric, remove, *, positions=None):
        positions_by_layer.append(positions)
        return pc.plan(metric, remove, "tome")

    pc.register_method("spy", spy, paper="test", summary="test")
    model = pc.apply(build_vit(depth=2), "spy", 0.7)
    with pc.record(model) as trace, torch.no_grad():
        model(images(side=64))
    raster = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"), dim=-1).reshape(1, 16, 2)
    assert torch.equal(positions_by_layer[0], raster.expand(2, 16, 2))
    anchors = trace.layers[0].plan.anchor
    assert torch.equal(positions_by_layer[1], raster[0][anchors])


@pytest.mark.parametrize("insertion", ["before", "between", "after"])
def test_counts_follow_the_insertion(insertion, build_vit, images):
    """Attention works on the tokens that reach it, the MLP on those that reach it."""
    model = pc.apply(build_vit(depth=2), "pitome", 0.5, insertion=insertion)
    lengths = {"qkv": [], "fc1": []}
    for block in model.blocks:
        block.attn.qkv.register_forward_hook(lambda m, a, out: lengths["qkv"].append(out.shape[1]))
        block.mlp.fc1.register_forward_hook(lambda m, a, out: lengths["fc1"].append(out.shape[1]))
    with torch.no_grad():
        model(images())
    counts = pc.flops(model)
    dim = model.embed_dim
    for layer, attending, passing in zip(counts.layers, lengths["qkv"], lengths["fc1"], strict=True):
        assert layer.attention == attending * 4 * dim**2 + 2 * attending**2 * dim
        assert layer.mlp == passing * 8 * dim**2


def test_checkpointing_repeats_the_same_plans(build_vit, images):
    """Recomputing a block in the backward pass sees the positions and attention of its own layer."""
    losses = []
    for checkpointing in (False, True):
        model = randomize(build_vit(depth=3), seed=4).train()
        model.set_grad_checkpointing(checkpointing)
        pc.apply(model, "pitome", 0.7, score="attention")
        model(images()).square().mean().backward()
        losses.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*losses, strict=True))
