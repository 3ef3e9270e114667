"""open_clip's CustomTextCLIP with a BERT as text tower: image, text or both towers merge."""

from __future__ import annotations

import copy

import family_contract as contract
import pytest
import torch
from small_models import pictures, randomize
from torch import nn

import pitome_core as pc
import pitome_core.experiments.baselines

pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")
from open_clip.hf_model import HFTextEncoder  # noqa: E402
from open_clip.model import CustomTextCLIP  # noqa: E402
from transformers.models.bert.modeling_bert import BertModel  # noqa: E402

SIDE, WIDTH, DEPTH, PATCHES, LAYERS = 64, 24, 3, 16, 2
one_thread = contract.one_thread
BERT = dict(hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=48, vocab_size=50,
            max_position_embeddings=20)
LENGTHS = (14, 9, 11)


@pytest.fixture
def build(monkeypatch, tmp_path):
    """build(pooler, **text) -> (model, images, token ids padded with 0) in eval mode."""
    import timm

    create = timm.create_model
    small = dict(img_size=SIDE, patch_size=16, embed_dim=48, num_heads=3, depth=DEPTH)
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **{**small, **options}))

    def make(pooler="mean_pooler", config="BertConfig", dtype=torch.float32, **text):
        getattr(transformers, config)(**BERT).save_pretrained(tmp_path)
        vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": "mlp"}
        given = {"hf_model_name": str(tmp_path), "hf_model_pretrained": False, "hf_pooler_type": pooler,
                 "hf_proj_type": "mlp", **text}
        model = randomize(CustomTextCLIP(WIDTH, vision, given)).to(dtype).eval()
        ids = torch.randint(1, 50, (len(LENGTHS), 14), generator=torch.Generator().manual_seed(4))
        for row, length in zip(ids, LENGTHS, strict=True):
            row[length:] = 0
        return model, pictures(len(LENGTHS), (SIDE, SIDE), dtype), ids

    return make


def everything(images, ids):
    def call(model):
        return [model.encode_image(images), model.encode_text(ids), model.encode_text(ids, normalize=True),
                model(images, ids), model.get_logits(images, ids)]

    return call


def only(tower):
    """What `pc.apply` of the contract becomes: the same, for one choice of towers."""
    def apply(model, *arguments, **named):
        return APPLY(model, *arguments, **{"towers": tower, **named})

    return apply


APPLY = pc.apply


@pytest.mark.parametrize("towers", ["vision", "text", "both"])
@pytest.mark.parametrize(("pooler", "config"), [
    ("mean_pooler", "BertConfig"), ("cls_pooler", "BertConfig"), ("cls_last_hidden_state_pooler", "BertConfig"),
    ("mean_pooler", "RobertaConfig"),
])
def test_contract(build, monkeypatch, towers, pooler, config):
    """Identity at keep=1, remove to the bit, copies, whatever merges; the other tower is left alone."""
    model, images, ids = build(pooler, config)
    call = everything(images, ids)
    whole = contract.outputs(model, call)
    monkeypatch.setattr(pc, "apply", only(towers))
    contract.close(contract.outputs(pc.apply(model, keep=1.0), call), whole)
    contract.remove_restores(pc.remove(model), call)
    contract.copies_are_independent(model, call)
    merged = contract.outputs(pc.apply(model, keep=0.6), call)
    assert contract.shapes(merged) == contract.shapes(whole)
    changed = [not torch.allclose(a, b, atol=1e-4) for a, b in zip(merged, whole, strict=True)]
    assert changed[:2] == [towers != "text", towers != "vision"]
    pc.remove(model)


@pytest.mark.parametrize("method", ["pitome", "tome", "random_prune", "tofu"])
def test_each_tower_is_its_own_family(build, method):
    """Both at once give what each alone gives, and that is what `apply` on trunk and transformer gives."""
    model, images, ids = build()
    alone = copy.deepcopy(model)
    pc.apply(alone.visual.trunk, method, keep=0.6)
    pc.apply(alone.text.transformer, method, keep=0.6)
    real = (ids != 0).long()
    with torch.no_grad():
        image = alone.visual.head(alone.visual.trunk(images))
        states = alone.text.transformer(input_ids=ids, attention_mask=real).last_hidden_state
        left = real * (states != 0).any(dim=2)  # dropped tokens came back as zeros
        text = alone.text.proj((states * left[..., None]).sum(1) / left.sum(1, keepdim=True))
        assert (left.sum() < real.sum()) == (method in ("random_prune", "tofu"))
        for towers, expected in (("vision", (image, None)), ("text", (None, text)), ("both", (image, text))):
            pc.apply(model, method, keep=0.6, towers=towers)
            for want, got in zip(expected, (model.encode_image(images), model.encode_text(ids)), strict=True):
                if want is not None:
                    torch.testing.assert_close(got, want)
    pc.remove(model)


@pytest.mark.parametrize("config", ["BertConfig", "RobertaConfig"])
def test_neighbours_and_padding_change_nothing(build, config):
    """A text alone, without its padding, has the embedding that it has in a batch."""
    model, images, ids = build(config=config, dtype=torch.float64)
    pad = model.text.config.pad_token_id
    real = ids.masked_fill(ids == pad, 7)
    ids = torch.where(torch.arange(14) < torch.tensor(LENGTHS)[:, None], real, pad)
    pc.apply(model, keep=0.6, towers="both")
    with torch.no_grad():
        together = model.encode_text(ids)
        for i, length in enumerate(LENGTHS):
            torch.testing.assert_close(model.encode_text(ids[i : i + 1, :length]), together[i : i + 1])


