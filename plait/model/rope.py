"""Rotary position embedding over one or several axes (RoFormer, arXiv 2104.09864; mRoPE, arXiv 2409.12191)."""

import torch
from torch import Tensor


def frequencies(head_dim: int, theta: float, device: torch.device | None = None) -> Tensor:
    """Return the ladder theta^(-2i / head_dim), [head_dim / 2]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim
    return theta**-exponents


def rotation(positions: Tensor, head_dim: int, theta: float, scaling: float, dtype: torch.dtype) -> tuple:
    """Return cos and sin [T, 1, head_dim / 2] for positions [T, A].

    With several axes, the frequencies of the one ladder go to the axes in turn, so that each axis has fast and slow
    ones (interleaved mRoPE, Qwen3-VL, arXiv 2511.21631; cut into sections, the last axis would hardly turn at all).
    A token with the same coordinate on all axes turns as in one dimension.
    """
    half, axes = head_dim // 2, positions.shape[1]
    axis = torch.arange(half, device=positions.device) % axes
    # float32 loses no position below 2^24; the ladder in float64 keeps long angles exact on the CPU
    wide = torch.float32 if positions.device.type == "mps" else torch.float64
    angles = (
        positions.to(wide).index_select(1, axis) / scaling * frequencies(head_dim, theta, positions.device).to(wide)
    )
    return angles.cos().to(dtype)[:, None], angles.sin().to(dtype)[:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the two halves of each head: x [T, H, head_dim]. The result has the wider precision of x and the angles."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
