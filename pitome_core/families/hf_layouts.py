"""How the vision towers of Hugging Face's transformers are laid out: names and types of their parts, in tables.

`hf_vision.py` runs them. A tower that is laid out like one of these needs an entry here and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.models.beit import modeling_beit as beit
from transformers.models.blip import modeling_blip as blip
from transformers.models.clip import modeling_clip as clip
from transformers.models.deit import modeling_deit as deit
from transformers.models.dinov2 import modeling_dinov2 as dinov2
from transformers.models.dinov2_with_registers import modeling_dinov2_with_registers as registers
from transformers.models.dinov3_vit import modeling_dinov3_vit as dinov3
from transformers.models.siglip import modeling_siglip as siglip
from transformers.models.vit import modeling_vit as vit
from transformers.models.vit_mae import modeling_vit_mae as mae

from ..attention import size_bias
from ..patch import Patch
from .common import transforms, weighted_mean

# What positions do in a layer: `(layer, bias, place, **tables)` -> the bias of attention, and the angles of its tokens.
Positions = Callable[..., tuple[Tensor | None, tuple[Tensor, Tensor] | None]]


@dataclass(frozen=True)
class LayerLayout:
    """Names and types of the parts of a layer.

    Attributes:
        kind, attention_kind, mlp_kinds: the exact types.
        norms: names of the norm before attention and of the one before the MLP.
        behind: names of what comes behind attention, and behind the MLP, before the residual sum.
            A name with a star is that of a factor, others are of modules.
        attention, output, scale, dropout: attribute names, the last three inside attention.
        dropout_module: whether dropout is a module, and not a number.
        projections: names of the maps to queries, keys and values, or of the one map to all three.
        positions: for layers with relative or rotary positions; the layer then gets `TowerLayout.tables`.
        rotate: `(q, k, cos, sin)` -> q and k, for rotary positions.
    """

    kind: type
    attention_kind: type
    mlp_kinds: tuple[type, ...]
    norms: tuple[str, str]
    behind: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    attention: str = "attention"
    output: str = "o_proj"
    scale: str = "scaling"
    dropout: str = "attention_dropout"
    dropout_module: bool = False
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    positions: Positions | None = None
    rotate: Callable[..., tuple[Tensor, Tensor]] | None = None


@dataclass(frozen=True)
class TowerLayout:
    """Names of the parts of a tower.

    Attributes:
        layer: the layout of its layers.
        layers, patches: paths of the list of layers and of the patch projection.
        arguments: positional arguments of its `forward`.
        pool: `(model, x, size) -> pooler_output`, from normed tokens; a size is given where tokens have to be weighed.
        before, after: names of the norms before and after the layers.
        prefix: class and distillation tokens (registers come on top).
        output: the class of its output.
        aside: arguments that the embeddings do not take.
        further: names of what the embeddings return besides the tokens, which is handed on in the output.
        tables: `(model, pixels)` -> arguments of the layers that hold a value for every place.
        raster: whether the tokens stand as the patches do.
        backbone: whether the output is feature maps of chosen layers.
        refuse: `(model, patch)` -> why this tower cannot be patched in this way, or None.
        asked: `model` -> why it cannot run as its config is now, or None; it is asked in every forward.
    """

    layer: LayerLayout
    layers: str
    patches: str
    arguments: tuple[str, ...]
    pool: Callable[[nn.Module, Tensor, Tensor | None], Tensor | None]
    before: str | None = None
    after: str | None = None
    prefix: int = 1
    output: type[ModelOutput] = BaseModelOutputWithPooling
    aside: tuple[str, ...] = ()
    further: tuple[str, ...] = ()
    tables: Callable[[nn.Module, Tensor], dict[str, Any]] | None = None
    raster: bool = True
    backbone: bool = False
    refuse: Callable[[nn.Module, Patch | None], str | None] | None = None
    asked: Callable[[nn.Module], str | None] | None = None


@dataclass(frozen=True)
class Around:
    """A model around a tower.

    Attributes:
        tower: path of the tower.
        maps: names of the linear maps behind it, of the size that `pc.flops` counts.
        reads: how the model reads patches: "class" = not at all, "mean" = as a plain mean of all, "cross" = by
            cross-attention, which counts every token that it is given once.
    """

    tower: str
    maps: tuple[str, ...] = ()
    reads: str = "class"


def pool_first(model: nn.Module, x: Tensor, size: Tensor | None) -> Tensor | None:
    return None if model.pooler is None else model.pooler(x)


def pool_clip(model: nn.Module, x: Tensor, size: Tensor | None) -> Tensor:
    return model.post_layernorm(x[:, 0])


def pool_class(model: nn.Module, x: Tensor, size: Tensor | None) -> Tensor:
    return x[:, 0]


def pool_none(model: nn.Module, x: Tensor, size: Tensor | None) -> None:
    return None


def pool_beit(model: nn.Module, x: Tensor, size: Tensor | None) -> Tensor | None:
    """BEiT's pooling: the class token, or the mean of the patches. With sizes, each counts as often as its size."""
    if size is None or model.pooler is None or model.pooler.layernorm is None:
        return pool_first(model, x, size)
    return model.pooler.layernorm(weighted_mean(x[:, 1:], size[:, 1:]))


