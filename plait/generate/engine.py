"""The generator: many requests under way, all advanced by one forward pass a step.

`Generator` takes requests in (`add`), advances them (`step`) and lets them go (`cancel`); `generate` is a loop over it.
In one step a row of discrete tokens draws one id, and a row of latents goes down one noise level: both are documents
of the same packed batch. What was given is computed once and cached; latents under denoising pass through the cache
without being kept, and the clean ones take their place once they are done.

With guidance, an open span has branches that saw less of what was given; all are rows of the same forward pass. One
step costs one synchronisation for sampled ids, and one for each finished item of latents; `num_syncs` counts them.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plait.batch import Batch, Document, Part, Run, assemble, position_after, spell
from plait.config import DiffusionConfig, SamplingConfig
from plait.errors import require
from plait.generate.allowed import AllowedIds
from plait.generate.request import Request, Result, check_request
from plait.generate.waves import Canvas, start_waves
from plait.model.mot import MixtureOfTransformers
from plait.model.precision import autocast
from plait.objectives.next_token import sample
from plait.objectives.samplers import Denoiser
from plait.randomness import generator

DRAWS_AT_ONCE = 256


@dataclass(eq=False)
class _Stream:
    """One row of the cache: what it is fed next, and where it is."""

    row: "_Row"
    pending: list[Run]
    position: float = 0.0


class _Row:
    """A request under way: its span, its parts so far, and its streams."""

    def __init__(self, identity: int, request: Request, prompt: list[Run]):
        self.id, self.request = identity, request
        self.streams = [_Stream(self, prompt)]
        """The stream that saw everything; under guidance then the one without the host's parts, if that is guided
        apart, and the one that saw nothing."""
        self.span: str | None = None
        """The open modality; None for the host."""
        self.tokens: list[int] = []
        self.canvas: Canvas | None = None
        self.parts: list[Part] = []
        self.snapshots: list[tuple[float, Part]] = []
        self.host_tokens, self.num_spans, self.num_draws = 0, 0, 0
        self.draws = np.empty(0)

    @property
    def main(self) -> _Stream:
        return self.streams[0]

    @property
    def branches(self) -> tuple[_Stream, _Stream, _Stream]:
        """The streams that saw everything, all but the host's parts, and nothing; the same one where there is none."""
        return self.streams[0], self.streams[1 if len(self.streams) == 3 else -1], self.streams[-1]

    def uniform(self) -> float:
        """Return the row's next number in [0, 1)."""
        at = self.num_draws % DRAWS_AT_ONCE
        if at == 0:
            block = self.num_draws // DRAWS_AT_ONCE
            draw = generator(self.request.seed, "sample", item=self.request.number, position=block)
            self.draws = draw.random(DRAWS_AT_ONCE)
        self.num_draws += 1
        return float(self.draws[at])


