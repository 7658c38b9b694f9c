"""THE attention mask: one rule, and the forms that kernels want.

The rule: a token sees its own document up to itself, but for hidden spans; inside a bidirectional span it also sees
the rest of that span. A hidden span (the noised copy of an image, or diffusion tokens that nothing later may see) is
seen by its own tokens only. A document ``<bos> a < i j > c`` with a bidirectional image ``i j``, on the left; on the
right with a noised, hidden copy ``n m`` before the clean ``i j``, at the same positions::

                  keys                              keys
             bos a < i j > c                   bos a < n m i j > c
        bos   x                           bos   x
        a     x  x                        a     x  x
        <     x  x x                      <     x  x x
        i     x  x x x x                  n     x  x x x x             sees its past and itself
        j     x  x x x x                  m     x  x x x x
        >     x  x x x x x                i     x  x x     x x         the clean copy does not see the noised one
        c     x  x x x x x x              j     x  x x     x x
                                          >     x  x x     x x x       later tokens see the clean copy only
                                          c     x  x x     x x x x

The rule is written once, in `segments`: runs of queries with the key ranges that they see. The dense mask, the
FlexAttention block mask and the cuts for scaled_dot_product_attention are all made from those ranges on the host.
Token indices of keys are relative to their document, so that the same segments serve a packed batch and a KV cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.batch.spans import Span


@dataclass(frozen=True)
class Segment:
    """Queries [start, stop) of the batch, and the key ranges of their document that they see.

    ``causal``: the last range ends at each query itself, so it holds the queries' own tokens at its end.
    """

    document: int
    start: int
    stop: int
    keys: tuple[tuple[int, int], ...]
    causal: bool

    @property
    def num_queries(self) -> int:
        return self.stop - self.start


def segments(spans: Sequence[Span], prefix: Sequence[int] | None = None) -> list[Segment]:
    """Apply the rule to the spans of a batch; ``prefix[d]`` tokens of document d lie in a cache before them."""
    all_segments: list[Segment] = []
    document, offset, can_grow = -1, 0, False
    seen: list[tuple[int, int]] = []
    for span in spans:
        if span.document != document:
            document, can_grow = span.document, False
            before = prefix[document] if prefix is not None else 0
            offset, seen = before - span.start, _joined([], 0, before)
        keys = _joined(seen, offset + span.start, offset + span.stop)
        grows = can_grow and not span.bidirectional and not span.hidden
        start = all_segments.pop().start if grows else span.start
        all_segments.append(Segment(document, start, span.stop, tuple(keys), not span.bidirectional))
        can_grow = not span.bidirectional and not span.hidden
        seen = seen if span.hidden else keys
    return all_segments


def _joined(ranges: list[tuple[int, int]], low: int, high: int) -> list[tuple[int, int]]:
    """Return the ranges with [low, high) added at their end."""
    if low == high:
        return ranges
    if ranges and ranges[-1][1] == low:
        return [*ranges[:-1], (ranges[-1][0], high)]
    return [*ranges, (low, high)]


def key_ranges(found: Sequence[Segment], num_tokens: int) -> np.ndarray:
    """Return for each query the key ranges it sees in a packed batch, [T, J, 2], absolute, empty ones as (0, 0)."""
    ranges = np.zeros((num_tokens, max(len(s.keys) for s in found), 2), np.int64)
    starts = document_starts(found)
    for s in found:
        for j, (low, high) in enumerate(s.keys):
            ranges[s.start : s.stop, j] = starts[s.document] + low, starts[s.document] + high
        if s.causal:
            ranges[s.start : s.stop, len(s.keys) - 1, 1] = np.arange(s.start, s.stop) + 1
    return ranges


def document_starts(found: Sequence[Segment]) -> dict[int, int]:
    """Return the first token of each document of a packed batch."""
    starts: dict[int, int] = {}
    for s in found:
        starts.setdefault(s.document, s.start)
    return starts


@dataclass(frozen=True)
class VarlenCall:
    """One call of variable-length attention: sequences of queries, each with its own keys, without a mask.

    ``causal`` aligns the last query with the last key, as flash attention does.
    """

    causal: bool
    queries: np.ndarray
    """Tokens in order of their sequences."""
    keys: np.ndarray
    query_offsets: list[int]
    key_offsets: list[int]


def varlen_calls(found: Sequence[Segment]) -> list[VarlenCall]:
    """Cut a packed batch into at most two calls, the causal tokens and the spans that see all of themselves.

    Causal runs of a document are one sequence where later ones see nothing but earlier ones: in documents without
    bidirectional spans, and where those are hidden (Cosmos 3). Otherwise each run has its own copy of its keys.
    """
    starts = document_starts(found)
    sequences: dict[bool, list[tuple[int, np.ndarray, np.ndarray]]] = {True: [], False: []}
    for s in found:
        queries = np.arange(s.start, s.stop)
        keys = np.concatenate([np.arange(low, high) for low, high in s.keys]) + starts[s.document]
        if s.causal and sequences[True]:
            document, queries_before, keys_before = sequences[True][-1]
            if document == s.document and np.array_equal(keys[: -s.num_queries], keys_before):
                sequences[True].pop()
                queries = np.concatenate([queries_before, queries])
        sequences[s.causal].append((s.document, queries, keys))
    return [_varlen_call(causal, some) for causal, some in sequences.items() if some]


def _varlen_call(causal: bool, sequences: list[tuple[int, np.ndarray, np.ndarray]]) -> VarlenCall:
    queries, keys = [q for _, q, _ in sequences], [k for _, _, k in sequences]
    offsets = [np.cumsum([0, *map(len, side)]).tolist() for side in (queries, keys)]
    return VarlenCall(causal, np.concatenate(queries), np.concatenate(keys), *offsets)


def dense_mask(found: Sequence[Segment], num_tokens: int) -> Tensor:
    """Return the mask as booleans [T, T], true where a query (row) sees a key. For tests and images."""
    ranges = torch.from_numpy(key_ranges(found, num_tokens))
    keys = torch.arange(num_tokens)
    return ((keys >= ranges[:, :, :1]) & (keys < ranges[:, :, 1:])).any(dim=1)


@dataclass
class FlexTables:
    """What FlexAttention's block mask is made of. Shapes: T tokens, J key ranges of each, Q blocks of queries."""

    first: Tensor
    """[T, J] where each range of keys starts, and stops; empty ones at (0, 0)."""
    stop: Tensor
    partial_counts: Tensor
    """[1, 1, Q] blocks of keys of which some are seen, and which [1, 1, Q, K]; then those that are seen whole."""
    partial: Tensor
    full_counts: Tensor
    full: Tensor
    block_size: int

    def block_mask(self) -> Any:
        """Return the mask, on the tables' device."""
        from torch.nn.attention.flex_attention import BlockMask

        first, stop = self.first, self.stop
        num_tokens, num_ranges = first.shape

        def mask_mod(batch, head, query, key):
            seen = (key >= first[query, 0]) & (key < stop[query, 0])
            for j in range(1, num_ranges):
                seen = seen | ((key >= first[query, j]) & (key < stop[query, j]))
            return seen

        return BlockMask.from_kv_blocks(
            self.partial_counts, self.partial, self.full_counts, self.full, BLOCK_SIZE=self.block_size,
            mask_mod=mask_mod, seq_lengths=(num_tokens, num_tokens),
        )  # fmt: skip


