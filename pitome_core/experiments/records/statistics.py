"""Intervals and p-values for differences, as the protocol asks for them, and quartiles of timings."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student

RESAMPLES = 10_000
# 80 % power at the two-sided 5 % level: the 97.5 % and the 80 % quantile of the normal distribution.
DETECTABLE = 1.960 + 0.842
_FEW = 30  # with fewer clusters than this the bootstrap interval is too narrow: see `paired_difference`
_CACHED = 8_000_000  # weights of items in resamples that are cached for the next interval on the same items
_CHUNK = 2_000_000  # numbers that are drawn at a time, so that 50,000 items fit in memory


@dataclass(frozen=True)
class Difference:
    """A mean paired difference and how sure one can be of it. ``str`` gives ``+0.012 [+0.003, +0.021]``.

    mean, low, high: the mean of first minus second and its 95 % interval, in the unit of the outcome.
    items: number of pairs. clusters: how many of each kind: (18,) photographs, (40, 18) objects x photographs, (5,)
        trainings.
    detectable: the smallest true difference that these data would detect with 80 % power at the two-sided 5 % level.
    p: two-sided, for a mean of zero; below .05 exactly where the interval does not contain zero.
    kind: of the interval, "t" or "bootstrap" (see `paired_difference`).

    Interval, detectable and p are NaN where there is a single cluster, because nothing follows for others from one.
    """

    mean: float
    low: float
    high: float
    items: int
    clusters: tuple[int, ...]
    detectable: float
    p: float
    kind: str

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


def mean_interval(
    values: Sequence[float], clusters: Sequence | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of `values` with its 95 % interval, by the rule of `paired_difference`: (mean, low, high).

    `clusters`, one label per value, names what belongs together: the values of a photograph are not independent. None:
    every value by itself. A pair of label lists: two kinds of clusters that cross. For a paired comparison pass
    differences. ``resamples`` and ``seed`` are those of the bootstrap; a t interval draws nothing.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"need a list of at least one value, got shape {values.shape}")
    found = _difference(values, _factors(clusters, len(values)), resamples, seed)
    return found.mean, found.low, found.high


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Mean of `first` minus `second`, item by item, with its 95 % interval.

    `clusters` names what belongs together:

    - None: every item is a cluster of its own;
    - one label per item: the items of a cluster are not independent;
    - a pair of label lists, for two kinds of clusters that cross (objects x photographs): items that share either are
      not independent. A kind with a single level is left out: what is said holds for this level only.

    The mean is over items, so a cluster counts as often as it has items.

    **Fewer than 30 clusters in the scarcer kind: a t interval.** The variance V of the mean is that of the jackknife,
    which leaves out one cluster at a time: (G - 1)/G times the sum of the squared changes of the mean. For two kinds it
    is V_a + V_b - V_ab (Cameron, Gelbach, Miller 2011, Journal of Business & Economic Statistics 29(2), 238-249), with
    ab the pairs of labels, and at least V of the scarcer kind. Degrees of freedom are those of the scarcer kind:
    (sum n)^2 / sum n^2 - 1 for clusters of n items, which is G - 1 where sizes are equal, and at least 1. One item per
    cluster gives the classical t interval. It may reach beyond the range of the outcome.

    **Otherwise the percentile bootstrap** over clusters; for two kinds the pigeonhole bootstrap (Owen 2007, Annals of
    Applied Statistics 1(2), 386-411): both are resampled independently, with replacement, and an item weighs the
    product of the two counts. A resample in which no item has any weight is left out. It is rather too wide than too
    narrow, because the noise of a single item enters the variance up to three times.

    Measured: how often the interval holds the true mean, over 4000 draws of normal outcomes for t and 300 to 1500 for
    the bootstrap, whatever part of the variance is between clusters.

    ==========================================================  ============  ==========================
    clusters                                                    t             bootstrap
    ==========================================================  ============  ==========================
    6, 7, 20 of equal size, or of 10 to 70 items                94.6-95.6 %   84-87, 87, 92-93 %
    6, 7, 20, sizes that double five times, or one with half    94.0-98.5 %   84-86, 84-88, 90-92 %
    216, 80, 68 x 6, 89 x 7: variance mostly between the few    94.5-95.8 %   86-89 %
    the same: mostly of single items                            95.7-95.9 %   99 %
    the same: mostly between the many, or a third of each       95.7-97.7 %   95-99 %
    89, 25 x 20: any part                                       94.5-95.6 %   93-100 %
    243, 200 x 103: any part                                    not used      97-100 %
    ==========================================================  ============  ==========================

    Between the many it is too wide because six photographs cannot show that photographs do not matter. Few of very
    unequal sizes widen it further. Few with skewed effects stay a limit: where these are exponential, the t interval
    holds the true mean in 88-90 % over 6 or 7 clusters of similar sizes, and in 92-93 % over 20.

    ``detectable`` is the minimum detectable effect of Bloom (1995, Evaluation Review 19(5), 547-556): the standard
    error times the sum of the 97.5 % and the 80 % quantile, of t, or of the normal distribution (1.960 + 0.842) for the
    bootstrap. It says which differences this test set can detect, and not which there are. ``p`` inverts the interval;
    with the bootstrap it is at least 2 / (resamples + 1). ``resamples`` and ``seed`` are those of the bootstrap.
    """
    first, second = _outcomes(first, "first"), _outcomes(second, "second")
    _same_length(first, second)
    return _difference(first - second, _factors(clusters, len(first)), resamples, seed)


