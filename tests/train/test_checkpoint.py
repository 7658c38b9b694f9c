"""Checkpoints of one process: written while training goes on, whole or not there, and everything in them comes back."""

import errno
import json
import random
import threading

import numpy as np
import pytest
import torch
from helpers.fake_data import scene_like, write_folder
from helpers.models import model_config
from helpers.training import config_for, flip, stopped_at

from plait.common import tensor_files
from plait.common.errors import CheckpointError, PlaitError, ResourceError
from plait.common.tensor_files import Cut, Piece, Stored, TensorStore, make_index, write_tensors
from plait.model.mot import MixtureOfTransformers
from plait.train import checkpoint
from plait.train.checkpoint import Checkpoints
from plait.train.optim import make_optimizer
from plait.train.trainer import Trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data"), {"train": [scene_like(i) for i in range(60)]})


@pytest.fixture
def trained():
    """Return a model with an optimizer that has made a step."""
    model = MixtureOfTransformers(model_config(width=16, num_layers=1))
    optimizer = make_optimizer(model, config_for("x", "y").train)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return model, optimizer


def held_up(monkeypatch) -> threading.Event:
    """Hold up every write until the event is set."""
    go, write = threading.Event(), tensor_files._write

    def slow(*arguments):
        assert go.wait(30)
        return write(*arguments)

    monkeypatch.setattr(tensor_files, "_write", slow)
    return go


def test_training_goes_on_while_the_state_of_the_moment_is_written(tmp_path, trained, monkeypatch):
    model, optimizer = trained
    before = {name: t.clone() for name, t in model.state_dict().items()}
    moments = {k: t.clone() for k, t in optimizer.state[model.head["shared"].weight].items()}
    go, checkpoints = held_up(monkeypatch), Checkpoints(tmp_path, keep=2)
    state = {"step": 5, "run": {"loader": {"taken": [3]}}}
    checkpoints.save(model, optimizer, state)
    assert checkpoints.writing and checkpoint.find(tmp_path) == []
    state["run"]["loader"]["taken"][0] = 99  # training goes on
    with torch.no_grad():
        for tensor in [*model.parameters(), *(t for s in optimizer.state.values() for t in s.values())]:
            tensor.zero_()
    go.set()
    checkpoints.wait()
    assert not checkpoints.writing and [p.name for p in checkpoint.find(tmp_path)] == ["step-00000005"]
    assert checkpoints.restore(checkpoints.newest(), model, optimizer)["run"] == {"loader": {"taken": [3]}}
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(torch.equal(t, moments[k]) for k, t in optimizer.state[model.head["shared"].weight].items())


def test_each_holds_the_state_of_its_own_moment(tmp_path, trained):
    """Copies are made into the same memory each time."""
    model, optimizer = trained
    checkpoints, moments = Checkpoints(tmp_path, keep=3), []
    for step in range(1, 4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        moments.append({name: t.clone() for name, t in model.state_dict().items()})
        checkpoints.save(model, optimizer, {"step": step})
    checkpoints.wait()
    for path, expected in zip(checkpoint.find(tmp_path), moments, strict=True):
        with TensorStore(path / "model.safetensors", "test") as store:
            assert all(torch.equal(store.read(n), t) for n, t in expected.items())


def test_one_is_written_at_a_time_and_old_ones_go(tmp_path, trained):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=4)
    for step in range(1, 11):
        checkpoints.save(*trained, {"step": step})
    checkpoints.wait()
    assert [int(p.name[5:]) for p in checkpoint.find(tmp_path)] == [4, 8, 9, 10]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-{n:08d}" for n in (4, 8, 9, 10)]


def test_nothing_in_it_is_a_pickle(tmp_path, trained):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(*trained, {"step": 1})
    files = sorted(p.name for p in (tmp_path / "step-00000001").iterdir())
    assert files == ["config.json", "model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"]


def test_the_generators_of_libraries_come_back(tmp_path, trained):
    def draws():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), np.random.randn(), random.random(), random.gauss()

    np.random.randn()  # one of a pair, the other is kept
    random.gauss()
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(*trained, {"step": 1})
    expected = draws()
    checkpoints.wait()
    assert draws() != expected
    checkpoints.restore(checkpoints.newest(), *trained)
    assert draws() == expected


