"""The worlds that scenes show: which things there are, what a document of each split shows, and what is held out.

Document ``i`` of a split depends on (seed, split, i) alone. Two worlds:

- every concept (`ALL`). Most scenes hold one large drawing ("a red apple on a blue background"), some two in a relation
  ("a fox left of a key on a red background"), a few three. Splits: ``seen`` (training concepts, fresh scenes);
  ``unseen_concepts`` (families and groups of which training sees nothing); ``unseen_combinations`` (two concepts seen
  apart, never together); ``other_voice`` (training concepts, a voice that training never hears).
- a small world of some everyday things (`plait.scenes.drawings.everyday`), each drawn in the middle at one size, or
  where there are two, each on its half, the one that the caption names first larger. Each has three grounds on which
  training never shows it: ``unseen_grounds`` holds such scenes, three of five with one thing and two of five with two,
  so that what is right there is composed, not remembered. It comes first; there is no ``unseen_concepts``.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plait.common.articles import with_article
from plait.common.errors import ConfigError
from plait.common.randomness import generator
from plait.scenes.drawings import Concept, everyday, split_concepts

ALL = 0
"""Size of the world of every concept."""

BACKGROUNDS = {
    "white": "#ffffff",
    "gray": "#a3a3a3",
    "red": "#d8433b",
    "orange": "#f29a3a",
    "yellow": "#fbe04b",
    "green": "#6cb152",
    "blue": "#4f92dd",
    "purple": "#8a5bb5",
    "pink": "#f6a9cc",
    "brown": "#94653f",
}
"""Ground colours by name."""

GROUND_COLORS = {name: np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)]) for name, code in BACKGROUNDS.items()}
"""The same as red, green and blue, int [3]."""

RELATIONS = ("left of", "right of", "above", "below")
"""Where the first of two drawings is, seen from the second."""

VOICES = ("en-us", "en-us+f3", "en-us+f5", "en-us+m3", "en-us+m7")
"""eSpeak's voices in every split but ``other_voice``."""

OTHER_VOICE = "en-gb-x-rp"
"""eSpeak's voice of ``other_voice``."""

NUM_HELD_OUT = 3
"""Grounds on which training never shows a thing of a small world."""

_SHARES = {True: (0.12, 0.03), False: (0.4, 0.0)}  # of scenes with two and three drawings: every concept, or some
_APART = 0.1  # share of pairs of training concepts that never meet in training
_RATES, _PITCHES = (205, 235), (35, 65)  # words a minute; eSpeak's pitch, 0 to 99
TRIES = 10_000
"""Draws of companions, before those that remain are counted."""

_CONTRAST = 90  # least distance of a ground from a drawing's mean colour, in RGB


@dataclass(frozen=True)
class Scene:
    """What one document shows and says, before drawing and speaking."""

    concepts: tuple[Concept, ...]
    relation: str | None
    background: str
    centers: tuple[tuple[float, float], ...]
    extents: tuple[float, ...]
    voice: str
    rate: int
    pitch: int

    @property
    def caption(self) -> str:
        """The sentence that describes the scene."""
        names = [with_article(c.name, c.group) for c in self.concepts]
        if self.relation:
            what = f"{names[0]} {self.relation} {names[1]}"
        else:
            what = " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
        return f"{what} on {with_article(self.background)} background"

    def meta(self) -> dict:
        """The scene's truth in plain JSON types. ``concept`` is the drawing's code in OpenMoji."""
        return {
            "caption": self.caption,
            "objects": [{"name": c.name, "concept": c.code} for c in self.concepts],
            "background": self.background,
            "relation": self.relation,
            "voice": self.voice,
        }