def pool_siglip(model: nn.Module, x: Tensor, size: Tensor | None) -> Tensor | None:
    """SigLIP's attention pooling. With sizes, every token counts as many times as its size."""
    if not model.use_head:
        return None
    head = model.head
    if size is None:
        return head(x)
    bias = size_bias(size, x.dtype).expand(-1, head.attention.num_heads, -1, -1).flatten(0, 1)  # (B H, 1, T)
    x = head.attention(head.probe.expand(x.shape[0], -1, -1), x, x, attn_mask=bias, need_weights=False)[0]
    return (x + head.mlp(head.layernorm(x)))[:, 0]


_SCALED = (("layer_scale1", "drop_path"), ("layer_scale2", "drop_path"))


def _dino(module: Any, name: str) -> TowerLayout:
    """The layout of DINOv2, which the version with registers shares."""
    part = partial(getattr, module)
    layer = LayerLayout(
        part(f"{name}Layer"), part(f"{name}Attention"), (part(f"{name}MLP"), part(f"{name}SwiGLUFFN")),
        ("norm1", "norm2"), _SCALED,
    )
    arguments = ("pixel_values", "bool_masked_pos", "attention_mask")
    return TowerLayout(layer, "encoder.layer", "embeddings.patch_embeddings.projection", arguments, pool_class,
                 after="layernorm")


def _vit(module: Any, name: str, prefix: int) -> TowerLayout:
    """The layout of ViT, which DeiT shares."""
    part = partial(getattr, module)
    layer = LayerLayout(
        part(f"{name}Layer"), part(f"{name}Attention"), (part(f"{name}MLP"),), ("layernorm_before", "layernorm_after"),
        (("dropout",), ("dropout",)),
    )
    arguments = ("pixel_values", "bool_masked_pos", "interpolate_pos_encoding", "attention_mask")
    return TowerLayout(layer, "layers", "embeddings.patch_embeddings.projection", arguments, pool_first,
                       after="layernorm", prefix=prefix)


def clip_layer(module: Any, name: str) -> LayerLayout:
    """The layout of a layer of CLIP, which SigLIP and BLIP share."""
    part = partial(getattr, module)
    return LayerLayout(
        part(f"{name}EncoderLayer"), part(f"{name}Attention"), (part(f"{name}MLP"),), ("layer_norm1", "layer_norm2"),
        attention="self_attn", output="out_proj", scale="scale", dropout="dropout",
    )


