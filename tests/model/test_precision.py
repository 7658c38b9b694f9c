"""Weights in bfloat16: what is computed with them is what autocast computes, in half the memory. And where a device has
no instructions for bfloat16, float32 is computed in its place."""

import copy
from dataclasses import replace

import pytest
import torch
from helpers.generation import build, requests
from helpers.models import model_config, random_documents

from plait.batch.assemble import pack
from plait.common.errors import ConfigError
from plait.config.generation import DiffusionConfig
from plait.config.model import TowerConfig
from plait.generate import generate
from plait.model.mot import MixtureOfTransformers
from plait.model.precision import autocast, shorten, usable
from plait.objectives import loss_sums
from plait.objectives.diffusion import corrupt


@pytest.mark.parametrize("settings", [{}, {"tie_embeddings": True}, {"qkv_bias": True, "later_sees": "clean_copy"}],
                         ids=str)  # fmt: skip
@torch.no_grad()
def test_shorter_weights_compute_what_autocast_does(settings, rng):
    """But for the rows of the embedding, which autocast does not round, to the bit."""
    model = MixtureOfTransformers(model_config(mel=True, **settings))
    short = copy.deepcopy(model)
    shorten(short)
    for table in model.embed.values():
        table.weight.copy_(table.weight.bfloat16())
    batch = corrupt(pack(random_documents(rng, 5, mel=True), model.config), DiffusionConfig(), 0)
    with autocast("bfloat16", torch.device("cpu")):
        expected, hidden = model(batch), short(batch)
        latents = [m.predict_latents(h, batch, "mel") for m, h in ((model, expected), (short, hidden))]
    assert short.dtype == torch.float32 and all(h.dtype == torch.float32 for h in hidden)
    for a, b in zip([*expected, latents[0]], [*hidden, latents[1]], strict=True):
        assert torch.equal(a, b)
    sizes = [sum(p.numel() * p.element_size() for p in m.parameters()) for m in (model, short)]
    assert sizes[1] < 0.55 * sizes[0]


@pytest.mark.parametrize("experts", [False, True])
@torch.no_grad()
def test_shorter_weights_without_autocast_compute_in_float32(experts, rng):
    """To the bit what the same values kept in float32 do; the loss and the logits too."""
    config = model_config(mel=True, tie_embeddings=experts)
    if experts:
        tower = TowerConfig(ffn="moe", moe_routing="token_choice", num_experts=4, top_k=1)
        config = replace(config, towers={**config.towers, "text": tower})
    short = MixtureOfTransformers(config)
    shorten(short)
    wide = copy.deepcopy(short).float()
    batch = corrupt(pack(random_documents(rng, 5, mel=True), short.config), DiffusionConfig(), 0)
    found, expected = short(batch), wide(batch)
    rows = [torch.arange(len(h)) for h in found]
    pairs = list(zip(found, expected, strict=True))
    pairs += [(short.predict_latents(found, batch, "mel"), wide.predict_latents(expected, batch, "mel"))]
    pairs += [(short.logits(found, rows), wide.logits(expected, rows))]
    pairs += [(loss_sums(short, found, batch), loss_sums(wide, expected, batch))]
    for a, b in pairs:
        assert a.dtype == b.dtype == torch.float32 and torch.equal(a, b)


@pytest.mark.parametrize("is_fast", [True, False])
def test_precision_follows_the_device(is_fast, monkeypatch):
    monkeypatch.setattr("plait.model.precision.is_fast_in_bfloat16", lambda kind: is_fast)
    used = {name: usable(name, torch.device("cpu")) for name in ("float32", "bfloat16", "float8")}
    assert used == {"float32": "float32", "bfloat16": "bfloat16" if is_fast else "float32", "float8": "float8"}


@torch.no_grad()
def test_a_model_that_is_short_throughout_has_a_short_stream(rng):
    """As after `model.bfloat16()`, without autocast: every product gets what its weight is."""
    model = MixtureOfTransformers(model_config(mel=True)).bfloat16()
    batch = corrupt(pack(random_documents(rng, 5, mel=True), model.config), DiffusionConfig(), 0)
    assert model.dtype == torch.bfloat16 and all(h.dtype == torch.bfloat16 for h in model(batch))


def test_weights_are_read_in_bfloat16(tmp_path):
    """As if they had been shortened after; the model is never there in float32."""
    MixtureOfTransformers(model_config(mel=True)).save_pretrained(tmp_path)
    expected = MixtureOfTransformers.from_pretrained(tmp_path)
    shorten(expected)
    model = MixtureOfTransformers.from_pretrained(tmp_path, dtype=torch.bfloat16)
    wanted, found = expected.state_dict(), model.state_dict()
    assert {t.dtype for t in found.values()} == {torch.float32, torch.bfloat16}
    assert all(found[name].dtype == t.dtype and torch.equal(found[name], t) for name, t in wanted.items())
    with pytest.raises(ConfigError, match=r"dtype: torch.float16 is not allowed"):
        MixtureOfTransformers.from_pretrained(tmp_path, dtype=torch.float16)


@torch.no_grad()
def test_it_generates(rng):
    model = build().float()
    short = copy.deepcopy(model)
    shorten(short)
    for table in model.embed.values():
        table.weight.copy_(table.weight.bfloat16())
    asked = requests(rng, 12)
    made = [generate(m, asked, grids={"image": (2, 3)}, max_length=128, precision="bfloat16") for m in (model, short)]
    parts = [[(p.modality, p.ids.tolist()) for r in results for p in r.parts] for results in made]
    assert parts[0] == parts[1] and len(parts[0]) > 12
