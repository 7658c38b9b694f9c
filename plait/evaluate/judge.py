"""What every judge is: it measures items of one kind that a model made, beside those of the held-out documents.

Which one judges what depends on the kind of the codec's media (JUDGES); a codec of any other kind names its own
(`Codec.judge`), a class in its own file.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from plait.codecs import Codec, Media
from plait.config.run import EvaluateConfig
from plait.evaluate.held import Held
from plait.evaluate.measures import Measure, hits_array, hits_list, hits_share, share_of

JUDGES = {
    "text": "plait.evaluate.text_judge:TextJudge",
    "image": "plait.evaluate.image_judge:ImageJudge",
    "audio": "plait.evaluate.speech_judge:SpeechJudge",
}
"""By kind of media, as package.module:Class; imported when used."""


OF_SETS = ("neighbour", "copied", "in_training", "precision", "recall")
"""Measures of how near items are to training's, and to other documents'."""


@dataclass
class Found:
    """What a judge found of a set of made items."""

    measures: dict[str, Measure] = field(default_factory=dict)
    """Scores by name, with their intervals."""
    beside: dict[str, float] = field(default_factory=dict)
    """What other items score by the same judge, as NAME_real, NAME_codec, NAME_chance."""
    ranking: list[float] | None = None
    """How good each item is, higher is better: examples are chosen by it. None where items cannot be ordered."""
    ranked_by: str = ""
    """What the ranking is, for people."""

    def add_hits(
        self, said: str, own: np.ndarray, beside: Mapping[str, np.ndarray], chance: float | None
    ) -> None:  # fmt: skip
        """Add how often items are right in something that the source knows: their own hits, as they are kept, and of
        the sets beside them, by how the names of their figures end."""
        self.measures[f"{said}_accuracy"] = share_of(hits_list(own))
        self.beside |= {f"{said}_chance": chance} if chance is not None else {}
        self.beside |= {f"{said}_{end}": hits_share(kept) for end, kept in beside.items() if (kept >= 0).any()}

    def of_items(self) -> "Found":
        """Return what says how near items are to their documents': not sets, nor what training has to do with them."""
        kept = {n: m for n, m in self.measures.items() if m.items is not None and n not in OF_SETS}
        begins = (*(name.removesuffix("_accuracy") for name in kept), "codec_")
        beside = {name: value for name, value in self.beside.items() if name.startswith(begins)}
        return Found(kept, beside, self.ranking, self.ranked_by)

    def figures(self) -> dict[str, float]:
        """Return all as flat figures."""
        tried = {name: measure for name, measure in self.measures.items() if measure.count}  # else there is no score
        flat = {name: value for key, measure in tried.items() for name, value in measure.figures(key).items()}
        return flat | self.beside


class Judge(ABC):
    """Measures made items of one kind of media. Subclass it for media of your own (docs/add_a_modality.md)."""

    setting: ClassVar[str] = "items"
    """Setting of `evaluate` that says how many items are made."""
    modules: ClassVar[Sequence[str]] = ()
    """Modules that it needs (`plait.evaluate.measures.PACKAGES`): without one of them it is left out, with a line."""

    def __init__(self, config: EvaluateConfig):
        """Load what it judges by. Raises a PlaitError where what a setting names cannot be had."""
        self.config = config

    @classmethod
    def needed(cls, config: EvaluateConfig) -> Sequence[str]:
        """Return the modules that it needs with these settings."""
        return cls.modules

    @abstractmethod
    def measure(self, made: Sequence[Media], held: Held) -> Found:
        """Measure ``made``, an item for each of ``held.documents`` in their order."""


def judge_class(codec: Codec) -> type[Judge] | None:
    """Return the class that judges a codec's media, None where nobody does."""
    name = codec.judge or JUDGES.get(codec.kind, "")
    if not name:
        return None
    module, _, cls = name.partition(":")
    found: type[Judge] = getattr(importlib.import_module(module), cls)
    return found


def known_hits(items: Sequence[Media], held: Held) -> dict[str, np.ndarray]:
    """Return what the source of the data says of items, one for each document: "hit_NAME" to hits, as they are kept."""
    known = held.truths.item_scores(held.codec.kind, items, held.metas) if held.truths else {}
    return {f"hit_{name}": hits_array(values) for name, values in known.items()}
