"""Several ranks for tests: processes that are started once and compute many cases, and what they compute."""

import dataclasses
import multiprocessing
import os
import traceback
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from helpers.ports import free_port
from plait.batch.assemble import pack
from plait.batch.documents import Document
from plait.common.progress import QuietProgress
from plait.config.run import RunConfig
from plait.generate import Request, generate
from plait.train.ema import AveragedWeights
from plait.train.optim import make_optimizer
from plait.train.trainer import Trainer

SECONDS_A_CASE = 300


class Workers:
    """Ranks that wait for cases. A case that hangs ends them, and with them the test."""

    def __init__(self, count: int):
        context, port = multiprocessing.get_context("spawn"), free_port()
        self._pipes, self._processes = [], []
        for rank in range(count):
            ours, theirs = context.Pipe()
            self._processes.append(context.Process(target=_serve, args=(theirs, rank, count, port), daemon=True))
            self._processes[-1].start()
            self._pipes.append(ours)

    def __len__(self) -> int:
        return len(self._pipes)

    def run(self, case: Callable, *arguments) -> list[Any]:
        """Return what the case returns on each rank; raises what it raises on the first that fails."""
        for pipe in self._pipes:
            pipe.send((case, arguments))
        results = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(SECONDS_A_CASE):
                self.close()
                raise TimeoutError(f"rank {rank} did not answer within {SECONDS_A_CASE} seconds")
            results.append(pipe.recv())
        for rank, (_, error) in enumerate(results):
            assert not error, f"rank {rank}: {error}"
        return [result for result, _ in results]

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.terminate()
            process.join()


def _serve(pipe, rank: int, count: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=count)
    while True:
        try:
            case, arguments = pipe.recv()
        except EOFError:
            return
        try:
            result, error = case(*arguments), ""
        except Exception:
            result, error = None, traceback.format_exc()
        pipe.send((result, error))


@dataclasses.dataclass
class Steps:
    """What optimizer steps gave: on each step the loss sums, counts, norm and every gradient; the weights after all."""

    sums: list[Tensor]
    counts: list[list[float]]
    norms: list[Tensor]
    gradients: list[dict[str, Tensor]]
    weights: dict[str, Tensor]
    averages: dict[str, Tensor]
    buffers: dict[str, Tensor]
    bad_steps: int = 0


Dealt = Sequence[Sequence[Sequence[Sequence[Document]]]]
"""Documents by step, data rank and batch."""


@patch("plait.model.precision.is_fast_in_bfloat16", new=lambda kind: True)  # whatever the processor
def train_steps(
    config: RunConfig,
    steps: Dealt,
    backend: str = "",
    rank_of_nan: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Steps:
    """Do optimizer steps on this rank's batches; in one process, on those of all ranks together.

    ``backend`` compiles the blocks; latents of data rank ``rank_of_nan`` are not numbers in its first step.
    """
    torch.manual_seed(0)
    trainer = Trainer(config, QuietProgress())
    trainer.model.to(dtype)
    if backend:
        trainer.model.compile_blocks(backend=backend)
    trainer.optimizer = make_optimizer(trainer.model, config.train, config.towers)
    if config.train.ema:
        trainer.averages = AveragedWeights(trainer.model, config.train.ema)
    found = Steps([], [], [], [], {}, {}, {})
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    update = trainer.optimizer.step

    def keep_gradients() -> None:
        assert all(p.grad is not None for p in trainer._trained())
        found.gradients.append({names[id(p)]: whole(p.grad).clone() for p in trainer._trained()})
        update()

    trainer.optimizer.step = keep_gradients
    for by_rank in steps:
        mine = by_rank[trainer.ranks.data_rank] if dist.is_initialized() else [b for r in by_rank for b in r]
        padded = trainer.config.data.pad_rows_to
        batches = [trainer._finish(pack(documents, trainer.config.model, pad_rows_to=padded)) for documents in mine]
        if not found.sums and rank_of_nan == trainer.ranks.data_rank:
            batches[0].latents["mel"].values.fill_(float("nan"))
        sums, counts, norm = trainer.update(batches)
        found.sums.append(sums)
        found.counts.append(counts)
        found.norms.append(norm)
    found.weights = {name: whole(p).clone() for name, p in trainer.model.named_parameters()}
    found.averages = {n: whole(t).clone() for n, t in trainer.averages.tensors.items()} if trainer.averages else {}
    found.buffers = {name: b.clone() for name, b in trainer.model.named_buffers()}
    found.bad_steps = int(trainer._bad_steps)
    return found


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor that ranks hold parts of."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def samples(config: RunConfig, steps: Dealt) -> tuple[list, dict[str, Tensor]]:
    """Generate between two steps, with the averages, and return the parts and the weights at the end."""
    trainer = Trainer(config, QuietProgress())
    trainer.model.to(torch.float64)
    trainer.optimizer = make_optimizer(trainer.model, config.train, config.towers)
    trainer.averages = AveragedWeights(trainer.model, config.train.ema)
    for by_rank in steps:
        mine = by_rank[trainer.ranks.data_rank] if dist.is_initialized() else [b for r in by_rank for b in r]
        trainer.update([trainer._finish(pack(documents, trainer.config.model)) for documents in mine])
        asked = [Request([], None, max_tokens={"text": 9, "speech": 9}, number=i) for i in range(6)]
        with trainer.averaged():
            found = generate(trainer.model, asked, grids={"image": (2, 3)}, max_rows=4, max_length=128)
    parts = [[(p.modality, p.ids.tolist()) for p in result.parts] for result in found]
    return parts, {name: whole(p).clone() for name, p in trainer.model.named_parameters()}


def train_run(config: RunConfig) -> None:
    """Train a whole run, as `plait train` does."""
    Trainer(config, QuietProgress()).run()
