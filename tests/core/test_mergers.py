"""Laws of the matching methods: PiToMe, ToMe, the random controls, the registry."""

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
import pitome_core.experiments.baselines

CORE = ("pitome", "tome")
CONTROLS = ("random_prune", "random_merge")
ANGLES = (0, 4, 9, 15, 90, 97, 180, 230, 300, 41)
KERNELS = ("paper", "elu", "gaussian")


def circle() -> torch.Tensor:
    angle = torch.tensor(ANGLES, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], dim=-1)[None]


def one_hot_tokens(seed: int, n: int, kinds: int, dtype=torch.float64) -> torch.Tensor:
    """Tokens with exactly equal cosines everywhere: n one-hot (or minus one-hot) vectors of `kinds` directions."""
    rng = np.random.default_rng(seed)
    rows = np.eye(kinds)[rng.integers(0, kinds, n)] * rng.choice([-1.0, 1.0], (n, 1))
    return torch.from_numpy(rows)[None].to(dtype)


def as_sets(plan, item=0) -> set[frozenset[int]]:
    return {frozenset(group) for group in oracle.groups(oracle.plan_roots(plan)[item])}


# -------------------------------------------------------------------------------------------------- golden and oracle
def test_golden_groups():
    """The ten golden tokens fall into the published groups, for PiToMe (ELU energy, margin 0.5) and for ToMe."""
    pitome = pc.plan(circle(), 3, "pitome", margin=0.5, kernel="elu")
    assert as_sets(pitome) == {frozenset(g) for g in ([5], [8], [6], [7], [2, 3, 9], [0, 1], [4])}
    tome = pc.plan(circle(), 3, "tome")
    assert as_sets(tome) == {frozenset(g) for g in ([6], [8], [0, 1, 2], [3], [4, 5], [7], [9])}


