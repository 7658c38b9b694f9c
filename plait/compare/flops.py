"""Operations of a training step, counted by formula and by torch, without padding.

The formula is the standard count (PaLM, arXiv 2204.02311, appendix B): two operations for every multiplication with a
weight, attention only between the pairs that see one another, and a backward pass of twice the forward one. torch's
counter sees what runs: a causal segment's attention as the whole rectangle of queries and keys. Both are stated; what
makes two arms comparable is that they agree by both.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from plait.batch import Batch, pack
from plait.config import RunConfig
from plait.errors import ConfigError
from plait.model.mask import segments
from plait.model.mot import MixtureOfTransformers
from plait.model.segment_attention import table_of
from plait.model_config import ModelConfig, TowerConfig
from plait.objectives import loss_sums
from plait.objectives.diffusion import corrupt

BACKWARD = 2
"""Operations of a backward pass relative to the forward one."""


@dataclass(frozen=True)
class Flops:
    """Operations of the forward and backward pass of some batches."""

    formula: float
    counted: float


def unpadded(batch: Batch, config: RunConfig) -> Batch:
    """Return the batch of the same documents without padding rows, noised where its objectives noise."""
    return corrupt(pack(batch.documents, config.model, pad_rows_to=1), config.diffusion, config.seed)


def step_flops(config: RunConfig, batches: list[Batch]) -> Flops:
    """Return the operations of one optimizer step, from some of the run's own batches."""
    batches = [unpadded(b, config) for b in batches]
    scale = config.train.accumulate / len(batches)
    formula = sum((1 + BACKWARD) * sum(forward_flops(config.model, b).values()) for b in batches)
    counted = sum(counted_flops(config.model, b) for b in batches)
    return Flops(formula * scale, counted * scale)


def forward_flops(config: ModelConfig, batch: Batch) -> dict[str, float]:
    """Return the operations of a forward pass by part: qkv, attention, o, ffn, router, head, latents.

    Exact for what the model multiplies, but for norms, rotations and the like. Raises ConfigError for U-Nets between
    latents and tokens, which have no such formula here.
    """
    parts = dict.fromkeys(("qkv", "attention", "o", "ffn", "router", "head", "latents"), 0.0)
    heads, layers = config.num_heads * config.head_dim, config.num_layers
    keys = 2 * config.num_kv_heads * config.head_dim
    for n, rows, tower in zip(batch.routing.sizes, batch.targets.rows, config.towers.values(), strict=True):
        parts["qkv"] += layers * 2 * n * tower.width * (heads + keys)
        parts["o"] += layers * 2 * n * heads * tower.width
        parts["ffn"] += layers * 2 * n * 3 * tower.width * tower.ffn_width * _experts_a_token(tower)
        parts["router"] += layers * 2 * n * tower.width * (tower.num_experts if tower.ffn == "moe" else 0)
        parts["head"] += 2 * len(rows) * tower.width * config.layout.size
    parts["attention"] = layers * 4 * heads * visible_pairs(batch)
    for name, group in batch.latents.items():
        if config.modalities[name].patch_network != "linear":
            raise ConfigError(
                f"model.modalities.{name}.patch_network: 'unet' is not allowed in a comparison, it must be linear, as "
                "operations are also counted by formula"
            )
        for tower, place in group.places.items():
            width = config.towers[tower].width
            ends = 1 + (tower in config.modalities[name].noised_towers)  # in, and out where the tower has a head
            per_token = ends * group.values.shape[1] * width + 256 * width + width * width  # the noise level's network
            parts["latents"] += 2 * len(place.tokens) * per_token
    return parts


def _experts_a_token(tower: TowerConfig) -> int:
    return tower.top_k if tower.ffn == "moe" else 1


def visible_pairs(batch: Batch) -> int:
    """Return the number of (query, key) pairs in which the query sees the key."""
    pairs = 0
    for s in segments(batch.spans):
        n, keys = s.num_queries, sum(high - low for low, high in s.keys)
        pairs += n * keys - (n * (n - 1) // 2 if s.causal else 0)
    return pairs


def counted_flops(config: ModelConfig, batch: Batch) -> float:
    """Return the operations of a forward and a backward pass that torch counts, on tensors without values.

    What a CPU runs is counted. Attention by segments is an operation of plait's own, so its count is said here.
    """
    aten, own = torch.ops.aten, torch.ops.plait
    cells = attention_cells(batch)
    formulas = {
        aten.addmm_: lambda out, left, right, **more: 2 * left[0] * left[1] * right[1],
        # two products forward: the scores, and sums of values; five backward: the scores again, and four gradients
        own.segment_attention: lambda query, *rest, **more: 2 * 2 * query[1] * query[2] * cells,
        own.segment_attention_backward: lambda gradient, *rest, **more: 5 * 2 * gradient[1] * gradient[2] * cells,
    }
    if hasattr(aten, "_grouped_mm"):
        # rows [n, K] by weights [E, K, N]; for the weights' gradient [K, n] by [n, N] in groups
        formulas[aten._grouped_mm] = lambda left, right, *rest, **more: 2 * left[0] * left[1] * right[-1]
    with _no_tensor_is_kept(), FakeTensorMode(allow_non_fake_inputs=True):
        model = MixtureOfTransformers(config)
        # without values, torch's grouped products have no other precision
        with torch.autocast("cpu", torch.bfloat16), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
            loss_sums(model, model(batch), batch).sum().backward()
    return float(counter.get_total_flops())


@contextlib.contextmanager
def _no_tensor_is_kept() -> Iterator[None]:
    """Empty plait's caches afterwards: what they kept has no values."""
    try:
        yield
    finally:
        for name, module in list(sys.modules.items()):
            if name.startswith(("plait.model", "plait.objectives")):
                for value in vars(module).values():
                    if hasattr(value, "cache_clear"):
                        value.cache_clear()


def attention_cells(batch: Batch) -> int:
    """Return how many (query, key) pairs a CPU's attention computes, those that a causal mask hides included."""
    return sum((row[1] - row[0]) * sum(b - a for a, b in zip(row[3::2], row[4::2], strict=True))
               for row in table_of(segments(batch.spans)).tolist())  # fmt: skip


def parameters(config: ModelConfig) -> dict[str, int]:
    """Return the number of parameters in all (``total``) and of those that a token of each tower passes through."""
    with torch.device("meta"):
        return MixtureOfTransformers(config).num_parameters()


def active_parameters(config: ModelConfig) -> int:
    """Return the most parameters that one token passes through, of experts only those it is sent to."""
    counts = parameters(config)
    spared = 0
    for tower in config.towers.values():
        if tower.ffn == "moe":
            idle = tower.num_experts - tower.top_k
            spared = max(spared, config.num_layers * 3 * tower.width * tower.ffn_width * idle)
    return max(n for name, n in counts.items() if name != "total") - spared
