"""Laws of the cosine graph, the energy score and the margin schedule."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import gaussian_tokens

import pitome_core as pc
from pitome_core.energy import cosine_graph, next_below

KERNELS = ("paper", "elu", "gaussian")
ANGLES = (0, 4, 9, 15, 90, 97, 180, 230, 300, 41)
PAPER_HALF = (0.289142, 0.246669, 0.254276, 0.260759, -0.045598, -0.077715, -0.350894, -0.351458, -0.168650, 0.352766)
ELU_HALF = (-0.010858, -0.003331, 0.004276, 0.010759, -0.195598, -0.227715, -0.450894, -0.451458, -0.268650, 0.002766)
GOLDEN_ORDERS = {
    ("paper", 0.5): (9, 0, 3, 2, 1, 4, 5, 8, 6, 7),
    ("elu", 0.5): (3, 2, 9, 1, 0, 4, 5, 8, 6, 7),
    ("paper", 0.9): (3, 2, 1, 0, 9, 4, 5, 8, 6, 7),
    ("elu", 0.9): (3, 2, 1, 0, 9, 4, 5, 8, 6, 7),
    ("gaussian", 0.9): (3, 2, 1, 0, 9, 4, 5, 7, 6, 8),
}


def circle() -> torch.Tensor:
    """The ten golden 2-D unit tokens, (1, 10, 2) float64."""
    angle = torch.tensor(ANGLES, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], dim=-1)[None]


@pytest.mark.parametrize(("kernel", "expected"), [("paper", PAPER_HALF), ("elu", ELU_HALF)])
def test_golden_energies(kernel, expected):
    """Ten tokens on a circle have the published energies at margin 0.5."""
    np.testing.assert_allclose(pc.energy_score(circle(), 0.5, kernel=kernel)[0].numpy(), expected, atol=5.1e-7)
    np.testing.assert_allclose(oracle.energies(circle()[0], 0.5, kernel=kernel), expected, atol=5.1e-7)


@pytest.mark.parametrize(("kernel", "margin"), list(GOLDEN_ORDERS))
def test_golden_orders(kernel, margin):
    """Ten tokens on a circle rank as published, from most to least redundant."""
    energy = pc.energy_score(circle(), margin, kernel=kernel)[0]
    assert tuple(energy.argsort(descending=True, stable=True).tolist()) == GOLDEN_ORDERS[kernel, margin]


@given(
    batch=st.integers(1, 3),
    n=st.integers(1, 17),
    c=st.integers(1, 9),
    seed=st.integers(0, 2**31),
    margin=st.floats(-0.95, 0.95),
    alpha=st.floats(0.1, 3),
    kernel=st.sampled_from(KERNELS),
)
def test_energy_equals_the_loop(batch, n, c, seed, margin, alpha, kernel):
    """Energies equal eq. 4 summed pair by pair, for every shape, margin, alpha and kernel."""
    metric = gaussian_tokens(batch, n, max(c, 2), seed)
    energy = pc.energy_score(metric, margin, alpha=alpha, kernel=kernel)
    assert energy.shape == (batch, n) and energy.dtype == torch.float64
    for item in range(batch):
        np.testing.assert_allclose(
            energy[item].numpy(), oracle.energies(metric[item], margin, alpha, kernel), rtol=1e-9, atol=1e-11
        )


@given(
    n=st.integers(1, 14),
    seed=st.integers(0, 2**31),
    margin=st.floats(-0.5, 0.9),
    kernel=st.sampled_from(KERNELS),
    data=st.data(),
)
def test_padding_takes_no_part(n, seed, margin, kernel, data):
    """A padded item has the energies it has alone, wherever the padding stands and whatever it holds; padding -inf."""
    padding = data.draw(st.integers(0, 5))
    places = data.draw(st.permutations(range(n + padding)))[:n]
    mask = torch.zeros(1, n + padding, dtype=torch.bool)
    mask[0, list(places)] = True
    metric = gaussian_tokens(1, n + padding, 5, seed)
    metric[~mask] = data.draw(st.sampled_from([0.0, 1.0, 1e30, math.nan, math.inf]))
    energy = pc.energy_score(metric, margin, kernel=kernel, mask=mask)
    alone = pc.energy_score(metric[mask][None], margin, kernel=kernel)
    torch.testing.assert_close(energy[mask], alone[0], rtol=1e-9, atol=1e-12)
    assert torch.isneginf(energy[~mask]).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_zero_vectors_have_cosine_zero(kernel):
    """A zero token has cosine 0 to every token, itself included, and a finite energy f(0)."""
    metric = gaussian_tokens(1, 7, 4, 0)
    metric[0, 2] = 0
    energy = pc.energy_score(metric, 0.5, kernel=kernel)[0]
    np.testing.assert_allclose(energy.numpy(), oracle.energies(metric[0], 0.5, kernel=kernel), rtol=1e-9, atol=1e-12)
    assert energy[2].item() == pytest.approx(oracle.kernel_value(0.0, 0.5, kernel=kernel), abs=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_tokens_rank_last_and_contaminate_nobody(kernel, bad):
    """A token with a NaN or infinity has energy -inf; to the others it is a token at cosine 0."""
    metric = gaussian_tokens(2, 9, 4, 1)
    metric[0, 5, 2] = bad
    energy = pc.energy_score(metric, 0.5, kernel=kernel)
    for item in range(2):
        np.testing.assert_allclose(
            energy[item].numpy(), oracle.energies(metric[item], 0.5, kernel=kernel), rtol=1e-9, atol=1e-12
        )
    assert torch.isneginf(energy[0, 5]) and torch.isfinite(energy).sum() == 17


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("magnitude", [1e-2, 1.0, 200.0])
@pytest.mark.parametrize("kernel", KERNELS)
def test_half_precision_scores_in_float32(dtype, magnitude, kernel):
    """Energies are float32 and accurate for low-precision metrics, large norms included (no overflow of squares)."""
    metric = (gaussian_tokens(2, 31, 64, 3) * magnitude).to(dtype)
    energy = pc.energy_score(metric, 0.3, kernel=kernel)
    assert energy.dtype == torch.float32
    for item in range(2):
        np.testing.assert_allclose(
            energy[item].numpy(), oracle.energies(metric[item], 0.3, kernel=kernel), rtol=2e-5, atol=2e-6
        )


@given(seed=st.integers(0, 2**31), kernel=st.sampled_from(KERNELS))
def test_energy_sees_directions_only(seed, kernel):
    """Scaling any token by a positive number changes no energy (power-of-two scales: no rounding at all)."""
    metric = gaussian_tokens(1, 8, 5, seed)
    scale = 2.0 ** torch.randint(-9, 10, (1, 8, 1), generator=torch.Generator().manual_seed(seed)).double()
    torch.testing.assert_close(
        pc.energy_score(metric * scale, 0.4, kernel=kernel),
        pc.energy_score(metric, 0.4, kernel=kernel),
        rtol=0,
        atol=1e-13,
    )


@given(seed=st.integers(0, 2**31), n=st.integers(2, 12), kernel=st.sampled_from(KERNELS))
def test_energy_is_permutation_equivariant(seed, n, kernel):
    """Permuting the tokens permutes the energies."""
    metric = gaussian_tokens(1, n, 5, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        pc.energy_score(metric[:, order], 0.4, kernel=kernel),
        pc.energy_score(metric, 0.4, kernel=kernel)[:, order],
        rtol=1e-12,
        atol=1e-13,
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_energy_takes_views(kernel):
    """Non-contiguous metrics (transposed, strided, expanded) score as their contiguous copies."""
    base = gaussian_tokens(3, 20, 6, 5)
    for view in (base.transpose(0, 1)[:5], base[:, ::3], base.transpose(1, 2), base[:1].expand(4, -1, -1)):
        torch.testing.assert_close(
            pc.energy_score(view, 0.4, kernel=kernel), pc.energy_score(view.contiguous(), 0.4, kernel=kernel)
        )


def test_larger_clusters_have_higher_energy():
    """Under tight clusters, the energy orders tokens by the size of their cluster (A3 of Theorem 1)."""
    centres = torch.eye(4, dtype=torch.float64)
    metric = torch.cat([centres[i : i + 1].expand(n, -1) for i, n in enumerate((6, 4, 2, 1))])[None]
    metric = metric + 1e-3 * gaussian_tokens(1, 13, 4, 7)
    for kernel in KERNELS:
        energy = pc.energy_score(metric, 0.5, kernel=kernel)[0]
        assert energy[:6].min() > energy[6:10].max() > energy[10:12].max() > energy[12]


def clusters(sizes, centres, noise, seed):
    """Tokens (1, sum of sizes, C) around unit centres, and which cluster each is of."""
    label = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    centres = torch.as_tensor(centres, dtype=torch.float64)
    return (centres[label] + noise * gaussian_tokens(1, len(label), centres.shape[1], seed)[0])[None], label


def sizes_order_energies(metric, label, sizes, margin):
    """For every pair of clusters for which the condition of book/theorem.md holds, but for the sign of the margin.

    Whether all cosines across are below the margin, and whether the energies are in the order of the sizes.
    """
    cos, same = cosine_graph(metric)[0], label[:, None] == label
    energy, delta = pc.energy_score(metric, margin)[0], 1 - cos[same].min().item()
    low, high = cos[~same].min().item(), cos[~same].max().item()
    f_low, f_high = (oracle.kernel_value(x, margin) for x in (low, high))
    for c, larger in enumerate(sizes):
        for d, smaller in enumerate(sizes):
            left, right = (larger - smaller) * (1 - f_high), (len(label) - larger) * (f_high - f_low)
            if larger > smaller and margin <= 1 - delta and left > right + (larger - 1) * delta + 1e-9:
                yield high < margin, bool(energy[label == c].min() > energy[label == d].max())


def test_the_condition_on_sizes_orders_energies():
    """No exception with a margin of 0 or more, nor with all cosines across below a margin of either sign."""
    generator, seen = np.random.default_rng(0), {}
    simplex = np.eye(3) - 1 / 3
    for trial in range(600):
        sizes = generator.integers(1, 9, size=3).tolist()
        near_ends, common = simplex + 0.02 * generator.normal(size=(3, 3)), generator.uniform(0, 1)
        centres = (near_ends, near_ends + common, generator.normal(size=(3, 4)))[trial % 3]
        centres = centres / np.linalg.norm(centres, axis=1, keepdims=True)
        margin = generator.uniform(-0.6, 0.9)
        metric, label = clusters(sizes, centres, 10.0 ** generator.uniform(-4, -1), trial)
        for below, ordered in sizes_order_energies(metric, label, sizes, margin):
            seen.setdefault((margin >= 0, below), []).append(ordered)
    for case in ((True, True), (True, False), (False, True)):
        assert len(seen[case]) > 40 and all(seen[case])


def test_the_condition_on_sizes_needs_a_margin_of_zero_or_more():
    """The example of book/theorem.md: f_m jumps down at m = -0.5, and a pair has more energy than three tokens."""
    between = {(0, 2): -0.47, (1, 2): -0.51, (0, 1): -0.505}
    gram = np.eye(3)
    for (i, j), cosine in between.items():
        gram[i, j] = gram[j, i] = cosine
    values, vectors = np.linalg.eigh(gram)
    centres = vectors * np.sqrt(values)
    metric, label = clusters((3, 2, 4), centres, 0, 0)
    energy = pc.energy_score(metric, -0.5)[0]
    assert energy[label == 1].min() > energy[label == 0].max()
    assert (False, False) in list(sizes_order_energies(metric, label, (3, 2, 4), -0.5))
    assert all(ordered for _, ordered in sizes_order_energies(metric, label, (3, 2, 4), 0.0))


@given(margin=st.floats(-2, 2) | st.sampled_from([0.0, -0.0, 0.5, 0.25, 0.9, 0.1, -0.5, 1.0, 1.5, -1.0, 800.0, -800.0]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cosine_at_the_margin_is_within(margin, dtype):
    """x > next_below(m) is x >= m for the numbers around m, also where m is no number of that dtype."""
    cosines = [torch.tensor(margin, dtype=dtype)]
    for towards in (-math.inf, math.inf):
        cosine = cosines[0]
        for _ in range(3):
            cosine = torch.nextafter(cosine, torch.tensor(towards, dtype=dtype))
            cosines.append(cosine)
    cosines = torch.stack(cosines)
    threshold = next_below(margin, dtype)
    nearest, lower = cosines[:2]
    assert threshold == (nearest if nearest.item() < margin else lower).item(), "torch.nextafter says so, too"
    assert torch.tensor(threshold, dtype=dtype).item() == threshold, "the kernel compares in the dtype of the cosines"
    within = torch.nn.functional.threshold(cosines, threshold, -9e9) != -9e9
    assert within.tolist() == [float(cosine) >= margin for cosine in cosines.double()]


@pytest.mark.parametrize("margin", [-800.0, 800.0, -2.0, 2.0])
def test_margins_beyond_all_cosines(margin):
    """Below every cosine the energy is their mean; above all of them it is alpha (exp(x - m) - 1)."""
    metric = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cos = cosine_graph(metric)
    expected = cos if margin < 0 else 0.5 * torch.expm1(cos - margin)
    torch.testing.assert_close(pc.energy_score(metric, margin, alpha=0.5), expected.mean(dim=-1))


def test_energy_carries_no_gradient_trouble():
    """Scoring tokens that require grad works and leaves their gradient graph alone."""
    metric = gaussian_tokens(1, 6, 3, 0).requires_grad_()
    energy = pc.energy_score(metric, 0.5)
    np.testing.assert_allclose(energy.detach()[0].numpy(), oracle.energies(metric[0], 0.5), rtol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
def test_energies_have_a_gradient(kernel):
    metric = gaussian_tokens(2, 5, 3, 0).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda metric: pc.energy_score(metric, 0.3, 0.5, kernel), metric)


def test_energy_errors_name_the_remedy():
    """An unknown kernel names the three; the Gaussian needs a margin below 1."""
    metric = gaussian_tokens(1, 4, 3, 0)
    with pytest.raises(ValueError, match="(?s)paper.*elu.*gaussian"):
        pc.energy_score(metric, 0.5, kernel="cosine")
    for margin in (1.0, 1.5):
        with pytest.raises(ValueError, match="margin"):
            pc.energy_score(metric, margin, kernel="gaussian")


def test_energy_in_blocks_equals_energy_at_once():
    """Where cosines come by blocks of rows, duplicates of one set keep that set's energies."""
    metric = gaussian_tokens(1, 600, 4, 2, torch.float32)
    few = pc.energy_score(metric.double(), 0.5)
    many = pc.energy_score(metric.repeat(1, 7, 1), 0.5)  # 4,200 tokens: every mean is over 7 copies of the same values
    torch.testing.assert_close(many.double(), few.repeat(1, 7), rtol=1e-3, atol=1e-4)


@given(num_layers=st.integers(1, 48), base=st.floats(0, 1))
def test_margin_schedule_is_the_formula(num_layers, base):
    """m_l = base - base l / L: starts at the base, falls linearly, never reaches zero (unless base is 0)."""
    schedule = pc.margin_schedule(num_layers, base)
    assert all(isinstance(margin, float) for margin in schedule)
    np.testing.assert_allclose(schedule, oracle.margins(num_layers, base), rtol=1e-12, atol=1e-15)


def test_margin_schedule_golden():
    """Twelve layers from 0.9 in steps of 0.075."""
    np.testing.assert_allclose(pc.margin_schedule(12), [0.9 - 0.075 * layer for layer in range(12)], atol=1e-12)


def test_the_oracle_can_fail():
    """The comparison notices a kernel that is off by one constant."""
    metric = gaussian_tokens(1, 9, 4, 0)
    wrong = pc.energy_score(metric, 0.5, kernel="elu")[0].numpy()
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(wrong, oracle.energies(metric[0], 0.5, kernel="paper"), rtol=1e-9)
