"""The fused step as operators of PyTorch, so that compilers, exporters and autograd know it.

    pitome::pairs_by_energy    keys or tokens -> source, target, energy     PiToMe: 4 launches (5 with the best edges)
    pitome::pairs_by_place     keys or tokens -> source, target             ToMe: 3 launches
    pitome::merge_pairs        tokens, sizes, pairs -> tokens, sizes        1 launch, with a backward in plain PyTorch
    pitome::log_sizes          sizes -> bias                                1 launch

A centred metric takes one launch more. Sources and targets are `(B, k)` int64, those of a `MergePlan`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import triton_op

from ..merge_plan import MergePlan
from . import launch
from .launch import Side


@triton_op("pitome::pairs_by_energy", mutates_args=())
def pairs_by_energy(
    x: Tensor, k: int, concat: bool, centred: bool, kernel: str, margin: float, alpha: float,
    mergeable: int, halves: bool, best: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """PiToMe's pairs and the energies `(B, N)`, from tokens `(B, N, C)` or keys `(B, H, N, D)`.

    `mergeable` tokens of highest energy may merge. `halves`: A is the half of higher energy (`split="high_low"`), else
    A has the even ranks. `best`: the k of A with the best edges merge, else the k of highest energy.
    """
    unit = launch.unit_tokens(x, concat, centred)
    energy = launch.energies(unit, margin, alpha, kernel)
    if k == 0:
        nothing = torch.empty((x.shape[0], 0), dtype=torch.int64, device=x.device)
        return nothing, nothing.clone(), energy
    order = launch.descending(energy)
    upper = (mergeable + 1) // 2
    number = upper if best else k
    a = Side(0, 1, number) if halves else Side(0, 2, number)
    b = Side(upper, 1, mergeable - upper) if halves else Side(1, 2, mergeable - upper)
    source, target, value = launch.matched(unit, order, a, b, best, True)
    if best:
        source, target = launch.chosen(value, source, target, k)
    return source, target, energy


@triton_op("pitome::pairs_by_place", mutates_args=())
def pairs_by_place(x: Tensor, k: int, concat: bool, centred: bool, odd: bool) -> tuple[Tensor, Tensor]:
    """ToMe's pairs, from tokens `(B, N, C)` or keys `(B, H, N, D)`, N >= 2. `odd`: A has the odd places."""
    unit = launch.unit_tokens(x, concat, centred)
    tokens = unit.shape[1]
    number = tokens // 2 if odd else (tokens + 1) // 2
    a, b = Side(int(odd), 2, number), Side(1 - int(odd), 2, tokens - number)
    source, target, value = launch.matched(unit, None, a, b, True, False)
    return launch.chosen(value, source, target, k)


@triton_op("pitome::merge_pairs", mutates_args=())
def merge_pairs(
    x: Tensor, size: Tensor | None, source: Tensor, target: Tensor, prefix: int, weighted: bool
) -> tuple[Tensor, Tensor]:
    """Merged tokens `(B, T - k, C)` and their sizes `(B, T - k)`; `weighted=False` takes plain means."""
    return launch.merged(x, size, source, target, prefix, weighted)


@triton_op("pitome::log_sizes", mutates_args=())
def log_sizes(size: Tensor, dtype: torch.dtype) -> Tensor:
    """Logarithms of sizes `(B, T)` in that type."""
    return launch.log_sizes(size, dtype)


def _keep(ctx, inputs, output) -> None:
    x, size, source, target, ctx.prefix, ctx.weighted = inputs
    ctx.save_for_backward(size, source, target, output[1])
    ctx.tokens = x.shape[1]
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, gradient: Tensor, _: Tensor | None) -> tuple:
    """Every token gets the gradient of its slot, times its share. The sizes get none."""
    size, source, target, total = ctx.saved_tensors
    plan = MergePlan.from_merges(source + ctx.prefix, target + ctx.prefix, ctx.tokens, checked=False)
    slot = plan.assignment  # (B, T)
    if not ctx.weighted:
        size, total = None, torch.zeros_like(total).scatter_add(1, slot, torch.ones_like(slot, dtype=total.dtype))
    part = torch.ones_like(slot, dtype=total.dtype) if size is None else size
    share = part / total.gather(1, slot).clamp_min(torch.finfo(total.dtype).tiny)
    spread = gradient.gather(1, slot[..., None].expand(-1, -1, gradient.shape[2]))
    return (spread * share[..., None]).to(gradient.dtype), None, None, None, None, None


merge_pairs.register_autograd(_backward, setup_context=_keep)
