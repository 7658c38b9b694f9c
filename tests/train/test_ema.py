"""Averaged weights: the closed form, skipped steps, swapping in and out, shards, checkpoints and exact resume."""

import copy

import pytest
import torch
import torch.distributed as dist
from helpers.fake_data import scene_like, write_folder
from helpers.models import model_config
from helpers.training import config_for, stopped_at
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from plait.common.errors import CheckpointError
from plait.common.tensor_files import TensorStore
from plait.config.run_records import TowerSettings
from plait.model.mot import MixtureOfTransformers
from plait.model.pretrained import load_pretrained
from plait.train import checkpoint
from plait.train.ema import AveragedWeights
from plait.train.metrics import read_metrics
from plait.train.optim import make_optimizer
from plait.train.trainer import Trainer

DONE, SKIPPED = torch.tensor(0.0), torch.tensor(1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    splits = {"train": [scene_like(i) for i in range(150)], "seen": [scene_like(i, seed=1) for i in range(20)]}
    return write_folder(tmp_path_factory.mktemp("data"), splits)


def read(path):
    with TensorStore(path, "test") as store:
        return {name: store.read(name) for name in store.tensors}


def small_model(**settings) -> MixtureOfTransformers:
    return MixtureOfTransformers(model_config(**settings)).double()


@torch.no_grad()
def move(model, generator) -> None:
    for p in model.parameters():
        if p.requires_grad:
            p += torch.randn(p.shape, generator=generator, dtype=p.dtype)


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.999])
def test_the_closed_form(decay):
    """The average is sum over n of (1 - d_n) * product over m > n of d_m * weight_n, the start included (d = 0)."""
    model, generator = small_model(), torch.Generator().manual_seed(0)
    averages = AveragedWeights(model, decay)
    seen, decays = [copy.deepcopy(model.state_dict())], []
    for n in range(25):
        move(model, generator)
        averages.update(DONE)
        seen.append(copy.deepcopy(model.state_dict()))
        decays.append(min(decay, (1 + n) / (10 + n)))
    assert decays[0] == 0.1 and decays[-1] == min(decay, 25 / 34)
    shares = [torch.tensor(decays[n:], dtype=torch.float64).prod() * (1 - decays[n - 1] if n else 1) for n in range(26)]
    assert sum(shares) == pytest.approx(1.0)
    for name, average in averages.tensors.items():
        expected = sum(share * state[name] for share, state in zip(shares, seen, strict=True))
        torch.testing.assert_close(average, expected, rtol=0, atol=1e-12)


def test_a_skipped_step_leaves_the_average_as_it_is():
    with_skips, without, generator = small_model(), small_model(), torch.Generator().manual_seed(0)
    one, other = AveragedWeights(with_skips, 0.9), AveragedWeights(without, 0.9)
    for n in range(12):
        move(without, generator)
        with_skips.load_state_dict(without.state_dict())
        one.update(DONE)
        other.update(DONE)
        before = copy.deepcopy(one.tensors)
        for _ in range(n % 3):
            one.update(SKIPPED)
        assert all(torch.equal(one.tensors[name], t) for name, t in before.items())
    assert all(torch.equal(one.tensors[name], t) for name, t in other.tensors.items())
    assert float(one.num_updates) == float(other.num_updates) == 12


def test_swapping_in_and_out_leaves_both_as_they_were():
    model = small_model()
    averages = AveragedWeights(model, 0.9)
    move(model, torch.Generator().manual_seed(0))
    weights, means = copy.deepcopy(model.state_dict()), copy.deepcopy(averages.tensors)
    addresses = [p.data_ptr() for p in model.parameters()]
    with pytest.raises(KeyboardInterrupt), averages.applied():
        assert all(torch.equal(p, means[name]) for name, p in model.named_parameters())
        raise KeyboardInterrupt
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())
    assert all(torch.equal(t, means[name]) for name, t in averages.tensors.items())
    assert [p.data_ptr() for p in model.parameters()] == addresses  # what holds on to a parameter's memory stays right


def test_fixed_parameters_have_no_average(folder, tmp_path):
    config = config_for(folder, tmp_path, ema=0.9, steps=3)
    config.towers["text"].frozen = True
    trainer = Trainer(config)
    trainer.run()
    name = "blocks.0.ffn.{}.up.weight"
    assert name.format("text") not in trainer.averages.tensors and name.format("image") in trainer.averages.tensors
    found = checkpoint.find(tmp_path / "checkpoints")[-1]
    model, means = (read(found / f) for f in ("model.safetensors", "ema.safetensors"))
    assert model.keys() == means.keys()
    assert torch.equal(model[name.format("text")], means[name.format("text")])
    assert not torch.equal(model[name.format("image")], means[name.format("image")])


