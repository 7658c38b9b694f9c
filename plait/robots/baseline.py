"""A plain network on the robot's documents: the row that a mixture is held against.

Four convolutions over the image, a learned embedding of each sentence, the state, and two layers over all of it: about
0.7 M parameters that predict a chunk with an L1 loss (ACT, Zhao et al. 2023, without its transformer). It sees what the
mixture sees: the same documents of the same seed, and never where objects are.
"""

import itertools
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plait.common.cores import num_cores
from plait.prepare.raw import RawDocument
from plait.robots.source import DOCUMENTS, IMAGE, RUN, MetaworldSource

BATCH = 128
RATE = 1e-3


class Baseline(nn.Module):
    """Images uint8 [B, S, S, 3], states [B, 4] and numbers of sentences [B] to chunks [B, chunk, 4]."""

    def __init__(self, states: np.ndarray, sentences: Sequence[str], chunk: int, size: int):
        super().__init__()
        self.numbers = {sentence: number for number, sentence in enumerate(sentences)}
        widths = (3, 32, 64, 96, 96)
        layers = [(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU()) for a, b in itertools.pairwise(widths)]
        self.image = nn.Sequential(*(part for layer in layers for part in layer), nn.Flatten())
        self.sentence = nn.Embedding(len(self.numbers), 32)
        inputs = widths[-1] * (-(-size // 16)) ** 2 + 32 + states.shape[1]
        self.head = nn.Sequential(nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
                                  nn.Linear(256, chunk * 4), nn.Unflatten(1, (chunk, 4)))  # fmt: skip
        self.mean = nn.Buffer(torch.from_numpy(states.mean(0)))
        self.scale = nn.Buffer(torch.from_numpy(states.std(0) + 1e-3))

    def forward(self, images: Tensor, states: Tensor, sentences: Tensor) -> Tensor:
        """Return the chunks that are predicted."""
        seen = self.image(images.permute(0, 3, 1, 2).float() / 255 - 0.5)
        inputs = [seen, self.sentence(sentences), (states - self.mean) / self.scale]
        chunks: Tensor = self.head(torch.cat(inputs, dim=1))
        return chunks

    @torch.inference_mode()
    def act(self, observations: Sequence[Sequence[Mapping[str, Any]]]) -> list[np.ndarray]:
        """Return a chunk for each observation, of which it sees the last moment."""
        last = [steps[-1] for steps in observations]
        images, states = (torch.from_numpy(np.stack([o[key] for o in last])) for key in (IMAGE, "state"))
        return [*self(images, states, torch.tensor([self.numbers[o["text"]] for o in last])).numpy()]


def trained(
    source: MetaworldSource,
    minutes: float,
    *,
    seed: int,
    advance: Callable[[float, str], None] = lambda share, text: None,
) -> Baseline:
    """Return a network that was trained on a source's documents for so long; its rate falls to 0 with the time."""
    data, sentences = documents(source)
    torch.manual_seed(seed)
    model = Baseline(data["state"].numpy(), source.sentences, source.settings.chunk, source.image_size)
    numbers = torch.tensor([model.numbers[sentence] for sentence in sentences])
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-2)
    rng, began, steps = np.random.default_rng(seed), time.monotonic(), 0
    while (share := (time.monotonic() - began) / max(60 * minutes, 1e-9)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (steps + 1) / 100, 4 * (1 - share))
        rows = torch.from_numpy(rng.integers(len(numbers), size=BATCH))
        loss = (model(data[IMAGE][rows], data["state"][rows], numbers[rows]) - data["actions"][rows]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        if steps % 50 == 0:
            advance(share, f"L1 {loss.item():.4f}")
    return model.eval()


def documents(source: MetaworldSource) -> tuple[dict[str, Tensor], list[str]]:
    """Return images, states and actions of all training documents, and their sentences: made again, side by side."""
    count = source.splits()["train"]
    starts = range(0, count, RUN * DOCUMENTS)
    blocks = [(source, start, min(start + RUN * DOCUMENTS, count)) for start in starts]
    with ProcessPoolExecutor(num_cores(), multiprocessing.get_context("spawn")) as pool:
        read = [rows for block in pool.map(_read, *zip(*blocks, strict=True)) for rows in block]
    rows = [dict(row.parts) for row in read if "text" in dict(row.parts)]
    values = {IMAGE: [row[IMAGE] for row in rows], "state": [row["state"][-1] for row in rows],
              "actions": [row["actions"] for row in rows]}  # fmt: skip
    return {key: torch.from_numpy(np.stack(items)) for key, items in values.items()}, [row["text"] for row in rows]


def _read(source: MetaworldSource, start: int, stop: int) -> list[RawDocument]:
    return list(source.read("train", start, stop))
