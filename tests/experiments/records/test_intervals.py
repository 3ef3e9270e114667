"""Intervals over few clusters, p-values and trainings: classical tests, slow loops, coverage, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pitome_core.experiments.records import statistics
from pitome_core.experiments.records.statistics import holm, mean_interval, paired_difference, trainings_difference

# --- few clusters: t


def slow_variance(values, labels):
    """The jackknife, one cluster at a time."""
    names = sorted(set(labels))
    without = [np.mean([v for v, at in zip(values, labels, strict=True) if at != name]) for name in names]
    return (1 - 1 / len(names)) * sum((mean - np.mean(values)) ** 2 for mean in without)


def t_interval(mean, variance, df):
    return mean, *(mean + sign * stats.t.ppf(0.975, df) * math.sqrt(variance) for sign in (-1, 1))


def test_one_item_per_cluster_is_the_classical_paired_t_test():
    for size in (2, 7, 29):
        first, second = np.random.default_rng(size).normal(0.3, size=(2, size))
        exact = stats.ttest_rel(first, second)
        low, high = exact.confidence_interval()
        for labels in (None, [f"scene {i}" for i in range(size)], (np.arange(size), np.arange(size)[::-1])):
            found = paired_difference(first, second, labels)
            assert (found.low, found.high, found.p) == pytest.approx((low, high, exact.pvalue)) and found.kind == "t"


def test_equal_clusters_are_a_t_test_of_their_means():
    values = np.random.default_rng(14).normal(size=(6, 40))
    exact = stats.ttest_1samp(values.mean(axis=1), 0)
    found = paired_difference(values.ravel(), np.zeros(240), np.repeat(np.arange(6), 40))
    assert (found.low, found.high, found.p) == pytest.approx((*exact.confidence_interval(), exact.pvalue))
    reach = (stats.t.ppf(0.975, 5) + stats.t.ppf(0.8, 5)) * stats.sem(values.mean(axis=1))
    assert found.detectable == pytest.approx(reach)


def test_the_t_interval_is_that_of_a_loop():
    generator = np.random.default_rng(15)
    labels = np.repeat(range(5), (2, 3, 5, 9, 17))
    others = generator.permutation(np.arange(36) % 12)  # of one size, so their degrees of freedom would be 11
    values = generator.normal(size=36) + labels + others
    variance, df = slow_variance(values, labels), 36**2 / (4 + 9 + 25 + 81 + 289) - 1
    assert mean_interval(values, labels) == pytest.approx(t_interval(values.mean(), variance, df))
    parts = [slow_variance(values, of) for of in (labels, others, labels * 100 + others)]
    assert parts[1] > parts[2], "the sum decides here"
    expected = t_interval(values.mean(), parts[0] + parts[1] - parts[2], df)
    assert mean_interval(values, (labels, others)) == pytest.approx(expected)
    assert mean_interval(values, (others, labels)) == pytest.approx(expected)


def test_two_kinds_are_never_below_the_scarcer():
    """Values whose means over objects are all alike: V_a + V_b - V_ab would be below V_a."""
    o, p = np.repeat(np.arange(20), 4), np.tile(np.arange(4), 20)
    values = np.random.default_rng(16).normal(size=(20, 4))
    values = (values - values.mean(axis=1, keepdims=True)).ravel()
    assert slow_variance(values, o) < slow_variance(values, 100 * o + p)
    both, scarcer = (paired_difference(values, 0 * values, labels) for labels in ((o, p), p))
    assert (both.low, both.high, both.p) == pytest.approx((scarcer.low, scarcer.high, scarcer.p))
    nested = mean_interval(values, (np.arange(80), p))  # every object on one photograph: photographs hold all of it
    assert nested == pytest.approx(mean_interval(values, p))


@pytest.mark.parametrize("kind", ["t", "t, crossed", "bootstrap"])
def test_order_and_names_do_not_matter(kind):
    """Items in another order, clusters under other names: the same t interval, and nearly the same bootstrap."""
    generator, n = np.random.default_rng(17), np.arange(120)
    columns = {"t": [n % 7], "t, crossed": [n % 6, n // 4], "bootstrap": [n % 40]}[kind]
    values, order = generator.normal(size=120), generator.permutation(120)
    renamed = [np.array([f"{label * 7 % 41} of {label}" for label in column])[order] for column in columns]
    as_given, other = (tuple(map(list, part)) if len(part) > 1 else part[0] for part in (columns, renamed))
    found = paired_difference(values, np.zeros(120), as_given)
    again = paired_difference(values[order], np.zeros(120), other)
    found_ends, again_ends = ((each.low, each.high, each.detectable) for each in (found, again))
    assert again_ends == pytest.approx(found_ends, rel=0.06 if kind == "bootstrap" else 1e-9)
    assert again.kind == found.kind == kind.split(",")[0]


def test_thirty_clusters_are_resampled_and_fewer_are_not():
    """In the scarcer kind: 29 photographs are few, however many objects there are."""
    values, n = np.random.default_rng(18).normal(size=1200), np.arange(1200)
    kinds = {size: paired_difference(values, 0 * values, n % size, resamples=50).kind for size in (2, 29, 30, 31)}
    assert kinds == {2: "t", 29: "t", 30: "bootstrap", 31: "bootstrap"}
    for size, kind in kinds.items():
        assert paired_difference(values, 0 * values, (n // 4, n % size), resamples=50).kind == kind


def similar(generator, sizes, between):
    """For one kind of clusters: a function that draws values with a true mean of 0, and the labels."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return lambda: between * generator.normal(size=len(sizes))[labels] + generator.normal(size=len(labels)), labels


