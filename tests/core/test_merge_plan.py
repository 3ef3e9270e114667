"""Laws of MergePlan and LinearPlan: merge, unmerge, composition, matrix, prefix, precision, errors."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import types

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import gaussian_tokens

import pitome_core as pc

HALF = (torch.float16, torch.bfloat16)


def random_roots(rng: np.random.Generator, n: int, kept: int, dropped: int = 0) -> list[int]:
    """A partition of n tokens with `kept` groups, `dropped` of the other tokens thrown away."""
    order = rng.permutation(n).tolist()
    stay, rest = order[:kept], order[kept:]
    roots = list(range(n))
    for position, i in enumerate(rest):
        roots[i] = -1 if position < dropped else int(rng.choice(stay))
    return roots


def plan_of(*items: list[int], **options) -> pc.MergePlan:
    return pc.MergePlan.from_roots(torch.tensor(items), **options)


partitions = st.tuples(st.integers(1, 14), st.integers(1, 14), st.integers(0, 2**31)).map(
    lambda t: random_roots(np.random.default_rng(t[2]), t[0], min(t[0], t[1]))
)


@given(roots=partitions, seed=st.integers(0, 2**31), sized=st.booleans(), c=st.integers(1, 5))
def test_merge_and_unmerge_equal_the_loop(roots, seed, sized, c):
    """Merging is the size-weighted mean of every group, unmerging hands each member its group's value."""
    x = gaussian_tokens(1, len(roots), c, seed)
    size = torch.from_numpy(np.random.default_rng(seed).integers(1, 9, (1, len(roots)))).float() if sized else None
    plan = plan_of(roots)
    oracle.check_partition(plan, len(roots), len(oracle.anchors(roots)))
    assert plan.assignment[0].tolist() == oracle.assignment(roots)
    assert plan.anchor[0].tolist() == oracle.anchors(roots)
    merged, sizes = plan.merge(x, size)
    expected, expected_sizes = oracle.merge(x[0], roots, None if size is None else size[0])
    assert merged.dtype == torch.float64 and sizes.dtype == torch.float32
    np.testing.assert_allclose(merged[0].numpy(), expected, rtol=1e-12, atol=1e-13)
    assert sizes[0].tolist() == expected_sizes.tolist()
    np.testing.assert_allclose(plan.unmerge(merged)[0].numpy(), oracle.unmerge(expected, roots), rtol=1e-12, atol=1e-13)


@given(roots=partitions, seed=st.integers(0, 2**31))
def test_conservation(roots, seed):
    """Sizes sum to N, the size-weighted mean of all tokens survives, and counts are whole."""
    x = gaussian_tokens(1, len(roots), 4, seed)
    plan = plan_of(roots)
    merged, sizes = plan.merge(x)
    assert sizes.sum().item() == len(roots)
    torch.testing.assert_close(plan.sizes, sizes)
    torch.testing.assert_close(
        (merged * sizes[..., None]).sum(1) / sizes.sum(), x.mean(1), rtol=1e-10, atol=1e-12, check_dtype=False
    )


@given(roots=partitions, seed=st.integers(0, 2**31))
def test_matrix_is_the_merge(roots, seed):
    """The averaging matrix has rows that sum to 1 and does what merge does at unit sizes."""
    plan = plan_of(roots)
    matrix = plan.matrix()
    np.testing.assert_allclose(matrix[0].numpy(), oracle.averaging_matrix(roots), rtol=1e-6)
    np.testing.assert_allclose(matrix.sum(-1).numpy(), 1, rtol=1e-6)
    x = gaussian_tokens(1, len(roots), 3, seed)
    torch.testing.assert_close(matrix.double() @ x, plan.merge(x)[0], rtol=1e-5, atol=1e-6)


@given(roots=partitions, seed=st.integers(0, 2**31))
def test_merge_after_unmerge_is_the_identity(roots, seed):
    """Copies of one value average to that value: merge(unmerge(y)) = y."""
    plan = plan_of(roots)
    y = gaussian_tokens(1, plan.num_tokens, 3, seed)
    torch.testing.assert_close(plan.merge(plan.unmerge(y))[0], y, rtol=1e-12, atol=1e-13)


