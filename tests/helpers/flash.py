"""Torch's variable-length attention written out, for machines without a GPU."""

import torch


def flash_by_sequence(query, key, value, query_offsets, key_offsets, most_queries, most_keys, *, window_size):
    """What torch's varlen_attn does on a GPU: sequence by sequence, causal ones aligned at the end."""
    out = []
    ends = [list(zip(o.tolist(), o.tolist()[1:], strict=False)) for o in (query_offsets, key_offsets)]
    for (a, b), (c, d) in zip(*ends, strict=True):
        assert b - a <= most_queries and d - c <= most_keys
        mask = torch.ones(b - a, d - c, dtype=torch.bool)
        mask = mask.tril(d - c - b + a) if window_size == (-1, 0) else mask
        sides = (x.transpose(0, 1) for x in (query[a:b], key[c:d], value[c:d]))
        out.append(torch.nn.functional.scaled_dot_product_attention(*sides, attn_mask=mask).transpose(0, 1))
    return torch.cat(out)


@torch.library.custom_op("plait_tests::flash", mutates_args=())
def flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, query_offsets: torch.Tensor, key_offsets: torch.Tensor,
    most_queries: int, most_keys: int, window_size: list[int],
) -> torch.Tensor:  # fmt: skip
    """torch's kernel written out, as one operation of a graph."""
    sides = (query, key, value, query_offsets, key_offsets, most_queries, most_keys)
    return flash_by_sequence(*sides, window_size=tuple(window_size))


@flash.register_fake
def _(query, key, value, *_, **__):
    return torch.empty_like(query)
