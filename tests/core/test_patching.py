"""Laws of patched timm ViTs: identity at keep=1, the reference forward, what comes back, state, refusals."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import oracle
import pytest
import torch
from torch import nn

import pitome_core as pc
import pitome_core.experiments.baselines
from pitome_core.patch import active_patch, merge_tokens
from pitome_core.patching import find_patch, use_merge

timm = pytest.importorskip("timm")
from timm.layers import Attention  # noqa: E402
from timm.models import vision_transformer as vit  # noqa: E402

ARCHITECTURES = {
    "plain": ("vit_tiny_patch16_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "DeiT-3": ("deit3_small_patch16_224", {}),
    "DINOv2": ("vit_small_patch14_dinov2", {}),
    "DINOv2 registers": ("vit_small_patch14_reg4_dinov2", {}),
    "gated MLP": ("vit_giant_patch14_dinov2", {}),
    "SigLIP": ("vit_base_patch16_siglip_224", {}),
    "CLIP pre-norm": ("vit_base_patch16_clip_224", {}),
    "MAE average": ("vit_base_patch16_224", {"global_pool": "avg"}),
    "no class token": ("vit_base_patch16_gap_224", {}),
    "post-norm": ("vit_base_patch16_rpn_224", {}),
    "q/k norm": ("vit_small_patch16_224", {"qk_norm": True}),
    "attention and MLP norm": ("vit_small_patch16_224", {"scale_attn_norm": True, "scale_mlp_norm": True}),
    "max pooling": ("vit_tiny_patch16_224", {"global_pool": "max"}),
    "average and max pooling": ("vit_tiny_patch16_224", {"global_pool": "avgmax"}),
    "pool with prefix": ("vit_tiny_patch16_224", {"global_pool": "avg", "pool_include_prefix": True}),
    "refined pooling": ("vit_tiny_patch16_224", {"global_pool": "prr"}),
    "no pooling": ("vit_tiny_patch16_224", {"global_pool": ""}),
    "no head": ("vit_tiny_patch16_224", {"num_classes": 0}),
    "no final norm": ("vit_tiny_patch16_224", {"final_norm": False}),
    "no biases": ("vit_tiny_patch16_224", {"qkv_bias": False, "proj_bias": False}),
    "no position embedding": ("vit_tiny_patch16_224", {"pos_embed": "none"}),
    "dynamic size": ("vit_small_patch14_reg4_dinov2", {"dynamic_img_size": True}),
    "gated attention": ("vit_tiny_patch16_224", {"gated": True}),
}


@pytest.fixture
def build(build_vit):
    """build(architecture, **overrides) -> (model, images) in eval mode, from the table."""

    def make(architecture="plain", dtype=torch.float32, batch=2, **overrides):
        name, options = ARCHITECTURES[architecture]
        options = {**options, **overrides}
        gated = options.pop("gated", False)
        model = build_vit(name, **options)
        if gated:
            generator = torch.Generator().manual_seed(1)
            for block in model.blocks:
                block.attn = Attention(48, 3, qkv_bias=True, gated=True)
                for parameter in block.attn.parameters():
                    parameter.data = torch.randn(parameter.shape, generator=generator) / 7
            model.eval()
        side = 56 if "patch14" in name else 64
        images = torch.nn.functional.interpolate(
            torch.randn(batch, 3, 3, 3, generator=torch.Generator().manual_seed(2)), size=(side, side)
        )
        images = images + 0.3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
        return model.to(dtype), images.to(dtype)

    return make


def run(model, images):
    with torch.no_grad():
        return model(images)


def snapshot(model: nn.Module) -> dict:
    """Everything an instance holds: per module its class and the identity of every attribute and entry."""
    held = {}
    for name, module in model.named_modules():
        entries = {}
        for key, value in vars(module).items():
            entries[key] = tuple((k, id(v)) for k, v in value.items()) if isinstance(value, dict) else id(value)
        held[name] = (type(module), entries)
    return held


# ----------------------------------------------------------------------------------------------------- the contract
@pytest.mark.parametrize("method", ["pitome", "tome", "random_prune"])
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_keep_one_is_the_unpatched_model(build, architecture, method):
    """keep=1.0 gives the unpatched model's outputs to 1e-6: logits, features, intermediates (LayerScale 0.3)."""
    if architecture == "refined pooling" and method == "random_prune":
        pytest.skip("refused: that pooling has no place for token sizes (see the refusals)")
    model, images = build(architecture)
    with torch.no_grad():
        expected = model(images), model.forward_features(images), *model.forward_intermediates(images)[1]
        pc.apply(model, method, keep=1.0)
        got = model(images), model.forward_features(images), *model.forward_intermediates(images)[1]
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_merged_model_equals_the_reference(build, architecture):
    """The paper's method in every architecture equals the forward written out by hand: outputs, states, plans."""
    model, images = build(architecture, torch.float64)
    patches = model.patch_embed.num_patches
    logits, features, states, roots = oracle.merged_vit(
        copy.deepcopy(model), images, remove=oracle.keep_removals(patches, 0.7, 3), margins=oracle.margins(3)
    )
    whole = run(model, images)
    pc.apply(model, "pitome", keep=0.7)
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
    assert got.shape == whole.shape and not torch.allclose(got, whole, rtol=1e-4, atol=1e-4), "it did merge"


