"""The quickstarts: what a step of the shipped recipe costs beside a dense model's, and every figure over several seeds.

    python benchmarks/quickstart.py step                 about 2 minutes, on the data of runs/quickstart
    python benchmarks/quickstart.py runs                 three settings, three seeds: about three hours
    python benchmarks/quickstart.py runs --settings mixed --seeds 2,3
    python benchmarks/figures.py --take-runs runs/benchmark      keep their figures for docs/quickstart.md

``step``: two models take turns on the same batches, by the wall clock, on a machine that does nothing else. Dense is
the same recipe with one tower for all modalities. ``runs``: each run is a folder of its own below ``--out``; rerun the
same command to resume, finished runs are read and not repeated.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from quickstart_table import kept, table

from plait.common.malloc import keep_freed_memory
from plait.common.progress import QuietProgress
from plait.config.file import load
from plait.config.shipped import QUICKSTARTS, config_path
from plait.train import trainer
from plait.train.trainer import Trainer

PARTS = ("loader", "gradients", "optimizer", "rest", "whole step")


class Timed:
    """A trainer whose steps are timed by part."""

    def __init__(self, data: Path, overrides: list[str]):
        config = load(config_path("quickstart"), [f"out={tempfile.mkdtemp()}", f"data.path={data}", *overrides])
        self.trainer, self.seconds = Trainer(config, QuietProgress()), dict.fromkeys(PARTS, 0.0)
        self.batches = iter(self.trainer._loader(None))
        self.trainer.optimizer.step = self._timed("optimizer", self.trainer.optimizer.step)

    def _timed(self, part: str, call: Callable) -> Callable:
        def timed(*arguments, **more):
            began = time.perf_counter()
            result = call(*arguments, **more)
            self.seconds[part] += time.perf_counter() - began
            return result

        return timed

    def step(self) -> dict[str, float]:
        """Do a step; return the seconds of its parts."""
        self.seconds = dict.fromkeys(PARTS, 0.0)
        plain, trainer.add_gradients = trainer.add_gradients, self._timed("gradients", trainer.add_gradients)
        began = time.perf_counter()
        batches = [batch for batch, _ in itertools.islice(self.batches, self.trainer.num_batches)]
        self.seconds["loader"] = time.perf_counter() - began
        self.trainer.update(batches)
        self.seconds["whole step"] = time.perf_counter() - began
        trainer.add_gradients = plain
        known = sum(self.seconds[part] for part in ("loader", "gradients", "optimizer"))
        self.seconds["rest"] = self.seconds["whole step"] - known
        return self.seconds


def step(data: Path, turns: int) -> None:
    """Print the parts of a step of the mixture and of the dense model."""
    keep_freed_memory()  # as the command line does
    one_tower = [f"model.modalities.{name}.tower=text" for name in ("image", "speech")]
    arms = {"mixture": Timed(data, []), "dense": Timed(data, one_tower)}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for turn in range(turns + 3):
        for name in list(arms)[:: 1 if turn % 2 else -1]:
            times[name].append(arms[name].step())
    measured = {name: rows[3:] for name, rows in times.items()}
    print("| part of a step | mixture | dense | mixture / dense |\n|---|---|---|---|")
    for part in PARTS:
        mixture, dense = (statistics.median(row[part] for row in measured[name]) for name in arms)
        ratios = sorted(
            a[part] / b[part] for a, b in zip(measured["mixture"], measured["dense"], strict=True) if b[part]
        )
        low, middle, high = (ratios[round(q * (len(ratios) - 1))] for q in (0.25, 0.5, 0.75))
        print(f"| {part} | {1e3 * mixture:.1f} ms | {1e3 * dense:.1f} ms | {middle:.2f} ({low:.2f} to {high:.2f}) |")


def runs(settings: list[str], seeds: list[int], out: Path) -> None:
    """Run every setting with every seed, and print the mean and range of every figure."""
    for setting, seed in itertools.product(settings, seeds):
        folder = out / f"{setting}-{seed}"
        if not (folder / "report.html").exists():
            command = [sys.executable, "-m", "plait", "quickstart", "--setting", setting, "--out", str(folder)]
            subprocess.run([*command, "--seed", str(seed)], check=True)
    print(table(kept(out)))


def main() -> None:
    """Run one of the two parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["step", "runs"])
    parser.add_argument("--data", type=Path, default=Path("runs/quickstart/data"), help="prepared data (step)")
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--settings", type=lambda text: text.split(","), default=list(QUICKSTARTS))
    parser.add_argument("--seeds", type=lambda text: [int(n) for n in text.split(",")], default=[2, 3, 4],
                        help="seeds that no trial used")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    options = parser.parse_args()
    if options.part == "step":
        if "OMP_WAIT_POLICY" not in os.environ:
            # as the command line has it; it counts only where it is set before torch is imported
            os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_WAIT_POLICY": "PASSIVE"})
        step(options.data, options.turns)
    else:
        runs(options.settings, options.seeds, options.out)


if __name__ == "__main__":
    main()
