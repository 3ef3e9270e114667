"""open_clip's CLIP and CustomTextCLIP: image towers of its own and from timm; text towers untouched or refused."""

from __future__ import annotations

import copy

import family_contract as contract
import oracle
import oracle_families as reference
import oracle_released
import pytest
import torch
from small_models import pictures, randomize
from torch import nn

import pitome_core as pc
import pitome_core.experiments.baselines

open_clip = pytest.importorskip("open_clip")
from open_clip.model import CLIP, CustomTextCLIP  # noqa: E402
from open_clip.timm_model import TimmModel  # noqa: E402
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer  # noqa: E402

DEPTH, PATCHES, SIDE, WIDTH = 3, 16, 64, 24
one_thread = contract.one_thread
VISION = dict(image_size=SIDE, patch_size=16, width=48, head_width=16, layers=DEPTH)
TEXT = dict(context_length=12, vocab_size=50, width=32, heads=2, layers=2)
POOLER = dict(attn_pooler_queries=5, attn_pooler_heads=4)
ARCHITECTURES = {
    "CLIP": (CLIP, {}),
    "OpenAI's CLIP": (CLIP, {"quick_gelu": True}),
    "LayerScale": (CLIP, {"ls_init_value": 0.1}),
    "average pooling": (CLIP, {"pool_type": "avg"}),
    "norm after pooling": (CLIP, {"pool_type": "avg", "final_ln_after_pool": True}),
    "tokens out": (CLIP, {"pool_type": "none"}),
    "fixed positions": (CLIP, {"pos_embed_type": "sin_cos_2d", "no_ln_pre": True}),
    "attentional pooler": (CLIP, {"attentional_pool": True, **POOLER}),
    "text apart": (CustomTextCLIP, {"final_ln_after_pool": True}),
    "ViT from timm": (CustomTextCLIP, {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "avg"}),
    "EVA from timm": (CustomTextCLIP, {"timm_model_name": "eva02_tiny_patch14_224", "timm_proj": "mlp"}),
    "SigLIP": (CustomTextCLIP, {
        "timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map", "timm_proj": "none"
    }),
}
NATIVE = [name for name, (_, options) in ARCHITECTURES.items() if "timm_model_name" not in options]
TIMM = [name for name in ARCHITECTURES if name not in NATIVE]


@pytest.fixture
def build(monkeypatch):
    """build(architecture, dtype, **vision) -> (model, images, texts) in eval mode, with LayerScale 0.3."""
    import timm

    create = timm.create_model
    small = dict(img_size=SIDE, patch_size=16, embed_dim=48, num_heads=3, depth=DEPTH)
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **{**small, **options}))

    def make(architecture="CLIP", dtype=torch.float32, batch=2, **overrides):
        kind, options = ARCHITECTURES[architecture]
        vision = {**VISION, **options, **overrides}
        quick = vision.pop("quick_gelu", False)
        output_dict = vision.pop("output_dict", False)
        width = 48 if architecture == "SigLIP" else WIDTH
        model = kind(width, vision, TEXT, quick_gelu=quick, output_dict=output_dict)
        model = randomize(model).to(dtype).eval()
        texts = torch.randint(1, 50, (batch, 12), generator=torch.Generator().manual_seed(4))
        return model, pictures(batch, (SIDE, SIDE), dtype), texts

    return make


def everything(images, texts):
    def call(model):
        outputs = [model.encode_image(images), model.encode_image(images, normalize=True), model(images, texts)]
        outputs.append(model.get_logits(images, texts) if outputs[0].ndim == 2 else None)
        outputs.append(model.forward_intermediates(images, texts, image_output_extra_tokens=True))
        return outputs

    return call


def written_out(tower, images, keep=0.7, **options):
    options = {"remove": oracle.keep_removals(PATCHES, keep, DEPTH), "margins": oracle.margins(DEPTH), **options}
    return reference.open_clip(copy.deepcopy(tower), images, **options)


# ----------------------------------------------------------------------------------------------------- the contract
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_contract(build, architecture, registry):
    """Identity at keep=1, tokens as planned, types and shapes as before, remove to the bit."""
    model, images, texts = build(architecture)
    contract.keep_one_is_the_identity(model, everything(images, texts))
    contract.merges_as_planned(model, everything(images, texts), PATCHES, DEPTH)
    contract.remove_restores(model, everything(images, texts))


