"""The training loop: batches in, a trained model, checkpoints and metrics out.

The loss of a step is the same however the work is cut: sums over modalities, divided by counts that are known from
the batches before the forward pass. Nothing in the loop waits for the device outside logging steps.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from plait.batch.batch import Batch
from plait.batch.share import share_of
from plait.common.errors import PlaitError, ResourceError
from plait.common.files import read_json
from plait.common.launch import STOPPED
from plait.common.locks import one_writer
from plait.common.progress import Progress, QuietProgress
from plait.config.file import dotted, to_dict
from plait.config.run import RunConfig
from plait.data.loader import Loader
from plait.data.sources import codec_fingerprints, resolve_vocabulary, validation_splits
from plait.data.targets import check_targets, skipped
from plait.evaluate.losses import split_losses
from plait.model.attention import new_plan
from plait.model.frozen import trained_rows
from plait.model.mot import MixtureOfTransformers
from plait.model.precision import attended, autocast, usable
from plait.model.ranks import local
from plait.objectives import loss_factors, weighted_loss
from plait.objectives.diffusion import corrupt
from plait.train import parallel
from plait.train.acceptance import check_goes_on, keep_config
from plait.train.checkpoint import STATE, Checkpoints
from plait.train.diagnostics import Measures, progress_text
from plait.train.ema import AveragedWeights
from plait.train.gradients import add_gradients, side_by_side
from plait.train.host_memory import MemoryWatch
from plait.train.inspection import save_batches
from plait.train.metrics import MetricsLog, NoMetrics, peak_device_memory_gb
from plait.train.optim import learning_rate, make_optimizer, set_learning_rate
from plait.train.profile import StepProfiler, collect, garbage_by_step
from plait.train.signals import stop_signals
from plait.train.startup import first_weights, say_start
from plait.train.watchdog import Watchdog, lost_ranks


class TrainingStopped(PlaitError):
    """The run was stopped by a signal and saved; the same command goes on."""

    exit_code = STOPPED


def pick_device(name: str) -> torch.device:
    """Return the device a config names; "auto" is CUDA where there is a GPU, else the CPU (train.device says why)."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ResourceError(
            f"train.device: {name!r} is not a device, it must be auto, cpu, cuda, cuda:N or mps"
        ) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ResourceError(f"train.device: {name!r} is absent, this machine has {count} CUDA devices; use auto or cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ResourceError(f"train.device: {name!r} is absent on this machine; use auto or cpu")
    return device


@dataclass
class RunState:
    """What a checkpoint keeps besides weights."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loader: dict[str, Any] | None = None
    skipped_steps: int = 0
    measures: dict[str, Any] | None = None
    """The row of the log that is begun (rank 0's, which writes it)."""


class Trainer:
    """Trains the model of a config; goes on from the newest complete checkpoint of its run folder."""

    def __init__(
        self,
        config: RunConfig,
        progress: Progress | None = None,
        *,
        on_sample: Callable[[MixtureOfTransformers, int], None] | None = None,
        on_evaluate: Callable[[MixtureOfTransformers], dict[str, float]] | None = None,
        on_accepted: Callable[[], None] = lambda: None,
    ):
        """``on_accepted`` is called when `run` has checked everything and begins to write.

        ``on_sample(model, step)`` is called every ``train.sample_every`` steps, to look at what the model makes, and
        ``on_evaluate(model)`` every ``train.evaluate_every`` steps; its figures are logged.

        Its weights are the averages then, where ``train.ema`` keeps any, as for the validation loss.
        """
        self.on_sample, self.on_evaluate, self.on_accepted = on_sample, on_evaluate, on_accepted
        self.device = pick_device(parallel.local_device(config.train.device))
        self._given = config
        config = resolve_vocabulary(config)
        data = replace(config.data, pad_rows_to=parallel.rows_multiple(config))
        self.config = config = replace(config, data=data)
        self.num_batches = parallel.batches_of_a_step(config)
        """Batches of one step, of this rank."""
        self.out = Path(config.out)
        self.model = parallel.build(config, self.device)
        self.ranks = self.model.ranks
        self.progress = (progress or Progress()) if self.ranks.is_first else QuietProgress()
        self.model.recompute_blocks = config.train.checkpoint_activations
        self.optimizer = make_optimizer(self.model, config.train, config.towers)
        self._trained_rows = list(trained_rows(self.model, config.frozen_towers))
        self.state = RunState()
        self.averages: AveragedWeights | None = None
        self._codecs: dict[str, str] = {}
        """Fingerprints of the data's codecs, once training begins."""
        self.checkpoints = Checkpoints(
            self.out / "checkpoints", keep=config.train.keep_checkpoints, keep_every=config.train.keep_every
        )
        self._restore()
        if config.train.compile:
            self.model.compile_blocks()
        self._pool = side_by_side(self.model, self.num_batches, compiled=config.train.compile)
        self.measures = Measures(self.model, config.train, self.device)
        self._bad_steps = torch.zeros((), device=self.device)
        self._stop = False  # what this rank was asked; `_stopping` is what all ranks know
        self._stopping = False
        self._saved_at = self.state.seconds
        self._begun = time.monotonic()
        self.watchdog = Watchdog(config.train.watchdog_seconds)
        self._memory = MemoryWatch()
        self._recent: list[tuple[dict[str, Any] | None, Tensor]] = []
        """The data position before each step since the last log line, and the step's gradient norm."""

    def _restore(self) -> None:
        checkpoint = self.checkpoints.newest()
        if checkpoint:
            check_goes_on(self.config, read_json(checkpoint / STATE, "checkpoint"))
            values = self.checkpoints.restore(checkpoint, self.model, self.optimizer)
            self.state = RunState(**values["run"])
        else:
            for line in first_weights(self.model, self.config):
                self.progress.print(line)
        if self.config.train.ema:
            self.averages = AveragedWeights(self.model, self.config.train.ema)
            if checkpoint:
                self.checkpoints.restore_averages(checkpoint, values, self.averages)

    @property
    def finished(self) -> bool:
        """Whether the configured steps or minutes are spent, or the data ended (data.sources, when_exhausted)."""
        return self.share_done >= 1.0 or bool(self.state.loader and self.state.loader["ended"])

    @property
    def share_done(self) -> float:
        """How much of the run is done, 0 to 1."""
        if self.config.train.minutes > 0:
            return min(self.state.seconds / (60 * self.config.train.minutes), 1.0)
        return min(self.state.step / self.config.train.steps, 1.0)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Enter a context in which the model has its averaged weights, where there are any, and is not trained."""
        with self.averages.applied() if self.averages else contextlib.nullcontext():
            yield
            parallel.reshard(self.model)  # what was gathered would be taken for what is trained

    def _metrics(self) -> contextlib.AbstractContextManager:
        """Return the log of the run, or on ranks that write nothing one that takes everything."""
        if not self.ranks.is_first:
            return NoMetrics()
        return MetricsLog(self.out, self.config.train.trackers, config=dotted(to_dict(self.config)))

    def run(self) -> MixtureOfTransformers:
        """Train to the end and return the model; raises TrainingStopped after saving when a signal asks to stop."""
        lock = one_writer(self.out, "run") if self.ranks.is_first else contextlib.nullcontext()
        with lock, lost_ranks(), stop_signals(self._ask_to_stop), self.watchdog, contextlib.ExitStack() as stack:
            loader = self._loader(self.state.loader)  # refuses what does not fit, before anything is written
            self._codecs = codec_fingerprints(self.config)
            read = stack.enter_context(contextlib.closing(iter(loader)))
            first, notices = [], []
            if not self.finished:
                first = list(itertools.islice(read, 1))  # damaged data are said before what they lack
                notices = check_targets(self.config)
            with self.checkpoints, self._memory, self._metrics() as log:
                self.checkpoints.tidy()
                if self.ranks.is_first:
                    keep_config(self._given)
                self.on_accepted()
                log.drop_after(self.state.step)
                if self.ranks.is_first:
                    say_start(self.model, self.config, parallel.layout_of(self.config), num_batches=self.num_batches,
                              step=self.state.step, device=self.device)  # fmt: skip
                if not self.finished:
                    for line in notices:
                        self.progress.print(line)
                    self._loop(log, loader, itertools.chain(first, read))
                    for line in skipped(self.state.loader["counts"], self.config):
                        self.progress.print(line)
        return self.model

    def _loop(self, log: MetricsLog, loader: Loader, batches: Iterator[tuple[Batch, dict[str, Any]]]) -> None:
        train = self.config.train
        measures = self.measures
        measures.restart(self.state.measures)
        rank = dist.get_rank() if self.ranks.mesh is not None else None
        profiler = StepProfiler(train.profile, self.out / "profile", self.device, rank=rank)
        with garbage_by_step(), self.progress.stage("train", total=1.0) as bar:
            bar.resume(self.share_done)
            self._begun = time.monotonic() - self.state.seconds
            while not self.finished:
                profiler.begin(self.state.step + 1)
                self._step(batches, loader)
                profiler.end(self.state.step)
                collect(self.state.step)
                if self.ranks.mesh is None:
                    self.state.seconds, self._stopping = time.monotonic() - self._begun, self._stop
                step, last = self.state.step, self.finished
                if step % train.log_every == 0 or last or step == 1:
                    self.watchdog.at(step, "losses")
                    bar.to(self.share_done, self._log(log))
                    measures.restart()
                if step % train.validate_every == 0 or last:
                    self.watchdog.at(step, "validation")
                    with measures.paused():
                        self._validate(log)
                if self.on_sample and train.sample_every and (step % train.sample_every == 0 or last):
                    self.watchdog.at(step, "samples")
                    with measures.paused(), self.averaged():
                        self.on_sample(self.model, step)
                if self.on_evaluate and train.evaluate_every and (step % train.evaluate_every == 0 or last):
                    self.watchdog.at(step, "evaluation")
                    with measures.paused(), self.averaged():
                        self._log_row(log, self.on_evaluate(self.model))
                if last or self._stopping or self._time_to_save(step):
                    self.watchdog.at(step, "checkpoint")
                    self._save()
                if last or self._stopping:
                    self.checkpoints.wait()
                if self._stopping and not last:
                    raise TrainingStopped(f"stopped at step {step} and saved; rerun the same command to resume")

    def _loader(self, position: dict[str, Any] | None) -> Loader:
        return Loader(self.config, "train", rank=self.ranks.data_rank, world_size=self.ranks.data, state=position,
                      finish=self._finish)  # fmt: skip

    @property
    def precision(self) -> str:
        """The precision that is computed in: `train.precision`, where the device has instructions for it."""
        return usable(self.config.train.precision, self.device)

    def _finish(self, batch: Batch) -> Batch:
        """Noise a batch, take this rank's part and make it ready to be sent, in the loader's threads."""
        batch = share_of(corrupt(batch, self.config.diffusion, self.config.seed), self.ranks)
        batch.attention = new_plan(batch, self.device, attended(self.precision))
        return batch.pin_memory() if self.device.type == "cuda" else batch

    def _step(self, batches, loader: Loader) -> None:
        self.watchdog.at(self.state.step + 1, "reading data")
        waited, position = loader.wait_seconds, self.state.loader
        micro = []
        for batch, loader_state in itertools.islice(batches, self.num_batches):
            self.state.loader = loader_state
            self.measures.read(batch, loader.wait_seconds - waited)
            waited = loader.wait_seconds
            micro.append(batch.to(self.device))
        set_learning_rate(self.optimizer, learning_rate(self.config.train, self.state.step, self.share_done))
        before = self.state.tokens
        sums, counts, norm = self.update(micro)
        self.measures.stepped(sums, counts, norm, self.state.tokens - before)
        self._recent.append((position, norm))
        self.state.step += 1

    def update(self, batches: list[Batch]) -> tuple[Tensor, list[float], Tensor]:
        """Do one optimizer step over this rank's batches; return loss sums [M], their counts, and the gradient norm.

        Sums, counts and norm are those of all ranks. A step whose gradient is not finite changes nothing, on no rank,
        and is counted on the device.
        """
        train = self.config.train
        self.watchdog.at(self.state.step + 1, "counts of all ranks")
        counts = self._exchange(batches)
        self.watchdog.at(self.state.step + 1, "forward and backward pass")
        factors = torch.tensor(self.loss_factors(counts), dtype=torch.float32).to(self.device, non_blocking=True)

        def loss(batch: Batch) -> tuple[Tensor, Tensor]:
            if self.ranks.mesh is not None:
                parallel.sum_over_replicas(self.model, batch is batches[-1])
            with autocast(self.precision, self.device):
                return weighted_loss(self.model, self.model(batch), batch, factors, z_loss=train.z_loss)

        total = add_gradients(self._trained(), batches, loss, self._pool)
        for parameter, trains in self._trained_rows:
            local(parameter.grad).mul_(trains)
        self.watchdog.at(self.state.step + 1, "gradient norm and optimizer")
        if self.ranks.mesh is None:
            norm = torch.nn.utils.clip_grad_norm_(self._trained(), train.clip, foreach=True)
        else:
            total, norm = parallel.finish_gradients(self.ranks, self._trained(), total, train.clip)
            parallel.sum_balance(self.model)
        if self.measures.wants_gradients(self.state.step + 1):
            self.measures.look(self.model, norm)
        bad = (~torch.isfinite(norm)).float()
        self.optimizer.found_inf = bad  # the fused kernel leaves everything as it is where this is 1
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.averages:
            self.averages.update(bad)
        rates = {n: t.moe_balance_rate for n, t in self.config.towers.items()}
        self.model.update_balance(rates, bad, self.config.frozen_towers)
        self._bad_steps += bad
        return total, counts, norm

    def _exchange(self, batches: list[Batch]) -> list[float]:
        """Return the counts of a step's batches on all ranks, and learn what else ranks must agree on.

        Tokens are counted, rank 0's clock is everybody's, and a signal that any rank got is known to all.
        """
        counts = [sum(b.counts[m] for b in batches) for m in range(len(self.config.model.modalities))]
        tokens = sum(b.num_tokens for b in batches)
        if self.ranks.mesh is None:
            self.state.tokens += tokens
            return counts
        rank_sums = [*counts, float(tokens)] if self.ranks.leads_batch else [0.0] * (len(counts) + 1)
        clock = time.monotonic() - self._begun if self.ranks.is_first else 0.0
        *counts, tokens, self.state.seconds, asked = parallel.agreed(self.ranks, [*rank_sums, clock, float(self._stop)])
        self.state.tokens, self._stopping = self.state.tokens + int(tokens), asked > 0
        return counts

    def _trained(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def loss_factors(self, counts: list[float]) -> list[float]:
        """Return what each modality's loss sum is multiplied by; a count of zero contributes zero."""
        weights = [m.weight_at(self.share_done) for m in self.config.modalities.values()]
        records = list(self.config.model.modalities.values())
        return loss_factors(counts, records, weights, self.config.train.normalize)

    def _log(self, log: MetricsLog) -> str:
        self._count_skipped()
        if self.state.skipped_steps > self.config.train.max_bad_steps:
            raise PlaitError(
                f"training: {self.state.skipped_steps} steps had a loss or gradient that is not finite "
                f"(train.max_bad_steps is {self.config.train.max_bad_steps}){self._keep_bad_batch()}; try a lower "
                "train.learning_rate"
            )
        self._recent.clear()
        row = self.measures.row()
        row["learning_rate"] = learning_rate(self.config.train, self.state.step - 1, self.share_done)
        on_gpu = self.device.type == "cuda"
        row["memory_gb"] = peak_device_memory_gb(self.device) if on_gpu else self._memory.peak_gb
        row["skipped_steps"] = self.state.skipped_steps
        row |= {name: self.state.loader["counts"][name] for name in ("skipped", "parts_skipped")}
        log.log(row, step=self.state.step, seconds=self.state.seconds, tokens=self.state.tokens)
        return progress_text(row, self.state.step)

    def _keep_bad_batch(self) -> str:
        """Read the batches of the last step that was skipped again, put them aside, and say where they are."""
        first = self.state.step - len(self._recent)
        bad = [i for i, (_, norm) in enumerate(self._recent) if not torch.isfinite(norm)]
        if not bad:  # it was skipped before the run was resumed
            return ""
        position = self._recent[bad[-1]][0]
        facts = {"step": first + bad[-1] + 1, "data_rank": self.ranks.data_rank, "loader": position}
        with contextlib.closing(iter(self._loader(position))) as batches:
            bad_batches = [batch for batch, _ in itertools.islice(batches, self.num_batches)]
        folder = self.out / "bad_batches" / f"step-{facts['step']:08d}"
        save_batches(folder / f"rank-{dist.get_rank() if dist.is_initialized() else 0}", bad_batches, facts)
        return f", the batch of the last one is in {str(folder)!r}"

    def _count_skipped(self) -> None:
        """Ask the device how many steps it skipped since the last time."""
        self.state.skipped_steps += int(self._bad_steps)
        self._bad_steps.zero_()

    def _validate(self, log: MetricsLog) -> None:
        row, train = {}, self.config.train
        with self.averaged():
            for split in validation_splits(self.config) if train.validation_batches else []:
                losses, _ = split_losses(self.model, self.config, split, limit=train.validation_batches,
                                         autocast=lambda: autocast(self.precision, self.device))  # fmt: skip
                row |= {f"val_loss/{split}/{name}": value for name, value in losses.items()}
        self._log_row(log, row)

    def _log_row(self, log: MetricsLog, row: dict[str, float]) -> None:
        if row:
            log.log(row, step=self.state.step, seconds=self.state.seconds, tokens=self.state.tokens)

    def _time_to_save(self, step: int) -> bool:
        train = self.config.train
        waited = self.state.seconds - self._saved_at
        return step % train.checkpoint_every == 0 or 0 < train.checkpoint_seconds < waited

    def _save(self) -> None:
        self._count_skipped()
        self.state.measures = self.measures.state()
        state = {"step": self.state.step, "run": dict(vars(self.state)), "config": to_dict(self.config),
                 "codecs": self._codecs}  # fmt: skip
        self.checkpoints.save(self.model, self.optimizer, state, averages=self.averages)
        self._saved_at = self.state.seconds

    def _ask_to_stop(self) -> None:
        self._stop = True
