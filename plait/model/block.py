"""One block of the Mixture-of-Transformers: separate towers around one global attention (paper, section 2.2)."""

import functools
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plait.batch.batch import Routing
from plait.config.model import ModelConfig
from plait.model.attention import AttentionPlan, allow_graphs, attend
from plait.model.cache import CacheStep
from plait.model.layers import Linear, RMSNorm
from plait.model.lora import add_lora
from plait.model.moe import MixtureOfExperts, SwiGLU
from plait.model.ranks import Ranks, local
from plait.model.recompute import Recompute, computed
from plait.model.rope import rotate
from plait.model.routing import PerTower, merged, separated, to_sequence, to_towers


@dataclass
class Step:
    """What every block needs of one batch, made once a step."""

    routing: Routing
    cos: Tensor
    """[T, 1, head_dim / 2]"""
    sin: Tensor
    is_token: list[Tensor]
    """For each tower [N_k / C]: false on padding rows."""
    plan: AttentionPlan | None
    cache: CacheStep | None
    ranks: Ranks
    recompute: Recompute = "none"
    owners: Tensor | None = None
    """[T, 1, 1] number of each token's tower, where some tower has other keys for other towers' queries."""
    heads_to_sequence: Callable | None = None
    """The kernel of plait.model.kernels, where there is one for the device."""


