"""Validation loss and perplexity per modality, task and split."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator

import torch

from plait.batch.batch import Batch
from plait.batch.share import share_of
from plait.config.generation import DiffusionConfig
from plait.config.run import RunConfig
from plait.config.tasks import AS_WRITTEN_TASK, mentions_of
from plait.data.loader import validation_batches
from plait.model.mot import MixtureOfTransformers
from plait.model.ranks import Ranks
from plait.objectives import loss_sums
from plait.objectives.diffusion import corrupt

VALIDATION_SEED = 20_000
"""Noise of validation is the same in every evaluation, and never training's."""


@torch.no_grad()
def mean_losses(
    model: MixtureOfTransformers,
    batches: Iterable[Batch],
    *,
    diffusion: DiffusionConfig | None = None,
    autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> dict[str, float]:
    """Return the mean loss of each modality present in these batches: nats per token, or squared error per image.

    Where several ranks hold the model, each is given all batches and computes its share of them.
    """
    names = model.config.layout.names
    sums, counts = torch.zeros(len(names), dtype=torch.float64), torch.zeros(len(names), dtype=torch.float64)
    ranks = model.ranks
    for batch, counts_here in dealt(batches, ranks):
        batch = share_of(corrupt(batch, diffusion or DiffusionConfig(), VALIDATION_SEED), ranks).to(model.device)
        with autocast():
            batch_sums = loss_sums(model, model(batch), batch).cpu().double()
        if counts_here:  # not by a factor of 0, which would let a NaN through
            sums += batch_sums
            counts += torch.tensor(batch.counts, dtype=torch.float64) * ranks.leads_batch
    sums, counts = ranks.total(sums), ranks.total(counts)
    return {name: float(s / c) for name, s, c in zip(names, sums, counts, strict=True) if c > 0}


def dealt(batches: Iterable[Batch], ranks: Ranks) -> Iterator[tuple[Batch, bool]]:
    """Yield this data rank's batch of each turn, and whether it counts: in the last turn some repeat another's."""
    turn: list[Batch] = []
    for batch in batches:
        turn.append(batch)
        if len(turn) == ranks.data:
            yield turn[ranks.data_rank], True
            turn = []
    if turn:
        yield turn[min(ranks.data_rank, len(turn) - 1)], ranks.data_rank < len(turn)


def split_losses(
    model: MixtureOfTransformers,
    config: RunConfig,
    split: str,
    *,
    limit: int = 0,
    autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    """Return a split's loss by modality, and by (task, modality), over ``limit`` batches a task (0: all).

    A modality's loss is the mean over the tasks that predict it from others, so that it means the same while training
    and at the end. Where there are no tasks, or none that a document of the split fits, documents are taken as written,
    as training takes them.
    """

    def losses_of(task: str) -> dict[str, float]:
        batches = validation_batches(config, split, "" if task == AS_WRITTEN_TASK else task, limit)
        return mean_losses(model, batches, diffusion=config.diffusion, autocast=autocast)

    by_task = {(task, name): loss for task in config.data.tasks for name, loss in losses_of(task).items()}
    by_task = by_task or {("", name): loss for name, loss in losses_of("").items()}
    by_modality: dict[str, list[float]] = {}
    for (task, name), value in by_task.items():
        if task in ("", AS_WRITTEN_TASK) or name == mentions_of(task)[-1]:
            by_modality.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in by_modality.items()}, by_task


def perplexity(loss: float) -> float:
    """Return e^loss, the perplexity of a mean loss in nats."""
    return math.exp(min(loss, 700.0))
