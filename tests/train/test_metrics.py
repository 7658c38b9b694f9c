"""metrics.jsonl survives stops and resumes; trackers are found by name; the machine is described."""

import importlib
import json
import math
import subprocess
import sys

import pytest
import torch
from helpers.fake_data import run_config, scene_like, write_folder

from plait.common import files
from plait.common.errors import ConfigError, DataError, ResourceError
from plait.common.files import from_json
from plait.config.file import dotted, to_dict
from plait.config.run import TrainConfig
from plait.train import metrics
from plait.train.metrics import MetricsLog, read_metrics, write_summary
from plait.train.trainer import Trainer


def write_rows(folder, steps):
    with MetricsLog(folder, config={}) as log:
        for step in steps:
            log.log({"loss/text": 5.0 - step}, step=step, seconds=step / 2, tokens=100 * step)


def test_rows_can_be_read_while_the_run_is_on(tmp_path):
    log = MetricsLog(tmp_path, config={})
    log.log({"loss/text": torch.tensor(2.5), "grad_norm": float("nan")}, step=3, seconds=1.5, tokens=96)
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(row.pop("grad_norm"))
    assert row == {"step": 3, "seconds": 1.5, "tokens": 96, "loss/text": 2.5}
    strict = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert strict["grad_norm"] == "NaN"
    log.close()


def test_a_resumed_run_drops_the_rows_after_its_step_and_goes_on(tmp_path):
    write_rows(tmp_path, range(6))
    with MetricsLog(tmp_path, config={}) as log:
        log.drop_after(3)
        log.log({"loss/text": 0.5}, step=4, seconds=2, tokens=400)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[-1]["loss/text"] == 0.5
    with MetricsLog(tmp_path, config={}) as log:
        log.drop_after(-1)
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"], "no temporary file is left"


def test_a_torn_last_line_is_left_out_and_repaired_when_the_run_goes_on(tmp_path):
    write_rows(tmp_path, range(3))
    path = tmp_path / "metrics.jsonl"
    with path.open("ab") as file:
        file.write(b'{"step": 3, "seco')
    assert [row["step"] for row in read_metrics(path)] == [0, 1, 2]
    write_rows(tmp_path, [3])
    assert [row["step"] for row in read_metrics(path)] == [0, 1, 2, 3]


def test_a_torn_character_in_the_last_line_is_no_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "seconds": 0, "tokens": 0}\n{"step": 2, "note": "\xe2\x82')
    assert [row["step"] for row in read_metrics(path)] == [1]


@pytest.mark.parametrize("line", [b"garbage", b"[1, 2]", b"\xff\xfe"])
def test_a_broken_line_in_the_middle_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl', line 2"):
        read_metrics(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="absent"):
        read_metrics(tmp_path / "absent.jsonl")


def test_an_unknown_tracker_gets_the_nearest_name(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.trackers: unknown name 'tensorbord'.*did you mean 'tensorboard'"):
        MetricsLog(tmp_path, ["tensorbord"], config={})


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_a_tracker_that_is_not_installed_says_so_before_the_run_starts(tmp_path, monkeypatch, name):
    def refuse(module, *_):
        raise ImportError(module)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ResourceError, match=f"'{name}' is not installed"):
        MetricsLog(tmp_path, [name], config={})


def test_tensorboard_holds_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path, ["tensorboard"], config={"train.steps": 7, "name": "a"}) as log:
        log.log({"loss/text": 2.0, "bad": float("inf")}, step=10, seconds=1, tokens=5)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/text")] == [(10, 2.0)]
    assert [e.value for e in events.Scalars("bad")] == [math.inf]
    (config,) = [e.tensor_proto.string_val[0].decode() for e in events.Tensors("config/text_summary")]
    assert config == '    train.steps: 7\n    name: "a"'


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_of_the_wandb_kind_are_opened_once_logged_to_and_ended(tmp_path, monkeypatch, name):
    calls = []

    class Run:
        def log(self, values, step):
            calls.append(("log", step, values["loss/text"]))

        def finish(self):
            calls.append(("finish",))

    class Module:
        @staticmethod
        def init(**settings):
            calls.append(("init", settings["project"], settings["name"], settings["resume"], settings["config"]))
            return Run()

    monkeypatch.setitem(sys.modules, name, Module)
    folder = tmp_path / "my_run"
    with MetricsLog(folder, [name], config={"seed": 1}) as log:
        log.log({"loss/text": 2.0}, step=1, seconds=1, tokens=5)
        log.log({"loss/text": 1.0}, step=2, seconds=2, tokens=9)
    assert calls[0] == ("init", "plait", "my_run", "allow", {"seed": 1})
    assert calls[1:] == [("log", 1, 2.0), ("log", 2, 1.0), ("finish",)]


