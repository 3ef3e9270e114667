"""CrossGET's soft matching on the complete graph, for one tower."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pitome_core.energy import dot_products, unit_tokens
from pitome_core.merge_plan import MergePlan
from pitome_core.mergers import register_method
from pitome_core.mergers.registry import active_pairs

from .common import nearest


def plan_crossget(metric: Tensor, remove: int | Tensor, *, mask: Tensor | None = None) -> MergePlan:
    """Match on the complete graph: the k tokens with the best edges join their most similar token among the others.

    Tokens are ranked by their largest cosine to any other token, in descending order. The edge of token i is
    `max cos(x_i, x_j)` over the tokens j that rank after i. The k tokens with the largest edges are the sources. Each
    source joins the token of largest cosine among those that are no source, so that no source joins another one. The
    token that ranks last has no edge, so that up to N - 1 tokens can be removed. Of equal values the first token in
    raster order comes first.

    Source: Shi et al., "CrossGET: Cross-Guided Ensemble of Tokens", ICML 2024; its part for one tower.

    `remove` = k, the number of tokens that merge into others.
    """
    unit, usable = unit_tokens(metric)
    real = torch.ones_like(usable) if mask is None else mask
    usable = usable & real
    cos = dot_products(unit, unit)
    cos = (cos + cos.transpose(-1, -2)) / 2  # exactly symmetric, so that mutual neighbours have exactly equal values
    off_diagonal = torch.eye(metric.shape[1], device=metric.device) == 0
    graph = cos.masked_fill(~(off_diagonal & usable[:, None, :]), -math.inf)
    rank = graph.amax(dim=-1).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    edge = graph.masked_fill(rank[:, None, :] < rank[:, :, None], -math.inf).amax(dim=-1)
    # Non-finite tokens come after all edges, but before the token without an edge, which stays as a partner for them.
    edge = edge.masked_fill(~usable, -2)
    k, active = active_pairs(remove)
    order = edge.argsort(dim=-1, descending=True, stable=True)
    kept = real & (order.argsort(dim=-1) >= (remove if isinstance(remove, int) else remove[:, None]))
    source = order[:, :k]
    rows = cos.gather(1, source[..., None].expand(-1, -1, cos.shape[-1]))  # (B, k, N)
    return MergePlan.from_merges(source, nearest(rows, kept, usable), metric.shape[1], active=active, mask=mask)


def cost(num_tokens: int, removed: int, channels: int) -> tuple[int, int]:
    """MACs: all cosines. Other operations: their symmetric mean, two maxima per row, one per source, two sorts."""
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
