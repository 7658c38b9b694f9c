"""What streams have in common at their beginning is computed once, and kept once where the cache has pages.

Samples of one prompt begin alike, and so do the branches of guidance. A stream that has not begun takes the keys and
values of another that begins like it; where none of the two has begun, one of them is fed the common part first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from plait.batch.assemble import Run
from plait.config.model import ModelConfig
from plait.generate.rows import Stream
from plait.model.cache import KVCache

LEAST_SHARED = 16
"""Fewer tokens in common are not worth a copy."""


@dataclass
class Shared:
    """A stream that has not begun, another that begins like it, and the number of tokens in common."""

    stream: int
    other: int
    length: int


def find(streams: Sequence[Stream], cache: KVCache, config: ModelConfig) -> list[Shared]:
    """Return for streams that have not begun from which others they can take how much; never through a third."""
    takers: dict[int, Shared] = {}
    if all(cache.lengths):
        return []
    # the last token is fed in any case: what follows is drawn from its hidden state
    most = [sum(map(len, s.pending)) - 1 for s in streams]
    for i, stream in enumerate(streams):
        if cache.lengths[i]:
            continue
        best = None
        for j, other in enumerate(streams):
            if j in takers or not (cache.lengths[j] or j < i):
                continue
            if other.row.request.adapter != stream.row.request.adapter:
                continue
            length = min(in_common(stream.prompt, other.prompt), most[i])
            length = length if cache.lengths[j] else min(length, most[j])
            if length >= LEAST_SHARED and (best is None or length > best.length):
                best = Shared(i, j, length)
        if best:
            best.length = whole_runs(stream.pending, best.length, config)
            takers[i] = best
    return [s for s in takers.values() if s.length]


def in_common(a: Sequence[Run], b: Sequence[Run]) -> int:
    """Return how many tokens two sequences of runs have in common at their beginning."""
    if a is b:
        return sum(map(len, a))
    count = 0
    for x, y in zip(a, b, strict=False):
        if x is not y and not _alike(x, y):
            return count + _ids_in_common(x, y)
        count += len(x)
    return count


def whole_runs(runs: Sequence[Run], length: int, config: ModelConfig) -> int:
    """Return the most tokens, up to a length, after which runs can be cut: nowhere in one that sees all of itself, or
    has an extent in space."""
    before = 0
    for run in runs:
        if length < before + len(run):
            record = config.modalities[run.modality]
            causal = record.attention_by_role.get(run.role, record.attention) == "causal"
            return length if causal and run.ids is not None and not run.grid else before
        before += len(run)
    return before


def cut(runs: Sequence[Run], length: int) -> tuple[list[Run], list[Run]]:
    """Return the runs of the first ``length`` tokens, and those of the others."""
    first, rest = [], []
    for run in runs:
        n = min(len(run), length)
        length -= n
        if n == len(run) and n:
            first.append(run)
        elif not n:
            rest.append(run)
        else:
            assert run.ids is not None, "latents see all of themselves: they are not cut"
            first.append(replace(run, ids=run.ids[:n]))
            rest.append(replace(run, ids=run.ids[n:]))
    return first, rest


def _alike(x: Run, y: Run) -> bool:
    if len(x) != len(y) or x.modality != y.modality or x.role != y.role or tuple(x.grid) != tuple(y.grid):
        return False
    if x.ids is None or y.ids is None:
        if x.latents is None or y.latents is None:
            return False
        return x.ids is y.ids and np.array_equal(x.latents, y.latents)
    return x.ids[0] == y.ids[0] and np.array_equal(x.ids, y.ids)


def _ids_in_common(x: Run, y: Run) -> int:
    """Return how many ids two different runs begin with alike."""
    if x.ids is None or y.ids is None or x.modality != y.modality or x.role != y.role or x.ids[0] != y.ids[0]:
        return 0
    n = min(len(x), len(y))
    differ = np.flatnonzero(x.ids[:n] != y.ids[:n])
    return int(differ[0]) if len(differ) else n
