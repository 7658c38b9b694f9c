"""What leads into the towers and out of them, besides the id embedding: latents and their noise level.

Shapes: n latent tokens of several items, C numbers per token, D the tower's width. Where a U-Net folds patches, a
token is P x P latents of c = C / P^2 channels, row by row, each with all its channels together (plait/codecs/base.py);
B items of one grid (h, w) are images [B, c, h P, w P], and K channels at some resolution of the U-Net.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from plait.common.errors import require
from plait.model.layers import SMALL, Conv2d, GroupNorm, Linear
from plait.model.ranks import local

Grid = tuple[int, ...]


class TimestepEmbedding(nn.Module):
    """Sinusoids of a noise level in [0, 1], through a two-layer network: [n] to [n, D] (DiT, arXiv 2212.09748)."""

    def __init__(self, width: int, num_frequencies: int = 128):
        super().__init__()
        self.num_frequencies = num_frequencies
        self.inner = Linear(2 * num_frequencies, width)
        self.outer = Linear(width, width)

    def forward(self, timesteps: Tensor) -> Tensor:
        ladder = torch.arange(self.num_frequencies, device=timesteps.device, dtype=timesteps.dtype)
        ladder = torch.exp(-math.log(10000.0) * ladder / self.num_frequencies)
        angles = 1000.0 * timesteps[:, None] * ladder
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        waves = waves.to(self.inner.bias.dtype)  # that of the model: its matrices may be kept shorter
        return self.outer(nn.functional.silu(self.inner(waves)))


@functools.lru_cache(maxsize=256)
def place_embedding(grid: Grid, width: int, device: torch.device) -> Tensor:
    """Return sinusoids [n, D] of each token's coordinates on the axes of its item (DiT's, arXiv 2212.09748).

    Each axis has an equal share of the width, cosines and sines of a ladder from 1 down to 1 / 100.
    """
    size = width // (2 * len(grid))
    ladder = 100.0 ** -(torch.arange(size, device=device, dtype=torch.float32) / max(size, 1))
    axes = torch.meshgrid(*(torch.arange(n, device=device, dtype=torch.float32) for n in grid), indexing="ij")
    angles = torch.cat([axis.flatten()[:, None] * ladder for axis in axes], dim=1)
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    return nn.functional.pad(waves, (0, width - waves.shape[1]))


class LatentIn(nn.Module):
    """Latents [n, C] to the stream [n, D]; noised ones carry their timestep (Transfusion, section 3.2).

    ``network`` is linear (one matrix), unet (`Fold`), conv (`Stem`) or mlp (`Connector`); without ``is_noised`` there
    are no timesteps, as nothing is ever noised. With no tokens, all parameters get zero gradients.
    """

    def __init__(
        self, channels: int, width: int, *, patch_size: int = 1, network: str = "linear", places: bool = False,
        is_noised: bool = True,
    ):  # fmt: skip
        super().__init__()
        self.places, self.width = places, width
        self.timestep = TimestepEmbedding(width) if is_noised else None
        self.fold = Fold(channels, width, patch_size) if network == "unet" else None
        self.stem = Stem(channels, width, patch_size) if network == "conv" else None
        matrices = {"linear": Linear, "mlp": Connector}.get(network)
        self.project = matrices(channels, width) if matrices else None

    def forward(self, latents: Tensor, timesteps: Tensor | None, grids: Sequence[Grid]) -> Tensor:
        """Return the tokens [n, D]; ``timesteps`` [n] are noise levels (None: clean), ``grids`` the items' extents."""
        timesteps = torch.zeros_like(latents[:, 0]) if timesteps is None else timesteps
        if not grids:
            return _nothing(self, latents, self.width)
        if self.project is not None:
            x = self.project(latents)
            x = x if self.timestep is None else x + self.timestep(timesteps)
        elif (stem := self.stem) is not None:
            levels = _first_of_each(timesteps, grids)
            times = levels[:, None].expand(-1, self.width) * 0 if self.timestep is None else self.timestep(levels)
            x = _per_grid(lambda x, t, grid: stem(x, grid) + t[:, None], grids, [latents], times)
        else:
            fold = self.fold
            assert fold is not None and self.timestep is not None, "latents enter by matrices, or noised by a U-Net"
            times = self.timestep(_first_of_each(timesteps, grids))
            x = _per_grid(lambda x, t, grid: fold(x, t, grid) + t[:, None], grids, [latents], times)
        return (
            x + torch.cat([place_embedding(grid, x.shape[1], x.device) for grid in grids]).to(x.dtype)
            if self.places
            else x
        )


