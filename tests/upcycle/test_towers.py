"""A language model's weights in a mixture: what is filled, where new ids begin, what stays when other towers train."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import language_models as llms
from helpers.models import model_config

from plait.batch.assemble import pack
from plait.batch.documents import Document, Part
from plait.common.errors import CheckpointError, ConfigError
from plait.config.model import ModalityConfig, ModelConfig, TowerConfig
from plait.config.run import TrainConfig
from plait.config.run_records import TowerSettings
from plait.model.frozen import trained_rows
from plait.model.init_from import start_towers, zero_outputs
from plait.model.mot import MixtureOfTransformers
from plait.model.narrowing import choose
from plait.model.pretrained import SavedWeights
from plait.model.ranks import local
from plait.objectives import loss_sums
from plait.train.optim import make_optimizer
from plait.upcycle.language_model import open_language_model, open_weights

LATENTS = {"objective": "diffusion", "attention": "bidirectional", "latent_channels": 6}


def mixture_of(folder, *, tokens: bool = False, image: TowerConfig | None = None, **settings) -> ModelConfig:
    """Return the config of a language model beside a tower of images, as ids (``tokens``) or latents."""
    with open_language_model(str(folder), "--from") as saved:
        config = saved.config
    modalities = {**config.modalities, "image": ModalityConfig(vocab_size=24) if tokens else ModalityConfig(**LATENTS)}
    names = [f.name for f in dataclasses.fields(config) if f.name not in ("modalities", "towers")]
    own = {name: getattr(config, name) for name in names}
    towers = {"text": TowerConfig(), "image": image or TowerConfig()}
    return ModelConfig(modalities, towers, **(own | settings))


def documents(*, tokens: bool) -> list[Document]:
    rng = np.random.default_rng(0)

    def image() -> Part:
        if tokens:
            return Part("image", ids=rng.integers(0, 24, 9))
        return Part("image", latents=rng.standard_normal((9, 6)), grid=(3, 3))

    return [Document([Part("text", llms.random_ids(12, i)), image()], index=i) for i in range(3)]


def text_logits(model: MixtureOfTransformers, ids: np.ndarray) -> torch.Tensor:
    """Return the logits [n, tokenizer's ids] of a text alone."""
    with torch.no_grad():
        batch = pack([Document([Part("text", ids)])], model.config)
        rows = [torch.arange(size) for size in batch.routing.sizes]
        return model.logits(model(batch), rows)[:, : model.config.layout.sizes["text"]]


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("family", ["llama", "llama tied", "qwen2", "smollm3"])
def test_a_mixture_still_says_what_the_language_model_does(family, tokens, tmp_path):
    """New towers and ids beside it change no logit of a text; new ids begin at the mean of the tokenizer's."""
    folder = llms.save(llms.model(family), tmp_path)
    model = MixtureOfTransformers(mixture_of(folder, tokens=tokens, qk_norm=True)).double()
    with pytest.raises(CheckpointError, match=r"has nothing for 'blocks.0.qkv.text.query_norm.weight'"):
        start_towers(model, {"text": f"hf:{folder}"}, open_weights)
    config = mixture_of(folder, tokens=tokens, image=TowerConfig(width=32, ffn_width=64, qk_norm=True, qkv_bias=True))
    model = MixtureOfTransformers(config).double()
    (line,) = start_towers(model, {"text": f"hf:{folder}"}, open_weights)
    assert "left out: 20 of rows of ids that its tokenizer does not have" in line
    for length in (1, 30, 200):
        ids = np.append(llms.random_ids(length), 1)
        theirs = llms.logits(folder, ids.tolist())[:, :300]
        assert (text_logits(model, ids) - theirs).abs().max() < 1e-10
    for module in (model.embed["text"], model.head_weights()["text"]):
        new = module.weight[300:]
        assert len(new) == config.layout.size - 300 > 1
        torch.testing.assert_close(new, module.weight[:300].mean(0).expand_as(new))


@pytest.mark.parametrize("family", ["llama", "llama tied"])
@pytest.mark.parametrize("narrower", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_frozen_means_frozen(family, narrower, optimizer, tmp_path):
    """After training on images, the logits of texts over the tokenizer's ids are the same bits; new rows have moved."""
    folder = llms.save(llms.model(family), tmp_path)
    image = TowerConfig(width=32, ffn_width=64) if narrower else None
    model = MixtureOfTransformers(mixture_of(folder, tokens=True, image=image))
    start_towers(model, {"text": f"hf:{folder}"}, open_weights)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    said = text_logits(model, llms.random_ids(50))
    towers = {"text": TowerSettings(frozen=True), "image": TowerSettings()}
    train = TrainConfig(optimizer=optimizer, learning_rate=1e-2, weight_decay=0.5)
    made, masks = make_optimizer(model, train, towers), list(trained_rows(model, ["text"]))
    batch = pack(documents(tokens=True), model.config)
    for _ in range(100):
        loss_sums(model, model(batch), batch).sum().backward()
        for parameter, trains in masks:
            local(parameter.grad).mul_(trains)
        made.step()
        made.zero_grad()
    assert torch.equal(text_logits(model, llms.random_ids(50)), said)
    table = "embed.text.weight" if narrower else "embed.shared.weight"
    after = model.state_dict()
    assert torch.equal(after[table][:300], before[table][:300]) and not torch.equal(after[table], before[table])
    moved = {name.split(".")[3] for name in after if name.startswith("blocks") and not after[name].equal(before[name])}
    assert moved == {"image"}


def test_the_text_tower_becomes_an_image_tower(tmp_path):
    """Whole, into a tower of the same sizes; or narrowed to the channels and units of the largest weights."""
    folder = llms.save(llms.model("llama"), tmp_path)
    whole = MixtureOfTransformers(mixture_of(folder))
    lines = start_towers(whole, dict.fromkeys(("text", "image"), f"hf:{folder}"), open_weights)
    assert len(lines) == 2
    for name, tensor in whole.state_dict().items():
        if ".image." in name and name.startswith("blocks"):
            assert torch.equal(tensor, whole.state_dict()[name.replace(".image.", ".text.")])

    config = mixture_of(folder, image=TowerConfig(width=32, ffn_width=40))
    model = MixtureOfTransformers(config)
    with pytest.raises(
        CheckpointError, match=r"set the sizes of model\.towers\.image to the saved ones, or narrow: true"
    ):
        start_towers(model, {"image": f"hf:{folder}"}, open_weights)
    text, image = start_towers(model, dict.fromkeys(("text", "image"), f"hf:{folder}"), open_weights, narrow=["image"])
    assert "kept of it: 32 channels and 40 hidden units" in image and "kept" not in text
    with open_language_model(str(folder), "--from") as saved:
        kept = choose(saved, "text", 32, 40)
    assert (kept.stream.diff() > 0).all() and len(kept.stream) == 32
    own = model.state_dict()
    up = own["blocks.1.ffn.text.up.weight"]
    assert torch.equal(own["blocks.1.ffn.image.up.weight"], up[kept.hidden[1]][:, kept.stream])
    assert torch.equal(own["blocks.1.o.image.weight"], own["blocks.1.o.text.weight"][kept.stream])
    assert torch.equal(own["embed.image.weight"][:300], own["embed.text.weight"][:300][:, kept.stream])
    wider = MixtureOfTransformers(mixture_of(folder, image=TowerConfig(width=64)))
    with pytest.raises(CheckpointError, match=r"width 48, which cannot be narrowed to 64; .*image.width to at most 48"):
        start_towers(wider, {"image": f"hf:{folder}"}, open_weights, narrow=["image"])


def test_what_is_kept_is_what_counts():
    """Channels and units whose weights are nothing go first."""
    sizes = {"width": 16, "num_heads": 2, "ffn_width": 24, "num_layers": 2}
    wide = MixtureOfTransformers(ModelConfig({"text": ModalityConfig(vocab_size=9)}, **sizes))
    lost_channels, lost_units = [1, 5, 6, 12], [0, 3, 20]
    with torch.no_grad():
        for block in wide.blocks:
            for weight, axis in ((block.qkv["text"].weight, 1), (block.o["text"].weight, 0),
                                 (block.ffn["text"].gate.weight, 1), (block.ffn["text"].up.weight, 1),
                                 (block.ffn["text"].down.weight, 0)):  # fmt: skip
                weight.index_fill_(axis, torch.tensor(lost_channels), 0)
            block.ffn["text"].gate.weight.index_fill_(0, torch.tensor(lost_units), 0)
    saved = SavedWeights("wide", wide.config, wide.state_dict().__getitem__)
    kept = choose(saved, "text", 12, 21)
    assert sorted(set(range(16)) - set(kept.stream.tolist())) == lost_channels
    assert all(sorted(set(range(24)) - set(units.tolist())) == lost_units for units in kept.hidden)


def test_output_projections_of_zero_leave_the_stream_as_it_is(rng):
    model = MixtureOfTransformers(model_config()).double()
    zero_outputs(model, ["image"])
    batch = pack([Document([Part("image", ids=np.arange(9))])], model.config)
    hidden = model(batch)[1][: batch.routing.sizes[1]]
    ids = batch.ids[batch.routing.to_towers[batch.routing.padded_sizes[0] :][: batch.routing.sizes[1]]]
    embedded = model.embed["shared"](ids)
    torch.testing.assert_close(hidden, model.final_norm["image"](embedded), rtol=0, atol=1e-14)
    with pytest.raises(ConfigError, match=r"image\.zero_output: True .*false where towers share o or ffn"):
        zero_outputs(MixtureOfTransformers(model_config(untied=["qkv", "norm"])), ["image"])