@given(n=st.integers(1, 19), seed=st.integers(0, 2**31), share=st.floats(0, 1), tied=st.booleans())
def test_tome_counts_a_class_token_if_asked_to(n, seed, share, tied):
    """`parity="all"` gives the matching of the whole sequence, in which a class token stands in front and stays."""
    metric, k = one_hot_tokens(seed, n, 3) if tied else gaussian_tokens(1, n, 6, seed), round(share * (n // 2))
    roots = oracle.plan_roots(pc.plan(metric, k, "tome", parity="all"))[0]
    assert roots == oracle.tome_roots(metric[0], k, "all")
    # The same from the whole sequence: positions 0, 2, .. are A, and the class token at position 0 has no edge.
    cos = np.full((n + 1, n + 1), -np.inf)
    cos[1:, 1:] = oracle.cosine(metric[0])
    partner = {a: max(range(1, n + 1, 2), key=lambda b, a=a: cos[a, b]) for a in range(2, n + 1, 2)}
    chosen = sorted(partner, key=lambda a: -cos[a, partner[a]])[:k]
    assert roots == [partner[i + 1] - 1 if i + 1 in chosen else i for i in range(n)]


def test_parity_counts_from_the_front_of_every_item():
    """With padding the items are as they are alone; the two parities differ; an unknown one is named."""
    metric, lengths = gaussian_tokens(3, 12, 5, 0), (12, 7, 4)
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    k = torch.tensor([5, 3, 2])
    plan = pc.plan(metric, k, "tome", mask=mask, parity="all")
    for item, length in enumerate(lengths):
        alone = pc.plan(metric[item : item + 1, :length], int(k[item]), "tome", parity="all")
        assert plan.assignment[item, :length].tolist() == alone.assignment[0].tolist()
    ours, theirs = (pc.plan(metric, 4, "tome", parity=parity) for parity in ("patches", "all"))
    assert not torch.equal(ours.assignment, theirs.assignment)
    assert torch.equal(ours.assignment, pc.plan(metric, 4, "tome").assignment), "the default"
    with pytest.raises(ValueError, match="unknown parity 'odd': choose one of patches, all"):
        pc.plan(metric, 2, "tome", parity="odd")


@given(
    batch=st.integers(1, 3),
    n=st.integers(1, 19),
    seed=st.integers(0, 2**31),
    share=st.floats(0, 1),
    margin=st.floats(-0.9, 0.95),
    kernel=st.sampled_from(KERNELS),
    method=st.sampled_from(CORE),
)
def test_plans_equal_the_loop(batch, n, seed, share, margin, kernel, method):
    """Both core methods give the reference's partition: odd and even N, k from 0 to the maximum, every kernel."""
    metric, k = gaussian_tokens(batch, n, 6, seed), round(share * (n // 2))
    options = {"kernel": kernel} if method == "pitome" else {}
    plan = pc.plan(metric, k, method, margin=margin, **options)
    oracle.check_partition(plan, n, n - k)
    for item in range(batch):
        roots = oracle.roots_of(method, metric[item], k, margin, **options)
        assert plan.assignment[item].tolist() == oracle.assignment(roots)
        if n > 2:  # two tokens have equal energies in exact arithmetic: which one stays is a matter of rounding
            assert plan.anchor[item].tolist() == oracle.anchors(roots)


@pytest.mark.parametrize("method", CORE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("n", "kinds"), [(8, 2), (13, 3), (16, 4), (9, 1), (24, 24)])
def test_exact_ties_break_by_order(method, dtype, n, kinds):
    """Equal energies keep raster order, equal cosines pick the first partner: same in every dtype (exact values)."""
    for seed in range(6):
        metric = one_hot_tokens(seed, n, kinds, dtype)
        for k in (1, n // 4, n // 2):
            plan = pc.plan(metric, k, method, margin=-1.0)
            assert oracle.plan_roots(plan)[0] == oracle.roots_of(method, metric[0], k, -1.0)


@pytest.mark.parametrize("n", [2, 7, 64, 197])
def test_all_tokens_equal(n):
    """With every token the same, raster order decides alone: 1 takes 0, 2, 4 ... in both methods."""
    metric = torch.ones(1, n, 4)
    for method in CORE:
        roots = oracle.plan_roots(pc.plan(metric, n // 2, method))[0]
        assert [i for i in range(n) if roots[i] != i] == list(range(0, 2 * (n // 2), 2))
        assert {roots[i] for i in range(n) if roots[i] != i} == {1}


@given(n=st.integers(3, 16), seed=st.integers(0, 2**31), share=st.floats(0, 1), margin=st.floats(-0.5, 0.9))
def test_pitome_is_permutation_equivariant(n, seed, share, margin):
    """Permuting the tokens permutes PiToMe's groups (its order is the energy's, not the raster's)."""
    metric, k = gaussian_tokens(1, n, 6, seed), round(share * (n // 2))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    roots = oracle.plan_roots(pc.plan(metric, k, margin=margin))[0]
    permuted = oracle.plan_roots(pc.plan(metric[:, order], k, margin=margin))[0]
    for new, old in enumerate(order.tolist()):
        assert order[permuted[new]].item() == roots[old]


def test_tome_depends_on_the_order():
    """The permutation law is no tautology: ToMe, whose split is by position, breaks it."""
    metric = gaussian_tokens(1, 12, 6, 0)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    roots = oracle.plan_roots(pc.plan(metric, 4, "tome"))[0]
    permuted = oracle.plan_roots(pc.plan(metric[:, order], 4, "tome"))[0]
    assert any(order[permuted[new]].item() != roots[old] for new, old in enumerate(order.tolist()))


@given(n=st.integers(3, 16), seed=st.integers(0, 2**31), share=st.floats(0, 1))
def test_protected_tokens_stay_alone(n, seed, share):
    """The N - 2k tokens of lowest energy are alone in their group and nobody joins them."""
    metric, k = gaussian_tokens(1, n, 6, seed), round(share * (n // 2))
    plan = pc.plan(metric, k, margin=0.5)
    energy = pc.energy_score(metric, 0.5)[0]
    protected = energy.argsort(descending=True, stable=True)[2 * k :].tolist()
    counts = plan.sizes[0][plan.assignment[0]]
    assert counts[protected].eq(1).all()
    if k:
        torch.testing.assert_close(plan.energy[0], energy)


def test_pitome_prefers_clusters_and_protects_the_rest():
    """Six look-alikes among four others: exactly look-alikes merge, and never with one of the others."""
    centre = gaussian_tokens(1, 1, 32, 0)
    metric = torch.cat([centre + 0.05 * gaussian_tokens(1, 6, 32, 1), gaussian_tokens(1, 4, 32, 2)], dim=1)
    roots = oracle.plan_roots(pc.plan(metric, 3, margin=0.5))[0]
    assert roots[6:] == [6, 7, 8, 9] and all(root < 6 for root in roots[:6])


# ---------------------------------------------------------------------------------------------------------- shapes
@pytest.mark.parametrize("method", CORE + CONTROLS)
@pytest.mark.parametrize("n", [1, 2, 3, 8, 17])
def test_counts_at_both_ends(method, n):
    """k = 0 is the identity, k at the maximum works: N // 2 for bipartite methods, N - 1 for the controls."""
    metric = gaussian_tokens(2, n, 5, 0)
    nothing = pc.plan(metric, 0, method)
    assert nothing.assignment.tolist() == [list(range(n))] * 2 and nothing.num_tokens == n
    most = n // 2 if method in CORE else n - 1
    assert pc.plan(metric, most, method).num_tokens == n - most


@pytest.mark.parametrize("method", CORE + CONTROLS)
def test_more_than_the_maximum_raises(method):
    """Beyond the maximum a plan raises, with the number asked, the number there, the maximum and the remedy."""
    limit = 98 if method in CORE else 195
    with pytest.raises(ValueError) as caught:
        pc.plan(torch.randn(1, 196, 4), limit + 22, method)
    assert all(number in str(caught.value) for number in (str(limit + 22), "196", str(limit))), str(caught.value)
    with pytest.raises(ValueError):
        pc.plan(torch.randn(1, 196, 4), limit + 1, method)
    with pytest.raises(ValueError, match="-1"):
        pc.plan(torch.randn(1, 196, 4), -1, method)


def test_the_papers_example_of_a_helpful_error():
    """120 of 196 is refused with all three numbers and advice."""
    with pytest.raises(ValueError, match="(?s)120.*196.*98.*keep"):
        pc.plan(torch.randn(1, 196, 4), 120)


@pytest.mark.parametrize("method", CORE + CONTROLS)
def test_views_plan_as_copies(method):
    """Non-contiguous metrics give the plan of their contiguous copies."""
    base = gaussian_tokens(20, 3, 12, 0)
    view = base.transpose(0, 1)[..., ::2]
    assert not view.is_contiguous()
    assert torch.equal(pc.plan(view, 7, method).assignment, pc.plan(view.contiguous(), 7, method).assignment)


@pytest.mark.parametrize("method", CORE + CONTROLS)
def test_items_of_a_batch_do_not_see_each_other(method):
    """An item's plan is the same alone and in a batch."""
    metric = gaussian_tokens(4, 15, 6, 0)
    together = pc.plan(metric, 5, method)
    for item in range(4):
        alone = pc.plan(metric[item : item + 1], 5, method)
        assert together.assignment[item].tolist() == alone.assignment[0].tolist()


@pytest.mark.parametrize("method", CORE + CONTROLS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_plans_are_those_of_float32(method, dtype):
    """A half-precision metric is scored in float32: same plan as the same values in float32."""
    metric = (gaussian_tokens(2, 33, 16, 0) * 40).to(dtype)
    assert torch.equal(pc.plan(metric, 9, method).assignment, pc.plan(metric.float(), 9, method).assignment)


@pytest.mark.parametrize("method", CORE)
def test_planning_needs_no_grad_and_touches_no_generator(method):
    """Selection runs without grad, leaves the metric alone and never draws from the global generator."""
    metric = gaussian_tokens(1, 10, 4, 0).requires_grad_()
    before, state = metric.detach().clone(), torch.get_rng_state()
    plan = pc.plan(metric, 4, method)
    assert plan.energy is None or not plan.energy.requires_grad
    assert torch.equal(metric.detach(), before) and torch.equal(torch.get_rng_state(), state)


# --------------------------------------------------------------------------------------------------------- padding
@given(data=st.data(), seed=st.integers(0, 2**31), method=st.sampled_from(CORE + CONTROLS), batch=st.integers(1, 3))
def test_padding_never_changes_a_result(data, seed, method, batch):
    """Every padded item has the plan it has alone: own length, own k, padding anywhere, any garbage in it."""
    width = data.draw(st.integers(2, 14))
    lengths = [data.draw(st.integers(1, width)) for _ in range(batch)]
    places = [sorted(data.draw(st.permutations(range(width)))[:n]) for n in lengths]
    remove = [data.draw(st.integers(0, n // 2 if method in CORE else n - 1)) for n in lengths]
    mask = torch.zeros(batch, width, dtype=torch.bool)
    for item, real in enumerate(places):
        mask[item, real] = True
    metric = gaussian_tokens(batch, width, 6, seed)
    metric[~mask] = data.draw(st.sampled_from([0.0, 5.0, math.nan]))
    plan = pc.plan(metric, torch.tensor(remove), method, margin=0.5, mask=mask)
    x = gaussian_tokens(batch, width, 3, seed + 1)
    merged, sizes = plan.merge(x)
    valid = torch.ones(merged.shape[:2], dtype=torch.bool) if plan.valid is None else plan.valid
    assert plan.num_tokens == max(n - k for n, k in zip(lengths, remove, strict=True))
    for item, real in enumerate(places):
        alone = pc.plan(metric[item, real][None], remove[item], method, margin=0.5)
        expected = [-1] * width
        for i, root in zip(real, oracle.plan_roots(alone)[0], strict=True):
            expected[i] = real[root] if root >= 0 else -1
        assert oracle.plan_roots(plan)[item] == expected
        value, size = alone.merge(x[item, real][None])
        torch.testing.assert_close(merged[item][valid[item]], value[0], rtol=1e-12, atol=1e-13)
        assert sizes[item][valid[item]].tolist() == size[0].tolist()


@pytest.mark.parametrize("method", CORE + CONTROLS)
@pytest.mark.parametrize("seed", range(8))
def test_large_padded_batches_equal_their_items(method, seed):
    """Eight items of very different lengths and counts, to the limit of each, plan as each does alone."""
    rng = np.random.default_rng(seed)
    metric = gaussian_tokens(8, 40, 5, seed)
    mask = torch.from_numpy(rng.random((8, 40)) < rng.uniform(0.1, 1, (8, 1)))
    mask[:, 17] = True
    metric[~mask] = metric[0, 17].clone()  # padding that looks like a real token would be a tempting partner
    lengths = mask.sum(1).tolist()
    most = [n // 2 if method in CORE else n - 1 for n in lengths]
    remove = [int(rng.integers(0, m + 1)) for m in most]
    remove[seed] = most[seed]
    plan = pc.plan(metric, torch.tensor(remove), method, margin=0.2, mask=mask)
    for item in range(8):
        real = mask[item].nonzero().flatten().tolist()
        alone = pc.plan(metric[item, real][None], remove[item], method, margin=0.2)
        roots = [real[root] if root >= 0 else -1 for root in oracle.plan_roots(alone)[0]]
        assert [oracle.plan_roots(plan)[item][i] for i in real] == roots
        assert plan.assignment[item][~mask[item]].eq(-1).all()


@pytest.mark.parametrize("method", CORE + CONTROLS)
def test_one_count_for_all_items_may_have_a_mask_too(method):
    """An int with a mask is that count for every item."""
    metric, mask = gaussian_tokens(3, 10, 6, 0), torch.ones(3, 10, dtype=torch.bool)
    mask[0, 7:], mask[1, ::4] = False, False
    one = pc.plan(metric, 3, method, mask=mask)
    each = pc.plan(metric, torch.tensor([3, 3, 3]), method, mask=mask)
    assert oracle.plan_roots(one) == oracle.plan_roots(each) and torch.equal(one.valid, each.valid)


@pytest.mark.parametrize("kernel", ["paper", "elu", "gaussian"])
@pytest.mark.parametrize("masked", [False, True])
def test_plans_of_very_many_tokens_are_made_in_blocks(monkeypatch, masked, kernel):
    """Where the similarity matrix is not built at once, energies and plans are the same."""
    from pitome_core import energy

    metric, mask = gaussian_tokens(2, 23, 6, 0), torch.ones(2, 23, dtype=torch.bool)
    mask[0, ::3] = False
    arguments = dict(margin=0.3, kernel=kernel) | (dict(mask=mask) if masked else {})
    remove = torch.tensor([6, 9]) if masked else 9
    dense = pc.plan(metric, remove, **arguments)
    monkeypatch.setattr(energy, "_rows_at_once", lambda *_: 5)
    assert energy.energy_and_cosine(metric, 0.3)[2] is None
    blocked = pc.plan(metric, remove, **arguments)
    assert torch.equal(blocked.assignment, dense.assignment)
    torch.testing.assert_close(blocked.energy, dense.energy)


def test_removal_per_item_needs_a_mask():
    """A tensor of removals without a mask is refused."""
    with pytest.raises(ValueError, match="mask"):
        pc.plan(torch.randn(2, 8, 4), torch.tensor([2, 3]))


def test_removal_beyond_one_items_maximum_raises():
    """The maximum is each item's own: 3 of 4 real tokens is too many in a batch of width 8."""
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[1, 4:] = False
    with pytest.raises(ValueError, match="(?s)3.*4"):
        pc.plan(torch.randn(2, 8, 4), torch.tensor([3, 3]), mask=mask)


# --------------------------------------------------------------------------------------------------------- bad values
@pytest.mark.parametrize("method", CORE)
def test_non_finite_metric_is_refused_by_plan(method):
    """Called directly, a plan from NaN or infinity raises."""
    for bad in (math.nan, math.inf):
        metric = torch.randn(1, 6, 3)
        metric[0, 2, 1] = bad
        with pytest.raises(ValueError, match="(?i)finite|nan"):
            pc.plan(metric, 2, method)


@pytest.mark.parametrize("method", CORE)
def test_zero_vectors_follow_the_rule(method):
    """Zero tokens have cosine 0 to all and are planned like any other."""
    metric = gaussian_tokens(1, 11, 5, 0)
    metric[0, [1, 4, 8]] = 0
    for k in range(6):
        assert oracle.plan_roots(pc.plan(metric, k, method, margin=0.5))[0] == oracle.roots_of(
            method, metric[0], k, 0.5
        )


# --------------------------------------------------------------------------------------------------------- controls
@pytest.mark.parametrize("method", CONTROLS)
def test_controls_are_seeded_and_layered(method):
    """Same seed and layer, same choice for every item and metric; another seed or layer, another choice."""
    first = pc.plan(gaussian_tokens(3, 40, 4, 0), 12, method)
    again = pc.plan(gaussian_tokens(3, 40, 4, 9), 12, method)
    assert torch.equal(first.assignment, again.assignment)
    assert torch.equal(first.assignment, first.assignment[:1].expand(3, -1))
    other = pc.plan(gaussian_tokens(3, 40, 4, 0), 12, method, seed=1)
    assert not torch.equal(first.assignment, other.assignment)
    # the layer comes from the context of a model; a direct caller may name it too
    layered = pc.methods()[method].function(gaussian_tokens(1, 40, 4, 0), 12, layer=3)
    assert layered.assignment.tolist() != first.assignment[:1].tolist()


def test_random_prune_drops_and_random_merge_keeps_everything():
    """Pruning removes k tokens and leaves sizes at 1; merging keeps every token in exactly one group."""
    metric, x = gaussian_tokens(2, 30, 4, 0), gaussian_tokens(2, 30, 3, 1)
    pruned = pc.plan(metric, 11, "random_prune")
    assert (pruned.assignment < 0).sum(1).tolist() == [11, 11] and pruned.drops
    assert pruned.sizes.eq(1).all() and torch.equal(pruned.merge(x)[0][0], x[0, pruned.anchor[0]])
    merged = pc.plan(metric, 11, "random_merge")
    oracle.check_partition(merged, 30, 19)
    assert merged.sizes.sum(1).tolist() == [30, 30]


def test_random_choice_is_spread():
    """Over many seeds every token is dropped about equally often: the hash has no favourite place."""
    metric, drops = torch.randn(1, 50, 2), torch.zeros(50)
    for seed in range(200):
        drops += pc.plan(metric, 10, "random_prune", seed=seed).assignment[0] < 0
    assert drops.sum() == 2000 and drops.min() > 15 and drops.max() < 70  # mean 40, standard deviation 5.7


# ---------------------------------------------------------------------------------------------------------- registry
def test_methods_describe_themselves():
    """Every registered method says what it is, where it is from, what it can remove and what it is given."""
    methods = pc.methods()
    assert {"pitome", "tome", "random_prune", "random_merge"} <= set(methods)
    for name, method in methods.items():
        assert method.name == name and method.summary and method.paper and method.limit in ("half", "all")
        known = {"margin", "size", "mask", "layer", "num_layers", "attention", "class_attention", "positions"}
        assert set(method.needs) <= known
        assert not method.function.__module__.startswith("pitome_core") or method.scaling, name
    assert methods["pitome"].partition and methods["tome"].partition
    assert "margin" in methods["pitome"].needs and {"kernel", "alpha"} <= set(methods["pitome"].options)
    assert "layer" in methods["random_prune"].needs and "seed" in methods["random_prune"].options


def test_methods_returns_a_copy():
    """Editing the returned table does not edit the registry."""
    pc.methods().clear()
    assert "pitome" in pc.methods()


def test_unknown_names_are_explained():
    """An unknown method lists the registered ones and where more are; an unknown option lists the allowed."""
    with pytest.raises(ValueError, match="(?s)pitome.*tome|tome.*pitome") as caught:
        pc.plan(torch.randn(1, 6, 3), 2, "pitomme")
    assert "pitomme" in str(caught.value)
    with pytest.raises(TypeError, match="(?s)kernl.*(kernel|alpha)"):
        pc.plan(torch.randn(1, 6, 3), 2, "pitome", kernl="elu")
    with pytest.raises(TypeError, match="kernel"):
        pc.plan(torch.randn(1, 6, 3), 2, "tome", kernel="elu")


@pytest.fixture
def toy_method(registry):
    """Register `toy` (the first k tokens join the last one); what it was called with ends in the yielded dict."""
    context = {}

    def toy(metric, remove, *, layer=None, size=None, shift: int = 0):
        context.update(layer=layer, size=size, shift=shift)
        roots = torch.arange(metric.shape[1]).repeat(metric.shape[0], 1)
        roots[:, :remove] = metric.shape[1] - 1
        return pc.MergePlan.from_roots(roots, metric.shape[1] - remove)

    pc.register_method("toy", toy, paper="none", summary="a test method", limit="all")
    return context


def test_registered_methods_are_first_class(toy_method):
    """A registered function is planned with, gets the context it names, keeps its own options and its limit."""
    plan = pc.plan(torch.randn(2, 6, 3), 5, "toy", shift=2)
    assert plan.num_tokens == 1 and toy_method["shift"] == 2
    assert set(pc.methods()["toy"].needs) == {"layer", "size"} and list(pc.methods()["toy"].options) == ["shift"]
    with pytest.raises(TypeError, match="shift"):
        pc.plan(torch.randn(2, 6, 3), 2, "toy", colour=1)


def test_registering_again_replaces(toy_method):
    """A name stands for one function: the last one registered."""
    pc.register_method(
        "toy", lambda metric, remove: pc.MergePlan.identity(*metric.shape[:2]), paper="none", summary="b"
    )
    assert pc.methods()["toy"].summary == "b" and pc.plan(torch.randn(1, 4, 2), 1, "toy").num_tokens == 4
    with pytest.raises(ValueError, match="(?s)half.*all"):
        pc.register_method("toy", lambda metric, remove: None, paper="none", summary="c", limit="most")


# ----------------------------------------------------------------------------------------------- the tests can fail
def test_the_comparison_notices_a_wrong_order():
    """A plan made from ascending instead of descending energies is told from the right one."""
    metric = gaussian_tokens(1, 12, 6, 3)
    right = oracle.plan_roots(pc.plan(metric, 4, margin=0.5))[0]
    energy = oracle.energies(metric[0], 0.5)
    ranked = sorted(range(12), key=lambda i: energy[i])  # ascending: a deliberately wrong order
    cos, wrong = oracle.cosine(metric[0]), list(range(12))
    for a in ranked[0:8:2]:
        wrong[a] = max(ranked[1:8:2], key=lambda b, a=a: cos[a, b])
    assert len(oracle.anchors(wrong)) == 8
    assert wrong != right
