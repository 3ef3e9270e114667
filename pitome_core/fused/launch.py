"""Launches of the kernels: what each gets for tensors of given shapes. Static shapes; no value of a tensor is read.

Block sizes follow from the shapes of one item, never from the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.library import wrap_triton

from ..energy import next_below
from . import kernels

# Tiles of cosines (BM x BN, BK channels at a time), rows of counts (BLOCK x STEP), tokens and pairs of a merge.
TILE = {"BM": 32, "BN": 64, "BK": 16}
COUNT = {"BLOCK": 32, "STEP": 64}
MERGE = {"ROWS": 8, "PAIRS": 16, "BLOCK_C": 128}
WARPS, STAGES = 4, 1


def blocks_of(count: int, size: int) -> int:
    """How many blocks of that size hold `count` entries."""
    return (count + size - 1) // size


def power_of_two(number: int) -> int:
    """The smallest power of two that is not smaller, 16 at least."""
    return 1 << max(4, (int(number) - 1).bit_length())


def rows_of_metric(block_c: int) -> int:
    """Tokens that one program of the metric takes: some 2,048 entries."""
    return max(1, min(16, 2048 // block_c))


@dataclass(frozen=True)
class Layout:
    """Where the channels of a metric stand in a tensor, as `metric_kernel` reads it.

    Attributes:
        tokens: N.
        channels: C of the metric.
        width: D, channels of a head.
        heads: how many heads are averaged.
        strides: of item, token, head and channel.
    """

    tokens: int
    channels: int
    width: int
    heads: int
    strides: tuple[int, int, int, int]


def layout_of(x: Tensor, concat: bool) -> Layout:
    """The layout of tokens `(B, N, C)`, or of keys `(B, H, N, D)`, averaged over heads or (`concat`) side by side."""
    if x.ndim == 3:
        batch, token, channel = x.stride()
        return Layout(x.shape[1], x.shape[2], x.shape[2], 1, (batch, token, 0, channel))
    heads, width = x.shape[1], x.shape[3]
    strides = (x.stride(0), x.stride(2), x.stride(1), x.stride(3))
    return Layout(x.shape[2], heads * width if concat else width, width, 1 if concat else heads, strides)


def _run(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    wrap_triton(kernel)[grid](*arguments, **constants, num_warps=WARPS, num_stages=STAGES)


def unit_tokens(x: Tensor, concat: bool = False, centred: bool = False) -> Tensor:
    """`unit (B, N, C)` float32 of tokens or keys: one launch, two for a centred metric."""
    at, batch = layout_of(x, concat), x.shape[0]
    shape = (at.tokens, at.channels, at.width, *at.strides)
    unit = x.new_empty((batch, at.tokens, at.channels), dtype=torch.float32)
    # The torch path averages keys over heads in float32, and has other metrics in the type that they come in.
    low = x.dtype.itemsize < 4 and (x.ndim == 3 or concat)
    mean = unit
    if centred:
        mean = x.new_empty((batch, at.channels), dtype=torch.float32)
        grid = (blocks_of(at.channels, 64), batch)
        _run(kernels.centre_kernel, grid, x, mean, *shape, HEADS=at.heads, ROUND=low, ROWS=16, BLOCK_C=64)
    block = power_of_two(at.channels)
    rows = rows_of_metric(block)
    _run(kernels.metric_kernel, (blocks_of(at.tokens, rows), batch), x, mean, unit, *shape,
         HEADS=at.heads, CENTRED=centred, ROUND=low, ROWS=rows, BLOCK_C=block)
    return unit


def energies(unit: Tensor, margin: float, alpha: float, kernel: str, mask: Tensor | None = None) -> Tensor:
    """`energy (B, N)` of `unit (B, N, C)`: one launch."""
    batch, tokens, channels = unit.shape
    energy = unit.new_empty((batch, tokens))
    below = next_below(min(max(margin, -2.0), 2.0), torch.float32)
    sigma = 1.0 - margin if kernel == "gaussian" else 1.0
    _run(kernels.energy_kernel, (blocks_of(tokens, TILE["BM"]), batch),
         unit, unit if mask is None else mask.contiguous().view(torch.uint8), energy, tokens, channels,
         float(margin), below, float(alpha), sigma, 1.0 / (sigma * math.sqrt(2.0 * math.pi)),
         KERNEL=kernel, MASKED=mask is not None, **TILE)
    return energy


def descending(value: Tensor) -> Tensor:
    """The stable descending order `(B, N)` int32 of `value (B, N)`: one launch."""
    batch, tokens = value.shape
    order = value.new_empty((batch, tokens), dtype=torch.int32)
    _run(kernels.rank_kernel, (blocks_of(tokens, COUNT["BLOCK"]), batch), value, order, tokens, **COUNT)
    return order


@dataclass(frozen=True)
class Side:
    """A or B of a matching: `first`, `first + step`, ... in the order of rank, or of tokens; `number` of them."""

    first: int
    step: int
    number: int


def matched(
    unit: Tensor, order: Tensor | None, a: Side, b: Side, best: bool, zero_broken: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Source, target `(B, |A|)` int64 and, with `best`, their cosines: one launch."""
    batch, tokens, channels = unit.shape
    source = unit.new_empty((batch, a.number), dtype=torch.int64)
    target = torch.empty_like(source)
    value = unit.new_empty((batch, a.number if best else 0))
    _run(kernels.match_kernel, (blocks_of(a.number, TILE["BM"]), batch),
         unit, target if order is None else order, source, target, value, tokens, channels,
         a.first, a.step, a.number, b.first, b.step, b.number,
         ORDERED=order is not None, BEST=best, ZERO_BROKEN=zero_broken, **TILE)
    return source, target, value


def chosen(value: Tensor, a: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Source and target `(B, k)` of the k edges of highest value: one launch."""
    batch, number = value.shape
    source, target = (a.new_empty((batch, k)) for _ in range(2))
    _run(kernels.choose_kernel, (blocks_of(number, COUNT["BLOCK"]), batch), value, a, b, source, target, number, k,
         **COUNT)
    return source, target


def merged(
    x: Tensor, size: Tensor | None, source: Tensor, target: Tensor, prefix: int, weighted: bool
) -> tuple[Tensor, Tensor]:
    """Tokens `(B, T - k, C)` and sizes `(B, T - k)` float32: one launch."""
    (batch, tokens, channels), k = x.shape, source.shape[1]
    out = x.new_empty((batch, tokens - k, channels))
    out_size = x.new_empty((batch, tokens - k), dtype=torch.float32)
    grid = (blocks_of(tokens, MERGE["ROWS"]), batch, blocks_of(channels, MERGE["BLOCK_C"]))
    size = None if size is None else size.contiguous()
    _run(kernels.merge_kernel, grid, x, out_size if size is None else size, source.contiguous(), target.contiguous(),
         out, out_size,
         tokens, channels, prefix, k, *x.stride(), SIZED=size is not None, WEIGHTED=weighted, **MERGE)
    return out, out_size


def log_sizes(size: Tensor, dtype: torch.dtype) -> Tensor:
    """Logarithms of `size` in that type: one launch."""
    size = size.contiguous()
    bias = size.new_empty(size.shape, dtype=dtype)
    _run(kernels.bias_kernel, (blocks_of(size.numel(), 1024),), size, bias, size.numel(), BLOCK=1024)
    return bias
