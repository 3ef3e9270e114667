"""Answers of a LLaVA: batches equal one question at a time, and every image token has its order and its place."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from small_models import randomize

import pitome_core as pc
import pitome_core.experiments.baselines
from pitome_core.experiments.models import llava, llava_answers
from pitome_core.experiments.models.llava_answers import ORDERS, answer, image_tokens, released_order
from pitome_core.experiments.records.cells import Cell
from pitome_core.experiments.vqa import grid as vqa_grid

transformers = pytest.importorskip("transformers", minversion="5.23")
from pitome_core.families.hf_llava import expand_placeholders, image_token_count  # noqa: E402

SIZE = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=48, patch_size=8)
GRID = 6
PROMPTS = ("<|im_start|><image>\nWhat?", "<|im_start|><image>\nWhere is the biggest owl of them all?",
           "Look: <image> so")
OF = (0, 0, 1)


def tiny(kind="CLIPVision", strategy="default", **more):
    """A LLaVA with SmolLM2's vocabulary, random everywhere."""
    vision = SIZE | ({"mlp_ratio": 2} if kind == "Dinov2" else {"intermediate_size": 48})
    language = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=48,
        vocab_size=49_152, max_position_embeddings=256, eos_token_id=2, pad_token_id=2,
    )
    config = transformers.LlavaConfig(
        vision_config=getattr(transformers, f"{kind}Config")(**vision), text_config=language, image_token_id=16,
        vision_feature_select_strategy=strategy, **{"vision_feature_layer": -2, **more},
    )
    return randomize(transformers.LlavaForConditionalGeneration(config)).eval()


@pytest.fixture(scope="module")
def words():
    return llava.tokenizer()


def pixels(count=2, side=48):
    draw = torch.Generator().manual_seed(1)
    coarse = torch.nn.functional.interpolate(torch.randn(count, 3, 4, 4, generator=draw), size=(side, side))
    return coarse + 0.2 * torch.randn(count, 3, side, side, generator=draw)


def one_by_one(model, words, prompts, of, new):
    """transformers' own generate, each question alone, placeholders written out."""
    found = []
    for prompt, i in zip(prompts, of, strict=True):
        ((ahead, behind),) = llava_answers.encode(words, [prompt], 16)
        ids = expand_placeholders(torch.tensor([[*ahead, 16, *behind]]), 16, image_token_count(model))
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels()[i : i + 1],
                              max_new_tokens=new, do_sample=False, pad_token_id=2)
        found.append(llava_answers.decode(words, made[0, ids.shape[1] :].tolist(), [2]))
    return found


@pytest.mark.parametrize(("kind", "strategy"), [
    ("CLIPVision", "default"), ("CLIPVision", "full"), ("Dinov2", "default"), ("SiglipVision", "full")])
def test_a_batch_equals_generate_on_each(words, kind, strategy):
    """Prompts of unequal length, with unequal beginnings, about shared pictures; whole, and merged in compact order."""
    model = tiny(kind, strategy)
    expected = one_by_one(model, words, PROMPTS, OF, 5)
    assert len(set(expected)) > 1
    for order in ORDERS:  # of the whole model all three are one
        assert answer(model, words, pixels(), PROMPTS, image_of=OF, order=order, max_new_tokens=5) == expected
    with pc.patched(model, "tome", 0.7, restore=False):
        merged = one_by_one(model, words, PROMPTS, OF, 5)
        found = answer(model, words, pixels(), PROMPTS, image_of=OF, order="raster-compact", max_new_tokens=5)
    assert found == merged != expected
    with pc.patched(model, "pitome", 1.0, restore=False):
        assert answer(model, words, pixels(), PROMPTS, image_of=OF, max_new_tokens=5) == expected


def test_an_answer_ends_where_the_model_says(words, monkeypatch):
    """Others of the batch go on; what is said behind the end is nobody's."""
    model = tiny()
    with monkeypatch.context() as patch:
        patch.setattr(llava_answers, "decode", lambda tokenizer, ids, ends: ids)
        ids = answer(model, words, pixels(), PROMPTS, image_of=OF, max_new_tokens=4)
    end = ids[0][1]
    cut = [row[: row.index(end)] if end in row else row for row in ids]
    assert sorted(map(len, cut))[0] < 4 == max(map(len, cut)), "the case needs answers of unequal length"
    model.generation_config.eos_token_id = [2, end]
    batches = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(len(kwargs["inputs_embeds"])), with_kwargs=True)
    expected = [words.decode(row, skip_special_tokens=True).strip() for row in cut]
    assert answer(model, words, pixels(), PROMPTS, image_of=OF, max_new_tokens=4) == expected
    passes = [min(4, len(row) + 1) for row in cut]  # of each question: its answer and the end
    assert passes[0] != passes[1] and sum(batches) == sum(passes) + 2, "a question that has its answer leaves the batch"


