"""The cosine graph of a layer's tokens and the energy score on it (PiToMe, eq. 3 and 4).

    W_ij = 1 - cos(k_i, k_j)                                        eq. 3, a distance
    E_i  = (1/N) sum_j f_m(cos(k_i, k_j))                           eq. 4, j runs over all tokens, i included
    f_m(x) = x                       if x >= m
             alpha (exp(x - m) - 1)  otherwise

A token of high energy has many tokens like it, so it is redundant. A token of low energy has few, so it is informative.
That needs m >= 0, because f_m jumps by m at x = m: for m < 0 a token that is less alike can have more energy. A zero
vector has cosine 0 with every token, itself included.
The paper's `m` is `margin` here. The paper compares tokens by the keys of the layer, averaged over heads; here they are
`metric`.
"""

from __future__ import annotations

import math
import operator

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import count, in_graph, number, tensor, word
from .portable import full_precision

# The cosines of one image are computed as one matrix up to this many entries, and in blocks of rows beyond it. On a CPU
# a block is small, because fresh memory then costs more than the arithmetic: a small block reuses the memory of the
# block before it. On other devices a block has 2**22 entries (16 MiB of float32).
_ENTRIES_AT_ONCE = {"cpu": 2**19}
_ENTRIES_ELSEWHERE = 2**22

# Shapes from which on a matrix product on a CPU adds up every entry in the same order: least number of rows and the
# number that it is a multiple of, by type. Rows start at multiples of 64 bytes. See `dot_products`.
_ROWS = {torch.float32: (16, 1), torch.float64: (24, 24)}
_ALIGNED = 64

KERNELS = ("paper", "elu", "gaussian")


