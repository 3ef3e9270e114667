"""Control: keep the tokens that the class token attends to most."""

from __future__ import annotations

import math

from torch import Tensor

from pitome_core.merge_plan import MergePlan
from pitome_core.mergers import register_method

from .common import from_roots, least_attended, places


def plan_topk_attention(
    metric: Tensor, remove: int | Tensor, *, class_attention: Tensor | None = None, mask: Tensor | None = None
) -> MergePlan:
    """Drop the k tokens with the least class attention (of equals, the first in raster order).

    `metric (B, N, C)`, of which only the shape counts; `class_attention (B, N)`: where a model has no class token,
    the mean attention received. `remove` = k, or `(B,)` with `mask`; real tokens come first.
    """
    order = least_attended(class_attention, mask)
    k = remove if isinstance(remove, int) else remove[:, None]
    root = places(metric).masked_fill(order.argsort(dim=-1) < k, -1)
    return from_roots(root, remove, mask, drops=True)


def cost(num_tokens: int, removed: int, channels: int) -> tuple[int, int]:
    """Two sorts."""
    return 0, int(2 * num_tokens * math.log2(max(num_tokens, 2)))


register_method(
    "topk_attention",
    plan_topk_attention,
    paper="control",
    summary="drop the tokens with the least class attention",
    partition=False,
    drops=True,
    limit="all",
    cost=cost,
)