@pytest.mark.parametrize("name", sorted(metrics.TRACKERS))
def test_a_training_gives_every_tracker_its_whole_config(tmp_path, monkeypatch, name):
    configs = []

    class Fake(metrics.Tracker):
        module = "json"

        def __init__(self, folder, config):
            super().__init__(folder, config)
            configs.append(config)

        def open(self):
            return None

        send = open  # a tracker that takes nothing

    monkeypatch.setitem(metrics.TRACKERS, name, Fake)
    folder = write_folder(tmp_path / "data", {"train": [scene_like(i) for i in range(20)]})
    config = run_config(folder)
    config.out, config.train = str(tmp_path / "run"), TrainConfig(steps=1, trackers=[name], device="cpu")
    trainer = Trainer(config)
    with trainer._metrics():
        pass
    (told,) = configs
    assert told == dotted(to_dict(trainer.config))
    assert told["train.trackers"] == [name] and told["model.modalities.text.loss_weight"] == 1.0
    assert told["data.path"] == str(folder) and not any(isinstance(v, dict) and v for v in told.values())


def run_rows(folder, name):
    with MetricsLog(folder, [name], config={"seed": 1}) as log:
        for step in (1, 2):
            log.log({"loss/text": 2.0 / step, "mfu": None}, step=step, seconds=1, tokens=5)


def test_wandb_offline_keeps_the_rows_in_the_run_and_goes_on_with_its_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for _ in range(2):
        run_rows(tmp_path / "my_run", "wandb")
    name = (tmp_path / "my_run" / "wandb_id").read_text()
    folders = sorted((tmp_path / "my_run" / "wandb").glob(f"offline-run-*-{name}"))
    assert folders, "both parts belong to one run"
    kept = b"".join(file.read_bytes() for folder in folders for file in folder.glob("*.wandb"))
    assert b"loss/text" in kept and b"mfu" not in kept
    assert len(read_metrics(tmp_path / "my_run" / "metrics.jsonl")) == 4


def test_trackio_keeps_the_rows_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    run_rows(tmp_path / "my_run", "trackio")
    assert list((tmp_path / "trackio").rglob("plait*"))


WRITER = """
import sys
from plait.train.trainer import Trainer
from plait.train.metrics import MetricsLog
log = MetricsLog(sys.argv[1], config={})
for step in range(10**9):
    log.log({f"loss/{i}": step / 3 for i in range(60)}, step=step, seconds=step, tokens=step)
"""


@pytest.mark.parametrize("after", [200, 1000])
def test_a_killed_writer_leaves_rows_that_are_whole(tmp_path, after):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
    path = tmp_path / "metrics.jsonl"
    try:
        while not path.exists() or len(rows := read_metrics(path)) < after:  # a reader beside it never fails
            assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()
    final = read_metrics(path)
    assert [row["step"] for row in final] == list(range(len(final))) and len(final) >= len(rows)
    with MetricsLog(tmp_path, config={}) as log:
        log.log({}, step=len(final), seconds=1, tokens=1)
    assert len(read_metrics(path)) == len(final) + 1


def test_the_summary_is_flat_sorted_and_valid_json(tmp_path):
    path = tmp_path / "summary.json"
    write_summary(path, {"b": torch.tensor(1.5), "a": float("nan"), "name": "où", "n": 3})
    assert json.loads(path.read_text("utf-8")) == {"a": "NaN", "b": 1.5, "n": 3, "name": "où"}
    assert math.isnan(from_json(json.loads(path.read_text("utf-8")))["a"])
    with pytest.raises(TypeError, match="dict"):
        write_summary(path, {"nested": {"a": 1}})
    assert json.loads(path.read_text("utf-8"))["n"] == 3, "the old summary stays when the new one is refused"


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(ResourceError, match="no space is left to write"):
        write_summary(tmp_path / "summary.json", {"a": 1})
    assert list(tmp_path.iterdir()) == []


def test_the_machine_and_versions_are_described():
    machine = metrics.hardware()
    assert machine["cpu"] and machine["cpu_cores"] >= 1 and machine["memory_gb"] > 0.1
    assert ("gpu" in machine) == (torch.cuda.is_available() or torch.backends.mps.is_available())
    assert metrics.versions()["torch"] == torch.__version__


def test_versions_do_without_git(monkeypatch):
    real_run = subprocess.run

    def no_git(command, *arguments, **settings):
        if command[0] == "git":
            raise FileNotFoundError("git")
        return real_run(command, *arguments, **settings)

    monkeypatch.setattr(subprocess, "run", no_git)
    assert "commit" not in metrics.versions()


def test_importing_metrics_needs_no_tracker(tmp_path):
    code = "import sys, plait.train.metrics; sys.exit(any(m in sys.modules for m in ('tensorboard','wandb','trackio')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
