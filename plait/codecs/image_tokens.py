"""Images as discrete tokens: a small convolutional autoencoder with FSQ or VQ, trained in minutes on a CPU.

An image of any size is scaled and cut to ``size`` x ``size`` and becomes a grid of (size / downsample)^2 ids, row by
row. There is no convolution at full resolution: the stem folds 2 x 2 pixels into channels, which is most of the speed.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.codecs import images, saved
from plait.codecs.base import Codec, Encoded, Progress, ids_of
from plait.codecs.fitting import Schedule, fit_model, fitting_key
from plait.codecs.quantizer import Quantizer, check_quantizer
from plait.common.errors import DataError, require

_BATCH = 64  # images encoded or decoded together


@dataclass
class ImageTokenOptions:
    """Settings of `ImageTokenCodec`."""

    size: int = 32
    """Side of an image, in pixels."""
    downsample: int = 4
    """Pixels per token along one side; a power of two."""
    quantizer: Literal["fsq", "vq"] = "fsq"
    """fsq: finite scalar quantisation. vq: a learned codebook."""
    levels: list[int] = field(default_factory=lambda: [8, 5, 5, 5])
    """Levels per dimension (fsq); their product is the number of ids."""
    codebook_size: int = 1024
    """Number of ids (vq)."""
    channels: int = 128
    """Width of the network at the tokens' resolution."""
    batch_size: int = 16
    """Images in one training step; 8 is better at a size of 64, where a step takes four times as long."""
    learning_rate: float = 3e-3
    """Peak learning rate."""
    steps: int = 0
    """Training steps; 0 trains for the given minutes."""

    def __post_init__(self):
        where = "codec_options"
        exponent = math.log2(self.downsample) if self.downsample > 0 else 0
        require(exponent >= 1 and exponent == int(exponent), f"{where}.downsample", self.downsample,
                "a power of two, at least 2")  # fmt: skip
        require(self.size >= self.downsample and self.size % self.downsample == 0, f"{where}.size", self.size,
                f"a multiple of downsample ({self.downsample})")  # fmt: skip
        require(self.channels >= 2 and self.channels % 2 == 0, f"{where}.channels", self.channels, "even, at least 2")
        require(self.batch_size >= 1, f"{where}.batch_size", self.batch_size, "at least 1")
        check_quantizer(self.quantizer, self.levels, self.codebook_size, where)


