"""DiffRate without its training: drop the least attended tokens and merge the next ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pitome_core.energy import dot_products, unit_tokens
from pitome_core.merge_plan import MergePlan
from pitome_core.mergers import register_method

from .common import from_roots, join, least_attended, nearest, places


def plan_diffrate(
    metric: Tensor, remove: int | Tensor, *, class_attention: Tensor | None = None, mask: Tensor | None = None
) -> MergePlan:
    """Sort by class attention; drop the lowest floor(k / 2) tokens and merge the next ceil(k / 2) into the others.

    Each merged token joins the token of largest cosine among the N - k that stay. The paper learns the two numbers of
    every layer; here they are equal halves, because nothing is trained.

    Source: Chen et al., "DiffRate: Differentiable Compression Rate for Efficient Vision Transformers", ICCV 2023.

    `remove` = k, the number of tokens that are dropped or merged. `class_attention (B, N)` is the attention of the
    class token to each token.
    """
    unit, usable = unit_tokens(metric)
    real = torch.ones_like(usable) if mask is None else mask
    usable = usable & real
    order = least_attended(class_attention, usable)
    count = torch.as_tensor(remove, device=metric.device).reshape(-1, 1)  # (B, 1) or (1, 1)
    position = order.argsort(dim=-1)
    kept = real & (position >= count)
    merged = remove - remove // 2
    merged = merged if isinstance(merged, int) else int(merged.max())
    rank = count // 2 + torch.arange(merged, device=metric.device)  # (B, merged) or (1, merged): of those that merge
    source = order.gather(1, rank.clamp_max(metric.shape[1] - 1).expand(metric.shape[0], merged))  # (B, merged)
    rows = dot_products(unit.gather(1, source[..., None].expand(-1, -1, unit.shape[-1])), unit)  # (B, merged, N)
    root = join(places(metric), source, nearest(rows, kept, usable), (rank < count).expand(source.shape))
    return from_roots(root.masked_fill(position < count // 2, -1), remove, mask, drops=True)


def cost(num_tokens: int, removed: int, channels: int) -> tuple[int, int]:
    """MACs: cosines of the merged tokens to all tokens. Other operations: their maxima, and two sorts."""
    rows = (removed - removed // 2) * num_tokens
    return rows * channels, rows + int(2 * num_tokens * math.log2(max(num_tokens, 2)))


register_method(
    "diffrate",
    plan_diffrate,
    paper="Chen et al., ICCV 2023",
    summary="drop the least attended tokens, merge the next into their most similar better one",
    partition=False,
    drops=True,
    limit="all",
    cost=cost,
    scaling="time k N C / 2; memory k N / 2",
)
