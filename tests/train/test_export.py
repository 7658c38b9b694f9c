"""Exporting: the same weights bit for bit, in one file or several, in little memory, and never over anything else."""

import dataclasses
import json
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from helpers.fake_data import scene_like, write_folder
from helpers.training import config_for
from safetensors.torch import load_file

from plait.cli import main
from plait.common.errors import CheckpointError, ConfigError
from plait.common.tensor_files import TensorStore
from plait.model.mot import MixtureOfTransformers
from plait.model.pretrained import load_pretrained, save_pretrained
from plait.train import checkpoint
from plait.train.export import export
from plait.train.trainer import Trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a run with averages and two checkpoints, of steps 3 and 4."""
    data = write_folder(tmp_path_factory.mktemp("data"), {"train": [scene_like(i) for i in range(60)]})
    out = tmp_path_factory.mktemp("run")
    Trainer(config_for(data, out, steps=4, ema=0.9)).run()
    return out


def state_of(folder, weights="model.safetensors") -> dict[str, torch.Tensor]:
    return load_pretrained(folder, weights=weights).state_dict()


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_one_file_that_loads_as_a_model(run, tmp_path, capsys):
    assert main(["export", str(run), "--weights-only", "--out", str(tmp_path / "x")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"exported: {tmp_path / 'x'}"
    newest = checkpoint.find(run / "checkpoints")[-1]
    assert same(state_of(tmp_path / "x"), state_of(newest))
    assert {p.name for p in (tmp_path / "x").iterdir()} == {"config.json", "model.safetensors", "modeling_plait.py"}
    assert load_file(tmp_path / "x/model.safetensors").keys() == state_of(newest).keys()  # as others read it


def test_the_averages_and_an_older_step(run, tmp_path):
    older = checkpoint.find(run / "checkpoints")[0]
    path = export(run, step=3, averages=True)
    assert path == run / "exported/step-00000003-ema"
    assert same(state_of(path), state_of(older, "ema.safetensors")) and not same(state_of(path), state_of(older))
    assert export(run, step=3, averages=True) == path  # an earlier export may be replaced


def test_several_files_with_an_index(run, tmp_path):
    export(run, tmp_path / "x", file_gb=1e-5)
    index = json.loads((tmp_path / "x/model.safetensors.index.json").read_text())
    files = sorted(p.name for p in (tmp_path / "x").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    found = {name: load_file(tmp_path / "x" / file)[name] for name, file in index["weight_map"].items()}
    assert same(found, state_of(tmp_path / "x")) and same(found, state_of(checkpoint.find(run / "checkpoints")[-1]))
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in found.values())
    sizes = [sum(t.numel() * t.element_size() for t in load_file(tmp_path / "x" / f).values()) for f in files]
    assert all(size <= 10_000 or len(load_file(tmp_path / "x" / f)) == 1 for size, f in zip(sizes, files, strict=True))


def test_what_cannot_be_exported_is_refused(run, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint of step 7, only 3, 4"):
        export(run, tmp_path / "x", step=7)
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        export(tmp_path, tmp_path / "x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match=r"'letter\.txt' and is no earlier export"):
        export(run, tmp_path / "mine")
    with pytest.raises(ConfigError, match="is a file"):
        export(run, tmp_path / "mine/letter.txt")
    with pytest.raises(ConfigError, match="--file-gb: 0"):
        export(run, tmp_path / "x", file_gb=0)
    assert (tmp_path / "mine/letter.txt").read_text() == "dear" and not (tmp_path / "x").exists()


def test_without_averages_there_are_none_to_export(run, tmp_path):
    data = write_folder(tmp_path / "data", {"train": [scene_like(i) for i in range(20)]})
    Trainer(config_for(data, tmp_path / "run", steps=1)).run()
    with pytest.raises(CheckpointError, match=r"train\.ema was 0"):
        export(tmp_path / "run", averages=True)


def test_a_damaged_checkpoint_is_not_exported(run, tmp_path):
    data = write_folder(tmp_path / "data", {"train": [scene_like(i) for i in range(20)]})
    Trainer(config_for(data, tmp_path / "run", steps=1)).run()
    weights = tmp_path / "run/checkpoints/step-00000001/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="corrupt"):
        export(tmp_path / "run", tmp_path / "x", step=1)


PEAK = """
import sys
import zlib
from pathlib import Path
import torch
from plait.train.export import export

def memory(field):
    return int(next(l for l in open("/proc/self/status") if l.startswith(field)).split()[1]) * 1024

export(sys.argv[1], sys.argv[2] + "/small")  # so that all is imported
Path("/proc/self/clear_refs").write_text("5")  # begin to count the peak anew
before = memory("VmRSS")
export(sys.argv[3], sys.argv[2] + "/large", file_gb=0.1)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak of resident memory from Linux")
def test_a_large_model_is_never_in_memory_whole(tmp_path, run):
    """300 MB of weights, the largest tensor of 35 MB, pass through little more memory than that one takes."""
    config = load_pretrained(checkpoint.find(run / "checkpoints")[-1]).config
    towers = {n: dataclasses.replace(t, width=1024, ffn_width=2816 * 3) for n, t in config.towers.items()}
    config = dataclasses.replace(config, width=1024, num_layers=1, towers=towers)
    model = MixtureOfTransformers(config)
    sizes = [t.numel() * t.element_size() for t in model.state_dict().values()]
    step = tmp_path / "run/checkpoints/step-00000001"
    save_pretrained(model, step)
    weights = step / "model.safetensors"
    record = {"bytes": weights.stat().st_size, "crc32": zlib.crc32(weights.read_bytes())}
    (step / "state.json").write_text(json.dumps({"schema_version": 1, "files": {weights.name: record}}))
    command = [sys.executable, "-c", PEAK, str(run), str(tmp_path), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split()[-1])
    print(f"weights {sum(sizes) / 1e6:.0f} MB, largest {max(sizes) / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB more")
    assert sum(sizes) > 250e6 and peak < 1.6 * max(sizes)
    with TensorStore(tmp_path / "large/model.safetensors", "test") as store:
        assert all(torch.equal(store.read(n), t) for n, t in model.state_dict().items())
