"""Runs that are long or large: what a checkpoint costs, how a run grows with its ranks, whether data keeps up.

    OMP_NUM_THREADS=1 python benchmarks/scale.py                    all parts (CPU: 14 minutes)
    OMP_NUM_THREADS=1 python benchmarks/scale.py --part checkpoint
    python benchmarks/scale.py --grid tiny                          seconds: a check, no figures worth keeping

Parts, each with its rows:

checkpoint  Training makes steps with both cores busy; a checkpoint is written beside it. stall: the share of the time,
            from the call until the checkpoint is whole, in which training did not go on. work: processor time of a
            checkpoint, all in all, in steps: no more can be lost to it, and it can be measured on a busy machine too,
            which times on the clock cannot. stands_still: seconds that the call takes. whole_after: seconds until it
            is whole. resume: seconds to check and read all of it.
weak        Tokens a second of two ranks as a share of twice those of one, batches of the same size on each rank; and of
            two runs that know nothing of each other, which is what the machine allows.
loader      Tokens a second that one loader thread packs, as a multiple of what training takes.
prepare     Documents a second of plait prepare, a caption and an image each, with one worker and with one a core.
"""

import argparse
import functools
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from harness import Measurement, Row, parsed, parser, ratio_row, run, value_row

from plait.batch.documents import Document, Part
from plait.common.progress import QuietProgress
from plait.config.file import to_dict
from plait.config.model import ModalityConfig, ModelConfig
from plait.config.run import DataConfig, PrepareConfig, RunConfig, TrainConfig
from plait.config.run_records import ModalitySettings
from plait.data.loader import Loader
from plait.data.shards import split_record, write_index, write_shard
from plait.train.checkpoint import Checkpoints
from plait.train.metrics import read_metrics
from plait.train.trainer import Trainer

PARTS = ("checkpoint", "weak", "loader", "prepare")
SIZES = {"tiny": (64, 1, 512), "cpu": (256, 4, 4096), "gpu": (2048, 16, 16384)}
"""Width, layers and tokens of a batch, by grid."""
MODALITIES = {
    name: {"codec": name, "key": name, "vocab_size": size, "latent_channels": 0, "default_grid": [], "fingerprint": ""}
    for name, size in (("text", 4096), ("image", 4096))
}


def config_for(folder: Path, options: argparse.Namespace, **train) -> RunConfig:
    """Return a run of the grid's size on the data in ``folder``."""
    width, layers, tokens = SIZES[options.grid]
    model = ModelConfig(
        {n: ModalityConfig() for n in MODALITIES}, width=width, num_layers=layers, num_heads=width // 32
    )
    config = RunConfig(model, out=str(folder / "run"), data=DataConfig(str(folder / "data"), batch_tokens=tokens))
    quiet = {"validation_batches": 0, "checkpoint_every": 10**9, "checkpoint_seconds": 0.0, "device": options.device}
    if options.device == "cuda":
        quiet["precision"] = "bfloat16"
    config.train = TrainConfig(**(quiet | train))
    return config