@given(n=st.integers(1, 12), seed=st.integers(0, 2**31), c=st.integers(1, 4), chain=st.integers(2, 4))
def test_composition_equals_one_step_after_another(n, seed, c, chain):
    """`a.then(b)` merges, sizes and unmerges as a followed by b; its matrix is the mean over original tokens."""
    rng = np.random.default_rng(seed)
    x = gaussian_tokens(1, n, c, seed)
    total_roots = list(range(n))
    total, value, size, width = pc.MergePlan.identity(1, n), x, None, n
    for _ in range(chain):
        roots = random_roots(rng, width, int(rng.integers(1, width + 1)))
        step = plan_of(roots)
        value, size = step.merge(value, size)
        total, total_roots, width = total.then(step), oracle.compose(total_roots, roots), step.num_tokens
    assert oracle.plan_roots(total)[0] == total_roots
    merged, sizes = total.merge(x)
    torch.testing.assert_close(merged, value, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sizes, size)
    np.testing.assert_allclose(total.matrix()[0].numpy(), oracle.averaging_matrix(total_roots), rtol=1e-6)


@given(n=st.integers(2, 12), seed=st.integers(0, 2**31))
def test_composition_after_dropping(n, seed):
    """What was dropped stays dropped through a composition, and only survivors are averaged."""
    rng = np.random.default_rng(seed)
    kept = int(rng.integers(1, n))
    first = random_roots(rng, n, kept, dropped=int(rng.integers(1, n - kept + 1)))
    second = random_roots(rng, kept, int(rng.integers(1, kept + 1)))
    a, b = plan_of(first, drops=True), plan_of(second)
    x = gaussian_tokens(1, n, 3, seed)
    total = a.then(b)
    assert oracle.plan_roots(total)[0] == oracle.compose(first, second)
    torch.testing.assert_close(total.merge(x)[0], b.merge(*a.merge(x))[0], rtol=1e-10, atol=1e-12)
    restored = total.unmerge(total.merge(x)[0])
    assert restored[total.assignment < 0].eq(0).all(), "dropped tokens come back as zeros"


@given(roots=partitions, prefix=st.integers(0, 4), seed=st.integers(0, 2**31))
def test_prefix_stays_first_and_untouched(roots, prefix, seed):
    """`with_prefix(p)` puts p untouched tokens in front of the same plan."""
    plan = plan_of(roots).with_prefix(prefix)
    shifted = list(range(prefix)) + [root + prefix for root in roots]
    oracle.check_partition(plan, len(shifted), len(oracle.anchors(shifted)))
    assert oracle.plan_roots(plan)[0] == shifted
    x = gaussian_tokens(1, len(shifted), 3, seed)
    merged, sizes = plan.merge(x)
    assert torch.equal(merged[:, :prefix], x[:, :prefix]) and sizes[0, :prefix].eq(1).all()
    np.testing.assert_allclose(merged[0].numpy(), oracle.merge(x[0], shifted)[0], rtol=1e-12, atol=1e-13)


def test_identity_does_nothing():
    """The identity plan is neutral for merge and on both sides of a composition."""
    identity = pc.MergePlan.identity(2, 5)
    x = gaussian_tokens(2, 5, 3, 0)
    merged, sizes = identity.merge(x)
    assert torch.equal(merged, x) and sizes.eq(1).all() and sizes.shape == (2, 5)
    plan = plan_of([0, 0, 2, 2, 4], [1, 1, 1, 3, 4])
    for composed in (identity.then(plan), plan.then(pc.MergePlan.identity(2, 3))):
        assert oracle.plan_roots(composed) == oracle.plan_roots(plan)
        torch.testing.assert_close(composed.merge(x)[0], plan.merge(x)[0])


