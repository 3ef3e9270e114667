"""Vision towers of Hugging Face's transformers: ViT, CLIP, SigLIP, DINOv2 (with and without registers).

Embeddings, norms, LayerScale, drop-path, MLP and pooling heads are the modules of transformers. The loop over the
layers, the order of calls inside a layer, and attention are written here. Layers are called as modules, so that hooks
on them fire; they take and return sizes and plans besides the tokens. Models differ in the names of their parts, which
stand in tables of `LayerLayout` and `TowerLayout`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip import modeling_clip as clip
from transformers.models.dinov2 import modeling_dinov2 as dinov2
from transformers.models.dinov2_with_registers import modeling_dinov2_with_registers as registers
from transformers.models.siglip import modeling_siglip as siglip
from transformers.models.vit import modeling_vit as vit

from ..attention import size_bias
from ..family import EntryPoint, Family, LayerShape, ModelShape, Unknown
from ..instances import own_class
from ..patch import LayerStep, Merged, Patch
from .common import (
    Attended,
    AttentionCall,
    attention_point,
    check_step,
    image_size,
    linear,
    own_forward,
    pooled_by_size,
    run_block,
)
from .hf_common import CallOptions, attend, implementation_refusal


@dataclass(frozen=True)
class LayerLayout:
    """Names and types of the parts of a layer.

    Attributes:
        kind, attention_kind, mlp_kinds: the exact types.
        attention, output, scale, dropout: attribute names, the last three inside attention.
        norms: names of the norm before attention and of the one before the MLP.
        behind: names of what comes behind attention, and behind the MLP, before the residual sum.
    """

    kind: type
    attention_kind: type
    mlp_kinds: tuple[type, ...]
    attention: str
    output: str
    scale: str
    dropout: str
    norms: tuple[str, str]
    behind: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


@dataclass(frozen=True)
class TowerLayout:
    """Names of the parts of a tower.

    Attributes:
        layer: the layout of its layers.
        layers, patches: paths of the list of layers and of the patch projection.
        arguments: positional arguments of its `forward`.
        pool: `(model, x, size) -> pooler_output`, from normed tokens; a size is given where tokens have to be weighed.
        before, after: names of the norms before and after the layers.
        prefix: class tokens (registers come on top).
    """

    layer: LayerLayout
    layers: str
    patches: str
    arguments: tuple[str, ...]
    pool: Callable[[nn.Module, Tensor, Tensor | None], Tensor | None]
    before: str | None = None
    after: str | None = None
    prefix: int = 1


def _pool_vit(model: nn.Module, x: Tensor, size: Tensor | None) -> Tensor | None:
    return None if model.pooler is None else model.pooler(x)


def _pool_clip(model: nn.Module, x: Tensor, size: Tensor | None) -> Tensor:
    return model.post_layernorm(x[:, 0])


def _pool_class(model: nn.Module, x: Tensor, size: Tensor | None) -> Tensor:
    return x[:, 0]


def _pool_siglip(model: nn.Module, x: Tensor, size: Tensor | None) -> Tensor | None:
    """SigLIP's attention pooling. With sizes, every token counts as many times as its size."""
    if not model.use_head:
        return None
    head = model.head
    if size is None:
        return head(x)
    bias = size_bias(size, x.dtype).expand(-1, head.attention.num_heads, -1, -1).flatten(0, 1)  # (B H, 1, T)
    x = head.attention(head.probe.expand(x.shape[0], -1, -1), x, x, attn_mask=bias, need_weights=False)[0]
    return (x + head.mlp(head.layernorm(x)))[:, 0]


def _dino(module: Any, name: str) -> TowerLayout:
    """The layout of DINOv2, which the version with registers shares."""
    part = partial(getattr, module)
    layer = LayerLayout(
        part(f"{name}Layer"), part(f"{name}Attention"), (part(f"{name}MLP"), part(f"{name}SwiGLUFFN")), "attention",
        "o_proj", "scaling", "attention_dropout", ("norm1", "norm2"),
        (("layer_scale1", "drop_path"), ("layer_scale2", "drop_path")),
    )
    arguments = ("pixel_values", "bool_masked_pos", "attention_mask")
    return TowerLayout(layer, "encoder.layer", "embeddings.patch_embeddings.projection", arguments, _pool_class,
                 after="layernorm")


