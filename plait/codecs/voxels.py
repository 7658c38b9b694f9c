"""Things in three dimensions as latents of a small autoencoder: which cells of a cube are filled, and their colours.

Media are uint8 [S, S, S, 4]: cells along x, y and z (up), each with red, green, blue, and 255 where it is filled (0).
A token is a cube of patch_size^3 latents. Cells are folded into channels first, so that no convolution runs at full
resolution. The latents are the posterior's mean, of mean 0 and deviation 1 per channel as measured on training media.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.codecs import saved
from plait.codecs.base import Codec, Encoded, Progress
from plait.codecs.fitting import Schedule, best_device, fit_model, fitting_key
from plait.codecs.latents import Scaling, checked_latents, divergence, measured_places
from plait.codecs.meshes import FILLED, read_scene, write_scene
from plait.common.errors import DataError, require

_BATCH = 32


@dataclass
class VoxelOptions:
    """Settings of `VoxelCodec`."""

    size: int = 32
    """Cells along each side of the cube."""
    downsample: int = 4
    """Cells per latent along one side."""
    latent_channels: int = 8
    """Numbers in one latent."""
    patch_size: int = 2
    """Latents along each side of a token, so that a token has patch_size^3 * latent_channels numbers."""
    width: int = 96
    """Channels of the network at the latents' resolution."""
    depth: int = 2
    """Residual blocks of the encoder, and of the decoder."""
    filled_weight: float = 4.0
    """Weight of filled cells in the error of what is filled, beside 1 for empty ones."""
    colour_weight: float = 4.0
    """Weight of the squared error of colours (0 to 1), over filled cells."""
    kl_weight: float = 1e-4
    """Weight of the mean KL divergence of a latent's number from a standard Gaussian."""
    batch_size: int = 16
    """Scenes in one training step."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    steps: int = 0
    """Training steps; 0 trains for the given minutes."""

    def __post_init__(self):
        where, token = "codec_options", self.downsample * self.patch_size
        for name in ("downsample", "latent_channels", "patch_size", "depth", "batch_size"):
            require(getattr(self, name) >= 1, f"{where}.{name}", getattr(self, name), "at least 1")
        require(self.size >= token and self.size % token == 0, f"{where}.size", self.size,
                f"a multiple of downsample * patch_size ({token})")  # fmt: skip
        require(self.width >= 8 and self.width % 8 == 0, f"{where}.width", self.width, "a multiple of 8")
        for name in ("filled_weight", "colour_weight", "kl_weight"):
            require(getattr(self, name) >= 0, f"{where}.{name}", getattr(self, name), "0 or more")


class VoxelCodec(Codec):
    """Latents of voxels, a token for each cube of cells."""

    name: ClassVar[str] = "voxels"
    kind: ClassVar[str] = "scene3d"
    suffix: ClassVar[str] = ".glb"
    options_class: ClassVar[type] = VoxelOptions

    def __init__(self, options: VoxelOptions):
        super().__init__(options)
        self.latent_channels = options.latent_channels * options.patch_size**3
        self.patch_size = options.patch_size
        self.model = VoxelVAE(options)
        self.scaling: Scaling | None = None
        """Mean and scale of the latents, per channel; None until fitted."""

    @property
    def is_fitted(self) -> bool:
        return self.scaling is not None

    @property
    def _fitted(self) -> Scaling:
        assert self.scaling is not None, "a codec is fitted before it is used"
        return self.scaling

    @property
    def default_grid(self) -> tuple[int, ...]:
        return (self.options.size // (self.options.downsample * self.options.patch_size),) * 3

    def fit(self, media: Sequence[np.ndarray], *, minutes: float, seed: int, folder: Path, progress: Progress) -> None:
        """Train the network, then measure mean and scale of its latents."""
        if not len(media):
            raise DataError("voxel codec: there are no scenes to train on")
        options, stack = self.options, torch.from_numpy(np.stack(media))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = VoxelVAE(options)

        def loss_of(model: Any, rng: np.random.Generator, device: torch.device) -> Tensor:
            batch = stack[torch.from_numpy(rng.integers(len(stack), size=options.batch_size))]
            return voxel_loss(model, unit(batch).to(device), options)

        schedule = Schedule(minutes, options.steps, options.learning_rate)
        key = fitting_key(options, stack, seed, schedule)
        fit_model(self.model, loss_of, schedule=schedule, seed=seed, folder=folder, key=key, progress=progress)
        self.model.requires_grad_(False).to(best_device())
        chosen = [media[i] for i in measured_places(len(media))]
        batches = (chosen[start : start + _BATCH] for start in range(0, len(chosen), _BATCH))
        self.scaling = Scaling.measure(self.model.latents(unit(torch.from_numpy(np.stack(some)))) for some in batches)
        self.model.to("cpu")
        progress(1.0, "latents measured")

    def encode(self, media: Sequence[np.ndarray]) -> list[Encoded]:
        """Encode voxels [S, S, S, 4]: latents [tokens, latent_channels]. Raises DataError for another size."""
        encoded = []
        for start in range(0, len(media), _BATCH):
            some = np.stack([self._checked(item) for item in media[start : start + _BATCH]])
            latents = self._fitted.normalize(self.model.latents(unit(torch.from_numpy(some))))
            encoded += [
                Encoded(latents=row, grid=self.default_grid) for row in folded(latents, self.patch_size).numpy()
            ]
        return encoded

    def decode(self, encoded: Sequence[Encoded]) -> list[np.ndarray]:
        """Decode tokens into voxels."""
        decoded = []
        for start in range(0, len(encoded), _BATCH):
            some = np.stack([self._tokens(item) for item in encoded[start : start + _BATCH]])
            latents = unfolded(torch.from_numpy(some), self.default_grid, self.patch_size)
            decoded += list(cells(self.model.decode(self._fitted.restore(latents))))
        return decoded

    def _checked(self, item: np.ndarray) -> np.ndarray:
        if item.shape != (self.options.size,) * 3 + (4,):
            raise DataError(
                f"voxel codec: cells {list(item.shape)} are not allowed, they must be {[self.options.size] * 3 + [4]}"
            )
        return item

    def _tokens(self, item: Encoded) -> np.ndarray:
        tokens = checked_latents(item, self.latent_channels, "voxel")
        if tuple(item.grid) != self.default_grid or len(tokens) != math.prod(self.default_grid):
            raise DataError(f"voxel codec: the grid {tuple(item.grid)} is not allowed, it must be {self.default_grid}")
        return tokens

    def read(self, value: Any, base: Path) -> np.ndarray:
        return read_scene(value, base, self.options.size)

    def write(self, media: np.ndarray, path: Path) -> None:
        write_scene(media, path)

    def to_html(self, media: np.ndarray) -> str:
        filled = int((media[..., 3] >= FILLED).sum())
        return f"{media.shape[0]} × {media.shape[1]} × {media.shape[2]} cells, {filled:,} filled"

    def quality(self, media: Sequence[np.ndarray]) -> dict[str, float]:
        """Return ``iou`` of filled cells, ``colour_psnr`` (dB where both are), ``latent_mean`` and ``latent_std``."""
        encoded = self.encode(media)
        pairs = list(zip(media, self.decode(encoded), strict=True))
        values = np.concatenate([self._tokens(e).ravel() for e in encoded])
        return {
            "iou": float(np.mean([iou(a, b) for a, b in pairs])),
            "colour_psnr": float(np.mean([colour_psnr(a, b) for a, b in pairs])),
            "latent_mean": float(values.mean()),
            "latent_std": float(values.std()),
        }

    def save_pretrained(self, folder: Path) -> None:
        saved.write_description(self, folder, **self._fitted.describe())
        saved.write_weights(self.model, folder)

    @classmethod
    def from_pretrained(cls, folder: Path) -> "VoxelCodec":
        codec, description = saved.read_description(cls, folder)
        saved.read_weights(codec.model, folder)
        codec.scaling = Scaling.described(description, codec.options.latent_channels, folder)
        return codec


class VoxelVAE(nn.Module):
    """A Gaussian posterior between two small convolutional networks at the latents' resolution."""

    def __init__(self, options: VoxelOptions):
        super().__init__()
        self.fold, numbers = options.downsample, 4 * options.downsample**3
        self.encoder = nn.Sequential(
            nn.Conv3d(numbers, options.width, 1), *(ResidualBlock(options.width) for _ in range(options.depth)),
            nn.GroupNorm(8, options.width), nn.SiLU(), nn.Conv3d(options.width, 2 * options.latent_channels, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv3d(options.latent_channels, options.width, 1),
            *(ResidualBlock(options.width) for _ in range(options.depth)),
            nn.GroupNorm(8, options.width), nn.SiLU(), nn.Conv3d(options.width, numbers, 1),
        )  # fmt: skip

    def forward(self, cells_BCXYZ: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits and colours [B, 4, X, Y, Z] of drawn latents, and their mean and log-variance."""
        mean, log_variance = self.posterior(cells_BCXYZ)
        return self.rebuilt(mean + (log_variance / 2).exp() * torch.randn_like(mean)), mean, log_variance

    def posterior(self, cells_BCXYZ: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance [B, C, x, y, z] of the latents."""
        mean, log_variance = self.encoder(space_to_depth(cells_BCXYZ, self.fold)).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 10)

    def rebuilt(self, latents_BCXYZ: Tensor) -> Tensor:
        """Return [B, 4, X, Y, Z]: three colours, and the logit of being filled."""
        return depth_to_space(self.decoder(latents_BCXYZ), self.fold)

    @torch.no_grad()
    def latents(self, cells_BCXYZ: Tensor) -> Tensor:
        """Return the means on the CPU."""
        return self.eval().posterior(cells_BCXYZ.to(self.device))[0].cpu()

    @torch.no_grad()
    def decode(self, latents_BCXYZ: Tensor) -> Tensor:
        """Return three colours and the logit of being filled, on the CPU."""
        return self.eval().rebuilt(latents_BCXYZ.to(self.device)).float().cpu()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


class ResidualBlock(nn.Module):
    """Two 3-D convolutions beside the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv3d(width, width, 3, padding=1),
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv3d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def voxel_loss(model: VoxelVAE, cells_BCXYZ: Tensor, options: VoxelOptions) -> Tensor:
    """Return the weighted errors of what is filled and of its colours, and the KL divergence."""
    output, mean, log_variance = model(cells_BCXYZ)
    filled, rebuilt = cells_BCXYZ[:, 3], output.float()
    weights = 1 + (options.filled_weight - 1) * filled
    occupancy = F.binary_cross_entropy_with_logits(rebuilt[:, 3], filled, weight=weights)
    squares = (rebuilt[:, :3] - cells_BCXYZ[:, :3]).square().mean(1)
    colour = (squares * filled).sum() / filled.sum().clamp(min=1)
    return occupancy + options.colour_weight * colour + options.kl_weight * divergence(mean, log_variance)


def unit(media_BXYZC: Tensor) -> Tensor:
    """Return float32 [B, 4, X, Y, Z]: colours from 0 to 1 (0 where empty), and 1 where a cell is filled."""
    filled = (media_BXYZC[..., 3:] >= FILLED).float()
    return torch.cat([media_BXYZC[..., :3].float() / 255 * filled, filled], dim=-1).permute(0, 4, 1, 2, 3)


def cells(output_BCXYZ: Tensor) -> np.ndarray:
    """Return uint8 [B, X, Y, Z, 4] of colours and logits."""
    filled = (output_BCXYZ[:, 3:] > 0).to(torch.uint8) * 255
    colours = (output_BCXYZ[:, :3].clamp(0, 1) * 255).round().to(torch.uint8) * (filled > 0)
    return torch.cat([colours, filled], dim=1).permute(0, 2, 3, 4, 1).contiguous().numpy()


def space_to_depth(x: Tensor, fold: int) -> Tensor:
    """Fold [B, C, X f, Y f, Z f] into [B, C f^3, X, Y, Z]."""
    b, c, *sides = x.shape
    i, j, k = (side // fold for side in sides)
    x = x.reshape(b, c, i, fold, j, fold, k, fold)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * fold**3, i, j, k)


def depth_to_space(x: Tensor, fold: int) -> Tensor:
    """Undo `space_to_depth`."""
    b, c, i, j, k = x.shape
    x = x.reshape(b, c // fold**3, fold, fold, fold, i, j, k)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, c // fold**3, i * fold, j * fold, k * fold)


def folded(latents_BCXYZ: Tensor, patch_size: int) -> Tensor:
    """Return tokens [B, n, patch_size^3 C] of latents, row by row, each latent with all its channels together."""
    b, c, x, y, z = latents_BCXYZ.shape
    p = patch_size
    tokens = latents_BCXYZ.reshape(b, c, x // p, p, y // p, p, z // p, p).permute(0, 2, 4, 6, 3, 5, 7, 1)
    return tokens.reshape(b, -1, p**3 * c)


def unfolded(tokens_BND: Tensor, grid: Sequence[int], patch_size: int) -> Tensor:
    """Undo `folded` for tokens of a grid of (x, y, z) tokens."""
    (x, y, z), p, b = grid, patch_size, len(tokens_BND)
    latents = tokens_BND.reshape(b, x, y, z, p, p, p, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return latents.reshape(b, -1, x * p, y * p, z * p)


def iou(item: np.ndarray, other: np.ndarray) -> float:
    """Return the share of cells that both fill, of those that one fills; 1 for two that are empty."""
    a, b = (x[..., 3] >= FILLED for x in (item, other))
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else 1.0


def colour_psnr(item: np.ndarray, other: np.ndarray) -> float:
    """Return dB between the colours of cells that both fill; 0 where there is none, 100 where all are equal."""
    both = (item[..., 3] >= FILLED) & (other[..., 3] >= FILLED)
    if not both.any():
        return 0.0
    error = (item[both][:, :3].astype(np.float64) - other[both][:, :3]) ** 2
    return float(min(10 * np.log10(255**2 / max(error.mean(), 1e-12)), 100))