@pytest.mark.parametrize("method", ["pitome", "tome"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(14, 14), (14, 28), (28, 42), (42, 70), (98, 56)])
def test_every_grid_equals_the_reference(build, method, batch, height, width):
    """One token, two, odd and even numbers of them, square or not, alone or in a batch: all equal the reference."""
    model, _ = build("dynamic size", torch.float64)
    images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    removals = oracle.keep_removals(height * width // 14**2, 0.6, 3)
    reference = copy.deepcopy(model)
    logits, features, *_ = oracle.merged_vit(
        reference, images, remove=removals, method=method, margins=oracle.margins(3)
    )
    pc.apply(model, method, keep=0.6, proportional=True)
    torch.testing.assert_close(run(model, images), logits, rtol=1e-6, atol=1e-7)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(images), features, rtol=1e-6, atol=1e-7)


VARIANTS = [
    dict(method="pitome", proportional=False),
    dict(method="pitome", metric="hidden"),
    dict(method="pitome", metric="concat", margin=0.3),
    dict(method="pitome", kernel="elu", margin=[0.5, 0.4, 0.3]),
    dict(method="pitome", kernel="gaussian", alpha=0.5),
    dict(method="tome", proportional=True),
    dict(method="tome", proportional=False, metric="hidden"),
    dict(method="tome", metric="concat", proportional=True),
]


