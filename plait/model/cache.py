"""The KV cache of generation: preallocated, one slot a row, rows of different lengths."""

import numpy as np
import torch
from torch import Tensor

from plait.batch import Batch
from plait.model.attention import attend_rows, attend_segments
from plait.model.mask import Segment, segments

MAX_TOGETHER = 32
"""Most new tokens a row that one masked call attends; longer prompts go segment by segment."""

MAX_PADDED = 512
"""Rows of latents longer than this go one by one where a masked call of all would be more than a quarter padding."""


class KVCache:
    """Keys and values of up to ``num_rows`` sequences of up to ``max_length`` tokens, for every layer.

    Rows in use are the first ``len(lengths)`` ones; dropping a row moves the last one into its place, so that a step
    reads one slice and copies nothing.
    """

    def __init__(self, num_layers: int, num_rows: int, max_length: int, num_kv_heads: int, head_dim: int, *,
                 device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):  # fmt: skip
        shape = (num_layers, num_rows, max_length, num_kv_heads, head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.max_length = max_length
        self.lengths: list[int] = []

    def add_row(self) -> int:
        """Take a free row and return its number."""
        self.lengths.append(0)
        return len(self.lengths) - 1

    def drop_row(self, row: int) -> None:
        """Free a row; the last row takes its number."""
        last = len(self.lengths) - 1
        length = self.lengths.pop()
        if row != last:
            self.keys[:, row, :length] = self.keys[:, last, :length]
            self.values[:, row, :length] = self.values[:, last, :length]
            self.lengths[row] = length

    def spread(self, row: int, count: int) -> list[int]:
        """Copy one row into ``count`` rows in all, its own included, and return their numbers."""
        length = self.lengths[row]
        copies = [self.add_row() for _ in range(count - 1)]
        if copies:
            for side in (self.keys, self.values):
                side[:, copies[0] : copies[-1] + 1, :length] = side[:, row : row + 1, :length]
        for copy in copies:
            self.lengths[copy] = length
        return [row, *copies]

    def truncate(self, length: int) -> None:
        """Forget what any row holds beyond ``length`` tokens."""
        self.lengths = [min(n, length) for n in self.lengths]

    def step(self, batch: Batch, rows: list[int], *, passing: list[int] | None = None) -> "CacheStep":
        """Return the plan of a forward pass that appends the batch's documents to these rows.

        The last ``passing[d]`` tokens of document d are seen in this pass only and not kept: latents under denoising,
        which come again at the next noise level.
        """
        return CacheStep(self, batch, rows, passing or [0] * len(rows))


class CacheStep:
    """One forward pass through the cache: where new keys go, and what each query sees."""

    def __init__(self, cache: KVCache, batch: Batch, rows: list[int], passing: list[int]):
        self.cache, self.rows, self.passing = cache, rows, passing
        prefix = [cache.lengths[r] for r in rows]
        self.ends = [p + n for p, n in zip(prefix, batch.lengths, strict=True)]
        self.longest, self.num_new = max(self.ends), batch.lengths[0]
        needed = f"the cache holds {cache.max_length} tokens a row, {self.longest} needed"
        assert self.longest <= cache.max_length, needed
        device = cache.keys.device
        new = np.array(batch.lengths)
        slot_of = np.arange(new.sum()) + np.repeat(np.array(prefix) - (np.cumsum(new) - new), new)
        self.row_of = torch.from_numpy(np.repeat(np.array(rows), new)).to(device, non_blocking=True)
        self.slot_of = torch.from_numpy(slot_of).to(device, non_blocking=True)
        self.visible = None
        kind = self._uniform(batch)
        if kind == "causal":
            slots = self.slot_of.view(-1, self.num_new, 1)
            self.visible = torch.arange(self.longest, device=device) <= slots
        elif kind == "bidirectional":
            ends = torch.tensor(self.ends, device=device)[:, None, None]
            self.visible = torch.arange(self.longest, device=device) < ends
        else:
            self.segments = segments(batch.spans, prefix)

    def _uniform(self, batch: Batch) -> str:
        """Return "causal" or "bidirectional" where one masked call serves all rows, which get equally many tokens."""
        alike = all(n == self.num_new for n in batch.lengths) and self.rows == list(range(len(self.rows)))
        two_ways = {s.bidirectional for s in batch.spans}
        if not alike or len(two_ways) > 1:
            return ""
        if two_ways == {True}:
            padded = self.longest > MAX_PADDED and 4 * sum(self.ends) < 3 * self.longest * len(self.rows)
            return "bidirectional" if len(batch.spans) == len(self.rows) and not padded else ""
        return "causal" if self.num_new <= MAX_TOGETHER and not any(s.hidden for s in batch.spans) else ""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Write the new keys and values [T, G, d] of a layer, and attend the queries [T, H, d] to their rows."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        query = query.to(keys.dtype)
        keys.index_put_((self.row_of, self.slot_of), key.to(keys.dtype))
        values.index_put_((self.row_of, self.slot_of), value.to(values.dtype))
        if self.visible is not None:
            n, length = len(self.rows), self.longest
            rows = query.unflatten(0, (n, self.num_new))
            return attend_rows(rows, keys[:n, :length], values[:n, :length], self.visible).flatten(0, 1)

        def keys_of(s: Segment, low: int, high: int) -> tuple[Tensor, Tensor]:
            row = self.rows[s.document]
            return keys[row, low:high], values[row, low:high]

        return attend_segments(query, self.segments, keys_of)

    def commit(self) -> None:
        """Count the new tokens that are kept: the forward pass is done."""
        for row, end, passing in zip(self.rows, self.ends, self.passing, strict=True):
            self.cache.lengths[row] = end - passing
