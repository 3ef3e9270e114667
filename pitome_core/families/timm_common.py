"""What the families of timm share: what comes behind the blocks, the end of attention, and sizes for counting.

The loop over the blocks is each family's own: `run(model, patch, images, take, last)` -> tokens, state, taken (see
`common.run_blocks`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..attention import attention, attention_map, size_bias
from ..family import EntryPoint, LayerShape, ModelShape
from ..instances import original, own_class
from ..patch import Patch
from .common import (
    AttentionCall,
    as_grid,
    attention_point,
    check_format,
    image_size,
    linear,
    pooled_by_size,
    weighted_mean,
)


def block_refusal(
    model: nn.Module, blocks: tuple[type, ...], attentions: tuple[type, ...], mlps: tuple[type, ...]
) -> str | None:
    """Why the first block that is not of the listed exact types cannot be patched; None if all blocks are."""
    for i, block in enumerate(model.blocks):
        if own_class(block) not in blocks:
            return f"blocks.{i} is a {type(block).__qualname__}: it has no place between attention and MLP to merge at"
        if own_class(block.attn) not in attentions:
            return f"blocks.{i}.attn is a {type(block.attn).__qualname__}: its keys are not known"
        if own_class(block.mlp) not in mlps:
            return f"blocks.{i}.mlp is a {type(block.mlp).__qualname__}: it may mix tokens"
    return None


def entry_points(model: nn.Module, run: Callable, block: Callable, attend: Callable) -> list[EntryPoint]:
    """The functions that take the place of the methods of a model, its blocks and their attention."""
    points = [
        (model, "forward", partial(_forward, run)),
        (model, "forward_features", partial(_forward_features, run)),
        (model, "forward_head", _forward_head),
        (model, "forward_intermediates", partial(_forward_intermediates, run)),
        (model.blocks, "forward", None),
    ]
    points += [(part, "forward", block) for part in model.blocks]
    return points + [attention_point(part.attn, attend) for part in model.blocks]


def split_heads(attn: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v `(B, H, T, D)` of a fused projection. Its bias may be stored in three parts (with zeros for keys)."""
    bias = None if getattr(attn, "q_bias", None) is None else torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
    if bias is None:
        qkv = attn.qkv(x)
    elif attn.qkv_bias_separate:
        qkv = attn.qkv(x)
        qkv += bias  # in place: the type stays that of the projection under autocast
    else:
        qkv = F.linear(x, attn.qkv.weight, bias)
    return qkv.unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def finish_attention(attn: nn.Module, call: AttentionCall, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """From q, k, v `(B, H, T, D)` to attention's output `(B, T, C)`; `x` is what attention was given."""
    call.map = attention_map(q, k, call.bias, scale=attn.scale) if call.wants_map else None
    drop = attn.attn_drop.p if attn.training else 0.0
    y = attention(q, k, v, call.bias, scale=attn.scale, dropout=drop, fused=attn.fused_attn)
    y = y.transpose(1, 2).flatten(2)
    if hasattr(attn, "norm"):
        y = attn.norm(y)
    if getattr(attn, "gate", None) is not None:
        y = y * attn.gate(x).sigmoid()
    return attn.proj_drop(attn.proj(y))


def _refuse_masks(attn_mask: Tensor | None, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        raise ValueError("a merged model takes no attn_mask and no is_causal: rows and columns would no longer fit")


def _forward_features(
    run: Callable, model: nn.Module, patch: Patch, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    _refuse_masks(attn_mask, is_causal)
    x, state, _ = run(model, patch, x)
    return state.as_read(model.norm(x), state.plan)


def _forward(
    run: Callable, model: nn.Module, patch: Patch, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    _refuse_masks(attn_mask, is_causal)
    x, state, _ = run(model, patch, x)
    x = model.norm(x)
    if pools_patches(model) and pooled_by_size(patch, state):
        return _weighted_head(model, x, state.size)
    if not pools_patches(model) and model.global_pool == "token":
        return original(model).forward_head(model, x)  # reads prefix tokens only: nothing to restore
    return original(model).forward_head(model, state.as_read(x, state.plan))


def _forward_head(model: nn.Module, patch: Patch, x: Tensor, pre_logits: bool = False) -> Tensor:
    """The head on the output of `forward_features`; ValueError if it needs the sizes of tokens, which are not there."""
    if pools_patches(model) and (patch.method.drops or not patch.restore):
        raise ValueError(
            "this head pools patches and does not know their sizes here: call the model itself (for intermediates of "
            "an open_clip tower: with intermediates_only=True)"
        )
    return original(model).forward_head(model, x, pre_logits)


def pools_patches(model: nn.Module) -> bool:
    """Whether the head pools the patch tokens."""
    return getattr(model, "attn_pool", None) is not None or model.global_pool in ("avg", "avgmax", "max")


def _pools_prefix(model: nn.Module) -> bool:
    """Whether pooling includes prefix tokens: `VisionTransformer` has a switch; attention pooling in `Eva` does."""
    return getattr(model, "pool_include_prefix", getattr(model, "attn_pool", None) is not None)


def _weighted_head(model: nn.Module, x: Tensor, size: Tensor) -> Tensor:
    """`forward_head` on merged tokens `x (B, T, C)`, each patch token counted `size (B, T)` times."""
    if not _pools_prefix(model):
        x, size = x[:, model.num_prefix_tokens :], size[:, model.num_prefix_tokens :]
    if getattr(model, "attn_pool", None) is not None:
        x = model.attn_pool(x, attn_mask=size_bias(size, x.dtype))
    else:
        mean = weighted_mean(x, size)
        x = {"avg": mean, "max": x.amax(dim=1), "avgmax": 0.5 * (x.amax(dim=1) + mean)}[model.global_pool]
    return model.head(model.head_drop(model.fc_norm(x)))


def _forward_intermediates(
    run: Callable,
    model: nn.Module,
    patch: Patch,
    x: Tensor,
    indices: int | list[int] | None = None,
    return_prefix_tokens: bool = False,
    norm: bool = False,
    stop_early: bool = False,
    output_fmt: str = "NCHW",
    intermediates_only: bool = False,
    output_dict: bool = False,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
):
    """timm's `forward_intermediates` with merges. With `restore` every intermediate has all its patches again."""
    _refuse_masks(attn_mask, is_causal)
    check_format(output_fmt, patch)
    take, last = feature_take_indices(len(model.blocks), indices)
    grid = model.patch_embed.dynamic_feat_size(x.shape[-2:])
    x, state, taken = run(model, patch, x, tuple(take), last if stop_early else None)
    tokens = [state.as_read(model.norm(y) if norm else y, plan) for y, plan in taken]
    prefix = [y[:, : model.num_prefix_tokens] for y in tokens]
    patches = [y[:, model.num_prefix_tokens :] for y in tokens]
    if output_fmt == "NCHW":
        patches = [as_grid(y, *grid) for y in patches]
    with_prefix = return_prefix_tokens and model.num_prefix_tokens > 0
    if output_dict:
        result = {"image_intermediates": patches}
        if with_prefix:
            result["image_intermediates_prefix"] = prefix
        if not intermediates_only:
            result["image_features"] = state.as_read(model.norm(x), state.plan)
        return result
    outputs = list(zip(patches, prefix, strict=True)) if with_prefix else patches
    if intermediates_only:
        return outputs
    return state.as_read(model.norm(x), state.plan), outputs


def shape(model: nn.Module, input_size: tuple[int, int, int] | None) -> ModelShape:
    """Sizes of a timm transformer at one input size."""
    own = tuple(model.patch_embed.img_size)
    height, width = image_size(own, input_size)
    if not getattr(model, "dynamic_img_size", False) and (height, width) != own:
        raise ValueError(f"this model takes images of {own[0]} x {own[1]} only, not {height} x {width}")
    rows, columns = model.patch_embed.dynamic_feat_size((height, width))
    layers = tuple(
        LayerShape(
            channels=block.attn.proj.out_features,
            heads=block.attn.num_heads,
            attention_channels=block.attn.proj.in_features,
            attention_linear=linear(block.attn),
            mlp_linear=linear(block.mlp),
        )
        for block in model.blocks
    )

    def head(patches: int) -> int:
        pool, outputs = getattr(model, "attn_pool", None), linear(model.head, getattr(model, "head_dist", None))
        if pool is None:
            return outputs * (1 if model.global_pool else patches + model.num_prefix_tokens)
        if model.global_pool == "prr":
            return outputs + 2 * (patches + model.num_prefix_tokens) ** 2 * model.embed_dim
        tokens = patches + (model.num_prefix_tokens if _pools_prefix(model) else 0)
        queries = pool.latent_len * (linear(pool) - linear(pool.kv))
        return outputs + queries + tokens * (linear(pool.kv) + 2 * pool.latent_len * pool.num_heads * pool.head_dim)

    embed = rows * columns * linear(model.patch_embed.proj)
    fixed = not getattr(model, "dynamic_img_size", False)
    return ModelShape(rows * columns, model.num_prefix_tokens, layers, embed, head, fixed=fixed)
