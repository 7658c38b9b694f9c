"""How documents become a batch: spelt as runs of tokens, placed, and routed to towers.

Everything is built on the host with NumPy, so that tower sizes are Python integers and no device is ever asked how many
tokens a tower has. Shapes are those of `plait.batch.batch`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from plait.batch.batch import Batch, Latents, Place, Routing, Targets
from plait.batch.documents import Document, Part, as_given, check_parts, role_of
from plait.batch.spans import Span, towers_of
from plait.common.errors import require
from plait.config.bounds import Bounds, as_number
from plait.config.id_layout import IdLayout
from plait.config.model import ModelConfig


@dataclass
class Run:
    """Consecutive tokens of one modality and role: ids are global here."""

    modality: str
    ids: np.ndarray | None = None
    latents: np.ndarray | None = None
    grid: tuple[int, ...] = ()
    role: str = ""
    loss: float = 1.0
    noised: bool = False
    """Whether the objective noises these latents and learns from them."""
    hidden: bool = False
    """Whether no later run sees these tokens."""
    is_copy: bool = False
    """Whether this is the clean copy of the run before it, at the same positions."""
    offset: int = 0
    """Which token of its item is the first one here: generation feeds an item of an extent bit by bit."""
    skipped: float = 0.0
    """Positions before it that nothing is fed for: an item that no later run sees has them."""

    def __len__(self) -> int:
        data = self.latents if self.ids is None else self.ids
        assert data is not None, f"a run of {self.modality} without ids or latents"
        return len(data)


def spell(document: Document, config: ModelConfig, *, close: bool = True, noised: bool = True) -> list[Run]:
    """Write a document as runs of tokens: <bos>, host ids bare, other parts between their delimiters, <eos>.

    Text that begins with <bos> itself, or ends the document with an id that ends texts, gets no other: a chat template
    writes both. ``close=False`` leaves out the <eos>, so that generation can go on; ``noised=False`` is for what is
    there already: latents stay clean, and made ones that nothing later sees are left out, but for their positions.
    """
    layout = config.layout
    bos = layout.bos
    runs = [] if bos is None or edge_id(document, layout, 0) == bos else [_delimiter(layout, bos)]
    for i, part in enumerate(document.parts):
        if part.modality == layout.host:
            runs.append(_ids_run(part, layout))
            continue
        # what is given stands there as the modality has it that reads it, or as both have it
        reader = config.readers.get(part.modality) if part.role == "understanding" else None
        if reader is None or config.modalities[reader].beside:
            runs += _between_delimiters(part, config, noised, last=close and i == len(document.parts) - 1)
        if reader is not None:
            assert part.features is not None, f"a given part of {part.modality} without features"
            runs += _between_delimiters(part.features, config, noised, last=False)
    is_open = close and edge_id(document, layout, -1) not in layout.stops
    return runs + ([_delimiter(layout, layout.eos)] if is_open else [])


def edge_id(document: Document, layout: IdLayout, at: int) -> int | None:
    """Return a document's first (0) or last (-1) id where its text has it, else None."""
    part = document.parts[at] if document.parts else None
    ids = part.ids if part is not None and part.modality == layout.host else None
    return int(ids[at]) if ids is not None and len(ids) else None


def _between_delimiters(part: Part, config: ModelConfig, noised: bool, *, last: bool) -> list[Run]:
    """Write a part that is not the host's; ``last``: nothing of its document follows."""
    layout, record = config.layout, config.modalities[part.modality]
    if record.objective == "input":  # it is always given, and nothing of it is learned
        part = replace(part, role=role_of(given=True), loss=0.0)
    opening = _delimiter(layout, layout.opening[part.modality], float(part.loss > 0))
    # the closing delimiter is learned with the part: it is how speech stops
    closing = _delimiter(layout, layout.closing[part.modality], part.loss)
    if part.ids is not None:
        return [opening, _ids_run(part, layout), closing]
    if not noised and record.later_sees == "nothing" and part.role == "generation":
        closing.skipped = position_after(_latents_run(part), 0.0, config)
        return [opening, closing]
    return [opening, *_latent_runs(part, record.later_sees, noised, last), closing]


def spell_prompt(given: Sequence[Part], config: ModelConfig, made: Sequence[Part] = ()) -> list[Run]:
    """Write what generation continues: parts that are given, and parts that were made after them.

    Training writes the same for a document in which they stand before what follows.
    """
    document = Document([*as_given(given), *made])
    return [run for run in spell(document, config, close=False, noised=False) if len(run)]


def _ids_run(part: Part, layout: IdLayout) -> Run:
    ids = np.asarray(part.ids, dtype=np.int64) + layout.offsets[part.modality]
    return Run(part.modality, ids, None, part.grid, part.role, part.loss)


def _latents_run(part: Part) -> Run:
    return Run(part.modality, None, part.latents, part.grid, part.role, part.loss)


