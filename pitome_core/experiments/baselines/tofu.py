"""ToFu, token fusion: drop tokens in early layers, and merge them with full norm in late layers."""

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
    """ToMe's pairs: layers `l < floor(pruned L)` drop the source of each pair, later layers merge it by MLERP.

    MLERP is `max |x_i| m / |m|`, where `m` is the mean of a group: it has the direction of the mean and the largest
    norm in the group.

    Source: Kim et al., "Token Fusion: Bridging the Gap between Token Pruning and Token Merging", WACV 2024.

    `remove` = k, the number of pairs, whose sources are dropped or merged. `layer` is l and `num_layers` is L. `pruned`
    is 0.5 in the paper; with 0 all layers merge. Raises ``ValueError`` for a share outside 0 to 1.
    """
    if not 0 <= pruned <= 1:
        raise ValueError(f"pruned is {pruned}: it is a share of the layers, from 0 (all merge) to 1 (all drop)")
    source, target, active = soft_matching(metric, remove, mask)
    if layer < int(pruned * num_layers):
        dropped = join(places(metric), source, target.new_full(target.shape, -1), active)
        return from_roots(dropped, remove, mask, drops=True)
    plan = MergePlan.from_merges(source, target, metric.shape[1], active=active, mask=mask, checked=False)
    return plan.settled(reduce="mlerp")


register_method(
    "tofu",
    plan_tofu,
    paper="Kim et al., WACV 2024",
    summary="ToMe's pairs: the source is dropped in the first half of the layers, merged at full norm in the second",
    partition=False,
    drops=True,
    cost=cost,
    scaling="time N^2 C / 4; memory N^2 / 4",
)
