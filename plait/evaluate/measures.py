"""A figure with its 95% interval: what a resample of the same items would have given.

Intervals are percentiles of 1,000 resamples of the items, with a fixed seed (scipy.stats.bootstrap), so that the same
items give the same digits.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from plait.common.errors import ResourceError

RESAMPLES = 1000
PACKAGES = {
    "scipy.stats": "scipy", "sacrebleu": "sacrebleu", "pycocoevalcap.cider.cider_scorer": "pycocoevalcap",
    "jiwer": "jiwer", "rapidfuzz.distance": "rapidfuzz", "rapidfuzz.process": "rapidfuzz",
    "torchmetrics.image.kid": "torchmetrics",
}  # fmt: skip
"""Modules that figures are made with, and the packages that have them."""
LEAST = 2
"""Items that a figure needs to have an interval."""


@dataclass(frozen=True)
class Measure:
    """A figure over ``count`` items, with the 95% interval [low, high]."""

    value: float
    low: float
    high: float
    count: int
    items: "Items | None" = field(default=None, compare=False, repr=False)
    """What it is the ratio of, item by item; None where it is a figure of the whole set alone."""

    def figures(self, name: str) -> dict[str, float]:
        """Return it as flat figures: ``name``, ``name_low``, ``name_high`` and ``name_count``."""
        return {
            name: self.value,
            f"{name}_low": self.low,
            f"{name}_high": self.high,
            f"{name}_count": float(self.count),
        }


@dataclass(frozen=True)
class Items:
    """What a figure sum(parts) / sum(wholes) is made of: a pair of numbers for each item."""

    parts: list[float]
    wholes: list[float]


def mean_of(values: Sequence[float]) -> Measure:
    """Return the mean of one number for each item."""
    items = Items([float(v) for v in values], [1.0] * len(values))
    return replace(resampled(np.mean, np.asarray(values, float)), items=items)


def ratio_of(parts: Sequence[float], wholes: Sequence[float]) -> Measure:
    """Return sum(parts) / sum(wholes), such as errors over words; 0 where there is nothing to divide by."""
    items = Items([float(p) for p in parts], [float(w) for w in wholes])
    return replace(resampled(_ratio, np.asarray(parts, float), np.asarray(wholes, float)), items=items)


def difference(ours: Items, theirs: Items) -> Measure:
    """Return how much larger the first figure is than the second, of the same items, which are resampled together."""

    def statistic(p: np.ndarray, w: np.ndarray, q: np.ndarray, v: np.ndarray, axis: int = -1) -> np.ndarray:
        return _ratio(p, w, axis=axis) - _ratio(q, v, axis=axis)

    return resampled(statistic, *(np.asarray(x) for x in (ours.parts, ours.wholes, theirs.parts, theirs.wholes)))


def _ratio(parts: np.ndarray, wholes: np.ndarray, axis: int = -1) -> np.ndarray:
    whole = np.sum(wholes, axis=axis)
    return np.where(whole > 0, np.sum(parts, axis=axis) / np.maximum(whole, 1), 0.0)


def resampled(statistic: Callable[..., Any], *data: np.ndarray) -> Measure:
    """Return a statistic of arrays with one entry for each item, resampled together."""
    value, count = float(statistic(*data, axis=-1)), len(data[0])
    if count < LEAST or all((d == d[0]).all() for d in data):
        return Measure(value, value, value, count)
    found = package("scipy.stats").bootstrap(
        data, statistic, n_resamples=RESAMPLES, paired=len(data) > 1, vectorized=True, method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Measure(value, float(found.low), float(found.high), count)


def package(module: str) -> Any:
    """Return a module of a judge's package, imported when it is first needed. Raises ResourceError without it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ResourceError(
            f"evaluate: package {PACKAGES[module]!r} is not installed, install it: pip install 'plait[judges]'"
        ) from None
