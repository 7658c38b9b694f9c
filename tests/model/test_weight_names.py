"""What a weight is does not depend on what towers and modalities are called: a name is only a name."""

import hashlib
import math

import numpy as np
import pytest
import torch
from helpers.weights import triples
from torch.distributed.tensor import Replicate, Shard

from plait.batch.assemble import pack
from plait.batch.documents import Document, Part
from plait.common.errors import ConfigError, DataError
from plait.config.model import ModalityConfig, ModelConfig, TowerConfig
from plait.config.run import TrainConfig
from plait.config.run_records import TowerSettings
from plait.model.mot import MixtureOfTransformers
from plait.model.pretrained import load_pretrained, save_pretrained
from plait.plan.layouts import sizes
from plait.train.optim import make_optimizer
from plait.train.parallel import placement

PLAIN = ("text", "image", "mel")
KINDS = {
    "plain": {},
    "post norm, biases": {"norm_order": "post", "qkv_bias": True},
    "only ffn untied": {"untied": ["ffn"]},
    "tied embeddings": {"tie_embeddings": True},
    "two widths": {"widths": (16, 16, 24), "head_dim": 8},
}


def config(names=PLAIN, *, widths=(16, 16, 16), **settings) -> ModelConfig:
    """Three modalities, one of them continuous through a U-Net; one tower has experts."""
    a, b, c = names
    records = {a: ModalityConfig(vocab_size=20), b: ModalityConfig(vocab_size=12),
               c: ModalityConfig(objective="diffusion", attention="bidirectional", latent_channels=4, patch_size=2,
                                 patch_network="unet" if "untied" not in settings else "linear")}  # fmt: skip
    moe = {} if "untied" in settings and "ffn" not in settings["untied"] else {"ffn": "moe", "num_experts": 2}
    towers = {a: TowerConfig(width=widths[0]), b: TowerConfig(width=widths[1], **moe), c: TowerConfig(width=widths[2])}
    shape = {"width": 16, "num_layers": 2, "num_heads": 2, "ffn_width": 24} | settings
    return ModelConfig(modalities=records, towers=towers, **shape)


def described(model: MixtureOfTransformers, names) -> list[tuple]:
    """Return what matters of each parameter, with the towers by number."""
    number = {name: i for i, name in enumerate(names)}
    rows = []
    for part, p in model.weights():
        p, std = p.detach(), part.trait.std
        as_said = abs(float(p.std(correction=0)) - std) <= 4 * std / math.sqrt(p.numel())
        rows.append((part.place.component, part.place.inner, part.place.layer, number.get(part.place.modality),
                     number.get(part.tower), bool((p == 1).all()), bool((p == 0).all()), as_said, tuple(p.shape),
                     part.trait))  # fmt: skip
    return rows


def trained(names) -> dict[str, TowerSettings]:
    """The first tower is frozen, the last one has half the rate."""
    return {names[0]: TowerSettings(frozen=True), names[2]: TowerSettings(learning_rate_scale=0.5)}


def groups(model: MixtureOfTransformers, names, optimizer: str) -> tuple:
    made = make_optimizer(model, TrainConfig(optimizer=optimizer), trained(names))
    place = {p: i for i, p in enumerate(model.parameters())}
    found = [(g["scale"], g["weight_decay"], g["muon"], [place[p] for p in g["params"]]) for g in made.param_groups]
    return found, [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_renaming_is_only_renaming(kind):
    """Initial values, groups of the optimizer, what is frozen, what is cut and what is counted stay as they are."""
    plain = MixtureOfTransformers(config(**KINDS[kind]))
    expected = described(plain, PLAIN), [placement(part.trait) for part, _ in plain.weights()]
    grouped = groups(plain, PLAIN, "muon")
    for names in triples()[:: 1 if kind == "plain" else 7]:
        model = MixtureOfTransformers(config(names, **KINDS[kind]))
        rows = described(model, names), [placement(part.trait) for part, _ in model.weights()]
        assert rows == expected and groups(model, names, "muon") == grouped, names
        assert list(model.passed_parameters().values()) == list(plain.passed_parameters().values())
        assert sizes(model.config, names[:1]) == sizes(plain.config, PLAIN[:1])


def test_a_tower_named_gate_leaves_a_frozen_one_alone():
    model = MixtureOfTransformers(config(("text", "gate", "o")))
    make_optimizer(model, TrainConfig(), trained(("text", "gate", "o")))
    assert not model.blocks[0].ffn["text"].gate.weight.requires_grad
    assert model.blocks[0].ffn["gate"].gate.weight.requires_grad and model.parts["embed.shared.weight"].tower is None


def test_surface_normals_are_no_norms():
    model = MixtureOfTransformers(config(("text", "normals", "o")))
    for p in (model.blocks[0].ffn["normals"].gate.weight, model.blocks[0].qkv["o"].weight):
        assert 0.5 < float(p.detach().std()) * math.sqrt(16) < 1.5


@pytest.mark.parametrize("names", [("keys", "forward", "training"), ("pop", "items", "norm")])
def test_any_name_computes_and_is_saved(names, tmp_path):
    """Names of torch's own attributes are towers like others."""
    found = []
    for towers in (PLAIN, names):
        model = MixtureOfTransformers(config(towers)).double()
        for (_, p), source in zip(model.named_parameters(), MixtureOfTransformers(config()).parameters(), strict=True):
            p.data.copy_(source)
        save_pretrained(model, tmp_path / towers[0])
        model = load_pretrained(tmp_path / towers[0]).double()
        latents = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
        parts = [Part(towers[0], ids=np.arange(3)), Part(towers[1], ids=np.arange(5)),
                 Part(towers[2], latents=latents, grid=(2, 2), role="generation")]  # fmt: skip
        batch = pack([Document(parts, index=0)], model.config)
        hidden = model(batch)
        out = [*hidden, model.predict_latents(hidden, batch, towers[2])]
        sum(x.square().sum() for x in out).backward()
        found.append([*(x.detach() for x in out), *(p.grad for p in model.parameters() if p.grad is not None)])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["a.b", "", "shared", "a b", "1"])
