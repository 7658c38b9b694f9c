"""Batches of a loader, and whether they are equal."""

import dataclasses

import numpy as np
import torch


def same(a, b) -> bool:
    """Return whether two batches are equal, bit for bit."""
    if isinstance(a, torch.Tensor | np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b


def take(loader, count) -> list:
    """Return the next batches and states, and stop the loader's threads."""
    iterator = iter(loader)
    found = [next(iterator) for _ in range(count)]
    iterator.close()
    return found
