"""Memory of one rank in a training step, by what holds it, and its peak.

Parameters, optimizer state, averages and gradients are counted; activations and logits come from `plait.plan.trace`.
Gradients grow while activations shrink, so that the peak is less than the sum of all.
"""

from dataclasses import dataclass

from plait.config.rank_layout import Layout
from plait.config.run import RunConfig
from plait.plan.layouts import MASTER, REDUCED, Sizes
from plait.plan.trace import Pass

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


def rank_memory(config: RunConfig, layout: Layout, part: Sizes, once: Pass, *, batches: int, width: int) -> RankMemory:
    """Return the memory of a rank in a step of ``batches`` batches.

    ``part`` are the parameters of one tensor rank, ``once`` is a pass over one batch, and ``width`` the bytes of a
    block's gathered parameter.
    """
    weights, gradients = MASTER * part.total / layout.sharers, REDUCED * part.trained / layout.sharers
    # AdamW keeps two numbers for each parameter, Muon one for each of the blocks' matrices
    states = 2 * part.trained - (part.matrices if config.train.optimizer == "muon" else 0)
    optimizer, averages = MASTER * states / layout.sharers, gradients if config.train.ema else 0.0
    if layout.is_gathered:
        activations = once.kept
        gathered = MASTER * part.outside + width * IN_FLIGHT * part.block
        # gradients of a block as they are computed, and as they are sent; outside the blocks until the pass is done
        outside = REDUCED * part.outside
        unreduced = (width + REDUCED) * part.block
        missing = (outside + REDUCED * part.block) / layout.sharers  # of the reduced ones, while the first block works
    else:
        activations = once.kept + once.casts
        gathered, outside, unreduced = 0.0, REDUCED * part.outside, 0.0
        missing = outside + REDUCED * part.entering  # while the first block works
    earlier = gradients if batches > 1 else 0.0
    peak = max(
        activations + once.loss + earlier,
        activations + once.backward + unreduced + (outside + earlier if layout.is_gathered else max(outside, earlier)),
        once.backward + unreduced + gradients + outside - missing,
    )
    working = max(once.loss, once.backward)
    return RankMemory(weights, optimizer, averages, gradients, gathered + unreduced, activations, working,
                      weights + optimizer + averages + gathered + peak)  # fmt: skip


def cache_bytes(config: RunConfig, tensor: int = 1) -> int:
    """Return the bytes of one token's keys and values in all layers while generating."""
    model = config.model
    width = 2 if config.generate.precision == "bfloat16" else 4
    return 2 * model.num_layers * (model.num_kv_heads // tensor) * model.attended_head_dim * width
