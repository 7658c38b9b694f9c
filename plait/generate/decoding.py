"""The plain step of decoding, whose shapes are few, and the draw that ends every step.

A step feeds each stream one id, and draws one for each row; or ids of a window (plait.generate.speculation), and draws
as many. Shapes: T new tokens, R rows in tower order, B ids to draw, S tokens whose logits they need, P pages of the
longest stream, A position axes.

Everything that a step needs of the host goes to the device as one array of integers and one of numbers, laid out by
the step's `Shape`. What follows is a function of those two arrays alone, so that a CUDA graph of it can be replayed:
there, counts are padded so that few shapes come up. Padding streams repeat the first one, and nobody reads them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.batch.assemble import Run, place_runs
from plait.batch.batch import Batch, Routing, Targets
from plait.batch.spans import Span, tower_of
from plait.generate.allowed import AllowedIds
from plait.generate.request import Score
from plait.generate.rows import Row, Stream, adapter_numbers
from plait.generate.sampling import Limits, invert, weights_of
from plait.generate.speculation import race
from plait.model.cache import CacheStep, KVCache, to_device, together
from plait.model.layers import widened
from plait.model.lora import Asked
from plait.model.mot import MixtureOfTransformers
from plait.model.routing import merged

LONGEST_STEP = 256
"""Slots that padded steps attend are a multiple of this."""


@dataclass(frozen=True)
class DrawShape:
    """What a draw knows before it sees numbers."""

    num_rows: int
    """Ids to draw."""
    num_needed: int
    keep: int
    """As in `Limits`."""
    is_guided: bool
    races: bool
    """Whether some ids are drawn by `race`; ``inverts``: whether some are not."""
    inverts: bool
    low: int
    high: int
    """Ids that are scored."""
    num_top: int = -1
    """Likeliest ids whose log-probabilities are wanted besides those of the drawn ones; -1: none at all."""

    @property
    def sizes(self) -> list[int]:
        """Integers: picks [S], branches [3 B], states [B], keys [B]."""
        return [self.num_needed, 3 * self.num_rows, self.num_rows, self.num_rows]


@dataclass
class Drawn:
    """Ids that were drawn [B], and where they are wanted, log-probabilities: of them [B], and the likeliest [B, K]."""

    ids: Tensor
    logprobs: Tensor | None = None
    top: Tensor | None = None
    top_logprobs: Tensor | None = None

    def first(self, count: int) -> "Drawn":
        """Return the first draws, without those of padding."""
        cut = {name: None if t is None else t[:count] for name, t in vars(self).items() if name != "ids"}
        return Drawn(self.ids[:count], **cut)

    def scores(self) -> list[Score]:
        """Return each draw's score, on the host; none where they are not wanted."""
        if self.logprobs is None or self.top is None or self.top_logprobs is None:
            return []
        columns = (t.tolist() for t in (self.ids, self.logprobs, self.top, self.top_logprobs))
        rows = zip(*columns, strict=True)
        return [Score(i, p, list(zip(top, likely, strict=True))) for i, p, top, likely in rows]


@dataclass(frozen=True)
class Shape:
    """What a step of decoding knows before it sees numbers."""

    num_streams: int
    num_new: int
    """Tokens of each stream."""
    towers: tuple[int, ...]
    """Rows of each tower."""
    longest: int
    num_pages: int
    """Pages of each stream to be copied together; 0 where they lie side by side."""
    apart: tuple[tuple[int, int], ...]
    """Streams and their lengths that are attended by themselves; none where shapes are padded."""
    draw: DrawShape
    adapters: tuple[int, ...] = ()
    """Numbers of the adapters that some tokens are computed with."""

    @property
    def sizes(self) -> list[int]:
        """Integers: ids, to_sequence, places, last slots, adapters if any [T], to_towers [R], pages, then those of the
        draw."""
        t = self.num_streams * self.num_new
        asked = t if self.adapters else 0
        return [t, t, t, t, asked, sum(self.towers), self.num_streams * self.num_pages, *self.draw.sizes]


