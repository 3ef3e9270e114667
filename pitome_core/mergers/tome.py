"""Bipartite soft matching, the merge step of ToMe (Bolya et al., ICLR 2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..energy import directions
from ..merge_plan import MergePlan
from .registry import active_pairs, register_method


def soft_matching(
    metric: Tensor, remove: int | Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The k best edges between even (A) and odd (B) positions: sources and targets `(B, k)`, and which are in use.

    Every a finds its best b; the k edges of highest cosine are chosen (stable, the first of equals). `metric
    (B, N, C)`, `remove` = k, or `(B,)` with `mask`; real tokens come first.
    """
    if metric.shape[1] < 2:
        nothing = torch.zeros(len(metric), 0, dtype=torch.long, device=metric.device)
        return nothing, nothing, None
    unit = directions(metric)
    # Padding and non-finite tokens are nobody's partner, and merge only when nothing else is left.
    if mask is not None:
        unit = unit.masked_fill(~mask[..., None], math.nan)
    score = torch.bmm(unit[:, 0::2], unit[:, 1::2].mT).nan_to_num(-math.inf)
    best, partner = score.max(dim=-1)
    k, active = active_pairs(remove)
    chosen = best.argsort(dim=-1, descending=True, stable=True)[:, :k]
    return 2 * chosen, 2 * partner.gather(1, chosen) + 1, active


def plan_tome(metric: Tensor, remove: int | Tensor, *, mask: Tensor | None = None) -> MergePlan:
    """Merge the k most similar edges between even (A) and odd (B) positions (`soft_matching`).

    Positions are those of the tokens that may merge: counting a class token would swap A and B. `metric (B, N, C)`,
    `remove` = k, or `(B,)` with `mask`; real tokens come first.
    """
    source, target, active = soft_matching(metric, remove, mask)
    return MergePlan.from_merges(source, target, metric.shape[1], active=active, mask=mask)


def cost(num_tokens: int, removed: int, channels: int) -> tuple[int, int]:
    """Cosines between A and B; then the maximum of each row and a sort."""
    a, b = (num_tokens + 1) // 2, num_tokens // 2
    return a * b * channels, a * b + int(a * math.log2(max(a, 2)))


register_method(
    "tome",
    plan_tome,
    paper="Bolya et al., ICLR 2023",
    summary="bipartite soft matching: the most similar pairs of an even/odd split merge",
    cost=cost,
)