DAMAGES = {
    "truncated": lambda p: (p / "optimizer.safetensors").write_bytes((p / "optimizer.safetensors").read_bytes()[:-9]),
    "flipped": lambda p: flip(p / "model.safetensors"),
    "missing": lambda p: (p / "random.safetensors").unlink(),
    "empty": lambda p: (p / "optimizer.safetensors").write_bytes(b""),
    "no state": lambda p: (p / "state.json").unlink(),
    "torn state": lambda p: (p / "state.json").write_text('{"step": 4, "files": {"mo'),
    "no files": lambda p: (p / "state.json").write_text('{"step": 4, "files": 3}'),
    "other version": lambda p: (p / "state.json").write_text('{"schema_version": 0, "files": {}}'),
    "other config": lambda p: (p / "config.json").write_text("{}"),
}


def test_states_of_generators_are_read_as_numbers_alone(tmp_path, trained):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(*trained, {"step": 1})
    checkpoints.wait()
    found = {
        "torch": torch.zeros(9, dtype=torch.uint8),
        "python": torch.frombuffer(bytearray(b"[1, 2, 3]"), dtype=torch.uint8),
    }
    for name, states in found.items():
        write(tmp_path / "step-00000001/random.safetensors", {f"0/{name}": states})
        with pytest.raises(CheckpointError, match=r"random\.safetensors' holds no states of generators"):
            checkpoints.restore(tmp_path / "step-00000001", *trained)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_passed_over_with_a_warning(folder, tmp_path, capsys, damage):
    Trainer(config_for(folder, tmp_path, steps=4, ema=0.9)).run()
    older, newest = checkpoint.find(tmp_path / "checkpoints")
    DAMAGES[damage](newest)
    assert checkpoint.latest(tmp_path / "checkpoints") == checkpoint.latest(tmp_path / "checkpoints") == older
    trainer = Trainer(config_for(folder, tmp_path, steps=4, ema=0.9))
    assert trainer.state.step == 3
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("plait: checkpoint: ")]
    assert len(lines) == 1 and "step-00000004" in lines[0] and "falling back to the previous checkpoint" in lines[0]
    trainer.run()  # writes the damaged one anew
    assert checkpoint.latest(tmp_path / "checkpoints") == newest


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_set_aside_and_counted_nowhere(tmp_path, trained, capsys, damage, keep):
    """However many of the newest are damaged, good ones that were written before and after them stay."""

    def names() -> list[str]:
        return [p.name for p in checkpoint.find(tmp_path)]

    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(*trained, {"step": step})
    checkpoints.wait()
    for path in checkpoint.find(tmp_path)[-keep:]:
        DAMAGES[damage](path)
    again = Checkpoints(tmp_path, keep=keep)
    whole = [f"step-0000000{n}" for n in range(1, 4 - keep)]
    assert again.newest().name == whole[-1]
    for step in range(4, 4 + keep):  # none of them is removed for a damaged one
        again.save(*trained, {"step": step})
        again.wait()
        whole = [*whole, f"step-0000000{step}"][-keep:]
        assert names() == whole and checkpoint.latest(tmp_path).name == whole[-1]
    aside = sorted(p.name for p in tmp_path.glob("damaged-*"))
    assert aside == [f"damaged-step-0000000{n}" for n in range(4 - keep, 4)]
    said = capsys.readouterr().err
    assert all(f"kept as '{name}' and counted nowhere" in said for name in aside)


def disk_full(monkeypatch, *, after: int) -> None:
    """Let the disk be full after so many bytes of tensors."""
    write, left = tensor_files._write, [after]

    def limited(file, data, checksum):
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data, checksum)

    monkeypatch.setattr(tensor_files, "_write", limited)


@pytest.mark.parametrize("after", [0, 20_000])
def test_a_full_disk_is_one_sentence_and_leaves_the_older_one(folder, tmp_path, monkeypatch, after):
    whole = Trainer(config_for(folder, tmp_path / "whole")).run()
    stopped_at(Trainer(config_for(folder, tmp_path / "cut")), 3)
    with monkeypatch.context() as patch:
        disk_full(patch, after=after)
        with pytest.raises(ResourceError, match=r"no space is left to write .*step-00000006.*what was written before"):
            Trainer(config_for(folder, tmp_path / "cut")).run()
    assert [p.name for p in (tmp_path / "cut/checkpoints").iterdir()] == ["step-00000003"]
    resumed = Trainer(config_for(folder, tmp_path / "cut")).run()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_what_a_killed_run_began_to_write_is_removed(folder, tmp_path):
    leftover = tmp_path / "checkpoints/.step-00000009.tmp"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    trainer = Trainer(config_for(folder, tmp_path, steps=1))
    assert leftover.exists()  # nothing is changed before the run is accepted
    trainer.run()
    assert not leftover.exists()


