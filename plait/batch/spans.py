"""Spans of a batch, and THE routing key: which tower carries which token."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plait.common.errors import ConfigError
from plait.common.randomness import generator
from plait.config.model import ModelConfig


@dataclass(frozen=True)
class Span:
    """A run's place in the batch: tokens [start, start + length) of one document."""

    modality: str
    role: str
    grid: tuple[int, ...]
    start: int
    length: int
    document: int
    bidirectional: bool
    noised: bool = False
    hidden: bool = False

    @property
    def stop(self) -> int:
        return self.start + self.length


def tower_of(span: Span, config: ModelConfig) -> str:
    """Return the tower of a span's tokens: the routing key is its modality, noise state and role.

    Where a modality's tokens are dealt out (`tower_at_random`), only `towers_of` knows the tower of each.
    """
    record = config.modalities[span.modality]
    by_role = record.tower_by_role.get(span.role, record.tower)
    return record.tower_by_noise.get("noised" if span.noised else "clean", by_role)


def refuse_generation(config: ModelConfig) -> None:
    """Raise a ConfigError for a model whose tokens are dealt out at random, as a request is no document."""
    for name, modality in config.modalities.items():
        if modality.tower_at_random:
            raise ConfigError(
                f"model.modalities.{name}.tower_at_random: tokens are dealt out by their document, so this model "
                "cannot generate; it is a control for training"
            )


def towers_of(spans: Sequence[Span], config: ModelConfig, documents: Sequence[int] | None = None) -> np.ndarray:
    """Return the number of each token's tower [T], in the config's order of towers.

    ``documents`` are the indices by which tokens are dealt out at random: a draw depends on the document's index and
    the token's place in it alone, so neither on packing nor on ranks. Raises ConfigError where they are needed and
    not given.
    """
    names = list(config.towers)
    towers = np.repeat([names.index(tower_of(s, config)) for s in spans], [s.length for s in spans])
    dealt = {name: m.tower_at_random for name, m in config.modalities.items() if m.tower_at_random}
    if not dealt:
        return towers
    if documents is None:
        refuse_generation(config)
    assert documents is not None, "a model that deals out tokens at random is refused without indices"
    for number, group in itertools.groupby(spans, key=lambda s: s.document):
        document_spans = list(group)
        start, stop = document_spans[0].start, document_spans[-1].stop
        draws = generator(0, "tower", item=documents[number]).random(stop - start)
        for span in document_spans:
            if among := dealt.get(span.modality):
                numbers = np.array([names.index(tower) for tower in among])
                chosen = draws[span.start - start : span.stop - start] * len(among)
                towers[span.start : span.stop] = numbers[chosen.astype(np.int64)]
    return towers