_VIT = LayerLayout(
    vit.ViTLayer, vit.ViTAttention, (vit.ViTMLP,), "attention", "o_proj", "scaling", "attention_dropout",
    ("layernorm_before", "layernorm_after"), (("dropout",), ("dropout",)),
)
_CLIP = LayerLayout(
    clip.CLIPEncoderLayer, clip.CLIPAttention, (clip.CLIPMLP,), "self_attn", "out_proj", "scale", "dropout",
    ("layer_norm1", "layer_norm2"),
)
_SIGLIP = LayerLayout(
    siglip.SiglipEncoderLayer, siglip.SiglipAttention, (siglip.SiglipMLP,), "self_attn", "out_proj", "scale",
    "dropout", ("layer_norm1", "layer_norm2"),
)

TOWERS = {
    vit.ViTModel: TowerLayout(
        _VIT, "layers", "embeddings.patch_embeddings.projection",
        ("pixel_values", "bool_masked_pos", "interpolate_pos_encoding", "attention_mask"), _pool_vit,
        after="layernorm",
    ),
    clip.CLIPVisionModel: TowerLayout(
        _CLIP, "encoder.layers", "embeddings.patch_embedding", ("pixel_values", "interpolate_pos_encoding"),
        _pool_clip, before="pre_layrnorm",
    ),
    siglip.SiglipVisionModel: TowerLayout(
        _SIGLIP, "encoder.layers", "embeddings.patch_embedding", ("pixel_values", "interpolate_pos_encoding"),
        _pool_siglip, after="post_layernorm", prefix=0,
    ),
    dinov2.Dinov2Model: _dino(dinov2, "Dinov2"),
    registers.Dinov2WithRegistersModel: _dino(registers, "Dinov2WithRegisters"),
}

# Models around a tower: its name, the name of the linear map behind it, and whether that reads a mean of patches.
_AROUND = {
    vit.ViTForImageClassification: ("vit", "classifier", False),
    clip.CLIPVisionModelWithProjection: ("vision_model", "visual_projection", False),
    clip.CLIPForImageClassification: ("vision_model", "classifier", True),
    clip.CLIPModel: ("vision_model", "visual_projection", False),
    siglip.SiglipForImageClassification: ("vision_model", "classifier", True),
    siglip.SiglipModel: ("vision_model", None, False),
    dinov2.Dinov2ForImageClassification: ("dinov2", "classifier", True),
    registers.Dinov2WithRegistersForImageClassification: ("dinov2_with_registers", "classifier", True),
}

_TEXT = {
    clip.CLIPModel: "its text tower is causal: a merged token would carry later words into earlier ones",
    siglip.SiglipModel: "its text tower reads the last position, which may be padding, and attends to padding",
}
_TEXT |= {
    clip.CLIPTextModel: _TEXT[clip.CLIPModel],
    clip.CLIPTextModelWithProjection: _TEXT[clip.CLIPModel],
    siglip.SiglipTextModel: _TEXT[siglip.SiglipModel],
}


def _towers(model: nn.Module) -> dict[str, str | None]:
    reason = _TEXT.get(own_class(model))
    return {"vision": None} if reason is None else {"vision": None, "text": reason, "both": reason}


def _tower(model: nn.Module) -> nn.Module:
    kind = own_class(model)
    return model.get_submodule(_AROUND[kind][0]) if kind in _AROUND else model


def _matches(model: nn.Module) -> bool:
    return isinstance(model, (*TOWERS, *_AROUND, *_TEXT))


