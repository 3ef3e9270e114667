"""Control: drop tokens at random. It shows how much a method gains by its choice of tokens."""

from __future__ import annotations

from torch import Tensor

from pitome_core.merge_plan import MergePlan
from pitome_core.mergers import register_method
from pitome_core.mergers.hashing import random_order

from .common import drop_first


def plan_random_prune(
    metric: Tensor, remove: int | Tensor, *, mask: Tensor | None = None, layer: int = 0, seed: int = 0
) -> MergePlan:
    """Drop the first k tokens of a random order.

    The order is a hash of `seed`, `layer` and the token's index, so that it is the same in every item of equal length
    and in every run.

    `remove` = k, the number of tokens that are dropped. Of `metric` only the shape counts.
    """
    return drop_first(random_order(metric, mask, seed, layer), remove, mask)


register_method(
    "random_prune",
    plan_random_prune,
    paper="control",
    summary="drop tokens at random",
    partition=False,
    drops=True,
    limit="all",
    scaling="time N log N; memory N",
)
