"""Images in pixel space: every patch of pixels is one continuous token; nothing is learned, nothing is lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from plait.codecs import saved
from plait.codecs.base import Progress
from plait.codecs.latents import Scaling
from plait.codecs.patches import ContinuousImageCodec, check_image_options
from plait.common.errors import DataError

_COLOURS = 3


@dataclass
class ImagePixelOptions:
    """Settings of `ImagePixelCodec`."""

    size: int = 64
    """Side of an image, in pixels; with ``aspect: any`` the side of a square of the same area."""
    patch_size: int = 8
    """Pixels along each side of a token."""
    aspect: Literal["square", "any"] = "square"
    """square: scaled and cut to size x size. any: keeps its aspect ratio, see `plait.codecs.images.image_sides`."""

    def __post_init__(self):
        check_image_options(self, self.patch_size, "patch_size")


class ImagePixelCodec(ContinuousImageCodec):
    """Patches of pixels, 3 * patch_size^2 numbers a token, each colour with mean 0 and deviation 1 over the data."""

    name: ClassVar[str] = "image_pixels"
    options_class: ClassVar[type] = ImagePixelOptions

    def __init__(self, options: ImagePixelOptions):
        super().__init__(options, channels=_COLOURS, patch_size=options.patch_size, token_pixels=options.patch_size)

    def fit(self, media: Sequence[np.ndarray], *, minutes: float, seed: int, folder: Path, progress: Progress) -> None:
        """Measure mean and scale of each colour; nothing is trained."""
        if not len(media):
            raise DataError("image codec: there are no images to measure")
        self._measure(media)
        progress(1.0, "measured")

    def _latents(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW

    def _images(self, latents_BCHW: Tensor) -> Tensor:
        return latents_BCHW

    def save_pretrained(self, folder: Path) -> None:
        saved.write_description(self, folder, **self.scaling.describe())

    @classmethod
    def from_pretrained(cls, folder: Path) -> "ImagePixelCodec":
        codec, description = saved.read_description(cls, folder)
        codec.scaling = Scaling.described(description, _COLOURS, folder)
        return codec
