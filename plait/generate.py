"""Interleaved generation: text, images and speech in any order, many requests at once, with a KV cache.

`Generator` takes requests in (`add`), advances all of them by one token (`step`) and lets them go (`cancel`);
`generate` is a loop over it. A request's next id is restricted by the span that is open:

    host     ids of the host modality, <eos>, and the opening of another span where the request is free
    fixed    ids of a modality whose items have a fixed number of tokens (images), then its closing delimiter
    open     ids of a modality whose items end by themselves (speech), or its closing delimiter

With guidance, an open span has a twin that saw no condition; both are rows of the same batched forward pass.
One step costs one synchronisation, the reading of the sampled ids; `Generator.num_syncs` counts them.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from plait.batch import Batch, Document, Part, Run, assemble, spell
from plait.config import SamplingConfig
from plait.errors import ConfigError, require, unknown
from plait.model.mot import MixtureOfTransformers
from plait.objectives.next_token import sample
from plait.randomness import generator

DRAWS_AT_ONCE = 256


@dataclass
class Request:
    """What to generate: a prompt, and the modality that shall follow (None: whatever the model opens itself)."""

    prompt: list[Part] = field(default_factory=list)
    output: str | None = None
    sampling: dict[str, SamplingConfig] = field(default_factory=dict)
    """Sampling by modality of the open span; a missing one is plain sampling."""
    max_tokens: dict[str, int] = field(default_factory=dict)
    """Longest span by modality (where the modality has no fixed number)."""
    max_spans: int = 8
    """Most spans besides the host's in a free request."""
    seed: int = 0
    number: int = 0
    """Which of the requests with this seed it is: (seed, number) fixes its draws, whatever else is in the batch."""


@dataclass
class Result:
    """The generated parts of a request, and why it ended: done, eos, length or cancelled."""

    request: Request
    parts: list[Part]
    stopped: str


@dataclass(eq=False)
class _Stream:
    """One row of the cache: what it is fed next, and where it is."""

    pending: list[Run]
    position: float = 0.0


class _Row:
    """A request under way: its span, its parts so far, its stream and, under guidance, the twin's."""

    def __init__(self, identity: int, request: Request, prompt: list[Run]):
        self.id, self.request = identity, request
        self.main, self.twin = _Stream(prompt), None
        self.span: str | None = None
        """The open modality; None for the host."""
        self.tokens: list[int] = []
        self.parts: list[Part] = []
        self.host_tokens, self.num_spans, self.num_draws = 0, 0, 0
        self.draws = np.empty(0)

    def uniform(self) -> float:
        """Return the row's next number in [0, 1)."""
        at = self.num_draws % DRAWS_AT_ONCE
        if at == 0:
            block = self.num_draws // DRAWS_AT_ONCE
            draw = generator(self.request.seed, "sample", item=self.request.number, position=block)
            self.draws = draw.random(DRAWS_AT_ONCE)
        self.num_draws += 1
        return float(self.draws[at])


