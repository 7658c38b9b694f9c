"""Packing: documents of any length to bins of a fixed number of tokens, and what happens to longer ones.

Which documents share a bin is a plain function of an ordered list of lengths. It knows nothing of ranks: they take
slices of its bins, so the same documents are seen however the work is cut.
"""

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

LOOK_AHEAD = 256
"""Entries among which the one that fills a bin best is looked for."""

EDGES = 2
"""Tokens that every document adds: <bos> and <eos>."""


def plan_bins(lengths: Sequence[int] | np.ndarray, budget: int, *, look_ahead: int = LOOK_AHEAD) -> list[list[int]]:
    """Return bins of at most ``budget`` tokens, as lists of indices into ``lengths``; every index is in one bin.

    A bin takes entries in order while they fit, then those among the next ``look_ahead`` that fill it best. So the
    oldest entry is always placed next, and nothing waits for long. Raises ValueError for a length above the budget.
    """
    lengths = [int(n) for n in lengths]
    if lengths and max(lengths) > budget:
        raise ValueError(f"length {max(lengths)} is above the budget of {budget}")
    bins: list[list[int]] = []
    placed = bytearray(len(lengths))
    pool: list[tuple[int, int]] = []  # (length, -index) of the waiting entries: the last that fits is the best, oldest
    oldest = known = 0
    while oldest < len(lengths):
        room, chosen = budget, []
        while True:
            while known < len(lengths) and len(pool) < look_ahead:
                insort(pool, (lengths[known], -known))
                known += 1
            while oldest < len(lengths) and placed[oldest]:
                oldest += 1
            if oldest == len(lengths):
                break
            if lengths[oldest] <= room:
                at = bisect_right(pool, (lengths[oldest], -oldest)) - 1
            else:
                at = bisect_right(pool, (room, 1)) - 1
            if at < 0:
                break
            length, negative = pool.pop(at)
            placed[-negative] = 1
            chosen.append(-negative)
            room -= length
        bins.append(chosen)
    return bins


def efficiency(lengths: Sequence[int] | np.ndarray, bins: Sequence[Sequence[int]], budget: int) -> float:
    """Return the share of positions that the bins fill."""
    return float(sum(int(lengths[i]) for chosen in bins for i in chosen) / (len(bins) * budget)) if bins else 1.0


@dataclass(frozen=True)
class PartSize:
    """What cutting has to know of one part."""

    length: int
    """Tokens without delimiters."""
    delimiters: int
    """Tokens beyond these: 0 for the host modality, else 2, and those of its clean copy where it has one. Where
    features stand in its place, what these take more; below 0 where they take less."""
    whole: bool
    """Never cut: a part with an extent in two dimensions, such as an image, with a clean copy, or read as features."""
    copy: int = 0
    """Tokens of its clean copy among the delimiters; the last part of a document has none."""


@dataclass
class Cut:
    """What became of a document that was too long."""

    pieces: list[list[tuple[int, int, int]]] = field(default_factory=list)
    """For each new document, its (part, start, stop)."""
    parts_skipped: int = 0
    """Parts that stand in no piece."""


def cut_document(parts: Sequence[PartSize], limit: int, policy: str) -> Cut:
    """Cut a document of more than ``limit`` tokens by the policy ``split | truncate | skip``.

    ``split`` keeps parts whole where a document can hold them; a longer one is cut where the document is full (at
    once, if at least half of it is left, else in the next one). ``truncate`` keeps what fits, from the start.
    """
    pieces = {"skip": lambda *_: [], "truncate": _truncate, "split": _split}[policy](parts, limit)
    return Cut(pieces, len(parts) - len({k for piece in pieces for k, _, _ in piece}))


def _split(parts: Sequence[PartSize], limit: int) -> list[list[tuple[int, int, int]]]:
    pieces: list[list[tuple[int, int, int]]] = []
    current: list[tuple[int, int, int]] = []
    full = limit - EDGES
    room = full
    for k, part in enumerate(parts):
        size = part.length + part.delimiters
        if size > full and (part.whole or full <= part.delimiters):
            continue
        if size > room and (size <= full or room < full // 2 or room <= part.delimiters):
            pieces.append(current)
            current, room = [], full
        start = 0
        while start < part.length:
            if room <= part.delimiters:
                pieces.append(current)
                current, room = [], full
            stop = min(part.length, start + room - part.delimiters)
            current.append((k, start, stop))
            room -= stop - start + part.delimiters
            start = stop
    return [piece for piece in [*pieces, current] if piece]


def _truncate(parts: Sequence[PartSize], limit: int) -> list[list[tuple[int, int, int]]]:
    piece, room = [], limit - EDGES
    for k, part in enumerate(parts):
        stop = min(part.length, room - part.delimiters)
        if stop <= 0 or (stop < part.length and part.whole):
            break
        piece.append((k, 0, stop))
        room -= stop + part.delimiters
    return [piece] if piece else []
