"""Rivals and controls against slow oracles, their laws, and known bugs of public implementations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import gaussian_tokens
from rivals import PLANNED, context, grid, most, one_hot_tokens, run

import pitome_core as pc
import pitome_core.experiments.baselines
from pitome_core.experiments.baselines.dct import cosine_transform
from pitome_core.experiments.baselines.lower_resolution import lower_resolution
from pitome_core.mergers import make_plan

HALF = ("tofu", "mctf")
PARTITIONS = ("crossget", "mctf", "atc", "evit")
ATTENTIVE = {"mctf": "attention", "diffrate": "class_attention", "topk_attention": "class_attention",
             "evit": "class_attention"}


def item_of(given: dict, item: int) -> dict:
    return {name: value[item] if isinstance(value, torch.Tensor) else value for name, value in given.items()}


# ---------------------------------------------------------------------------------------------------------- oracle
@pytest.mark.parametrize("method", PLANNED)
@given(
    batch=st.integers(1, 3),
    n=st.integers(1, 17),
    seed=st.integers(0, 2**31),
    share=st.floats(0, 1),
    layer=st.integers(0, 3),
)
def test_plans_equal_the_loop(method, batch, n, seed, share, layer):
    """Every method gives the reference's assignment and anchors: odd and even N, k from 0 to the maximum."""
    metric, k = gaussian_tokens(batch, n, 6, seed), round(share * most(method, n))
    given = {**context(batch, n, seed), "layer": layer, "num_layers": 4}
    plan = run(method, metric, k, given)
    assert plan.num_tokens == n - k
    for item in range(batch):
        roots = oracle.rivals_roots(method, metric[item], k, **item_of(given, item))
        assert oracle.plan_roots(plan)[item] == roots
        assert plan.assignment[item].tolist() == oracle.assignment(roots)
        assert plan.anchor[item].tolist() == oracle.anchors(roots)


@pytest.mark.parametrize("method", PLANNED)
@pytest.mark.parametrize("k", ["none", "one", "most"])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 33])
def test_counts_at_both_ends(method, k, n):
    """k = 0, 1 and the maximum leave N - k slots and equal the reference, also for one and two tokens."""
    k = {"none": 0, "one": min(1, most(method, n)), "most": most(method, n)}[k]
    metric, given = gaussian_tokens(2, n, 5, n), context(2, n, n)
    plan = run(method, metric, k, given)
    assert plan.num_tokens == n - k and (plan.assignment.amax(dim=1) == n - k - 1).all()
    for item in range(2):
        assert oracle.plan_roots(plan)[item] == oracle.rivals_roots(method, metric[item], k, **item_of(given, item))


@pytest.mark.parametrize("linkage", ["single", "complete", "average"])
def test_every_linkage_equals_the_loop(linkage):
    """Agglomerative clustering with each linkage, from one merge to one cluster; an unknown one is named."""
    metric = gaussian_tokens(2, 13, 4, 5)
    for k in range(13):
        plan = pc.plan(metric, k, "atc", linkage=linkage)
        expected = [oracle.atc_roots(metric[item], k, linkage) for item in range(2)]
        assert oracle.plan_roots(plan) == expected
    with pytest.raises(ValueError, match="(?s)ward.*single.*average"):
        pc.plan(metric, 2, "atc", linkage="ward")


@pytest.mark.parametrize("exponents", [{}, {"t_sim": 2.0, "t_info": 1.0, "t_size": 1.0}, {"t_size": 0.5}])
def test_criteria_of_mctf_equal_the_loop(exponents):
    """Each of the three exponents counts, with sizes and without."""
    metric, given = gaussian_tokens(3, 18, 6, 1), context(3, 18, 1)
    for sizes in (given["size"], None):
        plan = run("mctf", metric, 9, {**given, "size": sizes}, **exponents)
        for item in range(3):
            size = None if sizes is None else sizes[item]
            attention = given["attention"][item]
            assert oracle.plan_roots(plan)[item] == oracle.mctf_roots(metric[item], 9, attention, size, **exponents)