@pytest.mark.parametrize("output_tokens", [False, True])
@pytest.mark.parametrize("architecture", NATIVE)
def test_image_tower_equals_the_reference(build, architecture, output_tokens):
    """Features, tokens, intermediates and plans equal the forward written out token by token."""
    model, images, _ = build(architecture, torch.float64, output_tokens=output_tokens)
    expected, states, roots = written_out(model.visual, images)
    pc.apply(model, keep=0.7)
    with torch.no_grad(), pc.record(model) as trace:
        got = model.visual(images)
    assert trace.assignment.tolist() == [oracle.assignment(item[-1]) for item in roots]
    assert contract.shapes(got) == contract.shapes(expected)
    contract.close(contract.tensors(got), contract.tensors(expected))
    with torch.no_grad():
        intermediates = model.visual.forward_intermediates(images, output_fmt="NLC", output_extra_tokens=True)
    for value, state in zip(intermediates["image_intermediates"], states, strict=True):
        torch.testing.assert_close(value, state[:, 1:], rtol=1e-6, atol=1e-7)
    if not output_tokens:
        torch.testing.assert_close(intermediates["image_features"], expected, rtol=1e-6, atol=1e-7)


VARIANTS = [
    dict(method="tome", proportional=True),
    dict(method="pitome", proportional=False, metric="concat"),
    dict(method="pitome", insertion="before", metric="hidden"),
    dict(method="pitome", insertion="after"),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(f"{key}={value}" for key, value in v.items()))
def test_every_choice_equals_the_reference(build, variant):
    """Method, metric, proportional attention and insertion point act as the reference says."""
    model, images, _ = build("LayerScale", torch.float64)
    expected, *_ = written_out(model.visual, images, **variant)
    with torch.no_grad():
        torch.testing.assert_close(pc.apply(model, keep=0.7, **variant).encode_image(images), expected)


# What the repository of the paper runs in CLIP: PiToMe, and the ToMe beside it. Arguments of `pc.apply`, and those of
# the forward written out.
HIDDEN = dict(metric="hidden", proportional=False)
RELEASED = {
    "PiToMe": (dict(preset="released-clip"), dict(method="pitome", kernel="elu", margins=[
        0.95 * (1 - layer / DEPTH) for layer in range(DEPTH)], **HIDDEN)),
    "ToMe": (dict(method="tome", parity="all", insertion="after", **HIDDEN),) * 2,
}


@pytest.mark.parametrize("name", list(RELEASED))
def test_what_was_released_for_clip_equals_the_reference(build, name):
    """Features and plans of the image tower; the text tower is untouched. Another place, parity or kernel differs."""
    model, images, texts = build("OpenAI's CLIP", torch.float64)
    arguments, written = RELEASED[name]
    expected, _, roots = written_out(model.visual, images, **written)
    with torch.no_grad():
        of_texts = model.encode_text(texts)
        with pc.patched(model, keep=0.7, **arguments), pc.record(model) as trace:
            torch.testing.assert_close(model.encode_image(images), expected, rtol=1e-9, atol=1e-9)
            assert torch.equal(model.encode_text(texts), of_texts)
    assert trace.assignment.tolist() == [oracle.assignment(item[-1]) for item in roots]
    for other in (dict(insertion={"PiToMe": "after", "ToMe": "between"}[name]), dict(proportional=True),
                  {"PiToMe": dict(kernel="paper"), "ToMe": dict(parity="patches")}[name]):
        assert not torch.allclose(written_out(model.visual, images, **written | other)[0], expected, atol=1e-5), other


@pytest.mark.parametrize("name", list(RELEASED))
def test_what_was_released_for_clip_runs_in_a_tower_of_timm(build, name):
    """As in the dual encoder of the book: tokens and groups of the trunk equal the slow forward."""
    model, images, _ = build("ViT from timm", torch.float64)
    change = {} if name == "PiToMe" else {"matching": "tome, class token in front", "place": "after"}
    trunk, keeps = model.visual.trunk, [0.7] * DEPTH
    slow = [oracle_released.timm_vit(trunk, image, "released-clip", keeps, **change) for image in images]
    with pc.patched(model, keep=keeps, **RELEASED[name][0]), pc.record(model) as trace, torch.no_grad():
        got = trunk.forward_features(images)
    for item, (expected, history) in enumerate(slow):
        torch.testing.assert_close(got[item], expected, rtol=1e-9, atol=1e-9)
        slots = trace.assignment[item].tolist()
        assert sorted([1 + i for i, slot in enumerate(slots) if slot == one] for one in set(slots)) == sorted(
            group for group in history[-1] if group != [0])


