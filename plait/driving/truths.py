"""What is true of traffic: what happens in a scene, read from its simulation; a `plait.prepare.raw.Truths`."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from plait.codecs import Media
from plait.driving.events import AHEAD, DENSITIES, LANE_NAMES, Happening, happening, read_sentence, sentence
from plait.driving.simulate import watch

FIELDS = ("density", "lane", "ahead", "cut_ins", "overtaken")
"""What a sentence says, in its order."""


def meta_of(what: Happening) -> dict[str, Any]:
    """Return what is written beside a document of a scene, in plain JSON types."""
    return {"caption": sentence(what), "happening": asdict(what)}


def happening_of(meta: dict[str, Any]) -> Happening | None:
    """Undo `meta_of`; None for a document of a drive."""
    said: dict[str, Any] | None = meta.get("happening")
    if said is None:
        return None
    return Happening(**said | {name: tuple(said[name]) for name in ("cut_ins", "overtaken")})


def hits_of(found: Sequence[Happening | None], metas: Sequence[dict[str, Any]]) -> dict[str, list[bool | None]]:
    """Return whether what was found is what the documents say: all of it (event), and each of `FIELDS`."""
    truths = [happening_of(meta) for meta in metas]
    pairs = list(zip(found, truths, strict=True))
    hits: dict[str, list[bool | None]] = {"event": [None if true is None else a == true for a, true in pairs]}
    for name in FIELDS:
        hits[name] = [None if true is None else a is not None and getattr(a, name) == getattr(true, name)
                      for a, true in pairs]  # fmt: skip
    return hits


class DrivingTruths:
    """What is true of the documents."""

    def caption(self, meta: dict[str, Any]) -> str:
        return meta.get("caption", "")

    def scores(self, said: Sequence[str], metas: Sequence[dict[str, Any]]) -> dict[str, list[bool | None]]:
        return hits_of([read_sentence(text) for text in said], metas)

    @property
    def chances(self) -> dict[str, float]:
        return {"density": 1 / len(DENSITIES), "lane": 1 / len(LANE_NAMES), "ahead": 1 / len(AHEAD)}

    def thing(self, meta: dict[str, Any]) -> str:
        return ""

    def things(self) -> list[str]:
        return []

    def reference(self, kind: str, thing: str, size: int) -> Media:
        raise ValueError("traffic: there are no things that stand alone")

    def item_scores(
        self, kind: str, items: Sequence[Media], metas: Sequence[dict[str, Any]]
    ) -> dict[str, list[bool | None]]:
        if kind != "traffic":
            return {}
        return hits_of([happening(item, watch(item)) for item in items], metas)

    def nearest(self, metas: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> list[int]:
        known = [happening_of(other) for other in others]

        def likeness(a: Happening | None, b: Happening | None) -> int:
            if a is None or b is None:
                return int(a is b)
            return 2 + sum(getattr(a, name) == getattr(b, name) for name in FIELDS)

        return [int(np.argmax([likeness(happening_of(meta), other) for other in known])) for meta in metas]

    def openings(self, metas: Sequence[dict[str, Any]], count: int, seed: int) -> tuple[list[str], np.ndarray]:
        phrases = {name: i for i, name in enumerate(dict.fromkeys(str(meta["caption"]) for meta in metas))}
        return list(phrases), np.array([phrases[str(meta["caption"])] for meta in metas])