@pytest.mark.parametrize("architecture", ["DINOv2 registers", "post-norm", "q/k norm"])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(f"{key}={value}" for key, value in v.items()))
def test_every_choice_equals_the_reference(build, architecture, variant):
    """Method, metric, margin, kernel and proportional attention act as the reference says."""
    model, images = build(architecture, torch.float64)
    arguments = {"keep": 0.75, **variant}
    margin = arguments.get("margin", oracle.margins(3))
    reference = dict(
        method=variant["method"],
        proportional=variant.get("proportional", True),
        metric=variant.get("metric", "keys"),
        margins=margin if isinstance(margin, list) else [margin] * 3,
        **{key: variant[key] for key in ("kernel", "alpha") if key in variant},
    )
    logits, *_ = oracle.merged_vit(copy.deepcopy(model), images, remove=oracle.keep_removals(16, 0.75, 3), **reference)
    torch.testing.assert_close(run(pc.apply(model, **arguments), images), logits, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("keep", [[1.0, 0.5, 1.0], [0.5, 0.5, 0.5], [0.9, 1.0, 0.6]])
def test_each_layer_keeps_its_own_share(build, keep):
    """A list of ratios gives every layer its own; half of the tokens at once is the most."""
    model, images = build("DINOv2 registers", torch.float64)
    left, removals = 16, []
    for ratio in keep:
        removals.append(oracle.tokens_removed(left, ratio))
        left -= removals[-1]
    logits, *_ = oracle.merged_vit(copy.deepcopy(model), images, remove=removals, margins=oracle.margins(3))
    torch.testing.assert_close(run(pc.apply(model, keep=keep), images), logits, rtol=1e-6, atol=1e-7)


def test_the_reference_notices_a_lost_layer_scale(build):
    """The comparison can fail: a block copy without LayerScale is far outside its tolerance."""
    model, images = build("DINOv2", torch.float64)
    wrong = copy.deepcopy(model)
    for block in wrong.blocks:
        block.ls1 = nn.Identity()
    removals = oracle.keep_removals(16, 0.7, 3)
    right = oracle.merged_vit(copy.deepcopy(model), images, remove=removals, margins=oracle.margins(3))[0]
    lost = oracle.merged_vit(wrong, images, remove=removals, margins=oracle.margins(3))[0]
    with pytest.raises(AssertionError):
        torch.testing.assert_close(lost, right, rtol=1e-3, atol=1e-3)


def test_items_of_a_batch_do_not_see_each_other(build):
    """An image has the same output alone and in a batch."""
    model, images = build("plain", batch=3)
    pc.apply(model, keep=0.7)
    together = run(model, images)
    for item in range(3):
        torch.testing.assert_close(run(model, images[item : item + 1]), together[item : item + 1], rtol=1e-5, atol=1e-6)


def test_the_default_is_the_papers(build):
    """`apply(model)` is PiToMe at 0.925 with the paper's preset."""
    model, images = build("plain", img_size=128)
    images = torch.nn.functional.interpolate(images, size=(128, 128))
    default = run(pc.apply(model), images)
    explicit = pc.apply(
        model,
        "pitome",
        keep=0.925,
        preset="paper",
        margin=pc.margin_schedule(3),
        metric="keys",
        proportional=True,
        kernel="paper",
        alpha=1.0,
    )
    assert torch.equal(run(explicit, images), default)
    assert "paper" in pc.presets()


# --------------------------------------------------------------------------------------------------- what comes back
@pytest.mark.parametrize("architecture", ["plain", "DINOv2 registers", "SigLIP", "post-norm"])
def test_intermediates_keep_every_calling_convention(build, architecture):
    """forward_intermediates and get_intermediate_layers return the shapes, types and order they had."""
    model, images = build(architecture)
    calls = [
        dict(),
        dict(indices=1),
        dict(indices=[0, 2], return_prefix_tokens=True),
        dict(indices=[1], norm=True, output_fmt="NLC"),
        dict(indices=[0], stop_early=True),
        dict(intermediates_only=True),
        dict(output_dict=True, return_prefix_tokens=True),
        dict(output_dict=True, intermediates_only=True),
    ]

    def shape_of(value):
        if isinstance(value, torch.Tensor):
            return tuple(value.shape), value.dtype
        if isinstance(value, dict):
            return {key: shape_of(entry) for key, entry in value.items()}
        return type(value), [shape_of(entry) for entry in value]

    def everything():
        with torch.no_grad():
            results = [model.forward_intermediates(images, **call) for call in calls]
            results.append(model.get_intermediate_layers(images, n=2))
            results.append(model.get_intermediate_layers(images, n=[0, 1], reshape=True, norm=True))
        return [shape_of(result) for result in results]

    before = everything()
    pc.apply(model, keep=0.7)
    assert everything() == before


def test_normed_intermediates_are_the_norm_of_the_states(build):
    """norm=True is the final norm of the unmerged state, and the last one equals the features."""
    model, images = build("DINOv2 registers")
    pc.apply(model, keep=0.7)
    with torch.no_grad():
        raw = model.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
        final, normed = model.forward_intermediates(images, output_fmt="NLC", norm=True)
        for a, b in zip(raw, normed, strict=True):
            torch.testing.assert_close(model.norm(a), b, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(normed[-1], final[:, model.num_prefix_tokens :])
        torch.testing.assert_close(final, model.forward_features(images))


@pytest.mark.parametrize("architecture", ["plain", "SigLIP", "DINOv2 registers"])
@pytest.mark.parametrize("method", ["pitome", "tome"])
def test_restore_false_hands_on_merged_tokens(build, architecture, method):
    """restore=False: prefix plus merged tokens, in raster order; unmerging them gives the restored features."""
    model, images = build(architecture)
    prefix = model.num_prefix_tokens
    with torch.no_grad():
        restored = pc.apply(model, method, keep=0.7).forward_features(images)
        pc.apply(model, method, keep=0.7, restore=False)
        with pc.record(model) as trace:
            merged = model.forward_features(images)
        logits = model(images)
    left = 16 - sum(oracle.keep_removals(16, 0.7, 3))
    assert merged.shape == (2, prefix + left, 48) and restored.shape == (2, prefix + 16, 48)
    again = torch.stack([row[slots] for row, slots in zip(merged[:, prefix:], trace.assignment, strict=True)])
    torch.testing.assert_close(again, restored[:, prefix:], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(merged[:, :prefix], restored[:, :prefix])
    assert logits.shape == (2, 7) and torch.isfinite(logits).all()


def test_pooling_sees_every_patch_whether_restored_or_not(build):
    """Average pooling weighs a merged token by its size: the same logits with and without restoring."""
    for architecture in ("MAE average", "no class token", "SigLIP", "plain"):
        model, images = build(architecture)
        restored = run(pc.apply(model, keep=0.7), images)
        merged = run(pc.apply(model, keep=0.7, restore=False), images)
        torch.testing.assert_close(merged, restored, rtol=1e-4, atol=1e-5)


@pytest.fixture
def prune_then_merge(registry):
    """`mixed`: the first layer drops its first tokens, the next ones run PiToMe."""

    def mixed(metric, remove, *, margin, layer):
        if layer:
            return pc.plan(metric, remove, "pitome", margin=margin)
        roots = torch.arange(metric.shape[1], device=metric.device).repeat(metric.shape[0], 1)
        roots[:, :remove] = -1
        return pc.MergePlan.from_roots(roots, metric.shape[1] - remove, drops=True)

    pc.register_method("mixed", mixed, paper="none", summary="drop, then merge", partition=False)


@pytest.mark.parametrize("method", ["random_prune", "mixed"])
@pytest.mark.parametrize(
    "architecture",
    ["MAE average", "no class token", "SigLIP", "max pooling", "average and max pooling", "pool with prefix", "plain"],
)
def test_pooling_after_pruning_counts_survivors(build, prune_then_merge, architecture, method):
    """Pooling heads get the survivors only, each counted `size` times; a dropped token is no zero in the mean."""
    model, images = build(architecture, torch.float64)
    prefix = model.num_prefix_tokens
    whole = copy.deepcopy(model)
    pc.apply(model, method, keep=0.7, restore=False)
    with torch.no_grad(), pc.record(model) as trace:
        survivors = model.forward_features(images)
    got = run(pc.apply(model, method, keep=0.7), images)
    expected = []
    for item in range(2):
        tokens, size = survivors[item, prefix:], trace.layers[-1].size[item].long()
        if method == "mixed":
            assert size.max() > 1
        copies = torch.repeat_interleave(tokens, size, dim=0)  # counted `size` times, literally
        with torch.no_grad():
            expected.append(whole.forward_head(torch.cat([survivors[item, :prefix], copies])[None]))
    torch.testing.assert_close(got, torch.cat(expected), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("architecture", ["plain", "DINOv2 registers", "no class token"])
def test_dropped_tokens_are_zero_after_the_final_norm(build, architecture):
    """Dense outputs keep their shape; a dropped token's place holds zeros, not the norm of zeros."""
    model, images = build(architecture)
    prefix = model.num_prefix_tokens
    pc.apply(model, "random_prune", keep=0.7)
    with torch.no_grad(), pc.record(model) as trace:
        features = model.forward_features(images)
        _, normed = model.forward_intermediates(images, norm=True, output_fmt="NLC")
    dropped = trace.assignment < 0
    assert dropped.sum().item() == 2 * sum(oracle.keep_removals(16, 0.7, 3))
    assert features.shape == (2, prefix + 16, 48)
    assert features[:, prefix:][dropped].eq(0).all() and normed[-1][dropped].eq(0).all()
    assert features[:, prefix:][~dropped].ne(0).any(-1).all()


def test_distilled_training_returns_its_pair(build):
    """A distilled model in distilled training still returns two heads' logits."""
    model, images = build("distilled")
    model.set_distilled_training(True)
    model.train()
    first, second = run(pc.apply(model, keep=0.7), images)
    assert first.shape == second.shape == (2, 7)


def test_other_entry_points_keep_working(build):
    """pre_logits, a new classifier and a new input size work on a patched model."""
    model, images = build("plain")
    pc.apply(model, keep=0.7)
    with torch.no_grad():
        features = model.forward_features(images)
        torch.testing.assert_close(model.forward_head(features), model(images), rtol=1e-5, atol=1e-6)
        assert model.forward_head(features, pre_logits=True).shape == (2, 48)
        model.reset_classifier(5)
        assert model(images).shape == (2, 5)
        model.set_input_size(96)
        assert model.forward_features(torch.randn(1, 3, 96, 96)).shape == (1, 37, 48)


def test_dynamic_sizes(build):
    """One patched model takes images of several sizes, each with its own number of tokens."""
    model, _ = build("dynamic size")
    pc.apply(model, keep=0.7)
    for height, width in ((56, 56), (70, 42), (28, 98), (14, 14)):
        patches = height * width // 14**2
        with torch.no_grad(), pc.record(model) as trace:
            features = model.forward_features(torch.randn(1, 3, height, width))
        assert features.shape == (1, 5 + patches, 48) and trace.assignment.shape == (1, patches)


# ------------------------------------------------------------------------------------------------------------ training
@pytest.mark.parametrize(
    "options",
    [
        {"drop_path_rate": 0.5},
        {"patch_drop_rate": 0.5},
        {"proj_drop_rate": 0.3},
        {"attn_drop_rate": 0.3},
        {"pos_drop_rate": 0.3},
    ],
    ids=lambda o: next(iter(o)),
)
@pytest.mark.parametrize("architecture", ["plain", "post-norm"])
def test_stochastic_layers_draw_the_same_numbers(build, architecture, options):
    """In train mode with one seed, keep=1 draws the same random numbers as the unpatched model; merging runs too."""
    model, images = build(architecture, **options)
    model.train()
    torch.manual_seed(5)
    expected = run(model, images)
    pc.apply(model, keep=1.0)
    torch.manual_seed(5)
    torch.testing.assert_close(run(model, images), expected, rtol=1e-6, atol=1e-6)
    assert torch.isfinite(run(pc.apply(model, keep=0.7), images)).all()


STOCHASTIC = dict(drop_path_rate=0.5, proj_drop_rate=0.2, attn_drop_rate=0.2, pos_drop_rate=0.1, drop_rate=0.1)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_the_merging_path_without_merges_is_the_unpatched_model(build, registry, architecture, train):
    """A method whose plan is the identity runs the whole merging path, and gives the unpatched model's numbers."""
    pc.register_method(
        "nothing", lambda metric, remove: pc.MergePlan.identity(*metric.shape[:2]), paper="none", summary="no merge"
    )
    model, images = build(architecture, **STOCHASTIC)
    model.train(train)
    torch.manual_seed(5)
    expected = run(model, images)
    pc.apply(model, "nothing", keep=0.7)
    with pc.record(model) as trace:
        torch.manual_seed(5)
        got = run(model, images)
    assert [layer.plan.num_tokens for layer in trace.layers] == [16] * 3
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["pitome", "tome"])
@pytest.mark.parametrize("architecture", ["plain", "DINOv2 registers", "post-norm"])
def test_gradients_reach_every_parameter(build, architecture, method):
    """Training through merges: every parameter that learns unpatched learns patched, with finite gradients."""
    model, images = build(architecture)
    model(images).square().sum().backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    pc.apply(model, method, keep=0.7)(images).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in learning), name
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


def test_gradients_are_the_derivative(build):
    """The gradient with respect to the image is the finite difference, plans held by a smooth direction."""
    model, images = build("plain", torch.float64, batch=1)
    pc.apply(model, keep=0.7)
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images.requires_grad_()
    model(images).sum().backward()
    step = 1e-6
    with torch.no_grad():
        difference = (model(images + step * direction).sum() - model(images - step * direction).sum()) / (2 * step)
    torch.testing.assert_close((images.grad * direction).sum(), difference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["plain", "post-norm", "SigLIP"])
def test_gradient_checkpointing_changes_nothing(build, architecture):
    """Recomputing blocks in the backward pass gives the same outputs and gradients."""
    model, images = build(architecture)
    pc.apply(model, keep=0.7).train()
    gradients = []
    calls = []
    model.blocks[1].attn.qkv.register_forward_hook(lambda *_: calls.append(1))
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad(set_to_none=True)
        calls.clear()
        out = model(images)
        out.square().sum().backward()
        assert len(calls) == 1 + enable, "checkpointing runs the block again in the backward pass"
        gradients.append((out.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(gradients[0], gradients[1])


# --------------------------------------------------------------------------------------------------------------- state
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_remove_restores_bit_for_bit(build, architecture):
    """After remove() the instance holds what it held, no class was touched, and outputs are equal to the bit."""
    model, images = build(architecture)
    classes = {
        cls: dict(vars(cls)) for cls in (nn.Module, vit.VisionTransformer, vit.Block, vit.ResPostBlock, Attention)
    }
    before, expected = snapshot(model), run(model, images)
    assert pc.apply(model, keep=0.7) is model
    run(model, images)
    pc.remove(model)
    assert snapshot(model) == before
    assert torch.equal(run(model, images), expected)
    assert all(dict(vars(cls)) == entries for cls, entries in classes.items())
    pc.remove(model)  # nothing to take out is fine
    assert snapshot(model) == before


def test_applying_again_replaces(build):
    """The last `apply` counts, and one `remove` takes everything out."""
    model, images = build("plain")
    before, whole = snapshot(model), run(model, images)
    once = run(pc.apply(model, "tome", keep=0.8), images)
    pc.apply(model, "pitome", keep=0.5)
    assert torch.equal(run(pc.apply(model, "tome", keep=0.8), images), once)
    pc.remove(model)
    assert snapshot(model) == before and torch.equal(run(model, images), whole)


def test_patched_nests_and_cleans_up(build):
    """`patched` gives back what was there before, patched or not, also after an exception."""
    model, images = build("plain")
    before, whole = snapshot(model), run(model, images)
    with pc.patched(model, "pitome", keep=0.7) as same:
        assert same is model
        outer = run(model, images)
        with pytest.raises(RuntimeError, match="in the block"), pc.patched(model, "tome", keep=0.6):
            assert not torch.equal(run(model, images), outer)
            raise RuntimeError("in the block")
        assert torch.equal(run(model, images), outer)
        with pc.patched(model, "tome", keep=0.9):
            pc.remove(model)  # somebody takes it out in between
        assert torch.equal(run(model, images), outer)
    assert torch.equal(run(model, images), whole) and snapshot(model) == before


def test_names_and_state_dict_are_untouched(build):
    """Parameter names, buffers and state_dict are those of the unpatched model, and load strictly."""
    model, images = build("DINOv2 registers")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    names = [name for name, _ in model.named_parameters()]
    pc.apply(model, keep=0.7)
    assert list(model.state_dict()) == list(before) and [name for name, _ in model.named_parameters()] == names
    expected = run(model, images)
    for parameter in model.parameters():
        parameter.data = parameter.data * 0.5
    model.load_state_dict(before, strict=True)
    assert torch.equal(run(model, images), expected)


def via_pickle(model):
    return pickle.loads(pickle.dumps(model))


def via_torch_save(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, via_pickle, via_torch_save])
def test_copies_are_independent(build, duplicate):
    """A copy of a patched model merges alike with its own weights; removing one leaves the other patched."""
    model, images = build("plain")
    whole = run(model, images)
    expected = run(pc.apply(model, keep=0.7), images)
    twin = duplicate(model)
    assert torch.equal(run(twin, images), expected)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(run(twin, images), expected), "the copy must not use the original's weights"
    pc.remove(model)
    assert torch.equal(run(twin, images), expected)
    pc.remove(twin)
    assert torch.equal(run(twin, images), whole)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, via_pickle])
def test_every_patched_module_knows_its_patch(build, duplicate):
    """The blocks too; in a copy they know the patch of the copy; a copied block does not drag the model along."""
    model, _ = build("plain")
    pc.apply(model, keep=0.7)
    twin = duplicate(model)
    for one in (model, twin):
        assert {id(active_patch(part)) for part in (one, *one.blocks)} == {id(find_patch(one))}
    assert find_patch(twin) is not find_patch(model)
    assert active_patch(model.blocks[0].mlp) is None
    assert len(pickle.dumps(copy.deepcopy(model.blocks[0]))) < len(pickle.dumps(model)) / 2
    with pytest.raises(ValueError, match="part of another model"):
        pc.remove(model.blocks[0])
    pc.remove(model)
    assert all(active_patch(part) is None for part in model.modules())
    assert active_patch(twin.blocks[0]) is find_patch(twin)


def test_the_merge_of_a_patch_can_be_replaced(build):
    """By a function around the usual one; `patched` and `apply` bring the usual one back; no class is touched."""
    model, images = build("plain")
    expected = run(pc.apply(model, keep=0.7), images)
    layers = []

    def counted(step, *arguments):
        layers.append(step.layer)
        return merge_tokens(step, *arguments)

    with pc.patched(model, keep=0.7), pc.record(model) as trace:
        assert use_merge(model, counted) is model
        assert torch.equal(run(model, images), expected)
    assert layers == [0, 1, 2] and len(trace.forwards) == 1, "a recording goes on"
    assert torch.equal(run(model, images), expected) and layers == [0, 1, 2]
    before = run(pc.remove(model), images)
    with pytest.raises(ValueError, match="pc.apply"):
        use_merge(model, counted)
    pc.remove(use_merge(pc.apply(model, keep=0.7), counted))
    assert torch.equal(run(model, images), before)


def test_a_merge_without_a_plan_is_not_recorded(build):
    """It is not known where its tokens went. Without a recording it runs."""
    model, images = build("plain")
    use_merge(pc.apply(model, keep=0.7), lambda step, x, *_: (x[:, : x.shape[1] - step.remove], None, None))
    assert run(model, images).shape == (2, 7)
    with pytest.raises(RuntimeError, match="no plan"), pc.record(model):
        run(model, images)


def test_hooks_on_blocks_still_fire(build):
    """Forward hooks and pre-hooks of every block and of its attention's parts run once per forward."""
    model, images = build("plain")
    pc.apply(model, keep=0.7)
    calls = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, module in model.named_modules()
        if name.startswith("blocks.") and (name.count(".") == 1 or name.endswith((".mlp", ".norm1", ".norm2", ".proj")))
    ]
    run(model, images)
    assert sorted(calls) == sorted(
        f"blocks.{i}{part}" for i in range(3) for part in ("", ".mlp", ".norm1", ".norm2", ".attn.proj")
    )
    for handle in handles:
        handle.remove()


