"""What each weight of a model is: said by the module that has it, and read by all who treat weights differently.

Nobody guesses it from a name: a tower or modality may be called `norm`, `gate` or `o`.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from plait.model.ranks import part_of


@dataclass(frozen=True)
class Trait:
    """What one tensor of a module is. Each module of plait.model that has tensors says it in ``traits``, by name."""

    start: Literal["zeros", "ones", "normal"]
    """How it begins."""
    std: float = 0.0
    """Standard deviation of its first values, where they are normal."""
    is_matrix: bool = False
    """Whether products or convolutions use it: then it decays, and in a block Muon moves it."""
    cut: int | None = None
    """Dimension that tensor ranks cut; None: each of them holds all of it."""
    adapts: bool = False
    """Whether it changes another weight, which is frozen (`plait.model.lora`)."""

    @torch.no_grad()
    def fill(self, tensor: Tensor, key: str) -> None:
        """Set a tensor, or this rank's part of it, to its first values; random ones depend on ``key`` alone."""
        if self.start == "normal":
            digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
            draw = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
            tensor.copy_(part_of(draw * self.std, tensor))
        else:
            tensor.fill_(1.0 if self.start == "ones" else 0.0)


@dataclass(frozen=True)
class Place:
    """Where in a tower a tensor is: the same place in two towers, or two models, does the same work."""

    component: str
    """embed, head, final_norm, latent_in, latent_out, or of a block qkv, o, ffn, attention_norm, ffn_norm."""
    inner: str
    """Its name within the tower's module, such as ``gate.weight``."""
    layer: int | None = None
    """The block it is in."""
    modality: str | None = None
    """The modality whose latents it leads in or out."""


@dataclass(frozen=True)
class WeightRecord:
    """One parameter, or saved buffer, of a model."""

    name: str
    """Its name in the model, and so in files."""
    place: Place
    tower: str | None
    """The tower that owns it; None where towers share it."""
    trait: Trait

    @property
    def in_block(self) -> bool:
        return self.place.layer is not None


def traits_of(module: nn.Module) -> Iterator[tuple[str, Trait]]:
    """Yield the names and traits of all parameters and saved buffers within a module."""
    for path, inner in module.named_modules():
        for name in [*inner._parameters, *(b for b in inner._buffers if b not in inner._non_persistent_buffers_set)]:
            if getattr(inner, name) is not None:
                yield f"{path}.{name}" if path else name, inner.traits[name]