def trainings_difference(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Difference:
    """Mean of `first` minus `second`, outcomes ``(S, items)`` of S trainings each, with a t interval over trainings.

    Row s of both is of the same seed and data. The S differences of the means over items have S - 1 degrees of freedom:
    the interval says what other trainings would give on these items, and nothing about other items. With one training
    it is NaN. Raises ``ValueError`` for shapes that differ or are not 2-D, and for outcomes that are no finite numbers.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(
            f"outcomes of shape {first.shape} in first and {second.shape} in second: both are (trainings, items), and "
            "row s of both is of the same seed"
        )
    change = _outcomes(first.ravel(), "first") - _outcomes(second.ravel(), "second")
    found = _t_difference(change.reshape(first.shape).mean(axis=1), [np.arange(len(first))])
    return replace(found, items=first.shape[1])


def holm(ps: Sequence[float]) -> np.ndarray:
    """p-values adjusted for their number by Holm's step-down rule, in the order given.

    The smallest of n is multiplied by n, the next by n - 1, and so on; none is below the one before it or above 1. To
    reject where the result is at most .05 keeps the chance of any false rejection at .05, however the tests depend on
    each other. ``ValueError`` for a value that is no number from 0 to 1: leave out what has no p.
    """
    ps = np.asarray(ps, dtype=float)
    if ps.ndim != 1 or not ((ps >= 0) & (ps <= 1)).all():
        raise ValueError(f"p-values are a list of numbers from 0 to 1, got {ps.tolist()}")
    order = np.argsort(ps, kind="stable")
    adjusted = np.empty_like(ps)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(ps[order] * np.arange(len(ps), 0, -1)))
    return adjusted


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


def _difference(values: np.ndarray, factors: list[np.ndarray], resamples: int, seed: int) -> Difference:
    """Mean of `values (items,)` with the interval that the number of clusters asks for."""
    sizes = tuple(int(labels.max()) + 1 for labels in factors)
    if min((size for size in sizes if size > 1), default=1) < _FEW:
        return _t_difference(values, factors)
    means = _resampled_means(values, factors, resamples, seed)
    low, high = (float(end) for end in np.quantile(means, [0.025, 0.975]))
    detectable = DETECTABLE * float(means.std(ddof=1))
    return Difference(float(values.mean()), low, high, len(values), sizes, detectable, _bootstrap_p(means), "bootstrap")


def _t_difference(values: np.ndarray, factors: list[np.ndarray]) -> Difference:
    """Mean of `values (items,)` with the t interval over one or two kinds of clusters (`paired_difference`)."""
    mean, sizes = float(values.mean()), tuple(int(labels.max()) + 1 for labels in factors)
    varied = [labels for labels, size in zip(factors, sizes, strict=True) if size > 1]
    if not varied:
        return Difference(mean, np.nan, np.nan, len(values), sizes, np.nan, np.nan, "t")
    fewest = min(size for size in sizes if size > 1)
    variance, freedom = zip(*(_jackknife(values, labels) for labels in varied), strict=True)
    scarce = [kind for kind, labels in enumerate(varied) if labels.max() + 1 == fewest]
    total, df = max(variance[kind] for kind in scarce), min(freedom[kind] for kind in scarce)
    if len(varied) == 2:
        pairs = np.unique(varied[0] * sizes[1] + varied[1], return_inverse=True)[1]
        total = max(total, sum(variance) - _jackknife(values, pairs)[0])
    error = math.sqrt(total)
    reach, power = (float(student.ppf(at, df)) for at in (0.975, 0.8))
    ratio = abs(mean) / error if error else math.inf if mean else 0.0
    low, high, detectable = mean - reach * error, mean + reach * error, (reach + power) * error
    return Difference(mean, low, high, len(values), sizes, detectable, float(2 * student.sf(ratio, df)), "t")


def _jackknife(values: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Variance of the mean of `values` by leaving out one of two or more clusters at a time; degrees of freedom."""
    counts, sums = np.bincount(labels), np.bincount(labels, weights=values)
    without = (values.sum() - sums) / (len(values) - counts)
    variance = (1 - 1 / len(counts)) * ((without - values.mean()) ** 2).sum()
    return float(variance), max(1.0, float(len(values) ** 2 / (counts**2).sum() - 1))


def _bootstrap_p(means: np.ndarray) -> float:
    """Two-sided p of zero: twice the level at which an end of the percentile interval is zero.

    A quantile lies between two neighbours in order, so the level does as well. Among means that are zero, it is the one
    nearer to the middle, because an interval that ends in zero contains it.
    """
    def level(ordered: np.ndarray) -> float:
        """The highest level whose quantile is zero or less."""
        below = int(np.searchsorted(ordered, 0.0, side="right"))
        if below in (0, len(ordered)):
            return float(below > 0)
        under, over = ordered[below - 1], ordered[below]
        return float(below - 1 - under / (over - under)) / (len(ordered) - 1)

    ordered = np.sort(means)
    smaller = min(level(ordered), level(-ordered[::-1]))
    return min(1.0, max(2 * smaller, 2 / (len(means) + 1)))


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
