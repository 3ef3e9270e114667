"""Vision towers of Hugging Face's transformers: ViT, DeiT, CLIP, SigLIP, DINOv2 (with and without registers).

Embeddings, norms, LayerScale, drop-path, MLP and pooling heads are the modules of transformers. The loop over the
layers, the order of calls inside a layer, and attention are written here. Layers are called as modules, so that hooks
on them fire; they take and return sizes and plans besides the tokens. Models differ in the names of their parts, which
stand in the tables of `hf_layouts.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

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
from .hf_layouts import AROUND, TEXT, TOWERS, LayerLayout, TowerLayout, pool_siglip


def _towers(model: nn.Module) -> dict[str, str | None]:
    reason = TEXT.get(own_class(model))
    return {"vision": None} if reason is None else {"vision": None, "text": reason, "both": reason}


def _tower(model: nn.Module) -> nn.Module:
    kind = own_class(model)
    return model.get_submodule(AROUND[kind].tower) if kind in AROUND else model


def _matches(model: nn.Module) -> bool:
    return isinstance(model, (*TOWERS, *AROUND, *TEXT))


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
    if kind in TEXT and kind not in AROUND:
        return TEXT[kind]
    reads = AROUND[kind].reads if kind in AROUND else "class"
    if reads == "mean" and patch is not None and not (patch.restore and patch.method.partition):
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
    output = tower.output(last_hidden_state=read, pooler_output=pooled, hidden_states=states)
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
        if tower.pool is not pool_siglip:
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
    around = AROUND.get(own_class(model))
    behind = linear(*(getattr(model, name) for name in (() if around is None else around.maps)))
    return ModelShape(shape.num_patches, shape.prefix, shape.layers, shape.embed, lambda n: shape.head(n) + behind)


FAMILY = Family(
    name="transformers vision tower",
    supports="transformers ViT, DeiT, CLIP, SigLIP, DINOv2: models, classifiers, vision towers",
    matches=_matches,
    refusal=_refusal,
    entry_points=_entry_points,
    shape=_shape,
    towers=_towers,
)
