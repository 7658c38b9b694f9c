"""THE diffusion loss: noise levels, corruption and targets of continuous modalities.

The direction of noise is defined here and nowhere else: t = 0 is clean, t = 1 is noise.

- ``ddpm``: epsilon-prediction with the cosine schedule (arXiv 2102.09672, eq. 17), as Transfusion (arXiv 2408.11039).
- ``flow``: rectified flow, x_t = (1 - t) x_0 + t noise, target noise - x_0, t logit-normal and shifted
  (arXiv 2403.03206).
"""

import math

import numpy as np
import torch
from torch import Tensor

from plait.batch import Batch, Latents
from plait.config import DiffusionConfig
from plait.model.mot import MixtureOfTransformers
from plait.randomness import generator


def signal_and_noise(timesteps: Tensor, process: str) -> tuple[Tensor, Tensor]:
    """Return the factors (a, b) of x_t = a x_0 + b noise at noise levels in [0, 1]."""
    if process == "flow":
        return 1 - timesteps, timesteps
    offset = 0.008
    angle = (timesteps + offset) / (1 + offset) * math.pi / 2
    a = torch.cos(angle) / math.cos(offset / (1 + offset) * math.pi / 2)
    return a, (1 - a.square()).clamp_min(0).sqrt()


def target(clean: Tensor, noise: Tensor, process: str) -> Tensor:
    """Return what the model shall predict: the noise (ddpm) or the velocity (flow)."""
    return noise if process == "ddpm" else noise - clean


def corrupt(batch: Batch, config: DiffusionConfig, seed: int) -> Batch:
    """Noise the batch's latents and set their timesteps and targets, in place; one noise level per span.

    Draws are keyed by the document, its epoch and the span, so they do not depend on the packing. Where a span
    precedes its text, its level stays below ``config.max_level_first`` (Transfusion: t <= 500 of 1000).
    """
    for name, group in batch.latents.items():
        levels, noise, seen = [], [], {}
        for i, d in enumerate(group.documents):
            document = batch.documents[d]
            order = seen[d] = seen.get(d, -1) + 1
            draw = generator(seed, f"noise/{name}", item=document.index, epoch=document.epoch, position=order)
            limit = config.max_level_first if _comes_first(batch, name, d) else 1.0
            levels.append(_level(draw, config) * limit)
            noise.append(draw.standard_normal((group.lengths[i], group.values.shape[1]), dtype=np.float32))
        _noise(group, torch.tensor(levels), torch.from_numpy(np.concatenate(noise)), config.process)
    return batch


def _noise(group: Latents, levels: Tensor, noise: Tensor, process: str) -> None:
    clean = group.values
    group.timesteps = levels.to(clean.device, clean.dtype).index_select(0, group.span)
    noise = noise.to(clean.device, clean.dtype)
    a, b = signal_and_noise(group.timesteps, process)
    group.values = a[:, None] * clean + b[:, None] * noise
    group.targets = target(clean, noise, process)


def _comes_first(batch: Batch, name: str, document: int) -> bool:
    parts = batch.documents[document].parts
    return bool(parts) and parts[0].modality == name


def _level(draw: np.random.Generator, config: DiffusionConfig) -> float:
    if config.process == "ddpm":
        return float(draw.integers(1, config.num_timesteps + 1)) / config.num_timesteps
    t = 1 / (1 + math.exp(-draw.normal(config.logit_mean, config.logit_std)))
    return config.shift * t / (1 + (config.shift - 1) * t)


def loss_sum(model: MixtureOfTransformers, hidden: list[Tensor], batch: Batch, name: str) -> Tensor:
    """Return the sum over spans of each span's mean squared error (per image, as Transfusion); zero without spans."""
    group = batch.latents.get(name)
    if group is None:  # the head still takes part, with zero gradients
        return 0.0 * sum(p.sum() for p in model.latent_out[name].parameters())
    assert group.targets is not None, f"corrupt() must run before the loss of {name}"
    error = (model.predict_latents(hidden, batch, name) - group.targets.to(hidden[0].dtype)).square().mean(-1)
    error = error if error.dtype == torch.float64 else error.float()
    ones = torch.ones_like(error)
    total = error.new_zeros(len(group.lengths))
    return (total.index_add(0, group.span, error) / total.index_add(0, group.span, ones)).sum()
