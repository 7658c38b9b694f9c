"""A figure with its 95% interval: what a resample of the same items would have given.

Intervals are percentiles of 1,000 resamples of the items, with a fixed seed (scipy.stats.bootstrap), so that the same
items give the same digits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.common.errors import ResourceError

RESAMPLES = 1000
LEAST = 2
"""Items that a figure needs to have an interval."""


@dataclass(frozen=True)
class Measure:
    """A figure over ``count`` items, with the 95% interval [low, high]."""

    value: float
    low: float
    high: float
    count: int

    def figures(self, name: str) -> dict[str, float]:
        """Return it as flat figures: ``name``, ``name_low``, ``name_high`` and ``name_count``."""
        return {
            name: self.value,
            f"{name}_low": self.low,
            f"{name}_high": self.high,
            f"{name}_count": float(self.count),
        }


def mean_of(values: Sequence[float]) -> Measure:
    """Return the mean of one number for each item."""
    return resampled(np.mean, np.asarray(values, float))


def ratio_of(parts: Sequence[float], wholes: Sequence[float]) -> Measure:
    """Return sum(parts) / sum(wholes), such as errors over words; 0 where there is nothing to divide by."""

    def ratio(p: np.ndarray, w: np.ndarray, axis: int = -1) -> np.ndarray:
        whole = np.sum(w, axis=axis)
        return np.where(whole > 0, np.sum(p, axis=axis) / np.maximum(whole, 1), 0.0)

    return resampled(ratio, np.asarray(parts, float), np.asarray(wholes, float))


def resampled(statistic: Callable[..., Any], *data: np.ndarray) -> Measure:
    """Return a statistic of arrays with one entry for each item, resampled together."""
    value, count = float(statistic(*data, axis=-1)), len(data[0])
    if count < LEAST or all((d == d[0]).all() for d in data):
        return Measure(value, value, value, count)
    found = _scipy_stats().bootstrap(
        data, statistic, n_resamples=RESAMPLES, paired=len(data) > 1, vectorized=True, method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Measure(value, float(found.low), float(found.high), count)


def _scipy_stats():
    try:
        import scipy.stats
    except ImportError:
        message = "evaluate: package 'scipy' is not installed, install it: pip install 'plait[judges]'"
        raise ResourceError(message) from None
    return scipy.stats
