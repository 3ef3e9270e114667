"""Control: drop tokens at random. Whatever a method gains over this, it gains by choosing."""

from __future__ import annotations

from torch import Tensor

from pitome_core.merge_plan import MergePlan
from pitome_core.mergers import register_method
from pitome_core.mergers.hashing import random_order

from .common import from_roots, places


def plan_random_prune(
    metric: Tensor, remove: int | Tensor, *, mask: Tensor | None = None, layer: int = 0, seed: int = 0
) -> MergePlan:
    """Drop the first k tokens of an order fixed by (seed, layer), the same in every item of equal length.

    `metric (B, N, C)`; `remove` = k, or `(B,)` with `mask`; real tokens come first.
    """
    order = random_order(metric, mask, seed, layer)
    k = remove if isinstance(remove, int) else remove[:, None]
    root = places(metric).masked_fill(order.argsort(dim=-1) < k, -1)
    return from_roots(root, remove, mask, drops=True)


register_method(
    "random_prune",
    plan_random_prune,
    paper="control",
    summary="drop tokens at random",
    partition=False,
    drops=True,
    limit="all",
)
