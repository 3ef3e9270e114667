"""What families share: the loop over the blocks, the order of calls inside a block, counts of linear maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..merge_plan import LinearPlan, MergePlan

if TYPE_CHECKING:
    from ..patching import ForwardState, LayerStep, Patch

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
    """The encoder loop: tokens `(B, T', C)`, and (tokens, plan so far) after each layer in `take`.

    `tables` is what blocks look up by place (rotary angles, position biases), the same for all; blocks that get some
    also get `place (B, M)`, where the anchors of their patch tokens stood, None while nothing has merged.
    """
    taken = []
    for layer, block in enumerate(blocks):
        arguments = {"size": state.size, "step": state.step(layer)}
        if tables is not None:
            arguments |= {**tables, "place": move(None, state.plan)}
        if checkpointing and torch.is_grad_enabled():
            x, size, plan = checkpoint(block, x, use_reentrant=False, **arguments)
        else:
            x, size, plan = block(x, **arguments)
        state.add(size, plan)
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
) -> tuple[Tensor, Tensor | None, MergePlan | LinearPlan | None]:
    """One block with its merge: tokens `(B, T', C)`, sizes `(B, T')`, and the plan (None when nothing goes).

    `attend(x, bias, plan)` is the block's attention half without the residual, `feed(x)` its MLP half; `bias` is the
    size bias `(B, 1, 1, T)` and `plan` what was merged just before (None: nothing).
    """
    plan = None
    if step.insertion == "before":
        x, size, plan = step.merge(x, None, size)
    bias = step.bias(size, x.dtype)
    y, keys, seen = attend(x, bias, plan)
    x = x + y
    if step.insertion == "between":
        x, size, plan = step.merge(x, keys, size, seen)
    x = x + feed(x)
    if step.insertion == "after":
        x, size, plan = step.merge(x, keys, size, seen)
    return x, size, plan


def move(place: Tensor | None, plan: MergePlan | LinearPlan | None) -> Tensor | None:
    """Where the anchors of a plan's slots stood, `(B, M)` long, given where its inputs did (None: each in its place).

    Positions travel with the kept token: a merged token stands where its anchor stood.
    """
    if plan is None:
        return place
    if isinstance(plan, LinearPlan):
        raise ValueError("a transform's outputs stand at no place of the input, so they have no position")
    anchor = plan.anchor.clamp_min(0)  # padded slots: any place will do
    return anchor if place is None else place.gather(1, anchor)


def transforms(patch: Patch) -> bool:
    """Whether the method is a transform, whose outputs stand at no place of the input."""
    return any(isinstance(plan, LinearPlan) for plan in patch.rehearse())


def pooled_by_size(patch: Patch, state: ForwardState) -> bool:
    """Whether a pooling over patches has to weigh merged tokens: some are dropped, or they are not copied back."""
    return state.size is not None and (state.plan.drops or not patch.restore)


def weighted_mean(x: Tensor, size: Tensor) -> Tensor:
    """Mean of `x (B, T, C)`, each token counted `size (B, T)` times, summed in float32: `(B, C)`."""
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
