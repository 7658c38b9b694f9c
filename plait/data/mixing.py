"""Which document comes next: sources mixed by weight, each in a new random order every epoch."""

import functools

import numpy as np

from plait.errors import ConfigError
from plait.randomness import generator


class MixedOrder:
    """The endless order of documents from several sources.

    Source ``k`` gives its documents in a random order of epoch 0, then of epoch 1, and so on; no document comes twice
    in an epoch. Sources take turns so that at any time each has given its share, whatever their sizes. Where the
    order stands is the number of documents taken from each source, nothing else.
    """

    def __init__(self, sizes: list[int], weights: list[float], seed: int):
        for size, weight in zip(sizes, weights, strict=True):
            if size < 1 or not weight > 0:
                raise ConfigError(f"data.sources: weight {weight!r} for {size} documents, both must be above 0")
        self.sizes = sizes
        self.shares = np.array(weights, float) / sum(weights)
        self.seed = seed
        self._order = functools.lru_cache(maxsize=max(4, 2 * len(sizes)))(self._draw_order)

    def take(self, taken: list[int], count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
        """Return source, epoch and document of the next ``count``, all [count], and what is taken afterwards."""
        source = self._turns(taken, count)
        epoch, document = np.empty(count, np.int64), np.empty(count, np.int64)
        after = list(taken)
        for k, size in enumerate(self.sizes):
            mine = np.flatnonzero(source == k)
            after[k] += len(mine)
            epoch[mine], place = np.divmod(np.arange(taken[k], after[k]), size)
            for e in range(taken[k] // size, -(-after[k] // size)):
                here = epoch[mine] == e
                document[mine[here]] = self._order(k, e)[place[here]]
        return source, epoch, document, after

    def _turns(self, taken: list[int], count: int) -> np.ndarray:
        """Source k's j-th document is due at (j + 1/2) / share_k; the earliest are next."""
        due = [(np.arange(n, n + count) + 0.5) / share for n, share in zip(taken, self.shares, strict=True)]
        source = np.repeat(np.arange(len(due)), count)
        return source[np.lexsort((source, np.concatenate(due)))[:count]]

    def _draw_order(self, source: int, epoch: int) -> np.ndarray:
        return generator(self.seed, "order of documents", item=source, epoch=epoch).permutation(self.sizes[source])
