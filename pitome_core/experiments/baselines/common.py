"""What several methods share: context that must be there, orders, nearest kept tokens, plans from roots."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pitome_core.merge_plan import MergePlan

# Below every score that a usable partner can have, above -inf, which marks what must never be chosen.
_LAST_RESORT = -2.0


def required(value: Tensor | None, name: str, use: str) -> Tensor:
    """`value` in float32 at least (integers stay); ValueError that says what is missing when it is None."""
    if value is None:
        raise ValueError(f"{name}: this method {use}; pass it, or use it in a patched model")
    return value.to(torch.promote_types(value.dtype, torch.float32)) if value.is_floating_point() else value


def least_attended(class_attention: Tensor | None, usable: Tensor | None = None) -> Tensor:
    """Token indices from the least to the most attended, `(B, N)` long (stable).

    Tokens with a non-finite weight, and those that are not `usable (B, N)`, come last: they are the last to go.
    """
    weight = required(class_attention, "class_attention", "ranks tokens by the attention of the class token")
    finite = weight.isfinite()
    usable = finite if usable is None else usable & finite
    return weight.masked_fill(~usable, math.inf).argsort(dim=-1, stable=True)


def nearest(score: Tensor, kept: Tensor, usable: Tensor) -> Tensor:
    """The kept token of highest score, `(B, s, N) -> (B, s)`, the first of equals.

    `kept (B, N)`; one that is not `usable (B, N)` is chosen only where nothing else is kept.
    """
    score = score.masked_fill(~usable[:, None, :], _LAST_RESORT).masked_fill(~kept[:, None, :], -math.inf)
    return score.max(dim=-1).indices


def places(metric: Tensor) -> Tensor:
    """0 .. N - 1 for every item, `(B, N)` long."""
    return torch.arange(metric.shape[1], device=metric.device).expand(metric.shape[:2])


def join(root: Tensor, source: Tensor, target: Tensor, active: Tensor | None = None) -> Tensor:
    """`root (B, N)` with `root[source] = target`, both `(B, k)`; pairs that are not `active` change nothing."""
    width = root.shape[1]
    if active is not None:
        source = torch.where(active, source, width)  # a spare column, which is cut off
    return torch.cat([root, root[:, :1]], dim=1).scatter(1, source, target)[:, :width]


def from_roots(root: Tensor, remove: int | Tensor, mask: Tensor | None, **fields: Any) -> MergePlan:
    """The plan of `root (B, N)` that removes `remove` tokens; with a mask, padding is assigned nowhere."""
    if mask is None:
        return MergePlan.from_roots(root, root.shape[1] - remove, **fields)
    return MergePlan.from_roots(root.masked_fill(~mask, -1), **{**fields, "drops": True})
