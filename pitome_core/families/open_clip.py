"""open_clip's `CLIP` and `CustomTextCLIP`, and their image towers alone.

An image tower is open_clip's own `VisionTransformer`, or a timm model inside a `TimmModel`, run by timm's families.
Methods of the tower are replaced, so that everything that calls the tower (`encode_image`, `forward`,
`forward_intermediates`) runs merged. Traces and counts are those of the tower. Text towers stand in `open_clip_text`.
If both towers merge, traces and counts of the model are those of the image tower; those of the text tower are read from
`model.text.transformer`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from open_clip import CLIP, CustomTextCLIP
from open_clip.timm_model import TimmModel
from open_clip.transformer import (
    AttentionalPooler,
    QuickGELU,
    ResidualAttentionBlock,
    TextTransformer,
    Transformer,
    VisionTransformer,
)
from open_clip.utils import feature_take_indices
from torch import Tensor, nn

from ..attention import attention, attention_map
from ..family import EntryPoint, Family, LayerShape, ModelShape
from ..instances import original, own_class
from ..patch import ForwardState, LayerStep, Merged, Patch
from .common import (
    Attended,
    AttentionCall,
    as_grid,
    attention_point,
    check_format,
    check_step,
    image_size,
    linear,
    own_forward,
    pooled_by_size,
    run_block,
    run_blocks,
    weighted_mean,
)
from .open_clip_text import CAUSAL, TEXT, text_reason
from .registry import find_family
from .timm_common import pools_patches

_COMPOSITES = (CLIP, CustomTextCLIP)
_TOWERS = (VisionTransformer, TimmModel)


def _matches(model: nn.Module) -> bool:
    return isinstance(model, (*_COMPOSITES, *_TOWERS, TextTransformer))


def _towers(model: nn.Module) -> dict[str, str | None]:
    if own_class(model) not in _COMPOSITES:
        return {"vision": None}
    reason = text_reason(model)
    return {"vision": None, "text": reason, "both": reason}


def _tower(model: nn.Module) -> nn.Module:
    return model.visual if own_class(model) in _COMPOSITES else model


def _refusal(model: nn.Module, patch: Patch | None) -> str | None:
    if own_class(model) is TextTransformer:
        return CAUSAL
    if own_class(model) not in (*_COMPOSITES, *_TOWERS):
        return f"{type(model).__qualname__} derives from a model of open_clip and may run its tower in another way"
    tower = _tower(model)
    if own_class(tower) is TimmModel:
        return find_family(tower.trunk).refusal(tower.trunk, patch)
    if own_class(tower) is not VisionTransformer:
        return f"visual is a {type(tower).__qualname__}: it is no transformer over patches"
    if own_class(tower.transformer) is not Transformer or not tower.transformer.batch_first:
        return f"visual.transformer is a {type(tower.transformer).__qualname__}, or runs with the batch second"
    for i, block in enumerate(tower.transformer.resblocks):
        reason = _block_refusal(block)
        if reason:
            return f"visual.transformer.resblocks.{i} {reason}"
    if own_class(tower.attn_pool) not in (AttentionalPooler, type(None)):
        return f"visual.attn_pool is a {type(tower.attn_pool).__qualname__}: how it weighs patches is not known"
    if tower.attn_pool is not None and patch is not None and not (patch.restore and patch.method.partition):
        return "its attentional pooler has no weights for tokens that are merged or missing"
    return None


def _multihead(attn: nn.Module) -> nn.Module:
    """The attention itself where an adapter of peft is around it. The adapter calls it, with updated weights."""
    return attn.get_base_layer() if hasattr(attn, "get_base_layer") else attn


def _acts_on_tokens(mlp: nn.Sequential) -> bool:
    """Whether an MLP is linear, GELU, linear. The linear maps may be inside adapters, or quantised."""
    kinds = ["linear" if hasattr(part, "in_features") else own_class(part) for part in mlp]
    return kinds in (["linear", gelu, "linear"] for gelu in (nn.GELU, QuickGELU))


def _block_refusal(block: nn.Module) -> str | None:
    if own_class(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
        return f"is a {type(block).__qualname__}: its order of calls is not known"
    attn = _multihead(block.attn)
    if own_class(attn) is not nn.MultiheadAttention:
        return f"has a {type(attn).__qualname__}: its keys are not known"
    if not attn.batch_first or attn.in_proj_weight is None or attn.bias_k is not None or attn.add_zero_attn:
        return "has an attention with separate projections or with keys of its own"
    if not _acts_on_tokens(block.mlp):
        return "has an MLP of other parts than linear, GELU, linear: they may mix tokens"
    return None


def _entry_points(model: nn.Module) -> list[EntryPoint]:
    tower = _tower(model)
    if own_class(tower) is TimmModel:
        points = find_family(tower.trunk).entry_points(tower.trunk)
        return [*points, (tower, "forward_intermediates", _timm_intermediates)]
    points: list[EntryPoint] = [
        (tower, "forward", _forward),
        (tower, "forward_intermediates", _forward_intermediates),
        (tower.transformer, "forward", None),
    ]
    for block in tower.transformer.resblocks:
        points += [(block, "forward", _block_forward), attention_point(_multihead(block.attn), _attend)]
    return points


def _attend(attn: nn.MultiheadAttention, call: AttentionCall, x: Tensor, *_: Tensor) -> tuple[Tensor, None]:
    """`nn.MultiheadAttention` written out, `(B, T, C) -> (B, T, C)`.

    The module itself takes no keys out, and a mask for each item only as `(B H, T, T)`, which is large.
    """
    qkv = F.linear(x, attn.in_proj_weight, attn.in_proj_bias)
    q, k, v = qkv.unflatten(2, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
    call.keys = k
    call.map = attention_map(q, k, call.bias) if call.wants_map else None
    y = attention(q, k, v, call.bias, dropout=attn.dropout if attn.training else 0.0)
    return F.linear(y.transpose(1, 2).flatten(2), attn.out_proj.weight, attn.out_proj.bias), None


def _block_forward(
    block: ResidualAttentionBlock,
    patch: Patch,
    q_x: Tensor,
    *,
    size: Tensor | None = None,
    step: LayerStep | None = None,
    **_: Any,
) -> Merged:
    """A block with a merge: `q_x (B, T, C)` -> x `(B, T', C)`, size `(B, T')`, plan."""
    check_step(step, block)
    if step.remove == 0 and size is None:
        return own_forward(block, q_x), None, None

    def attend(x: Tensor, bias: Tensor | None, _) -> Attended:
        x, call = block.ln_1(x), AttentionCall(bias, step.reads_attention)
        y, _ = block.attn(x, x, x, need_weights=False, call=call)
        return call.with_output(block.ls_1(y))

    return run_block(step, q_x, size, attend, lambda x: block.ls_2(block.mlp(block.ln_2(x))))


def _run(
    tower: VisionTransformer, patch: Patch, images: Tensor, take: tuple[int, ...] = (), last: int | None = None
) -> tuple[Tensor, ForwardState, list[tuple]]:
    """Run the encoder: tokens `(B, T', C)`, the state of the call, (tokens, plan so far) after each layer in `take`."""
    x = tower._embeds(images)
    dropped = tower.training and not isinstance(tower.patch_dropout, nn.Identity)
    columns = None if dropped else images.shape[-1] // tower.patch_size[1]
    state = patch.start(x, 1, True, columns)
    blocks = tower.transformer.resblocks if last is None else tower.transformer.resblocks[: last + 1]
    x, taken = run_blocks(blocks, x, state, checkpointing=tower.transformer.grad_checkpointing, take=take)
    return x, state, taken


def _pool(tower: VisionTransformer, patch: Patch, x: Tensor, state: ForwardState) -> tuple[Tensor, Tensor]:
    """The tower's pooled output and its tokens, both before the projection."""

    def read(x: Tensor) -> Tensor:
        return state.as_read(x, state.plan)

    if tower.attn_pool is not None:  # _refusal makes sure that every patch comes back
        return tower._pool(read(x))
    after = tower.final_ln_after_pool
    if after and tower.pool_type == "none":
        return read(tower.ln_post(x)), read(x)
    x = x if after else tower.ln_post(x)
    pooled, tokens = tower._global_pool(read(x))
    if tower.pool_type == "avg" and pooled_by_size(patch, state):
        pooled = weighted_mean(x[:, 1:], state.size[:, 1:])
    return tower.ln_post(pooled) if after else pooled, tokens


