"""A Triton kernel for CUDA: QK-norm, rotation and the way into sequence order, in one pass over each tower's heads.

In plain torch (plait/model/block.py) this is a norm, two products, a concatenation and a gather each for queries and
keys, and a copy for values: about ten reads and writes of what is here read once and written once. Towers need not be
joined first, each is its own launch, and no size is asked of the device: row i of a tower is padding where the
token it names does not name it back.

Shapes: N_k rows of tower k (padded), G key heads, r queries for each, d head dimension, T tokens, H = G r.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

HEADS = 4
"""Most heads in one program."""
PROGRAMS = 1024
"""Most programs that share out a tower's rows, each with its own sums for the gradients of the norms."""


@triton.jit
def _place(row, start, to_towers, to_sequence):
    """Return a row's token, and whether the row is a token's and not padding."""
    token = tl.load(to_towers + start + row)
    return token, tl.load(to_sequence + token) == start + row


@triton.jit
def _normed(a, b, is_query, query_weight, key_weight, i, half: tl.constexpr, eps, wide: tl.constexpr):
    """Return both halves of the heads [h, half] normalised, before the weight, their weights, and 1 / rms [h]."""
    scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * half) + eps)
    w = tl.where(is_query[:, None], tl.load(query_weight + i)[None].to(wide), tl.load(key_weight + i)[None].to(wide))
    z = tl.where(is_query[:, None], tl.load(query_weight + half + i)[None].to(wide),
                 tl.load(key_weight + half + i)[None].to(wide))  # fmt: skip
    return a * scale[:, None], b * scale[:, None], w, z, scale


@triton.jit
def _forward(x, query_weight, key_weight, cos, sin, to_towers, to_sequence, query, key, value, start, eps,
             groups: tl.constexpr, queries: tl.constexpr, half: tl.constexpr, has_norm: tl.constexpr,
             wide: tl.constexpr, heads: tl.constexpr):  # fmt: skip
    """Write ``heads`` heads of one row: x [N_k, G, r + 2, d] to query [T, H, d], key and value [T, G, d]."""
    row = tl.program_id(0).to(tl.int64)
    token, is_token = _place(row, start, to_towers, to_sequence)
    head = tl.program_id(1) * heads + tl.arange(0, heads)
    i = tl.arange(0, half)
    group, slot = head // (queries + 2), head % (queries + 2)
    inside = (head < groups * (queries + 2)) & is_token
    is_query, is_value = slot < queries, slot == queries + 1
    at = ((row * groups * (queries + 2) + head) * 2 * half)[:, None] + i[None]
    a = tl.load(x + at, mask=inside[:, None], other=0.0).to(wide)
    b = tl.load(x + at + half, mask=inside[:, None], other=0.0).to(wide)
    n, m = a, b
    if has_norm:
        n, m, w, z, _ = _normed(a, b, is_query, query_weight, key_weight, i, half, eps, wide)
        n, m = n * w, m * z
    c, s = tl.load(cos + token * half + i)[None].to(wide), tl.load(sin + token * half + i)[None].to(wide)
    turned, other = n * c - m * s, m * c + n * s
    kind = query.dtype.element_ty
    to = ((token * groups * queries + group * queries + slot) * 2 * half)[:, None] + i[None]
    mask = (inside & is_query)[:, None]
    tl.store(query + to, turned.to(kind), mask=mask)
    tl.store(query + to + half, other.to(kind), mask=mask)
    to = ((token * groups + group) * 2 * half)[:, None] + i[None]
    mask = (inside & (slot == queries))[:, None]
    tl.store(key + to, turned.to(kind), mask=mask)
    tl.store(key + to + half, other.to(kind), mask=mask)
    mask = (inside & is_value)[:, None]
    tl.store(value + to, a.to(kind), mask=mask)
    tl.store(value + to + half, b.to(kind), mask=mask)