def _latent_runs(part: Part, later_sees: str, noised: bool, last: bool) -> list[Run]:
    """Write a continuous part: as it is, or a noised run that nothing later sees, with a clean copy where needed.

    A part without loss stays clean. A given part (role understanding) is noised only where later tokens see noised
    ones, as in Transfusion.
    """
    clean = _latents_run(part)
    if not noised or not part.loss or (later_sees != "noised" and part.role == "understanding"):
        return [clean]
    if later_sees == "noised":
        return [replace(clean, noised=True)]
    copies = [replace(clean, is_copy=True)] if later_sees == "clean_copy" and not last else []
    return [replace(clean, noised=True, hidden=True), *copies]


def _delimiter(layout: IdLayout, token: int, loss: float = 1.0) -> Run:
    return Run(layout.host, np.array([token], dtype=np.int64), loss=loss)


def pack(documents: Sequence[Document], config: ModelConfig, *, pad_rows_to: int = 32) -> Batch:
    """Build the batch that holds these documents one after another (raises ConfigError for what does not fit)."""
    pad_rows_to = as_number(pad_rows_to, int, "pad_rows_to", Bounds(at_least=1))
    fine = isinstance(documents, list | tuple) and documents and all(isinstance(d, Document) for d in documents)
    require(bool(fine), "documents", documents, "a list of plait.Document, at least one")
    for i, document in enumerate(documents):
        check_parts(document.parts, config, f"document {i}")
    return pack_checked(documents, config, pad_rows_to)


def pack_checked(documents: Sequence[Document], config: ModelConfig, pad_rows_to: int) -> Batch:
    """Build the batch of documents that are known to fit, such as those of prepared data."""
    indices = [d.index for d in documents]
    batch = assemble([spell(d, config) for d in documents], config, pad_rows_to=pad_rows_to, indices=indices)
    batch.documents = list(documents)
    return batch


def assemble(
    sequences: Sequence[list[Run]],
    config: ModelConfig,
    *,
    pad_rows_to: int = 1,
    first_positions: Sequence[float] | None = None,
    indices: Sequence[int] | None = None,
) -> Batch:
    """Build a batch of sequences of runs, each sequence its own document.

    ``first_positions`` says where each document's positions start (a decoding step goes on where its row is);
    ``indices`` are the documents' own, which models that deal tokens out at random need (raises ConfigError).
    """
    spans, positions, ends = _place(sequences, config, first_positions)
    runs = [run for sequence in sequences for run in sequence if len(run)]
    ids = np.concatenate([np.zeros(len(r), np.int64) if r.ids is None else r.ids for r in runs])
    lengths = [sum(len(r) for r in s) for s in sequences]
    towers = towers_of(spans, config, indices)
    routing, order, starts = _route(towers, len(config.towers), pad_rows_to)
    targets, counts = _targets(runs, spans, ids, towers, order, starts, lengths, config)
    latents = _latents(runs, spans, towers, routing, starts, config)
    for name, group in latents.items():
        counts[config.layout.names.index(name)] = float(sum(group.noised))
    return Batch(
        torch.from_numpy(ids), torch.from_numpy(positions), routing, spans, targets, latents, counts, lengths, ends
    )


def _place(
    sequences: Sequence[list[Run]], config: ModelConfig, first_positions: Sequence[float] | None
) -> tuple[list[Span], np.ndarray, list[float]]:
    """Return spans, positions [T, A] and each document's next position."""
    spans: list[Span] = []
    positions: list[np.ndarray] = []
    ends: list[float] = []
    axes, at = len(config.position_axes), 0
    for d, sequence in enumerate(sequences):
        p = before = float(first_positions[d]) if first_positions is not None else 0.0
        for run in sequence:
            if not len(run):
                continue
            record = config.modalities[run.modality]
            bidirectional = record.attention_by_role.get(run.role, record.attention) == "bidirectional"
            spans.append(Span(run.modality, run.role, run.grid, at, len(run), d, bidirectional, run.noised, run.hidden))
            before = before if run.is_copy else p
            block, p = _positions(run, before, axes)
            positions.append(block)
            at += len(run)
        ends.append(p)
    return spans, np.concatenate(positions).astype(np.float32), ends


def _positions(run: Run, start: float, axes: int) -> tuple[np.ndarray, float]:
    """Return the positions [n, A] of a run and where the next one starts (mRoPE, arXiv 2409.12191, section 2.1).

    With one axis, tokens count up. With several, a token without a grid has the same coordinate on all axes, and a
    grid spreads over the last axes from the start position on.
    """
    n, start = len(run), start + run.skipped
    if axes == 1 or not run.grid:
        return np.repeat(start + np.arange(n, dtype=np.float64)[:, None], axes, axis=1), start + n
    extent = (1,) * (axes - len(run.grid)) + tuple(run.grid[-axes:])
    size = math.prod(extent)
    places = np.minimum(run.offset + np.arange(n), size - 1)
    after = start + max(extent) if run.offset + n >= size else start  # what is left of the item starts where it did
    return start + np.stack(np.unravel_index(places, extent), axis=1), after


