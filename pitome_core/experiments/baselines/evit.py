"""EViT: the least attended tokens become one token, their attention-weighted mean."""

from __future__ import annotations

import torch
from torch import Tensor

from pitome_core.merge_plan import MergePlan
from pitome_core.mergers import register_method

from .common import from_roots, least_attended, places, required
from .topk_attention import cost

_LEAST = 1e-20  # smallest weight, so that the mean exists even if every attention is rounded to zero


def plan_evit(
    metric: Tensor,
    remove: int | Tensor,
    *,
    class_attention: Tensor | None = None,
    size: Tensor | None = None,
    mask: Tensor | None = None,
) -> MergePlan:
    """Fuse the k + 1 tokens with the least class attention into one: `x = sum a_i x_i / sum a_i`.

    `a_i` is the attention of the class token to token i. It already counts the sizes, so that the weights of the plan
    are `a_i / s_i`, because a plan multiplies weights by sizes. The fused token takes the place of the most attended of
    the k + 1 tokens. The plan is a partition with weights: sizes add up, but the size-weighted mean of all tokens is
    not preserved.

    Source: Liang et al., "EViT: Expediting Vision Transformers via Token Reorganizations", ICLR 2022.

    `remove` = k, one less than the number of fused tokens. Of `metric` only the shape counts. `class_attention (B, N)`
    is the attention of the class token to each token, and `size (B, N)` says how many patches each token stands for.
    """
    order = least_attended(class_attention, mask)
    k = torch.as_tensor(remove, device=metric.device).reshape(-1, 1).expand(metric.shape[0], 1)
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
    scaling="time N log N; memory N",
)
