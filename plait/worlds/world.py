"""What the documents of the furniture's world show and say, and what is held out.

Document ``i`` of a split depends on (seed, split, i) alone. A document either stands still: one thing, large or small,
or two in a relation; or its things move, as a simulation has them. Every thing has one of `COLOURS`. Splits:

- ``unseen_combinations``: three of five show one thing in a colour that training never gives it, two of five a pair of
  things that never meets in training. It comes first.
- ``unseen_motions``: things that training sees nothing of, moving.
- ``seen``: as training has them, fresh.
- ``unseen_models``: things that training sees nothing of, standing still.

As in the drawn scenes a thing has one place (docs/experiments.md): one alone stands in the middle; of two, the one that
the caption names first is larger, unless it stands on the other.
"""

import functools
import itertools
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.codecs.meshes import INWARD, filled_by
from plait.codecs.motions import COLOUR, EXTENTS, POSITION, present
from plait.common.articles import is_countable, with_article
from plait.common.errors import require
from plait.common.randomness import generator
from plait.worlds.events import Happening, event_of, sentence
from plait.worlds.furniture import Model, catalogue, is_readable, surface_of
from plait.worlds.motions import draw

SIZE = 32
"""Cells along each side of the cube of a scene."""

COLOURS = {
    "red": (205, 45, 40),
    "orange": (240, 140, 35),
    "yellow": (245, 215, 60),
    "green": (70, 160, 65),
    "blue": (50, 95, 205),
    "purple": (130, 70, 170),
    "pink": (245, 155, 190),
    "white": (238, 238, 236),
}
"""Colours of things by name."""

SIZES = {"large": 27, "small": 15}
"""Cells along the longest side of a thing that stands alone."""

BESIDE = (15, 12)
"""Cells along the longest side of two things beside each other: of the one that is named first, and of the other."""

ON = (11, 18)
"""The same where the first stands on the second."""

MOVING = (9, 13)
"""Least and most cells along the longest side of a thing that moves."""

RELATIONS = ("left of", "right of", "in front of", "behind", "on")
"""Where the first of two things is, seen from the second."""

_LEFT_OUT = ("Doors and windows", "Staircases")
_FLATTEST = 0.09
"""Least share of a thing's longest side that its shortest one has."""
_TOP = (0.95, 0.7)
"""A thing may be stood on where its surface is above this share of its height, over this share of its box."""
_TWO = 0.4
"""Share of documents that stand still and show two things."""
_MOVE = 0.55
"""Share of training's documents that move, where motions are wanted."""
_UNNAMED = 0.5
"""Share of the documents that move whose things are called `THING`: their colours tell them apart."""
THING = "thing"
_MORE_MOVERS = 0.6
"""Share of the things beside the world's that move in training too: what moves is learned of many shapes."""
NUM_HELD_OUT = 2
"""Colours that training never gives a thing."""
_APART = 0.1
"""Share of the pairs of things that never meet in training."""


@dataclass(frozen=True)
class Placed:
    """A thing in a scene."""

    model: Model
    colour: str
    longest: int
    """Cells along its longest side."""
    low: tuple[int, int, int]
    """First cell of its box along x, y and z."""
    called: str = ""
    """What a caption calls it; "": by its name."""

    @property
    def named(self) -> str:
        """What it is called, with colour and article."""
        return with_article(f"{self.colour} {self.called or self.model.name}")


@dataclass(frozen=True)
class Scene:
    """What one document shows and says."""

    things: tuple[Placed, ...]
    size: str | None = None
    """"large" or "small", of one thing that stands still."""
    relation: str | None = None
    motion: np.ndarray | None = None
    """float32 [steps, bodies, 15] (`plait.codecs.motions`), where things move."""
    happening: Happening | None = None

    @property
    def caption(self) -> str:
        """The sentence that describes it."""
        names = [thing.named for thing in self.things]
        if self.happening is not None:
            return sentence(self.happening, names)
        if self.relation:
            return f"{names[0]} {self.relation} {names[1]}"
        first = self.things[0]
        return with_article(f"{self.size} {first.colour} {first.model.name}")

    def meta(self) -> dict[str, Any]:
        """Its truth in plain JSON types."""
        return {
            "caption": self.caption,
            "objects": [{"name": t.model.name, "model": t.model.key, "colour": t.colour} for t in self.things],
            "size": self.size,
            "relation": self.relation,
            "event": event_of(self.happening) if self.happening is not None else None,
        }