@pytest.mark.parametrize("first", ["ceil", "floor"])
def test_directions_of_mctf_equal_the_loop(first):
    """How many tokens merge in the first direction, from none to all that can; the two forms differ where k is odd."""
    for n in (1, 2, 3, 7, 12, 18):
        metric, given = gaussian_tokens(2, n, 6, n), context(2, n, n)
        for k in range(n // 2 + 1):
            plan = run("mctf", metric, k, given, first=first)
            for item in range(2):
                attention, size = given["attention"][item], given["size"][item]
                assert oracle.plan_roots(plan)[item] == oracle.mctf_roots(metric[item], k, attention, size, first=first)
                joined = [i for i, root in enumerate(oracle.plan_roots(plan)[item]) if root != i]
                there = sum(i % 2 == 0 for i in joined)
                assert there == (math.ceil(k / 2) if first == "ceil" else k // 2)
    mask, counts = torch.arange(18) < torch.tensor([[18], [9]]), torch.tensor([7, 3])
    plan = run("mctf", metric, counts, {**given, "size": None}, mask=mask, first=first)
    for item, length in enumerate((18, 9)):
        attention = given["attention"][item, : 1 + length, :length]
        roots = oracle.mctf_roots(metric[item, :length], int(counts[item]), attention, first=first)
        assert plan.assignment[item, :length].tolist() == oracle.assignment(roots)


def test_mctf_pools_by_attention_times_size_if_asked_to():
    """x = sum a_i s_i x_i / sum a_i s_i, with `a` the attention received; the pairs are those of the default."""
    metric, given, x = gaussian_tokens(3, 14, 6, 2), context(3, 14, 2), gaussian_tokens(3, 14, 4, 3)
    plan, plain = (run("mctf", metric, 7, given, pooling=pooling) for pooling in ("attention", "size"))
    assert torch.equal(plan.assignment, plain.assignment) and plain.weight is None
    merged, size = plan.merge(x, given["size"])
    usual, _ = plain.merge(x, given["size"])
    for item in range(3):
        roots, sizes = oracle.plan_roots(plan)[item], given["size"][item].double()
        received = given["attention"][item].sum(dim=0)
        np.testing.assert_allclose(merged[item].numpy(), oracle.pooled(x[item], roots, received * sizes), atol=1e-12)
        np.testing.assert_allclose(usual[item].numpy(), oracle.pooled(x[item], roots, sizes), atol=1e-12)
    assert size.sum(dim=1).tolist() == given["size"].sum(dim=1).tolist()
    assert (merged - usual).abs().max() > 1e-2
    unseen = {**given, "attention": torch.zeros_like(given["attention"])}
    assert run("mctf", metric, 7, unseen, pooling="attention").merge(x)[0].isfinite().all()
    for option in ("first", "pooling"):
        with pytest.raises(ValueError, match=f"unknown {option} 'x': choose one of"):
            pc.plan(metric, 2, "mctf", **{option: "x"})


@pytest.mark.parametrize("method", ["tofu", "mctf", "diffrate", "topk_attention", "crossget", "evit"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("n", "kinds"), [(8, 2), (13, 3), (16, 4), (9, 1), (24, 24)])
def test_exact_ties_break_by_order(method, dtype, n, kinds):
    """Where scores tie exactly, the first token in raster order is chosen, in every dtype."""
    for seed in range(4):
        metric = one_hot_tokens(seed, n, kinds, dtype)
        levels = torch.from_numpy(np.random.default_rng(seed).integers(1, 4, (1, n))) / 8.0
        given = {"attention": torch.full((1, n + 1, n), 0.125), "class_attention": levels, "size": torch.ones(1, n)}
        for k in (1, n // 4, n // 2):
            roots = oracle.rivals_roots(method, metric[0], k, **item_of(given, 0))
            assert oracle.plan_roots(run(method, metric, k, given))[0] == roots


@pytest.mark.parametrize("method", PLANNED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_plans_are_those_of_float32(method, dtype):
    """Half-precision metrics and maps are scored in float32: the plan of the same values in float32."""
    metric, given = (gaussian_tokens(2, 33, 16, 0) * 40).to(dtype), context(2, 33, 0, dtype)
    wide = {name: value.float() if value.is_floating_point() else value for name, value in given.items()}
    given, wide = {**given, "size": None}, {**wide, "size": None}
    options = {"t_sim": 100.0, "t_info": 1.0} if method == "mctf" else {}  # the attention is compared bit by bit
    half, full = run(method, metric, 9, given, **options), run(method, metric.float(), 9, wide, **options)
    assert torch.equal(half.assignment, full.assignment)
    assert half.weight is None or torch.equal(half.weight, full.weight) and half.weight.dtype == torch.float32


@pytest.mark.parametrize("method", [*PLANNED, "grid_pool"])
def test_views_plan_as_copies(method):
    """Non-contiguous metrics and contexts give the plan of their contiguous copies."""
    n, given = 20, context(3, 20, 0)
    view = gaussian_tokens(n, 3, 12, 0).transpose(0, 1)[..., ::2]
    strided = {name: torch.stack([value, value], dim=-1)[..., 0] for name, value in given.items()}
    assert not view.is_contiguous() and not strided["attention"].is_contiguous()
    k = 14 if method == "grid_pool" else 7
    assert torch.equal(run(method, view, k, strided).assignment, run(method, view.clone(), k, given).assignment)


@pytest.mark.parametrize("method", PLANNED)
def test_items_of_a_batch_do_not_see_each_other(method):
    """An item's plan is the same alone and in a batch."""
    metric, given = gaussian_tokens(4, 15, 6, 0), context(4, 15, 0)
    together = run(method, metric, 5, given)
    for item in range(4):
        alone = run(method, metric[item, None], 5, {name: value[item, None] for name, value in given.items()})
        assert together.assignment[item].tolist() == alone.assignment[0].tolist()


# ------------------------------------------------------------------------------------------------------------ laws
@pytest.mark.parametrize("method", PARTITIONS)
@given(n=st.integers(1, 25), seed=st.integers(0, 2**31), share=st.floats(0, 1))
def test_laws_of_partitions(method, n, seed, share):
    """Every token joins one slot, sizes sum to those before, rows of the matrix sum to 1, the mean is preserved.

    EViT's mean is weighted by attention, so that the mean of all tokens may change.
    """
    assert pc.methods()[method].partition
    k = round(share * most(method, n))
    metric, given = gaussian_tokens(2, n, 6, seed), context(2, n, seed)
    plan = run(method, metric, k, given)
    oracle.check_partition(plan, n, n - k)
    x = gaussian_tokens(2, n, 4, seed + 1)
    merged, size = plan.merge(x, given["size"])
    assert size.sum(dim=1).tolist() == given["size"].sum(dim=1).tolist()
    torch.testing.assert_close(plan.matrix().sum(dim=-1), torch.ones(2, n - k, dtype=plan.matrix().dtype))
    if method != "evit":
        before = (x * given["size"][..., None]).sum(dim=1)
        torch.testing.assert_close((merged * size[..., None]).sum(dim=1), before, rtol=1e-10, atol=1e-10)
        for item in range(2):
            roots = oracle.plan_roots(plan)[item]
            torch.testing.assert_close(merged[item].numpy(), oracle.merge(x[item], roots, given["size"][item])[0])


@pytest.mark.parametrize("method", ["tofu", "diffrate", "topk_attention"])
def test_pruned_tokens_are_gone(method):
    """Dropped tokens are in no slot, and the others keep their values and raster order."""
    metric, given = gaussian_tokens(2, 21, 6, 3), {**context(2, 21, 3), "layer": 0, "num_layers": 4}
    plan, x = run(method, metric, 9, given), gaussian_tokens(2, 21, 4, 4)
    dropped = {"tofu": 9, "diffrate": 4, "topk_attention": 9}[method]
    assert not pc.methods()[method].partition and plan.drops
    assert (plan.assignment < 0).sum(dim=1).tolist() == [dropped, dropped]
    merged, size = plan.merge(x)
    assert size.sum(dim=1).tolist() == [21 - dropped, 21 - dropped]
    lone = size == 1
    assert torch.equal(merged[lone], x.gather(1, plan.anchor[..., None].expand(-1, -1, 4))[lone])
    assert plan.unmerge(merged)[plan.assignment < 0].eq(0).all()


@pytest.mark.parametrize("method", ["tofu", "crossget", "mctf", "atc"])
def test_exact_duplicates_merge_first(method):
    """Twelve tokens and their copies next to them: with k = 12 each joins its copy, and values do not change."""
    x = gaussian_tokens(2, 12, 8, 6).repeat_interleave(2, dim=1)
    given = {"attention": torch.full((2, 25, 24), 0.04, dtype=torch.float64), "layer": 3, "num_layers": 4}
    plan = run(method, x, 12, given)
    assert plan.sizes.eq(2).all()
    torch.testing.assert_close(plan.merge(x)[0], x[:, ::2])
    torch.testing.assert_close(plan.unmerge(plan.merge(x)[0]), x)


def test_diffrate_merges_copies_into_what_stays():
    """A merged token whose copy stays joins that copy."""
    x = gaussian_tokens(1, 10, 8, 0).repeat(1, 2, 1)
    weights = torch.arange(20.0)[None]  # the first ten are removed, five of them dropped
    roots = oracle.plan_roots(run("diffrate", x, 10, {"class_attention": weights}))[0]
    assert roots[:10] == [-1] * 5 + [15, 16, 17, 18, 19]


# --------------------------------------------------------------------------------------------------------- padding
@pytest.mark.parametrize("method", [*PLANNED, "grid_pool"])
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_padding_never_changes_a_result(data, seed, method):
    """A padded item has the plan that it has alone, with its own length and k, whatever the padding holds."""
    batch, width = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 14))
    lengths = [data.draw(st.integers(1, width)) for _ in range(batch)]
    places = [sorted(data.draw(st.permutations(range(width)))[:n]) for n in lengths]
    mask = torch.zeros(batch, width, dtype=torch.bool)
    for item, real in enumerate(places):
        mask[item, real] = True
    metric, given = gaussian_tokens(batch, width, 6, seed), context(batch, width, seed)
    garbage = data.draw(st.sampled_from([0.0, 5.0, math.nan]))
    metric[~mask] = garbage
    queries = torch.cat([mask.new_ones(batch, 1), mask], dim=1)
    given["attention"] = given["attention"].masked_fill(~(queries[..., None] & mask[:, None]), garbage)
    given["class_attention"] = given["class_attention"].masked_fill(~mask, garbage)
    given["positions"] = given["positions"].masked_fill(~mask[..., None], data.draw(st.sampled_from([-1, 99])))
    alone = []
    for item, real in enumerate(places):
        own = {name: value[item, None][:, real] for name, value in given.items() if name != "attention"}
        own["attention"] = given["attention"][item, None][:, [0, *(i + 1 for i in real)]][:, :, real]
        k = data.draw(st.integers(0, most(method, len(real))))
        if method == "grid_pool":
            windows = {(int(r) // 2, int(c) // 2) for r, c in own["positions"][0]}
            k = len(real) - len(windows)
        alone.append((run(method, metric[item, real][None], k, own), k))
    remove = torch.tensor([k for _, k in alone])
    plan = make_plan(pc.methods()[method], metric, remove, {**given, "mask": mask}, {})
    x = gaussian_tokens(batch, width, 3, seed + 1)
    merged, size = plan.merge(x, given["size"])
    valid = torch.ones(merged.shape[:2], dtype=torch.bool) if plan.valid is None else plan.valid
    assert plan.num_tokens == max(n - k for n, (_, k) in zip(lengths, alone, strict=True))
    for item, (real, (own, _)) in enumerate(zip(places, alone, strict=True)):
        expected = [-1] * width
        for i, root in zip(real, oracle.plan_roots(own)[0], strict=True):
            expected[i] = real[root] if root >= 0 else -1
        assert oracle.plan_roots(plan)[item] == expected
        value, number = own.merge(x[item, real][None], given["size"][item, real][None])
        torch.testing.assert_close(merged[item][valid[item]], value[0], rtol=1e-6, atol=1e-7)
        assert size[item][valid[item]].tolist() == number[0].tolist()


@pytest.mark.parametrize("method", PLANNED)
def test_one_count_for_all_items_may_have_a_mask_too(method):
    """An int with a mask is that count for every item."""
    metric, given, mask = gaussian_tokens(3, 10, 6, 0), context(3, 10, 0), torch.ones(3, 10, dtype=torch.bool)
    mask[0, 7:] = False
    one, each = run(method, metric, 3, given, mask), run(method, metric, torch.tensor([3, 3, 3]), given, mask)
    assert oracle.plan_roots(one) == oracle.plan_roots(each) and torch.equal(one.valid, each.valid)


# ----------------------------------------------------------------------------------------------------- bad values
@pytest.mark.parametrize("method", PLANNED)
def test_non_finite_tokens_are_never_chosen(method):
    """A token with NaN in its key or its attention stays alone while others can go, and nothing raises.

    The others are further from each other (cosine below 0) than from a token that counts as zero.
    """
    for bad in (math.nan, math.inf):
        metric, given = (torch.eye(12) - 1 / 12).repeat(2, 1, 1), context(2, 12, 0)
        metric[:, [3, 6]] = bad
        given["class_attention"][:, [3, 6]] = math.nan
        plan = run(method, metric, 5, given)
        assert plan.num_tokens == 7
        slots = plan.assignment[:, [3, 6]]
        assert (slots >= 0).all() and plan.sizes.gather(1, slots).eq(1).all()


@pytest.mark.parametrize("method", PLANNED)
@pytest.mark.parametrize("good", [0, 1, 2])
def test_plans_of_broken_tokens_are_whole(method, good):
    """If none, one or two tokens are finite, plans still have N - k slots and assign every token."""
    metric, given = torch.full((1, 9, 4), math.nan), context(1, 9, 0)
    metric[:, [7, 2][:good]] = 1.0
    given["class_attention"][:, [0, 1, 3, 4, 5, 6, 8]] = math.nan
    for k in range(most(method, 9) + 1):
        plan = run(method, metric, k, given)
        roots = oracle.plan_roots(plan)[0]
        assert plan.num_tokens == 9 - k == len(oracle.anchors(roots))
        assert all(root == -1 or roots[root] == root for root in roots)
        assert plan.weight is None or plan.weight.isfinite().all() and plan.weight.min() > 0
        if method == "crossget" and good:
            assert all(root in (i, 7, 2) for i, root in enumerate(roots)), "a finite token is left to join"


@pytest.mark.parametrize("method", PLANNED)
def test_zero_vectors_follow_the_rule(method):
    """Zero tokens have cosine 0 to all and are planned like any other."""
    metric, given = gaussian_tokens(1, 11, 5, 0), context(1, 11, 0)
    metric[0, [1, 4]] = 0
    if method == "atc":  # equal distances may be joined in another order
        assert run(method, metric, 6, given).num_tokens == 5
        return
    for k in range(most(method, 11) + 1):
        roots = oracle.rivals_roots(method, metric[0], k, **item_of(given, 0))
        assert oracle.plan_roots(run(method, metric, k, given))[0] == roots


@pytest.mark.parametrize("method", PLANNED)
def test_attention_of_zero_is_a_value(method):
    """Attention that is rounded to zero gives finite tokens."""
    given = {"attention": torch.zeros(1, 10, 9), "class_attention": torch.zeros(1, 9), "size": torch.ones(1, 9)}
    plan = run(method, gaussian_tokens(1, 9, 4, 0), 4, given)
    x = 1 + torch.rand(1, 9, 3)
    merged, _ = plan.merge(x)
    assert merged.isfinite().all() and merged.min() >= 1


def test_mctf_weighs_unseen_and_opposite_tokens():
    """Attention rounded to zero is the limit of small attention; opposite tokens have a weight of zero, not NaN."""
    metric = gaussian_tokens(1, 12, 6, 0)
    attention = torch.full((1, 12, 12), 0.08)
    attention[..., [2, 5]] = 0
    roots = oracle.plan_roots(run("mctf", metric, 5, {"attention": attention}))[0]
    assert roots == oracle.mctf_roots(metric[0], 5, attention[0].clamp_min(1e-30))
    flat = torch.full((1, 8, 8), 0.125)
    for seed in range(40):
        there = gaussian_tokens(1, 1, 33, seed, torch.float32)
        metric = torch.cat([there, -there, -there, there, there, -there, -there, -there], dim=1)
        roots = oracle.plan_roots(run("mctf", metric, 2, {"attention": flat}, t_sim=2.0))[0]
        assert all((metric[0, i] == metric[0, root]).all() for i, root in enumerate(roots))


# ------------------------------------------------------------------------------------------------------------ ToFu
def never_shorter(merged, plan, x) -> bool:
    """MLERP's law: the result is as long as the longest of its group, so never shorter than the destination."""
    destination = x.gather(1, plan.anchor[..., None].expand_as(merged)).norm(dim=-1)
    return bool((merged.norm(dim=-1) >= destination - 1e-9).all())


def test_tofu_switches_from_pruning_to_merging():
    """Layers l < L // 2 drop and the others merge; with an odd depth the middle layer merges."""
    metric = gaussian_tokens(1, 12, 6, 0)
    for depth in (1, 2, 3, 12):
        plans = [run("tofu", metric, 4, {"layer": layer, "num_layers": depth}) for layer in range(depth)]
        assert [plan.drops for plan in plans] == [layer < depth // 2 for layer in range(depth)]
        assert {plan.reduce for plan in plans if not plan.drops} == {"mlerp"}
        assert len({tuple(plan.anchor[0].tolist()) for plan in plans}) == 1
        where = [{"layer": layer, "num_layers": depth} for layer in range(depth)]
        assert not any(run("tofu", metric, 4, at, pruned=0).drops for at in where)
        assert all(run("tofu", metric, 4, at, pruned=1.0).drops for at in where)
    with pytest.raises(ValueError, match="pruned is 1.5: it is a share"):
        run("tofu", metric, 4, {"layer": 0, "num_layers": 2}, pruned=1.5)


def test_tofu_keeps_the_largest_norm():
    """Late layers give the mean's direction at the largest norm of the group, for sizes too."""
    metric, x = gaussian_tokens(2, 20, 6, 0), gaussian_tokens(2, 20, 5, 1)
    plan = run("tofu", metric, 8, {"layer": 2, "num_layers": 4})
    for size in (None, context(2, 20, 0)["size"]):
        merged, _ = plan.merge(x, size)
        assert never_shorter(merged, plan, x)
        for item in range(2):
            weights = np.ones(20) if size is None else size[item]
            expected = oracle.sized_mlerp(x[item], oracle.plan_roots(plan)[item], weights)
            np.testing.assert_allclose(merged[item].numpy(), expected, rtol=1e-6)


def test_the_norm_law_notices_the_wrong_norm():
    """Plain means, and a mean divided by the destination's norm instead of its own, break the law."""
    metric, x = gaussian_tokens(2, 20, 6, 0), gaussian_tokens(2, 20, 5, 1)
    plan = run("tofu", metric, 8, {"layer": 2, "num_layers": 4})
    mean, _ = replace(plan, reduce="mean").merge(x)
    right, _ = plan.merge(x)
    assert not never_shorter(mean, plan, x)
    destination = x.gather(1, plan.anchor[..., None].expand_as(mean)).norm(dim=-1, keepdim=True)
    wrong = torch.where(plan.sizes[..., None] > 1, mean * right.norm(dim=-1, keepdim=True) / destination, mean)
    assert not never_shorter(wrong, plan, x) and never_shorter(right, plan, x)


# ------------------------------------------------------------------------------------------------------------- DCT
@pytest.mark.parametrize(("n", "kept"), [(1, 1), (2, 1), (7, 7), (9, 4), (16, 15), (33, 20)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dct_equals_the_sums(n, kept, dtype):
    """Forward and backward equal the written-out transforms; matrices are float32 at least."""
    metric, x = gaussian_tokens(2, n, 3, 0, dtype), gaussian_tokens(2, n, 4, 1)
    plan = pc.plan(metric, n - kept, "dct")
    if kept == n:
        assert isinstance(plan, pc.MergePlan)  # k = 0 is the identity for every method
        plan = run("dct", metric, 0, {})
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert plan.forward.dtype == torch.promote_types(dtype, torch.float32) and plan.num_tokens == kept
    merged, size = plan.merge(x)
    assert size.eq(1).all()
    for item in range(2):
        np.testing.assert_allclose(merged[item].numpy(), oracle.dct_merge(x[item], kept), atol=tolerance)
        np.testing.assert_allclose(plan.unmerge(merged)[item].numpy(), oracle.dct_unmerge(merged[item], n),
                                   atol=tolerance)


@pytest.mark.parametrize(("n", "kept"), [(8, 5), (13, 1), (196, 177)])
def test_dct_restores_what_it_kept(n, kept):
    """A constant keeps its value there and back; so does any signal of the frequencies that are kept."""
    plan = pc.plan(torch.zeros(1, n, 1, dtype=torch.float64), n - kept, "dct")
    ones = torch.ones(1, n, 2, dtype=torch.float64)
    torch.testing.assert_close(plan.merge(ones)[0], ones[:, :kept])
    torch.testing.assert_close(plan.unmerge(plan.merge(ones)[0]), ones)
    low = cosine_transform(n)[:kept].T @ gaussian_tokens(1, kept, 3, 0)
    torch.testing.assert_close(plan.unmerge(plan.merge(low)[0]), low)


@pytest.mark.parametrize(("n", "kept"), [(1, 1), (2, 1), (9, 4), (16, 15), (33, 20)])
def test_dct_of_the_authors_has_no_factor(n, kept):
    """`scale="orthonormal"`: the sums without the square root, a forward matrix of orthonormal rows, its transpose."""
    x = gaussian_tokens(2, n, 4, 1)
    plan = run("dct", x, n - kept, {}, scale="orthonormal")
    merged, _ = plan.merge(x)
    for item in range(2):
        np.testing.assert_allclose(merged[item].numpy(), oracle.dct_merge(x[item], kept, 1.0), atol=1e-12)
        there = oracle.dct_unmerge(merged[item], n, 1.0)
        np.testing.assert_allclose(plan.unmerge(merged)[item].numpy(), there, atol=1e-12)
    torch.testing.assert_close(plan.forward @ plan.forward.T, torch.eye(kept, dtype=torch.float64))
    assert torch.equal(plan.backward, plan.forward.T)
    ours = run("dct", x, n - kept, {}).forward
    torch.testing.assert_close(ours, plan.forward * math.sqrt(kept / n))
    with pytest.raises(ValueError, match="unknown scale 'unit': choose one of constant, orthonormal"):
        pc.plan(x, 0, "dct", scale="unit")


def growth(scale) -> float:
    """By how much a constant grows over 12 layers at keep 0.9; `scale(M, N)` corrects the forward matrix."""
    x = torch.ones(1, 196, 1, dtype=torch.float64)
    for _ in range(12):
        n = x.shape[1]
        plan = pc.plan(x, n // 10, "dct")
        x = replace(plan, forward=plan.forward * scale(plan.num_tokens, n)).merge(x)[0]
    return float(x.mean())


def test_dct_does_not_grow_over_twelve_layers():
    """With the square root a constant stays 1; the variant without it ends at sqrt(N_0 / N_12), 1.8 times as large."""
    assert growth(lambda kept, n: 1.0) == pytest.approx(1)
    assert 1.7 < growth(lambda kept, n: math.sqrt(n / kept)) < 1.9


def test_dct_refuses_padding():
    """Rows of unequal length have no common transform."""
    with pytest.raises(ValueError, match="mask"):
        pc.plan(torch.randn(2, 6, 3), 2, "dct", mask=torch.ones(2, 6, dtype=torch.bool))


def test_dct_made_in_inference_mode_serves_training():
    """The matrices are cached; computed first in inference mode, they still serve a backward pass."""
    metric = torch.randn(1, 29, 2)
    with torch.inference_mode():
        pc.plan(metric, 10, "dct")
    x = torch.randn(1, 29, 3, requires_grad=True)
    pc.plan(metric, 10, "dct").merge(x)[0].sum().backward()
    assert x.grad.isfinite().all()


# -------------------------------------------------------------------------------------------------------- CrossGET
def right_destinations(roots, metric) -> bool:
    """CrossGET's law: no destination is a source, and each source joined its most similar token of those that stay."""
    cos, stay = oracle.cosine(metric), oracle.anchors(roots)
    return all(roots[r] == r for r in roots) and all(
        cos[i, roots[i]] >= max(cos[i, j] for j in stay) - 1e-12 for i in range(len(roots)) if roots[i] != i
    )


def clustered(seed: int = 0) -> torch.Tensor:
    """Four tight groups of six."""
    centres = gaussian_tokens(1, 4, 16, seed).repeat_interleave(6, dim=1)
    return centres + 0.1 * gaussian_tokens(1, 24, 16, seed + 1)


def test_crossget_sources_stay_in_their_cluster():
    """With four clusters there are at least four destinations, each in the source's own cluster."""
    for seed in range(5):
        metric = clustered(seed)
        for k in (4, 12, 20):
            roots = oracle.plan_roots(pc.plan(metric, k, "crossget"))[0]
            assert right_destinations(roots, metric[0])
            assert all(i // 6 == roots[i] // 6 for i in range(24))
        assert len({roots[i] for i in range(24) if roots[i] != i}) == 4


def test_the_destination_law_notices_one_for_all():
    """The variant that sends every source to one token, and one with chains, are distinguished from the right one."""
    metric = clustered()
    roots = oracle.plan_roots(pc.plan(metric, 12, "crossget"))[0]
    stay, cos = oracle.anchors(roots), oracle.cosine(metric[0])
    best = max(stay, key=lambda j: sum(cos[i, j] for i in range(24)))
    one_for_all = [i if i in stay else best for i in range(24)]
    assert right_destinations(roots, metric[0]) and not right_destinations(one_for_all, metric[0])
    nearest = [max((j for j in range(24) if j != i), key=lambda j, i=i: cos[i, j]) for i in range(24)]
    chained = [i if i in stay else nearest[i] for i in range(24)]
    assert not right_destinations(chained, metric[0])


def test_crossget_can_remove_all_but_one():
    """Only the token that ranks last has no edge, so that the N - 1 others can always merge into it."""
    for seed in range(10):
        metric = gaussian_tokens(1, 15, 4, seed)
        assert pc.plan(metric, 14, "crossget").num_tokens == 1


# ------------------------------------------------------------------------------------------------------------ MCTF
def test_mctf_goes_both_ways():
    """Half of k are tokens at even places and half at odd ones, and no merged token is an anchor."""
    metric, given = gaussian_tokens(3, 24, 6, 0), context(3, 24, 0)
    for k in (1, 2, 7, 12):
        for roots in oracle.plan_roots(run("mctf", metric, k, given)):
            left = [i for i in range(24) if roots[i] != i]
            assert [sum(i % 2 == side for i in left) for side in (0, 1)] == [math.ceil(k / 2), k // 2]


def test_mctf_criteria_each_decide_where_the_others_tie():
    """Of equal tokens the least attended merge, at equal attention the small ones; a wrong sign is noticed."""
    metric = torch.ones(1, 8, 4)
    flat = torch.full((1, 8, 8), 0.125)
    attention = flat.clone()
    attention[..., [2, 5]] = 0.01
    pair = [2, 5]
    plan = run("mctf", metric, 1, {"attention": attention})
    assert oracle.plan_roots(plan)[0] == [5 if i == 2 else i for i in range(8)]
    size = torch.full((1, 8), 9.0)
    size[0, pair] = 1
    plan = run("mctf", metric, 1, {"attention": flat, "size": size})
    assert oracle.plan_roots(plan)[0] == [5 if i == 2 else i for i in range(8)]
    wrong = run("mctf", metric, 1, {"attention": 1 / attention})  # attention in place of its inverse
    assert oracle.plan_roots(wrong)[0][2] == 2


# ------------------------------------------------------------------------------------------------------- DiffRate
def test_diffrate_ranks_before_it_merges():
    """Pruned below merged below kept in attention; floor(k / 2) are pruned; destinations stay (no chains)."""
    for n, k in ((20, 7), (21, 8), (9, 8), (6, 1)):
        metric, given = gaussian_tokens(1, n, 5, n), context(1, n, n)
        roots = oracle.plan_roots(run("diffrate", metric, k, given))[0]
        weight = given["class_attention"][0]
        pruned = [i for i in range(n) if roots[i] == -1]
        merged = [i for i in range(n) if roots[i] not in (-1, i)]
        assert (len(pruned), len(merged)) == (k // 2, k - k // 2)
        assert not pruned or weight[pruned].max() < weight[merged].min()
        assert weight[merged].max() < weight[oracle.anchors(roots)].min()


# ------------------------------------------------------------------------------------------------------------- ATC
@pytest.mark.parametrize("linkage", ["single", "complete", "average"])
def test_atc_leaves_the_number_asked_for_under_ties(linkage):
    """Many equal distances: exactly N - k clusters, where a cut at a height would leave fewer."""
    for seed in range(4):
        metric = one_hot_tokens(seed, 14, 4, torch.float32)
        for k in range(14):
            plan = pc.plan(metric, k, "atc", linkage=linkage)
            oracle.check_partition(plan, 14, 14 - k)


def test_atc_anchor_is_the_medoid():
    """Of five tokens on an arc, the middle one is the anchor."""
    angle = torch.tensor([0.0, 18, 25, 32, 50]).deg2rad()
    metric = torch.stack([angle.cos(), angle.sin()], dim=-1)[None]
    assert pc.plan(metric, 4, "atc").anchor.tolist() == [[2]]


def test_atc_merges_no_worse_than_matching():
    """At equal counts, the distance within clusters is below that of ToMe and PiToMe."""
    metric = clustered(3)

    def within(method):
        members = oracle.groups(oracle.plan_roots(pc.plan(metric, 12, method))[0])
        cos = oracle.cosine(metric[0])
        return sum(1 - cos[i, j] for group in members for i in group for j in group)

    assert within("atc") <= min(within("tome"), within("pitome")) + 1e-9


# --------------------------------------------------------------------------------------------------- EViT and top-k
@pytest.mark.parametrize("sized", [False, True])
def test_evit_mean_is_weighted_by_attention(sized):
    """One token holds sum a_i x_i / sum a_i of the k + 1 least attended, whatever the sizes; the others stay."""
    metric, given, x = gaussian_tokens(2, 15, 4, 0), context(2, 15, 0), gaussian_tokens(2, 15, 3, 1)
    size = given["size"] if sized else None
    for k in (0, 1, 6, 14):
        plan = run("evit", metric, k, {**given, "size": size})
        merged, sizes = plan.merge(x, size)
        for item in range(2):
            expected = oracle.evit_merge(x[item], k, given["class_attention"][item])
            np.testing.assert_allclose(merged[item].numpy(), expected, rtol=1e-5, atol=1e-6)
        assert (plan.sizes > 1).sum(dim=1).tolist() == [int(k > 0)] * 2
        assert sizes.sum(dim=1).tolist() == (given["size"].sum(dim=1).tolist() if sized else [15.0, 15.0])


def test_evit_is_not_the_plain_mean():
    """The variant without the weights is distinguished from the right one."""
    metric, given, x = gaussian_tokens(1, 15, 4, 0), context(1, 15, 0), gaussian_tokens(1, 15, 3, 1)
    plan = run("evit", metric, 6, {**given, "size": None})
    plain, _ = replace(plan, weight=None).merge(x)
    expected = oracle.evit_merge(x[0], 6, given["class_attention"][0])
    assert np.abs(plain[0].numpy() - expected).max() > 1e-2


def test_pruning_by_attention_keeps_the_most_attended():
    """Top-k keeps the N - k most attended; EViT keeps one fewer of them as they are."""
    metric, given = gaussian_tokens(1, 15, 4, 0), context(1, 15, 0)
    ranked = given["class_attention"][0].argsort(descending=True).tolist()
    pruned, fused = run("topk_attention", metric, 6, given), run("evit", metric, 6, {**given, "size": None})
    assert sorted(ranked[:9]) == pruned.anchor[0].tolist()
    lone = fused.anchor[0][fused.sizes[0] == 1].tolist()
    assert sorted(ranked[:8]) == lone


# -------------------------------------------------------------------------------------------------------- grid pool
@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (14, 14), (5, 7), (1, 6), (3, 1), (1, 1)])
def test_grid_pool_is_average_pooling(rows, columns):
    """The same as torch's average pooling of the token map, partial windows at odd edges included."""
    n, x = rows * columns, gaussian_tokens(2, rows * columns, 3, 0)
    windows = math.ceil(rows / 2) * math.ceil(columns / 2)
    positions = grid(2, n, columns)
    plan = run("grid_pool", x, n - windows, {"positions": positions})
    oracle.check_partition(plan, n, windows)
    expected = torch.nn.functional.avg_pool2d(
        x.transpose(1, 2).unflatten(2, (rows, columns)), 2, ceil_mode=True, count_include_pad=False
    )
    torch.testing.assert_close(plan.merge(x)[0], expected.flatten(2).transpose(1, 2))
    assert oracle.plan_roots(plan)[0] == oracle.grid_pool_roots(positions[0])
    torch.testing.assert_close(plan.merge(x)[1].sum(dim=1), torch.tensor([float(n)] * 2))


def test_grid_pool_removes_what_the_windows_give():
    """Another count is refused, and the error names both numbers."""
    with pytest.raises(ValueError, match="(?s)100 of 196.*leave 49.*147"):
        run("grid_pool", torch.randn(1, 196, 3), 100, {"positions": grid(1, 196, 14)})


def test_grid_pool_tells_rows_apart():
    """A pool that took 4 neighbours in raster order for a window is distinguished from the right one."""
    roots = oracle.plan_roots(run("grid_pool", torch.randn(1, 16, 3), 12, {"positions": grid(1, 16, 4)}))[0]
    assert roots[:8] == [0, 0, 2, 2, 0, 0, 2, 2] and roots != [i // 4 * 4 for i in range(16)]


# -------------------------------------------------------------------------------------------------------- registry
def test_methods_tell_what_they_are():
    """Needs, partition, limit and a paper for each; those without attention maps do not ask for one."""
    methods = pc.methods()
    needs = {
        "tofu": {"mask", "layer", "num_layers"}, "dct": {"mask"}, "crossget": {"mask"}, "atc": {"mask"},
        "mctf": {"mask", "attention", "size"}, "diffrate": {"mask", "class_attention"},
        "topk_attention": {"mask", "class_attention"}, "evit": {"mask", "class_attention", "size"},
        "grid_pool": {"mask", "positions"},
    }
    for name, expected in needs.items():
        method = methods[name]
        assert set(method.needs) == expected and method.summary
        assert method.partition == (name in PARTITIONS or name == "grid_pool")
        assert method.limit == ("half" if name in HALF else "all")
        assert method.drops == (name in ("tofu", "diffrate", "topk_attention"))
        assert method.reads_attention({}) == (name in ATTENTIVE)
        assert method.paper == "control" or method.paper.split()[-1].isdigit()
    assert set(methods["mctf"].options) == {"t_sim", "t_info", "t_size", "first", "pooling"}
    assert set(methods["atc"].options) == {"linkage"} and methods["dct"].options == {"scale": "constant"}


@pytest.mark.parametrize(("method", "missing"), [*ATTENTIVE.items(), ("grid_pool", "positions")])
def test_missing_context_is_named(method, missing):
    """A method that is called without its context names what is missing and where it comes from."""
    with pytest.raises(ValueError, match=f"(?s)^{missing}: .*patched model"):
        pc.plan(torch.randn(1, 16, 3), 2, method)


def test_costs_are_counted():
    """Costs grow with the tokens, name multiply-accumulates and other operations, and are whole numbers."""
    for name in ("tofu", "crossget", "mctf", "diffrate", "atc", "topk_attention", "evit"):
        small, large = pc.methods()[name].cost(100, 10, 64), pc.methods()[name].cost(200, 10, 64)
        assert all(isinstance(value, int) for value in (*small, *large))
        assert large > small and large[1] > small[1] > 0


def test_random_controls_are_what_they_were():
    """The choices of the two random controls are fixed, because recorded runs depend on them."""
    metric = torch.zeros(1, 14, 2)
    pinned = {
        ("random_prune", 0, 0): [-1, -1, 0, 1, 2, 3, -1, -1, 4, 5, 6, -1, 7, 8],
        ("random_merge", 0, 0): [4, 5, 0, 1, 2, 3, 7, 8, 4, 5, 6, 0, 7, 8],
        ("random_prune", 3, 6): [0, 1, -1, 2, 3, 4, 5, 6, -1, 7, -1, -1, -1, 8],
        ("random_merge", 3, 6): [0, 1, 8, 2, 3, 4, 5, 6, 0, 7, 5, 4, 6, 8],
    }
    for (method, layer, seed), expected in pinned.items():
        assert pc.methods()[method].function(metric, 5, layer=layer, seed=seed).assignment[0].tolist() == expected


# ------------------------------------------------------------------------------------------------- inside a model
CLASSLESS = dict(class_token=False, global_pool="avg")


@pytest.mark.parametrize("method", [*PLANNED, "dct"])
@pytest.mark.parametrize("model", [{}, CLASSLESS, {"reg_tokens": 2}], ids=["class", "none", "registers"])
def test_every_method_runs_inside_a_model(build_vit, images, method, model):
    """Token counts are as planned, outputs have their shape, and gradients exist, with and without a class token."""
    vit, x = build_vit(**model), images()
    plain = vit(x)
    with pc.patched(vit, method, keep=0.75), pc.record(vit) as trace:
        logits = vit(x)
        features = vit.forward_features(x)
        logits.sum().backward()
    assert [layer.plan.num_tokens for layer in trace.layers] == [12, 9, 7]  # 16 patches
    assert logits.shape == plain.shape and features.shape == (2, 16 + vit.num_prefix_tokens, 48)
    assert logits.isfinite().all() and not torch.allclose(logits, plain)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vit.patch_embed.parameters())
    assert torch.equal(vit(x), plain)


@pytest.mark.parametrize("model", [{}, CLASSLESS], ids=["class", "none"])
def test_the_attention_in_a_model_is_the_right_one(build_vit, images, model):
    """Layer 0 drops the patches that the class token (or, without one, all queries) attends to least."""
    vit, x = build_vit(**model), images()
    with pc.patched(vit, "topk_attention", keep=0.75), pc.record(vit) as trace, torch.no_grad():
        vit(x)
    block, prefix = vit.blocks[0], vit.num_prefix_tokens
    with torch.no_grad():
        tokens = block.norm1(vit.norm_pre(vit._pos_embed(vit.patch_embed(x))))
        q, k, _ = block.attn.qkv(tokens).reshape(2, tokens.shape[1], 3, 3, 16).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / 4).softmax(dim=-1).mean(dim=1)[:, :, prefix:]
    received = weights[:, 0] if prefix else weights.mean(dim=1)
    for item in range(2):
        assert oracle.plan_roots(trace.layers[0].plan)[item] == oracle.topk_roots(4, received[item])


@pytest.mark.parametrize("model", [{}, CLASSLESS], ids=["class", "none"])
def test_grid_pool_runs_once_before_the_first_block(build_vit, images, model):
    """16 patches become 4 before block 0, so that the model has the pooled grid; a second time is refused."""
    vit, x = build_vit(**model), images()
    once = pc.Schedule.from_removals(16, [12, 0, 0], vit.num_prefix_tokens)
    with pc.patched(vit, "grid_pool", keep=once, insertion="before", proportional=False, restore=False):
        features = vit.forward_features(x)
    with torch.no_grad():
        tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
        prefix, patches = tokens[:, : vit.num_prefix_tokens], tokens[:, vit.num_prefix_tokens :]
        pooled = torch.nn.functional.avg_pool2d(patches.transpose(1, 2).unflatten(2, (4, 4)), 2)
        expected = vit.norm(vit.blocks(torch.cat([prefix, pooled.flatten(2).transpose(1, 2)], dim=1)))
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    twice = pc.Schedule.from_removals(16, [4, 4, 0], vit.num_prefix_tokens)
    with pc.patched(vit, "grid_pool", keep=twice), pytest.raises(ValueError, match="(?s)4 of 16.*leave 4.*12"):
        vit(x)


# ------------------------------------------------------------------------------------------------ lower resolution
@pytest.mark.parametrize("model", [{}, CLASSLESS, {"reg_tokens": 2}, {"no_embed_class": True}])
def test_lower_resolution_is_the_model_on_smaller_images(build_vit, images, model):
    """The copy equals a model built for that size with the interpolated table; the original does not change."""
    vit, x = build_vit(**model), images(side=48)
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    small = lower_resolution(vit, 48)
    built = build_vit(img_size=48, **model)
    table = vit.pos_embed.detach()
    prefix = table.shape[1] - 16
    patches = torch.nn.functional.interpolate(
        table[:, prefix:].transpose(1, 2).unflatten(2, (4, 4)), size=(3, 3), mode="bicubic", align_corners=False
    )
    weights = {**before, "pos_embed": torch.cat([table[:, :prefix], patches.flatten(2).transpose(1, 2)], dim=1)}
    built.load_state_dict(weights)
    torch.testing.assert_close(small(x), built(x))
    assert pc.flops(small).total == pc.flops(built).total < pc.flops(vit).total
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())
    assert vit(images()).shape == (2, 7) and small.pos_embed.requires_grad
    torch.testing.assert_close(lower_resolution(vit, 64)(images()), vit(images()))
    with pc.patched(small, "tome", keep=0.8):
        assert small(x).shape == (2, 7)


def test_lower_resolution_refuses_what_it_cannot_do(build_vit):
    """A size between patches names its neighbours; a merging model and a model without a square grid are refused."""
    vit = build_vit()
    with pytest.raises(ValueError, match="(?s)50.*16.*48 or 64"):
        lower_resolution(vit, 50)
    with pc.patched(vit, "tome"), pytest.raises(ValueError, match="pc.remove"):
        lower_resolution(vit, 48)
    with pytest.raises(ValueError, match="(?s)square.*4 x 2"):
        lower_resolution(build_vit(img_size=(64, 32)), 48)
