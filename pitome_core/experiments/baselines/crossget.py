"""CrossGET's soft matching on the complete graph, for one tower."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pitome_core.energy import dot_products, unit_tokens
from pitome_core.merge_plan import MergePlan
from pitome_core.mergers import register_method
from pitome_core.mergers.registry import active_pairs
from pitome_core.portable import stable_order

from .common import nearest, places

# The cosines of an image are computed as one matrix up to this number of tokens, and beyond it in tiles of this width,
# so that memory is bounded. The number does not depend on the batch, so that an image has the same plan in any batch.
_SIDE = 2048

Tile = tuple[slice, slice, Tensor]


def plan_crossget(metric: Tensor, remove: int | Tensor, *, mask: Tensor | None = None) -> MergePlan:
    """Match on the complete graph: the k tokens with the best edges join their most similar token among the others.

    Tokens are ranked by their largest cosine to any other token, in descending order. The edge of token i is
    `max cos(x_i, x_j)` over the tokens j that rank after i. The k tokens with the largest edges are the sources. Each
    source joins the token of largest cosine among those that are no source, so that no source joins another one. The
    token that ranks last has no edge, so that up to N - 1 tokens can be removed. Of equal values the first token in
    raster order comes first. Images of more than 2048 tokens are compared tile by tile, three times, because their
    matrix of cosines would take gigabytes.

    Source: Shi et al., "CrossGET: Cross-Guided Ensemble of Tokens", ICML 2024; its part for one tower.

    `remove` = k, the number of tokens that merge into others.
    """
    unit, usable = unit_tokens(metric)
    real = torch.ones_like(usable) if mask is None else mask
    usable = usable & real
    whole = list(_tiles(unit)) if metric.shape[1] <= _SIDE else None  # one tile, which is computed once
    place = places(metric)

    def best(order: Tensor) -> Tensor:
        """The largest cosine of every token to a usable one, not itself, whose `order (B, N)` is not below its own."""
        found = unit.new_full(place.shape, -math.inf)
        for rows, columns, cos in whole or _tiles(unit):
            other = usable[:, None, columns] & (place[:, None, columns] != place[:, rows, None])
            other &= order[:, None, columns] >= order[:, rows, None]
            found[:, rows] = found[:, rows].maximum(cos.masked_fill(~other, -math.inf).amax(dim=-1))
        return found

    rank = stable_order(best(torch.zeros_like(place)), descending=True).argsort(dim=-1)
    edge = best(rank)
    # Non-finite tokens come after all edges, but before the token without an edge, which stays as a partner for them.
    edge = edge.masked_fill(~usable, -2)
    k, active = active_pairs(remove)
    order = stable_order(edge, descending=True)
    kept = real & (order.argsort(dim=-1) >= (remove if isinstance(remove, int) else remove[:, None]))
    source = order[:, :k]
    if whole:
        rows = whole[0][2].gather(1, source[..., None].expand(-1, -1, metric.shape[1]))  # (B, k, N)
        target = nearest(rows, kept, usable)
    else:
        tokens = unit.gather(1, source[..., None].expand(-1, -1, unit.shape[-1]))  # (B, k, C)
        rows_at_once = max(1, _SIDE**2 // metric.shape[1])
        blocks = [nearest(dot_products(block, unit), kept, usable) for block in tokens.split(rows_at_once, dim=1)]
        target = torch.cat(blocks, dim=1)
    return MergePlan.from_merges(source, target, metric.shape[1], active=active, mask=mask, checked=False)


def _tiles(unit: Tensor) -> Iterator[Tile]:
    """The cosines of the tokens `unit (B, N, C)`, in tiles of at most 2048 rows and columns: rows, columns, tile.

    They are exactly symmetric, so that mutual neighbours have exactly equal values: of two tiles that mirror each other
    one is computed, and a tile on the diagonal is the mean of itself and its transpose.
    """
    blocks = [slice(start, min(start + _SIDE, unit.shape[1])) for start in range(0, unit.shape[1], _SIDE)]
    for number, rows in enumerate(blocks):
        cos = dot_products(unit[:, rows], unit[:, rows])
        yield rows, rows, (cos + cos.transpose(-1, -2)) / 2
        for columns in blocks[number + 1 :]:
            cos = dot_products(unit[:, rows], unit[:, columns])
            yield rows, columns, cos
            yield columns, rows, cos.transpose(-1, -2)


def cost(num_tokens: int, removed: int, channels: int) -> tuple[int, int]:
    """MACs: all cosines. Other operations: their symmetric mean, two maxima per row, one per source, two sorts.

    Tiles, which many tokens need, are computed in each of the passes over them. This is not counted.
    """
    sort = int(num_tokens * math.log2(max(num_tokens, 2)))
    return num_tokens**2 * channels, 3 * num_tokens**2 + removed * num_tokens + 2 * sort


register_method(
    "crossget",
    plan_crossget,
    paper="Shi et al., ICML 2024",
    summary="matching on the complete graph: the tokens with the best edges join their most similar other",
    limit="all",
    cost=cost,
    scaling="time N^2 C, 1.5 N^2 C + k N C above 2048 tokens; memory N^2, above 2048 tokens in tiles of 2048^2",
)
