"""Documents and their parts, and THE rule of roles."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass
class Part:
    """One encoded piece of a document."""

    modality: str
    ids: np.ndarray | None = None
    """Local ids of the codec, [n] (discrete)."""
    latents: np.ndarray | None = None
    """Latents, [n, C] (continuous)."""
    grid: tuple[int, ...] = ()
    """Extent in space, such as (rows, columns); their product is n."""
    role: str = "generation"
    """understanding or generation, as `role_of` says; a routing key where the config says so."""
    loss: float = 1.0
    """Weight of these tokens as targets; 0 where they are no targets."""

    def __len__(self) -> int:
        return len(self.ids) if self.ids is not None else len(self.latents)


def role_of(*, given: bool, loss: float = 1.0) -> str:
    """THE rule of roles: a part is generation where it carries loss or is being made, else understanding.

    ``given`` is what a task or a prompt gives, so that something else follows from it. What a task gives is
    understanding even where next-token losses count its ids too, as they do in Chameleon: it goes the way that a prompt
    goes.
    """
    return "understanding" if given or not loss else "generation"


def as_given(parts: Sequence[Part]) -> list[Part]:
    """Return parts as a prompt holds them."""
    return [replace(part, role=role_of(given=True, loss=part.loss)) for part in parts]


@dataclass
class Document:
    """Parts in order, and who they are. `index` and `epoch` key every random draw about the document."""

    parts: list[Part]
    index: int = 0
    epoch: int = 0
    task: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