class Generator:
    """Advances requests together. ``grids`` gives the extent of items of fixed size, by modality.

    The cache has ``max_rows`` times ``max_branches`` rows: 1 without guidance, 2 with it, 3 where given media guide
    apart.
    """

    def __init__(self, model: MixtureOfTransformers, *, grids: dict[str, tuple[int, ...]], max_rows: int = 32,
                 max_length: int = 2048, default_max_tokens: int = 256, max_branches: int = 3,
                 diffusion: DiffusionConfig | None = None, precision: str = "float32"):  # fmt: skip
        self.model, self.grids, self.default_max_tokens = model, grids, default_max_tokens
        self.layout, self.max_rows, self.diffusion = model.config.layout, max_rows, diffusion or DiffusionConfig()
        self.max_branches = max_branches
        self.cache = model.new_cache(max_branches * max_rows, min(max_length, model.config.max_positions))
        self.precision = precision
        self.rows: list[_Row] = []
        self.streams: list[_Stream] = []
        """By row of the cache."""
        self.num_syncs, self.num_steps, self.num_tokens = 0, 0, 0
        self._next_id = 0
        self._allowed = AllowedIds(model, grids)

    @property
    def has_room(self) -> bool:
        """Whether another request may be added now."""
        return len(self.rows) < self.max_rows

    def add(self, request: Request) -> int:
        """Take a request in and return its id; raises ConfigError where it asks for what cannot be made."""
        check_request(request, self.model.config, grids=self.grids, max_length=self.cache.max_length,
                      diffusion=self.diffusion)  # fmt: skip
        require(request.max_branches <= self.max_branches, "generate: branches of guidance", request.max_branches,
                f"at most max_branches ({self.max_branches}) of this generator")  # fmt: skip
        row = _Row(self._next_id, request, self._spelt(request.prompt))
        self._next_id += 1
        self.rows.append(row)
        self._take(row.main)
        if request.output not in (None, self.layout.host):
            self._open(row, request.output)
        return row.id

    def cancel(self, identity: int) -> Result | None:
        """Let a request go and return what it has; None if it is not under way."""
        for row in self.rows:
            if row.id == identity:
                return self._finish(row, "cancelled")
        return None

    @torch.no_grad()
    def step(self) -> list[Result]:
        """Advance every request by one token or one noise level; return those that ended."""
        if not self.rows:
            return []
        self._start_waves()
        rows = list(self.rows)
        writing, drawing = [r for r in rows if not r.canvas], [r for r in rows if r.canvas]
        with autocast(self.precision, self.model.device):
            batch, moved, hidden = self._forward()
            chosen = self._sample(batch, hidden, writing) if writing else []
            self._denoise(moved, hidden)
        ended = [self._accept(row, token) for row, token in zip(writing, chosen, strict=True)]
        ended += [self._close(row) for row in drawing if row.canvas.is_done]
        return [result for result in ended if result]

    def _forward(self) -> tuple[Batch, Batch, list[Tensor]]:
        """Feed every stream what is pending, and latents under denoising; return the batch, also on the device, and
        the hidden states."""
        canvases = [s.row.canvas for s in self.streams]
        sequences = [[*s.pending, *([c.run] if c else [])] for s, c in zip(self.streams, canvases, strict=True)]
        positions = [s.position for s in self.streams]
        batch = assemble(sequences, self.model.config, first_positions=positions)
        moved = batch.to(self.model.device)
        for name, group in moved.latents.items():
            self._fill(group, name)
        passing = [len(c) if c else 0 for c in canvases]
        step = self.cache.step(moved, list(range(len(self.streams))), passing=passing)
        hidden = self.model(moved, step)
        ends = np.cumsum(batch.lengths)
        for stream, canvas, after, end in zip(self.streams, canvases, batch.next_positions, ends, strict=True):
            # latents come again at the place where they began
            stream.position = float(batch.positions[end - len(canvas), 0]) if canvas else after
            stream.pending = []
        self.num_steps += 1
        self.num_tokens += batch.num_tokens
        return batch, moved, hidden

    def _fill(self, group, name: str) -> None:
        """Put the latents under denoising, and their noise levels, into a batch's blank places."""
        levels, tokens, values, start = [], [], [], 0
        for document, length, noised in zip(group.documents, group.lengths, group.noised, strict=True):
            canvas = self.streams[document].row.canvas
            levels.append(canvas.level if noised else 0.0)
            if noised:
                tokens.append(np.arange(start, start + length))
                values.append(canvas.latents)
            start += length
        device, dtype = group.values.device, self.model.dtype
        levels = torch.tensor(levels, dtype=torch.promote_types(dtype, torch.float32))
        group.timesteps = levels.repeat_interleave(torch.tensor(group.lengths)).to(device)
        if tokens:
            places = torch.from_numpy(np.concatenate(tokens)).to(device)
            group.values = group.values.to(dtype).index_copy(0, places, torch.cat(values))

    # -- latents ------------------------------------------------------------------------------------------------

    def _start_waves(self) -> None:
        """Give the canvases that were opened since the last step their schedulers."""
        rows = [r for r in self.rows if r.canvas and not r.canvas.wave]
        settings = [r.request.sampling_of(r.span) for r in rows]
        keys = [(r.span, s.sampler, s.steps) for r, s in zip(rows, settings, strict=True)]
        seeds = [int(self._draw(r, "denoise").integers(2**62)) for r in rows]
        start_waves([r.canvas for r in rows], keys, seeds,
                    lambda key, seed: Denoiser(self.diffusion, key[1], key[2], seed=seed))  # fmt: skip

    def _denoise(self, moved: Batch, hidden: list[Tensor]) -> None:
        """Take every wave down one noise level."""
        for name, group in moved.latents.items():
            starts = np.cumsum([0, *group.lengths])
            # a stream's latents under denoising are the last span that it was fed
            at = {d: int(starts[i]) for i, (d, n) in enumerate(zip(group.documents, group.noised, strict=True)) if n}
            if not at:
                continue
            predicted = self.model.predict_latents(hidden, moved, name)
            place = {id(s): at[d] for d, s in enumerate(self.streams) if d in at}
            rows = {id(r.canvas): r for r in self.rows if r.canvas and r.span == name}
            for wave in dict.fromkeys(r.canvas.wave for r in rows.values()):
                wave.step(self._guided(predicted, [(c, rows.get(id(c))) for c in wave.canvases], place))

    def _guided(self, predicted: Tensor, members: list[tuple[Canvas, _Row | None]], place: dict[int, int]) -> Tensor:
        """Combine the branches of a wave's items; one that was let go on the way reads another's tokens."""
        index, factors = [], []
        for canvas, row in members:
            starts = [place[id(s)] for s in row.branches] if row else [0, 0, 0]
            offsets = np.arange(len(canvas)) if row else np.zeros(len(canvas), np.int64)
            index.append(np.array(starts)[:, None] + offsets)
            s = row.request.sampling_of(row.span) if row else SamplingConfig()
            factors.append(np.repeat([[s.guidance], [s.media_guidance]], len(canvas), axis=1))
        tokens = torch.from_numpy(np.concatenate(index, axis=1)).to(predicted.device)
        text, media = torch.from_numpy(np.concatenate(factors, axis=1)).to(predicted)[..., None]
        return guided(*(predicted.index_select(0, t) for t in tokens), text, media)

    def _draw(self, row: _Row, purpose: str) -> np.random.Generator:
        return generator(row.request.seed, purpose, item=row.request.number, position=row.num_spans)

    # -- ids ----------------------------------------------------------------------------------------------------

    def _sample(self, batch: Batch, hidden: list[Tensor], rows: list[_Row]) -> list[int]:
        """Combine the branches of rows of ids and draw one id each: the step's one synchronisation."""
        at = {id(s): i for i, s in enumerate(self.streams)}
        streams = np.array([[at[id(s)] for s in row.branches] for row in rows]).T
        needed, where = np.unique(streams, return_inverse=True)
        chosen, back = _last_rows(batch, needed)
        device = hidden[0].device
        logits = self.model.logits(hidden, [r.to(device) for r in chosen])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).index_select(0, back.to(device))
        settings = [row.request.sampling_of(row.span or self.layout.host) for row in rows]
        numbers = torch.tensor([[s.guidance, s.media_guidance, s.temperature, s.top_p, row.uniform()]
                                for s, row in zip(settings, rows, strict=True)],
                               dtype=torch.float64, device=device).to(logits.dtype)  # fmt: skip
        index = torch.from_numpy(where.reshape(streams.shape)).to(device)
        mixed = guided(*(logits.index_select(0, i) for i in index), numbers[:, :1], numbers[:, 1:2])
        top_k = torch.tensor([s.top_k for s in settings], device=device)
        allowed = self._allowed.table.index_select(0, torch.tensor([self._state(r) for r in rows], device=device))
        ids = sample(mixed, numbers[:, 4], temperature=numbers[:, 2], top_k=top_k, top_p=numbers[:, 3], allowed=allowed)
        self.num_syncs += 1
        return ids.tolist()

    def _state(self, row: _Row) -> int:
        """Return which ids may follow: the row of the table."""
        if row.span is None:
            free = row.request.output is None
            room = row.num_spans < row.request.max_spans
            if row.host_tokens >= self._longest(row, self.layout.host):
                return self._allowed.state["end"]
            empty = not row.host_tokens and not row.num_spans
            return self._allowed.state[("free" if free and room else "host") + (" first" if empty else "")]
        if row.span in self.grids:
            return self._allowed.state[f"fixed {row.span}"]
        if len(row.tokens) >= self._longest(row, row.span):
            return self._allowed.state[f"close {row.span}"]
        return self._allowed.state[f"open {row.span}" + ("" if row.tokens else " first")]

    def _longest(self, row: _Row, modality: str) -> int:
        return row.request.max_tokens.get(modality, self.default_max_tokens)

    def _accept(self, row: _Row, token: int) -> Result | None:
        """Take a sampled id into a row; return the result if that ends it."""
        layout = self.layout
        if row.span is None:
            return self._accept_in_host(row, token)
        if token != layout.closing[row.span]:
            row.tokens.append(token)
            self._feed(row, token, row.span)
            if row.span not in self.grids or len(row.tokens) < math.prod(self.grids[row.span]):
                return self._room(row)
        return self._close(row)

    def _accept_in_host(self, row: _Row, token: int) -> Result | None:
        layout = self.layout
        if token == layout.eos:
            return self._finish(row, "eos")
        for name, opening in layout.opening.items():
            if token == opening:
                self._end_host_part(row)
                self._open(row, name)
                return self._room(row, len(row.canvas) + 1 if row.canvas else 1)
        row.tokens.append(token)
        row.host_tokens += 1
        self._feed(row, token, layout.host)
        return self._room(row)

    # -- spans --------------------------------------------------------------------------------------------------

    def _room(self, row: _Row, needed: int = 1) -> Result | None:
        """End a row that the cache has no more room for."""
        used = self.cache.lengths[self.streams.index(row.main)] + sum(len(r) for r in row.main.pending)
        return self._finish(row, "length") if used + needed > self.cache.max_length else None

    def _open(self, row: _Row, modality: str) -> None:
        row.span, row.tokens = modality, []
        row.num_spans += 1
        record, s = self.model.config.modalities[modality], row.request.sampling_of(modality)
        given = [*row.request.prompt, *row.parts]
        media = [p for p in given if p.modality != self.layout.host]
        branches = []
        if s.guidance != 1.0 or s.media_guidance != 1.0:
            apart = s.media_guidance != 1.0 and 0 < len(media) < len(given)
            branches = [media, []] if apart else [[]]
        row.streams += [_Stream(row, self._spelt(parts)) for parts in branches]
        for stream in row.streams:
            stream.pending.append(_one(self.layout.host, self.layout.opening[modality]))
        for stream in row.streams[1:]:
            self._take(stream)
        if record.objective == "diffusion":
            grid = row.request.grid_of(modality, self.grids)
            noise = self._draw(row, "first noise").standard_normal((math.prod(grid), record.latent_channels))
            noise = torch.from_numpy(noise).to(self.model.device, self.model.dtype)
            row.canvas = Canvas(modality, grid, noise, hidden=record.later_sees != "noised",
                                num_snapshots=row.request.num_snapshots)  # fmt: skip

    def _close(self, row: _Row) -> Result | None:
        """End the open span; what it holds becomes a part, and stays seen by what follows."""
        name, canvas = row.span, row.canvas
        if canvas:
            part = canvas.part(canvas.latents)
            row.snapshots += [(level, canvas.part(latents)) for level, latents in canvas.snapshots]
            self.num_syncs += 1
        else:
            part = Part(name, np.array(row.tokens) - self.layout.offsets[name], grid=self.grids.get(name, ()))
        row.parts.append(part)
        row.span, row.tokens, row.canvas = None, [], None
        for stream in row.streams[1:]:
            self._release(stream)
        row.streams = row.streams[:1]
        if row.request.output == name:
            return self._finish(row, "done")
        row.host_tokens = 0
        if canvas:
            clean = Run(name, None, part.latents, part.grid, part.role)
            if self.model.config.modalities[name].later_sees == "nothing":
                row.main.position = position_after(clean, row.main.position, self.model.config)
            else:
                row.main.pending.append(clean)
        row.main.pending.append(_one(self.layout.host, self.layout.closing[name]))
        return self._room(row)

    def _end_host_part(self, row: _Row) -> None:
        if row.tokens:
            row.parts.append(Part(self.layout.host, np.array(row.tokens) - self.layout.offsets[self.layout.host]))
        row.tokens = []

    def _finish(self, row: _Row, stopped: str) -> Result:
        if row.span is None:
            self._end_host_part(row)
        elif row.tokens and row.span not in self.grids:  # part of a picture is no picture
            row.parts.append(Part(row.span, np.array(row.tokens) - self.layout.offsets[row.span]))
        for stream in row.streams:
            self._release(stream)
        self.rows.remove(row)
        return Result(row.request, row.parts, stopped, row.snapshots)

    def _spelt(self, parts: Sequence[Part]) -> list[Run]:
        return spell(Document(list(parts)), self.model.config, close=False, noised=False)

    def _feed(self, row: _Row, token: int, modality: str) -> None:
        for stream in row.streams:
            stream.pending.append(_one(modality, token))

    def _take(self, stream: _Stream) -> None:
        self.cache.add_row()
        self.streams.append(stream)

    def _release(self, stream: _Stream) -> None:
        row = self.streams.index(stream)
        self.cache.drop_row(row)
        last = self.streams.pop()
        if last is not stream:
            self.streams[row] = last


