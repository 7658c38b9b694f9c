"""The paged KV cache: rows take small pages as they grow, and share those of what they have in common.

As in vLLM's PagedAttention (arXiv 2309.06180), but that the pages of a step's rows are copied side by side before they
are attended: any kernel serves, at the cost of that copy.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from plait.common.errors import ResourceError
from plait.model.cache import KVCache, to_device


class PagedKVCache(KVCache):
    """Keys and values of up to ``num_rows`` sequences of up to ``max_length`` tokens, in ``num_pages`` pages in all.

    Only full pages are shared. The page that a row writes next is its own, so nothing that is shared ever changes.
    """

    def __init__(self, num_layers: int, num_rows: int, max_length: int, num_kv_heads: int, head_dim: int, *,
                 page_size: int, num_pages: int, device: torch.device | str = "cpu",
                 dtype: torch.dtype = torch.float32):  # fmt: skip
        self.max_length, self.num_rows = max_length, num_rows
        self._allocate((num_layers, num_pages, num_kv_heads, page_size, head_dim), device, dtype)
        self.table = np.zeros((num_rows, self.pages_for(max_length)), np.int64)
        self.held: list[int] = []
        self.free = list(reversed(range(num_pages)))
        self.users = np.zeros(num_pages, np.int64)
        """How many rows hold each page."""

    @classmethod
    def beside(cls, cache: KVCache, max_length: int, *, page_size: int, num_tokens: int = 0) -> "PagedKVCache":
        """Return a paged cache for the rows of another, of ``num_tokens`` in all (0: whole rows for everyone)."""
        layers, _, heads, _, head_dim = cache.keys.shape
        pages = -(-num_tokens // page_size) or cache.num_rows * -(-max_length // page_size)
        return cls(layers, cache.num_rows, max_length, heads, head_dim, page_size=page_size, num_pages=pages,
                   device=cache.keys.device, dtype=cache.keys.dtype)  # fmt: skip

    def grow(self, num_rows: int, max_length: int, num_pages: int = 0) -> bool:
        """Make room for as many rows of as many tokens, and as many pages in all; say whether pages were added."""
        self.num_rows, self.max_length = max(num_rows, self.num_rows), max(max_length, self.max_length)
        table = np.zeros((self.num_rows, self.pages_for(self.max_length)), np.int64)
        table[: self.table.shape[0], : self.table.shape[1]] = self.table
        self.table = table
        if num_pages <= self.num_pages:
            return False
        self.free = [*reversed(range(self.num_pages, num_pages)), *self.free]
        self.users = np.pad(self.users, (0, num_pages - self.num_pages))
        self._move(num_pages, self.page_size)
        return True

    def add_row(self) -> int:
        row = super().add_row()
        self.held.append(0)
        return row

    def drop_row(self, row: int) -> None:
        self._keep(row, 0)
        last = len(self.lengths) - 1
        self.table[row] = self.table[last]
        self.table[last] = 0
        self.held[row], self.lengths[row] = self.held[last], self.lengths[last]
        self.held.pop()
        self.lengths.pop()

    def spread(self, row: int, count: int, length: int | None = None) -> list[int]:
        length = self.lengths[row] if length is None else length
        copies = [self.add_row() for _ in range(count - 1)]
        for copy in copies:
            self.share(copy, row, length)
        return [row, *copies]

    def share(self, row: int, other: int, length: int) -> None:
        full, tail = divmod(length, self.page_size)
        shared = self.table[other, :full]
        self.table[row, :full] = shared
        self.users[shared] += 1
        self.held[row], self.lengths[row] = full, length
        if tail:
            self._take(row, 1)
            self._copy_page(self.table[other, full], self.table[row, full])

    def cut(self, row: int, length: int) -> None:
        if self.lengths[row] <= length:
            return
        self._keep(row, -(-length // self.page_size))
        self.lengths[row] = length
        tail = self.held[row] - 1
        if length % self.page_size and self.users[self.table[row, tail]] > 1:  # it will be written to
            page = self.table[row, tail]
            self._keep(row, tail)
            self._take(row, 1)
            self._copy_page(page, self.table[row, tail])

    def _keep(self, row: int, count: int) -> None:
        """Let go of a row's pages beyond the first ``count``."""
        dropped = self.table[row, count : self.held[row]]
        self.users[dropped] -= 1
        self.free += [int(page) for page in dropped if not self.users[page]]
        self.table[row, count:] = 0
        self.held[row] = min(count, self.held[row])

    def _take(self, row: int, count: int) -> None:
        if count > len(self.free):
            raise ResourceError(
                f"the cache's {self.num_pages} pages of {self.page_size} tokens are all in use; drop a row, or make a "
                "larger cache"
            )
        for _ in range(count):
            page = self.free.pop()
            self.users[page] = 1
            self.table[row, self.held[row]] = page
            self.held[row] += 1

    def _copy_page(self, page: int, to: int) -> None:
        for side in (self.keys, self.values):
            side[:, to] = side[:, page]

    @property
    def num_free(self) -> int:
        return len(self.free)

    def num_held(self, row: int) -> int:
        return self.held[row]

    def reserve(self, rows: Sequence[int], ends: Sequence[int]) -> None:
        """Give rows the pages that hold these numbers of tokens; raises ResourceError where there are too few."""
        super().reserve(rows, ends)
        for row, end in zip(rows, ends, strict=True):
            missing = self.pages_for(end) - self.held[row]
            if missing > 0:
                self._take(row, missing)

    def tables(self, num_rows: int, longest: int) -> np.ndarray | None:
        return self.table[:num_rows, : self.pages_for(longest)]

    def window(self, layer: int, num_rows: int, longest: int, table: Tensor | None) -> tuple[Tensor, Tensor]:
        heads = (side[layer].flatten(0, 1).index_select(0, table) for side in (self.keys, self.values))
        keys, values = (h.view(num_rows, self.num_heads, -1, h.shape[-1]) for h in heads)
        return keys, values

    def locate(self, row: int, end: int) -> Tensor:
        return to_device(self.table[row, : self.pages_for(end)], self.keys.device)

    def span(self, layer: int, where: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
        first, last = low // self.page_size, self.pages_for(high)
        start = first * self.page_size
        sides = (side[layer].index_select(0, where[first:last]).transpose(1, 2) for side in (self.keys, self.values))
        keys, values = (side.flatten(0, 1)[low - start : high - start] for side in sides)
        return keys, values
