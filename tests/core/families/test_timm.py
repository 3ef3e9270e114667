"""timm's `Eva` and `Beit`: the contract of every family, and positions that travel with the kept token."""

from __future__ import annotations

import copy
import warnings

import family_contract as contract
import oracle
import oracle_families as reference
import pytest
import torch
from small_models import pictures, randomize
from torch import nn

import pitome_core as pc
import pitome_core.experiments.baselines

timm = pytest.importorskip("timm")
from timm.models import beit, eva  # noqa: E402

DEPTH, PATCHES = 3, 16
one_thread = contract.one_thread
ARCHITECTURES = {
    "EVA-02": ("eva02_tiny_patch14_224", {}),
    "EVA-02, projections apart": ("eva02_base_patch14_224", {}),
    "EVA-02 CLIP": ("eva02_base_patch16_clip_224", {}),
    "EVA-02 post-norm": ("eva02_enormous_patch14_clip_224", {"use_rot_pos_emb": True}),
    "EVA, no rotation": ("eva_giant_patch14_clip_224", {}),
    "registers, no class token": ("vit_medium_patch16_rope_reg1_gap_256", {}),
    "Perception Encoder": ("vit_pe_core_tiny_patch16_384", {"attn_pool_num_heads": 4}),
    "Perception Encoder, no prefix": ("vit_pe_core_gigantic_patch14_448", {"attn_pool_num_heads": 4}),
    "Perception Encoder, tokens out": ("vit_pe_lang_large_patch14_448", {"global_pool": ""}),
    "DINOv3": ("vit_small_patch16_dinov3", {}),
    "DINOv3, class token": ("vit_small_patch16_dinov3_qkvb", {"global_pool": "token"}),
    "grouped queries": ("vit_base_patch16_sapiens2", {"num_heads": 4, "num_kv_heads": 2}),
    "axial rotation": ("vit_small_patch16_rope_224", {}),
    "maximum pooling": ("vit_small_patch16_dinov3", {"global_pool": "max"}),
    "average and maximum": ("eva02_tiny_patch14_224", {"global_pool": "avgmax"}),
    "gated": ("eva02_tiny_patch14_224", {"gated": True}),
    "BEiT": ("beit_base_patch16_224", {}),
    "BEiT, shared bias": ("beit_base_patch16_224", {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}),
    "BEiT, both biases": ("beitv2_base_patch16_224", {"use_shared_rel_pos_bias": True, "global_pool": "token"}),
    "BEiT, no bias": (
        "beit_base_patch16_224", {"use_rel_pos_bias": False, "use_abs_pos_emb": True, "swiglu_mlp": True}
    ),
    "BEiT, oblong": ("beit_base_patch16_224", {"img_size": (32, 128)}),
}
ONE_EACH = ["DINOv3", "BEiT, both biases"]


def build(architecture: str, dtype=torch.float32, batch: int = 2, **overrides):
    """(model, images) from the table, in eval mode, with LayerScale 0.3."""
    name, options = ARCHITECTURES[architecture]
    side = 56 if "patch14" in name else 64
    options = {"img_size": side, "embed_dim": 48, "num_heads": 3, "depth": DEPTH, **options, **overrides}
    gated = options.pop("gated", False)
    model = timm.create_model(name, pretrained=False, num_classes=7, **options)
    if gated:
        for block in model.blocks:
            block.attn = eva.EvaAttention(48, 3, scale_norm=False, gated=True)
    randomize(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gamma_" in name:
                parameter.fill_(0.3)
    return model.to(dtype).eval(), pictures(batch, model.patch_embed.img_size, dtype)


def everything(images):
    return lambda model: (
        model(images), model.forward_features(images), *model.forward_intermediates(images),
    )


def written_out(model, images, keep=0.7, **options):
    """The reference's (logits, features, states, roots)."""
    run = reference.beit if isinstance(model, beit.Beit) else reference.eva
    options = {"remove": oracle.keep_removals(PATCHES, keep, DEPTH), "margins": oracle.margins(DEPTH), **options}
    return run(copy.deepcopy(model), images, **options)


# ----------------------------------------------------------------------------------------------------- the contract
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_contract(architecture, registry):
    """Identity at keep=1, tokens as planned, remove to the bit: see family_contract."""
    model, images = build(architecture)
    contract.keep_one_is_the_identity(model, everything(images))
    contract.merges_as_planned(model, everything(images), PATCHES, DEPTH)
    contract.remove_restores(model, everything(images))


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_merged_model_equals_the_reference(architecture):
    """Outputs, every intermediate state and the plans equal the forward written out token by token."""
    model, images = build(architecture, torch.float64)
    logits, features, states, roots = written_out(model, images)
    pc.apply(model, keep=0.7)
    with torch.no_grad(), pc.record(model) as trace:
        got = model(images)
    assert trace.assignment.tolist() == [oracle.assignment(item[-1]) for item in roots]
    torch.testing.assert_close(got, logits, rtol=1e-6, atol=1e-7)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(images), features, rtol=1e-6, atol=1e-7)
        final, intermediates = model.forward_intermediates(images, output_fmt="NLC")
    torch.testing.assert_close(final, features, rtol=1e-6, atol=1e-7)
    for value, state in zip(intermediates, states, strict=True):
        torch.testing.assert_close(value, state[:, model.num_prefix_tokens :], rtol=1e-6, atol=1e-7)