class Connector(nn.Module):
    """Features [n, C] to the stream [n, D] through two matrices with a GELU between (LLaVA-1.5, arXiv 2310.03744)."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.inner = Linear(channels, width)
        self.outer = Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.outer(nn.functional.gelu(self.inner(features), approximate="tanh"))


class LatentOut(nn.Module):
    """The stream [n, D] to predictions [n, C].

    ``network`` unet is `Unfold`, which sees the noised latents and their timestep again; otherwise it is one matrix,
    which sees the stream only. With no tokens, all parameters get zero gradients.
    """

    def __init__(self, channels: int, width: int, *, patch_size: int = 1, network: str = "linear"):
        super().__init__()
        self.channels = channels
        self.timestep = TimestepEmbedding(width) if network == "unet" else None
        self.unfold = Unfold(channels, width, patch_size) if network == "unet" else None
        self.last = Linear(width, channels, std=SMALL) if network != "unet" else None

    def forward(self, hidden: Tensor, latents: Tensor, timesteps: Tensor | None, grids: Sequence[Grid]) -> Tensor:
        """Return predictions [n, C] for the noised ``latents`` [n, C]; the rest as in `LatentIn`."""
        if self.last is not None:
            return self.last(hidden)
        if not grids:
            return _nothing(self, hidden, self.channels)
        timesteps = torch.zeros_like(latents[:, 0]) if timesteps is None else timesteps
        times = self.timestep(_first_of_each(timesteps, grids))
        assert self.unfold is not None, "latents leave by a matrix or by a U-Net"
        return _per_grid(self.unfold, grids, [hidden, latents], times)


class Fold(nn.Module):
    """U-Net down blocks (Transfusion, section 3.2): images to one vector per patch, halving log2(P) times."""

    def __init__(self, channels: int, width: int, patch_size: int):
        super().__init__()
        self.patch_size = patch_size
        sizes = _channels(width, patch_size)
        self.first = Conv2d(channels // patch_size**2, sizes[0], 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(size, size, width) for size in sizes)
        self.shrink = nn.ModuleList(Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(sizes))
        self.project = Linear(sizes[-1], width)

    def forward(self, latents: Tensor, times: Tensor, grid: Grid) -> Tensor:
        """Return tokens [B, h w, D] of latents [B, h w, C], with time embeddings [B, D]."""
        x = self.blocks[0](self.first(to_images(latents, grid, self.patch_size)), times)
        for shrink, block in zip(self.shrink, self.blocks[1:], strict=True):
            x = block(shrink(x), times)
        return self.project(from_images(x, 1))


class Stem(nn.Module):
    """Convolutions that halve log2(P) times: images to one vector per patch, whose edges its neighbours see.

    Such stems train faster than one matrix a patch (arXiv 2106.14881). Half as many channels as `Fold`, and no time.
    """

    def __init__(self, channels: int, width: int, patch_size: int):
        super().__init__()
        self.patch_size = patch_size
        sizes = [channels // patch_size**2, *_channels(width // 2, patch_size)[1:]]
        self.shrink = nn.ModuleList(Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(group_norm(size) for size in sizes[1:])
        self.project = Linear(sizes[-1], width)

    def forward(self, latents: Tensor, grid: Grid) -> Tensor:
        """Return tokens [B, h w, D] of latents [B, h w, C]."""
        x = to_images(latents, grid, self.patch_size)
        for shrink, norm in zip(self.shrink, self.norms, strict=True):
            x = nn.functional.silu(norm(shrink(x)))
        return self.project(from_images(x, 1))


class Unfold(nn.Module):
    """U-Net up blocks: vectors to images, doubling log2(P) times; the noised latents enter again at the end."""

    def __init__(self, channels: int, width: int, patch_size: int):
        super().__init__()
        self.patch_size = patch_size
        sizes = _channels(width, patch_size)[::-1]
        self.project = Linear(width, sizes[0])
        self.blocks = nn.ModuleList(ResidualBlock(size, size, width) for size in sizes[:-1])
        self.grow = nn.ModuleList(Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(sizes))
        self.first = Conv2d(channels // patch_size**2, sizes[-1], 3, padding=1)
        self.joint = ResidualBlock(2 * sizes[-1], sizes[-1], width)
        self.norm = group_norm(sizes[-1])
        self.last = Conv2d(sizes[-1], channels // patch_size**2, 3, padding=1, std=SMALL)

    def forward(self, hidden: Tensor, latents: Tensor, times: Tensor, grid: Grid) -> Tensor:
        """Return predictions [B, h w, C] from the stream [B, h w, D], noised latents [B, h w, C] and times [B, D]."""
        x = to_images(self.project(hidden), grid, 1)
        for block, grow in zip(self.blocks, self.grow, strict=True):
            x = grow(nn.functional.interpolate(block(x, times), scale_factor=2.0, mode="nearest"))
        x = torch.cat([x, self.first(to_images(latents, grid, self.patch_size))], dim=1)
        x = self.last(nn.functional.silu(self.norm(self.joint(x, times))))
        return from_images(x, self.patch_size)


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, the second one scaled and shifted by the time (arXiv 2102.09672, app. A)."""

    def __init__(self, size_in: int, size_out: int, width: int):
        super().__init__()
        self.norm_a = group_norm(size_in)
        self.conv_a = Conv2d(size_in, size_out, 3, padding=1)
        self.modulate = Linear(width, 2 * size_out)
        self.norm_b = group_norm(size_out)
        self.conv_b = Conv2d(size_out, size_out, 3, padding=1)
        self.shortcut = Conv2d(size_in, size_out, 1) if size_in != size_out else nn.Identity()

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        """Return [B, K_out, H, W] from images [B, K_in, H, W] and time embeddings [B, D]."""
        scale, shift = self.modulate(nn.functional.silu(times))[:, :, None, None].chunk(2, dim=1)
        y = self.norm_b(self.conv_a(nn.functional.silu(self.norm_a(x)))) * (1 + scale) + shift
        return self.shortcut(x) + self.conv_b(nn.functional.silu(y))


