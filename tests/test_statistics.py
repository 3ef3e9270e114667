"""Bootstrap intervals: known cases, coverage, clusters, errors."""

from __future__ import annotations

import numpy as np
import pytest

from pitome_core.experiments.statistics import bootstrap_mean


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
