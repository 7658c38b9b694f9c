"""Scenes in three dimensions: are they what was asked for, do they stand, and how near is the whole set to real ones?

- object_accuracy: the share of scenes of one thing whose shape is nearest to that thing, among `NUM_THINGS`.
- colour_accuracy, and what else the source of the data knows: whether that is right.
- stands: the share that stands for a second in a simulation, and is no dust; loose_voxels: the share of filled cells
  that are loose.
- match: the overlap (IoU) of filled cells with those of the document's own scene.
- neighbour and copied: `plait.evaluate.neighbours`; mmd, coverage and one_nna: `plait.worlds.shape_sets`.

Beside them stand those of the documents' own scenes (real, of names: originals), of the codec's round trip of them
(codec, the ceiling), of the training scene whose text is nearest (nearest), and of sets those of training (training).
"""

import functools
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.codecs import Media
from plait.codecs.boxes import parts_of
from plait.codecs.meshes import FILLED
from plait.codecs.voxels import unit
from plait.common.randomness import generator
from plait.evaluate.held import Held
from plait.evaluate.judge import Found, Judge
from plait.evaluate.measures import hits_array, mean_of, share_of
from plait.evaluate.neighbours import neighbours
from plait.prepare.raw import Truths
from plait.worlds.shape_sets import LEAST, MOST, overlap, set_figures
from plait.worlds.standing import LARGE, loose, stands

NUM_THINGS = 100
"""Things that a scene's is told from; all that there are, if they are fewer."""
SHAPE = 16
"""Cells along each side of the cube that shapes are compared in."""
COARSE = 8
"""The same of the cube whose filling and colours say which training scene is nearest."""
MOST_LOOSE = 0.5
"""Share of loose cells above which a scene is dust, which does not stand."""
ENDS = {"real": "originals", "codec": "codec", "nearest": "nearest"}
"""Sets of scenes whose names are judged beside the made ones', and how their figures end."""

Arrays = dict[str, np.ndarray]


