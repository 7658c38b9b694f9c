"""What the scenes know of their documents: names, references and the grammar of captions; a `plait.prepare.raw.Truths`.

A caption of the scenes reads "a fox left of a red apple on a blue background". What a caption says is read back by
that grammar, so a score counts exact names, not similar words.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plait.common.articles import with_article
from plait.common.randomness import generator
from plait.scenes.drawings import Concept, all_concepts, placed, rasterize
from plait.scenes.restyle import Drawings
from plait.scenes.world import BACKGROUNDS, GROUND_COLORS, RELATIONS, World

_CAPTION = re.compile(r"^(?P<what>.*) on an? (?P<background>\w+) background$")
_ARTICLE = re.compile(r"^(an?|the) ")
_SEEN = ("relation", "background")


@dataclass(frozen=True)
class Said:
    """What a caption says: names in order, the relation of the first two, and the ground's colour."""

    objects: tuple[str, ...]
    relation: str | None
    background: str | None


def read_caption(caption: str, relations: Sequence[str] = RELATIONS) -> Said:
    """Read a caption by the grammar of the scenes; what does not fit becomes one object name."""
    match = _CAPTION.match(caption.strip().lower())
    what, background = (match["what"], match["background"]) if match else (caption.strip().lower(), None)
    for relation in relations:
        left, separator, right = what.partition(f" {relation} ")
        if separator:
            return Said((_bare(left), _bare(right)), relation, background)
    return Said(tuple(_bare(n) for n in re.split(r", (?=an? )| and (?=an? )", what)), None, background)


def _bare(name: str) -> str:
    return _ARTICLE.sub("", name.strip())


def caption_scores(
    captions: Sequence[str], truths: Sequence[dict], relations: Sequence[str] = RELATIONS
) -> dict[str, list[bool | None]]:
    """Return for each caption whether it is right, by its scene's truth (`Scene.meta`); None where it cannot be.

    object: the first drawing's name is among those said. colour: the ground's colour. relation: of scenes that have
    one. exact: the whole caption, of scenes of one drawing; exact_several: of the others.
    """
    hits: dict[str, list[bool | None]] = {}
    for caption, truth in zip(captions, truths, strict=True):
        said = read_caption(caption, relations)
        true = read_caption(truth["caption"], relations)
        is_one = len(true.objects) == 1
        right = {
            "object": true.objects[0] in said.objects,
            "colour": said.background == true.background,
            "relation": said.relation == true.relation if true.relation else None,
            "exact": said == true if is_one else None,
            "exact_several": None if is_one else said == true,
        }
        for name, hit in right.items():
            hits.setdefault(name, []).append(hit)
    return {name: values for name, values in hits.items() if any(hit is not None for hit in values)}


def ground_of(image: np.ndarray) -> str:
    """Return the ground whose colour is nearest to an image's border, uint8 [H, W, 3]."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    color = np.median(border.astype(float), axis=0)
    return min(GROUND_COLORS, key=lambda name: float(np.linalg.norm(GROUND_COLORS[name] - color)))


class SceneTruths:
    """What is true of the scenes of a world."""

    def __init__(self, world: World, drawings: Drawings | None = None):
        self.world, self.drawings = world, drawings

    def caption(self, meta: dict) -> str:
        return meta.get("caption", "")

    def scores(self, said: Sequence[str], metas: Sequence[dict]) -> dict[str, list[bool | None]]:
        return caption_scores(said, metas)

    @property
    def chances(self) -> dict[str, float]:
        names, grounds = len({concept.name for concept in self.world.train}), len(BACKGROUNDS)
        return {"object": 1 / names, "colour": 1 / grounds, "ground": 1 / grounds, "relation": 1 / len(RELATIONS),
                "exact": 1 / (names * grounds)}  # fmt: skip

    def thing(self, meta: dict) -> str:
        shown = meta.get("objects", [])
        return shown[0]["concept"] if len(shown) == 1 else ""

    def things(self) -> list[str]:
        known = all_concepts()
        missing = set(self.drawings.missing(known)) if self.drawings else set()
        return [concept.code for concept in known if concept.name not in missing]

    def reference(self, kind: str, thing: str, size: int) -> np.ndarray:
        return reference(thing, size, self.drawings)

    def item_scores(
        self, kind: str, items: Sequence[np.ndarray], metas: Sequence[dict]
    ) -> dict[str, list[bool | None]]:
        if kind != "image":
            return {}
        return {"ground": [ground_of(image) == meta["background"] for image, meta in zip(items, metas, strict=True)]}

    def nearest(self, metas: Sequence[dict], others: Sequence[dict]) -> list[int]:
        by_thing: dict[str, list[int]] = {}
        for i, other in enumerate(others):
            for shown in other.get("objects", []):
                by_thing.setdefault(shown["concept"], []).append(i)

        def likeness(a: dict, b: dict) -> tuple[bool, int]:
            same = sum(x == y for x, y in zip(a["objects"], b["objects"]))
            return len(a["objects"]) == len(b["objects"]), 2 * same + sum(a[k] == b[k] for k in _SEEN)

        return [
            max(
                (i for shown in meta["objects"] for i in by_thing.get(shown["concept"], [0])),
                key=lambda i: likeness(meta, others[i]),
            )
            for meta in metas
        ]

    def openings(self, metas: Sequence[dict], count: int, seed: int) -> tuple[list[str], np.ndarray]:
        names = [meta["objects"][0]["name"] for meta in metas]
        phrases = {n: f"{m['caption'].rsplit(' on ', 1)[0]} on" for n, m in zip(names, metas, strict=True)}
        others = self.world.train
        for i in generator(seed, "forced choice: names").permutation(len(others)):
            if len(phrases) >= count:
                break
            phrases.setdefault(others[i].name, f"{with_article(others[i].name, others[i].group)} on")
        places = {name: i for i, name in enumerate(phrases)}
        return list(phrases.values()), np.array([places[name] for name in names])


def reference(concept: str, size: int, drawings: Drawings | None = None) -> np.ndarray:
    """Draw one concept (an OpenMoji code) large on white, uint8 [size, size, 3]: what judges compare with."""
    drawing = _by_code()[concept]
    drawing = drawings.of(drawing) if drawings else drawing
    return rasterize(placed(drawing, center=(0.5, 0.5), extent=0.84), size=size, background=BACKGROUNDS["white"])


@functools.cache
def _by_code() -> dict[str, Concept]:
    return {c.code: c for c in all_concepts()}
