"""Control: keep the tokens to which the class token attends most."""

from __future__ import annotations

import math

from torch import Tensor

from pitome_core.merge_plan import MergePlan
from pitome_core.mergers import register_method

from .common import drop_first, least_attended


def plan_topk_attention(
    metric: Tensor, remove: int | Tensor, *, class_attention: Tensor | None = None, mask: Tensor | None = None
) -> MergePlan:
    """Drop the k tokens with the least class attention; of equal ones those that come first in raster order.

    `remove` = k, the number of tokens that are dropped. Of `metric` only the shape counts. `class_attention (B, N)` is
    the attention of the class token to each token or, in a model without a class token, the mean attention received.
    """
    return drop_first(least_attended(class_attention, mask), remove, mask)


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
    scaling="time N log N; memory N",
)
