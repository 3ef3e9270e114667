"""Laws of token graphs, Laplacians, coarsening, lifting and the spectral distance."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pitome_core as pc
from pitome_core.spectral import coarsen, inside_shares, laplacian, lift, spectrum, token_graph

KINDS = ("normalized", "combinatorial")


def gaussian_tokens(n, c, seed, batch=1) -> torch.Tensor:
    return torch.randn(batch, n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_roots(n: int, kept: int, seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    stay = rng.permutation(n)[:kept].tolist()
    return [i if i in stay else int(rng.choice(stay)) for i in range(n)]


def plan_of(roots) -> pc.MergePlan:
    return pc.MergePlan.from_roots(torch.tensor([roots]))


def clusters(counts, noise: float, seed: int, width: int = 64) -> torch.Tensor:
    """Tokens around orthonormal centres, (1, sum counts, width)."""
    centres = torch.eye(width, dtype=torch.float64)[: len(counts)]
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return (centres[labels] + noise * gaussian_tokens(len(labels), width, seed)[0] / width**0.5)[None]


cases = st.tuples(st.integers(2, 10), st.integers(1, 10), st.integers(0, 2**31))


@given(case=cases, kind=st.sampled_from(KINDS), reduce=st.sampled_from(["mean", "sum"]))
def test_everything_equals_the_loops(case, kind, reduce):
    """Graph, Laplacians, coarsening, lifting and distance equal their definitions entry by entry."""
    n, kept, seed = case[0], min(case[0], case[1]), case[2]
    metric, roots = gaussian_tokens(n, 5, seed), random_roots(n, kept, seed)
    plan, weights = plan_of(roots), token_graph(metric)
    assert weights.dtype == torch.float64 and weights.diagonal(dim1=-2, dim2=-1).abs().max() < 1e-12
    np.testing.assert_allclose(weights[0].numpy(), oracle.token_graph(metric[0]), atol=1e-12)
    np.testing.assert_allclose(laplacian(weights, kind)[0].numpy(), oracle.laplacian(weights[0], kind), atol=1e-10)
    np.testing.assert_allclose(
        coarsen(weights, plan, reduce)[0].numpy(), oracle.coarsen(weights[0], roots, reduce), rtol=1e-9, atol=1e-10
    )
    lifted = lift(coarsen(weights, plan), plan)
    np.testing.assert_allclose(lifted[0].numpy(), oracle.lift(weights[0], roots), rtol=1e-9, atol=1e-10)
    shares = inside_shares(weights, plan)[0].numpy()
    np.testing.assert_allclose(shares, oracle.inside_shares(weights[0], roots), atol=1e-10)
    if len(set(roots)) > 1:
        expected = oracle.spectral_distance(weights[0], roots, kind)
        for got in (
            pc.spectral_distance(metric, plan, laplacian=kind),
            pc.spectral_distance(weights=weights, plan=plan, laplacian=kind),
        ):
            assert got.shape == (1,) and got.item() == pytest.approx(expected, rel=1e-7, abs=1e-8)


@given(case=cases)
def test_laplacians_have_their_null_vectors(case):
    """L annihilates constants, Ln annihilates the square roots of the degrees; both are positive semi-definite."""
    weights = token_graph(gaussian_tokens(case[0], 5, case[2]))
    combinatorial, normalized = laplacian(weights, "combinatorial")[0], laplacian(weights, "normalized")[0]
    assert (combinatorial @ torch.ones(case[0], dtype=torch.float64)).abs().max() < 1e-10
    assert (normalized @ weights[0].sum(-1).sqrt()).abs().max() < 1e-10
    assert torch.linalg.eigvalsh(combinatorial)[0] > -1e-9 and torch.linalg.eigvalsh(normalized)[0] > -1e-9


@given(case=cases)
def test_lifted_spectrum_is_the_summed_coarse_one_plus_ones(case):
    """Lemma 1: the lifted normalized spectrum is that of the coarse graph with summed weights, plus 1, N - n times."""
    n, kept = case[0], min(case[0], max(2, case[1]))
    roots = random_roots(n, kept, case[2])
    plan, weights = plan_of(roots), token_graph(gaussian_tokens(n, 5, case[2]))
    lifted = spectrum(lift(coarsen(weights, plan), plan))[0]
    coarse = spectrum(coarsen(weights, plan, "sum"))[0]
    expected = torch.cat([coarse, torch.ones(n - plan.num_tokens, dtype=torch.float64)]).sort().values
    torch.testing.assert_close(lifted, expected, rtol=0, atol=1e-10)


@given(case=cases, shift=st.floats(0, 20))
def test_normalized_distance_is_the_share_of_degrees_inside_groups(case, shift):
    """On graphs of 1 - cos every eigenvalue of Ln falls or stays, and SD is the sum of W(V, V) / vol(V)."""
    n, kept, seed = case[0], min(case[0], case[1]), case[2]
    metric = gaussian_tokens(n, 4, seed) + shift * gaussian_tokens(1, 4, seed + 1)
    plan, weights = plan_of(random_roots(n, kept, seed)), token_graph(metric)
    change = spectrum(weights) - spectrum(lift(coarsen(weights, plan), plan))
    assert change.min() > -1e-10
    torch.testing.assert_close(
        pc.spectral_distance(metric, plan), inside_shares(weights, plan).sum(-1), rtol=1e-7, atol=1e-10
    )


@given(case=cases, data=st.data())
def test_a_zero_vector_is_a_direction_of_its_own(case, data):
    """The closed form holds with zero vectors; each adds at most one eigenvalue above 1, as a channel does."""
    n, kept, seed, channels = case[0], min(case[0], case[1]), case[2], 2
    zero = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    metric = gaussian_tokens(n, channels, seed).masked_fill(zero[:, None], 0.0)
    own = torch.cat([metric, torch.diag(zero.double())[None]], dim=-1)
    plan, weights = plan_of(random_roots(n, kept, seed)), token_graph(metric)
    torch.testing.assert_close(weights, token_graph(own), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        pc.spectral_distance(metric, plan), inside_shares(weights, plan).sum(-1), rtol=1e-7, atol=1e-10
    )
    assert (spectrum(weights) > 1 + 1e-9).sum() <= channels + zero.sum()


def test_a_zero_vector_with_a_weight_to_itself_breaks_the_closed_form():
    """1 - cos would be 1 there, because the cosine is 0. And no merge of two zero vectors is free."""
    metric, plan = gaussian_tokens(6, 3, 0), plan_of([0, 0, 2, 2, 4, 5])
    metric[0, 1] = 0
    weights = token_graph(metric)
    assert weights[0, 1].tolist() == [1, 0, 1, 1, 1, 1]
    weights[0, 1, 1] = 1
    gap = pc.spectral_distance(weights=weights, plan=plan) - inside_shares(weights, plan).sum(-1)
    assert gap.abs().item() > 0.05
    zeros = torch.zeros(1, 4, 1, dtype=torch.float64)
    assert pc.spectral_distance(zeros, plan_of([0, 0, 2, 3])).item() == pytest.approx(1 / 3)


def test_the_closed_form_needs_a_graph_of_distances():
    """A similarity graph has other signs: there the identity fails, so it is not applied to weights of unknown kind."""
    metric, plan = gaussian_tokens(8, 5, 0), plan_of(random_roots(8, 4, 0))
    weights = (2.0 - token_graph(metric)).square()
    weights = weights.masked_fill(torch.eye(8, dtype=torch.bool), 0.0)
    gap = pc.spectral_distance(weights=weights, plan=plan) - inside_shares(weights, plan).sum(-1)
    assert gap.abs().item() > 1e-3


@given(case=cases)
def test_bounds_of_the_book_hold(case):
    """book/theorem.md: SD <= k delta / d_min; on L, SD <= sqrt(h) (sqrt(t) |sum x| + 2 sqrt(N))."""
    n, kept, seed = case[0], min(case[0], max(2, case[1])), case[2]
    metric, roots = gaussian_tokens(n, 5, seed), random_roots(n, kept, seed)
    plan, weights = plan_of(roots), token_graph(metric)
    same = plan.assignment[0][:, None] == plan.assignment[0]
    farthest = weights[0].masked_fill(~same, 0).max()
    removed = n - plan.num_tokens
    assert pc.spectral_distance(metric, plan) <= removed * farthest / weights.sum(-1).min() + 1e-9
    unit = metric[0] / metric[0].norm(dim=-1, keepdim=True)
    scatter = (unit - plan.unmerge(plan.merge(unit[None])[0])[0]).norm()
    touched = (plan.sizes[0] > 1)[plan.assignment[0]].sum()
    bound = scatter * (touched.sqrt() * unit.sum(0).norm() + 2 * n**0.5)
    assert pc.spectral_distance(metric, plan, laplacian="combinatorial") <= bound + 1e-9


def test_exact_for_a_thousand_tokens():
    """1,024 tokens: eigenvalues and closed form agree to rounding."""
    metric = gaussian_tokens(1024, 16, 0)
    plan = pc.plan(metric, 200, margin=0.5)
    torch.testing.assert_close(
        pc.spectral_distance(metric, plan), inside_shares(token_graph(metric), plan).sum(-1), rtol=1e-9, atol=1e-9
    )


def test_items_with_fewer_groups_have_padded_slots():
    """Groups are counted per item: a padded slot changes nothing, and nothing is NaN."""
    metric, roots = gaussian_tokens(6, 4, 0, batch=2), [[0, 0, 2, 2, 4, 5], [0, 0, 0, 0, 4, 4]]
    together = pc.MergePlan.from_roots(torch.tensor(roots))
    assert together.valid is not None
    alone = [pc.spectral_distance(metric[i : i + 1], plan_of(roots[i])) for i in range(2)]
    torch.testing.assert_close(pc.spectral_distance(metric, together), torch.cat(alone))
    assert inside_shares(token_graph(metric), together)[1, 2:].tolist() == [0, 0]


def test_averaged_weights_break_lemma_1():
    """With averages and unequal groups the lemma fails visibly; with equal groups it holds."""

    def mismatch(counts):
        roots = [first for first, n in zip(np.cumsum([0, *counts[:-1]]), counts, strict=True) for _ in range(n)]
        plan, weights = plan_of([int(r) for r in roots]), token_graph(gaussian_tokens(sum(counts), 6, 0))
        lifted = torch.linalg.eigvalsh(laplacian(lift(coarsen(weights, plan), plan))[0])
        coarse = torch.linalg.eigvalsh(laplacian(coarsen(weights, plan, "mean"))[0])
        ones = torch.ones(sum(counts) - len(counts), dtype=torch.float64)
        return (lifted - torch.cat([coarse, ones]).sort().values).abs().max().item()

    assert mismatch((6, 3, 2, 1)) > 1e-3 and mismatch((3, 3, 3, 3)) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_no_merge_no_distance(kind):
    """The identity plan changes no spectrum, and neither does merging exact duplicates."""
    metric = gaussian_tokens(9, 5, 0)
    assert pc.spectral_distance(metric, pc.MergePlan.identity(1, 9), laplacian=kind).item() < 1e-9
    doubled = torch.cat([metric, metric], dim=1)
    plan = plan_of([*range(9), *range(9)])
    assert pc.spectral_distance(doubled, plan, laplacian=kind).item() < 1e-5
    assert pc.spectral_distance(doubled, plan_of([*range(17), 0]), laplacian=kind).item() > 1e-3


@given(case=cases, kind=st.sampled_from(KINDS))
def test_distance_ignores_the_order_of_tokens(case, kind):
    """Relabelling tokens together with their plan changes no distance."""
    n, roots = case[0], random_roots(case[0], max(2, min(case[0], case[1])), case[2])
    metric, order = gaussian_tokens(n, 5, case[2]), np.random.default_rng(case[2]).permutation(n)
    place = {int(old): new for new, old in enumerate(order)}
    permuted = plan_of([place[roots[old]] for old in order])
    torch.testing.assert_close(
        pc.spectral_distance(metric[:, order], permuted, laplacian=kind),
        pc.spectral_distance(metric, plan_of(roots), laplacian=kind),
        rtol=1e-7,
        atol=1e-8,
    )


def test_normalized_distance_is_scale_free_and_the_other_is_not():
    """Scaling all weights leaves SD on Ln alone and scales SD on L."""
    weights, plan = token_graph(gaussian_tokens(8, 5, 0)), plan_of(random_roots(8, 4, 0))
    for kind, factor in (("normalized", 1.0), ("combinatorial", 3.0)):
        torch.testing.assert_close(
            pc.spectral_distance(weights=3 * weights, plan=plan, laplacian=kind),
            factor * pc.spectral_distance(weights=weights, plan=plan, laplacian=kind),
        )


def test_each_item_of_a_batch_has_its_own_distance():
    """Distances are per item: a batch equals its items."""
    metric = gaussian_tokens(10, 5, 0, batch=3)
    together = pc.spectral_distance(metric, pc.plan(metric, 4, margin=0.3))
    for item in range(3):
        alone = metric[item : item + 1]
        torch.testing.assert_close(
            together[item : item + 1], pc.spectral_distance(alone, pc.plan(alone, 4, margin=0.3))
        )


def test_theorem_1_in_its_own_setting():
    """Tight clusters of different sizes: SD(PiToMe) falls with the noise, ToMe's in an adversarial order stays."""
    counts = (12, 8, 6, 4, 2)
    distances = {"pitome": [], "tome": []}
    for noise in (0.1, 0.01):
        metric = clusters(counts, noise, 0)
        order = list(range(32))  # the largest cluster on even places only: no partner of its own kind on the odd side
        evens, rest = order[:12], order[12:]
        mixed = [None] * 32
        mixed[0:24:2] = evens
        for place in range(32):
            if mixed[place] is None:
                mixed[place] = rest.pop(0)
        metric = metric[:, mixed]
        for method, values in distances.items():
            values.append(pc.spectral_distance(metric, pc.plan(metric, 8, method, margin=0.5)).item())
    assert distances["pitome"][0] < 0.02 and distances["pitome"][1] < distances["pitome"][0] / 5
    assert distances["tome"][1] > 10 * distances["pitome"][1]