class Generator:
    """Advances requests together. ``grids`` gives the extent of items of fixed size, by modality."""

    def __init__(self, model: MixtureOfTransformers, *, grids: dict[str, tuple[int, ...]], max_rows: int = 32,
                 max_length: int = 2048, default_max_tokens: int = 256):  # fmt: skip
        self.model, self.grids, self.default_max_tokens = model, grids, default_max_tokens
        self.layout, self.max_rows = model.config.layout, max_rows
        # a guided row has a twin, so there are twice as many
        self.cache = model.new_cache(2 * max_rows, min(max_length, model.config.max_positions))
        self.rows: list[_Row] = []
        self.streams: list[_Stream] = []
        """By row of the cache."""
        self.num_syncs, self.num_steps, self.num_tokens = 0, 0, 0
        self._next_id = 0
        self._allowed = _AllowedIds(model, grids)

    @property
    def has_room(self) -> bool:
        """Whether another request may be added now."""
        return len(self.rows) < self.max_rows

    def add(self, request: Request) -> int:
        """Take a request in and return its id; raises ConfigError where it asks for what cannot be made."""
        check_request(request, self.model, self.cache.max_length)
        prompt = spell(Document(request.prompt), self.layout, close=False)
        row = _Row(self._next_id, request, prompt)
        self._next_id += 1
        self.rows.append(row)
        self._take(row.main)
        if request.output not in (None, self.layout.host):
            self._open(row, request.output)
        return row.id

    def cancel(self, identity: int) -> Result | None:
        """Let a request go and return what it has; None if it is not under way."""
        for row in self.rows:
            if row.id == identity:
                return self._finish(row, "cancelled")
        return None

    @torch.no_grad()
    def step(self) -> list[Result]:
        """Advance every request by one token; return those that ended."""
        if not self.rows:
            return []
        logits = self._forward()
        chosen = self._sample(logits)
        ended = [self._accept(row, token) for row, token in zip(list(self.rows), chosen, strict=True)]
        return [result for result in ended if result]

    def _forward(self) -> torch.Tensor:
        """Feed every stream what is pending; return logits [streams, V] of their last tokens."""
        config = self.model.config
        batch = assemble([s.pending for s in self.streams], config, first_positions=[s.position for s in self.streams])
        rows, back = _last_rows(batch)
        device = self.model.device
        moved = batch.to(device)
        step = self.cache.step(moved, list(range(len(self.streams))))
        hidden = self.model(moved, step)
        for stream, position in zip(self.streams, batch.next_positions, strict=True):
            stream.pending, stream.position = [], position
        self.num_steps += 1
        self.num_tokens += batch.num_tokens
        return self.model.logits(hidden, [r.to(device) for r in rows]).index_select(0, back.to(device))

    def _sample(self, logits: torch.Tensor) -> list[int]:
        """Combine rows with their twins and draw one id a row: the step's one synchronisation."""
        at = {id(s): i for i, s in enumerate(self.streams)}
        settings = [self._sampling(row) for row in self.rows]
        mains = [at[id(row.main)] for row in self.rows]
        twins = [at[id(row.twin or row.main)] for row in self.rows]
        device = logits.device
        index = torch.tensor([mains, twins], device=device)
        numbers = torch.tensor([[s.guidance, s.temperature, s.top_p, row.uniform()] for s, row in
                                zip(settings, self.rows, strict=True)], dtype=torch.float64, device=device)  # fmt: skip
        numbers = numbers.to(logits.dtype if logits.dtype == torch.float64 else torch.float32)
        top_k = torch.tensor([s.top_k for s in settings], device=device)
        given, free = (
            logits.to(numbers.dtype).index_select(0, index[0]),
            logits.to(numbers.dtype).index_select(0, index[1]),
        )
        guided = free + numbers[:, :1] * (given - free)
        allowed = self._allowed.table.index_select(0, torch.tensor([self._state(r) for r in self.rows], device=device))
        ids = sample(
            guided, numbers[:, 3], temperature=numbers[:, 1], top_k=top_k, top_p=numbers[:, 2], allowed=allowed
        )
        self.num_syncs += 1
        return ids.tolist()

    def _sampling(self, row: _Row) -> SamplingConfig:
        return row.request.sampling.get(row.span or self.layout.host, _PLAIN)

    def _state(self, row: _Row) -> int:
        """Return which ids may follow: the row of the table."""
        if row.span is None:
            free = row.request.output is None
            room = row.num_spans < row.request.max_spans
            if row.host_tokens >= self._longest(row, self.layout.host):
                return self._allowed.state["end"]
            empty = not row.host_tokens and not row.num_spans
            return self._allowed.state[("free" if free and room else "host") + (" first" if empty else "")]
        if row.span in self.grids:
            return self._allowed.state[f"fixed {row.span}"]
        if len(row.tokens) >= self._longest(row, row.span):
            return self._allowed.state[f"close {row.span}"]
        return self._allowed.state[f"open {row.span}" + ("" if row.tokens else " first")]

    def _longest(self, row: _Row, modality: str) -> int:
        return row.request.max_tokens.get(modality, self.default_max_tokens)

    def _accept(self, row: _Row, token: int) -> Result | None:
        """Take a sampled id into a row; return the result if that ends it."""
        layout = self.layout
        if row.span is None:
            return self._accept_in_host(row, token)
        if token != layout.closing[row.span]:
            row.tokens.append(token)
            self._feed(row, token, row.span)
            if row.span not in self.grids or len(row.tokens) < math.prod(self.grids[row.span]):
                return self._room(row)
        return self._close(row)

    def _accept_in_host(self, row: _Row, token: int) -> Result | None:
        layout = self.layout
        if token == layout.eos:
            return self._finish(row, "eos")
        for name, opening in layout.opening.items():
            if token == opening:
                self._end_host_part(row)
                self._open(row, name)
                return self._room(row)
        row.tokens.append(token)
        row.host_tokens += 1
        self._feed(row, token, layout.host)
        return self._room(row)

    def _room(self, row: _Row) -> Result | None:
        """End a row that the cache has no more room for."""
        used = self.cache.lengths[self.streams.index(row.main)] + sum(len(r) for r in row.main.pending)
        return self._finish(row, "length") if used + 1 > self.cache.max_length else None

    def _open(self, row: _Row, modality: str) -> None:
        row.span, row.tokens = modality, []
        row.num_spans += 1
        row.main.pending.append(_one(self.layout.host, self.layout.opening[modality]))
        if self._sampling(row).guidance != 1.0:
            start = [_one(self.layout.host, self.layout.bos), _one(self.layout.host, self.layout.opening[modality])]
            row.twin = _Stream(start)
            self._take(row.twin)

    def _close(self, row: _Row) -> Result | None:
        name = row.span
        row.parts.append(Part(name, np.array(row.tokens) - self.layout.offsets[name], grid=self.grids.get(name, ())))
        row.span, row.tokens = None, []
        if row.twin:
            self._release(row.twin)
            row.twin = None
        if row.request.output == name:
            return self._finish(row, "done")
        row.host_tokens = 0
        row.main.pending.append(_one(self.layout.host, self.layout.closing[name]))
        return self._room(row)

    def _end_host_part(self, row: _Row) -> None:
        if row.tokens:
            row.parts.append(Part(self.layout.host, np.array(row.tokens) - self.layout.offsets[self.layout.host]))
        row.tokens = []

    def _finish(self, row: _Row, stopped: str) -> Result:
        if row.span is None:
            self._end_host_part(row)
        elif row.tokens and row.span not in self.grids:  # part of a picture is no picture
            row.parts.append(Part(row.span, np.array(row.tokens) - self.layout.offsets[row.span]))
        for stream in (row.main, row.twin):
            if stream:
                self._release(stream)
        self.rows.remove(row)
        return Result(row.request, row.parts, stopped)

    def _feed(self, row: _Row, token: int, modality: str) -> None:
        for stream in (row.main, row.twin):
            if stream:
                stream.pending.append(_one(modality, token))

    def _take(self, stream: _Stream) -> None:
        self.cache.add_row()
        self.streams.append(stream)

    def _release(self, stream: _Stream) -> None:
        row = self.streams.index(stream)
        self.cache.drop_row(row)
        last = self.streams.pop()
        if last is not stream:
            self.streams[row] = last


