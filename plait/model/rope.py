"""Rotary position embedding over one or several axes (RoFormer, arXiv 2104.09864; mRoPE, arXiv 2409.12191)."""

import math

import torch
from torch import Tensor

from plait.config.model import Llama3Rope


def frequencies(
    head_dim: int, theta: float, scaling: float | Llama3Rope = 1.0, device: torch.device | None = None
) -> Tensor:
    """Return the ladder theta^(-2i / head_dim), scaled for longer texts, [head_dim / 2] in float64."""
    # float64 keeps long angles exact on the CPU; the device of macOS has float32 alone
    wide = torch.float32 if device is not None and device.type == "mps" else torch.float64
    ladder = theta ** -(torch.arange(0, head_dim, 2, dtype=wide, device=device) / head_dim)
    if not isinstance(scaling, Llama3Rope):
        return ladder / scaling
    turns = scaling.original_positions * ladder / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    fast = ((turns - low) / (high - low)).clamp(0, 1)  # 0: slow, divided; 1: fast, as it is
    return ladder * (fast + (1 - fast) / scaling.factor)


def rotation(positions: Tensor, ladder: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cos and sin [T, 1, head_dim / 2] for positions [T, A] and frequencies [head_dim / 2], or [T, head_dim / 2]
    where tokens differ in them.

    With several axes, the frequencies of the one ladder go to the axes in turn, so that each axis has fast and slow
    ones (interleaved mRoPE, Qwen3-VL, arXiv 2511.21631; cut into sections, the last axis would hardly turn at all).
    A token with the same coordinate on all axes turns as in one dimension.
    """
    axis = torch.arange(ladder.shape[-1], device=positions.device) % positions.shape[1]
    angles = positions.to(ladder.dtype).index_select(1, axis) * ladder
    return angles.cos().to(dtype)[:, None], angles.sin().to(dtype)[:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the two halves of each head: x [T, H, head_dim]. The result has the wider precision of x and the angles."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
