"""The precision that a forward pass computes in; parameters keep their own."""

import contextlib

import torch

from plait.common.devices import is_fast_in_bfloat16
from plait.model.mot import MixtureOfTransformers
from plait.model.traits import WeightRecord


def usable(precision: str, device: torch.device) -> str:
    """Return the precision to compute in where ``precision`` is configured: float32 where the device has no
    instructions for bfloat16, which would be many times slower there."""
    return precision if precision != "bfloat16" or is_fast_in_bfloat16(device.type) else "float32"


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
    """Keep the matrices of a model in bfloat16, to generate with in half the memory.

    Under `autocast` to bfloat16 matrices are cast anyway, so that only the rows of embeddings lose anything; without
    it each product casts its matrix back. Norms and biases stay as they are.
    """
    for part, parameter in model.weights():
        if is_shortened(part):
            parameter.data = parameter.data.to(torch.bfloat16)


def is_shortened(part: WeightRecord) -> bool:
    """Say whether `shorten` keeps a weight in bfloat16."""
    return part.trait.is_matrix or part.place.component == "embed"