def _rows_at_once(num_tokens: int, device: torch.device) -> int:
    """Rows of the cosine matrix in one block, for images of `num_tokens` tokens.

    The number does not depend on the batch size, so that an image has the same plan in any batch.
    """
    return max(1, _ENTRIES_AT_ONCE.get(device.type, _ENTRIES_ELSEWHERE) // max(1, num_tokens))


def next_below(value: float, dtype: torch.dtype) -> float:
    """The largest number of `dtype` that is smaller than `value`: for numbers x of that dtype, x > it means x >= value.

    For example, the float32 numbers around 0.5 are 0.49999997, 0.5 and 0.50000006. `next_below(0.5, torch.float32)` is
    0.49999997, and exactly the numbers from 0.5 on are larger. It is `torch.nextafter` in Python floats, because the
    compiler evaluates those once: operators on tensors would become a part of the compiled code.
    """
    limits = torch.finfo(dtype)
    below = math.nextafter(value, -math.inf)  # in float64, the type of Python's floats
    # Around `below`, numbers of the dtype are the multiples of this power of two.
    spacing = max(math.ldexp(limits.eps, math.frexp(below)[1] - 1), limits.tiny * limits.eps)
    return math.floor(below / spacing) * spacing


def check_kernel(kernel: str, margin: float) -> None:
    """Raise ValueError for an unknown kernel, or for a margin at which the kernel is not defined."""
    word(kernel, "kernel", KERNELS)
    if kernel == "gaussian" and not margin < 1.0:
        raise ValueError(f"the gaussian kernel has width 1 - margin: margin must be below 1, got {margin}")


def check_mask(mask: Tensor | None, metric: Tensor) -> None:
    """Raise ValueError unless `mask` is None or bool `(B, N)` for a metric `(B, N, C)`."""
    if mask is not None and (getattr(mask, "dtype", None) != torch.bool or mask.shape != metric.shape[:2]):
        raise ValueError(
            f"mask must be bool (True = real token) of shape {tuple(metric.shape[:2])}, "
            f"got {getattr(mask, 'dtype', type(mask).__name__)} {tuple(getattr(mask, 'shape', ()))}"
        )


def _in_float32(metric: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens `(B, N, C)` in float32 or wider, and the largest absolute entry of each, `(B, N, 1)`.

    Half precision is too coarse here, because cosines near 1 would round to equal values.
    """
    metric = metric.float() if metric.dtype.itemsize < 4 else metric
    return metric, metric.abs().amax(dim=-1, keepdim=True)


def directions(metric: Tensor) -> Tensor:
    """Tokens scaled to length 1, `(B, N, C)`: a zero vector stays zero, a vector with NaN or infinity is all NaN.

    The result is float32 (float64 for float64 input), with or without autocast.
    """
    metric, largest = _in_float32(metric)
    tiny = torch.finfo(metric.dtype).tiny
    metric = metric / largest.clamp_min(tiny)  # first to entries of at most 1, so that no square overflows
    return metric / metric.norm(dim=-1, keepdim=True).clamp_min(tiny)


def unit_tokens(metric: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens scaled to length 1, and which of them are finite: `(B, N, C) -> unit (B, N, C), finite (B, N)`.

    A zero vector stays zero. A vector with a NaN or an infinity becomes zero too, so that its cosine with every token
    is 0.
    """
    metric, largest = _in_float32(metric)
    unit = metric / largest
    unit = unit / unit.norm(dim=-1, keepdim=True)  # a zero vector is NaN here, and 0 after the next line
    return unit.nan_to_num(0.0), largest[..., 0] < math.inf


def _filled_up(tokens: Tensor) -> Tensor:
    """`tokens (B, p, C)` with rows and channels of zeros behind them, up to a shape that `dot_products` can use."""
    least, multiple = _ROWS[tokens.dtype]
    rows, channels = tokens.shape[1:]
    rows = max(least - rows, -rows % multiple)
    channels = -channels % (_ALIGNED // tokens.dtype.itemsize)
    return F.pad(tokens, (0, channels, 0, rows)) if rows or channels else tokens


def dot_products(a: Tensor, b: Tensor) -> Tensor:
    """Dot products of the tokens `a (B, p, C)` and `b (B, q, C)`, float32 or float64: `(B, p, q)`.

    On a CPU each of them is a function of its two tokens alone: it does not depend on their places, on the numbers p
    and q, and on the batch. So equal tokens have exactly equal cosines, alone, in a batch and beside padding. A plain
    matrix product does not give that, because it adds up the channels in another order in small matrices, at the edges
    of float64 matrices, and where rows do not start at multiples of 64 bytes. Zeros around the tokens avoid the three
    cases. (Found by trial for the library MKL, which PyTorch has on x86 processors. Other libraries and other devices
    may still round equal products differently.)

    Both tensors start at a multiple of 64 bytes, which every new tensor does.
    """
    if a.device.type != "cpu":
        return torch.bmm(a, b.transpose(-1, -2))
    rows = _filled_up(a)
    columns = rows if b is a else _filled_up(b)
    products = torch.bmm(rows, columns.transpose(-1, -2))
    return products if rows is a and columns is b else products[:, : a.shape[1], : b.shape[1]]


def cosine_graph(metric: Tensor) -> Tensor:
    """Cosine similarity of every pair of tokens, `(B, N, C) -> (B, N, N)`; the paper's W (eq. 3) is 1 minus this."""
    with full_precision(metric.device):
        unit, _ = unit_tokens(metric)
        return dot_products(unit, unit)


def _gaussian(cos: Tensor, margin: float) -> Tensor:
    """Density of the normal distribution at the distance `1 - cos`, with standard deviation `1 - margin`."""
    sigma = 1.0 - margin
    return torch.exp(-0.5 * ((1.0 - cos) / sigma) ** 2) / (sigma * math.sqrt(2.0 * math.pi))


def _elu(cos: Tensor, margin: float, alpha: float) -> Tensor:
    """`F.elu(cos - margin, alpha)`, which on a CPU would round the last numbers of a tensor otherwise than the rest."""
    below = cos.clamp_max(margin).sub_(margin).expm1_()
    return cos.clamp_min(margin).sub_(margin).add_(below, alpha=alpha)


def _lengths(mask: Tensor | None) -> list[int] | None:
    """How many tokens of every item are real, or None where there is no padding or the numbers are not read.

    They are not read while a graph is recorded, because it would then hold for these lengths only, and not on other
    devices than a CPU, because the program would wait for the device.
    """
    if mask is None or mask.device.type != "cpu" or in_graph():
        return None
    try:
        return mask.sum(dim=-1).tolist() or None
    except RuntimeError:  # tensors without numbers: inside of torch.vmap, and fake ones
        return None


def energy_and_cosine(
    metric: Tensor, margin: float, alpha: float = 1.0, kernel: str = "paper", mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Energies, tokens of length 1, and the cosine matrix if it was built as a whole. The caller turns autocast off.

    Args:
        metric: `(B, N, C)`.
        mask: `(B, N)` True for real tokens, which come first. The other arguments are those of `energy_score`.

    Returns:
        `energy (B, N)`, `unit (B, N, C)`, and `cos (B, N, N)` or None. Padding and tokens with NaN or infinity have
        energy -inf, so that they rank behind every other token.
    """
    check_kernel(kernel, margin)
    lengths = _lengths(mask)

    def mean(values: Tensor) -> Tensor:
        if mask is None:
            return values.mean(dim=-1)  # (B, rows, N) -> (B, rows)
        if lengths is not None:  # sums of other lengths would add up in another order, and break ties
            return torch.stack([of[:, : max(n, 1)].mean(dim=-1) for of, n in zip(values, lengths, strict=True)])
        return values.masked_fill(~mask[:, None, :], 0.0).sum(dim=-1) / mask.sum(dim=-1, keepdim=True).clamp_min(1)

    def energy_of_rows(cos: Tensor) -> Tensor:  # (B, rows, N) -> (B, rows)
        if kernel == "gaussian":
            return mean(_gaussian(cos, margin))
        if kernel == "elu":
            return mean(_elu(cos, margin, alpha))
        # f_m(x) is a sum of two terms, because a choice between two values would cost a CPU as much as the exponential:
        #     alpha (exp(min(x, m)) / exp(m) - 1)    which is 0 for x >= m
        #     x if x >= m else 0
        low = max(margin, -2.0)  # for m < -2 the first term is 0 for all cosines, and exp(-m) might overflow
        exponentials = mean(cos.clamp_max(low).exp_())
        # F.threshold keeps what is > its threshold. No cosine is outside -2 to 2.
        above_margin = mean(F.threshold(cos, next_below(min(low, 2.0), cos.dtype), 0.0))
        return torch.add(above_margin, exponentials, alpha=alpha * math.exp(-low)) - alpha

    unit, finite = unit_tokens(metric)
    width = operator.index(unit.shape[1])  # an int, also where shapes are traced
    rows, cos = _rows_at_once(width, unit.device), None
    if width <= rows:
        cos = dot_products(unit, unit)
        energy = energy_of_rows(cos)
    else:
        energy = torch.cat([energy_of_rows(dot_products(block, unit)) for block in unit.split(rows, 1)], dim=1)
    return torch.where(finite if mask is None else finite & mask, energy, -math.inf), unit, cos


def pair_cosines(unit: Tensor, cos: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """Cosines between the tokens at `a (B, p)` and the tokens at `b (B, q)`: `(B, p, q)`.

    They are read from the matrix `cos (B, N, N)`, or computed from the tokens `unit (B, N, C)` if it is None.
    """
    if cos is None:
        item = torch.arange(unit.shape[0], device=unit.device)[:, None]
        return dot_products(unit[item, a], unit[item, b])
    place = torch.add(b[:, None, :], a[:, :, None], alpha=cos.shape[-1])  # (B, p, q), in a matrix stored row by row
    return cos.flatten(1).gather(1, place.flatten(1)).view_as(place)


def energy_score(
    metric: Tensor, margin: float, alpha: float = 1.0, kernel: str = "paper", mask: Tensor | None = None
) -> Tensor:
    """Energy of every token (eq. 4).

    Args:
        metric: `(B, N, C)` tokens that may merge, without prefix tokens.
        margin: the paper's m, a cosine.
        alpha: depth of the penalty for tokens beyond the margin; the paper uses 1.
        kernel: `paper` (eq. 4, which jumps by m at the margin), `elu` (cos - m above the margin, as in the released
            vision code), `gaussian` (density of 1 - cos with sigma = 1 - m, as in the released text code).
        mask: `(B, N)` True for real tokens. Padding takes no part and has energy -inf. On a CPU the energies of real
            tokens are, to the last bit, those without padding (see `dot_products`; recorded graphs: but for rounding).

    Returns:
        `(B, N)` float32 (float64 for float64 input).

    Raises:
        ValueError, TypeError: an unknown kernel; `gaussian` with a margin of 1 or more; a margin or alpha that is no
            finite number; a metric that is not `(B, N, C)`. A token with NaN or infinity is no error: its energy is
            -inf.

    Example:
        Two equal tokens are redundant. A third token, orthogonal to both, is not.

        >>> import torch, pitome_core as pc
        >>> tokens = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
        >>> [round(value, 4) for value in pc.energy_score(tokens, margin=0.5)[0].tolist()]
        [0.5355, 0.5355, 0.071]
    """
    tensor(metric, "metric (batch, tokens, channels)", (None, None, None))
    check_mask(mask, metric)
    margin, alpha = number(margin, "margin"), number(alpha, "alpha")
    with full_precision(metric.device):
        if mask is None:
            return energy_and_cosine(metric, margin, alpha, kernel)[0]
        order = mask.to(torch.int8).argsort(dim=-1, descending=True, stable=True)  # real tokens to the front
        item = torch.arange(mask.shape[0], device=mask.device)[:, None]
        energy, _, _ = energy_and_cosine(metric[item, order], margin, alpha, kernel, mask[item, order])
        return energy[item, order.argsort(dim=-1)]


def margin_schedule(num_layers: int, base: float = 0.9) -> list[float]:
    """Margin of every layer: `base - base * l / num_layers` for l = 0, 1, ...

    The paper calls this "an increasing margin", but its formula decreases with depth. This function is the formula.
    ValueError or TypeError if `num_layers` is no number of layers or `base` no finite number.

    Example:
        >>> import pitome_core as pc
        >>> [round(margin, 3) for margin in pc.margin_schedule(4)]
        [0.9, 0.675, 0.45, 0.225]
    """
    num_layers, base = count(num_layers, "num_layers"), number(base, "base")
    return [base - base * layer / num_layers for layer in range(num_layers)]