def test_a_forward_that_raises_leaves_the_model_usable(build):
    """An exception in the middle of a forward, at any block, leaves no state behind."""
    model, images = build("plain")
    pc.apply(model, keep=0.7)
    expected = run(model, images)

    def explode(*_):
        raise RuntimeError("in the middle")

    for block in model.blocks:
        handle = block.mlp.register_forward_pre_hook(explode)
        with pytest.raises(RuntimeError, match="in the middle"):
            run(model, images)
        handle.remove()
        assert torch.equal(run(model, images), expected)


def test_threads_do_not_mix(build):
    """Two threads on one patched model, with batches of different sizes, get what each gets alone."""
    model, images = build("dynamic size", batch=1)
    pc.apply(model, keep=0.7)
    inputs = [images, torch.randn(3, 3, 70, 42, generator=torch.Generator().manual_seed(0))]
    expected = [run(model, x) for x in inputs]
    barrier = threading.Barrier(2)

    def work(index):
        barrier.wait()
        return [run(model, inputs[index]) for _ in range(15)]

    with ThreadPoolExecutor(2) as pool:
        for index, outputs in enumerate(pool.map(work, range(2))):
            for out in outputs:
                torch.testing.assert_close(out, expected[index], rtol=1e-5, atol=1e-6)


def test_calls_inside_calls_do_not_mix(build):
    """A forward started from a hook in the middle of another forward disturbs neither."""
    model, images = build("plain")
    pc.apply(model, keep=0.7)
    expected, inner = run(model, images), []

    def again(*_):
        handle.remove()
        inner.append(run(model, images.flip(0)))

    handle = model.blocks[1].mlp.register_forward_pre_hook(again)
    torch.testing.assert_close(run(model, images), expected)
    torch.testing.assert_close(inner[0].flip(0), expected, rtol=1e-5, atol=1e-6)


