"""docs/add_a_modality.md, followed literally: its files are taken from the page, and its commands are run."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.models import model_config

import plait.codecs
from plait.batch.assemble import pack
from plait.batch.documents import Document, Part
from plait.cli import main
from plait.common.errors import ConfigError
from plait.config.model import ModalityConfig, ModelConfig, TowerConfig
from plait.model.mot import MixtureOfTransformers
from plait.model.pretrained import load_pretrained
from plait.objectives import loss_sums
from plait.objectives.diffusion import corrupt
from plait.report import write_report
from plait.train import checkpoint
from plait.train.metrics import read_metrics

PAGE = (ROOT / "docs" / "add_a_modality.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The page's files in a new folder, with what the page exports."""
    modules, config = blocks("python"), blocks("yaml")[0]
    assert [module.partition("\n")[0] for module in modules] == ["# file: depth_maps.py", "# file: depth_judge.py"]
    for module in modules:
        (tmp_path / module.partition("\n")[0].removeprefix("# file: ")).write_text(module)
    (tmp_path / "depth.yaml").write_text(config)
    export, *_ = blocks("bash")[0].splitlines()
    for name, value in (pair.split("=") for pair in shlex.split(export)[1:]):
        monkeypatch.setenv(name, value)  # the workers of plait prepare have it too
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("depth_maps", "depth_judge"):
        sys.modules.pop(name, None)


def write_manifest(folder: Path, count: int) -> None:
    row = json.loads(blocks("json")[0])
    assert list(map(list, row["parts"])) == [["text"], ["depth"]]
    (folder / "maps").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        np.save(folder / "maps" / f"{i:04d}.npy", rng.uniform(0, 10, (8, 4 * rng.integers(1, 5))))
        rows.append({"parts": [{"text": f"a wall with {i} windows"}, {"depth": f"maps/{i:04d}.npy"}]})
    rows.append({"parts": [{"depth": "maps/none.npy"}]})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_the_page(folder):
    write_manifest(folder, 40)
    for command in (line for block in blocks("bash") for line in block.strip().splitlines()):
        program, *arguments = shlex.split(command)
        assert program in ("plait", "export")
        assert program == "export" or main(arguments) == 0
    report = json.loads((folder / "runs/depth/data/report.json").read_text())
    broken = (folder / "runs/depth/data/broken.jsonl").read_text()
    assert "none.npy" in broken and report["figures"]
    rows = [r for r in read_metrics(folder / "runs/depth/metrics.jsonl") if "loss/depth" in r]
    assert all(np.isfinite(r["loss/depth"]) and np.isfinite(r["loss/text"]) for r in rows)
    model = load_pretrained(checkpoint.latest(folder / "runs/depth/checkpoints"))
    assert {t.width for t in model.config.towers.values()} == {64, 96}
    assert model.config.modalities["depth"].latent_channels == 16
    made = [np.load(p) for p in (folder / "runs/depth/generated/depth").glob("*output*.npy")]
    assert [m.shape for m in made] == [(8, 12)]
    figures = json.loads((folder / "runs/depth/evaluation.json").read_text())["figures"]
    assert figures["depth_error_codec"] < 1e-4 < figures["depth_error_shuffled"] and figures["depth_error_count"] == 4
    assert figures["depth_error_low"] < figures["depth_error"] < figures["depth_error_high"]
    assert "depth → model" not in (shown := (folder / "runs/depth/report.html").read_text())
    assert shown.count('<p class="rule">') == 12 and "by error in metres" in shown
    shutil.rmtree(folder / "runs/depth/samples")
    shutil.copytree(folder / "runs/depth/generated", folder / "runs/depth/samples")
    page = write_report(folder / "runs/depth").read_text()
    assert "depth map 8 x " in page  # as the codec shows it


def test_the_codec_of_the_page_round_trips(folder):
    codec = plait.codecs.codec_class("depth_maps:DepthCodec").from_options({"far": 5.0})
    depth = np.random.default_rng(0).uniform(0, 5, (8, 12)).astype(np.float32)
    np.testing.assert_allclose(codec.decode(codec.encode([depth]))[0], depth, atol=1e-5)
    codec.save_pretrained(folder / "codec")
    assert plait.codecs.load_codec(folder / "codec").options.far == 5.0


def test_code_from_outside_runs_only_where_it_is_allowed(folder, monkeypatch, capsys):
    """Neither a config nor prepared data can name what plait imports."""
    monkeypatch.delenv("PLAIT_CODECS")
    with pytest.raises(ConfigError, match=r"code outside of plait, .* set the environment variable PLAIT_CODECS=depth"):
        plait.codecs.codec_class("depth_maps:DepthCodec")
    (folder / "codec").mkdir()
    (folder / "codec" / "codec.json").write_text('{"codec": "depth_maps:DepthCodec", "options": {}}')
    with pytest.raises(ConfigError, match="PLAIT_CODECS"):
        plait.codecs.load_codec(folder / "codec")
    assert "depth_maps" not in sys.modules
    write_manifest(folder, 4)
    assert main(["prepare", "depth.yaml"]) == 2 and "PLAIT_CODECS=depth_maps" in capsys.readouterr().err
    assert not (folder / "runs").exists()
    monkeypatch.setenv("PLAIT_CODECS", "os,depth_maps")
    for name, sentence in (("os:getcwd", "a subclass of"), ("depth_maps:Depth", "cannot be imported"),
                           ("depth_maps:Codec", r"Codec\.name")):  # fmt: skip
        with pytest.raises(ConfigError, match=sentence):
            plait.codecs.codec_class(name)


def test_a_fourth_and_a_fifth_modality_leave_the_others_as_they_were():
    """Appending modalities shifts no id: on documents without them, a larger model equals the smaller one."""
    small = model_config()
    modalities = small.modalities | {
        "depth": ModalityConfig(objective="diffusion", attention="bidirectional", latent_channels=16),
        "smell": ModalityConfig(vocab_size=5),
    }
    large = ModelConfig(modalities=modalities, towers={n: TowerConfig() for n in modalities}, width=16, num_layers=2,
                        num_heads=2, num_kv_heads=1, ffn_width=24)  # fmt: skip
    a, b = MixtureOfTransformers(small).double(), MixtureOfTransformers(large).double()
    state = b.state_dict()
    for name, value in a.state_dict().items():
        state[name][tuple(slice(0, n) for n in value.shape)] = value
    b.load_state_dict(state)
    rng = np.random.default_rng(0)
    documents = [Document([Part("text", rng.integers(0, 20, 5)), Part("image", rng.integers(0, 12, 6))])]
    batches = pack(documents, small), pack(documents, large)
    hidden = [torch.cat(m(x)).index_select(0, x.routing.to_sequence) for m, x in zip((a, b), batches)]
    torch.testing.assert_close(*hidden, rtol=0, atol=1e-12)
    documents += [Document([Part("smell", np.arange(5)), Part("depth", latents=rng.standard_normal((4, 16)))], index=1)]
    batch = corrupt(pack(documents, large), plait.config.generation.DiffusionConfig(), 0)
    loss_sums(b, b(batch), batch).sum().backward()
    assert all(p.grad is not None for p in b.parameters())