@functools.cache
def things() -> tuple[Model, ...]:
    """Return the models of things by rule, those of a small world first.

    The rule: names of one or two words of letters that can be counted, of all categories but windows, doors and stairs,
    of boxes that are not flat, and whose files are all there; of those whose names end in the same word the shortest
    name, and of those of one name the first model. The categories take turns, each with names of one word before names
    of two, in an order drawn from seed 0.
    """
    by_word: dict[str, Model] = {}
    for model in sorted(catalogue(), key=lambda m: len(m.name)):  # stable: the first of a name stays before others
        said = re.fullmatch(r"[a-z]+( [a-z]+)?", model.name) and is_countable(model.name)
        is_solid = min(model.size) >= _FLATTEST * max(model.size)
        word = model.name.split()[-1]
        if said and is_solid and model.category not in _LEFT_OUT and word not in by_word and is_readable(model):
            by_word[word] = model
    queues = []
    for category in sorted({model.category for model in by_word.values()}):
        members = sorted((m for m in by_word.values() if m.category == category), key=lambda m: m.key)
        order = generator(0, f"worlds: {category}").permutation(len(members))
        queues.append(sorted((members[i] for i in order), key=lambda m: " " in m.name))
    return tuple(model for turn in itertools.zip_longest(*queues) for model in turn if model)


