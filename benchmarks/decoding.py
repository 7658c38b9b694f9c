"""Decoding: tokens a second by rows, bytes a second against a copy, mixed rows, the paged cache, first tokens, images.

    OMP_NUM_THREADS=1 python benchmarks/decoding.py             (CPU: about 4 minutes)

decode/tokens_per_second/<shape>/rows<N>    text, one tower, after a prompt of 128 tokens
decode/speedup/<shape>/rows<N>              tokens a second / those of one row
decode/bytes_per_second/<shape>/rows<N>     weights and cache that a step reads, by its time; decode/copy the bytes
decode/share_of_copy/<shape>/rows<N>        that a copy of 256 MiB reads and writes; and the ratio of the two
decode/read_ratio/<shape>/<precision>       bytes of weights that a step of one row of text reads, of two towers / the
                                            least: the weights that it passes, once, as they are kept
decode/dense_ratio/<shape>/rows<N>          step of plait / of the plain dense model with a cache of its own
decode/mixed_ratio/<shape>/<mix>            step of two towers, rows of text and of images / of one tower, 32 rows
decode/paged_ratio/<shape>/rows<N>          step with the paged cache / with the static one
decode/first_token/<shape>/<N>x<tokens>     seconds from N prompts of so many tokens to their first tokens
decode/images_per_second/<shape>/rows<N>    images of 64 tokens after a short prompt
decode/graphs_ratio/<shape>/rows<N>         step with CUDA graphs / without (on a GPU)

With --run, the folder of a trained run with images of ids (what guesses are worth, no untrained model tells):

decode/ids_a_pass/<run>/rows<N>/window<W>       ids of an image that a pass of W finds (generate.speculate)
decode/speculate_ratio/<run>/rows<N>/window<W>  images with it / one id a pass

Each time is that of STEPS steps, prompts taken in before; rows that would end do not.
"""

import argparse
import functools
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from bytes_read import WeightBytes, least_bytes
from harness import Measurement, Row, Times, paired, parsed, parser, ratio_row, run, value_row
from shapes import HEAD_DIM, dense_reference
from torch import Tensor

from plait.batch.documents import Part
from plait.config.model import ModalityConfig, ModelConfig
from plait.data.sources import open_sources, validation_splits
from plait.generate import Generator, Request
from plait.model.mot import MixtureOfTransformers
from plait.model.precision import shorten
from plait.run.load import load, run_config

STEPS = 8
PROMPT = 128
LONGEST = 2048
TEXT_IDS = 8192
IMAGE_IDS = 1024
COPIED = 1 << 28

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

GRIDS = {"tiny": [(64, 1, (1, 4))], "cpu": [(256, 4, (1, 8, 32, 64)), (512, 6, (1, 8, 32))],
         "gpu": [(512, 8, (1, 8, 32, 128)), (2048, 24, (1, 8, 32, 128))]}  # fmt: skip
"""Width, layers and numbers of rows."""