class QKV(Linear):
    """Queries, keys and values of one tower from one weight, queries and keys normalised.

    Rows of the weight are ordered by key head: the queries that share it, the key, the value. So a contiguous part of
    the rows is a whole number of heads, and tensor parallelism can cut there.
    """

    def __init__(self, config: ModelConfig, tower: str):
        self.queries, self.head_dim = config.num_heads // config.num_kv_heads, config.head_dim
        outputs = config.num_kv_heads * (self.queries + 2) * self.head_dim
        bias, eps, has_norms = (config.of_tower(tower, name) for name in ("qkv_bias", "norm_eps", "qk_norm"))
        super().__init__(config.towers[tower].width, outputs, bias=bias, cut="outputs")
        self.query_norm = RMSNorm(self.head_dim, eps) if has_norms else nn.Identity()
        self.key_norm = RMSNorm(self.head_dim, eps) if has_norms else nn.Identity()
        if config.towers[tower].cross_key_norm:
            self.cross_key_norm = RMSNorm(self.head_dim, eps)

    def heads(self, x: Tensor) -> Tensor:
        """Return what `forward` makes [N, G (r + 2) d] by heads [N, G, r + 2, d]; a tensor rank has a part of the G."""
        return x.unflatten(-1, (-1, self.queries + 2, self.head_dim))

    def separated(self, heads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [N, H, d], keys and values [N, G, d] of the heads, queries and keys normalised."""
        query, key, value = heads.split((self.queries, 1, 1), dim=2)
        return self.query_norm(query).flatten(1, 2), self.key_norm(key).flatten(1, 2), value.flatten(1, 2)

    def cross_key(self, heads: Tensor) -> Tensor:
        """Return the keys [N, G, d] that queries of other towers see."""
        key = heads[:, :, self.queries]
        return self.cross_key_norm(key) if hasattr(self, "cross_key_norm") else self.key_norm(key)


class Block(nn.Module):
    """Attention and feed-forward with residuals; what is untied has one copy per tower."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.pre_norm = layer, config.norm_order == "pre"
        self.is_rotated = layer not in config.unrotated_layers
        self.crossing = config.crossing_towers
        towers, untied = config.towers, config.untied_at(layer)
        heads = config.num_heads * config.head_dim
        gain = 1 / math.sqrt(2 * config.num_layers)  # of what writes to the residual stream

        def norm(tower: str) -> nn.Module:
            return RMSNorm(towers[tower].width, config.of_tower(tower, "norm_eps"))

        def ffn(tower: str) -> nn.Module:
            record = towers[tower]
            if record.ffn == "moe":
                return MixtureOfExperts(record.width, record, gain=gain)
            return SwiGLU(record.width, record.ffn_width, gain=gain)

        self.attention_norm = PerTower(norm, towers, untied="norm" in untied)
        self.qkv = PerTower(lambda t: QKV(config, t), towers, untied="qkv" in untied)
        self.o = PerTower(
            lambda t: Linear(heads, towers[t].width, bias=False, gain=gain, cut="inputs"), towers, untied="o" in untied
        )
        self.ffn_norm = PerTower(norm, towers, untied="norm" in untied)
        self.ffn = PerTower(ffn, towers, untied="ffn" in untied)
        self._qkv = list(self.qkv.values())
        """The modules themselves, also where a tool such as peft puts others around them."""
        for name, tower in towers.items():
            if tower.lora:
                for target in tower.lora.targets:
                    add_lora(getattr(self, target)[name], tower.lora)
        self._compiled: Callable | None = None

    def forward(self, streams: list[Tensor], step: Step) -> list[Tensor]:
        """Streams [n_k, D_k] to streams [n_k, D_k]: this rank's rows of each tower (in one process, all N_k)."""
        if self._compiled is None:
            return self._recomputed(streams, step)
        _mark_rows(streams, step)
        return self._compiled(streams, step)

    def compile_layers(self, **options: Any) -> None:
        """Compile what the block computes, and leave what FSDP does around it; ``options`` are torch.compile's."""
        allow_graphs()
        self._compiled = torch.compile(self._recomputed, fullgraph=True, **options)

    def _recomputed(self, streams: list[Tensor], step: Step) -> list[Tensor]:
        return computed(self._layers, step.recompute, streams, step)

    def _layers(self, streams: list[Tensor], step: Step) -> list[Tensor]:
        if self.pre_norm:
            streams = _add(streams, self._attention(self.attention_norm(streams), step))
            return _add(streams, self._feed_forward(self.ffn_norm(streams), step))
        streams = _add(streams, self.attention_norm(self._attention(streams, step)))
        return _add(streams, self.ffn_norm(self._feed_forward(streams, step)))

    def _attention(self, streams: list[Tensor], step: Step) -> list[Tensor]:
        routing, ranks, streams = step.routing, step.ranks, step.ranks.gather(streams)
        sizes = [len(x) for x in streams]
        heads = self._projected(streams)
        if ranks.context > 1:
            heads = [ranks.rows_to_heads(x) for x in separated(heads, sizes)]
            heads = merged(heads) if self.qkv.is_shared else heads
        query, key, value = self._heads(heads, step)
        if step.cache is None:
            assert step.plan is not None, "a step without a cache has a plan"
            out = attend(query, key, value, step.plan)
        else:
            out = step.cache.attend(self.layer, query, key, value)
        if self.crossing:
            out = out[..., : query.shape[-1] // (1 + len(self.crossing))]
        head_shape = out.shape[1:]
        out = to_towers(out.flatten(1), routing)
        if ranks.context > 1:
            pieces = out.unflatten(1, head_shape).split([size * ranks.context for size in sizes])
            pieces = [ranks.heads_to_rows(x).flatten(1) for x in pieces]
            pieces = merged(pieces) if self.o.is_shared else pieces
        else:
            pieces = [out] if self.o.is_shared else list(out.split(sizes))
        return ranks.scatter(separated(self.o(pieces), sizes))

    def _projected(self, streams: list[Tensor]) -> list[Tensor]:
        """Return the heads [n, G, r + 2, d] of each tower's rows, or of all rows where towers share the weight."""
        projected = self.qkv(merged(streams) if self.qkv.is_shared else streams)
        return [module.heads(x) for module, x in zip(self._qkv, projected, strict=True)]

    def _heads(self, heads: list[Tensor], step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [T, H, d], keys and values [T, G, d] in sequence order, normalised and rotated."""
        routing, modules = step.routing, self._qkv
        if step.heads_to_sequence is not None and self.is_rotated:
            norms = [n for m in modules for n in (m.query_norm, m.key_norm) if isinstance(n, RMSNorm)]
            eps = norms[0].eps if norms else 0.0
            places = routing.to_towers, routing.to_sequence
            weights = [local(n.weight) for n in norms]
            return step.heads_to_sequence(heads, weights, step.cos, step.sin, *places, eps)
        sides = zip(*(m.separated(h) for m, h in zip(modules, heads, strict=True)), strict=True)
        query, key, value = (to_sequence(list(side), routing) for side in sides)
        if self.is_rotated:
            query, key = rotate(query, step.cos, step.sin), rotate(key, step.cos, step.sin)
        if not self.crossing:
            return query, key, value
        cross = to_sequence([m.cross_key(h) for m, h in zip(modules, heads, strict=True)], routing)
        cross = rotate(cross, step.cos, step.sin) if self.is_rotated else cross
        return _by_viewer(query, key, value, cross, step.owners, self.crossing)

    def _feed_forward(self, streams: list[Tensor], step: Step) -> list[Tensor]:
        streams = step.ranks.gather(streams)
        if not self.ffn.is_shared:
            return step.ranks.scatter(self.ffn(streams, step.is_token))
        out = self.ffn(merged(streams), merged(step.is_token))
        return step.ranks.scatter(separated(out, [len(x) for x in streams]))


def _by_viewer(
    query: Tensor, key: Tensor, value: Tensor, cross: Tensor, owners: Tensor | None, towers: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return heads of (1 + C) d numbers, by which each query meets the keys that its tower sees; C towers have others.

    Part 0 is for queries of towers without such keys, part i for those of the i-th such tower, which sees its own keys
    as they are and all others' ``cross`` [T, G, d]. A query is zero in all parts but its own.
    """
    assert owners is not None, "a model with cross_key_norm says whose each token is"
    seen = [cross, *(torch.where(owners == tower, key, cross) for tower in towers)]
    others = torch.ones_like(owners, dtype=torch.bool)
    parts = []
    for tower in towers:
        others = others & (owners != tower)
        parts.append(query * (owners == tower))
    scale = math.sqrt(len(seen))  # attention divides by the root of the heads' whole size
    query = torch.cat([query * others, *parts], dim=-1) * scale
    return query, torch.cat(seen, dim=-1), nn.functional.pad(value, (0, value.shape[-1] * len(towers)))


def _add(streams: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
    return [x + u for x, u in zip(streams, updates, strict=True)]


def _mark_rows(streams: list[Tensor], step: Step) -> None:
    """Tell the compiler which sizes change from batch to batch, each of its own even where two are equal."""
    routing = step.routing
    for tensor in (*streams, *step.is_token, step.cos, step.sin, routing.to_towers, routing.to_sequence):
        torch._dynamo.mark_dynamic(tensor, 0)
    if step.owners is not None:
        torch._dynamo.mark_dynamic(step.owners, 0)
    if step.plan is not None:
        for tensor in step.plan.sizes_that_change():
            torch._dynamo.mark_dynamic(tensor, 0)
        if step.plan.table is not None:
            torch._dynamo.mark_dynamic(step.plan.table, 1)


def heads_kernel(device: torch.device, config: ModelConfig) -> Callable | None:
    """Return the kernel that brings heads into sequence order; None where plain torch is to do it: without a GPU, and
    for towers whose norms of queries and keys differ, or that have others for other towers."""
    if device.type != "cuda" or not has_triton():
        return None
    from plait.model import kernels

    norms = {(config.of_tower(t, "qk_norm"), config.of_tower(t, "norm_eps")) for t in config.towers}
    plain = len(norms) == 1 and not config.crossing_towers
    return kernels.heads_to_sequence if plain and kernels.fits(config.head_dim) else None


@functools.cache
def has_triton() -> bool:
    """Say whether kernels for a GPU can be compiled here."""
    return importlib.util.find_spec("triton") is not None


def is_token(routing: Routing, device: torch.device, ranks: Ranks) -> list[Tensor]:
    """Return for each tower the booleans [N_k / C] that are false on padding rows, from host sizes alone."""
    return [
        ranks.rows_of_context(torch.arange(padded, device=device)) < size
        for size, padded in zip(routing.sizes, routing.padded_sizes, strict=True)
    ]
