"""Whether a plan hangs on rounding: two scores of one choice are closer than float32 can be trusted to tell."""

from __future__ import annotations

import numpy as np
import oracle
import torch
from torch import Tensor

NEAR = 1e-6


def _close(values: Tensor) -> bool:
    """Whether two of the values `(..., n)` are closer than NEAR."""
    return bool((values.sort(dim=-1).values.diff(dim=-1) < NEAR).any())


def steepness(kernel: str, margin: float) -> float:
    """By how much an error of a cosine can grow in the energy, at most."""
    return max(1.0, 0.25 / (1.0 - margin) ** 2) if kernel == "gaussian" else 1.0


def near_tie(metric: Tensor, method: str, margin: float = 0.9, alpha: float = 1.0, kernel: str = "paper") -> bool:
    """Whether a plan of one item `(N, C)` may differ between two computations in float32.

    Copies of a token are no near-tie, because they have equal scores in every computation. Different tokens with scores
    that would be equal in exact arithmetic are one.
    """
    cos = torch.from_numpy(oracle.cosine(metric))
    _, kinds = np.unique(oracle.as_array(metric), axis=0, return_index=True)  # one of each kind of token
    if _close(cos[:, kinds]):
        return True
    if method == "tome":
        even = torch.from_numpy(kinds[kinds % 2 == 0])
        odd = torch.from_numpy(kinds[kinds % 2 == 1])
        return any(min(a.shape[0], b.shape[0]) and _close(cos[a][:, b].max(dim=1).values)
                   for a, b in ((even, odd), (odd, even)))
    if kernel == "paper" and bool(((cos - margin).abs() < NEAR).any()):
        return True
    energy = torch.from_numpy(oracle.energies(metric, margin, alpha, kernel))[kinds]
    return _close(energy / steepness(kernel, margin))
