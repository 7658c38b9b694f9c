"""What is true of the furniture's world: names, references, the grammar of captions; a `plait.prepare.raw.Truths`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.codecs import Media
from plait.codecs.meshes import FILLED
from plait.codecs.views import view_cells
from plait.common.articles import with_article
from plait.common.randomness import generator
from plait.worlds.events import EVENTS, event_of, happening, read_sentence
from plait.worlds.world import COLOURS, RELATIONS, SIZES, THING, Scene, World, cells_of, middle, things

_ALONE = re.compile(rf"^an? (?P<size>{'|'.join(SIZES)}) (?P<what>.+)$")
_ARTICLE = re.compile(r"^(an?|the) ")


@dataclass(frozen=True)
class Said:
    """What a caption says: things in order, each with its colour; the size of one, the relation of two, an event."""

    names: tuple[str, ...]
    colours: tuple[str | None, ...]
    size: str | None = None
    relation: str | None = None
    event: str | None = None


def read_caption(caption: str) -> Said:
    """Read a caption by the grammar of the world; what does not fit becomes one name."""
    caption = caption.strip().lower()
    happened, names = read_sentence(caption)
    if happened is not None:
        return _said(names, event=event_of(happened))
    for relation in RELATIONS:
        first, found, second = caption.partition(f" {relation} ")
        if found:
            return _said((first, second), relation=relation)
    match = _ALONE.match(caption)
    return _said((match["what"],), size=match["size"]) if match else _said((caption,))


def _said(phrases: Sequence[str], **more: str | None) -> Said:
    names, colours = [], []
    for phrase in phrases:
        bare = _ARTICLE.sub("", phrase.strip())
        first, _, rest = bare.partition(" ")
        is_coloured = first in COLOURS and bool(rest)
        names.append(rest if is_coloured else bare)
        colours.append(first if is_coloured else None)
    return Said(tuple(names), tuple(colours), **more)


def caption_scores(captions: Sequence[str], truths: Sequence[str]) -> dict[str, list[bool | None]]:
    """Return for each caption whether it says what a true one does; None where that says nothing of the kind.

    object: the first thing's name is among those said. colour: so is its colour, in the same place. size, relation,
    event: as they are. exact: all of it, of one thing that stands still; exact_several: of two; exact_event: of what
    moves.
    """
    hits: dict[str, list[bool | None]] = {}
    for caption, truth in zip(captions, truths, strict=True):
        said, true = read_caption(caption), read_caption(truth)
        whole = "exact_event" if true.event else "exact_several" if true.relation else "exact"
        right: dict[str, bool | None] = {
            "object": true.names[0] in said.names if true.names[0] != THING else None,
            "colour": said.colours[0] == true.colours[0],
            "size": said.size == true.size if true.size else None,
            "relation": said.relation == true.relation if true.relation else None,
            "event": said.event == true.event if true.event else None,
            "exact": None, "exact_several": None, "exact_event": None,
        }  # fmt: skip
        right[whole] = said == true
        for name, hit in right.items():
            hits.setdefault(name, []).append(hit)
    return {name: values for name, values in hits.items() if any(hit is not None for hit in values)}


def colour_of(cells: np.ndarray) -> str | None:
    """Return the colour word that is nearest to the mean of filled cells, however bright; None where there is none."""
    filled = cells[..., 3] >= FILLED
    if not filled.any():
        return None
    mean = cells[filled][:, :3].astype(float).mean(0)
    hue = mean / max(mean.max(), 1.0)
    return min(COLOURS, key=lambda name: float(np.linalg.norm(np.array(COLOURS[name]) / max(COLOURS[name]) - hue)))


class WorldTruths:
    """What is true of the documents of a world."""

    def __init__(self, world: World):
        self.world = world

    def caption(self, meta: dict[str, Any]) -> str:
        return meta.get("caption", "")

    def scores(self, said: Sequence[str], metas: Sequence[dict[str, Any]]) -> dict[str, list[bool | None]]:
        return caption_scores(said, [meta["caption"] for meta in metas])

    @property
    def chances(self) -> dict[str, float]:
        names = len(self.world.train)
        return {"object": 1 / names, "colour": 1 / len(COLOURS), "relation": 1 / len(RELATIONS),
                "size": 1 / len(SIZES), "event": 1 / len(EVENTS),
                "exact": 1 / (names * len(COLOURS) * len(SIZES))}  # fmt: skip

    def thing(self, meta: dict[str, Any]) -> str:
        shown = meta.get("objects", [])
        return shown[0]["name"] if len(shown) == 1 and not meta.get("event") else ""

    def things(self) -> list[str]:
        return [model.name for model in things()]

    def reference(self, kind: str, thing: str, size: int) -> np.ndarray:
        """Return the image of a thing, uint8 [size, size, 3], or its cells ("scene3d")."""
        model = next(m for m in things() if m.name == thing)
        cells = cells_of(Scene((middle(model, "white", SIZES["large"]),), size="large"))
        return cells if kind == "scene3d" else view_cells(cells, size)

    def item_scores(
        self, kind: str, items: Sequence[Media], metas: Sequence[dict[str, Any]]
    ) -> dict[str, list[bool | None]]:
        if kind == "scene3d":
            return {"colour": [colour_of(item) == meta["objects"][0]["colour"] if self.thing(meta) else None
                               for item, meta in zip(items, metas, strict=True)]}  # fmt: skip
        if kind == "motion":
            return {"event": [event_of(happening(item)) == meta["event"] if meta["event"] else None
                              for item, meta in zip(items, metas, strict=True)]}  # fmt: skip
        return {}

    def nearest(self, metas: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> list[int]:
        by_event: dict[str | None, list[int]] = {}
        for i, other in enumerate(others):
            by_event.setdefault(other.get("event"), []).append(i)

        def likeness(a: dict[str, Any], b: dict[str, Any]) -> int:
            pairs = list(zip(a["objects"], b["objects"]))
            names, colours = (sum(x[key] == y[key] for x, y in pairs) for key in ("name", "colour"))
            alike = sum(a[key] == b[key] for key in ("size", "relation"))
            return 8 * (len(a["objects"]) == len(b["objects"])) + 4 * names + 2 * alike + colours

        everything = range(len(others))
        return [
            max(by_event.get(meta.get("event"), everything), key=lambda i: likeness(meta, others[i])) for meta in metas
        ]

    def openings(self, metas: Sequence[dict[str, Any]], count: int, seed: int) -> tuple[list[str], np.ndarray]:
        names = [meta["objects"][0]["name"] for meta in metas]
        phrases = {name: str(meta["caption"]) for name, meta in zip(names, metas, strict=True)}
        pool = self.world.train
        for i in generator(seed, "worlds: forced choice").permutation(len(pool)):
            if len(phrases) >= count:
                break
            phrases.setdefault(pool[i].name, with_article(f"large red {pool[i].name}"))
        places = {name: i for i, name in enumerate(phrases)}
        return list(phrases.values()), np.array([places[name] for name in names])
