"""Guided sampling of latents with and without the cached prefix and batched guidance, as ratios measured in one run.

    python benchmarks/sampling.py                      (about 7 minutes on one core)
    python benchmarks/sampling.py --width 512 --requests 4 --prefixes 1024
    python benchmarks/sampling.py --quick              (seconds: a check, no figures worth keeping)

An item of latents is denoised after a prefix of an image and a text, guided by both apart: three branches saw all of
the prefix, the image only, and nothing. Four ways do the same:

    plait                    the generator: the prefix is cached, the branches are rows of one forward pass
    cached, one by one       the prefix is cached, each branch is a forward pass of its own
    recomputed, together     the whole of every branch in one packed forward pass, at every noise level
    recomputed, one by one   the whole of one branch after the other, at every noise level

The ways take turns, and the medians of their times are compared, because machines are noisy. "floor" is what the
ratio would be if time were floating-point operations. All must end in the same latents, or there is no table.
"""

import argparse
import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plait.batch.assemble import Run, assemble, spell
from plait.batch.batch import Batch
from plait.batch.documents import Document, Part
from plait.common.randomness import generator
from plait.config.generation import DiffusionConfig, SamplingConfig
from plait.config.model import ModalityConfig, ModelConfig
from plait.generate import Generator, Request
from plait.generate.decoding import guided
from plait.model.mask import segments
from plait.model.mot import MixtureOfTransformers
from plait.objectives.samplers import Denoiser
from plait.train.metrics import hardware, versions

CHANNELS, VOCABULARY = 16, 1000
FLOW = DiffusionConfig(process="flow")
GOALS = {256: 1.7, 1024: 3.0}
"""Least ratio of "recomputed, one by one" to plait, by tokens of the prefix."""
TOLERANCE = 1e-3
"""Largest difference of latents (of deviation about 1) between two ways, in float32 after all steps."""


