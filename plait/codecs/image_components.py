"""Images as principal components of patches: one token holds the largest components of one patch of pixels.

A patch of p x p pixels has 3 p^2 numbers, and a few principal components hold most of their variance. A squared error
hardly sees the others, which is where lines and edges are. So each component is divided by the square root of its
standard deviation: small components gain weight, and large ones stay larger (docs/experiments.md compares this with
pixels and with components of equal size). The components have a closed form, so nothing is trained. Decoding loses
the components that were left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from plait.codecs import images, saved
from plait.codecs.base import Progress, alike
from plait.codecs.latents import Scaling
from plait.codecs.patches import ContinuousImageCodec, check_image_options
from plait.common.errors import DataError, require
from plait.model.latent_patches import from_images, to_images

_COLOURS = 3
_BATCH = 64  # images measured together
_SMALLEST = 1e-3  # of the largest deviation: components below it are not raised further


@dataclass
class ImageComponentOptions:
    """Settings of `ImageComponentCodec`."""

    size: int = 64
    """Side of an image, in pixels; with ``aspect: any`` the side of a square of the same area."""
    patch_size: int = 16
    """Pixels along each side of a token."""
    components: int = 192
    """Numbers of a token, at most 3 * patch_size^2."""
    aspect: Literal["square", "any"] = "square"
    """square: scaled and cut to size x size. any: keeps its aspect ratio, see `plait.codecs.images.image_sides`."""

    def __post_init__(self):
        check_image_options(self, self.patch_size, "patch_size")
        most = _COLOURS * self.patch_size**2
        require(
            1 <= self.components <= most, "codec_options.components", self.components, f"1 to 3 * patch_size^2 ({most})"
        )


class ImageComponentCodec(ContinuousImageCodec):
    """Principal components of patches of pixels (Hotelling 1933), each with mean 0; their mean variance is 1."""

    name: ClassVar[str] = "image_components"
    options_class: ClassVar[type] = ImageComponentOptions

    def __init__(self, options: ImageComponentOptions):
        super().__init__(options, channels=options.components, patch_size=1, token_pixels=options.patch_size)
        self._basis = nn.utils.skip_init(nn.Linear, _COLOURS * self._token_pixels**2, options.components, bias=False)

    @torch.no_grad()
    def fit(self, media: Sequence[np.ndarray], *, minutes: float, seed: int, folder: Path, progress: Progress) -> None:
        """Find the components of all patches of ``media``; exact, so ``minutes`` and ``seed`` have no effect."""
        if not len(media):
            raise DataError("image codec: there are no images to measure")
        mean, spread = self._moments(self._shaped(media))
        variances, directions = torch.linalg.eigh(spread)
        largest = directions.flip(1)[:, : self.options.components].T
        deviations = variances.flip(0)[: self.options.components].clamp_min(0).sqrt()
        deviations = deviations.clamp_min(_SMALLEST * deviations[0].item())
        self._basis.weight.copy_(largest)
        self.scaling = Scaling((largest @ mean).tolist(), (deviations * deviations.mean()).sqrt().tolist())
        progress(1.0, "measured")

    def _moments(self, shaped: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Return mean [3 p^2] and covariance [3 p^2, 3 p^2] of all patches, in float64."""
        numbers = self._basis.in_features
        count, total = 0, torch.zeros(numbers, dtype=torch.float64)
        products = torch.zeros(numbers, numbers, dtype=torch.float64)
        for _, places in alike([p.shape[:2] for p in shaped], _BATCH):
            together = images.to_unit(np.stack([shaped[i] for i in places]))
            patches = self._patches(together).flatten(0, 1).double()
            count, total = count + len(patches), total + patches.sum(0)
            products.addmm_(patches.T, patches)
        mean = total / count
        return mean, products / count - torch.outer(mean, mean)

    def _patches(self, images_BCHW: Tensor) -> Tensor:
        return from_images(images_BCHW, self._token_pixels)

    def _latents(self, images_BCHW: Tensor) -> Tensor:
        rows, columns = (side // self._token_pixels for side in images_BCHW.shape[2:])
        return to_images(self._basis(self._patches(images_BCHW)), (rows, columns), 1)

    def _images(self, latents_BCHW: Tensor) -> Tensor:
        patches = from_images(latents_BCHW, 1) @ self._basis.weight
        return to_images(patches, latents_BCHW.shape[2:], self._token_pixels)

    def save_pretrained(self, folder: Path) -> None:
        assert self.scaling is not None, "a codec is fitted before it is saved"
        saved.write_description(self, folder, **self.scaling.describe())
        saved.write_weights(self._basis, folder)

    @classmethod
    def from_pretrained(cls, folder: Path) -> "ImageComponentCodec":
        codec, description = saved.read_description(cls, folder)
        codec.scaling = Scaling.described(description, codec.options.components, folder)
        saved.read_weights(codec._basis, folder)
        return codec
