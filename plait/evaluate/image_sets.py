"""How near is a set of images to real ones? By the features [N, D] of an independent network.

- frechet: the Fréchet distance of the two sets (FID's formula, arXiv 1706.08500); the fewer images, the larger.
- kid: the squared maximum mean discrepancy with a cubic kernel (arXiv 1801.01401), times 1,000; without such a bias, so
  that it may fall below 0.
- precision: the share of the images that lie among real ones, within the radius of one's third neighbour; recall: the
  share of the real ones that lie so among the images (arXiv 1904.06991).

The same figures of other sets stand beside: what the codec makes of real images is the ceiling.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.evaluate.image_judge import frechet_distance
from plait.evaluate.measures import mean_of, package

NEIGHBOURS = 3
LEAST = 10
"""Images that a set needs."""


def set_figures(sets: Mapping[str, Tensor], target: Tensor) -> dict[str, float]:
    """Return ``frechet``, ``kid``, ``precision`` and ``recall`` of each set against ``target``, by its name.

    The set "" has plain names, and intervals of precision and recall.
    """
    figures: dict[str, float] = {}
    for name, features in sets.items():
        end = f"_{name}" if name else ""
        inside, reached = among(features, target), among(target, features)
        figures |= {f"frechet{end}": frechet_distance(features, target), f"kid{end}": kid(features, target)}
        figures |= {f"precision{end}": float(np.mean(inside)), f"recall{end}": float(np.mean(reached))}
        if not name:
            figures |= mean_of(inside).figures("precision") | mean_of(reached).figures("recall")
    return figures


def likeness(features: Tensor, nearest: Tensor, others: Tensor) -> list[float]:
    """Return the cosine of each row of ``features`` with that of ``nearest``, both less the mean of ``others``.

    Where ``nearest`` is the training image whose text is nearest, it says what a model took from there: images that are
    more like it than the real ones of the same texts are remembered.
    """
    mean = others.mean(0)
    return F.cosine_similarity(features - mean, nearest - mean).tolist()


def kid(features: Tensor, others: Tensor) -> float:
    """Return the kernel distance of two sets of features, times 1,000."""
    poly_mmd = package("torchmetrics.image.kid").poly_mmd
    return 1000 * float(poly_mmd(others.double(), features.double()))


def among(features: Tensor, others: Tensor) -> list[float]:
    """Return for each row of ``features`` 1.0 where it lies within the radius of an other one's third neighbour."""
    count = min(NEIGHBOURS, len(others) - 1)
    radii = torch.cdist(others, others).kthvalue(count + 1, dim=1).values  # the first is each one itself
    return (torch.cdist(features, others) <= radii).any(1).float().tolist()
