"""The law as a straight line: by how much PiToMe and ToMe differ on a scene, against what is known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from pitome_core.experiments.records.cells import WHOLE
from pitome_core.experiments.records.results import Record


@dataclass(frozen=True)
class Line:
    """`gap = intercept + slope * predictor + along * covariate`, by least squares.

    Attributes:
        intercept, slope, along: the coefficients.
        low, high: 95 % interval of the slope; items of one cluster are not independent, clusters are.
        p: two-sided, of a slope of zero.
        items, clusters: how many.
    """

    intercept: float
    slope: float
    along: float
    low: float
    high: float
    p: float
    items: int
    clusters: int

    def __str__(self) -> str:
        return f"{self.slope:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"

    def at(self, predictor: float | np.ndarray, covariate: float) -> float | np.ndarray:
        """The gap that the line says."""
        return self.intercept + self.slope * predictor + self.along * covariate

    def crossing(self, covariate: float) -> float:
        """The predictor at which the line crosses zero; NaN for a flat line."""
        return -(self.intercept + self.along * covariate) / self.slope if self.slope else float("nan")


def fit(gap: Sequence[float], predictor: Sequence[float], covariate: Sequence[float], clusters: Sequence) -> Line:
    """Fit the line to items ``(n,)``; the interval of the slope is robust to clusters.

    The variance is the jackknife that leaves out one cluster at a time, with the interval of t with G - 1 degrees of
    freedom. Where the predictor differs more between clusters than within, it covers 92 to 95 % with 40 clusters, and
    the usual sandwich 90.

    Raises:
        ValueError: lists of unequal length, values that are not finite, or fewer than three clusters.
    """
    y = np.asarray(gap, dtype=float)
    x = np.stack([np.ones(len(y)), np.asarray(predictor, dtype=float), np.asarray(covariate, dtype=float)], axis=1)
    labels = np.unique(np.asarray(clusters), return_inverse=True)[1]
    groups = int(labels.max()) + 1
    if np.isfinite(x).all() and np.linalg.matrix_rank(x) < 3:
        raise ValueError("a line needs a predictor and a covariate that vary, and not together")
    if not len(y) == len(labels) or not (np.isfinite(y).all() and np.isfinite(x).all()) or groups < 3:
        raise ValueError(f"a line needs finite values and at least 3 clusters, got {len(y)} gaps, {len(labels)} labels "
                         f"of {groups} clusters, {int((~np.isfinite(x)).sum() + (~np.isfinite(y)).sum())} not finite")
    # Sums over the items of each cluster, so that leaving one out is a subtraction.
    grams, moments = np.zeros((groups, 3, 3)), np.zeros((groups, 3))
    np.add.at(grams, labels, x[:, :, None] * x[:, None, :])
    np.add.at(moments, labels, x * y[:, None])
    beta = np.linalg.solve(grams.sum(0), moments.sum(0))
    without = np.linalg.solve(grams.sum(0) - grams, (moments.sum(0) - moments)[..., None])[..., 0]  # (G, 3)
    error = float(np.sqrt((groups - 1) / groups * np.square(without[:, 1] - beta[1]).sum()))
    reach = student.ppf(0.975, groups - 1) * error
    p = float(2 * student.sf(abs(beta[1]) / error, groups - 1)) if error else float(beta[1] == 0)
    return Line(*map(float, beta), float(beta[1] - reach), float(beta[1] + reach), p, len(y), groups)


def threshold(line: Line, predictor: Sequence[float], covariate: Sequence[float]) -> float:
    """Where the protocol cuts: the crossing of the line at the mean covariate, or the upper quartile of the predictors
    if it crosses at none of them."""
    crossing = line.crossing(float(np.mean(covariate)))
    inside = np.min(predictor) <= crossing <= np.max(predictor)
    return float(crossing) if inside else float(np.quantile(predictor, 0.75))


@dataclass(frozen=True)
class Known:
    """What is known of the scenes of a record before anything merges, and what then happened to them.

    A scene in which the object covers no patch by half has no predictor and is left out.

    Attributes:
        predictor: how well low energy singles out the object on the whole model, mean over layers, ``(n,)``.
        covariate: the outcome of the whole model.
        gap: the outcome of one cell minus that of another, mean over seeds.
        photograph: what the scene stands on.
    """

    predictor: np.ndarray
    covariate: np.ndarray
    gap: np.ndarray
    photograph: np.ndarray

    @property
    def line(self) -> Line:
        """The line; photographs are the clusters."""
        return fit(self.gap, self.predictor, self.covariate, self.photograph)

    @property
    def threshold(self) -> float:
        """Where the protocol cuts, of these scenes."""
        return threshold(self.line, self.predictor, self.covariate)


def known(record: Record, first: str, second: str, metric: str = "keys", outcome: str = "auc") -> Known:
    """The scenes of a record for two of its cells; ``metric`` is one of `law.tasks.METRICS`."""
    predictor = record.outcome(WHOLE, f"low_energy_{metric}").mean(axis=1)
    here = np.isfinite(predictor)
    gap = record.per_item(first, outcome) - record.per_item(second, outcome)
    columns = predictor, record.outcome(WHOLE, outcome), gap, np.asarray(record.items["photograph"])
    return Known(*(column[here] for column in columns))
