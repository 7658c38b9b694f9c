"""BAGEL's recipe, from the shipped YAML: a small random Qwen2 as both towers, a VAE, and a SigLIP beside it."""

import numpy as np
import pytest
import torch
from helpers import language_models as llms
from helpers.encoders import save_vision
from helpers.manifests import write
from PIL import Image

from plait.batch.assemble import pack
from plait.batch.documents import Document, Part
from plait.batch.spans import tower_of
from plait.config.file import load
from plait.config.generation import SamplingConfig
from plait.config.run import RunConfig
from plait.config.shipped import config_path
from plait.data.loader import Loader
from plait.prepare.stages import prepare
from plait.run.load import load_run
from plait.train.metrics import read_metrics
from plait.train.trainer import Trainer


def save_vae(folder) -> str:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    levels = 4  # which halve the sides three times, as the shipped VAE does
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels, layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=32,
    )  # fmt: skip
    vae.save_pretrained(folder)
    return str(folder)


def config_of(folder) -> RunConfig:
    """Return the shipped config with the paths of small models and their sizes."""
    llm, text = folder / "llm", "model.modalities.text.codec_options.path"
    sizes = {"width": 48, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 80, "rope_theta": 10000}
    changes = {f"model.{name}": size for name, size in sizes.items()} | {
        text: llm,
        "model.towers.understanding.init_from": f"hf:{llm}",
        "model.towers.generation.init_from": f"hf:{llm}",
        "model.modalities.image.codec_options.path": save_vae(folder / "vae"),
        "model.modalities.image.codec_options.size": 32,
        "model.modalities.vit.codec_options.path": save_vision(folder / "siglip", "Siglip"),
        "prepare.source": folder / "manifest.jsonl", "prepare.validation_share": 0.2, "prepare.num_workers": 1,
        "data.batch_tokens": 512, "data.max_document_tokens": 0, "data.num_workers": 0,
        "train.steps": 4, "train.warmup_steps": 1, "train.device": "cpu", "train.precision": "float32",
        "train.log_every": 1, "generate.precision": "float32", "out": folder / "run",
    }  # fmt: skip
    return load(config_path("bagel_llm"), [f"{name}={value}" for name, value in changes.items()])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("bagel"), np.random.default_rng(0)
    llms.save(llms.model("qwen2", tie_word_embeddings=True), path / "llm")
    rows = []
    for i in range(20):
        for name in ("a", "b"):
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path / f"{i}{name}.png")
        image, other = {"image": f"{i}a.png"}, {"image": f"{i}b.png"}
        rows.append({"parts": [image, {"text": f"a fox, {i}"}, *([other, {"text": "an owl"}] if i % 2 else [])]})
    write(path, rows)
    return path


@pytest.fixture(scope="module")
def run(folder):
    config = config_of(folder)
    prepare(config)
    trainer = Trainer(config)
    first = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.run()
    return config, trainer, first


def test_both_towers_begin_as_the_language_model(folder, run):
    _, trainer, first = run
    understanding = {name: t for name, t in first.items() if name.startswith("blocks") and ".understanding." in name}
    assert understanding
    for name, tensor in understanding.items():
        assert torch.equal(tensor, first[name.replace(".understanding.", ".generation.")])
    model = trainer.model
    model.load_state_dict(first)
    ids = llms.random_ids(20)
    batch = pack([Document([Part("text", ids)])], model.config)
    with torch.no_grad():
        told = model.logits(model(batch), [torch.arange(size) for size in batch.routing.sizes])[:20, :300]
    torch.testing.assert_close(told.double(), llms.logits(folder / "llm", ids.tolist())[:, :300], atol=1e-3, rtol=1e-3)


def test_each_token_goes_where_bagel_sends_it(run):
    config, _, _ = run
    loader, seen = Loader(config), set()
    batches = iter(loader)
    for _ in range(6):
        batch, _ = next(batches)
        seen |= {(s.modality, s.role, s.noised, tower_of(s, loader.config.model)) for s in batch.spans if s.role}
    assert {kind for kind in seen if kind[0] != "text"} == {
        ("image", "understanding", False, "generation"),  # clean latents of a given image
        ("vit", "understanding", False, "understanding"),  # what SigLIP sees of it
        ("image", "generation", True, "generation"),
        ("image", "generation", False, "generation"),  # the clean copy of one that is made
    }
    assert {tower for name, _, _, tower in seen if name == "text"} == {"understanding"}


def test_it_trains_and_makes_both(folder, run):
    config, _, _ = run
    rows = read_metrics(folder / "run" / "metrics.jsonl")
    losses = [row[key] for row in rows for key in ("loss/text", "loss/image") if key in row]
    assert len(losses) > 4 and np.isfinite(losses).all()
    pipeline = load_run(config)
    sampling = {"image": SamplingConfig(steps=2, guidance=2.0, media_guidance=1.5), "text": SamplingConfig()}
    image, tokens = folder / "0a.png", {"text": 4}
    (said,) = pipeline.generate(image, "text", sampling=sampling, max_tokens=tokens)
    (edited,) = pipeline.generate([[image, "bluer"]], "image", sampling=sampling)
    (drawn,) = pipeline.generate("a fox", "image", sampling=sampling)
    assert said.task == "image>text" and edited.output[0][1].shape == drawn.output[0][1].shape == (32, 32, 3)
    asked = [{"type": "image", "image": str(image)}, {"type": "text", "text": "what is it?"}]
    for output in ("text", "image"):
        answer = pipeline.chat([{"role": "user", "content": asked}], output, sampling=sampling, max_tokens=tokens)
        assert [name for name, _ in answer.output] == [output]
