"""The furniture's world as a source of documents: scenes in three dimensions, their images, and motions.

What they show, and the splits, are in `plait.worlds.world`. A document that stands still has the parts text, scene3d
and image; one that moves has text, scene3d (its first moment) and motion.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from plait.codecs import Codec
from plait.codecs.views import view_cells
from plait.common.errors import require
from plait.config.run import PrepareConfig
from plait.prepare.raw import RawDocument, Truths, check_keys
from plait.worlds.furniture import CREDIT
from plait.worlds.physics import MOST_BODIES, STEPS
from plait.worlds.truths import WorldTruths
from plait.worlds.world import SIZE, World, cells_of

PARTS = ("text", "scene3d", "image", "motion")
"""Keys of the parts of documents."""

ONLY = {"scene3d": {"size": SIZE}, "motion": {"steps": STEPS, "bodies": MOST_BODIES}}
"""What options of codecs have to be, by the key of their parts."""

THINGS = 80
"""Things of the world where `prepare.concepts` is "all"."""


class WorldSource:
    """Documents of the furniture's world, by split and index; a `plait.prepare.raw.RawSource`.

    ``parts`` names the parts that are made; ``moving`` says whether some documents move.
    """

    def __init__(self, prepare: PrepareConfig, seed: int, *, parts: Sequence[str], moving: bool):
        self.image_size, self.moving = prepare.image_size, moving
        self.parts = tuple(p for p in PARTS if p in parts)
        self.world = World(seed, THINGS if prepare.concepts == "all" else int(prepare.concepts))
        self.world.check()
        held_out = self.world.splits(moving=moving)
        self._rows = {"train": prepare.documents} | {name: prepare.validation_documents for name in held_out}

    def splits(self) -> dict[str, int]:
        """Return the number of documents of each split."""
        return dict(self._rows)

    @property
    def credit(self) -> str:
        """The line that a page which shows them has to carry."""
        return CREDIT

    @property
    def truths(self) -> Truths:
        """What is true of them."""
        return WorldTruths(self.world)

    trials = None

    def read(self, split: str, start: int, stop: int) -> Iterator[RawDocument]:
        """Make documents [start, stop) of a split. Raises ResourceError where the models cannot be had."""
        for i in range(start, stop):
            scene = self.world.scene(split, i, moving=self.moving)
            cells = cells_of(scene) if {"scene3d", "image"} & {*self.parts} else None
            media: dict[str, Any] = {"text": scene.caption, "scene3d": cells}
            if scene.motion is not None:
                media["motion"] = scene.motion
            elif "image" in self.parts and cells is not None:
                media["image"] = view_cells(cells, self.image_size)
            yield RawDocument([(part, media[part]) for part in self.parts if part in media], scene.meta())


def open_worlds(prepare: PrepareConfig, seed: int, codecs: dict[str, Codec], keys: Sequence[str] | None) -> WorldSource:
    """Open the world for ``codecs``; ``keys`` names the parts that are wanted (all that the codecs read, if None)."""
    check_keys(codecs, PARTS, "the furniture's world has")
    for name, codec in codecs.items():
        for setting, only in ONLY.get(codec.key, {}).items():
            value = getattr(codec.options, setting, only)
            require(value == only, f"model.modalities.{name}.codec_options.{setting}", value,
                    f"{only}, as in the furniture's world")  # fmt: skip
    read = [codec.key for codec in codecs.values()]
    return WorldSource(prepare, seed, parts=read if keys is None else keys, moving="motion" in read)
