"""Models, documents and parts drawn at random, and a watch over what makes the host wait for a device."""

import dataclasses

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from plait.batch.documents import Document, Part
from plait.config.model import ModalityConfig, ModelConfig
from plait.model.mot import MixtureOfTransformers

SIZES = {"text": 20, "image": 12, "speech": 9}


def modalities(
    *, mel: bool = False, towers: dict[str, str] | None = None, later_sees: str = "noised", attention="bidirectional"
) -> dict[str, ModalityConfig]:
    towers = towers or {}
    found = {name: ModalityConfig(vocab_size=size, tower=towers.get(name, "")) for name, size in SIZES.items()}
    if mel:
        found["mel"] = ModalityConfig(objective="diffusion", attention=attention, latent_channels=3,
                                      later_sees=later_sees, place_embedding=attention == "causal",
                                      tower=towers.get("mel", ""))  # fmt: skip
    return found


def model_config(
    *,
    mel: bool = False,
    towers: dict[str, str] | None = None,
    later_sees="noised",
    attention="bidirectional",
    **settings,
) -> ModelConfig:
    settings = {"width": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "ffn_width": 24} | settings
    records = modalities(mel=mel, towers=towers, later_sees=later_sees, attention=attention)
    return ModelConfig(modalities=records, **settings)


def sharp_model(**settings) -> MixtureOfTransformers:
    """Return a model in float64 whose heads are sharper than at the start, so that it matters what was given."""
    model = MixtureOfTransformers(model_config(mel=True, **settings)).double()
    with torch.no_grad():
        for p in (*model.head.parameters(), *model.latent_out.parameters()):
            p.mul_(20)
    return model


def with_modality(config: ModelConfig, name: str, **settings) -> ModelConfig:
    """Return a model of which one modality is changed, or added."""
    changed = dataclasses.replace(config.modalities.get(name, ModalityConfig()), **settings)
    return dataclasses.replace(config, modalities={**config.modalities, name: changed})


def random_part(rng: np.random.Generator, modality: str, longest: int = 7) -> Part:
    n = int(rng.integers(1, longest + 1))
    if modality == "mel":
        role = ("understanding", "generation")[int(rng.integers(2))]
        return Part("mel", latents=rng.standard_normal((2 * n, 3)).astype(np.float32), grid=(2, n), role=role)
    return Part(modality, ids=rng.integers(0, SIZES[modality], n))


def random_documents(rng: np.random.Generator, count: int, *, mel: bool = False, only=None) -> list[Document]:
    names = list(only or [*SIZES, *(["mel"] if mel else [])])
    documents = []
    for i in range(count):
        chosen = [names[j] for j in rng.integers(0, len(names), int(rng.integers(1, 5)))]
        documents.append(Document([random_part(rng, name) for name in chosen], index=i))
    return documents


class Forbidden(TorchDispatchMode):
    """Records operations that make the host wait for the device, or index by booleans."""

    NAMES = ("nonzero", "_local_scalar_dense", "masked_select", "is_nonzero", "unique", "bincount", "item")

    def __init__(self):
        super().__init__()
        self.seen, self.count = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        name = func.overloadpacket.__name__
        if name in self.NAMES or (name.startswith("index") and any(_is_bool(a) for a in args[1:])):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def _is_bool(x) -> bool:
    many = x if isinstance(x, (list, tuple)) else [x]
    return any(isinstance(t, torch.Tensor) and t.dtype == torch.bool for t in many)