VARIANTS = [
    dict(method="tome", proportional=True),
    dict(method="pitome", proportional=False, metric="concat"),
    dict(method="pitome", insertion="before", metric="hidden"),
    dict(method="pitome", insertion="after"),
]


@pytest.mark.parametrize("architecture", [*ONE_EACH, "grouped queries", "EVA-02 post-norm"])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(f"{key}={value}" for key, value in v.items()))
def test_every_choice_equals_the_reference(architecture, variant):
    """Method, metric, proportional attention and insertion point act as the reference says; positions follow."""
    model, images = build(architecture, torch.float64)
    logits, *_ = written_out(model, images, **variant)
    pc.apply(model, keep=0.7, **variant)
    with torch.no_grad():
        torch.testing.assert_close(model(images), logits, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "architecture", ["EVA-02", "EVA-02 post-norm", "Perception Encoder", "DINOv3", "BEiT", "BEiT, shared bias"]
)
def test_the_reference_notices_positions_that_stay_behind(architecture):
    """The comparison can fail: tokens placed by their slot and not by their anchor are far outside its tolerance."""
    model, images = build(architecture, torch.float64)
    right, wrong = written_out(model, images)[0], written_out(model, images, moves=False)[0]
    assert not torch.allclose(wrong, right, rtol=1e-4, atol=1e-5)


def test_keys_are_compared_before_the_rotation(registry):
    """Two equal patches at different places have equal metrics: what a token shows, not where it stands."""
    model, images = build("EVA-02", torch.float64, use_abs_pos_emb=False)
    images[:, :, :14, :14] = images[:, :, 42:, 42:]
    metrics = []

    def look(metric, remove):
        metrics.append(metric)
        return pc.MergePlan.identity(*metric.shape[:2])

    pc.register_method("look", look, paper="none", summary="looks, and merges nothing")
    with torch.no_grad():
        pc.apply(model, "look", keep=[0.9, 1.0, 1.0])(images)
    torch.testing.assert_close(metrics[-1][:, 0], metrics[-1][:, 15])


