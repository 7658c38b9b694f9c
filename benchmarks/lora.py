"""LoRA on one of two towers beside training all, or that tower alone: time of a step, and memory.

    OMP_NUM_THREADS=1 python benchmarks/lora.py                (CPU: about 4 minutes)

All arms start from the same weights and see the same batch; AdamW moves what trains.

    lora_step_ratio/<arm>        forward, backward and optimizer, against training everything
    lora_memory_ratio/<arm>      the most bytes that a step holds besides the weights, against training everything
    lora_trained_share/<arm>     numbers that train, of all
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from harness import Measurement, Row, cpu_peak_bytes, paired, parsed, parser, ratio_row, run, value_row
from shapes import Case, Shape, mot_loss

from plait.config.model import LoraConfig
from plait.config.run import TrainConfig
from plait.config.run_records import TowerSettings
from plait.model.mot import MixtureOfTransformers
from plait.train.optim import make_optimizer

RANKS = (16, 64)
ARMS = ("everything", "tower", *(f"rank-{rank}" for rank in RANKS))
GRIDS = {"tiny": Shape(64, 256, (50, 50), layers=1, vocabulary=240), "cpu": Shape(512, 2048, (50, 50)),
         "gpu": Shape(2048, 32768, (50, 50), vocabulary=16384)}  # fmt: skip


class Arm:
    """A model of which everything, one tower, or changes of this one's matrices train."""

    def __init__(self, case: Case, name: str):
        config = case.shape.config()
        first, second = config.towers
        settings = {first: TowerSettings(frozen=name != "everything"), second: TowerSettings(frozen=False)}
        if name.startswith("rank"):
            lora = LoraConfig(rank=int(name.removeprefix("rank-")))
            towers = dict(config.towers) | {second: replace(config.towers[second], lora=lora)}
            config = replace(config, towers=towers)
        self.case, self.model = case, MixtureOfTransformers(config).to(case.device)
        self.optimizer = make_optimizer(self.model, TrainConfig(), settings)
        if case.mode == "compiled":
            self.model.compile_blocks()

    def step(self) -> None:
        """Train one step; no gradient is kept from one to the next."""
        with self.case.autocast():
            loss = mot_loss(self.model, self.case.batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def held(self) -> int:
        """Return the most bytes that a step holds besides the weights, the optimizer's state included."""
        state = sum(t.nbytes for s in self.optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor))
        if self.case.device == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.step()
            return state + torch.cuda.max_memory_allocated() - before
        return state + cpu_peak_bytes(self.step)

    @property
    def share(self) -> float:
        """Numbers that train, of all."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return trained / self.model.num_parameters()


def kind_of(device: str) -> tuple[str, str]:
    """Return the precision and mode that a device is measured in."""
    return ("bfloat16", "compiled") if device == "cuda" else ("float32", "eager")


def compare(options: argparse.Namespace) -> list[Row]:
    """Return the rows of all arms."""
    torch.manual_seed(0)
    case = Case(GRIDS[options.grid], options.device, *kind_of(options.device))
    arms = {name: Arm(case, name) for name in ARMS}
    times = paired({name: [arm.step] for name, arm in arms.items()}, turns=options.turns, device=options.device)
    held = {name: arm.held() for name, arm in arms.items()}
    rows = []
    for name in ARMS[1:]:
        step = times[name][0], times[ARMS[0]][0]
        rows.append(ratio_row(f"lora_step_ratio/{name}/{case.name}", *step, against="everything trains"))
        rows.append(value_row(f"lora_memory_ratio/{name}/{case.name}", held[name] / held[ARMS[0]], "ratio",
                              against="everything trains"))  # fmt: skip
        rows.append(value_row(f"lora_trained_share/{name}/{case.name}", arms[name].share, "share"))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is that of `harness.run`."""
    options = parsed(parser(__doc__, turns=9, grids=GRIDS), arguments)
    end = "/".join((str(GRIDS[options.grid]), *kind_of(options.device)))
    kinds = ("lora_step_ratio", "lora_memory_ratio", "lora_trained_share")
    names = [f"{kind}/{name}/{end}" for name in ARMS[1:] for kind in kinds]
    return run([Measurement(names, lambda: compare(options))], options)


if __name__ == "__main__":
    sys.exit(main())
