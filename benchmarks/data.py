"""Reading prepared data: how long a large index takes to open, how fast windows are planned and batches read.

    python benchmarks/data.py                       (about a minute; writes 0.6 GB to a temporary folder)
    python benchmarks/data.py --grid tiny           (seconds: a check, no figures worth keeping)

The index is built straight in the file format from one shard that is named many times, so that it has ten million
documents and takes little room. Memory is that of a fresh process after the same work on a small and on the large
index: it must not grow with the number of documents.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import Measurement, parsed, parser, run, value_row

from plait.batch.documents import Document, Part
from plait.config.model import ModalityConfig, ModelConfig
from plait.config.run import DataConfig, RunConfig
from plait.data.loader import Loader
from plait.data.shards import split_record, write_index, write_shard

PER_SHARD = 2048
SIZES = {"cpu": (20_480, 10_000_384), "gpu": (20_480, 10_000_384), "tiny": (2048, 20_480)}
"""Documents of the small and of the large index."""
MODALITIES = {
    name: {"codec": name, "key": name, "vocab_size": size, "latent_channels": 0, "default_grid": [], "fingerprint": ""}
    for name, size in (("text", 256), ("image", 1000))
}
TASKS = {"text,image": 2.0, "image,text": 1.0}
WINDOWS, BATCHES = 4, 50


def build_index(folder: Path, num_documents: int) -> None:
    """Write a prepared folder of captions and images whose shards are all the same file."""
    rng = np.random.default_rng(0)
    documents = []
    for _ in range(PER_SHARD):
        image = Part("image", rng.integers(0, 1000, 64), grid=(8, 8))
        documents.append(Document([Part("text", rng.integers(0, 256, rng.integers(5, 40))), image]))
    entry, table = write_shard(folder, "train", 0, documents, MODALITIES)
    shards = [entry] * (num_documents // PER_SHARD)
    record = split_record(folder, "train", shards, lambda: itertools.repeat(table, len(shards)))
    write_index(folder, MODALITIES, {"train": record})


def config_of(folder: Path) -> RunConfig:
    """Return a run on the folder."""
    model = ModelConfig({name: ModalityConfig() for name in MODALITIES}, width=16, num_heads=2, num_layers=1)
    return RunConfig(model, data=DataConfig(str(folder), num_workers=0, tasks=TASKS))


def work(folder: Path) -> dict[str, float]:
    """Open the folder, plan some windows, read some batches; return times, speeds, and the peak memory in MB."""
    from plait.train.host_memory import MemoryWatch

    with MemoryWatch() as memory:
        started = time.perf_counter()
        loader = Loader(config_of(folder))
        opened = time.perf_counter()
        taken, planned = loader.state["taken"], 0
        for _ in range(WINDOWS):
            window = loader._plan(taken)
            taken, planned = window.taken_after, planned + len(window.source)
        done = time.perf_counter()
        read = sum(len(batch.documents) for batch, _ in itertools.islice(loader, BATCHES))
        ended = time.perf_counter()
    return {
        "open": opened - started,
        "plan": planned / (done - opened),
        "read": read / (ended - done),
        "memory": memory.peak_gb * 1000,
    }


def in_fresh_process(folder: Path) -> dict[str, float]:
    """Return what `work` finds in a process of its own, the second time: first reads come from the disk."""
    for _ in range(2):
        command = [sys.executable, __file__, "--work", str(folder)]
        completed = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(completed.stdout)


def measure(small: int, large: int) -> list[dict]:
    """Return all rows."""
    with tempfile.TemporaryDirectory() as temporary:
        by_size = {}
        for size in (small, large):
            build_index(Path(temporary) / str(size), size)
            by_size[size] = in_fresh_process(Path(temporary) / str(size))
    growth = by_size[large]["memory"] - by_size[small]["memory"]
    return [
        value_row(f"data/open/{large}", by_size[large]["open"], "s", against=f"open/{small}"),
        value_row(f"data/plan/{large}", by_size[large]["plan"], "documents/s"),
        value_row(f"data/read/{large}", by_size[large]["read"], "documents/s"),
        value_row(f"data/memory_growth/{large}", growth, "MB", against=f"memory/{small}"),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    command = parser(__doc__)
    command.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parsed(command, arguments)
    if options.work:
        print(json.dumps(work(options.work)))
        return 0
    small, large = SIZES[options.grid]
    names = [f"data/{what}/{large}" for what in ("open", "plan", "read", "memory_growth")]
    return run([Measurement(names, lambda: measure(small, large))], options)


if __name__ == "__main__":
    sys.exit(main())
