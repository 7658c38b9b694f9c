"""Which colour an image stands on: drawings, icons and products often have one behind them."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.codecs import images

NEAR = 8 / 127.5
"""Of the range -1 to 1: a colour this near to the background's, channel by channel, is background."""


class Backgrounds(nn.Module):
    """The colours that images may stand on. Images are [B, 3, H, W] from -1 to 1."""

    def __init__(self, count: int):
        super().__init__()
        self.register_buffer("colours", torch.zeros(count, 3))

    colours: Tensor

    def fit(self, media: Sequence[np.ndarray]) -> None:
        """Take the most frequent colours along the borders of uint8 [H, W, 3]; where they are few, the last repeats."""
        borders = np.concatenate([side for m in media for side in (m[0], m[-1], m[:, 0], m[:, -1])])
        colours, counts = np.unique(borders, axis=0, return_counts=True)
        chosen = colours[np.argsort(-counts, kind="stable")[: len(self.colours)]]
        padded = np.pad(chosen, ((0, len(self.colours) - len(chosen)), (0, 0)), mode="edge")
        self.colours.copy_(images.to_unit(padded[None, None])[0, :, 0].T)

    def of(self, images_BCHW: Tensor) -> Tensor:
        """Return the colour that most of each image's border is near to, an index [B], -1 where there is none."""
        x = images_BCHW
        border = torch.cat([x[:, :, 0], x[:, :, -1], x[..., 0], x[..., -1]], 2).transpose(1, 2)
        distance, nearest = (border[:, :, None] - self.colours).abs().amax(3).min(2)
        votes = F.one_hot(nearest, len(self.colours)) * (distance <= NEAR)[:, :, None]
        most, index = votes.sum(1).max(1)
        return index.where(2 * most > border.shape[1], -1)

    def planes(self, index_B: Tensor) -> Tensor:
        """Return the colours of indices as images of one pixel [B, 3, 1, 1]; gray for -1."""
        chosen = self.colours[index_B.clamp_min(0)] * (index_B >= 0)[:, None]
        return chosen[:, :, None, None]

    def bare(self, images_BCHW: Tensor, index_B: Tensor) -> Tensor:
        """Return where images show nothing but their background, booleans [B, 1, H, W]."""
        distance = (images_BCHW - self.planes(index_B)).abs().amax(1, keepdim=True)
        return (distance <= NEAR) & (index_B >= 0)[:, None, None, None]
