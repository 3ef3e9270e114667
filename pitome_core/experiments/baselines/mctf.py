"""MCTF, multi-criteria token fusion, without its training: similar, little attended and small tokens merge."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pitome_core.energy import dot_products, unit_tokens
from pitome_core.merge_plan import MergePlan
from pitome_core.mergers import register_method
from pitome_core.mergers.registry import active_pairs
from pitome_core.portable import stable_order

from .common import from_roots, join, over_maximum, places, required, root_of

_LEAST = 1e-20  # smallest weight in a mean, so that it exists even if every attention is rounded to zero
CHOICES = {"first": ("ceil", "floor"), "pooling": ("size", "attention")}


def plan_mctf(
    metric: Tensor, remove: int | Tensor, *, attention: Tensor | None = None, size: Tensor | None = None,
    mask: Tensor | None = None, t_sim: float = 1.0, t_info: float = 20.0, t_size: float = 40.0,
    first: str = "ceil", pooling: str = "size",
) -> MergePlan:
    """Soft matching by similarity, attention and size, in both directions.

    The weight of a pair of tokens is `W = ((S + 1) / 2)^(1/t_sim) (u_i u_j)^(1/t_info) (v_i v_j)^(1/t_size)`. `S` is
    their cosine. `u` is 1 / the attention that a token receives, `v` is 1 / its size, and both are divided by their
    maximum. Even positions are A and odd ones are B. First ceil(k / 2) tokens of A join tokens of B. Then floor(k / 2)
    tokens of B, with all that joined them, join those of A that are left. The second direction uses the same W.

    The authors' code differs in two choices, which are ours by default. With `first="floor"`, floor(k / 2) tokens merge
    in the first direction and the rest in the second; this matters where k is odd. With `pooling="attention"`, the mean
    of a group is weighted by attention received times size, as in their recipe: sizes still add up, but the
    size-weighted mean of all tokens is not preserved. By default it is weighted by size alone, as in the other methods.

    Source: Lee et al., "Multi-criteria Token Fusion with One-step-ahead Attention", CVPR 2024.

    `remove` = k, the number of tokens that merge into others. `attention (B, P + N, N)` goes from P prefix tokens and N
    patches to the N patches. `size (B, N)` says how many patches each token stands for; without it the last factor of W
    is left out. `t_sim`, `t_info` and `t_size` are the temperatures of the three factors.
    With float64 attention on a CPU, sums of equal attention may differ by their place in the last bit.
    """
    if not min(t_sim, t_info, t_size) > 0:
        raise ValueError(f"temperatures must be above 0, got t_sim={t_sim}, t_info={t_info}, t_size={t_size}")
    attention = required(attention, "attention", "weighs tokens by the attention that they receive")
    unit, usable = unit_tokens(metric)
    width = metric.shape[1]
    real = torch.ones_like(usable) if mask is None else mask
    queries = torch.cat([real.new_ones(real.shape[0], attention.shape[1] - width), real], dim=1)
    # On a CPU sums round by place. In float64 this is far below the float32 numbers that tie.
    exact = torch.float64 if metric.device.type == "cpu" else attention.dtype
    received = attention.masked_fill(~queries[..., None], 0).sum(dim=1, dtype=exact).to(attention.dtype)
    usable = usable & real & received.isfinite()
    share = root_of(over_maximum(received.to(exact), usable), t_info)
    if size is not None:
        share = share * root_of(over_maximum(size.to(exact), usable), t_size)
    share = share.to(torch.promote_types(unit.dtype, attention.dtype))
    if width < 2:
        return MergePlan.identity(metric.shape[0], width, metric.device)
    cos = dot_products(unit[:, 0::2], unit[:, 1::2])
    weight = root_of(((cos + 1) / 2).clamp_min(0), t_sim) * share[:, 0::2, None] * share[:, None, 1::2]
    # Weights are 0 or more. Lower ones make non-finite tokens merge last, and -inf keeps padding out.
    weight = weight.masked_fill(~usable[:, 0::2, None], -1).masked_fill(~usable[:, None, 1::2], -2)
    weight = weight.masked_fill(~(real[:, 0::2, None] & real[:, None, 1::2]), -math.inf)

    into_b = remove // 2 if first == "floor" else (remove + 1) // 2
    a, b, active = _best_edges(weight, into_b)
    root = join(places(metric), 2 * a, 2 * b + 1, active)
    weight = weight.masked_fill((root != places(metric))[:, 0::2, None], -math.inf)
    b, a, active = _best_edges(weight.transpose(-1, -2), remove - into_b)
    root = join(root, 2 * b + 1, 2 * a, active)
    # One step further, because a token of A may have joined one of B that has joined another one of A.
    root = root.gather(1, root)
    if pooling == "size":
        return from_roots(root, remove, mask)
    return from_roots(root, remove, mask, weight=received.nan_to_num(0.0, 0.0, 0.0).clamp_min(_LEAST))


def _best_edges(weight: Tensor, remove: int | Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The `remove` rows of `weight (B, R, C)` with the largest maxima.

    Returns rows and columns of these maxima, both `(B, k)`, and which of them are active (None means all).
    """
    best, partner = weight.max(dim=-1)
    k, active = active_pairs(remove)
    row = stable_order(best, descending=True)[:, :k]
    return row, partner.gather(1, row), active


def cost(num_tokens: int, removed: int, channels: int) -> tuple[int, int]:
    """MACs: cosines between A and B, with two products each. Other operations: a power and two maxima each, two sorts.

    The attention map is not counted.
    """
    a, b = (num_tokens + 1) // 2, num_tokens // 2
    sort = int(a * math.log2(max(a, 2)) + b * math.log2(max(b, 2)))
    return a * b * (channels + 2), 3 * a * b + 2 * num_tokens + sort


register_method(
    "mctf",
    plan_mctf,
    paper="Lee et al., CVPR 2024",
    summary="matching in both directions by similarity, attention received and size",
    cost=cost,
    choices=CHOICES,
    scaling="time N^2 C / 4; memory N^2, beside the layer's attention map of H N^2",
)
