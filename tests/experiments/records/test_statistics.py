"""Bootstrap intervals and McNemar's test: known cases, slow loops, coverage, clusters, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pitome_core.experiments.records.statistics import Difference, bootstrap_mean, mcnemar, paired_difference, quartiles


def test_a_constant_has_no_width():
    assert bootstrap_mean([0.25] * 7) == (0.25, 0.25, 0.25)


def test_the_interval_is_that_of_a_loop():
    values = np.random.default_rng(1).normal(size=20)
    drawn = np.random.default_rng(0).integers(20, size=(500, 20))
    means = sorted(float(np.mean([values[i] for i in row])) for row in drawn)
    mean, low, high = bootstrap_mean(values, resamples=500)
    assert mean == pytest.approx(values.mean())
    assert low == pytest.approx(np.quantile(means, 0.025)) and high == pytest.approx(np.quantile(means, 0.975))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(2)
    hits = 0
    for trial in range(300):
        _, low, high = bootstrap_mean(generator.normal(size=40), resamples=400, seed=trial)
        hits += low <= 0 <= high
    assert 0.89 <= hits / 300 <= 0.98


def test_copies_of_a_photograph_are_no_new_evidence():
    """Repeating every value within its cluster leaves the interval as it was; without clusters it shrinks."""
    values = np.random.default_rng(3).normal(size=12)
    alone = bootstrap_mean(values)
    copies, labels = np.repeat(values, 9), np.repeat(np.arange(12), 9)
    assert bootstrap_mean(copies, labels) == pytest.approx(alone)
    _, low, high = bootstrap_mean(copies)
    assert high - low < 0.6 * (alone[2] - alone[1])


@pytest.mark.parametrize("values, clusters", [([], None), ([[1.0]], None), ([1.0, 2.0], ["a"])])
def test_bad_input_is_named(values, clusters):
    with pytest.raises(ValueError, match="value"):
        bootstrap_mean(values, clusters)


# --- paired differences


def crossed(generator, objects, photographs, noise=1.0):
    """Every object on every photograph: values with a part of each, and both lists of labels."""
    o, p = np.repeat(np.arange(objects), photographs), np.tile(np.arange(photographs), objects)
    parts = generator.normal(size=objects)[o] + generator.normal(size=photographs)[p]
    return parts + noise * generator.normal(size=len(o)), o, p


def test_a_difference_by_hand():
    """Two items, differences 0 and 1: a resample has the mean 0, 1/2 or 1 with probability 1/4, 1/2, 1/4."""
    found = paired_difference([3.0, 5.0], [3.0, 4.0])
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)
    assert (found.items, found.clusters, found.side) == (2, (2,), 0)
    assert found.detectable == pytest.approx(2.802 * math.sqrt(1 / 8), rel=0.02)
    assert str(found) == "+0.500 [+0.000, +1.000]" and found.format(1) == "+0.5 [+0.0, +1.0]"


@pytest.mark.parametrize("low, high, side", [(0.1, 0.2, 1), (-0.2, -0.1, -1), (-0.1, 0.1, 0), (0.0, 0.1, 0)])
def test_the_side_of_zero(low, high, side):
    assert Difference(0.0, low, high, 4, (4,), 0.1).side == side


@pytest.mark.parametrize("low, high, said", [
    (0.1, 0.2, "above, +0.1 [+0.1, +0.2]"), (-0.2, -0.1, "below, +0.1 [-0.2, -0.1]"),
    (-0.1, 0.1, "no difference found, +0.1 [-0.1, +0.1] (detectable 0.3)"),
])
def test_in_words(low, high, said):
    """A difference that was not found is said with the one that would have been."""
    assert Difference(0.1, low, high, 4, (4,), 0.3).in_words(1) == said


def test_no_minus_before_a_rounded_zero():
    assert str(Difference(-0.00001, -0.0004, 0.0123, 4, (4,), 0.1)) == "+0.000 [+0.000, +0.012]"


def test_it_is_the_interval_of_the_mean_difference():
    first, second, labels = *np.random.default_rng(4).normal(size=(2, 30)), np.arange(30) % 7
    found = paired_difference(first, second, labels)
    assert (found.mean, found.low, found.high) == bootstrap_mean(first - second, labels)
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
    values = generator.normal(size=24)  # not every object on every photograph, some pairs twice
    objects = [f"object {i}" for i in generator.integers(6, size=24)]
    photographs = [f"photograph {i}" for i in generator.integers(4, size=24)]
    means = naive_crossed(values, objects, photographs, 400, seed=0)
    found = paired_difference(values, np.zeros(24), (objects, photographs), resamples=400)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert found.detectable == pytest.approx((1.960 + 0.842) * np.std(means, ddof=1))
    assert found.clusters == (len(set(objects)), len(set(photographs)))


def test_resamples_in_which_nothing_is_left_are_left_out():
    """Three objects, each on a photograph of its own: two draws may have nothing in common."""
    labels = ["a", "b", "c"]
    found = paired_difference([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], (labels, labels))
    assert len(naive_crossed([1.0, 2.0, 3.0], labels, labels, 300, seed=0)) < 300
    assert (found.low, found.high) == (1.0, 3.0) and np.isfinite(found.detectable)


def test_a_factor_with_one_level_changes_nothing():
    values, labels = np.random.default_rng(6).normal(size=40), np.arange(40) % 8
    alone = paired_difference(values, np.zeros(40), labels)
    both = paired_difference(values, np.zeros(40), (labels, np.zeros(40)))
    assert both.clusters == (8, 1)
    assert (both.low, both.high, both.detectable) == pytest.approx((alone.low, alone.high, alone.detectable), rel=0.1)


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
        values, o, p = crossed(generator, 25, 15)
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


@pytest.mark.parametrize("kind", ["items", "one", "two"])
def test_exchanging_the_two_changes_the_sign_only(kind):
    first, second = np.random.default_rng(11).normal(size=(2, 30))
    labels = {"items": None, "one": np.arange(30) % 9, "two": (np.arange(30) % 9, np.arange(30) // 9)}[kind]
    forth, back = paired_difference(first, second, labels), paired_difference(second, first, labels)
    assert (back.mean, back.low, back.high) == pytest.approx((-forth.mean, -forth.high, -forth.low))
    assert back.detectable == pytest.approx(forth.detectable) and back.side == -forth.side


def test_one_cluster_says_nothing_about_others():
    found = paired_difference([1.0, 2.0], [0.0, 0.0], ["one", "one"])
    assert found.mean == 1.5 and found.clusters == (1,) and found.side == 0
    assert all(math.isnan(value) for value in (found.low, found.high, found.detectable))


def test_labels_in_a_pair_of_items_are_labels():
    """Two items with two labels are no pair of label lists."""
    assert paired_difference([1.0, 2.0], [0.0, 0.0], ["a", "b"]).clusters == (2,)
    assert paired_difference([1.0, 2.0], [0.0, 0.0], (["a", "b"], ["c", "c"])).clusters == (2, 1)


def test_many_items_go_through_in_pieces():
    """Drawing in pieces is drawing at once."""
    values, o, p = crossed(np.random.default_rng(12), 30, 15)
    found = paired_difference(values, np.zeros(450), (o, p))
    assert found.items == 450 and found.low < found.mean < found.high
    large = np.random.default_rng(13).normal(size=30_000)
    drawn = np.random.default_rng(0).integers(30_000, size=(150, 30_000))
    low, high = np.quantile(large[drawn].mean(axis=1), [0.025, 0.975])
    assert bootstrap_mean(large, resamples=150)[1:] == pytest.approx((low, high))


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
