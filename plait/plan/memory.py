"""Memory of one rank in a training step, by what holds it, and its peak.

Parameters, optimizer state, averages and gradients are counted; activations and logits come from `plait.plan.trace`.
Gradients grow while activations shrink, so that the peak is less than the sum of all.
"""

from dataclasses import dataclass

from plait.config import RunConfig
from plait.plan.layouts import MASTER, REDUCED, Layout, Sizes
from plait.plan.trace import PassMemory

IN_FLIGHT = 2
"""Blocks whose parameters are gathered at once: the one at work, and the next one on its way."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank."""

    weights: float
    optimizer: float
    averages: float
    """Averaged weights (train.ema)."""
    gradients: float
    gathered: float
    """Parameters of other ranks while they are needed, and gradients before they are reduced."""
    activations: float
    """What the forward pass of one batch keeps for the backward one, casts of weights included."""
    working: float
    """Beyond that, the most that the losses (logits) or a block's gradients need."""
    peak: float
    """The most at any time of a step."""


def rank_memory(
    config: RunConfig, layout: Layout, part: Sizes, once: PassMemory, *, batches: int, width: int
) -> RankMemory:
    """Return the memory of a rank with the parameters ``part`` before sharding, in a step of ``batches`` batches.

    ``once`` is the memory of a pass over one batch by a tensor rank, ``width`` the bytes of a gathered parameter.
    """
    others = layout.shard * layout.context
    weights, gradients = MASTER * part.total / others, REDUCED * part.trained / others
    optimizer = 2 * MASTER * part.trained / others
    averages = MASTER * part.trained / others if config.train.ema else 0.0
    gathered = unreduced = 0.0
    kept, loss, backward = once.kept / layout.context, once.loss, once.backward / layout.context
    if others > 1:
        gathered = width * (part.outside + IN_FLIGHT * part.block)
        unreduced = REDUCED * (part.outside + part.block)
    else:
        kept += once.casts
    outside = REDUCED * part.outside / others  # the gradients that come first
    earlier = gradients if batches > 1 else 0.0
    peak = max(
        kept + loss + earlier,
        kept + backward + unreduced + max(earlier, outside),
        backward + unreduced + gradients,
    )
    working = max(loss, backward)
    return RankMemory(weights, optimizer, averages, gradients, gathered + unreduced, kept, working,
                      weights + optimizer + averages + gathered + peak)  # fmt: skip


def cache_bytes(config: RunConfig, tensor: int = 1) -> int:
    """Return the bytes of one token's keys and values in all layers while generating."""
    model = config.model
    width = 2 if config.generate.precision == "bfloat16" else 4
    return 2 * model.num_layers * (model.num_kv_heads // tensor) * model.head_dim * width