def partly_crossed(generator, objects, photographs, items, parts):
    """As `similar` for two kinds: `parts` are the standard deviations between objects, photographs, and items."""
    cells = np.random.default_rng(1).permutation(objects * photographs)[:items]
    o, p = (np.unique(labels, return_inverse=True)[1] for labels in (cells // photographs, cells % photographs))

    def draw():
        of_objects, of_photographs, of_items = (
            part * generator.normal(size=size) for part, size in zip(parts, (objects, photographs, items), strict=True)
        )
        return of_objects[o] + of_photographs[p] + of_items

    return draw, (o, p)


BETWEEN = {"photographs": (0.3, 1, 0.5), "objects": (1, 0.1, 0.3), "items": (0.1, 0.1, 1), "all": (1, 0.5, 1)}
ONE_KIND = {
    f"{len(sizes)} of {kind} size, {between} between": (similar, sizes, between)
    for count in (6, 7, 20)
    for kind, sizes in (("equal", [40] * count), ("unequal", np.linspace(10, 70, count).astype(int)))
    for between in (0.1, 1)
}
TWO_KINDS = {
    f"{objects} x {photographs}, between {kind}": (partly_crossed, objects, photographs, items, parts)
    for objects, photographs, items in ((80, 6, 240), (89, 20, 309))
    for kind, parts in BETWEEN.items()
}
ONE_KIND["6 that double"] = (similar, [4, 8, 16, 32, 64, 128], 1)


def coverage(made, interval, draws):
    draw, labels = made
    hits = [low <= 0 <= high for _, low, high in (interval(draw(), labels, seed) for seed in range(draws))]
    return np.mean(hits)


@pytest.mark.parametrize("name", [*ONE_KIND, *TWO_KINDS])
def test_t_intervals_cover_the_truth_as_often_as_they_say(name):
    """95 % within what 1000 draws allow; up to 98 % where six photographs cannot show that they do not matter."""
    make, *design = (ONE_KIND | TWO_KINDS)[name]
    made = make(np.random.default_rng(19), *design)
    assert 0.93 <= coverage(made, lambda values, labels, _: mean_interval(values, labels), 1000) <= 0.985


def test_the_percentile_bootstrap_does_not_over_six_clusters():
    """What the t interval mends: the same measure says so, for one kind and for two."""
    def resampled(values, labels, seed):
        factors = [labels] if isinstance(labels, np.ndarray) else list(labels)
        return 0.0, *np.quantile(statistics._resampled_means(values, factors, 300, seed), [0.025, 0.975])

    assert coverage(similar(np.random.default_rng(20), [40] * 6, 1), resampled, 500) < 0.9
    made = partly_crossed(np.random.default_rng(20), 80, 6, 240, BETWEEN["photographs"])
    assert coverage(made, resampled, 200) < 0.91


# --- p


@pytest.mark.parametrize("size", [7, 40])
def test_p_is_below_5_percent_where_the_interval_excludes_zero(size):
    """Values of either sign, many of them ties, shifted over all of the interval: both sides, and zero at an end."""
    generator, sides = np.random.default_rng(21), set()
    for trial in range(400):
        values = generator.normal(size=size) if trial % 2 else generator.integers(-1, 2, size=size).astype(float)
        values = values + (generator.choice([-1, 0, 1]) * generator.uniform(0.2, 0.6) if trial % 4 else 0)
        found = paired_difference(values, np.zeros(size), resamples=199)
        assert (found.p < 0.05) == (found.side != 0) and 0 <= found.p <= 1
        sides.add((found.kind, found.side))
    assert len(sides) == 3
    for end in (0, 1):  # zero exactly at an end of the bootstrap interval is in it
        means = statistics._resampled_means(generator.normal(size=40), [np.arange(40)], 201, 0)
        assert statistics._bootstrap_p(means - np.quantile(means, (0.025, 0.975)[end])) >= 0.05


def test_the_p_of_the_bootstrap_by_hand():
    """A tenth of the way from the 7th of 101 values to the 8th is the quantile .061: p = .122, from either side."""
    means = np.arange(101.0) - 6.1
    assert statistics._bootstrap_p(means) == pytest.approx(0.122) == statistics._bootstrap_p(-means)
    assert statistics._bootstrap_p(means + 50) == 2 / 102 == statistics._bootstrap_p(-means - 50)
    assert statistics._bootstrap_p(np.zeros(101)) == statistics._bootstrap_p(means - 43.9) == 1


def test_p_without_a_spread():
    assert paired_difference([1.0] * 5, [1.0] * 5).p == 1 and paired_difference([1.0] * 50, [1.0] * 50).p == 1
    assert paired_difference([0.5] * 5, [0.0] * 5).p == 0 and paired_difference([0.5] * 50, [0.0] * 50).p == 2 / 10_001


def test_p_is_uniform_where_there_is_no_difference():
    """One in five p-values is below .2, of both kinds."""
    generator = np.random.default_rng(22)
    for size in (6, 60):
        ps = [paired_difference(generator.normal(size=size), np.zeros(size), resamples=300).p for _ in range(600)]
        assert np.mean(np.array(ps) < 0.2) == pytest.approx(0.2, abs=0.06)


def slow_holm(ps):
    """By its definition: the largest of the multiplied p-values among those that are no larger."""
    number, ordered = len(ps), sorted(range(len(ps)), key=lambda i: ps[i])
    multiplied = [(number - rank) * ps[i] for rank, i in enumerate(ordered)]
    return [min(1, max(multiplied[: ordered.index(i) + 1])) for i in range(number)]


def test_holm_is_that_of_a_loop():
    generator = np.random.default_rng(23)
    for size in (0, 1, 2, 5, 30):
        for scale in (0.05, 1):
            ps = np.round(scale * generator.random(size), 2)  # with ties
            found = holm(ps)
            assert found.tolist() == pytest.approx(slow_holm(ps.tolist()))
            assert (found >= ps).all() and (found <= np.minimum(1, size * ps) + 1e-15).all(), "at most Bonferroni"
            assert (np.diff(found[np.argsort(ps)]) >= 0).all(), "the order is kept"
            order = generator.permutation(size)
            assert holm(ps[order]).tolist() == pytest.approx(found[order].tolist())
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])


