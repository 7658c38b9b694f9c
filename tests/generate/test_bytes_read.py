"""A decoding step reads the weights of the towers that have rows, once, as they are kept."""

import numpy as np
import pytest
import torch
from bytes_read import WeightBytes, least_bytes
from helpers.models import modalities, model_config

from plait.batch.documents import Part
from plait.config.model import ModelConfig, TowerConfig
from plait.generate import Generator, Request
from plait.model.mot import MixtureOfTransformers
from plait.model.precision import shorten

TOWERS = {
    "text": TowerConfig(width=32),
    "image": TowerConfig(width=48, ffn="moe", moe_routing="token_choice"),
    "speech": TowerConfig(width=32),
}


def generator(model, outputs, precision="float32") -> Generator:
    engine = Generator(model, grids={"image": (4, 4)}, max_rows=4, max_length=64, precision=precision)
    engine._allowed.table[:, model.config.layout.eos] = float("-inf")
    for i, output in enumerate(outputs):
        engine.add(Request([Part("text", np.arange(5))], output, max_tokens={"text": 40, "speech": 40}, number=i))
    engine.step()  # the prompt
    return engine


def made(*, mel=True, short=False, **settings) -> MixtureOfTransformers:
    config = model_config(mel=mel, num_heads=2, head_dim=16, **settings)
    model = MixtureOfTransformers(config).requires_grad_(False)
    if short:
        shorten(model)
    return model


@torch.no_grad()
@pytest.mark.parametrize(
    "settings", [{}, {"tie_embeddings": True}, {"untied": ["ffn", "norm"]}], ids=["apart", "tied", "shared"]
)
@pytest.mark.parametrize("short", [False, True], ids=["float32", "bfloat16"])
def test_a_step_of_text_reads_the_text_tower_once(settings, short):
    """Four layers of text read what must be read, and nothing of images, speech and latents."""
    model = made(short=short, width=64, ffn_width=128, num_layers=4, **settings)
    engine = generator(model, ["text"], "bfloat16" if short else "float32")
    with WeightBytes(model) as counted:
        engine.step()
    strangers = {n for n in counted.read if model.parts[n].tower not in (None, "text")}
    assert strangers == set()
    low, high = engine._allowed.ranges[engine._allowed.index["host"]]
    least = least_bytes(model, "text", high - low)
    norms = sum(p.nbytes for part, p in model.weights() if not part.trait.is_matrix)
    assert least <= counted.total <= least + 3 * norms * short, (least, counted.total)


@torch.no_grad()
def test_rows_of_two_towers_read_two_towers():
    """Widths and networks that differ; what is read grows by the other tower's weights, and the third's are left."""
    config = ModelConfig(modalities=modalities(), towers=TOWERS, num_layers=2, num_heads=2, head_dim=16)
    model = MixtureOfTransformers(config).requires_grad_(False)
    engine = generator(model, ["text", "image"])
    for _ in range(2):
        engine.step()
    with WeightBytes(model) as counted:
        engine.step()
    read = {model.parts[n].tower for n in counted.read}
    assert read == {"text", "image"}
