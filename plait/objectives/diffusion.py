"""THE diffusion loss: noise levels, corruption and targets of continuous modalities.

The direction of noise is defined here and nowhere else: t = 0 is clean, t = 1 is noise.

- ``ddpm``: epsilon-prediction with the cosine schedule (arXiv 2102.09672, eq. 17), as Transfusion (arXiv 2408.11039).
- ``flow``: rectified flow, x_t = (1 - t) x_0 + t noise, target noise - x_0, t logit-normal and shifted
  (arXiv 2403.03206). Or t as pi0 draws it (arXiv 2410.24164, appendix B): its tau = 1 - t is 1 where it is clean, and
  (s - tau) / s ~ Beta(1.5, 1) with s = 0.999, so that t = (1 - s) + s u with u ~ Beta(1.5, 1): towards noise.
"""

import math

import numpy as np
import torch
from torch import Tensor

from plait.batch.batch import Batch, Latents
from plait.batch.documents import Document
from plait.common.errors import DataError
from plait.common.randomness import generator
from plait.config.generation import DiffusionConfig
from plait.model.mot import MixtureOfTransformers
from plait.model.ranks import local

BETA_SCALE = 0.999
"""pi0's s: t drawn by a Beta distribution is at least 1 - s."""
LOWEST_LEVEL = 0.05
"""Least noise level that a predicted velocity is divided by (JiT, arXiv 2511.13720, appendix A)."""


def signal_and_noise(timesteps: Tensor, process: str) -> tuple[Tensor, Tensor]:
    """Return the factors (a, b) of x_t = a x_0 + b noise at noise levels in [0, 1]."""
    if process == "flow":
        return 1 - timesteps, timesteps
    offset = 0.008
    angle = (timesteps + offset) / (1 + offset) * math.pi / 2
    a = torch.cos(angle) / math.cos(offset / (1 + offset) * math.pi / 2)
    return a, (1 - a.square()).clamp_min(0).sqrt()


def target(clean: Tensor, noise: Tensor, process: str) -> Tensor:
    """Return what the model is to predict: the noise (ddpm) or the velocity (flow)."""
    return noise if process == "ddpm" else noise - clean


def predicted_target(model: MixtureOfTransformers, hidden: list[Tensor], batch: Batch, name: str) -> Tensor:
    """Return the target [n, C] of a modality as the model predicts it, also where its head predicts clean latents."""
    said = model.predict_latents(hidden, batch, name)
    if model.config.modalities[name].predicts == "target":
        return said
    group = batch.latents[name]
    assert group.timesteps is not None, "corrupt() sets the noise levels"
    # flow: x_t = (1 - t) x_0 + t noise, so that noise - x_0 = (x_t - x_0) / t
    exact = torch.promote_types(said.dtype, torch.float32)
    levels = group.timesteps.to(exact).clamp_min(LOWEST_LEVEL)
    return (group.values.to(exact) - said.to(exact)) / levels[:, None]


def corrupt(batch: Batch, config: DiffusionConfig, seed: int) -> Batch:
    """Noise the batch's noised spans and set timesteps and targets, in place; one noise level per span.

    Spans that are not noised keep their values, at level 0. Draws are keyed by the document, its epoch and the span's
    place among its noised ones, so they do not depend on the packing. Where later text sees the noised item and no
    text comes before it, its level stays at or below ``config.max_level_first`` (Transfusion: t <= 500 of 1000).
    Raises DataError where latents are not finite.
    """
    for document in batch.documents:
        _check_finite(document)
    host = batch.spans[0].modality  # every document opens with the host's <bos>
    for name, group in batch.latents.items():
        settings = config.of(name)
        spans = [s for s in batch.spans if s.modality == name]
        levels, noise = [], []
        seen: dict[int, int] = {}  # noised spans so far, by document
        for span, is_noised in zip(spans, group.noised, strict=True):
            shape = (span.length, group.values.shape[1])
            if not is_noised:
                levels.append(0.0)
                noise.append(np.zeros(shape, np.float32))
                continue
            document = batch.documents[span.document]
            order = seen[span.document] = seen.get(span.document, -1) + 1
            draw = generator(seed, f"noise/{name}", item=document.index, epoch=document.epoch, position=order)
            limited = not span.hidden and _comes_first(document, name, order, host)
            levels.append(_level(draw, settings, settings.max_level_first if limited else 1.0))
            noise.append(draw.standard_normal(shape, dtype=np.float32))
        _noise(group, torch.tensor(levels), torch.from_numpy(np.concatenate(noise)), settings.process)
    return batch


