"""timm's `VisionTransformer` and its distilled variant.

They may have class, distillation and register tokens, or none; class, average, maximum and attention pooling;
LayerScale, norms of queries and keys, and drop-path; blocks are `Block` or `ResPostBlock`. Norms, LayerScale, drop-path
and MLP are timm's modules. The loop over the blocks and the order of the calls inside a block are written here.
"""

from __future__ import annotations

from typing import Any

from timm.layers import Attention, GluMlp, Mlp, PatchEmbed, SwiGLU
from timm.models.deit import VisionTransformerDistilled
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from ..family import EntryPoint, Family
from ..instances import own_class
from ..patch import ForwardState, LayerStep, Merged, Patch
from .common import Attended, AttentionCall, check_step, own_forward, run_block, run_blocks
from .timm_common import block_refusal, entry_points, finish_attention, shape, split_heads

_MODELS = (VisionTransformer, VisionTransformerDistilled)
_BLOCKS = (Block, ResPostBlock)
_MLPS = (Mlp, GluMlp, SwiGLU)


def _matches(model: nn.Module) -> bool:
    return isinstance(model, (VisionTransformer, NaFlexVit))


def _refusal(model: nn.Module, patch: Patch | None) -> str | None:
    """Why a model cannot be patched; None if it can.

    Only exact types are accepted, because a subclass may override the loop that is replaced here.
    """
    if isinstance(model, NaFlexVit):
        return ("a NaFlexVit takes images of unequal sizes, padded and masked, which needs lengths by item: use timm's "
                "fixed-size model (such as vit_base_patch16_siglip_224), or transformers' Siglip2VisionModel")
    if own_class(model) not in _MODELS:
        return f"{type(model).__qualname__} derives from VisionTransformer and may run its blocks in another way"
    if own_class(model.patch_embed) is not PatchEmbed:
        return f"patch_embed is a {type(model.patch_embed).__qualname__}: its grid and its cost are not known"
    reason = block_refusal(model, _BLOCKS, (Attention,), _MLPS)
    if reason is not None:
        return reason
    if model.global_pool == "prr" and patch is not None and not (patch.restore and patch.method.partition):
        return "pooling 'prr' attends among all patches and has no weights for tokens that are merged or missing"
    return None


def _attend(attn: Attention, call: AttentionCall, x: Tensor) -> Tensor:
    """Self-attention with a bias, `(B, T, C) -> (B, T, C)`."""
    q, k, v = split_heads(attn, x)
    q, k = attn.q_norm(q), attn.k_norm(k)
    call.keys = k
    return finish_attention(attn, call, x, q, k, v)


def _block_forward(
    block: nn.Module, patch: Patch, x: Tensor, *, size: Tensor | None = None, step: LayerStep | None = None, **_: Any
) -> Merged:
    """A block with a merge between attention and MLP: `x (B, T, C)` -> x `(B, T', C)`, size `(B, T')`, plan."""
    check_step(step, block)
    if step.remove == 0 and size is None:
        return own_forward(block, x), None, None
    post = isinstance(block, ResPostBlock)

    def attend(x: Tensor, bias: Tensor | None, _) -> Attended:
        call = AttentionCall(bias, step.reads_attention)
        y = block.attn(x if post else block.norm1(x), call=call)
        return call.with_output(block.drop_path1(block.norm1(y) if post else block.ls1(y)))

    def feed(x: Tensor) -> Tensor:
        return block.drop_path2(block.norm2(block.mlp(x)) if post else block.ls2(block.mlp(block.norm2(x))))

    return run_block(step, x, size, attend, feed)


def _run(
    model: nn.Module, patch: Patch, images: Tensor, take: tuple[int, ...] = (), last: int | None = None
) -> tuple[Tensor, ForwardState, list[tuple]]:
    """Run the encoder: tokens `(B, T', C)`, the state of the call, (tokens, plan so far) after each layer in `take`."""
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    _, columns = model.patch_embed.dynamic_feat_size(images.shape[-2:])
    if model.training and not isinstance(model.patch_drop, nn.Identity):
        columns = None  # dropped patches leave no grid
    state = patch.start(x, model.num_prefix_tokens, model.has_class_token, columns)
    blocks = model.blocks if last is None else model.blocks[: last + 1]
    x, taken = run_blocks(blocks, x, state, checkpointing=model.grad_checkpointing, take=take)
    return x, state, taken


def _entry_points(model: nn.Module) -> list[EntryPoint]:
    return entry_points(model, _run, _block_forward, _attend)


FAMILY = Family(
    name="timm VisionTransformer",
    supports="timm VisionTransformer and VisionTransformerDistilled with Block or ResPostBlock and plain Attention",
    matches=_matches,
    refusal=_refusal,
    entry_points=_entry_points,
    shape=shape,
)
