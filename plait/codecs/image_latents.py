"""Images as VAE latents: a small AutoencoderKL of diffusers trained in minutes on a CPU, or pretrained weights.

The latents are the posterior's mean, normalised by mean and scale measured on training images, whatever scaling
factor the VAE came with. A VAE with 3 * f^2 input channels takes f x f pixels folded into channels: the small one has
no convolution at full resolution, which is most of its speed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.codecs import images, saved
from plait.codecs.base import Progress, alike
from plait.codecs.fitting import Schedule, best_device, fit_model, fitting_key
from plait.codecs.latents import Scaling, divergence
from plait.codecs.patches import ContinuousImageCodec, check_image_options
from plait.common.errors import ConfigError, DataError, require


@dataclass
class ImageLatentOptions:
    """Settings of `ImageLatentCodec`."""

    size: int = 64
    """Side of an image, in pixels; with ``aspect: any`` the side of a square of the same area."""
    aspect: Literal["square", "any"] = "square"
    """square: scaled and cut to size x size. any: keeps its aspect ratio, see `plait.codecs.images.image_sides`."""
    downsample: int = 4
    """Pixels per latent along one side; a power of two."""
    latent_channels: int = 4
    """Numbers in one latent."""
    patch_size: int = 2
    """Latents along each side of a token, so that a token has patch_size^2 * latent_channels numbers."""
    path: str = ""
    """Folder or Hub name of a pretrained AutoencoderKL; the settings below are for a VAE trained here."""
    channels: list[int] = field(default_factory=lambda: [64])
    """Width of the network at the latents' resolution, or at each resolution down to it, the finest first; pixels are
    folded into channels before the first."""
    l1_weight: float = 0.2
    """Weight of the mean absolute error, beside 1 for the mean squared error."""
    kl_weight: float = 1e-4
    """Weight of the mean KL divergence of a latent's number from a standard Gaussian."""
    batch_size: int = 8
    """Images in one training step."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    steps: int = 0
    """Training steps; 0 trains for the given minutes."""

    def __post_init__(self):
        where = "codec_options"
        power = self.downsample >= 1 and math.log2(self.downsample).is_integer()
        require(power, f"{where}.downsample", self.downsample, "a power of two")
        require(self.latent_channels >= 1, f"{where}.latent_channels", self.latent_channels, "at least 1")
        check_image_options(self, self.downsample * self.patch_size, "downsample * patch_size")
        levels = len(self.channels)
        require(1 <= levels <= math.log2(self.downsample) + 1 and all(c >= 8 and c % 8 == 0 for c in self.channels),
                f"{where}.channels", self.channels,
                f"1 to {int(math.log2(self.downsample)) + 1} multiples of 8, one for each resolution")  # fmt: skip
        require(self.batch_size >= 1, f"{where}.batch_size", self.batch_size, "at least 1")
        for name in ("l1_weight", "kl_weight"):
            require(getattr(self, name) >= 0, f"{where}.{name}", getattr(self, name), "0 or more")


class ImageLatentCodec(ContinuousImageCodec):
    """VAE latents of images, patch_size x patch_size latents a token, each channel of mean 0 and deviation 1.

    Also a pretrained VAE is fitted once, to measure mean and scale.
    """

    name: ClassVar[str] = "image_latents"
    options_class: ClassVar[type] = ImageLatentOptions

    def __init__(self, options: ImageLatentOptions):
        super().__init__(
            options,
            channels=options.latent_channels,
            patch_size=options.patch_size,
            token_pixels=options.downsample * options.patch_size,
        )
        self.vae = _pretrained(options) if options.path else None

    def fit(self, media: Sequence[np.ndarray], *, minutes: float, seed: int, folder: Path, progress: Progress) -> None:
        """Train the VAE, unless it is pretrained; then measure mean and scale of its latents."""
        if not len(media):
            raise DataError("image codec: there are no images to train on")
        shaped = self._shaped(media)
        if not self.options.path:
            self._train(shaped, minutes=minutes, seed=seed, folder=folder, progress=progress)
        self.vae.to(best_device())
        self._measure(shaped)
        self.vae.to("cpu")
        progress(1.0, "latents measured")

    def _train(self, shaped: list[np.ndarray], *, minutes: float, seed: int, folder: Path, progress: Progress) -> None:
        options = self.options
        same_shape = alike([image.shape for image in shaped], len(shaped))
        stacks = [torch.from_numpy(np.stack([shaped[i] for i in places])) for _, places in same_shape]
        shares = np.array([len(stack) for stack in stacks]) / len(shaped)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.vae = _new_vae(options)

        def loss_of(vae: nn.Module, rng: np.random.Generator, device: torch.device) -> Tensor:
            stack = stacks[rng.choice(len(stacks), p=shares)]  # one shape a batch
            batch = stack[torch.from_numpy(rng.integers(len(stack), size=options.batch_size))]
            batch = batch.flip(2) if rng.random() < 0.5 else batch  # mirrored: twice the images for nothing
            return vae_loss(vae, _folded(vae, images.to_unit(batch).to(device)), options)

        schedule = Schedule(minutes, options.steps, options.learning_rate)
        key = fitting_key(options, shaped, seed, schedule)
        fit_model(self.vae, loss_of, schedule=schedule, seed=seed, folder=folder, key=key, progress=progress)
        self.vae.requires_grad_(False)

    def _latents(self, images_BCHW: Tensor) -> Tensor:
        return self.vae.encode(_folded(self.vae, images_BCHW.to(self.vae.device))).latent_dist.mode().cpu()

    def _images(self, latents_BCHW: Tensor) -> Tensor:
        folded = self.vae.decode(latents_BCHW.to(self.vae.device)).sample
        return F.pixel_shuffle(folded, _pixels_folded(self.vae)).cpu()

    def save_pretrained(self, folder: Path) -> None:
        """Write codec.json, and the VAE as diffusers writes it beside it."""
        self.vae.save_pretrained(str(folder))
        own = {"vae_scaling_factor": self.vae.config.scaling_factor, "vae_shift_factor": self.vae.config.shift_factor}
        saved.write_description(self, folder, **self.scaling.describe(), **own)

    @classmethod
    def from_pretrained(cls, folder: Path) -> "ImageLatentCodec":
        codec, description = saved.read_copy(cls, folder)
        codec.scaling = Scaling.described(description, codec.options.latent_channels, folder)
        return codec


def vae_loss(vae: nn.Module, folded_BCHW: Tensor, options: ImageLatentOptions) -> Tensor:
    """Return the squared and absolute error and the KL divergence, each a mean over numbers and weighted as set."""
    posterior = vae.encode(folded_BCHW).latent_dist
    output = vae.decode(posterior.sample()).sample.float()
    error = F.mse_loss(output, folded_BCHW) + options.l1_weight * F.l1_loss(output, folded_BCHW)
    return error + options.kl_weight * divergence(posterior.mean, posterior.logvar)


def _autoencoder_class() -> type:
    with saved.installed("diffusers"):
        from diffusers import AutoencoderKL
    return AutoencoderKL


def _new_vae(options: ImageLatentOptions) -> nn.Module:
    """Return an untrained VAE whose pixels are folded, so that its levels halve the rest of the way."""
    levels = len(options.channels)
    colours = 3 * (options.downsample >> (levels - 1)) ** 2
    vae = _autoencoder_class()(
        in_channels=colours,
        out_channels=colours,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(options.channels),
        layers_per_block=1,
        latent_channels=options.latent_channels,
        norm_num_groups=8,
        sample_size=options.size,
        mid_block_add_attention=False,
    )
    return vae.to(memory_format=torch.channels_last)


def _pretrained(options: ImageLatentOptions) -> nn.Module:
    """Load a VAE; raises ConfigError where its latents are not those of the options."""
    vae = saved.load_pretrained(_autoencoder_class(), options.path)
    config, where = vae.config, "codec_options"
    fold = _pixels_folded(vae)
    if 3 * fold**2 != config.in_channels or config.out_channels != config.in_channels:
        raise ConfigError(
            f"{where}.path: {options.path!r} takes {config.in_channels} channels and returns {config.out_channels}, "
            "a VAE for images takes and returns 3 (or 3 * f^2, for f x f pixels folded)"
        )
    downsample = fold * 2 ** (len(config.block_out_channels) - 1)
    require(options.downsample == downsample, f"{where}.downsample", options.downsample,
            f"{downsample}, that of the VAE {options.path!r}")  # fmt: skip
    require(options.latent_channels == config.latent_channels, f"{where}.latent_channels", options.latent_channels,
            f"{config.latent_channels}, that of the VAE {options.path!r}")  # fmt: skip
    return vae.to(memory_format=torch.channels_last)


def _pixels_folded(vae: nn.Module) -> int:
    """Return how many pixels along each side the VAE takes as channels of one; 1 for most pretrained ones."""
    return math.isqrt(vae.config.in_channels // 3)


def _folded(vae: nn.Module, images_BCHW: Tensor) -> Tensor:
    folded = F.pixel_unshuffle(images_BCHW, _pixels_folded(vae))
    return folded.contiguous(memory_format=torch.channels_last)
