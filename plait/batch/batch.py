"""The packed batch that the model reads.

Shapes: T tokens of a batch in sequence order, N_k rows of tower k (padded), R = sum of N_k rows in tower order,
A position axes, C latent channels, n targets or latent tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from plait.batch.documents import Document
from plait.batch.spans import Span


@dataclass
class Routing:
    """The permutation that sorts tokens by tower, and its inverse; sizes are Python integers.

    Towers follow one another in the tower order: each has its ``sizes[k]`` rows, then padding up to
    ``padded_sizes[k]``.
    Padding rows repeat the batch's first token and are read by nobody.
    """

    sizes: list[int]
    padded_sizes: list[int]
    to_towers: Tensor
    """[R]: the token that fills each row."""
    to_sequence: Tensor
    """[T]: the row of each token."""
    in_order: bool = False
    """Whether one tower has all tokens, without padding, and nothing is trained: then nothing has to move."""


@dataclass
class Targets:
    """What next-token heads predict, sorted by tower: n targets."""

    rows: list[Tensor]
    """For each tower, the rows (within it) that predict something, [n_k]."""
    ids: Tensor
    """[n] global ids."""
    modality: Tensor
    """[n] index of the modality that the target counts for (a closing delimiter counts for what it closes)."""
    weight: Tensor
    """[n] float."""
    document: Tensor
    """[n] document of the batch."""


@dataclass
class Place:
    """Where one tower holds latents of a modality."""

    tokens: Tensor
    """[n_k] which of the modality's n tokens it carries, whole spans."""
    rows: Tensor
    """[n_k] in which of its rows."""
    grids: list[tuple[int, ...]]
    """The extent of each span."""


@dataclass
class Latents:
    """The continuous tokens of one modality, in sequence order: n tokens of several spans."""

    values: Tensor
    """[n, C] clean latents; noised ones once the objective has corrupted them."""
    span: Tensor
    """[n] index among this modality's spans in the batch."""
    places: dict[str, Place]
    """By tower."""
    lengths: list[int]
    """Tokens of each span."""
    documents: list[int]
    """The document of each span."""
    noised: list[bool]
    """Whether the objective noises the span and learns from it; the others stay clean."""
    timesteps: Tensor | None = None
    """[n] noise level in [0, 1], set by the objective (0 clean, 1 noise); None means clean."""
    targets: Tensor | None = None
    """[n, C] what the model is to predict, set by the objective."""


@dataclass
class Batch:
    """Packed documents, ready for the model."""

    ids: Tensor
    """[T] global ids (0 where the token is a latent)."""
    positions: Tensor
    """[T, A] float positions, restarting in every document."""
    routing: Routing
    spans: list[Span]
    targets: Targets
    latents: dict[str, Latents]
    counts: list[float]
    """For each modality: the total weight of its targets; for diffusion, its number of spans."""
    lengths: list[int]
    """Tokens of each document."""
    next_positions: list[float]
    """Where each document would go on."""
    documents: list[Document] = field(default_factory=list)
    """The documents packed here, where there are any."""
    attention: Any = None
    """The plan of the batch's attention (plait.model.attention), where the loader's threads made it."""

    @property
    def num_tokens(self) -> int:
        return self.ids.shape[0]

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch with every tensor on ``device``; from pinned memory the host does not wait."""
        batch: Batch = _each_tensor(self, lambda t: t.to(device, non_blocking=True))
        return batch

    def pin_memory(self) -> "Batch":
        """Return the batch in memory that a GPU copies from while the host goes on."""
        batch: Batch = _each_tensor(self, Tensor.pin_memory)
        return batch


def _each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {k: _each_tensor(v, change) for k, v in value.items()}
    if isinstance(value, (Batch, Routing, Targets, Latents, Place)):
        return replace(value, **{f.name: _each_tensor(getattr(value, f.name), change) for f in fields(value)})
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [change(v) for v in value]
    if hasattr(value, "each_tensor"):
        return value.each_tensor(change)
    return value
