"""Bootstrap intervals and McNemar's test: known cases, slow loops, coverage, clusters, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pitome_core.experiments.records import statistics
from pitome_core.experiments.records.statistics import Difference, mcnemar, mean_interval, paired_difference, quartiles


def test_a_constant_has_no_width():
    assert mean_interval([0.25] * 7) == (0.25, 0.25, 0.25)


def test_the_interval_is_that_of_a_loop():
    values = np.random.default_rng(1).normal(size=30)
    drawn = np.random.default_rng(0).integers(30, size=(500, 30))
    means = sorted(float(np.mean([values[i] for i in row])) for row in drawn)
    mean, low, high = mean_interval(values, resamples=500)
    assert mean == pytest.approx(values.mean())
    assert low == pytest.approx(np.quantile(means, 0.025)) and high == pytest.approx(np.quantile(means, 0.975))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(2)
    hits = 0
    for trial in range(300):
        _, low, high = mean_interval(generator.normal(size=40), resamples=400, seed=trial)
        hits += low <= 0 <= high
    assert 0.89 <= hits / 300 <= 0.98


def test_copies_of_a_photograph_are_no_new_evidence():
    """Repeating every value within its cluster leaves the interval as it was; without clusters it shrinks."""
    values = np.random.default_rng(3).normal(size=12)
    alone = mean_interval(values)
    copies, labels = np.repeat(values, 9), np.repeat(np.arange(12), 9)
    assert mean_interval(copies, labels) == pytest.approx(alone)
    _, low, high = mean_interval(copies)
    assert high - low < 0.6 * (alone[2] - alone[1])


@pytest.mark.parametrize("values, clusters", [([], None), ([[1.0]], None), ([1.0, 2.0], ["a"])])
def test_bad_input_is_named(values, clusters):
    with pytest.raises(ValueError, match="value"):
        mean_interval(values, clusters)


# --- paired differences


def crossed(generator, objects, photographs, noise=1.0):
    """Every object on every photograph: values with a part of each, and both lists of labels."""
    o, p = np.repeat(np.arange(objects), photographs), np.tile(np.arange(photographs), objects)
    parts = generator.normal(size=objects)[o] + generator.normal(size=photographs)[p]
    return parts + noise * generator.normal(size=len(o)), o, p


def test_a_difference_by_hand():
    """Two items, differences 0 and 1: the standard error is 1/2, and t with one degree of freedom is a Cauchy value."""
    found = paired_difference([3.0, 5.0], [3.0, 4.0])
    quantile, power = (math.tan(math.pi * (at - 0.5)) for at in (0.975, 0.8))
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5 - quantile / 2, 0.5 + quantile / 2))
    assert (found.items, found.clusters, found.side, found.kind) == (2, (2,), 0, "t")
    assert found.detectable == pytest.approx((quantile + power) / 2)
    assert found.p == pytest.approx(0.5)  # t = 1, and half of a Cauchy distribution lies between -1 and 1
    assert str(found) == "+0.500 [-5.853, +6.853]" and found.format(1) == "+0.5 [-5.9, +6.9]"


def test_a_bootstrap_by_hand():
    """Items 0 and 1 in equal numbers: a resample of 40 has a binomial mean, of standard deviation sqrt(1/160)."""
    found = paired_difference([0.0, 1.0] * 20, [0.0] * 40)
    assert found.kind == "bootstrap" and found.mean == 0.5
    assert (found.low, found.high) == pytest.approx((0.35, 0.65), abs=0.026)
    assert found.detectable == pytest.approx(2.802 * math.sqrt(1 / 160), rel=0.03)
    assert found.p == 2 / 10_001  # no resample is all zeros; never 0


@pytest.mark.parametrize("low, high, side", [(0.1, 0.2, 1), (-0.2, -0.1, -1), (-0.1, 0.1, 0), (0.0, 0.1, 0)])
def test_the_side_of_zero(low, high, side):
    assert Difference(0.0, low, high, 4, (4,), 0.1, 0.5, "t").side == side


@pytest.mark.parametrize("low, high, said", [
    (0.1, 0.2, "above, +0.1 [+0.1, +0.2]"), (-0.2, -0.1, "below, +0.1 [-0.2, -0.1]"),
    (-0.1, 0.1, "no difference found, +0.1 [-0.1, +0.1] (detectable 0.3)"),
])
def test_in_words(low, high, said):
    """A difference that was not found is said with the one that would have been."""
    assert Difference(0.1, low, high, 4, (4,), 0.3, 0.5, "t").in_words(1) == said


def test_no_minus_before_a_rounded_zero():
    assert str(Difference(-0.00001, -0.0004, 0.0123, 4, (4,), 0.1, 0.5, "t")) == "+0.000 [+0.000, +0.012]"


def test_it_is_the_interval_of_the_mean_difference():
    first, second, labels = *np.random.default_rng(4).normal(size=(2, 30)), np.arange(30) % 7
    found = paired_difference(first, second, labels)
    assert (found.mean, found.low, found.high) == mean_interval(first - second, labels)
    assert found.clusters == (7,)


def naive_crossed(values, objects, photographs, resamples, seed):
    """The pigeonhole bootstrap, one item of one resample at a time."""
    generator = np.random.default_rng(seed)
    names = [sorted(set(objects)), sorted(set(photographs))]
    drawn = [generator.integers(len(kind), size=(resamples, len(kind))).tolist() for kind in names]
    means = []
    for row in range(resamples):
        total, weight = 0.0, 0
        for value, o, p in zip(values, objects, photographs, strict=True):
            times = drawn[0][row].count(names[0].index(o)) * drawn[1][row].count(names[1].index(p))
            total, weight = total + times * value, weight + times
        if weight:
            means.append(total / weight)
    return means


def test_crossed_clusters_are_those_of_a_loop():
    generator = np.random.default_rng(5)
    values = generator.normal(size=90)  # not every object on every photograph, some pairs twice
    objects = [f"object {i}" for i in [*range(36), *generator.integers(36, size=52), 1, 1]]
    photographs = [f"photograph {i}" for i in [*range(30), *generator.integers(30, size=58), 2, 2]]
    means = naive_crossed(values, objects, photographs, 100, seed=0)
    found = paired_difference(values, np.zeros(90), (objects, photographs), resamples=100)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert found.detectable == pytest.approx((1.960 + 0.842) * np.std(means, ddof=1))
    assert found.clusters == (len(set(objects)), len(set(photographs)))


def test_resamples_in_which_nothing_is_left_are_left_out():
    """Three objects, each on a photograph of its own: two draws may have nothing in common."""
    labels, values = np.arange(3), np.array([1.0, 2.0, 3.0])
    naive = naive_crossed(values, list(labels), list(labels), 300, seed=0)
    found = statistics._resampled_means(values, [labels, labels], 300, seed=0)
    assert len(naive) < 300 and found == pytest.approx(naive)


def test_a_factor_with_one_level_changes_nothing():
    values = np.random.default_rng(6).normal(size=80)
    for number, exact in ((8, 1e-12), (40, 0.1)):  # the bootstrap draws other numbers
        labels = np.arange(80) % number
        alone = paired_difference(values, np.zeros(80), labels)
        both = paired_difference(values, np.zeros(80), (labels, np.zeros(80)))
        assert both.clusters == (number, 1) and both.kind == alone.kind
        assert (both.low, both.high, both.detectable) == pytest.approx(
            (alone.low, alone.high, alone.detectable), rel=exact
        )


def test_crossed_clusters_count_noise_of_single_items_threefold():
    """What the docstring warns of: pure noise, one item for every pair, has three times its variance."""
    generator = np.random.default_rng(7)
    _, o, p = crossed(generator, 40, 40)
    noise = generator.normal(size=1600)
    plain, both = paired_difference(noise, 0 * noise), paired_difference(noise, 0 * noise, (o, p))
    assert 1.5 < both.detectable / plain.detectable < 1.95  # the square root of 3 is 1.73


def test_intervals_over_crossed_clusters_cover_the_truth():
    """Where items share objects and photographs, clusters in both ways are needed: one way is too narrow."""
    generator, hits, one_way = np.random.default_rng(8), 0, 0
    for trial in range(200):
        values, o, p = crossed(generator, 36, 30)
        both = paired_difference(values, np.zeros(len(values)), (o, p), resamples=300, seed=trial)
        single = paired_difference(values, np.zeros(len(values)), o, resamples=300, seed=trial)
        hits += both.low <= 0 <= both.high
        one_way += single.low <= 0 <= single.high
    assert 0.88 <= hits / 200 <= 0.99 and one_way / 200 < 0.85


def test_the_detectable_difference_is_found_four_times_in_five():
    generator, hits = np.random.default_rng(9), 0
    size = 2.802 / math.sqrt(50)  # the detectable difference for 50 items of variance 1
    for trial in range(300):
        hits += paired_difference(generator.normal(size, size=50), np.zeros(50), resamples=300, seed=trial).side == 1
    assert 0.72 <= hits / 300 <= 0.88


def test_the_detectable_difference_shrinks_with_the_root_of_the_number():
    values = np.random.default_rng(10).normal(size=1600)
    few, many = (paired_difference(values[:n], np.zeros(n)).detectable for n in (100, 1600))
    assert many == pytest.approx(few / 4, rel=0.2)
    # Copies within a cluster are no new evidence here either.
    copies, labels = np.repeat(values[:100], 16), np.repeat(np.arange(100), 16)
    assert paired_difference(copies, 0 * copies, labels).detectable == pytest.approx(few)


@pytest.mark.parametrize("kind", ["items", "one", "two", "many", "two many"])
def test_exchanging_the_two_changes_the_sign_only(kind):
    first, second, n = *np.random.default_rng(11).normal(size=(2, 90)), np.arange(90)
    labels = {"items": None, "one": n % 9, "two": (n % 9, n // 9), "many": n % 40, "two many": (n % 31, n // 2)}[kind]
    forth, back = paired_difference(first, second, labels), paired_difference(second, first, labels)
    assert (back.mean, back.low, back.high) == pytest.approx((-forth.mean, -forth.high, -forth.low))
    assert (back.detectable, back.p) == pytest.approx((forth.detectable, forth.p)) and back.side == -forth.side


def test_one_cluster_says_nothing_about_others():
    found = paired_difference([1.0, 2.0], [0.0, 0.0], ["one", "one"])
    assert found.mean == 1.5 and found.clusters == (1,) and found.side == 0
    assert all(math.isnan(value) for value in (found.low, found.high, found.detectable, found.p))
    assert mean_interval([1.0, 2.0], [0, 0])[0] == 1.5 and math.isnan(mean_interval([3.0])[1])


def test_labels_in_a_pair_of_items_are_labels():
    """Two items with two labels are no pair of label lists."""
    assert paired_difference([1.0, 2.0], [0.0, 0.0], ["a", "b"]).clusters == (2,)
    assert paired_difference([1.0, 2.0], [0.0, 0.0], (["a", "b"], ["c", "c"])).clusters == (2, 1)


def test_many_items_go_through_in_pieces():
    """Drawing in pieces is drawing at once."""
    values, o, p = crossed(np.random.default_rng(12), 30, 30)
    found = paired_difference(values, np.zeros(900), (o, p))
    assert found.items == 900 and found.low < found.mean < found.high
    large = np.random.default_rng(13).normal(size=30_000)
    drawn = np.random.default_rng(0).integers(30_000, size=(150, 30_000))
    low, high = np.quantile(large[drawn].mean(axis=1), [0.025, 0.975])
    assert mean_interval(large, resamples=150)[1:] == pytest.approx((low, high))


BAD = [
    ([1.0, 2.0], [1.0], None, "2 outcomes in first and 1 in second"),
    ([], [], None, "at least one"),
    ([1.0, np.nan, np.nan], [1.0, 2.0, 3.0], None, "2 of 3 outcomes in first are no finite numbers .the first at 1"),
    ([1.0], [np.inf], None, "1 of 1 outcomes in second"),
    ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], ["a"], "3 values and 1 cluster labels"),
    ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], (["a"] * 3, ["b"] * 2), "3 values and 2 cluster labels"),
]


@pytest.mark.parametrize("first, second, clusters, words", BAD)
def test_bad_pairs_are_named(first, second, clusters, words):
    with pytest.raises(ValueError, match=words):
        paired_difference(first, second, clusters)


# --- right or wrong


def outcomes(both, only_first, only_second, neither):
    first = [1] * both + [1] * only_first + [0] * only_second + [0] * neither
    second = [1] * both + [0] * only_first + [1] * only_second + [0] * neither
    return first, second


@pytest.mark.parametrize(
    "only_first, only_second, p",
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (1, 9, 22 / 1024), (3, 3, 1.0), (2, 6, 2 * (1 + 8 + 28) / 256)],
)
def test_mcnemar_by_hand(only_first, only_second, p):
    found = mcnemar(*outcomes(40, only_first, only_second, 7))
    assert found[:2] == (only_first, only_second) and found.p == pytest.approx(p)
    swapped = mcnemar(*outcomes(40, only_second, only_first, 7))
    assert swapped.p == pytest.approx(p) and swapped[:2] == (only_second, only_first)


def test_mcnemar_is_for_right_or_wrong():
    assert mcnemar([True, False, True], [False, False, True]) == (1, 0, 1.0)
    with pytest.raises(ValueError, match="1 of 3 in second are neither, such as 0.5"):
        mcnemar([1, 0, 1], [1, 0.5, 0])
    with pytest.raises(ValueError, match="3 outcomes in first and 2 in second"):
        mcnemar([1, 0, 1], [1, 0])
    with pytest.raises(ValueError, match="no finite numbers"):
        mcnemar([1, np.nan], [1, 0])


def test_quartiles():
    assert quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == [2.0, 3.0, 4.0]
    assert quartiles([1 / 3], digits=3) == [0.333] * 3
