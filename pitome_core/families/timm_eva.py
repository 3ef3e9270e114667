"""timm's `Eva`: EVA-02, DINOv3, Perception Encoder and other transformers with rotary positions.

Tokens are compared by their keys before the rotation, so that their similarity does not depend on where they stand.
After a merge a token is rotated by the angles of its anchor.
"""

from __future__ import annotations

from typing import Any

from timm.layers import (
    AttentionRope,
    GluMlp,
    Mlp,
    RotaryEmbeddingCat,
    RotaryEmbeddingDinoV3,
    SwiGLU,
    apply_rot_embed_cat,
)
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import Tensor, cat, nn

from ..family import EntryPoint, Family
from ..instances import own_class
from ..patch import ForwardState, LayerStep, Merged, Patch
from .common import Attended, AttentionCall, check_step, move, own_forward, run_block, run_blocks, transforms
from .timm_common import block_refusal, entry_points, finish_attention, shape, split_heads

_BLOCKS = (EvaBlock, EvaBlockPostNorm)
_ATTENTIONS = (EvaAttention, AttentionRope)
_MLPS = (Mlp, GluMlp, SwiGLU)
_ROPES = (RotaryEmbeddingCat, RotaryEmbeddingDinoV3, type(None))


def _matches(model: nn.Module) -> bool:
    return isinstance(model, Eva)


def _refusal(model: nn.Module, patch: Patch | None) -> str | None:
    if own_class(model) is not Eva:
        return f"{type(model).__qualname__} derives from Eva and may run its blocks in another way"
    reason = block_refusal(model, _BLOCKS, _ATTENTIONS, _MLPS)
    if reason is not None:
        return reason
    if model.rope_mixed or own_class(model.rope) not in _ROPES:
        kind = type(model.rope).__qualname__
        return f"rope is a {kind}: only one table of angles for all layers and heads can travel with the kept tokens"
    if model.rope is not None and patch is not None and transforms(patch):
        return f"rotary positions need a place for every token, and {patch.method.name!r} leaves none"
    return None


def _entry_points(model: nn.Module) -> list[EntryPoint]:
    return entry_points(model, _run, _block_forward, _attend)


def _angles(rope: Tensor | None, place: Tensor | None) -> Tensor | None:
    """The angles of tokens that stand at `place (B, M)`, `(B, 1, M, D)`; the whole table where place is None.

    `rope` is `(N, D)`, or `(B, 1, N, D)` where patches were dropped at random.
    """
    if rope is None or place is None:
        return rope
    rope = rope.to(place.device)
    if rope.ndim == 2:
        return rope[place][:, None]
    return rope.gather(2, place[:, None, :, None].expand(-1, -1, -1, rope.shape[-1]))


def _rotate(x: Tensor, rope: Tensor, prefix: int, half: bool) -> Tensor:
    """Rotate the tokens of `x (B, H, T, D)`, prefix tokens excepted."""
    return cat([x[:, :, :prefix], apply_rot_embed_cat(x[:, :, prefix:], rope, half=half)], dim=2)


def _attend(attn: nn.Module, call: AttentionCall, x: Tensor) -> Tensor:
    """Self-attention with a bias and rotary positions, `(B, T, C) -> (B, T, C)`."""
    if attn.qkv is not None:
        q, k, v = split_heads(attn, x)
    else:
        maps = (attn.q_proj, attn.k_proj, attn.v_proj)
        q, k, v = (layer(x).unflatten(2, (-1, attn.head_dim)).transpose(1, 2) for layer in maps)
    q, k = attn.q_norm(q), attn.k_norm(k)
    groups = getattr(attn, "num_kv_groups", 1)
    if groups > 1:  # grouped queries: a key head serves several
        k, v = (part.repeat_interleave(groups, dim=1) for part in (k, v))
    call.keys = k
    if call.rope is not None:
        q, k = (_rotate(part, call.rope, attn.num_prefix_tokens, attn.rotate_half).type_as(v) for part in (q, k))
    return finish_attention(attn, call, x, q, k, v)


def _block_forward(
    block: nn.Module,
    patch: Patch,
    x: Tensor,
    rope: Tensor | None = None,
    *,
    place: Tensor | None = None,
    size: Tensor | None = None,
    step: LayerStep | None = None,
    **_: Any,
) -> Merged:
    """A block with a merge: `x (B, T, C)` -> x `(B, T', C)`, size `(B, T')`, plan. `rope` holds the angles of the
    patch grid and `place (B, M)` where the patch tokens stand on it."""
    check_step(step, block)
    if step.remove == 0 and size is None and place is None:
        return own_forward(block, x, rope), None, None
    post = isinstance(block, EvaBlockPostNorm)

    def attend(x: Tensor, bias: Tensor | None, plan) -> Attended:
        angles = _angles(rope, None if rope is None else move(place, plan))
        call = AttentionCall(bias, step.reads_attention, angles)
        y = block.attn(x if post else block.norm1(x), call=call)
        y = block.norm1(y) if post else y if block.gamma_1 is None else block.gamma_1 * y
        return call.with_output(block.drop_path1(y))

    def feed(x: Tensor) -> Tensor:
        if post:
            return block.drop_path2(block.norm2(block.mlp(x)))
        y = block.mlp(block.norm2(x))
        return block.drop_path2(y if block.gamma_2 is None else block.gamma_2 * y)

    return run_block(step, x, size, attend, feed)


def _run(
    model: nn.Module, patch: Patch, images: Tensor, take: tuple[int, ...] = (), last: int | None = None
) -> tuple[Tensor, ForwardState, list[tuple]]:
    """Run the encoder: tokens `(B, T', C)`, the state of the call, (tokens, plan so far) after each layer in `take`."""
    x, rope = model._pos_embed(model.patch_embed(images))
    x = model.norm_pre(x)
    _, columns = model.patch_embed.dynamic_feat_size(images.shape[-2:])
    if model.training and model.patch_drop is not None:
        columns = None  # dropped patches leave no grid
    state = patch.start(x, model.num_prefix_tokens, model.cls_token is not None, columns)
    blocks = model.blocks if last is None else model.blocks[: last + 1]
    tables = None if rope is None else {"rope": rope}
    x, taken = run_blocks(blocks, x, state, checkpointing=model.grad_checkpointing, take=take, tables=tables)
    return x, state, taken


FAMILY = Family(
    name="timm Eva",
    supports="timm Eva (EVA-02, DINOv3, Perception Encoder) with EvaBlock or EvaBlockPostNorm and one rotary table",
    matches=_matches,
    refusal=_refusal,
    entry_points=_entry_points,
    shape=shape,
)
