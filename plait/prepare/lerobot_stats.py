"""Statistics of a LeRobotDataset, as LeRobot 0.4.4 computes them (lerobot/datasets/compute_stats.py).

Each episode has them for each feature: min, max, mean, std, count and five quantiles, those of a histogram of 5,000
bins. The dataset's are the episodes' together: quantiles are their mean, weighted by count. Images are the exception in
one point: LeRobot squares their bytes within a byte, so that its std of images is wrong; here it is right.
"""

from collections.abc import Sequence

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_BINS = 5000
_FEWEST, _MOST, _POWER = 100, 10_000, 0.75
_LARGE, _SMALLER = 300, 150  # pixels a side

Stats = dict[str, np.ndarray]


def vector_stats(values: np.ndarray) -> Stats:
    """Return the statistics of numbers [T, D]; each is [D], count is [1]."""
    values = np.asarray(values, np.float64)
    stats = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    stats["count"] = np.array([len(values)])
    columns = [_quantiles(column) if len(values) > 1 else dict.fromkeys(QUANTILES, column[0]) for column in values.T]
    return stats | {name: np.array([column[name] for column in columns]) for name in QUANTILES}


def image_stats(frames: np.ndarray) -> Stats:
    """Return the statistics of images uint8 [T, H, W, 3], from 0 to 1, of each colour: [3, 1, 1]; count is [1].

    Of long episodes some images count, spread evenly; of large ones some pixels.
    """
    wanted = max(min(_FEWEST, len(frames)), min(int(len(frames) ** _POWER), _MOST))
    frames = frames[np.round(np.linspace(0, len(frames) - 1, wanted)).astype(int)]
    height, width = frames.shape[1:3]
    if max(height, width) >= _LARGE:
        every = int((width if width > height else height) / _SMALLER)
        frames = frames[:, ::every, ::every]
    stats = vector_stats(frames.reshape(-1, frames.shape[-1]) / 255.0)
    return {name: value.reshape(-1, 1, 1) for name, value in stats.items()} | {"count": np.array([wanted])}


def together(stats: Sequence[Stats]) -> Stats:
    """Return the statistics of several episodes as one."""
    counts = np.stack([s["count"] for s in stats])
    total = counts.sum(0)

    def mean(values: Sequence[np.ndarray]) -> np.ndarray:
        weights = counts.reshape(len(stats), *[1] * values[0].ndim)
        return np.asarray((np.stack(values) * weights).sum(0) / total)

    overall = mean([s["mean"] for s in stats])
    variance = mean([s["std"] ** 2 + (s["mean"] - overall) ** 2 for s in stats])
    result = {
        "min": np.min([s["min"] for s in stats], axis=0),
        "max": np.max([s["max"] for s in stats], axis=0),
        "mean": overall,
        "std": np.sqrt(variance),
        "count": total,
    }
    return result | {name: mean([s[name] for s in stats]) for name in QUANTILES}


def _quantiles(values: np.ndarray) -> dict[str, float]:
    """Return the quantiles of numbers [N] by their histogram."""
    counts, edges = np.histogram(values, np.linspace(values.min() - 1e-10, values.max() + 1e-10, _BINS + 1))
    below = np.cumsum(counts)
    result = {}
    for name, share in QUANTILES.items():
        wanted = share * len(values)
        i = int(np.searchsorted(below, wanted))
        if i == 0:
            result[name] = float(edges[0])
        else:  # the first bin that reaches it is not empty
            result[name] = float(edges[i] + (wanted - below[i - 1]) / counts[i] * (edges[i + 1] - edges[i]))
    return result
