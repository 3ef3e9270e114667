"""Laws of `every`: fewer merge steps, as many tokens in the end; counts, settings and graphs agree."""

from __future__ import annotations

import copy
import json
import pickle

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import randomize

import pitome_core as pc
import pitome_core.experiments.baselines
from pitome_core.patch import active_patch
from pitome_core.patching import find_patch
from pitome_core.schedules import keep_schedule

timm = pytest.importorskip("timm")


@pytest.fixture
def deit():
    """DeiT-S on the meta device: shapes without weights."""
    return timm.create_model("deit_small_patch16_224", device="meta")


def steps(removed) -> int:
    return sum(k > 0 for k in removed)


# --- schedules


@given(n=st.integers(1, 600), keep=st.integers(500, 1000), layers=st.integers(1, 24), prefix=st.integers(0, 5),
       every=st.integers(1, 24))
def test_the_same_number_is_left(n, keep, layers, prefix, every):
    """Each group of layers leaves as many tokens as without `every`, and no layer has more, whatever the last group."""
    each, fewer = keep_schedule(n, keep / 1000, layers, prefix), keep_schedule(n, keep / 1000, layers, prefix, every)
    removed = oracle.keep_removals(n, keep / 1000, layers)
    expected = [sum(removed[layer : layer + every]) if layer % every == 0 else 0 for layer in range(layers)]
    assert list(fewer.remove) == expected and fewer.prefix == prefix
    assert fewer.tokens[::every] == each.tokens[::every] and fewer.tokens[-1] == each.tokens[-1]
    assert all(a <= b for a, b in zip(fewer.tokens, each.tokens, strict=True))
    assert list(fewer.tokens) == sorted(fewer.tokens, reverse=True)


@given(remove=st.lists(st.integers(0, 9), min_size=1, max_size=24), every=st.integers(1, 24), prefix=st.integers(0, 3))
def test_a_schedule_is_gathered(remove, every, prefix):
    """Layers that remove nothing belong to no group; the first of `every` others removes for all of them."""
    schedule, every = pc.Schedule.from_removals(300, remove, prefix, True), min(every, len(remove))
    fewer = schedule.gathered(every)
    merging = [layer for layer, k in enumerate(remove) if k]
    assert [layer for layer, k in enumerate(fewer.remove) if k] == merging[::every]
    assert [fewer.remove[layer] for layer in merging[::every]] == [
        sum(remove[layer] for layer in merging[i : i + every]) for i in range(0, len(merging), every)]
    assert fewer.tokens[-1] == schedule.tokens[-1] and fewer.clamped and fewer.prefix == prefix
    assert schedule.gathered(1) == schedule