def place_runs(runs: Sequence[Run], start: float, config: ModelConfig) -> tuple[np.ndarray, float]:
    """Return the positions [n, A] of runs one after another, and where the first run ends."""
    axes, blocks, ends = len(config.position_axes), [], []
    for run in runs:
        block, start = _positions(run, start, axes)
        blocks.append(block)
        ends.append(start)
    return np.concatenate(blocks), ends[0]


def position_after(run: Run, start: float, config: ModelConfig) -> float:
    """Return where the run after this one starts."""
    return _positions(run, start, len(config.position_axes))[1]


def _route(towers: np.ndarray, num_towers: int, pad_rows_to: int) -> tuple[Routing, np.ndarray, np.ndarray]:
    """Return the routing, the stable order of tokens by tower, and each tower's first row."""
    order = np.argsort(towers, kind="stable")
    sizes = np.bincount(towers, minlength=num_towers)
    padded = sizes
    if pad_rows_to > 1:
        padded = np.maximum(-(-sizes // pad_rows_to), 1) * pad_rows_to
    starts = np.concatenate([[0], np.cumsum(padded)[:-1]])
    rank_in_tower = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    to_sequence = np.empty(len(order), np.int64)
    to_sequence[order] = starts[towers[order]] + rank_in_tower
    to_towers = np.zeros(int(padded.sum()), np.int64)
    to_towers[to_sequence] = np.arange(len(order))
    routing = Routing(sizes.tolist(), padded.tolist(), torch.from_numpy(to_towers), torch.from_numpy(to_sequence))
    return routing, order, starts


def _targets(
    runs: list[Run],
    spans: list[Span],
    ids: np.ndarray,
    towers: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
    lengths: list[int],
    config: ModelConfig,
) -> tuple[Targets, list[float]]:
    """A discrete token predicts the next one of its document, if that is discrete too."""
    layout = config.layout
    span_lengths = [s.length for s in spans]
    discrete = np.repeat([r.ids is not None for r in runs], span_lengths)
    weight = np.repeat([r.loss for r in runs], span_lengths)
    owner = np.repeat([layout.names.index(s.modality) for s in spans], span_lengths)
    for name, closing in layout.closing.items():
        owner[(ids == closing) & discrete] = layout.names.index(name)
    document = np.repeat(np.arange(len(lengths)), lengths)
    has_next = np.zeros(len(ids), bool)
    has_next[:-1] = (document[1:] == document[:-1]) & discrete[:-1] & discrete[1:] & (weight[1:] > 0)
    source = order[has_next[order]]
    rows_of_tower = np.empty(len(ids), np.int64)
    rows_of_tower[order] = np.arange(len(ids)) - np.repeat(
        np.searchsorted(towers[order], np.arange(len(starts))), np.bincount(towers, minlength=len(starts))
    )
    rows = [torch.from_numpy(rows_of_tower[source[towers[source] == k]]) for k in range(len(starts))]
    counts = np.bincount(owner[source + 1], weights=weight[source + 1], minlength=len(layout.names))
    targets = Targets(
        rows,
        torch.from_numpy(ids[source + 1]),
        torch.from_numpy(owner[source + 1]),
        torch.from_numpy(weight[source + 1].astype(np.float32)),
        torch.from_numpy(document[source]),
    )
    return targets, counts.tolist()


def _latents(
    runs: list[Run],
    spans: list[Span],
    towers: np.ndarray,
    routing: Routing,
    starts: np.ndarray,
    config: ModelConfig,
) -> dict[str, Latents]:
    """Group the continuous tokens by modality, with the rows of the towers that carry them."""
    groups = {}
    to_sequence = routing.to_sequence.numpy()
    for name in config.layout.names:
        pairs = [(r, s) for r, s in zip(runs, spans, strict=True) if r.latents is not None and s.modality == name]
        if not pairs:
            continue
        tokens = np.concatenate([np.arange(s.start, s.stop) for _, s in pairs])
        places = {}
        for k, tower in enumerate(config.towers):
            chosen = np.flatnonzero(towers[tokens] == k)
            if len(chosen):
                rows = to_sequence[tokens[chosen]] - starts[k]
                grids = [s.grid or (s.length,) for _, s in pairs if towers[s.start] == k]
                places[tower] = Place(torch.from_numpy(chosen), torch.from_numpy(rows), grids)
        groups[name] = Latents(
            torch.from_numpy(np.concatenate([r.latents for r, _ in pairs]).astype(np.float32)),
            torch.from_numpy(np.repeat(np.arange(len(pairs)), [s.length for _, s in pairs])),
            places,
            [s.length for _, s in pairs],
            [s.document for _, s in pairs],
            [s.noised for _, s in pairs],
        )
    return groups
