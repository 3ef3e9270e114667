"""Control: drop tokens at random. Whatever a method gains over this, it gains by choosing."""

from __future__ import annotations

import torch
from torch import Tensor

from pitome_core.merge_plan import MergePlan
from pitome_core.mergers import register_method
from pitome_core.mergers.hashing import random_order


def plan_random_prune(
    metric: Tensor, remove: int | Tensor, *, mask: Tensor | None = None, layer: int = 0, seed: int = 0
) -> MergePlan:
    """Drop the first k tokens of an order fixed by (seed, layer), the same in every item of equal length.

    `metric (B, N, C)`; `remove` = k, or `(B,)` with `mask`; real tokens come first.
    """
    order = random_order(metric, mask, seed, layer)
    place = torch.arange(metric.shape[1], device=metric.device).expand(order.shape)
    k = remove if isinstance(remove, int) else remove[:, None]
    root = place.masked_fill(order.argsort(dim=-1) < k, -1)
    if mask is None:
        return MergePlan.from_roots(root, metric.shape[1] - remove, drops=True)
    return MergePlan.from_roots(root.masked_fill(~mask, -1), drops=True)


register_method(
    "random_prune",
    plan_random_prune,
    paper="control",
    summary="drop tokens at random",
    partition=False,
    drops=True,
    limit="all",
)
