"""The precision that a forward pass computes in; parameters keep their own."""

import contextlib

import torch


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """Return the context of a forward pass in a configured precision: float32 (nothing) or bfloat16."""
    if precision == "float32":
        return contextlib.nullcontext()
    # a weight is cast once a pass anyway, and the cache of casts is shared by threads
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)