def test_nan_in_an_image_does_not_raise(build):
    """NaN inside a model raises nothing and stays in its own image."""
    model, images = build("plain")
    for method in ("pitome", "tome"):
        pc.apply(model, method, keep=0.7)
        clean = run(model, images)
        broken = images.clone()
        broken[0, :, 5, 5] = float("nan")
        out = run(model, broken)
        assert torch.isnan(out[0]).all()
        torch.testing.assert_close(out[1], clean[1], rtol=1e-5, atol=1e-6)


def test_nothing_prints(build, capsys, recwarn):
    """Applying, running, recording, counting and removing print nothing and warn of nothing."""
    model, images = build("plain")
    for method in ("pitome", "tome", "random_prune", "random_merge"):
        pc.apply(model, method, keep=0.7)
        with pc.record(model):
            run(model, images)
        pc.flops(model, (3, 64, 64))
        repr(model)
    pc.remove(model)
    captured = capsys.readouterr()
    assert captured.out == captured.err == "" and not recwarn.list


def test_repr_tells_what_is_on(build):
    """repr(model) names method, keep and explicit choices while patched, and nothing afterwards."""
    model, _ = build("plain")
    before = repr(model)
    shown = repr(pc.apply(model, "pitome", keep=0.825, margin=0.625, proportional=False, kernel="elu"))
    assert all(word in shown for word in ("pitome", "0.825", "0.625", "elu"))
    pc.remove(model)
    assert repr(model) == before


