"""Losses and samplers: pure mathematics on tensors. Losses return sums by modality, never means."""

from collections.abc import Sequence

from torch import Tensor

from plait.batch.batch import Batch
from plait.config.bounds import Bounds, as_number
from plait.config.modality import ModalityConfig
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


def weighted_loss(
    model: MixtureOfTransformers, hidden: list[Tensor], batch: Batch, factors: Tensor, *, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the sum [] of `loss_sums` times ``factors`` [M] (`loss_factors`), to train on, and the sums [M].

    It equals ``(loss_sums(...) * factors).sum()`` and costs less where there are many ids; the sums have no gradient.
    """
    z_loss = as_number(z_loss, float, "z_loss", Bounds(at_least=0))
    total, sums = next_token.weighted_loss(model, hidden, batch, factors, z_loss=z_loss)
    names = model.config.layout.names
    for name in model.latent_out:
        loss, at = diffusion.loss_sum(model, hidden, batch, name), names.index(name)
        total = total + loss * factors[at].to(loss.dtype)
        sums = sums + loss.detach() * _one_hot(sums, at)
    return total, sums


def loss_factors(
    counts: Sequence[float], modalities: Sequence[ModalityConfig], weights: Sequence[float], normalize: str
) -> list[float]:
    """Return what each modality's loss sum is multiplied by; a count of zero contributes zero.

    ``normalize`` is as `train.normalize`: all_tokens divides every sum over ids by the ids of all modalities.
    """
    tokens = sum(c for c, m in zip(counts, modalities, strict=True) if m.objective == "next_token")
    factors = []
    for count, record, weight in zip(counts, modalities, weights, strict=True):
        divisor = tokens if normalize == "all_tokens" and record.objective == "next_token" else count
        factors.append(weight / divisor if divisor else 0.0)
    return factors


def _one_hot(like: Tensor, index: int) -> Tensor:
    out = like.new_zeros(like.shape)
    out[index] = 1.0
    return out
