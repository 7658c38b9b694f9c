"""Has a model learned or memorised? By the training item that is nearest to each made one, beside held-out real items'.

Likeness is the cosine of features, less the mean of training's. `neighbour` is that of each item with its nearest of
the training items that are looked at; `copied` the share of items that are nearer to one than 19 of 20 held-out real
items are to theirs: 5% where nothing is remembered.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.evaluate.measures import Measure, mean_of, share_of

QUANTILE = 0.95
"""Of the real items' likeness: what lies above is nearer than real items are."""


def cosines(features: Tensor, others: Tensor, mean: Tensor) -> Tensor:
    """Return the cosine of each row of ``features`` [N, D] with its row of ``others`` [N, D], both less ``mean``."""
    return F.cosine_similarity(features - mean, others - mean)


def nearest_cosines(features: Tensor, training: Tensor) -> np.ndarray:
    """Return float64 [N]: the largest cosine of each row with a row of ``training`` [M, D], less the latter's mean."""
    mean = training.mean(0)
    rows, known = F.normalize(features - mean, dim=1), F.normalize(training - mean, dim=1)
    best = [piece.max(1).values for piece in torch.split(rows @ known.T, 256)] if len(rows) else []
    return torch.cat(best).double().numpy() if best else np.zeros(0)


def likeness(
    made: Tensor, real: Tensor, codec: Tensor, training: Tensor
) -> tuple[dict[str, Measure], dict[str, float], list[float]]:
    """Return `match`, how like each made item is to its document's own, with the figures of `neighbours`.

    Rows are documents, [N, D] each: what was made, the own items, the codec's round trip of these. Beside `match` stand
    the codec's, and another document's (shuffled). The third is `match` item by item.
    """
    mean = training.mean(0)
    match: list[float] = cosines(made, real, mean).tolist()
    measures, beside = neighbours({"": made, "real": real, "codec": codec}, training)
    beside |= {"match_codec": float(cosines(codec, real, mean).mean()),
               "match_shuffled": float(cosines(real.roll(1, 0), real, mean).mean())}  # fmt: skip
    return {"match": mean_of(match), **measures}, beside, match


def neighbours(sets: Mapping[str, Tensor], training: Tensor) -> tuple[dict[str, Measure], dict[str, float]]:
    """Return `neighbour` and `copied` of the set "", and the same figures of the others, by their names.

    ``sets`` has made items under "" and held-out real ones under "real", [N, D] each.
    """
    likeness = {name: nearest_cosines(features, training) for name, features in sets.items()}
    limit = float(np.quantile(likeness["real"], QUANTILE))
    measures = {
        "neighbour": mean_of(likeness[""].tolist()),
        "copied": share_of([bool(x > limit) for x in likeness[""]]),
    }
    beside = {"neighbour_among": float(len(training))}
    for name, values in likeness.items():
        if name:
            beside |= {f"neighbour_{name}": float(values.mean()), f"copied_{name}": float(np.mean(values > limit))}
    return measures, beside
