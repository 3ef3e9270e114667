"""Control: merge random tokens into random others. It shows what merging does without any matching."""

from __future__ import annotations

import torch
from torch import Tensor

from pitome_core.merge_plan import MergePlan
from pitome_core.mergers import register_method
from pitome_core.mergers.hashing import hash_tokens, random_order
from pitome_core.mergers.registry import active_pairs


def plan_random_merge(
    metric: Tensor, remove: int | Tensor, *, mask: Tensor | None = None, layer: int = 0, seed: int = 0
) -> MergePlan:
    """Merge the first k tokens of a random order, each into a random one of those that stay.

    Both choices are hashes of `seed`, `layer` and the token's index, so that they are the same in every item of equal
    length and in every run.

    `remove` = k, the number of tokens that merge into others. Of `metric` only the shape counts.
    """
    width = metric.shape[1]
    order = random_order(metric, mask, seed, layer)
    k, active = active_pairs(remove)
    lengths = width if mask is None else mask.sum(dim=-1, keepdim=True)
    first_kept = remove if isinstance(remove, int) else remove[:, None]
    draw = hash_tokens(k, seed, layer, metric.device, stream=1).expand(metric.shape[0], k)
    kept = first_kept + draw % torch.as_tensor(lengths - first_kept, device=metric.device).clamp_min(1)
    return MergePlan.from_merges(order[:, :k], order.gather(1, kept), width, active=active, mask=mask, checked=False)


register_method(
    "random_merge",
    plan_random_merge,
    paper="control",
    summary="merge random tokens into random others",
    limit="all",
    scaling="time N log N; memory N",
)
