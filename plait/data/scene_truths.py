"""What the scenes know of their documents: names, references and the grammar of captions; a `plait.data.raw.Truths`.

A caption of the scenes reads "a fox left of a red apple on a blue background". What a caption says is read back by
that grammar, so a score counts exact names, not similar words.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plait.data import scenes
from plait.data.drawings import all_concepts, split_concepts
from plait.randomness import generator

_CAPTION = re.compile(r"^(?P<what>.*) on an? (?P<background>\w+) background$")
_ARTICLE = re.compile(r"^(an?|the) ")


@dataclass(frozen=True)
class Said:
    """What a caption says: names in order, the relation of the first two, and the ground's colour."""

    objects: tuple[str, ...]
    relation: str | None
    background: str | None


def read_caption(caption: str, relations: Sequence[str] = scenes.RELATIONS) -> Said:
    """Read a caption by the grammar of the scenes; what does not fit becomes one object name."""
    match = _CAPTION.match(caption.strip().lower())
    what, background = (match["what"], match["background"]) if match else (caption.strip().lower(), None)
    for relation in relations:
        left, found, right = what.partition(f" {relation} ")
        if found:
            return Said((_bare(left), _bare(right)), relation, background)
    return Said(tuple(_bare(n) for n in re.split(r", (?=an? )| and (?=an? )", what)), None, background)


def _bare(name: str) -> str:
    return _ARTICLE.sub("", name.strip())


def caption_scores(
    captions: Sequence[str], truths: Sequence[dict], relations: Sequence[str] = scenes.RELATIONS
) -> dict[str, float]:
    """Return shares over captions and their scenes' truths (`Scene.meta`).

    object: the first drawing's name is among those said. colour: the ground's colour. relation: of scenes that have
    one. exact: the whole caption.
    """
    hits: dict[str, list[bool]] = {"object": [], "colour": [], "relation": [], "exact": []}
    for caption, truth in zip(captions, truths, strict=True):
        said = read_caption(caption, relations)
        true = read_caption(truth["caption"], relations)
        hits["object"].append(true.objects[0] in said.objects)
        hits["colour"].append(said.background == true.background)
        hits["exact"].append(said == true)
        if true.relation:
            hits["relation"].append(said.relation == true.relation)
    return {name: float(np.mean(h)) for name, h in hits.items() if h}


class SceneTruths:
    """What is true of the scenes drawn with a seed."""

    def __init__(self, seed: int):
        self.seed = seed

    def caption(self, meta: dict) -> str:
        return meta.get("caption", "")

    def scores(self, said: Sequence[str], metas: Sequence[dict]) -> dict[str, float]:
        return caption_scores(said, metas)

    @property
    def num_names(self) -> int:
        return len({concept.name for concept in split_concepts(self.seed)["train"]})

    def thing(self, meta: dict) -> str:
        shown = meta.get("objects", [])
        return shown[0]["concept"] if len(shown) == 1 else ""

    def things(self) -> list[str]:
        return [concept.code for concept in all_concepts()]

    def reference(self, thing: str, size: int) -> np.ndarray:
        return scenes.reference(thing, size)

    def openings(self, metas: Sequence[dict], count: int, seed: int) -> tuple[list[str], np.ndarray]:
        names = [meta["objects"][0]["name"] for meta in metas]
        phrases = {n: f"{m['caption'].rsplit(' on ', 1)[0]} on" for n, m in zip(names, metas, strict=True)}
        others = split_concepts(self.seed)["train"]
        for i in generator(seed, "forced choice: names").permutation(len(others)):
            if len(phrases) >= count:
                break
            phrases.setdefault(others[i].name, f"{scenes.with_article(others[i].name, others[i].group)} on")
        places = {name: i for i, name in enumerate(phrases)}
        return list(phrases.values()), np.array([places[name] for name in names])
