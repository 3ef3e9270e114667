"""Exact ties: equal tokens have exactly equal scores, so that place, batch and padding decide nothing.

On a CPU with MKL the laws hold to the last bit. They are about ties, because without them any rounding gives the same
plan.
"""

from __future__ import annotations

import math

import oracle
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracle import gaussian_tokens

import pitome_core as pc
import pitome_core.experiments.baselines
from pitome_core.energy import _elu, dot_products
from pitome_core.mergers import make_plan

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="other libraries may round by place")

KERNELS = ("paper", "elu", "gaussian")
ARMS = {
    "pitome": ("pitome", {}),
    "elu": ("pitome", {"kernel": "elu"}),
    "elu, other alpha": ("pitome", {"kernel": "elu", "alpha": 0.7}),
    "gaussian": ("pitome", {"kernel": "gaussian"}),
    "shuffled": ("pitome", {"score": "shuffled"}),
    "attention": ("pitome", {"score": "attention"}),
    "best edges": ("pitome", {"edges": "best"}),
    "high and low": ("pitome", {"split": "high_low", "kernel": "elu"}),
    "by position": ("pitome", {"split": "position", "edges": "best", "protection": False}),
    "random split": ("pitome", {"split": "random"}),
    "mctf, larger powers": ("mctf", {"t_sim": 0.7, "t_info": 1.0, "t_size": 1.0}),
    **{name: (name, {}) for name in ("tome", "tofu", "crossget", "mctf", "diffrate", "atc", "evit", "topk_attention")},
}
# The shapes at which the arithmetic changes lie below 16 tokens, and everywhere in float64.
TOKENS = st.integers(5, 30) | st.integers(5, 200)
CHANNELS = st.integers(2, 70) | st.sampled_from([16, 32, 64])


