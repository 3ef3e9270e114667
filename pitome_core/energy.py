"""The cosine graph of a layer's tokens and the energy score on it (PiToMe, eq. 3 and 4).

    W_ij = 1 - cos(k_i, k_j)                                        eq. 3, a distance
    E_i  = (1/N) sum_j f_m(cos(k_i, k_j))                           eq. 4, j runs over all tokens, i included
    f_m(x) = x                       if x >= m
             alpha (exp(x - m) - 1)  otherwise

High energy: the token sits inside a large cluster of look-alikes, it is redundant. Low energy: it is isolated, it is
informative. The paper's `m` is `margin` here, its metric are the keys of the layer averaged over heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# The cosines of an image are one matrix up to so many entries, else blocks of rows. On a CPU a block is so small that
# its memory is at hand when it is asked for again: fresh memory costs more than the arithmetic. Elsewhere it is 16 MiB.
_ENTRIES_AT_ONCE = {"cpu": 2**19}
_ENTRIES_ELSEWHERE = 2**22


def _rows_at_once(number: int, device: torch.device) -> int:
    """Rows in a block for images of `number` tokens. The batch has no say: an image's plan is the same in any batch."""
    return max(1, _ENTRIES_AT_ONCE.get(device.type, _ENTRIES_ELSEWHERE) // max(1, number))


def _gaussian(cos: Tensor, margin: float) -> Tensor:
    sigma = 1.0 - margin
    return torch.exp(-0.5 * ((1.0 - cos) / sigma) ** 2) / (sigma * math.sqrt(2.0 * math.pi))


def _below(value: float, dtype: torch.dtype) -> float:
    """A number that rounds to the largest one of that type below `value` (not for 0): x > it where x >= value."""
    return value - 0.500001 * torch.finfo(dtype).eps / 2 * 2.0 ** math.frexp(value)[1]


KERNELS = ("paper", "elu", "gaussian")


def check_kernel(kernel: str, margin: float) -> None:
    """Raise ValueError for an unknown kernel, or for a margin that the kernel has no value for."""
    if kernel not in KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}: choose one of {', '.join(KERNELS)}")
    if kernel == "gaussian" and not margin < 1.0:
        raise ValueError(f"the gaussian kernel has width 1 - margin: margin must be below 1, got {margin}")


def check_mask(mask: Tensor | None, metric: Tensor) -> None:
    """Raise ValueError unless `mask` is None or bool `(B, N)` for a metric `(B, N, C)`."""
    if mask is not None and (mask.dtype != torch.bool or mask.shape != metric.shape[:2]):
        raise ValueError(
            f"mask must be bool (True = real token) of shape {tuple(metric.shape[:2])}, "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )


def _wide(metric: Tensor) -> tuple[Tensor, Tensor]:
    """In float32 at least, since cosines near 1 tie in half precision; and the largest entry of every token."""
    metric = metric.float() if metric.dtype.itemsize < 4 else metric
    return metric, metric.abs().amax(dim=-1, keepdim=True)


def directions(metric: Tensor) -> Tensor:
    """Tokens scaled to length 1, `(B, N, C)`: a zero vector stays zero, one with NaN or infinity is NaN throughout.

    The result is float32 (float64 for float64 input) whatever the autocast state.
    """
    metric, largest = _wide(metric)
    tiny = torch.finfo(metric.dtype).tiny
    metric = metric / largest.clamp_min(tiny)  # first to entries of at most 1, so that no square overflows
    return metric / metric.norm(dim=-1, keepdim=True).clamp_min(tiny)


def unit_tokens(metric: Tensor) -> tuple[Tensor, Tensor]:
    """`directions` for cosines, and where there is one: `(B, N, C) -> unit (B, N, C), usable (B, N)`.

    A token with a NaN or an infinity becomes zero as well, so that its cosine to every token is 0, and is not usable.
    """
    metric, largest = _wide(metric)
    unit = metric / largest
    unit = unit / unit.norm(dim=-1, keepdim=True)  # NaN for a zero vector too: fewer steps than keeping it apart
    return unit.nan_to_num(0.0), largest[..., 0] < math.inf


def cosine_graph(metric: Tensor) -> Tensor:
    """Cosine similarity of every pair of tokens, `(B, N, C) -> (B, N, N)`; the paper's W (eq. 3) is 1 minus this."""
    with torch.autocast(metric.device.type, enabled=False):
        unit, _ = unit_tokens(metric)
        return unit @ unit.transpose(-1, -2)