@dataclass(frozen=True)
class World:
    """The things that documents of a seed show, ``count`` of them, and the documents themselves."""

    seed: int
    count: int

    @property
    def train(self) -> tuple[Model, ...]:
        """What training shows."""
        return things()[: self.count]

    @property
    def movers(self) -> tuple[Model, ...]:
        """What training moves: what it shows, and more things, which it shows moving alone."""
        return things()[: self.count + int(_MORE_MOVERS * (len(things()) - self.count))]

    @property
    def unseen(self) -> tuple[Model, ...]:
        """What training sees nothing of."""
        return things()[len(self.movers) :]

    def splits(self, *, moving: bool) -> list[str]:
        """Return the held-out splits, that of motions only where they are wanted."""
        return ["unseen_combinations", *(["unseen_motions"] if moving else []), "seen", "unseen_models"]

    def scene(self, split: str, index: int, *, moving: bool) -> Scene:
        """Draw what document ``index`` of a split shows and says; ``moving``: some of ``train`` move."""
        rng = generator(self.seed, f"worlds: {split}", item=index)
        moves = rng.random() < _MOVE
        if split == "unseen_motions" or (moving and moves and split in ("train", "seen")):
            return self._moving(split, rng)
        return self._still(split, index, rng)

    def held_out_colours(self, model: Model) -> frozenset[str]:
        """Return the colours that training never gives a thing."""
        order = generator(self.seed, f"worlds: colours of {model.key}").permutation(len(COLOURS))
        return frozenset([*COLOURS][i] for i in order[:NUM_HELD_OUT])

    def meets_in_training(self, a: Model, b: Model) -> bool:
        """Return whether two things may share a training scene."""
        low, high = sorted((a.key, b.key))
        return generator(self.seed, f"worlds: pair {low} {high}").random() >= _APART

    def _pool(self, split: str) -> tuple[Model, ...]:
        return self.unseen if split in ("unseen_models", "unseen_motions") else self.train

    def _colour(self, split: str, model: Model, rng: np.random.Generator, *, other: str = "") -> str:
        """Return a colour that a split gives a thing, but for that of the ``other`` one."""
        held = self.held_out_colours(model)
        allowed = [c for c in COLOURS if c not in held and c != other]
        if split == "one_unseen":
            allowed = sorted(held)
        elif split in ("unseen_models", "unseen_motions"):
            allowed = [c for c in COLOURS if c != other]
        return allowed[rng.integers(len(allowed))]

    def _still(self, split: str, index: int, rng: np.random.Generator) -> Scene:
        pool, is_held = self._pool(split), split == "unseen_combinations"
        first = pool[_order(self.seed, split, len(pool), index // len(pool))[index % len(pool)]]
        two = index % 5 >= 3 if is_held else split != "unseen_models" and rng.random() < _TWO
        partners = [m for m in pool if m is not first and self.meets_in_training(first, m) != is_held] if two else []
        if partners:
            relation = RELATIONS[rng.integers(len(RELATIONS))]
            carriers = [m for m in partners if can_carry(m)]
            if relation == "on" and not carriers:
                relation = RELATIONS[0]
            partners = carriers if relation == "on" else partners
            second = partners[rng.integers(len(partners))]
            colours = [self._colour(split, m, rng) for m in (first, second)]
            return Scene(_two(first, second, colours, relation), relation=relation)
        size = list(SIZES)[rng.integers(len(SIZES))]
        colour = self._colour("one_unseen" if is_held else split, first, rng)
        return Scene((middle(first, colour, SIZES[size]),), size=size)

    def _moving(self, split: str, rng: np.random.Generator) -> Scene:
        """Draw things that move. They differ in colour, so that a sentence says which one is which, and half of the
        sentences name nothing: a model that knows things by name alone is lost among those that it never saw."""
        pool = self.unseen if split == "unseen_motions" else self.movers
        chosen = [pool[i] for i in rng.permutation(len(pool))[:2]]
        longest = [int(n) for n in rng.integers(*MOVING, size=2, endpoint=True)]
        boxes = [extents_of(model, n) for model, n in zip(chosen, longest, strict=True)]
        _, motion, happening = draw(rng, [tuple(n / SIZE for n in box) for box in boxes])
        placed: list[Placed] = []
        called = THING if rng.random() < _UNNAMED else ""
        for k in present(motion):
            low = (motion[0, k, POSITION] - motion[0, k, EXTENTS] / 2 + (0.5, 0.5, 0)) * SIZE
            x, y, z = (int(n) for n in low.round())
            colour = self._colour(split, chosen[k], rng, other=placed[0].colour if placed else "")
            motion[:, k, COLOUR] = np.array(COLOURS[colour]) / 255
            placed.append(Placed(chosen[k], colour, longest[k], (x, y, z), called))
        return Scene(tuple(placed), motion=motion, happening=happening)

    def check(self) -> None:
        """Raise a ConfigError where there are not so many things."""
        most = len(things())
        require(self.count < most, "prepare.concepts", self.count, f"a number below {most}: some things are held out")


@functools.lru_cache(maxsize=32)
def _order(seed: int, split: str, count: int, epoch: int) -> np.ndarray:
    return generator(seed, f"worlds: order of {split}", epoch=epoch).permutation(count)


def extents_of(model: Model, longest: int) -> tuple[int, int, int]:
    """Return the cells along x, y and z of a thing whose longest side takes ``longest`` of them."""
    x, y, z = (max(1, int(np.ceil(longest * side / max(model.size) - 0.25))) for side in model.size)
    return x, y, z


@functools.lru_cache(maxsize=512)
def can_carry(model: Model) -> bool:
    """Return whether things may be stood on a thing: its top is flat, and as wide as they are at most."""
    surface, (height, share) = surface_of(model), _TOP
    x, y, z = surface.extents
    high = surface.points[surface.points[:, 2] >= height * z]
    places = ((high[:, :2] / (x, y) + 0.5) * 8).clip(0, 7).astype(int)
    return len(np.unique(places, axis=0)) >= share * 64 and min(x, y) * ON[1] >= ON[0] * 0.6


def middle(model: Model, colour: str, longest: int) -> Placed:
    """Return a thing on the middle of the floor."""
    x, y, _ = extents_of(model, longest)
    return Placed(model, colour, longest, ((SIZE - x) // 2, (SIZE - y) // 2, 0))


def _two(first: Model, second: Model, colours: list[str], relation: str) -> tuple[Placed, Placed]:
    """Return two things in a relation, the first one named first."""
    sides = ON if relation == "on" else BESIDE
    boxes = [extents_of(model, side) for model, side in zip((first, second), sides, strict=True)]
    lows = [[(SIZE - box[0]) // 2, (SIZE - box[1]) // 2, 0] for box in boxes]
    if relation == "on":
        lows[0][2] = boxes[1][2]
    else:
        axis = 0 if relation.endswith("of") and relation != "in front of" else 1
        ahead = relation in ("left of", "in front of")  # the first one is where the axis begins
        for k, low in enumerate(lows):
            centre = SIZE // 4 if ahead == (k == 0) else 3 * SIZE // 4
            low[axis] = centre - boxes[k][axis] // 2
    made = zip((first, second), colours, sides, lows, strict=True)
    a, b = (Placed(model, colour, side, (low[0], low[1], low[2])) for model, colour, side, low in made)
    return a, b


def surface_cells(placed: Placed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return points in cells, normals, and colours of a placed thing."""
    surface = surface_of(placed.model)
    box = np.array(extents_of(placed.model, placed.longest), float)
    scale = box / np.maximum(np.array(surface.extents), 1e-6)
    centre = np.array(placed.low) + box / 2 * (1, 1, 0)
    return surface.points * scale + centre, surface.normals, tinted(surface.colours, COLOURS[placed.colour])


def tinted(colours: np.ndarray, tint: tuple[int, int, int]) -> np.ndarray:
    """Return colours of one hue, as light and dark as others are beside each other; float [N, 3]."""
    light = colours.astype(np.float32) @ np.array([0.3, 0.59, 0.11], np.float32)
    relative = np.clip(light / max(float(light.mean()), 1.0), 0.55, 1.25) / 1.05
    return np.clip(relative[:, None] * np.array(tint, np.float32), 0, 255)


def cells_of(scene: Scene) -> np.ndarray:
    """Return the cells uint8 [SIZE, SIZE, SIZE, 4] of a scene."""
    cells = np.zeros((SIZE, SIZE, SIZE, 4), np.uint8)
    for thing in reversed(scene.things):
        points, normals, colours = surface_cells(thing)
        own = filled_by(points - INWARD * normals, colours, SIZE)
        cells = np.where(own[..., 3:] > 0, own, cells)
    return cells