def trace_of(model, method, keep=0.7, **options):
    """Features in order, and the layers that were recorded."""
    with pc.patched(model, method, keep, restore=False, **options), pc.record(model) as trace, torch.no_grad():
        tokens = {order: image_tokens(model, pixels(), order) for order in ORDERS}
        layers, patch = trace.last.layers, llava_answers.active_patch(model.model.vision_tower)
    return tokens, layers[:2], patch  # the features stand behind the second of three layers


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize(("method", "options"), [
    ("tome", {}), ("pitome", {}), ("random_prune", {}), ("pitome", {"preset": "released-llava"})])
def test_positions_are_middles_of_patches(strategy, method, options):
    """A loop over patches: each token at the patch nearest to its middle, the class token first, dropped ones nowhere.
    """
    tokens, layers, _ = trace_of(tiny("CLIPVision", strategy), method, **options)
    plan, extra = layers[0].plan.then(layers[1].plan), int(strategy == "full")
    found = tokens["raster-centroid"]
    assert found.length == extra + GRID**2 and found.positions.shape == found.features.shape[:2]
    for item in range(2):
        expected = list(range(extra))
        for slot in range(plan.num_tokens):
            mine = [i for i in range(GRID**2) if plan.assignment[item, i] == slot]
            row, column = (round(sum(part) / len(mine)) for part in zip(*(divmod(i, GRID) for i in mine), strict=True))
            expected.append(extra + row * GRID + column)
        assert found.positions[item].tolist() == expected

    compact = tokens["raster-compact"]
    assert torch.equal(compact.features, found.features) and compact.length == found.features.shape[1]
    assert compact.positions.tolist() == [list(range(compact.length))] * 2


@pytest.mark.parametrize("strategy", ["default", "full"])
def test_slots_say_which_token_stands_where(strategy):
    """Features in any order are those in raster order, at the slots; every token is read once."""
    tokens, _, _ = trace_of(tiny("CLIPVision", strategy), "pitome")
    raster = tokens["raster-compact"]
    for order, found in tokens.items():
        assert torch.equal(found.features, raster.features.gather(1, found.slots[..., None].expand_as(raster.features)))
        every = torch.arange(found.slots.shape[1]).expand_as(found.slots)
        assert torch.equal(found.slots.sort(dim=1).values, every)
        assert torch.equal(found.slots, every) == (order != "released")


RATIO = 0.7
LAYERS = 2  # of the three: the features stand behind the second
# Where tokens merge, and which of them: of the metric (N, C), k and the layer. No attention counts sizes.
SLOW = {
    "pitome-released-clip": ("between", lambda x, k, layer: oracle.pitome_roots(
        x, k, oracle.margins(3, 0.95)[layer], kernel="elu")),
    "tome-hidden": ("between", lambda x, k, layer: oracle.tome_roots(x, k)),
    "tome-released-clip": ("after", lambda x, k, layer: oracle.tome_roots(x, k, parity="all")),
    "pitome-released-llava": ("after", lambda x, k, layer: oracle.tome_roots(x, k)),
}


def slow_tower(model, picture, name):
    """Features ``(M, C)`` of one picture and the patches of each, in raster order of anchors: a loop over layers."""
    place, roots_of = SLOW[name]
    tower, removed = model.model.vision_tower, oracle.keep_removals(GRID**2, RATIO, 3)
    x, size, members = tower.embeddings(picture[None]), np.ones(GRID**2), [[i] for i in range(GRID**2)]
    for number, layer in enumerate(tower.encoder.layer[:LAYERS]):
        def merged(x, size, members, number=number):
            roots = roots_of(x[0, 1:], removed[number], number)
            weights = np.ones_like(size) if name == "pitome-released-llava" else size  # plain means
            y, _ = oracle.merge(x[0, 1:], roots, weights)
            groups = oracle.groups(roots)
            size = np.array([sum(size[i] for i in group) for group in groups])
            members = [sum((members[i] for i in group), []) for group in groups]
            return torch.cat([x[:, :1], torch.tensor(y, dtype=x.dtype)[None]], dim=1), size, members

        attended = layer.attention(layer.norm1(x))
        x = x + layer.layer_scale1(attended[0] if isinstance(attended, tuple) else attended)
        if place == "between":
            x, size, members = merged(x, size, members)
        x = x + layer.layer_scale2(layer.mlp(layer.norm2(x)))
        if place == "after":
            x, size, members = merged(x, size, members)
    return model.model.multi_modal_projector(x)[0, 1:], members