# -------------------------------------------------------------------------------------------- pooling, sizes, training
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_pooling_after_pruning_counts_survivors(architecture):
    """Pooling heads get the survivors only; handing on merged tokens pools them by size."""
    model, images = build(architecture, torch.float64)
    prefix, whole = model.num_prefix_tokens, copy.deepcopy(model)
    if not model.global_pool:
        return
    pc.apply(model, "random_prune", keep=0.7, restore=False)
    with torch.no_grad():
        expected = whole.forward_head(model.forward_features(images))
        pc.apply(model, "random_prune", keep=0.7)
        torch.testing.assert_close(model(images), expected, rtol=1e-6, atol=1e-7)
        dropped = model.forward_features(images)[:, prefix:]
        assert dropped.shape[1] == PATCHES and (dropped == 0).all(-1).any()
        restored = pc.apply(model, keep=0.7)(images)
        torch.testing.assert_close(pc.apply(model, keep=0.7, restore=False)(images), restored, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("architecture", ["DINOv3", "EVA-02, projections apart", "BEiT, both biases"])
def test_gradients_flow(architecture):
    """Gradients reach what they reach unpatched (position tables among it), checkpointed or not."""
    model, images = build(architecture)
    contract.gradients_flow(model, lambda m: m(images).square().sum())


@pytest.mark.parametrize("architecture", ["EVA-02", "Perception Encoder", "DINOv3"])
def test_patch_dropout_drops_the_same_angles(architecture, registry):
    """Where patches are dropped at random in training, the merging path rotates the rest by their own angles."""
    pc.register_method(
        "nothing", lambda metric, remove: pc.MergePlan.identity(*metric.shape[:2]), paper="none", summary="no merge"
    )
    options = dict(patch_drop_rate=0.5, drop_path_rate=0.3, proj_drop_rate=0.2, pos_drop_rate=0.1)
    model, images = build(architecture, **options)
    model.train()
    torch.manual_seed(5)
    expected = model(images).detach()
    pc.apply(model, "nothing", keep=0.7)
    torch.manual_seed(5)
    torch.testing.assert_close(model(images).detach(), expected, rtol=1e-5, atol=1e-5)
    pc.apply(model, keep=0.7)
    assert torch.isfinite(model(images)).all()


@pytest.mark.parametrize("size", [(32, 64), (80, 48), (16, 16)])
def test_dynamic_sizes_equal_the_reference(size):
    """A DINOv3 takes other sizes, each with angles of its own grid."""
    model, _ = build("DINOv3", torch.float64)
    images = pictures(2, size, torch.float64)
    patches = size[0] * size[1] // 256
    fixed = copy.deepcopy(model)
    fixed.set_input_size(img_size=size)  # the reference reads the grid here
    remove = oracle.keep_removals(patches, 0.7, DEPTH)
    expected = reference.eva(fixed, images, remove=remove, margins=oracle.margins(DEPTH))[0]
    pc.apply(model, keep=0.7)
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected, rtol=1e-6, atol=1e-7)


