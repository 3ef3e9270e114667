"""Bad input is refused with numbers and a remedy; nothing is silently ignored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pitome_core as pc
import pitome_core.experiments.baselines
from pitome_core.mergers.hashing import hash_tokens

timm = pytest.importorskip("timm")


@pytest.mark.parametrize("name", ["vit_small_r26_s32_224", "vit_tiny_r_s16_p8_224", "vit_base_mci_224"])
def test_hybrid_patch_embeddings_are_refused(name):
    with torch.device("meta"):
        model = timm.create_model(name, depth=1)
    for call in (pc.apply, pc.flops):
        with pytest.raises(pc.UnsupportedModelError, match="patch_embed is a"):
            call(model)


def test_a_method_without_mask_is_refused_on_padded_batches(registry):
    def first(metric, remove):
        return pc.MergePlan.identity(*metric.shape[:2])

    pc.register_method("first", first, paper="test", summary="test")
    with pytest.raises(ValueError, match="'first' takes no mask"):
        pc.plan(torch.randn(1, 6, 3), 2, "first", mask=torch.ones(1, 6, dtype=torch.bool))


@pytest.mark.parametrize("mask", [torch.ones(1, 6), torch.ones(1, 5, dtype=torch.bool)])
def test_masks_of_another_kind_are_refused(mask):
    for call in (lambda: pc.plan(torch.randn(1, 6, 3), 2, mask=mask),
                 lambda: pc.energy_score(torch.randn(1, 6, 3), 0.5, mask=mask)):
        with pytest.raises(ValueError, match=r"mask must be bool .* of shape \(1, 6\)"):
            call()


def test_fractional_counts_are_refused():
    mask = torch.ones(2, 6, dtype=torch.bool)
    with pytest.raises(ValueError, match="integer tensor"):
        pc.plan(torch.randn(2, 6, 3), torch.tensor([1.5, 2.0]), mask=mask)
    with pytest.raises(TypeError):
        pc.plan(torch.randn(2, 6, 3), 1.5)


def test_a_margin_for_a_method_without_one_is_refused(build_vit):
    with pytest.raises(TypeError, match="'tome' has no margin"):
        pc.apply(build_vit(), "tome", margin=0.5)
    with pytest.raises(ValueError, match="nan"):
        pc.apply(build_vit(), margin=float("nan"))


def test_removing_from_a_wrapper_names_the_patched_part(build_vit):
    wrapper = torch.nn.Sequential(pc.apply(build_vit()))
    with pytest.raises(ValueError, match="its part '0' is"):
        pc.remove(wrapper)
    pc.remove(wrapper[0])
    assert pc.remove(wrapper) is wrapper


def test_a_schedule_for_another_size_is_refused_at_once(build_vit):
    schedule = pc.schedule(build_vit(img_size=64), keep=0.9)
    with pytest.raises(ValueError, match="made for 16 patch tokens, this input has 4"):
        pc.apply(build_vit(img_size=32), keep=schedule)
    pc.apply(build_vit(img_size=32, dynamic_img_size=True), keep=schedule)


def test_schedules_say_what_would_help(build_vit):
    model = build_vit(img_size=64, depth=2)
    with pytest.raises(ValueError, match="ask for more tokens"):
        pc.schedule(model, tokens=1)
    with pytest.raises(ValueError, match="as many tokens removed as 'pitome' can"):
        pc.schedule(model, flops=0.01)
    assert pc.schedule(model, remove=np.int64(3)).remove == (3, 3)


def test_heads_that_pool_patches_say_when_sizes_are_missing(build_vit, images):
    """features -> head equals the model, or raises: it never disagrees in silence."""
    model = build_vit(global_pool="avg", class_token=False, fc_norm=True)
    for method, restore in (("pitome", True), ("pitome", False), ("random_prune", True)):
        with pc.patched(model, method, 0.7, restore=restore), torch.no_grad():
            features = model.forward_features(images())
            if method == "pitome" and restore:
                assert torch.allclose(model.forward_head(features), model(images()), atol=1e-6)
            else:
                with pytest.raises(ValueError, match="call the model itself"):
                    model.forward_head(features)


def test_pruning_is_not_charged_for_patches_that_its_head_never_sees(build_vit):
    model = build_vit("vit_base_patch16_siglip_224")
    heads = {}
    for method in ("random_prune", "random_merge"):
        for restore in (True, False):
            with pc.patched(model, method, 0.7, restore=restore):
                heads[method, restore] = pc.flops(model).head
    assert heads["random_prune", True] == heads["random_prune", False] == heads["random_merge", False]
    assert heads["random_merge", True] == pc.flops(model).head > heads["random_merge", False]


def test_seeds_layers_and_streams_have_nothing_in_common():
    codes = [hash_tokens(512, s, layer, stream=t) for s in range(3) for layer in range(3) for t in range(2)]
    assert all(len(code.unique()) == 512 for code in codes)
    table = torch.corrcoef(torch.stack(codes).double()).fill_diagonal_(0)
    assert table.abs().max() < 0.2  # 4.5 standard deviations
    windows = {tuple(code[i : i + 3].tolist()) for code in codes for i in range(510)}
    assert len(windows) == 510 * len(codes)  # none is a shifted copy of another


def test_attention_is_not_there_before_a_block(build_vit):
    with pytest.raises(ValueError, match="'topk_attention' reads the block's attention map"):
        pc.apply(build_vit(), "topk_attention", insertion="before")
