"""MoT step / dense step, as ratios measured in one run: forward + backward, then the optimizer as a row of its own.

    python benchmarks/step.py                     (about 4 minutes on 2 cores)
    python benchmarks/step.py --width 512 --tokens 8192 --device cuda --dtype bfloat16

"Dense" is the plain transformer of tests/dense_reference.py, of equal width and depth, on the same tokens, with the
same loss. The models take turns, and the medians of their times are compared, because machines are noisy. A ratio of
dense against itself, measured the same way, says how noisy.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from dense_reference import Dense

from plait.batch import Batch, Document, Part, pack
from plait.data.packing import efficiency, plan_bins
from plait.model.mot import MixtureOfTransformers
from plait.model_config import ModalityConfig, ModelConfig
from plait.objectives import loss_sums
from plait.train.metrics import hardware, peak_memory_gb, versions

VOCABULARY = {"text": 2048, "image": 1000, "speech": 1000}
MIXES = {"two towers": (("text", "image"), None), "three towers": (("text", "image", "speech"), None),
         "two towers, 90/10": (("text", "image"), 0.1)}  # fmt: skip


def documents(names, tokens: int, share: float | None, rng) -> list[Document]:
    """Return documents of alternating modalities that fill about ``tokens``; ``share``: of images, where given."""
    found, total = [], 0
    while total < tokens:
        sizes = {n: int(rng.integers(40, 90)) for n in names}
        if share is not None:
            sizes["image"] = max(1, int(sizes["text"] * share / (1 - share)))
        order = list(names) if len(found) % 2 else list(reversed(names))
        document = Document([Part(n, rng.integers(0, VOCABULARY[n], sizes[n])) for n in order])
        size = 2 + sum(len(p) + 2 * (p.modality != "text") for p in document.parts)
        if total + size > tokens:
            break
        found.append(document)
        total += size
    return found


def config_of(options, towers: dict[str, str], names) -> ModelConfig:
    """Return a model of the benchmark's shape."""
    modalities = {n: ModalityConfig(vocab_size=VOCABULARY[n], tower=towers.get(n, "")) for n in names}
    return ModelConfig(modalities=modalities, width=options.width, num_layers=options.layers,
                       num_heads=options.width // options.head_dim)  # fmt: skip


def dense_loss(model: Dense, batch: Batch) -> torch.Tensor:
    """Return the same loss as plait's, of the plain model, on the sequence-ordered targets."""
    hidden = model(batch.ids, batch.lengths)[:-1]
    ends = torch.tensor(batch.lengths).cumsum(0)[:-1] - 1
    target = batch.ids[1:].clone()
    target[ends.to(target.device)] = -100
    return F.cross_entropy(F.linear(hidden, model.head.weight).float(), target, ignore_index=-100, reduction="sum")


class Arm:
    """One model under the clock."""

    def __init__(self, name: str, model, loss, batch: Batch, options):
        self.name, self.model, self.loss, self.batch = name, model, loss, batch
        self.device, self.autocast = options.device, options.dtype == "bfloat16"
        self.optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        self.times: list[float] = []
        self.optimizer_times: list[float] = []

    def turn(self) -> None:
        """Do one step and note its times."""
        started = self._now()
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.autocast):
            loss = self.loss(self.model, self.batch) / self.batch.num_tokens
        loss.backward()
        middle = self._now()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.times.append(middle - started)
        self.optimizer_times.append(self._now() - middle)

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()  # of all threads: other work on the machine does not count


def mot_loss(model: MixtureOfTransformers, batch: Batch) -> torch.Tensor:
    """Return plait's loss, summed over modalities."""
    return loss_sums(model, model(batch), batch).sum()


def plain_of(config: ModelConfig) -> Dense:
    """Return the plain dense model of a config's shape."""
    tower = next(iter(config.towers.values()))
    return Dense(config.layout.size, config.width, config.num_layers, config.num_heads, config.num_kv_heads,
                 config.head_dim, tower.ffn_width)  # fmt: skip


def compare(mix: str, options) -> list[dict]:
    """Measure one mix and return its rows."""
    names, share = MIXES[mix]
    rng = np.random.default_rng(0)
    one = config_of(options, dict.fromkeys(names, "all"), names)
    many = config_of(options, {}, names)
    found = documents(names, options.tokens, share, rng)
    batches = {"one": pack(found, one).to(options.device), "many": pack(found, many).to(options.device)}
    arms = [
        Arm("dense", plain_of(one).to(options.device), dense_loss, batches["one"], options),
        Arm("dense again", plain_of(one).to(options.device), dense_loss, batches["one"], options),
        Arm("one tower", MixtureOfTransformers(one).to(options.device), mot_loss, batches["one"], options),
        Arm("MoT", MixtureOfTransformers(many).to(options.device), mot_loss, batches["many"], options),
    ]
    for _ in range(2):
        for arm in arms:
            arm.turn()
    for arm in arms:
        arm.times.clear()
        arm.optimizer_times.clear()
    for turn in range(options.turns):
        for arm in arms if turn % 2 else reversed(arms):
            arm.turn()
    rows = []
    for arm in arms[1:]:
        rows.append(ratio_row(f"step_ratio/{mix}/{arm.name}", arm.times, arms[0].times))
        rows.append(ratio_row(f"optimizer_ratio/{mix}/{arm.name}", arm.optimizer_times, arms[0].optimizer_times))
    mot, tokens = arms[-1], batches["many"].num_tokens
    started = time.process_time()
    for _ in range(options.turns):
        pack(found, many)
    packing = (time.process_time() - started) / options.turns
    rows.append({"name": f"loader_share/{mix}", "value": packing / statistics.median(mot.times), "unit": "share",
                 "n": options.turns, "spread": 0.0})  # fmt: skip
    rows.append({"name": f"tokens_per_second/{mix}", "value": tokens / statistics.median(mot.times), "unit": "1/s",
                 "n": options.turns, "spread": 0.0})  # fmt: skip
    return rows


def ratio_row(name: str, times: list[float], against: list[float]) -> dict:
    """Return the ratio of medians; spread is half the range of the middle half of turn-by-turn ratios."""
    each = sorted(a / b for a, b in zip(times, against, strict=True))
    quarter = len(each) // 4
    return {"name": name, "value": statistics.median(times) / statistics.median(against), "unit": "ratio",
            "against": "dense", "n": len(times), "spread": (each[-1 - quarter] - each[quarter]) / 2}  # fmt: skip


def packing_row() -> dict:
    """Return how full documents of 20 to 2,000 tokens pack."""
    lengths = np.random.default_rng(0).integers(20, 2001, 20_000)
    return {"name": "packing_efficiency/20-2000", "value": efficiency(lengths, plan_bins(lengths, 4096), 4096),
            "unit": "share", "n": len(lengths), "spread": 0.0}  # fmt: skip


def main() -> None:
    """Run the benchmark, print its table, and keep its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", default="", help="also write the rows to this JSON file")
    options = parser.parse_args()
    rows = []
    for mix in MIXES:
        rows += compare(mix, options)
        gc.collect()
    rows += [packing_row(), {"name": "peak_memory_gb", "value": peak_memory_gb(), "unit": "GB", "n": 1, "spread": 0.0}]
    shape = f"d{options.width}-l{options.layers}-t{options.tokens}/{options.dtype}/eager"
    for row in rows:
        row |= {"shape": shape}
        print(f"{row['name']:44s} {row['value']:10.3f} ± {row['spread']:.3f} {row['unit']}")
    if options.out:
        facts = {"hardware": hardware(), "versions": versions()}
        Path(options.out).write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
