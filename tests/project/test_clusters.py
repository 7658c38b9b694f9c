"""Launch files: each one parses, says a valid plait command, and two machines survive the loss of one."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT
from helpers.fake_data import scene_like, write_folder
from helpers.faults import losses, weights
from helpers.ports import free_port
from helpers.training import config_for

from plait.cli import _parser
from plait.common.files import write_text
from plait.config.file import to_dict
from plait.train import checkpoint

FOLDER = ROOT / "clusters"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
DOCUMENT = (ROOT / "docs" / "clusters.md").read_text()
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def test_there_is_a_file_for_each_kind_of_cluster_and_a_section_about_it():
    names = sorted(path.name for path in FOLDER.iterdir())
    assert names == ["kubernetes.yaml", "skypilot.yaml", "slurm.sh", "torchrun.sh"]
    assert all(f"clusters/{name}" in DOCUMENT for name in names)


# -- the files


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_shell_and_say_how_they_are_called(path):
    assert os.access(path, os.X_OK)
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True).stderr == ""
    environment = ENVIRONMENT | {"HEAD": "a", "NODES": "1"}
    run = subprocess.run(["bash", str(path)], capture_output=True, text=True, env=environment)
    assert run.returncode == 2 and "usage: " in run.stderr


def train_commands() -> list[tuple[str, list[str]]]:
    """Return what follows ``-m plait`` in each launch file, with values for what is asked of the environment."""
    texts = {path.name: path.read_text() for path in SCRIPTS}
    texts["skypilot.yaml"] = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())["run"]
    pods = yaml.safe_load((FOLDER / "kubernetes.yaml").read_text())["spec"]["pytorchReplicaSpecs"]
    texts |= {f"kubernetes.yaml, {name}": shlex.join(container(pod)["args"]) for name, pod in pods.items()}
    found = []
    for name, text in texts.items():
        (line,) = re.findall(r"-m plait (.*)", text.replace("\\\n", " "))
        line = line.replace('"$@"', "my.yaml --out /shared/my").replace("$CONFIG", "my.yaml")
        found.append((name, shlex.split(line)))
    return found


def container(pod: dict) -> dict:
    return pod["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(("name", "words"), train_commands())
def test_commands_are_valid(name, words):
    chosen, rest = _parser().parse_known_args(words)
    assert chosen.command == "train" and chosen.config.endswith("my.yaml")
    assert rest[0] == "--out" and len(rest) == 2


@pytest.mark.parametrize("name", ["torchrun.sh", "kubernetes.yaml", "skypilot.yaml"])
def test_torchrun_is_told_not_to_share_its_store(name):
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE" in (FOLDER / name).read_text()


def test_the_slurm_job_saves_before_its_end_and_is_queued_again():
    text = (FOLDER / "slurm.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.MULTILINE))
    assert options["ntasks-per-node"] == options["gpus-per-node"], "a task for each GPU"
    assert options["signal"].startswith("TERM@") and "requeue" in options


@pytest.mark.parametrize(("code", "queued"), [(130, True), (0, False), (1, False)])
def test_only_a_run_that_was_stopped_is_queued_again(tmp_path, code, queued):
    """The script itself, with stand-ins for Slurm's commands and for the environment."""
    stand_ins = {"srun": f'echo "$@" > {tmp_path}/called; exit {code}', "scontrol": f'echo "$@" > {tmp_path}/again'}
    for name, text in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "activate").touch()
    slurm = {"SLURM_CPUS_PER_TASK": "8", "SLURM_JOB_ID": "77", "PLAIT_VENV": str(tmp_path)}
    environment = ENVIRONMENT | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    run = subprocess.run(["bash", str(FOLDER / "slurm.sh"), "my.yaml", "--train.steps", "5"], env=environment)
    assert run.returncode == code
    assert (tmp_path / "called").read_text().endswith("python -m plait train my.yaml --train.steps 5\n")
    assert (tmp_path / "again").exists() == queued
    assert not queued or (tmp_path / "again").read_text() == "requeue 77\n"


