"""What several methods share: required context, orders of tokens, nearest kept tokens, and plans from roots."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pitome_core.merge_plan import MergePlan
from pitome_core.portable import stable_order

# Lower than the score of any usable partner, and higher than -inf, which marks tokens that must never be chosen.
_LAST_RESORT = -2.0


def required(value: Tensor | None, name: str, use: str) -> Tensor:
    """`value` in float32 or float64; integers stay as they are. Raises ``ValueError`` if it is None."""
    if value is None:
        raise ValueError(f"{name}: this method {use}; pass it, or use it in a patched model")
    return value.to(torch.promote_types(value.dtype, torch.float32)) if value.is_floating_point() else value


def least_attended(class_attention: Tensor | None, usable: Tensor | None = None) -> Tensor:
    """Token indices from the least to the most attended, `(B, N)` long; ties stay in raster order.

    Tokens with a non-finite attention, and tokens that are not `usable (B, N)`, come last, so that they are removed
    last. Raises ``ValueError`` without `class_attention (B, N)`.
    """
    weight = required(class_attention, "class_attention", "ranks tokens by the attention of the class token")
    finite = weight.isfinite()
    usable = finite if usable is None else usable & finite
    return stable_order(weight.masked_fill(~usable, math.inf))


def nearest(score: Tensor, kept: Tensor, usable: Tensor) -> Tensor:
    """The kept token of highest score, `(B, s, N) -> (B, s)`; of equal scores the first.

    `kept (B, N)` and `usable (B, N)` are bool. A kept token that is not usable is chosen only if no other is kept.
    """
    score = score.masked_fill(~usable[:, None, :], _LAST_RESORT).masked_fill(~kept[:, None, :], -math.inf)
    return score.max(dim=-1).indices


def places(tokens: Tensor) -> Tensor:
    """The indices 0 .. N - 1 for every item of `tokens (B, N)` or `(B, N, C)`: `(B, N)` long."""
    return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])


def join(root: Tensor, source: Tensor, target: Tensor, active: Tensor | None = None) -> Tensor:
    """`root (B, N)` with `root[source] = target` for the pairs `(B, k)` that are `active (B, k)`; None: for all."""
    width = root.shape[1]
    if active is not None:
        source = torch.where(active, source, width)  # inactive pairs write into one more column, which is cut off
    return torch.cat([root, root[:, :1]], dim=1).scatter(1, source, target)[:, :width]  # (B, N + 1) -> (B, N)


def from_roots(root: Tensor, remove: int | Tensor, mask: Tensor | None, **fields: Any) -> MergePlan:
    """The plan in which every token joins its `root (B, N)`, and which removes `remove` tokens.

    A root of -1 drops the token. With `mask (B, N)`, padding is dropped. `fields` go to `MergePlan.from_roots`.
    """
    if mask is None:
        return MergePlan.from_roots(root, root.shape[1] - remove, checked=False, **fields)
    return MergePlan.from_roots(root.masked_fill(~mask, -1), checked=False, **{**fields, "drops": True})


def drop_first(order: Tensor, remove: int | Tensor, mask: Tensor | None) -> MergePlan:
    """The plan that drops the first `remove` tokens of an `order (B, N)` of token indices."""
    k = remove if isinstance(remove, int) else remove[:, None]
    return from_roots(places(order).masked_fill(order.argsort(dim=-1) < k, -1), remove, mask, drops=True)


def over_maximum(value: Tensor, usable: Tensor) -> Tensor:
    """`1 / value (B, N)` over its maximum among the usable tokens, in 0 .. 1; tokens that are not usable get 1."""
    value = value.clamp_min(torch.finfo(value.dtype).tiny).masked_fill(~usable, math.inf)
    least = value.amin(dim=-1, keepdim=True)
    return torch.where(usable, least / value, torch.ones_like(value))


def root_of(value: Tensor, temperature: float) -> Tensor:
    """`value ** (1 / temperature)`, the same for equal values: on a CPU the operator for powers rounds by place."""
    if temperature == 1 or value.device.type != "cpu":
        return value ** (1 / temperature)
    return value.double().log().div_(temperature).exp_().to(value.dtype)