def tower_refusal(model: nn.Module) -> str | None:
    """Why a tower cannot be patched; None if it can.

    Only exact types are accepted, because a subclass may override the loop that is replaced here.
    """
    tower = TOWERS.get(own_class(model))
    if tower is None:
        return f"{type(model).__qualname__} is not listed and may run its layers in another way"
    layer = tower.layer
    for i, module in enumerate(model.get_submodule(tower.layers)):
        attn, mlp = getattr(module, layer.attention, None), getattr(module, "mlp", None)
        for part, kinds in ((module, (layer.kind,)), (attn, (layer.attention_kind,)), (mlp, layer.mlp_kinds)):
            if own_class(part) not in kinds:
                return f"layer {i} has a {type(part).__qualname__} where a {kinds[0].__qualname__} is known"
        missing = [name for name in (*layer.norms, *sum(layer.behind, ())) if not hasattr(module, name)]
        missing += [name for name in (layer.output, layer.scale, layer.dropout) if not hasattr(attn, name)]
        if missing:
            return f"layer {i} has no {missing[0]!r}: this version of transformers lays it out in another way"
        if implementation_refusal(attn) is not None:
            return implementation_refusal(attn)
    return None


def _refusal(model: nn.Module, patch: Patch | None) -> str | None:
    kind = own_class(model)
    if kind in _TEXT and kind not in _AROUND:
        return _TEXT[kind]
    around = _AROUND.get(kind)
    if around is not None and around[2] and patch is not None and not (patch.restore and patch.method.partition):
        return f"{type(model).__qualname__} reads the plain mean of all patches, so none may be missing or merged in it"
    return tower_refusal(_tower(model))


def _entry_points(model: nn.Module) -> list[EntryPoint]:
    return tower_entry_points(_tower(model))


def tower_entry_points(model: nn.Module) -> list[EntryPoint]:
    """The functions that take the place of the methods of a tower, its layers and their attention."""
    tower = TOWERS[own_class(model)]
    parts = tower.layer
    points: list[EntryPoint] = [(model, "forward", partial(_forward, tower))]
    around, _, _ = tower.layers.rpartition(".")
    if around:
        points.append((model.get_submodule(around), "forward", None))
    for layer in model.get_submodule(tower.layers):
        points.append((layer, "forward", partial(_layer_forward, parts)))
        points.append(attention_point(getattr(layer, parts.attention), partial(_attend, parts)))
    return points


def _attend(parts: LayerLayout, attn: nn.Module, call: AttentionCall, x: Tensor) -> tuple[Tensor, None]:
    """Self-attention of a layer with a bias, `(B, T, C) -> (B, T, C)`."""
    y = attend(
        attn, call, (attn.q_proj, attn.k_proj, attn.v_proj), x, head_dim=attn.head_dim,
        scale=getattr(attn, parts.scale), dropout=getattr(attn, parts.dropout),
    )
    return getattr(attn, parts.output)(y), None


def _feed(parts: LayerLayout, layer: nn.Module, x: Tensor) -> Tensor:
    """The MLP half of a layer without its residual."""
    x = layer.mlp(getattr(layer, parts.norms[1])(x))
    for name in parts.behind[1]:
        x = getattr(layer, name)(x)
    return x


def _layer_forward(
    parts: LayerLayout,
    layer: nn.Module,
    patch: Patch,
    *args: Any,
    size: Tensor | None = None,
    step: LayerStep | None = None,
    **_: Any,
) -> Merged:
    """A layer with a merge: `x (B, T, C)` -> x `(B, T', C)`, size `(B, T')`, plan."""
    check_step(step, layer)
    if step.remove == 0 and size is None:
        return own_forward(layer, args[0], None), None, None

    def half(x: Tensor, bias: Tensor | None, plan: Any) -> Attended:
        call = AttentionCall(bias, step.reads_attention)
        y, _ = getattr(layer, parts.attention)(getattr(layer, parts.norms[0])(x), call=call)
        for name in parts.behind[0]:
            y = getattr(layer, name)(y)
        return call.with_output(y)

    return run_block(step, args[0], size, half, partial(_feed, parts, layer))


