"""Images as continuous tokens: what the codecs in a VAE's latent space and in pixel space share.

An image is shaped, becomes a map of latents, is normalised per channel, and is cut into patches: one token each.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from plait.codecs import images
from plait.codecs.base import Codec, Encoded, alike
from plait.codecs.latents import Scaling, checked_latents, measured_places
from plait.common.errors import DataError, require
from plait.model.latent_patches import from_images, to_images

_BATCH = 64  # images encoded or decoded together


def check_image_options(options: Any, pixels: int, formula: str) -> None:
    """Raise a ConfigError unless ``size`` is a whole number of tokens of ``pixels`` x ``pixels``."""
    where = "codec_options"
    require(options.patch_size >= 1, f"{where}.patch_size", options.patch_size, "at least 1")
    require(options.size >= pixels and options.size % pixels == 0, f"{where}.size", options.size,
            f"a multiple of {formula} ({pixels})")  # fmt: skip


class ContinuousImageCodec(Codec):
    """Base of the continuous image codecs. Media: uint8 [H, W, 3] of any size; decoded: as the grid says.

    Options have ``size``, ``patch_size`` and ``aspect``. A subclass gives `_latents` and `_images`, and calls
    `_measure` when it is fitted.
    """

    kind: ClassVar[str] = "image"
    suffix: ClassVar[str] = ".png"

    def __init__(self, options: Any, *, channels: int, patch_size: int, token_pixels: int):
        """``channels`` of one latent, and latents and pixels along one side of a token."""
        super().__init__(options)
        self.latent_channels = channels * patch_size**2
        self.patch_size = patch_size
        self.scaling: Scaling | None = None
        """Mean and scale of the latents, per channel; None until fitted."""
        self._token_pixels = token_pixels
        self._multiple = token_pixels if options.aspect == "any" else 0

    @abstractmethod
    def _latents(self, images_BCHW: Tensor) -> Tensor:
        """Return the latents [B, C, h, w] of images from -1 to 1, on the CPU."""

    @abstractmethod
    def _images(self, latents_BCHW: Tensor) -> Tensor:
        """Return the images, from -1 to 1, of latents."""

    @property
    def is_fitted(self) -> bool:
        return self.scaling is not None

    @property
    def default_grid(self) -> tuple[int, ...]:
        return (self.options.size // self._token_pixels,) * 2

    @torch.no_grad()
    def encode(self, media: Sequence[np.ndarray]) -> list[Encoded]:
        """Encode images of any sizes: latents [rows * columns, latent_channels], normalised by `scaling`."""
        shaped = self._shaped(media)
        encoded: list[Encoded | None] = [None] * len(shaped)
        for (height, width), places in alike([p.shape[:2] for p in shaped], _BATCH):
            latents = self._latents(images.to_unit(np.stack([shaped[i] for i in places])))
            tokens = from_images(self.scaling.normalize(latents), self.patch_size).numpy()
            grid = (height // self._token_pixels, width // self._token_pixels)
            for i, row in zip(places, tokens, strict=True):
                encoded[i] = Encoded(latents=row, grid=grid)
        return encoded

    @torch.no_grad()
    def decode(self, encoded: Sequence[Encoded]) -> list[np.ndarray]:
        """Decode tokens of any grid; raises DataError where they are none."""
        tokens = [self._checked(item) for item in encoded]
        decoded: list[np.ndarray | None] = [None] * len(encoded)
        for grid, places in alike([tuple(e.grid) for e in encoded], _BATCH):
            together = torch.from_numpy(np.stack([tokens[i] for i in places]))
            latents = self.scaling.restore(to_images(together, grid, self.patch_size))
            for i, image in zip(places, images.from_unit(self._images(latents)), strict=True):
                decoded[i] = image
        return decoded

    def _checked(self, item: Encoded) -> np.ndarray:
        tokens = checked_latents(item, self.latent_channels, "image")
        if len(item.grid) != 2 or min(item.grid) < 1 or math.prod(item.grid) != len(tokens):
            raise DataError(
                f"image codec: the grid {tuple(item.grid)} is not allowed for {len(tokens)} tokens, "
                "it must be (rows, columns) of as many"
            )
        return tokens

    def read(self, value: Any, base: Path) -> np.ndarray:
        return images.read_image(value, base, self.options.size, multiple=self._multiple)

    def write(self, media: np.ndarray, path: Path) -> None:
        images.write_image(media, path)

    def to_html(self, media: np.ndarray) -> str:
        return images.image_html(media)

    def quality(self, media: Sequence[np.ndarray]) -> dict[str, float]:
        """Return ``psnr``, ``psnr_thumbnail`` (averaged to as many numbers), ``latent_mean``, ``latent_std``."""
        shaped = self._shaped(media)
        encoded = self.encode(shaped)
        decoded = self.decode(encoded)
        finer = math.sqrt(self.latent_channels / 3)  # a thumbnail's pixels along one side of a token
        grids = [tuple(max(1, round(side * finer)) for side in e.grid) for e in encoded]
        small = [images.thumbnails(p[None], grid)[0] for p, grid in zip(shaped, grids)]
        values = np.concatenate([e.latents.ravel() for e in encoded])
        return {
            "psnr": float(np.mean([images.psnr(a[None], b[None]) for a, b in zip(shaped, decoded)])),
            "psnr_thumbnail": float(np.mean([images.psnr(a[None], b[None]) for a, b in zip(shaped, small)])),
            "latent_mean": float(values.mean()),
            "latent_std": float(values.std()),
        }

    def _shaped(self, media: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [images.resize_image(p, self.options.size, multiple=self._multiple) for p in media]

    @torch.no_grad()
    def _measure(self, media: Sequence[np.ndarray]) -> None:
        """Measure mean and scale of the latents on images spread evenly over ``media``."""
        chosen = self._shaped([media[i] for i in measured_places(len(media))])
        self.scaling = Scaling.measure(
            self._latents(images.to_unit(np.stack([chosen[i] for i in places])))
            for _, places in alike([p.shape[:2] for p in chosen], _BATCH)
        )
