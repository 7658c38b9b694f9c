"""The KV cache of generation: preallocated, one slot a row, rows of different lengths."""

import torch
from torch import Tensor

from plait.batch import Batch
from plait.model.attention import attend_rows, attend_segments
from plait.model.mask import Segment, segments

MAX_TOGETHER = 32
"""Most new tokens a row that one masked call attends; longer prompts go segment by segment."""


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

    def step(self, batch: Batch, rows: list[int]) -> "CacheStep":
        """Return the plan of a forward pass that appends the batch's documents to these rows."""
        return CacheStep(self, batch, rows)


class CacheStep:
    """One forward pass through the cache: where new keys go, and what each query sees."""

    def __init__(self, cache: KVCache, batch: Batch, rows: list[int]):
        self.cache, self.rows = cache, rows
        prefix = [cache.lengths[r] for r in rows]
        ends = [p + n for p, n in zip(prefix, batch.lengths, strict=True)]
        assert max(ends) <= cache.max_length, f"the cache holds {cache.max_length} tokens a row, {max(ends)} needed"
        device = cache.keys.device
        row_of = [r for r, n in zip(rows, batch.lengths) for _ in range(n)]
        slot_of = [p + i for p, n in zip(prefix, batch.lengths) for i in range(n)]
        self.row_of, self.slot_of = torch.tensor(row_of, device=device), torch.tensor(slot_of, device=device)
        self.ends, self.longest, self.num_new = ends, max(ends), batch.lengths[0]
        self.visible = None
        if self._is_uniform(batch):
            slots = torch.tensor(slot_of, device=device).view(-1, self.num_new, 1)
            self.visible = torch.arange(self.longest, device=device) <= slots
        else:
            self.segments = segments(batch.spans, prefix)

    def _is_uniform(self, batch: Batch) -> bool:
        """Whether all rows from the first on get the same few causal tokens, so that one call serves them all."""
        few = self.num_new <= MAX_TOGETHER and all(n == self.num_new for n in batch.lengths)
        return few and self.rows == list(range(len(self.rows))) and not any(s.bidirectional for s in batch.spans)

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
        """Count the new tokens: the forward pass is done."""
        for row, end in zip(self.rows, self.ends, strict=True):
            self.cache.lengths[row] = end