def energy_and_cosine(
    metric: Tensor, margin: float, alpha: float = 1.0, kernel: str = "paper", mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Energies, unit tokens and, where it was built at once, the cosine matrix. To be called outside autocast.

    `metric (B, N, C)`, `mask (B, N)` True = real token -> `energy (B, N)`, `unit (B, N, C)`, `cos (B, N, N)` or None
    where it was not built. Padding and non-finite tokens get energy -inf: they rank behind every other token.
    """
    check_kernel(kernel, margin)

    def mean(value: Tensor) -> Tensor:  # (B, n, N) -> (B, n)
        if mask is None:
            return value.mean(dim=-1)
        return value.masked_fill(~mask[:, None, :], 0.0).sum(dim=-1) / mask.sum(dim=-1, keepdim=True).clamp_min(1)

    def mean_over_tokens(rows: Tensor) -> Tensor:
        if kernel == "gaussian":
            return mean(_gaussian(rows, margin))
        if kernel == "elu":
            return mean(F.elu(rows - margin, alpha, inplace=True))
        # Below the margin exp(x - m) - 1, elsewhere 0: as exp(min(x, m)) / exp(m) - 1, in passes that write floats only
        # and with no choice between two values, which costs a processor as much as the exponential.
        low = max(margin, -2.0)  # no cosine is below: nothing to add, and exp(-m) stays finite
        below = mean(rows.clamp_max(low).exp_())
        within = mean(F.threshold(rows, _below(margin, rows.dtype), 0.0))
        return torch.add(within, below, alpha=alpha * math.exp(-low)) - alpha

    unit, usable = unit_tokens(metric)
    rows, cos = _rows_at_once(unit.shape[1], unit.device), None
    if unit.shape[1] <= rows:
        cos = torch.bmm(unit, unit.mT)
        energy = mean_over_tokens(cos)
    else:
        energy = torch.cat([mean_over_tokens(torch.bmm(part, unit.mT)) for part in unit.split(rows, 1)], dim=1)
    return torch.where(usable if mask is None else usable & mask, energy, -math.inf), unit, cos


def pair_cosines(unit: Tensor, cos: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """Cosines between the tokens at `a (B, p)` and `b (B, q)`: `(B, p, q)`, read from the matrix where there is one."""
    if cos is None:
        item = torch.arange(len(unit), device=unit.device)[:, None]
        return torch.bmm(unit[item, a], unit[item, b].mT)
    place = torch.add(b[:, None, :], a[:, :, None], alpha=cos.shape[-1])  # in a matrix laid out row by row
    return cos.flatten(1).gather(1, place.flatten(1)).view_as(place)


def energy_score(
    metric: Tensor, margin: float, alpha: float = 1.0, kernel: str = "paper", mask: Tensor | None = None
) -> Tensor:
    """Energy of every token (eq. 4).

    Args:
        metric: `(B, N, C)` tokens that may merge, no prefix tokens.
        margin: the paper's m, a cosine.
        alpha: depth of the penalty for tokens beyond the margin; the paper uses 1.
        kernel: `paper` (eq. 4, jumps by m at the margin), `elu` (cos - m above the margin, the released vision code),
            `gaussian` (density of 1 - cos with sigma = 1 - m, the released text code).
        mask: `(B, N)` True for real tokens; padding takes no part and gets -inf.

    Returns:
        `(B, N)` float32 (float64 for float64 input).

    Raises:
        ValueError: unknown kernel; gaussian with margin >= 1; a metric that is not `(B, N, C)`.
    """
    if metric.ndim != 3:
        raise ValueError(f"metric must be (batch, tokens, channels), got shape {tuple(metric.shape)}")
    check_mask(mask, metric)
    with torch.autocast(metric.device.type, enabled=False):
        return energy_and_cosine(metric, margin, alpha, kernel, mask)[0]


def margin_schedule(num_layers: int, base: float = 0.9) -> list[float]:
    """Margin of every layer: `base - base * l / num_layers`, l = 0, 1, ...

    The paper calls this "an increasing margin"; its formula decreases with depth. This is the formula.
    """
    return [base - base * layer / num_layers for layer in range(num_layers)]
