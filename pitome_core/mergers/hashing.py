"""Pseudo-random orders for controls. They are fixed functions, so they need no generator and agree on all devices."""

from __future__ import annotations

import torch
from torch import Tensor

from ..portable import stable_order

_MASK = 0xFFFFFFFF


def hash_tokens(
    num_tokens: int, seed: int, layer: int, device: torch.device | None = None, stream: int = 0
) -> Tensor:
    """A 32-bit integer per token index, `(N,)` long: a fixed function of (seed, layer, stream, index).

    Each of the four is mixed in by rounds of multiplying and xor-shifting 32 bits, so that neighbouring seeds, layers
    and streams give unrelated numbers. Products stay below 2**63, so that int64 does not overflow.
    """
    x = torch.arange(num_tokens, device=device)  # (N,)
    for word in (0, seed, layer, stream):
        x = x ^ (word * 0x9E3779B1 & _MASK)
        for multiplier in (0x7FEB352D, 0x6C62272E):
            x = ((x ^ (x >> 16)) * multiplier + 0x2545F491) & _MASK
    return x ^ (x >> 15)


def random_order(tokens: Tensor, mask: Tensor | None, seed: int, layer: int) -> Tensor:
    """Token indices in a fixed random order, `(B, N)` long, padding last, for `tokens (B, N, ...)`.

    The order of an item depends on its own length, not on the width it is padded to.
    """
    code = hash_tokens(tokens.shape[1], seed, layer, tokens.device).expand(tokens.shape[:2])
    if mask is not None:
        code = code.masked_fill(~mask, _MASK + 1)
    return stable_order(code)
