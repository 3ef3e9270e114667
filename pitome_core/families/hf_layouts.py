"""How the vision towers of Hugging Face's transformers are laid out: names and types of their parts, in tables.

`hf_vision.py` runs them. A tower that is laid out like one of these needs an entry here and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.models.clip import modeling_clip as clip
from transformers.models.deit import modeling_deit as deit
from transformers.models.dinov2 import modeling_dinov2 as dinov2
from transformers.models.dinov2_with_registers import modeling_dinov2_with_registers as registers
from transformers.models.siglip import modeling_siglip as siglip
from transformers.models.vit import modeling_vit as vit

from ..attention import size_bias


@dataclass(frozen=True)
class LayerLayout:
    """Names and types of the parts of a layer.

    Attributes:
        kind, attention_kind, mlp_kinds: the exact types.
        norms: names of the norm before attention and of the one before the MLP.
        behind: names of what comes behind attention, and behind the MLP, before the residual sum.
        attention, output, scale, dropout: attribute names, the last three inside attention.
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


@dataclass(frozen=True)
class Around:
    """A model around a tower.

    Attributes:
        tower: path of the tower.
        maps: names of the linear maps behind it, of the size that `pc.flops` counts.
        reads: how the model reads patches: "class" = not at all, "mean" = as a plain mean of all.
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


def _clip(module: Any, name: str) -> LayerLayout:
    """The layout of a layer of CLIP, which SigLIP shares."""
    part = partial(getattr, module)
    return LayerLayout(
        part(f"{name}EncoderLayer"), part(f"{name}Attention"), (part(f"{name}MLP"),), ("layer_norm1", "layer_norm2"),
        attention="self_attn", output="out_proj", scale="scale", dropout="dropout",
    )


_SIZED = ("pixel_values", "interpolate_pos_encoding")

TOWERS = {
    vit.ViTModel: _vit(vit, "ViT", 1),
    deit.DeiTModel: _vit(deit, "DeiT", 2),
    clip.CLIPVisionModel: TowerLayout(
        _clip(clip, "CLIP"), "encoder.layers", "embeddings.patch_embedding", _SIZED, pool_clip, before="pre_layrnorm",
    ),
    siglip.SiglipVisionModel: TowerLayout(
        _clip(siglip, "Siglip"), "encoder.layers", "embeddings.patch_embedding", _SIZED, pool_siglip,
        after="post_layernorm", prefix=0,
    ),
    dinov2.Dinov2Model: _dino(dinov2, "Dinov2"),
    registers.Dinov2WithRegistersModel: _dino(registers, "Dinov2WithRegisters"),
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
    dinov2.Dinov2ForImageClassification: Around("dinov2", ("classifier",), "mean"),
    registers.Dinov2WithRegistersForImageClassification: Around("dinov2_with_registers", ("classifier",), "mean"),
}

# Models with a text tower that cannot merge, and why.
TEXT = {
    clip.CLIPModel: "its text tower is causal: a merged token would carry later words into earlier ones",
    siglip.SiglipModel: "its text tower reads the last position, which may be padding, and attends to padding",
}
TEXT |= {
    clip.CLIPTextModel: TEXT[clip.CLIPModel],
    clip.CLIPTextModelWithProjection: TEXT[clip.CLIPModel],
    siglip.SiglipTextModel: TEXT[siglip.SiglipModel],
}
