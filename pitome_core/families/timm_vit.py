"""timm's `VisionTransformer` and its distilled variant.

Class, distillation and register tokens, or none; class, average, maximum and attention pooling; LayerScale, q/k
norm, drop-path, `Block` and `ResPostBlock`. The modules do their own work here (norms, LayerScale, drop-path, MLP);
what is ours is the loop over the blocks and the order of the calls inside a block.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from timm.layers import Attention, GluMlp, Mlp, PatchEmbed, SwiGLU
from timm.models._features import feature_take_indices
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention import attention, attention_map, size_bias
from .registry import Family, LayerShape, ModelShape

if TYPE_CHECKING:
    from ..patching import ForwardState, LayerStep, Patch

_MODELS = (VisionTransformer, VisionTransformerDistilled)
_BLOCKS = (Block, ResPostBlock)
_MLPS = (Mlp, GluMlp, SwiGLU)


def _matches(model: nn.Module) -> bool:
    return isinstance(model, VisionTransformer)


def _refusal(model: nn.Module, patch: Patch | None) -> str | None:
    """Exact types only: a subclass may override the very loop that is replaced here."""
    if type(model) not in _MODELS:
        return f"{type(model).__qualname__} derives from VisionTransformer and may run its blocks in another way"
    if type(model.patch_embed) is not PatchEmbed:
        return f"patch_embed is a {type(model.patch_embed).__qualname__}: its grid and its cost are not known"
    for i, block in enumerate(model.blocks):
        if type(block) not in _BLOCKS:
            return f"blocks.{i} is a {type(block).__qualname__}: it has no place between attention and MLP to merge at"
        if type(block.attn) is not Attention:
            return f"blocks.{i}.attn is a {type(block.attn).__qualname__}: its keys are not known"
        if type(block.mlp) not in _MLPS:
            return f"blocks.{i}.mlp is a {type(block.mlp).__qualname__}: it may mix tokens"
    if model.global_pool == "prr" and patch is not None and not (patch.restore and patch.method.partition):
        return "pooling 'prr' attends among all patches and has no weights for tokens that are merged or missing"
    return None


def _entry_points(model: nn.Module, patch: Patch) -> list[tuple[nn.Module, str, partial]]:
    points = [
        (model, "forward", partial(_forward, model, patch)),
        (model, "forward_features", partial(_forward_features, model, patch)),
        (model, "forward_head", partial(_forward_head, model, patch)),
        (model, "forward_intermediates", partial(_forward_intermediates, model, patch)),
    ]
    return points + [(block, "forward", partial(_block_forward, block)) for block in model.blocks]


def _attend(
    attn: Attention, x: Tensor, bias: Tensor | None, wants_map: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Self-attention of timm's `Attention` with a bias: output `(B, T, C)`, keys `(B, H, T, D)`, map `(B, T, T)`."""
    batch, tokens, _ = x.shape
    qkv = attn.qkv(x).reshape(batch, tokens, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    q, k = attn.q_norm(q), attn.k_norm(k)
    seen = attention_map(q, k, bias, scale=attn.scale) if wants_map else None
    drop = attn.attn_drop.p if attn.training else 0.0
    y = attention(q, k, v, bias, scale=attn.scale, dropout=drop, fused=attn.fused_attn)
    y = attn.norm(y.transpose(1, 2).reshape(batch, tokens, attn.attn_dim))
    if attn.gate is not None:
        y = y * attn.gate(x).sigmoid()
    return attn.proj_drop(attn.proj(y)), k, seen


def _block_forward(
    block: nn.Module,
    x: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    *,
    size: Tensor | None = None,
    step: LayerStep | None = None,
):
    """A block with a merge between attention and MLP: `x (B, T, C)` -> x `(B, T', C)`, size `(B, T')`, plan.

    Without a step this is the block's own forward, so that a block called alone behaves as ever.
    """
    if step is None:
        return type(block).forward(block, x, attn_mask, is_causal)
    if step.remove == 0 and size is None:
        return type(block).forward(block, x), None, None
    post, insertion, plan = type(block) is ResPostBlock, step.insertion, None
    if insertion == "before":
        x, size, plan = step.merge(x, None, size)
    bias = size_bias(size, x.dtype) if step.proportional else None
    y, keys, seen = _attend(block.attn, x if post else block.norm1(x), bias, step.reads_attention)
    x = x + block.drop_path1(block.norm1(y) if post else block.ls1(y))
    if insertion == "between":
        x, size, plan = step.merge(x, keys, size, seen)
    y = block.norm2(block.mlp(x)) if post else block.ls2(block.mlp(block.norm2(x)))
    x = x + block.drop_path2(y)
    if insertion == "after":
        x, size, plan = step.merge(x, keys, size, seen)
    return x, size, plan


def _run_blocks(
    model: nn.Module, patch: Patch, images: Tensor, take: tuple[int, ...] = (), last: int | None = None
) -> tuple[Tensor, ForwardState, list[tuple]]:
    """The encoder loop: tokens, what happened to them, and (tokens, plan so far) after each layer in `take`."""
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    _, columns = model.patch_embed.dynamic_feat_size(images.shape[-2:])
    if model.training and not isinstance(model.patch_drop, nn.Identity):
        columns = None  # dropped patches leave no grid
    blocks = model.blocks if last is None else model.blocks[: last + 1]
    state = patch.start(x, model.num_prefix_tokens, model.has_class_token, columns)
    taken = []
    for layer, block in enumerate(blocks):
        step = state.step(layer)
        if model.grad_checkpointing and torch.is_grad_enabled():
            x, size, plan = checkpoint(block, x, size=state.size, step=step, use_reentrant=False)
        else:
            x, size, plan = block(x, size=state.size, step=step)
        state.add(size, plan)
        if layer in take:
            taken.append((x, state.plan))
    state.report()
    return x, state, taken


def _refuse_masks(attn_mask: Tensor | None, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        raise ValueError("a merged model takes no attn_mask and no is_causal: rows and columns would no longer fit")


def _forward_features(
    model: nn.Module, patch: Patch, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    _refuse_masks(attn_mask, is_causal)
    x, state, _ = _run_blocks(model, patch, x)
    return state.as_read(model.norm(x), state.plan)


def _forward(
    model: nn.Module, patch: Patch, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    _refuse_masks(attn_mask, is_causal)
    x, state, _ = _run_blocks(model, patch, x)
    x = model.norm(x)
    if _pools_patches(model) and state.size is not None and (state.plan.drops or not patch.restore):
        return _weighted_head(model, x, state.size)
    return type(model).forward_head(model, state.as_read(x, state.plan))


def _pools_patches(model: nn.Module) -> bool:
    return model.attn_pool is not None or model.global_pool in ("avg", "avgmax", "max")


def _forward_head(model: nn.Module, patch: Patch, x: Tensor, pre_logits: bool = False) -> Tensor:
    """The head on features from `forward_features`, where those hold all it needs."""
    if _pools_patches(model) and (patch.method.drops or not patch.restore):
        raise ValueError("this head pools patches and does not know their sizes here: call the model itself")
    return type(model).forward_head(model, x, pre_logits)


def _weighted_head(model: nn.Module, x: Tensor, size: Tensor) -> Tensor:
    """`forward_head` on merged tokens `x (B, T, C)`, each patch token counted `size (B, T)` times."""
    if not model.pool_include_prefix:
        x, size = x[:, model.num_prefix_tokens :], size[:, model.num_prefix_tokens :]
    if model.attn_pool is not None:
        x = model.attn_pool(x, attn_mask=size_bias(size, x.dtype))
    else:
        share = size / size.sum(dim=1, keepdim=True)
        mean = (x * share[..., None]).sum(dim=1).to(x.dtype)  # summed in float32, where sizes live
        x = {"avg": mean, "max": x.amax(dim=1), "avgmax": 0.5 * (x.amax(dim=1) + mean)}[model.global_pool]
    return model.head(model.head_drop(model.fc_norm(x)))


def _forward_intermediates(
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
    """timm's `forward_intermediates`; with `restore` every intermediate has all its patches again."""
    _refuse_masks(attn_mask, is_causal)
    if output_fmt not in ("NCHW", "NLC"):
        raise ValueError(f"output_fmt must be NCHW or NLC, got {output_fmt!r}")
    if output_fmt == "NCHW" and not patch.restore:
        raise ValueError("merged tokens (restore=False) form no grid: ask for output_fmt='NLC'")
    take, last = feature_take_indices(len(model.blocks), indices)
    batch, _, height, width = x.shape
    x, state, taken = _run_blocks(model, patch, x, tuple(take), last if stop_early else None)
    tokens = [state.as_read(model.norm(y) if norm else y, plan) for y, plan in taken]
    prefix = [y[:, : model.num_prefix_tokens] for y in tokens]
    patches = [y[:, model.num_prefix_tokens :] for y in tokens]
    if output_fmt == "NCHW":
        rows, columns = model.patch_embed.dynamic_feat_size((height, width))
        patches = [y.reshape(batch, rows, columns, -1).permute(0, 3, 1, 2).contiguous() for y in patches]
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


def _linear(*modules: nn.Module | None) -> int:
    """Multiply-accumulates per token of all linear maps inside the modules."""
    parts = [part for module in modules if module is not None for part in module.modules()]
    return sum(part.in_features * part.out_features for part in parts if isinstance(part, nn.Linear))


def _shape(model: nn.Module, input_size: tuple[int, int, int] | None) -> ModelShape:
    projection = model.patch_embed.proj
    own = tuple(model.patch_embed.img_size)
    height, width = own if input_size is None else input_size[-2:]
    if not model.dynamic_img_size and (height, width) != own:
        raise ValueError(f"this model takes images of {own[0]} x {own[1]} only, not {height} x {width}")
    rows, columns = model.patch_embed.dynamic_feat_size((height, width))
    layers = tuple(
        LayerShape(
            channels=block.attn.proj.out_features,
            heads=block.attn.num_heads,
            attention_channels=block.attn.attn_dim,
            attention_linear=_linear(block.attn.qkv, block.attn.proj, block.attn.gate),
            mlp_linear=_linear(block.mlp),
        )
        for block in model.blocks
    )

    def head(patches: int) -> int:
        pool, outputs = model.attn_pool, _linear(model.head, getattr(model, "head_dist", None))
        if pool is None:
            return outputs
        if model.global_pool == "prr":
            tokens = patches + model.num_prefix_tokens
            return outputs + 2 * tokens**2 * model.embed_dim
        tokens = patches + (model.num_prefix_tokens if model.pool_include_prefix else 0)
        queries = pool.latent_len * (_linear(pool) - _linear(pool.kv))
        return outputs + queries + tokens * (_linear(pool.kv) + 2 * pool.latent_len * pool.num_heads * pool.head_dim)

    patches = rows * columns
    embed = patches * projection.weight.numel()
    return ModelShape(patches, model.num_prefix_tokens, layers, embed, head, fixed=not model.dynamic_img_size)


FAMILY = Family(
    name="timm VisionTransformer",
    supports="timm VisionTransformer and VisionTransformerDistilled with Block or ResPostBlock and plain Attention",
    matches=_matches,
    refusal=_refusal,
    entry_points=_entry_points,
    shape=_shape,
)
