"""DiffRate's training-free part: prune the least attended tokens, merge the next ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pitome_core.energy import unit_tokens
from pitome_core.merge_plan import MergePlan
from pitome_core.mergers import register_method

from .common import from_roots, join, least_attended, nearest, places


def plan_diffrate(
    metric: Tensor, remove: int | Tensor, *, class_attention: Tensor | None = None, mask: Tensor | None = None
) -> MergePlan:
    """Sort by class attention; drop the floor(k / 2) lowest, merge the next ceil(k / 2) into the others.

    Each joins the most similar token that stays: all of these rank above it, and none moves on (no chains). The paper
    learns the two numbers per layer; half and half is the reading without training. `metric (B, N, C)`,
    `class_attention (B, N)`; `remove` = k, or `(B,)` with `mask`; real tokens come first.
    Source: Chen et al., ICCV 2023.
    """
    unit, usable = unit_tokens(metric)
    real = torch.ones_like(usable) if mask is None else mask
    usable = usable & real
    order = least_attended(class_attention, usable)
    count = torch.as_tensor(remove, device=metric.device).reshape(-1, 1)  # (B, 1) or (1, 1)
    position = order.argsort(dim=-1)
    kept = real & (position >= count)
    room = remove - remove // 2
    room = room if isinstance(room, int) else int(room.max())
    step = count // 2 + torch.arange(room, device=metric.device)  # ranks of the tokens that merge
    source = order.gather(1, step.clamp_max(metric.shape[1] - 1).expand(len(metric), room))
    rows = unit.gather(1, source[..., None].expand(-1, -1, unit.shape[-1])) @ unit.transpose(-1, -2)  # (B, room, N)
    root = join(places(metric), source, nearest(rows, kept, usable), (step < count).expand(source.shape))
    return from_roots(root.masked_fill(position < count // 2, -1), remove, mask, drops=True)


def cost(num_tokens: int, removed: int, channels: int) -> tuple[int, int]:
    """Cosines of the merged tokens to all; their maxima and two sorts."""
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
)