def test_traces_and_counts(build):
    """The model's are the image tower's where that merges, else the text tower's; each can be asked for by itself."""
    model, images, ids = build()
    encoder, size = model.text.transformer, (14,)
    whole = {"vision": pc.flops(model), "text": pc.flops(encoder, size)}
    for towers in ("vision", "text", "both"):
        pc.apply(model, keep=0.6, towers=towers)
        with torch.no_grad(), pc.record(model) as trace:
            model(images, ids)
        assert len(trace.forwards) == 1
        assert trace.assignment.shape == ((3, 14) if towers == "text" else (3, PATCHES))
        text, image = pc.flops(encoder, size), pc.flops(model.visual)
        assert (text.total < whole["text"].total) == (towers != "vision")
        assert (image.total < whole["vision"].total) == (towers != "text")
        if towers == "text":
            projection = sum(part.weight.numel() for part in model.text.proj if isinstance(part, nn.Linear))
            assert pc.flops(model, size).total == text.total + projection
            assert pc.schedule(model, keep=0.6, input_size=size).tokens == text.tokens
        else:
            assert pc.flops(model) == image and pc.schedule(model, keep=0.6).tokens == image.tokens
        if towers == "both":
            with torch.no_grad(), pc.record(encoder) as inner:
                model(images, ids)
            assert inner.assignment.shape == (3, 14)
            assert repr(model).count("merging: 'pitome', keep=0.6") == 2
    pc.remove(model)
    assert pc.flops(model) == whole["vision"]


def test_the_patch_belongs_to_the_whole_model(build):
    """No part of it can be patched or unpatched alone; `patched` gives back which towers merged before."""
    model, images, ids = build()
    with torch.no_grad():
        whole = model.encode_text(ids)
        pc.apply(model, keep=0.6, towers="both")
        both = [model.encode_image(images), model.encode_text(ids)]
        for part in (model.text.transformer, model.visual):
            with pytest.raises(ValueError, match="merges already"):
                pc.apply(part, keep=0.9)
            with pytest.raises(ValueError, match="part of another model"):
                pc.remove(part)
        with pc.patched(model, "tome", keep=0.7):
            assert torch.equal(model.encode_text(ids), whole), "the image tower alone"
        assert all(torch.equal(a, b) for a, b in zip(
            both, (model.encode_image(images), model.encode_text(ids)), strict=True))
        assert torch.equal(pc.remove(model).encode_text(ids), whole)


def test_the_text_tower_is_not_taken_out_under_a_recording(build):
    """`apply` to one tower alone would silently end a recording of the text tower, as `remove` would."""
    model, images, ids = build()
    pc.apply(model, keep=0.6, towers="both")
    with pc.record(model.text.transformer) as trace, torch.no_grad():
        for towers in ("vision", "text"):
            with pytest.raises(RuntimeError, match="recording of the text tower"):
                pc.apply(model, keep=0.7, towers=towers)
        pc.apply(model, keep=0.7, towers="both").encode_text(ids)
    assert len(trace.forwards) == 1
    pc.apply(model, keep=0.7, towers="vision")


def test_gradients_flow(build):
    """Every parameter that learns unpatched learns patched, in both towers."""
    model, images, ids = build()

    def loss(m):
        return m.get_logits(images, ids)[0].square().sum()

    loss(model).backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    pc.apply(model, keep=0.6, towers="both")
    for checkpointing in (False, True):
        if checkpointing:
            model.set_grad_checkpointing(True)
        model.train()
        model.zero_grad(set_to_none=True)
        loss(model).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert set(gradients) == learning and all(torch.isfinite(grad).all() for grad in gradients.values())


class OwnPooler(nn.Module):
    """Somebody's pooler."""


class OwnBert(BertModel):
    """Somebody's BERT."""


def changed(model, **parts):
    for name, value in parts.items():
        setattr(model.text, name, value)
    return model


REFUSED = {
    "another pooler": (lambda m: changed(m, pooler=OwnPooler()), {}, ValueError, "OwnPooler"),
    "the largest token": (lambda m: m, {"pooler": "max_pooler"}, ValueError, "MaxPooler"),
    "another BERT": (lambda m: changed(m, transformer=OwnBert(m.text.config)), {}, ValueError, "OwnBert"),
    "another architecture": (lambda m: changed(m, transformer=torch.nn.Identity()), {}, ValueError, "Identity"),
    "merged tokens": (lambda m: m, {"restore": False}, pc.UnsupportedModelError, "restore=False"),
    "places of a grid": (lambda m: m, {"method": "grid_pool"}, ValueError, "grid_pool"),
    "a schedule": (lambda m: m, {"keep": "schedule"}, ValueError, "every item has its own"),
    "one ratio per layer": (lambda m: m, {"keep": [0.9] * (DEPTH + 1)}, ValueError, "4 entries, the model [23] layers"),
}


@pytest.mark.parametrize("towers", ["text", "both"])
@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_right_is_refused(build, case, towers):
    """With the reason, and the model stays as it was; its image tower merges nevertheless."""
    change, given, error, words = REFUSED[case]
    given = dict(given)
    model, images, ids = build(given.pop("pooler", "mean_pooler"), given.pop("config", "BertConfig"))
    model = change(model)
    if given.get("keep") == "schedule":
        given["keep"] = pc.schedule(model, keep=0.9)
    before = contract.snapshot(model)
    with pytest.raises(error, match=words):
        pc.apply(model, **{"keep": 0.9, "towers": towers, **given})
    assert contract.snapshot(model) == before
    assert type(model.text) is HFTextEncoder and "pitome" in repr(pc.apply(model, keep=0.9))
