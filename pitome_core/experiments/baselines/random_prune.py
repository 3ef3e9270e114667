"""Control: drop tokens at random. It shows how much a method gains by its choice of tokens."""

from __future__ import annotations

from torch import Tensor

from pitome_core.merge_plan import MergePlan
from pitome_core.mergers import register_method
from pitome_core.mergers.hashing import random_order

from .common import from_roots, places


def plan_random_prune(
    metric: Tensor, remove: int | Tensor, *, mask: Tensor | None = None, layer: int = 0, seed: int = 0
) -> MergePlan:
    """Drop the first k tokens of a random order.

    The order is a hash of `seed`, `layer` and the token's index, so that it is the same in every item of equal length
    and in every run.

    Args:
        metric: `(B, N, C)`, of which only the shape counts.
        remove: k, the number of tokens that are dropped; with a mask `(B,)`, one k for each item.
        mask: `(B, N)`, True for real tokens, which come first.
        layer: index of the layer.
        seed: another seed gives another order.
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
