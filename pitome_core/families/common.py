"""What model families share: the loop over the blocks, the order of calls inside a block, counts of linear maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..merge_plan import LinearPlan, MergePlan
from ..patch import ForwardState, LayerStep, Merged, Patch, anchors

# What a block's attention half returns: its update `(B, T, C)`, keys `(B, H, T, D)`, attention map `(B, T, T)` or None.
Attended = tuple[Tensor, Tensor, Tensor | None]


def run_blocks(
    blocks: Iterable[nn.Module],
    x: Tensor,
    state: ForwardState,
    *,
    checkpointing: bool = False,
    take: tuple[int, ...] = (),
    tables: dict[str, Any] | None = None,
) -> tuple[Tensor, list[tuple]]:
    """Run all blocks on the tokens of one forward call.

    Args:
        blocks: the blocks, whose forward takes `size` and `step` and returns tokens, sizes and the plan.
        x: `(B, T, C)` tokens.
        state: the state of the call.
        checkpointing: whether blocks are recomputed in the backward pass.
        take: layers whose tokens are to be returned.
        tables: arguments of the blocks that hold a value for every place on the patch grid (rotary angles, position
            biases). Such blocks also get `place (B, M)`, where the anchors of their tokens stand; None while all tokens
            are in place.

    Returns:
        Tokens `(B, T', C)`, and (tokens, plan so far) after each layer in `take`.
    """
    taken = []
    for layer, block in enumerate(blocks):
        arguments = {"size": state.size, "step": state.step(layer)}
        if tables is not None:
            arguments |= {**tables, "place": state.place}
        if checkpointing and torch.is_grad_enabled():
            x, size, plan = checkpoint(block, x, use_reentrant=False, **arguments)
        else:
            x, size, plan = block(x, **arguments)
        state.add(x, size, plan)
        if layer in take:
            taken.append((x, state.plan))
    state.report()
    return x, taken


def run_block(
    step: LayerStep,
    x: Tensor,
    size: Tensor | None,
    attend: Callable[[Tensor, Tensor | None, MergePlan | LinearPlan | None], Attended],
    feed: Callable[[Tensor], Tensor],
) -> Merged:
    """Run one block with its merge: tokens `(B, T', C)`, sizes `(B, T')`, and the plan (None if nothing merges).

    Args:
        step: what the block has to know about merging.
        x, size: tokens `(B, T, C)` and their sizes `(B, T)`, None = 1 each.
        attend: `(x, bias, plan)` -> the block's attention half without the residual. `bias (B, 1, 1, T)` makes keys
            count by size, and `plan` is the merge just before it (None: there was none).
        feed: `x` -> the block's MLP half without the residual.
    """
    plan = None
    if step.insertion == "before":
        x, size, plan = step.merge(x, None, size)
    bias = step.bias(size, x.dtype)
    y, keys, attn_map = attend(x, bias, plan)
    x = x + y
    if step.insertion == "between":
        x, size, plan = step.merge(x, keys, size, attn_map)
    x = x + feed(x)
    if step.insertion == "after":
        x, size, plan = step.merge(x, keys, size, attn_map)
    return x, size, plan


def move(place: Tensor | None, plan: MergePlan | LinearPlan | None) -> Tensor | None:
    """Where the tokens stand after a plan, `(B, M)` long, given where they stood (None: each in its own place).

    A merged token stands where its anchor stood.
    """
    if plan is None:
        return place
    return anchors(plan) if place is None else place.gather(1, anchors(plan))


def transforms(patch: Patch) -> bool:
    """Whether the method is a transform, whose outputs have no place on the patch grid."""
    return any(isinstance(plan, LinearPlan) for plan in patch.rehearse())


def pooled_by_size(patch: Patch, state: ForwardState) -> bool:
    """Whether pooling over patches has to weigh tokens by size: some were dropped, or merged ones are not restored."""
    return state.size is not None and (not patch.restore or state.plan.drops)


def weighted_mean(x: Tensor, size: Tensor) -> Tensor:
    """Mean over tokens of `x (B, T, C)`, each counted `size (B, T)` times: `(B, C)`, summed in float32."""
    share = size / size.sum(dim=1, keepdim=True)
    return (x * share[..., None]).sum(dim=1).to(x.dtype)


def as_grid(x: Tensor, rows: int, columns: int) -> Tensor:
    """Patch tokens `(B, rows * columns, C)` -> `(B, C, rows, columns)`."""
    return x.reshape(x.shape[0], rows, columns, -1).permute(0, 3, 1, 2).contiguous()


def check_format(output_fmt: str, patch: Patch) -> None:
    """Raise ValueError unless intermediates can be given in that format."""
    if output_fmt not in ("NCHW", "NLC"):
        raise ValueError(f"output_fmt must be NCHW or NLC, got {output_fmt!r}")
    if output_fmt == "NCHW" and not patch.restore:
        raise ValueError("merged tokens (restore=False) form no grid: ask for output_fmt='NLC'")


def linear(*modules: nn.Module | None) -> int:
    """Multiply-accumulates per token of all linear maps inside the modules."""
    parts = [part for module in modules if module is not None for part in module.modules()]
    return sum(part.in_features * part.out_features for part in parts if isinstance(part, nn.Linear))
