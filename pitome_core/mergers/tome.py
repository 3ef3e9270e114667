"""Bipartite soft matching, the merge step of ToMe (Bolya et al., ICLR 2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..energy import directions
from ..merge_plan import MergePlan
from ..portable import stable_order
from .registry import active_pairs, register_method


def soft_matching(
    metric: Tensor, remove: int | Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The k best edges between even (A) and odd (B) positions: sources and targets `(B, k)`, and which are in use.

    Every token of A has an edge to the token of B of highest cosine. Of these edges the k of highest cosine are chosen,
    of equal ones the first. `metric (B, N, C)`, `remove` = k, or `(B,)` with `mask`; real tokens come first.
    """
    if metric.shape[1] < 2:
        no_pairs = torch.zeros(metric.shape[0], 0, dtype=torch.long, device=metric.device)
        return no_pairs, no_pairs, None
    unit = directions(metric)
    # Padding and tokens with NaN have the score -inf, so that they merge only when no other tokens are left.
    if mask is not None:
        unit = unit.masked_fill(~mask[..., None], math.nan)
    score = torch.bmm(unit[:, 0::2], unit[:, 1::2].mT).nan_to_num(-math.inf)  # (B, |A|, |B|)
    best, partner = score.max(dim=-1)
    k, active = active_pairs(remove)
    chosen = stable_order(best, descending=True)[:, :k]
    return 2 * chosen, 2 * partner.gather(1, chosen) + 1, active


def plan_tome(metric: Tensor, remove: int | Tensor, *, mask: Tensor | None = None) -> MergePlan:
    """Merge the k most similar edges between even (A) and odd (B) positions (`soft_matching`).

    Positions count the tokens that may merge, because a class token in front would swap A and B. `metric (B, N, C)`,
    `remove` = k, or `(B,)` with `mask`; real tokens come first.
    """
    source, target, active = soft_matching(metric, remove, mask)
    return MergePlan.from_merges(source, target, metric.shape[1], active=active, mask=mask)


def cost(num_tokens: int, removed: int, channels: int) -> tuple[int, int]:
    """Multiply-accumulates of the cosines between A and B; other operations of the row maxima and the sort."""
    a, b = (num_tokens + 1) // 2, num_tokens // 2
    return a * b * channels, a * b + int(a * math.log2(max(a, 2)))


register_method(
    "tome",
    plan_tome,
    paper="Bolya et al., ICLR 2023",
    summary="bipartite soft matching: the most similar pairs of an even/odd split merge",
    cost=cost,
)