# ------------------------------------------------------------------------------------------------- registered methods
def test_a_registered_partition_runs_in_a_model(build, registry):
    """A function of metric and count becomes a method for models, with its layer, size and options."""
    calls = []

    def tail(metric, remove, *, layer, num_layers, size, onto: int = 0):
        calls.append((layer, num_layers, metric.shape[1], onto, None if size is None else size.sum(1).tolist()))
        roots = torch.arange(metric.shape[1]).repeat(metric.shape[0], 1)
        roots[:, metric.shape[1] - remove :] = onto
        return pc.MergePlan.from_roots(roots, metric.shape[1] - remove)

    pc.register_method("tail", tail, paper="none", summary="the last tokens join one", limit="all")
    model, images = build("plain")
    pc.apply(model, "tail", keep=0.5, onto=1)
    calls.clear()
    with torch.no_grad(), pc.record(model) as trace:
        model(images)
    assert [entry[:4] for entry in calls] == [(0, 3, 16, 1), (1, 3, 8, 1), (2, 3, 4, 1)]
    assert all(entry[4] in (None, [16.0, 16.0]) for entry in calls) and calls[1][4] is not None
    assert trace.assignment[0].tolist() == [0, 1] + [1] * 14
    with pytest.raises(TypeError, match="onto"):
        pc.apply(model, "tail", colour=3)