def test_new_input_size_moves_the_tables():
    """`set_input_size` on a patched BEiT resizes its tables, and merging goes on with them."""
    model, _ = build("BEiT", torch.float64)
    pc.apply(model, keep=0.7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's own interpolation
        model.set_input_size(img_size=(96, 64))
    images = pictures(2, (96, 64), torch.float64)
    with torch.no_grad():
        got = model(images)
    expected = written_out(pc.remove(model), images, remove=oracle.keep_removals(24, 0.7, DEPTH))[0]
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


# --------------------------------------------------------------------------------------------------------------- state
@pytest.mark.parametrize("architecture", ONE_EACH)
def test_copies_exceptions_threads_autocast(architecture):
    """State belongs to one call: copies, exceptions, hooks, threads; plans stay in float32 under autocast."""
    model, images = build(architecture)
    contract.copies_are_independent(model, everything(images))
    size = model.patch_embed.img_size
    contract.survives_exceptions_and_threads(model, model.blocks, "mlp", lambda n: pictures(n, size))
    contract.autocast_plans_in_float32(model, lambda m: m(images))


@pytest.mark.parametrize("architecture", ["EVA-02, projections apart", "DINOv3, class token", "EVA-02"])
def test_autocast_runs_every_projection(architecture):
    """Fused or not, with normed queries or not: half precision inside, float32 plans."""
    model, images = build(architecture)
    contract.autocast_plans_in_float32(model, lambda m: m(images))


@pytest.mark.parametrize(("architecture", "method"), [("DINOv3", "pitome"), ("BEiT", "tome")])
def test_compiles(architecture, method):
    """One full graph, with the positions of the anchors in it."""
    contract.compiles(*build(architecture, depth=2), method)


@pytest.mark.parametrize("architecture", ONE_EACH)
def test_every_kind_of_method_runs(architecture):
    """Rivals and controls too, also those that read attention or places; transforms are refused."""
    model, images = build(architecture)
    contract.every_kind_of_method_runs(model, lambda m: m(images))


# ----------------------------------------------------------------------------------------------------------- refusals
class OwnEva(eva.Eva):
    """Somebody's subclass."""


class OwnAttention(eva.EvaAttention):
    """Somebody's attention."""


TINY = dict(img_size=32, embed_dim=48, num_heads=3, depth=2, num_classes=3)


def with_part(model, name, kind):
    getattr(model.blocks[1], name).__class__ = kind
    return model


def with_block(model, block):
    model.blocks[1] = block
    return model


REFUSED = {
    "angles per layer": (lambda: eva.Eva(**TINY, use_rot_pos_emb=True, rope_type="mixed"), "one table"),
    "multimodal rotation": (
        lambda: eva.Eva(**{**TINY, "num_heads": 1}, use_rot_pos_emb=True, rope_type="mrope"), "RotaryEmbeddingMRope"),
    "a subclass of Eva": (lambda: OwnEva(**TINY), "OwnEva"),
    "an attention's subclass": (lambda: with_part(eva.Eva(**TINY), "attn", OwnAttention), "blocks.1.attn"),
    "another block": (lambda: with_block(eva.Eva(**TINY), nn.Identity()), "blocks.1"),
    "another MLP": (lambda: with_part(eva.Eva(**TINY), "mlp", nn.Identity), "blocks.1.mlp"),
    "a BEiT with an EVA block": (lambda: with_block(beit.Beit(**TINY), eva.EvaBlock(48, 3)), "blocks.1"),
    "images of any shape": (
        lambda: timm.create_model("naflexvit_base_patch16_gap", embed_dim=48, num_heads=3, depth=2), "Siglip2Vision"
    ),
    "a BEiT with another MLP": (lambda: with_part(beit.Beit(**TINY), "mlp", nn.Identity), "blocks.1.mlp"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_is_not_supported_is_refused(case):
    make, words = REFUSED[case]
    contract.is_refused(make(), words)


@pytest.mark.parametrize("architecture", ["DINOv3", "BEiT", "BEiT, shared bias"])
def test_transforms_are_refused_where_tokens_need_places(architecture):
    """A truncated transform leaves no token that stands anywhere; without relative positions it runs."""
    model, images = build(architecture)
    before = contract.snapshot(model)
    with pytest.raises(pc.UnsupportedModelError, match="place for every token, and 'dct'"):
        pc.apply(model, "dct", keep=0.7)
    assert contract.snapshot(model) == before
    for other in ("EVA, no rotation", "BEiT, no bias"):
        model, images = build(other)
        with torch.no_grad():
            assert torch.isfinite(pc.apply(model, "dct", keep=0.7)(images)).all()


@pytest.mark.parametrize("architecture", ["EVA-02", "BEiT"])
def test_wrong_calls_say_so(architecture):
    """No text tower, no attention mask, no grid of merged tokens."""
    model, images = build(architecture)
    with pytest.raises(ValueError, match="vision"):
        pc.apply(model, towers="text")
    pc.apply(model, keep=0.7, restore=False)
    with pytest.raises(ValueError, match="attn_mask"):
        model(images, attn_mask=torch.zeros(17, 17))
    with pytest.raises(ValueError, match="NLC"):
        model.forward_intermediates(images)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_counts_come_from_the_shapes(architecture):
    """Unmerged counts equal those of every linear map and product, hooked in a forward of one image."""
    model, images = build(architecture, batch=1)
    total = []

    def linear(module, inputs, output):
        total.append(inputs[0].numel() // inputs[0].shape[-1] * module.in_features * module.out_features)

    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(linear)
    with torch.no_grad():
        model(images)
    projection = model.patch_embed.proj
    tokens = PATCHES + model.num_prefix_tokens
    total.append(PATCHES * projection.weight.numel())
    for block in model.blocks:
        attn = block.attn
        if attn.qkv is not None and getattr(attn, "q_bias", None) is not None and not attn.qkv_bias_separate:
            total.append(tokens * attn.qkv.weight.numel())  # called by its weight, so no hook saw it
        total.append(2 * tokens**2 * attn.proj.in_features)
    if getattr(model, "attn_pool", None) is not None:
        total.append(2 * tokens * model.attn_pool.num_heads * model.attn_pool.head_dim)
    assert pc.flops(model).total == sum(total)
    merged = pc.flops(pc.apply(model, keep=0.7))
    assert merged.total < sum(total) and merged.tokens[-1] == 7 + model.num_prefix_tokens
