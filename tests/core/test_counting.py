"""Laws of the multiply-accumulate counts: golden values, closed form, an independent counter."""

from __future__ import annotations

import logging

import oracle
import pytest
import torch

import pitome_core as pc
import pitome_core.experiments.baselines

timm = pytest.importorskip("timm")

WHOLE = {
    ("deit_tiny_patch16_224", 224): 1_224_589_824,
    ("deit_small_patch16_224", 224): 4_540_695_552,
    ("deit_base_patch16_224", 224): 17_447_454_720,
    ("vit_large_patch14_clip_224", 224): 80_857_841_664,
    ("vit_large_patch14_clip_336", 336): 190_612_291_584,
}
DEIT_S_RELEASED = {
    0.9: 2_698_195_200,
    0.925: 3_068_923_392,
    0.95: 3_482_466_816,
    0.975: 4_001_893_632,
    1.0: 4_540_695_552,
}


def on_meta(name: str) -> torch.nn.Module:
    return timm.create_model(name, device="meta")


def blocks_total(counts) -> int:
    return sum(layer.attention + layer.mlp for layer in counts.layers)


@pytest.mark.parametrize(("name", "side"), list(WHOLE))
def test_golden_whole_models(name, side):
    """The blocks of a whole model cost sum 12 N C^2 + 2 N^2 C, to the last multiply-accumulate."""
    counts = pc.flops(on_meta(name), input_size=(3, side, side))
    assert blocks_total(counts) == counts.blocks_released == WHOLE[name, side]
    assert all(layer.merge == 0 for layer in counts.layers) and counts.other_ops == 0


@pytest.mark.parametrize("keep", list(DEIT_S_RELEASED))
def test_golden_merged_deit(keep):
    """DeiT-S at the published ratios, in the released counter's convention; and that is the closed formula."""
    counts = pc.flops(pc.apply(on_meta("deit_small_patch16_224"), "pitome", keep=keep))
    assert counts.blocks_released == DEIT_S_RELEASED[keep]
    removed = oracle.keep_removals(196, keep, 12)
    inputs = [197 - sum(removed[:layer]) for layer in range(12)]
    assert oracle.released_macs(inputs, 384) == DEIT_S_RELEASED[keep]


def test_golden_honest_count():
    """Charging the MLP with the tokens after the merge: 2.536583424 G at keep 0.9, the merge not counted."""
    counts = pc.flops(pc.apply(on_meta("deit_small_patch16_224"), "pitome", keep=0.9))
    assert blocks_total(counts) == 2_536_583_424


@pytest.mark.parametrize("method", ["pitome", "tome", "random_prune", "random_merge"])
@pytest.mark.parametrize("keep", [1.0, 0.9, 0.6])
def test_counts_equal_the_formula(method, keep):
    """Attention on the tokens before the merge, MLP on those after; the total is the sum of its parts."""
    counts = pc.flops(pc.apply(on_meta("deit_tiny_patch16_224"), method, keep=keep))
    removed = oracle.keep_removals(196, keep, 12)
    tokens = [197 - sum(removed[:layer]) for layer in range(13)]
    assert list(counts.tokens) == tokens
    for layer, part in enumerate(counts.layers):
        assert (part.attention, part.mlp) == oracle.block_macs(tokens[layer], tokens[layer + 1], 192)
        if removed[layer] == 0:
            assert part.merge == 0
    assert counts.total == counts.embed + counts.head + sum(p.attention + p.mlp + p.merge for p in counts.layers)
    assert counts.embed == 196 * 3 * 16 * 16 * 192 and counts.head == 192 * 1000


def test_the_merge_is_counted():
    """A similarity matrix costs about N^2 C/H: more than nothing for PiToMe and ToMe, and far below attention."""
    for method, share in (("pitome", 1.0), ("tome", 0.25)):
        counts = pc.flops(pc.apply(on_meta("deit_small_patch16_224"), method, keep=0.9))
        for part, n in zip(counts.layers, counts.tokens, strict=False):
            similarity = share * (n - 1) ** 2 * 64
            assert 0.9 * similarity <= part.merge <= 3 * similarity + 40 * n * 384
            assert part.merge < 0.1 * (part.attention + part.mlp)
        assert counts.other_ops > 0
        assert sum(layer.merge for layer in counts.layers) < 0.02 * counts.total


