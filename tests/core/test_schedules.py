"""Laws of schedules: how many tokens go in which layer."""

from __future__ import annotations

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pitome_core as pc
import pitome_core.experiments.baselines
from pitome_core.schedules import keep_schedule, tokens_removed

GOLDEN_925 = (197, 183, 170, 158, 147, 137, 127, 118, 110, 102, 95, 88, 82)
GOLDEN_FINALS = {0.9: 60, 0.925: 82, 0.95: 111, 0.975: 151, 1.0: 197}


@given(n=st.integers(0, 5000), thousandths=st.integers(1, 1000))
def test_removal_is_the_exact_floor(n, thousandths):
    """k = floor(N - N r) in exact arithmetic, never one off through a float (r in thousandths)."""
    removed = tokens_removed(n, thousandths / 1000)
    assert isinstance(removed, int) and removed == oracle.tokens_removed(n, thousandths / 1000)


@pytest.mark.parametrize(
    ("n", "keep", "k"), [(200, 0.9, 20), (196, 0.925, 14), (10, 0.7, 3), (196, 1.0, 0), (1, 0.9, 0)]
)
def test_removal_golden(n, keep, k):
    """The float is guarded: 200 tokens at 0.9 lose 20, never 19."""
    assert tokens_removed(n, keep) == oracle.tokens_removed(n, keep) == k


@given(n=st.integers(1, 600), keep=st.integers(500, 1000), layers=st.integers(1, 24), prefix=st.integers(0, 5))
def test_keep_schedule_is_the_recurrence(n, keep, layers, prefix):
    """Every layer removes floor(N - N r) of what the last one left; the prefix is carried along, never counted."""
    schedule = keep_schedule(n, keep / 1000, layers, prefix)
    assert isinstance(schedule, pc.Schedule)
    assert list(schedule.remove) == oracle.keep_removals(n, keep / 1000, layers)
    assert len(schedule.tokens) == layers + 1 and schedule.tokens[0] == n + prefix and schedule.prefix == prefix
    for layer, k in enumerate(schedule.remove):
        assert schedule.tokens[layer + 1] == schedule.tokens[layer] - k
    assert schedule.tokens[-1] >= prefix + 1


def test_schedule_golden():
    """DeiT's published token counts."""
    assert tuple(keep_schedule(196, 0.925, 12, prefix=1).tokens) == GOLDEN_925
    for keep, final in GOLDEN_FINALS.items():
        assert keep_schedule(196, keep, 12, prefix=1).tokens[-1] == final


@pytest.fixture(scope="module")
def deit():
    """DeiT-S on the meta device: shapes without weights."""
    timm = pytest.importorskip("timm")
    return timm.create_model("deit_small_patch16_224", device="meta")


@pytest.fixture(autouse=True)
def unpatched(request):
    yield
    if "deit" in request.fixturenames:
        pc.remove(request.getfixturevalue("deit"))


def test_schedule_of_a_model(deit):
    """The model's own size and prefix go into its schedule."""
    schedule = pc.schedule(deit, keep=0.925)
    assert tuple(schedule.tokens) == GOLDEN_925 and schedule.prefix == 1 and not schedule.clamped
    assert pc.schedule(deit, keep=0.9, input_size=(3, 224, 224)).tokens[-1] == 60


def test_a_list_of_keeps_is_one_per_layer(deit):
    """Per-layer ratios act in their layer; a list of the wrong length names both lengths."""
    keeps = [1.0, 0.9] + [1.0] * 9 + [0.5]
    schedule = pc.schedule(deit, keep=keeps)
    assert list(schedule.remove) == [0, 19] + [0] * 9 + [88]
    with pytest.raises(ValueError, match="(?s)3.*12|12.*3"):
        pc.schedule(deit, keep=[0.9] * 3)


@pytest.mark.parametrize("k", [0, 8, 16, 40])
def test_fixed_removal_is_clamped(deit, k):
    """A fixed k per layer is reduced to half of what is there, and the schedule says so."""
    schedule = pc.schedule(deit, remove=k)
    left, expected = 196, []
    for _ in range(12):
        expected.append(min(k, left // 2))
        left -= expected[-1]
    assert list(schedule.remove) == expected
    assert schedule.clamped == (expected != [k] * 12)


def test_fixed_removal_knows_the_methods_limit(deit):
    """A method that may remove all but one is clamped there, not at half."""

    pc.apply(deit, "random_prune", keep=0.9)
    schedule = pc.schedule(deit, remove=[150] + [0] * 11)
    assert schedule.remove[0] == 150 and not schedule.clamped
    assert sum(pc.schedule(deit, remove=100).remove) == 195


@pytest.mark.parametrize("final", [1, 5, 40, 81, 150, 195, 196])
def test_target_tokens_are_met_exactly(deit, final):
    """`tokens=` ends with exactly that many patches, and no layer removes more than half."""
    schedule = pc.schedule(deit, tokens=final)
    assert schedule.tokens[-1] - schedule.prefix == final and schedule.tokens[0] == 197
    for layer, k in enumerate(schedule.remove):
        assert 0 <= k <= (schedule.tokens[layer] - 1) // 2


@pytest.mark.parametrize("share", [0.95, 0.8, 0.6, 0.5])
def test_target_flops_are_met_nearly(deit, share):
    """`flops=` as a share or as a number lands within 1.5 % of the whole model's cost from the target."""
    whole = pc.flops(deit).total
    for target in (share, share * whole):
        schedule = pc.schedule(deit, flops=target)
        cost = pc.flops(pc.apply(deit, "pitome", keep=schedule)).total
        pc.remove(deit)
        assert abs(cost / whole - share) < 0.015


def test_a_schedule_can_be_applied(deit):
    """`apply(keep=schedule)` runs that schedule."""
    schedule = pc.schedule(deit, remove=13)
    counts = pc.flops(pc.apply(deit, "tome", keep=schedule))
    assert tuple(counts.tokens) == tuple(schedule.tokens)


BAD = {
    "none given": {},
    "two given": {"keep": 0.9, "remove": 3},
    "keep zero": {"keep": 0.0},
    "keep above one": {"keep": 1.1},
    "keep not a number": {"keep": float("nan")},
    "negative removal": {"remove": -1},
    "more tokens than there are": {"tokens": 197},
    "no tokens": {"tokens": 0},
    "no budget": {"flops": 0.0},
    "impossible budget": {"flops": 1e-6},
}


@pytest.mark.parametrize("case", list(BAD))
def test_impossible_targets_raise(deit, case):
    """A target that cannot be met, or two at once, is a ValueError."""
    with pytest.raises(ValueError):
        pc.schedule(deit, **BAD[case])


def test_schedule_for_another_size(build_vit):
    """The patch count follows the input size of a model with dynamic size."""
    model = build_vit(dynamic_img_size=True)
    assert pc.schedule(model, keep=0.9).tokens[0] == 17
    assert pc.schedule(model, keep=0.9, input_size=(3, 96, 64)).tokens[0] == 25


def test_a_schedule_for_another_size_is_refused(build_vit, images):
    """A schedule fits one input size: running it on another raises with both numbers, and keep ratios never do."""
    model = build_vit(dynamic_img_size=True)
    pc.apply(model, "pitome", keep=pc.schedule(model, remove=4))
    with torch.no_grad():
        model(images(1))
        with pytest.raises(ValueError, match="(?s)16.*36|36.*16|17.*37|37.*17"):
            model(images(1, 96))
        pc.apply(model, "pitome", keep=0.8)
        model(images(1, 96))
