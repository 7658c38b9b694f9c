"""The generator: many requests under way, all advanced by one forward pass a step.

`Generator` takes requests in (`add`), advances them (`step`) and lets them go (`cancel`); `generate` is a loop over it.
In one step a row of discrete tokens draws one id, and a row of latents goes down one noise level: both are documents
of the same packed batch. Texts that begin beside latents draw their first ids in their own pass. What was given
is computed once and cached; latents under denoising pass through the cache without being kept, and the clean ones take
their place once they are done.

With guidance, an open span has branches that saw less of what was given; all are rows of the same forward pass. One
step costs one synchronisation for sampled ids, and one for each finished item of latents; `num_syncs` counts them.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.batch.assemble import Run, assemble, position_after, spell_prompt
from plait.batch.batch import Batch
from plait.batch.documents import Part, role_of
from plait.common.errors import ResourceError, require
from plait.config.bounds import check_sizes
from plait.config.generation import DiffusionConfig
from plait.generate import denoising, prefixes
from plait.generate.allowed import AllowedIds
from plait.generate.decoding import Decoder, Drawn, keep_scores
from plait.generate.graphs import CudaCapture, Graphs
from plait.generate.latent_batches import Canvas
from plait.generate.request import Request, Result, check_request
from plait.generate.room import Room, most_tokens, num_pages
from plait.generate.rows import Row, Stream, asked_by, one
from plait.generate.speculation import num_right
from plait.model.mot import MixtureOfTransformers
from plait.model.pages import PagedKVCache
from plait.model.precision import autocast

MADE = role_of(given=False)


class Generator:
    """Advances requests together. ``grids`` gives the extent of items of fixed size, by modality.

    The cache is as large as the requests at hand need (`reserve`). A request that is added and needs more lets it grow,
    at most to ``max_rows`` times ``max_branches`` rows (1 without guidance, 2 with it, 3 where given media guide apart)
    of ``max_length``; it never shrinks. With a ``page_size`` it is paged and holds ``cache_tokens`` in all (0: as many
    as are needed): a request that needs more pages than are left waits (`fits`). ``cuda_graphs`` replays steps of
    decoding as CUDA graphs, on CUDA devices. ``speculate`` is the window of plait.generate.speculation for items of ids
    of fixed size, 0 for plain draws.
    """

    def __init__(self, model: MixtureOfTransformers, *, grids: dict[str, tuple[int, ...]], max_rows: int = 32,
                 max_length: int = 2048, default_max_tokens: int = 256, max_branches: int = 3,
                 diffusion: DiffusionConfig | None = None, precision: str = "float32", page_size: int = 0,
                 cache_tokens: int = 0, cuda_graphs: bool = False, speculate: int = 0):  # fmt: skip
        check_sizes(1, max_rows=max_rows, max_length=max_length, max_branches=max_branches)
        check_sizes(0, page_size=page_size, cache_tokens=cache_tokens, speculate=speculate)
        self.model, self.grids, self.default_max_tokens = model, grids, default_max_tokens
        self.layout, self.max_rows, self.diffusion = model.config.layout, max_rows, diffusion or DiffusionConfig()
        self.max_branches, self.max_length = max_branches, min(max_length, model.config.max_positions)
        # guesses may reach beyond an item's end, so that all rows keep one window
        self.speculate, self.spare = speculate, max(0, speculate - 1)
        # what is attended in 16 bits is kept in 16 bits: no step casts the whole cache
        dtype = torch.bfloat16 if precision == "bfloat16" else model.dtype
        self.cache = model.new_cache(1, 1, dtype)
        self.page_size, self.most_pages = page_size, math.inf
        if page_size:
            self.cache = PagedKVCache.beside(self.cache, 1, page_size=page_size)
            self.most_pages = -(-cache_tokens // page_size) or math.inf
        self.precision, self._went_ahead = precision, False
        self.rows: list[Row] = []
        self.streams: list[Stream] = []
        """By row of the cache."""
        self.num_syncs = self.num_steps = self.num_tokens = self._next_id = 0
        self._allowed = AllowedIds(model, grids, default_max_tokens)
        graphs = cuda_graphs and model.device.type == "cuda"
        self._decoder = Decoder(model, self.cache, self._allowed, pad=graphs)
        self._graphs = Graphs(self._decoder.forward, CudaCapture()) if graphs else None
        if self._graphs:
            self._decoder.run = self._graphs

    # -- requests -----------------------------------------------------------------------------------------------

    def reserve(self, requests: Iterable[Request]) -> None:
        """Make room in the cache for these requests, for as many of them as may be under way at once."""
        needs = [self._slots_for(r) for r in requests]
        self._grow(Room.of(needs, self.max_rows, self.page_size))

    def fits(self, request: Request) -> bool:
        """Say whether a request may be added now: a row is free, and so are all the pages that it may ever need."""
        return len(self.rows) < self.max_rows and self._pages(self._slots_for(request)) <= self._num_spare

    def _slots_for(self, request: Request) -> list[int]:
        lengths = most_tokens(request, self.model.config, grids=self.grids, default=self.default_max_tokens)
        return [min(n, self.max_length) + self.spare for n in lengths]

    def _pages(self, slots: Sequence[int]) -> int:
        """Return the pages that rows of so many slots may need; a row is one where the cache is not paged."""
        return num_pages(slots, self.page_size) if self.page_size else len(slots)

    @property
    def _num_spare(self) -> float:
        """Pages that nobody holds or may still need, those included by which the cache may grow."""
        return self.most_pages - self.cache.num_pages + self._num_left

    @property
    def _num_left(self) -> int:
        """Pages of the cache as it is that nobody holds or may still need."""
        held = sum(self.cache.num_held(i) for i in range(len(self.streams)))
        return self.cache.num_free + held - sum(self._pages(row.slots) for row in self.rows)

    def _make_room(self, slots: Sequence[int]) -> None:
        """Let the cache grow for one more request; where it grows by rows or pages, twofold, as others may follow."""
        cache = self.cache
        rows, pages = sum(len(row.slots) for row in self.rows) + len(slots), 0
        if rows > cache.num_rows:
            rows = min(max(rows, 2 * cache.num_rows), self.max_rows * self.max_branches)
        if self.page_size and (missing := self._pages(slots) - self._num_left) > 0:
            pages = int(min(max(cache.num_pages + missing, 2 * cache.num_pages), self.most_pages))
        self._grow(Room(rows, max(slots), pages))

    def _grow(self, room: Room) -> None:
        if self.cache.grow(room.rows, room.length, int(min(room.pages, self.most_pages))) and self._graphs:
            self._graphs.captured.clear()  # they know where the cache was

    def add(self, request: Request) -> int:
        """Take a request in and return its id.

        Raises ConfigError where it asks for what cannot be made or never fits the cache, and ResourceError where it
        does not fit now (`fits`).
        """
        self.check(request)
        require(request.max_branches <= self.max_branches, "generate: branches of guidance", request.max_branches,
                f"at most max_branches ({self.max_branches}) of this generator")  # fmt: skip
        row = Row(self._next_id, request, spell_prompt(request.prompt, self.model.config), self._slots_for(request))
        size, needed = self.page_size, self._pages(row.slots)
        require(needed <= self.most_pages, "generate: tokens that a request may need in the cache", needed * size,
                f"at most {self.most_pages * size}; raise generate.cache_tokens or lower max_tokens")  # fmt: skip
        if not self.fits(request):
            raise ResourceError(f"generate: {len(self.rows)} requests are under way, and one more does not fit now")
        self._make_room(row.slots)
        self._next_id += 1
        self.rows.append(row)
        self._take(row.main)
        if request.output not in (None, self.layout.host):
            self._open(row, request.output)
        return row.id

    def check(self, request: Request) -> None:
        """Raise a ConfigError where a request asks for what cannot be made."""
        check_request(request, self.model.config, grids=self.grids, max_length=self.max_length,
                      diffusion=self.diffusion, adapters=self.model.adapters.names)  # fmt: skip

    def cancel(self, identity: int) -> Result | None:
        """Let a request go and return what it has; None if it is not under way."""
        for row in self.rows:
            if row.id == identity:
                return self._finish(row, "cancelled")
        return None

    # -- steps --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self) -> list[Result]:
        """Advance every request by a token or more, or by one noise level; return those that ended."""
        if not self.rows:
            return []
        denoising.start(self.rows, self.diffusion)
        writing, drawing = [r for r in self.rows if not r.canvas], [r for r in self.rows if r.canvas]
        new = [r for r in writing if not (r.tokens or r.parts)] if drawing and not self._went_ahead else []
        self._went_ahead = bool(new)
        if new:  # a first id does not wait for a pass over what is denoised, at most every second time
            writing, drawing = new, []
        with autocast(self.precision, self.model.device):
            self._share_prefixes()
            for row in writing:
                self._guess(row)
            chosen = self._advance(writing, drawing)
        self.num_steps += 1
        ids = iter(chosen.ids.tolist() if chosen is not None else [])
        self.num_syncs += chosen is not None
        keep_scores(chosen, writing)
        ended = [self._accept(row, self._final(row, [next(ids) for _ in range(1 + len(row.guesses))]))
                 for row in writing]  # fmt: skip
        ended += [self._close(row) for row in drawing if row.open_canvas.is_done]
        return [result for result in ended if result]

    def _advance(self, writing: list[Row], drawing: list[Row]) -> Drawn | None:
        """Run one forward pass over some rows; return what was drawn for those of ids, if there are any."""
        rows = {*writing, *drawing}
        fed = [i for i, s in enumerate(self.streams) if s.row in rows]
        streams = [self.streams[i] for i in fed]
        alike = all(s.decodes for s in self.streams) and len({len(r.guesses) for r in writing}) == 1
        if alike and not drawing and len(streams) == len(self.streams):
            self.num_tokens += len(streams) * (1 + len(writing[0].guesses))
            return self._decoder.step(streams, writing)
        canvases = [s.row.canvas for s in streams]
        runs = [[*s.pending, *([c.run] if c else [])] for s, c in zip(streams, canvases, strict=True)]
        batch, moved, hidden = self._forward(fed, runs, [len(c) if c else 0 for c in canvases])
        for stream in streams:
            stream.pending = []
        if drawing:
            denoising.advance(self.model, hidden, moved, streams, drawing)
        return self._decoder.draw(hidden, batch, streams, writing) if writing else None

    def _forward(self, fed: list[int], sequences: list[list[Run]],
                 passing: list[int]) -> tuple[Batch, Batch, list[Tensor]]:  # fmt: skip
        """Feed some streams; return the batch, also on the device, and the hidden states."""
        streams = [self.streams[i] for i in fed]
        batch = assemble(sequences, self.model.config, first_positions=[s.position for s in streams])
        moved = batch.to(self.model.device)
        for group in moved.latents.values():
            denoising.fill(group, streams, self.model.dtype)
        asked = asked_by(streams, batch.lengths, self.model)
        hidden = self.model(moved, self.cache.step(moved, fed, passing=passing, asked=asked))
        ends = np.cumsum(batch.lengths)
        for stream, n, after, end in zip(streams, passing, batch.next_positions, ends, strict=True):
            # latents come again at the place where they began; guesses do not count on it
            if n:
                stream.position = float(batch.positions[end - n, 0])
            elif not self._in_space(stream.row) or not stream.row.guesses:
                stream.position = after
        self.num_tokens += batch.num_tokens
        return batch, moved, hidden

    def _share_prefixes(self) -> None:
        """Let streams that begin like others take what those have; what nobody has yet is computed once."""
        shared = prefixes.find(self.streams, self.cache, self.model.config)
        missing: dict[int, int] = {}
        for s in shared:
            if not self.cache.lengths[s.other]:
                missing[s.other] = max(s.length, missing.get(s.other, 0))
        if missing:
            parts = [prefixes.cut(self.streams[i].pending, n) for i, n in missing.items()]
            self._forward(list(missing), [first for first, _ in parts], [0] * len(missing))
            for i, (_, rest) in zip(missing, parts, strict=True):
                self.streams[i].pending = rest
        for s in shared:
            stream = self.streams[s.stream]
            self.cache.share(s.stream, s.other, s.length)
            first, stream.pending = prefixes.cut(stream.pending, s.length)
            for run in first:
                stream.position = position_after(run, stream.position, self.model.config)

    # -- ids ----------------------------------------------------------------------------------------------------

    def _guess(self, row: Row) -> None:
        """Put guesses behind the id that a row is fed, if its open span is drawn by plait.generate.speculation."""
        guesses, row.guesses = row.guesses, []
        if not row.races or not all(s.decodes for s in row.streams):
            return
        if self.spare:
            guesses = guesses or row.tokens[-1:] or [self.layout.offsets[row.open_span]]
            row.guesses = (guesses + guesses[-1:] * self.spare)[: self.spare]
            run = self._run_of(row, row.guesses, len(row.tokens))
            for stream in row.streams:
                stream.pending = [*stream.pending, run]

    def _final(self, row: Row, drawn: list[int]) -> int:
        """Take all that is final into a row but the last of it, which is returned, and forget guesses that failed."""
        count = num_right(row.guesses, drawn)
        if row.guesses:  # no further than to the item's end, and to the place where the cache ends the row
            room = self.max_length - 1 - (self.cache.lengths[self.streams.index(row.main)] - len(drawn))
            count = min(count, math.prod(self.grids[row.open_span]) - len(row.tokens), room)
        failed = len(drawn) - count
        for stream in row.streams if failed else []:
            at = self.streams.index(stream)
            self.cache.cut(at, self.cache.lengths[at] - failed)
            stream.position -= 0 if self._in_space(row) else failed
        row.tokens += drawn[: count - 1]
        row.guesses = drawn[count:]
        return drawn[count - 1]

    def _accept(self, row: Row, token: int) -> Result | None:
        """Take a sampled id into a row; return the result if that ends it."""
        layout = self.layout
        if row.span is None:
            return self._accept_in_host(row, token)
        if token != layout.closing[row.span]:
            row.tokens.append(token)
            for stream in row.streams:
                stream.pending.append(self._run_of(row, [token], len(row.tokens) - 1))
            if row.span not in self.grids or len(row.tokens) < math.prod(self.grids[row.span]):
                return self._room(row)
        return self._close(row)

    def _accept_in_host(self, row: Row, token: int) -> Result | None:
        layout = self.layout
        if token in layout.stops:
            return self._finish(row, "eos")
        for name, opening in layout.opening.items():
            if token == opening:
                self._end_host_part(row)
                self._open(row, name)
                return self._room(row, len(row.canvas) + 1 if row.canvas else 1)
        row.tokens.append(token)
        row.scores += row.new_scores
        row.host_tokens += 1
        for stream in row.streams:
            stream.pending.append(one(layout.host, token, MADE))
        return self._room(row)

    # -- spans --------------------------------------------------------------------------------------------------

    def _room(self, row: Row, needed: int = 1) -> Result | None:
        """End a row that the cache has no more room for."""
        used = self.cache.lengths[self.streams.index(row.main)] + sum(len(r) for r in row.main.pending)
        return self._finish(row, "length") if used + needed > self.max_length else None

    def _open(self, row: Row, modality: str) -> None:
        row.span, row.tokens = modality, []
        row.num_spans += 1
        record, s = self.model.config.modalities[modality], row.request.sampling_of(modality)
        row.races = self.speculate > 0 and modality in self.grids and record.objective == "next_token"
        prompt, host, branches = row.request.prompt, self.layout.host, []
        media, made = ([p for p in parts if p.modality != host] for parts in (prompt, row.parts))
        if s.guidance != 1.0 or s.media_guidance != 1.0:
            branches = [spell_prompt([], self.model.config)]
            if s.media_guidance != 1.0 and 0 < len(media) + len(made) < len(prompt) + len(row.parts):
                branches = [spell_prompt(media, self.model.config, made), *branches]
        row.streams += [Stream(row, runs) for runs in branches]
        for stream in row.streams:
            stream.pending.append(one(self.layout.host, self.layout.opening[modality]))
        for stream in row.streams[1:]:
            self._take(stream)
        if record.objective == "diffusion":
            grid = row.request.grid_of(modality, self.grids)
            drawn = row.draw("first noise").standard_normal((math.prod(grid), record.latent_channels))
            noise = torch.from_numpy(drawn).to(self.model.device, self.model.dtype, non_blocking=True)
            row.canvas = Canvas(modality, grid, noise, hidden=record.later_sees != "noised",
                                num_snapshots=row.request.num_snapshots)  # fmt: skip

    def _close(self, row: Row) -> Result | None:
        """End the open span; what it holds becomes a part, and stays seen by what follows."""
        name, canvas = row.open_span, row.canvas
        if canvas:
            part = canvas.part(canvas.latents)
            row.snapshots += [(level, canvas.part(latents)) for level, latents in canvas.snapshots]
            self.num_syncs += 1
        else:
            part = Part(name, np.array(row.tokens) - self.layout.offsets[name], grid=self.grids.get(name, ()))
        row.parts.append(part)
        row.span, row.tokens, row.canvas = None, [], None
        row.races, row.guesses = False, []
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
        row.main.pending.append(one(self.layout.host, self.layout.closing[name]))
        return self._room(row)

    def _end_host_part(self, row: Row) -> None:
        if row.tokens:
            row.parts.append(Part(self.layout.host, np.array(row.tokens) - self.layout.offsets[self.layout.host]))
        row.tokens = []

    def _finish(self, row: Row, stopped: str) -> Result:
        if row.span is None:
            self._end_host_part(row)
        elif row.tokens and row.span not in self.grids:  # part of an image is no image
            row.parts.append(Part(row.span, np.array(row.tokens) - self.layout.offsets[row.span]))
        for stream in row.streams:
            self._release(stream)
        self.rows.remove(row)
        return Result(row.request, row.parts, stopped, row.snapshots, row.scores)

    def _in_space(self, row: Row) -> bool:
        """Whether ids of the open span have positions in a grid."""
        return row.span in self.grids and len(self.model.config.position_axes) > 1

    def _run_of(self, row: Row, tokens: list[int], offset: int) -> Run:
        """Return the run of some ids of the open span, from a place of its item on."""
        span = row.open_span
        if self._in_space(row):
            return Run(span, np.array(tokens), grid=self.grids[span], role=MADE, offset=offset)
        return one(span, tokens[0], MADE) if len(tokens) == 1 else Run(span, np.array(tokens), role=MADE)

    def _take(self, stream: Stream) -> None:
        self.cache.add_row()
        self.streams.append(stream)

    def _release(self, stream: Stream) -> None:
        row = self.streams.index(stream)
        self.cache.drop_row(row)
        last = self.streams.pop()
        if last is not stream:
            self.streams[row] = last


def generate(model: MixtureOfTransformers, requests: Iterable[Request], *, grids: dict[str, tuple[int, ...]],
             max_rows: int = 32, max_length: int = 2048, on_result: Callable[[Result], None] | None = None,
             **settings: Any) -> list[Result]:  # fmt: skip
    """Run all requests, at most ``max_rows`` at a time, and return their results in order.

    ``settings`` are further ones of `Generator`.
    """
    requests = list(requests)
    engine = Generator(model, grids=grids, max_rows=max_rows, max_length=max_length, **settings)
    for request in requests:  # one that cannot be made is refused before any is
        engine.check(request)
    engine.reserve(requests)
    waiting, results = list(reversed(requests)), {}
    while waiting or engine.rows:
        while waiting and (not engine.rows or engine.fits(waiting[-1])):
            engine.add(waiting.pop())
        for result in engine.step():
            results[id(result.request)] = result
            if on_result:
                on_result(result)
    return [results[id(r)] for r in requests]