def _forward(tower: VisionTransformer, patch: Patch, x: Tensor):
    x, state, _ = _run(tower, patch, x)
    pooled, tokens = _pool(tower, patch, x, state)
    pooled = pooled if tower.proj is None else pooled @ tower.proj
    return (pooled, tokens) if tower.output_tokens else pooled


def _forward_intermediates(
    tower: VisionTransformer,
    patch: Patch,
    x: Tensor,
    indices: int | list[int] | None = None,
    stop_early: bool = False,
    normalize_intermediates: bool = False,
    intermediates_only: bool = False,
    output_fmt: str = "NCHW",
    output_extra_tokens: bool = False,
) -> dict:
    """open_clip's `forward_intermediates` with merges. With `restore` every intermediate has all its patches again."""
    check_format(output_fmt, patch)
    take, last = feature_take_indices(len(tower.transformer.resblocks), indices)
    grid = [side // patch_side for side, patch_side in zip(x.shape[-2:], tower.patch_size, strict=True)]
    x, state, taken = _run(tower, patch, x, tuple(take), last if stop_early else None)
    tokens = [state.as_read(tower.ln_post(y) if normalize_intermediates else y, plan) for y, plan in taken]
    patches = [y[:, 1:] for y in tokens]
    output = {"image_intermediates": [as_grid(y, *grid) for y in patches] if output_fmt == "NCHW" else patches}
    if output_extra_tokens:
        output["image_intermediates_prefix"] = [y[:, :1] for y in tokens]
    if not intermediates_only:
        pooled, _ = _pool(tower, patch, x, state)
        output["image_features"] = pooled if tower.proj is None else pooled @ tower.proj
    return output


def _timm_intermediates(tower: TimmModel, patch: Patch, *arguments, **named) -> dict:
    """`TimmModel.forward_intermediates`, which pools the tokens of its trunk's intermediates and needs all of them."""
    output = original(tower).forward_intermediates(tower, *arguments, **named)
    whole = patch.restore and patch.method.partition
    if "image_features" in output and pools_patches(tower.trunk) and not whole:
        raise ValueError(
            "this tower pools the tokens of its intermediates, and has no weights for tokens that are merged or "
            "missing: ask for intermediates_only=True, and call the model for its features"
        )
    return output


def _shape(model: nn.Module, input_size: tuple[int, int, int] | None) -> ModelShape:
    tower = _tower(model)
    if own_class(tower) is TimmModel:
        inner = find_family(tower.trunk).shape(tower.trunk, input_size)

        def timm_head(patches: int) -> int:
            return inner.head(patches) + linear(tower.head) * (1 if tower.trunk.global_pool else patches + inner.prefix)

        return ModelShape(inner.num_patches, inner.prefix, inner.layers, inner.embed, timm_head)
    own = tuple(tower.image_size)
    height, width = image_size(own, input_size)
    if (height, width) != own:
        raise ValueError(f"this model takes images of {own[0]} x {own[1]} only, not {height} x {width}")
    layers = tuple(
        LayerShape(
            channels=block.attn.embed_dim,
            heads=block.attn.num_heads,
            attention_channels=block.attn.embed_dim,
            attention_linear=block.attn.in_proj_weight.numel() + linear(block.attn.out_proj),
            mlp_linear=linear(block.mlp),
        )
        for block in tower.transformer.resblocks
    )
    patches = tower.grid_size[0] * tower.grid_size[1]
    return ModelShape(patches, 1, layers, patches * linear(tower.conv1), partial(_head, tower))


def _head(tower: VisionTransformer, patches: int) -> int:
    """Multiply-accumulates of pooling and projection."""

    def pooler(pool: AttentionalPooler, tokens: int) -> int:
        queries, width = pool.query.shape
        return 2 * queries * width**2 + 2 * tokens * width * pool.attn.kdim + 2 * queries * tokens * width

    pool, second, tokens, count = tower.attn_pool, None, patches + 1, 0
    if pool is not None:
        second, queries = tower.attn_pool_contrastive, pool.query.shape[0]
        count = pooler(pool, tokens)
        if second is not None:
            count += pooler(second, tokens if tower.attn_pool_type == "parallel" else queries)
        tokens = queries
    projected = tokens if tower.pool_type == "none" and second is None else 1
    return count + projected * (0 if tower.proj is None else tower.proj.numel())


FAMILY = Family(
    name="open_clip model",
    supports="open_clip CLIP and CustomTextCLIP: their image towers (VisionTransformer, or a supported timm model), "
    "and a BERT as text tower",
    matches=_matches,
    refusal=_refusal,
    entry_points=_entry_points,
    shape=_shape,
    towers=_towers,
    text=TEXT,
)
