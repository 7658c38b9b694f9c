"""What streams have in common at their beginning is computed once, and kept once where the cache has pages.

Samples of one prompt begin alike, and so do the branches of guidance. A stream that has not begun takes the keys and
values of another that begins like it; where none of the two has begun, one of them is fed the common part first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from plait.batch import Run
from plait.generate.rows import Stream
from plait.model.cache import KVCache
from plait.model_config import ModelConfig

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
    for i, stream in enumerate(streams):
        if cache.lengths[i]:
            continue
        # the last token is fed in any case: what follows is drawn from its hidden state
        most = sum(map(len, stream.pending)) - 1
        others = [j for j in range(len(streams)) if j not in takers and (j < i or cache.lengths[j])]
        lengths = [in_common(stream.prompt, streams[j].prompt) for j in others]
        if others and max(lengths) >= LEAST_SHARED:
            length = whole_runs(stream.pending, min(most, max(lengths)), config)
            takers[i] = Shared(i, others[lengths.index(max(lengths))], length)
    return list(takers.values())


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
            first.append(replace(run, ids=run.ids[:n]))
            rest.append(replace(run, ids=run.ids[n:]))
    return first, rest


def _alike(x: Run, y: Run) -> bool:
    same = x.modality == y.modality and x.role == y.role and tuple(x.grid) == tuple(y.grid)
    return same and _equal(x.ids, y.ids) and _equal(x.latents, y.latents)


def _equal(x: np.ndarray | None, y: np.ndarray | None) -> bool:
    return x is y or (x is not None and y is not None and np.array_equal(x, y))


def _ids_in_common(x: Run, y: Run) -> int:
    """Return how many ids two different runs begin with alike."""
    if x.ids is None or y.ids is None or x.modality != y.modality or x.role != y.role:
        return 0
    n = min(len(x), len(y))
    differ = np.flatnonzero(x.ids[:n] != y.ids[:n])
    return int(differ[0]) if len(differ) else n