def flex_tables(found: Sequence[Segment], num_tokens: int, block_size: int = 128) -> FlexTables:
    """Return the tables of FlexAttention's block mask, built from the ranges without ever forming [T, T].

    ``num_tokens`` may be more than the segments hold: tokens beyond them see nothing and are seen by nobody. A block
    of keys is full for a block of queries where every query sees all of it, partial where some query sees some of it.
    The number of ranges is padded to a power of two: the kernel is compiled again for each number.
    """
    ranges = key_ranges(found, num_tokens)
    count = ranges.shape[1]
    ranges = np.pad(ranges, ((0, 0), (0, (1 << (count - 1).bit_length()) - count), (0, 0)))
    num_blocks = -(-num_tokens // block_size)
    touched = np.zeros((num_blocks, num_blocks + 1), np.int64)
    covered = np.zeros_like(touched)
    query_block = np.arange(num_tokens) // block_size
    for j in range(ranges.shape[1]):
        low, high = ranges[:, j, 0], ranges[:, j, 1]
        some = high > low
        low, high, of = low[some], high[some], query_block[some]
        touched += _differences(of, low // block_size, -(-high // block_size), num_blocks)
        covered += _differences(of, -(-low // block_size), high // block_size, num_blocks)
    queries = np.bincount(query_block, minlength=num_blocks)
    full = np.cumsum(covered, axis=1)[:, :-1] == queries[:, None]
    partial = (np.cumsum(touched, axis=1)[:, :-1] > 0) & ~full
    first, stop = (torch.from_numpy(np.ascontiguousarray(ranges[..., i])) for i in (0, 1))
    return FlexTables(first, stop, *_listed(partial), *_listed(full), block_size)


def _differences(rows: np.ndarray, first: np.ndarray, stop: np.ndarray, num_blocks: int) -> np.ndarray:
    """Return [Q, K + 1]: one more in columns [first, stop) for each row, as differences to be summed along the row."""
    some = stop > first
    width = num_blocks + 1
    starts, ends = (np.bincount(rows[some] * width + at[some], minlength=num_blocks * width) for at in (first, stop))
    return (starts - ends).reshape(num_blocks, width)


def _listed(blocks: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the number of true entries in each row and their columns first, [1, 1, Q] and [1, 1, Q, K]."""
    order = np.argsort(~blocks, axis=1, kind="stable").astype(np.int32)
    count = blocks.sum(axis=1).astype(np.int32)
    return torch.from_numpy(count)[None, None], torch.from_numpy(order)[None, None]