@triton.jit
def _backward(x, query_weight, key_weight, cos, sin, to_towers, to_sequence, for_query, for_key, for_value, for_x,
              for_weights, num_rows, start, eps, groups: tl.constexpr, queries: tl.constexpr, half: tl.constexpr,
              has_norm: tl.constexpr, wide: tl.constexpr, heads: tl.constexpr):  # fmt: skip
    """Write the gradient of x, and each program's own sums of those of the norms' weights [P, B, 2, d]."""
    head = tl.program_id(1) * heads + tl.arange(0, heads)
    i = tl.arange(0, half)
    group, slot = head // (queries + 2), head % (queries + 2)
    is_query, is_key, is_value = slot < queries, slot == queries, slot == queries + 1
    whole = head < groups * (queries + 2)
    query_low, query_high = tl.zeros((half,), wide), tl.zeros((half,), wide)
    key_low, key_high = tl.zeros((half,), wide), tl.zeros((half,), wide)
    row = tl.program_id(0).to(tl.int64)
    while row < num_rows:
        token, is_token = _place(row, start, to_towers, to_sequence)
        inside = whole & is_token
        at = ((row * groups * (queries + 2) + head) * 2 * half)[:, None] + i[None]
        from_query = ((token * groups * queries + group * queries + slot) * 2 * half)[:, None] + i[None]
        from_key = ((token * groups + group) * 2 * half)[:, None] + i[None]
        q_mask, k_mask, v_mask = (inside & is_query)[:, None], (inside & is_key)[:, None], (inside & is_value)[:, None]
        g = tl.load(for_query + from_query, mask=q_mask, other=0.0).to(wide)
        g += tl.load(for_key + from_key, mask=k_mask, other=0.0).to(wide)
        h = tl.load(for_query + from_query + half, mask=q_mask, other=0.0).to(wide)
        h += tl.load(for_key + from_key + half, mask=k_mask, other=0.0).to(wide)
        c, s = tl.load(cos + token * half + i)[None].to(wide), tl.load(sin + token * half + i)[None].to(wide)
        u, v = g * c + h * s, h * c - g * s  # turned back
        if has_norm:
            a = tl.load(x + at, mask=inside[:, None], other=0.0).to(wide)
            b = tl.load(x + at + half, mask=inside[:, None], other=0.0).to(wide)
            n, m, w, z, scale = _normed(a, b, is_query, query_weight, key_weight, i, half, eps, wide)
            query_low += tl.sum(tl.where(q_mask, u * n, 0.0), 0)
            query_high += tl.sum(tl.where(q_mask, v * m, 0.0), 0)
            key_low += tl.sum(tl.where(k_mask, u * n, 0.0), 0)
            key_high += tl.sum(tl.where(k_mask, v * m, 0.0), 0)
            u, v = u * w, v * z
            along = (tl.sum(u * n, 1) + tl.sum(v * m, 1)) / (2 * half)
            u, v = (u - n * along[:, None]) * scale[:, None], (v - m * along[:, None]) * scale[:, None]
        u += tl.load(for_value + from_key, mask=v_mask, other=0.0).to(wide)
        v += tl.load(for_value + from_key + half, mask=v_mask, other=0.0).to(wide)
        # rows of padding, which nothing was loaded for, get zeros
        tl.store(for_x + at, u.to(for_x.dtype.element_ty), mask=whole[:, None])
        tl.store(for_x + at + half, v.to(for_x.dtype.element_ty), mask=whole[:, None])
        row += tl.num_programs(0)
    if has_norm:
        own = for_weights + (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * 4 * half + i
        tl.store(own, query_low)
        tl.store(own + half, query_high)
        tl.store(own + 2 * half, key_low)
        tl.store(own + 3 * half, key_high)


def fits(head_dim: int) -> bool:
    """Whether the kernel can take heads of this dimension."""
    return head_dim >= 16 and head_dim & (head_dim - 1) == 0


@torch.library.custom_op("plait::heads_to_sequence", mutates_args=())
def heads_to_sequence(
    heads: list[Tensor], norms: list[Tensor], cos: Tensor, sin: Tensor, to_towers: Tensor, to_sequence: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Normalise, turn and place the heads of all towers.

    heads: [N_k, G, r + 2, d] of each tower, contiguous; norms: the weights [d] of its query norm and its key norm,
    tower after tower, or none at all. cos and sin [T, 1, d / 2]. Returns queries [T, H, d], keys and values [T, G, d].
    """
    first, num_tokens = heads[0], to_sequence.shape[0]
    _, groups, places, d = first.shape
    query = first.new_empty(num_tokens, groups * (places - 2), d)
    key, value = first.new_empty(num_tokens, groups, d), first.new_empty(num_tokens, groups, d)
    for x, query_norm, key_norm, start in _towers(heads, norms):
        grid = (x.shape[0], triton.cdiv(groups * places, HEADS))
        _forward[grid](x, query_norm, key_norm, cos, sin, to_towers, to_sequence, query, key, value, start, eps,
                       **_constants(x, bool(norms)))  # fmt: skip
    return query, key, value


@heads_to_sequence.register_fake
def _(heads, norms, cos, sin, to_towers, to_sequence, eps):
    _, groups, places, d = heads[0].shape
    shapes = ((to_sequence.shape[0], n, d) for n in (groups * (places - 2), groups, groups))
    return tuple(heads[0].new_empty(shape) for shape in shapes)


@torch.library.custom_op("plait::heads_to_sequence_backward", mutates_args=())
def heads_to_sequence_backward(
    for_query: Tensor, for_key: Tensor, for_value: Tensor, heads: list[Tensor], norms: list[Tensor], cos: Tensor,
    sin: Tensor, to_towers: Tensor, to_sequence: Tensor, eps: float,
) -> list[Tensor]:  # fmt: skip
    """Return the gradients of the heads, then those of the norms' weights."""
    _, groups, places, d = heads[0].shape
    blocks = triton.cdiv(groups * places, HEADS)
    for_heads, for_norms = [], []
    for x, query_norm, key_norm, start in _towers(heads, norms):
        programs = min(x.shape[0], PROGRAMS)
        wide = torch.promote_types(x.dtype, torch.float32)
        sums = x.new_empty(programs * blocks, 2, d, dtype=wide)
        for_x = torch.empty_like(x)
        _backward[(programs, blocks)](x, query_norm, key_norm, cos, sin, to_towers, to_sequence, for_query, for_key,
                                      for_value, for_x, sums, x.shape[0], start, eps,
                                      **_constants(x, bool(norms)))  # fmt: skip
        for_heads.append(for_x)
        if norms:
            for_norms += [side.to(query_norm.dtype).clone() for side in sums.sum(0)]
    return for_heads + for_norms


@heads_to_sequence_backward.register_fake
def _(for_query, for_key, for_value, heads, norms, cos, sin, to_towers, to_sequence, eps):
    return [torch.empty_like(x) for x in (*heads, *norms)]


def _keep(ctx, inputs, output) -> None:
    heads, norms, *rest, eps = inputs
    ctx.num_heads, ctx.eps = len(heads), eps
    ctx.save_for_backward(*heads, *norms, *rest)


def _gradients(ctx, *gradients: Tensor):
    *saved, cos, sin, to_towers, to_sequence = ctx.saved_tensors
    heads, norms = saved[: ctx.num_heads], saved[ctx.num_heads :]
    whole = (g.contiguous() for g in gradients)
    input_gradients = heads_to_sequence_backward(*whole, heads, norms, cos, sin, to_towers, to_sequence, ctx.eps)
    return input_gradients[: len(heads)], input_gradients[len(heads) :], None, None, None, None, None


heads_to_sequence.register_autograd(_gradients, setup_context=_keep)


def _towers(heads: list[Tensor], norms: list[Tensor]):
    """Yield each tower's heads, the weights of its norms (the heads, unread, where it has none), and its first row."""
    start = 0
    for k, x in enumerate(heads):
        query_norm, key_norm = (norms[2 * k], norms[2 * k + 1]) if norms else (x, x)
        yield x, query_norm, key_norm, start
        start += x.shape[0]


def _constants(x: Tensor, has_norm: bool) -> dict:
    _, groups, places, d = x.shape
    wide = tl.float64 if x.dtype == torch.float64 else tl.float32
    return {"groups": groups, "queries": places - 2, "half": d // 2, "has_norm": has_norm, "wide": wide, "heads": HEADS}