def test_the_kubernetes_job_is_one():
    """The names and kinds of the operator's schema (kubeflow.org/v1, PyTorchJob), as far as they are used."""
    job = yaml.safe_load((FOLDER / "kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob") and set(job) == {
        "apiVersion", "kind", "metadata", "spec"}  # fmt: skip
    assert set(job["spec"]) == {"nprocPerNode", "runPolicy", "pytorchReplicaSpecs"}
    assert job["spec"]["runPolicy"]["cleanPodPolicy"] in ("All", "Running", "None")
    for name, pod in job["spec"]["pytorchReplicaSpecs"].items():
        assert name in ("Master", "Worker") and set(pod) == {"replicas", "restartPolicy", "template"}
        assert pod["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
        spec, mine = pod["template"]["spec"], container(pod)
        assert mine["name"] == "pytorch", "the operator looks for this name"
        assert mine["resources"]["limits"]["nvidia.com/gpu"] == int(job["spec"]["nprocPerNode"])
        assert {m["name"] for m in mine["volumeMounts"]} == {v["name"] for v in spec["volumes"]}
        assert spec["terminationGracePeriodSeconds"] >= 60, "time to save"
        assert all(isinstance(variable["value"], str) for variable in mine["env"])
    assert job["spec"]["pytorchReplicaSpecs"]["Master"]["replicas"] == 1


def test_the_skypilot_task_is_one():
    task = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
    known = {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "file_mounts", "volumes", "setup", "run"}
    assert set(task) <= known and task["num_nodes"] >= 1
    assert set(task["resources"]["job_recovery"]) <= {"strategy", "max_restarts_on_errors", "recover_on_exit_codes"}
    for script in (task["setup"], task["run"]):
        assert subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True).stderr == ""


# -- two machines


STEPS, EVERY = 400, 20


class Machine:
    """One machine: torchrun's agent, started by the line of clusters/torchrun.sh, and its ranks."""

    def __init__(self, port: int, config: Path, log: Path):
        self.port, self.config, self.log = port, config, log
        own = {"HEAD": "127.0.0.1", "PORT": str(port), "NODES": "2", "RANKS": "1"}
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            self.agent = subprocess.Popen(["bash", str(FOLDER / "torchrun.sh"), str(config)], env=ENVIRONMENT | own,
                                          cwd=ROOT, stdout=file, stderr=file)  # fmt: skip

    def lose(self) -> None:
        """Kill everything at once, as when a machine loses its power."""
        pids = [self.agent.pid]
        for pid in pids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.agent.wait()

    def again(self) -> "Machine":
        """Start the machine anew, by the same line."""
        return Machine(self.port, self.config, self.log.with_suffix(".again.txt"))


def two_machines(config: Path) -> list[Machine]:
    """Start two machines; the first one, where all meet, is up before the second."""
    port = free_port()
    first = Machine(port, config, config.parent / f"{config.stem}-logs" / "machine-0.txt")
    wait_for_port(port)
    return [first, Machine(port, config, first.log.with_name("machine-1.txt"))]


def wait_for_port(port: int) -> None:
    end = time.monotonic() + 60
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < end, "nobody listens"
        time.sleep(0.1)


def finish(machines: list[Machine], seconds: float) -> None:
    end = time.monotonic() + seconds
    for machine in machines:
        code = machine.agent.wait(max(end - time.monotonic(), 0.1))
        assert code == 0, machine.log.read_text()[-3000:]


@contextlib.contextmanager
def none_left(machines: list[Machine]):
    try:
        yield
    finally:
        for machine in machines:
            machine.lose()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a function that writes the config of a run, and the folder of an undisturbed one."""
    folder = tmp_path_factory.mktemp("machines")
    data = write_folder(folder / "data", {"train": [scene_like(i) for i in range(300)]}, per_shard=40)

    def config(name: str) -> Path:
        values = config_for(data, folder / name, steps=STEPS, checkpoint_every=EVERY, validation_batches=0)
        write_text(folder / f"{name}.yaml", yaml.safe_dump(to_dict(values), sort_keys=False))
        return folder / f"{name}.yaml"

    machines = two_machines(config("whole"))
    with none_left(machines):
        finish(machines, 150)
    return config, folder / "whole"


@pytest.mark.recovery
@pytest.mark.parametrize("lost", [1, 0], ids=["another machine", "the first machine"])
def test_a_machine_is_lost_and_comes_back(runs, lost):
    """Another machine joins again and the others wait for it; without the first one all end, and are started again."""
    config, whole = runs
    path = config(f"lost-{lost}")
    out = path.with_suffix("")
    machines = two_machines(path)
    with none_left(machines):
        end = time.monotonic() + 90
        while not (found := checkpoint.latest(out / "checkpoints")):
            assert time.monotonic() < end and all(m.agent.poll() is None for m in machines), machines[0].log.read_text()
            time.sleep(0.05)
        machines[lost].lose()
        assert int(found.name.removeprefix("step-")) < STEPS
        if lost == 0:
            assert machines[1].agent.wait(90) != 0
            machines[0] = machines[0].again()
            wait_for_port(machines[0].port)
            machines[1] = machines[1].again()
        else:
            machines[1] = machines[1].again()
        finish(machines, 150)
    ends = [checkpoint.latest(folder / "checkpoints") for folder in (whole, out)]
    assert [e.name for e in ends] == [f"step-{STEPS:08d}"] * 2
    assert losses(out) == losses(whole)
    a, b = (weights(e) for e in ends)
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