def test_holm_keeps_the_chance_of_any_false_rejection():
    generator = np.random.default_rng(24)
    ps = generator.random((4000, 6))
    assert np.mean([holm(row).min() <= 0.05 for row in ps]) == pytest.approx(0.05, abs=0.012)
    assert np.mean(ps.min(axis=1) <= 0.05) > 0.2, "unadjusted, one in four"


@pytest.mark.parametrize("ps", [[0.1, math.nan], [-0.1], [1.1], [[0.5]]])
def test_what_is_no_p_is_named(ps):
    with pytest.raises(ValueError, match="from 0 to 1"):
        holm(ps)


# --- trainings


def test_trainings_are_the_t_test_of_their_means():
    first, second = np.random.default_rng(25).normal(size=(2, 5, 80)) + np.array([[[0.5]], [[0.0]]])
    found, exact = trainings_difference(first, second), stats.ttest_rel(first.mean(axis=1), second.mean(axis=1))
    assert (found.low, found.high, found.p) == pytest.approx((*exact.confidence_interval(), exact.pvalue))
    assert (found.items, found.clusters, found.kind) == (80, (5,), "t")
    assert found.mean == pytest.approx((first - second).mean())
    # Many trainings are no reason to resample; the order of items and of pairs of trainings says nothing.
    many = trainings_difference(*np.random.default_rng(26).normal(size=(2, 40, 3)))
    assert many.kind == "t" and many.clusters == (40,)
    again = trainings_difference(first[::-1, ::-1], second[::-1, ::-1])
    assert (again.low, again.high) == pytest.approx((found.low, found.high))


def test_items_are_no_evidence_for_other_trainings():
    """Two trainings that differ by chance: any number of items leaves the interval wide; one training has none."""
    gap = np.array([[0.1], [0.3]])
    few, many = (trainings_difference(gap.repeat(n, axis=1), np.zeros((2, n))) for n in (10, 10_000))
    assert (few.low, few.high) == pytest.approx((many.low, many.high)) and few.side == 0
    one = trainings_difference([[1.0, 2.0]], [[0.0, 0.0]])
    assert one.mean == 1.5 and one.clusters == (1,) and all(map(math.isnan, (one.low, one.high, one.detectable, one.p)))


@pytest.mark.parametrize("first, second, words", [
    (np.zeros((2, 3)), np.zeros((3, 3)), r"\(2, 3\) in first and \(3, 3\) in second"),
    (np.zeros(3), np.zeros(3), "both are .trainings, items."),
    (np.full((2, 3), np.nan), np.zeros((2, 3)), "6 of 6 outcomes in first"),
    (np.zeros((0, 3)), np.zeros((0, 3)), "at least one"),
])
def test_bad_trainings_are_named(first, second, words):
    with pytest.raises(ValueError, match=words):
        trainings_difference(first, second)