@pytest.mark.parametrize("every", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("target", [{"keep": 0.9}, {"remove": 8}, {"tokens": 82}], ids=str)
def test_targets(deit, target, every):
    """Ratios, counts and final tokens: as with every=1, in fewer steps (5 does not divide 12)."""
    each, fewer = pc.schedule(deit, **target), pc.schedule(deit, **target, every=every)
    assert fewer == each.gathered(every) and fewer.tokens[-1] == each.tokens[-1]
    assert steps(fewer.remove) == -(-12 // every)
    if "tokens" not in target:
        assert pc.flops(pc.apply(deit, **target, every=every)).tokens == fewer.tokens
    pc.apply(deit, keep=fewer)
    assert pc.flops(deit).tokens == fewer.tokens


def test_target_flops_are_met_nearly(deit):
    """With fewer steps more tokens can stay for the same work."""
    whole, finals = pc.flops(deit).total, []
    for every in (1, 2, 3, 4, 6):
        schedule = pc.schedule(deit, flops=0.7, every=every)
        assert abs(pc.flops(pc.apply(deit, keep=schedule)).total / whole - 0.7) < 0.015
        assert steps(schedule.remove) == 12 // every
        finals.append(schedule.tokens[-1])
        pc.remove(deit)
    assert finals == sorted(finals) and finals[0] < finals[-1]


def test_the_smallest_budget_is_that_of_the_layers_that_merge(deit):
    with pytest.raises(ValueError, match="cannot be met") as every_layer:
        pc.schedule(deit, flops=1e-6)
    with pytest.raises(ValueError, match="cannot be met") as one_of_six:
        pc.schedule(deit, flops=1e-6, every=6)
    least = [float(str(error.value).split("and ")[1].split()[0]) for error in (every_layer, one_of_six)]
    halves = pc.schedule(deit, remove=[98, 0, 0, 0, 0, 0, 49, 0, 0, 0, 0, 0])
    assert least[1] == pytest.approx(pc.flops(pc.apply(deit, keep=halves)).total, rel=1e-3) and least[0] < least[1]


# --- models


@pytest.mark.parametrize("every", [2, 3, 4])
@pytest.mark.parametrize("method", ["pitome", "tome", "random_prune", "dct"])
def test_a_forward_merges_where_the_counts_say(build_vit, images, method, every):
    """Token counts of a recorded forward are those of pc.flops, whose numbers are the formula's at these tokens."""
    model = build_vit(depth=4)
    final = pc.flops(pc.apply(model, method, keep=0.9)).tokens[-1]
    counts = pc.flops(pc.apply(model, method, keep=0.9, every=every))
    with torch.no_grad(), pc.record(model) as trace:
        model(images(2))
    assert tuple(1 + layer.plan.num_tokens for layer in trace.layers) == counts.tokens[1:]
    assert counts.tokens[-1] == final and steps(k for k in find_patch(model).removals(16)) == -(-4 // every)
    for layer, part in enumerate(counts.layers):
        assert (part.attention, part.mlp) == oracle.block_macs(counts.tokens[layer], counts.tokens[layer + 1], 48)
        assert (part.merge > 0) == (layer % every == 0)


def test_work_falls(deit):
    """No number of layers costs more than merging in all; where one divides the other, the larger costs less."""
    cost = {every: pc.flops(pc.apply(deit, keep=0.95, every=every)).total for every in range(1, 13)}
    assert max(cost.values()) == cost[1]
    for every, larger in ((1, 2), (1, 3), (2, 4), (2, 6), (3, 6), (4, 12), (6, 12)):
        assert cost[larger] < cost[every]


@pytest.mark.parametrize("insertion", ["between", "after", "before"])
def test_the_step_is_the_step_of_that_size(build_vit, images, insertion):
    """The same output as with the counts written out, by hand or from a schedule."""
    model, x = build_vit(depth=5), images(2)
    with torch.no_grad():
        pc.apply(model, keep=0.9, every=2, insertion=insertion)
        expected, removed = model(x), find_patch(model).removals(16)
        assert removed == (2, 0, 2, 0, 1)  # 16, 15, 14, 13, 12, 11
        pc.apply(model, remove=list(removed), insertion=insertion)
        assert torch.equal(model(x), expected)
        pc.apply(model, keep=pc.schedule(model, keep=0.9, every=2), insertion=insertion)
        assert torch.equal(model(x), expected)


def test_layers_that_do_not_merge_are_in_no_group(build_vit):
    """Ratios of 1, counts of 0, and layers where the preset does not merge."""
    model = build_vit(depth=6)
    pc.apply(model, keep=[1.0, 0.8, 0.8, 1.0, 0.8, 0.8], every=2)
    each = pc.schedule(model, keep=[1.0, 0.8, 0.8, 1.0, 0.8, 0.8]).remove
    assert find_patch(model).removals(16) == (0, each[1] + each[2], 0, 0, each[4] + each[5], 0)
    pc.apply(model, remove=[0, 2, 1, 0, 1, 0], every=3)
    assert find_patch(model).removals(16) == (0, 4, 0, 0, 0, 0)
    pc.apply(model, keep=0.9, preset="released-bert", every=2)  # it merges in layers 0, 1, 2
    assert find_patch(model).removals(16) == (2, 0, 1, 0, 0, 0)
    pc.apply(model, keep=0.9, preset="released-bert", every=6)
    assert find_patch(model).removals(16) == (3, 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match=r"layers \[3, 4, 5\], where the preset does not merge"):
        pc.apply(model, remove=1, preset="released-bert", every=6)


def test_prefix_tokens_never_count(build_vit):
    """Class token and registers: groups are made of patches alone."""
    model = build_vit("vit_small_patch14_reg4_dinov2", depth=4)
    each, fewer = (pc.flops(pc.apply(model, keep=0.8, every=every)).tokens for every in (1, 4))
    assert fewer == (each[0], *[each[-1]] * 4) and each[0] == 5 + 16


def test_texts_keep_as_many_tokens_each():
    """Items of unequal length: each is left with as many tokens as with every=1, and merges in one of two layers."""
    transformers = pytest.importorskip("transformers")
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=5, num_attention_heads=2, vocab_size=50)
    model = randomize(transformers.BertModel(transformers.BertConfig(**small))).eval()
    ids, mask = torch.arange(2, 26).repeat(3, 1), torch.ones(3, 24, dtype=torch.long)
    mask[1, 17:], mask[2, 4:] = 0, 0
    left = {}
    for every, arguments in ((1, {}), (2, {}), (1, {"preset": "released-bert"}), (3, {"preset": "released-bert"})):
        pc.apply(model, keep=0.85, every=every, **arguments)
        with torch.no_grad(), pc.record(model) as trace:
            model(ids, attention_mask=mask)
        left[every, *arguments] = torch.stack([(layer.size > 0).sum(dim=1) for layer in trace.layers])  # (L, B)
    assert torch.equal(left[2,][1::2], left[1,][1::2]) and torch.equal(left[2,][-1], left[1,][-1])
    assert torch.equal(left[2,][0], left[2,][1]) and (left[2,][2] < left[2,][1]).any()
    three, one = left[3, "preset"], left[1, "preset"]
    assert torch.equal(three, one[-1].expand_as(three)) and (one[0] > one[-1]).any()
    pc.apply(model, keep=0.85, every=2)
    with torch.no_grad():
        alone = model(ids[1:2, :17]).last_hidden_state
        padded = model(ids, attention_mask=mask).last_hidden_state[1:2, :17]
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)


def test_both_towers():
    """Each tower has groups of its own, and the smaller one limits `every`."""
    library, transformers = pytest.importorskip("open_clip"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                                     vocab_size=50)
    vision = library.model.CLIPVisionCfg(layers=4, width=64, head_width=32, patch_size=16, image_size=64)
    model = library.model.CustomTextCLIP(32, vision, library.model.CLIPTextCfg())
    model.text = library.hf_model.HFTextEncoder(
        "bert", output_dim=32, config=config, proj_type="linear", pooler_type="cls_pooler", pretrained=False
    )
    model, pictures, words = model.eval(), torch.randn(2, 3, 64, 64), torch.arange(2, 22).view(2, 10)
    left = {}
    for every in (1, 2):
        pc.apply(model, "tome", keep=0.8, towers="both", every=every)
        left[every] = []
        towers = (model, model.encode_image, pictures), (model.text, model.encode_text, words)
        for tower, encode, x in towers:
            merging = next(part for part in tower.modules() if active_patch(part) is not None)
            with torch.no_grad(), pc.record(merging) as trace:
                encode(x)
            left[every].append([int((layer.size > 0).sum(dim=1).min()) for layer in trace.layers])
    assert [len(tower) for tower in left[2]] == [4, 2]
    for each, fewer in zip(left[1], left[2], strict=True):
        assert fewer == [each[1 + 2 * (layer // 2)] for layer in range(len(each))] and fewer[0] < each[0]
    with pytest.raises(ValueError, match="every=3: the model has 2 layers"):
        pc.apply(model, "tome", keep=0.8, towers="both", every=3)


# --- refused


@pytest.mark.parametrize("value, error, message", [
    (0, ValueError, "every must be 1 or more, got 0"),
    (-2, ValueError, "every must be 1 or more, got -2"),
    (4, ValueError, "every=4: the model has 3 layers; choose 1 .* to 3"),
    (True, TypeError, "every must be an integer, got bool True"),
    (2.0, TypeError, "every must be an integer, got float 2.0"),
    ("2", TypeError, "every must be an integer, got str '2'"),
    (None, TypeError, "every must be an integer"),
], ids=str)
def test_what_is_no_number_of_layers_is_refused(build_vit, value, error, message):
    model = build_vit()
    with pytest.raises(error, match=message):
        pc.apply(model, keep=0.9, every=value)
    with pytest.raises(error, match=message):
        pc.schedule(model, keep=0.9, every=value)
    with pytest.raises(error, match=message):
        pc.Schedule.from_removals(16, [1, 1, 1]).gathered(value)
    assert find_patch(model) is None


def test_more_than_one_layer_can_remove_is_refused(build_vit, deit):
    """0.9 ** 7 is below a half: the error names both numbers and the remedy. Pruning may go further."""
    allowed = r"cannot remove 100 of 196 tokens: at most 98 can merge in one layer; one layer removes what 7 would " \
              r"\(every=7\): choose a smaller every, or keep more tokens"
    for call in (pc.apply, pc.schedule):
        with pytest.raises(ValueError, match=allowed):
            call(deit, keep=0.9, every=7)
        call(deit, keep=0.9, every=6)
        pc.remove(deit)
        with pytest.raises(ValueError, match="cannot remove 128 of 196 tokens: .*choose a smaller every"):
            call(deit, remove=16, every=8)
    pc.apply(deit, "random_prune", keep=0.9, every=12)
    assert pc.flops(deit).tokens == (197, *[60] * 12)


def test_a_schedule_says_itself_where_layers_merge(build_vit):
    model = build_vit()
    schedule = pc.schedule(model, keep=0.9)
    for keep in (schedule, pc.settings(pc.apply(model, keep=schedule))["keep"]):
        with pytest.raises(ValueError, match=r"every=2 beside a schedule.*schedule\.gathered\(2\)"):
            pc.apply(model, keep=keep, every=2)
    assert find_patch(pc.apply(model, keep=schedule.gathered(2))).removals(16) == (2, 0, 1)


# --- what else has to agree


def test_the_model_says_it(build_vit):
    model = build_vit()
    assert "every" not in repr(pc.apply(model, keep=0.9))
    assert "keep=0.9, " in repr(pc.apply(model, keep=0.9, every=2)) and "every=2" in repr(model)
    assert "remove=[4, 0, 2]" in repr(pc.apply(model, remove=2, every=2)) and "every=2" in repr(model)
    assert pc.settings(model)["every"] == 2 and pc.settings(model)["remove"] == 2


def test_it_is_saved_and_restored(build_vit, images):
    """Through settings, pickle and deepcopy; for another input size the ratio gives other counts."""
    model, other, x = build_vit(dynamic_img_size=True), build_vit(dynamic_img_size=True), images(2, 96)
    stored = json.loads(json.dumps(pc.settings(pc.apply(model, keep=0.9, every=3))))
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(pc.apply(other, **stored)(x), expected)
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(copied(x), expected) and find_patch(copied).every == 3
    assert pc.flops(model, (3, 96, 96)).tokens == (37, 28, 28, 28)  # 36, 33, 30, 27


def test_it_is_diagnosed(build_vit, images):
    """As an argument of a named setting, with the work that it saves."""
    model = build_vit()
    methods = {"each": {"method": "tome"}, "one of three": {"method": "tome", "every": 3}}
    found = pc.diagnose(model, images(2), keeps=(0.9,), methods=methods, seconds=0)
    whole = pc.flops(model).total
    for one, every in zip(found.settings, (1, 3), strict=True):
        with pc.patched(model, "tome", 0.9, every=every):
            assert one.flops == pc.flops(model).total / whole
    assert found.settings[1].flops < found.settings[0].flops


@pytest.mark.filterwarnings("ignore")
def test_it_compiles_and_exports(build_vit, images):
    """As one graph, and for every batch size."""
    model, x = pc.apply(build_vit(depth=4), keep=0.8, every=2), images(3)
    torch._dynamo.reset()
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-6)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-6)
        exported = torch.export.export(model, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
        torch.testing.assert_close(exported(x), expected, rtol=1e-5, atol=1e-5)
        traced = torch.jit.trace(model, (x[:1],), check_trace=False)
        torch.testing.assert_close(traced(x), expected, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()


def test_the_time_records_round_once(deit):
    """Recorded timings with `every` keep the share `keep ** every`, which is rounded once a group: fewer are left."""
    ratios = [0.9**3 if layer % 3 == 0 else 1.0 for layer in range(12)]
    recorded, here = pc.schedule(deit, keep=ratios).tokens, pc.schedule(deit, keep=0.9, every=3).tokens
    assert recorded[::3] == (197, 144, 106, 78, 58) and here[::3] == (197, 145, 107, 80, 60)