def test_degree_zero_is_guarded():
    """A graph of equal tokens has no edges: Laplacians and distances stay finite."""
    metric = torch.ones(1, 6, 3, dtype=torch.float64)
    for kind in KINDS:
        assert torch.isfinite(laplacian(token_graph(metric), kind)).all()
        assert pc.spectral_distance(metric, pc.plan(metric, 3), laplacian=kind).item() < 1e-12
    assert inside_shares(token_graph(metric), pc.plan(metric, 3)).tolist() == [[0, 0, 0]]


BAD = {
    "neither graph nor metric": lambda m, p: pc.spectral_distance(plan=p),
    "both": lambda m, p: pc.spectral_distance(m, p, weights=token_graph(m)),
    "no plan": lambda m, p: pc.spectral_distance(m),
    "unknown Laplacian": lambda m, p: pc.spectral_distance(m, p, laplacian="random-walk"),
    "unknown reduction": lambda m, p: coarsen(token_graph(m), p, "max"),
    "a plan of another length": lambda m, p: pc.spectral_distance(m[:, :5], p),
    "a metric without batch": lambda m, p: pc.spectral_distance(m[0], p),
    "a metric passed as weights": lambda m, p: pc.spectral_distance(weights=m, plan=p),
    "weights that are not symmetric": lambda m, p: pc.spectral_distance(weights=token_graph(m).triu(), plan=p),
    "negative weights": lambda m, p: pc.spectral_distance(weights=-token_graph(m), plan=p),
    "pruning": lambda m, p: pc.spectral_distance(
        m, pc.MergePlan.from_roots(torch.tensor([[0, 1, 2, -1, 4, 5]]), drops=True)
    ),
    "no partition": lambda m, p: pc.spectral_distance(m, pc.LinearPlan(torch.eye(6), torch.eye(6))),
}


@pytest.mark.parametrize("case", list(BAD))
def test_errors(case):
    """What has no spectral distance says so."""
    with pytest.raises((ValueError, TypeError)):
        BAD[case](gaussian_tokens(6, 4, 0), plan_of([0, 0, 2, 2, 4, 5]))
