"""How near is a set of images to real ones? By the features [N, D] of an independent network.

- frechet: the Fréchet distance of the two sets (FID's formula, arXiv 1706.08500); the fewer images, the larger.
- kid: the squared maximum mean discrepancy with a cubic kernel (arXiv 1801.01401), times 1,000; without such a bias, so
  that it may fall below 0.
- precision: the share of the images that lie among real ones, within the radius of one's third neighbour; recall: the
  share of the real ones that lie so among the images (arXiv 1904.06991).

The same figures of other sets stand beside: what the codec makes of real images is the ceiling.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from plait.common.errors import DataError
from plait.evaluate.measures import Measure, mean_of, package, spread

NEIGHBOURS = 3
LEAST = 10
"""Images that a set needs."""


def set_figures(sets: Mapping[str, Tensor], target: Tensor) -> tuple[dict[str, Measure], dict[str, float]]:
    """Return ``frechet``, ``kid``, ``precision`` and ``recall`` against ``target``.

    Of the set "" with intervals, and of the others as NAME_set.
    """
    measures: dict[str, Measure] = {}
    beside: dict[str, float] = {}
    for name, features in sets.items():
        inside, reached = among(features, target), among(target, features)
        distances = {"frechet": frechet_distance(features, target), "kid": kid(features, target)}
        if name:
            values = distances | {"precision": float(np.mean(inside)), "recall": float(np.mean(reached))}
            beside |= {f"{figure}_{name}": value for figure, value in values.items()}
            continue
        ways = {"frechet": frechet_distance, "kid": kid}
        measures |= {n: _with_spread(value, ways[n], features, target) for n, value in distances.items()}
        measures |= {"precision": mean_of(inside), "recall": mean_of(reached)}
    return measures, beside


def _with_spread(
    value: float, distance: Callable[[Tensor, Tensor], float], features: Tensor, target: Tensor
) -> Measure:
    def of(rows: np.ndarray, others: np.ndarray) -> float:
        return distance(features[torch.from_numpy(rows)], target[torch.from_numpy(others)])

    return spread(value, of, len(features), len(target))


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two sets of features [N, D] (arXiv 1706.08500)."""
    means, roots, total = [], [], 0.0
    for rows in (features.double(), others.double()):
        if len(rows) < 2:
            raise DataError(f"Fréchet distance: {len(rows)} images are too few, it needs at least 2 of each kind")
        centred = (rows - rows.mean(0)) / (len(rows) - 1) ** 0.5
        means.append(rows.mean(0))
        # any root of the covariance will do: at most [D, D]
        roots.append(centred if len(rows) <= rows.shape[1] else torch.linalg.qr(centred, mode="r")[1])
        total += centred.square().sum().item()
    # with C = R^T R, the trace of the root of C1 C2 is the sum of the singular values of R1 R2^T
    cross = torch.linalg.svdvals(roots[0] @ roots[1].T).sum().item()
    return max((means[0] - means[1]).square().sum().item() + total - 2 * cross, 0.0)


def kid(features: Tensor, others: Tensor) -> float:
    """Return the kernel distance of two sets of features, times 1,000."""
    poly_mmd = package("torchmetrics.image.kid").poly_mmd
    return 1000 * float(poly_mmd(others.double(), features.double()))


def among(features: Tensor, others: Tensor) -> list[float]:
    """Return for each row of ``features`` 1.0 where it lies within the radius of an other one's third neighbour."""
    count = min(NEIGHBOURS, len(others) - 1)
    radii = torch.cdist(others, others).kthvalue(count + 1, dim=1).values  # the first is each one itself
    return (torch.cdist(features, others) <= radii).any(1).float().tolist()