class Sharded(nn.Module):
    """Two parameters cut over ranks, as FSDP2 does it."""

    def __init__(self, mesh):
        super().__init__()
        for name, rows in (("up", 4), ("down", 6)):
            local = torch.randn(rows // 2, 3, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(DTensor.from_local(local, mesh, [Shard(0)], run_check=False)))


def test_sharded_parameters_have_sharded_averages_and_nothing_is_gathered():
    dist.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    try:
        model = Sharded(init_device_mesh("cpu", (2,)))
        start = {name: p.to_local().clone() for name, p in model.named_parameters()}
        with CommDebugMode() as communication, torch.no_grad():
            averages = AveragedWeights(model, 0.5)
            for p in model.parameters():
                p.to_local().mul_(3)
            averages.update(DONE)
            with averages.applied():
                inside = {name: p.to_local().clone() for name, p in model.named_parameters()}
        assert communication.get_total_counts() == 0
        for name, p in model.named_parameters():
            average = averages.tensors[name]
            assert isinstance(average, DTensor) and average.placements == p.placements and average.shape == p.shape
            torch.testing.assert_close(inside[name], 0.1 * start[name] + 0.9 * 3 * start[name], rtol=0, atol=1e-12)
            assert torch.equal(inside[name], average.to_local()) and torch.equal(p.to_local(), 3 * start[name])
    finally:
        dist.destroy_process_group()


def test_a_checkpoint_gives_back_weights_and_averages(folder, tmp_path):
    trainer = Trainer(config_for(folder, tmp_path, ema=0.99))
    trainer.run()
    found = checkpoint.latest(tmp_path / "checkpoints")
    assert checkpoint.weights_file(found).name == "ema.safetensors"
    weights, means = load_pretrained(found), load_pretrained(found, weights=checkpoint.weights_file(found).name)
    for name, p in trainer.model.named_parameters():
        assert torch.equal(weights.get_parameter(name), p), name
        assert torch.equal(means.get_parameter(name), trainer.averages.tensors[name]), name
    assert any(not torch.equal(a, b) for a, b in zip(weights.parameters(), means.parameters(), strict=True))
    data = bytearray((found / "ema.safetensors").read_bytes())
    data[-5] ^= 1
    (found / "ema.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"ema\.safetensors' is corrupt"):
        checkpoint.read_state(found)


def test_resumed_equals_uninterrupted_bit_for_bit(folder, tmp_path):
    def spoilt(trainer):  # step 3 is skipped, and stays skipped in what a resumed run counts
        original, trainer.loss_factors = (
            trainer.loss_factors,
            lambda counts: [f * (float("nan") if trainer.state.step == 2 else 1.0) for f in original(counts)],
        )
        return trainer

    whole = spoilt(Trainer(config_for(folder, tmp_path / "whole", ema=0.99, log_every=5)))
    whole.run()
    for stop_at in (4, 6):
        stopped_at(spoilt(Trainer(config_for(folder, tmp_path / "cut", ema=0.99, log_every=5))), stop_at)
    resumed = Trainer(config_for(folder, tmp_path / "cut", ema=0.99, log_every=5))
    resumed.run()
    assert whole.state.skipped_steps == resumed.state.skipped_steps == 1
    assert float(whole.averages.num_updates) == float(resumed.averages.num_updates) == 7
    for name, average in whole.averages.tensors.items():
        assert torch.equal(average, resumed.averages.tensors[name]), name
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    rows = [
        [r for r in read_metrics(tmp_path / n / "metrics.jsonl") if "val_loss/seen/text" in r] for n in ("whole", "cut")
    ]
    assert len(rows[0]) == 2
    assert [[(k, v) for k, v in r.items() if k != "seconds"] for r in rows[0]] == [
        [(k, v) for k, v in r.items() if k != "seconds"] for r in rows[1]
    ]


def test_averaging_may_begin_and_end_with_a_resume(folder, tmp_path):
    Trainer(config_for(folder, tmp_path, steps=3)).run()
    begun = Trainer(config_for(folder, tmp_path, steps=6, ema=0.99))
    assert float(begun.averages.num_updates) == 0
    assert all(torch.equal(p, begun.averages.tensors[name]) for name, p in begun.model.named_parameters())
    begun.run()
    found = checkpoint.find(tmp_path / "checkpoints")
    assert [checkpoint.weights_file(p).name for p in found] == ["model.safetensors", "ema.safetensors"]
    Trainer(config_for(folder, tmp_path, steps=7)).run()
    assert checkpoint.weights_file(checkpoint.find(tmp_path / "checkpoints")[-1]).name == "model.safetensors"


def test_samples_and_validation_are_made_with_the_averages(folder, tmp_path, monkeypatch):
    seen = {"sample": [], "validation": []}

    def note(kind, model):
        name = "blocks.0.ffn.image.up.weight"
        seen[kind].append(torch.equal(model.get_parameter(name), means[trainer.state.step][name]))

    def losses(model, *_, **__):
        note("validation", model)
        return {}, {}

    monkeypatch.setattr("plait.train.trainer.split_losses", losses)
    config = config_for(folder, tmp_path, ema=0.99, sample_every=4)
    trainer = Trainer(config, on_sample=lambda model, step: note("sample", model))
    means, original = {}, trainer.update

    def update(batches):
        found = original(batches)
        means[trainer.state.step + 1] = copy.deepcopy(trainer.averages.tensors)
        return found

    trainer.update = update
    trainer.run()
    assert seen == {"sample": [True, True], "validation": [True, True]}
    assert not torch.equal(trainer.model.blocks[0].ffn["image"].up.weight, means[8]["blocks.0.ffn.image.up.weight"])


def test_the_optimizer_decides_what_is_averaged():
    model = MixtureOfTransformers(model_config())
    optimizer = make_optimizer(model, config_for("x", "y").train, {"speech": TowerSettings(frozen=True)})
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    averaged = AveragedWeights(model, 0.9).tensors
    assert averaged.keys() == {name for name, p in model.named_parameters() if id(p) in trained} != set()
