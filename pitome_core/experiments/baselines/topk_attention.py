"""Control: keep the tokens to which the class token attends most."""

from __future__ import annotations

import math

from torch import Tensor

from pitome_core.merge_plan import MergePlan
from pitome_core.mergers import register_method

from .common import from_roots, least_attended, places


def plan_topk_attention(
    metric: Tensor, remove: int | Tensor, *, class_attention: Tensor | None = None, mask: Tensor | None = None
) -> MergePlan:
    """Drop the k tokens with the least class attention; of equal ones those that come first in raster order.

    Args:
        metric: `(B, N, C)`, of which only the shape counts.
        remove: k, the number of tokens that are dropped; with a mask `(B,)`, one k for each item.
        class_attention: `(B, N)`, the attention of the class token to each token; in a model without a class token, the
            mean attention that each token receives.
        mask: `(B, N)`, True for real tokens, which come first.
    """
    order = least_attended(class_attention, mask)
    k = remove if isinstance(remove, int) else remove[:, None]
    root = places(metric).masked_fill(order.argsort(dim=-1) < k, -1)
    return from_roots(root, remove, mask, drops=True)


def cost(num_tokens: int, removed: int, channels: int) -> tuple[int, int]:
    """MACs and other operations of a plan: two sorts."""
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
