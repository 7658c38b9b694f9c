"""What a run on two ranks survives. After each fault the same command goes on, and all is as if nothing had been: the
losses of every step, the documents of every step, none lost and none twice, and the weights, bit for bit.

A handful runs with every test; `make test-recovery` runs all and writes the table to runs/faults.json.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import ROOT
from helpers.fake_data import run_config, scene_like, write_folder
from helpers.faults import ALL_RANKS, SECONDS_TO_END, Fault, Launched, Table, documents, losses, weights
from helpers.training import config_for, flip

from plait.common.files import write_text
from plait.common.locks import one_writer
from plait.config.file import to_dict
from plait.train import checkpoint

STEPS, EVERY = 12, 3
PHASES = ("reading data", "counts of all ranks", "forward and backward pass", "gradient norm and optimizer", "losses")
recovery = pytest.mark.recovery


@pytest.fixture(scope="module")
def table(request):
    """Return the table of faults; at the end it is printed, and written to runs/faults.json."""
    found = Table(ROOT / "runs" / "faults.json")
    yield found
    if found.rows:
        found.write()
        reporter = request.config.pluginmanager.get_plugin("terminalreporter")
        reporter.ensure_newline()
        reporter.write_line(found.text())


class Lab:
    """Prepared data, and what an undisturbed run on a number of ranks leaves behind."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.data = write_folder(folder / "data", {"train": [scene_like(i) for i in range(300)]}, per_shard=40)
        self._references: dict[int, tuple] = {}

    def command(self, out: Path, *settings: str, data: Path | None = None, **train) -> list[str]:
        """Return the command of a run into ``out``."""
        train = {"steps": STEPS, "checkpoint_every": EVERY, "ema": 0.9, "validation_batches": 0} | train
        config = config_for(data or self.data, out, **train)
        config.data.num_workers = 1
        path = out.parent / f"{out.name}.yaml"
        write_text(path, yaml.safe_dump(to_dict(config), sort_keys=False))
        return ["train", str(path), *settings]

    def launch(self, out: Path, *settings: str, ranks: int = 2, fault: Fault | None = None, **train) -> Launched:
        """Start a run, or go on with it; what the test itself writes lies beside it."""
        command = self.command(out, *settings, **train)
        noted = self.noted(out)
        return Launched(command, ranks=ranks, log=noted / "logs", fault=fault, seen=noted)

    def noted(self, out: Path) -> Path:
        """Return the folder of what the test itself writes about a run."""
        folder = self.folder / "noted" / hashlib.md5(str(out).encode()).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def finish(self, out: Path, *settings: str, ranks: int = 2, **train) -> None:
        """Go on with a run to its end."""
        with self.launch(out, *settings, ranks=ranks, **train) as run:
            assert run.wait() == [0] * ranks, run.text()

    def reference(self, ranks: int = 2) -> tuple:
        """Return losses, documents and weights of an undisturbed run."""
        if ranks not in self._references:
            out = self.folder / f"reference-{ranks}"
            self.finish(out, ranks=ranks)
            self._references[ranks] = self.left(out)
            assert list(self._references[ranks][0]) == list(self._references[ranks][1]) == list(range(1, STEPS + 1))
        return self._references[ranks]

    def left(self, out: Path) -> tuple:
        """Return losses, documents and weights that a run left behind."""
        newest = checkpoint.latest(out / "checkpoints")
        assert newest.name == f"step-{STEPS:08d}"
        return losses(out), documents(self.noted(out)), weights(newest)

    def check(self, out: Path, ranks: int = 2) -> None:
        """Compare a finished run with the undisturbed one: everything is equal, bit for bit."""
        (a_losses, a_seen, a_weights), (b_losses, b_seen, b_weights) = self.left(out), self.reference(ranks)
        assert a_losses == b_losses
        assert a_seen == b_seen
        seen = [tuple(d) for step in a_seen.values() for d in step]
        assert len(set(seen)) == len(seen) > 100, "a document was read twice"
        assert a_weights.keys() == b_weights.keys()
        assert all(torch.equal(a_weights[n], b_weights[n]) for n in b_weights)
        assert not [p.name for p in (out / "checkpoints").iterdir() if p.name.startswith(".")]

    def step(self, out: Path) -> int:
        """Return the newest complete checkpoint's step, 0 without one."""
        found = checkpoint.latest(out / "checkpoints")
        return int(found.name.removeprefix("step-")) if found else 0


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("lab"))


