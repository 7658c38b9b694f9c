"""torch's layers, with weights of which a rank may hold a part, and which say what they are (`plait.model.traits`)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.model.ranks import local
from plait.model.traits import Trait

SMALL = 0.02
"""Standard deviation of embeddings and of what is read as logits or latents."""

ONES, ZEROS = Trait("ones"), Trait("zeros")


def is_idle(x: Tensor) -> bool:
    """Say whether a module has nothing to do: its tower has no rows, and no weight waits for a gradient of zeros.

    While decoding, reading the weights of such towers (casting them, at that) would be most of the time.
    """
    return not torch.is_grad_enabled() and not len(x)


class Linear(nn.Linear):
    """x W^T + b.

    Weights begin with standard deviation ``std``, unset ``gain / sqrt(inputs)``. ``cut`` is what tensor ranks cut.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool = True,
        *,
        gain: float = 1.0,
        std: float | None = None,
        cut: Literal["outputs", "inputs"] | None = None,
    ):
        super().__init__(inputs, outputs, bias=bias)
        self.lora: nn.Module | None = None
        """What is added to x W^T, of x (`plait.model.lora`)."""
        std = inputs**-0.5 * gain if std is None else std
        self.traits = {
            "weight": Trait("normal", std, is_matrix=True, cut={"outputs": 0, "inputs": 1, None: None}[cut]),
            "bias": Trait("zeros", cut=0 if cut == "outputs" else None),
        }

    def forward(self, x: Tensor) -> Tensor:
        if is_idle(x):
            return x.new_empty(0, *x.shape[1:-1], len(local(self.weight)), dtype=_product_dtype(x))
        out = F.linear(x, widened(local(self.weight), x), None if self.bias is None else local(self.bias))
        return out if self.lora is None else out + self.lora(x)


def widened(weight: Tensor, x: Tensor) -> Tensor:
    """Return a matrix as a product with x takes it: no shorter than x, but for autocast, which casts both."""
    if weight.dtype == x.dtype or _product_dtype(x) != x.dtype:
        return weight
    return weight.to(torch.promote_types(weight.dtype, x.dtype))


def _product_dtype(x: Tensor) -> torch.dtype:
    """Return the precision of a product with x: autocast's, but for float64."""
    kind = x.device.type
    is_cast = x.dtype != torch.float64 and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if is_cast else x.dtype


class Embedding(nn.Embedding):
    """One vector [D] for each of V ids; tensor ranks cut the ids."""

    def __init__(self, size: int, width: int):
        super().__init__(size, width)
        self.traits = {"weight": Trait("normal", SMALL, cut=0)}


class Conv2d(nn.Conv2d):
    """A convolution of images [B, K, H, W]. Weights begin with standard deviation ``std``, unset 1/sqrt(fan in)."""

    def __init__(
        self, inputs: int, outputs: int, size: int, *, stride: int = 1, padding: int = 0, std: float | None = None
    ):
        super().__init__(inputs, outputs, size, stride=stride, padding=padding)
        std = math.prod(self.weight.shape[1:]) ** -0.5 if std is None else std
        self.traits = {"weight": Trait("normal", std, is_matrix=True), "bias": ZEROS}

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, widened(local(self.weight), x), None if self.bias is None else local(self.bias))


class GroupNorm(nn.GroupNorm):
    """Normalises groups of channels of one image (arXiv 1803.08494)."""

    traits = {"weight": ONES, "bias": ZEROS}

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, local(self.weight), local(self.bias), self.eps)


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm (arXiv 1910.07467) with the weight in the input's precision, which its fused kernel wants."""

    traits = {"weight": ONES}

    def forward(self, x: Tensor) -> Tensor:
        if is_idle(x):
            return x
        return F.rms_norm(x, self.normalized_shape, local(self.weight).to(x.dtype), self.eps)