def test_wider_metrics_cost_more():
    """Comparing hidden states or all heads' keys costs H times the similarity of head-mean keys."""
    merge = {}
    for metric in ("keys", "hidden", "concat"):
        merge[metric] = (
            pc.flops(pc.apply(on_meta("deit_small_patch16_224"), "pitome", keep=0.9, metric=metric)).layers[0].merge
        )
    assert merge["hidden"] > 3 * merge["keys"] and merge["concat"] > 3 * merge["keys"]


def test_input_size_is_followed():
    """A model with dynamic size is counted at the size asked for."""
    model = timm.create_model("vit_tiny_patch16_224", device="meta", dynamic_img_size=True)
    assert pc.flops(model, (3, 96, 64)).tokens[0] == 25 and pc.flops(model).tokens[0] == 197


def parallel_blocks() -> torch.nn.Module:
    from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer

    return VisionTransformer(img_size=32, embed_dim=48, num_heads=3, depth=2, block_fn=ParallelScalingBlock)


@pytest.mark.parametrize("make", [lambda: torch.nn.Linear(2, 2), parallel_blocks], ids=["linear", "parallel blocks"])
def test_unsupported_models_are_refused(make):
    """Counting or scheduling a model that cannot be patched raises, as patching it does."""
    with pytest.raises(pc.UnsupportedModelError):
        pc.flops(make(), (3, 32, 32))
    with pytest.raises(pc.UnsupportedModelError):
        pc.schedule(make(), keep=0.9)


MODELS = {
    "plain": ("deit_tiny_patch16_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "registers and LayerScale": ("vit_small_patch14_reg4_dinov2", {}),
    "attention pooling": ("vit_base_patch16_siglip_224", {}),
    "gated MLP": ("vit_giant_patch14_dinov2", {}),
    "average pooling": ("vit_base_patch16_gap_224", {}),
    "post norm": ("vit_base_patch16_rpn_224", {}),
    "pre norm": ("vit_base_patch16_clip_224", {}),
    "q/k norm": ("vit_small_patch16_224", {"qk_norm": True}),
    "other MLP width": ("vit_small_patch16_224", {"mlp_ratio": 2.5}),
}


def fvcore_macs(model: torch.nn.Module, side: int) -> int:
    """What fvcore counts in matrix products and convolutions (norms and additions left out), on the unfused path."""
    fvcore = pytest.importorskip("fvcore.nn")
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    with torch.no_grad():
        analysis = fvcore.FlopCountAnalysis(model, torch.randn(1, 3, side, side))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        by_operator = analysis.by_operator()
    return sum(int(by_operator[name]) for name in ("linear", "addmm", "conv", "matmul", "bmm", "baddbmm", "einsum"))


@pytest.mark.parametrize("keep", [None, 0.8])
@pytest.mark.parametrize("case", list(MODELS))
@pytest.mark.filterwarnings("ignore::Warning")
def test_fvcore_agrees(build_vit, case, keep):
    """An independent counter that follows every operation agrees to 1 %, whole and merged."""
    name, options = MODELS[case]
    side = 112
    model = build_vit(name, img_size=side, embed_dim=96, num_heads=3, depth=2, **options)
    if keep is not None:
        pc.apply(model, "pitome", keep=keep)
    assert fvcore_macs(model, side) == pytest.approx(pc.flops(model, (3, side, side)).total, rel=0.01)


def test_the_independent_counter_can_disagree(build_vit):
    """1 % is sharp enough to see attention left out, which is what a counter blind to fused kernels does."""
    model = build_vit(img_size=112, embed_dim=96, num_heads=3, depth=2)
    counts = pc.flops(model, (3, 112, 112))
    blind = counts.total - sum(2 * n * n * 96 for n in counts.tokens[:-1])
    assert abs(blind / counts.total - 1) > 0.01
