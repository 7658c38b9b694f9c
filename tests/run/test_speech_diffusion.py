"""Speech as a continuous modality in a tower of its own, by YAML alone: recordings to a clip, by the commands."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from plait.cli import main
from plait.codecs.mel import RATE
from plait.codecs.speech_mel import TOKEN
from plait.common.files import read_json
from plait.data.loader import Loader
from plait.run.load import load, run_config
from plait.train.metrics import read_metrics

RUN = """
name: speech by diffusion
out: {out}
model:
  width: 64
  num_layers: 2
  num_heads: 4
  modalities:
    text:
      codec: text_bpe
      codec_options: {{vocab_size: 300}}
    speech:
      codec: speech_latents
      codec_options: {{latent_channels: 8, channels: 32, crop: 8, batch_size: 4, steps: 30}}
      objective: diffusion
      attention: bidirectional
      loss_weight: 5
  towers:
    text: {{}}
    speech: {{width: 48}}
diffusion: {{process: flow}}
prepare:
  source: {source}
  validation_share: 0.1
  num_workers: 1
data:
  batch_tokens: 512
  tasks: {{"text,speech": 2, "speech,text": 1}}
  num_workers: 0
train:
  steps: 30
  learning_rate: 3.0e-3
  warmup_steps: 3
  log_every: 1
  validate_every: 30
  device: cpu
generate:
  sampling: {{speech: {{steps: 5, guidance: 2.0}}}}
"""

TONES = {"low": 220.0, "middle": 440.0, "high": 880.0}


def recording(name: str, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Return a tone with a little noise, float32 [samples]."""
    times = np.arange(int(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * TONES[name] * times) + 0.01 * rng.standard_normal(len(times))).astype(np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run that was prepared and trained by the commands."""
    folder, rng, rows = tmp_path_factory.mktemp("speech"), np.random.default_rng(0), []
    for i in range(40):
        name = list(TONES)[i % 3]
        soundfile.write(folder / f"{i}.wav", recording(name, 0.4 + 0.2 * (i % 4), rng), RATE)
        rows.append({"parts": [{"text": f"a {name} tone"}, {"audio": f"{i}.wav"}]})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "run.yaml"
    path.write_text(RUN.format(out=folder / "run", source=folder / "manifest.jsonl"))
    assert main(["prepare", str(path)]) == 0
    assert main(["train", str(path)]) == 0
    return folder / "run"


def test_shards_hold_latents_of_each_recordings_own_length(run):
    record = read_json(run / "data/index.json", "index")["modalities"]["speech"]
    assert record["latent_channels"] == 8 and record["vocab_size"] == 0
    loader = Loader(run_config(run))
    batch, _ = next(iter(loader))
    group = batch.latents["speech"]
    assert len(set(group.lengths)) == 4 and set(group.lengths) <= {10, 15, 20, 25}
    assert abs(float(group.values.mean())) < 0.3 and 0.5 < float(group.values.std()) < 1.5
    names = list(loader.config.model.towers)
    edges = np.cumsum([0, *batch.routing.padded_sizes])
    tower = np.searchsorted(edges, batch.routing.to_sequence.numpy(), side="right") - 1
    for span in batch.spans:
        assert set(tower[span.start : span.stop]) == {names.index(span.modality)}
        assert span.bidirectional == (span.modality == "speech")


def test_the_loss_falls_and_validation_is_logged(run):
    rows = read_metrics(run / "metrics.jsonl")
    values = [row["loss/speech"] for row in rows if "loss/speech" in row]
    assert len(values) >= 28 and np.mean(values[-5:]) < 0.9 * np.mean(values[:5])
    assert any("val_loss/validation/speech" in row for row in rows)


def test_a_clip_is_made_from_text_and_written(run, tmp_path):
    command = ["generate", str(run), "--text", "a high tone", "--output", "speech", "--device", "cpu"]
    assert main([*command, "--count", "2", "--out", str(tmp_path / "a")]) == 0
    assert main([*command, "--count", "2", "--out", str(tmp_path / "b")]) == 0
    records = [json.loads(line) for line in (tmp_path / "a/samples.jsonl").read_text().splitlines()]
    assert [r["task"] for r in records] == ["text>speech"] * 2
    (tokens,) = load(run, device="cpu").grids["speech"]  # the median length of the training clips
    for record in records:
        (part,) = record["output"]
        wave, rate = soundfile.read(tmp_path / "a" / part["file"])
        assert rate == RATE and wave.shape == (tokens * TOKEN,) and np.isfinite(wave).all() and wave.std() > 0
        assert (tmp_path / "a" / part["file"]).read_bytes() == (tmp_path / "b" / part["file"]).read_bytes()


def test_the_extent_is_chosen_by_the_request_and_a_clip_is_told_in_text(run):
    pipeline = load(run, device="cpu")
    (sample,) = pipeline.generate("a low tone", "speech", grids={"speech": (7,)})
    ((name, wave),) = sample.output
    assert name == "speech" and wave.shape == (7 * TOKEN,)
    (told,) = pipeline.generate_from_media([[("speech", wave)]], ["text"], max_tokens={"text": 5})
    assert [m for m, _ in told.output] == ["text"]
    assert sample.result.parts[0].latents.shape == (7, 8)
    assert {p.dtype for p in pipeline.model.parameters()} == {torch.float32}
