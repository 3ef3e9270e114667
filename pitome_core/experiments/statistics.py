"""Intervals for differences, as the protocol asks for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bootstrap_mean(
    values: Sequence[float], clusters: Sequence | None = None, *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of `values` with its 95 % percentile bootstrap interval: (mean, low, high).

    `clusters`, one label per value, names what is resampled: all values of a photograph come and go together, because
    they are not independent. None: every value by itself. For a paired comparison pass differences.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"need a list of at least one value, got shape {values.shape}")
    labels = np.arange(len(values)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    if len(labels) != len(values):
        raise ValueError(f"{len(values)} values and {len(labels)} cluster labels: give one label per value")
    sums, counts = np.bincount(labels, weights=values), np.bincount(labels)
    drawn = np.random.default_rng(seed).integers(len(counts), size=(resamples, len(counts)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)
