"""Intervals for differences, as the protocol asks for them, and quartiles of timings."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

RESAMPLES = 10_000
# 80 % power at the two-sided 5 % level: the 97.5 % and the 80 % quantile of the normal distribution.
DETECTABLE = 1.960 + 0.842
_CACHED = 8_000_000  # weights of items in resamples that are cached for the next interval on the same items
_CHUNK = 2_000_000  # numbers that are drawn at a time, so that 50,000 items fit in memory


@dataclass(frozen=True)
class Difference:
    """A mean paired difference and how sure one can be of it. ``str`` gives ``+0.012 [+0.003, +0.021]``.

    mean, low, high: the mean of first minus second and its 95 % bootstrap interval, in the unit of the outcome.
    items: number of pairs. clusters: what was resampled, as numbers: (18,) photographs, (40, 18) objects x photographs.
    detectable: the smallest true difference that these data would detect with 80 % power at the two-sided 5 % level.
    """

    mean: float
    low: float
    high: float
    items: int
    clusters: tuple[int, ...]
    detectable: float

    @property
    def side(self) -> int:
        """1: the interval lies above zero, -1: below, 0: it contains zero."""
        return int(self.low > 0) - int(self.high < 0)

    def format(self, digits: int = 3) -> str:
        """``+0.012 [+0.003, +0.021]``: the mean and its interval, with ``digits`` decimals."""
        mean, low, high = (f"{value:+z.{digits}f}" for value in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}]"

    def in_words(self, digits: int = 3) -> str:
        """``above, +0.012 [+0.003, +0.021]``, ``below, ...``, or ``no difference found, ... (detectable 0.020)``."""
        if self.side:
            return f"{'above' if self.side > 0 else 'below'}, {self.format(digits)}"
        return f"no difference found, {self.format(digits)} (detectable {self.detectable:.{digits}f})"

    def __str__(self) -> str:
        return self.format()


class McNemar(NamedTuple):
    """Items that only the first got right, those that only the second did, and the two-sided p."""

    only_first: int
    only_second: int
    p: float


def quartiles(values: Sequence[float], digits: int = 5) -> list[float]:
    """Lower quartile, median and upper quartile, with `digits` significant digits."""
    cut = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return [float(f"{value:.{digits}g}") for value in cut]


def bootstrap_mean(
    values: Sequence[float], clusters: Sequence | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of `values` with its 95 % percentile bootstrap interval: (mean, low, high).

    `clusters`, one label per value, names what is resampled: all values of a photograph are drawn together, because
    they are not independent. None: every value is drawn by itself. A pair of label lists: see `paired_difference`. For
    a paired comparison pass differences.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"need a list of at least one value, got shape {values.shape}")
    means = _resampled_means(values, _factors(clusters, len(values)), resamples, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Mean of `first` minus `second`, item by item, with its 95 % percentile bootstrap interval.

    `clusters` names what is resampled:

    - None: every item is drawn by itself;
    - one label per item: all items of a cluster are drawn together;
    - a pair of label lists, for two kinds of clusters that cross (objects x photographs): the pigeonhole bootstrap
      (Owen 2007, Annals of Applied Statistics 1(2), 386-411). Both kinds are resampled independently, with replacement,
      and an item weighs the product of the two counts. The interval is rather too wide than too narrow, because the
      noise of a single item enters the variance up to three times. A resample in which no item has any weight is left
      out.

    The mean is over items, so a cluster counts as often as it has items. `detectable` is (1.960 + 0.842) times the
    bootstrap standard error, the minimum detectable effect of Bloom (1995, Evaluation Review 19(5), 547-556). It takes
    the clusters into account, because the standard error does. It says which differences this test set can detect, and
    not which there are. From a single cluster nothing follows for others, so interval and `detectable` are NaN then.
    """
    first, second = _outcomes(first, "first"), _outcomes(second, "second")
    _same_length(first, second)
    factors = _factors(clusters, len(first))
    sizes = tuple(int(labels.max()) + 1 for labels in factors)
    change = first - second
    if max(sizes) < 2:
        return Difference(float(change.mean()), np.nan, np.nan, len(first), sizes, np.nan)
    means = _resampled_means(change, factors, resamples, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    detectable = DETECTABLE * means.std(ddof=1)
    return Difference(float(change.mean()), float(low), float(high), len(first), sizes, float(detectable))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """McNemar's exact test for right-or-wrong outcomes of two methods on the same items.

    Only the items on which the two disagree count. If neither is better, each of them is right on such an item with
    probability one half: a two-sided binomial test. Items are taken as independent; clusters are not accounted for.
    """
    first, second = _outcomes(first, "first"), _outcomes(second, "second")
    _same_length(first, second)
    for name, values in (("first", first), ("second", second)):
        odd = values[(values != 0) & (values != 1)]
        if len(odd):
            raise ValueError(
                f"McNemar's test is for outcomes 0 and 1; {len(odd)} of {len(values)} in {name} are neither, such as "
                f"{odd[0]:g}: use paired_difference"
            )
    only_first, only_second = int((first > second).sum()), int((second > first).sum())
    disagree = only_first + only_second
    return McNemar(only_first, only_second, float(binomtest(only_first, disagree).pvalue) if disagree else 1.0)


def _outcomes(values: Sequence[float], name: str) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"need a list of at least one outcome, got shape {values.shape} in {name}")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(values)} outcomes in {name} are no finite numbers (the first at {bad[0]}): leave "
            "these items out of both lists, and say so"
        )
    return values