def group_norm(size: int) -> GroupNorm:
    """Return a GroupNorm of 8 groups; its statistics are those of one image alone."""
    return GroupNorm(8, size)


def _channels(width: int, patch_size: int) -> list[int]:
    """Return the channels at each resolution, from the latents' to the tokens': width / 4, doubling up to the width."""
    base, most = (-(-max(32, size) // 8) * 8 for size in (width // 4, width))
    return [min(base * 2**i, most) for i in range(patch_size.bit_length())]


def to_images(tokens: Tensor, grid: Grid, patch_size: int) -> Tensor:
    """Unfold tokens [B, h w, P P c] into images [B, c, h P, w P]."""
    (h, w), p = grid, patch_size
    x = tokens.reshape(len(tokens), h, w, p, p, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), -1, h * p, w * p)


def from_images(images: Tensor, patch_size: int) -> Tensor:
    """Fold images [B, c, h P, w P] into tokens [B, h w, P P c]."""
    b, c, height, width = images.shape
    p = patch_size
    x = images.reshape(b, c, height // p, p, width // p, p)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, p * p * c)


def _per_grid(network: Callable[..., Tensor], grids: Sequence[Grid], tokens: list[Tensor], times: Tensor) -> Tensor:
    """Apply a network to all items of one grid at once, for each grid; tokens [n, ...] in and out, times [items, D].

    The network takes each tensor of ``tokens`` as [B, h w, ...], then the times [B, D] and the grid.
    """
    for grid in grids:
        require(len(grid) == 2, "model.modalities.patch_network", "unet or conv",
                f"linear where items have other extents than rows and columns (here {grid})")  # fmt: skip
    pieces = [x.split([h * w for h, w in grids]) for x in tokens]
    out = [times[:0]] * len(grids)
    for grid in dict.fromkeys(grids):
        members = [i for i, g in enumerate(grids) if g == grid]
        inputs = [torch.stack([x[i] for i in members]) for x in pieces]
        result = network(*inputs, torch.stack([times[i] for i in members]), grid)
        for i, item in zip(members, result.unbind(0), strict=True):
            out[i] = item
    return torch.cat(out)


def _first_of_each(timesteps: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Return the noise level [items] of each item, from those of its tokens [n]."""
    return torch.stack([t[0] for t in timesteps.split([math.prod(grid) for grid in grids])])


def _nothing(module: nn.Module, like: Tensor, size: int) -> Tensor:
    """Return no tokens [0, size], through which every parameter gets a zero gradient."""
    return like.new_zeros(0, size) + 0.0 * sum(local(p).sum() for p in module.parameters())
