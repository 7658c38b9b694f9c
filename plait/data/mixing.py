"""Which document comes next: sources mixed by weight, each in a new random order every epoch."""

from collections.abc import Sequence

import numpy as np

from plait.common.errors import ConfigError
from plait.common.randomness import permuted
from plait.config.run import SourceConfig


class MixedOrder:
    """The order of documents from several sources.

    Source ``k`` gives its documents in a random order of epoch 0, then of epoch 1, and so on; no document comes twice
    in an epoch. Sources take turns so that at any time each has given its share, whatever their sizes. Where the
    order stands is the number of documents taken from each source, nothing else.

    A source that has given all its documents begins its next epoch (``repeat``), leaves the mixture to the others
    (``drop``), or ends it where it would have to begin again (``stop``). So the order is endless where one source
    repeats and none stops.
    """

    def __init__(self, sizes: Sequence[int], sources: Sequence[SourceConfig], seed: int):
        for size, source in zip(sizes, sources, strict=True):
            if size < 1 or not source.weight > 0:
                raise ConfigError(f"data.sources: weight {source.weight!r} for {size} documents, both must be above 0")
        self.sizes = list(sizes)
        weights = np.array([source.weight for source in sources], float)
        self.shares = weights / weights.sum()
        self.policies = [source.when_exhausted for source in sources]
        self.seed = seed

    def take(self, taken: list[int], count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
        """Return source, epoch and document of the next ``count``, all [count], and what is taken afterwards.

        They are fewer where the order ends.
        """
        source = self._turns(taken, count)
        epoch, document = np.empty(len(source), np.int64), np.empty(len(source), np.int64)
        after = list(taken)
        for k, size in enumerate(self.sizes):
            of_source = np.flatnonzero(source == k)
            after[k] += len(of_source)
            epoch[of_source], positions = np.divmod(np.arange(taken[k], after[k]), size)
            for e in range(taken[k] // size, -(-after[k] // size)):
                here = epoch[of_source] == e
                order = permuted(positions[here], size, self.seed, "order of documents", item=k, epoch=e)
                document[of_source[here]] = order
        return source, epoch, document, after

    def _turns(self, taken: list[int], count: int) -> np.ndarray:
        """Source k's j-th document is due at (j + 1/2) / share_k; the earliest are next."""
        due, ends = [], []
        for k, (n, share) in enumerate(zip(taken, self.shares, strict=True)):
            last = n + count if self.policies[k] == "repeat" else min(n + count, self.sizes[k])
            due.append((np.arange(n, last) + 0.5) / share)
            if self.policies[k] == "stop":
                ends.append(((self.sizes[k] + 0.5) / share, k))
        source = np.repeat(np.arange(len(due)), [len(d) for d in due])
        moments = np.concatenate(due)
        order = np.lexsort((source, moments))[:count]
        if ends:
            time, k = min(ends)
            order = order[(moments[order] < time) | ((moments[order] == time) & (source[order] < k))]
        return source[order]