@pytest.mark.parametrize("reduce", ["mean", "mlerp"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
def test_lone_tokens_pass_bit_for_bit(dtype, reduce):
    """A token that nobody joins is copied, never recomputed: any size, any dtype, infinity and tiny values included."""
    x = gaussian_tokens(1, 400, 7, 0, dtype)
    x[0, 0, 0], x[0, 1, 0], x[0, 2, 0] = math.inf, torch.finfo(dtype).max, torch.finfo(dtype).tiny
    roots = list(range(400))
    roots[398] = roots[399] = 397
    size = torch.randint(1, 50, (1, 400), generator=torch.Generator().manual_seed(0)).float()
    merged, _ = plan_of(roots, reduce=reduce).merge(x, size)
    assert merged.dtype == dtype
    assert torch.equal(merged[:, :397], x[:, :397])


def test_one_bad_token_stays_alone():
    """NaN and infinity reach their own group's output and no other, in merge and in unmerge."""
    x = gaussian_tokens(2, 6, 3, 0)
    x[0, 5], x[1, 2] = math.nan, math.inf
    plan = plan_of([0, 0, 2, 2, 4, 5], [0, 0, 2, 2, 4, 5])
    merged, _ = plan.merge(x)
    assert torch.isfinite(merged[0, :3]).all() and torch.isnan(merged[0, 3]).all()
    assert torch.isfinite(merged[1, [0, 2, 3]]).all()
    assert torch.isfinite(plan.unmerge(merged)[0, :5]).all()


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_means_accumulate_in_float32(dtype):
    """The mean of 4,000 half-precision tokens is the rounded exact mean, where a half accumulator would stall."""
    x = (gaussian_tokens(1, 4000, 3, 0) + 1).to(dtype)
    merged, size = plan_of([0] * 4000).merge(x)
    assert merged.dtype == dtype and size.dtype == torch.float32 and size.item() == 4000
    exact = x.double().mean(1)
    torch.testing.assert_close(merged[:, 0].double(), exact, rtol=torch.finfo(dtype).eps, atol=0)


def test_large_half_values_do_not_overflow():
    """Weighted sums beyond the half-precision range still average."""
    x = torch.full((1, 8, 2), 60000.0, dtype=torch.float16)
    merged, _ = plan_of([0] * 8).merge(x, torch.full((1, 8), 30.0))
    assert merged.eq(60000).all()


def test_merge_takes_views_and_keeps_the_input():
    """Non-contiguous tokens and sizes merge as copies do, and nothing is written into the input."""
    plan = plan_of([0, 0, 2, 2, 4], [1, 1, 1, 3, 4])
    base = gaussian_tokens(5, 2, 6, 0)
    x, size = base.transpose(0, 1)[..., ::2], torch.rand(5, 2).add(1).t()
    before = x.clone()
    merged, sizes = plan.merge(x, size)
    expected, expected_sizes = plan.merge(x.contiguous(), size.contiguous())
    assert torch.equal(merged, expected) and torch.equal(sizes, expected_sizes) and torch.equal(x, before)


def test_padded_items_merge_as_alone():
    """Items with different counts share a batch: each equals itself alone, unused slots are marked invalid."""
    items = [[0, 0, 2, 3, -1], [0, 0, 0, -1, -1], [0, 0, 0, 0, 4]]
    plan = plan_of(*items, drops=True)
    x = gaussian_tokens(3, 5, 4, 0)
    x[torch.tensor(items) < 0] = 1e6
    merged, sizes = plan.merge(x)
    assert plan.num_tokens == 3 and plan.valid.tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    assert plan.anchor.tolist() == [[0, 2, 3], [0, -1, -1], [0, 4, -1]]
    for item, roots in enumerate(items):
        value, size = oracle.merge(x[item], roots)
        np.testing.assert_allclose(merged[item][plan.valid[item]].numpy(), value, rtol=1e-12)
        assert sizes[item][plan.valid[item]].tolist() == size.tolist()
        np.testing.assert_allclose(plan.unmerge(merged)[item].numpy(), oracle.unmerge(value, roots), rtol=1e-12)
        np.testing.assert_allclose(
            plan.matrix()[item][plan.valid[item]].numpy(), oracle.averaging_matrix(roots), rtol=1e-6
        )
    assert torch.isfinite(merged).all()


@given(roots=partitions, seed=st.integers(0, 2**31))
def test_weighted_plans_average_with_their_weights(roots, seed):
    """A plan with weights merges to sum w x / sum w, and its matrix rows still sum to 1."""
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(rng.uniform(0.1, 2, (1, len(roots)))).float()
    plan = plan_of(roots, weight=weight)
    x = gaussian_tokens(1, len(roots), 3, seed)
    expected, _ = oracle.merge(x[0], roots, weight[0])
    np.testing.assert_allclose(plan.merge(x)[0][0].numpy(), expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(plan.matrix().sum(-1).numpy(), 1, rtol=1e-5)
    assert plan.merge(x)[1].sum().item() == len(roots), "sizes count tokens, whatever the weights"


@given(n=st.integers(2, 10), seed=st.integers(0, 2**31), which=st.sampled_from(["first", "second", "both"]))
def test_weights_compose(n, seed, which):
    """Composing weighted plans gives the averaging matrix of one step after the other, at unit sizes."""
    rng = np.random.default_rng(seed)
    kept = int(rng.integers(1, n + 1))
    steps = []
    for width, left, name in ((n, kept, "first"), (kept, int(rng.integers(1, kept + 1)), "second")):
        weight = torch.from_numpy(rng.uniform(0.2, 2, (1, width))).float() if which in (name, "both") else None
        steps.append(plan_of(random_roots(rng, width, left), weight=weight))
    first, second = steps
    x = gaussian_tokens(1, n, 3, seed)
    stepwise, _ = second.merge(*first.merge(x))
    composed = first.then(second)
    torch.testing.assert_close(composed.merge(x)[0], stepwise, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(composed.matrix().double() @ x, stepwise, rtol=1e-5, atol=1e-6)


@given(roots=partitions, seed=st.integers(0, 2**31))
def test_mlerp_keeps_the_largest_norm(roots, seed):
    """MLERP: direction of the mean, norm = the largest norm in the group; lone tokens untouched."""
    x = gaussian_tokens(1, len(roots), 4, seed)
    merged, sizes = plan_of(roots, reduce="mlerp").merge(x)
    np.testing.assert_allclose(merged[0].numpy(), oracle.mlerp(x[0], roots), rtol=1e-5, atol=1e-6)
    assert sizes.sum().item() == len(roots)


def test_mlerp_does_not_compose_silently():
    """Two steps of MLERP are no single reduction: the composition assigns and unmerges, but refuses to merge."""
    first, second = plan_of([0, 0, 2, 3], reduce="mlerp"), plan_of([0, 0, 2], reduce="mlerp")
    composed = first.then(second)
    assert oracle.plan_roots(composed)[0] == [0, 0, 0, 3]
    y = gaussian_tokens(1, 2, 3, 0)
    assert torch.equal(composed.unmerge(y), first.unmerge(second.unmerge(y)))
    for refused in (lambda: composed.merge(gaussian_tokens(1, 4, 3, 0)), composed.matrix, first.matrix):
        with pytest.raises(ValueError):
            refused()


def test_mlerp_of_opposite_tokens_is_finite():
    """A group whose mean vanishes has no direction; the result is finite all the same."""
    x = torch.tensor([[[1.0, 2.0], [-1.0, -2.0], [3.0, 0.0]]])
    assert torch.isfinite(plan_of([0, 0, 2], reduce="mlerp").merge(x)[0]).all()


def test_gradients_flow_through_merge_and_unmerge():
    """Merge and unmerge are linear maps of the tokens with the exact derivative (checked by finite differences)."""
    plan = plan_of([0, 0, 2, 2, 2], [1, 1, 1, 1, 4])
    x = gaussian_tokens(2, 5, 3, 0).requires_grad_()
    size = torch.tensor([[1.0, 2, 3, 1, 1], [2, 1, 1, 5, 3]])
    assert torch.autograd.gradcheck(lambda value: plan.merge(value, size)[0], x)
    assert torch.autograd.gradcheck(lambda value: plan.unmerge(plan.merge(value)[0]), x)


def test_lone_tokens_have_unit_gradient():
    """A token that stays alone passes its gradient through unchanged, whatever its size."""
    plan = plan_of([0, 0, 2])
    x = gaussian_tokens(1, 3, 2, 0, torch.float32).requires_grad_()
    plan.merge(x, torch.tensor([[1.0, 3.0, 7.0]]))[0].sum().backward()
    torch.testing.assert_close(x.grad[0], torch.tensor([[0.25] * 2, [0.75] * 2, [1.0] * 2]))


def test_plan_is_frozen():
    """A plan is a value: its fields cannot be reassigned."""
    plan = plan_of([0, 0, 2])
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.num_tokens = 5


WRONG_SHAPES = {
    "merge: tokens": (lambda p: p.merge(torch.zeros(1, 5, 2)), ("5", "3")),
    "merge: size": (lambda p: p.merge(torch.zeros(1, 3, 2), torch.ones(1, 7)), ("7", "3")),
    "unmerge: tokens": (lambda p: p.unmerge(torch.zeros(1, 9, 2)), ("9", "2")),
    "then: tokens": (lambda p: p.then(pc.MergePlan.identity(1, 8)), ("8", "2")),
    "merge: batch": (lambda p: p.merge(torch.zeros(4, 3, 2)), ("4", "1")),
}


@pytest.mark.parametrize("case", list(WRONG_SHAPES))
def test_errors_name_both_numbers(case):
    """A mismatch raises ValueError with the number given and the number expected."""
    call, numbers = WRONG_SHAPES[case]
    with pytest.raises(ValueError) as caught:
        call(plan_of([0, 0, 2]))
    assert all(number in str(caught.value) for number in numbers), str(caught.value)


# ------------------------------------------------------------------------------------------------------ LinearPlan
def pooling(n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Average every two neighbours, and copy back."""
    forward = torch.zeros(n // 2, n, dtype=torch.float64)
    for slot in range(n // 2):
        forward[slot, 2 * slot] = forward[slot, 2 * slot + 1] = 0.5
    return forward, forward.t() * 2


@pytest.mark.parametrize("batched", [False, True])
def test_linear_plan_is_its_matrices(batched):
    """A LinearPlan merges by its forward matrix, unmerges by its backward one and counts every output once."""
    forward, backward = pooling()
    if batched:
        forward, backward = forward.expand(2, -1, -1), backward.expand(2, -1, -1)
    plan = pc.LinearPlan(forward, backward)
    x = gaussian_tokens(2, 6, 4, 0)
    merged, sizes = plan.merge(x)
    assert plan.num_tokens == 3 and sizes.dtype == torch.float32 and sizes.eq(1).all() and sizes.shape == (2, 3)
    torch.testing.assert_close(merged, (x[:, ::2] + x[:, 1::2]) / 2)
    torch.testing.assert_close(plan.unmerge(merged), merged.repeat_interleave(2, dim=1))
    torch.testing.assert_close(plan.matrix().expand(2, -1, -1), pooling()[0].expand(2, -1, -1), check_dtype=False)


def test_linear_plans_compose_with_everything():
    """Linear then linear, linear then partition and partition then linear equal one step after the other."""
    forward, backward = pooling(8)
    linear = pc.LinearPlan(forward, backward)
    x = gaussian_tokens(2, 8, 3, 0)
    after = plan_of([0, 0, 2, 2], [1, 1, 1, 3])
    before = plan_of([0, 0, *range(2, 10)], [*range(8), 8, 8])
    ten_tokens = gaussian_tokens(2, 10, 3, 1)
    narrow = pc.LinearPlan(*pooling(4))
    half = pc.LinearPlan(torch.full((1, 9), 1 / 9, dtype=torch.float64), torch.ones(9, 1, dtype=torch.float64))
    for first, second, value in ((linear, narrow, x), (linear, after, x), (before, half, ten_tokens)):
        composed = first.then(second)
        merged, _ = second.merge(*first.merge(value))
        torch.testing.assert_close(composed.merge(value)[0], merged, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(
            composed.unmerge(merged), first.unmerge(second.unmerge(merged)), rtol=1e-6, atol=1e-7
        )


def test_linear_plan_with_prefix():
    """Prefix tokens pass a LinearPlan untouched, in front."""
    plan = pc.LinearPlan(*pooling()).with_prefix(2)
    x = gaussian_tokens(1, 8, 3, 0)
    merged, _ = plan.merge(x)
    assert plan.num_tokens == 5 and torch.equal(merged[:, :2], x[:, :2])
    torch.testing.assert_close(merged[:, 2:], (x[:, 2::2] + x[:, 3::2]) / 2)


@pytest.mark.parametrize("dtype", HALF)
def test_linear_plan_keeps_the_dtype(dtype):
    """Tokens leave a LinearPlan in the dtype they came in."""
    plan = pc.LinearPlan(*(matrix.float() for matrix in pooling()))
    merged, sizes = plan.merge(gaussian_tokens(1, 6, 3, 0, dtype))
    assert merged.dtype == dtype and sizes.dtype == torch.float32 and plan.unmerge(merged).dtype == dtype


# ------------------------------------------------------------------------------------------- the checkers can fail
BROKEN = {
    "a slot without members": lambda p: p.settled(assignment=torch.zeros_like(p.assignment)),
    "a token without a slot": lambda p: p.settled(assignment=torch.tensor([[0, 0, 1, -1]])),
    "an anchor outside its slot": lambda p: p.settled(anchored=torch.tensor([[True, True, False, False]])),
    "anchors out of order": lambda p: types.SimpleNamespace(
        anchor=p.anchor.flip(1), assignment=1 - p.assignment, num_tokens=p.num_tokens
    ),
}


@pytest.mark.parametrize("fault", list(BROKEN))
def test_the_checker_catches_a_wrong_plan(fault):
    """`check_partition` refuses deliberately broken plans and accepts the sound one."""
    sound = plan_of([0, 0, 2, 2])
    oracle.check_partition(sound, 4, 2)
    with pytest.raises(AssertionError):
        oracle.check_partition(BROKEN[fault](sound), 4, 2)


def test_tokens_of_size_zero_merge_to_nothing():
    """Padding of size 0 in a group of its own: zeros and size 0, never NaN, whatever the other groups are."""
    plan = pc.MergePlan.from_roots(torch.tensor([[0, 0, 2, 2]]))
    x = torch.ones(1, 4, 3)
    merged, size = plan.merge(x, torch.tensor([[1.0, 2.0, 0.0, 0.0]]))
    assert merged.tolist() == [[[1.0] * 3, [0.0] * 3]] and size.tolist() == [[3.0, 0.0]]


def test_a_plan_of_padded_items_moves_to_another_device():
    """Also the identity, whose tokens keep their places beside the padding."""
    kept = torch.tensor([[True, False, True]])
    plan = pc.MergePlan.identity(1, 3, valid=kept)
    moved = plan.to("cpu:0")  # another device than `cpu`, by name
    assert moved is not plan
    assert moved.valid.tolist() == kept.tolist() and moved.assignment.tolist() == [[0, -1, 2]]


# --- plans made of pairs


def test_pairs_that_are_not_in_use_may_hold_anything():
    source, target = torch.tensor([[1, 3], [1, -1]]), torch.tensor([[0, 2], [0, 99]])
    active, mask = torch.tensor([[True, True], [True, False]]), torch.ones(2, 4, dtype=torch.bool)
    plan = pc.MergePlan.from_merges(source, target, 4, active=active, mask=mask)
    assert plan.assignment.tolist() == [[0, 0, 1, 1], [0, 0, 1, 2]]


def pairs_of(*items: list[int]) -> pc.MergePlan:
    """The plan of these roots from its pairs, in an order that is not raster; all items lose equally many tokens."""
    going = [[i for i in reversed(range(len(roots))) if roots[i] != i] for roots in items]
    joined = [[roots[i] for i in part] for roots, part in zip(items, going, strict=True)]
    source, target = (torch.tensor(part, dtype=torch.long).view(len(items), -1) for part in (going, joined))
    return pc.MergePlan.from_merges(source, target, len(items[0]))


@given(n=st.integers(1, 12), batch=st.integers(1, 3), prefix=st.integers(0, 3), sized=st.booleans(),
       seed=st.integers(0, 2**31))
def test_pairs_are_the_plan_of_their_roots(n, batch, prefix, sized, seed):
    """From pairs or from roots: the same slots, merges behind a prefix, sizes and compositions."""
    rng = np.random.default_rng(seed)
    kept = int(rng.integers(1, n + 1))
    items = [random_roots(rng, n, kept) for _ in range(batch)]
    pairs, plan = pairs_of(*items), plan_of(*items)
    x = gaussian_tokens(batch, prefix + n, 3, seed)
    size = torch.from_numpy(rng.integers(0, 4, x.shape[:2])).double() if sized else None
    for got, expected in zip(pairs.merge(x, size, prefix=prefix), plan.merge(x, size, prefix=prefix), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
        assert got.shape[1] == prefix + kept
    for name in ("assignment", "anchored", "anchor", "sizes"):
        assert torch.equal(getattr(pairs, name), getattr(plan, name)), name
    again = plan_of(*[random_roots(rng, kept, 1)] * batch)
    assert torch.equal(pairs.then(again).matrix(), plan.then(again).matrix())
    assert torch.equal(pairs.with_prefix(prefix).assignment, plan.with_prefix(prefix).assignment)
    assert pairs.settled(reduce="mlerp").reduce == "mlerp" and type(pairs.settled()) is pc.MergePlan


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
def test_pairs_leave_lone_tokens_alone(dtype):
    """Bit for bit, whatever their sizes; and their gradient is 1."""
    x = gaussian_tokens(1, 300, 5, 0, dtype)
    x[0, 0, 0], x[0, 1, 0] = math.inf, torch.finfo(dtype).max
    x.requires_grad_(True)
    size = torch.randint(1, 50, (1, 300), generator=torch.Generator().manual_seed(0)).float()
    merged, _ = pairs_of([*range(298), 297, 297]).merge(x, size)
    assert merged.dtype == dtype and torch.equal(merged[0, :297], x[0, :297])
    merged[0, :297].sum().backward()
    assert x.grad[0, :297].eq(1).all() and x.grad[0, 297:].eq(0).all()


def test_pairs_have_the_gradient_of_the_mean():
    x = gaussian_tokens(2, 6, 2, 0).requires_grad_(True)
    size = torch.arange(1.0, 13.0, dtype=torch.float64).view(2, 6)
    plan = pairs_of([0, 0, 2, 2, 2, 5], [3, 1, 1, 3, 4, 1])
    assert torch.autograd.gradcheck(lambda x: plan.merge(x, size)[0], x)


def test_pairs_of_no_items_and_wrong_tokens():
    nothing = torch.zeros(0, 2, dtype=torch.long)
    merged, size = pc.MergePlan.from_merges(nothing, nothing, 5).merge(torch.zeros(0, 6, 3), prefix=1)
    assert merged.shape == (0, 4, 3) and size.shape == (0, 4)
    for x, size in ((torch.zeros(1, 4, 2), None), (torch.zeros(1, 3, 2), torch.ones(1, 7))):
        with pytest.raises(ValueError, match="(4|7).*3|3.*(4|7)"):
            pairs_of([0, 0, 2]).merge(x, size)
    for name in ("num_tokens", "source", "assignment", "anything"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(pairs_of([0, 0, 2]), name, 5)


def test_plans_of_no_tokens():
    for plan in (pc.MergePlan.identity(2, 0), pc.plan(torch.zeros(2, 0, 4), 0),
                 pc.MergePlan.from_merges(*[torch.zeros(2, 0, dtype=torch.long)] * 2, 0)):
        merged, size = plan.merge(torch.zeros(2, 0, 3))
        assert merged.shape == (2, 0, 3) and size.shape == plan.sizes.shape == (2, 0)
        assert plan.unmerge(merged).shape == (2, 0, 3) and plan.merge(torch.ones(2, 1, 3), prefix=1)[0].eq(1).all()


def test_pairs_are_copied_with_what_was_worked_out():
    plan = pairs_of([0, 0, 2, 2], [1, 1, 3, 3])
    for copied in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan)), copy.copy(plan)):
        assert torch.equal(copied.assignment, plan.assignment)
        assert torch.equal(copied.merge(torch.ones(2, 4, 1))[1], plan.sizes)
