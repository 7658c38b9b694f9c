"""The claim that needs no training: a mixture whose towers are alike is the dense transformer."""

import numpy as np
import torch

from plait.batch.assemble import pack
from plait.batch.documents import Document, Part
from plait.config.model import ModalityConfig, ModelConfig
from plait.model.mot import MixtureOfTransformers
from plait.objectives import loss_sums

IDS = {"text": 64, "image": 48, "speech": 32}


def difference_of_identical_towers() -> float:
    """Return the largest difference, in float64, between a dense model and a mixture whose towers are copies of it:
    of losses by modality, and of gradients, where those of the towers are summed up."""
    dense, mixture = (_model(tower) for tower in ("text", ""))
    own, in_dense = dense.state_dict(), {part.place: name for name, part in dense.parts.items()}
    mixture.load_state_dict({name: own[in_dense[part.place]] for name, part in mixture.parts.items()})
    losses = []
    for model in (dense, mixture):
        batch = pack(_documents(), model.config)
        sums = loss_sums(model, model(batch), batch)
        sums.sum().backward()
        losses.append(sums.detach())
    summed = {name: torch.zeros_like(p) for name, p in dense.named_parameters()}
    for part, parameter in mixture.weights():
        summed[in_dense[part.place]] += parameter.grad
    gradients = [(summed[name] - p.grad).abs().max() for name, p in dense.named_parameters()]
    return float(torch.stack([(losses[0] - losses[1]).abs().max(), *gradients]).max())


def _model(tower: str) -> MixtureOfTransformers:
    modalities = {name: ModalityConfig(vocab_size=size, tower=tower) for name, size in IDS.items()}
    return MixtureOfTransformers(ModelConfig(modalities=modalities, width=64, num_layers=3, num_heads=4)).double()


def _documents() -> list[Document]:
    rng = np.random.default_rng(0)
    return [
        Document([Part(name, rng.integers(0, size, 3 + 4 * i)) for name, size in IDS.items()], index=i)
        for i in range(4)
    ]
