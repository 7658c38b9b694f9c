"""Checkpoints of several ranks: each writes what it holds, and any number of ranks goes on from them."""

import dataclasses
import itertools
import json
import tempfile
from pathlib import Path

import pytest
import torch
from helpers.fake_data import scene_like, write_folder
from helpers.faults import Launched, documents, losses, weights
from helpers.training import config_for

from plait.common.files import write_json
from plait.config.file import to_dict
from plait.data.loader import Loader
from plait.model.pretrained import load_pretrained
from plait.train import checkpoint
from plait.train.export import export


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data"), {"train": [scene_like(i) for i in range(300)]})


def train(
    data: Path, out: Path, *, ranks: int, steps: int, parallel: dict | None = None, experts: bool = False
) -> None:
    """Train up to a step on a number of ranks."""
    config = config_for(data, out, steps=8, checkpoint_every=4, keep_checkpoints=3, ema=0.9, schedule="constant")
    config.train.steps, config.train.validation_batches = steps, 0
    towers = dict(config.model.towers)
    if experts:
        towers["text"] = dataclasses.replace(towers["text"], ffn="moe", num_experts=4)
    config.model = dataclasses.replace(config.model, num_heads=2, num_kv_heads=2, towers=towers)
    values = to_dict(config) | {"parallel": parallel or {}}
    path = out.parent / f"{out.name}-{ranks}.yaml"
    write_json(path, values)  # JSON is YAML
    with Launched(["train", str(path)], ranks=ranks, log=out / "logs", seen=out) as run:
        assert run.wait() == [0] * ranks, run.text()


def held(data: Path, out: Path, *, ranks: int, parallel: dict) -> dict[str, torch.Tensor]:
    """Return what ranks hold after they went on from a finished run: they write it down again at once."""
    again = Path(tempfile.mkdtemp(prefix=f"as-{ranks}-", dir=out.parent))
    newest = checkpoint.find(out / "checkpoints")[-1]
    (again / "checkpoints").mkdir()
    (again / "checkpoints" / newest.name).symlink_to(newest)
    values = json.loads((out.parent / next(p.name for p in out.parent.glob(f"{out.name}-*.yaml"))).read_text())
    path = again.parent / f"{again.name}.yaml"
    write_json(path, values | {"out": str(again), "parallel": parallel})
    with Launched(["save-again", str(path)], ranks=ranks, log=again / "logs") as run:
        assert run.wait() == [0] * ranks, run.text()
    return weights(again / "saved" / newest.name)


def check_held(data: Path, out: Path, *, ranks: int, parallel: dict) -> None:
    """Compare what ranks hold with what was saved, bit for bit, whole tensor by whole tensor."""
    saved = weights(checkpoint.find(out / "checkpoints")[-1])
    found = held(data, out, ranks=ranks, parallel=parallel)
    assert saved.keys() == found.keys() and {n.partition("/")[0] for n in saved} == {"model", "optimizer", "ema"}
    assert all(torch.equal(saved[n], found[n]) for n in saved)


def test_two_ranks_write_their_parts_and_one_goes_on(data, tmp_path):
    out = tmp_path / "run"
    train(data, out, ranks=2, steps=4)
    newest = checkpoint.latest(out / "checkpoints")
    files = {p.name for p in newest.iterdir()}
    assert {
        f"{g}-0000{r}-of-00002.safetensors" for g in ("model", "optimizer", "ema", "random") for r in (1, 2)
    } < files
    sizes = [(newest / f"optimizer-0000{r}-of-00002.safetensors").stat().st_size for r in (1, 2)]
    assert max(sizes) < 0.6 * sum(sizes)
    model = load_pretrained(newest)  # what reads weights reads pieces
    exported = load_pretrained(export(out, tmp_path / "exported"))
    saved = weights(newest)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved[f"model/{name}"]) and torch.equal(tensor, exported.state_dict()[name])
    check_held(data, out, ranks=1, parallel={})
    train(data, out, ranks=1, steps=8)
    assert list(losses(out)) == list(range(1, 9))
    # the batches that were read are the first ones of the only order that there is, none left out and none twice
    order = itertools.islice(Loader(config_for(data, out)), 4 * 2 + 4)
    expected = sorted([d.index, d.epoch] for batch, _ in order for d in batch.documents)
    assert sorted(d for step in documents(out).values() for d in step) == expected


def test_one_rank_writes_and_two_go_on(data, tmp_path):
    train(data, tmp_path / "run", ranks=1, steps=4, experts=True)
    check_held(data, tmp_path / "run", ranks=2, parallel={})


LAYOUTS = [
    (1, {}),
    (2, {}),
    (2, {"tensor": 2}),
    (4, {}),
    (4, {"replicate": 2}),
    (8, {"tensor": 2, "replicate": 2}),
]


@pytest.mark.slow
@pytest.mark.parametrize("saved", [{"tensor": 2}, {"replicate": 2}, {"context": 2}])
def test_four_ranks_write_and_any_number_goes_on(data, tmp_path, saved):
    out = tmp_path / "run"
    train(data, out, ranks=4, steps=4, parallel=saved)
    for ranks, parallel in LAYOUTS:
        check_held(data, out, ranks=ranks, parallel=parallel)
