"""ToFu, token fusion: prune in early layers, merge without losing norm in late ones."""

from __future__ import annotations

from torch import Tensor

from pitome_core.merge_plan import MergePlan
from pitome_core.mergers import register_method
from pitome_core.mergers.tome import cost, soft_matching

from .common import from_roots, join, places


def plan_tofu(
    metric: Tensor, remove: int | Tensor, *, mask: Tensor | None = None, layer: int = 0, num_layers: int = 1,
    pruned: float = 0.5,
) -> MergePlan:
    """ToMe's matching; layers `l < L // 2` drop the sources, later ones merge by MLERP.

    `pruned` is the share of the layers that drop, 0.5 in the paper; 0 merges in all of them.

    MLERP keeps the direction of the mean and takes the largest norm of the group, so that `|out| >= |destination|`.
    `metric (B, N, C)`; `remove` = k, or `(B,)` with `mask`; real tokens come first. Source: Kim et al., WACV 2024.
    `ValueError` for a share outside 0 to 1.
    """
    if not 0 <= pruned <= 1:
        raise ValueError(f"pruned is {pruned}: it is a share of the layers, from 0 (all merge) to 1 (all drop)")
    source, target, active = soft_matching(metric, remove, mask)
    if layer < int(pruned * num_layers):
        dropped = join(places(metric), source, target.new_full(target.shape, -1), active)
        return from_roots(dropped, remove, mask, drops=True)
    plan = MergePlan.from_merges(source, target, metric.shape[1], active=active, mask=mask)
    return plan.settled(reduce="mlerp")


register_method(
    "tofu",
    plan_tofu,
    paper="Kim et al., WACV 2024",
    summary="ToMe's pairs: the source is dropped in the first half of the layers, merged at full norm in the second",
    partition=False,
    drops=True,
    cost=cost,
)
