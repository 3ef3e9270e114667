"""CrossGET's complete-graph soft matching, for one tower: no split, and no chains."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pitome_core.energy import unit_tokens
from pitome_core.merge_plan import MergePlan
from pitome_core.mergers import register_method
from pitome_core.mergers.registry import active_pairs

from .common import nearest


def plan_crossget(metric: Tensor, remove: int | Tensor, *, mask: Tensor | None = None) -> MergePlan:
    """Sources from the whole graph; each joins the most similar token that is no source.

    Tokens are ranked by their best cosine to any other, highest first. A token's edge is its best cosine to one that
    ranks after it; the k tokens with the best edges are the sources, and the destination of each is its most similar
    token among the others. The one that ranks last has no edge, and any N - 1 others can go. Ties fall to the first
    in raster order. `metric (B, N, C)`; `remove` = k, or `(B,)` with `mask`; real tokens come first.
    Source: Shi et al., ICML 2024 (the vision part).
    """
    unit, usable = unit_tokens(metric)
    real = torch.ones_like(usable) if mask is None else mask
    usable = usable & real
    cos = unit @ unit.transpose(-1, -2)
    cos = (cos + cos.transpose(-1, -2)) / 2  # exactly symmetric: mutual neighbours tie, and ties have a rule
    off_diagonal = torch.eye(metric.shape[1], device=metric.device) == 0
    graph = cos.masked_fill(~(off_diagonal & usable[:, None, :]), -math.inf)
    rank = graph.amax(dim=-1).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    edge = graph.masked_fill(rank[:, None, :] < rank[:, :, None], -math.inf).amax(dim=-1)
    # Non-finite tokens come behind the edges, and before the last in rank (no edge): a partner is left for them.
    edge = edge.masked_fill(~usable, -2)
    k, active = active_pairs(remove)
    order = edge.argsort(dim=-1, descending=True, stable=True)
    kept = real & (order.argsort(dim=-1) >= (remove if isinstance(remove, int) else remove[:, None]))
    source = order[:, :k]
    rows = cos.gather(1, source[..., None].expand(-1, -1, cos.shape[-1]))  # (B, k, N)
    return MergePlan.from_merges(source, nearest(rows, kept, usable), metric.shape[1], active=active, mask=mask)


def cost(num_tokens: int, removed: int, channels: int) -> tuple[int, int]:
    """All cosines; their symmetric mean, two maxima of every row, one for each source, two sorts."""
    sort = int(num_tokens * math.log2(max(num_tokens, 2)))
    return num_tokens**2 * channels, 3 * num_tokens**2 + removed * num_tokens + 2 * sort


register_method(
    "crossget",
    plan_crossget,
    paper="Shi et al., ICML 2024",
    summary="matching on the complete graph: the tokens with the best edges join their most similar other",
    limit="all",
    cost=cost,
)
