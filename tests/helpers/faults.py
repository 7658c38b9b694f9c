"""Runs on several ranks that meet with faults: the ranks, the faults, what a run leaves behind, and the table of all.

Ranks are processes of `plait` itself, forked from a server that has imported everything, so that one starts in a
fraction of a second. A fault is a change to what a rank's first process does (`FAULTS`): it dies in the middle of a
write, sleeps for ever, finds the disk full. The second process is an ordinary one.
"""

import contextlib
import errno
import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from helpers.ports import free_port

SECONDS_TO_END = 240
"""How long a run may take, and ranks may take to end after one of them is gone: for busy machines, never measured."""
ALL_RANKS = -1

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["faults", "plait.run.steps", "plait.cli", "plait.train.export", "torch._dynamo"])


@dataclass
class Fault:
    """What happens to one rank of a run (or to ALL_RANKS): ``kind`` is a name of FAULTS, ``at`` says when."""

    kind: str
    rank: int = 0
    at: int = 1
    phase: str = ""


class Launched:
    """The ranks of one run, each a process. Used as a context, it leaves none behind."""

    def __init__(
        self, arguments: list[str], *, ranks: int, log: Path, fault: Fault | None = None, seen: Path | None = None
    ):
        port = free_port()
        log.mkdir(parents=True, exist_ok=True)
        self.logs = [log / f"rank-{rank}.txt" for rank in range(ranks)]
        self.processes = [
            _context.Process(target=_rank, args=(rank, ranks, port, arguments, self.logs[rank], fault, seen))
            for rank in range(ranks)
        ]
        for process in self.processes:
            process.start()

    def __enter__(self) -> "Launched":
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def wait(self, seconds: float = SECONDS_TO_END) -> list[int | None]:
        """Return the exit codes of all ranks; None for one that did not end in time."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0.01))
        return [process.exitcode for process in self.processes]

    def signal(self, number: int, rank: int | None = None) -> None:
        """Send a signal to one rank, or to all."""
        for process in self.processes if rank is None else [self.processes[rank]]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def sentences(self, rank: int = 0) -> list[str]:
        """Return what a rank said to its user as errors."""
        return [
            line for line in self.logs[rank].read_text().splitlines() if line.startswith(("plait: ", "plait, rank "))
        ]

    def text(self) -> str:
        """Return the end of what each rank printed, for a test that fails."""
        return "\n".join(f"--- {log.name}\n{log.read_text()[-1500:]}" for log in self.logs)


def _rank(rank: int, ranks: int, port: int, arguments: list[str], log: Path, fault: Fault | None, seen: Path | None):
    """Be one rank: run the command line with the fault in it, and write down the documents of every step."""
    import torch

    from plait.cli import main

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank),
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    from helpers.fake_data import CODEC_NAMES
    from plait.codecs import CODECS

    CODECS.update(CODEC_NAMES)
    if seen is not None:
        _note_documents(seen)
    if fault is not None and fault.rank in (rank, ALL_RANKS):
        FAULTS[fault.kind](fault)
    code = save_again(arguments[1]) if arguments[0] == "save-again" else main(arguments)
    sys.stdout.flush()
    sys.exit(code)


def save_again(path: str) -> int:
    """Go on from the newest checkpoint of a config's run, and write at once what was read into ``<run>/saved``."""
    from plait.common.progress import QuietProgress
    from plait.config.file import load
    from plait.train.checkpoint import Checkpoints
    from plait.train.parallel import process_group
    from plait.train.trainer import Trainer

    config = load(path)
    with process_group(config.train.device):
        trainer = Trainer(config, QuietProgress())
        with Checkpoints(trainer.out / "saved", keep=1) as kept:
            kept.save(trainer.model, trainer.optimizer, {"step": trainer.state.step}, averages=trainer.averages)
    return 0


def _note_documents(path: Path) -> None:
    """Append to a file which documents each step trains on."""
    from plait.train.trainer import Trainer

    update = Trainer.update

    def noting(self, batches):
        documents = [[d.index, d.epoch] for batch in batches for d in batch.documents]
        row = {"step": self.state.step + 1, "documents": sorted(documents)}
        with open(path / f"seen-{self.ranks.data_rank}.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        return update(self, batches)

    Trainer.update = noting


# -- faults -------------------------------------------------------------------------------------------------------


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _ask_to_stop(times: int) -> None:
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGTERM)


def _in_phase(fault: Fault, act) -> None:
    """Do something when training is about to do ``fault.phase`` of step ``fault.at``."""
    from plait.train.watchdog import Watchdog

    at = Watchdog.at

    def acting(self, step, phase):
        at(self, step, phase)
        if step >= fault.at and phase == fault.phase and not done:
            done.append(step)
            act()

    done: list[int] = []
    Watchdog.at = acting