@dataclass(frozen=True)
class World:
    """The things that scenes of a seed show, ``size`` of them or `ALL`, and the scenes themselves."""

    seed: int
    size: int = ALL

    @property
    def train(self) -> tuple[Concept, ...]:
        """What training shows."""
        return _members(self.seed, self.size)["train"]

    @property
    def unseen(self) -> tuple[Concept, ...]:
        """Concepts that training sees nothing of."""
        return _members(self.seed, self.size)["unseen"]

    def splits(self, *, spoken: bool) -> list[str]:
        """Return the held-out splits, those of a voice only where scenes are ``spoken``."""
        names = ["seen", "unseen_concepts", "unseen_combinations"]
        if self.size:
            names = ["unseen_grounds", "seen", "unseen_combinations"]
        return [*names, *(["other_voice"] if spoken else [])]

    def scene(self, split: str, index: int) -> Scene:
        """Draw what document ``index`` of a split shows and says."""
        rng = generator(self.seed, f"scenes: {split}", item=index)
        pool = _members(self.seed, self.size)["unseen" if split == "unseen_concepts" else "train"]
        count, leads = self._count(split, index, rng.random()), _leads(self, split)
        # every concept leads equally often: one random order of all of them after the other
        first = leads[_order(self.seed, split, len(leads), index // len(leads))[index % len(leads)]]
        chosen = self._companions(split, pool, first, count, rng)
        relation = RELATIONS[rng.integers(len(RELATIONS))] if len(chosen) == 2 else None
        centers, extents = _places(chosen, relation, rng)
        if self.size:  # drawn above all the same: the draws that follow stay as they are
            centers, extents = _settled(relation)
        grounds = self.grounds(split, first, chosen)
        return Scene(
            chosen,
            relation,
            grounds[rng.integers(len(grounds))],
            centers,
            extents,
            OTHER_VOICE if split == "other_voice" else VOICES[rng.integers(len(VOICES))],
            int(rng.integers(*_RATES)),
            int(rng.integers(*_PITCHES)),
        )

    def grounds(self, split: str, first: Concept, chosen: Sequence[Concept]) -> list[str]:
        """Return the grounds that a split may show things on: those on which all can be seen, less the held-out ones.

        ``unseen_grounds`` shows ``first`` on a ground that training never shows it on.
        """
        visible = [name for name in BACKGROUNDS if all(name in visible_on(c) for c in chosen)]
        if not self.size:
            return visible
        if split == "unseen_grounds":
            return [name for name in visible if name in self.held_out_grounds(first)]
        return [name for name in visible if not any(name in self.held_out_grounds(c) for c in chosen)]

    def held_out_grounds(self, concept: Concept) -> frozenset[str]:
        """Return the grounds of a thing of a small world that training never shows it on."""
        visible = visible_on(concept)
        order = generator(self.seed, f"scenes: grounds of {concept.code}").permutation(len(visible))
        return frozenset(visible[i] for i in order[:NUM_HELD_OUT])

    def meets_in_training(self, a: Concept, b: Concept) -> bool:
        """Return whether two training concepts may share a training scene."""
        low, high = sorted((a.code, b.code))
        return generator(self.seed, f"scenes: pair {low} {high}").random() >= _APART

    def _count(self, split: str, index: int, draw: float) -> int:
        """Return how many drawings a document shows; ``draw`` is a number in [0, 1)."""
        if split == "unseen_combinations":
            return 2
        if split == "unseen_grounds":
            return 1 if index % 5 < 3 else 2
        two, three = _SHARES[self.size == ALL]
        return 3 if draw < three else 2 if draw < three + two else 1

    def _companions(self, split: str, pool, first: Concept, count: int, rng) -> tuple[Concept, ...]:
        """Return ``first`` and its companions, in random order, all of different names and allowed to meet.

        They are fewer where nothing else may join them, as in a small world.
        """
        chosen = [first]
        for _ in range(TRIES):
            if len(chosen) == count:
                break
            other = pool[rng.integers(len(pool))]
            if self._may_join(split, chosen, other):
                chosen.append(other)
        while len(chosen) < count:  # who may join is rare, or nobody
            others = [other for other in pool if self._may_join(split, chosen, other)]
            if not others:
                break
            chosen.append(others[rng.integers(len(others))])
        return tuple(chosen[i] for i in rng.permutation(len(chosen)))

    def _may_join(self, split: str, chosen: Sequence[Concept], other: Concept) -> bool:
        """Say whether a thing may stand beside others, of which the first one leads."""
        if other in chosen or not self.grounds(split, chosen[0], [*chosen, other]):
            return False
        wanted = split != "unseen_combinations"  # elsewhere, only pairs that training may show
        return split == "unseen_concepts" or all(self.meets_in_training(c, other) == wanted for c in chosen)

    def check(self) -> None:
        """Raise a ConfigError for so small a world that no two things can be held apart."""
        if self.size and not _leads(self, "unseen_combinations"):
            raise ConfigError(
                f"prepare.concepts: {self.size} is not allowed with seed {self.seed}, as no two of its things are kept "
                "from meeting in training, for the split 'unseen_combinations'; take more, such as 64, or another seed"
            )


@functools.lru_cache(maxsize=32)
def _leads(world: World, split: str) -> tuple[Concept, ...]:
    """Return the things that may lead the scenes of a split: in that of unseen pairs, those that can be in one."""
    pool = _members(world.seed, world.size)["unseen" if split == "unseen_concepts" else "train"]
    if split != "unseen_combinations" or not world.size:
        return pool
    return tuple(c for c in pool if any(world._may_join(split, [c], other) for other in pool))


@functools.lru_cache(maxsize=8)
def _members(seed: int, size: int) -> dict[str, tuple[Concept, ...]]:
    return {"train": everyday(size), "unseen": ()} if size else split_concepts(seed)


@functools.lru_cache(maxsize=32)
def _order(seed: int, split: str, count: int, epoch: int) -> np.ndarray:
    return generator(seed, f"scenes: order of {split}", epoch=epoch).permutation(count)


@functools.cache
def visible_on(concept: Concept) -> tuple[str, ...]:
    """Return the grounds on which a drawing can be seen: those unlike its mean colour."""
    return tuple(name for name, ground in GROUND_COLORS.items() if np.linalg.norm(ground - concept.color) > _CONTRAST)


def _places(chosen: Sequence[Concept], relation: str | None, rng):
    """Return centres and longer sides on the unit square, y downwards."""
    if len(chosen) == 1:
        extent = rng.uniform(0.82, 0.92)
        longest = max(chosen[0].box[2:])
        room = [max(0.98 - extent * side / longest, 0) / 2 for side in chosen[0].box[2:]]
        shift = rng.uniform(-1, 1, 2) * np.minimum(room, 0.05)
        return ((0.5 + float(shift[0]), 0.5 + float(shift[1])),), (extent,)
    if relation:
        centers = _arranged(relation, 0.26, 0.74, (0.5 + rng.uniform(-0.1, 0.1, 2)).tolist())
        return centers, tuple(rng.uniform(0.4, 0.47, 2).tolist())
    corners = [(0.27, 0.27), (0.73, 0.3), (0.5, 0.73)]
    return tuple(corners), tuple(rng.uniform(0.38, 0.44, 3).tolist())


def _settled(relation: str | None) -> tuple[tuple[tuple[float, float], ...], tuple[float, ...]]:
    """Return centres and longer sides of a small world, where a thing has one place and one size.

    What varies by a few pixels is what a small model would spend its quarter of an hour on: it is sought among the
    noise by comparing patches, and without it the drawing follows from its name (docs/experiments.md). Of two things
    the larger one is named first, as people do: else the image would leave open which of two sentences describes it.
    """
    if relation is None:
        return ((0.5, 0.5),), (0.87,)
    return _arranged(relation, 0.25, 0.75, (0.5, 0.5)), (0.48, 0.36)


def _arranged(relation: str, near: float, far: float, across: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Return the centres of two drawings in a relation; ``across`` are their places on the other axis."""
    along = (near, far) if relation in ("left of", "above") else (far, near)
    return tuple((a, c) if relation.endswith("of") else (c, a) for a, c in zip(along, across, strict=True))
