"""Losses and samplers: pure mathematics on tensors. Losses return sums by modality, never means."""

from torch import Tensor

from plait.batch.batch import Batch
from plait.config.bounds import Bounds, as_number
from plait.model.mot import MixtureOfTransformers
from plait.objectives import diffusion, next_token


def loss_sums(model: MixtureOfTransformers, hidden: list[Tensor], batch: Batch, *, z_loss: float = 0.0) -> Tensor:
    """Return each modality's summed loss [M], float32 or float64; divide by the global counts to train."""
    z_loss = as_number(z_loss, float, "z_loss", Bounds(at_least=0))
    sums = next_token.loss_sums(model, hidden, batch, z_loss=z_loss)
    names = model.config.layout.names
    for name in model.latent_out:
        sums = sums + diffusion.loss_sum(model, hidden, batch, name) * _one_hot(sums, names.index(name))
    return sums


def _one_hot(like: Tensor, index: int) -> Tensor:
    out = like.new_zeros(like.shape)
    out[index] = 1.0
    return out
