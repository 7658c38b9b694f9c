"""Two batches of a step on a core each, against one after the other on all cores: tokens a second, as a ratio.

    python benchmarks/side_by_side.py             (about a minute on 2 cores)
    python benchmarks/side_by_side.py --width 512 --batches 4

The batches are those of the Transfusion quickstart's shape: captions of 9 tokens, images of 64 latents. The two ways
take turns, by the wall clock, so run it on a machine that does nothing else.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from plait.batch.assemble import pack
from plait.batch.batch import Batch
from plait.batch.documents import Document, Part
from plait.config.generation import DiffusionConfig
from plait.config.model import ModalityConfig, ModelConfig
from plait.model.mot import MixtureOfTransformers
from plait.model.precision import autocast
from plait.objectives import weighted_loss
from plait.objectives.diffusion import corrupt
from plait.train.gradients import add_gradients, side_by_side


def batch_of(config: ModelConfig, tokens: int, rng: np.random.Generator) -> Batch:
    """Return a packed batch of captions with images, about ``tokens`` long."""
    documents = []
    for i in range(tokens // 77):
        latents = rng.standard_normal((64, 16)).astype(np.float32)
        parts = [Part("text", rng.integers(0, 2048, 9)), Part("image", latents=latents, grid=(8, 8))]
        documents.append(Document(parts, index=i))
    return corrupt(pack(documents, config), DiffusionConfig(process="flow"), 0)


def main() -> None:
    """Run the benchmark and print a row for each length of a batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batches", type=int, default=2, help="batches of a step")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    options = parser.parse_args()
    image = ModalityConfig(objective="diffusion", attention="bidirectional", latent_channels=16)
    config = ModelConfig(modalities={"text": ModalityConfig(vocab_size=2048), "image": image}, width=options.width,
                         num_layers=options.layers, num_heads=options.width // 64)  # fmt: skip
    model, rng = MixtureOfTransformers(config), np.random.default_rng(0)
    pool = side_by_side(model, options.batches)
    if pool is None:
        raise SystemExit("side_by_side: one core only, there is nothing to compare")

    def loss(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        with autocast(options.dtype, model.device):
            return weighted_loss(model, model(batch), batch, torch.full((2,), 1 / batch.num_tokens))

    def seconds(batches: list[Batch], threads) -> float:
        started = time.perf_counter()
        add_gradients(list(model.parameters()), batches, loss, threads)
        model.zero_grad()
        return time.perf_counter() - started

    print("tokens a batch   one after the other   side by side   ratio (half range of its middle half)")
    for tokens in (512, 1024, 2048, 4096):
        batches = [batch_of(config, tokens, rng) for _ in range(options.batches)]
        total = sum(b.num_tokens for b in batches)
        times = [[seconds(batches, threads) for threads in (None, pool)] for _ in range(options.turns + 2)][2:]
        ratios = sorted(a / b for a, b in times)
        quarter = len(ratios) // 4
        rates = [total / statistics.median(side) for side in zip(*times, strict=True)]
        print(
            f"{tokens:14,} {rates[0]:17,.0f} /s {rates[1]:11,.0f} /s   {statistics.median(ratios):.2f} "
            f"({(ratios[-1 - quarter] - ratios[quarter]) / 2:.2f})"
        )


if __name__ == "__main__":
    main()
