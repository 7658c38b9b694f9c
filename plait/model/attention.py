"""Global attention over the packed sequence: the kernels behind one `attend`.

On CUDA, variable-length flash attention where that needs few copies of keys and the precision is 16 bits,
FlexAttention with a block mask built once a step elsewhere. On a CPU, one operation that attends segment by segment; on
other devices, scaled_dot_product_attention on each segment's own keys. So documents never cost the square of the
packed length.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.model.mask import Segment, VarlenCall, block_mask, document_starts, varlen_calls
from plait.model.segment_attention import segment_attention, table_of

MAX_KEYS = 2
"""Most keys for each token, with copies, that variable-length attention is given; FlexAttention copies none."""

FLEX_STEP = 1024
"""FlexAttention runs on sequences padded to a multiple of this, so that it compiles for a few lengths only."""


@dataclass
class Varlen:
    """One call of variable-length attention, on the device."""

    causal: bool
    queries: Tensor
    """The tokens of its queries [n], and of its keys [m], sequence after sequence."""
    keys: Tensor
    query_offsets: Tensor
    """Where each sequence starts [S + 1], int32."""
    key_offsets: Tensor
    most_queries: int
    """At least the length of the longest sequence; a power of two, so that a compiler sees few of them."""
    most_keys: int


@dataclass
class AttentionPlan:
    """What one batch's attention needs, made once a step from its segments."""

    segments: list[Segment]
    table: Tensor | None = None
    """The segments as a CPU's operation wants them."""
    flex: Any = None
    varlen: list[Varlen] | None = None
    varlen_order: Tensor | None = None
    """[T]: the place of each token among the queries of all calls."""

    @classmethod
    def of(
        cls, segments: list[Segment], num_tokens: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> "AttentionPlan":
        """Plan the attention of a batch on a device; ``dtype`` is the precision of what will be attended."""
        if device.type == "cpu":
            return cls(segments, table=table_of(segments))
        if device.type != "cuda":
            return cls(segments)
        if dtype in (torch.bfloat16, torch.float16) and varlen_attention() is not None:
            calls = varlen_calls(segments)
            if sum(len(call.keys) for call in calls) <= MAX_KEYS * num_tokens:
                return cls.by_varlen(segments, calls, device)
        return cls(segments, flex=block_mask(segments, -(-num_tokens // FLEX_STEP) * FLEX_STEP, device))

    @classmethod
    def by_varlen(cls, segments: list[Segment], calls: list[VarlenCall], device: torch.device) -> "AttentionPlan":
        """Plan the calls of variable-length attention."""

        def sent(values, dtype=np.int64) -> Tensor:
            return torch.from_numpy(np.asarray(values, dtype)).to(device, non_blocking=True)

        varlen = [
            Varlen(call.causal, sent(call.queries), sent(call.keys), sent(call.query_offsets, np.int32),
                   sent(call.key_offsets, np.int32), _bound(call.query_offsets), _bound(call.key_offsets))
            for call in calls
        ]  # fmt: skip
        order = np.argsort(np.concatenate([call.queries for call in calls]))
        return cls(segments, varlen=varlen, varlen_order=sent(order))


def _bound(offsets: list[int]) -> int:
    return 1 << (int(np.diff(offsets).max()) - 1).bit_length()


def attend(query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan) -> Tensor:
    """Attend within the batch: query [T, H, d], key and value [T, G, d] with G dividing H. Returns [T, H, d]."""
    if plan.varlen is not None:
        return _varlen(query.to(value.dtype), key.to(value.dtype), value, plan)
    if plan.flex is not None:
        return _flex(query.to(value.dtype), key.to(value.dtype), value, plan.flex)
    # queries and keys come from the rotation in float32 and stay so under autocast: on a CPU the backward of short
    # documents is faster than in bfloat16 (docs/experiments.md)
    value = value.to(query.dtype)
    if plan.table is not None:
        return segment_attention(query, _expand(key, query), _expand(value, query), plan.table)[0]
    starts = document_starts(plan.segments)

    def keys_of(s: Segment, low: int, high: int) -> tuple[Tensor, Tensor]:
        rows = slice(starts[s.document] + low, starts[s.document] + high)
        return key[rows], value[rows]

    return attend_segments(query, plan.segments, keys_of)


@functools.cache
def varlen_attention() -> Callable | None:
    """Return torch's variable-length flash attention, if this torch has it with the arguments used here (2.11 on)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in inspect.signature(varlen_attn).parameters else None


def _varlen(query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan) -> Tensor:
    kernel = varlen_attention()
    assert kernel is not None and plan.varlen is not None and plan.varlen_order is not None
    key, value = _expand(key, query), _expand(value, query)
    pieces = []
    for call in plan.varlen:
        alone = call.keys.shape == call.queries.shape == query.shape[:1]  # then both are all tokens in their order
        q, k, v = (
            x if alone else x.index_select(0, i)
            for x, i in zip((query, key, value), (call.queries, call.keys, call.keys), strict=True)
        )
        window = (-1, 0) if call.causal else (-1, -1)
        pieces.append(
            kernel(q, k, v, call.query_offsets, call.key_offsets, call.most_queries, call.most_keys, window_size=window)
        )
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces).index_select(0, plan.varlen_order)


def attend_segments(
    query: Tensor, segments: list[Segment], keys_of: Callable[[Segment, int, int], tuple[Tensor, Tensor]]
) -> Tensor:
    """Attend segment by segment; ``keys_of`` returns keys and values [n, G, d] of a document's range."""
    pieces = []
    for s, q in zip(segments, query.split([s.num_queries for s in segments]), strict=True):
        ranges = [keys_of(s, low, high) for low, high in s.keys]
        keys, values = ranges[0] if len(ranges) == 1 else (torch.cat(side) for side in zip(*ranges, strict=True))
        pieces.append(_attend_one(q, keys, values, causal=s.causal))
    return torch.cat(pieces)


def _attend_one(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """Attend n queries [n, H, d] to m keys [m, G, d]; if causal, the last n keys are the queries' own tokens."""
    n, m = query.shape[0], key.shape[0]
    causal = causal and n > 1
    mask = None
    if causal and m > n:  # torch's own causal mask is aligned to the first key
        mask = torch.ones(n, m, dtype=torch.bool, device=query.device).tril(m - n)
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query, _expand(key, query), _expand(value, query)))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and mask is None)
    return out.squeeze(0).transpose(0, 1)


def _expand(x: Tensor, query: Tensor) -> Tensor:
    """Repeat key or value heads [n, G, d] to the number of query heads."""
    repeats = query.shape[1] // x.shape[1]
    return x if repeats == 1 else x.repeat_interleave(repeats, dim=1)


def attend_rows(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    """Attend n queries a row to the row's cached keys, all rows at once.

    query [B, n, H, d], keys and values [B, L, G, d], visible [B, n, L], or [B, 1, L] where a row's queries see the
    same. Returns [B, n, H, d].
    """
    heads, groups, n = query.shape[2], keys.shape[2], query.shape[1]
    # the heads of one group share keys: they stand in one row of queries, so that the cache is not copied
    q = query.unflatten(2, (groups, heads // groups)).transpose(1, 2).flatten(2, 3)  # B G n*r d
    mask = visible[:, None] if visible.shape[1] == 1 else visible.repeat_interleave(heads // groups, dim=1)[:, None]
    out = F.scaled_dot_product_attention(q, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask)
    return out.unflatten(2, (n, heads // groups)).transpose(1, 2).flatten(2, 3)


@functools.cache
def _compiled_flex():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _flex(query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
    n = query.shape[0]
    missing = mask.seq_lengths[0] - n
    q, k, v = (F.pad(x, (0, 0, 0, 0, 0, missing)).transpose(0, 1).unsqueeze(0) for x in (query, key, value))
    out = _compiled_flex()(q, k, v, block_mask=mask, enable_gqa=query.shape[1] != key.shape[1])
    return out.squeeze(0).transpose(0, 1)[:n]
