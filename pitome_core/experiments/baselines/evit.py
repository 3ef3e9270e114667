"""EViT: drop the least attended tokens, and keep one token that stands for all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from pitome_core.merge_plan import MergePlan
from pitome_core.mergers import register_method

from .common import from_roots, least_attended, places, required
from .topk_attention import cost

_LEAST = 1e-20  # attention that is rounded to zero still gives a mean


def plan_evit(
    metric: Tensor,
    remove: int | Tensor,
    *,
    class_attention: Tensor | None = None,
    size: Tensor | None = None,
    mask: Tensor | None = None,
) -> MergePlan:
    """The k + 1 tokens with the least class attention become one: their attention-weighted mean.

    `x = sum a_i x_i / sum a_i`, whatever the sizes (attention that counts sizes holds them already, so the weights
    are a_i / s_i here: the plan multiplies by s_i). The fused token stands in the place of the most attended of them.
    A partition with weights: sizes add up, the size-weighted mean of all tokens is not preserved. `metric (B, N, C)`,
    of which only the shape counts; `class_attention (B, N)`, `size (B, N)`; `remove` = k, or `(B,)` with `mask`; real
    tokens come first. Source: Liang et al., ICLR 2022.
    """
    order = least_attended(class_attention, mask)
    k = torch.as_tensor(remove, device=metric.device).reshape(-1, 1).expand(len(metric), 1)
    fused = order.argsort(dim=-1) <= k
    root = torch.where(fused, order.gather(1, k), places(metric))
    weight = required(class_attention, "class_attention", "").nan_to_num(0.0, 0.0, 0.0).clamp_min(_LEAST)
    if size is not None:
        weight = weight / size
    return from_roots(root, remove, mask, weight=torch.where(fused, weight, torch.ones_like(weight)))


register_method(
    "evit",
    plan_evit,
    paper="Liang et al., ICLR 2022",
    summary="the least attended tokens become one, their attention-weighted mean",
    limit="all",
    cost=cost,
)