def write_data(folder: Path, documents: int = 2000) -> None:
    """Write a prepared folder of captions and images of 256 ids."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(documents):
        image = Part("image", rng.integers(0, 4096, 256), grid=(16, 16))
        made.append(Document([Part("text", rng.integers(0, 4096, rng.integers(10, 60))), image]))
    entry, table = write_shard(folder, "train", 0, made, MODALITIES)
    record = split_record(folder, "train", [entry], lambda: [table])
    write_index(folder, MODALITIES, {"train": record})


# -- checkpoint -----------------------------------------------------------------------------------------------------


def checkpoint_rows(options: argparse.Namespace) -> list[Row]:
    """Measure with both cores busy: on a CPU two batches are computed side by side."""
    torch.set_num_threads(min(2, os.cpu_count() or 1) if options.device == "cpu" else 1)
    with tempfile.TemporaryDirectory(dir=options.scratch) as temporary:
        folder = Path(temporary)
        write_data(folder / "data")
        trainer = Trainer(config_for(folder, options, accumulate=2, keep_checkpoints=1), QuietProgress())
        loader = Loader(trainer.config, finish=trainer._finish)
        batches = [batch.to(trainer.device) for batch, _ in itertools.islice(loader, 2)]
        step = functools.partial(made_step, trainer, batches)
        for _ in range(3):
            step()
        turns = [checkpoint_turn(trainer, step) for _ in range(options.turns)]
        megabytes = sum(p.stat().st_size for p in (folder / "run/checkpoints").rglob("*") if p.is_file()) / 1e6
        resumed = []
        for _ in range(options.turns):
            started = time.perf_counter()
            fresh = Checkpoints(folder / "run/checkpoints", keep=1)
            forget_checksums()
            fresh.restore(fresh.newest(), trainer.model, trainer.optimizer)
            resumed.append(time.perf_counter() - started)
    torch.set_num_threads(1)
    measured = {name: [turn[name] for turn in turns] for name in turns[0]}
    size = size_name(options)
    rows = [
        value_row(f"checkpoint/{name}/{size}", statistics.median(times), unit, against=against, times=times)
        for name, unit, against in (
            ("stall", "share", "steps without a save"),
            ("work", "steps", "a step"),
            ("stands_still", "s", ""),
            ("whole_after", "s", ""),
        )
        for times in [measured[name]]
    ]
    rows.append(value_row(f"checkpoint/resume/{size}", statistics.median(resumed), "s", times=resumed))
    return [*rows, value_row(f"checkpoint/size/{size}", megabytes, "MB")]


def made_step(trainer: Trainer, batches: list) -> None:
    """Make one optimizer step and wait for it."""
    trainer.update(batches)
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    trainer.state.step += 1


def checkpoint_turn(trainer: Trainer, step: Callable[[], None]) -> dict[str, float]:
    """Save beside steps, on the clock; and alone, by the time of the processors."""
    plain = [timed(step) for _ in range(2)]
    started, steps = time.perf_counter(), 0
    trainer._save()
    stands_still = time.perf_counter() - started
    while trainer.checkpoints.writing:
        step()
        steps += 1
    took = time.perf_counter() - started
    trainer.checkpoints.wait()
    trainer.state.step += 1
    used = time.process_time()
    trainer._save()
    trainer.checkpoints.wait()
    used = time.process_time() - used
    plain += [timed(step) for _ in range(2)]  # before and after, so that a machine that slows down counts less
    wall, work = (statistics.mean(p[i] for p in plain) for i in (0, 1))
    return {"stall": 1 - steps * wall / took, "work": used / work, "stands_still": stands_still, "whole_after": took}


def timed(function: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds that a call takes, on the clock and of the processors."""
    wall, work = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - work


def forget_checksums() -> None:
    """Let files be read again to check them, as a new process would."""
    from plait.train import checkpoint

    checkpoint._checksums.clear()


# -- ranks ----------------------------------------------------------------------------------------------------------


