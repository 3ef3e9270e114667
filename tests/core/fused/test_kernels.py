"""The fused kernels against the float64 oracle and the torch path, in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os

import hypothesis
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from near_ties import near_tie, steepness
from oracle import gaussian_tokens

import pitome_core as pc
from pitome_core.attention import size_bias

pytest.importorskip("triton")
op = pytest.importorskip("pitome_core.fused.operators")
launch = pytest.importorskip("pitome_core.fused.launch")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FUZZ = "PITOME_EXAMPLES" in os.environ  # `make fuzz`
MANY = int(os.environ.get("PITOME_EXAMPLES", "4"))
KERNELS = ("paper", "elu", "gaussian")
LARGE = pytest.mark.skipif(not FUZZ, reason="minutes in the interpreter: run by `make fuzz`")


def pitome(x: torch.Tensor, k: int, margin=0.3, alpha=1.0, kernel="paper", *, concat=False, centred=False):
    return op.pairs_by_energy(x.to(DEVICE), k, concat, centred, kernel, margin, alpha, 2 * k, False, False)


def roots(source: torch.Tensor, target: torch.Tensor, n: int) -> list[list[int]]:
    return torch.arange(n).repeat(len(source), 1).scatter(1, source.cpu(), target.cpu()).tolist()


def check(found: tuple, plan: pc.MergePlan, expected, item: int) -> bool:
    """Whether one item has the pairs of the torch path, in their order, and the groups of the oracle."""
    source, target = (pair[item].cpu() for pair in found)
    if source.numel() and not (torch.equal(source, plan.pairs[0][item]) and torch.equal(target, plan.pairs[1][item])):
        return False
    return roots(source[None], target[None], plan.shape[1])[0] == expected


def check_pitome(x: torch.Tensor, k: int, margin=0.3, kernel="paper", alpha=1.0, exact=False) -> None:
    """An item has the pairs of the oracle and of the torch path, or it has a near-tie (`exact`: it has none)."""
    source, target, energy = pitome(x, k, margin, alpha, kernel)
    plan = pc.plan(x, k, margin=margin, kernel=kernel, alpha=alpha)
    for item in range(x.shape[0]):
        expected = torch.from_numpy(oracle.energies(x[item], margin, alpha, kernel))
        near = torch.allclose(energy[item].cpu().double(), expected, atol=2e-6 * steepness(kernel, margin), rtol=0)
        same = check((source, target), plan, oracle.pitome_roots(x[item], k, margin, alpha, kernel), item)
        assert (near and same) or not exact and near_tie(x[item], "pitome", margin, alpha, kernel)


def check_tome(x: torch.Tensor, k: int, parity="patches", exact=False) -> None:
    found = op.pairs_by_place(x.to(DEVICE), k, False, False, parity == "all")
    plan = pc.plan(x, k, "tome", parity=parity)
    for item in range(x.shape[0]):
        same = check(found, plan, oracle.tome_roots(x[item], k, parity), item)
        assert same or not exact and near_tie(x[item], "tome")


# --------------------------------------------------------------------------------------------------------- one by one
@pytest.mark.parametrize(("heads", "dtype"), [(1, torch.float32), (3, torch.float16), (3, torch.bfloat16)])
@pytest.mark.parametrize("kind", ["keys", "concat", "hidden", "keys-centred", "concat-centred", "hidden-centred"])
def test_metric(kind, dtype, heads):
    """Unit tokens of every metric in every type, from views with strides, behind a prefix."""
    from pitome_core.energy import unit_tokens
    from pitome_core.merge_step import layer_metric

    keys = torch.randn(2, 7, heads, 5, generator=torch.Generator().manual_seed(heads)).to(dtype).transpose(1, 2)
    x = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(0)).to(dtype)[..., ::2]
    expected, _ = unit_tokens(layer_metric(kind, x, keys, 1))
    base, _, centred = kind.partition("-")
    read = x[:, 1:] if base == "hidden" else keys[:, :, 1:]
    unit = launch.unit_tokens(read.to(DEVICE), base == "concat", bool(centred)).cpu()
    assert unit.dtype == torch.float32
    # A mean that is rounded to half precision may round to the neighbour.
    slack = 2e-2 if centred and base != "keys" and dtype != torch.float32 else 1e-6
    assert torch.allclose(unit, expected, atol=slack)


def test_metric_of_hard_vectors():
    """Zero, huge, tiny, NaN and infinite vectors."""
    x = torch.tensor([[[0.0, 0.0], [3e38, -3e38], [1e-41, 1e-41], [float("nan"), 1.0], [float("inf"), 1.0]]])
    unit = launch.unit_tokens(x.to(DEVICE)).cpu()[0]
    half = 0.5**0.5
    assert torch.allclose(unit[:3], torch.tensor([[0.0, 0.0], [half, -half], [half, half]]), atol=1e-6)
    assert bool(unit[3:].isnan().all())


@pytest.mark.parametrize("kernel", KERNELS)
def test_energy_with_a_mask(kernel):
    """Padding is not summed over, and has energy -inf."""
    x = gaussian_tokens(3, 35, 6, 0, torch.float32)
    mask = torch.rand(3, 35, generator=torch.Generator().manual_seed(1)) > 0.3
    energy = launch.energies(launch.unit_tokens(x.to(DEVICE)), 0.4, 0.7, kernel, mask.to(DEVICE)).cpu()
    assert torch.allclose(energy, pc.energy_score(x, 0.4, 0.7, kernel, mask), atol=1e-6)
    assert bool((energy[~mask] == -float("inf")).all())


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 130])
def test_ranks_are_those_of_a_stable_sort(n):
    value = torch.randint(0, 9, (3, n), generator=torch.Generator().manual_seed(n)).float()
    value[0, ::3] = -float("inf")
    order = launch.descending(value.to(DEVICE)).cpu()
    assert torch.equal(order.long(), value.argsort(dim=1, descending=True, stable=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bias_of_sizes(dtype):
    size = torch.tensor([[1.0, 2.0, 0.0, 7.0]])
    # Logarithms of two libraries differ in their last bit on some processors.
    torch.testing.assert_close(op.log_sizes(size.to(DEVICE), dtype).cpu(), size_bias(size, dtype)[:, 0, 0])


# -------------------------------------------------------------------------------------------------- the table
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 16, 49])
def test_plans_of_few_tokens(n, batch):
    x = gaussian_tokens(batch, n, 8, n, torch.float32)
    k = n // 2 if n < 16 else n // 3
    check_pitome(x, k)
    if n > 1:
        check_tome(x, k)


@pytest.mark.parametrize(("kernel", "dtype"), [("elu", torch.float16), ("gaussian", torch.bfloat16)])
def test_plans_of_half_precision(kernel, dtype):
    check_pitome(gaussian_tokens(1, 33, 8, 5).to(dtype), 9, 0.2, kernel)


@pytest.mark.parametrize("n", [196, 197, 256])
def test_plans_of_images(n):
    x = gaussian_tokens(1, n, 16, n, torch.float32)
    check_pitome(x, n // 10, 0.45)
    check_tome(x, n // 10)


@LARGE
@pytest.mark.hypothesis
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("n", [196, 197, 256, 577, 1024])
def test_plans_of_many_tokens(n, kernel):
    x = gaussian_tokens(3, n, 64, n, torch.float32)
    check_pitome(x, n // 10, 0.2, kernel)
    check_pitome(x, n // 2, 0.2, kernel)
    check_tome(x, n // 10)


def one_hot(batch: int, n: int, kinds: int, seed: int) -> torch.Tensor:
    """Tokens with cosines 0 and 1. At margin 0 their energies are whole shares of N, so that ties are exact."""
    numbers = torch.randint(0, kinds, (batch, n), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.one_hot(numbers, kinds).float()


@pytest.mark.parametrize("k", [1, 20])
def test_exact_ties_go_to_the_first(k):
    x = one_hot(2, 40, 4, k)
    x[:, 7] = 0.0  # a zero vector has cosine 0 with every token
    check_pitome(x, k, 0.0, exact=True)
    check_tome(x, k, exact=True)


@pytest.mark.gpu
def test_equal_tokens_have_equal_energies():
    """Copies of random tokens at far places: the sums of their rows agree to the last bit.

    On a GPU, because the interpreter takes its products from the processor's matrix library, which rounds by place.
    """
    x = gaussian_tokens(1, 20, 48, 3, torch.float32).repeat(1, 5, 1)
    _, _, energy = pitome(x, 10)
    assert torch.equal(energy.view(5, 20), energy.view(5, 20)[:1].expand(5, 20))


@pytest.mark.parametrize("method", ["pitome", "tome"])
def test_broken_tokens_rank_last(method):
    """Tokens with NaN merge only when no others are left: the same pairs as in a model on the torch path."""
    from pitome_core.mergers import find_method, make_plan

    x = gaussian_tokens(2, 20, 8, 2, torch.float32)
    x[0, [3, 4, 10]], x[1, 8, 2] = float("nan"), float("inf")
    for k in (4, 10):
        plan = make_plan(find_method(method), x, k, {"margin": 0.3, "layer": 0}, {})
        found = pitome(x, k)[:2] if method == "pitome" else op.pairs_by_place(x.to(DEVICE), k, False, False, False)
        assert [pair.tolist() for pair in found] == [pair.tolist() for pair in plan.pairs]


# -------------------------------------------------------------------------------------------------------------- merge
def random_pairs(batch: int, n: int, k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """k sources of each item, and for each a target among few tokens that stay."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(n, generator=generator) for _ in range(batch)])
    return order[:, :k], order[:, k : k + max(1, k // 3)].gather(
        1, torch.randint(0, max(1, min(k // 3, n - k)), (batch, k), generator=generator)
    )


@pytest.mark.parametrize(
    ("n", "k", "prefix", "dtype", "sized"),
    [(2, 1, 0, torch.float32, False), (3, 1, 1, torch.float32, True), (16, 8, 0, torch.bfloat16, True),
     (49, 40, 1, torch.float32, True), (50, 5, 4, torch.float16, False)],
)
def test_merge(n, k, prefix, dtype, sized):
    """Tokens and sizes of the torch path, from a view with strides; the prefix passes unchanged."""
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(2, 20, n + prefix, generator=generator).to(dtype).transpose(1, 2)
    size = torch.randint(1, 9, (2, n + prefix), generator=generator).float() if sized else None
    source, target = random_pairs(2, n, k, n)
    plan = pc.MergePlan.from_merges(source, target, n)
    expected, sizes = plan.merge(x, size, prefix=prefix)
    there = [None if value is None else value.to(DEVICE) for value in (x, size, source, target)]
    out, out_size = op.merge_pairs(*there, prefix, True)
    assert out.dtype == dtype and torch.equal(out_size.cpu(), sizes)
    assert torch.allclose(out.cpu().float(), expected.float(), rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-6)
    assert torch.equal(out[:, :prefix].cpu(), x[:, :prefix])
    plain, counted = op.merge_pairs(*there, prefix, False)
    assert torch.equal(counted, out_size)
    assert torch.allclose(plain.cpu().float(), plan.merge(x, prefix=prefix)[0].float(), rtol=1e-2, atol=1e-5)


def test_a_broken_token_stays_in_its_group():
    x = torch.randn(1, 12, 4, generator=torch.Generator().manual_seed(0))
    x[0, 3] = float("nan")
    source, target = torch.tensor([[3, 5]]), torch.tensor([[1, 0]])
    out, _ = op.merge_pairs(x.to(DEVICE), None, source.to(DEVICE), target.to(DEVICE), 0, True)
    assert out.isnan().any(dim=2).nonzero().tolist() == [[0, 1]]


@pytest.mark.parametrize("weighted", [True, False])
def test_gradient_of_the_merge(weighted):
    """The backward of the operator is that of the torch path."""
    generator = torch.Generator().manual_seed(4)
    x, size = torch.randn(2, 11, 3, generator=generator), torch.randint(1, 5, (2, 11), generator=generator).float()
    source, target = random_pairs(2, 10, 6, 0)
    weight = torch.randn(2, 5, 3, generator=generator)
    one, two = x.clone().requires_grad_(), x.clone().to(DEVICE).requires_grad_()
    plan = pc.MergePlan.from_merges(source, target, 10)
    (plan.merge(one, size if weighted else None, prefix=1)[0] * weight).sum().backward()
    out, sizes = op.merge_pairs(two, size.to(DEVICE), source.to(DEVICE), target.to(DEVICE), 1, weighted)
    assert not sizes.requires_grad
    (out * weight.to(DEVICE)).sum().backward()
    assert torch.allclose(two.grad.cpu(), one.grad, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- chance
@hypothesis.settings(max_examples=MANY, phases=[phase for phase in hypothesis.Phase if phase.name != "shrink"])
@given(n=st.integers(1, 40), c=st.integers(1, 40), seed=st.integers(0, 2**31), share=st.floats(0, 1),
       margin=st.floats(0, 0.95), kernel=st.sampled_from(KERNELS), parity=st.sampled_from(["patches", "all"]))
def test_random_cases(n, c, seed, share, margin, kernel, parity):
    """Five items in each example, two of them with exact ties: `make fuzz` tries 2,000 examples, 10,000 items."""
    k, ties = round(share * (n // 2)), one_hot(2, n, min(c, 7), seed)
    check_pitome(gaussian_tokens(3, n, c, seed, torch.float32), k, margin, kernel)
    check_pitome(ties, k, 0.0, exact=True)
    if n > 1:
        check_tome(gaussian_tokens(3, n, c, seed, torch.float32), k, parity)
        check_tome(ties, k, parity, exact=True)
