"""Answers of a LLaVA: batches equal one question at a time, and every image token has its order and its place."""

from __future__ import annotations

import pytest
import torch
from small_models import randomize

import pitome_core as pc
import pitome_core.experiments.baselines
from pitome_core.experiments.models import llava, llava_answers
from pitome_core.experiments.models.llava_answers import ORDERS, answer, image_tokens, released_order

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
    expected = [words.decode(row, skip_special_tokens=True).strip() for row in cut]
    assert answer(model, words, pixels(), PROMPTS, image_of=OF, max_new_tokens=4) == expected


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
