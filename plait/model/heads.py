"""What leads into the towers and out of them, besides the id embedding: latents and their noise level."""

import math

import torch
from torch import Tensor, nn


class TimestepEmbedding(nn.Module):
    """Sinusoids of a noise level in [0, 1], through a two-layer network: [n] to [n, D] (DiT, arXiv 2212.09748)."""

    def __init__(self, width: int, num_frequencies: int = 128):
        super().__init__()
        self.num_frequencies = num_frequencies
        self.inner = nn.Linear(2 * num_frequencies, width)
        self.outer = nn.Linear(width, width)

    def forward(self, timesteps: Tensor) -> Tensor:
        ladder = torch.arange(self.num_frequencies, device=timesteps.device, dtype=timesteps.dtype)
        ladder = torch.exp(-math.log(10000.0) * ladder / self.num_frequencies)
        angles = 1000.0 * timesteps[:, None] * ladder
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.inner.weight.dtype)
        return self.outer(nn.functional.silu(self.inner(waves)))


class LatentIn(nn.Module):
    """Latents [n, C] to the stream [n, D]; noised ones carry their timestep (Transfusion, section 3.2)."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.project = nn.Linear(channels, width)
        self.timestep = TimestepEmbedding(width)

    def forward(self, latents: Tensor, timesteps: Tensor | None) -> Tensor:
        timesteps = torch.zeros_like(latents[:, 0]) if timesteps is None else timesteps
        return self.project(latents) + self.timestep(timesteps)