class Decoder:
    """Draws ids for rows: after a forward pass of any kind (`draw`), or with the pass of one id each (`step`)."""

    def __init__(self, model: MixtureOfTransformers, cache: KVCache, allowed: AllowedIds, *, pad: bool = False):
        self.model, self.cache, self.allowed, self.pad = model, cache, allowed, pad
        self._towers: dict[tuple[str, str], int] = {}
        """By modality and role."""
        self.dtype = torch.promote_types(model.dtype, torch.float32)
        self.run: Callable[[Tensor, Tensor, Shape], Drawn] = self.forward

    # -- on the host --------------------------------------------------------------------------------------------

    def step(self, streams: Sequence[Stream], rows: Sequence[Row]) -> Drawn:
        """Feed every stream its ids, as many as the others, and draw one for each token of each row.

        Returns the draws on the device, row after row.
        """
        cache, count = self.cache, len(streams)
        fed = [run for s in streams for run in s.pending]
        num_new = sum(map(len, fed)) // count
        ends = np.array(cache.lengths) + num_new
        cache.reserve(range(count), ends.tolist())
        slots = (ends[:, None] + np.arange(-num_new, 0)).ravel()
        tower = np.repeat([self._tower(run) for run in fed], [len(run) for run in fed])
        sizes = np.bincount(tower, minlength=len(self.model.config.towers))
        longest, apart = together(ends.tolist()) if num_new == 1 else (int(ends.max()), [])
        padded, num_streams, tokens = sizes, count, count * num_new
        if self.pad:
            longest, apart = min(-(-int(ends.max()) // LONGEST_STEP) * LONGEST_STEP, cache.max_length), []
            padded = np.array([bucket(n) for n in sizes])
            num_streams = min(bucket(count), cache.num_rows)
        size = num_streams * num_new
        order = np.argsort(tower, kind="stable")
        starts = np.cumsum(padded) - padded
        to_sequence = np.zeros(size, np.int64)
        to_sequence[order] = np.arange(tokens) + np.repeat(starts - (np.cumsum(sizes) - sizes), sizes)
        to_sequence[tokens:] = to_sequence[0]
        to_towers = np.zeros(int(padded.sum()), np.int64)
        to_towers[to_sequence[:tokens]] = np.arange(tokens)
        ids = _padded(np.concatenate([run.ids for run in fed]), size)
        places = _padded(cache.places(np.repeat(np.arange(count), num_new), slots), size)
        last = np.zeros(size, np.int64)
        last[:tokens] = slots
        table = cache.tables(num_streams, longest)
        picks, draws, numbers, draw_shape = self._drawing(streams, np.arange(1, count + 1) * num_new - 1, rows)
        table = np.empty((0, 0), np.int64) if table is None else table
        widths, num_pages = tuple(padded.tolist()), table.shape[1]
        asked, used = adapter_numbers(streams, self.model)
        asked_by_token = _padded(np.repeat(asked, num_new), size) if used else np.empty(0, np.int64)
        shape = Shape(num_streams, num_new, widths, longest, num_pages, tuple(apart), draw_shape, used)
        ints = [ids, to_sequence, places, last, asked_by_token, to_towers, table.ravel(), to_sequence[picks], *draws]
        positions, after = self._positions(streams, num_new)
        positions = _padded(positions.T, size).T.ravel()
        out = self.run(*self._moved(ints, [positions, numbers]), shape)
        for i, stream in enumerate(streams):
            cache.lengths[i] += num_new
            stream.position = float(after[i])
            stream.pending = []
        return out.first(_num_draws(rows))

    def _positions(self, streams: Sequence[Stream], num_new: int) -> tuple[np.ndarray, Sequence[float] | np.ndarray]:
        """Return the positions [T, A] of what streams are fed, and where each goes on."""
        starts = np.array([s.position for s in streams])
        if len(self.model.config.position_axes) == 1:
            return (starts[:, None] + np.arange(num_new)).reshape(-1, 1), starts + num_new
        # guesses stand behind an id that is not its item's last: that goes on where it started
        blocks, after = zip(*(place_runs(s.pending, s.position, self.model.config) for s in streams), strict=True)
        return np.concatenate(blocks), after

    def _tower(self, run: Run) -> int:
        key = (run.modality, run.role)
        if key not in self._towers:
            config = self.model.config
            span = Span(*key, (), 0, 1, 0, bidirectional=False)
            self._towers[key] = list(config.towers).index(tower_of(span, config))
        return self._towers[key]

    def draw(self, hidden: list[Tensor], batch: Batch, streams: Sequence[Stream], rows: Sequence[Row]) -> Drawn:
        """Draw an id for each row, and one for each of its guesses, from the last tokens of the streams in a batch.

        Returns the draws on the device, row after row.
        """
        picks, draws, numbers, shape = self._drawing(streams, np.cumsum(batch.lengths) - 1, rows)
        by_tower, back = rows_of(batch, picks)
        hidden = [h.index_select(0, to_device(r, h.device)) for h, r in zip(hidden, by_tower, strict=True)]
        ints, floats = self._moved([back, *draws], [numbers])
        return self._draw(hidden, ints.split(shape.sizes), floats, shape).first(_num_draws(rows))

    def _drawing(
        self, streams: Sequence[Stream], last: np.ndarray, rows: Sequence[Row]
    ) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, DrawShape]:
        """Return the tokens [S] whose logits are needed, branches, states and keys, settings [6 B], and the shape.

        ``last`` is the last token of each stream.
        """
        settings, uniform, keys, states = [], [], [], []
        counts = [1 + len(row.guesses) for row in rows]
        for row, count in zip(rows, counts, strict=True):
            s = row.request.sampling_of(row.span or self.allowed.host)
            races = row.races and s.temperature > 0
            settings += [s] * count
            states += [self.allowed.state_of(row)] * count
            keys += [row.key(len(row.tokens) + i) if races else 0 for i in range(count)]
            uniform += [0.0] * count if row.races else [row.uniform()]
        is_guided = any(len(row.streams) > 1 for row in rows)
        limits = Limits.of(settings, uniform)
        low, high = (f(self.allowed.ranges[s][i] for s in set(states)) for i, f in enumerate((min, max)))
        num_rows = bucket(len(states)) if self.pad else len(states)
        at = {id(s): i for s, i in zip(streams, last, strict=True)}
        behind = np.concatenate([np.arange(n - 1, -1, -1) for n in counts])
        picks = np.repeat([at[id(row.main)] for row in rows], counts) - behind
        branches = np.zeros((3, len(states)), np.int64)
        if is_guided:
            tokens = np.repeat([[at[id(s)] for s in row.branches] for row in rows], counts, axis=0).T - behind
            picks, where = np.unique(tokens, return_inverse=True)
            branches = where.reshape(tokens.shape)
        picks = _padded(picks, bucket(len(picks)) if self.pad else len(picks))
        wanted = [row.request.logprobs for row in rows if row.span is None]
        num_top = max((n for n in wanted if n is not None), default=-1)
        shape = DrawShape(num_rows, len(picks), limits.keep, is_guided, any(keys), not all(keys), low, high,
                          min(num_top, high - low))  # fmt: skip
        draws = [_padded(x, num_rows).ravel() for x in (branches, np.array(states), np.array(keys, np.int64))]
        return picks, draws, _padded(limits.numbers, num_rows).ravel(), shape

    def _moved(self, ints: list[np.ndarray], floats: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        device = self.model.device
        numbers = torch.from_numpy(np.concatenate(floats)).to(self.dtype)
        return to_device(np.concatenate(ints), device), numbers.to(device, non_blocking=True)

    # -- on the device ------------------------------------------------------------------------------------------

    def forward(self, ints: Tensor, floats: Tensor, shape: Shape) -> Drawn:
        """Run the step on the two arrays; returns the draws, padding included."""
        ids, to_sequence, places, last, asked, to_towers, table, *draws = ints.split(shape.sizes)
        axes = len(self.model.config.position_axes)
        positions, numbers = floats.split([len(ids) * axes, len(floats) - len(ids) * axes])
        table = table.view(shape.num_streams, -1) if shape.num_pages else None
        slots = shape.num_pages * self.cache.page_size or shape.longest
        visible = torch.arange(slots, device=ints.device) <= last.view(shape.num_streams, -1, 1)
        step = CacheStep(self.cache, places, num_rows=shape.num_streams, num_new=shape.num_new, longest=shape.longest,
                         visible=visible, table=table, apart=shape.apart)  # fmt: skip
        step.asked = Asked(asked, shape.adapters) if shape.adapters else None
        sizes = list(shape.towers)
        in_order = not self.pad and sizes.count(0) == len(sizes) - 1
        routing = Routing(sizes, sizes, to_towers, to_sequence, in_order)
        batch = Batch(ids, positions.float().view(-1, axes), routing, [], Targets([], *[ids[:0]] * 4), {},
                      [], [shape.num_new] * shape.num_streams, [])  # fmt: skip
        return self._draw(self.model(batch, step), draws, numbers, shape.draw)

    def _draw(self, hidden: list[Tensor], ints: Sequence[Tensor], numbers: Tensor, shape: DrawShape) -> Drawn:
        """Draw from hidden states in tower order; ``ints`` are picks, branches, states, keys."""
        picks, branches, states, keys = ints
        uniform, scale, top_k, top_p, text, media = numbers.view(6, -1)
        logits = self._logits(hidden, picks, shape).to(self.dtype)
        if shape.is_guided:
            full, no_text, free = (logits.index_select(0, i) for i in branches.view(3, -1))
            logits = guided(full, no_text, free, text[:, None], media[:, None])
        blocked = self.allowed.table[:, shape.low : shape.high].index_select(0, states)
        weights = weights_of(logits, blocked, scale, top_k, top_p, keep=shape.keep)
        drawn = race(weights, keys, shape.low) if shape.races else invert(weights, uniform)
        if shape.races and shape.inverts:
            drawn = torch.where(keys == 0, invert(weights, uniform), drawn)
        if shape.num_top < 0:
            return Drawn(shape.low + drawn)
        scores = (logits + blocked).log_softmax(-1)
        top = scores.topk(shape.num_top, dim=-1)
        own = scores.gather(1, drawn[:, None]).squeeze(1)
        return Drawn(shape.low + drawn, own, shape.low + top.indices, top.values)

    def _logits(self, hidden: list[Tensor], picks: Tensor, shape: DrawShape) -> Tensor:
        """Return the scores [S, high - low] of picked rows."""
        heads = self.model.head_weights()
        weights = [m.weight[shape.low : shape.high] for m in heads.values()]
        if heads.is_shared or len(weights) == 1:
            picked = merged(hidden)[0].index_select(0, picks)
            return F.linear(picked, widened(weights[0], picked))
        scores = [F.linear(h, widened(w, h)) for h, w in zip(hidden, weights, strict=True) if len(h)]
        return torch.cat(scores).index_select(0, picks)


def guided(full: Tensor, media: Tensor, free: Tensor, text_guidance: Tensor, media_guidance: Tensor) -> Tensor:
    """Combine what was said with everything given, with the host's parts left out, and with nothing given.

    Classifier-free guidance (arXiv 2207.12598), by two conditions apart (InstructPix2Pix, arXiv 2211.09800, eq. 3).
    """
    return free + media_guidance * (media - free) + text_guidance * (full - media)


def keep_scores(drawn: Drawn | None, rows: Sequence[Row]) -> None:
    """Give rows that write text the scores of what was drawn for them, where they want them."""
    scores = iter(drawn.scores() if drawn else [])
    for row in rows:
        row.new_scores = [replace(s, top=s.top[: row.request.logprobs]) for s in islice(scores, 1 + len(row.guesses))]
        if row.request.logprobs is None or row.span is not None:
            row.new_scores = []


def bucket(count: int) -> int:
    """Return the least power of two that is not below a count; 0 stays 0."""
    return 1 << (int(count) - 1).bit_length() if count else 0


def _padded(numbers: np.ndarray, length: int) -> np.ndarray:
    """Return an array [..., n] with its first entry repeated at its end, up to a length."""
    missing = length - numbers.shape[-1]
    return np.concatenate([numbers, np.repeat(numbers[..., :1], missing, axis=-1)], axis=-1) if missing else numbers


def _num_draws(rows: Sequence[Row]) -> int:
    return sum(1 + len(row.guesses) for row in rows)


def rows_of(batch: Batch, tokens: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Return for each tower the rows of some tokens, and the order that puts these back into the tokens' order."""
    rows = batch.routing.to_sequence.numpy()[tokens]
    edges = np.cumsum([0, *batch.routing.padded_sizes])
    tower = np.searchsorted(edges, rows, side="right") - 1
    back = np.argsort(np.argsort(tower, kind="stable"), kind="stable")
    return [(rows - edges[tower])[tower == k] for k in range(len(edges) - 1)], back