def build(options) -> MixtureOfTransformers:
    """Return an untrained model of two towers by role, with output large enough that it matters what was given."""
    modalities = {
        "text": ModalityConfig(vocab_size=VOCABULARY, tower="understanding"),
        "image": ModalityConfig(objective="diffusion", attention="bidirectional", latent_channels=CHANNELS,
                                tower="generation", tower_by_role={"understanding": "understanding"},
                                later_sees="clean_copy"),
    }  # fmt: skip
    heads = options.width // options.head_dim
    config = ModelConfig(modalities=modalities, width=options.width, num_layers=options.layers, num_heads=heads,
                         num_kv_heads=max(1, heads // 2), position_axes=["time", "row", "column"])  # fmt: skip
    model = MixtureOfTransformers(config).to(options.device, torch.float32).requires_grad_(False)
    for parameter in model.latent_out.parameters():
        parameter.mul_(20)
    return model


def request_of(number: int, prefix: int, options) -> Request:
    """Return a request whose branches saw ``prefix`` tokens, those of its image only, and none."""
    rng = np.random.default_rng(number)
    tokens = prefix - 44  # a text of 40 tokens or a few more; <bos> and three delimiters
    rows = math.isqrt(tokens)
    grid = (rows, tokens // rows)
    image = rng.standard_normal((math.prod(grid), CHANNELS)).astype(np.float32)
    text = rng.integers(0, VOCABULARY, prefix - 4 - len(image))
    parts = [Part("image", latents=image, grid=grid, role="understanding"), Part("text", text)]
    sampling = {"image": SamplingConfig(steps=options.steps, guidance=3.0, media_guidance=1.5)}
    return Request(parts, "image", sampling, grids={"image": (options.side, options.side)}, number=number)


def branches_of(request: Request, model: MixtureOfTransformers) -> list[list[Run]]:
    """Return what each branch saw, up to the opening delimiter."""
    image, text = request.prompt
    opening = Run("text", np.array([model.config.layout.opening["image"]]))
    return [
        [*spell(Document(parts), model.config, close=False, noised=False), opening]
        for parts in ([image, text], [image], [])
    ]


def canvas_of(side: int) -> Run:
    """Return the run of the item under denoising; its latents are filled in later."""
    return Run("image", None, np.zeros((side * side, CHANNELS), np.float32), (side, side), "generation", noised=True,
               hidden=True)  # fmt: skip


class Forward:
    """One forward pass a noise level, over the whole of some branches of all requests, or after what is cached."""

    def __init__(self, model: MixtureOfTransformers, prefixes: list[list[Run]], side: int, *, cached: bool):
        self.model, self.count, self.cache = model, side * side, None
        sequences, starts = [[*p, canvas_of(side)] for p in prefixes], None
        if cached:
            prompt = assemble(prefixes, model.config)
            starts = prompt.next_positions
            self.cache = model.new_cache(len(prefixes), max(prompt.lengths) + self.count)
            for _ in prefixes:
                self.cache.add_row()
            model(prompt.to(model.device), self.cache.step(prompt, list(range(len(prefixes)))))
            sequences = [[canvas_of(side)] for _ in prefixes]
        self.batch = assemble(sequences, model.config, first_positions=starts).to(model.device)
        group = self.batch.latents["image"]
        ends = np.cumsum(group.lengths)[np.array(group.noised)]
        places = np.concatenate([np.arange(end - self.count, end) for end in ends])
        self.places = torch.from_numpy(places).to(model.device)

    def __call__(self, latents: Tensor, level: float) -> Tensor:
        """Return predictions [n, C] for the latents [n, C] of all of its branches."""
        group = self.batch.latents["image"]
        group.values = group.values.index_copy(0, self.places, latents)
        group.timesteps = torch.zeros(len(group.values), device=latents.device).index_fill(0, self.places, level)
        step = None
        if self.cache:
            rows = list(range(len(self.batch.lengths)))
            step = self.cache.step(self.batch, rows, passing=[self.count] * len(rows))
        hidden = self.model(self.batch, step)
        return self.model.predict_latents(hidden, self.batch, "image").index_select(0, self.places)


def by_hand(model: MixtureOfTransformers, requests: list[Request], options, *, cached: bool, together: bool) -> Tensor:
    """Denoise the items of all requests by one of the three other ways; return their latents [n, C]."""
    branches = list(zip(*(branches_of(r, model) for r in requests), strict=True))  # 3 of all requests each
    groups = [[p for branch in branches for p in branch]] if together else branches
    passes = [Forward(model, list(prefixes), options.side, cached=cached) for prefixes in groups]
    sampling = requests[0].sampling["image"]
    denoiser = Denoiser(FLOW, sampling.sampler, sampling.steps)
    latents = torch.cat([first_noise(r, options.side) for r in requests]).to(model.device)
    for level in denoiser.levels:
        said = torch.cat([forward(latents.repeat(3 if together else 1, 1), level) for forward in passes])
        mixed = guided(*said.chunk(3), sampling.guidance, sampling.media_guidance)
        latents = denoiser.step(mixed, latents)
    return latents


def first_noise(request: Request, side: int) -> Tensor:
    """Return the noise [n, C] from which the generator starts the request's item."""
    draw = generator(request.seed, "first noise", item=request.number, position=1)
    return torch.from_numpy(draw.standard_normal((side * side, CHANNELS))).float()


def by_generator(model: MixtureOfTransformers, requests: list[Request], options) -> Tensor:
    """Denoise the items of all requests by plait's generator; return their latents [n, C]."""
    longest = max(sum(map(len, branches_of(r, model)[0])) for r in requests) + options.side**2 + 2
    engine = Generator(model, grids={}, max_rows=len(requests), max_length=longest, diffusion=FLOW)
    for request in requests:
        engine.add(request)
    results = []
    while engine.rows:
        results += engine.step()
    results.sort(key=lambda result: result.request.number)
    return torch.cat([torch.from_numpy(r.parts[-1].latents) for r in results]).to(model.device)


WAYS = {
    "plait": by_generator,
    "cached, one by one": lambda *a: by_hand(*a, cached=True, together=False),
    "recomputed, together": lambda *a: by_hand(*a, cached=False, together=True),
    "recomputed, one by one": lambda *a: by_hand(*a, cached=False, together=False),
}


@dataclass
class Work:
    """Floating-point operations of a forward pass."""

    model: MixtureOfTransformers

    def of(self, batch: Batch, prefix: list[int] | None = None) -> float:
        """Count 2 for each weight that a token passes, and 4 H d for each query that sees a key, in every layer."""
        c = self.model.config
        matrices = sum(
            p.numel()
            for part, p in self.model.weights()
            if part.in_block and part.trait.is_matrix and part.tower == "generation"
        )
        pairs = 0
        for s in segments(batch.spans, prefix):
            n, keys = s.num_queries, sum(high - low for low, high in s.keys)
            pairs += n * keys - (n * (n - 1) // 2 if s.causal else 0)
        return 2.0 * matrices * batch.num_tokens + 4.0 * c.num_layers * c.num_heads * c.head_dim * pairs

    def ratio(self, requests: list[Request], options, *, cached: bool) -> float:
        """Return the operations of a way over those of plait."""
        prefixes = [p for r in requests for p in branches_of(r, self.model)]
        canvas = canvas_of(options.side)
        whole = self.of(assemble([[*p, canvas] for p in prefixes], self.model.config))
        cut = self.of(assemble([[canvas] for _ in prefixes], self.model.config), [sum(map(len, p)) for p in prefixes])
        plait = whole + (options.steps - 1) * cut
        return 1.0 if cached else options.steps * whole / plait


def measure(prefix: int, options) -> list[dict]:
    """Let the ways take turns at one length of the prefix, and return their rows; raises where their latents differ."""
    model = build(options)
    requests = [request_of(i, prefix, options) for i in range(options.requests)]
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    latents = {}
    for turn in range(options.turns + 1):
        for name in WAYS if turn % 2 else reversed(WAYS):
            started = now(options.device)
            latents[name] = WAYS[name](model, requests, options)
            times[name].append(now(options.device) - started)
        if turn == 0:  # warm-up
            check_equal(latents)
            times = {name: [] for name in WAYS}
    work = Work(model)
    rows = []
    for name, way_times in times.items():
        each = sorted(a / b for a, b in zip(way_times, times["plait"], strict=True))
        quarter = len(each) // 4
        rows.append({"prefix": prefix, "way": name, "images_per_second": len(requests) / statistics.median(way_times),
                     "ratio": statistics.median(way_times) / statistics.median(times["plait"]),
                     "spread": (each[-1 - quarter] - each[quarter]) / 2, "n": len(each),
                     "floor": work.ratio(requests, options, cached=not name.startswith("recomputed"))})  # fmt: skip
    return rows


def check_equal(latents_by_way: dict[str, Tensor]) -> None:
    """Raise unless every way ended in plait's latents [n, C]."""
    for name, latents in latents_by_way.items():
        difference = float((latents - latents_by_way["plait"]).abs().max() / latents_by_way["plait"].std())
        if not difference <= TOLERANCE:
            raise SystemExit(f"{name!r} ends in other latents than plait: {difference:.2g} of their deviation apart")


def now(device: str) -> float:
    """Return the time in seconds: on a CPU that of this process, so that other work does not count."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def table(rows: list[dict], options) -> str:
    """Return the rows as text, with the goals where there are any."""
    lines = [
        f"width {options.width}, {options.layers} layers, item of {options.side}x{options.side} tokens, "
        f"{options.steps} steps, {options.requests} request(s), {options.device}",
        f"{'prefix':>6}  {'way':24s} {'images/s':>9}  {'time / plait':>15}  {'floor':>6}",
    ]
    for row in rows:
        lines.append(
            f"{row['prefix']:6d}  {row['way']:24s} {row['images_per_second']:9.3f}  "
            f"{row['ratio']:7.2f} ± {row['spread']:.2f}  {row['floor']:8.2f}"
        )
        goal = GOALS.get(row["prefix"])
        if goal and row["way"] == "recomputed, one by one":
            lines[-1] += f"  goal {goal}: {'reached' if row['ratio'] >= goal else 'missed'}"
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options; ``--quick`` sets those that make it small."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--prefixes", type=int, nargs="+", default=sorted(GOALS), help="tokens, at least 48")
    parser.add_argument("--side", type=int, default=16, help="side of the item, in tokens")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--requests", type=int, default=1, help="requests denoised together")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="a small model and item, few steps, one turn")
    parser.add_argument("--out", default="", help="also write the rows to this JSON file")
    options = parser.parse_args(arguments)
    if options.quick:
        small = {"width": 64, "layers": 2, "head_dim": 16, "prefixes": [80], "side": 4, "steps": 4, "turns": 1}
        vars(options).update(small)
    return options


@torch.no_grad()
def main(arguments: list[str] | None = None) -> list[dict]:
    """Run the benchmark, print its table, keep its rows and return them."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    rows = [row for prefix in options.prefixes for row in measure(prefix, options)]
    print(table(rows, options))
    if options.out:
        facts = {"hardware": hardware(), "versions": versions()}
        Path(options.out).write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
