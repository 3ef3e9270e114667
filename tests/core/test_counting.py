"""Laws of the multiply-accumulate counts: golden values, closed form, an independent counter."""

from __future__ import annotations

import logging

import oracle
import pytest
import torch

import pitome_core as pc
import pitome_core.experiments.baselines
from pitome_core.families import find_family

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


# ------------------------------------------------------------------------------- weights that are not plain nn.Linear
def tiny(build_vit) -> torch.nn.Module:
    return build_vit(depth=2)


def maps(model: torch.nn.Module) -> int:
    """The parts of a count that are made of weights alone: embedding, head, and linear maps per token of each block."""
    shape = find_family(model).shape(model, None)
    return shape.embed + shape.head(4) + sum(layer.attention_linear + layer.mlp_linear for layer in shape.layers)


class Packed(torch.nn.Module):
    """Like the 4-bit layers of bitsandbytes: features are attributes, the weight is a row of packed numbers."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = torch.nn.Parameter(torch.zeros(linear.weight.numel() // 2, 1), requires_grad=False)


class PackedElsewhere(torch.nn.Module):
    """Like GPTQ's layers: no `weight`, an integer buffer in its place."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("qweight", torch.zeros(linear.in_features // 8, linear.out_features, dtype=torch.int32))


class Wrapped(torch.Tensor):
    """Like torchao's tensors: it says it is a float matrix and holds other numbers."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=torch.float32)

    def __init__(self, inner):
        self.inner = inner.to(torch.int8)

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), named=None):
        if function is torch.ops.aten.detach.default:
            return Wrapped(arguments[0].inner)
        raise NotImplementedError(function)


def with_tensors_inside(linear: torch.nn.Linear) -> torch.nn.Module:
    linear.weight = torch.nn.Parameter(Wrapped(linear.weight.detach()), requires_grad=False)
    return linear


def as_conv1d(linear: torch.nn.Linear) -> torch.nn.Module:
    return pytest.importorskip("transformers.pytorch_utils").Conv1D(linear.out_features, linear.in_features)


@pytest.mark.filterwarnings("ignore::Warning")
def quantised(linear: torch.nn.Linear) -> torch.nn.Module:
    holder = torch.nn.Sequential(linear)
    return torch.ao.quantization.quantize_dynamic(holder, {torch.nn.Linear})[0]


REPLACED = {
    "torch, dynamic": quantised, "bitsandbytes": Packed, "GPTQ": PackedElsewhere, "torchao": with_tensors_inside,
    "parametrised": torch.nn.utils.parametrizations.weight_norm, "Conv1D": as_conv1d,
}


@pytest.mark.filterwarnings("ignore::Warning")
@pytest.mark.parametrize("kind", list(REPLACED))
def test_layers_that_stand_for_linear_maps_count_like_them(build_vit, kind):
    """Quantised, packed and wrapped weights: the same numbers as the layers that they stand for, never 0."""
    model = tiny(build_vit)
    whole, merged = pc.flops(model), pc.flops(pc.apply(model, keep=0.75))
    pc.remove(model)
    replaced = 0
    for name, part in list(model.named_modules()):
        if type(part) is torch.nn.Linear and ("mlp" in name or kind != "Conv1D"):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, REPLACED[kind](part))
            replaced += 1
    assert replaced == (4 if kind == "Conv1D" else 9) and pc.flops(model) == whole
    assert pc.flops(pc.apply(model, keep=0.75)) == merged


@pytest.mark.filterwarnings("ignore::Warning")
def test_models_quantised_as_a_whole_count_like_the_original(build_vit, images):
    model = tiny(build_vit)
    whole = pc.flops(model)
    twin = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    assert type(twin.blocks[0].attn.qkv) is not torch.nn.Linear and pc.flops(twin) == whole
    with torch.no_grad():
        assert pc.apply(twin, keep=0.75)(images()).shape == (2, 7)
    assert pc.flops(twin) == pc.flops(pc.apply(model, keep=0.75))


class Matrix(torch.nn.Module):
    """A linear map of somebody's own."""

    def __init__(self, **held):
        super().__init__()
        self.act = torch.nn.GELU()
        for name, value in held.items():
            setattr(self, name, value)


HELD = {
    "a parameter": lambda: Matrix(kernel=torch.nn.Parameter(torch.zeros(4, 4))),
    "a tensor": lambda: Matrix(kernel=torch.zeros(4, 4)),
    "a stack of experts": lambda: Matrix(kernel=torch.nn.Parameter(torch.zeros(2, 4, 4))),
    "packed parameters": lambda: Matrix(kernel=quantised(torch.nn.Linear(4, 4))._packed_params._packed_params),
    "an embedding": lambda: torch.nn.Embedding(4, 4),
    "a bilinear map": lambda: torch.nn.Bilinear(4, 4, 4),
}


