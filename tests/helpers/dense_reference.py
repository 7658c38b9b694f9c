"""The plain dense transformer, written from the textbook and importing nothing from plait.

"Dense" in every comparison means this model: pre- or post-norm blocks, RoPE, grouped-query attention, SwiGLU. It is
made to be fast too: one matrix for queries, keys and values, norms in the precision of their input, and attention that
never sees two documents at once.

Shapes: T tokens of packed documents, D width, H heads, G key heads, d numbers of a head.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn


class Norm(nn.RMSNorm):
    def forward(self, x):
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class DenseBlock(nn.Module):
    def __init__(self, width, heads, groups, head_dim, hidden, pre_norm, eps):
        super().__init__()
        self.sizes, self.head_dim, self.pre_norm = (heads, groups, groups), head_dim, pre_norm
        self.attention_norm, self.ffn_norm = Norm(width, eps), Norm(width, eps)
        self.query_norm, self.key_norm = Norm(head_dim, eps), Norm(head_dim, eps)
        self.qkv = nn.Linear(width, sum(self.sizes) * head_dim, bias=False)
        self.o = nn.Linear(heads * head_dim, width, bias=False)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.register_load_state_dict_pre_hook(join_projections)

    def project(self, x):
        """x [T, D]: queries [T, H, d] and keys [T, G, d], normalised, and values [T, G, d]."""
        q, k, v = self.qkv(x).unflatten(-1, (-1, self.head_dim)).split(self.sizes, -2)
        return self.query_norm(q), self.key_norm(k), v

    def ffn(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))

    def attention(self, x, cos, sin, attend):
        q, k, v = self.project(x)
        return self.o(attend(turn(q, cos, sin), turn(k, cos, sin), v).flatten(1))

    def forward(self, x, cos, sin, attend):
        if self.pre_norm:
            x = x + self.attention(self.attention_norm(x), cos, sin, attend)
            return x + self.ffn(self.ffn_norm(x))
        x = x + self.attention_norm(self.attention(x, cos, sin, attend))
        return x + self.ffn_norm(self.ffn(x))


def join_projections(module, state, prefix, *_):
    """Let weights come as the textbook has them: query, key and value apart."""
    names = [f"{prefix}{name}.weight" for name in ("query", "key", "value")]
    if names[0] in state:
        state[f"{prefix}qkv.weight"] = torch.cat([state.pop(name) for name in names])


def turn(x, cos, sin):
    """RoPE: x [T, H, d] in the precision that x has, cos and sin [T, 1, d / 2]."""
    a, b = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def per_document(lengths):
    """Causal attention of each document by itself: q [T, H, d], k and v [T, G, d] to [T, H, d]."""

    def attend(q, k, v):
        if (repeats := q.shape[1] // k.shape[1]) > 1:
            k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        documents = zip(*(x.transpose(0, 1)[None].split(lengths, 2) for x in (q, k, v)))
        out = [F.scaled_dot_product_attention(*one, is_causal=True) for one in documents]
        return torch.cat(out, 2)[0].transpose(0, 1)

    return attend


def varlen(lengths, device):
    """The same by torch's variable-length flash attention, for GPUs in 16 bits."""
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    most = max(lengths)

    def attend(q, k, v):
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) if x.shape[1] < q.shape[1] else x for x in (k, v))
        return varlen_attn(q.to(v.dtype), k.to(v.dtype), v, ends, ends, most, most, window_size=(-1, 0))

    return attend


def flex(lengths, device):
    """The same by FlexAttention with a block mask, for GPUs in 32 bits."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)

    def visible(batch, head, query, key):
        return (query >= key) & (document[query] == document[key])

    total = sum(lengths)
    kernel = torch.compile(flex_attention) if device == "cuda" else flex_attention
    mask = create_block_mask(visible, None, None, total, total, device=device)

    def attend(q, k, v):
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return kernel(q.to(v.dtype), k.to(v.dtype), v, block_mask=mask, enable_gqa=True)[0].transpose(0, 1)

    return attend


class Dense(nn.Module):
    def __init__(self, vocab, width, layers, heads, groups, head_dim, hidden, pre_norm=True, eps=1e-5, theta=1e4):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(
            DenseBlock(width, heads, groups, head_dim, hidden, pre_norm, eps) for _ in range(layers)
        )
        self.final_norm = Norm(width, eps)
        self.head = nn.Linear(width, vocab, bias=False)
        self.head_dim, self.theta = head_dim, theta

    def forward(self, ids, lengths, attend=None):
        """ids [T] of packed causal documents of the given lengths: the final hidden states [T, D]."""
        attend, x = attend or per_document(lengths), self.embed(ids)
        cos, sin = angles(tuple(lengths), self.head_dim, self.theta, ids.device)
        for block in self.blocks:
            x = block(x, cos.to(x.dtype), sin.to(x.dtype), attend)
        return self.final_norm(x)


@functools.lru_cache(maxsize=8)
def angles(lengths, head_dim, theta, device):
    """Return cos and sin [T, 1, d / 2] in float64, of positions that start anew in every document."""
    positions = torch.cat([torch.arange(n, dtype=torch.float64) for n in lengths])
    ladder = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    turns = (positions[:, None] * ladder)[:, None]
    return turns.cos().to(device), turns.sin().to(device)
