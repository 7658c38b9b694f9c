"""Attention by segments on a CPU: one operation for all segments of a layer, forward and backward.

Each segment runs torch's own flash kernel on its own keys, with no mask but where a causal run follows earlier keys;
those of the same sizes run together. As one operation it has one node in the graph of gradients, where segments in
plain torch have a dozen each, and a compiler sees one opaque call whatever the documents: no graph break, and no
recompilation when they change.
"""

import functools
from collections.abc import Iterator, Sequence

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
    out = torch.empty_like(query)
    log_z = query.new_empty(query.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32))
    for rows, columns, count, causal, mask in _groups(table, query):
        inputs = (_items(query, rows, count), _items(key, columns, count), _items(value, columns, count))
        o, z = _flash(*inputs, 0.0, causal, attn_mask=mask)
        out[rows], log_z[rows] = o.transpose(1, 2).flatten(0, 1), z.transpose(1, 2).flatten(0, 1)
    return out, log_z


@segment_attention.register_fake
def _(query, key, value, table):
    dtype = torch.promote_types(query.dtype, torch.float32)
    return torch.empty_like(query), query.new_empty(query.shape[:2], dtype=dtype)


@torch.library.custom_op("plait::segment_attention_backward", mutates_args=(), device_types="cpu")
def segment_attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, log_z: Tensor, table: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value [T, H, d]."""
    for_query, for_key, for_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    for rows, columns, count, causal, mask in _groups(table, query):
        own = ((gradient, rows), (query, rows), (key, columns), (value, columns), (out, rows))
        z = log_z[rows].unflatten(0, (count, -1)).transpose(1, 2)
        gradients = _flash_backward(*(_items(x, at, count) for x, at in own), z, 0.0, causal, attn_mask=mask)
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in gradients)
        for_query[rows] = q
        for_key.index_add_(0, columns, k)
        for_value.index_add_(0, columns, v)
    return for_query, for_key, for_value


@segment_attention_backward.register_fake
def _(gradient, query, key, value, out, log_z, table):
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:3], *output, inputs[3])
    ctx.set_materialize_grads(False)


def _gradients(ctx, for_out: Tensor, for_log_z: None) -> tuple[Tensor, Tensor, Tensor, None]:
    return *segment_attention_backward(for_out.contiguous(), *ctx.saved_tensors), None


segment_attention.register_autograd(_gradients, setup_context=_keep)


def _groups(table: Tensor, like: Tensor) -> Iterator[tuple[Tensor, Tensor, int, bool, Tensor | None]]:
    """Yield segments of the same sizes together: the places of their queries and of their keys, one segment after
    another, how many there are, and how the kernel is told what is causal: its own way, or a mask."""
    for queries, keys, count, causal in _grouped(table.numpy().tobytes(), table.shape[1]):
        n, m = len(queries) // count, len(keys) // count
        mask = None
        if causal and m > n:  # the kernel's own causal mask is aligned to the first key
            mask = like.new_full((n, m), float("-inf")).triu(m - n + 1)
        yield queries, keys, count, causal and mask is None, mask


@functools.lru_cache(maxsize=16)  # a batch's table is asked for in every layer, forward and backward
def _grouped(table: bytes, width: int) -> list[tuple[Tensor, Tensor, int, bool]]:
    """Return for each size the places of queries and of keys, how many segments there are, and if they are causal."""
    groups: dict[tuple[int, int, bool], tuple[list[np.ndarray], list[np.ndarray]]] = {}
    for start, stop, causal, *bounds in np.frombuffer(table, np.int64).reshape(-1, width)[:-1].tolist():
        keys = [np.arange(low, high) for low, high in zip(bounds[::2], bounds[1::2], strict=True) if high > low]
        n, m = stop - start, sum(map(len, keys))
        rows, columns = groups.setdefault((n, m, bool(causal) and n > 1), ([], []))
        rows.append(np.arange(start, stop))
        columns += keys
    return [
        (torch.from_numpy(np.concatenate(rows)), torch.from_numpy(np.concatenate(columns)), len(rows), causal)
        for (_, _, causal), (rows, columns) in groups.items()
    ]


def _items(x: Tensor, places: Tensor, count: int) -> Tensor:
    """Return the rows of [T, H, d] at some places as [count, H, n, d]."""
    return x.index_select(0, places).unflatten(0, (count, -1)).transpose(1, 2)
