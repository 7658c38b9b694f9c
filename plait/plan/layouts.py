"""Ways to lay a model over ranks: which there are, what each holds and sends, and how long its step takes.

Ranks are numbered so that a tensor group lies closest together, then a context group, then those that shard, then the
replicas: a group lies within one machine where its size times that of the groups inside it is at most the machine's.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch

from plait.config.model import ModelConfig
from plait.config.rank_layout import Layout
from plait.model.frozen import is_frozen
from plait.model.mot import MixtureOfTransformers
from plait.model.precision import is_shortened
from plait.plan.trace import Pass

MASTER, REDUCED = 4, 4
"""Bytes of a parameter that is kept, and of a gradient that is summed over ranks: float32 whatever the precision."""


@dataclass(frozen=True)
class Sizes:
    """Parameters of one rank's part of the model before sharding."""

    block: float
    """Of one block, on average."""
    outside: int
    """Embedding, head, final norm, and what leads latents in and out."""
    total: int
    trained: int
    """Those that have gradients and optimizer state."""
    entering: int
    """The trained ones before the first block, whose gradients are made last."""
    matrices: int
    """The trained ones that are matrices of blocks."""
    shortened: int
    """Those that bfloat16 weights shorten, to generate with."""

    def weight_bytes(self, weights: str) -> int:
        """Return the bytes of the weights while generating, in float32 or with bfloat16 matrices."""
        return 4 * self.total - 2 * self.shortened * (weights == "bfloat16")


def sizes(config: ModelConfig, frozen: Collection[str] = ()) -> Sizes:
    """Count the parameters of a model, without making them; ``frozen`` towers are not trained."""
    with torch.device("meta"):
        model = MixtureOfTransformers(config)
    total = trained = entering = blocks = matrices = shortened = 0
    for part, parameter in model.weights():
        size, is_trained = parameter.numel(), not is_frozen(part, config, frozen)
        total += size
        trained += size * is_trained
        enters = part.place.component == "latent_in" or (part.place.component == "embed" and not config.tie_embeddings)
        entering += size * (is_trained and enters)
        blocks += size * part.in_block
        matrices += size * (is_trained and part.in_block and part.trait.is_matrix)
        shortened += size * is_shortened(part)
    return Sizes(blocks / config.num_layers, total - blocks, total, trained, entering, matrices, shortened)


def tensor_sizes(config: ModelConfig, most: int) -> list[int]:
    """Return how many ranks, up to ``most``, can share every matrix of the model."""
    widths = [t.ffn_width for t in config.towers.values()]
    return [t for t in divisors(most) if config.num_kv_heads % t == 0 and all(w % t == 0 for w in widths)]


def possible_layouts(config: ModelConfig, ranks: int, node: int) -> Iterator[Layout]:
    """Yield the layouts of some ranks, ``node`` of which are in one machine.

    Tensor groups stay within a machine; context groups take whole key heads; shards are none, those of one machine, or
    all data ranks.
    """
    compares = any(t.ffn == "moe" and t.moe_routing == "expert_choice" for t in config.towers.values())
    for tensor in tensor_sizes(config, min(node, ranks)):
        for context in divisors(ranks // tensor) if ranks % tensor == 0 else ():
            if (config.num_kv_heads // tensor) % context or (compares and context > 1):
                continue
            data = ranks // (tensor * context)
            local = max(1, node // (tensor * context))
            for shard in sorted({1, local if data % local == 0 else data, data}):
                yield Layout(data // shard, shard, tensor, context)


def divisors(number: int) -> list[int]:
    """Return the divisors of a number, in order."""
    return [n for n in range(1, number + 1) if number % n == 0]


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends in one step, by the ranks that it shares something with."""

    shard: float = 0.0
    replicate: float = 0.0
    tensor: float = 0.0
    context: float = 0.0

    @property
    def total(self) -> float:
        return self.shard + self.replicate + self.tensor + self.context


def traffic(layout: Layout, part: Sizes, once: Pass, *, num_layers: int, batches: int, width: int) -> Traffic:
    """Return what a rank sends in a step of ``batches`` batches.

    ``part`` are the parameters of one tensor rank, ``once`` is a pass over one batch, and ``width`` the bytes of a
    block's gathered parameter. Rings: of n ranks, each sends (n - 1) / n of what is gathered or reduced.
    """
    # blocks are gathered for the forward and again for the backward pass, what stands outside once
    gathered = 2 * width * part.block * num_layers + MASTER * part.outside
    shard = batches * _share(layout.sharers) * (gathered + REDUCED * part.trained)
    replicate = 2 * _share(layout.replicate) * REDUCED * part.trained / layout.sharers  # after the last batch alone
    return Traffic(shard, replicate, batches * once.tensor, batches * once.context)


def _share(ranks: int) -> float:
    return (ranks - 1) / ranks
