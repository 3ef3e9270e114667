"""What a few items say of many: 95 % intervals, and how many items a target takes."""

from __future__ import annotations

import math

from torch import Tensor

_Z2 = 1.959964**2  # of the normal distribution, between 2.5 and 97.5 %


def share_interval(successes: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a share (E. B. Wilson 1927, JASA 22, 209-212).

    Example:
        >>> from pitome_core.intervals import share_interval
        >>> [round(end, 3) for end in share_interval(63, 64)]
        [0.917, 0.997]
    """
    share, total = successes / count, count + _Z2
    centre = (successes + _Z2 / 2) / total
    reach = math.sqrt(_Z2 * (share * (1 - share) * count + _Z2 / 4)) / total
    return max(0.0, centre - reach), min(1.0, centre + reach)


def mean_interval(cosines: Tensor) -> tuple[float, float]:
    """Student's 95 % interval for a mean of cosines `(n,)`.

    The quantile of t comes from its expansion around z (Abramowitz and Stegun, 26.7.5), which is right to 1 % from 4
    items on. Fewer give the whole range, -1 to 1. Where cosines crowd below 1, the lower end holds in some 95 % of all
    samples, and not in 97.5 %.

    Example:
        >>> import torch
        >>> from pitome_core.intervals import mean_interval
        >>> [round(end, 3) for end in mean_interval(torch.tensor([0.9, 0.8, 1.0, 0.9]))]
        [0.771, 1.0]
    """
    z, n = math.sqrt(_Z2), len(cosines) - 1
    if n < 3:
        return -1.0, 1.0
    t = (z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
         + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3))
    mean, reach = cosines.mean().item(), t * cosines.std().item() / math.sqrt(n + 1)
    return max(-1.0, mean - reach), min(1.0, mean + reach)


def items_needed(target: float) -> int:
    """How many items it takes until the lower end can reach the target: all agree, and `n / (n + z^2) >= target`.

    Example:
        >>> from pitome_core.intervals import items_needed
        >>> items_needed(0.9), items_needed(0.95)
        (35, 73)
    """
    return math.ceil(_Z2 * target / (1 - target) - 1e-9)
