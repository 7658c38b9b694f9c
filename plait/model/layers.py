"""torch's layers, with weights of which a rank may hold a part."""

import torch.nn.functional as F
from torch import Tensor, nn

from plait.model.ranks import local


class Linear(nn.Linear):
    """x W^T + b."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, local(self.weight), None if self.bias is None else local(self.bias))


class Conv2d(nn.Conv2d):
    """A convolution of images [B, K, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, local(self.weight), None if self.bias is None else local(self.bias))


class GroupNorm(nn.GroupNorm):
    """Normalises groups of channels of one image (arXiv 1803.08494)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, local(self.weight), local(self.bias), self.eps)


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm (arXiv 1910.07467) with the weight in the input's precision, which its fused kernel wants."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, local(self.weight).to(x.dtype), self.eps)