def generate(
    model: MixtureOfTransformers,
    requests: Iterable[Request],
    *,
    grids: dict[str, tuple[int, ...]],
    max_rows: int = 32,
    max_length: int = 2048,
    diffusion: DiffusionConfig | None = None,
    precision: str = "float32",
    on_result: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Run all requests, at most ``max_rows`` at a time, and return their results in order."""
    requests = list(requests)
    branches = max((r.max_branches for r in requests), default=1)
    engine = Generator(model, grids=grids, max_rows=max_rows, max_length=max_length, max_branches=branches,
                       diffusion=diffusion, precision=precision)  # fmt: skip
    waiting, results = list(reversed(requests)), {}
    while waiting or engine.rows:
        while waiting and engine.has_room:
            engine.add(waiting.pop())
        for result in engine.step():
            results[id(result.request)] = result
            if on_result:
                on_result(result)
    return [results[id(r)] for r in requests]


def guided(full: Tensor, media: Tensor, free: Tensor, text_guidance: Tensor, media_guidance: Tensor) -> Tensor:
    """Combine what was said with everything given, with the host's parts left out, and with nothing given.

    Classifier-free guidance (arXiv 2207.12598), by two conditions apart (InstructPix2Pix, arXiv 2211.09800, eq. 3).
    """
    return free + media_guidance * (media - free) + text_guidance * (full - media)


def _one(modality: str, token: int) -> Run:
    return Run(modality, np.array([token], dtype=np.int64))


def _last_rows(batch: Batch, documents: np.ndarray) -> tuple[list[Tensor], Tensor]:
    """Return for each tower the rows of documents' last tokens, and the order that puts them by document."""
    last = (np.cumsum(batch.lengths) - 1)[documents]
    rows = batch.routing.to_sequence.numpy()[last]
    edges = np.cumsum([0, *batch.routing.padded_sizes])
    tower = np.searchsorted(edges, rows, side="right") - 1
    order = np.argsort(tower, kind="stable")
    back = np.argsort(order, kind="stable")
    by_tower = [torch.from_numpy((rows - edges[tower])[tower == k]) for k in range(len(edges) - 1)]
    return by_tower, torch.from_numpy(back)
