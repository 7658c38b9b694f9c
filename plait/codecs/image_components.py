"""Images as principal components of patches: one token holds the largest components of one patch of pixels.

A patch of p x p pixels has 3 p^2 numbers, and a few principal components hold most of their variance. A squared error
hardly sees the others, which is where lines and edges are. So each component is divided by the square root of its
standard deviation: small components gain weight, and large ones stay larger (docs/experiments.md compares this with
pixels and with components of equal size). The components have a closed form, so nothing is trained. Decoding loses
the components that were left out. With ``backgrounds`` they are of what stands on an image's background and of its
opacity, so that a model can lay a thing on a background that it never saw it on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from plait.codecs import images, saved
from plait.codecs.backgrounds import Backgrounds
from plait.codecs.base import Progress, alike
from plait.codecs.latents import Scaling
from plait.codecs.patches import ContinuousImageCodec, check_image_options
from plait.common.errors import DataError, require
from plait.model.latent_patches import from_images, to_images

_COLOURS = 3
_BATCH = 64  # images measured together
_SMALLEST = 1e-3  # of the largest deviation: components below it are not raised further
_OPAQUE = 2.0  # opacity of what is no background, on the scale of colours
_CLEAR = 0.1  # opacity below which nothing stands on the background


@dataclass
class ImageComponentOptions:
    """Settings of `ImageComponentCodec`."""

    size: int = 64
    """Side of an image, in pixels; with ``aspect: any`` the side of a square of the same area."""
    patch_size: int = 16
    """Pixels along each side of a token."""
    components: int = 192
    """Components of a token, at most 3 * patch_size^2, or 4 * patch_size^2 with ``backgrounds``."""
    backgrounds: int = 0
    """0: components are of the image. Above: of what stands on its background, with its opacity, and three more
    numbers are the background's colour, one of so many: the most frequent ones along the borders of the images it is
    fitted to. So a thing has the same components on every background."""
    aspect: Literal["square", "any"] = "square"
    """square: scaled and cut to size x size. any: keeps its aspect ratio, see `plait.codecs.images.image_sides`."""

    def __post_init__(self):
        check_image_options(self, self.patch_size, "patch_size")
        where = "codec_options"
        require(0 <= self.backgrounds <= 4096, f"{where}.backgrounds", self.backgrounds, "0 to 4096")
        planes = _COLOURS + (self.backgrounds > 0)
        most = planes * self.patch_size**2
        allowed = f"1 to {planes} * patch_size^2 ({most})"
        require(1 <= self.components <= most, f"{where}.components", self.components, allowed)


class ImageComponentCodec(ContinuousImageCodec):
    """Principal components of patches of pixels (Hotelling 1933), each with mean 0; their mean variance is 1."""

    name: ClassVar[str] = "image_components"
    options_class: ClassVar[type] = ImageComponentOptions

    def __init__(self, options: ImageComponentOptions):
        apart = options.backgrounds > 0
        channels = options.components + _COLOURS * apart
        super().__init__(options, channels=channels, patch_size=1, token_pixels=options.patch_size)
        numbers = (_COLOURS + apart) * self._token_pixels**2
        self._basis = nn.utils.skip_init(nn.Linear, numbers, options.components, bias=False)
        self._backgrounds = Backgrounds(options.backgrounds) if apart else None

    @torch.no_grad()
    def fit(self, media: Sequence[np.ndarray], *, minutes: float, seed: int, folder: Path, progress: Progress) -> None:
        """Find the components of all patches of ``media``; exact, so ``minutes`` and ``seed`` have no effect."""
        if not len(media):
            raise DataError("image codec: there are no images to measure")
        shaped = self._shaped(media)
        if self._backgrounds is not None:
            self._backgrounds.fit(shaped)
        mean, spread, colours = self._moments(shaped)
        variances, directions = torch.linalg.eigh(spread)
        largest = directions.flip(1)[:, : self.options.components].T
        deviations = variances.flip(0)[: self.options.components].clamp_min(0).sqrt()
        deviations = deviations.clamp_min(_SMALLEST * deviations[0].item())
        self._basis.weight.copy_(largest)
        scales = (deviations * deviations.mean()).sqrt()
        spreads = (colours - colours.mean(0)).square().mean(0).sqrt().clamp_min(_SMALLEST)
        self.scaling = Scaling(
            torch.cat([largest @ mean, colours.mean(0)]).tolist(), torch.cat([scales, spreads]).tolist()
        )
        progress(1.0, "measured")

    def _moments(self, shaped: Sequence[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean [n] and covariance [n, n] of all patches, and the backgrounds of all images, in float64."""
        numbers = self._basis.in_features
        count, total = 0, torch.zeros(numbers, dtype=torch.float64)
        products = torch.zeros(numbers, numbers, dtype=torch.float64)
        colours = []
        for _, places in alike([p.shape[:2] for p in shaped], _BATCH):
            together = images.to_unit(np.stack([shaped[i] for i in places]))
            planes, behind = self._apart(together)
            colours.append(behind.double())
            patches = from_images(planes, self._token_pixels).flatten(0, 1).double()
            count, total = count + len(patches), total + patches.sum(0)
            products.addmm_(patches.T, patches)
        mean = total / count
        return mean, products / count - torch.outer(mean, mean), torch.cat(colours)

    def _apart(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return what components are taken of [B, planes, H, W], and the background's colour [B, 3], or [B, 0]."""
        backgrounds = self._backgrounds
        if backgrounds is None:
            return images_BCHW, images_BCHW.new_zeros(len(images_BCHW), 0)
        index = backgrounds.of(images_BCHW)
        opacity = 1 - backgrounds.bare(images_BCHW, index).to(images_BCHW.dtype)
        return torch.cat([images_BCHW * opacity, _OPAQUE * opacity], 1), backgrounds.planes(index).flatten(1)

    def _together(self, planes_BCHW: Tensor, colours_B3: Tensor) -> Tensor:
        """Lay what stands on a background on the one whose colour is nearest."""
        backgrounds = self._backgrounds
        if backgrounds is None:
            return planes_BCHW
        behind = backgrounds.planes(torch.cdist(colours_B3, backgrounds.colours).argmin(1))
        opacity = (planes_BCHW[:, _COLOURS:] / _OPAQUE).clamp(0, 1)
        return torch.where(opacity < _CLEAR, behind, planes_BCHW[:, :_COLOURS] + (1 - opacity) * behind)

    def _latents(self, images_BCHW: Tensor) -> Tensor:
        planes, colours = self._apart(images_BCHW)
        rows, columns = (side // self._token_pixels for side in images_BCHW.shape[2:])
        tokens = self._basis(from_images(planes, self._token_pixels))
        tokens = torch.cat([tokens, colours[:, None].expand(-1, tokens.shape[1], -1)], 2)
        return to_images(tokens, (rows, columns), 1)

    def _images(self, latents_BCHW: Tensor) -> Tensor:
        tokens = from_images(latents_BCHW, 1)
        components, colours = tokens.split([self.options.components, tokens.shape[2] - self.options.components], 2)
        planes = to_images(components @ self._basis.weight, latents_BCHW.shape[2:], self._token_pixels)
        return self._together(planes, colours.mean(1))

    @property
    def _weights(self) -> nn.Module:
        """What is saved."""
        if self._backgrounds is None:
            return self._basis
        return nn.ModuleDict({"basis": self._basis, "backgrounds": self._backgrounds})

    def save_pretrained(self, folder: Path) -> None:
        assert self.scaling is not None, "a codec is fitted before it is saved"
        saved.write_description(self, folder, **self.scaling.describe())
        saved.write_weights(self._weights, folder)

    @classmethod
    def from_pretrained(cls, folder: Path) -> "ImageComponentCodec":
        codec, description = saved.read_description(cls, folder)
        codec.scaling = Scaling.described(description, codec.latent_channels, folder)
        saved.read_weights(codec._weights, folder)
        return codec