def _in_write(fault: Fault, act) -> None:
    """Do something in the middle of the ``fault.at``-th block of tensors that is written."""
    from plait.common import tensor_files

    write, count = tensor_files._write, [0]

    def writing(file, data, checksum):
        count[0] += 1
        if count[0] == fault.at:
            file.write(data[: len(data) // 2])
            file.flush()
            act()
        return write(file, data, checksum)

    tensor_files._write = writing


def _around_rename(fault: Fault, *, before: bool) -> None:
    """Die before, or after, the ``fault.at``-th checkpoint gets its name; only the first rank gives names."""
    from plait.train import checkpoint

    replace, count = checkpoint.replace_folder, [0]

    def replacing(temporary, path):
        count[0] += 1
        if before and count[0] == fault.at:
            _die()
        replace(temporary, path)
        if count[0] == fault.at:
            _die()

    checkpoint.replace_folder = replacing


def _in_removal(fault: Fault) -> None:
    """Die when half of an old checkpoint is removed."""
    import shutil

    from plait.common import files

    class Shutil:
        count = 0

        @staticmethod
        def rmtree(path, ignore_errors=False):
            is_old = Path(path).name.startswith(".step-") and Path(path).exists()
            Shutil.count += is_old
            if is_old and Shutil.count == fault.at:
                os.unlink(sorted(Path(path).iterdir())[1])
                _die()
            shutil.rmtree(path, ignore_errors=ignore_errors)

    files.shutil = Shutil


def _full_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _nan(fault: Fault) -> None:
    """Make the loss NaN from step ``fault.at`` on."""
    from plait.train.trainer import Trainer

    factors = Trainer.loss_factors
    Trainer.loss_factors = lambda self, counts: [
        f * (float("nan") if self.state.step + 1 >= fault.at else 1.0) for f in factors(self, counts)
    ]


def _dead_loader(fault: Fault) -> None:
    """Let a thread of the loader die on the ``fault.at``-th batch."""
    from plait.data.loader import Loader

    batch, count = Loader._batch, [0]

    def dying(self, *arguments):
        count[0] += 1
        if count[0] == fault.at:
            raise MemoryError("the thread of the loader is gone")
        return batch(self, *arguments)

    Loader._batch = dying


FAULTS = {
    "kill in phase": lambda fault: _in_phase(fault, _die),
    "kill in write": lambda fault: _in_write(fault, _die),
    "kill before rename": lambda fault: _around_rename(fault, before=True),
    "kill after rename": lambda fault: _around_rename(fault, before=False),
    "kill in removal": _in_removal,
    "ask to stop": lambda fault: _in_phase(fault, lambda: _ask_to_stop(1)),
    "ask twice to stop": lambda fault: _in_phase(fault, lambda: _ask_to_stop(2)),
    "sleep": lambda fault: _in_phase(fault, lambda: time.sleep(600)),
    "stop": lambda fault: _in_phase(fault, lambda: os.kill(os.getpid(), signal.SIGSTOP)),
    "full disk": lambda fault: _in_write(fault, _full_disk),
    "nan": _nan,
    "dead loader": _dead_loader,
}


# -- what a run leaves behind ---------------------------------------------------------------------------------------


def losses(out: Path) -> dict[int, dict[str, float]]:
    """Return the losses and the gradient norm that the run logged, by step."""
    from plait.train.metrics import read_metrics

    rows = read_metrics(out / "metrics.jsonl")
    return {
        r["step"]: {k: v for k, v in r.items() if k.startswith(("loss/", "grad_norm"))}
        for r in rows
        if "grad_norm" in r
    }


def documents(seen: Path) -> dict[int, list]:
    """Return the documents of every step, over all ranks; a step that was done again must have had the same ones."""
    found: dict[int, dict[str, list]] = {}
    for path in sorted(seen.glob("seen-*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            mine = found.setdefault(row["step"], {})
            assert mine.setdefault(path.name, row["documents"]) == row["documents"], (
                f"step {row['step']} read other data"
            )
    return {step: sorted(d for documents in found[step].values() for d in documents) for step in sorted(found)}


def weights(checkpoint: Path) -> dict:
    """Return every tensor of a checkpoint but the generators', whole."""
    from plait.common.tensor_files import TensorStore

    found = {}
    for name in ("model", "optimizer", "ema"):
        if list(checkpoint.glob(f"{name}*")):
            with TensorStore(checkpoint / f"{name}.safetensors", "test") as store:
                found |= {f"{name}/{n}": store.read(n) for n in store.tensors}
    return found


@dataclass
class Table:
    """The faults that were tried, one row each: fault, seed, survived, detail."""

    path: Path
    rows: list[dict] = field(default_factory=list)

    @contextlib.contextmanager
    def row(self, fault: str, seed: int):
        """Enter a row that survived unless the block fails; the block may put a text into the list it gets."""
        detail: list[str] = []
        started = time.monotonic()
        survived = False
        try:
            yield detail
            survived = True
        finally:
            text = "; ".join(detail) + f" ({time.monotonic() - started:.1f} s)"
            self.rows.append({"fault": fault, "seed": seed, "survived": survived, "detail": text})

    def write(self) -> None:
        """Put the rows into the file, in place of older ones of the same fault and seed, whole or not at all."""
        from plait.common.files import write_json

        try:
            old = json.loads(self.path.read_text())
        except (OSError, ValueError):
            old = []
        rows = {(r["fault"], r["seed"]): r for r in [*old, *self.rows]}
        write_json(self.path, [rows[key] for key in sorted(rows)])

    def text(self) -> str:
        """Return the rows as a table."""
        lines = [f"{'fault':34s} {'seed':>4s}  survived  detail"]
        lines += [
            f"{r['fault']:34s} {r['seed']:4d}  {'yes' if r['survived'] else 'NO':8s}  {r['detail']}" for r in self.rows
        ]
        return "\n".join(lines)


def main_under_a_launcher() -> None:
    """Be a rank that torchrun started: ``KIND RANK AT PHASE SEEN command...``; the fault is in the first attempt."""
    kind, rank, at, phase, seen, *command = sys.argv[1:]
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
    if os.environ["RANK"] == "0":
        with open(Path(seen) / "attempts", "a") as file:
            file.write(f"{attempt}\n")
    _note_documents(Path(seen))
    if attempt == "0" and os.environ["RANK"] == rank:
        FAULTS[kind](Fault(kind, int(rank), int(at), phase))
    from plait.cli import main

    sys.exit(main(command))


if __name__ == "__main__":
    main_under_a_launcher()
