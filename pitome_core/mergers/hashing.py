"""Fixed pseudo-random orders for the random controls: no generator, no state, the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def hash_tokens(num_tokens: int, seed: int, layer: int, device: torch.device | None = None) -> Tensor:
    """A 32-bit integer per token index, `(N,)` long: a fixed function of (seed, layer, index).

    Rounds of multiply and xor-shift on 32 bits; products stay below 2**63, so that no device overflows.
    """
    x = (torch.arange(num_tokens, device=device) + seed * 0x9E3779B1 + layer * 0x85EBCA77) & _MASK
    for multiplier in (0x7FEB352D, 0x6C62272E):
        x = ((x ^ (x >> 16)) * multiplier) & _MASK
    return x ^ (x >> 15)


def random_order(metric: Tensor, mask: Tensor | None, seed: int, layer: int) -> Tensor:
    """Token indices in a fixed random order, `(B, N)` long, padding last.

    An item's order depends on its own length only, never on the width it is padded to.
    """
    code = hash_tokens(metric.shape[1], seed, layer, metric.device).expand(metric.shape[:2])
    if mask is not None:
        code = code.masked_fill(~mask, _MASK + 1)
    return code.argsort(dim=-1, stable=True)