def test_a_registered_transform_runs_in_a_model(build, registry):
    """A method that returns a LinearPlan works in a model: shapes come back, keep=1 is the identity."""

    def shrink(metric, remove):
        n = metric.shape[1]
        matrix = torch.nn.functional.adaptive_avg_pool1d(torch.eye(n)[None], n - remove)[0].t()
        return pc.LinearPlan(matrix.contiguous(), torch.linalg.pinv(matrix))

    pc.register_method("shrink", shrink, paper="none", summary="average neighbours", partition=False, limit="all")
    for architecture in ("plain", "no class token", "DINOv2 registers"):
        model, images = build(architecture)
        whole, features = run(model, images), model.forward_features(images)
        torch.testing.assert_close(run(pc.apply(model, "shrink", keep=1.0), images), whole, rtol=1e-6, atol=1e-6)
        pc.apply(model, "shrink", keep=0.5)
        assert run(model, images).shape == whole.shape and model.forward_features(images).shape == features.shape
        pc.apply(model, "shrink", keep=0.5, restore=False)
        assert model.forward_features(images).shape == (2, model.num_prefix_tokens + 2, 48)


# ------------------------------------------------------------------------------------------------------------ refusals
class OwnViT(vit.VisionTransformer):
    """Somebody's subclass: it may override anything."""


class OwnBlock(vit.Block):
    """Somebody's block."""


class OwnAttention(Attention):
    """Somebody's attention."""


class OwnMlp(vit.Mlp):
    """Somebody's MLP: it may mix tokens."""


TINY = dict(img_size=32, embed_dim=48, num_heads=3, depth=2, num_classes=3)


def one_odd_block() -> nn.Module:
    model = vit.VisionTransformer(**TINY)
    model.blocks[1] = vit.ParallelThingsBlock(48, 3)
    return model


