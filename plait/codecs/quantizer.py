"""From vectors to ids and back: FSQ (arXiv 2309.15505) or VQ, both from vector-quantize-pytorch."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from plait.codecs.saved import installed
from plait.common.errors import require


class Quantizer(nn.Module):
    """One id for each vector of width ``dim``. FSQ has the product of its levels as ids, VQ its codebook size."""

    def __init__(self, kind: Literal["fsq", "vq"], *, dim: int, levels: list[int], codebook_size: int):
        super().__init__()
        self.kind = kind
        with installed("vector-quantize-pytorch"):
            from vector_quantize_pytorch import FSQ, VectorQuantize
        if kind == "fsq":
            self.vocab_size = math.prod(levels)
            self.inner = FSQ(levels, dim=dim)
        else:
            self.vocab_size = codebook_size
            self.inner = VectorQuantize(
                dim, codebook_size, codebook_dim=min(dim, 16), decay=0.95, kmeans_init=True, threshold_ema_dead_code=2
            )

    def forward(self, z_BNC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the quantised vectors [B, N, C] (gradients pass straight through), ids [B, N], and an added loss."""
        with torch.autocast(z_BNC.device.type, enabled=False):  # rounding in bfloat16 would pick other ids
            quantized, ids, *loss = self.inner(z_BNC.float())
        return quantized, ids, loss[0].sum() if loss else quantized.new_zeros(())

    def lookup(self, ids_BN: Tensor) -> Tensor:
        """Return the vectors [B, N, C] of ids [B, N]."""
        flat = ids_BN.reshape(1, -1)  # two axes, which both libraries read as a sequence
        vectors = self.inner.indices_to_codes(flat) if self.kind == "fsq" else self.inner.get_output_from_indices(flat)
        return vectors.reshape(*ids_BN.shape, -1)


def check_quantizer(quantizer: str, levels: list[int], codebook_size: int, where: str = "codec_options") -> None:
    """Raise a ConfigError where the settings of a quantizer make no sense."""
    if quantizer == "fsq":
        good = bool(levels) and all(level >= 3 for level in levels) and math.prod(levels) <= 2**20
        require(good, f"{where}.levels", levels, "a list of whole numbers of at least 3, with a product up to 1048576")
    else:
        require(2 <= codebook_size <= 2**20, f"{where}.codebook_size", codebook_size, "between 2 and 1048576")