def _forward(tower: TowerLayout, model: nn.Module, patch: Patch, *args: Any, **kwargs: Any):
    """The forward of a tower with merges. Every token output has all its patches again, unless `restore=False`."""
    arguments = dict(zip(tower.arguments, args, strict=False))
    if len(args) > len(tower.arguments) or arguments.keys() & kwargs:
        raise TypeError(f"forward takes {', '.join(tower.arguments)} by place, each once")
    arguments |= kwargs
    if arguments.pop("attention_mask", None) is not None:
        raise ValueError("a merged model takes no attention_mask: rows and columns would no longer fit")
    layers = model.get_submodule(tower.layers)
    options = CallOptions(model, len(layers), arguments)

    projection, pixels = model.get_submodule(tower.patches), arguments["pixel_values"]
    own = {name: arguments[name] for name in tower.arguments[1:] if name in arguments}
    x = model.embeddings(pixels.to(projection.weight.dtype), **own)
    if tower.before is not None:
        x = getattr(model, tower.before)(x)
    prefix = _prefix(tower, model)
    state = patch.start(x, prefix, prefix > 0, pixels.shape[-1] // projection.stride[1])
    x, states = options.run(layers, x, state)
    if tower.after is not None:
        x = getattr(model, tower.after)(x)
    read = state.as_read(x, state.plan)
    pooled = tower.pool(model, x, state.size) if pooled_by_size(patch, state) else tower.pool(model, read, None)
    output = BaseModelOutputWithPooling(last_hidden_state=read, pooler_output=pooled, hidden_states=states)
    return options.give(output)


def _prefix(tower: TowerLayout, model: nn.Module) -> int:
    return tower.prefix + getattr(model.config, "num_register_tokens", 0)


def tower_shape(model: nn.Module, input_size: tuple[int, ...] | None) -> ModelShape:
    """Sizes of a tower; its head is the pooling."""
    tower = TOWERS[own_class(model)]
    projection, own = model.get_submodule(tower.patches), model.config.image_size
    height, width = image_size((own, own) if isinstance(own, int) else own, input_size)
    rows, columns = getattr(projection, "base_layer", projection).stride
    patches = (height // rows) * (width // columns)
    layers = []
    for layer in model.get_submodule(tower.layers):
        attn = getattr(layer, tower.layer.attention)
        channels = attn.q_proj.out_features
        layers.append(
            LayerShape(attn.q_proj.in_features, channels // attn.head_dim, channels, linear(attn), linear(layer.mlp))
        )

    def head(patches: int) -> int:
        if tower.pool is not _pool_siglip:
            return linear(getattr(model, "pooler", None))
        if not model.use_head:
            return 0
        if type(model.head.attention) is not nn.MultiheadAttention:
            return Unknown(f"head.attention is a {type(model.head.attention).__qualname__}, and its cost is not known")
        width = model.config.hidden_size  # one query: its projection, keys and values, their products, output, MLP
        return 2 * width**2 + patches * (2 * width**2 + 2 * width) + linear(model.head.mlp)

    return ModelShape(patches, _prefix(tower, model), tuple(layers), patches * linear(projection), head)


def _shape(model: nn.Module, input_size: tuple[int, ...] | None) -> ModelShape:
    """Sizes of the vision tower and of the linear map behind it. A text tower is not counted."""
    shape = tower_shape(_tower(model), input_size)
    name = _AROUND[own_class(model)][1] if own_class(model) in _AROUND else None
    behind = 0 if name is None else linear(getattr(model, name))
    return ModelShape(shape.num_patches, shape.prefix, shape.layers, shape.embed, lambda n: shape.head(n) + behind)


FAMILY = Family(
    name="transformers vision tower",
    supports="transformers ViT, CLIP, SigLIP, DINOv2 (with registers or without): models, classifiers, vision towers",
    matches=_matches,
    refusal=_refusal,
    entry_points=_entry_points,
    shape=_shape,
    towers=_towers,
)
