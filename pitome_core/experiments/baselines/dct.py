"""The truncated cosine transform of the Fourier Transformer, which keeps the low frequencies along the tokens."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from pitome_core.merge_plan import LinearPlan
from pitome_core.mergers import register_method


def cosine_transform(num_tokens: int) -> Tensor:
    """The orthonormal DCT-II, `(N, N)` float64.

    Row f is `sqrt(2 / N) cos(pi f (n + 1/2) / N)` over the tokens n, and row 0 is `sqrt(1 / N)`.
    """
    place = torch.arange(num_tokens, dtype=torch.float64)
    rows = torch.cos(math.pi / num_tokens * place[:, None] * (place + 0.5)) * math.sqrt(2 / num_tokens)
    rows[0] = math.sqrt(1 / num_tokens)
    return rows


SCALES = ("constant", "orthonormal")


@lru_cache(maxsize=64)
def _transforms(
    num_tokens: int, kept: int, device: torch.device, dtype: torch.dtype, scale: str
) -> tuple[Tensor, Tensor]:
    """Forward `(M, N)` and backward `(N, M)` matrix of `plan_dct`."""
    with torch.inference_mode(False):  # a cached inference tensor could not be used in training later
        low = cosine_transform(num_tokens)[:kept]
        there, back = (kept / num_tokens, num_tokens / kept) if scale == "constant" else (1.0, 1.0)
        forward = math.sqrt(there) * cosine_transform(kept).T @ low
        backward = back * forward.T  # the pseudo-inverse: backward @ forward = low.T @ low
        return forward.to(device, dtype), backward.to(device, dtype)


def plan_dct(
    metric: Tensor, remove: int | Tensor, *, mask: Tensor | None = None, scale: str = "constant"
) -> LinearPlan:
    """Keep the M = N - k lowest frequencies: `X' = sqrt(M / N) IDCT_M(DCT_N(X)[:M])` along the tokens.

    Both transforms are orthonormal. The factor `sqrt(M / N)` is ours (`scale="constant"`, the default): it keeps the
    value of a constant. The authors' code is without it (`scale="orthonormal"`): a constant grows by `sqrt(N / M)` in
    every layer, and norms are preserved on the kept frequencies. With either, the way back returns exactly a constant,
    and every signal of the kept frequencies. The plan is no partition: it has no sizes and takes no mask.

    The two matrices are made once for each pair of N and M, in a time of N M^2: seconds at 5,000 tokens, minutes and
    gigabytes at 20,000.

    Source: He et al., "Fourier Transformer", Findings of ACL 2023.

    `remove` = k, the number of highest frequencies that are dropped; of `metric` only shape and type count. Raises
    ``ValueError`` with a mask, because items of different lengths have transforms of different shapes.
    """
    if mask is not None or not isinstance(remove, int):
        raise ValueError("mask: dct transforms whole rows of tokens of one length; plan items without padding")
    width = metric.shape[1]
    forward, backward = _transforms(
        width, width - remove, metric.device, torch.promote_types(metric.dtype, torch.float32), scale
    )
    return LinearPlan(forward, backward)


register_method(
    "dct",
    plan_dct,
    paper="He et al., Findings of ACL 2023",
    summary="keep the lowest frequencies of the cosine transform along the tokens",
    partition=False,
    limit="all",
    choices={"scale": SCALES},
    scaling="time N M^2 once for each pair of N and M, then N M C; memory N^2 in float64, then 2 N M",
)