def test_the_reference_notices_a_lost_layer_scale(build):
    """The comparison can fail: a block without its LayerScale is far outside the tolerance."""
    model, images, _ = build("LayerScale", torch.float64)
    right = written_out(model.visual, images)[0]
    for block in model.visual.transformer.resblocks:
        block.ls_1 = nn.Identity()
    assert not torch.allclose(written_out(model.visual, images)[0], right, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", TIMM)
def test_timm_tower_is_the_timm_family(build, architecture):
    """Behind `TimmModel` runs what `apply` on the trunk alone gives, and the tower's own head."""
    model, images, _ = build(architecture)
    alone = copy.deepcopy(model.visual)
    pc.apply(alone.trunk, keep=0.7)
    with torch.no_grad():
        expected = alone.head(alone.trunk(images))
        torch.testing.assert_close(pc.apply(model, keep=0.7).encode_image(images), expected)


def test_the_text_tower_is_left_alone(build):
    """Texts are encoded to the bit as before, and dictionaries stay dictionaries."""
    for architecture in ("CLIP", "text apart"):
        model, images, texts = build(architecture, output_dict=True)
        with torch.no_grad():
            before, whole = model.encode_text(texts), model(images, texts)
            pc.apply(model, keep=0.7)
            assert torch.equal(model.encode_text(texts), before)
            after = model(images, texts)
        assert contract.shapes(after) == contract.shapes(whole)
        assert not torch.allclose(after["image_features"], whole["image_features"], atol=1e-4)


# ------------------------------------------------------------------------------------------- the patch and its parts
@pytest.mark.parametrize("architecture", ["CLIP", "ViT from timm"])
def test_the_patch_belongs_to_the_model_it_was_put_on(build, architecture):
    """A trace or a count of the tower is that of the model around it; the tower cannot be patched alone."""
    model, images, texts = build(architecture)
    whole = pc.flops(model)
    assert pc.flops(model.visual) == whole
    pc.apply(model, keep=0.7)
    with torch.no_grad(), pc.record(model) as outer, pc.record(model.visual) as inner:
        model(images, texts)
        model.encode_text(texts)
    assert len(outer.forwards) == len(inner.forwards) == 1, "the trace is the image tower's"
    assert outer.assignment.shape == (2, PATCHES) and torch.equal(outer.assignment, inner.assignment)
    assert pc.flops(model.visual) == pc.flops(model) and pc.flops(model).total < whole.total
    assert pc.flops(model).tokens == pc.schedule(model, keep=0.7).tokens
    assert "pitome" in repr(model)
    with pytest.raises(ValueError, match="merges already|already merges"):
        pc.apply(model.visual, keep=0.9)
    with pytest.raises(ValueError, match="part of another model"):
        pc.remove(model.visual)
    pc.remove(model)
    pc.apply(model.visual, keep=0.7)
    with pytest.raises(ValueError, match="merges already|already merges"):
        pc.apply(model, keep=0.9)
    with pytest.raises(RuntimeError, match="'visual'"), pc.record(model):
        pass
    pc.remove(model.visual)


def test_patched_nests(build):
    """`patched` gives back what was there before, also on a composite."""
    model, images, _ = build("CLIP")
    with torch.no_grad():
        whole = model.encode_image(images)
        with pc.patched(model, keep=0.7):
            outer = model.encode_image(images)
            with pc.patched(model, "tome", keep=0.6):
                assert not torch.equal(model.encode_image(images), outer)
            assert torch.equal(model.encode_image(images), outer)
        assert torch.equal(model.encode_image(images), whole)


@pytest.mark.parametrize("architecture", ["CLIP", "average pooling", "norm after pooling", "tokens out"])
def test_pooling_after_pruning_counts_survivors(build, architecture):
    """Pooling gets the survivors only; handing on merged tokens pools them by size; tokens hold zeros where dropped."""
    model, images, _ = build(architecture, torch.float64, output_tokens=True)
    tower, whole = model.visual, copy.deepcopy(model.visual)
    with torch.no_grad():
        pc.apply(model, "random_prune", keep=0.7, restore=False)
        kept = tower.forward_intermediates(images, indices=1, output_fmt="NLC", output_extra_tokens=True)
        left = torch.cat([kept["image_intermediates_prefix"][0], kept["image_intermediates"][0]], dim=1)
        expected = whole._pool(left)[0] @ whole.proj
        assert tower(images)[0].shape == expected.shape
        torch.testing.assert_close(tower(images)[0], expected)
        pc.apply(model, "random_prune", keep=0.7)
        pooled, tokens = tower(images)
        if architecture != "tokens out":
            torch.testing.assert_close(pooled, expected)
        assert tokens.shape == whole(images)[1].shape and (tokens == 0).all(-1).sum() == 2 * (PATCHES - 7)
        pc.apply(model, keep=0.7)
        restored = tower(images)[0]
        pc.apply(model, keep=0.7, restore=False)
        merged = tower(images)[0]
        if architecture != "tokens out":
            torch.testing.assert_close(merged, restored)
        with pytest.raises(ValueError, match="NLC"):
            tower.forward_intermediates(images)


def test_pruned_timm_towers_do_not_pool_zeros(build):
    """`forward_intermediates` of a timm tower would average the zeros of dropped tokens: it says so instead."""
    model, images, _ = build("ViT from timm")
    pc.apply(model, "random_prune", keep=0.7)
    with torch.no_grad():
        assert torch.isfinite(model.encode_image(images)).all()
        assert len(model.forward_intermediates(images, intermediates_only=True)["image_intermediates"]) == DEPTH
        with pytest.raises(ValueError, match="intermediates_only=True"):
            model.forward_intermediates(images)


# --------------------------------------------------------------------------------------------------- training, state
@pytest.mark.parametrize("architecture", ["LayerScale", "attentional pooler", "ViT from timm"])
def test_gradients_flow(build, architecture):
    """Gradients reach what they reach unpatched, checkpointed or not."""
    model, images, texts = build(architecture)
    contract.gradients_flow(model, lambda m: sum(part.square().sum() for part in m.get_logits(images, texts)))


def test_patch_dropout_draws_the_same_numbers(build, registry):
    """In training with patch dropout, the merging path without merges gives the unpatched model's numbers."""
    pc.register_method(
        "nothing", lambda metric, remove: pc.MergePlan.identity(*metric.shape[:2]), paper="none", summary="no merge"
    )
    model, images, _ = build("CLIP", patch_dropout=0.5)
    model.train()
    torch.manual_seed(5)
    expected = model.encode_image(images).detach()
    pc.apply(model, "nothing", keep=0.7)
    torch.manual_seed(5)
    torch.testing.assert_close(model.encode_image(images).detach(), expected, rtol=1e-5, atol=1e-5)
    with pc.record(pc.apply(model, keep=0.75)) as trace:
        model.encode_image(images)
    assert [layer.plan.num_tokens for layer in trace.layers] == [6, 5, 4]


@pytest.mark.parametrize("architecture", ["CLIP", "ViT from timm"])
def test_copies_exceptions_threads_autocast(build, architecture):
    """State belongs to one call: copies, exceptions, hooks, threads; plans stay in float32 under autocast."""
    model, images, texts = build(architecture)
    contract.copies_are_independent(model, everything(images, texts))
    blocks = model.visual.transformer.resblocks if architecture == "CLIP" else model.visual.trunk.blocks
    contract.survives_exceptions_and_threads(model, blocks, "mlp", lambda n: pictures(n, (SIDE, SIDE)))
    contract.autocast_plans_in_float32(model, lambda m: m.encode_image(images))


def test_half_precision_weights(build):
    """bfloat16 weights, as open_clip makes them: outputs in their type, sizes and energies in float32."""
    model, images, _ = build("CLIP")
    open_clip.convert_weights_to_lp(model.visual, torch.bfloat16)
    model.to(torch.bfloat16)
    with torch.no_grad():
        before = model.encode_image(images.bfloat16())
        with pc.record(pc.apply(model, keep=0.7)) as trace:
            after = model.encode_image(images.bfloat16())
    assert after.dtype == before.dtype == torch.bfloat16 and torch.isfinite(after).all()
    assert all(layer.size.dtype == layer.energy.dtype == torch.float32 for layer in trace.layers)


def test_every_kind_of_method_runs(build):
    """Rivals and controls too, also those that read attention or places."""
    model, images, _ = build("CLIP")
    contract.every_kind_of_method_runs(model, lambda m: m.encode_image(images))


def test_compiles(build):
    """The image tower in one full graph."""
    model, images, _ = build("CLIP", layers=1)
    contract.compiles(model.visual, images)


# ------------------------------------------------------------------------------------------------------------- counts
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_counts_are_the_image_towers(build, architecture):
    """Linear maps and products of the image tower, text left out."""
    model, images, _ = build(architecture, batch=1)
    tower, counts = model.visual, pc.flops(model)
    if architecture in TIMM:
        head = sum(part.weight.numel() for part in tower.head.modules() if isinstance(part, nn.Linear))
        assert counts.total == pc.flops(tower.trunk).total + head
        return
    tokens, width = PATCHES + 1, 48
    blocks = DEPTH * (12 * tokens * width**2 + 2 * tokens**2 * width)
    pooling = {"tokens out": tokens * width * WIDTH, "attentional pooler": (
        2 * 5 * WIDTH**2 + 2 * tokens * width * WIDTH + 2 * 5 * tokens * WIDTH + WIDTH * WIDTH
    )}.get(architecture, width * WIDTH)
    assert counts.total == PATCHES * 3 * 16**2 * width + blocks + pooling
    with pytest.raises(ValueError, match="64 x 64 only, not 96 x 96"):
        pc.flops(model, (3, 96, 96))


# ----------------------------------------------------------------------------------------------------------- refusals
class OwnCLIP(CLIP):
    """Somebody's subclass."""


class OwnBlock(ResidualAttentionBlock):
    """Somebody's block."""


class OwnAttention(nn.MultiheadAttention):
    """Somebody's attention."""


def change(part: str, **attributes):
    """A CLIP with something else in its second block."""
    model = CLIP(WIDTH, VISION, TEXT)
    module = model.visual.get_submodule(part)
    for name, value in attributes.items():
        setattr(module, name, value)
    return model


BLOCK = "transformer.resblocks.1"
REFUSED = {
    "a subclass": (lambda: OwnCLIP(WIDTH, VISION, TEXT), "OwnCLIP"),
    "a ResNet": (lambda: CLIP(WIDTH, {**VISION, "layers": (1, 1, 1, 1), "width": 8, "head_width": 8}, TEXT), "ResNet"),
    "custom blocks": (lambda: CLIP(WIDTH, {**VISION, "qk_norm": True}, TEXT), "CustomResidualAttentionBlock"),
    "a block's subclass": (lambda: change(BLOCK, __class__=OwnBlock), "OwnBlock"),
    "an attention's subclass": (lambda: change(f"{BLOCK}.attn", __class__=OwnAttention), "OwnAttention"),
    "keys of its own": (lambda: change(f"{BLOCK}.attn", add_zero_attn=True), "keys of its own"),
    "batch second": (lambda: change("transformer", batch_first=False), "batch second"),
    "another MLP": (lambda: change(BLOCK, mlp=nn.Sequential(nn.Linear(48, 48))), "MLP"),
    "a text tower": (lambda: TextTransformer(**TEXT), "text"),
    "a timm tower of no transformer": (
        lambda: CustomTextCLIP(WIDTH, {"timm_model_name": "resnet18", "image_size": 32}, TEXT), "ResNet"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_is_not_supported_is_refused(case):
    make, words = REFUSED[case]
    contract.is_refused(make(), words)


@pytest.mark.parametrize("towers", ["text", "both"])
@pytest.mark.parametrize("architecture", ["CLIP", "text apart"])
def test_causal_text_towers_are_refused(build, architecture, towers):
    """With the reason: a plan made from all tokens would let later words change earlier outputs."""
    model, *_ = build(architecture)
    before = contract.snapshot(model)
    with pytest.raises((ValueError, pc.UnsupportedModelError), match="later words"):
        pc.apply(model, towers=towers)
    assert contract.snapshot(model) == before


@pytest.mark.parametrize("arguments", [dict(method="random_prune"), dict(restore=False), dict(method="dct")], ids=str)
def test_an_attentional_pooler_gets_every_patch_or_none(build, arguments):
    """Its queries attend with no weights: what is merged has to come back first."""
    model, *_ = build("attentional pooler")
    with pytest.raises(pc.UnsupportedModelError, match="attentional pooler"):
        pc.apply(model, keep=0.7, **arguments)


def test_a_model_around_a_tower_points_to_it():
    """CoCa is not known as a whole; the error names the tower inside, and that one merges."""
    config = dict(context_length=12, vocab_size=50, width=32, heads=2, layers=1)
    vision = {**VISION, "attentional_pool": True, "output_tokens": True, **POOLER}
    model = randomize(open_clip.CoCa(WIDTH, config, config, vision)).eval()
    with pytest.raises(pc.UnsupportedModelError, match="'visual'"):
        pc.apply(model)
    images = pictures(1, (SIDE, SIDE))
    with torch.no_grad():
        whole = model.visual(images)
        merged = pc.apply(model.visual, keep=0.7)(images)
    assert contract.shapes(merged) == contract.shapes(whole) and isinstance(model.visual, VisionTransformer)


def test_a_tower_alone_merges(build):
    """An image tower without its model, of either kind."""
    for architecture, kind in (("CLIP", VisionTransformer), ("ViT from timm", TimmModel)):
        model, images, _ = build(architecture)
        with torch.no_grad():
            expected = pc.apply(model, keep=0.7).encode_image(images)
            tower = pc.remove(model).visual
            assert type(tower) is kind and torch.equal(pc.apply(tower, keep=0.7)(images), expected)
