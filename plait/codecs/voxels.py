"""Things in three dimensions as latents of a small autoencoder: which cells of a cube are filled, and their colours.

Media are uint8 [S, S, S, 4]: cells along x, y and z (up), each with red, green, blue, and 255 where it is filled (0).
A token is a cube of cells, encoded by itself: what lies around it is the model's to know, and most cubes of a scene are
empty, so that the network sees the others alone and learns in minutes (docs/experiments.md). Of a token's numbers,
three are the mean colour of its filled cells; the others are the posterior's mean of how its cells differ from that.
All have mean 0 and deviation 1 per channel as measured on training media, the colour's `VoxelOptions.colour_scale`.
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
from plait.codecs.viewer import scene_html, viewer_scripts
from plait.common.errors import DataError, require

COLOURS = 3
"""Numbers of the mean colour, the first ones of a token."""
_SCENES = 32
"""Scenes that go through the network together."""


@dataclass
class VoxelOptions:
    """Settings of `VoxelCodec`."""

    size: int = 32
    """Cells along each side of the cube."""
    token_size: int = 8
    """Cells along each side of a token's cube."""
    latent_channels: int = 64
    """Numbers in a token: three of its mean colour, the others learned."""
    colour_scale: float = 2.0
    """How much larger the numbers of the mean colour are than the others: things are told apart by their colours."""
    width: int = 384
    """Width of the network."""
    depth: int = 2
    """Residual layers of the encoder, and of the decoder."""
    filled_weight: float = 3.0
    """Weight of filled cells in the error of what is filled, beside 1 for empty ones."""
    colour_weight: float = 4.0
    """Weight of the squared error of colours (0 to 1), over filled cells."""
    linear_weight: float = 0.3
    """Weight of the error of what a linear map reads of a latent: which slices are filled."""
    kl_weight: float = 1e-4
    """Weight of the mean KL divergence of a latent's number from a standard Gaussian."""
    batch_size: int = 512
    """Tokens in one training step."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    steps: int = 0
    """Training steps; 0 trains for the given minutes."""

    def __post_init__(self):
        where = "codec_options"
        for name in ("token_size", "width", "depth", "batch_size"):
            require(getattr(self, name) >= 1, f"{where}.{name}", getattr(self, name), "at least 1")
        require(self.latent_channels > COLOURS, f"{where}.latent_channels", self.latent_channels,
                f"at least {COLOURS + 1}, of which {COLOURS} are the colour's")  # fmt: skip
        require(self.colour_scale > 0, f"{where}.colour_scale", self.colour_scale, "above 0")
        require(self.size >= self.token_size and self.size % self.token_size == 0, f"{where}.size", self.size,
                f"a multiple of token_size ({self.token_size})")  # fmt: skip
        for name in ("filled_weight", "colour_weight", "linear_weight", "kl_weight"):
            require(getattr(self, name) >= 0, f"{where}.{name}", getattr(self, name), "0 or more")


class VoxelCodec(Codec):
    """Latents of voxels, a token for each cube of cells."""

    name: ClassVar[str] = "voxels"
    kind: ClassVar[str] = "scene3d"
    suffix: ClassVar[str] = ".glb"
    formats: ClassVar[tuple[str, ...]] = (".ply", ".obj", ".stl", ".npz", ".xml")
    judge: ClassVar[str] = "plait.worlds.shape_judge:ShapeJudge"
    options_class: ClassVar[type] = VoxelOptions

    def __init__(self, options: VoxelOptions):
        super().__init__(options)
        self.latent_channels = options.latent_channels
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
        return (self.options.size // self.options.token_size,) * 3

    def fit(self, media: Sequence[np.ndarray], *, minutes: float, seed: int, folder: Path, progress: Progress) -> None:
        """Train the network, then measure mean and scale of its latents."""
        filled = [tokens[(tokens[..., 3] >= FILLED).any((1, 2, 3))] for tokens in map(self._cubes, media)]
        if not sum(map(len, filled)):
            raise DataError("voxel codec: there are no scenes to train on, or all of them are empty")
        options, stack = self.options, torch.from_numpy(np.concatenate(filled))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = VoxelVAE(options)

        def loss_of(model: Any, rng: np.random.Generator, device: torch.device) -> Tensor:
            batch = stack[torch.from_numpy(rng.integers(len(stack), size=options.batch_size))]
            return voxel_loss(model, unit(turned(batch, rng)).to(device), options)

        schedule = Schedule(minutes, options.steps, options.learning_rate)
        key = fitting_key(options, stack, seed, schedule)
        fit_model(self.model, loss_of, schedule=schedule, seed=seed, folder=folder, key=key, progress=progress)
        self.model.requires_grad_(False).to(best_device())
        chosen = [media[i] for i in measured_places(len(media))]
        scaling = Scaling.measure(
            self._latents(chosen[start : start + _SCENES]) for start in range(0, len(chosen), _SCENES)
        )
        larger = [options.colour_scale] * COLOURS + [1.0] * (options.latent_channels - COLOURS)
        self.scaling = Scaling(scaling.mean, [a / b for a, b in zip(scaling.scale, larger, strict=True)])
        self.model.to("cpu")
        progress(1.0, "latents measured")

    def encode(self, media: Sequence[np.ndarray]) -> list[Encoded]:
        """Encode voxels [S, S, S, 4]: latents [tokens, latent_channels]. Raises DataError for another size."""
        encoded = []
        for start in range(0, len(media), _SCENES):
            some = media[start : start + _SCENES]
            latents = self._fitted.normalize(self._latents(some)).unflatten(0, (len(some), -1))
            encoded += [Encoded(latents=row, grid=self.default_grid) for row in latents.numpy()]
        return encoded

    def decode(self, encoded: Sequence[Encoded]) -> list[np.ndarray]:
        """Decode tokens into voxels."""
        decoded = []
        for start in range(0, len(encoded), _SCENES):
            some = np.concatenate([self._tokens(item) for item in encoded[start : start + _SCENES]])
            cubes = cells(self.model.decode(self._fitted.restore(torch.from_numpy(some))))
            per_scene = math.prod(self.default_grid)
            decoded += [joined(cubes[k : k + per_scene]) for k in range(0, len(cubes), per_scene)]
        return decoded

    def _latents(self, media: Sequence[np.ndarray]) -> Tensor:
        """Return the latents [scenes * tokens, latent_channels], not scaled."""
        return self.model.latents(unit(torch.from_numpy(np.concatenate([self._cubes(item) for item in media]))))

    def _cubes(self, item: np.ndarray) -> np.ndarray:
        """Return the tokens' cells uint8 [tokens, t, t, t, 4] of a scene. Raises DataError for another size."""
        if item.shape != (self.options.size,) * 3 + (4,):
            raise DataError(
                f"voxel codec: cells {list(item.shape)} are not allowed, they must be {[self.options.size] * 3 + [4]}"
            )
        return cut(item, self.options.token_size)

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
        return scene_html(media)

    @classmethod
    def page_scripts(cls) -> Sequence[str]:
        return viewer_scripts()

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
    """A Gaussian posterior between two small networks of a token's cells, and beside it their mean colour as it is."""

    def __init__(self, options: VoxelOptions):
        super().__init__()
        self.token_size, numbers = options.token_size, 4 * options.token_size**3
        width, latents = options.width, options.latent_channels - COLOURS

        def network(given: int, made: int) -> nn.Sequential:
            layers = (ResidualLayer(width) for _ in range(options.depth))
            return nn.Sequential(nn.Linear(given, width), *layers, nn.LayerNorm(width), nn.Linear(width, made))

        self.encoder, self.decoder = network(numbers, 2 * latents), network(latents, numbers)
        self.linear = nn.Linear(latents, 3 * options.token_size)

    def forward(self, cells_NXYZC: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return of drawn latents: colours and logits [N, t, t, t, 4] and the logits of slices along x, y and z that
        are read linearly [N, 3 t]; and mean and log-variance [N, C - 3] of what is learned."""
        colour, mean, log_variance = self.posterior(cells_NXYZC)
        drawn = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return self.rebuilt(torch.cat([colour, drawn], dim=1)), self.linear(drawn), mean, log_variance

    def posterior(self, cells_NXYZC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean colour [N, 3] of cells, and mean and log-variance [N, C - 3] of what is learned beside it."""
        colour = mean_colour(cells_NXYZC)
        relative = cells_NXYZC - F.pad(colour, (0, 1))[:, None, None, None] * cells_NXYZC[..., 3:]
        mean, log_variance = self.encoder(relative.flatten(1)).float().chunk(2, dim=1)
        return colour, mean, log_variance.clamp(-20, 10)

    def rebuilt(self, latents_NC: Tensor) -> Tensor:
        """Return [N, t, t, t, 4]: three colours, and the logit of being filled."""
        colour, learned = latents_NC[:, :COLOURS], latents_NC[:, COLOURS:]
        relative = self.decoder(learned).unflatten(1, (*(self.token_size,) * 3, 4))
        return relative + F.pad(colour, (0, 1))[:, None, None, None]

    @torch.no_grad()
    def latents(self, cells_NXYZC: Tensor) -> Tensor:
        """Return mean colours and the posterior's means [N, C] on the CPU."""
        return torch.cat(self.eval().posterior(cells_NXYZC.to(self.device))[:2], dim=1).cpu()

    @torch.no_grad()
    def decode(self, latents_NC: Tensor) -> Tensor:
        """Return three colours and the logit of being filled, on the CPU."""
        return self.eval().rebuilt(latents_NC.to(self.device)).float().cpu()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


class ResidualLayer(nn.Module):
    """A small perceptron beside the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def voxel_loss(model: VoxelVAE, cells_NXYZC: Tensor, options: VoxelOptions) -> Tensor:
    """Return the weighted errors of what is filled and of its colours, of what is read linearly, and the KL divergence.

    The towers that read the latents say where things are: without the linear map that was hidden in a cube's latents
    (docs/experiments.md).
    """
    output, linear, mean, log_variance = model(cells_NXYZC)
    filled, rebuilt = cells_NXYZC[..., 3], output.float()
    weights = 1 + (options.filled_weight - 1) * filled
    occupancy = F.binary_cross_entropy_with_logits(rebuilt[..., 3], filled, weight=weights)
    squares = (rebuilt[..., :3] - cells_NXYZC[..., :3]).square().mean(-1)
    colour = (squares * filled).sum() / filled.sum().clamp(min=1)
    read = options.linear_weight * _linear_loss(linear.float(), cells_NXYZC)
    return occupancy + options.colour_weight * colour + read + options.kl_weight * divergence(mean, log_variance)


def _linear_loss(linear: Tensor, cells_NXYZC: Tensor) -> Tensor:
    filled = cells_NXYZC[..., 3]
    slices = torch.cat([filled.amax(axes) for axes in ((2, 3), (1, 3), (1, 2))], dim=1)
    return F.binary_cross_entropy_with_logits(linear, slices)


def mean_colour(cells_NXYZC: Tensor) -> Tensor:
    """Return the mean colour [N, 3] of the filled cells of `unit` cubes, zeros where none is."""
    filled = cells_NXYZC[..., 3:]
    return (cells_NXYZC[..., :3] * filled).sum((1, 2, 3)) / filled.sum((1, 2, 3)).clamp(min=1)


def unit(media_NXYZC: Tensor) -> Tensor:
    """Return float32 [..., 4]: colours from -0.5 to 0.5 (0 where empty), and 1 where a cell is filled."""
    filled = (media_NXYZC[..., 3:] >= FILLED).float()
    return torch.cat([(media_NXYZC[..., :3].float() / 255 - 0.5) * filled, filled], dim=-1)


def cells(output_NXYZC: Tensor) -> np.ndarray:
    """Return uint8 [..., 4] of colours and logits."""
    filled = (output_NXYZC[..., 3:] > 0).to(torch.uint8) * 255
    colours = ((output_NXYZC[..., :3] + 0.5).clamp(0, 1) * 255).round().to(torch.uint8) * (filled > 0)
    return torch.cat([colours, filled], dim=-1).numpy()


def turned(cubes: Tensor, rng: np.random.Generator) -> Tensor:
    """Mirror a batch [N, t, t, t, 4] along axes, and exchange the two level ones, as ``rng`` draws."""
    axes = [axis for axis in (1, 2, 3) if rng.random() < 0.5]
    cubes = cubes.transpose(1, 2) if rng.random() < 0.5 else cubes
    return cubes.flip(axes) if axes else cubes


def cut(scene: np.ndarray, token_size: int) -> np.ndarray:
    """Return the cubes [tokens, t, t, t, 4] of cells [S, S, S, 4], row by row."""
    n, t = len(scene) // token_size, token_size
    return scene.reshape(n, t, n, t, n, t, 4).transpose(0, 2, 4, 1, 3, 5, 6).reshape(-1, t, t, t, 4)


def joined(cubes: np.ndarray) -> np.ndarray:
    """Undo `cut`."""
    n, t = round(len(cubes) ** (1 / 3)), cubes.shape[1]
    return cubes.reshape(n, n, n, t, t, t, 4).transpose(0, 3, 1, 4, 2, 5, 6).reshape(n * t, n * t, n * t, 4)


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