REFUSED = {
    "parallel scaling": lambda: vit.VisionTransformer(**TINY, block_fn=vit.ParallelScalingBlock),
    "parallel things": lambda: vit.VisionTransformer(**TINY, block_fn=vit.ParallelThingsBlock),
    "differential attention": lambda: vit.VisionTransformer(**{**TINY, "num_heads": 2}, attn_layer="diff"),
    "one odd block among good ones": one_odd_block,
    "a subclass": lambda: OwnViT(**TINY),
    "a block's subclass": lambda: vit.VisionTransformer(**TINY, block_fn=OwnBlock),
    "an attention's subclass": lambda: vit.VisionTransformer(**TINY, attn_layer=OwnAttention),
    "an MLP's subclass": lambda: vit.VisionTransformer(**TINY, mlp_layer=OwnMlp),
    "relative positions": lambda: timm.create_model("vit_relpos_small_patch16_224", device="meta"),
    "swin": lambda: timm.create_model("swin_tiny_patch4_window7_224", device="meta"),
    "resnet": lambda: timm.create_model("resnet18", device="meta"),
    "sequential": lambda: nn.Sequential(nn.Linear(3, 3)),
    "a wrapped model": lambda: nn.Sequential(vit.VisionTransformer(**TINY)),
    "compiled": lambda: torch.compile(vit.VisionTransformer(**TINY), backend="eager"),
    "no module": lambda: "deit_small_patch16_224",
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_is_not_supported_is_refused(case):
    """Anything that could not be merged rightly raises, says what is supported, and stays as it was."""
    model = REFUSED[case]()
    before = snapshot(model) if isinstance(model, nn.Module) else None
    with pytest.raises(pc.UnsupportedModelError) as caught:
        pc.apply(model, keep=0.9)
    remedy = "compile the patched model" if case == "compiled" else "VisionTransformer"
    assert isinstance(caught.value, TypeError) and remedy in str(caught.value)
    assert before is None or snapshot(model) == before


def test_pruning_is_refused_where_pooling_cannot_leave_tokens_out(build):
    """Refined pooling attends among all patches: a method that drops some is refused, as is handing on merged ones."""
    model, _ = build("refined pooling")
    before = snapshot(model)
    for arguments in (dict(method="random_prune", keep=0.9), dict(method="pitome", keep=0.9, restore=False)):
        with pytest.raises(pc.UnsupportedModelError, match="prr"):
            pc.apply(model, **arguments)
        assert snapshot(model) == before


BAD_ARGUMENTS = {
    "unknown method": (dict(method="pitomme"), ValueError, "tome"),
    "unknown option": (dict(kernl="elu"), TypeError, "kernel"),
    "unknown kernel": (dict(kernel="cosine"), ValueError, "gaussian"),
    "unknown metric": (dict(metric="values"), ValueError, "hidden"),
    "unknown preset": (dict(preset="official"), ValueError, "paper"),
    "unknown tower": (dict(towers="text"), ValueError, "vision"),
    "keep zero": (dict(keep=0.0), ValueError, "keep"),
    "keep above one": (dict(keep=1.5), ValueError, "1.5"),
    "keep list of another length": (dict(keep=[0.9, 0.9]), ValueError, "(?s)2.*3|3.*2"),
    "margin list of another length": (dict(margin=[0.9] * 5), ValueError, "(?s)5.*3|3.*5"),
    "Gaussian margin of one": (dict(kernel="gaussian", margin=1.0), ValueError, "margin"),
}


@pytest.mark.parametrize("case", list(BAD_ARGUMENTS))
@pytest.mark.parametrize("already", [False, True])
def test_bad_arguments_change_nothing(build, case, already):
    """A wrong argument raises at `apply`, with the remedy, and leaves the model as it was, patched or not."""
    arguments, error, words = BAD_ARGUMENTS[case]
    model, images = build("plain")
    if already:
        pc.apply(model, "tome", keep=0.8)
    before, expected = snapshot(model), run(model, images)
    with pytest.raises(error, match=words):
        pc.apply(model, **{"method": "pitome", **arguments})
    assert snapshot(model) == before and torch.equal(run(model, images), expected)


def test_keep_below_the_maximum_says_what_to_do(build):
    """More than half at once cannot merge: it raises with the numbers and the remedy, before or in the forward."""
    model, images = build("plain")
    with pytest.raises(ValueError, match="(?s)12.*16.*8"):
        run(pc.apply(model, keep=0.25), images)


@pytest.mark.parametrize("call", [dict(is_causal=True), dict(attn_mask=torch.zeros(17, 17))], ids=["causal", "mask"])
def test_attention_masks_are_refused_while_merging(build, call):
    """A mask that knows token places cannot survive a merge: the patched model refuses it, the unpatched takes it."""
    model, images = build("plain")
    expected = model(images, **call).detach()
    pc.apply(model, keep=0.7)
    for entry in (model, model.forward_features, model.forward_intermediates):
        with pytest.raises(ValueError, match=next(iter(call))):
            entry(images, **call)
    pc.remove(model)
    torch.testing.assert_close(model(images, **call).detach(), expected)
