"""The kernels of the fused merge step, in Triton, each with its contract.

Symbols are those of the core: B items, T tokens of which the first P are prefix tokens, N = T - P patch tokens, H heads
of D channels, C channels of the metric, k pairs. Bytes are those read from and written to the GPU's memory by a launch,
at best (every input read once). A flop is one addition or multiplication of float32.

No kernel uses atomics, and no sum depends on the order in which programs run, so every run has the same result. Block
sizes do not depend on the batch, so an item has the same plan in every batch.

Products are IEEE float32 (`input_precision="ieee"`), added up channel after channel, so that equal tokens have exactly
equal cosines wherever they stand. TF32 moves ranks; TF32x3 is as exact, but the order of its sums is that of the tensor
cores, which is not documented (`tests/core/fused/test_precision.py`).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def centre_kernel(
    x, mean, N, C, D, stride_b, stride_t, stride_h, stride_d,
    HEADS: tl.constexpr, ROUND: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):
    """Mean of the metric over the tokens of each item, for centred metrics: `x -> mean (B, C)` float32.

    `x`, `HEADS` and `ROUND` are those of `metric_kernel`. Grid (ceil(C / BLOCK_C), B). Reads B N H D values, writes
    4 B C bytes; B N H D flops.
    """
    item = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    offset = channel // D * stride_h + channel % D * stride_d
    total = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, N, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < N)[:, None] & (channel < C)[None, :]
        place = row[:, None] * stride_t + offset[None, :]
        value = tl.zeros((ROWS, BLOCK_C), tl.float32)
        for head in range(HEADS):
            value += tl.load(x + item * stride_b + head * stride_h + place, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(value, axis=0)
    total = tl.math.div_rn(total, tl.full((BLOCK_C,), 1.0, tl.float32) * (N * HEADS))
    if ROUND:
        total = total.to(x.dtype.element_ty).to(tl.float32)
    tl.store(mean + item * C + channel, total, mask=channel < C)


@triton.jit
def metric_kernel(
    x, mean, unit, N, C, D, stride_b, stride_t, stride_h, stride_d,
    HEADS: tl.constexpr, CENTRED: tl.constexpr, ROUND: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):
    """Tokens scaled to length 1: `x -> unit (B, N, C)` float32.

    `x` is any view with strides. Channel c of token t of item b is at `b stride_b + t stride_t + (c // D) stride_h
    + (c % D) stride_d`, and the mean over `HEADS` heads is taken: keys `(B, H, N, D)` averaged (HEADS = H, C = D), keys
    of all heads side by side (HEADS = 1, C = H D), or tokens (HEADS = 1, C = D). With CENTRED, `mean (B, C)` is taken
    off; with ROUND, as in the type of `x` (half precision, where the torch path does so).
    A zero vector stays zero. A vector with NaN or infinity becomes all NaN.

    Grid (ceil(N / ROWS), B); BLOCK_C >= C. Reads B N H D values of `x`, writes 4 B N C bytes; some 4 B N C flops.
    """
    item = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK_C)
    inside = (row < N)[:, None] & (channel < C)[None, :]
    place = row[:, None] * stride_t + (channel // D * stride_h + channel % D * stride_d)[None, :]
    value = tl.zeros((ROWS, BLOCK_C), tl.float32)
    for head in range(HEADS):
        value += tl.load(x + item * stride_b + head * stride_h + place, mask=inside, other=0.0).to(tl.float32)
    if HEADS > 1:
        value = tl.math.div_rn(value, tl.full((ROWS, BLOCK_C), HEADS, tl.float32))
    if CENTRED:
        value -= tl.load(mean + item * C + channel, mask=channel < C, other=0.0)[None, :]
        if ROUND:
            value = value.to(x.dtype.element_ty).to(tl.float32)
        value = tl.where(inside, value, 0.0)
    broken = tl.max(tl.where(tl.abs(value) < float("inf"), 0, 1), axis=1)  # tl.max would pass over a NaN
    value = tl.where(broken[:, None] > 0, 0.0, value)
    largest = tl.max(tl.abs(value), axis=1)
    # First to entries of at most 1, so that no square overflows.
    value = tl.math.div_rn(value, tl.where(largest > 0, largest, 1.0)[:, None] + tl.zeros_like(value))
    norm = tl.sqrt_rn(tl.sum(value * value, axis=1))
    value = tl.math.div_rn(value, tl.where(norm > 0, norm, 1.0)[:, None] + tl.zeros_like(value))
    value = tl.where(broken[:, None] > 0, float("nan"), value)
    tl.store(unit + item * N * C + row[:, None] * C + channel[None, :], value, mask=inside)


@triton.jit
def cosines(
    unit, a, b, real_a, real_b, C, ZERO_BROKEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):
    """Cosines `(BM, BN)` of the tokens `a (BM,)` and `b (BN,)` of one item, whose rows start at `unit`.

    With ZERO_BROKEN a broken token has cosine 0 with every token, else NaN.
    """
    cos = tl.zeros((BM, BN), tl.float32)
    for start in range(0, C, BK):
        channel = start + tl.arange(0, BK)
        real_c = channel < C
        left = tl.load(unit + a[:, None] * C + channel[None, :], mask=real_a[:, None] & real_c[None, :], other=0.0)
        right = tl.load(unit + b[None, :] * C + channel[:, None], mask=real_b[None, :] & real_c[:, None], other=0.0)
        if ZERO_BROKEN:
            left = tl.where(left == left, left, 0.0)
            right = tl.where(right == right, right, 0.0)
        cos = tl.dot(left, right, cos, input_precision="ieee")
    return cos


@triton.jit
def energy_kernel(
    unit, mask, energy, N, C, margin, below, alpha, sigma, height,
    KERNEL: tl.constexpr, MASKED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):
    """Energies (eq. 4): `unit (B, N, C) -> energy (B, N)` float32. The N x N cosines stay in registers, tile by tile.

    KERNEL is `paper`, `elu` or `gaussian`. `below` is the largest float32 below the margin, so that x > below is
    x >= margin. `sigma` and `height` are width and largest value of the Gaussian. With MASKED, `mask (B, N)` marks the
    real tokens: others are not summed over. Padding and broken tokens have energy -inf.

    Grid (ceil(N / BM), B). Reads 4 B N C bytes once (ceil(N / BM) times from the cache), writes 4 B N bytes;
    2 B N^2 C flops and B N^2 exponentials.
    """
    item = tl.program_id(1).to(tl.int64)
    unit += item * N * C
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    total = tl.zeros((BM,), tl.float32)
    number = 0
    for start in range(0, N, BN):
        column = start + tl.arange(0, BN)
        cos = cosines(unit, row, column, row < N, column < N, C, True, BM, BN, BK)
        if KERNEL == "gaussian":
            distance = (1.0 - cos) / sigma
            value = tl.exp(-0.5 * distance * distance) * height
        elif KERNEL == "elu":
            value = tl.where(cos > margin, cos - margin, alpha * (tl.exp(cos - margin) - 1.0))
        else:
            value = tl.where(cos > below, cos, alpha * (tl.exp(cos - margin) - 1.0))
        counted = column < N
        if MASKED:
            counted &= tl.load(mask + item * N + column, mask=counted, other=0) != 0
            number += tl.sum(counted.to(tl.int32), axis=0)
        total += tl.sum(tl.where(counted[None, :], value, 0.0), axis=1)
    if MASKED:
        total = total / (tl.maximum(number, 1) * 1.0)
    else:
        total = total / (N * 1.0)
    first = tl.load(unit + row * C, mask=row < N, other=0.0)
    out = first != first  # a broken token is NaN in every channel
    if MASKED:
        out |= tl.load(mask + item * N + row, mask=row < N, other=0) == 0
    tl.store(energy + item * N + row, tl.where(out, -float("inf"), total), mask=row < N)


@triton.jit
def count_before(value, row, number, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """The stable descending rank `(BLOCK,)` of the entries `row` of one item, whose `number` values start at `value`.

    It is the number of entries that are larger, or equal and further in front. No value is NaN.
    """
    own = tl.load(value + row, mask=row < number, other=-float("inf"))
    rank = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, number, STEP):
        other = start + tl.arange(0, STEP)
        theirs = tl.load(value + other, mask=other < number, other=-float("inf"))
        before = (theirs[None, :] > own[:, None]) | (
            (theirs[None, :] == own[:, None]) & (other[None, :] < row[:, None])
        )
        rank += tl.sum(before.to(tl.int32), axis=1)
    return rank


@triton.jit
def rank_kernel(value, order, N, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """Stable descending order by counting: `value (B, N) -> order (B, N)` int32, tokens from high to low.

    Equal values keep their order, so the result is that of a stable sort. No value is NaN.
    Grid (ceil(N / BLOCK), B). Reads 4 B N bytes (from the cache beyond the first time), writes 4 B N bytes;
    3 B N^2 comparisons, no flops.
    """
    item = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    rank = count_before(value + item * N, row, N, BLOCK, STEP)
    tl.store(order + item * N + rank, row, mask=row < N)


@triton.jit
def match_kernel(
    unit, order, source, target, best, N, C, a_first, a_step, number_a, b_first, b_step, number_b,
    ORDERED: tl.constexpr, BEST: tl.constexpr, ZERO_BROKEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):
    """For every token of A the token of B of highest cosine: `source`, `target (B, |A|)` int64, `best` float32.

    Member i of A is place `a_first + i a_step` of `order (B, N)` if ORDERED, else of the tokens; B likewise. Of equal
    cosines the first in B wins. Rows are gathered inside. `best` (the cosines) is written with BEST only. Without
    ZERO_BROKEN the cosines of broken tokens are -inf (bipartite soft matching), with it 0 (PiToMe).

    Grid (ceil(|A| / BM), B). Reads 4 B (|A| + |B|) C bytes, writes 16 B |A| bytes (20 with BEST); 2 B |A| |B| C flops.
    """
    item = tl.program_id(1).to(tl.int64)
    unit += item * N * C
    order += item * N
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    a = a_first + row * a_step
    if ORDERED:
        a = tl.load(order + a, mask=row < number_a, other=0)
    top = tl.full((BM,), -float("inf"), tl.float32)
    partner = tl.zeros((BM,), tl.int32)
    for start in range(0, number_b, BN):
        column = start + tl.arange(0, BN)
        b = b_first + column * b_step
        if ORDERED:
            b = tl.load(order + b, mask=column < number_b, other=0)
        cos = cosines(unit, a, b, row < number_a, column < number_b, C, ZERO_BROKEN, BM, BN, BK)
        if not ZERO_BROKEN:
            cos = tl.where(cos == cos, cos, -float("inf"))
        cos = tl.where((column < number_b)[None, :], cos, -float("inf"))
        value, place = tl.max(cos, axis=1, return_indices=True)  # the first of equals
        partner = tl.where(value > top, start + place, partner)
        top = tl.maximum(value, top)
    b = b_first + partner * b_step
    if ORDERED:
        b = tl.load(order + b, mask=row < number_a, other=0)
    out = item * number_a + row
    tl.store(source + out, a.to(tl.int64), mask=row < number_a)
    tl.store(target + out, b.to(tl.int64), mask=row < number_a)
    if BEST:
        tl.store(best + out, top, mask=row < number_a)


@triton.jit
def choose_kernel(
    best, a, b, source, target, number, k, BLOCK: tl.constexpr, STEP: tl.constexpr,
):
    """The k edges of highest cosine, of equals the first: `a`, `b (B, number) -> source, target (B, k)` int64.

    `best (B, number)` float32 are the cosines. Grid (ceil(number / BLOCK), B). Reads 20 B number bytes, writes 16 B k
    bytes; 3 B number^2 comparisons.
    """
    item = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    rank = count_before(best + item * number, row, number, BLOCK, STEP)
    chosen = (row < number) & (rank < k)
    edge, out = item * number + row, item * k + rank
    tl.store(source + out, tl.load(a + edge, mask=chosen, other=0), mask=chosen)
    tl.store(target + out, tl.load(b + edge, mask=chosen, other=0), mask=chosen)


@triton.jit
def merge_kernel(
    x, size, source, target, out, out_size, T, C, P, k, stride_b, stride_t, stride_c,
    SIZED: tl.constexpr, WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr, PAIRS: tl.constexpr, BLOCK_C: tl.constexpr,
):
    """Merge by size-weighted means: `x (B, T, C), size (B, T) -> out (B, T - k, C), out_size (B, T - k)` float32.

    `source`, `target (B, k)` int64 count from the first token behind the prefix. A program has ROWS tokens. Each of
    them finds its slot by counting the sources in front of it, and the sources that join it by comparing targets, and
    adds them up in the order of the pairs. Without SIZED all sizes are 1 and `size` is not read. Without WEIGHTED the
    means are plain, and the sizes are counted all the same. Shares sum to 1, so a token alone passes unchanged.

    Grid (ceil(T / ROWS), B, ceil(C / BLOCK_C)). Reads B T C values of `x`, 4 B T and 16 B k bytes, writes B (T - k) C
    values and 4 B (T - k) bytes; 2 B T C flops.
    """
    item = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    patch = row - P  # the numbers that pairs have
    x += item * stride_b
    size += item * T
    source += item * k
    target += item * k
    nowhere = 1 << 30
    own = tl.full((ROWS,), 1.0, tl.float32)
    if SIZED:
        own = tl.load(size + row, mask=row < T, other=1.0)
    before = tl.zeros((ROWS,), tl.int32)
    gone = tl.zeros((ROWS,), tl.int32)
    total = own
    members = tl.full((ROWS,), 1.0, tl.float32)
    for start in range(0, k, PAIRS):
        pair = start + tl.arange(0, PAIRS)
        joining = tl.load(source + pair, mask=pair < k, other=nowhere).to(tl.int32)
        joined = tl.load(target + pair, mask=pair < k, other=nowhere).to(tl.int32)
        before += tl.sum((joining[None, :] < patch[:, None]).to(tl.int32), axis=1)
        gone += tl.sum((joining[None, :] == patch[:, None]).to(tl.int32), axis=1)
        added = tl.full((PAIRS,), 1.0, tl.float32)
        if SIZED:
            added = tl.load(size + P + joining, mask=pair < k, other=0.0)
        hit = joined[None, :] == patch[:, None]
        total += tl.sum(tl.where(hit, added[None, :], 0.0), axis=1)
        members += tl.sum(hit.to(tl.float32), axis=1)
    staying = (row < T) & (gone == 0)
    slot = row - before
    if tl.program_id(2) == 0:
        tl.store(out_size + item * (T - k) + slot, total, mask=staying)

    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = staying[:, None] & (channel < C)[None, :]
    whole = total
    if not WEIGHTED:
        own = tl.full((ROWS,), 1.0, tl.float32)
        whole = members
    whole = tl.where(whole > 0, whole, 1.0)  # a group of sizes 0 has shares 0
    share = tl.math.div_rn(own, whole)
    mean = tl.load(x + row[:, None] * stride_t + channel[None, :] * stride_c, mask=inside, other=0.0).to(tl.float32)
    mean = mean * share[:, None]
    for start in range(0, k, PAIRS):
        pair = start + tl.arange(0, PAIRS)
        joined = tl.load(target + pair, mask=pair < k, other=nowhere).to(tl.int32)
        hit = joined[None, :] == patch[:, None]
        steps = tl.max(tl.sum(hit.to(tl.int32), axis=1), axis=0)
        last = tl.zeros((ROWS,), tl.int32) - 1
        for _ in range(0, steps):
            later = hit & (tl.arange(0, PAIRS)[None, :] > last[:, None])
            last = tl.min(tl.where(later, tl.arange(0, PAIRS)[None, :], PAIRS), axis=1)  # the next member of each row
            more = staying & (last < PAIRS)
            token = P + tl.load(source + start + last, mask=more, other=0).to(tl.int32)
            added = tl.full((ROWS,), 1.0, tl.float32)
            if SIZED and WEIGHTED:
                added = tl.load(size + token, mask=more, other=0.0)
            value = tl.load(
                x + token[:, None] * stride_t + channel[None, :] * stride_c,
                mask=more[:, None] & (channel < C)[None, :], other=0.0,
            ).to(tl.float32)
            mean = tl.where(more[:, None], mean + value * tl.math.div_rn(added, whole)[:, None], mean)
    place = item * (T - k) * C + slot[:, None] * C + channel[None, :]
    tl.store(out + place, mean.to(out.dtype.element_ty), mask=inside)


@triton.jit
def bias_kernel(size, bias, number, BLOCK: tl.constexpr):
    """Logarithms of sizes, what proportional attention adds to its scores: `size -> bias`, `number` entries each.

    Float32 in, the type of `bias` out; size 0 gives -inf. Grid (ceil(number / BLOCK),). Reads 4 number bytes, writes
    2 or 4.
    """
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.log(tl.load(size + place, mask=place < number, other=1.0))
    tl.store(bias + place, value.to(bias.dtype.element_ty), mask=place < number)
