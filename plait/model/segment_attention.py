"""Attention by segments on a CPU: one operation for all segments of a layer, forward and backward.

Each segment runs torch's own flash kernel on its own keys, with no mask but where a causal run follows earlier keys;
those of the same sizes run together. As one operation it has one node in the graph of gradients, where segments in
plain torch have a dozen each, and a compiler sees one opaque call whatever the documents: no graph break, and no
recompilation when they change.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plait.model.mask import Segment, document_starts

PIECE = 128
"""Most queries of a causal run that go through the kernel together: it does the work of all keys that some query of
theirs sees, so that shorter pieces save up to half of it."""
LONG = 2048
"""Queries from which a causal run without earlier keys goes through whole: the kernel's own cuts are as good then."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def table_of(segments: Sequence[Segment]) -> Tensor:
    """Return the segments as integers [S, 3 + 2 J]: start, stop, causal, then J ranges of keys in the batch.

    Causal ones are cut into pieces of at most `PIECE` queries, each with the keys up to its own end, but for `LONG`
    ones. Unused ranges are empty, and so is the last row: a compiler treats sizes of 1 as different from all others.
    """
    starts = document_starts(segments)
    rows = []
    for s in segments:
        *earlier, (low, high) = [(low + starts[s.document], high + starts[s.document]) for low, high in s.keys]
        whole = not s.causal or (s.num_queries >= LONG and s.keys == ((0, s.num_queries),))
        step = s.num_queries if whole else PIECE
        for start in range(s.start, s.stop, step):
            stop = min(start + step, s.stop)
            keys = [*earlier, (low, high - (s.stop - stop))]
            rows.append([start, stop, s.causal, *(edge for both in keys for edge in both)])
    table = np.zeros((len(rows) + 1, max(map(len, rows))), np.int64)
    for row, values in zip(table, rows, strict=False):
        row[: len(values)] = values
    return torch.from_numpy(table)


@torch.library.custom_op("plait::segment_attention", mutates_args=(), device_types="cpu")
def segment_attention(query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Attend query, key and value [T, H, d] by the segments of ``table``; returns [T, H, d] and log Z [T, H]."""
    plan = _plan_of(table)
    outs, log_zs = [], []
    for group, q in zip(plan.groups, plan.pieces(query), strict=True):
        causal, mask = group.causal_or_mask(query)
        o, z = _flash(q, group.of_keys(key), group.of_keys(value), 0.0, causal, attn_mask=mask)
        outs.append(_joined(o))
        log_zs.append(_joined(z))
    return torch.cat(outs).index_select(0, plan.back), torch.cat(log_zs).index_select(0, plan.back)


@segment_attention.register_fake
def _(query, key, value, table):
    dtype = torch.promote_types(query.dtype, torch.float32)
    return torch.empty_like(query), query.new_empty(query.shape[:2], dtype=dtype)


@torch.library.custom_op("plait::segment_attention_backward", mutates_args=(), device_types="cpu")
def segment_attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, log_z: Tensor, table: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value [T, H, d]."""
    plan = _plan_of(table)
    for_queries, for_key, for_value = [], torch.zeros_like(key), torch.zeros_like(value)
    for group, g, q, o, z in zip(plan.groups, *map(plan.pieces, (gradient, query, out, log_z)), strict=True):
        causal, mask = group.causal_or_mask(query)
        inputs = (g, q, group.of_keys(key), group.of_keys(value), o, z)
        for_q, for_k, for_v = map(_joined, _flash_backward(*inputs, 0.0, causal, attn_mask=mask))
        for_queries.append(for_q)
        for_key.index_add_(0, group.keys, for_k.contiguous())  # in bfloat16 a strided source takes far longer
        for_value.index_add_(0, group.keys, for_v.contiguous())
    return torch.cat(for_queries).index_select(0, plan.back), for_key, for_value


@segment_attention_backward.register_fake
def _(gradient, query, key, value, out, log_z, table):
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:3], *output, inputs[3])
    ctx.set_materialize_grads(False)


def _gradients(ctx, for_out: Tensor, for_log_z: None) -> tuple[Tensor, Tensor, Tensor, None]:
    return *segment_attention_backward(for_out.contiguous(), *ctx.saved_tensors), None


segment_attention.register_autograd(_gradients, setup_context=_keep)


@dataclass(frozen=True)
class _Group:
    """Segments of the same sizes, which go through the kernel together."""

    count: int
    num_queries: int
    causal: bool
    keys: Tensor
    """Places [count m] of their keys, one segment after another; gathered group by group, as they can be many more than
    the tokens of a batch: each piece of a causal run has all keys before it."""

    def of_keys(self, x: Tensor) -> Tensor:
        """Return the rows of [T, H, d] at its keys, as [count, H, m, d]."""
        return x.index_select(0, self.keys).unflatten(0, (self.count, -1)).transpose(1, 2)

    def causal_or_mask(self, like: Tensor) -> tuple[bool, Tensor | None]:
        """Return how the kernel is told what is causal: its own way, which is aligned to the first key, or a mask."""
        n, m = self.num_queries, len(self.keys) // self.count
        if self.causal and m > n:
            return False, like.new_full((n, m), float("-inf")).triu(m - n + 1)
        return self.causal, None


@dataclass(frozen=True)
class _Plan:
    """The segments of a table by their sizes, and the places [T] of their queries, group after group."""

    groups: tuple[_Group, ...]
    queries: Tensor
    back: Tensor
    """Where in ``queries`` each token of the batch is."""

    def pieces(self, x: Tensor) -> Iterator[Tensor]:
        """Yield for each group the rows of [T, H, d] (or [T, H]) at its queries, as [count, H, n, d]."""
        sizes = [group.count * group.num_queries for group in self.groups]
        for group, piece in zip(self.groups, x.index_select(0, self.queries).split(sizes), strict=True):
            yield piece.unflatten(0, (group.count, -1)).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    """Return [count, H, n, d] as rows [count n, H, d]."""
    return x.transpose(1, 2).flatten(0, 1)


def _plan_of(table: Tensor) -> _Plan:
    return _planned(table.numpy().tobytes(), table.shape[1])


@functools.lru_cache(maxsize=16)  # a batch's table is asked for in every layer, forward and backward
def _planned(table: bytes, width: int) -> _Plan:
    by_size: dict[tuple[int, int, bool], tuple[list[np.ndarray], list[np.ndarray]]] = {}
    for start, stop, causal, *bounds in np.frombuffer(table, np.int64).reshape(-1, width)[:-1].tolist():
        keys = [np.arange(low, high) for low, high in zip(bounds[::2], bounds[1::2], strict=True) if high > low]
        n, m = stop - start, sum(map(len, keys))
        of_queries, of_keys = by_size.setdefault((n, m, bool(causal) and n > 1), ([], []))
        of_queries.append(np.arange(start, stop))
        of_keys += keys
    groups = tuple(
        _Group(len(of_queries), n, causal, torch.from_numpy(np.concatenate(of_keys)))
        for (n, _, causal), (of_queries, of_keys) in by_size.items()
    )
    queries = np.concatenate([x for of_queries, _ in by_size.values() for x in of_queries])
    return _Plan(groups, torch.from_numpy(queries), torch.from_numpy(np.argsort(queries)))
