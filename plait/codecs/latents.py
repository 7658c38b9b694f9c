"""What continuous codecs share: latents of mean 0 and deviation 1 per channel, as diffusion wants them, and a VAE's KL.

Mean and scale are measured once, on training media, and stored with the codec.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.codecs.base import Encoded
from plait.common.errors import CheckpointError, DataError

_SMALLEST = 1e-6  # a channel that never changes is not blown up
_MEASURED = 1024  # training items from which mean and scale are measured


@dataclass
class Scaling:
    """Mean and scale of each channel. Tensors are [B, C, ...], channels second."""

    mean: list[float]
    scale: list[float]

    @classmethod
    def measure(cls, batches: Iterable[Tensor]) -> "Scaling":
        """Measure over batches of latents, each [B, C, ...]; raises DataError where they are not numbers."""
        count, total, squares = 0, 0.0, 0.0
        for latents in batches:
            values_CN = latents.movedim(1, 0).flatten(1).double()
            count += values_CN.shape[1]
            total, squares = total + values_CN.sum(1), squares + values_CN.square().sum(1)
        if not torch.isfinite(squares).all():
            raise DataError("codec: the latents of the training media hold values that are not numbers")
        mean = total / count
        variance = squares / count - mean.square()
        return cls(mean.tolist(), variance.clamp(min=_SMALLEST**2).sqrt().tolist())

    def normalize(self, latents: Tensor) -> Tensor:
        """Scale latents to mean 0 and deviation 1 per channel, in float32."""
        mean, scale = self._shaped(latents)
        return (latents.float() - mean) / scale

    def restore(self, latents: Tensor) -> Tensor:
        """Undo `normalize`."""
        mean, scale = self._shaped(latents)
        return latents * scale + mean

    def _shaped(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1,) + (1,) * (latents.ndim - 2)
        return torch.tensor(self.mean).view(shape), torch.tensor(self.scale).view(shape)

    def describe(self) -> dict[str, Any]:
        """Return what codec.json holds."""
        return {"latent_mean": self.mean, "latent_scale": self.scale}

    @classmethod
    def described(cls, description: dict[str, Any], channels: int, folder: Path) -> "Scaling":
        """Read what `describe` wrote; raises CheckpointError where it is not that of ``channels`` channels."""
        scaling = cls(description.get("latent_mean"), description.get("latent_scale"))
        for name, numbers in vars(scaling).items():
            listed = isinstance(numbers, list) and all(isinstance(n, int | float) for n in numbers)
            if not listed or len(numbers) != channels:
                what = f"{len(numbers)} numbers" if listed else repr(numbers)
                raise CheckpointError(
                    f"codec: latent_{name} in {str(folder)!r} is {what}, "
                    f"it must be {channels} numbers, one a latent channel"
                )
        return scaling


def measured_places(count: int) -> list[int]:
    """Return the places, spread evenly over ``count`` training items, of those that mean and scale come from."""
    return np.unique(np.linspace(0, count - 1, min(_MEASURED, count)).round().astype(int)).tolist()


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the KL divergence of a VAE's posterior from N(0, 1), a mean over its numbers.

    KL(N(mu, sigma^2) || N(0, 1)) = (mu^2 + sigma^2 - 1 - log sigma^2) / 2 (arXiv 1312.6114, appendix B).
    """
    mean, log_variance = mean.float(), log_variance.float()
    return (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2


def checked_latents(item: Encoded, width: int, what: str) -> np.ndarray:
    """Return an item's latents, float32 [n, width]; raises DataError where they are of another shape or not numbers."""
    if item.latents is None:
        raise DataError(f"{what} codec: the item holds ids, it must hold latents")
    latents = np.asarray(item.latents, np.float32)
    if latents.ndim != 2 or latents.shape[1] != width:
        raise DataError(f"{what} codec: latents {list(latents.shape)} are not allowed, they must be [tokens, {width}]")
    if not np.isfinite(latents).all():
        raise DataError(f"{what} codec: the latents hold values that are not numbers (NaN or infinite)")
    return latents
