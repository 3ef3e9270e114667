"""Proportional attention: a token that stands for s tokens counts s times as a key.

    softmax(q k^T / sqrt(d) + log s) v          (s: sizes of the keys)

Attention over merged exact duplicates then equals attention over the originals. The bias goes into the fused kernel
as an additive mask, so that kernel stays in use.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def size_bias(size: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """`(B, T)` sizes -> additive attention mask `(B, 1, 1, T)` of log sizes; a padded slot (size 0) gets -inf.

    None (no token merged yet) stays None: no mask at all.
    """
    return None if size is None else size.log().to(dtype)[:, None, None, :]


def attention_map(q: Tensor, k: Tensor, bias: Tensor | None = None, *, scale: float | None = None) -> Tensor:
    """Softmax weights averaged over heads, `(B, T, T)` float32, from q and k `(B, H, T, D)`; rows are queries.

    Beside the fused kernel, which does not hand its weights out: only methods that read them pay for this.
    """
    score = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    if bias is not None:
        score = score + bias.to(score.dtype)
    return score.softmax(dim=-1, dtype=torch.float32).mean(dim=1)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    fused: bool = True,
) -> Tensor:
    """Softmax attention with an additive bias, `(B, H, T, D)` each -> `(B, H, T, D)`.

    `fused=False` spells it out in matrix products, for counters of operations that do not see into the kernel.
    `scale` defaults to 1 / sqrt(D).
    """
    if bias is not None:
        bias = bias.to(q.dtype)  # under autocast the tokens are wider than queries and keys
    if fused:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)
    score = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    if bias is not None:
        score = score + bias
    return F.dropout(score.softmax(dim=-1), dropout) @ v
