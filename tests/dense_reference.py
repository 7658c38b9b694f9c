"""The plain dense transformer, written from the textbook and importing nothing from plait.

"Dense" in every comparison means this model: pre- or post-norm blocks, RoPE, grouped-query attention, SwiGLU.
"""

import torch
import torch.nn.functional as F
from torch import nn


class DenseBlock(nn.Module):
    def __init__(self, width, heads, groups, head_dim, hidden, pre_norm, eps):
        super().__init__()
        self.heads, self.groups, self.head_dim, self.pre_norm = heads, groups, head_dim, pre_norm
        self.attention_norm, self.ffn_norm = nn.RMSNorm(width, eps), nn.RMSNorm(width, eps)
        self.query_norm, self.key_norm = nn.RMSNorm(head_dim, eps), nn.RMSNorm(head_dim, eps)
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, groups * head_dim, bias=False)
        self.value = nn.Linear(width, groups * head_dim, bias=False)
        self.o = nn.Linear(heads * head_dim, width, bias=False)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def attention(self, x, cos, sin, lengths):
        q = self.query_norm(self.query(x).view(-1, self.heads, self.head_dim))
        k = self.key_norm(self.key(x).view(-1, self.groups, self.head_dim))
        v = self.value(x).view(-1, self.groups, self.head_dim)
        q, k = turn(q, cos, sin), turn(k, cos, sin)
        k, v = (t.repeat_interleave(self.heads // self.groups, 1) for t in (k, v))
        out = [
            F.scaled_dot_product_attention(a.transpose(0, 1)[None], b.transpose(0, 1)[None], c.transpose(0, 1)[None],
                                           is_causal=True)[0].transpose(0, 1)
            for a, b, c in zip(q.split(lengths), k.split(lengths), v.split(lengths))
        ]  # fmt: skip
        return self.o(torch.cat(out).flatten(1))

    def ffn(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))

    def forward(self, x, cos, sin, lengths):
        if self.pre_norm:
            x = x + self.attention(self.attention_norm(x), cos, sin, lengths)
            return x + self.ffn(self.ffn_norm(x))
        x = x + self.attention_norm(self.attention(x, cos, sin, lengths))
        return x + self.ffn_norm(self.ffn(x))


def turn(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Dense(nn.Module):
    def __init__(self, vocab, width, layers, heads, groups, head_dim, hidden, pre_norm=True, eps=1e-5, theta=1e4):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(
            DenseBlock(width, heads, groups, head_dim, hidden, pre_norm, eps) for _ in range(layers)
        )
        self.final_norm = nn.RMSNorm(width, eps)
        self.head = nn.Linear(width, vocab, bias=False)
        self.head_dim, self.theta = head_dim, theta

    def forward(self, ids, lengths):
        """ids [T] of packed causal documents of the given lengths: the final hidden states [T, D]."""
        positions = torch.cat([torch.arange(n, dtype=torch.float64, device=ids.device) for n in lengths])
        ladder = self.theta ** -(torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim)
        angles = positions[:, None] * ladder.to(ids.device)
        x = self.embed(ids)
        cos, sin = (t.to(x.dtype)[:, None] for t in (angles.cos(), angles.sin()))
        for block in self.blocks:
            x = block(x, cos, sin, lengths)
        return self.final_norm(x)