class ShapeJudge(Judge):
    """Measures scenes, cells uint8 [S, S, S, 4]."""

    modules: ClassVar = ("scipy.stats", "scipy.ndimage", "mujoco")

    def measure(self, made: Sequence[Media], held: Held) -> Found:
        """Measure scenes."""
        beside = self._beside(held)
        own = self._judged(made, held, range(len(made)))
        found = Found(ranked_by="overlap with the document's own scene")
        self._one_by_one(own, beside, found)
        self._remembered(own, beside, held, found)
        self._as_sets(own, beside, made[0].shape[0], held, found)
        for name in (n for n in own if n.startswith("hit_")):
            self._named(name, own, beside, held, found)
        return found

    def _beside(self, held: Held) -> dict[str, Arrays]:
        """Return what is judged of the sets of scenes beside the made ones, by their names."""
        sets: dict[str, Arrays] = {}
        kept = held.references("scenes", functools.partial(self._references, held), things=NUM_THINGS)
        for key, rows in kept.items():
            name, _, figure = key.partition("/")
            sets.setdefault(name, {})[figure] = rows
        return sets

    def _references(self, held: Held) -> Arrays:
        """Return it as arrays named SET/FIGURE, with a row for each document."""
        rows: dict[str, list[np.ndarray]] = {}
        for places in held.batches():
            real = held.raw(places)
            sets = {"real": real, "codec": held.codec.decode(held.codec.encode(real)), "nearest": held.nearest(places)}
            for name, scenes in sets.items():
                for figure, values in self._judged(scenes, held, places).items() if scenes else ():
                    rows.setdefault(f"{name}/{figure}", []).append(values)
        first = list(islice(held.training.first(held.codec.key), min(MOST, len(held.documents))))
        training = {"training/filled": packed(first)} if first else {}
        return {key: np.concatenate(values) for key, values in rows.items()} | training

    def _judged(self, scenes: Sequence[Media], held: Held, places: Sequence[int]) -> Arrays:
        """Return what is said of each scene by itself, with a row for each; they are of the documents at ``places``."""
        shares = [loose(scene) for scene in scenes]
        found = {
            "filled": packed(scenes), "features": coarse(scenes).numpy(), "loose": np.array(shares),
            "stands": np.array([s <= MOST_LOOSE and stands(scene) for s, scene in zip(shares, scenes, strict=True)]),
        }  # fmt: skip
        if held.truths:
            hits = held.truths.item_scores(held.codec.kind, scenes, [held.metas[i] for i in places])
            names = ShapeNames(held, scenes[0].shape[0])
            found["hit_object"] = names.hits(shapes(scenes), places)
            found |= {f"hit_{name}": hits_array(values) for name, values in hits.items() if name != "object"}
        return found

    def _one_by_one(self, own: Arrays, beside: Mapping[str, Arrays], found: Found) -> None:
        """Add how like scenes are to the documents' own, and what needs no other scene."""
        real = beside["real"]["filled"]
        found.ranking = overlaps(own["filled"], real).tolist()
        found.measures["match"] = mean_of(found.ranking)
        found.beside["match_shuffled"] = float(overlaps(np.roll(real, 1, axis=0), real).mean())
        found.measures["stands"] = share_of([bool(hit) for hit in own["stands"]])
        found.measures["loose_voxels"] = mean_of(own["loose"].tolist())
        for name, arrays in beside.items():
            if name in ENDS:
                found.beside |= {f"stands_{name}": float(arrays["stands"].mean()),
                                 f"loose_voxels_{name}": float(arrays["loose"].mean())}  # fmt: skip
            if name in ("codec", "nearest"):
                found.beside[f"match_{name}"] = float(overlaps(arrays["filled"], real).mean())

    def _remembered(self, own: Arrays, beside: Mapping[str, Arrays], held: Held, found: Found) -> None:
        """Add how near scenes are to the nearest one of training."""
        sets = {"": own, "real": beside["real"], "codec": beside["codec"]}
        features = {name: torch.from_numpy(arrays["features"]) for name, arrays in sets.items()}
        measures, figures = neighbours(features, held.training_features("scenes", coarse))
        found.measures |= measures
        found.beside |= figures

    def _as_sets(self, own: Arrays, beside: Mapping[str, Arrays], size: int, held: Held, found: Found) -> None:
        """Add how near the whole set is to the documents' own scenes."""
        sets = {name: unpacked(x["filled"][:MOST], size) for name, x in {"": own, **beside}.items()}
        if len(sets[""]) < LEAST:
            held.say(
                f"{len(sets[''])} scenes of {held.made!r} are too few to be compared as a set with real ones, it needs "
                f"{LEAST} (evaluate.items, and documents of the split {held.split!r})"
            )
            return
        measures, figures = set_figures(sets, sets.pop("real"))
        found.measures |= measures
        found.beside |= figures

    def _named(self, name: str, own: Arrays, beside: Mapping[str, Arrays], held: Held, found: Found) -> None:
        """Add how often scenes are right in something that the source of the data knows."""
        assert held.truths is not None, "hits are of truths"
        said = name.removeprefix("hit_")
        things = min(NUM_THINGS, len(held.truths.things()))
        chance = 1 / max(things, 1) if said == "object" else held.truths.chances.get(said)
        hits = {end: beside[key][name] for key, end in ENDS.items() if name in beside.get(key, {})}
        found.add_hits(said, own[name], hits, chance)