# -- killed ---------------------------------------------------------------------------------------------------------


def moment(seed: int) -> Fault | int:
    """Return when a rank is killed: in the middle of something, or at any moment after this step was logged."""
    rng = np.random.default_rng(seed)
    rank, kind = int(rng.integers(2)), seed % 5
    if kind == 0:
        return Fault("kill in write", rank, int(rng.integers(1, 450)))
    if kind == 1:
        return Fault("kill in phase", rank, int(rng.integers(1, STEPS)), PHASES[int(rng.integers(len(PHASES)))])
    if kind == 2:
        return int(rng.integers(1, STEPS))
    if kind == 3:
        return Fault("kill in phase", rank, EVERY * int(rng.integers(1, 4)), "checkpoint")
    names = ("kill before rename", "kill after rename", "kill in removal")
    return Fault(names[seed // 5 % 3], 0, int(rng.integers(1, 3)))


def killed(lab: Lab, table: Table, out: Path, seed: int) -> None:
    """Kill one rank, see that the other ends, go on, and compare."""
    lab.reference()
    when = moment(seed)
    with table.row("SIGKILL of a rank", seed) as detail:
        with lab.launch(out, fault=when if isinstance(when, Fault) else None) as run:
            if isinstance(when, int):
                wait_for(lambda: (out / "metrics.jsonl").exists() and max(losses(out), default=0) >= when, run)
                run.signal(signal.SIGKILL, seed % 2)
            codes = run.wait()
            rank = when.rank if isinstance(when, Fault) else seed % 2
            # At a random moment all steps may be saved: then the other rank, or both, may end as they should.
            fine = (0,) if isinstance(when, int) and lab.step(out) == STEPS else ()
            assert codes[rank] in (-signal.SIGKILL, *fine), run.text()
            assert codes[1 - rank] in fine or codes[1 - rank] not in (None, 0), run.text()
        text = f"{when.kind} {when.at} {when.phase}".strip() if isinstance(when, Fault) else f"after step {when}"
        detail.append(f"rank {rank}, {text}; went on from step {lab.step(out)}")
        lab.finish(out)
        lab.check(out)


def wait_for(ready, run: Launched, seconds: float = 240) -> None:
    """Wait until something is so, while the run goes on."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end and all(p.exitcode in (None, 0) for p in run.processes), run.text()
        time.sleep(0.02)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_rank_is_killed(lab, table, tmp_path, seed):
    killed(lab, table, tmp_path / "run", seed)


@recovery
@pytest.mark.parametrize("seed", range(3, 20))
def test_one_rank_is_killed_at_many_moments(lab, table, tmp_path, seed):
    killed(lab, table, tmp_path / "run", seed)


# -- stopped --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "how"),
    [(0, "all ranks"), pytest.param(1, "one rank", marks=recovery), pytest.param(2, "twice", marks=recovery)],
)
def test_a_signal_saves_on_all_ranks(lab, table, tmp_path, seed, how):
    """Also where it reaches one rank alone, and where launcher and scheduler both send it."""
    out, asked = tmp_path / "run", 2 + 3 * seed
    lab.reference()
    kind, rank = "ask twice to stop" if how == "twice" else "ask to stop", 1 if how == "one rank" else ALL_RANKS
    with table.row("SIGTERM", seed) as detail:
        with lab.launch(out, fault=Fault(kind, rank, asked, "reading data")) as run:
            assert run.wait() == [130, 130], run.text()
        stopped = int(re.search(r"stopped at step (\d+) and saved", run.sentences()[-1]).group(1))
        assert lab.step(out) == stopped == max(losses(out)) == asked, "the step that is begun is the last one"
        detail.append(f"to {how}: saved step {stopped}, the one that was begun")
        lab.finish(out)
        lab.check(out)


@recovery
@pytest.mark.parametrize("seed", [0, 1])
def test_torchrun_starts_the_ranks_anew(lab, table, tmp_path, seed):
    out = tmp_path / "run"
    lab.reference()
    fault = [Fault("kill in phase", 1, 5, "forward and backward pass"), Fault("kill in write", 0, 60)][seed]
    with table.row("elastic restart by torchrun", seed) as detail:
        arguments = [fault.kind, str(fault.rank), str(fault.at), fault.phase, str(lab.noted(out)), *lab.command(out)]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += ["--max-restarts", "2", str(ROOT / "tests" / "helpers" / "faults.py"), *arguments]
        environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "PYTHONPATH": str(ROOT / "tests")}
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=180, cwd=ROOT, env=os.environ | environment
        )
        assert run.returncode == 0, run.stderr[-3000:]
        assert (lab.noted(out) / "attempts").read_text().split() == ["0", "1"]
        detail.append(f"{fault.kind} {fault.phase}".strip() + ", one restart")
        lab.check(out)


# -- disks and files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=recovery)])
def test_the_disk_is_full_on_one_rank(lab, table, tmp_path, seed):
    """All ranks say so in one sentence and end, and the older checkpoint is whole."""
    out = tmp_path / "run"
    lab.reference()
    with table.row("disk full in a write", seed) as detail:
        with lab.launch(out, fault=Fault("full disk", seed, 300)) as run:
            assert run.wait() == [5, 5], run.text()
        assert len(run.sentences()) == 1 and "no space is left to write" in run.sentences()[0], run.text()
        assert 0 < lab.step(out) < STEPS and not list((out / "checkpoints").glob(".*"))
        detail.append(f"of rank {seed}: ended with code 5, step {lab.step(out)} whole")
        lab.finish(out)
        lab.check(out)


@recovery
def test_a_disk_that_is_really_full(lab, table, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    out = disk / "run"
    lab.reference()
    try:
        with table.row("disk full in a write", 2) as detail:
            with lab.launch(out) as run:
                codes = run.wait()  # rank 0 may already fail at the log
                assert codes[0] == 5 and codes[1] in (1, 5), run.text()
            assert len(run.sentences()) == 1 and "no space is left to write" in run.sentences()[0], run.text()
            step = lab.step(out)
            assert 0 < step < STEPS
            subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
            detail.append(f"a disk of 700 kB: ended with code 5, step {step} whole")
            lab.finish(out)
            lab.check(out)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


@recovery
@pytest.mark.parametrize(("fault", "damage"), [("truncated shard", truncate), ("bit-flipped shard", flip)])
def test_a_damaged_shard_is_named(lab, table, tmp_path, fault, damage):
    out, data = tmp_path / "run", tmp_path / "data"
    lab.reference()
    shutil.copytree(lab.data, data)
    shard = sorted(data.glob("shards/train-*.safetensors"))[3]
    whole = shard.read_bytes()
    with table.row(fault, 0) as detail:
        damage(shard)
        with lab.launch(out, data=data) as run:
            codes = run.wait()
        assert 3 in codes and None not in codes and 0 not in codes, run.text()
        said = [line for rank in (0, 1) for line in run.sentences(rank) if shard.name in line]
        assert said, run.text()
        detail.append(f"refused by name, at step {lab.step(out)} or later")
        shard.write_bytes(whole)
        lab.finish(out, data=data)
        lab.check(out)


@recovery
@pytest.mark.parametrize("seed", [0, 1])
def test_a_damaged_checkpoint_is_passed_over(lab, table, tmp_path, seed):
    out = tmp_path / "run"
    lab.reference()
    with table.row("damaged checkpoint file", seed) as detail:
        with lab.launch(out, fault=Fault("kill in phase", 1, 11, "reading data")) as run:
            run.wait()
        newest = checkpoint.find(out / "checkpoints")[-1]
        older = lab.step(out) - EVERY
        if seed == 0:
            truncate(newest / "model-00002-of-00002.safetensors")
        else:
            flip(newest / "optimizer-00001-of-00002.safetensors")
        with lab.launch(out) as run:
            assert run.wait() == [0, 0], run.text()
        assert any(newest.name in s and "falling back to the previous checkpoint" in s for s in run.sentences()), (
            run.text()
        )
        detail.append(
            f"{'truncated' if seed == 0 else 'flipped'}: {newest.name} passed over, went on from step {older}"
        )
        lab.check(out)


# -- what goes wrong inside -----------------------------------------------------------------------------------------


@recovery
def test_a_thread_of_the_loader_dies(lab, table, tmp_path):
    out = tmp_path / "run"
    lab.reference()
    with table.row("dead loader worker", 0) as detail:
        with lab.launch(out, fault=Fault("dead loader", 1, 9)) as run:
            codes = run.wait()
        assert None not in codes and 0 not in codes, run.text()
        assert "the thread of the loader is gone" in run.logs[1].read_text()
        assert "another rank ended" in run.sentences(0)[-1] and "Traceback" not in run.logs[0].read_text()
        detail.append(f"both ranks ended, went on from step {lab.step(out)}")
        lab.finish(out)
        lab.check(out)


def test_a_loss_that_is_not_finite_stops_with_its_batch(lab, table, tmp_path):
    out = tmp_path / "run"
    lab.reference()
    with table.row("NaN loss", 0) as detail:
        with lab.launch(out, fault=Fault("nan", 1, 7), max_bad_steps=1) as run:
            assert run.wait() == [1, 1], run.text()
        (sentence,) = run.sentences()
        kept = Path(re.search(r"the batch of the last one is in '([^']+)'", sentence).group(1))
        assert kept.name == "step-00000008" and "2 steps had a loss or gradient that is not finite" in sentence
        seen = [json.loads((kept / f"rank-{rank}/batch-0.json").read_text())["documents"] for rank in (0, 1)]
        assert sorted([d["index"], d["epoch"]] for d in seen[0] + seen[1]) == documents(lab.noted(out))[8]
        detail.append("2 steps skipped, then stopped with the batch kept")
        lab.finish(out)
        lab.check(out)


@pytest.mark.parametrize(
    ("seed", "kind", "rank", "phase"),
    [
        (0, "sleep", 1, "reading data"),
        pytest.param(1, "sleep", 0, "forward and backward pass", marks=recovery),
        pytest.param(2, "stop", 1, "gradient norm and optimizer", marks=recovery),
        pytest.param(3, "stop", 0, "counts of all ranks", marks=recovery),
    ],
)
def test_a_rank_that_hangs_is_named(lab, table, tmp_path, seed, kind, rank, phase):
    """A rank sleeps for ever, or its process is stopped: the other one names it and what it waits in, and ends."""
    out, seconds = tmp_path / "run", 3.0
    lab.reference()
    with table.row("hung rank", seed) as detail:
        with lab.launch(out, fault=Fault(kind, rank, 5, phase), watchdog_seconds=seconds) as run:
            wait_for(lambda: (out / "metrics.jsonl").exists() and max(losses(out), default=0) >= 4, run)
            started = time.monotonic()
            run.processes[1 - rank].join(SECONDS_TO_END)
            took = time.monotonic() - started
            assert run.processes[1 - rank].exitcode == 1, run.text()
            run.processes[rank].join(1)  # where its own watchdog sees it too
            said = [line for each in (0, 1) for line in run.sentences(each) if "no progress" in line]
            run.signal(signal.SIGKILL)
        assert said, run.text()
        if not (kind == "stop" and rank == 0):  # which also keeps the store that the ranks meet at
            assert f"rank {rank} is" in said[0] and f"{phase!r} of step" in said[0], said
            assert "while others wait for" in said[0], said
        detail.append(f"{kind} in {phase!r}: named after {took:.1f} s of {seconds:g}")
        lab.finish(out)
        lab.check(out)


# -- export and prepare ---------------------------------------------------------------------------------------------


@recovery
@pytest.mark.parametrize("seed", [0, 1])
def test_export_is_killed(lab, table, tmp_path, seed):
    lab.reference()
    run, out = lab.folder / "reference-2", tmp_path / "exported"
    command = ["export", str(run), "--weights-only", "--out", str(out), "--file-gb", "0.00001"]
    with table.row("SIGKILL in export", seed) as detail:
        at = [3, 20][seed]
        with Launched(command, ranks=1, log=tmp_path, fault=Fault("kill in write", 0, at)) as killed:
            assert killed.wait() == [-signal.SIGKILL]
        assert not out.exists() and len(list(tmp_path.glob(".exported.*.tmp"))) == 1
        with Launched(command, ranks=1, log=tmp_path) as again:
            assert again.wait() == [0], again.text()
        assert not list(tmp_path.glob(".exported.*.tmp"))
        model = {n: t for n, t in lab.reference()[2].items() if n.startswith("model/")}
        assert model.keys() == weights(out).keys() and all(torch.equal(t, weights(out)[n]) for n, t in model.items())
        detail.append(f"in block {at}: nothing half there, the second try whole")


@recovery
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_prepare_is_killed(lab, table, tmp_path, seed):
    rows = [json.dumps({"parts": [{"text": f"document {i} " * (i % 7 + 1)}]}) + "\n" for i in range(400)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    config = run_config(tmp_path / "whole", ("text",))
    config.modalities["text"].codec = "fake_text"
    config.prepare.source, config.prepare.shard_documents = str(tmp_path / "rows.jsonl"), 16
    config.prepare.num_workers = 2

    def prepared(folder: str) -> list[str]:
        config.data.path, config.out = str(tmp_path / folder), str(tmp_path / f"{folder}-run")
        (tmp_path / f"{folder}.yaml").write_text(yaml.safe_dump(to_dict(config)))
        return ["prepare", str(tmp_path / f"{folder}.yaml")]

    def shards(folder: str) -> dict[str, bytes]:
        found = (p for p in (tmp_path / folder).rglob("*") if p.is_file() and p.name != "report.json")
        return {str(p.relative_to(tmp_path / folder)): p.read_bytes() for p in found}

    with table.row("SIGKILL in prepare", seed) as detail:
        with Launched(prepared("whole"), ranks=1, log=tmp_path / "log") as whole:
            assert whole.wait() == [0], whole.text()
        with Launched(prepared("cut"), ranks=1, log=tmp_path / "log") as killed:
            wait_for(lambda: len(list((tmp_path / "cut").glob("shards/train*.safetensors"))) > 2 + 6 * seed, killed)
            killed.signal(signal.SIGKILL)
            killed.wait()
        done = len(list((tmp_path / "cut").glob("shards/*.safetensors")))
        with Launched(prepared("cut"), ranks=1, log=tmp_path / "log") as again:
            assert again.wait() == [0], again.text()
        assert shards("cut") == shards("whole")
        detail.append(f"after {done} shards: the same bytes as undisturbed")


def test_a_run_that_another_process_holds_ends_all_ranks_with_one_sentence(lab, tmp_path):
    out = tmp_path / "run"
    with one_writer(out, "run"):
        before = sorted(out.rglob("*"))
        with lab.launch(out) as run:
            assert run.wait() == [1, 1], run.text()
        assert sorted(out.rglob("*")) == before
    (said,) = run.sentences(0)
    assert f"{str(out)!r} is being written by another process (process {os.getpid()} on " in said
    assert run.sentences(1) == [] and not any("Traceback" in log.read_text() for log in run.logs)