class Bench:
    """One shape on one device: its models, and generators under way."""

    def __init__(self, width: int, layers: int, options: argparse.Namespace):
        self.width, self.layers, self.device = width, layers, options.device
        self.dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
        self.text_ids = 200 if options.grid == "tiny" else TEXT_IDS
        self.name = f"d{width}-l{layers}"

    def model(self, towers: int, dtype: torch.dtype | None = None) -> MixtureOfTransformers:
        """Return an untrained model whose text and images have one tower or two, in ``dtype`` (the device's)."""
        dtype = dtype or self.dtype
        image = "image" if towers == 2 else "text"
        modalities = {
            "text": ModalityConfig(vocab_size=self.text_ids, tower="text"),
            "image": ModalityConfig(vocab_size=IMAGE_IDS, tower=image),
        }
        config = ModelConfig(modalities=modalities, width=self.width, num_layers=self.layers,
                             num_heads=self.width // HEAD_DIM, max_positions=LONGEST)  # fmt: skip
        model = MixtureOfTransformers(config).to(self.device).requires_grad_(False)
        if dtype != torch.bfloat16:
            return model.to(dtype)
        shorten(model)
        return model

    def generator(self, model: MixtureOfTransformers, outputs: Sequence[str], *, prompt: int = PROMPT, side: int = 36,
                  ends: bool = False, **settings) -> Generator:  # fmt: skip
        """Return a generator that has a request for each output, none of them fed; text ends only where it may."""
        own = "bfloat16" if self.dtype == torch.bfloat16 else "float32"
        settings = {"cuda_graphs": True, "precision": own} | settings
        engine = Generator(model, grids={"image": (side, side)}, max_rows=len(outputs), max_length=LONGEST,
                           max_branches=1, **settings)  # fmt: skip
        if not ends:
            engine._allowed.table[:, model.config.layout.eos] = float("-inf")
        for i, output in enumerate(outputs):
            ids = np.random.default_rng(i).integers(0, self.text_ids, prompt)
            engine.add(Request([Part("text", ids)], output, max_tokens={"text": LONGEST}, number=i))
        return engine

    def steps(self, engine: Generator) -> Callable[[], None]:
        """Return a function of STEPS steps, after the prompts."""
        engine.step()

        def several() -> None:
            for _ in range(STEPS):
                engine.step()

        return several

    def bytes_of_step(self, model: MixtureOfTransformers, rows: int, turns: int) -> float:
        """Return the bytes that a middle step reads: weights of the blocks and the head, keys and values."""
        config = model.config
        weights = sum(p.numel() for p in model.blocks.parameters()) + self.width * (self.text_ids + 2)
        length = 1 + PROMPT + STEPS * turns / 2
        cached = rows * length * 2 * config.num_layers * config.num_kv_heads * config.head_dim
        return (weights + cached) * self.dtype.itemsize


class DenseDecoder:
    """The plain dense model with a static cache, written for this: every row decodes, one token each."""

    def __init__(self, bench: Bench, rows: int):
        heads = bench.width // HEAD_DIM
        hidden = bench.model(1).config.towers["text"].ffn_width
        size = bench.text_ids + IMAGE_IDS + 4
        model = dense_reference.Dense(size, bench.width, bench.layers, heads, heads, HEAD_DIM, hidden)
        self.model = model.to(bench.device, bench.dtype).requires_grad_(False)
        shape = (bench.layers, 2, rows, heads, LONGEST, HEAD_DIM)
        self.cache = torch.zeros(shape, device=bench.device, dtype=bench.dtype)
        self.length, self.ids = PROMPT + 2, torch.zeros(rows, dtype=torch.long, device=bench.device)
        tables = dense_reference.angles((LONGEST,), HEAD_DIM, 1e4, torch.device(bench.device))
        self.cos, self.sin = (x.to(bench.dtype) for x in tables)

    def step(self) -> None:
        """Feed one token a row and draw the next."""
        x, at = self.model.embed(self.ids), self.length
        for block, (keys, values) in zip(self.model.blocks, self.cache, strict=True):

            def attend(q: Tensor, k: Tensor, v: Tensor, keys: Tensor = keys, values: Tensor = values) -> Tensor:
                keys[:, :, at], values[:, :, at] = k, v
                out = F.scaled_dot_product_attention(q.unsqueeze(2), keys[:, :, : at + 1], values[:, :, : at + 1])
                return out.squeeze(2)

            x = block(x, self.cos[at], self.sin[at], attend)
        self.logits = self.model.head(self.model.final_norm(x))
        self.ids = torch.multinomial(self.logits.float().softmax(-1), 1).squeeze(1)
        self.ids.tolist()
        self.length += 1

    def several(self) -> None:
        """Take STEPS steps."""
        for _ in range(STEPS):
            self.step()


def by_rows(bench: Bench, counts: Sequence[int], turns: int) -> list[Row]:
    """Tokens and bytes a second by rows of one tower, against one row, a copy, and the plain dense model."""
    model, name = bench.model(1), bench.name
    arms = {str(n): [bench.steps(bench.generator(model, ["text"] * n))] for n in counts}
    arms |= {f"dense{n}": [DenseDecoder(bench, n).several] for n in counts}
    source = torch.ones(COPIED // 4, device=bench.device)
    target = torch.empty_like(source)
    times = paired(arms | {"copy": [lambda: target.copy_(source)]}, turns=turns, device=bench.device)
    copy = times["copy"][0]
    copied = 2 * COPIED / statistics.median(copy)
    rows = [value_row(f"decode/copy/{name}", copied, "bytes/s", times=copy)]
    for n in counts:
        row_times, one = times[str(n)][0], times[str(counts[0])][0]
        read = bench.bytes_of_step(model, n, turns) * STEPS / statistics.median(row_times)
        end = f"{name}/rows{n}"
        rows += [
            value_row(
                f"decode/tokens_per_second/{end}", n * STEPS / statistics.median(row_times), "1/s", times=row_times
            ),
            ratio_row(f"decode/speedup/{end}", [n * t for t in one], row_times, against="one row"),
            value_row(f"decode/bytes_per_second/{end}", read, "bytes/s", times=row_times),
            value_row(f"decode/share_of_copy/{end}", read / copied, "ratio", against="copy", times=row_times),
            ratio_row(f"decode/dense_ratio/{end}", row_times, times[f"dense{n}"][0], against="dense"),
        ]
    return rows


def names_by_rows(name: str, counts: Sequence[int]) -> list[str]:
    """Return the names of the rows of `by_rows`."""
    kinds = ("tokens_per_second", "speedup", "bytes_per_second", "share_of_copy", "dense_ratio")
    return [f"decode/copy/{name}", *(f"decode/{k}/{name}/rows{n}" for k in kinds for n in counts)]


def read(bench: Bench) -> list[Row]:
    """Bytes of weights that a step reads over the least, of a model of two towers; counted, not timed."""
    rows = []
    for precision, dtype in PRECISIONS.items():
        model = bench.model(2, dtype)
        engine = bench.generator(model, ["text"], precision=precision)
        engine.step()
        with WeightBytes(model) as counted:
            engine.step()
        low, high = engine._allowed.ranges[engine._allowed.index["host"]]
        ratio = counted.total / least_bytes(model, "text", high - low)
        rows.append(value_row(f"decode/read_ratio/{bench.name}/{precision}", ratio, "ratio", against="the least"))
    return rows


MIXES = {"text": 1.0, "half": 0.5, "images": 0.0}
"""Share of the rows that are text."""


def mixed(bench: Bench, count: int, turns: int) -> list[Row]:
    """Rows of text and images in two towers against the same rows in one."""
    models = {1: bench.model(1), 2: bench.model(2)}
    arms = {}
    for mix, share in MIXES.items():
        outputs = ["text" if i < share * count else "image" for i in range(count)]
        arms |= {f"{mix}{k}": [bench.steps(bench.generator(model, outputs))] for k, model in models.items()}
    times = paired(arms, turns=turns, device=bench.device)
    return [ratio_row(f"decode/mixed_ratio/{bench.name}/{mix}", times[f"{mix}2"][0], times[f"{mix}1"][0],
                      against="one tower") for mix in MIXES]  # fmt: skip


def variants(bench: Bench, counts: Sequence[int], turns: int) -> list[Row]:
    """The paged cache, and on a GPU no CUDA graphs, against the ordinary step."""
    kinds: dict[str, dict] = {"paged": {"page_size": 16}}
    if bench.device == "cuda":
        kinds["no-graphs"] = {"cuda_graphs": False}
    model, rows = bench.model(1), []
    for n in counts:
        arms = {k: [bench.steps(bench.generator(model, ["text"] * n, **s))] for k, s in {"": {}, **kinds}.items()}
        times = paired(arms, turns=turns, device=bench.device)
        rows += [
            ratio_row(f"decode/{k}_ratio/{bench.name}/rows{n}", times[k][0], times[""][0], against="static")
            for k in kinds
        ]
    return rows


FIRST = ((1, 128), (1, 1024), (16, 128))
IMAGE_SIDE = 8


def whole(bench: Bench, counts: Sequence[int], turns: int) -> list[Row]:
    """Time to first tokens, and images from begin to end."""
    model = bench.model(2)

    def first(count: int, tokens: int) -> None:
        bench.generator(model, ["text"] * count, prompt=tokens).step()

    def images(count: int) -> None:
        engine = bench.generator(model, ["image"] * count, prompt=16, side=IMAGE_SIDE, ends=True)
        while engine.rows:
            engine.step()

    arms = {f"first_token/{bench.name}/{n}x{t}": [lambda n=n, t=t: first(n, t)] for n, t in FIRST}
    arms |= {f"images_per_second/{bench.name}/rows{n}": [lambda n=n: images(n)] for n in counts}
    times: Times = paired(arms, turns=max(1, turns // 2), device=bench.device, warmups=1, repeats=1)
    rows = []
    for name, (seconds,) in times.items():
        middle = statistics.median(seconds)
        count = int(name.rpartition("rows")[2]) if "images" in name else 0
        rows.append(
            value_row(f"decode/{name}", count / middle if count else middle, "1/s" if count else "s", times=seconds)
        )
    return rows


WINDOWS = (2, 4, 8, 16)


def speculation(folder: Path, counts: Sequence[int], turns: int, device: str) -> list[Row]:
    """Images of a run from captions, as its config samples them, several ids a pass against one."""
    config, pipeline = run_config(folder), load(folder, device=device)
    model, grids = pipeline.model, pipeline.grids
    host, output = model.config.layout.host, next(n for n in grids if model.config.modalities[n].vocab_size)
    source = open_sources(config, validation_splits(config)[0])[0]
    captions = [[p for p in source.document(i).parts if p.modality == host] for i in range(max(counts))]
    ids_per_pass: dict[str, list[float]] = {}

    def images(count: int, window: int, per_pass: list[float]) -> None:
        # each turn draws with another seed, the same one in all arms
        asked = [
            Request(captions[i], output, config.generate.sampling, seed=len(per_pass), number=i) for i in range(count)
        ]
        engine = Generator(model, grids=grids, max_rows=count, max_length=model.config.max_positions,
                           max_branches=asked[0].max_branches, speculate=window)  # fmt: skip
        for request in asked:
            engine.add(request)
        engine.step()
        passes = 0
        while engine.rows:
            passes += len(engine.rows)
            engine.step()
        per_pass.append(count * (math.prod(grids[output]) - 1) / passes)

    def arm(count: int, window: int) -> list[Callable[[], None]]:
        return [functools.partial(images, count, window, ids_per_pass.setdefault(f"rows{count}/window{window}", []))]

    times = paired({f"rows{n}/window{w}": arm(n, w) for n in counts for w in (0, *WINDOWS)}, turns=turns,
                   device=device, warmups=1, repeats=1)  # fmt: skip
    rows = []
    for end in (f"rows{n}/window{w}" for n in counts for w in WINDOWS):
        each, plain = ids_per_pass[end][1:], times[f"{end.partition('/')[0]}/window0"][0]
        rows += [
            value_row(f"decode/ids_a_pass/{config.name}/{end}", statistics.median(each), "ids", times=each),
            ratio_row(f"decode/speculate_ratio/{config.name}/{end}", times[end][0], plain, against="one id a pass"),
        ]
    return rows


def measurements(options: argparse.Namespace) -> list[Measurement]:
    """Return what is to be measured, the most wanted first."""
    wanted = [m for shape in GRIDS[options.grid] for m in of_shape(*shape, options)]
    if options.run:
        name, counts = run_config(options.run).name, (1, 8, 32)
        ends = [f"{name}/rows{n}/window{w}" for n in counts for w in WINDOWS]
        wanted.append(Measurement([f"decode/{k}/{end}" for end in ends for k in ("ids_a_pass", "speculate_ratio")],
                                  lambda: speculation(options.run, counts, options.turns, options.device)))  # fmt: skip
    return wanted


def of_shape(width: int, layers: int, counts: Sequence[int], options: argparse.Namespace) -> list[Measurement]:
    """Return the measurements of one shape."""
    bench, turns, most = Bench(width, layers, options), options.turns, min(32, counts[-1])
    name, few = bench.name, (counts[0], most)
    kinds = ["paged", *(["no-graphs"] if options.device == "cuda" else [])]
    images = [f"decode/images_per_second/{name}/rows{n}" for n in counts]
    return [
        Measurement(names_by_rows(name, counts), lambda: by_rows(bench, counts, turns)),
        Measurement([f"decode/mixed_ratio/{name}/{mix}" for mix in MIXES], lambda: mixed(bench, most, turns)),
        Measurement([f"decode/read_ratio/{name}/{precision}" for precision in PRECISIONS], lambda: read(bench)),
        Measurement(
            [f"decode/{k}_ratio/{name}/rows{n}" for k in kinds for n in few], lambda: variants(bench, few, turns)
        ),
        Measurement(
            [*(f"decode/first_token/{name}/{n}x{t}" for n, t in FIRST), *images], lambda: whole(bench, counts, turns)
        ),
    ]


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is that of `harness.run`."""
    command_line = parser(__doc__, grids=GRIDS)
    command_line.add_argument("--run", type=Path, help="folder of a trained run with images of ids")
    options = parsed(command_line, arguments)
    return run(measurements(options), options)


if __name__ == "__main__":
    sys.exit(main())
