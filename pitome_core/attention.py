"""Proportional attention: a token that stands for s tokens counts s times as a key.

    softmax(q k^T / sqrt(d) + log s) v          (s: sizes of the keys)

If equal tokens merge, attention over the merged tokens then equals attention over the original ones. The bias is an
additive mask of the fused kernel, so that the fused kernel is used with merged tokens, too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks


def size_bias(size: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Additive attention mask `(B, 1, 1, T)` of log sizes, from sizes `(B, T)`. A padded slot (size 0) gets -inf.

    None, which stands for sizes of 1, gives None: no mask. The logarithm is taken in float32, for float64 in float64.

    Example:
        >>> import torch
        >>> from pitome_core.attention import size_bias
        >>> size_bias(torch.tensor([[1.0, 2.0, 0.0]]), torch.float32).flatten()
        tensor([0.0000, 0.6931,   -inf])
    """
    if size is None:
        return None
    size = checks.tensor(size, "size", (None, None))
    return size.to(torch.promote_types(size.dtype, dtype)).log().to(dtype)[:, None, None, :]


def _check_bias(bias: Tensor | None) -> None:
    """ValueError for a bias that is not added to scores: a mask of bools (True = attend), or integers."""
    if bias is not None and not bias.is_floating_point():
        raise ValueError(f"bias must be floating, because it is added to the scores, got {bias.dtype}: "
                         "0 attends and -inf does not")


def attention_map(q: Tensor, k: Tensor, bias: Tensor | None = None, *, scale: float | None = None) -> Tensor:
    """Softmax weights averaged over heads, `(B, T, T)` float32, from q and k `(B, H, T, D)`; rows are queries.

    The fused kernel does not return its weights. They are computed a second time here, only for methods that read them.

    Example:
        >>> import torch
        >>> from pitome_core.attention import attention_map
        >>> attention_map(torch.zeros(1, 2, 2, 4), torch.zeros(1, 2, 2, 4))
        tensor([[[0.5000, 0.5000],
                 [0.5000, 0.5000]]])
    """
    _check_bias(bias)
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
    """Softmax attention with an additive bias: `(B, H, T, D)` each -> `(B, H, T, D)`.

    Args:
        q, k, v: queries, keys and values.
        bias: added to the scores, `(B, 1, 1, T)` or any shape that broadcasts to `(B, H, T, T)`.
        scale: factor of the scores; None = 1 / sqrt(D).
        dropout: share of the weights that are set to 0.
        fused: False computes it by matrix products, for counters of operations that cannot look into the fused kernel.

    Example:
        A token of size 2 counts as two tokens.

        >>> import torch
        >>> from pitome_core.attention import attention, size_bias
        >>> q, k, v = torch.zeros(1, 1, 2, 1), torch.zeros(1, 1, 2, 1), torch.tensor([[[[3.0], [0.0]]]])
        >>> attention(q, k, v, size_bias(torch.tensor([[2.0, 1.0]]), torch.float32)).flatten().round(decimals=4)
        tensor([2., 2.])
    """
    _check_bias(bias)
    if bias is not None:
        bias = bias.to(q.dtype)  # under autocast tokens are float32, and queries and keys are not
    if fused:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)
    score = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    if bias is not None:
        score = score + bias
    return F.dropout(score.softmax(dim=-1), dropout) @ v
