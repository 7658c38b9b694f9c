"""Who a process is among those that torchrun or srun started, and which layouts a number of ranks allows."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
import yaml
from helpers.fake_data import run_config, scene_like, write_folder

from plait.cli import main
from plait.common.errors import ConfigError, ResourceError
from plait.common.launch import Launch, first_host, is_first, launch
from plait.config.file import to_dict
from plait.config.model import ModelConfig, TowerConfig
from plait.config.rank_layout import Layout
from plait.config.run import ParallelConfig, TrainConfig
from plait.train import parallel
from plait.train.float8 import check_float8
from plait.train.metrics import read_metrics
from plait.train.parallel import local_device

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1234"}
SRUN = {"SLURM_PROCID": "9", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "70123",
        "SLURM_STEP_NODELIST": "gpu[07-08]"}  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    def set_to(values):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_to


def test_launchers(environment):
    environment({})
    assert launch() is None and is_first()
    environment(TORCHRUN)
    assert launch() == Launch(3, 4, 1, "a", 1234, "torchrun") and not is_first()
    environment(SRUN)
    assert launch() == Launch(9, 16, 1, "gpu07", 20000 + 70123 % 20000, "srun")
    environment(SRUN | {"MASTER_ADDR": "b", "MASTER_PORT": "99"})
    assert (launch().address, launch().port) == ("b", 99)
    environment(SRUN | TORCHRUN)  # torchrun within a step of srun
    assert launch().by == "torchrun"
    environment({k: v for k, v in SRUN.items() if k != "SLURM_STEP_NUM_TASKS"})  # in an sbatch script, without srun
    assert launch() is None


@pytest.mark.parametrize(("hosts", "first"), [
    ("node1", "node1"), ("node1,node2", "node1"),
    ("gpu[003-010,021],login1", "gpu003"), ("rack[1-2]n5", "rack1n5"), ("a-[5,7]", "a-5"),
])  # fmt: skip
def test_first_host(hosts, first):
    assert first_host(hosts) == first


def test_each_rank_has_its_own_device(environment, monkeypatch):
    environment(TORCHRUN)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert local_device("auto") == local_device("cuda") == "cuda:1" and local_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match=r"train\.device: 'cuda:0' .* its own GPU"):
        local_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ResourceError, match="has no GPU, the machine has 1; start at most 1"):
        local_device("auto")
    environment(SRUN)
    assert local_device("auto") == "cuda:0"  # the task's own
    environment({})
    assert local_device("cuda:3") == "cuda:3"


def test_layouts():
    assert Layout.of(ParallelConfig(), 1) == Layout(1, 1, 1, 1)
    assert Layout.of(ParallelConfig(), 512) == Layout(1, 512, 1, 1)
    assert Layout.of(ParallelConfig(tensor=8, replicate=4), 512) == Layout(4, 16, tensor=8)
    assert Layout.of(ParallelConfig(shard=2, context=2), 4).data == 2


@pytest.mark.parametrize(("settings", "ranks", "words"), [
    ({"tensor": 2}, 1, ["parallel.tensor", "2", "a divisor of 1"]),
    ({"tensor": 3}, 4, ["parallel.tensor", "3", "a divisor of 4"]),
    ({"tensor": 2, "context": 4}, 4, ["parallel.context", "4", "a divisor of 2", "4 in all"]),
    ({"replicate": 3}, 8, ["parallel.replicate", "3", "a divisor of 8"]),
    ({"shard": 2}, 8, ["parallel.shard", "2", "0 or 8"]),
    ({"shard": 2}, 1, ["parallel.shard", "2", "0 or 1"]),
])  # fmt: skip
def test_layouts_that_do_not_fit_the_ranks(settings, ranks, words):
    with pytest.raises(ConfigError) as error:
        Layout.of(ParallelConfig(**settings), ranks)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(("settings", "model", "train", "words"), [
    ({"tensor": 0}, {}, {}, ["parallel.tensor", "0", "at least 1"]),
    ({"shard": -1}, {}, {}, ["parallel.shard", "-1", "0 or more"]),
    ({"tensor": 2, "context": 2}, {}, {}, ["parallel.tensor x parallel.context", "4", "num_kv_heads (2)"]),
    ({"tensor": 2}, {"towers": {"image": TowerConfig(ffn_width=25)}}, {}, ["towers.image.ffn_width (25)"]),
    ({"context": 2}, {"towers": {"image": TowerConfig(ffn="moe", moe_routing="expert_choice")}}, {},
     ["parallel.context", "expert_choice"]),
    ({"tensor": 2}, {}, {"sample_every": 5}, ["train.sample_every", "5", "plait generate"]),
    ({}, {}, {"global_batch_tokens": 4096, "accumulate": 2}, ["train.accumulate", "2", "global_batch_tokens"]),
])  # fmt: skip
def test_settings_that_no_number_of_ranks_fits(settings, model, train, words):
    config = run_config("nowhere")
    model = ModelConfig(config.model.modalities, width=16, num_heads=2, **model)
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(config, model=model, parallel=ParallelConfig(**settings), train=TrainConfig(**train))
    assert all(word in str(error.value) for word in words)


def test_a_global_batch_in_tokens(monkeypatch):
    config = run_config("nowhere", batch_tokens=512)
    config.train.global_batch_tokens = 4096
    for ranks, batches in ((1, 8), (2, 4), (8, 1)):
        monkeypatch.setattr(parallel, "world_size", lambda n=ranks: n)
        assert parallel.batches_of_a_step(config) == batches
    config.parallel.tensor = 2
    assert parallel.batches_of_a_step(config) == 2
    config.train.global_batch_tokens = 1000
    with pytest.raises(ConfigError, match=r"train\.global_batch_tokens: 1000 .* a multiple of 2048"):
        parallel.batches_of_a_step(config)


def test_float8_is_refused_with_the_reason(monkeypatch):
    with pytest.raises(ConfigError, match=r"train\.precision: 'float8' .*'cpu'"):
        check_float8(torch.device("cpu"), tensor=1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ConfigError, match=r"capability 8\.9, this one has 8\.0"):
        check_float8(torch.device("cuda"), tensor=1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(ConfigError, match=r"parallel\.tensor \(2\)"):
        check_float8(torch.device("cuda"), tensor=2)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="pip install torchao"):
        check_float8(torch.device("cuda"), tensor=1)


def test_other_commands_run_in_one_process(environment, capsys):
    environment(TORCHRUN | {"RANK": "0"})
    assert main(["settings"]) == 2
    assert "plait settings runs in one process" in capsys.readouterr().err
    environment(TORCHRUN)
    assert main(["settings"]) == 2
    assert not capsys.readouterr().err  # rank 0 says it


def run_by_torchrun(folder, *settings, ranks=2):
    config = run_config(folder / "data", batch_tokens=256)
    config.out = str(folder / "run")
    config.train = TrainConfig(steps=3, log_every=1, device="cpu", validation_batches=1)
    (folder / "run.yaml").write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", "plait", "train", str(folder / "run.yaml"), *settings]
    environment = {k: v for k, v in os.environ.items() if k not in NAMES} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def test_torchrun(tmp_path):
    """One command trains on two ranks: one log and one line on the screen; a wrong setting is one sentence."""
    splits = {"train": [scene_like(i) for i in range(60)], "seen": [scene_like(i, seed=1) for i in range(10)]}
    write_folder(tmp_path / "data", splits)
    run = run_by_torchrun(tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("trained: ") == 1
    assert [r["step"] for r in read_metrics(tmp_path / "run/metrics.jsonl") if "grad_norm" in r] == [1, 2, 3]
    refused = run_by_torchrun(tmp_path, "--parallel.tensor", "4")
    assert refused.returncode != 0
    assert refused.stderr.count("plait: parallel.tensor") == 1 and "rank 1" not in refused.stderr.split("Root Cause")[0]
