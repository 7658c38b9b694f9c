"""Models, requests and results of generation."""

import torch

from helpers.models import model_config, random_part
from plait.config.model import ModelConfig, TowerConfig
from plait.generate import Generator, Request
from plait.model.mot import MixtureOfTransformers


def uneven() -> MixtureOfTransformers:
    """Towers of different width, each with a head of its own, and a mixture of experts."""
    towers = {"text": TowerConfig(width=16), "image": TowerConfig(width=24, ffn="moe", moe_routing="token_choice"),
              "speech": TowerConfig(width=8)}  # fmt: skip
    config = ModelConfig(modalities=model_config().modalities, towers=towers, num_layers=2, num_heads=2, head_dim=8)
    model = MixtureOfTransformers(config).double()
    with torch.no_grad():
        for p in model.head.parameters():
            p.mul_(20)
    return model


class General(Generator):
    """A generator that never takes the short way through a step of one id each."""

    def _advance(self, writing, drawing):
        decodes, type(self.streams[0]).decodes = type(self.streams[0]).decodes, False
        try:
            return super()._advance(writing, drawing)
        finally:
            type(self.streams[0]).decodes = decodes


def run(engine: Generator, asked: list[Request]) -> list:
    waiting, found = list(reversed(asked)), {}
    while waiting or engine.rows:
        while waiting and engine.fits(waiting[-1]):
            engine.add(waiting.pop())
        found |= {r.request.number: r for r in engine.step()}
    assert engine.cache.num_free == engine.cache.num_pages
    return [found[r.number] for r in asked]


GRIDS = {"image": (2, 3)}


def build(**settings) -> MixtureOfTransformers:
    model = MixtureOfTransformers(model_config(**settings)).double()
    with torch.no_grad():  # sharper than at the start, so that sampling has something to choose
        for p in model.head.parameters():
            p.mul_(20)
    return model


def requests(rng, count: int, **settings) -> list[Request]:
    found = []
    for i in range(count):
        prompt = [random_part(rng, m) for m in rng.choice(["text", "speech", "image"], int(rng.integers(0, 3)))]
        output = [None, "text", "image", "speech"][int(rng.integers(0, 4))]
        found.append(Request(prompt, output, max_tokens={"text": 9, "speech": 12}, number=i, **settings))
    return found


def parts_of(results) -> list:
    return [[(p.modality, p.ids.tolist()) for p in r.parts] + [r.stopped] for r in results]
