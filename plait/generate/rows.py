"""A request under way: a row of the batch, with one stream of the cache for each branch of its guidance."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from plait.batch.assemble import Run
from plait.batch.documents import Part
from plait.common.randomness import generator
from plait.generate.latent_batches import Canvas
from plait.generate.request import Request, Score
from plait.model.lora import Asked
from plait.model.mot import MixtureOfTransformers

DRAWS_AT_ONCE = 256


@dataclass(eq=False)
class Stream:
    """One row of the cache: what it is fed next, and where it is."""

    row: "Row"
    pending: list[Run]
    position: float = 0.0
    prompt: list[Run] = field(init=False)
    """All that it is fed at first; streams that begin alike share that."""

    def __post_init__(self) -> None:
        self.prompt = self.pending

    @property
    def decodes(self) -> bool:
        """Whether it is fed a single id and nothing else, but for the row's guesses behind it."""
        runs = self.pending
        one_id = len(runs) > 0 and runs[0].ids is not None and len(runs[0]) == 1
        return one_id and len(runs) == 1 + (len(self.row.guesses) > 0)


class Row:
    """A request under way: its span, its parts so far, and its streams."""

    def __init__(self, identity: int, request: Request, prompt: list[Run], slots: Sequence[int] = ()):
        self.id, self.request = identity, request
        self.slots = slots
        """Slots of the cache that each of its streams may fill."""
        self.streams = [Stream(self, prompt)]
        """The stream that saw everything; under guidance then the one without the host's parts, if that is guided
        apart, and the one that saw nothing."""
        self.races = False
        """Whether ids of the open span are drawn by plait.generate.speculation."""
        self.span: str | None = None
        """The open modality; None for the host."""
        self.tokens: list[int] = []
        self.guesses: list[int] = []
        """Ids fed in this step that may turn out wrong (plait.generate.speculation)."""
        self.canvas: Canvas | None = None
        self.parts: list[Part] = []
        self.snapshots: list[tuple[float, Part]] = []
        self.scores: list[Score] = []
        """Of the ids of the host's text, where they are wanted; ``new_scores`` are those of what was drawn last."""
        self.new_scores: list[Score] = []
        self.host_tokens, self.num_spans, self.num_draws = 0, 0, 0
        self.draws = np.empty(0)

    @property
    def main(self) -> Stream:
        return self.streams[0]

    @property
    def open_span(self) -> str:
        """The open modality, where it is not the host."""
        assert self.span is not None, f"no span of request {self.id} is open"
        return self.span

    @property
    def open_canvas(self) -> Canvas:
        """The item of the open span, where that is denoised."""
        assert self.canvas is not None, f"nothing of request {self.id} is denoised"
        return self.canvas

    @property
    def branches(self) -> tuple[Stream, Stream, Stream]:
        """The streams that saw everything, all but the host's parts, and nothing; the same one where there is none."""
        return self.streams[0], self.streams[1 if len(self.streams) == 3 else -1], self.streams[-1]

    def uniform(self) -> float:
        """Return the row's next number in [0, 1)."""
        at = self.num_draws % DRAWS_AT_ONCE
        if at == 0:
            block = self.num_draws // DRAWS_AT_ONCE
            draw = generator(self.request.seed, "sample", item=self.request.number, position=block)
            self.draws = draw.random(DRAWS_AT_ONCE)
        self.num_draws += 1
        return float(self.draws[at])

    def key(self, place: int) -> int:
        """Return the key of the exponential numbers that draw an id of the open span; it is never 0."""
        block, at = divmod(place, DRAWS_AT_ONCE)
        return int(keys_of(self.request.seed, self.request.number, self.num_spans, block)[at])

    def draw(self, purpose: str) -> np.random.Generator:
        """Return the generator for one purpose in the open span."""
        return generator(self.request.seed, purpose, item=self.request.number, position=self.num_spans)


def adapter_numbers(streams: Sequence[Stream], model: MixtureOfTransformers) -> tuple[list[int], tuple[int, ...]]:
    """Return the number of the adapter that each stream is computed with, 0 for none, and which there are."""
    numbers = [model.adapters.names.index(s.row.request.adapter) for s in streams]
    return numbers, tuple(sorted(set(numbers) - {0}))


def asked_by(streams: Sequence[Stream], lengths: Sequence[int], model: MixtureOfTransformers) -> Asked | None:
    """Return the adapters that the tokens of documents of some lengths are computed with, None where all are plain."""
    numbers, used = adapter_numbers(streams, model)
    if not used:
        return None
    by_token = torch.tensor(numbers).repeat_interleave(torch.tensor(lengths))
    return Asked(by_token.to(model.device, non_blocking=True), used)


@functools.lru_cache(maxsize=1 << 12)
def keys_of(seed: int, number: int, span: int, block: int) -> np.ndarray:
    """Return the keys [DRAWS_AT_ONCE] of a block of places in a span of a request."""
    return generator(seed, "race", item=number, epoch=span, position=block).integers(1, 2**63, DRAWS_AT_ONCE)


@functools.lru_cache(maxsize=1 << 17)
def one(modality: str, token: int, role: str = "") -> Run:
    """Return the run of one id: a delimiter, which has no role, or a made one."""
    return Run(modality, np.array([token], dtype=np.int64), role=role)
