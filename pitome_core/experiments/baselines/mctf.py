"""MCTF, multi-criteria token fusion (its training-free part): similar, little attended and small tokens merge."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pitome_core.energy import unit_tokens
from pitome_core.merge_plan import MergePlan
from pitome_core.mergers import register_method
from pitome_core.mergers.registry import active_pairs

from .common import from_roots, join, places, required


def plan_mctf(
    metric: Tensor, remove: int | Tensor, *, attention: Tensor | None = None, size: Tensor | None = None,
    mask: Tensor | None = None, t_sim: float = 1.0, t_info: float = 20.0, t_size: float = 40.0,
) -> MergePlan:
    """Soft matching by `W = ((S + 1) / 2)^(1/t_sim) (u_i u_j)^(1/t_info) (v_i v_j)^(1/t_size)`, in both directions.

    `u` is 1 / the attention that a token receives and `v` 1 / its size, each over its maximum. Even positions are A,
    odd ones B: ceil(k / 2) of A join B, then the rest of k, from B, join what is left of A (with all that joined
    them). The second direction reuses W. `metric (B, N, C)`, `attention (B, P + N, N)` over the patch keys, `size
    (B, N)`; `remove` = k, or `(B,)` with `mask`; real tokens come first. Source: Lee et al., CVPR 2024.
    """
    attention = required(attention, "attention", "weighs tokens by the attention that they receive")
    unit, usable = unit_tokens(metric)
    width = metric.shape[1]
    real = torch.ones_like(usable) if mask is None else mask
    queries = torch.cat([real.new_ones(len(real), attention.shape[1] - width), real], dim=1)
    received = attention.masked_fill(~queries[..., None], 0).sum(dim=1)
    usable = usable & real & received.isfinite()
    share = _over_maximum(received, usable) ** (1 / t_info)
    if size is not None:
        share = share * _over_maximum(size, usable) ** (1 / t_size)
    if width < 2:
        return MergePlan.identity(len(metric), width, metric.device)
    cos = unit[:, 0::2] @ unit[:, 1::2].transpose(-1, -2)
    weight = ((cos + 1) / 2).clamp_min(0) ** (1 / t_sim) * share[:, 0::2, None] * share[:, None, 1::2]
    # Weights are 0 or more: non-finite tokens come below all others, padding never.
    weight = weight.masked_fill(~usable[:, 0::2, None], -1).masked_fill(~usable[:, None, 1::2], -2)
    weight = weight.masked_fill(~(real[:, 0::2, None] & real[:, None, 1::2]), -math.inf)

    a, b, active = _best_edges(weight, (remove + 1) // 2)
    root = join(places(metric), 2 * a, 2 * b + 1, active)
    weight = weight.masked_fill((root != places(metric))[:, 0::2, None], -math.inf)
    b, a, active = _best_edges(weight.transpose(-1, -2), remove // 2)
    root = join(root, 2 * b + 1, 2 * a, active)
    return from_roots(root.gather(1, root), remove, mask)  # one step further: a joined b, b joined another a


def _over_maximum(value: Tensor, usable: Tensor) -> Tensor:
    """`1 / value`, over its maximum among the usable tokens: `(B, N)`, in 0 .. 1; 1 for the others."""
    value = value.clamp_min(torch.finfo(value.dtype).tiny).masked_fill(~usable, math.inf)
    least = value.amin(dim=-1, keepdim=True)
    return torch.where(usable, least / value, torch.ones_like(value))


def _best_edges(weight: Tensor, remove: int | Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The best column of every row, for the `remove` rows where it is best: rows, columns, which are in use."""
    best, partner = weight.max(dim=-1)
    k, active = active_pairs(remove)
    row = best.argsort(dim=-1, descending=True, stable=True)[:, :k]
    return row, partner.gather(1, row), active


def cost(num_tokens: int, removed: int, channels: int) -> tuple[int, int]:
    """Cosines between A and B; a power and two maxima for each, two sorts; the attention map is not counted here."""
    a, b = (num_tokens + 1) // 2, num_tokens // 2
    sort = int(a * math.log2(max(a, 2)) + b * math.log2(max(b, 2)))
    return a * b * (channels + 2), 3 * a * b + 2 * num_tokens + sort


register_method(
    "mctf",
    plan_mctf,
    paper="Lee et al., CVPR 2024",
    summary="matching in both directions by similarity, attention received and size",
    cost=cost,
)
