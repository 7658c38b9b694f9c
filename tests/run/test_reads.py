"""The whole path of a codec that only reads: manifest, features, training, generation, samples, what a page shows."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers.encoders import SIDE, save_speech, save_vision
from helpers.manifests import write
from PIL import Image

from plait.cli import main
from plait.codecs.image_pixels import ImagePixelCodec
from plait.common.errors import CheckpointError, ConfigError
from plait.common.progress import QuietProgress
from plait.config.file import from_dict
from plait.config.generation import SamplingConfig
from plait.config.run import RunConfig
from plait.data.loader import Loader
from plait.data.sources import open_sources, validation_splits
from plait.evaluate.suite import Suite
from plait.plan.workload import documents_of_a_batch, known_sizes
from plait.prepare.stages import prepare
from plait.run.load import load_run
from plait.run.samples import SampleSet
from plait.train.metrics import read_metrics
from plait.train.trainer import Trainer

ROWS = 24
FAST = {"image": SamplingConfig(steps=2), "text": SamplingConfig(temperature=0)}


def settings(folder, modalities, tasks, **more) -> dict:
    """Return a run's settings: text and what is read in one tower, images in the other."""
    text = {"codec": "text_bpe", "codec_options": {"vocab_size": 260}, "tower": "understanding"}
    return {
        "out": str(folder / "run"),
        "model": {"width": 32, "num_layers": 1, "num_heads": 2, "modalities": {"text": text} | modalities},
        "prepare": {"source": str(folder / "manifest.jsonl"), "validation_share": 0.3, "num_workers": 1} | more,
        "data": {"batch_tokens": 256, "num_workers": 0, "tasks": tasks},
        "train": {"steps": 2, "log_every": 1, "validate_every": 2, "validation_batches": 1, "device": "cpu"},
        "diffusion": {"process": "flow"},
        "generate": {"max_tokens": {"text": 5}},
    }  # fmt: skip