class ImageTokenCodec(Codec):
    """Trained image tokens. Media: uint8 [H, W, 3] of any size; decoded: uint8 [size, size, 3]."""

    name: ClassVar[str] = "image_tokens"
    kind: ClassVar[str] = "image"
    suffix: ClassVar[str] = ".png"
    options_class: ClassVar[type] = ImageTokenOptions

    def __init__(self, options: ImageTokenOptions):
        super().__init__(options)
        self.model = self._new_model()
        self.vocab_size = self.model.quantizer.vocab_size
        self._fitted = False

    model: "ImageAutoencoder"

    def _new_model(self, sized: np.ndarray | None = None) -> "ImageAutoencoder":
        """Return an untrained model, for the images [B, size, size, 3] that it will be trained on."""
        return ImageAutoencoder(self.options)

    @property
    def is_fitted(self) -> bool:
        return self._fitted

    @property
    def default_grid(self) -> tuple[int, ...]:
        return (self.options.size // self.options.downsample,) * 2

    def fit(self, media: Sequence[np.ndarray], *, minutes: float, seed: int, folder: Path, progress: Progress) -> None:
        if not len(media):
            raise DataError("image codec: there are no images to train on")
        options = self.options
        sized = self._sized(media)
        pixels = torch.from_numpy(sized)
        schedule = Schedule(minutes, options.steps, options.learning_rate)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = self._new_model(sized).to(memory_format=torch.channels_last)

        def loss_of(model: nn.Module, rng: np.random.Generator, device: torch.device) -> Tensor:
            batch = pixels[torch.from_numpy(rng.integers(len(pixels), size=options.batch_size))]
            batch = batch.flip(2) if rng.random() < 0.5 else batch  # mirrored: twice the images for nothing
            target = images.to_unit(batch).to(device).contiguous(memory_format=torch.channels_last)
            output, _, quantizer_loss = model(target)
            output = output.float()
            return F.mse_loss(output, target) + 0.2 * F.l1_loss(output, target) + quantizer_loss

        key = fitting_key(options, media, seed, schedule)
        fit_model(self.model, loss_of, schedule=schedule, seed=seed, folder=folder, key=key, progress=progress)
        self._fitted = True

    def encode(self, media: Sequence[np.ndarray]) -> list[Encoded]:
        encoded = []
        for start in range(0, len(media), _BATCH):
            ids = self.model.ids(images.to_unit(self._sized(media[start : start + _BATCH])))
            encoded += [Encoded(ids=row.astype(np.int32), grid=self.default_grid) for row in ids.numpy()]
        return encoded

    def decode(self, encoded: Sequence[Encoded]) -> list[np.ndarray]:
        height, width = self.default_grid
        for item in encoded:
            if len(ids_of(item)) != height * width:
                raise DataError(f"image codec: {len(ids_of(item))} ids are not an image, it has {height} x {width}")
        decoded: list[np.ndarray] = []
        for start in range(0, len(encoded), _BATCH):
            ids = np.stack([ids_of(e) for e in encoded[start : start + _BATCH]]).reshape(-1, height, width)
            decoded += list(images.from_unit(self.model.decode(torch.from_numpy(ids).long())))
        return decoded

    def read(self, value: Any, base: Path) -> np.ndarray:
        return images.read_image(value, base, self.options.size)

    def write(self, media: np.ndarray, path: Path) -> None:
        images.write_image(media, path)

    def to_html(self, media: np.ndarray) -> str:
        return images.image_html(media)

    def quality(self, media: Sequence[np.ndarray]) -> dict[str, float]:
        """Return ``psnr``, ``psnr_thumbnail`` (averaged to as many pixels as tokens), ``codes_used`` (share)."""
        return images.round_trip(self, self._sized(media))

    def save_pretrained(self, folder: Path) -> None:
        saved.write_description(self, folder)
        saved.write_weights(self.model, folder)

    @classmethod
    def from_pretrained(cls, folder: Path) -> "ImageTokenCodec":
        codec, _ = saved.read_description(cls, folder)
        saved.read_weights(codec.model, folder)
        codec._fitted = True
        return codec

    def _sized(self, media: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([images.resize_image(image, self.options.size) for image in media])


class ImageAutoencoder(nn.Module):
    """Encoder, quantiser and decoder. Images are [B, 3, H, W] from -1 to 1, ids [B, height, width]."""

    def __init__(self, options: ImageTokenOptions):
        super().__init__()
        self.encoder, self.decoder = new_encoder(options), new_decoder(options, 3)
        self.quantizer = Quantizer(
            options.quantizer, dim=options.channels, levels=options.levels, codebook_size=options.codebook_size
        )

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return reconstructions, ids and the quantiser's loss."""
        z = self.encoder(images_BCHW)
        size, height, width = len(z), *z.shape[2:]
        quantized, ids, loss = self.quantizer(z.flatten(2).transpose(1, 2))
        quantized = quantized.transpose(1, 2).reshape(size, -1, height, width)
        return self.decoder(quantized), ids.view(size, height, width), loss

    @torch.no_grad()
    def ids(self, images_BCHW: Tensor) -> Tensor:
        """Return the ids of images, row by row, [B, height * width]."""
        self.eval()
        device = next(self.parameters()).device
        z = self.encoder(images_BCHW.to(device))
        return self.quantizer(z.flatten(2).transpose(1, 2))[1].cpu()

    @torch.no_grad()
    def decode(self, ids_BHW: Tensor) -> Tensor:
        """Return the images of ids."""
        self.eval()
        device = next(self.parameters()).device
        z = self.quantizer.lookup(ids_BHW.to(device)).permute(0, 3, 1, 2)
        return self.decoder(z).cpu()


def new_encoder(options: ImageTokenOptions) -> nn.Module:
    """Return a network from images [B, 3, H, W] to [B, channels, H / downsample, W / downsample]."""
    widths = _widths(options)
    layers: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(12, widths[0], 3, padding=1)]
    for here, below in itertools.pairwise(widths):
        layers += [Residual(here), nn.Conv2d(here, below, 4, stride=2, padding=1)]
    wide = widths[-1]
    return nn.Sequential(*layers, Residual(wide), Residual(wide), nn.GroupNorm(1, wide), nn.SiLU())


def new_decoder(options: ImageTokenOptions, planes: int) -> nn.Module:
    """Return a network from what `new_encoder`'s gives to [B, planes, H, W]."""
    widths = _widths(options)
    wide = widths[-1]
    layers: list[nn.Module] = [nn.Conv2d(wide, wide, 3, padding=1), Residual(wide), Residual(wide)]
    for below, here in itertools.pairwise(reversed(widths)):
        layers += [nn.Conv2d(below, 4 * here, 1), nn.PixelShuffle(2), Residual(here)]
    return nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(widths[0], 4 * planes, 3, padding=1), nn.PixelShuffle(2))


def _widths(options: ImageTokenOptions) -> list[int]:
    """Return the channels at each resolution, from half of the pixels' to the tokens'."""
    halvings = int(math.log2(options.downsample)) - 1  # after the stem, which halves once
    return [options.channels // 2] * halvings + [options.channels]


class Residual(nn.Module):
    """Normalise, mix 3 x 3, mix channels, add; starts as the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.inner = nn.Conv2d(channels, channels, 3, padding=1)
        self.outer = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.outer.weight)
        assert self.outer.bias is not None
        nn.init.zeros_(self.outer.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.outer(F.silu(self.inner(F.silu(self.norm(x_BCHW)))))
