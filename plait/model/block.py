"""One block of the Mixture-of-Transformers: towers of their own around one global attention (paper, section 2.1)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plait.batch import Routing
from plait.model.attention import AttentionPlan, attend
from plait.model.cache import CacheStep
from plait.model.moe import MixtureOfExperts, SwiGLU
from plait.model.norm import RMSNorm
from plait.model.rope import rotate
from plait.model.routing import PerTower, merged, separated, to_sequence, to_towers
from plait.model_config import ModelConfig


@dataclass
class Step:
    """What every block needs of one batch, made once a step."""

    routing: Routing
    cos: Tensor
    """[T, 1, head_dim / 2]"""
    sin: Tensor
    is_token: list[Tensor]
    """For each tower [N_k]: false on padding rows."""
    plan: AttentionPlan | None
    cache: CacheStep | None


class QKV(nn.Linear):
    """Queries, keys and values of one tower from one weight, queries and keys normalised.

    Rows of the weight are ordered by key head: the queries that share it, the key, the value. So a contiguous part of
    the rows is a whole number of heads, and tensor parallelism can cut there.
    """

    def __init__(self, width: int, config: ModelConfig):
        self.groups, self.queries = config.num_kv_heads, config.num_heads // config.num_kv_heads
        self.head_dim, eps = config.head_dim, config.norm_eps
        super().__init__(width, self.groups * (self.queries + 2) * self.head_dim, bias=config.qkv_bias)
        self.query_norm = RMSNorm(self.head_dim, eps) if config.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(self.head_dim, eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [N, D]: queries [N, H, d], keys and values [N, G, d]."""
        heads = super().forward(x).unflatten(-1, (self.groups, self.queries + 2, self.head_dim))
        query, key, value = heads.split((self.queries, 1, 1), dim=2)
        return self.query_norm(query).flatten(1, 2), self.key_norm(key).flatten(1, 2), value.flatten(1, 2)


class Block(nn.Module):
    """Attention and feed-forward with residuals; what is untied has one copy per tower."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.pre_norm = layer, config.norm_order == "pre"
        towers, untied = config.towers, config.untied_at(layer)
        heads = config.num_heads * config.head_dim

        def norm(tower: str) -> nn.Module:
            return RMSNorm(towers[tower].width, config.norm_eps)

        def ffn(tower: str) -> nn.Module:
            record = towers[tower]
            if record.ffn == "moe":
                return MixtureOfExperts(record.width, record)
            return SwiGLU(record.width, record.ffn_width)

        self.attention_norm = PerTower(norm, towers, untied="norm" in untied)
        self.qkv = PerTower(lambda t: QKV(towers[t].width, config), towers, untied="qkv" in untied)
        self.o = PerTower(lambda t: nn.Linear(heads, towers[t].width, bias=False), towers, untied="o" in untied)
        self.ffn_norm = PerTower(norm, towers, untied="norm" in untied)
        self.ffn = PerTower(ffn, towers, untied="ffn" in untied)

    def forward(self, streams: list[Tensor], step: Step) -> list[Tensor]:
        """Streams [N_k, D_k] to streams [N_k, D_k]."""
        if self.pre_norm:
            streams = _add(streams, self._attention(self.attention_norm(streams), step))
            return _add(streams, self._feed_forward(self.ffn_norm(streams), step))
        streams = _add(streams, self.attention_norm(self._attention(streams, step)))
        return _add(streams, self.ffn_norm(self._feed_forward(streams, step)))

    def _attention(self, streams: list[Tensor], step: Step) -> list[Tensor]:
        routing = step.routing
        qkv = self.qkv(merged(streams) if self.qkv.is_shared else streams)
        query, key, value = (to_sequence(list(side), routing) for side in zip(*qkv, strict=True))
        query, key = rotate(query, step.cos, step.sin), rotate(key, step.cos, step.sin)
        if step.cache is None:
            out = attend(query, key, value, step.plan)
        else:
            out = step.cache.attend(self.layer, query, key, value)
        out = to_towers(out.flatten(1), routing)
        sizes = [len(x) for x in streams]
        return separated(self.o([out] if self.o.is_shared else list(out.split(sizes))), sizes)

    def _feed_forward(self, streams: list[Tensor], step: Step) -> list[Tensor]:
        if not self.ffn.is_shared:
            return self.ffn(streams, step.is_token)
        return separated(self.ffn(merged(streams), merged(step.is_token)), [len(x) for x in streams])


def _add(streams: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
    return [x + u for x, u in zip(streams, updates, strict=True)]


def is_token(routing: Routing, device: torch.device) -> list[Tensor]:
    """Return for each tower the booleans [N_k] that are false on padding rows, from host sizes alone."""
    return [torch.arange(padded, device=device) < size
            for size, padded in zip(routing.sizes, routing.padded_sizes, strict=True)]  # fmt: skip
