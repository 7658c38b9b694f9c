"""Operations of a pass and numbers of parameters, by formula, without running anything.

The standard count (PaLM, arXiv 2204.02311, appendix B): two operations for every multiplication with a weight,
attention only between the pairs that see one another, and a backward pass of twice the forward one. Norms, rotations,
activation functions and padding are left out, and so is what checkpointing computes again.
"""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from plait.batch.batch import Batch
from plait.config.model import ModelConfig, TowerConfig
from plait.model.latent_patches import LatentIn, LatentOut
from plait.model.mask import segments
from plait.model.mot import MixtureOfTransformers

BACKWARD = 2
"""Operations of a backward pass relative to the forward one."""


def operations(config: ModelConfig, batch: Batch) -> dict[str, dict[str, float]]:
    """Return the operations of a forward pass by tower and part: qkv, attention, o, ffn, router, head, latents.

    Exact for what the model multiplies. The batch lies on the host.
    """
    return _operations(config, batch, pairs_by_tower(config, batch))


def total_operations(config: ModelConfig, batch: Batch) -> dict[str, float]:
    """Return the operations of a forward pass by part: as `operations` in all towers, and quicker to count."""
    by_tower = list(_operations(config, batch, {next(iter(config.towers)): visible_pairs(batch)}).values())
    return {part: float(sum(tower[part] for tower in by_tower)) for part in by_tower[0]}


def _operations(config: ModelConfig, batch: Batch, pairs: dict[str, int]) -> dict[str, dict[str, float]]:
    heads, layers = config.num_heads * config.head_dim, config.num_layers
    keys = 2 * config.num_kv_heads * config.head_dim
    by_tower: dict[str, dict[str, float]] = {}
    for (name, tower), n, rows in zip(config.towers.items(), batch.routing.sizes, batch.targets.rows, strict=True):
        experts = tower.top_k if tower.ffn == "moe" else 1
        by_tower[name] = {
            "qkv": layers * 2 * n * tower.width * (heads + keys),
            "attention": layers * 4 * config.num_heads * config.attended_head_dim * pairs.get(name, 0),
            "o": layers * 2 * n * heads * tower.width,
            "ffn": layers * 2 * n * 3 * tower.width * tower.ffn_width * experts,
            "router": layers * 2 * n * tower.width * (tower.num_experts if tower.ffn == "moe" else 0),
            "head": 2 * len(rows) * tower.width * config.layout.size,
            "latents": 0,
        }
    for owner, count in _latent_operations(config, batch):
        by_tower[owner]["latents"] += count
    return by_tower


def _latent_operations(config: ModelConfig, batch: Batch) -> Iterator[tuple[str, float]]:
    """Yield a tower and the operations of what leads latents into it and out of it."""
    for name, group in batch.latents.items():
        modality, channels = config.modalities[name], group.values.shape[1]
        for tower, place in group.places.items():
            width, n, predicts = config.towers[tower].width, len(place.tokens), tower in modality.noised_towers
            if modality.patch_network in ("unet", "conv"):
                shape: dict[str, Any] = {"channels": channels, "width": width, "patch_size": modality.patch_size}
                shape |= {"network": modality.patch_network, "is_noised": modality.objective == "diffusion"}
                yield tower, sum(_network_operations(grid, predicts=predicts, **shape) for grid in place.grids)
            elif modality.objective == "input":
                yield tower, 2 * n * (channels * width + (modality.patch_network == "mlp") * width * width)
            else:  # in, out where the tower has a head, and the noise level's network
                yield tower, 2 * n * ((1 + predicts) * channels * width + 256 * width + width * width)


@functools.lru_cache(maxsize=256)
def _network_operations(
    grid: tuple[int, ...], *, channels: int, width: int, patch_size: int, network: str, is_noised: bool, predicts: bool
) -> float:
    """Return torch's count for one item of an extent, on tensors without values."""
    n = int(np.prod(grid))
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        latents, times = torch.empty(n, channels), torch.empty(n)
        shape: dict[str, Any] = {"patch_size": patch_size, "network": network}
        LatentIn(channels, width, is_noised=is_noised, **shape)(latents, times, [grid])
        if predicts:
            LatentOut(channels, width, **shape)(torch.empty(n, width), latents, times, [grid])
    return float(counter.get_total_flops())


def visible_keys(batch: Batch) -> np.ndarray:
    """Return how many keys each token [T] sees, itself included."""
    counts = np.empty(batch.num_tokens, np.int64)
    for s in segments(batch.spans):
        keys = sum(high - low for low, high in s.keys)
        counts[s.start : s.stop] = np.arange(keys - s.num_queries + 1, keys + 1) if s.causal else keys
    return counts


def visible_pairs(batch: Batch) -> int:
    """Return the number of (query, key) pairs in which the query sees the key."""
    pairs = 0
    for s in segments(batch.spans):
        n, keys = s.num_queries, sum(high - low for low, high in s.keys)
        pairs += n * keys - (n * (n - 1) // 2 if s.causal else 0)
    return pairs


def pairs_by_tower(config: ModelConfig, batch: Batch) -> dict[str, int]:
    """Return the number of visible (query, key) pairs by the query's tower."""
    ends = np.cumsum(batch.routing.padded_sizes)
    tower = np.searchsorted(ends, batch.routing.to_sequence.numpy(), side="right")
    counts = np.bincount(tower, weights=visible_keys(batch), minlength=len(ends))  # exact up to 2^53 pairs
    return dict(zip(config.towers, map(int, counts), strict=True))


def num_parameters(config: ModelConfig) -> int:
    """Return the number of a model's parameters in all, without making them."""
    with torch.device("meta"):
        return MixtureOfTransformers(config).num_parameters()


def active_parameters(config: ModelConfig) -> int:
    """Return the most parameters that one token passes through, of experts only those it is sent to."""
    with torch.device("meta"):
        return max(active_by_tower(MixtureOfTransformers(config)).values())


def active_by_tower(model: MixtureOfTransformers) -> dict[str, int]:
    """Return the parameters that one token of each tower passes through, of experts only those it is sent to."""
    config = model.config
    return {
        name: count - idle_parameters(config.towers[name], config.num_layers)
        for name, count in model.passed_parameters().items()
    }


def idle_parameters(tower: TowerConfig, num_layers: int) -> int:
    """Return how many of a tower's parameters are those of experts that a token is not sent to."""
    if tower.ffn != "moe":
        return 0
    return num_layers * 3 * tower.width * tower.ffn_width * (tower.num_experts - tower.top_k)