def test_names_that_cannot_be_are_refused_in_a_sentence(name):
    with pytest.raises(ConfigError, match=r"model\.(towers|modalities).*must be"):
        config(("text", "image", name))
    with pytest.raises(ConfigError, match=r"model\.towers.*must be"):
        ModelConfig({"text": ModalityConfig(vocab_size=5, tower=name or ".")}, width=16, num_heads=2)


def by_old_rule(name: str, p: torch.Tensor, num_layers: int, seed: int) -> torch.Tensor:
    """How weights began when names decided: right for names that mean nothing."""
    if name.endswith("bias"):
        return torch.zeros_like(p)
    if "norm" in name:
        return torch.ones_like(p)
    std = {2: p.shape[-1], 3: p.shape[-2], 4: math.prod(p.shape[1:])}[p.ndim] ** -0.5
    std *= 1 / math.sqrt(2 * num_layers) if ".o." in name or ".down." in name else 1.0
    last = name.startswith("latent_out.") and name.endswith(".last.weight")
    std = 0.02 if last or name.startswith(("embed.", "head.")) else std
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(p.shape, generator=generator, dtype=torch.float32) * std


@pytest.mark.parametrize("kind", KINDS)
def test_weights_begin_bit_for_bit_as_ever(kind):
    model = MixtureOfTransformers(config(**KINDS[kind]), seed=3)
    for name, p in model.named_parameters():
        assert torch.equal(p, by_old_rule(name, p, 2, 3)), name


def test_what_tensor_ranks_cut():
    model = MixtureOfTransformers(config(qkv_bias=True))
    cut = {name: placement(part.trait) for name, part in model.parts.items()}
    expected = {
        "embed.shared.weight": Shard(0), "head.shared.weight": Shard(0), "final_norm.text.weight": Replicate(),
        "blocks.0.qkv.text.weight": Shard(0), "blocks.0.qkv.text.bias": Shard(0),
        "blocks.0.qkv.text.query_norm.weight": Replicate(), "blocks.1.o.image.weight": Shard(1),
        "blocks.1.ffn.text.gate.weight": Shard(0), "blocks.1.ffn.text.down.weight": Shard(1),
        "blocks.1.ffn.image.up.weight": Shard(2), "blocks.1.ffn.image.down.weight": Shard(1),
        "blocks.1.ffn.image.router.weight": Replicate(), "latent_in.mel.mel.fold.project.weight": Replicate(),
    }  # fmt: skip
    assert {name: cut[name] for name in expected} == expected


def test_norms_biases_and_embeddings_do_not_decay():
    """Also those within convolutions and experts, by their dimensions alone."""
    model = MixtureOfTransformers(config(qkv_bias=True))
    for part, p in model.weights():
        is_matrix = p.dim() > 1 and part.place.component != "embed"
        assert part.trait.is_matrix == is_matrix, part.name


def test_a_part_of_nothing_is_refused():
    with pytest.raises(DataError, match="a part of 'text' has no ids and no latents"):
        len(Part("text"))
