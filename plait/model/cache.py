"""The KV cache of generation: one slot after another in each row, rows of different lengths.

Shapes: T new tokens of a step, B rows with n new tokens each, G heads of keys and values, L slots of the longest row,
P pages of the longest row.

Keys and values are a pool of pages [layers, pages, G, page_size, head_dim]; slot s of a row lies in the row's page
``s // page_size``. Here a page holds a whole row, and the rows in use are the first pages, so that a step reads one
slice and copies nothing. `plait.model.pages` has the cache whose rows take and share small pages.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.batch.batch import Batch
from plait.common.errors import ResourceError
from plait.model.attention import AttentionPlan, attend, attend_rows, attend_segments
from plait.model.lora import Asked
from plait.model.mask import Segment, segments

MAX_TOGETHER = 32
"""Most new tokens a row that one masked call attends; longer prompts go segment by segment."""

MAX_PADDED = 512
"""Rows of latents longer than this go one by one where a masked call of all would be more than a quarter padding."""


APART = 512
"""Slots that a call for one row costs besides those that it reads: where fewer are masked, rows stay together."""


class KVCache:
    """Keys and values of up to ``num_rows`` sequences of up to ``max_length`` tokens, a page for each.

    Dropping a row moves the last one into its place.
    """

    def __init__(self, num_layers: int, num_rows: int, max_length: int, num_kv_heads: int, head_dim: int, *,
                 device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):  # fmt: skip
        self.max_length, self.num_rows = max_length, num_rows
        self._allocate((num_layers, num_rows, num_kv_heads, max_length, head_dim), device, dtype)
        self.table = np.arange(num_rows)[:, None]

    def grow(self, num_rows: int, max_length: int, num_pages: int = 0) -> bool:
        """Make room for as many rows of as many tokens, in place; say whether that was needed. It never shrinks.

        ``num_pages`` are small ones, which only the paged cache has.
        """
        num_rows, max_length = max(num_rows, self.num_rows), max(max_length, self.max_length)
        if (num_rows, max_length) == (self.num_rows, self.max_length):
            return False
        self.num_rows, self.max_length = num_rows, max_length
        self._move(num_rows, max_length)
        self.table = np.arange(num_rows)[:, None]
        return True

    def _allocate(self, shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype) -> None:
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self._measure()
        self.lengths: list[int] = []
        self.table: np.ndarray
        """[num_rows, P] the pages of each row; what a row does not hold is 0."""

    def _measure(self) -> None:
        self.num_pages, self.num_heads, self.page_size = self.keys.shape[1:4]
        self.head_steps = self.page_size * torch.arange(self.num_heads, device=self.keys.device)

    def _move(self, num_pages: int, page_size: int) -> None:
        """Move what is kept to as many pages of as many slots."""
        layers, pages, heads, size, head_dim = self.keys.shape
        for side in ("keys", "values"):  # one after the other, so that only one stands there twice
            old = getattr(self, side)
            new = old.new_zeros((layers, num_pages, heads, page_size, head_dim))
            new[:, :pages, :, :size] = old
            setattr(self, side, new)
        self._measure()

    # -- rows ---------------------------------------------------------------------------------------------------

    def add_row(self) -> int:
        """Take a free row and return its number; raises ResourceError where all are in use."""
        if len(self.lengths) == self.num_rows:
            raise ResourceError(f"the cache's {self.num_rows} rows are all in use; drop a row, or make a larger cache")
        self.lengths.append(0)
        return len(self.lengths) - 1

    def drop_row(self, row: int) -> None:
        """Free a row; the last row takes its number."""
        last = len(self.lengths) - 1
        if row != last:
            self._copy(last, slice(row, row + 1), self.lengths[last])
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def spread(self, row: int, count: int, length: int | None = None) -> list[int]:
        """Put the first ``length`` tokens of a row (None: all) into ``count - 1`` new rows; return all the rows."""
        length = self.lengths[row] if length is None else length
        copies = [self.add_row() for _ in range(count - 1)]
        if copies:
            self._copy(row, slice(copies[0], copies[-1] + 1), length)
        for copy in copies:
            self.lengths[copy] = length
        return [row, *copies]

    def share(self, row: int, other: int, length: int) -> None:
        """Let an empty row begin with the first ``length`` tokens of another."""
        self._copy(other, slice(row, row + 1), length)
        self.lengths[row] = length

    def _copy(self, row: int, to: slice, length: int) -> None:
        for side in (self.keys, self.values):
            side[:, to, :, :length] = side[:, row : row + 1, :, :length]

    def cut(self, row: int, length: int) -> None:
        """Forget what a row holds beyond ``length`` tokens."""
        self.lengths[row] = min(self.lengths[row], length)

    def truncate(self, length: int) -> None:
        """Forget what any row holds beyond ``length`` tokens."""
        for row in range(len(self.lengths)):
            self.cut(row, length)

    # -- pages --------------------------------------------------------------------------------------------------

    @property
    def num_free(self) -> int:
        """Pages that no row holds."""
        return self.num_pages - len(self.lengths)

    def num_held(self, row: int) -> int:
        """Return the number of pages that a row holds, shared ones included."""
        return 1

    def pages_for(self, length: int) -> int:
        """Return the number of pages that hold ``length`` tokens of a row."""
        return max(1, -(-length // self.page_size))

    def reserve(self, rows: Sequence[int], ends: Sequence[int]) -> None:
        """Give rows the pages that hold these numbers of tokens."""
        longest = max(ends)
        assert longest <= self.max_length, f"the cache holds {self.max_length} tokens a row, {longest} needed"

    def places(self, rows: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Return where the first head of tokens [T] in slots of rows lies, counted in heads [pages * G * page_size]."""
        pages = self.table[rows, slots // self.page_size]
        return pages * (self.num_heads * self.page_size) + slots % self.page_size

    def tables(self, num_rows: int, longest: int) -> np.ndarray | None:
        """Return the pages [B, P] that a step over the first rows reads; None where they lie side by side."""
        return None

    def window(self, layer: int, num_rows: int, longest: int, table: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return keys and values [B, G, L, head_dim] of the first rows, L at least ``longest``."""
        return self.keys[layer, :num_rows, :, :longest], self.values[layer, :num_rows, :, :longest]

    def locate(self, row: int, end: int) -> Any:
        """Return what `span` wants to know of a row that has ``end`` tokens."""
        return row

    def span(self, layer: int, where: Any, low: int, high: int) -> tuple[Tensor, Tensor]:
        """Return keys and values [n, G, head_dim] of slots [low, high) of a row."""
        keys, values = self.keys[layer, where, :, low:high], self.values[layer, where, :, low:high]
        return keys.transpose(0, 1), values.transpose(0, 1)

    # -- steps --------------------------------------------------------------------------------------------------

    def step(self, batch: Batch, rows: list[int], *, passing: list[int] | None = None,
             asked: Asked | None = None) -> "CacheStep":  # fmt: skip
        """Return the plan of a forward pass that appends the batch's documents to these rows.

        The last ``passing[d]`` tokens of document d are seen in this pass only and not kept: latents under denoising,
        which come again at the next noise level. ``asked``: the adapters that the tokens are computed with.
        """
        step = plan_step(self, batch, rows, passing or [0] * len(rows))
        step.asked = asked
        return step


class CacheStep:
    """One forward pass through the cache: where new keys go, and what each query sees.

    The first ``num_rows`` documents have ``num_new`` tokens each and are attended by one call, over ``longest`` slots;
    those that are much longer (``apart``: rows and lengths) are attended once more, each by itself. The others follow:
    as in training where all begin here (``plan``), else segment by segment (``rest``).
    """

    def __init__(self, cache: KVCache, places: Tensor, *, num_rows: int = 0, num_new: int = 1, longest: int = 0,
                 visible: Tensor | None = None, table: Tensor | None = None, plan: AttentionPlan | None = None,
                 rest: Sequence[Segment] = (), located: Sequence[Any] = (), apart: Sequence[tuple[int, int]] = (),
                 kept: Sequence[tuple[int, int]] = ()):  # fmt: skip
        """places [T] on the device; visible [B, n or 1, L] booleans; table [B, P]; ``kept`` rows and their lengths."""
        self.cache, self.num_rows, self.num_new, self.longest = cache, num_rows, num_new, longest
        self.visible, self.plan, self.rest, self.located, self.kept = visible, plan, rest, located, kept
        self.asked: Asked | None = None
        """The adapters that its tokens are computed with."""
        self.apart = [Segment(row, row, row + 1, ((0, end),), causal=True) for row, end in apart]
        self.located_apart = {row: cache.locate(row, end) for row, end in apart}
        self.places = (places[:, None] + cache.head_steps).flatten()
        self.table = None
        if table is not None:  # by row, head, page: what is read has its slots in order
            heads = torch.arange(cache.num_heads, device=table.device)[:, None]
            self.table = (table[:, None] * cache.num_heads + heads).flatten()
        self.bias = None
        if visible is not None and num_new == 1 and attends_by_products(cache.keys):
            bias = torch.zeros(visible.shape, dtype=cache.keys.dtype, device=visible.device)
            self.bias = bias.masked_fill_(~visible, float("-inf")).repeat_interleave(cache.num_heads, dim=0)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Write the new keys and values [T, G, d] of a layer, and attend the queries [T, H, d] to their rows."""
        cache = self.cache
        query, key, value = (x.to(cache.keys.dtype) for x in (query, key, value))
        for pool, new in ((cache.keys, key), (cache.values, value)):
            pool[layer].view(-1, new.shape[-1]).index_copy_(0, self.places, new.flatten(0, 1))
        if self.plan is None and not self.rest:
            return self._attend_window(layer, query)
        cut = self.num_rows * self.num_new

        def keys_of(s: Segment, low: int, high: int) -> tuple[Tensor, Tensor]:
            return cache.span(layer, self.located[s.document], low, high)

        if self.plan is not None:
            out = attend(query[cut:], key[cut:], value[cut:], self.plan)
        else:
            out = attend_segments(query[cut:], self.rest, keys_of)
        return torch.cat([self._attend_window(layer, query[:cut]), out]) if cut else out

    def _attend_window(self, layer: int, query: Tensor) -> Tensor:
        keys, values = self.cache.window(layer, self.num_rows, self.longest, self.table)
        if self.bias is not None:
            out = attend_one_token(query, keys, values, self.bias)
        else:
            rows = query.unflatten(0, (self.num_rows, self.num_new))
            out = attend_rows(rows, keys.transpose(1, 2), values.transpose(1, 2), self.visible).flatten(0, 1)
        for s in self.apart:

            def keys_of(s: Segment, low: int, high: int) -> tuple[Tensor, Tensor]:
                return self.cache.span(layer, self.located_apart[s.document], low, high)

            out[s.start : s.stop] = attend_segments(query[s.start : s.stop], [s], keys_of)
        return out

    def commit(self) -> None:
        """Count the new tokens that are kept: the forward pass is done."""
        for row, length in self.kept:
            self.cache.lengths[row] = length


def plan_step(cache: KVCache, batch: Batch, rows: list[int], passing: list[int]) -> CacheStep:
    """Plan a forward pass of documents of any kind."""
    new = np.array(batch.lengths)
    prefix = [cache.lengths[r] for r in rows]
    ends = [p + n for p, n in zip(prefix, batch.lengths, strict=True)]
    cache.reserve(rows, ends)
    slots = np.arange(new.sum()) + np.repeat(np.array(prefix) - (np.cumsum(new) - new), new)
    device = cache.keys.device
    places = to_device(cache.places(np.repeat(np.array(rows), new), slots), device)
    kept_lengths = [(row, end - n) for row, end, n in zip(rows, ends, passing, strict=True)]
    num_rows, is_causal = _documents_together(batch, rows, ends)
    settings: dict[str, Any] = {"kept": kept_lengths}
    if num_rows < len(rows):
        rest = [s for s in segments(batch.spans, prefix) if s.document >= num_rows]
        settings["plan"] = None if any(prefix[num_rows:]) else _plan_new(rest, cache)
        if settings["plan"] is None:
            located = [cache.locate(r, end) for r, end in zip(rows, ends, strict=True)]
            settings |= {"rest": rest, "located": located}
    if not num_rows:
        return CacheStep(cache, places, **settings)
    num_new = batch.lengths[0]
    longest, apart = together(ends[:num_rows]) if num_new == 1 else (max(ends[:num_rows]), [])
    table = cache.tables(num_rows, longest)
    width = longest if table is None else table.shape[1] * cache.page_size
    last = np.array(slots[: num_rows * num_new] if is_causal else [e - 1 for e in ends[:num_rows]])
    last = to_device(last, device).view(num_rows, -1, 1)
    return CacheStep(cache, places, num_rows=num_rows, num_new=num_new, longest=longest,
                     visible=torch.arange(width, device=device) <= last,
                     table=None if table is None else to_device(table, device), apart=apart,
                     **settings)  # fmt: skip


def together(ends: Sequence[int]) -> tuple[int, list[tuple[int, int]]]:
    """Return how many slots one call for all rows shall read, given their lengths, and the rows [(row, length)] that
    are attended by themselves, so that the fewest slots are read in all."""
    lengths = np.asarray(ends)
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order]
    totals = len(ordered) * ordered + np.cumsum(ordered + APART) - (ordered + APART)
    count = int(totals.argmin())
    return int(ordered[count]), [(int(row), int(lengths[row])) for row in order[:count]]


def _plan_new(rest: list[Segment], cache: KVCache) -> AttentionPlan | None:
    """Plan the attention of documents that begin here; None where that would compile a kernel for their length."""
    cut, stop = rest[0].start, rest[-1].stop
    shifted = [replace(s, start=s.start - cut, stop=s.stop - cut) for s in rest]
    plan = AttentionPlan.of(shifted, stop - cut, cache.keys.device, cache.keys.dtype)
    return None if plan.flex else plan.to(cache.keys.device)


def _documents_together(batch: Batch, rows: list[int], ends: list[int]) -> tuple[int, bool]:
    """Return how many documents, from the first on, one masked call serves, and whether they are causal."""
    first = batch.lengths[0]
    if rows != list(range(len(rows))) or any(s.hidden and not s.bidirectional for s in batch.spans):
        return 0, True
    if any(n != first for n in batch.lengths):  # rows that decode, before others that are new
        alike = next(i for i, n in enumerate(batch.lengths) if n != first)
        bidirectional = first > 1 and any(s.bidirectional for s in batch.spans if s.document < alike)
        apart = first > MAX_TOGETHER or bidirectional or any(s.hidden for s in batch.spans)
        return (alike if alike > 1 and not apart else 0), True
    two_ways = {s.bidirectional for s in batch.spans}
    if two_ways == {True} and len(batch.spans) == len(rows):
        longest = max(ends)
        padded = longest > MAX_PADDED and 4 * sum(ends) < 3 * longest * len(rows)
        return (0 if padded else len(rows)), False
    return (len(rows) if two_ways == {False} and first <= MAX_TOGETHER else 0), True


def to_device(numbers: np.ndarray, device: torch.device) -> Tensor:
    """Return an array on a device, without waiting for it."""
    return torch.from_numpy(np.ascontiguousarray(numbers)).to(device, non_blocking=True)


def attends_by_products(keys: Tensor) -> bool:
    """Say whether `attend_one_token` serves: on a CPU, in precisions whose products may be rounded once more."""
    return keys.device.type == "cpu" and keys.dtype in (torch.float32, torch.float64)


def attend_one_token(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Attend one query a row [B, H, d] to keys and values [B, G, L, d], with ``bias`` [B * G, 1, L]; returns [B, H, d].

    Two batched products read the cache once each, faster than scaled_dot_product_attention, which on a CPU is made for
    many queries.
    """
    groups, d = keys.shape[1], keys.shape[3]
    q = query.reshape(-1, query.shape[1] // groups, d)  # heads of one group share keys: [B * G, r, d]
    scores = torch.baddbmm(bias, q, keys.flatten(0, 1).transpose(1, 2), alpha=d**-0.5)
    return torch.bmm(scores.softmax(-1), values.flatten(0, 1)).view(query.shape)
