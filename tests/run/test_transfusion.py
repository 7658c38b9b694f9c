"""The Transfusion quickstart, tiny: every step of the path, and what a user can get wrong in it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import plait
from plait.cli import main
from plait.common.errors import ConfigError
from plait.config.file import load
from plait.config.shipped import config_path

TINY = ["--prepare.documents", "192", "--prepare.validation_documents", "32", "--prepare.codec_documents", "128",
        "--prepare.codec_minutes", "0.05", "--prepare.shard_documents", "64", "--model.width", "32",
        "--model.num_layers", "2", "--model.ffn_width", "64", "--model.num_heads", "2",
        "--train.minutes", "0", "--train.steps", "12", "--train.log_every", "2", "--train.validate_every", "6",
        "--train.sample_every", "12", "--train.device", "cpu", "--evaluate.captions", "6", "--evaluate.choices", "2",
        "--evaluate.batches", "1", "--evaluate.images", "12",
        "--generate.sampling.image.steps", "4", "--generate.sampling.image.guidance", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "transfusion"
    assert main(["quickstart", "--setting", "transfusion", "--out", str(out), *TINY]) == 0
    return out


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_summary_has_the_figures_and_their_references(run):
    summary = json.loads((run / "summary.json").read_text())
    for name in ("object_accuracy", "object_accuracy_low", "object_accuracy_high", "object_originals", "object_codec",
                 "frechet", "frechet_blurred", "frechet_real", "frechet_codec"):  # fmt: skip
        assert np.isfinite(summary[f"image_{name}"]), name
    assert summary["image_object_chance"] == 1 / 400 and summary["image_frechet_count"] == 12
    assert summary["image_frechet_real"] < summary["image_frechet_blurred"]
    assert summary["image_object_originals"] > summary["image_object_chance"] * 10
    assert "perplexity/text" in summary and "perplexity/image" not in summary and "val_loss/image" in summary
    assert not any("other_voice" in name for name in summary)  # nothing is spoken here


def test_samples_strips_and_scales_are_written_and_shown(run):
    folder = run / "samples"
    tasks = {r["task"] for r in lines(folder / "samples.jsonl")}
    assert {"text>image", "image>text"} <= tasks
    strips, scales = lines(folder / "strips.jsonl"), lines(folder / "guidance.jsonl")
    levels = [step["level"] for step in strips[0]["steps"]]
    assert levels == sorted(levels, reverse=True) and len(levels) == 4  # as many as there are steps
    for part in [s["part"] for r in strips for s in r["steps"]] + [o["part"] for r in scales for o in r["outputs"]]:
        assert Image.open(folder / part["file"]).size == (64, 64)
    assert [o["guidance"] for o in scales[0]["outputs"]] == [1, 2, 3, 5]
    page = (run / "report.html").read_text()
    assert "Denoising" in page and "How good it is" in page
    assert (run / "progress").is_dir()


def test_a_run_generates_by_command_and_in_python(run, capsys, tmp_path):
    text = "a fox on a blue background"
    command = ["generate", str(run), "--text", text, "--output", "image", "--steps", "3", "--out", str(tmp_path)]
    assert main([*command, "--grid", "4x12", "--sampler", "heun", "--guidance", "2"]) == 0
    record = lines(tmp_path / "samples.jsonl")[0]
    image = Image.open(tmp_path / record["output"][0]["file"])
    assert image.size == (192, 64)  # 12 x 4 tokens of 16 pixels
    pipeline = plait.load(run)
    sampling = {"image": plait.SamplingConfig(steps=2, guidance=2.0, media_guidance=1.5)}
    image.save(tmp_path / "given.png")
    edit = [{"image": str(tmp_path / "given.png")}, {"text": "the same at night"}]
    made = pipeline.generate([text, edit], "image", sampling=sampling)
    assert [sample.output[0][1].shape for sample in made] == [(64, 64, 3)] * 2
    assert isinstance(pipeline.generate([[edit[0]]], "text")[0].output[0][1], str)


def test_inspect_names_latents(run, capsys):
    assert main(["inspect", str(run)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    # the first document gives its image, and nothing given is noised
    assert "<image> [16 clean latents of image] </image>" in said


@pytest.mark.parametrize(("arguments", "message"), [
    (["--sampler", "ddim"], r"sampler: 'ddim' is not allowed.*euler"),
    (["--sampler", "eular"], r"sampler: unknown name 'eular'.*did you mean 'euler'"),
    (["--steps", "0"], r"steps: 0 is not allowed.*at least 1"),
    (["--grid", "40x40"], r"grids.image: \[40, 40\] is not allowed.*positions end at"),
    (["--grid", "4by4"], r"grid: '4by4' is not allowed.*8x12"),
])  # fmt: skip
def test_what_cannot_be_denoised_is_one_sentence(run, arguments, message, capsys, tmp_path):
    import re

    code = main(["generate", str(run), "--output", "image", "--out", str(tmp_path / "none"), *arguments])
    error = capsys.readouterr().err
    assert code == 2 and re.search(message, error), error
    assert error.count("\n") == 1 and not (tmp_path / "none").exists()


def test_a_sampler_of_another_process_is_refused_before_training():
    with pytest.raises(ConfigError, match=r"generate.sampling.image.sampler: 'euler'.*ddpm"):
        load(config_path("quickstart_transfusion"), ["diffusion.process=ddpm", "generate.sampling.image.sampler=euler",
                                                     "model.modalities.image.predicts=target"])  # fmt: skip


def test_a_codec_of_another_shape_is_refused_before_training(run, capsys):
    code = main(["train", str(run), "--model.modalities.image.latent_channels", "8"])
    error = capsys.readouterr().err
    assert code == 2 and "model.modalities.image.latent_channels: 8 is not allowed, it must be 195" in error


def test_an_unknown_setting_names_the_nearest(capsys):
    assert main(["quickstart", "--setting", "transfuson"]) == 2
    assert "did you mean 'transfusion'" in capsys.readouterr().err