def _check_finite(document: Document) -> None:
    for part in document.stored:
        if part.latents is not None and not np.isfinite(part.latents).all():
            raise DataError(f"document {document.index}: its latents of {part.modality!r} hold NaN or infinity")


def _noise(group: Latents, levels: Tensor, noise: Tensor, process: str) -> None:
    """Set values and targets [n, C] and timesteps [n] from levels [spans] and noise [n, C]."""
    clean = group.values
    group.timesteps = levels.to(clean.device, clean.dtype).index_select(0, group.span)
    noise = noise.to(clean.device, clean.dtype)
    a, b = signal_and_noise(group.timesteps, process)
    noised = a[:, None] * clean + b[:, None] * noise
    group.values = torch.where(is_noised(group)[:, None], noised, clean)
    group.targets = target(clean, noise, process)


def is_noised(group: Latents) -> Tensor:
    """Return which tokens [n] the objective noised: those with a level above 0."""
    assert group.timesteps is not None, "corrupt() sets the noise levels"
    return group.timesteps > 0


def _comes_first(document: Document, name: str, order: int, host: str) -> bool:
    """Say whether part number ``order`` of a modality has no text before it, and a part to be learned from it after it.

    Transfusion limits the noise of images that come before their caption (arXiv 2408.11039, section 4), since the
    caption could not be told from noise. So both images of (image, image, text) are limited, but an image alone or
    last is not: nothing is told from it, and without a condition it must be learned from pure noise too.
    """
    modalities = [part.modality for part in document.parts]
    position = [i for i, modality in enumerate(modalities) if modality == name][order]
    return host not in modalities[:position] and any(m != name for m in modalities[position + 1 :])


def _level(draw: np.random.Generator, config: DiffusionConfig, limit: float) -> float:
    """Draw a noise level in (0, limit]: one of T (ddpm), or a logit-normal or Beta one, shifted and scaled (flow)."""
    if config.process == "ddpm":
        highest = max(1, math.floor(limit * config.num_timesteps + 1e-9))
        return float(draw.integers(1, highest + 1)) / config.num_timesteps
    if config.levels == "beta":
        first, second = config.beta
        t = 1 - BETA_SCALE + BETA_SCALE * draw.beta(first, second)
    else:
        t = 1 / (1 + math.exp(-draw.normal(config.logit_mean, config.logit_std)))
    return limit * config.shift * t / (1 + (config.shift - 1) * t)


def loss_sum(model: MixtureOfTransformers, hidden: list[Tensor], batch: Batch, name: str) -> Tensor:
    """Return the sum over noised spans of each span's mean squared error (per image, as Transfusion); zero without."""
    group = batch.latents.get(name)
    # heads of towers without such tokens still take part, with zero gradients
    idle = [head for tower, head in model.latent_out[name].items() if group is None or tower not in group.places]
    unused = [local(p).sum() for head in idle for p in head.parameters()]
    total = 0.0 * sum(unused, hidden[0].new_zeros(()))
    if group is None:
        return total
    assert group.targets is not None, f"corrupt() must run before the loss of {name}"
    error = (predicted_target(model, hidden, batch, name) - group.targets.to(hidden[0].dtype)).square().mean(-1)
    error = error if error.dtype == torch.float64 else error.float()
    sums = error.new_zeros(len(group.lengths)).index_add(0, group.span, error * is_noised(group))
    tokens = error.new_zeros(len(group.lengths)).index_add(0, group.span, torch.ones_like(error))
    return total + (sums / tokens).sum()