def test_an_error_of_training_wins_over_one_of_writing(tmp_path, trained, monkeypatch):
    disk_full(monkeypatch, after=0)
    with pytest.raises(PlaitError, match="of training"), Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(*trained, {"step": 1})
        raise PlaitError("of training")
    with pytest.raises(ResourceError, match="no space"), Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(*trained, {"step": 1})


# -- tensors on disk ----------------------------------------------------------------------------------------------

TENSORS = {
    "a": torch.arange(24.0).reshape(6, 4),
    "b": torch.arange(7, dtype=torch.int64),
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "half": torch.randn(5, 3).to(torch.bfloat16),
    "flags": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 3),
}


def write(path, tensors) -> None:
    write_tensors(path, {n: Stored(t.dtype, tuple(t.shape)) for n, t in tensors.items()}, tensors.__getitem__)


def test_others_read_what_is_written_and_the_other_way_round(tmp_path):
    from safetensors.torch import load_file, save_file

    write(tmp_path / "a.safetensors", TENSORS)
    save_file(TENSORS, tmp_path / "b.safetensors")
    found = load_file(tmp_path / "a.safetensors")
    with TensorStore(tmp_path / "b.safetensors", "test") as store:
        assert found.keys() == TENSORS.keys() == store.tensors.keys()
        for name, tensor in TENSORS.items():
            assert torch.equal(found[name], tensor) and torch.equal(store.read(name), tensor), name
            assert found[name].dtype == store.read(name).dtype == tensor.dtype


def test_pieces_of_several_files_are_put_together(tmp_path):
    whole = TENSORS["a"]
    boxes = {
        "x-1.safetensors": ((0, 0), (4, 3)),
        "x-2.safetensors": ((4, 0), (2, 3)),
        "x-3.safetensors": ((0, 3), (6, 1)),
    }
    for file, (start, shape) in boxes.items():
        write(tmp_path / file, {"a": whole[start[0] : start[0] + shape[0], start[1] : start[1] + shape[1]]})
    pieces = tuple(Piece(file, *box) for file, box in boxes.items())
    index = make_index({"a": Cut(whole.dtype, (6, 4), pieces)})
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps(index))
    with TensorStore(tmp_path / "x.safetensors", "test") as store:
        assert torch.equal(store.read("a"), whole)
        assert torch.equal(store.read_piece("a", store.tensors["a"].pieces[0], (1, 1), (2, 2)), whole[1:3, 1:3])
    for break_it in (
        lambda i: i["pieces"]["a"]["at"].pop(),
        lambda i: i["pieces"]["a"].update(shape=[5, 4]),
        lambda i: i["pieces"]["a"]["at"][0].__setitem__(0, "../x-1.safetensors"),
        lambda i: i["pieces"]["a"]["at"][0].__setitem__(1, [-1, 0]),
        lambda i: i["pieces"]["a"].update(dtype="pickle"),
        lambda i: i["weight_map"].update(a=3),
        lambda i: i["weight_map"].update(b="x-1.safetensors"),
        lambda i: i.pop("weight_map"),
    ):
        broken = json.loads(json.dumps(index))
        break_it(broken)
        (tmp_path / "x.safetensors.index.json").write_text(json.dumps(broken))
        with pytest.raises(CheckpointError, match=r"is not an index|does not hold 'b' as its index says"):
            TensorStore(tmp_path / "x.safetensors", "test")


def test_a_broken_file_is_one_sentence_whatever_is_broken(tmp_path, rng):
    """A thousand files, each with a byte changed, a stretch cut out, the end cut off or bytes at the end."""
    path = tmp_path / "a.safetensors"
    write(path, TENSORS)
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    refused = 0
    for _ in range(1000):
        broken, at = bytearray(data), int(rng.integers(header))
        kind = rng.integers(5)
        if kind < 2:
            broken[at] = int(rng.integers(256))
        elif kind == 2:
            del broken[at : at + int(rng.integers(1, 9))]
        elif kind == 3:
            del broken[int(rng.integers(len(data))) :]
        else:
            broken += bytes(int(rng.integers(1, 9)))
        path.write_bytes(broken)
        try:
            with TensorStore(path, "test") as store:
                for name in store.tensors:
                    store.read(name)
            assert kind < 2, "bytes are missing or too many"
        except CheckpointError as error:
            refused += 1
            assert str(error).startswith(f"test: {str(path)!r} ") and "\n" not in str(error)
    assert refused > 800
