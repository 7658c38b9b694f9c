"""The noise levels of one step: latents go into the batch before the forward pass, and down one level after it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from plait.batch.batch import Batch, Latents
from plait.config.generation import DiffusionConfig, SamplingConfig
from plait.generate.decoding import guided
from plait.generate.latent_batches import Canvas, start_waves
from plait.generate.rows import Row, Stream
from plait.model.cache import to_device
from plait.model.mot import MixtureOfTransformers
from plait.objectives.diffusion import predicted_target
from plait.objectives.samplers import Denoiser


def start(rows: Sequence[Row], config: DiffusionConfig) -> None:
    """Give the canvases that were opened since the last step their schedulers."""
    rows = [r for r in rows if r.canvas and not r.canvas.wave]
    settings = [r.request.sampling_of(r.open_span) for r in rows]
    keys = [(r.span, s.sampler, s.steps, s.shift) for r, s in zip(rows, settings, strict=True)]
    seeds = [int(r.draw("denoise").integers(2**62)) for r in rows]
    start_waves([r.open_canvas for r in rows], keys, seeds,
                lambda key, seeds: Denoiser(config.of(key[0]), key[1], key[2], seeds=seeds, shift=key[3]))  # fmt: skip


def fill(group: Latents, streams: Sequence[Stream], dtype: torch.dtype) -> None:
    """Put the latents under denoising, and their noise levels, into a batch's blank places."""
    levels: list[float] = []
    tokens, values, at = [], [], 0
    for document, length, noised in zip(group.documents, group.lengths, group.noised, strict=True):
        levels.append(0.0)
        if noised:
            canvas = streams[document].row.open_canvas
            levels[-1] = canvas.level
            tokens.append(np.arange(at, at + length))
            values.append(canvas.latents)
        at += length
    device = group.values.device
    by_span = torch.tensor(levels, dtype=torch.promote_types(dtype, torch.float32))
    group.timesteps = by_span.repeat_interleave(torch.tensor(group.lengths)).to(device, non_blocking=True)
    if tokens:
        places = to_device(np.concatenate(tokens), device)
        group.values = group.values.to(dtype).index_copy(0, places, torch.cat(values))


def advance(
    model: MixtureOfTransformers, hidden: list[Tensor], moved: Batch, streams: Sequence[Stream], rows: Sequence[Row]
) -> None:
    """Take every wave down one noise level."""
    for name, group in moved.latents.items():
        starts = np.cumsum([0, *group.lengths])
        # a stream's latents under denoising are the last span that it was fed
        at = {d: int(starts[i]) for i, (d, n) in enumerate(zip(group.documents, group.noised, strict=True)) if n}
        if not at:
            continue
        predicted = predicted_target(model, hidden, moved, name)
        starts_by_stream = {id(s): at[d] for d, s in enumerate(streams) if d in at}
        rows_by_canvas = {id(r.canvas): r for r in rows if r.canvas and r.span == name}
        for wave in dict.fromkeys(r.open_canvas.started for r in rows_by_canvas.values()):
            wave.step(_combined(predicted, [(c, rows_by_canvas.get(id(c))) for c in wave.canvases], starts_by_stream))


def _combined(predicted: Tensor, members: list[tuple[Canvas, Row | None]], starts_by_stream: dict[int, int]) -> Tensor:
    """Combine the branches of a wave's items; one that was let go on the way reads another's tokens."""
    index, factors = [], []
    for canvas, row in members:
        starts = [starts_by_stream[id(s)] for s in row.branches] if row else [0, 0, 0]
        offsets = np.arange(len(canvas)) if row else np.zeros(len(canvas), np.int64)
        index.append(np.array(starts)[:, None] + offsets)
        s = row.request.sampling_of(row.open_span) if row else SamplingConfig()
        factors.append(np.repeat([[s.guidance], [s.media_guidance]], len(canvas), axis=1))
    tokens = to_device(np.concatenate(index, axis=1), predicted.device)
    text, media = torch.from_numpy(np.concatenate(factors, axis=1)).to(predicted, non_blocking=True)[..., None]
    full, no_text, free = (predicted.index_select(0, t) for t in tokens)
    return guided(full, no_text, free, text, media)