@torch.no_grad()
@pytest.mark.parametrize("cell", [
    Cell("pitome-released-clip", RATIO), Cell("tome-released-clip", RATIO), Cell("pitome-released-llava", RATIO),
    Cell("tome-hidden", RATIO, proportional=False),
], ids=lambda cell: cell.key)
def test_an_arm_without_attention_by_size_equals_a_loop(words, cell):
    """Features, their number and their places in the language model; batched answers are those of one at a time."""
    model = tiny("Dinov2")
    before = answer(model, words, pixels(), PROMPTS, image_of=OF, max_new_tokens=3)
    with vqa_grid.applied(cell, model):
        found = image_tokens(model, pixels())
        count = image_token_count(model)
        batched = answer(model, words, pixels(), PROMPTS, image_of=OF, order=ORDERS[1], max_new_tokens=3)
        alone = one_by_one(model, words, PROMPTS, OF, 3)
    assert batched == alone
    for item, picture in enumerate(pixels()):
        features, members = slow_tower(model, picture, cell.arm)
        assert len(members) == count == GRID**2 - sum(oracle.keep_removals(GRID**2, RATIO, 3)[:LAYERS])
        torch.testing.assert_close(found.features[item], features, rtol=0, atol=2e-4)
        middles = [[sum(part) / len(mine) for part in zip(*(divmod(i, GRID) for i in mine), strict=True)]
                   for mine in members]
        assert found.positions[item].tolist() == [round(row) * GRID + round(column) for row, column in middles]
    assert answer(model, words, pixels(), PROMPTS, image_of=OF, max_new_tokens=3) == before


def test_the_parity_of_the_repositorys_tome_is_seen(words):
    """The loop with ToMe's own parity is another one."""
    model = tiny("Dinov2")
    with vqa_grid.applied(Cell("tome-released-clip", RATIO), model), torch.no_grad():
        found = image_tokens(model, pixels()).features[0]
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setitem(SLOW, "tome-released-clip", ("after", SLOW["tome-hidden"][1]))
        assert (found - slow_tower(model, pixels()[0], "tome-released-clip")[0]).abs().max() > 1e-2


def test_a_smaller_picture_lies_on_the_same_grid():
    """Half the side: each of its patches stands for four, and the text goes on where it did."""
    found = image_tokens(tiny("Dinov2"), pixels(side=24))
    assert found.length == GRID**2 and found.features.shape[1] == (GRID // 2) ** 2
    rows, columns = found.positions[0] // GRID, found.positions[0] % GRID
    assert set(rows.tolist()) == set(columns.tolist()) and (rows.view(3, 3).diff(dim=0) == 2).all()
    assert (columns.view(3, 3).diff(dim=1) == 2).all()


def slow_order(layers, ranked):
    """The released order written out: lists of raster numbers, layer by layer."""
    batch = []
    for item in range(2):
        order = list(range(GRID**2))
        for layer in layers:
            plan = layer.plan
            count, k = plan.assignment.shape[1], plan.assignment.shape[1] - plan.num_tokens
            kept = [i for i in order if plan.anchored[item, i]]
            if ranked:
                by_energy = sorted(range(count), key=lambda i: -plan.energy[item, i].item())
                b = by_energy[1 : 2 * k : 2]
                new = by_energy[2 * k :] + b
            else:
                new = [i for i in kept if i % 2 == 0] + [i for i in kept if i % 2]
            assert sorted(new) == sorted(kept)
            order = [int(plan.assignment[item, i]) for i in new]
        batch.append(order)
    return batch


@pytest.mark.parametrize(("method", "options", "ranked"), [
    ("tome", {}, False), ("pitome", {}, True), ("pitome", {"preset": "released-llava"}, False)])
def test_the_released_order(method, options, ranked):
    """As a loop makes it; features are the same ones, moved."""
    tokens, layers, patch = trace_of(tiny("CLIPVision"), method, 0.8, **options)
    order = released_order(layers, patch)
    assert order.tolist() == slow_order(layers, ranked)
    assert (order.sort(dim=1).values == torch.arange(order.shape[1])).all() and (order.diff(dim=1) < 0).any()
    for item in range(2):
        assert torch.equal(tokens["released"].features[item], tokens["raster-compact"].features[item, order[item]])
    assert torch.equal(tokens["released"].positions, tokens["raster-compact"].positions)


def test_errors(words):
    model = tiny("Dinov2")
    with pytest.raises(ValueError, match="order is 'random'; choose one of raster-centroid"):
        image_tokens(model, pixels(), "random")
    with pc.patched(model, "dct", 0.8, restore=False):
        with pytest.raises(ValueError, match="order='raster-compact'"):
            answer(model, words, pixels(), PROMPTS, image_of=OF)
        assert len(answer(model, words, pixels(), PROMPTS, image_of=OF, order="raster-compact", max_new_tokens=1)) == 3
    for prompts, of, message in (
        (["no picture"], [0], "exactly once, this has it 0 times"), (["<image> <image> ?"], [0], "it 2 times"),
        (["What? <image>"], [0], "text behind"), (["<image> ?"], [2], "picture 2, there are 2"),
        (["<image> ?"], None, "1 prompts and 2 pictures"),
    ):
        with pytest.raises(ValueError, match=message):
            answer(model, words, pixels(), prompts, image_of=of)