def tied_tokens(seed: int, batch: int, n: int, c: int, dtype: torch.dtype) -> torch.Tensor:
    """Tokens `(B, N, C)` with exact ties: copies of a few directions, of one-hot tokens or of tokens of -1, 0, 1."""
    draw = torch.Generator().manual_seed(seed)
    kinds = max(2, n // (2 + seed % 4))
    which = torch.randint(0, kinds, (batch, n), generator=draw)
    pool = (gaussian_tokens(1, kinds, c, seed)[0], torch.eye(max(kinds, c))[:kinds, :c].double(),
            torch.randint(-1, 2, (kinds, c), generator=draw).double())[seed % 3]
    return pool[which].to(dtype)


def context(seed: int, batch: int, n: int) -> dict:
    """What a layer knows, with ties: sizes of 1 to 3, attention of four levels or the same to all tokens."""
    draw = torch.Generator().manual_seed(seed + 1)
    attention = torch.randint(1, 5, (batch, n + 1, n), generator=draw).float() / (4 * n)
    if seed % 5 > 1:
        attention = attention[:, :, :1].repeat(1, 1, n)
    return {"margin": (0.9, 0.5, 0.2, 0.0)[seed % 4], "size": torch.randint(1, 4, (batch, n), generator=draw).float(),
            "layer": 1, "num_layers": 2, "attention": attention, "class_attention": attention[:, 0]}


def of_item(known: dict, item: int, real: torch.Tensor) -> dict:
    """The context of the tokens of one item that are `real (N,)`, on its own."""
    attention = known["attention"][item][F.pad(real, (1, 0), value=True)][:, real][None]
    return known | {"size": known["size"][item, real][None], "attention": attention, "class_attention": attention[:, 0]}


def assert_same_plan(plan, item: int, alone, real: torch.Tensor) -> None:
    """The plan of the item in a batch is the plan that its `real (N,)` tokens have alone, energies to the last bit."""
    assert torch.equal(plan.assignment[item, real], alone.assignment[0])
    assert torch.equal(plan.anchored[item, real], alone.anchored[0])
    if plan.energy is not None:
        assert torch.equal(plan.energy[item, real], alone.energy[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [5, 16, 29, 64])
def test_a_dot_product_depends_on_its_two_tokens_alone(dtype, channels):
    """Wherever two tokens stand, in matrices of all shapes, with strides or without, their product is one number."""
    x, y = gaussian_tokens(1, 2, channels, channels, dtype).split(1, dim=1)
    number = dot_products(x, y).item()
    assert number == pytest.approx((x * y).sum().item(), rel=1e-5)
    shapes = [(1, n, n) for n in range(1, 131)]
    shapes += [(batch, p, q) for batch in (1, 2, 5) for p in (1, 7, 40) for q in (3, 61, 300)]
    for batch, p, q in shapes:
        rows, columns = x.expand(batch, p, -1).contiguous(), y.expand(batch, q, -1).contiguous()
        assert dot_products(rows, columns).unique().tolist() == [number], (batch, p, q)
        assert dot_products(columns[:, ::2], rows[:, 1::2]).unique().tolist() in ([number], []), (batch, p, q)
    assert dot_products(x[:0], y[:0]).shape == (0, 1, 1) and dot_products(x[:, :0], y).shape == (1, 0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.5])
def test_elu_is_one_function_of_a_cosine(dtype, alpha):
    """The kernel of a number is the same at every place in tensors of all lengths, and it is that of PyTorch."""
    for cosine in torch.linspace(-1, 1, 41, dtype=dtype):
        values = [_elu(cosine.repeat(n), 0.4, alpha) for n in range(1, 40)]
        assert torch.cat(values).unique().numel() == 1
        assert values[0].item() == pytest.approx(F.elu(cosine - 0.4, alpha).item(), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
@given(seed=st.integers(0, 2**31), n=TOKENS, c=CHANNELS, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_equal_tokens_have_equal_energies(kernel, seed, n, c, dtype):
    """Copies of a token have its energy to the last bit, and whole rows of copies keep raster order."""
    metric = tied_tokens(seed, 2, n, c, dtype)
    energy = pc.energy_score(metric, (0.9, 0.4, 0.0)[seed % 3], kernel=kernel)
    for tokens, values in zip(metric, energy, strict=True):
        copies = (tokens[:, None] == tokens).all(dim=-1)
        assert (values.expand(n, n)[copies] == values[:, None].expand(n, n)[copies]).all()


@pytest.mark.parametrize("arm", list(ARMS))
@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(2, 4),
    n=TOKENS,
    c=CHANNELS,
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    share=st.floats(0.05, 0.5),
)
def test_an_image_has_one_plan_alone_and_in_a_batch(arm, seed, batch, n, c, dtype, share):
    """Every image of a batch has the plan and the energies that it has alone, for every method and kernel."""
    name, options = ARMS[arm]
    method, metric, known = pc.methods()[name], tied_tokens(seed, batch, n, c, dtype), context(seed, batch, n)
    k, every = max(1, int(share * n)), torch.ones(n, dtype=torch.bool)
    plan = make_plan(method, metric, k, known, options)
    for item in range(batch):
        alone = make_plan(method, metric[item : item + 1].clone(), k, of_item(known, item, every), options)
        assert_same_plan(plan, item, alone, every)


@pytest.mark.parametrize("arm", list(ARMS))
@given(
    seed=st.integers(0, 2**31),
    n=TOKENS,
    c=CHANNELS,
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    padding=st.integers(1, 40),
    where=st.sampled_from(["front", "middle", "back", "anywhere"]),
    held=st.sampled_from([0.0, 1.0, math.nan]),
)
def test_padding_changes_no_plan(arm, seed, n, c, dtype, padding, where, held):
    """Items of three lengths padded to one width have the plans and the energies that they have without padding."""
    name, options = ARMS[arm]
    width, draw = n + padding, torch.Generator().manual_seed(seed)
    lengths = [n, max(4, n - padding), n - n % 3]
    place = torch.arange(width)
    order = {"back": place, "front": place.flip(0), "middle": (place + n // 2) % width,
             "anywhere": torch.randperm(width, generator=draw)}[where]
    mask = torch.stack([order < length for length in lengths])
    method, metric, known = pc.methods()[name], tied_tokens(seed, 3, width, c, dtype), context(seed, 3, width)
    remove = torch.tensor([1 + seed % (length // 2) for length in lengths])
    padded = metric.masked_fill(~mask[..., None], held)
    plan = make_plan(method, padded, remove, known | {"mask": mask}, options)
    for item, real in enumerate(mask):
        k = int(remove[item])
        alone = make_plan(method, metric[item, real][None], k, of_item(known, item, real), options)
        assert_same_plan(plan, item, alone, real)


@pytest.mark.parametrize("kernel", KERNELS)
@given(seed=st.integers(0, 2**31), n=TOKENS, c=CHANNELS, padding=st.integers(1, 40))
def test_padding_changes_no_energy(kernel, seed, n, c, padding):
    """`energy_score` with padding anywhere gives the numbers that the tokens have without it, to the last bit."""
    metric = tied_tokens(seed, 2, n + padding, c, torch.float32)
    mask = torch.stack([torch.randperm(n + padding, generator=torch.Generator().manual_seed(seed + i)) < n
                        for i in range(2)])
    energy = pc.energy_score(metric, 0.5, kernel=kernel, mask=mask)
    for item, real in enumerate(mask):
        alone = pc.energy_score(metric[item, real][None], 0.5, kernel=kernel)
        assert torch.equal(energy[item, real], alone[0]) and torch.isneginf(energy[item, ~real]).all()


def test_masked_energies_without_numbers_to_read():
    """An empty batch, and items that `torch.vmap` maps over, have energies with a mask, too."""
    metric, mask = gaussian_tokens(3, 9, 5, 0), torch.arange(9) < torch.tensor([[9], [4], [6]])
    assert pc.energy_score(metric[:0], 0.5, mask=mask[:0]).shape == (0, 9)
    mapped = torch.vmap(lambda x, real: pc.energy_score(x[None], 0.5, mask=real[None])[0])(metric, mask)
    torch.testing.assert_close(mapped, pc.energy_score(metric, 0.5, mask=mask))


@pytest.mark.parametrize("kernel", KERNELS)
def test_blocks_of_rows_give_the_energies_of_the_whole(kernel):
    """Where cosines come in blocks of rows, of which the last one is small, copies still have equal energies."""
    few = tied_tokens(3, 1, 33, 24, torch.float32)
    tokens = few[0, torch.arange(1025) % 33][None]  # blocks of 511, 511 and 3 rows
    energy = pc.energy_score(tokens, 0.5, kernel=kernel)[0]
    for copies in energy.split(33):
        assert torch.equal(copies, energy[: len(copies)])


def test_ties_go_to_the_first_token():
    """Of tokens that are all equal, raster order alone makes the plan: that of the loop on exact numbers."""
    for n in (5, 9, 16, 31, 130):
        metric = gaussian_tokens(1, 1, 21, n, torch.float32).expand(2, n, 21)
        plan = pc.plan(metric, n // 4)
        pairs = [(2 * i, 1) for i in range(n // 4)]
        roots = [dict(pairs).get(i, i) for i in range(n)]
        assert oracle.plan_roots(plan) == [roots, roots]


def test_the_comparison_can_fail():
    """A plan of other tokens is not the same plan, and an energy that is off by one bit is noticed."""
    metric, every = gaussian_tokens(1, 12, 8, 0), torch.ones(12, dtype=torch.bool)
    plan, other = pc.plan(metric, 3), pc.plan(metric.flip(1), 3)
    assert_same_plan(plan, 0, pc.plan(metric.clone(), 3), every)
    for wrong in (other, plan.settled(energy=torch.nextafter(plan.energy, plan.energy + 1))):
        with pytest.raises(AssertionError):
            assert_same_plan(plan, 0, wrong, every)