def _same_length(first: np.ndarray, second: np.ndarray) -> None:
    if len(first) != len(second):
        raise ValueError(f"{len(first)} outcomes in first and {len(second)} in second: pair them item by item")


def _factors(clusters: Sequence | None, length: int) -> list[np.ndarray]:
    """One array of cluster numbers (length,) per kind of cluster."""
    if clusters is None:
        return [np.arange(length)]
    crossed = len(clusters) == 2 and all(isinstance(part, (list, tuple, np.ndarray)) for part in clusters)
    factors = [np.unique(np.asarray(part), return_inverse=True)[1] for part in (clusters if crossed else [clusters])]
    for labels in factors:
        if labels.shape != (length,):
            raise ValueError(f"{length} values and {len(labels)} cluster labels: give one label per value")
    return factors


def _resampled_means(values: np.ndarray, factors: list[np.ndarray], resamples: int, seed: int) -> np.ndarray:
    """Means over bootstrap resamples of the clusters; fewer than `resamples` where some came out empty."""
    sizes = [int(labels.max()) + 1 for labels in factors]
    step = max(1, _CHUNK // max(len(values), *sizes))
    chunks = [min(step, resamples - start) for start in range(0, resamples, step)]
    if len(factors) == 1:
        generator = np.random.default_rng(seed)
        sums, counts = np.bincount(factors[0], weights=values), np.bincount(factors[0])
        kinds, frequency = np.unique(np.stack([sums, counts]), axis=1, return_counts=True)
        if 4 * len(frequency) <= sizes[0]:  # right-or-wrong outcomes: only how often each kind is drawn matters
            drawn = generator.multinomial(sizes[0], frequency / sizes[0], size=resamples)  # (resamples, kinds)
            return (drawn @ kinds[0]) / (drawn @ kinds[1])
        drawn = (generator.integers(sizes[0], size=(rows, sizes[0])) for rows in chunks)
        return np.concatenate([sums[rows].sum(axis=1) / counts[rows].sum(axis=1) for rows in drawn])
    means = []
    for weights in _crossed_weights(tuple(labels.tobytes() for labels in factors), tuple(chunks), seed):
        total = weights.sum(axis=1)
        means.append((weights @ values)[total > 0] / total[total > 0])
    return np.concatenate(means)


def _crossed_weights(factors: tuple[bytes, ...], chunks: tuple[int, ...], seed: int) -> Iterable[np.ndarray]:
    """Weights of the items in each resample, ``(rows, items)`` for every chunk of rows.

    A chapter asks for dozens of intervals on the same items, so the weights are cached if they are not too many.
    """
    if len(factors[0]) // 8 * sum(chunks) <= _CACHED:
        return _cached_weights(factors, chunks, seed)
    return _draw_weights(factors, chunks, seed)


@functools.lru_cache(maxsize=4)
def _cached_weights(factors: tuple[bytes, ...], chunks: tuple[int, ...], seed: int) -> list[np.ndarray]:
    return list(_draw_weights(factors, chunks, seed))


def _draw_weights(factors: tuple[bytes, ...], chunks: tuple[int, ...], seed: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(seed)
    tables = [np.frombuffer(labels, dtype=np.int64) for labels in factors]
    for rows in chunks:
        weights = np.ones((rows, len(tables[0])))
        for labels in tables:
            size = int(labels.max()) + 1
            drawn = generator.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
            weights *= np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)[:, labels]
        yield weights
