"""Laws of proportional attention."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pitome_core as pc
from pitome_core.attention import attention, size_bias


def heads(batch, num_heads, n, d, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, num_heads, n, d, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]


@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 9), st.integers(1, 5)),
    seed=st.integers(0, 2**31),
    sized=st.booleans(),
    fused=st.booleans(),
    scale=st.none() | st.floats(0.1, 2),
)
def test_attention_equals_the_loop(shape, seed, sized, fused, scale):
    """softmax(q k^T scale + log s) v, row by row, fused or spelled out, any scale."""
    q, k, v = heads(*shape, seed)
    size = torch.from_numpy(np.random.default_rng(seed).integers(1, 9, (shape[0], shape[2]))).float() if sized else None
    out = attention(q, k, v, size_bias(size, torch.float64), scale=scale, fused=fused)
    for b in range(shape[0]):
        for h in range(shape[1]):
            expected = oracle.attention(q[b, h], k[b, h], v[b, h], None if size is None else size[b], scale)
            np.testing.assert_allclose(out[b, h].numpy(), expected, rtol=1e-6, atol=1e-7)


@given(seed=st.integers(0, 2**31), n=st.integers(2, 10), fused=st.booleans())
def test_merged_duplicates_attend_like_the_originals(seed, n, fused):
    """Merging exact duplicates and adding log-size gives every query what attention over all copies gives it."""
    rng = np.random.default_rng(seed)
    kinds = int(rng.integers(1, n + 1))
    kind = np.concatenate([np.arange(kinds), rng.integers(0, kinds, n - kinds)])
    roots = [int(i) for i in kind]  # token `kind` is the first of its kind, and the anchor of its group
    plan = pc.MergePlan.from_roots(torch.tensor([roots]))
    q, k, v = (x[:, :, torch.from_numpy(kind)] for x in heads(1, 2, kinds, 4, seed))
    full = attention(q, k, v, fused=fused)
    size = plan.sizes
    merged = [torch.stack([plan.merge(x[:, h])[0] for h in range(2)], dim=1) for x in (q, k, v)]
    small = attention(*merged, size_bias(size, torch.float64), fused=fused)
    restored = torch.stack([plan.unmerge(small[:, h]) for h in range(2)], dim=1)
    torch.testing.assert_close(restored, full, rtol=1e-6, atol=1e-7)


def test_duplicates_need_their_sizes():
    """The law of duplicates is no tautology: without the sizes, unequal groups attend differently."""
    q, k, v = heads(1, 1, 3, 4, 0)
    copies = [0, 0, 0, 1, 2]
    full = attention(q, k[:, :, copies], v[:, :, copies])
    assert not torch.allclose(attention(q, k, v), full)


def test_unit_sizes_change_nothing():
    """log 1 = 0: a bias of unit sizes is no bias; no sizes is no mask at all."""
    q, k, v = heads(2, 2, 6, 4, 0)
    assert size_bias(None, torch.float32) is None
    bias = size_bias(torch.ones(2, 6), torch.float64)
    assert bias.shape == (2, 1, 1, 6) and bias.dtype == torch.float64 and bias.eq(0).all()
    torch.testing.assert_close(attention(q, k, v, bias), attention(q, k, v))


def test_size_two_is_two_copies():
    """A key of size 2 weighs what the same key twice weighs."""
    q, k, v = heads(1, 1, 3, 4, 0)
    doubled = attention(q, torch.cat([k, k[:, :, :1]], 2), torch.cat([v, v[:, :, :1]], 2))
    torch.testing.assert_close(
        attention(q, k, v, size_bias(torch.tensor([[2.0, 1, 1]]), torch.float64)), doubled, rtol=1e-6, atol=1e-7
    )


def test_padded_slots_get_no_attention():
    """A slot of size 0 (padding) is invisible: log 0 = -inf, whatever it holds."""
    q, k, v = heads(1, 2, 5, 4, 0)
    k[:, :, 3:], v[:, :, 3:] = 1e3, 1e3
    bias = size_bias(torch.tensor([[1.0, 2, 3, 0, 0]]), torch.float64)
    for fused in (True, False):
        padded = attention(q, k, v, bias, fused=fused)
        alone = attention(q, k[:, :, :3], v[:, :, :3], bias[..., :3], fused=fused)
        torch.testing.assert_close(padded, alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("fused", [True, False])
def test_low_precision_attention(dtype, fused):
    """The bias follows the queries' dtype, and the result is that of float64 to the dtype's accuracy."""
    q, k, v = heads(2, 3, 17, 16, 0, dtype)
    size = torch.randint(1, 30, (2, 17), generator=torch.Generator().manual_seed(0)).float()
    out = attention(q, k, v, size_bias(size, dtype), fused=fused)
    assert out.dtype == dtype
    bias = size_bias(size, torch.float32).double()  # its own rounding is another matter, see below
    exact = attention(q.double(), k.double(), v.double(), bias, fused=False)
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_bias_is_the_logarithm_to_the_accuracy_of_its_dtype(dtype):
    """Sizes are float32, which holds them exactly; their logarithm in float64 is that of float64."""
    size = torch.arange(1, 4000, dtype=torch.float32)[None]
    exact = torch.tensor([math.log(n) for n in range(1, 4000)], dtype=torch.float64)
    bias = size_bias(size, dtype)
    assert bias.dtype == dtype and bias.shape == (1, 1, 1, 3999)
    torch.testing.assert_close(bias[0, 0, 0].double(), exact, rtol=torch.finfo(dtype).eps, atol=0)


def test_dropout_is_applied():
    """Attention dropout zeroes weights: with probability 1 - 1e-9 the output changes, and 0.0 is exact."""
    q, k, v = heads(1, 1, 30, 4, 0, torch.float32)
    for fused in (True, False):
        torch.manual_seed(0)
        assert not torch.allclose(attention(q, k, v, dropout=0.5, fused=fused), attention(q, k, v))
        torch.testing.assert_close(attention(q, k, v, dropout=0.0, fused=fused), attention(q, k, v))