_PLAIN = SamplingConfig()


class _AllowedIds:
    """A table [states, V] of which ids may follow, and the row of each state."""

    def __init__(self, model: MixtureOfTransformers, grids: dict[str, tuple[int, ...]]):
        layout, config = model.config.layout, model.config
        discrete = [n for n in layout.names if config.modalities[n].objective == "next_token"]
        host, openings = list(layout.ids(layout.host)), [layout.opening[n] for n in discrete if n != layout.host]
        states = {"host": [*host, layout.eos], "host first": host, "end": [layout.eos],
                  "free": [*host, layout.eos, *openings], "free first": [*host, *openings]}  # fmt: skip
        for name in discrete:
            if name == layout.host:
                continue
            ids, closing = list(layout.ids(name)), [layout.closing[name]]
            if name in grids:
                states[f"fixed {name}"] = ids
            else:
                states |= {f"open {name}": ids + closing, f"open {name} first": ids, f"close {name}": closing}
        self.state = {name: i for i, name in enumerate(states)}
        table = torch.zeros(len(states), layout.size, dtype=torch.bool)
        for i, ids in enumerate(states.values()):
            table[i, torch.tensor(ids)] = True
        self.table = table.to(model.device)


def check_request(request: Request, model: MixtureOfTransformers, max_length: int) -> None:
    """Raise a ConfigError for a request that cannot be made."""
    records = model.config.modalities
    for name in [p.modality for p in request.prompt] + ([request.output] if request.output else []):
        if name not in records:
            raise ConfigError(unknown("generate", name, records))
    if request.output:
        require(records[request.output].objective == "next_token", "generate.output", request.output,
                "a modality of discrete ids")  # fmt: skip
    for name, s in request.sampling.items():
        require(s.temperature >= 0, f"generate.sampling.{name}.temperature", s.temperature, "0 or more")
        require(0 < s.top_p <= 1, f"generate.sampling.{name}.top_p", s.top_p, "above 0 and at most 1")
        require(s.top_k >= 0, f"generate.sampling.{name}.top_k", s.top_k, "0 or more")
    length = Document(request.prompt).num_tokens(model.config.layout.host)
    require(length < max_length, "generate: the prompt's length", length, f"below {max_length} tokens")


def generate(
    model: MixtureOfTransformers,
    requests: Iterable[Request],
    *,
    grids: dict[str, tuple[int, ...]],
    max_rows: int = 32,
    max_length: int = 2048,
    on_result: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Run all requests, at most ``max_rows`` at a time, and return their results in order."""
    requests = list(requests)
    engine = Generator(model, grids=grids, max_rows=max_rows, max_length=max_length)
    waiting, results = list(reversed(requests)), {}
    while waiting or engine.rows:
        while waiting and engine.has_room:
            engine.add(waiting.pop())
        for result in engine.step():
            results[id(result.request)] = result
            if on_result:
                on_result(result)
    return [results[id(r)] for r in requests]


def _one(modality: str, token: int) -> Run:
    return Run(modality, np.array([token], dtype=np.int64))


def _last_rows(batch: Batch) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return for each tower the rows of documents' last tokens, and the order that puts them by document."""
    last = np.cumsum(batch.lengths) - 1
    rows = batch.routing.to_sequence.numpy()[last]
    edges = np.cumsum([0, *batch.routing.padded_sizes])
    tower = np.searchsorted(edges, rows, side="right") - 1
    order = np.argsort(tower, kind="stable")
    back = np.argsort(order, kind="stable")
    return _by_tower(rows - edges[tower], tower, len(edges) - 1), torch.from_numpy(back)


def _by_tower(rows: np.ndarray, tower: np.ndarray, num_towers: int) -> Sequence[torch.Tensor]:
    return [torch.from_numpy(rows[tower == k]) for k in range(num_towers)]
