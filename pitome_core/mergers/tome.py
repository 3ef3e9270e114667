"""Bipartite soft matching, the merge step of ToMe (Bolya et al., ICLR 2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..energy import directions, dot_products
from ..merge_plan import MergePlan
from ..portable import stable_order
from .registry import active_pairs, register_method


def soft_matching(
    metric: Tensor, remove: int | Tensor, mask: Tensor | None = None, parity: str = "patches"
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The k best edges between even (A) and odd (B) positions: sources and targets `(B, k)`, and which are in use.

    Every token of A has an edge to the token of B of highest cosine. Of these edges the k of highest cosine are chosen,
    of equal ones the first. `metric (B, N, C)`, `remove` = k, or `(B,)` with `mask`; real tokens come first. With
    `parity="all"` positions count from 1, so that A and B change places.
    """
    if metric.shape[1] < 2:
        no_pairs = torch.zeros(metric.shape[0], 0, dtype=torch.long, device=metric.device)
        return no_pairs, no_pairs, None
    unit = directions(metric)
    # Padding and tokens with NaN have the score -inf, so that they merge only when no other tokens are left.
    if mask is not None:
        unit = unit.masked_fill(~mask[..., None], math.nan)
    a, b = (0, 1) if parity == "patches" else (1, 0)
    score = dot_products(unit[:, a::2], unit[:, b::2]).nan_to_num(-math.inf)  # (B, |A|, |B|)
    best, partner = score.max(dim=-1)
    k, active = active_pairs(remove)
    chosen = stable_order(best, descending=True)[:, :k]
    source, target = 2 * chosen, 2 * partner.gather(1, chosen) + 1
    return (source, target, active) if a == 0 else (source + 1, target - 1, active)


def plan_tome(
    metric: Tensor, remove: int | Tensor, *, mask: Tensor | None = None, parity: str = "patches"
) -> MergePlan:
    """Merge the k most similar edges between even (A) and odd (B) positions (`soft_matching`).

    It differs from the original in two details, which change pairs and leave the method what it is:

    - Positions count the patches alone (`parity="patches"`, the default). The original counts a class token in front,
      so that A and B change places: `parity="all"`. On a real ViT about half of the pairs of the first layer are then
      others.
    - Tokens stay in raster order. The original puts those of A that are left in front, then those of B. No option does
      that, because positions would lose their place; from the second layer on, A and B hold other tokens.

    `metric (B, N, C)`, `remove` = k, or `(B,)` with `mask`; real tokens come first.
    """
    source, target, active = soft_matching(metric, remove, mask, parity)
    return MergePlan.from_merges(source, target, metric.shape[1], active=active, mask=mask, checked=False)


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
    choices={"parity": ("patches", "all")},
    scaling="time N^2 C / 4; memory N^2 / 4",
)