class ShapeNames:
    """Says which scenes of one thing have the shape of that thing as their nearest, among those of NUM_THINGS.

    Things are those that the documents show, then the others in the source's order. Where documents show more, each
    scene's are the true one and NUM_THINGS - 1 that are drawn for it. Documents of several things, or none, are left
    out.
    """

    def __init__(self, held: Held, size: int):
        """``size``: cells along each side of the scenes."""
        truths: Truths | None = held.truths
        assert truths is not None, "things are those that the source knows"
        self.shown = [truths.thing(meta) for meta in held.metas]
        things = list(dict.fromkeys([*filter(None, self.shown), *truths.things()]))
        self.things = things[: max(NUM_THINGS, len(set(filter(None, self.shown))))]

        def references() -> Arrays:
            return {"shapes": shapes([truths.reference(held.codec.kind, thing, size) for thing in self.things])}

        self.references = held.references(f"scenes_names_{size}", references, things=self.things)["shapes"]

    def hits(self, shapes: np.ndarray, places: Sequence[int]) -> np.ndarray:
        """Return for shapes [B, SHAPE^3], of the documents at ``places``, 1 where the name is right, 0, or -1."""
        nearness = in_turns(shapes, self.references)
        hits = np.full(len(shapes), -1)
        for row, (place, scores) in enumerate(zip(places, nearness, strict=True)):
            if self.shown[place]:
                true = self.things.index(self.shown[place])
                order = generator(0, "shape judge: other things", item=place).permutation(len(scores))
                rivals = order[order != true][: NUM_THINGS - 1]
                # things of one shape are told apart by nobody
                hits[row] = int(scores[true] > 0 and (scores[rivals] <= scores[true]).all())
        return hits


def shapes(scenes: Sequence[Media]) -> np.ndarray:
    """Return bool [B, SHAPE^3]: what scenes fill, cut to their box and scaled by its longest side, on the floor."""
    return np.stack([_shape(scene).ravel() for scene in scenes])


def _shape(scene: Media) -> np.ndarray:
    # parts too small to be a thing would widen the box
    parts = parts_of(scene)
    counts = np.bincount(parts.ravel())
    counts[0] = 0
    filled = ((counts >= LARGE * counts.sum()) & (counts > 0))[parts]
    if not filled.any():
        filled = scene[..., 3] >= FILLED
    places = np.argwhere(filled)
    if not len(places):
        return np.zeros((SHAPE,) * 3, bool)
    low, high = places.min(0), places.max(0) + 1
    longest = (high - low).max()
    shape = filled
    for axis, (first, last) in enumerate(zip(low, high, strict=True)):
        # two points along each side of a cell, so that nothing thin falls between them
        start = first if axis == 2 else (first + last - longest) / 2
        points = np.floor(start + (np.arange(2 * SHAPE) + 0.5) * longest / (2 * SHAPE)).astype(int)
        inside = (points >= first) & (points < last)
        shape = np.take(shape, np.where(inside, points, first), axis)
        shape &= np.expand_dims(inside, [a for a in range(3) if a != axis])
    return shape.reshape(SHAPE, 2, SHAPE, 2, SHAPE, 2).any((1, 3, 5))


def in_turns(shapes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return [B, R]: the overlap of shapes [B, SHAPE^3] with others [R, SHAPE^3] in the best of four turns about z."""
    cubes = others.reshape(-1, SHAPE, SHAPE, SHAPE)
    return np.max([overlap(shapes, np.rot90(cubes, turn, axes=(1, 2))) for turn in range(4)], axis=0)


def coarse(scenes: Sequence[Media]) -> Tensor:
    """Return float32 [B, 4 * COARSE^3]: the colours and the filling of coarse cells."""
    rows = [F.adaptive_avg_pool3d(unit(torch.from_numpy(scene)[None]), COARSE).flatten(1) for scene in scenes]
    return torch.cat(rows)


def packed(scenes: Sequence[Media]) -> np.ndarray:
    """Return which cells of scenes are filled, as bits uint8 [B, S^3 / 8, rounded up]."""
    return np.packbits(np.stack([scene[..., 3] >= FILLED for scene in scenes]).reshape(len(scenes), -1), axis=1)


def unpacked(bits: np.ndarray, size: int) -> np.ndarray:
    """Undo `packed`: bool [B, S, S, S]."""
    return np.unpackbits(bits, axis=1, count=size**3).reshape(-1, size, size, size).astype(bool)


def overlaps(bits: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the overlap [B] of each scene with the other one of its row, as bits; 1 for two that are empty."""
    both, either = (np.bitwise_count(x).sum(1) for x in (bits & others, bits | others))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)
