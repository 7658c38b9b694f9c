"""The precision that a forward pass computes in; parameters keep their own."""

import contextlib

import torch

from plait.model.mot import MixtureOfTransformers
from plait.model.traits import WeightRecord


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """Return the context of a forward pass in a configured precision: float32 (nothing) or bfloat16."""
    if precision == "float32":
        return contextlib.nullcontext()
    # a weight is cast once a pass anyway, and the cache of casts is shared by threads
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


def attended(precision: str) -> torch.dtype:
    """Return the precision of what is attended under `autocast`."""
    return torch.float32 if precision == "float32" else torch.bfloat16


@torch.no_grad()
def shorten(model: MixtureOfTransformers) -> None:
    """Keep the matrices of a model in bfloat16, to generate with in half the memory, under `autocast` to bfloat16.

    That casts matrices anyway, so that only the rows of embeddings lose anything; norms and biases stay as they are.
    """
    for part, parameter in model.weights():
        if is_shortened(part):
            parameter.data = parameter.data.to(torch.bfloat16)


def is_shortened(part: WeightRecord) -> bool:
    """Say whether `shorten` keeps a weight in bfloat16."""
    return part.trait.is_matrix or part.place.component == "embed"
