"""Global attention over the packed sequence: the kernels behind one `attend`.

On CUDA, variable-length flash attention where that needs few copies of keys and the precision is 16 bits,
FlexAttention with a block mask built once a step elsewhere. On a CPU, one operation that attends segment by segment; on
other devices, scaled_dot_product_attention on each segment's own keys. So documents never cost the square of the
packed length.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.batch.batch import Batch
from plait.model.mask import FlexTables, Segment, VarlenCall, document_starts, flex_tables, segments, varlen_calls
from plait.model.segment_attention import segment_attention, table_of

MAX_KEYS = 2
"""Most keys for each token, with copies, that variable-length attention is given; FlexAttention copies none."""

FLEX_STEP = 1024
"""FlexAttention runs on sequences padded to a multiple of this at least (`flex_length`)."""
MOST_GRAPHS = 64
"""Kinds of batches that a function is compiled for. Beyond torch's own limit of 8 it would run FlexAttention unfused,
on all of [T, T], and refuse a block: lengths and ranges of keys are more, each with gradients and without."""
SHORT = (torch.bfloat16, torch.float16)
"""Precisions that variable-length attention takes."""


@dataclass
class Varlen:
    """One call of variable-length attention, as tensors."""

    causal: bool
    alone: bool
    """Whether queries and keys are all tokens in their order, so that none has to be picked."""
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
    """What one batch's attention needs, made from its segments once a step: on the host, where the loader can do it."""

    segments: list[Segment]
    made_for: tuple[str, bool]
    """The kind of device, and whether what is attended has 16 bits."""
    table: Tensor | None = None
    """The segments as a CPU's operation wants them."""
    flex: FlexTables | None = None
    mask: Any = None
    """The BlockMask of ``flex``, on the device (`ready`)."""
    varlen: list[Varlen] | None = None
    varlen_order: Tensor | None = None
    """[T]: the place of each token among the queries of all calls."""

    @classmethod
    def of(
        cls, segments: list[Segment], num_tokens: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> "AttentionPlan":
        """Plan the attention of a batch for a device; ``dtype`` is the precision of what will be attended.

        The plan's tensors are on the host: `each_tensor` sends them, `ready` makes what only the device can hold.
        """
        made_for = _made_for(device, dtype)
        if device.type == "cpu":
            return cls(segments, made_for, table=table_of(segments))
        if device.type != "cuda":
            return cls(segments, made_for)
        if dtype in SHORT and varlen_attention() is not None:
            calls = varlen_calls(segments)
            if sum(len(call.keys) for call in calls) <= MAX_KEYS * num_tokens:
                return cls.by_varlen(segments, calls, made_for)
        return cls(segments, made_for, flex=flex_tables(segments, flex_length(num_tokens)))

    @classmethod
    def by_varlen(
        cls, segments: list[Segment], calls: list[VarlenCall], made_for: tuple[str, bool] = ("cuda", True)
    ) -> "AttentionPlan":
        """Plan the calls of variable-length attention."""

        def tensor(values, dtype=np.int64) -> Tensor:
            return torch.from_numpy(np.asarray(values, dtype))

        order = np.argsort(np.concatenate([call.queries for call in calls]))
        tokens = np.arange(len(order))
        varlen = [
            Varlen(call.causal, np.array_equal(call.queries, tokens) and np.array_equal(call.keys, tokens),
                   tensor(call.queries), tensor(call.keys), tensor(call.query_offsets, np.int32),
                   tensor(call.key_offsets, np.int32), _bound(call.query_offsets), _bound(call.key_offsets))
            for call in calls
        ]  # fmt: skip
        return cls(segments, made_for, varlen=varlen, varlen_order=tensor(order))

    def each_tensor(self, change: Callable[[Tensor], Tensor]) -> "AttentionPlan":
        """Return the plan with every tensor changed: pinned, or sent to a device."""

        def changed(part: Any) -> Any:
            tensors = {name: change(value) for name, value in vars(part).items() if isinstance(value, Tensor)}
            return replace(part, **tensors)

        plan: AttentionPlan = changed(self)
        plan.flex = changed(self.flex) if self.flex else None
        plan.varlen = [changed(call) for call in self.varlen] if self.varlen else None
        return plan

    def to(self, device: torch.device) -> "AttentionPlan":
        """Return the plan with its tensors on a device."""
        return self.each_tensor(lambda t: t.to(device, non_blocking=True))

    def ready(self) -> "AttentionPlan":
        """Return the plan with what is made of its tensors on the device."""
        return self if self.flex is None or self.mask is not None else replace(self, mask=self.flex.block_mask())

    def sizes_that_change(self) -> list[Tensor]:
        """Return the tensors whose first dimension differs from batch to batch, for a compiler."""
        calls = [t for c in self.varlen or [] for t in (c.queries, c.keys, c.query_offsets, c.key_offsets)]
        return [t for t in (self.table, self.varlen_order, *calls) if t is not None]


def plan_for(batch: Batch, device: torch.device, dtype: torch.dtype) -> AttentionPlan:
    """Return the plan that came with a batch where it fits the device and the precision, else a new one."""
    plan: AttentionPlan | None = batch.attention
    if plan is None or plan.made_for != _made_for(device, dtype):
        plan = new_plan(batch, device, dtype).to(device)
    return plan.ready()


def new_plan(batch: Batch, device: torch.device, dtype: torch.dtype) -> AttentionPlan:
    """Plan the attention of a whole batch, on the host."""
    return AttentionPlan.of(segments(batch.spans), batch.num_tokens, device, dtype)


def _made_for(device: torch.device, dtype: torch.dtype) -> tuple[str, bool]:
    return device.type, device.type == "cuda" and dtype in SHORT


def flex_length(num_tokens: int) -> int:
    """Return the length that a sequence is padded to: four for each doubling, so that a kernel compiles for few."""
    step = max(FLEX_STEP, (1 << (num_tokens - 1).bit_length()) // 8)
    return -(-num_tokens // step) * step


def _bound(offsets: list[int]) -> int:
    return 1 << (int(np.diff(offsets).max()) - 1).bit_length()


def attend(query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan) -> Tensor:
    """Attend within the batch: query [T, H, d], key and value [T, G, d] with G dividing H. Returns [T, H, d]."""
    if plan.varlen is not None:
        return _varlen(query.to(value.dtype), key.to(value.dtype), value, plan)
    if plan.flex is not None:
        return _flex(query.to(value.dtype), key.to(value.dtype), value, plan.mask)
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
        q, k, v = (
            x if call.alone else x.index_select(0, i)
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


def allow_graphs() -> None:
    """Let torch compile a function for `MOST_GRAPHS` kinds of batches."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)


@functools.cache
def _compiled_flex():
    from torch.nn.attention.flex_attention import flex_attention

    if not torch.compiler.is_compiling():
        allow_graphs()
    return torch.compile(flex_attention, dynamic=False)


def _flex(query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
    n = query.shape[0]
    missing = mask.seq_lengths[0] - n
    q, k, v = (F.pad(x, (0, 0, 0, 0, 0, missing)).transpose(0, 1).unsqueeze(0) for x in (query, key, value))
    out = _compiled_flex()(q, k, v, block_mask=mask, enable_gqa=query.shape[1] != key.shape[1])
    return out.squeeze(0).transpose(0, 1)[:n]