def _beit_tables(model: nn.Module, pixels: Tensor) -> dict[str, Any]:
    """The size of the images, and the bias `(1, H, N + 1, N + 1)` that all layers share."""
    height, width = pixels.shape[2:]
    shared, side = model.shared_position_bias, model.config.patch_size
    return {"resolution": (height, width),
            "attention_mask": None if shared is None else shared((height // side, width // side))}


def _beit_positions(
    layer: nn.Module, bias: Tensor | None, place: Tensor | None, resolution: tuple[int, int],
    attention_mask: Tensor | None,
) -> tuple[Tensor | None, None]:
    """The layer's bias of every pair of positions and the shared one, between tokens that stand at `place`."""
    window = (resolution[0] // layer.patch_size, resolution[1] // layer.patch_size)
    own = None if layer.relative_position_bias is None else layer.relative_position_bias(window)
    for table in (own, attention_mask):
        if table is None:
            continue
        if place is not None:
            tokens = torch.cat([torch.zeros_like(place[:, :1]), place + 1], dim=1)  # the class token has row 0
            table = table.to(place.device)[0][:, tokens[:, :, None], tokens[:, None, :]].transpose(0, 1)
        bias = table if bias is None else bias + table
    return bias, None


def _refuse_places(model: nn.Module, patch: Patch | None) -> str | None:
    if patch is not None and transforms(patch):
        return f"its positions need a place for every token, and {patch.method.name!r} leaves none"
    return None


def _rotary_tables(model: nn.Module, pixels: Tensor) -> dict[str, Any]:
    """Cosines and sines of the angles of all patches, `(N, D)` each."""
    return {"position_embeddings": model.rope_embeddings(pixels)}


def _rotary_positions(
    layer: nn.Module, bias: Tensor | None, place: Tensor | None, position_embeddings: tuple[Tensor, Tensor]
) -> tuple[Tensor | None, tuple[Tensor, Tensor]]:
    """The angles of tokens that stand at `place (B, M)`, `(B, 1, M, D)` each; the whole tables where place is None."""
    if place is None:
        return bias, position_embeddings
    cos, sin = (table.to(place.device)[place][:, None] for table in position_embeddings)
    return bias, (cos, sin)


def _masks(model: nn.Module) -> str | None:
    if model.config.mask_ratio != 0:
        return (f"it leaves out patches at random (config.mask_ratio={model.config.mask_ratio:g}), which is for "
                "pretraining: set model.config.mask_ratio = 0.0, or load the weights into a ViTForImageClassification, "
                "or use timm's vit_huge_patch14_224.mae")
    return None


def _refuse_masking(model: nn.Module, patch: Patch | None) -> str | None:
    if patch is not None and "positions" in patch.method.needs:
        return f"its patches stand in a random order, and {patch.method.name!r} reads their places"
    return _masks(model)


_DINOV3 = TowerLayout(
    LayerLayout(
        dinov3.DINOv3ViTLayer, dinov3.DINOv3ViTAttention, (dinov3.DINOv3ViTMLP, dinov3.DINOv3ViTGatedMLP),
        ("norm1", "norm2"), _SCALED, dropout="dropout", positions=_rotary_positions, rotate=dinov3.apply_rotary_pos_emb,
    ),
    "model.layer", "embeddings.patch_embeddings", ("pixel_values", "bool_masked_pos"), pool_class, after="norm",
    tables=_rotary_tables, refuse=_refuse_places,
)
_BEIT = TowerLayout(
    LayerLayout(
        beit.BeitLayer, beit.BeitAttention, (beit.BeitMLP,), ("layernorm_before", "layernorm_after"),
        (("dropout", "*lambda_1", "drop_path"), ("dropout", "*lambda_2", "drop_path")), positions=_beit_positions,
    ),
    "layers", "embeddings.patch_embeddings.projection",
    ("pixel_values", "bool_masked_pos", "interpolate_pos_encoding", "attention_mask"), pool_beit, after="layernorm",
    output=beit.BeitModelOutputWithPooling, aside=("interpolate_pos_encoding",), tables=_beit_tables,
    refuse=_refuse_places,
)
_MAE = replace(
    _vit(mae, "ViTMAE", 1), arguments=("pixel_values", "noise", "interpolate_pos_encoding", "attention_mask"),
    pool=pool_none, output=mae.ViTMAEModelOutput, further=("mask", "ids_restore"), raster=False, refuse=_refuse_masking,
    asked=_masks,
)
_DINO, _REGISTERS = _dino(dinov2, "Dinov2"), _dino(registers, "Dinov2WithRegisters")
_OF_PIXELS = ("pixel_values",)
_SIZED = ("pixel_values", "interpolate_pos_encoding")

TOWERS = {
    vit.ViTModel: _vit(vit, "ViT", 1),
    deit.DeiTModel: _vit(deit, "DeiT", 2),
    clip.CLIPVisionModel: TowerLayout(
        clip_layer(clip, "CLIP"), "encoder.layers", "embeddings.patch_embedding", _SIZED, pool_clip,
        before="pre_layrnorm",
    ),
    siglip.SiglipVisionModel: TowerLayout(
        clip_layer(siglip, "Siglip"), "encoder.layers", "embeddings.patch_embedding", _SIZED, pool_siglip,
        after="post_layernorm", prefix=0,
    ),
    blip.BlipVisionModel: TowerLayout(
        replace(clip_layer(blip, "Blip"), output="projection", dropout_module=True, projections=("qkv",)),
        "encoder.layers", "embeddings.patch_embedding", _SIZED, pool_clip, after="post_layernorm",
    ),
    beit.BeitModel: _BEIT,
    mae.ViTMAEModel: _MAE,
    dinov2.Dinov2Model: _DINO,
    registers.Dinov2WithRegistersModel: _REGISTERS,
    dinov3.DINOv3ViTModel: _DINOV3,
    dinov2.Dinov2Backbone: replace(_DINO, arguments=_OF_PIXELS, backbone=True),
    registers.Dinov2WithRegistersBackbone: replace(_REGISTERS, arguments=_OF_PIXELS, backbone=True),
}

AROUND = {
    vit.ViTForImageClassification: Around("vit", ("classifier",)),
    deit.DeiTForImageClassification: Around("deit", ("classifier",)),
    deit.DeiTForImageClassificationWithTeacher: Around("deit", ("cls_classifier", "distillation_classifier")),
    clip.CLIPVisionModelWithProjection: Around("vision_model", ("visual_projection",)),
    clip.CLIPForImageClassification: Around("vision_model", ("classifier",), "mean"),
    clip.CLIPModel: Around("vision_model", ("visual_projection",)),
    siglip.SiglipForImageClassification: Around("vision_model", ("classifier",), "mean"),
    siglip.SiglipModel: Around("vision_model"),
    blip.BlipModel: Around("vision_model", ("visual_projection",)),
    blip.BlipForImageTextRetrieval: Around("vision_model", ("vision_proj",), "cross"),
    blip.BlipForQuestionAnswering: Around("vision_model", (), "cross"),
    blip.BlipForConditionalGeneration: Around("vision_model", (), "cross"),
    beit.BeitForImageClassification: Around("beit", ("classifier",)),
    dinov2.Dinov2ForImageClassification: Around("dinov2", ("classifier",), "mean"),
    registers.Dinov2WithRegistersForImageClassification: Around("dinov2_with_registers", ("classifier",), "mean"),
}

# Models with a text tower that cannot merge, and why.
TEXT = {
    clip.CLIPModel: "its text tower is causal: a merged token would carry later words into earlier ones",
    siglip.SiglipModel: "its text tower reads the last position, which may be padding, and attends to padding",
}
_CROSSED = "its text tower attends to the image in every layer, and may be causal: its tokens are not merged"
TEXT |= {kind: _CROSSED for kind, around in AROUND.items() if around.reads == "cross"}
TEXT |= {
    clip.CLIPTextModel: TEXT[clip.CLIPModel],
    clip.CLIPTextModelWithProjection: TEXT[clip.CLIPModel],
    siglip.SiglipTextModel: TEXT[siglip.SiglipModel],
}

# Models that cannot merge, why, and the way that is left.
ELSEWHERE = {
    dinov3.DINOv3ViTBackbone: "its feature maps and class tokens are not put together here: use a DINOv3ViTModel with "
    "output_hidden_states=True, or timm's vit_base_patch16_dinov3 with forward_intermediates",
    mae.ViTMAEForPreTraining: "its decoder reads the places of patches that were left out, so there is nothing to "
    "merge in it: patch its encoder, model.vit, with config.mask_ratio = 0.0, or use timm's vit_huge_patch14_224.mae",
}