def weak_rows(options: argparse.Namespace) -> list[Row]:
    """Train with one rank, with two, and twice with one at the same time, by turns."""
    steps = 12 if options.grid == "tiny" else 24
    speeds: dict[str, list[float]] = {"one": [], "two": [], "apart": []}
    with tempfile.TemporaryDirectory(dir=options.scratch) as temporary:
        folder = Path(temporary)
        write_data(folder / "data")
        for turn in range(-1, max(options.turns // 2, 2)):
            for name, groups, ranks in (("one", 1, 1), ("two", 1, 2), ("apart", 2, 1)):
                speed = trained(folder, options, steps, groups=groups, ranks=ranks)
                if turn >= 0:
                    speeds[name].append(speed)
    size = size_name(options)
    halves = [2 * speed for speed in speeds["one"]]
    return [
        ratio_row(f"weak/2ranks/{size}", speeds["two"], halves, against="twice one rank"),
        ratio_row(f"weak/2apart/{size}", speeds["apart"], halves, against="twice one rank"),
    ]


def trained(folder: Path, options: argparse.Namespace, steps: int, *, groups: int, ranks: int) -> float:
    """Train in fresh processes, and return their tokens a second together, past the first third."""
    processes, logs = [], []
    for _ in range(groups):
        out = Path(tempfile.mkdtemp(dir=folder))
        config = replace(config_for(folder, options, steps=steps, log_every=1, accumulate=1), out=str(out))
        (out / "run.yaml").write_text(yaml.safe_dump(to_dict(config)))
        logs.append(out / "metrics.jsonl")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(ranks):
            env = os.environ | {"OMP_NUM_THREADS": "1"}
            if ranks > 1:
                env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
                env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            command = [sys.executable, "-m", "plait", "train", str(out / "run.yaml")]
            processes.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
    for process in processes:
        _, errors = process.communicate()
        if process.returncode:
            raise RuntimeError(errors.decode()[-2000:])
    speeds = [[row["tokens_per_second"] for row in read_metrics(log)][steps // 3 :] for log in logs]
    return sum(statistics.median(each) for each in speeds)


# -- data -----------------------------------------------------------------------------------------------------------


def loader_rows(options: argparse.Namespace) -> list[Row]:
    """Compare the processor time of packing a batch with that of training on it."""
    with tempfile.TemporaryDirectory(dir=options.scratch) as temporary:
        folder = Path(temporary)
        write_data(folder / "data")
        config = config_for(folder, options)
        config.data.num_workers = 0
        trainer = Trainer(config, QuietProgress())
        batches = iter(Loader(trainer.config, finish=trainer._finish))
        packing, training = [], []
        for turn in range(-3, 10 * options.turns):
            started = time.process_time()
            batch, _ = next(batches)
            packed = time.process_time() - started
            if turn >= 0:
                packing.append(packed)
            if turn < options.turns:  # training takes long
                taken, work = timed(lambda batch=batch: made_step(trainer, [batch.to(trainer.device)]))
                if turn >= 0:
                    training.append(work if options.device == "cpu" else taken)
    size = size_name(options)
    need = config.data.batch_tokens / statistics.median(training)
    speed = config.data.batch_tokens / statistics.median(packing)
    return [
        value_row(f"loader/tokens_per_second/{size}", speed, "tokens/s", against="one core", times=packing),
        value_row(f"loader/times_the_need/{size}", speed / need, "ratio", against="training", times=packing),
    ]


def prepare_rows(options: argparse.Namespace) -> list[Row]:
    """Encode captions and images of 64 x 64 pixels by a trained tokenizer and by patches."""
    from PIL import Image

    count = 64 if options.grid == "tiny" else 2000
    workers = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=options.scratch) as temporary:
        folder, rng = Path(temporary), np.random.default_rng(0)
        words = ["a", "red", "blue", "fox", "house", "on", "under", "the", "hill", "small"]
        rows = []
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
            rows.append({"parts": [{"text": " ".join(rng.choice(words, 12))}, {"image": f"{i}.png"}]})
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        rate_rows = []
        for number in sorted({1, workers}):
            seconds = prepared(folder, number)
            rate_rows.append(value_row(f"prepare/documents_per_second/{number}workers", count / seconds, "documents/s"))
    return rate_rows


def prepared(folder: Path, workers: int) -> float:
    """Return the seconds that encoding takes, the making of codecs left out."""
    from plait.prepare.stages import prepare

    image = ModalityConfig(objective="diffusion", attention="bidirectional")
    model = ModelConfig({"text": ModalityConfig(), "image": image}, width=64, num_heads=2)
    codecs = {"text": ModalitySettings("text_bpe"), "image": ModalitySettings("image_pixels")}
    config = RunConfig(model, codecs, out=str(folder / f"out-{workers}"))
    config.prepare = PrepareConfig(source=str(folder / "rows.jsonl"), num_workers=workers, shard_documents=128)
    prepare(config)
    return json.loads((Path(config.data.path) / "report.json").read_text())["seconds"]["encode"]


# -------------------------------------------------------------------------------------------------------------------


def size_name(options: argparse.Namespace) -> str:
    """Return the end of the names of rows."""
    width, layers, tokens = SIZES[options.grid]
    return f"d{width}-l{layers}-t{tokens}"


def measurements(options: argparse.Namespace) -> list[Measurement]:
    """Return the parts that are asked for, with the names of their rows."""
    size = size_name(options)
    workers = sorted({1, len(os.sched_getaffinity(0))})
    row_names = {
        "checkpoint": [
            f"checkpoint/{n}/{size}" for n in ("stall", "work", "stands_still", "whole_after", "resume", "size")
        ],
        "weak": [f"weak/{n}/{size}" for n in ("2ranks", "2apart")],
        "loader": [f"loader/{n}/{size}" for n in ("tokens_per_second", "times_the_need")],
        "prepare": [f"prepare/documents_per_second/{n}workers" for n in workers],
    }
    rows = {"checkpoint": checkpoint_rows, "weak": weak_rows, "loader": loader_rows, "prepare": prepare_rows}
    skipped = {"weak"} if options.device == "cuda" else set()  # one GPU
    parts = [options.part] if options.part else [part for part in PARTS if part not in skipped]
    return [Measurement(row_names[part], lambda part=part: rows[part](options)) for part in parts]


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    command = parser(__doc__)
    command.add_argument("--part", choices=PARTS, help="one part alone")
    command.add_argument("--scratch", type=Path, help="folder for data and checkpoints (default: the system's own)")
    options = parsed(command, arguments)
    return run(measurements(options), options)


if __name__ == "__main__":
    sys.exit(main())