@pytest.mark.filterwarnings("ignore::Warning")
@pytest.mark.parametrize("place", ["mlp.fc1", "mlp.drop1", "attn.proj_drop"])
@pytest.mark.parametrize("kind", list(HELD))
def test_a_matrix_that_is_not_known_is_refused_by_name(build_vit, kind, place):
    """It is never counted as 0. A model that has it can merge all the same."""
    model, part = tiny(build_vit), HELD[kind]()
    parent, _, child = place.partition(".")
    setattr(model.blocks[1].get_submodule(parent), child, part)
    for call in (pc.flops, lambda model: pc.schedule(model, flops=0.8)):
        with pytest.raises(pc.UnsupportedModelError, match=f"{child} is a {type(part).__name__}.*not known"):
            call(model)
    assert pc.schedule(pc.apply(model, keep=0.75), keep=0.75).tokens == (17, 13, 10)


def test_layers_without_matrices_are_free(build_vit):
    """Norms, activations, dropout, scaling: 0."""
    model = tiny(build_vit)
    whole = pc.flops(model)
    for part in (torch.nn.Identity(), torch.nn.LayerNorm(4), torch.nn.BatchNorm1d(4), torch.nn.PReLU(4),
                 timm.layers.DropPath(0.1), timm.models.vision_transformer.LayerScale(4)):
        model.blocks[0].mlp.drop1 = part
        assert pc.flops(model) == whole


def lora(model: torch.nn.Module, targets: list[str], **options):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets, **options))


def test_adapters_count_as_they_are(build_vit):
    """LoRA: the base, and A and B of each active adapter; nothing more once it is merged or switched off."""
    peft = pytest.importorskip("peft")
    model = tiny(build_vit)
    plain = maps(model)
    wrapper = lora(model, ["qkv", "fc1", "patch_embed.proj"], modules_to_save=["head"])
    inner, blocks, grid = wrapper.base_model.model, 2, 16
    update = blocks * 4 * ((48 + 144) + (48 + 192)) + grid * 4 * (3 * 16 * 16 + 48)
    assert maps(inner) == plain + update
    assert pc.flops(inner).total > pc.flops(tiny(build_vit)).total

    wrapper.add_adapter("second", peft.LoraConfig(r=2, target_modules=["fc2"]))
    assert maps(inner) == plain + update  # there, and not active
    wrapper.base_model.set_adapter(["default", "second"])
    assert maps(inner) == plain + update + blocks * 2 * (192 + 48)
    wrapper.set_adapter("default")
    with wrapper.disable_adapter():
        assert maps(inner) == plain
    wrapper.merge_adapter()
    assert maps(inner) == plain
    wrapper.unmerge_adapter()
    assert maps(inner) == plain + update
    assert maps(wrapper.merge_and_unload()) == plain


@pytest.mark.parametrize("kind", ["DoRA", "IA3"])
def test_adapters_of_other_kinds_are_refused(build_vit, kind):
    peft = pytest.importorskip("peft")
    model = tiny(build_vit)
    if kind == "DoRA":
        inner = lora(model, ["qkv"], use_dora=True).base_model.model
    else:
        config = peft.IA3Config(target_modules=["qkv", "fc1"], feedforward_modules=["fc1"])
        inner = peft.get_peft_model(model, config).base_model.model
    with pytest.raises(pc.UnsupportedModelError, match="attn.qkv is a Linear|qkv is a Linear.*merge them"):
        pc.flops(inner)
    assert pc.apply(inner, keep=0.75) is inner


@pytest.mark.filterwarnings("ignore::Warning")
@pytest.mark.parametrize("kind", ["CLIP", "SigLIP", "BERT", "open_clip"])
def test_quantised_models_of_other_libraries_count_like_the_original(kind):
    if kind == "open_clip":
        library = pytest.importorskip("open_clip")
        vision = library.model.CLIPVisionCfg(layers=2, width=64, head_width=32, patch_size=8, image_size=32)
        text = library.model.CLIPTextCfg(width=32, heads=2, layers=1, vocab_size=100, context_length=8)
        model = library.model.CLIP(32, vision, text)
    else:
        library = pytest.importorskip("transformers")
        small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
        if kind == "BERT":
            model = library.BertForSequenceClassification(library.BertConfig(**small, vocab_size=50))
        else:
            config = getattr(library, f"{kind.replace('SigLIP', 'Siglip')}VisionConfig")
            model = getattr(library, f"{kind.replace('SigLIP', 'Siglip')}VisionModel")(
                config(**small, image_size=32, patch_size=8)
            )
    whole = pc.flops(model.eval())
    twin = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    assert any("quantized" in type(part).__module__ for part in twin.modules())
    assert pc.flops(twin) == whole


def test_adapters_of_other_libraries_count_as_they_are():
    """CLIP: an update of the patch embedding and of queries. SigLIP: one of its pooling attention is not known."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32)
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**small, patch_size=8))
    whole = pc.flops(model)
    wrapper = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "patch_embedding"]))
    adapted = pc.flops(wrapper.base_model.model)
    assert adapted.embed - whole.embed == 16 * 4 * (3 * 8 * 8 + 32)
    for before, after in zip(whole.layers, adapted.layers, strict=True):
        assert after.attention - before.attention == 17 * 4 * (32 + 32) and after.mlp == before.mlp

    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**small, patch_size=8))
    wrapper = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["head.attention"]))
    with pytest.raises(pc.UnsupportedModelError, match="head.attention is a MultiheadAttention.*not known"):
        pc.flops(wrapper.base_model.model)
