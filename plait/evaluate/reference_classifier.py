"""Which thing does an image show? The one of NUM_CONCEPTS reference images whose features are nearest to its own."""

from collections.abc import Callable, Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from plait.common.randomness import generator
from plait.prepare.raw import Truths

NUM_CONCEPTS = 400
"""Concepts that it, and the forced choice of captions, choose among."""


class ReferenceClassifier:
    """Says which images of one thing have the true one as their nearest of NUM_CONCEPTS reference images.

    References are as large as the images. Each image's are the true one and NUM_CONCEPTS - 1 others that are drawn for
    it. Documents that show several things, or none, are left out.
    """

    def __init__(self, truths: Truths, metas: Sequence[dict], size: int, features_of: Callable[..., Tensor]):
        """``features_of`` returns features [B, D] of images."""
        shown = [truths.thing(meta) for meta in metas]
        self.count = len(shown)
        self.single = [i for i, thing in enumerate(shown) if thing]
        names = [shown[i] for i in self.single]
        codes = list(dict.fromkeys(names))
        others = [thing for thing in truths.things() if thing not in codes]
        order = generator(0, "picture judge: other concepts").permutation(len(others))
        codes += [others[i] for i in order[: max(0, NUM_CONCEPTS - len(codes))]]
        self.truth = [codes.index(name) for name in names]
        self.references = features_of([truths.reference("image", code, size) for code in codes])

    def hits(self, features: Tensor) -> np.ndarray:
        """Return for the features [B, D] of one image for each document 1 where it is right, 0, or -1: left out."""
        hits = np.full(self.count, -1)
        if not self.single:
            return hits
        for row, scores in enumerate(similarity(features[self.single], self.references)):
            true, draw = self.truth[row], generator(0, "picture judge: candidates", item=row)
            rivals = draw.permutation(np.delete(np.arange(len(scores)), true))[: NUM_CONCEPTS - 1]
            hits[self.single[row]] = int((scores[rivals] < scores[true]).all())
        return hits


def similarity(features: Tensor, references: Tensor) -> np.ndarray:
    """Return float32 [B, R]: the cosine of each image's features [B, D] with each reference's [R, D].

    Both are centred by the references' mean first, which drawings share much of.
    """
    mean = references.mean(0)
    return (F.normalize(features - mean, dim=1) @ F.normalize(references - mean, dim=1).T).numpy()
