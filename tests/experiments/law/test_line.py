"""The line and its interval: exact on exact data, blind to order and labels, and right as often as it says."""

from __future__ import annotations

import numpy as np
import pytest

from pitome_core.experiments.law import line
from pitome_core.experiments.records import results


def made(generator, groups=40, each=9, slope=0.5, between=0.3):
    clusters = np.repeat(np.arange(groups), each)
    centre = generator.normal(size=groups)[clusters]  # what the items of a cluster share
    predictor = 0.7 * centre + 0.5 * generator.normal(size=len(clusters))
    covariate = generator.normal(size=len(clusters))
    noise = between * generator.normal(size=groups)[clusters] + 0.4 * generator.normal(size=len(clusters))
    return 0.1 + slope * predictor - 0.2 * covariate + noise, predictor, covariate, clusters


def test_exact_data_give_the_coefficients():
    generator = np.random.default_rng(0)
    predictor, covariate = generator.normal(size=(2, 30))
    found = line.fit(1 + 2 * predictor - 3 * covariate, predictor, covariate, np.arange(30) // 3)
    assert (found.intercept, found.slope, found.along) == pytest.approx((1, 2, -3))
    assert found.low == pytest.approx(2) and found.high == pytest.approx(2) and found.clusters == 10
    assert found.crossing(1.0) == pytest.approx(1.0) and found.at(1.0, 1.0) == pytest.approx(0.0, abs=1e-9)


def test_order_and_names_of_clusters_do_not_matter():
    gap, predictor, covariate, clusters = made(np.random.default_rng(1))
    order = np.random.default_rng(2).permutation(len(gap))
    first = line.fit(gap, predictor, covariate, clusters)
    second = line.fit(gap[order], predictor[order], covariate[order], [f"c{c}" for c in clusters[order]])
    assert (first.slope, first.low, first.p) == pytest.approx((second.slope, second.low, second.p))


def test_without_clusters_it_is_the_interval_of_the_textbook():
    """Each item its own cluster, noise the same everywhere: the jackknife comes near the interval of least squares."""
    gap, predictor, covariate, _ = made(np.random.default_rng(3), groups=400, each=1)
    x = np.stack([np.ones(400), predictor, covariate], axis=1)
    residual = gap - x @ np.linalg.solve(x.T @ x, x.T @ gap)
    error = (np.linalg.inv(x.T @ x)[1, 1] * (residual @ residual) / 397) ** 0.5
    found = line.fit(gap, predictor, covariate, np.arange(400))
    assert found.high - found.slope == pytest.approx(1.966 * error, rel=0.05)


def test_the_interval_covers():
    """With clusters that share predictor and noise; an interval that takes items as independent does not cover."""
    generator = np.random.default_rng(4)
    hits = naive = 0
    for _ in range(400):
        gap, predictor, covariate, clusters = made(generator)
        found = line.fit(gap, predictor, covariate, clusters)
        hits += found.low <= 0.5 <= found.high
        alone = line.fit(gap, predictor, covariate, np.arange(len(gap)))
        naive += alone.low <= 0.5 <= alone.high
    assert 0.91 <= hits / 400 <= 0.98 and naive / 400 < 0.88


def test_the_threshold_is_that_of_the_protocol():
    crossing = line.Line(-1.0, 2.0, 0.0, 1, 3, 0.0, 9, 3)
    assert line.threshold(crossing, [0.0, 0.4, 0.9], [0.7] * 3) == 0.5
    never = line.Line(-1.0, 0.1, 0.0, 0, 1, 0.0, 9, 3)
    assert line.threshold(never, [0.0, 1.0, 2.0], [0.7] * 3) == 1.5


@pytest.mark.parametrize("constant", ["predictor", "covariate", "both alike"])
def test_what_does_not_vary_gives_no_line(constant):
    gap, predictor, covariate, clusters = made(np.random.default_rng(7), groups=6)
    columns = {"predictor": (np.full(len(gap), 0.3), covariate), "covariate": (predictor, np.full(len(gap), 0.3)),
               "both alike": (predictor, 2 * predictor)}[constant]
    with pytest.raises(ValueError, match="vary, and not together"):
        line.fit(gap, *columns, clusters)


@pytest.mark.parametrize("change", ["short", "nan", "few"])
def test_what_cannot_be_fitted_is_refused(change):
    gap, predictor, covariate, clusters = made(np.random.default_rng(5), groups=4)
    if change == "nan":
        gap[3] = np.nan
    clusters = {"short": clusters[:-1], "nan": clusters, "few": clusters % 2}[change]
    with pytest.raises(ValueError, match="a line needs finite values and at least 3 clusters"):
        line.fit(gap, predictor, covariate, clusters)


def test_scenes_without_a_predictor_are_left_out(tmp_path):
    gap, predictor, covariate, clusters = made(np.random.default_rng(6), groups=5, each=2)
    low = np.stack([predictor - 0.1, predictor + 0.1], axis=1)  # two layers
    low[3, 0] = np.nan
    outcomes = {
        "whole": {"auc": covariate, "low_energy_keys": low}, "a": {"auc": covariate + gap}, "b": {"auc": covariate},
    }
    items = {"id": list(range(10)), "photograph": [f"p{c}" for c in clusters]}
    cells = {key: {"outcomes": {n: v.tolist() for n, v in of.items()}} for key, of in outcomes.items()}
    record = results.Record(tmp_path / "r.json", {}, items, [], cells)
    scenes = line.known(record, "a", "b")
    rest = np.arange(10) != 3
    expected = line.fit(gap[rest], predictor[rest], covariate[rest], clusters[rest])
    assert len(scenes.gap) == 9 and scenes.line.slope == pytest.approx(expected.slope)
    assert scenes.threshold == pytest.approx(line.threshold(expected, predictor[rest], covariate[rest]))
