"""One id for each row: the plain step of decoding, whose shapes are few, and the draw that ends every step.

Shapes: T streams with one new token each, R rows in tower order, B rows of ids to draw, S streams whose logits they
need, P pages of the longest stream, A position axes.

Everything that a step needs of the host goes to the device as one array of integers and one of numbers, laid out by
the step's `Shape`. What follows is a function of those two arrays alone, so that a CUDA graph of it can be replayed:
there, counts are padded so that few shapes come up. Padding streams repeat the first one, and nobody reads them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.batch import Batch, Routing, Run, Span, Targets, tower_of
from plait.generate.allowed import AllowedIds
from plait.generate.rows import Row, Stream
from plait.generate.sampling import Limits, sample
from plait.model.cache import CacheStep, KVCache, to_device, together
from plait.model.mot import MixtureOfTransformers
from plait.model.routing import merged

LONGEST_STEP = 256
"""Slots that padded steps attend are a multiple of this."""


@dataclass(frozen=True)
class DrawShape:
    """What a draw knows before it sees numbers."""

    num_rows: int
    num_needed: int
    keep: int
    """As in `Limits`."""
    is_guided: bool
    low: int
    high: int
    """Ids that are scored."""

    @property
    def sizes(self) -> list[int]:
        """Integers: picks [S], branches [3 B], states [B]."""
        return [self.num_needed, 3 * self.num_rows, self.num_rows]


@dataclass(frozen=True)
class Shape:
    """What a step of decoding knows before it sees numbers."""

    num_streams: int
    towers: tuple[int, ...]
    """Rows of each tower."""
    longest: int
    num_pages: int
    """Pages of each stream to be copied together; 0 where they lie side by side."""
    apart: tuple[tuple[int, int], ...]
    """Streams and their lengths that are attended by themselves; none where shapes are padded."""
    draw: DrawShape

    @property
    def sizes(self) -> list[int]:
        """Integers: ids, to_sequence, places, last slots [T], to_towers [R], table [T P], then those of the draw."""
        t = self.num_streams
        return [t, t, t, t, sum(self.towers), t * self.num_pages, *self.draw.sizes]


class Decoder:
    """Draws ids for rows: after a forward pass of any kind (`draw`), or with the pass of one id each (`step`)."""

    def __init__(self, model: MixtureOfTransformers, cache: KVCache, allowed: AllowedIds, *, pad: bool = False):
        self.model, self.cache, self.allowed, self.pad = model, cache, allowed, pad
        self._towers: dict[tuple[str, str], int] = {}
        """By modality and role."""
        self.dtype = torch.promote_types(model.dtype, torch.float32)
        self.run: Callable[[Tensor, Tensor, Shape], Tensor] = self.forward

    # -- on the host --------------------------------------------------------------------------------------------

    def step(self, streams: Sequence[Stream], rows: Sequence[Row]) -> Tensor:
        """Feed every stream its one id and draw an id for each row; returns [B] on the device."""
        cache, count = self.cache, len(streams)
        ends = np.array([n + 1 for n in cache.lengths])
        cache.reserve(range(count), ends.tolist())
        fed = [s.pending[0] for s in streams]
        tower = np.array([self._tower(run) for run in fed])
        sizes = np.bincount(tower, minlength=len(self.model.config.towers))
        longest, apart = together(ends)
        padded, num_streams = sizes, count
        if self.pad:
            longest, apart = min(-(-int(ends.max()) // LONGEST_STEP) * LONGEST_STEP, cache.max_length), []
            padded = np.array([bucket(n) for n in sizes])
            num_streams = min(bucket(count), cache.num_rows)
        order = np.argsort(tower, kind="stable")
        starts = np.cumsum(padded) - padded
        to_sequence = np.zeros(num_streams, np.int64)
        to_sequence[order] = np.arange(count) + np.repeat(starts - (np.cumsum(sizes) - sizes), sizes)
        to_sequence[count:] = to_sequence[0]
        to_towers = np.zeros(int(padded.sum()), np.int64)
        to_towers[to_sequence[:count]] = np.arange(count)
        ids = _padded(np.array([run.ids[0] for run in fed]), num_streams)
        places = _padded(cache.places(np.arange(count), ends - 1), num_streams)
        last = np.zeros(num_streams, np.int64)
        last[:count] = ends - 1
        table = cache.tables(num_streams, longest)
        at = {id(s): i for i, s in enumerate(streams)}
        picks, draws, numbers, shape = self._drawing(at, rows)
        table = np.empty((0, 0), np.int64) if table is None else table
        shape = Shape(num_streams, tuple(padded.tolist()), longest, table.shape[1], tuple(apart), shape)
        ints = [ids, to_sequence, places, last, to_towers, table.ravel(), to_sequence[picks], *draws]
        positions = _padded(np.array([s.position for s in streams]), num_streams)
        out = self.run(*self._moved(ints, [positions, numbers]), shape)
        for i, stream in enumerate(streams):
            cache.lengths[i] += 1
            stream.position += 1
            stream.pending = []
        return out[: len(rows)]

    def _tower(self, run: Run) -> int:
        key = (run.modality, run.role)
        if key not in self._towers:
            config = self.model.config
            span = Span(*key, (), 0, 1, 0, bidirectional=False)
            self._towers[key] = list(config.towers).index(tower_of(span, config))
        return self._towers[key]

    def draw(self, hidden: list[Tensor], batch: Batch, streams: Sequence[Stream], rows: Sequence[Row]) -> Tensor:
        """Draw an id for each row, from the last tokens of the streams in a batch; returns [B] on the device."""
        at = {id(s): i for i, s in enumerate(streams)}
        picks, draws, numbers, shape = self._drawing(at, rows)
        by_tower, back = last_rows(batch, picks)
        hidden = [h.index_select(0, to_device(r, h.device)) for h, r in zip(hidden, by_tower, strict=True)]
        ints, floats = self._moved([back, *draws], [numbers])
        return self._draw(hidden, ints.split(shape.sizes), floats, shape)[: len(rows)]

    def _drawing(self, at: dict[int, int], rows: Sequence[Row]) -> tuple[np.ndarray, list, np.ndarray, DrawShape]:
        """Return the streams [S] whose logits are needed, branches and states, settings [6 B], and the shape."""
        settings = [row.request.sampling_of(row.span or self.allowed.host) for row in rows]
        is_guided = any(len(row.streams) > 1 for row in rows)
        limits = Limits.of(settings, [row.uniform() for row in rows])
        states = [self.allowed.state_of(row) for row in rows]
        low, high = (f(self.allowed.ranges[s][i] for s in states) for i, f in enumerate((min, max)))
        num_rows = bucket(len(rows)) if self.pad else len(rows)
        picks = np.array([at[id(row.main)] for row in rows])
        branches = np.zeros((3, len(rows)), np.int64)
        if is_guided:
            streams = np.array([[at[id(s)] for s in row.branches] for row in rows]).T
            picks, where = np.unique(streams, return_inverse=True)
            branches = where.reshape(streams.shape)
        picks = _padded(picks, bucket(len(picks)) if self.pad else len(picks))
        shape = DrawShape(num_rows, len(picks), limits.keep, is_guided, low, high)
        draws = [_padded(branches, num_rows).ravel(), _padded(np.array(states), num_rows)]
        return picks, draws, _padded(limits.numbers, num_rows).ravel(), shape

    def _moved(self, ints: list[np.ndarray], floats: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        device = self.model.device
        numbers = torch.from_numpy(np.concatenate(floats)).to(self.dtype)
        return to_device(np.concatenate(ints), device), numbers.to(device, non_blocking=True)

    # -- on the device ------------------------------------------------------------------------------------------

    def forward(self, ints: Tensor, floats: Tensor, shape: Shape) -> Tensor:
        """Run the step on the two arrays; returns the drawn ids [B], padding included."""
        ids, to_sequence, places, last, to_towers, table, *draws = ints.split(shape.sizes)
        positions, numbers = floats.split([shape.num_streams, len(floats) - shape.num_streams])
        table = table.view(shape.num_streams, -1) if shape.num_pages else None
        slots = shape.num_pages * self.cache.page_size or shape.longest
        visible = torch.arange(slots, device=ints.device) <= last[:, None, None]
        step = CacheStep(self.cache, places, num_rows=shape.num_streams, longest=shape.longest, visible=visible,
                         table=table, apart=shape.apart)  # fmt: skip
        sizes = list(shape.towers)
        routing = Routing(sizes, sizes, to_towers, to_sequence)
        axes = len(self.model.config.position_axes)
        batch = Batch(ids, positions.float()[:, None].expand(-1, axes), routing, [], Targets([], *[ids[:0]] * 4), {},
                      [], [1] * shape.num_streams, [])  # fmt: skip
        return self._draw(self.model(batch, step), draws, numbers, shape.draw)

    def _draw(self, hidden: list[Tensor], ints: Sequence[Tensor], numbers: Tensor, shape: DrawShape) -> Tensor:
        """Draw from hidden states in tower order; ``ints`` are picks, branches, states."""
        picks, branches, states = ints
        uniform, scale, top_k, top_p, text, media = numbers.view(6, -1)
        logits = self._logits(hidden, picks, shape).to(self.dtype)
        if shape.is_guided:
            logits = guided(*(logits.index_select(0, i) for i in branches.view(3, -1)), text[:, None], media[:, None])
        blocked = self.allowed.table[:, shape.low : shape.high].index_select(0, states)
        return shape.low + sample(logits, blocked, uniform, scale, top_k, top_p, keep=shape.keep)

    def _logits(self, hidden: list[Tensor], picks: Tensor, shape: DrawShape) -> Tensor:
        """Return the scores [S, high - low] of picked rows."""
        heads = self.model.head_weights()
        weights = [m.weight[shape.low : shape.high] for m in heads.values()]
        if heads.is_shared or len(weights) == 1:
            return F.linear(merged(hidden)[0].index_select(0, picks), weights[0])
        scores = [F.linear(h, w) for h, w in zip(hidden, weights, strict=True)]
        return torch.cat(scores).index_select(0, picks)


def guided(full: Tensor, media: Tensor, free: Tensor, text_guidance: Tensor, media_guidance: Tensor) -> Tensor:
    """Combine what was said with everything given, with the host's parts left out, and with nothing given.

    Classifier-free guidance (arXiv 2207.12598), by two conditions apart (InstructPix2Pix, arXiv 2211.09800, eq. 3).
    """
    return free + media_guidance * (media - free) + text_guidance * (full - media)


def bucket(count: int) -> int:
    """Return the least power of two that is not below a count; 0 stays 0."""
    return 1 << (int(count) - 1).bit_length() if count else 0


def _padded(numbers: np.ndarray, length: int) -> np.ndarray:
    """Return an array [..., n] with its first entry repeated at its end, up to a length."""
    missing = length - numbers.shape[-1]
    return np.concatenate([numbers, np.repeat(numbers[..., :1], missing, axis=-1)], axis=-1) if missing else numbers


def last_rows(batch: Batch, documents: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Return for each tower the rows of documents' last tokens, and the order that puts them by document."""
    last = (np.cumsum(batch.lengths) - 1)[documents]
    rows = batch.routing.to_sequence.numpy()[last]
    edges = np.cumsum([0, *batch.routing.padded_sizes])
    tower = np.searchsorted(edges, rows, side="right") - 1
    back = np.argsort(np.argsort(tower, kind="stable"), kind="stable")
    return [(rows - edges[tower])[tower == k] for k in range(len(edges) - 1)], back