def pixels(encoder, **vit) -> dict:
    """Return images as patches of pixels where they are made, and as the encoder's features where they are given."""
    image = {"codec": "image_pixels", "codec_options": {"size": 16, "patch_size": 8}, "objective": "diffusion",
             "attention": "bidirectional", "tower": "generation", "later_sees": "clean_copy"}  # fmt: skip
    features = {
        "codec": "image_features",
        "codec_options": {"path": str(encoder)},
        "objective": "input",
        "attention": "bidirectional",
        "tower": "understanding",
        "reads": "image",
        "patch_network": "mlp",
    }
    return {"image": image, "vit": features | vit}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Texts and images larger than what any codec keeps of them; one image is no image."""
    path, rng = tmp_path_factory.mktemp("reads"), np.random.default_rng(0)
    rows = []
    for i in range(ROWS):
        Image.fromarray(rng.integers(0, 255, (50, 44, 3), dtype=np.uint8)).save(path / f"{i}.png")
        rows.append({"parts": [{"text": f"image {i}"}, {"image": f"{i}.png"}]})
    (path / "3.png").write_text("not an image")
    write(path, rows)
    save_vision(path / "encoder")
    return path


@pytest.fixture(scope="module")
def trained(folder):
    values = settings(folder, pixels(folder / "encoder", beside=True), {"text,image": 1, "image,text": 1},
                      max_broken_share=0.2)  # fmt: skip
    config = from_dict(RunConfig, values)
    prepare(config)
    Trainer(config).run()
    return config


def test_prepare_encodes_given_images_both_ways(trained):
    data = Path(trained.data.path)
    report = json.loads((data / "report.json").read_text())
    (entry,) = report["sources"]
    assert entry["parts"]["image"] == {"given": ROWS, "stored": ROWS - 1, "left out": 0, "in broken rows": 1}
    counts = report["splits"]["train"]["modalities"]
    assert counts["vit"]["parts"] == counts["image"]["parts"] > 0
    assert counts["vit"]["tokens"] == 16 * counts["vit"]["parts"]
    assert abs(report["quality"]["vit"]["latent_mean"]) < 0.5 and 0.5 < report["quality"]["vit"]["latent_std"] < 2
    index = json.loads((data / "index.json").read_text())["modalities"]
    assert (index["vit"]["reads"], index["vit"]["key"], index["image"]["reads"]) == ("image", "image", "")


def test_a_prompt_is_encoded_as_the_data_were(folder, trained):
    """The features of a file are the same in the shards, of a prompt, and of an array: each codec reads it itself."""
    pipeline = load_run(trained)
    source = open_sources(trained, "train")[0]
    for i in range(3):
        stored = source.document(i)
        number = pipeline.codecs["text"].decode([stored.parts[0]])[0].split()[1]
        path = folder / f"{number}.png"
        for prompt in (path, {"image": str(path)}, np.asarray(Image.open(path)), Image.open(path)):
            media = pipeline.read(prompt)
            assert [name for name, _ in media] == ["image", "vit"]
            assert media[0][1].shape[:2] == (16, 16) and media[1][1].shape[:2] == (SIDE, SIDE)
            (part,) = pipeline.encode(media)
            np.testing.assert_allclose(part.latents, stored.parts[1].latents, atol=1e-6)
            np.testing.assert_allclose(part.features.latents, stored.parts[1].features.latents, atol=1e-5)
            assert part.role == "understanding" and part.features.grid == (4, 4)
    (part,) = pipeline.encode([("image", np.asarray(Image.open(path)))])  # an item alone: both codecs take it
    np.testing.assert_allclose(part.features.latents, stored.parts[1].features.latents, atol=1e-5)


@pytest.mark.parametrize("is_fast", [True, False])
def test_weights_have_the_precision_that_is_generated_in(trained, is_fast, monkeypatch):
    """Unless another is asked for, or the device has no instructions for it; evaluation asks for float32, so that its
    losses are those of training."""
    monkeypatch.setattr("plait.model.precision.is_fast_in_bfloat16", lambda kind: is_fast)
    short = replace(trained, generate=replace(trained.generate, precision="bfloat16"))
    kinds = [
        load_run(config, "cpu", weights).model.blocks[0].o["understanding"].weight.dtype
        for config, weights in ((trained, "auto"), (short, "auto"), (short, "float32"), (trained, "bfloat16"))
    ]
    computed = torch.bfloat16 if is_fast else torch.float32
    assert kinds == [torch.float32, computed, torch.float32, torch.bfloat16]


def test_tokens_of_another_version_of_a_codec_are_refused(trained, monkeypatch):
    """Before training, in one sentence; not at the first image that is decoded."""
    channels = ImagePixelCodec.__init__

    def of_today(self, options):
        channels(self, options)
        self.latent_channels += 3

    monkeypatch.setattr(ImagePixelCodec, "__init__", of_today)
    wanted = r"data.path: the image tokens in '.*' have 192 channels, where the codec .* makes 195; prepare"
    with pytest.raises(CheckpointError, match=wanted):
        load_run(trained, "cpu")


def test_another_image_gives_other_text(folder, trained):
    pipeline = load_run(trained)
    model = pipeline.model.double()
    with torch.no_grad():
        for p in model.head.parameters():
            p.mul_(50)
    made = pipeline.generate([folder / f"{i}.png" for i in (0, 1, 2, 4, 5, 6)], "text", sampling=FAST)
    assert len({sample.output[0][1] for sample in made}) > 1
    assert {sample.task for sample in made} == {"image>text"}
    assert all([name for name, _ in sample.prompt] == ["image"] for sample in made)  # shown once
    assert "data:image/png" in made[0]._repr_html_()
    (edited,) = pipeline.generate([[folder / "0.png", "darker"]], "image", sampling=FAST)
    assert edited.task == "image>text>image" and edited.output[0][1].shape == (16, 16, 3)
    with pytest.raises(ConfigError, match=r"^generate\.output: 'vit'"):
        pipeline.generate("a fox", "vit")


def test_losses_samples_and_evaluation(trained, tmp_path):
    rows = read_metrics(Path(trained.out) / "metrics.jsonl")
    assert all(np.isfinite(v) for row in rows for k, v in row.items() if k.startswith(("loss/", "val_loss/")))
    assert not any("vit" in key for row in rows for key in row if key.startswith(("loss/", "val_loss/")))
    pipeline = load_run(trained)
    samples = SampleSet(trained, pipeline, tmp_path / "samples", 2)
    samples.write(free=1)
    samples.write_more()
    records = [json.loads(line) for line in (tmp_path / "samples/samples.jsonl").read_text().splitlines()]
    assert [r["task"] for r in records] == ["text>image"] * 2 + ["image>text"] * 2 + ["free"]
    assert all([p["modality"] for p in r["prompt"]] == ["image"] for r in records[2:4])
    figures = Suite(trained, pipeline, QuietProgress()).run()
    assert f"val_loss/{validation_splits(trained)[0]}/text" in figures and not any("vit" in name for name in figures)


def test_the_command_line_shows_it(trained, folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    config = trained.out + "/config.yaml"
    assert main(["inspect", config, "--documents", "1"]) == 0
    said = capsys.readouterr().out
    assert "features, read of this image" in said and "features of vit, read only]" in said
    assert main(["generate", trained.out, "--image", str(folder / "0.png"), "--output", "text"]) == 0
    assert main(["generate", trained.out, "--image", str(folder / "0.png"), "--output", "vit"]) == 2
    assert "generate.output: 'vit' is not allowed" in capsys.readouterr().err


def test_a_plan_needs_no_data(folder, tmp_path):
    values = settings(folder, pixels(folder / "encoder"), {"text,image": 1}) | {"out": str(tmp_path)}
    config, grids = known_sizes(from_dict(RunConfig, values))
    assert config.model.modalities["vit"].latent_channels == 16 and grids["vit"] == (4, 4)
    documents, _ = documents_of_a_batch(config, grids, mix={})
    assert {p.modality for d in documents for p in d.parts} == {"text", "image"}
    with pytest.raises(ConfigError, match=r"^--mix: unknown name 'vit'"):
        documents_of_a_batch(config, grids, mix={"vit": 1.0})


def test_what_cannot_be_prepared_is_named(folder, tmp_path):
    save_speech(tmp_path / "speech")
    for vit, sentence in (
        ({"objective": "diffusion", "reads": "", "patch_network": "linear", "key": "photo"},
         r"^model\.modalities\.vit\.objective: 'diffusion' .* input: codec 'image_features' only reads$"),
        ({"codec": "speech_features", "codec_options": {"path": str(tmp_path / "speech")}},
         r"^model\.modalities\.vit\.codec: 'speech_features' .* the kind of 'image' \(image\); this one reads audio$"),
        ({"reads": ""}, r"^model\.modalities\.vit\.codec: .* reads the parts 'image', which .*image reads already"),
        ({"codec_options": {"path": "nowhere"}}, r"^codec_options\.path: 'nowhere' holds no model of transformers"),
    ):  # fmt: skip
        values = settings(folder, pixels(folder / "encoder", **vit), {}) | {"out": str(tmp_path / "run")}
        with pytest.raises(ConfigError, match=sentence):
            prepare(from_dict(RunConfig, values))
    assert not (tmp_path / "run").exists()


def test_recordings_that_are_given_alone(tmp_path):
    """A modality of features with parts of its own: a text about what is heard; a page says read only."""
    rng, rows = np.random.default_rng(0), []
    for i in range(12):
        soundfile.write(tmp_path / f"{i}.wav", rng.uniform(-0.5, 0.5, 4000 + 300 * i), 16_000)
        rows.append({"parts": [{"audio": f"{i}.wav"}, {"text": f"noise {i}"}]})
    write(tmp_path, rows)
    speech = {"codec": "speech_features", "codec_options": {"path": str(save_speech(tmp_path / "encoder", "Whisper"))},
              "objective": "input", "tower": "understanding"}  # fmt: skip
    config = from_dict(RunConfig, settings(tmp_path, {"heard": speech}, {"heard,text": 1}))
    prepare(config)
    batch, _ = next(iter(Loader(config)))
    assert {s.role for s in batch.spans if s.modality == "heard"} == {"understanding"} and batch.counts[1] == 0
    Trainer(config).run()
    pipeline = load_run(config)
    (sample,) = pipeline.generate(tmp_path / "0.wav", "text", sampling={"text": FAST["text"]})
    assert sample.task == "heard>text" and "audio" in sample._repr_html_()
    SampleSet(config, pipeline, tmp_path / "samples", 2).write(free=0)
    record = json.loads((tmp_path / "samples/samples.jsonl").read_text().splitlines()[0])
    assert record["prompt"][0]["text"].startswith("read only: ") and record["output"][0]["modality"] == "text"
    figures = Suite(config, pipeline, QuietProgress()).run()
    assert not any("heard" in name.split("/")[-1] for name in figures if name.startswith("val_loss"))
