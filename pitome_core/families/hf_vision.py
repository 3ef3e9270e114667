"""Vision towers of Hugging Face's transformers: ViT, DeiT, MAE, BEiT, CLIP, SigLIP, BLIP, DINOv2 and DINOv3.

Embeddings, norms, LayerScale, drop-path, MLP and pooling heads are the modules of transformers. The loop over the
layers, the order of calls inside a layer, and attention are written here. Layers are called as modules, so that hooks
on them fire; they take and return sizes and plans besides the tokens. Models differ in the names of their parts, which
stand in the tables of `hf_layouts.py`. Where positions enter attention, a merged token stands where its anchor stood.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.backbone_utils import filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput
from transformers.utils.generic import can_return_tuple

from ..family import EntryPoint, Family, LayerShape, ModelShape, Unknown
from ..instances import own_class
from ..patch import LayerStep, Merged, Patch
from .common import (
    Attended,
    AttentionCall,
    as_grid,
    attention_point,
    check_step,
    image_size,
    linear,
    move,
    own_forward,
    pooled_by_size,
    run_block,
)
from .hf_common import CallOptions, attend, bound, implementation_refusal, unlisted
from .hf_layouts import AROUND, ELSEWHERE, TEXT, TOWERS, LayerLayout, TowerLayout, pool_siglip


def _towers(model: nn.Module) -> dict[str, str | None]:
    reason = TEXT.get(own_class(model))
    return {"vision": None} if reason is None else {"vision": None, "text": reason, "both": reason}


def _tower(model: nn.Module) -> nn.Module:
    kind = own_class(model)
    return model.get_submodule(AROUND[kind].tower) if kind in AROUND else model


def _matches(model: nn.Module) -> bool:
    return isinstance(model, (*TOWERS, *AROUND, *TEXT, *ELSEWHERE))


def tower_refusal(model: nn.Module) -> str | None:
    """Why a tower cannot be patched; None if it can.

    Only exact types are accepted, because a subclass may override the loop that is replaced here.
    """
    tower = TOWERS.get(own_class(model))
    if tower is None:
        return unlisted(model)
    return layers_refusal(model.get_submodule(tower.layers), tower.layer)


def layers_refusal(layers: nn.ModuleList, layer: LayerLayout) -> str | None:
    """Why the first layer that is not laid out like this cannot be patched; None if all are."""
    for i, module in enumerate(layers):
        attn, mlp = getattr(module, layer.attention, None), getattr(module, "mlp", None)
        for part, kinds in ((module, (layer.kind,)), (attn, (layer.attention_kind,)), (mlp, layer.mlp_kinds)):
            if own_class(part) not in kinds:
                return f"layer {i} has a {type(part).__qualname__} where a {kinds[0].__qualname__} is known"
        missing = [name for name in (*layer.norms, *sum(layer.behind, ())) if not hasattr(module, name.lstrip("*"))]
        inside = (layer.output, layer.scale, layer.dropout, *layer.projections)
        missing += [name for name in inside if not hasattr(attn, name)]
        if missing:
            return f"layer {i} has no {missing[0]!r}: this version of transformers lays it out in another way"
        if implementation_refusal(attn) is not None:
            return implementation_refusal(attn)
    return None


def mean_refusal(model: nn.Module, patch: Patch | None) -> str | None:
    """Why a model that averages all patches cannot be patched in this way; None if it can."""
    if patch is None or (patch.restore and patch.method.partition):
        return None
    return f"{type(model).__qualname__} reads the plain mean of all patches, so none may be missing or merged in it"


def _refusal(model: nn.Module, patch: Patch | None) -> str | None:
    kind, tower = own_class(model), _tower(model)
    if kind in ELSEWHERE or (kind in TEXT and kind not in AROUND):
        return ELSEWHERE.get(kind) or TEXT[kind]
    reason = tower_refusal(tower)
    if reason is not None:
        return reason
    layout, reads = TOWERS[own_class(tower)], AROUND[kind].reads if kind in AROUND else "class"
    if reads == "mean" and mean_refusal(model, patch) is not None:
        return mean_refusal(model, patch)
    if patch is not None and reads == "cross" and patch.restore and patch.method.drops:
        return f"{type(model).__qualname__} attends to all patches, to zeros for dropped ones too: give restore=False"
    if patch is not None and layout.backbone and not patch.restore and tower.config.reshape_hidden_states:
        return "merged tokens (restore=False) form no grid, which its feature maps are"
    return None if layout.refuse is None else layout.refuse(tower, patch)


def _entry_points(model: nn.Module) -> list[EntryPoint]:
    return tower_entry_points(_tower(model))


def tower_entry_points(model: nn.Module) -> list[EntryPoint]:
    """The functions that take the place of the methods of a tower, its layers and their attention."""
    tower = TOWERS[own_class(model)]
    points: list[EntryPoint] = [
        (model, "forward", partial(_backbone, tower=tower) if tower.backbone else partial(_forward, tower))
    ]
    around, _, _ = tower.layers.rpartition(".")
    if around:
        points.append((model.get_submodule(around), "forward", None))
    return points + layer_points(model.get_submodule(tower.layers), tower.layer)


def layer_points(layers: nn.ModuleList, parts: LayerLayout) -> list[EntryPoint]:
    """The functions that take the place of the forwards of layers and of their attention."""
    points: list[EntryPoint] = []
    for layer in layers:
        points.append((layer, "forward", partial(_layer_forward, parts)))
        points.append(attention_point(getattr(layer, parts.attention), partial(_attend, parts)))
    return points


def _attend(parts: LayerLayout, attn: nn.Module, call: AttentionCall, x: Tensor) -> tuple[Tensor, None]:
    """Self-attention of a layer with a bias, `(B, T, C) -> (B, T, C)`."""
    dropout = getattr(attn, parts.dropout)
    y = attend(
        attn, call, tuple(getattr(attn, name) for name in parts.projections), x, head_dim=attn.head_dim,
        scale=getattr(attn, parts.scale), dropout=dropout.p if parts.dropout_module else dropout, rotate=parts.rotate,
    )
    return getattr(attn, parts.output)(y), None


def _feed(parts: LayerLayout, layer: nn.Module, x: Tensor) -> Tensor:
    """The MLP half of a layer without its residual."""
    return _behind(layer, parts.behind[1], layer.mlp(getattr(layer, parts.norms[1])(x)))


def _behind(layer: nn.Module, names: tuple[str, ...], x: Tensor) -> Tensor:
    """What comes behind a half of a layer: modules, and factors."""
    for name in names:
        x = getattr(layer, name[1:]) * x if name.startswith("*") else getattr(layer, name)(x)
    return x


def _layer_forward(
    parts: LayerLayout,
    layer: nn.Module,
    patch: Patch,
    *args: Any,
    place: Tensor | None = None,
    size: Tensor | None = None,
    step: LayerStep | None = None,
    **tables: Any,
) -> Merged:
    """A layer with a merge: `x (B, T, C)` -> x `(B, T', C)`, size `(B, T')`, plan. `place (B, M)` is where the patch
    tokens stand on the grid that the tables are of."""
    check_step(step, layer)
    if step.remove == 0 and size is None and place is None:
        return own_forward(layer, args[0], **{"attention_mask": None, **tables}), None, None

    def half(x: Tensor, bias: Tensor | None, plan: Any) -> Attended:
        rope = None
        if parts.positions is not None:
            bias, rope = parts.positions(layer, bias, move(place, plan), **tables)
        call = AttentionCall(bias, step.reads_attention, rope)
        y, _ = getattr(layer, parts.attention)(getattr(layer, parts.norms[0])(x), call=call)
        return call.with_output(_behind(layer, parts.behind[0], y))

    return run_block(step, args[0], size, half, partial(_feed, parts, layer))


def _run(tower: TowerLayout, model: nn.Module, patch: Patch, args: tuple, kwargs: dict[str, Any]):
    """Run a tower: the options of the call, the tokens behind the layers, hidden states as they were taken, the state,
    and what the embeddings gave besides the tokens."""
    arguments = bound(tower.arguments, args, kwargs)
    if arguments.pop("attention_mask", None) is not None:
        raise ValueError("a merged model takes no attention_mask: rows and columns would no longer fit")
    layers = model.get_submodule(tower.layers)
    options = CallOptions(model, len(layers), arguments)
    reason = None if tower.asked is None else tower.asked(model)
    if reason is not None:
        raise ValueError(reason)

    projection = model.get_submodule(tower.patches)
    pixels = arguments["pixel_values"].to(projection.weight.dtype)
    own = {name: arguments[name] for name in tower.arguments[1:] if name in arguments and name not in tower.aside}
    x = model.embeddings(pixels, **own)
    x, *further = x if tower.further else (x,)
    if tower.before is not None:
        x = getattr(model, tower.before)(x)
    prefix = _prefix(tower, model)
    columns = pixels.shape[-1] // projection.stride[1] if tower.raster else None
    state = patch.start(x, prefix, prefix > 0, columns)
    tables = None if tower.tables is None else tower.tables(model, pixels)
    x, taken = options.run(layers, x, state, tables)
    return options, x, taken, state, dict(zip(tower.further, further, strict=True))


def _forward(tower: TowerLayout, model: nn.Module, patch: Patch, *args: Any, **kwargs: Any):
    """The forward of a tower with merges. Every token output has all its patches again, unless `restore=False`."""
    options, x, taken, state, fields = _run(tower, model, patch, args, kwargs)
    if tower.after is not None:
        x = getattr(model, tower.after)(x)
    read = state.as_read(x, state.plan)
    pooled = tower.pool(model, x, state.size) if pooled_by_size(patch, state) else tower.pool(model, read, None)
    if pooled is not None:
        fields["pooler_output"] = pooled
    output = tower.output(last_hidden_state=read, hidden_states=options.states(taken, state), **fields)
    return options.give(output)


@can_return_tuple
@filter_output_hidden_states
def _backbone(model: nn.Module, patch: Patch, *args: Any, tower: TowerLayout, **kwargs: Any) -> BackboneOutput:
    """The forward of a backbone with merges: maps of the chosen stages, with all patches in their places again."""
    options, _, taken, state, _ = _run(tower, model, patch, args, kwargs)
    rows = state.num_patches // state.columns
    maps = []
    for i, stage in enumerate(model.stage_names):
        if stage in model.out_features:
            x, plan = taken[i]
            x = state.as_read(getattr(model, tower.after)(x) if model.config.apply_layernorm else x, plan)
            if model.config.reshape_hidden_states:
                x = as_grid(x[:, state.prefix :], rows, state.columns)
            maps.append(x)
    return BackboneOutput(feature_maps=tuple(maps), hidden_states=options.states(taken, state))


def _prefix(tower: TowerLayout, model: nn.Module) -> int:
    return tower.prefix + getattr(model.config, "num_register_tokens", 0)


def tower_shape(model: nn.Module, input_size: tuple[int, ...] | None) -> ModelShape:
    """Sizes of a tower; its head is the pooling."""
    tower = TOWERS[own_class(model)]
    projection, own = model.get_submodule(tower.patches), model.config.image_size
    height, width = image_size((own, own) if isinstance(own, int) else own, input_size)
    rows, columns = getattr(projection, "base_layer", projection).stride
    patches = (height // rows) * (width // columns)
    layers = layer_shapes(model.get_submodule(tower.layers), tower.layer)

    def head(patches: int) -> int:
        return pooling_cost(model, patches) if tower.pool is pool_siglip else linear(getattr(model, "pooler", None))

    return ModelShape(patches, _prefix(tower, model), layers, patches * linear(projection), head)


def layer_shapes(layers: nn.ModuleList, parts: LayerLayout) -> tuple[LayerShape, ...]:
    """Sizes of layers."""
    shapes = []
    for layer in layers:
        attn = getattr(layer, parts.attention)
        first = getattr(attn, parts.projections[0])
        channels = first.out_features * len(parts.projections) // 3
        shapes.append(
            LayerShape(first.in_features, channels // attn.head_dim, channels, linear(attn), linear(layer.mlp))
        )
    return tuple(shapes)


def pooling_cost(model: nn.Module, patches: int) -> int | Unknown:
    """Multiply-accumulates of SigLIP's attention pooling of that many patches."""
    if not model.use_head:
        return 0
    if type(model.head.attention) is not nn.MultiheadAttention:
        return Unknown(f"head.attention is a {type(model.head.attention).__qualname__}, and its cost is not known")
    width = model.config.hidden_size  # one query: its projection, keys and values, their products, output, MLP
    return 2 * width**2 + patches * (2 * width**2 + 2 * width) + linear(model.head.mlp)


def _shape(model: nn.Module, input_size: tuple[int, ...] | None) -> ModelShape:
    """Sizes of the vision tower and of the linear map behind it. A text tower is not counted."""
    shape = tower_shape(_tower(model), input_size)
    around = AROUND.get(own_class(model))
    behind = linear(*(getattr(model, name) for name in (() if around is None else around.maps)))
    return ModelShape(shape.num_patches, shape.prefix, shape.layers, shape.embed, lambda n: shape.head(n) + behind)


FAMILY = Family(
    name="transformers vision tower",
    supports="transformers ViT, DeiT, MAE, BEiT, CLIP, SigLIP, BLIP, DINOv2, DINOv3: models, classifiers, vision "
    "towers, backbones of DINOv2",
    matches=_matches,
    refusal=_refusal,
    entry_points=_entry_points,
    shape=_shape,
    towers=_towers,
)
