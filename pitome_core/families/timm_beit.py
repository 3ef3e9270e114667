"""timm's `Beit`: BEiT and BEiT v2, whose attention adds a bias for every pair of positions.

A merged token stands where its anchor stood, so the bias of two tokens is that of their anchors. Every item has its own
anchors, so the mask of attention is `(B, H, T, T)` after a merge. The fused kernel takes such a mask.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Mlp, SwiGLU
from timm.models.beit import Attention, Beit, Block, RelativePositionBias
from torch import Tensor, nn

from ..family import EntryPoint, Family
from ..instances import own_class
from ..patch import ForwardState, LayerStep, Merged, Patch
from .common import Attended, AttentionCall, check_step, move, own_forward, run_block, run_blocks, transforms
from .timm_common import block_refusal, entry_points, finish_attention, shape, split_heads


def _matches(model: nn.Module) -> bool:
    return isinstance(model, Beit)


def _refusal(model: nn.Module, patch: Patch | None) -> str | None:
    if own_class(model) is not Beit:
        return f"{type(model).__qualname__} derives from Beit and may run its blocks in another way"
    reason = block_refusal(model, (Block,), (Attention,), (Mlp, SwiGLU))
    if reason is not None:
        return reason
    if own_class(model.rel_pos_bias) not in (RelativePositionBias, type(None)):
        return f"rel_pos_bias is a {type(model.rel_pos_bias).__qualname__}: its rows may be no patches"
    relative = model.rel_pos_bias is not None or any(block.attn.window_size is not None for block in model.blocks)
    if relative and patch is not None and transforms(patch):
        return f"relative positions need a place for every token, and {patch.method.name!r} leaves none"
    return None


def _entry_points(model: nn.Module) -> list[EntryPoint]:
    return entry_points(model, _run, _block_forward, _attend)


def _position_bias(attn: Attention, shared: Tensor | None, place: Tensor | None) -> Tensor | None:
    """Bias of every pair of tokens, `(B, H, T, T)` or broadcasting to it: the layer's own plus the shared one.

    `shared` is `(H, N + 1, N + 1)`; `place (B, M)` says where the patch tokens stand (None: each in its own place).
    """
    own = attn.relative_position_bias_table
    shared = shared if shared is None or place is None else shared.to(place.device)
    if place is None:
        parts = [None if own is None else attn._get_rel_pos_bias(), shared]
    else:
        tokens = torch.cat([torch.zeros_like(place[:, :1]), place + 1], dim=1)  # the class token has row 0
        rows, columns = tokens[:, :, None], tokens[:, None, :]
        parts = [
            None if own is None else own[attn.relative_position_index[rows, columns]].permute(0, 3, 1, 2),
            None if shared is None else shared[:, rows, columns].transpose(0, 1),
        ]
    parts = [part for part in parts if part is not None]
    return sum(parts[1:], parts[0]) if parts else None


def _attend(attn: Attention, call: AttentionCall, x: Tensor) -> Tensor:
    """Self-attention with a bias, `(B, T, C) -> (B, T, C)`."""
    q, k, v = split_heads(attn, x)
    call.keys = k
    return finish_attention(attn, call, x, q, k, v)


def _block_forward(
    block: Block,
    patch: Patch,
    x: Tensor,
    shared_rel_pos_bias: Tensor | None = None,
    *,
    place: Tensor | None = None,
    size: Tensor | None = None,
    step: LayerStep | None = None,
    **_: Any,
) -> Merged:
    """A block with a merge: `x (B, T, C)` -> x `(B, T', C)`, size `(B, T')`, plan. `place (B, M)` is where the patch
    tokens stand on the grid."""
    check_step(step, block)
    if step.remove == 0 and size is None and place is None:
        return own_forward(block, x, shared_rel_pos_bias), None, None
    attn, scaled = block.attn, block.gamma_1 is not None
    positional = attn.relative_position_bias_table is not None or shared_rel_pos_bias is not None

    def attend(x: Tensor, bias: Tensor | None, plan) -> Attended:
        if positional:
            pairs = _position_bias(attn, shared_rel_pos_bias, move(place, plan))
            bias = pairs if bias is None else pairs + bias
        call = AttentionCall(bias, step.reads_attention)
        y = attn(block.norm1(x), call=call)
        return call.with_output(block.drop_path1(block.gamma_1 * y if scaled else y))

    def feed(x: Tensor) -> Tensor:
        y = block.mlp(block.norm2(x))
        return block.drop_path2(block.gamma_2 * y if scaled else y)

    return run_block(step, x, size, attend, feed)


def _run(
    model: Beit, patch: Patch, images: Tensor, take: tuple[int, ...] = (), last: int | None = None
) -> tuple[Tensor, ForwardState, list[tuple]]:
    """Run the encoder: tokens `(B, T', C)`, the state of the call, (tokens, plan so far) after each layer in `take`."""
    x = model.patch_embed(images)
    x = torch.cat([model.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
    x = model.pos_drop(x if model.pos_embed is None else x + model.pos_embed)
    state = patch.start(x, 1, True, model.patch_embed.dynamic_feat_size(images.shape[-2:])[1])
    shared = None if model.rel_pos_bias is None else model.rel_pos_bias()
    relative = shared is not None or any(block.attn.window_size is not None for block in model.blocks)
    tables = {"shared_rel_pos_bias": shared} if relative else None
    blocks = model.blocks if last is None else model.blocks[: last + 1]
    x, taken = run_blocks(blocks, x, state, checkpointing=model.grad_checkpointing, take=take, tables=tables)
    return x, state, taken


FAMILY = Family(
    name="timm Beit",
    supports="timm Beit with or without relative position bias",
    matches=_matches,
    refusal=_refusal,
    entry_points=_entry_points,
    shape=shape,
)
