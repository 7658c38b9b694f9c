"""What a block keeps of its forward pass for the backward pass, and what it computes again there."""

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["none", "full", "selective"]

_KEPT = (
    "aten.mm", "aten.addmm", "aten.bmm", "aten._grouped_mm",
    "aten._scaled_dot_product_flash_attention", "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention", "aten._scaled_dot_product_flash_attention_for_cpu",
    "plait.segment_attention", "torch_attn._varlen_attn", "higher_order.flex_attention",
    "_c10d_functional.reduce_scatter_tensor",
    "_c10d_functional.all_to_all_single",
)  # fmt: skip
"""What selective recomputing keeps: products, attention, and what ranks sum or exchange around it (torchtitan's
choice). Rows that tensor ranks gather are gathered again: they would be kept by each of them."""


def computed(block: Callable, recompute: Recompute, *arguments):
    """Return what a block computes; with full, nothing but its inputs is kept, with selective what is dear to compute.

    Selective computes norms, activations, rotations and permutations again, which cost little and fill most memory.
    """
    if recompute == "none" or not torch.is_grad_enabled():
        return block(*arguments)
    if recompute == "full":
        return checkpoint(block, *arguments, use_reentrant=False)
    return checkpoint(block, *arguments, use_reentrant=False, context_fn=_selective)


def _selective() -> tuple:
    """Return what torch enters in the forward pass, and when it computes again."""
    return create_selective_checkpoint_contexts(_kept_operations())


@functools.cache
def _kept_operations() -> list:
    """Return the operations of `_KEPT` that this torch has."""
    operations = []
    for name in _KEPT:
        space, _, operation = name.partition(".")
        packet = getattr(getattr(torch.ops, space), operation, None)
        if packet is not None:
            operations.append(getattr(packet, "default", packet))
    return operations
